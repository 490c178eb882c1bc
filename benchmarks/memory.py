"""What a training pass of the supernet keeps in memory, and the largest batch that fits a budget: both engines.

    python benchmarks/memory.py                     settings quick and paper; the same numbers on every CPU
    python benchmarks/memory.py --budget-gib 16
    python benchmarks/memory.py --device cuda       also the peak of a first-order step

Rows have ``setting``, ``engine``, ``batch``, ``kind`` ("batch", or "largest" for the largest batch within the budget,
with ``budget_bytes``; the budget is of saved activations on a CPU, of the step's peak on CUDA) and

* ``saved_bytes``: activations that autograd keeps for the backward pass of the training loss, weights not included;
* ``per_image``: the same over the batch;
* ``saved_ratio``: over the readable engine's bytes at the same batch;
* ``peak_bytes``: on CUDA, the most that tensors took at once during a first-order step, weights and optimisers
  included; null on a CPU, or where the step did not fit;
* ``peak_ratio``: the same over the readable engine's;
* ``batch_ratio``, at "largest": over the readable engine's largest batch.

The budget is filled up for real: on a CPU, a forward pass with that many bytes runs.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Literal

import _measure as measure
import torch
import torch.nn.functional as F
import tyro
from search_step import SETTINGS, Contestant, Setting

from nasbook.analysis import largest_batch, peak_memory, saved_activation_bytes

GIB = 2**30


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 1
    """Without meaning here: sizes are the same each time."""
    settings: tuple[Literal["quick", "paper"], ...] = ("quick", "paper")
    """The scales whose supernets are measured."""
    batches: tuple[int, ...] = (16, 32, 64)
    """Images a step."""
    budget_gib: float = 4.0
    """Memory to fill with the largest batch, in GiB; 0 to leave this out."""


def saved_bytes(setting: Setting, engine: str, batch: int, device: torch.device) -> int:
    """Activations kept for the backward pass of the training loss."""
    network = setting.network(engine).to(device)
    images, labels = setting.data(batch, device)
    return saved_activation_bytes(lambda x: F.cross_entropy(network(x), labels), images)


def peak_bytes(setting: Setting, engine: str, batch: int, device: torch.device) -> int | None:
    """The most that a first-order step holds on a CUDA device; None if it does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        train, validation = setting.data(batch, device), setting.data(batch, device)
        contestant = Contestant(engine, "", setting.network(engine), train, validation, ["first-order"])
        contestant.step("first-order")  # creates what the optimisers keep
        return peak_memory(lambda: contestant.step("first-order"), device)
    except torch.cuda.OutOfMemoryError:
        return None


def measure_memory(
    name: str, setting: Setting, batches: tuple[int, ...], budget: int, device: torch.device
) -> list[measure.Row]:
    """The rows of a setting, batch by batch, then those of the budget."""
    cuda = device.type == "cuda"
    rows: list[measure.Row] = []
    for batch in batches:
        readable: measure.Row = {}
        for engine in ("readable", "fused"):
            saved = saved_bytes(setting, engine, batch, device)
            peak = peak_bytes(setting, engine, batch, device) if cuda else None
            row = {"setting": name, "engine": engine, "batch": batch, "kind": "batch"}
            row |= {"saved_bytes": saved, "per_image": saved / batch, "peak_bytes": peak}
            readable = readable or row
            both = peak is not None and readable["peak_bytes"] is not None
            row["saved_ratio"] = saved / readable["saved_bytes"]
            row["peak_ratio"] = peak / readable["peak_bytes"] if both else None
            rows.append(row)
    if not budget:
        return rows

    def cost(engine: str, batch: int) -> int:
        if not cuda:
            return saved_bytes(setting, engine, batch, device)
        peak = peak_bytes(setting, engine, batch, device)
        return budget * batch * 2 if peak is None else peak  # over the budget, and more with each image

    largest = {
        engine: largest_batch(lambda batch, engine=engine: cost(engine, batch), budget)
        for engine in ("readable", "fused")
    }
    for engine, batch in largest.items():
        row = {"setting": name, "engine": engine, "batch": batch, "kind": "largest", "budget_bytes": budget}
        row["batch_ratio"] = batch / largest["readable"] if largest["readable"] else None
        rows.append(row)
    return rows


COLUMNS = {
    "setting": "setting",
    "engine": "engine",
    "batch": "batch",
    "saved_bytes": "saved MiB",
    "per_image": "an image MiB",
    "saved_ratio": "of readable's",
    "peak_bytes": "peak MiB",
    "peak_ratio": "of readable's",
}
LARGEST = {
    "setting": "setting",
    "engine": "engine",
    "budget_bytes": "budget GiB",
    "batch": "largest batch",
    "batch_ratio": "of readable's",
}


def main(options: Options) -> None:
    device = options.prepare()
    rows = []
    for name in options.settings:
        budget = 0 if name == "quick" else int(options.budget_gib * GIB)  # quick would fit tens of thousands of images
        rows += measure_memory(name, SETTINGS[name], options.batches, budget, device)
    batches = [row for row in rows if row["kind"] == "batch"]
    largest = [row for row in rows if row["kind"] == "largest"]
    title = "memory of a training pass"
    measure.finish(options, "memory", "", title, [(COLUMNS, batches), *([(LARGEST, largest)] if largest else [])])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
