"""Accuracy against cost: what a comparison of methods says at a glance, and which of them none beats on both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, NullLocator

from nasbook.errors import InvalidInput, unknown_name
from nasbook.plots.cells import figure_of, text_size
from nasbook.plots.continual_results import plain_size
from nasbook.plots.history import as_array
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, MARKERS, PAGE_WIDTH, styled

if TYPE_CHECKING:
    from nasbook.analysis import Interval

__all__ = ["pareto_in_words", "plot_pareto"]

Points = Mapping[str, tuple[Any, Any]]
"""For every method the costs and the accuracies (as shares) of its seeds."""

_NAME_POINTS = 8.0
_MARKER_POINTS = 4.5
"""Half a marker's width."""


@dataclass(frozen=True)
class _Method:
    """One point of the figure."""

    name: str
    cost: float
    """Mean over seeds."""
    accuracy: Interval
    """In percent."""
    on_front: bool


def _methods(points: Points) -> list[_Method]:
    from nasbook.analysis import pareto_front  # here, as its package imports torch, and drawings don't

    if not points:
        raise InvalidInput("points: expected at least one method with its costs and accuracies, got none.")
    costs, accuracies = [], []
    for name, (spent, reached) in points.items():
        cost, share = as_array(spent), as_array(reached)
        if cost.ndim != 1 or cost.shape != share.shape or not cost.size:
            raise InvalidInput(
                f"points[{name!r}]: expected one cost and one accuracy a seed, got the shapes {cost.shape} and "
                f"{share.shape}."
            )
        if not np.isfinite(cost).all() or (cost < 0).any() or not ((share >= 0) & (share <= 1)).all():
            raise InvalidInput(
                f"points[{name!r}]: expected finite costs of 0 and above, and accuracies as shares of 0..1."
            )
        costs.append(float(cost.mean()))
        accuracies.append(_interval(100 * share))
    front = pareto_front(np.array(costs), np.array([accuracy.mean for accuracy in accuracies]))
    return [
        _Method(name, cost, accuracy, bool(best))
        for name, cost, accuracy, best in zip(points, costs, accuracies, front, strict=True)
    ]


def _interval(values: Float[np.ndarray, " seeds"]) -> Interval:
    from nasbook.analysis import Interval, mean_interval

    return mean_interval(values) if len(values) > 1 else Interval(*[float(values[0])] * 3)


@styled
def plot_pareto(
    points: Points,
    *,
    xlabel: str,
    groups: Mapping[str, str] | None = None,
    reference: str | None = None,
    ylabel: str = "test accuracy, %",
    ax: Axes | None = None,
) -> Figure:
    """Mean accuracy with its 95 % interval against the mean cost on a logarithmic axis; a line is the Pareto front.

    Filled markers are on the front: no other method is as cheap and better, or cheaper and as good, on average. A cost
    of 0 has a place of its own at the left. A single seed has no interval.

    Args:
        points: for every method the costs and the accuracies (as shares) of its seeds.
        xlabel: what the costs are, with their unit.
        groups: a kind for every method, with a colour and a marker of its own; all alike without it.
        reference: a method whose interval is a band across the figure.
        ylabel: what the accuracies are.
        ax: where to draw; a new figure without it.

    Raises:
        InvalidInput: there is no method, values don't go together, a cost is below 0 or an accuracy no share, or a
            method has no group.
    """
    methods = _methods(points)
    kinds = list(dict.fromkeys((groups or {}).values())) or [""]
    missing = [method.name for method in methods if groups is not None and method.name not in groups]
    if missing:
        raise InvalidInput(f"groups: expected a kind for every method; {missing} have none.")
    if reference is not None and reference not in points:
        raise unknown_name("method", reference, points)
    if ax is None:
        ax = Figure(figsize=(PAGE_WIDTH, 4.2), layout="constrained").subplots()
    free = _cost_axis(ax, [method.cost for method in methods])
    for method in methods:
        if method.name == reference:
            ax.axhspan(method.accuracy.low, method.accuracy.high, facecolor=FAINT, alpha=0.15, linewidth=0,
                       zorder=0, gid="reference")  # fmt: skip
    for number, kind in enumerate(kinds):
        colour, marker = LINE_COLOURS[number % len(LINE_COLOURS)], MARKERS[number % len(MARKERS)]
        for method in methods:
            if groups is not None and groups[method.name] != kind:
                continue
            half = method.accuracy.half
            ax.errorbar(
                [method.cost or free], [method.accuracy.mean], yerr=[half] if half > 0 else None, color=colour,
                marker=marker, markersize=2 * _MARKER_POINTS, linestyle="none", elinewidth=0.9, capsize=2.0,
                markerfacecolor=colour if method.on_front else "white", markeredgewidth=1.3, zorder=3,
                gid=f"method-{method.name}",
            )  # fmt: skip
        if groups is not None:
            ax.plot([], [], color=colour, marker=marker, markersize=6, linestyle="none", label=kind)
    _draw_front(ax, [method for method in methods if method.on_front], free)
    if reference is not None:
        ax.fill_between([], [], color=FAINT, alpha=0.15, linewidth=0, label=f"interval of {reference}")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.margins(y=0.08)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, handlelength=2.2)
    figure = figure_of(ax)
    figure.draw_without_rendering()  # names are placed by the axes' final size
    _write_names(ax, methods, free)
    return figure


