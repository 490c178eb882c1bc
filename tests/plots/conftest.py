from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nasbook.genotypes import DARTS_SPACE, ZERO, CellGenotype, Edge, Genotype, Space


@dataclass(frozen=True)
class Report:
    """What figures read of an epoch."""

    epoch: int
    coefficients: dict[str, Tensor]
    genotype: Genotype


@dataclass(frozen=True)
class LikelyReport(Report):
    """The same where the topology is learned."""

    edge_probabilities: dict[str, Any]


@dataclass(frozen=True)
class SparseReport(Report):
    """The same where connections are dropped."""

    temperature: float


def derive(coefficients: Tensor, space: Space) -> CellGenotype:
    columns = [number for number, name in enumerate(space.operations) if name != ZERO]
    edges = []
    for node in range(space.inputs, space.inputs + space.nodes):
        rows = [row for row, (_, target) in enumerate(space.edges) if target == node]
        rows.sort(key=lambda row: -float(coefficients[row, columns].max()))
        for row in rows[: space.kept(node)]:
            best = columns[int(coefficients[row, columns].argmax())]
            edges.append(Edge(space.edges[row][0], node, space.operations[best]))
    return CellGenotype(tuple(edges), space.nodes, space.inputs)


@pytest.fixture
def make_history() -> Callable[..., list[Report]]:
    def make(space: Space = DARTS_SPACE, epochs: int = 5) -> list[Report]:
        generator = torch.Generator().manual_seed(0)
        logits = {
            kind: torch.randn(len(space.edges), len(space.operations), generator=generator) for kind in space.kinds
        }
        history = []
        for epoch in range(1, epochs + 1):
            coefficients = {kind: (0.1 * epoch * value).softmax(-1) for kind, value in logits.items()}
            cells = {kind: derive(value, space) for kind, value in coefficients.items()}
            history.append(Report(epoch, coefficients, Genotype(cells)))
        return history

    return make


@pytest.fixture
def make_likely_history(make_history: Callable[..., list[Report]]) -> Callable[..., list[LikelyReport]]:
    """Coefficients with a factor of 2, and probabilities that move away from 0.5."""

    def make(space: Space = DARTS_SPACE, epochs: int = 5, seed: int = 0) -> list[LikelyReport]:
        generator = torch.Generator().manual_seed(seed)
        logits = {kind: torch.randn(len(space.edges), generator=generator) for kind in space.kinds}
        history = []
        for report in make_history(space, epochs):
            probabilities = {kind: (0.3 * report.epoch * value).sigmoid() for kind, value in logits.items()}
            coefficients = {
                kind: 2 * probabilities[kind][:, None] * value for kind, value in report.coefficients.items()
            }
            history.append(LikelyReport(report.epoch, coefficients, report.genotype, probabilities))
        return history

    return make


@pytest.fixture
def make_sparse_history() -> Callable[..., list[SparseReport]]:
    """Coefficients as EnTranNAS-DST makes them: 0 where dropped, on the other edges they sum to 1."""

    def make(space: Space = DARTS_SPACE, epochs: int = 5, seed: int = 0) -> list[SparseReport]:
        generator = torch.Generator().manual_seed(seed)
        choices = torch.tensor([name != ZERO for name in space.operations])
        shape = (len(space.edges), len(space.operations))
        scores = {kind: torch.rand(shape, generator=generator) * choices for kind in space.kinds}
        for kind in space.kinds:  # so that no node is ever without a connection
            for node in range(space.inputs, space.inputs + space.nodes):
                scores[kind][space.edges.index((node - 1, node)), int(choices.nonzero()[-1])] = 1.1
        history = []
        for epoch in range(1, epochs + 1):
            threshold = (epoch - 1) / max(1, epochs - 1) * 0.99
            coefficients, cells = {}, {}
            for kind, score in scores.items():
                kept = (score - threshold).clamp(min=0) * choices
                total = kept.sum(-1, keepdim=True)
                coefficients[kind] = kept / torch.where(total > 0, total, 1)
                edges = [Edge(*space.edges[row], space.operations[k]) for row, k in kept.nonzero().tolist()]
                cells[kind] = CellGenotype(tuple(edges), space.nodes, space.inputs)
            history.append(SparseReport(epoch, coefficients, Genotype(cells), 5 * 0.923 ** (epoch - 1)))
        return history

    return make
