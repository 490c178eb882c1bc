"""How wide the operations of growing cells are: bars for every edge, and a film over the growths (Firefly, B.3).

The widest operation of an edge is the one that the cell gets; where none grew by a fifth, it gets the identity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import CellGenotype, Space
from nasbook.plots.animation import Film
from nasbook.plots.cells import figure_of
from nasbook.plots.growth import GROWING, GrowthEpoch
from nasbook.plots.palette import INK, PAGE_WIDTH, operation_label, operation_styles, styled, tint
from nasbook.plots.svg import WIDTH, decimal, picture, tag, text

Edge: TypeAlias = tuple[int, int]
CellWidths: TypeAlias = Mapping[Edge, Mapping[str, int]]
IDENTITY = "skip_connect"
"""What an edge gets whose operations hardly grew."""
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----")
"""Textures of operations, in their order; they say the same as the colours."""
_NAME = re.compile(r"cells\.(\d+)\.edges\.(\d+)\.operations\.([^.]+)(?:\.last)?")
_INPUTS = ("k−2", "k−1")
_LEFT, _TOP, _ROW, _LEGEND = 92.0, 34.0, 84.0, 50.0
"""Pixels for the cells' names, above them, for a cell, and for what stands below."""
_SECONDS = 20.0
"""The whole film takes so long at most."""
_PAINT = """\
    const all = function (from, name) { return Array.from(from.querySelectorAll("." + name)); };
    const headings = all(player, "heading"), cells = all(player, "cell").map(function (cell) {
      return { band: all(cell, "band")[0], bars: all(cell, "bar"), winners: all(cell, "winner"),
               sizes: all(cell, "size")[0] };
    });
    function paint(frame) {
      headings[0].textContent = film.headings[frame];
      cells.forEach(function (cell, number) {
        const grown = film.grown[frame][number], floor = film.floors[number];
        cell.band.style.display = film.growing[frame] === number ? "" : "none";
        cell.bars.forEach(function (bar, place) {
          const height = Math.max(0.6, film.unit * grown[place]);
          bar.setAttribute("y", floor - height);
          bar.setAttribute("height", height);
        });
        cell.winners.forEach(function (winner, edge) {
          const place = film.winners[frame][number][edge];
          winner.style.display = place < 0 ? "none" : "";
          if (place >= 0) winner.setAttribute("transform", "translate(" + film.x[edge * film.each + place] + " " +
                                              (floor - film.unit * grown[edge * film.each + place] - 3) + ")");
        });
        cell.sizes.textContent = film.sizes[frame][number];
      });
      slider.setAttribute("aria-valuetext", film.headings[frame] + ". " + film.sizes[frame].join(", "));
    }"""


def widths_of_cells(neurons: Mapping[str, int], *, inputs: int = 2) -> list[dict[Edge, dict[str, int]]]:
    """What the names of widths say: for every cell (source, target) of an edge → operation → its channels.

    Args:
        neurons: channels by names such as ``cells.0.edges.3.operations.sep_conv_3x3.last``, as the reports of
            Firefly's search for cells have them.
        inputs: input nodes of a cell.

    Raises:
        InvalidInput: there is no such name, or the edges are not those of a whole graph.
    """
    cells: dict[int, dict[int, dict[str, int]]] = {}
    for name, count in neurons.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidInput(
                f"neurons: expected names such as cells.0.edges.3.operations.sep_conv_3x3.last, got {name!r}."
            )
        cells.setdefault(int(match[1]), {}).setdefault(int(match[2]), {})[match[3]] = int(count)
    if not cells:
        raise InvalidInput("neurons: expected the widths of at least one cell, got none.")
    found = []
    for number in sorted(cells):
        edges, nodes = cells[number], 1
        while len(Space(nodes=nodes, inputs=inputs).edges) < len(edges):
            nodes += 1
        graph = Space(nodes=nodes, inputs=inputs).edges
        if sorted(edges) != list(range(len(graph))):
            raise InvalidInput(f"neurons: cell {number} has the edges {sorted(edges)}, expected 0..{len(graph) - 1}.")
        found.append({edge: edges[place] for place, edge in enumerate(graph)})
    return found


def widths_by_growth(history: Sequence[GrowthEpoch]) -> list[dict[str, int]]:
    """The widths before the first growth and after each, from the reports of a search.

    Raises:
        InvalidInput: the history is empty, or begins with a growth.
    """
    if not history or history[0].growing:
        raise InvalidInput("history: expected reports that begin before the first growth.")
    last = {report.phase: dict(report.neurons) for report in history}
    return [last[phase] for phase in sorted(last)]


