"""The supernet: exact counts, its two sets of parameters, and its cells summed by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import CELL_SECTIONS, DARTS_OPERATIONS, DARTS_SPACE, Space
from nasbook.networks import CellPlacement, reduction_positions
from nasbook.operations import FactorizedReduction, Pool
from nasbook.supernets import MixedOperation, SearchCell, SearchNetwork, SoftmaxRelaxation, strongest_edges

few = settings(derandomize=True, deadline=None, max_examples=12)


# ---------------------------------------------------------------------------------------------- exact counts


@pytest.mark.parametrize(("cells", "weights"), [(8, 1_930_618), (20, 4_548_730)])
def test_weights(cells, weights):
    network = SearchNetwork(cells=cells)
    assert count_parameters(network.weights()) == weights
    assert count_parameters(network.architecture()) == 2 * 14 * 8
    assert count_parameters(network) == weights + 224


def test_the_two_sets_of_parameters_are_disjoint_and_cover_all():
    network = SearchNetwork(channels=4, cells=3)
    weights, architecture = {id(p) for p in network.weights()}, {id(p) for p in network.architecture()}
    assert not weights & architecture
    assert weights | architecture == {id(p) for p in network.parameters()}
    assert [p.shape for p in network.architecture()] == [(14, 8), (14, 8)]
    assert [n for n, p in network.named_parameters() if id(p) in architecture] == [
        "relaxations.normal.alpha", "relaxations.reduction.alpha"
    ]  # fmt: skip


def test_norms_in_cells_are_not_affine_and_pools_have_one():
    network = SearchNetwork(channels=4, cells=3)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.affine == name.startswith("stem.") and module.track_running_stats
        if isinstance(module, MixedOperation):
            for operation, candidate in zip(DARTS_OPERATIONS, module.candidates.values(), strict=True):
                if operation.endswith("pool_3x3"):
                    assert [type(part) for part in candidate] == [Pool, nn.BatchNorm2d]
                if operation == "skip_connect":
                    assert isinstance(candidate, nn.Identity | FactorizedReduction)


# ---------------------------------------------------------------------------------------------- shapes


@few
@given(
    nodes=st.integers(1, 3),
    cells=st.integers(1, 4),
    channels=st.integers(2, 4),
    size=st.integers(4, 9),
    in_channels=st.sampled_from([1, 3]),
    classes=st.integers(1, 4),
    operations=st.sets(st.sampled_from(DARTS_OPERATIONS[1:]), min_size=1, max_size=3),
)
def test_any_space_at_any_size(nodes, cells, channels, size, in_channels, classes, operations):
    space = Space(("none", *sorted(operations)), nodes)
    network = SearchNetwork(space, channels, cells, classes, in_channels=in_channels)
    logits = network(torch.rand(3, in_channels, size, size + 1))
    assert logits.shape == (3, classes) and bool(logits.isfinite().all())
    genotype = network.genotype()
    assert genotype.kinds == ("normal", "reduction")
    assert {edge.operation for _, cell in genotype.cells for edge in cell.edges} <= operations


def test_imagenet_size():
    shapes = []
    network = SearchNetwork(Space(("none", "skip_connect"), nodes=2), 4, 4, 5, stem="imagenet").eval()
    for cell in network.cells:
        cell.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    assert shapes == [(8, 8, 8), (16, 4, 4), (32, 2, 2), (32, 2, 2)]


# ---------------------------------------------------------------------------------------------- sums by hand


def _inputs(*channels: int, size: int = 6) -> list[torch.Tensor]:
    return [torch.randn(3, c, size, size, dtype=torch.float64) for c in channels]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_mixed_operation_is_a_weighted_sum(stride):
    mixed = MixedOperation(DARTS_OPERATIONS, 4, stride).double()
    (x,) = _inputs(4)
    weights = torch.rand(8, dtype=torch.float64)
    expected = torch.zeros(3, 4, 6 // stride, 6 // stride, dtype=torch.float64)
    for weight, candidate in zip(weights.tolist(), mixed.candidates.values(), strict=True):
        expected += weight * candidate(x)
    torch.testing.assert_close(mixed(x, weights), expected, rtol=1e-12, atol=1e-12)
    pool = F.batch_norm(F.max_pool2d(x, 3, stride, 1), None, None, training=True)
    torch.testing.assert_close(list(mixed.candidates.values())[1](x), pool, rtol=1e-12, atol=1e-12)


@few
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from(["normal", "reduction"]), st.booleans())
def test_a_search_cell_is_the_sum_over_all_edges(seed, nodes, kind, halve_older):
    torch.manual_seed(seed)
    space = Space(("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes)
    cell = SearchCell(space, CellPlacement(kind, 4, (5, 6), kind == "reduction", halve_older)).double().eval()
    (newer,) = _inputs(6)
    (older,) = _inputs(5, size=12 if halve_older else 6)
    coefficients = torch.rand(len(space.edges), 4, dtype=torch.float64)
    states = {0: cell.preprocessing[0](older), 1: cell.preprocessing[1](newer)}
    for node in range(2, 2 + nodes):
        states[node] = torch.zeros(())
        for row, (source, target) in enumerate(space.edges):
            if target == node:
                for column, candidate in enumerate(cell.edges[row].candidates.values()):
                    states[node] = states[node] + coefficients[row, column] * candidate(states[source])
    expected = torch.cat([states[node] for node in range(2, 2 + nodes)], 1)
    assert expected.shape[-1] == (3 if kind == "reduction" else 6)
    torch.testing.assert_close(cell(older, newer, coefficients), expected, rtol=1e-12, atol=1e-12)


class OneHot(SoftmaxRelaxation):
    """Coefficients that are 1 for the derived edges' operations and 0 elsewhere."""

    def coefficients(self) -> torch.Tensor:
        hot = torch.zeros_like(self.alpha)
        for edge in self.derive().edges:
            row = self.space.edges.index((edge.source, edge.target))
            hot[row, self.space.operations.index(edge.operation)] = 1
        return hot

    def derive(self):
        return strongest_edges(self.alpha.softmax(-1), self.space)


