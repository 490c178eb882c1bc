"""Statistics of the published cells, by hand, and of random cells, against every path."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.analysis import cell_depth, mean_depth, node_depths, operation_counts, skip_count
from nasbook.genotypes import DARTS_V1, DARTS_V2, CellGenotype, Edge, Genotype


def test_darts_v2():
    assert operation_counts(DARTS_V2) == {
        "sep_conv_3x3": 5, "max_pool_3x3": 5, "skip_connect": 5, "dil_conv_3x3": 1,
    }
    assert skip_count(DARTS_V2.normal) == 2 and skip_count(DARTS_V2.reduction) == 3
    assert node_depths(DARTS_V2.normal) == {2: 1, 3: 1, 4: 1, 5: 2}
    assert cell_depth(DARTS_V2.normal) == 2
    assert mean_depth(DARTS_V2.normal) == 1.25


def test_darts_v1_is_as_deep():
    assert node_depths(DARTS_V1.reduction) == {2: 1, 3: 2, 4: 2, 5: 2}
    assert mean_depth(DARTS_V1.reduction) == pytest.approx(1.75)


def test_a_chain_and_a_node_that_is_not_in_the_output():
    chain = CellGenotype(tuple(Edge(node, node + 1, "skip_connect") for node in range(4)), nodes=4, inputs=1)
    assert cell_depth(chain) == skip_count(chain) == 4
    assert mean_depth(chain) == 2.5
    cut = CellGenotype(chain.edges, nodes=4, inputs=1, output=(1, 2))
    assert cell_depth(cut) == 2 and mean_depth(cut) == 1.5


def test_counts_cover_every_kind_of_cell():
    cell = CellGenotype((Edge(0, 1, "a"), Edge(0, 1, "b")), nodes=1, inputs=1)
    assert operation_counts(Genotype({"first": cell, "second": cell})) == {"a": 2, "b": 2}


@settings(deadline=None, max_examples=60)
@given(nodes=st.integers(1, 6), inputs=st.integers(1, 2), seed=st.integers(0, 2**31))
def test_depth_is_the_longest_of_all_paths(nodes, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    edges, reached = [], list(range(inputs))
    for target in range(inputs, inputs + nodes):
        sources = [source for source in reached if torch.rand((), generator=generator) < 0.5]
        edges += [Edge(source, target, "skip_connect") for source in sources]
        reached += [target] if sources else []  # a node without an edge is removed
    if not edges:
        edges = [Edge(0, inputs, "skip_connect")]
    cell = CellGenotype(tuple(edges), nodes, inputs)
    there = {(edge.source, edge.target) for edge in cell.edges}

    longest = 0
    for chosen in product([False, True], repeat=nodes):  # every set of intermediate nodes, in order, as a path
        middle = [inputs + number for number, wanted in enumerate(chosen) if wanted]
        for first in range(inputs):
            if middle and middle[-1] in cell.output and all(step in there for step in pairwise([first, *middle])):
                longest = max(longest, len(middle))
    assert cell_depth(cell) == longest
