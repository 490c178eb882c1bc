"""Sweeps on one Ray cluster of this machine: ``python sweep_cases.py FOLDER``, which says in JSON how they went.

In a process of its own: Ray starts threads, processes and sockets that end with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from show_sweep import TINY, Killer, contents

from nasbook import cli
from nasbook.experiments import Cluster, Sweep, TrialStatus, load_records, plan_trials, run_in_turn, run_sweep

DARTS = "search-and-train-darts"
STRETCHABLE = "search-and-train-stretchable"
"""Has no numbers of its own at this scale, so that its trials fail."""


def said(statuses: Sequence[TrialStatus]) -> dict[str, Any]:
    return {status.trial.name: [status.state, status.attempts, status.died, status.error] for status in statuses}


def kill_all(statuses: Sequence[TrialStatus]) -> None:
    """Kills every worker that says a word, so that no trial ends."""
    for status in statuses:
        if status.state == "running" and status.progress is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.progress.pid, signal.SIGKILL)


def cases(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    engine = Cluster(cpus=2)
    trials = plan_trials([DARTS], [TINY], [0, 1])
    quiet = Sweep(trials, folder / "quiet")
    run_sweep(quiet, run_in_turn)
    told["expected"] = contents(load_records(quiet.records))

    disturbed = Sweep((*trials, *plan_trials([STRETCHABLE], [TINY], [0])), folder / "disturbed")
    killer = Killer()
    told["disturbed"] = said(run_sweep(disturbed, engine, watch=killer))
    told["killed"] = killer.killed
    told["found"] = contents(load_records(disturbed.records))
    told["left"] = sorted(path.name for path in (disturbed.folder / "checkpoints").rglob("*.pt"))

    lost = Sweep(trials[:1], folder / "lost", retries=0)
    told["lost"] = said(run_sweep(lost, engine, watch=kill_all))
    told["resumed"] = said(run_sweep(lost, engine, resume=True))
    told["after all"] = contents(load_records(lost.records))

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(["sweep", "--experiments", "darts-counts", "--out", str(folder / "cli"), "--engine", "ray"])
    told["cli"] = [code, out.getvalue(), err.getvalue()]
    return told


if __name__ == "__main__":
    # Ray prints to standard output when a worker dies.
    with contextlib.redirect_stdout(sys.stderr), Cluster(cpus=2).joined() as ray:  # all sweeps find it
        told = cases(Path(sys.argv[1]))
        told["addresses"] = [node["NodeManagerAddress"] for node in ray.nodes()]
    json.dump(told, sys.stdout)
