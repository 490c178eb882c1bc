"""Sweeps: what is run, what becomes of what fails, dies or is interrupted, and what is left in the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nasbook
from nasbook.errors import InvalidInput, TrainingDiverged
from nasbook.experiments import (
    METHOD_PREFIX,
    RAY_MISSING,
    SEARCH_CONFIGS,
    STRETCHABLE_SCALES,
    Cluster,
    Experiment,
    Outcome,
    Progress,
    Sweep,
    get_experiment,
    get_scale,
    list_experiments,
    load_records,
    plan_trials,
    read_record,
    registry,
    reproduce,
    run_in_turn,
    run_sweep,
    sweeps_on_ray,
)
from nasbook.training import Fit

ROOT = Path(__file__).parents[2]
DARTS = METHOD_PREFIX + "darts"


@pytest.fixture
def toys(monkeypatch):
    """Two experiments of no time at all; the first one raises what stands under a trial's seed."""
    errors: dict[int, BaseException] = {}
    calls: list[int] = []

    def run(workplace):
        """One number."""
        calls.append(workplace.seed)
        assert torch.get_num_threads() == 1
        if workplace.seed in errors:
            raise errors[workplace.seed]
        return {"test_accuracy": workplace.seed / 10, "drawn": torch.rand(()).item()}

    known = {
        "toy": Experiment("toy", "A toy", "00", run),
        "exact-toy": Experiment("exact-toy", "Another", "00", lambda workplace: {"answer": 42}, seeded=False),
    }
    monkeypatch.setattr(registry, "_EXPERIMENTS", known)
    return errors, calls


def states(statuses) -> dict[str, str]:
    return {status.trial.name: status.state for status in statuses}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan(toys, scale):
    other = replace(scale, name="other")
    trials = plan_trials(["toy", "exact-toy"], [scale, other], [3, 1])
    assert [trial.name for trial in trials] == [
        "toy.tiny.seed3", "exact-toy.tiny.seed3", "toy.tiny.seed1",
        "toy.other.seed3", "exact-toy.other.seed3", "toy.other.seed1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiments": []}, "needs at least one experiment"),
        ({"scales": []}, "needs at least one scale"),
        ({"seeds": []}, "needs at least one seed"),
        ({"experiments": ["toy", "exact-toy", "toy"]}, "takes each experiment once, got toy twice"),
        ({"seeds": [4, 4]}, "takes each seed once, got 4 twice"),
        ({"experiments": ["tory"]}, "Unknown experiment 'tory'. Did you mean 'toy'"),
    ],
)
def test_what_no_plan_can_have(toys, scale, change, message):
    with pytest.raises(InvalidInput, match=message):
        plan_trials(**{"experiments": ["toy"], "scales": [scale], "seeds": [0], **change})


def test_a_chapters_scale_is_in_the_plan():
    (trial,) = plan_trials(["entrannas-placement"], [get_scale("quick")], [0])
    assert trial.scale == get_experiment(trial.experiment).scaled(get_scale("quick"))
    assert type(trial.scale).__name__ != "Scale"


def _names() -> list[str]:
    return [experiment.name for experiment in list_experiments()]


@pytest.mark.parametrize(("change", "message"), [({"threads": 0}, "threads must be above 0"), ({"retries": -1}, "-1")])
def test_wrong_numbers_of_a_sweep(tmp_path, change, message):
    with pytest.raises(InvalidInput, match=message):
        Sweep((), tmp_path, **change)


# --- in this process --------------------------------------------------------------------------------------------------


def test_a_sweep_of_toys(toys, scale, tmp_path):
    seen: list[dict[str, str]] = []
    sweep = Sweep(plan_trials(["toy", "exact-toy"], [scale], [1, 0]), tmp_path / "sweep")
    threads = torch.get_num_threads()
    statuses = run_sweep(sweep, run_in_turn, watch=lambda rows: seen.append(states(rows)))
    assert torch.get_num_threads() == threads
    assert states(statuses) == dict.fromkeys(("toy.tiny.seed1", "exact-toy.tiny.seed1", "toy.tiny.seed0"), "done")
    assert [(status.attempts, status.accuracy) for status in statuses] == [(1, 0.1), (1, None), (1, 0.0)]
    assert set(seen[0].values()) == {"waiting"}
    assert [tuple(row.values()) for row in seen if list(row.values()).count("running")][:1] == [
        ("running", "waiting", "waiting")
    ]
    assert seen[-1] == states(statuses)
    record = read_record(sweep.records / "toy.tiny.json")
    assert [measurement.seed for measurement in record.measurements] == [0, 1]
    assert [record.experiment for record in load_records(sweep.records)] == ["exact-toy", "toy"]
    content = json.loads(sweep.status_file.read_text())
    assert (content["format"], content["failed"], content["threads"]) == ("nasbook.sweep", [], 1)
    assert [row["state"] for row in content["trials"]] == ["done"] * 3
    assert sorted(path.name for path in sweep.folder.iterdir()) == ["records", "sweep.json"]


