"""Discrete networks: what a genotype becomes (Chapter 1)."""

from nasbook.networks.derived import (
    AuxiliaryHead,
    AuxiliaryOutput,
    DerivedCell,
    DerivedNetwork,
    DropPath,
    set_drop_path,
)
from nasbook.networks.sizing import channels_for, parameters_of
from nasbook.networks.stacking import (
    CellPlacement,
    CifarStem,
    ImageNetStem,
    StemName,
    build_stem,
    reduction_positions,
    stack_cells,
)

__all__ = [
    "AuxiliaryHead",
    "AuxiliaryOutput",
    "CellPlacement",
    "CifarStem",
    "DerivedCell",
    "DerivedNetwork",
    "DropPath",
    "ImageNetStem",
    "StemName",
    "build_stem",
    "channels_for",
    "parameters_of",
    "reduction_positions",
    "set_drop_path",
    "stack_cells",
]
