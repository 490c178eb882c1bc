"""Candidate operations: what may stand on an edge of a cell (Chapters 1, 3 and 5)."""

from nasbook.operations.convolutional import (
    DilatedConvolution,
    FactorizedReduction,
    Pool,
    ReLUConvolution,
    SeparableConvolution,
    SeparatedKernels,
    Zero,
)
from nasbook.operations.morphable import (
    CONSTRAINTS,
    MORPHISMS,
    Configuration,
    Constraints,
    MorphableConvolution,
    configuration_of,
    is_morphable,
    morphisms_of,
    obtainable,
)
from nasbook.operations.registry import Operation, build_operation, get_operation, list_operations

__all__ = [
    "CONSTRAINTS",
    "MORPHISMS",
    "Configuration",
    "Constraints",
    "DilatedConvolution",
    "FactorizedReduction",
    "MorphableConvolution",
    "Operation",
    "Pool",
    "ReLUConvolution",
    "SeparableConvolution",
    "SeparatedKernels",
    "Zero",
    "build_operation",
    "configuration_of",
    "get_operation",
    "is_morphable",
    "list_operations",
    "morphisms_of",
    "obtainable",
]
