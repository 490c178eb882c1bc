"""What learners of task sequences keep, lose and weigh: accuracy matrices, averages, sizes (Firefly, Fig. 5).

A matrix of accuracies is a triangle: row t has the test accuracies of tasks 0..t after task t was learned, as shares.
Figures write percent, and count tasks from 1 as the paper does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nasbook.errors import InvalidInput, require_positive
from nasbook.plots.cells import figure_of
from nasbook.plots.curves import label_ends
from nasbook.plots.palette import DASHES, FAINT, INK, LINE_COLOURS, MARKERS, OKABE_ITO, PAGE_WIDTH, styled, tint

Matrix: TypeAlias = Sequence[Sequence[float]]
Pair: TypeAlias = Sequence[float]
_SOLID, _LONG, _DOTTED, _MIXED = DASHES[:4]
_NUMBERS_FROM = 0.21
"""From so many inches a cell on, it has room for its number."""


@dataclass(frozen=True)
class LearnerLook:
    """How a learner looks in all figures."""

    colour: str
    dashes: Any
    marker: str
    thick: float = 1.5
    """Of its line, in points."""


_KNOWN = {
    "Firefly": LearnerLook(OKABE_ITO["blue"], _SOLID, "o", 2.4),
    "random growth": LearnerLook(OKABE_ITO["sky blue"], _DOTTED, "s"),
    "mask only": LearnerLook(OKABE_ITO["sky blue"], _LONG, "v"),
    "individual": LearnerLook(INK, _SOLID, "*"),
    "individual, thin": LearnerLook(INK, _DOTTED, "p"),
    "progressive": LearnerLook(INK, _LONG, "<"),
    "fine-tuned": LearnerLook(OKABE_ITO["vermillion"], _SOLID, "X"),
    "fine-tuned, slowly": LearnerLook(OKABE_ITO["vermillion"], _DOTTED, "h"),
    "EWC": LearnerLook(OKABE_ITO["orange"], _LONG, "D"),
    "LwF": LearnerLook(OKABE_ITO["reddish purple"], _MIXED, "P"),
    "PackNet": LearnerLook(OKABE_ITO["bluish green"], _LONG, ">"),
    "CPG": LearnerLook(OKABE_ITO["bluish green"], _SOLID, "^"),
}


def learner_looks(labels: Iterable[str]) -> dict[str, LearnerLook]:
    """A look for every label: the learners of Chapter 7 always have the same, others take what is left."""
    labels = list(dict.fromkeys(labels))
    found = {label: _KNOWN[label] for label in labels if label in _KNOWN}
    taken = {(look.colour, str(look.dashes)) for look in found.values()}
    free = [(colour, dashes) for dashes in (_SOLID, _LONG, _MIXED, _DOTTED) for colour in LINE_COLOURS]
    free = [(colour, dashes) for colour, dashes in free if (colour, str(dashes)) not in taken]
    for number, label in enumerate(label for label in labels if label not in found):
        colour, dashes = free[number % len(free)]
        found[label] = LearnerLook(colour, dashes, MARKERS[number % len(MARKERS)])
    return {label: found[label] for label in labels}


def percent_matrix(name: str, matrix: Matrix, tasks: int | None = None) -> list[list[float]]:
    """The rows of a matrix, in percent.

    Args:
        name: of the matrix, for messages.
        matrix: of accuracies, as shares.
        tasks: how many it must have; None for any number.

    Raises:
        InvalidInput: it is no triangle, has another number of tasks, or numbers that are no shares.
    """
    lengths = [len(row) for row in matrix]
    if not lengths or lengths != list(range(1, len(lengths) + 1)):
        raise InvalidInput(
            f"{name}: expected one accuracy in the first row, two in the second, and so on; got rows of {lengths}."
        )
    if tasks is not None and len(matrix) != tasks:
        raise InvalidInput(f"{name}: expected the accuracies of {tasks} tasks, got {len(matrix)} rows.")
    rows = [[100 * float(value) for value in row] for row in matrix]
    if not all(0 <= value <= 100 for row in rows for value in row):
        raise InvalidInput(f"{name}: expected accuracies as shares of 0..1.")
    return rows


def shade(value: float, low: float, high: float) -> str:
    """The shade of a number between the lightest and the darkest: one hue, never too dark for ink on it."""
    share = (value - low) / (high - low) if high > low else 1.0
    return to_hex(tint(OKABE_ITO["blue"], 0.05 + 0.57 * min(1.0, max(0.0, share))))


def shade_limits(values: Iterable[float]) -> tuple[float, float]:
    """The accuracies of the lightest and the darkest shade: all there are, and 20 percentage points at least."""
    values = list(values)
    return max(0.0, min(*values, max(values) - 20)), max(values)


# --- matrices ---------------------------------------------------------------------------------------------------------


@styled
def plot_accuracy_matrices(matrices: Mapping[str, Matrix], *, columns: int = 3) -> Figure:
    """Accuracies of all tasks after each task, a panel a learner, and below each what it has forgotten of every task.

    The darker, the more accurate; all panels have one scale. A learner that forgets nothing has columns of one shade.
    What a task has lost since it was best stands in the last row, in percentage points: Chaudhry et al. (2018), as
    :func:`nasbook.analysis.forgetting` has it; negative where it has gained.

    Args:
        matrices: for every label a matrix of accuracies.
        columns: panels beside each other.

    Raises:
        InvalidInput: there is no matrix, or one that is no triangle of shares.
    """
    require_positive(columns=columns)
    if not matrices:
        raise InvalidInput("matrices: expected at least one label with a matrix of accuracies, got none.")
    found = {label: percent_matrix(f"matrices[{label!r}]", matrix) for label, matrix in matrices.items()}
    from nasbook.analysis import forgetting  # here, as its package imports torch, and drawings don't

    lost = {label: 100 * forgetting(matrix) for label, matrix in matrices.items()}
    values = [value for rows in found.values() for row in rows for value in row]
    low, high = shade_limits(values)
    most = max([*(float(one.max()) for one in lost.values() if one.size), 1.0])
    columns = min(columns, len(found))
    left, gap, top, bottom = 0.78, 0.3, 0.5, 0.62
    tasks = max(map(len, found.values()))
    cell = min(0.36, (PAGE_WIDTH - left - 0.08 - gap * (columns - 1)) / (columns * tasks))
    side = cell * tasks
    lower = 0.13 + max(cell, 0.14)  # the row of what was forgotten
    lines = -(-len(found) // columns)
    total = lines * (top + side + lower) + bottom
    start = left + (PAGE_WIDTH - left - 0.08 - columns * side - gap * (columns - 1)) / 2
    figure = Figure(figsize=(PAGE_WIDTH, total))
    for number, (label, rows) in enumerate(found.items()):
        line, column = divmod(number, columns)
        above = line * (top + side + lower) + top
        ax = figure.add_axes((
            (start + column * (side + gap)) / PAGE_WIDTH, 1 - (above + side + lower) / total, side / PAGE_WIDTH,
            (side + lower) / total,
        ))  # fmt: skip
        ax.set_xlim(0, side)
        ax.set_ylim(side + lower, 0)
        ax.axis("off")
        _draw_triangle(ax, rows, cell, low, high)
        _draw_lost(ax, lost[label], len(rows), (cell, side + 0.13, max(cell, 0.14)), most)
        mean = float(np.mean(rows[-1]))
        ax.text(0, -0.22, label, fontsize=9.5, fontweight="bold", ha="left", va="center")
        ax.text(0, -0.08, f"{mean:.1f} % on average at the end", fontsize=7.5, ha="left", va="center", gid="mean")
        if not column:
            for task in _numbered(len(rows), cell):
                ax.text(-0.06, (task + 0.5) * cell, f"after task {task + 1}" if task == 0 else str(task + 1),
                        fontsize=7.5, ha="right", va="center")  # fmt: skip
            ax.text(-0.06, side + 0.13 + max(cell, 0.14) / 2, "forgotten", fontsize=7.5, ha="right", va="center")
        if number + columns >= len(found):
            for task in _numbered(len(rows), cell):
                ax.text((task + 0.5) * cell, side + lower + 0.09, str(task + 1), fontsize=7.5, ha="center", va="center")
            ax.text(side / 2, side + lower + 0.24, "task", fontsize=8, ha="center", va="center")
    _draw_scale(figure, total, low, high)
    return figure


def _numbered(tasks: int, cell: float) -> range:
    """The tasks whose numbers have room, a cell's width or more apart."""
    return range(0, tasks, max(1, math.ceil(0.15 / cell)))


