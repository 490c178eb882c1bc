"""Chapter 8: every method that can search the tabular benchmark's space, judged by what its cells are worth there.

A measurement has rows of the table, and no accuracies: what a row is worth, the table says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nasbook.analysis import kendall_tau
from nasbook.data import ImageData
from nasbook.errors import InvalidInput
from nasbook.experiments.fair_searches import SUPERNETS, SearchSize, counted_search, step_macs
from nasbook.experiments.records import DataSource, Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.genotypes import Edge, Genotype, random_genotype
from nasbook.methods import (
    GradientSearch,
    SearchReport,
    entrannas_dst,
    local_search,
    random_search,
    regularized_evolution,
)
from nasbook.methods.sampled_search import Proposer, look_up
from nasbook.seeding import generator
from nasbook.tabular import TABULAR_SPACE, TabularCells, load_table
from nasbook.tabular.recipe import CELLS, CHANNELS, RECIPE, benchmark_images, build_trainee
from nasbook.training import Fit, Run, kept_statistics

__all__ = [
    "CANNOT",
    "LOOK_UPS",
    "QUERIES",
    "RANKED_CELLS",
    "SEARCHES",
    "TruthRow",
    "child_accuracy",
    "final_regrets",
    "incumbent_regrets",
    "queries_of",
    "ranked_cells",
    "truth_rows",
    "truth_search",
]

CHAPTER = "08-ground-truth-and-fair-comparison"

CANNOT: dict[str, str] = {
    "firefly-cells": "grows five kinds of cell, and keeps all edges; the table has one kind",
    "growing-recurrent": "searches recurrent cells",
    "pr-darts with replacement": "its children have kernels that the table does not; pruning alone can, and is there",
    "firefly, splitting, net2net, nash": "grow widths and depth, and choose no operations",
}
"""Methods of the book that can't search this space, and why."""

SIZE = SearchSize(TABULAR_SPACE, RECIPE.epochs, RECIPE.batch_size, CHANNELS, CELLS, RECIPE.learning_rate)
"""Of all searches: as many steps as a cell is trained."""

SEARCHES = tuple(name for name in SUPERNETS if name not in ("PR-DARTS", "Firefly cells"))
"""The methods that train a supernet and can search the table's space."""

QUERIES = 200
"""Look-ups of a method that trains cells one by one."""

LOOK_UPS: dict[str, Callable[[], Proposer]] = {
    "random search": lambda: random_search.RandomProposer(TabularCells()),
    "regularised evolution": lambda: regularized_evolution.EvolutionProposer(TabularCells(), 20, 5),
    "local search": lambda: local_search.LocalSearchProposer(TabularCells()),
}
"""Methods that look trainings up. Evolution's population is a fifth of the paper's, its tournament a quarter of it."""

RANKED = ("DARTS, first order", "MiLeNAS", "EnTranNAS")
"""Whose supernets' rankings are followed. PC-DARTS' supernet has no child-nets: its cells own a part of the weights."""

RANKED_CELLS = 30
"""How many cells a supernet ranks."""


def row_of(genotype: Genotype, coefficients: Mapping[str, Tensor] | None = None) -> int:
    """The row of a search's cell.

    A cell that has not grown its second node yet is the one whose second node is empty. Of several operations on one
    edge, which EnTranNAS-DST may keep and the table does not have, the one with the largest coefficient counts.

    Raises:
        InvalidInput: the cell is not of the table's space.
    """
    cell = genotype["reduction"]
    if cell.nodes < TABULAR_SPACE.nodes:
        cell = replace(cell, nodes=TABULAR_SPACE.nodes)
    elif coefficients:
        own = coefficients["reduction"]
        strongest: dict[tuple[int, int], Edge] = {}
        for edge in cell.edges:
            weights = own[TABULAR_SPACE.edges.index((edge.source, edge.target))]
            place = (edge.source, edge.target)
            if place not in strongest or _weight(edge, weights) > _weight(strongest[place], weights):
                strongest[place] = edge
        cell = replace(cell, edges=tuple(strongest.values()))
    return load_table().row(cell)


def _weight(edge: Edge, weights: Tensor) -> float:
    return float(weights[TABULAR_SPACE.choices.index(edge.operation)])


def doubled(genotype: Genotype) -> int:
    """How many operations of a cell stand beside another one on their edge: what :func:`row_of` leaves out."""
    edges = genotype["reduction"].edges
    return len(edges) - len({(edge.source, edge.target) for edge in edges})


