"""Chapter 1: the experiments on DARTS (claims ``darts.*``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nasbook.analysis import count_macs, count_parameters, skip_count
from nasbook.data import Loader, load_images
from nasbook.experiments.image_cells import search_config, train_derived
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import LEVEL, Verdict, exact, mean_and_error, one_sided_p, trend
from nasbook.genotypes import DARTS_SPACE, PUBLISHED, Space, count_cells, random_genotype
from nasbook.methods import darts
from nasbook.networks import DerivedNetwork
from nasbook.seeding import fold_seed, generator
from nasbook.supernets import SearchNetwork
from nasbook.training import (
    Batch,
    FiniteDifference,
    FirstOrder,
    SecondOrder,
    ToyProblem,
    UnrolledUpdate,
)

CHAPTER = "01-differentiable-architecture-search"

PUBLISHED_COUNTS = {
    "DARTS_V1": [3_169_414, 3_645_840, 500_987_520],
    "DARTS_V2": [3_349_342, 3_825_768, 528_359_040],
    "PC_DARTS_CIFAR": [3_634_678, 4_111_104, 556_670_592],
}
"""Parameters, parameters with auxiliary head, and multiply-adds of the published cells in the original classes."""


# --- counts -----------------------------------------------------------------------------------------------------------


def counts(_: Workplace) -> dict[str, Any]:
    """Sizes of the space, the supernet and the published networks, counted on real modules."""
    supernet = SearchNetwork()
    weights = {id(p) for p in supernet.weights()}
    derived = {}
    for name in PUBLISHED_COUNTS:
        genotype = PUBLISHED[name]
        network = DerivedNetwork(genotype)
        derived[name] = [
            count_parameters(network),
            count_parameters(DerivedNetwork(genotype, auxiliary=True)),
            count_macs(network, (1, 3, 32, 32)),
        ]
    return {
        "edges": len(DARTS_SPACE.edges),
        "operations": len(DARTS_SPACE.operations),
        "cells": count_cells(DARTS_SPACE),
        "supernet_weights": sum(p.numel() for p in supernet.weights()),
        "architecture_among_weights": sum(id(p) in weights for p in supernet.architecture()),
        "derived": derived,
    }


def _judge_space(record: Record) -> Verdict:
    got = (record.values("edges")[0], record.values("operations")[0], record.values("cells")[0])
    return exact(got == (14, 8, 1_037_664_180), f"{got[0]} edges, {got[1]} operations, {got[2]:,} cells")


def _judge_supernet(record: Record) -> Verdict:
    weights, shared = record.values("supernet_weights")[0], record.values("architecture_among_weights")[0]
    return exact(
        (weights, shared) == (1_930_618, 0), f"{weights:,} weights, {shared} architecture parameters among them"
    )


def _judge_derived(record: Record) -> Verdict:
    got = record.values("derived")[0]
    v2 = got["DARTS_V2"]
    return exact(
        got == PUBLISHED_COUNTS,
        f"DARTS_V2: {v2[0]:,} parameters, {v2[1]:,} with the auxiliary head, {v2[2]:,} multiply-adds; "
        f"V1 and PC-DARTS checked too",
    )


register(
    Experiment(
        "darts-counts",
        "Sizes of DARTS' space, supernet and published networks",
        CHAPTER,
        counts,
        {"darts.space": _judge_space, "darts.supernet": _judge_supernet, "darts.derived": _judge_derived},
        seeded=False,
    )
)


# --- the two-variable toy ---------------------------------------------------------------------------------------------


def toy_trajectory(xi: float, steps: int = 1500, rate: float = 0.02) -> np.ndarray:
    """(steps + 1, 2) values of (α, w) of DARTS' toy from (2, −2), with an unrolled step of length ξ."""
    toy = ToyProblem()
    optimizers = torch.optim.SGD(toy.weights(), lr=0.1), torch.optim.SGD(toy.architecture(), lr=rate)
    update = (
        SecondOrder(toy, *optimizers, loss=ToyProblem.loss, clip=1e9, xi=xi)
        if xi > 0
        else FirstOrder(toy, *optimizers, loss=ToyProblem.loss, clip=1e9)
    )
    path = [(toy.alpha.item(), toy.w.item())]
    for _ in range(steps):
        update.step(ToyProblem.train_batch, ToyProblem.validation_batch)
        path.append((toy.alpha.item(), toy.w.item()))
    return np.array(path)


def toy(_: Workplace) -> dict[str, Any]:
    """Where the toy ends for several ξ, beside 2/(1 + 2ξ)."""
    xis = [0.0, 0.1, 0.25, 0.5, 1.0]
    ends = [toy_trajectory(xi)[-1].tolist() for xi in xis]
    return {"xi": xis, "end": ends, "expected": [2 / (1 + 2 * xi) for xi in xis]}


