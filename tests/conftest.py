"""What holds for every test: shapes are checked, one thread, a fixed seed, no other machine."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NASBOOK_SCALE"] = "quick"
os.environ.setdefault("MPLBACKEND", "agg")


def check_shapes() -> None:
    """Makes every annotated shape of the package an assertion; has to run before nasbook is imported."""
    from beartype import BeartypeConf, beartype
    from jaxtyping import install_import_hook

    assert not any(name.split(".")[0] == "nasbook" for name in sys.modules), (
        "nasbook is imported before tests/conftest.py"
    )
    # The hook finds its checker by name, so it gets a module. An int is fine where a float is annotated (PEP 484).
    checker = types.ModuleType("nasbook_type_checker")
    checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
    sys.modules[checker.__name__] = checker
    install_import_hook("nasbook", f"{checker.__name__}.check")


def block_network() -> None:
    """Refuses connections to other machines (`make test` does so in notebook kernels too)."""
    specification = importlib.util.spec_from_file_location("nasbook_offline", ROOT / "tools/offline/sitecustomize.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)


check_shapes()
block_network()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Each test starts from the same seed, whichever tests ran before it."""
    from nasbook.seeding import seed_everything

    seed_everything(0)
    yield
