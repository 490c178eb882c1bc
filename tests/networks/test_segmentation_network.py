"""Atrous backbones: on the coarse grid they are the coarse network, whatever stands on the edges; and the head."""

import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_V2, PC_DARTS_CIFAR, PUBLISHED, CellGenotype, Edge, Genotype
from nasbook.networks import (
    Backbone,
    DerivedNetwork,
    DropPath,
    SegmentationNetwork,
    atrous_rates,
    make_atrous,
    output_strides,
    set_drop_path,
)
from nasbook.networks.segmentation import AtrousFactorizedReduction, AtrousPool, build_head
from nasbook.operations import FactorizedReduction, Zero, build_operation, list_operations

few = settings(derandomize=True, deadline=None, max_examples=20)
CHOICES = list_operations()[1:]  # all but the zero operation
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def with_random_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and in evaluation mode, with statistics and scales that a trained network could have."""
    draws = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.bias, -1, 1),
                                      (norm.weight, 0.5, 2)):
                tensor.data.uniform_(low, high, generator=draws)
    return module


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


# ---------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", list_operations())
@few
@given(dilation=st.integers(1, 4), height=st.integers(1, 17), width=st.integers(1, 17), seed=st.integers(0, 2**32))
def test_every_operation_on_the_coarse_grid(name, stride, dilation, height, width, seed):
    """The property that the whole construction rests on, borders included."""
    operation = with_random_norms(build_operation(name, 4, stride), seed)
    spread = make_atrous(copy.deepcopy(operation), dilation)
    x = torch.randn(2, 4, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1
    fine = spread(x)
    assert fine.shape == x.shape
    step = stride * dilation
    torch.testing.assert_close(fine[..., ::step, ::step], operation(x[..., ::dilation, ::dilation]), **CLOSE)
    assert shapes_of(spread) == shapes_of(operation)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", list_operations())
def test_weights_are_taken_over_and_nothing_is_drawn(name, stride):
    operation = build_operation(name, 4, stride)
    own = dict(operation.named_parameters())
    before = torch.get_rng_state()
    spread = make_atrous(operation, 3)
    assert torch.equal(torch.get_rng_state(), before)
    taken = dict(spread.named_parameters())
    assert taken.keys() == own.keys()
    assert all(taken[key] is own[key] for key in own)
    assert all(module.training for module in spread.modules())
    assert not any(module.training for module in make_atrous(build_operation(name, 4, stride).eval(), 2).modules()
                   if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("dilation", [2, 3, 4])
@pytest.mark.parametrize("name", ["sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"])
@pytest.mark.parametrize("size", [3, 16])
def test_gradients_where_channels_come_last(name, dilation, size):
    """There the depthwise convolutions have gradients of their own, which must know the new dilation."""
    operation = make_atrous(build_operation(name, 3, 2), dilation).double()
    plain = copy.deepcopy(operation)
    for position, layer in enumerate(plain):
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            sizes = (3, 3, layer.kernel_size, 1, layer.padding, layer.dilation, 3)
            plain[position] = nn.Conv2d(*sizes, bias=False).double()
            plain[position].weight.data.copy_(layer.weight.data)
    x = torch.randn(2, 3, size, size + 1, dtype=torch.float64).to(memory_format=torch.channels_last)
    upstream = torch.randn_like(x)
    results = []
    for module in (operation, plain):
        inputs = x.clone(memory_format=torch.channels_last).requires_grad_()
        output = module(inputs)
        results.append([output, *torch.autograd.grad((output * upstream).sum(), [inputs, *module.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["max_pool_3x3", "avg_pool_3x3"])
def test_gradients_of_pools(kind):
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make_atrous(build_operation(kind, 2, 2), 2), (x,))


def test_dilations_by_hand():
    """7 pixels in a row, a dilation of 2: each output reads its neighbours two pixels away."""
    row = torch.tensor([1.0, 5.0, 2.0, 8.0, 4.0, 0.0, 3.0]).view(1, 1, 1, 7)
    assert AtrousPool("max", 2)(row).flatten().tolist() == [2, 8, 4, 8, 4, 8, 4]
    assert AtrousPool("average", 2)(row).flatten().tolist() == pytest.approx(
        [3 / 2, 13 / 2, 7 / 3, 13 / 3, 3, 4, 7 / 2]
    )
    sep = make_atrous(build_operation("sep_conv_5x5", 2, 2), 2)
    assert [(m.dilation, m.padding) for m in sep if isinstance(m, nn.Conv2d) and m.groups > 1] == [
        ((2, 2), (4, 4)), ((4, 4), (8, 8)),  # what comes after the stride is twice as far apart
    ]
    apart = make_atrous(build_operation("conv_1x7_7x1", 2, 2), 2)
    across, down = (m for m in apart if isinstance(m, nn.Conv2d))
    assert (across.dilation[1], across.padding, down.dilation[0], down.padding) == (2, (0, 6), 2, (6, 0))
    dilated = make_atrous(build_operation("dil_conv_3x3", 2, 1), 2)
    assert (dilated[1].dilation, dilated[1].padding) == ((4, 4), (4, 4))  # 2 becomes 4


def test_what_can_not_be_spread():
    with pytest.raises(InvalidInput, match="^Linear can't be spread over a finer grid: make_atrous knows"):
        make_atrous(nn.Linear(2, 2), 2)
    with pytest.raises(InvalidInput, match="^A chain with Softmax can't be spread over a finer grid"):
        make_atrous(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Softmax(1)), 2)
    with pytest.raises(InvalidInput, match="^dilation must be above 0, got 0"):
        make_atrous(Zero(), 0)


# ---------------------------------------------------------------------------------------------- backbones


@st.composite
def connections(draw) -> list[list[tuple[int, str]]]:
    """Of any cell, for each node what enters it: all operations, several between two nodes too."""
    return [
        draw(st.lists(st.tuples(st.integers(0, node - 1), st.sampled_from(CHOICES)),
                      min_size=1, max_size=4, unique=True))
        for node in range(2, 2 + draw(st.integers(1, 3)))
    ]


def cell_of(nodes: list[list[tuple[int, str]]]) -> CellGenotype:
    edges = [Edge(source, 2 + number, name) for number, node in enumerate(nodes) for source, name in node]
    return CellGenotype(tuple(edges), len(nodes))


@few
@given(
    normal=connections(),
    reduction=connections(),
    stem=st.sampled_from(["cifar", "imagenet"]),
    cells=st.integers(1, 7),
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    seed=st.integers(0, 2**32),
)
def test_any_backbone_on_the_coarse_grid(normal, reduction, stem, cells, height, width, seed):
    genotype = Genotype({"normal": cell_of(normal), "reduction": cell_of(reduction)})
    strides = output_strides(stem, cells)
    coarse = with_random_norms(Backbone(genotype, 2, cells, output_stride=strides[-1], stem=stem), seed)
    images = torch.randn(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = coarse(images)
    for stride in strides:
        backbone = Backbone(genotype, 2, cells, output_stride=stride, stem=stem).double().eval()
        backbone.load_state_dict(coarse.state_dict())
        features = backbone(images)
        assert features.shape == (1, backbone.features, math.ceil(height / stride), math.ceil(width / stride))
        step = strides[-1] // stride
        torch.testing.assert_close(features[..., ::step, ::step], expected, rtol=1e-9, atol=1e-9)


def test_sizes_of_the_paper():
    """513×513 at output stride 16: 33×33 features (33 = ⌈513/16⌉)."""
    backbone = Backbone(DARTS_V2, 2, 5).eval()
    assert backbone.output_stride == 16
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 513, 513)).shape == (1, 2 * 4 * 4, 33, 33)
    assert output_strides("imagenet", 14) == (8, 16, 32)
    assert output_strides("cifar", 20) == (1, 2, 4)
    assert output_strides("imagenet", 1) == (8, 16)  # both reductions are the one cell


def test_where_the_dilation_changes():
    """At output stride 16 the first reduction divides, the second one is replaced."""
    backbone = Backbone(PC_DARTS_CIFAR, 4, 6)

    def dilations(cell):
        layers = (layer for layer in cell.operations.modules() if isinstance(layer, nn.Conv2d))
        return {layer.dilation[0] for layer in layers if layer.groups > 1}

    plain = Backbone(PC_DARTS_CIFAR, 4, 6, output_stride=32)
    assert [dilations(cell) for cell in plain.cells[:4]] == [dilations(cell) for cell in backbone.cells[:4]]
    assert dilations(backbone.cells[2]) == {1}  # a reduction that divides
    assert dilations(backbone.cells[4]) == {1, 2}  # one that is replaced: its first kernels read what lies as before
    assert dilations(backbone.cells[5]) == {2, 4}  # a normal cell behind it, with separable and dilated convolutions
    older = [type(cell.preprocessing[0]).__name__ for cell in backbone.cells]
    # The stem's and the first reduction's make up for a resolution that is really halved, the last one no longer.
    assert older[0] == older[3] == "FactorizedReduction" and older[5] == "AtrousFactorizedReduction"
    assert older.count("ReLUConvolution") == 3
    assert isinstance(backbone.cells[5].preprocessing[0], AtrousFactorizedReduction | FactorizedReduction)
    assert backbone.cells[5].preprocessing[0].dilation == 1  # the older input lies as before the reduction


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_trained_classifiers_weights(stride):
    torch.manual_seed(3)
    classifier = with_random_norms(DerivedNetwork(DARTS_V2, 4, 5, 7, auxiliary=True, stem="imagenet"))
    backbone = Backbone(DARTS_V2, 4, 5, output_stride=stride).double().eval()
    backbone.load_classifier(classifier.state_dict())
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    features = backbone(images)[..., :: 32 // stride, :: 32 // stride]
    torch.testing.assert_close(
        classifier.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1)), classifier(images), **CLOSE
    )
    names = {n for n in classifier.state_dict() if not n.startswith(("classifier", "auxiliary_head"))}
    assert backbone.state_dict().keys() == names
    assert shapes_of(backbone).items() <= shapes_of(classifier).items()


def test_weights_of_another_network():
    backbone = Backbone(DARTS_V2, 4, 5)
    hint = " Give the genotype, channels, cells and stem that the weights were trained with.$"

    def refused(message: str, **network) -> None:
        before = copy.deepcopy(backbone.state_dict())
        given = DerivedNetwork(**{"genotype": DARTS_V2, "channels": 4, "cells": 5, "stem": "imagenet", **network})
        with pytest.raises(InvalidInput, match=message + hint):
            backbone.load_classifier(given.state_dict())
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    refused(r"^'stem.quarter.0.weight': expected the shape \(2, 3, 3, 3\), got \(3, 3, 3, 3\)\.", channels=6)
    refused(r"^The weights lack 'stem.quarter.0.weight'\.", stem="cifar")
    refused(r"^'cells.1.preprocessing.0.1.weight': expected the shape \(8, 4, 1, 1\), got \(4, 4, 1, 1\)\.", cells=6)
    weights = {**backbone.state_dict(), "cells.5.norm": torch.ones(1)}
    with pytest.raises(InvalidInput, match="^The backbone has no 'cells.5.norm'." + hint):
        backbone.load_classifier(weights)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_seed_gives_a_derived_networks_weights(name):
    """At every output stride: nothing is drawn when the resolution is kept."""
    states = []
    for build in (lambda: DerivedNetwork(PUBLISHED[name], 4, 6, 1, stem="imagenet"),
                  lambda: Backbone(PUBLISHED[name], 4, 6, output_stride=8)):
        torch.manual_seed(1)
        states.append((build().state_dict(), torch.get_rng_state()))
    assert torch.equal(states[0][1], states[1][1])
    assert all(torch.equal(value, states[0][0][key]) for key, value in states[1][0].items())


def test_paths_are_dropped():
    backbone = Backbone(DARTS_V2, 4, 3, stem="cifar", output_stride=2, drop_path=0.3)
    rates = [module.rate for module in backbone.modules() if isinstance(module, DropPath)]
    assert rates and set(rates) == {0.3}
    set_drop_path(backbone, 0.0)
    assert {module.rate for module in backbone.modules() if isinstance(module, DropPath)} == {0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "^output_stride must be one of 8, 16, 32 with the imagenet stem and 5 cells, got 4.$"),
        ({"output_stride": 16, "stem": "cifar"}, "^output_stride must be one of 1, 2, 4 with the cifar stem"),
        ({"stem": "resnet"}, "^Unknown stem 'resnet'"),
        ({"cells": 0}, "^cells must be above 0, got 0"),
    ],
)
def test_backbones_that_there_are_not(options, message):
    with pytest.raises(InvalidInput, match=message):
        Backbone(DARTS_V2, 4, **{"cells": 5, **options})


# ---------------------------------------------------------------------------------------------- the head


def test_the_head_is_torchvisions():
    deeplab = pytest.importorskip("torchvision.models.segmentation.deeplabv3")
    torch.manual_seed(0)
    expected = deeplab.DeepLabHead(8, 21, (6, 12, 18)).eval()
    torch.manual_seed(0)
    head = build_head(8, 21, (6, 12, 18)).eval()
    assert shapes_of(head) == shapes_of(expected)
    features = torch.randn(2, 8, 9, 9)
    assert torch.equal(head(features), expected(features))


def test_the_papers_network():
    network = SegmentationNetwork(Backbone(DARTS_V2))
    assert count_parameters(network.backbone) == 3_949_752
    assert count_parameters(network.head) == 6_628_117
    assert network.rates == (6, 12, 18)
    assert [atrous_rates(stride) for stride in (4, 8, 16, 32)] == [(24, 48, 72), (12, 24, 36), (6, 12, 18), (3, 6, 9)]


def test_logits_have_the_size_of_the_image():
    backbone = Backbone(DARTS_V2, 2, 3, stem="cifar", output_stride=4)
    network = SegmentationNetwork(backbone, 5, rates=(1, 2, 3), head_channels=6)
    images = torch.rand(2, 3, 18, 21)
    logits = network(images)
    assert logits.shape == (2, 5, 18, 21)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    network.eval()
    small = network.head(network.backbone(images))
    assert small.shape == (2, 5, 5, 6)
    expected = F.interpolate(small, (18, 21), mode="bilinear", align_corners=False)
    assert torch.equal(network(images), expected)


def test_heads_that_there_are_not():
    backbone = Backbone(DARTS_V2, 2, 1, stem="cifar", output_stride=1)
    for rates in ((1, 2), (0, 1, 2), ()):
        with pytest.raises(InvalidInput, match="^rates must be three whole numbers above 0, got"):
            SegmentationNetwork(backbone, rates=rates)
    for name in ("classes", "head_channels"):
        with pytest.raises(InvalidInput, match=f"^{name} must be above 0, got 0"):
            SegmentationNetwork(backbone, **{name: 0})


def test_without_torchvision(monkeypatch):
    backbone = Backbone(DARTS_V2, 2, 1, stem="cifar", output_stride=1)
    monkeypatch.setitem(sys.modules, "torchvision.models.segmentation.deeplabv3", None)
    with pytest.raises(InvalidInput, match="^DeepLabV3's head is torchvision's, which does not import .* Install the"):
        SegmentationNetwork(backbone)


def test_torchvision_is_imported_for_a_head_only():
    code = "import sys, nasbook.training; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
