"""What is exact about growing operations: the claims hold on what is measured, and wrong numbers and code are found."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nasbook.experiments import get_claim, get_experiment
from nasbook.experiments import growing_operators_checks as checks
from nasbook.experiments.records import _plain
from nasbook.supernets import (
    OperatorChange,
    OperatorRules,
    change_operators,
    operator_splitting_matrices,
    split_candidates,
    split_operators,
)

HOLDS, NOT = "holds", "does not hold at this scale"
FEW = {"two-to-one": 6, "darts": 6, "highway": 3, "convolutional": 2}


def verdict(record_of, claim, values):
    judge = get_experiment("growing-operators-exact").judges[f"growing.{claim}"]
    return judge(record_of("growing-operators-exact", _plain(values)))


def wrong(values, path, value):
    """A copy with another value in one place."""
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return changed


def fewer(monkeypatch):
    """Fewer networks, so that a measurement takes seconds."""
    monkeypatch.setattr(checks, "SPLIT_NETWORKS", 1)
    monkeypatch.setattr(checks, "SCANNED_NETWORKS", {"two-to-one": 4, "darts": 6})
    monkeypatch.setattr(checks, "COPIED_NETWORKS", 1)
    monkeypatch.setattr(checks, "SINGLE_UNITS", 4)


def test_one_seed_settles_it():
    experiment = get_experiment("growing-operators-exact")
    assert not experiment.seeded and sum(checks.HISTORIES.values()) >= 300
    assert set(experiment.judges) == {"growing.operator", "growing.prune-replace"}
    assert all(get_claim(claim).kind == "exact" for claim in experiment.judges)


# --- copies and splits ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operator():
    with pytest.MonkeyPatch.context() as monkeypatch:
        fewer(monkeypatch)
        return {"operator": checks.operator_changes()}


def test_the_claim_on_operators_holds(operator, record_of):
    found = verdict(record_of, "operator", operator)
    assert found.status == HOLDS
    assert "|" not in found.numbers and "nan" not in found.numbers
    for rows in operator["operator"]["units"].values():
        assert {row["least"] > checks.CLEAR * row["norm"] for row in rows} == {True, False}
        for row in rows:
            # Between the least eigenvalue and the norm, as every direction is.
            assert row["least"] - 1e-15 <= row["random"] <= row["norm"] + 1e-15
    for row in operator["operator"]["by_rules"]:
        if row["splits"]:
            assert row["gains"][-1] == pytest.approx(row["predicted"], rel=1e-2)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("copies", "darts", 0, "changes", 3), 0.5),
        (("copies", "darts", 0, "changes", 3), None),
        (("copies", "two-to-one", 0, "changes", 7), 0.0),
        (("copies", "two-to-one, 2 layers", 0, "copies", 0), 0),
        (("units", "darts", 0, "gains", "least", 2), 1.0),
        (("units", "two-to-one", 1, "gains", "random", 2), None),
        (("units", "two-to-one", 0, "least"), 5.0),
        (("units", "darts"), []),
        (("by_rules", 0, "predicted"), -100.0),
        (("by_rules", 0, "predicted"), 0.001),
        (("by_rules", 0, "gains", 2), None),
        (("by_rules", 1, "changes", 2), 1.0),
        (("by_rules", 1, "unmoved"), 1e-9),
        (("by_rules", 1, "unmoved"), None),
        (("by_rules",), []),
        (("whether", 0, 1), 2),
        (("whether",), []),
        (("whether",), [[-0.1, 1], [-0.2, 1]]),
        (("whether",), [[-0.1, 1], [0.2, 0], [0.1, 1]]),
        (("whether",), [[-0.1, 1], [0.2, 0], [-0.1, 0]]),
    ],
)
def test_a_wrong_number_is_found(operator, record_of, path, value):
    assert verdict(record_of, "operator", wrong(operator, ("operator", *path), value)).status == NOT


def test_only_one_sign_of_the_least_eigenvalue_proves_nothing(operator, record_of):
    for above in (True, False):
        values = copy.deepcopy(operator)
        rows = values["operator"]["units"]["darts"]
        rows[:] = [row for row in rows if (row["least"] > 0) == above]
        assert rows and verdict(record_of, "operator", values).status == NOT


@pytest.mark.parametrize("below", [True, False])
def test_a_loss_that_goes_the_other_way_is_found(operator, record_of, below):
    values = copy.deepcopy(operator)
    rows = values["operator"]["units"]["two-to-one"]
    row = next(row for row in rows if abs(row["least"]) > checks.CLEAR * row["norm"] and (row["least"] < 0) == below)
    row["gains"]["least" if below else "random"][-1] *= -1
    assert verdict(record_of, "operator", values).status == NOT


def test_a_rule_that_was_not_met_proves_nothing(operator, record_of):
    for name in checks.CHOICES:
        values = copy.deepcopy(operator)
        rows = values["operator"]["by_rules"]
        rows[:] = [row for row in rows if row["choose"] != name]
        assert verdict(record_of, "operator", values).status == NOT


def to_one_side(network, build, directions, step, draws):
    """Both halves go the same way."""
    moved, _ = split_candidates(network, build, directions, step, draws)
    new, changes = split_candidates(network, build, directions, 0.0, draws)
    for kind, edge, name in directions:
        cells = moved.cell(kind).candidates(*edge), new.cell(kind).candidates(*edge)
        copies = [name, *(c.candidate for c in changes if (c.kind, c.edge, c.parent) == (kind, edge, name))]
        for one in copies:
            cells[1][one].load_state_dict(cells[0][name].state_dict())
    return new, changes


def unequal_halves(network, build, directions, step, draws):
    """The halves don't share the weight equally."""
    new, changes = split_candidates(network, build, directions, step, draws)
    with torch.no_grad():
        for change in changes:
            space = new.spaces[change.kind]
            row, column = space.edges.index(change.edge), space.operations.index(change.candidate)
            new.relaxations[change.kind].alpha[row, column] += 0.01
    return new, changes


