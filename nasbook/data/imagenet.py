"""ImageNet, for the paper scale: image files in folders, ``root/train`` and ``root/val``, one folder a class.

The only set here that does not fit on the device as one tensor. So there are two ways to it: a share of its images as
one tensor after all, which is what papers search on (:func:`load_image_folder`), and all of them as batches that worker
processes decode (:func:`image_folder_loaders`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from nasbook.data.augmentation import Augmentation
from nasbook.data.images import ImageData, checksum_of
from nasbook.errors import DataError, InvalidInput, require_positive
from nasbook.seeding import generator

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's red, green and blue, between 0 and 1, as everybody uses them."""
STD = (0.229, 0.224, 0.225)
"""Standard deviations that go with :data:`MEAN`."""

CHUNK = 256
"""Images that are decoded before the next ones are begun."""


def load_image_folder(
    root: str | os.PathLike[str],
    share: float = 0.03,
    image_size: int = 224,
    *,
    seed: int,
    test_share: float = 0.1,
    workers: int = 4,
    limit_gib: float = 16.0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ImageData:
    """A share of ``root/train`` and of ``root/val`` as one tensor each, to search on: of every class the same share.

    Stretchable Cells search on 3 % of ImageNet's training images, 38,000, which take 5.4 GiB; the search, which
    divides them, holds them a second time. With a tenth of the validation images for the test it is 6.1 GiB.

    Images are resized to 8/7 of ``image_size`` on the shorter side and cropped in the centre. The augmentation is
    CIFAR's at this size: flips, and crops with an eighth of the image as padding. DARTS' code for ImageNet crops at
    random sizes and changes colours, which :func:`image_folder_loaders` does and one tensor can't.

    Args:
        root: a folder with ``train`` and ``val``, each with one folder of images a class.
        share: of the training images of every class, to the nearest image.
        image_size: height and width.
        seed: of the choice of images.
        test_share: of the validation images of every class; 0 for no test images, which a search does not need.
        workers: threads that decode.
        limit_gib: the most memory that the images may take.
        device: where the tensors go.
        progress: whether to show a bar.

    Raises:
        DataError: a folder or file is missing, empty or damaged, or train and val have different classes.
        InvalidInput: a share is out of range or leaves a class without an image, or the limit would be passed.
    """
    require_positive(share=share, image_size=image_size, workers=workers)
    for name, value in (("share", share), ("test_share", test_share)):
        if not 0 <= value <= 1:
            raise InvalidInput(f"{name} must be at least 0 and at most 1, got {value}.")
    root = Path(root)
    train = _image_folder(root, "train")
    chosen = {"train": _balanced_share(train, share, "share", seed), "test": []}
    if test_share:
        val = _image_folder(root, "val")
        _check_same_classes(root, train, val)
        chosen["test"] = _balanced_share(val, test_share, "test_share", seed)
    needed = sum(map(len, chosen.values())) * 3 * image_size**2 / 2**30
    if needed > limit_gib:
        raise InvalidInput(
            f"{len(chosen['train']):,} training and {len(chosen['test']):,} test images of {image_size}×{image_size} "
            f"take {needed:.1f} GiB, more than limit_gib={limit_gib}. Lower share or image_size, or raise limit_gib."
        )
    tensors: dict[str, Tensor] = {}
    for part, samples in chosen.items():
        images, labels = _decode(samples, image_size, workers, f"{root.name}, {part}" if progress else "")
        tensors |= {f"{part}_images": images, f"{part}_labels": labels}
    return ImageData(
        name=root.resolve().name,
        train_images=tensors["train_images"],
        train_labels=tensors["train_labels"],
        test_images=tensors["test_images"],
        test_labels=tensors["test_labels"],
        classes=len(train.classes),
        mean=MEAN,
        std=STD,
        augmentation=Augmentation(crop_padding=image_size // 8, flip=True),
        source=f"folder:{root.resolve().name}",
        checksum=checksum_of(tensors),
    ).to(device)


def image_folder_loaders(
    root: str | os.PathLike[str], batch_size: int, workers: int, image_size: int = 224, *, seed: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of ``root/train`` and ``root/val``, each with one folder of images a class.

    Training images are cropped at random in size and place, flipped, and jittered in brightness, contrast,
    saturation (0.4) and hue (0.2), as in DARTS' code for ImageNet (§3.3). Validation images are resized to
    8/7 of ``image_size`` and cropped in the centre.

    The order and the workers' randomness follow from ``seed`` and the number of workers (at least 1, since
    without workers the transforms draw from the global generator). To make epoch ``e`` the same after a
    resume, reseed before it: ``train.generator.manual_seed(fold_seed(seed, "order", e))``.

    Raises:
        DataError: a folder is missing or empty, or train and val have different classes.
        InvalidInput: a size is below 1, or there are fewer training images than a batch holds.
    """
    from torchvision import transforms  # slow to import, and needed at this scale only

    require_positive(batch_size=batch_size, workers=workers, image_size=image_size)
    to_values = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    root = Path(root)
    train = _image_folder(root, "train", transforms.Compose([
        transforms.RandomResizedCrop(image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
        *to_values,
    ]))
    val = _image_folder(root, "val", transforms.Compose([*_centre(image_size), *to_values]))
    _check_same_classes(root, train, val)
    if len(train) < batch_size:
        raise InvalidInput(f"A batch of {batch_size} needs at least as many images, got {len(train)}.")
    memory = torch.cuda.is_available()
    return (
        DataLoader(train, batch_size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=memory,
                   generator=generator(seed, "order", 0)),
        DataLoader(val, batch_size, num_workers=workers, pin_memory=memory, generator=generator(seed, "val")),
    )


Sample = tuple[str, int]
"""Path of an image, and its class."""


def _balanced_share(folder: ImageFolder, share: float, name: str, seed: int) -> list[Sample]:
    """Of every class the same share of its images, at random, in the folder's order."""
    labels = torch.tensor(folder.targets)
    chosen = []
    for number, label in enumerate(folder.classes):
        own = (labels == number).nonzero().flatten()
        count = round(share * len(own))
        if not count:
            raise InvalidInput(
                f"{name}={share} of the {len(own)} images in {Path(folder.root) / label} is none; raise it."
            )
        order = torch.randperm(len(own), generator=generator(seed, name, label))
        chosen.append(own[order[:count]].sort().values)
    return [folder.samples[index] for index in torch.cat(chosen).tolist()]


def _decode(
    samples: Sequence[Sample], image_size: int, workers: int, label: str
) -> tuple[UInt8[Tensor, "images 3 size size"], Int64[Tensor, " images"]]:
    """The images in their order, decoded by threads: Pillow lets others run while it decodes. No label, no bar."""
    from PIL import Image, UnidentifiedImageError
    from torchvision import transforms

    prepare = transforms.Compose([*_centre(image_size), transforms.PILToTensor()])

    def decode(sample: Sample) -> UInt8[Tensor, "3 size size"]:
        try:
            with Image.open(sample[0]) as image:
                return prepare(image.convert("RGB"))
        except UnidentifiedImageError:
            raise DataError(f"{sample[0]} is not an image, or is damaged.") from None
        except OSError as error:
            raise DataError(f"Can't read {sample[0]}: {error.strerror or error}.") from None

    images = torch.empty(len(samples), 3, image_size, image_size, dtype=torch.uint8)
    quiet = not label or not samples
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(samples), desc=label, disable=quiet) as bar:
        for start in range(0, len(samples), CHUNK):  # few enough to stop soon after an error
            for index, image in enumerate(pool.map(decode, samples[start : start + CHUNK]), start):
                images[index] = image
                bar.update()
    return images, torch.tensor([number for _, number in samples], dtype=torch.int64)


def _centre(image_size: int) -> list[Any]:
    """The transforms of images that are not augmented: the shorter side to 8/7 of the size, and the centre of that."""
    from torchvision import transforms

    return [transforms.Resize(image_size * 8 // 7), transforms.CenterCrop(image_size)]


def _check_same_classes(root: Path, train: ImageFolder, val: ImageFolder) -> None:
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(f"{root}: train and val have different classes; only one of them has {different[0]!r}.")


def _image_folder(root: Path, part: str, transform: Any = None) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    if not (root / part).is_dir():
        missing = root / part if root.is_dir() else root
        raise DataError(
            f"There is no folder {missing}. Expected {root} to hold train and val, with one folder of images a class."
        )
    try:
        return ImageFolder(root / part, transform)
    except FileNotFoundError as error:
        raise DataError(f"{root / part}: {' '.join(str(error).split())}") from None
