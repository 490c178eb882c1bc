"""A run that was stopped, killed or disturbed ends with the same bits as one that was not."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from running import draw, run_to_end, stop_after
from torch import nn

from nasbook.errors import InvalidInput, TrainingDiverged
from nasbook.seeding import fold_seed
from nasbook.training import Run, accuracy, cosine, drive

KINDS = ("first-order", "second-order", "finite-difference", "random-search", "fit")


class Line(Run):
    """Fits one number to draws of the global generators, so that their state shows in it."""

    measurements = ("train_loss", "train_accuracy")

    def __init__(self, epochs=3, steps=4, seed=0, losses=None):
        super().__init__(epochs, steps, seed, "cpu")
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.losses = losses or {}
        self.indices = []

    def begin_epoch(self):
        self.rate = 1 / (1 + self.epoch)

    def run_step(self, index):
        self.indices.append(index)
        draw = torch.rand(()) + float(np.random.rand()) + random.random()
        with torch.no_grad():
            self.network.weight += self.rate * draw
        loss = torch.tensor(self.losses.get(index, 1.0))
        if math.isinf(loss) and loss < 0:  # stands for a step that breaks the weights after a fine loss
            self.network.weight.data.fill_(math.inf)
            loss = torch.tensor(1.0)
        return loss, torch.zeros(())

    def report(self, means):
        return self.report_type(self.epoch + 1, **means, validation_loss=0.0, validation_accuracy=0.0,
                                learning_rate=self.rate, seconds=self.elapsed())

    def header(self):
        return {"method": "line"}

    def state_dict(self):
        return {**super().state_dict(), "network": self.network.state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])

    @property
    def value(self):
        return self.network.weight.item()


class Images(Line):
    """Ends its epochs with its 20 images. Every second step of an epoch the batch takes one image more.

    Batches of 4, 4, 5, 5 images, then of 6, 6, 7, then of 7, 7. A step's loss is its batch size.
    """

    measurements = ("train_loss", "train_accuracy", "images")

    def __init__(self, **changes):
        super().__init__(epochs=3, steps=5, **changes)
        self.batch, self.taken = 4, 0

    def begin_epoch(self):
        super().begin_epoch()
        if self.step == 0:
            self.taken = 0

    def epoch_is_over(self):
        return self.taken + self.batch > 20

    def run_step(self, index):
        loss, correct = super().run_step(index)
        size = self.batch
        self.taken += size
        self.batch += self.step % 2
        return loss * size, correct, torch.tensor(float(size))

    def step_weights(self):
        return self._measured[: self.step, 2]

    def report(self, means):
        means.pop("images")
        return super().report(means)

    def state_dict(self):
        return {**super().state_dict(), "batch": self.batch, "taken": self.taken}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.batch, self.taken = state["batch"], state["taken"]


def test_a_watch_is_kept_and_changes_nothing():
    def watch(run):
        time.sleep(0.2)
        return {"drawn": float(torch.rand(()) + random.random()), "weight": run.network.weight.item()}

    plain, watched, stopped, resumed = (Line() for _ in range(4))
    for run in (watched, stopped, resumed):
        run.watch = watch
    assert [report.measured for report in plain.epochs()] == [{}] * 3
    seen = list(watched.epochs())
    assert torch.equal(plain.network.weight, watched.network.weight)
    assert sum(report.seconds for report in seen) < 0.2
    assert seen[-1].measured["weight"] == watched.network.weight.item()
    next(stopped.epochs())
    resumed.load_state_dict(stopped.state_dict())
    list(resumed.epochs())
    assert [report.measured for report in resumed.history] == [report.measured for report in seen]


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["first-order", "second-order", "random-search", "fit"])
def test_killed_runs_resume_to_the_same_bits(kind, tiny, same, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, tiny.__file__, kind, tmp_path]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills = tiny.kill_points(kind)
    undisturbed = torch.load(tmp_path / "undisturbed.ending", weights_only=True)
    assert undisturbed["epoch" if kind != "random-search" else "fit"]
    for name in kills:
        same(torch.load(tmp_path / f"{name}.ending", weights_only=True), undisturbed)
    left = [path.parent.name for path in tmp_path.rglob("*.partial")]
    assert set(left) == {name for name in kills if "written" in name}  # a half-written file never has the real name


# --- stopped ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_stopped_saved_and_loaded(kind, steps, tiny, data, undisturbed, same, tmp_path):
    run = tiny.make_run(kind, data)
    stop_after(run, steps)
    assert (run.epoch, run.step) == divmod(steps, 3)
    draw()
    run.save(tmp_path / "checkpoint.pt")
    other = tiny.make_run(kind, data)
    other.load(tmp_path / "checkpoint.pt")
    draw()
    same(tiny.ending(run_to_end(other)), undisturbed(kind))


@pytest.mark.parametrize("kind", ["first-order", "random-search", "fit"])
def test_stopped_at_every_step(kind, tiny, data, undisturbed, same):
    run = tiny.make_run(kind, data)
    for _ in range(run.total_epochs * run.steps_per_epoch):
        stop_after(run, 1)
        draw()
    assert run.finished
    same(tiny.ending(run), undisturbed(kind))


def test_a_loaded_run_can_go_back(tmp_path, data, tiny, undisturbed, same):
    run = tiny.make_run("fit", data)
    stop_after(run, 4)
    run.save(tmp_path / "checkpoint.pt")
    run_to_end(run)
    run.load(tmp_path / "checkpoint.pt")
    assert (run.epoch, run.step, len(run.history)) == (1, 1, 1)
    same(tiny.ending(run_to_end(run)), undisturbed("fit"))


def test_a_stop_before_the_first_step_counts():
    run = Line()
    run.stop()
    run_to_end(run)
    assert (run.epoch, run.step) == (0, 1)
    run_to_end(run)  # and it counts once
    assert run.finished
    assert run.value == run_to_end(Line()).value


def test_a_stop_between_two_samples_counts(tiny, data):
    search = tiny.make_run("random-search", data)
    start, search._start = search._start, lambda sample: (search.stop(), start(sample))[1]
    run_to_end(search)
    assert (search.epoch, search.step) == (2, 0)  # the first sample's epochs, none of the second's
    search._start = start
    assert run_to_end(search).finished


# --- epochs of any length ---------------------------------------------------------------------------------------------


def test_an_epoch_ends_when_it_is_over():
    run = run_to_end(Images())
    assert run.indices == [0, 1, 2, 3, 5, 6, 7, 10, 11]  # each epoch has five numbers, used or not
    assert [report.epoch for report in run.history] == [1, 2, 3]
    assert list(run.epochs()) == []


@pytest.mark.parametrize("steps", range(1, 10))
def test_an_epoch_of_any_length_stopped_saved_and_loaded(steps, tiny, same, tmp_path):
    run = Images()
    stop_after(run, steps)
    ends = {4: (1, 0), 7: (2, 0), 9: (3, 0)}  # the last step of an epoch ends it, stopped or not
    inside = (0, steps) if steps < 4 else (1, steps - 4) if steps < 7 else (2, steps - 7)
    assert (run.epoch, run.step) == ends.get(steps, inside)
    draw()
    run.save(tmp_path / "checkpoint.pt")
    other = Images()
    other.load(tmp_path / "checkpoint.pt")
    draw()
    same(tiny.ending(run_to_end(other)), tiny.ending(run_to_end(Images())))
    assert len(other.indices) == 9 - steps


def test_epochs_of_any_length_stopped_at_every_step(tiny, same):
    run = Images()
    for _ in range(9):
        assert not run.finished
        stop_after(run, 1)
        draw()
    assert run.finished
    same(tiny.ending(run), tiny.ending(run_to_end(Images())))


def test_a_checkpoint_after_every_step_of_epochs_of_any_length(tiny, same, tmp_path):
    """Those of an epoch's last step too: what goes on from there reports, and makes no step more."""
    run, places = Images(), []
    save = run.save
    run.save = lambda _: (places.append((run.epoch, run.step)), save(tmp_path / "{}-{}".format(*places[-1])))
    drive(run, checkpoint=tmp_path / "checkpoint.pt", checkpoint_steps=1, progress=False)
    inside = [*((0, step) for step in range(1, 5)), *((1, step) for step in range(1, 4)), (2, 1), (2, 2)]
    assert sorted(places) == sorted([*inside, (1, 0), (2, 0), (3, 0)])
    for epoch, step in places:
        other = Images()
        other.load(tmp_path / f"{epoch}-{step}")
        draw()
        same(tiny.ending(run_to_end(other)), tiny.ending(run))
        assert len(other.indices) == 9 - (0, 4, 7, 9)[epoch] - step


