"""The convolutional operations of DARTS (§3.1) and of EnTranNAS' extended space (§4.2).

All follow one order: ReLU, convolution without bias, batch norm. All keep the number of channels unless
told otherwise; stride 2 halves height and width, rounding up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.operations.morphable import Configuration, MorphableConvolution

Image = Float[Tensor, "batch channels height width"]


class ReLUConvolution(nn.Sequential):
    """ReLU, one dense convolution, batch norm. With kernel 1 it adapts channels in front of a cell."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, affine=affine),
        )


class SeparableConvolution(MorphableConvolution):
    """(ReLU, depthwise k×k, pointwise, batch norm) twice; the stride is in the first half only."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__(channels, Configuration(kernel, 1, (1,)), stride, affine)


class DilatedConvolution(MorphableConvolution):
    """ReLU, depthwise k×k with dilation 2, pointwise, batch norm; once."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__(channels, Configuration(kernel, 2), stride, affine)


class SeparatedKernels(nn.Sequential):
    """ReLU, a 1×k convolution, a k×1 convolution, batch norm; each direction carries its own stride."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        half = kernel // 2
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, kernel), (1, stride), (0, half), bias=False),
            nn.Conv2d(channels, channels, (kernel, 1), (stride, 1), (half, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )


class FactorizedReduction(nn.Module):
    """Halves height and width without losing pixels: the skip connection at stride 2.

    ReLU, then two 1×1 convolutions of stride 2, half of the channels each; the second sees the input
    shifted by one pixel, so that together they read both diagonals. Concatenated, then batch norm.
    """

    def __init__(self, inputs: int, outputs: int, affine: bool = True) -> None:
        super().__init__()
        if outputs < 2:
            raise InvalidInput(f"A factorised reduction needs at least 2 output channels, got {outputs}.")
        self.activation = nn.ReLU()
        self.convolution = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.shifted_convolution = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Image) -> Float[Tensor, "batch outputs half_height half_width"]:
        x = self.activation(x)
        # At odd sizes the shifted view would come out one short; a row of zeros makes both halves agree.
        shifted = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.norm(torch.cat([self.convolution(x), self.shifted_convolution(shifted)], dim=1))


class Pool(nn.Module):
    """3×3 max or average pooling. The average does not count the padding."""

    def __init__(self, kind: str, stride: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.stride = stride

    def forward(self, x: Image) -> Float[Tensor, "batch channels new_height new_width"]:
        if self.kind == "max":
            return F.max_pool2d(x, 3, self.stride, padding=1)
        return F.avg_pool2d(x, 3, self.stride, padding=1, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"{self.kind}, stride={self.stride}"


class Zero(nn.Module):
    """The zero operation, "no connection": zeros of the output's shape."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Image) -> Float[Tensor, "batch channels new_height new_width"]:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])

    def extra_repr(self) -> str:
        return f"stride={self.stride}"
