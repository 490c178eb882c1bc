"""The scripts in benchmarks/ are modules here, as they are for each other. They are in no distribution."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

if BENCHMARKS.is_dir():
    sys.path.insert(0, str(BENCHMARKS))
else:
    collect_ignore_glob = ["test_*.py"]
