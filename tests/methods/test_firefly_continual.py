"""Firefly on task sequences: Algorithm 2's phases, nothing forgotten, when growing ends, resuming, and refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, handed_over, remembered, tiny_tasks

from nasbook.continual import MasterNetwork, free_entries
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.experiments.continual_checks import distinct_entries, learned_in_order
from nasbook.methods.firefly_continual import Config
from nasbook.seeding import generator
from nasbook.training import evaluate

TINY = Config(
    epochs=1, mask_epochs=1, direction_epochs=1, neurons=6, new_neurons=3, batch_size=18, mask_rate=4e-3, growths=1
)
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


def test_images_of_16_pixels(tmp_path):
    """They are in channels-last order, by which kernels choose their arithmetic: a task is served as it was trained,
    and goes on as it would have."""
    config, backbone, trained = replace(TINY, first_growths=1), replace(VGG, size=16), []
    images = torch.randn(6, 1, 16, 16, generator=generator(0, "images")).to(memory_format=torch.channels_last)

    def make():
        return config.begin(tiny_tasks(3, side=16), backbone, 2)

    whole = make()
    end = whole.end_task
    whole.end_task = lambda: (trained.append(whole.plain.eval()(images)), end())
    run_to_end(whole)
    for task, outputs in enumerate(trained):
        assert torch.equal(whole.fitted(whole.serving(task))(images), outputs)
    resumed = handed_over(make, tmp_path)
    assert differences(ending(resumed), ending(whole)) == []
    for task, outputs in enumerate(trained):
        assert torch.equal(resumed.fitted(resumed.serving(task))(images), outputs)


def test_a_checkpoint_of_another_task_order_is_refused(tmp_path):
    tasks = tiny_tasks(3)
    TINY.begin(tasks, BACKBONE).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="tasks"):
        TINY.begin(tasks[::-1], BACKBONE).load(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="neurons"):
        replace(TINY, neurons=7).begin(tasks, BACKBONE).load(tmp_path / "checkpoint.pt")


# --- what a phase may move --------------------------------------------------------------------------------------------


def test_what_each_phase_moves():
    """In a later task: the mask's phase the classifier alone, the directions' nothing, training what is the task's."""
    run = replace(TINY, growths=2, weight_decay=0.1, learning_rate=0.3).begin(tiny_tasks(2), VGG, 1)
    stop_after(run, len(run.loaders[0]))
    assert (run.task, run.phases()[run.phase].name) == (1, "mask")
    seen = []
    while not run.finished:
        phase, network, slots = run.phases()[run.phase].name, run.plain, run.slots
        free = free_entries(network, slots)
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        grown = len(run.growths)
        stop_after(run, len(run.loader))
        seen.append(phase)
        for name, parameter in network.named_parameters():
            moved = parameter.detach() != before[name]
            if phase == "directions":
                assert not moved.any()
            elif phase == "mask":
                assert moved.any() == name.startswith("classifier")
            else:
                assert not moved[~free[name]].any()
                assert moved.any() == free[name].any()
        assert len(run.growths) == grown + (phase == "directions")
    assert seen == ["mask", "directions", "training", "directions", "training"]


def test_slots_follow_the_network_through_two_growths():
    """Where neurons come from is where the memory has the same numbers."""
    run = replace(TINY, growths=2, neurons=9).begin(tiny_tasks(3), BACKBONE, 3)
    for report in run.epochs():
        if run.finished or run.task == 0 or report.accuracies:
            continue
        assert {name: len(slots) for name, slots in run.slots.items()} == run.plain.neurons()
        first = next(iter(run.slots))
        rows, memory = run.plain.get_parameter(f"{first}.weight").detach(), run.master.weights[f"{first}.weight"]
        slots = run.slots[first]
        assert torch.equal(rows[: len(slots.locked)], memory[list(slots.locked)])
        for row, source in zip(rows[len(slots.locked) :], slots.copies, strict=True):
            distances = (memory - row).norm(dim=1)
            if source >= 0 and report.phase == "directions" and len(run.growths) % 2:  # before it trains
                assert int(distances.argmin()) == source
                assert 0 < float(distances.min()) <= TINY.radius + 1e-6
    assert {report.task for report in run.history} == {0, 1, 2}


def test_a_first_task_that_is_solved_does_not_grow_and_a_later_one_may():
    """Each task decides for itself, after each phase but the directions'."""
    run = replace(TINY, first_growths=2, growths=2, validation_share=0.25).begin(tiny_tasks(2), BACKBONE)
    answers = iter([True, False, False, True])
    asked = []
    run._solves = lambda: asked.append((run.task, run.phase)) or next(answers)
    run_to_end(run)
    assert [(report.task, report.phase) for report in run.history] == [
        (0, "training"),
        (1, "mask"), (1, "directions"), (1, "training"), (1, "directions"), (1, "training"),
    ]  # fmt: skip
    assert asked == [(0, 0), (1, 0), (1, 2), (1, 4)]
    assert [growth.task for growth in run.growths] == [1, 1]
    assert run.finished


def test_held_out_images_are_not_trained_on():
    config = replace(TINY, validation_share=0.25)
    run = config.begin(tiny_tasks(2), BACKBONE, 6)
    for number, task in enumerate(tiny_tasks(2)):
        images = run._deciding[number].data.train_images
        trained = {image.numpy().tobytes() for image in run.tasks[number].data.train_images}
        held_out = {image.numpy().tobytes() for image in images}
        assert len(run.tasks[number].data.train_labels) + len(images) == len(task.data.train_labels)
        assert trained | held_out == {image.numpy().tobytes() for image in task.data.train_images}
        assert len(images) == round(0.25 * len(task.data.train_labels))
    # What is decided by is the accuracy on them.
    run.network.eval()
    data = run._deciding[0].data
    reached = evaluate(run.network, data.train_images, data.train_labels, data)[1]
    for sufficient, enough in ((reached, True), (reached + 1e-6, False)):
        other = replace(config, sufficient=max(min(sufficient, 1.0), 1e-9)).begin(tiny_tasks(2), BACKBONE, 6)
        assert other._solves() == enough or reached >= 1.0


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": 0}, "neurons must be above 0"),
        ({"growths": -1}, "must be 0 or more"),
        ({"sufficient": 0.0}, "sufficient must be above 0"),
        ({"validation_share": 1.0}, "validation_share must be at least 0 and below 1"),
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
