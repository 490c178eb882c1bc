"""Packed networks: each task's network comes out with the bits that it was recorded with, whatever comes later."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences
from torch import nn

from nasbook.continual import Backbone, PackedNetwork
from nasbook.continual.packing import packed_shapes, smallest_weights
from nasbook.errors import InvalidInput
from nasbook.networks import GROWABLE_NETWORKS
from nasbook.seeding import generator

SIDE = 8
BACKBONES = {
    name: Backbone(name, {"perceptron": (5, 4), "mobilenet-v1": (3,) * 14}.get(name), 1, SIDE)
    for name in ("perceptron", "mobilenet-v1", "block-stack")
} | {"vgg11": Backbone("vgg11", (3,) * 8, 1, SIDE), "vgg16": Backbone("vgg16", (2,) * 13, 1, SIDE)}
IMAGES = torch.randn(6, 1, SIDE, SIDE, generator=generator(0, "images"))


def awake(network, seed):
    """As if it had been trained: all that a task has alone differs from a fresh network's."""
    draw = generator(seed, "awake")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.1)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=draw))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=draw))
            elif isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=draw))
    return network


def learn(packed, seed, share=0.5, picked=None, classes=(0, 1)):
    """Records a task that moves all free weights, keeps a share of them, and owns what it keeps."""
    network = awake(packed.begin(len(classes), seed), seed)
    draw, own = generator(seed, "learn"), {}
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, free in packed.free().items():
            own[name] = free & (torch.rand(free.shape, generator=draw) < share)
            moved = torch.randn(free.shape, generator=draw) * 0.3
            parameters[name].copy_(torch.where(own[name], moved, torch.where(free, 0, parameters[name])))
    packed.record(f"task {seed}", classes, network, own, picked)
    return network, own


def bits(network):
    with torch.no_grad():
        return {**network.state_dict(), "outputs": network.eval()(IMAGES)}


def widened(packed):
    return [width + 1 + place % 2 for place, width in enumerate(packed.widths)]


# --- which weights go -------------------------------------------------------------------------------------------------


def test_the_smallest_go_and_of_equal_ones_the_first():
    weight = torch.tensor([[0.1, -3.0, 0.5], [-0.5, 0.0, 0.5]])
    among = torch.tensor([[True, True, True], [True, False, True]])
    found = smallest_weights(weight, among, 3)
    assert found.tolist() == [[True, False, True], [True, False, False]]
    assert smallest_weights(weight, among, 9).equal(among)
    assert not smallest_weights(weight, among, 0).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 7), st.integers(0, 40), st.booleans())
def test_no_weight_that_stays_is_smaller_than_one_that_goes(seed, rows, columns, count, coarse):
    draw = generator(seed)
    weight = torch.randn(rows, columns, generator=draw)
    weight = weight.round() if coarse else weight  # many equal ones
    among = torch.rand(rows, columns, generator=draw) < 0.7
    found = smallest_weights(weight, among, count)
    assert int(found.sum()) == min(count, int(among.sum()))
    assert not (found & ~among).any()
    stays = among & ~found
    if found.any() and stays.any():
        assert weight[found].abs().max() <= weight[stays].abs().min()


# --- what tasks share -------------------------------------------------------------------------------------------------


