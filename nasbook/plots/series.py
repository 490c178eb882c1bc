"""Series of returns in one picture: calm and restless times, what a day says of the next, and who moves with whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput, require_positive
from nasbook.plots.history import as_array
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, OKABE_ITO, PAGE_WIDTH, styled, tint

# From orange by white to blue, never too dark for ink.
_DIVERGING = LinearSegmentedColormap.from_list(
    "correlations", [tint(OKABE_ITO["vermillion"], 0.75), (1.0, 1.0, 1.0), tint(OKABE_ITO["blue"], 0.62)]
)


def autocorrelation(values: Float[np.ndarray, " rows"], lags: int) -> Float[np.ndarray, " lags"]:
    """The correlation of a series with itself 1 to ``lags`` rows later, about the mean of the whole series."""
    centred = values - values.mean()
    total = float(centred @ centred)
    return np.array([float(centred[lag:] @ centred[:-lag]) / total for lag in range(1, lags + 1)])


@styled
def plot_series(
    returns: Any,
    columns: Sequence[str],
    *,
    borders: Sequence[int] = (),
    shown: int = 2,
    window: int = 20,
    lags: int = 30,
    unit: str = "daily return, %",
) -> Figure:
    """Returns over time with their moving deviation, their autocorrelations, and the correlations of all series.

    Above, the first ``shown`` series with ± two standard deviations of the last rows: restless times come in clusters.
    Below on the left, means over all series: the autocorrelation of returns is near zero, that of their sizes is not.
    On the right, correlations on the same day.

    Args:
        returns: numbers by row and series, such as log returns; shown in percent. A list, an array or a tensor.
        columns: names of the series.
        borders: rows at which the validation and the test part begin.
        shown: how many series to draw over time.
        window: rows of the moving deviation.
        lags: the most rows between two that are compared.
        unit: what is drawn over time, with its unit.

    Raises:
        InvalidInput: the returns are not rows × columns, not finite, too few, or a series never changes.
    """
    require_positive(shown=shown, window=window, lags=lags)
    values = as_array(returns)
    if values.ndim != 2 or values.shape[1] != len(columns) or not np.isfinite(values).all():
        raise InvalidInput(f"returns: expected finite numbers, rows × {len(columns)} series, got shape {values.shape}.")
    if len(values) <= max(window, lags) + 1:
        raise InvalidInput(f"returns: expected more than {max(window, lags) + 1} rows, got {len(values)}.")
    if (values.std(axis=0) == 0).any():
        raise InvalidInput("returns: a series never changes, so it has no correlations.")
    shown = min(shown, len(columns))
    matrix = 0.3 * len(columns) + 0.75
    figure = Figure(figsize=(PAGE_WIDTH, 1.25 * shown + max(2.2, matrix) + 0.25), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.25 * shown + 0.1, max(2.2, matrix)))
    above, below = parts
    rows = list(above.subplots(shown, 1, sharex=True, sharey=True, squeeze=False).flat)
    for number, ax in enumerate(rows):
        _draw_returns(ax, 100 * values[:, number], columns[number], borders, window)
    rows[-1].set_xlabel("row (trading day)")
    above.supylabel(unit, fontsize=8.5)
    left, right = below.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_autocorrelations(left, values, lags)
    _draw_correlations(right, values, columns)
    return figure


def _draw_returns(ax: Axes, values: np.ndarray, name: str, borders: Sequence[int], window: int) -> None:
    squares = np.concatenate([[0.0], np.cumsum(values**2)])
    deviation = np.sqrt((squares[window:] - squares[:-window]) / window)  # of rows n to n + window - 1
    ax.plot(values, color=FAINT, linestyle="-", linewidth=0.5, marker="", gid=f"returns-{name}")
    at = np.arange(window - 1, len(values))
    for sign in (-2, 2):
        ax.plot(at, sign * deviation, color=LINE_COLOURS[0], linestyle="-", linewidth=1.1, marker="",
                gid=f"deviation-{name}")  # fmt: skip
    for border in borders:
        ax.axvline(border, color=INK, linestyle=(0, (3, 2)), linewidth=0.9, marker="", gid="border")
    ax.set_xlim(0, len(values) - 1)
    ax.set_title(f"{name}; lines: ± 2 standard deviations of the last {window} rows", fontsize=8.5, loc="left", pad=3)
    ax.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    ax.grid(False, axis="x")


def _draw_autocorrelations(ax: Axes, values: np.ndarray, lags: int) -> None:
    at = np.arange(1, lags + 1)
    series = values.T
    bound = 1.96 / np.sqrt(len(values))
    ax.axhspan(-bound, bound, facecolor="#ececec", linewidth=0, zorder=0, gid="bound")
    for name, numbers, marker, colour in (
        ("returns", [autocorrelation(one, lags) for one in series], "o", LINE_COLOURS[0]),
        ("sizes of returns", [autocorrelation(np.abs(one), lags) for one in series], "s", LINE_COLOURS[1]),
    ):
        ax.plot(at, np.mean(numbers, axis=0), color=colour, linestyle="-", linewidth=1.0, marker=marker, markersize=3,
                label=name, gid=f"autocorrelation-{name}")  # fmt: skip
    ax.axhline(0, color=INK, linestyle="-", linewidth=0.8, marker="", zorder=1)
    ax.set_xlabel("rows between (lag)")
    ax.set_ylabel("autocorrelation, mean of all series")
    ax.set_title("grey: what one series without memory\nstays within 95 % of the time", fontsize=8)
    ax.legend(loc="upper right", fontsize=8)


def _draw_correlations(ax: Axes, values: np.ndarray, columns: Sequence[str]) -> None:
    found = np.corrcoef(values.T)
    number = len(columns)
    ax.pcolormesh(np.arange(number + 1), np.arange(number + 1), found, cmap=_DIVERGING, vmin=-1, vmax=1,
                  edgecolors="white", linewidth=1.0)  # fmt: skip
    for row in range(number):
        for column in range(number):
            written = "1" if row == column else f"{found[row, column]:.2f}".replace("-", "−").replace("0.", ".", 1)
            ax.text(column + 0.5, row + 0.5, written, ha="center", va="center", fontsize=7, gid=f"pair-{row}-{column}")
    short = [name.replace(" ", "\n") for name in columns]
    ax.set_xticks(np.arange(number) + 0.5, short, rotation=60, ha="right", rotation_mode="anchor", fontsize=7,
                  linespacing=0.9)  # fmt: skip
    ax.set_yticks(np.arange(number) + 0.5, short, fontsize=7.5, linespacing=0.9)
    ax.set_ylim(number, 0)
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_title("correlation on the same day", fontsize=8.5)
