"""Drawings of recurrent cells: from the last state above to the new one below (growing DARTS, Fig. 1; Chapter 6).

A node's number stands in a ring. The bar in front of it is an edge, with its candidates as parts that are as wide as
their softmax weights; a derived cell has one operation there. In the Two-to-One cell every bar reads the input x too.
In the DARTS cell, edges that skip nodes run at the right, the longer the further out.

Places are computed once, in pixels from the upper left, for matplotlib here and for the film in
:mod:`nasbook.plots.cell_film`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from nasbook.errors import InvalidInput, unknown_name
from nasbook.genotypes import ZERO, CellGenotype, Genotype
from nasbook.plots.cells import figure_of, text_size
from nasbook.plots.palette import (
    FAINT,
    INK,
    OKABE_ITO,
    PAGE_WIDTH,
    OperationStyle,
    operation_copy,
    operation_label,
    operation_styles,
    styled,
    tint,
)
from nasbook.plots.svg import PIXELS

EdgeWeights: TypeAlias = Sequence[tuple[int, int, Mapping[str, float]]]
"""For every edge its source, its target and the weight of each candidate, as a growing search reports them."""
Point: TypeAlias = tuple[float, float]
Words: TypeAlias = tuple[tuple[str, str], ...]
"""A label in pieces, each with what stands below the line behind it: h with t−1, and so on."""

X: Words = (("x", "t"),)
STATE: Words = (("h", "t"),)
LAST_STATE: Words = (("h", "t−1"),)
BOTH: Words = (("[x", "t"), ("; h", "t−1"), ("]", ""))

NAME = 9.6
"""Type size of candidates' names in pixels."""
WIRE = "#6a6a6a"
"""Lines that carry no candidate of their own, or several."""
RADIUS, BAR = 9.5, 17.0
"""Radius of a node and height of a bar in pixels."""
PITCH, LEAST_PITCH = 55.0, 43.0
"""Pixels from a node to the next, and the least."""
_BOX = 20.0
"""Height of the boxes of inputs and output."""
_RAIL, _EDGE = 34.0, 8.0
"""Pixels for a rail at the left, and at the border."""
_WIDEST, _NARROWEST = 236.0, 10.0
"""Pixels of a bar at most and at least."""
LEAST_WIDTH = 205.0
"""Pixels for a cell at least; in a smaller place all of it is drawn smaller."""
_LETTERS = {
    "sigmoid": "σ", "tanh": "t", "relu": "r", "sum": "+", "product": "×", "identity": "i", ZERO: "0",
}  # fmt: skip
_LABELS = {"relu": "ReLU", ZERO: "zero"}
_BACKBONES = ("two-to-one", "darts", "highway")


def backbone_name(kind: str) -> str:
    """The backbone of a kind of cell: "darts" of "darts" and of "darts 2".

    Raises:
        InvalidInput: there is no such backbone.
    """
    name = kind.split(" ")[0]
    if name not in _BACKBONES:
        raise unknown_name("recurrent backbone", name, _BACKBONES)
    return name


def candidate_label(name: str) -> str:
    """A candidate's name for readers: "ReLU", "tanh₂", and "zero" for the zero operation."""
    operation, _ = operation_copy(name)
    label = operation_label(operation)
    return _LABELS.get(operation, label) + operation_label(name).removeprefix(label)


def candidate_letter(name: str) -> str:
    """What stands for a candidate where there is no room for its name; the second tanh is "t₂"."""
    operation, _ = operation_copy(name)
    return _LETTERS.get(operation, operation[:1]) + operation_label(name).removeprefix(operation_label(operation))


def pixels_wide(words: str, size: float = NAME) -> float:
    """Width of a label in pixels."""
    return text_size(words, size * 0.75)[0] * PIXELS if words else 0.0


def fitting_name(name: str, width: float) -> str:
    """The candidate's name, its letter or nothing, whatever fits into a part so wide."""
    label, letter = candidate_label(name), candidate_letter(name)
    if pixels_wide(label) + 6 <= width:
        return label
    return letter if pixels_wide(letter) + 2 <= width else ""


