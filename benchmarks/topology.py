"""What topology variables cost beside DARTS' softmax, and what the mixed level costs beside DARTS' update.

    python benchmarks/topology.py                               Chapter 2's supernet at quick, on the CPU
    python benchmarks/topology.py --setting paper --batch 16    C=16, 8 cells, 32×32 images (minutes on a CPU)
    python benchmarks/topology.py --setting paper --device cuda

The supernets are those of Chapter 2, without the zero operation, on the fused engine; those compared have the same
edges, operations, weights and images. With pairs of output edges, edges that no node can choose are left out of both.
On a CPU the clock is the process's own, as other programs may share the cores; on CUDA it is the wall's. A ratio is
the median of the rounds' ratios, each of two times of one round; ``ratio_low`` and ``ratio_high`` are their quartiles.

Rows of first-order steps have ``kind`` "step", ``update`` ("darts", or "milenas" with both losses), ``relaxation``,
``nodes`` (intermediate ones), ``edges``, ``batch``, ``seconds`` and

* ``ratio``: this step over DARTS' with the softmax on the same edges;
* ``saved_bytes``: activations kept between the forward and the backward pass of the architecture's loss, penalty
  included; without parameters and buffers;
* ``saved_ratio``: the same over the softmax's.

MiLeNAS' row has ``extra``, what its step takes above DARTS' over a forward and a backward pass for the architecture,
which is measured too (``kind`` "pass"): 1 means that it costs one such pass more.

Rows of the relaxations alone have ``kind`` "relaxation", ``relaxation``, ``nodes`` and

* ``choices``: topology variables of a cell, and ``codes``, how many of them the first node has;
* ``seconds``: all that a first-order step asks of both kinds of cell: coefficients for two passes, the penalty, and
  the backward pass through them;
* ``of_step``: the same over the step with this relaxation, where the step was measured;
* ``over_softmax``: the same over the softmax's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import _measure as measure
import torch
import torch.nn.functional as F
import tyro
from search_step import Batch, Setting
from torch import Tensor, nn

from nasbook.analysis import saved_activation_bytes
from nasbook.experiments import SCALES, stretchable_scale
from nasbook.genotypes import Space
from nasbook.methods import darts, milenas
from nasbook.supernets import (
    AnyOutputEdges,
    OutputEdges,
    Relaxation,
    SearchNetwork,
    SoftmaxRelaxation,
    TopologyRelaxation,
    output_edge_space,
)
from nasbook.training import FirstOrder, Objective, optimizer_form

RELAXATIONS: dict[str, Callable[[Space], Relaxation]] = {
    "softmax": SoftmaxRelaxation,
    "any-output-edges": AnyOutputEdges,
    "output-edges": OutputEdges,
}


def _setting(scale: str, image: tuple[int, int]) -> Setting:
    numbers = stretchable_scale(SCALES[scale])
    space = numbers.stretchable_space
    return Setting(space, numbers.search_channels, numbers.search_cells, numbers.search_batch, image)


SETTINGS = {"quick": _setting("quick", (1, 8)), "paper": _setting("paper", (3, 32))}


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    setting: Literal["quick", "paper"] = "quick"
    """The scale whose operations, network and batch are measured."""
    batch: int = 0
    """Images a step; 0 for the setting's own, 64."""
    nodes: tuple[int, ...] = ()
    """Intermediate nodes at which steps are measured; by default the setting's own and 7 (N = 9 in Eq. 11)."""
    alone: tuple[int, ...] = (4, 5, 6, 7, 8, 10)
    """Intermediate nodes at which relaxations are measured alone, beside those of the steps."""
    repeats: int = 100
    """How many times relaxations are timed for each time of a step."""


