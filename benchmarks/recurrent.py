"""What a pass of a recurrent cell costs, fused and readable (Chapter 6): a forward and a backward pass over a sequence.

    python benchmarks/recurrent.py                         series: 7 units, batch 50, 10 steps
    python benchmarks/recurrent.py --setting language      128 units, batch 20, 35 steps (a minute or two on a CPU)
    python benchmarks/recurrent.py --nodes 2 4 --backbones darts

The readable cell runs one module a candidate, node and time step; the fused one has the same weights and gives the same
states. Three kinds of pass:

* "all": a supernet's cell, gradients of weights and coefficients;
* "coefficients": the same, gradients of the coefficients only, as in an architecture step;
* "derived": one candidate a node, which reads the node before it; gradients of the weights.

torch's own LSTM of the same width stands beside them for orientation: one layer, gradients of its weights. All
contestants run in turn, each some times in a row, as it would in training. On a CPU the clock is the process's own, as
other programs may share the cores; on CUDA it is the wall's.

Rows have ``backbone`` ("lstm" for torch's), ``nodes``, ``gradients`` ("all", "coefficients", "derived"), ``engine``,
``seconds`` and

* ``ratio``: the readable cell's time over the fused one's, the median of the rounds' ratios; ``ratio_low``,
  ``ratio_high``: quartiles. Rows of the fused cell only;
* ``of_lstm``: time over the LSTM's, the median of the rounds' ratios;
* ``parameters``: weights of the cell;
* ``saved_bytes``: activations kept between the forward and the backward pass; ``saved_ratio``: over the readable
  cell's. The fused cell's stacks of weights count, as no parameter holds them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import _measure as measure
import torch
import tyro
from topology import ratios
from torch import Tensor, nn

from nasbook.analysis import count_parameters, saved_activation_bytes
from nasbook.genotypes import CellGenotype, Edge
from nasbook.networks import RECURRENT_BACKBONES, RECURRENT_ENGINES, build_recurrent_cell, derived_space


@dataclass(frozen=True)
class Setting:
    """Sizes of a cell and of its sequences."""

    inputs: int
    """n_x."""
    hidden: int
    """n_h."""
    batch: int
    steps: int
    nodes: tuple[int, ...]
    """Numbers of nodes to measure."""
    repeats: int
    """Passes in a row; their mean is a round's time."""


SETTINGS = {
    "series": Setting(inputs=7, hidden=7, batch=50, steps=10, nodes=(2, 3, 5), repeats=10),
    "language": Setting(inputs=128, hidden=128, batch=20, steps=35, nodes=(2, 4, 6), repeats=2),
}
"""The paper's: indices of the G7 with a window of 10 (§4.1), and words (§4.2)."""

Gradients = Literal["all", "coefficients", "derived"]
GRADIENTS: tuple[Gradients, ...] = ("all", "coefficients", "derived")


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 15
    """How many times each contestant is timed, after one time that warms up."""
    setting: Literal["series", "language"] = "series"
    """Sizes of cell and sequences."""
    nodes: tuple[int, ...] = ()
    """Numbers of nodes; empty for the setting's own."""
    backbones: tuple[str, ...] = tuple(RECURRENT_BACKBONES)
    """two-to-one, darts, highway."""
    gradients: tuple[Gradients, ...] = GRADIENTS
    """Kinds of pass."""


def derived_cell(backbone: str, nodes: int) -> CellGenotype:
    """A chain whose operations are the backbone's in turn."""
    choices = [name for name in RECURRENT_BACKBONES[backbone].operations if name != "none"]
    edges = tuple(Edge(node - 1, node, choices[node % len(choices)]) for node in range(1, nodes + 1))
    return CellGenotype(edges, nodes, 1, tuple(range(1, nodes + 1)) if backbone == "highway" else (nodes,))


