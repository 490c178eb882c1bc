"""The master network: a case by hand, any sequence of tasks, what is refused, and files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_masters import THIN, distinct_numbers, later_slots, learn, proposed, slots_of, state_of, train

from nasbook.analysis import count_parameters
from nasbook.continual import Backbone, MasterNetwork, Slots, all_owned, free_entries
from nasbook.continual.ownership import NEW
from nasbook.errors import InvalidInput
from nasbook.networks import GROWABLE_NETWORKS, Perceptron

few = settings(derandomize=True, deadline=None, max_examples=15)

BACKBONES = {
    "perceptron": THIN,
    "perceptron with norms": Backbone("perceptron with norms", (2, 2), 1, 2),
    "vgg": Backbone("vgg11", (2,) * 8, 1, 8),
    "mobilenet": Backbone("mobilenet-v1", (2,) * 14, 1, 8),
    "block stack": Backbone("block-stack", (2,) * 4, 1, 8),
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


@pytest.fixture(autouse=True, scope="module")
def _with_norms():
    """A perceptron with batch norms among the networks by name."""
    patch = pytest.MonkeyPatch()
    build = lambda widths, classes, channels, size: Perceptron(channels * size**2, widths, classes, normalized=True)  # noqa: E731
    patch.setitem(GROWABLE_NETWORKS, "perceptron with norms", build)
    yield
    patch.undo()


def three_tasks(backbone: Backbone = THIN) -> tuple[MasterNetwork, list]:
    """A first task; one with a copy and a new neuron in each width; one with a copy of the copy."""
    master = MasterNetwork(backbone)
    networks = [learn(master, None, (4, 7), 1)]
    networks.append(learn(master, {name: Slots((0,), (1, NEW)) for name in master.widths}, (0, 1, 9), 2))
    networks.append(learn(master, {name: Slots((0, 3), (2,)) for name in master.widths}, (2, 3), 3))
    return master, networks


def contents(master: MasterNetwork) -> dict:
    """All of it, as values of its own."""
    return copy.deepcopy({**master.state_dict(), "describe": master.describe()})


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_second_task_by_hand():
    """First width: task 1 keeps neuron 0, copies 1 and makes one. Second: it keeps neuron 1 and makes one."""
    master = MasterNetwork(THIN)
    network = THIN.build(2, 0)
    first, second = network.neurons()
    with torch.no_grad():
        network.layers[0].linear.weight.copy_(torch.arange(8.0).view(2, 4))
        network.layers[1].linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        network.layers[1].linear.bias.copy_(torch.tensor([5.0, 6.0]))
    master.record("first", (0, 1), network, all_owned(network))
    assert master.parameters() == 2 * 4 + 2 + 2 * 2 + 2 + 2 * 2 + 2

    slots = {first: Slots((0,), (1, NEW)), second: Slots((1,), (NEW,))}
    network = proposed(master, slots, 3)
    with torch.no_grad():
        assert network.layers[1].linear.weight.tolist() == [[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
        network.layers[1].linear.weight[0, 2] = 7.0  # how the old neuron reads the new one
        network.layers[1].linear.weight[1] = torch.tensor([8.0, 9.0, 10.0])
        network.layers[0].linear.weight[1] = -1.0
        network.layers[0].linear.weight[2] = -2.0
        network.layers[1].linear.bias[1] = 11.0
    master.record("second", (5, 6, 8), network, slots)

    assert master.weights["layers.0.linear.weight"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [-1] * 4, [-2] * 4]
    assert master.weights["layers.1.linear.weight"].tolist() == [
        [1, 2, 2, 0],  # it reads the copy as it read the original, and has never met the new one
        [3, 4, 4, 7],
        [8, 0, 9, 10],  # the new one has never met the original
    ]
    assert master.weights["layers.1.linear.bias"].tolist() == [5, 6, 11]
    assert master.describe() == {
        "widths": [first, second],
        "made_by": {first: [0, 0, 1, 1], second: [0, 0, 1]},
        "copy_of": {first: [NEW, NEW, 1, NEW], second: [NEW, NEW, NEW]},
        "classes": [[0, 1], [5, 6, 8]],
        "chosen": [{first: [0, 1], second: [0, 1]}, {first: [0, 2, 3], second: [1, 2]}],
        "parameters": [22, 22 + 2 * 4 + 2 + 1 + 3 + 1 + 2 * 3 + 3],
    }
    assert master.composition(0) == (0, 0, 4)
    assert master.composition(1) == (2, 1, 2)
    assert {name: mask.tolist() for name, mask in master.mask(1).items()} == {
        first: [True, False, True, True],
        second: [False, True, True],
    }


# --- any sequence of tasks --------------------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("backbone", list(BACKBONES.values())[:3], ids=list(BACKBONES)[:3])
@given(data=st.data())
def test_any_sequence_of_tasks(data, backbone):
    """No network of an earlier task changes; all that is kept belongs to a mask; every entry is counted once."""
    master = MasterNetwork(backbone)
    networks = [learn(master, None)]
    for seed in range(1, data.draw(st.integers(2, 4))):
        slots = later_slots(data, master)
        networks.append(learn(master, slots, tuple(range(seed + 1)), seed))
        assert slots_of(master, seed) == slots
        for task, network in enumerate(networks):
            assert not differences(state_of(master.network(task)), state_of(network))
    masks = [master.mask(task) for task in range(len(master))]
    for name, count in master.neurons().items():
        together = torch.stack([mask[name] for mask in masks])
        assert together.shape == (len(networks), count)
        assert together.any(0).all()
        for task, network in enumerate(networks):
            assert int(together[task].sum()) == network.neurons()[name]
    assert master.parameters() == distinct_numbers(master)
    assert [master.parameters(tasks) for tasks in range(len(master) + 1)] == [
        sum(part.added for part in master.tasks[:tasks]) for tasks in range(len(master) + 1)
    ]
    assert not differences(contents(MasterNetwork.from_state(master.state_dict())), contents(master))


@every_backbone
def test_outputs_and_counts_of_every_family(backbone):
    master, networks = three_tasks(backbone)
    images = torch.randn(5, 1, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0))
    for task, network in enumerate(networks):
        with torch.no_grad():
            expected, served = network.eval()(images), master.network(task)(images)
        assert torch.equal(served, expected)
        assert served.shape[1] == len(master.tasks[task].classes)
        assert served.std() > 0
    assert not master.network(1).training
    assert master.parameters() == distinct_numbers(master)
    # Sharing saves something, and a task alone is what it was.
    assert master.parameters() < sum(map(count_parameters, networks))
    assert master.parameters(1) == count_parameters(networks[0])


def test_a_task_that_adds_nothing_costs_its_classifier():
    master, _ = three_tasks()
    before = master.parameters()
    learn(master, {name: Slots((1, 4)) for name in master.widths}, (0, 1, 2), 5)
    assert master.parameters() - before == 3 * 2 + 3
    assert master.composition(3) == (4, 0, 0)


def test_a_copy_of_a_copy_is_read_by_the_first_original():
    """All who were there before the first copy; who came with it has a weight of its own for it."""
    master, _ = three_tasks()
    reads = master.weights[f"{master.widths[1]}.weight"]
    assert master.copy_of[master.widths[0]].tolist() == [NEW, NEW, 1, NEW, 2]
    assert torch.equal(reads[:2, 4], reads[:2, 1])
    assert torch.equal(reads[2:4, 4], reads[2:4, 2])
    assert not torch.equal(reads[2:4, 4], reads[2:4, 1])


@every_backbone
def test_a_new_task_begins_with_all_neurons(backbone):
    master, _ = three_tasks(backbone)
    whole = master.whole(4, 8)
    fresh = backbone.build(4, 8, list(master.neurons().values()))
    for name, value in state_of(whole).items():
        assert torch.equal(value, master.weights.get(name, fresh.state_dict()[name]))
    assert whole.neurons() == master.neurons()


# --- what is its own --------------------------------------------------------------------------------------------------


def test_what_it_gives_and_takes_is_a_copy():
    master, networks = three_tasks(BACKBONES["vgg"])
    before = contents(master)
    with torch.no_grad():
        for network in (*networks, *(master.network(task) for task in range(3)), master.whole(2, 0)):
            for value in network.state_dict().values():
                value.zero_()
        for value in master.state_dict()["tensors"].values():
            value.zero_()
        other = master.copy()
        learn(other, {name: Slots((0,)) for name in master.widths})
        other.weights["layers.0.convolution.weight"].zero_()
    assert not differences(contents(master), before)
    assert (len(other), len(master)) == (4, 3)


def test_recording_leaves_the_network_as_it_is():
    master, _ = three_tasks(BACKBONES["vgg"])
    slots = {name: Slots((0, 2), (1,)) for name in master.widths}
    network = proposed(master, slots, 2).train()
    train(network, slots)
    before = state_of(network)
    master.record("next", (0, 1), network, slots)
    assert not differences(state_of(network), before)
    assert network.training


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [THIN, BACKBONES["vgg"]], ids=["perceptron", "vgg"])
def test_every_locked_entry_is_watched_and_no_free_one(backbone):
    """One entry of each row of each parameter after the other."""
    master, _ = three_tasks(backbone)
    slots = {name: Slots((0, 2), (3, NEW)) for name in master.widths}
    network = proposed(master, slots, 2)
    train(network, slots)
    before, free, refused = contents(master), free_entries(network, slots), 0
    for name, parameter in network.named_parameters():
        flat, entries = parameter.detach().view(-1), free[name].flatten()
        for place in range(0, len(flat), max(1, parameter[0].numel() - 1)):
            kept = flat[place].clone()
            flat[place] += 1e-6 if kept.abs() < 4 else 1e-3
            assert flat[place] != kept
            trial = master if not entries[place] else master.copy()
            if entries[place]:
                trial.record("next", (0, 1), network, slots)
            else:
                refused += 1
                with pytest.raises(InvalidInput, match=f"^{name} differs from the memory in an entry that belongs to"):
                    trial.record("next", (0, 1), network, slots)
            flat[place] = kept
    assert refused > 5
    assert not differences(contents(master), before)
    master.record("next", (0, 1), network, slots)
    assert len(master) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: Slots((0, 9), (1, NEW))}, "name neurons that the master network does not have"),
        ({0: Slots((0, 1), (5, NEW))}, "name neurons that the master network does not have"),
        ({0: Slots((0, 1), (-2, NEW))}, "name neurons that the master network does not have"),
        ({0: Slots((1, 0), (1, NEW))}, "name neurons that the master network does not have"),
        ({0: Slots((1, 1), (1, NEW))}, "name neurons that the master network does not have"),
        ({0: Slots((-1, 0), (1, NEW))}, "name neurons that the master network does not have"),
        ({0: Slots((0,), (1, NEW))}, "The slots are those of another network"),
        ({0: None}, "The slots are those of another network"),
    ],
)
def test_wrong_slots(changed, message):
    master, _ = three_tasks()
    slots = {name: Slots((0, 1), (1, NEW)) for name in master.widths}
    network = proposed(master, slots, 2)
    train(network, slots)
    wrong = {**slots, **{master.widths[place]: part for place, part in changed.items()}}
    wrong = {name: part for name, part in wrong.items() if part is not None}
    before = contents(master)
    with pytest.raises(InvalidInput, match=message):
        master.record("next", (0, 1), network, wrong)
    assert not differences(contents(master), before)


def test_a_first_task_has_no_locked_neurons():
    master = MasterNetwork(THIN)
    with pytest.raises(InvalidInput, match="does not have"):
        master.record("first", (0, 1), THIN.build(2, 0), dict.fromkeys(THIN.build(2, 0).neurons(), Slots((0, 1))))
    assert len(master) == 0
    assert master.neurons() == {}
    assert master.parameters() == 0


@pytest.mark.parametrize(
    ("make", "classes", "message"),
    [
        (lambda: THIN.build(2, 0), (0, 1, 2), r"3 classes: for classifier.weight .* \(2, 2\), expected .* \(3, 2\)"),
        (lambda: THIN.build(2, 0).double(), (0, 1), "layers.0.linear.weight it has torch.float64"),
        (lambda: replace(THIN, size=3).build(2, 0), (0, 1), r"it has torch.float32 of shape \(2, 9\), expected"),
        (lambda: Perceptron(4, (2, 2), 2, normalized=True), (0, 1), "layers.0.norm.weight|layers.0.linear.bias"),
    ],
)
def test_a_network_that_it_could_not_give_back(make, classes, message):
    master = MasterNetwork(THIN)
    network = make()
    with pytest.raises(InvalidInput, match=message):
        master.record("first", classes, network, all_owned(network))
    assert len(master) == 0


@pytest.mark.parametrize("ask", ["network", "mask", "composition"])
@pytest.mark.parametrize("task", [-1, 3])
def test_no_such_task(ask, task):
    with pytest.raises(InvalidInput, match=f"knows 3 tasks, numbered from 0; got {task}"):
        getattr(three_tasks()[0], ask)(task)


def test_an_empty_one():
    master = MasterNetwork(THIN)
    assert (len(master), master.widths, master.parameters()) == (0, (), 0)
    with pytest.raises(InvalidInput, match="The master network is empty"):
        master.whole(2, 0)


# --- files ------------------------------------------------------------------------------------------------------------


@every_backbone
def test_a_file_serves_every_task(backbone, tmp_path):
    master, networks = three_tasks(backbone)
    path = master.save(tmp_path / "master.safetensors")
    again = MasterNetwork.load(path)
    assert not differences(contents(again), contents(master))
    assert (again.backbone, again.widths) == (backbone, master.widths)
    for task, network in enumerate(networks):
        assert not differences(state_of(again.network(task)), state_of(network))
        assert again.tasks[task].classes == master.tasks[task].classes
    # And it goes on learning, as the other does.
    slots = {name: Slots((1, 2), (0, NEW)) for name in master.widths}
    learn(master, slots, (0, 1), 9)
    learn(again, slots, (0, 1), 9)
    assert not differences(contents(again), contents(master))
    assert again.save(path).read_bytes() == master.save(tmp_path / "other.safetensors").read_bytes()


def test_an_empty_one_in_a_file(tmp_path):
    again = MasterNetwork.load(MasterNetwork(Backbone("vgg11", None, 1, 8)).save(tmp_path / "m.safetensors"))
    assert (len(again), again.backbone) == (0, Backbone("vgg11", None, 1, 8))


def test_a_file_that_is_cut_off_or_bent(tmp_path):
    """Any byte of it: cut off behind it, or changed."""
    content = three_tasks()[0].save(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "broken.safetensors"
    for place in range(0, len(content), 97):
        bent = bytearray(content)
        bent[place] ^= 1
        for broken in (content[:place], bytes(bent)):
            path.write_bytes(broken)
            with pytest.raises(InvalidInput, match="broken.safetensors"):
                MasterNetwork.load(path)


def _foreign(path, tensors=None, metadata=None):
    save_file(tensors or {"weight": torch.zeros(3)}, path, metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"nasbook": "{}"},
        {"nasbook": "[1]"},
        {"nasbook": "not JSON"},
        {"nasbook": json.dumps({"format": "nasbook.derived", "version": 1})},
        {"nasbook": json.dumps({"format": "nasbook.master", "version": 2})},
        {"nasbook": json.dumps({"format": "nasbook.master", "version": 1})},
    ],
)
def test_a_file_of_something_else(metadata, tmp_path):
    _foreign(tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(InvalidInput, match="other.safetensors is"):
        MasterNetwork.load(tmp_path / "other.safetensors")


def test_a_file_in_which_a_tensor_was_exchanged(tmp_path):
    path = three_tasks()[0].save(tmp_path / "master.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = "weights/layers.0.linear.weight"
    for change in (partial(torch.mul, other=2), torch.Tensor.double, torch.Tensor.t):
        _foreign(path, {**tensors, name: change(tensors[name]).contiguous()}, metadata)
        with pytest.raises(InvalidInput, match="is damaged: it is not what was written"):
            MasterNetwork.load(path)
    _foreign(path, {n: t for n, t in tensors.items() if n != name}, metadata)
    with pytest.raises(InvalidInput, match="is damaged"):
        MasterNetwork.load(path)
    _foreign(path, tensors, metadata)
    assert len(MasterNetwork.load(path)) == 3


def test_no_file(tmp_path):
    with pytest.raises(InvalidInput, match="There is no master network at"):
        MasterNetwork.load(tmp_path / "nothing.safetensors")
    with pytest.raises(InvalidInput, match="There is no master network at"):
        MasterNetwork.load(tmp_path)
