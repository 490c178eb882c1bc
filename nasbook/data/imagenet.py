"""ImageNet, for the paper scale: JPEG files in folders, decoded by worker processes.

The only set here that does not fit on the device as one tensor.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from nasbook.errors import DataError, InvalidInput, require_positive
from nasbook.seeding import generator

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's red, green and blue, between 0 and 1, as everybody uses them."""
STD = (0.229, 0.224, 0.225)
"""Standard deviations that go with :data:`MEAN`."""


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
    train = _image_folder(Path(root), "train", transforms.Compose([
        transforms.RandomResizedCrop(image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
        *to_values,
    ]))
    val = _image_folder(Path(root), "val", transforms.Compose([
        transforms.Resize(image_size * 8 // 7),
        transforms.CenterCrop(image_size),
        *to_values,
    ]))
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(f"{root}: train and val have different classes; only one of them has {different[0]!r}.")
    if len(train) < batch_size:
        raise InvalidInput(f"A batch of {batch_size} needs at least as many images, got {len(train)}.")
    memory = torch.cuda.is_available()
    return (
        DataLoader(train, batch_size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=memory,
                   generator=generator(seed, "order", 0)),
        DataLoader(val, batch_size, num_workers=workers, pin_memory=memory, generator=generator(seed, "val")),
    )


def _image_folder(root: Path, part: str, transform: Any) -> ImageFolder:
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
