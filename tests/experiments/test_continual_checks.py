"""What is exact about Firefly's memory: the claim holds on measured values, and a wrong network or number is found."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from tiny_masters import THIN, distinct_numbers, learn
from tiny_tasks import VGG, tiny_tasks

from nasbook.continual import MasterNetwork, Slots
from nasbook.continual.ownership import NEW
from nasbook.data import evaluation_batches
from nasbook.experiments import Workplace, continual_checks, get_claim, get_experiment
from nasbook.experiments.continual_checks import distinct_entries, exact_results, learned_in_order

CLAIM = "firefly.no-forgetting"
NOT = "does not hold at this scale"
PIXELS = torch.linspace(-2, 2, 6 * 64).view(6, 1, 8, 8)


@pytest.fixture(scope="module")
def found(scale):
    """As in the record, with small tasks and of one family."""
    patch = pytest.MonkeyPatch()
    patch.setattr(continual_checks, "BACKBONES", {"perceptron": ("perceptron", (6, 5))})
    values = exact_results(Workplace(replace(scale, train_images=200, test_images=60), 0, "digits"))
    patch.undo()
    return values


def judged(record_of, values):
    return get_experiment("continual-exact").judges[CLAIM](record_of("continual-exact", values))


def test_the_claim_holds(found, record_of):
    assert found.keys() == {"perceptron"}
    values = found["perceptron"]
    assert (values["masters"], values["outputs"], values["awake"]) == (6, 18, 18)
    assert values["copies"] > 0
    verdict = judged(record_of, found)
    assert verdict.status == "holds"
    assert "18 of 18 networks" in verdict.numbers
    assert "6 of 6 counts" in verdict.numbers
    assert get_claim(CLAIM).kind == "exact"
    assert not get_experiment("continual-exact").seeded


@pytest.mark.parametrize("key", ["awake", "equal", "equal_reloaded", "unions", "counts"])
def test_one_wrong_number_is_found(found, record_of, key):
    values = copy.deepcopy(found)
    values["perceptron"][key] -= values["perceptron"][key] if key == "awake" else 1  # a few may give the same to all
    assert judged(record_of, values).status == NOT


def test_orders():
    orders = list(continual_checks._orders("perceptron"))
    assert sorted(orders) == sorted(itertools.permutations(range(3)))
    more = list(continual_checks._orders("VGG-11"))
    assert more[:6] == orders
    assert len(set(more)) == 12
    assert all(sorted(order) == list(range(5)) for order in more[6:])


def test_two_ways_to_count_that_know_nothing_of_each_other():
    """By the names of entries, by numbers instead of weights, and as the master network does."""
    master, _ = learned_in_order(tiny_tasks(3), VGG, PIXELS, seed=1)
    assert any((sources != NEW).any() for sources in master.copy_of.values())
    assert distinct_entries(master) == distinct_numbers(master) == master.parameters()


def test_counting_by_hand():
    """A copy of a copy, and a neuron that was copied twice."""
    master = MasterNetwork(THIN)
    learn(master, None, (0, 1), 1)
    learn(master, {name: Slots((0,), (1, 1)) for name in master.widths}, (0, 1), 2)
    learn(master, {name: Slots((1,), (2, NEW)) for name in master.widths}, (0, 1), 3)
    first = 4 * 2 + 2 + 2 * 2 + 2 + 2 * 2 + 2
    second = 2 * 4 + 2 + 2 * 3 + 2 + 3 * 2 + 2  # filters of the copies; who is old reads them as the original
    third = 2 * 4 + 2 + 2 * 3 + 2 + 1 + 3 * 2 + 2  # and an old one reads the new one
    assert [master.parameters(tasks) for tasks in (1, 2, 3)] == [first, first + second, first + second + third]
    assert distinct_entries(master) == distinct_numbers(master) == first + second + third


def test_a_changed_weight_changes_what_is_compared():
    """The networks are awake: a neuron of the first layer is felt at the end."""
    images, labels = tiny_tasks(1)[0].data.test_images, tiny_tasks(1)[0].data.test_labels
    pixels, _ = next(evaluation_batches(images, labels, 12, (0.3,), (0.4,)))
    backbone = replace(VGG, widths=(8,) * 8)
    master, outputs = learned_in_order(tiny_tasks(2, train=100), backbone, pixels)
    for task, before in enumerate(outputs):
        assert before.std(0).max() > continual_checks.AWAKE
        with torch.no_grad():
            assert torch.equal(master.network(task)(pixels), before)
            weight = master.weights["layers.0.convolution.weight"]
            kept = weight.clone()
            weight[master.tasks[task].chosen["layers.0.convolution"]] += 0.1
            assert not torch.equal(master.network(task)(pixels), before)
            weight.copy_(kept)
