"""Counts that can be done by hand: parameters, multiply-adds, bytes saved for the backward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasbook.analysis import (
    count_macs,
    count_parameters,
    count_traffic,
    largest_batch,
    peak_memory,
    saved_activation_bytes,
)
from nasbook.errors import InvalidInput


class Tied(nn.Module):
    """Two linear layers with one weight, and a buffer that every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.second(self.first(x))


def test_parameters():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    assert count_parameters(network) == (3 * 8 * 9 + 8) + 2 * 8 + (8 * 2 + 2)
    assert count_parameters(network.parameters()) == count_parameters(network)
    network[0].requires_grad_(False)
    assert count_parameters(network, trainable_only=True) == 2 * 8 + (8 * 2 + 2)


def test_shared_parameters_count_once():
    tied = Tied()
    assert count_parameters(tied) == 16
    assert count_parameters([tied.first.weight, tied.second.weight]) == 16


@settings(deadline=None, max_examples=40)
@given(
    groups=st.sampled_from([1, 2, 4]),
    channels=st.sampled_from([(4, 4), (8, 4), (4, 12)]),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 5)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 2),
)
def test_macs_of_a_convolution(groups, channels, kernel, stride, dilation, batch):
    inputs, outputs = channels
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=4, dilation=dilation, groups=groups)
    height, width = layer(torch.zeros(1, inputs, 9, 9)).shape[2:]
    expected = batch * height * width * outputs * (inputs // groups) * kernel[0] * kernel[1]
    assert count_macs(layer, (batch, inputs, 9, 9)) == expected


def test_macs_of_other_layers():
    assert count_macs(nn.Linear(7, 5), (1, 7)) == 35
    assert count_macs(nn.Linear(7, 5), (2, 3, 7)) == 2 * 3 * 35
    assert count_macs(nn.Linear(7, 5, bias=False), (2, 3, 7)) == 2 * 3 * 35
    rest = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Dropout())
    assert count_macs(rest, (1, 3, 8, 8)) == 0


def test_macs_leave_the_module_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 4), Tied())
    network[1].eval()  # a mode of its own, inside a network in training mode
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    assert count_macs(network, (1, 3, 2, 2)) == 12 * 4 + 64 + 32
    assert [layer.training for layer in network] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(RuntimeError):
        count_macs(network, (1, 5, 2, 2))
    assert [layer.training for layer in network] == [True, False, True, True, True, True]


def test_macs_run_in_the_precision_of_the_module():
    assert count_macs(nn.Linear(3, 2).double(), (1, 3)) == 6


def test_saved_bytes_of_single_operations():
    x = torch.rand(10, 6)
    assert saved_activation_bytes(nn.Linear(6, 5), x) == 10 * 6 * 4  # its input
    assert saved_activation_bytes(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), x) == (10 * 6 + 10 * 5) * 4  # and output
    assert saved_activation_bytes(nn.Linear(6, 5).double(), x.double()) == 10 * 6 * 8
    frozen = nn.Linear(6, 5).requires_grad_(False)
    assert saved_activation_bytes(frozen, x) == 0  # nothing to differentiate


def test_a_storage_counts_once_and_whole():
    weight = nn.Parameter(torch.rand(6, 5))

    def twice(x):
        return x @ weight + x.view(-1, 6) @ weight

    assert saved_activation_bytes(twice, torch.rand(5, 6)) == 5 * 6 * 4
    assert saved_activation_bytes(lambda x: x[:2] @ weight, torch.rand(5, 6)) == 5 * 6 * 4  # the view keeps all of it


def test_parameters_and_buffers_do_not_count():
    # In training mode batch norm keeps its input, the batch's mean and the inverse deviation; the rest is its own.
    norm = nn.BatchNorm2d(3)
    assert saved_activation_bytes(norm, torch.rand(4, 3, 5, 5)) == (4 * 3 * 25 + 3 + 3) * 4
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    network[0].requires_grad_(False)
    expected = 10 * 5 * 4  # a frozen weight is a parameter all the same
    assert saved_activation_bytes(network, torch.rand(10, 6)) == expected


def test_a_function_finds_its_parameters_in_the_graph():
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.rand(10, 6)
    expected = (10 * 6 + 10 * 5) * 4
    assert saved_activation_bytes(network, x) == expected
    for output in (lambda x: network(x), lambda x: [network(x)], lambda x: {"loss": (network(x), None)}):
        assert saved_activation_bytes(output, x) == expected
    x.requires_grad_()  # an input is an activation even if it wants a gradient
    assert saved_activation_bytes(lambda x: network(x), x) == saved_activation_bytes(network, x)
    assert saved_activation_bytes(network, x) == expected


def test_saved_bytes_are_the_same_again_and_leave_everything_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(4, 4, 3))
    x = torch.rand(2, 3, 8, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        first = saved_activation_bytes(network, x)
    assert first > 0 and {saved_activation_bytes(network, x) for _ in range(5)} == {first}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_peak_memory_needs_cuda(monkeypatch):
    with pytest.raises(InvalidInput, match="^peak_memory needs a CUDA device, got cpu; elsewhere use saved_act"):
        peak_memory(lambda: None, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match="^peak_memory needs a CUDA device, and this machine has none."):
        peak_memory(lambda: None, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_peak_memory():
    before = torch.cuda.memory_allocated()
    peak = peak_memory(lambda: torch.zeros(2**20, device="cuda").sum(), "cuda")
    assert 2**22 <= peak - before < 2**23


def test_traffic_of_a_layer():
    x = torch.rand(10, 6)
    layer = nn.Linear(6, 5)
    kept = 10 * 6 * 4
    weights = (6 * 5 + 5) * 4
    assert count_traffic(layer, x) == 2 * kept + kept + 3 * weights  # the input is also what is kept
    assert count_traffic(layer.requires_grad_(False), x) == kept + 2 * weights
    assert count_traffic(nn.ReLU(), x.requires_grad_()) == 2 * kept + kept


@settings(deadline=None, max_examples=200)
@given(
    fixed=st.integers(0, 1000),
    per_image=st.integers(1, 100),
    bend=st.floats(0.7, 1.5),
    budget=st.integers(0, 5000),
)
def test_largest_batch(fixed, per_image, bend, budget):
    calls = []

    def bytes_of(batch):
        calls.append(batch)
        return fixed + int(per_image * batch**bend) + batch

    largest = largest_batch(bytes_of, budget)
    assert largest == 0 or bytes_of(largest) <= budget
    assert bytes_of(largest + 1) > budget
    assert len(calls) < 40


def test_largest_batch_follows_the_line():
    calls = []

    def bytes_of(batch):
        calls.append(batch)
        return 500 + 7 * batch

    assert largest_batch(bytes_of, 10_000) == 1357
    assert len(calls) <= 5
    assert max(calls) == 1358  # hardly over the budget


def test_largest_batch_after_a_cliff():
    """Where memory runs out, the bytes may be anything above the budget."""
    assert largest_batch(lambda batch: 10 * batch if batch <= 37 else 10**15 * batch, 1000) == 37
    assert largest_batch(lambda batch: 10**6, 1000) == 0
    with pytest.raises(InvalidInput, match="^bytes_of does not grow: 10 for a batch of 1, 10 for 100."):
        largest_batch(lambda batch: 10, 1000)
