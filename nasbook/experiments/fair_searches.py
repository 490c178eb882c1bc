"""Chapter 8: all methods with one set of numbers, so that what differs between them is the method.

Every supernet sees the images about as often, in batches of one size, with one number of channels and cells. The rate
on α follows one rule: Adam's steps are about as long as its rate, so that rate × steps says how far α can move. The
product is DARTS' on CIFAR-10, 3e-4 · 50 epochs · 390 steps; PC-DARTS and EnTranNAS have that of their papers. Where α
rests in some of the epochs, as PR-DARTS' does, it moves less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nasbook.data import ImageData
from nasbook.errors import require_positive, unknown_name
from nasbook.genotypes import Space
from nasbook.methods import (
    darts,
    entrannas,
    entrannas_dst,
    firefly_cells,
    growing,
    milenas,
    pc_darts,
    pr_darts,
    stretchable,
)
from nasbook.networks import GROWING_SPACE
from nasbook.training import Run

__all__ = ["STEADY", "SUPERNETS", "SearchSize", "build_search", "counted_search", "search_macs", "step_macs"]


def distance(config: Any) -> float:
    """Rate × steps of α on CIFAR-10 with a paper's configuration; half of the 50,000 images are for α."""
    return float(config.architecture_learning_rate * config.epochs * (25_000 // config.batch_size))


@dataclass(frozen=True)
class SearchSize:
    """What all searches of a comparison have in common."""

    space: Space
    """The cell space, with or without zero; methods that have no zero leave it out."""
    epochs: int
    """Passes over the training share."""
    batch_size: int
    """Images a step."""
    channels: int
    """C."""
    cells: int
    """L."""
    learning_rate: float = 0.025
    """Of the weights' SGD at the start."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs, batch_size=self.batch_size, channels=self.channels, cells=self.cells
        )

    @property
    def without_zero(self) -> Space:
        """The space for methods that have no zero operation among their candidates."""
        return replace(self.space, operations=self.space.choices)


def _settings(size: SearchSize, data: ImageData, moved: float | None = None) -> dict[str, Any]:
    """The common settings; ``moved`` is rate × steps of α, None for DARTS'."""
    steps = size.epochs * (len(data.train_labels) // 2 // size.batch_size)
    return {
        "epochs": size.epochs,
        "batch_size": size.batch_size,
        "channels": size.channels,
        "cells": size.cells,
        "order": "first-order",
        "learning_rate": size.learning_rate,
        "architecture_learning_rate": (moved or distance(darts.Config())) / steps,
    }


def _annealed(size: SearchSize, data: ImageData) -> dict[str, Any]:
    """EnTranNAS: its temperature falls as far as in the paper.

    The bottleneck is half as narrow as there, where a quarter of C would leave one channel.
    """
    paper = entrannas.Config()
    return {
        **_settings(size, data, distance(paper)),
        "bottleneck": paper.bottleneck if size.channels >= 2 * paper.bottleneck else 2,
        "temperature_decay": paper.temperature_decay ** (paper.epochs / size.epochs),
    }


def _darts(order: str) -> Callable[[SearchSize, ImageData, int], Any]:
    return lambda size, data, seed: darts.Search(
        darts.Config(**{**_settings(size, data), "order": order}), data, size.space, seed
    )


def _milenas(size: SearchSize, data: ImageData, seed: int) -> Any:
    return milenas.Search(milenas.Config(**_settings(size, data)), data, size.space, seed)


def _stretchable(size: SearchSize, data: ImageData, seed: int) -> Any:
    return stretchable.Search(stretchable.Config(**_settings(size, data)), data, size.without_zero, seed)


def _pc_darts(size: SearchSize, data: ImageData, seed: int) -> Any:
    paper = pc_darts.Config()  # α moves in 70 % of the steps, there and here
    moved = distance(paper)
    return pc_darts.Search(pc_darts.Config(**_settings(size, data, moved)), data, size.space, seed)


def _entrannas(size: SearchSize, data: ImageData, seed: int) -> Any:
    return entrannas.Search(entrannas.Config(**_annealed(size, data)), data, size.without_zero, seed)


def _entrannas_dst(size: SearchSize, data: ImageData, seed: int) -> Any:
    return entrannas_dst.Search(entrannas_dst.Config(**_annealed(size, data)), data, size.without_zero, seed)


def _pools(size: SearchSize, data: ImageData, **plan: Any) -> pr_darts.Config:
    settings = _settings(size, data)
    del settings["epochs"]
    cycles = len(plan["candidates"])
    each = max(2, size.epochs // cycles)
    grace = max(1, each // 3)  # as in the paper's cycles
    return pr_darts.Config(
        **settings, cycle_epochs=(each,) * cycles, grace_epochs=(grace,) * cycles, memory_budget=None, **plan
    )


def _pruning(size: SearchSize, data: ImageData, seed: int) -> Any:
    """PR-DARTS without replacement: three candidates on every edge, then two, then one."""
    config = _pools(size, data, morphisms=(0, 0), candidates=(2, 1))
    return pr_darts.Search(config, data, size.without_zero, seed)


def _pr_darts(size: SearchSize, data: ImageData, seed: int) -> Any:
    """Three cycles; the first two have a child on every edge. It begins with the paper's four candidates."""
    config = _pools(size, data, morphisms=(1, 1, 0), candidates=(4, 3, 1))
    space = replace(pr_darts.INITIAL_SPACE, nodes=size.space.nodes, kinds=size.space.kinds)
    return pr_darts.Search(config, data, space, seed)


def _growing(size: SearchSize, data: ImageData, seed: int) -> Any:
    """From one node fewer than the space has; a quarter of the epochs for each training and each tuning."""
    settings = _settings(size, data)
    del settings["epochs"], settings["order"]
    part = max(1, size.epochs // 4)
    config = growing.Config(**settings, stages=2, stage_epochs=part, tune_epochs=part)
    return growing.Search(config, data, replace(size.space, nodes=size.space.nodes - 1), seed)


def _firefly(size: SearchSize, data: ImageData, seed: int) -> Any:
    """One round over the five cells; of the space only its nodes, as the operations that grow are the paper's."""
    each = max(1, size.epochs // 10)  # five growths, each after a training
    config = firefly_cells.Config(
        rounds=1,
        epochs=each,
        direction_epochs=each,
        channels=size.channels,
        width=max(1, size.channels // 4),
        new_neurons=max(1, size.channels // 4),
        batch_size=size.batch_size,
        learning_rate=size.learning_rate,
        edges_per_node=size.space.edges_per_node,
    )
    return firefly_cells.Search(config, data, replace(GROWING_SPACE, nodes=size.space.nodes), seed)


SUPERNETS: dict[str, Callable[[SearchSize, ImageData, int], Any]] = {
    "DARTS, first order": _darts("first-order"),
    "DARTS, second order": _darts("second-order"),
    "MiLeNAS": _milenas,
    "Stretchable": _stretchable,
    "PC-DARTS": _pc_darts,
    "EnTranNAS": _entrannas,
    "EnTranNAS-DST": _entrannas_dst,
    "PR-DARTS": _pr_darts,
    "PR-DARTS, pruning only": _pruning,
    "Growing DARTS": _growing,
    "Firefly cells": _firefly,
}
"""Every method that trains a network with all candidates: its name in tables → what builds its search."""

STEADY = ("DARTS, first order", "DARTS, second order", "MiLeNAS", "Stretchable")
"""Those of them whose steps all cost the same."""


def build_search(name: str, size: SearchSize, data: ImageData, seed: int) -> Any:
    """A method's search with the numbers of a comparison.

    Raises:
        InvalidInput: there is no such method, or it can't search with these numbers.
    """
    if name not in SUPERNETS:
        raise unknown_name("method", name, SUPERNETS)
    return SUPERNETS[name](size, data, seed)


def _backward_flops(
    gradient_shape: Sequence[int],
    _input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *arguments: Any,
    out_shape: Any = None,
    **_: Any,
) -> int:
    """Of a convolution's backward pass: as many as forward for each of the two gradients that are asked for.

    torch's own count (2.11) takes the kernel's gradient for one of a dense convolution, which is too much by the number
    of groups: for a depthwise convolution, by that of channels.
    """
    needed = arguments[-1]  # (input, weight, bias)
    positions = gradient_shape[0] * math.prod(gradient_shape[2:])
    return 2 * positions * math.prod(weight_shape) * (bool(needed[0]) + bool(needed[1]))


def step_macs(run: Any) -> int:
    """Multiply-adds of one step of a run, forward and backward, counted while it makes the first one of its epoch."""
    mapping = {torch.ops.aten.convolution_backward: _backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run.begin_epoch()
        run.run_step(run.epoch * run.steps_per_epoch)
    return counter.get_total_flops() // 2


def search_macs(name: str, size: SearchSize, data: ImageData, seed: int) -> int:
    """Multiply-adds of a method's first step, by the readable engine, as the fused one multiplies zeros, too."""
    return step_macs(_readable(name, size, data, seed))


def counted_search(name: str, size: SearchSize, data: ImageData, seed: int) -> Any:
    """A method's search that counts what it costs: its reports' ``measured`` has an epoch's multiply-adds as ``macs``.

    Steps of one epoch cost nearly the same; those of different epochs don't, where α rests at first, pools change,
    edges leave or cells grow. So after every epoch its state goes into a copy with the readable engine, which makes and
    counts one step more.

    Raises:
        InvalidInput: as :func:`build_search`.
    """
    search = build_search(name, size, data, seed)
    steady = search_macs(name, size, data, seed) if name in STEADY else None

    def watch(run: Run) -> dict[str, float]:
        macs = steady
        if macs is None:
            copy = _readable(name, size, data, seed)
            copy.load_state_dict(deepcopy(run.state_dict()))  # optimisers take tensors over as they are
            copy.step = 0
            macs = step_macs(copy)
        return {"macs": float(macs * run.step)}

    search.watch = watch
    return search


def _readable(name: str, size: SearchSize, data: ImageData, seed: int) -> Any:
    search = build_search(name, size, data, seed)
    if hasattr(search.config, "engine"):
        search = type(search)(replace(search.config, engine="readable"), data, search.space, seed)
    return search
