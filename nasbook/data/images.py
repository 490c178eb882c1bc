"""Image data sets as four tensors: those of the papers, the embedded one, and your own.

``digits`` needs no network: it comes with scikit-learn. The others are the official files, downloaded once
and verified at every load (:mod:`nasbook.data.downloads`). Your own images go into an ``.npz`` file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor

from nasbook.data.augmentation import Augmentation
from nasbook.data.downloads import FILES, data_folder, fetch
from nasbook.data.formats import (
    ARRAYS,
    parse_cifar,
    parse_idx,
    parse_svhn,
    read_members,
    read_npz,
)
from nasbook.errors import DataError, InvalidInput, unknown_name
from nasbook.seeding import generator

AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType({
    "digits": Augmentation(),
    "mnist": Augmentation(crop_padding=2),
    "fashion-mnist": Augmentation(crop_padding=4, flip=True),
    "svhn": Augmentation(crop_padding=4),
    "cifar10": Augmentation(crop_padding=4, flip=True),
    "cifar100": Augmentation(crop_padding=4, flip=True),
})
"""The usual augmentation of every set that :func:`load_images` knows by name. CIFAR's is that of DARTS'
search (§3.1). Digits are never flipped: a mirrored 2 is no 2."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A labelled image set with its official division into train and test. Search and select on train only."""

    name: str
    """Name of the set, or of the ``.npz`` file without its ending."""
    train_images: UInt8[Tensor, "train channels size size"]
    """Training images, 0 to 255."""
    train_labels: Int64[Tensor, " train"]
    """Class of every training image, from 0."""
    test_images: UInt8[Tensor, "test channels size size"]
    """Test images, for the last number only."""
    test_labels: Int64[Tensor, " test"]
    """Class of every test image."""
    classes: int
    """Number of classes."""
    mean: tuple[float, ...]
    """Mean of every channel over the whole training set, for values between 0 and 1."""
    std: tuple[float, ...]
    """Standard deviation of every channel over the whole training set, for values between 0 and 1."""
    augmentation: Augmentation
    """The usual augmentation of this set."""
    source: str
    """Where it came from: ``scikit-learn``, ``torchvision`` (the official files, by its downloader) or
    ``npz:FILENAME``."""
    checksum: str
    """SHA-256 of the four arrays, their names and shapes. The same images have the same checksum from any source."""

    @property
    def channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for colour."""
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.train_images.shape[2]

    def __repr__(self) -> str:
        return (
            f"ImageData({self.name!r}, {len(self.train_labels):,} train + {len(self.test_labels):,} test images, "
            f"{self.channels}×{self.size}×{self.size}, {self.classes} classes, {self.source})"
        )

    def to(self, device: torch.device | str) -> ImageData:
        """The same set with its tensors on ``device``."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})

    def take(self, train: int | None = None, test: int | None = None) -> ImageData:
        """The first images of every class, ``train`` and ``test`` in total; None keeps all of a part.

        Classes are equal in number as far as they reach, and the order stays. Mean, deviation and
        augmentation remain those of the whole set; the checksum is that of what was taken.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for part, count in (("train", train), ("test", test)):
            if count is not None:
                chosen = _first_of_each_class(arrays[f"{part}_labels"].cpu(), count, part)
                for kind in ("images", "labels"):
                    arrays[f"{part}_{kind}"] = arrays[f"{part}_{kind}"][chosen.to(arrays[f"{part}_{kind}"].device)]
        return replace(self, **arrays, checksum=checksum_of(arrays))

    def split(self, fractions: Sequence[float], seed: int) -> list[Int64[Tensor, " part"]]:
        """Divides the training images at random into disjoint parts with the same mix of classes.

        DARTS searches with ``split([0.5, 0.5], seed)``: weights on one half, architecture on the other. What
        is over when the fractions sum to less than 1 is left out. The parts do not depend on the device.

        Returns:
            For every part the indices of its images in ``train_images``, ascending, on the images' device.
            A part of fraction f has f·n images to the nearest whole number, and of every class its share to
            within one image for each part.
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise InvalidInput(f"fractions must be above 0 and sum to at most 1, got {list(fractions)}.")
        images = len(self.train_labels)
        ends = [round(float(total) * images) for total in np.cumsum(fractions)]
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        if 0 in sizes:
            raise InvalidInput(f"The fractions {list(fractions)} of {images} training images leave a part empty.")
        shuffled = torch.randperm(images, generator=generator(seed, "split"))
        rest = shuffled[self.train_labels.cpu()[shuffled].argsort(stable=True)]  # at random within a class
        parts = []
        for size in sizes:
            chosen = _evenly(size, len(rest))
            parts.append(rest[chosen].sort().values.to(self.train_labels.device))
            rest = rest[~chosen]
        return parts


