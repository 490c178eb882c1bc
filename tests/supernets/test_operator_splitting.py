"""Splitting of recurrent operations: S against a Hessian, the loss against λ, who is split (claim growing.operator)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from changing_cells import COPYING, Case, Task, generator, readable, values
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.growth import CurvedReLU
from nasbook.growth.splitting import SHARPNESS
from nasbook.operations.recurrent import units_of
from nasbook.supernets import (
    OperatorEigenpairs,
    OperatorRules,
    candidate_weights,
    chosen_splits,
    operator_eigenpairs,
    operator_splitting_matrices,
    prune,
    split_candidates,
    split_operators,
)
from nasbook.supernets.operator_splitting import curvature
from nasbook.training.sequences import sequence_loss

SMALL = (
    Case("two-to-one", hidden=2, task=Task(features=2)),
    Case("two-to-one", layers=2, hidden=2, task=Task("language", 4)),
    Case("darts", nodes=3, hidden=2, task=Task(features=2)),
    Case("darts", layers=2, hidden=2, task=Task("language", 4)),
)
small = pytest.mark.parametrize("case", SMALL, ids=str)
copying = pytest.mark.parametrize("case", COPYING, ids=str)


def matrices_of(case, network, batches=None):
    return operator_splitting_matrices(network, batches or [case.batch()], sequence_loss)


def loss_of(case, network):
    inputs, targets = case.batch()
    return float(sequence_loss(network(inputs), targets).detach())


def split_all(case, network, vectors, step, seed=0):
    return split_candidates(network, case.build, vectors, step, generator(seed))[0]


class Split(nn.Module):
    """A candidate with both halves in one module: ½ o(θ + δ) + ½ o(θ − δ), with δ for every unit."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        units = units_of(operation)
        assert units is not None
        self.biased = units.parameters[-1].dim() == 1
        self.theta = torch.cat([(p if p.dim() > 1 else p[:, None]).detach() for p in units.parameters], dim=1)
        self.delta = torch.zeros_like(self.theta).requires_grad_()
        self.phi = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": CurvedReLU()}[units.activation]

    def forward(self, *inputs: Tensor) -> Tensor:
        u = torch.cat([*inputs, *([torch.ones(len(inputs[0]), 1).double()] if self.biased else [])], dim=1)
        plus, minus = u @ (self.theta + self.delta).T, u @ (self.theta - self.delta).T
        return (self.phi(plus) + self.phi(minus)) / 2


# ------------------------------------------------------------------------------------------------ the matrices


@small
def test_matrices_are_the_hessian_of_the_split_networks_loss(case):
    """All blocks at once: S of every unit on the diagonal, and nothing between units, nodes, layers and time steps."""
    network = case.network()
    found = matrices_of(case, network)
    split = readable(network, case)
    for kind, edge, name in found:
        candidates = split.cell(kind).candidates(*edge)
        candidates[name] = Split(candidates[name])
    deltas = [split.cell(kind).candidates(*edge)[name].delta for kind, edge, name in found]
    inputs, targets = case.batch()
    assert inputs.shape[1] > 2  # several steps
    loss = sequence_loss(split(inputs), targets)
    gradient = torch.autograd.grad(loss, deltas, create_graph=True)
    assert all(not part.any() for part in gradient)  # the first order cancels
    flat = torch.cat([part.flatten() for part in gradient])
    hessian = torch.stack(
        [torch.cat([p.flatten() for p in torch.autograd.grad(one, deltas, retain_graph=True)]) for one in flat]
    )
    expected = torch.block_diag(*(block for matrix in found.values() for block in matrix))
    assert len(found) == 3 * sum(len(space.edges) for space in network.spaces.values())
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-13)


