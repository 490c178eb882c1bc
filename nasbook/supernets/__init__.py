"""Supernets: networks that hold every candidate, and the relaxations that weigh them (Chapters 1 to 3)."""

from nasbook.supernets.cells import MixedOperation, SearchCell, SharedCell
from nasbook.supernets.fused import FusedCell
from nasbook.supernets.partial import (
    PARTIAL_ENGINES,
    EdgeNormalizedRelaxation,
    FusedPartialCell,
    PartialCell,
    PartialMixedOperation,
    PartialNetwork,
    require_partition,
)
from nasbook.supernets.relaxations import Relaxation, SoftmaxRelaxation, connected_cell, strongest_edges
from nasbook.supernets.search_network import (
    ENGINE_CELLS,
    ENGINES,
    EngineCells,
    EngineName,
    SearchNetwork,
    engine_positions,
)
from nasbook.supernets.sparse import AnnealedSoftmax, SparseRelaxation, strongest_connections
from nasbook.supernets.topology import (
    AnyOutputEdges,
    InputEdges,
    OutputEdges,
    StrongestOutputs,
    TopologyRelaxation,
    output_edge_space,
)

__all__ = [
    "ENGINES",
    "ENGINE_CELLS",
    "PARTIAL_ENGINES",
    "AnnealedSoftmax",
    "AnyOutputEdges",
    "EdgeNormalizedRelaxation",
    "EngineCells",
    "EngineName",
    "FusedCell",
    "FusedPartialCell",
    "InputEdges",
    "MixedOperation",
    "OutputEdges",
    "PartialCell",
    "PartialMixedOperation",
    "PartialNetwork",
    "Relaxation",
    "SearchCell",
    "SearchNetwork",
    "SharedCell",
    "SoftmaxRelaxation",
    "SparseRelaxation",
    "StrongestOutputs",
    "TopologyRelaxation",
    "connected_cell",
    "engine_positions",
    "output_edge_space",
    "require_partition",
    "strongest_connections",
    "strongest_edges",
]
