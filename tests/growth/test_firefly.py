"""Firefly's two steps: constraints, integrated gradients, Taylor's theorem, signs, and whole growths."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from growing_toys import contents, wake
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.growth import (
    Budget,
    OvergrownNetwork,
    Scores,
    integrated_gradients,
    integrated_gradients_by_coordinate,
    select_exactly,
    start,
    step_one,
    step_two,
    with_empty_layers,
    without_empty_layers,
)
from nasbook.networks import VGG, BlockStack, Growable, Perceptron, RadialNetwork

LARGEST = {"perceptron": 0.1, "vgg": 1e-3, "radial": 0.1}
"""Where the orders of ϵ begin to show: eight thin layers with norms bend much within 0.1."""


def steps_of(name: str, count: int = 5) -> list[float]:
    return [LARGEST[name] * 2.0**-k for k in range(count)]


def slope(steps, values) -> float:
    return float(np.polyfit(np.log(steps), np.log(values), 1)[0])


def perceptron() -> tuple[Growable, tuple[torch.Tensor, torch.Tensor]]:
    """Smooth, with two widths and an empty layer after the first."""
    network = Perceptron(3, [4, 3], 2, nn.Tanh).double()
    network = with_empty_layers(network, {"layers.0.inserted": 1}).network
    inputs = torch.randn(40, 3, dtype=torch.float64)
    return network.eval(), (inputs, torch.randn(40, 2, dtype=torch.float64))


def smooth_vgg() -> tuple[Growable, tuple[torch.Tensor, torch.Tensor]]:
    """Norms in evaluation mode are linear, and tanh stands for ReLU. Max pools stay: their kinks are rarely met."""
    network = VGG("vgg11", [3, 2, 3, 2, 2, 2, 2, 3], in_channels=1, size=8)
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(path, nn.Tanh())
    inputs = torch.randn(12, 1, 8, 8, dtype=torch.float64)
    return wake(network, inputs), (inputs, torch.randn(12, 10, dtype=torch.float64))


def radial() -> tuple[Growable, tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.linspace(-4, 4, 60, dtype=torch.float64)[:, None]
    return RadialNetwork(4).double(), (inputs, inputs.sin())


SMOOTH = {"perceptron": perceptron, "vgg": smooth_vgg, "radial": radial}
every_smooth = pytest.mark.parametrize("name", SMOOTH)


def overgrow(network: Growable, new: int = 3, seed: int = 0, **options: object) -> OvergrownNetwork:
    return OvergrownNetwork(network, new=new, generator=torch.Generator().manual_seed(seed), **options).eval()


def signs_of(overgrown: OvergrownNetwork) -> torch.Tensor:
    draws = torch.Generator().manual_seed(7)
    return 1 - 2.0 * torch.randint(2, (len(overgrown.candidates),), generator=draws, dtype=torch.float64)


@torch.no_grad()
def loss_of(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(F.mse_loss(network(batch[0]), batch[1]))


# ---------------------------------------------------------------------------------- Taylor's theorem


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *[(name, integrated_gradients) for name in SMOOTH],
        ("perceptron", integrated_gradients_by_coordinate),
        ("radial", integrated_gradients_by_coordinate),
    ],
)
def test_the_prediction_of_eq_5_is_right_to_second_order(name, path):
    """Σ ε̂ s of a subset against the loss of the network grown by it; signs other than those of ε̃ too."""
    network, batch = SMOOTH[name]()
    overgrown = overgrow(network)
    chosen = list(range(0, len(overgrown.candidates), 2))
    errors, steps = [], steps_of(name)
    for step in steps:
        overgrown.set_epsilon(step * signs_of(overgrown))
        scores = path(overgrown, [batch], F.mse_loss)
        epsilon = scores.epsilon(step)
        change = loss_of(overgrown.grow(chosen, epsilon).network.eval(), batch) - loss_of(network, batch)
        errors.append(abs(change - float(scores.changes(step)[chosen].sum())))
    assert slope(steps, errors) == pytest.approx(2, abs=0.1)


@every_smooth
def test_along_the_common_path_the_sum_is_complete(name):
    """Σ ε̃ s → L(ε̃) − L(0): the midpoint rule's error falls with 1/n², and with ε³."""
    network, batch = SMOOTH[name]()
    overgrown = overgrow(network)

    def error(step: float, points: int) -> float:
        overgrown.set_epsilon(step * signs_of(overgrown))
        change = loss_of(overgrown, batch) - loss_of(network, batch)
        scores = integrated_gradients(overgrown, [batch], F.mse_loss, points)
        return abs(float(scores.reached @ scores.gradients) - change)

    by_points = [error(LARGEST[name], points) for points in (4, 8, 16, 32)]
    assert slope([4, 8, 16, 32], by_points) == pytest.approx(-2, abs=0.1)
    assert slope(steps_of(name), [error(step, 3) for step in steps_of(name)]) == pytest.approx(3, abs=0.25)