def test_means_weigh_the_steps():
    run = Images()
    stop_after(run, 3)
    assert run.means()["train_loss"] == (4 * 4 + 4 * 4 + 5 * 5) / 13  # every image alike, so far
    run_to_end(run)
    losses = [report.train_loss for report in run.history]
    assert losses == [(16 + 16 + 25 + 25) / 18, (36 + 36 + 49) / 19, 7.0]
    assert all(math.isnan(value) for value in Images().means().values())


def test_means_weigh_all_steps_alike_by_default():
    run = run_to_end(Line(epochs=1, losses={0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0}))
    assert run.history[0].train_loss == 3.75


def test_divergence_names_the_most_steps_of_an_epoch_of_any_length():
    with pytest.raises(TrainingDiverged, match=r"train loss became nan at epoch 2, step 2 of at most 5\."):
        run_to_end(Images(losses={6: math.nan}))


def test_the_bar_of_epochs_of_any_length_ends_where_the_run_does(tmp_path, capsys):
    drive(Images())
    shown = capsys.readouterr().err
    assert "0/15 " in shown and " 9/9 " in shown.split("\r")[-1]
    run = Images()
    stop_after(run, 5)
    run.save(tmp_path / "checkpoint.pt")
    drive(Images(), checkpoint=tmp_path / "checkpoint.pt", resume=True)
    shown = capsys.readouterr().err
    assert " 6/15 " in shown and " 10/10 " in shown.split("\r")[-1]  # the first epoch counts as five, as far as known


