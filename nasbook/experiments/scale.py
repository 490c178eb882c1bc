"""Scales: how much data, how many cells, how many epochs. The algorithm is the same at every scale."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from nasbook.errors import InvalidInput, unknown_name
from nasbook.genotypes import DARTS_OPERATIONS, Space


@dataclass(frozen=True)
class Scale:
    """The numbers of one size of the experiments on image cells."""

    name: str
    """``quick``, ``laptop``, ``gpu`` or ``paper``."""
    data: str
    """Name of the data set, as :func:`nasbook.data.load_images` takes it."""
    train_images: int | None
    """How many training images are used, balanced over the classes; None for all."""
    test_images: int | None
    """How many test images are used, balanced over the classes; None for all."""
    seeds: int
    """How many seeds a record needs before a trend is judged; at least 3."""
    operations: tuple[str, ...]
    """Candidates on every edge."""
    nodes: int
    """Intermediate nodes of a cell."""
    order: str
    """Form of the architecture gradient, as in :data:`nasbook.methods.darts.UPDATES`."""
    search_epochs: int
    """Epochs of a search."""
    long_search_epochs: int
    """Epochs of the search that is left to run on purpose, to see whether it collapses."""
    search_batch: int
    """Images a step in a search."""
    search_channels: int
    """Channels of the supernet's first cell, C."""
    search_cells: int
    """Cells of the supernet, L."""
    architecture_learning_rate: float
    """Of Adam on α. Adam's steps are about as long as its rate, so rate × steps says how far α can move: 5.9 in
    the paper (3e-4 × 50 epochs × 390 steps). Every scale keeps that product for ``search_epochs``."""
    epochs: int
    """Epochs of training a derived network."""
    batch: int
    """Images a step in training a derived network."""
    channels: int
    """Channels of the derived network's first cell, C."""
    cells: int
    """Cells of the derived network, L."""
    auxiliary: bool
    """Whether the derived network trains with an auxiliary head (needs images of 32 pixels)."""
    drop_path: float
    """Drop rate of edges, as :class:`nasbook.training.FitConfig` takes it."""
    cutout: int
    """Side of the square that cutout erases, in pixels."""

    def __post_init__(self) -> None:
        if self.seeds < 3:
            raise InvalidInput(f"A trend needs at least 3 seeds, got {self.seeds}.")

    @property
    def space(self) -> Space:
        """The cell space of this scale."""
        return Space(self.operations, self.nodes)


SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="quick",
            data="digits",
            train_images=None,
            test_images=None,
            seeds=3,
            operations=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
            nodes=3,
            order="first-order",
            search_epochs=15,
            long_search_epochs=45,
            search_batch=64,
            search_channels=4,
            search_cells=3,
            architecture_learning_rate=4e-2,
            epochs=8,
            batch=64,
            channels=4,
            cells=3,
            auxiliary=False,
            drop_path=0.0,
            cutout=0,
        ),
        Scale(
            name="laptop",
            data="fashion-mnist",
            train_images=2000,
            test_images=2000,
            seeds=3,
            operations=DARTS_OPERATIONS,
            nodes=4,
            order="first-order",
            search_epochs=15,
            long_search_epochs=30,
            search_batch=64,
            search_channels=8,
            search_cells=5,
            architecture_learning_rate=2.6e-2,
            epochs=20,
            batch=64,
            channels=16,
            cells=5,
            auxiliary=False,
            drop_path=0.0,
            cutout=8,
        ),
        Scale(
            name="gpu",
            data="cifar10",
            train_images=None,
            test_images=None,
            seeds=3,
            operations=DARTS_OPERATIONS,
            nodes=4,
            order="first-order",
            search_epochs=25,
            long_search_epochs=100,
            search_batch=256,
            search_channels=16,
            search_cells=8,
            architecture_learning_rate=2.4e-3,
            epochs=50,
            batch=128,
            channels=36,
            cells=8,
            auxiliary=True,
            drop_path=0.1,
            cutout=16,
        ),
        Scale(
            name="paper",
            data="cifar10",
            train_images=None,
            test_images=None,
            seeds=4,
            operations=DARTS_OPERATIONS,
            nodes=4,
            order="second-order",
            search_epochs=50,
            long_search_epochs=200,
            search_batch=64,
            search_channels=16,
            search_cells=8,
            architecture_learning_rate=3e-4,
            epochs=600,
            batch=96,
            channels=36,
            cells=20,
            auxiliary=True,
            drop_path=0.2,
            cutout=16,
        ),
    )
}
"""The four scales by name."""