def test_what_ran_before_does_not_matter(toys, scale, tmp_path):
    """A trial has its own random numbers, whichever trials its process had before."""
    whole, alone = (Sweep(plan_trials(["toy"], [scale], seeds), tmp_path / str(len(seeds))) for seeds in ([3, 4], [4]))
    for sweep in (whole, alone):
        torch.rand(len(sweep.trials))
        run_sweep(sweep, run_in_turn)
    drawn = [load_records(sweep.records)[0].values("drawn")[-1] for sweep in (whole, alone)]
    assert drawn[0] == drawn[1]


def test_a_sweep_is_what_reproduce_measures(scale, tmp_path):
    """And the methods' trials say what they found."""
    experiments = [METHOD_PREFIX + name for name in ("darts", "random-search")]
    sweep = Sweep(plan_trials(experiments, [scale], [5]), tmp_path)
    progress: list[Progress] = []

    def watch(statuses):
        new = [status.progress for status in statuses if not any(status.progress is one for one in (None, *progress))]
        progress.extend(new)

    statuses = run_sweep(sweep, run_in_turn, watch=watch)
    for status in statuses:
        values = read_record(sweep.records / f"{status.trial.experiment}.tiny.json").values
        again = reproduce(status.trial.experiment, scale, 5).values
        assert {name: values(name)[0] for name in again if "seconds" not in name} == {
            name: value for name, value in again.items() if "seconds" not in name
        }
        assert status.accuracy == again["test_accuracy"]
        assert again["cells"] == scale.cells
        assert 0 <= again["validation_accuracy"] <= 1
    said = [(one.run, one.epoch, one.epochs) for one in progress if one.epochs]
    assert said == [*[("search", 1, 1), ("train", 1, 2), ("train", 2, 2)] * 2]
    assert {one.pid for one in progress} == {os.getpid()}
    assert progress[1].accuracy is not None and progress[2].accuracy is None  # measured after the last epoch only


def test_every_method_is_an_experiment():
    assert [name for name in _names() if name.startswith(METHOD_PREFIX)] == [METHOD_PREFIX + m for m in SEARCH_CONFIGS]


def test_cells_for_one_depth_are_trained_at_that_depth(scale):
    """The stretchable cell's network has as many cells as its supernet, whatever the scale has."""
    own = replace(
        STRETCHABLE_SCALES["quick"],
        **{**vars(scale), "search_cells": 2, "cells": 3},
        stretchable_nodes=2,
        layers=(2,),
    )  # fmt: skip
    assert reproduce(METHOD_PREFIX + "stretchable", own).values["cells"] == 2


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_fails_is_listed_and_the_others_go_on(toys, scale, tmp_path):
    errors, calls = toys
    errors.update({0: TrainingDiverged("The loss became\nNaN."), 2: ZeroDivisionError("division by zero")})
    sweep = Sweep(plan_trials(["toy"], [scale], [0, 1, 2]), tmp_path)
    statuses = run_sweep(sweep, run_in_turn)
    assert [status.state for status in statuses] == ["failed", "done", "failed"]
    assert [status.error for status in statuses] == ["The loss became NaN.", "", "ZeroDivisionError: division by zero"]
    assert statuses[0].details == "" and "Traceback" in statuses[2].details
    content = json.loads(sweep.status_file.read_text())
    assert content["failed"] == ["toy.tiny.seed0", "toy.tiny.seed2"]
    assert content["trials"][0]["error"] == "The loss became NaN."
    assert [m.seed for m in read_record(sweep.records / "toy.tiny.json").measurements] == [1]

    del errors[0]
    calls.clear()
    wider = replace(sweep, trials=plan_trials(["toy"], [scale], [0, 1, 2, 3]))
    statuses = run_sweep(wider, run_in_turn, resume=True)
    assert calls == [0, 2, 3]  # not what is done
    assert [status.state for status in statuses] == ["done", "done", "failed", "done"]
    assert [status.attempts for status in statuses] == [2, 1, 2, 1]
    assert statuses[0].error == ""

    errors.clear()
    run_sweep(sweep, run_in_turn, resume=True)
    content = json.loads(sweep.status_file.read_text())
    assert content["failed"] == [] and len(content["trials"]) == 4  # the fourth is not forgotten
    calls.clear()
    assert set(states(run_sweep(wider, run_in_turn, resume=True)).values()) == {"done"}
    assert calls == []


