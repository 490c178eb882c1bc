"""Chapter 5: what is exact about PR-DARTS: configurations, spaces, morphisms, the schedule, the batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasbook.analysis import count_macs, count_parameters
from nasbook.errors import InvalidInput
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
    is_morphable,
    morphisms_of,
    obtainable,
)
from nasbook.seeding import generator
from nasbook.supernets import Life, Pool, SearchNetwork, possible_children
from nasbook.training import CountedMemory

__all__ = ["EXACT_MORPHISMS", "TABLE_1", "configurations", "random_history", "violations"]

CHAPTER = "05-prune-and-replace"

TOTALS = {"DL": 12, "DR": 36, "UR": 80}
"""Table 2's last column."""

WITHOUT = {"DL": 12, "DR": 32, "UR": 73}
"""The same where kernel 1 with dilation 2 does not count."""

EXACT_MORPHISMS = ("larger-kernel", "wider")
"""Those that keep the function (§3.2, 1 and 2)."""


def _number(value: float | None) -> float:
    """A measured number; NaN where it was not finite, for which a record has None."""
    return np.nan if value is None else value


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
    right = (
        totals == TOTALS
        and all(len(steps) == 6 for steps in values["reached"].values())  # step 0 and five more
        and without == WITHOUT
        and values["names"] == sum(totals.values())
        and (values["parameters"], values["macs"]) == (3_174_166, 491_200_128)
    )
    listed = ", ".join(f"{name} {totals[name]}" for name in TOTALS)
    excluded = ", ".join(f"{name} {without[name]}" for name in TOTALS)
    return exact(right, f"{listed}, counting kernel 1 with dilation 2; without it, as the caption says, {excluded}")