@dataclass(frozen=True)
class StretchableScale(Scale):
    """The numbers of Chapter 2, which searches at several depths and compares networks of one size."""

    stretchable_nodes: int
    """Intermediate nodes where a node may choose any number of edges (the paper: 6, DARTS 4)."""
    layers: tuple[int, ...]
    """Numbers of cells, L, to search and to evaluate at; the first is that of single searches."""
    parameters: int
    """Parameters of compared networks: each gets the channels C that come nearest."""

    @property
    def stretchable_space(self) -> Space:
        """The space of the stretchable cell: without the zero operation, with more nodes."""
        return Space(self.space.choices, self.stretchable_nodes)


STRETCHABLE_SCALES: dict[str, StretchableScale] = {
    name: StretchableScale(
        **{**vars(SCALES[name]), "search_cells": layers[0], "cells": layers[0]},
        stretchable_nodes=nodes,
        layers=layers,
        parameters=parameters,
    )
    for name, nodes, layers, parameters in (
        ("quick", 5, (4, 8, 12), 50_000),
        ("laptop", 6, (4, 8), 200_000),
        ("gpu", 6, (8, 12, 16), 1_500_000),
        ("paper", 6, (8, 12, 16, 20), 3_500_000),
    )
}
"""The scales of Chapter 2 by name."""

ChapterScale = TypeVar("ChapterScale", bound=Scale)


def stretchable_scale(scale: Scale) -> StretchableScale:
    """The numbers of Chapter 2 at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, StretchableScale, STRETCHABLE_SCALES, "Chapter 2")


@dataclass(frozen=True)
class EnTranNASScale(Scale):
    """The numbers of Chapter 3, whose supernets have more cells, so that Transit-cells are most of them."""

    annealed_learning_rate: float
    """Of Adam on α and β in EnTranNAS. Rate × steps is 1.35 to 1.47 at every scale, as in the paper (6e-4 × 50 epochs ×
    49 steps); the temperature falls from 5 to about 0.1, as there."""
    weights_learning_rate: float
    """Of the weights' SGD in EnTranNAS, at the start; 0.2 in the paper, for a batch of 512. At ``quick``, of 0.0125,
    0.05, 0.1 and 0.2, the one with which one supernet's training accuracy rose fastest."""
    bottleneck_channels: int
    """Channels C of supernets with a bottleneck of 4; at ``quick`` their candidates are as wide as DARTS'."""
    penalty_weights: tuple[float, ...]
    """The weights λ of Eq. 11 that are compared."""


ENTRANNAS_SCALES: dict[str, EnTranNASScale] = {
    name: EnTranNASScale(
        **{
            **vars(SCALES[name]),
            "search_cells": cells,
            "cells": cells if name in ("quick", "laptop") else SCALES[name].cells,
            "search_epochs": epochs,
            "search_batch": batch,
            "order": "first-order",
            "architecture_learning_rate": rate,
        },
        annealed_learning_rate=annealed,
        weights_learning_rate=weights,
        bottleneck_channels=16,
        penalty_weights=(0.05, 0.1, 0.2),
    )
    for name, cells, epochs, batch, rate, annealed, weights in (
        ("quick", 6, 25, 32, 1.1e-2, 2.7e-3, 0.05),
        ("laptop", 6, 25, 64, 1.6e-2, 3.9e-3, 0.05),
        ("gpu", 8, 25, 256, 2.4e-3, 6e-4, 0.1),
        ("paper", 8, 50, 512, 2.4e-3, 6e-4, 0.2),
    )
}
"""The scales of Chapter 3 by name."""


