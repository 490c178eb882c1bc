"""Chapter 3: the trained experiments on EnTranNAS (the trends among claims ``entrannas.*``).

What is exact stands in :mod:`nasbook.experiments.entrannas_checks`, what it costs in
:mod:`nasbook.experiments.entrannas_costs`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nasbook.analysis import count_macs, kendall_tau
from nasbook.data import evaluation_batches
from nasbook.errors import InvalidInput
from nasbook.experiments.image_cells import (
    derived_network,
    entrannas_config,
    entrannas_dst_config,
    pc_darts_config,
    search_config,
    train_derived,
)
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import EnTranNASScale, entrannas_scale
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.genotypes import Genotype, Space
from nasbook.methods import GradientSearch, darts, entrannas, entrannas_dst, pc_darts
from nasbook.methods.entrannas import EXTENDED_SPACE, STANDARD_SPACE
from nasbook.supernets import EngineCells
from nasbook.training import kept_statistics

__all__ = ["METHODS", "PLACEMENTS", "connections", "drops", "penalty_weights", "rank_correlations"]

CHAPTER = "03-engine-and-transit-cells"

PLACEMENTS: tuple[EngineCells, ...] = ("all", "half", "last", "first")
"""Which cells are Engine-cells, in the order of Table 1."""


def _scale(workplace: Workplace) -> EnTranNASScale:
    """The scale, with Chapter 3's numbers."""
    assert isinstance(workplace.scale, EnTranNASScale)  # the registry saw to it
    return workplace.scale


def _space(scale: EnTranNASScale) -> Space:
    """The scale's candidates without zero, as in the paper's space."""
    return Space(scale.space.choices, scale.nodes)


def connections(genotype: Genotype) -> dict[str, int]:
    """How many connections each kind of cell has: "Edges (N/R)" of Table 4."""
    return {kind: len(cell.edges) for kind, cell in genotype.cells}


def _macs(workplace: Workplace, genotype: Genotype) -> int:
    """Multiply-adds of the derived network on one image of the data set."""
    data = workplace.data
    network = derived_network(genotype, workplace.scale, data, seed=0).to(data.train_images.device)
    return count_macs(network, (1, data.channels, data.size, data.size))


# --- Table 1 ----------------------------------------------------------------------------------------------------------


