"""Elastic weight consolidation (Kirkpatrick et al. 2017): weights that mattered are held by springs.

After each task the learner notes its weights θ* and how much each matters, the diagonal F of the Fisher information.
Later tasks add ½ λ Σᵢ Fᵢ (θᵢ − θᵢ*)² to their loss, one such sum for every earlier task, as in the paper.

Definitions of F differ between implementations, and results with them. Ours is the Fisher information itself: the mean
over images x of the expected squared derivative of log p(y|x) over the classes y, with the network's own p(y|x), image
by image. It is exact, no sample: a task has few classes. "Empirical Fisher" takes the given label instead; the square
of a batch's mean gradient, which some code takes, is neither. Batch norms use their running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nasbook.continual.backbone import Backbone
from nasbook.continual.run import ContinualConfig
from nasbook.continual.shared_body import SharedBody
from nasbook.continual.tasks import Task
from nasbook.data import evaluation_batches
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.seeding import generator
from nasbook.training import evaluating

FisherLabels = Literal["model", "data"]


@dataclass(frozen=True)
class EWCConfig(ContinualConfig):
    """Elastic weight consolidation."""

    method: ClassVar[str] = "ewc"

    strength: float = 1000.0
    """λ. The paper searched for it, problem by problem, and gives no number."""
    labels: FisherLabels = "model"
    """Whose labels the Fisher information takes: the network's own distribution, or the data's (empirical Fisher)."""
    images: int | None = None
    """Training images of each task over which it is averaged; None for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise InvalidInput(f"strength must be finite and at least 0, got {self.strength}.")
        if self.labels not in ("model", "data"):
            raise unknown_name("labels", self.labels, ("model", "data"))
        if self.images is not None:
            require_positive(images=self.images)

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> EWC:
        return EWC(tasks, self, backbone, seed=seed)


class EWC(SharedBody):
    """Learns with a quadratic penalty for each earlier task.

    It keeps two numbers a weight and task while it learns (:attr:`anchors`); serving needs neither.
    """

    config: EWCConfig

    def __init__(
        self, tasks: Sequence[Task], config: EWCConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self.anchors: list[dict[str, tuple[Tensor, Tensor]]] = []
        """For each learned task θ* and F of the body's parameters, by name."""
        super().__init__(tasks, config, backbone, seed=seed)

    def regulariser(self, images: Tensor) -> Tensor | None:
        if not self.anchors or not self.config.strength:
            return None
        parameters = dict(self.network.named_parameters())
        parts = [
            (fisher * (parameters[name] - anchor).square()).sum()
            for anchors in self.anchors
            for name, (anchor, fisher) in anchors.items()
        ]
        return 0.5 * self.config.strength * torch.stack(parts).sum()

    def end_task(self) -> None:
        super().end_task()
        if self.task + 1 == len(self.tasks):
            return
        data = self.tasks[self.task].data
        count = len(data.train_labels) if self.config.images is None else self.config.images
        drawn = torch.randperm(len(data.train_labels), generator=generator(self.task_seed("fisher")))[:count]
        drawn = drawn.to(data.train_labels.device)
        batches = evaluation_batches(data.train_images[drawn], data.train_labels[drawn], 64, data.mean, data.std)
        names = [name for name, _ in self.network.named_parameters() if name not in self._head(self.network)]
        found = fisher_information(self.network, batches, names, self.config.labels)
        weights = dict(self.network.named_parameters())
        self.anchors.append({name: (weights[name].detach().clone(), found[name]) for name in names})

    def method_state(self) -> dict[str, Any]:
        anchors = [{name: list(pair) for name, pair in anchors.items()} for anchors in self.anchors]
        return {**super().method_state(), "anchors": anchors}

    def load_method_state(self, state: dict[str, Any]) -> None:
        super().load_method_state(state)
        self.anchors = [
            {name: (anchor.to(self.device), fisher.to(self.device)) for name, (anchor, fisher) in anchors.items()}
            for anchors in state["anchors"]
        ]


def fisher_information(
    network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], names: Sequence[str], labels: FisherLabels = "model"
) -> dict[str, Tensor]:
    """F: for each entry of some parameters the mean over images of E_y[(∂ log p(y|x) / ∂θ)²], in evaluation mode.

    Args:
        network: returns logits.
        batches: normalised images and labels.
        names: of the parameters.
        labels: y from the network's own p(y|x), all classes weighted; or the given label alone.

    Raises:
        InvalidInput: there is no image.
    """
    chosen = set(names)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    varied = {name: value for name, value in parameters.items() if name in chosen}
    fixed = {name: value for name, value in parameters.items() if name not in chosen}
    fixed |= dict(network.named_buffers())

    def log_probability(moved: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, {**fixed, **moved}, (image[None],))[0]
        return logits.log_softmax(-1).gather(0, label[None])[0]

    each = vmap(grad(log_probability), in_dims=(None, 0, 0))  # gradients of every image on its own
    totals = {name: torch.zeros_like(value) for name, value in varied.items()}
    images = 0
    with evaluating(network):
        for inputs, given in batches:
            images += len(given)
            with torch.no_grad():
                probabilities = network(inputs).softmax(-1)
            if labels == "data":
                terms = [(given, torch.ones_like(probabilities[:, 0]))]
            else:
                terms = [(torch.full_like(given, y), probabilities[:, y]) for y in range(probabilities.shape[1])]
            for label, weight in terms:
                for name, gradient in each(varied, inputs, label).items():
                    weighted = gradient.square() * weight.view(-1, *[1] * (gradient.dim() - 1))
                    totals[name] += weighted.sum(0)
    if not images:
        raise InvalidInput("The Fisher information is a mean over images; give one or more.")
    return {name: total / images for name, total in totals.items()}
