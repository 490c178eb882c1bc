"""Chapter 7: what is exact about Firefly's continual learning: no earlier task loses anything, to the last bit."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasbook.continual import Backbone, MasterNetwork, Task, axes_of, split_classes
from nasbook.continual.ownership import NEW
from nasbook.data import evaluation_batches
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import Verdict, exact
from nasbook.methods.firefly_continual import Config, FireflyContinual
from nasbook.seeding import generator

__all__ = ["BACKBONES", "distinct_entries", "exact_results", "learned_in_order"]

CHAPTER = "07-firefly-cells-and-continual-learning"

BACKBONES: dict[str, tuple[str, tuple[int, ...]]] = {
    "VGG-11": ("vgg11", (4,) * 8),
    "MobileNetV1": ("mobilenet-v1", (4,) * 14),
    "perceptron": ("perceptron", (6, 5)),
}
"""Families of networks on which the checks run: by name the backbone and its first widths."""

SHORT = Config(
    epochs=8,
    mask_epochs=4,
    direction_epochs=1,
    neurons=6,
    new_neurons=3,
    batch_size=10,
    learning_rate=0.02,
    mask_rate=1e-3,
    growths=2,
)
"""Short phases, two growths a task, and a rate at which masks leave some neurons out after two steps. Long enough for
the running statistics to follow the batches: before that, a deep thin network gives the same to all images, and then
equal outputs say little."""

ASKED = 32
"""How many images every network is asked about."""

AWAKE = 1e-3
"""Standard deviation of a logit over images from which a network tells them apart."""


class _Remembering(FireflyContinual):
    """Asks the network of each task when it has been trained, before the master network has it."""

    pixels: Tensor
    outputs: list[Tensor]

    def end_task(self) -> None:
        with torch.no_grad():
            self.outputs.append(self.plain.eval()(self.pixels))
        super().end_task()


def learned_in_order(
    tasks: Sequence[Task], backbone: Backbone, pixels: Tensor, seed: int = 0
) -> tuple[MasterNetwork, list[Tensor]]:
    """The master network after all tasks, and what each task's network gave when it had just been trained.

    Args:
        tasks: in their order.
        backbone: of the first.
        pixels: normalised images that every network is asked about.
        seed: of the learner.
    """
    run = _Remembering(tasks, SHORT, backbone, seed=seed)
    run.pixels, run.outputs = pixels, []
    for _ in run.epochs():
        pass
    return run.master, run.outputs


def distinct_entries(master: MasterNetwork) -> int:
    """Parameters of all tasks' networks, counted one by one, each stored one once.

    Independent of how the master network counts: goes through the entries of every task's network, names each by its
    neurons (a copy by its original where an older neuron reads it) and counts the different names. Not stored is a
    weight between two neurons that did not meet in the network of the task that made the later of them; it is zero.

    Raises:
        AssertionError: a weight that is not stored is not zero.
    """
    found: set[tuple[Any, ...]] = set()
    for number, part in enumerate(master.tasks):
        network = master.network(number)
        axes = axes_of(network)
        for name, parameter in network.named_parameters():
            here = axes[name]
            if here.writes is None:
                found |= {(name, number, place) for place in range(parameter.numel())}
                continue
            for row, neuron in enumerate(part.chosen[here.writes].tolist()):
                entries = parameter.detach()[row].flatten()
                if here.reads is None:
                    found |= {(name, neuron, place) for place in range(len(entries))}
                    continue
                each = len(entries) // len(part.chosen[here.reads])
                for column, read in enumerate(part.chosen[here.reads].tolist()):
                    source = _as_read_by(master, here.writes, neuron, here.reads, read)
                    if _met(master, here.writes, neuron, here.reads, source):
                        found |= {(name, neuron, source, place) for place in range(each)}
                    else:
                        assert not entries[column * each : (column + 1) * each].any()
    return len(found)


def _met(master: MasterNetwork, writes: str, neuron: int, reads: str, source: int) -> bool:
    """Whether the task that made the later of two neurons has the one read the other, or a copy of it."""
    later = max(int(master.made_by[writes][neuron]), int(master.made_by[reads][source]))
    chosen = master.tasks[later].chosen
    return neuron in chosen[writes].tolist() and any(
        _as_read_by(master, writes, neuron, reads, read) == source for read in chosen[reads].tolist()
    )


def _as_read_by(master: MasterNetwork, writes: str, neuron: int, reads: str, read: int) -> int:
    """The neuron by whose weight another one reads this one: the original, if the reader is older than the copy."""
    made = int(master.made_by[writes][neuron])
    while int(master.made_by[reads][read]) > made and int(master.copy_of[reads][read]) != NEW:
        read = int(master.copy_of[reads][read])
    return read


def exact_results(workplace: Workplace) -> dict[str, Any]:
    """For every family and order of tasks: outputs compared and equal, unions of masks, and both ways to count."""
    data = workplace.data
    tasks = split_classes(data, 5, seed=0)
    pixels, _ = next(evaluation_batches(data.test_images, data.test_labels, ASKED, data.mean, data.std))
    found: dict[str, Any] = {}
    for family, (name, widths) in BACKBONES.items():
        backbone = Backbone(name, widths, data.channels, data.size)
        compared = equal = awake = unions = counts = reloaded = networks = copies = 0
        for order in _orders(family):
            master, outputs = learned_in_order([tasks[place] for place in order], backbone, pixels)
            with tempfile.TemporaryDirectory() as folder:
                again = MasterNetwork.load(master.save(Path(folder) / "master.safetensors"))
            for number, before in enumerate(outputs):
                with torch.no_grad():
                    compared += 1
                    awake += bool(before.std(0).max() > AWAKE)
                    equal += torch.equal(master.network(number)(pixels), before)
                    reloaded += torch.equal(again.network(number)(pixels), before)
            unions += _covers(master)
            counts += master.parameters() == distinct_entries(master)
            copies += sum(int((sources != NEW).sum()) for sources in master.copy_of.values())
            networks += 1
        found[family] = {
            "masters": networks,
            "outputs": compared,
            "awake": awake,
            "equal": equal,
            "equal_reloaded": reloaded,
            "unions": unions,
            "counts": counts,
            "copies": copies,
        }
    return found


def _orders(family: str) -> Iterator[tuple[int, ...]]:
    """All orders of the first three tasks; of all five, six orders drawn at random, for one family."""
    yield from itertools.permutations(range(3))
    if family == "VGG-11":
        for draw in range(6):
            yield tuple(torch.randperm(5, generator=generator(0, "order", draw)).tolist())


def _covers(master: MasterNetwork) -> bool:
    """Whether every neuron is in the mask of a task."""
    masks = [master.mask(task) for task in range(len(master))]
    return all(bool(torch.stack([mask[name] for mask in masks]).any(0).all()) for name in master.widths)


def _judge_exact(record: Record) -> Verdict:
    found = record.measurements[0].values
    outputs, equal, reloaded = (sum(v[k] for v in found.values()) for k in ("outputs", "equal", "equal_reloaded"))
    awake = sum(v["awake"] for v in found.values())
    masters, unions, counts = (sum(v[k] for v in found.values()) for k in ("masters", "unions", "counts"))
    numbers = (
        f"{equal} of {outputs} networks give the bits that they gave when they were trained, {reloaded} after a file "
        f"({awake} tell images apart); "
        f"{unions} of {masters} unions of masks are the master network; {counts} of {masters} counts agree"
    )
    # Equal outputs say little where all images give the same; a thin network may end there.
    enough = awake >= 0.9 * outputs
    return exact(equal == reloaded == outputs and enough and unions == counts == masters, numbers)


register(
    Experiment(
        "continual-exact",
        "No forgetting: bits, masks and counts of the master network, for all orders of tasks",
        CHAPTER,
        exact_results,
        {"firefly.no-forgetting": _judge_exact},
        seeded=False,
    )
)
