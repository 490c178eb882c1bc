"""Chapter 7's experiments at a scale of seconds, the paper's numbers in the presets, verdicts on records by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nasbook.data import load_images
from nasbook.experiments import (
    CONTINUAL_LEARNERS,
    CONTINUAL_SCALES,
    average_over_tasks,
    backbone_of,
    continual_config,
    continual_scale,
    get_experiment,
    get_scale,
    reproduce,
    tasks_of,
)
from nasbook.experiments.continual import THIN
from nasbook.experiments.image_cells import firefly_cells_config, firefly_cells_space
from nasbook.methods import LEARNERS, firefly_cells

CELL_LABELS = ("random cells", "DARTS (first order)", "DARTS (second order)")


@pytest.fixture(scope="module")
def tiny():
    return replace(
        continual_scale(get_scale("quick")),
        name="tiny",
        continual_images=60,
        seen_tasks=2,
        thin_share=0.03,
        full_share=0.05,
        task_epochs=1,
        task_batch=6,
        mask_epochs=1,
        direction_epochs=1,
        candidates=2,
        chosen=3,
        chosen_numbers=(2, 4),
    )


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_papers_numbers():
    """Appendix B.4 and Table 2: 20 and 10 tasks, 15 candidates a layer, 50 and 100 epochs, 256 neurons."""
    scale = continual_scale(get_scale("paper"))
    config = continual_config("firefly-continual", scale)
    assert (scale.tasks, scale.few_tasks, scale.seen_tasks, scale.continual_images) == (20, 10, None, None)
    assert (config.epochs, config.direction_epochs, config.new_neurons, config.neurons) == (100, 50, 15, 256)
    assert config.extra_epochs == 80
    assert scale.chosen_numbers == (32, 128, 196, 256, 320, 384, 448, 512)
    assert config == LEARNERS["firefly-continual"]()
    cells = firefly_cells_config(scale)
    assert cells == firefly_cells.Config()
    assert firefly_cells_space(scale).operations == ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


@pytest.mark.parametrize("name", CONTINUAL_SCALES)
def test_every_learner_can_be_configured(name):
    scale = continual_scale(get_scale(name))
    for method, changed in CONTINUAL_LEARNERS.values():
        config = continual_config(method, scale, **changed)
        assert config.epochs == scale.task_epochs
        assert config.method == method


def test_a_seed_is_a_division(tiny):
    images = load_images("digits").take(60)
    tasks = tasks_of(tiny, images, 0)
    assert len(tasks) == 2
    assert len(tasks_of(tiny, images, 0, few=True)) == tiny.few_tasks
    assert [task.classes for task in tasks] == [task.classes for task in tasks_of(tiny, images, 0)]
    divisions = {tuple(task.classes for task in tasks_of(tiny, images, seed)) for seed in range(5)}
    assert len(divisions) > 1
    thin, full = (backbone_of(tiny, images, thin=thin) for thin in (True, False))
    assert sum(thin.widths) < sum(full.widths)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_all_learners_in_one_run(tiny):
    measurement = reproduce("continual-tasks", tiny, 0)
    values = measurement.values
    assert measurement.provenance.data == "digits"
    assert values["images"] == [60, 517]
    assert set(CONTINUAL_LEARNERS) < set(values)
    for label in CONTINUAL_LEARNERS:
        found = values[label]
        assert [len(row) for row in found["accuracies"]] == [1, 2]
        assert len(found["memory"]) == 2
    for label in ("Firefly", "random growth", "mask only", "individual", "PackNet", "CPG"):
        rows = values[label]["accuracies"]
        assert rows[1][0] == rows[0][0]  # nothing is forgotten
    assert values["Firefly"]["master"]["parameters"] == values["Firefly"]["memory"]
    assert values["individual"]["memory"][1] == 2 * values["individual"]["memory"][0]
    assert values["individual, thin"]["memory"][0] == values["Firefly"]["memory"][0]
    assert values["progressive"] > values["individual"]["memory"][1]


def test_sizes_by_the_number_of_neurons(tiny):
    small = replace(tiny, few_tasks=5, seen_tasks=None)
    values = reproduce("continual-sizes", small, 1).values
    few, many = values["Firefly"]
    assert (few["chosen"], many["chosen"]) == (2, 4)
    assert few["memory"][-1] < many["memory"][-1]
    assert not set(THIN) - {"Firefly"} & set(values)
    assert len(few["accuracies"]) == 5


# --- verdicts ---------------------------------------------------------------------------------------------------------


def learner(accuracy, size):
    return {"accuracies": [[accuracy], [accuracy, accuracy]], "memory": [size // 2, size]}


@pytest.mark.parametrize(
    ("individual", "cpg", "size", "status"),
    [
        ((0.80, 0.815, 0.79), (0.82, 0.835, 0.81), 50, "holds"),
        ((0.80, 0.815, 0.79), (0.895, 0.93, 0.86), 50, "partly"),
        ((0.80, 0.815, 0.79), (0.95, 0.965, 0.94), 50, "does not hold at this scale"),
        ((0.80, 0.815, 0.79), (0.82, 0.835, 0.81), 500, "does not hold at this scale"),
    ],
)
def test_the_claim_on_tasks(record_of, individual, cpg, size, status):
    values = [
        {"Firefly": learner(own, size + n), "individual": learner(i, 400), "CPG": learner(c, 200 + n)}
        for n, (own, i, c) in enumerate(zip((0.90, 0.91, 0.89), individual, cpg, strict=True))
    ]
    record = record_of("continual-tasks", *values)
    assert np.allclose(average_over_tasks(record, "Firefly"), (0.90, 0.91, 0.89))
    assert get_experiment("continual-tasks").judges["firefly.continual"](record).status == status


@pytest.mark.parametrize(
    ("others", "status"),
    [
        ({"random cells": 0.80}, "holds"),
        ({"random cells": 0.899}, "partly"),
        ({"random cells": 0.80, "DARTS (first order)": 0.99}, "does not hold at this scale"),
        ({"random cells": 0.95}, "does not hold at this scale"),
    ],
)
def test_the_claim_on_cells(record_of, others, status):
    spread = (0.02, -0.01, -0.01)
    values = [
        {
            "Firefly": {"test_accuracy": 0.90},
            **{label: {"test_accuracy": others.get(label, 0.85) + spread[n]} for label in CELL_LABELS},
        }
        for n in range(3)
    ]
    record = record_of("firefly-cells", *values)
    assert get_experiment("firefly-cells").judges["firefly.cells"](record).status == status
