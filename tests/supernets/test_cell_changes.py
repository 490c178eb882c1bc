"""Cells that change: node morphism (claims growing.node-morphism, growing.alpha), pruning, optimiser states."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from changing_cells import CASES, CONVOLUTIONAL, RECURRENT, Case, Task, generator, one_step, readable, values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from nasbook.errors import InvalidInput
from nasbook.genotypes import ZERO, Edge, Space
from nasbook.networks import DerivedRecurrentNetwork, HighwayCell
from nasbook.supernets import (
    AnnealedSoftmax,
    NodeMorphism,
    NodeSoftmax,
    RecurrentSearchNetwork,
    SearchNetwork,
    add_node,
    candidate_weights,
    carry_states,
    changed,
    inverse_softmax,
    node_morphism,
    prune,
    pruned_spaces,
    remaining_cells,
)
from nasbook.supernets.cell_changes import morphism_weights
from nasbook.training.sequences import sequence_loss

some = settings(derandomize=True, deadline=None, max_examples=60)
few = settings(derandomize=True, deadline=None, max_examples=12)
every = pytest.mark.parametrize("case", CASES, ids=str)
recurrent = pytest.mark.parametrize("case", RECURRENT, ids=str)


def grow(network, case, delta=0.0, sigma=0.0, seed=0):
    return add_node(network, case.build, case.operations, delta=delta, sigma=sigma, generator=generator(seed))


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def loss_of(case, network, batch):
    if case.recurrent:
        return sequence_loss(network(batch[0]), batch[1])
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


# ------------------------------------------------------------------------------------------------ inverse softmax


@some
@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=8),
    st.floats(1e-3, 1e3),
)
def test_the_new_alpha_invert_the_softmax(raw, total):
    """Eq. 16: the softmax is w, and Σ exp(α) is the total."""
    weights = torch.tensor(raw, dtype=torch.float64)
    weights = weights / weights.sum()
    alpha = inverse_softmax(weights, total)
    close(alpha.softmax(0), weights, 1e-14)
    close(alpha, weights.log() + alpha.logsumexp(0), 1e-12)
    assert float(alpha.exp().sum()) == pytest.approx(total, rel=1e-12)


def test_a_weight_of_zero_is_an_alpha_that_never_comes_back():
    alpha = inverse_softmax(torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64))
    assert alpha.tolist() == [math.log(0.25), -math.inf, math.log(0.75)]
    assert alpha.softmax(0).tolist() == pytest.approx([0.25, 0, 0.75], abs=1e-15)


@pytest.mark.parametrize("weights", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [math.inf, 0.0], [0.0, 0.0]])
def test_only_weights_that_sum_to_1_have_an_inverse(weights):
    with pytest.raises(InvalidInput, match="sum to 1"):
        inverse_softmax(torch.tensor(weights))


@pytest.mark.parametrize("total", [0.0, -1.0, math.nan])
def test_the_total_is_positive(total):
    with pytest.raises(InvalidInput, match="total"):
        inverse_softmax(torch.tensor([0.5, 0.5]), total)


# ------------------------------------------------------------------------------------------------ node morphism


@every
@pytest.mark.parametrize("training", [True, False])
def test_without_noise_a_new_node_changes_nothing(case, training):
    network = case.network().train(training)
    inputs, _ = case.batch()
    before, old_values = network(inputs).detach(), values(network)
    grown = grow(network, case)
    again = grow(grown, case, seed=1)
    for nodes, one in ((case.nodes + 1, grown), (case.nodes + 2, again)):
        assert {space.nodes for space in one.spaces.values()} == {nodes}
        assert one.training == training
        close(one(inputs).detach(), before)
    if not training:  # a training pass moves the statistics of batch norms
        torch.testing.assert_close(network.state_dict(), old_values, rtol=0, atol=0)


@every
@pytest.mark.parametrize("keep", [1, 2])
def test_without_noise_a_pruned_cell_grows_unchanged(case, keep):
    network = case.network().eval()
    inputs, _ = case.batch()
    pruned = prune(network, case.build, keep=keep, generator=generator())
    grown = grow(pruned, case)
    close(grown(inputs).detach(), pruned(inputs).detach())
    again = grow(prune(grown, case.build, keep=keep, generator=generator(1)), case, delta=0.01, sigma=0.01)
    assert bool(again(inputs).isfinite().all())


@recurrent
def test_both_engines_agree_on_a_grown_cell(case):
    pruned = prune(case.network(), case.build, keep=2, generator=generator())
    grown = grow(pruned, case, delta=0.05, sigma=0.1)
    inputs, _ = case.batch()
    close(grown(inputs).detach(), readable(grown, case)(inputs).detach(), 1e-9)


@every
def test_what_was_there_stays_and_the_new_has_the_noise_asked_for(case):
    network = case.network()
    grown = grow(network, case, delta=0.02, sigma=0.3)
    before, after = network.state_dict(), grown.state_dict()
    edges = {kind: dict(zip(space.edges, range(99), strict=False)) for kind, space in grown.spaces.items()}
    for kind, space in network.spaces.items():  # α of the old edges
        rows = [edges[kind][edge] for edge in space.edges]
        assert torch.equal(grown.relaxations[kind].alpha[rows], network.relaxations[kind].alpha)
    if case.recurrent:  # convolutional edges have other numbers now: the tests at zero noise know
        for name, value in before.items():
            if not name.startswith("relaxations."):
                assert torch.equal(after[name], value), name
    for kind, rule in ((kind, node_morphism(network, kind, case.operations)) for kind in network.spaces):
        node = network.spaces[kind].inputs + case.nodes
        assert set(rule.shares) == set(grown.spaces[kind].sources(node))
        for source, share in rule.shares.items():
            weights = candidate_weights(grown, kind)[source, node]
            assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
            noise = {n: w for n, w in weights.items() if n not in (rule.identity, ZERO)}
            assert all(0 < weight < 0.02 for weight in noise.values())
            if share in (0, 1):
                large, small = (rule.identity, ZERO) if share else (ZERO, rule.identity)
                assert weights[large] == pytest.approx(1 - sum(w for n, w in weights.items() if n != large))
                assert 0 < weights.get(small, 0.01) < 0.02
            else:
                assert weights[rule.identity] / weights[ZERO] == pytest.approx(share / (1 - share))


def test_the_rules_of_the_backbones():
    """Eq. 15: sum from the last node. Eq. 17: identity from the last node, zero from the others."""
    two, darts, highway = (Case(name, nodes=3).network() for name in ("two-to-one", "darts", "highway"))
    found = node_morphism(two, "two-to-one", ("tanh", "sum"))
    assert found == NodeMorphism(("tanh", "sum"), "sum", {3: 1.0})
    assert node_morphism(darts, "darts", ("identity", ZERO)).shares == {1: 0.0, 2: 0.0, 3: 1.0}
    assert node_morphism(highway, "highway", ("identity", ZERO)).shares == {0: 0.0, 1: 1 / 3, 2: 1 / 3, 3: 1 / 3}
    first, mean = CONVOLUTIONAL[1].network(), CONVOLUTIONAL[3].network()
    assert node_morphism(first, "normal", ("skip_connect", ZERO)).shares == {0: 0.0, 1: 0.0, 2: 0.0, 3: 1.0}
    assert node_morphism(mean, "normal", ("skip_connect", ZERO)).shares == {0: 0.0, 1: 0.0, 2: 0.5, 3: 0.5}


def test_the_noise_is_uniform_and_normal():
    rule = NodeMorphism((*(f"o{i}" for i in range(400)), "sum"), "sum", {1: 1.0})
    weights = morphism_weights(rule, 0.002, generator())[1]
    drawn = [weight / 0.002 for name, weight in weights.items() if name != "sum"]
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
    case = Case("two-to-one", task=Task(features=20), hidden=20)
    grown = grow(case.network(), case, sigma=0.3)
    matrix = grown.cell("two-to-one").candidates(2, 3)["sum"].input_weight.detach() / 0.3
    assert stats.kstest(matrix.flatten().numpy(), "norm").pvalue > 0.01
    case = CONVOLUTIONAL[0]
    new = grow(case.network(), case, sigma=0.3).classifier.weight.detach()[:, 16:] / 0.3  # C = 4, twice reduced
    assert new.shape == (3, 16)
    assert stats.kstest(new.flatten().numpy(), "norm").pvalue > 0.01


@few
@given(st.integers(0, 1000), st.sampled_from(["two-to-one", "darts"]), st.integers(1, 3), st.floats(0.0, 0.2))
def test_one_step_of_the_grown_cell_is_within_the_bound(seed, name, nodes, noise):
    """|Δ| ≤ Σ ε_k (|o_k| + |o|) + |W x|, element by element, over the edges of the new node (Eq. 13, 17)."""
    case = Case(name, nodes, options=(("engine", "readable"),))
    network = case.network(seed)
    grown = grow(network, case, delta=noise, sigma=noise, seed=seed)
    cell = grown.cell(name)
    x, _, before = one_step(network.cell(name), network.coefficients()[name])
    _, _, after = one_step(cell, grown.coefficients()[name])
    bound = torch.zeros_like(before)
    # The nodes before, from cells that end with each of them.
    node_values = {
        node: one_step(_until(network, name, node, case), network.coefficients()[name])[2]
        for node in range(1, nodes + 1)
    }
    close(node_values[nodes], before)
    for source in grown.spaces[name].sources(nodes + 1):
        last = source == nodes
        identity, shut = ("sum" if name == "two-to-one" else "identity"), ZERO
        for operation, weight in candidate_weights(grown, name)[source, nodes + 1].items():
            if operation == (identity if last else shut):
                continue
            module = cell.candidates(source, nodes + 1)[operation]
            arguments = (x, node_values[source]) if name == "two-to-one" else (node_values[source],)
            bound += weight * (module(*arguments).detach().abs() + (before.abs() if last else 0))
    if name == "two-to-one":
        bound += (x @ cell.candidates(nodes, nodes + 1)["sum"].input_weight.T).detach().abs()
    difference = (after - before).abs()
    assert bool((difference <= bound + 1e-12).all())
    if noise > 0.01:
        assert float(difference.max()) > 1e-5  # the noise is there
        assert float(bound.max()) < 40 * noise


def _until(network, kind, node, case):
    """The cell whose state is one of its nodes."""
    cell = network.cell(kind)
    found = type(cell)(cell.space, cell.inputs, cell.hidden, (node,)).double()
    state = {name: value for name, value in cell.state_dict().items() if name in found.state_dict()}
    found.load_state_dict(state)
    return found


@every
def test_the_change_goes_to_zero_with_the_noise(case):
    network = case.network().eval()
    inputs, _ = case.batch()
    before = network(inputs).detach()

    def change(noise):
        return (grow(network, case, delta=noise, sigma=noise, seed=3)(inputs).detach() - before).norm()

    large, small = change(1e-4), change(1e-5)
    assert float(large) > 0
    assert float(large / small) == pytest.approx(10, rel=0.02)


def test_a_new_node_learns_and_an_exact_one_does_not():
    """Why there is noise: at δ = σ = 0 the new node's other candidates get no gradient (§3.2.1)."""
    case = Case("two-to-one")
    inputs, targets = case.batch()

    def gradients(noise):
        grown = grow(case.network(), case, delta=noise, sigma=noise)
        sequence_loss(grown(inputs), targets).backward()
        edge = grown.cell("two-to-one").candidates(2, 3)
        return grown.relaxation("two-to-one").alpha.grad[2], edge["tanh"].state_weight.grad

    for dead, living in zip(gradients(0.0), gradients(0.01), strict=True):
        assert float(dead.abs().max()) == 0
        assert float(living.abs().max()) > 1e-6