def _judge_space(record: Record) -> Verdict:
    values = record.measurements[0].values
    ratio = values["cells"] / values["darts_cells"]
    counted = (values["cells"], values["darts_cells"]) == (180 * 15**8, 180 * 8**8)
    right = counted and round(ratio) == 153 and f"{values['cells']:.1e}" == "4.6e+11"
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
    batch's statistics (training mode) and with running ones (evaluation mode). Another dilation of kernel 1, which has
    one tap, changes nothing and has a row of its own.
    """
    scale = pool_scale(workplace.scale)
    search = pr_darts.Search(
        pr_darts_config(scale, "UR"), workplace.data, pr_darts_space(scale), workplace.seed
    )
    for report in search.epochs():
        if report.epoch == sum(scale.cycle_epochs[:3]):
            break
    changes: dict[str, dict[str, list[float]]] = {}
    draws = generator(workplace.seed, "morphisms")
    for module, x in _trained_convolutions(search):
        for name in morphisms_of(module.configuration, CONSTRAINTS["UR"]):
            child = morph(module, name, draws)
            row = f"{name}, kernel 1" if module.configuration.kernel == 1 and "dilation" in name else name
            modes = changes.setdefault(row, {"training": [], "evaluation": []})
            for mode, values in modes.items():
                module.train(mode == "training")
                child.train(mode == "training")
                values.append(function_change(module, child, x))
    return {
        name: {
            mode: {"mean": float(np.mean(values)), "largest": float(np.max(values)), "count": len(values)}
            for mode, values in changes[name].items()
        }
        for name in sorted(changes, key=lambda name: (list(MORPHISMS).index(name.split(",")[0]), name))
    }


def _trained_convolutions(search: pr_darts.Search) -> list[tuple[MorphableConvolution, Tensor]]:
    """Every convolution of a search's supernet, with what it reads when the supernet sees a validation batch."""
    options = {**search.network_options(), "engine": "readable"}  # the fused engine does not call the candidates
    config, classes = search.config, search.data.classes
    network = SearchNetwork(search.network.spaces, config.channels, config.cells, classes, **options)
    network.load_state_dict(search.network.state_dict())
    network.to(search.device, torch.float64).eval()
    found: list[tuple[MorphableConvolution, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, MorphableConvolution)
        found.append((module, inputs[0].detach()))

    for module in network.modules():
        if isinstance(module, MorphableConvolution):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        network(search.loaders[1].batch(0)[0].double())
    for module, _ in found:
        module._forward_pre_hooks.clear()
    return found


def _judge_morphisms(record: Record) -> Verdict:
    values = record.measurements[0].values
    largest = {name: [_number(mode["largest"]) for mode in modes.values()] for name, modes in values.items()}
    means = {name: _number(modes["training"]["mean"]) for name, modes in values.items()}
    exactly_equal = [name for name in values if name in EXACT_MORPHISMS or name.endswith("kernel 1")]
    others = [name for name in MORPHISMS if name not in EXACT_MORPHISMS]
    complete = set(values) - set(exactly_equal) == set(others) and set(EXACT_MORPHISMS) <= set(values)
    kept = all(change < 1e-10 for name in exactly_equal for change in largest[name])
    changed = complete and all(1e-3 < means[name] < np.inf for name in others)
    exactly = ", ".join(f"{name} {np.max(largest[name]):.0e}" for name in EXACT_MORPHISMS if name in values)
    texts = ", ".join(f"{name} {means[name]:.2f}" for name in others if name in values)
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

TABLE_1 = {
    "cycle_epochs": [15, 15, 10, 10, 10, 10, 10, 10, 10],
    "grace_epochs": [5, 5, 3, 3, 3, 3, 3, 3, 3],
    "morphisms": [3, 3, 3, 3, 3, 0, 0, 0, 0],
    "candidates": [6, 6, 6, 6, 6, 4, 3, 2, 1],
}
"""The paper's, by the fields of the configuration."""

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
    if {life.operation for life in pool.lives if life.born == 1} != set(pr_darts.INITIAL_SPACE.operations):
        found.append("cycle 1: not the initial candidates")
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


def _weakest(lives: Sequence[Life], cycle: int) -> float:
    return min(life.weights[cycle - life.born] for life in lives)


def _birth_violations(
    pool: Pool, constraints: Constraints, cycle: int, left: Sequence[Life], newborn: Sequence[Life], wanted: int
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
        parent = str(life.parent)
        way = morphisms_of(Configuration.parse(parent), constraints) if is_morphable(parent) else {}
        if life.morphism not in way or way[life.morphism].name != life.operation:
            found.append(f"cycle {cycle}: {life.operation} is no child of {life.parent}")
        if life.operation in seen and reachable - seen:
            found.append(f"cycle {cycle}: {life.operation} came back though there were others left")
        seen.add(life.operation)
        standing.add(life.operation)
    if len(newborn) > wanted:
        found.append(f"cycle {cycle}: {len(newborn)} children, and {wanted} were to be born")
    if len(newborn) < wanted and reachable - standing:
        found.append(f"cycle {cycle}: {len(newborn)} children of {wanted}, though others could have been born")
    return found


def schedule(workplace: Workplace) -> dict[str, Any]:
    """Random histories of edges in the three spaces: rules that they break, configurations that came back.

    And α in one search: how far weights are from equal, at most, in grace epochs, and at least, in each cycle's last
    epoch; and how many grace epochs and cycles there were.
    """
    config = pr_darts.Config()
    found: dict[str, Any] = {
        "cycles": {name: list(getattr(config, name)) for name in TABLE_1},
        "histories": HISTORIES,
        "alpha": _alpha_over_cycles(workplace),
    }
    for name, constraints in CONSTRAINTS.items():
        pools = [random_history(constraints, seed) for seed in range(HISTORIES)]
        broken = [violations(pool, constraints) for pool in pools]
        found[name] = {
            "broken": sum(map(bool, broken)),
            "first": next((some[0] for some in broken if some), ""),
            "came_back": float(np.mean([len(pool.lives) - len(pool.seen) for pool in pools])),
            "discovered": float(np.mean([len(pool.seen) for pool in pools])),
        }
    return found


def _alpha_over_cycles(workplace: Workplace) -> dict[str, float]:
    scale = pool_scale(workplace.scale)
    search = pr_darts.Search(pr_darts_config(scale), workplace.data, pr_darts_space(scale), workplace.seed)
    in_grace, at_end = [], []
    for report in search.epochs():
        apart = np.max(
            [
                abs(weight - 1 / len(weights))
                for kind in report.pools
                for weights in report.weights(kind)
                for weight in weights.values()
            ]
        )
        if report.grace:
            in_grace.append(apart)
        elif search.finished or search.cycle_of(search.epoch)[0] != search.cycle:
            at_end.append(apart)
    return {
        "largest_in_grace": float(np.max(in_grace)),
        "least_at_end": float(np.min(at_end)),
        "grace_epochs": len(in_grace),
        "cycles": len(at_end),
    }


def _judge_schedule(record: Record) -> Verdict:
    values = record.measurements[0].values
    cycles = values["cycles"]
    alpha = {name: _number(value) for name, value in values["alpha"].items()}
    every_cycle = (alpha["grace_epochs"], alpha["cycles"]) == (sum(grace := record.scale["grace_epochs"]), len(grace))
    equal = min(grace) > 0 and alpha["largest_in_grace"] < 1e-7  # but for float32's rounding
    learned = alpha["least_at_end"] > 1e-3
    broken = sum(values[name]["broken"] for name in CONSTRAINTS)
    returns = ", ".join(f"{name} {values[name]['came_back']:.2f}" for name in CONSTRAINTS)
    numbers = (
        f"{broken} of {3 * values['histories']:,} random histories break a rule; configurations that came back to "
        f"an edge, having no other child left, in the mean: {returns}; weights differ from equal by at most "
        f"{alpha['largest_in_grace']:.0e} in {alpha['grace_epochs']} grace epochs, by {alpha['least_at_end']:.2f} or "
        f"more at the end of each of {alpha['cycles']} cycles"
    )
    right = cycles == TABLE_1 and every_cycle and equal and learned and broken == 0 and values["histories"] > 0
    return exact(right, numbers)


register(
    Experiment(
        "prdarts-schedule",
        "Table 1 and §3.2.2: the rules of pruning and replacing over random histories",
        CHAPTER,
        schedule,
        {"prdarts.schedule": _judge_schedule},
        seeded=False,
        scaled=pool_scale,
    )
)


# --- the batch --------------------------------------------------------------------------------------------------------

ATTEMPTS = 5
"""Steps from one attempt to enlarge the batch to the next (§3.3)."""


def batch(workplace: Workplace) -> dict[str, Any]:
    """How linear memory is in the batch, how a search's batch follows it, and what that saves. On a CPU only.

    In every cycle of one search: what the linear model expects of every batch size, from the smallest one alone,
    against what is counted; the images of every step; the largest batch whose counted memory is within the threshold;
    and seconds a pass with the batch that it ended with and with the smallest one, timed one after the other.

    Raises:
        InvalidInput: on CUDA, where the search follows what the allocator says and not what is counted here.
    """
    if torch.device(workplace.device).type == "cuda":
        raise InvalidInput("prdarts-batch compares a search with counted memory, which it follows on a CPU only.")
    scale = pool_scale(workplace.scale)
    config = pr_darts_config(scale, follow_memory=True)
    assert config.memory_budget is not None
    search = pr_darts.Search(config, workplace.data, pr_darts_space(scale), workplace.seed)
    sizes = range(scale.smallest_batch, scale.largest_batch + 1, config.batch_multiple)
    limit = int(0.95 * config.memory_budget * pr_darts.GIBIBYTE)
    rows: list[dict[str, Any]] = []
    taken: list[int] = []
    search.on_step = lambda run: taken.append(int(search.step_weights()[-1]))
    for _ in search.epochs():
        if not search.finished and search.cycle_of(search.epoch)[0] == search.cycle:
            continue
        meter = CountedMemory()
        counted = {size: meter.measure(search.update, search.loaders[0].at(0, 0, size)) for size in sizes}
        fixed, smallest = counted[scale.smallest_batch]
        expected = {size: fixed + (smallest - fixed) * size / scale.smallest_batch for size in sizes}
        rows.append(
            {
                "cycle": search.cycle + 1,
                "sizes": list(taken),
                "fixed": fixed,
                "counted": [counted[size].used for size in sizes],
                "bend": _bend([counted[size].used for size in sizes], list(sizes)),
                "error": [min(errors := [expected[s] / counted[s].used - 1 for s in sizes]), max(errors)],
                "most": max(counted[size].used for size in set(taken)),
                "largest": max((size for size in sizes if counted[size].used <= limit), default=scale.smallest_batch),
                "seconds": {
                    "smallest": _seconds_a_pass(search, scale.smallest_batch),
                    "grown": _seconds_a_pass(search, taken[-1]),
                },
            }
        )
        taken.clear()
    return {"batch_sizes": list(sizes), "limit": limit, "every": ATTEMPTS, "cycles": rows}


def _bend(used: list[int], sizes: list[int]) -> float:
    """How far memory is from a straight line in the batch, at most, relative to itself."""
    line = np.polyval(np.polyfit(sizes, used, 1), sizes)
    return float(np.abs(line / np.array(used) - 1).max())


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
    values = record.measurements[0].values
    cycles, scale = values["cycles"], record.scale
    sizes = values["batch_sizes"]
    smallest = sizes[0]
    bend = float(np.max([_number(row["bend"]) for row in cycles]))  # NaN where one is
    ends = (np.min, np.max)
    errors = [float(end([_number(row["error"][place]) for row in cycles])) for place, end in enumerate(ends)]
    changes = [
        [place for place in range(1, len(row["sizes"])) if row["sizes"][place] != row["sizes"][place - 1]]
        for row in cycles
    ]
    right = (
        bend < 0.01
        and errors[0] > -0.01  # more than was expected would not fit
        and len(cycles) == len(scale["cycle_epochs"])
        and smallest == scale["smallest_batch"]
        and values["limit"] == int(0.95 * scale["memory_mib"] * 2**20)
        and values["every"] == ATTEMPTS
        and all(row["sizes"][0] == smallest and set(row["sizes"]) <= set(sizes) for row in cycles)
        and all(place % ATTEMPTS == 0 for places in changes for place in places)
        and all(row["sizes"] == sorted(row["sizes"]) for row in cycles)
        and all(row["sizes"][-1] == row["largest"] and row["most"] <= values["limit"] for row in cycles)
        and any(changes[:-1])  # a batch that grew is small again in the next cycle
    )
    ratios = [row["seconds"]["smallest"] / row["seconds"]["grown"] for row in cycles]
    numbers = (
        f"memory is a straight line in the batch up to {bend:.2%}; expected from the smallest batch, by "
        f"{errors[0]:+.1%} to {errors[1]:+.1%} more than counted; every cycle begins with {smallest} images and ends "
        f"with {', '.join(str(row['sizes'][-1]) for row in cycles)}, each the largest that fits; with the smallest "
        f"batch a pass takes {min(ratios):.2f} to {max(ratios):.2f} times as long"
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