def _draw_triangle(ax: Axes, rows: list[list[float]], cell: float, low: float, high: float) -> None:
    for after, row in enumerate(rows):
        for task, value in enumerate(row):
            ax.add_patch(Rectangle((task * cell, after * cell), cell, cell, facecolor=shade(value, low, high),
                                   edgecolor="white", linewidth=min(1.0, 4 * cell), gid=f"{after}-{task}"))  # fmt: skip
            if cell >= _NUMBERS_FROM:
                ax.text((task + 0.5) * cell, (after + 0.5) * cell, f"{value:.0f}", ha="center", va="center_baseline",
                        fontsize=min(8.0, 32 * cell), gid=f"number-{after}-{task}")  # fmt: skip


def _draw_lost(
    ax: Axes, lost: Float[np.ndarray, " earlier"], tasks: int, place: tuple[float, float, float], most: float
) -> None:
    """What was forgotten of each task, and a dash for the last one."""
    cell, top, high = place
    for task in range(tasks):
        value = float(lost[task]) if task < len(lost) else math.nan
        share = 0.0 if math.isnan(value) else max(0.0, value / most)
        fill = tint(OKABE_ITO["vermillion"], 0.04 + 0.6 * share)
        ax.add_patch(Rectangle((task * cell, top), cell, high, facecolor=fill, edgecolor="white",
                               linewidth=min(1.0, 4 * cell), gid=f"lost-{task}"))  # fmt: skip
        if cell >= _NUMBERS_FROM:
            words = "–" if math.isnan(value) else f"{value:.0f}".replace("-", "−").replace("−0", "0")
            ax.text((task + 0.5) * cell, top + high / 2, words, ha="center", va="center_baseline",
                    fontsize=min(8.0, 32 * cell), gid=f"lost-number-{task}")  # fmt: skip


