"""Pascal VOC 2012's segmentation task (Everingham et al.), in the folders of the official archive.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
    VOCdevkit/VOC2012/SegmentationClass/2007_000032.png        classes as colours of a palette
    VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt         1,464 names; val.txt has 1,449

DeepLab trains on the 10,582 images of ``trainaug``, whose other labels are Hariharan et al.'s ("Semantic Contours from
Inverse Detectors", 2011). They are not in the archive: put the list beside the others as ``trainaug.txt``, and its
labels into ``SegmentationClassAug``, where everybody keeps them.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nasbook.data.downloads import data_folder
from nasbook.data.imagenet import MEAN, STD
from nasbook.data.segmentation import IGNORED, Sample, Samples, SegmentationData
from nasbook.errors import DataError

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""VOC's classes in the order of their numbers."""

LAYOUT = "JPEGImages, SegmentationClass and ImageSets/Segmentation"


@dataclass(frozen=True, eq=False)
class FileSamples(Samples):
    """Samples that are read from pairs of files, each time anew."""

    files: tuple[tuple[Path, Path], ...]
    """For every sample its image, and a PNG with the number of a class for every pixel."""
    classes: int
    """Number of classes; other labels than these and :data:`~nasbook.data.segmentation.IGNORED` are refused."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(*self.files[index], self.classes)

    def take(self, count: int) -> FileSamples:
        return FileSamples(self.files[:count], self.classes)

    def digest(self) -> str:
        """Of the names and sizes of the files: reading VOC's 2 GB would take longer than an epoch's beginning."""
        lines = [f"{path.name} {path.stat().st_size}" for pair in self.files for path in pair]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_voc(
    folder: str | os.PathLike[str] | None = None,
    train: str = "train",
    test: str = "val",
    *,
    download: bool = True,
) -> SegmentationData:
    """Pascal VOC 2012 with 21 classes; images are read from the disk when they are needed.

    Args:
        folder: what holds ``VOCdevkit/VOC2012``, or that folder itself; None takes ``$NASBOOK_DATA``, else
            ``~/.cache/nasbook``.
        train: list of the training images, in ``ImageSets/Segmentation``. The labels of a list whose name ends in
            ``aug`` are in ``SegmentationClassAug``.
        test: list of the images to evaluate on.
        download: fetch the official archive (2 GB, by torchvision, its MD5 verified) if the folder has no VOC.

    Raises:
        DataError: a folder, list or file is missing, or the download failed; the message says what to do. A file that
            is damaged, or whose labels don't fit its image, raises when it is read.
    """
    root = _find(data_folder(folder), download)
    return SegmentationData(
        name="voc",
        train=_samples(root, train),
        test=_samples(root, test),
        class_names=VOC_CLASSES,
        mean=MEAN,
        std=STD,
        source=f"VOC2012:{train}/{test}",
    )


def read_sample(image: Path, labels: Path, classes: int) -> Sample:
    """An image and its labels from their two files.

    Raises:
        DataError: a file can't be read, the labels are no class numbers, or the sizes differ.
    """
    from PIL import Image

    with _readable(image), Image.open(image) as file:
        pixels = np.array(file.convert("RGB"))
    with _readable(labels), Image.open(labels) as file:
        mode, numbers = file.mode, np.array(file)
    if mode not in ("P", "L"):
        raise DataError(
            f"{labels}: expected a PNG with a palette, or grey, whose values are numbers of classes; got mode {mode}."
        )
    if numbers.shape != pixels.shape[:2]:
        raise DataError(
            f"{labels} has {numbers.shape[0]} rows and {numbers.shape[1]} columns, "
            f"but {image} has {pixels.shape[0]} rows and {pixels.shape[1]} columns."
        )
    wrong = numbers[(numbers >= classes) & (numbers != IGNORED)]
    if len(wrong):
        raise DataError(f"{labels}: expected labels from 0 to {classes - 1}, and {IGNORED} for none; got {wrong[0]}.")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(numbers)


class _readable:  # noqa: N801 -- reads like the function that it is
    """Gives what Pillow raises for a missing or damaged file the words of this package."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"There is no file {self.path}.") from None
        if isinstance(error, OSError | SyntaxError | ValueError):  # Pillow's own errors are of these kinds
            raise DataError(f"{self.path} is damaged, or no image ({' '.join(str(error).split())}).") from None


def _find(folder: Path, download: bool) -> Path:
    """The folder with JPEGImages."""
    official = folder / "VOCdevkit" / "VOC2012"
    for root in (official, folder):
        if (root / "JPEGImages").is_dir():
            return root
    if not download:
        raise DataError(f"There is no VOC 2012 in {folder}: expected it, or {official}, to hold {LAYOUT}.")
    return _download(folder, official)


def _samples(root: Path, name: str) -> FileSamples:
    """The pairs of files that a list names."""
    listed = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    labels = root / ("SegmentationClassAug" if name.endswith("aug") else "SegmentationClass")
    aside = " The official archive has no such list and labels; see nasbook.data.voc." if name.endswith("aug") else ""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        there = sorted(path.stem for path in listed.parent.glob("*.txt"))
        raise DataError(f"There is no list {listed}; there are: {', '.join(there) or 'none'}.{aside}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Can't read the list {listed}: {error}.") from None
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]  # some lists have paths of both files
    if not names:
        raise DataError(f"The list {listed} is empty.")
    images = root / "JPEGImages"
    for folder, ending in ((images, ".jpg"), (labels, ".png")):
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}.{aside}")
        found = {entry.name for entry in os.scandir(folder)}
        missing = [name for name in names if f"{name}{ending}" not in found]
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(names):,} files that {listed.name} names are missing, the first is "
                f"{folder / missing[0]}{ending}. Unpack the archive again, or shorten the list."
            )
    return FileSamples(tuple((images / f"{n}.jpg", labels / f"{n}.png") for n in names), len(VOC_CLASSES))


def _download(folder: Path, official: Path) -> Path:
    """Fetches and unpacks the archive in a temporary folder, and moves the whole to its place at the end."""
    try:
        from torchvision.datasets import VOCSegmentation  # slow to import, needed at this scale only
    except (ImportError, RuntimeError) as error:  # beside another torch it raises from inside: no torchvision::nms
        raise DataError(
            f"Can't download VOC 2012 to {folder}: torchvision does not import ({error}). "
            f"Install the torchvision of your torch, or unpack the archive there yourself."
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            VOCSegmentation(temporary, year="2012", image_set="train", download=True)
            official.parent.mkdir(exist_ok=True)
            os.replace(Path(temporary, "VOCdevkit", "VOC2012"), official)
    except (OSError, HTTPException, RuntimeError) as error:
        raise DataError(
            f"Can't download VOC 2012 to {folder} ({' '.join(str(error).split())}). Check the network, or unpack "
            f"VOCtrainval_11-May-2012.tar there yourself, or set NASBOOK_DATA to a folder that has it."
        ) from error
    return official
