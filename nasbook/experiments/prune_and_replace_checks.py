"""Chapter 5: what is exact about PR-DARTS: configurations, spaces, morphisms, the schedule, the batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasbook.analysis import count_macs, count_parameters
from nasbook.experiments.image_cells import pr_darts_config, pr_darts_space
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import pool_scale
from nasbook.experiments.verdicts import Verdict, exact
from nasbook.genotypes import DARTS_SPACE, PR_DARTS_DL1, Space, count_cells
from nasbook.growth import function_change, morph
from nasbook.methods import pr_darts
from nasbook.networks import DerivedNetwork
from nasbook.operations import (
    CONSTRAINTS,
    MORPHISMS,
    Configuration,
    Constraints,
    MorphableConvolution,
    get_operation,
    morphisms_of,
    obtainable,
)
from nasbook.seeding import generator
from nasbook.supernets import Pool, SearchCell, SearchNetwork, possible_children
from nasbook.training import CountedMemory, evaluating

__all__ = ["EXACT_MORPHISMS", "configurations", "random_history", "violations"]

CHAPTER = "05-prune-and-replace"

TOTALS = {"DL": 12, "DR": 36, "UR": 80}
"""Table 2's last column."""

EXACT_MORPHISMS = ("larger-kernel", "wider")
"""Those that keep the function (§3.2, 1 and 2)."""


# --- configurations and spaces ----------------------------------------------------------------------------------------


def configurations(workplace: Workplace | None = None) -> dict[str, Any]:
    """Table 2 by enumeration, with and without dilated 1×1 kernels; the sizes of the spaces; the published cell DL1."""
    found: dict[str, Any] = {"reached": {}, "without_dilated_pointwise": {}, "names": 0}
    for name, constraints in CONSTRAINTS.items():
        steps = obtainable(constraints)
        without = obtainable(replace(constraints, dilated_pointwise=False))
        found["reached"][name] = [len(step) for step in steps]
        found["without_dilated_pointwise"][name] = sum(map(len, without))
        for configuration in frozenset().union(*steps):
            found["names"] += Configuration.parse(configuration.name).name == configuration.name
    ours = count_cells(Space(tuple(f"operation {place}" for place in range(15))))
    theirs = count_cells(Space((*DARTS_SPACE.choices, "an eighth")))
    network = DerivedNetwork(PR_DARTS_DL1, channels=36, cells=20)
    averaged = DerivedNetwork(PR_DARTS_DL1, channels=36, cells=20, cell_output="mean")
    return {
        **found,
        "cells": ours,
        "darts_cells": theirs,
        "parameters": count_parameters(network),
        "macs": count_macs(network, (1, 3, 32, 32)),
        "parameters_of_mean": count_parameters(averaged),
    }


def _judge_configurations(record: Record) -> Verdict:
    values = record.measurements[0].values
    totals = {name: sum(steps) for name, steps in values["reached"].items()}
    without = values["without_dilated_pointwise"]
    right = totals == TOTALS and values["names"] == sum(totals.values())
    listed = ", ".join(f"{name} {totals[name]}" for name in TOTALS)
    excluded = ", ".join(f"{name} {without[name]}" for name in TOTALS)
    return exact(right, f"{listed}, counting kernel 1 with dilation 2; without it, as the caption says, {excluded}")


def _judge_space(record: Record) -> Verdict:
    values = record.measurements[0].values
    ratio = values["cells"] / values["darts_cells"]
    right = values["cells"] == 180 * 15**8 and round(ratio) == 153 and f"{values['cells']:.1e}" == "4.6e+11"
    numbers = f"{values['cells']:.3e} cells, {ratio:.1f} times DARTS' {values['darts_cells']:.2e} (not 9.3e+09)"
    return exact(right, numbers)


register(
    Experiment(
        "prdarts-exact",
        "Table 2 by enumeration, the sizes of the spaces, and the published cell",
        CHAPTER,
        configurations,
        {"prdarts.configurations": _judge_configurations, "prdarts.space": _judge_space},
        seeded=False,
    )
)


# --- morphisms --------------------------------------------------------------------------------------------------------


