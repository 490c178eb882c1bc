"""Chapter 4: what is exact about firefly descent (neighbourhood, Taylor's theorem, selection, splits only)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.verdicts import Verdict, exact
from nasbook.growth import (
    Budget,
    CandidateDescent,
    OvergrownNetwork,
    integrated_gradients,
    integrated_gradients_by_coordinate,
    least_eigenpairs,
    select,
    select_exactly,
    split,
    splitting_matrices,
    start,
    step_one,
    with_empty_layers,
)
from nasbook.networks import (
    VGG,
    BlockStack,
    Growable,
    MobileNetV1,
    Perceptron,
    RadialNetwork,
    radial_data,
    radial_target,
)
from nasbook.seeding import generator

__all__ = ["best_sum", "exact_results", "growable_examples", "random_choice_problem"]

CHAPTER = "04-growing-networks"

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

Batch = tuple[Tensor, Tensor]


# --- neighbourhood ----------------------------------------------------------------------------------------------------


def _stack() -> Growable:
    """The depth experiment's network, with two places for new layers in each block; one of them has been used."""
    network = with_empty_layers(BlockStack(8), 2).network
    overgrown = OvergrownNetwork(network, new=4, splits=False, generator=generator(0, "stack"))
    chosen = [i for i, candidate in enumerate(overgrown.candidates) if ".inserted.1." in candidate.width]
    return overgrown.grow(chosen, torch.full((len(overgrown.candidates),), 0.5)).network


EXAMPLES: dict[str, tuple[Callable[[], Growable], tuple[int, ...]]] = {
    "VGG-19": (lambda: VGG("vgg19", 8), (3, 32, 32)),
    "MobileNetV1": (lambda: MobileNetV1(8), (3, 32, 32)),
    "block stack": (_stack, (3, 32, 32)),
    "perceptron": (lambda: Perceptron(64, (16, 16), 10), (64,)),
    "perceptron with norms": (lambda: Perceptron(64, (16, 16), 10, normalized=True), (64,)),
    "radial network": (lambda: RadialNetwork(6), (1,)),
}


