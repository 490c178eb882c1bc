"""Images whose every pixel has a label: as a data set, as training crops and as whole images to evaluate.

Such images differ in size and are too many to lie on a device as one tensor (Pascal VOC's 10,582 take 8 GB). So they
stay on the CPU, and threads read and augment batches ahead. A batch is a pure function of the run's seed and its
number all the same (:class:`SegmentationLoader`), so that a run goes on to the same bits.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive
from nasbook.seeding import generator

IGNORED = 255
"""The label of pixels that count for nothing: VOC's borders between objects, and what lies outside of an image."""

Sample = tuple[UInt8[Tensor, "3 height width"], UInt8[Tensor, "height width"]]
"""An image, and a class for each of its pixels."""
Crop = tuple[Float[Tensor, "3 side side"], UInt8[Tensor, "side side"]]
"""A normalised piece of an image, and its labels."""
Batch = tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, "batch height width"]]
"""Normalised images of one size, and their labels."""


class Samples(ABC):
    """Images with their labels, wherever they are."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """One image and its labels, on the CPU."""

    @abstractmethod
    def take(self, count: int) -> Samples:
        """The first ones."""

    @abstractmethod
    def digest(self) -> str:
        """What tells these samples from others."""


@dataclass(frozen=True, eq=False)
class TensorSamples(Samples):
    """Samples of one size that fit into memory."""

    images: UInt8[Tensor, "samples 3 height width"]
    """The images, 0 to 255."""
    labels: UInt8[Tensor, "labelled labelled_height labelled_width"]
    """Class of every pixel, or :data:`IGNORED`."""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or self.images.shape[2:] != self.labels.shape[1:]:
            raise InvalidInput(
                f"Expected one label for each pixel, got images of the shape {tuple(self.images.shape)} and labels of "
                f"the shape {tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index], self.labels[index]

    def take(self, count: int) -> TensorSamples:
        return TensorSamples(self.images[:count], self.labels[:count])

    def digest(self) -> str:
        digest = hashlib.sha256(f"{tuple(self.images.shape)};".encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationData:
    """A set of images with labelled pixels, and its division into train and test."""

    name: str
    """Name of the set."""
    train: Samples
    """Training images."""
    test: Samples
    """Images to evaluate on, for the last number only."""
    class_names: tuple[str, ...]
    """Name of every class; the first is the background."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue, for values between 0 and 1."""
    std: tuple[float, float, float]
    """Standard deviation of red, green and blue, for values between 0 and 1."""
    source: str
    """Where it came from."""

    @property
    def classes(self) -> int:
        """Number of classes, the background included."""
        return len(self.class_names)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of what both parts say of themselves: of tensors the values, of files the names and sizes."""
        text = f"{self.name};{','.join(self.class_names)};{self.train.digest()};{self.test.digest()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        return (
            f"SegmentationData({self.name!r}, {len(self.train):,} train + {len(self.test):,} test images, "
            f"{self.classes} classes, {self.source})"
        )

    def take(self, train: int | None = None, test: int | None = None) -> SegmentationData:
        """The first images of both parts; None keeps all of a part. Mean and deviation remain.

        Raises:
            InvalidInput: a part does not have so many.
        """
        parts: dict[str, Samples] = {}
        for name, whole, count in (("train", self.train, train), ("test", self.test, test)):
            if count is not None:
                if not 0 < count <= len(whole):
                    raise InvalidInput(f"{name} must be between 1 and {len(whole)}, the images there are; got {count}.")
                parts[name] = whole.take(count)
        return replace(self, **parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CropAugmentation:
    """What happens to a training image: scaled, cropped, perhaps mirrored. The defaults are DeepLab's for VOC."""

    crop: int = 513
    """Side of the square crop, in pixels. Where the image is smaller it is padded on the right and below, with the
    mean colour and :data:`IGNORED`."""
    smallest_scale: float = 0.5
    """Least factor of the size (DeepLabV3 §4.1). Drawn uniformly; the authors' code draws from steps of 0.25."""
    largest_scale: float = 2.0
    """Largest factor of the size."""
    flip: bool = True
    """Mirror left and right, with probability one half."""

    def __post_init__(self) -> None:
        require_positive(crop=self.crop, smallest_scale=self.smallest_scale)
        if not self.smallest_scale <= self.largest_scale:
            raise InvalidInput(
                f"largest_scale must be at least smallest_scale={self.smallest_scale}, got {self.largest_scale}."
            )


def random_crop(
    sample: Sample,
    augmentation: CropAugmentation,
    draws: torch.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Crop:
    """A normalised training crop of one image.

    Images are resized bilinearly, labels by the nearest pixel, both with the same alignment. Every crop takes four
    numbers from the generator, whatever the augmentation is. Cost: 6 to 30 ms for a VOC image on one CPU thread,
    the more the larger the scale.
    """
    image, labels = sample
    scale, top, left, mirror = torch.rand(4, dtype=torch.float64, generator=draws).tolist()
    factor = augmentation.smallest_scale + scale * (augmentation.largest_scale - augmentation.smallest_scale)
    size = [max(1, round(factor * side)) for side in labels.shape]
    values = _normalized(image, mean, std)
    if size != list(labels.shape):
        values = F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
        labels = F.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]
    values, labels = _padded(values, labels, augmentation.crop)
    row, column = (
        int(share * (side - augmentation.crop + 1)) for share, side in zip((top, left), labels.shape, strict=True)
    )
    window = (..., slice(row, row + augmentation.crop), slice(column, column + augmentation.crop))
    values, labels = values[window], labels[window]
    return (values.flip(-1), labels.flip(-1)) if augmentation.flip and mirror < 0.5 else (values, labels)


