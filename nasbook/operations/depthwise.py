"""Depthwise convolution, with a backward pass made of kernels as fast as the forward pass's.

``F.conv2d(groups=channels)`` computes the same. Its gradients are the expensive part: on a CPU, those of a 5×5 or of
a dilated kernel run through general code, up to ten times slower than the forward pass. Two facts avoid that code:

* the input's gradient is again a depthwise convolution, of the output's gradient by the kernels turned by 180°;
* the weight's gradient is a sum over pixels. It may be taken one column of the kernel at a time, and, where the
  dilation is 2, on the four grids of every other pixel, within which the kernel is not dilated.

The two functions are each other's derivatives, so that they can be differentiated any number of times.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.operations.pointwise import channels_last, in_layout_of

Image = Float[Tensor, "batch channels height width"]
Kernels = Float[Tensor, "channels 1 kernel kernel"]


def depthwise(x: Image, weight: Kernels, dilation: int = 1) -> Image:
    """Every channel convolved by its own kernel of odd size, padded so that height and width stay."""
    if torch.is_grad_enabled():
        return _Depthwise.apply(x, weight, dilation)
    return _convolve(x, weight, dilation)


def depthwise_products(x: Image, y: Image, kernel: int, dilation: int = 1) -> Kernels:
    """Σ over batch and pixels of y times x moved to each tap: the gradient of a depthwise convolution's weight.

    ``x`` is the convolution's input, ``y`` the gradient of its output. With ``kernel`` 1, the inner product of every
    channel of ``x`` with the same channel of ``y``.
    """
    if torch.is_grad_enabled():
        return _DepthwiseProducts.apply(x, y, kernel, dilation)
    return _products(x, y, kernel, dilation)


def depthwise_side_by_side(
    images: Sequence[Image],
    order: Sequence[int],
    weight: Float[Tensor, "repeated 1 kernel kernel"],
    dilation: int = 1,
    stride: int = 1,
) -> Float[Tensor, "batch repeated new_height new_width"]:
    """The depthwise convolution of several images side by side, each as often as wanted.

    For the backward pass the images are kept, not their copies.

    Args:
        images: of one size.
        order: places of images; their channels follow each other in this order.
        weight: a kernel for every channel then.
        dilation: distance of the taps.
        stride: 1 or 2; the padding is half a kernel, so that the size stays, or is halved, rounded up.

    Raises:
        InvalidInput: stride 2 with a dilation above 1.
    """
    if stride == 2 and dilation > 1:
        raise InvalidInput(f"A dilation of {dilation} has no fast gradients at stride 2; use F.conv2d.")
    return _SideBySide.apply(tuple(order), dilation, stride, weight, *images)


def strided_products(
    x: Image, y: Float[Tensor, "batch channels half_height half_width"], kernel: int
) -> Kernels:
    """The weight's gradient of a depthwise convolution of stride 2, padded by half its kernel.

    A large kernel is taken apart: it reads each of the four grids of every other pixel with some of its taps, and on a
    grid it has stride 1.
    """
    if kernel <= 3 or y.device.type != "cpu" or not channels_last(y):
        return _library(x, y, kernel, kernel, 1, stride=2)
    reach = kernel // 2
    result = x.new_empty(x.shape[1], 1, kernel, kernel)
    for row, column in itertools.product((0, 1), repeat=2):
        grid = x[:, :, row::2, column::2]
        missing = y.shape[2] - grid.shape[2], y.shape[3] - grid.shape[3]
        grid = in_layout_of(y, F.pad(grid, (0, missing[1], 0, missing[0])) if any(missing) else grid)
        # Tap t reads pixel 2i + t − reach, which is pixel i + (t − reach − row)/2 of its grid.
        rows = range((reach + row) % 2, kernel, 2)
        columns = range((reach + column) % 2, kernel, 2)
        size = 2 * max((reach + 1) // 2, reach // 2) + 1
        products = depthwise_products(grid, y, size)
        for t in rows:
            at = (t - reach - row) // 2 + size // 2
            first = (columns[0] - reach - column) // 2 + size // 2
            result[:, :, t, columns[0] :: 2] = products[:, :, at, first : first + len(columns)]
    return result


def strided_input_gradient(
    x: Image, weight: Kernels, gradient: Float[Tensor, "batch channels half_height half_width"]
) -> Image:
    """The input's gradient of a depthwise convolution of stride 2, padded by half its kernel; x tells its size."""
    half = weight.shape[-1] // 2
    odd = [(size + 1) % 2 for size in x.shape[2:]]  # what a transposed convolution can't know: even sizes lose a pixel
    return F.conv_transpose2d(gradient, weight, None, 2, half, odd, weight.shape[0])


