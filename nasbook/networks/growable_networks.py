"""The networks that grow, by name: what ``nasbook grow`` can build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nasbook.errors import require_positive, unknown_name
from nasbook.networks.growable import Growable
from nasbook.networks.growable_layers import layer_widths
from nasbook.networks.mobilenet import MOBILENET_WIDTHS, MobileNetV1
from nasbook.networks.perceptron import Perceptron
from nasbook.networks.residual_stack import BLOCK_CHANNELS, BLOCKS, BlockStack
from nasbook.networks.vgg import STAGE_LAYERS, VGG, vgg_widths

Widths = int | Sequence[int] | None
"""Channels of the layers: None for the standard ones, a number for all, or one for each."""

PERCEPTRON_WIDTHS = (64, 64)
"""Standard neurons of the perceptron's hidden layers."""

STANDARD_WIDTHS: dict[str, tuple[int, ...]] = {
    **{name: vgg_widths(name) for name in STAGE_LAYERS},
    "mobilenet-v1": MOBILENET_WIDTHS,
    "block-stack": (BLOCK_CHANNELS,) * BLOCKS,
    "perceptron": PERCEPTRON_WIDTHS,
}
"""The widths that each network has if none are given."""


def _mobilenet(widths: Widths, classes: int, in_channels: int, size: int) -> Growable:
    return MobileNetV1(widths, classes, in_channels)


def _block_stack(widths: Widths, classes: int, in_channels: int, size: int) -> Growable:
    return BlockStack(widths, classes, in_channels)


def _perceptron(widths: Widths, classes: int, in_channels: int, size: int) -> Growable:
    hidden = tuple(widths) if isinstance(widths, Sequence) else layer_widths(widths, PERCEPTRON_WIDTHS)
    return Perceptron(in_channels * size**2, hidden, classes)


GROWABLE_NETWORKS: dict[str, Callable[[Widths, int, int, int], Growable]] = {
    **{name: partial(VGG, name) for name in STAGE_LAYERS},
    "mobilenet-v1": _mobilenet,
    "block-stack": _block_stack,
    "perceptron": _perceptron,
}
"""(widths, classes, channels of the images, pixels a side) → network, by name."""


def build_growable(
    name: str, *, widths: Widths = None, classes: int = 10, in_channels: int = 3, size: int = 32
) -> Growable:
    """The network of that name.

    Args:
        name: one of :data:`GROWABLE_NETWORKS`.
        widths: None for the standard ones, a number for all layers, or one for each; a perceptron has as many hidden
            layers as there are widths.
        classes: number of classes.
        in_channels: channels of the images.
        size: pixels a side.

    Raises:
        InvalidInput: an unknown name, with the nearest ones; numbers that the network can't have.
    """
    if name not in GROWABLE_NETWORKS:
        raise unknown_name("growable network", name, GROWABLE_NETWORKS)
    require_positive(classes=classes, in_channels=in_channels, size=size)
    return GROWABLE_NETWORKS[name](widths, classes, in_channels, size)


def scaled_widths(name: str, multiplier: float) -> tuple[int, ...]:
    """A share of a network's standard widths, rounded and at least 1: Net2Net's thin VGG-19 has 0.125 (Firefly §4).

    Raises:
        InvalidInput: an unknown name, or a multiplier that is not above 0.
    """
    if name not in STANDARD_WIDTHS:
        raise unknown_name("growable network", name, STANDARD_WIDTHS)
    require_positive(multiplier=multiplier)
    return tuple(max(1, round(width * multiplier)) for width in STANDARD_WIDTHS[name])