def test_one_hot_coefficients_leave_the_chosen_candidates_only():
    space = Space(("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes=3)
    network = SearchNetwork(space, 4, 4, 5, relaxation=lambda s: OneHot(s, scale=1.0)).double().eval()
    genotype = network.genotype()
    (images,) = _inputs(3, size=8)
    older, newer = network.stem(images)
    for position, cell in enumerate(network.cells):
        kind = "reduction" if position in reduction_positions(4) else "normal"
        states = {0: cell.preprocessing[0](older), 1: cell.preprocessing[1](newer)}
        for edge in genotype[kind].edges:  # by target: a node is whole before it is read
            mixed = cell.edges[space.edges.index((edge.source, edge.target))]
            value = mixed.candidates[edge.operation](states[edge.source])
            states[edge.target] = states.get(edge.target, 0) + value
        older, newer = newer, torch.cat([states[node] for node in (2, 3, 4)], 1)
    expected = network.classifier(newer.mean((2, 3)))
    torch.testing.assert_close(network(images), expected, rtol=1e-12, atol=1e-12)


def test_every_cell_of_a_kind_shares_the_coefficients():
    network = SearchNetwork(Space(nodes=2), 4, 3, 5)
    given_to = []
    for cell in network.cells:
        cell.register_forward_pre_hook(lambda module, inputs: given_to.append(inputs[2]))
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    normal, reduction, again = given_to
    assert reduction is again and normal is not reduction  # the cells at 1/3 and 2/3 reduce
    assert torch.equal(normal, network.coefficients()["normal"])
    assert torch.equal(reduction, network.coefficients()["reduction"])
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.architecture())


class Constant(SoftmaxRelaxation):
    """A relaxation with a penalty."""

    def penalty(self) -> torch.Tensor:
        return self.alpha.square().sum()


def test_penalties_are_summed():
    assert float(SearchNetwork(channels=2, cells=1).penalty()) == 0
    network = SearchNetwork(channels=2, cells=1, relaxation=Constant)
    expected = sum(float(p.detach().square().sum()) for p in network.architecture())
    assert float(network.penalty().detach()) == pytest.approx(expected)


def test_coefficients_and_genotype_follow_the_parameters():
    network = SearchNetwork(channels=2, cells=1)
    for parameter in network.architecture():
        parameter.data.zero_()
        parameter.data[:, 4] = 1.0
    assert all(torch.allclose(c.sum(1), torch.ones(14)) for c in network.coefficients().values())
    assert set(network.genotype().operations()) == {"sep_conv_3x3"}


# --------------------------------------------------------------------------------------------- pools, a space a kind


SPACES = {
    "normal": Space(nodes=2).with_pools(
        [
            ("skip_connect",),
            ("max_pool_3x3", "sep_conv_3x3"),
            ("sep_conv_3x3", "skip_connect"),
            ("none", "max_pool_3x3"),
            ("sep_conv(kernel=3, dilation=1, expansions=2)",),
        ]
    ),
    "reduction": Space(("avg_pool_3x3", "skip_connect", "dil_conv_3x3"), nodes=2),
}


@pytest.mark.parametrize("engine", ["fused", "readable"])
@pytest.mark.parametrize("cell_output", ["concatenation", "mean"])
def test_kinds_of_cell_with_candidates_of_their_own(engine, cell_output):
    """The whole network summed by hand: each edge's own candidates, times their own coefficients."""
    torch.manual_seed(0)
    network = SearchNetwork(SPACES, 4, 4, 5, engine=engine, cell_output=cell_output).double().eval()
    assert network.spaces == SPACES
    for kind, relaxation in network.relaxations.items():
        assert relaxation.space == SPACES[kind]
        relaxation.alpha.data.normal_()
    assert [p.shape for p in network.architecture()] == [(5, 5), (5, 3)]
    (images,) = _inputs(3, size=8)
    older, newer = network.stem(images)
    for cell, kind in zip(network.cells, ("normal", "reduction", "reduction", "normal"), strict=True):
        space, coefficients = SPACES[kind], network.coefficients()[kind]
        nodes = [cell.preprocessing[0](older), cell.preprocessing[1](newer)]
        for node in (2, 3):
            total = torch.zeros(())
            for row, (source, target) in enumerate(space.edges):
                if target == node:
                    candidates = cell.edges[row].candidates
                    assert tuple(candidates) == space.candidates(source, target)
                    alpha = network.relaxations[kind].alpha[row]
                    weights = torch.stack([alpha[space.operations.index(name)] for name in candidates]).softmax(0)
                    for weight, (name, candidate) in zip(weights, candidates.items(), strict=True):
                        torch.testing.assert_close(coefficients[row, space.operations.index(name)], weight)
                        total = total + weight * candidate(nodes[source])
            nodes.append(total)
        joined = torch.cat(nodes[2:], 1) if cell_output == "concatenation" else (nodes[2] + nodes[3]) / 2
        older, newer = newer, joined
    expected = network.classifier(newer.mean((2, 3)))
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)
    genotype = network.genotype()
    for kind, cell in genotype.cells:
        assert all(edge.operation in SPACES[kind].candidates(edge.source, edge.target) for edge in cell.edges)


