"""Chapter 4: networks that grow wider and deeper (Firefly, Fig. 4 and 6, Table 3).

Accuracy against size for every growth method; a grown network against one of the same shape from scratch; and networks
that grow in depth from one layer a block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nasbook.analysis import count_parameters
from nasbook.data import ImageData
from nasbook.experiments.records import Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import GrowthScale, Scale, growth_scale
from nasbook.experiments.verdicts import LEVEL, Verdict, mean_and_error, one_sided_p, trend
from nasbook.methods import GrowthConfig, GrowthRun, firefly, hill_climbing, net2net, splitting_descent
from nasbook.networks import BlockStack, Growable, build_growable, scaled_widths
from nasbook.seeding import fold_seed
from nasbook.training import Fit

__all__ = [
    "AUTOGROW",
    "METHODS",
    "PAPER_DEPTH",
    "accuracy_at",
    "depth",
    "from_scratch",
    "growth_config",
    "mobile",
    "size_advantage",
    "starting_network",
    "width",
]

CHAPTER = "04-growing-networks"

METHODS = {"Firefly": "firefly", "splitting": "splitting", "Net2Net": "net2net", "NASH": "nash", "random": "random"}
"""The methods of Fig. 4a, and random search among Firefly's candidates, by the words of figures."""

AUTOGROW = {
    "mnist": ("13-12-12-12", 2.3, 99.57),
    "fashion-mnist": ("13-13-13-13", 2.3, 94.47),
    "svhn": ("12-12-12-11", 2.2, 97.08),
}
"""What AutoGrow (Wen et al. 2019) published, as the paper's Table 3 cites it: structure, millions of parameters, %."""

PAPER_DEPTH = {
    ("mnist", "NASH"): ("12-12-12-12", 2.0, 99.50),
    ("mnist", "Firefly"): ("12-12-12-12", 1.9, 99.59),
    ("fashion-mnist", "NASH"): ("12-12-12-12", 2.2, 94.34),
    ("fashion-mnist", "Firefly"): ("12-12-12-12", 2.1, 94.48),
    ("svhn", "NASH"): ("12-12-12-12", 2.0, 96.90),
    ("svhn", "Firefly"): ("12-12-12-12", 1.9, 97.08),
}
"""The paper's Table 3."""


def growth_config(method: str, scale: Scale, **changed: Any) -> GrowthConfig:
    """A growth method at a scale, with the rates of Fig. 4: 30 % more neurons a growth.

    Args:
        method: as in :data:`nasbook.methods.GROWTH_METHODS`.
        scale: any; Chapter 4's numbers are looked up.
        changed: fields to set otherwise.
    """
    own = growth_scale(scale)
    common: dict[str, Any] = {
        "growths": own.growths,
        "epochs": own.growth_epochs,
        "batch_size": own.growth_batch,
        "cutout": own.cutout,
    }
    configs = {
        "firefly": lambda: firefly.Config(**{**common, "new_neurons": own.new_neurons, **changed}),
        "splitting": lambda: splitting_descent.Config(
            **{**common, "scored_images": own.split_images, "direction_epochs": own.split_epochs, **changed}
        ),
        "net2net": lambda: net2net.Config(**{**common, **changed}),
        "nash": lambda: hill_climbing.Config(**{**common, "child_epochs": own.child_epochs, **changed}),
        "random": lambda: hill_climbing.RandomConfig(**{**common, "new_neurons": own.new_neurons, **changed}),
    }
    return configs[method]()


def starting_network(
    scale: Scale, data: ImageData, seed: int, name: str | None = None, widths: int | tuple[int, ...] | None = None
) -> Growable:
    """The small network of a scale, or of a name and widths, freshly initialised; one seed gives the same weights."""
    own = growth_scale(scale)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
        return build_growable(
            name or own.vgg,
            widths=own.vgg_channels if widths is None else widths,
            classes=data.classes,
            in_channels=data.channels,
            size=data.size,
        )


def from_scratch(network: Growable, seed: int) -> Growable:
    """A network of the same structure with fresh weights; the same seed and structure give the same ones."""
    fresh = copy.deepcopy(network)
    device = next(fresh.parameters()).device
    fresh.to("cpu")  # whose generator is the one that is seeded: a device's own would draw other weights each time
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(seed, "from scratch"))
        for module in fresh.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
    return fresh.to(device)


