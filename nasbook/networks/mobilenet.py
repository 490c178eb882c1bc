"""MobileNetV1 for small images (Howard et al. 2017, Table 1): the backbone of Firefly's Fig. 6."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import require_positive
from nasbook.networks.growable import Declaration, Flow, Growable
from nasbook.networks.growable_layers import ConvolutionLayer, declare_convolution, layer_widths

MOBILENET_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Standard channels of the first convolution and of the 13 blocks."""

MOBILENET_STRIDES = (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Strides of the same. The first is 2 in the paper, for 224×224 images; 1 is usual for 32×32."""


class SeparableLayer(nn.Module):
    """Depthwise 3×3 convolution, then pointwise; each with batch norm and ReLU. Then the place for new layers."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU()
        self.inserted = nn.Sequential()

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        x = self.activation(self.depthwise_norm(self.depthwise(x)))
        return self.inserted(self.activation(self.norm(self.pointwise(x))))


class MobileNetV1(Growable):
    """A convolution and 13 depthwise-separable blocks, then a global average pool and a linear classifier.

    With 10 classes it has 3,217,226 parameters. Maps of 32×32 images have 2 pixels a side at the end, of 8×8 one.
    A depthwise convolution has no neurons of its own: it grows along the channels that it acts on.

    Args:
        widths: channels of the first convolution and of the 13 blocks: None for the standard ones, a number for all
            (Firefly: 32), or one for each; :func:`~nasbook.networks.scaled_widths` gives a share of the standard ones
            (the paper's width multiplier).
        classes: number of classes.
        in_channels: channels of the images.

    Raises:
        InvalidInput: not 14 widths, or sizes below 1.
    """

    def __init__(self, widths: int | Sequence[int] | None = None, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        require_positive(classes=classes, in_channels=in_channels)
        first, *rest = layer_widths(widths, MOBILENET_WIDTHS)
        self.stem = ConvolutionLayer(in_channels, first, MOBILENET_STRIDES[0])
        self.layers = nn.ModuleList(
            SeparableLayer(inputs, outputs, stride)
            for inputs, outputs, stride in zip((first, *rest[:-1]), rest, MOBILENET_STRIDES[1:], strict=True)
        )
        self.classifier = nn.Linear(rest[-1], classes)

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def declare(self) -> Declaration:
        flow = Flow(self)
        channels = declare_convolution(flow, "stem", None)
        for index in range(len(self.layers)):
            path = f"layers.{index}"
            channels.along.extend((f"{path}.depthwise", f"{path}.depthwise_norm"))
            channels.read_by.append(f"{path}.pointwise")
            channels = flow.place(f"{path}.inserted", flow.write(f"{path}.pointwise", f"{path}.norm"))
        channels.read_by.append("classifier")
        return flow.declaration()
