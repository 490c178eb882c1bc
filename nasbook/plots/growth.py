"""A growing network: how many neurons each width has over the epochs, and what that does to the loss.

A row is a width, in the order of the data; its ribbon is as thick as the width has neurons. The film of the same
rows is in :mod:`nasbook.plots.growth_film`.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, NullFormatter

from nasbook.errors import InvalidInput, unknown_name
from nasbook.plots.cells import text_size
from nasbook.plots.palette import (
    INK,
    LINE_COLOURS,
    OKABE_ITO,
    PAGE_WIDTH,
    styled,
    tint,
)

GROWING = "#dcdcdc"
"""Background of the epochs in which a network grows."""
LOSS, ACCURACY, SIZE = OKABE_ITO["vermillion"], LINE_COLOURS[0], INK
"""Colours of the curves: loss, accuracy and number of parameters."""
LOG_FROM = 20.0
"""The loss has a logarithmic axis where its greatest value is at least so many times its least."""


@runtime_checkable
class GrowthEpoch(Protocol):
    """The part of a growth's epoch report that figures read."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1."""

    @property
    def train_loss(self) -> float:
        """Loss on the training batches; nan where the epoch measured none."""

    @property
    def validation_accuracy(self) -> float | None:
        """Share of validation samples that are right, 0..1; nan or None where there is no such thing."""

    @property
    def neurons(self) -> Mapping[str, int]:
        """Neurons at the end of the epoch, by the name of the width, in the order of the data."""

    @property
    def parameters(self) -> int:
        """Parameters at the end of the epoch."""

    @property
    def phase(self) -> int:
        """0 before the first growth."""

    @property
    def growing(self) -> bool:
        """Whether the epoch is one of a growth itself."""


@dataclass(frozen=True)
class Kind:
    """How neurons of one origin look. Colour and texture say the same."""

    name: str
    """Where the neurons come from."""
    colour: str
    """Of the texture, and of a line."""
    fill: str | tuple[float, float, float]
    """Behind the texture."""
    hatch: str
    """Texture, as matplotlib takes it; "" for none, "|" for stripes, "." for dots."""


INITIAL = Kind("initial", OKABE_ITO["blue"], OKABE_ITO["blue"], "")
"""Neurons that were there from the beginning."""
SPLIT = Kind("from splits", OKABE_ITO["orange"], tint(OKABE_ITO["orange"], 0.3), "|")
"""Neurons that a split added."""
NEW = Kind("new", OKABE_ITO["bluish green"], tint(OKABE_ITO["bluish green"], 0.25), ".")
"""Neurons that began on their own."""
GROWN = Kind("grown", OKABE_ITO["orange"], tint(OKABE_ITO["orange"], 0.3), "|")
"""Neurons that were not there from the beginning, where nothing says whether they are new."""


