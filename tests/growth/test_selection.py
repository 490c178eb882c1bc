"""Selection under budgets: greedy and dynamic programming against all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.growth import Budget, select, select_exactly

few = settings(derandomize=True, deadline=None, max_examples=100)
CHANGES = st.integers(-6, 3).map(float)  # sums are exact, and ties are common


def is_allowed(chosen, widths, budget, new_layers):
    counts = {width: sum(widths[i] == width for i in chosen) for width in set(widths)}
    opened = [width for width in set(new_layers) if counts.get(width)]
    return (
        len(chosen) <= budget.neurons
        and (budget.layers is None or len(opened) <= budget.layers)
        and all(counts[width] >= budget.least for width in opened)
        and all(counts.get(width, 0) <= most for width, most in budget.per_width.items())
    )


def least_sum(changes, widths, budget, new_layers):
    """The optimum over all subsets.

    A candidate that does not help may only matter as the second neuron of a layer; then it is not to be taken.
    """
    numbers = [i for i in range(len(changes)) if budget.least == 1 or changes[i] < 0]
    subsets = itertools.chain.from_iterable(itertools.combinations(numbers, k) for k in range(len(numbers) + 1))
    return min(changes[list(s)].sum() for s in subsets if is_allowed(s, widths, budget, new_layers))


@st.composite
def problems(draw, one_budget: bool = False):
    widths = draw(st.lists(st.sampled_from("abcd"), max_size=7))
    changes = np.array(draw(st.lists(CHANGES, min_size=len(widths), max_size=len(widths))))
    neurons = draw(st.integers(0, 6))
    per_width = draw(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=3))
    if one_budget:
        return changes, widths, Budget(neurons, per_width=per_width), draw(st.sets(st.sampled_from("abcd")))
    budget = Budget(neurons, draw(st.none() | st.integers(0, 3)), draw(st.integers(1, 3)), per_width)
    return changes, widths, budget, draw(st.sets(st.sampled_from("abcd")))


@given(problems(one_budget=True))
@few
def test_greedy_is_optimal_under_one_budget(problem):
    """Of neurons; limits of single widths don't change that."""
    changes, widths, budget, new_layers = problem
    chosen = select(changes, widths, budget, sorted(new_layers))
    assert is_allowed(chosen, widths, budget, new_layers)
    assert changes[chosen].sum() == least_sum(changes, widths, budget, new_layers)


@given(problems())
@few
def test_dynamic_programming_is_always_optimal(problem):
    changes, widths, budget, new_layers = problem
    chosen = select_exactly(changes, widths, budget, sorted(new_layers))
    assert chosen == sorted(set(chosen))
    assert is_allowed(chosen, widths, budget, new_layers)
    assert changes[chosen].sum() == least_sum(changes, widths, budget, new_layers)
    assert all(changes[chosen] < 0)


@given(problems())
@few
def test_greedy_keeps_to_both_budgets_and_takes_what_helps(problem):
    changes, widths, budget, new_layers = problem
    chosen = select(changes, widths, budget, sorted(new_layers))
    assert chosen == sorted(set(chosen))
    assert is_allowed(chosen, widths, budget, new_layers)
    assert all(changes[chosen] < 0)
    assert changes[chosen].sum() >= least_sum(changes, widths, budget, new_layers)


def test_greedy_is_not_optimal_under_two_budgets():
    """One new layer, three neurons: the best neuron opens a layer whose others are worth nothing."""
    changes, widths = np.array([-10.0, -9.0, -9.0, -9.0]), ["A", "B", "B", "B"]
    budget = Budget(neurons=3, layers=1)
    assert select(changes, widths, budget, ["A", "B"]) == [0]
    assert select_exactly(changes, widths, budget, ["A", "B"]) == [1, 2, 3]
    assert least_sum(changes, widths, budget, ["A", "B"]) == -27
    # Where the layers are there already, or both may be opened, greedy takes the best three.
    for new_layers, both in ((["B"], 1), ([], 0), (["A", "B"], 2)):
        assert select(changes, widths, Budget(3, both), new_layers) == [0, 1, 2]


