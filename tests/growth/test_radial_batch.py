"""Radial networks in a batch: gradient, Adam, splits, and how each method grows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

import nasbook.growth as general
from nasbook.errors import InvalidInput
from nasbook.growth.radial_batch import (
    Addition,
    OvergrownBatch,
    RadialBatch,
    RadialData,
    RandomTries,
    annealed,
    constant,
    firefly,
    integrated_gradients,
    least_eigenpairs,
    loss,
    loss_gradient,
    outputs,
    overgrow,
    random_search,
    splitting_descent,
    splitting_matrices,
    train,
)
from nasbook.networks.radial import RadialNetwork

few = settings(derandomize=True, deadline=None, max_examples=15)
sizes = st.integers(1, 4)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_data(seed, networks, points=40):
    return RadialData(normal(seed, networks, points) * 2, normal(seed + 1, networks, points))


def one_loss(neurons, x, y):
    return loss(neurons[None], RadialData(x[None], y[None]))[0]


def bent(sign, networks=1):
    """A neuron, and labels for which its splitting matrix is positive (+1) or negative (-1) definite.

    S = 2 E[r (t² - 1) σ (x, 1)(x, 1)ᵀ], and the residual r is ± (t² - 1) σ.
    """
    neurons = torch.tensor([[[1.0, 0.8, 0.3]]], dtype=torch.float64).repeat(networks, 1, 1)
    x = torch.linspace(-4, 4, 60, dtype=torch.float64).repeat(networks, 1)
    t = 0.8 * x + 0.3
    return neurons, RadialData(x, outputs(neurons, x) - sign * (t.square() - 1) * torch.exp(-t.square() / 2))


def apart(grown, neuron=0):
    """Half of the distance between the halves of the only neuron."""
    return (grown.neurons[:, neuron, 1:] - grown.neurons[:, -1, 1:]) / 2


# --- loss and gradient ------------------------------------------------------------------------------------------------


def test_outputs_by_hand():
    neurons = torch.tensor([[[2.0, 1.0, -1.0], [3.0, 0.0, 2.0]]], dtype=torch.float64)
    expected = [2 * math.exp(-(t**2) / 2) + 3 * math.exp(-2) for t in (-1, 0, 1)]
    assert outputs(neurons, torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64))[0].tolist() == pytest.approx(expected)
    data = RadialData(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    f = expected[0]
    assert loss(neurons, data).item() == pytest.approx((f**2 + (f - 1) ** 2) / 2)
    assert data.variance.item() == pytest.approx(0.25)


def test_outputs_are_the_radial_networks():
    network = RadialNetwork(5).double()
    neurons = torch.stack([network.output.weight[0], network.hidden.weight[:, 0], network.hidden.bias], 1)[None]
    x = normal(0, 1, 30)
    assert torch.allclose(outputs(neurons, x)[0], network(x.T)[:, 0], atol=1e-14)


@few
@given(sizes, sizes, st.integers(1, 40), st.integers(0, 99))
def test_the_gradient_is_autograds(networks, count, points, seed):
    neurons, data = normal(seed, networks, count, 3), some_data(seed + 1, networks, points)
    expected = torch.func.vmap(torch.func.grad(one_loss))(neurons, data.x, data.y)
    assert torch.allclose(loss_gradient(neurons, data), expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_in_single_precision():
    neurons, data = normal(3, 6, 9, 3) * 2, some_data(4, 6, 1000)
    single = loss_gradient(neurons.float(), RadialData(data.x.float(), data.y.float()))
    assert torch.allclose(single.double(), loss_gradient(neurons, data), atol=2e-5)


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_is_adam():
    data, start = some_data(0, 2), normal(2, 2, 3, 3)
    neurons = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([neurons], lr=0.05)
    for iteration in range(60):
        for group in optimizer.param_groups:
            group["lr"] = annealed(0.05, 60)(iteration)
        optimizer.zero_grad()
        loss(neurons, data).sum().backward()
        optimizer.step()
    trained = train(RadialBatch.fresh(start), data, 60, annealed(0.05, 60))
    assert torch.allclose(trained.neurons, neurons.detach(), atol=1e-10)
    assert trained.age.tolist() == [[60.0] * 3] * 2
    assert torch.equal(start, normal(2, 2, 3, 3))
    assert (loss(trained.neurons, data) < loss(start, data)).all()


def test_training_in_two_calls_is_training_in_one():
    data, batch = some_data(0, 2), RadialBatch.fresh(normal(2, 2, 3, 3))
    once = train(batch, data, 50, constant(0.02))
    twice = train(train(batch, data, 20, constant(0.02)), data, 30, constant(0.02))
    assert torch.allclose(once.neurons, twice.neurons, atol=1e-12)


def test_rates():
    assert [constant(0.3)(i) for i in (0, 7)] == [0.3, 0.3]
    assert [annealed(0.4, 100)(i) for i in (0, 50, 100)] == pytest.approx([0.4, 0.2, 0.0])


def test_every_network_needs_its_data():
    with pytest.raises(InvalidInput, match="3 networks and data for 2"):
        train(RadialBatch.fresh(normal(0, 3, 1, 3)), some_data(0, 2), 1, constant(0.1))


# --- one neuron more --------------------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    return train(RadialBatch.fresh(normal(5, 3, 2, 3)), some_data(6, 3), 10, constant(0.02))


def test_an_addition_splits_or_adds(trained):
    before = trained.neurons.clone()
    offset, new = normal(7, 3, 2), normal(8, 3, 3)
    grown = Addition(torch.tensor([1, -1, 0]), offset, new).apply(trained)
    assert grown.neurons.shape == (3, 3, 3)
    assert torch.equal(trained.neurons, before)
    for network, (place, other) in enumerate([(1, 0), (None, None), (0, 1)]):
        rows = grown.neurons[network]
        if place is None:
            assert torch.equal(rows[:2], before[network]) and torch.equal(rows[2], new[network])
            assert torch.equal(grown.first[network, :2], trained.first[network])
            assert grown.age[network].tolist() == [10, 10, 0]
        else:
            w, theta = before[network, place, 0] / 2, before[network, place, 1:]
            assert torch.equal(rows[place], torch.cat([w[None], theta + offset[network]]))
            assert torch.equal(rows[2], torch.cat([w[None], theta - offset[network]]))
            assert torch.equal(rows[other], before[network, other])
            assert torch.equal(grown.second[network, other], trained.second[network, other])
            assert not grown.first[network, [place, 2]].any() and not grown.second[network, [place, 2]].any()
            assert grown.age[network, other] == 10 and not grown.age[network, [place, 2]].any()


def test_a_split_that_does_not_move_keeps_the_function(trained):
    x = some_data(6, 3).x
    grown = Addition(torch.tensor([0, 1, 1]), torch.zeros(3, 2), torch.zeros(3, 3)).apply(trained)
    assert torch.allclose(outputs(grown.neurons, x), outputs(trained.neurons, x), atol=1e-14)


@pytest.mark.parametrize("place", [2, -2])
def test_a_split_of_no_neuron_is_refused(trained, place):
    with pytest.raises(InvalidInput, match="Neurons 0 to 1 can be split"):
        Addition(torch.tensor([0, place, 0]), torch.zeros(3, 2), torch.zeros(3, 3)).apply(trained)


def test_batches_are_taken_apart_and_joined(trained):
    again = RadialBatch.join([trained.rows(slice(0, 1)), trained.rows(torch.tensor([1, 2]))])
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(trained).items())
    assert len(again) == 3
    assert torch.equal(some_data(6, 3).repeat(2).y[3:], some_data(6, 3).y)


# --- splitting --------------------------------------------------------------------------------------------------------


@few
@given(sizes, sizes, st.integers(0, 99))
def test_splitting_matrices_are_second_derivatives_along_splits(networks, count, seed):
    neurons, data, v = normal(seed, networks, count, 3), some_data(seed + 1, networks), normal(seed + 2, networks, 2)
    matrices = splitting_matrices(neurons, data)
    batch = RadialBatch.fresh(neurons)
    for place in range(count):
        predicted = torch.einsum("ni,nij,nj->n", v, matrices[:, place], v) / 2
        errors = []
        for step in (1e-2, 5e-3):
            split = Addition(torch.full((networks,), place), step * v, torch.zeros(networks, 3)).apply(batch)
            errors.append((loss(split.neurons, data) - loss(neurons, data)) / step**2 - predicted)
        # What remains is of second order: half the step leaves a quarter.
        assert torch.allclose(errors[1], errors[0] / 4, atol=1e-6)


@few
@given(st.tuples(*[st.floats(-10, 10)] * 3))
def test_least_eigenpairs_are_eighs(entries):
    a, b, d = entries
    matrix = torch.tensor([[a, b], [b, d]], dtype=torch.float64)
    value, vector = least_eigenpairs(matrix)
    assert value.item() == pytest.approx(torch.linalg.eigvalsh(matrix)[0].item(), abs=1e-12)
    assert vector.norm().item() == pytest.approx(1)
    assert torch.allclose(matrix @ vector, value * vector, atol=1e-12)


def test_the_neuron_with_the_least_eigenvalue_splits():
    neurons, data = normal(11, 4, 5, 3), some_data(12, 4)
    values, vectors = torch.linalg.eigh(splitting_matrices(neurons, data))
    least, places = values[:, :, 0].min(1)
    growth = splitting_descent(RadialBatch.fresh(neurons), data, 0.01)
    assert (least < 0).all() and not growth.reluctant.any() and not growth.new.any()
    for network, place in enumerate(places):
        moved = apart(growth.batch, place)[network] / 0.01
        assert abs(moved @ vectors[network, place, :, 0]).item() == pytest.approx(1)
    change = loss(growth.batch.neurons, data) - loss(neurons, data)
    assert torch.allclose(change, least * 0.01**2 / 2, rtol=1e-3)


def test_a_positive_matrix_raises_the_loss_and_a_negative_one_lowers_it():
    for sign in (1, -1):
        neurons, data = bent(sign, networks=2)
        growth = splitting_descent(RadialBatch.fresh(neurons), data, 0.05)
        assert growth.reluctant.tolist() == [sign > 0] * 2
        assert growth.batch.neurons.shape == (2, 2, 3)
        assert ((loss(growth.batch.neurons, data) > loss(neurons, data)) == (sign > 0)).all()


# --- firefly ----------------------------------------------------------------------------------------------------------


def overgrown_of(seed, networks=3, count=4, new=2, radius=0.05):
    return OvergrownBatch(
        normal(seed, networks, count, 3),
        (torch.rand(networks, count + new, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1) * radius,
        normal(seed + 1, networks, count, 2) / 4,
        normal(seed + 2, networks, new, 3) / 4,
    )


def test_the_over_grown_network_by_its_formula():
    over, x = overgrown_of(0), some_data(1, 3).x

    def sigma(theta):
        return torch.exp(-(theta[:, :1] * x + theta[:, 1:]).square() / 2)

    expected = torch.zeros_like(x)
    for i in range(4):
        w, theta, step = over.neurons[:, i, :1], over.neurons[:, i, 1:], over.gates[:, i, None] * over.splits[:, i]
        expected += w / 2 * (sigma(theta + step) + sigma(theta - step))
    for j in range(2):
        expected += over.gates[:, 4 + j, None] * over.new[:, j, :1] * sigma(over.new[:, j, 1:])
    assert torch.allclose(outputs(over.expand(), x), expected, atol=1e-14)


def test_closed_gates_are_the_old_network_and_open_ones_are_near():
    over, data = overgrown_of(0), some_data(1, 3)
    old = outputs(over.neurons, data.x)
    closed = replace(over, gates=torch.zeros_like(over.gates))
    assert torch.allclose(outputs(closed.expand(), data.x), old, atol=1e-14)
    assert torch.allclose(closed.loss(data), loss(over.neurons, data))
    far = [
        (outputs(replace(over, gates=over.gates * step).expand(), data.x) - old).abs().max().item()
        for step in (1e-1, 1e-2)
    ]
    assert far[0] / far[1] == pytest.approx(10, rel=0.05)


@few
@given(sizes, sizes, st.integers(0, 3), st.integers(0, 99))
def test_the_over_grown_gradient_is_autograds(networks, count, new, seed):
    over, data = overgrown_of(seed, networks, count, new, radius=1.0), some_data(seed + 3, networks)
    parts = [part.requires_grad_() for part in (over.gates, over.splits, over.new)]
    over.loss(data).sum().backward()
    slope = over.gradient(data)
    for part, found in zip(parts, (slope.gates, slope.splits, slope.new), strict=True):
        expected = torch.zeros_like(part) if part.grad is None else part.grad
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


@few
@given(sizes, st.integers(0, 3), st.floats(1e-3, 0.5), st.integers(0, 99))
def test_step_one_stays_in_the_neighbourhood_and_lowers_the_loss(count, new, radius, seed):
    start, data = overgrown_of(seed, 2, count, new, radius=2.0), some_data(seed + 3, 2)
    start = replace(start, splits=start.splits * 9, new=start.new * 9)
    trained = overgrow(start, data, radius, 100)
    assert trained.gates.abs().max() <= radius
    for directions in (trained.splits, trained.new):
        assert (directions.norm(dim=2) <= 1 + 1e-12).all()
    assert torch.equal(trained.neurons, start.neurons)
    projected = overgrow(start, data, radius, 1)
    assert (trained.loss(data) <= projected.loss(data) + 1e-12).all()


def test_splits_alone_find_the_least_eigenvectors():
    neurons, data = normal(11, 4, 5, 3), some_data(12, 4)
    values, vectors = torch.linalg.eigh(splitting_matrices(neurons, data))
    radius = 1e-3
    start = OvergrownBatch(
        neurons, torch.full((4, 5), radius, dtype=torch.float64), normal(13, 4, 5, 2) / 3, normal(0, 4, 0, 3)
    )
    negative = values[:, :, 0] < 0
    assert negative.sum() > 10
    for iterations, least in ((100, 0.96), (1000, 0.999)):
        found = overgrow(start, data, radius, iterations)
        aligned = (found.splits * vectors[:, :, :, 0]).sum(2).abs()
        assert aligned[negative].min() > least  # 1 is the eigenvector itself, at the unit ball's surface
    growth = firefly(RadialBatch.fresh(neurons), data, start.splits, start.new, radius, 100)
    steepest = splitting_descent(RadialBatch.fresh(neurons), data, radius)
    change, best = (loss(g.batch.neurons, data) - loss(neurons, data) for g in (growth, steepest))
    assert torch.allclose(change, best, rtol=0.05) and (best < 0).all()


def test_scores_are_changes_of_the_loss():
    over, data = overgrown_of(0), some_data(1, 3)
    for samples, error in ((3, 1e-6), (60, 1e-8)):
        scores = integrated_gradients(over, data, samples)
        for i in range(6):
            gates = over.gates.clone()
            gates[:, i] = 0
            change = over.loss(data) - replace(over, gates=gates).loss(data)
            assert torch.allclose(scores[:, i] * over.gates[:, i], change, atol=error)


def test_three_midpoints_as_the_paper_writes_them():
    over, data = overgrown_of(0), some_data(1, 3)
    expected = torch.zeros(3, dtype=torch.float64)
    for fraction in (1 / 6, 3 / 6, 5 / 6):
        gates = over.gates.clone()
        gates[:, 4] *= fraction
        gates.requires_grad_()
        (slope,) = torch.autograd.grad(replace(over, gates=gates).loss(data).sum(), gates)
        expected += slope[:, 4] / 3
    assert torch.allclose(integrated_gradients(over, data)[:, 4], expected, atol=1e-12)


@pytest.mark.parametrize("new", [0, 3])
def test_firefly_keeps_the_candidate_that_lowers_the_loss_most(new):
    neurons, data, radius = normal(21, 5, 3, 3), some_data(22, 5), 0.01
    splits, fresh = normal(23, 5, 3, 2) / 3, normal(24, 5, new, 3) / 3
    growth = firefly(RadialBatch.fresh(neurons), data, splits, fresh, radius, 100)
    start = OvergrownBatch(neurons, torch.full((5, 3 + new), radius, dtype=torch.float64), splits, fresh)
    over = overgrow(start, data, radius, 100)
    changes = []
    for candidate in range(3 + new):
        for gate in (radius, -radius):
            gates = torch.zeros_like(over.gates)
            gates[:, candidate] = gate
            changes.append(replace(over, gates=gates).loss(data) - loss(neurons, data))
    change = loss(growth.batch.neurons, data) - loss(neurons, data)
    # Other gates were open when the scores were taken, which matters to O(ε²) against O(ε), or to O(ε⁴) against O(ε²).
    assert torch.allclose(change, torch.stack(changes).min(0).values, rtol=0.05)
    assert (change < 0).all() and not growth.reluctant.any()
    assert growth.new.tolist() == [new > 0] * 5  # of the first order in ε, where splits are of the second


def test_a_kept_new_neuron_is_small():
    neurons, data = normal(21, 5, 3, 3), some_data(22, 5)
    batch = RadialBatch.fresh(neurons)
    growth = firefly(batch, data, normal(23, 5, 3, 2) / 3, normal(24, 5, 2, 3) / 3, 0.01, 100)
    assert growth.new.all()
    assert torch.equal(growth.batch.neurons[:, :3], neurons)
    assert (growth.batch.neurons[:, 3, 0].abs() <= 0.01).all() and growth.batch.neurons[:, 3, 0].all()


def test_firefly_is_reluctant_where_only_increases_are_left():
    neurons, data = bent(1, networks=2)
    nothing = torch.zeros(2, 0, 3, dtype=torch.float64)
    growth = firefly(RadialBatch.fresh(neurons), data, normal(0, 2, 1, 2), nothing, 0.05, 100)
    assert growth.reluctant.all() and growth.batch.neurons.shape == (2, 2, 3)
    neurons, data = bent(-1, networks=2)
    growth = firefly(RadialBatch.fresh(neurons), data, normal(0, 2, 1, 2), nothing, 0.05, 100)
    assert not growth.reluctant.any() and (loss(growth.batch.neurons, data) < loss(neurons, data)).all()


def test_a_split_is_kept_for_its_decrease_and_not_for_its_gradient():
    """|s| of a split that raises the loss would be chosen by the paper's rule; a smaller decrease is chosen here."""
    rising, data = bent(1)
    idle = torch.tensor([[[-0.02, 0.8, -0.4]]], dtype=torch.float64)
    neurons = torch.cat([rising, idle], 1)
    data = RadialData(data.x, data.y + outputs(idle, data.x))
    least = least_eigenpairs(splitting_matrices(neurons, data))[0][0]
    assert least[0] > 0 > least[1] and least[0] > -least[1]
    nothing = torch.zeros(1, 0, 3, dtype=torch.float64)
    growth = firefly(RadialBatch.fresh(neurons), data, normal(0, 1, 2, 2), nothing, 0.01, 3)
    assert not growth.reluctant.any()
    assert torch.equal(growth.batch.neurons[0, 0], neurons[0, 0])
    assert loss(growth.batch.neurons, data) < loss(neurons, data)


