from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_OPERATIONS, DARTS_SPACE, DARTS_V2, CellGenotype, Edge, Genotype, Space
from nasbook.plots import (
    Film,
    animate_connections,
    describe,
    draw_connections,
    draw_search_network,
    explore_search,
    operation_label,
    show_animation,
)
from nasbook.plots.connection_film import _eventful

History = Callable[..., list[Any]]
SMALL = Space(("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=2)
ALT = 'Connections "go", <all> but a few.'
KINDS = ("normal", "normal", "reduction", "normal")


def connections(figure: Figure, panel: int = 0) -> dict[int, float]:
    """Line widths of the connections, by number."""
    lines = [patch for patch in figure.axes[panel].patches if str(patch.get_gid()).startswith("connection-")]
    return {int(str(line.get_gid()).split("-")[1]): line.get_linewidth() for line in lines}


def traces(figure: Figure) -> int:
    return sum(patch.get_gid() == "trace" for patch in figure.axes[0].patches)


def test_a_connection_is_as_wide_as_its_coefficient(make_sparse_history: History) -> None:
    for report in make_sparse_history():
        values = report.coefficients["normal"][:, 1:].flatten().tolist()
        figure = draw_connections(report)
        wanted = {number: max(0.4, 4 * value) for number, value in enumerate(values) if value > 0}
        assert connections(figure) == pytest.approx(wanted)
        edges = {(edge.source, edge.target) for edge in report.genotype.normal.edges}
        assert len(wanted) == len(report.genotype.normal.edges)
        assert traces(figure) == len(DARTS_SPACE.edges) - len(edges)
        ax = figure.axes[0]
        assert ax.get_title() == f"epoch {report.epoch}, normal cell: {len(wanted)} of 98 connections"
        skips = sum(edge.operation == "skip_connect" for edge in report.genotype.normal.edges)
        assert len(ax.lines) == len(wanted) - skips  # skip is a line without a marker
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == list(map(operation_label, DARTS_OPERATIONS[1:]))


def test_colour_and_marker_say_the_same(make_sparse_history: History) -> None:
    figure = draw_connections(make_sparse_history(epochs=2)[0])
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 6


def test_nodes_without_connections_are_faint(make_sparse_history: History) -> None:
    report = make_sparse_history(SMALL, 2)[0]
    coefficients = torch.zeros(5, 4)
    coefficients[0, 2] = 1.0
    report = dataclasses.replace(report, coefficients={"normal": coefficients})
    figure = draw_connections(report, space=SMALL)
    assert connections(figure) == {1: 4.0} and traces(figure) == 4
    shapes = [patch for patch in figure.axes[0].patches
              if isinstance(patch, (Circle, FancyBboxPatch)) and patch.get_linestyle() == ":"]  # fmt: skip
    assert len(shapes) == 1  # node 3; node 2 has its connection


def test_several_epochs_stand_one_above_the_other(make_sparse_history: History) -> None:
    history = make_sparse_history(SMALL, 9)
    figure = draw_connections([history[0], history[4], history[-1]], "reduction", space=SMALL)
    assert len(figure.axes) == 3
    counts = [len(report.genotype.reduction.edges) for report in (history[0], history[4], history[-1])]
    assert [len(connections(figure, panel)) for panel in range(3)] == counts
    assert counts[0] > counts[1] > counts[2]
    with pytest.raises(InvalidInput, match="ax and title are for one epoch; got 9 epochs"):
        draw_connections(history, space=SMALL, title="nine")
    given = Figure(figsize=(3.0, 2.0))
    assert draw_connections(history[0], space=SMALL, ax=given.subplots(), title="here") is given
    assert given.axes[0].get_title() == "here"


def test_what_is_no_sparse_search_is_refused(make_sparse_history: History) -> None:
    report = make_sparse_history(SMALL, 1)[0]
    for draw in (draw_connections, lambda report, **settings: animate_connections([report], **settings)):
        with pytest.raises(InvalidInput, match="expected coefficients of 14 edges × 8 operations"):
            draw(report)
        for wrong in (-0.1, float("nan")):
            coefficients = {kind: torch.full((5, 4), wrong) for kind in SMALL.kinds}
            with pytest.raises(InvalidInput, match=f"Epoch 1: expected coefficients of 0 and above.*got {wrong}"):
                draw(dataclasses.replace(report, coefficients=coefficients), space=SMALL)
    with pytest.raises(InvalidInput, match="Unknown kind of cell 'norm'"):
        draw_connections(report, "norm", space=SMALL)
    with pytest.raises(InvalidInput, match="history is empty"):
        animate_connections([])
    with pytest.raises(InvalidInput, match="frames"):
        animate_connections([report], space=SMALL, frames=0)


# --- the film ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Elements with a class, in order: their class, the number of the cell that they stand in, their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []
        self.cell, self.groups = -1, 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        kind = attributes.get("class")
        if kind == "cell":
            self.cell += 1
        if kind == "now":
            self.cell = -1  # below the cells
        if kind:
            self.found.append({"class": kind, "tag": tag, "cell": self.cell, **attributes})

    handle_startendtag = handle_starttag

    def of(self, kind: str, cell: int | None = None) -> list[dict[str, Any]]:
        return [found for found in self.found if found["class"] == kind and cell in (None, found["cell"])]


def test_the_film_says_every_epoch(make_sparse_history: History) -> None:
    history = make_sparse_history(epochs=8)
    film = animate_connections(history)
    assert isinstance(film, Film)
    assert film.frames == 9  # and the derived cells
    data = json.loads(film.data)
    assert data["headings"][:2] == ["epoch 1 of 8, τ = 5", "epoch 2 of 8, τ = 4.62"]
    assert data["headings"][8] == "The derived cells, after epoch 8"
    for number, kind in enumerate(("normal", "reduction")):
        counts = [len(report.genotype[kind].edges) for report in history]
        assert data["titles"][number] == [f"{kind} cell: {count} of 98 connections" for count in counts]
        kept = np.array(data["coefficients"][number])
        values = np.stack([report.coefficients[kind][:, 1:].flatten().numpy() for report in history])
        assert ((kept > 0) == (values > 0)).all()  # a small coefficient is not rounded to none
        assert np.abs(kept / 100 - values).max() <= 0.01
        heights = data["y"][number]
        assert all((b > a) == (m < n) for a, b, n, m in zip(heights, heights[1:], counts, counts[1:], strict=False))
    assert [len(members) for members in data["edges"]] == [7] * 14
    assert [len(edges) for edges in data["into"]] == [2, 3, 4, 5]
    assert data["x"] == sorted(data["x"])


def test_the_first_frame_needs_no_script(make_sparse_history: History) -> None:
    history = make_sparse_history(epochs=4)[2:]  # not with all connections
    elements = Elements(animate_connections(history).picture)
    for number, kind in enumerate(("normal", "reduction")):
        values = history[0].coefficients[kind][:, 1:].flatten().numpy()
        styles = [line["style"] for line in elements.of("line", number)]
        widths = [float(re.findall(r"stroke-width: ([\d.]+)", style)[0]) for style in styles]
        wanted = np.where(values > 0, np.maximum(0.4, 4 * values) * 96 / 72, 0)
        assert widths == pytest.approx(wanted, abs=0.051)
        shown = [mark.get("style") is None for mark in elements.of("mark", number)]
        assert shown == (values > 0).tolist()
        entered = (values.reshape(14, 7) > 0).any(1).tolist()
        assert [head.get("style") is None for head in elements.of("head", number)] == entered
        assert [trace.get("style") is None for trace in elements.of("trace", number)] == [not yes for yes in entered]
    (derived,) = elements.of("derived")
    assert derived["style"] == "display: none"
    assert str(derived["href"]).startswith("data:image/png;base64,")


def test_the_film_is_small_described_and_whole(make_sparse_history: History) -> None:
    film = animate_connections(make_sparse_history(epochs=50))
    shown = show_animation(film, ALT)
    assert film.frames == 51
    assert len(shown.data) < 200_000 and len(film.data) < 51 * 1_500
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", shown.data)
    for word in ("http:", "https:", "//", "url(", "@import", "<link", "fetch", "XMLHttp", "{alt}", "{key}"):
        assert word not in without_pictures, word
    assert shown.alt == ALT
    assert 'role="img" aria-label="Connections &quot;go&quot;, &lt;all&gt; but a few."' in shown.data
    renamed = describe(shown, "Other words.")
    assert 'aria-label="Other words."' in renamed.data and "&lt;all&gt;" not in renamed.data
    assert 'max="50"' in shown.data and "1 of 51" in shown.data
    assert shown == show_animation(animate_connections(make_sparse_history(epochs=50)), ALT)
    with pytest.raises(InvalidInput, match="alt"):
        show_animation(film, " ")
    names = set(re.findall(r'id="([^"]+)"', film.picture))
    used = set(re.findall(r'href="#([^"]+)"', film.picture))
    assert used <= names and len(names) == 98 + 4 + 7
    other = animate_connections(make_sparse_history(epochs=50, seed=1))
    assert names.isdisjoint(re.findall(r'id="([^"]+)"', other.picture))  # two films on a page


def test_one_kind_of_cell_and_no_temperature(make_history: History) -> None:
    film = animate_connections(make_history(SMALL, 3), ["reduction"], space=SMALL)
    data = json.loads(film.data)
    assert data["headings"] == ["epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3", "The derived cell, after epoch 3"]
    assert data["titles"] == [["reduction cell: 15 of 15 connections"] * 3]  # a softmax drops nothing
    assert len(Elements(film.picture).of("cell")) == len(Elements(film.picture).of("point")) == 1


def test_frames_are_closer_where_connections_are_dropped() -> None:
    counts = np.array([98.0] * 30 + [70.0, 50.0, 30.0, 20.0] + [10.0] * 30)
    places = _eventful(counts, 15)
    assert len(places) == 15 and places[0] == 0 and places[-1] == 63
    assert {30, 31, 32, 33, 34} <= set(places)
    assert _eventful(np.full(9, 5.0), 3) == [0, 4, 8]
    assert _eventful(np.full(1, 5.0), 3) == _eventful(counts, 1) == [0]
    assert _eventful(counts, 100) == list(range(64))


_STAGE = """
const elements = INPUT, film = FILM;
for (const element of elements) {
  element.style = {};
  element.setAttribute = function (name, value) { element[name] = value; };
  element.querySelectorAll = function (name) {
    return elements.filter(function (other) { return "." + other.class === name && other.cell === element.cell; });
  };
}
const player = { querySelectorAll: function (name) {
  return elements.filter(function (element) { return "." + element.class === name; }); } };
PAINT
const seen = FRAMES.map(function (frame) {
  paint(frame);
  return elements.map(function (e) {
    return { display: e.style.display || "", width: e.style.strokeWidth, text: e.textContent };
  });
});
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the film's script")
def test_the_script_shows_what_the_reports_say(make_sparse_history: History) -> None:
    history = make_sparse_history(epochs=6)
    film = animate_connections(history)
    elements = Elements(film.picture).found
    frames = [4, 0, 5, 6, 1]  # forth and back
    program = _STAGE.replace("INPUT", json.dumps(elements)).replace("FILM", film.data)
    program = program.replace("PAINT", film.paint).replace("FRAMES", json.dumps(frames))
    result = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    for frame, seen in zip(frames, json.loads(result.stdout), strict=True):
        report = history[min(frame, 5)]

        def of(name: str, cell: int | None = None, seen: list[dict[str, Any]] = seen) -> list[dict[str, Any]]:
            return [now for element, now in zip(elements, seen, strict=True)
                    if element["class"] == name and cell in (None, element["cell"])]  # fmt: skip

        (search,), (derived,) = of("search"), of("derived")
        assert (search["display"], derived["display"]) == (("none", "") if frame == 6 else ("", "none"))
        for number, kind in enumerate(("normal", "reduction")):
            values = report.coefficients[kind][:, 1:].flatten().numpy()
            widths = [float(now["width"]) for now in of("line", number)]
            assert widths == pytest.approx(np.where(values > 0, np.maximum(0.4, 4 * values), 0) * 96 / 72, abs=0.05)
            assert [not now["display"] for now in of("mark", number)] == (values > 0).tolist()
            entered = (values.reshape(14, 7) > 0).any(1).tolist()
            assert [not now["display"] for now in of("head", number)] == entered
            assert [bool(now["display"]) for now in of("trace", number)] == entered
            assert [not now["display"] for now in of("output", number)] == [True] * 4
            assert of("title", number)[0]["text"] == f"{kind} cell: {int((values > 0).sum())} of 98 connections"


def test_the_explorer_draws_connections_too(make_sparse_history: History) -> None:
    pytest.importorskip("ipywidgets")
    history = make_sparse_history(SMALL, 3)
    drawn = []

    def draw(report: Any, kind: str, *, space: Space) -> Figure:
        drawn.append((report.epoch, kind))
        return draw_connections(report, kind, space=space)

    box = explore_search(history, space=SMALL, draw=draw)
    box.children[0].children[0].value = 1
    assert drawn == [(3, "normal"), (1, "normal")]


# --- the network ------------------------------------------------------------------------------------------------------


def in_stack(figure: Figure, position: int) -> set[int]:
    """Numbers of the connections in the small drawing of a cell."""
    names = [str(patch.get_gid()) for ax in figure.axes for patch in ax.patches]
    return {int(name.split("-")[2]) for name in names if name.startswith(f"connection-{position}-")}


def words(figure: Figure) -> dict[str, str]:
    return {str(text.get_gid()): text.get_text() for ax in figure.axes for text in ax.texts if text.get_gid()}


def test_engine_cells_hold_all_and_transit_cells_what_is_derived() -> None:
    figure = draw_search_network(KINDS, {0, 2}, genotype=DARTS_V2)
    assert [len(in_stack(figure, position)) for position in range(4)] == [98, 8, 98, 8]
    choices = DARTS_SPACE.choices
    wanted = {
        DARTS_SPACE.edges.index((edge.source, edge.target)) * 7 + choices.index(edge.operation)
        for edge in DARTS_V2.normal.edges
    }
    assert in_stack(figure, 1) == in_stack(figure, 3) == wanted
    boxes = {str(p.get_gid()): p for ax in figure.axes for p in ax.patches if str(p.get_gid()).startswith("cell-")}
    assert [boxes[f"cell-{n}"].get_linestyle() != "-" for n in range(4)] == [kind == "reduction" for kind in KINDS]
    colours = [boxes[f"cell-{n}"].get_edgecolor() for n in range(4)]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    heights = [boxes[f"cell-{n}"].get_height() for n in range(4)]
    assert heights[0] == heights[1] > heights[2] == heights[3]
    found = words(figure)
    assert [found[f"role-{n}"] for n in range(4)] == ["Engine", "Transit", "Engine", "Transit"]
    assert [found[f"kind-{n}"] for n in range(4)] == list(KINDS)
    assert found["enlarged-0"] == "Engine-cell (normal): all 98 connections"
    assert found["enlarged-1"] == "Transit-cell (normal): 8 of 98 connections"
    figure.draw_without_rendering()
    for ax in figure.axes:
        for text in ax.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()
    large = [len(lines) for ax in figure.axes
             if (lines := [p for p in ax.patches if re.fullmatch(r"connection-\d+", str(p.get_gid()))])]  # fmt: skip
    assert large == [98, 8]
    assert all(isinstance(patch, PathPatch) for ax in figure.axes for patch in ax.patches
               if str(patch.get_gid()).startswith("connection-"))  # fmt: skip


def test_networks_of_one_sort_of_cells_and_deep_ones() -> None:
    only = draw_search_network(KINDS, range(4), genotype=DARTS_V2)
    assert [name for name in words(only) if name.startswith("enlarged")] == ["enlarged-0"]
    none = draw_search_network(KINDS, (), genotype=DARTS_V2)
    assert words(none)["enlarged-0"].startswith("Transit-cell")
    last = draw_search_network(KINDS, (2,), genotype=DARTS_V2)  # no other reduction cell
    assert words(last)["enlarged-2"].startswith("Engine-cell (reduction)")
    assert words(last)["enlarged-0"].startswith("Transit-cell (normal)")
    deep = words(draw_search_network(["normal", "reduction"] * 10, (0,), genotype=DARTS_V2))
    assert [deep[name] for name in ("role-0", "role-1", "kind-0", "kind-1")] == ["E", "T", "N", "R"]


def test_networks_that_do_not_match_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one cell"):
        draw_search_network((), (), genotype=DARTS_V2)
    with pytest.raises(InvalidInput, match="expected positions from 0 to 3, got 4"):
        draw_search_network(KINDS, (4,), genotype=DARTS_V2)
    with pytest.raises(InvalidInput, match="Unknown kind of cell 'recurrent'"):
        draw_search_network(("recurrent",), (), genotype=DARTS_V2)
    foreign = Genotype({"normal": CellGenotype((Edge(0, 2, "tanh"),))})
    with pytest.raises(InvalidInput, match="the normal cell has 'tanh' from node 0 to 2, and the space does not"):
        draw_search_network(("normal",), (), genotype=foreign)
