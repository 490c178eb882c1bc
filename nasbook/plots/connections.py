"""A sparse search as a picture: every connection of a cell, as wide as its coefficient, until it is dropped.

A *connection* is one operation on one edge. In EnTranNAS-DST (Yang et al., CVPR 2021, §2.4) the coefficients on an
edge sum to 1 for as long as one of them is above 0, so an edge keeps its width while its connections share it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, ZERO, Space
from nasbook.plots.animation import MARKER, cells_figure
from nasbook.plots.cells import cell_axes, draw_bundle, draw_nodes, edge_paths, figure_of
from nasbook.plots.history import Epoch, trajectory
from nasbook.plots.layout import NODE, DagLayout, Point, bundles, dag_layout
from nasbook.plots.palette import PAGE_WIDTH, operation_styles, styled

WIDEST = 4.0
"""Line width of a connection with coefficient 1, in points."""
NARROWEST = 0.4
"""Least line width of a connection that is there."""
_SLOT = (0.1, 0.05)
"""Room for the marker of a connection, in inches."""
MARKER_PART = 0.85
"""Size of a marker, as a part of that in the legend."""
TRACE = "#c9c9c9"
"""Colour of what is left of an edge without connections."""
_SQUEEZE = 0.62
"""Height of the layout as a part of that with room for names."""


@dataclass(frozen=True)
class ConnectionLayout:
    """Where every connection of a space's cell runs."""

    cell: DagLayout
    """The nodes and the places of markers."""
    edges: tuple[tuple[int, int], ...]
    """(source, target) of every connection: the operations of the first edge, those of the second, and so on."""
    paths: tuple[Path, ...]
    """The path of every connection."""
    lines: tuple[Path, ...]
    """The path from every intermediate node to the output."""


