"""Figures of what learners of task sequences keep, lose and weigh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nasbook.analysis import average_accuracy, forgetting
from nasbook.errors import InvalidInput
from nasbook.experiments.continual import CONTINUAL_LEARNERS
from nasbook.plots import plot_accuracy_against_memory, plot_accuracy_matrices, plot_average_accuracy
from nasbook.plots.continual_results import learner_looks, plain_size, shade, shade_limits

FIREFLY = [[0.9], [0.9, 0.8], [0.9, 0.8, 1.0]]
TUNED = [[0.9], [0.5, 0.8], [0.25, 0.9, 0.95]]


def texts(figure: Figure, panel: int, name: str) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts if str(text.get_gid()).startswith(name)]


def fills(figure: Figure, panel: int) -> dict[str, tuple[float, ...]]:
    return {str(patch.get_gid()): tuple(patch.get_facecolor()) for patch in figure.axes[panel].patches}


# --- looks and shades -------------------------------------------------------------------------------------------------


def test_learners_keep_their_looks() -> None:
    alone, all_of_them = learner_looks(["EWC"]), learner_looks([*CONTINUAL_LEARNERS, "progressive"])
    assert alone["EWC"] == all_of_them["EWC"]
    looks = {(look.colour, str(look.dashes)) for look in all_of_them.values()}
    assert len(looks) == len(all_of_them) == len({look.marker for look in all_of_them.values()}) == 12
    others = learner_looks(["Firefly", *(f"learner {number}" for number in range(12))])
    assert len({(look.colour, str(look.dashes)) for look in others.values()}) == 13


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_more_the_darker(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    assert sum(to_rgb(shade(high, 0, 100))) <= sum(to_rgb(shade(low, 0, 100)))
    assert min(to_rgb(shade(high, 0, 100))) > 0.3  # light enough for dark ink


def test_shades_don_t_make_much_of_little() -> None:
    assert shade_limits([90.0, 95.0]) == (75.0, 95.0)
    assert shade_limits([30.0, 95.0]) == (30.0, 95.0)
    assert shade_limits([10.0]) == (0.0, 10.0)
    assert shade(5, 5, 5) == shade(1, 0, 1)


@pytest.mark.parametrize(
    ("value", "written"), [(0, "0"), (999, "999"), (1234, "1.23k"), (25_600_000, "25.6M"), (2e9, "2G")]
)
def test_sizes_are_short(value: float, written: str) -> None:
    assert plain_size(value) == written


# --- matrices ---------------------------------------------------------------------------------------------------------


def test_a_panel_has_the_triangle_and_what_was_forgotten() -> None:
    figure = plot_accuracy_matrices({"Firefly": FIREFLY, "fine-tuned": TUNED})
    assert texts(figure, 0, "number-") == ["90", "90", "80", "90", "80", "100"]
    assert texts(figure, 0, "lost-number-") == ["0", "0", "–"]
    assert texts(figure, 1, "number-") == ["90", "50", "80", "25", "90", "95"]
    # Task 1 was best at 90 and is at 25; task 2 has gained 10.
    assert texts(figure, 1, "lost-number-") == ["65", "−10", "–"]
    assert (100 * forgetting(TUNED)).round(9).tolist() == [65, -10]
    assert [texts(figure, panel, "mean") for panel in (0, 1)] == [
        ["90.0 % on average at the end"], ["70.0 % on average at the end"]
    ]  # fmt: skip
    assert 100 * average_accuracy(TUNED) == pytest.approx(70)


def test_all_panels_have_one_scale() -> None:
    figure = plot_accuracy_matrices({"Firefly": FIREFLY, "fine-tuned": TUNED, "EWC": TUNED}, columns=2)
    first, second, third = (fills(figure, panel) for panel in range(3))
    assert first["0-0"] == second["0-0"] and second == third
    assert first["1-0"] == first["0-0"] != second["1-0"]  # nothing forgotten: columns of one shade
    assert second["2-0"][:3] == pytest.approx(to_rgb(shade(25, 25, 100)))
    assert second["lost-1"] == second["lost-2"] == first["lost-0"]  # a gain is no loss
    scale = figure.axes[-1]
    assert [text.get_text() for text in scale.texts] == ["accuracy 25 %", "100 %"]


def test_many_tasks_have_shades_alone() -> None:
    tasks = 20
    figure = plot_accuracy_matrices({name: [[0.5] * (row + 1) for row in range(tasks)] for name in "abcd"})
    assert texts(figure, 0, "number-") == [] and len(fills(figure, 0)) == tasks * (tasks + 1) // 2 + tasks
    assert figure.get_figwidth() == 6.5
    for ax in figure.axes:
        box = ax.get_position()
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1


def test_a_single_task_is_a_matrix_too() -> None:
    figure = plot_accuracy_matrices({"one": [[0.75]]})
    assert texts(figure, 0, "number-") == ["75"] and texts(figure, 0, "lost-number-") == ["–"]


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ({}, "at least one label"),
        ({"a": []}, r"matrices\['a'\]: expected one accuracy in the first row.* got rows of \[\]"),
        ({"a": [[0.5, 0.5]]}, r"got rows of \[2\]"),
        ({"a": [[0.5], [0.5, 1.5]]}, r"shares of 0\.\.1"),
        ({"a": [[math.nan]]}, r"shares of 0\.\.1"),
    ],
)
def test_what_is_no_matrix_is_refused(matrices: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_accuracy_matrices(matrices)


# --- averages ---------------------------------------------------------------------------------------------------------


def test_lines_are_averages_over_the_tasks_seen() -> None:
    higher = [[value + 0.05 for value in row] for row in TUNED]
    figure = plot_average_accuracy({"Firefly": [FIREFLY], "fine-tuned": [TUNED, higher]}, paper={"paper": 91.0})
    ax = figure.axes[0]
    lines = {str(line.get_gid()): line for line in ax.lines}
    assert np.asarray(lines["learner-Firefly"].get_ydata()).tolist() == pytest.approx([90, 85, 90])
    assert np.asarray(lines["learner-fine-tuned"].get_ydata()).tolist() == pytest.approx([92.5, 67.5, 72.5])
    assert np.asarray(lines["learner-Firefly"].get_xdata()).tolist() == [1, 2, 3]
    (band,) = [artist for artist in ax.collections if isinstance(artist, PolyCollection)]  # of two runs only
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.max() == pytest.approx(92.5 + 2.5) and heights.min() == pytest.approx(67.5 - 2.5)
    assert np.asarray(lines["paper"].get_xydata()).tolist() == [[3, 91]]
    assert {text.get_text() for text in ax.texts} == {"Firefly", "fine-tuned", "paper"}


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_learner_that_keeps_all_has_the_running_mean(values: list[float]) -> None:
    matrix = [values[: row + 1] for row in range(len(values))]
    (line,) = plot_average_accuracy({"kept": [matrix]}).axes[0].lines
    running = 100 * np.cumsum(values) / np.arange(1, len(values) + 1)
    assert np.asarray(line.get_ydata()) == pytest.approx(running)


@pytest.mark.parametrize("matrices", [{}, {"a": []}, {"a": [FIREFLY], "b": [FIREFLY[:2]]}])
def test_runs_of_other_tasks_are_refused(matrices: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="all of the same number of tasks"):
        plot_average_accuracy(matrices)
    with pytest.raises(InvalidInput, match=r"matrices\['a'\]: expected one accuracy"):
        plot_average_accuracy({"a": [[[0.1], [0.1]]]})


# --- against size -----------------------------------------------------------------------------------------------------


def test_a_curve_and_points_with_their_errors() -> None:
    curves = {"Firefly": {32: [(100, 0.7), (300, 0.9)], 128: [(1000, 0.8)]}}
    figure = plot_accuracy_against_memory(curves, {"EWC": [(50_000, 0.5), (50_000, 0.6)]})
    ax = figure.axes[0]
    firefly, ewc = ax.containers
    assert np.asarray(firefly.lines[0].get_xydata()).tolist() == [[200.0, pytest.approx(80)], [1000.0, 80.0]]
    across, up = (bars.get_segments() for bars in firefly.lines[2])
    assert across[0][:, 0].tolist() == pytest.approx([100, 300]) and up[0][:, 1].tolist() == pytest.approx([70, 90])
    assert np.ptp(across[1][:, 0]) == np.ptp(up[1][:, 1]) == 0  # one run
    assert np.asarray(ewc.lines[0].get_xydata()).tolist() == [[50_000.0, pytest.approx(55)]]
    assert (ewc.has_xerr, ewc.has_yerr) == (False, True)
    assert [text.get_text() for text in ax.texts] == ["32", "128"]
    assert ax.get_xscale() == "log"
    figure.draw_without_rendering()
    written = [label.get_text() for label in ax.get_xticklabels()]
    assert {"1k", "10k"} <= set(written) and not any("$" in label for label in written)


def test_a_bar_never_reaches_zero_on_a_logarithmic_axis() -> None:
    figure = plot_accuracy_against_memory({}, {"a": [(1, 0.5), (1, 0.5), (1e6, 0.5)]})
    (bars,) = figure.axes[0].containers[0].lines[2]
    left, right = bars.get_segments()[0][:, 0]
    mean = (2 + 1e6) / 3
    assert left == pytest.approx(max(mean - np.std([1, 1, 1e6], ddof=1) / math.sqrt(3), 0.1 * mean)) and right > mean


@pytest.mark.parametrize(
    ("curves", "points", "message"),
    [
        ({}, {}, "curves and points: expected at least one label"),
        ({"a": {}}, None, r"curves\['a'\]: expected at least one number"),
        ({"a": {8: []}}, None, r"curves\['a'\]\[8\]: expected pairs"),
        ({}, {"a": [(1, 2, 3)]}, r"points\['a'\]: expected pairs"),
        ({}, {"a": [(1, math.nan)]}, "expected pairs"),
        ({}, {"a": [(0, 0.5)]}, "expected sizes above 0"),
        ({}, {"a": [(1, 50)]}, r"shares of 0\.\.1"),
    ],
)
def test_sizes_that_are_none(curves: Any, points: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_accuracy_against_memory(curves, points)