def _judge_toy(record: Record) -> Verdict:
    ends, expected = np.array(record.values("end")[0]), np.array(record.values("expected")[0])
    error = float(np.abs(ends - expected[:, None]).max())
    return exact(error < 1e-9, f"largest distance from α = w = 2/(1+2ξ) over five ξ: {error:.1e}")


register(
    Experiment("darts-toy", "The two-variable bilevel problem", CHAPTER, toy, {"darts.toy": _judge_toy}, seeded=False)
)


# --- the second-order gradient ----------------------------------------------------------------------------------------


def autograd_hypergradient(update: UnrolledUpdate, train: Batch, validation: Batch) -> tuple[Tensor, ...]:
    """∇_α of L_val(w′(α), α) by differentiating through the unrolled step itself: the slow, certain way."""
    network, xi = update.network, update.xi
    assert xi is not None, "give the update an explicit xi"
    names = [name for name, p in network.named_parameters() if any(p is w for w in update.weights)]
    loss = F.cross_entropy(network(train[0]), train[1])
    gradients = torch.autograd.grad(loss, update.weights, create_graph=True)
    unrolled = {n: w - xi * g for n, w, g in zip(names, update.weights, gradients, strict=True)}
    validation_loss = F.cross_entropy(functional_call(network, unrolled, validation[0]), validation[1])
    return torch.autograd.grad(validation_loss, update.architecture)


def hypergradient_problem(seed: int, smooth: bool) -> tuple[SearchNetwork, Batch, Batch]:
    """A small untrained supernet in float64 and two batches of 64 digits; ``smooth`` has no kink anywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(seed, "hypergradient"))
        operations = ("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3")
        if not smooth:
            operations = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
        network = SearchNetwork(Space(operations, nodes=2), channels=4, cells=3, in_channels=1).double()
        if smooth:
            for module in list(network.modules()):
                for name, child in module.named_children():
                    if isinstance(child, nn.ReLU):
                        setattr(module, name, nn.Softplus())
    data = load_images("digits")
    loader = Loader(data.train_images, data.train_labels, 64, mean=data.mean, std=data.std, seed=seed)
    train, validation = ((images.double(), labels) for images, labels in (loader.batch(0), loader.batch(1)))
    return network, train, validation


XI = 0.025
"""Length of the unrolled step in the comparison of gradients: DARTS' first learning rate."""

RADII = tuple(10.0**exponent for exponent in range(-1, -10, -1))
"""Values of r for the finite difference: 0.1 down to 1e-9."""


def hypergradient(workplace: Workplace) -> dict[str, Any]:
    """Relative errors of the architecture gradient against autograd: exact, first order, and for every r."""
    values: dict[str, Any] = {"r": list(RADII)}
    for kind in ("smooth", "kinked"):
        network, train, validation = hypergradient_problem(workplace.seed, kind == "smooth")
        optimizers = torch.optim.SGD(network.weights(), lr=0.1), torch.optim.SGD(network.architecture(), lr=0.1)
        second = SecondOrder(network, *optimizers, xi=XI)
        reference = autograd_hypergradient(second, train, validation)
        first = FirstOrder(network, *optimizers).architecture_gradient(train, validation).gradients
        values[f"{kind}_exact"] = relative_error(second.architecture_gradient(train, validation).gradients, reference)
        values[f"{kind}_first_order"] = relative_error(first, reference)
        values[f"{kind}_finite_difference"] = [
            relative_error(
                FiniteDifference(network, *optimizers, xi=XI, r=r).architecture_gradient(train, validation).gradients,
                reference,
            )
            for r in RADII
        ]
    return values


