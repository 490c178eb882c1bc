"""What is exact about firefly descent: the claims hold on the measured values, and wrong values are found."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from nasbook.experiments import firefly_checks, get_claim, get_experiment, reproduce
from nasbook.growth import Budget, OvergrownNetwork, select, select_exactly

NOT = "does not hold at this scale"


@pytest.fixture(scope="module")
def exact():
    return reproduce("firefly-exact", "quick").values


def test_the_exact_claims(exact, record_of):
    record = record_of("firefly-exact", exact)
    found = {claim: judge(record).status for claim, judge in get_experiment("firefly-exact").judges.items()}
    assert found == {
        "firefly.neighbourhood": "holds",
        "firefly.taylor": "holds",
        "firefly.selection": "partly",  # §2.3 sorts under two budgets
        "firefly.split-equals": "holds",
    }
    assert all(get_claim(claim).kind == "exact" for claim in found)
    assert not get_experiment("firefly-exact").seeded


@pytest.mark.parametrize(
    ("claim", "path", "value"),
    [
        ("firefly.neighbourhood", ("neighbourhood", "at_zero", "VGG-19"), 1e-7),
        ("firefly.neighbourhood", ("neighbourhood", "slope", "perceptron"), 0.5),
        ("firefly.neighbourhood", ("neighbourhood", "grown_error", "block stack"), 1e-3),
        ("firefly.taylor", ("taylor", "rows", "perceptron, both", "slopes", "error"), 1.0),
        ("firefly.taylor", ("taylor", "rows", "radial network, splits", "slopes", "error"), 1.0),
        ("firefly.taylor", ("taylor", "rows", "radial network, new neurons", "slopes", "by_coordinate"), 1.0),
        ("firefly.selection", ("selection", "right", "one budget", "greedy"), 999),
        ("firefly.selection", ("selection", "right", "two budgets", "exact"), 999),
        ("firefly.split-equals", ("splits_only", "same_choice"), 2),
        ("firefly.split-equals", ("splits_only", "norms", -1, "first"), 0.5),
        ("firefly.split-equals", ("splits_only", "sines", -1, "first"), 0.1),
        ("firefly.split-equals", ("splits_only", "predicted", -1, "first"), 2.0),
        ("firefly.split-equals", ("splits_only", "actual", -1, "first"), -1.0),
    ],
)
def test_a_wrong_number_is_found(exact, record_of, claim, path, value):
    values = copy.deepcopy(exact)
    place = values
    for key in path[:-1]:
        place = place[key]
    last = path[-1]
    if last == "first":  # neuron with λ < 0
        last = int(np.argmin(exact["splits_only"]["eigenvalues"]))
    assert place[last] != value
    place[last] = value
    assert get_experiment("firefly-exact").judges[claim](record_of("firefly-exact", values)).status == NOT


def test_sorting_would_hold_if_it_were_always_right(exact, record_of):
    values = copy.deepcopy(exact)
    values["selection"]["right"]["two budgets"]["greedy"] = values["selection"]["cases"]
    verdict = get_experiment("firefly-exact").judges["firefly.selection"](record_of("firefly-exact", values))
    assert verdict.status == "holds"


def test_what_the_numbers_say(exact, record_of):
    record = record_of("firefly-exact", exact)
    numbers = {claim: judge(record).numbers for claim, judge in get_experiment("firefly-exact").judges.items()}
    assert "differ by 0 (" in numbers["firefly.neighbourhood"]
    assert "4.00" in numbers["firefly.taylor"]
    assert "100.0%, with a second" in numbers["firefly.selection"]
    assert "3 of 3" in numbers["firefly.split-equals"]
    assert exact["selection"]["counterexample"] == {"select": -10.0, "select_exactly": -27.0}


def test_sines_fall_with_the_square_of_the_radius(exact):
    """The other neurons' splits move S by O(ϵ²); the eigenvectors follow."""
    found = exact["splits_only"]
    curved = [i for i, (v, s) in enumerate(zip(found["eigenvalues"], found["scales"], strict=True)) if v < -1e-3 * s]
    worst = [max(row[i] for i in curved) for row in found["sines"]]
    assert worst[-2] / worst[-1] == pytest.approx((0.01 / 0.003) ** 2, rel=0.1)
    # where λ > 0, the direction goes to zero
    assert max(norm for norm, value in zip(found["norms"][-1], found["eigenvalues"], strict=True) if value > 0) < 1e-3


def test_same_numbers_again(exact):
    assert firefly_checks.selection() == exact["selection"]
    assert firefly_checks.splits_only(1, 5) == firefly_checks.splits_only(1, 5)


def test_brute_force_by_hand():
    changes, widths = np.array([-10.0, -9.0, -9.0, -9.0, 5.0]), ["A", "B", "B", "B", "old"]
    assert firefly_checks.best_sum(changes, widths, Budget(3, 1)) == -27
    assert firefly_checks.best_sum(changes, widths, Budget(3)) == -28
    assert firefly_checks.best_sum(changes, widths, Budget(3, 0)) == 0
    draws = np.random.default_rng(1)
    changes, widths, budget = firefly_checks.random_choice_problem(draws)
    best = firefly_checks.best_sum(changes, widths, budget)
    assert changes[select_exactly(changes, widths, budget, firefly_checks.NEW_LAYERS)].sum() == pytest.approx(best)
    assert changes[select(changes, widths, budget, firefly_checks.NEW_LAYERS)].sum() >= best - 1e-12


@pytest.mark.parametrize("name", list(firefly_checks.EXAMPLES))
def test_examples_are_awake(name):
    """Outputs differ between inputs, and a candidate in the middle of the network changes them."""
    network, inputs = firefly_checks.growable_examples(name)
    overgrown = OvergrownNetwork(network, new=1, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        before = network(inputs)
        assert float((before - before.mean(0)).abs().max()) > 1e-3
        overgrown.set_epsilon(0.1)
        assert float((overgrown(inputs) - before).abs().max()) > 1e-5
    same, again = firefly_checks.growable_examples(name)
    assert torch.equal(inputs, again)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
