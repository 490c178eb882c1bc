"""EnTranNAS-DST: differentiable search for topology (Yang et al., CVPR 2021, §2.4).

Chapter 3. EnTranNAS (:mod:`nasbook.methods.entrannas`) with another relaxation, whose coefficients reach zero
(:class:`~nasbook.supernets.SparseRelaxation`, Eq. 7-10), so that the derived cell is what is left of the Engine-cell;
and with a penalty on the thresholds (Eq. 11). A node keeps any number of connections, an edge any number of operations.

What the paper leaves open, and what we do: β starts at 0, so that t = 1/2 and every connection is kept at the start.
The penalties of the two kinds of cell are added. The mean of Eq. 11 is over the intermediate nodes, since the second
input node, which "j = 2, …, n" counts, has no connections. An Engine-cell does not compute connections that are zero,
as a Transit-cell does not, so that their weights wait untouched too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nasbook.data import ImageData
from nasbook.errors import InvalidInput
from nasbook.genotypes import Space
from nasbook.methods import entrannas
from nasbook.methods.entrannas import STANDARD_SPACE
from nasbook.supernets import SparseRelaxation


@dataclass(frozen=True)
class Config(entrannas.Config):
    """How EnTranNAS-DST searches: EnTranNAS' settings, and those of the thresholds. ``derivation`` has no effect."""

    penalty_weight: float = 0.1
    """λ of Eq. 11: a larger one drops more connections (Table 4)."""
    initial_beta: float = 0.0
    """β of every node at the start; t is its sigmoid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty_weight >= 0:
            raise InvalidInput(f"penalty_weight must be at least 0, got {self.penalty_weight}.")
        if not math.isfinite(self.initial_beta):
            raise InvalidInput(f"initial_beta must be finite, got {self.initial_beta}.")
        if self.derivation != "edges":
            raise InvalidInput("derivation has no effect here: EnTranNAS-DST keeps what is not zero. Leave it out.")


IMAGENET = Config(
    stem="imagenet",
    batch_size=1024,
    learning_rate=0.5,
    architecture_learning_rate=6e-3,
    temperature=1.0,
    temperature_decay=0.9,
    train_share=0.8,
    penalty_weight=0.2,
)
"""The search on ImageNet (§4.3) that gave the paper's best network; for its data see
:data:`nasbook.methods.entrannas.IMAGENET`."""


@dataclass(frozen=True)
class Report(entrannas.Report):
    """One epoch of EnTranNAS-DST."""

    thresholds: dict[str, Float[Tensor, " nodes"]]
    """t of every intermediate node, by the kind of cell."""


class Search(entrannas.Search):
    """EnTranNAS-DST on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments."""

    method: ClassVar[str] = "entrannas-dst"
    report_type: ClassVar[type[Report]] = Report
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = STANDARD_SPACE, seed: int = 0) -> None:
        super().__init__(config, data, space, seed)

    def build_relaxation(self, space: Space) -> SparseRelaxation:
        return SparseRelaxation(
            space,
            self.config.temperature,
            penalty_weight=self.config.penalty_weight,
            beta=self.config.initial_beta,
        )

    @torch.no_grad()
    def report(self, means: dict[str, float]) -> Report:
        common = super().report(means)
        thresholds = {}
        for kind, relaxation in self.network.relaxations.items():
            assert isinstance(relaxation, SparseRelaxation)  # for the type checker: ModuleDict forgets
            thresholds[kind] = relaxation.thresholds().cpu()
        return Report(
            **{field.name: getattr(common, field.name) for field in fields(common)}, thresholds=thresholds
        )
