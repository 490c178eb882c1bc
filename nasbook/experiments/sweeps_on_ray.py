"""Sweeps on Ray: a cluster on this machine, or one that is there.

Ray chooses where a trial runs, gives it CPUs and its share of a GPU, and says when its worker has died. The trial is
then begun again, from its checkpoint in the sweep's folder. Needs ``pip install "nasbook[sweep]"``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import nasbook
from nasbook.errors import InvalidInput
from nasbook.experiments.sweeps import Changed, Ended, Outcome, Progress, Sweep, Trial, TrialStatus, run_trial

__all__ = ["RAY_MISSING", "Cluster", "ray_is_installed"]

RAY_MISSING = 'Ray is not installed; get it with: pip install "nasbook[sweep]"'

POLL = 0.5
"""Seconds between two looks at what the workers say."""
GRACE = 60.0
"""Seconds that interrupted trials get to end their step and write a checkpoint."""


def ray_is_installed() -> bool:
    """Whether this Python has Ray."""
    return find_spec("ray") is not None


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what a trial gets of it. An object of this class is an engine for sweeps."""

    address: str | None = None
    """Of a cluster, as ``ray.init`` takes it (``auto``, ``HOST:6379``); None makes one on this machine."""
    cpus: int | None = None
    """CPUs of the cluster on this machine; None for all."""
    cpus_per_trial: float = 1.0
    """CPUs that a trial is given; below 1, several trials share one."""
    gpus_per_trial: float = 0.0
    """GPUs that a trial is given; at 0.25 four trials share one, and must fit its memory together."""

    def __post_init__(self) -> None:
        for name, value in (("cpus_per_trial", self.cpus_per_trial), ("gpus_per_trial", self.gpus_per_trial)):
            if value < 0 or (value > 1 and value != int(value)):
                raise InvalidInput(f"{name} must be a whole number or a share below 1, got {value}.")
        if self.cpus is not None and self.cpus < 1:
            raise InvalidInput(f"cpus must be at least 1, got {self.cpus}.")
        if self.cpus is not None and self.address is not None:
            raise InvalidInput("cpus is for a cluster on this machine; the one at an address has its own number.")

    def __call__(self, sweep: Sweep, statuses: Sequence[TrialStatus], changed: Changed) -> Ended:
        """Runs trials on the cluster; see :data:`nasbook.experiments.sweeps.Engine`.

        Raises:
            InvalidInput: Ray is not installed, the cluster can't be reached, or this machine is too small for a trial.
        """
        if not statuses:
            return
        with self.joined() as ray:
            yield from _run(ray, self, sweep, statuses, changed)

    @contextlib.contextmanager
    def joined(self) -> Iterator[Any]:
        """Ray, connected within the block; a connection that was there before is taken, and stays."""
        if not ray_is_installed():
            raise InvalidInput(RAY_MISSING)
        # Both are read when Ray is imported. Nobody is told that we use it, and what runs on this machine alone
        # listens on this machine alone.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.address is None:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        if ray.is_initialized():
            yield ray
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            # Trials return a few numbers: the least that Ray's store takes is enough.
            options |= {"address": "local", "num_cpus": self.cpus, "object_store_memory": 80 * 2**20}
            options |= {"include_dashboard": False}
        else:
            options |= {"address": self.address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = "a Ray cluster on this machine" if self.address is None else f"the Ray cluster at {self.address}"
            raise InvalidInput(f"Can't start or reach {where}: {' '.join(str(error).split())[:300]}") from error
        try:
            if self.address is None:
                self.require_enough(ray.cluster_resources())
            yield ray
        finally:
            ray.shutdown()

    def require_enough(self, resources: dict[str, float]) -> None:
        """Refuses what would wait for ever on this machine; a cluster elsewhere may yet grow.

        Raises:
            InvalidInput: a trial needs more than Ray has here.
        """
        for name, needed in (("CPU", self.cpus_per_trial), ("GPU", self.gpus_per_trial)):
            if needed > resources.get(name, 0.0):
                raise InvalidInput(
                    f"A trial is to have {needed:g} {name}s, and this machine gives Ray {resources.get(name, 0.0):g}."
                )


def _run(ray: Any, cluster: Cluster, sweep: Sweep, statuses: Sequence[TrialStatus], changed: Changed) -> Ended:
    """Submits every trial, and those again whose worker died; yields each when it has ended."""
    from ray.util.queue import Queue

    news = Queue(actor_options={"num_cpus": 0, "max_restarts": -1})
    news.qsize()  # it has started: what the first trials say does not wait
    # Retried here and not by Ray, so that each attempt is counted and shown.
    task = ray.remote(max_retries=0, num_cpus=cluster.cpus_per_trial, num_gpus=cluster.gpus_per_trial)(_work)
    running: dict[Any, TrialStatus] = {}
    attempts: dict[str, int] = {}  # the number of each trial's attempt that is submitted

    def submit(status: TrialStatus) -> None:
        attempts[status.trial.name] = status.attempts + 1
        reference = task.options(name=status.trial.name).remote(
            sweep, status.trial, status.attempts + 1, news, nasbook.__version__, os.environ.get("NASBOOK_DATA")
        )
        running[reference] = status

    def read_news() -> None:
        by_name = {status.trial.name: status for status in running.values()}
        said: list[Any] = []
        with contextlib.suppress(ray.exceptions.RayError):  # its own process may die too, and with it some news
            waiting = news.qsize()
            said = news.get_nowait_batch(waiting) if waiting else []
        for name, attempt, progress in said:
            status = by_name.get(name)
            if status is None or attempt != attempts[name]:
                continue  # the last words of a worker that has died since
            if status.state != "running":
                status.begin()
            status.progress = Progress(**progress)
        changed()

    for status in statuses:
        submit(status)
    try:
        while running:
            ended, _ = ray.wait(list(running), timeout=POLL)
            read_news()
            for reference in ended:
                status = running.pop(reference)
                if status.state != "running":  # it ended before it could say that it began
                    status.begin()
                outcome = _outcome(ray, reference)
                if isinstance(outcome, Outcome):
                    yield status, outcome
                    continue
                status.pause()
                status.died += 1
                status.error = outcome
                if status.died > sweep.retries:
                    times = "" if status.died == 1 else f" {status.died} times"
                    yield status, Outcome(None, f"its worker was lost{times}: {outcome}")
                    continue
                submit(status)
                changed()
    except (KeyboardInterrupt, GeneratorExit):
        _interrupt(ray, list(running))
        raise
    finally:
        for status in running.values():
            if status.state == "running":
                status.pause()
        with contextlib.suppress(ray.exceptions.RayError):
            news.shutdown(force=True)


def _outcome(ray: Any, reference: Any) -> Outcome | str:
    """What a task returned; where its worker was lost, why."""
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the task's own, from around the trial
        text = str(error).strip()
        return Outcome(None, text.splitlines()[-1][:500], text)
    except ray.exceptions.RayError as error:  # the worker was killed, its node is gone or out of memory
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return outcome


def _interrupt(ray: Any, references: Sequence[Any]) -> None:
    """Asks the workers to stop after their step, as Ctrl-C asks this process, and gives them time to save."""
    for reference in references:
        ray.cancel(reference, force=False)
    if references:
        ray.wait(list(references), num_returns=len(references), timeout=GRACE)


def _work(sweep: Sweep, trial: Trial, attempt: int, news: Any, version: str, data_folder: str | None) -> Outcome:
    """What a worker does with a trial."""
    host = os.uname().nodename
    if nasbook.__version__ != version:
        return Outcome(None, f"{host} has nasbook {nasbook.__version__}, and this sweep is run by {version}.")
    if not sweep.status_file.exists():
        return Outcome(None, f"{host} does not see {sweep.folder}: give --out on a file system that all nodes share.")
    if data_folder is not None:
        os.environ["NASBOOK_DATA"] = data_folder

    def note(progress: Progress) -> None:
        with contextlib.suppress(Exception):  # nothing depends on it
            # Not news.put_nowait, which waits: Ray gives the CPU of a worker that waits to the next trial.
            news.actor.put_nowait.remote((trial.name, attempt, asdict(progress)))

    return run_trial(sweep, trial, note)
