"""Two-variable problems as pictures: where the gradients point, and where the steps go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from nasbook.errors import InvalidInput
from nasbook.plots.cells import figure_of
from nasbook.plots.palette import (
    DASHES,
    FAINT,
    INK,
    LINE_COLOURS,
    MARKERS,
    PAGE_WIDTH,
    styled,
)

Grid = Float[np.ndarray, "rows columns"]


@styled
def plot_vector_field(
    field: Callable[[Grid, Grid], tuple[Grid, Grid]],
    trajectories: Mapping[str, Float[np.ndarray, "steps 2"]],
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    xlabel: str = "α",
    ylabel: str = "w",
    curves: Mapping[str, Float[np.ndarray, "points 2"]] | None = None,
    landmarks: Mapping[str, tuple[float, float]] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A field of directions with the trajectories that follow it.

    Arrows show the direction only; their darkness shows the length. Each trajectory starts at its ring and
    ends at its marker.

    Args:
        field: takes the grids of x and y, returns the components along x and y.
        trajectories: (x, y) of every step, by label.
        x_range: limits of the first variable.
        y_range: limits of the second variable.
        xlabel: name of the first variable.
        ylabel: name of the second variable.
        curves: lines to compare with, by label, such as the set of the inner problem's solutions.
        landmarks: points to name, such as the optimum.
        ax: where to draw; a new figure without it.
    """
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 4.0), layout="constrained").subplots()
    across, up = (np.linspace(0.5, n - 0.5, n) / n for n in (20, 16))  # middles, so that no arrow is cut off
    x, y = np.meshgrid(
        x_range[0] + across * (x_range[1] - x_range[0]), y_range[0] + up * (y_range[1] - y_range[0])
    )
    u, v = (np.asarray(component, dtype=float) for component in field(x, y))
    # The direction on the page, not in the data: both axes count in their own range.
    wide, high = x_range[1] - x_range[0], y_range[1] - y_range[0]
    length = np.hypot(u / wide, v / high)
    unit = np.where(length > 0, length, 1.0)
    shade = 0.25 + 0.75 * np.sqrt(length / (length.max() or 1.0))
    ax.grid(False)
    ax.quiver(
        x, y, u / wide / unit, v / high / unit, shade, cmap="Greys", clim=(0, 1.6), angles="uv", pivot="mid",
        scale=34, width=0.0028, headwidth=4.5, zorder=1,
    )  # fmt: skip
    for number, (label, points) in enumerate((curves or {}).items()):
        points = np.asarray(points, dtype=float)
        ax.plot(points[:, 0], points[:, 1], color=FAINT, linestyle=DASHES[(number + 2) % 4], linewidth=1.4, label=label,
                zorder=2)  # fmt: skip
    for number, (label, steps) in enumerate(trajectories.items()):
        steps = np.asarray(steps, dtype=float)
        if steps.ndim != 2 or steps.shape[1] != 2 or not len(steps):
            raise InvalidInput(f"trajectories[{label!r}]: expected shape (steps, 2), got {steps.shape}.")
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(steps[:, 0], steps[:, 1], color="white", linewidth=3.4, zorder=3)
        ax.plot(
            steps[:, 0], steps[:, 1], color=colour, linestyle=DASHES[number % len(DASHES)], linewidth=1.8,
            marker=marker, markevery=[len(steps) - 1], markersize=7, markeredgecolor="white", label=label, zorder=4,
        )  # fmt: skip
        ax.plot(*steps[0], marker="o", markersize=6, markerfacecolor="white", markeredgecolor=INK, zorder=5)
    for label, place in (landmarks or {}).items():
        ax.plot(*place, marker="*", markersize=13, color=INK, markeredgecolor="white", zorder=3.5)
        ax.annotate(label, place, xytext=(8, -13), textcoords="offset points", fontsize=8.5, zorder=7,
                    path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    ax.set(xlim=x_range, ylim=y_range, xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(True)
    figure = figure_of(ax)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.6)
    return figure