def chosen_operations(widths: CellWidths, initial: int, least_growth: float = 0.2) -> dict[Edge, str]:
    """The widest operation of each edge, of equals the first; the identity where none grew enough (B.3).

    Args:
        widths: (source, target) of an edge → operation → channels.
        initial: channels that all operations began with.
        least_growth: the share of them by which one operation must have grown.
    """
    found = {}
    for edge, own in widths.items():
        widest = max(own, key=own.__getitem__)
        found[edge] = widest if (own[widest] - initial) / initial >= least_growth else IDENTITY
    return found


def _check(widths: CellWidths, initial: int) -> list[str]:
    """The operations of a cell, in their order."""
    require_positive(initial=initial)
    if not widths or not all(widths.values()):
        raise InvalidInput("widths: expected at least one edge, each with at least one operation.")
    low = min(count for own in widths.values() for count in own.values())
    if low < initial:
        raise InvalidInput(f"widths: expected {initial} channels, the initial ones, or more; got {low}.")
    return list(dict.fromkeys(name for own in widths.values() for name in own))


def _edge_label(edge: Edge) -> str:
    source, target = edge
    return f"{_INPUTS[source] if source < len(_INPUTS) else source}→{target}"


def _short(operation: str) -> str:
    """The name of an operation in two lines."""
    return operation_label(operation).replace(" ", "\n")


# --- one cell ---------------------------------------------------------------------------------------------------------


