"""Candidate operations: exact counts, shapes, and slow references written from the formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import count_macs, count_parameters
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_OPERATIONS
from nasbook.operations import (
    FactorizedReduction,
    Pool,
    ReLUConvolution,
    Zero,
    build_operation,
    get_operation,
    list_operations,
)

EXTENDED = ("conv_1x1", "conv_3x3", "conv_1x3_3x1", "conv_1x5_5x1", "conv_1x7_7x1")
few = settings(derandomize=True, deadline=None, max_examples=25)


def _doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- the registry


def test_names():
    assert set(list_operations()) == {*DARTS_OPERATIONS, "sep_conv_7x7", *EXTENDED}
    assert list_operations("sep_*") == ("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7")
    assert list_operations("SEP_*") == () == list_operations("")
    assert list_operations("none") == ("none",)


def test_kinds():
    kinds = {name: get_operation(name).kind for name in list_operations()}
    assert [name for name, kind in kinds.items() if kind != "convolution"] == [
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"
    ]  # fmt: skip
    for name, kind in kinds.items():
        assert (count_parameters(build_operation(name, 4)) > 0) == (kind == "convolution")
        assert get_operation(name).name == name and get_operation(name).summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sep_conv_3", 4), r"^Unknown operation 'sep_conv_3'\. Did you mean 'sep_conv_3x3' or .*\? Valid: none, "),
        (("", 4), r"^Unknown operation ''\. Valid: none, "),
        (("none", 0), r"^channels must be at least 1, got 0\.$"),
        (("sep_conv_3x3", -2), r"^channels must be at least 1, got -2\.$"),
        (("sep_conv_3x3", 4, 3), r"^stride must be 1 or 2, got 3\.$"),
        (("skip_connect", 4, 0), r"^stride must be 1 or 2, got 0\.$"),
        (("skip_connect", 1, 2), r"^A factorised reduction needs at least 2 output channels, got 1\.$"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        build_operation(*arguments)


# ---------------------------------------------------------------------------------------------- exact counts


@pytest.mark.parametrize(
    ("name", "stride", "affine", "plain"),
    [
        ("none", 1, 0, 0), ("max_pool_3x3", 1, 0, 0), ("avg_pool_3x3", 2, 0, 0), ("skip_connect", 1, 0, 0),
        ("skip_connect", 2, 288, 256),
        ("sep_conv_3x3", 1, 864, 800), ("sep_conv_3x3", 2, 864, 800),
        ("sep_conv_5x5", 1, 1376, 1312), ("sep_conv_5x5", 2, 1376, 1312),
        ("dil_conv_3x3", 1, 432, 400), ("dil_conv_5x5", 1, 688, 656),
    ],
)  # fmt: skip
def test_parameters_at_16_channels(name, stride, affine, plain):
    assert count_parameters(build_operation(name, 16, stride, affine=True)) == affine
    assert count_parameters(build_operation(name, 16, stride, affine=False)) == plain


def _convolutions(name: str, stride: int) -> list[tuple[int, int, int]]:
    """(weights a channel pair or channel, groups?, output's share of the pixels), from the definitions."""
    kernel = int(name.split("x")[-1]) if "conv" in name else 0
    half, full = 1 / stride, 1
    area = half * half
    if name.startswith("sep"):
        return [(kernel**2, True, area), (1, False, area), (kernel**2, True, area), (1, False, area)]
    if name.startswith("dil"):
        return [(kernel**2, True, area), (1, False, area)]
    if name in ("conv_1x1", "conv_3x3"):
        return [(kernel**2, False, area)]
    if name in EXTENDED:
        side = int(name[7])
        return [(side, False, full * half), (side, False, area)]
    if name == "skip_connect" and stride == 2:
        return [(0.5, False, area)] * 2  # each gives half of the channels
    return []


@few
@given(
    st.sampled_from([*DARTS_OPERATIONS, "sep_conv_7x7", *EXTENDED]),
    st.sampled_from([2, 4, 10]),
    st.sampled_from([1, 2]),
)
def test_parameters_and_macs_follow_the_definitions(name, channels, stride):
    convolutions = _convolutions(name, stride)
    weights = [area * channels * (1 if depthwise else channels) for area, depthwise, _ in convolutions]
    operation = build_operation(name, channels, stride, affine=False)
    assert count_parameters(operation) == sum(weights)
    macs = sum(w * share * 64 for w, (_, _, share) in zip(weights, convolutions, strict=True))
    assert count_macs(operation, (1, channels, 8, 8)) == macs


# ---------------------------------------------------------------------------------------------- shapes and structure


@few
@given(
    st.sampled_from([*DARTS_OPERATIONS, "sep_conv_7x7", *EXTENDED]),
    st.integers(2, 5),
    st.sampled_from([1, 2]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.integers(1, 3),
)
def test_every_operation_keeps_channels_and_rounds_sizes_up(name, channels, stride, height, width, affine, batch):
    operation = build_operation(name, channels, stride, affine).eval()
    output = operation(torch.rand(batch, channels, height, width))
    assert output.shape == (batch, channels, math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize("name", [*DARTS_OPERATIONS, "sep_conv_7x7", *EXTENDED])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions_have_no_bias_and_norms_are_affine_on_request(name, stride, affine):
    operation = build_operation(name, 4, stride, affine)
    convolutions = [m for m in operation.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in operation.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(convolution.bias is None for convolution in convolutions)
    assert all(norm.affine is affine for norm in norms)
    order = [type(m) for m in operation.modules() if not list(m.children())]
    if get_operation(name).kind == "convolution":
        assert order[0] is nn.ReLU and order[-1] is nn.BatchNorm2d
        assert order.count(nn.ReLU) == order.count(nn.BatchNorm2d) == (2 if name.startswith("sep") else 1)
        # Only the first half of a separable convolution has the stride, in each direction once.
        assert math.prod(c.stride[0] for c in convolutions) == stride == math.prod(c.stride[1] for c in convolutions)
        if name.startswith("sep"):
            assert [c.stride for c in convolutions[1:]] == [(1, 1)] * 3
        assert {c.dilation for c in convolutions} == ({(2, 2), (1, 1)} if name.startswith("dil") else {(1, 1)})


def test_the_first_relu_leaves_the_input_alone():
    x = torch.randn(2, 4, 5, 5)
    kept = x.clone()
    for name in list_operations():
        for stride in (1, 2):
            build_operation(name, 4, stride)(x)
    assert torch.equal(x, kept)  # every candidate of an edge reads the same tensor


def test_identity_and_zero():
    x = torch.randn(2, 3, 5, 6)
    assert build_operation("skip_connect", 3)(x) is x
    assert torch.equal(Zero()(x), torch.zeros_like(x))
    x[0, 0, 0, 0] = math.nan
    assert torch.equal(Zero(2)(x), torch.zeros(2, 3, 3, 3))
    assert repr(Zero(2)) == "Zero(stride=2)" and repr(Pool("max", 2)) == "Pool(max, stride=2)"


# ---------------------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 4), (4, 7), (8, 8)])
@pytest.mark.parametrize("outputs", [2, 5])
def test_factorized_reduction_by_hand(size, outputs):
    height, width = size
    module = FactorizedReduction(3, outputs).double().eval()
    nn.init.normal_(module.norm.running_mean)
    nn.init.uniform_(module.norm.running_var, 0.5, 2)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    x = _doubles(2, 3, height, width)
    first, second = module.convolution.weight[:, :, 0, 0], module.shifted_convolution.weight[:, :, 0, 0]
    assert (len(first), len(second)) == (outputs // 2, outputs - outputs // 2)
    expected = torch.zeros(2, outputs, math.ceil(height / 2), math.ceil(width / 2), dtype=torch.float64)
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            even = x[:, :, 2 * row, 2 * column].relu()
            expected[:, : outputs // 2, row, column] = even @ first.T
            if 2 * row + 1 < height and 2 * column + 1 < width:  # off the image there are zeros
                odd = x[:, :, 2 * row + 1, 2 * column + 1].relu()
                expected[:, outputs // 2 :, row, column] = odd @ second.T
    norm = module.norm
    column_of = (slice(None), None, None)
    expected = (expected - norm.running_mean[column_of]) / (norm.running_var[column_of] + norm.eps).sqrt()
    expected = expected * norm.weight[column_of] + norm.bias[column_of]
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_factorized_reduction_reads_two_diagonals():
    module = FactorizedReduction(1, 2).double().eval()
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    module(x).square().sum().backward()
    read = (x.grad[0, 0] != 0).nonzero().tolist()
    assert read == [[r, c] for r in range(4) for c in range(4) if r % 2 == c % 2]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (6, 6)])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_by_hand(kind, size, stride):
    height, width = size
    x = _doubles(2, 3, height, width) - 10  # all negative: a padded zero would win the maximum
    output = Pool(kind, stride)(x)
    for row in range(output.shape[2]):
        for column in range(output.shape[3]):
            y, z = row * stride, column * stride
            window = x[:, :, max(y - 1, 0) : y + 2, max(z - 1, 0) : z + 2].flatten(2)
            expected = window.amax(-1) if kind == "max" else window.sum(-1) / window.shape[-1]
            torch.testing.assert_close(output[:, :, row, column], expected, rtol=1e-13, atol=0)


def test_average_pooling_does_not_count_the_padding():
    assert torch.equal(build_operation("avg_pool_3x3", 2)(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4))


@pytest.mark.parametrize("name", ["sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5", "conv_3x3", "conv_1x5_5x1"])
def test_the_receptive_field(name):
    operation = build_operation(name, 2).double().eval()
    for module in operation.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0)
    x = torch.ones(1, 2, 15, 15, dtype=torch.float64, requires_grad=True)
    operation(x)[0, 0, 7, 7].backward()
    read = (x.grad[0, 0] != 0).nonzero() - 7
    expected = {
        "sep_conv_3x3": range(-2, 3),  # twice 3×3
        "dil_conv_3x3": range(-2, 3, 2),
        "dil_conv_5x5": range(-4, 5, 2),
        "conv_3x3": range(-1, 2),
        "conv_1x5_5x1": range(-2, 3),
    }[name]
    assert read.tolist() == [[row, column] for row in expected for column in expected]


def test_relu_convolution_by_hand():
    module = ReLUConvolution(3, 2, kernel=1, affine=False).double().eval()
    x = _doubles(2, 3, 4, 4)
    expected = torch.einsum("bchw,oc->bohw", x.clamp_min(0), module[1].weight[:, :, 0, 0]) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
