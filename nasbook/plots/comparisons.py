"""Results over seeds, compared: a table of means in shades, and every seed as a dot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput
from nasbook.plots.cells import figure_of, text_size
from nasbook.plots.history import as_array
from nasbook.plots.palette import (
    INK,
    LINE_COLOURS,
    MARKERS,
    OKABE_ITO,
    PAGE_WIDTH,
    styled,
    tint,
)

# One hue, from light to dark, so that the shades keep their order in grey and for every eye; never too dark for ink.
_SHADES = LinearSegmentedColormap.from_list("shades", [tint(OKABE_ITO["blue"], 0.05), tint(OKABE_ITO["blue"], 0.62)])
_LABEL_ROOM = 1.9
"""The most inches that labels of rows may take from a plot."""
_CELL_HEIGHT = 0.52


def mean_with_error(values: Float[np.ndarray, " seeds"]) -> tuple[float, float]:
    """Mean and standard error over seeds; a single seed has the error nan."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def written(mean: float, error: float, digits: int, between: str = " ") -> str:
    """A mean with its standard error, if it has one."""
    return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f"{between}± {error:.{digits}f}")


def fold(label: str, room: float, points: float) -> str:
    """The label on as many lines as it takes to stay within ``room`` inches; a longer word stays whole."""
    lines: list[str] = []
    for word in label.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_size(joined, points)[0] <= room:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)


@styled
def plot_matrix(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    digits: int = 1,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Mean and standard error over seeds for every pair of a row and a column, the darker the greater.

    A frame marks the diagonal: the pairs whose row and column have the same name.

    Args:
        values: numbers by seed, row and column, as nested lists, an array or a tensor; nan where nothing was measured.
        rows: names of the rows, from top to bottom.
        columns: names of the columns, from left to right.
        xlabel: what the columns are.
        ylabel: what the rows are.
        label: what the numbers are, with their unit; it stands above.
        digits: after the decimal point.
        limits: the values of the lightest and the darkest shade, where two figures are to agree; the least and the
            greatest mean without it.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: the values are not seeds × rows × columns.
    """
    numbers = as_array(values)
    if numbers.ndim != 3 or not numbers.size or numbers.shape[1:] != (len(rows), len(columns)):
        raise InvalidInput(
            f"values: expected seeds × {len(rows)} rows × {len(columns)} columns, got shape {numbers.shape}."
        )
    if np.isinf(numbers).any() or np.isnan(numbers).all():
        raise InvalidInput("values: expected finite numbers, or nan where there is none; got infinite or only nan.")
    known = {
        (i, j): numbers[~np.isnan(numbers[:, i, j]), i, j] for i in range(len(rows)) for j in range(len(columns))
    }
    found = {place: mean_with_error(seeds) for place, seeds in known.items() if len(seeds)}
    means = np.full((len(rows), len(columns)), np.nan)
    for place, (mean, _) in found.items():
        means[place] = mean
    low, high = limits or (float(np.nanmin(means)), float(np.nanmax(means)))
    if ax is None:
        ax = _matrix_axes(rows, columns, ylabel)
    ax.pcolormesh(
        np.arange(len(columns) + 1), np.arange(len(rows) + 1), np.ma.masked_invalid(means), cmap=_SHADES,
        vmin=low, vmax=high if high > low else low + 1, edgecolors="white", linewidth=1.5,
    )  # fmt: skip
    for i, j in known:
        text = written(*found[i, j], digits, "\n") if (i, j) in found else "–"
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=9, gid=f"cell-{i}-{j}")
        if rows[i] == columns[j]:
            ax.add_patch(
                Rectangle((j + 0.03, i + 0.05), 0.94, 0.9, facecolor="none", edgecolor=INK, linewidth=1.8,
                          gid=f"diagonal-{i}-{j}")
            )  # fmt: skip
    ax.set_xlim(0, len(columns))
    ax.set_ylim(len(rows), 0)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    ax.set_yticks(np.arange(len(rows)) + 0.5, [fold(row, _LABEL_ROOM, 8) for row in rows])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(fold(ylabel, _CELL_HEIGHT * len(rows), 9))
    ax.set_title(label, fontsize=9.5, pad=19)
    seeds = f"mean ± standard error over {len(numbers)} seeds" if len(numbers) > 1 else "one seed"
    framed = "; framed: row and column agree" if set(rows) & set(columns) else ""
    ax.text(0.5, 1.03, seeds + framed, transform=ax.transAxes, ha="center", va="bottom", fontsize=8)
    return figure_of(ax)


def _matrix_axes(rows: Sequence[str], columns: Sequence[str], ylabel: str) -> Axes:
    """Axes with cells of one size in the middle of a page, as wide as their labels leave room."""
    height = _CELL_HEIGHT * len(rows)
    title = 0.2 * (1 + fold(ylabel, height, 9).count("\n"))
    left = 0.2 + title + max(text_size(fold(row, _LABEL_ROOM, 8), 8)[0] for row in rows)
    width = min(1.15, (PAGE_WIDTH - left - 0.15) / len(columns)) * len(columns)
    top, bottom = 0.52, 0.5
    total = height + top + bottom
    start = max(left, (PAGE_WIDTH - width) / 2)
    figure = Figure(figsize=(PAGE_WIDTH, total))
    return figure.add_axes((start / PAGE_WIDTH, bottom / total, width / PAGE_WIDTH, height / total))


@styled
def plot_points(
    groups: Mapping[str, Any],
    *,
    xlabel: str,
    digits: int = 1,
    ax: Axes | None = None,
) -> Figure:
    """One row a group: every seed a ring, below them mean and standard error as a filled marker with its bar.

    The mean and its error also stand at the right, as numbers.

    Args:
        groups: for every label the numbers of its seeds, of any count; a list, an array or a tensor. They are drawn
            from top to bottom.
        xlabel: what is measured, with its unit.
        digits: after the decimal point, at the right.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no group, or one without numbers.
    """
    if not groups:
        raise InvalidInput("groups: expected at least one label with the numbers of its seeds, got none.")
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 0.75 + 0.42 * len(groups)), layout="constrained").subplots()
    for row, (label, seeds) in enumerate(groups.items()):
        values = as_array(seeds)
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise InvalidInput(f"groups[{label!r}]: expected finite numbers, one a seed, got {seeds!r}.")
        colour, marker = LINE_COLOURS[row % len(LINE_COLOURS)], MARKERS[row % len(MARKERS)]
        mean, error = mean_with_error(values)
        # A little apart, so that equal numbers are seen.
        heights = row - 0.13 + 0.06 * (np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1))
        ax.plot(
            values, heights, linestyle="none", marker="o", markersize=5.5, color=colour,
            markerfacecolor="none", markeredgewidth=1.2, gid=f"seeds-{row}",
        )  # fmt: skip
        ax.errorbar(
            mean, row + 0.17, xerr=None if np.isnan(error) else error, color=colour, marker=marker, markersize=6,
            linewidth=1.6, capsize=3, linestyle="none",
        )  # fmt: skip
        text = written(mean, error, digits)
        ax.text(1.02, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, gid=f"mean-{row}")
    ax.set_yticks(range(len(groups)), [fold(label, _LABEL_ROOM, 8.5) for label in groups], fontsize=8.5)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    for border in np.arange(len(groups) - 1) + 0.5:
        ax.axhline(border, color="#e4e4e4", linewidth=0.6, linestyle="-", zorder=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.margins(x=0.06)
    ax.set_xlabel(xlabel)
    ax.text(1.02, 1.01, "mean ± standard error", transform=ax.transAxes, va="bottom", fontsize=7.5)
    return figure_of(ax)
