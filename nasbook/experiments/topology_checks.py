"""Chapter 2: what is exact about topology variables (merged form, factors, penalty, edges, memory)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from nasbook.analysis import saved_activation_bytes
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import Verdict, exact
from nasbook.genotypes import DARTS_OPERATIONS, ZERO, Space
from nasbook.seeding import generator
from nasbook.supernets import (
    AnyOutputEdges,
    InputEdges,
    OutputEdges,
    SearchNetwork,
    SoftmaxRelaxation,
    TopologyRelaxation,
    output_edge_space,
)

CHAPTER = "02-stretchable-cells"

OPERATIONS = tuple(name for name in DARTS_OPERATIONS if name != ZERO)
"""The paper's candidates: DARTS' without the zero operation."""


def relaxations(nodes: int) -> dict[str, TopologyRelaxation]:
    """The topology relaxations on a cell with so many intermediate nodes, in float64, all with the scale factor."""
    space = Space(OPERATIONS, nodes)
    found: dict[str, TopologyRelaxation] = {
        "input pairs": InputEdges(space, scaled=True),
        "output pairs": OutputEdges(output_edge_space(space)),
        "output subsets": AnyOutputEdges(space, empty=False),
        "output subsets, empty too": AnyOutputEdges(space),
    }
    return {name: relaxation.double() for name, relaxation in found.items()}


def unmerged_nodes(relaxation: TopologyRelaxation, features: Tensor) -> Tensor:
    """What every intermediate node sums, choice by choice as Eq. 4 writes it: the sum of two features a pair.

    Args:
        relaxation: gives the choices and their probabilities; its factor is not applied.
        features: one row an edge, o(x).

    Returns:
        One row an intermediate node.
    """
    space = relaxation.space
    rows = {edge: row for row, edge in enumerate(space.edges)}
    nodes = [features.new_zeros(features.shape[1]) for _ in range(space.nodes)]
    for probabilities, sets in zip(relaxation.probabilities(), relaxation.choices, strict=True):
        for p, choice in zip(probabilities, sets, strict=False):
            for node in {target for _, target in choice}:
                total = torch.stack([features[rows[edge]] for edge in choice if edge[1] == node]).sum(0)
                nodes[node - space.inputs] = nodes[node - space.inputs] + p * total
    return torch.stack(nodes)


def merged_nodes(relaxation: TopologyRelaxation, features: Tensor) -> Tensor:
    """The same from the merged probabilities (Eq. 6 and 9)."""
    space = relaxation.space
    targets = torch.tensor([target - space.inputs for _, target in space.edges])
    weighted = relaxation.edge_probabilities()[:, None] * features
    return features.new_zeros(space.nodes, features.shape[1]).index_add(0, targets, weighted)


def is_valid(edges: frozenset[tuple[int, int]], space: Space) -> bool:
    """Whether every intermediate node has an input edge."""
    return {target for _, target in edges} == set(range(space.inputs, space.inputs + space.nodes))


def exact_results(_: Workplace) -> dict[str, Any]:
    """Errors of the merged form, of the factors, of the penalty over all topologies of small cells; edges; memory."""
    draws = generator(0, "exact")
    values: dict[str, Any] = {"merge_error": {}, "gradient_error": {}, "scale_error": {}}
    for nodes in range(2, 8):  # the paper's N from 4 to 9 in its formulas
        for name, relaxation in relaxations(nodes).items():
            with torch.no_grad():
                relaxation.beta.zero_()
                error = float((relaxation.edge_coefficients() - 1).abs().max())
            values["scale_error"][name] = max(error, values["scale_error"].get(name, 0.0))

            with torch.no_grad():
                relaxation.beta.copy_(torch.randn(relaxation.beta.shape, generator=draws, dtype=torch.float64))
            features = torch.randn(len(relaxation.space.edges), 5, generator=draws, dtype=torch.float64)
            features.requires_grad_()
            weights = torch.randn(nodes, 5, generator=draws, dtype=torch.float64)
            sums = [form(relaxation, features) for form in (unmerged_nodes, merged_nodes)]
            gradients = [torch.autograd.grad((s * weights).sum(), (relaxation.beta, features)) for s in sums]
            error = float((sums[0] - sums[1]).detach().abs().max())
            values["merge_error"][name] = max(error, values["merge_error"].get(name, 0.0))
            error = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
            values["gradient_error"][name] = max(error, values["gradient_error"].get(name, 0.0))
    return {**values, **_penalties(), **_edge_counts(), **_memory()}


def _penalties() -> dict[str, Any]:
    """Every topology of cells with two and three intermediate nodes: is r zero on the valid ones only?"""
    topologies = wrong = touched = valid = 0
    for nodes, relaxation in [(n, found) for n in (2, 3) for found in relaxations(n).values()]:
        draws = generator(nodes, "penalty")
        rows = list(itertools.accumulate([0, *map(len, relaxation.choices)]))
        for picked in itertools.product(*(range(len(sets)) for sets in relaxation.choices)):
            with torch.no_grad():  # the picked choices are the most probable, by 1 at least
                relaxation.beta.copy_(torch.rand(relaxation.beta.shape, generator=draws))
                relaxation.beta[[start + place for start, place in zip(rows, picked, strict=False)]] += 2
            r = relaxation.invalidity()
            (gradient,) = torch.autograd.grad(r, relaxation.beta)
            offending = offending_variables(relaxation)
            topologies += 1
            valid += is_valid(relaxation.topology(), relaxation.space)
            wrong += (float(r.detach()) == 0) != is_valid(relaxation.topology(), relaxation.space)
            touched += any(bool(value != 0) != (place in offending) for place, value in enumerate(gradient))
    return {"topologies": topologies, "valid": valid, "penalty_wrong": wrong, "gradient_elsewhere": touched}


def offending_variables(relaxation: TopologyRelaxation) -> set[int]:
    """Places in β that r's gradient may touch.

    For each node without an input edge: of every predecessor, the most probable choice, and the most probable one that
    would have given the node its edge.
    """
    edges, space = relaxation.topology(), relaxation.space
    starts = list(itertools.accumulate([0, *map(len, relaxation.choices)]))
    beta = relaxation.beta.detach().tolist()
    found = set()
    for node in set(range(space.inputs, space.inputs + space.nodes)) - {target for _, target in edges}:
        for start, sets in zip(starts, relaxation.choices, strict=False):
            numbers = range(start, start + len(sets))
            giving = [n for n, choice in zip(numbers, sets, strict=True) if any(edge[1] == node for edge in choice)]
            if giving:
                found |= {max(numbers, key=beta.__getitem__), max(giving, key=beta.__getitem__)}
    return found


def _edge_counts() -> dict[str, Any]:
    """How many edges cells of DARTS' four nodes have, over those of 300 random β whose topology is valid."""
    draws = generator(0, "edges")
    counts: dict[str, list[int]] = {}
    for name, relaxation in relaxations(4).items():
        seen = set()
        for _ in range(300):
            with torch.no_grad():
                relaxation.beta.copy_(torch.randn(relaxation.beta.shape, generator=draws, dtype=torch.float64))
            if is_valid(relaxation.topology(), relaxation.space):
                seen.add(len(relaxation.derive().edges))
        counts[name] = sorted(seen)
    return {"edges": counts}


