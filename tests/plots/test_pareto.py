"""Accuracy against cost: what is on the front, where names stand, what the words say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from nasbook.errors import InvalidInput
from nasbook.plots import pareto_in_words, plot_pareto

POINTS: dict[str, tuple[Any, Any]] = {
    "random cell": ([0, 0, 0], [0.90, 0.91, 0.92]),
    "random search": ([2e9, 2e9, 2e9], [0.93, 0.94, 0.95]),
    "DARTS": ([1e9, 2e9, 3e9], [0.91, 0.92, 0.93]),
    "EnTranNAS": ([1e9, 1e9, 1e9], [0.92, 0.93, 0.94]),
    "Firefly": ([8e9, 8e9, 8e9], [0.96, 0.96, 0.96]),
}
GROUPS = dict.fromkeys(POINTS, "supernet") | {"random cell": "none", "random search": "samples"}


def lines(figure: Figure, gid: str) -> Any:
    """What errorbar drew for a method: its marker is the first of its artists."""
    ax = figure.axes[0]
    return next(container.lines for container in ax.containers if container.lines[0].get_gid() == gid)


def assert_legible(figure: Figure) -> None:
    """Names stand in the axes, and no two of them touch."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    ax = figure.axes[0]
    frame = ax.get_window_extent()
    boxes = {text.get_text(): text_box(text, renderer) for text in ax.texts}
    for (first, a), (second, b) in itertools.combinations(boxes.items(), 2):
        assert min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 0.5, (first, second)
    for name, box in boxes.items():
        assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1, name
        assert box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1, name


def text_box(text: Any, renderer: Any) -> Any:
    """The box of a name without the line to its point."""
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def test_means_intervals_and_front() -> None:
    figure = plot_pareto(POINTS, xlabel="multiply-adds", groups=GROUPS, reference="random search")
    ax = figure.axes[0]
    marker, _, (bar,) = lines(figure, "method-DARTS")
    assert (float(marker.get_xdata()[0]), float(marker.get_ydata()[0])) == pytest.approx((2e9, 92.0))
    low, high = bar.get_segments()[0][:, 1]
    assert high - 92.0 == pytest.approx(stats.t.ppf(0.975, 2) / np.sqrt(3)) == 92.0 - low
    filled = {
        name for name in POINTS if lines(figure, f"method-{name}")[0].get_markerfacecolor() != "white"
    }
    assert filled == {"random cell", "EnTranNAS", "random search", "Firefly"}
    bold = {text.get_text() for text in ax.texts if text.get_fontweight() == "bold"}
    assert bold == filled
    (front,) = [line for line in ax.lines if line.get_gid() == "front"]
    assert front.get_ydata().tolist() == pytest.approx([91, 93, 94, 96, 96])
    (band,) = [patch for patch in ax.patches if patch.get_gid() == "reference"]
    assert band.get_y() + band.get_height() / 2 == pytest.approx(94.0)
    assert_legible(figure)


def test_nothing_costs_nothing() -> None:
    """A cost of 0 stands left of all others, apart, and is written as 0."""
    figure = plot_pareto(POINTS, xlabel="multiply-adds")
    ax = figure.axes[0]
    free = float(lines(figure, "method-random cell")[0].get_xdata()[0])
    ticks = dict(zip(ax.get_xticks(), [label.get_text() for label in ax.get_xticklabels()], strict=True))
    assert ticks[free] == "0" and free < 1e9
    assert "1G" in ticks.values()
    (apart,) = [line for line in ax.lines if line.get_gid() == "break"]
    assert free < apart.get_xdata()[0] < 1e9
    without = {name: pair for name, pair in POINTS.items() if name != "random cell"}
    plain = plot_pareto(without, xlabel="multiply-adds").axes[0]
    assert not [line for line in plain.lines if line.get_gid() == "break"]
    assert "0" not in [label.get_text() for label in plain.get_xticklabels()]


def test_groups_differ_in_marker_and_colour() -> None:
    figure = plot_pareto(POINTS, xlabel="multiply-adds", groups=GROUPS)
    looks = {
        (GROUPS[name], (line := lines(figure, f"method-{name}")[0]).get_marker(), line.get_color()) for name in POINTS
    }
    assert len(looks) == len({look[1] for look in looks}) == len({look[2] for look in looks}) == 3
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert {"supernet", "samples", "none"} <= {text.get_text() for text in legend.get_texts()}


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(80, 99)), min_size=1, max_size=15))
def test_names_never_touch(rows: list[tuple[int, int]]) -> None:
    """Fifteen methods, many of them at one place."""
    points = {f"a method no. {n}": ([cost], [share / 100]) for n, (cost, share) in enumerate(rows)}
    assert_legible(plot_pareto(points, xlabel="cost"))


def test_a_given_axes_and_the_callers_defaults() -> None:
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    assert plot_pareto({"one": ([3.0], [0.5])}, xlabel="seconds", ax=ax) is figure
    assert len(ax.texts) == 1


def test_in_words() -> None:
    words = pareto_in_words(POINTS, "multiply-adds of the search")
    assert words == (
        "Test accuracy against multiply-adds of the search for 5 methods: from 91.0 % (random cell) to 96.0 % "
        "(Firefly). On the Pareto front, from the cheapest on: random cell (0; 91.0 %), EnTranNAS (1G; 93.0 %), "
        "random search (2G; 94.0 %), Firefly (8G; 96.0 %). The 95 % intervals of 1 other reaches that of the best."
    )
    assert "interval" not in pareto_in_words({"one": ([1], [0.5]), "two": ([2], [0.6])}, "seconds")


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ({}, {}, "at least one method"),
        ({"a": ([1, 2], [0.5])}, {}, r"points\['a'\]: expected one cost and one accuracy a seed"),
        ({"a": ([], [])}, {}, "one cost and one accuracy"),
        ({"a": ([-1], [0.5])}, {}, "costs of 0 and above"),
        ({"a": ([1], [50.0])}, {}, "shares of 0..1"),
        ({"a": ([1], [float("nan")])}, {}, "shares of 0..1"),
        ({"a": ([float("inf")], [0.5])}, {}, "finite costs"),
        ({"a": ([1], [0.5]), "b": ([1], [0.5])}, {"groups": {"a": "x"}}, r"\['b'\] have none"),
        ({"darts": ([1], [0.5])}, {"reference": "dart"}, "darts"),
    ],
)
def test_refuses(points: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_pareto(points, xlabel="cost", **options)