def entrannas_scale(scale: Scale) -> EnTranNASScale:
    """The numbers of Chapter 3 at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, EnTranNASScale, ENTRANNAS_SCALES, "Chapter 3")


@dataclass(frozen=True)
class GrowthScale(Scale):
    """The numbers of Chapter 4, whose networks grow; of the others it uses data and seeds."""

    vgg: str
    """The network of Fig. 4, by name."""
    vgg_channels: int
    """Channels of each of its convolutions at the start."""
    vgg_full: float
    """Widths of the network that sizes are relative to, as a multiple of the standard ones; 1 in the paper."""
    growths: int
    """How often it grows."""
    growth_epochs: int
    """Passes between two growths."""
    growth_batch: int
    """Images a step."""
    new_neurons: int
    """m' of Firefly."""
    child_epochs: int
    """Passes that NASH trains a child."""
    split_images: int | None
    """Images from which splitting matrices are computed; None for all."""
    split_epochs: int
    """Passes down the Rayleigh quotient instead; 0 for exact matrices."""
    mobile_data: str
    """Data set of Fig. 6."""
    mobile_channels: int
    """Channels of each layer of MobileNetV1 at the start."""
    mobile_growths: int
    """How often MobileNetV1 grows."""
    mobile_epochs: int
    """Passes between two growths of MobileNetV1. Its 27 layers learn slowly: with 6 passes, or with 8 channels or less,
    the small network at ``quick`` stays below a third of the training images."""
    depth_data: str
    """Data set of the first rows of Table 3."""
    depth_growths: int
    """How often the block stack grows."""
    depth_epochs: int
    """Passes between two growths of the block stack."""
    depth_places: int
    """Empty layers that Firefly puts into each block."""
    depth_neurons: int
    """m' of Firefly in Table 3."""
    retrain_epochs: int
    """Passes of the last training of Table 3."""
    timed_widths: tuple[int, ...]
    """Channels at which one growth is timed."""


_GROWTH_NUMBERS: dict[str, dict[str, Any]] = {
    "quick": {
        "vgg": "vgg11",
        "vgg_channels": 4,
        "vgg_full": 0.125,
        "growths": 5,
        "growth_epochs": 6,
        "growth_batch": 64,
        "new_neurons": 10,
        "child_epochs": 1,
        "split_images": 256,
        "split_epochs": 0,
        "mobile_data": "digits",
        "mobile_channels": 16,
        "mobile_growths": 3,
        "mobile_epochs": 25,
        "depth_data": "digits",
        "depth_growths": 3,
        "depth_epochs": 5,
        "depth_places": 3,
        "depth_neurons": 10,
        "retrain_epochs": 15,
        "timed_widths": (4, 8, 16, 32),
    },
    "laptop": {
        "vgg": "vgg11",
        "vgg_channels": 8,
        "vgg_full": 0.25,
        "growths": 5,
        "growth_epochs": 10,
        "growth_batch": 64,
        "new_neurons": 20,
        "child_epochs": 1,
        "split_images": 256,
        "split_epochs": 0,
        "mobile_data": "fashion-mnist",
        "mobile_channels": 16,
        "mobile_growths": 3,
        "mobile_epochs": 20,
        "depth_data": "fashion-mnist",
        "depth_growths": 4,
        "depth_epochs": 8,
        "depth_places": 4,
        "depth_neurons": 20,
        "retrain_epochs": 20,
        "timed_widths": (8, 16, 32),
    },
    "gpu": {
        "vgg": "vgg19",
        "vgg_channels": 16,
        "vgg_full": 1.0,
        "growths": 6,
        "growth_epochs": 20,
        "growth_batch": 128,
        "new_neurons": 50,
        "child_epochs": 2,
        "split_images": None,
        "split_epochs": 4,
        "mobile_data": "cifar100",
        "mobile_channels": 32,
        "mobile_growths": 4,
        "mobile_epochs": 20,
        "depth_data": "mnist",
        "depth_growths": 11,
        "depth_epochs": 5,
        "depth_places": 11,
        "depth_neurons": 20,
        "retrain_epochs": 40,
        "timed_widths": (8, 16, 32, 64),
    },
    "paper": {
        "vgg": "vgg19",
        "vgg_channels": 16,
        "vgg_full": 1.0,
        "growths": 8,
        "growth_epochs": 160,
        "growth_batch": 128,
        "new_neurons": 50,
        "child_epochs": 17,
        "split_images": None,
        "split_epochs": 0,
        "mobile_data": "cifar100",
        "mobile_channels": 32,
        "mobile_growths": 6,
        "mobile_epochs": 160,
        "depth_data": "mnist",
        "depth_growths": 11,
        "depth_epochs": 40,
        "depth_places": 11,
        "depth_neurons": 20,
        "retrain_epochs": 200,
        "timed_widths": (8, 16, 32, 64),
    },
}

