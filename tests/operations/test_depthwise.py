"""The depthwise convolution with a backward pass of its own, against torch's convolution and its derivatives."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nasbook.errors import InvalidInput
from nasbook.operations.depthwise import depthwise, depthwise_products, depthwise_side_by_side, turned

many = settings(derandomize=True, deadline=None, max_examples=80)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNELS, DILATIONS = (1, 3, 5, 7), (1, 2, 3)

cases = st.fixed_dictionaries({
    "kernel": st.sampled_from(KERNELS),
    "dilation": st.sampled_from(DILATIONS),
    "layout": st.sampled_from(LAYOUTS),
    "batch": st.integers(1, 3),
    "channels": st.integers(1, 5),
    "height": st.integers(1, 9),
    "width": st.integers(1, 9),
    "seed": st.integers(0, 2**20),
})  # fmt: skip


def convolution(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=x.shape[1])


def tensors(case: dict, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Image, kernels and a gradient of the output."""
    torch.manual_seed(case["seed"])
    shape = case["batch"], case["channels"], case["height"], case["width"]
    x, gradient = (torch.randn(shape, dtype=dtype).contiguous(memory_format=case["layout"]) for _ in range(2))
    weight = torch.randn(case["channels"], 1, case["kernel"], case["kernel"], dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), gradient.requires_grad_()


def close(value: Tensor, expected: Tensor, bound: float = 1e-11) -> None:
    scale = float(expected.detach().abs().max()) + 1
    torch.testing.assert_close(value, expected, rtol=0, atol=bound * scale)


def test_the_comparison_finds_a_millionth():
    x = torch.randn(5, 4, dtype=torch.float64)
    close(x, x)
    with pytest.raises(AssertionError):
        close(x * (1 + 1e-6), x)


@many
@given(cases)
def test_values_and_first_derivatives_are_those_of_torchs_convolution(case):
    x, weight, gradient = tensors(case)
    y, expected = depthwise(x, weight, case["dilation"]), convolution(x, weight, case["dilation"])
    close(y, expected)
    ours, theirs = (torch.autograd.grad(value, (x, weight), gradient) for value in (y, expected))
    for value, reference in zip(ours, theirs, strict=True):
        close(value, reference)


@many
@given(cases)
def test_second_derivatives_are_those_of_torchs_convolution(case):
    leaves = tensors(case)
    x, weight, gradient = leaves
    results = []
    for function in (depthwise, convolution):
        first = torch.autograd.grad(function(x, weight, case["dilation"]), (x, weight), gradient, create_graph=True)
        torch.manual_seed(1)
        loss = torch.stack([(value * torch.randn_like(value)).sum() for value in first]).sum()
        results.append(torch.autograd.grad(loss, leaves))
    for value, reference in zip(*results, strict=True):
        close(value, reference)


@many
@given(cases)
def test_products_are_the_gradient_of_torchs_weight(case):
    x, weight, gradient = tensors(case)
    (expected,) = torch.autograd.grad(convolution(x, weight, case["dilation"]), weight, gradient)
    products = depthwise_products(x, gradient, case["kernel"], case["dilation"])
    assert products.shape == weight.shape
    close(products, expected)


@many
@given(cases)
def test_derivatives_of_products_are_convolutions(case):
    x, weight, gradient = tensors(case)
    products = depthwise_products(x, gradient, case["kernel"], case["dilation"])
    ours = torch.autograd.grad(products, (x, gradient), weight)
    # ⟨w, products(x, y)⟩ = ⟨y, convolution of x by w⟩
    theirs = torch.autograd.grad((convolution(x, weight, case["dilation"]) * gradient).sum(), (x, gradient))
    for value, reference in zip(ours, theirs, strict=True):
        close(value, reference)


