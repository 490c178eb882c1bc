"""Driving a run: checkpoints at the right times, one Ctrl-C that saves, a bar that tells the truth."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from nasbook.errors import CheckpointError, TrainingDiverged
from nasbook.training import drive, read_checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "checkpoint.pt"


@pytest.fixture
def run(tiny, data):
    return tiny.make_run("fit", data)


def where(path):
    state = read_checkpoint(path)["state"]
    return state["epoch"], state["step"]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def record_saves(run):
    saves, save = [], run.save
    run.save = lambda path: (save(path), saves.append((run.epoch, run.step)))
    return saves


def test_a_checkpoint_after_every_epoch(run, path):
    saves, reports = record_saves(run), []
    drive(run, checkpoint=path, progress=False, on_report=reports.append)
    assert saves == [(1, 0), (2, 0), (3, 0)]
    assert reports == run.history
    assert run.finished
    assert run.on_step is None


def test_checkpoints_inside_an_epoch(run, path):
    saves = record_saves(run)
    drive(run, checkpoint=path, checkpoint_steps=2, progress=False)
    assert saves == [(0, 2), (1, 0), (1, 2), (2, 0), (2, 2), (3, 0)]


def test_without_a_checkpoint_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drive(run, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_report_comes_after_its_checkpoint(run, path):
    """What is told on a report may be lost never again."""
    seen = []
    drive(run, checkpoint=path, progress=False, on_report=lambda report: seen.append((report.epoch, where(path)[0])))
    assert seen == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("after", [1, 2, 3, 5, 9])
def test_an_interrupt_finishes_the_step_and_saves(after, tiny, data, path, undisturbed, same):
    run = tiny.make_run("fit", data)
    step, made = run.run_step, []

    def interrupted_step(index):
        made.append(index)
        if len(made) == after:
            interrupt()
        return step(index)

    run.run_step = interrupted_step
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        drive(run, checkpoint=path, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(made) == after
    assert where(path) == divmod(after, 3)
    other = tiny.make_run("fit", data)
    drive(other, checkpoint=path, resume=True, progress=False)
    same(tiny.ending(other), undisturbed("fit"))


def test_an_interrupt_while_a_checkpoint_is_written(run, path, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (interrupt(), fsync(handle))[1])
    with pytest.raises(KeyboardInterrupt):
        drive(run, checkpoint=path, progress=False)
    assert where(path) == (1, 0)


def test_the_second_interrupt_does_not_wait(run, path):
    made = []

    def impatient_step(index):
        made.append(index)
        interrupt()
        interrupt()
        raise AssertionError("not reached")

    run.run_step = impatient_step
    with pytest.raises(KeyboardInterrupt):
        drive(run, checkpoint=path, progress=False)
    assert made == [0]
    assert not path.exists()


def test_an_interrupted_run_without_checkpoint(run):
    run.run_step = lambda index, step=run.run_step: (interrupt(), step(index))[1]
    with pytest.raises(KeyboardInterrupt):
        drive(run, progress=False)
    assert run.step == 1


def test_another_thread_drives_without_touching_signals(run, path):
    handler, errors = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            drive(run, checkpoint=path, progress=False)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGINT) is handler
    assert where(path) == (3, 0)


def test_resume_without_a_checkpoint_begins(run, path):
    drive(run, checkpoint=path, resume=True, progress=False)
    assert run.finished


def test_resume_of_a_finished_run_does_nothing(tiny, data, run, path, undisturbed, same):
    drive(run, checkpoint=path, progress=False)
    other = tiny.make_run("fit", data)
    other.run_step = lambda index: pytest.fail("a step was made")
    drive(other, checkpoint=path, resume=True, progress=False)
    same(tiny.ending(other), undisturbed("fit"))


def test_a_damaged_checkpoint_is_left_as_it_is(run, path):
    path.parent.mkdir()
    path.write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        drive(run, checkpoint=path, resume=True, progress=False)
    assert path.read_bytes() == b"PK damaged"
    assert (run.epoch, run.step) == (0, 0)


def test_a_diverged_run_keeps_the_last_good_checkpoint(run, path):
    step = run.run_step

    def bad_step(index):
        loss, accuracy = step(index)
        return (loss * torch.nan if index == 7 else loss), accuracy

    run.run_step = bad_step
    with pytest.raises(TrainingDiverged, match="epoch 3, step 2 of 3"):
        drive(run, checkpoint=path, checkpoint_steps=1, progress=False)
    assert where(path) == (2, 1)
    assert run.on_step is None


def test_the_bar(tiny, data, path, capsys):
    run = tiny.make_run("first-order", data, batch_size=4)  # 12 steps an epoch
    run.run_step = lambda index, step=run.run_step: (interrupt() if index == 20 else None, step(index))[1]
    with pytest.raises(KeyboardInterrupt):
        drive(run, checkpoint=path, label="search")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "search" in shown.err and "/36 " in shown.err
    assert "epoch=1/3" in shown.err and "train loss=" in shown.err and "architecture loss=" in shown.err
    other = tiny.make_run("first-order", data, batch_size=4)
    drive(other, checkpoint=path, resume=True, label="again")
    assert "21/36" in capsys.readouterr().err  # it goes on from where the other stopped
