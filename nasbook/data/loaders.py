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
        if number != self._pass:
            self._pass = number
            order = torch.randperm(len(self.images), generator=generator(self.seed, "order", number))
            if self.images.is_cuda:  # from pinned memory, so that the copy does not wait for the device
                order = order.pin_memory()
            self._order = order.to(self.images.device, non_blocking=True)
        chosen = self._order[step * self.batch_size : (step + 1) * self.batch_size]
        chosen = chosen.chunk(self.part[1])[self.part[0]]
        images = _normalized(self.images[chosen], self._shift, self._scale)
        draws = generator(self.seed, "augment", index, device=images.device)
        augmented = augment(images, self.augmentation, draws, black=self._black, part=self.part)
        return augmented, self.labels[chosen]


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
