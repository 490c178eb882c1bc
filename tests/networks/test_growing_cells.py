"""Cells whose operations grow: the paper's sizes, DARTS' operations inside, and a declaration that growth can use."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import CELL_SECTIONS, CellGenotype, Edge, Genotype, Space
from nasbook.growth import OvergrownNetwork, integrated_gradients, rewire
from nasbook.networks import (
    GROWING_OPERATIONS,
    GROWING_SPACE,
    TRANSFORM_ACTIVATIONS,
    DerivedCell,
    Growable,
    GrowableCellNetwork,
    parameters_of,
)
from nasbook.networks.growing_cells import GrowableEdge, GrowableOperation
from nasbook.operations import FactorizedReduction, build_operation, configuration_of

TINY = Space(("sep_conv_3x3", "dil_conv_3x3"), nodes=1)


def tiny_network(seed=0, space=TINY, **options):
    """Two edges of two operations in each of five cells, in double precision, with statistics of some batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GrowableCellNetwork(space, channels=2, width=1, classes=3, in_channels=1, **options).double()
        with torch.no_grad():
            for _ in range(3):
                network(torch.rand(8, 1, 8, 8, dtype=torch.float64))
    return network.eval()


def batch(seed=0, images=6):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(images, 1, 8, 8, dtype=torch.float64, generator=generator),
        torch.arange(images) % 3,
    )


# --- the paper's sizes ------------------------------------------------------------------------------------------------


def test_the_network_of_the_paper():
    """B.3: five cells, 14 edges, SepConv and DilConv; channels 4-8-8-16-16, transforms 16-32-32-64-64."""
    network = GrowableCellNetwork()
    widths = network.declare().widths
    assert len(widths) == len(network.neurons()) == 5 * 14 * 4 == 280
    assert [width.name for width in widths] == list(network.neurons())
    assert network.neurons() == Growable.neurons(network)
    assert network.starting_widths() == dict(zip(CELL_SECTIONS, (4, 8, 8, 16, 16), strict=True))
    for place, (starts, channels) in enumerate(zip((4, 8, 8, 16, 16), (16, 32, 32, 64, 64), strict=True)):
        names = network.width_names(place)
        assert tuple(names) == GROWING_SPACE.edges
        assert all(tuple(own) == GROWING_OPERATIONS for own in names.values())
        assert {count for own in network.operation_widths(place).values() for count in own.values()} == {starts}
        for name in (name for own in names.values() for name in own.values()):
            width = network.declare().width(name)
            path = name.removesuffix(".last")
            assert (width.written_by, width.along, width.read_by) == (
                (name,), (f"{path}.norm",), (f"{path}.transform",)
            )  # fmt: skip
            transform = network.get_submodule(f"{path}.transform")
            assert (transform.in_channels, transform.out_channels, transform.kernel_size) == (starts, channels, (1, 1))
            assert transform.bias is None
    assert [place.reduces for place in network.placements] == [False, True, False, True, False]
    assert [place.kind for place in network.placements] == list(CELL_SECTIONS)


def test_the_parameters_of_the_network_of_the_paper():
    total = 3 * 9 * 48 + 2 * 48  # the stem's convolution and batch norm
    older = newer = 48
    for channels, width, reduces in zip((16, 32, 32, 64, 64), (4, 8, 8, 16, 16), (0, 1, 0, 1, 0), strict=True):
        total += (older + newer) * channels  # preprocessing, whichever form
        for kernel in (9, 25):
            separable = kernel * channels + channels * width + kernel * width + width**2 + width * channels
            dilated = kernel * channels + 2 * channels * width
            total += 14 * (separable + dilated)
        total += reduces * 8 * channels**2  # identity maps of stride 2, on the edges from both inputs
        older, newer = newer, 4 * channels
    total += 10 * newer + 10
    assert count_parameters(GrowableCellNetwork()) == total == 632_170


