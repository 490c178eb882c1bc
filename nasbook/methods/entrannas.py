"""EnTranNAS: Engine-cells search, Transit-cells follow (Yang et al., CVPR 2021).

Chapter 3. Differs from DARTS (:mod:`nasbook.methods.darts`) in four places:

1. Only some cells hold all candidates; the others run the derived cell of this very step (§2.2).
2. The softmax has a temperature that falls from epoch to epoch (Eq. 5).
3. An operation belongs to its source node, and its feature serves all later nodes (§2.3, Eq. 6).
4. Candidates are four times narrower than their nodes (§2.5).

Learning the topology too is :mod:`nasbook.methods.entrannas_dst`. No official code exists. What the paper leaves open,
and what we do:

* The cell is derived anew in every forward pass, so that it also changes within an epoch.
* A Transit-cell's operations count once each, without coefficients (Eq. 6, its second case), and have batch norms like
  all others. What a pass leaves out is not touched: no gradient, no weight decay, no momentum, no batch statistics.
* The rule Ω is DARTS', two edges a node with one operation each. To the letter, Eq. 4 keeps the two strongest
  connections, which may be two operations of one edge: ``derivation="connections"``.
* The bottleneck's convolutions are ReLU, 1×1 convolution, batch norm without affine parameters. There is one in front
  of all that leaves a node (the features of §2.3 are then shared behind it), and one behind each node's sum. Derived
  networks have no bottleneck.
* First order, as Table 3 starts from DARTS of first order, and gradients clipped as in DARTS' code.
* The standard space has 7 operations, so zero is none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from nasbook import training
from nasbook.data import ImageData
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import DARTS_SPACE, CellGenotype, Space
from nasbook.methods import darts
from nasbook.methods.search import SearchReport
from nasbook.supernets import (
    ENGINE_CELLS,
    AnnealedSoftmax,
    EngineCells,
    strongest_connections,
    strongest_edges,
)
from nasbook.training import evaluate

__all__ = [
    "DERIVATIONS",
    "EXTENDED_SPACE",
    "IMAGENET",
    "IMAGENET_EVALUATION",
    "STANDARD_SPACE",
    "Config",
    "Report",
    "Search",
]

DERIVATIONS: dict[str, Callable[[Float[Tensor, "edges operations"], Space], CellGenotype]] = {
    "edges": strongest_edges,
    "connections": strongest_connections,
}
"""The rule Ω of Eq. 4 by name: the strongest edges with one operation each, or the strongest connections."""

STANDARD_SPACE = Space(DARTS_SPACE.choices)
"""The paper's standard space: DARTS' seven operations besides zero (§4.2)."""

EXTENDED_SPACE = Space(
    (*DARTS_SPACE.choices, "conv_1x1", "conv_3x3", "conv_1x3_3x1", "conv_1x5_5x1", "conv_1x7_7x1")
)
"""The paper's extended space: twelve operations (§4.2)."""


@dataclass(frozen=True)
class Config(darts.Config):
    """How EnTranNAS searches. Defaults are the paper's for CIFAR-10 (§4.2) or, where it is silent, DARTS'.

    The paper runs five searches and takes the cells with the best validation accuracy.
    """

    batch_size: int = 512
    """Images a step, of each share, over all processes."""
    order: Literal["first-order", "second-order", "finite-difference"] = "first-order"
    """Form of the architecture gradient: ξ = 0, the exact product, or DARTS' approximation of it."""
    learning_rate: float = 0.2
    """Of the weights' SGD at the start."""
    final_learning_rate: float = 0.0
    """Of the weights' SGD at the end of the cosine."""
    architecture_learning_rate: float = 6e-4
    """Of Adam on α (and β); its own β are (0.5, 0.999)."""
    engine_cells: EngineCells = "first"
    """Which cells of each kind hold all candidates: all, the first half, the last or the first."""
    feature_sharing: bool = True
    """Whether an operation belongs to its source node and is computed once for all later nodes (Eq. 6)."""
    bottleneck: int = 4
    """By how much candidates are narrower than their nodes; 1 for no bottleneck."""
    temperature: float = 5.0
    """τ of Eq. 5 in the first epoch."""
    temperature_decay: float = 0.923
    """What τ is multiplied by after every epoch."""
    derivation: Literal["edges", "connections"] = "edges"
    """What a node keeps: its strongest edges with one operation each (DARTS), or its strongest connections (Eq. 4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature, bottleneck=self.bottleneck)
        if not 0 < self.temperature_decay <= 1:
            raise InvalidInput(f"temperature_decay must be above 0 and at most 1, got {self.temperature_decay}.")
        if self.channels % self.bottleneck or (self.bottleneck > 1 and self.channels < 2 * self.bottleneck):
            raise InvalidInput(
                f"bottleneck={self.bottleneck} must divide channels={self.channels} and leave at least 2 of them."
            )
        if self.engine_cells not in ENGINE_CELLS:
            raise unknown_name("placement of Engine-cells", self.engine_cells, ENGINE_CELLS)
        if self.derivation not in DERIVATIONS:
            raise unknown_name("derivation", self.derivation, DERIVATIONS)


IMAGENET = Config(
    stem="imagenet", batch_size=1024, learning_rate=0.5, architecture_learning_rate=6e-3, train_share=0.8
)
"""The search on ImageNet (§4.3): three convolutions of stride 2 in front, 8 cells of 16 channels, 50 epochs.

