"""CPG: picking by a learned mask, growing while a goal is missed, compacting as long as it holds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences, run_to_end, stop_after
from tiny_tasks import BACKBONE, VGG, ending, handed_over, remembered, tiny_tasks

from nasbook.continual import CPG, CPGConfig, PickingNetwork, hold_out
from nasbook.continual.cpg import gradual_sparsity
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.methods import LEARNERS
from nasbook.seeding import generator

CONFIG = CPGConfig(
    epochs=2,
    batch_size=9,
    learning_rate=0.1,
    goal=0.5,
    validation_share=0.25,
    mask_rate=5e-3,
    sparsities=(0.25, 0.5, 0.75),
    pruning_epochs=2,
    pruning_share=0.5,
    pruning_every=2,
    retraining_epochs=1,
    retraining_mask_rate=5e-3,
)
"""Three steps an epoch; nine of a task's 36 images are held out."""
IMAGES = torch.randn(5, 1, 8, 8, generator=generator(0, "images"))


class Scripted(CPG):
    """Decides by accuracies that are given beforehand, in place of measured ones."""

    script: list[float]

    def _accuracy(self):
        return self.script.pop(0)


def scripted(accuracies, tasks=1, **changes):
    """A run whose decisions are known, and its phases task by task."""
    run = Scripted(tiny_tasks(tasks), replace(CONFIG, goal=0.9, epochs=1, pruning_epochs=1, **changes), VGG)
    run.script = list(accuracies)
    phases = [[] for _ in range(tasks)]
    for report in run.epochs():
        phases[report.task].append(report.phase)
    assert run.script == []
    return run, phases


@pytest.fixture(scope="module")
def finished():
    """Three tasks in a network that does not grow."""
    return run_to_end(replace(CONFIG, largest=1.0).begin(tiny_tasks(), VGG))


# --- picking ----------------------------------------------------------------------------------------------------------


def picking(seed=0):
    network = BACKBONE.build(3, seed).double()
    draw = generator(seed, "earlier")
    earlier = {
        name: torch.rand(parameter.shape, generator=draw) < 0.5
        for name, parameter in network.named_parameters()
        if name.endswith("linear.weight")
    }
    assert len(earlier) == 2
    return PickingNetwork(network, earlier), earlier


def test_at_first_all_weights_of_earlier_tasks_are_in():
    picked, earlier = picking()
    images = IMAGES.double()
    assert picked(images).equal(picked.network(images))
    assert not differences(picked.picked(), earlier)


def test_a_weight_below_the_threshold_is_out_and_own_weights_never_are():
    picked, earlier = picking()
    with torch.no_grad():
        for scores in picked.scores:
            scores.copy_(torch.randn(scores.shape, generator=generator(1, "scores")).double())
            scores.view(-1)[:2] = torch.tensor([0.005, 0.0051])
    images, scores = IMAGES.double(), dict(zip(earlier, picked.scores, strict=True))
    for name, mask in picked.picked().items():
        assert mask.equal(earlier[name] & (scores[name] > 0.005))
    outputs = picked(images)
    with torch.no_grad():
        for name, mask in picked.picked().items():
            picked.network.get_parameter(name).masked_fill_(earlier[name] & ~mask, 0)
    torch.testing.assert_close(outputs, picked.network(images), rtol=0, atol=0)


