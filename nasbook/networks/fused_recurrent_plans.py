"""What the fused recurrent cells do, planned once from their space: which candidates run side by side, in which order,
and how an architecture's coefficients come in."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.genotypes import ZERO, Space
from nasbook.networks.fused_recurrent_function import Graph, Source
from nasbook.networks.fused_recurrent_highway import HighwayGraph, HighwaySource
from nasbook.networks.fused_recurrent_workspaces import Workspaces
from nasbook.operations.recurrent import ActivatedMap, Gate, Product, StateIdentity, StateZero, Sum, operation_of

BOUNDED = ("sigmoid", "tanh")
"""Activations that one sigmoid computes, as tanh(a) = 2 sigmoid(2a) − 1."""


class Place(NamedTuple):
    """Where a candidate stands."""

    source: int
    """The node that it leaves, counted without those that are not needed."""
    target: int
    edge: str
    """Key of its edge among the modules."""
    name: str
    coefficient: int
    """Where its coefficient stands, row by row."""
    kind: type[nn.Module]
    """What it is built from."""

    @property
    def operation(self) -> str:
        return operation_of(self.name)

    @property
    def factor(self) -> float:
        """What its coefficient and what goes into its activation are multiplied by."""
        return 2.0 if self.operation == "tanh" else 1.0


class Mixing:
    """A linear map from a cell's coefficients to all that the fused pass multiplies with, made entry by entry."""

    def __init__(self, space: Space) -> None:
        self.coefficients = len(space.edges) * len(space.operations)
        self.entries = 0
        self._terms: list[tuple[int, int, float]] = []
        self._matrix: Tensor | None = None

    def add(self, places: Iterable[Place], factor: float | None = None) -> None:
        """One more entry: the sum of the candidates' coefficients, times their factors or another one."""
        self._terms += [(self.entries, p.coefficient, p.factor if factor is None else factor) for p in places]
        self.entries += 1

    def __call__(self, coefficients: Float[Tensor, "edges operations"]) -> Float[Tensor, "entries"]:
        known = self._matrix
        if known is None or known.dtype != coefficients.dtype or known.device != coefficients.device:
            with torch.inference_mode(False):  # or autograd could not use it later
                known = torch.zeros(self.entries, self.coefficients)
                for entry, coefficient, factor in self._terms:
                    known[entry, coefficient] = factor
                self._matrix = known = known.to(coefficients)
        return known @ coefficients.flatten()


@dataclass(frozen=True)
class Plan:
    """What a fused pass does, apart from its tensors."""

    workspaces: Workspaces
    """What :func:`run_sequence` computes."""
    fed: int
    """So many of the candidates with an activation, the first ones, read x."""
    activated: tuple[Place, ...]
    """Candidates with an activation, in the order of their blocks."""
    linear: tuple[Place, ...]
    """The sums and products of a Two-to-One cell."""
    others: tuple[Place, ...]
    """Candidates that are not called: identity and zero."""
    mixing: Mixing
    """Gives the coefficients of :func:`run_sequence`."""

    @functools.cached_property
    def places(self) -> tuple[Place, ...]:
        """All candidates."""
        return self.activated + self.linear + self.others


def plan_two_to_one(space: Space, needed: Sequence[int], hidden: int) -> Plan:
    """The plan of a Two-to-One cell whose last needed node is the output. In this chain every node has one target."""
    activated: list[Place] = []
    linear: list[Place] = []
    mixing = Mixing(space)
    sources = []
    for node in needed:
        places = _leaving(space, (node - 1, node), node - 1, node, Gate)
        blocks = _in_blocks(places)
        sums = [place for place in places if place.operation == "sum"]
        products = [place for place in places if place.operation == "product"]
        sources.append(Source(*_counts(blocks), identity=bool(sums), sums=len(sums), products=len(products)))
        for place in blocks:
            mixing.add([place])
        if sums:
            mixing.add(sums)
        activated += blocks
        linear += [*sums, *products]
    for place in linear:
        mixing.add([place])
    _add_levels(mixing, activated, len(sources))
    graph = Graph(hidden, tuple(sources), len(activated), tuple(place.factor for place in activated))
    return Plan(Workspaces(graph), graph.fed, tuple(activated), tuple(linear), (), mixing)