@dataclass(frozen=True)
class GrowthTable:
    """A growing network's numbers by epoch, width and origin."""

    epochs: Int[np.ndarray, " epochs"]
    """Numbers of the epochs."""
    widths: tuple[str, ...]
    """Names of all widths that there ever are, in the order of the data."""
    kinds: tuple[Kind, ...]
    """The origins that are told apart."""
    counts: Int[np.ndarray, "epochs widths kinds"]
    """Neurons; 0 where there is no such width yet."""
    present: Bool[np.ndarray, "epochs widths"]
    """Whether there is such a width; one without neurons may be there."""
    loss: Float[np.ndarray, " epochs"]
    """Training loss; nan where there is none."""
    accuracy: Float[np.ndarray, " epochs"]
    """Validation accuracy in percent; nan where there is none."""
    parameters: Int[np.ndarray, " epochs"]
    """Parameters of the network."""
    growing: Bool[np.ndarray, " epochs"]
    """Whether the network grows in this epoch."""

    @property
    def growths(self) -> list[tuple[int, int]]:
        """First and last place of every run of epochs in which the network grows."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.growing, [0]])))
        return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]

    @property
    def neurons(self) -> Int[np.ndarray, "epochs widths"]:
        """Neurons of all origins together."""
        return self.counts.sum(axis=2)


def growth_table(
    history: Sequence[GrowthEpoch], origins: Sequence[Mapping[str, Sequence[int]]] | None = None
) -> GrowthTable:
    """What the reports of a growing network say, as arrays.

    Args:
        history: the reports.
        origins: for every report and width, how many neurons are initial, from splits, and new. Without it, the
            neurons of the first report are initial and all others are grown.

    Raises:
        InvalidInput: the history is empty, its widths change their order, or the origins don't add up to it.
    """
    if not history:
        raise InvalidInput("The history is empty; run at least one epoch of a growing network first.")
    widths = _widths(history)
    if not widths:
        raise InvalidInput("history: expected reports with the neurons of at least one width, got none.")
    neurons = np.array([[report.neurons.get(width, 0) for width in widths] for report in history], dtype=int)
    kinds: tuple[Kind, ...]
    if origins is None:
        kinds = (INITIAL, GROWN)
        initial = np.minimum.accumulate(neurons)  # a width that lost neurons lost initial ones
        counts = np.stack([initial, neurons - initial], axis=2)
    else:
        kinds = (INITIAL, SPLIT, NEW)
        counts = _counts(history, widths, origins)
    accuracies = [np.nan if report.validation_accuracy is None else report.validation_accuracy for report in history]
    return GrowthTable(
        epochs=np.array([report.epoch for report in history], dtype=int),
        widths=widths,
        kinds=kinds,
        counts=counts,
        present=np.array([[width in report.neurons for width in widths] for report in history]),
        loss=np.array([report.train_loss for report in history], dtype=float),
        accuracy=100 * np.array(accuracies, dtype=float),
        parameters=np.array([report.parameters for report in history], dtype=int),
        growing=np.array([report.growing for report in history], dtype=bool),
    )


def _widths(history: Sequence[GrowthEpoch]) -> tuple[str, ...]:
    """All names, in an order that every report keeps."""
    before: dict[str, list[str]] = {}
    for report in history:
        names = list(report.neurons)
        for number, name in enumerate(names):
            before.setdefault(name, []).extend(names[max(0, number - 1) : number])
    try:
        return tuple(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError as error:
        raise InvalidInput(
            f"history: the widths {', '.join(sorted(set(error.args[1])))} stand in another order in some epochs "
            "than in others. Expected all reports in the order of the data."
        ) from None


def _counts(
    history: Sequence[GrowthEpoch], widths: Sequence[str], origins: Sequence[Mapping[str, Sequence[int]]]
) -> Int[np.ndarray, "epochs widths 3"]:
    if len(origins) != len(history):
        raise InvalidInput(f"origins: expected one entry for each of {len(history)} reports, got {len(origins)}.")
    counts = np.zeros((len(history), len(widths), 3), dtype=int)
    for row, (report, entry) in enumerate(zip(history, origins, strict=True)):
        for name in entry:
            if name not in report.neurons:
                raise unknown_name(f"width in origins of epoch {report.epoch}:", name, report.neurons)
        for name, neurons in report.neurons.items():
            origin = tuple(entry.get(name, ()))
            if len(origin) != 3 or min(origin) < 0 or sum(origin) != neurons:
                raise InvalidInput(
                    f"origins, epoch {report.epoch}, width {name!r}: expected three counts (initial, split, new) that "
                    f"add up to its {neurons} neurons, got {origin}."
                )
            counts[row, widths.index(name)] = origin
    return counts


def elide(label: str, room: float, points: float) -> str:
    """The label, without its middle where it is wider than ``room`` inches: "blocks.3…projection"."""
    if text_size(label, points)[0] <= room:
        return label
    kept = len(label) - 1
    while kept > 2:
        shorter = f"{label[: kept // 2]}…{label[len(label) - (kept - kept // 2) :]}"
        if text_size(shorter, points)[0] <= room:
            return shorter
        kept -= 1
    return label[:1] + "…"


def reader_labels(widths: Sequence[str], labels: Mapping[str, str] | None) -> list[str]:
    """What stands beside each width: the label that was given for it, or its name.

    Raises:
        InvalidInput: there is a label for a width that there is not.
    """
    labels = labels or {}
    for name in labels:
        if name not in widths:
            raise unknown_name("width in labels", name, widths)
    return [labels.get(name, name) for name in widths]


def is_logarithmic(values: Float[np.ndarray, " epochs"]) -> bool:
    """Whether a loss is drawn on a logarithmic axis: it is above zero and spans more than :data:`LOG_FROM`."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() >= LOG_FROM * finite.min())


def _steps(values: np.ndarray) -> np.ndarray:
    """Every value at the beginning and at the end of its epoch."""
    return np.repeat(values, 2, axis=0)


