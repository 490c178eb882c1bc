"""Segmentation: the cells of any genotype as the backbone of a DeepLabV3 head (EnTranNAS, Table 5; Chapter 3).

A classifier divides the resolution by 32 (with the ImageNet stem), which is too coarse to label pixels. Atrous
convolution (Chen et al. 2017, "Rethinking Atrous Convolution", §3.1) stops earlier: from the reduction on that would
go below the *output stride*, the resolution stays and the kernels are spread instead. With the same weights, every
second pixel of the finer features then has exactly the value that the coarser network computes there.

What EnTranNAS gives is a sentence: the same DeepLabV3 head, inputs of 513×513, output stride 16, one scale at
inference. How a cell keeps its resolution is ours, and follows from the property above:

* a reduction that is replaced doubles the dilation of everything after it, within its own cell (from its first node
  on) as in the cells behind it; its own strided operations keep the dilation of what they read, as in torchvision's
  ``replace_stride_with_dilation``;
* dilated convolutions multiply, 2 becomes 4; pools and factorised reductions are spread in the same way;
* the head reads the last cell's output as the classifier would, with no activation between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import Genotype
from nasbook.networks.derived import DerivedCell, DerivedNetwork
from nasbook.networks.stacking import StemName, reduction_positions
from nasbook.operations import FactorizedReduction, Pool, Zero
from nasbook.operations.depthwise import DepthwiseConvolution

Image = Float[Tensor, "batch channels height width"]

STEM_STRIDES: Mapping[str, int] = {"cifar": 1, "imagenet": 8}
"""What each stem divides the resolution by."""

NOT_IN_THE_BACKBONE = ("classifier.", "auxiliary_head.")
"""Beginnings of the names of a derived network's weights that segmentation has no use for."""

# --- spread operations ------------------------------------------------------------------------------------------------


class AtrousPool(nn.Module):
    """A :class:`~nasbook.operations.Pool` of stride 1 whose 3×3 taps are ``dilation`` pixels apart."""

    def __init__(self, kind: str, dilation: int) -> None:
        super().__init__()
        self.kind = kind
        self.dilation = dilation

    def forward(self, x: Image) -> Image:
        if self.kind == "max":  # torch pads by half a kernel at most
            return F.max_pool2d(F.pad(x, 4 * (self.dilation,), value=-math.inf), 3, 1, dilation=self.dilation)
        # torch has no dilated average: sums over rows, then over columns, divided by the number of pixels in the image.
        return self._sums(x) / self._sums(x.new_ones(1, 1, *x.shape[2:]))

    def _sums(self, x: Image) -> Image:
        step, (height, width) = self.dilation, x.shape[2:]
        x = F.pad(x, 4 * (step,))
        x = x[:, :, :height] + x[:, :, step : step + height] + x[:, :, 2 * step :]
        return x[..., :width] + x[..., step : step + width] + x[..., 2 * step :]

    def extra_repr(self) -> str:
        return f"{self.kind}, dilation={self.dilation}"


class AtrousFactorizedReduction(FactorizedReduction):
    """A factorised reduction that keeps the resolution; its second half reads ``dilation`` pixels further on.

    Takes over the layers of ``reduction``, so that names and shapes of weights stay.
    """

    def __init__(self, reduction: FactorizedReduction, dilation: int) -> None:
        nn.Module.__init__(self)
        self.dilation = dilation
        self.activation = reduction.activation
        self.convolution = _spread_convolution(reduction.convolution, (1, 1))
        self.shifted_convolution = _spread_convolution(reduction.shifted_convolution, (1, 1))
        self.norm = reduction.norm

    def forward(self, x: Image) -> Float[Tensor, "batch outputs height width"]:
        x, step = self.activation(x), self.dilation
        shifted = F.pad(x, (0, step, 0, step))[:, :, step:, step:]
        return self.norm(torch.cat([self.convolution(x), self.shifted_convolution(shifted)], dim=1))