def placements(workplace: Workplace) -> dict[str, Any]:
    """Supernet and child-net accuracy for every placement of the Engine-cells, twice.

    ``alone``: DARTS' cells and softmax, with nothing changed but the placement, so that "all" is DARTS. ``whole``:
    the rest of EnTranNAS too (temperature, shared features, bottleneck). The paper does not say which its rows have.

    The child-net's operations count once each; ``weighted`` gives those of Engine-cells their coefficients. Both have
    the supernet's batch-norm statistics, which are a mixture's; ``renormalized`` is the child-net with those of the
    validation images it sees, 512 at a time.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    whole = entrannas_config(scale)
    alone = entrannas.Config(
        **{**vars(search_config(scale)), "order": "first-order"},
        feature_sharing=False,
        bottleneck=1,
        temperature=1.0,
        temperature_decay=1.0,
    )
    values: dict[str, Any] = {}
    for form, config in (("alone", alone), ("whole", whole)):
        for name in PLACEMENTS:
            search = entrannas.Search(replace(config, engine_cells=name), data, _space(scale), seed)
            workplace.drive(search, f"search {form} {name}")
            last = search.history[-1]
            values[f"{form}, {name}"] = {
                "supernet": last.validation_accuracy,
                "child": last.child_accuracy,
                "weighted": last.weighted_child_accuracy,
                "renormalized": renormalized_accuracy(search),
                "seconds": round(search.result().seconds, 1),
                "genotype": last.genotype.to_json(),
            }
    return values


@torch.no_grad()
def renormalized_accuracy(search: GradientSearch) -> float:
    """Accuracy of the child-net on the validation images, with batch norms that use the statistics of each batch."""
    network, loader, data = search.network, search.loaders[1], search.data
    batches = evaluation_batches(loader.images, loader.labels, 512, data.mean, data.std)
    training = network.training
    try:
        with kept_statistics(network.train()), network.child():
            correct = sum((network(images).argmax(-1) == labels).sum().item() for images, labels in batches)
    finally:
        network.train(training)
    return correct / len(loader.images)


def drops(record: Record, form: str) -> dict[str, np.ndarray]:
    """Supernet accuracy minus child-net accuracy, one number a seed, for every placement."""
    return {
        name: np.array([value["supernet"] - value["child"] for value in record.values(f"{form}, {name}")])
        for name in PLACEMENTS
    }


def _judge_placements(record: Record) -> Verdict:
    found = drops(record, "alone")
    others = [found[name] for name in PLACEMENTS if name != "first"]
    right = all(found["first"].mean() < other.mean() for other in others)
    p = one_sided_p(np.mean(others, axis=0) - found["first"])
    means = "; ".join(f"{name} {mean_and_error(values)}" for name, values in found.items())
    numbers = f"drops with the placement alone: {means}; first against the mean of the others, one-sided p = {p:.2f}"
    return trend(right, p < LEVEL, f"{numbers}, {len(found['first'])} seeds")


register(
    Experiment(
        "entrannas-placement",
        "Table 1: which cells are Engine-cells, and how much the child-net loses",
        CHAPTER,
        placements,
        {"entrannas.engine": _judge_placements},
        scaled=entrannas_scale,
    )
)


# --- Table 2 ----------------------------------------------------------------------------------------------------------

METHODS = ("DARTS", "PC-DARTS", "EnTranNAS", "EnTranNAS-DST")
"""The methods of Table 2 that we have; P-DARTS is left out."""

RANKED = 6
"""How many searches of a method are ranked, as in the paper; a record has one of each method a seed."""


def ranking(workplace: Workplace) -> dict[str, Any]:
    """One search of each method, and its cells trained from scratch: one of the points that Kendall's τ ranks."""
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    first = replace(search_config(scale), order="first-order")
    searches: dict[str, GradientSearch] = {
        "DARTS": darts.Search(first, data, scale.space, seed),
        "PC-DARTS": pc_darts.Search(pc_darts_config(scale), data, scale.space, seed),
        "EnTranNAS": entrannas.Search(entrannas_config(scale), data, _space(scale), seed),
        "EnTranNAS-DST": entrannas_dst.Search(entrannas_dst_config(scale), data, _space(scale), seed),
    }
    values: dict[str, Any] = {}
    for name, search in searches.items():
        workplace.drive(search, f"search {name}")
        result = search.result()
        values[name] = {
            "supernet": result.validation_accuracy,
            "seconds": round(result.seconds, 1),
            **train_derived(workplace, result.genotype, f"train {name}"),
        }
    return values


def rank_correlations(record: Record) -> dict[str, tuple[float, float, float]]:
    """Kendall's τ between supernet and retrained accuracy over the seeds of a record, and its bootstrap quartiles.

    The quartiles are of 2,000 draws of as many seeds with replacement; draws without an order are left out.
    """
    rng = np.random.default_rng(0)
    seeds = len(record.measurements)
    draws = rng.integers(0, seeds, (2000, seeds))
    found = {}
    for name in METHODS:
        pairs = [(value["supernet"], value["test_accuracy"]) for value in record.values(name)]
        resampled = [tau for draw in draws if (tau := _tau([pairs[i] for i in draw])) is not None]
        whole = _tau(pairs)
        assert whole is not None
        found[name] = (whole, float(np.quantile(resampled, 0.25)), float(np.quantile(resampled, 0.75)))
    return found


def _tau(pairs: list[tuple[float, float]]) -> float | None:
    try:
        return kendall_tau(*zip(*pairs, strict=True))
    except InvalidInput:  # all equal in one of the two
        return None


def _judge_ranking(record: Record) -> Verdict:
    found = rank_correlations(record)
    darts_tau, first, sparse = (found[name][0] for name in ("DARTS", "EnTranNAS", "EnTranNAS-DST"))
    # Two τ of as many seeds: apart when the quartiles of their bootstrap draws are.
    apart = found["EnTranNAS-DST"][1] > found["DARTS"][2]
    texts = "; ".join(f"{name} {tau:.2f} (quartiles {low:.2f} to {up:.2f})" for name, (tau, low, up) in found.items())
    return trend(darts_tau < first < sparse, apart, f"Kendall's τ: {texts}; {len(record.measurements)} searches each")


