from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.plots import (
    plot_architecture_weights,
    plot_learning_curves,
    plot_vector_field,
)

History = Callable[..., list[Any]]


def test_one_panel_an_edge_and_one_line_an_operation(make_history: History) -> None:
    history = make_history()
    figure = plot_architecture_weights(history)
    panels = [ax for ax in figure.axes if ax.axison]
    assert len(panels) == len(DARTS_SPACE.edges)
    assert {len(ax.lines) for ax in panels} == {8}
    kept = {text.get_gid() for ax in panels for text in ax.texts}
    assert kept == {f"kept-{edge.source}-{edge.target}" for edge in history[-1].genotype.normal.edges}
    drawn = panels[0].lines[3].get_ydata()
    assert np.allclose(drawn, [float(report.coefficients["normal"][0, 3]) for report in history])
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["none", "max 3×3"]


def test_chosen_edges_and_small_spaces(make_history: History) -> None:
    figure = plot_architecture_weights(make_history(), "reduction", [(0, 2), (4, 5)])
    assert [ax.get_title() for ax in figure.axes] == ["$c_{k-2}$ → 2", "4 → 5"]
    space = Space(nodes=1, inputs=1, operations=("tanh", "relu"), kinds=("recurrent",), edges_per_node=1)
    figure = plot_architecture_weights(make_history(space, epochs=1), "recurrent", space=space)
    figure.savefig("/dev/null", format="png")


def test_a_history_that_does_not_fit_is_refused(make_history: History) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        plot_architecture_weights([])
    with pytest.raises(InvalidInput, match="Did you mean 'normal'"):
        plot_architecture_weights(make_history(), "normall")
    with pytest.raises(InvalidInput, match=r"expected coefficients of 5 edges × 8 operations, got shape \(14, 8\)"):
        plot_architecture_weights(make_history(), space=Space(nodes=2))
    with pytest.raises(InvalidInput, match=r"\(1, 0\) is not an edge"):
        plot_architecture_weights(make_history(), edges=[(1, 0)])


def test_learning_curves_show_mean_and_standard_error() -> None:
    figure = plot_learning_curves({"two seeds": [[1, 2], [3, 6]], "one seed": [[0, 1]]}, ylabel="accuracy")
    ax = figure.axes[0]
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == [2, 4]
    assert np.asarray(ax.lines[1].get_ydata()).tolist() == [0, 1]
    bands = [artist for artist in ax.collections if isinstance(artist, PolyCollection)]
    assert len(bands) == 1  # one seed has no band
    heights = sorted(set(np.asarray(bands[0].get_paths()[0].vertices)[:, 1].tolist()))
    assert heights == pytest.approx([1, 2, 3, 6])  # 2 ± √2/√2 and 4 ± 2√2/√2
    assert {text.get_text() for text in ax.texts} == {"two seeds", "one seed"}
    styles = {(str(line.get_linestyle()), line.get_marker(), line.get_color()) for line in ax.lines}
    assert len(styles) == 2 and len({marker for _, marker, _ in styles}) == 2


def test_the_names_of_close_curves_do_not_touch() -> None:
    figure = plot_learning_curves({f"method {n}": [[0, 1 + n / 1000]] for n in range(6)}, ylabel="accuracy")
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    # An annotation's extent holds its leader too; compare the text's own height around its place.
    places = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    height = figure.axes[0].get_window_extent(renderer).height
    letters = 8 / 72 * figure.dpi
    assert all((b - a) * height >= letters for a, b in itertools.pairwise(places))
    assert all(box.x1 <= figure.bbox.x1 + 0.5 for box in boxes)


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [[]]}, {"a": [[1], [1, 2]]}])
def test_ragged_or_missing_curves_are_refused(curves: dict[str, list[list[float]]]) -> None:
    with pytest.raises(InvalidInput):
        plot_learning_curves(curves, ylabel="loss")


def test_vector_field_draws_field_trajectories_and_landmarks() -> None:
    steps = np.stack([np.linspace(-1, 1, 7), np.linspace(0, 1, 7)], axis=1)
    figure = plot_vector_field(
        lambda x, y: (-x, -y), {"ξ = 0": steps, "ξ = 1": steps[::-1]}, x_range=(-2, 2), y_range=(-2, 2),
        curves={"w*(α)": steps}, landmarks={"optimum": (1, 1)},
    )  # fmt: skip
    ax = figure.axes[0]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["w*(α)", "ξ = 0", "ξ = 1"]
    assert [text.get_text() for text in ax.texts] == ["optimum"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α", "w")
    figure.savefig("/dev/null", format="png")


def test_vector_field_with_nothing_to_follow_and_no_slope() -> None:
    figure: Figure = plot_vector_field(lambda x, y: (0 * x, 0 * y), {}, x_range=(0, 1), y_range=(0, 1))
    figure.savefig("/dev/null", format="png")
    # The type checker of the tests refuses it before the function itself can.
    with pytest.raises((InvalidInput, TypeError), match=r"expected shape \(steps, 2\)|parameter 'trajectories'"):
        plot_vector_field(lambda x, y: (x, y), {"a": np.zeros(3)}, x_range=(0, 1), y_range=(0, 1))
