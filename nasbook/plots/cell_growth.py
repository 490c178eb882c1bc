"""A cell that grows while it is searched (growing DARTS, Chapter 6): its reports and events, and figures of them.

The same reports as a film are in :mod:`nasbook.plots.cell_film`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import Genotype
from nasbook.plots.animation import pick
from nasbook.plots.palette import FAINT, INK, LINE_COLOURS, PAGE_WIDTH, OperationStyle, styled
from nasbook.plots.recurrent_cells import (
    LEAST_PITCH,
    EdgeWeights,
    Wiring,
    all_styles,
    candidate_label,
    candidate_letter,
    draw_plan,
    panel_in_pixels,
    part_colours,
    plan_cell,
    wiring,
)
from nasbook.plots.svg import PIXELS


@runtime_checkable
class StageEpoch(Protocol):
    """The part of an epoch report that figures of a growing cell read."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1."""

    @property
    def stage(self) -> int:
        """Number of the stage, from 1."""

    @property
    def tuning(self) -> bool:
        """Whether the cell was pruned and only weights learned."""

    @property
    def parameters(self) -> int:
        """Parameters of the network."""

    @property
    def train_loss(self) -> float:
        """Mean loss of the training batches."""

    @property
    def validation_loss(self) -> float:
        """Loss on validation data."""

    @property
    def weights(self) -> Mapping[str, EdgeWeights]:
        """For every kind of cell its edges with their candidates' softmax weights."""


@runtime_checkable
class StageEvent(Protocol):
    """The part of a change of the cell that figures read: :class:`nasbook.methods.growing_search.CellEvent`."""

    @property
    def epoch(self) -> int:
        """Finished epochs before it."""

    @property
    def stage(self) -> int:
        """The stage that it ends, or stands in."""

    @property
    def what(self) -> str:
        """node, prune, stop, or what happened to operations."""

    @property
    def loss_before(self) -> float:
        """Validation loss before."""

    @property
    def loss_after(self) -> float:
        """Validation loss of the changed cell."""

    @property
    def operations(self) -> Sequence[Any]:
        """What happened to operations, one entry each."""


TUNING = "#ececec"
"""Background of the epochs in which only weights learn."""
VALIDATION, TRAINING = LINE_COLOURS[0], LINE_COLOURS[1]
"""Colours of the two losses."""
MARKS = {"node": "+", "prune": "−", "stop": "■"}
"""What stands for an event in a curve; ± for what happens to operations."""


def mark_of(event: StageEvent) -> str:
    """What stands for an event in a curve."""
    return MARKS.get(event.what, "±")


def in_numbers(loss: float) -> str:
    """A loss for readers, with four digits that count."""
    return f"{loss:.4g}" if loss else "0"


def event_in_words(event: StageEvent) -> str:
    """What an event does, in few words."""
    losses = f"{in_numbers(event.loss_before)} → {in_numbers(event.loss_after)}"
    if event.what == "node":
        return f"a node grows: loss {losses}"
    if event.what == "prune":
        return f"pruned: loss {losses}"
    if event.what == "stop":
        return "no gain: back to the stage before"
    number = len(event.operations)
    verb = "split" if event.what == "split" else "change"
    return f"1 operation {verb}s: {losses}" if number == 1 else f"{number or 'some'} operations {verb}: {losses}"


Candidate = tuple[int, int, str]
"""Source, target and name."""


@dataclass(frozen=True)
class Span:
    """Epochs one after another in which the cell has the same nodes, edges and candidates."""

    first: int
    """Place of its first report in the history."""
    last: int
    """Place of its last report."""
    cell: Wiring
    """The cell after its last epoch."""
    new_nodes: frozenset[int]
    """Nodes that the cell before did not have."""
    born: frozenset[Candidate]
    """Candidates that the cell before did not have; none at first."""
    dying: frozenset[Candidate]
    """Candidates that the next cell does not have."""


def _candidates(cell: Wiring) -> frozenset[Candidate]:
    return frozenset((source, target, name) for source, target, weights in cell.edges for name, _ in weights)