GROWTH_SCALES: dict[str, GrowthScale] = {
    name: GrowthScale(**vars(SCALES[name]), **numbers) for name, numbers in _GROWTH_NUMBERS.items()
}
"""The scales of Chapter 4 by name."""


def growth_scale(scale: Scale) -> GrowthScale:
    """The numbers of Chapter 4 at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, GrowthScale, GROWTH_SCALES, "Chapter 4")


@dataclass(frozen=True)
class PoolScale(Scale):
    """The numbers of Chapter 5, whose searches prune and replace candidates."""

    cycle_epochs: tuple[int, ...]
    """Passes of every cycle of PR-DARTS; DARTS searches as many in all."""
    grace_epochs: tuple[int, ...]
    """The first of them, in which α is frozen; about a third, as in Table 1."""
    pool_learning_rate: float
    """Of Adam on α in PR-DARTS. Rate × steps over all cycles is 14 to 17 with batches of ``search_batch`` images; it is
    16 in the paper (6e-4 × 69 epochs without grace × 390 steps of 64 images)."""
    smallest_batch: int
    """b_min, where the batch follows the memory; elsewhere it is ``search_batch``."""
    largest_batch: int
    """b_max."""
    memory_mib: float
    """MiB that a step may then take."""
    deep_cells: int
    """Cells of the retrained network: 2.5 times those of the search, as in the paper, rounded up."""
    cycle_cells: tuple[int, ...]
    """Cells in every cycle of the search that deepens."""


_POOL_NUMBERS: dict[str, dict[str, Any]] = {
    "quick": {
        "cycle_epochs": (3, 3, 2, 2, 2, 2, 2, 2, 2),
        "grace_epochs": (1,) * 9,
        "pool_learning_rate": 0.13,
        "smallest_batch": 16,
        "largest_batch": 64,
        "memory_mib": 10.0,
        "deep_cells": 8,
        "cycle_cells": (3, 3, 3, 3, 3, 4, 5, 6, 8),
    },
    "laptop": {
        "cycle_epochs": (3, 3, 2, 2, 2, 2, 2, 2, 2),
        "grace_epochs": (1,) * 9,
        "pool_learning_rate": 0.1,
        "smallest_batch": 16,
        "largest_batch": 64,
        "memory_mib": 300.0,
        "deep_cells": 13,
        "cycle_cells": (5, 5, 5, 5, 5, 6, 8, 10, 13),
    },
    "gpu": {
        "cycle_epochs": (5, 5, 3, 3, 3, 3, 3, 3, 3),
        "grace_epochs": (2, 2, 1, 1, 1, 1, 1, 1, 1),
        "pool_learning_rate": 8e-3,
        "smallest_batch": 24,
        "largest_batch": 128,
        "memory_mib": 3 * 1024.0,
        "deep_cells": 20,
        "cycle_cells": (8, 8, 8, 8, 8, 10, 13, 16, 20),
        "cells": 20,
        "drop_path": 0.3,
    },
    "paper": {
        "cycle_epochs": (15, 15, 10, 10, 10, 10, 10, 10, 10),
        "grace_epochs": (5, 5, 3, 3, 3, 3, 3, 3, 3),
        "pool_learning_rate": 6e-4,
        "smallest_batch": 24,
        "largest_batch": 128,
        "memory_mib": 11 * 1024.0,
        "deep_cells": 20,
        "cycle_cells": (8, 8, 8, 8, 8, 10, 13, 16, 20),
        "order": "first-order",
        "drop_path": 0.3,
    },
}

POOL_SCALES: dict[str, PoolScale] = {
    name: PoolScale(**{**vars(SCALES[name]), **numbers}) for name, numbers in _POOL_NUMBERS.items()
}
"""The scales of Chapter 5 by name."""


def pool_scale(scale: Scale) -> PoolScale:
    """The numbers of Chapter 5 at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, PoolScale, POOL_SCALES, "Chapter 5")


