"""Unlocking: a locked neuron's copy moves in its place (Firefly §2.4). Bits, orders, gradients, and what is grown."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from growing_toys import Shape, Toy, contents, wake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import (
    Budget,
    CandidateDescent,
    OvergrownNetwork,
    Scores,
    integrated_gradients,
    start,
    step_one,
    step_two,
    with_empty_layers,
)
from nasbook.growth.morphisms import insert_residual
from nasbook.networks import VGG, BlockStack, Growable, MobileNetV1, Perceptron, RadialNetwork

few = settings(derandomize=True, deadline=None, max_examples=4)


def block_stack() -> Growable:
    """One block has a new layer with neurons, another one an empty layer."""
    network = with_empty_layers(BlockStack([3, 5, 4, 2], in_channels=2), {"blocks.0.inserted": 1}).network
    network = insert_residual(network, "blocks.1.inserted", 0, 3, torch.Generator().manual_seed(0)).network
    nn.init.normal_(network.get_submodule("blocks.1.inserted")[0].projection.weight)
    return network


NETWORKS = {
    "vgg of 8×8": (lambda: VGG("vgg11", [3, 4, 5, 6, 3, 2, 5, 4], in_channels=2, size=8), (2, 8, 8)),
    "vgg of 32×32": (lambda: VGG("vgg11", [2, 3, 2, 4, 3, 2, 2, 3], in_channels=1, size=32), (1, 32, 32)),
    "mobilenet": (lambda: MobileNetV1([3, 4, 5, 2, *[3] * 10], in_channels=2), (2, 8, 8)),
    "block stack": (block_stack, (2, 8, 8)),
    "perceptron": (lambda: Perceptron(6, [5, 3], 2), (2, 3)),
    "perceptron with norms": (lambda: Perceptron(6, [4, 5, 3], 2, normalized=True), (6,)),
    "radial": (lambda: RadialNetwork(4), (1,)),
    "toy": (lambda: Toy(Shape()), (2, 6, 6)),
    "toy without norms": (lambda: Toy(Shape(stride=2, kernel=1, normalized=False)), (2, 6, 6)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, dtype: torch.dtype = torch.float64, smooth: bool = False) -> tuple[Growable, tuple[int, ...]]:
    make, sample = NETWORKS[name]
    network = make()
    for path, module in list(network.named_modules()):
        if smooth and isinstance(module, nn.ReLU):
            network.set_submodule(path, nn.Tanh())
    return wake(network, torch.randn(8, *sample, dtype=torch.float64)).to(dtype), sample


def every_second(network: Growable) -> dict[str, range]:
    """Neurons 1, 3, … of every width; all of a width that has one."""
    return {name: range(min(1, count - 1), count, 2) for name, count in network.neurons().items() if count}


def overgrow(network: Growable, new: int = 2, seed: int = 0, **options: object) -> OvergrownNetwork:
    options = {"unlocks": every_second(network), "splits": False, **options}
    return OvergrownNetwork(network, new=new, generator=torch.Generator().manual_seed(seed), **options).eval()


def train_norms(overgrown: OvergrownNetwork, inputs: torch.Tensor) -> None:
    """A pass in training mode, with open gates."""
    kept = overgrown.epsilon()
    overgrown.set_epsilon(0.3)
    with torch.no_grad():
        overgrown.train()(inputs)
    overgrown.eval().set_epsilon(kept)


def random_epsilon(overgrown: OvergrownNetwork, radius: float, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return radius * (1 - 2 * torch.randint(2, (len(overgrown.candidates),), generator=draws, dtype=torch.float64))


def slope(steps: list[float], values: list[float]) -> float:
    return float(np.polyfit(np.log(steps), np.log(values), 1)[0])


STEPS = [1e-4 * 2.0**-k for k in range(5)]
"""Deep and thin networks bend early, and have kinks."""


# --- at ε = 0 ---------------------------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gates_it_is_the_old_network_to_the_last_bit(name, dtype):
    network, sample = build(name, dtype)
    for new in (0, 2):
        overgrown = overgrow(network, new=new)
        assert overgrown.direction_norms().min() > 0
        train_norms(overgrown, torch.randn(6, *sample, dtype=dtype))
        for batch in (1, 7):
            inputs = torch.randn(batch, *sample, dtype=dtype)
            with torch.no_grad():
                assert torch.equal(overgrown(inputs), network(inputs))
        overgrown.set_epsilon(1e-2)
        with torch.no_grad():
            assert not torch.equal(overgrown(inputs), network(inputs))


@every_network
def test_nothing_old_moves(name):
    network, sample = build(name)
    overgrown, before = overgrow(network), contents(network)
    own = {id(part) for part in (*overgrown.directions(), *overgrown.gate_parameters())}
    trained = {path for path, part in overgrown.network.named_parameters() if id(part) in own}
    inner = {path: value for path, value in contents(overgrown.network).items() if path not in trained}
    inner = {path: value for path, value in inner.items() if ".new_" not in path and "_extra_state" not in path}
    inputs = torch.randn(6, *sample, dtype=torch.float64)
    start(overgrown, 0.1)
    descent = CandidateDescent(overgrown, 0.1)
    target = network(inputs).detach() + 1
    for _ in range(2):
        step_one(overgrown.train(), descent, (inputs, target), F.mse_loss, 0.1)
    assert all(torch.equal(value, contents(network)[path]) for path, value in before.items())
    after = contents(overgrown.network)
    assert inner
    assert all(torch.equal(value, after[path]) for path, value in inner.items())


# --- at other gates ---------------------------------------------------------------------------------------------------


def test_it_is_the_neuron_at_theta_plus_epsilon_delta():
    """σ(x, θ + εδ) in the place of the neuron, read as it was; written out."""
    network = RadialNetwork(3).double()
    overgrown = overgrow(network, new=1, unlocks={"hidden": [2, 0]})
    assert [(c.kind, c.index) for c in overgrown.candidates] == [("unlock", 0), ("unlock", 2), ("new", 0)]
    epsilon = random_epsilon(overgrown, 0.4)
    overgrown.set_epsilon(epsilon)
    hidden, output = overgrown._layers["hidden"], overgrown._layers["output"]
    theta = torch.cat([network.hidden.weight, network.hidden.bias[:, None]], 1).detach()
    delta = torch.cat([hidden.unlocks, hidden.unlock_biases[:, None]], 1).detach()
    theta[[0, 2]] += epsilon[:2, None] * delta
    theta = torch.cat([theta, torch.cat([hidden.rows, hidden.row_biases[:, None]], 1).detach()])
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    neurons = torch.exp(-(x * theta[:, 0] + theta[:, 1]).square() / 2)
    weights = torch.cat([network.output.weight[0], epsilon[2:] * output.columns[0]])
    torch.testing.assert_close(overgrown(x)[:, 0], neurons @ weights, rtol=1e-12, atol=1e-12)


@every_network
def test_distance_grows_with_the_gates_and_no_faster(name):
    network, sample = build(name)
    overgrown = overgrow(network, new=0)
    inputs = torch.randn(9, *sample, dtype=torch.float64)
    distances = []
    with torch.no_grad():
        for step in STEPS:
            overgrown.set_epsilon(random_epsilon(overgrown, step))
            distances.append(float((overgrown(inputs) - network(inputs)).norm()))
    assert slope(STEPS, distances) == pytest.approx(1, abs=0.1)


@every_network
def test_the_gradient_of_a_gate_is_that_of_the_neuron_along_its_direction(name):
    """dL/dε at 0 is ⟨∂L/∂θ, δ⟩, with ∂L/∂θ by autograd in the old network."""
    network, sample = build(name)
    overgrown = overgrow(network, new=0)
    inputs = torch.randn(9, *sample, dtype=torch.float64)
    target = torch.randn_like(network(inputs).detach())
    F.mse_loss(overgrown(inputs), target).backward()
    gates = overgrown.epsilon_gradient()
    expected = torch.zeros(len(overgrown.candidates), dtype=torch.float64)
    plain = copy.deepcopy(network).requires_grad_(True)
    gradients = dict(zip(
        (n for n, _ in plain.named_parameters()),
        torch.autograd.grad(F.mse_loss(plain(inputs), target), list(plain.parameters()), allow_unused=True),
        strict=True,
    ))  # fmt: skip
    for number, candidate in enumerate(overgrown.candidates):
        place = overgrown.gates[candidate.width].unlocks.index(candidate.index)
        for path in network.declare().width(candidate.width).written_by:
            if path not in overgrown._layers:  # of a layer that is empty, and stays so
                continue
            layer = overgrown._layers[path]
            expected[number] += (gradients[f"{path}.weight"][candidate.index] * layer.unlocks[place]).sum()
            if len(layer.unlock_biases):
                expected[number] += gradients[f"{path}.bias"][candidate.index] * layer.unlock_biases[place]
    assert float(gates.abs().max()) > 1e-4
    torch.testing.assert_close(gates, expected.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["perceptron", "perceptron with norms", "radial", "vgg of 8×8", "mobilenet"])
def test_the_sum_over_candidates_predicts_the_loss_to_second_order(name):
    """Half of the candidates, unlocked and new ones, grown together; Eq. 5's Σ εs."""
    network, sample = build(name, smooth=True)
    overgrown = overgrow(network)
    inputs = torch.randn(12, *sample, dtype=torch.float64)
    train_norms(overgrown, inputs)
    batch = inputs, torch.randn_like(network(inputs).detach())
    draws = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(overgrown.candidates), generator=draws)[: len(overgrown.candidates) // 2].tolist()
    assert {overgrown.candidates[number].kind for number in chosen} == {"unlock", "new"}
    with torch.no_grad():
        before = float(F.mse_loss(network(inputs), batch[1]))
    largest = 0.02 if len(network.neurons()) < 5 else 1e-3  # deep and thin networks bend early
    changes, errors, steps = [], [], [largest * 2.0**-k for k in range(5)]
    for radius in steps:
        overgrown.set_epsilon(random_epsilon(overgrown, radius, 3))
        scores = integrated_gradients(overgrown, [batch], F.mse_loss)
        grown = overgrown.grow(chosen, scores.epsilon(radius)).network.eval()
        with torch.no_grad():
            changes.append(float(F.mse_loss(grown(inputs), batch[1])) - before)
        errors.append(abs(changes[-1] - float(scores.changes(radius)[chosen].sum())))
    assert changes[-1] < 0  # −ϵ sign(s) lowers the loss, whichever way the gate was
    assert slope(steps, [-change for change in changes]) == pytest.approx(1, abs=0.15)
    assert slope(steps, errors) > 1.8


def test_the_gate_of_an_unlocked_neuron_has_a_sign():
    """Unlike a split's: the copy is kept on the side that lowers the loss."""
    scores = Scores(torch.tensor([2.0, -3.0]), torch.tensor([0.1, 0.1]), torch.tensor([0.0, 0.0]))
    assert scores.epsilon(0.5).tolist() == [-0.5, 0.5]
    assert scores.changes(0.5).tolist() == [-1.0, -1.5]
    network, sample = build("perceptron")
    inputs = torch.randn(9, *sample, dtype=torch.float64)
    overgrown = overgrow(network)
    start(overgrown, 0.1)
    found = integrated_gradients(overgrown, [(inputs, network(inputs).detach() + 1)], F.mse_loss)
    assert not found.is_split.any()


def test_step_one_moves_unlocked_gates_both_ways():
    """They are not held at ϵ, as those of splits are: the first step is a tenth of ϵ, down or up to the bound."""
    network, sample = build("vgg of 8×8")
    inputs = torch.randn(30, *sample, dtype=torch.float64)
    batch = inputs, torch.randn(30, 10, dtype=torch.float64)
    overgrown = overgrow(network, new=0)
    start(overgrown, 0.01)
    descent = CandidateDescent(overgrown, 0.01, 0.1)
    before = [part.detach().clone() for part in overgrown.directions()]
    losses = [float(step_one(overgrown, descent, batch, F.mse_loss, 0.01)[0])]
    signs = overgrown.epsilon_gradient().sign()
    assert {-1.0, 1.0} <= set(signs.tolist())
    torch.testing.assert_close(overgrown.epsilon(), torch.where(signs > 0, 0.009, 0.01).double())
    losses += [float(step_one(overgrown, descent, batch, F.mse_loss, 0.01)[0]) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert float(overgrown.epsilon().abs().max()) <= 0.01
    assert float(overgrown.direction_norms().max()) <= 1 + 1e-12
    assert all(not torch.equal(part, old) for part, old in zip(overgrown.directions(), before, strict=True))
    grown = step_two(overgrown, integrated_gradients(overgrown, [batch], F.mse_loss), Budget(2), 0.01)
    assert len(grown.chosen) == 2
    assert grown.predicted < 0


# --- growing ----------------------------------------------------------------------------------------------------------


def check_grown(overgrown: OvergrownNetwork, sample: tuple[int, ...], seed: int, share: float) -> None:
    """The grown network is the over-grown one with the other gates at zero."""
    (network,) = overgrown.before
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5, *sample, dtype=torch.float64, generator=draws)
    train_norms(overgrown, inputs)
    epsilon = torch.rand(len(overgrown.candidates), dtype=torch.float64, generator=draws) - 0.5
    taken = torch.rand(len(overgrown.candidates), generator=draws) < share
    chosen = taken.nonzero().flatten().tolist()
    before = contents(network)
    grown = overgrown.grow(chosen, epsilon).network.eval()
    overgrown.set_epsilon(torch.where(taken, epsilon, 0.0))
    with torch.no_grad():
        old, expected, found = network(inputs), overgrown(inputs), grown(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * max(float(old.abs().max()), 1))
    assert share < 1 or float((expected - old).abs().max()) > 1e-4
    assert all(torch.equal(value, contents(network)[path]) for path, value in before.items())
    added = [overgrown.candidates[number] for number in chosen if overgrown.candidates[number].kind != "unlock"]
    counts = {name: sum(candidate.width == name for candidate in added) for name in network.neurons()}
    assert grown.neurons() == {name: count + counts[name] for name, count in network.neurons().items()}


@every_network
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.3, 0.7, 1.0]))
@few
def test_grown_is_the_overgrown_network_with_the_other_gates_at_zero(name, seed, share):
    torch.manual_seed(seed)
    network, sample = build(name)
    check_grown(overgrow(network, seed=seed), sample, seed, share)