def test_pools_of_everything_are_no_pools():
    """The same values as a space without pools, whatever the order of an edge's candidates."""
    space = Space(("max_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes=2)
    orders = [space.operations, space.operations[::-1]] * 3
    torch.manual_seed(0)
    plain = SearchNetwork(space, 4, 3, 5).double()
    pools = SearchNetwork(space.with_pools(orders[:5]), 4, 3, 5).double()
    pools.load_state_dict(plain.state_dict())
    (images,) = _inputs(3, size=8)
    torch.testing.assert_close(pools(images), plain(images), rtol=1e-9, atol=1e-9)


def test_a_child_of_pools():
    network = SearchNetwork(SPACES, 4, 4, 5).double().eval()
    for relaxation in network.relaxations.values():
        relaxation.alpha.data.normal_()
    (images,) = _inputs(3, size=8)
    genotype = network.genotype()
    older, newer = network.stem(images)
    for cell, kind in zip(network.cells, network.kinds, strict=True):
        older, newer = newer, cell(older, newer, derived=genotype[kind])
    with network.child():
        torch.testing.assert_close(network(images), network.classifier(newer.mean((2, 3))), rtol=1e-9, atol=1e-9)


def test_parameters_of_a_mean():
    """By how much the inputs of cells get narrower; each node has 4 or 8 or 16 channels."""
    joined, mean = (SearchNetwork(Space(nodes=3), 4, 4, 5, cell_output=output) for output in ("concatenation", "mean"))
    # What cells 2 to 4 read from cells is 1/3 as wide; the cells are n r r n, of 4, 8, 16 and 16 channels.
    narrower = 2 * 4 * 8 + 2 * 4 * 16 + 2 * 8 * 16 + 2 * 8 * 16 + 2 * 16 * 16
    assert count_parameters(joined) - count_parameters(mean) == narrower + 2 * 16 * 5


def test_spaces_of_different_sizes_are_refused():
    message = r"^The spaces of a supernet's kinds of cell may differ in their edges and candidates only\.$"
    with pytest.raises(InvalidInput, match=message):
        SearchNetwork({"normal": Space(nodes=2), "reduction": Space(nodes=3)}, 2, 3)
    with pytest.raises(InvalidInput, match=r"of cell for a stack of 3: needed normal, reduction; got normal\.$"):
        SearchNetwork({"normal": Space(nodes=2)}, 2, 3)
    with pytest.raises(InvalidInput, match=r"^Unknown cell output 'means'\. Did you mean 'mean'"):
        SearchNetwork(Space(nodes=2), 2, 3, cell_output="means")


# ---------------------------------------------------------------------------------------------- five kinds of cell


def test_a_space_of_five_kinds_is_searched_by_sections():
    space = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2, kinds=CELL_SECTIONS)
    network = SearchNetwork(space, channels=2, cells=7, classes=3)
    assert network.kinds == ("cell 1", "cell 1", "cell 2", "cell 3", "cell 4", "cell 5", "cell 5")
    assert [placement.reduces for placement in network.placements] == [False, False, True, False, True, False, False]
    assert tuple(network.relaxations) == network.genotype().kinds == CELL_SECTIONS
    logits = network(torch.rand(2, 3, 8, 8))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.architecture())
    # Each kind has its own architecture parameters.
    before = network.genotype()
    with torch.no_grad():
        next(network.relaxations["cell 1"].parameters())[:, 1] += 10
    after = network.genotype()
    assert {edge.operation for edge in after["cell 1"].edges} == {"skip_connect"}
    assert [after[kind] for kind in CELL_SECTIONS[1:]] == [before[kind] for kind in CELL_SECTIONS[1:]]
    copy = SearchNetwork(space, channels=2, cells=7, classes=3)
    copy.load_state_dict(network.state_dict())
    assert copy.genotype() == network.genotype()


# ---------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"^channels must be above 0, got 0\.$"),
        ({"cells": 0}, r"^cells must be above 0, got 0\.$"),
        ({"classes": -1}, r"^classes must be above 0, got -1\.$"),
        ({"in_channels": 0}, r"^in_channels must be above 0, got 0\.$"),
        ({"stem": "cifar10"}, r"^Unknown stem 'cifar10'\. Did you mean 'cifar'\? Valid: cifar, imagenet\.$"),
        ({"space": Space(inputs=1)}, r"^A convolutional search cell has 2 input nodes, this space has 1\.$"),
        ({"space": Space(("none", "skip_conect"))}, r"^Unknown operation 'skip_conect'\. Did you mean 'skip_connect'"),
        ({"space": Space(kinds=("normal",))}, r"of cell for a stack of 3: needed normal, reduction; got normal\.$"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(InvalidInput, match=message):
        SearchNetwork(**{"space": DARTS_SPACE, "channels": 2, "cells": 3, **options})
