"""Grouped pointwise maps and the sums that belong to them, against the same sums written out."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nasbook.operations.pointwise
from nasbook.operations.pointwise import (
    channel_sums,
    channels_last,
    grouped_map,
    grouped_products,
    in_fast_layout,
    in_layout_of,
    pointwise,
    repeat_channels,
    sum_copies,
)

many = settings(derandomize=True, deadline=None, max_examples=60)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

# Widths on both sides of where one block-diagonal matrix takes the place of groups.
sizes = st.fixed_dictionaries({
    "batch": st.integers(1, 4),
    "groups": st.integers(1, 5),
    "inputs": st.sampled_from([1, 2, 3, 7, 8, 9, 12]),
    "outputs": st.sampled_from([1, 2, 5, 8, 9]),
    "height": st.integers(1, 4),
    "width": st.integers(1, 4),
})  # fmt: skip


def images(layout: torch.memory_format, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)


def grouped(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1))


def written_map(x: Tensor, maps: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.einsum("goi,bgihw->bgohw", maps, grouped(x, len(maps))).flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def written_products(x: Tensor, y: Tensor, groups: int) -> Tensor:
    return torch.einsum("bgohw,bgihw->goi", grouped(y, groups), grouped(x, groups))


def close(value: Tensor, expected: Tensor, bound: float = 1e-11) -> None:
    torch.testing.assert_close(value, expected, rtol=bound, atol=bound)


@many
@given(sizes, st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 2**20))
def test_a_grouped_map_applies_each_matrix_to_its_own_channels(size, layout, biased, seed):
    torch.manual_seed(seed)
    batch, groups, inputs, outputs, height, width = size.values()
    x = images(layout, batch, groups * inputs, height, width)
    maps = torch.randn(groups, outputs, inputs, dtype=torch.float64)
    bias = torch.randn(groups * outputs, dtype=torch.float64) if biased else None
    close(grouped_map(x, maps, bias), written_map(x, maps, bias))


@many
@given(sizes, st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 2**20))
def test_derivatives_of_a_grouped_map_are_those_of_the_sum_written_out(size, layout, biased, seed):
    torch.manual_seed(seed)
    batch, groups, inputs, outputs, height, width = size.values()
    x = images(layout, batch, groups * inputs, height, width).requires_grad_()
    maps = torch.randn(groups, outputs, inputs, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(groups * outputs, dtype=torch.float64, requires_grad=True) if biased else None
    leaves = [x, maps] if bias is None else [x, maps, bias]
    weight = torch.randn(batch, groups * outputs, height, width, dtype=torch.float64)
    results = []
    for function in (grouped_map, written_map):
        first = torch.autograd.grad((function(x, maps, bias) * weight).sum(), leaves, create_graph=True)
        loss = first[0].pow(2).sum() + first[1].pow(3).sum()
        results.append([*first, *torch.autograd.grad(loss, [x, maps])])
    for value, expected in zip(*results, strict=True):
        close(value, expected, 1e-9)


@many
@given(sizes, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.integers(0, 2**20))
def test_grouped_products_are_the_derivative_of_a_grouped_map(size, layout, other, seed):
    torch.manual_seed(seed)
    batch, groups, inputs, outputs, height, width = size.values()
    x = images(layout, batch, groups * inputs, height, width).requires_grad_()
    y = images(other, batch, groups * outputs, height, width).requires_grad_()
    maps = torch.randn(groups, outputs, inputs, dtype=torch.float64, requires_grad=True)
    products = grouped_products(x, y, groups)
    assert products.shape == (groups, outputs, inputs)
    close(products, written_products(x, y, groups))
    (slope,) = torch.autograd.grad((grouped_map(x, maps) * y).sum(), maps)
    close(products, slope)
    # And their own derivatives are grouped maps.
    weight = torch.randn_like(products)
    for value, expected in zip(
        torch.autograd.grad((products * weight).sum(), [x, y], retain_graph=True),
        (written_map(y, weight.mT, None), written_map(x, weight, None)),
        strict=True,
    ):
        close(value, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("groups", "inputs"), [(1, 3), (3, 2), (2, 9)])
def test_gradcheck(layout, groups, inputs):
    x = images(layout, 2, groups * inputs, 2, 1).requires_grad_()
    maps = torch.randn(groups, 2, inputs, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(groups * 2, dtype=torch.float64, requires_grad=True)
    y = images(layout, 2, groups * 2, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(grouped_map, (x, maps, bias))
    assert torch.autograd.gradgradcheck(grouped_map, (x, maps, bias))
    assert torch.autograd.gradcheck(lambda x, y: grouped_products(x, y, groups), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: grouped_products(x, y, groups), (x, y))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inputs", [4, 16])
def test_float32_is_close(layout, inputs):
    x, maps = images(layout, 4, 3 * inputs, 9, 9, dtype=torch.float32), torch.randn(3, 5, inputs)
    y = grouped_map(x, maps)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), written_map(x.double(), maps.double(), None), rtol=1e-4, atol=1e-5)
    products = grouped_products(x, y, 3)
    torch.testing.assert_close(products.double(), written_products(x.double(), y.double(), 3), rtol=1e-4, atol=1e-3)


def test_a_single_group_and_a_single_channel_are_plain_products():
    x = images(torch.channels_last, 3, 2, 2, 2)
    for scale in (0.0, -1.5):
        close(grouped_map(x, torch.full((2, 1, 1), scale, dtype=torch.float64)), scale * x)
    close(grouped_map(x, torch.eye(2, dtype=torch.float64)[None]), x)
    close(grouped_products(x, x, 2).flatten(), x.square().sum((0, 2, 3)))


# ---------------------------------------------------------------------------------------------- copies and sums


@many
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(LAYOUTS), st.integers(0, 2**20))
def test_sums_of_copies_are_the_transpose_of_repeated_channels(copies, channels, layout, seed):
    torch.manual_seed(seed)
    x, y = images(layout, 2, channels, 3, 2), images(layout, 2, copies * channels, 3, 2)
    before = y.clone()
    repeated, summed = repeat_channels(x, copies), sum_copies(y, copies)
    assert torch.equal(repeated, torch.cat([x] * copies, dim=1))
    close(summed, grouped(y, copies).sum(1))
    close((repeated * y).sum(), (x * summed).sum())
    assert torch.equal(y, before)


def test_channel_sums():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    assert channel_sums(x).tolist() == [sum(range(4)) + sum(range(12, 16)), 22 + 70, 38 + 86]


# ---------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_in_the_layout_of_the_image(layout):
    x = images(layout, 2, 6, 3, 4)
    assert channels_last(x) == (layout is torch.channels_last)
    y = grouped_map(x, torch.randn(3, 4, 2, dtype=torch.float64))
    assert channels_last(y) == channels_last(x)
    for other in LAYOUTS:
        moved = in_layout_of(x, images(other, 1, 5, 2, 2))
        assert channels_last(moved) == channels_last(x) and moved.is_contiguous(memory_format=layout)
    assert channels_last(repeat_channels(x, 2)) == channels_last(x)


def test_the_fast_layout_of_a_cpu_has_channels_last_and_the_same_values():
    x = torch.randn(2, 3, 4, 5)
    assert channels_last(in_fast_layout(x)) and torch.equal(in_fast_layout(x), x)
    gap = torch.randn(2, 3, 4, 10)[..., ::2]
    assert torch.equal(in_layout_of(x, gap), gap) and in_layout_of(x, gap).is_contiguous()


@many
@given(sizes, st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 2**20))
def test_a_pointwise_map_has_the_derivatives_of_the_grouped_map(size, layout, large, seed):
    torch.manual_seed(seed)
    batch, groups, inputs, outputs, height, width = size.values()
    x = images(layout, batch, groups * inputs, height, width)
    leaves = [x, torch.randn(groups, outputs, inputs).double(), torch.randn(groups * outputs).double()]
    received = torch.randn(batch, groups * outputs, height, width).double()
    directions = [torch.randn(leaf.shape).double() for leaf in leaves]
    results = []
    with mock.patch.object(nasbook.operations.pointwise, "MANY", 0 if large else 2**60):
        for apply in (pointwise, written_map):
            own = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
            output = apply(*own)
            first = torch.autograd.grad((output * received).sum(), own, create_graph=True)
            # The bias has a constant gradient; of the two others each depends on the other.
            loss = sum((value * way).sum() for value, way in zip(first[:2], directions[:2], strict=True))
            results.append([output, *first, *torch.autograd.grad(loss, own[:2])])
    for value, expected in zip(*results, strict=True):
        close(value, expected)