@given(
    shape=st.builds(
        Shape,
        first=st.integers(1, 4),
        second=st.integers(1, 3),
        hidden=st.integers(1, 4),
        stride=st.integers(1, 2),
        bias=st.booleans(),
        normalized=st.booleans(),
    ),
    data=st.data(),
    seed=st.integers(0, 2**20),
)
@settings(derandomize=True, deadline=None, max_examples=20)
def test_any_mixture_of_candidates(shape, data, seed):
    """Some neurons of some widths unlocked, other widths split, new ones in some: around a flattening, a residual sum
    and depthwise filters."""
    torch.manual_seed(seed)
    network = wake(Toy(shape), torch.randn(8, 2, 6, 6, dtype=torch.float64))
    neurons = network.neurons()
    unlocks = {
        name: data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count), label=name)
        for name, count in neurons.items()
    }
    new = {name: data.draw(st.integers(0, 2)) for name in neurons}
    overgrown = overgrow(network, new=new, unlocks=unlocks, splits=True, seed=seed)
    kinds = {name: {c.kind for c in overgrown.candidates if c.width == name} for name in neurons}
    for name in neurons:
        assert ("split" in kinds[name]) == (not unlocks[name])
        indices = [c.index for c in overgrown.candidates if (c.width, c.kind) == (name, "unlock")]
        assert indices == sorted(unlocks[name])
    check_grown(overgrown, (2, 6, 6), seed, 0.6)