def test_the_gradient_passes_through_the_step():
    """Of a score: weight × gradient of the weight as it is used. Of a weight: its gradient where it is used."""
    picked, earlier = picking()
    labels = torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        for scores in picked.scores:
            scores.copy_(torch.rand(scores.shape, generator=generator(2, "scores")).double() * 0.01)
    F.cross_entropy(picked(IMAGES.double()), labels).backward()
    plain = BACKBONE.build(3, 0).double()
    plain.load_state_dict(picked.network.state_dict())
    on = {name: ~earlier[name] | mask for name, mask in picked.picked().items()}
    with torch.no_grad():
        for name, mask in on.items():
            plain.get_parameter(name).mul_(mask)
    F.cross_entropy(plain(IMAGES.double()), labels).backward()
    for (name, mask), scores in zip(on.items(), picked.scores, strict=True):
        used, weight = plain.get_parameter(name).grad, picked.network.get_parameter(name)
        torch.testing.assert_close(scores.grad, used * weight.detach() * earlier[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(weight.grad, used * mask, rtol=1e-12, atol=0)
        assert 0 < int((earlier[name] & ~mask).sum()) < int(earlier[name].sum())


def test_masks_are_learned_and_kept(finished):
    """Each later task leaves some weights out; of later tasks' weights it knows nothing."""
    for task, part in enumerate(finished.packed.tasks):
        earlier = {name: (owner > 0) & (owner <= task) for name, owner in finished.packed.owner.items()}
        picked = sum(int(mask.sum()) for mask in part.picked.values())
        assert all(not (mask & ~earlier[name]).any() for name, mask in part.picked.items())
        assert picked < sum(int(mask.sum()) for mask in earlier.values()) or task == 0
        network = finished.packed.network(task)
        for name, owner in finished.packed.owner.items():
            mine = owner == task + 1
            weight = finished.packed.weights[name]
            assert network.get_parameter(name).equal(torch.where(mine | part.picked[name], weight, 0))


def test_scores_move_in_their_part_of_the_epochs_only():
    run = replace(CONFIG, mask_share=0.5, epochs=4).begin(tiny_tasks(2), VGG)
    while run.task == 0:
        stop_after(run, 1)
    kept = [[scores.detach().clone() for scores in run.picking.scores]]
    for _ in range(11):  # of 12 steps; the last one ends the phase
        stop_after(run, 1)
        kept.append([scores.detach().clone() for scores in run.picking.scores])
    moved = [any(not a.equal(b) for a, b in zip(*pair, strict=True)) for pair in pairwise(kept)]
    assert moved == [True] * 6 + [False] * 5


# --- compacting -------------------------------------------------------------------------------------------------------


def test_the_schedule():
    assert [gradual_sparsity(0.0, 0.8, n / 4) for n in range(5)] == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8])
    assert gradual_sparsity(0.5, 0.6, 0.5) == pytest.approx(0.5875)


@settings(deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_the_schedule_never_turns(start, end, first, second):
    start, end = sorted((start, end))
    early, late = (gradual_sparsity(start, end, progress) for progress in sorted((first, second)))
    assert start - 1e-12 <= early <= late + 1e-12
    assert late <= end + 1e-12
    assert gradual_sparsity(start, end, 1) == end
    assert gradual_sparsity(start, end, 0) == pytest.approx(start, abs=1e-12)


def test_each_layer_is_pruned_along_the_schedule():
    """Three steps an epoch; the first two of every step of pruning prune, at the end of the second to its goal."""
    run = replace(CONFIG, goal=0.0, epochs=1, pruning_epochs=2, pruning_share=2 / 3, pruning_every=3).begin(
        tiny_tasks(1), VGG
    )
    stop_after(run, 3)
    assert run.phases()[run.phase].name == "pruning"
    seen = []
    for _ in range(18):
        stop_after(run, 1)
        seen.append({name: float((~own).float().mean()) for name, own in run.own.items()})
        assert all((run.plain.get_parameter(name)[~own] == 0).all() for name, own in run.own.items())
    wanted = []
    for start, end in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75)):
        within = end + (start - end) * 0.25**3
        wanted += [start, start, within, end, end, end]
    for now, expected in zip(seen, wanted, strict=True):
        for name, share in now.items():
            count = run.own[name].numel()
            assert share == pytest.approx(round(expected * count) / count)


