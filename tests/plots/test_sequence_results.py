from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from nasbook.errors import InvalidInput
from nasbook.plots import plot_loss_over_time, plot_loss_panels, plot_parameters_by_nodes, plot_series
from nasbook.plots.sequence_results import break_even, median_of_best
from nasbook.plots.series import autocorrelation

ROWS = ("DARTS-1", "DARTS-2", "new-1", "new-2", "LSTM", "GRU")
# Growing DARTS, Table 2.
PARAMETERS: dict[str, dict[str, dict[int, int]]] = {
    "G7": {
        "DARTS": dict(enumerate((451, 750, 1196, 1789, 2529, 3416), start=2)),
        "Two-to-One": {nodes: 418 * nodes for nodes in range(2, 8)},
    },
    "BRICS": {
        "DARTS": dict(enumerate((235, 390, 620, 925, 1305, 1760), start=2)),
        "Two-to-One": {nodes: 220 * nodes for nodes in range(2, 8)},
    },
}


def lines(figure: Figure, panel: int = 0) -> dict[str, Any]:
    return {str(line.get_gid()): line for line in figure.axes[panel].lines if line.get_gid()}


def labels_touch(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of names at lines' ends that share more than half a pixel, and names that leave the figure."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = []
    for ax in figure.axes:
        for text in ax.texts:
            if isinstance(text, Annotation) and text.get_text():
                boxes.append((text.get_text(), super(Annotation, text).get_window_extent(renderer)))
    found = [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    return found + [(name, "edge of the page") for name, box in boxes if box.x1 > figure.bbox.x1 + 0.5]


# --- losses by epoch --------------------------------------------------------------------------------------------------


def test_rows_look_the_same_in_all_panels() -> None:
    panels = {
        "validation, G7": {name: [[2.0, 1.5 + 0.01 * n], [2.2, 1.7 + 0.01 * n]] for n, name in enumerate(ROWS)},
        "validation, BRICS": {name: [[2.0, 1.5]] for name in reversed(ROWS)},
        "training, G7": {"new-2": [[2.0, 1.0]]},
    }
    figure = plot_loss_panels(panels, ylabel="mean squared error")
    assert [ax.get_title() for ax in figure.axes if ax.axison] == list(panels)
    one, other = lines(figure), lines(figure, 1)
    looks = {name: (line.get_color(), line.get_marker(), line.get_linestyle()) for name, line in one.items()}
    assert looks == {name: (line.get_color(), line.get_marker(), line.get_linestyle()) for name, line in other.items()}
    assert len({colour for colour, *_ in looks.values()}) == len({marker for _, marker, _ in looks.values()}) == 6
    assert {name for name, (*_, dashes) in looks.items() if dashes == "--"} == {"row-LSTM", "row-GRU"}
    assert np.allclose(one["row-DARTS-1"].get_ydata(), [2.1, 1.6])
    bands = [band for band in figure.axes[0].collections if isinstance(band, PolyCollection)]
    heights = sorted(set(np.asarray(bands[0].get_paths()[0].vertices)[:, 1].round(9).tolist()))
    assert heights == pytest.approx([1.5, 1.7, 2.0, 2.2])  # 1.6 ± 0.1 and 2.1 ± 0.1
    assert labels_touch(figure) == []
    assert figure.get_supxlabel() == "mean ± standard error over 1 to 2 trials; lower is better"


def test_many_rows_and_baselines_keep_their_looks() -> None:
    many = [f"row {n}" for n in range(9)]
    few, all_rows = (
        lines(plot_loss_panels({"": {name: [[2.0, 1.0]] for name in (*names, "LSTM", "GRU")}}, ylabel="loss"))
        for names in (many[:2], many)
    )
    assert all(few[f"row-{name}"].get_color() == all_rows[f"row-{name}"].get_color() for name in ("LSTM", "GRU"))
    looks = {(line.get_color(), line.get_linestyle()) for line in all_rows.values()}
    assert len(looks) == 11


def test_losses_that_are_not_finite_do_not_count() -> None:
    figure = plot_loss_panels({"": {"a": [[3.0, np.nan, 1.0], [5.0, 2.0, np.inf]], "b": [[np.nan, 1.0, np.nan]] * 2}},
                              ylabel="loss", columns=1)  # fmt: skip
    assert lines(figure)["row-a"].get_ydata().tolist() == [4.0, 2.0, 1.0]
    assert np.isnan(lines(figure)["row-b"].get_ydata()).tolist() == [True, False, True]
    assert {text.get_text() for text in figure.axes[0].texts} == {"a", "b"}


def test_early_losses_may_leave_the_axis() -> None:
    panels = {"": {"a": [[100.0, 2.0, 1.0]]}}
    assert plot_loss_panels(panels, ylabel="loss").axes[0].get_ylim()[1] > 100
    assert plot_loss_panels(panels, ylabel="loss", first=2).axes[0].get_ylim() == pytest.approx((0.96, 2.04))
    assert plot_loss_panels(panels, ylabel={"": "nats"}, first=9).axes[0].get_ylabel() == "nats"


@pytest.mark.parametrize(
    "panels", [{}, {"a": {}}, {"a": {"b": []}}, {"a": {"b": [[1.0], [1.0, 2.0]]}}, {"a": {"b": [[]]}}]
)
def test_losses_that_are_none(panels: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        plot_loss_panels(panels, ylabel="loss")


# --- losses over time -------------------------------------------------------------------------------------------------


def test_the_median_of_the_best_so_far() -> None:
    trials = [
        (np.array([1.0, 3.0]), np.array([5.0, 6.0])),
        (np.array([2.0, 4.0]), np.array([4.0, 1.0])),
        (np.array([6.0]), np.array([2.0])),
    ]
    times, medians = median_of_best(trials)
    assert times.tolist() == [2, 3, 4, 6] and medians.tolist() == [5, 5, 5, 2]
    times, medians = median_of_best([(np.array([1.0, 2.0]), np.array([np.nan, 3.0]))])
    assert times.tolist() == [2] and medians.tolist() == [3]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-9, 9) | st.just(float("nan")), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_best_so_far_only_falls(losses: list[list[float]]) -> None:
    trials = [(np.cumsum(np.arange(1.0, len(one) + 1)) + n / 7, np.array(one)) for n, one in enumerate(losses)]
    times, medians = median_of_best(trials)
    assert (np.diff(times) > 0).all() and (np.diff(medians) <= 0).all()
    finite = [value for one in losses for value in one if value == value]
    assert not len(medians) or min(finite) <= medians[-1] <= max(finite)


def test_points_and_medians_over_time() -> None:
    trials = {name: [([1.0 + n, 2.0 + n], [3.0, 2.0 - 0.1 * n]), ([1.5 + n, 4.0 + n], [2.5, 2.2])]
              for n, name in enumerate(ROWS[:4])}  # fmt: skip
    figure = plot_loss_over_time({"2 nodes": trials, "3 nodes": trials}, ylabel="nats a token")
    found = lines(figure)
    assert sorted(found["points-DARTS-1"].get_xdata()) == [1, 1.5, 2, 4]
    assert sorted(found["points-DARTS-1"].get_ydata()) == [2, 2.2, 2.5, 3]
    assert found["best-DARTS-1"].get_xdata().tolist() == [1.5, 2, 4]
    assert found["best-DARTS-1"].get_ydata().tolist() == [3.0, 2.5, 2.2]
    assert found["best-DARTS-1"].get_drawstyle() == "steps-post"
    assert labels_touch(figure) == []
    short = plot_loss_over_time({"": {"a": [([1.0, 2.0, 3.0], [100.0, 2.0, 1.0])]}}, ylabel="loss", share=0.6)
    assert short.axes[0].get_ylim()[1] < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"panels": {}}, "at least one panel"),
        ({"panels": {"": {"a": [([1.0], [1.0, 2.0])]}}}, "as many losses as times"),
        ({"panels": {"": {"a": [([2.0, 1.0], [1.0, 2.0])]}}}, "times that rise"),
        ({"panels": {"": {"a": [([1.0], [1.0])]}}, "xscale": "sqrt"}, "Unknown xscale"),
        ({"panels": {"": {"a": [([1.0], [1.0])]}}, "share": 0.0}, "share"),
    ],
)
def test_times_that_are_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_loss_over_time(**arguments, ylabel="loss")


