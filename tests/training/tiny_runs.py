"""Tiny runs of every kind, and a program that kills them: ``python tiny_runs.py KIND FOLDER``.

The program starts one process for each kill point by a fork (importing torch anew would take most of the time).
The process runs with checkpoints until it sends itself SIGKILL; another process resumes. What each one ends with
is written to FOLDER, beside what a run ends with that nobody disturbed.
"""

from __future__ import annotations

import copy
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nasbook.data import ImageData, load_images
from nasbook.genotypes import Genotype, Space, random_genotype
from nasbook.methods import darts, random_search
from nasbook.networks import DerivedNetwork
from nasbook.seeding import generator, seed_everything
from nasbook.training import Fit, FitConfig, Resumable, drive

SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
KINDS = ("first-order", "second-order", "finite-difference", "random-search", "fit")


def tiny_data() -> ImageData:
    """Digits: 96 training images, 40 test images."""
    return load_images("digits").take(96, 40)


def make_run(kind: str, data: ImageData, seed: int = 0, **changes: Any) -> Any:
    """A run of 3 steps an epoch: 3 epochs of a search or a training, 2 samples of 2 epochs of random search."""
    if kind == "random-search":
        settings = {"samples": 2, "epochs": 2, "batch_size": 16, "channels": 2, "cells": 3, **changes}
        return random_search.Search(random_search.Config(**settings), data, SPACE, seed)
    if kind == "fit":
        settings = {"epochs": 3, "batch_size": 32, "drop_path": 0.5, "cutout": 3, **changes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DerivedNetwork(random_cell(), 2, 3, data.classes, in_channels=1)
        return Fit(network, data, FitConfig(**settings), seed=seed)
    settings = {"epochs": 3, "batch_size": 16, "channels": 2, "cells": 3, "order": kind, **changes}
    settings.setdefault("architecture_learning_rate", 0.1)
    return darts.Search(darts.Config(**settings), data, SPACE, seed)


def random_cell() -> Genotype:
    return random_genotype(SPACE, generator(5, "cell"))


def ending(run: Any) -> dict[str, Any]:
    """What a run has come to: parameters, buffers, optimisers, measurements, history, genotype. Not wall times, and
    not the global generators, which each epoch begins anew."""
    state = copy.deepcopy(run.state_dict())
    for part in (state, state.get("fit", {})):
        part.pop("seconds", None)
        part.pop("random", None)
        for report in part.get("history", []):
            report.pop("seconds")
    if hasattr(run, "result"):
        state["genotype"] = run.result().genotype.to_json()
    return state


# --- the program ------------------------------------------------------------------------------------------------------


def die() -> None:
    """The end, as the kernel or a power cut would bring it: no handler, no cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, of: Any, name: str, do: Callable[..., None]) -> None:
    """Replaces a function so that ``do`` gets the arguments of call ``number``, before the function."""
    function, calls = getattr(of, name), itertools.count(1)

    def replacement(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            do(*arguments)
        return function(*arguments, **options)

    setattr(of, name, replacement)


def halve_and_die(handle: int) -> None:
    """The file is only half on the disk."""
    os.ftruncate(handle, os.fstat(handle).st_size // 2)
    die()


def move_and_die(source: Any, target: Any) -> None:
    """The file is in its place, and nothing comes after."""
    Path(source).rename(target)
    die()


KILLS: dict[str, tuple[int, Callable[[], None]]] = {
    # name: (checkpoint_steps, what to change so that the process dies). An epoch has 3 steps.
    "in the first step": (0, lambda: at_call(1, torch.optim.SGD, "step", lambda *_: die())),
    "inside an epoch": (0, lambda: at_call(5, torch.optim.SGD, "step", lambda *_: die())),
    "inside an epoch, after a checkpoint there": (2, lambda: at_call(6, torch.optim.SGD, "step", lambda *_: die())),
    "before an epoch's checkpoint": (0, lambda: at_call(2, torch, "save", lambda *_: die())),
    "first checkpoint half written": (0, lambda: at_call(1, os, "fsync", halve_and_die)),
    "second checkpoint half written": (0, lambda: at_call(2, os, "fsync", halve_and_die)),
    "checkpoint inside an epoch half written": (1, lambda: at_call(6, os, "fsync", halve_and_die)),
    "checkpoint written, not in its place": (0, lambda: at_call(2, os, "replace", lambda *_: die())),
    "just after an epoch's checkpoint": (0, lambda: at_call(2, os, "replace", move_and_die)),
    "after the last step": (3, lambda: at_call(6, os, "replace", move_and_die)),
}


def kill_points(kind: str) -> tuple[str, ...]:
    """All of them for one kind, some for the others."""
    chosen = {"first-order": slice(None), "second-order": slice(2, None, 2), "fit": slice(1, None, 2)}
    return tuple(KILLS)[chosen.get(kind, slice(0, None, 2))]


def in_a_process(work: Callable[[], None]) -> int:
    """Runs ``work`` in a fork of this process and returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        sys.exit("a process failed")
    return 0


def main(kind: str, folder: Path) -> None:
    torch.set_num_threads(1)
    data = tiny_data()
    make_run("fit", data)  # the first optimiser imports half of torch; do it before the forks

    def run_to_end(name: str, checkpoint: Path | None, steps: int = 0) -> None:
        seed_everything(len(name))  # the process' own random state must not matter
        run: Resumable = make_run(kind, data)
        drive(run, checkpoint=checkpoint, checkpoint_steps=steps, resume=True, progress=False)
        torch.save(ending(run), folder / f"{name}.ending")

    def killed(name: str, checkpoint: Path) -> None:
        steps, sabotage = KILLS[name]
        sabotage()
        run_to_end("not killed", checkpoint, steps)

    in_a_process(partial(run_to_end, "undisturbed", None))
    for name in kill_points(kind):
        checkpoint = folder / name / "checkpoint.pt"
        if in_a_process(partial(killed, name, checkpoint)) != signal.SIGKILL:
            sys.exit(f"not killed: {name}")
        in_a_process(partial(run_to_end, name, checkpoint))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
