"""Chapter 5: the trained experiments on PR-DARTS (the trends among claims ``prdarts.*``).

What is exact stands in :mod:`nasbook.experiments.prune_and_replace_checks`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from nasbook.analysis import count_macs
from nasbook.experiments.image_cells import (
    derived_network,
    pr_darts_config,
    pr_darts_space,
    search_config,
    train_derived,
)
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import PoolScale, pool_scale
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.genotypes import DARTS_SPACE, Genotype, random_genotype
from nasbook.methods import GradientSearch, darts, pr_darts
from nasbook.operations import CONSTRAINTS, Configuration, is_morphable, obtainable
from nasbook.seeding import fold_seed, generator
from nasbook.supernets import Pool, distinct_operations, mean_similarity, operation_mix

__all__ = [
    "PAPER_TABLE",
    "ROWS",
    "chance_similarity",
    "cycle_ends",
    "prune_only_config",
    "search_accuracy",
    "similarities",
]

CHAPTER = "05-prune-and-replace"

ROWS = ("DARTS", "prune only", "DL", "DR", "UR")
"""The searches that are compared, by the words of figures."""

PAPER_TABLE = {
    "DARTS": (2.9, 2.94, None, 8),
    "DL": (4.0, 2.51, 15.53, 15),
    "DR": (4.2, 2.55, 16.69, 26),
    "UR": (5.4, 3.79, None, 45),
}
"""The paper's Table 3: millions of parameters, test error on CIFAR-10 and CIFAR-100 in %, operations discovered in the
normal cell. DARTS is its first-order row; DL is DL2."""


def _scale(workplace: Workplace) -> PoolScale:
    """The scale, with Chapter 5's numbers."""
    assert isinstance(workplace.scale, PoolScale)  # the registry saw to it
    return workplace.scale


def prune_only_config(scale: PoolScale) -> pr_darts.Config:
    """PR-DARTS that only prunes: DARTS' seven candidates lose one at the end of seven of the nine cycles, and one more.

    The same epochs, grace epochs and rates as with replacement, so that only the pools differ.
    """
    return replace(pr_darts_config(scale), morphisms=(0,) * 9, candidates=(6, 5, 5, 4, 4, 3, 3, 2, 1))


# --- Fig. 2 -----------------------------------------------------------------------------------------------------------


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
            "similarity": {kind: mean_similarity(pools) for kind, pools in report.pools.items()},
        }
        for report in search.history
    ]
    return {"history": history, "genotype": search.result().genotype.to_json()}


def similarities(record: Record) -> Float[np.ndarray, "seeds cycles"]:
    """The similarity of an edge's candidates in every cycle, the mean over edges and kinds of cell."""
    return np.array(
        [
            [np.mean(list(report["similarity"].values())) for report in cycle_ends(measurement["history"])]
            for measurement in (m.values for m in record.measurements)
        ]
    )


def chance_similarity(constraints: str = "DL", edges: int = 2000) -> Float[np.ndarray, " cycles"]:
    """The similarity in every cycle where weights are drawn at random; the schedule is Table 1's."""
    config, rng = pr_darts.Config(constraints=CONSTRAINTS[constraints]), np.random.default_rng(0)
    found = np.zeros((len(config.candidates), edges))
    for edge in range(edges):
        draws = generator(edge, "chance")
        pool = Pool.of(pr_darts.INITIAL_SPACE.operations)
        for cycle, (children, left) in enumerate(zip(config.morphisms, config.candidates, strict=True), start=1):
            found[cycle - 1, edge] = mean_similarity([pool.operations])
            names = pool.operations
            weights = dict(zip(names, rng.dirichlet(np.full(len(names), 20.0)).tolist(), strict=True))
            pool = pool.weighed(weights).pruned(left - children, cycle)
            pool = pool.replaced(children, cycle, config.constraints, draws)
    return found.mean(axis=1)


def _judge_similarity(record: Record) -> Verdict:
    values = similarities(record)
    cycles = np.arange(1, values.shape[1] + 1)
    ranks = np.array([stats.spearmanr(cycles, row).statistic for row in values])
    rise = values[:, -1] - values[:, 1]  # the second cycle is the first with children
    p = one_sided_p(ranks)
    chance = chance_similarity()
    means = ", ".join(f"{value:.2f}" for value in values.mean(0))
    numbers = (
        f"similarity by cycle {means}; Spearman's ρ with the cycle {ranks.mean():.2f}, one-sided p = {p:.3f}; from the "
        f"second cycle to the last {rise.mean():+.2f}; with random weights {chance[1]:.2f} to {chance[-1]:.2f}; "
        f"{len(values)} seeds"
    )
    return trend(bool(ranks.mean() > 0 and rise.mean() > 0), p < LEVEL, numbers)


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


def _searches(workplace: Workplace) -> dict[str, GradientSearch]:
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    epochs = sum(scale.cycle_epochs)
    rate = scale.architecture_learning_rate * scale.search_epochs / epochs  # rate × steps as at ``search_epochs``
    equal = replace(search_config(scale, epochs), order="first-order", architecture_learning_rate=rate)
    space = replace(DARTS_SPACE, nodes=scale.nodes)
    pruned = replace(space, operations=space.choices)
    searches: dict[str, GradientSearch] = {
        "DARTS": darts.Search(equal, data, space, seed),
        "prune only": pr_darts.Search(prune_only_config(scale), data, pruned, seed),
    }
    for name in CONSTRAINTS:
        searches[name] = pr_darts.Search(pr_darts_config(scale, name), data, pr_darts_space(scale), seed)
    return searches


