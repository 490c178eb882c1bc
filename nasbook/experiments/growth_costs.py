"""Chapter 4: what one growth costs (Firefly, Fig. 4b), at equal networks in one run.

Firefly descent, exact splitting matrices, splitting by the Rayleigh quotient, and NASH's children grow the same network
on the same images. A growth passes over the data as often as the method says; every pass is measured by a few of its
steps and counted in full, so that NASH's 136 epochs need not be waited for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nasbook.data import ImageData, Loader, evaluation_batches
from nasbook.experiments.growing_networks import growth_config, starting_network
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import GrowthScale, growth_scale
from nasbook.experiments.verdicts import Verdict
from nasbook.growth import integrated_gradients, splittable
from nasbook.growth.splitting import splitting_products
from nasbook.methods import firefly, hill_climbing
from nasbook.methods.growth import Situation
from nasbook.networks import Growable
from nasbook.training import evaluate

__all__ = ["PASSES", "exponents", "growth_seconds", "times"]

CHAPTER = "04-growing-networks"

ROUNDS = 5
"""How many times each part is timed; medians count."""

NASH_EPOCHS = 17
"""Epochs of a NASH child in the paper, where 160 epochs lie between two growths."""

PASSES = ("Firefly", "exact splitting", "Rayleigh splitting", "NASH")
"""What is timed, by the words of figures."""

RAYLEIGH_EPOCHS = 4
"""Passes down the Rayleigh quotients, as at the scale ``gpu``."""


def growth_seconds(workplace: Workplace, channels: int) -> dict[str, float]:
    """Seconds of one growth of a network with so many channels in every layer, by method.

    Firefly: an epoch of step one, and three gradients of all gates. Exact splitting: one Hessian-vector product a batch
    for each entry of the largest neuron. Rayleigh splitting: one product a batch and epoch. NASH: 8 children of 17
    epochs and their validation. Firefly's selecting and cutting count too; the others' (eigendecompositions, proposals,
    the last pass of Rayleigh splitting) are left out, in their favour.
    """
    scale, data = growth_scale(workplace.scale), workplace.data
    network = starting_network(scale, data, workplace.seed, widths=channels)
    network.to(data.train_images.device)
    loader = Loader(
        data.train_images,
        data.train_labels,
        scale.growth_batch,
        mean=data.mean,
        std=data.std,
        augmentation=data.augmentation,
        seed=0,
    )
    steps = len(loader)
    batch = loader.batch(0)
    situation = _situation(network, data, scale, workplace.seed)
    wait = _waiter(data)

    def seconds(function: Callable[[], Any]) -> float:
        function()
        taken = []
        for _ in range(ROUNDS):
            wait()
            started = time.perf_counter()
            function()
            wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    config = growth_config("firefly", scale)
    assert isinstance(config, firefly.Config)
    descent = config.begin(situation)
    step_one = seconds(lambda: descent.run_step(batch, 0))
    gradients = seconds(lambda: integrated_gradients(descent.overgrown, [batch], F.cross_entropy, config.points))
    finishing = seconds(descent.finish) - seconds(
        lambda: integrated_gradients(descent.overgrown, situation.batches(), F.cross_entropy, config.points)
    )

    overgrown = splittable(network, generator=torch.Generator().manual_seed(0))
    vectors = [[part.detach().clone() for part in overgrown.directions()]]
    once = seconds(lambda: list(splitting_products(overgrown, batch, F.cross_entropy, vectors)))
    thrice = seconds(lambda: list(splitting_products(overgrown, batch, F.cross_entropy, vectors * 3)))
    product = (thrice - once) / 2  # without the pass forward, which all products of a batch share
    entries = max(overgrown.split_rows(name).shape[1] for name in overgrown.gates)

    children = growth_config("nash", scale, child_epochs=NASH_EPOCHS)
    assert isinstance(children, hill_climbing.Config)
    climbing = hill_climbing.HillClimbing(children, situation)
    climbing.steps_per_child = 10**9  # so that none of the timed steps ends a child
    climbing.run_step(batch, 0)  # which grows it
    child_step = seconds(lambda: climbing.run_step(batch, 1))
    held_out = len(data.train_images) // 10
    images, labels = data.train_images[:held_out], data.train_labels[:held_out]
    validating = seconds(lambda: evaluate(network, images, labels, data))

    return {
        "Firefly": steps * (config.direction_epochs * step_one + gradients) + max(finishing, 0.0),
        "exact splitting": steps * (once + (entries - 1) * product),
        "Rayleigh splitting": steps * once * RAYLEIGH_EPOCHS,
        "NASH": children.children * (children.child_epochs * steps * child_step + validating),
    }


def _situation(network: Growable, data: ImageData, scale: GrowthScale, seed: int) -> Situation:
    images, labels = data.train_images[: scale.growth_batch], data.train_labels[: scale.growth_batch]

    def batches() -> Any:
        return evaluation_batches(images, labels, scale.growth_batch, data.mean, data.std)

    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return Situation(network, optimizer, batches, lambda network: 0.0, seed, 1)


def _waiter(data: ImageData) -> Callable[[], None]:
    device = data.train_images.device
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def times(workplace: Workplace) -> dict[str, Any]:
    """Seconds of one growth by every method, at every width of the scale."""
    scale = growth_scale(workplace.scale)
    return {str(channels): growth_seconds(workplace, channels) for channels in scale.timed_widths}


def exponents(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """Slope of log time against log width over all widths, by method."""
    widths = np.log([int(width) for width in values])
    return {
        name: float(np.polyfit(widths, np.log([seconds[name] for seconds in values.values()]), 1)[0]) for name in PASSES
    }


def _judge_time(record: Record) -> Verdict:
    values = record.measurements[0].values
    ratios = {
        name: [seconds[name] / seconds["Firefly"] for seconds in values.values()]
        for name in PASSES
        if name != "Firefly"
    }
    slopes = exponents(values)
    compared = ("exact splitting", "NASH")
    holds = all(min(ratios[name]) > 1 for name in compared)
    partly = all(ratios[name][-1] > 1 for name in compared)
    texts = "; ".join(f"{name} {min(r):.1f} to {max(r):.1f} times Firefly" for name, r in ratios.items())
    growth = ", ".join(f"{name} {slope:.1f}" for name, slope in slopes.items())
    numbers = f"one growth, widths {', '.join(values)}: {texts}; time grows with width to the power of {growth}"
    return Verdict("holds" if holds else "partly" if partly else "does not hold at this scale", numbers)


register(
    Experiment(
        "firefly-time",
        "Fig. 4b: the time of one growth by each method, against width",
        CHAPTER,
        times,
        {"firefly.time": _judge_time},
        seeded=False,
        scaled=growth_scale,
    )
)
