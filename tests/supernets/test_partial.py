"""Partial channels and edge normalisation against PC-DARTS' equations, written out by loops of their own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasbook.analysis import count_parameters, saved_activation_bytes
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_OPERATIONS, DARTS_SPACE, Edge, Space
from nasbook.networks import CellPlacement
from nasbook.supernets import (
    PARTIAL_ENGINES,
    EdgeNormalizedRelaxation,
    FusedCell,
    FusedPartialCell,
    MixedOperation,
    PartialCell,
    PartialMixedOperation,
    PartialNetwork,
    SearchCell,
    SearchNetwork,
    SoftmaxRelaxation,
)
from nasbook.training import FirstOrder, SecondOrder

few = settings(derandomize=True, deadline=None, max_examples=15)
SMALL = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
LEFT_OUT = Space(SMALL, nodes=3, left_out=((0, 3), (1, 3), (2, 4)))


def random_image(channels: int, size: int = 6) -> Tensor:
    return torch.randn(3, channels, size, size, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- one edge


@few
@given(
    seed=st.integers(0, 2**32),
    partition=st.integers(2, 4),
    part=st.integers(2, 3),
    stride=st.sampled_from([1, 2]),
    size=st.integers(4, 7),
)
def test_eq_2_channel_by_channel(seed, partition, part, stride, size):
    """Channel c of group g of what is concatenated stands at c·K + g; group 0 is computed, the others pass."""
    torch.manual_seed(seed)
    channels = partition * part
    mixed = PartialMixedOperation(DARTS_OPERATIONS, channels, stride, partition).double()
    x, row = random_image(channels, size), torch.rand(8, dtype=torch.float64)
    y = mixed(x, row)
    half = -(-size // stride)
    assert y.shape == (3, channels, half, half)
    computed = torch.zeros(3, part, half, half, dtype=torch.float64)
    for name, weight in zip(DARTS_OPERATIONS, row.tolist(), strict=True):
        computed += weight * mixed.candidates[name](x[:, :part])
    for g in range(partition):
        for c in range(part):
            if g == 0:
                expected = computed[:, c]
            else:
                expected = x[:, g * part + c]
                if stride == 2:  # the largest of every 2×2 pixels; a last odd row or column stands alone
                    rows = [expected[:, i : i + 2].amax(1) for i in range(0, size, 2)]
                    both = torch.stack(rows, 1)
                    expected = torch.stack([both[:, :, j : j + 2].amax(2) for j in range(0, size, 2)], 2)
                expected = float(row.sum()) * expected
            torch.testing.assert_close(y[:, c * partition + g], expected, rtol=1e-12, atol=1e-12)


def test_a_shuffle_of_twelve_channels():
    """Four groups of three: 0 1 2 | 3 4 5 | 6 7 8 | 9 10 11, read across."""
    mixed = PartialMixedOperation(("skip_connect",), 12, 1, 4)
    x = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 2, 2)
    order = mixed(x, torch.ones(1))[0, :, 0, 0].tolist()
    assert order == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_candidates_have_a_part_of_the_channels_and_pools_a_norm_that_is_not_affine():
    mixed = PartialMixedOperation(DARTS_OPERATIONS, 16, 2, 4)
    norms = [module for module in mixed.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.num_features, norm.affine) for norm in norms} == {(4, False)}
    for name in ("max_pool_3x3", "avg_pool_3x3"):
        assert isinstance(mixed.candidates[name][1], nn.BatchNorm2d)
    whole = MixedOperation(DARTS_OPERATIONS, 4, 2)
    assert [(n, p.shape) for n, p in mixed.named_parameters()] == [(n, p.shape) for n, p in whole.named_parameters()]


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_one_edge(stride):
    mixed = PartialMixedOperation(("avg_pool_3x3", "skip_connect"), 4, stride, 2).double().eval()
    x, row = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(mixed, (x.requires_grad_(), row.requires_grad_()))
    assert torch.autograd.gradgradcheck(mixed, (x, row))


def test_what_passes_says_nothing_about_the_operations():
    """Its gradient reaches β alone: the rows of α's softmax have the sum 1."""
    space = Space(("avg_pool_3x3", "skip_connect"), nodes=1)
    relaxation = EdgeNormalizedRelaxation(space, scale=1.0).double()
    (relaxation.coefficients().sum(1) * torch.tensor([3.0, -1.0])).sum().backward()
    assert float(relaxation.alpha.grad.abs().max()) < 1e-15
    p = relaxation.edge_weights().detach()
    torch.testing.assert_close(relaxation.beta.grad, 4 * p[0] * p[1] * torch.tensor([1.0, -1.0]).double())


