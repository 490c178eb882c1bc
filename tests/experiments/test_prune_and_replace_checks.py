"""What is exact about PR-DARTS: the claims hold on what is measured, and wrong values, rules and batches are found."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.experiments import (
    POOL_SCALES,
    Workplace,
    get_claim,
    get_experiment,
    pr_darts_config,
    pr_darts_space,
    read_record,
    reproduce,
    scoreboard,
)
from nasbook.experiments import prune_and_replace_checks as checks
from nasbook.growth import morph
from nasbook.methods import pr_darts
from nasbook.operations import CONSTRAINTS, MORPHISMS, Configuration, MorphableConvolution, get_operation
from nasbook.supernets import Pool, possible_children

HOLDS, NOT = "holds", "does not hold at this scale"
INITIAL = pr_darts.INITIAL_SPACE.operations


def verdict(record_of, experiment, claim, values, of=POOL_SCALES["quick"]):
    return get_experiment(experiment).judges[claim](record_of(experiment, values, of=of))


def wrong(values, path, value):
    """A copy with another value in one place."""
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", ["exact", "morphisms", "schedule", "batch"])
def test_one_seed_settles_them(name):
    experiment = get_experiment(f"prdarts-{name}")
    assert not experiment.seeded and experiment.seeds(POOL_SCALES["paper"]) == 1
    assert all(get_claim(claim).kind == "exact" for claim in experiment.judges)


# --- configurations and spaces ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configurations():
    return reproduce("prdarts-exact", "quick").values


def test_configurations_and_space_hold(configurations, record_of):
    found = {
        claim: verdict(record_of, "prdarts-exact", claim, configurations)
        for claim in ("prdarts.configurations", "prdarts.space")
    }
    assert {one.status for one in found.values()} == {HOLDS}
    assert found["prdarts.configurations"].numbers == (
        "DL 12, DR 36, UR 80, counting kernel 1 with dilation 2; without it, as the caption says, DL 12, DR 32, UR 73"
    )
    assert found["prdarts.space"].numbers == "4.613e+11 cells, 152.8 times DARTS' 3.02e+09 (not 9.3e+09)"
    assert configurations["reached"]["DL"] == [1, 3, 4, 3, 1, 0]
    assert configurations["names"] == 12 + 36 + 80


@pytest.mark.parametrize(
    ("claim", "path", "value"),
    [
        ("configurations", ("reached", "DL"), [1, 3, 4, 3, 1, 1]),
        ("configurations", ("reached", "DR"), [1, 4, 7, 8, 8, 4]),  # 32, as the caption's rule gives
        ("configurations", ("reached", "UR"), [1, 4, 8, 13, 21, 32]),
        ("configurations", ("reached", "UR"), [1, 4, 8, 13, 21, 30, 3]),  # in six steps
        ("configurations", ("without_dilated_pointwise", "DR"), 36),
        ("configurations", ("without_dilated_pointwise", "UR"), 80),
        ("configurations", ("names",), 127),
        ("configurations", ("parameters",), 3_174_165),
        ("configurations", ("macs",), 491_200_129),
        ("space", ("cells",), 180 * 15**8 + 1),
        ("space", ("darts_cells",), 9_300_000_000),
        ("space", ("darts_cells",), 180 * 8**8 + 1),
    ],
)
def test_a_wrong_number_is_found(configurations, record_of, claim, path, value):
    values = wrong(configurations, path, value)
    assert verdict(record_of, "prdarts-exact", f"prdarts.{claim}", values).status == NOT


# --- morphisms --------------------------------------------------------------------------------------------------------

CHANGES = {
    "larger-kernel": (0.0, 0.0),
    "wider": (1e-15, 2e-16),
    "deeper": (0.4, 0.5),
    "smaller-kernel": (0.6, 0.3),
    "larger-dilation": (1.0, 0.0),
    "larger-dilation, kernel 1": (0.0, 0.0),
    "smaller-dilation": (1.1, 0.9),
    "smaller-dilation, kernel 1": (0.0, 0.0),
}
"""Of every row in training mode and in evaluation mode."""


def morphisms_of_record():
    return {
        name: {
            mode: {"mean": change, "largest": 2 * change, "count": 5}
            for mode, change in zip(("training", "evaluation"), changes, strict=True)
        }
        for name, changes in CHANGES.items()
    }


def judged_morphisms(record_of, values):
    return verdict(record_of, "prdarts-morphisms", "prdarts.morphisms", values)


def test_the_verdict_on_morphisms(record_of):
    found = judged_morphisms(record_of, morphisms_of_record())
    assert found.status == HOLDS
    assert found.numbers == (
        "largest relative change: larger-kernel 0e+00, wider 2e-15; mean of the others in training mode: deeper 0.40, "
        "smaller-kernel 0.60, larger-dilation 1.00, smaller-dilation 1.10"
    )
    values = morphisms_of_record()  # kernels of 1 need not have been met
    del values["larger-dilation, kernel 1"], values["smaller-dilation, kernel 1"]
    assert judged_morphisms(record_of, values).status == HOLDS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("larger-kernel", "training", "largest"), 1e-6),
        (("wider", "evaluation", "largest"), 1e-6),
        (("wider", "training", "largest"), 1.0),
        (("larger-dilation, kernel 1", "training", "largest"), 1e-3),
        (("smaller-dilation, kernel 1", "evaluation", "largest"), 1e-3),
        (("deeper", "training", "mean"), 0.0),
        (("smaller-kernel", "training", "mean"), 1e-4),
        (("larger-dilation", "training", "mean"), float("inf")),
        *(
            ((name, "training", key), not_finite)
            for name, key in (("larger-kernel", "largest"), ("wider", "largest"), ("smaller-dilation", "mean"))
            for not_finite in (float("nan"), None)  # a record has None where the number was NaN
        ),
        (("wider", "evaluation", "largest"), None),
    ],
)
def test_a_wrong_change_is_found(record_of, path, value):
    assert judged_morphisms(record_of, wrong(morphisms_of_record(), path, value)).status == NOT


@pytest.mark.parametrize("name", MORPHISMS)
def test_a_morphism_that_was_not_met_proves_nothing(record_of, name):
    values = morphisms_of_record()
    del values[name]
    assert judged_morphisms(record_of, values).status == NOT
    values["another"] = morphisms_of_record()[name]
    assert judged_morphisms(record_of, values).status == NOT


def test_morphisms_are_measured(nine_cycles, tmp_path):
    made = reproduce("prdarts-morphisms", nine_cycles, seed=1, folder=tmp_path)
    assert read_record(tmp_path / "prdarts-morphisms.tiny.json").measurements == (made,)
    assert set(made.values) <= set(CHANGES) and {*checks.EXACT_MORPHISMS, "deeper"} <= set(made.values)
    order = list(CHANGES)
    assert list(made.values) == sorted(made.values, key=order.index)
    for name, modes in made.values.items():
        for change in modes.values():
            assert change["count"] > 0 and 0 <= change["mean"] <= change["largest"]
            if name in checks.EXACT_MORPHISMS or "kernel 1" in name:
                assert change["largest"] < 1e-10
        if name == "deeper":
            assert modes["training"]["mean"] > 1e-3


CONVOLUTIONS = (Configuration(3), Configuration(5, 2), Configuration(5, 1, (1,)), Configuration(1, 2, (2, 1)))


def with_convolutions(monkeypatch):
    """Hand-made convolutions instead of those of a search: between them they have every morphism."""
    draws = torch.Generator().manual_seed(1)
    made = []
    for configuration in CONVOLUTIONS:
        module = MorphableConvolution(2, configuration).double()
        module.train()(torch.randn(16, 2, 8, 8, generator=draws, dtype=torch.float64))
        made.append((module, torch.randn(4, 2, 8, 8, generator=draws, dtype=torch.float64)))
    monkeypatch.setattr(checks, "_trained_convolutions", lambda search: made)
    monkeypatch.setattr(checks.pr_darts.Search, "epochs", lambda self: iter(()))


def test_every_row_is_counted(nine_cycles, record_of, monkeypatch):
    with_convolutions(monkeypatch)
    values = reproduce("prdarts-morphisms", nine_cycles).values
    assert {name: modes["training"]["count"] for name, modes in values.items()} == {
        "larger-kernel": 4,
        "wider": 2,
        "deeper": 4,
        "smaller-kernel": 3,
        "larger-dilation": 2,  # of two; the other two have the largest one
        "smaller-dilation": 1,
        "smaller-dilation, kernel 1": 1,
    }
    assert judged_morphisms(record_of, values).status == HOLDS


@pytest.mark.parametrize("name", ["larger-kernel", "wider", "deeper", "smaller-dilation"])
def test_a_broken_morphism_is_measured(nine_cycles, record_of, monkeypatch, name):
    """One that draws all weights anew where it should keep the function; one that leaves a convolution as it is."""

    def broken(parent, morphism, draws):
        if morphism != name:
            return morph(parent, morphism, draws)
        if name in checks.EXACT_MORPHISMS:
            return MorphableConvolution(2, MORPHISMS[name](parent.configuration)).double()
        return copy.deepcopy(parent)

    with_convolutions(monkeypatch)
    monkeypatch.setattr(checks, "morph", broken)
    values = reproduce("prdarts-morphisms", nine_cycles).values
    assert judged_morphisms(record_of, values).status == NOT


# --- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", CONSTRAINTS)
def test_random_histories_break_no_rule(space):
    constraints = CONSTRAINTS[space]
    pools = [checks.random_history(constraints, seed) for seed in range(20)]
    assert all(checks.violations(pool, constraints) == [] for pool in pools)
    assert checks.random_history(constraints, 7) == pools[7]
    torch.rand(3)  # no global generator
    assert checks.random_history(constraints, 7) == pools[7] and len(set(pools)) == 20
    for pool in pools:
        assert [len(pool.in_cycle(cycle)) for cycle in (1, 2, 7, 8, 9)] == [4, 6, 4, 3, 2]
        assert len(pool.living) == 1
        for life in pool.lives:
            assert len(life.weights) == (life.died or 9) - life.born + 1


def lived(constraints=CONSTRAINTS["UR"], seed=0, start=INITIAL, at=0, prune=None, bear=None, favourite=None):
    """A random history in which one cycle's pruning or births are another's work; a favourite is always strongest."""
    config, draws = pr_darts.Config(), torch.Generator().manual_seed(seed)
    pool = Pool.of(start)
    for cycle, (children, left) in enumerate(zip(config.morphisms, config.candidates, strict=True), start=1):
        weights = torch.rand(len(pool.operations), generator=draws, dtype=torch.float64).softmax(0).tolist()
        weighed = dict(zip(pool.operations, weights, strict=True))
        pool = pool.weighed({name: 1.0 if name == favourite else weight for name, weight in weighed.items()})
        if prune and cycle == at:
            pool = prune(pool, left - children, cycle)
        else:
            pool = pool.pruned(left - children, cycle, keep_convolution=cycle < 9)
        if bear and cycle == at:
            pool = bear(pool, children, cycle, constraints, draws)
        else:
            pool = pool.replaced(children, cycle, constraints, draws)
    return pool


def altered(pool, old, **changes):
    return Pool(tuple(replace(life, **changes) if life is old else life for life in pool.lives))


def is_convolution(life):
    return get_operation(life.operation).kind == "convolution"


def keep_one_more(pool, keep, cycle):
    return pool.pruned(keep + 1, cycle)


def keep_one_less(pool, keep, cycle):
    return pool.pruned(keep - 1, cycle)


def prune_convolutions(pool, keep, cycle):
    dying = [life for life in pool.living if is_convolution(life)]
    return Pool(tuple(replace(life, died=cycle) if life in dying else life for life in pool.lives))


def exchange(pool, keep, cycle):
    """The strongest of those that die stays, and the weakest of the others dies in its place."""
    after = pool.pruned(keep, cycle)
    dying = max((life for life in after.lives if life.died == cycle), key=lambda life: life.weights[-1])
    strongest = max(filter(is_convolution, after.living), key=lambda life: life.weights[-1])
    weakest = min((life for life in after.living if life is not strongest), key=lambda life: life.weights[-1])
    return altered(altered(after, dying, died=None), weakest, died=cycle)


def another_child(**changes):
    """The last child is as it should be but for some fields; with functions of the pool before the births."""

    def bear(pool, children, cycle, constraints, draws):
        after = pool.replaced(children, cycle, constraints, draws)
        found = {name: value(pool, after) if callable(value) else value for name, value in changes.items()}
        return altered(after, after.lives[-1], **found)

    return bear


def dead(pool, after):
    return next(life.operation for life in pool.lives if life.died and life.operation not in pool.operations)


def stale_child(pool, children, cycle, constraints, draws):
    """A child that the edge has seen, with a right parent and morphism."""
    after = pool.replaced(children - 1, cycle, constraints, draws)
    again = [child for child, _ in possible_children(pool.living, constraints) if child.operation in pool.seen]
    again = [child for child in again if child.operation not in after.operations]
    return Pool((*after.lives, replace(again[0], born=cycle + 1)))


def other_number(difference):
    def bear(pool, children, cycle, constraints, draws):
        return pool.replaced(children + difference, cycle, constraints, draws)

    return bear


FAULTS = {
    "one more was left": (3, {"prune": keep_one_more}, "4 candidates were left"),
    "one less was left": (6, {"prune": keep_one_less}, "3 candidates were left"),
    "no convolution was left": (1, {"prune": prune_convolutions}, "no convolution was left"),
    "a weaker one stayed": (6, {"prune": exchange}, "a stronger candidate was pruned and a weaker one kept"),
    "a dead parent": (3, {"bear": another_child(parent=dead)}, "has a parent that did not stay"),
    "no parent": (3, {"bear": another_child(parent=None)}, "has a parent that did not stay"),
    "another configuration": (2, {"bear": another_child(operation=Configuration(9).name)}, "is no child of"),
    "another morphism": (4, {"bear": another_child(morphism="no such")}, "is no child of"),
    "a sibling's configuration": (
        5,
        {"bear": another_child(operation=lambda pool, after: after.lives[-2].operation)},
        "a configuration stands twice in the pool",
    ),
    "one that was seen": (4, {"bear": stale_child}, "came back though there were others left"),
    "too few children": (5, {"bear": other_number(-1)}, "2 children of 3, though others could have been born"),
    "too many children": (2, {"bear": other_number(1)}, "4 children, and 3 were to be born"),
    "children in the end": (9, {"bear": other_number(1)}, "1 children, and 0 were to be born"),
}
"""By what is wrong: the cycle, what is done there, and what is said of it."""

SEEDS = {"a dead parent": 2, "one that was seen": 3}
"""Where the fault needs a history of its own."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_is_found(fault):
    at, way, said = FAULTS[fault]
    seed = SEEDS.get(fault, 0)
    constraints = CONSTRAINTS["UR"]
    assert checks.violations(lived(seed=seed), constraints) == []
    found = checks.violations(lived(seed=seed, at=at, **way), constraints)
    cycle = at + 1 if "twice" in said else at
    assert any(text.startswith(f"cycle {cycle}: ") and said in text for text in found), found