class SegmentationLoader:
    """Endless training batches: every pass over the images in a new random order, each image cropped afresh.

    As :class:`~nasbook.data.Loader`: each pass and each image of it has a seed of its own, batch 1,000 is known without
    the 999 before it, and what is left of a pass after the last whole batch is dropped. Everything is drawn on the CPU
    and is the same for every device and every number of workers.

    Args:
        samples: all images of this loader.
        batch_size: images in a batch.
        mean: of every channel, for values between 0 and 1.
        std: of every channel, for values between 0 and 1.
        augmentation: what happens to each image.
        seed: of the order and of the augmentation.
        device: where the batches go.
        workers: threads that prepare the next batches; 0 prepares each when it is asked for.

    Raises:
        InvalidInput: there are fewer images than a batch holds.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: CropAugmentation,
        seed: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> None:
        require_positive(batch_size=batch_size)
        if len(samples) < batch_size:
            raise InvalidInput(
                f"A batch of {batch_size} needs at least as many images, got {len(samples)}. Lower batch_size."
            )
        self.samples = samples
        self.batch_size = batch_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.augmentation = augmentation
        self.seed = seed
        self.device = torch.device(device)
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._coming: dict[int, Future[Batch]] = {}

    def __len__(self) -> int:
        """Batches in one pass over the images."""
        return len(self.samples) // self.batch_size

    def batch(self, index: int) -> Batch:
        """Batch number ``index`` of the run, counted from 0 and on through all passes.

        Raises:
            DataError: an image can't be read.
        """
        if index < 0:
            raise InvalidInput(f"A batch's number must be 0 or more, got {index}.")
        images, labels = self._prepare(index) if self._pool is None else self._prepared(self._pool, index)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _prepared(self, pool: ThreadPoolExecutor, index: int) -> Batch:
        """The batch that a thread has prepared, after the next ones have been ordered."""
        wanted = range(index, index + 1 + self.workers)
        for number in self._coming.keys() - set(wanted):
            self._coming.pop(number).cancel()
        for number in wanted:
            if number not in self._coming:
                self._coming[number] = pool.submit(self._prepare, number)
        return self._coming.pop(index).result()

    def _prepare(self, index: int) -> Batch:
        number, step = divmod(index, len(self))
        order = torch.randperm(len(self.samples), generator=generator(self.seed, "order", number))
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        crops = [
            random_crop(
                self.samples[int(order[place])],
                self.augmentation,
                generator(self.seed, "crop", number, place),
                mean=self.mean,
                std=self.std,
            )
            for place in places
        ]
        images, labels = (torch.stack(parts) for parts in zip(*crops, strict=True))
        if self.device.type == "cuda":  # so that the copy to the device does not wait
            return images.pin_memory(), labels.long().pin_memory()
        return images, labels.long()


def whole_images(
    samples: Samples,
    batch_size: int,
    *,
    least: int = 1,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Iterator[Batch]:
    """Every image once, in order, whole and at its own scale; images of one size that follow each other share a batch.

    Args:
        samples: the images.
        batch_size: the most images in a batch.
        least: height and width in pixels up to which smaller images are padded on the right and below, with the mean
            colour and :data:`IGNORED`. DeepLab evaluates VOC, whose sides are at most 500, at 513×513 in this way.
        mean: of every channel, for values between 0 and 1.
        std: of every channel, for values between 0 and 1.
        device: where the batches go.
        workers: threads that read images ahead.
    """
    require_positive(batch_size=batch_size, least=least)

    def read(index: int) -> tuple[Tensor, Tensor]:
        image, labels = samples[index]
        return _padded(_normalized(image, mean, std), labels, least)

    for equal in _grouped(_ahead(read, len(samples), batch_size, workers), batch_size):
        images, labels = (torch.stack(parts) for parts in zip(*equal, strict=True))
        yield images.to(device), labels.long().to(device)


def _ahead(
    read: Callable[[int], tuple[Tensor, Tensor]], count: int, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What is read, in order; a few batches ahead if there are workers."""
    if not workers:
        yield from map(read, range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        coming: list[Future[tuple[Tensor, Tensor]]] = []
        for index in range(count):
            coming.append(pool.submit(read, index))
            if len(coming) > 2 * batch_size + workers:
                yield coming.pop(0).result()
        for future in coming:
            yield future.result()


def _grouped(pairs: Iterator[tuple[Tensor, Tensor]], most: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Neighbours of one shape, at most so many at once."""
    for _, equal in groupby(pairs, lambda pair: pair[1].shape):
        group: list[tuple[Tensor, Tensor]] = []
        for pair in equal:
            group.append(pair)
            if len(group) == most:
                yield group
                group = []
        if group:
            yield group


def _normalized(
    image: UInt8[Tensor, "3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "3 height width"]:
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (image.float() / 255 - shift) / scale


def _padded(
    values: Float[Tensor, "3 height width"], labels: UInt8[Tensor, "height width"], least: int
) -> tuple[Float[Tensor, "3 new_height new_width"], UInt8[Tensor, "new_height new_width"]]:
    """At least so many pixels in both directions; a normalised image's mean colour is 0."""
    below, right = (max(0, least - side) for side in labels.shape)
    if not below and not right:
        return values, labels
    return F.pad(values, (0, right, 0, below)), F.pad(labels, (0, right, 0, below), value=IGNORED)