def all_edges(operation: str, sources: int | None = None) -> Genotype:
    """Five cells with one operation on all 14 edges, or on those from the first sources of each node."""
    edges = tuple(Edge(s, t, operation) for t in range(2, 6) for s in range(t)[:sources])
    return Genotype(dict.fromkeys(CELL_SECTIONS, CellGenotype(edges)))


def test_parameters_of_the_evaluation_network():
    """20 cells, 40 channels (B.3), CIFAR-10, no auxiliary head. Table 1 says 3.3 million."""
    size = {
        (operation, sources): parameters_of(all_edges(operation, sources), 40, 20)
        for operation in (*GROWING_OPERATIONS, "skip_connect")
        for sources in (None, 2)
    }
    assert size["sep_conv_3x3", None] == 8_821_730
    assert size["sep_conv_3x3", 2] == 5_765_090
    assert [size[name, None] for name in GROWING_OPERATIONS[1:]] == [9_681_890, 5_255_650, 5_685_730]
    assert size["skip_connect", None] == size["skip_connect", 2] == 1_949_410
    # So with all 14 edges the smallest of the four operations needs six of ten edges to be identities.
    shares = {
        name: (size[name, None] - 3.3e6) / (size[name, None] - size["skip_connect", None])
        for name in GROWING_OPERATIONS
    }
    assert {name: round(share, 3) for name, share in shares.items()} == {
        "sep_conv_3x3": 0.803, "sep_conv_5x5": 0.825, "dil_conv_3x3": 0.592, "dil_conv_5x5": 0.639
    }  # fmt: skip
    assert round((size["sep_conv_3x3", 2] - 3.3e6) / (size["sep_conv_3x3", 2] - 1_949_410), 3) == 0.646


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROWING_OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_an_operation_is_that_of_darts_with_a_transform(name, stride):
    """At the node's own width, and with the transform of an identity matrix."""
    torch.manual_seed(0)
    ours = GrowableOperation(configuration_of(name), 4, 4, stride, "identity")
    theirs = build_operation(name, 4, stride, affine=False)
    weights = [parameter for key, parameter in ours.named_parameters() if not key.startswith("transform")]
    with torch.no_grad():
        for parameter, weight in zip(theirs.parameters(), weights, strict=True):
            assert parameter.shape == weight.shape
            parameter.copy_(weight)
        ours.transform.weight.copy_(torch.eye(4)[:, :, None, None])
    x = torch.randn(2, 4, 8, 8)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert ours(x).shape == (2, 4, 8 // stride, 8 // stride)


def test_only_the_last_convolution_has_a_width():
    """The first half of a separable convolution writes the starting number of channels and stays (B.3)."""
    operation = GrowableOperation(configuration_of("sep_conv_3x3"), 16, 4, 1, "identity")
    shapes = [tuple(p.shape) for p in operation.parameters()]
    assert shapes == [(16, 1, 3, 3), (4, 16, 1, 1), (4, 1, 3, 3), (4, 4, 1, 1), (16, 4, 1, 1)]
    network = tiny_network()
    name = network.width_names(0)[0, 2]["sep_conv_3x3"]
    before = dict(network.named_parameters())
    after = dict(rewire(network, {name: [0, 0, -1]}).network.named_parameters())
    path = name.removesuffix(".last")
    changed = {key for key in before if before[key].shape != after[key].shape}
    assert changed == {f"{path}.last.weight", f"{path}.transform.weight"}


def test_an_edge_adds_its_operations_and_the_identity():
    torch.manual_seed(0)
    edge = GrowableEdge(GROWING_OPERATIONS, 4, 2, 1, "identity").eval()
    x = torch.randn(2, 4, 8, 8)
    assert torch.allclose(edge(x), x + sum(operation(x) for operation in edge.operations.values()), atol=1e-6)
    half = GrowableEdge(("dil_conv_3x3",), 4, 2, 2, "identity").eval()
    assert isinstance(half.identity, FactorizedReduction)
    assert half(x).shape == (2, 4, 4, 4)


def test_a_cell_without_its_operations_is_a_derived_cell_of_identities():
    """All transforms at zero leave the identity maps, on the same graph with the same preprocessing."""
    network = tiny_network(space=replace(TINY, nodes=3))
    for place, cell in zip(network.placements, network.cells, strict=True):
        edges = tuple(Edge(s, t, "skip_connect") for s, t in network.space.edges)
        derived = DerivedCell(CellGenotype(edges, nodes=3), place).double().eval()
        with torch.no_grad():
            for edge, operation in zip(cell.edges, derived.operations, strict=True):
                operation.load_state_dict(edge.identity.state_dict(), strict=False)  # theirs has scales, of one
                for ours in edge.operations.values():
                    ours.transform.weight.zero_()
            derived.preprocessing.load_state_dict(cell.preprocessing.state_dict(), strict=False)
        older = torch.randn(2, place.input_channels[0], *(8, 8) if place.halve_older else (4, 4), dtype=torch.float64)
        newer = torch.randn(2, place.input_channels[1], 4, 4, dtype=torch.float64)
        assert torch.allclose(cell(older, newer), derived(older, newer), atol=1e-12)


def test_gradients_reach_everything():
    network = tiny_network().train()
    F.cross_entropy(network(batch()[0]), batch()[1]).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    transforms = [p.grad for name, p in network.named_parameters() if name.endswith("transform.weight")]
    assert len(transforms) == 20
    assert all(gradient.abs().max() > 0 for gradient in transforms)


@pytest.mark.parametrize("activation", TRANSFORM_ACTIVATIONS)
def test_gradients_of_an_operation(activation):
    torch.manual_seed(0)
    operation = GrowableOperation(configuration_of("dil_conv_3x3"), 2, 2, 1, activation).double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operation, (x,))


