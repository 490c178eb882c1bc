"""All that leaves one node of a search cell, as one differentiable function with its backward pass written out.

Notation, as in :mod:`nasbook.supernets.fused`: E targets, S sources for each, G = E·S groups of C channels in a wide
tensor, target by target. h = ReLU(x); z is the output of a depthwise convolution of h, r what follows it in a
separable convolution's first half, z′ the output of its second depthwise convolution. What the targets receive is

    Σ c · A z + bias,   A and bias from :func:`nasbook.supernets.folded_norm.fold`, c the coefficients,

over all candidates; A is diagonal for pools and identities.

Only x, the pooled images, z, r and z′ are kept for the backward pass. That pass is made of differentiable calls. When
it is itself to be differentiated (``create_graph``), it runs the forward pass again, under autograd, so that the kept
tensors are functions of the inputs and not constants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.operations.depthwise import (
    depthwise,
    depthwise_products,
    strided_input_gradient,
    strided_products,
    turned,
)
from nasbook.operations.pointwise import (
    channel_sums,
    grouped_map,
    grouped_products,
    in_layout_of,
    repeat_channels,
    sum_copies,
)
from nasbook.supernets.folded_norm import (
    FoldedNorm,
    NormPass,
    Statistics,
    fold_norms,
    running_statistics,
    unfold_gradients,
)
from nasbook.supernets.scaled_sums import scale_channels, scaled_sum, scaled_sum_backward


@dataclass(frozen=True)
class SeparableCandidate:
    """A separable or dilated convolution that leaves for every target: one module for each (target, source)."""

    column: int
    """Its column in the coefficients."""
    modules: tuple[nn.Sequential, ...]
    halves: int
    """How often (ReLU, depthwise, pointwise, batch norm) follows itself: 2 or 1."""

    @functools.cached_property
    def dilation(self) -> int:
        """Of the first depthwise convolution."""
        return self.modules[0][1].dilation[0]  # type: ignore[index, return-value]

    @functools.cached_property
    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        """Depthwise, then pointwise convolutions of each half, the modules of all groups side by side."""
        places = [4 * half + place for half in range(self.halves) for place in (1, 2)]
        return tuple(module[place] for place in places for module in self.modules)  # type: ignore[misc]

    @functools.cached_property
    def norms(self) -> tuple[tuple[nn.BatchNorm2d, ...], ...]:
        """The batch norms of each half."""
        return tuple(tuple(m[4 * half + 3] for m in self.modules) for half in range(self.halves))  # type: ignore[misc]


@dataclass(frozen=True)
class PoolCandidate:
    """A pooling, one for all targets, with the batch norms that its copies have."""

    column: int
    pool: nn.Module
    norms: tuple[nn.BatchNorm2d | None, ...]
    """One for each (target, source); None where the edge does not have this pooling, and its coefficient is zero."""


@dataclass(frozen=True)
class NodeCandidates:
    """What one call of :func:`leave_node` computes, apart from its tensors."""

    targets: int
    """E."""
    sources: int
    """S."""
    stride: int
    convolutions: Sequence[SeparableCandidate]
    pools: Sequence[PoolCandidate]
    skip: int | None
    """The identity's column in the coefficients, where there is one."""
    norms: NormPass
    """How the batch norms run."""

    @property
    def groups(self) -> int:
        return self.targets * self.sources

    @functools.cached_property
    def separable(self) -> tuple[int, ...]:
        """Places of the convolutions that have a second half."""
        return tuple(i for i, convolution in enumerate(self.convolutions) if convolution.halves == 2)

    def leaves_dilated(self, convolution: SeparableCandidate) -> bool:
        """Whether the convolution reads every other pixel only: dilation and stride are both 2."""
        return self.stride == 2 and convolution.dilation == 2