@pytest.mark.parametrize("wrong", [{"radius": 0.0}, {"iterations": 0}])
def test_no_neighbourhood_or_no_steps_are_refused(wrong):
    neurons, data = bent(1)
    arguments = {"radius": 0.1, "iterations": 5, **wrong}
    with pytest.raises(InvalidInput, match=f"{next(iter(wrong))} must be above 0"):
        firefly(RadialBatch.fresh(neurons), data, normal(0, 1, 1, 2), normal(0, 1, 0, 3), **arguments)
    with pytest.raises(InvalidInput, match="radius must be above 0"):
        splitting_descent(RadialBatch.fresh(neurons), data, 0.0)


# --- random search ----------------------------------------------------------------------------------------------------


def tries_of(choices, networks):
    directions = normal(31, len(choices), networks, 2)
    return RandomTries(
        torch.tensor(choices)[:, None].repeat(1, networks), directions / directions.norm(dim=2, keepdim=True)
    )


@pytest.mark.parametrize(("choice", "chosen"), [(0.0, 0), (0.49, 1), (0.5, 2), (0.999, 3)])
def test_a_number_in_the_unit_interval_chooses_a_candidate(choice, chosen):
    neurons, data, new = normal(21, 3, 2, 3), some_data(22, 3), normal(24, 3, 2, 3)
    tries = tries_of([choice], 3)
    growth = random_search(RadialBatch.fresh(neurons), data, tries, new, 0.01, 0, constant(0.1))
    assert growth.new.tolist() == [chosen >= 2] * 3 and not growth.reluctant.any()
    if chosen < 2:
        assert torch.allclose(apart(growth.batch, chosen), 0.01 * tries.directions[0])
    else:
        assert torch.allclose(growth.batch.neurons[:, 2, 0], 0.01 * new[:, chosen - 2, 0])
        assert torch.equal(growth.batch.neurons[:, 2, 1:], new[:, chosen - 2, 1:])


