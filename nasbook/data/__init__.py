"""Data sets as tensors on the device, and batches from them. Imports nothing of nasbook but errors and seeding."""

from nasbook.data.augmentation import Augmentation, augment
from nasbook.data.imagenet import image_folder_loaders, load_image_folder
from nasbook.data.images import ImageData, list_images, load_images
from nasbook.data.loaders import Loader, Walk, evaluation_batches
from nasbook.data.segmentation import (
    CropAugmentation,
    Samples,
    SegmentationData,
    SegmentationLoader,
    TensorSamples,
    random_crop,
    whole_images,
)
from nasbook.data.sequences import PARTS, SequenceData, SequenceLoader
from nasbook.data.series import SERIES, SeriesData, load_series
from nasbook.data.shapes import SHAPE_CLASSES, load_shapes
from nasbook.data.text import TEXTS, TextData, load_text
from nasbook.data.voc import VOC_CLASSES, FileSamples, load_voc

__all__ = [
    "PARTS",
    "SERIES",
    "SHAPE_CLASSES",
    "TEXTS",
    "VOC_CLASSES",
    "Augmentation",
    "CropAugmentation",
    "FileSamples",
    "ImageData",
    "Loader",
    "Samples",
    "SegmentationData",
    "SegmentationLoader",
    "SequenceData",
    "SequenceLoader",
    "SeriesData",
    "TensorSamples",
    "TextData",
    "Walk",
    "augment",
    "evaluation_batches",
    "image_folder_loaders",
    "list_images",
    "load_image_folder",
    "load_images",
    "load_series",
    "load_shapes",
    "load_text",
    "load_voc",
    "random_crop",
    "whole_images",
]
