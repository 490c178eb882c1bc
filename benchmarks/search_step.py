"""What one search step costs: first order, exact second order, and DARTS' finite difference.

    python benchmarks/search_step.py                    the setting of scale quick, on the CPU
    python benchmarks/search_step.py --setting paper    C=16, 8 cells, 32×32 images (minutes on a CPU)
    python benchmarks/search_step.py --device cuda      on a GPU

Each round runs every update once, in turn, so that a busy machine disturbs all alike. The table shows medians, the
ratio to the first-order step, and saved activation bytes, which are the same on every machine.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro

from nasbook.analysis import saved_activation_bytes
from nasbook.environment import resolve_device
from nasbook.experiments import SCALES
from nasbook.methods.darts import UPDATES
from nasbook.supernets import SearchNetwork

SIZES = {"quick": (1, 8), "paper": (3, 32)}
"""Channels and side of the images."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    setting: Literal["quick", "paper"] = "quick"
    """The scale whose space, network and batch are measured."""
    batch: int = 0
    """Images a step; 0 for the setting's own."""
    rounds: int = 9
    """How many times each update is timed, after one that warms up."""
    device: str = "cpu"
    """cpu or cuda."""
    json: Path | None = None
    """Also write the numbers to this file."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = resolve_device(options.device)
    scale = SCALES[options.setting]
    batch = options.batch or scale.search_batch
    channels, size = SIZES[options.setting]
    network = SearchNetwork(scale.space, scale.search_channels, scale.search_cells, in_channels=channels).to(device)
    optimizers = (
        torch.optim.SGD(network.weights(), 0.025, momentum=0.9, weight_decay=3e-4),
        torch.optim.Adam(network.architecture(), 3e-4),
    )
    updates = {name: kind(network, *optimizers) for name, kind in UPDATES.items()}
    train, validation = (
        (torch.randn(batch, channels, size, size, device=device), torch.randint(10, (batch,), device=device))
        for _ in range(2)
    )
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for round_number in range(options.rounds + 1):
        for name, update in updates.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            update.step(train, validation)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    activations = saved_activation_bytes(lambda x: F.cross_entropy(network(x), train[1]), train[0])
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    print(f"{options.setting}: C={scale.search_channels}, {scale.search_cells} cells, batch {batch}, {size}×{size}")
    print(f"{hardware}, torch {torch.__version__}, medians of {options.rounds} interleaved steps")
    print(f"saved activations of one forward pass: {activations / 2**20:.1f} MiB")
    for name, value in medians.items():
        print(f"{name:18} {value * 1e3:9.1f} ms   {value / medians['first-order']:5.2f}×")
    if options.json is not None:
        content = {
            "setting": options.setting,
            "batch": batch,
            "hardware": hardware,
            "torch": torch.__version__,
            "median_seconds": medians,
            "saved_activation_bytes": activations,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
