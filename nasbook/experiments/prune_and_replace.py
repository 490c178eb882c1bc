"""Chapter 5: the trained experiments on PR-DARTS (the trends among claims ``prdarts.*``).

What is exact stands in :mod:`nasbook.experiments.prune_and_replace_checks`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from nasbook.analysis import count_macs
from nasbook.errors import InvalidInput
from nasbook.experiments.image_cells import (
    derived_network,
    pr_darts_config,
    pr_darts_space,
    search_config,
    train_derived,
)
from nasbook.experiments.prune_and_replace_checks import random_history
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import PoolScale, pool_scale
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.genotypes import DARTS_SPACE, Genotype, Space, random_genotype
from nasbook.methods import GradientSearch, darts, pr_darts
from nasbook.operations import CONSTRAINTS, configuration_of, obtainable
from nasbook.seeding import fold_seed, generator
from nasbook.supernets import distinct_operations, mean_similarity, operation_mix

__all__ = [
    "IMPROVEMENTS",
    "PAPER_TABLE",
    "RANDOM_ROWS",
    "ROWS",
    "chance_similarity",
    "convolution_layers",
    "cycle_ends",
    "retrained_accuracy",
    "search_accuracy",
    "similarities",
    "unpruned_config",
    "without_children_config",
]

CHAPTER = "05-prune-and-replace"

ROWS = ("DARTS", "cycles only", "prune only", "DL", "DR", "UR")
"""The searches that are compared, by the words of figures."""

RANDOM_ROWS = ("random DARTS", "random DL")
"""Cells drawn uniformly from DARTS' seven operations, and from the fifteen of the DARTS-like space."""

RANDOM_CELLS = 3
"""How many random genotypes a seed has of each; their means are recorded."""

PAPER_TABLE = {
    "DARTS": (2.9, 2.94, None, 8),
    "DL1": (3.2, 2.74, 17.37, 15),
    "DL2": (4.0, 2.51, 15.53, 15),
    "DR": (4.2, 2.55, 16.69, 26),
    "UR": (5.4, 3.79, None, 45),
}
"""The paper's Table 3: millions of parameters, test error on CIFAR-10 and CIFAR-100 in %, operations discovered in the
normal cell. DARTS is its first-order row. Each of the others is the most interesting of three searches (§4.3)."""

NO_WORSE = 0.01
"""By how much a supernet's accuracy may be lower in the mean and still be "no worse"; fixed before any run."""


def _scale(workplace: Workplace) -> PoolScale:
    """The scale, with Chapter 5's numbers."""
    assert isinstance(workplace.scale, PoolScale)  # the registry saw to it
    return workplace.scale


def without_children_config(scale: PoolScale) -> pr_darts.Config:
    """PR-DARTS that only prunes: of DARTS' seven candidates one leaves after cycles 1, 2, 4, 6, 8 and 9.

    Epochs, grace epochs and rates are those with replacement, so that only the pools differ.
    """
    return replace(pr_darts_config(scale), morphisms=(0,) * 9, candidates=(6, 5, 5, 4, 4, 3, 3, 2, 1))


def unpruned_config(scale: PoolScale) -> pr_darts.Config:
    """The same cycles with all seven candidates to the end: what warm restarts and grace epochs do by themselves."""
    return replace(pr_darts_config(scale), morphisms=(0,) * 9, candidates=(7,) * 8 + (1,))


# --- Fig. 2 -----------------------------------------------------------------------------------------------------------

PAIRS = ("different", "all")
"""Which pairs of candidates a similarity averages: those of the paper's text, or with each candidate itself, too, as in
the authors' code."""