@every_smooth
def test_splits_alone_are_predicted_to_fourth_order(name):
    """Their loss is even in every gate: ½ε²λ is met exactly by the integrated gradient, and not by the one at 0."""
    network, batch = SMOOTH[name]()
    overgrown = overgrow(network, new=0)
    errors, changes, steps = [], [], steps_of(name, 4)
    for step in steps:
        overgrown.set_epsilon(step)
        scores = integrated_gradients(overgrown, [batch], F.mse_loss)
        changes.append(abs(loss_of(overgrown, batch) - loss_of(network, batch)))
        errors.append(abs(float(scores.changes(step).sum()) - loss_of(overgrown, batch) + loss_of(network, batch)))
    assert slope(steps, changes) == pytest.approx(2, abs=0.1)
    assert slope(steps, errors) == pytest.approx(4, abs=0.3)
    overgrown.set_epsilon(0.0)
    assert float(integrated_gradients(overgrown, [batch], F.mse_loss).gradients.abs().max()) < 1e-15


@pytest.mark.parametrize("name", ["perceptron", "radial"])
def test_both_paths_have_the_same_leading_order(name):
    network, batch = SMOOTH[name]()
    overgrown = overgrow(network, 2)
    differences, steps = [], steps_of(name)
    for step in steps:
        overgrown.set_epsilon(step * signs_of(overgrown))
        together = integrated_gradients(overgrown, [batch], F.mse_loss).gradients
        alone = integrated_gradients_by_coordinate(overgrown, [batch], F.mse_loss).gradients
        differences.append(float((together - alone).abs().max()))
    assert min(differences) > 1e-9  # they are not the same
    assert slope(steps, differences) == pytest.approx(1, abs=0.15)


def test_gradients_are_those_of_the_midpoints():
    """Both paths written out, by differences of the loss in one gate."""
    network, batch = radial()
    overgrown = overgrow(network, 2)
    reached = 0.3 * signs_of(overgrown)

    def slope_at(epsilon: torch.Tensor, index: int) -> float:
        values = []
        for sign in (1, -1):
            moved = epsilon.clone()
            moved[index] += sign * 1e-5
            overgrown.set_epsilon(moved)
            values.append(loss_of(overgrown, batch))
        return (values[0] - values[1]) / 2e-5

    for path in (integrated_gradients, integrated_gradients_by_coordinate):
        overgrown.set_epsilon(reached)
        found = path(overgrown, [batch], F.mse_loss, 2)
        assert torch.equal(overgrown.epsilon(), reached)  # left where they were
        for index in range(len(reached)):
            values = []
            for place in (1 / 4, 3 / 4):
                moved = place * reached if path is integrated_gradients else reached.clone()
                moved[index] = place * reached[index]
                values.append(slope_at(moved, index))
            assert float(found.gradients[index]) == pytest.approx(sum(values) / 2, abs=1e-8)


@pytest.mark.parametrize("path", [integrated_gradients, integrated_gradients_by_coordinate])
def test_batches_count_by_their_images(path):
    network, (inputs, targets) = perceptron()
    overgrown = overgrow(network)
    overgrown.set_epsilon(0.1)
    whole = path(overgrown, [(inputs, targets)], F.mse_loss).gradients
    parts = path(overgrown, zip(inputs.split(17), targets.split(17), strict=True), F.mse_loss).gradients
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_scoring_leaves_modes_and_statistics_alone():
    network, batch = smooth_vgg()
    overgrown = overgrow(network).train()
    overgrown._norms["layers.3.norm"].eval()
    overgrown.set_epsilon(0.1)
    before = contents(overgrown)
    integrated_gradients(overgrown, [batch], F.mse_loss)
    assert overgrown.training
    assert not overgrown._norms["layers.3.norm"].training
    assert all(torch.equal(v, contents(overgrown)[n]) for n, v in before.items())
    assert all(part.grad is None for part in overgrown.parameters())


# ----------------------------------------------------------------------------------------------- signs


