"""The command line's ``sweep``: what it runs, what its table says, and what it refuses."""

from __future__ import annotations

import io
import json

import pytest

from nasbook.cli import main
from nasbook.cli.options import Usage
from nasbook.cli.sweep import Table, read_seeds
from nasbook.errors import TrainingDiverged
from nasbook.experiments import Experiment, Progress, Trial, TrialStatus, get_scale, registry, sweeps_on_ray

HEADER = "experiment  scale  seed  state  part  epoch  accuracy  seconds  attempts"


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """An experiment of no time, which raises what stands under a seed; a folder to run in; and Ray looks missing."""
    errors: dict[int, BaseException] = {}

    def run(workplace):
        """One number."""
        if workplace.seed in errors:
            raise errors[workplace.seed]
        return {"test_accuracy": 0.5 + workplace.seed / 100}

    monkeypatch.setattr(registry, "_EXPERIMENTS", {"toy": Experiment("toy", "A toy", "00", run)})
    monkeypatch.setattr(sweeps_on_ray, "ray_is_installed", lambda: False)
    monkeypatch.setattr("nasbook.experiments.ray_is_installed", lambda: False)
    monkeypatch.chdir(tmp_path)
    return errors


TOY = ["sweep", "--experiments", "toy"]


def test_without_ray_one_after_another(toys, capsys, tmp_path):
    assert main([*TOY, "--seeds", "0-1", "--out", "there"]) == 0
    out, err = capsys.readouterr()
    said, header, *lines = err.splitlines()
    assert said == (
        'nasbook: Ray is not installed; get it with: pip install "nasbook[sweep]". '
        "Running one trial after another instead."
    )
    assert header.split() == HEADER.split()
    assert [line.split() for line in lines] == [
        ["toy", "quick", "0", "running", "0", "1"],
        ["toy", "quick", "0", "done", "50.00%", "0", "1"],
        ["toy", "quick", "1", "running", "0", "1"],
        ["toy", "quick", "1", "done", "51.00%", "0", "1"],
    ]
    assert out.splitlines()[1:] == [
        "toy         quick     0  done                  50.00%        0         1",
        "toy         quick     1  done                  51.00%        0         1",
        "records: there/records (nasbook records --folder there/records)",
    ]
    assert json.loads((tmp_path / "there" / "sweep.json").read_text())["failed"] == []
    assert main(["records", "--folder", "there/records"]) == 0
    assert "toy at quick: seeds [0, 1]" in capsys.readouterr().out