def test_steps_go_on_while_the_goal_holds():
    run, phases = scripted([0.95, 0.93, 0.9, 0.92])
    assert phases == [["picking", "pruning", "pruning", "pruning"]]
    assert run.compactions[0].sparsity == 0.75
    assert (run.compactions[0].goal, run.compactions[0].trained, run.compactions[0].kept) == (0.9, 0.95, 0.92)
    assert run.compactions[0].expansions == 0


def test_a_step_that_misses_the_goal_is_taken_back():
    run, phases = scripted([0.95, 0.93, 0.89])
    assert phases == [["picking", "pruning", "pruning"]]
    assert (run.compactions[0].sparsity, run.compactions[0].kept) == (0.25, 0.93)
    for owner in run.packed.owner.values():
        assert int((owner == 0).sum()) == round(0.25 * owner.numel())
    shorter, _ = scripted([0.95, 0.93], sparsities=(0.25,))  # its weights are those of the step before
    assert not differences(run.packed.state_dict(), shorter.packed.state_dict())


def test_no_step_may_hold():
    run, phases = scripted([0.95, 0.2])
    assert phases == [["picking", "pruning"]]
    assert run.compactions[0].sparsity == 0
    assert all((owner == 1).all() for owner in run.packed.owner.values())


def test_a_loss_may_be_allowed():
    _, phases = scripted([0.85, 0.849], allowed_loss=0.05)
    assert phases == [["picking", "pruning"]]
    run, _ = scripted([0.9 - 0.3, 0.6, 0.6, 0.6], allowed_loss=0.3)  # equal but for rounding
    assert run.compactions[0].sparsity == 0.75


def test_later_tasks_pick_again_and_keep_what_gains():
    first = [0.95, 0.95, 0.95, 0.95]
    better, phases = scripted([*first, 0.95, 0.91, 0.1, 0.92], 2)
    assert phases[1] == ["picking", "pruning", "pruning", "retraining"]
    worse, _ = scripted([*first, 0.95, 0.91, 0.1, 0.91], 2)
    without, phases = scripted([*first, 0.95, 0.91, 0.1], 2, retraining_epochs=0)
    assert phases[1] == ["picking", "pruning", "pruning"]
    assert [run.compactions[1].kept for run in (better, worse, without)] == [0.92, 0.91, 0.91]
    assert not differences(worse.packed.state_dict(), without.packed.state_dict())
    assert differences(better.packed.state_dict(), without.packed.state_dict())


def test_a_task_without_free_weights_only_picks():
    """The first one holds its goal by no pruning at all; nothing is left for the second."""
    run, phases = scripted([0.95, 0.1, 0.95], 2)
    assert phases == [["picking", "pruning"], ["picking"]]
    assert all((owner == 1).all() for owner in run.packed.owner.values())
    assert run.packed.tasks[1].picked is not None


# --- growing ----------------------------------------------------------------------------------------------------------


def test_the_network_is_widened_while_the_goal_is_missed():
    run, phases = scripted([0.8, 0.85, 0.95, 0.1], largest=2.0)
    assert phases == [["picking", "picking", "picking", "pruning"]]
    assert run.packed.widths == (8,) * 8
    assert run.compactions[0].expansions == 2


def test_a_full_network_is_widened_for_the_next_task():
    run, phases = scripted([0.95, 0.1, 0.8, 0.95, 0.1, 0.0], 2)
    assert phases == [["picking", "pruning"], ["picking", "picking", "pruning", "retraining"]]
    assert [part.widths[0] for part in run.packed.tasks] == [4, 6]
    for name, owner in run.packed.owner.items():
        old = torch.zeros_like(owner, dtype=torch.bool)
        old[tuple(slice(0, size) for size in run.packed.network(0).get_parameter(name).shape)] = True
        assert owner.equal(torch.where(old, 1, 2).to(owner.dtype))