def chosen_kind(history: Sequence[StageEpoch], kind: str | None) -> str:
    """The kind of cell to draw: the first by default.

    Raises:
        InvalidInput: the history is empty, or has no such kind.
    """
    if not history:
        raise InvalidInput("The history is empty; run at least one epoch of a search first.")
    found = next(iter(history[0].weights)) if kind is None else kind
    for report in history:
        if found not in report.weights:
            raise unknown_name("kind of cell", found, report.weights)
    return found


def spans_of(history: Sequence[StageEpoch], kind: str) -> list[Span]:
    """The history in pieces between changes of the cell."""
    cells = [wiring(report.weights[kind], kind) for report in history]
    pieces: list[tuple[int, int]] = []
    for _, group in itertools.groupby(range(len(cells)), key=lambda place: _candidates(cells[place])):
        places = list(group)
        pieces.append((places[0], places[-1]))
    spans = []
    for number, (first, last) in enumerate(pieces):
        here = _candidates(cells[last])
        before = _candidates(cells[first - 1]) if number else here
        after = _candidates(cells[last + 1]) if number + 1 < len(pieces) else here
        known = cells[first - 1].nodes if number else cells[last].nodes
        new = frozenset(range(known + 1, cells[last].nodes + 1))
        spans.append(Span(first, last, cells[last], new, here - before, here - after))
    return spans


def stage_losses(history: Sequence[StageEpoch], events: Sequence[StageEvent]) -> list[tuple[int, int, float]]:
    """By which loss every stage is judged: its first and its last epoch, and its best validation loss (Algorithm 2).

    Tuning belongs to its stage where every stage has it. At the end it is a piece of its own, as is a stage under way.
    """
    found: list[tuple[int, int, float]] = []
    first, pruned = history[0].epoch, False
    for event in events:
        at_end = event.what == "prune" and bool(found) and not pruned
        if event.epoch >= first and (event.what in ("node", "stop") or at_end):
            found.append((first, event.epoch, event.loss_before))
            first = event.epoch + 1
        pruned = pruned or event.what == "prune"
    rest = [report for report in history if report.epoch >= first]
    judged = [report.validation_loss for report in rest if report.tuning or not any(one.tuning for one in rest)]
    if judged:
        found.append((first, rest[-1].epoch, min(judged)))
    return found


def found_loss(history: Sequence[StageEpoch], events: Sequence[StageEvent]) -> float:
    """The validation loss of the cell that the search answered."""
    if events and events[-1].what == "stop":
        return events[-1].loss_after
    return stage_losses(history, events)[-1][2]


# --- a search that a record has ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedEpoch:
    """A :class:`StageEpoch` that was read from a record."""

    epoch: int
    stage: int
    tuning: bool
    parameters: int
    train_loss: float
    validation_loss: float
    weights: Mapping[str, EdgeWeights]


@dataclass(frozen=True)
class RecordedEvent:
    """A :class:`StageEvent` that was read from a record."""

    epoch: int
    stage: int
    what: str
    loss_before: float
    loss_after: float
    operations: tuple[Any, ...] = ()


def recorded_search(
    values: Mapping[str, Any],
) -> tuple[tuple[RecordedEpoch, ...], tuple[RecordedEvent, ...], Genotype]:
    """The reports, the events and the answer of a search in a record of "growing-series" or "growing-language".

    Records have the weights of a phase's first and last epochs. The epochs between get those of the nearer one.

    Args:
        values: of one trial of one row: ``record.measurements[i].values[place][row]``.

    Raises:
        InvalidInput: the row has no search, or a phase has no weights.
    """
    for name in ("search", "events", "genotype"):
        if not values.get(name) and not (name == "events" and name in values):
            raise InvalidInput(f"values: expected a row with a search, this one has no {name!r}.")
    course: Sequence[Mapping[str, Any]] = values["search"]

    def weights(epoch: Mapping[str, Any]) -> Mapping[str, EdgeWeights]:
        phase = (epoch["stage"], epoch["tuning"])
        known = [other for other in course if "weights" in other and (other["stage"], other["tuning"]) == phase]
        if not known:
            raise InvalidInput(f"values: epoch {epoch['epoch']} and its phase have no weights, so there is no cell.")
        nearest: Mapping[str, Any] = min(known, key=lambda other: abs(other["epoch"] - epoch["epoch"]))
        return {
            kind: [(source, target, dict(names)) for source, target, names in edges]
            for kind, edges in nearest["weights"].items()
        }

    history = tuple(
        RecordedEpoch(epoch["epoch"], epoch["stage"], epoch["tuning"], epoch["parameters"], epoch["train"],
                      epoch["validation"], weights(epoch))
        for epoch in course
    )  # fmt: skip
    events = tuple(
        RecordedEvent(event["epoch"], event["stage"], event["what"], event["loss_before"], event["loss_after"],
                      tuple(event.get("changes", ())))
        for event in values["events"]
    )  # fmt: skip
    return history, events, Genotype.from_json(values["genotype"])