class Step:
    """One supernet with its first-order update."""

    def __init__(self, setting: Setting, relaxation: str, update: str, train: Batch, validation: Batch) -> None:
        self.relaxation, self.name = relaxation, update
        self.train, self.validation = train, validation
        config = milenas.Config() if update == "milenas" else darts.Config()
        objective = config.objective() if isinstance(config, milenas.Config) else Objective()
        torch.manual_seed(0)  # relaxations come last, so that all have the same weights
        self.network = SearchNetwork(
            setting.space,
            setting.channels,
            setting.cells,
            in_channels=setting.image[0],
            relaxation=RELAXATIONS[relaxation],
        ).to(train[0].device)
        form = optimizer_form(train[0].device)
        sgd = torch.optim.SGD(
            self.network.weights(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, **form
        )
        adam = torch.optim.Adam(
            self.network.architecture(),
            config.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=config.architecture_weight_decay,
            **form,
        )
        self.update = FirstOrder(self.network, sgd, adam, clip=config.clip, objective=objective)

    def run(self) -> None:
        self.update.step(self.train, self.validation)

    def architecture_pass(self) -> None:
        self.update.architecture_gradient(self.train, self.validation)

    def saved_bytes(self) -> int:
        return saved_activation_bytes(_ArchitectureLoss(self.network, self.validation[1]), self.validation[0])

    def names(self) -> measure.Row:
        space = self.network.space
        names = {"kind": "step", "update": self.name, "relaxation": self.relaxation, "nodes": space.nodes}
        return {**names, "edges": len(space.edges), "batch": len(self.train[0])}


class _ArchitectureLoss(nn.Module):
    """A module, so that buffers are told from activations."""

    def __init__(self, network: SearchNetwork, labels: Tensor) -> None:
        super().__init__()
        self.network, self.labels = network, labels

    def forward(self, images: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images), self.labels) + self.network.penalty()


class Alone:
    """What a first-order step asks of the relaxations of both kinds of cell, without a network."""

    def __init__(self, space: Space, relaxation: str, device: torch.device) -> None:
        self.name, self.space = relaxation, space
        self.modules = [RELAXATIONS[relaxation](space).to(device) for _ in range(2)]
        self.parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self.received = torch.randn(2, len(space.edges), len(space.operations), device=device)

    def run(self) -> None:
        with torch.no_grad():  # the weights' pass
            for module in self.modules:
                module.coefficients()
        coefficients = [module.coefficients() for module in self.modules]
        penalty = torch.stack([module.penalty() for module in self.modules]).sum()
        roots, gradients = [*coefficients], [*self.received]
        if penalty.requires_grad:  # the softmax has none
            roots, gradients = [*roots, penalty], [*gradients, torch.ones_like(penalty)]
        torch.autograd.grad(roots, self.parameters, gradients)

    def names(self) -> measure.Row:
        row = {"kind": "relaxation", "relaxation": self.name, "nodes": self.space.nodes}
        row["edges"] = len(self.space.edges)
        module = self.modules[0]
        if isinstance(module, TopologyRelaxation):
            row |= {"choices": module.beta.numel(), "codes": len(module.choices[0])}
        return row


def spaces(setting: Setting, nodes: int) -> list[tuple[Space, list[str]]]:
    """The spaces with so many nodes, and the relaxations that are compared on each."""
    whole = replace(setting.space, nodes=nodes)
    return [(whole, ["softmax", "any-output-edges"]), (output_edge_space(whole), ["softmax", "output-edges"])]


