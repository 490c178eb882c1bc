"""What fine-tuning, EWC and LwF share: one body for all tasks, and a classifier for each.

All of the body's parameters learn on every task, and so do the running statistics of its batch norms: a later task
changes what an earlier one sees. Nothing grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.continual.backbone import Backbone
from nasbook.continual.run import ContinualConfig, ContinualRun
from nasbook.continual.tasks import Task
from nasbook.networks import Growable


class SharedBody(ContinualRun):
    """A learner with one body and a classifier per task; a method adds to its loss (:meth:`regulariser`)."""

    network: Growable

    def __init__(
        self, tasks: Sequence[Task], config: ContinualConfig, backbone: Backbone, *, seed: int = 0
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
        self.optimizer = self.sgd(self.network.parameters())

    def regulariser(self, images: Tensor) -> Tensor | None:
        """What a method adds to the loss of a batch; None for nothing."""
        return None

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        added = self.regulariser(images)
        (loss if added is None else loss + added).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return loss, logits

    def end_task(self) -> None:
        self.heads.append({name: value.detach().cpu().clone() for name, value in self._head(self.network).items()})

    def serving(self, task: int) -> nn.Module:
        network = self.backbone.build(self.tasks[task].data.classes, 0)
        network.load_state_dict({**self._body(self.network), **self.heads[task]})
        return network

    def parameters(self) -> int:
        body = sum(p.numel() for name, p in self.network.named_parameters() if name not in self._head(self.network))
        return body + sum(value.numel() for head in self.heads for value in head.values())

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
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
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