@settings(many, max_examples=30)
@given(cases)
def test_float32_is_close(case):
    """Other kernels run than in float64."""
    x, weight, gradient = (tensor.detach() for tensor in tensors(case, torch.float32))
    x.requires_grad_(), weight.requires_grad_()
    ours = depthwise(x, weight, case["dilation"])
    double = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = convolution(*double, case["dilation"])
    close(ours.double(), expected, 1e-5)
    for value, reference in zip(
        torch.autograd.grad(ours, (x, weight), gradient),
        torch.autograd.grad(expected, double, gradient.double()),
        strict=True,
    ):
        assert value.dtype == torch.float32
        close(value.double(), reference, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dilation", DILATIONS)
def test_gradcheck(layout, kernel, dilation):
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    y = torch.randn(2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(2, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)

    def products(x: Tensor, y: Tensor) -> Tensor:
        return depthwise_products(x, y, kernel, dilation)

    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise(x, weight, dilation)

    for function, inputs in ((convolved, (x, weight)), (products, (x, y))):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (3, 3), (5, 4), (7, 8), (9, 7), (14, 15), (15, 14)]
)
def test_images_smaller_and_larger_than_the_kernel(layout, size):
    for kernel in KERNELS:
        for dilation in DILATIONS:
            case = {"kernel": kernel, "dilation": dilation, "layout": layout, "batch": 2, "channels": 3, "seed": 0}
            x, weight, gradient = tensors({**case, "height": size[0], "width": size[1]})
            y, expected = depthwise(x, weight, dilation), convolution(x, weight, dilation)
            close(y, expected)
            ours, theirs = (torch.autograd.grad(value, (x, weight), gradient) for value in (y, expected))
            for value, reference in zip(ours, theirs, strict=True):
                close(value, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_only_the_gradients_that_are_asked_for(layout, kernel):
    case = {"kernel": kernel, "dilation": 2, "layout": layout, "batch": 2, "channels": 3, "height": 5, "width": 4}
    for required in ((True, False), (False, True), (False, False)):
        x, weight, gradient = (tensor.detach() for tensor in tensors({**case, "seed": 0}))
        leaves = [leaf.requires_grad_() for leaf, flag in zip((x, weight), required, strict=True) if flag]
        y = depthwise(x, weight, 2)
        assert y.requires_grad == any(required)
        if leaves:
            (value,) = torch.autograd.grad(y, leaves, gradient)
            (reference,) = torch.autograd.grad(convolution(x, weight, 2), leaves, gradient)
            close(value, reference)


def test_gradients_in_another_layout_than_the_image():
    """Autograd may hand over a gradient in any layout, an expanded one included."""
    for layout in LAYOUTS:
        case = {"kernel": 5, "dilation": 1, "layout": layout, "batch": 2, "channels": 3, "height": 5, "width": 6}
        x, weight, gradient = tensors({**case, "seed": 0})
        for given_ in (
            gradient.contiguous(memory_format=torch.contiguous_format),
            gradient.contiguous(memory_format=torch.channels_last),
            gradient.transpose(2, 3).contiguous().transpose(2, 3),
            torch.ones((), dtype=torch.float64).expand_as(gradient),
        ):
            ours = torch.autograd.grad(depthwise(x, weight), (x, weight), given_)
            theirs = torch.autograd.grad(convolution(x, weight, 1), (x, weight), given_)
            for value, reference in zip(ours, theirs, strict=True):
                close(value, reference)
            close(depthwise_products(x, given_, 5), theirs[1])
            close(depthwise_products(x.detach().transpose(2, 3), given_.detach().transpose(2, 3), 5), theirs[1].mT)


def test_a_kernel_of_one_number_scales_and_its_products_are_inner_products():
    x, y = torch.randn(2, 2, 3, 4, 5).unbind()
    weight = torch.randn(3, 1, 1, 1)
    torch.testing.assert_close(depthwise(x, weight), x * weight.view(3, 1, 1))
    torch.testing.assert_close(depthwise_products(x, y, 1).flatten(), (x * y).sum((0, 2, 3)))


def test_a_kernel_turned_twice_is_itself_and_its_middle_stays():
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    assert turned(weight).flatten().tolist() == list(range(8, -1, -1))
    assert torch.equal(turned(turned(weight)), weight)


def test_inputs_stay_as_they_are():
    for layout in LAYOUTS:
        case = {"kernel": 5, "dilation": 2, "layout": layout, "batch": 2, "channels": 3, "height": 5, "width": 6}
        given_ = tensors({**case, "seed": 0})
        kept = [tensor.detach().clone() for tensor in given_]
        x, weight, gradient = given_
        torch.autograd.grad(depthwise(x, weight, 2), (x, weight), gradient)
        assert all(torch.equal(a, b) for a, b in zip(given_, kept, strict=True))


def both_side_by_side(order, kernel, dilation, stride, layout, size):
    """Outputs, first and second derivatives: with copies kept and without."""
    torch.manual_seed(0)
    images = [torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout) for _ in range(2)]
    weight = torch.randn(3 * len(order), 1, kernel, kernel, dtype=torch.float64)
    leaves = [image.requires_grad_() for image in images] + [weight.requires_grad_()]
    wide = torch.cat([images[place] for place in order], dim=1)
    padding = dilation * (kernel // 2)
    expected = F.conv2d(wide, weight, None, stride, padding, dilation, groups=len(weight))
    received = torch.randn(expected.shape, dtype=torch.float64)
    weights = [torch.randn(leaf.shape, dtype=torch.float64) for leaf in leaves]
    for output in (depthwise_side_by_side(images, order, weight, dilation, stride), expected):
        first = torch.autograd.grad((output * received).sum(), leaves, create_graph=True, materialize_grads=True)
        loss = sum((value * own).sum() for value, own in zip(first, weights, strict=True))
        yield [output, *first, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", [(0,), (1, 0), (1, 1, 0, 1), (1,)])
@pytest.mark.parametrize(("dilation", "stride"), [(1, 1), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_images_side_by_side(order, kernel, dilation, stride, layout):
    for size in ((6, 7), (2, 3)):
        for value, expected in zip(*both_side_by_side(order, kernel, dilation, stride, layout, size), strict=True):
            close(value, expected)


def test_side_by_side_asks_for_what_it_can_do():
    x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    with pytest.raises(InvalidInput, match="A dilation of 2 has no fast gradients at stride 2"):
        depthwise_side_by_side([x], [0], weight, dilation=2, stride=2)