def test_dead_candidates_stay_dead_and_spread_no_nan():
    """After growth without noise α is −∞; a later change of the same edge must not average it."""
    case = Case("two-to-one", nodes=1)
    grown = grow(case.network(), case)
    pool = (*case.operations, "tanh-2")
    space = grown.spaces["two-to-one"].with_pools([case.operations, pool])
    weights = {**dict.fromkeys(case.operations, 0.0), "sum": 0.9, "tanh-2": 0.1}
    new = changed(grown, case.build, {"two-to-one": space}, {"two-to-one": {(1, 2): weights}}, generator=generator())
    assert candidate_weights(new, "two-to-one")[1, 2] == pytest.approx(weights, abs=1e-15)
    assert new.relaxation("two-to-one").alpha[1, 3] == grown.relaxation("two-to-one").alpha[1, 3]


@every
def test_the_same_generator_gives_the_same_network_and_no_other_is_touched(case):
    network = case.network()
    state = torch.get_rng_state()
    first, second, other = (grow(network, case, 0.01, 0.01, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert not torch.equal(next(iter(first.architecture())), next(iter(other.architecture())))


@every
def test_wrong_noise_is_refused(case):
    network = case.network()
    most = 1 / (len(case.operations) - 1)
    for delta in (-0.1, most, math.nan):
        with pytest.raises(InvalidInput, match="delta"):
            grow(network, case, delta)
    for sigma in (-0.1, math.nan):
        with pytest.raises(InvalidInput, match="sigma"):
            grow(network, case, 0.0, sigma)
    grow(network, case, 0.99 * most, 1.0)


@every
def test_a_new_node_needs_identity_and_zero(case):
    network = case.network()
    identity = {"two-to-one": "sum", "concatenation": "skip_connect", "mean": "skip_connect"}.get(case.name, "identity")
    without = [name for name in case.operations if name != identity]
    with pytest.raises(InvalidInput, match=f"{identity!r}: it must be among"):
        add_node(network, case.build, without, generator=generator())
    if case.name == "two-to-one":
        only = add_node(network, case.build, ["sum"], sigma=0.0, generator=generator())  # one candidate is enough
        close(only(case.batch()[0]), network(case.batch()[0]))
        return
    several = case.nodes > 1 or case.name not in ("darts",)
    without = [name for name in case.operations if name != ZERO]
    if several:
        with pytest.raises(InvalidInput, match="shuts its other edges by 'none'"):
            add_node(network, case.build, without, generator=generator())
    else:
        close(add_node(network, case.build, without, delta=0, generator=generator())(case.batch()[0]),
              network(case.batch()[0]))


def test_cells_that_cannot_repeat_a_node_are_refused():
    for options in ((("bottleneck", 2),), (("engine_cells", "half"),)):
        case = Case("mean", options=(("cell_output", "mean"), *options))
        with pytest.raises(InvalidInput, match="no node morphism"):
            grow(case.network(), case)
        case = Case("concatenation", options=options)
        network = case.network().eval()
        close(grow(network, case)(case.batch()[0]), network(case.batch()[0]))
    case = Case("highway")
    network = case.network()
    cell = network.cell("highway")
    network.body.layers[0] = HighwayCell(cell.space, cell.inputs, cell.hidden, normalize=True).double()
    with pytest.raises(InvalidInput, match="batch-normalised"):
        grow(network, case)


def test_shared_features_grow_too():
    case = Case("concatenation", options=(("feature_sharing", True),))
    network = case.network().eval()
    close(grow(network, case)(case.batch()[0]), network(case.batch()[0]))


def test_only_a_softmax_over_every_edge_can_be_inverted():
    case = Case("darts", nodes=3, options=(("relaxation", NodeSoftmax),))
    with pytest.raises(InvalidInput, match="NodeSoftmax is another relaxation"):
        grow(case.network(), case)
    case = Case("darts", nodes=3, options=(("relaxation", AnnealedSoftmax),))
    with pytest.raises(InvalidInput, match="AnnealedSoftmax"):
        grow(case.network(), case)
    case = Case("two-to-one", nodes=3, options=(("relaxation", NodeSoftmax),))  # a node has one edge here
    network = case.network()
    close(grow(network, case)(case.batch()[0]), network(case.batch()[0]))


# ------------------------------------------------------------------------------------------------ other changes


@every
def test_no_change_is_a_copy(case):
    network = case.network().eval()
    same = changed(network, case.build, network.spaces, {}, generator=generator())
    assert same is not network
    torch.testing.assert_close(same.state_dict(), network.state_dict(), rtol=0, atol=0)
    close(same(case.batch()[0]), network(case.batch()[0]), 0)


def test_wrong_changes_are_refused():
    case = Case("two-to-one")
    network = case.network()
    space = network.spaces["two-to-one"]

    def change(spaces, weights):
        return changed(network, case.build, spaces, {"two-to-one": weights}, generator=generator())

    even = dict.fromkeys(case.operations, 0.2)
    with pytest.raises(InvalidInput, match="expected the kinds two-to-one"):
        change({"two-to-one 1": space}, {})
    with pytest.raises(InvalidInput, match=r"no edge \(0, 2\)"):
        change({"two-to-one": space}, {(0, 2): even})
    with pytest.raises(InvalidInput, match="has the candidates sigmoid, tanh"):
        change({"two-to-one": space}, {(0, 1): {"tanh": 1.0}})
    with pytest.raises(InvalidInput, match="sum to 1"):
        change({"two-to-one": space}, {(0, 1): {**even, "tanh": 0.3}})
    with pytest.raises(InvalidInput, match="new candidate, 'tanh-2'"):
        change({"two-to-one": space.with_pools([case.operations, (*case.operations, "tanh-2")])}, {})


@some
@given(st.integers(0, 10**6), st.sampled_from(["two-to-one", "darts"]))
def test_candidates_that_come_or_go_leave_the_proportions_of_the_others(seed, name):
    """And α of those that stay does not move."""
    case = Case(name, hidden=2)
    network = case.network(seed)
    draws = generator(seed)
    space = network.spaces[name]
    pools, weights = [], {}
    for edge in space.edges:
        own = candidate_weights(network, name)[edge]
        going = {n for n in own if n != "tanh" and torch.rand((), generator=draws) < 0.3}
        share = float(torch.rand((), generator=draws, dtype=torch.float64))
        pool = [n for n in own if n not in going]
        if share < 0.5:
            total = sum(own[n] for n in pool)
            weights[edge] = {n: (1 - share) * own[n] / total for n in pool} | {"relu-7": share}
        pools.append((*pool, "relu-7") if share < 0.5 else tuple(pool))
    new = changed(network, case.build, {name: space.with_pools(pools)}, {name: weights}, generator=draws)
    for edge, pool in zip(space.edges, pools, strict=True):
        found, old = candidate_weights(new, name)[edge], candidate_weights(network, name)[edge]
        assert sum(found.values()) == pytest.approx(1, abs=1e-12)
        stay = [n for n in pool if n in old]
        ratios = [found[n] / old[n] for n in stay]
        assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-9)
        if edge in weights:
            assert found == pytest.approx(weights[edge], rel=1e-9)
        columns, new_columns = case.operations, new.spaces[name].operations
        row = space.edges.index(edge)
        close(
            torch.stack([new.relaxation(name).alpha[row, new_columns.index(n)] for n in stay]),
            torch.stack([network.relaxation(name).alpha[row, columns.index(n)] for n in stay]),
        )
    assert bool(new(case.batch()[0]).isfinite().all())


# ------------------------------------------------------------------------------------------------ pruning


@every
@pytest.mark.parametrize("keep", [1, 2, 9])
def test_pruning_keeps_the_strongest(case, keep):
    network = case.network()
    pruned = prune(network, case.build, keep=keep, generator=generator())
    assert pruned.genotype() == network.genotype()
    for kind, space in pruned.spaces.items():
        old = network.spaces[kind]
        kept = candidate_weights(pruned, kind)
        for node in range(space.inputs, space.inputs + space.nodes):
            assert len(space.sources(node)) == old.kept(node)
        for edge, found in kept.items():
            before = {n: w for n, w in candidate_weights(network, kind)[edge].items() if n != ZERO}
            strongest = sorted(before, key=lambda n: -before[n])[:keep]
            assert set(found) == set(strongest)
            total = sum(before[n] for n in strongest)
            assert found == pytest.approx({n: before[n] / total for n in found}, rel=1e-9)
    assert bool(pruned(case.batch()[0]).isfinite().all())


@every
def test_what_remains_of_a_cell_is_its_genotype(case):
    network = case.network()
    assert remaining_cells(prune(network, case.build, generator=generator())) == network.genotype()
    several = remaining_cells(prune(network, case.build, keep=2, generator=generator()))
    for kind, cell in several.cells:
        assert set(network.genotype()[kind].edges) < set(cell.edges)
        assert ZERO not in {edge.operation for edge in cell.edges}


@recurrent
def test_a_pruned_supernet_is_the_derived_network(case):
    pruned = prune(case.network(), case.build, generator=generator())
    derived = DerivedRecurrentNetwork(pruned.genotype(), case.task, case.hidden).double()
    derived.load_state_dict({n: v for n, v in pruned.state_dict().items() if not n.startswith("relaxations.")})
    close(derived(case.batch()[0]).detach(), pruned(case.batch()[0]).detach())


def test_pruning_survives_an_edge_that_is_shut():
    case = Case("darts", nodes=1)
    network = case.network()
    with torch.no_grad():
        network.relaxation("darts").alpha[0] = torch.tensor([-math.inf] * 4 + [0.0])
    spaces, weights = pruned_spaces(network, keep=2)
    assert weights == {"darts": {(0, 1): {"sigmoid": 0.5, "tanh": 0.5}}}
    assert spaces["darts"].pools == (("sigmoid", "tanh"),)


@pytest.mark.parametrize("keep", [0, -1])
def test_something_is_kept(keep):
    case = Case("darts")
    with pytest.raises(InvalidInput, match="keep"):
        prune(case.network(), case.build, keep=keep, generator=generator())


def test_weights_are_those_of_the_pool():
    case = Case("darts", nodes=1)
    network = case.network()
    pruned = prune(network, case.build, keep=3, generator=generator())
    (weights,) = candidate_weights(pruned, "darts").values()
    assert list(weights) == list(pruned.spaces["darts"].candidates(0, 1))
    table = pruned.coefficients()["darts"][0].tolist()
    assert list(weights.values()) == pytest.approx(table, abs=1e-12)


# ------------------------------------------------------------------------------------------------ optimiser states

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.01),
}