def _grow(workplace: Workplace, name: str, network: Growable, config: GrowthConfig) -> tuple[GrowthRun, dict[str, Any]]:
    """Runs a growth method and says what came out, phase by phase."""
    run = GrowthRun(network, workplace.data, config, seed=fold_seed(workplace.seed, "grow"))
    workplace.drive(run, name)
    ends = [report for report in run.history if report.validation_accuracy == report.validation_accuracy]
    return run, {
        "parameters": [report.parameters for report in ends],
        "test_accuracy": [report.validation_accuracy for report in ends],
        "train_loss": [report.train_loss for report in ends],
        "neurons": [report.neurons for report in ends],
        "growth_seconds": [round(event.seconds, 2) for event in run.events],
        "loss_before": [event.loss_before for event in run.events],
        "loss_after": [event.loss_after for event in run.events],
        "predicted": [event.predicted for event in run.events],
        "epochs": run.total_epochs,
    }


def _train(workplace: Workplace, name: str, network: Growable, epochs: int) -> dict[str, Any]:
    """Trains a network as growth runs do, with one cosine over all epochs, and evaluates it once on the test images."""
    like = growth_config("firefly", workplace.scale)
    config = replace(like.fit(), epochs=epochs, evaluate_every=epochs)
    # The share that growth runs train on: none trains on validation images.
    seed = fold_seed(fold_seed(workplace.seed, "grow"), "validation")
    (train,) = workplace.data.split((1 - like.validation_share,), seed=seed)
    run = Fit(network, workplace.data, config, seed=fold_seed(workplace.seed, "fit"), train_indices=train)
    workplace.drive(run, name)
    last = run.history[-1]
    return {
        "parameters": count_parameters(network),
        "test_accuracy": last.validation_accuracy,
        "train_loss": last.train_loss,
        "epochs": epochs,
    }


# --- Fig. 4a and point 4: width --------------------------------------------------------------------------------------


