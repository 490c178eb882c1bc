"""Supernets: networks that hold every candidate, and the relaxations that weigh them (Chapter 1)."""

from nasbook.supernets.cells import MixedOperation, SearchCell
from nasbook.supernets.fused import FusedCell
from nasbook.supernets.relaxations import Relaxation, SoftmaxRelaxation, strongest_edges
from nasbook.supernets.search_network import ENGINES, EngineName, SearchNetwork

__all__ = [
    "ENGINES",
    "EngineName",
    "FusedCell",
    "MixedOperation",
    "Relaxation",
    "SearchCell",
    "SearchNetwork",
    "SoftmaxRelaxation",
    "strongest_edges",
]