def test_widths_are_shares_of_the_first_ones():
    backbone = replace(VGG, widths=(1, 2, 3, 4, 5, 6, 7, 8))
    run = Scripted(tiny_tasks(1), replace(CONFIG, goal=0.9, epochs=1, pruning_epochs=1, largest=3.0), backbone)
    run.script, seen = [0.1] * 4 + [0.95, 0.1], [run.packed.widths]
    for _ in run.epochs():
        if run.packed.widths != seen[-1]:
            seen.append(run.packed.widths)
    assert seen[1:] == [tuple(round((1 + 0.5 * n) * width) for width in range(1, 9)) for n in range(1, 5)]


def test_the_widest_network_is_pruned_to_a_fair_share_when_it_misses_the_goal():
    """Three tasks: the first leaves two thirds, the second a half, the last keeps all."""
    run, phases = scripted([0.5, 0.5, 0.1, 0.1, 0.1, *[0.3, 0.1, 0.1, 0.0], *[0.2, 0.0]], 3)
    assert phases == [
        ["picking", "picking", "pruning", "pruning", "pruning"],
        ["picking", "pruning", "pruning", "retraining"],
        ["picking", "retraining"],
    ]
    assert [part.sparsity for part in run.compactions] == [0.75, 0.5, 0.0]
    assert [part.expansions for part in run.compactions] == [1, 1, 1]


@pytest.mark.parametrize(
    ("largest", "expansion", "times"), [(1.0, 0.5, 0), (1.5, 0.5, 1), (2.0, 0.5, 2), (1.9, 0.5, 1), (1.3, 0.1, 3)]
)
def test_how_often_a_network_can_grow(largest, expansion, times):
    assert replace(CONFIG, largest=largest, expansion=expansion).expansions == times


def test_the_goal_is_what_an_individual_network_reaches():
    config = replace(CONFIG, goal=None, epochs=1, pruning_epochs=1)
    run = Scripted(tiny_tasks(2), config, VGG)
    run.script = [0.7, 0.72, 0.71, 0.69, 0.8, 0.8, 0.79, 0.9]
    phases = [(report.task, report.phase) for report in run.epochs()]
    assert phases == [
        *[(0, name) for name in ("individual", "picking", "pruning", "pruning")],
        *[(1, name) for name in ("individual", "picking", "pruning", "retraining")],
    ]
    assert [part.goal for part in run.compactions] == [0.7, 0.8]
    assert [part.kept for part in run.compactions] == [0.71, 0.9]


def test_an_individual_network_is_plain_training():
    run = replace(CONFIG, goal=None, epochs=1, momentum=0.0, weight_decay=0.0, clip=1e9).begin(tiny_tasks(1), BACKBONE)
    network = BACKBONE.build(2, run.task_seed("individual")).train()
    stop_after(run, 2)
    for step in range(2):
        images, labels = run.loaders[0].batch(step)
        gradients = torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.1)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(run.plain.get_parameter(name), parameter, rtol=1e-6, atol=1e-7)


# --- earlier tasks, sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_earlier_tasks_lose_nothing_to_the_bit(seed):
    """The network grows within the second task and within the fourth."""
    config = replace(CONFIG, goal=0.9, largest=2.0, mask_rate=2e-3)
    run = Scripted(tiny_tasks(4, seed=seed), config, VGG, seed=seed)
    run.script = [*[0.95, 0.95, 0.1], *[0.1, 0.95, 0.95, 0.1, 1.0], *[0.95, 0.1, 0.1], *[0.1, 0.95, 0.95, 0.1, 1.0]]
    rows = remembered(run, IMAGES)
    for row in rows[1:]:
        for task, outputs in enumerate(row):
            assert torch.equal(outputs, rows[task][task])
            assert outputs.std() > 0
    for task in range(4):
        assert len({row[task] for row in run.accuracies[task:]}) == 1
    assert [part.widths[0] for part in run.packed.tasks] == [4, 6, 6, 8]
    grown = run.memory[1] - run.memory[0], run.memory[2] - run.memory[1]
    assert grown[0] > grown[1] > 0


