"""Batch norm folded into the map before it, against the map followed by torch's batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.operations.pointwise import grouped_map
from nasbook.supernets.folded_norm import (
    NormPass,
    Statistics,
    fold,
    fold_norms,
    folded_norms,
    moments,
    unfold_gradients,
    update_running_statistics,
)

many = settings(derandomize=True, deadline=None, max_examples=40)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
EPSILON = 1e-5

cases = st.fixed_dictionaries({
    "images": st.integers(1, 3),
    "groups": st.integers(1, 3),
    "inputs": st.sampled_from([1, 2, 3, 9]),
    "outputs": st.sampled_from([1, 2, 5]),
    "batch": st.integers(2, 4),
    "height": st.integers(1, 4),
    "width": st.integers(2, 4),
    "layout": st.sampled_from(LAYOUTS),
    "shift": st.sampled_from([0.0, 1.0, -3.0]),
    "seed": st.integers(0, 2**20),
})  # fmt: skip


class Folded:
    """Images, maps and batch norms, one norm a map, with running statistics that are not a new norm's."""

    def __init__(self, case: dict) -> None:
        torch.manual_seed(case["seed"])
        self.groups = case["groups"]
        shape = case["batch"], case["groups"] * case["inputs"], case["height"], case["width"]
        self.images = [
            (torch.randn(shape, dtype=torch.float64) + case["shift"]).contiguous(memory_format=case["layout"])
            for _ in range(case["images"])
        ]
        maps = case["images"] * case["groups"]
        self.weight = torch.randn(maps, case["outputs"], case["inputs"], dtype=torch.float64)
        self.norms = [nn.BatchNorm2d(case["outputs"], affine=False).double() for _ in range(maps)]
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self.count = self.images[0].numel() // shape[1]

    def expected(self, norms: list[nn.BatchNorm2d]) -> list[Tensor]:
        """Maps, then batch norms, image by image."""
        results = []
        for place, image in enumerate(self.images):
            block = slice(place * self.groups, (place + 1) * self.groups)
            parts = grouped_map(image, self.weight[block]).chunk(self.groups, dim=1)
            results.append(torch.cat([norm(part) for norm, part in zip(norms[block], parts, strict=True)], dim=1))
        return results

    def folded(self, training: bool, statistics: list[Statistics]) -> list[Tensor]:
        norm = fold_norms(self.weight, self.images, self.groups, self.norms, NormPass(training, EPSILON, statistics))
        blocks = [slice(i * self.groups, (i + 1) * self.groups) for i in range(len(self.images))]
        return [
            grouped_map(image, norm.maps[block], norm.bias[block].flatten())
            for image, block in zip(self.images, blocks, strict=True)
        ]


def close(value: Tensor, expected: Tensor, bound: float = 1e-9) -> None:
    scale = float(expected.detach().abs().max()) + 1e-2
    torch.testing.assert_close(value, expected, rtol=0, atol=bound * scale)


def test_the_comparison_finds_a_millionth():
    x = torch.randn(5, 4, dtype=torch.float64)
    close(x, x)
    with pytest.raises(AssertionError):
        close(x * (1 + 1e-6), x)


@many
@given(cases)
def test_in_training_the_folded_map_is_the_map_and_its_batch_norm(case):
    folded, statistics = Folded(case), []
    norms = copy.deepcopy(folded.norms)
    for value, expected in zip(folded.folded(True, statistics), folded.expected(norms), strict=True):
        close(value, expected)
    (entry,) = statistics
    assert entry.count == folded.count
    assert not any(norm.num_batches_tracked for norm in folded.norms)  # only noted so far
    update_running_statistics(statistics, 0.1)
    for norm, expected in zip(folded.norms, norms, strict=True):
        close(norm.running_mean, expected.running_mean)
        close(norm.running_var, expected.running_var)
        assert norm.num_batches_tracked == expected.num_batches_tracked == 1


@many
@given(cases)
def test_in_evaluation_the_folded_map_is_the_map_and_its_batch_norm(case):
    folded, statistics = Folded(case), []
    norms = [norm.eval() for norm in copy.deepcopy(folded.norms)]
    for value, expected in zip(folded.folded(False, statistics), folded.expected(norms), strict=True):
        close(value, expected)
    assert statistics == []


