"""Quantities against size: accuracy and loss of grown networks, errors against a step size, times against a width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from nasbook.errors import InvalidInput
from nasbook.plots.cells import figure_of
from nasbook.plots.curves import label_ends
from nasbook.plots.history import as_array
from nasbook.plots.palette import DASHES, INK, LINE_COLOURS, MARKERS, PAGE_WIDTH, styled

_SCALES = ("linear", "log")


def _look(number: int) -> dict[str, Any]:
    """Colour, line style and marker of a line; no two of the first seven share any but the solid style."""
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def _mean_and_error(
    values: Float[np.ndarray, "seeds points"],
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Mean and standard error over the seeds that are there; a single one has the error 0."""
    count = (~np.isnan(values)).sum(axis=0)
    mean = np.nansum(values, axis=0) / np.maximum(count, 1)
    deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(count - 1, 1))
    return np.where(count > 0, mean, np.nan), deviation / np.sqrt(np.maximum(count, 1))


def _axes(ax: Axes | None, height: float) -> Axes:
    return Figure(figsize=(PAGE_WIDTH, height), layout="constrained").subplots() if ax is None else ax


def _plain_logarithm(ax: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers: 0.1, 1, 10; with 2 and 5 between them where there is room."""
    getattr(ax, f"set_{which}scale")("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = getattr(ax, f"get_{which}lim")()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@styled
def plot_accuracy_against_size(
    curves: Mapping[str, Sequence[tuple[Any, Any]]],
    *,
    full: Any = None,
    xlabel: str = "size, % of the full network's parameters",
    ylabel: str = "test accuracy, %",
    xscale: str = "linear",
    ax: Axes | None = None,
) -> Figure:
    """Mean and standard error over seeds of the accuracy, against the size: one line a method (Firefly, Fig. 4a and 6).

    A point is one step of a growth. Its size is a mean over seeds too, with an error of its own, because a global
    budget gives every seed another network.

    Args:
        curves: for every label one pair (sizes, accuracies) a seed; all seeds of a label have the same number of
            points. Lists, arrays or tensors.
        full: the accuracies of the full network, one a seed; a dotted line with a band of one standard error.
        xlabel: what the sizes are.
        ylabel: what the accuracies are.
        xscale: "linear" or "log".
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no curve, or one that is ragged or not finite, or a scale that is none.
    """
    if not curves:
        raise InvalidInput("curves: expected at least one label with the sizes and accuracies of its seeds, got none.")
    if xscale not in _SCALES:
        raise InvalidInput(f'xscale: expected "linear" or "log", got {xscale!r}.')
    ax = _axes(ax, 3.3)
    for number, (label, seeds) in enumerate(curves.items()):
        sizes, accuracies = _pairs(label, seeds)
        if xscale == "log" and (sizes <= 0).any():
            raise InvalidInput(f"curves[{label!r}]: expected sizes above 0 on a logarithmic axis, got {sizes.min():g}.")
        (x, across), (y, up) = _mean_and_error(sizes), _mean_and_error(accuracies)
        ax.errorbar(
            x, y, xerr=across if across.any() else None, yerr=up if up.any() else None, label=label, capsize=2.5,
            elinewidth=1.0, markeredgecolor="white", markeredgewidth=0.5, markersize=5.5, **_look(number),
        )  # fmt: skip
    if full is not None:
        values = as_array(full)
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise InvalidInput(f"full: expected finite accuracies, one a seed, got {full!r}.")
        (mean,), (error,) = _mean_and_error(values[:, None])
        ax.axhline(mean, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.2, label="full network", gid="full")
        if error > 0:
            ax.axhspan(mean - error, mean + error, facecolor=INK, alpha=0.1, linewidth=0)
    if xscale == "log":
        _plain_logarithm(ax, "x")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(loc="best", handlelength=3.2)
    return figure_of(ax)


def _pairs(
    label: str, seeds: Sequence[tuple[Any, Any]]
) -> tuple[Float[np.ndarray, "seeds points"], Float[np.ndarray, "seeds points"]]:
    read = [(as_array(sizes), as_array(accuracies)) for sizes, accuracies in seeds]
    shapes = sorted({array.shape for pair in read for array in pair})
    if len(shapes) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise InvalidInput(
            f"curves[{label!r}]: expected one pair (sizes, accuracies) a seed, all of one length above 0; "
            f"got shapes {shapes}."
        )
    sizes, accuracies = (np.stack(part) for part in zip(*read, strict=True))
    if not (np.isfinite(sizes).all() and np.isfinite(accuracies).all()):
        raise InvalidInput(f"curves[{label!r}]: expected finite sizes and accuracies.")
    return sizes, accuracies


@styled
def plot_loss_by_neurons(
    losses: Mapping[str, Any],
    neurons: Any = None,
    *,
    xlabel: str = "neurons",
    ylabel: str = "training loss",
    ax: Axes | None = None,
) -> Figure:
    """Mean and standard error of the loss on a logarithmic axis, against the number of neurons (Firefly, Fig. 3).

    A bar whose lower end would be at or below zero ends at a tenth of its mean.

    Args:
        losses: for every label, numbers by repetition (such as target network) and number of neurons; nan where
            nothing was measured. Nested lists, arrays or tensors.
        neurons: the numbers of neurons, a list, an array or a tensor; 1, 2, 3, … by default.
        xlabel: what the numbers of neurons are.
        ylabel: what the losses are.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no label, or one with another number of columns, or a loss is not above zero.
    """
    if not losses:
        raise InvalidInput("losses: expected at least one label with its losses, got none.")
    ax = _axes(ax, 3.4)
    ax.set_yscale("log")
    counts = None if neurons is None else as_array(neurons)
    ends = []
    for number, (label, given) in enumerate(losses.items()):
        values = as_array(given)
        if counts is None and values.ndim == 2:
            counts = np.arange(1.0, values.shape[1] + 1)
        if values.ndim != 2 or not values.size or counts is None or values.shape[1:] != counts.shape:
            columns = "numbers of neurons" if counts is None else f"{len(counts)} numbers of neurons"
            raise InvalidInput(f"losses[{label!r}]: expected repetitions × {columns}, got shape {values.shape}.")
        there = ~np.isnan(values)
        if not there.any() or not (values[there] > 0).all() or np.isinf(values).any():
            raise InvalidInput(
                f"losses[{label!r}]: expected finite losses above 0, for a logarithmic axis; nan where there is none."
            )
        mean, error = _mean_and_error(values)
        shown = ~np.isnan(mean)
        x, mean, error = counts[shown], mean[shown], error[shown]
        below = np.minimum(error, 0.9 * mean)
        # A little beside each other, so that bars of equal numbers of neurons don't cover each other.
        x = x + 0.05 * (number - (len(losses) - 1) / 2)
        ax.errorbar(
            x, mean, yerr=np.stack([below, error]) if error.any() else None, label=label, capsize=2, elinewidth=0.9,
            markeredgecolor="white", markeredgewidth=0.5, markersize=5, **_look(number),
        )  # fmt: skip
        ends.append((label, float(x[-1]), float(mean[-1]), LINE_COLOURS[number % len(LINE_COLOURS)]))
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.03)
    ax.autoscale_view()
    label_ends(ax, ends)
    return figure_of(ax)


def fitted_slope(steps: Any, values: Any) -> float:
    """The exponent p of the power law ``values ∝ steps^p`` that fits best, by least squares of the logarithms.

    Args:
        steps: numbers above 0.
        values: as many numbers above 0; those that are nan don't count.

    Raises:
        InvalidInput: fewer than two steps have a value, or a number is not above 0.
    """
    x, y = as_array(steps), as_array(values)
    if x.ndim != 1 or x.shape != y.shape:
        raise InvalidInput(f"values: expected one for each of the steps, got shapes {x.shape} and {y.shape}.")
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if len(set(x.tolist())) < 2:
        raise InvalidInput(f"steps: expected two different ones with a value at least, got {x.tolist()}.")
    if not ((x > 0).all() and (y > 0).all()):
        raise InvalidInput("steps and values: expected numbers above 0, for their logarithms.")
    u, v = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    return float(u @ v / (u @ u))


@styled
def plot_orders(
    steps: Any,
    errors: Mapping[str, Any],
    *,
    slopes: Sequence[float] = (),
    fit: tuple[float, float] | None = None,
    xlabel: str = "ε",
    ylabel: str = "error",
    ax: Axes | None = None,
) -> Figure:
    """Errors against step sizes on logarithmic axes, with reference slopes and the exponents that fit.

    An error of order p is a line of slope p: O(ε) has slope 1, what a first-order Taylor expansion leaves has slope 2.
    The same picture shows how times grow with a width.

    Args:
        steps: step sizes, widths or the like, above 0.
        errors: for every label one number a step, or repetitions × steps, of which the mean is drawn with its
            standard error. nan where nothing was measured.
        slopes: reference lines to draw, such as ``(1, 2)``. Each goes through the last point of the line whose
            exponent is nearest, a little below it.
        fit: the least and the greatest step that count for the fitted exponents; all by default. Rounding spoils
            the smallest.
        xlabel: what the steps are.
        ylabel: what the errors are.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no label, a number is not above 0, or fewer than two steps count for an exponent.
    """
    if not errors:
        raise InvalidInput("errors: expected at least one label with its errors, got none.")
    x = as_array(steps)
    if x.ndim != 1 or not x.size or not (np.isfinite(x) & (x > 0)).all():
        raise InvalidInput(f"steps: expected finite numbers above 0, got {steps!r}.")
    within = np.ones(len(x), dtype=bool) if fit is None else (x >= fit[0]) & (x <= fit[1])
    ax = _axes(ax, 3.4)
    ax.set_xscale("log")
    ax.set_yscale("log")
    drawn: list[tuple[float, float, float]] = []
    for number, (label, given) in enumerate(errors.items()):
        values = np.atleast_2d(as_array(given))
        there = ~np.isnan(values)
        if values.ndim != 2 or values.shape[1] != len(x):
            raise InvalidInput(f"errors[{label!r}]: expected {len(x)} numbers, one a step, got shape {values.shape}.")
        if not (values[there] > 0).all() or np.isinf(values).any():
            raise InvalidInput(f"errors[{label!r}]: expected finite numbers above 0; nan where there is none.")
        mean, error = _mean_and_error(values)
        slope = fitted_slope(x[within], mean[within])
        below = np.minimum(error, 0.9 * mean)
        ax.errorbar(
            x, mean, yerr=np.stack([below, error]) if error.any() else None, capsize=2.5, elinewidth=1.0,
            markersize=5.5, label=f"{label}: slope {slope:.2f}", gid=f"errors-{number}", **_look(number),
        )  # fmt: skip
        counted = np.flatnonzero(~np.isnan(mean) & within)
        last = int(counted[x[counted].argmax()])  # steps may fall or rise
        drawn.append((slope, float(x[last]), float(mean[last])))
    for slope in slopes:
        _, at, height = min(drawn, key=lambda line: abs(line[0] - slope))
        ends = np.array([x[within].min(), at])
        ax.plot(
            ends, 0.45 * height * (ends / at) ** slope, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.1,
            marker="", gid=f"slope-{slope:g}",
        )  # fmt: skip
        middle = float(np.sqrt(ends.prod()))
        ax.annotate(
            f"slope {slope:g}", (middle, 0.45 * height * (middle / at) ** slope), xytext=(4, -2),
            textcoords="offset points", fontsize=7.5, ha="left", va="top",
        )  # fmt: skip
    if x.max() < 100 * x.min() and len(x) <= 12:  # too few powers of ten to read the steps by
        ax.xaxis.set_major_locator(FixedLocator(x.tolist()))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(loc="best", handlelength=3.2)
    return figure_of(ax)