@pytest.mark.parametrize(
    "fault", ["one more was left", "a weaker one stayed", "too few children", "children in the end"]
)
def test_a_broken_rule_is_said_once(fault):
    at, way, said = FAULTS[fault]
    (text,) = checks.violations(lived(at=at, **way), CONSTRAINTS["UR"])
    assert text == f"cycle {at}: {said}"


def test_the_last_pruning_spares_no_convolution():
    """Before it, the strongest convolution stays, however weak."""
    constraints = CONSTRAINTS["UR"]
    right = lived(favourite="skip_connect")
    assert right.operations == ("skip_connect",) and checks.violations(right, constraints) == []
    spared = lived(favourite="skip_connect", at=9, prune=lambda pool, keep, cycle: pool.pruned(keep, cycle))
    assert is_convolution(spared.living[0])
    found = checks.violations(spared, constraints)
    assert found == ["cycle 9: a stronger candidate was pruned and a weaker one kept"]


def test_other_candidates_and_other_constraints_are_found():
    unrestricted = [checks.random_history(CONSTRAINTS["UR"], seed) for seed in range(5)]
    for pool in unrestricted:
        assert any("is no child of" in text for text in checks.violations(pool, CONSTRAINTS["DL"]))
    start = ("max_pool_3x3", "skip_connect", Configuration(3).name, Configuration(5).name)
    assert checks.violations(lived(start=start), CONSTRAINTS["UR"])[0] == "cycle 1: not the initial candidates"