def _draw_scale(figure: Figure, total: float, low: float, high: float) -> None:
    """The shades from the least to the greatest accuracy."""
    ax = figure.add_axes((0.0, 0.0, 1.0, 0.24 / total))
    ax.set_xlim(0, PAGE_WIDTH)
    ax.set_ylim(0, 0.24)
    ax.axis("off")
    wide, steps = 1.6, 16
    start = (PAGE_WIDTH - wide) / 2
    for step in range(steps):
        ax.add_patch(Rectangle((start + wide * step / steps, 0.07), wide / steps * 1.03, 0.11, linewidth=0,
                               facecolor=shade(step, 0, steps - 1)))  # fmt: skip
    ax.text(start - 0.06, 0.12, f"accuracy {low:.0f} %", fontsize=8, ha="right", va="center")
    ax.text(start + wide + 0.06, 0.12, f"{high:.0f} %", fontsize=8, ha="left", va="center")


# --- averages ---------------------------------------------------------------------------------------------------------


def _mean_and_error(values: Float[np.ndarray, "runs *rest"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over runs; the error of a single one is 0."""
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1:])
    return values.mean(axis=0), error


@styled
def plot_average_accuracy(
    matrices: Mapping[str, Sequence[Matrix]], *, paper: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Figure:
    """Average accuracy over the tasks seen so far, after each task: a line a learner (Firefly, Fig. 5b).

    A band is one standard error over the runs, each with another division into tasks.

    Args:
        matrices: for every label the matrices of accuracies of its runs, all of as many tasks.
        paper: accuracies at the end in percent to mark at the right, by what to write beside them.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no label or no run, or runs differ in their tasks.
    """
    tasks = {len(matrix) for runs in matrices.values() for matrix in runs}
    if not matrices or not all(matrices.values()) or len(tasks) != 1:
        raise InvalidInput(
            "matrices: expected for each label the matrices of its runs, all of the same number of tasks; got "
            f"{ {label: [len(matrix) for matrix in runs] for label, runs in matrices.items()} }."
        )
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 3.4), layout="constrained").subplots()
    count = tasks.pop()
    steps, ends = np.arange(1, count + 1), []
    looks = learner_looks(matrices)
    for label, runs in matrices.items():
        rows = [percent_matrix(f"matrices[{label!r}]", matrix) for matrix in runs]
        mean, error = _mean_and_error(np.array([[np.mean(row) for row in one] for one in rows]))
        look = looks[label]
        ax.plot(steps, mean, color=look.colour, linestyle=look.dashes, marker=look.marker, linewidth=look.thick,
                markersize=5, markeredgecolor="white", markeredgewidth=0.4, markevery=max(1, count // 10),
                zorder=3 if look.thick > 2 else 2, gid=f"learner-{label}")  # fmt: skip
        if error.any():
            ax.fill_between(steps, mean - error, mean + error, color=look.colour, alpha=0.15, linewidth=0)
        ends.append((label, float(count), float(mean[-1]), look.colour))
    for words, value in (paper or {}).items():
        ax.plot([count], [value], color=FAINT, marker="_", markersize=12, linestyle="none", gid="paper")
        ends.append((words, float(count), float(value), FAINT))
    ax.set_xlabel("tasks learned")
    ax.set_ylabel("accuracy on the tasks seen, %")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.margins(x=0.03)
    ax.autoscale_view()
    figure = figure_of(ax)
    figure.draw_without_rendering()  # the names are placed by the axes' final height
    label_ends(ax, ends)
    return figure


# --- against size -----------------------------------------------------------------------------------------------------


@styled
def plot_accuracy_against_memory(
    curves: Mapping[str, Mapping[Any, Sequence[Pair]]],
    points: Mapping[str, Sequence[Pair]] | None = None,
    *,
    xlabel: str = "parameters kept for all tasks",
    ax: Axes | None = None,
) -> Figure:
    """Average accuracy at the end against the size on a logarithmic axis (Firefly, Fig. 5a).

    Means over runs, with a standard error across and upwards. Firefly is a curve, each point with the number of neurons
    that a growth adds; every other learner is a point.

    Args:
        curves: for every label and number the pairs (parameters, accuracy as a share) of its runs.
        points: for every other label the pairs of its runs.
        xlabel: what the sizes are.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is nothing to draw, a size is not above 0 or an accuracy no share.
    """
    points = points or {}
    if not curves and not points:
        raise InvalidInput("curves and points: expected at least one label with its runs, got none.")
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 3.5), layout="constrained").subplots()
    looks = learner_looks([*curves, *points])
    ax.set_xscale("log")
    for label, numbers in curves.items():
        found = [_pairs(f"curves[{label!r}][{number!r}]", runs) for number, runs in numbers.items()]
        if not found:
            raise InvalidInput(f"curves[{label!r}]: expected at least one number with its runs, got none.")
        _draw_pairs(ax, label, found, looks[label])
        for number, ((size, accuracy), _) in zip(numbers, found, strict=True):
            ax.annotate(str(number), (size, accuracy), (0, 7), textcoords="offset points", ha="center", fontsize=7.5,
                        color=looks[label].colour, gid=f"number-{number}")  # fmt: skip
    for label, runs in points.items():
        _draw_pairs(ax, label, [_pairs(f"points[{label!r}]", runs)], looks[label])
    ax.margins(0.08, 0.13)
    ax.autoscale_view()
    _plain_sizes(ax)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("average accuracy at the end, %")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.6)
    return figure_of(ax)


def _pairs(name: str, runs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of (size, accuracy in percent) over the runs."""
    values = np.asarray(runs, dtype=float)
    if values.ndim != 2 or values.shape[1:] != (2,) or not len(values) or not np.isfinite(values).all():
        raise InvalidInput(f"{name}: expected pairs (parameters, accuracy), one a run, got {runs!r}.")
    if (values[:, 0] <= 0).any() or (values[:, 1] < 0).any() or (values[:, 1] > 1).any():
        raise InvalidInput(f"{name}: expected sizes above 0 and accuracies as shares of 0..1, got {runs!r}.")
    return _mean_and_error(values * [1, 100])


def _draw_pairs(ax: Axes, label: str, found: Sequence[tuple[np.ndarray, np.ndarray]], look: LearnerLook) -> None:
    means, errors = (np.array(part) for part in zip(*found, strict=True))  # (points, 2) each
    across = np.stack([np.minimum(errors[:, 0], 0.9 * means[:, 0]), errors[:, 0]])  # a logarithm needs more than 0
    ax.errorbar(
        means[:, 0], means[:, 1], xerr=across if errors[:, 0].any() else None,
        yerr=errors[:, 1] if errors[:, 1].any() else None, color=look.colour, linestyle=look.dashes, label=label,
        marker=look.marker, markersize=8, markeredgecolor="white", markeredgewidth=0.3, linewidth=look.thick,
        elinewidth=1.0, capsize=2.5, gid=f"learner-{label}",
    )  # fmt: skip


def _plain_sizes(ax: Axes) -> None:
    """Powers of ten on the horizontal axis as 1k, 10k, 1M; with 2 and 5 between them where there is room."""
    low, high = ax.get_xlim()
    places = LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)).tick_values(low, high)
    ax.xaxis.set_major_locator(FixedLocator([place for place in places if low <= place <= high]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_size(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def plain_size(value: float) -> str:
    """A number with three digits at most, thousands and millions as letters: 1.12k, 23.4M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
