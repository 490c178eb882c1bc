"""PackNet: train, prune, retrain, fix; the next task has what was pruned (Mallya & Lazebnik 2018).

After training, the smallest of a task's weights in each layer are pruned (§3), by a share that is set beforehand. The
rest is trained once more, and then fixed. Every later task's network has all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nasbook.continual.backbone import Backbone
from nasbook.continual.packing import PackingRun
from nasbook.continual.run import ContinualConfig, Phase
from nasbook.continual.tasks import Task
from nasbook.errors import InvalidInput, require_positive

__all__ = ["PackNet", "PackNetConfig"]

TRAINING, RETRAINING = "training", "retraining"


@dataclass(frozen=True)
class PackNetConfig(ContinualConfig):
    """How PackNet learns. Defaults are the paper's; where it has no long sequence of small images, CPG's code's."""

    method: ClassVar[str] = "packnet"

    pruned: float | None = 0.75
    """Share of a task's weights in each layer that are pruned and left to later tasks; 0.5 and 0.75 in the paper, for
    up to four tasks, 0.6 in CPG's code for 20. None divides the network evenly: each task keeps as many weights."""
    retraining_epochs: int = 30
    """Passes over the images after pruning; a task has ``epochs`` before it. CPG's code: 30 after 100."""
    retraining_rate: float = 0.1
    """Learning rate of the retraining, as a share of the training's (§4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(retraining_epochs=self.retraining_epochs, retraining_rate=self.retraining_rate)
        if self.pruned is not None and not 0 <= self.pruned < 1:
            raise InvalidInput(f"pruned must be at least 0 and below 1, or None for equal parts; got {self.pruned}.")

    @property
    def extra_epochs(self) -> int:
        return self.retraining_epochs

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> PackNet:
        return PackNet(tasks, self, backbone, seed=seed)


class PackNet(PackingRun):
    """Learns a sequence of tasks by PackNet; :attr:`packed` is what it has learned."""

    config: PackNetConfig

    def most_phases(self, task: int) -> Sequence[Phase]:
        return Phase(TRAINING, self.config.epochs), Phase(RETRAINING, self.config.retraining_epochs)

    def begin_task(self) -> None:
        self.take_free_weights()

    def prepare_phase(self) -> None:
        self.network = self.plain
        retraining = self.phases()[self.phase].name == RETRAINING
        self.train_own(self.config.retraining_rate if retraining else 1.0)

    def end_phase(self) -> None:
        if self.phases()[self.phase].name == TRAINING:
            share = self.config.pruned
            left = len(self.tasks) - self.task - 1
            self.prune(left / (left + 1) if share is None else share)
