"""Individual networks, fine-tuning, and what EWC and LwF share with it: bits, sizes, resuming, wrong input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, handed_over, remembered, tiny_tasks

from nasbook.analysis import count_parameters
from nasbook.continual import (
    EWCConfig,
    FineTunedConfig,
    IndividualConfig,
    LwFConfig,
    SharedBodyConfig,
    take_classes,
)
from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.methods import LEARNERS
from nasbook.seeding import fold_seed, generator
from nasbook.training import Fit, FitConfig

SHORT = {"epochs": 2, "batch_size": 12, "learning_rate": 0.1}
CONFIGS = {
    "individual": IndividualConfig(**SHORT),
    "fine-tuned": FineTunedConfig(**SHORT),
    "ewc": EWCConfig(**SHORT, strength=10.0),
    "lwf": LwFConfig(**SHORT, warm_up_epochs=1),
}
SHARED = [name for name in CONFIGS if name != "individual"]
IMAGES = torch.randn(5, 1, 8, 8, generator=generator(0, "images"))


def same(got, expected):
    assert not differences(got, expected)


def fitted(task, number, config, backbone, network=None, seed=0):
    """The network of a task after ordinary training, with the streams that the learner uses."""
    if network is None:
        network = backbone.build(task.data.classes, fold_seed(seed, "learner", number))
    plain = FitConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        drop_path=0.0,
        cutout=0,
    )
    run_to_end(Fit(network, task.data, plain, seed=fold_seed(seed, "task", number)))
    return network


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_task_is_ordinary_training_to_the_bit(name):
    tasks = tiny_tasks(1)
    run = run_to_end(CONFIGS[name].begin(tasks, VGG))
    same(dict(run.network.state_dict()), dict(fitted(tasks[0], 0, CONFIGS[name], VGG).state_dict()))


def test_individual_networks_are_trained_alone():
    tasks = tiny_tasks()
    run = run_to_end(CONFIGS["individual"].begin(tasks, VGG))
    for number, task in enumerate(tasks):
        alone = fitted(task, number, CONFIGS["individual"], VGG)
        same(dict(run.serving(number).state_dict()), dict(alone.state_dict()))


def test_individual_networks_lose_nothing():
    rows = remembered(CONFIGS["individual"].begin(tiny_tasks(), VGG), IMAGES)
    for row in rows:
        for task, outputs in enumerate(row):
            assert torch.equal(outputs, rows[task][task])


def test_fine_tuning_is_ordinary_training_that_goes_on():
    """Task after task: the last body, a fresh classifier."""
    tasks = tiny_tasks()
    run = run_to_end(CONFIGS["fine-tuned"].begin(tasks, VGG))
    network = None
    for number, task in enumerate(tasks):
        fresh = VGG.build(task.data.classes, fold_seed(0, "learner", number))
        if network is not None:
            network.classifier = fresh.classifier
            fresh = network
        network = fitted(task, number, CONFIGS["fine-tuned"], VGG, fresh)
        head = {name: value for name, value in network.state_dict().items() if name.startswith("classifier")}
        same(dict(run.heads[number]), head)
    same(dict(run.network.state_dict()), dict(network.state_dict()))


@pytest.mark.parametrize("name", SHARED)
def test_all_tasks_are_served_by_the_last_body_and_their_own_classifier(name):
    run = CONFIGS[name].begin(tiny_tasks(), VGG)
    rows = remembered(run, IMAGES)
    states = [run.serving(task).state_dict() for task in range(3)]
    for entry, last in states[2].items():
        shared = not entry.startswith("classifier")
        assert all(torch.equal(state[entry], last) for state in states) == shared
        if shared:  # parameters and running statistics alike
            assert torch.equal(run.network.state_dict()[entry], last)
    # So every task moves the answers of all earlier ones.
    assert not any(torch.equal(rows[row][task], rows[row - 1][task]) for row in (1, 2) for task in range(row))
    assert not run.serving(0).training


def test_serving_is_no_part_of_the_learner():
    run = run_to_end(CONFIGS["fine-tuned"].begin(tiny_tasks(), VGG))
    before = ending(run)
    for parameter in run.serving(0).parameters():
        parameter.data.zero_()
    same(ending(run), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns(name):
    config = replace(CONFIGS[name], epochs=20)
    run = run_to_end(config.begin(tiny_tasks(train=60), BACKBONE))
    assert [len(row) for row in run.accuracies] == [1, 2, 3]
    learned = [row[-1] for row in run.accuracies]
    assert sum(learned) / 3 > 0.8


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backbone", [VGG, BACKBONE])
def test_parameters_with_tasks_of_several_sizes(name, backbone):
    data = load_images("digits").take(180, 60)
    tasks = [take_classes(data, classes) for classes in ([0, 5], [1, 2, 3, 4], [6, 7, 8])]
    run = run_to_end(CONFIGS[name].begin(tasks, backbone))
    wholes = [count_parameters(backbone.build(classes, 0)) for classes in (2, 4, 3)]
    heads = [count_parameters(backbone.build(classes, 0).classifier) for classes in (2, 4, 3)]
    body = wholes[0] - heads[0]
    if name == "individual":
        assert run.memory == [wholes[0], sum(wholes[:2]), sum(wholes)]
    else:
        assert run.memory == [body + heads[0], body + sum(heads[:2]), body + sum(heads)]
    assert [run.serving(task)(IMAGES).shape[1] for task in range(3)] == [2, 4, 3]


@pytest.mark.parametrize("name", CONFIGS)
def test_only_learned_tasks_count(name):
    run = CONFIGS[name].begin(tiny_tasks(), VGG)
    stop_after(run, 2 * 3 + 1)  # a step into the second task
    assert run.task == 1 and len(run.memory) == 1
    assert run.parameters() == run.memory[0]
    assert run.serving(0)(IMAGES).isfinite().all()


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_interrupted_at_every_step(name, tmp_path):
    def make():
        return CONFIGS[name].begin(tiny_tasks(), VGG)

    whole = run_to_end(make())
    parts = handed_over(make, tmp_path)
    same(ending(parts), ending(whole))
    for task in range(3):
        assert torch.equal(parts.serving(task)(IMAGES), whole.serving(task)(IMAGES))
    assert parts.parameters() == whole.parameters()


def test_another_learner_goes_on_with_no_checkpoint_of_this_one(tmp_path):
    run = CONFIGS["fine-tuned"].begin(tiny_tasks(), BACKBONE)
    stop_after(run, 2)
    run.save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        CONFIGS["ewc"].begin(tiny_tasks(), BACKBONE).load(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        replace(CONFIGS["fine-tuned"], later_rate=0.5).begin(tiny_tasks(), BACKBONE).load(tmp_path / "checkpoint.pt")


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_registered(name):
    assert LEARNERS[name] is type(CONFIGS[name])
    assert LEARNERS[name].method == name == CONFIGS[name].begin(tiny_tasks(), BACKBONE).header()["method"]
    assert LEARNERS[name]().extra_epochs == (10 if name == "lwf" else 0)


@pytest.mark.parametrize("name", SHARED)
def test_a_lower_rate_for_later_tasks(name):
    config = replace(CONFIGS[name], later_rate=0.25)
    run = run_to_end(config.begin(tiny_tasks(2), BACKBONE))
    first = [0.1, 0.05]  # a cosine over two epochs
    warm_up = [0.1] if name == "lwf" else []  # of the new classifier alone
    expected = [*first, *warm_up, *(0.25 * rate for rate in first)]
    assert [report.learning_rate for report in run.history] == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0, -1.0, 1.5, math.nan])
@pytest.mark.parametrize("name", SHARED)
def test_wrong_rates(name, rate):
    with pytest.raises(InvalidInput, match=f"^later_rate must be above 0 and at most 1, got {rate}.$"):
        replace(CONFIGS[name], later_rate=rate)


def test_defaults():
    assert all(issubclass(LEARNERS[name], SharedBodyConfig) for name in SHARED)
    assert (FineTunedConfig().later_rate, EWCConfig().later_rate, LwFConfig().later_rate) == (1.0, 1.0, 0.1)
    assert (EWCConfig().strength, LwFConfig().temperature, LwFConfig().weight) == (400.0, 2.0, 1.0)
