"""The registry of experiments: every table and figure of the book as a function of scale and seed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nasbook.data import ImageData, load_images
from nasbook.errors import InvalidInput, unknown_name
from nasbook.experiments.records import DataSource, Measurement, Record, earlier_record, measure, save_measurement
from nasbook.experiments.scale import Scale, get_scale
from nasbook.experiments.verdicts import Verdict
from nasbook.training import Resumable, drive


@dataclass
class Workplace:
    """What an experiment is given."""

    scale: Scale
    """How large."""
    seed: int
    """Of everything random."""
    source: str
    """Name or path of the data set."""
    device: torch.device | str = "cpu"
    """Where to run."""
    folder: Path | None = None
    """Where this measurement's checkpoints are kept; None keeps none."""
    progress: bool = False
    """Whether to draw progress bars."""
    loaded: ImageData | None = None
    """The images, once an experiment has asked for them."""
    used: DataSource | None = None
    """What an experiment has read that is no image; its provenance says so."""
    on_report: Callable[[str, Resumable], None] | None = None
    """Called after every epoch with the run and its name; the run's last report says how it went."""

    @property
    def data(self) -> ImageData:
        """Images on the device, cut to the scale; loaded when first asked for."""
        if self.loaded is None:
            whole = load_images(self.source, device=self.device)
            if whole.name != self.scale.data:
                raise InvalidInput(
                    f"The scale {self.scale.name!r} is measured on {self.scale.data}, and {self.source} holds "
                    f"{whole.name}. Give another copy of {self.scale.data}, named {self.scale.data}.npz."
                )
            self.loaded = whole.take(self.scale.train_images, self.scale.test_images)
        return self.loaded

    def drive(self, run: Resumable, name: str) -> None:
        """Takes a run of this experiment to its end, going on from its checkpoint if there is one."""
        watch = self.on_report
        drive(
            run,
            checkpoint=None if self.folder is None else self.folder / f"{name}.pt",
            resume=True,
            label=f"{name} (seed {self.seed})",
            progress=self.progress,
            on_report=None if watch is None else lambda _: watch(name, run),
        )


@dataclass(frozen=True)
class Experiment:
    """One table or figure."""

    name: str
    """As ``nasbook reproduce`` takes it."""
    title: str
    """One line for a list."""
    chapter: str
    """The chapter that shows it."""
    run: Callable[[Workplace], dict[str, Any]]
    """Makes one measurement; returns plain values."""
    judges: dict[str, Callable[[Record], Verdict]] = field(default_factory=dict)
    """For each claim that the experiment checks, the verdict as a function of the record."""
    seeded: bool = True
    """False for exact computations, which one seed settles."""
    least: int = 1
    """How many seeds the experiment needs at any scale, if more than the scale asks for."""
    scaled: Callable[[Scale], Scale] = lambda scale: scale
    """Adds a chapter's own numbers to a scale."""

    def seeds(self, scale: Scale) -> int:
        """How many seeds a record needs before it is judged."""
        return max(scale.seeds, self.least) if self.seeded else 1


_EXPERIMENTS: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Adds an experiment to the registry."""
    _EXPERIMENTS[experiment.name] = experiment
    return experiment


def list_experiments() -> tuple[Experiment, ...]:
    """All experiments, in the order of the book."""
    return tuple(sorted(_EXPERIMENTS.values(), key=lambda experiment: experiment.chapter))


def get_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        InvalidInput: there is none; the message has the nearest names.
    """
    if name not in _EXPERIMENTS:
        raise unknown_name("experiment", name, _EXPERIMENTS)
    return _EXPERIMENTS[name]


def reproduce(
    name: str,
    scale: str | Scale | None = None,
    seed: int = 0,
    *,
    data: str | None = None,
    device: torch.device | str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Measurement:
    """Makes one measurement of an experiment.

    Args:
        name: from :func:`list_experiments`.
        scale: a scale or its name; None takes ``NASBOOK_SCALE``, or ``quick``.
        seed: of everything random.
        data: another source of the scale's data set (an ``.npz`` of the same content); None takes the scale's.
        device: where to run.
        folder: where the record is written, and checkpoints while it lasts; None for neither.
        resume: go on from the checkpoints of an interrupted call with the same arguments.
        progress: whether to draw progress bars.

    Raises:
        InvalidInput: unknown experiment or scale, a record in ``folder`` that does not fit, or checkpoints
            there and ``resume`` is not asked for.
        DataError: the data can't be had.
    """
    experiment = get_experiment(name)
    scale = experiment.scaled(scale if isinstance(scale, Scale) else get_scale(scale))
    checkpoints = None if folder is None else Path(folder) / "checkpoints" / f"{name}.{scale.name}.seed{seed}"
    if checkpoints is not None and checkpoints.exists() and not resume:
        raise InvalidInput(
            f"{checkpoints} holds an interrupted measurement: resume it (--resume), or delete the folder to begin anew."
        )
    if folder is not None:
        earlier_record(name, scale, folder)  # refused now rather than after the run
    measurement = measure_experiment(
        name, scale, seed, data=data, device=device, checkpoints=checkpoints, progress=progress
    )
    if folder is not None and checkpoints is not None:
        save_measurement(name, scale, measurement, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)  # the record has what they led to
    return measurement


def measure_experiment(
    name: str,
    scale: Scale,
    seed: int,
    *,
    data: str | None = None,
    device: torch.device | str = "cpu",
    checkpoints: Path | None = None,
    progress: bool = False,
    on_report: Callable[[str, Resumable], None] | None = None,
) -> Measurement:
    """One measurement, which goes on from its checkpoints and leaves them there; no record is written.

    Args:
        name: from :func:`list_experiments`.
        scale: with the experiment's own numbers, as :attr:`Experiment.scaled` adds them.
        seed: of everything random.
        data: another source of the scale's data set; None takes the scale's.
        device: where to run.
        checkpoints: this measurement's own folder; None keeps none.
        progress: whether to draw progress bars.
        on_report: called after every epoch with a run's name and the run.

    Raises:
        InvalidInput: unknown experiment.
        DataError: the data can't be had.
    """
    experiment = get_experiment(name)
    if scale.name == "quick":
        torch.set_num_threads(1)  # results depend on how many threads share a sum
    workplace = Workplace(scale, seed, data or scale.data, device, checkpoints, progress, on_report=on_report)
    return measure(lambda: experiment.run(workplace), seed, lambda: workplace.used or workplace.loaded, device)
