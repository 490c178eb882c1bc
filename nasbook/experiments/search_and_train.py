"""One method at a scale: it searches, its cells are trained from scratch, and the network is tested once.

The same for every method that has numbers at the scales, so that a sweep over methods is one over experiments.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from nasbook.experiments.image_cells import SEARCH_CONFIGS, search_space, train_derived
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.methods import get_method

__all__ = ["METHOD_PREFIX", "search_and_train"]

CHAPTER = "08-ground-truth-and-fair-comparison"

METHOD_PREFIX = "search-and-train-"
"""What the names of these experiments begin with; a method's name follows."""


def search_and_train(workplace: Workplace, method: str) -> dict[str, Any]:
    """Searches by a method and trains what it found, both with the scale's numbers.

    The network has the scale's channels and cells, the same for every method, with two exceptions. A method that says
    that its cells are for one depth has its own number of cells. Cells that differ from section to section need a
    network with at least one of each.

    ``validation_accuracy`` is what the search saw last, of its supernet or of its best sample; ``test_accuracy`` is
    the trained network's. ``search_seconds`` is wall time, checkpoints and pauses left out.

    Raises:
        InvalidInput: the method has no numbers at this scale.
        TrainingDiverged: a loss is not finite.
    """
    scale, data = workplace.scale, workplace.data
    module = get_method(method)
    config = SEARCH_CONFIGS[method](scale)
    search = module.Search(config, data, search_space(method, scale), workplace.seed)
    workplace.drive(search, "search")
    result = search.result()
    deep = getattr(module.Search, "evaluates_as_deep", False)
    cells = config.cells if deep else max(scale.cells, len(result.genotype.kinds))
    return {
        "validation_accuracy": result.validation_accuracy,
        "search_epochs": len(result.history),
        "search_seconds": round(result.seconds, 1),
        "cells": cells,
        **train_derived(workplace, result.genotype, "train", cells=cells),
    }


for _method in SEARCH_CONFIGS:
    register(
        Experiment(
            METHOD_PREFIX + _method,
            f"{_method} searches, and its cells are trained and tested",
            CHAPTER,
            partial(search_and_train, method=_method),
        )
    )
