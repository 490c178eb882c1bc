"""Discrete networks: what a genotype becomes (Chapter 1), and networks that grow (Chapter 4)."""

from nasbook.networks.derived import (
    AuxiliaryHead,
    AuxiliaryOutput,
    DerivedCell,
    DerivedNetwork,
    DropPath,
    set_drop_path,
)
from nasbook.networks.growable import (
    Channels,
    Declaration,
    Flow,
    Growable,
    Place,
    PlainLayer,
    ResidualLayer,
    Width,
    output_channels,
)
from nasbook.networks.growable_networks import GROWABLE_NETWORKS, STANDARD_WIDTHS, build_growable, scaled_widths
from nasbook.networks.mobilenet import MobileNetV1
from nasbook.networks.perceptron import Perceptron
from nasbook.networks.radial import Gaussian, RadialNetwork, radial_data, radial_target
from nasbook.networks.residual_stack import BlockStack
from nasbook.networks.segmentation import (
    Backbone,
    SegmentationNetwork,
    atrous_rates,
    make_atrous,
    output_strides,
)
from nasbook.networks.sizing import channels_for, parameters_of
from nasbook.networks.stacking import (
    CELL_OUTPUTS,
    CellOutput,
    CellPlacement,
    CifarStem,
    ImageNetStem,
    StemName,
    build_stem,
    reduction_positions,
    stack_cells,
)
from nasbook.networks.vgg import VGG

__all__ = [
    "CELL_OUTPUTS",
    "GROWABLE_NETWORKS",
    "STANDARD_WIDTHS",
    "VGG",
    "AuxiliaryHead",
    "AuxiliaryOutput",
    "Backbone",
    "BlockStack",
    "CellOutput",
    "CellPlacement",
    "Channels",
    "CifarStem",
    "Declaration",
    "DerivedCell",
    "DerivedNetwork",
    "DropPath",
    "Flow",
    "Gaussian",
    "Growable",
    "ImageNetStem",
    "MobileNetV1",
    "Perceptron",
    "Place",
    "PlainLayer",
    "RadialNetwork",
    "ResidualLayer",
    "SegmentationNetwork",
    "StemName",
    "Width",
    "atrous_rates",
    "build_growable",
    "build_stem",
    "channels_for",
    "make_atrous",
    "output_channels",
    "output_strides",
    "parameters_of",
    "radial_data",
    "radial_target",
    "reduction_positions",
    "scaled_widths",
    "set_drop_path",
    "stack_cells",
]