def ranked_cells(count: int = RANKED_CELLS) -> list[Genotype]:
    """Different cells of those that keep two edges a node, drawn once; the same for all searches."""
    draws = generator(0, "ranked cells")
    found: dict[int, Genotype] = {}
    while len(found) < count:
        genotype = random_genotype(SIZE.without_zero, draws)
        found.setdefault(row_of(genotype), genotype)
    return list(found.values())


@torch.no_grad()
def child_accuracy(search: GradientSearch, genotype: Genotype) -> float:
    """What a supernet says of a cell: the accuracy of its child-net on the validation images.

    Batch norms take the statistics of those images, since the supernet's own are a mixture's.
    """
    network, loader = search.network, search.loaders[1]
    shift, scale = (torch.tensor(v, device=search.device)[:, None, None] for v in (loader.mean, loader.std))
    images = (loader.images.float() / 255 - shift) / scale
    training = network.training
    try:
        with kept_statistics(network.train()), network.child(genotype):
            right = network(images).argmax(-1) == loader.labels
    finally:
        network.train(training)
    return float(right.float().mean())


def _tau(search: GradientSearch, cells: Sequence[Genotype]) -> float:
    """Kendall's τ between the supernet's accuracies and the truth."""
    table = load_table()
    seen = [child_accuracy(search, genotype) for genotype in cells]
    if len(set(seen)) == 1:  # all cells alike to the supernet
        return 0.0
    return kendall_tau(seen, [table[genotype].test_accuracy for genotype in cells])


def training_macs(data: ImageData, cells: Sequence[Genotype]) -> float:
    """Multiply-adds of all steps of the recipe, the mean over cells."""
    counts = []
    for genotype in cells:
        trainee = build_trainee(genotype, 0, data)
        fit = Fit(
            trainee.network, data, RECIPE, train_indices=trainee.train_indices, held_out=trainee.held_out
        )
        counts.append(step_macs(fit) * fit.steps_per_epoch * fit.total_epochs)
    return float(np.mean(counts))


def truth_search(workplace: Workplace) -> dict[str, Any]:
    """All searches with one seed.

    For every search ``rows``: the table's row of the derived cell after each epoch; ``row``: of the found one;
    ``seconds``; ``macs``: multiply-adds of all steps; of some ``tau``: pairs of epoch and Kendall's τ; of EnTranNAS-DST
    ``doubled``: after each epoch, how many operations were left out for want of a table with two on an edge.
    ``training macs``: multiply-adds of all steps of the recipe, the mean over the ranked cells.
    """
    data, seed = benchmark_images(workplace.device), workplace.seed
    workplace.used = DataSource(data.name, data.source, data.checksum)
    cells = ranked_cells()
    values: dict[str, Any] = {"training macs": training_macs(data, cells)}
    for name in SEARCHES:
        search = counted_search(name, SIZE, data, seed)
        if name in RANKED:
            _ranks_too(search, cells)
        workplace.drive(search, f"search {name}")
        result = search.result()
        several = isinstance(search, entrannas_dst.Search)
        values[name] = {
            "rows": [_row(report, several) for report in search.history],
            "row": _row(search.history[-1], several) if several else row_of(result.genotype),
            **({"doubled": [doubled(report.genotype) for report in search.history]} if several else {}),
            "seconds": round(result.seconds, 1),
            "macs": sum(report.measured["macs"] for report in search.history),
            **({"tau": _taus(search.history)} if name in RANKED else {}),
        }
    return values


def truth_look_ups(workplace: Workplace) -> dict[str, Any]:
    """The methods that train cells one by one, on the table, with one seed.

    Of each ``rows``: of all queries; and ``incumbents``: the row of the best so far after each query. A query shows the
    validation accuracy of one of the cell's trainings, drawn anew each time.
    """
    seed = workplace.seed
    values: dict[str, Any] = {}
    table = load_table()
    for name, proposer in LOOK_UPS.items():
        draws = generator(seed, "trainings")

        def score(genotype: Genotype, draws: torch.Generator = draws) -> float:
            return table.validate(genotype, table.seeds[int(torch.randint(len(table.seeds), (), generator=draws))])

        evaluated = look_up(proposer(), score, QUERIES, seed)
        rows = [table.row(genotype) for _, genotype in evaluated]
        scores = np.array([value for value, _ in evaluated])
        best = [int(scores[: n + 1].argmax()) for n in range(QUERIES)]
        values[name] = {"rows": rows, "incumbents": [rows[place] for place in best]}
    return values


