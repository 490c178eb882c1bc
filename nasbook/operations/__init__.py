"""Candidate operations: what may stand on an edge of a cell (Chapters 1, 3, 5 and 6)."""

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
from nasbook.operations.recurrent import (
    DARTS_RECURRENT_OPERATIONS,
    TWO_TO_ONE_OPERATIONS,
    build_recurrent_operation,
    build_two_to_one_operation,
    copy_name,
    operation_of,
)
from nasbook.operations.registry import Operation, build_operation, get_operation, list_operations

__all__ = [
    "CONSTRAINTS",
    "DARTS_RECURRENT_OPERATIONS",
    "MORPHISMS",
    "TWO_TO_ONE_OPERATIONS",
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
    "build_recurrent_operation",
    "build_two_to_one_operation",
    "configuration_of",
    "copy_name",
    "get_operation",
    "is_morphable",
    "list_operations",
    "morphisms_of",
    "obtainable",
    "operation_of",
]