def make_atrous(operation: nn.Module, dilation: int) -> nn.Module:
    """An operation that does at full resolution what ``operation`` does on a grid of every ``dilation``-th pixel.

    Strides become 1: where ``operation`` has stride 2, its values stand on the grid of every ``2 * dilation``-th
    pixel. So for ``d = dilation`` and ``s`` the stride, ``make_atrous(op, d)(x)[..., ::s*d, ::s*d]`` is
    ``op(x[..., ::d, ::d])`` in evaluation mode, borders included, for any size of ``x``.

    Args:
        operation: from :func:`~nasbook.operations.build_operation`, or a preprocessing. Its layers with weights are
            taken over, not copied; the state dict has the same names and shapes.
        dilation: how far apart the pixels are that are neighbours to the operation.

    Raises:
        InvalidInput: this kind of operation can't be spread.
    """
    require_positive(dilation=dilation)
    if isinstance(operation, FactorizedReduction):
        return AtrousFactorizedReduction(operation, dilation)
    if isinstance(operation, Pool):
        return AtrousPool(operation.kind, dilation)
    if isinstance(operation, Zero):
        return Zero()
    if isinstance(operation, nn.Sequential):
        return _spread_chain(operation, dilation)
    if isinstance(operation, nn.Identity):
        return operation
    raise InvalidInput(
        f"{type(operation).__name__} can't be spread over a finer grid: make_atrous knows convolutions, pools, "
        f"identities and factorised reductions."
    )


def _spread_chain(chain: nn.Sequential, dilation: int) -> nn.Sequential:
    """The layers of an operation one after another; what follows a stride is spread twice as far, in its direction."""
    rows = columns = dilation
    for position, layer in enumerate(chain):
        if isinstance(layer, nn.Conv2d):
            chain[position] = _spread_convolution(layer, (rows, columns))
            rows, columns = rows * layer.stride[0], columns * layer.stride[1]
        elif not isinstance(layer, nn.ReLU | nn.BatchNorm2d):  # both work on every pixel by itself
            raise InvalidInput(f"A chain with {type(layer).__name__} can't be spread over a finer grid.")
    return chain


def _spread_convolution(layer: nn.Conv2d, spread: tuple[int, int]) -> nn.Conv2d:
    """The same kernels at stride 1, their taps ``spread`` times as far apart in rows and in columns."""
    padding = int(layer.padding[0]) * spread[0], int(layer.padding[1]) * spread[1]
    dilation = layer.dilation[0] * spread[0], layer.dilation[1] * spread[1]
    with torch.device("meta"):  # the weights are the layer's own: none are drawn
        new: nn.Conv2d
        if isinstance(layer, DepthwiseConvolution):  # made anew, as it decides by these numbers how to differentiate
            new = DepthwiseConvolution(layer.in_channels, layer.kernel_size[0], 1, padding[0], dilation[0])
        else:
            new = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                (layer.kernel_size[0], layer.kernel_size[1]),
                padding=padding,
                dilation=dilation,
                groups=layer.groups,
                bias=layer.bias is not None,
            )
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


# --- the network ------------------------------------------------------------------------------------------------------


def output_strides(stem: StemName | str, cells: int) -> tuple[int, ...]:
    """The output strides that a stack of cells can have: the stem's, and its doubles for every reduction cell."""
    if stem not in STEM_STRIDES:
        raise unknown_name("stem", stem, STEM_STRIDES)
    return tuple(STEM_STRIDES[stem] * 2**count for count in range(len(reduction_positions(cells)) + 1))


