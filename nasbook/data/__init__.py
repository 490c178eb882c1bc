"""Data sets as tensors on the device, and batches from them. Imports nothing of nasbook but errors and seeding."""

from nasbook.data.augmentation import Augmentation, augment
from nasbook.data.imagenet import image_folder_loaders, load_image_folder
from nasbook.data.images import ImageData, list_images, load_images
from nasbook.data.loaders import Loader, evaluation_batches

__all__ = [
    "Augmentation",
    "ImageData",
    "Loader",
    "augment",
    "evaluation_batches",
    "image_folder_loaders",
    "list_images",
    "load_image_folder",
    "load_images",
]
