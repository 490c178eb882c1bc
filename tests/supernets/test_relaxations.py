"""From architecture parameters to coefficients, and to the derived cell."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Edge, Space
from nasbook.networks import CellPlacement
from nasbook.supernets import (
    AnnealedSoftmax,
    AnyOutputEdges,
    EdgeNormalizedRelaxation,
    InputEdges,
    OutputEdges,
    PoolSoftmax,
    Relaxation,
    SearchNetwork,
    SharedCell,
    SoftmaxRelaxation,
    SparseRelaxation,
    StrongestOutputs,
    softmax_relaxation,
    strongest_edges,
)

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


# ---------------------------------------------------------------------------------------------- pools


RAGGED = Space(("a", "b", "c"), nodes=2).with_pools(
    [("a", "b"), ("c",), ("b", "c", "a"), ("c", "a"), ("b",)]
)  # the columns are a, b, c


def test_a_softmax_over_each_pool():
    relaxation = PoolSoftmax(RAGGED).double()
    assert relaxation.alpha.shape == (5, 3)
    two, three = math.log(2), math.log(3)
    relaxation.alpha.data = torch.tensor(
        [[0, two, 9], [9, 9, 1], [0, two, three], [three, 9, 0], [9, -4, 9]], dtype=torch.float64
    )
    expected = torch.tensor(
        [[1 / 3, 2 / 3, 0], [0, 0, 1], [1 / 6, 2 / 6, 3 / 6], [3 / 4, 0, 1 / 4], [0, 1, 0]], dtype=torch.float64
    )
    found = relaxation.coefficients()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert bool(((found == 0) == (expected == 0)).all())  # zero itself, not nearly
    cell = relaxation.derive()
    assert cell.edges == (Edge(0, 2, "b"), Edge(1, 2, "c"), Edge(1, 3, "a"), Edge(2, 3, "b"))
    alike = PoolSoftmax(RAGGED, scale=0.0).coefficients()
    assert torch.equal(alike, torch.tensor([[1 / 2, 1 / 2, 0], [0, 0, 1], [1 / 3] * 3, [1 / 2, 0, 1 / 2], [0, 1, 0]]))


@few
@given(st.integers(0, 2**32))
def test_what_an_edge_does_not_have_gets_no_gradient_and_changes_nothing(seed):
    torch.manual_seed(seed)
    relaxation = PoolSoftmax(RAGGED, scale=2.0).double()
    present = torch.tensor([[name in pool for name in RAGGED.operations] for pool in RAGGED.pools])
    weights = torch.randn(5, 3, dtype=torch.float64)
    (relaxation.coefficients() * weights).sum().backward()
    gradient = relaxation.alpha.grad
    assert bool((gradient[~present] == 0).all()) and bool(gradient.isfinite().all())
    for row, pool in enumerate(RAGGED.pools):  # against a softmax over the pool alone
        columns = [RAGGED.operations.index(name) for name in pool]
        alpha = relaxation.alpha.detach()[row, columns].requires_grad_()
        (alpha.softmax(0) * weights[row, columns]).sum().backward()
        torch.testing.assert_close(gradient[row, columns], alpha.grad, rtol=1e-12, atol=1e-14)
    before = relaxation.coefficients().detach().clone()
    relaxation.alpha.data[~present] = 1e6
    assert torch.equal(relaxation.coefficients(), before)
    # Adam with weight decay leaves zeros there, as nothing pulls at them.
    relaxation.alpha.data[~present] = 0
    torch.optim.Adam([relaxation.alpha], 0.1, weight_decay=0.1).step()
    assert bool((relaxation.alpha[~present] == 0).all()) and bool((relaxation.alpha[present] != 0).all())


def test_the_second_derivatives_are_finite_too():
    """A second-order search differentiates the softmax twice."""
    relaxation = PoolSoftmax(RAGGED, scale=1.0).double()
    present = torch.tensor([[name in pool for name in RAGGED.operations] for pool in RAGGED.pools])

    def loss(alpha):
        own = copy.copy(relaxation)
        own._parameters = {"alpha": alpha}
        return (own.coefficients().square() * torch.arange(15.0).view(5, 3)).sum()

    hessian = torch.autograd.functional.hessian(loss, relaxation.alpha.detach()).view(15, 15)
    assert bool(hessian.isfinite().all())
    absent = ~present.flatten()
    assert bool((hessian[absent] == 0).all()) and bool((hessian[:, absent] == 0).all())
    assert float(hessian.abs().max()) > 1e-2


def test_the_mask_is_no_part_of_the_state_and_follows_the_device():
    relaxation = PoolSoftmax(RAGGED)
    assert list(relaxation.state_dict()) == ["alpha"]
    assert relaxation.to("meta").coefficients().device.type == "meta"
    assert type(softmax_relaxation(RAGGED)) is PoolSoftmax
    assert type(softmax_relaxation(DARTS_SPACE)) is SoftmaxRelaxation


@pytest.mark.parametrize(
    "kind",
    [
        SoftmaxRelaxation,
        EdgeNormalizedRelaxation,
        StrongestOutputs,
        AnnealedSoftmax,
        SparseRelaxation,
        InputEdges,
        OutputEdges,
        AnyOutputEdges,
    ],
)
def test_relaxations_that_know_no_pools_refuse_them(kind):
    pools = [("max_pool_3x3",), ("skip_connect", "max_pool_3x3"), ("skip_connect",)] * 3
    space = Space(nodes=3).with_pools(pools)
    message = rf"^{kind.__name__} needs the same candidates on all edges; this space has pools\.$"
    with pytest.raises(InvalidInput, match=message):
        kind(space)
    with pytest.raises(InvalidInput, match=message):
        SearchNetwork(space, 2, 3, relaxation=kind)


def test_what_an_edge_does_not_have_is_zero():
    relaxation = PoolSoftmax(RAGGED)
    relaxation.alpha.data.normal_()
    present = torch.tensor([[name in pool for name in RAGGED.operations] for pool in RAGGED.pools])
    coefficients = relaxation.coefficients()
    assert bool((coefficients[~present] == 0).all()) and bool((coefficients[present] > 0).all())
    for edge in relaxation.derive().edges:
        assert edge.operation in RAGGED.candidates(edge.source, edge.target)


def test_shared_features_and_pools_exclude_each_other():
    space = Space(("skip_connect", "max_pool_3x3"), nodes=1)
    space = space.with_pools([("skip_connect",), ("max_pool_3x3",)])
    with pytest.raises(InvalidInput, match=r"^A node's operations can't serve all of its edges where every edge has"):
        SharedCell(space, CellPlacement("normal", 4, (4, 4), False, False))
    with pytest.raises(InvalidInput, match="every edge has its own pool"):
        SearchNetwork(space, 4, 3, feature_sharing=True)
