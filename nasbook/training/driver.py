"""Driving a run: progress, checkpoints and interruption, the same for the command line and for experiments."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nasbook import processes
from nasbook.errors import InvalidInput
from nasbook.training.run import Resumable


def drive(
    run: Resumable,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_steps: int = 0,
    label: str = "",
    progress: bool = True,
    on_report: Callable[[Any], None] | None = None,
) -> None:
    """Takes a run to its end.

    Writes a checkpoint after every epoch. Ctrl-C ends the step that is running, writes a checkpoint and
    then raises; a second Ctrl-C raises at once. A kill loses the current epoch at most (``checkpoint_steps``
    shortens that), and never the checkpoint.

    Where several processes share the run, each calls this. The first one shows the progress and writes; Ctrl-C in any
    of them ends the same step in all.

    Args:
        run: a search or a training.
        checkpoint: where its state is kept; None keeps none.
        resume: go on from ``checkpoint`` if it is there.
        checkpoint_steps: also write a checkpoint every so many steps; 0 for epochs only.
        label: what the progress bar is called.
        progress: whether there is one; it is written to standard error.
        on_report: called with every epoch's report, in every process.

    Raises:
        KeyboardInterrupt: after the checkpoint is written.
        TrainingDiverged: a loss is not finite; the checkpoint is then the last good one.
        InvalidInput: ``checkpoint_steps`` is negative.
        CheckpointError: ``resume`` and the checkpoint is damaged or of another run.
    """
    if checkpoint_steps < 0:
        raise InvalidInput(f"checkpoint_steps must be at least 0, got {checkpoint_steps}.")
    if checkpoint is not None and resume and Path(checkpoint).exists():
        run.load(checkpoint)
    total = run.total_epochs * run.steps_per_epoch
    progress = processes.any_process(progress)  # reading the means may raise: in all processes, or in none
    with (
        _first_interrupt_stops(run) as interrupted,
        tqdm(
            total=total,
            initial=run.epoch * run.steps_per_epoch + run.step,
            desc=label,
            unit="step",
            file=sys.stderr,
            disable=not (progress and processes.is_first()),
            dynamic_ncols=True,
        ) as bar,
    ):

        def after_step(_: Resumable) -> None:
            bar.update()
            if progress and run.step % 10 == 0:  # reading the means waits for the device: not every step
                bar.set_postfix(_postfix(run.epoch + 1, run.total_epochs, run.means()))
            if checkpoint is not None and checkpoint_steps and run.step % checkpoint_steps == 0:
                run.means()  # a diverged run must not overwrite a good checkpoint
                run.check_finite()
                run.save(checkpoint)

        run.on_step = after_step
        try:
            for report in run.epochs():
                # An epoch may have had fewer steps than it could: the bar ends where the run does.
                bar.total = bar.n + (run.total_epochs - run.epoch) * run.steps_per_epoch
                if checkpoint is not None:
                    run.save(checkpoint)
                if on_report is not None:
                    on_report(report)
        finally:
            run.on_step = None
        if processes.any_process(interrupted()):
            if checkpoint is not None:
                run.save(checkpoint)
            raise KeyboardInterrupt


@contextmanager
def _first_interrupt_stops(run: Resumable) -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT stops the run after its step; the second one raises."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda: False
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        run.stop()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, previous)


def _postfix(epoch: int, epochs: int, means: dict[str, float]) -> dict[str, str]:
    shown = {"epoch": f"{epoch}/{epochs}"}
    for name, value in means.items():
        if name in ("train_loss", "train_accuracy", "architecture_loss"):
            shown[name.replace("_", " ")] = f"{value:.3f}"
    return shown
