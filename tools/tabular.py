"""Makes nasbook/tabular/digits.npz: trains every cell of the benchmark's space, many at a time (Chapter 8).

    python tools/tabular.py --work work --out nasbook/tabular/digits.npz      # 45 minutes of one core
    python tools/tabular.py --work work --part 0/2 & python tools/tabular.py --work work --part 1/2; wait

Groups of cells are trained side by side. A finished group is a file in --work, so that a stopped run goes on where it
was, and several processes take a part each. The last step collects them, once all groups are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import nasbook
from nasbook.analysis import count_macs, count_parameters
from nasbook.experiments.records import _commit, _processor
from nasbook.files import whole_file
from nasbook.tabular.recipe import CELLS, CHANNELS, RECIPE, SEEDS, benchmark_images, build_trainee
from nasbook.tabular.space import canonical_codes, genotype_of
from nasbook.training.side_by_side import evaluate_side_by_side, train_side_by_side

GROUP = 24
"""Cells trained side by side: more don't fit into the caches, fewer pay for the calls."""


def groups() -> list[tuple[int, list[int]]]:
    """(seed, rows) of what is trained together: cells with as many output nodes."""
    codes = canonical_codes()
    outputs = [len(genotype_of(code)["reduction"].output) for code in codes]
    found = []
    for seed in SEEDS:
        for count in (1, 2):
            rows = [row for row, own in enumerate(outputs) if own == count]
            found += [(seed, rows[start : start + GROUP]) for start in range(0, len(rows), GROUP)]
    return found


def train_group(seed: int, rows: list[int], path: Path) -> None:
    """Trains one group and writes what was measured."""
    data = benchmark_images()
    genotypes = [genotype_of(canonical_codes()[row]) for row in rows]
    start = time.process_time()
    trainees = [build_trainee(genotype, seed, data) for genotype in genotypes]
    reports, together = train_side_by_side(trainees, data, RECIPE)
    seconds = (time.process_time() - start) / len(rows)
    images = len(data.test_labels)
    loss, accuracy = evaluate_side_by_side(together, [(data.test_images, data.test_labels)] * len(rows), data)
    held_out = len(data.train_labels) // 2
    image = (1, data.channels, data.size, data.size)
    values = {
        "rows": np.array(rows),
        "seed": np.array(seed),
        "train_loss": np.stack([report.train_loss.numpy() for report in reports], 1),
        "validation_loss": np.stack([report.validation_loss.numpy() for report in reports], 1),
        "validation_correct": np.stack([(r.validation_accuracy * held_out).round().numpy() for r in reports], 1),
        "test_loss": loss.numpy(),
        "test_correct": (accuracy * images).round().numpy(),
        "seconds": np.full(len(rows), seconds),
        "parameters": np.array([count_parameters(network) for network in together.networks]),
        "macs": np.array([count_macs(network.eval(), image) for network in together.networks]),
    }
    with whole_file(path) as file:
        np.savez(file, **values)


def collect(work: Path, out: Path) -> None:
    """Puts the groups together."""
    codes = canonical_codes()
    shape = (len(codes), len(SEEDS))
    curves = (*shape, RECIPE.epochs)
    arrays = {
        "codes": np.array(codes, np.uint8),
        "train_loss": np.full(curves, np.nan, np.float16),
        "validation_loss": np.full(curves, np.nan, np.float16),
        "validation_correct": np.zeros(curves, np.uint16),
        "test_loss": np.full(shape, np.nan, np.float16),
        "test_correct": np.zeros(shape, np.uint16),
        "seconds": np.full(shape, np.nan, np.float16),
        "parameters": np.zeros(len(codes), np.int32),
        "macs": np.zeros(len(codes), np.int32),
    }
    for number, (seed, expected) in enumerate(groups()):
        with np.load(work / f"{number}.npz") as group:
            rows, column = group["rows"], SEEDS.index(seed)
            assert (int(group["seed"]), rows.tolist()) == (seed, expected)
            for name in ("parameters", "macs"):
                arrays[name][rows] = group[name]
            for name in arrays.keys() - {"codes", "parameters", "macs"}:
                arrays[name][rows, column] = group[name]
    data = benchmark_images()
    provenance = {
        "nasbook": nasbook.__version__,
        "commit": json.loads((work / "plan.json").read_text())["commit"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": _processor(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "script": "tools/tabular.py",
        "data": data.name,
        "data_source": data.source,
        "data_checksum": data.checksum,
        "held_out_images": len(data.train_labels) // 2,
        "test_images": len(data.test_labels),
        "channels": CHANNELS,
        "cells": CELLS,
        "seeds": list(SEEDS),
        "recipe": {name: getattr(RECIPE, name) for name in RECIPE.__dataclass_fields__},
    }
    with whole_file(out) as file:
        np.savez_compressed(file, **arrays, provenance=np.array(json.dumps(provenance)))


def _keep_to_one_plan(path: Path) -> None:
    """Refuses a folder whose groups were made in another way: they would be mixed with new ones."""
    recipe = {name: getattr(RECIPE, name) for name in RECIPE.__dataclass_fields__}
    now = json.dumps({"commit": _commit(), "group": GROUP, "seeds": list(SEEDS), "recipe": recipe}, indent=1)
    if not path.exists():
        with whole_file(path) as file:
            file.write(now.encode())
    elif path.read_text() != now:
        sys.exit(f"{path} is of another commit, recipe or division into groups. Give another --work.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for finished groups")
    parser.add_argument("--out", type=Path, help="where the table goes, once all groups are there")
    parser.add_argument("--part", default="0/1", help="K/N: train every N-th group, from the K-th")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    _keep_to_one_plan(arguments.work / "plan.json")
    plan = groups()
    for number in tqdm(range(part, len(plan), parts)):
        path = arguments.work / f"{number}.npz"
        if not path.exists():
            train_group(*plan[number], path)
    missing = [number for number in range(len(plan)) if not (arguments.work / f"{number}.npz").exists()]
    if missing:
        print(f"{len(missing)} of {len(plan)} groups are missing; other processes have them, or run this again.")
        return 0
    if arguments.out is not None:
        collect(arguments.work, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
