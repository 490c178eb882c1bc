"""``nasbook sweep``: many trials side by side, and their table."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nasbook.cli.options import SweepOptions, Usage, parse
from nasbook.cli.runs import interrupted_if
from nasbook.errors import unknown_name

if TYPE_CHECKING:
    from nasbook.experiments import Engine, Sweep, TrialStatus


def sweep(arguments: list[str]) -> None:
    """Runs methods and experiments at scales with seeds, and lists what failed."""
    title = "Run every method and experiment at every scale with every seed; each result becomes a record."
    options = parse(SweepOptions, SweepOptions(), "nasbook sweep", title, arguments)

    from nasbook.experiments import (
        METHOD_PREFIX,
        SEARCH_CONFIGS,
        Sweep,
        TrialsFailed,
        get_scale,
        plan_trials,
        run_sweep,
    )

    methods = _words(options.methods)
    for method in methods:
        if method not in SEARCH_CONFIGS:
            raise unknown_name("method", method, SEARCH_CONFIGS)
    names = [*(METHOD_PREFIX + method for method in methods), *_words(options.experiments)]
    if not names:
        raise Usage("nasbook sweep needs --methods or --experiments. See nasbook sweep --help.")
    scales = [get_scale(name) for name in _words(options.scales)]
    trials = plan_trials(names, scales, read_seeds(options.seeds))
    sets = sorted({trial.scale.data for trial in trials})
    if options.data and len(sets) > 1:
        raise Usage(f"--data is another source of one data set, and these scales are measured on {', '.join(sets)}.")
    engine, device = _engine(options)
    plan = Sweep(
        trials,
        options.out,
        options.data or None,
        device,
        max(1, int(options.cpus_per_trial)),
        options.retries,
    )
    # On another machine the data may be elsewhere; here all trials find what one has downloaded.
    if methods and not options.address:
        _require_images(plan)
    table = Table(sys.stderr, quiet=options.quiet)
    # Ray prints warnings of its own; standard output is for the results.
    with interrupted_if(plan.status_file.exists), contextlib.redirect_stdout(sys.stderr), table:
        statuses = run_sweep(plan, engine, resume=options.resume, watch=table.show)
    for line in rows_of(statuses):
        print(line)
    print(f"records: {plan.records} (nasbook records --folder {shlex.quote(str(plan.records))})")
    failed = [status for status in statuses if status.state == "failed"]
    if failed:
        for status in failed:
            print(f"failed: {status.trial.name}: {status.error}")
        again = shlex.join(["nasbook", "sweep", *arguments, *([] if options.resume else ["--resume"])])
        raise TrialsFailed(
            f"{len(failed)} of {len(statuses)} trials failed; {plan.status_file} lists them. To run them again: {again}"
        )


def _words(values: Sequence[str]) -> list[str]:
    """``a b`` and ``a,b`` alike."""
    return [word for value in values for word in value.split(",") if word]


def read_seeds(values: Sequence[str]) -> list[int]:
    """Seeds from numbers and ranges that include both ends: ``0-2 7`` is 0, 1, 2, 7.

    Raises:
        Usage: something is neither, or a range goes down.
    """
    seeds: list[int] = []
    for word in _words(values):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise Usage(f"--seeds takes numbers and ranges such as 0-9, got {word!r}.")
        seeds.extend(range(first, last + 1))
    return seeds


def _engine(options: SweepOptions) -> tuple[Engine, str]:
    """Who runs the trials, and the device that each finds.

    Raises:
        Usage: options that contradict each other.
        InvalidInput: Ray is asked for and not installed, or the device is not here.
    """
    from nasbook.environment import resolve_device
    from nasbook.errors import InvalidInput
    from nasbook.experiments import RAY_MISSING, Cluster, ray_is_installed, run_in_turn

    wanted = options.engine == "ray" or bool(options.address) or options.cpus is not None
    if options.engine == "in-turn" and wanted:
        raise Usage("--address and --cpus are for Ray; leave them out, or take --engine ray.")
    if options.engine != "in-turn" and not ray_is_installed():
        if wanted:
            raise InvalidInput(f"{RAY_MISSING}.")
        print(f"nasbook: {RAY_MISSING}. Running one trial after another instead.", file=sys.stderr)
    if options.engine == "in-turn" or not ray_is_installed():
        return run_in_turn, str(resolve_device(options.device))
    if options.device not in ("auto", "cpu", "cuda"):
        raise Usage(f"Ray chooses the GPU of a trial: --device is auto, cpu or cuda, got {options.device!r}.")
    gpus = options.gpus_per_trial
    if gpus is None:
        on_gpu = options.device == "cuda" or (options.device == "auto" and resolve_device("auto").type == "cuda")
        gpus = float(on_gpu)
    if (options.device == "cuda" and not gpus) or (options.device == "cpu" and gpus):
        raise Usage(f"--device {options.device} and --gpus-per-trial {gpus:g} contradict each other.")
    cluster = Cluster(options.address or None, options.cpus, options.cpus_per_trial, gpus)
    return cluster, "cuda" if gpus else "cpu"


def _require_images(plan: Sweep) -> None:
    """Has the images on the disk before many workers ask for them at once.

    Raises:
        DataError: they can't be had.
    """
    from nasbook.data import load_images

    for source in {plan.data or trial.scale.data for trial in plan.trials}:
        load_images(source)


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = ("experiment", "scale", "seed", "state", "part", "epoch", "accuracy", "seconds", "attempts")
NUMBERS = ("seed", "epoch", "accuracy", "seconds", "attempts")
"""Columns whose values stand on the right."""


def cells_of(status: TrialStatus) -> tuple[str, ...]:
    """A trial's row. The accuracy is on validation images while it runs, and on test images when it is done."""
    from nasbook.experiments import METHOD_PREFIX

    progress = status.progress if status.state == "running" else None
    accuracy = status.accuracy if progress is None else progress.accuracy
    return (
        status.trial.experiment.removeprefix(METHOD_PREFIX),
        status.trial.scale.name,
        str(status.trial.seed),
        status.state,
        progress.run if progress else "",
        f"{progress.epoch}/{progress.epochs}" if progress and progress.epochs else "",
        "" if accuracy is None else f"{accuracy:.2%}",
        f"{status.seconds:.0f}" if status.attempts else "",
        str(status.attempts),
    )


