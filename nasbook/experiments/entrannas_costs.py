"""Chapter 3: what EnTranNAS saves (Table 3, and §4.2 on twelve operations), on supernets of the paper's size.

The images are random: neither memory nor time depends on them. All contestants are built in one run, take steps in
turn, and have the same α in every round, drawn at random, so that their Transit-cells run the same operations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.analysis import peak_memory, saved_activation_bytes
from nasbook.data import ImageData
from nasbook.data.augmentation import Augmentation
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import Verdict
from nasbook.genotypes import Space
from nasbook.methods import entrannas
from nasbook.methods.entrannas import EXTENDED_SPACE, STANDARD_SPACE
from nasbook.supernets import SearchNetwork
from nasbook.training import BilevelUpdate

__all__ = ["ENLARGED", "PAPER_DAYS", "PAPER_MEMORY", "Contestant", "components", "costs"]

CHAPTER = "03-engine-and-transit-cells"

BATCH = 8
"""Images a timed step on a CPU. On CUDA it is the paper's 64."""

COUNTED = 2
"""Images of the pass whose bytes are counted; they grow in proportion."""

ENLARGED = {"DARTS": 1, "Engine- and Transit-cells": 2, "feature sharing": 4, "bottleneck": 8}
"""Table 3: how many times larger a batch the memory saved allows."""

ROUNDS = 5
"""How many steps of each contestant are timed, after one that warms up."""

MEMORY = 11 * 2**30
"""Bytes of the paper's GPU, a GTX 1080 Ti."""

PAPER_MEMORY = {"DARTS": 9.0, "Engine- and Transit-cells": 4.5, "feature sharing": 2.6, "bottleneck": 1.5}
"""Table 3: GiB at a batch of 64, as the components are added."""

PAPER_DAYS = {"DARTS": 0.73, "Engine- and Transit-cells": 0.22, "feature sharing": 0.09, "bottleneck": 0.06}
"""Table 3: GPU-days of a search, each at a batch twice as large as the one before."""


def components() -> dict[str, entrannas.Config]:
    """The rows of Table 3, each with one component more than the one before."""
    darts = entrannas.Config(engine_cells="all", feature_sharing=False, bottleneck=1, engine="readable")
    transit = replace(darts, engine_cells="first")
    shared = replace(transit, feature_sharing=True)
    return {
        "DARTS": darts,
        "Engine- and Transit-cells": transit,
        "feature sharing": shared,
        "bottleneck": replace(shared, bottleneck=4),
    }


class Contestant:
    """One supernet with its update, as a search builds them."""

    def __init__(self, config: entrannas.Config, space: Space, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        images, labels = torch.zeros(20 * batch, 3, 32, 32, dtype=torch.uint8), torch.arange(20 * batch) % 10
        nothing = ImageData(
            name="random",
            train_images=images,
            train_labels=labels,
            test_images=images,
            test_labels=labels,
            classes=10,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            augmentation=Augmentation(),
            source="random",
            checksum="",
        ).to(device)
        search = entrannas.Search(replace(config, batch_size=batch), nothing, space)
        self.batch = batch
        self.network: SearchNetwork = search.network
        self.update: BilevelUpdate = search.update
        self.network.train()
        self.batches = [(torch.randn(batch, 3, 32, 32, device=device), labels[:batch].to(device)) for _ in range(2)]

    def draw(self, seed: int) -> None:
        """Sets α at random: the same on the same space, whatever the supernet."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.network.architecture():
                parameter.copy_(torch.randn(parameter.shape))

    def step(self) -> None:
        """One step on α and one on the weights, first order."""
        self.update.step(*self.batches)

    def saved_bytes(self) -> int:
        """Activations of an image that the weights' step keeps between its forward and its backward pass."""
        images, labels = (part[:COUNTED] for part in self.batches[0])
        return saved_activation_bytes(_Loss(self.network, labels), images) // COUNTED


class _Loss(nn.Module):
    """A module, so that buffers are told from activations."""

    def __init__(self, network: SearchNetwork, labels: Tensor) -> None:
        super().__init__()
        self.network, self.labels = network, labels

    def forward(self, images: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images), self.labels)


def contestants_of(batch: int, device: torch.device) -> dict[str, Contestant]:
    """All supernets by name: rows of Table 3 at one batch and at the paper's larger ones, and twelve operations."""
    found: dict[str, Contestant] = {}
    for engine in ("readable", "fused"):
        for name, config in components().items():
            config = replace(config, engine=engine)
            found[f"{name}, {engine}"] = Contestant(config, STANDARD_SPACE, batch, device)
            if ENLARGED[name] > 1:
                larger = Contestant(config, STANDARD_SPACE, batch * ENLARGED[name], device)
                found[f"{name}, {engine}, enlarged"] = larger
        first = replace(components()["bottleneck"], engine=engine)
        everywhere = replace(first, engine_cells="all")
        found[f"12 operations, {engine}"] = Contestant(first, EXTENDED_SPACE, batch, device)
        larger = Contestant(first, EXTENDED_SPACE, batch * ENLARGED["bottleneck"], device)
        found[f"12 operations, {engine}, enlarged"] = larger
        found[f"7 operations in all cells, {engine}"] = Contestant(everywhere, STANDARD_SPACE, batch, device)
        found[f"12 operations in all cells, {engine}"] = Contestant(everywhere, EXTENDED_SPACE, batch, device)
    return found