def test_curvatures_are_those_of_the_activations():
    a = torch.linspace(-3, 3, 41, dtype=torch.float64)
    s, t, bump = a.sigmoid(), a.tanh(), (SHARPNESS * a).sigmoid()
    torch.testing.assert_close(curvature("sigmoid", a), s * (1 - s) * (1 - 2 * s), rtol=0, atol=1e-15)
    torch.testing.assert_close(curvature("tanh", a), -2 * t * (1 - t.square()), rtol=0, atol=1e-15)
    torch.testing.assert_close(curvature("relu", a), SHARPNESS * bump * (1 - bump), rtol=0, atol=1e-14)
    with torch.no_grad():
        assert not curvature("tanh", a).requires_grad


@copying
def test_batches_count_by_their_sizes(case):
    network = case.network()
    first, second = case.batch(1, size=5), case.batch(2, size=2)
    together = tuple(torch.cat(parts) for parts in zip(first, second, strict=True))
    one, two = (matrices_of(case, network, batches) for batches in ([together], [first, second]))
    for place, matrix in one.items():
        torch.testing.assert_close(two[place], matrix, rtol=0, atol=1e-14)
        assert torch.equal(matrix, matrix.mT) or torch.allclose(matrix, matrix.mT, rtol=0, atol=1e-15)


@copying
def test_asking_leaves_no_trace(case):
    network = case.network()
    network.train()
    plain, before, state = readable(network, case), values(network), torch.get_rng_state()
    for parameter in itertools.islice(network.parameters(), 3):
        parameter.requires_grad_(False)
    frozen = [parameter.requires_grad for parameter in network.parameters()]
    expected = matrices_of(case, plain)
    with torch.no_grad():
        found = matrices_of(case, network)
    for place, matrix in found.items():
        torch.testing.assert_close(matrix, expected[place], rtol=0, atol=1e-15)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in network.parameters()] == frozen
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert network.training


