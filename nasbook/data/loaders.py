"""Batches for training and for evaluation, from images that lie on the device as one tensor.

A training batch is a pure function of the run's seed and the batch's number. So a run that was killed goes
on with the batch it would have seen, and a checkpoint holds one integer instead of a loader's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from nasbook.data.augmentation import Augmentation, augment
from nasbook.errors import InvalidInput, require_positive
from nasbook.seeding import generator

NO_AUGMENTATION = Augmentation()


class Loader:
    """Endless training batches: every pass over the images in a new random order, augmented afresh.

    Three decisions, and why:

    1. The order of a pass is drawn on the CPU, so that it is the same on every device. The augmentation is
       drawn on the images' device, where it is fast; a CPU and a GPU therefore crop differently.
    2. Each pass and each batch has a seed of its own (:func:`nasbook.seeding.fold_seed`), so that batch
       1,000 is known without the 999 before it.
    3. The last batch of a pass is dropped when it is smaller, as batch norm and the two-loader step of DARTS
       want equal batches.

    4. One of several processes gets its equal part of every batch. Order and augmentation are drawn for the whole
       batch in each of them, so that the parts together are the batch of a single process, to the bit.

    The two loaders of a search need different seeds, or they walk through their halves in the same order.

    Args:
        images: all images of this loader.
        labels: one class for each image.
        batch_size: images in a batch, over all processes.
        mean: of every channel, for values between 0 and 1.
        std: of every channel, for values between 0 and 1.
        augmentation: what happens to each image.
        seed: of the order and of the augmentation.
        drop_last: leave out the last batch of a pass if it is smaller than the others.
        part: (k, n) for the k-th of n equal parts of every batch, from 0.

    Raises:
        InvalidInput: there are fewer images than a batch holds, images and labels don't match, there is no such part,
            or a batch can't be divided into so many.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "images channels height width"],
        labels: Int64[Tensor, " images"],
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int,
        drop_last: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        _check_batches(images, labels, batch_size)
        if len(images) < batch_size:
            raise InvalidInput(
                f"A batch of {batch_size} needs at least as many images, got {len(images)}. Lower batch_size."
            )
        place, parts = part
        if not 0 <= place < parts:
            raise InvalidInput(f"part must be (k, n) with k from 0 to n - 1, got {part}.")
        last = 0 if drop_last else len(images) % batch_size
        for size in (batch_size, last):
            if size % parts:
                raise InvalidInput(
                    f"A batch of {size} images can't be divided equally among {parts} processes. "
                    + ("Drop the last batch." if size == last else f"Make batch_size a multiple of {parts}.")
                )
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.augmentation = augmentation
        self.seed = seed
        self.drop_last = drop_last
        self.part = part
        # On the images' device from the start, so that a batch waits for no copy.
        self._shift = torch.tensor(self.mean, device=images.device)[:, None, None]
        self._scale = torch.tensor(self.std, device=images.device)[:, None, None]
        self._black = (-self._shift / self._scale).flatten()
        self._pass = -1  # the pass whose order is kept
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Batches in one pass over the images."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def batch(
        self, index: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]:
        """Batch number ``index`` of the run, or this loader's part of it, counted from 0 and on through all passes."""
        if index < 0:
            raise InvalidInput(f"A batch's number must be 0 or more, got {index}.")
        number, step = divmod(index, len(self))
        return self._augmented(number, step * self.batch_size, self.batch_size, (index,))

    def at(
        self, number: int, start: int, size: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]:
        """A batch of any size: ``size`` images of a pass in its order, or this loader's part of them.

        A pure function of its arguments and of the loader's seed. The pass has the order that it has for
        :meth:`batch`; the augmentation is drawn for this batch alone, so :meth:`batch` augments the same images
        differently.

        Args:
            number: which pass, from 0.
            start: how many images of the pass come before the batch.
            size: images in the batch, over all processes.

        Raises:
            InvalidInput: the pass has no such images, or the batch can't be divided among the processes.
        """
        require_positive(size=size)
        if number < 0 or start < 0:
            raise InvalidInput(f"The number and the start must be 0 or more, got pass {number} from image {start}.")
        if start + size > len(self.images):
            raise InvalidInput(
                f"A pass has {len(self.images)} images; it has no {size} from image {start} on. "
                f"Begin the next pass, or take fewer."
            )
        if size % self.part[1]:
            raise InvalidInput(
                f"A batch of {size} images can't be divided equally among {self.part[1]} processes. "
                f"Make its size a multiple of {self.part[1]}."
            )
        return self._augmented(number, start, size, (number, start, size))

    def _augmented(
        self, number: int, start: int, size: int, stream: tuple[int, ...]
    ) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]:
        """This loader's part of the images from ``start`` on in a pass, augmented by the draws of a stream."""
        if number != self._pass:
            self._pass = number
            order = torch.randperm(len(self.images), generator=generator(self.seed, "order", number))
            if self.images.is_cuda:  # from pinned memory, so that the copy does not wait for the device
                order = order.pin_memory()
            self._order = order.to(self.images.device, non_blocking=True)
        chosen = self._order[start : start + size].chunk(self.part[1])[self.part[0]]
        images = _normalized(self.images[chosen], self._shift, self._scale)
        draws = generator(self.seed, "augment", *stream, device=images.device)
        augmented = augment(images, self.augmentation, draws, black=self._black, part=self.part)
        return augmented, self.labels[chosen]


