"""Multiply-adds a second in training, for each kind of network, and the papers' full tables in multiply-adds.

    python benchmarks/throughput.py                             the rates, on a CPU (a minute or two)
    python benchmarks/throughput.py --device cuda --record      on a GPU, into benchmarks/records
    python benchmarks/throughput.py --tables --record           and the tables (some minutes: their networks are built)

A rate is the multiply-adds that :mod:`nasbook.experiments.budgets` counts, over the seconds of a whole training step:
batch norms, pools, the optimiser and everything else that is not counted takes its time too. Kinds of network:

* "supernet": a first-order step of DARTS at C=16, 8 cells, on the fused engine; counted as the readable algorithm;
* "cells": a training step of DARTS_V2 at C=36, 20 cells, channels-last, as :class:`nasbook.training.Fit` makes it;
* "plain": VGG-19 with its standard widths;
* "recurrent": DARTS' recurrent backbone of 4 nodes and 128 units, with its language head of 10,000 words.

On a CPU the clock is the process's own, as other programs may share the cores; on CUDA it is the wall's. On CUDA steps
run in float32 as torch does by default.

Rows of kind "rate" have ``network``, ``batch`` (images, or words), ``macs`` of a step, ``seconds`` and
``macs_per_second``. With ``--tables`` there are rows of kind "row", with the fields of
:class:`nasbook.experiments.budgets.Cost`; their ``kind`` is called ``network``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import _measure as measure
import derived_training
import search_step
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from nasbook.analysis.recurrent import darts_parameters
from nasbook.experiments.budgets import Cost, count_passes, paper_costs
from nasbook.genotypes import DARTS_V2
from nasbook.networks import RECURRENT_BACKBONES, VGG, DerivedNetwork, build_recurrent_cell
from nasbook.training import FitConfig

NODES, HIDDEN, WORDS, STEPS = 4, 128, 10_000, 35


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 5
    """How many times each contestant is timed, after one time that warms up."""
    batch: int = 0
    """Images, or sequences, a step; 0 for 64 on CUDA and 8 on a CPU."""
    tables: bool = False
    """Also count the papers' tables."""


@dataclass(frozen=True)
class Contestant:
    """A training step."""

    step: Callable[[], Any]
    batch: int
    macs: int


def supernet(batch: int, device: torch.device) -> Contestant:
    setting = search_step.SETTINGS["paper"]
    passes = count_passes(setting.network("readable"), (setting.image[0], setting.image[1], setting.image[1]))
    data = setting.data(batch, device), setting.data(batch, device)
    step = search_step.Contestant("fused", "", setting.network("fused"), *data, ["first-order"])
    return Contestant(lambda: step.step("first-order"), batch, batch * passes.step("first-order"))


def cells(batch: int, device: torch.device) -> Contestant:
    passes = count_passes(DerivedNetwork(DARTS_V2, 36, 20, auxiliary=True), (3, 32, 32))
    config = FitConfig(batch_size=batch, channels_last=True, drop_path=derived_training.DROP_PATH)
    training = derived_training.Training(derived_training.Options(), config, device, 1)
    return Contestant(training.run, batch, batch * passes.weights)


def plain(batch: int, device: torch.device) -> Contestant:
    network = VGG("vgg19")
    passes = count_passes(network, (3, 32, 32))
    network.to(device)
    images, labels = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    return Contestant(_training(network, images, labels), batch, batch * passes.weights)


class LanguageModel(nn.Module):
    """One cell with all candidates between an embedding and the scores of the words."""

    def __init__(self) -> None:
        super().__init__()
        space = RECURRENT_BACKBONES["darts"].space(NODES)
        self.embedding, self.head = nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, WORDS)
        self.cell = build_recurrent_cell("darts", space, HIDDEN, HIDDEN)
        shape = len(space.edges), len(space.operations)
        self.coefficients = nn.Parameter(torch.full(shape, 1 / shape[1]))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        states = self.cell(self.embedding(words), self.coefficients)
        return self.head(states if isinstance(states, torch.Tensor) else states[0]).flatten(0, 1)


def recurrent(batch: int, device: torch.device) -> Contestant:
    words = torch.randint(WORDS, (STEPS, batch), device=device)
    matrices = darts_parameters([HIDDEN, HIDDEN], NODES) - 5 * NODES + HIDDEN * WORDS
    step = _training(LanguageModel().to(device), words, words.flatten())
    return Contestant(step, words.numel(), 3 * words.numel() * matrices)


KINDS: dict[str, Callable[[int, torch.device], Contestant]] = {
    "supernet": supernet,
    "cells": cells,
    "plain": plain,
    "recurrent": recurrent,
}


def _training(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return step


def measure_rates(options: Options, device: torch.device) -> list[measure.Row]:
    """One row a kind of network."""
    cuda = device.type == "cuda"
    batch = options.batch or (64 if cuda else 8)
    contestants = {name: build(batch, device) for name, build in KINDS.items()}
    clock = time.perf_counter if cuda else time.process_time
    steps = {name: contestant.step for name, contestant in contestants.items()}
    seconds = measure.interleave(steps, options.rounds, device, clock=clock)
    rows = []
    for name, contestant in contestants.items():
        row = {"kind": "rate", "network": name, "batch": contestant.batch, "macs": contestant.macs}
        row.update(measure.summary(seconds[name]))
        rows.append({**row, "macs_per_second": contestant.macs / row["seconds"]})
    return rows


def counted_tables() -> list[measure.Row]:
    """One row for each row of the papers' tables."""
    costs = [asdict(cost) for cost in paper_costs()]
    return [{"kind": "row", "network": cost.pop("kind"), **cost} for cost in costs]


def cost_of(row: measure.Row) -> Cost:
    """The row of a table as it was counted."""
    return Cost(kind=row["network"], **{name: row[name] for name in row if name not in ("kind", "network")})


RATES = {
    "network": "network",
    "batch": "batch",
    "macs": "multiply-adds G",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "macs_per_second": "multiply-adds G/s",
}
TABLES = {
    "paper": "paper",
    "table": "table",
    "row": "row",
    "work": "work",
    "multiply_adds": "multiply-adds G",
    "runs": "runs",
    "days": "GPU-days",
}


def main(options: Options) -> None:
    device = options.prepare()
    tables: list[measure.Table] = [(RATES, measure_rates(options, device))]
    if options.tables:
        tables.append((TABLES, counted_tables()))
    measure.finish(options, "throughput", "", "Multiply-adds a second in training", tables)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
