"""Learning without forgetting (Li & Hoiem 2017): the old network's answers on new images are targets too.

A new task begins with a warm-up of its classifier alone. Then everything trains on the new labels and, for every
earlier task, on what the network before the task answered to the same images: cross entropy between both answers,
softened by a temperature T (Hinton et al. 2015), with a weight λ_o. The paper records the answers once; with random
crops and mirrored images that does not fit, so we keep the old network while the task lasts and ask it for each batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.continual.backbone import Backbone
from nasbook.continual.run import ContinualConfig, Phase
from nasbook.continual.shared_body import SharedBody
from nasbook.continual.tasks import Task
from nasbook.errors import InvalidInput, require_positive
from nasbook.networks import Growable

WARM_UP, TRAINING = "warm-up", "training"


@dataclass(frozen=True)
class LwFConfig(ContinualConfig):
    """Learning without forgetting."""

    method: ClassVar[str] = "lwf"

    temperature: float = 2.0
    """T (§4 of LwF)."""
    weight: float = 1.0
    """λ_o, the weight of each earlier task (§4 of LwF)."""
    warm_up_epochs: int = 2
    """Passes in which only the new classifier learns. "Until convergence" in the paper."""

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
    """Learns from the new labels and from the answers of the network before."""

    config: LwFConfig

    def __init__(
        self, tasks: Sequence[Task], config: LwFConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self._before: Growable | None = None
        """The body before the task; its classifier is not asked."""
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
            self._before = copy.deepcopy(self.network).eval().requires_grad_(False)
            self._old = [
                {name: value.clone().to(self.device).requires_grad_() for name, value in head.items()}
                for head in self.heads
            ]

    def begin_phase(self) -> None:
        name = self.phases()[self.phase].name
        head = list(self.network.get_submodule("classifier").parameters())
        old = [value for heads in self._old for value in heads.values()]
        self.optimizer = self.sgd(head if name == WARM_UP else [*self.network.parameters(), *old])

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.phases()[self.phase].name == WARM_UP:
            self.network.eval()  # the body stands still, its statistics too

    def train_step(self, images: Tensor, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        logits, features = with_features(self.network, images)
        loss = F.cross_entropy(logits, labels)
        total = loss + self._kept_answers(features, images)
        total.backward()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, self.config.clip)
        self.optimizer.step()
        return loss, logits

    def _kept_answers(self, features: Tensor, images: Tensor) -> Tensor | float:
        """λ_o times the distillation losses of all earlier tasks."""
        if self._before is None or not self.config.weight or self.phases()[self.phase].name == WARM_UP:
            return 0.0
        with torch.no_grad():
            _, before = with_features(self._before, images)
        losses = [
            distillation(_answer(now, features), _answer(then, before), self.config.temperature)
            for now, then in zip(self._old, self._recorded, strict=True)
        ]
        return self.config.weight * torch.stack(losses).sum()

    def end_task(self) -> None:
        if self.task:
            self.heads = [
                {name: value.detach().cpu().clone() for name, value in head.items()} for head in self._old
            ]
        super().end_task()

    def method_state(self) -> dict[str, Any]:
        return {
            **super().method_state(),
            "before": None if self._before is None else self._before.state_dict(),
            "old": [{name: value.detach().clone() for name, value in head.items()} for head in self._old],
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self._old = [
            {name: value.clone().to(self.device).requires_grad_() for name, value in head.items()}
            for head in state["old"]
        ]
        super().load_method_state(state)  # builds the optimiser, whose parameters the old classifiers are
        self._before = None
        if state["before"] is not None and not self.finished:
            self._before = copy.deepcopy(self.network).eval().requires_grad_(False)
            self._before.load_state_dict(state["before"])

    @property
    def _recorded(self) -> list[dict[str, Tensor]]:
        """The classifiers of earlier tasks as they were before this one."""
        return self.heads


def distillation(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """−Σ_k y'_k log ŷ'_k, the mean over a batch, of probabilities softened by T (LwF, Eq. 2 to 4).

    The paper's y'_k = y_k^(1/T) / Σ_j y_j^(1/T) is the softmax of logits divided by T.

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
    weight, bias = (head[f"classifier.{name}"].to(features.device) for name in ("weight", "bias"))
    return F.linear(features, weight, bias)
