"""A network of its own for every task, from scratch: nothing is shared, and nothing is lost (Table 2, "Individual")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.analysis import count_parameters
from nasbook.continual.backbone import Backbone
from nasbook.continual.run import ContinualConfig, ContinualRun
from nasbook.continual.tasks import Task


@dataclass(frozen=True)
class IndividualConfig(ContinualConfig):
    """Individual networks."""

    method: ClassVar[str] = "individual"

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> Individual:
        return Individual(tasks, self, backbone, seed=seed)


class Individual(ContinualRun):
    """Trains a fresh network on every task and keeps it.

    Args:
        tasks: in the order in which they come.
        config: of the training.
        backbone: of every network, as wide as it is given.
        seed: of initial weights and data order.
    """

    def __init__(
        self, tasks: Sequence[Task], config: ContinualConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self.kept: list[dict[str, Tensor]] = []
        """The networks' states, task by task."""
        super().__init__(tasks, config, backbone, seed=seed)

    def _fresh(self, task: int, seed: int) -> nn.Module:
        return self.backbone.build(self.tasks[task].data.classes, seed)

    def begin_task(self) -> None:
        self.network = self.fitted(self._fresh(self.task, self.task_seed()))

    def begin_phase(self) -> None:
        self.optimizer = self.sgd(self.network.parameters())

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def end_task(self) -> None:
        self.kept.append({name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()})

    def serving(self, task: int) -> nn.Module:
        network = self._fresh(task, 0)
        network.load_state_dict(self.kept[task])
        return network.eval()

    def parameters(self) -> int:
        return sum(count_parameters(self._fresh(task, 0)) for task in range(len(self.kept)))

    def method_state(self) -> dict[str, Any]:
        return {
            "kept": [dict(state) for state in self.kept],
            "network": None if self.finished else self.network.state_dict(),
            "optimizer": None if self.finished or self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.kept = [dict(kept) for kept in state["kept"]]
        if not self.finished:
            self.begin_task()
            self.network.load_state_dict(state["network"])
            self.begin_phase()
            assert self.optimizer is not None
            self.optimizer.load_state_dict(state["optimizer"])
