"""``nasbook search firefly-cells``: five cells found, how they grew written and said, resumed, and trained."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nasbook.genotypes import CELL_SECTIONS, Genotype

PROGRAM = Path(__file__).parents[1] / "command_line.py"
SEARCH = ["search", "firefly-cells", "--data", "digits", "--operations", "dil_conv_3x3", "--nodes", "1", "--rounds",
          "1", "--batch-size", "256", "--quiet"]  # fmt: skip
CASES: dict[str, list[str]] = {
    "search": [*SEARCH, "--out", "cells"],
    "again": [*SEARCH, "--out", "cells"],
    "resumed at its end": [*SEARCH, "--out", "cells", "--resume"],
    "train": ["train", "cells/genotype.json", "--cells", "5", "--channels", "2", "--epochs", "1", "--data", "digits",
              "--batch-size", "256", "--quiet", "--out", "trained"],
    "a pool": ["search", "firefly-cells", "--operations", "max_pool_3x3", "--quiet", "--out", "pool"],
    "an activation": [*SEARCH, "--activation", "tanh", "--out", "tanh"],
    "a rate": [*SEARCH, "--rate", "0", "--out", "rate"],
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What each command said and changed, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("firefly-cells")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NASBOOK_SCALE": "quick"}
    given = json.dumps([{"arguments": case} for case in CASES.values()])
    found = subprocess.run(
        [sys.executable, PROGRAM], input=given, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return dict(zip(CASES, json.loads(found.stdout), strict=True)), folder


def test_the_found_cells(done):
    said, folder = done
    assert said["search"]["code"] == 0, said["search"]["err"]
    genotype = Genotype.load(folder / "cells" / "genotype.json")
    assert genotype.kinds == CELL_SECTIONS
    assert all(len(cell.edges) == 2 for _, cell in genotype.cells)
    assert set(genotype.operations()) <= {"dil_conv_3x3", "skip_connect"}
    out = said["search"]["out"]
    assert f"train it: nasbook train {Path('cells/genotype.json')} --scale quick --data digits --cells 5" in out
    for number, kind in enumerate(CELL_SECTIONS, start=1):
        assert f"after epoch {2 * number}: {kind} grew, validation loss " in out
        assert f"{kind}: 0→2 " in out


def test_how_they_grew_is_written(done):
    _, folder = done
    result = json.loads((folder / "cells" / "result.json").read_text(encoding="utf-8"))
    assert (result["method"], result["config"]["rounds"]) == ("firefly-cells", 1)
    assert result["space"]["kinds"] == list(CELL_SECTIONS)
    assert [row["growing"] for row in result["history"]] == [False, True] * 5
    assert [event["epoch"] for event in result["events"]] == [2, 4, 6, 8, 10]
    added = [sum(event["neurons"].values()) for event in result["events"]]
    assert added[0] == 2 * (2 + 4 + 4 + 8 + 8) + 1  # a quarter of the first cell's two operations of two channels
    assert all(later > earlier for earlier, later in itertools.pairwise(added))
    assert result["history"][-1]["parameters"] == result["events"][-1]["parameters"]


def test_a_folder_with_a_run_is_left_alone(done):
    said, _ = done
    assert said["again"]["code"] == 1 and said["again"]["changed"] == []
    assert "cells holds a run already: give --resume" in said["again"]["err"]
    assert said["resumed at its end"]["code"] == 0
    assert said["resumed at its end"]["changed"] == []
    assert said["resumed at its end"]["out"] == said["search"]["out"]  # wall times are those of the checkpoint


def test_the_found_cells_train(done):
    said, folder = done
    assert said["train"]["code"] == 0, said["train"]["err"]
    assert (folder / "trained" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a pool", "'max_pool_3x3' has no channels that could grow. Leave it out"),
        ("an activation", "--activation"),
        ("a rate", "rate must be above 0, got 0"),
    ],
)
def test_wrong_input(name, message, done):
    said, _ = done
    assert said[name]["code"] in (1, 2) and said[name]["changed"] == []
    assert re.fullmatch(r"nasbook: [^\n]+\n", said[name]["err"]), said[name]["err"]
    assert message in said[name]["err"]
