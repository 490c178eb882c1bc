"""The loop that all continual learners share: task after task, to the same bits after a stop.

A learner sees one task at a time. A task has phases (training alone, or: learning a mask, over-growing, training), and
a phase has epochs. After each task the network of every task so far is evaluated on its test images: a row of the
accuracy matrix. Learners know which task an image belongs to (task-incremental learning), as in the paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nasbook import processes
from nasbook.continual.backbone import Backbone
from nasbook.continual.tasks import Task
from nasbook.data import Loader
from nasbook.errors import InvalidInput, require_positive
from nasbook.seeding import fold_seed
from nasbook.training import EpochReport, Run, accuracy, evaluate, optimizer_form
from nasbook.training.fit import CHANNELS_LAST_SIZE, DECAYS, in_channels_last


@dataclass(frozen=True)
class ContinualConfig(ABC):
    """How a learner trains on each task; a method adds its own numbers. The paper gives epochs only (B.4)."""

    epochs: int = 100
    """Passes over a task's training images in its last phase."""
    batch_size: int = 32
    """Images a step. Not in the paper."""
    learning_rate: float = 0.05
    """Of SGD, at the start of every phase; it falls to 0 by a cosine within it. Not in the paper."""
    momentum: float = 0.9
    """Of SGD. Not in the paper."""
    weight_decay: float = 5e-4
    """Of SGD, as L2. Not in the paper."""
    clip: float = 5.0
    """Largest norm of the gradient. Not in the paper."""

    method: ClassVar[str]
    """Its name."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, clip=self.clip
        )
        if self.batch_size < 2:
            raise InvalidInput("batch_size must be at least 2: batch norm compares the images of a step.")
        if not (self.momentum >= 0 and self.weight_decay >= 0):
            raise InvalidInput("momentum and weight_decay must be at least 0.")

    @abstractmethod
    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> ContinualRun:
        """A learner of these tasks with this configuration."""

    @property
    def extra_epochs(self) -> int:
        """Passes over a later task's images before its last phase: the paper's "extra growing epochs" (Table 2)."""
        return 0


@dataclass(frozen=True)
class Phase:
    """A part of the learning of a task."""

    name: str
    """What happens in it."""
    epochs: int
    """Passes over the task's training images."""


@dataclass(frozen=True)
class ContinualReport(EpochReport):
    """What one epoch measured. Validation loss and accuracy are those on the task's test images, at its end."""

    task: int
    """Index of the task, from 0."""
    phase: str
    """Name of the phase."""
    parameters: int
    """Parameters that the learner keeps for all tasks so far, at the end of a task; 0 before."""
    accuracies: tuple[float, ...] = ()
    """At the end of a task: test accuracy of each task so far, by the network that now serves it."""

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ContinualReport:
        return cls(**{**state, "accuracies": tuple(state["accuracies"])})

    def to_state(self) -> dict[str, Any]:
        return {**asdict(self), "accuracies": list(self.accuracies)}