def test_a_child_of_a_pooling_is_found():
    """It has no morphisms at all."""
    pool = checks.random_history(CONSTRAINTS["UR"], 0)
    child, parent = next(
        (life, other)
        for life in pool.lives
        if life.born > 1
        for other in pool.lives
        if not is_convolution(other) and (other.died or 10) >= life.born
    )
    found = checks.violations(altered(pool, child, parent=parent.operation), CONSTRAINTS["UR"])
    assert found == [f"cycle {child.born - 1}: {child.operation} is no child of {parent.operation}"]


ALPHA = {"largest_in_grace": 1e-8, "least_at_end": 0.2, "grace_epochs": 9, "cycles": 9}


def schedules():
    return {
        "cycles": copy.deepcopy(checks.TABLE_1),
        "histories": 1000,
        "alpha": dict(ALPHA),
        **{name: {"broken": 0, "first": "", "came_back": 0.5, "discovered": 14.0} for name in CONSTRAINTS},
    }


def judged_schedule(record_of, values, of=POOL_SCALES["quick"]):
    return verdict(record_of, "prdarts-schedule", "prdarts.schedule", values, of)


def test_the_verdict_on_the_schedule(record_of):
    found = judged_schedule(record_of, schedules())
    assert found.status == HOLDS
    assert "0 of 3,000 random histories break a rule" in found.numbers
    assert "DL 0.50, DR 0.50, UR 0.50; weights differ from equal by at most 1e-08 in 9 grace epochs" in found.numbers


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("DL", "broken"), 1),
        (("UR", "broken"), 1000),
        (("histories",), 0),
        (("cycles", "cycle_epochs"), [10] * 10),
        (("cycles", "grace_epochs"), [5] * 9),
        (("cycles", "morphisms"), [3, 3, 3, 3, 3, 3, 0, 0, 0]),
        (("cycles", "candidates"), [6, 6, 6, 6, 6, 5, 3, 2, 1]),
        (("alpha", "largest_in_grace"), 1e-3),  # α moves in grace epochs
        (("alpha", "largest_in_grace"), None),
        (("alpha", "least_at_end"), 0.0),  # nothing is learned
        (("alpha", "least_at_end"), None),
        (("alpha", "grace_epochs"), 8),  # a cycle began without one
        (("alpha", "cycles"), 8),
    ],
)
def test_a_wrong_schedule_is_found(record_of, path, value):
    assert judged_schedule(record_of, wrong(schedules(), path, value)).status == NOT


