"""What experiments on sequences show: losses by epoch and over seconds, parameters by nodes (growing DARTS, Fig. 3-9).

All take small multiples: for every panel's title the rows of results, and a row looks the same in all panels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.plots.curves import label_ends
from nasbook.plots.history import as_array
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, MARKERS, PAGE_WIDTH, styled

BASELINES = ("LSTM", "GRU")
"""Rows that are no answers of a search, and so dashed."""
Trials: TypeAlias = Sequence[Sequence[float]]
_DASHED: Any = (0, (5, 1.8))


@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    dashes: Any


def _looks(panels: Mapping[str, Mapping[str, Any]], dashed: Sequence[str]) -> dict[str, _Look]:
    """One look a row, the same in all panels.

    Baselines take the colours from the last on, so that they look the same in figures with more rows and with fewer.
    Beyond seven rows colours repeat, with dotted lines.
    """
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    found: dict[str, _Look] = {}
    count = {True: 0, False: 0}
    for name in sorted(names, key=lambda name: name in dashed):  # stable
        behind = name in dashed
        number, colours = count[behind], LINE_COLOURS[::-1] if behind else LINE_COLOURS
        dashes = _DASHED if behind else ("-", (0, (1, 1.2)))[min(1, number // len(colours))]
        found[name] = _Look(colours[number % len(colours)], MARKERS[len(found) % len(MARKERS)], dashes)
        count[behind] += 1
    return found


def _grid(panels: Mapping[str, Any], columns: int, height: float, what: str) -> tuple[Figure, list[Axes]]:
    """A figure with axes for all panels, from left to right and from top to bottom."""
    require_positive(columns=columns)
    if not panels or not all(panels.values()):
        raise InvalidInput(f"panels: expected at least one panel with at least one row of {what}, got {dict(panels)}.")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PAGE_WIDTH, 0.15 + height * rows), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in every[len(panels) :]:
        ax.set_axis_off()
    return figure, every[: len(panels)]


def _worded(words: str | Mapping[str, str], title: str) -> str:
    return words if isinstance(words, str) else words[title]


@styled
def plot_loss_panels(
    panels: Mapping[str, Mapping[str, Trials]],
    *,
    ylabel: str | Mapping[str, str],
    xlabel: str = "epoch",
    columns: int = 2,
    dashed: Sequence[str] = BASELINES,
    first: int = 1,
) -> Figure:
    """Mean and standard error over trials of losses by epoch, in small multiples with every line named at its end.

    Args:
        panels: for every title and row one sequence of losses a trial; all trials of a row have the same number of
            epochs. A loss that is not finite leaves a gap in the mean of its epoch. Such as Fig. 3: one panel a data
            set; Fig. 4-6: validation above, training below.
        ylabel: what is measured, with its unit; one for all panels or one by title.
        xlabel: what the steps are.
        columns: panels beside each other.
        dashed: rows to draw dashed; LSTM and GRU by default.
        first: the first epoch that the axis has room for. Losses of earlier ones may leave it, where they would press
            all others together.

    Raises:
        InvalidInput: there is no panel or row, or trials of a row differ in length.
    """
    require_positive(first=first)
    figure, every = _grid(panels, columns, 2.45, "losses")
    looks = _looks(panels, dashed)
    for ax, (title, rows) in zip(every, panels.items(), strict=True):
        ends, lowest, highest = [], math.inf, -math.inf
        for name, trials in rows.items():
            mean, error = _mean_and_error(trials, f"panels[{title!r}][{name!r}]")
            look, steps = looks[name], np.arange(1, len(mean) + 1)
            ax.plot(steps, mean, color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=3.6,
                    linewidth=1.4, markevery=max(1, len(steps) // 8), gid=f"row-{name}")  # fmt: skip
            if error.any():
                ax.fill_between(steps, mean - error, mean + error, color=look.colour, alpha=0.15, linewidth=0)
            there = np.flatnonzero(np.isfinite(mean))
            if len(there):
                counted = there[there + 1 >= min(first, there[-1] + 1)]
                lowest = min(lowest, float((mean - error)[counted].min()))
                highest = max(highest, float((mean + error)[counted].max()))
                ends.append((name, float(steps[there[-1]]), float(mean[there[-1]]), look.colour))
        if ends and lowest < highest:
            ax.set_ylim(lowest - 0.04 * (highest - lowest), highest + 0.04 * (highest - lowest))
        ax.set_title(title, fontsize=9.5)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(_worded(ylabel, title))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.margins(x=0.02)
        _name_ends(figure, ax, ends)
    numbers = sorted({len(trials) for rows in panels.values() for trials in rows.values()})
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    over = f"mean ± standard error over {span} trials; " if numbers[-1] > 1 else ""
    figure.supxlabel(f"{over}lower is better", fontsize=8)
    return figure


def _name_ends(figure: Figure, ax: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Names at the lines' ends. They are placed within the axes as they will be, so the figure is laid out first."""
    figure.draw_without_rendering()
    label_ends(ax, ends)