def leave_node(candidates: NodeCandidates, x: Tensor, coefficients: Tensor) -> Tensor:
    """What every target receives from the node: (batch, E·C, height, width), target by target.

    Args:
        candidates: what runs.
        x: (batch, S·C, height, width), one node's state or several side by side.
        coefficients: (G, operations).
    """
    pooled = [candidate.pool(x) for candidate in candidates.pools]
    parameters = [module.weight for candidate in candidates.convolutions for module in candidate.convolutions]
    if not torch.is_autocast_enabled(x.device.type):
        return _LeaveNode.apply(candidates, x, coefficients, *pooled, *parameters)
    half = torch.get_autocast_dtype(x.device.type)
    images = [image.to(half) for image in (x, *pooled)]  # all that is small stays as it is
    with torch.autocast(x.device.type, enabled=False):
        return _LeaveNode.apply(candidates, images[0], coefficients, *images[1:], *parameters)


class _LeaveNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, candidates: NodeCandidates, x: Tensor, coefficients: Tensor, *others: Tensor) -> Tensor:
        count = len(candidates.pools)
        received, kept = _forward(candidates, x, coefficients, others[:count], others[count:])
        tensors: list[Tensor] = []
        ctx.rebuild = _take_apart(kept, tensors)
        ctx.candidates = candidates
        ctx.inputs = 2 + len(others)
        ctx.save_for_backward(x, coefficients, *others, *tensors)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        candidates, count = ctx.candidates, len(ctx.candidates.pools)
        saved = ctx.saved_tensors
        x, coefficients, *others = saved[: ctx.inputs]
        pooled, parameters = others[:count], others[count:]
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return _LeaveNode.backward(ctx, gradient)
        if torch.is_grad_enabled():
            _, kept = _forward(candidates, x, coefficients, pooled, parameters)
        else:
            kept = ctx.rebuild(iter(saved[ctx.inputs :]))
        needs = _Needs(ctx.needs_input_grad[1], any(ctx.needs_input_grad[3 + count :]))
        gradient = in_layout_of(x, gradient)
        return None, *_backward(candidates, x, coefficients, pooled, kept, gradient, needs)


class _Needs(NamedTuple):
    x: bool
    weights: bool


class _Half(NamedTuple):
    """One half of the convolutions: (ReLU,) depthwise, pointwise, batch norm; stacked convolution by convolution."""

    kernels: list[Tensor]
    """Depthwise weights, (G·C, 1, k, k) for each convolution."""
    weights: Tensor
    """Pointwise weights, (convolutions·G, C, C)."""
    z: list[Tensor]
    """What the depthwise convolutions gave."""
    norm: FoldedNorm


class _Kept(NamedTuple):
    """What the backward pass needs, besides the inputs."""

    halves: list[_Half]
    r: list[Tensor]
    """What enters the second half."""
    pool_means: list[Tensor]
    pool_inverses: list[Tensor]
    scales: list[Tensor]
    """What pools and identity are multiplied by, (E, images, S, C); one tensor or none."""


