"""Chapter 7: cells by growing (Firefly, §3, Table 1, B.3).

Searches on the same images; every found cell is trained from scratch in a network of as many cells and, as nearly as
channels allow, as many parameters as a network of DARTS' published cell has at this scale.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from nasbook.analysis import count_parameters
from nasbook.experiments.continual_scale import continual_scale
from nasbook.experiments.image_cells import (
    firefly_cells_config,
    firefly_cells_space,
    random_search_config,
    search_config,
    train_derived,
)
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.genotypes import DARTS_OPERATIONS, DARTS_V2, Genotype, Space, random_genotype
from nasbook.methods import darts, firefly_cells, random_search
from nasbook.networks import CELL_SECTIONS, parameters_of
from nasbook.seeding import fold_seed, generator

__all__ = ["CELL_ROWS", "PAPER_TABLE_1", "cells"]

CHAPTER = "07-firefly-cells-and-continual-learning"

CELL_ROWS = (
    "Firefly",
    "Firefly, two edges",
    "Firefly with ReLU",
    "random cells",
    "random search",
    "DARTS (first order)",
    "DARTS (second order)",
)
"""The rows of our Table 1. Two edges keeps the two edges of each node that grew most; with ReLU, a σ stands before the
linear transform; random cells are drawn from Firefly's own answers: one of its operations or the identity on each edge
of five cells."""

PAPER_TABLE_1 = {
    "random search": (4.0, 3.2, 3.29, 0.15),
    "DARTS (first order)": (1.5, 3.3, 3.00, 0.14),
    "DARTS (second order)": (4.0, 3.3, 2.76, 0.09),
    "Firefly": (1.5, 3.3, 2.78, 0.05),
}
"""The paper's Table 1: GPU days of the search, millions of parameters, test error in % and its deviation."""


def cells(workplace: Workplace) -> dict[str, Any]:
    """Firefly's search, its variants, DARTS and random search, each cell trained from scratch at equal size."""
    scale, data, seed = continual_scale(workplace.scale), workplace.data, workplace.seed
    count = max(scale.cells, len(CELL_SECTIONS))
    size = parameters_of(DARTS_V2, scale.channels, count, data.classes, in_channels=data.channels)
    values: dict[str, Any] = {"parameters": size, "cells": count}

    def evaluate(label: str, genotype: Genotype, seconds: float, weights: int) -> None:
        found = train_derived(workplace, genotype, f"train {label}", cells=count, parameters=size)
        values[label] = {**found, "seconds": round(seconds, 1), "search_parameters": weights}

    plain = firefly_cells_config(scale)
    for label, config in (("Firefly", plain), ("Firefly with ReLU", replace(plain, activation="relu"))):
        run = firefly_cells.Search(config, data, firefly_cells_space(scale), seed=fold_seed(seed, "search"))
        workplace.drive(run, f"search {label}")
        seconds, weights = sum(report.seconds for report in run.history), count_parameters(run.network)
        genotype = run.result().genotype
        evaluate(label, genotype, seconds, weights)
        values[label] |= _growths(run)
        if config is plain:
            pairs = {
                kind: firefly_cells.derive_cell(
                    run.network.operation_widths(place), run.network.starting_widths()[kind], edges_per_node=2
                )
                for place, kind in enumerate(CELL_SECTIONS)
            }
            evaluate("Firefly, two edges", Genotype(pairs), seconds, weights)
    answers = replace(run.space, operations=(*run.space.operations, firefly_cells.IDENTITY))
    evaluate("random cells", random_genotype(answers, generator(seed, "random cells")), 0.0, 0)

    space = Space(tuple(name for name in DARTS_OPERATIONS if name in scale.operations), scale.nodes)
    started = time.perf_counter()
    drawn = random_search.Search(random_search_config(scale), data, space, seed=fold_seed(seed, "search"))
    workplace.drive(drawn, "random search")
    evaluate("random search", drawn.result().genotype, time.perf_counter() - started, 0)
    first = replace(search_config(scale), order="first-order")
    second = replace(first, order="second-order")
    for label, own in (("DARTS (first order)", first), ("DARTS (second order)", second)):
        search = darts.Search(own, data, space, seed=fold_seed(seed, "search"))
        workplace.drive(search, f"search {label}")
        seconds = sum(report.seconds for report in search.history)
        evaluate(label, search.result().genotype, seconds, count_parameters(search.network))
    return values


def _growths(run: firefly_cells.Search) -> dict[str, Any]:
    """What the growths did: kinds of candidates that were kept, predictions, and each cell's widths at the end."""
    splits = new = 0
    for event in run.events:
        for name, *arguments in event.cuts:
            if name == "rewire":
                for sources in arguments[0].values():
                    fresh = sum(source < 0 for source in sources)
                    new += fresh
                    splits += len(sources) - fresh - len({source for source in sources if source >= 0})
    return {
        "splits": splits,
        "new": new,
        "predicted": [event.predicted for event in run.events],
        "change": [event.loss_after - event.loss_before for event in run.events],
        "widths": [
            [list(own.values()) for own in run.network.operation_widths(place).values()]
            for place in range(len(CELL_SECTIONS))
        ],
        "identities": sum(name == firefly_cells.IDENTITY for name in run.result().genotype.operations()),
    }


def _judge_cells(record: Record) -> Verdict:
    ours = np.array([value["test_accuracy"] for value in record.values("Firefly")])
    found: dict[str, np.ndarray] = {}
    for label in ("random cells", "DARTS (first order)", "DARTS (second order)"):
        found[label] = ours - np.array([value["test_accuracy"] for value in record.values(label)])
    p = {label: one_sided_p(differences) for label, differences in found.items()}
    texts = "; ".join(f"{mean_and_error(d)} above {label}, p = {p[label]:.2f}" for label, d in found.items())
    numbers = f"Firefly {mean_and_error(ours)}: {texts}; {len(record.measurements)} seeds"
    # It has to beat cells drawn at random from its own answers, and to be no worse than DARTS on average (Table 1).
    right = all(differences.mean() >= 0 for differences in found.values())
    return trend(right, p["random cells"] < LEVEL, numbers)


register(
    Experiment(
        "firefly-cells",
        "Table 1's search row: cells by growing, against DARTS, random search and random cells",
        CHAPTER,
        cells,
        {"firefly.cells": _judge_cells},
        scaled=continual_scale,
    )
)