def turned(weight: Kernels) -> Kernels:
    """The kernels turned by 180°: those of the input's gradient."""
    return weight.flip(2, 3) if weight.shape[-1] > 1 else weight


class DepthwiseConvolution(nn.Conv2d):
    """A depthwise convolution without bias, with fast gradients where channels come last on a CPU.

    torch's own gradients are slow there for kernels above 3×3 and for dilated ones; see this module. In any
    other layout, and in compiled code, it is ``nn.Conv2d`` to the last bit.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> None:
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
        self._fast_gradients = stride == 1 and (kernel > 3 or dilation == 2) and padding == dilation * (kernel // 2)

    def forward(self, x: Image) -> Float[Tensor, "batch channels new_height new_width"]:
        # Strides, for is_contiguous() also holds in the other layout where an image is one pixel large.
        last = x.stride(1) == 1 and x.stride(3) == x.shape[1] > 1
        if self._fast_gradients and last and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return depthwise(x, self.weight, self.dilation[0])
        return super().forward(x)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _convolve(x, weight, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = in_layout_of(x, gradient)
        for_x = depthwise(gradient, turned(weight), ctx.dilation) if ctx.needs_input_grad[0] else None
        size = weight.shape[-1]
        for_weight = depthwise_products(x, gradient, size, ctx.dilation) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, None


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, order: tuple[int, ...], dilation: int, stride: int, weight: Tensor, *images: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight, *images)
        ctx.order, ctx.dilation, ctx.stride = order, dilation, stride
        x = _side_by_side(images, order)
        if stride == 1:
            return _convolve(x, weight, dilation)
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *images = ctx.saved_tensors
        x = _side_by_side(images, ctx.order)
        gradient = in_layout_of(x, gradient)
        for_x = for_weight = None
        if any(ctx.needs_input_grad[4:]):
            if ctx.stride == 1:
                for_x = depthwise(gradient, turned(weight), ctx.dilation)
            else:
                for_x = strided_input_gradient(x, weight, gradient)
        if ctx.needs_input_grad[3]:
            if ctx.stride == 1:
                for_weight = depthwise_products(x, gradient, weight.shape[-1], ctx.dilation)
            else:
                for_weight = strided_products(x, gradient, weight.shape[-1])
        if for_x is None:
            return None, None, None, for_weight, *(None for _ in images)
        blocks: list[list[Tensor]] = [[] for _ in images]
        for place, block in zip(ctx.order, for_x.chunk(len(ctx.order), dim=1), strict=True):
            blocks[place].append(block)
        for_images = [functools.reduce(torch.add, some) if some else None for some in blocks]
        return None, None, None, for_weight, *for_images


def _side_by_side(images: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    return images[order[0]] if len(order) == 1 else torch.cat([images[place] for place in order], dim=1)


class _DepthwiseProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kernel: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.dilation = dilation
        return _products(x, y, kernel, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y = ctx.saved_tensors
        for_x = depthwise(y, turned(gradient), ctx.dilation) if ctx.needs_input_grad[0] else None
        for_y = depthwise(x, gradient, ctx.dilation) if ctx.needs_input_grad[1] else None
        return for_x, for_y, None, None


def _convolve(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=x.shape[1])


def _products(x: Tensor, y: Tensor, kernel: int, dilation: int) -> Tensor:
    if y.device.type != "cpu" or not channels_last(y):
        return _library(x, y, kernel, kernel, dilation)
    if dilation == 2:
        small = min(x.shape[2:]) // 2 < kernel
        x, y = (_one_image(image, kernel // 2) if small else _grids(image) for image in (x, y))
        dilation = 1
    if kernel == 1 or (dilation > 1 and min(x.shape[2:]) >= kernel):
        return _library(x, y, kernel, kernel, dilation)
    if min(x.shape[2:]) < kernel:
        return _by_taps(x, y, kernel, dilation)
    # Kernels up to three columns wide have a fast case: the middle three at once, the others one by one.
    reach = kernel // 2
    left = [_library(_moved(x, shift), y, kernel, 1, 1) for shift in range(reach, 1, -1)]
    right = [_library(_moved(x, -shift), y, kernel, 1, 1) for shift in range(2, reach + 1)]
    middle = _library(x, y, kernel, 3, 1)
    return torch.cat([*left, middle, *right], dim=3) if left else middle


def _library(x: Tensor, y: Tensor, height: int, width: int, dilation: int, stride: int = 1) -> Tensor:
    """The products by torch's own kernel, for kernels of any odd height and width."""
    channels = x.shape[1]
    padding = [dilation * (height // 2), dilation * (width // 2)]
    return torch.ops.aten.convolution_backward(
        y,
        x,
        x.new_empty(channels, 1, height, width),
        bias_sizes=None,
        stride=[stride, stride],
        padding=padding,
        dilation=[dilation, dilation],
        transposed=False,
        output_padding=[0, 0],
        groups=channels,
        output_mask=[False, True, False],
    )[1]


def _moved(x: Tensor, columns: int) -> Tensor:
    """The image moved to the right (to the left, if negative), zeros behind it; by less than its width."""
    moved = torch.empty_like(x)
    if columns > 0:
        moved[..., :columns].zero_()
        moved[..., columns:].copy_(x[..., :-columns])
    else:
        moved[..., columns:].zero_()
        moved[..., :columns].copy_(x[..., -columns:])
    return moved


def _by_taps(x: Tensor, y: Tensor, kernel: int, dilation: int) -> Tensor:
    """One tap after another: for images smaller than the kernel, which the fast kernels refuse."""
    batch, channels, height, width = x.shape
    border = dilation * (kernel // 2)
    padded = x.new_zeros(batch, height + 2 * border, width + 2 * border, channels)
    padded[:, border : border + height, border : border + width] = x.permute(0, 2, 3, 1)
    y = y.permute(0, 2, 3, 1)
    starts = [dilation * tap for tap in range(kernel)]
    taps = [(padded[:, i : i + height, j : j + width] * y).sum((0, 1, 2)) for i in starts for j in starts]
    return torch.stack(taps, dim=1).view(channels, 1, kernel, kernel)


def _grids(x: Tensor) -> Tensor:
    """The four grids of every other row and column as separate images; odd sizes are padded with zeros."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    return pixels.permute(2, 4, 0, 1, 3, 5).reshape(4 * batch, height // 2, width // 2, channels).permute(0, 3, 1, 2)


def _one_image(x: Tensor, gap: int) -> Tensor:
    """The four grids side by side in one image, zeros between them: for grids smaller than the kernel."""
    batch, channels, height, width = x.shape
    top, left = (height + 1) // 2, (width + 1) // 2
    image = x.new_zeros(batch, height + gap, width + gap, channels).permute(0, 3, 1, 2)
    image[:, :, :top, :left] = x[:, :, ::2, ::2]
    image[:, :, :top, left + gap :] = x[:, :, ::2, 1::2]
    image[:, :, top + gap :, :left] = x[:, :, 1::2, ::2]
    image[:, :, top + gap :, left + gap :] = x[:, :, 1::2, 1::2]
    return image
