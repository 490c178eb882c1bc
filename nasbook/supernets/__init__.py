"""Supernets: networks that hold every candidate, and the relaxations that weigh them (Chapters 1 to 3)."""

from nasbook.supernets.cells import MixedOperation, SearchCell, SharedCell
from nasbook.supernets.fused import FusedCell
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
    "AnnealedSoftmax",
    "AnyOutputEdges",
    "EngineCells",
    "EngineName",
    "FusedCell",
    "InputEdges",
    "MixedOperation",
    "OutputEdges",
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
    "strongest_connections",
    "strongest_edges",
]
