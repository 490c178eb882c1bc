"""PackNet: what is pruned, what is fixed, and what a later task can use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, handed_over, remembered, tiny_tasks

from nasbook.continual import PackNet, PackNetConfig
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.methods import LEARNERS
from nasbook.seeding import generator

CONFIG = PackNetConfig(epochs=2, retraining_epochs=1, pruned=0.6, batch_size=12, learning_rate=0.1)
IMAGES = torch.randn(5, 1, 8, 8, generator=generator(0, "images"))


@pytest.fixture(scope="module")
def finished():
    return run_to_end(CONFIG.begin(tiny_tasks(), VGG))


# --- earlier tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruned", [0.6, None])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_earlier_tasks_lose_nothing_to_the_bit(pruned, seed):
    run = replace(CONFIG, pruned=pruned).begin(tiny_tasks(4, seed=seed), VGG, seed)
    rows = remembered(run, IMAGES)
    assert [len(row) for row in rows] == [1, 2, 3, 4]
    for row in rows[1:]:
        for outputs, first in zip(row, (rows[task][task] for task in range(4)), strict=False):
            assert torch.equal(outputs, first)
            assert outputs.std() > 0
    for task in range(4):
        assert len({row[task] for row in run.accuracies[task:]}) == 1


def test_a_task_is_served_by_what_was_trained():
    run, trained = CONFIG.begin(tiny_tasks(2), VGG), []
    end_task = run.end_task

    def keep():
        trained.append({name: value.clone() for name, value in run.plain.state_dict().items()})
        end_task()

    run.end_task = keep
    run_to_end(run)
    for task, state in enumerate(trained):
        served = run.serving(task).state_dict()
        for name in state:
            if not name.endswith("num_batches_tracked"):
                assert served[name].equal(state[name])


def test_a_later_task_uses_all_that_earlier_ones_fixed(finished):
    first, last = finished.packed.network(0), finished.packed.network(2)
    for name, owner in finished.packed.owner.items():
        fixed, used = owner == 1, owner > 0
        assert fixed.any()
        assert last.get_parameter(name)[fixed].equal(first.get_parameter(name)[fixed])
        assert (last.get_parameter(name)[~used] == 0).all()
        assert (first.get_parameter(name)[~fixed] == 0).all()


# --- shares -----------------------------------------------------------------------------------------------------------


def test_each_layer_gives_back_its_share(finished):
    for owner in finished.packed.owner.values():
        free = owner.numel()
        for number in (1, 2, 3):
            given_back = round(0.6 * free)
            assert int((owner == number).sum()) == free - given_back
            free = given_back


def test_equal_parts():
    run = run_to_end(replace(CONFIG, pruned=None).begin(tiny_tasks(), VGG))
    for owner in run.packed.owner.values():
        parts = [int((owner == number).sum()) for number in range(4)]
        assert parts[0] == 0  # the last task keeps all that is left
        assert max(parts[1:]) - min(parts[1:]) <= 1
    assert run.packed.used() == sum(owner.numel() for owner in run.packed.owner.values())


def test_the_smallest_weights_are_pruned_and_stay_zero_while_the_rest_is_retrained():
    run = CONFIG.begin(tiny_tasks(1), VGG)
    stop_after(run, 6)
    name = "layers.5.convolution.weight"
    kept, weight = run.own[name].clone(), run.plain.get_parameter(name).detach().clone()
    assert run.phases()[run.phase].name == "retraining"
    assert int(kept.sum()) == kept.numel() - round(0.6 * kept.numel())
    assert (weight[~kept] == 0).all()
    stop_after(run, 3)
    after = run.plain.get_parameter(name).detach()
    assert (after[~kept] == 0).all()
    assert (after[kept] != weight[kept]).all()


def test_pruning_takes_the_least_of_each_layer():
    run = CONFIG.begin(tiny_tasks(1), BACKBONE)
    before = {name: run.plain.get_parameter(name).detach().abs().clone() for name in run.own}
    run.prune(0.25)
    run.prune(0.1)  # less than is free already: nothing
    for name, magnitudes in before.items():
        count = round(0.25 * magnitudes.numel())
        assert int((~run.own[name]).sum()) == count
        assert magnitudes[~run.own[name]].max() < magnitudes[run.own[name]].min()
        assert (run.plain.get_parameter(name)[~run.own[name]] == 0).all()


def test_memory_is_the_network_and_what_each_task_has_alone(finished):
    network = VGG.build(2, 0)
    shared = sum(owner.numel() for owner in finished.packed.owner.values())
    alone = sum(parameter.numel() for parameter in network.parameters()) - shared
    assert finished.memory == [shared + alone, shared + 2 * alone, shared + 3 * alone]
    assert alone == 8 * 2 * 4 + 2 * 4 + 2
    assert finished.packed.used() < shared
    assert finished.packed.mask_bits() == 2 * shared


# --- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns():
    """Tasks of two digits, and most weights given back."""
    tasks = tiny_tasks(3, train=160)
    config = replace(CONFIG, epochs=8, retraining_epochs=4, pruned=0.75)
    run = run_to_end(config.begin(tasks, replace(VGG, widths=(8,) * 8)))
    assert min(run.accuracies[-1]) > 0.8
    assert run.packed.used() < 0.75 * run.packed.parameters()


def test_training_is_plain_sgd_until_the_first_pruning():
    """The first task before it is pruned, against a loop that is written out."""
    config = replace(CONFIG, epochs=3, momentum=0.0, weight_decay=0.0, clip=1e9)
    run = config.begin(tiny_tasks(1), BACKBONE, 3)
    network = BACKBONE.build(2, run.task_seed()).train()
    stop_after(run, 6)
    losses = []
    for step in range(6):
        images, labels = run.loaders[0].batch(step)
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        losses.append(loss.item())
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.1 if step < 3 else -0.075)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(run.plain.get_parameter(name), parameter, rtol=1e-6, atol=1e-7)
    assert [report.train_loss for report in run.history] == pytest.approx(
        [sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-5
    )
    assert [report.learning_rate for report in run.history] == pytest.approx([0.1, 0.075])


def test_rates_fall_within_a_phase(finished):
    rates = [report.learning_rate for report in finished.history]
    assert rates == pytest.approx([0.1, 0.05, 0.01] * 3)
    assert [report.phase for report in finished.history] == ["training", "training", "retraining"] * 3
    assert finished.config.extra_epochs == 1


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [BACKBONE, VGG], ids=["perceptron", "vgg"])
def test_a_fresh_object_takes_over_after_every_step(backbone, tmp_path):
    def make():
        return CONFIG.begin(tiny_tasks(), backbone, 1)

    run = handed_over(make, tmp_path)
    expected = run_to_end(make())
    for part in ("packed", "accuracies", "memory", "history"):
        got, wanted = ({**ending(r), **ending(r)["method"]}[part] for r in (run, expected))
        assert not differences(got, wanted)


def test_images_of_16_pixels(tmp_path):
    """They are in channels-last order, by which kernels choose their arithmetic."""
    def make():
        return CONFIG.begin(tiny_tasks(2, side=16), replace(VGG, size=16), 1)

    run, expected = handed_over(make, tmp_path, 4), run_to_end(make())
    assert not differences(ending(run)["method"]["packed"], ending(expected)["method"]["packed"])
    assert run.accuracies == expected.accuracies


def test_a_run_can_go_back(tmp_path, finished):
    run = CONFIG.begin(tiny_tasks(), VGG)
    stop_after(run, 7)
    run.save(tmp_path / "checkpoint.pt")
    run_to_end(run)
    run.load(tmp_path / "checkpoint.pt")
    assert (run.task, run.phase, len(run.packed)) == (0, 1, 0)
    run_to_end(run)
    assert not differences(run.packed.state_dict(), finished.packed.state_dict())
    assert run.accuracies == finished.accuracies


def test_a_checkpoint_of_another_share_is_refused(tmp_path):
    CONFIG.begin(tiny_tasks(1), VGG).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="pruned"):
        replace(CONFIG, pruned=0.5).begin(tiny_tasks(1), VGG).load(tmp_path / "checkpoint.pt")


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pruned": 1.0}, "pruned must be at least 0 and below 1"),
        ({"pruned": -0.1}, "pruned must be at least 0 and below 1"),
        ({"pruned": float("nan")}, "pruned must be at least 0 and below 1"),
        ({"retraining_epochs": 0}, "retraining_epochs must be above 0"),
        ({"retraining_rate": 0.0}, "retraining_rate must be above 0"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(InvalidInput, match=message):
        replace(CONFIG, **wrong)


def test_it_is_registered():
    assert LEARNERS["packnet"] is PackNetConfig
    assert PackNetConfig.method == "packnet"
    assert isinstance(CONFIG.begin(tiny_tasks(1), VGG), PackNet)