# --- disturbed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["second-order", "random-search", "fit"])
def test_draws_between_epochs_change_nothing(kind, tiny, data, undisturbed, same):
    run = tiny.make_run(kind, data)
    for _ in run.epochs():
        draw()
    same(tiny.ending(run), undisturbed(kind))


def test_what_was_drawn_before_changes_nothing(tiny, data, undisturbed, same):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    run = tiny.make_run("first-order", data)
    assert torch.equal(torch.get_rng_state(), before)  # and building it takes nothing from the caller's stream
    same(tiny.ending(run_to_end(run)), undisturbed("first-order"))


def test_interleaved_runs_change_nothing(tiny, data, undisturbed, same):
    kinds = ("first-order", "random-search", "fit")
    runs = [tiny.make_run(kind, data) for kind in kinds]
    for _ in itertools.zip_longest(*(run.epochs() for run in runs)):
        pass
    for kind, run in zip(kinds, runs, strict=True):
        same(tiny.ending(run), undisturbed(kind))


def test_runs_interleaved_step_by_step_change_nothing(tiny, data, undisturbed, same):
    kinds = ("fit", "first-order")
    runs = [tiny.make_run(kind, data) for kind in kinds]
    while not all(run.finished for run in runs):
        for run in runs:
            stop_after(run, 1)
    for kind, run in zip(kinds, runs, strict=True):
        same(tiny.ending(run), undisturbed(kind))


@pytest.mark.parametrize("kind", ["first-order", "random-search", "fit"])
def test_another_seed_gives_another_run(kind, tiny, data, undisturbed):
    history = tiny.ending(run_to_end(tiny.make_run(kind, data, seed=1)))["history"]
    assert [r["train_loss"] for r in history] != [r["train_loss"] for r in undisturbed(kind)["history"]]