class Walk:
    """Batches of any size from a loader, one after another, without an image twice in a pass.

    The place is two integers, so that a checkpoint that holds them goes on with the batch that would have come.
    Of a pass, the images that are too few for the next batch are left out, as a loader leaves out its last batch.

    Args:
        loader: where the images, their orders and their augmentation come from; its own batch size plays no part.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._position = (0, 0)

    @property
    def position(self) -> tuple[int, int]:
        """The current pass, from 0, and how many of its images have been taken. May be set.

        Raises:
            InvalidInput: set to what is no place in a pass.
        """
        return self._position

    @position.setter
    def position(self, position: tuple[int, int]) -> None:
        number, start = position
        if number < 0 or not 0 <= start <= len(self.loader.images):
            raise InvalidInput(
                f"A position is a pass, from 0, and a number of images up to {len(self.loader.images)}, got {position}."
            )
        self._position = (number, start)

    def fits(self, size: int) -> bool:
        """Whether the current pass has so many images left."""
        return self._position[1] + size <= len(self.loader.images)

    def begin_pass(self) -> None:
        """Goes to the beginning of the next pass, or stays at the beginning of this one."""
        number, start = self._position
        if start:
            self._position = (number + 1, 0)

    def take(self, size: int) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]:
        """The next ``size`` images; those of the next pass where this one has fewer left.

        Raises:
            InvalidInput: there are fewer images than that in all, or they can't be divided among the processes.
                The position is then unchanged.
        """
        require_positive(size=size)
        if size > len(self.loader.images):
            raise InvalidInput(
                f"A batch of {size} needs at least as many images, got {len(self.loader.images)}. Take fewer."
            )
        number, start = self._position if self.fits(size) else (self._position[0] + 1, 0)
        batch = self.loader.at(number, start, size)
        self._position = (number, start + size)
        return batch


def evaluation_batches(
    images: UInt8[Tensor, "images channels height width"],
    labels: Int64[Tensor, " images"],
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Iterator[tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]]:
    """Every image once, in order and as it is, normalised; the last batch may be smaller."""
    _check_batches(images, labels, batch_size)
    shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return (
        (_normalized(some, shift, scale), classes)
        for some, classes in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )


def _check_batches(images: Tensor, labels: Tensor, batch_size: int) -> None:
    require_positive(batch_size=batch_size)
    if images.dtype != torch.uint8:
        raise InvalidInput(f"images: expected uint8 (0 to 255), got {str(images.dtype).removeprefix('torch.')}.")
    if len(images) != len(labels):
        raise InvalidInput(f"Expected one label for each image, got {len(images)} images and {len(labels)} labels.")


def _normalized(
    images: UInt8[Tensor, "batch channels height width"],
    mean: Float[Tensor, "channels 1 1"],
    std: Float[Tensor, "channels 1 1"],
) -> Float[Tensor, "batch channels height width"]:
    """``(x / 255 - mean) / std`` in every channel."""
    return (images.float() / 255 - mean) / std
