"""Kendall's tau against its definition over all pairs."""

from itertools import combinations
from math import inf, nan, sqrt

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nasbook.analysis import kendall_tau
from nasbook.errors import InvalidInput


def test_extremes():
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 31]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)  # two pairs agree, one does not


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_is_tau_b(pairs):
    a, b = zip(*pairs, strict=True)
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    signs = [((x > u) - (x < u), (y > v) - (y < v)) for (x, y), (u, v) in combinations(pairs, 2)]
    difference = sum(p * q for p, q in signs)
    expected = difference / sqrt(sum(p != 0 for p, _ in signs) * sum(q != 0 for _, q in signs))
    assert kendall_tau(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1, 2, 3], "Expected two lists of the same length, got 2 and 3 scores."),
        ([1, 2], [1, nan], "b: expected finite numbers, got nan."),
        ([inf, 2], [1, 2], "a: expected finite numbers, got inf."),
        ([1, 2], [3, 3], "b: expected at least two different scores, got [3.0, 3.0]."),
        ([], [], "a: expected at least two different scores, got []."),
    ],
)
def test_refuses(a, b, message):
    with pytest.raises(InvalidInput) as error:
        kendall_tau(a, b)
    assert str(error.value) == message
