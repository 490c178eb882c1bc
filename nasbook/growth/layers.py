"""New layers as widths that grow: empty residual layers go in before a growth, and out after it (Firefly §2.3, B.2)."""

from __future__ import annotations

from collections.abc import Mapping

from nasbook.errors import InvalidInput
from nasbook.growth.surgery import Grown, Surgery
from nasbook.networks.growable import Growable, ResidualLayer


def with_empty_layers(network: Growable, layers: int | Mapping[str, int]) -> Grown:
    """The network with empty residual layers at the end of its places: the same function, to the bit.

    Args:
        network: left as it is.
        layers: how many at each place, or a mapping from some places; the paper has 11 in each of four blocks.

    Raises:
        InvalidInput: an unknown place, or fewer than 0.
    """
    surgery = Surgery(network)
    declaration = network.declare()
    if not isinstance(layers, Mapping):
        layers = {place.name: layers for place in declaration.places}
    for name, count in layers.items():
        declaration.place(name)
        if count < 0:
            raise InvalidInput(f"The place {name} can't get {count} layers; give 0 or more.")
        there = len(network.get_submodule(name))  # type: ignore[arg-type]
        for index in range(there, there + count):
            surgery.insert(name, index, "residual", 0)
    return surgery.grown()


def without_empty_layers(network: Growable) -> Grown:
    """The network without the residual layers that have no neurons: the same function, to the bit."""
    surgery = Surgery(network)
    for place in network.declare().places:
        layers = network.get_submodule(place.name)
        for index in reversed(range(len(layers))):  # type: ignore[arg-type]
            layer = layers[index]  # type: ignore[index]
            if isinstance(layer, ResidualLayer) and not layer.neurons:
                surgery.remove(place.name, index)
    return surgery.grown()
