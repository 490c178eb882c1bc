"""Three ways to grow a small network, as a drawing: split a neuron, add a neuron, add a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Patch

from nasbook.plots.growth import INITIAL, NEW, SPLIT, Kind
from nasbook.plots.palette import FAINT, INK, PAGE_WIDTH, styled, tint

_HEIGHT = 3.05
_MIDDLE = 1.78
"""Height of the networks' middle, in inches."""
_PITCH = 0.38
"""Inches from one neuron to the next."""
_HIGH = 0.25
"""Height of a neuron in inches."""
_RADIUS = 0.085
"""Of an input, a sum and the output, in inches."""
_LINES: dict[Kind, Any] = {INITIAL: "-", SPLIT: (0, (4, 1.6)), NEW: (0, (1, 1))}
"""Outlines that say the same as the colours."""


@dataclass(frozen=True)
class _Node:
    """A box with words, or a circle."""

    x: float
    y: float
    words: str = ""
    kind: Kind | None = None
    """Where a neuron comes from; None for inputs, sums and the output."""
    width: float = 0.0
    """Of a neuron, in inches."""

    @property
    def left(self) -> tuple[float, float]:
        return self.x - (self.width / 2 or _RADIUS), self.y

    @property
    def right(self) -> tuple[float, float]:
        return self.x + (self.width / 2 or _RADIUS), self.y


@styled
def draw_neurons() -> Figure:
    """Draws a network of one hidden layer, and the three ways to grow it (Firefly §2.2 and §2.3).

    From left to right: the network; a neuron split into two equal copies moved apart by ±εδ; a new neuron with
    weight ε; a new residual layer I + h, whose neurons have weights ε. Colours and outlines say which neurons were
    there, come from a split, or are new. Below stands what the network becomes. With ε = 0 all are the first one.
    """
    figure = Figure(figsize=(PAGE_WIDTH, _HEIGHT))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_xlim(0, PAGE_WIDTH)
    ax.set_ylim(0, _HEIGHT)
    ax.axis("off")

    _draw_wide(ax, 0.1, 1.02, 0.34, "the network", [(f"$\\theta_{n}$", INITIAL, "") for n in (1, 2, 3)])
    _draw_wide(
        ax, 1.4, 1.66, 0.66, "split a neuron",
        [(r"$\theta_1$", INITIAL, ""), (r"$\theta_2+\varepsilon\delta$", SPLIT, "½"),
         (r"$\theta_2-\varepsilon\delta$", SPLIT, "½"), (r"$\theta_3$", INITIAL, "")],
    )  # fmt: skip
    _draw_wide(
        ax, 3.36, 1.16, 0.34, "add a neuron",
        [(r"$\theta_1$", INITIAL, ""), (r"$\theta_2$", INITIAL, ""), (r"$\theta_3$", INITIAL, ""),
         (r"$\delta$", NEW, "ε")],
    )  # fmt: skip
    _draw_deep(ax, 4.8)
    for x, lines in (
        (0.61, (r"$f=\sum_i\,\sigma(x,\theta_i)$",)),
        (2.23, (r"$\sigma(x,\theta_2)\;\rightarrow$",
                r"$\frac{1}{2}\,\sigma(x,\theta_2{+}\varepsilon\delta)+\frac{1}{2}\,\sigma(x,\theta_2{-}\varepsilon\delta)$")),
        (3.94, (r"$f\;\rightarrow\;f+\varepsilon\,\sigma(x,\delta)$",)),
        (5.6, (r"$g_2\circ g_1\;\rightarrow\;g_2\circ(I+h)\circ g_1$",
               r"$h=\sum_i\,\varepsilon_i\,\sigma(\cdot,\delta_i)$")),
    ):  # fmt: skip
        for number, line in enumerate(lines):
            ax.text(x, 0.79 - 0.26 * number, line, ha="center", va="center", fontsize=8)
    handles = [
        Patch(facecolor=_fill(kind), edgecolor=kind.colour, linewidth=1.5, linestyle=_LINES[kind], label=label)
        for kind, label in ((INITIAL, "was there"), (SPLIT, "from a split"), (NEW, "new"))
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=8, borderaxespad=0.2)
    return figure


def _fill(kind: Kind) -> tuple[float, float, float]:
    return tint(kind.colour, 0.16)


def _column(x: float, count: int) -> list[tuple[float, float]]:
    """Places above each other, around the middle."""
    return [(x, _MIDDLE + _PITCH * ((count - 1) / 2 - row)) for row in range(count)]


