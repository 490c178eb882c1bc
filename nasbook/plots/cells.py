"""Drawings of discrete cells: every operation named, on any machine that has matplotlib.

Node numbers are the genotype's: the inputs come first (0 and 1 in DARTS), so the first intermediate
node of a DARTS cell is 2.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import TextToPath

from nasbook.genotypes import CELL_SECTIONS, CellGenotype, Genotype
from nasbook.plots.layout import (
    INPUT_WIDTH,
    NODE,
    OUTPUT_WIDTH,
    PORT_TRACK,
    DagLayout,
    Point,
    bundles,
    dag_layout,
    port_room,
)
from nasbook.plots.palette import (
    FAINT,
    INK,
    PAGE_WIDTH,
    OperationStyle,
    operation_label,
    operation_styles,
    styled,
    wrap_label,
)

_SECTIONS = dict(
    zip(
        CELL_SECTIONS,
        ("before the first reduction", "the first reduction", "between the reductions", "the second reduction",
         "after the second reduction"),
        strict=True,
    )
)  # fmt: skip
"""Where the cells of a genotype with five kinds stand."""
_MARGIN = 0.06
_FONT = "DejaVu Sans"


@functools.cache
def text_size(text: str, points: float) -> tuple[float, float]:
    """Width and height of a label in inches."""
    lines = text.split("\n")
    measure = TextToPath()
    font = FontProperties(family=_FONT, size=points)
    width = max(measure.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines)
    return width / 72, 1.22 * points * len(lines) / 72


def pill_size(text: str, points: float) -> tuple[float, float]:
    """Width and height in inches of the box around a label."""
    width, height = text_size(text, points)
    return width + 0.12, height + 0.045


@dataclasses.dataclass(frozen=True)
class _Lettering:
    """How the labels of a cell are set."""

    points: float
    """Type size."""
    lines: int = 1
    """Most lines of a label."""
    upright: bool = False
    """Whether labels run upwards, for cells so deep that they don't fit otherwise."""
    gap: float = 0.15
    """The least room between two columns, in inches, at which this will do."""

    def size(self, label: str) -> tuple[float, float]:
        wide, high = pill_size(wrap_label(label, self.lines), self.points)
        return (high, wide) if self.upright else (wide, high)


_LETTERINGS = (
    _Lettering(8.5),
    _Lettering(8.0),
    _Lettering(8.0, lines=2),
    _Lettering(7.2, lines=2, gap=0.13),
    _Lettering(7.0, lines=3, gap=0.13),
    _Lettering(8.0, upright=True, gap=0.07),
    _Lettering(7.0, upright=True, gap=0.04),
    _Lettering(5.0, lines=4, gap=0.04),
)


@functools.lru_cache(maxsize=64)
def _fit(cell: CellGenotype, width: float, operation_labels: bool) -> tuple[DagLayout, _Lettering]:
    """The layout with the best legible lettering that has room in this width."""
    edges = [(edge.source, edge.target) for edge in cell.edges]
    names = [operation_label(edge.operation) for edge in cell.edges]
    tried = []
    for lettering in _LETTERINGS:
        layout = dag_layout(
            edges, nodes=cell.nodes, inputs=cell.inputs, output=cell.output, width=width,
            labels=[lettering.size(name) for name in names] if operation_labels else None,
        )  # fmt: skip
        tried.append((layout, lettering))
        if layout.smallest_gap >= lettering.gap or not operation_labels:
            return tried[-1]
    return max(tried, key=lambda entry: entry[0].smallest_gap)


