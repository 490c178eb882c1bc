"""DARTS: differentiable architecture search (Liu, Simonyan & Yang, ICLR 2019).

Chapter 1. The machine as it is: a softmax over the candidates (Eq. 2), a bilevel problem (Eq. 3, 4) whose
inner solution is one gradient step (Eq. 6), first order or second order (Eq. 7), and the two strongest
edges of every node at the end (§2.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from nasbook.data import ImageData
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.methods.search import GradientSearch
from nasbook.networks import StemName
from nasbook.supernets import EngineName, Relaxation, SearchNetwork, SoftmaxRelaxation
from nasbook.training import (
    NORMALIZE_BY,
    BilevelUpdate,
    FiniteDifference,
    FirstOrder,
    NormalizeBy,
    Objective,
    SecondOrder,
    optimizer_form,
)

UPDATES: dict[str, type[BilevelUpdate]] = {
    "first-order": FirstOrder,
    "second-order": SecondOrder,
    "finite-difference": FiniteDifference,
}
"""The three forms of the architecture gradient, by name."""


@dataclass(frozen=True)
class Config:
    """How DARTS searches. Defaults are the paper's for CIFAR-10 (appendix A.1) or, where it is silent, the code's."""

    epochs: int = 50
    """Passes over the training share."""
    batch_size: int = 64
    """Images a step, of each share, over all processes."""
    channels: int = 16
    """Channels of the first cell's nodes, C."""
    cells: int = 8
    """Number of cells, L."""
    stem: StemName = "cifar"
    """cifar keeps the resolution, imagenet divides it by 8."""
    order: Literal["first-order", "second-order", "finite-difference"] = "second-order"
    """Form of the architecture gradient: ξ = 0, the exact product, or DARTS' approximation of it."""
    learning_rate: float = 0.025
    """Of the weights' SGD at the start; also ξ, as it anneals."""
    final_learning_rate: float = 0.001
    """Of the weights' SGD at the end of the cosine."""
    momentum: float = 0.9
    """Of the weights' SGD."""
    weight_decay: float = 3e-4
    """Of the weights' SGD, as L2."""
    clip: float = 5.0
    """Largest norm of the weights' gradient."""
    architecture_learning_rate: float = 3e-4
    """Of Adam on α; its β are (0.5, 0.999)."""
    architecture_weight_decay: float = 1e-3
    """Of Adam on α, as L2."""
    train_share: float = 0.5
    """Share of the training images for w; the rest is for α."""
    engine: EngineName = "fused"
    """How the supernet is computed, fused or readable: the same values up to rounding, at different speed."""
    recompute_cells: int = 0
    """Cells, from the first on, that are computed again in the backward pass, to save memory."""
    normalize_by: NormalizeBy = "batch"
    """What batch norms normalise by where several processes search: the whole batch, which gives the step of one
    process; or each by its own part, which keeps the fused engine and is faster, but another search."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs,
            batch_size=self.batch_size,
            channels=self.channels,
            cells=self.cells,
            learning_rate=self.learning_rate,
            clip=self.clip,
            architecture_learning_rate=self.architecture_learning_rate,
        )
        if self.batch_size < 2:
            raise InvalidInput("batch_size must be at least 2: batch norm compares the images of a step.")
        for name in ("final_learning_rate", "momentum", "weight_decay", "architecture_weight_decay"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 < self.train_share < 1:
            raise InvalidInput(f"train_share must be between 0 and 1, got {self.train_share}.")
        if self.order not in UPDATES:
            raise unknown_name("order", self.order, UPDATES)
        if self.normalize_by not in NORMALIZE_BY:
            raise unknown_name("normalize_by", self.normalize_by, NORMALIZE_BY)


class Search(GradientSearch):
    """DARTS on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments.

    A method that changes one piece overrides what gives it: :meth:`build_relaxation`, :meth:`network_options`,
    :meth:`objective` or :meth:`architecture_groups`.
    """

    method: ClassVar[str] = "darts"
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = DARTS_SPACE, seed: int = 0) -> None:
        super().__init__(config, data, space, seed)

    def build_relaxation(self, space: Space) -> Relaxation:
        """The relaxation of one kind of cell."""
        return SoftmaxRelaxation(space)

    def objective(self) -> Objective:
        """What the architecture minimises: the validation loss (Eq. 3)."""
        return Objective()

    def architecture_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the architecture's optimiser."""
        return [{"params": list(self.network.architecture())}]

    def network_options(self) -> dict[str, Any]:
        """The supernet's options besides its sizes."""
        return {
            "in_channels": self.data.channels,
            "stem": self.config.stem,
            "relaxation": self.build_relaxation,
            "engine": self.config.engine,
            "recompute_cells": self.config.recompute_cells,
        }

    def build_network(self) -> SearchNetwork:
        config = self.config
        return SearchNetwork(self.space, config.channels, config.cells, self.data.classes, **self.network_options())

    def build_update(self) -> BilevelUpdate:
        return build_update(self.config, self.network, self.architecture_groups(), self.objective())


def build_update(
    config: Config, network: SearchNetwork, architecture_groups: list[dict[str, Any]], objective: Objective
) -> BilevelUpdate:
    """DARTS' update of a supernet, with fresh optimisers: SGD for the weights, Adam for α (appendix A.1)."""
    form = optimizer_form(next(network.parameters()).device)
    weight_optimizer = torch.optim.SGD(
        network.weights(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, **form
    )
    architecture_optimizer = torch.optim.Adam(
        architecture_groups,
        config.architecture_learning_rate,
        betas=(0.5, 0.999),
        weight_decay=config.architecture_weight_decay,
        **form,
    )
    return UPDATES[config.order](
        network, weight_optimizer, architecture_optimizer, clip=config.clip, objective=objective
    )
