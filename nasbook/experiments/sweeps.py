"""Sweeps: many trials (methods × seeds × scales), each one measurement of an experiment.

A trial keeps its checkpoints in the sweep's folder, so whoever runs it next goes on where it stopped, to the same bits.
An engine decides where trials run: here, one after another (:func:`run_in_turn`), or on Ray
(:mod:`nasbook.experiments.sweeps_on_ray`). What the trials return becomes records in this process alone.

In the folder of a sweep: ``records`` with one file an experiment and scale, ``checkpoints`` of the trials that are not
done, and ``sweep.json`` that says how each trial went.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import nasbook
from nasbook.errors import InvalidInput, NasbookError, require_positive
from nasbook.experiments.records import Measurement, earlier_record, save_measurement
from nasbook.experiments.registry import get_experiment, measure_experiment
from nasbook.experiments.scale import Scale
from nasbook.files import whole_file
from nasbook.seeding import seed_everything
from nasbook.training import Resumable

__all__ = [
    "STATUS_FILE",
    "Changed",
    "Ended",
    "Engine",
    "Outcome",
    "Progress",
    "Sweep",
    "Trial",
    "TrialStatus",
    "TrialsFailed",
    "plan_trials",
    "run_in_turn",
    "run_sweep",
    "run_trial",
]

FORMAT = "nasbook.sweep"
VERSION = 1
STATUS_FILE = "sweep.json"


class TrialsFailed(NasbookError, RuntimeError):
    """Some trials of a sweep have no result; the message says how many, and how to run them again."""


State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Trial:
    """One measurement: an experiment at a scale, with a seed."""

    experiment: str
    """Name of the experiment."""
    scale: Scale
    """With the experiment's own numbers."""
    seed: int
    """Of everything random."""

    @property
    def name(self) -> str:
        """As its folder of checkpoints is called."""
        return f"{self.experiment}.{self.scale.name}.seed{self.seed}"