def optimizers(name, network):
    return [OPTIMIZERS[name](list(part())) for part in (network.weights, network.architecture)]


def step(case, network, used, seed):
    for optimizer in used:
        optimizer.zero_grad()
    loss_of(case, network, case.batch(seed)).backward()
    for optimizer in used:
        optimizer.step()


def names(network):
    return dict(network.named_parameters())


def by_place(network, kind, table):
    """A table like α, by edge and candidate."""
    space = network.spaces[kind]
    return {
        (edge, name): float(table[row, space.operations.index(name)])
        for row, edge in enumerate(space.edges)
        for name in space.candidates(*edge)
    }


@every
@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_states_follow_the_rows_of_alpha_and_the_parts_that_grow(case, name):
    network = case.network()
    used = optimizers(name, network)
    for seed in (1, 2):
        step(case, network, used, seed)
    keys = {"adam": ("exp_avg", "exp_avg_sq"), "momentum": ("momentum_buffer",)}[name]
    for new in (
        grow(network, case, 0.05, 0.1),
        prune(network, case.build, keep=2, generator=generator()),
        grow(prune(network, case.build, keep=2, generator=generator()), case, 0.05, 0.1),
    ):
        fresh = optimizers(name, new)
        for old_optimizer, new_optimizer in zip(used, fresh, strict=True):
            carry_states(network, old_optimizer, new, new_optimizer)
        for kind in network.spaces:
            old_alpha, alpha = network.relaxations[kind].alpha, new.relaxations[kind].alpha
            for key in keys:
                before = by_place(network, kind, used[1].state[old_alpha][key])
                after = by_place(new, kind, fresh[1].state[alpha][key])
                stay = [before[place] for place in after if place in before]
                start = sum(stay) / len(stay) if key == "exp_avg_sq" else 0.0
                assert after == pytest.approx({place: before.get(place, start) for place in after}, rel=1e-9, abs=0)
            if name == "adam":
                assert float(fresh[1].state[alpha]["step"]) == 2
        if case.recurrent:
            for parameter_name, parameter in names(new).items():
                old = names(network).get(parameter_name)
                if parameter_name.startswith("relaxations."):
                    continue
                for key in keys:
                    if old is None:
                        assert parameter not in fresh[0].state
                    else:
                        assert torch.equal(fresh[0].state[parameter][key], used[0].state[old][key])
        else:
            grown, old = new.classifier.weight, network.classifier.weight
            for key in keys:
                found, before = fresh[0].state[grown][key], used[0].state[old][key]
                assert found.shape == grown.shape
                assert torch.equal(found[:, : before.shape[1]], before)
                rest = found[:, before.shape[1] :]
                close(rest, torch.full_like(rest, float(before.mean()) if key == "exp_avg_sq" else 0.0), 1e-16)
        step(case, new, fresh, 3)
        # A step must not reach back: states are copies.
        for optimizer in used:
            assert all(float(state.get("step", 2)) == 2 for state in optimizer.state.values())