def test_quiet_and_in_turn_say_nothing_else(toys, capsys):
    assert main([*TOY, "--engine", "in-turn", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[0].split() == HEADER.split()
    assert len(out.splitlines()) == 5  # seeds 0 to 2, and the records


def test_failed_trials_are_listed(toys, capsys):
    toys[1] = TrainingDiverged("The loss became NaN.")
    arguments = [*TOY, "--seeds", "0-2", "--engine", "in-turn"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "failed: toy.quick.seed1: The loss became NaN.\n" in out
    assert err.splitlines()[-1] == (
        "nasbook: 1 of 3 trials failed; runs/sweep/sweep.json lists them. To run them again: "
        "nasbook sweep --experiments toy --seeds 0-2 --engine in-turn --resume"
    )
    assert any(line.endswith("The loss became NaN.") and "failed" in line for line in err.splitlines()[:-1])
    toys.clear()
    assert main([*arguments, "--resume"]) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:4]] == ["done"] * 3


def test_an_interruption_says_how_to_go_on(toys, capsys):
    toys[1] = KeyboardInterrupt()
    assert main([*TOY, "--seeds", "0", "1", "--engine", "in-turn"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "nasbook: interrupted and saved. To go on: "
        "nasbook sweep --experiments toy --seeds 0 1 --engine in-turn --resume"
    )


@pytest.mark.parametrize(
    ("words", "seeds"), [(["0-2", "7"], [0, 1, 2, 7]), (["3,5-6"], [3, 5, 6]), (["4"], [4]), (["0-0"], [0])]
)
def test_seeds(words, seeds):
    assert read_seeds(words) == seeds


@pytest.mark.parametrize("word", ["3-1", "-1", "a", "1-", "1.5", "0-2-4", "1 2"])
def test_what_no_seeds_are(word):
    with pytest.raises(Usage, match="--seeds takes numbers and ranges such as 0-9, got"):
        read_seeds([word])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sweep"], 2, "nasbook sweep needs --methods or --experiments. See nasbook sweep --help."),
        (["sweep", "--methods", "dart"], 1, "Unknown method 'dart'. Did you mean 'darts'"),
        (["sweep", "--experiments", "tory"], 1, "Unknown experiment 'tory'. Did you mean 'toy'"),
        ([*TOY, "--scales", "quik"], 1, "Unknown scale 'quik'. Did you mean 'quick'?"),
        ([*TOY, "--seeds", "5-3"], 2, "--seeds takes numbers and ranges such as 0-9, got '5-3'."),
        ([*TOY, "--seeds", "1", "0-2"], 1, "A sweep takes each seed once, got 1 twice."),
        ([*TOY, "--seed", "1"], 2, "--seed"),
        ([*TOY, "--scales", "quick,gpu", "--data", "d.npz"], 2, "these scales are measured on cifar10, digits."),
        ([*TOY, "--engine", "ray"], 1, 'Ray is not installed; get it with: pip install "nasbook[sweep]".'),
        ([*TOY, "--address", "auto"], 1, "Ray is not installed; get it with"),
        ([*TOY, "--engine", "in-turn", "--cpus", "2"], 2, "--address and --cpus are for Ray"),
        ([*TOY, "--engine", "in-turn", "--device", "cuda:99"], 1, "Device 'cuda:99' is not here"),
        ([*TOY, "--engine", "in-turn", "--retries", "-1"], 1, "retries must be at least 0, got -1."),
        ([*TOY, "--resume"], 1, "There is no sweep in"),
    ],
)
def test_what_is_refused(toys, capsys, tmp_path, arguments, code, message):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.splitlines()[-1].startswith("nasbook: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:0"], "Ray chooses the GPU of a trial: --device is auto, cpu or cuda, got 'cuda:0'."),
        (["--device", "cpu", "--gpus-per-trial", "0.5"], "--device cpu and --gpus-per-trial 0.5 contradict each"),
        (["--device", "cuda", "--gpus-per-trial", "0"], "--device cuda and --gpus-per-trial 0 contradict each other."),
        (["--gpus-per-trial", "1.5"], "gpus_per_trial must be a whole number or a share below 1, got 1.5."),
        (["--address", "auto", "--cpus", "2"], "cpus is for a cluster on this machine"),
    ],
)
def test_what_is_refused_with_ray(toys, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("nasbook.experiments.ray_is_installed", lambda: True)
    assert main([*TOY, *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "cuda", "device", "gpus"),
    [
        ([], False, "cpu", 0.0),
        ([], True, "cuda", 1.0),
        (["--gpus-per-trial", "0.25"], False, "cuda", 0.25),  # this machine may have none, and the cluster some
        (["--device", "cuda"], False, "cuda", 1.0),
        (["--device", "cpu"], True, "cpu", 0.0),
        (["--gpus-per-trial", "0"], True, "cpu", 0.0),
    ],
)
def test_shares_of_gpus(toys, monkeypatch, arguments, cuda, device, gpus):
    """What Ray is asked for, and the device that a trial finds."""
    asked = []

    def run_sweep(plan, engine, **_):
        asked.append((plan, engine))
        return ()

    monkeypatch.setattr("nasbook.experiments.ray_is_installed", lambda: True)
    monkeypatch.setattr("nasbook.experiments.run_sweep", run_sweep)
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert main([*TOY, *arguments, "--cpus-per-trial", "2", "--address", "head:6379", "--retries", "7"]) == 0
    ((plan, engine),) = asked
    assert (plan.device, plan.threads, plan.retries) == (device, 2, 7)
    assert (engine.address, engine.cpus_per_trial, engine.gpus_per_trial) == ("head:6379", 2.0, gpus)


def test_help(capsys):
    assert main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    names = "methods experiments scales seeds out resume data device engine address cpus cpus-per-trial gpus-per-trial"
    for name in [*names.split(), "retries", "quiet"]:
        assert f"--{name}" in out


def test_missing_images_are_said_before_a_trial_runs(capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["sweep", "--methods", "darts", "--data", str(tmp_path / "no.npz"), "--out", str(out)]) == 1
    assert "no.npz" in capsys.readouterr().err
    assert not out.exists()


# --- the table --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def statuses(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    now = [0.0]
    rows = [TrialStatus(Trial("search-and-train-darts", get_scale("quick"), seed)) for seed in range(4)]
    return rows, now


def test_a_log_has_a_line_for_each_change(statuses):
    rows, now = statuses
    stream = io.StringIO()
    table = Table(stream)

    def new() -> list[str]:
        stream.seek(0)
        lines = stream.read().splitlines()
        stream.seek(0)
        stream.truncate()
        return lines

    table.show(rows)
    assert [line.split() for line in new()] == [HEADER.split()]
    rows[1].begin()
    table.show(rows)
    assert [line.split() for line in new()] == [["darts", "quick", "1", "running", "0", "1"]]
    rows[1].progress = Progress("search", 3, 15, 0.5, "node", 7)
    now[0] = 59.0
    table.show(rows)
    assert new() == []  # not every epoch
    now[0] = 61.0
    table.show(rows)
    (line,) = new()
    assert line.split() == ["darts", "quick", "1", "running", "search", "3/15", "50.00%", "61", "1"]
    rows[1].pause()
    rows[1].error = "WorkerCrashedError: gone"
    table.show(rows)
    (line,) = new()
    assert line.split()[:4] == ["darts", "quick", "1", "waiting"] and line.endswith("  WorkerCrashedError: gone")
    table.show(rows)
    assert new() == []


def test_a_terminal_is_drawn_again(statuses, monkeypatch):
    rows, now = statuses
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "6")
    stream = Terminal()
    with Table(stream) as table:
        table.show(rows)
        first = stream.getvalue()
        assert first.splitlines()[-1] == "4 trials: 4 waiting"
        assert len(first.splitlines()) == 5  # a header, three of four trials, the sum
        assert all(len(line) < 60 for line in first.splitlines())
        table.show(rows)
        assert stream.getvalue() == first  # too soon
        now[0] = 1.0
        rows[3].begin()
        table.show(rows)
        drawn = stream.getvalue().removeprefix(first)
        assert drawn.startswith("\x1b[5A\x1b[J")
        assert drawn.splitlines()[-1] == "4 trials: 1 running, 3 waiting"
        assert "running" in drawn.splitlines()[-2]  # it is shown, although it is the last
    assert stream.getvalue().endswith("\x1b[5A\x1b[J")  # nothing is left in the way of the results