def test_without_grace_epochs_nothing_is_seen_to_be_reset(record_of):
    values = schedules()
    values["alpha"]["grace_epochs"] = 8
    bare = replace(POOL_SCALES["quick"], grace_epochs=(1,) * 8 + (0,))
    assert judged_schedule(record_of, values, bare).status == NOT


def test_the_schedule_is_measured(nine_cycles, record_of, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "HISTORIES", 3)
    scale = replace(nine_cycles, cycle_epochs=(2,) * 9, grace_epochs=(1,) * 9, pool_learning_rate=0.5)
    made = reproduce("prdarts-schedule", scale, seed=1, folder=tmp_path)
    (measurement,) = read_record(tmp_path / "prdarts-schedule.tiny.json").measurements
    assert measurement == made and made.values["cycles"] == checks.TABLE_1
    assert judged_schedule(record_of, made.values, scale).status == HOLDS
    assert made.values["alpha"]["largest_in_grace"] < 1e-7 and made.values["alpha"]["least_at_end"] > 0.01
    for name, constraints in CONSTRAINTS.items():
        pools = [checks.random_history(constraints, seed) for seed in range(3)]
        assert made.values[name]["came_back"] == sum(len(p.lives) - len(p.seen) for p in pools) / 3
        assert made.values[name]["discovered"] == sum(len(p.seen) for p in pools) / 3