@every
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_after_a_change_training_goes_on_as_if_there_were_none(case, name):
    """Without noise the grown network has the same gradients, so its old parameters and their moments stay the same."""
    network = case.network()
    used = optimizers(name, network)
    step(case, network, used, 1)
    grown = grow(network, case)
    fresh = optimizers(name, grown)
    for old_optimizer, new_optimizer in zip(used, fresh, strict=True):
        carry_states(network, old_optimizer, grown, new_optimizer)
    step(case, network, used, 2)
    step(case, grown, fresh, 2)
    compared = 0
    for parameter_name, old in names(network).items():
        if not case.recurrent and ".edges." in parameter_name:
            continue  # their numbers have changed
        new = names(grown)[parameter_name]
        part = tuple(slice(size) for size in old.shape)
        if parameter_name.startswith("relaxations."):
            kind = parameter_name.split(".")[1]
            rows = [grown.spaces[kind].edges.index(edge) for edge in network.spaces[kind].edges]
            part = (rows,)
        close(new.detach()[part], old.detach(), 1e-9)
        for key, value in used[0].state.get(old, used[1].state.get(old, {})).items():
            if key != "step" and value is not None:
                close(fresh[0].state.get(new, fresh[1].state.get(new, {}))[key][part], value, 1e-9)
        compared += 1
    assert compared > 3
    assert bool(grown(case.batch()[0]).isfinite().all())


