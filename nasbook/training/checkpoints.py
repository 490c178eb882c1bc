"""Checkpoints: everything that a run needs to go on to the same bits, in one file, without pickled code.

The file is torch's zip format, restricted to tensors and plain containers, so that it loads with
``weights_only=True``. It opens with a header that says what wrote it; a run refuses a checkpoint whose
header differs from its own.
"""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nasbook import processes
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.files import whole_file

FORMAT = "nasbook.checkpoint"
VERSION = 1


def save_checkpoint(path: str | os.PathLike[str], header: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: where; the folder is made if needed.
        header: what the run is (method, space, configuration, data); compared when it is loaded.
        state: tensors, numbers, strings, and lists and dictionaries of them.

    Raises:
        CheckpointError: the file system refuses; the earlier checkpoint is then unchanged.
    """
    content = io.BytesIO()  # torch hides the reason of a failed write (a full disk), a file object does not
    torch.save({"format": FORMAT, "version": VERSION, "header": dict(header), "state": dict(state)}, content)
    try:
        with whole_file(path) as file:
            file.write(content.getbuffer())
    except InvalidInput as error:
        raise CheckpointError(str(error)) from error
    return Path(path)


def load_checkpoint(
    path: str | os.PathLike[str], header: Mapping[str, Any], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Reads the state that :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another version, or of another run; the message
            names the first entry of the header that differs, down to a single field of the configuration.
    """
    content = read_checkpoint(path, device)
    for name in (*header, *content["header"]):
        got, expected = content["header"].get(name), header.get(name)
        if got != expected:
            name, got, expected = _first_difference(name, got, expected)
            raise CheckpointError(
                f"{path} is of another run: its {name} is {_short(got)}, this run's is {_short(expected)}. "
                f"Give the same options as then, or another --out."
            )
    return content["state"]


def read_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The whole checkpoint, ``header`` and ``state``, without comparing the header."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has another checksum")
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in torch, zipfile or the unpickler, each with its own type
        raise CheckpointError(
            f"{path} is not a readable checkpoint (damaged or not written by nasbook). "
            f"Delete it to start afresh. First cause: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of nasbook. Give another file, or another --out.")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {content.get('version')}, this nasbook reads version {VERSION}."
        )
    if not all(isinstance(content.get(part), dict) for part in ("header", "state")):
        raise CheckpointError(f"{path} is incomplete: a checkpoint has a header and a state.")
    return content


def random_state() -> dict[str, Any]:
    """The state of every global generator: Python, NumPy, torch on the CPU and on each CUDA device."""
    version, internal, gauss = random.getstate()
    # The legacy form is a tuple (name, keys, position, has_gauss, cached).
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets every global generator to what :func:`random_state` returned.

    Several processes that share a run draw in step: each takes what the first one, which wrote, had on its GPU.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        alike = processes.count() > 1
        torch.cuda.set_rng_state_all([(state["cuda"][0] if alike else s).cpu() for s in state["cuda"]])


def _first_difference(name: str, got: Any, expected: Any) -> tuple[str, Any, Any]:
    """Goes down into dictionaries until the entry that differs: its dotted name and both values."""
    while isinstance(got, dict) and isinstance(expected, dict):
        field = next(f for f in [*expected, *got] if f not in got or f not in expected or got[f] != expected[f])
        name, got, expected = f"{name}.{field}", got.get(field), expected.get(field)
    return name, got, expected


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]