def curve(points: Sequence[Point], start: float = 0.0, end: float = 0.0) -> Path:
    """A smooth path that is level at every point and ends ``start`` and ``end`` inches short of its ends."""
    places = [(points[0][0] + start, points[0][1]), *points[1:-1], (points[-1][0] - end, points[-1][1])]
    vertices, codes = [places[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        if y0 == y1:
            vertices.append((x1, y1))
            codes.append(Path.LINETO)
        else:
            middle = (x0 + x1) / 2
            vertices += [(middle, y0), (middle, y1), (x1, y1)]
            codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def ports(
    routes: Sequence[Sequence[tuple[Point, ...]]], at: int, height: float = NODE
) -> list[tuple[float, float, float]]:
    """Where on a node each of the bundles that meet there starts or ends: how far in, how high, and how far apart its
    lines are, as a part of :data:`PORT_TRACK`.

    ``at`` is 0 for bundles that leave the node and -1 for those that enter it. They fan out in the order in which
    they go on, so that they don't cross at the node. A node that is taller than wide is round above and below.
    """
    beyond = 1 if at == 0 else -2
    middles = [sum(route[beyond][1] for route in bundle) / len(bundle) for bundle in routes]
    order = sorted(range(len(routes)), key=lambda n: (middles[n], n))
    radius, straight = NODE / 2, (height - NODE) / 2
    found = [(0.0, 0.0, 1.0)] * len(routes)
    dense = 1.0
    if straight and routes:
        rooms = [port_room(len(routes[number])) for number in order]
        dense = min(1.0, height / sum(rooms))
        rooms = [room * dense for room in rooms]
        tops = itertools.accumulate(rooms)
        heights = [top - (room + sum(rooms)) / 2 for top, room in zip(tops, rooms, strict=True)]
    else:
        step = min(0.1, 1.3 * radius / max(1, len(routes) - 1))
        heights = [(place - (len(routes) - 1) / 2) * step for place in range(len(routes))]
    for number, y in zip(order, heights, strict=True):
        found[number] = (float(np.sqrt(max(radius**2 - max(abs(y) - straight, 0.0) ** 2, 0.0))), y, dense)
    return found


def edge_paths(
    layout: DagLayout, edges: Sequence[tuple[int, int]], inputs: int
) -> tuple[list[Path], list[Path]]:
    """The path of every edge, and of every line into the output, from the rim of one node to the rim of the next."""
    routes = [list(route) for route in (*layout.routes, *layout.output_routes.values())]
    together = bundles(edges)
    # A line into the output is a bundle of one; it comes from a node and enters none.
    ends = [*together, *((node, None) for node in layout.output_routes)]
    members = [*together.values(), *([len(edges) + place] for place in range(len(layout.output_routes)))]
    starts = [OUTPUT_WIDTH / 2] * len(routes)
    stops = [OUTPUT_WIDTH / 2] * len(routes)
    for node in layout.nodes:
        for places, at in ((starts, 0), (stops, -1)):
            here = [group for group, pair in zip(members, ends, strict=True) if pair[at] == node]
            meeting = [[tuple(routes[number]) for number in group] for group in here]
            found = ports(meeting, at, layout.node_heights.get(node, NODE))
            for group, (inside, height, dense) in zip(here, found, strict=True):
                for place, number in enumerate(group):
                    x, y = routes[number][at]
                    beside = ((len(group) - 1) / 2 - place) * PORT_TRACK * dense
                    routes[number][at] = (x, y + height + beside)
                    places[number] = INPUT_WIDTH / 2 if node < inputs else inside
    paths = [curve(route, start, end) for route, start, end in zip(routes, starts, stops, strict=True)]
    return paths[: len(edges)], paths[len(edges) :]


def draw_pill(
    ax: Axes,
    place: Point,
    text: str,
    style: OperationStyle,
    points: float,
    *,
    scale: float = 1.0,
    upright: bool = False,
) -> Text:
    """An operation's name in a rounded box of its colour, over the edge that it stands on."""
    (x, y), (wide, high) = place, pill_size(text, points)
    rounding = min(0.08, high / 2)
    if upright:
        wide, high = high, wide
    ax.add_patch(
        FancyBboxPatch((x - wide / 2, y - high / 2), wide, high, facecolor=style.tint, edgecolor=style.colour,
                       boxstyle=f"round,pad=0,rounding_size={rounding:.3f}", linewidth=0.9 * scale, zorder=6)
    )  # fmt: skip
    return ax.text(x, y - 0.004, text, ha="center", va="center", fontsize=points * scale, zorder=7, linespacing=1.05,
                   rotation=90 if upright else 0)  # fmt: skip


def _draw_arrowhead(ax: Axes, path: Path, colour: str, alpha: float, size: float, zorder: float) -> None:
    x, y = np.asarray(path.vertices, dtype=float)[-1]
    ax.add_patch(
        Polygon(
            [(x, y), (x - size, y + size / 2), (x - size, y - size / 2)],
            closed=True, facecolor=colour, edgecolor="none", alpha=alpha, zorder=zorder,
        )
    )  # fmt: skip


def _draw_line(
    ax: Axes, path: Path, style: OperationStyle, line_width: float, alpha: float, zorder: float, short: float
) -> PathPatch:
    """A path that ends ``short`` inches before its end: a thick line must not outrun the tip of its arrowhead."""
    vertices = np.array(path.vertices, dtype=float)
    vertices[-1, 0] -= short
    line = PathPatch(
        Path(vertices, path.codes), facecolor="none", edgecolor=style.colour, linestyle=style.dashes,
        linewidth=line_width, alpha=alpha, capstyle="butt", zorder=zorder,
    )  # fmt: skip
    ax.add_patch(line)
    return line


def draw_edge(
    ax: Axes, path: Path, style: OperationStyle, *, line_width: float = 1.5, alpha: float = 1.0, zorder: float = 2
) -> PathPatch:
    """One edge with its arrowhead, in the operation's colour and line style; returns its line."""
    size = 0.075 + 0.014 * line_width
    line = _draw_line(ax, path, style, line_width, alpha, zorder, size * 0.8)
    _draw_arrowhead(ax, path, style.colour, alpha, size, zorder)
    return line


def draw_bundle(
    ax: Axes, paths: Sequence[Path], styles: Sequence[OperationStyle], line_widths: Sequence[float]
) -> list[PathPatch]:
    """Several operations between the same two nodes: a line each, and one arrowhead for all; returns the lines."""
    if len(paths) == 1:
        return [draw_edge(ax, paths[0], styles[0], line_width=line_widths[0])]
    lines = [
        _draw_line(ax, path, style, width, 1.0, 2, 0.09)
        for path, style, width in zip(paths, styles, line_widths, strict=True)
    ]
    size = 0.075 + 0.014 * sum(line_widths)
    x, y = np.mean([np.asarray(path.vertices, dtype=float)[-1] for path in paths], axis=0)
    ax.add_patch(
        Polygon([(x, y), (x - 0.1, y + size / 2), (x - 0.1, y - size / 2)], closed=True, facecolor=INK,
                edgecolor="none", zorder=2)
    )  # fmt: skip
    return lines


def input_names(inputs: int) -> list[str]:
    """How the inputs of a cell are called in drawings: the cells that they come from."""
    return [f"$c_{{k-{inputs - number}}}$" for number in range(inputs)]


def draw_nodes(
    ax: Axes, layout: DagLayout, lines: Iterable[Path], *, inputs: int, removed: Iterable[int] = (), scale: float = 1.0
) -> None:
    """The inputs, the intermediate nodes, the output bar and ``lines`` into it."""
    for path in lines:
        ax.add_patch(PathPatch(path, facecolor="none", edgecolor="#b4b4b4", linewidth=0.9 * scale, zorder=1))
    names = input_names(inputs)
    removed = set(removed)
    for node, (x, y) in layout.nodes.items():
        tall = layout.node_heights.get(node, NODE)
        if node < inputs:
            ax.add_patch(
                FancyBboxPatch((x - INPUT_WIDTH / 2, y - tall / 2), INPUT_WIDTH, tall, linewidth=1.0 * scale,
                               boxstyle="round,pad=0,rounding_size=0.06", facecolor="#ececec", edgecolor=INK, zorder=4)
            )  # fmt: skip
            ax.text(x, y, names[node], ha="center", va="center", fontsize=9 * scale, zorder=5, gid=f"node-{node}")
        else:
            gone = node in removed
            look: dict[str, Any] = {
                "facecolor": "white", "edgecolor": FAINT if gone else INK, "zorder": 4,
                "linestyle": ":" if gone else "-", "linewidth": 1.1 * scale,
            }  # fmt: skip
            ax.add_patch(
                Circle((x, y), NODE / 2, **look) if tall == NODE else
                FancyBboxPatch((x - NODE / 2, y - tall / 2), NODE, tall,
                               boxstyle=f"round,pad=0,rounding_size={NODE / 2}", **look)
            )  # fmt: skip
            ax.text(x, y - 0.004, str(node), ha="center", va="center", fontsize=9 * scale, zorder=5,
                    color=FAINT if gone else INK, gid=f"node-{node}")  # fmt: skip
    x, y = layout.output
    ax.add_patch(
        FancyBboxPatch((x - OUTPUT_WIDTH / 2, y - layout.output_height / 2), OUTPUT_WIDTH, layout.output_height,
                       boxstyle="round,pad=0,rounding_size=0.06", facecolor="#ececec", edgecolor=INK,
                       linewidth=1.0 * scale, zorder=4)
    )  # fmt: skip
    ax.text(x, y, "$c_k$", ha="center", va="center", fontsize=9 * scale, zorder=5, gid="output")


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes stand in, also when they stand in a part of it."""
    return ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure


def cell_axes(layout_size: tuple[float, float], ax: Axes | None, title: str | None) -> tuple[Axes, float]:
    """Axes in which one unit is one inch of the layout, and the scale of its type (1 unless they are too small)."""
    width, height = layout_size[0] + 2 * _MARGIN, layout_size[1] + 2 * _MARGIN
    if ax is None:
        top = 0.26 if title else 0.0
        figure = Figure(figsize=(PAGE_WIDTH, height + top))
        ax = figure.add_axes((0.0, 0.0, 1.0, height / (height + top)))
    box = ax.get_position(original=True)  # not what an earlier drawing made of it
    parent = figure_of(ax)
    full_width, full_height = parent.get_size_inches()
    scale = min(1.0, box.width * full_width / width, box.height * full_height / height)
    ax.set_xlim(-_MARGIN, width - _MARGIN)
    ax.set_ylim(-_MARGIN, height - _MARGIN)
    ax.set_aspect("equal")
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=10, pad=5)
    return ax, scale


@styled
def draw_cell(
    cell: CellGenotype | Genotype,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    operation_labels: bool = True,
    operations: Sequence[str] = (),
) -> Figure:
    """Draws a discrete cell from left to right, as wide as the page.

    Inputs are ``c_{k-2}`` and ``c_{k-1}``, the output ``c_k`` gathers the nodes that are concatenated. A
    node that no edge enters is drawn faint. Several operations between the same two nodes run side by side, with one
    arrowhead and their names above each other.

    Args:
        cell: what to draw; of a whole genotype all cells are drawn, as :func:`draw_genotype` does.
        ax: where to draw; a new figure without it. Type shrinks when the axes are too small for the cell.
        title: shown above.
        operation_labels: write each operation's name on its edge; without it, colour and line style say it.
        operations: the names of the whole space, where unusual operations are to look alike in several figures.
    """
    if isinstance(cell, Genotype):
        return draw_genotype(cell, operations=operations)
    width = PAGE_WIDTH - 2 * _MARGIN
    layout, lettering = _fit(cell, width, operation_labels)
    ax, scale = cell_axes((width, layout.height), ax, title)
    shift = (width - layout.width) / 2  # a shallow cell does not fill the page: centre it
    left, right = ax.get_xlim()
    ax.set_xlim(left - shift, right - shift)

    known = operation_styles([*operations, *sorted({edge.operation for edge in cell.edges})])
    connected = set(cell.connected())
    pairs = [(edge.source, edge.target) for edge in cell.edges]
    paths, lines = edge_paths(layout, pairs, cell.inputs)
    draw_nodes(
        ax, layout, lines, inputs=cell.inputs, scale=scale,
        removed=[n for n in range(cell.inputs, cell.inputs + cell.nodes) if n not in connected],
    )  # fmt: skip
    styles = [known[edge.operation] for edge in cell.edges]
    if operation_labels:  # the label says what a line style would, and short dashes only disturb
        styles = [dataclasses.replace(style, dashes="-") for style in styles]
    for members in bundles(pairs).values():
        widths = [1.5 * scale] * len(members)
        for number, line in zip(
            members, draw_bundle(ax, [paths[n] for n in members], [styles[n] for n in members], widths), strict=True
        ):
            line.set_gid(f"edge-{number}")
    for number, edge in enumerate(cell.edges if operation_labels else ()):
        text = wrap_label(operation_label(edge.operation), lettering.lines)
        label = draw_pill(
            ax, layout.labels[number], text, styles[number], lettering.points, scale=scale, upright=lettering.upright
        )
        label.set_gid(f"operation-{number}")
    return figure_of(ax)


def kind_in_words(kind: str) -> str:
    """A kind of cell as a title: "normal cell", or "cell 2: the first reduction"."""
    return f"{kind}: {_SECTIONS[kind]}" if kind in _SECTIONS else f"{kind} cell"


@styled
def draw_genotype(genotype: Genotype, *, operations: Sequence[str] = ()) -> Figure:
    """Draws every cell of a genotype, one below the other, each under the name of its kind.

    Args:
        genotype: what to draw.
        operations: the names of the whole space, where unusual operations are to look alike in several figures.
    """
    operations = [*operations, *sorted(set(genotype.operations()))]
    width = PAGE_WIDTH - 2 * _MARGIN
    heights = [_fit(cell, width, True)[0].height + 2 * _MARGIN for _, cell in genotype.cells]
    title, between = 0.28, 0.12
    total = sum(heights) + len(heights) * title + (len(heights) - 1) * between
    figure = Figure(figsize=(PAGE_WIDTH, total))
    top = total
    for (kind, cell), height in zip(genotype.cells, heights, strict=True):
        top -= title + height
        ax = figure.add_axes((0.0, top / total, 1.0, height / total))
        draw_cell(cell, ax=ax, title=kind_in_words(kind), operations=operations)
        top -= between
    return figure


def _listed(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}"


def cell_in_words(cell: CellGenotype) -> str:
    """The cell as a sentence a node, for alt texts: "Node 2 adds sep 3×3 of c(k-2) and skip of c(k-1).".

    Operations between the same two nodes share the name of their source: "Node 2 adds sep 3×3 and skip of c(k-2);
    skip of c(k-1).".
    """

    def name(node: int) -> str:
        return f"c(k-{cell.inputs - node})" if node < cell.inputs else f"node {node}"

    sentences = []
    connected = cell.connected()
    for node in connected:
        edges = cell.into(node)
        groups: dict[int, list[str]] = {}
        for edge in edges:
            groups.setdefault(edge.source, []).append(operation_label(edge.operation))
        terms = [f"{_listed(operations)} of {name(source)}" for source, operations in groups.items()]
        verb = "adds" if len(edges) > 1 else "is"
        # A list of lists needs a second sign between its parts.
        joined = _listed(terms) if len(terms) == len(edges) else "; ".join(terms)
        sentences.append(f"Node {node} {verb} {joined}.")
    removed = [str(node) for node in range(cell.inputs, cell.inputs + cell.nodes) if node not in connected]
    if removed:
        sentences.append(f"No edge enters node{'s' if removed[1:] else ''} {', '.join(removed)}.")
    outputs = ", ".join(map(str, cell.output))
    sentences.append(f"The output concatenates node{'s' if cell.output[1:] else ''} {outputs}.")
    return " ".join(sentences)