def test_an_interrupted_sweep_says_so_and_goes_on(toys, scale, tmp_path):
    errors, calls = toys
    errors[1] = KeyboardInterrupt()
    sweep = Sweep(plan_trials(["toy"], [scale], [0, 1, 2]), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, run_in_turn)
    rows = json.loads(sweep.status_file.read_text())["trials"]
    assert [(row["state"], row["attempts"]) for row in rows] == [("done", 1), ("waiting", 1), ("waiting", 0)]
    errors.clear()
    statuses = run_sweep(sweep, run_in_turn, resume=True)
    assert [status.attempts for status in statuses] == [1, 2, 1]
    assert calls == [0, 1, 1, 2]


@pytest.mark.parametrize("steps", [2, 5])
def test_a_trial_goes_on_to_the_same_bits(scale, tmp_path, monkeypatch, steps):
    """The power fails in the training of 6 steps in two epochs, before and after its first checkpoint."""

    class PowerCut(BaseException):
        pass

    trials = plan_trials([DARTS], [scale], [1])
    expected = Sweep(trials, tmp_path / "expected")
    run_sweep(expected, run_in_turn)
    cut = Sweep(trials, tmp_path / "cut")
    made: list[int] = []
    original = Fit.run_step

    def run_step(self, index):
        made.append(index)
        if len(made) == steps:
            raise PowerCut
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "run_step", run_step)
        with pytest.raises(PowerCut):
            run_sweep(cut, run_in_turn)
    made.clear()
    monkeypatch.setattr(Fit, "run_step", lambda self, index: made.append(index) or original(self, index))
    run_sweep(cut, run_in_turn, resume=True)
    assert len(made) == (6 if steps == 2 else 3)
    values = [load_records(sweep.records)[0].measurements[0].values for sweep in (expected, cut)]
    assert values[0] | {"search_seconds": 0} == values[1] | {"search_seconds": 0}
    assert not (cut.folder / "checkpoints" / trials[0].name).exists()


def test_a_result_that_fits_no_record_fails(toys, scale, tmp_path):
    """As of a node whose data differ."""
    sweep = Sweep(plan_trials(["toy"], [scale], [0, 1]), tmp_path)

    def engine(sweep, statuses, changed):
        for status, (_, outcome) in zip(statuses, run_in_turn(sweep, statuses, changed), strict=True):
            made = outcome.measurement
            other = replace(made.provenance, data_checksum=f"of node {status.trial.seed}")
            yield status, Outcome(replace(made, provenance=other))

    statuses = run_sweep(sweep, engine)
    assert [status.state for status in statuses] == ["done", "failed"]
    assert "was made with other data" in statuses[1].error


# --- what is in the folder --------------------------------------------------------------------------------------------


def test_folders_that_are_refused(toys, scale, tmp_path):
    sweep = Sweep(plan_trials(["toy"], [scale], [0]), tmp_path / "sweep")
    with pytest.raises(InvalidInput, match="There is no sweep in .*sweep to resume; leave --resume out"):
        run_sweep(sweep, run_in_turn, resume=True)
    run_sweep(sweep, run_in_turn)
    kept = sweep.status_file.read_bytes()
    with pytest.raises(InvalidInput, match="holds a sweep already: give --resume"):
        run_sweep(sweep, run_in_turn)
    with pytest.raises(InvalidInput, match="with other threads: 1 then, 2 now"):
        run_sweep(replace(sweep, threads=2), run_in_turn, resume=True)
    with pytest.raises(InvalidInput, match="with other data: the scale's own then, mine.npz now"):
        run_sweep(replace(sweep, data="mine.npz"), run_in_turn, resume=True)
    with pytest.raises(InvalidInput, match="with other device: cpu then, cuda now"):
        run_sweep(replace(sweep, device="cuda"), run_in_turn, resume=True)
    changed = replace(sweep, trials=plan_trials(["toy"], [replace(scale, epochs=5)], [0, 1]))
    with pytest.raises(InvalidInput, match="made with other numbers of the scale \\(epochs\\)"):
        run_sweep(changed, run_in_turn, resume=True)
    assert sweep.status_file.read_bytes() == kept
    (tmp_path / "other" / "records").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="has records or checkpoints that are no sweep's"):
        run_sweep(replace(sweep, folder=tmp_path / "other"), run_in_turn)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "nasbook.sweep", "version": 9}',
        '{"format": "nasbook.sweep", "version": 1}',
        '{"format": "nasbook.sweep", "version": 1, "data": null, "threads": 1, "trials": [{"experiment": "toy"}]}',
    ],
)
def test_a_damaged_file_is_refused(toys, scale, tmp_path, text):
    sweep = Sweep(plan_trials(["toy"], [scale], [0]), tmp_path)
    sweep.status_file.write_text(text)
    with pytest.raises(InvalidInput, match="sweep.json does not describe a sweep .*Give another --out"):
        run_sweep(sweep, run_in_turn, resume=True)