def test_a_task_is_served_by_what_was_measured():
    """The network that is recorded classifies the held-out images as the last one that was measured did."""
    run = run_to_end(CONFIG.begin(tiny_tasks(3), VGG, 2))
    for task, part in enumerate(run.compactions):
        data = run.held_out[task].data
        images = data.train_images.float().div(255).sub(torch.tensor(data.mean)[:, None, None])
        images = images / torch.tensor(data.std)[:, None, None]
        with torch.no_grad():
            right = run.serving(task)(images).argmax(1) == data.train_labels
        assert float(right.float().mean()) == pytest.approx(part.kept, abs=1e-6)


def test_memory_is_the_network_and_what_each_task_has_alone(finished):
    shared = sum(owner.numel() for owner in finished.packed.owner.values())
    alone = 8 * 2 * 4 + 2 * 4 + 2  # scale and shift of eight batch norms, and a classifier
    assert finished.packed.widths == (4,) * 8
    assert finished.memory == [shared + n * alone for n in (1, 2, 3)]
    first, second = (sum(int((owner == n).sum()) for owner in finished.packed.owner.values()) for n in (1, 2))
    assert finished.packed.mask_bits() == 2 * shared + first + (first + second)


def test_it_learns():
    config = replace(
        CONFIG, epochs=8, goal=0.9, mask_rate=5e-4, sparsities=(0.5, 0.75), pruning_epochs=3, validation_share=0.2,
        retraining_epochs=2, retraining_mask_rate=1e-4, allowed_loss=0.05, batch_size=16,
    )
    run = run_to_end(config.begin(tiny_tasks(3, train=160), replace(VGG, widths=(8,) * 8)))
    assert min(run.accuracies[-1]) > 0.8
    assert run.packed.used() < 0.75 * run.packed.parameters()


# --- images that are held out -----------------------------------------------------------------------------------------


def test_held_out_images_are_no_training_images():
    task = tiny_tasks(1)[0]
    train, held_out = hold_out(task, 0.25, 3)
    assert (len(train.data.train_labels), len(held_out.data.train_labels)) == (27, 9)
    together = torch.cat([train.data.train_images, held_out.data.train_images]).flatten(1)
    expected = task.data.train_images.flatten(1)
    assert sorted(together.tolist()) == sorted(expected.tolist())
    assert train.data.test_images.equal(task.data.test_images)
    assert len({part.data.checksum for part in (task, train, held_out)}) == 3
    again, _ = hold_out(task, 0.25, 3)
    other, _ = hold_out(task, 0.25, 4)
    assert again.data.checksum == train.data.checksum != other.data.checksum
    run = CONFIG.begin(tiny_tasks(1), VGG)
    assert [len(run.tasks[0].data.train_labels), len(run.held_out[0].data.train_labels)] == [27, 9]
    with pytest.raises(InvalidInput, match="leave a part empty"):
        hold_out(task, 0.001, 0)


# --- going on ---------------------------------------------------------------------------------------------------------


def every_phase(side=8):
    """Measures a goal, grows, prunes, goes back and picks again."""
    config = replace(CONFIG, goal=None, epochs=1, pruning_epochs=1)
    run = Scripted(tiny_tasks(2, side=side), config, replace(VGG, size=side), seed=1)
    run.script = [0.7, 0.8, 0.75, 0.1, 0.7, 0.6, 0.8, 0.7, 0.2, 0.9]
    return run


def taken_over(run, script):
    """A fresh object does not know the accuracies that are used up."""
    run.script = script[len(run.history) :]
    return run


