"""Chapter 8: all methods of the book and the baselines that they have to beat, in one table.

The rules:

* Same images, same division into training, choosing and test images, for every row.
* Same space, supernets of one size, and about as many epochs each: those that go in cycles or stages divide them, and
  have some more or fewer. What their steps cost is counted. PR-DARTS and Firefly bring operations of their own, as
  their papers do.
* Methods that train cells one by one get as many cells as DARTS' first-order search pays for, at the mean cost of ten
  random ones, and at most a given number.
* Every found cell is trained from scratch by one recipe, with one number of channels and cells, on all training images,
  and tested once. One search and one training a seed.
* A row is compared with random search over the same seeds, by a paired t test, corrected by Holm's rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from nasbook.analysis import (
    Interval,
    PairedTest,
    count_macs,
    holm,
    mean_interval,
    paired_test,
    pareto_front,
    smallest_detectable,
)
from nasbook.errors import InvalidInput, TrainingDiverged
from nasbook.experiments.comparison_scale import ComparisonScale, comparison_scale
from nasbook.experiments.fair_searches import SUPERNETS, SearchSize, counted_search, search_macs, step_macs
from nasbook.experiments.image_cells import derived_network, train_derived
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.genotypes import random_genotype
from nasbook.methods import local_search, random_search, regularized_evolution
from nasbook.networks import DerivedNetwork
from nasbook.seeding import generator
from nasbook.training import Fit

__all__ = ["BASELINES", "COMPARED", "RANDOM_CELL", "ComparisonRow", "comparison_rows", "samples_within"]

CHAPTER = "08-ground-truth-and-fair-comparison"

RANDOM_CELL = "random cell"
"""The row that searches nothing."""

BASELINES: dict[str, Callable[..., Any]] = {
    "random search": lambda settings, *task: random_search.Search(random_search.Config(**settings), *task),
    "regularised evolution": lambda settings, *task: regularized_evolution.Search(
        regularized_evolution.Config(**settings, **_population(settings["samples"])), *task
    ),
    "local search": lambda settings, *task: local_search.Search(
        local_search.Config(**settings, move="first-better"), *task
    ),
}
"""Methods that train cells one by one."""

COMPARED = (*SUPERNETS, *BASELINES, RANDOM_CELL)
"""The rows of the table."""


def _population(samples: int) -> dict[str, Any]:
    """A third of the samples live; a quarter of them, but two at least, are in a tournament."""
    population = max(2, samples // 3)
    return {"population": population, "tournament": min(population, max(2, population // 4))}


def _scale(workplace: Workplace) -> ComparisonScale:
    assert isinstance(workplace.scale, ComparisonScale)  # the registry saw to it
    return workplace.scale


def search_size(scale: ComparisonScale) -> SearchSize:
    """What all searches at a scale have in common."""
    return SearchSize(scale.space, scale.search_epochs, scale.search_batch, scale.search_channels, scale.search_cells)


def samples_within(budget: float, macs: float, most: int) -> int:
    """How many cells can be trained for a budget, at least four, so that evolution has a population.

    Args:
        budget: multiply-adds.
        macs: of the training of one cell.
        most: at most so many.
    """
    return max(4, min(most, int(budget / macs)))


def compare(workplace: Workplace) -> dict[str, Any]:
    """A search and a training by every method, with one seed.

    For each row: ``test_accuracy``, ``train_accuracy``, ``parameters`` and ``macs`` of the found network, its
    ``genotype``; ``search_macs``, multiply-adds of all steps of the search; ``search_seconds``; ``passes``, epochs of
    the search; ``samples``, cells that were trained. A row whose search or training diverged has ``failed``.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    size = search_size(scale)
    steps = len(data.train_labels) // 2 // size.batch_size
    values: dict[str, Any] = {}
    budget = float(search_macs("DARTS, first order", size, data, seed) * steps * size.epochs)
    cell = random_genotype(size.without_zero, generator(seed, "random cell"))
    settings: dict[str, Any] = {
        "epochs": scale.sample_epochs,
        "batch_size": size.batch_size,
        "channels": size.channels,
        "cells": size.cells,
        "learning_rate": size.learning_rate,
    }
    one = random_search.Search(random_search.Config(**settings, samples=1), data, size.without_zero, seed)
    macs_of_sample = _sample_macs(one) * steps * scale.sample_epochs
    for name in COMPARED:
        spent: dict[str, Any] = {"search_macs": 0.0, "search_seconds": 0.0, "passes": 0, "samples": 0}
        try:
            genotype = cell
            if name in BASELINES:
                samples = samples_within(budget, macs_of_sample, scale.most_samples)
                search = BASELINES[name]({**settings, "samples": samples}, data, size.without_zero, seed)
                workplace.drive(search, f"search {name}")
                spent.update(search_macs=macs_of_sample * samples, samples=samples)
            elif name in SUPERNETS:
                search = counted_search(name, size, data, seed)
                workplace.drive(search, f"search {name}")
                spent.update(search_macs=sum(report.measured["macs"] for report in search.history))
            if name != RANDOM_CELL:
                result = search.result()
                genotype = result.genotype
                spent.update(search_seconds=round(result.seconds, 1), passes=len(search.history))
            network = derived_network(genotype, scale, data, seed)
            macs = count_macs(network.eval(), (1, data.channels, data.size, data.size))
            values[name] = {**spent, "macs": macs, **train_derived(workplace, genotype, f"train {name}")}
        except TrainingDiverged as error:
            values[name] = {**spent, "failed": str(error)}
    return values