def test_a_growth_by_hand():
    """Neurons 0..3; 0 and 2 may be unlocked, one is new. Kept: 2 and the new one."""
    network = RadialNetwork(4).double()
    overgrown = overgrow(network, new=1, unlocks={"hidden": (0, 2)})
    hidden, output = overgrown._layers["hidden"], overgrown._layers["output"]
    epsilon = torch.tensor([9.0, 0.25, -0.5], dtype=torch.float64)
    grown = overgrown.grow([2, 1], epsilon).network
    theta = network.hidden.weight
    expected = torch.stack([theta[0], theta[1], theta[3], theta[2] + hidden.unlocks[1] / 4, hidden.rows[0]])
    assert torch.equal(grown.hidden.weight, expected)
    bias = network.hidden.bias
    expected = torch.stack([bias[0], bias[1], bias[3], bias[2] + hidden.unlock_biases[1] / 4, hidden.row_biases[0]])
    assert torch.equal(grown.hidden.bias, expected)
    w = network.output.weight[0]  # who read the neuron reads the copy, by the same weight
    assert torch.equal(grown.output.weight[0], torch.stack([w[0], w[1], w[3], w[2], -output.columns[0, 0] / 2]))


@every_network
def test_what_is_not_unlocked_keeps_its_bits(name):
    """Rows of the others, between the others; a copy keeps its batch norm and depthwise filter."""
    network, sample = build(name)
    overgrown = overgrow(network)
    train_norms(overgrown, torch.randn(6, *sample, dtype=torch.float64))
    chosen = list(range(len(overgrown.candidates)))
    grown = overgrown.grow(chosen, random_epsilon(overgrown, 0.1)).network
    unlocked = every_second(network)
    order = {}
    for width, count in network.neurons().items():
        moved = list(unlocked.get(width, ()))
        order[width] = ([n for n in range(count) if n not in moved], moved)
    for width in network.declare().widths:
        if not network.neurons()[width.name]:
            continue
        stay, moved = order[width.name]
        for path in width.written_by:
            read = [w.name for w in network.declare().widths if path in w.read_by]
            old, new = network.get_submodule(path).weight, grown.get_submodule(path).weight
            if not read:
                assert torch.equal(new[: len(stay)], old[stay])
                assert not torch.equal(new[len(stay) : len(stay) + len(moved)], old[moved])
        for path in width.along:
            for part, value in network.get_submodule(path).state_dict().items():
                if value.dim():
                    found = grown.get_submodule(path).state_dict()[part]
                    assert torch.equal(found[: len(stay) + len(moved)], value[[*stay, *moved]])


