"""Sums of images times numbers, for all targets of a node at once: how pools and identities leave it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nasbook.operations.depthwise import depthwise_products
from nasbook.operations.pointwise import grouped_map, grouped_products, repeat_channels, sum_copies

FEW = 16
"""Up to so many channels, the images go through one dense map with diagonal matrices."""


def scaled_sum(images: list[Tensor], scales: Tensor, bias: Tensor | None) -> Tensor:
    """Σ over images and sources of scale times image, for every target: pools and identity on their way.

    With few channels as one map with diagonal matrices, which wastes products but saves calls; else image by image.

    Args:
        images: (batch, S·C, height, width) each.
        scales: (E, images, S, C).
        bias: (E, C).
    """
    targets, _, sources, channels = scales.shape
    if channels <= FEW:
        level = None if bias is None else bias.to(images[0].dtype).flatten()
        return grouped_map(_side_by_side(images), _diagonal(scales, images[0].dtype), level)
    total: Tensor | None = None
    for place, image in enumerate(images):
        for source, part in enumerate(image.chunk(sources, dim=1)):
            wide = repeat_channels(part, targets)
            scaled = scale_channels(wide, scales[:, place, source], bias if total is None else None)
            total = scaled if total is None else total.add_(scaled)
    assert total is not None
    return total


def scaled_sum_backward(
    images: list[Tensor], scales: Tensor, gradient: Tensor, needs_images: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of :func:`scaled_sum`: of the scales, (E, images, S, C), and of the images where asked for."""
    targets, count, sources, channels = scales.shape
    if channels <= FEW:
        products = grouped_products(_side_by_side(images), gradient, 1)
        products = products.view(targets, channels, count, sources, channels).diagonal(dim1=1, dim2=4)
        if not needs_images:
            return products, [None] * count
        back = grouped_map(gradient, _diagonal(scales, gradient.dtype).mT).chunk(count, dim=1)
        return products, list(back)
    rows: list[Tensor] = []
    for_images: list[Tensor | None] = []
    for place, image in enumerate(images):
        parts = []
        for source, part in enumerate(image.chunk(sources, dim=1)):
            rows.append(depthwise_products(repeat_channels(part, targets), gradient, 1).view(targets, channels))
            if needs_images:
                parts.append(sum_copies(scale_channels(gradient, scales[:, place, source]), targets))
        for_images.append(torch.cat(parts, dim=1) if parts else None)
    return torch.stack(rows, dim=1).view(targets, count, sources, channels), for_images


def scale_channels(x: Tensor, slope: Tensor, level: Tensor | None = None) -> Tensor:
    """Every channel times a number, plus a number."""
    bias = None if level is None else level.to(x.dtype).flatten()
    return F.conv2d(x, slope.to(x.dtype).reshape(-1, 1, 1, 1), bias, groups=x.shape[1])


def _side_by_side(images: list[Tensor]) -> Tensor:
    return images[0] if len(images) == 1 else torch.cat(images, dim=1)


def _diagonal(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(E, images, S, C) → (1, E·C, images·S·C), zero where the channels differ."""
    targets, count, sources, channels = scales.shape
    maps = torch.diag_embed(scales.to(dtype).flatten(1, 2)).transpose(1, 2)
    return maps.reshape(1, targets * channels, count * sources * channels)