def test_random_search_keeps_the_best_of_its_tuned_tries():
    batch, data = RadialBatch.fresh(normal(21, 6, 2, 3)), some_data(22, 6)
    new = normal(24, 6, 2, 3)
    tries = tries_of([0.1, 0.3, 0.9], 6)
    single = [
        random_search(batch, data, RandomTries(c[None], d[None]), new, 0.01, 40, constant(0.05))
        for c, d in zip(tries.choices, tries.directions, strict=True)
    ]
    losses = torch.stack([loss(growth.batch.neurons, data) for growth in single])
    best = losses.argmin(0)
    assert len(best.unique()) > 1
    growth = random_search(batch, data, tries, new, 0.01, 40, constant(0.05))
    for network, winner in enumerate(best):
        for name, value in vars(growth.batch).items():
            assert torch.allclose(value[network], vars(single[winner].batch)[name][network], atol=1e-12)
    assert growth.new.tolist() == [winner == 2 for winner in best.tolist()]


def test_without_new_neurons_random_search_splits():
    batch, data = RadialBatch.fresh(normal(21, 6, 2, 3)), some_data(22, 6)
    growth = random_search(batch, data, tries_of([0.99], 6), normal(0, 6, 0, 3), 0.01, 0, constant(0.05))
    assert not growth.new.any()
    assert torch.allclose(growth.batch.neurons[:, 1, 0] * 2, batch.neurons[:, 1, 0])