def test_a_locked_layer_between_two_widths_that_unlock_keeps_its_bits():
    """Rows that stay, columns of those who stay and of copies: the old weights; columns of new ones behind."""
    network = Perceptron(4, [4, 3], 2).double()
    overgrown = overgrow(network, unlocks={"layers.0.linear": [0, 1], "layers.1.linear": [2]}, new=1)
    grown = overgrown.grow(range(len(overgrown.candidates)), random_epsilon(overgrown, 0.1)).network
    old, new = network.layers[1].linear.weight, grown.layers[1].linear.weight
    assert torch.equal(new[:2, :4], old[:2][:, [2, 3, 0, 1]])
    assert (new[2, :4] != old[2, [2, 3, 0, 1]]).all()
    assert new.shape == (4, 5)
    assert (new[:3, 4] != 0).all()


# --- vectors, states, refusals ----------------------------------------------------------------------------------------


@every_network
def test_each_candidate_has_its_own_direction(name):
    network, _ = build(name)
    overgrown = overgrow(network)
    numbers = torch.arange(1.0, len(overgrown.candidates) + 1, dtype=torch.float64)
    norms = overgrown.direction_norms()
    overgrown.scale_directions(numbers)
    torch.testing.assert_close(overgrown.direction_norms(), norms * numbers)
    spread = overgrown.spread(numbers)
    entries = overgrown.sum_by_candidate([torch.ones_like(part) for part in spread])
    torch.testing.assert_close(overgrown.sum_by_candidate(spread), numbers * entries)
    widths = {width.name: width for width in network.declare().widths}
    for candidate, count in zip(overgrown.candidates, entries.tolist(), strict=True):
        if candidate.kind == "unlock":  # a filter in each layer that writes it, with its bias
            layers = [network.get_submodule(path) for path in widths[candidate.width].written_by]
            assert count == sum(layer.weight[0].numel() + (layer.bias is not None) for layer in layers)


