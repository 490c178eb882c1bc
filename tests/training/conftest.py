"""Tiny runs for the tests of this folder; the program that kills runs is the same file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from running import differences, run_to_end


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
            endings[kind] = tiny.ending(run_to_end(tiny.make_run(kind, data)))
        return endings[kind]

    return ending


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], None]:
    """Asserts that two states are the same to the last bit."""

    def check(got: Any, expected: Any) -> None:
        assert not differences(got, expected)

    return check
