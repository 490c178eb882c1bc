"""Topology variables: a relaxation that learns which edges stay, apart from what stands on them.

Stretchable Cells (Huang et al., arXiv:2011.09300; Chapter 2). Every node chooses one of several sets of edges, with
a softmax over topology variables β, beside DARTS' softmax over the operations of each edge. The three spaces of the
paper differ in who chooses and from what:

* :class:`InputEdges`: each node its input edges, two of them (Eq. 3–6);
* :class:`OutputEdges`: each node its output edges, two of them (Eq. 7–10);
* :class:`AnyOutputEdges`: each node its output edges, any number of them (Eq. 11–13).

Symbols: ``alpha`` is α, ``beta`` is β, a *choice* is a pair (m, n) of Eq. 3 and 7 or a binary code b of Eq. 11. Nodes
are numbered from 0, the paper's from 1; its N is ``space.inputs + space.nodes`` in the formulas.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import ZERO, CellGenotype, Space
from nasbook.supernets.relaxations import Relaxation, SoftmaxRelaxation, choice_weights, connected_cell

Choice = frozenset[tuple[int, int]]
"""A set of edges, (source, target), that one node may choose."""

MOST_OUTPUT_EDGES = 14
"""Of one node with arbitrary numbers of them: it has two to the power of so many topology variables."""


class TopologyRelaxation(Relaxation):
    """Operations and edges learned apart: coefficient = merged probability of the edge × softmax over its operations.

    Only the merged probabilities enter the supernet, one number an edge; no sum of two edges is ever made (Eq. 6).

    Args:
        space: the cell space; the paper's has no zero operation, because β says which edges there are.
        choices: for each node that chooses, the sets of edges that it chooses from.
        scaled: multiply by the factor that makes every merged probability 1 at uniform β (Eq. 10, 13).
        penalty_weight: λ of Eq. 15.
        scale: standard deviation of the initial α and β.

    Raises:
        InvalidInput: the space has the zero operation, an edge of the space is in the choices of no node or of two, or
            λ is negative.
    """

    def __init__(
        self,
        space: Space,
        choices: Sequence[Sequence[Choice]],
        *,
        scaled: bool = True,
        penalty_weight: float = 10.0,
        scale: float = 1e-3,
    ) -> None:
        super().__init__(space)
        if ZERO in space.operations:
            raise InvalidInput(f"The topology variables say which edges there are: leave {ZERO!r} out of the space.")
        if not penalty_weight >= 0:
            raise InvalidInput(f"penalty_weight must be at least 0, got {penalty_weight}.")
        self.choices = tuple(tuple(sets) for sets in choices)
        self.penalty_weight = penalty_weight
        self.scaled = scaled
        self.alpha = nn.Parameter(scale * torch.randn(len(space.edges), len(space.operations)))
        self.beta = nn.Parameter(scale * torch.randn(sum(map(len, self.choices))))
        for name, table in _tables(space, self.choices).items():
            self.register_buffer(name, table, persistent=False)

    _table: Tensor
    _into: Tensor
    _holds: Tensor
    _chooser: Tensor
    _lacks: Tensor
    _of_all: Tensor
    _with_edge: Tensor

    def beta_table(self) -> Float[Tensor, "choosers choices"]:
        """β, a row for each node that chooses; minus infinity where a node has fewer choices than another."""
        return F.pad(self.beta, (0, 1), value=-torch.inf)[self._table]

    def probabilities(self) -> Float[Tensor, "choosers choices"]:
        """The combinatorial probabilities p, each row a softmax (Eq. 5, 8, 12)."""
        return self.beta_table().softmax(dim=-1)

    def edge_probabilities(self) -> Float[Tensor, " edges"]:
        """For each edge, how likely it is chosen: the merged probabilities s without a factor (Eq. 6, 9, 13)."""
        return self.probabilities().flatten() @ self._holds

    def edge_coefficients(self) -> Float[Tensor, " edges"]:
        """The merged probabilities s with their factor: of all choices, over those with the edge (Eq. 10, 13)."""
        s = self.edge_probabilities()
        return s * (self._of_all / self._with_edge) if self.scaled else s

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        return self.edge_coefficients()[:, None] * self.alpha.softmax(dim=-1)

    def penalty(self) -> Float[Tensor, ""]:
        """λ·r(β) of Eq. 15."""
        return self.penalty_weight * self.invalidity()

    def invalidity(self) -> Float[Tensor, ""]:
        """r(β), the passive-aggressive regularisation (Eq. 14): zero when every node has an input edge.

        The sum is over the intermediate nodes. The paper's starts at its node 1, and inputs have no input edges; it
        ends before N, which is right where N counts the output node.
        """
        beta = self.beta_table()
        best = beta.max(dim=-1).values[self._chooser]
        best_with_edge = beta[self._chooser].masked_fill(self._lacks, -torch.inf).max(dim=-1).values
        missing = 1 - (best_with_edge - best).exp()  # 1 - max p over the choices with the edge / max p over all
        factors = F.pad(missing, (0, 1), value=1.0)[self._into]
        # Not torch.prod, whose gradient waits for the device.
        return functools.reduce(torch.mul, factors.unbind(dim=1)).sum()

    def topology(self) -> frozenset[tuple[int, int]]:
        """The edges of the most probable choice of every node; ties go to the first."""
        rows = self.beta_table().detach().tolist()
        return frozenset().union(
            *(sets[row.index(max(row))] for row, sets in zip(rows, self.choices, strict=True))
        )

    def derive(self) -> CellGenotype:
        """The most probable choice of every node, with the strongest operation on each edge.

        A node that none of its predecessors chooses is removed, and what leaves it too. Where that would leave
        nothing, one choice of an input is added: of all with an edge, the one nearest to its node's most probable.

        Raises:
            InvalidInput: an architecture weight is not finite.
        """
        if not bool(torch.isfinite(self.beta).all()):  # of α, connected_cell sees to it
            raise InvalidInput("Can't derive a cell: an architecture weight is not finite.")
        edges = self.topology()
        if not any(source < self.space.inputs for source, _ in edges):
            edges |= self._least_unlikely()
        return connected_cell(edges, self.alpha, self.space)

    def _least_unlikely(self) -> Choice:
        """Of the choices that have an edge from an input, the one whose β is least below its node's largest."""
        rows = self.beta_table().detach().tolist()
        candidates = [
            (max(row) - value, number, place)
            for number, (row, sets) in enumerate(zip(rows, self.choices, strict=True))
            for place, (value, choice) in enumerate(zip(row, sets, strict=False))
            if any(source < self.space.inputs for source, _ in choice)
        ]
        _, number, place = min(candidates)
        return self.choices[number][place]