def plan_trials(experiments: Sequence[str], scales: Sequence[Scale], seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Every experiment at every scale with every seed, one seed of all before the next seed.

    An experiment without randomness has one trial a scale, with the first seed.

    Raises:
        InvalidInput: nothing to run, an unknown experiment, or something named twice.
    """
    names = [scale.name for scale in scales]
    for what, values in (("experiment", experiments), ("scale", names), ("seed", seeds)):
        if not values:
            raise InvalidInput(f"A sweep needs at least one {what}.")
        twice = sorted({value for value in values if list(values).count(value) > 1}, key=str)
        if twice:
            raise InvalidInput(f"A sweep takes each {what} once, got {', '.join(map(str, twice))} twice.")
    return tuple(
        Trial(name, get_experiment(name).scaled(scale), seed)
        for scale in scales
        for seed in seeds
        for name in experiments
        if get_experiment(name).seeded or seed == seeds[0]
    )


@dataclass(frozen=True)
class Sweep:
    """What is to be run, and how."""

    trials: tuple[Trial, ...]
    """From :func:`plan_trials`."""
    folder: Path
    """Where everything is written. Whoever runs a trial must see it under the same path."""
    data: str | None = None
    """Another source of the scales' data set (an ``.npz`` of the same content); None takes the scale's."""
    device: str = "cpu"
    """Where a trial runs, as torch names it."""
    threads: int = 1
    """CPU threads of a trial; results depend on it. At ``quick`` always 1."""
    retries: int = 3
    """How often a trial is begun again after its worker died. Errors of the trial itself are not tried again."""

    def __post_init__(self) -> None:
        require_positive(threads=self.threads)
        if self.retries < 0:
            raise InvalidInput(f"retries must be at least 0, got {self.retries}.")

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.folder / "records"

    @property
    def status_file(self) -> Path:
        """The file that says how each trial went."""
        return self.folder / STATUS_FILE

    def checkpoints(self, trial: Trial) -> Path:
        """The folder of a trial's checkpoints."""
        return self.folder / "checkpoints" / trial.name


@dataclass(frozen=True)
class Progress:
    """How far a trial is, as its worker says after every epoch."""

    run: str
    """The part of the trial that is running, such as ``search``."""
    epoch: int
    """Finished epochs of that part."""
    epochs: int
    """All epochs of that part."""
    accuracy: float | None
    """Last validation accuracy of that part, 0..1; None where the last epoch had none."""
    host: str
    """Where the worker is."""
    pid: int
    """Its process."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with a measurement, or with an error in one line."""

    measurement: Measurement | None
    """What it found; None if it failed."""
    error: str = ""
    """What went wrong, in one line."""
    details: str = ""
    """Where in the code, if the package did not expect the error."""


@dataclass
class TrialStatus:
    """What is known about a trial while a sweep runs; engines keep it up to date."""

    trial: Trial
    """Which."""
    state: State = "waiting"
    """``waiting``, ``running``, ``done`` or ``failed``."""
    attempts: int = 0
    """How often it was begun, earlier calls with the same folder included."""
    died: int = 0
    """How many workers it has lost in this call."""
    progress: Progress | None = None
    """The last word from its worker; None before the first one."""
    accuracy: float | None = None
    """Test accuracy, 0..1; None before it is done, and for experiments that measure something else."""
    error: str = ""
    """Why it failed, or why its last worker was lost."""
    details: str = ""
    """Where in the code, if the package did not expect the error."""
    earlier_seconds: float = 0.0
    """Wall time of attempts that are over."""
    started: float | None = None
    """When the running attempt began, by :func:`time.monotonic`."""

    @property
    def seconds(self) -> float:
        """Wall time of all attempts so far."""
        return self.earlier_seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def begin(self) -> None:
        """An attempt runs now."""
        self.state, self.started, self.progress = "running", time.monotonic(), None
        self.attempts += 1

    def pause(self) -> None:
        """The running attempt is over, and another one may follow."""
        self.earlier_seconds, self.started = self.seconds, None
        self.state = "waiting"

    def finish(self, outcome: Outcome) -> None:
        """The last attempt has ended."""
        self.pause()
        self.state = "failed" if outcome.measurement is None else "done"
        self.error, self.details = outcome.error, outcome.details
        if outcome.measurement is not None:
            self.accuracy = _accuracy(outcome.measurement)

    def to_state(self) -> dict[str, Any]:
        """Plain values for ``sweep.json``."""
        return {
            "experiment": self.trial.experiment,
            "scale": self.trial.scale.name,
            "seed": self.trial.seed,
            "state": "waiting" if self.state == "running" else self.state,  # nobody writes that it was killed
            "attempts": self.attempts,
            "seconds": round(self.seconds, 1),
            "accuracy": self.accuracy,
            "error": self.error,
            "details": self.details,
        }


Changed = Callable[[], None]
Ended = Generator[tuple[TrialStatus, Outcome], None, None]
Engine = Callable[[Sweep, Sequence[TrialStatus], Changed], Ended]
"""Runs trials and yields each with its outcome when it ends, in any order. It calls ``begin`` and ``pause`` of a status
and sets its progress, and calls the function after each change. KeyboardInterrupt passes through, with checkpoints
written where there was time."""


def run_sweep(
    sweep: Sweep,
    engine: Engine,
    *,
    resume: bool = False,
    watch: Callable[[Sequence[TrialStatus]], None] | None = None,
) -> tuple[TrialStatus, ...]:
    """Runs what is missing of a sweep and writes its records.

    A trial that fails does not stop the others. It is in what is returned and in ``sweep.json``, with its error, and
    is run again by the next call with ``resume``, from its checkpoint.

    Args:
        sweep: what to run.
        engine: where.
        resume: take up a sweep that is in the folder; it may have had fewer trials.
        watch: called with all statuses, in the order of the trials, whenever one has changed.

    Returns:
        All statuses: ``done`` or ``failed``.

    Raises:
        InvalidInput: a sweep is in the folder and ``resume`` is not asked for, or the other way round; it was run on
            other data or with other threads; a record there does not fit; ``sweep.json`` can't be written.
        KeyboardInterrupt: after Ctrl-C; call again with ``resume``.
    """
    folder = sweep.folder.resolve()
    source = sweep.data
    if source is not None and Path(source).exists():  # a worker's working folder may be another one
        source = str(Path(source).resolve())
    sweep = replace(sweep, folder=folder, data=source)
    earlier = _earlier_statuses(sweep, resume)
    statuses = tuple(_status(sweep, trial, earlier.get(trial.name, {})) for trial in sweep.trials)
    missing = [status for status in statuses if status.state != "done"]

    def changed() -> None:
        if watch is not None:
            watch(statuses)

    _write_statuses(sweep, statuses, earlier)  # the workers look for it
    changed()
    try:
        with closing(engine(sweep, missing, changed)) as ended:
            for status, outcome in ended:
                status.finish(_recorded(sweep, status.trial, outcome))
                _write_statuses(sweep, statuses, earlier)
                changed()
    finally:
        _write_statuses(sweep, statuses, earlier)
    return statuses


def run_in_turn(sweep: Sweep, statuses: Sequence[TrialStatus], changed: Changed) -> Ended:
    """The engine without an engine: one trial after another, in this process."""
    for status in statuses:

        def note(progress: Progress, status: TrialStatus = status) -> None:
            status.progress = progress
            changed()

        status.begin()
        changed()
        try:
            outcome = run_trial(sweep, status.trial, note)
        except KeyboardInterrupt:
            status.pause()
            raise
        yield status, outcome


def run_trial(sweep: Sweep, trial: Trial, on_progress: Callable[[Progress], None]) -> Outcome:
    """Makes one measurement in this process, from its checkpoints if there are any, and catches its errors."""
    host, pid = os.uname().nodename, os.getpid()

    def note(name: str, run: Resumable) -> None:
        accuracy = getattr(run.history[-1], "validation_accuracy", None)
        known = isinstance(accuracy, float) and math.isfinite(accuracy)
        on_progress(Progress(name, run.epoch, run.total_epochs, accuracy if known else None, host, pid))

    threads = torch.get_num_threads()
    # Whatever ran in this process before must not matter.
    seed_everything(trial.seed, sweep.threads)
    on_progress(Progress("", 0, 0, None, host, pid))
    try:
        measurement = measure_experiment(
            trial.experiment,
            trial.scale,
            trial.seed,
            data=sweep.data,
            device=sweep.device,
            checkpoints=sweep.checkpoints(trial),
            on_report=note,
        )
    except NasbookError as error:
        return Outcome(None, _one_line(str(error)))
    except Exception as error:  # a fault of the package, or of the machine: the other trials go on
        return Outcome(None, _one_line(f"{type(error).__name__}: {error}"), traceback.format_exc())
    finally:
        torch.set_num_threads(threads)
    return Outcome(measurement)


def _recorded(sweep: Sweep, trial: Trial, outcome: Outcome) -> Outcome:
    """Adds a measurement to its record; the trial has failed if it does not fit, as when a node has other data."""
    if outcome.measurement is None:
        return outcome
    try:
        save_measurement(trial.experiment, trial.scale, outcome.measurement, sweep.records)
    except InvalidInput as error:
        return Outcome(None, _one_line(str(error)))
    shutil.rmtree(sweep.checkpoints(trial), ignore_errors=True)  # the record has what they led to
    return outcome


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:499] + "…"


