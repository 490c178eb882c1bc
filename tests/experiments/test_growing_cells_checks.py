"""What is exact about growing cells: the claims hold on what is measured, and wrong numbers and code are found."""

from __future__ import annotations

import copy

import pytest
import torch

from nasbook.experiments import get_claim, get_experiment, read_record, reproduce
from nasbook.experiments import growing_cells_checks as checks
from nasbook.networks import RECURRENT_BACKBONES
from nasbook.supernets import SoftmaxRelaxation, add_node, inverse_softmax

HOLDS, NOT = "holds", "does not hold at this scale"
CLAIMS = ("parameters", "breakeven", "alpha", "node-morphism")


def verdict(record_of, claim, values):
    return get_experiment("growing-exact").judges[f"growing.{claim}"](record_of("growing-exact", values))


def wrong(values, path, value):
    """A copy with another value in one place."""
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return changed


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The measurement, as it comes back from its record."""
    folder = tmp_path_factory.mktemp("records")
    made = reproduce("growing-exact", "quick", folder=folder)
    read = read_record(folder / "growing-exact.quick.json").measurements
    assert read == (made,)
    return read[0].values


def test_one_seed_settles_it():
    experiment = get_experiment("growing-exact")
    assert not experiment.seeded
    assert set(experiment.judges) == {f"growing.{claim}" for claim in CLAIMS}
    assert all(get_claim(claim).kind == "exact" for claim in experiment.judges)


def test_the_claims_hold(found, record_of):
    verdicts = {claim: verdict(record_of, claim, found) for claim in CLAIMS}
    assert {claim: one.status for claim, one in verdicts.items()} == dict.fromkeys(CLAIMS, HOLDS)
    assert not any("|" in one.numbers or "nan" in one.numbers for one in verdicts.values())
    assert verdicts["parameters"].numbers == (
        "both backbones as printed (DARTS with 7 nodes 3416/1760, with a softmax for each edge, as growth needs, "
        "3491/1835); without biases LSTM 392/200, by the formula in its row 420/220, in torch 448/240; GRU 294/150, by "
        "the formula in its row 315/165, in torch 336/180"
    )
    assert verdicts["breakeven"].numbers == (
        "G7 from 6 nodes (5: 2090 against 1789, 6: 2508 against 2529, 7: 2926 against 3416); BRICS from 7 nodes (5: "
        "1100 against 925, 6: 1320 against 1305, 7: 1540 against 1760); with biases counted alike, in neither or in "
        "both, from 6/6/6/6 nodes"
    )


# --- Table 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "path", "value"),
    [
        ("parameters", ("nodes",), [2, 3, 4, 5, 6]),
        ("parameters", ("G7", "darts", 0), 456),
        ("parameters", ("BRICS", "darts", 5), 1835),  # a softmax an edge
        ("parameters", ("G7", "two-to-one", 3), 1985),  # no biases
        ("parameters", ("G7", "two-to-one, an edge", 0), 837),
        ("parameters", ("BRICS", "two-to-one, formula", 2), 881),
        ("parameters", ("G7", "lstm", 0), 420),
        ("parameters", ("G7", "lstm", 1), 448),
        ("parameters", ("BRICS", "gru", 0), 165),
        ("parameters", ("BRICS", "gru, formula", 1), 166),
        ("parameters", ("BRICS", "gru", 2), 181),
        ("breakeven", ("nodes",), [3, 4, 5, 6, 7, 8]),
        ("breakeven", ("G7", "two-to-one", 4), 2529),  # as large at 6 nodes
        ("breakeven", ("G7", "darts", 3), 2091),  # larger at 5 already
        ("breakeven", ("BRICS", "two-to-one", 4), 1304),
        ("breakeven", ("BRICS", "darts", 5), 1540),  # never
        ("breakeven", ("G7", "darts", 5), 2900),  # only at 6
    ],
)
def test_a_wrong_count_is_found(found, record_of, claim, path, value):
    assert verdict(record_of, claim, wrong(found, ("parameters", *path), value)).status == NOT


@pytest.mark.parametrize("claim", ["parameters", "breakeven"])
def test_backbones_that_are_exchanged_are_found(found, record_of, claim):
    values = copy.deepcopy(found)
    for rows in (values["parameters"][data] for data in checks.SERIES):
        rows["darts"], rows["two-to-one"] = rows["two-to-one"], rows["darts"]
    assert verdict(record_of, claim, values).status == NOT


def test_a_softmax_for_each_edge_gives_other_counts(record_of, monkeypatch):
    monkeypatch.setattr(checks, "NodeSoftmax", SoftmaxRelaxation)
    values = {"parameters": checks.parameters()}
    assert verdict(record_of, "parameters", values).status == NOT
    assert values["parameters"]["G7"]["darts"] == [451, 755, 1211, 1819, 2579, 3491]


# --- Eq. 16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("error", 1e-14),
        ("error", None),
        ("error_with_zeros", 1e-12),
        ("error_in_supernets", 1e-7),
        ("error_in_supernets", None),
        ("zeros_kept", 2520),
        ("draws", 0),
        ("draws_with_zeros", 0),
    ],
)
def test_a_wrong_inverse_is_found(found, record_of, name, value):
    assert found["alpha"]["error"] > 0  # rounding
    assert verdict(record_of, "alpha", wrong(found, ("alpha", name), value)).status == NOT


def test_no_zeros_prove_nothing(found, record_of):
    values = wrong(wrong(found, ("alpha", "zeros"), 0), ("alpha", "zeros_kept"), 0)
    assert verdict(record_of, "alpha", values).status == NOT


@pytest.mark.parametrize(
    "broken",
    [
        lambda w, total=1.0: w.log() * 1.0001,
        lambda w, total=1.0: w.float().log().double(),
        lambda w, total=1.0: w.clamp(min=1e-12).log(),
        lambda w, total=1.0: inverse_softmax(w, total).where(w > 0, torch.tensor(0.0, dtype=w.dtype)),
    ],
    ids=["not the logarithm", "in single precision", "zeros become small", "zeros become large"],
)
def test_a_broken_inverse_is_measured(record_of, monkeypatch, broken):
    monkeypatch.setattr(checks, "inverse_softmax", broken)
    assert verdict(record_of, "alpha", {"alpha": checks.alpha()}).status == NOT


def test_supernets_that_forget_the_weights_are_measured(monkeypatch):
    assert checks._weights_error("darts", 0) <= checks.ROUNDING
    monkeypatch.setattr(checks, "changed", lambda network, *arguments, **options: network)
    assert checks._weights_error("darts", 0) > 0.01


# --- a new node -------------------------------------------------------------------------------------------------------


def test_rows_of_new_nodes(found):
    rows = found["node_morphism"]["examples"]
    assert list(rows) == list(checks.MORPHISM_EXAMPLES)
    for name, row in rows.items():
        convolutional = "convolutional" in name
        assert len(row["changes"]) == (2 if convolutional else 3)
        before = 2 if convolutional or "2 layers" in name else 3
        assert row["nodes"] == [[before, before + 1]] * (1 if convolutional else 3)
        assert all(len(one) == len(checks.NOISE) for one in row["changes"])
    # A copy of the last node that is the output adds no rounding: 1 · o + 0 · … is o.
    assert all(one[-1] == 0 for name in ("two-to-one", "darts") for one in rows[name]["changes"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("examples", "darts", "changes", 0, -1), 1e-9),
        (("examples", "highway", "changes", 1, -1), None),
        (("examples", "convolutional, mean", "changes", 1, -1), 1e-9),
        (("examples", "two-to-one", "changes", 2, 4), 1e-2),  # larger than with more noise
        (("examples", "two-to-one", "changes", 2, 0), 0.0),
        (("examples", "two-to-one, 2 layers", "changes", 0, 5), None),
        (("examples", "convolutional, concatenation", "changes", 0, 7), 0.0),
        (("examples", "darts, 2 layers", "nodes", 1), [2, 2]),
        (("examples", "darts", "nodes"), []),
        (("bounds", "darts", "beyond"), 1),
        (("bounds", "two-to-one", "tightest"), 1.1),
        (("bounds", "two-to-one", "tightest"), 0.0),
        (("bounds", "two-to-one", "tightest"), None),
        (("bounds", "darts", "weight_over_noise"), 1.5),
        (("bounds", "darts", "bound_over_noise"), None),
        (("bounds", "darts", "entries"), 0),
        (("bounds", "darts", "draws"), 0),
        (("noise", -1), 1e-9),
    ],
)
def test_a_wrong_change_is_found(found, record_of, path, value):
    assert verdict(record_of, "node-morphism", wrong(found, ("node_morphism", *path), value)).status == NOT


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_change_that_is_not_linear_is_found(found, record_of, power):
    values = copy.deepcopy(found)
    changes = values["node_morphism"]["examples"]["highway"]["changes"][0]
    changes[:-1] = [0.1 * noise**power for noise in checks.NOISE[:-1]]
    assert verdict(record_of, "node-morphism", values).status == NOT


@pytest.mark.parametrize(("part", "name"), [("examples", "highway"), ("bounds", "darts")])
def test_what_was_not_measured_proves_nothing(found, record_of, part, name):
    values = copy.deepcopy(found)
    del values["node_morphism"][part][name]
    assert verdict(record_of, "node-morphism", values).status == NOT


def equal_weights(network, *arguments, **options):
    """A new node that weighs its candidates equally."""
    grown = add_node(network, *arguments, **options)
    with torch.no_grad():
        for kind, space in grown.spaces.items():
            new = [target == space.inputs + space.nodes - 1 for _, target in space.edges]
            grown.relaxations[kind].alpha[new] = 0.0
    return grown


def fresh_sum(network, *arguments, **options):
    """A new node whose sum adds something of x however little noise there is."""
    grown = add_node(network, *arguments, **options)
    with torch.no_grad():
        for kind, space in grown.spaces.items():
            for module in grown.cell(kind).candidates(space.nodes - 1, space.nodes).values():
                if hasattr(module, "input_weight"):
                    module.input_weight.fill_(0.1)
    return grown


def slow_noise(network, *arguments, delta, sigma, **options):
    """Noise that falls as the root of what is asked."""
    return add_node(network, *arguments, delta=0.5 * delta**0.5, sigma=sigma, **options)


def forgetful(network, *arguments, **options):
    """Old nodes that have changed a little."""
    grown = add_node(network, *arguments, **options)
    with torch.no_grad():
        for name, parameter in grown.named_parameters():
            if "0-1" in name:
                parameter.mul_(1.001)
    return grown


@pytest.mark.parametrize(
    "broken",
    [equal_weights, fresh_sum, slow_noise, forgetful, lambda network, *arguments, **options: network],
    ids=["equal weights", "fresh sum", "slow noise", "forgetful", "no node"],
)
def test_a_broken_growth_is_measured(record_of, monkeypatch, broken):
    monkeypatch.setattr(checks, "MORPHISM_EXAMPLES", {"two-to-one": checks.MORPHISM_EXAMPLES["two-to-one"]})
    monkeypatch.setattr(checks, "MORPHISM_SEEDS", {"two-to-one": 1})
    monkeypatch.setattr(checks, "BOUND_DRAWS", 4)
    assert verdict(record_of, "node-morphism", {"node_morphism": checks.node_morphism_changes()}).status == HOLDS
    monkeypatch.setattr(checks, "add_node", broken)
    if broken.__name__ == "<lambda>":  # there is no new edge that a bound could be about
        monkeypatch.setattr(checks, "_bounds", lambda backbone: dict.fromkeys(BOUND, 1))
    assert verdict(record_of, "node-morphism", {"node_morphism": checks.node_morphism_changes()}).status == NOT


BOUND = ("draws", "entries", "beyond", "tightest", "bound_over_noise", "weight_over_noise")


@pytest.mark.parametrize("backbone", ["two-to-one", "darts"])
@pytest.mark.parametrize("broken", [equal_weights, forgetful])
def test_a_broken_growth_breaks_its_bound(monkeypatch, backbone, broken):
    monkeypatch.setattr(checks, "BOUND_DRAWS", 8)
    assert checks._bounds(backbone)["beyond"] == 0
    monkeypatch.setattr(checks, "add_node", broken)
    found = checks._bounds(backbone)
    assert found["beyond"] > 0 or found["weight_over_noise"] > 1


@pytest.mark.parametrize("backbone", ["two-to-one", "darts"])
def test_the_bound_is_zero_without_noise_and_tells_every_candidate(backbone):
    example = checks.recurrent_example(backbone, 2, 0)
    x, h = (torch.randn(5, width, dtype=torch.float64) for width in (3, 4))
    change, bound, weights = checks.node_bound(example.network, checks._grown(example, 0.0, 0), backbone, x, h)
    assert bool((change == 0).all()) and bool((bound == 0).all()) and set(weights) == {0.0}
    *_, weights = checks.node_bound(example.network, checks._grown(example, 0.1, 0), backbone, x, h)
    assert len(weights) == (4 if backbone == "two-to-one" else 8) and 0 < min(weights) <= max(weights) <= 0.1


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", RECURRENT_BACKBONES)
def test_examples_are_functions_of_their_seed(backbone):
    state = torch.get_rng_state()
    one, again, other = (checks.recurrent_example(backbone, 2, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.inputs, again.inputs) and not torch.equal(one.inputs, other.inputs)
    pairs = zip(one.network.parameters(), again.network.parameters(), strict=True)
    assert all(a.dtype == torch.float64 and torch.equal(a, b) for a, b in pairs)
    spread = one.network.relaxations[backbone].alpha.std()
    assert 0.3 < spread < 2  # as far from equal as learned ones
