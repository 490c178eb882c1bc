"""Sequences for recurrent networks: what series of returns and texts have in common, and batches from them.

Both kinds of data (:class:`~nasbook.data.SeriesData`, :class:`~nasbook.data.TextData`) come as windows of one length:
examples of a fixed shape, so that a part of a set is two tensors.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.seeding import generator

PARTS = ("train", "validation", "test")
"""The parts of every set of sequences. Search and select on the first two; the test part is for the last number."""

Examples = tuple[
    Float[Tensor, "examples window series"] | Int64[Tensor, "examples window"],
    Float[Tensor, "examples series"] | Int64[Tensor, "examples window"],
]
"""Inputs and targets: of forecasting the standardised returns of a window and those of the next row; of language the
tokens of a window and the tokens that follow each of them."""


@dataclass(frozen=True, eq=False, repr=False)
class SequenceData(ABC):
    """A set of sequences, divided into train, validation and test."""

    name: str
    """Name of the set, or of the file without its ending."""
    source: str
    """Where it came from: ``embedded`` (a generator of ours), ``official files``, a package's name, or
    ``csv:FILENAME`` and ``text:FILENAME``."""
    window: int
    """Length of an example, in rows or tokens."""

    task: ClassVar[Literal["forecasting", "language"]]
    """What is predicted: the next row of several series, or the next word."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Number of series, or of words in the vocabulary."""

    @property
    @abstractmethod
    def checksum(self) -> str:
        """SHA-256 of names, values and parts. It depends neither on the source nor on the window."""

    @abstractmethod
    def size(self, part: str) -> int:
        """Examples of a part."""

    @abstractmethod
    def examples(self, part: str) -> Examples:
        """All examples of a part in the order of time: inputs and targets.

        Forecasting: inputs Float32[examples, window, series], targets Float32[examples, series].
        Language: inputs Int64[examples, window], targets Int64[examples, window].

        Raises:
            InvalidInput: there is no such part.
        """

    @abstractmethod
    def constant_loss(self, part: str) -> float:
        """Loss of the best forecast that looks at no input, as learned from the training part.

        Forecasting: the mean squared error of the mean, zero in standardised units.
        Language: the cross entropy of the words' frequencies, in nats a token.
        """

    @abstractmethod
    def irreducible_loss(self, part: str) -> float | None:
        """Loss of the best forecast there is from an example's inputs; None unless our own generator made the data.

        Nothing that sees the inputs alone has a lower loss in expectation; on a finite part it may by luck. The unit
        is that of :meth:`constant_loss`.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> SequenceData:
        """The same set with its tensors on ``device``."""

    @abstractmethod
    def _first(self, counts: dict[str, int]) -> SequenceData:
        """The set with so many examples of each part that is named; the counts are valid."""

    def take(
        self, train: int | None = None, validation: int | None = None, test: int | None = None
    ) -> SequenceData:
        """The first examples of every part; None keeps all of a part.

        Means, deviations and the vocabulary remain those of the whole set; the checksum is that of what was taken.

        Raises:
            InvalidInput: a part does not have so many.
        """
        asked = zip(PARTS, (train, validation, test), strict=True)
        counts = {part: count for part, count in asked if count is not None}
        for part, count in counts.items():
            if not 0 < count <= self.size(part):
                raise InvalidInput(
                    f"{part} must be between 1 and {self.size(part)}, the examples there are; got {count}."
                )
        return self._first(counts)


def check_part(part: str) -> int:
    """The place of a part in :data:`PARTS`.

    Raises:
        InvalidInput: there is no such part.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    return PARTS.index(part)


def checksum_of(names: Iterable[str], arrays: Iterable[Tensor]) -> str:
    """SHA-256 of names, and of the shapes, types and values of tensors."""
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    for array in arrays:
        digest.update(f";{array.dtype}{tuple(array.shape)};".encode())
        digest.update(array.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


class SequenceLoader:
    """Endless training batches: every pass over the examples in a new random order.

    As :class:`~nasbook.data.Loader` for images: a batch is a pure function of seed and number, so batch 1,000 is known
    without the 999 before it; the order of a pass is drawn on the CPU and is the same on every device; the last batch
    of a pass is dropped when it is smaller; and one of several processes gets its equal part of every batch.

    Args:
        inputs: all inputs of this loader, along the first axis.
        targets: the targets, in the same order.
        batch_size: examples in a batch, over all processes.
        seed: of the order.
        part: (k, n) for the k-th of n equal parts of every batch, from 0.

    Raises:
        InvalidInput: there are fewer examples than a batch holds, inputs and targets don't match, there is no such
            part, or a batch can't be divided into so many.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        require_positive(batch_size=batch_size)
        if len(inputs) != len(targets):
            raise InvalidInput(
                f"Expected one target for each input, got {len(inputs)} inputs and {len(targets)} targets."
            )
        if len(inputs) < batch_size:
            raise InvalidInput(
                f"A batch of {batch_size} needs at least as many examples, got {len(inputs)}. Lower batch_size."
            )
        place, parts = part
        if not 0 <= place < parts:
            raise InvalidInput(f"part must be (k, n) with k from 0 to n - 1, got {part}.")
        if batch_size % parts:
            raise InvalidInput(
                f"A batch of {batch_size} examples can't be divided equally among {parts} processes. "
                f"Make batch_size a multiple of {parts}."
            )
        self.inputs = inputs
        self.targets = targets
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self._pass = -1  # the pass whose order is kept
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Batches in one pass over the examples."""
        return len(self.inputs) // self.batch_size

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch number ``index`` of the run, or this loader's part of it, counted from 0 and on through all passes.

        Raises:
            InvalidInput: the number is negative.
        """
        if index < 0:
            raise InvalidInput(f"A batch's number must be 0 or more, got {index}.")
        number, step = divmod(index, len(self))
        if number != self._pass:
            order = torch.randperm(len(self.inputs), generator=generator(self.seed, "order", number))
            self._pass, self._order = number, order.to(self.inputs.device)
        start = step * self.batch_size
        chosen = self._order[start : start + self.batch_size].chunk(self.part[1])[self.part[0]]
        return self.inputs[chosen], self.targets[chosen]
