"""The depthwise module: nn.Conv2d in every layout, with other gradients only where they are faster."""

import pytest
import torch
import torch.nn.functional as F

from nasbook.operations import build_operation
from nasbook.operations.depthwise import DepthwiseConvolution


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (7, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_values_and_gradients_are_those_of_the_library(kernel, dilation, stride, size):
    module = DepthwiseConvolution(4, kernel, stride, dilation * (kernel // 2), dilation).double()
    x = torch.rand(3, 4, size, size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = module(x)
    expected = F.conv2d(x, module.weight, None, stride, dilation * (kernel // 2), dilation, 4)
    slope = torch.rand_like(y)
    torch.testing.assert_close(y, expected)
    got, wanted = (torch.autograd.grad(out, (x, module.weight), slope) for out in (y, expected))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("size", [1, 8])
def test_only_channels_last_images_take_the_other_way(size):
    module = DepthwiseConvolution(4, 5, 1, 2)
    x = torch.rand(2, 4, size, size)
    last = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
    assert type(module(last).grad_fn).__name__ == "_DepthwiseBackward"
    assert type(module(x).grad_fn).__name__ == "ConvolutionBackward0"
    assert torch.equal(module(x), F.conv2d(x, module.weight, padding=2, groups=4))


def test_its_place_in_the_candidates():
    names = [name for name, module in build_operation("sep_conv_5x5", 4).named_modules()
             if isinstance(module, DepthwiseConvolution)]
    assert names == ["1", "5"]