def width(workplace: Workplace) -> dict[str, Any]:
    """VGG grown wider by each method (Fig. 4a), the full network, and Firefly's last shape from scratch.

    The network from scratch has all the epochs that the grown one had, its growths included.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    values: dict[str, Any] = {}
    for label, method in METHODS.items():
        widths = None
        if method == "net2net":  # it begins with an eighth of every width of the full network (§3)
            widths = tuple(scaled_widths(scale.vgg, scale.vgg_full / 8))
        start = starting_network(scale, data, seed, widths=widths)
        run, values[label] = _grow(workplace, f"grow {label}", start, growth_config(method, scale))
        if method == "firefly":
            grown = run.network
    shape = from_scratch(grown, seed)
    values["from scratch"] = _train(workplace, "from scratch", shape, values["Firefly"]["epochs"])
    full = starting_network(scale, data, seed, widths=tuple(scaled_widths(scale.vgg, scale.vgg_full)))
    epochs = scale.growth_epochs * (scale.growths + 1)
    values["full"] = _train(workplace, "full network", full, epochs)
    return values


def accuracy_at(value: dict[str, Any], sizes: np.ndarray) -> np.ndarray:
    """Test accuracy of a growth run at given numbers of parameters, interpolated in their logarithm."""
    return np.interp(np.log(sizes), np.log(value["parameters"]), value["test_accuracy"])


def size_advantage(record: Record, other: str, best: str = "Firefly") -> np.ndarray:
    """Mean difference in test accuracy between two methods over the sizes that both reach, one number a seed.

    Sizes are spread evenly in their logarithm. The size of the start is left out where both begin alike.
    """
    differences = []
    for ours, theirs in zip(record.values(best), record.values(other), strict=True):
        low = max(ours["parameters"][0], theirs["parameters"][0])
        high = min(ours["parameters"][-1], theirs["parameters"][-1])
        sizes = np.geomspace(low, high, 21)[1:]
        differences.append(float((accuracy_at(ours, sizes) - accuracy_at(theirs, sizes)).mean()))
    return np.array(differences)


def _judge_width(record: Record) -> Verdict:
    others = ("splitting", "Net2Net", "NASH")
    found = {name: size_advantage(record, name) for name in others}
    p = {name: one_sided_p(values) for name, values in found.items()}
    texts = "; ".join(f"{mean_and_error(values)} above {name}, p = {p[name]:.2f}" for name, values in found.items())
    right = all(values.mean() > 0 for values in found.values())
    numbers = f"accuracy at equal size, mean over sizes: {texts}; {len(record.measurements)} seeds"
    return trend(right, max(p.values()) < LEVEL, numbers)


register(
    Experiment(
        "firefly-width",
        "Fig. 4a: test accuracy against size as VGG grows wider, and the grown shape from scratch",
        CHAPTER,
        width,
        {"firefly.width": _judge_width},
        scaled=growth_scale,
    )
)


# --- Fig. 6: MobileNetV1 ---------------------------------------------------------------------------------------------


def mobile(workplace: Workplace) -> dict[str, Any]:
    """MobileNetV1 grown wider, 35 % a growth, from as many channels in every layer (Fig. 6)."""
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    values: dict[str, Any] = {}
    for label in ("Firefly", "splitting", "Net2Net", "NASH"):
        own: dict[str, Any] = {"growths": scale.mobile_growths, "epochs": scale.mobile_epochs, "rate": 0.35}
        if label == "NASH":  # the paper's share, 17 of 160
            own["child_epochs"] = max(1, round(scale.mobile_epochs * 17 / 160))
        config = growth_config(METHODS[label], scale, **own)
        network = starting_network(scale, data, seed, "mobilenet-v1", scale.mobile_channels)
        _, values[label] = _grow(workplace, f"grow {label}", network, config)
    return values


def _on(choose: Callable[[GrowthScale], str]) -> Callable[[Scale], GrowthScale]:
    """Chapter 4's numbers with another data set than the scale's own."""

    def scaled(scale: Scale) -> GrowthScale:
        own = growth_scale(scale)
        return replace(own, data=choose(own))

    return scaled


def _always(name: str) -> Callable[[GrowthScale], str]:
    return lambda scale: name


register(
    Experiment(
        "firefly-mobile",
        "Fig. 6: test accuracy against size as MobileNetV1 grows wider",
        CHAPTER,
        mobile,
        scaled=_on(lambda scale: scale.mobile_data),
    )
)


# --- Table 3: depth --------------------------------------------------------------------------------------------------


def depth(workplace: Workplace) -> dict[str, Any]:
    """The block stack grown wider and deeper from 1-1-1-1 by Firefly and by NASH, then trained once more (Table 3).

    Both add a quarter of their neurons a growth to the layers that they have. Firefly opens at most four new layers,
    with two to m' neurons each (B.2); NASH inserts an identity layer into each block, as wide as the block. The last
    training starts from the grown weights.
    """
    scale, data, seed = _scale(workplace), workplace.data, workplace.seed
    common: dict[str, Any] = {"growths": scale.depth_growths, "epochs": scale.depth_epochs, "rate": 0.25}
    configs = {
        "Firefly": growth_config(
            "firefly",
            scale,
            **common,
            new_neurons=scale.depth_neurons,
            layer_neurons=scale.depth_neurons,
            new_layers=scale.depth_places,
            layer_budget=4,
        ),
        "NASH": growth_config("nash", scale, **common, new_layers=1),
    }
    values: dict[str, Any] = {}
    for label, config in configs.items():
        network = starting_network(scale, data, seed, "block-stack", 16)
        run, values[label] = _grow(workplace, f"grow {label}", network, config)
        grown = run.network
        assert isinstance(grown, BlockStack)
        values[label]["structure"] = list(grown.structure())
        retrained = _train(workplace, f"train {label}", grown, scale.retrain_epochs)
        values[label] |= {"final_parameters": retrained["parameters"], "final_accuracy": retrained["test_accuracy"]}
    return values


def _judge_depth(record: Record) -> Verdict:
    ours, theirs = record.values("Firefly"), record.values("NASH")

    def difference(name: str) -> np.ndarray:
        return np.array([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)], dtype=float)

    accuracy, parameters = difference("final_accuracy"), difference("final_parameters")
    p_accuracy, p_size = one_sided_p(accuracy), one_sided_p(-parameters)
    sizes = [np.mean([value["final_parameters"] for value in values]) for values in (ours, theirs)]
    layers = [np.mean([sum(value["structure"]) for value in values]) for values in (ours, theirs)]
    numbers = (
        f"Firefly {mean_and_error(np.array([v['final_accuracy'] for v in ours]))} with {sizes[0]:,.0f} parameters in "
        f"{layers[0]:.1f} layers, NASH {mean_and_error(np.array([v['final_accuracy'] for v in theirs]))} with "
        f"{sizes[1]:,.0f} in {layers[1]:.1f}; p = {p_accuracy:.2f} for the accuracy, {p_size:.2f} for the size, "
        f"{len(ours)} seeds; AutoGrow is cited, not run"
    )
    return trend(
        bool(accuracy.mean() >= 0 and parameters.mean() < 0), p_size < LEVEL and p_accuracy < LEVEL, numbers
    )


register(
    Experiment(
        "firefly-depth",
        "Table 3: a block stack grown in depth and width from 1-1-1-1",
        CHAPTER,
        depth,
        {"firefly.depth": _judge_depth},
        scaled=_on(lambda scale: scale.depth_data),
    )
)

for _data in ("mnist", "fashion-mnist", "svhn"):
    register(
        Experiment(
            f"firefly-depth-{_data}",
            f"Table 3 on {_data}, at any scale",
            CHAPTER,
            depth,
            scaled=_on(_always(_data)),
        )
    )


def _scale(workplace: Workplace) -> GrowthScale:
    return growth_scale(workplace.scale)
