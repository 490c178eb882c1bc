"""Drawings of whole networks: which kind of cell stands where, which cells hold all candidates, and which only pass the
derived one on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Polygon
from matplotlib.transforms import Affine2D

from nasbook.errors import InvalidInput
from nasbook.genotypes import CELL_SECTIONS, DARTS_SPACE, Genotype, Space, reduces_resolution, stack_runs
from nasbook.plots.animation import cells_figure
from nasbook.plots.cells import text_size
from nasbook.plots.connections import connection_layout, draw_widths
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, OKABE_ITO, PAGE_WIDTH, styled, tint

Box = tuple[float, float, float, float]
"""Left, bottom, width and height in inches."""

ENGINE = OKABE_ITO["vermillion"]
"""Colour of Engine-cells."""
TRANSIT = OKABE_ITO["blue"]
"""Colour of Transit-cells."""
_STACK_HEIGHT = 1.95
_TALLEST = 1.0
"""Height of a cell before the first reduction, in inches."""
_MIDDLE = 1.0
_END = 0.5
"""Width of the stem's and the classifier's part, in inches."""
_BETWEEN = 0.08
"""Room beside the frames of the enlarged cells, in inches."""
_ENGINE_WIDTH, _TRANSIT_WIDTH = 0.6, 1.6
"""Line widths of a connection in the enlarged cells, in points."""


@styled
def draw_search_network(
    kinds: Sequence[str], engine_cells: Collection[int], *, genotype: Genotype, space: Space = DARTS_SPACE
) -> Figure:
    """Draws a network of Engine-cells and Transit-cells (EnTranNAS §2.2), from the stem to the classifier.

    An Engine-cell holds all connections of the space, a Transit-cell those of the derived cell. Each cell reads the
    two before it; cells are lower where the resolution is. Normal cells (and those of the first, third and fifth
    section) have a solid frame, reduction cells (all of another kind) a dotted one. Below, the first Engine-cell and a
    Transit-cell, of the same kind if there is one, are shown enlarged.

    Args:
        kinds: of every cell, from the first to the last, such as "normal" and "reduction", or those of
            :func:`~nasbook.networks.kinds_of_cells`.
        engine_cells: positions of the Engine-cells, from 0; all others are Transit-cells.
        genotype: the derived cells.
        space: the space that is searched.

    Raises:
        InvalidInput: there are no cells, a position is none, or a derived cell is not of this space.
    """
    if not kinds:
        raise InvalidInput("kinds: expected the kind of at least one cell, got none.")
    for position in engine_cells:
        if not 0 <= position < len(kinds):
            raise InvalidInput(f"engine_cells: expected positions from 0 to {len(kinds) - 1}, got {position}.")
    derived = {kind: derived_connections(genotype, kind, space) for kind in dict.fromkeys(kinds)}
    engines, transits = (
        [n for n in range(len(kinds)) if (n in engine_cells) is chosen] for chosen in (True, False)
    )
    enlarged = engines[:1]
    if transits:
        enlarged.append(next((n for n in transits if engines and kinds[n] == kinds[engines[0]]), transits[0]))
    share = (PAGE_WIDTH - 3 * _BETWEEN) / 2  # what each of two enlarged cells has, frame included
    found = connection_layout(space, share - 0.2)

    figure, (whole,) = cells_figure(space.choices, [found.cell.height + 0.16], markers=True, top=_STACK_HEIGHT)
    height = figure.get_figheight()
    whole.remove()
    stack = figure.add_axes((0.0, 1 - _STACK_HEIGHT / height, 1.0, _STACK_HEIGHT / height))
    boxes = _draw_stack(stack, kinds, set(engines), derived, space)
    zoom = found.cell.height + 0.12
    bottom = height - _STACK_HEIGHT - 0.36 - zoom
    background = figure.add_axes((0.0, 0.0, 1.0, 1.0), zorder=-1)
    _page(background, height)
    for number, position in enumerate(enlarged):
        is_engine = position in engines
        kept = derived[kinds[position]]
        start = _BETWEEN + (share + _BETWEEN) * number if len(enlarged) > 1 else (PAGE_WIDTH - share) / 2
        frame = (start, bottom - 0.03, share, zoom + 0.31)
        wide = found.cell.width + 0.12
        ax = figure.add_axes(
            ((start + (share - wide) / 2) / PAGE_WIDTH, bottom / height, wide / PAGE_WIDTH, zoom / height)
        )
        name = "Engine" if is_engine else "Transit"
        count = "all" if is_engine else f"{int(kept.sum())} of"
        widths = np.full(kept.size, _ENGINE_WIDTH) if is_engine else _TRANSIT_WIDTH * kept
        draw_widths(widths, found, space, ax, "")
        _enlarge(background, frame, boxes[position], is_engine, height - _STACK_HEIGHT)
        background.text(
            start + share / 2, bottom + zoom + 0.13,
            f"{name}-cell ({kinds[position]}): {count} {kept.size} connections",
            ha="center", va="center", fontsize=8.5, gid=f"enlarged-{position}",
        )  # fmt: skip
    return figure


def derived_connections(genotype: Genotype, kind: str, space: Space) -> Float[np.ndarray, " connections"]:
    """1 for every connection of the space that the derived cell has, else 0; in the order of the space.

    Raises:
        InvalidInput: the genotype has no such kind of cell, or a connection that the space does not have.
    """
    kept = np.zeros((len(space.edges), len(space.choices)))
    for edge in genotype[kind].edges:
        if (edge.source, edge.target) not in space.edges or edge.operation not in space.choices:
            raise InvalidInput(
                f"genotype: the {kind} cell has {edge.operation!r} from node {edge.source} to {edge.target}, "
                "and the space does not. Give the space that was searched as space=…."
            )
        kept[space.edges.index((edge.source, edge.target)), space.choices.index(edge.operation)] = 1
    return kept.ravel()


def _page(ax: Axes, height: float) -> None:
    """Axes in inches, without a frame."""
    ax.set_xlim(0, PAGE_WIDTH)
    ax.set_ylim(0, height)
    ax.axis("off")


def _boxes(kinds: Sequence[str], middle: float, tallest: float = _TALLEST) -> list[Box]:
    """Where the cells of a row stand: between stem and classifier, lower where the resolution is."""
    pitch = (PAGE_WIDTH - 2 * _END) / len(kinds)
    width = pitch * 0.8
    boxes, stage = [], 0
    for position, kind in enumerate(kinds):
        stage += reduces_resolution(kind)
        high = tallest * max(0.55, 0.84**stage)
        boxes.append((_END + pitch * position + (pitch - width) / 2, middle - high / 2, width, high))
    return boxes


def _frame(ax: Axes, box: Box, colour: str, amount: float, width: float, solid: bool, name: str) -> None:
    """The frame of a cell, filled with its colour made pale; dotted where the cell reduces."""
    left, low, wide, high = box
    ax.add_patch(
        FancyBboxPatch((left, low), wide, high, boxstyle="round,pad=0,rounding_size=0.05", zorder=3,
                       facecolor=tint(colour, amount), edgecolor=colour, linewidth=width,
                       linestyle="-" if solid else (0, (1.2, 1.2)), gid=name)
    )  # fmt: skip


def _draw_ends(ax: Axes, boxes: Sequence[Box], middle: float, height: float = 0.84) -> None:
    """Stem and classifier, and an arrow from every part to the two that read it."""
    ends = ((0.06, "stem"), (PAGE_WIDTH - 0.4, "classifier"))
    outer = []
    for left, word in ends:
        outer.append((left, middle - height / 2, 0.34, height))
        ax.add_patch(
            FancyBboxPatch((left, middle - height / 2), 0.34, height, boxstyle="round,pad=0,rounding_size=0.05",
                           facecolor="#ececec", edgecolor=INK, linewidth=1.0, zorder=3)
        )  # fmt: skip
        ax.text(left + 0.17, middle, word, ha="center", va="center", fontsize=8, rotation=90, zorder=4)
    whole = [outer[0], *boxes, outer[1]]
    for number in range(1, len(whole)):
        left, _, wide, _ = whole[number - 1]
        _arrow(ax, (left + wide, middle), (whole[number][0], middle), 0.0)
        if 2 <= number < len(whole) - 1:  # the classifier reads the last cell only
            (a, low_a, wide_a, high_a), (b, low_b, wide_b, high_b) = whole[number - 2], whole[number]
            _arrow(ax, (a + wide_a * 0.6, low_a + high_a), (b + wide_b * 0.4, low_b + high_b), -0.28)


def _draw_stack(
    ax: Axes, kinds: Sequence[str], engines: set[int], derived: dict[str, np.ndarray], space: Space
) -> list[Box]:
    """The row of cells; returns the box of each."""
    _page(ax, _STACK_HEIGHT)
    pitch = (PAGE_WIDTH - 2 * _END) / len(kinds)
    found = connection_layout(space)
    names = [("Engine" if n in engines else "Transit", kind) for n, kind in enumerate(kinds)]
    points = 7.5
    if max(text_size(word, points)[0] for pair in names for word in pair) > pitch - 0.04:
        names = [(role[0], kind[-1] if kind in CELL_SECTIONS else kind[0].upper()) for role, kind in names]
    boxes = _boxes(kinds, _MIDDLE)
    for position, (left, low, wide, high) in enumerate(boxes):
        engine, kind = position in engines, kinds[position]
        colour = ENGINE if engine else TRANSIT
        solid = not reduces_resolution(kind)
        _frame(ax, boxes[position], colour, 0.07, 1.8 if engine else 1.3, solid, f"cell-{position}")
        # The cell in small: the paths of the large drawing, in the box.
        layout, inset = found.cell, 0.05
        place = Affine2D().scale((wide - 2 * inset) / layout.width, (high - 2 * inset) / layout.height)
        place = place.translate(left + inset, low + inset)
        kept = np.ones(len(found.paths)) if engine else derived[kind]
        for number in np.flatnonzero(kept).tolist():
            ax.add_patch(
                PathPatch(found.paths[number].transformed(place), facecolor="none", edgecolor=colour,
                          linewidth=0.3 if engine else 0.8, zorder=4, gid=f"connection-{position}-{number}")
            )  # fmt: skip
        nodes = place.transform(np.array([*layout.nodes.values(), layout.output]))
        ax.plot(nodes[:, 0], nodes[:, 1], color=INK, linestyle="none", marker="o", markersize=1.9, zorder=5)
        role, word = names[position]
        ax.text(left + wide / 2, _MIDDLE - _TALLEST / 2 - 0.13, role, ha="center", va="center", fontsize=points,
                fontweight="bold" if engine else "normal", gid=f"role-{position}")  # fmt: skip
        ax.text(left + wide / 2, _MIDDLE - _TALLEST / 2 - 0.27, word, ha="center", va="center", fontsize=points,
                gid=f"kind-{position}")  # fmt: skip
    _draw_ends(ax, boxes, _MIDDLE)
    return boxes


def stack_in_words(kinds: Sequence[str]) -> str:
    """Which kind of cell stands where, for alt texts: "cells 1–6: cell 1; cell 7: cell 2, which reduces; …".

    Raises:
        InvalidInput: there are no cells.
    """
    parts = [
        f"cell{'s' if run.first != run.last else ''} {run.places}: {run.kind}"
        + (", which reduces" if reduces_resolution(run.kind) and run.kind != "reduction" else "")
        for run in stack_runs(kinds)
    ]
    return f"A stack of {len(kinds)}. {'; '.join(parts)}.".replace(". c", ". C", 1)


_SEARCHED_HEIGHT = 0.95
"""Height that the row of searched cells adds, in inches."""
_SEARCHED_WIDTH = 0.62


@styled
def draw_stack(kinds: Sequence[str], *, searched: Sequence[str] = ()) -> Figure:
    """Draws which kind of cell stands where in a network, from the stem to the classifier.

    A kind has a colour, and its name stands below with the channels of its cells. Cells are lower where the resolution
    is; those that reduce have a dotted frame. Each reads the two before it.

    Args:
        kinds: of every cell, as :func:`~nasbook.networks.kinds_of_cells` gives them.
        searched: the kinds of the cells of the network that was searched, as in Firefly's B.3: drawn above, with a band
            from each to the cells that are its copies.

    Raises:
        InvalidInput: there are no cells; or the searched network has a kind twice, or others than the network, or in
            another order.
    """
    runs = stack_runs(kinds)
    if searched and list(searched) != [run.kind for run in runs]:
        raise InvalidInput(
            f"searched: expected every kind of the network once, in its order: {', '.join(run.kind for run in runs)}; "
            f"got {', '.join(searched)}."
        )
    tallest, middle = 0.7, 0.87
    height = 1.6 + (_SEARCHED_HEIGHT if searched else 0.0)
    figure = Figure(figsize=(PAGE_WIDTH, height))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    _page(ax, height)
    colours = {kind: LINE_COLOURS[n % len(LINE_COLOURS)] for n, kind in enumerate(dict.fromkeys(kinds))}
    boxes = _boxes(kinds, middle, tallest)
    _draw_ends(ax, boxes, middle, 0.7)
    points = 7.5
    numbered = text_size(str(len(kinds)), points)[0] < boxes[0][2] - 0.03
    for position, (kind, box) in enumerate(zip(kinds, boxes, strict=True)):
        _frame(ax, box, colours[kind], 0.25, 1.3, not reduces_resolution(kind), f"cell-{position}")
        if numbered:
            ax.text(box[0] + box[2] / 2, middle, str(position + 1), ha="center", va="center_baseline", fontsize=points,
                    zorder=4, gid=f"number-{position}")  # fmt: skip
    top, below, end = height - 0.36, middle - tallest / 2 - 0.06, 0.0
    for line, text in enumerate(("kind", "cells", "channels")):
        ax.text(0.06, below - 0.09 - 0.125 * line, text, ha="left", va="center", fontsize=points, color=FAINT)
    for number, run in enumerate(runs):
        left, right = boxes[run.first][0], boxes[run.last][0] + boxes[run.last][2]
        centre, colour = (left + right) / 2, colours[run.kind]
        ax.plot([left, right], [below, below], color=colour, linestyle="-", linewidth=1.6, solid_capstyle="butt")
        channels = "$C$" if not run.doublings else f"${2**run.doublings}\\,C$"
        lines = ((run.kind, "kind", "bold"), (run.places, "places", "normal"), (channels, "channels", "normal"))
        for line, (text, name, weight) in enumerate(lines):
            ax.text(centre, below - 0.09 - 0.125 * line, text, ha="center", va="center", fontsize=points,
                    fontweight=weight, gid=f"{name}-{number}")  # fmt: skip
        if searched:
            box = (centre - _SEARCHED_WIDTH / 2, top - 0.17, _SEARCHED_WIDTH, 0.34)
            roof = boxes[run.first][1] + boxes[run.first][3] + 0.03
            ax.add_patch(
                Polygon([(box[0], box[1]), (box[0] + box[2], box[1]), (right, roof), (left, roof)], closed=True,
                        facecolor=tint(colour, 0.18), edgecolor="none", zorder=1, gid=f"band-{number}")
            )  # fmt: skip
            _frame(ax, box, colour, 0.25, 1.3, not reduces_resolution(run.kind), f"searched-{number}")
            ax.text(centre, top, run.kind, ha="center", va="center", fontsize=points, zorder=4, gid=f"copied-{number}")
            if number:
                _arrow(ax, (end, top), (box[0], top), 0.0)
            end = box[0] + box[2]
    if searched:
        ax.text(0.06, top, "searched", ha="left", va="center", fontsize=points, color=FAINT)
    return figure


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float) -> None:
    ax.add_patch(
        FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=6,
                        shrinkA=1, shrinkB=1, color="#7a7a7a", linewidth=0.8, zorder=2)
    )  # fmt: skip


def _enlarge(
    ax: Axes, frame: Box, box: Box, engine: bool, low: float
) -> None:
    """A frame around an enlarged cell, and two lines to the small one."""
    colour = ENGINE if engine else TRANSIT
    left, bottom, wide, high = frame
    ax.add_patch(
        FancyBboxPatch((left, bottom), wide, high, boxstyle="round,pad=0,rounding_size=0.07",
                       facecolor=tint(colour, 0.05), edgecolor=colour, linewidth=1.8 if engine else 1.3)
    )  # fmt: skip
    under = low + _MIDDLE - _TALLEST / 2 - 0.36
    for x, end in ((box[0], left + 0.03), (box[0] + box[2], left + wide - 0.03)):
        ax.plot([x, end], [under, bottom + high], color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
