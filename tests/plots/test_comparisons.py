from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from nasbook.errors import InvalidInput
from nasbook.plots import plot_matrix, plot_points

WORDS = {"xlabel": "layers in the evaluation", "ylabel": "layers in the search", "label": "test accuracy, %"}


def named(figure: Figure) -> dict[str, str]:
    """The texts inside of the axes that have a name."""
    return {str(text.get_gid()): text.get_text() for text in figure.axes[0].texts if text.get_gid()}


def assert_on_the_page(figure: Figure) -> None:
    """All words stand on the page, and no two of them touch."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    ax = figure.axes[0]
    texts: list[Text] = [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
    texts += [*ax.get_xticklabels(), *ax.get_yticklabels()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    for name, box in boxes:
        assert box.x0 >= -0.5 and box.x1 <= figure.bbox.x1 + 0.5, name
        assert box.y0 >= -0.5 and box.y1 <= figure.bbox.y1 + 0.5, name
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 0.5
        assert apart, (first, second)


def test_a_matrix_shows_mean_error_and_diagonal() -> None:
    values = [[[1, 2, 3], [4, 5, 6]], [[3, 2, 5], [8, float("nan"), float("nan")]],
              [[5, 2, float("nan")], [6, 8, float("nan")]]]  # fmt: skip
    values[0][1][2] = float("nan")
    figure = plot_matrix(values, ["4", "8"], ["2", "4", "8"], **WORDS)
    assert named(figure) == {
        "cell-0-0": "3.0\n± 1.2",  # standard deviation 2, over √3
        "cell-0-1": "2.0\n± 0.0", "cell-0-2": "4.0\n± 1.0", "cell-1-0": "6.0\n± 1.2",
        "cell-1-1": "6.5\n± 1.5", "cell-1-2": "–",
    }  # fmt: skip
    ax = figure.axes[0]
    assert {patch.get_gid() for patch in ax.patches} == {"diagonal-0-1", "diagonal-1-2"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["4", "8"]
    assert ax.get_ylim() == (2, 0)  # from top to bottom


def test_the_shades_are_those_of_the_numbers_and_differ_in_grey() -> None:
    values = np.arange(6.0).reshape(1, 2, 3)
    figure = plot_matrix(values, ["a", "b"], ["c", "d", "e"], **WORDS)
    assert not figure.axes[0].patches  # nothing has the same name
    (mesh,) = [artist for artist in figure.axes[0].collections if isinstance(artist, QuadMesh)]
    figure.draw_without_rendering()
    grey = np.asarray(mesh.get_facecolor())[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) < -0.05).all()  # darker and darker
    assert grey.min() > 0.5  # ink stays legible
    assert named(figure)["cell-1-2"] == "5.0"  # one seed has no error
    assert "one seed" in {text.get_text() for text in figure.axes[0].texts}
    (wider,) = plot_matrix(values, ["a", "b"], ["c", "d", "e"], limits=(-5, 10), **WORDS).axes[0].collections
    assert wider.get_clim() == (-5, 10)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(["4", "8", "12", "16"], ["4", "8", "12", "16"]), (["2", "4"], ["2", "4"]), (["4"], ["4"]),
     (["DARTS on as many nodes as the stretchable cell has", "MiLeNAS-SC"], ["4", "8", "12", "16", "20", "24"])],
)  # fmt: skip
def test_a_matrix_has_room_for_its_words(rows: Sequence[str], columns: Sequence[str]) -> None:
    values = 90 + torch.rand(3, len(rows), len(columns), generator=torch.Generator().manual_seed(0))
    figure = plot_matrix(values, rows, columns, digits=2, **WORDS)
    assert figure.get_figwidth() == 6.5
    assert_on_the_page(figure)


@pytest.mark.parametrize(
    ("values", "message"),
    [([[1.0, 2.0]], r"expected seeds × 1 rows × 2 columns, got shape \(1, 2\)"), ([], "got shape"),
     ([[[1.0, 2.0], [1.0, 2.0]]], r"got shape \(1, 2, 2\)"), ([[[float("nan")] * 2]], "only nan"),
     ([[[float("inf"), 1.0]]], "finite numbers")],
)  # fmt: skip
def test_a_matrix_of_another_shape_is_refused(values: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plot_matrix(values, ["a"], ["b", "c"], **WORDS)


GROUPS = {
    "DARTS": [5.0, 6.0, 7.0],
    "DARTS with pairs of output edges instead of input edges": np.array([4.0, 5.0]),
    "random operations on the learned topology": torch.tensor([6.5, 6.5, 6.5]),
    "one seed": [4.0],
}


def test_every_seed_is_a_ring_beside_its_mean() -> None:
    figure = plot_points(GROUPS, xlabel="test error, %", digits=2)
    ax = figure.axes[0]
    assert list(named(figure)) == [f"mean-{row}" for row in range(4)]
    assert list(named(figure).values()) == ["6.00 ± 0.58", "4.50 ± 0.50", "6.50 ± 0.00", "4.00"]
    seeds = {str(line.get_gid()): line for line in ax.lines if str(line.get_gid()).startswith("seeds-")}
    for row, values in enumerate(GROUPS.values()):
        assert np.asarray(seeds[f"seeds-{row}"].get_xdata()).tolist() == [float(value) for value in values]
    assert len(set(np.asarray(seeds["seeds-2"].get_ydata()).tolist())) == 3  # equal numbers stay visible
    bars = [container for container in ax.containers if hasattr(container, "has_xerr")]
    assert [bar.has_xerr for bar in bars] == [True, True, True, False]
    segment = bars[0].lines[2][0].get_segments()[0]
    assert segment[:, 0].tolist() == pytest.approx([6 - 1 / np.sqrt(3), 6 + 1 / np.sqrt(3)])
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines if line.get_marker() not in ("o", "|", "None")}
    assert len(looks) >= 3


def test_long_labels_of_groups_wrap() -> None:
    figure = plot_points({**GROUPS, "Donaudampfschifffahrtsgesellschaft": [5.0]}, xlabel="test error, %")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.replace("\n", " ") for label in labels[:4]] == list(GROUPS)
    assert "\n" in labels[1] and "\n" not in labels[0] and "\n" not in labels[4]
    assert_on_the_page(figure)


def test_points_go_into_given_axes() -> None:
    figure = Figure(figsize=(6.5, 3.0), layout="constrained")
    assert plot_points(GROUPS, xlabel="error", ax=figure.subplots(1, 2)[0]) is figure


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": [1.0, float("nan")]}, {"a": [[1.0]]}])
def test_groups_without_numbers_are_refused(groups: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="groups"):
        plot_points(groups, xlabel="error")