class Backbone(nn.Module):
    """The features of a derived network: its stem and its cells, without the classifier, at a chosen output stride.

    Names and shapes of the weights are those of :class:`~nasbook.networks.DerivedNetwork`, at any output stride; so
    :meth:`load_classifier` takes what ``nasbook train`` wrote.

    Args:
        genotype: needs the kinds that stand in the stack, as for the derived network.
        channels: channels of the first cell's nodes, C.
        cells: number of cells, L.
        output_stride: how many pixels of the image one pixel of the features stands for. 8, 16 or 32 with the imagenet
            stem (32: as the classifier), 1, 2 or 4 with the cifar stem.
        drop_path: rate at which edges are dropped in training.
        stem: ``imagenet`` or ``cifar``.
        in_channels: channels of the images.

    Raises:
        InvalidInput: the stack has no such output stride, or what the derived network refuses.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 48,
        cells: int = 14,
        *,
        output_stride: int = 16,
        drop_path: float = 0.0,
        stem: StemName | str = "imagenet",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        network = DerivedNetwork(genotype, channels, cells, 1, drop_path=drop_path, stem=stem, in_channels=in_channels)
        if output_stride not in output_strides(stem, cells):
            raise InvalidInput(
                f"output_stride must be one of {', '.join(map(str, output_strides(stem, cells)))} with the {stem} stem "
                f"and {cells} cells, got {output_stride}."
            )
        self.genotype = genotype
        self.output_stride = output_stride
        self.features = network.classifier.in_features
        """Channels of the output."""
        self.stem = network.stem
        self.cells = network.cells
        self._keep_resolution(STEM_STRIDES[stem])

    def _keep_resolution(self, stride: int) -> None:
        """Spreads what comes from the first reduction on that would go below the output stride."""
        older = newer = 1  # dilation of a cell's two inputs: how far apart the coarse network's pixels lie in them
        for position, cell in enumerate(self.cells):
            assert isinstance(cell, DerivedCell)
            reduces = position in reduction_positions(len(self.cells))
            replaced = reduces and stride == self.output_stride
            if reduces and not replaced:
                stride *= 2
            inside = 2 * newer if replaced else newer
            if older != newer:  # the reduction between the two was replaced, and so is the one that made up for it
                cell.preprocessing[0] = make_atrous(cell.preprocessing[0], older)
            for place, edge in enumerate(cell.genotype.edges):
                dilation = newer if edge.source < cell.genotype.inputs else inside
                if inside > 1:
                    cell.operations[place] = make_atrous(cell.operations[place], dilation)
            older, newer = newer, inside

    def load_classifier(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over a classifier's weights: the state dict of a :class:`~nasbook.networks.DerivedNetwork`.

        The linear classifier and the auxiliary head are left out; every other weight must be there and fit.

        Raises:
            InvalidInput: a weight is missing, unknown or of another shape; the message names the first.
        """
        own = {name: value for name, value in weights.items() if not name.startswith(NOT_IN_THE_BACKBONE)}
        expected = self.state_dict()
        hint = "Give the genotype, channels, cells and stem that the weights were trained with."
        for name in [*expected, *own]:
            if name not in own or name not in expected:
                lacks = "The weights lack" if name not in own else "The backbone has no"
                raise InvalidInput(f"{lacks} {name!r}. {hint}")
            if own[name].shape != expected[name].shape:
                shapes = tuple(expected[name].shape), tuple(own[name].shape)
                raise InvalidInput(f"{name!r}: expected the shape {shapes[0]}, got {shapes[1]}. {hint}")
        self.load_state_dict(own)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch features feature_height feature_width"]:
        older, newer = self.stem(images)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return newer


def atrous_rates(output_stride: int) -> tuple[int, int, int]:
    """The rates of atrous spatial pyramid pooling: (6, 12, 18) at output stride 16, twice as large at 8 (DeepLabV3).

    At other strides in proportion, so that the pyramid reaches over as many pixels of the image: 96, 192 and 288.
    """
    first = 96 // output_stride
    return first, 2 * first, 3 * first


class SegmentationNetwork(nn.Module):
    """A backbone, torchvision's DeepLabV3 head, and its logits enlarged to the image (bilinear, DeepLabV3 §4.1).

    With ``DARTS_V2``, 48 channels, 14 cells, 21 classes and output stride 16, the backbone has 3,949,752 parameters
    and the head 6,628,117.

    Args:
        backbone: where the features come from.
        classes: number of classes, the background included.
        rates: of the head's three dilated convolutions; None takes :func:`atrous_rates` of the output stride. They
            should stay below the size of the features, or the convolutions see little but padding.
        head_channels: channels inside the head; 256 are torchvision's and DeepLabV3's.

    Raises:
        InvalidInput: sizes below 1, not three rates, or torchvision does not import.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int = 21,
        *,
        rates: Sequence[int] | None = None,
        head_channels: int = 256,
    ) -> None:
        super().__init__()
        require_positive(classes=classes, head_channels=head_channels)
        self.rates = tuple(atrous_rates(backbone.output_stride) if rates is None else rates)
        if len(self.rates) != 3 or min(self.rates) < 1:
            raise InvalidInput(f"rates must be three whole numbers above 0, got {list(self.rates)}.")
        self.genotype = backbone.genotype
        self.classes = classes
        self.backbone = backbone
        self.head = build_head(backbone.features, classes, self.rates, head_channels)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        logits = self.head(self.backbone(images))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def build_head(features: int, classes: int, rates: Sequence[int], channels: int = 256) -> nn.Module:
    """torchvision's ``DeepLabHead``, with a choice of its inner channels; with 256 it is the same to the last weight.

    Raises:
        InvalidInput: torchvision does not import.
    """
    try:
        from torchvision.models.segmentation.deeplabv3 import ASPP  # slow to import, and needed here only
    except (ImportError, RuntimeError) as error:  # beside another torch it raises from inside: no torchvision::nms
        raise InvalidInput(
            f"DeepLabV3's head is torchvision's, which does not import ({error}). "
            f"Install the torchvision of your torch."
        ) from error
    return nn.Sequential(
        ASPP(features, tuple(rates), channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, classes, 1),
    )