def test_paths_are_absolute_for_the_workers(toys, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("copy.npz").touch()
    seen: list[Sweep] = []

    def engine(sweep, statuses, changed):
        seen.append(sweep)
        yield from run_in_turn(sweep, statuses, changed)

    run_sweep(Sweep(plan_trials(["toy"], [scale], [0]), Path("here"), "copy.npz"), engine)
    assert (seen[0].folder, seen[0].data) == (tmp_path.resolve() / "here", str(tmp_path.resolve() / "copy.npz"))


# --- on Ray -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus_per_trial": 1.5}, "cpus_per_trial must be a whole number or a share below 1, got 1.5"),
        ({"gpus_per_trial": -1.0}, "gpus_per_trial must be a whole number or a share below 1, got -1.0"),
        ({"cpus": 0}, "cpus must be at least 1, got 0"),
        ({"cpus": 2, "address": "auto"}, "cpus is for a cluster on this machine"),
    ],
)
def test_wrong_numbers_of_a_cluster(options, message):
    with pytest.raises(InvalidInput, match=message):
        Cluster(**options)


def test_more_than_this_machine_has():
    with pytest.raises(InvalidInput, match=r"A trial is to have 0.25 GPUs, and this machine gives Ray 0\."):
        Cluster(gpus_per_trial=0.25).require_enough({"CPU": 2.0})
    Cluster(gpus_per_trial=0.25).require_enough({"CPU": 2.0, "GPU": 1.0})


def test_a_worker_that_tells_does_not_wait(toys, scale, tmp_path):
    """Ray lends the CPU of a worker that waits to the next trial, and more trials run than there are CPUs."""
    sweep = Sweep(plan_trials(["toy"], [scale], [0]), tmp_path)
    sweep.folder.mkdir(exist_ok=True)
    sweep.status_file.touch()
    sent: list[Any] = []
    news = SimpleNamespace(actor=SimpleNamespace(put_nowait=SimpleNamespace(remote=sent.append)))
    assert sweeps_on_ray._work(sweep, sweep.trials[0], 1, news, nasbook.__version__, None).measurement is not None
    assert sent and {(name, attempt) for name, attempt, _ in sent} == {(sweep.trials[0].name, 1)}


def test_without_ray(toys, scale, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps_on_ray, "ray_is_installed", lambda: False)
    sweep = Sweep(plan_trials(["toy"], [scale], [0]), tmp_path)
    with pytest.raises(InvalidInput, match='pip install "nasbook\\[sweep\\]"'):
        run_sweep(sweep, Cluster())
    assert RAY_MISSING.startswith("Ray is not installed")
    assert states(run_sweep(sweep, run_in_turn, resume=True)) == {"toy.tiny.seed0": "done"}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    """What sweep_cases.py says, with no network."""
    pytest.importorskip("ray")
    paths = os.pathsep.join(str(ROOT / "tools" / name) for name in ("offline", ""))
    ran = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("sweep_cases.py"), tmp_path_factory.mktemp("sweeps")],
        # Ray gives its workers the lowest priority but four, and beside other tests they would wait.
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def test_a_killed_worker_loses_nothing(told):
    """SIGKILL after an epoch: the trial is begun again, and all results are those of an undisturbed sweep."""
    assert told["killed"]
    killed = told["disturbed"][told["killed"][-1]]
    assert killed == ["done", 2, 1, ""]
    assert told["found"] == told["expected"]
    assert len(told["found"]) == 2
    assert told["left"] == []


def test_a_trial_that_fails_is_not_tried_again(told):
    state, attempts, died, error = told["disturbed"][METHOD_PREFIX + "stretchable.tiny.seed0"]
    assert (state, attempts, died) == ("failed", 1, 0)
    assert "Chapter 2 needs numbers of its own" in error


def test_a_trial_that_loses_every_worker_fails_and_goes_on_later(told):
    name = DARTS + ".tiny.seed0"
    state, attempts, died, error = told["lost"][name]
    assert (state, attempts, died) == ("failed", 1, 1)
    assert error.startswith("its worker was lost")
    assert told["resumed"][name] == ["done", 2, 0, ""]
    expected = {key: value for key, value in told["expected"].items() if key.endswith("seed 0")}
    assert told["after all"] == expected


def test_the_command_on_ray(told):
    code, out, err = told["cli"]
    assert code == 0
    assert "darts-counts  quick     0  done" in out
    assert "darts-counts  quick     0  running" in err


def test_a_cluster_of_this_machine_listens_on_it_alone(told):
    assert told["addresses"] == ["127.0.0.1"]