def of_the_other_sign(network, batches, loss):
    return {place: -matrix for place, matrix in operator_splitting_matrices(network, batches, loss).items()}


def twice(network, batches, loss):
    return {place: 2 * matrix for place, matrix in operator_splitting_matrices(network, batches, loss).items()}


def never(network, build, rules, batches, loss, draws):
    return network, ()


def farther(network, build, rules, batches, loss, draws):
    return split_operators(network, build, replace(rules, split_step=1.5 * rules.split_step), batches, loss, draws)


def half_the_copies(network, build, rules, draws):
    """A share that does not become small."""
    return change_operators(network, build, replace(rules, share=rules.share**0.5), draws)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("split_candidates", to_one_side),
        ("split_candidates", unequal_halves),
        ("operator_splitting_matrices", of_the_other_sign),
        ("operator_splitting_matrices", twice),
        ("split_operators", never),
        ("split_operators", farther),
        ("change_operators", half_the_copies),
    ],
)
def test_a_broken_operator_is_measured(record_of, monkeypatch, name, broken):
    fewer(monkeypatch)
    monkeypatch.setattr(checks, name, broken)
    assert verdict(record_of, "operator", {"operator": checks.operator_changes()}).status == NOT


# --- operations that come and go --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_histories():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(checks, "HISTORIES", FEW)
        return {"histories": checks.histories()}


def test_random_histories_break_no_rule(few_histories, record_of, monkeypatch):
    assert [row["broken"] for row in few_histories["histories"].values()] == [0, 0, 0, 0]
    assert all(row["first"] == "" for row in few_histories["histories"].values())
    assert verdict(record_of, "prune-replace", few_histories).status == NOT  # too few
    monkeypatch.setattr(checks, "HISTORIES", FEW)
    found = verdict(record_of, "prune-replace", few_histories)
    assert found.status == HOLDS
    assert found.numbers.startswith("0 of 17 random histories break a rule: weights sum to 1, ")
    assert found.numbers.endswith("; cells pruned 17")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("darts", "broken"), 1),
        (("highway", "histories"), 2),
        (("convolutional", "histories"), 0),
    ],
)
def test_wrong_histories_are_found(few_histories, record_of, monkeypatch, path, value):
    monkeypatch.setattr(checks, "HISTORIES", FEW)
    assert verdict(record_of, "prune-replace", wrong(few_histories, ("histories", *path), value)).status == NOT


@pytest.mark.parametrize("what", ["grow", "split", "prune", "replace", "resample", "pruned cells"])
def test_a_change_that_was_not_met_proves_nothing(few_histories, record_of, monkeypatch, what):
    monkeypatch.setattr(checks, "HISTORIES", FEW)
    values = copy.deepcopy(few_histories)
    for row in values["histories"].values():
        row["changes"][what] = 0
    assert verdict(record_of, "prune-replace", values).status == NOT