@pytest.mark.parametrize("side", [8, 16])
def test_a_fresh_object_takes_over_after_every_step(side, tmp_path):
    """Also where tensors are in channels-last order, as they are from 16 pixels on."""
    expected = run_to_end(every_phase(side))
    assert [report.phase for report in expected.history] == [
        *["individual", "picking", "pruning", "pruning"],
        *["individual", "picking", "picking", "pruning", "pruning", "retraining"],
    ]
    script = every_phase(side).script
    run = every_phase(side)
    while not run.finished:
        stop_after(run, 1 if side == 8 else 2)
        run.save(tmp_path / "checkpoint.pt")
        torch.rand(3)
        run = every_phase(side)
        run.load(tmp_path / "checkpoint.pt")
        run = taken_over(run, script)  # every phase is one epoch
    for part in ("history", "accuracies", "memory"):
        assert not differences(ending(run)[part], ending(expected)[part])
    for part in ("packed", "compactions", "expansions"):
        assert not differences(ending(run)["method"][part], ending(expected)["method"][part])


@pytest.mark.parametrize("goal", [None, 0.6])
def test_measured_accuracies_come_back_too(goal, tmp_path):
    config = replace(CONFIG, goal=goal)

    def make():
        return config.begin(tiny_tasks(), VGG, 5)

    run, expected = handed_over(make, tmp_path, 2), run_to_end(make())
    for part in ("history", "accuracies", "memory"):
        assert not differences(ending(run)[part], ending(expected)[part])
    assert not differences(ending(run)["method"]["packed"], ending(expected)["method"]["packed"])


def test_a_run_can_go_back_over_an_expansion(tmp_path):
    run, script = every_phase(), every_phase().script
    stop_after(run, 4)
    run.save(tmp_path / "checkpoint.pt")
    expected = run_to_end(run).packed.state_dict()
    assert run.packed.widths == (6,) * 8
    run.load(tmp_path / "checkpoint.pt")
    assert (run.task, run.phase, run.expansions, run.packed.widths) == (0, 1, 0, (4,) * 8)
    run_to_end(taken_over(run, script))
    assert not differences(run.packed.state_dict(), expected)


def test_a_checkpoint_of_another_goal_is_refused(tmp_path):
    CONFIG.begin(tiny_tasks(1), VGG).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="goal"):
        replace(CONFIG, goal=0.6).begin(tiny_tasks(1), VGG).load(tmp_path / "checkpoint.pt")


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"goal": 1.1}, "goal must be an accuracy of 0..1"),
        ({"goal": -0.1}, "goal must be an accuracy of 0..1"),
        ({"validation_share": 0.0}, "validation_share must be above 0 and below 1"),
        ({"validation_share": 1.0}, "validation_share must be above 0 and below 1"),
        ({"mask_share": 1.1}, "must be at most 1"),
        ({"pruning_share": 1.1}, "must be at most 1"),
        ({"sparsities": (0.5, 0.5)}, "must ascend between 0 and 1"),
        ({"sparsities": (0.5, 0.4)}, "must ascend between 0 and 1"),
        ({"sparsities": (0.5, 1.0)}, "must ascend between 0 and 1"),
        ({"sparsities": (0.0, 0.5)}, "must ascend between 0 and 1"),
        ({"sparsities": (float("nan"),)}, "must ascend between 0 and 1"),
        ({"allowed_loss": -0.1}, "must be 0 or more"),
        ({"retraining_epochs": -1}, "must be 0 or more"),
        ({"largest": 0.9}, "largest must be 1 or more"),
        ({"expansion": 0.0}, "expansion must be above 0"),
        ({"pruning_every": 0}, "pruning_every must be above 0"),
        ({"mask_rate": 0.0}, "mask_rate must be above 0"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(InvalidInput, match=message):
        replace(CONFIG, **wrong)


def test_the_defaults_are_those_of_the_code():
    config = CPGConfig()
    assert (config.extra_epochs, config.expansions) == (10 * 20 + 30, 1)
    assert replace(CONFIG, sparsities=()).extra_epochs == 1
    assert LEARNERS["cpg"] is CPGConfig
    most = config.begin(tiny_tasks(2, train=60), VGG).most_phases
    assert [sum(phase.epochs for phase in most(task)) for task in (0, 1)] == [100 + 200 + 200, 100 + 200 + 200 + 30]
