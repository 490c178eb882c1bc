"""Which entries belong to whom: by hand, where a layer reads several positions, and what no optimiser may move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.continual import Backbone, LockedEntries, Slots, all_owned, axes_of, free_entries, statistics_of
from nasbook.continual.ownership import NEW, Axes, take
from nasbook.errors import InvalidInput
from nasbook.networks import Declaration, Flow, Growable, MobileNetV1, Perceptron

few = settings(derandomize=True, deadline=None, max_examples=30)


class Pixels(Growable):
    """A linear layer that reads every channel at four places, and a classifier behind it."""

    def __init__(self, channels: int = 3, hidden: int = 2, groups: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1, groups=groups)
        self.hidden, self.classifier = nn.Linear(4 * channels, hidden), nn.Linear(hidden, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.second(self.norm(self.first(images)).relu()).relu()
        return self.classifier(self.hidden(x.flatten(1)).relu())

    def declare(self) -> Declaration:
        flow = Flow(self)
        first = flow.write("first", "norm")
        first.read_by.append("second")
        second = flow.write("second")
        second.read_by.append("hidden")
        flow.write("hidden").read_by.append("classifier")
        return flow.declaration()


# --- axes -------------------------------------------------------------------------------------------------------------


def test_axes_of_a_flattening():
    assert axes_of(Pixels()) == {
        "first.weight": Axes("first", None),
        "first.bias": Axes("first", None),
        "norm.weight": Axes("first", None),
        "norm.bias": Axes("first", None),
        "second.weight": Axes("second", "first"),
        "second.bias": Axes("second", None),
        "hidden.weight": Axes("hidden", "second", 4),
        "hidden.bias": Axes("hidden", None),
        "classifier.weight": Axes(None, "hidden"),
        "classifier.bias": Axes(None, None),
    }
    assert statistics_of(Pixels()) == {"norm.running_mean": "first", "norm.running_var": "first"}


def test_depthwise_filters_belong_to_the_neuron_that_they_act_on():
    network = MobileNetV1((2, 3, *[2] * 12), in_channels=1)
    axes = axes_of(network)
    assert axes["layers.0.depthwise.weight"] == Axes("stem.convolution", None)
    assert axes["layers.0.pointwise.weight"] == Axes("layers.0.pointwise", "stem.convolution")
    assert axes["classifier.weight"] == Axes(None, "layers.12.pointwise")
    assert len(statistics_of(network)) == 2 * 27


@pytest.mark.parametrize("name", ["perceptron", "vgg11", "mobilenet-v1", "block-stack"])
def test_every_parameter_is_somebodys_and_has_that_many_rows(name):
    network = Backbone(name, None, 2, 8).build(3, 0)
    neurons, axes = network.neurons(), axes_of(network)
    assert list(axes) == [n for n, _ in network.named_parameters()]
    for parameter, here in axes.items():
        shape = network.get_parameter(parameter).shape
        if here.writes is None:
            assert parameter.startswith("classifier.")
        else:
            assert shape[0] == neurons[here.writes]
        if here.reads is not None:
            assert shape[1] == neurons[here.reads] * here.positions


def test_groups_are_refused():
    with pytest.raises(InvalidInput, match="Grouped convolutions divide the width first"):
        axes_of(Pixels(4, groups=2))


# --- slots ------------------------------------------------------------------------------------------------------------


def test_a_growth_by_hand():
    """Locked 2, 5 and 7; 5 and 2 are unlocked, one is new; then 7 is unlocked, and two are new."""
    slots = Slots((2, 5, 7)).grown([1, 0], 1)
    assert slots == Slots((7,), (2, 5, NEW))
    assert (slots.owned().tolist(), slots.new().tolist()) == ([False, True, True, True], [False, False, False, True])
    slots = slots.grown([0], 2)
    assert slots == Slots((), (2, 5, NEW, 7, NEW, NEW))
    assert len(slots) == 6
    assert slots.new().tolist() == [False, False, True, False, True, True]


def test_a_first_task_owns_all():
    network = Perceptron(3, (2, 4), 2)
    slots = all_owned(network)
    assert slots == {"layers.0.linear": Slots((), (NEW,) * 2), "layers.1.linear": Slots((), (NEW,) * 4)}
    assert all(entries.all() for entries in free_entries(network, slots).values())


# --- free entries -----------------------------------------------------------------------------------------------------


def test_free_entries_by_hand():
    """First width: locked, copy, new. Second: locked, new. Hidden: locked, locked.

    Rows are those who read, columns those who are read. A locked reader reads a copy by the old weight.
    """
    slots = {"first": Slots((0,), (1, NEW)), "second": Slots((4,), (NEW,)), "hidden": Slots((0, 1))}
    network = Pixels(3, 2)
    network.second = nn.Conv2d(3, 2, 1)
    network.hidden = nn.Linear(8, 2)
    free = free_entries(network, slots)
    assert free["first.bias"].tolist() == free["norm.weight"].tolist() == free["norm.bias"].tolist()
    assert free["first.bias"].tolist() == [False, True, True]
    assert free["first.weight"].flatten(1).all(1).tolist() == free["first.weight"].flatten(1).any(1).tolist()
    assert free["first.weight"].flatten(1).all(1).tolist() == [False, True, True]
    assert free["second.weight"].flatten(1).tolist() == [[False, False, True], [True, True, True]]
    assert free["second.bias"].tolist() == [False, True]
    assert free["hidden.weight"].tolist() == [[False] * 4 + [True] * 4] * 2  # four pixels of each channel
    assert free["hidden.bias"].tolist() == [False, False]
    assert free["classifier.weight"].all()
    assert free["classifier.bias"].all()


def some_slots(data: st.DataObject, width: int) -> Slots:
    """Any slots of a width."""
    locked = data.draw(st.integers(0, width))
    return Slots(tuple(range(locked)), tuple(data.draw(st.sampled_from([NEW, 0])) for _ in range(width - locked)))


@few
@given(st.data())
def test_free_entries_entry_by_entry(data):
    network = Pixels(3, 4)
    slots = {name: some_slots(data, width) for name, width in network.neurons().items()}
    free = free_entries(network, slots)
    owned = {name: part.owned() for name, part in slots.items()}
    new = {name: part.new() for name, part in slots.items()}
    for name, here in axes_of(network).items():
        for place in torch.ones_like(free[name]).nonzero().tolist():
            expected = here.writes is None or bool(owned[here.writes][place[0]])
            if here.reads is not None and here.writes is not None:
                expected |= bool(new[here.reads][place[1] // here.positions])
            assert bool(free[name][tuple(place)]) == expected


def test_take_neurons_of_several_entries():
    given_ = torch.arange(12).view(2, 6)
    assert take(given_, 1, torch.tensor([2, 0]), 2).tolist() == [[4, 5, 0, 1], [10, 11, 6, 7]]
    assert take(given_, 0, torch.tensor([1])).tolist() == [[6, 7, 8, 9, 10, 11]]
    assert take(given_, 1, torch.tensor([], dtype=torch.int64), 3).shape == (2, 0)


# --- under an optimiser -----------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "weight decay and momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


def moved(network: nn.Module, optimizer: torch.optim.Optimizer, locked: LockedEntries | None, steps: int = 3) -> None:
    images = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        if locked is not None:
            locked.clear_gradients()
        optimizer.step()
        if locked is not None:
            locked.restore()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_locked_entries_keep_their_bits_and_free_ones_move(optimizer):
    network = Backbone("vgg11", (3,) * 8, 2, 8).build(5, 0).train()
    slots = {name: Slots((0,), (0, NEW)) for name in network.neurons()}
    free = free_entries(network, slots)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    images = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    steps, locked = OPTIMIZERS[optimizer](network.parameters()), LockedEntries(network, free)
    for _ in range(3):
        steps.zero_grad()
        network(images).square().mean().backward()
        locked.clear_gradients()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            assert (parameter.grad[~free[name]] == 0).all()
        steps.step()
        locked.restore()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter[~free[name]], before[name][~free[name]])
        moved_ = parameter != before[name]
        assert not moved_[~free[name]].any()
        assert moved_.any()
    last = network.get_parameter("layers.7.convolution.weight")
    assert (last != before["layers.7.convolution.weight"])[free["layers.7.convolution.weight"]].float().mean() > 0.9


def test_without_putting_them_back_weight_decay_moves_locked_entries():
    """What :class:`LockedEntries` is for: a gradient of zero is not enough."""
    network = Pixels()
    free = {"second.weight": torch.zeros(3, 3, 1, 1, dtype=torch.bool)}
    before = network.second.weight.detach().clone()
    locked = LockedEntries(network, free)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    network(torch.randn(2, 2, 4, 4)).sum().backward()
    locked.clear_gradients()
    optimizer.step()
    assert not torch.equal(network.second.weight, before)
    locked.restore()
    assert torch.equal(network.second.weight, before)


def test_nothing_locked_is_the_plain_optimiser_to_the_bit():
    networks = [Backbone("perceptron", (4,), 2, 4).build(3, 0).train() for _ in range(2)]
    for network, locked in zip(networks, (True, False), strict=True):
        free = free_entries(network, all_owned(network))
        optimizer = OPTIMIZERS["weight decay and momentum"](network.parameters())
        moved(network, optimizer, LockedEntries(network, free) if locked else None)
    for name, parameter in networks[0].named_parameters():
        assert torch.equal(parameter, networks[1].get_parameter(name))


def test_free_entries_move_as_if_locked_ones_were_constants():
    """Without momentum: one step, by hand."""
    network = Pixels().double()
    slots = {"first": Slots((0,), (0, NEW)), "second": Slots((0, 1), (NEW,)), "hidden": Slots((0,), (0,))}
    free, before = free_entries(network, slots), {n: p.detach().clone() for n, p in network.named_parameters()}
    images = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    gradients = torch.autograd.grad(network(images).square().mean(), list(network.parameters()))
    locked = LockedEntries(network, free)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.01)
    network(images).square().mean().backward()
    locked.clear_gradients()
    optimizer.step()
    locked.restore()
    for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
        step = before[name] - 0.1 * (gradient + 0.01 * before[name])
        torch.testing.assert_close(parameter, torch.where(free[name], step, before[name]), rtol=1e-12, atol=1e-14)
