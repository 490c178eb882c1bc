"""What tests of runs share: to the end, a few steps, a disturbance between them, and where two states differ."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import torch


def run_to_end(run: Any) -> Any:
    """Makes all epochs of a run and returns it."""
    for _ in run.epochs():
        pass
    return run


def draw() -> None:
    """What a caller may do with the global generators."""
    torch.rand(3)
    np.random.rand(3)
    random.random()


def stop_after(run: Any, steps: int) -> None:
    """Runs that many steps more, and stops."""
    made = itertools.count(1)
    run.on_step = lambda r: r.stop() if next(made) == steps else None
    run_to_end(run)
    run.on_step = None


def differences(got: Any, expected: Any, where: str = "state") -> list[str]:
    """Where two states differ, to the last bit; empty if they don't."""
    if type(got) is not type(expected):
        return [f"{where}: {type(got).__name__}, not {type(expected).__name__}"]
    if isinstance(expected, torch.Tensor):
        same = got.dtype == expected.dtype and torch.equal(got, expected)
        return [] if same else [f"{where}: another tensor"]
    if isinstance(expected, dict):
        if got.keys() != expected.keys():
            return [f"{where}: keys {sorted(map(str, got))}, not {sorted(map(str, expected))}"]
        return [line for key in expected for line in differences(got[key], expected[key], f"{where}.{key}")]
    if isinstance(expected, list | tuple):
        if len(got) != len(expected):
            return [f"{where}: {len(got)} entries, not {len(expected)}"]
        pairs = enumerate(zip(got, expected, strict=True))
        return [line for i, (g, e) in pairs for line in differences(g, e, f"{where}[{i}]")]
    both_nan = isinstance(expected, float) and math.isnan(expected) and math.isnan(got)
    return [] if both_nan or got == expected else [f"{where}: {got!r}, not {expected!r}"]