def relative_error(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """‖got − expected‖ / ‖expected‖ over all tensors together."""
    difference = torch.cat([(g - e).flatten() for g, e in zip(got, expected, strict=True)])
    return float(difference.norm() / torch.cat([e.flatten() for e in expected]).norm())


def _judge_hypergradient(record: Record) -> Verdict:
    worst = max(max(record.values("smooth_exact")), max(record.values("kinked_exact")))
    usual = RADII.index(1e-2)
    far = float(np.median([errors[usual] for errors in record.values("kinked_finite_difference")]))
    without = float(np.median(record.values("kinked_first_order")))
    smooth = max(min(errors) for errors in record.values("smooth_finite_difference"))
    kinked = max(min(errors) for errors in record.values("kinked_finite_difference"))
    return exact(
        worst < 1e-6 and smooth < 1e-6 and kinked < 1e-6 and far > 0.1,
        f"exact: {worst:.0e}; finite difference, best r: {smooth:.0e} smooth, {kinked:.0e} with kinks; "
        f"with kinks at r=0.01 {far:.0%} off, without the second term {without:.0%} (medians)",
    )


register(
    Experiment(
        "darts-hypergradient",
        "The second-order gradient against autograd, and the finite difference's error",
        CHAPTER,
        hypergradient,
        {"darts.hypergradient": _judge_hypergradient},
    )
)


# --- searched against random cells ------------------------------------------------------------------------------------


def searched_against_random(workplace: Workplace) -> dict[str, Any]:
    """One search and one random cell, both trained in the same way; test accuracies, sizes, and the search's curve."""
    scale, seed = workplace.scale, workplace.seed
    search = darts.Search(search_config(scale), workplace.data, scale.space, seed)
    workplace.drive(search, "search")
    return {
        "searched": train_derived(workplace, search.result().genotype, "searched"),
        "random": train_derived(workplace, random_genotype(scale.space, generator(seed, "random cell")), "random"),
        "supernet_accuracy": [report.validation_accuracy for report in search.history],
        "skips": [skip_count(report.genotype.normal) for report in search.history],
        "search_seconds": round(search.result().seconds, 1),
    }


def _judge_random(record: Record) -> Verdict:
    searched = np.array([v["test_accuracy"] for v in record.values("searched")])
    random = np.array([v["test_accuracy"] for v in record.values("random")])
    difference = searched - random
    p = one_sided_p(difference)
    numbers = (
        f"searched {mean_and_error(searched)}, random {mean_and_error(random)}; "
        f"difference {difference.mean():+.2%}, one-sided p = {p:.2f} over {len(difference)} seeds"
    )
    return trend(bool(difference.mean() > 0), p < LEVEL, numbers)


register(
    Experiment(
        "darts-random",
        "Searched cells against random cells, same training",
        CHAPTER,
        searched_against_random,
        {"darts.random": _judge_random},
    )
)


# --- the collapse to skip connections ---------------------------------------------------------------------------------


def collapse(workplace: Workplace) -> dict[str, Any]:
    """A search that goes on for too long: skips of the normal cell, and the gap from supernet to derived network.

    The cells are derived and trained from scratch at the usual number of epochs, and at two and three times
    it (as far as the long search reaches). The gap is the supernet's validation accuracy minus the derived
    network's test accuracy.
    """
    scale = workplace.scale
    search = darts.Search(search_config(scale, scale.long_search_epochs), workplace.data, scale.space, workplace.seed)
    workplace.drive(search, "long-search")
    history = search.history
    epochs = list(range(scale.search_epochs, scale.long_search_epochs + 1, scale.search_epochs))
    derived = [train_derived(workplace, history[e - 1].genotype, f"derived-{e}") for e in epochs]
    return {
        "epochs": epochs,
        "skips": [skip_count(report.genotype.normal) for report in history],
        "skip_coefficient": [
            float(report.coefficients["normal"][:, scale.operations.index("skip_connect")].mean()) for report in history
        ],
        "supernet_accuracy": [report.validation_accuracy for report in history],
        "derived": derived,
        "gap": [history[e - 1].validation_accuracy - d["test_accuracy"] for e, d in zip(epochs, derived, strict=True)],
    }


def _judge_collapse(record: Record) -> Verdict:
    usual, long = record.scale["search_epochs"], record.scale["long_search_epochs"]
    skips = np.array([[s[usual - 1], s[-1]] for s in record.values("skips")], dtype=float)
    gaps = np.array([[g[0], g[-1]] for g in record.values("gap")])
    skips_grow, gap_grows = skips[:, 1] - skips[:, 0], gaps[:, 1] - gaps[:, 0]
    p_skips, p_gap = one_sided_p(skips_grow), one_sided_p(gap_grows)
    numbers = (
        f"skips in the normal cell {skips[:, 0].mean():.1f} → {skips[:, 1].mean():.1f} (p = {p_skips:.2f}), "
        f"gap {gaps[:, 0].mean():+.2%} → {gaps[:, 1].mean():+.2%} (p = {p_gap:.2f}), epochs {usual} → {long}, "
        f"{len(skips)} seeds"
    )
    grew = bool(skips_grow.mean() > 0), bool(gap_grows.mean() > 0)
    return trend(any(grew), all(grew) and p_skips < LEVEL and p_gap < LEVEL, numbers)


register(
    Experiment(
        "darts-collapse",
        "Longer searches and skip connections",
        CHAPTER,
        collapse,
        {"darts.collapse": _judge_collapse},
    )
)