def list_images() -> list[str]:
    """The names that :func:`load_images` knows."""
    return list(AUGMENTATIONS)


def load_images(
    name_or_path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    folder: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Loads an image set whole, as uint8 tensors on ``device`` (CIFAR-10 takes 184 MB).

    Args:
        name_or_path: ``digits`` (embedded: 1,280 + 517 images of 8×8), ``mnist``, ``fashion-mnist``, ``svhn``,
            ``cifar10`` or ``cifar100``; or the path of an ``.npz`` file with ``train_images``, ``train_labels``,
            ``test_images``, ``test_labels``: images uint8 with the axes image, channel, row, column, square;
            labels whole numbers from 0. An ``.npz`` named after a known set gets that set's augmentation, any
            other gets none.
        device: where the tensors go.
        folder: where downloaded files are kept; by default ``$NASBOOK_DATA``, else ``~/.cache/nasbook``. The
            layout is torchvision's, so an existing copy of MNIST is found.

    Raises:
        InvalidInput: no set has this name.
        DataError: a file is missing, damaged or wrong, or there is no network; the message says what to do.
    """
    if str(name_or_path).endswith(".npz"):
        path = Path(name_or_path).expanduser()
        return _image_data(path.stem, read_npz(path), f"npz:{path.name}", str(path)).to(device)
    name = str(name_or_path)
    if name not in AUGMENTATIONS:
        raise unknown_name("data set", name, [*AUGMENTATIONS, "a path that ends in .npz"])
    if name == "digits":
        return _image_data(name, _digits(), "scikit-learn", name).to(device)
    contents = [fetch(file, data_folder(folder)) for file in FILES[name]]
    try:
        arrays = _parse(name, contents)
    except DataError as error:
        raise DataError(f"{name}: {error}.") from None
    return _image_data(name, arrays, "torchvision", name).to(device)


def _parse(name: str, contents: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """The four arrays from the contents of a set's official files, in the order of ``FILES``."""
    if name == "svhn":
        train, test = map(parse_svhn, contents)
    elif name == "cifar10":
        batches = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
        *parts, last = read_members(contents[0], [f"cifar-10-batches-bin/{batch}.bin" for batch in batches])
        train, test = parse_cifar(b"".join(parts), label_bytes=1), parse_cifar(last, label_bytes=1)
    elif name == "cifar100":
        parts = read_members(contents[0], ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"])
        train, test = (parse_cifar(part, label_bytes=2) for part in parts)
    else:  # MNIST and its kin
        images, labels, test_images, test_labels = map(parse_idx, contents)
        train, test = (images[:, None], labels), (test_images[:, None], test_labels)  # one channel
    return dict(zip(ARRAYS, (*train, *test), strict=True))


def _digits() -> dict[str, NDArray[Any]]:
    """scikit-learn's digits, every class divided in the same proportion, without any randomness."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) * 255 / 16).round().astype(np.uint8)  # values are 0 to 16
    by_class = torch.from_numpy(labels).argsort(stable=True)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    in_test[by_class[_evenly(517, len(labels))]] = True
    test = in_test.numpy()
    return dict(zip(ARRAYS, (images[~test], labels[~test], images[test], labels[test]), strict=True))


def _evenly(count: int, total: int) -> Tensor:
    """A mask of ``total`` places with ``count`` of them true, spread as evenly as can be.

    Place j is true when ⌊(j + 1)·count / total⌋ exceeds ⌊j·count / total⌋. Any run of m places has m·count / total
    true ones to within one, so that on places sorted by class every class gets its share.
    """
    return (torch.arange(1, total + 1) * count // total).diff(prepend=torch.zeros(1, dtype=torch.int64)) > 0


def _first_of_each_class(labels: Int64[Tensor, " images"], count: int, part: str) -> Int64[Tensor, " chosen"]:
    """Indices of ``count`` images, class by class in turn, ascending."""
    if not 0 < count <= len(labels):
        raise InvalidInput(f"{part} must be between 1 and {len(labels)}, the images there are; got {count}.")
    turn = torch.empty_like(labels)  # how many images of the same class come before each
    for label in labels.unique():
        turn[labels == label] = torch.arange(int((labels == label).sum()))
    return turn.argsort(stable=True)[:count].sort().values


def _image_data(name: str, arrays: Mapping[str, NDArray[Any]], source: str, where: str) -> ImageData:
    """Checks the four arrays and measures what is derived from them. ``where`` begins the error messages."""
    for part in ("train", "test"):
        _check(arrays[f"{part}_images"], arrays[f"{part}_labels"], where, part)
    shape, test_shape = arrays["train_images"].shape[1:], arrays["test_images"].shape[1:]
    if shape != test_shape:
        raise DataError(f"{where}: train_images are {_times(shape)} and test_images {_times(test_shape)}.")
    present = np.unique(arrays["train_labels"])
    classes = len(present)
    if present[-1] != classes - 1:
        gap = int(np.flatnonzero(present != np.arange(classes))[0])
        raise DataError(f"{where}: train_labels run to {present[-1]} but no image has the label {gap}. "
                        f"Number the classes from 0 without a gap.")
    if arrays["test_labels"].max() >= classes:
        raise DataError(f"{where}: test_labels: expected 0 to {classes - 1} as in train_labels, "
                        f"got {arrays['test_labels'].max()}.")
    # np.array copies: the parsers' arrays are views of read-only bytes.
    tensors = {
        key: torch.from_numpy(np.array(arrays[key], np.uint8 if key.endswith("images") else np.int64, order="C"))
        for key in ARRAYS
    }
    mean, std = _channel_statistics(tensors["train_images"])
    if 0 in std:
        raise DataError(f"{where}: channel {std.tolist().index(0)} of train_images has the same value everywhere "
                        f"and can't be normalised. Leave it out.")
    return ImageData(
        name=name,
        train_images=tensors["train_images"],
        train_labels=tensors["train_labels"],
        test_images=tensors["test_images"],
        test_labels=tensors["test_labels"],
        classes=classes,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        augmentation=AUGMENTATIONS.get(name, Augmentation()),
        source=source,
        checksum=checksum_of(tensors),
    )


def _check(images: NDArray[Any], labels: NDArray[Any], where: str, part: str) -> None:
    """Raises :class:`DataError` unless this part is made of square NCHW uint8 images with one label each."""
    if images.dtype != np.uint8:
        raise DataError(f"{where}: {part}_images: expected uint8 (0 to 255), got {images.dtype}.")
    if images.ndim != 4:
        raise DataError(f"{where}: {part}_images: expected the axes image, channel, row, column; "
                        f"got the shape {images.shape}.")
    if 0 in images.shape:
        raise DataError(f"{where}: {part}_images is empty, its shape is {images.shape}.")
    if images.shape[2] != images.shape[3]:
        hint = " Move the channels before the rows" if images.shape[1] == images.shape[2] else " Make them square"
        raise DataError(f"{where}: {part}_images: expected square images as image, channel, row, column; "
                        f"got the shape {images.shape}.{hint}.")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: {part}_labels: expected whole numbers, got {labels.dtype}.")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{where}: {part}_labels: expected one label for each of the {len(images)} images, "
                        f"got the shape {labels.shape}.")
    if labels.min() < 0:
        raise DataError(f"{where}: {part}_labels: expected labels from 0, got {labels.min()}.")


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _channel_statistics(
    images: UInt8[Tensor, "images channels size size"],
) -> tuple[Float64[ndarray, " channels"], Float64[ndarray, " channels"]]:
    """Mean and (population) standard deviation of every channel on the scale 0 to 1.

    Counted over the 256 values, so that the sums are exact. For CIFAR-10 they are the constants of DARTS'
    code to five digits: 0.49140, 0.48216, 0.44653 and 0.24703, 0.24349, 0.26159.
    """
    values = np.arange(256) / 255
    counts = np.stack([channel.flatten().bincount(minlength=256).numpy() for channel in images.unbind(1)])
    weights = counts / counts.sum(1, keepdims=True)  # (channels, 256)
    mean = weights @ values
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the four arrays, their names and shapes."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        digest.update(f"{name} {tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].cpu().contiguous().numpy().data)
    return digest.hexdigest()