@styled
def plot_cell_widths(
    widths: CellWidths,
    initial: int,
    *,
    least_growth: float = 0.2,
    cell: CellGenotype | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The channels of all operations of one cell: a group of bars an edge, what has grown above what was there.

    A triangle marks the widest operation of an edge, and its name stands below; "skip" where no bar reaches the dotted
    line, and so the identity wins. Edges are those of DARTS' graph: k−2 and k−1 are the cells before.

    Args:
        widths: (source, target) of an edge → operation → channels, as
            :meth:`nasbook.networks.GrowableCellNetwork.operation_widths` has them.
        initial: channels that all operations began with.
        least_growth: the share of ``initial`` by which an operation must have grown to win.
        cell: what the search has answered, where it leaves out edges; they get a dash.
        title: shown above.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no edge, or an operation is narrower than it was at first.
    """
    operations = _check(widths, initial)
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 2.9), layout="constrained").subplots()
    styles = operation_styles(operations)
    wide = 0.82 / len(operations)
    chosen = chosen_operations(widths, initial, least_growth)
    kept = None if cell is None else {(edge.source, edge.target): edge.operation for edge in cell.edges}
    for place, name in enumerate(operations):
        there = [number for number, own in enumerate(widths.values()) if name in own]
        x = np.array(there) + wide * (place - (len(operations) - 1) / 2)
        grown = np.array([own[name] for own in widths.values() if name in own]) - initial
        colour = styles[name].colour
        ax.bar(x, initial, 0.92 * wide, color=tint(colour, 0.3), linewidth=0, gid=f"initial-{name}")
        ax.bar(x, grown, 0.92 * wide, bottom=initial, color=colour, linewidth=0, hatch=_hatch(place), edgecolor="white",
               gid=f"grown-{name}")  # fmt: skip
    ax.axhline(initial, color=INK, linewidth=0.9, linestyle="-", gid="initial")
    ax.axhline((1 + least_growth) * initial, color=INK, linewidth=1.1, linestyle=(0, (1, 1.5)), gid="least")
    labels = []
    for number, (edge, own) in enumerate(widths.items()):
        operation = chosen[edge] if kept is None else kept.get(edge)
        labels.append(f"{_edge_label(edge)}\n{'–' if operation is None else _short(operation)}")
        if operation in own:
            x_at = number + wide * (operations.index(str(operation)) - (len(operations) - 1) / 2)
            ax.plot([x_at], [own[str(operation)]], marker="v", markersize=4.5, color=INK, linestyle="none",
                    transform=_above(ax), clip_on=False, gid=f"winner-{number}")  # fmt: skip
    ax.set_xticks(range(len(widths)), labels, fontsize=7)
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    ax.set_xlim(-0.6, len(widths) - 0.4)
    ax.set_ylim(0, 1.06 * max(count for own in widths.values() for count in own.values()))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylabel("channels")
    if title:
        ax.set_title(title, fontsize=9.5)
    handles: list[Any] = [
        Patch(facecolor=styles[name].colour, hatch=_hatch(place), edgecolor="white", label=operation_label(name))
        for place, name in enumerate(operations)
    ]
    handles += [
        Line2D([], [], color=INK, linewidth=0.9, linestyle="-", label=f"initial, {initial}"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (1, 1.5)), label=f"+{100 * least_growth:.0f} %"),
        Line2D([], [], color=INK, marker="v", markersize=4.5, linestyle="none", label="widest"),
    ]
    figure = figure_of(ax)
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0 if not title else 1.09), ncols=len(handles),
              fontsize=7.5, handlelength=1.5, columnspacing=0.9, handletextpad=0.4)  # fmt: skip
    return figure


def _hatch(place: int) -> str:
    return HATCHES[place % len(HATCHES)]


def _above(ax: Axes) -> Any:
    """Data coordinates, a little higher on the page."""
    from matplotlib.transforms import ScaledTranslation

    return ax.transData + ScaledTranslation(0, 3.5 / 72, figure_of(ax).dpi_scale_trans)


# --- all cells over the growths ---------------------------------------------------------------------------------------


def animate_cell_widths(
    widths: Sequence[Mapping[str, int]], *, least_growth: float = 0.2, growing: Sequence[int] | None = None
) -> Film:
    """The operations of all cells from growth to growth, a row a cell: how much each has grown since the beginning.

    All bars have one scale, percent of the initial channels. A triangle marks the widest operation of an edge as long
    as it is above the dotted line; without a triangle, the edge would become the identity. The cell that has just grown
    has a grey background. Show it with :func:`nasbook.plots.show_animation`; the last frame shows at first.

    Args:
        widths: before the first growth and after each, channels by the names of widths; :func:`widths_by_growth` takes
            them from the reports of a search.
        least_growth: the share of its initial channels by which an operation must have grown to win.
        growing: for each growth the index of the cell that grew, from 0; from the first to the last and again by
            default.

    Raises:
        InvalidInput: there is no growth, the widths change their names, or an operation becomes narrower.
    """
    if len(widths) < 2:
        raise InvalidInput(f"widths: expected those before the first growth and after one or more, got {len(widths)}.")
    cells = [widths_of_cells(one) for one in widths]
    shapes = [[{edge: list(own) for edge, own in cell.items()} for cell in one] for one in cells]
    if any(shape != shapes[0] for shape in shapes):
        raise InvalidInput("widths: expected the same cells, edges and operations before and after each growth.")
    grew = list(range(len(cells[0]))) * len(widths) if growing is None else list(growing)
    if len(grew) < len(widths) - 1 or not set(grew) <= set(range(len(cells[0]))):
        last, count = len(cells[0]) - 1, len(widths) - 1
        raise InvalidInput(f"growing: expected an index of 0..{last} for each of {count} growths, got {growing}.")
    initial = []
    for number, cell in enumerate(cells[0]):
        counts = {count for own in cell.values() for count in own.values()}
        if len(counts) != 1 or any(len(own) != len(next(iter(cell.values()))) for own in cell.values()):
            raise InvalidInput(f"widths: expected all operations of cell {number + 1} on all edges, alike at first.")
        initial.append(counts.pop())
        for one in cells:
            _check(one[number], initial[-1])
    return _film(cells, initial, [-1, *grew[: len(widths) - 1]], least_growth)


def _film(
    cells: Sequence[Sequence[CellWidths]], initial: Sequence[int], grew: Sequence[int], least_growth: float
) -> Film:
    operations = list(next(iter(cells[0][0].values())))
    edges = list(cells[0][0])
    each, right = len(operations), WIDTH - 8.0
    slot = (right - _LEFT) / len(edges)
    wide = 0.84 * slot / each
    x = [_LEFT + slot * (edge + 0.5) + wide * (place - (each - 1) / 2)
         for edge in range(len(edges)) for place in range(each)]  # fmt: skip
    grown = [
        [[round(100 * (own[name] / first - 1), 1) for own in cell.values() for name in operations]
         for cell, first in zip(one, initial, strict=True)] for one in cells
    ]  # fmt: skip
    most = max(100 * least_growth, *(value for one in grown for cell in one for value in cell))
    unit = (_ROW - 26) / most
    floors = [_TOP + _ROW * (number + 1) - 12 for number in range(len(initial))]
    winners = [
        [[operations.index(name) if name in operations else -1
          for name in chosen_operations(cell, first, least_growth).values()]
         for cell, first in zip(one, initial, strict=True)] for one in cells
    ]  # fmt: skip
    headings = ["before the first growth"] + [
        f"growth {number} of {len(cells) - 1}: cell {cell + 1} grows" for number, cell in enumerate(grew[1:], start=1)
    ]
    sizes = [[f"{sum(sum(own.values()) for own in cell.values()):,} channels" for cell in one] for one in cells]
    styles = operation_styles(operations)
    still = len(cells) - 1
    parts = [text(WIDTH / 2, 17.0, headings[still], class_="heading", font_weight="bold")]
    for number, floor in enumerate(floors):
        line = floor - unit * 100 * least_growth
        shown = {} if grew[still] == number else {"style": "display: none"}
        inside = [
            tag("rect", x=4.0, y=floor - _ROW + 16, width=right, height=_ROW - 12, fill=GROWING, class_="band",
                **shown),
            text(12, floor - 32, f"cell {number + 1}", "start", font_weight="bold"),
            text(12, floor - 17, f"from {initial[number]} each", "start", font_size=10),
            text(12, floor - 3, sizes[still][number], "start", font_size=10, class_="size"),
            tag("path", d=f"M{decimal(_LEFT)} {decimal(floor)}H{decimal(right)}", stroke=INK, stroke_width=0.8),
            tag("path", d=f"M{decimal(_LEFT)} {decimal(line)}H{decimal(right)}", stroke=INK, stroke_dasharray="1 3"),
        ]  # fmt: skip
        for place, (at, value) in enumerate(zip(x, grown[still][number], strict=True)):
            colour = styles[operations[place % each]].colour
            height = max(0.6, unit * value)
            inside.append(tag("rect", x=at - 0.46 * wide, y=floor - height, width=0.92 * wide, height=height,
                              fill=colour, class_="bar"))  # fmt: skip
        for edge, place in enumerate(winners[still][number]):
            there = {} if place >= 0 else {"style": "display: none"}
            at = edge * each + max(place, 0)
            spot = f"translate({decimal(x[at])} {decimal(floor - unit * grown[still][number][at] - 3)})"
            inside.append(tag("path", d="M-3.5-6h7L0 0z", fill=INK, transform=spot, class_="winner", **there))
        parts.append(tag("g", "".join(inside), class_="cell"))
    parts += [text(_LEFT + slot * (number + 0.5), floors[-1] + 13, _edge_label(edge), font_size=9.5)
              for number, edge in enumerate(edges)]  # fmt: skip
    height = round(floors[-1] + _LEGEND)
    parts.append(_legend(operations, least_growth, height - 12.0, initial))
    data = {
        "headings": headings, "grown": grown, "growing": list(grew), "winners": winners, "sizes": sizes,
        "floors": [round(floor, 1) for floor in floors], "unit": round(unit, 4), "x": [round(at, 1) for at in x],
        "each": each,
    }  # fmt: skip
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    interval = round(max(300.0, min(1500.0, _SECONDS * 1000 / len(cells))))
    return Film(picture(parts, height), len(cells), written, _PAINT, interval, still)


def _legend(operations: Sequence[str], least_growth: float, y: float, initial: Sequence[int]) -> str:
    styles, x, parts = operation_styles(operations), 12.0, []
    for place, name in enumerate(operations):
        parts.append(tag("rect", x=x, y=y - 8, width=12, height=9, fill=to_hex(styles[name].colour)))
        words = f"{operation_label(name)}{' (from the left)' if not place else ''}"
        parts.append(text(x + 16, y, words, "start", font_size=10.5))
        x += 148.0 if not place else 70.0
    parts.append(tag("path", d=f"M{decimal(x)} {decimal(y - 4)}h18", stroke=INK, stroke_dasharray="1 3"))
    parts.append(text(x + 23, y, f"grown by {100 * least_growth:.0f} %", "start", font_size=10.5))
    parts.append(tag("path", d=f"M{decimal(x + 118)} {decimal(y - 7)}h7l-3.5 6z", fill=INK))
    parts.append(text(x + 130, y, "widest", "start", font_size=10.5))
    return "\n".join(parts)