def _draw_wide(
    ax: Axes, left: float, wide: float, neuron: float, title: str, neurons: list[tuple[str, Kind, str]]
) -> None:
    """A network of one hidden layer: words, origin and output weight of every neuron, from above."""
    inputs = [_Node(*place) for place in _column(left + _RADIUS, 2)]
    places = _column(left + wide / 2, len(neurons))
    hidden = [_Node(*place, words, kind, neuron) for place, (words, kind, _) in zip(places, neurons, strict=True)]
    output = _Node(left + wide - _RADIUS, _MIDDLE)
    for node, (_, kind, weight) in zip(hidden, neurons, strict=True):
        for source in inputs:
            _connect(ax, source, node, kind)
        _connect(ax, node, output, kind, weight)
    _draw(ax, [*inputs, *hidden, output])
    ax.text(left + wide / 2, _HEIGHT - 0.14, title, ha="center", va="center", fontsize=9.5, fontweight="bold")


def _draw_deep(ax: Axes, left: float) -> None:
    """The network with a residual layer between its neurons and its output."""
    inputs = [_Node(*place) for place in _column(left + _RADIUS, 2)]
    hidden = [
        _Node(*place, f"$\\theta_{n}$", INITIAL, 0.26) for n, place in enumerate(_column(left + 0.47, 3), start=1)
    ]
    new = [_Node(*place, f"$\\delta_{n}$", NEW, 0.26) for n, place in enumerate(_column(left + 0.91, 2), start=1)]
    sums = [_Node(*place, "+") for place in _column(left + 1.27, 3)]
    output = _Node(left + 1.61 - _RADIUS, _MIDDLE)
    ax.add_patch(
        FancyBboxPatch((left + 0.68, _MIDDLE - 1.5 * _PITCH), 0.72, 3 * _PITCH,
                       boxstyle="round,pad=0,rounding_size=0.06", facecolor=tint(NEW.colour, 0.06), edgecolor=FAINT,
                       linewidth=0.8, linestyle=(0, (2, 2)))
    )  # fmt: skip
    ax.text(left + 1.04, _MIDDLE + 1.5 * _PITCH + 0.1, "$I+h$", ha="center", va="center", fontsize=8.5)
    for node, total in zip(hidden, sums, strict=True):
        for source in inputs:
            _connect(ax, source, node, INITIAL)
        _connect(ax, node, total, INITIAL)  # the identity
        _connect(ax, total, output, INITIAL)
        for middle in new:
            _connect(ax, node, middle, NEW)
            _connect(ax, middle, total, NEW)
    _draw(ax, [*inputs, *hidden, *new, *sums, output])
    ax.text(left + 0.805, _HEIGHT - 0.14, "add a layer", ha="center", va="center", fontsize=9.5, fontweight="bold")


def _connect(ax: Axes, source: _Node, target: _Node, kind: Kind, weight: str = "") -> None:
    (x0, y0), (x1, y1) = source.right, target.left
    colour = FAINT if kind is INITIAL else kind.colour
    ax.plot([x0, x1], [y0, y1], color=colour, linestyle=_LINES[kind], linewidth=0.9 if kind is INITIAL else 1.1,
            marker="", zorder=1)  # fmt: skip
    if weight:
        ax.text(x0 + 0.4 * (x1 - x0), y0 + 0.4 * (y1 - y0), weight, ha="center", va="center", fontsize=8.5,
                bbox={"boxstyle": "circle,pad=0.08", "facecolor": "white", "edgecolor": "none"}, zorder=2)  # fmt: skip


def _draw(ax: Axes, nodes: list[_Node]) -> None:
    for node in nodes:
        if node.kind is None:
            ax.add_patch(Circle((node.x, node.y), _RADIUS, facecolor="white", edgecolor=INK, linewidth=1.0, zorder=3))
        else:
            ax.add_patch(
                FancyBboxPatch((node.x - node.width / 2, node.y - _HIGH / 2), node.width, _HIGH, zorder=3,
                               boxstyle="round,pad=0,rounding_size=0.1", facecolor=_fill(node.kind),
                               edgecolor=node.kind.colour, linestyle=_LINES[node.kind], linewidth=1.5,
                               gid=node.kind.name)
            )  # fmt: skip
        ax.text(node.x, node.y, node.words, ha="center", va="center_baseline" if node.words == "+" else "center",
                fontsize=8, zorder=4)  # fmt: skip
