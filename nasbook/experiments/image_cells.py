"""What the chapters on image cells share: how methods search and derived networks train at a scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from nasbook.analysis import count_parameters
from nasbook.data import ImageData
from nasbook.experiments.continual_scale import continual_scale
from nasbook.experiments.registry import Workplace
from nasbook.experiments.scale import Scale, entrannas_scale, growing_scale, pool_scale, stretchable_scale
from nasbook.genotypes import Genotype, Space
from nasbook.methods import (
    darts,
    entrannas,
    entrannas_dst,
    firefly_cells,
    growing,
    growing_search,
    local_search,
    milenas,
    pc_darts,
    pr_darts,
    random_search,
    regularized_evolution,
    stretchable,
)
from nasbook.networks import GROWING_SPACE, DerivedNetwork, channels_for
from nasbook.operations import CONSTRAINTS
from nasbook.seeding import fold_seed
from nasbook.training import Fit, FitConfig


def search_config(scale: Scale, epochs: int | None = None) -> darts.Config:
    """DARTS at a scale."""
    return darts.Config(**_search_settings(scale, epochs))


def milenas_config(scale: Scale) -> milenas.Config:
    """MiLeNAS at a scale: first order, as its paper does."""
    return milenas.Config(**{**_search_settings(scale), "order": "first-order"})


def stretchable_config(scale: Scale) -> stretchable.Config:
    """MiLeNAS with stretchable cells at a scale, with Chapter 2's numbers: the supernet has ``layers[0]`` cells."""
    return stretchable.Config(**{**_search_settings(stretchable_scale(scale)), "order": "first-order"})


def pairs_config(scale: Scale) -> stretchable.Config:
    """First-order DARTS with two output edges a node at a scale: the paper's "DARTS w/o SC"."""
    return replace(stretchable_config(scale), train_weight=0.0, topology="output-edges")


def pc_darts_config(scale: Scale) -> pc_darts.Config:
    """PC-DARTS at a scale: the paper's at ``paper``, else the scale's epochs, batch and cells.

    With at least the paper's 16 channels, so that at K = 4 the candidates have 4. The weights' rate goes with the
    batch (0.1 at 256). Rate × steps says how far α and β can move: 2.0 in the paper (6e-4 × 35 epochs × 97 steps),
    a third of DARTS'. Half of the scale's rate for DARTS keeps that product, in the 70 % of the steps that move them.
    """
    paper = pc_darts.Config()
    batch = paper.batch_size if scale.name == "paper" else scale.search_batch
    settings = {
        **_search_settings(scale),
        "order": "first-order",
        "batch_size": batch,
        "channels": max(paper.channels, scale.search_channels),
        "learning_rate": paper.learning_rate * batch / paper.batch_size,
        "architecture_learning_rate": scale.architecture_learning_rate / 2 * batch / scale.search_batch,
    }
    return pc_darts.Config(**settings)


def entrannas_config(scale: Scale) -> entrannas.Config:
    """EnTranNAS at a scale, with Chapter 3's numbers."""
    return entrannas.Config(**_annealed_settings(scale))


def entrannas_dst_config(scale: Scale) -> entrannas_dst.Config:
    """EnTranNAS-DST at a scale, with Chapter 3's numbers."""
    return entrannas_dst.Config(**_annealed_settings(scale))


def pr_darts_config(scale: Scale, constraints: str = "DL", *, follow_memory: bool = False) -> pr_darts.Config:
    """PR-DARTS at a scale, with Chapter 5's numbers.

    Args:
        scale: any; Chapter 5's numbers are looked up.
        constraints: a row of Table 2.
        follow_memory: whether the batch grows within the scale's memory; else it is the scale's for searches, so that
            results depend on no device. At ``paper`` it always grows, as in the paper.
    """
    own = pool_scale(scale)
    settings = _search_settings(own)
    del settings["epochs"]
    settings.update(
        order="first-order",
        architecture_learning_rate=own.pool_learning_rate,
        cycle_epochs=own.cycle_epochs,
        grace_epochs=own.grace_epochs,
        constraints=CONSTRAINTS[constraints],
        memory_budget=None,
    )
    if follow_memory or own.name == "paper":
        settings.update(
            batch_size=own.smallest_batch, largest_batch=own.largest_batch, memory_budget=own.memory_mib / 1024
        )
    return pr_darts.Config(**settings)


