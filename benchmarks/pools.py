"""What a training step of a supernet costs where every edge has six candidates of its own, beside DARTS' supernet.

    python benchmarks/pools.py                      Chapter 5's search at quick
    python benchmarks/pools.py --setting small      C=16, 3 cells, 16×16 images (minutes on a CPU)
    python benchmarks/pools.py --setting paper      C=16, 8 cells, 32×32 images

A step is a forward and a backward pass of the loss, to weights and architecture parameters alike. DARTS' supernet is
the fused one of Chapter 1 with its eight candidates; that of PR-DARTS has the same graph, channels, cells, batch and
images. Its pools are drawn: on every edge up to three of max pooling, average pooling and identity, and different
configurations of the constraints; of some draws the one whose multiply-adds are nearest to DARTS'. What is left of the
difference is taken out of ``ratio``. All contestants run in turn. On a CPU the clock is the process's own, as other
programs may share the cores; on CUDA it is the wall's.

Rows have ``setting``, ``space`` ("DARTS" or the name of the constraints), ``engine``, ``seconds`` and

* ``macs``: multiply-adds of one image's forward pass, by the readable modules;
* ``configurations``: different convolutions on one kind of cell, on average over both kinds;
* ``ratio``: seconds per multiply-add over DARTS', the median of the rounds; ``ratio_low``, ``ratio_high``: quartiles;
* ``saved_bytes``: activations kept between the forward and the backward pass;
* ``saved_ratio``: the same per multiply-add, over DARTS'.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import _measure as measure
import torch
import torch.nn.functional as F
import tyro
from search_step import SETTINGS as STEP_SETTINGS
from search_step import Setting

from nasbook.analysis import count_macs, saved_activation_bytes
from nasbook.genotypes import DARTS_OPERATIONS, Space
from nasbook.operations import CONSTRAINTS, is_morphable, obtainable
from nasbook.supernets import SearchNetwork

SETTINGS = {
    name: replace(setting, space=replace(setting.space, operations=DARTS_OPERATIONS))
    for name, setting in STEP_SETTINGS.items()
}
SETTINGS["small"] = replace(SETTINGS["paper"], cells=3, image=(3, 16))

OTHERS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")
CANDIDATES = 6
"""On every edge (Table 1)."""

Spaces = dict[str, Space]


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    setting: Literal["quick", "small", "paper"] = "quick"
    """Channels, cells, batch and images of both supernets."""
    batch: int = 0
    """Images a step; 0 for the setting's own, 64."""
    constraints: tuple[Literal["DL", "DR", "UR"], ...] = ("DL", "DR", "UR")
    """Where the configurations are drawn from."""
    draws: int = 20
    """Of so many drawn pools the nearest to DARTS' multiply-adds are measured."""


def draw_pools(space: Space, constraints: str, generator: random.Random) -> Spaces:
    """Six different candidates for each edge of both kinds of cell."""
    configurations = sorted(one.name for some in obtainable(CONSTRAINTS[constraints]) for one in some)

    def pool() -> tuple[str, ...]:
        others = generator.sample(OTHERS, generator.randint(0, len(OTHERS)))
        return (*others, *generator.sample(configurations, CANDIDATES - len(others)))

    return {kind: space.with_pools([pool() for _ in space.edges]) for kind in space.kinds}


def build(setting: Setting, spaces: Spaces, engine: str) -> SearchNetwork:
    return SearchNetwork(spaces, setting.channels, setting.cells, in_channels=setting.image[0], engine=engine)


def multiply_adds(setting: Setting, spaces: Spaces) -> int:
    channels, side = setting.image
    return count_macs(build(setting, spaces, "readable"), (1, channels, side, side))


def nearest_pools(setting: Setting, constraints: str, draws: int) -> Spaces:
    """Of so many draws the one whose multiply-adds are nearest to those of DARTS' candidates."""
    wanted = multiply_adds(setting, dict.fromkeys(setting.space.kinds, setting.space))
    drawn = [draw_pools(setting.space, constraints, random.Random(seed)) for seed in range(draws)]
    return min(drawn, key=lambda spaces: abs(multiply_adds(setting, spaces) - wanted))


class Contestant:
    """One supernet in one engine."""

    def __init__(self, name: str, setting: Setting, spaces: Spaces, engine: str, device: torch.device) -> None:
        self.name, self.engine, self.spaces = name, engine, spaces
        self.network = build(setting, spaces, engine).to(device)
        self.macs = multiply_adds(setting, spaces)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = F.cross_entropy(self.network(images), labels)
        torch.autograd.grad(loss, list(self.network.parameters()), allow_unused=True)

    def row(self, images: torch.Tensor) -> measure.Row:
        used = [{name for name in space.operations if is_morphable(name)} for space in self.spaces.values()]
        return {
            "space": self.name,
            "engine": self.engine,
            "batch": len(images),
            "macs": self.macs,
            "configurations": sum(map(len, used)) / len(used) if any(used) else None,
            "saved_bytes": saved_activation_bytes(self.network, images),
        }


def measure_pools(
    setting: Setting, batch: int, constraints: Sequence[str], draws: int, rounds: int, device: torch.device
) -> list[measure.Row]:
    """DARTS' row, then two for each of the constraints."""
    images, labels = setting.data(batch, device)
    found = [Contestant("DARTS", setting, dict.fromkeys(setting.space.kinds, setting.space), "fused", device)]
    for name in constraints:
        spaces = nearest_pools(setting, name, draws)
        found += [Contestant(name, setting, spaces, engine, device) for engine in ("readable", "fused")]
    work = {f"{one.name} {one.engine}": functools.partial(one.step, images, labels) for one in found}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = measure.interleave(work, rounds, device, warm_up=2, clock=clock)
    rows: list[measure.Row] = []
    darts = found[0]
    for one in found:
        row = {**one.row(images), **measure.summary(seconds[f"{one.name} {one.engine}"])}
        rounds_of_both = zip(seconds[f"{one.name} {one.engine}"], seconds["DARTS fused"], strict=True)
        per_mac = measure.summary([own / other * darts.macs / one.macs for own, other in rounds_of_both])
        row |= {name.replace("seconds", "ratio"): value for name, value in per_mac.items()}
        rows.append(row)
    for row in rows:
        row["saved_ratio"] = row["saved_bytes"] / row["macs"] / (rows[0]["saved_bytes"] / darts.macs)
    return rows


COLUMNS = {
    "space": "space",
    "engine": "engine",
    "configurations": "configurations",
    "macs": "multiply-adds",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "ratio": "of DARTS' at equal multiply-adds",
    "ratio_low": "quartiles of it",
    "ratio_high": "of it",
    "saved_bytes": "saved MiB",
    "saved_ratio": "of DARTS' likewise",
}


def main(options: Options) -> None:
    device = options.prepare()
    setting = SETTINGS[options.setting]
    batch = options.batch or setting.batch
    rows = measure_pools(setting, batch, options.constraints, options.draws, options.rounds, device)
    name = options.setting if batch == setting.batch else f"{options.setting}-batch{batch}"
    channels, side = setting.image
    title = (
        f"{name}: C={setting.channels}, {setting.cells} cells, {setting.space.nodes} nodes, batch {batch}, "
        f"{channels}×{side}×{side}, {CANDIDATES} candidates an edge"
    )
    measure.finish(options, "pools", name, title, [(COLUMNS, rows)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