# --- in words ---------------------------------------------------------------------------------------------------------


def cell_growth_in_words(
    history: Sequence[StageEpoch], events: Sequence[StageEvent], *, kind: str | None = None
) -> str:
    """A growing search as sentences, for alt texts: how it begins, what happens after which epoch, how it ends."""
    kind = chosen_kind(history, kind)
    spans = spans_of(history, kind)
    words = [f"The {kind} cell begins with {_counted(spans[0].cell.nodes, 'node')}."]
    for epoch, group in itertools.groupby(events, key=lambda event: event.epoch):
        words.append(f"After epoch {epoch}: {'; '.join(event_in_words(event) for event in group)}.")
    words.append(
        f"The search ends after epoch {history[-1].epoch}; the validation loss of its answer is "
        f"{in_numbers(found_loss(history, events))}."
    )
    return " ".join(words)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"


# --- the search in one picture ----------------------------------------------------------------------------------------


@styled
def draw_cell_growth(
    history: Sequence[StageEpoch],
    events: Sequence[StageEvent],
    *,
    kind: str | None = None,
    loss: str = "loss",
    cells: int = 6,
) -> Figure:
    """A growing search in one picture: the cell at the end of every phase, and the losses with the phases' borders.

    Letters say where in the curves a cell belongs. New nodes have a bold ring. Black steps have the loss by which each
    stage is judged; the search goes on if they go down.

    Args:
        history: the reports of a growing search of recurrent cells.
        events: its events.
        kind: which kind of cell; the first by default.
        loss: what the loss is, such as "mean squared error".
        cells: the most cells to draw; of more phases some are left out, evenly.

    Raises:
        InvalidInput: the history is empty, or has no such kind of cell.
    """
    require_positive(cells=cells)
    kind = chosen_kind(history, kind)
    spans = spans_of(history, kind)
    shown = [spans[place] for place in pick(len(spans), cells)]
    columns = len(shown) if len(shown) <= 3 else 4 if len(shown) in (4, 7, 8) else 3
    wide = PAGE_WIDTH * PIXELS / columns
    plans = [plan_cell(span.cell, min(wide, 300.0), pitch=LEAST_PITCH) for span in shown]
    rows = [list(range(first, min(first + columns, len(shown)))) for first in range(0, len(shown), columns)]
    head, curve, below = 40.0, 150.0, 44.0
    heights = [head + max(plans[place].height for place in row) for row in rows]
    total = sum(heights) + 34 + curve + below
    figure = Figure(figsize=(PAGE_WIDTH, total / PIXELS))
    styles = all_styles([span.cell for span in spans])
    top = 0.0
    for row, high in zip(rows, heights, strict=True):
        for column, place in enumerate(row):
            span, plan = shown[place], plans[place]
            inner = min(wide, 300.0)
            left = wide * column + (wide - inner) / 2
            ax = panel_in_pixels(figure, (left, top + head, inner, plan.height))
            draw_plan(ax, span.cell, plan, styles, 1.0, sorted(span.new_nodes))
            first, last = history[span.first].epoch, history[span.last].epoch
            title = f"$\\bf{{{_letter(place)}}}$  epoch{f's {first}–' if last > first else ' '}{last}"
            phase = "only weights learn" if history[span.last].tuning else "weights and α learn"
            middle = (left + inner / 2) / (PAGE_WIDTH * PIXELS)
            figure.text(middle, 1 - (top + 16) / total, title, ha="center", fontsize=9, gid=f"title-{place}")
            figure.text(middle, 1 - (top + 31) / total, phase, ha="center", fontsize=8)
        top += high
    ax = figure.add_axes(
        (70 / (PAGE_WIDTH * PIXELS), below / total, 1 - (70 + 78) / (PAGE_WIDTH * PIXELS), curve / total)
    )  # fmt: skip
    _draw_losses(ax, history, events, loss)
    for place, span in enumerate(shown):
        middle = (history[span.first].epoch + history[span.last].epoch) / 2
        ax.text(middle, 0.985, _letter(place), transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=9,
                fontweight="bold", gid=f"letter-{place}")  # fmt: skip
    return figure


