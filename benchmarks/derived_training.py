"""Images a second in training a derived network: the settings as read in a paper, against the tuned ones.

    python benchmarks/derived_training.py                    DARTS_V2, C=36, 20 cells, batch 8, on a CPU
    python benchmarks/derived_training.py --device cuda      the paper's batch of 96

The network is DARTS' for CIFAR-10, with auxiliary head and drop path; each step is :class:`nasbook.training.Fit`'s own,
with its data path, augmentation, clipping and optimiser. "readable" is float32 in torch's default layout. Tuned are
channels-last on a CPU; on CUDA channels-last, then bfloat16 with it, then both compiled. Where compiling fails, the row
says why.

Rows have ``way``, ``channels``, ``cells``, ``batch``, the time of a step, ``images_per_second`` and ``ratio``, the
readable time over this one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import _measure as measure
import torch
import tyro

from nasbook.data import Augmentation, ImageData
from nasbook.genotypes import DARTS_V2
from nasbook.networks import DerivedNetwork
from nasbook.training import Fit, FitConfig

DROP_PATH = 0.2
WARM_UP = 4
"""Steps before the first that counts: compiled code is built in the first ones."""


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 5
    """How many times each contestant is timed, after some that warm up."""
    batch: int = 0
    """Images a step; 0 for 96 on CUDA and 8 on a CPU."""
    channels: int = 36
    """Channels of the first cell, C."""
    cells: int = 20
    """Number of cells, L."""
    steps: int = 0
    """Steps in a round; 0 for 10 on CUDA and 1 on a CPU."""
    compile: bool = False
    """Also compile on a CPU, which needs a C++ compiler and some minutes."""


class Training:
    """One way to train; ``run`` makes the steps of a round."""

    def __init__(self, options: Options, config: FitConfig, device: torch.device, steps: int) -> None:
        torch.manual_seed(0)
        network = DerivedNetwork(DARTS_V2, options.channels, options.cells, auxiliary=True)
        self.fit = Fit(network, random_images(4 * config.batch_size).to(device), config)
        self.fit.begin_epoch()
        network.set_drop_path(DROP_PATH)  # the rate of the last epoch: the first has none
        self.steps, self.done = steps, 0

    def run(self) -> None:
        for _ in range(self.steps):
            self.fit.run_step(self.done)
            self.done += 1


def random_images(count: int) -> ImageData:
    """As many random images of CIFAR's size, with CIFAR's augmentation."""
    images, labels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (count,))
    augmentation = Augmentation(crop_padding=4, flip=True)
    half = (0.5, 0.5, 0.5)
    return ImageData("random", images, labels, images[:1], labels[:1], 10, half, half, augmentation, "random", "")


def ways(options: Options, batch: int, device: torch.device) -> dict[str, FitConfig]:
    """The settings that are compared on this device."""

    def config(channels_last: bool, bfloat16: bool = False, compiled: bool = False) -> FitConfig:
        return FitConfig(
            batch_size=batch,
            mixed_precision=bfloat16,
            channels_last=channels_last,
            compile=compiled,
            drop_path=DROP_PATH,
        )

    compared = {"readable": config(False), "channels-last": config(True)}
    if device.type == "cuda":
        compared["channels-last, bfloat16"] = config(True, True)
        compared["channels-last, bfloat16, compiled"] = config(True, True, True)
    elif options.compile:
        compared["channels-last, compiled"] = config(True, False, True)
    return compared


def why_not_compiled(training: Training) -> str:
    """Makes the first steps; "" if they ran compiled, else the reason in one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = measure.why_not(lambda: [training.run() for _ in range(WARM_UP)])
    told = [str(warning.message) for warning in caught if "torch.compile failed" in str(warning.message)]
    return reason or (told[0] if told else "")  # Fit warns and goes on without


def measure_training(options: Options, device: torch.device) -> list[measure.Row]:
    """The rows of all ways."""
    cuda = device.type == "cuda"
    batch, steps = options.batch or (96 if cuda else 8), options.steps or (10 if cuda else 1)
    found, failures = {}, {}
    for way, config in ways(options, batch, device).items():
        training = Training(options, config, device, steps)
        reason = why_not_compiled(training) if config.compile else ""
        if reason:
            failures[way] = reason
        else:
            found[way] = training
    contestants = {way: training.run for way, training in found.items()}
    seconds = measure.interleave(contestants, options.rounds, device, warm_up=WARM_UP if cuda else 1)
    size = {"channels": options.channels, "cells": options.cells, "batch": batch}
    rows = []
    for way, values in seconds.items():
        row = {"way": way, **size, **measure.summary([value / steps for value in values])}
        row["images_per_second"] = batch / row["seconds"]
        row["ratio"] = (rows[0] if rows else row)["seconds"] / row["seconds"]
        rows.append(row)
    return [*rows, *({"way": way, **size, **measure.failed(reason)} for way, reason in failures.items())]


COLUMNS = {
    "way": "way",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "images_per_second": "images/s",
    "ratio": "readable/this",
}


def main(options: Options) -> None:
    device = options.prepare()
    rows = measure_training(options, device)
    batch = rows[0]["batch"]
    title = f"DARTS_V2, C={options.channels}, {options.cells} cells, auxiliary head, batch {batch}, 3×32×32"
    measure.finish(options, "derived_training", "", title, [(COLUMNS, rows)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
