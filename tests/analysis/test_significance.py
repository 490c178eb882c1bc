"""Intervals, tests and corrections against their definitions, published tables and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from nasbook.analysis import holm, mean_interval, paired_test, pareto_front, smallest_detectable
from nasbook.errors import InvalidInput

NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))


def seeds(least: int = 2, most: int = 10) -> st.SearchStrategy[list[float]]:
    return st.lists(NUMBERS, min_size=least, max_size=most)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_three_seeds():
    """1, 2, 3: mean 2, deviation 1; Student's 4.3027 with two degrees of freedom, from any printed table."""
    found = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((2 - found.half, 2 + found.half))


@settings(deadline=None)
@given(seeds(), st.floats(0.5, 0.99))
def test_the_interval_is_scipys(values, level):
    assume(np.ptp(values) > 0.01)
    found = mean_interval(np.array(values), level)
    expected = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert mean_interval(np.array(values), (1 + level) / 2).half > found.half


def test_equal_values_have_no_width():
    found = mean_interval(np.full(4, 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 3))
    covered = np.mean([found.low <= 3 <= found.high for found in map(mean_interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 trials


# --- pairs ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=6))
def test_the_t_test_is_scipys(pairs):
    a, b = np.array(pairs).T
    assume(np.ptp(a - b) > 0.01)
    found = paired_test(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    # The test rejects at 5 % exactly where the interval leaves zero out.
    assert (found.p < 0.05) == (not found.difference.low <= 0 <= found.difference.high)
    turned = paired_test(b, a)
    assert (turned.p, turned.signed_rank_p) == pytest.approx((found.p, found.signed_rank_p))
    assert turned.difference.mean == pytest.approx(-found.difference.mean)


def signed_rank_p(differences: np.ndarray) -> float:
    """Wilcoxon's by its definition: the share of all signs whose rank sum is as far from the middle."""
    ranks = stats.rankdata(np.abs(differences)) * (differences != 0)
    sums = [float(np.dot(signs, ranks)) for signs in product((-1, 1), repeat=len(ranks))]
    seen = abs(float(np.dot(np.sign(differences), ranks)))
    return float(np.mean([abs(total) >= seen - 1e-9 for total in sums]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=7))
def test_the_signed_ranks_by_all_signs(differences):
    assume(any(differences))
    values = np.array(differences, float)
    assert paired_test(values, np.zeros(len(values))).signed_rank_p == pytest.approx(signed_rank_p(values))


@pytest.mark.parametrize("n", range(2, 9))
def test_signed_ranks_have_a_least_p(n):
    """All seeds agree: 2^(1−n), which is below 0.05 from six seeds on."""
    found = paired_test(np.arange(1.0, n + 1), np.zeros(n))
    assert found.signed_rank_p == pytest.approx(2 ** (1 - n))
    assert (found.signed_rank_p < 0.05) == (n >= 6)


def test_signed_ranks_of_many_seeds():
    a = np.random.default_rng(1).normal(0.8, 1.0, 40)
    exact = stats.wilcoxon(a, method="exact").pvalue
    assert paired_test(a, np.zeros(40)).signed_rank_p == pytest.approx(exact, abs=1e-3)


def test_differences_that_are_all_alike():
    a = np.array([0.1, 0.2, 0.3])
    same = paired_test(a, a)
    assert (same.p, same.signed_rank_p, same.difference.half) == (1.0, 1.0, 0.0)
    shifted = paired_test(a + 0.1, a)  # equal but for rounding
    assert (shifted.p, shifted.signed_rank_p) == (0.25, pytest.approx(0.25))
    assert shifted.difference.mean == pytest.approx(0.1)


def test_pairs_see_what_seeds_hide():
    """Seeds differ by ten points, methods by one: paired the difference is plain, unpaired it drowns."""
    b = np.array([0.60, 0.70, 0.80, 0.65, 0.75])
    a = b + np.array([0.010, 0.011, 0.009, 0.010, 0.012])
    assert paired_test(a, b).p < 1e-3
    assert stats.ttest_ind(a, b).pvalue > 0.5


# --- many tests -------------------------------------------------------------------------------------------------------


def test_holms_own_steps():
    """0.01 · 4, then 0.02 · 3, then 0.03 · 2, and 0.04, which is not below the one before; in the order given."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.001, 0.04, 0.6]) == pytest.approx((0.003, 0.08, 0.6))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_step_by_step(values, level):
    """Below α exactly where the step-down procedure of the paper rejects."""
    adjusted = holm(values)
    rejected: set[int] = set()
    for step, place in enumerate(sorted(range(len(values)), key=lambda n: values[n])):
        if (len(values) - step) * values[place] > level:
            break
        rejected.add(place)
    assert {place for place, value in enumerate(adjusted) if value <= level} == rejected
    assert all(p <= q <= min(1.0, len(values) * p) for p, q in zip(values, adjusted, strict=True))


# --- what could have been seen ----------------------------------------------------------------------------------------


def test_cohens_table():
    """A printed value: 34 pairs find half a deviation with power 0.8 at 5 % (Cohen 1988; G*Power: 34)."""
    assert smallest_detectable(1.0, 34) <= 0.5 < smallest_detectable(1.0, 33)


def test_three_seeds_see_little():
    """Three deviations of the differences, about: what a comparison over three seeds can find."""
    assert smallest_detectable(1.0, 3) == pytest.approx(3.26, abs=0.01)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.001, 10), st.integers(3, 40), st.floats(0.02, 0.2), st.floats(0.3, 0.95))
def test_more_seeds_see_more(deviation, n, level, power):
    found = smallest_detectable(deviation, n, level, power)
    assert found == pytest.approx(deviation * smallest_detectable(1.0, n, level, power))
    assert smallest_detectable(deviation, n + 1, level, power) < found
    assert smallest_detectable(deviation, n, level / 2, power) > found
    assert smallest_detectable(deviation, n, level, (1 + power) / 2) > found


def test_the_detectable_difference_is_found_that_often():
    effect = smallest_detectable(2.0, 5, power=0.8)
    draws = np.random.default_rng(2).normal(effect, 2.0, (4000, 5))
    found = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)  # three standard errors


def test_nothing_to_see():
    assert smallest_detectable(0.0, 3) == 0
    assert smallest_detectable(1.0, 3, level=0.05, power=0.05) == 0


# --- the front --------------------------------------------------------------------------------------------------------


def test_the_front_by_hand():
    costs = np.array([1.0, 2.0, 3.0, 4.0, 2.0])
    scores = np.array([0.5, 0.7, 0.6, 0.8, 0.7])
    assert pareto_front(costs, scores).tolist() == [True, True, False, True, True]  # equal rows don't beat each other


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_by_all_pairs(rows):
    costs, scores = np.array(rows, float).T
    front = pareto_front(costs, scores)
    for (cost, score), kept in zip(rows, front, strict=True):
        beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in rows)
        assert kept == (not beaten)
    assert front.any()
    order = sorted((cost, score) for (cost, score), kept in zip(rows, front, strict=True) if kept)
    assert [score for _, score in order] == sorted(score for _, score in order)  # dearer is better on it


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(np.array([1.0])), "at least two seeds"),
        (lambda: mean_interval(np.array([])), "at least two seeds"),
        (lambda: mean_interval(np.array([1.0, math.nan])), "not finite"),
        (lambda: mean_interval(np.array([1.0, 2.0]), 1.0), "level must be between 0 and 1, got 1.0"),
        (lambda: paired_test(np.zeros(2), np.zeros(3)), "got 2 and 3"),
        (lambda: paired_test(np.array([math.inf, 0.0]), np.zeros(2)), "not finite"),
        (lambda: pareto_front(np.zeros(2), np.zeros(3)), r"got the shapes \(2,\) and \(3,\)"),
        (lambda: holm([0.5, 1.5]), r"from 0 to 1, got \[0.5, 1.5\]"),
        (lambda: holm([math.nan]), "from 0 to 1"),
        (lambda: smallest_detectable(1.0, 1), "seeds must be at least 2, got 1"),
        (lambda: smallest_detectable(-1.0, 3), "deviation must be at least 0"),
        (lambda: smallest_detectable(math.nan, 3), "deviation must be at least 0"),
        (lambda: smallest_detectable(1.0, 3, power=1.0), "power must be between 0 and 1"),
        (lambda: smallest_detectable(1.0, 3, level=0.0), "level must be between 0 and 1"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()
