"""A whole space at a glance: every cell's accuracy, and where the methods ended in it (Chapter 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from nasbook.errors import InvalidInput
from nasbook.plots.comparisons import fold
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, MARKERS, PAGE_WIDTH, styled, tint

__all__ = ["finds_in_words", "plot_finds"]


def _checked(
    accuracies: Float[np.ndarray, "cells seeds"], finds: Mapping[str, Sequence[int]]
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """Means in percent and their standard errors."""
    if accuracies.ndim != 2 or accuracies.shape[1] < 2 or not np.isfinite(accuracies).all():
        raise InvalidInput(f"accuracies: expected cells × at least two trainings, got the shape {accuracies.shape}.")
    for name, rows in finds.items():
        if not len(rows) or not all(0 <= row < len(accuracies) for row in rows):
            raise InvalidInput(f"finds[{name!r}]: expected rows from 0 to {len(accuracies) - 1}, got {list(rows)}.")
    errors = accuracies.std(axis=1, ddof=1) / np.sqrt(accuracies.shape[1])
    return 100 * accuracies.mean(axis=1), 100 * errors


def _ranks(means: Float[np.ndarray, " cells"]) -> Int[np.ndarray, " cells"]:
    place = np.empty(len(means), int)
    place[np.argsort(-means, kind="stable")] = np.arange(1, len(means) + 1)
    return place


@styled
def plot_finds(
    accuracies: Float[np.ndarray, "cells seeds"],
    finds: Mapping[str, Sequence[int]],
    *,
    ranks: Int[np.ndarray, " cells"] | None = None,
    ylabel: str = "test accuracy, %",
) -> Figure:
    """All cells from the best to the worst with their standard errors; below, a row of marks for every method's finds.

    Args:
        accuracies: of all cells and trainings, as shares.
        finds: method → the rows of the cells that it found, one a seed.
        ranks: of all cells, from 1; None for those by mean accuracy, equals in the order of rows.
        ylabel: what is measured.

    Raises:
        InvalidInput: fewer than two trainings, or a row that is not there.
    """
    means, errors = _checked(accuracies, finds)
    place = _ranks(means) if ranks is None else ranks
    order = np.argsort(place)
    figure = Figure(figsize=(PAGE_WIDTH, 2.3 + 0.26 * len(finds)), layout="constrained")
    above, below = figure.subplots(
        2, 1, sharex=True, height_ratios=(2.0, max(0.3, 0.26 * len(finds)))
    )
    along = np.arange(1, len(means) + 1)
    above.fill_between(
        along, (means - errors)[order], (means + errors)[order], color=tint(LINE_COLOURS[0], 0.35), linewidth=0,
        gid="errors",
    )  # fmt: skip
    above.plot(along, means[order], color=INK, linewidth=1.3, linestyle="-", marker="", gid="means")
    above.set_ylabel(ylabel)
    above.set_title("mean of the trainings, and its standard error", fontsize=8.5)
    for row, rows in enumerate(finds.values()):
        colour, marker = LINE_COLOURS[row % len(LINE_COLOURS)], MARKERS[row % len(MARKERS)]
        found = [place[cell] for cell in rows]
        below.plot(
            found, [row] * len(found), linestyle="none", marker=marker, markersize=5, color=colour,
            markerfacecolor="none", gid=f"finds-{row}",
        )  # fmt: skip
        below.plot(float(np.median(found)), row, marker="|", markersize=13, color=INK, markeredgewidth=1.6)
    below.set_yticks(range(len(finds)), [fold(name, 1.9, 8) for name in finds], fontsize=8)
    below.set_ylim(len(finds) - 0.4, -0.6)
    below.tick_params(axis="y", length=0)
    for line in np.arange(len(finds) - 1) + 0.5:
        below.axhline(line, color=FAINT, linewidth=0.4, linestyle="-", zorder=0)
    below.grid(False, axis="y")
    below.spines["left"].set_visible(False)
    below.set_xlabel(f"rank of the cell, 1 to {len(means)}; a bar is the median")
    return figure


def finds_in_words(
    accuracies: Float[np.ndarray, "cells seeds"],
    finds: Mapping[str, Sequence[int]],
    *,
    ranks: Int[np.ndarray, " cells"] | None = None,
) -> str:
    """The figure as sentences, for alt texts: the range of the cells, and each method's median rank.

    Args:
        accuracies: of all cells and trainings, as shares.
        finds: method → the rows of the cells that it found.
        ranks: as :func:`plot_finds` takes them.

    Raises:
        InvalidInput: as :func:`plot_finds`.
    """
    means, errors = _checked(accuracies, finds)
    place = _ranks(means) if ranks is None else ranks
    medians = ", ".join(
        f"{name} {np.median([place[row] for row in rows]):.0f} ({min(place[row] for row in rows)} to "
        f"{max(place[row] for row in rows)})"
        for name, rows in finds.items()
    )
    words = (
        f"The {len(means)} cells by mean test accuracy: from {means.max():.1f} % over a median of "
        f"{np.median(means):.1f} % to {means.min():.1f} %, with standard errors of {np.median(errors):.1f} points."
    )
    return f"{words} Median rank of what was found, and the range: {medians}." if finds else words