def costs(workplace: Workplace) -> dict[str, Any]:
    """Bytes and seconds of a step for the rows of Table 3 and for twelve operations, each on both engines.

    ``seconds`` is the median over rounds. ``ratio`` is the time of readable DARTS for an image over that of the row,
    the median of the rounds' own ratios; rows that end with "enlarged" have the paper's larger batch. On a CPU the
    clock is the process's own.
    """
    device = torch.device(workplace.device)
    cuda = device.type == "cuda"
    contestants = contestants_of(64 if cuda else BATCH, device)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    saved: dict[str, list[int]] = {name: [] for name in contestants}
    for number in range(1 + ROUNDS):
        for name, contestant in contestants.items():
            contestant.draw(seed=number)
            elapsed = _time(contestant.step, device)
            if number:
                seconds[name].append(elapsed / contestant.batch)
                contestant.draw(seed=number)
                saved[name].append(contestant.saved_bytes())
    base = "DARTS, readable"
    values: dict[str, Any] = {}
    for name, contestant in contestants.items():
        kept = statistics.mean(saved[name])
        values[name] = {
            "batch": contestant.batch,
            "seconds": statistics.median(seconds[name]) * contestant.batch,
            "ratio": statistics.median(a / b for a, b in zip(seconds[base], seconds[name], strict=True)),
            "saved_bytes": kept * contestant.batch,
            "saved_ratio": statistics.mean(saved[base]) / kept,
            "largest_batch": int(MEMORY / kept),
        }
        if cuda:
            values[name]["peak_bytes"] = peak_memory(contestant.step, device)
    return values


def _time(step: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _wait(device)
    start = clock()
    step()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _judge_memory(record: Record) -> Verdict:
    rows = {name: record.values(f"{name}, readable") for name in PAPER_MEMORY if name != "DARTS"}
    ratios = {name: min(value["saved_ratio"] for value in values) for name, values in rows.items()}
    least = {name: PAPER_MEMORY["DARTS"] / PAPER_MEMORY[name] for name in ratios}
    numbers = "; ".join(f"with {name} {r:.1f} times less (paper {least[name]:.1f})" for name, r in ratios.items())
    return _cost(sum(ratios[name] >= least[name] for name in ratios), len(ratios), f"saved activations: {numbers}")


def _judge_cost(record: Record) -> Verdict:
    """Reached on the readable engine at the paper's larger batch: holds; on the fused one only: partly."""
    paper = PAPER_DAYS["DARTS"] / PAPER_DAYS["bottleneck"]
    ratios = {
        engine: min(value["ratio"] for value in record.values(f"bottleneck, {engine}, enlarged"))
        for engine in ("readable", "fused")
    }
    found = "; ".join(f"{ratio:.1f} on the {engine} engine" for engine, ratio in ratios.items())
    numbers = f"times faster an image than readable DARTS, with 8 times its batch: {found} (paper {paper:.0f})"
    both = {
        name: [record.values(f"{name}, {engine}")[0]["ratio"] for engine in ratios]
        for name in ENLARGED
        if name != "DARTS"
    }
    steps = "; ".join(f"{name} {readable:.1f} and {fused:.1f}" for name, (readable, fused) in both.items())
    met = [ratio >= paper for ratio in ratios.values()]
    return _cost(2 if met[0] else int(any(met)), 2, f"{numbers}; at equal batch, readable and fused: {steps}")


def _judge_extended(record: Record) -> Verdict:
    """At most a quarter more at the paper's larger batch, on both engines: holds; on one of them: partly."""

    def growth(engine: str, end: str = "") -> float:
        more, base = (record.values(f"{name}, {engine}{end}") for name in ("12 operations", "bottleneck"))
        return max(a["seconds"] / b["seconds"] for a, b in zip(more, base, strict=True)) - 1

    found = {engine: growth(engine, ", enlarged") for engine in ("readable", "fused")}
    numbers = "; ".join(
        f"{more:+.0%} on the {engine} engine with 8 times the batch, {growth(engine):+.0%} at equal batch"
        for engine, more in found.items()
    )
    return _cost(sum(more <= 0.25 for more in found.values()), 2, f"the time of a step: {numbers} (paper +17 %)")


def _cost(met: int, asked: int, numbers: str) -> Verdict:
    """A cost claim holds when all its ratios are reached, partly when some are."""
    if met == asked:
        return Verdict("holds", numbers)
    return Verdict("partly" if met else "does not hold at this scale", numbers)


register(
    Experiment(
        "entrannas-costs",
        "Table 3: memory and time as the components are added; twelve operations instead of seven",
        CHAPTER,
        costs,
        {"entrannas.memory": _judge_memory, "entrannas.cost": _judge_cost, "entrannas.extended": _judge_extended},
        seeded=False,
    )
)
