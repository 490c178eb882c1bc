"""Chapter 2: the trained experiments on Stretchable Cells and MiLeNAS (the trends among claims ``stretchable.*``).

What is exact stands in :mod:`nasbook.experiments.topology_checks`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nasbook.analysis import cell_depth, mean_depth
from nasbook.experiments.image_cells import (
    milenas_config,
    pairs_config,
    random_search_config,
    search_config,
    stretchable_config,
    train_derived,
)
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import StretchableScale, stretchable_scale
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.genotypes import Genotype, Space
from nasbook.methods import GradientSearch, darts, milenas, random_search, stretchable
from nasbook.supernets import (
    StrongestOutputs,
    strongest_edges,
)

CHAPTER = "02-stretchable-cells"

# --- what the trained experiments share -------------------------------------------------------------------------------


class OutputEdgeDarts(darts.Search):
    """DARTS whose cells keep the strongest output edges of every node instead of the strongest input edges."""

    method = "darts-output-edges"

    def build_relaxation(self, space: Space) -> StrongestOutputs:
        return StrongestOutputs(space)


def _scale(workplace: Workplace) -> StretchableScale:
    """The scale, with Chapter 2's numbers."""
    assert isinstance(workplace.scale, StretchableScale)  # the registry saw to it
    return workplace.scale


def search_summary(search: GradientSearch | random_search.Search) -> dict[str, Any]:
    """What a finished search found: cells, their depth and size, and what the search cost."""
    result = search.result()
    return {**cell_summary(result.genotype), "seconds": round(result.seconds, 1)}


def cell_summary(genotype: Genotype) -> dict[str, Any]:
    """A genotype and statistics of its normal cell: longest path, mean depth of nodes, edges, nodes left."""
    normal = genotype.normal
    return {
        "genotype": genotype.to_json(),
        "depth": cell_depth(normal),
        "mean_depth": round(mean_depth(normal), 4),
        "edges": len(normal.edges),
        "nodes": len(normal.connected()),
    }


def _paired(values: np.ndarray, what: str) -> tuple[bool, bool, str]:
    """Sign, significance and a line for the mean of one difference a seed."""
    p = one_sided_p(values)
    numbers = f"{what} {values.mean():+.2%}, one-sided p = {p:.2f}, {len(values)} seeds"
    return bool(values.mean() > 0), p < LEVEL, numbers


# --- Table 1 ----------------------------------------------------------------------------------------------------------