def _retrained(workplace: Workplace, genotype: Genotype, name: str) -> dict[str, Any]:
    """A genotype's networks at the search's depth and 2.5 times as deep, trained from scratch."""
    scale = _scale(workplace)
    return {
        "shallow": train_derived(workplace, genotype, f"train {name} shallow", cells=scale.search_cells),
        "deep": train_derived(workplace, genotype, f"train {name} deep", cells=scale.deep_cells),
        "macs": _macs(workplace, genotype),
        "layers": convolution_layers(genotype),
    }


def _macs(workplace: Workplace, genotype: Genotype) -> int:
    """Multiply-adds of the deep network on one image."""
    scale, data = _scale(workplace), workplace.data
    network = derived_network(genotype, replace(scale, cells=scale.deep_cells), data, seed=0)
    return count_macs(network, (1, data.channels, data.size, data.size))


def convolution_layers(genotype: Genotype) -> float:
    """Layers of a separable convolution, the mean over both cells: how deeply its operations are stacked."""
    depths = [
        len(Configuration.parse(name).expansions) + 1 for name in genotype.operations() if is_morphable(name)
    ]
    return float(np.mean(depths)) if depths else 0.0


def spaces(workplace: Workplace) -> dict[str, Any]:
    """DARTS, pruning without replacement, and PR-DARTS in the three spaces, at equal epochs; and random DL cells.

    Every genotype is retrained at the search's depth and 2.5 times as deep.
    """
    scale = _scale(workplace)
    values: dict[str, Any] = {}
    for name, search in _searches(workplace).items():
        workplace.drive(search, f"search {name}")
        result = search.result()
        values[name] = {
            "search_accuracy": result.validation_accuracy,
            "seconds": round(result.seconds, 1),
            **_retrained(workplace, result.genotype, name),
        }
        if isinstance(search, pr_darts.Search):
            values[name]["discovered"] = {kind: distinct_operations(p) for kind, p in search.families().items()}
    like = replace(pr_darts_space(scale), operations=_discoverable("DL"))
    drawn = random_genotype(like, generator(fold_seed(workplace.seed, "random cells")))
    values["random DL"] = _retrained(workplace, drawn, "random DL")
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


def _judge_prune(record: Record) -> Verdict:
    pruned, plain = retrained_accuracy(record, "prune only"), retrained_accuracy(record, "DARTS")
    random = retrained_accuracy(record, "random DL")
    p = one_sided_p(pruned - plain)
    numbers = (
        f"retrained, {record.scale['deep_cells']} cells: pruning only {mean_and_error(pruned)}, DARTS "
        f"{mean_and_error(plain)}, one-sided p = {p:.2f}; random DL cells {mean_and_error(random)}; {len(plain)} seeds"
    )
    return trend(bool(pruned.mean() > plain.mean()), p < LEVEL, numbers)


def _judge_depth_gap(record: Record) -> Verdict:
    limited = {name: (search_accuracy(record, name), retrained_accuracy(record, name)) for name in ("DL", "DR")}
    searched, retrained = search_accuracy(record, "UR"), retrained_accuracy(record, "UR")
    lost_in_search = np.mean([values[0] for values in limited.values()], axis=0) - searched
    lost_in_training = np.mean([values[1] for values in limited.values()], axis=0) - retrained
    no_worse = one_sided_p(lost_in_search) >= LEVEL
    p = one_sided_p(lost_in_training)
    rows = [*limited.items(), ("UR", (searched, retrained))]
    texts = "; ".join(f"{name} {mean_and_error(a)} in search, {mean_and_error(b)} retrained" for name, (a, b) in rows)
    numbers = (
        f"{texts}, {record.scale['deep_cells']} cells; UR below DL and DR by {lost_in_training.mean():+.2%} retrained, "
        f"one-sided p = {p:.2f}, {len(searched)} seeds"
    )
    return trend(bool(no_worse and lost_in_training.mean() > 0), p < LEVEL, numbers)


register(
    Experiment(
        "prdarts-spaces",
        "Table 3: DARTS, pruning only, and PR-DARTS in three spaces, retrained at two depths",
        CHAPTER,
        spaces,
        {"prdarts.prune": _judge_prune, "prdarts.depth-gap": _judge_depth_gap},
        scaled=pool_scale,
    )
)


# --- what section 5 proposes ------------------------------------------------------------------------------------------

IMPROVEMENTS = ("as published", "deepening", "weighted morphisms")
"""The unrestricted search as it is, with a supernet that deepens, and with morphisms weighted by performance."""


def improvements(workplace: Workplace) -> dict[str, Any]:
    """The unrestricted search with each of two improvements that §5 proposes, and without."""
    scale = _scale(workplace)
    plain = pr_darts_config(scale, "UR")
    configs = {
        "as published": plain,
        "deepening": replace(plain, cycle_cells=scale.cycle_cells),
        "weighted morphisms": replace(plain, morphism_choice="performance"),
    }
    values: dict[str, Any] = {}
    for name, config in configs.items():
        search = pr_darts.Search(config, workplace.data, pr_darts_space(scale), workplace.seed)
        workplace.drive(search, f"search {name}")
        result = search.result()
        values[name] = {
            "search_accuracy": result.validation_accuracy,
            "seconds": round(result.seconds, 1),
            "merit": _late_merit(search),
            **_retrained(workplace, result.genotype, name),
        }
    return values


def _late_merit(search: pr_darts.Search) -> float:
    """The mean weight of children in their first cycle, as a multiple of their pool's mean, from the third cycle on."""
    merits = [
        merit
        for pools in search.families().values()
        for pool in pools
        for cycle in range(3, len(search.config.candidates) + 1)
        for _, merit in pool.merits(cycle)
    ]
    return float(np.mean(merits))


register(
    Experiment(
        "prdarts-improvements",
        "§5: a search that deepens as pools shrink, and morphisms weighted by performance",
        CHAPTER,
        improvements,
        scaled=pool_scale,
    )
)