def test_drop_path_is_drawn_in_a_fit(tiny, data, undisturbed):
    """Else the tests above would not notice a lost generator state."""
    without = run_to_end(tiny.make_run("fit", data, drop_path=0.0)).history
    assert without[-1].train_loss != undisturbed("fit")["history"][-1]["train_loss"]


# --- the loop itself --------------------------------------------------------------------------------------------------


def test_epochs_and_steps_in_order():
    run = Line(epochs=2, steps=3)
    reports = list(run.epochs())
    assert run.indices == list(range(6))
    assert [report.epoch for report in reports] == [1, 2]
    assert reports == run.history
    assert run.finished
    assert list(run.epochs()) == []


def test_each_epoch_has_a_stream_of_its_own():
    torch.manual_seed(fold_seed(0, "epoch", 0))
    first = torch.rand(()).item()
    run = Line(epochs=1, steps=1)
    seen = []
    run.run_step = lambda index: (seen.append(torch.rand(()).item()), (torch.ones(()), torch.ones(())))[1]
    run_to_end(run)
    assert seen == [first]


def test_means_of_no_step_are_nan():
    assert all(math.isnan(value) for value in Line().means().values())


@pytest.mark.parametrize(("epochs", "steps", "name"), [(0, 1, "epochs"), (-1, 1, "epochs"), (1, 0, "steps")])
def test_sizes_have_to_be_positive(epochs, steps, name):
    with pytest.raises(InvalidInput, match=f"^{name} must be above 0, got {min(epochs, steps)}"):
        Line(epochs, steps)


def test_a_report_survives_its_state():
    report = run_to_end(Line(epochs=1)).history[0]
    assert type(report).from_state(report.to_state()) == report


def test_cosine():
    assert cosine(0.1, 0.02, 0.0) == 0.1
    assert cosine(0.1, 0.02, 1.0) == 0.02
    assert cosine(0.1, 0.02, 0.5) == pytest.approx(0.06)
    assert cosine(0.1, 0.0, 1 / 3) == pytest.approx(0.075)


def test_accuracy():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_step(loss):
    with pytest.raises(TrainingDiverged, match=rf"train loss became {loss} at epoch 2, step 3 of 4\."):
        run_to_end(Line(losses={6: loss, 7: loss}))


def test_the_last_good_checkpoint_is_kept(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingDiverged, match="epoch 3, step 2"):
        drive(Line(losses={9: math.nan}), checkpoint=path, checkpoint_steps=1, progress=False)
    run = Line()
    run.load(path)
    assert (run.epoch, run.step) == (2, 1)  # the step before
    assert run_to_end(run).value == run_to_end(Line()).value


@pytest.mark.parametrize("last", [7, 6])
def test_weights_that_the_last_step_broke_are_not_saved(last, tmp_path):
    """The loss is that of the weights before the step: fine, while the weights are not."""
    path = tmp_path / "checkpoint.pt"
    message = r"A parameter or a statistic became infinite or NaN at epoch 2, step 4 of 4\."
    with pytest.raises(TrainingDiverged, match=message):
        drive(Line(losses={last: -math.inf}), checkpoint=path, progress=False)
    run = Line()
    run.load(path)
    assert (run.epoch, run.step) == (1, 0)
    assert math.isfinite(run.value)


def test_a_stop_does_not_hide_divergence():
    run = Line(losses={1: math.nan})
    with pytest.raises(TrainingDiverged, match="epoch 1, step 2"):
        stop_after(run, 3)


def test_a_real_search_diverges(tiny, data, tmp_path):
    search = tiny.make_run("first-order", data, learning_rate=1e30, clip=1e30, final_learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"at epoch 1, step \d of 3"):
        drive(search, checkpoint=tmp_path / "checkpoint.pt", progress=False)
    assert not (tmp_path / "checkpoint.pt").exists()