def _forward(
    candidates: NodeCandidates,
    x: Tensor,
    coefficients: Tensor,
    pooled: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, _Kept]:
    targets, sources, groups = candidates.targets, candidates.sources, candidates.groups
    channels = x.shape[1] // sources
    total: Tensor | None = None
    kept = _Kept([], [], [], [], [])

    if candidates.convolutions:
        stacks = _stacks(candidates, parameters)
        kernels = [torch.cat(stack[0]).to(x.dtype) for stack in stacks]
        z = _leave_depthwise(candidates, F.relu(x), kernels)
        kept.halves.append(_half(candidates, 0, kernels, [stack[1] for stack in stacks], z))
        separable = candidates.separable
        if separable:
            norm = kept.halves[0].norm
            for i in separable:
                block = slice(i * groups, (i + 1) * groups)
                kept.r.append(_map(z[i], norm.maps[block], norm.bias[block]).relu_())
            kernels = [torch.cat(stacks[i][2]).to(x.dtype) for i in separable]
            z = [depthwise(image, kernel) for image, kernel in zip(kept.r, kernels, strict=True)]
            kept.halves.append(_half(candidates, 1, kernels, [stacks[i][3] for i in separable], z))

        last = _last_maps(candidates, coefficients, kept)
        shift = (last.bias * last.coefficients[:, :, None]).sum(0).view(targets, sources, channels).sum(1)
        for image, maps in zip(last.z, last.weighted(targets), strict=True):
            received = _map(image, maps, shift if total is None else None)
            total = received if total is None else total.add_(received)

    scales: list[Tensor] = []
    moved: Tensor | None = None
    for candidate, image in zip(candidates.pools, pooled, strict=True):
        mean, inverse = _pool_statistics(candidates, candidate, image)
        scale = coefficients[:, candidate.column].view(targets, sources, 1) * inverse
        scales.append(scale)
        moved = (scale * -mean).sum(1) if moved is None else moved - (scale * mean).sum(1)
        kept.pool_means.append(mean)
        kept.pool_inverses.append(inverse)
    if candidates.skip is not None:
        scales.append(coefficients[:, candidates.skip].view(targets, sources, 1).expand(targets, sources, channels))
    if scales:
        images = [*pooled, x] if candidates.skip is not None else list(pooled)
        kept.scales.append(torch.stack(scales, dim=1))
        received = scaled_sum(images, kept.scales[0], moved)
        total = received if total is None else total.add_(received)

    assert total is not None  # the caller asks only when something leaves
    return total, kept


def _backward(
    candidates: NodeCandidates,
    x: Tensor,
    coefficients: Tensor,
    pooled: Sequence[Tensor],
    kept: _Kept,
    gradient: Tensor,
    needs: _Needs,
) -> list[Tensor | None]:
    """Gradients of x, the coefficients, the pooled images and the parameters, in this order."""
    targets, sources, groups = candidates.targets, candidates.sources, candidates.groups
    channels = x.shape[1] // sources
    count = gradient.numel() // gradient.shape[1]
    sums = channel_sums(gradient).to(coefficients.dtype).view(targets, 1, channels)
    for_x: Tensor | None = None
    for_columns: dict[int, Tensor] = {}
    for_pooled: list[Tensor | None] = []
    for_parameters: list[Tensor | None] = []

    if candidates.convolutions:
        last = _last_maps(candidates, coefficients, kept)
        for_bias = sums.expand(targets, sources, channels).reshape(groups, channels)
        for_maps = torch.stack([grouped_products(z, gradient, targets) for z in last.z]).to(coefficients.dtype)
        for_maps = for_maps.view(-1, targets, channels, sources, channels).transpose(2, 3).reshape_as(last.maps)
        for_coefficients = (for_maps * last.maps).sum((2, 3)) + (for_bias * last.bias).sum(2)
        for convolution, value in zip(candidates.convolutions, for_coefficients, strict=True):
            for_columns[convolution.column] = value
        if needs.x or needs.weights:
            backwards = [_map(gradient, maps.mT) for maps in last.weighted(targets)]
            for_maps = for_maps * last.coefficients[:, :, None, None]
            for_bias = for_bias * last.coefficients[:, :, None]
            at_last = list(zip(backwards, for_maps, for_bias, strict=True))
            for_x, for_parameters = _convolutions_backward(candidates, x, kept, at_last, count, needs)
        else:
            for_parameters = [None] * sum(2 * c.halves * groups for c in candidates.convolutions)

    if kept.scales:
        images = [*pooled, x] if candidates.skip is not None else list(pooled)
        products, back = scaled_sum_backward(images, kept.scales[0], gradient, needs.x)
        products = products.to(coefficients.dtype)
        parts = zip(candidates.pools, pooled, kept.pool_means, kept.pool_inverses, back, strict=False)
        for place, (candidate, image, mean, inverse, received) in enumerate(parts):
            c = coefficients[:, candidate.column].view(targets, sources, 1)
            centred = products[:, place] - mean * sums  # Σ gradient · (image − mean)
            for_columns[candidate.column] = (centred * inverse).sum(2).flatten()
            if received is not None and candidates.norms.training:
                for_inverse = (c * centred).sum(0, keepdim=True)
                slope = -(inverse**3) * for_inverse / count
                level = -(c * inverse * sums).sum(0, keepdim=True) / count - slope * mean
                received = received + scale_channels(image, slope, level)
            for_pooled.append(received)
        if candidates.skip is not None:
            for_columns[candidates.skip] = products[:, -1].sum(2).flatten()
            direct = back[-1]
            for_x = direct if for_x is None or direct is None else for_x + direct

    nothing = torch.zeros_like(coefficients[:, 0])
    columns = [for_columns.get(column, nothing) for column in range(coefficients.shape[1])]
    return [for_x, torch.stack(columns, dim=1), *for_pooled, *for_parameters]