# ---------------------------------------------------------------------------------------------- cells


def placement(kind: str = "normal", channels: int = 8, halve_older: bool = False) -> CellPlacement:
    return CellPlacement(kind, channels, (5, 6), kind == "reduction", halve_older)


@few
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["normal", "reduction"]),
    partition=st.sampled_from([2, 4]),
    space=st.sampled_from([Space(SMALL, 2), Space(DARTS_OPERATIONS, 3), LEFT_OUT, Space(("none", "skip_connect"), 2)]),
    training=st.booleans(),
    size=st.sampled_from([6, 7]),
)
def test_both_forms_of_a_cell_are_the_sum_over_all_edges(seed, kind, partition, space, training, size):
    """Values, gradients of everything, and the statistics of the norms, in both modes."""
    torch.manual_seed(seed)
    readable = PartialCell(space, placement(kind), partition).double().train(training)
    fused = FusedPartialCell(space, placement(kind), partition).double().train(training)
    fused.load_state_dict(readable.state_dict())
    by_hand = copy.deepcopy(readable)
    inputs = random_image(5, size), random_image(6, size)
    coefficients = torch.rand(len(space.edges), len(space.operations), dtype=torch.float64)

    def of_edges(older: Tensor, newer: Tensor, rows: Tensor) -> Tensor:
        states = [by_hand.preprocessing[0](older), by_hand.preprocessing[1](newer)]
        for node in range(2, 2 + space.nodes):
            arriving = [
                by_hand.edges[row](states[source], rows[row])
                for row, (source, target) in enumerate(space.edges)
                if target == node
            ]
            states.append(torch.stack(arriving).sum(0))
        return torch.cat(states[2:], 1)

    answers = []
    for cell, run in ((by_hand, of_edges), (readable, readable), (fused, fused)):
        leaves = [value.clone().requires_grad_() for value in (*inputs, coefficients)]
        y = run(*leaves)
        (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)).sum().backward()
        gradients = {name: p.grad for name, p in cell.named_parameters()}
        answers.append((y.detach(), [leaf.grad for leaf in leaves], gradients, dict(cell.named_buffers())))
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=1e-9, atol=1e-9)


def test_a_pass_leaves_nothing_behind_in_a_fused_cell():
    """Else the cell would hold the graph of its last pass until the next one, and could not be copied."""
    cell = FusedPartialCell(Space(SMALL, 2), placement(), 4)
    before = set(vars(cell))
    cell(torch.randn(2, 5, 4, 4), torch.randn(2, 6, 4, 4), torch.rand(5, 4, requires_grad=True))
    assert set(vars(cell)) == before
    with pytest.raises(RuntimeError):
        cell(torch.randn(2, 5, 4, 4), torch.randn(2, 7, 4, 4), torch.rand(5, 4, requires_grad=True))
    assert set(vars(cell)) == before
    copy.deepcopy(cell)


@pytest.mark.parametrize("engine", PARTIAL_ENGINES)
def test_a_derived_cell_needs_all_channels(engine):
    network = PartialNetwork(Space(SMALL, 2), 4, 3, 3, engine=engine)
    with pytest.raises(InvalidInput, match="needs all: train the genotype as a network of its own"), network.child():
        network(torch.randn(2, 3, 8, 8))


