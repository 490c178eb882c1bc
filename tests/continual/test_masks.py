"""A mask that is learned: what it switches, its gradient, and the network that remains."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.continual import Backbone, MaskedNetwork
from nasbook.continual.masks import INITIAL_SCORE, THRESHOLD
from nasbook.networks import Growable

few = settings(derandomize=True, deadline=None, max_examples=10)

BACKBONES = {
    "perceptron": Backbone("perceptron", (4, 3), 2, 4),
    "vgg": Backbone("vgg11", (3,) * 8, 2, 8),
    "vgg of 64 pixels": Backbone("vgg11", (3, 2, 2, 2, 2, 2, 2, 3), 2, 64),
    "mobilenet": Backbone("mobilenet-v1", (3,) * 14, 2, 8),
    "block stack": Backbone("block-stack", (3,) * 4, 2, 8),
}
every_backbone = pytest.mark.parametrize("name", BACKBONES)


def awake(name: str, smooth: bool = False) -> tuple[Growable, torch.Tensor]:
    """A network in float64 whose batch norms have seen the images, and the images; with tanh for ReLU if smooth."""
    draws = torch.Generator().manual_seed(0)
    backbone = BACKBONES[name]
    network = backbone.build(3, 1).double()
    images = torch.randn(6, 2, backbone.size, backbone.size, generator=draws, dtype=torch.float64)
    for path, module in list(network.named_modules()):
        if smooth and isinstance(module, nn.ReLU):
            network.set_submodule(path, nn.Tanh())
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=draws) + 0.5)
            norm.bias.copy_(torch.rand(norm.bias.shape, generator=draws))
            norm.momentum = 1.0
        network.train()(images)
        for norm in norms:
            norm.momentum = 0.1
    return network.eval(), images


def with_mask(name: str, masks: list[list[bool]], smooth: bool = False) -> tuple[MaskedNetwork, torch.Tensor]:
    network, images = awake(name, smooth)
    masked = MaskedNetwork(network).eval()
    for scores, mask in zip(masked.scores, masks, strict=True):
        scores.data = torch.where(torch.tensor(mask), THRESHOLD + 1e-6, THRESHOLD).double()
    return masked, images


def some_mask(data: st.DataObject, name: str) -> list[list[bool]]:
    """Any mask in which each width keeps a neuron."""
    counts = BACKBONES[name].build(3, 1).neurons().values()
    return [data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)) for n in counts]


def test_all_neurons_are_in_at_first():
    network, images = awake("vgg")
    masked = MaskedNetwork(copy.deepcopy(network)).eval()
    assert all(mask.all() for mask in masked.mask().values())
    assert all((scores == INITIAL_SCORE).all() for scores in masked.scores)
    assert torch.equal(masked(images), network(images))  # times one changes no bit
    chosen, numbers = masked.chosen()
    assert torch.equal(chosen.eval()(images), network(images))
    assert {width: found.tolist() for width, found in numbers.items()} == {w: [0, 1, 2] for w in network.neurons()}


@few
@pytest.mark.parametrize("name", BACKBONES)
@given(data=st.data())
def test_the_chosen_network_is_the_masked_one(name, data):
    masks = some_mask(data, name)
    masked, images = with_mask(name, masks)
    assert [mask.tolist() for mask in masked.mask().values()] == masks
    before = {key: value.clone() for key, value in masked.state_dict().items()}
    chosen, numbers = masked.chosen()
    torch.testing.assert_close(chosen.eval()(images), masked(images), rtol=1e-10, atol=1e-12)
    for (width, found), mask in zip(numbers.items(), masks, strict=True):
        assert found.tolist() == [n for n, kept in enumerate(mask) if kept]
        assert chosen.neurons()[width] == len(found)
    assert all(parameter.requires_grad for parameter in chosen.parameters())
    for key, value in masked.state_dict().items():  # it is left as it was
        assert torch.equal(value, before[key])


@every_backbone
def test_the_gradient_is_that_of_a_mask_of_real_numbers(name):
    """Straight through: dL/d(score) is dL/d(mask), to the last bit; and that is a difference quotient."""
    network, images = awake(name, smooth=True)
    counts = list(network.neurons().values())
    masks = [[place % 3 != 1 for place in range(count)] for count in counts]
    masked, images = with_mask(name, masks, smooth=True)
    labels = torch.arange(len(images)) % 3
    F.cross_entropy(masked(images), labels).backward()
    values = [torch.tensor(mask, dtype=torch.float64, requires_grad=True) for mask in masks]

    def loss(values: list[torch.Tensor]) -> torch.Tensor:
        plain = copy.deepcopy(network)
        for width, value in zip(plain.declare().widths, values, strict=True):
            for path in width.read_by:

                def switch(layer, inputs, value=value):
                    each = inputs[0].shape[1] // len(value)
                    return inputs[0] * value.repeat_interleave(each).view(1, -1, *[1] * (inputs[0].dim() - 2))

                plain.get_submodule(path).register_forward_pre_hook(switch)
        return F.cross_entropy(plain(images), labels)

    gradients = torch.autograd.grad(loss(values), values)
    for scores, gradient in zip(masked.scores, gradients, strict=True):
        assert torch.equal(scores.grad, gradient)
    assert any((gradient[~torch.tensor(mask)] != 0).any() for gradient, mask in zip(gradients, masks, strict=True))
    step = 1e-6
    for width in range(len(values)):
        for place in range(counts[width]):
            ends = []
            for sign in (1, -1):
                moved = [value.detach().clone() for value in values]
                moved[width][place] += sign * step
                with torch.no_grad():
                    ends.append(float(loss(moved)))
            quotient = (ends[0] - ends[1]) / (2 * step)
            assert quotient == pytest.approx(float(gradients[width][place]), rel=1e-4, abs=1e-8)


def test_only_scores_and_classifier_learn():
    network, images = awake("vgg")
    masked = MaskedNetwork(network).train()
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    trained = [name for name, parameter in masked.named_parameters() if parameter.requires_grad]
    assert trained == ["network.classifier.weight", "network.classifier.bias", *(f"scores.{n}" for n in range(8))]
    assert [id(p) for p in masked.head()] == [id(network.classifier.weight), id(network.classifier.bias)]
    optimizer = torch.optim.SGD(masked.parameters(), 0.1, 0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(masked(images + 1), torch.arange(6) % 3).backward()
        optimizer.step()
    moved = {name for name, value in masked.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert moved == {*trained, *statistics}


def test_an_optimiser_step_takes_a_neuron_out():
    """The score falls where the mask's gradient is above zero."""
    network, images = awake("perceptron")
    masked = MaskedNetwork(network)
    F.cross_entropy(masked(images), torch.arange(6) % 3).backward()
    largest = max(float(scores.grad.max()) for scores in masked.scores)
    assert largest > 0
    expected = [scores.grad < largest for scores in masked.scores]
    with torch.no_grad():
        for scores in masked.scores:
            scores -= 1.001 * (INITIAL_SCORE - THRESHOLD) * scores.grad / largest
    out = [~mask for mask in masked.mask().values()]
    assert all((gone | kept).all() for gone, kept in zip(out, expected, strict=True))
    assert sum(int(gone.sum()) for gone in out) < 7
    grads = torch.cat([scores.grad for scores in masked.scores])
    assert (grads[torch.cat(out)] > 0).all()


