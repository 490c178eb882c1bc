"""What one search step costs: both engines, all three orders, and how far they are from the machine's limit.

    python benchmarks/search_step.py                               the setting of scale quick, on the CPU
    python benchmarks/search_step.py --setting paper --batch 16    C=16, 8 cells, 32×32 images (minutes on a CPU)
    python benchmarks/search_step.py --setting paper --device cuda

Both engines start from the same weights and have the same optimisers, DARTS' own; the readable one runs in torch's
default layout. On CUDA the fused engine also runs under bfloat16 autocast, compiled ("reduce-overhead"), and with its
first-order step captured as one graph; where such a variant fails, its row says why in ``failure``.

Every row has ``engine``, ``variant`` ("" for float32 as it is), ``work``, ``batch`` and ``seconds``. Where ``work`` is
a step ("first-order", "second-order", "finite-difference") or a pass of the training loss ("forward", "backward"):

* ``ratio``: the readable engine's time for the same work over this one;
* ``of_readable_step``: this time over the readable engine's first-order step;
* ``of_own_step``: this time over the same contestant's first-order step.

Where ``work`` is "floor", ``seconds`` is the least that forward and backward pass could take on this machine, the
larger of ``macs_seconds`` and ``traffic_seconds``:

* ``macs``: multiply-adds, three times those of the forward pass in evaluation mode;
* ``traffic_bytes``: each activation that is kept is written once and read once, the images are read once, each weight
  is read twice and its gradient written once (:func:`nasbook.analysis.count_traffic`);
* ``saved_bytes``: the activations that are kept;
* ``macs_per_second``, ``bytes_per_second``: of a large matrix product and a large copy, measured in the same run;
* ``distance``: forward and backward pass as measured, over this floor;
* ``distance_to_lowest``: the same over the floor of the fewest multiply-adds and the least traffic of both engines.

What fits into a cache travels faster than the copy, so that at ``quick`` the traffic's floor is no strict limit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import _measure as measure
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from nasbook.analysis import count_macs, count_traffic, saved_activation_bytes
from nasbook.experiments import SCALES
from nasbook.genotypes import Space
from nasbook.methods.darts import UPDATES, Config
from nasbook.supernets import SearchNetwork

OrderName = Literal["first-order", "second-order", "finite-difference"]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """The supernet and its images."""

    space: Space
    channels: int
    cells: int
    batch: int
    image: tuple[int, int]
    """Channels and side of the images."""

    def network(self, engine: str) -> SearchNetwork:
        return SearchNetwork(self.space, self.channels, self.cells, in_channels=self.image[0], engine=engine)

    def images(self, batch: int, device: torch.device) -> Tensor:
        channels, side = self.image
        return torch.randn(batch, channels, side, side, device=device)

    def data(self, batch: int, device: torch.device) -> Batch:
        return self.images(batch, device), torch.randint(10, (batch,), device=device)


def _setting(scale: str, image: tuple[int, int]) -> Setting:
    numbers = SCALES[scale]
    return Setting(numbers.space, numbers.search_channels, numbers.search_cells, numbers.search_batch, image)


SETTINGS = {"quick": _setting("quick", (1, 8)), "paper": _setting("paper", (3, 32))}


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    setting: Literal["quick", "paper"] = "quick"
    """The scale whose space, network and batch are measured."""
    batch: int = 0
    """Images a step; 0 for the setting's own, 64."""
    orders: tuple[OrderName, ...] = ("first-order", "second-order", "finite-difference")
    """Forms of the architecture gradient; the first-order step is always measured."""