def rows(workplace: Workplace) -> dict[str, Any]:
    """The rows of Table 1 that need no other paper's code, each searched once and trained at two sizes of network.

    ``trained`` keeps the scale's channels, ``matched`` takes those that come nearest to its number of parameters.
    Everything is searched and evaluated with the first number of layers, DARTS too, which the paper evaluates with 20;
    the rows of other numbers L are in ``stretchable-layers``. MiLeNAS-SC and the random operations on its topology have
    the stretchable cell's nodes, the others DARTS'.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    first = replace(search_config(scale), order="first-order")
    searches: dict[str, GradientSearch | random_search.Search] = {
        "DARTS, first order": darts.Search(first, data, scale.space, seed),
        "DARTS, second order": darts.Search(replace(first, order="second-order"), data, scale.space, seed),
        "DARTS, output pairs": stretchable.Search(pairs_config(scale), data, scale.space, seed),
        "MiLeNAS": milenas.Search(milenas_config(scale), data, scale.space, seed),
        "MiLeNAS-SC": stretchable.Search(stretchable_config(scale), data, scale.stretchable_space, seed),
    }
    values: dict[str, Any] = {}
    for name, search in searches.items():
        workplace.drive(search, f"search {name}")
        values[name] = _row(workplace, name, search)
    learned = Genotype.from_json(values["MiLeNAS-SC"]["genotype"])
    search = random_search.Search(random_search_config(scale), data, scale.stretchable_space, seed, learned)
    workplace.drive(search, "search random operations")
    values["random operations"] = _row(workplace, "random operations", search)
    return values


KEPT = ("test_accuracy", "train_accuracy", "parameters")
"""What is kept of a training whose genotype stands elsewhere in the record."""


def _row(workplace: Workplace, name: str, search: GradientSearch | random_search.Search) -> dict[str, Any]:
    """What a search found, and its cells trained at both sizes."""
    genotype = search.result().genotype
    trained = {
        size: {k: v for k, v in train_derived(workplace, genotype, f"{name} {size}", parameters=p).items() if k in KEPT}
        for size, p in (("trained", None), ("matched", _scale(workplace).parameters))
    }
    return {**search_summary(search), **trained}


def _judge_random(record: Record) -> Verdict:
    random, first = (
        np.array([row["matched"]["test_accuracy"] for row in record.values(name)])
        for name in ("random operations", "DARTS, first order")
    )
    right, significant, numbers = _paired(random - first, "difference")
    sizes = [
        np.mean([row["matched"]["parameters"] for row in record.values(name)])
        for name in ("random operations", "DARTS, first order")
    ]
    return trend(
        right,
        significant,
        f"random operations {mean_and_error(random)}, DARTS first order {mean_and_error(first)}; {numbers}; "
        f"{sizes[0]:,.0f} and {sizes[1]:,.0f} parameters",
    )


register(
    Experiment(
        "stretchable-rows",
        "Table 1: DARTS, pairs, MiLeNAS, stretchable cells, random operations",
        CHAPTER,
        rows,
        {"stretchable.random": _judge_random},
        scaled=stretchable_scale,
    )
)


# --- Table 3, Fig. 3 and Fig. 4 ---------------------------------------------------------------------------------------

STRETCHABLE = "MiLeNAS-SC"
WIDE_DARTS = "DARTS, more nodes"


def layers(workplace: Workplace) -> dict[str, Any]:
    """Search at every number of layers, train what was found at every number of layers, at equal parameters.

    For each method ``searches[L]`` says what was found, and ``matrix[i][j]`` is the test accuracy of the cells that
    were searched with the i-th number of layers, evaluated with the j-th. DARTS runs on its own number of nodes and on
    that of the stretchable cell. ``trajectory`` follows the normal stretchable cell over the epochs, for the least and
    the greatest number of layers.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    wide = replace(scale.space, nodes=scale.stretchable_nodes)
    values: dict[str, Any] = {"layers": list(scale.layers), "trajectory": {}}
    for method in (STRETCHABLE, "DARTS", WIDE_DARTS):
        searches, matrix, parameters = {}, [], []
        for depth in scale.layers:
            search: GradientSearch
            deep = replace(scale, search_cells=depth)
            if method == STRETCHABLE:
                search = stretchable.Search(stretchable_config(deep), data, scale.stretchable_space, seed)
            else:
                search = darts.Search(search_config(deep), data, scale.space if method == "DARTS" else wide, seed)
            workplace.drive(search, f"{method} L={depth}")
            searches[str(depth)] = search_summary(search)
            if method == STRETCHABLE and depth in (scale.layers[0], scale.layers[-1]):
                values["trajectory"][str(depth)] = [trajectory_step(report) for report in search.history]
            trained = [
                train_derived(
                    workplace,
                    search.result().genotype,
                    f"{method} L={depth} at {at}",
                    cells=at,
                    parameters=scale.parameters,
                )
                for at in scale.layers
            ]
            matrix.append([t["test_accuracy"] for t in trained])
            parameters.append([t["parameters"] for t in trained])
        values[method] = {"searches": searches, "matrix": matrix, "parameters": parameters}
    return values


def trajectory_step(report: stretchable.Report) -> dict[str, Any]:
    """One epoch of the normal cell, small enough for a record; :func:`trajectory_reports` reads it back."""
    return {
        "epoch": report.epoch,
        "coefficients": np.round(report.coefficients["normal"].numpy().astype(float), 3).tolist(),
        "edge_probabilities": np.round(report.edge_probabilities["normal"].numpy().astype(float), 3).tolist(),
        "genotype": Genotype({"normal": report.genotype.normal}).to_json(),
    }


@dataclass(frozen=True)
class TrajectoryStep:
    """One epoch of the normal cell as figures read it."""

    epoch: int
    """Number of the epoch, from 1."""
    coefficients: dict[str, np.ndarray]
    """Coefficients of the candidates, edges × operations, by the kind of cell."""
    edge_probabilities: dict[str, np.ndarray]
    """How likely each edge is chosen, by the kind of cell."""
    genotype: Genotype
    """What the search would answer after this epoch."""


