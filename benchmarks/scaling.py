"""How time and memory of a training pass grow: with cells, channels, nodes, operations and batch, one at a time.

    python benchmarks/scaling.py                    minutes on a CPU
    python benchmarks/scaling.py --device cuda

The base point is a small supernet of DARTS' space; see ``BASE``. Each sweep changes one of its numbers. With fewer
operations, the last ones of DARTS' list are kept: two are the dilated convolutions, four the separable ones too.
"channels" is C; "cells" keeps to multiples of three, where reductions stand at one and two thirds.

Rows have ``sweep``, ``engine`` and ``kind``. Where ``kind`` is "point": ``value``, the time of forward and backward
pass of the training loss, and ``saved_bytes``, activations kept between them. Where it is "exponent": ``quantity``
("seconds" or "saved_bytes"), ``exponent`` b of the power law a·valueᵇ, fitted by least squares to the logarithms of the
medians, and its ``standard_error``. A straight line through them is an assumption: a fixed cost bends it down at the
small end, and ``standard_error`` tells how much it bends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import _measure as measure
import numpy as np
import torch
import torch.nn.functional as F
import tyro

from nasbook.analysis import saved_activation_bytes
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_OPERATIONS, Space
from nasbook.supernets import SearchNetwork


@dataclass(frozen=True)
class Point:
    """A supernet and its batch."""

    cells: int = 6
    channels: int = 8
    nodes: int = 4
    operations: int = 8
    batch: int = 16
    side: int = 16
    """Height and width of the images."""

    def network(self, engine: str) -> SearchNetwork:
        space = Space(DARTS_OPERATIONS[-self.operations :], self.nodes)
        return SearchNetwork(space, self.channels, self.cells, engine=engine)


BASE = Point()
SWEEPS: dict[str, tuple[int, ...]] = {
    "cells": (3, 6, 9, 12),
    "channels": (4, 8, 16, 32),
    "nodes": (2, 3, 4, 6),
    "operations": (2, 4, 6, 8),
    "batch": (4, 8, 16, 32),
}
CUDA_SWEEPS: dict[str, tuple[int, ...]] = {**SWEEPS, "channels": (8, 16, 32, 64), "batch": (64, 128, 256, 512)}
"""On a GPU the small points only show what it costs to launch kernels."""
CUDA_BASE = replace(BASE, channels=16, batch=64, side=32)


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 5
    """How many times each contestant is timed, after one time that warms up."""
    sweeps: tuple[Literal["cells", "channels", "nodes", "operations", "batch"], ...] = tuple(SWEEPS)
    """What to vary."""


class Pass:
    """Forward and backward pass of one engine at one point."""

    def __init__(self, point: Point, engine: str, device: torch.device) -> None:
        self.network = point.network(engine).to(device)
        self.images = torch.randn(point.batch, 3, point.side, point.side, device=device)
        self.labels = torch.randint(10, (point.batch,), device=device)
        self.parameters = tuple(self.network.parameters())

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.network(images), self.labels)

    def run(self) -> None:
        torch.autograd.grad(self.loss(self.images), self.parameters, allow_unused=True)


def fit_exponent(values: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """b of the power law a·valueᵇ nearest to the measurements in logarithms, and its standard error."""
    if len(values) < 3:
        raise InvalidInput(f"An exponent with its error needs at least 3 points, got {len(values)}.")
    x, y = np.log(values), np.log(measured)
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    rest = y - slope * x
    return float(slope), float(np.sqrt(rest @ rest / (len(values) - 2) / (x @ x)))


def measure_scaling(
    base: Point, sweeps: dict[str, tuple[int, ...]], rounds: int, device: torch.device
) -> tuple[list[measure.Row], list[measure.Row]]:
    """The rows of all points, and those of the exponents."""
    passes = {
        (engine, point): Pass(point, engine, device)  # the base point, which all sweeps share, is measured once
        for sweep, values in sweeps.items()
        for point in (replace(base, **{sweep: value}) for value in values)
        for engine in ("readable", "fused")
    }
    seconds = measure.interleave({key: one.run for key, one in passes.items()}, rounds, device)
    times = {key: measure.summary(values) for key, values in seconds.items()}
    saved = {key: saved_activation_bytes(one.loss, one.images) for key, one in passes.items()}
    points: list[measure.Row] = []
    exponents: list[measure.Row] = []
    for sweep, values in sweeps.items():
        for engine in ("readable", "fused"):
            own = [(engine, replace(base, **{sweep: value})) for value in values]
            names = {"sweep": sweep, "engine": engine}
            rows = [
                {**names, "kind": "point", "value": value, **times[key], "saved_bytes": saved[key]}
                for value, key in zip(values, own, strict=True)
            ]
            points += rows
            for quantity in ("seconds", "saved_bytes"):
                exponent, error = fit_exponent(values, [row[quantity] for row in rows])
                exponents.append(
                    {**names, "kind": "exponent", "quantity": quantity, "exponent": exponent, "standard_error": error}
                )
    return points, exponents


POINTS = {
    "sweep": "varied",
    "value": "value",
    "engine": "engine",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "saved_bytes": "saved MiB",
}
EXPONENTS = {
    "sweep": "varied",
    "engine": "engine",
    "quantity": "quantity",
    "exponent": "exponent",
    "standard_error": "standard error",
}


def main(options: Options) -> None:
    device = options.prepare()
    base, sweeps = (CUDA_BASE, CUDA_SWEEPS) if device.type == "cuda" else (BASE, SWEEPS)
    chosen = {name: sweeps[name] for name in options.sweeps}
    points, exponents = measure_scaling(base, chosen, options.rounds, device)
    title = (
        f"round {base.cells} cells, C={base.channels}, {base.nodes} nodes, {base.operations} operations, "
        f"batch {base.batch}, 3×{base.side}×{base.side}: forward and backward pass of the training loss"
    )
    measure.finish(options, "scaling", "", title, [(POINTS, points), (EXPONENTS, exponents)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
