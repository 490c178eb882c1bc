"""A cell that grows while it is searched (growing DARTS, Chapter 6): its reports and events, and figures of them.

The same reports as a film are in :mod:`nasbook.plots.cell_film`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nasbook.errors import InvalidInput, unknown_name
from nasbook.plots.recurrent_cells import EdgeWeights, Wiring, wiring


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
    """The part of a change of the cell that figures read: :class:`nasbook.methods.growing.CellEvent`."""

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