def rows_of(statuses: Sequence[TrialStatus]) -> list[str]:
    """The header and one line a trial."""
    widths = _widths(statuses)
    return [_line(COLUMNS, widths), *(_line(cells_of(status), widths) for status in statuses)]


def _widths(statuses: Sequence[TrialStatus]) -> list[int]:
    rows = [COLUMNS, *map(cells_of, statuses)]
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if name in NUMBERS else cell.ljust(width)
        for name, cell, width in zip(COLUMNS, cells, widths, strict=True)
    )
    return "  ".join(aligned).rstrip()


class Table:
    """The progress of a sweep. On a terminal a table that is drawn again and again; elsewhere a line for each change.

    Args:
        stream: the text stream that it is written to.
        quiet: not at all.
    """

    LEAST = 0.2
    """Seconds between two drawings."""
    EVERY = 60.0
    """Seconds after which a log is told how far a trial is."""

    def __init__(self, stream: Any, *, quiet: bool = False) -> None:
        self.stream = stream
        self.quiet = quiet
        self.live = stream.isatty()
        self._drawn = 0  # lines of the table that stands on the terminal
        self._drawn_at = -self.LEAST
        self._widths: list[int] = []
        self._said: dict[str, tuple[str, int, float]] = {}  # state, attempts and time of each trial's last line

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def show(self, statuses: Sequence[TrialStatus]) -> None:
        """Says what has changed."""
        if self.quiet:
            return
        (self._draw if self.live else self._log)(statuses)

    def _draw(self, statuses: Sequence[TrialStatus]) -> None:
        now = time.monotonic()
        if now - self._drawn_at < self.LEAST:
            return
        self._drawn_at = now
        size = shutil.get_terminal_size()
        shown = _shown(statuses, max(1, size.lines - 3))
        lines = [*rows_of(shown), _summary(statuses)]
        self._erase()
        self.stream.write("".join(f"{line[: size.columns - 1]}\n" for line in lines))
        self.stream.flush()
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}A\x1b[J")  # up, and clear to the end
            self.stream.flush()
            self._drawn = 0

    def _log(self, statuses: Sequence[TrialStatus]) -> None:
        now = time.monotonic()
        if not self._widths:
            longest = ("", "", "", "running", "x" * 12, "000/000", "accuracy", "000000", "attempts")
            self._widths = [max(pair) for pair in zip(_widths(statuses), map(len, longest), strict=True)]
            print(_line(COLUMNS, self._widths), file=self.stream)
        for status in statuses:
            state, attempts, at = self._said.get(status.trial.name, ("waiting", status.attempts, now))
            further = status.state == "running" and now - at >= self.EVERY
            if (status.state, status.attempts) != (state, attempts) or further:
                self._said[status.trial.name] = (status.state, status.attempts, now)
                why = f"  {status.error}" if status.error and status.state != "running" else ""
                print(_line(cells_of(status), self._widths) + why, file=self.stream, flush=True)
            else:
                self._said.setdefault(status.trial.name, (state, attempts, at))


def _shown(statuses: Sequence[TrialStatus], most: int) -> list[TrialStatus]:
    """As many trials as there is room for, in their order: the running ones first, those that wait last."""
    importance = ("running", "failed", "done", "waiting")
    chosen = sorted(statuses, key=lambda status: importance.index(status.state))[:most]
    return [status for status in statuses if any(status is one for one in chosen)]


def _summary(statuses: Sequence[TrialStatus]) -> str:
    counts = Counter(status.state for status in statuses)
    parts = ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "running", "waiting") if counts[state])
    return f"{len(statuses)} trials: {parts}"