def pr_darts_space(scale: Scale) -> Space:
    """What PR-DARTS begins with at a scale: the paper's four candidates, the scale's nodes."""
    return replace(pr_darts.INITIAL_SPACE, nodes=scale.nodes)


def _annealed_settings(scale: Scale) -> dict[str, Any]:
    scale = entrannas_scale(scale)
    paper = entrannas.Config()
    return {
        **_search_settings(scale),
        "channels": scale.bottleneck_channels,
        "order": "first-order",
        "learning_rate": scale.weights_learning_rate,
        "architecture_learning_rate": scale.annealed_learning_rate,
        "temperature_decay": paper.temperature_decay ** (paper.epochs / scale.search_epochs),
    }


def random_search_config(scale: Scale) -> random_search.Config:
    """Random search at a scale: as many epochs of training in all as DARTS searches, shared by about four samples."""
    epochs = max(1, scale.search_epochs // 4)
    return random_search.Config(
        samples=max(1, scale.search_epochs // epochs),
        epochs=epochs,
        batch_size=scale.search_batch,
        channels=scale.search_channels,
        cells=scale.search_cells,
    )


def regularized_evolution_config(scale: Scale) -> regularized_evolution.Config:
    """Regularised evolution at a scale: DARTS' epochs in all, shared by about fifteen samples.

    A third of them are the first population; a tournament draws a quarter of it, as in the paper, and at least two.
    """
    settings = _many_samples(scale)
    population = max(1, settings["samples"] // 3)
    tournament = min(population, max(2, population // 4))
    return regularized_evolution.Config(**settings, population=population, tournament=tournament)


def local_search_config(scale: Scale) -> local_search.Config:
    """Local search at a scale: DARTS' epochs in all, shared by about fifteen samples.

    It moves to the first better neighbour: a cell has more neighbours than there are samples.
    """
    return local_search.Config(**_many_samples(scale), move="first-better")


def _many_samples(scale: Scale) -> dict[str, Any]:
    epochs = max(1, scale.search_epochs // 15)
    return {
        "samples": max(2, scale.search_epochs // epochs),
        "epochs": epochs,
        "batch_size": scale.search_batch,
        "channels": scale.search_channels,
        "cells": scale.search_cells,
    }


def _search_settings(scale: Scale, epochs: int | None = None) -> dict[str, Any]:
    return {
        "epochs": epochs or scale.search_epochs,
        "batch_size": scale.search_batch,
        "channels": scale.search_channels,
        "cells": scale.search_cells,
        "order": scale.order,
        "architecture_learning_rate": scale.architecture_learning_rate,
    }


def growing_config(scale: Scale, mode: growing_search.Mode = "prune-each-stage") -> growing.Config:
    """How the convolutional cell grows at a scale; it begins with two nodes."""
    own = growing_scale(scale)
    return growing.Config(
        mode=mode,
        stages=own.image_stages,
        stage_epochs=own.image_epochs,
        tune_epochs=own.image_epochs,
        batch_size=scale.search_batch,
        channels=scale.search_channels,
        cells=scale.search_cells,
        architecture_learning_rate=scale.architecture_learning_rate,
    )


def firefly_cells_config(scale: Scale) -> firefly_cells.Config:
    """How Firefly searches cells at a scale, with Chapter 7's numbers."""
    own = continual_scale(scale)
    return firefly_cells.Config(
        epochs=own.cell_epochs,
        direction_epochs=own.cell_direction_epochs,
        channels=own.cell_node_channels,
        width=own.cell_channels,
        new_neurons=own.cell_candidates,
        batch_size=own.cell_batch,
    )


def firefly_cells_space(scale: Scale) -> Space:
    """What grows in Firefly's cells at a scale: always the paper's four operations, between the scale's nodes."""
    return replace(GROWING_SPACE, nodes=scale.nodes)


SEARCH_CONFIGS: dict[str, Callable[[Scale], Any]] = {
    "darts": search_config,
    "milenas": milenas_config,
    "stretchable": stretchable_config,
    "pc-darts": pc_darts_config,
    "entrannas": entrannas_config,
    "entrannas-dst": entrannas_dst_config,
    "pr-darts": pr_darts_config,
    "growing": growing_config,
    "firefly-cells": firefly_cells_config,
    "random-search": random_search_config,
    "regularized-evolution": regularized_evolution_config,
    "local-search": local_search_config,
}
"""How each method searches at a scale, by the method's name."""


SEARCH_SPACES: dict[str, Callable[[Scale], Space]] = {
    "stretchable": lambda scale: stretchable_scale(scale).stretchable_space,
    "entrannas": lambda scale: Space(scale.space.choices, scale.nodes),
    "entrannas-dst": lambda scale: Space(scale.space.choices, scale.nodes),
    "pr-darts": pr_darts_space,
    "growing": lambda scale: replace(scale.space, nodes=2),
    "firefly-cells": firefly_cells_space,
}
"""The spaces of methods that search another one than the scale's."""


def search_space(method: str, scale: Scale) -> Space:
    """The space that a method searches at a scale."""
    return SEARCH_SPACES[method](scale) if method in SEARCH_SPACES else scale.space


def fit_config(scale: Scale) -> FitConfig:
    """How derived networks are trained at a scale; evaluated once, at the end."""
    return FitConfig(
        epochs=scale.epochs,
        batch_size=scale.batch,
        drop_path=scale.drop_path,
        cutout=scale.cutout,
        evaluate_every=scale.epochs,
    )


def derived_network(
    genotype: Genotype, scale: Scale, data: ImageData, seed: int, parameters: int | None = None
) -> DerivedNetwork:
    """A freshly initialised derived network of a scale's size; the same seed gives the same weights.

    With ``parameters`` its channels are chosen to come nearest to so many of them, the auxiliary head aside.
    """
    channels = scale.channels
    if parameters is not None:
        channels = channels_for(parameters, genotype, scale.cells, data.classes, in_channels=data.channels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(seed, "derived network"))
        return DerivedNetwork(
            genotype,
            channels,
            scale.cells,
            data.classes,
            auxiliary=scale.auxiliary,
            in_channels=data.channels,
        )


def train_derived(
    workplace: Workplace,
    genotype: Genotype,
    name: str,
    *,
    cells: int | None = None,
    parameters: int | None = None,
) -> dict[str, Any]:
    """Trains a genotype from scratch and evaluates it on the test images, once.

    Networks of one seed begin with the same random numbers and see the same images in the same order. The returned
    ``parameters`` do not count the auxiliary head.

    Args:
        workplace: gives scale, data and seed.
        genotype: the cells.
        name: of the checkpoint.
        cells: number of cells, if not the scale's.
        parameters: how many parameters the network is to have; None keeps the scale's channels.
    """
    scale = replace(workplace.scale, cells=cells or workplace.scale.cells)
    network = derived_network(genotype, scale, workplace.data, workplace.seed, parameters)
    run = Fit(network, workplace.data, fit_config(scale), seed=fold_seed(workplace.seed, "fit"))
    workplace.drive(run, name)
    last = run.history[-1]
    return {
        "test_accuracy": last.validation_accuracy,
        "train_accuracy": last.train_accuracy,
        "parameters": count_parameters(p for n, p in network.named_parameters() if not n.startswith("auxiliary_head")),
        "genotype": genotype.to_json(),
    }
