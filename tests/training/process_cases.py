"""What several processes do with searches and trainings; see ``tests/worlds.py``."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasbook import processes
from nasbook.data import SeriesData, load_series, load_text, loaders
from nasbook.genotypes import Space
from nasbook.methods import (
    darts,
    entrannas,
    entrannas_dst,
    growing,
    growing_recurrent,
    milenas,
    pc_darts,
    pr_darts,
    stretchable,
)
from nasbook.networks import DerivedNetwork, TorchRecurrentNetwork
from nasbook.supernets import OperatorRules
from nasbook.training import Fit, FitConfig, drive, evaluate, evaluate_sequences

specification = importlib.util.spec_from_file_location("tiny_runs", Path(__file__).with_name("tiny_runs.py"))
assert specification and specification.loader
tiny = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tiny)

DATA = tiny.tiny_data()
FORMS = ("first-order", "second-order", "finite-difference")
GROWN = ("growing, convolutional", "growing-recurrent, series", "growing-recurrent, text")
KINDS = (
    *FORMS, *(f"milenas, {form}" for form in FORMS), "stretchable", "pc-darts", "entrannas", "entrannas-dst", "fit",
    *GROWN,
)
POOLS = Space(("skip_connect", pr_darts.INITIAL_SPACE.operations[-1]), nodes=1)
SPACE = Space(("skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=1)  # each batch norm costs two messages a pass
GROWING_SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=1)
SPLITTING = OperatorRules(strategy="splitting", most_candidates=6)
COPYING = OperatorRules(strategy="small-weight", grow_above=0.2, most_candidates=6, exchange="replace")


def make_run(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A run in double precision, of three steps an epoch."""
    kind, _, form = kind.partition(", ")
    if kind == "fit":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DerivedNetwork(tiny.random_cell(), 2, 3, DATA.classes, in_channels=1).double()
        settings = {"epochs": 2, "batch_size": 32, "drop_path": 0.6, "cutout": 3, "label_smoothing": 0.1, **changes}
        run: Any = Fit(network, DATA, FitConfig(**settings), seed=seed)
    elif kind.startswith("growing"):
        run = make_growing_run(kind, form, seed, **changes)
    else:
        settings = {"epochs": 2, "batch_size": 16, "channels": 2, "cells": 3, "architecture_learning_rate": 0.1}
        more: dict[str, Any]
        method, more = {
            "milenas": (milenas, {"order": form}),
            "stretchable": (stretchable, {"train_share": 1 / 3, "topology_share": 1 / 3}),
            "pc-darts": (pc_darts, {"order": "first-order", "channels": 4, "partition": 2, "frozen_share": 0.0}),
            "entrannas": (entrannas, {"bottleneck": 1, "recompute_cells": 1}),
            "entrannas-dst": (entrannas_dst, {"channels": 4, "bottleneck": 2, "temperature": 0.05}),
            "pr-darts": (pr_darts, {"cycle_epochs": (1, 1), "grace_epochs": (0, 0), "morphisms": (2, 0),
                                    "candidates": (3, 1), "memory_budget": None}),
        }.get(kind, (darts, {"order": kind}))

        class Search(method.Search):  # type: ignore[name-defined]
            def build_network(self) -> nn.Module:
                return super().build_network().double()

        settings = {**settings, **more, **changes}
        if method is pr_darts:
            del settings["epochs"]
        run = Search(method.Config(**settings), DATA, POOLS if method is pr_darts else SPACE, seed)
    return run


def make_growing_run(kind: str, form: str, seed: int, **changes: Any) -> Any:
    """A search in double precision whose cell gets a second node, of two or three steps an epoch.

    The series' operations are split, those on text are copied and replaced.
    """
    method = {"growing": growing, "growing-recurrent": growing_recurrent}[kind]

    class Search(method.Search):  # type: ignore[name-defined]
        def build_network(self, spaces: dict[str, Space]) -> nn.Module:
            return super().build_network(spaces).double()

    changes.pop("epochs", None)  # as many as the plan has
    settings: dict[str, Any] = {"stages": 2, "stage_epochs": 1, "tune_epochs": 1, "architecture_learning_rate": 0.1}
    if method is growing:
        settings |= {"batch_size": 16, "channels": 2, "cells": 3, **changes}
        return Search(method.Config(**settings), DATA, GROWING_SPACE, seed)
    data: Any
    if form == "series":
        data = load_series("simulated-brics", window=3).take(20, 13, 5)
        settings |= {"mode": "prune-at-end", "stage_epochs": 4, "patience": 1, "order": "second-order",
                     "operators": SPLITTING}
    else:
        data = load_text("grammar", window=4).take(20, 13, 5)
        settings |= {"stage_epochs": 2, "backbone": "darts", "layers": 2, "operators": COPYING}
    settings |= {"nodes": 1, "hidden": 2, "batch_size": 10, "learning_rate": 0.05, **changes}
    return Search(method.Config(**settings), data, seed=seed)


