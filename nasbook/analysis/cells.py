"""Statistics of a found cell: what it is made of, and how deep it is.

Cells that a search likes for the wrong reason show here first: many skip connections, little depth.
"""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from nasbook.genotypes import CellGenotype, Genotype


def operation_counts(genotype: Genotype) -> dict[str, int]:
    """How often each operation stands in the genotype, over all kinds of cell, the most frequent first."""
    return dict(Counter(genotype.operations()).most_common())


def skip_count(cell: CellGenotype) -> int:
    """Number of skip connections in the cell."""
    return sum(edge.operation == "skip_connect" for edge in cell.edges)


def node_depths(cell: CellGenotype) -> dict[int, int]:
    """For every connected intermediate node, the number of edges on the longest path to it from an input."""
    depths = dict.fromkeys(range(cell.inputs), 0)
    for node in cell.connected():  # ascending, and edges only run forwards
        depths[node] = 1 + max(depths[edge.source] for edge in cell.into(node))
    return {node: depth for node, depth in depths.items() if node >= cell.inputs}


def cell_depth(cell: CellGenotype) -> int:
    """Number of edges on the longest path from an input to a node of the output.

    Concatenating the nodes is not an edge here. Shu et al. (2020), "Understanding architectures learnt by
    cell-based neural architecture search", count it, so their depth is larger by one.
    """
    depths = node_depths(cell)
    return max(depths[node] for node in cell.output)


def mean_depth(cell: CellGenotype) -> float:
    """Mean of :func:`node_depths` over the nodes of the output: 1 when every node reads the inputs only."""
    depths = node_depths(cell)
    return fmean(depths[node] for node in cell.output)
