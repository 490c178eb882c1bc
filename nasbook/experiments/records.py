"""Records: what an experiment found, and everything needed to find it again.

One JSON file an experiment and scale, one measurement a seed. Claims are judged from records only.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import nasbook
from nasbook.errors import InvalidInput
from nasbook.experiments.scale import Scale
from nasbook.files import whole_file

FORMAT = "nasbook.record"
VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """How a measurement was made."""

    nasbook: str
    """Version of the package."""
    commit: str
    """Commit of the repository; empty outside one; ends in ``+`` when files differ from it."""
    torch: str
    """Version of torch."""
    python: str
    """Version of Python."""
    hardware: str
    """The accelerator's name, or the processor's."""
    threads: int
    """CPU threads that torch used."""
    seconds: float
    """Wall time of the call that finished the measurement; what came before a resume is not in it."""
    peak_memory: int
    """Bytes: the most that was allocated on CUDA, or the process' largest resident size."""
    data: str
    """Name of the data set; empty if none was used."""
    data_source: str
    """Where the data came from: ``scikit-learn``, ``torchvision`` or ``npz:FILE``."""
    data_checksum: str
    """SHA-256 of the images and labels, whichever way they came."""


class Named(Protocol):
    """What a measurement's provenance says of its data: images, or :class:`DataSource`."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def source(self) -> str:
        """Where it came from."""

    @property
    def checksum(self) -> str:
        """SHA-256 of its values."""


@dataclass(frozen=True)
class DataSource:
    """Data that are no images, or several sets in one."""

    name: str
    """Name of the data set."""
    source: str
    """Where it came from."""
    checksum: str
    """SHA-256 of its values."""


@dataclass(frozen=True)
class Measurement:
    """What one seed gave."""

    seed: int
    """Seed of everything random in the measurement."""
    values: dict[str, Any]
    """Plain numbers, strings and lists; the experiment's docstring says which."""
    provenance: Provenance
    """How it was made."""


@dataclass(frozen=True)
class Record:
    """All measurements of one experiment at one scale."""

    experiment: str
    """Name of the experiment."""
    scale: dict[str, Any]
    """The numbers of the scale, as they were."""
    measurements: tuple[Measurement, ...]
    """One a seed, in order of seeds."""

    @property
    def filename(self) -> str:
        """The record's file name: experiment, scale, ``.json``."""
        return f"{self.experiment}.{self.scale['name']}.json"

    def values(self, name: str) -> list[Any]:
        """One value of every seed, in order."""
        return [measurement.values[name] for measurement in self.measurements]


def measure(
    run: Callable[[], dict[str, Any]],
    seed: int,
    used_data: Callable[[], Named | None],
    device: torch.device | str,
) -> Measurement:
    """Calls an experiment for one seed and notes how it was done; ``used_data`` is asked afterwards."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    commit = _commit()  # before the run: the repository may move on while it lasts
    start = time.perf_counter()
    values = run()
    seconds = time.perf_counter() - start
    data = used_data()
    if cuda:
        memory, hardware = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        memory, hardware = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, _processor()
    provenance = Provenance(
        nasbook=nasbook.__version__,
        commit=commit,
        torch=torch.__version__,
        python=platform.python_version(),
        hardware=hardware,
        threads=torch.get_num_threads(),
        seconds=round(seconds, 1),
        peak_memory=memory,
        data=data.name if data else "",
        data_source=data.source if data else "",
        data_checksum=data.checksum if data else "",
    )
    return Measurement(seed, _plain(values), provenance)


def records_folder() -> Path:
    """Where the committed records are: ``book/records`` in the repository, or their copy in the installed package."""
    package = Path(__file__).parent
    repository = package.parents[1] / "book" / "records"
    return repository if repository.is_dir() else package / "records"


def save_measurement(experiment: str, scale: Scale, measurement: Measurement, folder: str | os.PathLike[str]) -> Path:
    """Adds a measurement to its record, in place of an earlier one of the same seed, and returns the file.

    Raises:
        InvalidInput: the record there is damaged, or was made with other numbers of the scale or other data;
            it is left as it is.
    """
    record = Record(experiment, _plain(asdict(scale)), (measurement,))
    path = Path(folder) / record.filename
    earlier = earlier_record(experiment, scale, folder)
    if earlier is not None:
        data = {m.provenance.data_checksum for m in earlier.measurements}
        if data != {measurement.provenance.data_checksum}:
            raise InvalidInput(f"{path} was made with other data; move it away to begin a new record.")
        others = [m for m in earlier.measurements if m.seed != measurement.seed]
        merged = sorted([*others, measurement], key=lambda m: m.seed)
        record = Record(experiment, record.scale, tuple(merged))
    content = {"format": FORMAT, "version": VERSION, **asdict(record)}
    with whole_file(path) as file:
        file.write((_readable(json.dumps(content, indent=1, allow_nan=False)) + "\n").encode())
    return path


def _readable(text: str) -> str:
    """Indented JSON with each list and object of plain values on one line: a curve has hundreds of them."""
    # A line break stands between values only; in strings it is escaped.
    return re.sub(
        r"([\[{])\n\s*([^\[\]{}]*?)\n\s*([\]}])", lambda m: m[1] + re.sub(r"\n\s*", " ", m[2]) + m[3], text
    )


def earlier_record(experiment: str, scale: Scale, folder: str | os.PathLike[str]) -> Record | None:
    """The record in ``folder`` that a measurement would be added to; None if it would begin a new one.

    Raises:
        InvalidInput: the record there is damaged, or was made with other numbers of the scale.
    """
    numbers = _plain(asdict(scale))
    path = Path(folder) / Record(experiment, numbers, ()).filename
    if not path.exists():
        return None
    earlier = read_record(path)
    # Numbers that a later version adds to a scale say nothing about an earlier measurement.
    changed = sorted(name for name, value in earlier.scale.items() if numbers.get(name) != value)
    if changed:
        raise InvalidInput(
            f"{path} was made with other numbers of the scale ({', '.join(changed)}); "
            f"move it away to begin a new record."
        )
    return earlier


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads one record.

    Raises:
        InvalidInput: the file can't be read or is not a record; the message names it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise InvalidInput(f"{path} is a {content['format']} of version {content['version']}.")
        measurements = tuple(
            Measurement(m["seed"], m["values"], Provenance(**m["provenance"])) for m in content["measurements"]
        )
        if not content["scale"]["name"] or not measurements:
            raise ValueError("it has no measurement, or its scale has no name")
        return Record(content["experiment"], content["scale"], measurements)
    except OSError as error:
        raise InvalidInput(f"Can't read the record {path}: {error.strerror}.") from error
    except InvalidInput:
        raise
    except KeyError as error:
        raise InvalidInput(f"{path} is not a record of nasbook: the field {error} is missing.") from None
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is not a record of nasbook: {error}.") from error


def load_records(folder: str | os.PathLike[str] | None = None) -> tuple[Record, ...]:
    """All records in a folder (None: the committed ones), in order of file name."""
    folder = records_folder() if folder is None else Path(folder)
    return tuple(read_record(path) for path in sorted(folder.glob("*.json")))


def find_record(experiment: str, scale: str, records: Iterable[Record] | None = None) -> Record | None:
    """The record of an experiment at a scale, or None."""
    for record in load_records() if records is None else records:
        if record.experiment == experiment and record.scale["name"] == scale:
            return record
    return None


def _plain(value: Any) -> Any:
    """Tuples become lists, NaN becomes None: what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _commit() -> str:
    """The repository's commit, only if the package is that repository's own."""
    repository = Path(__file__).parents[2]
    if not (repository / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(repository)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "nasbook"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
