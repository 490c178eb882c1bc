"""Learning without forgetting (Li & Hoiem 2017): the old network's answers on new images are targets too.

A new task begins with a warm-up of its classifier alone. Then everything trains on the new labels and, for every
earlier task, on what the network before the task answered to the same images: cross entropy between both answers,
softened by a temperature T (Hinton et al. 2015), with a weight λ_o.

What we had to decide:

* The paper records the answers once; with random crops and mirrored images that does not fit, so we keep the old
  network while the task lasts and ask it for each batch.
* The paper's networks have no batch norm. Here the old network normalises by the batch, as the one that learns does.
  So both answer the same at first, and the old answers pull at nothing that has not moved. With running statistics in
  the old network alone they do: at ``quick``, mean of four divisions, LwF then ends at 0.68 instead of 0.82.
* In the warm-up the body stands still, and so do its statistics, by which it normalises.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nasbook.continual.backbone import Backbone
from nasbook.continual.run import Phase
from nasbook.continual.shared_body import SharedBody, SharedBodyConfig
from nasbook.continual.tasks import Task
from nasbook.errors import InvalidInput, require_positive
from nasbook.networks import Growable
from nasbook.operations.batch_norms import kept_statistics

WARM_UP, TRAINING = "warm-up", "training"


@dataclass(frozen=True)
class LwFConfig(SharedBodyConfig):
    """Learning without forgetting."""

    method: ClassVar[str] = "lwf"

    later_rate: float = 0.1
    """Learning rate of all tasks after the first, as a share of the first one's; 0.02 to 0.1 in the paper (§3.1). The
    warm-up has the whole rate."""
    temperature: float = 2.0
    """T (§3 of LwF)."""
    weight: float = 1.0
    """λ_o, the weight of each earlier task (§3 of LwF)."""
    warm_up_epochs: int = 10
    """Passes in which only the new classifier learns. The paper chooses the number on held-out images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)
        if not (self.weight >= 0 and self.warm_up_epochs >= 0):
            raise InvalidInput("weight and warm_up_epochs must be 0 or more.")

    @property
    def extra_epochs(self) -> int:
        return self.warm_up_epochs

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> LwF:
        return LwF(tasks, self, backbone, seed=seed)


class LwF(SharedBody):
    """Learns from the new labels and from the answers of the network before.

    Args:
        tasks: in the order in which they come.
        config: of the method.
        backbone: of the body, with one classifier.
        seed: of initial weights and data order.
    """

    config: LwFConfig

    def __init__(
        self, tasks: Sequence[Task], config: LwFConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self._before: Growable | None = None
        """The body before the task; its classifier is not asked."""
        self._given: list[dict[str, Tensor]] = []
        """The classifiers of earlier tasks as they were before this one, on the device."""
        self._old: list[dict[str, Tensor]] = []
        """The classifiers of earlier tasks, which go on learning."""
        super().__init__(tasks, config, backbone, seed=seed)

    def most_phases(self, task: int) -> Sequence[Phase]:
        training = Phase(TRAINING, self.config.epochs)
        warm_up = Phase(WARM_UP, self.config.warm_up_epochs)
        return [warm_up, training] if task and warm_up.epochs else [training]

    def begin_task(self) -> None:
        super().begin_task()
        self._before = None
        if self.task:
            self._before = self._frozen()
            self._given = [{name: value.to(self.device) for name, value in head.items()} for head in self.heads]
            self._old = [{name: value.clone().requires_grad_() for name, value in head.items()} for head in self._given]

    def _frozen(self) -> Growable:
        """A copy of the network that answers and does not learn."""
        return copy.deepcopy(self.network).train().requires_grad_(False)

    @property
    def warming_up(self) -> bool:
        """Whether only the new classifier learns now."""
        return self.phases()[self.phase].name == WARM_UP

    def begin_phase(self) -> None:
        self.network.requires_grad_(not self.warming_up)
        self.network.get_submodule("classifier").requires_grad_(True)
        super().begin_phase()
        if self.warming_up:
            assert self.optimizer is not None
            self.optimizer.param_groups[0]["rate"] = 1.0

    def trained(self) -> list[Tensor]:
        if self.warming_up:
            return list(self.network.get_submodule("classifier").parameters())
        return [*super().trained(), *(value for head in self._old for value in head.values())]

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.warming_up:
            self.network.eval()

    def objective(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, features = with_features(self.network, images)
        loss = F.cross_entropy(logits, labels)
        return loss + self._kept_answers(features, images), loss, logits

    def _kept_answers(self, features: Tensor, images: Tensor) -> Tensor | float:
        """λ_o times the distillation losses of all earlier tasks."""
        if self._before is None or not self.config.weight or self.warming_up:
            return 0.0
        with torch.no_grad(), kept_statistics(self._before):
            _, before = with_features(self._before, images)
        losses = [
            distillation(_answer(now, features), _answer(then, before), self.config.temperature)
            for now, then in zip(self._old, self._given, strict=True)
        ]
        return self.config.weight * torch.stack(losses).sum()

    def end_task(self) -> None:
        if self.task:
            self.heads = [
                {name: value.detach().cpu().clone() for name, value in head.items()} for head in self._old
            ]
        super().end_task()

    @property
    def training_memory(self) -> int:
        if self._before is None:
            return 0
        body = sum(parameter.numel() for _, parameter in self.body_parameters())
        return body + sum(value.numel() for head in self._old for value in head.values())

    def method_state(self) -> dict[str, Any]:
        return {
            **super().method_state(),
            "before": None if self.finished or self._before is None else self._before.state_dict(),
            "old": [{name: value.detach().clone() for name, value in head.items()} for head in self._old],
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self._old = [
            {name: value.clone().to(self.device).requires_grad_() for name, value in head.items()}
            for head in state["old"]
        ]
        super().load_method_state(state)  # builds the optimiser, whose parameters the old classifiers are
        self._given = [{name: value.to(self.device) for name, value in head.items()} for head in self.heads]
        self._before = None
        if state["before"] is not None and not self.finished:
            self._before = self._frozen()
            self._before.load_state_dict(state["before"])


def distillation(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """−Σ_k y'_k log ŷ'_k, the mean over a batch, of probabilities softened by T (LwF, Eq. 2 to 4).

    There is no factor T², which Hinton et al. have. The paper's y'_k = y_k^(1/T) / Σ_j y_j^(1/T) is
    the softmax of logits divided by T.

    Args:
        logits: of the network that learns.
        targets: logits of the network before.
        temperature: T.
    """
    soft = (targets / temperature).softmax(-1)
    return -(soft * (logits / temperature).log_softmax(-1)).sum(-1).mean()


def with_features(network: Growable, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what the classifier read: one pass for both, so that batch norms see the batch once."""
    read: list[Tensor] = []
    handle = network.get_submodule("classifier").register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        return network(images), read[0]
    finally:
        handle.remove()


def _answer(head: dict[str, Tensor], features: Tensor) -> Tensor:
    return F.linear(features, head["classifier.weight"], head["classifier.bias"])
