"""Operations by name: the words of a genotype and the modules that they stand for."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from nasbook.errors import InvalidInput, unknown_name
from nasbook.operations.convolutional import (
    DilatedConvolution,
    FactorizedReduction,
    Pool,
    ReLUConvolution,
    SeparableConvolution,
    SeparatedKernels,
    Zero,
)
from nasbook.operations.morphable import Configuration, MorphableConvolution


@dataclass(frozen=True)
class Operation:
    """A candidate: its name, how it is built and what kind of function it is."""

    name: str
    """The word used in genotypes."""
    build: Callable[[int, int, bool], nn.Module]
    """(channels, stride, affine) → module."""
    kind: Literal["convolution", "pool", "identity", "zero"]
    """Convolutions have weights; the other kinds have none at stride 1."""
    summary: str
    """One line for a table."""


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels, affine)


def _entries() -> Iterator[Operation]:
    # DARTS §3.1, in the order of the authors' code.
    yield Operation("none", lambda c, s, a: Zero(s), "zero", "no connection")
    yield Operation("max_pool_3x3", lambda c, s, a: Pool("max", s), "pool", "3×3 max pooling")
    yield Operation("avg_pool_3x3", lambda c, s, a: Pool("average", s), "pool", "3×3 average pooling")
    yield Operation("skip_connect", _skip, "identity", "identity; at stride 2 a factorised reduction")
    for k in (3, 5, 7):
        build = partial(_build, SeparableConvolution, k)
        yield Operation(f"sep_conv_{k}x{k}", build, "convolution", f"{k}×{k} depthwise-separable convolution, twice")
    for k in (3, 5):
        build = partial(_build, DilatedConvolution, k)
        text = f"{k}×{k} depthwise-separable convolution, dilation 2"
        yield Operation(f"dil_conv_{k}x{k}", build, "convolution", text)
    # EnTranNAS §4.2, the five more of the extended space.
    for k in (1, 3):
        yield Operation(f"conv_{k}x{k}", partial(_build, _dense, k), "convolution", f"{k}×{k} convolution")
    for k in (3, 5, 7):
        build = partial(_build, SeparatedKernels, k)
        yield Operation(f"conv_1x{k}_{k}x1", build, "convolution", f"1×{k} then {k}×1 convolution")


def _build(kind: Callable[..., nn.Module], kernel: int, channels: int, stride: int, affine: bool) -> nn.Module:
    return kind(channels, kernel, stride, affine)


def _dense(channels: int, kernel: int, stride: int, affine: bool) -> nn.Module:
    return ReLUConvolution(channels, channels, kernel, stride, affine)


def _morphable(configuration: Configuration) -> Operation:
    layers = len(configuration.expansions) + 1
    text = f"{configuration.kernel}×{configuration.kernel} depthwise-separable convolution, {layers} layers"
    return Operation(
        configuration.name, lambda c, s, a: MorphableConvolution(c, configuration, s, a), "convolution", text
    )


_OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _entries()}


def get_operation(name: str) -> Operation:
    """The registry's entry for a name, or the morphable convolution that a configuration's name stands for.

    Raises:
        InvalidInput: there is no such operation; the message has the nearest names, or the form of a
            configuration's name.
    """
    if name in _OPERATIONS:
        return _OPERATIONS[name]
    if name.startswith("sep_conv("):
        return _morphable(Configuration.parse(name))
    raise unknown_name("operation", name, _OPERATIONS)


def list_operations(pattern: str = "*") -> tuple[str, ...]:
    """Names of the operations that match a shell pattern, in registry order: ``list_operations("sep_*")``.

    Morphable convolutions are not listed: there is one for every :class:`~nasbook.operations.Configuration`.
    """
    return tuple(name for name in _OPERATIONS if fnmatch.fnmatchcase(name, pattern))


def build_operation(name: str, channels: int, stride: int = 1, affine: bool = True) -> nn.Module:
    """Builds an operation that maps (batch, channels, H, W) to (batch, channels, ⌈H/stride⌉, ⌈W/stride⌉).

    Args:
        name: a name from :func:`list_operations`, or that of a configuration.
        channels: channels in and out.
        stride: 1, or 2 on the edges from a reduction cell's inputs.
        affine: whether batch norms have a scale and a shift; off in a supernet (DARTS A.1.1), where
            they would compete with the architecture parameters.

    Raises:
        InvalidInput: unknown name, channels below 1 (2 for a skip connection of stride 2), or another stride.
    """
    operation = get_operation(name)
    if channels < 1:
        raise InvalidInput(f"channels must be at least 1, got {channels}.")
    if stride not in (1, 2):
        raise InvalidInput(f"stride must be 1 or 2, got {stride}.")
    return operation.build(channels, stride, affine)
