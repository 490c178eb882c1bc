"""Runs cases in several processes that work together: ``python worlds.py CASES FOLDER``.

CASES is a file with a dictionary ``CASES``: name → (number of processes, function). Each process is a fork of this one
(importing torch anew would take most of the time) and joins the others through Gloo, as if torchrun had started it.
What the function returns in each process, or the error that it raises, is written to FOLDER, for :func:`outcomes`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

PATIENCE = 100
"""Seconds after which a process that hangs is ended."""


class Outcome(NamedTuple):
    """How a case ended in one process."""

    value: Any
    """What its function returned."""
    error: tuple[str, str] | None
    """Type and message of what it raised."""
    signal: int
    """The signal that ended it, 0 for none."""


def outcomes(cases: Path, folder: Path) -> dict[str, list[Outcome]]:
    """Runs the program: what each process of each case ended with."""
    arguments = [sys.executable, str(Path(__file__)), str(cases), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(folder / "outcomes", weights_only=False)
    return {name: [Outcome(*parts) for parts in ends] for name, ends in found.items()}


# --- the program ------------------------------------------------------------------------------------------------------


def load(file: Path) -> ModuleType:
    """A Python file as a module."""
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def in_a_process(number: int, together: int, meeting: str, work: Callable[[], Any], result: Path) -> int:
    """Starts a process and returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(PATIENCE)
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(together))
        from nasbook.processes import joined

        value = error = None
        try:
            with joined(torch.device("cpu"), meeting):
                value = work()
        except BaseException as raised:
            error = type(raised).__name__, str(raised)
        torch.save((value, error), result)
        os._exit(0)
    except BaseException as raised:
        print(raised, file=sys.stderr)
        os._exit(1)


def run(together: int, work: Callable[[], Any]) -> list[Outcome]:
    """Runs one case."""
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / str(number) for number in range(together)]
        meeting = f"file://{folder}/meeting"
        children = [in_a_process(number, together, meeting, work, result) for number, result in enumerate(results)]
        found = []
        for child, result in zip(children, results, strict=True):
            _, status = os.waitpid(child, 0)
            value, error = torch.load(result, weights_only=False) if result.exists() else (None, None)
            found.append(Outcome(value, error, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))
        return found


def main(cases: Path, folder: Path) -> None:
    load(Path(__file__).with_name("conftest.py"))  # shapes are checked, and other machines out of reach
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports half of torch
    os.chdir(folder)
    found = {name: [tuple(end) for end in run(*case)] for name, case in load(cases).CASES.items()}
    torch.save(found, folder / "outcomes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