def test_units_of_copies_have_matrices_of_their_own():
    """ω is part of ∂L/∂o: a copy with half of the weight has half of the matrix."""
    case = COPYING[0]
    network = case.network()
    place = ("two-to-one", (0, 1), "tanh")
    before = matrices_of(case, network)[place]
    units = torch.zeros(4, 8, dtype=torch.float64)
    after = matrices_of(case, split_all(case, network, {place: units}, 0.1))
    torch.testing.assert_close(after[place], before / 2, rtol=0, atol=1e-14)
    torch.testing.assert_close(after["two-to-one", (0, 1), "tanh-2"], before / 2, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------ the loss


@small
@pytest.mark.parametrize("directions", ["least", "greatest", "random"])
def test_the_loss_changes_by_the_quadratic_form(case, directions):
    """L(ε) − L(0) = ½ ε² Σ δᵀSδ + O(ε⁴), for all units of all candidates at once; with least eigenvectors ½ ε² Σ λ."""
    network = case.network()
    found = {place: m for place, m in matrices_of(case, network).items() if place[2] != "relu"}  # it has a kink
    eigen = {place: torch.linalg.eigh(matrix) for place, matrix in found.items()}
    if directions == "random":
        vectors = {p: torch.randn(m.shape[:2], generator=generator(), dtype=m.dtype) for p, m in found.items()}
    else:
        vectors = {p: e.eigenvectors[:, :, 0 if directions == "least" else -1] for p, e in eigen.items()}
    form = float(sum(torch.einsum("hp,hpq,hq->", v, found[p], v) for p, v in vectors.items()))
    if directions == "least":
        assert form == pytest.approx(float(sum(e.eigenvalues[:, 0].sum() for e in eigen.values())), rel=1e-12)
        assert form < -1e-5
    before = loss_of(case, network)

    def error(step):
        return loss_of(case, split_all(case, network, vectors, step)) - before - step**2 / 2 * form

    large, little = error(0.1), error(0.05)
    assert large / little == pytest.approx(16, rel=0.15)
    assert abs(error(0.01)) < 0.02 * abs(0.01**2 / 2 * form)


def one_sided(sign):
    """A DARTS cell of one node whose loss is ±Σ of tanh units that are all on the concave side of tanh."""
    case = Case("darts", nodes=1, hidden=3)
    network = case.build({"darts": case.spaces()["darts"].with_pools([("tanh", "identity")])}).double()
    inputs = torch.rand(40, 1, 3, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        network.cell("darts").candidates(0, 1)["tanh"].weight.copy_(torch.full((3, 6), 0.4))
        network.head.decoder.weight.copy_(torch.full((3, 3), float(sign)))
    batch = (inputs, torch.zeros(40, 3, dtype=torch.float64))
    return case, network, batch, lambda outputs, targets: outputs.mean()


def test_a_split_lowers_the_loss_where_the_least_eigenvalue_is_negative():
    case, network, batch, loss = one_sided(+1)
    pairs = operator_eigenpairs(operator_splitting_matrices(network, [batch], loss))
    ((place, pair),) = pairs.items()
    assert bool((pair.values < -1e-3).all())
    assert bool((pair.negative == 1).all())
    new, changes = split_operators(
        network, case.build, OperatorRules("splitting", split_step=0.05), [batch], loss, generator()
    )
    assert [(step.what, step.edge, step.candidate, step.parent) for step in changes] == [
        ("split", (0, 1), "tanh-2", "tanh")
    ]
    change = float((loss(new(batch[0]), None) - loss(network(batch[0]), None)).detach())
    assert change == pytest.approx(0.05**2 / 2 * float(pair.values.sum()), rel=0.01)
    assert pair.gain == pytest.approx(float(pair.values.sum()))
    assert place == ("darts", (0, 1), "tanh")


def test_a_split_raises_the_loss_where_the_least_eigenvalue_is_positive():
    """Then no rule splits it. Here h is 0, and so are the eigenvalues that belong to it; rounding gives them a sign."""
    case, network, batch, loss = one_sided(-1)
    matrices = operator_splitting_matrices(network, [batch], loss)
    pairs = operator_eigenpairs(matrices)
    ((place, pair),) = pairs.items()
    assert bool((pair.values.abs() < 1e-15).all())
    assert not pair.negative.any()
    for choose in ("most-negative", "least-sum", "all-negative"):
        rules = OperatorRules("splitting", choose=choose)
        assert split_operators(network, case.build, rules, [batch], loss, generator()) == (network, ())
    seen = matrices[place][:, :3, :3]  # of what the unit reads and what varies
    least = torch.linalg.eigh(seen)
    assert bool((least.eigenvalues[:, 0] > 1e-4).all())
    vectors = torch.cat([least.eigenvectors[:, :, 0], torch.zeros(3, 3).double()], dim=1)
    new = split_all(case, network, {place: vectors}, 0.05)
    change = float((loss(new(batch[0]), None) - loss(network(batch[0]), None)).detach())
    assert change == pytest.approx(0.05**2 / 2 * float(least.eigenvalues[:, 0].sum()), rel=0.01)
    assert change > 0


def test_a_relu_is_split_by_the_bump_of_a_softplus():
    """Its kink bends the mean over many examples as the bump says, as long as the step is about as wide as the bump."""
    case = Case("darts", nodes=1, hidden=2, task=Task(features=2))
    network = case.build({"darts": case.spaces()["darts"].with_pools([("relu",)])}).double()
    inputs = torch.randn(20000, 1, 2, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        network.cell("darts").candidates(0, 1)["relu"].weight.normal_(generator=generator(1))
    targets = network(inputs).detach() - 1 + inputs[:, 0]
    pairs = operator_eigenpairs(operator_splitting_matrices(network, [(inputs, targets)], sequence_loss))
    ((place, pair),) = pairs.items()
    for step, tolerance in ((0.2, 0.05), (0.4, 0.25)):
        new = split_all(case, network, {place: pair.vectors}, step)
        change = float((sequence_loss(new(inputs), targets) - sequence_loss(network(inputs), targets)).detach())
        assert change == pytest.approx(step**2 / 2 * float(pair.values.sum()), rel=tolerance)


# ------------------------------------------------------------------------------------------------ the split


@copying
def test_a_split_of_step_0_changes_nothing_and_a_small_one_little(case):
    network = case.network()
    inputs, _ = case.batch()
    before = network(inputs).detach()
    pairs = operator_eigenpairs(matrices_of(case, network))
    vectors = {place: pair.vectors for place, pair in pairs.items() if place[2] != "relu"}

    def moved(step):
        return float((split_all(case, network, vectors, step)(inputs).detach() - before).abs().max())

    assert moved(0.0) < 1e-15
    assert moved(1e-2) / moved(1e-3) == pytest.approx(100, rel=0.02)


@copying
def test_both_halves_stand_beside_theta_with_half_of_the_weight(case):
    network = case.network()
    old = values(network)
    pairs = operator_eigenpairs(matrices_of(case, network))
    kind, edge = next(iter(network.spaces)), (1, 2)
    place = (kind, edge, "tanh")
    new, (step,) = split_candidates(network, case.build, {place: pairs[place].vectors}, 0.3, generator())
    assert (step.what, step.kind, step.edge, step.candidate, step.parent) == ("split", kind, edge, "tanh-2", "tanh")
    before = candidate_weights(network, kind)[edge]
    half = before["tanh"] / 2
    expected = {**before, "tanh": half, "tanh-2": half}
    assert candidate_weights(new, kind)[edge] == pytest.approx(expected, abs=1e-15)
    assert step.weights_before == pytest.approx(before)
    assert step.weights_after == pytest.approx(expected)
    theta, plus, minus = (
        Split(one.cell(kind).candidates(*edge)[name]).theta
        for one, name in ((network, "tanh"), (new, "tanh"), (new, "tanh-2"))
    )
    torch.testing.assert_close(plus, theta + 0.3 * pairs[place].vectors, rtol=0, atol=1e-15)
    torch.testing.assert_close(minus, theta - 0.3 * pairs[place].vectors, rtol=0, atol=1e-15)
    torch.testing.assert_close(network.state_dict(), old, rtol=0, atol=0)
    moved = f"edges.{edge[0]}-{edge[1]}.tanh."
    for name, value in old.items():
        if not name.startswith("relaxations.") and not (name.startswith("body.layers.0.") and moved in name):
            assert torch.equal(new.state_dict()[name], value)
    for other, space in network.spaces.items():  # α − ln 2 for both halves, and all others as they were
        for row, one in enumerate(space.edges):
            for column, name in enumerate(space.operations):
                now = new.relaxation(other).alpha[row, new.spaces[other].operations.index(name)]
                lower = math.log(2) if (other, one, name) == place else 0.0
                assert float(now.detach()) == pytest.approx(
                    float(network.relaxation(other).alpha[row, column].detach()) - lower, abs=1e-14
                )


def test_units_without_a_negative_eigenvalue_stay_as_they_are():
    case, network, (inputs, _), _ = one_sided(+1)
    targets = torch.zeros(40, 3, dtype=torch.float64)
    with torch.no_grad():  # the second unit raises the loss
        network.head.decoder.weight[:, 1] = -1.0

    def loss(outputs, targets):
        return outputs.mean()

    ((_, pair),) = operator_eigenpairs(operator_splitting_matrices(network, [(inputs, targets)], loss)).items()
    assert pair.negative.tolist() == [1, 0, 1]
    new, (_,) = split_operators(network, case.build, OperatorRules("splitting"), [(inputs, targets)], loss, generator())
    plus, minus = (new.cell("darts").candidates(0, 1)[name].weight.detach() for name in ("tanh", "tanh-2"))
    assert torch.equal(plus[1], minus[1])
    assert not torch.equal(plus[0], minus[0])
    assert not torch.equal(plus[2], minus[2])
    for choose, splits in (("least-sum", True), ("all-negative", False)):
        rules = OperatorRules("splitting", choose=choose)
        _, changes = split_operators(network, case.build, rules, [(inputs, targets)], loss, generator())
        assert bool(changes) == splits


def test_a_dead_candidate_is_not_split():
    """With weight 0 nothing depends on it: S = 0, and 0 is not below 0."""
    case = COPYING[0]
    network = case.network()
    with torch.no_grad():
        network.relaxation("two-to-one").alpha[0, 1] = -math.inf
    pairs = operator_eigenpairs(matrices_of(case, network))
    dead = pairs["two-to-one", (0, 1), "tanh"]
    assert dead.values.tolist() == [0.0] * 4
    assert not dead.negative.any()


def test_both_halves_part_when_they_train():
    case = COPYING[0]
    network = case.network()
    place = ("two-to-one", (0, 1), "tanh")
    vectors = operator_eigenpairs(matrices_of(case, network))[place].vectors
    inputs, targets = case.batch()

    def distance(step):
        new = split_all(case, network, {place: vectors}, step)
        optimizer = torch.optim.SGD(new.parameters(), 0.5)
        found = []
        for _ in range(30):
            halves = [new.cell("two-to-one").candidates(0, 1)[name].state_weight for name in ("tanh", "tanh-2")]
            found.append(float((halves[0] - halves[1]).detach().norm()))
            optimizer.zero_grad()
            sequence_loss(new(inputs), targets).backward()
            optimizer.step()
        return found[0], found[-1]

    assert distance(0.0) == (0.0, 0.0)  # why copies that are equal are worth nothing
    first, last = distance(0.05)
    assert last > 1.02 * first


# ------------------------------------------------------------------------------------------------ who is split


def pair(*least, negative=None):
    values = torch.tensor(least, dtype=torch.float64)
    below = (values < 0).double() if negative is None else torch.tensor(negative, dtype=torch.float64)
    return OperatorEigenpairs(values, torch.eye(len(least), dtype=torch.float64), below)


PAIRS = {
    ("darts", (0, 1), "tanh"): pair(-1.0, -1.0, 2.0),
    ("darts", (0, 1), "relu"): pair(-9.0, 1.0, 2.0),
    ("darts", (1, 3), "tanh"): pair(-1.0, -1.0, -1.0),
    ("darts", (1, 3), "relu"): pair(-1.0, -1.0, -2.0),
    ("darts", (2, 3), "tanh"): pair(-5.0, -5.0, 9.0),
    ("darts", (1, 2), "tanh"): pair(0.0, 1.0, 2.0),
}
ROOM = {("darts", edge): 9 for edge in ((0, 1), (1, 2), (1, 3), (2, 3))}


@pytest.mark.parametrize(
    ("choose", "chosen"),
    [
        ("most-negative", {((0, 1), "tanh"), ((1, 3), "relu")}),  # of equals the least sum
        ("least-sum", {((0, 1), "relu"), ((2, 3), "tanh")}),  # of what can be gained
        ("all-negative", {((1, 3), "tanh"), ((1, 3), "relu")}),
    ],
)
def test_the_three_choices(choose, chosen):
    rules = OperatorRules("splitting", choose=choose)
    found = chosen_splits(PAIRS, ROOM, rules)
    assert len(found) == len(chosen)
    assert {place[1:] for place in found} == chosen


def test_full_edges_are_left_out():
    rules = OperatorRules("splitting")
    found = chosen_splits(PAIRS, {**ROOM, ("darts", (1, 3)): 0}, rules)
    assert {place[1:] for place in found} == {((0, 1), "tanh"), ((2, 3), "tanh")}
    rules = OperatorRules("splitting", choose="all-negative")
    assert [place[2] for place in chosen_splits(PAIRS, {**ROOM, ("darts", (1, 3)): 1}, rules)] == ["relu"]
    assert chosen_splits(PAIRS, dict.fromkeys(ROOM, -1), rules) == ()


def test_layers_choose_apart():
    pairs = {(f"darts {layer}", (0, 1), "tanh"): pair(-1.0, -1.0) for layer in (1, 2)}
    room = {place[:2]: 1 for place in pairs}
    assert set(chosen_splits(pairs, room, OperatorRules("splitting"))) == set(pairs)


@copying
@pytest.mark.parametrize("choose", ["most-negative", "least-sum", "all-negative"])
def test_splits_lower_the_loss_of_a_network(case, choose):
    network = case.network()
    rules = OperatorRules("splitting", choose=choose, split_step=0.02)
    pairs = operator_eigenpairs(matrices_of(case, network))
    new, changes = split_operators(network, case.build, rules, [case.batch()], sequence_loss, generator())
    assert changes
    chosen = {(step.kind, step.edge, step.parent) for step in changes}
    if choose == "all-negative":
        assert chosen == {place for place, one in pairs.items() if one.negative.all()}
    else:
        assert len(chosen) == len({(kind, edge[1]) for kind, edge, _ in chosen})  # one a node
        assert len(chosen) == sum(space.nodes for space in network.spaces.values())
    predicted = 0.02**2 / 2 * sum(pairs[place].gain for place in chosen)
    smooth = 0.02**2 / 2 * sum(pairs[place].gain for place in chosen if place[2] != "relu")
    change = loss_of(case, new) - loss_of(case, network)
    assert predicted < 0
    if smooth == predicted:
        assert change == pytest.approx(predicted, rel=0.05)


def test_full_edges_stay():
    case = COPYING[0]
    network = case.network()
    rules = OperatorRules("splitting", most_candidates=5)
    assert split_operators(network, case.build, rules, [case.batch()], sequence_loss, generator()) == (network, ())


@pytest.mark.parametrize("strategy", ["none", "small-weight"])
def test_only_the_strategy_of_splitting_splits(strategy):
    case = COPYING[0]
    network, rules = case.network(), OperatorRules(strategy)
    assert split_operators(network, case.build, rules, [], sequence_loss, generator()) == (network, ())


def test_edges_that_are_not_computed_have_no_matrices():
    case = Case("darts", nodes=3)
    network = case.network()
    with torch.no_grad():
        network.relaxation("darts").alpha.copy_(torch.tensor([[0.0, 2, 0, 0, 0]] * 3 + [[0.0, 1, 0, 0, 0]]))
    pruned = prune(network, case.build, generator=generator())
    assert pruned.spaces["darts"].edges == ((0, 1), (1, 2), (1, 3))
    assert list(matrices_of(case, pruned)) == [("darts", (0, 1), "tanh"), ("darts", (1, 3), "tanh")]


def test_what_cannot_be_split_is_refused():
    case = COPYING[0]
    network = case.network()
    with pytest.raises(InvalidInput, match="no batches"):
        operator_splitting_matrices(network, [], sequence_loss)
    for place in (("two-to-one", (0, 1), "sum"), ("two-to-one", (0, 2), "tanh"), ("darts", (0, 1), "tanh")):
        with pytest.raises(InvalidInput, match="has no candidate"):
            split_candidates(network, case.build, {place: torch.zeros(4, 8).double()}, 0.1, generator())
    place = ("two-to-one", (0, 1), "tanh")
    with pytest.raises(InvalidInput, match=r"each of 4 hidden units, with 8 entries; got the shape \(4, 7\)"):
        split_candidates(network, case.build, {place: torch.zeros(4, 7).double()}, 0.1, generator())
    for other in (Case("highway"), Case("mean", options=(("cell_output", "mean"),))):
        with pytest.raises(InvalidInput, match="pruning works"):
            operator_splitting_matrices(other.network(), [other.batch()], sequence_loss)
        with pytest.raises(InvalidInput, match="pruning works"):
            split_operators(
                other.network(), other.build, OperatorRules("splitting"), [other.batch()], sequence_loss, generator()
            )