def test_the_best_neuron_stays_in():
    masked, images = with_mask("perceptron", [[False] * 4, [False] * 3])
    masked.scores[0].data[2] = THRESHOLD - 1e-4
    masked.scores[0].data[:2] = -1.0
    masked.scores[0].data[3] = -2.0
    first, second = masked.mask().values()
    assert first.tolist() == [False, False, True, False]
    assert second.tolist() == [True, False, False]  # of equal ones the first
    chosen, _ = masked.chosen()
    assert list(chosen.neurons().values()) == [1, 1]
    torch.testing.assert_close(chosen.eval()(images), masked(images), rtol=1e-10, atol=1e-12)


def test_off_neurons_are_normalised_by_their_own_batches_only():
    """In training mode too, whether a neuron is on changes nothing before it is read."""
    states = []
    for last in (True, False):
        masked, images = with_mask("vgg", [[True, True, last]] + [[True] * 3] * 7)
        masked.train()(images)
        states.append(dict(masked.network.layers[0].norm.named_buffers()))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_outside_of_a_pass_the_network_is_a_plain_one():
    masked, images = with_mask("vgg", [[True, False, True]] * 8)
    masked(images)
    with pytest.raises(RuntimeError):
        masked(images[:, :1])
    assert not any(module._forward_pre_hooks for module in masked.modules())
    again = copy.deepcopy(masked)
    assert torch.equal(again(images), masked(images))
    assert torch.equal(masked.network(images), awake("vgg")[0](images))
