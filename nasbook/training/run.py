"""The run: a loop of epochs and steps that can stop after any step and go on to the same bits.

Searches and trainings share it. A subclass says what a step does and what an epoch reports; everything
about order, interruption, divergence, randomness and state is here.

Nothing in a step waits for the device, but for the deriving of Transit-cells: what a step measured goes into a row of
a tensor, which is read when an epoch ends (or by a progress bar, now and then).

Where several processes share a run (:mod:`nasbook.processes`), all of them call the same methods at the same steps.
After every step they hold the same state to the bit, and they stop, fail and save together.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook import processes
from nasbook.errors import CheckpointError, TrainingDiverged, require_positive
from nasbook.operations.batch_norms import batch_norms, synchronize_norms
from nasbook.seeding import fold_seed, seed_everything
from nasbook.training.checkpoints import load_checkpoint, random_state, restore_random_state, save_checkpoint

NormalizeBy = Literal["batch", "part"]
"""What batch norms normalise by where several processes share a batch: all of it, or each process by its own part."""
NORMALIZE_BY: tuple[NormalizeBy, ...] = ("batch", "part")


@dataclass(frozen=True)
class EpochReport:
    """What one epoch measured. Accuracies and losses are means over the epoch's steps or samples.

    Of sequences, the loss of a forecast is the mean squared error, and its accuracy the share of right signs.
    """

    epoch: int
    """1 for the first."""
    train_loss: float
    """Cross entropy on the training batches, as seen while training."""
    train_accuracy: float
    """Share of training images classified right, 0..1."""
    validation_loss: float
    """Cross entropy on validation data."""
    validation_accuracy: float
    """Share of validation images classified right, 0..1."""
    learning_rate: float
    """The weights' learning rate in this epoch."""
    seconds: float
    """Wall time of the epoch."""
    measured: dict[str, float] = field(default_factory=dict, kw_only=True)
    """What the run's :attr:`Run.watch` measured."""

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> EpochReport:
        """The inverse of :meth:`to_state`."""
        return cls(**state)


class Resumable(ABC):
    """Something that goes on in epochs, can stop after any step and resumes to the same bits.

    Drive it with ``for report in run.epochs()``. Between two reports, and after :meth:`stop`, its
    :meth:`state_dict` is a checkpoint from which another object, built with the same arguments, goes on
    exactly as this one would have.
    """

    total_epochs: int
    """Epochs from beginning to end."""
    steps_per_epoch: int
    """Steps of every epoch; the most that one can have, where that is known only when it ends."""
    epoch: int
    """Finished epochs."""
    step: int
    """Finished steps of the current epoch."""
    history: list[Any]
    """One report a finished epoch."""
    on_step: Callable[[Resumable], None] | None = None
    """Called after every step; a progress bar."""

    @abstractmethod
    def epochs(self) -> Iterator[Any]:
        """Runs to the end, or until :meth:`stop`, and yields a report after every epoch.

        Raises:
            TrainingDiverged: a loss is not finite; the message names the epoch and the step.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends :meth:`epochs` after the step that is running; safe to call from a signal handler.

        One of several processes that share the run ends it in all of them.
        """

    @abstractmethod
    def means(self) -> dict[str, float]:
        """The means of the current epoch's measurements so far. Waits for the device.

        Raises:
            TrainingDiverged: the loss of a step is not finite.
        """

    @abstractmethod
    def check_finite(self) -> None:
        """Raises :class:`~nasbook.errors.TrainingDiverged` if a parameter is not finite. Waits for the device."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """What the run is; a checkpoint of another header is refused."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes as the run goes on. Call between reports or after :meth:`stop`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned, the global generators included."""

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.epoch >= self.total_epochs

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint, whole or not at all. Of several processes the first one writes, the others wait.

        Raises:
            CheckpointError: the file system refuses; an earlier checkpoint is then unchanged.
            ProcessFailed: in the other processes, where the first one could not write.
        """
        processes.in_first(lambda: save_checkpoint(path, self.header(), self.state_dict()))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint that a run with the same header saved. Several processes all read the same file.

        Raises:
            CheckpointError: the file is missing, damaged, of another version or of another run.
        """
        self.load_state_dict(load_checkpoint(path, self.header()))