# --- what is drawn ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wiring:
    """A recurrent cell as figures read it."""

    backbone: str
    """two-to-one, darts or highway."""
    nodes: int
    """Number of nodes behind node 0."""
    edges: tuple[tuple[int, int, tuple[tuple[str, float], ...]], ...]
    """Source, target and the weight of every candidate."""
    output: tuple[int, ...]
    """The nodes that make the new state."""

    @property
    def needed(self) -> frozenset[int]:
        """The nodes that the new state depends on."""
        found = set(self.output)
        for node in range(self.nodes, 0, -1):
            if node in found:
                found.update(source for source, target, _ in self.edges if target == node)
        return frozenset(found)


def wiring(cell: CellGenotype | EdgeWeights, kind: str, output: Sequence[int] = ()) -> Wiring:
    """Reads a derived cell or the weights of a supernet's.

    Args:
        cell: what to draw.
        kind: its kind: the backbone's name, and a number behind it in a stack.
        output: the nodes that make the new state; the backbone's own by default.

    Raises:
        InvalidInput: there is no edge, an edge runs backwards, or an edge has no candidates.
    """
    backbone = backbone_name(kind)
    if isinstance(cell, CellGenotype):
        if cell.inputs != 1:
            raise InvalidInput(f"cell: a recurrent cell has 1 input node, this one has {cell.inputs}. See draw_cell.")
        chosen: dict[tuple[int, int], list[str]] = {}
        for edge in cell.edges:
            chosen.setdefault((edge.source, edge.target), []).append(edge.operation)
        listed = [(*pair, tuple((name, 1 / len(names)) for name in names)) for pair, names in chosen.items()]
        return Wiring(backbone, cell.nodes, tuple(listed), tuple(output) or cell.output)
    listed = [(int(source), int(target), _together(weights)) for source, target, weights in cell]
    if not listed:
        raise InvalidInput("cell: expected at least one edge (source, target, weights), got none.")
    for source, target, weights in listed:
        if not 0 <= source < target or not weights:
            raise InvalidInput(
                f"cell: expected edges to a later node with at least one candidate, got {source} → {target} with "
                f"{len(weights)} candidates."
            )
    nodes = max(target for _, target, _ in listed)
    own = tuple(range(1, nodes + 1)) if backbone == "highway" else (nodes,)
    return Wiring(backbone, nodes, tuple(listed), tuple(output) or own)


