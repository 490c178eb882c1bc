"""Relaxations: from architecture parameters to coefficients, and back to a discrete cell.

A relaxation owns the architecture parameters of one kind of cell and answers three questions. Every
paper of the book that searches by gradients brings its own; DARTS' is the softmax.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.genotypes import ZERO, CellGenotype, Edge, Space


class Relaxation(nn.Module, ABC):
    """The architecture parameters of one kind of cell, and what they mean.

    Rows are the edges of ``space.edges``, columns the candidates of ``space.operations``.
    """

    sparse: ClassVar[bool] = False
    """Whether all that is not derived has coefficient zero, so that no cell needs to compute it."""
    takes_pools: ClassVar[bool] = False
    """Whether edges may have candidates of their own; then what an edge does not have has coefficient zero."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        if space.pools and not self.takes_pools:
            raise InvalidInput(f"{type(self).__name__} needs the same candidates on all edges; this space has pools.")
        self.space = space

    @abstractmethod
    def coefficients(self) -> Float[Tensor, "edges operations"]:
        """What to multiply each candidate's output by."""

    @abstractmethod
    def derive(self) -> CellGenotype:
        """The discrete cell that the parameters mean now."""

    def penalty(self) -> Float[Tensor, ""]:
        """What to add to the architecture loss: zero unless the paper has a term."""
        return self.coefficients().new_zeros(())


class SoftmaxRelaxation(Relaxation):
    """DARTS: a softmax over the candidates of each edge (Eq. 2). ``alpha`` is α, (edges, operations).

    Args:
        space: the cell space.
        scale: standard deviation of the initial α (DARTS: 1e-3), so that all candidates start equal.
    """

    def __init__(self, space: Space, scale: float = 1e-3) -> None:
        super().__init__(space)
        self.alpha = nn.Parameter(scale * torch.randn(len(space.edges), len(space.operations)))

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        return self.alpha.softmax(dim=-1)  # Eq. 2

    def derive(self) -> CellGenotype:
        return strongest_edges(self.coefficients(), self.space)


class PoolSoftmax(SoftmaxRelaxation):
    """A softmax over the pool of each edge (PR-DARTS §2.2, with 𝒪 of this edge); the other columns of a row are zero.

    Args:
        space: a cell space whose edges have pools of their own.
        scale: standard deviation of the initial α.
    """

    takes_pools: ClassVar[bool] = True
    absent: Tensor

    def __init__(self, space: Space, scale: float = 1e-3) -> None:
        super().__init__(space, scale)
        absent = torch.tensor([[name not in space.candidates(*e) for name in space.operations] for e in space.edges])
        self.register_buffer("absent", absent, persistent=False)

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        return self.alpha.masked_fill(self.absent, -math.inf).softmax(dim=-1)


def softmax_relaxation(space: Space) -> SoftmaxRelaxation:
    """DARTS' relaxation of a space, over the pool of each edge where it has one."""
    return PoolSoftmax(space) if space.pools else SoftmaxRelaxation(space)


def strongest_edges(weights: Float[Tensor, "edges operations"], space: Space) -> CellGenotype:
    """DARTS' derivation (§2.4): per node the k strongest edges, on each the strongest operation.

    An edge is as strong as its best candidate; the zero operation never counts. Ties go to the lower
    index, as in the authors' code. Give softmax weights: ranking raw α compares edges on different scales.

    Raises:
        InvalidInput: a weight is not finite, or the shape is not the space's.
    """
    table = choice_weights(weights, space)
    edges = []
    for node in range(space.inputs, space.inputs + space.nodes):
        ranked = sorted(space.sources(node), key=lambda source: -max(table[source, node]))  # stable: equals keep order
        edges += [(source, node) for source in ranked[: space.kept(node)]]
    return connected_cell(edges, weights, space)


def connected_cell(
    edges: Iterable[tuple[int, int]], weights: Float[Tensor, "edges operations"], space: Space
) -> CellGenotype:
    """The cell with the strongest operation on each of the edges, and without nodes that no input reaches.

    Args:
        edges: (source, target) of the edges to keep.
        weights: α or its softmax; the zero operation never counts, and ties go to the lower index.
        space: the cell space.

    Raises:
        InvalidInput: a weight is not finite, the shape is not the space's, or no edge leaves an input, so that no
            cell remains.
    """
    table = choice_weights(weights, space)
    reached = set(range(space.inputs))
    kept = []
    for source, target in sorted(edges, key=lambda edge: edge[1]):  # a node's own inputs come before its outputs
        if source in reached:
            row = table[source, target]
            kept.append(Edge(source, target, space.choices[row.index(max(row))]))  # the first of equals
            reached.add(target)
    return CellGenotype(tuple(kept), space.nodes, space.inputs)


def choice_weights(weights: Float[Tensor, "edges operations"], space: Space) -> dict[tuple[int, int], list[float]]:
    """For every edge, (source, target), the weights of ``space.choices``: all its operations but zero.

    Raises:
        InvalidInput: a weight is not finite, or the shape is not the space's.
    """
    if weights.shape != (len(space.edges), len(space.operations)):
        raise InvalidInput(
            f"weights must have shape ({len(space.edges)}, {len(space.operations)}) for this space, "
            f"got {tuple(weights.shape)}."
        )
    if not bool(torch.isfinite(weights).all()):
        raise InvalidInput("Can't derive a cell: an architecture weight is not finite.")
    columns = [i for i, name in enumerate(space.operations) if name != ZERO]
    return dict(zip(space.edges, weights.detach()[:, columns].tolist(), strict=True))
