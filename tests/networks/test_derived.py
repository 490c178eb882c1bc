"""Derived networks: published counts, a cell summed by hand, dropped paths, the auxiliary head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import count_macs, count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import (
    CELL_SECTIONS,
    DARTS_SPACE,
    DARTS_V1,
    DARTS_V2,
    PUBLISHED,
    CellGenotype,
    Edge,
    Genotype,
    Space,
    random_genotype,
)
from nasbook.networks import (
    AuxiliaryHead,
    AuxiliaryOutput,
    Backbone,
    DerivedCell,
    DerivedNetwork,
    DropPath,
    parameters_of,
)
from nasbook.networks.stacking import CellPlacement
from nasbook.operations import FactorizedReduction, Pool

few = settings(derandomize=True, deadline=None, max_examples=15)


# ---------------------------------------------------------------------------------------------- exact counts


@pytest.mark.parametrize(
    ("name", "parameters", "with_head", "macs"),
    [
        ("DARTS_V1", 3_169_414, 3_645_840, 500_987_520),
        ("DARTS_V2", 3_349_342, 3_825_768, 528_359_040),
        ("PC_DARTS_CIFAR", 3_634_678, 4_111_104, 556_670_592),
    ],
)
def test_published_cells(name, parameters, with_head, macs):
    network = DerivedNetwork(PUBLISHED[name], channels=36, cells=20, classes=10)
    assert count_parameters(network) == parameters
    assert count_macs(network, (1, 3, 32, 32)) == macs
    network = DerivedNetwork(PUBLISHED[name], auxiliary=True)  # 36 channels, 20 cells and 10 classes are the defaults
    assert count_parameters(network) == with_head == parameters + 476_426
    assert count_parameters(network.auxiliary_head) == 476_426
    assert count_macs(network, (1, 3, 32, 32)) == macs  # the head runs in training only


def test_norms_are_affine_and_pools_have_none():
    network = DerivedNetwork(DARTS_V1, channels=4, cells=3)
    assert all(m.affine and m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))
    pools = [o for cell in network.cells for o in cell.operations if isinstance(o, Pool)]
    assert len(pools) == 2 * 5  # five in each reduction cell, as they are


# ---------------------------------------------------------------------------------------------- shapes


@few
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 4),
    cells=st.integers(1, 6),
    channels=st.integers(2, 5),
    size=st.integers(4, 13),
    in_channels=st.sampled_from([1, 3]),
    classes=st.integers(1, 4),
)
def test_any_genotype_at_any_size(seed, nodes, cells, channels, size, in_channels, classes):
    genotype = random_genotype(Space(nodes=nodes), torch.Generator().manual_seed(seed))
    network = DerivedNetwork(genotype, channels, cells, classes, in_channels=in_channels)
    logits = network(torch.rand(2, in_channels, size, size + 1))
    assert logits.shape == (2, classes) and logits.requires_grad and bool(logits.isfinite().all())


def test_resolutions_along_the_stack():
    shapes = []
    network = DerivedNetwork(DARTS_V2, channels=4, cells=6).eval()
    for cell in network.cells:
        cell.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    network(torch.rand(1, 3, 16, 16))
    assert shapes == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (32, 8, 8), (64, 4, 4), (64, 4, 4)]


def test_imagenet_size():
    shapes = []
    network = DerivedNetwork(DARTS_V2, channels=4, cells=5, classes=7, auxiliary=True, stem="imagenet")
    network.cells[0].register_forward_hook(lambda m, inputs, output: shapes.extend([inputs[0].shape, inputs[1].shape]))
    logits, auxiliary = network(torch.rand(2, 3, 224, 224))
    assert shapes == [(2, 4, 56, 56), (2, 4, 28, 28)]
    assert logits.shape == auxiliary.shape == (2, 7)
    assert isinstance(network.cells[0].preprocessing[0], FactorizedReduction)
    # As in the authors' code, and unlike the head for CIFAR, without a batch norm after the second convolution.
    assert [m.num_features for m in network.auxiliary_head.modules() if isinstance(m, nn.BatchNorm2d)] == [128]


# ---------------------------------------------------------------------------------------------- one cell by hand


def test_a_cell_is_the_sum_of_its_edges():
    genotype = CellGenotype(
        (Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "max_pool_3x3"), Edge(1, 2, "skip_connect"),  # two between 1 and 2
         Edge(2, 4, "skip_connect"), Edge(0, 4, "dil_conv_3x3"), Edge(2, 5, "avg_pool_3x3")),
        nodes=4, output=(5, 4),
    )  # fmt: skip
    cell = DerivedCell(genotype, CellPlacement("normal", 4, (6, 8), False, False)).double().eval()
    older, newer = torch.randn(2, 6, 5, 5, dtype=torch.float64), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    by_edge = dict(zip(genotype.edges, cell.operations, strict=True))
    s0, s1 = cell.preprocessing[0](older), cell.preprocessing[1](newer)
    s2 = by_edge[Edge(0, 2, "sep_conv_3x3")](s0) + by_edge[Edge(1, 2, "max_pool_3x3")](s1) + s1
    s4 = s2 + by_edge[Edge(0, 4, "dil_conv_3x3")](s0)
    s5 = F.avg_pool2d(s2, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(cell(older, newer), torch.cat([s5, s4], 1), rtol=1e-12, atol=1e-12)


def test_stride_2_stands_on_the_edges_from_the_inputs_only():
    cell = DerivedCell(DARTS_V2.reduction, CellPlacement("reduction", 4, (4, 4), True, False))
    for edge, operation in zip(cell.genotype.edges, cell.operations, strict=True):
        side = operation(torch.rand(2, 4, 8, 8)).shape[-1]
        assert side == (4 if edge.source < 2 else 8)
    assert cell(torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8)).shape == (2, 16, 4, 4)


# ---------------------------------------------------------------------------------------------- drop path


def test_drop_path_drops_whole_samples():
    x = torch.rand(4_000, 2, 3, 3, dtype=torch.float64) + 0.5
    for rate in (0.2, 0.7):
        ratio = DropPath(rate)(x) / x
        kept = ratio[:, 0, 0, 0] != 0
        expected = (kept.double() / (1 - rate))[:, None, None, None].expand_as(x)
        torch.testing.assert_close(ratio, expected, rtol=1e-12, atol=0)  # one value a sample: 0 or 1 / keep
        share = float(kept.double().mean())
        assert abs(share - (1 - rate)) < 4 * (rate * (1 - rate) / len(x)) ** 0.5  # so that the expectation is x


def test_drop_path_rests():
    x = torch.rand(5, 2, 3, 3)
    assert DropPath(0.0)(x) is x
    assert DropPath(0.9).eval()(x) is x
    assert repr(DropPath(0.25)) == "DropPath(rate=0.25)"


def test_drop_path_is_seeded_and_drawn_for_every_edge():
    network = DerivedNetwork(DARTS_V2, channels=4, cells=3, drop_path=0.5)
    x = torch.rand(4, 3, 8, 8)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network(x)

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    network.eval()
    assert torch.equal(logits(1), logits(2))


def test_identity_edges_are_exempt():
    network = DerivedNetwork(DARTS_V1, channels=4, cells=3, drop_path=0.3)
    for cell in network.cells:
        for edge, operation, drop in zip(cell.genotype.edges, cell.operations, cell.drops, strict=True):
            identity = edge.operation == "skip_connect" and isinstance(operation, nn.Identity)
            assert isinstance(drop, nn.Identity) == identity
            # A skip connection of stride 2 is a convolution, so it is dropped.
            if edge.operation == "skip_connect":
                assert identity == (cell.genotype is DARTS_V1.normal or edge.source >= 2)
    assert {m.rate for m in network.modules() if isinstance(m, DropPath)} == {0.3}
    network.set_drop_path(0.1)
    assert {m.rate for m in network.modules() if isinstance(m, DropPath)} == {0.1}


def test_a_cell_of_identities_is_never_dropped():
    skips = CellGenotype((Edge(0, 2, "skip_connect"), Edge(1, 2, "skip_connect")), nodes=1)
    cell = DerivedCell(skips, CellPlacement("normal", 2, (2, 2), False, False), drop_path=0.9)
    older, newer = torch.randn(50, 2, 4, 4), torch.randn(50, 2, 4, 4)
    expected = cell.preprocessing[0](older) + cell.preprocessing[1](newer)
    torch.testing.assert_close(cell(older, newer), expected)


# ---------------------------------------------------------------------------------------------- auxiliary head


def test_the_auxiliary_head_answers_in_training_only():
    network = DerivedNetwork(DARTS_V1, channels=4, cells=6, classes=3, auxiliary=True)
    x = torch.rand(2, 3, 32, 32)
    output = network(x)
    assert isinstance(output, AuxiliaryOutput) and output.logits.shape == output.auxiliary.shape == (2, 3)
    assert isinstance(network.eval()(x), torch.Tensor)
    assert isinstance(DerivedNetwork(DARTS_V1, channels=4, cells=3)(x), torch.Tensor)


@pytest.mark.parametrize(("cells", "position"), [(1, 0), (2, 1), (3, 2), (8, 5), (20, 13)])
def test_the_auxiliary_head_reads_the_cell_at_two_thirds(cells, position):
    network = DerivedNetwork(DARTS_V1, channels=2, cells=cells, auxiliary=True)
    assert network.auxiliary_position == position
    read, outputs = [], []
    network.auxiliary_head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    for cell in network.cells:
        cell.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    network(torch.rand(2, 3, 16 if cells == 1 else 32, 16 if cells == 1 else 32))
    assert read[0] is outputs[position]


@pytest.mark.parametrize(("stem", "sizes"), [("cifar", (8, 9, 10)), ("imagenet", (7, 8))])
def test_sizes_that_the_auxiliary_head_takes(stem, sizes):
    head = AuxiliaryHead(4, 3, stem).eval()
    for size in sizes:
        assert head(torch.rand(2, 4, size, size)).shape == (2, 3)
    for size in (1, min(sizes) - 1, max(sizes) + 1):
        with pytest.raises(
            InvalidInput,
            match=rf"^The auxiliary head needs feature maps of {min(sizes)} to {max(sizes)} pixels a side .*, "
            rf"got {size}×8; use auxiliary=False at this image size\.$",
        ):
            head(torch.rand(2, 4, size, 8))


# ---------------------------------------------------------------------------------------------- five kinds of cell

FIVE_OPERATIONS = ("sep_conv_3x3", "dil_conv_3x3", "skip_connect", "sep_conv_5x5", "dil_conv_5x5")


def full_cell(operation):
    """All 14 edges with one operation, as Firefly keeps them."""
    return CellGenotype(tuple(Edge(source, target, operation) for source, target in DARTS_SPACE.edges))


FIVE = Genotype({kind: full_cell(name) for kind, name in zip(CELL_SECTIONS, FIVE_OPERATIONS, strict=True)})


@pytest.mark.parametrize(
    ("cells", "lengths"), [(20, (6, 1, 6, 1, 6)), (11, (3, 1, 3, 1, 3)), (8, (2, 1, 2, 1, 2)), (5, (1, 1, 1, 1, 1))]
)
def test_the_five_cells_of_firefly_stand_by_sections(cells, lengths):
    with torch.device("meta"):
        network = DerivedNetwork(FIVE, channels=40, cells=cells)
    expected = [name for name, length in zip(FIVE_OPERATIONS, lengths, strict=True) for _ in range(length)]
    assert [cell.genotype.edges[0].operation for cell in network.cells] == expected
    reducing = [place for place, cell in enumerate(network.cells) if cell.genotype in (FIVE["cell 2"], FIVE["cell 4"])]
    for place, cell in enumerate(network.cells):
        strides = {
            module.stride
            for edge, operation in zip(cell.genotype.edges, cell.operations, strict=True)
            for module in operation.modules()
            if edge.source < 2 and isinstance(module, nn.Conv2d) and module.groups > 1
        }
        # A separable convolution's second half keeps stride 1; identities have no convolution.
        assert ((2, 2) in strides) == (place in reducing), place


def test_one_cell_for_all_five_is_the_network_of_one_cell():
    x = torch.rand(2, 3, 16, 16)
    of_two = Genotype(dict.fromkeys(("normal", "reduction"), DARTS_V1.normal))
    of_five = Genotype(dict.fromkeys(CELL_SECTIONS, DARTS_V1.normal))
    torch.manual_seed(0)
    two = DerivedNetwork(of_two, channels=4, cells=8).eval()
    five = DerivedNetwork(of_five, channels=4, cells=8).eval()
    five.load_state_dict(two.state_dict())
    assert torch.equal(two(x), five(x))
    assert parameters_of(of_five, 40, 20) == parameters_of(of_two, 40, 20)
    assert count_macs(two, (1, 3, 16, 16)) == count_macs(five, (1, 3, 16, 16))


def test_five_cells_counted_by_hand():
    """Stem, then of every cell two 1×1 convolutions before it and 14 edges, the classifier: no weight besides."""
    c = 3

    def preprocessing(older, newer, width):  # a factorised reduction has as many weights as a 1×1 convolution
        return (older + newer) * width + 4 * width

    def separable(kernel, width):
        return 2 * (kernel**2 * width + width**2 + 2 * width)

    def dilated(kernel, width):
        return kernel**2 * width + width**2 + 2 * width

    total = 27 * 3 * c + 6 * c
    total += preprocessing(3 * c, 3 * c, c) + 14 * separable(3, c)
    total += preprocessing(3 * c, 4 * c, 2 * c) + 14 * dilated(3, 2 * c)
    total += preprocessing(4 * c, 8 * c, 2 * c)  # identities of stride 1
    total += preprocessing(8 * c, 8 * c, 4 * c) + 14 * separable(5, 4 * c)
    total += preprocessing(8 * c, 16 * c, 4 * c) + 14 * dilated(5, 4 * c)
    total += 16 * c * 7 + 7
    network = DerivedNetwork(FIVE, channels=c, cells=5, classes=7)
    assert count_parameters(network) == total
    assert network(torch.rand(2, 3, 9, 9)).shape == (2, 7)


def test_an_identity_of_a_reduction_is_a_factorised_reduction():
    cells = {kind: full_cell("skip_connect") for kind in CELL_SECTIONS}
    network = DerivedNetwork(Genotype(cells), channels=4, cells=5)
    kinds = [[type(operation) for operation in cell.operations] for cell in network.cells]
    sources = [edge.source for edge in network.cells[1].genotype.edges]
    assert kinds[1] == kinds[3] == [FactorizedReduction if source < 2 else nn.Identity for source in sources]
    assert set(kinds[0]) == set(kinds[2]) == set(kinds[4]) == {nn.Identity}


def test_five_cells_have_an_auxiliary_head_and_dropped_paths():
    network = DerivedNetwork(FIVE, channels=2, cells=5, auxiliary=True, drop_path=0.3)
    assert network.auxiliary_position == 3  # the second reduction
    logits, auxiliary = network(torch.rand(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 10)
    rates = [[drop.rate for drop in cell.drops if isinstance(drop, DropPath)] for cell in network.cells]
    assert rates == [[0.3] * 14, [0.3] * 14, [], [0.3] * 14, [0.3] * 14]


def test_five_cells_as_the_backbone_of_a_segmentation():
    """At the classifier's output stride nothing is replaced; at a smaller one the same pixels have its values."""
    torch.manual_seed(0)
    network = DerivedNetwork(FIVE, channels=2, cells=5, classes=1).double().eval()
    x = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    features = []
    for stride in (4, 1):
        backbone = Backbone(FIVE, 2, 5, output_stride=stride, stem="cifar").double().eval()
        backbone.load_classifier(network.state_dict())
        features.append(backbone(x))
    assert features[0].shape == (1, 32, 6, 6) and features[1].shape == (1, 32, 24, 24)
    torch.testing.assert_close(features[1][..., ::4, ::4], features[0], rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------- wrong input


# ---------------------------------------------------------------------------------------------- means of nodes


def test_a_cell_whose_output_is_the_mean_of_its_nodes():
    torch.manual_seed(0)
    genotype = DARTS_V2.normal
    joined, mean = (
        DerivedCell(genotype, CellPlacement("normal", 4, (5, 6), False, False, output)).double().eval()
        for output in ("concatenation", "mean")
    )
    mean.load_state_dict(joined.state_dict())
    older, newer = (torch.randn(2, c, 6, 6, dtype=torch.float64) for c in (5, 6))
    nodes = joined(older, newer).view(2, 4, 4, 6, 6)  # images, nodes, channels
    torch.testing.assert_close(mean(older, newer), nodes.mean(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cells", [3, 8])
def test_a_network_of_means(cells):
    """Its cells read fewer channels, and nothing else differs."""
    channels, classes = 4, 5
    mean = DerivedNetwork(DARTS_V1, channels, cells, classes, cell_output="mean")
    joined = DerivedNetwork(DARTS_V1, channels, cells, classes)
    assert mean(torch.rand(2, 3, 8, 8)).shape == (2, classes)
    saved = 0
    for cell, other in zip(mean.cells, joined.cells, strict=True):
        for own, wide in zip(cell.preprocessing, other.preprocessing, strict=True):
            saved += count_parameters(wide) - count_parameters(own)
    width = joined.classifier.in_features
    assert mean.classifier.in_features * 4 == width
    assert count_parameters(joined) - count_parameters(mean) == saved + width * 3 // 4 * classes
    assert saved > 0


def test_a_mean_with_an_auxiliary_head():
    network = DerivedNetwork(DARTS_V1, 4, 5, auxiliary=True, cell_output="mean")
    logits, auxiliary = network(torch.rand(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 10)


def test_an_unknown_cell_output():
    with pytest.raises(InvalidInput, match=r"^Unknown cell output 'sum'\. Valid: concatenation, mean\.$"):
        DerivedNetwork(DARTS_V1, 4, 3, cell_output="sum")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"^channels must be above 0, got 0\.$"),
        ({"cells": -1}, r"^cells must be above 0, got -1\.$"),
        ({"classes": 0}, r"^classes must be above 0, got 0\.$"),
        ({"in_channels": 0}, r"^in_channels must be above 0, got 0\.$"),
        ({"drop_path": 1.0}, r"^drop_path must be at least 0 and below 1, got 1\.0\.$"),
        ({"drop_path": -0.1}, r"^drop_path must be at least 0 and below 1, got -0\.1\.$"),
        ({"drop_path": float("nan")}, r"^drop_path must be at least 0 and below 1, got nan\.$"),
        ({"stem": "imagnet"}, r"^Unknown stem 'imagnet'\. Did you mean 'imagenet'\? Valid: cifar, imagenet\.$"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(InvalidInput, match=message):
        DerivedNetwork(DARTS_V1, **{"channels": 4, "cells": 3, **options})


def test_wrong_genotypes():
    cell = CellGenotype((Edge(0, 2, "sep_conv_3"),), nodes=1)
    with pytest.raises(InvalidInput, match=r"^Unknown operation 'sep_conv_3'\. Did you mean 'sep_conv_3x3'"):
        DerivedNetwork(Genotype({"normal": cell, "reduction": cell}), channels=4, cells=3)
    with pytest.raises(InvalidInput, match=r"of cell for a stack of 3: needed normal, reduction; got normal\.$"):
        DerivedNetwork(Genotype({"normal": DARTS_V1.normal}), channels=4, cells=3)
    with pytest.raises(InvalidInput, match=r"^A stack of 3 is too short for five kinds .*: use 5 cells or more\.$"):
        DerivedNetwork(FIVE, channels=4, cells=3)
    four = Genotype({kind: FIVE[kind] for kind in CELL_SECTIONS[:4]})
    with pytest.raises(InvalidInput, match=r"needed cell 1, cell 2, cell 3, cell 4, cell 5; got cell 1, .*, cell 4\.$"):
        DerivedNetwork(four, channels=4, cells=20)
    one_input = CellGenotype((Edge(0, 1, "skip_connect"),), nodes=1, inputs=1)
    with pytest.raises(InvalidInput, match=r"^A convolutional cell has 2 input nodes, this genotype has 1\.$"):
        DerivedNetwork(Genotype({"normal": one_input, "reduction": one_input}), channels=4, cells=3)
    # A kind that the stack does not use may be missing: a single cell is a reduction cell.
    only = Genotype({"reduction": DARTS_V1.reduction})
    assert DerivedNetwork(only, channels=2, cells=1).genotype == only
