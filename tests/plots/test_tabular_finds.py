"""The figure of a whole space: marks stand at the ranks of what was found."""

import numpy as np
import pytest

from nasbook.errors import InvalidInput
from nasbook.plots import finds_in_words, plot_finds

ACCURACIES = np.array([[0.90, 0.92], [0.80, 0.80], [0.95, 0.97], [0.60, 0.70]])
FINDS = {"first method": [2, 0, 1], "second": [3]}


def test_marks_stand_at_ranks():
    figure = plot_finds(ACCURACIES, FINDS)
    above, below = figure.axes
    means = next(line for line in above.lines if line.get_gid() == "means")
    assert means.get_ydata() == pytest.approx([96, 91, 80, 65])
    marks = {line.get_gid(): list(line.get_xdata()) for line in below.lines if line.get_gid()}
    assert marks == {"finds-0": [1, 2, 3], "finds-1": [4]}
    assert [label.get_text() for label in below.get_yticklabels()] == ["first method", "second"]


def test_words_say_what_the_figure_shows():
    assert finds_in_words(ACCURACIES, FINDS) == (
        "The 4 cells by mean test accuracy: from 96.0 % over a median of 85.5 % to 65.0 %, with standard errors of "
        "1.0 points. Median rank of what was found, and the range: first method 2 (1 to 3), second 4 (4 to 4)."
    )
    assert "Median rank" not in finds_in_words(ACCURACIES, {})


def test_ranks_of_equals_can_be_given():
    alike = np.full((3, 2), 0.5)
    given = np.array([3, 1, 2])
    figure = plot_finds(alike, {"one": [0, 1]}, ranks=given)
    marks = {line.get_gid(): list(line.get_xdata()) for line in figure.axes[1].lines if line.get_gid()}
    assert marks == {"finds-0": [3, 1]}
    assert "one 2 (1 to 3)" in finds_in_words(alike, {"one": [0, 1]}, ranks=given)
    assert "one 2 (1 to 2)" in finds_in_words(alike, {"one": [0, 1]})


@pytest.mark.parametrize(
    ("accuracies", "finds", "message"),
    [
        (ACCURACIES[:, :1], FINDS, "at least two trainings"),
        (ACCURACIES, {"a": []}, "expected rows from 0 to 3"),
        (ACCURACIES, {"a": [4]}, r"finds\['a'\].*got \[4\]"),
    ],
)
def test_wrong_input_is_refused(accuracies, finds, message):
    for draw in (plot_finds, finds_in_words):
        with pytest.raises(InvalidInput, match=message):
            draw(accuracies, finds)
