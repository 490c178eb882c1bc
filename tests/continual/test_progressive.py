"""The size of progressive networks, against one that is built."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nasbook.continual import Backbone, progressive_parameters
from nasbook.errors import InvalidInput

VGG = Backbone("vgg11", (2, 3, 4, 3, 2, 3, 4, 5), 3, 32)


class Progressive(nn.Module):
    """Columns of VGG-11 that are really there: each layer's sum over its own column and all earlier ones (Eq. 1)."""

    def __init__(self, backbone: Backbone, classes: list[int]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(backbone.build(outputs, 0) for outputs in classes)
        self.laterals = nn.ModuleList(nn.ModuleList() for _ in classes)
        for number, column in enumerate(self.columns):
            for _ in range(number):
                layers = [copy.deepcopy(layer.convolution) for layer in column.layers[1:]]
                classifier = nn.Linear(column.classifier.in_features, column.classifier.out_features, bias=False)
                self.laterals[number].append(nn.ModuleList([*layers, classifier]))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        seen: list[list[torch.Tensor]] = []
        outputs = []
        for column, laterals in zip(self.columns, self.laterals, strict=True):
            x, here = images, []
            for index, layer in enumerate(column.layers):
                x = layer.convolution(x)
                if index:
                    x = x + sum(lateral[index - 1](old[index - 1]) for lateral, old in zip(laterals, seen, strict=True))
                x = layer.activation(layer.norm(x))
                if index in column.pooled_after:
                    x = nn.functional.max_pool2d(x, 2)
                here.append(x)
            logits = column.classifier(x.flatten(1))
            logits = logits + sum(lateral[-1](old[-1].flatten(1)) for lateral, old in zip(laterals, seen, strict=True))
            seen.append(here)
            outputs.append(logits)
        return outputs


@pytest.mark.parametrize("classes", [[2], [2, 5], [3, 2, 4, 2]])
def test_a_network_that_is_built_has_as_many(classes):
    network = Progressive(VGG, classes).eval()
    outputs = network(torch.randn(2, 3, 32, 32))
    assert [output.shape for output in outputs] == [(2, n) for n in classes]
    assert progressive_parameters(VGG, classes) == sum(parameter.numel() for parameter in network.parameters())


def test_perceptrons_by_hand():
    backbone = Backbone("perceptron", (5, 4), 1, 2)
    own, lateral = (4 * 5 + 5) + (5 * 4 + 4) + (4 * 3 + 3), 5 * 4 + 4 * 3
    assert progressive_parameters(backbone, [3]) == own
    assert progressive_parameters(backbone, [3, 3, 3]) == 3 * own + (1 + 2) * lateral


def test_depthwise_convolutions_read_their_own_column():
    backbone = Backbone("mobilenet-v1", (2,) * 14, 3, 32)
    network = backbone.build(5, 0)
    pointwise = 13 * 2 * 2 + 2 * 5  # thirteen 1×1 convolutions and the classifier
    own = sum(parameter.numel() for parameter in network.parameters())
    assert progressive_parameters(backbone, [5, 5]) == 2 * own + pointwise


def test_the_paper_sized_one():
    """VGG-16 for 20 tasks: 190 pairs of columns make the most of it."""
    backbone = Backbone("vgg16")
    alone = progressive_parameters(backbone, [5])
    assert alone == 14_721_477
    assert progressive_parameters(backbone, [5] * 20) == 20 * alone + 190 * (14_710_464 - 1728 + 5 * 512)


def test_refusals():
    with pytest.raises(InvalidInput, match="classes is empty"):
        progressive_parameters(VGG, [])
    with pytest.raises(InvalidInput, match="classes must be above 0"):
        progressive_parameters(VGG, [2, 0])