def test_a_history_is_a_function_of_its_seed():
    one = list(checks.random_history("darts", 3))
    torch.rand(3)  # no global generator
    assert list(checks.random_history("darts", 3)) == one != list(checks.random_history("darts", 4))
    assert len(one) == checks.CHANGES_A_HISTORY + 1 and one[-1] == (["pruned cells"], [])


def drifting(network, build, rules, draws):
    """Weights that move beside what was changed."""
    new, changes = change_operators(network, build, rules, draws)
    if changes:
        with torch.no_grad():
            new.relaxations[changes[0].kind].alpha.mul_(1.01)
    return new, changes


def silent(network, build, rules, draws):
    """The last change is not told."""
    new, changes = change_operators(network, build, rules, draws)
    return new, changes[:-1]


def eager(network, build, rules, draws):
    """Prunes at a threshold of its own."""
    if rules.strategy != "none" or rules.exchange != "none":
        return change_operators(network, build, rules, draws)
    return change_operators(network, build, replace(rules, prune_below=0.2, grow_above=0.9), draws)


def unnormalised(network, build, rules, draws):
    """The weights of one edge sum to more than 1."""
    new, changes = change_operators(network, build, rules, draws)
    relaxation = next(iter(new.relaxations.values()))
    coefficients = type(relaxation).coefficients
    relaxation.coefficients = lambda: coefficients(relaxation) * 1.001
    return new, changes


@pytest.mark.parametrize("broken", [drifting, silent, eager, unnormalised])
def test_a_broken_change_is_measured(monkeypatch, broken):
    monkeypatch.setattr(checks, "change_operators", broken)
    monkeypatch.setattr(checks, "HISTORIES", {"darts": 6})
    found = checks.histories()["darts"]
    assert found["broken"] > 0 and found["first"]


RULES = OperatorRules("small-weight", grow_above=0.4, share=0.2, most_candidates=4, prune_below=0.1)
START = {"tanh": 0.5, "relu": 0.25, "identity": 0.2, "none": 0.05}


def change(what, candidate, parent, after, before=START):
    return OperatorChange(what, "darts", (0, 1), candidate, parent, before, after)


WITHOUT_NONE = {"tanh": 0.5 / 0.95, "relu": 0.25 / 0.95, "identity": 0.2 / 0.95}
GROWN = {**{name: 0.8 * weight for name, weight in START.items()}, "tanh-2": 0.2}
HALVED = {**START, "tanh": 0.25, "tanh-2": 0.25}
STRICT = replace(RULES, grow_above=0.6)
ROOM = replace(RULES, most_candidates=5)

RIGHT = {
    "nothing": ((), RULES, START),
    "pruned": ((change("prune", "none", None, WITHOUT_NONE),), STRICT, WITHOUT_NONE),
    "grown": ((change("grow", "tanh-2", "tanh", GROWN),), ROOM, GROWN),
    "split": ((change("split", "tanh-2", "tanh", HALVED),), ROOM, HALVED),
    "replaced": (
        (
            change("replace", "none", None, WITHOUT_NONE),
            change(
                "replace",
                "tanh-2",
                "tanh",
                replaced := {**{name: 0.8 * weight for name, weight in WITHOUT_NONE.items()}, "tanh-2": 0.2},
                WITHOUT_NONE,
            ),
        ),
        RULES,
        replaced,
    ),
}

