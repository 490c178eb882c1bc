"""Sequences of tasks: an image set divided by its classes, one task after the other (Firefly §3, B.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from nasbook.data import ImageData
from nasbook.data.images import checksum_of
from nasbook.errors import InvalidInput, require_positive
from nasbook.seeding import generator


@dataclass(frozen=True, eq=False)
class Task:
    """One task: some classes of an image set. Whoever is asked for a class knows the task."""

    name: str
    """Of the task, with its classes."""
    classes: tuple[int, ...]
    """Labels that its classes have in the whole set, ascending; label k of ``data`` is ``classes[k]``."""
    data: ImageData
    """Its images, labelled from 0. Mean and deviation are those of the whole set, as is usual."""

    def only(self, train: Int64[Tensor, " kept"]) -> Task:
        """The same task with some of its training images."""
        data = self.data
        arrays = {
            "train_images": data.train_images[train],
            "train_labels": data.train_labels[train],
            "test_images": data.test_images,
            "test_labels": data.test_labels,
        }
        checksum = checksum_of(arrays)
        return replace(self, data=replace(data, checksum=checksum, **arrays))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Task:
        """The same task with its images on ``device``."""
        return replace(self, data=self.data.to(device))


def split_classes(
    data: ImageData, tasks: int, *, seed: int = 0, order: Sequence[int] | None = None
) -> tuple[Task, ...]:
    """Divides the classes of a set at random into tasks of equally many classes.

    The paper divides CIFAR-100 into 10 and into 20 tasks, three times each.

    Args:
        data: the whole set.
        tasks: how many; the number of classes must be a multiple of it.
        seed: of the division.
        order: in which order the tasks come: a permutation of 0..tasks−1; None as they were drawn.

    Raises:
        InvalidInput: the classes can't be divided so, a task would have one class, or ``order`` is no permutation.
    """
    require_positive(tasks=tasks)
    each, over = divmod(data.classes, tasks)
    if over or each < 2:
        fitting = [n for n in range(1, data.classes // 2 + 1) if not data.classes % n]
        raise InvalidInput(
            f"{data.classes} classes can't be divided into {tasks} tasks of two and more; "
            f"give one of {', '.join(map(str, fitting))}."
        )
    drawn = torch.randperm(data.classes, generator=generator(seed, "classes")).view(tasks, each).sort(dim=1).values
    places = range(tasks) if order is None else order
    if sorted(places) != list(range(tasks)):
        raise InvalidInput(f"order must have each of 0..{tasks - 1} once, got {list(places)}.")
    return tuple(take_classes(data, drawn[place].tolist()) for place in places)


def take_classes(data: ImageData, classes: Sequence[int]) -> Task:
    """The task of telling these classes apart.

    Raises:
        InvalidInput: fewer than two classes, one twice, or one that is not there.
    """
    chosen = sorted(classes)
    if len(set(chosen)) < len(chosen) or len(chosen) < 2 or chosen[0] < 0 or chosen[-1] >= data.classes:
        raise InvalidInput(
            f"A task needs two or more different classes of 0..{data.classes - 1}, got {list(classes)}."
        )
    arrays = {}
    for part in ("train", "test"):
        labels = getattr(data, f"{part}_labels")
        kept, relabelled = _relabelled(labels, chosen)
        arrays[f"{part}_images"] = getattr(data, f"{part}_images")[kept]
        arrays[f"{part}_labels"] = relabelled
        if not len(kept):
            raise InvalidInput(f"{data.name} has no {part} images of the classes {chosen}.")
    name = f"{data.name}, classes {', '.join(map(str, chosen))}"
    taken = replace(data, name=name, classes=len(chosen), checksum=checksum_of(arrays), **arrays)
    return Task(name, tuple(chosen), taken)


def hold_out(task: Task, share: float, seed: int) -> tuple[Task, Task]:
    """Divides a task's training images: those that it trains on, and those that are held out to decide by.

    Args:
        task: whose images are divided at random, each class alike. Its test images stay with both parts.
        share: of the images that are held out, above 0 and below 1.
        seed: of the division.

    Raises:
        InvalidInput: the share leaves a part without images.
    """
    train, held_out = task.data.split((1 - share, share), seed=seed)
    return task.only(train), task.only(held_out)


def _relabelled(
    labels: Int64[Tensor, " images"], classes: Sequence[int]
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " kept"]]:
    """Which images have one of these labels, and their labels counted from 0."""
    table = torch.full((int(labels.max()) + 1,), -1, dtype=torch.int64, device=labels.device)
    for place, label in enumerate(classes):
        if label < len(table):
            table[label] = place
    fresh = table[labels]
    kept = (fresh >= 0).nonzero().flatten()
    return kept, fresh[kept]
