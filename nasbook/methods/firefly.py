"""Firefly neural architecture descent: grow what lowers the loss most (Wu, Liu, Stone & Liu, NeurIPS 2020).

Chapter 4. A growth over-grows the network with all splits, new neurons and new layers (§2.2, §2.3), moves their gates
and directions for an epoch under the constraints (Eq. 4), and keeps what promises most by integrated gradients (Eq. 5).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.growth import (
    Budget,
    CandidateDescent,
    OvergrownNetwork,
    integrated_gradients,
    select,
    select_exactly,
    start,
    step_one,
    step_two,
    with_empty_layers,
    without_empty_layers,
)
from nasbook.growth.firefly import MIDPOINTS
from nasbook.growth.overgrown_layers import OvergrownNorm
from nasbook.methods.growth import GrowthConfig, Result, Situation, SteppedGrowth
from nasbook.networks import Growable
from nasbook.operations.batch_norms import batch_norms, kept_statistics
from nasbook.training import Batch

__all__ = ["SELECTIONS", "Config", "FireflyGrowth"]

SELECTIONS = {"greedy": select, "exact": select_exactly}
"""How candidates are kept under a budget, by name: as the paper does, or the optimum under both budgets."""


@dataclass(frozen=True)
class Config(GrowthConfig):
    """Firefly descent. Defaults are the paper's for width (B.2); what it leaves open is said."""

    method: ClassVar[str] = "firefly"

    splits: bool = True
    """Whether existing neurons may split."""
    new_neurons: int = 50
    """m': new neurons that each width may choose from."""
    new_layers: int = 0
    """Empty layers at each place that may become layers; the paper's experiment on depth has 11."""
    layer_neurons: int = 20
    """m' of each of those layers."""
    layer_budget: int | None = None
    """η₁: new layers that a growth may add; None for any number."""
    layer_share: Literal["apart", "joint"] = "apart"
    """Whether neurons of new layers come on top of the rate, which is then that of existing neurons (B.2), up to m' in
    each layer; or out of one budget for all neurons (§2.3)."""
    least_neurons: int = 2
    """Neurons without which a new layer is not kept (B.2)."""
    radius: float = 0.01
    """ϵ, the largest gate. Not in the paper. On a thin VGG-11 trained on digits, the kept candidates lowered the loss
    by four fifths of what Eq. 5 predicts at 0.01, by under a half at 0.03, and raised it at 0.1."""
    direction_epochs: int = 1
    """Passes over the training images in step one."""
    direction_rate: float = 0.1
    """Length of the first step of a direction in step one, in units of its largest norm, and of a gate in units of ϵ;
    see :class:`~nasbook.growth.CandidateDescent`. The paper says "gradient descent"."""
    points: int = MIDPOINTS
    """n: points of the integrated gradient."""
    scope: Literal["network", "width"] = "network"
    """Whether the budget is one for the whole network, or each width that has neurons has the same rate."""
    selection: Literal["greedy", "exact"] = "greedy"
    """How candidates are kept: sorted, as the paper does, or the optimum under both budgets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            radius=self.radius,
            direction_epochs=self.direction_epochs,
            direction_rate=self.direction_rate,
            points=self.points,
            least_neurons=self.least_neurons,
        )
        if min(self.new_neurons, self.new_layers, self.layer_neurons) < 0:
            raise InvalidInput("new_neurons, new_layers and layer_neurons must be 0 or more.")
        if self.layer_budget is not None and self.layer_budget < 0:
            raise InvalidInput(f"layer_budget must be 0 or more, got {self.layer_budget}.")
        if not (self.splits or self.new_neurons or (self.new_layers and self.layer_neurons)):
            raise InvalidInput("There is nothing to choose from: allow splits, new_neurons or new_layers.")
        if self.scope not in ("network", "width"):
            raise unknown_name("scope", self.scope, ("network", "width"))
        if self.layer_share not in ("apart", "joint"):
            raise unknown_name("layer_share", self.layer_share, ("apart", "joint"))
        if self.selection not in SELECTIONS:
            raise unknown_name("selection", self.selection, SELECTIONS)

    @property
    def growth_epochs(self) -> int:
        return self.direction_epochs

    def begin(self, situation: Situation) -> FireflyGrowth:
        return FireflyGrowth(self, situation)

    def limits(self, network: Growable, widths: Collection[str] | None = None) -> Budget:
        """η₀ and η₁ for a growth of this network, or of some of its widths alone."""
        there = {name: count for name, count in network.neurons().items() if widths is None or name in widths}
        neurons = self.budget(network) if widths is None else max(1, round(self.rate * sum(there.values())))
        per_width: dict[Any, int] = {}
        if self.scope == "width":
            per_width = {name: max(1, round(self.rate * count)) for name, count in there.items() if count}
            neurons = sum(per_width.values())
        in_new_layers = None
        if self.layer_share == "apart":
            layers = self.new_layers * len(network.declare().places)
            if self.layer_budget is not None:
                layers = min(layers, self.layer_budget)
            in_new_layers = layers * self.layer_neurons
        return Budget(neurons, self.layer_budget, self.least_neurons, per_width, in_new_layers)


class FireflyGrowth(SteppedGrowth):
    """One growth by firefly descent.

    Args:
        config: how it grows.
        situation: what grows.
        widths: names of the widths that may grow, besides those of new layers; None for all.
    """

    def __init__(self, config: Config, situation: Situation, widths: Collection[str] | None = None) -> None:
        super().__init__(situation)
        self.config = config
        self.widths = widths
        self.prepared = with_empty_layers(situation.network, config.new_layers)
        neurons = {
            name: count
            for name, count in self.prepared.network.neurons().items()
            if widths is None or name in widths or not count
        }
        self.overgrown = OvergrownNetwork(
            self.prepared.network,
            splits=dict.fromkeys(neurons, config.splits),
            new={name: config.new_neurons if count else config.layer_neurons for name, count in neurons.items()},
            generator=situation.generator("directions"),
        )
        growing = {id(module.norm) for module in self.overgrown.modules() if isinstance(module, OvergrownNorm)}
        self._still = [norm for norm in batch_norms(self.overgrown) if id(norm) not in growing]
        start(self.overgrown, config.radius)
        self.optimizer = CandidateDescent(self.overgrown, config.radius, config.direction_rate)

    def run_step(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        self.overgrown.train()
        # What stands around no growing width keeps its statistics too: scores are those of the network as it is.
        with kept_statistics(self._still):
            return step_one(self.overgrown, self.optimizer, batch, F.cross_entropy, self.config.radius)

    def finish(self) -> Result:
        scores = integrated_gradients(self.overgrown, self.situation.batches(), F.cross_entropy, self.config.points)
        limits = self.config.limits(self.situation.network, self.widths)
        choose = SELECTIONS[self.config.selection]
        descent = step_two(self.overgrown, scores, limits, self.config.radius, choose)
        grown = self.prepared.then(descent.grown)
        return Result.of(self.situation, grown.then(without_empty_layers(grown.network)), descent.predicted)

    def state_dict(self) -> dict[str, Any]:
        return {"overgrown": self.overgrown.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.overgrown.load_state_dict(state["overgrown"])
        self.optimizer.load_state_dict(state["optimizer"])
