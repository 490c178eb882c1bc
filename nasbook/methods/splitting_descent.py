"""Splitting steepest descent: split the neurons with the most negative least eigenvalues (Liu, Wu & Wang 2019).

Chapter 4, the method that firefly descent generalises: splits only, and directions from the eigenvectors of splitting
matrices. On small networks the matrices are exact; on large ones the Rayleigh quotient is followed without forming
them (Wang et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive
from nasbook.growth import (
    Budget,
    least_eigenpairs,
    rayleigh_quotients,
    rayleigh_step,
    select,
    split,
    splittable,
    splitting_matrices,
)
from nasbook.growth.splitting import SHARPNESS
from nasbook.methods.growth import Growth, GrowthConfig, Result, Situation, SteppedGrowth
from nasbook.training import Batch, evaluating


@dataclass(frozen=True)
class Config(GrowthConfig):
    """Splitting steepest descent."""

    method: ClassVar[str] = "splitting"

    step: float = 0.03
    """ε: how far the two halves of a split neuron are moved apart, each way. On a thin VGG-11 trained on digits, splits
    lowered the loss by nearly all of what ½ε²λ predicts at 0.03, by an eighth of it at 0.1, and raised it at 0.3."""
    sharpness: float = SHARPNESS
    """β of the softplus that gives ReLUs a second derivative."""
    direction_epochs: int = 0
    """0 computes the splitting matrices; more follow the Rayleigh quotients for so many passes over the images."""
    direction_learning_rate: float = 0.01
    """Of Adam on the directions, where the quotients are followed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(step=self.step, sharpness=self.sharpness, direction_learning_rate=self.direction_learning_rate)
        if self.direction_epochs < 0:
            raise InvalidInput(f"direction_epochs must be 0 or more, got {self.direction_epochs}.")

    @property
    def growth_epochs(self) -> int:
        return self.direction_epochs

    def begin(self, situation: Situation) -> Growth:
        return RayleighSplitting(self, situation) if self.direction_epochs else ExactSplitting(self, situation)


class Splitting(Growth):
    """What both ways to the eigenvectors share: which neurons are split."""

    def __init__(self, config: Config, situation: Situation) -> None:
        super().__init__(situation)
        self.config = config

    def split_best(self, values: dict[str, Tensor], vectors: dict[str, Tensor]) -> Result:
        """Splits the neurons with the most negative eigenvalues, as many as the budget has; fewer, if fewer are."""
        network, step = self.situation.network, self.config.step
        neurons = [(name, index) for name, found in values.items() for index in range(len(found))]
        changes = torch.cat(list(values.values())).double().cpu().numpy() * (step**2 / 2)
        chosen = select(changes, [name for name, _ in neurons], Budget(self.config.budget(network)))
        by_width: dict[str, list[int]] = {}
        for number in chosen:
            name, index = neurons[number]
            by_width.setdefault(name, []).append(index)
        if not by_width:  # a local optimum that no split leaves
            return Result(network, self.situation.optimizer, (), 0.0)
        grown = split(network, by_width, vectors, step)
        return Result.of(self.situation, grown, float(changes[chosen].sum()))


class ExactSplitting(Splitting):
    """One growth by exact splitting matrices."""

    def finish(self) -> Result:
        matrices = splitting_matrices(
            self.situation.network, self.situation.batches(), F.cross_entropy, sharpness=self.config.sharpness
        )
        pairs = least_eigenpairs(matrices)
        return self.split_best(pairs.values, pairs.vectors)


class RayleighSplitting(Splitting, SteppedGrowth):
    """One growth by descent of the Rayleigh quotients."""

    def __init__(self, config: Config, situation: Situation) -> None:
        super().__init__(config, situation)
        self.overgrown = splittable(
            situation.network, sharpness=config.sharpness, generator=situation.generator("directions")
        )
        self.optimizer = torch.optim.Adam(self.overgrown.directions(), config.direction_learning_rate)

    def run_step(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        rayleigh_step(self.overgrown, self.optimizer, batch, F.cross_entropy)
        network = self.situation.network  # the over-grown one, with gates at 1, is no network that anyone wants
        with evaluating(network), torch.no_grad():
            logits = network(batch[0])
        return F.cross_entropy(logits, batch[1]), logits

    def finish(self) -> Result:
        quotients = rayleigh_quotients(self.overgrown, self.situation.batches(), F.cross_entropy)
        names = [name for name, gates in self.overgrown.gates.items() if gates.splits]
        values = quotients.split([self.overgrown.gates[name].old for name in names])
        vectors = {name: self.overgrown.split_rows(name) for name in names}
        return self.split_best(dict(zip(names, values, strict=True)), vectors)

    def state_dict(self) -> dict[str, Any]:
        return {"overgrown": self.overgrown.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.overgrown.load_state_dict(state["overgrown"])
        self.optimizer.load_state_dict(state["optimizer"])