# --- the general machine ----------------------------------------------------------------------------------------------


def module_of(neurons):
    """One row as the network that ``nasbook.growth`` grows."""
    network = RadialNetwork(len(neurons)).double()
    with torch.no_grad():
        network.output.weight.copy_(neurons[None, :, 0])
        network.hidden.weight.copy_(neurons[:, 1:2])
        network.hidden.bias.copy_(neurons[:, 2])
    return network


def test_splitting_matrices_are_the_general_machines():
    neurons, data = normal(21, 1, 3, 3), some_data(22, 1)
    found = general.splitting_matrices(module_of(neurons[0]), [(data.x.T, data.y.T)], mse_loss)
    assert torch.allclose(found["hidden"], splitting_matrices(neurons, data)[0], atol=1e-12)


@pytest.mark.parametrize("new", [0, 2])
def test_firefly_is_the_general_machines(new):
    """With the same ε̃ and δ̃ both have the same scores, the same choice and the same grown network."""
    neurons, data, radius = normal(21, 1, 3, 3), some_data(22, 1), 0.01
    splits, fresh = normal(23, 1, 3, 2) / 3, normal(24, 1, new, 3) / 3
    start = OvergrownBatch(neurons, torch.full((1, 3 + new), radius, dtype=torch.float64), splits, fresh)
    over = overgrow(start, data, radius, 20)
    machine = general.OvergrownNetwork(module_of(neurons[0]), new=new)
    machine.set_epsilon(over.gates[0])
    by_shape = {
        (3, 1): over.splits[0, :, :1],  # rows of the hidden layer that move, θ₁
        (3,): over.splits[0, :, 1],  # and their biases, θ₂
        (new, 1): over.new[0, :, 1:2],
        (new,): over.new[0, :, 2],
        (1, new): over.new[0, :, 0][None],  # columns of the output layer, w
    }
    machine.set_directions([by_shape[tuple(part.shape)] for part in machine.directions()])
    with torch.no_grad():
        assert torch.allclose(machine(data.x.T)[:, 0], outputs(over.expand(), data.x)[0], atol=1e-14)
    scores = general.integrated_gradients_by_coordinate(machine, [(data.x.T, data.y.T)], mse_loss)
    assert torch.allclose(scores.gradients, integrated_gradients(over, data)[0], atol=1e-12)
    descent = general.step_two(machine, scores, general.Budget(1), radius)
    growth = firefly(RadialBatch.fresh(neurons), data, splits, fresh, radius, 20)
    with torch.no_grad():
        expected = descent.grown.network(data.x.T)[:, 0]
    assert torch.allclose(outputs(growth.batch.neurons, data.x)[0], expected, atol=1e-14)
    assert (descent.chosen[0] >= 3) == growth.new.item()