def morphisms(workplace: Workplace) -> dict[str, Any]:
    """How much each morphism changes the function of trained convolutions, in the mean and at most.

    The convolutions are those of a supernet at the end of the third cycle of a search in the unrestricted space, with
    the inputs that they have there on a validation batch, all in float64. Relative change of the output, with the
    batch's statistics (training mode) and with running ones (evaluation mode).
    """
    scale = pool_scale(workplace.scale)
    search = pr_darts.Search(
        pr_darts_config(scale, "UR"), workplace.data, pr_darts_space(scale), workplace.seed
    )
    for report in search.epochs():
        if report.epoch == sum(scale.cycle_epochs[:3]):
            break
    changes: dict[str, dict[str, list[float]]] = {name: {"training": [], "evaluation": []} for name in MORPHISMS}
    network = search.network.double()
    images = search.loaders[1].batch(0)[0].double()
    draws = generator(workplace.seed, "morphisms")
    for module, x in _trained_inputs(network, images):
        for name in morphisms_of(module.configuration, CONSTRAINTS["UR"]):
            child = morph(module, name, draws)
            for mode in ("training", "evaluation"):
                module.train(mode == "training")
                child.train(mode == "training")
                changes[name][mode].append(function_change(module, child, x))
    return {
        name: {
            mode: {"mean": float(np.mean(values)), "largest": float(np.max(values)), "count": len(values)}
            for mode, values in modes.items()
        }
        for name, modes in changes.items()
    }


