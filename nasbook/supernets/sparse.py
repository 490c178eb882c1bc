"""EnTranNAS' relaxations: a softmax with a temperature, and one whose coefficients reach zero (Yang et al. 2021).

Chapter 3. The second makes the derived cell the one that is searched: whatever is not zero stays (§2.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import CellGenotype, Edge, Space
from nasbook.supernets.relaxations import SoftmaxRelaxation, choice_weights, strongest_edges

Derivation = Callable[[Float[Tensor, "edges operations"], Space], CellGenotype]
"""From weights to a discrete cell."""


class AnnealedSoftmax(SoftmaxRelaxation):
    """A softmax with temperature τ over the candidates of each edge (EnTranNAS, Eq. 5).

    The search lowers ``temperature`` from epoch to epoch. As τ → 0 every edge comes to hold one operation.

    Args:
        space: the cell space.
        temperature: τ.
        derivation: the rule Ω of Eq. 4; it is given the logarithms of the coefficients.
    """

    def __init__(self, space: Space, temperature: float = 1.0, derivation: Derivation = strongest_edges) -> None:
        require_positive(temperature=temperature)
        super().__init__(space)
        self.temperature = temperature
        self.derivation = derivation

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        return (self.alpha / self.temperature).softmax(dim=-1)  # Eq. 5

    @torch.no_grad()
    def derive(self) -> CellGenotype:
        # To the CPU first: Transit-cells derive in every pass, and so it waits for the device once. Logarithms have the
        # same order, and no ties where a cold softmax has rounded several leaders to 1.
        return self.derivation((self.alpha / self.temperature).log_softmax(dim=-1).cpu(), self.space)


class SparseRelaxation(AnnealedSoftmax):
    """Coefficients that reach zero, so that a node may keep any number of connections (EnTranNAS-DST, §2.4).

    Symbols: ``alpha`` is α, ``beta`` is β with one number for each intermediate node, ``temperature`` is τ. A
    connection is one operation on one edge. Each node keeps those that are at least t times as strong as its strongest,
    t = sigmoid(β); what an edge keeps is scaled to sum to 1.

    t < 1 is what keeps the strongest. In floating point sigmoid(β) is 1 from about β = 17 on, and every node would
    lose all its connections. So 1 − t and 1 − p̂ are computed without cancellation, and β counts as at most
    −log ε, ε the precision of its type: t never passes 1 − ε.

    Args:
        space: a cell space without the zero operation, whose coefficient would count as a connection.
        temperature: τ.
        penalty_weight: λ of Eq. 11, at least 0.
        beta: β of every node at the start. The paper gives none; 0 lets a node begin with all its connections.

    Raises:
        InvalidInput: the space has the zero operation, or a number is out of range.
    """

    sparse: ClassVar[bool] = True
    _target: Tensor

    def __init__(
        self, space: Space, temperature: float = 1.0, *, penalty_weight: float = 0.1, beta: float = 0.0
    ) -> None:
        if space.choices != space.operations:
            raise InvalidInput("A sparse relaxation drops connections itself: give a space without the zero operation.")
        if not penalty_weight >= 0:
            raise InvalidInput(f"penalty_weight must be at least 0, got {penalty_weight}.")
        if not math.isfinite(beta):
            raise InvalidInput(f"beta must be finite, got {beta}.")
        super().__init__(space, temperature)
        self.penalty_weight = penalty_weight
        self.beta = nn.Parameter(torch.full((space.nodes,), float(beta)))
        self._incoming = [len(space.sources(node)) for node in range(space.inputs, space.inputs + space.nodes)]
        targets = torch.tensor([target - space.inputs for _, target in space.edges])
        self.register_buffer("_target", targets, persistent=False)  # of every edge, counted from the first node

    def thresholds(self) -> Float[Tensor, " nodes"]:
        """t of every intermediate node, between 0 and 1."""
        return torch.sigmoid(self.beta)

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        log_p = (self.alpha / self.temperature).log_softmax(dim=-1)  # Eq. 5
        log_p_hat = torch.cat([node - node.amax() for node in log_p.split(self._incoming)])  # Eq. 7
        room = torch.sigmoid(-self.beta.clamp(max=-math.log(torch.finfo(self.beta.dtype).eps)))  # 1 − t, never 0
        q = F.relu(room[self._target, None] + torch.expm1(log_p_hat))  # Eq. 8: p̂ − t = (1 − t) − (1 − p̂)
        total = q.sum(dim=-1, keepdim=True)
        # An edge with nothing left stays at zero: where() keeps 0/0 away.
        return q / torch.where(total > 0, total, 1)  # Eq. 9

    @torch.no_grad()
    def derive(self) -> CellGenotype:
        """Every connection whose coefficient is not zero (Eq. 10)."""
        return non_zero_connections(self.coefficients().cpu(), self.space)

    def penalty(self) -> Float[Tensor, ""]:
        """λ times the mean of −log t over the intermediate nodes (Eq. 11)."""
        # The paper divides by n − 1, counting the second input node, which has no connections to choose from.
        return self.penalty_weight * F.softplus(-self.beta).mean()


def non_zero_connections(weights: Float[Tensor, "edges operations"], space: Space) -> CellGenotype:
    """The cell of all connections whose weight is not zero (EnTranNAS, Eq. 10).

    Raises:
        InvalidInput: a weight is not finite, or the shape is not the space's.
    """
    table = choice_weights(weights, space)
    return CellGenotype(
        tuple(
            Edge(source, target, name)
            for (source, target), row in table.items()
            for name, weight in zip(space.choices, row, strict=True)
            if weight != 0
        ),
        space.nodes,
        space.inputs,
    )


def strongest_connections(weights: Float[Tensor, "edges operations"], space: Space) -> CellGenotype:
    """The k strongest connections of every node, wherever they stand: Eq. 4 of EnTranNAS to the letter.

    Unlike DARTS' rule (:func:`~nasbook.supernets.strongest_edges`) it can keep two operations of one edge and none of
    another. The zero operation never counts; ties go to the earlier edge, then to the earlier operation.

    Raises:
        InvalidInput: a weight is not finite, or the shape is not the space's.
    """
    table = choice_weights(weights, space)
    kept = []
    for node in range(space.inputs, space.inputs + space.nodes):
        connections = [
            (weight, Edge(source, node, name))
            for source in space.sources(node)
            for name, weight in zip(space.choices, table[source, node], strict=True)
        ]
        connections.sort(key=lambda pair: -pair[0])  # stable: equals keep their order
        kept += [edge for _, edge in connections[: space.kept(node)]]
    return CellGenotype(tuple(kept), space.nodes, space.inputs)