class InputEdges(TopologyRelaxation):
    """Every node chooses ``number`` of its input edges (Eq. 3–6), all of them where it has fewer.

    Eq. 6 has no factor; ``scaled=True`` gives it the one that Eq. 10 gives to output edges.
    """

    def __init__(self, space: Space, number: int = 2, *, scaled: bool = False, **options: float) -> None:
        require_positive(number=number)
        nodes = range(space.inputs, space.inputs + space.nodes)
        sources = {node: space.sources(node) for node in nodes}
        choices = [
            [frozenset((m, node) for m in chosen) for chosen in itertools.combinations(some, min(number, len(some)))]
            for node, some in sources.items()
        ]
        super().__init__(space, choices, scaled=scaled, **options)


class OutputEdges(TopologyRelaxation):
    """Every node chooses ``number`` of its output edges (Eq. 7–10); a node that has fewer keeps none.

    That is the paper's pair space: Eq. 10 is undefined for the last node but one, and only without that node's edge
    does a cell of four intermediate nodes have eight edges. Inputs are no targets, unlike in Eq. 7 as printed.
    """

    def __init__(self, space: Space, number: int = 2, *, scaled: bool = True, **options: float) -> None:
        require_positive(number=number)
        choices = [
            [frozenset((node, n) for n in chosen) for chosen in itertools.combinations(space.targets(node), number)]
            for node in _choosing(space)
        ]
        if not any(choices):
            raise InvalidInput(f"No node has {number} later nodes to choose from: lower number, or add nodes.")
        super().__init__(space, [sets for sets in choices if sets], scaled=scaled, **options)