FAULTS = {
    "another end": ((), RULES, GROWN, "the supernet's weights are not those of the last change"),
    "another beginning": (
        (change("prune", "none", None, WITHOUT_NONE, before={"tanh": 0.95, "none": 0.05}),),
        STRICT,
        WITHOUT_NONE,
        "a change doesn't begin where the last one ended",
    ),
    "not normalised": (
        (change("prune", "none", None, lost := {name: START[name] for name in WITHOUT_NONE}),),
        STRICT,
        lost,
        "the weights of a change don't sum to 1",
    ),
    "pruned too early": (
        (change("prune", "none", None, WITHOUT_NONE),),
        replace(STRICT, prune_below=0.04),
        WITHOUT_NONE,
        "pruned at a weight of 0.05, which is not below 0.04",
    ),
    "pruned beside a strong one": (
        (change("prune", "none", None, WITHOUT_NONE),),
        RULES,
        WITHOUT_NONE,
        "pruned beside a candidate above the threshold",
    ),
    "not the weakest": (
        (
            change(
                "prune", "identity", None, other := {"tanh": 0.5 / 0.8, "relu": 0.25 / 0.8, "none": 0.05 / 0.8}
            ),
        ),
        replace(STRICT, prune_below=0.2),
        other,
        "prune: identity was not the weakest",
    ),
    "out of proportion": (
        (change("prune", "none", None, flat := dict.fromkeys(WITHOUT_NONE, 1 / 3)),),
        STRICT,
        flat,
        "prune: the others' weights are out of proportion",
    ),
    "two went": (
        (change("prune", "none", None, two := {"tanh": 2 / 3, "relu": 1 / 3}),),
        STRICT,
        two,
        "prune: not the one candidate that is named came or went",
    ),
    "another share": (
        (change("grow", "tanh-2", "tanh", more := {**{n: 0.7 * w for n, w in START.items()}, "tanh-2": 0.3}),),
        ROOM,
        more,
        "grow: the copy's weight is 0.3, not 0.2",
    ),
    "below the threshold": (
        (change("grow", "tanh-2", "tanh", GROWN),),
        replace(ROOM, grow_above=0.5),
        GROWN,
        "grow: tanh is not the strongest, above the threshold",
    ),
    "not the strongest": (
        (change("grow", "relu-2", "relu", relu := {**{n: 0.8 * w for n, w in START.items()}, "relu-2": 0.2}),),
        replace(ROOM, grow_above=0.2),
        relu,
        "grow: relu is not the strongest, above the threshold",
    ),
    "no copy": (
        (change("grow", "sigmoid", "tanh", alien := {**{n: 0.8 * w for n, w in START.items()}, "sigmoid": 0.2}),),
        ROOM,
        alien,
        "sigmoid is no copy of tanh",
    ),
    "too many": (
        (change("grow", "tanh-2", "tanh", GROWN),),
        RULES,
        GROWN,
        "5 candidates, and 4 are allowed",
    ),
    "a split that takes weight": (
        (change("split", "tanh-2", "tanh", {**START, "tanh": 0.275, "tanh-2": 0.275, "none": 0.0}),),
        ROOM,
        {**START, "tanh": 0.275, "tanh-2": 0.275, "none": 0.0},
        "split: copies don't share their parent's weight",
    ),
    "half a replacement": (
        (change("replace", "none", None, WITHOUT_NONE),),
        RULES,
        WITHOUT_NONE,
        "the number of candidates changed by -1",
    ),
    "two kinds at once": (
        (
            change("prune", "none", None, WITHOUT_NONE),
            change("split", "tanh-2", "tanh",
                   both := {**WITHOUT_NONE, "tanh": 0.25 / 0.95, "tanh-2": 0.25 / 0.95}, WITHOUT_NONE),
        ),
        STRICT,
        both,
        "prune and split at once",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_change_breaks_no_rule(name):
    changes, rules, after = RIGHT[name]
    assert checks._edge_violations(START, after, changes, rules) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_change_is_found(name):
    changes, rules, after, message = FAULTS[name]
    assert message in checks._edge_violations(START, after, changes, rules)


def test_weights_of_supernets_are_read_off():
    example = checks.recurrent_example("darts", 2, 0)
    network = example.network
    assert checks.normalisation_violations(network, example.inputs) == []
    kind, space = "darts", network.spaces["darts"]
    relaxation = network.relaxations[kind]
    coefficients = relaxation.coefficients().detach()

    def found(values):
        relaxation.coefficients = lambda: values
        return "; ".join(checks.normalisation_violations(network, example.inputs))

    assert "darts (0, 1): weights sum to 2.0" in found(2 * coefficients)
    negative = coefficients.clone()
    negative[1, :2] = torch.tensor([-0.1, 0.1 + float(coefficients[1, :2].sum())])
    assert "darts (1, 2): a weight is below 0" in found(negative)
    assert "the output is not finite" in found(coefficients * torch.nan)
    edges = [space.candidates(*edge) for edge in space.edges]
    network.spaces[kind] = empty = space.with_pools(edges)
    object.__setattr__(empty, "pools", (edges[0], ("none",)))  # which a space refuses to be built with
    assert "a node is empty" in found(coefficients) and "(1, 2): an edge is empty" in found(coefficients)
    network.spaces[kind] = space.with_pools([edges[0], edges[1][:4]])
    assert "a candidate that is not there has a weight" in found(coefficients)