def test_rules_for_signs():
    """New neurons turn an increase into a decrease; a split can't, and stays on the side that was trained."""
    scores = Scores(
        gradients=torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0, 2.0, -2.0, 2.0, -2.0, 3.0]),
        reached=torch.tensor([0.1, 0.1, -0.1, -0.1, 0.1, 0.1, 0.1, -0.1, -0.1, 0.0]),
        is_split=torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
    )
    assert scores.epsilon(0.5).tolist() == [-0.5, 0.5, -0.5, 0.5, 0.0, 0.5, 0.5, -0.5, -0.5, 0.5]
    assert scores.changes(0.5).tolist() == [-1, -1, -1, -1, 0, 1, -1, -1, 1, 1.5]


def test_splits_score_the_same_on_both_sides():
    network, batch = perceptron()
    overgrown = overgrow(network, new=0)
    found = []
    for sign in (1, -1):
        overgrown.set_epsilon(0.1 * sign)
        scores = integrated_gradients(overgrown, [batch], F.mse_loss)
        found.append(scores.changes(0.1))
        assert scores.is_split.all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-15)
    assert found[0].min() < 0 < found[0].max()  # some would lower the loss, some raise it


def test_dead_neurons_are_never_chosen():
    """A ReLU that no input reaches, and a new neuron that nothing reads."""
    network = Perceptron(3, [4], 2).double()
    network.layers[0].linear.bias.data[2] = -100
    batch = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    overgrown = overgrow(network)
    with torch.no_grad():
        overgrown._layers["layers.0.linear"].row_biases[0] = -100
        overgrown._layers["classifier"].columns[:, 1] = 0
    overgrown.set_epsilon(0.1)
    scores = integrated_gradients(overgrown, [batch], F.mse_loss)
    dead = [2, 4, 5]  # splits 0..3, new neurons 4..6
    assert not scores.gradients[dead].any()
    assert scores.gradients[[0, 1, 3, 6]].all()
    for choose in (None, select_exactly):
        options = {} if choose is None else {"choose": choose}
        assert not set(step_two(overgrown, scores, Budget(7), 0.1, **options).chosen) & set(dead)


# -------------------------------------------------------------------------------------------- step one


@pytest.mark.parametrize("rate", [1e-3, 1e3])
def test_constraints_hold_after_every_step(rate):
    network, batch = smooth_vgg()
    before = contents(network)
    overgrown = overgrow(network).train()
    inner = {n: v.clone() for n, v in overgrown.network.named_buffers() if ".new_" not in n and "batches" not in n}
    start(overgrown, 0.1)
    assert overgrown.epsilon().tolist() == [0.1] * len(overgrown.candidates)
    optimizer = torch.optim.SGD([*overgrown.gate_parameters(), *overgrown.directions()], rate)
    for _ in range(10):
        step_one(overgrown, optimizer, batch, F.mse_loss, 0.1)
        assert float(overgrown.epsilon().abs().max()) <= 0.1
        assert float(overgrown.direction_norms().max()) <= 1 + 1e-12
    if rate > 1:
        assert float(overgrown.direction_norms().max()) == pytest.approx(1, abs=1e-12)  # the ball was met
    assert all(torch.equal(v, contents(network)[n]) for n, v in before.items())
    assert all(torch.equal(v, dict(overgrown.network.named_buffers())[n]) for n, v in inner.items())


@every_smooth
def test_step_one_lowers_the_loss(name):
    network, batch = SMOOTH[name]()
    overgrown = overgrow(network)
    start(overgrown, 0.1)
    at_start = loss_of(overgrown, batch)
    optimizer = torch.optim.SGD([*overgrown.gate_parameters(), *overgrown.directions()], 0.05)
    losses = [float(step_one(overgrown, optimizer, batch, F.mse_loss, 0.1)[0]) for _ in range(60)]
    assert losses[0] == pytest.approx(at_start, rel=1e-12)  # the loss before the step
    if name != "vgg":  # whose pools have kinks
        assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < loss_of(network, batch)


def test_without_open_gates_directions_get_no_gradient():
    """Why step one starts at ϵ."""
    network, batch = perceptron()
    overgrown = overgrow(network)
    for gate, moves in ((0.0, False), (0.1, True)):
        overgrown.zero_grad()
        overgrown.set_epsilon(gate)
        F.mse_loss(overgrown(batch[0]), batch[1]).backward()
        assert any(part.grad.any() for part in overgrown.directions()) == moves


def test_step_one_again_gives_the_same_bits():
    network, batch = smooth_vgg()
    found = []
    for _ in range(2):
        overgrown = overgrow(network).train()
        start(overgrown, 0.1)
        optimizer = torch.optim.Adam(overgrown.parameters(), 0.01)
        for _ in range(3):
            step_one(overgrown, optimizer, batch, F.mse_loss, 0.1)
        found.append(contents(overgrown))
    assert all(torch.equal(v, found[1][n]) for n, v in found[0].items())


