"""Firefly on task sequences: Algorithm 2's phases, nothing forgotten, when growing ends, resuming, and refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from running import differences, run_to_end
from tiny_tasks import BACKBONE, VGG, ending, handed_over, remembered, tiny_tasks

from nasbook.continual import MasterNetwork
from nasbook.errors import InvalidInput
from nasbook.experiments.continual_checks import SHORT, distinct_entries, learned_in_order
from nasbook.methods.firefly_continual import Config

TINY = replace(SHORT, batch_size=18, growths=1)
PIXELS = torch.linspace(-2, 2, 6 * 64).view(6, 1, 8, 8)


def learned(config=TINY, backbone=BACKBONE, tasks=2, seed=0):
    return run_to_end(config.begin(tiny_tasks(tasks), backbone, seed))


# --- Algorithm 2 ------------------------------------------------------------------------------------------------------


def test_phases_of_a_task():
    run = replace(TINY, growths=2, first_growths=1).begin(tiny_tasks(2), BACKBONE)
    reports = list(run.epochs())
    assert [(report.task, report.phase) for report in reports] == [
        (0, "training"), (0, "directions"), (0, "training"),
        (1, "mask"), (1, "directions"), (1, "training"), (1, "directions"), (1, "training"),
    ]  # fmt: skip
    assert run.epoch == run.total_epochs == len(reports)
    assert [len(report.accuracies) for report in reports if report.accuracies] == [1, 2]


def test_only_the_first_task_splits_and_later_ones_copy():
    run = learned(replace(TINY, first_growths=1, neurons=12))
    first, second = run.growths
    assert sum(first.unlocked.values()) == 0
    assert sum(second.splits.values()) == 0
    copies = sum(int((sources >= 0).sum()) for sources in run.master.copy_of.values())
    assert copies == sum(second.unlocked.values()) > 0
    assert run.master.composition(1)[1:] == (copies, sum(second.new.values()))


def test_a_growth_adds_as_many_neurons_as_asked_for():
    run = learned(replace(TINY, neurons=5))
    (growth,) = run.growths
    assert sum(growth.unlocked.values()) + sum(growth.new.values()) == 5
    assert sum(run.master.neurons().values()) == 18 + 5


@pytest.mark.parametrize("backbone", [BACKBONE, VGG], ids=lambda backbone: backbone.name)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_no_earlier_task_changes_by_a_bit(order, backbone):
    tasks = tiny_tasks(3)
    rows = remembered(TINY.begin([tasks[place] for place in order], backbone, 1), PIXELS)
    for later in rows:
        for task, outputs in enumerate(later):
            assert torch.equal(outputs, rows[task][task])


def test_what_a_task_was_trained_to_is_what_is_kept():
    """The recorded network is the trained one, statistics included: not only unchanged, but right."""
    run = TINY.begin(tiny_tasks(2), VGG, 0)
    trained = []
    end = run.end_task
    run.end_task = lambda: (trained.append(run.plain.eval()(PIXELS)), end())
    run_to_end(run)
    for task, outputs in enumerate(trained):
        assert torch.equal(run.master.network(task)(PIXELS), outputs)


def test_the_master_network_counts_each_shared_number_once(tmp_path):
    master, outputs = learned_in_order(tiny_tasks(3), VGG, PIXELS, seed=3)
    assert master.parameters() == distinct_entries(master)
    alone = sum(
        sum(parameter.numel() for parameter in master.network(task).parameters()) for task in range(len(master))
    )
    assert master.parameters() < alone
    again = MasterNetwork.load(master.save(tmp_path / "master.safetensors"))
    for task, before in enumerate(outputs):
        assert torch.equal(again.network(task)(PIXELS), before)


def test_locked_weights_do_not_move_while_a_task_trains():
    run = replace(TINY, weight_decay=0.1, learning_rate=0.5, epochs=3).begin(tiny_tasks(2), BACKBONE, 0)
    kept = {}
    for report in run.epochs():
        if report.task == 0:
            kept = {name: value.clone() for name, value in run.master.weights.items()}
    for name, value in kept.items():
        region = tuple(slice(0, size) for size in value.shape)
        assert torch.equal(run.master.weights[name][region], value)


# --- when growing ends ------------------------------------------------------------------------------------------------


def test_a_task_that_is_solved_does_not_grow():
    config = replace(TINY, growths=3, validation_share=0.25, sufficient=1e-9)
    run = learned(config)
    assert [report.phase for report in run.history] == ["training", "mask"]
    assert run.growths == []
    assert run.finished


def test_a_task_that_is_not_solved_grows_as_often_as_it_may():
    config = replace(TINY, growths=2, validation_share=0.25, sufficient=1.0, learning_rate=1e-6)
    assert len(learned(config).growths) == 2


def test_mask_only():
    run = learned(replace(TINY, growths=0))
    assert run.master.neurons() == dict(zip(run.master.widths, (10, 8), strict=True))
    assert run.master.composition(1)[1:] == (0, 0)


def test_a_random_choice_takes_as_many_of_the_same_candidates():
    firefly, chance = (learned(replace(TINY, selection=selection)) for selection in ("firefly", "random"))
    counts = [sum(run.growths[0].unlocked.values()) + sum(run.growths[0].new.values()) for run in (firefly, chance)]
    assert counts == [TINY.neurons, TINY.neurons]
    assert vars(firefly.growths[0]) != vars(chance.growths[0])


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"first_growths": 1, "validation_share": 0.25}], ids=["plain", "deciding"])
@pytest.mark.parametrize("backbone", [BACKBONE, VGG], ids=lambda backbone: backbone.name)
def test_killed_after_any_step_and_resumed_it_ends_in_the_same_bits(backbone, changes, tmp_path):
    config = replace(TINY, **changes)

    def make():
        return config.begin(tiny_tasks(2), backbone, 5)

    whole = run_to_end(make())
    resumed = handed_over(make, tmp_path)
    assert differences(ending(resumed), ending(whole)) == []
    assert differences(resumed.master.state_dict(), whole.master.state_dict()) == []


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": 0}, "neurons must be above 0"),
        ({"growths": -1}, "must be 0 or more"),
        ({"sufficient": 0.0}, "sufficient must be above 0"),
        ({"validation_share": 1.0}, "validation_share must be at least 0 and below 1"),
        ({"selection": "rnadom"}, "rnadom"),
        ({"radius": 0.0}, "radius"),
        ({"mask_epochs": 0}, "mask_epochs"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_wrong_numbers(changes, message):
    with pytest.raises(InvalidInput, match=message):
        Config(**changes)


def test_extra_epochs_of_the_paper():
    assert Config().extra_epochs == 80  # Table 2
