"""Empty residual layers go in and out without a trace."""

import pytest
import torch
from growing_toys import contents, wake
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import OvergrownNetwork, replay, with_empty_layers, without_empty_layers
from nasbook.growth.morphisms import insert_residual, net2deeper
from nasbook.networks import VGG, BlockStack, Growable, MobileNetV1, Perceptron, ResidualLayer

NETWORKS = {
    "vgg": (lambda: VGG("vgg11", 3, in_channels=2, size=8), (2, 8, 8)),
    "mobilenet": (lambda: MobileNetV1(2, in_channels=2), (2, 8, 8)),
    "block stack": (lambda: BlockStack(3, in_channels=2), (2, 8, 8)),
    "perceptron": (lambda: Perceptron(6, [4, 3], 2, nn.Tanh), (6,)),
    "normalized perceptron": (lambda: Perceptron(6, [4, 3], 2, normalized=True), (6,)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str) -> tuple[Growable, torch.Tensor]:
    make, sample = NETWORKS[name]
    inputs = torch.randn(5, *sample, dtype=torch.float64)
    return wake(make(), inputs), inputs


def layers_of(network: Growable) -> dict[str, int]:
    return {place.name: len(network.get_submodule(place.name)) for place in network.declare().places}


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_empty_layers_change_no_bit(name, training):
    network, inputs = build(name)
    before = contents(network)
    longer = with_empty_layers(network, 2)
    assert set(layers_of(longer.network).values()) == {2}
    shorter = without_empty_layers(longer.network)
    assert layers_of(shorter.network) == layers_of(network)
    assert contents(shorter.network).keys() == before.keys()
    assert shorter.network.neurons() == network.neurons()
    with torch.no_grad():
        found = [grown.network.train(training)(inputs) for grown in (longer, shorter)]
        expected = network.train(training)(inputs)
    assert all(torch.equal(outputs, expected) for outputs in found)


@every_network
def test_every_layer_becomes_a_width_that_can_grow(name):
    network, inputs = build(name)
    longer = with_empty_layers(network, 1).network
    new = {width: count for width, count in longer.neurons().items() if width not in network.neurons()}
    assert set(new.values()) == {0}
    assert len(new) == len(network.declare().places)
    overgrown = OvergrownNetwork(longer, new=dict.fromkeys(new, 2), splits=False)
    assert len(overgrown.candidates) == 2 * len(new)
    with torch.no_grad():
        assert torch.equal(overgrown.eval()(inputs), network(inputs))


def test_layers_look_as_their_place_says():
    for name, kind in (("vgg", nn.Conv2d), ("perceptron", nn.Linear)):
        network, _ = build(name)
        longer = with_empty_layers(network, 1).network
        for place in longer.declare().places:
            layer = longer.get_submodule(place.name)[0]
            assert isinstance(layer, ResidualLayer)
            assert isinstance(layer.layer, kind)
            assert layer.normalized == place.normalized
            assert isinstance(layer.activation, place.activation)
            assert layer.layer.weight.dtype == torch.float64


def test_some_places_and_behind_what_is_there():
    network, inputs = build("block stack")
    network = insert_residual(network, "blocks.1.inserted", 0, 2, torch.Generator().manual_seed(0)).network
    longer = with_empty_layers(network, {"blocks.1.inserted": 2, "blocks.3.inserted": 1, "blocks.0.inserted": 0})
    assert list(layers_of(longer.network).values()) == [0, 3, 0, 1]
    assert [layer.neurons for layer in longer.network.blocks[1].inserted] == [2, 0, 0]
    # Behind one layer and before another, which both stay.
    mixed = insert_residual(longer.network, "blocks.1.inserted", 2, 3, torch.Generator().manual_seed(1)).network
    shorter = without_empty_layers(mixed)
    assert [layer.neurons for layer in shorter.network.blocks[1].inserted] == [2, 3]
    assert torch.equal(shorter.network.eval()(inputs), mixed.eval()(inputs))


def test_plain_layers_stay():
    network, _ = build("vgg")
    deeper = net2deeper(network, "layers.2.inserted", 0).network
    assert layers_of(without_empty_layers(deeper).network) == layers_of(deeper)


def test_origins_and_cuts_tell_what_was_done():
    network, _ = build("perceptron")
    longer = with_empty_layers(network, 1)
    shorter = without_empty_layers(longer.network)
    both = longer.then(shorter)
    assert {name: origin.name for name, origin in both.origins.items()} == {
        name: name for name, _ in network.named_parameters()
    }
    again = replay(network, both.cuts)
    assert layers_of(again) == layers_of(network)
    assert layers_of(replay(network, longer.cuts)) == layers_of(longer.network)


def test_wrong_layers_are_refused():
    network, _ = build("perceptron")
    with pytest.raises(InvalidInput, match=r"layers\.0\.inserted"):
        with_empty_layers(network, {"layers.0.insert": 1})
    with pytest.raises(InvalidInput, match="0 or more"):
        with_empty_layers(network, -1)