def _borders(epochs: np.ndarray) -> np.ndarray:
    """Beginning and end of every epoch on the axis: half an epoch before its number and half after."""
    return np.stack([epochs - 0.5, epochs + 0.5], axis=1).ravel()


_LABEL_ROOM = 1.35
"""The most inches for the names of widths."""
_ROWS, _ROW, _CURVE = 3.0, 0.18, 0.85
"""Inches for all rows together where they fit, for a row at least, and for a curve."""
_GAP = 0.07
"""Inches between a ribbon and the baseline above it."""


@styled
def draw_growth(
    history: Sequence[GrowthEpoch],
    *,
    origins: Sequence[Mapping[str, Sequence[int]]] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Widths by layer over the epochs; below them the loss and the accuracy. Growths have a grey background.

    Every width is a row, from the input above to the output below. Its ribbon is as thick as it has neurons, on one
    scale for all rows. Left of it stands how many there are at first, right of it at last. The number of parameters
    stands above every phase that has room for it.

    Args:
        history: the reports of a growing network, such as Firefly's.
        origins: for every report and width, how many neurons are initial, from splits, and new. Without it, the
            neurons of the first report are initial and all others are grown.
        labels: what to write for a width instead of its name.

    Raises:
        InvalidInput: the history is empty, its widths change their order, or the origins don't add up to it.
    """
    table = growth_table(history, origins)
    names = [elide(label, _LABEL_ROOM, 8) for label in reader_labels(table.widths, labels)]
    curves: list[tuple[str, np.ndarray, str, Any, str]] = [("train loss", table.loss, LOSS, "-", "o")]
    if np.isfinite(table.accuracy).any():
        curves.append(("accuracy, %", table.accuracy, ACCURACY, (0, (5, 1.5)), "s"))
    scale, baselines = _baselines(table.neurons.max(axis=0))
    rows, top, bottom, between = float(baselines[-1]) + 0.04, 0.3, 0.75, 0.12
    total = top + rows + (between + _CURVE) * len(curves) + bottom
    number = max(text_size(str(int(n)), 7.5)[0] for n in table.neurons[[0, -1]].ravel())
    left = 0.12 + max(0.55, max(text_size(name, 8)[0] for name in names) + 0.1 + number + 0.08)
    right = number + 0.2
    figure = Figure(figsize=(PAGE_WIDTH, total))
    shape = functools.partial(_place, figure, left=left, right=right)
    ax = shape(low=total - top - rows, height=rows)
    panels = [shape(low=bottom + (between + _CURVE) * n, height=_CURVE, share=ax) for n in reversed(range(len(curves)))]

    _draw_ribbons(ax, table, scale, baselines)
    ax.set_ylim(rows, 0)
    wide = PAGE_WIDTH - left - right
    start, stop = float(table.epochs[0]) - 0.5, float(table.epochs[-1]) + 0.5
    for row, name in enumerate(names):
        words = [("name", -0.13 - number, "right", name, 8.0)]
        for place, x, side in (("first", -0.05, "right"), ("last", wide + 0.05, "left")):
            end = 0 if place == "first" else -1
            if table.present[end, row]:
                words.append((place, x, side, str(table.neurons[end, row]), 7.5))
        for word, x, side, text, points in words:
            thick = scale * float(table.neurons[-1 if word == "last" else 0, row])
            ax.text(x / wide, float(baselines[row]) - max(0.055, thick / 2), text, fontsize=points, ha=side,
                    transform=ax.get_yaxis_transform(), va="center", gid=f"{word}-{row}")  # fmt: skip
    _write_parameters(ax, table, wide)
    for panel, (name, values, colour, dashes, marker) in zip(panels, curves, strict=True):
        there = np.isfinite(values)
        panel.plot(
            table.epochs[there], values[there], color=colour, linestyle=dashes, marker=marker, markersize=3.5,
            markevery=max(1, int(there.sum()) // 12), linewidth=1.4, clip_on=False,
        )  # fmt: skip
        panel.set_ylabel(name, fontsize=8)
        if values is table.loss and is_logarithmic(values):
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(LogFormatterSciNotation())
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            panel.yaxis.set_major_locator(MaxNLocator(3))
        panel.tick_params(labelbottom=panel is panels[-1])
    figure.align_ylabels(panels)
    for axes in (ax, *panels):
        for first, last in table.growths:
            axes.axvspan(float(table.epochs[first]) - 0.5, float(table.epochs[last]) + 0.5, facecolor=GROWING,
                         linewidth=0, zorder=0.2, gid="growth")  # fmt: skip
        axes.set_xlim(start, stop)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(handles=_legend(table), loc="lower center", ncols=4, fontsize=8, borderaxespad=0.3)
    return figure


def _place(
    figure: Figure, *, left: float, right: float, low: float, height: float, share: Axes | None = None
) -> Axes:
    """Axes at a place in inches."""
    total = figure.get_figheight()
    box = (left / PAGE_WIDTH, low / total, (PAGE_WIDTH - left - right) / PAGE_WIDTH, height / total)
    return figure.add_axes(box, sharex=share)


def _baselines(most: Int[np.ndarray, " widths"]) -> tuple[float, Float[np.ndarray, " widths"]]:
    """Inches a neuron, and where the rows' baselines stand, in inches from above; a wide row takes more room."""

    def heights(scale: float) -> np.ndarray:
        return np.maximum(_ROW, scale * most + _GAP)

    low, high = 0.0, 0.12  # a tenth of an inch a neuron is enough for the smallest networks
    for _ in range(40):
        middle = (low + high) / 2
        if heights(middle).sum() <= max(_ROWS, 1.3 * _ROW * len(most)):
            low = middle
        else:
            high = middle
    return low, heights(low).cumsum()


def _draw_ribbons(ax: Axes, table: GrowthTable, scale: float, baselines: Float[np.ndarray, " widths"]) -> None:
    """The rows, in inches from above; a ribbon stands on its baseline, origins on top of each other."""
    x = _borders(table.epochs)
    for row, baseline in enumerate(baselines):
        there = _steps(table.present[:, row])
        ax.plot(np.where(there, x, np.nan), np.full(len(x), baseline), color=INK, linewidth=0.6, linestyle="-",
                gid=f"baseline-{row}")  # fmt: skip
        below = np.zeros(len(x))
        for number, kind in enumerate(table.kinds):
            above = below + _steps(table.counts[:, row, number]) * scale
            if (above > below).any():
                # No line around it: hatches have the edge's colour, and their own width.
                ax.fill_between(
                    x, baseline - below, baseline - above, where=above > below, facecolor=kind.fill,
                    hatch=_HATCHES[kind.hatch], edgecolor=kind.colour, linewidth=0, gid=f"{kind.name}-{row}",
                )  # fmt: skip
            below = above
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(labelbottom=False, length=0)


def _write_parameters(ax: Axes, table: GrowthTable, wide: float) -> None:
    """The number of parameters above the epochs between two growths, where it fits."""
    starts = [0, *(last for _, last in table.growths)]
    ends = [*(first for first, _ in table.growths), len(table.epochs)]
    inch = wide / (float(table.epochs[-1]) - float(table.epochs[0]) + 1)
    ax.text(-0.05 / wide, 1.0, "parameters", transform=ax.transAxes, ha="right", va="bottom", fontsize=7.5)
    free = -1.0
    last = len(starts) - 1
    for phase, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end <= start:
            continue
        words = f"{table.parameters[end - 1]:,}"
        width = text_size(words, 7.5)[0]
        middle = (float(table.epochs[start] + table.epochs[end - 1]) / 2 - float(table.epochs[0]) + 0.5) * inch
        middle = max(middle, width / 2) if phase < last else min(middle, wide - width / 2)
        if middle - width / 2 > free + 0.06:
            ax.text(middle / wide, 1.0, words, transform=ax.transAxes, ha="center", va="bottom", fontsize=7.5,
                    gid=f"parameters-{phase}")  # fmt: skip
            free = middle + width / 2


_HATCHES = {"": None, "|": "|||||", ".": "....."}


def _legend(table: GrowthTable) -> list[Patch]:
    """The origins that there are, and the background of growths."""
    handles = [
        Patch(facecolor=kind.fill, edgecolor=kind.colour, hatch=_HATCHES[kind.hatch], linewidth=0.6, label=kind.name)
        for number, kind in enumerate(table.kinds)
        if table.counts[:, :, number].any()
    ]
    if table.growths:
        handles.append(Patch(facecolor=GROWING, linewidth=0, label="the network grows"))
    return handles