def test_the_imagenet_stem():
    network = GrowableCellNetwork(TINY, 2, 1, 3, stem="imagenet").eval()
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_edges_may_have_operations_of_their_own():
    space = TINY.with_pools([("sep_conv_3x3",), ("dil_conv_3x3", "sep_conv_5x5")])
    network = tiny_network(space=space)
    assert network.operation_widths(1) == {(0, 2): {"sep_conv_3x3": 2}, (1, 2): {"dil_conv_3x3": 2, "sep_conv_5x5": 2}}


# --- growing it -------------------------------------------------------------------------------------------------------


def widths_of(network, place):
    return [name for own in network.width_names(place).values() for name in own.values()]


@pytest.mark.parametrize("activation", TRANSFORM_ACTIVATIONS)
@pytest.mark.parametrize("place", range(5))
def test_with_closed_gates_the_over_grown_network_is_the_old_one(place, activation):
    network = tiny_network(activation=activation).float()
    names = widths_of(network, place)
    generator = torch.Generator().manual_seed(1)
    overgrown = OvergrownNetwork(
        network, new=dict.fromkeys(names, 2), splits=dict.fromkeys(names, True), generator=generator
    ).eval()
    images = batch()[0].float()
    assert torch.equal(overgrown(images), network(images))
    overgrown.set_epsilon(0.1)
    assert not torch.equal(overgrown(images), network(images))


def scores(activation: str, place: int):
    """Scores of all candidates of a cell, by kind, in double precision."""
    network = tiny_network(activation=activation)
    names = widths_of(network, place)
    overgrown = OvergrownNetwork(
        network,
        new=dict.fromkeys(names, 1),
        splits=dict.fromkeys(names, True),
        generator=torch.Generator().manual_seed(1),
    )
    overgrown.set_epsilon(0.1)
    found = integrated_gradients(overgrown, [batch()], F.cross_entropy).gradients.abs()
    split = torch.tensor([candidate.kind == "split" for candidate in overgrown.candidates])
    return found[split], found[~split]


