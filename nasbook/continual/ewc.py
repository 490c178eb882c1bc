"""Elastic weight consolidation (Kirkpatrick et al. 2017): weights that mattered are held by springs.

After each task the learner notes its weights θ* and how much each matters, the diagonal F of the Fisher information.
Later tasks add ½ λ Σᵢ Fᵢ (θᵢ − θᵢ*)² to their loss (Eq. 3), one such sum for every earlier task. A sum of quadratic
penalties is a quadratic penalty, as the paper notes: with the sum of all F, around the mean of all θ* weighted by F. So
it takes two numbers a weight, however many tasks there were. Classifiers are the tasks' own and need no spring.

Where we differ: the penalty's part of a step is taken implicitly (:func:`pulled`). Some springs are so stiff that
gradient descent swings around their ends: with momentum μ it is stable while rate · λF < 2(1 + μ). At ``quick`` and
λ = 1000, 0.2 % of the weights are beyond that after four tasks. The clipped gradient is then mostly theirs, and new
tasks are learned less well: to 0.90 instead of 0.94. What is minimised is the same.

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
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nasbook.continual.backbone import Backbone
from nasbook.continual.shared_body import SharedBody, SharedBodyConfig
from nasbook.continual.tasks import Task
from nasbook.data import evaluation_batches
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.seeding import generator
from nasbook.training import evaluating

FisherLabels = Literal["model", "data"]

GRADIENTS_AT_ONCE = 2**27
"""Entries of single images' gradients that are held at a time: half a gibibyte in float32."""
LARGEST = 1e30
"""Largest λ, and largest stiffness."""


@dataclass(frozen=True)
class EWCConfig(SharedBodyConfig):
    """Elastic weight consolidation."""

    method: ClassVar[str] = "ewc"

    strength: float = 400.0
    """λ. The paper's for Atari games (the "Fisher multiplier" of its supplement); it gives none for images. With 100
    and 1000 it ends as high at ``quick``, within what divisions of the classes differ by."""
    labels: FisherLabels = "model"
    """Whose labels the Fisher information takes: the network's own distribution, or the data's (empirical Fisher)."""
    images: int | None = None
    """Training images of each task over which it is averaged; None for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= LARGEST:
            raise InvalidInput(f"strength must be at least 0 and at most {LARGEST:g}, got {self.strength}.")
        if self.labels not in ("model", "data"):
            raise unknown_name("labels", self.labels, ("model", "data"))
        if self.images is not None:
            require_positive(images=self.images)

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> EWC:
        return EWC(tasks, self, backbone, seed=seed)


class EWC(SharedBody):
    """Learns with a quadratic penalty for each earlier task.

    Args:
        tasks: in the order in which they come.
        config: of the method.
        backbone: of the body, with one classifier.
        seed: of initial weights, data order and the images of the Fisher information.
    """

    config: EWCConfig

    def __init__(
        self, tasks: Sequence[Task], config: EWCConfig, backbone: Backbone, *, seed: int = 0
    ) -> None:
        self.precision: dict[str, Tensor] = {}
        """Sum of F over the learned tasks, for every parameter of the body by name."""
        self.anchor: dict[str, Tensor] = {}
        """Mean of θ* over the learned tasks, weighted by F."""
        super().__init__(tasks, config, backbone, seed=seed)

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.precision or not self.config.strength:
            return
        assert self.optimizer is not None
        rate = self.optimizer.param_groups[0]["lr"] / (1 - self.config.momentum)
        for name, parameter in self.body_parameters():
            stiffness = self.config.strength * self.precision[name]
            parameter.copy_(pulled(parameter, self.anchor[name], stiffness, rate))

    def end_task(self) -> None:
        super().end_task()
        if self.task + 1 == len(self.tasks):
            return
        data = self.tasks[self.task].data
        count = len(data.train_labels) if self.config.images is None else self.config.images
        drawn = torch.randperm(len(data.train_labels), generator=generator(self.task_seed("fisher")))[:count]
        drawn = drawn.to(data.train_labels.device)
        body = dict(self.body_parameters())
        size = max(1, min(64, GRADIENTS_AT_ONCE // sum(weights.numel() for weights in body.values())))
        batches = evaluation_batches(data.train_images[drawn], data.train_labels[drawn], size, data.mean, data.std)
        found = fisher_information(self.network, batches, list(body), self.config.labels)
        for name, weights in body.items():
            before = self.precision.get(name, torch.zeros_like(weights))
            after = before + found[name]
            share = torch.where(after > 0, found[name] / after, 1)  # a weight without a spring has no anchor
            anchor = self.anchor.get(name, torch.zeros_like(weights))
            self.anchor[name] = anchor.lerp(weights.detach(), share)
            self.precision[name] = after

    @property
    def training_memory(self) -> int:
        return sum(value.numel() for kept in (self.precision, self.anchor) for value in kept.values())

    def method_state(self) -> dict[str, Any]:
        return {**super().method_state(), "precision": dict(self.precision), "anchor": dict(self.anchor)}

    def load_method_state(self, state: dict[str, Any]) -> None:
        super().load_method_state(state)
        self.precision, self.anchor = (
            {name: value.to(self.device) for name, value in state[kept].items()} for kept in ("precision", "anchor")
        )


def pulled(
    weights: Float[Tensor, "..."], anchor: Float[Tensor, "..."], stiffness: Float[Tensor, "..."], rate: float
) -> Float[Tensor, "..."]:
    """Weights after an implicit step down ½ Σᵢ kᵢ (θᵢ − aᵢ)²: by the slope where the step ends, not where it begins.

    That is (θ + η k a) / (1 + η k). It is stable for any stiffness; without one, the weights stay as they are.

    Args:
        weights: θ.
        anchor: a, at which the springs end.
        stiffness: k, at least 0.
        rate: η. After a step of SGD with momentum μ it has to be the learning rate / (1 − μ), which is how far a
            lasting gradient moves the weights in the end: so they rest where the sum of loss and penalty is least.
    """
    stiffness = (rate * stiffness).clamp(max=LARGEST)  # infinity over infinity is no share
    return weights.lerp(anchor, stiffness / (1 + stiffness))


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
