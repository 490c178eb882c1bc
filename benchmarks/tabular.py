"""What the table of all cells costs to ask, and to make: look-ups, and networks trained side by side.

    python benchmarks/tabular.py
    python benchmarks/tabular.py --networks 1 4 24 96
    python benchmarks/tabular.py --device cuda

Rows have ``work`` and the time of one thing, not of all that were done:

* "load" reads the file in the package;
* "look-up" finds a cell's entry by its genotype, in any labelling, and reads its accuracy; the first time, when the
  entry is made, and "again";
* "neighbours" finds the entries of the cells around a cell;
* "train" is one network's share of an epoch of the table's recipe, evaluation of the held-out images included: with
  ``networks`` 1 alone, by the same loop as every derived network, else so many side by side. The cells are the same
  ones every time. ``speed_up`` is how many times less than alone, the median of the rounds, with its quartiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import _measure as measure
import torch
import tyro

from nasbook.genotypes import Genotype
from nasbook.tabular import TABULAR_SPACE, Table, genotype_of, load_table
from nasbook.tabular.recipe import RECIPE, benchmark_images, build_trainee
from nasbook.tabular.space import all_codes, canonical_codes
from nasbook.tabular.table import _load
from nasbook.training import Fit
from nasbook.training.side_by_side import train_side_by_side


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    networks: tuple[int, ...] = (1, 24)
    """How many are trained together; 1 is always there."""


def load() -> Table:
    """The table from its file."""
    _load.cache_clear()
    return load_table()


def ask_all(table: Table, genotypes: Sequence[Genotype]) -> None:
    for genotype in genotypes:
        assert table[genotype].test_accuracy > 0


def measure_look_ups(options: Options) -> list[measure.Row]:
    """A row for each way to ask."""
    genotypes = [genotype_of(code) for code in all_codes()]
    asked = load()
    ask_all(asked, genotypes)
    fresh: list[Table] = []

    def read() -> None:
        fresh[:] = [load()]

    # Each round loads the table anew, so that all of its entries have yet to be made.
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "load": (read, 1),
        "look-up": (lambda: ask_all(fresh[0], genotypes), len(genotypes)),
        "look-up again": (lambda: ask_all(fresh[0], genotypes), len(genotypes)),
        "neighbours": (lambda: [asked.neighbours(row) for row in range(len(asked))], len(asked)),
    }
    seconds = measure.interleave({name: run for name, (run, _) in work.items()}, options.rounds)
    return [
        {"work": name, **measure.summary([value / count for value in seconds[name]])}
        for name, (_, count) in work.items()
    ]


def measure_training(options: Options, device: torch.device) -> list[measure.Row]:
    """A row for each number of networks."""
    data = benchmark_images(device)
    config = replace(RECIPE, epochs=1)
    counts = sorted({1, *options.networks})
    # Those with one node only have fewer outputs, and train apart.
    every = [genotype_of(code) for code in canonical_codes()]
    whole = [cell for cell in every if len(cell["reduction"].output) == TABULAR_SPACE.nodes]
    cells = [whole[place * len(whole) // counts[-1]] for place in range(counts[-1])]

    def train(count: int) -> None:
        """The same cells, so many at a time."""
        trainees = [build_trainee(cell, 0, data) for cell in cells]
        for first in range(0, len(trainees), count):
            group = trainees[first : first + count]
            if count > 1:
                train_side_by_side(group, data, config)
                continue
            (one,) = group
            halves = {"train_indices": one.train_indices, "held_out": one.held_out}
            list(Fit(one.network.to(device), data, config, **halves).epochs())

    runs = {str(count): partial(train, count) for count in counts}
    found = measure.interleave(runs, options.rounds, device)
    rows = []
    for count in counts:
        each = [value / len(cells) for value in found[str(count)]]
        ratios = measure.summary([one / own for one, own in zip(found["1"], found[str(count)], strict=True)])
        rows.append({
            "work": "train", "networks": count, **measure.summary(each), "speed_up": ratios["seconds"],
            "speed_up_low": ratios["seconds_low"], "speed_up_high": ratios["seconds_high"],
        })  # fmt: skip
    return rows


ASKED = {"work": "work", "seconds": "ms", "seconds_low": "quartiles ms", "seconds_high": "ms"}
TRAINED = {
    "networks": "networks",
    "seconds": "an epoch of one ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "speed_up": "times as fast",
    "speed_up_low": "quartiles",
    "speed_up_high": "times",
}


def main(options: Options) -> None:
    device = options.prepare()
    asked, trained = measure_look_ups(options), measure_training(options, device)
    measure.finish(options, "tabular", "", "the table of all cells", [(ASKED, asked), (TRAINED, trained)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
