"""Discrete networks: what a genotype becomes (Chapter 1)."""

from nasbook.networks.derived import (
    AuxiliaryHead,
    AuxiliaryOutput,
    DerivedCell,
    DerivedNetwork,
    DropPath,
    set_drop_path,
)
from nasbook.networks.segmentation import (
    Backbone,
    SegmentationNetwork,
    atrous_rates,
    make_atrous,
    output_strides,
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
    "Backbone",
    "CellPlacement",
    "CifarStem",
    "DerivedCell",
    "DerivedNetwork",
    "DropPath",
    "ImageNetStem",
    "SegmentationNetwork",
    "StemName",
    "atrous_rates",
    "build_stem",
    "channels_for",
    "make_atrous",
    "output_strides",
    "parameters_of",
    "reduction_positions",
    "set_drop_path",
    "stack_cells",
]