@many
@given(cases)
def test_moments_are_means_and_mean_products(case):
    folded = Folded(case)
    result = moments(folded.images, folded.groups)
    z = torch.cat([x.transpose(0, 1).reshape(folded.groups, -1, folded.count) for x in folded.images])
    close(result.mean, z.mean(2))
    close(result.second, z @ z.mT / folded.count)


@many
@given(cases)
def test_unfolded_gradients_are_those_of_autograd(case):
    folded = Folded(case)
    weight = folded.weight.requires_grad_()
    images = [image.requires_grad_() for image in folded.images]
    norm, mean, variance = fold(weight, moments(images, folded.groups), EPSILON)
    y = [grouped_map(x, weight[i * folded.groups : (i + 1) * folded.groups]) for i, x in enumerate(images)]
    y = torch.cat([part.transpose(0, 1).flatten(1) for part in y]).view(*mean.shape, -1)
    close(mean, y.mean(2))
    close(variance, y.var(2, correction=0))
    for_maps, for_bias = torch.randn_like(norm.maps), torch.randn_like(norm.bias)
    loss = (norm.maps * for_maps).sum() + (norm.bias * for_bias).sum()
    expected = torch.autograd.grad(loss, [weight, *images])

    with torch.no_grad():
        for_weight, quadratic, linear = unfold_gradients(weight, norm, for_maps, for_bias, folded.count)
        assert quadratic is not None and linear is not None
        close(for_weight, expected[0])
        for place, (image, reference) in enumerate(zip(images, expected[1:], strict=True)):
            block = slice(place * folded.groups, (place + 1) * folded.groups)
            close(grouped_map(image, quadratic[block], linear[block].flatten()), reference)


@many
@given(cases)
def test_unfolded_gradients_in_evaluation_are_those_of_autograd(case):
    folded = Folded(case)
    weight = folded.weight.requires_grad_()
    norm = fold_norms(weight, folded.images, folded.groups, folded.norms, NormPass(False, EPSILON, []))
    for_maps, for_bias = torch.randn_like(norm.maps), torch.randn_like(norm.bias)
    # The bias of evaluation mode is a function of the running statistics alone.
    (expected,) = torch.autograd.grad((norm.maps * for_maps).sum(), weight)
    for_weight, quadratic, linear = unfold_gradients(weight, norm, for_maps, for_bias, folded.count)
    close(for_weight, expected)
    assert quadratic is None and linear is None


def test_a_fold_can_be_differentiated_twice():
    folded = Folded({"images": 2, "groups": 1, "inputs": 2, "outputs": 2, "batch": 2, "height": 1, "width": 2,
                     "layout": torch.contiguous_format, "shift": 0.0, "seed": 0})  # fmt: skip

    def function(weight: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        norm, _, _ = fold(weight, moments(images, 1), EPSILON)
        return norm.maps, norm.bias

    leaves = [folded.weight.requires_grad_(), *(image.requires_grad_() for image in folded.images)]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_constant_channel_has_no_variance_and_no_gradient_that_is_not_finite(outputs):
    z = torch.full((2, 2, 3, 3), 0.7, dtype=torch.float64)
    weight = torch.randn(1, outputs, 2, dtype=torch.float64)
    norm, _, variance = fold(weight, moments([z], 1), EPSILON)
    assert float(variance.abs().max()) < 1e-12
    close(grouped_map(z, norm.maps, norm.bias.flatten()), torch.zeros(2, outputs, 3, 3, dtype=torch.float64))
    results = unfold_gradients(weight, norm, torch.randn_like(norm.maps), torch.randn_like(norm.bias), 18)
    assert all(result is not None and bool(result.isfinite().all()) for result in results)


def test_moments_of_half_precision_are_taken_in_float32():
    x = torch.randn(4, 6, 5, 5)
    for dtype in (torch.bfloat16, torch.float16):
        result = moments([x.to(dtype)], 2)
        assert result.mean.dtype == result.second.dtype == torch.float32
        expected = moments([x.double()], 2)
        torch.testing.assert_close(result.mean.double(), expected.mean, rtol=0, atol=5e-3)
        torch.testing.assert_close(result.second.double(), expected.second, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("shift", "bound"), [(0.0, 1e-5), (3.0, 1e-4), (30.0, 1e-2)])
def test_float32_loses_as_many_digits_as_the_mean_is_above_the_deviation(shift, bound):
    """The variance is a difference of two numbers that are larger by (1 + mean²/variance)."""
    z = torch.randn(16, 4, 32, 32) + shift
    weight = torch.randn(1, 4, 4)
    norm, _, _ = fold(weight, moments([z], 1), EPSILON)
    expected = F.batch_norm(grouped_map(z.double(), weight.double()), None, None, training=True)
    close(grouped_map(z.double(), norm.maps.double(), norm.bias.double().flatten()), expected, bound)


def test_running_variance_is_of_the_unbiased_variance_and_momentum_counts():
    norm = nn.BatchNorm2d(2).double()
    mean, variance = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 4.0]).double()
    update_running_statistics([Statistics.of([norm], mean, variance, 5)], 0.25)
    assert norm.running_mean.tolist() == [0.25, -0.5]
    assert norm.running_var.tolist() == [0.75 + 0.25 * 0.5 * 5 / 4, 0.75 + 0.25 * 4 * 5 / 4]
    assert int(norm.num_batches_tracked) == 1


