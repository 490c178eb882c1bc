"""Makes the networks of ``growing_toys.py`` importable by the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

specification = importlib.util.spec_from_file_location("growing_toys", Path(__file__).with_name("growing_toys.py"))
assert specification
assert specification.loader
sys.modules["growing_toys"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(sys.modules["growing_toys"])
