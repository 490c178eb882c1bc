"""Tiny runs of every growth method, and a program that kills them: ``python growing_runs.py FOLDER KIND...``.

The program starts one process for each kill point by a fork. It runs with a checkpoint after every step until it sends
itself SIGKILL in the middle of a growth; another process resumes. What each one ends with is written to FOLDER, beside
what a run ends with that nobody disturbed.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nasbook.data import ImageData, load_images
from nasbook.growth import CandidateDescent, OvergrownNetwork
from nasbook.methods import GROWTH_METHODS, GrowthRun, growth
from nasbook.networks import Growable, build_growable
from nasbook.seeding import seed_everything
from nasbook.training import drive

_PROGRAM = Path(__file__).parents[1] / "training" / "tiny_runs.py"  # which kills searches and trainings
_specification = importlib.util.spec_from_file_location("tiny_runs", _PROGRAM)
assert _specification and _specification.loader
_tiny_runs = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(_tiny_runs)
in_a_process: Callable[[Callable[[], None]], int] = _tiny_runs.in_a_process

COMMON: dict[str, Any] = {"growths": 2, "epochs": 1, "batch_size": 24, "rate": 0.4, "validation_share": 0.25,
                          "cutout": 3, "scored_images": 40}

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (method, network, what else)
    "firefly": ("firefly", "perceptron", {"new_neurons": 2, "direction_epochs": 2}),
    "firefly-vgg": ("firefly", "vgg11", {"new_neurons": 1, "growths": 1}),
    "firefly-depth": ("firefly", "block-stack", {"new_neurons": 1, "new_layers": 2, "layer_neurons": 2,
                                                 "least_neurons": 1, "rate": 0.6}),
    "splitting": ("splitting", "perceptron", {}),
    "rayleigh": ("splitting", "perceptron", {"direction_epochs": 1}),
    "rayleigh-depth": ("splitting", "block-stack", {"direction_epochs": 1}),
    "net2net": ("net2net", "perceptron", {}),
    "net2net-depth": ("net2net", "block-stack", {"new_layers": 1}),
    "nash": ("nash", "perceptron", {"children": 3, "child_epochs": 1}),
    "nash-depth": ("nash", "block-stack", {"children": 2, "child_epochs": 1, "new_layers": 1}),
    "random": ("random", "perceptron", {"new_neurons": 2, "children": 2}),
    "random-vgg": ("random", "vgg11", {"new_neurons": 1, "children": 2, "growths": 1}),
}


def tiny_data() -> ImageData:
    """Digits: 96 training images, a quarter of which is for validation; 40 test images."""
    return load_images("digits").take(96, 40)


def tiny_network(name: str, data: ImageData, seed: int = 0) -> Growable:
    """A network of two to four neurons a width; with fewer, or other seeds, no image gets through."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = {"perceptron": (4, 3), "vgg11": 2, "block-stack": 4}[name]
        return build_growable(name, widths=widths, classes=data.classes, in_channels=data.channels, size=data.size)


def make_run(kind: str, data: ImageData, seed: int = 0, **changes: Any) -> GrowthRun:
    """A run of 3 steps an epoch."""
    method, network, settings = KINDS[kind]
    config = GROWTH_METHODS[method](**{**COMMON, **settings, **changes})
    return GrowthRun(tiny_network(network, data), data, config, seed=seed)


def ending(run: GrowthRun) -> dict[str, Any]:
    """What a run has come to: parameters, buffers, optimiser, measurements, history, events. Not wall times, and not
    the global generators, which each epoch begins anew."""
    state = copy.deepcopy(run.state_dict())
    for name in ("seconds", "growth_seconds", "random"):
        del state[name]
    for part in (*state["history"], *state["events"]):
        del part["seconds"]
    state["neurons"] = run.network.neurons()
    return state


# --- the program ------------------------------------------------------------------------------------------------------


def die(*_: Any) -> None:
    """The end, as the kernel or a power cut would bring it: no handler, no cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)


def halve_and_die(handle: int) -> None:
    """The file is only half on the disk."""
    os.ftruncate(handle, os.fstat(handle).st_size // 2)
    die()


def at_call(number: int, of: Any, name: str, do: Callable[..., None] = die) -> None:
    """Replaces a function so that ``do`` gets the arguments of call ``number``, before the function."""
    function, calls = getattr(of, name), itertools.count(1)

    def replacement(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            do(*arguments)
        return function(*arguments, **options)

    setattr(of, name, replacement)


KILLS: dict[str, dict[str, Callable[[], None]]] = {
    # kind: name: what to change so that the process dies. An epoch has 3 steps, and each one a checkpoint.
    "firefly": {
        "in the second epoch of step one": lambda: at_call(5, CandidateDescent, "step"),
        "in step two": lambda: at_call(1, OvergrownNetwork, "grow"),
        "after step two, not saved": lambda: at_call(2, growth, "remap_optimizer"),
        "a checkpoint of the second growth half written": lambda: at_call(18, os, "fsync", halve_and_die),
    },
    "firefly-depth": {"in the second growth": lambda: at_call(5, CandidateDescent, "step")},
    "rayleigh": {"in descent": lambda: at_call(5, torch.optim.Adam, "step")},
    "nash": {
        "in the second child": lambda: at_call(8, torch.optim.SGD, "step"),
        "in the third child of the second growth": lambda: at_call(23, torch.optim.SGD, "step"),
    },
    "net2net": {"while it grows": lambda: at_call(2, growth, "remap_optimizer")},
}


def main(folder: Path, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    data = tiny_data()
    torch.optim.SGD([torch.zeros(1)])  # the first optimiser imports half of torch; do it before the forks

    def run_to_end(kind: str, name: str, checkpoint: Path | None) -> None:
        seed_everything(len(name))  # the process' own random state must not matter
        run = make_run(kind, data)
        drive(run, checkpoint=checkpoint, checkpoint_steps=1, resume=True, progress=False)
        torch.save(ending(run), folder / f"{kind}.{name}.ending")

    def killed(kind: str, name: str, checkpoint: Path) -> None:
        KILLS[kind][name]()
        run_to_end(kind, "not killed", checkpoint)

    for kind in kinds:
        in_a_process(partial(run_to_end, kind, "undisturbed", None))
        for name in KILLS[kind]:
            checkpoint = folder / f"{kind}.{name}" / "checkpoint.pt"
            if in_a_process(partial(killed, kind, name, checkpoint)) != signal.SIGKILL:
                sys.exit(f"not killed: {kind}, {name}")
            in_a_process(partial(run_to_end, kind, name, checkpoint))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