def in_double() -> None:
    """Batches in double precision, so that only rounding in the 16th digit differs."""
    single, examples = loaders._normalized, SeriesData.examples
    loaders._normalized = lambda *arguments: single(*arguments).double()
    SeriesData.examples = lambda *arguments: tuple(part.double() for part in examples(*arguments))


def ending(run: Any) -> dict[str, Any]:
    """What a run has come to; the validation losses by which a cell grew stand apart from its networks."""
    state = tiny.ending(run)
    if "measured" in state:
        state["measured"] = state["measured"].nan_to_num(-1)  # tuning has no architecture loss
    kept = [name for name in ("best", "best_of_phase") if state.get(name)]
    return {**state, **({"losses": [state[name].pop("loss") for name in kept]} if kept else {})}


def run_to_end(kind: str, epochs: int = 1, **changes: Any) -> dict[str, Any]:
    in_double()
    torch.manual_seed(processes.rank())  # the process' own random state must not matter
    run = make_run(kind, epochs=epochs, **changes)
    made = len(list(run.epochs()))
    assert run.finished if kind.startswith("growing") else made == run.total_epochs
    return ending(run)


# --- stopped, killed, resumed -----------------------------------------------------------------------------------------


def driven(kind: str, checkpoint: str, sabotage: Callable[[Any, int], None] | None = None, **changes: Any) -> Any:
    """Drives a run with checkpoints; ``sabotage`` gets the run and the step's number before each step."""
    in_double()
    run = make_run(kind, **changes)
    if sabotage is not None:
        step = run.run_step

        def run_step(index: int) -> Any:
            sabotage(run, index)
            return step(index)

        run.run_step = run_step
    try:
        drive(run, checkpoint=checkpoint, resume=True, progress=False)
    except KeyboardInterrupt:
        return "interrupted", run.epoch, run.step
    return ending(run)


def interrupt_second(_: Any, index: int) -> None:
    """Ctrl-C that only one of the processes gets."""
    if index == 4 and processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGINT)


def kill_second(_: Any, index: int) -> None:
    if index == 4 and processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def spoil_second(run: Any, index: int) -> None:
    """NaN in one part of one batch."""
    if index == 4 and processes.rank() == 1:
        batch = run.loader.batch
        run.loader.batch = lambda number: (batch(number)[0] * float("nan"), batch(number)[1])


def driven_in_single(kind: str, checkpoint: str, **changes: Any) -> Any:
    run = tiny.make_run(kind, DATA, epochs=2, **changes)
    try:
        drive(run, checkpoint=checkpoint, resume=True, progress=False)
    except KeyboardInterrupt:
        return "interrupted", run.epoch, run.step
    return tiny.ending(run)


# --- the rest ---------------------------------------------------------------------------------------------------------


def evaluated(images: int) -> tuple[float, float]:
    torch.manual_seed(0)
    network = DerivedNetwork(tiny.random_cell(), 2, 3, DATA.classes, in_channels=1)
    return evaluate(network, DATA.train_images[:images], DATA.train_labels[:images], DATA, batch_size=7)


def evaluated_text(examples: int) -> tuple[float, float]:
    torch.manual_seed(0)
    text = load_text("grammar", window=4).take(validation=examples)
    return evaluate_sequences(TorchRecurrentNetwork("gru", text, 3), text, batch_size=7)


def with_own_seeds(kind: str) -> None:
    list(make_run(kind, seed=processes.rank()).epochs())


def with_own_weights() -> None:
    torch.manual_seed(processes.rank())
    network = DerivedNetwork(tiny.random_cell(), 2, 3, DATA.classes, in_channels=1)
    list(Fit(network, DATA, FitConfig(epochs=1)).epochs())