def _accuracy(measurement: Measurement) -> float | None:
    accuracy = measurement.values.get("test_accuracy")
    return float(accuracy) if isinstance(accuracy, int | float) else None


# --- what is known of earlier calls -----------------------------------------------------------------------------------


def _status(sweep: Sweep, trial: Trial, earlier: dict[str, Any]) -> TrialStatus:
    """A trial's status at the beginning: done if the records have it."""
    status = TrialStatus(trial, attempts=earlier.get("attempts", 0), earlier_seconds=earlier.get("seconds", 0.0))
    record = earlier_record(trial.experiment, trial.scale, sweep.records)
    for measurement in () if record is None else record.measurements:
        if measurement.seed == trial.seed:
            status.finish(Outcome(measurement))
    return status


def _earlier_statuses(sweep: Sweep, resume: bool) -> dict[str, dict[str, Any]]:
    """What ``sweep.json`` says of each trial, by its name."""
    path = sweep.status_file
    if not path.exists():
        if resume:
            raise InvalidInput(f"There is no sweep in {sweep.folder} to resume; leave --resume out to begin.")
        if sweep.records.exists() or (sweep.folder / "checkpoints").exists():
            raise InvalidInput(f"{sweep.folder} has records or checkpoints that are no sweep's; give another --out.")
        return {}
    if not resume:
        raise InvalidInput(f"{sweep.folder} holds a sweep already: give --resume to go on with it, or another --out.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is a {content['format']} of version {content['version']}")
        rows = {f"{row['experiment']}.{row['scale']}.seed{row['seed']}": row for row in content["trials"]}
        numbers = all(isinstance(row["attempts"], int) and row["seconds"] >= 0 for row in rows.values())
        if not numbers:
            raise ValueError("attempts and seconds must be numbers")
        data, threads, device = content["data"], content["threads"], content["device"]
    except OSError as error:
        raise InvalidInput(f"Can't read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} does not describe a sweep ({error}). Give another --out.") from error
    for what, then, now in (
        ("data", data, sweep.data),
        ("threads", threads, sweep.threads),
        ("device", device, sweep.device),
    ):
        if then != now:
            raise InvalidInput(
                f"{sweep.folder} holds a sweep with other {what}: {_said(then)} then, {_said(now)} now. "
                f"Give the same as then, or another --out."
            )
    return rows


def _said(value: Any) -> str:
    return "the scale's own" if value is None else str(value)


def _write_statuses(sweep: Sweep, statuses: Sequence[TrialStatus], earlier: dict[str, dict[str, Any]]) -> None:
    """Writes ``sweep.json``; trials of earlier calls that this one does not have stay in it."""
    rows = {**earlier, **{status.trial.name: status.to_state() for status in statuses}}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "nasbook": nasbook.__version__,
        "data": sweep.data,
        "device": sweep.device,
        "threads": sweep.threads,
        "failed": [name for name, row in rows.items() if row["state"] == "failed"],
        "trials": list(rows.values()),
    }
    with whole_file(sweep.status_file) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