def _memory() -> dict[str, Any]:
    """Saved activation bytes of supernets with topology variables over those of DARTS on the same edges.

    N is that of the paper's formulas, which count two inputs and the intermediate nodes.
    """
    images = torch.zeros(8, 3, 16, 16)
    ratios = {}
    for nodes in (4, 7):
        full = Space(OPERATIONS, nodes)
        for name, space, relaxation in (
            ("output pairs", output_edge_space(full), OutputEdges),
            ("output subsets", full, AnyOutputEdges),
        ):
            saved = [
                saved_activation_bytes(SearchNetwork(space, channels=8, cells=3, relaxation=kind), images)
                for kind in (relaxation, SoftmaxRelaxation)
            ]
            ratios[f"{name}, N={nodes + 2}"] = round(saved[0] / saved[1], 5)
    return {"memory": ratios}


def _judge_merge(record: Record) -> Verdict:
    values, slopes = (max(record.values(name)[0].values()) for name in ("merge_error", "gradient_error"))
    memory = max(record.values("memory")[0].values())
    return exact(
        values < 1e-12 and slopes < 1e-12 and memory < 1.02,
        f"N = 4..9, pairs and subsets: values differ by {values:.0e}, gradients by {slopes:.0e}; "
        f"at most {memory:.4f} times the saved activation bytes of DARTS on the same edges",
    )


def _judge_scale(record: Record) -> Verdict:
    error = max(record.values("scale_error")[0].values())
    return exact(error < 1e-12, f"N = 4..9, all spaces, each with its own factor: at most {error:.0e} from 1")


def _judge_penalty(record: Record) -> Verdict:
    count, valid = record.values("topologies")[0], record.values("valid")[0]
    wrong, elsewhere = record.values("penalty_wrong")[0], record.values("gradient_elsewhere")[0]
    return exact(
        wrong == 0 and elsewhere == 0,
        f"all {count:,} topologies of small cells, {valid:,} of them valid: {wrong} with a wrong zero, "
        f"{elsewhere} with a gradient elsewhere (the sum taken over intermediate nodes)",
    )


def _judge_edges(record: Record) -> Verdict:
    counts = record.values("edges")[0]
    some = counts["output subsets, empty too"]
    return exact(
        counts["output pairs"] == [8] and counts["input pairs"] == [8] and len(some) > 5,
        f"valid topologies on four nodes: with pairs always {counts['output pairs'][0]} edges, with any number "
        f"{some[0]} to {some[-1]}",
    )


register(
    Experiment(
        "stretchable-exact",
        "Merged form, factors, penalty, edges and memory of the topology variables",
        CHAPTER,
        exact_results,
        {
            "stretchable.merge": _judge_merge,
            "stretchable.scale": _judge_scale,
            "stretchable.penalty": _judge_penalty,
            "stretchable.edges": _judge_edges,
        },
        seeded=False,
    )
)