def _mean_and_error(
    trials: Trials, where: str
) -> tuple[Float[np.ndarray, " epochs"], Float[np.ndarray, " epochs"]]:
    """Mean and standard error over the finite losses of every epoch; nan where there is none, 0 for a single one."""
    lengths = sorted({len(trial) for trial in trials})
    if len(lengths) != 1 or not lengths[0]:
        raise InvalidInput(f"{where}: expected trials of one length above 0, got lengths {lengths}.")
    values = np.stack([as_array(trial) for trial in trials])
    values = np.where(np.isfinite(values), values, np.nan)
    count = (~np.isnan(values)).sum(axis=0)
    mean = np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)
    spread = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(count - 1, 1))
    return mean, spread / np.sqrt(np.maximum(count, 1))


@styled
def plot_loss_over_time(
    panels: Mapping[str, Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]],
    *,
    ylabel: str | Mapping[str, str],
    xlabel: str = "seconds of search",
    columns: int = 2,
    dashed: Sequence[str] = BASELINES,
    xscale: str = "linear",
    share: float = 1.0,
) -> Figure:
    """Losses against computing time: a point an epoch and trial, and in lines the median of the best loss so far.

    The points alone show no clear trend, as the paper says of its Fig. 7-9. A line begins when half of the trials have
    their first loss.

    Args:
        panels: for every title and row one pair a trial: seconds since its start at the end of every epoch, and losses.
        ylabel: what is measured, with its unit; one for all panels or one by title.
        xlabel: what the times are.
        columns: panels beside each other.
        dashed: rows to draw dashed.
        xscale: "linear" or "log".
        share: which part of the losses, from the least, the axis has room for; below 1 it leaves out early high ones.

    Raises:
        InvalidInput: there is no panel or row, a trial's times and losses differ in number, or times don't rise.
    """
    if xscale not in ("linear", "log"):
        raise unknown_name("xscale", xscale, ("linear", "log"))
    if not 0 < share <= 1:
        raise InvalidInput(f"share: expected a number above 0 and at most 1, got {share}.")
    figure, every = _grid(panels, columns, 2.65, "times and losses")
    looks = _looks(panels, dashed)
    for ax, (title, rows) in zip(every, panels.items(), strict=True):
        ends, drawn = [], []
        for name, trials in rows.items():
            look, pairs = looks[name], [_pair(trial, f"panels[{title!r}][{name!r}]") for trial in trials]
            seconds, losses = (np.concatenate(part) for part in zip(*pairs, strict=True))
            ax.plot(seconds, losses, linestyle="none", marker=look.marker, markersize=3.4, color=look.colour,
                    markerfacecolor="none", markeredgewidth=0.7, alpha=0.55, gid=f"points-{name}")  # fmt: skip
            drawn.append(losses[np.isfinite(losses)])
            times, medians = median_of_best(pairs)
            if len(times):
                ax.step(times, medians, where="post", color=look.colour, linestyle=look.dashes, linewidth=1.8,
                        marker="", gid=f"best-{name}")  # fmt: skip
                ends.append((name, float(times[-1]), float(medians[-1]), look.colour))
        finite = np.sort(np.concatenate(drawn))
        if len(finite) and finite[0] < finite[-1]:
            low, high = float(finite[0]), float(finite[max(1, math.ceil(share * len(finite)) - 1)])
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set_xscale(xscale)
        ax.set_title(title, fontsize=9.5)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(_worded(ylabel, title))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.margins(x=0.03)
        if xscale == "linear":
            ax.set_xlim(left=0)
            ax.xaxis.set_major_locator(MaxNLocator(5))
        right = ax.get_xlim()[1]
        for _, last, height, colour in ends:  # dotted from where the slowest trial ended to the name
            ax.plot([last, right], [height, height], color=colour, linestyle=(0, (1, 2)), linewidth=1.0, marker="",
                    scalex=False, gid="beyond")  # fmt: skip
        _name_ends(figure, ax, [(name, right, height, colour) for name, _, height, colour in ends])
    handles = [
        Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", color=FAINT,
               label="one epoch of one trial"),
        Line2D([], [], linestyle="-", linewidth=1.8, color=FAINT, label="median over trials of the best so far"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8,
                  title="lower is better", title_fontsize=8)  # fmt: skip
    return figure