def test_greedy_is_not_optimal_with_a_least_size():
    """B alone is too small; greedy gives up what leaves it, and then the pair is no longer looked for."""
    changes, widths = np.array([-5.0, -4.0, -4.0, -4.0]), ["A", "B", "old", "old"]
    budget = Budget(neurons=2, least=2)
    assert select(changes, widths, budget, ["A", "B"]) == [2, 3]
    changes, widths = np.array([-5.0, -4.0, -3.0]), ["old", "A", "A"]
    assert select(changes, widths, budget, ["A"]) == [0]
    assert select_exactly(changes, widths, budget, ["A"]) == [1, 2]


def test_what_a_small_layer_leaves_goes_to_others():
    changes, widths = np.array([-5.0, -4.0, -3.0, -2.0, -1.0]), ["A", "B", "C", "C", "old"]
    assert select(changes, widths, Budget(4, least=2), ["A", "B", "C"]) == [2, 3, 4]


def test_of_equal_candidates_the_earlier_is_taken():
    changes = np.array([-1.0, -2.0, -1.0, -2.0, -2.0, -1.0])
    for choose in (select, select_exactly):
        assert choose(changes, ["w"] * 6, Budget(2)) == [1, 3]
        assert choose(changes, ["w"] * 6, Budget(4)) == [0, 1, 3, 4]
    assert select(changes, list("abcdef"), Budget(4)) == [0, 1, 3, 4]
    many = np.where(np.arange(500) % 3 == 0, -2.0, -1.0)  # more than a sort keeps in order by chance
    for choose in (select, select_exactly):
        assert choose(many, ["w"] * 500, Budget(5)) == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("choose", [select, select_exactly])
def test_nothing_that_does_not_help_is_taken(choose):
    """Dead neurons, splits that would raise the loss, and losses that are no numbers."""
    changes = np.array([0.0, -0.0, 1.0, np.nan, -1e-300])
    assert choose(changes, ["w"] * 5, Budget(5)) == [4]
    assert choose(changes, ["w"] * 5, Budget(0)) == []
    assert choose(np.array([]), [], Budget(5)) == []
    assert choose(np.array([-1.0, -1.0]), ["a", "b"], Budget(5, layers=0), ["a", "b"]) == []
    assert choose(np.array([-1.0, -1.0]), ["a", "b"], Budget(5, layers=0), ["a"]) == [1]


@pytest.mark.parametrize("options", [{"neurons": -1}, {"neurons": 1, "layers": -1}, {"neurons": 1, "least": 0}])
def test_budgets_below_their_least_are_refused(options):
    with pytest.raises(InvalidInput, match=f"{list(options)[-1]} must be a whole number, at least"):
        Budget(**options)


@pytest.mark.parametrize("choose", [select, select_exactly])
def test_each_candidate_has_one_width(choose):
    with pytest.raises(InvalidInput, match="2 changes and 1 widths"):
        choose(np.array([-1.0, -1.0]), ["a"], Budget(1))


def test_new_layers_may_have_a_budget_of_their_own():
    """B.2: a share of the existing neurons, and up to m' in each new layer; each part is what it would be alone."""
    changes = np.array([-1.0, -2.0, -3.0, -9.0, -8.0, -7.0, -6.0, 1.0])
    widths = ["old", "old", "old", "A", "A", "B", "B", "B"]
    for choose in (select, select_exactly):
        assert choose(changes, widths, Budget(2, in_new_layers=3, layers=1), ["A", "B"]) == [1, 2, 3, 4]
        assert choose(changes, widths, Budget(2, in_new_layers=0), ["A", "B"]) == [1, 2]
        assert choose(changes, widths, Budget(0, in_new_layers=4, layers=2), ["A", "B"]) == [3, 4, 5, 6]
        assert choose(changes, widths, Budget(2, layers=1), ["A", "B"]) == [3, 4]



def test_a_negative_budget_of_new_layers_is_refused():
    with pytest.raises(InvalidInput, match="in_new_layers must be a whole number"):
        Budget(1, in_new_layers=-1)