def test_tasks_share_the_weights_of_layers_and_nothing_else():
    network = BACKBONES["mobilenet-v1"].build(2, 0)
    shapes = packed_shapes(network)
    layers = {
        f"{path}.weight"
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and path != "classifier"
    }
    assert set(shapes) == layers
    assert shapes["layers.1.depthwise.weight"] == (3, 1, 3, 3)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_first_task_begins_with_a_fresh_backbone(name):
    packed, backbone = PackedNetwork(BACKBONES[name]), BACKBONES[name]
    assert not differences(bits(packed.begin(3, 5)), bits(backbone.build(3, 5)))
    assert all(free.all() for free in packed.free().values())
    assert packed.used() == 0
    assert len(packed) == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_no_later_task_and_no_expansion_changes_a_bit(name):
    packed, kept = PackedNetwork(BACKBONES[name]), []
    for seed in range(5):
        if seed in (2, 4):
            packed.expand(widened(packed), seed)
        draw = generator(seed, "picked")
        picked = {key: torch.rand(free.shape, generator=draw) < 0.6 for key, free in packed.free().items()}
        learn(packed, seed, picked=picked if seed % 2 else None, classes=tuple(range(2 + seed)))
        kept.append(bits(packed.network(seed)))
    assert len(packed) == 5
    for seed, expected in enumerate(kept):
        assert expected["outputs"].std() > 0
        assert not differences(bits(packed.network(seed)), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_what_comes_out_is_what_went_in_but_for_what_was_not_picked(name):
    packed = PackedNetwork(BACKBONES[name])
    first, own = learn(packed, 0)
    assert not differences(bits(packed.network(0)), bits(first))
    second, _ = learn(packed, 1)
    assert not differences(bits(packed.network(1)), bits(second))  # all of the first task's is there
    nothing = {key: torch.zeros(free.shape, dtype=torch.bool) for key, free in packed.free().items()}
    third, mine = learn(packed, 2, picked=nothing)
    alone = dict(packed.network(2).named_parameters())
    for key, parameter in third.named_parameters():
        expected = torch.where(mine[key], parameter, 0) if key in mine else parameter
        assert alone[key].equal(expected)
    assert any(own[key].any() for key in own)


def test_a_new_task_begins_with_all_weights_and_the_last_batch_norms():
    packed = PackedNetwork(BACKBONES["vgg11"])
    first, own = learn(packed, 0)
    begun = packed.begin(4, 7)
    classifier = BACKBONES["vgg11"].build(4, 7).classifier
    assert begun.classifier.weight.equal(classifier.weight)
    for key, parameter in begun.named_parameters():
        if key in own:
            assert parameter.equal(torch.where(own[key], first.get_parameter(key), 0))
        elif "norm" in key:
            assert parameter.equal(first.get_parameter(key))
    assert begun.layers[3].norm.running_var.equal(first.layers[3].norm.running_var)


def test_what_a_task_does_not_keep_is_zero_for_the_next_one():
    packed = PackedNetwork(BACKBONES["vgg11"])
    network = packed.begin(2, 0)
    own = {key: parameter > 0 for key, parameter in network.named_parameters() if key in packed.owner}
    packed.record("half", (0, 1), network, own)
    for begun in (packed.begin(2, 1), packed.network(0)):
        for key, mine in own.items():
            assert begun.get_parameter(key).equal(network.get_parameter(key).relu())
            assert 0 < int(mine.sum()) < mine.numel()


def test_expansion_adds_fresh_and_free_weights_only():
    packed = PackedNetwork(BACKBONES["vgg11"])
    first, own = learn(packed, 0)
    packed.expand([4, 3, 5, 3, 3, 3, 3, 6], 3)
    fresh, begun = BACKBONES["vgg11"].build(2, 3, [4, 3, 5, 3, 3, 3, 3, 6]), packed.begin(2, 1)
    assert tuple(begun.neurons().values()) == packed.widths == (4, 3, 5, 3, 3, 3, 3, 6)
    free = packed.free()
    for key, mine in own.items():
        old = torch.zeros_like(free[key])
        old[tuple(slice(0, n) for n in mine.shape)] = True
        parameter = begun.get_parameter(key)
        assert parameter[~old].equal(fresh.get_parameter(key)[~old])
        assert free[key][~old].all()
        assert (~free[key]).sum() == mine.sum()
        assert parameter[~free[key]].equal(first.get_parameter(key)[mine])
    norm, before = begun.layers[2].norm, first.layers[2].norm
    assert norm.weight.tolist() == [*before.weight.tolist(), 1, 1]
    assert norm.running_mean.tolist() == [*before.running_mean.tolist(), 0, 0]
    # Before the first task there is nothing to keep.
    packed = PackedNetwork(BACKBONES["vgg11"])
    packed.expand([4] * 8, 3)
    wide = BACKBONES["vgg11"].build(2, 1, [4] * 8)
    assert not differences(bits(packed.begin(2, 1)), bits(wide))


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_parameters_and_mask_bits_counted_by_hand():
    packed = PackedNetwork(Backbone("perceptron", (5, 4), 1, 2))
    weights = 4 * 5 + 5 * 4
    assert (packed.parameters(), packed.mask_bits()) == (weights, 0)
    _, own = learn(packed, 0, classes=(0, 1, 2))
    first = sum(int(mask.sum()) for mask in own.values())
    alone = (5 + 4) + (4 * 3 + 3)  # biases of the hidden layers, classifier
    assert (packed.parameters(), packed.used()) == (weights + alone, first)
    assert packed.mask_bits() == weights  # free or not
    everything = {key: torch.ones_like(mask) for key, mask in own.items()}
    _, own = learn(packed, 1, picked=everything)
    second = sum(int(mask.sum()) for mask in own.values())
    assert packed.used() == first + second
    assert packed.parameters() == weights + alone + (5 + 4) + (4 * 2 + 2)
    assert packed.mask_bits() == 2 * weights + first  # three owners; a bit for each weight that could be picked
    assert 0 < first < weights
    assert second > 0


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(0, 2**31))
def test_every_weight_has_one_owner(shares, seed):
    """Tasks own disjoint parts; with the free ones they are the whole."""
    packed = PackedNetwork(Backbone("perceptron", (5, 4), 1, 2))
    parts = []
    for number, share in enumerate(shares):
        _, own = learn(packed, seed % 1000 + number, share)
        parts.append(own)
    for key, owner in packed.owner.items():
        for number, part in enumerate(parts):
            assert (owner == number + 1).equal(part[key])
        together = torch.stack([part[key] for part in parts] + [packed.free()[key]])
        assert (together.sum(0) == 1).all()
    bits_an_owner = math.ceil(math.log2(len(shares) + 1))
    assert packed.mask_bits() == bits_an_owner * 40


