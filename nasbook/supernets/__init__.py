"""Supernets: networks that hold every candidate, and the relaxations that weigh them (Chapters 1 and 2)."""

from nasbook.supernets.cells import MixedOperation, SearchCell
from nasbook.supernets.fused import FusedCell
from nasbook.supernets.relaxations import Relaxation, SoftmaxRelaxation, connected_cell, strongest_edges
from nasbook.supernets.search_network import ENGINES, EngineName, SearchNetwork
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
    "AnyOutputEdges",
    "EngineName",
    "FusedCell",
    "InputEdges",
    "MixedOperation",
    "OutputEdges",
    "Relaxation",
    "SearchCell",
    "SearchNetwork",
    "SoftmaxRelaxation",
    "StrongestOutputs",
    "TopologyRelaxation",
    "connected_cell",
    "output_edge_space",
    "strongest_edges",
]