def test_states_of_convolutional_edges_move_with_their_nodes():
    case = Case("concatenation", options=())
    network = case.network()
    used = optimizers("adam", network)
    step(case, network, used, 1)
    space = network.spaces["normal"]
    spaces = {kind: replace(space, left_out=((1, 2),)) for kind in network.spaces}
    weights = {kind: {} for kind in network.spaces}
    new = changed(network, case.build, spaces, weights, generator=generator())
    fresh = optimizers("adam", new)
    carry_states(network, used[0], new, fresh[0])
    moved = {edge: row for row, edge in enumerate(spaces["normal"].edges)}
    assert moved[0, 3] != space.edges.index((0, 3))
    for row, edge in enumerate(space.edges):
        if edge not in moved:
            continue
        for cell, new_cell in zip(network.cells, new.cells, strict=True):
            old = dict(cell.edges[row].named_parameters())
            for parameter_name, parameter in new_cell.edges[moved[edge]].named_parameters():
                assert torch.equal(parameter, old[parameter_name])
                assert torch.equal(
                    fresh[0].state[parameter]["exp_avg"], used[0].state[old[parameter_name]]["exp_avg"]
                )


def test_pruned_edges_have_the_genotypes_names():
    case = Case("two-to-one", nodes=1)
    network = case.network()
    with torch.no_grad():
        network.relaxation("two-to-one").alpha[0] = torch.tensor([0.0, 3, 0, 0, 0])
    pruned = prune(network, case.build, generator=generator())
    assert pruned.genotype()["two-to-one"].edges == (Edge(0, 1, "tanh"),)
    assert pruned.spaces["two-to-one"] == Space(("tanh",), 1, 1, 1, ("two-to-one",), (), (("tanh",),))
    assert isinstance(pruned, RecurrentSearchNetwork) and not isinstance(pruned, SearchNetwork)