def test_a_history_that_breaks_a_rule_is_counted(record_of, monkeypatch):
    at, way, said = FAULTS["a weaker one stayed"]

    def history(constraints, seed):
        broken = seed == 2 and constraints == CONSTRAINTS["UR"]
        return lived(constraints, at=at, **way) if broken else lived(constraints)

    monkeypatch.setattr(checks, "HISTORIES", 4)
    monkeypatch.setattr(checks, "random_history", history)
    monkeypatch.setattr(checks, "_alpha_over_cycles", lambda workplace: dict(ALPHA))
    values = reproduce("prdarts-schedule", POOL_SCALES["quick"]).values
    assert {name: (values[name]["broken"], values[name]["first"]) for name in CONSTRAINTS} == {
        "DL": (0, ""),
        "DR": (0, ""),
        "UR": (1, f"cycle {at}: {said}"),
    }
    found = judged_schedule(record_of, values)
    assert found.status == NOT and "1 of 12 random histories break a rule" in found.numbers


# --- the batch --------------------------------------------------------------------------------------------------------

GROWS = [16] * 5 + [40] * 5 + [64] * 4
LIMIT = int(0.95 * POOL_SCALES["quick"].memory_mib * 2**20)


def batches():
    """At ``quick``: nine cycles, most of which grow twice."""
    cycles = []
    for cycle in range(1, 10):
        sizes = [16] * 14 if cycle == 5 else list(GROWS)
        cycles.append(
            {
                "cycle": cycle,
                "sizes": sizes,
                "fixed": 10_000,
                "counted": [0] * 7,
                "bend": 0.003,
                "error": [0.0, 0.02],
                "most": LIMIT - 5,
                "largest": sizes[-1],
                "seconds": {"smallest": 3.0, "grown": 1.5},
            }
        )
    return {"batch_sizes": [16, 24, 32, 40, 48, 56, 64], "limit": LIMIT, "every": 5, "cycles": cycles}


