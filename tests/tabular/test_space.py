"""The table's space: what is a cell, and which cells are one graph."""

import itertools

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_V2, CellGenotype, Edge, Genotype
from nasbook.networks import DerivedNetwork
from nasbook.tabular import TABULAR_SPACE, TabularCells, canonical, code_of, genotype_of
from nasbook.tabular.space import all_codes, canonical_codes

any_cell = st.sampled_from(all_codes())
few = settings(derandomize=True, deadline=None, max_examples=60)


def graph(code):
    """The cell as a graph whose inputs can be told apart, without nodes that nothing enters."""
    found = nx.DiGraph()
    found.add_nodes_from((node, {"kind": f"input {node}"}) for node in (0, 1))
    for (source, target), column in zip(TABULAR_SPACE.edges, code, strict=True):
        if column:
            found.add_node(target, kind="node")
            found.add_edge(source, target, operation=column)
    return found


def same(one, other):
    return nx.is_isomorphic(
        graph(one),
        graph(other),
        node_match=lambda a, b: a["kind"] == b["kind"],
        edge_match=lambda a, b: a["operation"] == b["operation"],
    )


def test_there_are_975_cells_of_which_855_differ():
    assert len(all_codes()) == 975
    assert len(canonical_codes()) == 855
    # By networkx, among the cells that have as many edges of each operation.
    alike = {}
    for code in all_codes():
        alike.setdefault(tuple(sorted(code)), []).append(code)
    classes = 0
    for codes in alike.values():
        representatives = []
        for code in codes:
            if not any(same(code, other) for other in representatives):
                representatives.append(code)
        classes += len(representatives)
    assert classes == 855


@few
@given(any_cell, any_cell)
def test_canonical_codes_are_equal_where_graphs_are(one, other):
    assert canonical(canonical(one)) == canonical(one)
    assert canonical(one) in canonical_codes()
    assert same(one, canonical(one))
    assert (canonical(one) == canonical(other)) == same(one, other)


@few
@given(any_cell)
def test_codes_and_genotypes_are_two_forms_of_one_cell(code):
    assert code_of(genotype_of(code)) == code == code_of(genotype_of(code)["reduction"])


def test_isomorphic_networks_compute_the_same_with_their_weights_exchanged():
    one, other = genotype_of((2, 1, 3, 2, 0)), genotype_of((3, 2, 2, 1, 0))
    assert canonical(code_of(one)) == canonical(code_of(other))
    torch.manual_seed(0)
    networks = [DerivedNetwork(genotype, 4, 2, 10, in_channels=1).eval() for genotype in (one, other)]
    exchanged = {2: 3, 3: 2}
    networks[1].load_state_dict(networks[0].state_dict(), strict=False)
    for own, new in zip(networks[0].cells, networks[1].cells, strict=True):
        for edge, operation in zip(own.genotype.edges, own.operations, strict=True):
            there = new.genotype.edges.index(Edge(edge.source, exchanged[edge.target], edge.operation))
            new.operations[there].load_state_dict(operation.state_dict())
    width = networks[0].cells[1].placement.channels

    def swap(weight):  # columns that read the two nodes of a cell's output
        half = weight.shape[1] // 2
        return torch.cat([weight[:, half:], weight[:, :half]], dim=1)

    newer = networks[1].cells[1].preprocessing[1][1]
    newer.weight.data = swap(newer.weight.data)
    assert networks[1].classifier.weight.shape[1] == 2 * width
    networks[1].classifier.weight.data = swap(networks[1].classifier.weight.data)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(networks[0](x), networks[1](x))


@few
@given(any_cell)
def test_neighbours_are_mutual_and_one_change_away(code):
    cells = TabularCells()
    own = canonical(code)
    beside = [code_of(other) for other in cells.neighbours(genotype_of(code))]
    assert beside == sorted(set(beside)) and own not in beside
    for other in beside:
        assert other == canonical(other)
        assert own in [code_of(back) for back in cells.neighbours(genotype_of(other))]
        labellings = itertools.product(*[[c for c in all_codes() if canonical(c) == k] for k in (own, other)])
        assert any(sum(a != b for a, b in zip(*pair, strict=True)) == 1 for pair in labellings)


def test_cells_are_drawn_uniformly_from_those_that_differ():
    cells, draws = TabularCells(), torch.Generator().manual_seed(0)
    drawn = {code_of(cells.random(draws)) for _ in range(3000)}
    assert drawn <= set(canonical_codes())
    assert len(drawn) > 780  # 855·(1 − e^(−3000/855)) = 829 are expected


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (DARTS_V2, "one kind 'reduction'; this genotype has normal, reduction"),
        (CellGenotype((Edge(0, 2, "skip_connect"),), nodes=4), "2 intermediate nodes; this one has 2 and 4"),
        (CellGenotype((Edge(0, 2, "sep_conv_5x5"),), nodes=2), "'sep_conv_5x5' is not among"),
        (
            CellGenotype((Edge(0, 2, "skip_connect"), Edge(0, 2, "sep_conv_3x3")), nodes=2),
            "Two operations stand between node 0 and node 2",
        ),
        (
            CellGenotype((Edge(0, 2, "skip_connect"), Edge(0, 3, "skip_connect")), nodes=2, output=(3,)),
            r"every node that an edge enters, here \[2, 3\]; this cell's is \[3\]",
        ),
        (Genotype({"cell 1": CellGenotype((Edge(0, 2, "skip_connect"),), nodes=2)}), "this genotype has cell 1"),
    ],
)
def test_other_cells_are_refused(key, message):
    with pytest.raises(InvalidInput, match=message):
        code_of(key)


@pytest.mark.parametrize("code", [(1, 0, 0, 0), (4, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 1, 0, 2)])
def test_other_codes_are_refused(code):
    with pytest.raises(InvalidInput):
        genotype_of(code)