def cycle_ends(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last epoch of every cycle."""
    return [
        report
        for report, following in zip(history, [*history[1:], None], strict=True)
        if following is None or following["cycle"] != report["cycle"]
    ]


def course(workplace: Workplace) -> dict[str, Any]:
    """One search whose batch follows the memory, epoch by epoch: all that Fig. 2 shows, and the found cells."""
    scale = _scale(workplace)
    config = pr_darts_config(scale, follow_memory=True)
    search = pr_darts.Search(config, workplace.data, pr_darts_space(scale), workplace.seed)
    workplace.drive(search, "search")
    history = [
        {
            "epoch": report.epoch,
            "cycle": report.cycle,
            "grace": report.grace,
            "train": report.train_accuracy,
            "validation": report.validation_accuracy,
            "batch": report.batch_size,
            "memory": report.memory,
            "seconds": round(report.seconds, 3),
            "mix": {kind: operation_mix(pools) for kind, pools in report.pools.items()},
            "similarity": {
                pairs: {kind: mean_similarity(pools, pairs=pairs) for kind, pools in report.pools.items()}
                for pairs in PAIRS
            },
        }
        for report in search.history
    ]
    return {"history": history, "genotype": search.result().genotype.to_json()}


def similarities(record: Record, pairs: str = "different") -> Float[np.ndarray, "seeds cycles"]:
    """The similarity of an edge's candidates in every cycle, the mean over edges and kinds of cell."""
    return np.array(
        [
            [np.mean(list(report["similarity"][pairs].values())) for report in cycle_ends(history)]
            for history in record.values("history")
        ]
    )


@functools.cache  # seconds, and every reading of the scoreboard asks for it
def chance_similarity(
    constraints: str = "DL", edges: int = 1000, pairs: str = "different"
) -> Float[np.ndarray, " cycles"]:
    """The similarity in every cycle of Table 1's schedule where weights are drawn at random and nothing is learned."""
    cycles = range(1, len(pr_darts.Config().candidates) + 1)
    histories = [random_history(CONSTRAINTS[constraints], seed) for seed in range(edges)]
    found = np.array([mean_similarity([h.in_cycle(cycle) for h in histories], pairs=pairs) for cycle in cycles])
    found.flags.writeable = False  # all readers share it
    return found


def _judge_similarity(record: Record) -> Verdict:
    values = similarities(record)
    # The second cycle is the first with children; from the end of the sixth on pools only shrink. The paper says that
    # similarity rises throughout, also "when the ratio of convolution candidates drops".
    replacing, pruning = values[:, 5] - values[:, 1], values[:, 8] - values[:, 5]
    p = [one_sided_p(change) for change in (replacing, pruning)]
    chance, with_itself = chance_similarity(), similarities(record, "all").mean(0)
    means = ", ".join(f"{value:.2f}" for value in values.mean(0))
    numbers = (
        f"similarity by cycle {means}; from cycle 2 to 6 {replacing.mean():+.2f} (one-sided p = {p[0]:.3f}), from 6 to "
        f"9 {pruning.mean():+.2f} (p = {p[1]:.2f}); with random weights {chance[1]:.2f}, {chance[5]:.2f}, "
        f"{chance[8]:.2f} in cycles 2, 6, 9; each candidate with itself too, as in the code, {with_itself[1]:.2f}, "
        f"{with_itself[5]:.2f}, {with_itself[8]:.2f}; {len(values)} seeds"
    )
    return trend(bool(replacing.mean() > 0), all(one < LEVEL for one in p), numbers)


register(
    Experiment(
        "prdarts-course",
        "Fig. 2: a search over its cycles: accuracy, batch, time, operations, similarity",
        CHAPTER,
        course,
        {"prdarts.similarity": _judge_similarity},
        scaled=pool_scale,
    )
)


# --- Table 3, and the depth gap ---------------------------------------------------------------------------------------


def _searches(workplace: Workplace) -> dict[str, Callable[[], GradientSearch]]:
    """How each row's search is built; one at a time, so that none takes the memory of another."""
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    epochs = sum(scale.cycle_epochs)
    rate = scale.architecture_learning_rate * scale.search_epochs / epochs  # rate × steps as at ``search_epochs``
    equal = replace(search_config(scale, epochs), order="first-order", architecture_learning_rate=rate)
    space = replace(DARTS_SPACE, nodes=scale.nodes)
    seven = replace(space, operations=space.choices)

    def pooled(config: pr_darts.Config, candidates: Space) -> Callable[[], GradientSearch]:
        return lambda: pr_darts.Search(config, data, candidates, seed)

    return {
        "DARTS": lambda: darts.Search(equal, data, space, seed),
        "cycles only": pooled(unpruned_config(scale), seven),
        "prune only": pooled(without_children_config(scale), seven),
        **{name: pooled(pr_darts_config(scale, name), pr_darts_space(scale)) for name in CONSTRAINTS},
    }


def _retrained(workplace: Workplace, genotypes: Sequence[Genotype], name: str) -> dict[str, Any]:
    """Networks of genotypes at the search's depth and 2.5 times as deep, trained from scratch: the means."""
    scale = _scale(workplace)
    found: dict[str, Any] = {}
    for depth, cells in (("shallow", scale.search_cells), ("deep", scale.deep_cells)):
        trained = [
            train_derived(workplace, genotype, f"train {name} {number} {depth}", cells=cells)
            for number, genotype in enumerate(genotypes, start=1)
        ]
        keys = ("test_accuracy", "train_accuracy", "parameters")
        found[depth] = {key: float(np.mean([values[key] for values in trained])) for key in keys}
    return {
        **found,
        "genotypes": [genotype.to_json() for genotype in genotypes],
        "macs": float(np.mean([_macs(workplace, genotype) for genotype in genotypes])),
        "layers": float(np.mean([convolution_layers(genotype) for genotype in genotypes])),
    }


def _macs(workplace: Workplace, genotype: Genotype) -> int:
    """Multiply-adds of the deep network on one image."""
    scale, data = _scale(workplace), workplace.data
    network = derived_network(genotype, replace(scale, cells=scale.deep_cells), data, seed=0)
    return count_macs(network, (1, data.channels, data.size, data.size))


def convolution_layers(genotype: Genotype) -> float:
    """Layers of a separable convolution, the mean over both cells; 0 where there is none."""
    depths = []
    for name in genotype.operations():
        try:
            depths.append(len(configuration_of(name).expansions) + 1)
        except InvalidInput:  # none of them
            continue
    return float(np.mean(depths)) if depths else 0.0


def spaces(workplace: Workplace) -> dict[str, Any]:
    """DARTS; PR-DARTS' cycles without pruning, without children, and in three spaces, at equal epochs; random cells.

    Every genotype is retrained at the search's depth and 2.5 times as deep.
    """
    scale = _scale(workplace)
    values: dict[str, Any] = {}
    for name, build in _searches(workplace).items():
        search = build()
        workplace.drive(search, f"search {name}")
        result = search.result()
        values[name] = {
            "search_accuracy": result.validation_accuracy,
            "seconds": round(result.seconds, 1),
            **_retrained(workplace, [result.genotype], name),
        }
        if isinstance(search, pr_darts.Search):
            values[name]["discovered"] = {kind: distinct_operations(p) for kind, p in search.families().items()}
    seven = replace(DARTS_SPACE, operations=DARTS_SPACE.choices, nodes=scale.nodes)
    fifteen = replace(pr_darts_space(scale), operations=_discoverable("DL"))
    for name, space in zip(RANDOM_ROWS, (seven, fifteen), strict=True):
        draws = generator(fold_seed(workplace.seed, name))
        values[name] = _retrained(workplace, [random_genotype(space, draws) for _ in range(RANDOM_CELLS)], name)
    return values


def _discoverable(constraints: str) -> tuple[str, ...]:
    """All operations that a search in the space can meet: those it begins with, and what five morphing steps reach."""
    reached = sorted(one.name for step in obtainable(CONSTRAINTS[constraints]) for one in step)
    return tuple(dict.fromkeys((*pr_darts.INITIAL_SPACE.operations, *reached)))


def search_accuracy(record: Record, row: str) -> Float[np.ndarray, " seeds"]:
    """The supernet's validation accuracy at the end of a row's searches."""
    return np.array([value["search_accuracy"] for value in record.values(row)])


def retrained_accuracy(record: Record, row: str, depth: str = "deep") -> Float[np.ndarray, " seeds"]:
    """Test accuracy of a row's retrained networks, ``shallow`` or ``deep``."""
    return np.array([value[depth]["test_accuracy"] for value in record.values(row)])


def _parameters(record: Record, row: str) -> str:
    return f"{np.mean([value['deep']['parameters'] for value in record.values(row)]):,.0f} parameters"


def _judge_prune(record: Record) -> Verdict:
    rows = {row: retrained_accuracy(record, row) for row in ("prune only", "DARTS", "cycles only", "random DARTS")}
    pruned, plain = rows["prune only"], rows["DARTS"]
    p, alone = one_sided_p(pruned - plain), one_sided_p(pruned - rows["cycles only"])
    texts = "; ".join(f"{row} {mean_and_error(values)} ({_parameters(record, row)})" for row, values in rows.items())
    numbers = (
        f"retrained, {record.scale['deep_cells']} cells: {texts}; pruning against DARTS one-sided p = {p:.2f}, against "
        f"the same cycles without pruning p = {alone:.2f}, {len(plain)} seeds"
    )
    return trend(bool(pruned.mean() > plain.mean()), p < LEVEL, numbers)


def _judge_depth_gap(record: Record) -> Verdict:
    # DR is the control: within five steps UR differs from it in the number of expansions alone.
    searched = search_accuracy(record, "DR") - search_accuracy(record, "UR")
    retrained = {row: [retrained_accuracy(record, row, depth) for depth in ("deep", "shallow")] for row in ("DR", "UR")}
    deep, shallow = (limited - free for limited, free in zip(retrained["DR"], retrained["UR"], strict=True))
    layers = {row: np.mean([value["layers"] for value in record.values(row)]) for row in ("DR", "UR")}
    p = one_sided_p(deep)
    cells = record.scale["search_cells"], record.scale["deep_cells"]
    numbers = (
        f"DR above UR by {searched.mean():+.2%} in the search, {shallow.mean():+.2%} retrained with {cells[0]} cells, "
        f"{deep.mean():+.2%} with {cells[1]} (one-sided p = {p:.2f}); layers of a convolution DR {layers['DR']:.2f}, "
        f"UR {layers['UR']:.2f}; {len(deep)} seeds, {record.scale['epochs']} epochs of retraining"
    )
    right = searched.mean() <= NO_WORSE and deep.mean() > 0
    return trend(bool(right), p < LEVEL, numbers)


register(
    Experiment(
        "prdarts-spaces",
        "Table 3: DARTS, cycles and pruning alone, PR-DARTS in three spaces, retrained at two depths",
        CHAPTER,
        spaces,
        {"prdarts.prune": _judge_prune, "prdarts.depth-gap": _judge_depth_gap},
        scaled=pool_scale,
    )
)


# --- what section 5 proposes ------------------------------------------------------------------------------------------

IMPROVEMENTS = ("as published", "deepening", "deep throughout", "weighted morphisms")
"""The unrestricted search as it is; with a supernet that deepens; with one that is as deep as that from the beginning,
the dearer alternative; and with morphisms weighted by performance."""


def improvements(workplace: Workplace) -> dict[str, Any]:
    """The unrestricted search with each of two improvements that §5 proposes, and without."""
    scale = _scale(workplace)
    plain = pr_darts_config(scale, "UR")
    configs = {
        "as published": plain,
        "deepening": replace(plain, cycle_cells=scale.cycle_cells),
        "deep throughout": replace(plain, cells=scale.deep_cells),
        "weighted morphisms": replace(plain, morphism_choice="performance"),
    }
    values: dict[str, Any] = {}
    for name, config in configs.items():
        search = pr_darts.Search(config, workplace.data, pr_darts_space(scale), workplace.seed)
        workplace.drive(search, f"search {name}")
        result = search.result()
        cells = config.cycle_cells or (config.cells,) * len(config.cycle_epochs)
        values[name] = {
            "search_accuracy": result.validation_accuracy,
            "seconds": round(result.seconds, 1),
            "cell_epochs": sum(count * epochs for count, epochs in zip(cells, config.cycle_epochs, strict=True)),
            "first_weight": _first_weight(search),
            **_retrained(workplace, [result.genotype], name),
        }
    return values


def _first_weight(search: pr_darts.Search) -> float:
    """The mean weight of children in their first cycle, in multiples of their pools' mean, from the third cycle on."""
    return float(
        np.mean(
            [
                weight
                for pools in search.families().values()
                for pool in pools
                for cycle in range(3, len(search.config.candidates) + 1)
                for _, weight in pool.first_weights(cycle)
            ]
        )
    )


register(
    Experiment(
        "prdarts-improvements",
        "§5: a search that deepens as pools shrink, and morphisms weighted by performance",
        CHAPTER,
        improvements,
        scaled=pool_scale,
    )
)