def judged_batch(record_of, values, of=POOL_SCALES["quick"]):
    return verdict(record_of, "prdarts-batch", "prdarts.batch", values, of)


def test_the_verdict_on_the_batch(record_of):
    found = judged_batch(record_of, batches())
    assert found.status == HOLDS
    for text in ("up to 0.30%", "+0.0% to +2.0%", "begins with 16 images", "64, 64, 64, 64, 16, 64", "2.00 to 2.00"):
        assert text in found.numbers


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sizes": [16] * 5 + [24, 32, 40, 48, 64]}, "changes at every step"),
        ({"sizes": [16] * 4 + [64] * 6}, "changes after four steps"),
        ({"sizes": [64] * 14}, "does not begin small"),
        ({"sizes": [24] * 5 + [64] * 9}, "does not begin with the smallest"),
        ({"sizes": [16] * 5 + [64] * 5 + [40] * 5, "largest": 40}, "becomes smaller"),
        ({"sizes": [16] * 5 + [40] * 9}, "stays below what fits"),
        ({"sizes": [16] * 5 + [50] * 5 + [64] * 5}, "is none of the sizes"),
        ({"most": LIMIT + 1}, "is beyond the limit"),
        ({"largest": 48}, "is larger than what fits"),
        ({"bend": 0.02}, "memory is no straight line"),
        ({"bend": None}, "memory is not a number"),
        ({"error": [-0.05, 0.02]}, "takes more than was expected"),
        ({"error": [None, 0.02]}, "is expected to take no number"),
    ],
)
@pytest.mark.parametrize("place", [0, 3, 8])
def test_a_wrong_batch_is_found(record_of, changes, why, place):
    values = batches()
    values["cycles"][place].update(changes)
    assert judged_batch(record_of, values).status == NOT, why