@functools.lru_cache(maxsize=16)
def connection_layout(space: Space, width: float = PAGE_WIDTH - 0.12) -> ConnectionLayout:
    """The layout of all connections of a space's cell in so many inches, low enough that two cells fit on a screen."""
    edges = tuple(edge for edge in space.edges for _ in space.choices)
    cell = dag_layout(
        edges, nodes=space.nodes, inputs=space.inputs, output=tuple(range(space.inputs, space.inputs + space.nodes)),
        width=width, labels=[_SLOT] * len(edges),
    )  # fmt: skip
    low = min(1.0, max(_SQUEEZE, 1.6 / cell.height))

    def squeezed(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple((x, y * low) for x, y in points)

    cell = dataclasses.replace(
        cell,
        nodes={node: (x, y * low) for node, (x, y) in cell.nodes.items()},
        output=(cell.output[0], cell.output[1] * low),
        output_height=cell.output_height * low,
        routes=tuple(map(squeezed, cell.routes)),
        labels=squeezed(cell.labels),
        output_routes={node: squeezed(route) for node, route in cell.output_routes.items()},
        height=cell.height * low,
        node_heights={node: max(NODE, height * low) for node, height in cell.node_heights.items()},
    )
    paths, lines = edge_paths(cell, edges, space.inputs)
    return ConnectionLayout(cell, edges, tuple(paths), tuple(lines))


def kept_connections(
    history: Sequence[Epoch], kind: str, space: Space
) -> Float[np.ndarray, "epochs edges choices"]:
    """The coefficients of all connections but the zero operation's, which is none; 0 where a connection is dropped.

    Raises:
        InvalidInput: as :func:`nasbook.plots.history.trajectory`; or a coefficient is negative or not a number.
    """
    choices = [number for number, name in enumerate(space.operations) if name != ZERO]
    values = trajectory(history, kind, space)[:, :, choices]
    for report, matrix in zip(history, values, strict=True):
        if not (matrix >= 0).all():  # not a number fails too
            raise InvalidInput(
                f"Epoch {report.epoch}: expected coefficients of 0 and above in the {kind} cell, got {matrix.min()}."
            )
    return values


def draw_widths(
    widths: Float[np.ndarray, " connections"], found: ConnectionLayout, space: Space, ax: Axes, title: str
) -> None:
    """Draws every connection of a cell as wide as given, in points; none where that is 0."""
    layout, edges, paths = found.cell, found.edges, found.paths
    ax, scale = cell_axes((layout.width, layout.height), ax, title)
    styles = [dataclasses.replace(style, dashes="-") for style in operation_styles(space.choices).values()]
    entered = {target for (_, target), width in zip(edges, widths, strict=True) if width > 0}
    draw_nodes(
        ax, layout, [line for node, line in zip(layout.output_routes, found.lines, strict=True) if node in entered],
        inputs=space.inputs, removed=set(layout.output_routes) - entered, scale=scale,
    )  # fmt: skip
    for members in bundles(edges).values():
        kept = [number for number in members if widths[number] > 0]
        if not kept:
            trace = PathPatch(
                paths[members[len(members) // 2]], facecolor="none", edgecolor=TRACE, linewidth=0.7 * scale,
                zorder=1, gid="trace",
            )  # fmt: skip
            ax.add_patch(trace)
            continue
        drawn = draw_bundle(
            ax, [paths[number] for number in kept], [styles[number % len(styles)] for number in kept],
            [float(widths[number]) * scale for number in kept],
        )  # fmt: skip
        for number, line in zip(kept, drawn, strict=True):
            line.set_gid(f"connection-{number}")
            style = styles[number % len(styles)]
            if style.marker not in "|x":  # skip is a plain line
                ax.plot(
                    *layout.labels[number], color=style.colour, marker=style.marker, markerfacecolor="white",
                    markersize=MARKER_PART * MARKER * 72 * scale, markeredgewidth=1.0 * scale, zorder=6,
                )  # fmt: skip


def line_widths(coefficients: np.ndarray) -> np.ndarray:
    """Line widths in points: in proportion to the coefficients, but for what would be too thin to see."""
    return np.where(coefficients > 0, np.maximum(NARROWEST, WIDEST * coefficients), 0.0)


def counted_connections(report: Epoch, kind: str, space: Space) -> str:
    """How many connections are left, in words: "normal cell: 12 of 98 connections"."""
    values = kept_connections([report], kind, space)
    return f"{kind} cell: {int((values > 0).sum())} of {values.size} connections"


@styled
def draw_connections(
    report: Epoch | Sequence[Epoch],
    kind: str = "normal",
    *,
    space: Space = DARTS_SPACE,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """Draws every connection of a cell, one operation on one edge, as wide as one epoch's coefficient.

    A connection with coefficient 0 is dropped and not drawn; an edge without connections leaves a thin grey trace,
    and a node that none enters is faint. Markers tell the operations apart as their colours do.

    Args:
        report: the epoch; of several, one drawing each, one above the other.
        kind: which cell.
        space: the space that is searched.
        ax: where to draw one epoch; a new figure with a legend without it.
        title: shown above one epoch; the epoch and the number of connections by default.

    Raises:
        InvalidInput: the reports belong to another space, have no such cell or negative coefficients; or ``ax`` or
            ``title`` is given for several epochs.
    """
    reports = list(report) if isinstance(report, Sequence) else [report]
    kept_connections(reports, kind, space)  # complains before anything is drawn
    if len(reports) > 1 and (ax is not None or title is not None):
        raise InvalidInput(f"ax and title are for one epoch; got {len(reports)} epochs.")
    panels = [ax] if ax is not None else []
    if not panels:
        _, panels = cells_figure(space.choices, [connection_layout(space).cell.height] * len(reports), markers=True)
    for epoch, panel in zip(reports, panels, strict=True):
        widths = line_widths(kept_connections([epoch], kind, space)[0].ravel())
        above = title or f"epoch {epoch.epoch}, {counted_connections(epoch, kind, space)}"
        draw_widths(widths, connection_layout(space), space, panel, above)
    return figure_of(panels[0])
