"""Batch norm after a pointwise map, folded into the map: the normalised output without the output in between.

A convolution 1×1 maps each pixel z to y = W z. Batch norm then needs the mean and the variance of each y_d over batch
and pixels. Both follow from the moments of z, because the map is linear:

    mean(y) = W m,    var(y_d) = w_dᵀ Σ w_d,    with m = mean(z), Σ = mean(z zᵀ) − m mᵀ.

So the normalised output is again a pointwise map of z, with matrix W/σ and bias −W m/σ, and y is never stored. The
same holds with the running statistics of evaluation mode. In a supernet z has a mean of the order of its deviation
(its inputs are normalised), so that Σ loses no digits to the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.operations.pointwise import channel_sums, fast_map, grouped_products

Matrices = Float[Tensor, "maps outputs inputs"]
Vectors = Float[Tensor, "maps outputs"]


class Moments(NamedTuple):
    """Mean and second moment of each group of channels, over batch and pixels."""

    mean: Float[Tensor, "maps inputs"]
    second: Float[Tensor, "maps inputs inputs"]


class FoldedNorm(NamedTuple):
    """Maps with their batch norms folded in, and what the backward pass needs of the way there."""

    maps: Matrices
    """W/σ."""
    bias: Vectors
    """−mean(y)/σ."""
    inverse_deviation: Vectors
    """1/σ, with ε under the root."""
    products: Matrices
    """WΣ; empty in evaluation mode."""
    mean: Float[Tensor, "maps inputs"]
    """m; empty in evaluation mode."""


@dataclass(frozen=True)
class Statistics:
    """What batch norms saw in a pass, to update their running statistics with."""

    norms: Sequence[nn.BatchNorm2d | None]
    """None where a row belongs to no norm."""
    mean: Vectors
    variance: Vectors
    """Biased."""
    count: int
    """Values that each mean was taken over."""

    @classmethod
    def of(cls, norms: Sequence[nn.BatchNorm2d | None], mean: Tensor, variance: Tensor, count: int) -> Statistics:
        """From values in the order of the norms' channels.

        Raises:
            InvalidInput: there is one value per channel.
        """
        if count == 1:
            raise InvalidInput(
                "Batch norm in training mode needs more than one value per channel, got a batch of one image whose "
                "cells are one pixel large. Give larger batches or images, or call network.eval()."
            )
        rows = len(norms), -1
        return cls(norms, mean.detach().view(rows), variance.detach().view(rows), count)


class NormPass(NamedTuple):
    """How all batch norms of a cell run in one pass."""

    training: bool
    """Whether they normalise by what they see, or by the running statistics."""
    epsilon: float
    """Added to the variance."""
    statistics: list[Statistics]
    """What they saw in training; every step of the pass appends to it."""


def moments(images: Sequence[Tensor], groups: int) -> Moments:
    """The moments of all groups of several images of one size, one image after another, in float32 at least."""
    count = images[0].numel() // images[0].shape[1]
    mean = torch.stack([_wide(channel_sums(x)) for x in images]).view(len(images) * groups, -1) / count
    second = torch.cat([_wide(grouped_products(x, x, groups)) for x in images]) / count
    return Moments(mean, second)


def fold(weight: Matrices, z: Moments, epsilon: float) -> tuple[FoldedNorm, Vectors, Vectors]:
    """Batch norms by the moments of this batch; also the mean and the biased variance of each output."""
    covariance = torch.baddbmm(z.second, z.mean[:, :, None], z.mean[:, None, :], alpha=-1)
    products = torch.bmm(weight, covariance)
    variance = (products * weight).sum(2)
    inverse = torch.rsqrt(variance + epsilon)
    mean = torch.bmm(weight, z.mean[:, :, None]).squeeze(2)
    return FoldedNorm(weight * inverse[:, :, None], -mean * inverse, inverse, products, z.mean), mean, variance


def fold_norms(
    weight: Matrices,
    images: Sequence[Tensor],
    groups: int,
    own: Sequence[nn.BatchNorm2d],
    norms: NormPass,
) -> FoldedNorm:
    """Batch norms after pointwise maps of ``images``, in either mode; in training, notes what they saw.

    Args:
        weight: W, the maps of the groups of the first image, then of the second, and so on.
        images: what the maps are applied to, all of one size.
        groups: groups of channels in each image.
        own: the batch norms, in the order of the outputs.
        norms: how they run; in training its statistics get one more entry.

    Raises:
        InvalidInput: training with one value per channel, which has no variance.
    """
    if not norms.training:
        mean, variance = (value.view(weight.shape[:2]) for value in running_statistics(own))
        inverse = torch.rsqrt(variance + norms.epsilon)
        empty = weight.new_empty(0)
        return FoldedNorm(weight * inverse[:, :, None], -mean * inverse, inverse, empty, empty)
    count = images[0].numel() // images[0].shape[1]
    norm, mean, variance = fold(weight, moments(images, groups), norms.epsilon)
    norms.statistics.append(Statistics.of(own, mean, variance, count))
    return norm


def folded_norms(
    weight: Matrices, images: Sequence[Tensor], own: Sequence[nn.BatchNorm2d], norms: NormPass
) -> tuple[Matrices, Vectors]:
    """Like :func:`fold_norms` for autograd, with a backward pass of its own: maps and biases.

    It can be differentiated any number of times.

    Args:
        weight: W, the maps of the groups of the first image, then of the second, and so on.
        images: what the maps are applied to, all of one size; they may differ in their numbers of groups.
        own: the batch norms of the maps, in the order of the outputs.
        norms: how they run.

    Raises:
        InvalidInput: training with one value per channel, which has no variance.
    """
    if not norms.training:
        folded = fold_norms(weight, images, 0, own, norms)
        return folded.maps, folded.bias
    maps, bias, mean, variance = _Fold.apply(norms.epsilon, weight, *images)
    norms.statistics.append(Statistics.of(own, mean, variance, _count(images)))
    return maps, bias


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, epsilon: float, weight: Tensor, *images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        folded, mean, variance = _fold_ragged(epsilon, weight, images)
        ctx.save_for_backward(weight, *folded, *images)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, variance)
        return folded.maps, folded.bias, mean, variance

    @staticmethod
    def backward(ctx: Any, for_maps: Tensor, for_bias: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        kept = len(FoldedNorm._fields)
        folded, images = FoldedNorm(*saved[:kept]), saved[kept:]
        with torch.autocast(weight.device.type, enabled=False):
            if torch.is_grad_enabled():  # to be differentiated again, it must be a function of weight and images
                folded = _fold_ragged(ctx.epsilon, weight, images)[0]
            for_weight, quadratic, linear = unfold_gradients(weight, folded, for_maps, for_bias, _count(images))
            assert quadratic is not None
            assert linear is not None
            groups = [image.shape[1] // weight.shape[2] for image in images]
            parts = zip(images, quadratic.split(groups), linear.split(groups), strict=True)
            for_images = [fast_map(z, q.to(z.dtype), v.to(z.dtype).flatten()) for z, q, v in parts]
        return None, for_weight, *for_images


def _fold_ragged(epsilon: float, weight: Tensor, images: Sequence[Tensor]) -> tuple[FoldedNorm, Tensor, Tensor]:
    of_images = [moments([image], image.shape[1] // weight.shape[2]) for image in images]
    return fold(weight, Moments(*map(torch.cat, zip(*of_images, strict=True))), epsilon)


def _count(images: Sequence[Tensor]) -> int:
    return images[0].numel() // images[0].shape[1]


def unfold_gradients(
    weight: Matrices, folded: FoldedNorm, for_maps: Matrices, for_bias: Vectors, count: int
) -> tuple[Matrices, Float[Tensor, "maps inputs inputs"] | None, Float[Tensor, "maps inputs"] | None]:
    """From gradients of maps and bias to those of the weight and of z: the transpose of :func:`fold`.

    The gradient of z through the moments is Q z + v at every pixel; returns the weight's gradient, Q and v.
    In evaluation mode there is no such path, and Q and v are None.

    Args:
        weight: W.
        folded: what :func:`fold` gave.
        for_maps: gradient of ``folded.maps``.
        for_bias: gradient of ``folded.bias``.
        count: values that the moments were taken over.
    """
    inverse = folded.inverse_deviation
    if folded.products.numel() == 0:
        return for_maps * inverse[:, :, None], None, None
    for_mean = -for_bias * inverse  # of W m
    for_log_inverse = torch.addcmul((for_maps * folded.maps).sum(2), for_bias, folded.bias)
    for_variance = (inverse * inverse * for_log_inverse)[:, :, None]  # times −2
    for_weight = torch.addcmul(for_maps * inverse[:, :, None], folded.products, for_variance, value=-1)
    for_weight = torch.baddbmm(for_weight, for_mean[:, :, None], folded.mean[:, None, :])
    quadratic = torch.bmm(weight.mT, weight * (for_variance / -count))
    from_mean = torch.bmm(weight.mT, for_mean[:, :, None])
    linear = torch.baddbmm(from_mean, quadratic, folded.mean[:, :, None], beta=1 / count, alpha=-1)
    return for_weight, quadratic, linear.squeeze(2)


def running_statistics(norms: Sequence[nn.BatchNorm2d]) -> tuple[Vectors, Vectors]:
    """Running mean and variance of each norm."""
    mean = torch.stack([_given(norm.running_mean) for norm in norms])
    return mean, torch.stack([_given(norm.running_var) for norm in norms])


@torch.no_grad()
def update_running_statistics(statistics: Sequence[Statistics], momentum: float) -> None:
    """What every batch norm does after a training pass: running averages, the variance's unbiased, and the count."""
    # As attributes, three a norm, they would take longer to find than to update.
    buffers, means, unbiased = [], [], []
    for entry in statistics:
        variance = entry.variance * (entry.count / (entry.count - 1))
        rows = zip(entry.norms, entry.mean.unbind(), variance.unbind(), strict=True)
        for norm, own_mean, own_variance in rows:
            if norm is not None:
                buffers.append(norm._buffers)
                means.append(own_mean)
                unbiased.append(own_variance)
    torch._foreach_lerp_([_given(buffer["running_mean"]) for buffer in buffers], means, momentum)
    torch._foreach_lerp_([_given(buffer["running_var"]) for buffer in buffers], unbiased, momentum)
    torch._foreach_add_([_given(buffer["num_batches_tracked"]) for buffer in buffers], 1)


def _given(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # the norms of a cell all have running statistics
    return buffer


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
