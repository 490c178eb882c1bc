"""Growing searches made by hand: reports and events as :mod:`nasbook.methods.growing_search` gives them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from nasbook.genotypes import CellGenotype, Edge, Genotype

TWO_TO_ONE = ("sigmoid", "tanh", "relu", "sum", "product")
DARTS = ("sigmoid", "tanh", "relu", "identity", "none")
OPERATIONS = {"two-to-one": TWO_TO_ONE, "darts": DARTS, "highway": DARTS}

Weights = list[tuple[int, int, dict[str, float]]]


@dataclass(frozen=True)
class Report:
    epoch: int
    stage: int
    tuning: bool
    parameters: int
    train_loss: float
    validation_loss: float
    weights: dict[str, Weights]


@dataclass(frozen=True)
class Event:
    epoch: int
    stage: int
    what: str
    loss_before: float
    loss_after: float
    operations: tuple[dict[str, Any], ...] = ()


def sources(backbone: str, node: int) -> list[int]:
    if backbone == "two-to-one" or node == 1:
        return [node - 1]
    return list(range(1 if backbone == "darts" else 0, node))


def cell(backbone: str, nodes: int, seed: int = 0, names: tuple[str, ...] = ()) -> Weights:
    """A supernet's cell with random weights."""
    draw, edges = random.Random(seed), []
    for node in range(1, nodes + 1):
        for source in sources(backbone, node):
            raw = {name: draw.random() + 0.05 for name in names or OPERATIONS[backbone]}
            edges.append((source, node, {name: value / sum(raw.values()) for name, value in raw.items()}))
    return edges


def pruned(weights: Weights) -> Weights:
    """One edge into every node, and on it one candidate."""
    found = []
    for node in sorted({target for _, target, _ in weights}):
        into = [(max(w[name] for name in w if name != "none"), source, w) for source, target, w in weights
                if target == node]  # fmt: skip
        _, source, names = max(into, key=lambda entry: entry[0])
        found.append((source, node, {max((n for n in names if n != "none"), key=lambda n: names[n]): 1.0}))
    return found


def genotype(backbone: str, weights: Weights) -> Genotype:
    nodes = max(target for _, target, _ in weights)
    edges = tuple(Edge(source, target, next(iter(names))) for source, target, names in weights)
    output = tuple(range(1, nodes + 1)) if backbone == "highway" else (nodes,)
    return Genotype({backbone: CellGenotype(edges, nodes, 1, output)})


def search(backbone: str = "two-to-one", *, each: bool = True) -> tuple[list[Report], list[Event], Genotype]:
    """Two stages of three epochs, pruned after each for two epochs of tuning or at the end; the second is no gain."""
    reports: list[Report] = []
    events: list[Event] = []
    each_stage = [1.5, 1.2, 1.1, 1.4, 1.0, 1.3, 1.25, 1.24, 1.6, 1.15]
    at_end = [1.5, 1.2, 1.0, 1.3, 1.2, 1.1, 1.4, 1.05]
    losses = iter(each_stage if each else at_end)

    def add(stage: int, tuning: bool, weights: Weights) -> None:
        epoch = len(reports) + 1
        size = 100 * len(weights) + sum(len(names) for *_, names in weights)
        reports.append(Report(epoch, stage, tuning, size, 2.0 / epoch, next(losses), {backbone: weights}))

    first = cell(backbone, 2)
    for n in range(3):
        add(1, False, cell(backbone, 2, n))
    if each:
        first = pruned(reports[-1].weights[backbone])
        events.append(Event(3, 1, "prune", 1.1, 1.45))
        add(1, True, first)
        add(1, True, first)
        events.append(Event(5, 1, "node", 1.0, 1.01))
        for n in range(3):
            add(2, False, [*first, *(edge for edge in cell(backbone, 3, n) if edge[1] == 3)])
        events.append(Event(8, 2, "prune", 1.24, 1.5))
        second = pruned(reports[-1].weights[backbone])
        add(2, True, second)
        add(2, True, second)
        events.append(Event(10, 2, "stop", 1.15, 1.0))
        return reports, events, genotype(backbone, first)
    events.append(Event(3, 1, "node", 1.0, 1.001))
    for n in range(3):
        add(2, False, cell(backbone, 3, n))
    events += [Event(6, 2, "stop", 1.1, 1.0), Event(6, 2, "prune", 1.0, 1.3)]
    first = pruned(reports[2].weights[backbone])
    add(2, True, first)
    add(2, True, first)
    return reports, events, genotype(backbone, first)