# ---------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(("partition", "weights"), [(4, 299_578), (2, 671_482), (1, 1_930_618)])
def test_weights(partition, weights):
    """By hand: 99,450 outside the candidates, which have 102·c depthwise and 6·c² pointwise weights an edge, c = C/K.

    A skip connection of stride 2 has c² more. At K = 1 these are DARTS' weights.
    """
    widths = [c // partition for c in (16, 16, 32, 32, 32, 64, 64, 64)]
    by_hand = 99_450 + sum(14 * (102 * c + 6 * c * c) for c in widths) + 8 * sum(widths[i] ** 2 for i in (2, 5))
    assert by_hand == weights
    network = PartialNetwork(partition=partition)
    assert count_parameters(network.weights()) == weights
    assert count_parameters(network.architecture()) == 2 * 14 * (8 + 1)
    names = [name for name, _ in network.named_parameters() if name.startswith("relaxations.normal.")]
    assert names == ["relaxations.normal.alpha", "relaxations.normal.beta"]
    assert {id(p) for p in network.weights()}.isdisjoint(id(p) for p in network.architecture())


def test_k_of_one_is_the_network_without_partial_channels():
    torch.manual_seed(0)
    network = PartialNetwork(Space(SMALL, 2), 4, 3, 3, partition=1, relaxation=SoftmaxRelaxation)
    torch.manual_seed(0)
    whole = SearchNetwork(Space(SMALL, 2), 4, 3, 3)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(network(images), whole(images))
    assert [type(cell) for cell in network.cells] == [FusedCell] * 3
    readable = PartialNetwork(Space(SMALL, 2), 4, 3, 3, partition=1, engine="readable")
    assert [type(cell) for cell in readable.cells] == [SearchCell] * 3


def test_a_checkpoint_moves_between_engines():
    torch.manual_seed(0)
    networks = {engine: PartialNetwork(Space(SMALL, 2), 4, 3, 3, engine=engine).double() for engine in PARTIAL_ENGINES}
    for engine, network in networks.items():
        assert {type(cell) for cell in network.cells} == {PARTIAL_ENGINES[engine]}
    networks["readable"].load_state_dict(networks["fused"].state_dict())
    images = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    values = [network(images) for network in networks.values()]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [FirstOrder, SecondOrder])
def test_steps_of_both_engines(kind):
    """Three steps on α, β and w, in float64."""
    ends = []
    for engine in PARTIAL_ENGINES:
        torch.manual_seed(0)
        network = PartialNetwork(Space(SMALL, 2), 4, 3, 3, engine=engine).double()
        update = kind(
            network,
            torch.optim.SGD(network.weights(), 0.1, momentum=0.9),
            torch.optim.SGD(network.architecture(), 1.0),
        )
        before = torch.cat([p.detach().flatten().clone() for p in network.architecture()])
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            images = torch.randn(2, 5, 3, 8, 8, generator=generator, dtype=torch.float64)
            labels = torch.randint(3, (2, 5), generator=generator)
            update.step((images[0], labels[0]), (images[1], labels[1]))
        moved = torch.cat([p.detach().flatten() for p in network.architecture()]) - before
        assert int((moved == 0).sum()) == 0
        ends.append(torch.cat([value.flatten().double() for value in network.state_dict().values()]))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("engine", PARTIAL_ENGINES)
def test_cells_that_are_computed_again_give_the_same_bits(engine):
    ends = []
    images = torch.randn(4, 3, 8, 8)
    for count in (0, 3):
        torch.manual_seed(0)
        network = PartialNetwork(Space(SMALL, 2), 4, 3, 3, engine=engine, recompute_cells=count)
        network(images).square().sum().backward()
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        ends.append(torch.cat([*gradients, *(b.flatten().float() for b in network.buffers())]))
    assert torch.equal(*ends)


def test_the_supernet_keeps_less_for_the_backward_pass():
    """What the candidates keep falls to a K-th; what passes, sums and preprocessing are left: 0.54 and 0.30 here."""
    images = torch.randn(2, 3, 16, 16)
    networks = {k: PartialNetwork(DARTS_SPACE, 16, 3, partition=k, engine="readable") for k in (1, 2, 4)}
    kept = {k: saved_activation_bytes(network, images) for k, network in networks.items()}
    assert kept[2] / kept[1] == pytest.approx(0.537, abs=0.01)
    assert kept[4] / kept[1] == pytest.approx(0.305, abs=0.01)
    assert saved_activation_bytes(PartialNetwork(DARTS_SPACE, 16, 3), images) < kept[4]


@pytest.mark.parametrize(
    ("channels", "partition", "message"),
    [
        (6, 4, r"^partition must divide the channels, got partition=4 and channels=6\.$"),
        (4, 8, r"^partition must divide the channels, got partition=8 and channels=4\.$"),
        (4, 0, r"^partition must be above 0, got 0\.$"),
        (4, -2, r"^partition must be above 0, got -2\.$"),
    ],
)
def test_wrong_parts(channels, partition, message):
    with pytest.raises(InvalidInput, match=message):
        PartialNetwork(Space(SMALL, 2), channels, partition=partition)
    for kind in PARTIAL_ENGINES.values():
        with pytest.raises(InvalidInput, match=message):
            kind(Space(SMALL, 2), placement(channels=channels), partition)