def _together(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """The candidates in their order, every copy behind its original."""
    order = list(dict.fromkeys(operation_copy(name)[0] for name in weights))
    found = sorted(weights.items(), key=lambda pair: (order.index(operation_copy(pair[0])[0]), operation_copy(pair[0])))
    return tuple((name, float(weight)) for name, weight in found)


Step: TypeAlias = tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class Line:
    """A line in steps as SVG writes them: M and L with a point, C with three."""

    steps: tuple[Step, ...]

    @staticmethod
    def through(*points: Point) -> Line:
        """A line of straight pieces."""
        (first, *others) = points
        return Line((("M", first), *(("L", point) for point in others)))

    @property
    def path(self) -> Path:
        """As matplotlib has it."""
        codes = {"M": [Path.MOVETO], "L": [Path.LINETO], "C": [Path.CURVE4] * 3}
        vertices = [point for _, numbers in self.steps for point in zip(numbers[::2], numbers[1::2], strict=True)]
        return Path(vertices, [code for letter, _ in self.steps for code in codes[letter]])


@dataclass(frozen=True)
class Arrow:
    """A line that ends in an arrowhead."""

    line: Line
    heading: Point
    """The direction of its tip, as a unit vector."""

    @property
    def head(self) -> tuple[Point, Point, Point]:
        """The tip and the two other corners of the arrowhead."""
        (x, y), (across, down) = self.line.steps[-1][1][-2:], self.heading
        back = (x - 6.5 * across, y - 6.5 * down)
        return (x, y), (back[0] - 3.4 * down, back[1] + 3.4 * across), (back[0] + 3.4 * down, back[1] - 3.4 * across)


@dataclass(frozen=True)
class Bar:
    """One edge: what leads to it, its candidates, what leads on."""

    x: float
    """Of its left end."""
    y: float
    """Of its middle."""
    width: float
    entry: Line
    exit: Arrow
    feed: Arrow | None
    """The line from x, in the Two-to-One cell."""


@dataclass(frozen=True)
class Box:
    """An input or the output."""

    name: str
    words: Words
    x: float
    """Of its middle."""
    y: float
    width: float


@dataclass(frozen=True)
class CellPlan:
    """Where everything of a cell stands, in pixels from the upper left."""

    height: float
    nodes: dict[int, Point]
    boxes: tuple[Box, ...]
    bars: tuple[Bar, ...]
    """One an edge, in the order of the wiring."""
    rails: tuple[Line, ...]
    arrows: tuple[Arrow, ...]


def words_wide(words: Words, size: float = 12.0) -> float:
    """Width of a label with subscripts in pixels."""
    return sum(pixels_wide(base, size) + pixels_wide(below, 0.72 * size) for base, below in words)


def plan_cell(cell: Wiring, width: float, *, pitch: float = PITCH, most_nodes: int = 0) -> CellPlan:
    """Places a cell's parts.

    Args:
        cell: what is drawn.
        width: pixels to draw in.
        pitch: pixels from a node to the next.
        most_nodes: the most nodes that another cell in the same place has, so that bars don't move.
    """
    chain = cell.backbone == "two-to-one"
    gathers = cell.output != (cell.nodes,)
    spans = [target - source for source, target, _ in cell.edges]
    if most_nodes and not chain:
        spans.append(most_nodes - (cell.backbone == "darts"))
    first, widest, gap = _columns(width, max(1, *spans), _RAIL if chain or gathers else 0.0)

    above = _EDGE + _BOX / 2
    start = above + (pitch - RADIUS if cell.backbone == "highway" else 0.0)
    nodes = {node: (first, start + pitch * node) for node in range(cell.nodes + 1)}
    size = {node: RADIUS if node or cell.backbone == "highway" else _BOX / 2 for node in nodes}
    rail = _EDGE + 13.0
    bars = []
    for source, target, candidates in cell.edges:
        x = first + (target - source - 1) * (widest + gap)
        wide = widest
        if len(candidates) == 1:  # its neighbours stand half a row higher and lower, so that a name may reach beyond
            room = min(2 * (widest + gap) - 6, 2 * (width - 1 - x), 2 * x - 2)
            if target - source > 1:  # a node may be at its left
                room = min(room, 2 * (x - first - RADIUS - 3))
            wide = min(room, pixels_wide(candidate_label(candidates[0][0])) + 18)
        middle = (nodes[source][1] + nodes[target][1]) / 2
        if target - source == 1:
            entry = Line.through((x, nodes[source][1] + size[source]), (x, middle - BAR / 2))
            leave = Arrow(Line.through((x, middle + BAR / 2), (x, nodes[target][1] - RADIUS)), (0.0, 1.0))
        else:
            entry, leave = _arc(nodes[source], nodes[target], x, middle, target - source, size[source])
        feed = Arrow(Line.through((rail, middle), (x - wide / 2, middle)), (1.0, 0.0)) if chain else None
        bars.append(Bar(x - wide / 2, middle, wide, entry, leave, feed))

    boxes, rails, arrows = _ends(cell, nodes, rail, above, gathers)
    if chain:
        rails.append(Line.through((rail, above + _BOX / 2), (rail, max(bar.y for bar in bars))))
    height = boxes[-1].y + _BOX / 2 + _EDGE
    return CellPlan(height, nodes, tuple(boxes), tuple(bars), tuple(rails), tuple(arrows))


def _columns(width: float, columns: int, left: float) -> tuple[float, float, float]:
    """The middle of the first column, the width of all bars, and the gap between two columns.

    Node 0's box has to fit into the first.
    """
    gap = 9.0 if columns < 4 else 5.0 if columns < 6 else 3.0
    box = words_wide(BOTH) / 2 + 5
    room = width - left - 2 * _EDGE - gap * (columns - 1)
    wide = room / columns
    if wide / 2 < box:
        wide = (room - box) / (columns - 0.5)
    wide = max(_NARROWEST, min(_WIDEST, wide))
    taken = max(wide / 2, box) + wide * (columns - 0.5) + gap * (columns - 1)
    return left + max(_EDGE, (width - left - taken) / 2) + max(wide / 2, box), wide, gap


def _arc(
    source: Point, target: Point, x: float, middle: float, span: int, size: float
) -> tuple[Line, Arrow]:
    """From a node to a bar at the right of it, and from there to a later node: lines that bend like quarters of an
    ellipse. Those of long edges leave and arrive nearer to the horizontal."""
    angle = math.radians(max(12.0, 68.0 - 14.0 * span))
    out = (source[0] + size * math.cos(angle), source[1] + size * math.sin(angle))
    back = (target[0] + (RADIUS + 0.5) * math.cos(angle), target[1] - RADIUS * math.sin(angle))
    high, low = middle - BAR / 2, middle + BAR / 2
    bend = 0.5523
    entry = Line((
        ("M", out),
        ("C", (out[0] + bend * (x - out[0]), out[1], x, high - bend * (high - out[1]), x, high)),
    ))  # fmt: skip
    leave = Line((
        ("M", (x, low)),
        ("C", (x, low + bend * (back[1] - low), back[0] + bend * (x - back[0]), back[1], *back)),
    ))  # fmt: skip
    return entry, Arrow(leave, (-1.0, 0.0))


def _ends(
    cell: Wiring, nodes: Mapping[int, Point], rail: float, above: float, gathers: bool
) -> tuple[list[Box], list[Line], list[Arrow]]:
    """The boxes of inputs and output with the lines between them and the nodes; the output comes last."""
    column, last = nodes[cell.nodes]
    rails: list[Line] = []
    arrows: list[Arrow] = []
    if cell.backbone == "two-to-one":
        boxes = [_box("x", X, rail, above), _box("last-state", LAST_STATE, column, above)]
    else:
        boxes = [_box("last-state", BOTH, column, above)]
    if cell.backbone == "highway":
        entry = Line.through((column, above + _BOX / 2), (column, nodes[0][1] - RADIUS))
        arrows.append(Arrow(entry, (0.0, 1.0)))
    below = last + (36.0 if not gathers else 34.0)
    words = (*STATE, (" = mean", "")) if cell.backbone == "highway" and len(cell.output) > 1 else STATE
    end = _box("state", words, column, below)
    if gathers:
        for node in cell.output:
            rails.append(Line.through((column - RADIUS, nodes[node][1]), (rail, nodes[node][1])))
        highest = min(nodes[node][1] for node in cell.output)
        arrows.append(
            Arrow(Line.through((rail, highest), (rail, below), (column - end.width / 2, below)), (1.0, 0.0))
        )
    else:
        arrows.append(Arrow(Line.through((column, last + RADIUS), (column, below - _BOX / 2)), (0.0, 1.0)))
    return [*boxes, end], rails, arrows


def _box(name: str, words: Words, x: float, y: float) -> Box:
    return Box(name, words, x, y, max(26.0, words_wide(words) + 10))


def bar_parts(weights: Sequence[tuple[str, float]], width: float) -> list[tuple[float, float]]:
    """Where every candidate's part begins in a bar so wide, and its width."""
    total = sum(weight for _, weight in weights) or 1.0
    starts = [0.0, *itertools.accumulate(width * weight / total for _, weight in weights)]
    return [(begin, end - begin) for begin, end in itertools.pairwise(starts)]


def wire_look(weights: Sequence[tuple[str, float]], styles: Mapping[str, OperationStyle]) -> tuple[str, float]:
    """Colour and width in pixels of an edge's lines: the operation's own where there is one, thin where it fades."""
    total = sum(weight for _, weight in weights) or 1.0
    kept = sum(weight for name, weight in weights if operation_copy(name)[0] != ZERO) / total
    colour = styles[weights[0][0]].colour if len(weights) == 1 else WIRE
    return colour, 0.5 + 1.2 * kept


# --- drawn with matplotlib --------------------------------------------------------------------------------------------


def _mathtext(words: Words) -> str:
    return "".join(
        f"{base[:-1]}${base[-1]}_{{{below.replace('−', '-')}}}$" if below else base for base, below in words
    )


def draw_plan(
    ax: Axes, cell: Wiring, plan: CellPlan, styles: Mapping[str, OperationStyle], scale: float, new: Sequence[int] = ()
) -> None:
    """Draws a planned cell in axes in pixels; ``scale`` is a pixel's size, ``new`` nodes get a bold ring."""
    unit = 0.75 * scale  # points
    needed = cell.needed
    for line in plan.rails:
        _draw_line(ax, line, WIRE, 1.1 * unit, 1.0)
    for arrow in plan.arrows:
        _draw_arrow(ax, arrow, WIRE, 1.1 * unit, 1.0)
    for (source, target, weights), bar in zip(cell.edges, plan.bars, strict=True):
        alpha = 1.0 if target in needed else 0.35
        colour, thick = wire_look(weights, styles)
        _draw_line(ax, bar.entry, colour, thick * unit, alpha)
        _draw_arrow(ax, bar.exit, colour, thick * unit, alpha)
        if bar.feed is not None:
            _draw_arrow(ax, bar.feed, WIRE, 1.1 * unit, alpha)
        _draw_bar(ax, weights, bar, styles, unit, alpha, f"edge-{source}-{target}")
    for node, (x, y) in plan.nodes.items():
        if node or cell.backbone == "highway":
            there = node in needed or node == 0
            ax.add_patch(
                Circle((x, y), RADIUS, facecolor="white", edgecolor=INK if there else FAINT, zorder=6,
                       linewidth=(2.4 if node in new else 1.2) * unit, linestyle="-" if there else ":")
            )  # fmt: skip
            ax.text(x, y, str(node), ha="center", va="center_baseline", fontsize=11 * unit, zorder=7,
                    color=INK if there else FAINT, gid=f"node-{node}")  # fmt: skip
    for box in plan.boxes:
        ax.add_patch(
            FancyBboxPatch((box.x - box.width / 2, box.y - _BOX / 2), box.width, _BOX, facecolor="#ececec",
                           edgecolor=INK, boxstyle="round,pad=0,rounding_size=5", linewidth=1.1 * unit, zorder=6)
        )  # fmt: skip
        ax.text(box.x, box.y, _mathtext(box.words), ha="center", va="center_baseline", fontsize=12 * unit, zorder=7,
                gid=f"box-{box.name}")  # fmt: skip


def _draw_line(ax: Axes, line: Line, colour: str, width: float, alpha: float) -> None:
    ax.add_patch(
        PathPatch(line.path, facecolor="none", edgecolor=colour, linewidth=width, alpha=alpha, zorder=2)
    )  # fmt: skip


def _draw_arrow(ax: Axes, arrow: Arrow, colour: str, width: float, alpha: float) -> None:
    _draw_line(ax, arrow.line, colour, width, alpha)
    ax.add_patch(Polygon(arrow.head, closed=True, facecolor=colour, edgecolor="none", alpha=alpha, zorder=3))


def _draw_bar(
    ax: Axes, weights: Sequence[tuple[str, float]], bar: Bar, styles: Mapping[str, OperationStyle], unit: float,
    alpha: float, gid: str,
) -> None:  # fmt: skip
    top = bar.y - BAR / 2
    ax.add_patch(Rectangle((bar.x - 2, top - 1), bar.width + 4, BAR + 2, facecolor="white", edgecolor="none", zorder=4))
    for (name, _), (start, wide) in zip(weights, bar_parts(weights, bar.width), strict=True):
        fill, edge = part_colours(name, styles[name])
        patch = Rectangle((bar.x + start, top), max(wide, 0.3), BAR, facecolor=fill, edgecolor=edge, alpha=alpha,
                          linewidth=0.9 * unit, zorder=5, gid=f"{gid}-{name}")  # fmt: skip
        ax.add_patch(patch)
        if words := fitting_name(name, wide):
            ax.text(bar.x + start + wide / 2, bar.y, words, ha="center", va="center_baseline", fontsize=NAME * unit,
                    alpha=max(alpha, 0.6), zorder=7, gid=f"name-{gid}-{name}")  # fmt: skip


def part_colours(name: str, style: OperationStyle) -> tuple[Any, str]:
    """Fill and outline of a candidate's part; the zero operation has no colour, a copy is paler than its original."""
    operation, number = operation_copy(name)
    if operation == ZERO:
        return "#ffffff", "#b4b4b4"
    full = 0.2 if style.colour == OKABE_ITO["black"] else 0.3
    return tint(style.colour, full if number == 1 else 0.5 * full), style.colour


def _as_cells(
    cell: Genotype | CellGenotype | EdgeWeights, kind: str | None, label: str
) -> list[tuple[str, Wiring]]:
    """The cells to draw with their titles."""
    if isinstance(cell, Genotype):
        kinds = cell.kinds if kind is None else (kind,)
        several = len(kinds) > 1
        return [(f"{label}: {name}" if label and several else label or name * several, wiring(cell[name], name))
                for name in kinds]  # fmt: skip
    if kind is None:
        raise InvalidInput(f"kind: expected the cell's backbone, one of {', '.join(_BACKBONES)}; got none.")
    return [(label, wiring(cell, kind))]


@styled
def draw_recurrent_cell(
    cell: Genotype | CellGenotype | EdgeWeights,
    kind: str | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
    operations: Sequence[str] = (),
) -> Figure:
    """Draws a recurrent cell: a derived one, or a supernet's with the weights of all candidates.

    A candidate's part is as wide as its weight, a letter stands for it where its name has no room (σ sigmoid, t tanh,
    r ReLU, + sum, × product, i identity, 0 the zero operation, which is white). A second tanh beside the first is
    "tanh₂". Nodes that the new state does without are pale.

    Args:
        cell: a genotype, or for every edge (source, target, weights of its candidates) as a growing search reports.
        kind: the kind of cell, which begins with the backbone's name; of a genotype all by default.
        ax: where to draw one cell; a new figure without it. Type shrinks when the axes are too small.
        title: shown above.
        operations: the names of the whole space, where unusual operations are to look alike in several figures.

    Raises:
        InvalidInput: the cell is not recurrent, has no such backbone, or is several while there is one place.
    """
    return _draw_cells(_as_cells(cell, kind, title), ax, operations)


@styled
def draw_recurrent_cells(
    cells: Mapping[str, Genotype | CellGenotype | EdgeWeights],
    kinds: Mapping[str, str] | None = None,
    *,
    operations: Sequence[str] = (),
) -> Figure:
    """Draws recurrent cells side by side, at most three in a row, as :func:`draw_recurrent_cell` does.

    Args:
        cells: what to draw, by title.
        kinds: by title, the kinds of cells that are no genotypes.
        operations: as there.
    """
    if not cells:
        raise InvalidInput("cells: expected at least one title with its cell, got none.")
    found = [pair for title, cell in cells.items() for pair in _as_cells(cell, (kinds or {}).get(title), title)]
    return _draw_cells(found, None, operations)


def all_styles(cells: Sequence[Wiring], operations: Sequence[str] = ()) -> dict[str, OperationStyle]:
    """A style for every candidate of some cells."""
    names = dict.fromkeys(name for cell in cells for _, _, weights in cell.edges for name, _ in weights)
    known = list(_LETTERS)

    def place(name: str) -> tuple[int, tuple[str, int]]:
        operation = operation_copy(name)
        return known.index(operation[0]) if operation[0] in known else len(known), operation

    return operation_styles([*operations, *sorted(names, key=place)])


def _draw_cells(cells: Sequence[tuple[str, Wiring]], ax: Axes | None, operations: Sequence[str]) -> Figure:
    styles = all_styles([cell for _, cell in cells], operations)
    if ax is not None:
        if len(cells) > 1:
            raise InvalidInput(f"ax: expected one cell for one place, got {len(cells)}. Give kind=… or leave ax out.")
        title, cell = cells[0]
        draw_cell_in(ax, cell, styles, title)
        return figure_of(ax)
    columns = min(3, len(cells))
    rows = [cells[place : place + columns] for place in range(0, len(cells), columns)]
    wide = min(312.0, PAGE_WIDTH * PIXELS / columns)
    plans = [[plan_cell(cell, wide) for _, cell in row] for row in rows]
    head = 22.0 if any(title for title, _ in cells) else 0.0
    total = sum(head + max(plan.height for plan in row) for row in plans)
    figure = Figure(figsize=(PAGE_WIDTH, total / PIXELS))
    top = 0.0
    for row, planned in zip(rows, plans, strict=True):
        left = (PAGE_WIDTH * PIXELS - wide * len(row)) / 2
        for number, ((title, cell), plan) in enumerate(zip(row, planned, strict=True)):
            panel = panel_in_pixels(figure, (left + number * wide, top + head, wide, plan.height), title)
            draw_plan(panel, cell, plan, styles, 1.0)
        top += head + max(plan.height for plan in planned)
    return figure


def panel_in_pixels(figure: Figure, place: tuple[float, float, float, float], title: str = "") -> Axes:
    """Axes for a cell with left, top, width and height in pixels; a pixel is their unit."""
    (left, top, wide, high), (width, height) = place, np.array(figure.get_size_inches()) * PIXELS
    ax = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))
    _prepare(ax, wide, high, title)
    return ax