def ratios(seconds: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios of two contestants' times, round by round."""
    row = measure.summary([one / other for one, other in zip(seconds, others, strict=True)])
    return row["seconds"], row["seconds_low"], row["seconds_high"]


def _clock(device: torch.device) -> Callable[[], float]:
    return time.perf_counter if device.type == "cuda" else time.process_time


def measure_steps(setting: Setting, batch: int, nodes: int, rounds: int, device: torch.device) -> list[measure.Row]:
    """The rows of steps with so many nodes."""
    train, validation = setting.data(batch, device), setting.data(batch, device)
    rows: list[measure.Row] = []
    for space, names in spaces(setting, nodes):
        own = replace(setting, space=space)
        steps = {name: Step(own, name, "darts", train, validation) for name in names}
        if "any-output-edges" in names:
            steps["milenas"] = Step(own, "softmax", "milenas", train, validation)
        work = {name: step.run for name, step in steps.items()}
        if "milenas" in steps:
            work["pass"] = steps["softmax"].architecture_pass
        seconds = measure.interleave(work, rounds, device, clock=_clock(device))
        softmax = seconds["softmax"]
        saved = {name: step.saved_bytes() for name, step in steps.items()}
        for name, values in seconds.items():
            row = {**steps["softmax" if name == "pass" else name].names(), **measure.summary(values)}
            row["ratio"], row["ratio_low"], row["ratio_high"] = ratios(values, softmax)
            if name == "pass":
                row["kind"] = "pass"
            else:
                row |= {"saved_bytes": saved[name], "saved_ratio": saved[name] / saved["softmax"]}
            if name == "milenas":
                rest = [one - other for one, other in zip(values, softmax, strict=True)]
                row["extra"], *_ = ratios(rest, seconds["pass"])
            rows.append(row)
    return rows


def measure_alone(
    setting: Setting,
    nodes: Sequence[int],
    steps: Mapping[tuple[int, str], float],
    rounds: int,
    device: torch.device,
) -> list[measure.Row]:
    """The rows of the relaxations; ``steps`` are the seconds of the steps that were measured, by edges and name."""
    rows: list[measure.Row] = []
    for number in nodes:
        for space, names in spaces(setting, number):
            found = {name: Alone(space, name, device) for name in names}
            work = {name: alone.run for name, alone in found.items()}
            seconds = measure.interleave(work, rounds, device, warm_up=10, clock=_clock(device))
            for name, alone in found.items():
                row = {**alone.names(), **measure.summary(seconds[name])}
                row["over_softmax"], *_ = ratios(seconds[name], seconds["softmax"])
                if (row["edges"], name) in steps:
                    row["of_step"] = row["seconds"] / steps[row["edges"], name]
                if name != "softmax" or "any-output-edges" in found:  # the softmax once, on all edges
                    rows.append(row)
    return rows


STEPS = {
    "nodes": "nodes",
    "edges": "edges",
    "kind": "kind",
    "update": "update",
    "relaxation": "relaxation",
    "seconds": "ms",
    "ratio": "of the softmax's",
    "ratio_low": "quartiles of it",
    "ratio_high": "of it",
    "extra": "extra passes",
    "saved_bytes": "saved MiB",
    "saved_ratio": "of the softmax's",
}
ALONE = {
    "nodes": "nodes",
    "edges": "edges",
    "relaxation": "relaxation",
    "choices": "choices",
    "codes": "of the first node",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "over_softmax": "of the softmax's",
    "of_step": "of a step %",
}


def main(options: Options) -> None:
    device = options.prepare()
    setting = SETTINGS[options.setting]
    batch = options.batch or setting.batch
    nodes = options.nodes or tuple(sorted({setting.space.nodes, 7}))
    steps = [row for number in nodes for row in measure_steps(setting, batch, number, options.rounds, device)]
    darts_steps = [row for row in steps if (row["kind"], row["update"]) == ("step", "darts")]
    seconds = {(row["edges"], row["relaxation"]): row["seconds"] for row in darts_steps}
    both = sorted({*nodes, *options.alone})
    alone = measure_alone(setting, both, seconds, options.rounds * options.repeats, device)
    name = options.setting if batch == setting.batch else f"{options.setting}-batch{batch}"
    channels, side = setting.image
    operations = len(setting.space.operations)
    title = (
        f"{name}: C={setting.channels}, {setting.cells} cells, {operations} operations, batch {batch}, "
        f"{channels}×{side}×{side}"
    )
    measure.finish(options, "topology", name, title, [(STEPS, steps), (ALONE, alone)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