def test_a_state_that_is_loaded_goes_on():
    network, sample = build("vgg of 8×8")
    inputs = torch.randn(8, *sample, dtype=torch.float64)
    batch = inputs, torch.randn_like(network(inputs).detach())
    outcomes = []
    for stopped in (False, True):
        overgrown = overgrow(network)
        start(overgrown, 0.1)
        descent = CandidateDescent(overgrown, 0.1)
        for step in range(4):
            if stopped and step == 2:
                states = copy.deepcopy((overgrown.state_dict(), descent.state_dict()))
                overgrown = overgrow(network, seed=5)
                descent = CandidateDescent(overgrown, 0.1)
                overgrown.load_state_dict(states[0])
                descent.load_state_dict(states[1])
            step_one(overgrown.train(), descent, batch, F.mse_loss, 0.1)
        outcomes.append(overgrown.state_dict())
    assert all(
        torch.equal(value, outcomes[1][key]) for key, value in outcomes[0].items() if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize(
    ("unlocks", "message"),
    [
        ({"layers.0.linear": [4]}, r"layers.0.linear has the neurons 0..3; unlocked, each once: \[4\]"),
        ({"layers.0.linear": [-1]}, "has the neurons 0..3"),
        ({"layers.0.linear": [1, 1]}, r"each once: \[1, 1\]"),
        ({"layers.9.linear": [0]}, "Unknown width"),
        ({}, "ask for splits, unlocks or new neurons"),
        ({"layers.0.linear": []}, "ask for splits, unlocks or new neurons"),
    ],
)
def test_wrong_unlocks(unlocks, message):
    with pytest.raises(InvalidInput, match=message):
        OvergrownNetwork(Perceptron(3, [4, 2], 2), splits=False, unlocks=unlocks)


def test_groups_are_refused():
    network = wake(Toy(Shape(groups=2)), torch.randn(5, 2, 6, 6, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="Grouped convolutions divide the width first"):
        overgrow(network, new=0, unlocks={"first": [0]})
