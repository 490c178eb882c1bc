"""What the parts of a growth cost (Chapter 4): beside a training step, and beside the ways that are not taken.

    python benchmarks/growth.py                               the small VGG-11 of quick, on the CPU
    python benchmarks/growth.py --channels 16                 its layers with 16 channels each
    python benchmarks/growth.py --setting paper --batch 16    VGG-19 with 16 channels, 32×32 images (minutes on a CPU)
    python benchmarks/growth.py --setting paper --device cuda

On a CPU the clock is the process's own, as other programs may share the cores; on CUDA it is the wall's. Rows have
``part``, ``way`` and its time. ``ratio`` is this time over that of the part's first way: the median of the rounds'
ratios, each of two times of one round; ``ratio_low`` and ``ratio_high`` are their quartiles. ``batch`` is how many
images there are, where images are looked at.

* part "step": a step of training (forward, backward, clipping, SGD) and, beside it, step one of firefly descent on the
  over-grown network. ``new`` is m', with 0 for splits only; ``candidates`` counts splits and new neurons of all widths;
  ``saved_bytes`` are the activations kept between the forward and the backward pass, ``saved_ratio`` the same over the
  training's.
* part "scores": the integrated gradients of all candidates of a small network along the common path, and coordinate by
  coordinate as in the paper's equation, on one batch; ``candidates`` as above.
* part "splitting": a step of training; one Hessian-vector product, forward pass included, which a step down the
  Rayleigh quotients takes; and all splitting matrices of one batch, which take ``products``, one an entry of the
  largest neuron. ``of_product`` is a time over that of the product.
* part "radial": the gradient of ``networks`` with ``neurons`` radial neurons each on 1000 points (Fig. 3), written out
  (its buffers made anew, which training does once), by one backward pass for all, and by ``vmap`` of ``grad``.
* part "surgery": a step of training; a growth of every width by 30 %, copies and empty neurons in halves; what moves
  the optimiser's momenta along with it; and the same for a residual layer of as many neurons as it has channels that is
  inserted after the first one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import _measure as measure
import torch
import torch.nn.functional as F
import tyro
from topology import ratios
from torch import Tensor, nn

from nasbook.analysis import saved_activation_bytes
from nasbook.experiments import GROWTH_SCALES
from nasbook.growth import (
    CandidateDescent,
    Grown,
    OvergrownNetwork,
    Surgery,
    integrated_gradients,
    integrated_gradients_by_coordinate,
    remap_optimizer,
    rewire,
    splittable,
    splitting_matrices,
    start,
    step_one,
)
from nasbook.growth.radial_batch import RadialData, loss, loss_gradient
from nasbook.growth.splitting import splitting_products
from nasbook.growth.surgery import NEW
from nasbook.networks import Growable, build_growable

Batch = tuple[Tensor, Tensor]
RADIUS = 0.01
CLIP = 5.0
RADIAL_NETWORKS, RADIAL_POINTS = 20, 1000


@dataclass(frozen=True)
class Setting:
    """The network that grows and its images."""

    network_name: str
    channels: int
    """Of every convolution."""
    batch: int
    image: tuple[int, int]
    """Channels and side of the images."""

    def network(self, device: torch.device, name: str = "", channels: int = 0) -> Growable:
        inputs, side = self.image
        torch.manual_seed(0)
        network = build_growable(
            name or self.network_name, widths=channels or self.channels, in_channels=inputs, size=side
        )
        return network.to(device)

    def data(self, batch: int, device: torch.device) -> Batch:
        inputs, side = self.image
        return torch.randn(batch, inputs, side, side, device=device), torch.randint(10, (batch,), device=device)


def _setting(scale: str, image: tuple[int, int]) -> Setting:
    numbers = GROWTH_SCALES[scale]
    return Setting(numbers.vgg, numbers.vgg_channels, numbers.growth_batch, image)


SETTINGS = {"quick": _setting("quick", (1, 8)), "paper": _setting("paper", (3, 32))}


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    setting: Literal["quick", "paper"] = "quick"
    """The scale whose network and batch are measured."""
    batch: int = 0
    """Images a step; 0 for the setting's own, 64 or 128."""
    channels: int = 0
    """Channels of every convolution; 0 for the setting's own, 4 or 16."""
    new: tuple[int, ...] = (0, 1, 10, 50)
    """Values of m' at which the over-grown network is measured."""
    neurons: tuple[int, ...] = (1, 12)
    """Neurons of the radial networks."""
    repeats: int = 20
    """How many times radial gradients are timed for each time of a step."""