# --- saved ------------------------------------------------------------------------------------------------------------


def test_the_state_is_all_there_is():
    packed = PackedNetwork(BACKBONES["vgg16"])
    learn(packed, 0)
    packed.expand(widened(packed), 0)
    learn(packed, 1, picked={key: owner > 0 for key, owner in packed.owner.items()})
    again = PackedNetwork.from_state(packed.state_dict())
    assert not differences(again.state_dict(), packed.state_dict())
    for task in range(2):
        assert not differences(bits(again.network(task)), bits(packed.network(task)))
    assert not differences(bits(again.begin(2, 3)), bits(packed.begin(2, 3)))


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_earlier_tasks_own_can_not_be_taken_or_changed():
    packed = PackedNetwork(BACKBONES["vgg11"])
    network, own = learn(packed, 0)
    before = packed.state_dict()
    key = "layers.4.convolution.weight"
    taken = {name: torch.zeros_like(mask) for name, mask in own.items()}
    taken[key] = own[key].clone()
    with pytest.raises(InvalidInput, match=f"{key} has weights that an earlier task owns"):
        packed.record("taken", (0, 1), packed.begin(2, 1), taken)
    changed = packed.begin(2, 1)
    place = tuple(own[key].nonzero()[0].tolist())
    with torch.no_grad():
        changed.get_parameter(key)[place] += 1e-6
    with pytest.raises(InvalidInput, match=f"{key} differs from the memory"):
        packed.record("changed", (0, 1), changed, packed.free())
    assert not differences(packed.state_dict(), before)
    assert not differences(bits(packed.network(0)), bits(network))


def test_refusals():
    packed = PackedNetwork(BACKBONES["vgg11"])
    with pytest.raises(InvalidInput, match="knows 0 tasks, numbered from 0; got 0"):
        packed.network(0)
    learn(packed, 0)
    with pytest.raises(InvalidInput, match="knows 1 tasks, numbered from 0; got -1"):
        packed.network(-1)
    wider = BACKBONES["vgg11"].build(2, 0, [4] * 8)
    with pytest.raises(InvalidInput, match="has the widths"):
        packed.record("wider", (0, 1), wider, packed.free())
    for widths in ([4] * 7, [3] * 7 + [2]):
        with pytest.raises(InvalidInput, match="can't be expanded"):
            packed.expand(widths, 0)
    assert packed.widths == (3,) * 8
    with pytest.raises(InvalidInput, match="Unknown growable network"):
        PackedNetwork(Backbone("vgg12"))
    assert set(BACKBONES) <= set(GROWABLE_NETWORKS)
