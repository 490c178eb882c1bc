"""Pointwise maps in groups of channels, and the sums over pixels that belong to them.

An image with G·C channels is read as G groups of C channels. A grouped map applies one matrix to each group at every
pixel; grouped products are its derivative with respect to the matrices. Both are linear in both arguments and made of
differentiable calls, so that they serve forward, backward and second-order passes alike.

Both memory layouts are handled, each by the calls that suit it: convolutions where channels come last, as is fast on
CPUs, batched matrix products otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Image = Float[Tensor, "batch channels height width"]

NARROW = 8
"""Up to so many channels a group, one dense product with a block-diagonal matrix is faster than a grouped one."""

MANY = 2**15
"""From so many numbers on, one map of an image with channels last is faster as a convolution than as a product."""

WIDE = 32
"""From so many channels a group on, products by a convolution's weight gradient are faster than by batched products."""


def grouped_map(
    x: Float[Tensor, "batch inputs height width"],
    maps: Float[Tensor, "groups group_outputs group_inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "batch outputs height width"]:
    """Each group of input channels through its own matrix, at every pixel."""
    groups, outputs, inputs = maps.shape
    batch, _, height, width = x.shape
    if channels_last(x):
        if groups > 1 and inputs <= NARROW:  # one map with a block-diagonal matrix
            maps = torch.diag_embed(maps.permute(1, 2, 0)).permute(2, 0, 3, 1)
            maps = maps.reshape(1, groups * outputs, groups * inputs)
            groups, outputs, inputs = maps.shape
        if groups > 1 or inputs > 8 * NARROW:
            return F.conv2d(x, maps.reshape(groups * outputs, inputs, 1, 1), bias, groups=groups)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(batch * height * width, inputs), maps[0], bias)
        return y.view(batch, height, width, outputs).permute(0, 3, 1, 2)
    y = torch.matmul(maps, x.reshape(batch, groups, inputs, height * width))
    y = y.reshape(batch, groups * outputs, height, width)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def pointwise(
    x: Float[Tensor, "batch inputs height width"],
    maps: Float[Tensor, "groups group_outputs group_inputs"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "batch outputs height width"]:
    """:func:`grouped_map` for autograd: its gradients are made of the calls here, and so as fast as it is itself.

    It can be differentiated any number of times.
    """
    return _Pointwise.apply(x, maps, bias)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, maps)
        return fast_map(x, maps, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, maps = ctx.saved_tensors
        gradient = in_layout_of(x, gradient)
        for_x = fast_map(gradient, maps.mT) if ctx.needs_input_grad[0] else None
        return for_x, grouped_products(x, gradient, len(maps)), channel_sums(gradient)


def fast_map(x: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`grouped_map`, which takes a product for one group; here large images take a convolution."""
    if len(maps) == 1 and x.numel() >= MANY and channels_last(x):
        return F.conv2d(x, maps[0][:, :, None, None], bias)
    return grouped_map(x, maps, bias)


def grouped_products(
    x: Float[Tensor, "batch inputs height width"], y: Float[Tensor, "batch outputs height width"], groups: int
) -> Float[Tensor, "groups group_outputs group_inputs"]:
    """Σ y xᵀ over batch and pixels, group by group: the gradient of the maps, or, for y = x, second moments."""
    batch, _, height, width = x.shape
    if channels_last(x):
        inputs, outputs = x.shape[1] // groups, y.shape[1] // groups
        if (groups == 1 or inputs >= WIDE) and not torch.is_grad_enabled():
            return _products_by_convolution(x, y, groups).view(groups, outputs, inputs)
        x = x.permute(0, 2, 3, 1).reshape(batch * height * width, groups, -1)
        y = y.permute(0, 2, 3, 1).reshape(batch * height * width, groups, -1)
        return torch.bmm(y.permute(1, 2, 0), x.transpose(0, 1))
    x = x.reshape(batch * groups, -1, height * width)
    y = y.reshape(batch * groups, -1, height * width)
    products = torch.bmm(y, x.transpose(1, 2))
    return products.view(batch, groups, products.shape[1], products.shape[2]).sum(0)


def _products_by_convolution(x: Tensor, y: Tensor, groups: int) -> Tensor:
    """The same products as the weight gradient of a convolution 1×1."""
    weight = x.new_empty(y.shape[1], x.shape[1] // groups, 1, 1)
    steps, none = [1, 1], [0, 0]
    only_weight = [False, True, False]
    return torch.ops.aten.convolution_backward(
        y, x, weight, None, steps, none, steps, False, none, groups, only_weight
    )[1]


def channel_sums(x: Image) -> Float[Tensor, " channels"]:
    """Σ over batch and pixels of every channel."""
    return x.sum((0, 2, 3))


def repeat_channels(x: Image, copies: int) -> Float[Tensor, "batch repeated height width"]:
    """All channels, ``copies`` times one after another."""
    return x if copies == 1 else torch.cat([x] * copies, dim=1)


def sum_copies(x: Float[Tensor, "batch repeated height width"], copies: int) -> Image:
    """The sum of ``copies`` neighbouring blocks of channels: the derivative of :func:`repeat_channels`."""
    if copies == 1:
        return x
    first, second, *others = x.chunk(copies, dim=1)
    total = first + second
    for block in others:
        total = total.add_(block)
    return total


def channels_last(x: Image) -> bool:
    """Whether the channels of one pixel are neighbours in memory."""
    return x.is_contiguous(memory_format=torch.channels_last)


def in_fast_layout(x: Image) -> Image:
    """``x`` in the layout that this device computes fastest in: channels-last on a CPU, elsewhere as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else in_layout_of(x, x)


def in_layout_of(reference: Tensor, x: Image) -> Image:
    """``x`` without gaps, in the memory layout of ``reference``, which may have another size."""
    last = channels_last(reference)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