def plan_darts(space: Space, needed: Sequence[int], hidden: int) -> Plan:
    """The plan of a DARTS cell whose last needed node is the output."""
    order = (0, *needed)
    activated: list[Place] = []
    others: list[Place] = []
    mixing = Mixing(space)
    sources = []
    for source, node in enumerate(order[:-1]):
        targets = [target for target, other in enumerate(order) if (node, other) in space.edges]
        places = [p for target in targets for p in _leaving(space, (node, order[target]), source, target, ActivatedMap)]
        blocks = _in_blocks(places)
        identities = [place for place in places if place.operation == "identity"]
        span = range(targets[0], targets[-1] + 1)
        sources.append(Source(*_counts(blocks), targets[0] - source, len(span), identity=bool(identities)))
        for target in span:
            for place in blocks:
                mixing.add([place] if place.target == target else [])
        for target in span if identities else ():
            mixing.add(place for place in identities if place.target == target)
        activated += blocks
        others += [place for place in places if place not in blocks]
    _add_levels(mixing, activated, len(sources))
    graph = Graph(hidden, tuple(sources), sources[0].candidates, tuple(place.factor for place in activated))
    return Plan(Workspaces(graph), graph.fed, tuple(activated), (), tuple(others), mixing)


@dataclass(frozen=True)
class HighwayPlan:
    """What a fused pass of a highway cell does, apart from its tensors."""

    workspaces: Workspaces
    """What :func:`run_sequence` computes."""
    mixing: Mixing
    """Gives the coefficients of :func:`run_sequence`."""


def plan_highway(space: Space, needed: Sequence[int], output: Sequence[int], hidden: int) -> HighwayPlan:
    """The plan of a highway cell without batch norms."""
    order = (0, *needed)
    mixing = Mixing(space)
    sources = []
    for source, node in enumerate(order[:-1]):
        targets = [target for target, other in enumerate(order) if (node, other) in space.edges]
        if not targets:  # all of its targets are not needed, and it is an output itself
            targets = [source + 1]
        by_target: list[list[Place]] = []
        for target in range(targets[0], targets[-1] + 1):
            edge = node, order[target]
            found = _leaving(space, edge, source, target) if edge in space.edges else []
            by_target.append([place for place in found if place.operation != ZERO])
        operations = tuple(dict.fromkeys(place.operation for places in by_target for place in places))
        for places in by_target:
            for operation in operations:
                mixing.add((place for place in places if place.operation == operation), 1)
            mixing.add(places, 1)
        sources.append(HighwaySource(targets[0], len(by_target), operations))
    graph = HighwayGraph(hidden, tuple(sources), tuple(order.index(node) for node in output))
    return HighwayPlan(Workspaces(graph), mixing)


KINDS: dict[str, type[nn.Module]] = {"identity": StateIdentity, ZERO: StateZero, "sum": Sum, "product": Product}


def _leaving(
    space: Space, edge: tuple[int, int], source: int, target: int, activated: type[nn.Module] = nn.Module
) -> list[Place]:
    """The candidates on an edge; those with an activation are of the given class."""
    row = space.edges.index(edge) * len(space.operations)
    return [
        Place(
            source,
            target,
            f"{edge[0]}-{edge[1]}",
            name,
            row + space.operations.index(name),
            KINDS.get(operation_of(name), activated),
        )
        for name in space.candidates(*edge)
    ]


def _in_blocks(places: Sequence[Place]) -> list[Place]:
    """Those with an activation: first what a sigmoid computes, then ReLU."""
    return [p for p in places if p.operation in BOUNDED] + [p for p in places if p.operation == "relu"]


def _counts(places: Sequence[Place]) -> tuple[int, int]:
    """How many a sigmoid computes, and how many ReLU."""
    bounded = sum(place.operation in BOUNDED for place in places)
    return bounded, len(places) - bounded


def _add_levels(mixing: Mixing, activated: Sequence[Place], nodes: int) -> None:
    """The −1 of every tanh."""
    for target in range(1, nodes + 1):
        mixing.add((place for place in activated if place.target == target and place.operation == "tanh"), -1)