# --- parameters by nodes ----------------------------------------------------------------------------------------------


def test_table_2_with_its_break_even() -> None:
    figure = plot_parameters_by_nodes(PARAMETERS, constants={"G7": {"LSTM": 392, "GRU": 294}})
    assert [ax.get_title() for ax in figure.axes] == ["G7", "BRICS"]
    found = lines(figure)
    assert list(found["row-DARTS"].get_ydata()) == [451, 750, 1196, 1789, 2529, 3416]
    assert [lines(figure, n)["break-even"].get_xdata()[0] for n in (0, 1)] == [6, 7]  # the claim growing.breakeven
    words = {str(text.get_gid()): text.get_text() for ax in figure.axes for text in ax.texts}
    assert words["break-even-words"] == "break-even at 7 nodes:\n1,540 ≤ 1,760"
    assert found["row-LSTM"].get_linestyle() == "--" and found["row-LSTM"].get_ydata()[0] == 392
    assert "LSTM 392" in {text.get_text() for text in figure.axes[0].texts}
    assert labels_touch(figure) == []
    with pytest.raises(InvalidInput, match="title in constants 'G8'"):
        plot_parameters_by_nodes(PARAMETERS, constants={"G8": {"LSTM": 1}})


@pytest.mark.parametrize(
    ("first", "second", "node"),
    [
        ({1: 5, 2: 9}, {1: 6, 2: 9}, 2),
        ({1: 5, 2: 9}, {1: 5, 2: 6}, None),  # never more
        ({1: 5}, {1: 6}, None),
        ({1: 5}, {2: 6}, None),
    ],
)
def test_break_even(first: Mapping[int, int], second: Mapping[int, int], node: int | None) -> None:
    assert break_even(first, second) == node
    figure = plot_parameters_by_nodes({"": {"a": first, "b": second}})
    assert ("break-even" in lines(figure)) == (node is not None)