class AnyOutputEdges(TopologyRelaxation):
    """Every node chooses any number of its output edges: the stretchable cell (Eq. 11–13).

    Args:
        space: the cell space.
        empty: whether a node may choose no edge. The text allows it ("including none"), and then it has 2^n choices
            of n edges and Eq. 13's factor is 2; the sum in Eq. 11 and the factor printed in Eq. 13 leave it out.
        scaled: whether to use that factor.
        options: ``penalty_weight`` and ``scale`` of :class:`TopologyRelaxation`.
    """

    def __init__(self, space: Space, *, empty: bool = True, scaled: bool = True, **options: float) -> None:
        targets = {node: later for node in _choosing(space) if (later := space.targets(node))}
        most = max(map(len, targets.values()))
        if most > MOST_OUTPUT_EDGES:
            raise InvalidInput(
                f"A node with {most} output edges has 2^{most} sets of them to choose from; "
                f"at most {MOST_OUTPUT_EDGES} edges are supported: use fewer nodes."
            )
        choices = [
            [
                frozenset((node, n) for n in chosen)
                for size in range(0 if empty else 1, len(later) + 1)
                for chosen in itertools.combinations(later, size)
            ]
            for node, later in targets.items()
        ]
        super().__init__(space, choices, scaled=scaled, **options)


class StrongestOutputs(SoftmaxRelaxation):
    """DARTS that keeps, for every node, its strongest *output* edges: Table 5's comparison.

    A node with fewer later nodes than ``space.edges_per_node`` keeps none, so that cells have as many edges as those
    of :class:`OutputEdges`.
    """

    def derive(self) -> CellGenotype:
        weights = self.coefficients()
        table = choice_weights(weights, self.space)
        edges = []
        for node in _choosing(self.space):
            ranked = sorted(self.space.targets(node), key=lambda target: -max(table[node, target]))
            if len(ranked) >= self.space.edges_per_node:
                edges += [(node, target) for target in ranked[: self.space.edges_per_node]]
        return connected_cell(edges, weights, self.space)


def output_edge_space(space: Space, number: int = 2) -> Space:
    """The space without the edges of nodes that have fewer than ``number`` later nodes, which choose none of them."""
    unused = [edge for edge in space.edges if len(space.targets(edge[0])) < number]
    return replace(space, left_out=tuple(sorted({*space.left_out, *unused})))


def _choosing(space: Space) -> range:
    """The nodes that have later nodes: all but the last."""
    return range(space.inputs + space.nodes - 1)


def _tables(space: Space, choices: Sequence[Sequence[Choice]]) -> dict[str, Tensor]:
    """The constants of a :class:`TopologyRelaxation`, by the name of the buffer."""
    rows = {edge: row for row, edge in enumerate(space.edges)}
    sizes = torch.tensor([len(sets) for sets in choices])
    most = int(sizes.max())
    # β is one vector; as a table it has a row for each node that chooses, filled up with -inf (place -1).
    table = torch.full((len(sizes), most), -1)
    table[torch.arange(most) < sizes[:, None]] = torch.arange(int(sizes.sum()))

    holds = torch.zeros(len(sizes), most, len(rows), dtype=torch.bool)  # which choice of which node has which edge
    places = [
        (node, number, rows[edge])
        for node, sets in enumerate(choices)
        for number, choice in enumerate(sets)
        for edge in choice
    ]
    holds[tuple(torch.tensor(places).T)] = True
    with_edge = holds.sum(1)  # how many of each node's choices have the edge
    for edge, choosers in zip(space.edges, (with_edge > 0).sum(0).tolist(), strict=True):
        if choosers != 1:
            raise InvalidInput(
                f"{choosers or 'No'} node{'s' * (choosers > 1)} can choose the edge from {edge[0]} to {edge[1]}: "
                f"expected one. An edge that nobody chooses is left out of the space "
                f"(see nasbook.supernets.output_edge_space)."
            )
    chooser = with_edge.argmax(0)  # which node decides about each edge

    into = [[rows[i, j] for i in space.sources(j)] for j in range(space.inputs, space.inputs + space.nodes)]
    longest = max(map(len, into))
    real = torch.get_default_dtype()  # as β's
    return {
        "_table": table,
        "_holds": holds.flatten(0, 1).to(real),
        "_chooser": chooser,
        "_lacks": ~holds[chooser, :, torch.arange(len(rows))],
        "_of_all": sizes[chooser].to(real),
        "_with_edge": with_edge.sum(0).to(real),
        # The rows of every node's input edges, filled up with the place after the last row.
        "_into": torch.tensor([some + [len(rows)] * (longest - len(some)) for some in into]),
    }