def trajectory_reports(steps: Sequence[Mapping[str, Any]]) -> list[TrajectoryStep]:
    """What :func:`trajectory_step` wrote of every epoch, as reports that figures take."""
    return [
        TrajectoryStep(
            step["epoch"],
            {"normal": np.array(step["coefficients"])},
            {"normal": np.array(step["edge_probabilities"])},
            Genotype.from_json(step["genotype"]),
        )
        for step in steps
    ]


def _judge_layers(record: Record) -> Verdict:
    """Of each seed, the mean of the diagonal less that of the rest: what a row or a column adds cancels."""
    matrices = np.array([value["matrix"] for value in record.values(STRETCHABLE)])
    count = matrices.shape[1]
    own = matrices[:, range(count), range(count)]
    others = (matrices.sum(2) - own) / (count - 1)
    right, significant, numbers = _paired((own - others).mean(1), "own number of layers against the others")
    best = int((matrices.argmax(2) == np.arange(count)).sum())
    return trend(right, significant, f"{numbers}; best at its own number {best} times of {own.size}")


def _judge_depth(record: Record) -> Verdict:
    layers = [str(depth) for depth in record.values("layers")[0]]
    depths = np.array(
        [[value["searches"][depth]["mean_depth"] for depth in layers] for value in record.values(STRETCHABLE)]
    )
    difference = depths[:, 0] - depths[:, -1]
    p = one_sided_p(difference)
    means = ", ".join(f"{value:.2f} at L={depth}" for value, depth in zip(depths.mean(0), layers, strict=True))
    return trend(
        bool(difference.mean() > 0),
        p < LEVEL,
        f"mean depth of a node {means}; one-sided p = {p:.2f}, {len(depths)} seeds",
    )


register(
    Experiment(
        "stretchable-layers",
        "Table 3, Fig. 3 and 4: layers in the search and in the evaluation",
        CHAPTER,
        layers,
        {"stretchable.layers": _judge_layers, "stretchable.depth": _judge_depth},
        scaled=stretchable_scale,
    )
)


# --- Table 4 ----------------------------------------------------------------------------------------------------------


def stability(workplace: Workplace) -> dict[str, Any]:
    """Cells derived at 40, 60, 80 and 100 % of the search (the paper: epochs 20, 30, 40, 50), each trained.

    DARTS has the scale's order (second at ``paper``, as in Table 4), the pairs are of first order. Networks have the
    scale's channels and layers, whatever parameters that gives. Equal cells give equal accuracies, as their seeds are.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    epochs = [max(1, round(scale.search_epochs * share)) for share in (0.4, 0.6, 0.8, 1.0)]
    searches: dict[str, GradientSearch] = {
        "DARTS": darts.Search(search_config(scale), data, scale.space, seed),
        "DARTS, output pairs": stretchable.Search(pairs_config(scale), data, scale.space, seed),
    }
    values: dict[str, Any] = {"epochs": epochs}
    for name, search in searches.items():
        workplace.drive(search, f"search {name}")
        values[name] = [
            train_derived(workplace, search.history[epoch - 1].genotype, f"{name} epoch {epoch}") for epoch in epochs
        ]
    return values


def _judge_stability(record: Record) -> Verdict:
    spreads = {
        name: np.array([np.std([t["test_accuracy"] for t in run], ddof=1) for run in record.values(name)])
        for name in ("DARTS", "DARTS, output pairs")
    }
    right, significant, numbers = _paired(spreads["DARTS"] - spreads["DARTS, output pairs"], "difference")
    means = ", ".join(f"{name} {spread.mean():.2%}" for name, spread in spreads.items())
    same = [  # equal cells have equal accuracies under one seed, so that a search that stands still does not vary
        sum(a["genotype"] == b["genotype"] for run in record.values(name) for a, b in itertools.pairwise(run))
        for name in spreads
    ]
    return trend(
        right,
        significant,
        f"deviation over four epochs: {means}; {numbers}; cells equal to those of the epoch before: "
        f"{same[0]} and {same[1]} of {3 * len(record.measurements)}",
    )


register(
    Experiment(
        "stretchable-stability",
        "Table 4: cells derived at four epochs of one search",
        CHAPTER,
        stability,
        {"stretchable.stability": _judge_stability},
        scaled=stretchable_scale,
    )
)


# --- Table 5 ----------------------------------------------------------------------------------------------------------


def perspective(workplace: Workplace) -> dict[str, Any]:
    """Input against output edges, for DARTS and for learned pairs, with the scale's channels and layers.

    DARTS searches once and derives twice, since its search does not know which edges will be kept. It is of first
    order, like the pairs (the paper: second). Of the pairs, only the output edges have a factor (Eq. 10; Eq. 6 has
    none). Valid cells have the same number of edges in both perspectives, but not of parameters.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    search: GradientSearch = OutputEdgeDarts(
        replace(search_config(scale), order="first-order"), data, scale.space, seed
    )
    workplace.drive(search, "search DARTS")
    inputs = {kind: strongest_edges(c, scale.space) for kind, c in search.network.coefficients().items()}
    found = {"DARTS, input edges": Genotype(inputs), "DARTS, output edges": search.result().genotype}
    output_pairs = pairs_config(scale)
    input_pairs = replace(output_pairs, topology="input-edges")
    for name, config in (("pairs, input edges", input_pairs), ("pairs, output edges", output_pairs)):
        search = stretchable.Search(config, data, scale.space, seed)
        workplace.drive(search, f"search {name}")
        found[name] = search.result().genotype
    return {name: {**cell_summary(cells), **train_derived(workplace, cells, name)} for name, cells in found.items()}