def _pair(
    trial: tuple[Sequence[float], Sequence[float]], where: str
) -> tuple[Float[np.ndarray, " epochs"], Float[np.ndarray, " epochs"]]:
    seconds, losses = as_array(trial[0]), as_array(trial[1])
    if seconds.ndim != 1 or not seconds.size or seconds.shape != losses.shape:
        raise InvalidInput(f"{where}: expected as many losses as times, got {seconds.shape} and {losses.shape}.")
    if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any() or seconds[0] < 0:
        raise InvalidInput(f"{where}: expected times that rise from 0, such as a running sum of the epochs' seconds.")
    return seconds, losses


def median_of_best(
    trials: Sequence[tuple[Float[np.ndarray, " _epochs"], Float[np.ndarray, " _epochs"]]],
) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]:
    """At every time when a trial ends an epoch, the median over trials of their best loss so far.

    Before a trial has a finite loss it counts as infinite; times whose median is infinite are left out.
    """
    times = np.unique(np.concatenate([seconds for seconds, _ in trials]))
    best = np.full((len(trials), len(times)), np.inf)
    for number, (seconds, losses) in enumerate(trials):
        so_far = np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf))
        place = np.searchsorted(seconds, times, side="right") - 1
        best[number] = np.where(place >= 0, so_far[place], np.inf)
    # The upper middle one of an even number, so that no infinity is averaged.
    medians = np.sort(best, axis=0)[len(trials) // 2]
    known = np.isfinite(medians)
    return times[known], medians[known]


@styled
def plot_parameters_by_nodes(
    panels: Mapping[str, Mapping[str, Mapping[int, int]]],
    *,
    constants: Mapping[str, Mapping[str, int]] | None = None,
    columns: int = 2,
) -> Figure:
    """Parameters of backbones by their number of nodes, with the break-even of the first two (growing DARTS, Table 2).

    A dotted line is the least number of nodes at which the second backbone has no more parameters than the first.

    Args:
        panels: for every title (such as a data set) and backbone, its parameters by number of nodes.
        constants: for every title, parameters of networks without nodes, such as the LSTM; dashed level lines.
        columns: panels beside each other.

    Raises:
        InvalidInput: there is no panel or backbone, or constants for a title that is none.
    """
    figure, every = _grid(panels, columns, 2.75, "parameters")
    constants = constants or {}
    for title in constants:
        if title not in panels:
            raise unknown_name("title in constants", title, panels)
    both = {title: {**rows, **constants.get(title, {})} for title, rows in panels.items()}
    dashed = [name for rows in constants.values() for name in rows]
    looks = _looks(both, dashed)
    for ax, (title, rows) in zip(every, panels.items(), strict=True):
        ends = []
        last = max(node for counts in rows.values() for node in counts)
        for name, counts in rows.items():
            look, nodes = looks[name], sorted(counts)
            ax.plot(nodes, [counts[node] for node in nodes], color=look.colour, marker=look.marker, linestyle="-",
                    gid=f"row-{name}")  # fmt: skip
            ends.append((name, float(nodes[-1]), float(counts[nodes[-1]]), look.colour))
        for name, count in constants.get(title, {}).items():
            ax.axhline(count, color=looks[name].colour, linestyle=_DASHED, linewidth=1.3, marker="", gid=f"row-{name}")
            ends.append((f"{name} {count:,}", float(last), float(count), looks[name].colour))
        ax.set_ylim(bottom=0)
        ax.margins(x=0.03)
        _mark_break_even(ax, rows)
        ax.set_title(title, fontsize=9.5)
        ax.set_xlabel("nodes")
        ax.set_ylabel("parameters")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _name_ends(figure, ax, ends)
    return figure


def break_even(first: Mapping[int, int], second: Mapping[int, int]) -> int | None:
    """The least number of nodes at which the second backbone has no more parameters than the first, and had before."""
    shared = sorted(set(first) & set(second))
    if not shared or second[shared[0]] <= first[shared[0]]:
        return None
    return next((node for node in shared if second[node] <= first[node]), None)


def _mark_break_even(ax: Axes, rows: Mapping[str, Mapping[int, int]]) -> None:
    if len(rows) < 2:
        return
    (_, first), (_, second), *_ = rows.items()
    node = break_even(first, second)
    if node is None:
        return
    ax.axvline(node, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.1, marker="", zorder=1, gid="break-even")
    words = f"break-even at {node} nodes:\n{second[node]:,} ≤ {first[node]:,}"
    ax.annotate(words, (node, second[node]), xytext=(0.03, 0.97), textcoords="axes fraction", fontsize=8, va="top",
                ha="left", gid="break-even-words",
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkB": 4})  # fmt: skip