def test_one_value_a_channel_is_refused_in_training_and_fine_in_evaluation():
    folded = Folded({"images": 1, "groups": 2, "inputs": 3, "outputs": 2, "batch": 1, "height": 1, "width": 1,
                     "layout": torch.channels_last, "shift": 0.0, "seed": 0})  # fmt: skip
    with pytest.raises(InvalidInput, match=r"^Batch norm in training mode needs more than one value per channel"):
        folded.folded(True, [])
    norms = [norm.eval() for norm in copy.deepcopy(folded.norms)]
    close(folded.folded(False, [])[0], folded.expected(norms)[0])


def test_statistics_belong_to_no_graph():
    folded = Folded({"images": 1, "groups": 1, "inputs": 3, "outputs": 2, "batch": 3, "height": 2, "width": 1,
                     "layout": torch.channels_last, "shift": 0.0, "seed": 0})  # fmt: skip
    folded.weight.requires_grad_()
    statistics: list[Statistics] = []
    folded.folded(True, statistics)
    assert not statistics[0].mean.requires_grad and not statistics[0].variance.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_norms_of_images_with_different_numbers_of_groups(training):
    """Maps, biases, their first and second derivatives, and what is noted: as by batch norms behind the maps."""
    torch.manual_seed(0)
    groups = (1, 3)
    images = [torch.randn(4, 2 * count, 3, 2, dtype=torch.float64).requires_grad_() for count in groups]
    weight = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    own = [nn.BatchNorm2d(3, affine=False).double().train(training) for _ in range(4)]
    received = [torch.randn(4, 3 * count, 3, 2, dtype=torch.float64) for count in groups]
    leaves = [weight, *images]
    directions = [torch.randn(leaf.shape, dtype=torch.float64) for leaf in leaves]
    norms = NormPass(training, EPSILON, [])

    def folded() -> list[Tensor]:
        maps, bias = folded_norms(weight, images, own, norms)
        parts = zip(images, maps.split(groups), bias.split(groups), strict=True)
        return [grouped_map(image, some, level.flatten()) for image, some, level in parts]

    def behind() -> list[Tensor]:
        parts = [norm(part) for norm, part in zip(own, torch.cat(
            [grouped_map(image, some) for image, some in zip(images, weight.split(groups), strict=True)], dim=1
        ).chunk(4, dim=1), strict=True)]  # fmt: skip
        return [parts[0], torch.cat(parts[1:], dim=1)]

    results = []
    for run in (folded, behind):
        outputs = run()
        loss = sum((output * own_part).sum() for output, own_part in zip(outputs, received, strict=True))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        again = sum((value * way).sum() for value, way in zip(first, directions, strict=True))
        results.append([*outputs, *first, *torch.autograd.grad(again, leaves)])
    for value, expected in zip(*results, strict=True):
        close(value, expected)
    assert len(norms.statistics) == training


def test_a_row_that_belongs_to_no_norm_is_left_out():
    norm = nn.BatchNorm2d(2)
    seen = Statistics.of([None, norm], torch.tensor([9.0, 9.0, 1.0, 2.0]), torch.tensor([9.0, 9.0, 0.5, 1.0]), 3)
    update_running_statistics([seen], 0.5)
    assert torch.equal(norm.running_mean, torch.tensor([0.5, 1.0]))
    assert torch.equal(norm.running_var, torch.tensor([0.875, 1.25]))
    assert norm.num_batches_tracked == 1