def _prepare(ax: Axes, width: float, height: float, title: str) -> None:
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_aspect("equal")
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=9.5, pad=4)


def draw_cell_in(
    ax: Axes, cell: Wiring, styles: Mapping[str, OperationStyle], title: str = "", new: Sequence[int] = ()
) -> None:
    """Draws a cell into given axes; where they are too small for it, all is drawn smaller."""
    box = ax.get_position(original=True)
    wide, high = np.array(figure_of(ax).get_size_inches()) * PIXELS * (box.width, box.height)
    span = min(312.0, max(LEAST_WIDTH, float(wide)))
    plan = plan_cell(cell, span)
    scale = min(1.0, float(wide) / span, float(high) / plan.height)
    _prepare(ax, span, plan.height, title)
    draw_plan(ax, cell, plan, styles, scale, new)


# --- in words ---------------------------------------------------------------------------------------------------------


def recurrent_cell_in_words(cell: Genotype | CellGenotype | EdgeWeights, kind: str | None = None) -> str:
    """The cell as a sentence a node, for alt texts: "Node 2 is sum of x and node 1. The new state is node 3."

    Of several candidates the heaviest is named, with its weight.
    """
    found = _as_cells(cell, kind, "")
    return " ".join(f"{title}: {_in_words(one)}" if title else _in_words(one) for title, one in found)