def growable_examples(name: str) -> tuple[Growable, Tensor]:
    """A network of that family in evaluation mode, with statistics of its own, and inputs; both in float64."""
    make, sample = EXAMPLES[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network, inputs = make().double(), torch.randn(8, *sample, dtype=torch.float64)
        for norm in (module for module in network.modules() if isinstance(module, NORMS)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, 0.0, 0.5)
            norm.momentum = 1.0
    with torch.no_grad():
        network.train()(inputs)
    return network.eval(), inputs


def neighbourhood() -> dict[str, Any]:
    """Differences to the old network: at ε = 0, and at smaller and smaller ε; and of the grown network to its plan."""
    epsilons = [0.01 * 2.0**-k for k in range(9)]
    found: dict[str, Any] = {"epsilon": epsilons, "at_zero": {}, "distance": {}, "slope": {}, "grown_error": {}}
    for name in EXAMPLES:
        network, inputs = growable_examples(name)
        at_zero = 0.0
        for dtype in (torch.float32, torch.float64):
            typed, images = copy.deepcopy(network).to(dtype), inputs.to(dtype)
            overgrown = _overgrown(typed, images, new=4)
            with torch.no_grad():
                at_zero = max(at_zero, float((overgrown(images) - typed(images)).abs().max()))
        with torch.no_grad():  # of the network in float64, which came last
            expected = network(inputs)
            distances = []
            for epsilon in epsilons:
                overgrown.set_epsilon(epsilon)
                distances.append(float((overgrown(inputs) - expected).norm() / expected.norm()))
            signs = _signs(overgrown)
            overgrown.set_epsilon(torch.where(torch.arange(len(signs)) % 2 == 0, 0.1 * signs, 0.0))
            planned = overgrown(inputs)
            grown = overgrown.grow(range(0, len(signs), 2), 0.1 * signs).network.eval()
            found["grown_error"][name] = float((grown(inputs) - planned).abs().max() / planned.abs().max())
        found["at_zero"][name], found["distance"][name] = at_zero, distances
        found["slope"][name] = _slope(epsilons[5:], distances[5:])
    return found


def _overgrown(network: Growable, inputs: Tensor, **options: Any) -> OvergrownNetwork:
    """Its new batch norms have seen two batches; gates are at zero."""
    overgrown = OvergrownNetwork(network, generator=generator(0, "directions"), **options).train()
    overgrown.set_epsilon(0.1)
    with torch.no_grad():
        overgrown(inputs)
        overgrown(inputs)
    overgrown.set_epsilon(0.0)
    return overgrown.eval()


def _signs(overgrown: OvergrownNetwork) -> Float[Tensor, " candidates"]:
    draws = torch.rand(len(overgrown.candidates), generator=generator(0, "signs"), dtype=torch.float64)
    return torch.where(draws < 0.5, -1.0, 1.0).double()


def _slope(x: list[float], y: list[float]) -> float:
    """Of y over x on logarithmic axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# --- Taylor -----------------------------------------------------------------------------------------------------------


def _smooth_examples() -> dict[str, tuple[Growable, Batch]]:
    """Networks whose loss has all derivatives; targets that they don't fit."""
    draws = generator(0, "taylor")
    x = torch.randn(200, 6, generator=draws, dtype=torch.float64)
    y = torch.randn(200, 3, generator=draws, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = with_empty_layers(Perceptron(6, (6, 6), 3, nn.Tanh).double(), {"layers.0.inserted": 1}).network
        return {"perceptron": (network, (x, y)), "radial network": radial_example(0, steps=50)}


def radial_example(seed: int, neurons: int = 6, steps: int = 500) -> tuple[RadialNetwork, Batch]:
    """A radial network that has been trained for a while on one of B.1's data sets of 200 points, in float64."""
    draws = generator(seed, "radial example")
    target = radial_target(draws).double()
    x, y = radial_data(target, draws, 200)
    network = RadialNetwork(neurons)
    network.draw(1.0, draws)
    network = network.double()
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(network(x), y).backward()
        optimizer.step()
    return network, (x, y)


KINDS: dict[str, dict[str, Any]] = {
    "new neurons": {"new": 6, "splits": False},
    "splits": {"new": 0, "splits": True},
    "both": {"new": 6, "splits": True},
}


SUBSETS = 8
"""Random halves of the candidates that are grown; errors are root mean squares over them."""


def taylor() -> dict[str, Any]:
    """Change of the loss by half of the candidates and what Eq. 5 predicts of it, at smaller and smaller ϵ.

    ``change``, ``error`` and ``by_coordinate`` are root mean squares over random halves, the last one the error with
    the integrated gradients of the paper's path; ``paths`` is the largest difference of s between the two paths.
    """
    epsilons = [0.1 * 2.0**-k for k in range(7)]
    found: dict[str, Any] = {"epsilon": epsilons, "rows": {}}
    for name, (network, batch) in _smooth_examples().items():
        before = _loss(network, batch)
        for kind, options in KINDS.items():
            overgrown = OvergrownNetwork(network, generator=generator(0, "taylor directions"), **options).eval()
            count, draws = len(overgrown.candidates), generator(0, "taylor subsets")
            halves = [torch.randperm(count, generator=draws)[: count // 2].tolist() for _ in range(SUBSETS)]
            row: dict[str, Any] = {"change": [], "error": [], "by_coordinate": [], "paths": []}
            for epsilon in epsilons:
                overgrown.set_epsilon(epsilon * _signs(overgrown))
                together = integrated_gradients(overgrown, [batch], F.mse_loss)
                alone = integrated_gradients_by_coordinate(overgrown, [batch], F.mse_loss)
                kept = together.epsilon(epsilon)
                changes = [_loss(overgrown.grow(half, kept).network.eval(), batch) - before for half in halves]
                predicted = {
                    "error": [float((kept * together.gradients)[half].sum()) for half in halves],
                    "by_coordinate": [float((kept * alone.gradients)[half].sum()) for half in halves],
                }
                row["change"].append(_root_mean_square(changes))
                for key, values in predicted.items():
                    row[key].append(_root_mean_square(np.subtract(changes, values)))
                row["paths"].append(float((together.gradients - alone.gradients).abs().max()))
            row["slopes"] = {key: _slope(epsilons[3:], values[3:]) for key, values in row.items()}
            found["rows"][f"{name}, {kind}"] = row
    return found


def _root_mean_square(values: Sequence[float] | np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@torch.no_grad()
def _loss(network: nn.Module, batch: Batch) -> float:
    return float(F.mse_loss(network(batch[0]), batch[1]))


# --- selection --------------------------------------------------------------------------------------------------------

CANDIDATES = 10
"""Of a random problem, so that all subsets can be tried."""

NEW_LAYERS = ("A", "B", "C")
"""Widths of a random problem that have no neurons yet; there is an old one too."""


def random_choice_problem(draws: np.random.Generator) -> tuple[Float[np.ndarray, " candidates"], list[str], Budget]:
    """Ten candidates with standard normal changes of the loss, in four widths; 1 to 6 neurons, 1 or 2 new layers."""
    widths = draws.choice(["old", *NEW_LAYERS], CANDIDATES).tolist()
    budget = Budget(int(draws.integers(1, 7)), int(draws.integers(1, 3)))
    return draws.standard_normal(CANDIDATES), widths, budget


def best_sum(changes: Float[np.ndarray, " candidates"], widths: list[str], budget: Budget) -> float:
    """The least Σ εs over all subsets that keep both budgets."""
    subsets = np.array(list(itertools.product((False, True), repeat=len(changes))))
    layers = sum(subsets[:, [w == layer for w in widths]].any(1).astype(int) for layer in NEW_LAYERS)
    allowed = subsets.sum(1) <= budget.neurons
    if budget.layers is not None:
        allowed &= layers <= budget.layers
    return float((subsets[allowed] @ changes).min())


def selection(cases: int = 1000) -> dict[str, Any]:
    """How often sorting, and how often dynamic programming, finds the optimum over all subsets."""
    draws = np.random.default_rng(0)
    names = ("one budget", "two budgets")
    right = {name: {"greedy": 0, "exact": 0} for name in names}
    lost = []
    for _ in range(cases):
        changes, widths, budget = random_choice_problem(draws)
        for name, given in zip(names, (Budget(budget.neurons), budget), strict=True):
            best = best_sum(changes, widths, given)
            sums = {
                "greedy": float(changes[select(changes, widths, given, NEW_LAYERS)].sum()),
                "exact": float(changes[select_exactly(changes, widths, given, NEW_LAYERS)].sum()),
            }
            for method, value in sums.items():
                right[name][method] += abs(value - best) < 1e-12
            if name == "two budgets" and abs(sums["greedy"] - best) >= 1e-12:
                lost.append(1 - sums["greedy"] / best)
    example, widths = np.array([-10.0, -9.0, -9.0, -9.0]), ["A", "B", "B", "B"]
    counterexample = {
        method.__name__: float(example[method(example, widths, Budget(3, 1), NEW_LAYERS)].sum())
        for method in (select, select_exactly)
    }
    return {
        "cases": cases,
        "right": right,
        "lost": float(np.mean(lost)) if lost else 0.0,
        "most_lost": max(lost, default=0.0),
        "counterexample": counterexample,
    }


# --- splits only ------------------------------------------------------------------------------------------------------


def splits_only(seeds: int = 3, steps: int = 300) -> dict[str, Any]:
    """Step one with splits only, from random directions, beside the eigenvectors of the splitting matrices.

    Gates stay at ϵ, and every neuron has its own learning rate, 0.3/(ϵ²‖S‖): those of a network differ a
    thousandfold. Lists have one entry for each neuron of some trained radial networks, and one row for each ϵ.

    Returns:
        ``eigenvalues``: λ_min; ``scales``: ‖S‖; ``norms``: ‖δ‖ after step one; ``sines``: |sin| of the angle between
        δ and the least eigenvector; ``predicted``: the change of the loss that Eq. 5 predicts, over ½ϵ²λ_min;
        ``actual``: the same of the loss itself, where the neuron alone is split along its eigenvector.
        ``method``: the same as ``predicted`` at the smallest ϵ, by the method's own optimiser of step one, after each
        number of ``method_steps``. ``same_choice`` counts the networks in which the smallest ϵ gives the neurons with
        λ_min < 0 and their order.
    """
    radii = [0.1, 0.03, 0.01, 0.003]
    found: dict[str, Any] = {"epsilon": radii, "networks": seeds, "eigenvalues": [], "scales": [], "same_choice": 0}
    for key in ("norms", "sines", "predicted", "actual"):
        found[key] = [[] for _ in radii]
    found |= {"method_steps": [20, 100, 300], "method": [[], [], []]}
    for seed in range(seeds):
        network, batch = radial_example(seed)
        matrices = splitting_matrices(network, [batch], F.mse_loss)["hidden"]
        pairs = least_eigenpairs({"hidden": matrices})
        values, vectors = pairs.values["hidden"], pairs.vectors["hidden"]
        found["eigenvalues"] += values.tolist()
        found["scales"] += torch.linalg.matrix_norm(matrices, 2).tolist()
        before = _loss(network, batch)
        for place, radius in enumerate(radii):
            overgrown = OvergrownNetwork(network, generator=generator(seed, "splits only"))
            start(overgrown, radius)
            _follow_eigenvectors(overgrown, batch, radius, matrices, steps)
            rows = overgrown.split_rows("hidden")
            along = (rows * vectors).sum(1, keepdim=True) * vectors
            changes = integrated_gradients(overgrown, [batch], F.mse_loss).changes(radius)
            scale = radius**2 / 2 * values
            actual = [
                _loss(split(network, {"hidden": [neuron]}, pairs.vectors, radius).network, batch) - before
                for neuron in range(len(values))
            ]
            found["norms"][place] += rows.norm(dim=1).tolist()
            found["sines"][place] += ((rows - along).norm(dim=1) / rows.norm(dim=1)).tolist()
            found["predicted"][place] += (changes / scale).tolist()
            found["actual"][place] += (torch.tensor(actual, dtype=torch.float64) / scale).tolist()
        down = int((values < 0).sum())
        theirs = values.argsort()[:down]
        ours = select(changes.numpy(), ["hidden"] * len(values), Budget(len(values)))
        found["same_choice"] += sorted(theirs.tolist()) == ours and torch.equal(changes.argsort()[:down], theirs)
        for place, count in enumerate(found["method_steps"]):
            overgrown = OvergrownNetwork(network, generator=generator(seed, "splits only"))
            start(overgrown, radii[-1])
            optimizer = CandidateDescent(overgrown, radii[-1])
            for _ in range(count):
                step_one(overgrown, optimizer, batch, F.mse_loss, radii[-1])
            changes = integrated_gradients(overgrown, [batch], F.mse_loss).changes(radii[-1])
            found["method"][place] += (changes / (radii[-1] ** 2 / 2 * values)).tolist()
    return found


def _follow_eigenvectors(
    overgrown: OvergrownNetwork, batch: Batch, radius: float, matrices: Float[Tensor, "neurons 2 2"], steps: int
) -> None:
    rates = overgrown.spread(0.3 / (radius**2 * torch.linalg.matrix_norm(matrices, 2)))
    for part, rate in zip(overgrown.directions(), rates, strict=True):
        part.register_hook(rate.mul)
    optimizer = torch.optim.SGD(overgrown.directions(), 1.0, momentum=0.9)
    for _ in range(steps):
        step_one(overgrown, optimizer, batch, F.mse_loss, radius)


def exact_results(_: Workplace) -> dict[str, Any]:
    """All exact checks of the chapter."""
    return {
        "neighbourhood": neighbourhood(),
        "taylor": taylor(),
        "selection": selection(),
        "splits_only": splits_only(),
    }


def _judge_neighbourhood(record: Record) -> Verdict:
    found = record.values("neighbourhood")[0]
    at_zero, grown = max(found["at_zero"].values()), max(found["grown_error"].values())
    slopes = found["slope"].values()
    return exact(
        at_zero == 0 and grown < 1e-12 and all(abs(slope - 1) < 0.05 for slope in slopes),
        f"{len(slopes)} kinds of networks: at ε = 0 the outputs differ by {at_zero:g} (float32 and float64, "
        f"evaluation mode); the distance grows as ε to the power {min(slopes):.2f} to {max(slopes):.2f}; "
        f"the grown network is the over-grown one within {grown:.0e}",
    )


def _judge_taylor(record: Record) -> Verdict:
    rows = record.values("taylor")[0]["rows"]
    splits = [row["slopes"]["error"] for name, row in rows.items() if name.endswith(", splits")]
    others = [row["slopes"]["error"] for name, row in rows.items() if not name.endswith(", splits")]
    paths = [row["slopes"]["by_coordinate"] for row in rows.values()]
    return exact(
        min(*others, *paths) > 1.9 and min(splits) > 2.9,  # an error of second order would be all of a split's effect
        f"the error of Σ ε·s falls as ε to the power {min(others):.2f} to {max(others):.2f} with new neurons, and "
        f"{min(splits):.2f} to {max(splits):.2f} with splits alone, whose effect is itself of the second power",
    )


def _judge_selection(record: Record) -> Verdict:
    found = record.values("selection")[0]
    cases, one, two = found["cases"], found["right"]["one budget"], found["right"]["two budgets"]
    numbers = (
        f"{cases:,} random cases against all subsets: with a budget of neurons alone sorting is the optimum in "
        f"{one['greedy'] / cases:.1%}, with a second one of new layers in {two['greedy'] / cases:.1%} (else it loses "
        f"{found['lost']:.0%} of the decrease on average, {found['most_lost']:.0%} at most); dynamic programming in "
        f"{min(one['exact'], two['exact']) / cases:.1%}"
    )
    if not one["greedy"] == one["exact"] == two["exact"] == cases:
        return Verdict("does not hold at this scale", numbers)
    return Verdict("holds" if two["greedy"] == cases else "partly", numbers)  # §2.3 sorts under both budgets


FLAT = 1e-3
"""Neurons with |λ_min| below this share of ‖S‖ hardly curve: gradient descent needs thousands of steps to turn them."""


def _judge_splits(record: Record) -> Verdict:
    found = record.values("splits_only")[0]
    down = [place for place, value in enumerate(found["eigenvalues"]) if value < 0]
    curved = [place for place in down if found["eigenvalues"][place] < -FLAT * found["scales"][place]]
    norm, sine, predicted, actual = (
        [found[key][-1][place] for place in curved] for key in ("norms", "sines", "predicted", "actual")
    )
    reached = [
        f"{sum(ratios[place] > 0.9 for place in curved)} of them in {steps}"
        for steps, ratios in zip(found["method_steps"], found["method"], strict=True)
    ]
    off = max(abs(ratio - 1) for ratio in (*predicted, *actual))
    same, networks = found["same_choice"], found["networks"]
    return exact(
        min(norm) > 0.999 and max(sine) < 0.02 and off < 0.05 and same == networks,
        f"{len(curved)} neurons with λ < 0 in {networks} radial networks, ϵ = {found['epsilon'][-1]:g}: directions "
        f"within {np.degrees(np.arcsin(max(sine))):.2f}° of the least eigenvectors, losses within {off:.1%} of ½ϵ²λ; "
        f"the same neurons are chosen in {same} of {networks}. Left out: {len(down) - len(curved)} with λ above "
        f"-{FLAT:g} ‖S‖. The method's own step one reaches nine tenths of ½ϵ²λ for {', '.join(reached)} steps",
    )


register(
    Experiment(
        "firefly-exact",
        "Neighbourhood, Taylor prediction, selection and splits of firefly descent, exactly",
        CHAPTER,
        exact_results,
        {
            "firefly.neighbourhood": _judge_neighbourhood,
            "firefly.taylor": _judge_taylor,
            "firefly.selection": _judge_selection,
            "firefly.split-equals": _judge_splits,
        },
        seeded=False,
    )
)