@dataclass(frozen=True)
class GrowingScale(Scale):
    """The numbers of Chapter 6, whose recurrent cells grow while they are searched."""

    series: dict[str, str]
    """Series by the names of figures: embedded ones, or columns of the file that is given as data, joined by commas.

    The paper does not name its indices. The file that we know of has those of five of the G7 (not Canada's and
    Italy's); its other five, under "BRICS", are China's, India's, Hong Kong's, Taiwan's and Russia's (not Brazil's and
    South Africa's). So n_h is 5 in both, where the paper has 7 in the first."""
    series_epochs: int
    """Most epochs of a stage, and of tuning, on series."""
    series_patience: int
    """Epochs without a lower validation loss that end them."""
    series_stages: int
    """Most stages on series: the first has ``series_nodes`` nodes."""
    series_nodes: int
    """Nodes that cells begin with on series."""
    series_rates: tuple[float, float]
    """Of Adam on weights and on α, on series."""
    series_retrain: int
    """Epochs of training what was found from scratch, on series."""
    text: str
    """Name of the text. The paper has WikiText-2, too."""
    text_lines: tuple[int, int, int] | None
    """Lines of train, validation and test from the training file, in this order (§4.2); None for the official parts."""
    text_hidden: int
    """Width of the state in a language model, n_h."""
    text_window: int
    """Words in an example."""
    text_batch: int
    """Examples a step. In the paper 50, as on series ("the optimization process is the same", §4.2)."""
    text_epochs: int
    """Most epochs of a stage, and of tuning, on text; also those of training from scratch."""
    text_stages: int
    """Most stages on text."""
    text_rates: tuple[float, float]
    """Of Adam on weights and on α, on text."""
    starts: dict[int, int]
    """Nodes that cells begin with on text, and the patience (§4.2: 2 with 2 nodes, 3 with 3 and 4)."""
    grown_nodes: int
    """Nodes of the largest cell when growing is compared with training it at once."""
    image_stages: int
    """Most stages on images; cells begin with 2 nodes."""
    image_epochs: int
    """Most epochs of a stage, and of tuning, on images."""