class Pass:
    """One cell in one engine, or torch's LSTM, and the sequence that it reads."""

    def __init__(
        self, backbone: str, nodes: int, gradients: Gradients, engine: str, setting: Setting, device: torch.device
    ) -> None:
        self.backbone, self.nodes, self.gradients, self.engine = backbone, nodes, gradients, engine
        torch.manual_seed(0)
        self.inputs = torch.randn(setting.steps, setting.batch, setting.inputs, device=device)
        self.seeds = torch.randn(setting.steps, setting.batch, setting.hidden, device=device)
        self.arguments: tuple[Tensor, ...] = (self.inputs,)
        if backbone == "lstm":
            self.cell: nn.Module = nn.LSTM(setting.inputs, setting.hidden)
        else:
            space, coefficients = RECURRENT_BACKBONES[backbone].space(nodes), None
            output: tuple[int, ...] = ()
            if gradients == "derived":
                genotype = derived_cell(backbone, nodes)
                (space, coefficients), output = derived_space(genotype), genotype.output
            self.cell = build_recurrent_cell(
                backbone, space, setting.inputs, setting.hidden, output=output, engine=engine
            )
            if coefficients is None:
                shape = len(space.edges), len(space.operations)
                coefficients = torch.full(shape, 1 / shape[1]).requires_grad_()
            coefficients = coefficients.detach().to(device).requires_grad_(coefficients.requires_grad)
            self.arguments += (coefficients,)
        self.cell.to(device).requires_grad_(gradients != "coefficients")
        self.at = [tensor for tensor in (*self.arguments, *self.cell.parameters()) if tensor.requires_grad]

    def states(self) -> Tensor:
        found = self.cell(*self.arguments)
        return found if isinstance(found, Tensor) else found[0]

    def gradients_at(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.states(), self.at, self.seeds)

    def run(self, repeats: int) -> None:
        for _ in range(repeats):
            self.gradients_at()

    @property
    def name(self) -> str:
        return f"{self.backbone} {self.nodes} {self.gradients} {self.engine}"


def passes(
    setting: Setting, backbones: Sequence[str], gradients: Sequence[Gradients], device: torch.device
) -> list[Pass]:
    """The LSTM, then all cells, the readable one before the fused one."""
    cells = [
        Pass(backbone, nodes, kind, engine, setting, device)
        for backbone in backbones
        for kind in gradients
        for nodes in setting.nodes
        for engine in sorted(RECURRENT_ENGINES, reverse=True)
    ]
    return [Pass("lstm", 0, "derived", "torch", setting, device), *cells]


def measure_passes(
    setting: Setting, backbones: Sequence[str], gradients: Sequence[Gradients], rounds: int, device: torch.device
) -> list[measure.Row]:
    """The LSTM's row, then two for each backbone, kind of pass and number of nodes."""
    found = passes(setting, backbones, gradients, device)
    work = {one.name: functools.partial(one.run, setting.repeats) for one in found}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    together = measure.interleave(work, rounds, device, warm_up=1, clock=clock)
    seconds = {name: [value / setting.repeats for value in values] for name, values in together.items()}
    rows: list[measure.Row] = []
    for place, one in enumerate(found):
        row: measure.Row = {
            "backbone": one.backbone,
            "nodes": one.nodes or None,
            "gradients": one.gradients,
            "engine": one.engine,
            **measure.summary(seconds[one.name]),
            "of_lstm": ratios(seconds[one.name], seconds[found[0].name])[0],
            "parameters": count_parameters(one.cell),
            "saved_bytes": saved_activation_bytes(functools.partial(Pass.states, one)),
        }
        if one.engine == "fused":
            ratio = ratios(seconds[found[place - 1].name], seconds[one.name])
            row |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
            row["saved_ratio"] = row["saved_bytes"] / rows[-1]["saved_bytes"]
        rows.append(row)
    return rows


COLUMNS = {
    "backbone": "backbone",
    "gradients": "gradients",
    "nodes": "nodes",
    "engine": "engine",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "ratio": "readable/fused",
    "ratio_low": "quartiles of it",
    "ratio_high": "of it",
    "of_lstm": "of LSTM's",
    "parameters": "parameters",
    "saved_bytes": "saved MiB",
    "saved_ratio": "of readable's",
}


def main(options: Options) -> None:
    device = options.prepare()
    setting = SETTINGS[options.setting]
    name = options.setting
    if options.nodes:
        setting = replace(setting, nodes=options.nodes)
        name += "-nodes" + "-".join(map(str, options.nodes))
    rows = measure_passes(setting, options.backbones, options.gradients, options.rounds, device)
    title = (
        f"{name}: {setting.inputs} inputs, {setting.hidden} units, batch {setting.batch}, {setting.steps} steps, "
        "forward and backward pass"
    )
    measure.finish(options, "recurrent", name, title, [(COLUMNS, rows)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