def test_a_batch_that_never_grows_does_not_hold(record_of):
    """Not even where nothing larger fits; and where it grows in the last cycle only, no batch is seen to be reset."""
    values = batches()
    for row in values["cycles"]:
        row.update(sizes=[16] * 14, largest=16)
    assert judged_batch(record_of, values).status == NOT
    values["cycles"][-1].update(sizes=list(GROWS), largest=64)
    assert judged_batch(record_of, values).status == NOT
    values["cycles"][-2].update(sizes=list(GROWS), largest=64)
    assert judged_batch(record_of, values).status == HOLDS


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("every",), 1),  # then a change at every step would do
        (("limit",), LIMIT * 2),  # of a budget that is not the scale's
        (("batch_sizes",), [8, 16, 24, 32, 40, 48, 56, 64]),
    ],
)
def test_another_rule_than_the_papers_is_found(record_of, path, value):
    assert judged_batch(record_of, wrong(batches(), path, value)).status == NOT


def test_a_cycle_that_is_missing_is_found(record_of):
    values = batches()
    del values["cycles"][4]
    assert judged_batch(record_of, values).status == NOT


def test_the_batch_is_measured(nine_cycles, record_of, tmp_path, monkeypatch):
    """The search is one that nobody measures; memory is counted for the candidates of every cycle."""
    monkeypatch.setattr(checks, "_seconds_a_pass", lambda search, size: 24 / size)
    scale = replace(nine_cycles, train_images=112)
    made = reproduce("prdarts-batch", scale, seed=1, folder=tmp_path)
    assert read_record(tmp_path / "prdarts-batch.tiny.json").measurements == (made,)
    values = made.values
    assert judged_batch(record_of, values, scale).status == HOLDS
    assert (values["batch_sizes"], values["limit"], values["every"]) == ([8, 16], int(0.95 * 2**19), 5)
    rows = values["cycles"]
    assert [row["cycle"] for row in rows] == list(range(1, 10))
    assert {tuple(row["sizes"]) for row in rows} == {(8,) * 7, (8,) * 5 + (16,)}
    for row in rows:
        small, large = row["counted"]
        assert row["fixed"] < small < large
        assert row["seconds"] == {"smallest": 3.0, "grown": 24 / row["sizes"][-1]}
        # Two sizes lie on a line through both; the smallest alone gives another one.
        expected = row["fixed"] + (small - row["fixed"]) * 2
        assert row["bend"] < 1e-12 and row["error"] == pytest.approx([0, expected / large - 1])
        assert (large <= values["limit"]) == (row["largest"] == 16)

    config = pr_darts_config(scale, follow_memory=True)
    data = load_images("digits").take(112, 10)
    search = pr_darts.Search(config, data, pr_darts_space(scale), seed=1)
    taken = [[] for _ in rows]
    search.on_step = lambda run: taken[run.cycle].append(int(run.step_weights()[-1]))
    for _ in search.epochs():
        pass
    assert taken == [row["sizes"] for row in rows]


def test_timing_a_pass_leaves_the_search_as_it_was(nine_cycles):
    scale = replace(nine_cycles, train_images=32)
    data = load_images("digits").take(32, 10)
    search = pr_darts.Search(pr_darts_config(scale), data, pr_darts_space(scale), seed=1)
    next(search.epochs())
    before = copy.deepcopy(search.state_dict())
    assert checks._seconds_a_pass(search, 16) > 0
    for name in ("network", "weight_optimizer", "architecture_optimizer"):
        torch.testing.assert_close(search.state_dict()[name], before[name], rtol=0, atol=0)


def test_cuda_follows_the_allocator(nine_cycles):
    with pytest.raises(InvalidInput, match="on a CPU only"):
        checks.batch(Workplace(nine_cycles, 0, "digits", device="cuda"))


# --- the scoreboard ---------------------------------------------------------------------------------------------------


def test_the_scoreboard_shows_what_is_exact(configurations, record_of):
    quick = POOL_SCALES["quick"]
    made = {
        "exact": configurations,
        "morphisms": morphisms_of_record(),
        "schedule": schedules(),
        "batch": batches(),
    }
    records = [record_of(f"prdarts-{name}", values, of=quick) for name, values in made.items()]
    lines = scoreboard("prdarts", records, ("claim", "scale", "verdict")).splitlines()
    for claim in ("configurations", "space", "morphisms", "schedule", "batch"):
        assert f"| `prdarts.{claim}` | any | **holds** |" in lines
