"""Chapter 8: whether the tabular benchmark can be made again: twenty of its entries, trained one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import stats

from nasbook.experiments.records import DataSource, Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.seeding import generator
from nasbook.tabular import load_table
from nasbook.tabular.recipe import benchmark_images, train_entry

__all__ = ["ENTRIES", "NEW_SEED", "retrained"]

CHAPTER = "08-ground-truth-and-fair-comparison"

ENTRIES = 20
"""How many rows are drawn."""

NEW_SEED = 1000
"""A seed that the table has no training with."""


def retrain(workplace: Workplace) -> dict[str, Any]:
    """Trains entries alone, by :class:`~nasbook.training.Fit`, where the table was made side by side.

    For every entry ``row``; ``seed``, one of the table's, and the ``stored`` and ``again`` test accuracies with it; and
    ``new``, the test accuracy with a seed that the table does not have.
    """
    table, data = load_table(), benchmark_images(workplace.device)
    workplace.used = DataSource(data.name, data.source, data.checksum)
    draws = generator(workplace.seed, "retrained entries")
    values = []
    for row in torch.randperm(len(table), generator=draws)[:ENTRIES].tolist():
        place = int(torch.randint(len(table.seeds), (), generator=draws))
        genotype = table[row].genotype
        values.append(
            {
                "row": row,
                "seed": table.seeds[place],
                "stored": float(table[row].test_accuracies[place]),
                "again": train_entry(genotype, table.seeds[place], data)[1],
                "new": train_entry(genotype, NEW_SEED + workplace.seed, data)[1],
            }
        )
    return {"entries": values}


def retrained(record: Record) -> dict[str, float]:
    """What a record says of the table.

    ``entries``: how many; ``equal``: how many of them came out as the stored number. ``difference`` and ``largest``:
    mean and largest absolute difference between the stored accuracy and that of the same training again. ``within``:
    share of those that are no further from the stored number than the cell's own spread over trainings. ``expected``:
    share of new trainings that lie in the interval in which 95 % of single new observations lie, mean ± t·s·√(1 + 1/n).
    ``bias``: mean of the new accuracies minus the stored means.
    """
    table = load_table()
    entries = [entry for values in record.values("entries") for entry in values]
    again = np.array([abs(entry["again"] - entry["stored"]) for entry in entries])
    spread = np.array([table[entry["row"]].spread for entry in entries])
    new = np.array([entry["new"] - table[entry["row"]].test_accuracy for entry in entries])
    trainings = len(table.seeds)
    half = stats.t.ppf(0.975, trainings - 1) * spread * np.sqrt(1 + 1 / trainings)
    return {
        "entries": len(entries),
        "equal": int((again == 0).sum()),
        "difference": float(again.mean()),
        "largest": float(again.max()),
        "within": float((again <= spread).mean()),
        "expected": float((np.abs(new) <= half).mean()),
        "bias": float(new.mean()),
    }


register(
    Experiment("truth-retraining", "Twenty entries of the table, trained again one by one", CHAPTER, retrain, least=1)
)