def _judge_perspective(record: Record) -> Verdict:
    names = ("pairs, output edges", "pairs, input edges", "DARTS, output edges", "DARTS, input edges")
    accuracy = {name: np.array([value["test_accuracy"] for value in record.values(name)]) for name in names}
    right, significant, numbers = _paired(accuracy[names[0]] - accuracy[names[1]], "difference of the pairs")
    means = "; ".join(f"{name} {mean_and_error(values)}" for name, values in accuracy.items())
    sizes = [np.mean([value["parameters"] for value in record.values(name)]) for name in names[:2]]
    return trend(right, significant, f"{means}; {numbers}; {sizes[0]:,.0f} and {sizes[1]:,.0f} parameters")


register(
    Experiment(
        "stretchable-perspective",
        "Table 5: choosing input edges or output edges",
        CHAPTER,
        perspective,
        {"stretchable.perspective": _judge_perspective},
        scaled=stretchable_scale,
    )
)


# --- Fig. 5 -----------------------------------------------------------------------------------------------------------


def edge_numbers(workplace: Workplace) -> dict[str, Any]:
    """One, two or three edges a node against any number, on the same nodes and at equal parameters.

    DARTS keeps its strongest input edges, from one first-order search (the paper: second order); learned topologies
    choose output edges. So only with two do both have the same number of edges: of n nodes, DARTS keeps n, 2n and
    3n - 1, the learned ones n + 1, 2n and 3(n - 1). With three nodes, as at quick, three output edges leave no choice.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    first = replace(search_config(scale), order="first-order")
    search: GradientSearch = darts.Search(first, data, scale.space, seed)
    workplace.drive(search, "search DARTS")
    found: dict[str, Genotype] = {}
    for number in (1, 2, 3):
        space = replace(scale.space, edges_per_node=number)
        kinds = search.network.coefficients().items()
        found[f"DARTS, {number}"] = Genotype({kind: strongest_edges(c, space) for kind, c in kinds})
    pairs = pairs_config(scale)
    configs = {f"learned, {number}": replace(pairs, edges_per_node=number) for number in (1, 2, 3)}
    configs["learned, any"] = replace(pairs, topology="any-output-edges")
    for name, config in configs.items():
        search = stretchable.Search(config, data, scale.space, seed)
        workplace.drive(search, f"search {name}")
        found[name] = search.result().genotype
    return {
        name: {**cell_summary(cells), **train_derived(workplace, cells, name, parameters=scale.parameters)}
        for name, cells in found.items()
    }


register(
    Experiment(
        "stretchable-numbers",
        "Fig. 5: one, two, three edges a node against any number",
        CHAPTER,
        edge_numbers,
        scaled=stretchable_scale,
    )
)