# --- series -----------------------------------------------------------------------------------------------------------


def test_autocorrelation_of_known_series() -> None:
    assert autocorrelation(np.array([1.0, -1.0] * 50), 2) == pytest.approx([-0.99, 0.98])
    assert autocorrelation(np.array([1.0, 2.0, 3.0]), 1) == pytest.approx([0.0])


def test_series_show_what_they_are() -> None:
    draw = np.random.default_rng(0)
    common = draw.standard_normal(300)
    returns = 0.01 * np.stack([common, common + draw.standard_normal(300), -common], axis=1)
    figure = plot_series(returns, ("one", "other land", "third"), borders=(200, 250), window=10, lags=5)
    first, second, memory, pairs = figure.axes
    assert np.allclose(lines(figure)["returns-one"].get_ydata(), 100 * returns[:, 0])
    upper = lines(figure)["deviation-one"]
    assert list(upper.get_xdata()) == list(range(9, 300))
    assert abs(upper.get_ydata()[0]) == pytest.approx(200 * np.sqrt((returns[:10, 0] ** 2).mean()))
    assert [line.get_xdata()[0] for line in second.lines if line.get_gid() == "border"] == [200, 250]
    assert first.get_title(loc="left").startswith("one; ")
    found = {str(line.get_gid()): line.get_ydata() for line in memory.lines}
    expected = np.mean([autocorrelation(one, 5) for one in returns.T], axis=0)
    assert np.allclose(found["autocorrelation-returns"], expected)
    written = {str(text.get_gid()): text.get_text() for text in pairs.texts}
    matrix = np.corrcoef(returns.T)
    assert written["pair-0-1"] == written["pair-1-0"] == f"{matrix[0, 1]:.2f}"[1:]
    assert written["pair-0-0"] == "1" and written["pair-0-2"] == "−1.00"
    assert [tick.get_text() for tick in pairs.get_yticklabels()] == ["one", "other\nland", "third"]
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize(
    ("returns", "columns", "message"),
    [
        (np.zeros((90, 2)), ("a",), r"rows × 1 series, got shape \(90, 2\)"),
        (np.full((90, 1), np.nan), ("a",), "finite"),
        (np.ones((20, 1)), ("a",), "more than 31 rows, got 20"),
        (np.ones((90, 1)), ("a",), "never changes"),
    ],
)
def test_series_that_are_none(returns: Any, columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_series(returns, columns)