# ------------------------------------------------------------------------------------- both steps


@every_smooth
@pytest.mark.parametrize("neurons", [0, 1, 4])
def test_a_growth_keeps_the_best_and_lowers_the_loss(name, neurons):
    network, batch = SMOOTH[name]()
    overgrown = overgrow(network)
    start(overgrown, 0.1)
    optimizer = torch.optim.SGD(overgrown.parameters(), 0.05)
    for _ in range(50):
        step_one(overgrown, optimizer, batch, F.mse_loss, 0.1)
    scores = integrated_gradients(overgrown, [batch], F.mse_loss)
    descent = step_two(overgrown, scores, Budget(neurons), 0.1)
    changes = scores.changes(0.1)
    assert sorted(descent.chosen) == sorted(changes.argsort()[:neurons].tolist())
    assert descent.predicted == pytest.approx(float(changes.sort().values[:neurons].sum()), rel=1e-12)
    grown = descent.grown.network.eval()
    assert sum(grown.neurons().values()) == sum(network.neurons().values()) + neurons
    change = loss_of(grown, batch) - loss_of(network, batch)
    assert change == 0 if neurons == 0 else change < 0
    if neurons:
        assert name == "vgg" or change == pytest.approx(descent.predicted, rel=0.3)


@pytest.mark.parametrize("least", [1, 3])
def test_new_layers_come_within_their_budget(least):
    """§2.3 whole: empty layers in, both steps, empty layers out."""
    stack = BlockStack(3, classes=3, in_channels=1)
    inputs = torch.randn(16, 1, 16, 16, dtype=torch.float64)
    network = with_empty_layers(wake(stack, inputs), 2).network.eval()
    targets = torch.randint(3, (16,))
    overgrown = overgrow(network, new=4).train()
    start(overgrown, 0.1)
    optimizer = torch.optim.SGD(overgrown.parameters(), 0.05)
    for _ in range(5):
        step_one(overgrown, optimizer, (inputs, targets), F.cross_entropy, 0.1)
    scores = integrated_gradients(overgrown, [(inputs, targets)], F.cross_entropy)
    descent = step_two(overgrown, scores, Budget(30, layers=2, least=least), 0.1)
    grown = without_empty_layers(descent.grown.network)
    added = {n: k for n, k in descent.grown.network.neurons().items() if "inserted" in n and k}
    assert 1 <= len(added) <= 2
    assert min(added.values()) >= least
    assert sum(grown.network.structure()) == 4 + len(added)
    with torch.no_grad():
        assert torch.equal(grown.network.eval()(inputs), descent.grown.network.eval()(inputs))
    without = step_two(overgrown, scores, Budget(12, layers=0), 0.1)
    assert without_empty_layers(without.grown.network).network.structure() == (1, 1, 1, 1)
    assert len(without.chosen) == 12


def test_the_grown_network_trains_on():
    network, batch = perceptron()
    overgrown = overgrow(network)
    overgrown.set_epsilon(0.1)
    scores = integrated_gradients(overgrown, [batch], F.mse_loss)
    grown = step_two(overgrown, scores, Budget(5), 0.1).grown.network
    assert all(parameter.requires_grad for parameter in grown.parameters())
    before = loss_of(grown, batch)
    optimizer = torch.optim.SGD(grown.parameters(), 0.05)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(grown(batch[0]), batch[1]).backward()
        optimizer.step()
    assert loss_of(grown, batch) < before
    assert copy.deepcopy(grown).neurons() == grown.neurons()


# --------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("path", [integrated_gradients, integrated_gradients_by_coordinate])
def test_gradients_need_points_and_batches(path):
    network, batch = radial()
    overgrown = overgrow(network)
    with pytest.raises(InvalidInput, match="points"):
        path(overgrown, [batch], F.mse_loss, 0)
    with pytest.raises(InvalidInput, match="no batches"):
        path(overgrown, [], F.mse_loss)


@pytest.mark.parametrize("radius", [0.0, -0.1])
def test_a_radius_is_above_zero(radius):
    network, batch = radial()
    overgrown = overgrow(network)
    with pytest.raises(InvalidInput, match="radius"):
        start(overgrown, radius)
    with pytest.raises(InvalidInput, match="radius"):
        step_one(overgrown, torch.optim.SGD(overgrown.parameters(), 0.1), batch, F.mse_loss, radius)
