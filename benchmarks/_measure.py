"""What the benchmarks share: interleaved timing, the description of the machine, records and tables.

A record is one JSON file, ``NAME[.SETTING].DEVICE.json`` in benchmarks/records, with these fields:

    benchmark   name of the script, without .py
    setting     what was measured, "" where the script has one setting only; a batch, or another size, that is not
                the setting's own is in it: "paper-batch16"
    device      "cpu" or "cuda"
    hardware    model of the processor or of the accelerator
    torch       version
    threads     CPU threads that torch used
    commit      of the repository, with + where the package or the benchmarks differed from it; "" outside one
    date        UTC day of the measurement, YYYY-MM-DD
    rounds      how many times each contestant was timed
    rows        a list of flat objects of numbers, strings and null; the script's docstring names their fields

Times in rows are in seconds: ``seconds`` is the median, ``seconds_low`` and ``seconds_high`` the quartiles. Where a
contestant failed they are null, and ``failure`` says why. Sizes are in bytes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from nasbook.environment import resolve_device
from nasbook.errors import InvalidInput
from nasbook.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
FIELDS = ("benchmark", "setting", "device", "hardware", "torch", "threads", "commit", "date", "rounds", "rows")

Row = dict[str, Any]
Table = tuple[Mapping[str, str], Sequence[Row]]
"""Columns (field: heading) and rows."""


@dataclass(frozen=True)
class Options:
    """What every benchmark can be told."""

    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 1
    """CPU threads of torch."""
    rounds: int = 9
    """How many times each contestant is timed, after one time that warms up."""
    record: bool = False
    """Also write a record."""
    records_dir: Path = RECORDS
    """Folder of the records."""

    def prepare(self) -> torch.device:
        """Sets the threads and a seed; returns the device."""
        if self.threads < 1 or self.rounds < 1:
            raise InvalidInput(f"threads and rounds must be at least 1, got {self.threads} and {self.rounds}.")
        device = resolve_device(self.device)
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        return device


def interleave(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device | str = "cpu",
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. Every round runs each once, in turn, so that what disturbs the
    machine for a while disturbs all alike. Rounds that warm up come first and are not counted.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        for name, run in contestants.items():
            wait()
            start = clock()
            run()
            wait()
            elapsed = clock() - start
            if number >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def summary(seconds: Sequence[float]) -> Row:
    """The fields of a row that tell a time: median and quartiles."""
    if len(seconds) == 1:
        low = high = seconds[0]
    else:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"seconds": statistics.median(seconds), "seconds_low": low, "seconds_high": high}


def failed(reason: str) -> Row:
    """The fields of a row whose contestant could not run."""
    return {"seconds": None, "seconds_low": None, "seconds_high": None, "failure": reason}


def why_not(contestant: Callable[[], Any]) -> str:
    """Runs a contestant that may not work on this machine: "" if it does, else the reason in one line."""
    try:
        contestant()
    except Exception as error:  # whatever it is, the other contestants go on
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"[:200]
    return ""


def peak_rates(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 5) -> tuple[float, float]:
    """Multiply-adds a second of a large matrix product, and bytes a second of a large copy: the best of some runs.

    A copy of so many bytes reads them and writes them, which counts as two. In float32 on CUDA the product may use
    TF32, as convolutions do by default.
    """
    cuda = device.type == "cuda"
    side, numbers = (8192, 2**28) if cuda else (1536, 2**26)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    precision = torch.get_float32_matmul_precision()
    if cuda and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        runs = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
        best = {name: min(seconds) for name, seconds in interleave(runs, repeats, device).items()}
    finally:
        torch.set_float32_matmul_precision(precision)
    return side**3 / best["product"], 2 * source.nbytes / best["copy"]


def make_record(options: Options, benchmark: str, setting: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of these rows, measured on this machine just now."""
    device = resolve_device(options.device)
    return {
        "benchmark": benchmark,
        "setting": setting,
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "rounds": options.rounds,
        "rows": [dict(row) for row in rows],
    }


def write_record(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Writes a record, whole or not at all, in place of an earlier one, and returns the file."""
    parts = [record["benchmark"], record["setting"], record["device"], "json"]
    path = Path(folder) / ".".join(part for part in parts if part)
    with whole_file(path) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())
    return path


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads one record.

    Raises:
        InvalidInput: the file can't be read or is not a record; the message names it.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"Can't read the record {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is not a record: {error}.") from None
    if not isinstance(record, dict) or tuple(record) != FIELDS:
        raise InvalidInput(f"{path} is not a record: its fields are not {', '.join(FIELDS)}.")
    return record


def finish(options: Options, benchmark: str, setting: str, title: str, tables: Sequence[Table]) -> None:
    """Prints the tables and, if asked to, writes the record of all their rows."""
    record = make_record(options, benchmark, setting, [row for _, rows in tables for row in rows])
    unit = "thread" if record["threads"] == 1 else "threads"
    rounds = f"medians of {options.rounds} interleaved rounds" if options.rounds > 1 else "one round"
    print(title)
    print(f"{record['hardware']}, {record['threads']} {unit}, torch {record['torch']}, {rounds}")
    for columns, rows in tables:
        print("\n" + table(rows, columns))
    if options.record:
        print(f"\nrecord: {write_record(options.records_dir, record)}")


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as text, one column a field. A heading's last word may be a unit, which its numbers are converted to.

    Numbers stand right. A row that failed gives its reason at the end.
    """
    cells = [list(columns.values())]
    cells += [[_cell(row.get(field), heading) for field, heading in columns.items()] for row in rows]
    right = [any(isinstance(row.get(field), (int, float)) for row in rows) for field in columns]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    reasons = ["", *(row.get("failure", "") for row in rows)]
    lines = []
    for line, reason in zip(cells, reasons, strict=True):
        padded = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join([*padded, reason]).rstrip())
    return "\n".join(lines)


_UNITS = {"ms": 1e3, "s": 1.0, "MiB": 2**-20, "GiB": 2**-30, "G": 1e-9, "G/s": 1e-9, "GB/s": 1e-9, "%": 100.0}


def _cell(value: Any, heading: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    unit = heading.rsplit(maxsplit=1)[-1]
    if isinstance(value, int) and unit not in _UNITS:
        return str(value)
    converted = value * _UNITS.get(unit, 1.0)
    return f"{converted:.2f}" if abs(converted) < 10 else f"{converted:.1f}"


def processor() -> str:
    """The processor's model, as the system names it, and how many cores there are."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:  # virtual machines hide the model's name, not its numbers
        name += f", family {fields['cpu family']} model {fields.get('model', '?')}"
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """The repository's commit, with + where the package or the benchmarks differ from it."""
    git = ["git", "-C", str(ROOT)]
    watched = ["nasbook", "benchmarks", ":(exclude)benchmarks/records"]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *watched], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed.strip() else "")


def _nothing() -> None:
    pass
