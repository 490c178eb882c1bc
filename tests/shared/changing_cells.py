"""Small supernets whose cells change, for the tests of what changes them: every backbone, in double precision."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nasbook.genotypes import Space
from nasbook.networks import RECURRENT_BACKBONES, RecurrentCell
from nasbook.supernets import RecurrentSearchNetwork, SearchNetwork


@dataclass(frozen=True)
class Task:
    """What a head needs to know of data."""

    task: Literal["forecasting", "language"] = "forecasting"
    features: int = 3


@dataclass(frozen=True)
class Case:
    """A supernet to be changed."""

    name: str
    nodes: int = 2
    layers: int = 1
    task: Task = Task()
    hidden: int = 4
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.name, str(self.nodes), str(self.layers), *(str(value) for _, value in self.options)])

    @property
    def recurrent(self) -> bool:
        return self.name in RECURRENT_BACKBONES

    @property
    def operations(self) -> tuple[str, ...]:
        """The candidates of every edge."""
        if self.recurrent:
            return RECURRENT_BACKBONES[self.name].operations
        return ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")

    def spaces(self) -> dict[str, Space]:
        if self.recurrent:
            backbone = RECURRENT_BACKBONES[self.name]
            return dict.fromkeys(backbone.kinds(self.layers), backbone.space(self.nodes, self.layers))
        space = Space(self.operations, self.nodes)
        return dict.fromkeys(space.kinds, space)

    def build(self, spaces: dict[str, Space]) -> Any:
        if self.recurrent:
            return RecurrentSearchNetwork(spaces, self.task, self.hidden, **dict(self.options))
        return SearchNetwork(spaces, channels=4, cells=3, classes=3, **dict(self.options))

    def network(self, seed: int = 0, spread: float = 1.0) -> Any:
        """With α from N(0, spread²)."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self.build(self.spaces()).double()
            with torch.no_grad():
                for parameter in network.architecture():
                    parameter.normal_(0, spread)
        return network

    def batch(self, seed: int = 1, size: int = 5, steps: int = 4) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if not self.recurrent:
            images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
            return images, torch.randint(3, (size,), generator=generator)
        features = self.task.features
        if self.task.task == "language":
            words = torch.randint(features, (2, size, steps), generator=generator)
            return words[0], words[1]
        values = torch.randn(size, steps + 1, features, generator=generator, dtype=torch.float64)
        return values[:, :-1], values[:, -1]


RECURRENT = (
    Case("two-to-one", nodes=1),
    Case("two-to-one", layers=2, task=Task("language", 6)),
    Case("darts", nodes=1),
    Case("darts", nodes=3),
    Case("darts", layers=2),
    Case("highway", nodes=1),
    Case("highway", nodes=3),
)
CONVOLUTIONAL = (
    Case("concatenation", nodes=1, options=(("cell_output", "concatenation"),)),
    Case("concatenation", options=(("engine", "readable"),)),
    Case("mean", nodes=1, options=(("cell_output", "mean"),)),
    Case("mean", options=(("cell_output", "mean"),)),
)
CASES = (*RECURRENT, *CONVOLUTIONAL)
COPYING = (Case("two-to-one"), Case("two-to-one", layers=2, task=Task("language", 6)), Case("darts", nodes=3))
"""Cells whose operations can have copies."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(network: Any) -> dict[str, Tensor]:
    """A network's state, to compare it with a later one."""
    return copy.deepcopy(network.state_dict())


def one_step(cell: RecurrentCell, coefficients: Tensor, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Random x and h, and what a cell makes of them in one step."""
    draws = generator(seed)
    x = torch.randn(6, cell.inputs, generator=draws, dtype=torch.float64)
    h = torch.randn(6, cell.hidden, generator=draws, dtype=torch.float64)
    return x, h, cell(x[None], coefficients, h)[0].detach()


def readable(network: RecurrentSearchNetwork, case: Case) -> RecurrentSearchNetwork:
    """The same network in the readable form."""
    found = RecurrentSearchNetwork(network.spaces, case.task, case.hidden, engine="readable").double()
    found.load_state_dict(network.state_dict())
    return found
