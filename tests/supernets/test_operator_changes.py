"""Operations that come and go by their softmax weights (claims growing.operator, growing.prune-replace)."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from collections import Counter
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from changing_cells import CONVOLUTIONAL, COPYING, Case, Task, generator, one_step, readable, values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nasbook.errors import InvalidInput
from nasbook.genotypes import ZERO
from nasbook.networks import DerivedRecurrentNetwork
from nasbook.operations import operation_of
from nasbook.supernets import (
    OperatorRules,
    add_node,
    candidate_weights,
    carry_states,
    change_operators,
    prune,
    split_operators,
)
from nasbook.training.sequences import sequence_loss

some = settings(derandomize=True, deadline=None, max_examples=60)
few = settings(derandomize=True, deadline=None, max_examples=15)
copying = pytest.mark.parametrize("case", COPYING, ids=str)
ACTIVATED = ("sigmoid", "tanh", "relu")
WITH_WEIGHTS = ("sigmoid", "tanh", "relu", "sum", "product")


def one_edge(name, weights, seed=0, **options):
    """A case of one node, and its network with these softmax weights on its edge."""
    case = Case(name, nodes=1, **options)
    network = case.network(seed)
    space = network.spaces[name].with_pools([tuple(weights)])
    small = case.build({name: space}).double()
    set_weights(small, name, (0, 1), weights)
    return case, small


def set_weights(network, kind, edge, weights):
    space = network.spaces[kind]
    with torch.no_grad():
        for name, weight in weights.items():
            alpha = network.relaxation(kind).alpha
            alpha[space.edges.index(edge), space.operations.index(name)] = math.log(weight) if weight else -math.inf


def change(case, network, seed=0, **rules):
    return change_operators(network, case.build, OperatorRules(**rules), generator(seed))


def of(network, kind="two-to-one", edge=(0, 1)):
    return candidate_weights(network, kind)[edge]


def parameters(network, kind, edge, name):
    return {n: p.detach().clone() for n, p in network.cell(kind).candidates(*edge)[name].named_parameters()}


def same(got, expected):
    return got.keys() == expected.keys() and all(torch.equal(got[n], expected[n]) for n in got)


# ------------------------------------------------------------------------------------------------ rules


def test_the_defaults_change_nothing():
    for case in (*COPYING, Case("highway"), *CONVOLUTIONAL[:1]):
        network = case.network(spread=3.0)
        assert change(case, network) == (network, ())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"grow_above": 0.0}, "grow_above"),
        ({"grow_above": 1.1}, "grow_above"),
        ({"grow_above": math.nan}, "grow_above"),
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"share": math.nan}, "share"),
        ({"most_candidates": 0}, "most_candidates"),
        ({"split_step": 0.0}, "split_step"),
        ({"split_step": math.nan}, "split_step"),
        ({"noise": 0.0}, "noise"),
        ({"noise": -1.0}, "noise"),
        ({"prune_below": -0.1}, "prune_below"),
        ({"prune_below": math.nan}, "prune_below"),
        ({"prune_below": 0.6}, "at most grow_above, which is 0.5"),
        ({"strategy": "small-weight", "share": 0.05, "prune_below": 0.1}, "would soon be pruned"),
        ({"exchange": "replace", "share": 0.05, "prune_below": 0.1}, "would soon be pruned"),
    ],
)
def test_wrong_rules_are_refused(rules, message):
    with pytest.raises(InvalidInput, match=message):
        OperatorRules(**rules)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("strategy", "small", "Unknown strategy of operators 'small'. Did you mean 'small-weight'"),
        ("choose", "least", "Unknown choice of operators 'least'. Did you mean 'least-sum'"),
        ("exchange", "swap", "Unknown exchange of operators 'swap'. Did you mean"),
    ],
)
def test_unknown_names_are_refused(name, value, message):
    rules = OperatorRules()
    object.__setattr__(rules, name, value)  # past the type checker that only tests have
    with pytest.raises(InvalidInput, match=re.escape(message)):
        rules.__post_init__()


def test_rules_at_their_limits():
    OperatorRules(grow_above=1.0, prune_below=1.0, share=0.999)
    OperatorRules("small-weight", share=0.1, prune_below=0.1)
    OperatorRules(share=0.05, prune_below=0.1)  # nothing new comes
    with pytest.raises(FrozenInstanceError):
        OperatorRules().share = 0.2


@pytest.mark.parametrize("case", [Case("highway"), *CONVOLUTIONAL], ids=str)
def test_where_copies_make_no_sense_they_are_refused(case):
    network = case.network()
    for rules in ({"strategy": "small-weight"}, {"strategy": "splitting"}, {"exchange": "replace"},
                  {"exchange": "resample"}):
        with pytest.raises(InvalidInput, match="pruning works"):
            change(case, network, **rules)


# ------------------------------------------------------------------------------------------------ growing


@pytest.mark.parametrize("name", ["two-to-one", "darts"])
def test_a_new_operation_changes_the_function_by_its_share(name):
    """ō' = (1 − s) ō + s o_new, so |ō' − ō| ≤ s (|o_new| + |ō|); exactly."""
    weights = {"sigmoid": 0.1, "tanh": 0.6, "relu": 0.3}
    case, network = one_edge(name, weights, options=(("engine", "readable"),))
    new, (step,) = change(case, network, strategy="small-weight", share=0.07)
    x, h, before = one_step(network.cell(name), network.coefficients()[name])
    _, _, after = one_step(new.cell(name), new.coefficients()[name])
    module = new.cell(name).candidates(0, 1)["tanh-2"]
    output = (module(x, h) if name == "two-to-one" else module(torch.cat([x, h], dim=1))).detach()
    torch.testing.assert_close(after, 0.93 * before + 0.07 * output, rtol=0, atol=1e-14)
    expected = {"sigmoid": 0.093, "tanh": 0.558, "relu": 0.279, "tanh-2": 0.07}
    assert of(new, name) == pytest.approx(expected, abs=1e-14)
    assert asdict(step) == {
        "what": "grow", "kind": name, "edge": (0, 1), "candidate": "tanh-2", "parent": "tanh",
        "weights_before": pytest.approx(weights), "weights_after": pytest.approx(expected),
    }


@copying
def test_what_was_there_stays_and_the_new_is_fresh(case):
    network = case.network(spread=2.0)
    old = values(network)
    new, changes = change(case, network, strategy="small-weight", grow_above=0.2)
    other, _ = change(case, network, strategy="small-weight", grow_above=0.2, seed=1)
    assert changes
    torch.testing.assert_close(network.state_dict(), old, rtol=0, atol=0)
    found = new.state_dict()
    for name, value in old.items():
        if not name.startswith("relaxations."):
            assert torch.equal(found[name], value)
    for step in changes:
        fresh = parameters(new, step.kind, step.edge, step.candidate)
        assert not same(fresh, parameters(new, step.kind, step.edge, step.parent))
        assert not same(fresh, parameters(other, step.kind, step.edge, step.candidate))
    for kind, space in network.spaces.items():  # α stays: only the new one's is new
        columns = [new.spaces[kind].operations.index(name) for name in space.operations]
        alpha = new.relaxation(kind).alpha[:, columns]
        torch.testing.assert_close(alpha, network.relaxation(kind).alpha, rtol=0, atol=1e-12)


def test_the_threshold_has_to_be_surpassed():
    case, network = one_edge("two-to-one", {"tanh": 0.5, "sum": 0.5})
    assert of(network)["tanh"] == 0.5
    assert change(case, network, strategy="small-weight", grow_above=0.5) == (network, ())
    _, changes = change(case, network, strategy="small-weight", grow_above=0.5 - 1e-9)
    assert [step.candidate for step in changes] == ["tanh-2"]


@pytest.mark.parametrize(
    ("name", "weights", "grown"),
    [
        ("two-to-one", {"sigmoid": 0.1, "tanh": 0.3, "relu": 0.6}, "relu-2"),
        ("two-to-one", {"sigmoid": 0.05, "tanh": 0.05, "sum": 0.9}, None),  # two sums are one
        ("two-to-one", {"tanh": 0.05, "product": 0.95}, None),
        ("darts", {"tanh": 0.05, "identity": 0.95}, None),  # has no parameters
        ("darts", {"tanh": 0.05, ZERO: 0.95}, None),
        ("darts", {"tanh": 0.35, "identity": 0.65}, "tanh-2"),  # the strongest that a copy helps
        ("two-to-one", {"tanh": 0.35, "relu": 0.35, "sum": 0.3}, "tanh-2"),  # of equals the first
        ("two-to-one", {"tanh": 0.2, "tanh-2": 0.5, "sum": 0.3}, "tanh-3"),
        ("two-to-one", {"tanh-2": 0.7, "sum": 0.3}, "tanh"),
        ("two-to-one", {"tanh": 1.0}, "tanh-2"),
        ("two-to-one", {"sum": 1.0}, None),
    ],
)
def test_the_strongest_with_an_activation_is_copied(name, weights, grown):
    case, network = one_edge(name, weights)
    new, changes = change(case, network, strategy="small-weight", grow_above=0.31)
    assert [step.candidate for step in changes] == ([grown] if grown else [])
    assert list(of(new, name)) == [*weights, *([grown] if grown else [])]
    assert (new is network) == (grown is None)


def test_every_edge_is_looked_at_alone():
    case = Case("two-to-one", nodes=3)
    network = case.network()
    for edge, strong in (((0, 1), "tanh"), ((1, 2), "sum"), ((2, 3), "relu")):
        set_weights(network, "two-to-one", edge, {n: 0.6 if n == strong else 0.1 for n in case.operations})
    new, changes = change(case, network, strategy="small-weight")
    assert [(step.edge, step.candidate) for step in changes] == [((0, 1), "tanh-2"), ((2, 3), "relu-2")]
    assert new.spaces["two-to-one"].pools[1] == case.operations


def test_growth_ends():
    """By its share every copy lowers the strongest, or the edge is full."""
    case, network = one_edge("two-to-one", {"tanh": 0.9, "relu": 0.1})
    births = 0
    while True:
        network, changes = change(case, network, births, strategy="small-weight", grow_above=0.5, share=0.2)
        if not changes:
            break
        births += 1
    assert births == 3  # 0.9 · 0.8³ = 0.46
    case, network = one_edge("two-to-one", {"tanh": 0.9, "relu": 0.1})
    for most, grows in ((2, False), (3, True)):
        _, changes = change(case, network, strategy="small-weight", most_candidates=most)
        assert bool(changes) == grows


def test_edges_that_are_not_computed_are_left_alone():
    case = Case("darts", nodes=3)
    network = case.network()
    for edge in network.spaces["darts"].edges:
        strong = 0.8 if edge != (2, 3) else 0.2
        rest = (1 - strong) / (len(case.operations) - 1)
        set_weights(network, "darts", edge, {n: strong if n == "tanh" else rest for n in case.operations})
    pruned = prune(network, case.build, generator=generator())
    assert pruned.spaces["darts"].edges == ((0, 1), (1, 2), (1, 3))
    _, changes = change(case, pruned, strategy="small-weight")
    assert [step.edge for step in changes] == [(0, 1), (1, 3)]


# ------------------------------------------------------------------------------------------------ pruning


def test_the_weak_go_and_the_others_keep_their_proportions():
    case, network = one_edge("two-to-one", {"sigmoid": 0.02, "tanh": 0.45, "relu": 0.04, "sum": 0.3, "product": 0.19})
    new, changes = change(case, network, prune_below=0.05)
    assert [(step.what, step.candidate, step.parent) for step in changes] == [
        ("prune", "sigmoid", None), ("prune", "relu", None),
    ]
    assert of(new) == pytest.approx({"tanh": 0.45 / 0.94, "sum": 0.3 / 0.94, "product": 0.19 / 0.94}, abs=1e-14)
    for name in ("tanh", "sum", "product"):
        assert same(parameters(new, "two-to-one", (0, 1), name), parameters(network, "two-to-one", (0, 1), name))
        spaces = [n.spaces["two-to-one"].operations for n in (new, network)]
        alphas = [n.relaxation("two-to-one").alpha[0] for n in (new, network)]
        # Bit for bit: the softmax over the rest is all that happens.
        assert alphas[0][spaces[0].index(name)] == alphas[1][spaces[1].index(name)]


def test_pruning_takes_one_after_another():
    """After each the weights are those that are left: of five equals, three are above 0.3."""
    case, network = one_edge("two-to-one", dict.fromkeys(WITH_WEIGHTS, 0.2))
    new, changes = change(case, network, prune_below=0.3)
    assert [step.candidate for step in changes] == ["product", "sum"]  # of equals the last
    assert of(new) == pytest.approx(dict.fromkeys(ACTIVATED, 1 / 3))
    assert changes[0].weights_after == changes[1].weights_before == pytest.approx(dict.fromkeys(WITH_WEIGHTS[:4], 0.25))


def test_nothing_goes_while_one_is_strong():
    weights = {"tanh": 0.6, "relu": 0.39, "sum": 0.01}
    case, network = one_edge("two-to-one", weights)
    assert change(case, network, prune_below=0.05, grow_above=0.59) == (network, ())
    _, changes = change(case, network, prune_below=0.05, grow_above=0.61)
    assert [step.candidate for step in changes] == ["sum"]
    # That the strongest of all has no activation makes no difference here.
    case, network = one_edge("two-to-one", {"sum": 0.6, "relu": 0.39, "tanh": 0.01})
    assert change(case, network, prune_below=0.05, grow_above=0.59) == (network, ())
    # The first to go may make the strongest strong enough to protect the next.
    case, network = one_edge("two-to-one", {"tanh": 0.5, "relu": 0.3, "sum": 0.12, "product": 0.08})
    _, changes = change(case, network, prune_below=0.2, grow_above=0.53)
    assert [step.candidate for step in changes] == ["product"]


def test_a_weight_at_the_threshold_stays():
    case, network = one_edge("two-to-one", {"tanh": 0.5, "relu": 0.5})
    assert change(case, network, prune_below=0.5, grow_above=0.5) == (network, ())


def test_an_edge_keeps_an_operation_besides_zero():
    case, network = one_edge("darts", {ZERO: 0.9, "tanh": 0.06, "relu": 0.04})
    new, changes = change(case, network, prune_below=0.5, grow_above=1.0)
    assert [step.candidate for step in changes] == ["relu"]
    assert list(of(new, "darts")) == [ZERO, "tanh"]
    assert change(case, new, prune_below=0.5, grow_above=1.0) == (new, ())
    case, network = one_edge("darts", {ZERO: 0.1, "tanh": 0.9})  # zero itself may go
    new, _ = change(case, network, prune_below=0.2, grow_above=1.0)
    assert of(new, "darts") == {"tanh": 1.0}
    assert change(case, new, prune_below=1.0, grow_above=1.0) == (new, ())


@pytest.mark.parametrize("case", [Case("highway", nodes=3), *CONVOLUTIONAL], ids=str)
def test_all_supernets_are_pruned_by_their_weights(case):
    network = case.network()
    new, changes = change(case, network, prune_below=0.2, grow_above=1.0)
    assert changes
    assert {step.what for step in changes} == {"prune"}
    for kind in network.spaces:
        for edge, weights in candidate_weights(new, kind).items():
            before = candidate_weights(network, kind)[edge]
            total = sum(before[name] for name in weights)
            assert weights == pytest.approx({name: before[name] / total for name in weights})
            assert set(weights) - {ZERO}
            others = {name for name in weights if name != ZERO}
            assert all(weight >= 0.2 or others == {name} for name, weight in weights.items())
    assert bool(new(case.batch()[0]).isfinite().all())
    assert set(new.genotype().kinds) == set(network.spaces)


# ------------------------------------------------------------------------------------------------ exchange


def test_the_weakest_makes_room_for_the_strongest():
    case, network = one_edge("two-to-one", {"sigmoid": 0.05, "tanh": 0.6, "relu": 0.15, "sum": 0.2})
    new, changes = change(case, network, exchange="replace", share=0.1)
    assert [(step.what, step.candidate, step.parent) for step in changes] == [
        ("replace", "sigmoid", None), ("replace", "tanh-2", "tanh"),
    ]
    left = {"tanh": 0.6, "relu": 0.15, "sum": 0.2}
    assert of(new) == pytest.approx({**{n: w / 0.95 * 0.9 for n, w in left.items()}, "tanh-2": 0.1}, abs=1e-14)


def test_only_a_weaker_one_makes_room():
    case, network = one_edge("two-to-one", {"tanh": 0.8, "sum": 0.2})
    assert change(case, network, exchange="replace", share=0.2) == (network, ())
    _, changes = change(case, network, exchange="replace", share=0.2001)
    assert [step.candidate for step in changes] == ["sum", "tanh-2"]
    case, network = one_edge("two-to-one", {"tanh": 1.0})
    assert change(case, network, exchange="replace", share=0.9) == (network, ())
    case, network = one_edge("two-to-one", {"tanh": 0.5, "sum": 0.5})
    assert change(case, network, exchange="replace", share=0.9) == (network, ())
    # The strongest with an activation may be the weakest of all.
    case, network = one_edge("two-to-one", {"tanh": 0.4, "sum": 0.6})
    assert change(case, network, exchange="replace", share=0.9, grow_above=0.3) == (network, ())
    # Zero may be replaced, and an operation besides it stays.
    case, network = one_edge("darts", {"tanh": 0.9, ZERO: 0.1})
    new, _ = change(case, network, exchange="replace", share=0.2)
    assert list(of(new, "darts")) == ["tanh", "tanh-2"]


def test_a_copy_of_the_same_name_would_not_be_fresh():
    """The one that goes was the second tanh: its successor gets another name, or it would inherit its parameters."""
    case, network = one_edge("two-to-one", {"tanh": 0.95, "tanh-2": 0.05})
    new, changes = change(case, network, exchange="replace")
    assert [step.candidate for step in changes] == ["tanh-2", "tanh-3"]
    fresh = parameters(new, "two-to-one", (0, 1), "tanh-3")
    assert not same(fresh, parameters(network, "two-to-one", (0, 1), "tanh-2"))
    optimizers = [torch.optim.Adam(n.weights(), 0.01) for n in (network, new)]
    inputs, targets = case.batch()
    sequence_loss(network(inputs), targets).backward()
    optimizers[0].step()
    carry_states(network, optimizers[0], new, optimizers[1])
    held = {name: parameter in optimizers[1].state for name, parameter in new.named_parameters()}
    assert [name for name, kept in held.items() if not kept] == [
        *(f"body.layers.0.edges.0-1.tanh-3.{part}" for part in ("input_weight", "state_weight", "bias")),
        "relaxations.two-to-one.alpha",
    ]


@few
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_replacing_ends(raw, share, above):
    weights = {n: w / sum(raw) for n, w in zip(WITH_WEIGHTS, raw, strict=False)}
    case, network = one_edge("two-to-one", weights, hidden=1)
    for seed in range(60):
        network, changes = change(case, network, seed, exchange="replace", share=share, grow_above=above)
        assert len(of(network)) == len(weights)
        assert sum(of(network).values()) == pytest.approx(1, abs=1e-12)
        if not changes:
            break
        assert max(of(network).values()) <= max(changes[0].weights_before.values()) + 1e-12 or share > above
    else:
        # A newcomer above the threshold is itself the next parent; then exchange goes on.
        assert share > above


def test_exchange_comes_where_growth_does_not():
    case, network = one_edge("two-to-one", {"tanh": 0.9, "sum": 0.05, "relu": 0.05})
    for most, what in ((4, "grow"), (3, "replace")):
        _, changes = change(case, network, strategy="small-weight", exchange="replace", most_candidates=most)
        assert {step.what for step in changes} == {what}
    _, changes = change(case, network, strategy="splitting", exchange="replace")
    assert {step.what for step in changes} == {"replace"}
    assert change(case, network, strategy="splitting") == (network, ())


def test_draws_follow_the_weights():
    """What is drawn c times stands c times; the counts are multinomial."""
    weights = {"sigmoid": 0.2, "tanh": 0.6, "relu": 0.15, "sum": 0.05}
    case, network = one_edge("two-to-one", weights, hidden=1)
    found = Counter()
    for seed in range(300):
        new, _ = change(case, network, seed, exchange="resample")
        found[tuple(sorted(Counter(operation_of(name) for name in of(new)).items()))] += 1
    expected = Counter()
    for drawn in _all_draws(len(weights), len(weights)):
        counts = dict(zip(weights, drawn, strict=True))
        stand = tuple(sorted((n, 1 if n == "sum" else c) for n, c in counts.items() if c))  # two sums are one
        expected[stand] += stats.multinomial.pmf(drawn, len(weights), list(weights.values()))
    likely = [stand for stand in expected if 300 * expected[stand] >= 5]
    rest = 1 - sum(expected[stand] for stand in likely)
    observed = [found[stand] for stand in likely] + [300 - sum(found[stand] for stand in likely)]
    assert set(found) <= set(expected)
    assert stats.chisquare(observed, [300 * expected[stand] for stand in likely] + [300 * rest]).pvalue > 0.01


def _all_draws(total, parts):
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _all_draws(total - first, parts - 1)]


@some
@given(st.integers(0, 10**6))
def test_what_is_drawn_shares_its_weight_among_its_copies(seed):
    draws = generator(seed)
    raw = torch.rand(5, generator=draws, dtype=torch.float64) + 0.01
    names = ("tanh", "relu", "identity", ZERO, "sigmoid")
    weights = dict(zip(names, (raw / raw.sum()).tolist(), strict=True))
    case, network = one_edge("darts", weights, hidden=2)
    new, changes = change(case, network, seed, exchange="resample", grow_above=0.01)
    after = of(new, "darts")
    assert len(after) <= 5
    assert set(after) - {ZERO}
    assert sum(after.values()) == pytest.approx(1, abs=1e-12)
    stays = {name for name in weights if name in after}
    total = sum(weights[name] for name in stays)
    parents = {step.candidate: step.parent for step in changes if step.parent}
    for name in stays:
        family = [name, *(copied for copied, parent in parents.items() if parent == name)]
        shares = [after[one] for one in family]
        assert shares == pytest.approx([weights[name] / total / len(family)] * len(family), rel=1e-9)
        assert len(family) == 1 or name in ACTIVATED
        # The mean of the copies' parameters is what it was.
        before = parameters(network, "darts", (0, 1), name)
        for key, value in before.items():
            now = torch.stack([parameters(new, "darts", (0, 1), one)[key] for one in family])
            torch.testing.assert_close(now.mean(0), value, rtol=0, atol=1e-12)
            assert len(family) == 1 or not torch.equal(now[0], now[1])
    assert set(after) == stays | set(parents)


def test_copies_that_were_drawn_change_the_function_to_second_order():
    case, network = one_edge("two-to-one", {"tanh": 1.0, "relu": 1e-80, "sigmoid": 1e-80})
    inputs, _ = case.batch()
    before = network(inputs).detach()

    def moved(noise):
        new, changes = change(case, network, exchange="resample", noise=noise)
        assert [step.candidate for step in changes] == ["relu", "sigmoid", "tanh-2", "tanh-3"]
        return float((new(inputs).detach() - before).norm())

    assert moved(0.1) / moved(0.01) == pytest.approx(100, rel=0.1)
    family = [parameters(change(case, network, exchange="resample", noise=0.1)[0], "two-to-one", (0, 1), name)
              for name in ("tanh", "tanh-2", "tanh-3")]
    old = parameters(network, "two-to-one", (0, 1), "tanh")["state_weight"]
    spread = torch.stack([(one["state_weight"] - old).square().mean() for one in family]).mean().sqrt()
    assert float(spread / old.square().mean().sqrt()) == pytest.approx(0.1 * math.sqrt(2 / 3), rel=0.25)


def test_an_edge_that_draws_only_zero_keeps_its_strongest():
    case, network = one_edge("darts", {ZERO: 0.7, "tanh": 0.29, "relu": 0.01}, hidden=1)
    seen = Counter()
    for seed in range(30):
        new, _ = change(case, network, seed, exchange="resample", grow_above=0.2)
        seen[tuple(of(new, "darts"))] += 1
        if tuple(of(new, "darts")) == (ZERO, "tanh"):
            assert of(new, "darts") == pytest.approx({ZERO: 0.7 / 0.99, "tanh": 0.29 / 0.99})
    assert all(set(names) - {ZERO} for names in seen)
    assert seen[(ZERO, "tanh")] > 0.343 * 30  # all three draws were zero, or one of them tanh


def test_no_more_are_drawn_than_an_edge_may_have():
    case, network = one_edge("two-to-one", dict.fromkeys(("tanh", "relu", "sigmoid", "tanh-2"), 0.25))
    for seed in range(10):
        new, _ = change(case, network, seed, exchange="resample", grow_above=0.2, most_candidates=2)
        assert 1 <= len(of(new)) <= 2


def test_a_draw_of_all_changes_nothing():
    case, network = one_edge("two-to-one", {"tanh": 0.5, "sum": 0.5})
    results = [change(case, network, seed, exchange="resample", grow_above=0.4) for seed in range(20)]
    unchanged = [new is network for new, _ in results]
    assert any(unchanged)
    assert not all(unchanged)
    assert all(bool(changes) != (new is network) for new, changes in results)


# ------------------------------------------------------------------------------------------------ all together


@copying
def test_changes_are_the_same_for_the_same_generator(case):
    network = case.network(spread=2.0)
    state = torch.get_rng_state()
    for rules in ({"strategy": "small-weight"}, {"exchange": "replace", "share": 0.3}, {"exchange": "resample"}):
        (first, changes), (second, again) = (change(case, network, 7, grow_above=0.3, **rules) for _ in range(2))
        assert changes == again
        assert changes
        torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
        assert first.training == network.training
        assert next(first.parameters()).dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), state)


def test_changes_are_plain_values():
    case = COPYING[2]
    _, changes = change(case, case.network(spread=2.0), exchange="resample", grow_above=0.3)
    plain = [asdict(step) for step in changes]
    assert json.loads(json.dumps(plain))[0]["candidate"] == plain[0]["candidate"]
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain


RULES = (
    OperatorRules("small-weight", grow_above=0.3, most_candidates=6),
    OperatorRules(prune_below=0.15, grow_above=0.9),
    OperatorRules(exchange="replace", share=0.25, grow_above=0.3, prune_below=0.05),
    OperatorRules(exchange="resample", grow_above=0.3, prune_below=0.1, noise=0.05),
    OperatorRules("splitting", choose="most-negative", split_step=0.05, most_candidates=6),
    OperatorRules("splitting", choose="least-sum", split_step=0.05, most_candidates=6),
    OperatorRules("splitting", choose="all-negative", split_step=0.05, most_candidates=6),
)


@few
@given(st.sampled_from(COPYING), st.lists(st.sampled_from([*RULES, "node", "prune"]), min_size=1, max_size=6),
       st.integers(0, 100))
def test_any_sequence_of_changes_leaves_a_cell_that_works(case, sequence, seed):
    network = case.network(seed, spread=1.5)
    inputs, targets = case.batch(seed)
    draws = generator(seed)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for change_by in sequence:
        before, changes = network, ()
        if change_by == "node":
            network = add_node(network, case.build, case.operations, generator=draws)
        elif change_by == "prune":
            network = prune(network, case.build, keep=2, generator=draws)
        else:
            network, changes = change_operators(network, case.build, change_by, draws)
            network, splits = split_operators(
                network, case.build, change_by, [(inputs, targets)], sequence_loss, draws
            )
            changes += splits
            assert bool(changes) == (network is not before)
            check_chain(before, network, changes)
            assert all(
                len(pool) <= max(change_by.most_candidates, len(space.pools[row]) if space.pools else 5)
                for kind, space in before.spaces.items() for row, pool in enumerate(network.spaces[kind].pools)
            )
        check(case, network, inputs)
        if network is not before:
            fresh = torch.optim.Adam(network.parameters(), 0.02)
            carry_states(before, optimizer, network, fresh)
            optimizer = fresh
        sequence_loss(network(inputs), targets).backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
    check(case, network, inputs)


def check_chain(before, after, changes):
    """Every change begins where the one before ended, from the old weights to the new ones."""
    for kind, space in before.spaces.items():
        for edge in space.edges:
            own = [step for step in changes if (step.kind, step.edge) == (kind, edge)]
            weights = candidate_weights(before, kind)[edge]
            for step in own:
                assert step.weights_before == pytest.approx(weights, abs=1e-12)
                weights = step.weights_after
                assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
                assert (step.candidate in weights) == (step.parent is not None)
                assert (step.candidate in step.weights_before) == (step.parent is None)
                if step.parent:
                    assert operation_of(step.parent) == operation_of(step.candidate)
            assert candidate_weights(after, kind)[edge] == pytest.approx(weights, abs=1e-9)


def check(case, network, inputs):
    for kind, space in network.spaces.items():
        for edge, weights in candidate_weights(network, kind).items():
            assert weights
            assert set(weights) - {ZERO}
            assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
            assert tuple(weights) == space.candidates(*edge)
        table = network.coefficients()[kind].detach()
        torch.testing.assert_close(table.sum(1), torch.ones(len(space.edges), dtype=torch.float64))
    output = network(inputs).detach()
    assert bool(output.isfinite().all())
    torch.testing.assert_close(readable(network, case)(inputs).detach(), output, rtol=0, atol=1e-9)
    derived = DerivedRecurrentNetwork(network.genotype(), case.task, case.hidden).double()
    assert derived(inputs).shape == output.shape
    copy.deepcopy(network).load_state_dict(network.state_dict())


def test_the_cases_have_words_and_series():
    assert {case.task for case in COPYING} == {Task(), Task("language", 6)}
