"""Candidate operations: what may stand on an edge of a cell (Chapter 1)."""

from nasbook.operations.convolutional import (
    DilatedConvolution,
    FactorizedReduction,
    Pool,
    ReLUConvolution,
    SeparableConvolution,
    SeparatedKernels,
    Zero,
)
from nasbook.operations.registry import Operation, build_operation, get_operation, list_operations

__all__ = [
    "DilatedConvolution",
    "FactorizedReduction",
    "Operation",
    "Pool",
    "ReLUConvolution",
    "SeparableConvolution",
    "SeparatedKernels",
    "Zero",
    "build_operation",
    "get_operation",
    "list_operations",
]