def messages() -> dict[str, Any]:
    """The functions of nasbook.processes, one by one."""
    rank = processes.rank()
    tensors = [torch.full((2, 3), float(rank)), torch.tensor(rank + 1.0).double(), torch.tensor([10.0 * rank])]
    last = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) + rank
    folder = Path("order")
    with processes.first_ahead():
        folder.mkdir(exist_ok=processes.rank() > 0)
        ahead = sorted(path.name for path in folder.iterdir())
        (folder / str(rank)).touch()
    wrote: list[int] = []
    processes.in_first(lambda: wrote.append(rank))
    return {
        "who": (rank, processes.count(), processes.is_first(), str(processes.device_of_run())),
        "mean": processes.mean(tensors),
        "total": processes.total(tensors),
        "last": processes.mean([last])[0],
        "inputs": tensors,
        "part": processes.own_part(torch.arange(6)),
        "any": [processes.any_process(flag) for flag in (False, rank == 1, True)],
        "ahead": ahead,
        "wrote": wrote,
    }


def fail_to_write() -> None:
    processes.in_first(lambda: Path("not there/file").touch())


def join_again() -> None:
    with processes.joined(torch.device("cpu")):
        pass


GROWING = {"memory_budget": 1.0, "batch_size": 4, "batch_multiple": 4, "largest_batch": 16}

CASES: dict[str, tuple[int, Callable[[], Any]]] = {
    **{f"{kind}, {n}": (n, partial(run_to_end, kind)) for kind in KINDS for n in (1, 2)},
    **{f"pr-darts, {n}": (n, partial(run_to_end, "pr-darts")) for n in (1, 2)},
    "pr-darts, by parts": (2, partial(run_to_end, "pr-darts", normalize_by="part")),
    "pr-darts, growing": (2, partial(run_to_end, "pr-darts", **GROWING)),
    "pr-darts, interrupted": (2, partial(driven, "pr-darts", "pools.pt", interrupt_second, **GROWING)),
    "pr-darts, resumed": (2, partial(driven, "pr-darts", "pools.pt", **GROWING)),
    "pr-darts, odd steps": (2, partial(make_run, "pr-darts", **{**GROWING, "batch_multiple": 3})),
    "fit, 4": (4, partial(run_to_end, "fit")),
    "first-order, by parts": (2, partial(run_to_end, "first-order", normalize_by="part")),
    "fit, by parts": (2, partial(run_to_end, "fit", epochs=2, normalize_by="part")),
    "random-search": (2, partial(driven_in_single, "random-search", "random.pt")),
    **{
        f"{kind}, {name}": (n, partial(driven, kind, f"{kind} {checkpoint}", sabotage))
        for kind in ("first-order", "fit")
        for name, n, checkpoint, sabotage in (
            ("undisturbed", 2, "undisturbed.pt", None),
            ("interrupted", 2, "interrupted.pt", interrupt_second),
            ("after the interrupt", 2, "interrupted.pt", None),
            ("killed", 2, "killed.pt", kill_second),
            ("after the kill, alone", 1, "killed.pt", None),
        )
    },
    **{
        f"growing, {name}": (n, partial(driven, "growing, convolutional", f"growing {checkpoint}", sabotage, **changes))
        for name, n, checkpoint, sabotage, changes in (
            ("interrupted", 2, "interrupted.pt", interrupt_second, {}),
            ("after the interrupt", 2, "interrupted.pt", None, {}),
            ("killed", 2, "killed.pt", kill_second, {}),
            ("after the kill, alone", 1, "killed.pt", None, {}),
            ("by parts", 2, "parts.pt", None, {"normalize_by": "part"}),
            ("parts, alone", 1, "parts.pt", None, {"normalize_by": "part"}),
        )
    },
    "growing, odd batch": (2, partial(make_run, "growing, convolutional", batch_size=15)),
    "growing-recurrent, odd batch": (2, partial(make_run, "growing-recurrent, text", batch_size=15)),
    "parts, interrupted": (2, partial(driven, "fit", "parts.pt", interrupt_second, normalize_by="part")),
    "parts, alone": (1, partial(driven, "fit", "parts.pt", normalize_by="part")),
    "parts, resumed": (2, partial(driven, "fit", "parts.pt", normalize_by="part")),
    "diverged": (2, partial(driven, "fit", "diverged.pt", spoil_second, normalize_by="part")),
    **{f"evaluated, {images}, {n}": (n, partial(evaluated, images)) for images in (41, 1) for n in (1, 2, 3)},
    **{f"evaluated, text, {size}, {n}": (n, partial(evaluated_text, size)) for size in (41, 1) for n in (1, 2, 3)},
    "other seeds": (2, partial(with_own_seeds, "first-order")),
    "other weights": (2, with_own_weights),
    "odd batch": (2, partial(make_run, "fit", batch_size=33)),
    "compiled": (2, partial(make_run, "fit", compile=True)),
    "messages": (2, messages),
    "fail to write": (2, fail_to_write),
    "join again": (2, join_again),
    "rows": (2, partial(processes.own_part, torch.arange(5))),
}