def _in_words(cell: Wiring) -> str:
    first = {"two-to-one": "h(t−1)", "darts": "x and h(t−1)", "highway": "node 0"}[cell.backbone]
    sentences = ["Node 0 is a gated step from h(t−1) with x."] if cell.backbone == "highway" else []
    for node in range(1, cell.nodes + 1):
        terms = []
        for source, target, weights in cell.edges:
            if target != node:
                continue
            name = first if source == 0 else f"node {source}"
            name = f"x and {name}" if cell.backbone == "two-to-one" else name
            if len(weights) == 1:
                terms.append(f"{candidate_label(weights[0][0])} of {name}")
            else:
                best, weight = max(weights, key=lambda pair: pair[1])
                terms.append(f"{len(weights)} candidates on {name}, most weight on {candidate_label(best)} "
                             f"({weight:.2f})")  # fmt: skip
        joined = "; ".join(terms) if any(len(w) > 1 for _, t, w in cell.edges if t == node) else " plus ".join(terms)
        verb = "has" if any(len(w) > 1 for _, t, w in cell.edges if t == node) else "is"
        spare = "" if node in cell.needed else ", and leads nowhere"
        sentences.append(f"Node {node} {verb} {joined}{spare}." if terms else f"No edge enters node {node}.")
    nodes = [str(node) for node in cell.output]
    if len(nodes) == 1:
        sentences.append(f"The new state is node {nodes[0]}.")
    else:
        sentences.append(f"The new state is the mean of nodes {', '.join(nodes[:-1])} and {nodes[-1]}.")
    return " ".join(sentences)
