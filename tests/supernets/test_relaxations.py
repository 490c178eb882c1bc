"""From architecture parameters to coefficients, and to the derived cell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Edge, Space
from nasbook.supernets import Relaxation, SoftmaxRelaxation, strongest_edges

few = settings(derandomize=True, deadline=None, max_examples=25)


def test_the_softmax_relaxation():
    relaxation = SoftmaxRelaxation(DARTS_SPACE)
    assert relaxation.alpha.shape == (14, 8) and relaxation.alpha.requires_grad
    assert 5e-4 < float(relaxation.alpha.detach().std()) < 2e-3  # 1e-3 · N(0, 1)
    exponentials = relaxation.alpha.exp()
    torch.testing.assert_close(relaxation.coefficients(), exponentials / exponentials.sum(1, keepdim=True))
    assert float(relaxation.penalty()) == 0
    assert relaxation.derive() == strongest_edges(relaxation.coefficients(), DARTS_SPACE)
    assert float(SoftmaxRelaxation(DARTS_SPACE, scale=0).alpha.detach().abs().max()) == 0
    with pytest.raises(TypeError, match="abstract"):
        Relaxation(DARTS_SPACE)


@few
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.booleans())
def test_derivation_against_brute_force(seed, nodes, inputs, kept, zero):
    names = ("none", "a", "b") if zero else ("a", "b", "c")
    space = Space(names, nodes, inputs, kept)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 6, (len(space.edges), 3), generator=generator) / 10  # few values: many ties
    edges = []
    for node in range(inputs, inputs + nodes):
        strengths = []
        for (source, target), row in zip(space.edges, weights.tolist(), strict=True):
            if target == node:
                ranked = [(-w, i) for i, w in enumerate(row) if names[i] != "none"]
                strengths.append((min(ranked)[0], source, names[min(ranked)[1]]))
        edges += [Edge(source, node, name) for _, source, name in sorted(strengths)[: min(kept, node)]]
    cell = strongest_edges(weights, space)
    assert set(cell.edges) == set(edges) and len(cell.edges) == len(edges)
    assert (cell.nodes, cell.inputs) == (nodes, inputs)


def test_ties_go_to_the_lower_index():
    cell = strongest_edges(torch.full((14, 8), 1 / 8), DARTS_SPACE)
    assert cell.edges == tuple(Edge(source, node, "max_pool_3x3") for node in (2, 3, 4, 5) for source in (0, 1))


def test_the_zero_operation_never_counts():
    alpha = torch.zeros(14, 8)
    alpha[:, 0] = 10.0
    alpha[4, 5] = 1.0  # the edge 2 → 3, third into node 3
    relaxation = SoftmaxRelaxation(DARTS_SPACE)
    relaxation.alpha.data.copy_(alpha)
    cell = relaxation.derive()
    assert [(edge.source, edge.operation) for edge in cell.into(3)] == [(0, "max_pool_3x3"), (2, "sep_conv_5x5")]
    assert "none" not in {edge.operation for edge in cell.edges}


def test_edges_are_ranked_by_softmax_weights_and_not_by_raw_parameters():
    space = Space(("none", "a", "b"), nodes=1, inputs=2, edges_per_node=1)
    relaxation = SoftmaxRelaxation(space)
    # Edge 0 has the larger α, but it has as much of everything else; edge 1 is nearly sure.
    alpha = torch.tensor([[5.0, 5.0, 4.0], [-4.0, -4.0, 2.0]])
    relaxation.alpha.data.copy_(alpha)
    assert relaxation.derive().edges == (Edge(1, 2, "b"),)
    assert strongest_edges(alpha, space).edges == (Edge(0, 2, "a"),)


def test_a_shift_of_an_edge_changes_nothing():
    relaxation = SoftmaxRelaxation(DARTS_SPACE, scale=1.0).double()
    cell = relaxation.derive()
    relaxation.alpha.data.add_(torch.randn(14, 1, dtype=torch.float64) * 5)
    assert relaxation.derive() == cell


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(value):
    weights = torch.full((14, 8), 1 / 8)
    weights[3, 0] = value  # also where it would not be chosen
    with pytest.raises(InvalidInput, match=r"^Can't derive a cell: an architecture weight is not finite\.$"):
        strongest_edges(weights, DARTS_SPACE)


@pytest.mark.parametrize("shape", [(14, 7), (8, 14), (13, 8)])
def test_weights_of_another_space(shape):
    with pytest.raises(InvalidInput, match=rf"^weights must have shape \(14, 8\) .*, got \({shape[0]}, {shape[1]}\)"):
        strongest_edges(torch.zeros(shape), DARTS_SPACE)
