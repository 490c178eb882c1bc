"""``nasbook count``, and genotypes of five kinds of cell on the command line: drawn, counted, trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nasbook.analysis import count_parameters
from nasbook.genotypes import CELL_SECTIONS, DARTS_SPACE, DARTS_V2, PR_DARTS_DL1, CellGenotype, Edge, Genotype
from nasbook.networks import DerivedNetwork

PROGRAM = Path(__file__).parents[1] / "command_line.py"
OPERATIONS = ("sep_conv_3x3", "skip_connect", "dil_conv_5x5", "dil_conv_3x3", "sep_conv_5x5")
FIVE = Genotype(
    {
        kind: CellGenotype(
            tuple(Edge(*edge, OPERATIONS[(place * number) % 5]) for number, edge in enumerate(DARTS_SPACE.edges))
        )
        for place, kind in enumerate(CELL_SECTIONS)
    }
)
SMALL = ["--channels", "2", "--cells", "5"]
SHORT = ["--epochs", "1", "--quiet"]

GOOD: dict[str, Any] = {
    "count": ["count", "DARTS_V2"],
    "count five": ["count", "five.json", "--channels", "40"],
    "count small": ["count", "five.json", *SMALL, "--classes", "3", "--in-channels", "1", "--image-size", "8"],
    "count on ImageNet": ["count", "DARTS_V2", "--stem", "imagenet", "--image-size", "224", "--channels", "48",
                          "--cells", "14", "--classes", "1000"],
    "count means": ["count", "PR_DARTS_DL1", "--cell-output", "mean"],
    "draw five": ["draw", "five.json", "--out", "five.svg"],
    "train five": ["train", "five.json", *SMALL, *SHORT, "--batch-size", "256", "--data", "digits", "--out", "five"],
    "train so many": ["train", "five.json", "--parameters", "20000", "--cells", "6", *SHORT, "--batch-size", "256",
                      "--data", "digits", "--out", "budget"],
    "help": ["count", "--help"],
    "help of one": ["count", "DARTS_V2", "--help"],
}  # fmt: skip

BAD: dict[str, tuple[list[str], str]] = {
    "no name": (["count"], r"GENOTYPE"),
    "another name": (["count", "DARTS_V3"], r"Unknown genotype 'DARTS_V3'\. Did you mean 'DARTS_V2'"),
    "no file": (["count", "nowhere.json"], r"nowhere\.json"),
    "recurrent": (["count", "recurrent.json"], r"recurrent\.json holds recurrent cells"),
    "too short": (["count", "five.json", "--cells", "4"], r"A stack of 4 is too short for five kinds .*: use 5 cells"),
    "too short to train": (["train", "five.json", "--cells", "3", "--data", "digits", "--quiet"],
                           r"A stack of 3 is too short for five kinds .*: use 5 cells"),
    "four kinds": (["count", "four.json"], r"needed cell 1, cell 2, cell 3, cell 4, cell 5; got cell 1, cell 3, cell"),
    "seven kinds": (["count", "seven.json"], r"needed cell 1, cell 2, cell 3, cell 4, cell 5; got cell 1, .*, normal"),
    "an operation": (["count", "operation.json"],
                     r"operation\.json: cells\.cell 3\.edges\[0\]: Unknown operation 'sep_conv_3'"),
    "no channels": (["count", "DARTS_V2", "--channels", "0"], r"channels must be above 0, got 0"),
    "no image": (["count", "DARTS_V2", "--image-size", "0"], r"image_size must be above 0, got 0"),
    "no number": (["count", "DARTS_V2", "--cells", "many"], r"--cells"),
    "another stem": (["count", "DARTS_V2", "--stem", "imagnet"], r"Unknown stem 'imagnet'\. Did you mean 'imagenet'\?"),
    "another option": (["count", "DARTS_V2", "--cels", "8"], r"--cels"),
}  # fmt: skip


def run_all(cases: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """The answers of many command lines, in one folder, one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], input=json.dumps(cases), capture_output=True, text=True, check=False,
        cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("count")
    FIVE.save(folder / "five.json")
    four = [kind for kind in CELL_SECTIONS if kind != "cell 2"]
    Genotype({kind: FIVE[kind] for kind in four}).save(folder / "four.json")
    Genotype({**dict(FIVE.cells), **dict(DARTS_V2.cells)}).save(folder / "seven.json")
    wrong = CellGenotype((Edge(0, 2, "sep_conv_3"),))
    Genotype({**dict(FIVE.cells), "cell 3": wrong}).save(folder / "operation.json")
    Genotype({"darts": CellGenotype((Edge(0, 1, "tanh"),), nodes=1, inputs=1)}).save(folder / "recurrent.json")
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, dict[str, Any]]:
    cases = {**GOOD, **{name: arguments for name, (arguments, _) in BAD.items()}}
    return dict(zip(cases, run_all(list(cases.values()), folder), strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_it_works(answers: dict[str, Any], name: str) -> None:
    assert (answers[name]["code"], answers[name]["err"]) == (0, "")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(answers: dict[str, Any], name: str) -> None:
    answer = answers[name]
    assert answer["code"] in (1, 2) and answer["changed"] == []
    assert re.fullmatch(r"nasbook: [^\n]+\n", answer["err"]), answer["err"]
    assert re.search(BAD[name][1], answer["err"]), answer["err"]


def rows(out: str) -> list[list[str]]:
    """The cells' lines of the table, split where two spaces stand."""
    lines = [line for line in out.splitlines() if re.match(r" *\d+(–\d+)?  ", line)]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_a_published_genotype_is_counted(answers: dict[str, Any]) -> None:
    out = answers["count"]["out"]
    assert out.endswith("3,349,342 parameters, 528,359,040 multiply-adds an image of 3×32×32\n")  # as in Chapter 1
    assert "operations: sep_conv_3x3 5, skip_connect 5, max_pool_3x3 5, dil_conv_3x3 1\n" in out
    assert [row[:6] for row in rows(out)] == [
        ["1–6", "normal", "36", "8", "2", "2"], ["7", "reduction", "72", "8", "3", "2"],
        ["8–13", "normal", "72", "8", "2", "2"], ["14", "reduction", "144", "8", "3", "2"],
        ["15–20", "normal", "144", "8", "2", "2"],
    ]  # fmt: skip


def test_the_lines_of_the_table_add_up(answers: dict[str, Any]) -> None:
    for name in GOOD:
        if name.startswith("count"):
            *lines, _, total = answers[name]["out"].splitlines()
            parts = [int(line.split()[-1].replace(",", "")) for line in lines[1:]]
            assert sum(parts) == int(total.split()[0].replace(",", "")), name
            assert len({len(line) for line in lines}) == 1, name  # numbers stand one below the other


def test_five_kinds_are_counted_by_section(answers: dict[str, Any]) -> None:
    found = rows(answers["count five"]["out"])
    assert [row[:4] for row in found] == [
        ["1–6", "cell 1", "40", "14"], ["7", "cell 2", "80", "14"], ["8–13", "cell 3", "80", "14"],
        ["14", "cell 4", "160", "14"], ["15–20", "cell 5", "160", "14"],
    ]  # fmt: skip
    skips = [sum(edge.operation == "skip_connect" for edge in FIVE[kind].edges) for kind in CELL_SECTIONS]
    assert [int(row[4]) for row in found] == skips and len(set(skips)) > 1
    network = DerivedNetwork(FIVE, channels=2, cells=5, classes=3, in_channels=1)
    small = answers["count small"]["out"]
    assert f"\n{count_parameters(network):,} parameters, " in small
    assert [int(row[-1].replace(",", "")) for row in rows(small)] == [count_parameters(cell) for cell in network.cells]
    assert small.endswith("an image of 1×8×8\n")


def test_a_mean_is_smaller_than_a_concatenation(answers: dict[str, Any]) -> None:
    total = int(answers["count means"]["out"].splitlines()[-1].split()[0].replace(",", ""))
    assert total == count_parameters(DerivedNetwork(PR_DARTS_DL1, cell_output="mean"))
    assert total < count_parameters(DerivedNetwork(PR_DARTS_DL1))


def test_help_says_what_can_be_given(answers: dict[str, Any]) -> None:
    for word in ("--channels", "--cells", "--classes", "--image-size", "--in-channels", "--stem", "--cell-output"):
        assert word in answers["help of one"]["out"]
    assert "GENOTYPE" in answers["help"]["out"] and "usage: nasbook count" in answers["help"]["out"]


def test_five_kinds_are_drawn(answers: dict[str, Any], folder: Path) -> None:
    assert answers["draw five"]["changed"] == ["five.svg"]
    assert "<svg" in (folder / "five.svg").read_text()


def test_five_kinds_are_trained(answers: dict[str, Any], folder: Path) -> None:
    assert Genotype.load(folder / "five" / "genotype.json") == FIVE
    assert Genotype.load(folder / "five" / "genotype.json").kinds == CELL_SECTIONS
    weights = load_file(folder / "five" / "weights.safetensors")
    network = DerivedNetwork(FIVE, channels=2, cells=5, in_channels=1)
    network.load_state_dict(weights)
    said = re.match(r"([\d,]+) parameters, [\d,]+ multiply-adds an image", answers["train five"]["out"])
    assert said and int(said[1].replace(",", "")) == count_parameters(network)
    header = json.loads((folder / "five" / "result.json").read_text())
    assert f"test accuracy {header['history'][-1]['validation_accuracy']:.2%}" in answers["train five"]["out"]


def test_five_kinds_are_made_as_large_as_asked(answers: dict[str, Any]) -> None:
    said = re.match(r"(\d+) channels: ([\d,]+) parameters are the nearest to 20,000\n", answers["train so many"]["out"])
    assert said
    sizes = {c: count_parameters(DerivedNetwork(FIVE, channels=c, cells=6, in_channels=1)) for c in range(1, 9)}
    nearest = min(sizes, key=lambda channels: abs(sizes[channels] - 20_000))
    assert (int(said[1]), int(said[2].replace(",", ""))) == (nearest, sizes[nearest])