class Contestant:
    """One engine in one variant: its steps, and forward and backward pass apart.

    The variant is "" or names of "bfloat16", "compiled" and "captured". Compiled and captured code has no second
    derivative; a captured step has no passes that could be timed apart.
    """

    def __init__(
        self,
        engine: str,
        variant: str,
        network: SearchNetwork,
        train: Batch,
        validation: Batch,
        orders: Sequence[str],
    ) -> None:
        self.engine, self.variant = engine, variant
        self.network = network.to(train[0].device)
        self.train, self.validation = train, validation
        self.dtype = torch.bfloat16 if "bfloat16" in variant else torch.float32
        self.compiled, self.captured = "compiled" in variant, "captured" in variant
        if self.compiled:
            self.network.compile(mode="reduce-overhead", dynamic=False)
        if self.compiled or self.captured:
            orders = ["first-order"]
        config = Config()
        weights, architecture = network.weights(), network.architecture()
        sgd = torch.optim.SGD(weights, config.learning_rate, config.momentum, weight_decay=config.weight_decay)
        adam = torch.optim.Adam(
            architecture,
            config.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=config.architecture_weight_decay,
            capturable=self.captured,
        )
        updates = {name: kind for name, kind in UPDATES.items() if name in orders}
        self.updates = {name: kind(network, sgd, adam, clip=config.clip) for name, kind in updates.items()}
        self._loss: Tensor | None = None

    @property
    def name(self) -> str:
        return f"{self.engine} {self.variant}".strip()

    def names(self, work: str) -> measure.Row:
        return {"engine": self.engine, "variant": self.variant, "work": work, "batch": len(self.train[0])}

    def precision(self) -> AbstractContextManager[object]:
        if self.dtype != torch.bfloat16:
            return nullcontext()
        # A graph must hold all that it computes, casts of weights too.
        return torch.autocast(self.train[0].device.type, self.dtype, cache_enabled=not self.captured)

    def step(self, order: str) -> None:
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        with self.precision():
            self.updates[order].step(self.train, self.validation)

    def loss(self, images: Tensor) -> Tensor:
        with self.precision():
            return F.cross_entropy(self.network(images), self.train[1])

    def forward(self) -> None:
        self._loss = self.loss(self.train[0])

    def backward(self) -> None:
        assert self._loss is not None  # forward comes before, in the same round
        loss, self._loss = self._loss, None
        torch.autograd.grad(loss, tuple(self.network.parameters()), allow_unused=True)

    def work(self) -> dict[str, Callable[[], None]]:
        """What is timed, in this order."""
        if self.captured:
            return {"first-order": self.replay}
        steps = {order: functools.partial(self.step, order) for order in self.updates}
        return {**steps, "forward": self.forward, "backward": self.backward}

    @functools.cached_property
    def replay(self) -> Callable[[], None]:
        """The first-order step as a graph, captured after some steps on a stream of their own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step("first-order")
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step("first-order")
        return graph.replay

    def once(self) -> None:
        for run in self.work().values():
            run()


def contestants(setting: Setting, batch: int, orders: Sequence[str], device: torch.device) -> list[Contestant]:
    """All that belong on this device, with the same weights and images."""
    train, validation = setting.data(batch, device), setting.data(batch, device)
    state = setting.network("readable").state_dict()
    variants = ["bfloat16", "compiled", "bfloat16 compiled", "captured", "bfloat16 captured"]
    names = [("readable", ""), ("fused", "")]
    if device.type == "cuda":
        names += [("fused", variant) for variant in variants]
    found = []
    for engine, variant in names:
        network = setting.network(engine)
        network.load_state_dict(state)
        found.append(Contestant(engine, variant, network, train, validation, orders))
    return found


def measure_steps(
    setting: Setting, batch: int, orders: Sequence[str], rounds: int, device: torch.device
) -> tuple[list[measure.Row], list[measure.Row]]:
    """The rows of a setting: what was timed, and the floors."""
    found, failures = [], []
    for contestant in contestants(setting, batch, ["first-order", *orders], device):
        # The variants may not work on every machine; the engines as they are have to.
        reason = measure.why_not(contestant.once) if contestant.variant else ""
        if reason:
            failures.append({**contestant.names("first-order"), **measure.failed(reason)})
        else:
            found.append(contestant)
    work = {(contestant.name, name): run for contestant in found for name, run in contestant.work().items()}
    seconds = measure.interleave(work, rounds, device)
    times = {key: measure.summary(values) for key, values in seconds.items()}
    rows = [
        {
            **contestant.names(name),
            **times[contestant.name, name],
            "ratio": times["readable", name]["seconds"] / times[contestant.name, name]["seconds"],
            "of_readable_step": times[contestant.name, name]["seconds"] / times["readable", "first-order"]["seconds"],
            "of_own_step": times[contestant.name, name]["seconds"] / times[contestant.name, "first-order"]["seconds"],
        }
        for contestant in found
        for name in contestant.work()
    ]
    plain = [contestant for contestant in found if not contestant.compiled and not contestant.captured]
    passes = {c.name: sum(times[c.name, part]["seconds"] for part in ("forward", "backward")) for c in plain}
    return [*rows, *failures], floors(plain, passes, device)


def floors(found: Sequence[Contestant], passes: Mapping[str, float], device: torch.device) -> list[measure.Row]:
    """The least that a forward and a backward pass could take, and how far the measured ones are from it."""
    rates = {dtype: measure.peak_rates(device, dtype) for dtype in {contestant.dtype for contestant in found}}
    rows: list[measure.Row] = []
    for contestant in found:
        images = contestant.train[0]
        macs_rate, bytes_rate = rates[contestant.dtype]
        macs = 3 * count_macs(contestant.network, images.shape)
        with contestant.precision():
            traffic = count_traffic(contestant.network, images)
        seconds = max(macs / macs_rate, traffic / bytes_rate)
        rows.append(
            {
                **contestant.names("floor"),
                "seconds": seconds,
                "macs": macs,
                "traffic_bytes": traffic,
                "saved_bytes": saved_activation_bytes(contestant.loss, images),
                "macs_per_second": macs_rate,
                "bytes_per_second": bytes_rate,
                "macs_seconds": macs / macs_rate,
                "traffic_seconds": traffic / bytes_rate,
                "distance": passes[contestant.name] / seconds,
            }
        )
    for row, contestant in zip(rows, found, strict=True):
        same = [other for other in rows if other["variant"] == row["variant"]]
        lowest = max(min(other[part] for other in same) for part in ("macs_seconds", "traffic_seconds"))
        row["distance_to_lowest"] = passes[contestant.name] / lowest
    return rows


TIMES = {
    "engine": "engine",
    "variant": "variant",
    "work": "work",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "ratio": "readable/this",
    "of_readable_step": "of readable's step",
    "of_own_step": "of own step",
}
FLOORS = {
    "engine": "engine",
    "variant": "variant",
    "work": "work",
    "seconds": "ms",
    "macs": "multiply-adds G",
    "traffic_bytes": "traffic MiB",
    "saved_bytes": "saved MiB",
    "macs_per_second": "product G/s",
    "bytes_per_second": "copy GB/s",
    "distance": "measured/floor",
    "distance_to_lowest": "measured/lowest",
}


def main(options: Options) -> None:
    device = options.prepare()
    setting = SETTINGS[options.setting]
    batch = options.batch or setting.batch
    rows, limits = measure_steps(setting, batch, options.orders, options.rounds, device)
    name = options.setting if batch == setting.batch else f"{options.setting}-batch{batch}"
    channels, side = setting.image
    title = f"{name}: C={setting.channels}, {setting.cells} cells, batch {batch}, {channels}×{side}×{side}"
    measure.finish(options, "search_step", name, title, [(TIMES, rows), (FLOORS, limits)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