def _sample_macs(search: random_search.Search) -> float:
    """Multiply-adds of a training step, the mean over ten cells of the search's space."""
    counts, config = [], search.config
    for sample in range(10):
        genotype = search.proposer.propose((), generator(search.seed, "counted", sample))
        with torch.random.fork_rng(devices=[]):
            network = DerivedNetwork(
                genotype, config.channels, config.cells, search.data.classes, in_channels=search.data.channels
            )
        counts.append(step_macs(Fit(network, search.data, config.training())))
    return float(np.mean(counts))


# --- what a record says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparisonRow:
    """One method's row of the table."""

    name: str
    """The method."""
    accuracies: Float[np.ndarray, " seeds"]
    """Test accuracy of every seed."""
    accuracy: Interval
    """Their mean, at 95 %."""
    search_macs: float
    """Multiply-adds of the search, mean."""
    search_seconds: float
    """Wall time of the search, mean."""
    passes: float
    """Epochs of the search, of all trainings where cells are trained one by one; mean."""
    parameters: float
    """Of the found networks, mean."""
    macs: float
    """Multiply-adds of the found networks for one image, mean."""
    test: PairedTest | None
    """Against random search; None for itself."""
    p: float | None
    """Its p, corrected by Holm's rule over all rows."""
    detectable: float | None
    """The smallest difference from random search that so many seeds find in four of five experiments."""
    on_front: bool
    """Whether no other row is both better and cheaper to search."""
    failed: int
    """Seeds without a result; they are left out of every row."""


def comparison_rows(record: Record) -> list[ComparisonRow]:
    """The table of a record, in the order of :data:`COMPARED`. Seeds in which a row failed are left out of all rows.

    Raises:
        InvalidInput: fewer than two seeds have all rows, or the record is of another experiment.
    """
    if any(name not in m.values for m in record.measurements for name in COMPARED):
        raise InvalidInput(f"A comparison has the rows {', '.join(COMPARED)}; a measurement of this record has not.")
    whole = [m.values for m in record.measurements if not any("failed" in m.values[name] for name in COMPARED)]
    if len(whole) < 2:
        raise InvalidInput(f"A comparison needs two seeds in which no row failed; this record has {len(whole)}.")

    def column(name: str, key: str) -> Float[np.ndarray, " seeds"]:
        return np.array([float(values[name][key]) for values in whole])

    base = column("random search", "test_accuracy")
    tests = {
        name: paired_test(column(name, "test_accuracy"), base) for name in COMPARED if name != "random search"
    }
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    means = np.array([column(name, "test_accuracy").mean() for name in COMPARED])
    costs = np.array([column(name, "search_macs").mean() for name in COMPARED])
    front = pareto_front(costs, means)
    rows = []
    for place, name in enumerate(COMPARED):
        accuracies = column(name, "test_accuracy")
        deviation = float((accuracies - base).std(ddof=1))
        rows.append(
            ComparisonRow(
                name,
                accuracies,
                mean_interval(accuracies),
                float(costs[place]),
                float(column(name, "search_seconds").mean()),
                float(column(name, "passes").mean()),
                float(column(name, "parameters").mean()),
                float(column(name, "macs").mean()),
                tests.get(name),
                corrected.get(name),
                smallest_detectable(deviation, len(whole)) if name in tests else None,
                bool(front[place]),
                sum("failed" in m.values[name] for m in record.measurements),
            )
        )
    return rows


register(
    Experiment(
        "comparison",
        "All methods of the book and three baselines: same data, same budget, same training",
        CHAPTER,
        compare,
        scaled=comparison_scale,
    )
)