The paper does not say how many images it searches on. It follows PC-DARTS elsewhere, which takes 10 % for the weights
and 2.5 % for the architecture: ``--share 0.125`` on the command line, divided by ``train_share``.
"""


IMAGENET_EVALUATION = replace(training.IMAGENET_EVALUATION, batch_size=1024, learning_rate=0.5, decay="linear")
"""How a found cell's network trains on ImageNet (§4.3): 250 epochs, label smoothing, an auxiliary head.

With 14 cells and 48 channels at first: ``DerivedNetwork(genotype, 48, 14, 1000, auxiliary=True, stem="imagenet")``. On
CIFAR-10 it is DARTS' setting, :data:`nasbook.training.CIFAR10_EVALUATION`, with 20 cells and 36 channels.
"""


@dataclass(frozen=True)
class Report(SearchReport):
    """One epoch of EnTranNAS: the supernet's numbers, and the child-net's on the same images (Table 1)."""

    temperature: float
    """τ in this epoch."""
    child_loss: float
    """Cross entropy of the child-net: the derived cell in every place, with the supernet's weights."""
    child_accuracy: float
    """Share of validation images that the child-net classifies right, 0..1."""
    weighted_child_accuracy: float
    """The same where the operations of Engine-cells keep their coefficients."""


class Search(darts.Search):
    """EnTranNAS on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments.

    A zero operation is left out of the space: the standard space has none.
    """

    method: ClassVar[str] = "entrannas"
    report_type: ClassVar[type[Report]] = Report
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = STANDARD_SPACE, seed: int = 0) -> None:
        super().__init__(config, data, replace(space, operations=space.choices), seed)

    def build_relaxation(self, space: Space) -> AnnealedSoftmax:
        return AnnealedSoftmax(space, self.config.temperature, DERIVATIONS[self.config.derivation])

    def network_options(self) -> dict[str, Any]:
        return {
            **super().network_options(),
            "engine_cells": self.config.engine_cells,
            "feature_sharing": self.config.feature_sharing,
            "bottleneck": self.config.bottleneck,
        }

    @property
    def temperature(self) -> float:
        """τ of the current epoch; of the last one when all are done, so that the cells stay those it ended with."""
        return self.config.temperature * self.config.temperature_decay ** min(self.epoch, self.total_epochs - 1)

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self._set_temperature()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._set_temperature()

    def _set_temperature(self) -> None:
        for relaxation in self.network.relaxations.values():
            assert isinstance(relaxation, AnnealedSoftmax)  # for the type checker: ModuleDict forgets
            relaxation.temperature = self.temperature

    def report(self, means: dict[str, float]) -> Report:
        common = super().report(means)
        held_out = self.loaders[1].images, self.loaders[1].labels, self.data
        with self.network.child():
            child_loss, child_accuracy = evaluate(self.network, *held_out)
        weighted = common.validation_accuracy  # of a sparse supernet: it is its weighted child-net
        if not all(relaxation.sparse for relaxation in self.network.relaxations.values()):
            with self.network.child(weighted=True):
                _, weighted = evaluate(self.network, *held_out)
        return Report(
            **{field.name: getattr(common, field.name) for field in fields(common)},
            temperature=self.temperature,
            child_loss=child_loss,
            child_accuracy=child_accuracy,
            weighted_child_accuracy=weighted,
        )