@pytest.mark.parametrize("place", range(5))
def test_a_split_before_a_linear_transform_is_worth_nothing(place):
    """In evaluation mode a batch norm is affine, so both halves average to the neuron: no loss can tell."""
    splits, new = scores("identity", place)
    assert splits.max() < 1e-12 * new.max()
    with_relu, _ = scores("relu", place)
    assert with_relu.max() > 1e-4 * new.max()


def test_a_split_before_a_linear_transform_is_seen_in_training_mode():
    """Each half is then normalised by its own moments, which are not linear: step one moves what step two can't see."""
    network = tiny_network()
    names = widths_of(network, 0)
    overgrown = OvergrownNetwork(
        network, splits=dict.fromkeys(names, True), generator=torch.Generator().manual_seed(1)
    )
    images = batch()[0]
    overgrown.set_epsilon(0.1)
    assert torch.allclose(overgrown.eval()(images), network(images), atol=1e-12)
    moved = overgrown.train()(images)
    overgrown.set_epsilon(0.0)
    assert (overgrown(images) - moved).abs().max() > 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_a_grown_operation_is_near_the_old_one(seed):
    """The change is of the order of the gates, and vanishes with them."""
    network = tiny_network(seed)
    names = widths_of(network, seed)
    images, _ = batch(seed)
    changes = []
    for epsilon in (1e-3, 1e-6):
        overgrown = OvergrownNetwork(
            network, new=dict.fromkeys(names, 1), splits=False, generator=torch.Generator().manual_seed(1)
        )
        gates = torch.full((len(overgrown.candidates),), epsilon, dtype=torch.float64)
        grown = overgrown.grow(range(len(gates)), gates).network
        assert sum(grown.neurons().values()) == sum(network.neurons().values()) + len(names)
        changes.append((grown(images) - network(images)).abs().max().item())
    assert 0 < changes[1] < 1e-4
    assert changes[0] / changes[1] == pytest.approx(1000, rel=0.02)


def test_a_copy_is_independent():
    network = tiny_network()
    other = copy.deepcopy(network)
    nn.init.zeros_(other.classifier.weight)
    assert network.classifier.weight.abs().max() > 0


# --- wrong input ------------------------------------------------------------------------------------------------------

WRONG = {
    "an unknown operation": (
        {"space": Space(("sep_conv_3x4",), nodes=1)},
        r"^Unknown operation 'sep_conv_3x4'\. Did you mean 'sep_conv_3x3'",
    ),
    "the identity": (
        {"space": Space(("sep_conv_3x3", "skip_connect"), nodes=1)},
        r"^'skip_connect' has no channels that could grow\. Leave it out: the identity map stands on every edge",
    ),
    "a pool": ({"space": Space(("max_pool_3x3",), nodes=1)}, r"^'max_pool_3x3' has no channels that could grow"),
    "the zero operation": (
        {"space": Space(("none", "sep_conv_3x3"), nodes=1)}, r"^'none' has no channels that could grow"
    ),
    "another convolution": (
        {"space": Space(("conv_3x3",), nodes=1)}, r"^'conv_3x3' is not a separable convolution"
    ),
    "an activation": (
        {"activation": "rely"}, r"^Unknown activation 'rely'\. Did you mean 'relu'\?? .*Valid: identity, relu"
    ),
    "one input": ({"space": Space(("sep_conv_3x3",), nodes=1, inputs=1)}, r"has 2 input nodes, this space has 1"),
    "channels": ({"channels": 0}, r"^channels must be above 0, got 0"),
    "width": ({"width": 0}, r"^width must be above 0, got 0"),
    "classes": ({"classes": 0}, r"^classes must be above 0, got 0"),
    "a stem": ({"stem": "cifer"}, r"^Unknown stem 'cifer'\. Did you mean 'cifar'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name):
    changes, message = WRONG[name]
    options = {"space": TINY, "channels": 2, "width": 1, "classes": 3, **changes}
    with pytest.raises(InvalidInput, match=message):
        GrowableCellNetwork(**options)
