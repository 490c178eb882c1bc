"""The space of the tabular benchmark: a complete graph of four nodes, small enough to train every cell of it.

Chapter 8. Two input nodes, two intermediate nodes, an edge between any two of them that may have one, and on each edge
one of three operations or none. The operations are NAS-Bench-201's (Dong and Yang, ICLR 2020), with DARTS' separable
convolution in place of its dense ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from nasbook.errors import InvalidInput
from nasbook.genotypes import ZERO, CellGenotype, CellSpace, Edge, Genotype, Space

if TYPE_CHECKING:
    import torch

__all__ = [
    "TABULAR_SPACE",
    "TabularCells",
    "all_codes",
    "canonical",
    "canonical_codes",
    "code_of",
    "genotype_of",
    "labellings",
]

TABULAR_SPACE = Space((ZERO, "skip_connect", "sep_conv_3x3", "avg_pool_3x3"), nodes=2, kinds=("reduction",))
"""What a search gets. Networks have two cells, both at a reduction, so that one kind of cell is all there is."""

Code = tuple[int, ...]
"""For every edge of the space its operation's column, 0 for none."""


def genotype_of(code: Code) -> Genotype:
    """The genotype that a code means.

    Raises:
        InvalidInput: it is not one number an edge, or no cell: nothing arrives anywhere, or a node is read that nothing
            enters.
    """
    edges, operations = TABULAR_SPACE.edges, TABULAR_SPACE.operations
    if len(code) != len(edges) or not all(0 <= column < len(operations) for column in code):
        raise InvalidInput(f"A code has {len(edges)} numbers from 0 to {len(operations) - 1}, got {tuple(code)}.")
    chosen = tuple(
        Edge(source, target, operations[column])
        for (source, target), column in zip(edges, code, strict=True)
        if column
    )
    return Genotype({"reduction": CellGenotype(chosen, TABULAR_SPACE.nodes, TABULAR_SPACE.inputs)})


def code_of(genotype: Genotype | CellGenotype) -> Code:
    """The code of a cell of this space, as it is labelled.

    Raises:
        InvalidInput: the cell is not of this space; the message says what is different.
    """
    cell = genotype
    if isinstance(genotype, Genotype):
        if genotype.kinds != TABULAR_SPACE.kinds:
            raise InvalidInput(
                f"The table's cells have the one kind {TABULAR_SPACE.kinds[0]!r}; this genotype has "
                f"{', '.join(genotype.kinds)}."
            )
        cell = genotype["reduction"]
    if not isinstance(cell, CellGenotype):
        raise InvalidInput(f"Expected a Genotype or a CellGenotype, got {type(genotype).__name__}.")
    if (cell.inputs, cell.nodes) != (TABULAR_SPACE.inputs, TABULAR_SPACE.nodes):
        raise InvalidInput(
            f"The table's cells have {TABULAR_SPACE.inputs} inputs and {TABULAR_SPACE.nodes} intermediate nodes; this "
            f"one has {cell.inputs} and {cell.nodes}."
        )
    if cell.output != cell.connected():
        raise InvalidInput(
            f"The output of the table's cells is every node that an edge enters, here {list(cell.connected())}; this "
            f"cell's is {list(cell.output)}."
        )
    code = dict.fromkeys(TABULAR_SPACE.edges, 0)
    for edge in cell.edges:
        if edge.operation not in TABULAR_SPACE.operations:
            raise InvalidInput(
                f"{edge.operation!r} is not among the table's operations: {', '.join(TABULAR_SPACE.choices)}."
            )
        if code[edge.source, edge.target]:
            raise InvalidInput(
                f"Two operations stand between node {edge.source} and node {edge.target}; the table's cells have one."
            )
        code[edge.source, edge.target] = TABULAR_SPACE.operations.index(edge.operation)
    return tuple(code.values())


def labellings(code: Code) -> tuple[Code, ...]:
    """The codes of the same graph: one where node 3 reads node 2, else two, which may be equal.

    The inputs differ, and so do the nodes where one reads the other. Where node 3 does not read node 2, they can change
    places: the output has the same channels in another order, and only initial weights tell the networks apart.
    """
    a, b, c, d, between = code
    return ((a, b, c, d, between),) if between else ((a, b, c, d, 0), (c, d, a, b, 0))


def canonical(code: Code) -> Code:
    """The first of a graph's labellings: equal codes mean isomorphic cells."""
    return min(labellings(code))


@cache
def all_codes() -> tuple[Code, ...]:
    """The codes of all cells as they are labelled, 975, in order."""
    found = []
    for code in itertools.product(range(len(TABULAR_SPACE.operations)), repeat=len(TABULAR_SPACE.edges)):
        node_2, node_3, between = any(code[:2]), any(code[2:]), code[4]
        if (node_2 or not between) and (node_2 or node_3):
            found.append(code)
    return tuple(found)


@cache
def canonical_codes() -> tuple[Code, ...]:
    """The codes of all cells that differ, one for each: the rows of the table, in order."""
    return tuple(sorted({canonical(code) for code in all_codes()}))


@dataclass(frozen=True)
class TabularCells(CellSpace):
    """The table's cells for a search that trains, or looks up, cells one by one.

    Cells are drawn uniformly from those that differ. Neighbours have another operation, or none, on one edge.
    """

    def random(self, draws: torch.Generator) -> Genotype:
        import torch

        codes = canonical_codes()
        return genotype_of(codes[int(torch.randint(len(codes), (), generator=draws))])

    def neighbours(self, genotype: Genotype) -> tuple[Genotype, ...]:
        own = code_of(genotype)
        found = set()
        columns = range(len(TABULAR_SPACE.operations))
        # All labellings: an edge between the nodes can be added in either direction.
        for code, edge, column in itertools.product(labellings(own), range(len(own)), columns):
            changed = (*code[:edge], column, *code[edge + 1 :])
            if changed in _valid():
                found.add(canonical(changed))
        return tuple(genotype_of(code) for code in sorted(found - {canonical(own)}))


@cache
def _valid() -> frozenset[Code]:
    return frozenset(all_codes())