_GROWING_NUMBERS: dict[str, dict[str, Any]] = {
    "quick": {
        "series": {"G7": "simulated-g7", "BRICS": "simulated-brics"},
        "series_epochs": 8,
        "series_patience": 2,
        "series_stages": 4,
        "series_nodes": 2,
        "series_rates": (3e-3, 3e-3),
        "series_retrain": 20,
        "text": "grammar",
        "text_lines": None,
        "text_hidden": 32,
        "text_window": 20,
        "text_batch": 20,
        "text_epochs": 6,
        "text_stages": 3,
        "text_rates": (5e-3, 5e-3),
        "starts": {2: 2, 3: 3, 4: 3},
        "grown_nodes": 4,
        "image_stages": 3,
        "image_epochs": 6,
    },
    "laptop": {
        "series": {"G7": "GSPC,N225,FTSE,FCHI,GDAXI", "BRICS": "SSE,BSE,HSI,TWII,MOEX"},
        "series_epochs": 20,
        "series_patience": 3,
        "series_stages": 6,
        "series_nodes": 2,
        "series_rates": (1e-3, 3e-4),
        "series_retrain": 50,
        "text": "ptb",
        "text_lines": (600, 150, 150),
        "text_hidden": 64,
        "text_window": 35,
        "text_batch": 10,
        "text_epochs": 10,
        "text_stages": 3,
        "text_rates": (2e-3, 7e-4),
        "starts": {2: 2, 3: 3, 4: 3},
        "grown_nodes": 5,
        "image_stages": 3,
        "image_epochs": 8,
    },
    "gpu": {
        "series": {"G7": "GSPC,N225,FTSE,FCHI,GDAXI", "BRICS": "SSE,BSE,HSI,TWII,MOEX"},
        "series_epochs": 20,
        "series_patience": 3,
        "series_stages": 6,
        "series_nodes": 2,
        "series_rates": (1e-3, 3e-4),
        "series_retrain": 50,
        "text": "ptb",
        "text_lines": (4000, 500, 500),
        "text_hidden": 128,
        "text_window": 35,
        "text_batch": 50,
        "text_epochs": 10,
        "text_stages": 4,
        "text_rates": (1e-3, 3e-4),
        "starts": {2: 2, 3: 3, 4: 3},
        "grown_nodes": 6,
        "image_stages": 3,
        "image_epochs": 15,
    },
    "paper": {
        "series": {"G7": "GSPC,N225,FTSE,FCHI,GDAXI", "BRICS": "SSE,BSE,HSI,TWII,MOEX"},
        "series_epochs": 20,
        "series_patience": 3,
        "series_stages": 6,
        "series_nodes": 2,
        "series_rates": (1e-3, 3e-4),
        "series_retrain": 50,
        "text": "ptb",
        "text_lines": (4000, 500, 500),
        "text_hidden": 128,
        "text_window": 35,
        "text_batch": 50,
        "text_epochs": 10,
        "text_stages": 6,
        "text_rates": (1e-3, 3e-4),
        "starts": {2: 2, 3: 3, 4: 3},
        "grown_nodes": 6,
        "image_stages": 4,
        "image_epochs": 50,
    },
}

GROWING_SCALES: dict[str, GrowingScale] = {
    name: GrowingScale(**{**vars(SCALES[name]), **numbers}) for name, numbers in _GROWING_NUMBERS.items()
}
"""The scales of Chapter 6 by name."""


def growing_scale(scale: Scale) -> GrowingScale:
    """The numbers of Chapter 6 at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, GrowingScale, GROWING_SCALES, "Chapter 6")


def own_scale(
    scale: Scale, kind: type[ChapterScale], known: dict[str, ChapterScale], owner: str
) -> ChapterScale:
    """The scale with the numbers of a chapter or a figure: the one that is given, or that of the same name.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    if isinstance(scale, kind):
        return scale
    if scale != SCALES.get(scale.name):  # its own numbers would be lost
        own = [field.name for field in fields(kind) if field.name not in {f.name for f in fields(Scale)}]
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InvalidInput(
            f"{owner} needs numbers of its own ({', '.join(own)}), which the scale {scale.name!r} lacks: "
            f"give {article} {kind.__name__}, or the name of a scale."
        )
    return known[scale.name]


def get_scale(name: str | None = None) -> Scale:
    """The scale of that name; None takes ``NASBOOK_SCALE``, or ``quick`` where it is not set.

    Raises:
        InvalidInput: there is no such scale.
    """
    name = name or os.environ.get("NASBOOK_SCALE") or "quick"
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    return SCALES[name]
