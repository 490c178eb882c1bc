"""What fine-tuning, EWC and LwF share: one body for all tasks, and a classifier for each.

All of the body's parameters learn on every task: a later task changes what an earlier one sees. Nothing grows.

The papers' networks have no batch norm. Ours have, and their running statistics belong to the body as its parameters
do: what the last task leaves behind serves all. Statistics of each task's own, as Firefly and PackNet keep them, do not
help here, because they are those of a body that is no more. At ``quick``, mean of four divisions of the digits, a
fine-tuned network ends at 0.65 with shared statistics and at 0.61 with the tasks' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.continual.backbone import Backbone
from nasbook.continual.run import ContinualConfig, ContinualRun
from nasbook.continual.tasks import Task
from nasbook.errors import InvalidInput
from nasbook.networks import Growable


@dataclass(frozen=True)
class SharedBodyConfig(ContinualConfig):
    """What every learner with a shared body can choose."""

    later_rate: float = 1.0
    """Learning rate of all tasks after the first, as a share of the first one's. Less is forgotten with a lower one,
    whatever the method: at ``quick``, mean of four divisions, fine-tuning alone ends at 0.82 with 0.1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.later_rate <= 1:
            raise InvalidInput(f"later_rate must be above 0 and at most 1, got {self.later_rate}.")


class SharedBody(ContinualRun):
    """A learner with one body and a classifier per task. Alone, it fine-tunes; a method adds what keeps the old.

    Args:
        tasks: in the order in which they come.
        config: of the method.
        backbone: of the body, with one classifier.
        seed: of initial weights and data order.
    """

    config: SharedBodyConfig
    network: Growable

    def __init__(
        self, tasks: Sequence[Task], config: SharedBodyConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self.heads: list[dict[str, Tensor]] = []
        """The classifiers of all learned tasks."""
        super().__init__(tasks, config, backbone, seed=seed)

    def begin_task(self) -> None:
        classes = self.tasks[self.task].data.classes
        network = self.backbone.build(classes, self.task_seed())
        if self.task:
            network.load_state_dict(self._body(self.network), strict=False)
        self.network = self.fitted(network)

    def begin_phase(self) -> None:
        self.optimizer = self.sgd(self.trained())
        self.optimizer.param_groups[0]["rate"] = self.config.later_rate if self.task else 1.0

    def trained(self) -> list[Tensor]:
        """What the running phase trains."""
        return list(self.network.parameters())

    def objective(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a step lowers, the cross entropy in it, and the logits of the running task."""
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        return loss, loss, logits

    def after_step(self) -> None:
        """What a method does to the weights after each step; nothing, without one."""

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        total, loss, logits = self.objective(images, labels)
        total.backward()
        nn.utils.clip_grad_norm_(self.trained(), self.config.clip)
        self.optimizer.step()
        self.after_step()
        return loss.detach(), logits.detach()

    def end_task(self) -> None:
        self.heads.append({name: value.detach().cpu().clone() for name, value in self._head(self.network).items()})

    def serving(self, task: int) -> nn.Module:
        network = self.backbone.build(self.tasks[task].data.classes, 0)
        network.load_state_dict({**self._body(self.network), **self.heads[task]})
        return network

    def parameters(self) -> int:
        body = sum(parameter.numel() for _, parameter in self.body_parameters())
        return body + sum(value.numel() for head in self.heads for value in head.values())

    @property
    def training_memory(self) -> int:
        """Numbers that learning the next task takes beside the network; serving the learned ones does not."""
        return 0

    def body_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that all tasks share, with their names."""
        head = self._head(self.network)
        return [(name, parameter) for name, parameter in self.network.named_parameters() if name not in head]

    @staticmethod
    def _head(network: Growable) -> dict[str, Tensor]:
        return {f"classifier.{name}": value for name, value in network.get_submodule("classifier").state_dict().items()}

    def _body(self, network: Growable) -> dict[str, Tensor]:
        head = self._head(network)
        return {name: value for name, value in network.state_dict().items() if name not in head}

    def method_state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "heads": [dict(head) for head in self.heads],
            "optimizer": None if self.finished or self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.heads = [dict(head) for head in state["heads"]]
        task = min(self.task, len(self.tasks) - 1)
        self.network = self.fitted(self.backbone.build(self.tasks[task].data.classes, 0))
        self.network.load_state_dict(state["network"])
        if not self.finished:
            self.begin_phase()
            assert self.optimizer is not None
            self.optimizer.load_state_dict(state["optimizer"])