def _taus(history: Sequence[SearchReport]) -> list[tuple[int, float]]:
    return [(report.epoch, report.measured["tau"]) for report in history if "tau" in report.measured]


def _row(report: SearchReport, several: bool) -> int:
    return row_of(report.genotype, report.coefficients if several else None)


def _ranks_too(search: GradientSearch, cells: Sequence[Genotype]) -> None:
    """Has the search's watch rank the cells, too, after the first and after every fourth epoch."""
    watch = search.watch

    def watch_both(run: Run) -> dict[str, float]:
        measured = {} if watch is None else watch(run)
        if run.epoch == 0 or (run.epoch + 1) % 4 == 0:
            measured["tau"] = round(_tau(search, cells), 4)
        return measured

    search.watch = watch_both


# --- what a record says -----------------------------------------------------------------------------------------------


def queries_of(record: Record, name: str) -> float:
    """How many trainings of a cell a search costs: multiply-adds of its steps over those of the recipe's steps.

    Evaluations are left out on both sides.
    """
    return float(np.mean([m.values[name]["macs"] / m.values["training macs"] for m in record.measurements]))


def final_regrets(record: Record, name: str, queries: int | None = None) -> Float[np.ndarray, " seeds"]:
    """Regret of what a search found, or a look-up after so many queries (None: all)."""
    table = load_table()
    values = record.values(name)
    if name in LOOK_UPS:
        return np.array([table.regret(value["incumbents"][(queries or QUERIES) - 1]) for value in values])
    return np.array([table.regret(value["row"]) for value in values])


def incumbent_regrets(record: Record, name: str) -> Float[np.ndarray, "seeds steps"]:
    """Regret after every query of a look-up, or of the derived cell after every epoch of a search.

    Searches that end early keep their last cell.
    """
    table = load_table()
    key = "incumbents" if name in LOOK_UPS else "rows"
    curves = [[table.regret(row) for row in value[key]] for value in record.values(name)]
    longest = max(map(len, curves))
    return np.array([curve + curve[-1:] * (longest - len(curve)) for curve in curves])


@dataclass(frozen=True)
class TruthRow:
    """What one method found."""

    name: str
    """The method."""
    queries: float
    """Its cost, in trainings of one cell."""
    regrets: Float[np.ndarray, " seeds"]
    """Of every seed."""
    ranks: Float[np.ndarray, " seeds"]
    """Of the found cells, from 1."""
    against_random: Float[np.ndarray, " seeds"]
    """Regret of random search at the same cost, with the same seed."""


def truth_rows(searched: Record, looked_up: Record, budget: int = 30) -> list[TruthRow]:
    """A row for every method: searches at their own cost, look-ups at ``budget`` queries.

    Random search gets as many queries as the method costs, rounded up, at least one.

    Args:
        searched: of ``truth-searches``.
        looked_up: of ``truth-look-ups``, with the same seeds.
        budget: queries of the look-ups.

    Raises:
        InvalidInput: the records have different seeds, or a look-up has fewer queries.
    """
    if [m.seed for m in searched.measurements] != [m.seed for m in looked_up.measurements]:
        raise InvalidInput("truth-searches and truth-look-ups need the same seeds to be compared.")
    if not 1 <= budget <= QUERIES:
        raise InvalidInput(f"budget must be 1 to {QUERIES} queries, as many as a look-up has; got {budget}.")
    table = load_table()
    rows = []
    for name in (*SEARCHES, *LOOK_UPS):
        is_search = name in SEARCHES
        cost = queries_of(searched, name) if is_search else float(budget)
        whole = min(QUERIES, max(1, int(np.ceil(cost))))
        found: Sequence[Mapping[str, Any]] = (searched if is_search else looked_up).values(name)
        last = [value["row"] if is_search else value["incumbents"][budget - 1] for value in found]
        rows.append(
            TruthRow(
                name,
                cost,
                np.array([table.regret(row) for row in last]),
                np.array([float(table[row].rank) for row in last]),
                final_regrets(looked_up, "random search", whole),
            )
        )
    return rows


register(
    Experiment(
        "truth-searches",
        "Every supernet's search on the tabular benchmark: regret, rank, and how supernets rank cells",
        CHAPTER,
        truth_search,
        least=10,
    )
)

register(
    Experiment(
        "truth-look-ups",
        "Random search, regularised evolution and local search on the tabular benchmark",
        CHAPTER,
        truth_look_ups,
        least=10,
    )
)