class Step:
    """Training of one network on one batch, over and over."""

    def __init__(self, network: Growable, batch: Batch) -> None:
        self.network, self.batch = network.train(), batch
        self.optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def run(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(self.batch[0]), self.batch[1]).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()


class StepOne:
    """Step one of firefly descent on the over-grown network, with so many new neurons a width."""

    def __init__(self, network: Growable, batch: Batch, new: int) -> None:
        self.batch, self.new = batch, new
        self.overgrown = OvergrownNetwork(network, new=new, generator=torch.Generator().manual_seed(0)).train()
        start(self.overgrown, RADIUS)
        self.optimizer = CandidateDescent(self.overgrown, RADIUS)

    def run(self) -> None:
        step_one(self.overgrown, self.optimizer, self.batch, F.cross_entropy, RADIUS)


def _rows(
    part: str,
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    fields: Mapping[str, measure.Row] | None = None,
) -> tuple[list[measure.Row], dict[str, list[float]]]:
    """A row for each way, in order, and their times; ``fields`` are what some rows have of their own."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = measure.interleave(ways, rounds, device, clock=clock)
    first = seconds[next(iter(ways))]
    rows = []
    for way, values in seconds.items():
        row = {"part": part, "way": way, **(fields or {}).get(way, {}), **measure.summary(values)}
        row["ratio"], row["ratio_low"], row["ratio_high"] = ratios(values, first)
        rows.append(row)
    return rows, seconds


def measure_steps(
    setting: Setting, batch: int, new: Sequence[int], rounds: int, device: torch.device
) -> list[measure.Row]:
    """The rows of part "step"."""
    data = setting.data(batch, device)
    training = Step(setting.network(device), data)
    over = {f"over-grown, m' = {number}": StepOne(setting.network(device), data, number) for number in new}
    ways: dict[str, Callable[[], None]] = {"training": training.run}
    ways |= {way: step.run for way, step in over.items()}
    plain = saved_activation_bytes(training.network, data[0])
    fields: dict[str, measure.Row] = {"training": {"batch": batch, "saved_bytes": plain, "saved_ratio": 1.0}}
    for way, step in over.items():
        saved = saved_activation_bytes(step.overgrown, data[0])
        fields[way] = {
            "batch": batch,
            "new": step.new,
            "candidates": len(step.overgrown.candidates),
            "saved_bytes": saved,
            "saved_ratio": saved / plain,
        }
    return _rows("step", ways, rounds, device, fields)[0]


def measure_scores(setting: Setting, batch: int, rounds: int, device: torch.device) -> list[measure.Row]:
    """The rows of part "scores": a VGG-11 with 2 channels a layer, each of which may split, and a new one."""
    data = setting.data(batch, device)
    overgrown = StepOne(setting.network(device, "vgg11", 2), data, 1).overgrown
    ways = {
        "common path": lambda: integrated_gradients(overgrown, [data], F.cross_entropy),
        "by coordinate": lambda: integrated_gradients_by_coordinate(overgrown, [data], F.cross_entropy),
    }
    names = {"batch": batch, "new": 1, "candidates": len(overgrown.candidates)}
    return _rows("scores", ways, rounds, device, dict.fromkeys(ways, names))[0]


def measure_splitting(setting: Setting, batch: int, rounds: int, device: torch.device) -> list[measure.Row]:
    """The rows of part "splitting"."""
    data, network = setting.data(batch, device), setting.network(device)
    overgrown = splittable(network, generator=torch.Generator().manual_seed(0))
    vector = [part.detach().clone() for part in overgrown.directions()]
    products = max(overgrown.split_rows(name).shape[1] for name in overgrown.gates)
    ways: dict[str, Callable[[], Any]] = {
        "training": Step(setting.network(device), data).run,
        "product": lambda: list(splitting_products(overgrown, data, F.cross_entropy, [vector])),
        "matrices": lambda: splitting_matrices(network, [data], F.cross_entropy),
    }
    fields = {way: {"batch": batch, "products": count} for way, count in {"product": 1, "matrices": products}.items()}
    rows, seconds = _rows("splitting", ways, rounds, device, {"training": {"batch": batch}, **fields})
    for row in rows:
        row["of_product"], *_ = ratios(seconds[row["way"]], seconds["product"])
    return rows


def radial_ways(neurons: Tensor, data: RadialData) -> dict[str, Callable[[], Tensor]]:
    """The gradient of every network's loss, in three ways.

    Args:
        neurons: shape (networks, neurons, 3).
        data: a row a network.
    """

    def one(own: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(own[None], RadialData(x[None], y[None]))[0]

    def backward() -> Tensor:
        leaf = neurons.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf, data).sum(), leaf)[0]

    each = torch.func.vmap(torch.func.grad(one))
    return {
        "written out": lambda: loss_gradient(neurons, data),
        "one backward pass": backward,
        "vmap of grad": lambda: each(neurons, data.x, data.y),
    }


def measure_radial(
    counts: Sequence[int], rounds: int, device: torch.device, networks: int = RADIAL_NETWORKS
) -> list[measure.Row]:
    """The rows of part "radial"."""
    rows: list[measure.Row] = []
    for count in counts:
        x = torch.empty(networks, RADIAL_POINTS, device=device).uniform_(-5, 5)
        data = RadialData(x, torch.randn_like(x))
        ways = radial_ways(torch.randn(networks, count, 3, device=device), data)
        names = {"networks": networks, "neurons": count}
        rows += _rows("radial", ways, rounds, device, dict.fromkeys(ways, names))[0]
    return rows


def widened(network: Growable) -> Grown:
    """Every width by 30 %: half of the added neurons are copies, the others empty."""
    sources = {}
    for name, count in network.neurons().items():
        added = max(1, round(0.3 * count))
        sources[name] = [*range(count), *range(added // 2), *[NEW] * (added - added // 2)]
    return rewire(network, sources)


def deepened(network: Growable) -> Grown:
    """A residual layer in the first place, with as many neurons as the place has channels."""
    surgery = Surgery(network)
    place = network.declare().places[0]
    surgery.insert(place.name, 0, "residual", network.neurons()[place.width])
    return surgery.grown()


def measure_surgery(setting: Setting, batch: int, rounds: int, device: torch.device) -> list[measure.Row]:
    """The rows of part "surgery"."""
    step = Step(setting.network(device), setting.data(batch, device))
    step.run()  # which gives the optimiser its momenta
    network, optimizer = step.network, step.optimizer
    wider, deeper = widened(network), deepened(network)
    ways: dict[str, Callable[[], Any]] = {
        "training": step.run,
        "widen": lambda: widened(network),
        "widen, momenta": lambda: remap_optimizer(optimizer, network, wider),
        "insert": lambda: deepened(network),
        "insert, momenta": lambda: remap_optimizer(optimizer, network, deeper),
    }
    return _rows("surgery", ways, rounds, device, {"training": {"batch": batch}})[0]


TIMES = {
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "ratio": "of the first",
    "ratio_low": "quartiles of it",
    "ratio_high": "of it",
}
STEP = {"part": "part", "way": "way", "candidates": "candidates", **TIMES, "saved_bytes": "saved MiB"}
COLUMNS = {
    "step": {**STEP, "saved_ratio": "of training's"},
    "scores": {"part": "part", "way": "way", "candidates": "candidates", **TIMES},
    "splitting": {"part": "part", "way": "way", "products": "products", **TIMES, "of_product": "of a product"},
    "radial": {"part": "part", "way": "way", "neurons": "neurons", **TIMES},
    "surgery": {"part": "part", "way": "way", **TIMES},
}


def main(options: Options) -> None:
    device = options.prepare()
    own = SETTINGS[options.setting]
    batch, channels = options.batch or own.batch, options.channels or own.channels
    setting = Setting(own.network_name, channels, batch, own.image)
    rounds = options.rounds
    parts = {
        "step": measure_steps(setting, batch, options.new, rounds, device),
        "scores": measure_scores(setting, batch, rounds, device),
        "splitting": measure_splitting(setting, batch, rounds, device),
        "radial": measure_radial(options.neurons, rounds * options.repeats, device),
        "surgery": measure_surgery(setting, batch, rounds, device),
    }
    name = options.setting
    name += f"-channels{channels}" * (channels != own.channels) + f"-batch{batch}" * (batch != own.batch)
    inputs, side = setting.image
    title = f"{name}: {setting.network_name}, {channels} channels a layer, batch {batch}, {inputs}×{side}×{side}"
    measure.finish(options, "growth", name, title, [(COLUMNS[part], rows) for part, rows in parts.items()])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