def _cost_axis(ax: Axes, costs: Sequence[float]) -> float:
    """A logarithmic axis for the costs; returns the place for a cost of 0, left of all others."""
    above = [cost for cost in costs if cost > 0] or [1.0]
    low, high = min(above), max(above)
    room = max(high / low, 2.0) ** 0.1
    free = low / room**2
    ax.set_xscale("log")
    ax.set_xlim((free if 0 in costs else low) / room**0.9, high * room**1.3)
    ticks = LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)).tick_values(low / room, high * room)
    places = [tick for tick in ticks if low / room**0.9 <= tick <= high * room]
    names = [plain_size(tick) for tick in places]
    if 0 in costs:
        places, names = [free, *places], ["0", *names]
        # The axis is not to scale between nothing and the cheapest.
        ax.axvline(low / room, color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)), gid="break")
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_major_formatter(FixedFormatter(names))
    ax.xaxis.set_minor_locator(NullLocator())
    return free


def _draw_front(ax: Axes, front: Sequence[_Method], free: float) -> None:
    """Steps from one method of the front to the next dearer one: the best accuracy that a cost buys."""
    steps = sorted((method.cost or free, method.accuracy.mean) for method in front)
    x = [cost for cost, _ in steps] + [ax.get_xlim()[1]]
    y = [mean for _, mean in steps]
    ax.step(x, [*y, y[-1]], where="post", color=INK, linewidth=1.0, linestyle=(0, (4, 1.5)), zorder=1,
            label="Pareto front of the means", gid="front")  # fmt: skip


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def _shared(a: Box, b: Box) -> float:
    """Area of two boxes' common part."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _write_names(ax: Axes, methods: Sequence[_Method], free: float) -> None:
    """Each name beside its point, where it covers no other name and as little else as can be; far ones have a line."""
    unit = figure_of(ax).dpi / 72  # pixels a point

    def placed(x: float, y: float) -> tuple[float, float]:
        pixels = ax.transData.transform((x or free, y)) / unit
        return float(pixels[0]), float(pixels[1])

    where = {method.name: placed(method.cost, method.accuracy.mean) for method in methods}
    frame = ax.get_window_extent()
    page: Box = (frame.x0 / unit + 2, frame.y0 / unit + 2, frame.x1 / unit - 1, frame.y1 / unit - 1)
    around = _MARKER_POINTS + 1
    markers = [(x - around, y - around, x + around, y + around) for x, y in where.values()]
    bars = []
    for method in methods:
        x, low = placed(method.cost, method.accuracy.low)
        bars.append((x - 1.5, low, x + 1.5, placed(method.cost, method.accuracy.high)[1]))
    steps = sorted(where[method.name] for method in methods if method.on_front)
    for (left, height), (right, _) in zip(steps, [*steps[1:], (page[2], 0.0)], strict=True):
        bars.append((left, height - 2.5, right, height + 2.5))
    names: list[Box] = []

    def weight(box: Box) -> float:
        """What a name there covers; another name and the frame count most."""
        outside = (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, page)
        covered = sum(_shared(box, name) for name in names) + max(0.0, outside - 0.01)
        return 1e4 * covered + 40 * sum(_shared(box, m) for m in markers) + 2 * sum(_shared(box, bar) for bar in bars)

    # The crowded ones choose first.
    crowd = {name: sum(math.dist(own, other) < 60 for other in where.values()) for name, own in where.items()}
    for method in sorted(methods, key=lambda m: (-crowd[m.name], -m.accuracy.mean)):
        x, y = where[method.name]
        width, height = (72 * inches for inches in text_size(method.name, _NAME_POINTS))
        width *= 1.12 if method.on_front else 1.0  # bold
        choices = [
            (_box(x, y, width, height, far, angle), far) for far in range(7, 120, 4) for angle in range(0, 360, 15)
        ]
        best, far = min(choices, key=lambda choice: weight(choice[0]) + choice[1])
        names.append((best[0] - 1, best[1], best[2] + 1, best[3]))
        ax.annotate(
            method.name, (method.cost or free, method.accuracy.mean), (best[0] - x, (best[1] + best[3]) / 2 - y),
            textcoords="offset points", ha="left", va="center", fontsize=_NAME_POINTS, zorder=4,
            fontweight="bold" if method.on_front else "normal", gid=f"name-{method.name}",
            arrowprops=None if far < 12 else {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0,
                                              "shrinkB": _MARKER_POINTS},
        )  # fmt: skip


def _box(x: float, y: float, width: float, height: float, far: float, angle: int) -> Box:
    """The box of a name so far from a point in a direction, its nearest side or corner towards the point."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    left = x + far * across - width * (1 - across) / 2
    bottom = y + far * up - height * (1 - up) / 2
    return left, bottom, left + width, bottom + height


def pareto_in_words(points: Points, cost: str, *, digits: int = 1) -> str:
    """The figure as sentences, for alt texts: the range, the front from the cheapest on, and which intervals overlap.

    Args:
        points: as :func:`plot_pareto` takes them.
        cost: what the costs are, without a unit: "multiply-adds of the search".
        digits: of the accuracies, after the decimal point.

    Raises:
        InvalidInput: as :func:`plot_pareto`.
    """
    methods = _methods(points)
    ordered = sorted(methods, key=lambda method: method.accuracy.mean)
    worst, best = ordered[0], ordered[-1]
    front = sorted((method for method in methods if method.on_front), key=lambda method: method.cost)
    steps = ", ".join(
        f"{method.name} ({plain_size(method.cost)}; {method.accuracy.mean:.{digits}f} %)" for method in front
    )
    words = [
        f"Test accuracy against {cost} for {len(methods)} methods: from {worst.accuracy.mean:.{digits}f} % "
        f"({worst.name}) to {best.accuracy.mean:.{digits}f} % ({best.name}).",
        f"On the Pareto front, from the cheapest on: {steps}.",
    ]
    if any(method.accuracy.half > 0 for method in methods):
        alike = sum(method.accuracy.high >= best.accuracy.low for method in methods) - 1
        words.append(f"The 95 % intervals of {alike} other{'s reach' if alike != 1 else ' reaches'} that of the best.")
    return " ".join(words)
