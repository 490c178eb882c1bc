"""A batch size that follows the memory (PR-DARTS §3.3): how far it may grow, and what a step takes.

A search whose candidates change needs another amount of memory in every cycle. So a cycle begins with the smallest
batch, and every few steps the search measures what a step takes and enlarges the batch as far as a budget allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nasbook import processes
from nasbook.analysis import saved_activation_bytes
from nasbook.errors import InvalidInput, require_positive
from nasbook.operations.batch_norms import kept_statistics
from nasbook.training.bilevel import Batch, BilevelUpdate


@dataclass(frozen=True)
class BatchGrowth:
    """The largest batch whose expected memory stays within a budget, if memory is linear in the batch (§3.3).

    With ``minimum`` and ``maximum`` equal, the batch never changes.

    The authors' code has a minimum of 24, multiples of 8 and a maximum of 128. It lets a batch at most double at a
    time, and takes all memory to grow with the batch; here a part of it is fixed, and there is no such limit.

    Raises:
        InvalidInput: a number is not positive, the maximum is below the minimum or the threshold above 1.
    """

    minimum: int
    """Images in the first batches of every cycle; b_min."""
    multiple: int
    """A batch has ``minimum`` plus a multiple of so many images; b_mult."""
    maximum: int
    """Most images in a batch; b_max. Where it is none of those sizes, the largest one below it is the most."""
    budget: int
    """Bytes of memory that there are."""
    threshold: float = 0.95
    """Share of the budget that the expected memory may take."""
    every: int = 5
    """Steps from one attempt to the next."""

    def __post_init__(self) -> None:
        require_positive(
            minimum=self.minimum, multiple=self.multiple, maximum=self.maximum, budget=self.budget, every=self.every
        )
        if self.maximum < self.minimum:
            raise InvalidInput(f"maximum must be at least minimum, {self.minimum}, got {self.maximum}.")
        if not 0 < self.threshold <= 1:
            raise InvalidInput(f"threshold must be above 0 and at most 1, got {self.threshold}.")

    @property
    def limit(self) -> int:
        """Bytes that the expected memory may take."""
        return int(self.threshold * self.budget)

    def due(self, step: int) -> bool:
        """Whether to try after so many steps of a cycle."""
        return step > 0 and step % self.every == 0

    def grown(self, batch: int, fixed: int, used: int) -> int:
        """The batch size to go on with: ``minimum`` + n·``multiple``, never below the present one.

        Of b images, fixed + (used − fixed)·b/batch bytes are expected.

        Args:
            batch: the present batch size.
            fixed: bytes that do not depend on the batch.
            used: bytes that a step at the present batch size takes in all.

        Raises:
            InvalidInput: ``batch`` is none of the sizes, or a step takes no memory beyond the fixed part.
        """
        if not self.minimum <= batch <= self.maximum or (batch - self.minimum) % self.multiple:
            raise InvalidInput(
                f"batch must be {self.minimum} plus a multiple of {self.multiple}, at most {self.maximum}, got {batch}."
            )
        if not 0 <= fixed < used:
            raise InvalidInput(
                f"A step must take more than the fixed memory, got {used} bytes in all, {fixed} of them fixed. "
                f"Measure after a step at the present batch size."
            )
        affordable = min((self.limit - fixed) * batch // (used - fixed), self.maximum)  # whole numbers: no rounding
        n = (affordable - self.minimum) // self.multiple
        return max(batch, self.minimum + n * self.multiple)


class MemoryUse(NamedTuple):
    """What a step takes."""

    fixed: int
    """Bytes that do not depend on the batch."""
    used: int
    """Bytes in all."""


class MemoryMeter(ABC):
    """Measures what the steps of a search take at the present batch size.

    The batch size follows from it, and with the batch size all results of a search: they depend on the device and its
    memory, as the authors' do. Only a fixed batch size gives the same search everywhere.
    """

    @abstractmethod
    def reset(self) -> None:
        """Forgets what was measured; call when a cycle begins, and after an epoch's evaluation."""

    @abstractmethod
    def measure(self, update: BilevelUpdate, batch: Batch) -> MemoryUse:
        """What a step takes. Call between steps, after at least one at this batch size since :meth:`reset`.

        Of several processes each must call it. The measurement is the same in all: the least that is fixed in any of
        them, and the most that any of them takes.

        Args:
            update: makes the steps.
            batch: a batch of the present size, or this process' part of it.
        """


class AllocatedMemory(MemoryMeter):
    """What tensors took on a CUDA device: the peak since the last reading, and what is allocated between steps.

    The allocator's reserve and torch's own context are not in it, so a card needs more than it says. The peak is the
    device's own statistic, which every reading resets: :func:`~nasbook.analysis.peak_memory` around a search sees the
    peak since the last reading only. A run that was resumed may have another peak in its first reading.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def measure(self, update: BilevelUpdate, batch: Batch) -> MemoryUse:
        peak = torch.cuda.max_memory_allocated(self.device)  # counted where memory is asked for: no need to wait
        self.reset()
        return _over_processes(MemoryUse(torch.cuda.memory_allocated(self.device), peak))


class CountedMemory(MemoryMeter):
    """What a training step must keep, counted: the same in every run on one type of device.

    Fixed are the bytes of parameters, their gradients and the optimisers' states; to them come the activations that the
    training loss keeps for a backward pass to the weights and the architecture
    (:func:`~nasbook.analysis.saved_activation_bytes`). So it is at least what either step of a first-order update
    keeps. Temporary memory and the data set are not counted, nor what second-order updates keep beyond one pass.

    Cost: one forward pass for each batch size; its count is kept until :meth:`reset`.
    """

    def __init__(self) -> None:
        self._activations: dict[int, int] = {}

    def reset(self) -> None:
        self._activations.clear()

    def measure(self, update: BilevelUpdate, batch: Batch) -> MemoryUse:
        images = len(batch[0])
        if images not in self._activations:
            with kept_statistics(update.network):
                self._activations[images] = saved_activation_bytes(
                    lambda inputs, targets: update.loss(update.network(inputs), targets), *batch
                )
        parameters = sum(parameter.nbytes for parameter in (*update.weights, *update.architecture))
        states = sum(
            value.nbytes
            for optimizer in (update.weight_optimizer, update.architecture_optimizer)
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        fixed = 2 * parameters + states  # a gradient is as large as its parameter
        return _over_processes(MemoryUse(fixed, fixed + self._activations[images]))


def memory_meter(device: torch.device | str) -> MemoryMeter:
    """Measures allocated memory on CUDA; elsewhere, counts what a step must keep."""
    device = torch.device(device)
    return AllocatedMemory(device) if device.type == "cuda" else CountedMemory()


def _over_processes(own: MemoryUse) -> MemoryUse:
    """What is safe in every process, and the same in all."""
    rows = torch.zeros(processes.count(), 2, dtype=torch.int64, device=processes.device_of_run())
    rows[processes.rank()] = rows.new_tensor(own)
    (rows,) = processes.total([rows])
    return MemoryUse(int(rows[:, 0].min()), int(rows[:, 1].max()))
