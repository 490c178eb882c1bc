"""Tiny runs for the tests of this folder; the program that kills runs is the same file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module ``tiny_runs.py`` beside this file."""
    specification = importlib.util.spec_from_file_location("tiny_runs", Path(__file__).with_name("tiny_runs.py"))
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data(tiny: ModuleType) -> Any:
    return tiny.tiny_data()


@pytest.fixture(scope="session")
def undisturbed(tiny: ModuleType, data: Any) -> Callable[[str], Any]:
    """What a run of a kind ends with when nobody disturbs it; computed once."""
    endings: dict[str, Any] = {}

    def ending(kind: str) -> Any:
        if kind not in endings:
            run = tiny.make_run(kind, data)
            for _ in run.epochs():
                pass
            endings[kind] = tiny.ending(run)
        return endings[kind]

    return ending


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


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], None]:
    """Asserts that two states are the same to the last bit."""

    def check(got: Any, expected: Any) -> None:
        assert not differences(got, expected)

    return check
