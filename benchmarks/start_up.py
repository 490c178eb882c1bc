"""How long one waits for nasbook: its import, its help, and the first step of a search, each in a fresh process.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --device cuda

Rows have ``work`` and the wall time of the whole process: "python" does nothing, those with "import" import,
"nasbook --help" prints the help, and "first step" makes one step of DARTS' search at scale quick. ``import nasbook``
loads no torch, ``import nasbook.methods`` all that a search needs. Files are in the system's cache, after one run that
warms up. ``over_python`` is what the work takes above an empty process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import _measure as measure
import torch
import tyro

FIRST_STEP = """
import sys
from nasbook.data import load_images
from nasbook.experiments import SCALES
from nasbook.methods import darts
import torch
torch.set_num_threads(int(sys.argv[2]))
scale = SCALES["quick"]
config = darts.Config(
    batch_size=scale.search_batch, channels=scale.search_channels, cells=scale.search_cells, order=scale.order
)
search = darts.Search(config, load_images("digits").to(sys.argv[1]), scale.space)
search.begin_epoch()
loss, *_ = search.run_step(0)
float(loss)  # waits for the device
"""

WORK = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import nasbook": ["-c", "import nasbook"],
    "import nasbook.methods": ["-c", "import nasbook.methods"],
    "nasbook --help": ["-m", "nasbook", "--help"],
    "first step": ["-c", FIRST_STEP],
}
"""Arguments of the interpreter."""


@dataclass(frozen=True)
class Options(measure.Options):
    """What to measure."""

    rounds: int = 7
    """How many times each process is timed, after one time that warms up."""


def process(arguments: list[str], device: torch.device, threads: int) -> Callable[[], None]:
    """A contestant that starts the interpreter, waits for it, and fails if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(measure.ROOT), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *arguments, str(device), str(threads)]
    if "-m" in arguments:  # the command line would take the device for an argument
        command = [sys.executable, *arguments]

    def run() -> None:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

    return run


def measure_start_up(options: Options, device: torch.device) -> list[measure.Row]:
    """A row for each kind of work."""
    runs = {work: process(arguments, device, options.threads) for work, arguments in WORK.items()}
    rows = [
        {"work": work, **measure.summary(values)}
        for work, values in measure.interleave(runs, options.rounds).items()
    ]
    for row in rows:
        row["over_python"] = row["seconds"] - rows[0]["seconds"]
    return rows


COLUMNS = {
    "work": "work",
    "seconds": "ms",
    "seconds_low": "quartiles ms",
    "seconds_high": "ms",
    "over_python": "over python ms",
}


def main(options: Options) -> None:
    device = options.prepare()
    measure.finish(options, "start_up", "", "fresh processes", [(COLUMNS, measure_start_up(options, device))])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