def _letter(place: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[place % 26]


def _draw_losses(ax: Axes, history: Sequence[StageEpoch], events: Sequence[StageEvent], loss: str) -> None:
    """Both losses, named at their ends, with the borders of the phases."""
    epochs = [report.epoch for report in history]
    for tuned, group in itertools.groupby(history, key=lambda report: report.tuning):
        places = [report.epoch for report in group]
        if tuned:
            ax.axvspan(places[0] - 0.5, places[-1] + 0.5, facecolor=TUNING, linewidth=0, zorder=0, gid="tuning")
    steps = stage_losses(history, events)
    ax.plot(
        [at for first, last, _ in steps for at in (first - 0.5, last + 0.5)], [at for *_, at in steps for _ in (0, 1)],
        color=INK, linestyle="-", linewidth=1.0, marker="", gid="stages", zorder=2,
    )  # fmt: skip
    for values, name, colour, dashes, marker in (
        ([report.validation_loss for report in history], "validation", VALIDATION, "-", "o"),
        ([report.train_loss for report in history], "training", TRAINING, (0, (5, 1.5)), "s"),
    ):
        every = max(1, len(epochs) // 8)
        ax.plot(epochs, values, color=colour, linestyle=dashes, marker=marker, markevery=every, gid=name)
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            ax.annotate(name, (epochs[-1] + 0.5, finite[-1]), xytext=(5, 0), textcoords="offset points", fontsize=8.5,
                        va="center", color=INK, annotation_clip=False)  # fmt: skip
    ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    bottom, high = ax.get_ylim()
    ax.set_ylim(bottom, high + 0.12 * (high - bottom))  # room for the letters
    mark_events(ax, events)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{loss},\nlower is better")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.grid(False, axis="x")
    ax.text(1.0, 1.13, signs_in_words(events), transform=ax.transAxes, ha="right", va="bottom", fontsize=8)


def mark_events(ax: Axes, events: Sequence[StageEvent]) -> None:
    """A dashed line and a sign above the axes for every change of the cell."""
    for epoch, group in itertools.groupby(sorted(events, key=lambda event: event.epoch), key=lambda one: one.epoch):
        signs = "".join(dict.fromkeys(mark_of(event) for event in group))
        ax.axvline(epoch + 0.5, color=FAINT, linestyle=(0, (3, 2)), linewidth=0.9, marker="", zorder=1, gid="border")
        ax.text(epoch + 0.5, 1.02, signs, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=8.5,
                gid=f"mark-{epoch}")  # fmt: skip


def signs_in_words(events: Sequence[StageEvent]) -> str:
    """What the signs mean that stand for these events."""
    words = {
        "+": "+ a node grows",
        "−": "− pruned",
        "±": "± operations change",
        "■": "■ no gain: back to the stage before",
    }
    signs = {mark_of(event) for event in events}
    return "   ".join(words[sign] for sign in words if sign in signs)


# --- the candidates of an edge over the epochs ------------------------------------------------------------------------


@styled
def plot_candidate_weights(
    history: Sequence[StageEpoch],
    events: Sequence[StageEvent] = (),
    *,
    kind: str | None = None,
    edges: Sequence[tuple[int, int]] | None = None,
) -> Figure:
    """How the softmax weights of an edge's candidates move while operations are duplicated, pruned and replaced.

    One panel an edge; the bands are the candidates, as high as their weights, and together 1. Copies are paler than
    their originals and stand beside them. Signs above a panel say what happens to the whole cell.

    Args:
        history: the reports of a growing search of recurrent cells.
        events: its events.
        kind: which kind of cell; the first by default.
        edges: (source, target) of the edges to show; all that the cell ever has by default.

    Raises:
        InvalidInput: the history is empty, or has no such kind of cell or edge.
    """
    kind = chosen_kind(history, kind)
    cells = [wiring(report.weights[kind], kind) for report in history]
    known = dict.fromkeys((source, target) for cell in cells for source, target, _ in cell.edges)
    every = sorted(known, key=lambda pair: (pair[1], pair[0]))
    for edge in edges or ():
        if tuple(edge) not in known:
            raise InvalidInput(f"edges: {tuple(edge)} is not an edge (source, target) of this search.")
    chosen = [(source, target) for source, target in edges] if edges else every
    columns = min(2 if len(chosen) in (2, 4) else 3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(PAGE_WIDTH, 0.75 + (1.65 if columns > 1 else 2.0) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    styles = all_styles(cells)
    for place, ax in enumerate(panels.flat):
        if place >= len(chosen):
            ax.set_axis_off()
            continue
        _draw_bands(ax, history, cells, chosen[place], styles)
        mark_events(ax, events)
        source, target = chosen[place]
        ax.set_title(_edge_name(cells[-1].backbone, source, target), fontsize=8.5, pad=15 if events else 4)
        ax.set_xlim(history[0].epoch - 0.5, history[-1].epoch + 0.5)
        ax.set_ylim(0, 1)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_yticks([0, 0.5, 1])
        ax.grid(False)
        if place + columns >= len(chosen):
            ax.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("softmax weight of the candidate", fontsize=9)
    handles = []
    for name, style in styles.items():
        fill, edge_colour = part_colours(name, style)
        letter, label = candidate_letter(name), candidate_label(name)
        words = label if letter == label else f"{letter}  {label}"
        handles.append(Patch(facecolor=fill, edgecolor=edge_colour, label=words))
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=min(7, len(handles)), fontsize=8,
                           handlelength=1.2, columnspacing=1.2, title=signs_in_words(events) or None)  # fmt: skip
    legend.get_title().set_fontsize(8)
    return figure


def _edge_name(backbone: str, source: int, target: int) -> str:
    first = {"two-to-one": "$h_{t-1}$", "darts": "$[x_t; h_{t-1}]$", "highway": "0"}[backbone]
    return f"{first if source == 0 else source} → {target}"


def _draw_bands(
    ax: Axes,
    history: Sequence[StageEpoch],
    cells: Sequence[Wiring],
    edge: tuple[int, int],
    styles: Mapping[str, OperationStyle],
) -> None:
    """The weights of one edge, in pieces within which its candidates stay the same."""
    pools = [dict(next((weights for *pair, weights in cell.edges if tuple(pair) == edge), ())) for cell in cells]
    span = history[-1].epoch - history[0].epoch + 1
    for names, group in itertools.groupby(range(len(pools)), key=lambda place: tuple(pools[place])):
        places = list(group)
        if not names:
            continue
        middles = [history[place].epoch for place in places]
        x = [middles[0] - 0.5, *middles, middles[-1] + 0.5]  # what changes, changes between two epochs
        values = np.array([[pools[place][name] for name in names] for place in (places[0], *places, places[-1])])
        tops = np.cumsum(values / values.sum(axis=1, keepdims=True), axis=1)
        for column, name in enumerate(names):
            low = tops[:, column - 1] if column else np.zeros(len(x))
            fill, edge_colour = part_colours(name, styles[name])
            ax.fill_between(x, low, tops[:, column], facecolor=fill, edgecolor=edge_colour, linewidth=0.7, zorder=2,
                            gid=f"band-{edge[0]}-{edge[1]}-{name}")  # fmt: skip
            heights = tops[:, column] - low
            high = [place for place in range(1, len(x) - 1) if heights[place] >= 0.8 * heights[1:-1].max()]
            at = high[len(high) // 2]
            if heights[at] >= 0.11 and x[-1] - x[0] >= 0.05 * span:
                middle = (x[0] + x[-1]) / 2 if len(high) == len(x) - 2 else x[at]
                inside = min(max(middle, x[0] + 0.03 * span), x[-1] - 0.03 * span)
                ax.text(inside, tops[at, column] - heights[at] / 2, candidate_letter(name), ha="center",
                        va="center_baseline", fontsize=8, zorder=4, gid=f"name-{edge[0]}-{edge[1]}-{name}")  # fmt: skip