@pytest.mark.parametrize("kind", PARTIAL_ENGINES.values())
def test_cells_need_two_parts(kind):
    with pytest.raises(InvalidInput, match=r"^partition=1 lets nothing pass: .* Use SearchCell\.$"):
        kind(Space(SMALL, 2), placement(), 1)


def test_an_unknown_engine():
    with pytest.raises(InvalidInput, match=r"Unknown engine 'fussed'. Did you mean 'fused'"):
        PartialNetwork(engine="fussed")


# ---------------------------------------------------------------------------------------------- edge normalisation


@few
@given(st.integers(0, 2**32), st.sampled_from([DARTS_SPACE, Space(SMALL, 3), LEFT_OUT]))
def test_eq_3_edge_by_edge(seed, space):
    torch.manual_seed(seed)
    relaxation = EdgeNormalizedRelaxation(space, scale=2.0).double()
    alpha, beta = relaxation.alpha.detach().exp(), relaxation.beta.detach().exp()
    q = relaxation.coefficients()
    for row, (_, target) in enumerate(space.edges):
        others = [other for other, (_, node) in enumerate(space.edges) if node == target]
        share = beta[row] / beta[others].sum()
        torch.testing.assert_close(relaxation.edge_weights()[row].detach(), share)
        torch.testing.assert_close(q[row].detach(), share * alpha[row] / alpha[row].sum())
    entering = torch.tensor([target for _, target in space.edges])
    for node in set(entering.tolist()):
        assert float(q[entering == node].sum().detach()) == pytest.approx(1, abs=1e-12)
    assert torch.autograd.gradcheck(lambda *_: relaxation.coefficients(), tuple(relaxation.parameters()))


def test_parameters_begin_near_zero():
    relaxation = EdgeNormalizedRelaxation(DARTS_SPACE)
    assert relaxation.alpha.shape == (14, 8) and relaxation.beta.shape == (14,)
    values = torch.cat([EdgeNormalizedRelaxation(DARTS_SPACE).beta.detach() for _ in range(20)])
    assert 8e-4 < float(values.std()) < 1.2e-3
    torch.manual_seed(3)
    first = SoftmaxRelaxation(DARTS_SPACE).alpha
    torch.manual_seed(3)
    assert torch.equal(EdgeNormalizedRelaxation(DARTS_SPACE).alpha, first)  # β is drawn after α


def test_the_strongest_products_are_derived():
    """β outweighs α, and zero never counts, however strong."""
    space = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
    relaxation = EdgeNormalizedRelaxation(space)
    with torch.no_grad():  # edges 0→2, 1→2, 0→3, 1→3, 2→3
        relaxation.alpha.copy_(torch.tensor([[0, 1, 0], [0, 0, 1], [0, 3, 0], [9, 0, 1], [0, 0, 0.1]]))
        relaxation.beta.copy_(torch.tensor([0, 0, -5.0, 4.0, 1.0]))
    # Into 3: 0.9·e^-5 of 0→3, e/(e^9 + 1 + e)·e^4 of 1→3, about 0.36·e of 2→3: the last two, 1→3 by 0.018 to 0.006.
    assert relaxation.derive().edges == (
        Edge(0, 2, "skip_connect"),
        Edge(1, 2, "sep_conv_3x3"),
        Edge(1, 3, "sep_conv_3x3"),
        Edge(2, 3, "sep_conv_3x3"),
    )
    with torch.no_grad():
        relaxation.beta.zero_()  # now 0→3 and 2→3, as DARTS would
    assert [edge.source for edge in relaxation.derive().into(3)] == [0, 2]


def test_a_beta_that_is_not_finite_is_refused():
    relaxation = EdgeNormalizedRelaxation(DARTS_SPACE)
    relaxation.beta.data[3] = torch.nan
    with pytest.raises(InvalidInput, match=r"^Can't derive a cell: an architecture weight is not finite\.$"):
        relaxation.derive()


def test_passing_is_max_pooling():
    """At an even size it is F.max_pool2d(x, 2)."""
    mixed = PartialMixedOperation(("none",), 8, 2, 4).double()
    x = random_image(8)
    y = mixed(x, torch.ones(1, dtype=torch.float64))
    assert torch.equal(y[:, 1], F.max_pool2d(x, 2)[:, 2]) and float(y[:, 0].abs().max()) == 0