register(
    Experiment(
        "entrannas-kendall",
        "Table 2: does the supernet rank architectures as retraining does?",
        CHAPTER,
        ranking,
        {"entrannas.kendall": _judge_ranking},
        least=RANKED,
        scaled=entrannas_scale,
    )
)


# --- Table 4 and Fig. 5 -----------------------------------------------------------------------------------------------

EXTREMES = (0.0, 1.0)
"""Weights λ beside the paper's: no penalty, and five times its largest."""


def penalty_weights(scale: EnTranNASScale) -> tuple[float, ...]:
    """All weights λ that are measured, in order."""
    return tuple(sorted({*scale.penalty_weights, *EXTREMES}))


def sparsity(workplace: Workplace) -> dict[str, Any]:
    """EnTranNAS-DST with several weights λ: connections of the cells, size and accuracy of their networks."""
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    values: dict[str, Any] = {}
    for weight in penalty_weights(scale):
        config = replace(entrannas_dst_config(scale), penalty_weight=weight)
        search = entrannas_dst.Search(config, data, _space(scale), seed)
        workplace.drive(search, f"search {weight}")
        genotype = search.result().genotype
        last = search.history[-1]
        values[str(weight)] = {
            "connections": connections(genotype),
            "threshold": round(float(np.mean([value.mean() for value in last.thresholds.values()])), 4),
            "supernet": last.validation_accuracy,
            "child": last.child_accuracy,
            "macs": _macs(workplace, genotype),
            "epochs": [sum(connections(report.genotype).values()) for report in search.history],
            "seconds": round(search.result().seconds, 1),
            **train_derived(workplace, genotype, f"train {weight}"),
        }
    return values


def _judge_sparsity(record: Record) -> Verdict:
    weights = record.scale["penalty_weights"]
    edges = {
        weight: np.array([sum(value["connections"].values()) for value in record.values(str(weight))], dtype=float)
        for weight in (*weights, *EXTREMES)
    }
    difference = edges[weights[0]] - edges[weights[-1]]
    p = one_sided_p(difference)
    means = "; ".join(f"λ = {weight}: {edges[weight].mean():.1f}" for weight in sorted(edges))
    numbers = (
        f"connections of both cells: {means}; λ = {weights[0]} keeps {difference.mean():+.1f} more than {weights[-1]}, "
        f"one-sided p = {p:.2f}, {len(difference)} seeds"
    )
    return trend(bool(difference.mean() > 0), p < LEVEL, numbers)


register(
    Experiment(
        "entrannas-lambda",
        "Table 4 and Fig. 5: the weight of the penalty against connections, size and accuracy",
        CHAPTER,
        sparsity,
        {"entrannas.lambda": _judge_sparsity},
        scaled=entrannas_scale,
    )
)


# --- Table 6 ----------------------------------------------------------------------------------------------------------


def extended_space(space: Space) -> Space:
    """A space with the five more operations of the extended one."""
    more = tuple(name for name in EXTENDED_SPACE.operations if name not in STANDARD_SPACE.operations)
    return replace(space, operations=(*space.operations, *more))


def spaces(workplace: Workplace) -> dict[str, Any]:
    """EnTranNAS and EnTranNAS-DST on the scale's candidates, EnTranNAS also on those and the five more: Table 6."""
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    standard = _space(scale)
    searches: dict[str, GradientSearch] = {
        "EnTranNAS": entrannas.Search(entrannas_config(scale), data, standard, seed),
        "EnTranNAS-DST": entrannas_dst.Search(entrannas_dst_config(scale), data, standard, seed),
        "EnTranNAS, extended": entrannas.Search(entrannas_config(scale), data, extended_space(standard), seed),
    }
    values: dict[str, Any] = {}
    for name, search in searches.items():
        workplace.drive(search, f"search {name}")
        genotype = search.result().genotype
        values[name] = {
            "seconds": round(search.result().seconds, 1),
            "operations": len(search.space.operations),
            **train_derived(workplace, genotype, f"train {name}"),
        }
    return values


register(
    Experiment(
        "entrannas-spaces",
        "Table 6: the standard and the extended space, and what their searches cost",
        CHAPTER,
        spaces,
        scaled=entrannas_scale,
    )
)
