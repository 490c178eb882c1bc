"""Tasks: every class once, labels from zero, the same images, and orders of the same division."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.continual import Task, hold_out, split_classes, take_classes
from nasbook.data import load_images
from nasbook.errors import InvalidInput

few = settings(derandomize=True, deadline=None, max_examples=20)

FIRST = [(3, 7), (0, 4), (5, 9), (6, 8), (1, 2)]
"""The digits in five tasks by seed 0."""


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").take(400, 200)


def same(one: Task, other: Task) -> bool:
    return one.data.checksum == other.data.checksum and (one.name, one.classes) == (other.name, other.classes)


@few
@given(tasks=st.sampled_from([1, 2, 5]), seed=st.integers(0, 2**31))
def test_a_division(digits, tasks, seed):
    found = split_classes(digits, tasks, seed=seed)
    assert len(found) == tasks
    assert sorted(itertools.chain(*(task.classes for task in found))) == list(range(10))
    for task in found:
        assert task.classes == tuple(sorted(task.classes))
        assert task.data.classes == len(task.classes) == 10 // tasks
        for part in ("train", "test"):
            images, labels = (getattr(task.data, f"{part}_{name}") for name in ("images", "labels"))
            whole, names = (getattr(digits, f"{part}_{name}") for name in ("images", "labels"))
            there = torch.isin(names, torch.tensor(task.classes))
            assert torch.equal(images, whole[there])
            assert torch.equal(torch.tensor(task.classes)[labels], names[there])
        assert (task.data.mean, task.data.std) == (digits.mean, digits.std)
        assert task.data.augmentation == digits.augmentation


def test_a_division_by_its_seed(digits):
    """The same numbers on every machine, so records say what was learned."""
    assert [task.classes for task in split_classes(digits, 5, seed=0)] == FIRST
    assert all(map(same, split_classes(digits, 5, seed=3), split_classes(digits, 5, seed=3)))
    drawn = {tuple(task.classes for task in split_classes(digits, 5, seed=seed)) for seed in range(20)}
    assert len(drawn) == 20


def test_a_split_has_a_random_partition_of_classes_not_neighbours(digits):
    """Over many seeds each pair of classes shares a task equally often: 1 in 9."""
    together = torch.zeros(10, 10)
    for seed in range(300):
        for task in split_classes(digits, 5, seed=seed):
            together[task.classes[0], task.classes[1]] += 1
    pairs = together[tuple(torch.triu_indices(10, 10, 1))] / 300
    assert float(pairs.sum()) == pytest.approx(5)
    assert float((pairs - 1 / 9).abs().max()) < 0.08  # 4.4 standard errors


@few
@given(order=st.permutations(range(5)))
def test_orders_are_of_one_division(digits, order):
    plain, ordered = split_classes(digits, 5, seed=4), split_classes(digits, 5, seed=4, order=order)
    assert all(same(task, plain[place]) for task, place in zip(ordered, order, strict=True))


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 2, 3, 3), (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)])
def test_wrong_orders(digits, order):
    with pytest.raises(InvalidInput, match=r"order must have each of 0..4 once"):
        split_classes(digits, 5, order=order)


@pytest.mark.parametrize("tasks", [3, 4, 10, 20])
def test_classes_that_do_not_divide(digits, tasks):
    with pytest.raises(InvalidInput, match=f"10 classes can't be divided into {tasks} tasks.*give one of 1, 2, 5"):
        split_classes(digits, tasks)


@pytest.mark.parametrize("tasks", [0, -1])
def test_no_tasks(digits, tasks):
    with pytest.raises(InvalidInput, match="tasks must be above 0"):
        split_classes(digits, tasks)


def test_taken_classes_in_any_order_are_one_task(digits):
    assert same(take_classes(digits, [7, 2, 4]), take_classes(digits, (2, 4, 7)))
    assert take_classes(digits, [7, 2, 4]).name == "digits, classes 2, 4, 7"
    names = digits.train_labels[torch.isin(digits.train_labels, torch.tensor([2, 4, 7]))]
    labels = take_classes(digits, [7, 2, 4]).data.train_labels
    assert dict(set(zip(labels.tolist(), names.tolist(), strict=True))) == {0: 2, 1: 4, 2: 7}


@pytest.mark.parametrize("classes", [[], [3], [3, 3], [3, 3, 4], [-1, 3], [3, 10]])
def test_wrong_classes(digits, classes):
    with pytest.raises(InvalidInput, match=r"two or more different classes of 0\.\.9"):
        take_classes(digits, classes)


def test_classes_without_images(digits):
    zeros = torch.zeros_like(digits.train_labels)
    with pytest.raises(InvalidInput, match="digits has no train images of the classes"):
        take_classes(replace(digits, train_labels=zeros), [8, 9])


def test_tasks_do_not_share_memory(digits):
    before = digits.train_images.clone()
    task = take_classes(digits, [0, 1])
    task.data.train_images.zero_()
    task.data.train_labels.fill_(1)
    assert torch.equal(digits.train_images, before)
    assert len(set(digits.train_labels.tolist())) == 10


@few
@given(share=st.floats(0.1, 0.6), seed=st.integers(0, 1000))
def test_held_out_images(digits, share, seed):
    task = take_classes(digits, [3, 6])
    kept, held_out = hold_out(task, share, seed)
    count = len(task.data.train_labels)
    assert len(kept.data.train_labels) + len(held_out.data.train_labels) == count
    assert abs(len(held_out.data.train_labels) - share * count) <= 2
    rows = torch.cat([kept.data.train_images, held_out.data.train_images]).flatten(1)
    assert sorted(rows.tolist()) == sorted(task.data.train_images.flatten(1).tolist())
    for part in (kept, held_out):
        assert set(part.data.train_labels.tolist()) == {0, 1}
        assert torch.equal(part.data.test_images, task.data.test_images)
        assert part.classes == task.classes
    assert len({task.data.checksum, kept.data.checksum, held_out.data.checksum}) == 3
    again = hold_out(task, share, seed)
    assert same(again[0], kept)
    assert same(again[1], held_out)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5])
def test_wrong_shares(digits, share):
    with pytest.raises(InvalidInput):
        hold_out(take_classes(digits, [3, 6]), share, 0)


def test_on_a_device(digits):
    task = take_classes(digits, [3, 6])
    there = task.to("meta")
    assert there.data.train_images.device.type == "meta"
    assert (there.name, there.classes) == (task.name, task.classes)