class ContinualRun(Run, ABC):
    """Learns a sequence of tasks. A method says what its phases are, what a step does and what serves a task.

    Args:
        tasks: in the order in which they come, all on one device.
        config: of the method.
        backbone: of its networks.
        seed: of initial weights, data order and all else that is random.

    Raises:
        InvalidInput: no task, tasks whose images differ in shape, or several processes.
    """

    measurements: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy")
    report_type: ClassVar[type[EpochReport]] = ContinualReport

    optimizer: torch.optim.Optimizer | None = None
    """Of the running phase, where one optimiser does all."""

    def __init__(
        self, tasks: Sequence[Task], config: ContinualConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        if processes.count() > 1:
            raise InvalidInput("A sequence of tasks is learned in one process; start it without torchrun.")
        if not tasks:
            raise InvalidInput("tasks is empty; give one or more.")
        shapes = {(task.data.channels, task.data.size) for task in tasks}
        if shapes != {(backbone.in_channels, backbone.size)}:
            raise InvalidInput(
                f"The backbone is for images of {backbone.in_channels} channels and {backbone.size} pixels a side; "
                f"the tasks have {', '.join(f'{channels} and {size}' for channels, size in sorted(shapes))}."
            )
        self.tasks = tuple(tasks)
        self.config = config
        self.backbone = backbone
        device = tasks[0].data.train_images.device
        self._channels_last = device.type == "cuda" or backbone.size >= CHANNELS_LAST_SIZE
        self.loaders = [
            Loader(
                task.data.train_images,
                task.data.train_labels,
                config.batch_size,
                mean=task.data.mean,
                std=task.data.std,
                augmentation=task.data.augmentation,
                seed=fold_seed(seed, "task", number),
            )
            for number, task in enumerate(tasks)
        ]
        self.task = 0
        """Index of the task that is being learned."""
        self.phase = 0
        """Index of its running phase."""
        self.phase_epoch = 0
        """Finished epochs of the phase."""
        self.accuracies: list[list[float]] = []
        """Row t, column s: test accuracy of task s after task t was learned."""
        self.memory: list[int] = []
        """Parameters that are kept after each task."""
        epochs = sum(phase.epochs for number in range(len(tasks)) for phase in self.most_phases(number))
        super().__init__(epochs, max(map(len, self.loaders)), seed, device)
        self.begin_task()
        self.begin_phase()

    # -- what a method says -------------------------------------------------------------------------------------------

    def most_phases(self, task: int) -> Sequence[Phase]:
        """All phases that a task can have; :meth:`phases` may end earlier."""
        return (Phase("training", self.config.epochs),)

    def phases(self) -> Sequence[Phase]:
        """The phases of the running task as far as they are known, a function of the state."""
        return self.most_phases(self.task)

    @abstractmethod
    def begin_task(self) -> None:
        """Sets up ``network`` for the task that begins."""

    @abstractmethod
    def begin_phase(self) -> None:
        """Sets up the running phase and its optimiser."""

    @abstractmethod
    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """One step of the running phase; returns the loss and the logits before it, detached.

        Args:
            images: normalised, in the memory order of the network.
            labels: of the task's classes, from 0.
            index: of the step in the phase, from 0.
        """

    def end_phase(self) -> None:
        """Called after the last epoch of a phase."""

    @abstractmethod
    def end_task(self) -> None:
        """Keeps what the task has learned; called after its last phase."""

    @abstractmethod
    def serving(self, task: int) -> nn.Module:
        """The network that now serves a learned task, on the device, in evaluation mode."""

    @abstractmethod
    def parameters(self) -> int:
        """Parameters that are kept for all learned tasks together."""

    @abstractmethod
    def method_state(self) -> dict[str, Any]:
        """Everything of the method that changes as the run goes on: the networks and optimisers among it."""

    @abstractmethod
    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`method_state` returned; task and phase are already those of the state."""

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether all tasks are learned."""
        return self.task >= len(self.tasks)

    @property
    def loader(self) -> Loader:
        """The running task's training images."""
        return self.loaders[self.task]

    def epoch_is_over(self) -> bool:
        return self.step >= len(self.loader)

    def begin_epoch(self) -> None:
        self.network.train()
        phase = self.phases()[self.phase]
        rate = DECAYS["cosine"](self.config.learning_rate, self.phase_epoch, phase.epochs)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)

    def run_step(self, index: int) -> Sequence[Tensor]:
        before = sum(phase.epochs for phase in self.phases()[: self.phase])
        in_phase = self.phase_epoch * len(self.loader) + self.step
        images, labels = self.loader.batch(before * len(self.loader) + in_phase)
        images = in_channels_last(images) if self._channels_last else images.contiguous()
        loss, logits = self.train_step(images, labels, in_phase)
        return loss.detach(), accuracy(logits.detach(), labels)

    def report(self, means: dict[str, float]) -> ContinualReport:
        task, phase = self.task, self.phases()[self.phase]
        rate = 0.0 if self.optimizer is None else self.optimizer.param_groups[0]["lr"]
        row: list[float] = []
        loss = float("nan")
        self._stepping = True  # an interrupt from here on leaves a run that is neither before nor after the change
        self.phase_epoch += 1
        if self.phase_epoch == phase.epochs:
            self.end_phase()
            self.phase, self.phase_epoch = self.phase + 1, 0
            if self.phase == len(self.phases()):
                self.end_task()
                self.memory.append(self.parameters())
                measured = [self.test(number) for number in range(task + 1)]
                row, loss = [correct for _, correct in measured], measured[-1][0]
                self.accuracies.append(row)
                self.task, self.phase = self.task + 1, 0
                if not self.finished:
                    self.begin_task()
            if not self.finished:
                self.begin_phase()
        self._stepping = False
        return ContinualReport(
            self.epoch + 1,
            train_loss=means["train_loss"],
            train_accuracy=means["train_accuracy"],
            validation_loss=loss,
            validation_accuracy=row[-1] if row else float("nan"),
            learning_rate=rate,
            seconds=self.elapsed(),
            task=task,
            phase=phase.name,
            parameters=self.memory[-1] if row else 0,
            accuracies=tuple(row),
        )

    def test(self, task: int) -> tuple[float, float]:
        """Mean cross entropy and accuracy on a learned task's test images, by the network that now serves it."""
        data = self.tasks[task].data
        return evaluate(
            self.fitted(self.serving(task)),
            data.test_images,
            data.test_labels,
            data,
            channels_last=self._channels_last,
        )

    # -- for methods ---------------------------------------------------------------------------------------------------

    def fitted(self, network: Any) -> Any:
        """The network on this run's device and in its memory order."""
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last) if self._channels_last else network

    def sgd(self, parameters: Any) -> torch.optim.SGD:
        """SGD as the configuration has it."""
        config = self.config
        return torch.optim.SGD(
            parameters,
            config.learning_rate,
            config.momentum,
            weight_decay=config.weight_decay,
            **optimizer_form(self.device),
        )

    def task_seed(self, *stream: int | str) -> int:
        """The seed of one stream of the running task."""
        return fold_seed(self.seed, "learner", self.task, *stream)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "task": self.task,
            "phase": self.phase,
            "phase_epoch": self.phase_epoch,
            "accuracies": [list(row) for row in self.accuracies],
            "memory": list(self.memory),
            "method": self.method_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task, self.phase, self.phase_epoch = state["task"], state["phase"], state["phase_epoch"]
        self.accuracies = [list(row) for row in state["accuracies"]]
        self.memory = list(state["memory"])
        self.load_method_state(state["method"])
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group.update(optimizer_form(self.device))
        super().load_state_dict(state)  # last: what is built above may draw random numbers

    def header(self) -> dict[str, Any]:
        config = {name: _plain(value) for name, value in asdict(self.config).items()}
        return {
            "method": self.config.method,
            "tasks": [task.data.checksum for task in self.tasks],
            "backbone": {name: _plain(value) for name, value in asdict(self.backbone).items()},
            "config": config,
            "seed": self.seed,
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
