"""Stretchable Cells: operations and topology learned apart (Huang et al., arXiv:2011.09300).

Chapter 2. MiLeNAS or DARTS with a :class:`~nasbook.supernets.TopologyRelaxation`: beside α for the operations, β for
the sets of edges that every node chooses from. The penalty (Eq. 14) keeps nodes from losing their input edges. Search
with as many cells as the found network will have.

The paper's two settings are :data:`DARTS_PAIRS` (its rows "DARTS w/o SC": two output edges a node, bilevel, first
order) and the defaults of :class:`Config` ("MiLeNAS-SC": any number of output edges, mixed level).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nasbook.data import ImageData
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import DARTS_SPACE, ZERO, Space
from nasbook.methods import milenas
from nasbook.methods.search import SearchReport
from nasbook.supernets import AnyOutputEdges, InputEdges, OutputEdges, TopologyRelaxation, output_edge_space

TopologyName = Literal["any-output-edges", "output-edges", "input-edges"]


@dataclass(frozen=True)
class Config(milenas.Config):
    """How Stretchable Cells search. Defaults are the paper's MiLeNAS-SC-L8 on CIFAR-10.

    The settings of α and β stand in a supplement that is not public. Ours are DARTS' for α; for β they are DARTS'
    learning rate, but no decay, since decay kept β near its start in our first searches (Chapter 2).
    """

    topology: TopologyName = "any-output-edges"
    """What a node chooses: any number of its output edges (Eq. 11), or a fixed number of output or input edges."""
    edges_per_node: int = 2
    """How many edges a node chooses where the number is fixed."""
    empty_choice: bool = True
    """Whether a node may choose no edge, where the number is not fixed. The text allows it; Eq. 13 as printed not."""
    penalty_weight: float = 10.0
    """λ of Eq. 15."""
    topology_learning_rate: float | None = None
    """Of Adam on β; None takes that of α."""
    topology_weight_decay: float = 0.0
    """Of Adam on β, as L2. The gradient of one of 2^n β's has its small probability as a factor, decay has not."""
    topology_share: float = 0.0
    """Share of the training images for β alone; 0 lets α and β share all that are not for w. On ImageNet 1/3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(edges_per_node=self.edges_per_node)
        if self.topology not in TOPOLOGIES:
            raise unknown_name("topology", self.topology, TOPOLOGIES)
        for name in ("penalty_weight", "topology_weight_decay"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.topology_learning_rate is not None:
            require_positive(topology_learning_rate=self.topology_learning_rate)
        if not 0 <= self.topology_share < 1 - self.train_share:
            raise InvalidInput(
                f"topology_share must be at least 0 and leave images for the operations, below {1 - self.train_share}; "
                f"got {self.topology_share}."
            )


TOPOLOGIES: dict[str, Callable[[Space, Config], TopologyRelaxation]] = {
    "any-output-edges": lambda space, config: AnyOutputEdges(
        space, empty=config.empty_choice, penalty_weight=config.penalty_weight
    ),
    "output-edges": lambda space, config: OutputEdges(
        space, config.edges_per_node, penalty_weight=config.penalty_weight
    ),
    "input-edges": lambda space, config: InputEdges(space, config.edges_per_node, penalty_weight=config.penalty_weight),
}
"""The relaxations by name."""

STRETCHABLE_SPACE = Space(tuple(name for name in DARTS_SPACE.operations if name != ZERO), nodes=6)
"""The paper's space: DARTS' operations without zero, and nine nodes of which six are intermediate."""

DARTS_PAIRS = Config(train_weight=0.0, topology="output-edges")
"""DARTS, first order, with two output edges a node: "DARTS w/o SC" in the paper's tables.

The paper has DARTS' four intermediate nodes there: give the search ``DARTS_SPACE``, as the default space has six.
"""

IMAGENET = Config(stem="imagenet", train_share=1 / 3, topology_share=1 / 3)
"""The search on ImageNet (MiLeNAS-SC-L8): three equal shares of 3 % of the images.

The paper has four intermediate nodes there: give the search ``DARTS_SPACE``, as the default space has six.
"""


@dataclass(frozen=True)
class Report(SearchReport):
    """One epoch of a search for operations and topology."""

    edge_probabilities: dict[str, Float[Tensor, " edges"]]
    """How likely each edge is chosen (the merged probabilities without their factor), by the kind of cell."""
    penalty: float
    """r(β) of Eq. 14, over all kinds of cell: 0 when every node has an input edge."""


class Search(milenas.Search):
    """Stretchable Cells on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments.

    The space is taken without the zero operation, since β says which edges there are, without edges that no node can
    choose, and with the configuration's ``edges_per_node``.
    """

    method: ClassVar[str] = "stretchable"
    report_type: ClassVar[type[Report]] = Report
    evaluates_as_deep: ClassVar[bool] = True
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = STRETCHABLE_SPACE, seed: int = 0) -> None:
        space = replace(space, operations=space.choices, edges_per_node=config.edges_per_node)
        if config.topology == "output-edges":
            space = output_edge_space(space, config.edges_per_node)
        super().__init__(config, data, space, seed)

    def shares(self) -> dict[str, float]:
        train, topology = self.config.train_share, self.config.topology_share
        shares = {"train": train, "validation": 1 - train - topology}
        return {**shares, "topology": topology} if topology else shares

    def build_relaxation(self, space: Space) -> TopologyRelaxation:
        return TOPOLOGIES[self.config.topology](space, self.config)

    def topologies(self) -> dict[str, TopologyRelaxation]:
        """The relaxation of every kind of cell."""
        relaxations = dict(self.network.relaxations.items())
        return {kind: module for kind, module in relaxations.items() if isinstance(module, TopologyRelaxation)}

    def architecture_groups(self) -> list[dict[str, Any]]:
        """α, then β with a learning rate and a decay of its own."""
        rate = self.config.topology_learning_rate
        relaxations = self.topologies()
        return [
            {"params": [relaxation.alpha for relaxation in relaxations.values()]},
            {
                "params": [relaxation.beta for relaxation in relaxations.values()],
                "lr": self.config.architecture_learning_rate if rate is None else rate,
                "weight_decay": self.config.topology_weight_decay,
            },
        ]

    @torch.no_grad()
    def report(self, means: dict[str, float]) -> Report:
        common = super().report(means)
        topologies = self.topologies()
        return Report(
            **{field.name: getattr(common, field.name) for field in fields(common)},
            edge_probabilities={kind: topology.edge_probabilities().cpu() for kind, topology in topologies.items()},
            penalty=sum(float(topology.invalidity()) for topology in topologies.values()),
        )