class Run(Resumable):
    """Epochs of steps on one network.

    Args:
        epochs: how many there are in all.
        steps: how many steps an epoch has; the most it can have, where :meth:`epoch_is_over` ends it earlier.
        seed: of every random stream of the run.
        device: where the step's measurements are kept.
    """

    network: nn.Module
    """What is trained; set by the subclass."""
    report_type: ClassVar[type[EpochReport]] = EpochReport
    measurements: ClassVar[tuple[str, ...]]
    """Names of the columns that :meth:`run_step` measures; the first is the loss that must stay finite."""
    watch: Callable[[Run], dict[str, float]] | None = None
    """Called after the last step of every epoch; what it returns is kept in the epoch's report, and so in checkpoints.

    It must leave the run as it is; random numbers it may draw.
    """

    def __init__(self, epochs: int, steps: int, seed: int, device: torch.device | str) -> None:
        require_positive(epochs=epochs, steps=steps)
        self.total_epochs = epochs
        self.steps_per_epoch = steps
        self.seed = seed
        self.device = torch.device(device)
        self.epoch = 0
        self.step = 0
        self.history = []
        self._seconds = 0.0
        self._started: float | None = None  # when the part of the epoch that is running began
        self._stepping = False
        self._asked_to_stop = False
        self._norms_apart: list[Tensor] = []  # running statistics that each process has of its own part
        self._paused: dict[str, Any] | None = None  # the generators' state in the middle of an epoch
        self._measured = torch.zeros(steps, len(self.measurements), device=self.device)

    @abstractmethod
    def run_step(self, index: int) -> Sequence[Tensor]:
        """Makes one step and returns a scalar for each of ``measurements``.

        Args:
            index: counts from 0 over all epochs, each of which has ``steps_per_epoch`` numbers, used or not.
        """

    @abstractmethod
    def begin_epoch(self) -> None:
        """Sets what changes with the epoch (learning rate, drop rate), as a pure function of ``self.epoch``."""

    @abstractmethod
    def report(self, means: dict[str, float]) -> EpochReport:
        """Describes the epoch that has just ended, from the means of its measurements."""

    def epoch_is_over(self) -> bool:
        """Whether the epoch has had its last step; asked before every step.

        A subclass whose epochs end otherwise (with the images, where the batch size changes) overrides it. Then it must
        be a function of what :meth:`state_dict` holds, the same in all processes, false before an epoch's first step
        and true after ``steps_per_epoch`` steps at the latest.
        """
        return self.step >= self.steps_per_epoch

    def step_weights(self) -> Float[Tensor, " steps"] | None:
        """How much each of the epoch's steps so far counts in :meth:`means`; None where all count alike.

        At least 0 and not all 0: the numbers of images, where the batch size changes.
        """
        return None

    def epochs(self) -> Iterator[Any]:
        try:
            while not self.finished:
                self._begin()
                self._started = time.perf_counter()
                stopping = False
                while not self.epoch_is_over():
                    self._stepping = True
                    row = self.run_step(self.epoch * self.steps_per_epoch + self.step)
                    self._record(torch.stack([value.detach() for value in row]))
                    self.step += 1
                    self._stepping = False
                    if self.on_step is not None:
                        self.on_step(self)
                    stopping = processes.any_process(self._asked_to_stop)
                    if stopping:
                        break
                means = self.means()
                self.check_finite()
                if stopping and not self.epoch_is_over():
                    self._seconds, self._started = self.elapsed(), None
                    self._paused = random_state()
                    return
                measured = self._watched()  # before the report, which may end with a change of the network
                report = self.report(means)
                if measured:
                    report = replace(report, measured=measured)
                self._seconds, self._started = report.seconds, None
                self.history.append(report)
                self.epoch += 1
                self.step = 0
                yield report
                if processes.any_process(self._asked_to_stop):
                    return
        finally:
            self._asked_to_stop = False  # here, so that a stop() just before the first step counts

    def _watched(self) -> dict[str, float]:
        """What the watch says of the epoch; the generators are as they were, and its seconds are not the run's."""
        if self.watch is None:
            return {}
        random = random_state()
        self._seconds, self._started = self.elapsed(), None
        try:
            return self.watch(self)
        finally:
            restore_random_state(random)
            self._started = time.perf_counter()

    def share_norms(self, normalize_by: NormalizeBy) -> None:
        """Prepares the network's batch norms for several processes.

        The subclass calls it before it builds the optimisers, once for every network that it takes.

        Args:
            normalize_by: ``batch`` has all processes share the moments; with ``part`` each has those of its own part.
        """
        if processes.count() == 1:
            return
        if normalize_by == "batch":
            synchronize_norms(self.network)
        else:
            self._norms_apart = [
                buffer
                for norm in batch_norms(self.network)
                for buffer in (norm.running_mean, norm.running_var)
                if buffer is not None
            ]

    def parts_header(self) -> dict[str, Any]:
        """What a checkpoint says of the processes: nothing where their number changes no more than rounding."""
        return {"parts": processes.count()} if self._norms_apart else {}

    def _record(self, row: Float[Tensor, " measurements"]) -> None:
        """Keeps what a step measured, averaged over the processes, and averages what they don't have in common."""
        self._measured[self.step], *averages = processes.mean([row, *self._norms_apart])
        # A running average is linear in what it averages, so this is the mean of the processes' own at any time.
        for buffer, average in zip(self._norms_apart, averages, strict=True):
            buffer.copy_(average)

    def elapsed(self) -> float:
        """Seconds that this epoch has taken so far, pauses left out."""
        return self._seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    def _begin(self) -> None:
        """Gives the epoch its random stream, or takes up the one it stopped in: what others draw changes nothing."""
        self._refuse_half_steps()
        if processes.count() > 1:
            place = repr((self.header(), self.epoch, self.step))
            processes.require_same("run and the same network", place, self.network.state_dict().values())
        if self.step == 0:
            seed_everything(fold_seed(self.seed, "epoch", self.epoch), threads=None)
            self._measured.zero_()
            self._seconds = 0.0
        elif self._paused is not None:
            restore_random_state(self._paused)
        self._paused = None
        self.begin_epoch()

    def _refuse_half_steps(self) -> None:
        if self._stepping:  # α may have moved and w not: no state to go on from, or to save
            raise CheckpointError("This run was interrupted inside a step. Load its last checkpoint, or build it anew.")

    def stop(self) -> None:
        self._asked_to_stop = True

    def means(self) -> dict[str, float]:
        if self.step == 0:
            return dict.fromkeys(self.measurements, math.nan)
        measured = self._measured[: self.step].cpu()
        bad = (~torch.isfinite(measured[:, 0])).nonzero()
        if len(bad):
            step = int(bad[0]) + 1
            raise self._diverged(f"The {self.measurements[0].replace('_', ' ')}", measured[step - 1, 0].item(), step)
        weights = self.step_weights()
        if weights is None:
            means = measured.mean(0)
        else:
            weights = weights.to("cpu", torch.float64)
            means = weights @ measured.double() / weights.sum()
        return dict(zip(self.measurements, means.tolist(), strict=True))

    def check_finite(self) -> None:
        # A step can break the weights, or a batch norm's statistics, after its own loss was still fine.
        # A module may keep a state of its own that is no tensor.
        values = [v for v in self.network.state_dict().values() if isinstance(v, Tensor) and v.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise self._diverged("A parameter or a statistic", "infinite or NaN", self.step)

    def _diverged(self, what: str, value: object, step: int) -> TrainingDiverged:
        most = "" if type(self).epoch_is_over is Run.epoch_is_over else "at most "
        return TrainingDiverged(
            f"{what} became {value} at epoch {self.epoch + 1}, step {step} of {most}{self.steps_per_epoch}. "
            f"A lower learning rate or a stronger clip usually helps."
        )

    def state_dict(self) -> dict[str, Any]:
        self._refuse_half_steps()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "measured": self._measured.clone(),
            "seconds": self.elapsed(),
            "history": [report.to_state() for report in self.history],
            "random": random_state() if self._paused is None else self._paused,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.step = state["step"]
        self._measured = state["measured"].to(self.device)
        self._seconds, self._started, self._stepping = state["seconds"], None, False
        self.history = [self.report_type.from_state(report) for report in state["history"]]
        self._paused = state["random"]
        restore_random_state(self._paused)


def cosine(start: float, end: float, progress: float) -> float:
    """Cosine annealing from ``start`` at progress 0 to ``end`` at 1 (Loshchilov & Hutter 2017)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def optimizer_form(device: torch.device) -> dict[str, bool]:
    """How an optimiser updates many small tensors: in one kernel on CUDA, in one call on a CPU.

    One kernel is four times as fast on a CPU too, but rounds differently; one call has the bits of a plain loop.
    """
    cuda = device.type == "cuda"
    return {"fused": cuda, "foreach": not cuda}


def accuracy(logits: Float[Tensor, "batch classes"], labels: Tensor) -> Float[Tensor, ""]:
    """Share of the batch whose largest logit is the label; stays on the device."""
    return (logits.argmax(-1) == labels).float().mean()