def _convolutions_backward(
    candidates: NodeCandidates,
    x: Tensor,
    kept: _Kept,
    at_last: Sequence[tuple[Tensor, Tensor, Tensor]],
    count: int,
    needs: _Needs,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """From gradients at the last maps of each convolution (of z, maps, bias) to those of x and the parameters."""
    groups, separable, first = candidates.groups, candidates.separable, kept.halves[0]
    at_first = list(at_last)
    second_gradients: list[tuple[Tensor | None, Tensor]] = []
    if separable:
        second = kept.halves[1]
        for_z, for_weights = _unfold(candidates, second, [at_last[i] for i in separable], count)
        for j, i in enumerate(separable):
            size = second.kernels[j].shape[-1]
            for_kernels = depthwise_products(kept.r[j], for_z[j], size) if needs.weights else None
            second_gradients.append((for_kernels, for_weights[j * groups : (j + 1) * groups]))
            for_r = depthwise(for_z[j], turned(second.kernels[j]))
            for_y = _relu_gradient(for_r, kept.r[j])
            maps = first.norm.maps[i * groups : (i + 1) * groups]
            for_maps = grouped_products(first.z[i], for_y, groups).to(maps.dtype)
            for_bias = channel_sums(for_y).to(maps.dtype).view(groups, -1)
            at_first[i] = (_map(for_y, maps.mT), for_maps, for_bias)
    for_z, for_weights = _unfold(candidates, first, at_first, count)
    h = F.relu(x)
    for_h, first_kernels = _leave_depthwise_backward(candidates, h, first.kernels, for_z, needs)
    for_x = None if for_h is None else _relu_gradient(for_h, h)
    if not needs.weights:
        return for_x, [None] * sum(2 * convolution.halves * groups for convolution in candidates.convolutions)

    for_parameters: list[Tensor | None] = []
    for i, convolution in enumerate(candidates.convolutions):
        halves = [(first_kernels[i], for_weights[i * groups : (i + 1) * groups])]
        if convolution.halves == 2:
            halves.append(second_gradients[separable.index(i)])
        for for_kernels, for_maps in halves:
            assert for_kernels is not None
            size = for_kernels.shape[-1]
            for_parameters += for_kernels.to(for_maps.dtype).view(groups, -1, 1, size, size).unbind()
            for_parameters += for_maps[..., None, None].unbind()
    return for_x, for_parameters


def _unfold(
    candidates: NodeCandidates, half: _Half, gradients: Sequence[tuple[Tensor, Tensor, Tensor]], count: int
) -> tuple[list[Tensor], Tensor]:
    """From gradients of a half's (z, maps, bias) to those of z, with the batch norms' share, and of its weights."""
    groups = candidates.groups
    for_maps = torch.cat([gradient[1] for gradient in gradients])
    for_bias = torch.cat([gradient[2] for gradient in gradients])
    for_weights, quadratic, linear = unfold_gradients(half.weights, half.norm, for_maps, for_bias, count)
    for_z = [gradient[0] for gradient in gradients]
    if quadratic is not None and linear is not None:
        for i, image in enumerate(half.z):
            block = slice(i * groups, (i + 1) * groups)
            for_z[i] = for_z[i].add_(_map(image, quadratic[block], linear[block]))
    return for_z, for_weights


class _Last(NamedTuple):
    """The last maps of all convolutions: what they read, maps and biases before the coefficients, and those."""

    z: list[Tensor]
    maps: Tensor
    """(convolutions, G, C, C)"""
    bias: Tensor
    """(convolutions, G, C)"""
    coefficients: Tensor
    """(convolutions, G)"""

    def weighted(self, targets: int) -> Tensor:
        """The maps times the coefficients, those of one target side by side: (convolutions, E, C, S·C)."""
        count, _, outputs, inputs = self.maps.shape
        maps = (self.maps * self.coefficients[:, :, None, None]).view(count, targets, -1, outputs, inputs)
        return maps.transpose(2, 3).reshape(count, targets, outputs, -1)


def _last_maps(candidates: NodeCandidates, coefficients: Tensor, kept: _Kept) -> _Last:
    groups, separable = candidates.groups, candidates.separable
    places = [
        (kept.halves[1], separable.index(i)) if convolution.halves == 2 else (kept.halves[0], i)
        for i, convolution in enumerate(candidates.convolutions)
    ]
    blocks = [(half, place, slice(place * groups, (place + 1) * groups)) for half, place in places]
    return _Last(
        [half.z[place] for half, place, _ in blocks],
        torch.stack([half.norm.maps[block] for half, _, block in blocks]),
        torch.stack([half.norm.bias[block] for half, _, block in blocks]),
        torch.stack([coefficients[:, convolution.column] for convolution in candidates.convolutions]),
    )


def _stacks(candidates: NodeCandidates, parameters: Sequence[Tensor]) -> list[list[list[Tensor]]]:
    """The parameters of each convolution in stacks of G: kernels and weights of the first half, then of the second."""
    groups, start = candidates.groups, 0
    stacks = []
    for convolution in candidates.convolutions:
        count = 2 * convolution.halves
        stacks.append([list(parameters[start + i * groups : start + (i + 1) * groups]) for i in range(count)])
        start += count * groups
    return stacks


def _half(
    candidates: NodeCandidates, place: int, kernels: list[Tensor], weights: list[list[Tensor]], z: list[Tensor]
) -> _Half:
    """One half with its batch norms folded; in training, notes what they saw."""
    stacked = torch.cat([weight for stack in weights for weight in stack]).flatten(1)
    stacked = stacked.view(-1, stacked.shape[1], stacked.shape[1])
    own = [norm for c in candidates.convolutions if c.halves > place for norm in c.norms[place]]
    norm = fold_norms(stacked, z, candidates.groups, own, candidates.norms)
    return _Half(kernels, stacked, z, norm)


def _pool_statistics(candidates: NodeCandidates, candidate: PoolCandidate, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1/σ of a pool's batch norms: (1, S, C) in training, as it is one for all targets, else (E, S, C)."""
    targets, sources = candidates.targets, candidates.sources
    if candidates.norms.training:
        count = image.numel() // image.shape[1]
        mean = channel_sums(image).to(torch.float32 if image.dtype.itemsize < 4 else image.dtype) / count
        centred = image - mean.to(image.dtype).view(1, -1, 1, 1)
        variance = channel_sums(centred * centred).to(mean.dtype) / count
        candidates.norms.statistics.append(
            Statistics.of(candidate.norms, mean.repeat(targets), variance.repeat(targets), count)
        )
        mean, variance = mean.view(1, sources, -1), variance.view(1, sources, -1)
    else:
        present = [norm for norm in candidate.norms if norm is not None]
        norms = [norm or present[0] for norm in candidate.norms]  # where it is absent any statistics will do
        mean, variance = (value.view(targets, sources, -1) for value in running_statistics(norms))
    return mean, torch.rsqrt(variance + candidates.norms.epsilon)


def _leave_depthwise(candidates: NodeCandidates, h: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """The first depthwise convolutions of all edges, one call a kernel shape."""
    sources = _DepthwiseSources(candidates, h)
    z = []
    for convolution, kernel in zip(candidates.convolutions, kernels, strict=True):
        if candidates.leaves_dilated(convolution):
            z.append(depthwise(sources.every_other, kernel))
        elif candidates.stride == 2:
            z.append(F.conv2d(sources.wide, kernel, stride=2, padding=kernel.shape[-1] // 2, groups=kernel.shape[0]))
        else:
            z.append(depthwise(sources.wide, kernel, convolution.dilation))
    return z


def _leave_depthwise_backward(
    candidates: NodeCandidates, h: Tensor, kernels: Sequence[Tensor], gradients: Sequence[Tensor], needs: _Needs
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of h and of the kernels."""
    sources = _DepthwiseSources(candidates, h)
    for_kernels: list[Tensor | None] = []
    for_wide: Tensor | None = None
    for_every_other: Tensor | None = None
    for convolution, kernel, gradient in zip(candidates.convolutions, kernels, gradients, strict=True):
        size = kernel.shape[-1]
        if candidates.stride == 2 and not candidates.leaves_dilated(convolution):
            for_kernel = strided_products(sources.wide, gradient, size) if needs.weights else None
            for_input = strided_input_gradient(sources.wide, kernel, gradient) if needs.x else None
        else:
            dilation = 1 if candidates.stride == 2 else convolution.dilation
            read = sources.every_other if candidates.stride == 2 else sources.wide
            for_kernel = depthwise_products(read, gradient, size, dilation) if needs.weights else None
            for_input = depthwise(gradient, turned(kernel), dilation) if needs.x else None
        for_kernels.append(for_kernel)
        if for_input is None:
            continue
        if candidates.leaves_dilated(convolution):
            for_every_other = for_input if for_every_other is None else for_every_other.add_(for_input)
        else:
            for_wide = for_input if for_wide is None else for_wide.add_(for_input)
    if not needs.x:
        return None, for_kernels
    for_h = torch.zeros_like(h) if for_wide is None else sum_copies(for_wide, candidates.targets)
    if for_every_other is not None:
        for_h[:, :, ::2, ::2].add_(sum_copies(for_every_other, candidates.targets))
    return for_h, for_kernels


class _DepthwiseSources:
    """What the first depthwise convolutions read, made when asked for: h once for each target."""

    def __init__(self, candidates: NodeCandidates, h: Tensor) -> None:
        self.targets = candidates.targets
        self.h = h

    @functools.cached_property
    def wide(self) -> Tensor:
        return repeat_channels(self.h, self.targets)

    @functools.cached_property
    def every_other(self) -> Tensor:
        """Every other row and column: all that a convolution of dilation 2 and stride 2 reads, then undilated."""
        return repeat_channels(in_layout_of(self.h, self.h[:, :, ::2, ::2]), self.targets)


def _relu_gradient(gradient: Tensor, activation: Tensor) -> Tensor:
    """The gradient where the activation is positive, else zero; ``gradient`` may be overwritten."""
    if torch.is_grad_enabled():
        return torch.ops.aten.threshold_backward(gradient, activation, 0)
    return torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0, grad_input=gradient)


def _map(x: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    """A grouped map in the precision of the images."""
    return grouped_map(x, maps.to(x.dtype), None if bias is None else bias.to(x.dtype).flatten())


def _take_apart(value: Any, tensors: list[Tensor]) -> Callable[[Iterator[Tensor]], Any]:
    """Appends the tensors of nested lists and named tuples to ``tensors``; returns what builds the value from them."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return next
    parts = [_take_apart(part, tensors) for part in value]
    if isinstance(value, list):
        return lambda stream: [part(stream) for part in parts]
    kind = type(value)
    return lambda stream: kind(*(part(stream) for part in parts))
