"""Shows that a sweep loses nothing when a worker dies: ``python tools/show_sweep.py --seeds 3``.

Runs the same trials twice: one after another in this process, undisturbed; and on a Ray cluster of this machine, where
a worker that has finished an epoch is killed with SIGKILL. Says what differs between the records of the two, times and
provenance aside, which is nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasbook.experiments import (
    METHOD_PREFIX,
    Cluster,
    Record,
    Scale,
    Sweep,
    TrialStatus,
    get_scale,
    load_records,
    plan_trials,
    run_in_turn,
    run_sweep,
)

METHODS = ("darts", "milenas", "pc-darts", "random-search")

TINY: Scale = replace(
    get_scale("quick"),
    name="tiny",
    train_images=96,
    test_images=40,
    operations=("none", "skip_connect", "sep_conv_3x3"),
    nodes=2,
    search_epochs=4,
    search_batch=16,
    search_channels=2,
    epochs=8,
    batch=32,
    channels=2,
)
"""A scale of seconds."""


class Killer:
    """Kills the worker of a trial that has finished an epoch, until one was lost while it worked."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def __call__(self, statuses: Sequence[TrialStatus]) -> None:
        if any(status.died for status in statuses):
            return
        for status in statuses:
            name, progress = status.trial.name, status.progress
            if status.state != "running" or progress is None or not progress.epoch or name in self.killed:
                continue
            self.killed.append(name)
            print(f"kill -9 {progress.pid}: {name}, {progress.run}, epoch {progress.epoch} of {progress.epochs}")
            try:
                os.kill(progress.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return


def timeless(value: Any) -> Any:
    """Values without those that measure time."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if "seconds" not in name}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def contents(records: Sequence[Record]) -> dict[str, Any]:
    """What records say, provenance and times aside; JSON gives a float with all its digits."""
    return {
        f"{record.experiment}, seed {measurement.seed}": json.dumps(timeless(measurement.values))
        for record in records
        for measurement in record.measurements
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A sweep with a killed worker beside an undisturbed one.")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_worker_niceness", "0")  # else both halves would not run at the same priority
    experiments = [METHOD_PREFIX + method for method in options.methods]
    trials = plan_trials(experiments, [TINY], range(options.seeds))
    with tempfile.TemporaryDirectory() as folder:
        quiet, disturbed = (Sweep(trials, Path(folder, name)) for name in ("quiet", "disturbed"))
        start = time.perf_counter()
        run_sweep(quiet, run_in_turn)
        print(f"{len(trials)} trials in turn: {time.perf_counter() - start:.1f} s", flush=True)
        killer = Killer()
        start = time.perf_counter()
        statuses = run_sweep(disturbed, Cluster(cpus=options.cpus), watch=killer)
        print(f"{len(trials)} trials on Ray, {options.cpus} CPUs: {time.perf_counter() - start:.1f} s", flush=True)
        expected, found = (contents(load_records(sweep.records)) for sweep in (quiet, disturbed))
    again = [f"{status.trial.name} ({status.attempts} attempts)" for status in statuses if status.attempts > 1]
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    print(f"begun again: {', '.join(again) or 'none'}")
    print(f"{len(found)} of {len(trials)} results, {len(differing)} differ from the undisturbed ones {differing or ''}")
    return 0 if again and not differing and len(found) == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