def _trained_inputs(network: SearchNetwork, images: Tensor) -> list[tuple[MorphableConvolution, Tensor]]:
    """Every convolution of a supernet, with what it reads when the supernet sees the images."""
    found: list[tuple[MorphableConvolution, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, MorphableConvolution)
        found.append((module, inputs[0].detach()))

    convolutions = [module for module in network.modules() if isinstance(module, MorphableConvolution)]
    hooks = [module.register_forward_pre_hook(note) for module in convolutions]
    try:
        with torch.no_grad(), evaluating(network), _readable(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _readable(network: SearchNetwork) -> Iterator[None]:
    """Within the block every candidate is called, as the readable engine does: the fused one reads parameters only."""
    kinds = [type(cell) for cell in network.cells]
    try:
        for cell in network.cells:
            cell.__class__ = SearchCell
        yield
    finally:
        for cell, kind in zip(network.cells, kinds, strict=True):
            cell.__class__ = kind


def _judge_morphisms(record: Record) -> Verdict:
    values = record.measurements[0].values
    kept = all(values[name][mode]["largest"] < 1e-10 for name in EXACT_MORPHISMS for mode in values[name])
    others = [name for name in values if name not in EXACT_MORPHISMS]
    changed = all(values[name]["training"]["mean"] > 1e-3 for name in others)
    exactly = ", ".join(f"{name} {max(m['largest'] for m in values[name].values()):.0e}" for name in EXACT_MORPHISMS)
    texts = ", ".join(f"{name} {values[name]['training']['mean']:.2f}" for name in others)
    return exact(kept and changed, f"largest relative change: {exactly}; mean of the others in training mode: {texts}")


register(
    Experiment(
        "prdarts-morphisms",
        "§3.2: what each morphism does to the function of a trained convolution",
        CHAPTER,
        morphisms,
        {"prdarts.morphisms": _judge_morphisms},
        seeded=False,
        scaled=pool_scale,
    )
)


# --- the schedule -----------------------------------------------------------------------------------------------------

HISTORIES = 1000
"""Random histories of an edge, in each space."""


def random_history(constraints: Constraints, seed: int) -> Pool:
    """An edge's pool over Table 1's nine cycles, with random weights in place of learned ones."""
    config, draws = pr_darts.Config(), generator(seed, "history")
    pool = Pool.of(pr_darts.INITIAL_SPACE.operations)
    for cycle, (children, left) in enumerate(zip(config.morphisms, config.candidates, strict=True), start=1):
        names = pool.operations
        drawn = torch.rand(len(names), generator=draws, dtype=torch.float64).softmax(0).tolist()
        last = cycle == len(config.candidates)
        pool = pool.weighed(dict(zip(names, drawn, strict=True)))
        pool = pool.pruned(left - children, cycle, keep_convolution=not last)
        pool = pool.replaced(children, cycle, constraints, draws)
    return pool


def violations(pool: Pool, constraints: Constraints) -> list[str]:
    """The rules of §3.2 that an edge's history breaks; read off the lives, not off the code that made them."""
    config = pr_darts.Config()
    cycles = len(config.candidates)
    found = []
    for cycle in range(1, cycles + 1):
        living = [life for life in pool.lives if life.born <= cycle and (life.died is None or life.died >= cycle)]
        names = [life.operation for life in living]
        newborn = [life for life in pool.lives if life.born == cycle + 1]
        left = [life for life in living if life.died != cycle]
        dying = [life for life in living if life.died == cycle]
        place = cycle - 1
        if len(set(names)) != len(names):
            found.append(f"cycle {cycle}: a configuration stands twice in the pool")
        if len(left) != min(len(living), config.candidates[place] - config.morphisms[place]):
            found.append(f"cycle {cycle}: {len(left)} candidates were left")
        if cycle < cycles and not any(get_operation(life.operation).kind == "convolution" for life in left):
            found.append(f"cycle {cycle}: no convolution was left")
        strongest = max(
            (life for life in living if get_operation(life.operation).kind == "convolution"),
            key=lambda life: life.weights[cycle - life.born],
            default=None,
        )
        spared = [life for life in left if life is not strongest or cycle == cycles]
        if spared and dying and _weakest(spared, cycle) < max(life.weights[cycle - life.born] for life in dying):
            found.append(f"cycle {cycle}: a stronger candidate was pruned and a weaker one kept")
        found += _birth_violations(pool, constraints, cycle, left, newborn, config.morphisms[place])
    return found


def _weakest(lives: list[Any], cycle: int) -> float:
    return min(life.weights[cycle - life.born] for life in lives)


def _birth_violations(
    pool: Pool, constraints: Constraints, cycle: int, left: list[Any], newborn: list[Any], wanted: int
) -> list[str]:
    """What is wrong with the children of one cycle, in the order in which they were born."""
    found = []
    seen = {life.operation for life in pool.lives if life.born <= cycle}
    standing = {life.operation for life in left}
    reachable = {child.operation for child, _ in possible_children(left, constraints)}
    for life in newborn:
        if life.parent not in {parent.operation for parent in left}:
            found.append(f"cycle {cycle}: {life.operation} has a parent that did not stay")
            continue
        way = morphisms_of(Configuration.parse(life.parent), constraints)
        if life.morphism not in way or way[life.morphism].name != life.operation:
            found.append(f"cycle {cycle}: {life.operation} is no child of {life.parent}")
        if life.operation in seen and reachable - seen:
            found.append(f"cycle {cycle}: {life.operation} came back though there were others left")
        seen.add(life.operation)
        standing.add(life.operation)
    if len(newborn) < wanted and reachable - standing:
        found.append(f"cycle {cycle}: {len(newborn)} children of {wanted}, though others could have been born")
    return found


def schedule(workplace: Workplace | None = None) -> dict[str, Any]:
    """Random histories of edges in the three spaces: rules that they break, configurations that came back."""
    config = pr_darts.Config()
    found: dict[str, Any] = {
        "cycles": {
            "epochs": list(config.cycle_epochs),
            "grace": list(config.grace_epochs),
            "morphisms": list(config.morphisms),
            "candidates": list(config.candidates),
        },
        "histories": HISTORIES,
    }
    for name, constraints in CONSTRAINTS.items():
        pools = [random_history(constraints, seed) for seed in range(HISTORIES)]
        broken = [violations(pool, constraints) for pool in pools]
        lives = [[life.operation for life in pool.lives] for pool in pools]
        found[name] = {
            "broken": sum(map(bool, broken)),
            "first": next((some[0] for some in broken if some), ""),
            "came_back": float(np.mean([len(names) - len(set(names)) for names in lives])),
            "discovered": float(np.mean([len(set(names)) for names in lives])),
        }
    return found


def _judge_schedule(record: Record) -> Verdict:
    values = record.measurements[0].values
    cycles = values["cycles"]
    as_published = (
        sum(cycles["epochs"]) == 100
        and cycles["grace"] == [5, 5, 3, 3, 3, 3, 3, 3, 3]
        and cycles["morphisms"] == [3, 3, 3, 3, 3, 0, 0, 0, 0]
        and cycles["candidates"] == [6, 6, 6, 6, 6, 4, 3, 2, 1]
    )
    broken = sum(values[name]["broken"] for name in CONSTRAINTS)
    returns = ", ".join(f"{name} {values[name]['came_back']:.2f}" for name in CONSTRAINTS)
    numbers = (
        f"{broken} of {3 * values['histories']:,} random histories break a rule; configurations that came back to "
        f"an edge, having no other child left, in the mean: {returns}"
    )
    return exact(as_published and broken == 0, numbers)


register(
    Experiment(
        "prdarts-schedule",
        "Table 1 and §3.2.2: the rules of pruning and replacing over random histories",
        CHAPTER,
        schedule,
        {"prdarts.schedule": _judge_schedule},
        seeded=False,
    )
)


# --- the batch --------------------------------------------------------------------------------------------------------


def batch(workplace: Workplace) -> dict[str, Any]:
    """How linear memory is in the batch, how a search's batch follows it, and what that saves.

    In every cycle of one search: what the linear model expects of every batch size, from the smallest one alone,
    against what is counted; the batch sizes of the steps; and seconds a pass with the batch that it ended with and with
    the smallest one, timed one after the other.
    """
    scale = pool_scale(workplace.scale)
    config = pr_darts_config(scale, follow_memory=True)
    assert config.memory_budget is not None
    search = pr_darts.Search(config, workplace.data, pr_darts_space(scale), workplace.seed)
    sizes = range(scale.smallest_batch, scale.largest_batch + 1, config.batch_multiple)
    budget = int(config.memory_budget * pr_darts.GIBIBYTE)
    rows: list[dict[str, Any]] = []
    taken: list[int] = []
    search.on_step = lambda run: taken.append(search.batch_size)
    for report in search.epochs():
        if report.cycle > len(rows):
            rows.append({"cycle": report.cycle, "sizes": [config.batch_size]})
        rows[-1]["sizes"] += taken
        taken.clear()
        if search.epoch < search.total_epochs and search.cycle_of(search.epoch)[0] == search.cycle:
            continue
        meter = CountedMemory()
        counted = {size: meter.measure(search.update, search.loaders[0].at(0, 0, size)) for size in sizes}
        fixed, smallest = counted[scale.smallest_batch]
        expected = {size: fixed + (smallest - fixed) * size / scale.smallest_batch for size in sizes}
        rows[-1].update(
            fixed=fixed,
            counted=[counted[size].used for size in sizes],
            error=max(abs(expected[size] / counted[size].used - 1) for size in sizes),
            within=max(counted[size].used for size in set(rows[-1]["sizes"])) <= 0.95 * budget,
            largest=max((size for size in sizes if counted[size].used <= 0.95 * budget), default=scale.smallest_batch),
            seconds={
                name: _seconds_a_pass(search, size)
                for name, size in (("smallest", scale.smallest_batch), ("grown", search.batch_size))
            },
        )
    return {"batch_sizes": list(sizes), "budget": budget, "cycles": rows}


def _seconds_a_pass(search: pr_darts.Search, size: int) -> float:
    """Seconds of steps on the weights and the architecture over one pass, from the median of five steps."""
    train, validation = (loader.at(0, 0, size) for loader in search.loaders)
    state = copy.deepcopy(search.state_dict())
    search.update.step(train, validation)
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        search.update.step(train, validation)
        if search.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    search.network.load_state_dict(state["network"])
    search.update.weight_optimizer.load_state_dict(state["weight_optimizer"])
    search.update.architecture_optimizer.load_state_dict(state["architecture_optimizer"])
    return float(np.median(taken)) * math.floor(len(search.loaders[0].images) / size)


def _judge_batch(record: Record) -> Verdict:
    cycles = record.measurements[0].values["cycles"]
    smallest = cycles[0]["sizes"][0]
    linear = max(row["error"] for row in cycles)
    starts = all(row["sizes"][0] == smallest for row in cycles)
    rising = all(a <= b for row in cycles for a, b in zip(row["sizes"], row["sizes"][1:], strict=False))
    fifth = all(
        place % 5 == 0
        for row in cycles
        for place, (a, b) in enumerate(zip(row["sizes"], row["sizes"][1:], strict=False), start=1)
        if a != b and place <= 5
    )
    right = starts and rising and fifth and linear < 0.02 and all(row["within"] for row in cycles)
    ratios = [row["seconds"]["smallest"] / row["seconds"]["grown"] for row in cycles]
    numbers = (
        f"the linear model is off by at most {linear:.2%}; batches by cycle {smallest} to "
        f"{', '.join(str(row['sizes'][-1]) for row in cycles)}; a pass takes {min(ratios):.2f} to {max(ratios):.2f} "
        f"times as long with the smallest batch"
    )
    return exact(right, numbers)


register(
    Experiment(
        "prdarts-batch",
        "§3.3: memory against the batch, and a batch that follows it",
        CHAPTER,
        batch,
        {"prdarts.batch": _judge_batch},
        seeded=False,
        scaled=pool_scale,
    )
)
