"""What growth refuses, and what it must not miss: faults that a review found."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import CandidateDescent, OvergrownNetwork, Surgery, replay, splitting_matrices, start, step_one
from nasbook.methods import GROWTH_METHODS
from nasbook.networks import VGG, Perceptron


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(0)
    return torch.randn(32, 4, generator=draws), torch.randint(2, (32,), generator=draws)


def test_a_relu_that_stands_at_two_places_is_curved_at_both(batch):
    torch.manual_seed(0)
    network = Perceptron(4, [5, 5], 2)
    network.layers[1].activation = network.layers[0].activation
    matrices = splitting_matrices(network, [batch], F.cross_entropy)
    assert all(matrix.abs().max() > 0 for matrix in matrices.values())


def test_tied_weights_are_refused():
    network = Perceptron(4, [4, 4], 2)
    network.layers[1].linear.weight = network.layers[0].linear.weight
    with pytest.raises(InvalidInput, match="layers.1.linear.weight is the same parameter as another one"):
        Surgery(network)


def test_gates_of_another_number_are_refused():
    overgrown = OvergrownNetwork(Perceptron(4, [3], 2), new=2)
    with pytest.raises(InvalidInput, match="There are 5 candidates"):
        overgrown.set_epsilon(torch.zeros(4))


@pytest.mark.parametrize("cut", [("rewire",), ("remove", "layers.0.inserted"), ("kernel", "a", 3, 4)])
def test_a_cut_with_other_arguments_is_refused(cut):
    with pytest.raises(InvalidInput, match=f"The cut '{cut[0]}' has wrong arguments"):
        replay(Perceptron(4, [3], 2), [cut])


@pytest.mark.parametrize("method", sorted(GROWTH_METHODS))
def test_an_infinite_rate_is_refused(method):
    with pytest.raises(InvalidInput, match="rate must be finite"):
        GROWTH_METHODS[method](rate=math.inf)


def test_splits_stay_at_the_largest_gate_and_norm(batch):
    network = Perceptron(4, [5], 2, activation=nn.Tanh)
    overgrown = OvergrownNetwork(network, new=2, generator=torch.Generator().manual_seed(0))
    start(overgrown, 0.1)
    optimizer = CandidateDescent(overgrown, 0.1)
    for _ in range(5):
        step_one(overgrown, optimizer, batch, F.cross_entropy, 0.1)
        norms, gates = overgrown.direction_norms(), overgrown.epsilon()
        assert norms[:5] == pytest.approx(torch.ones(5), abs=1e-5)
        assert gates[:5] == pytest.approx(torch.full((5,), 0.1))
        assert (norms <= 1 + 1e-6).all()
        assert (gates.abs() <= 0.1).all()


def test_scope_width_gives_every_width_its_share():
    config = GROWTH_METHODS["firefly"](scope="width", rate=0.3)
    limits = config.limits(VGG("vgg11", 5, 10, 1, 8))
    assert set(limits.per_width.values()) == {2}
    assert limits.neurons == 16  # eight widths, two each; 30 % of 40 neurons would be 12


def test_new_layers_come_on_top_of_the_rate():
    network = VGG("vgg11", 5, 10, 1, 8)
    config = GROWTH_METHODS["firefly"](rate=0.25, new_layers=2, layer_neurons=6, layer_budget=3)
    assert (config.limits(network).neurons, config.limits(network).in_new_layers) == (10, 18)
    joint = GROWTH_METHODS["firefly"](rate=0.25, new_layers=2, layer_share="joint")
    assert joint.limits(network).in_new_layers is None
