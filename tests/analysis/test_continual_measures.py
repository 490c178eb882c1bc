"""What a continual learner has kept and lost, on matrices that are counted by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.analysis import average_accuracy, backward_transfer, forgetting
from nasbook.errors import InvalidInput

MATRIX = [[0.9], [0.6, 0.8], [0.7, 0.5, 1.0]]


def test_by_hand():
    assert average_accuracy(MATRIX) == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert [average_accuracy(MATRIX, after=task) for task in range(3)] == pytest.approx([0.9, 0.7, 2.2 / 3])
    # The best of task 0 was at its own time, and it has come back a little since; 1 was only seen once before.
    assert forgetting(MATRIX).tolist() == pytest.approx([0.9 - 0.7, 0.8 - 0.5])
    assert backward_transfer(MATRIX) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)


def test_the_best_may_lie_between():
    """Forgetting is counted from the best accuracy so far, transfer from the one at first: here they disagree."""
    matrix = [[0.5], [0.9, 0.6], [0.7, 0.6, 0.8]]
    assert forgetting(matrix).tolist() == pytest.approx([0.2, 0.0])
    assert backward_transfer(matrix) == pytest.approx((0.2 + 0.0) / 2)


def test_what_is_gained_is_negative():
    matrix = [[0.5], [0.75, 1.0]]
    assert forgetting(matrix).tolist() == [-0.25]
    assert backward_transfer(matrix) == 0.25


def test_a_single_task():
    assert average_accuracy([[0.25]]) == 0.25
    assert forgetting([[0.25]]).shape == (0,)
    assert backward_transfer([[0.25]]) == 0.0


@st.composite
def triangles(draw):
    tasks = draw(st.integers(2, 6))
    return [[draw(st.floats(0, 1)) for _ in range(row + 1)] for row in range(tasks)]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(triangles())
def test_properties(matrix):
    lost = forgetting(matrix)
    assert len(lost) == len(matrix) - 1
    # What has been lost since the best is at least what has been lost since the first time.
    assert lost.mean() >= -backward_transfer(matrix) - 1e-12
    assert all(-1 <= value <= 1 for value in lost)
    kept = [[max(r[task] for r in matrix[task : row + 1]) for task in range(row + 1)] for row in range(len(matrix))]
    assert (forgetting(kept) <= 0).all() and backward_transfer(kept) >= 0
    assert average_accuracy(kept) >= average_accuracy(matrix) - 1e-12
    same = [[matrix[0][0]] * (row + 1) for row in range(len(matrix))]
    assert not forgetting(same).any() and backward_transfer(same) == 0
    assert average_accuracy(same) == pytest.approx(matrix[0][0])


@pytest.mark.parametrize("measure", [average_accuracy, forgetting, backward_transfer])
@pytest.mark.parametrize(
    ("matrix", "has"),
    [
        ([], r"\[\]"),
        ([[]], r"\[0\]"),
        ([[0.5, 0.5]], r"\[2\]"),
        ([[0.5], [0.5]], r"\[1, 1\]"),
        ([[0.5], []], r"\[1, 0\]"),
    ],
)
def test_no_triangle(measure, matrix, has):
    expected = f"^An accuracy matrix has one entry in its first row, two in the second, and so on; this one has {has}.$"
    with pytest.raises(InvalidInput, match=expected):
        measure(matrix)


@pytest.mark.parametrize("after", [-1, 3])
def test_no_such_row(after):
    with pytest.raises(InvalidInput, match=rf"^The matrix has the rows 0..2; after is {after}\.$"):
        average_accuracy(MATRIX, after=after)
