"""The command line: what it does, what it says, and one clear line for whatever is wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nasbook.genotypes import DARTS_V1, Genotype

CELL = ["--operations", "none", "skip_connect", "sep_conv_3x3", "--nodes", "2", "--channels", "2", "--cells", "3"]
SEARCH = ["search", "darts", *CELL, "--epochs", "2", "--quiet"]
RANDOM = ["search", "random-search", *CELL, "--epochs", "2", "--samples", "2", "--quiet"]
TRAIN = ["--channels", "2", "--cells", "3", "--epochs", "2", "--quiet"]
PROGRAM = Path(__file__).with_name("command_line.py")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")


def environment() -> dict[str, str]:
    return {**os.environ, **NO_NETWORK, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NASBOOK_DATA": "data",
            "COLUMNS": "120"}


def run_all(cases: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The answers of many command lines, in one folder, one after the other."""
    given = json.dumps(list(cases.values()))
    program = [sys.executable, str(PROGRAM)]
    done = subprocess.run(
        program, input=given, capture_output=True, text=True, check=False, cwd=folder, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


# --- what it does -----------------------------------------------------------------------------------------------------

MILENAS = ["search", "milenas", *CELL, "--epochs", "2", "--quiet"]
PC_DARTS = ["search", "pc-darts", *CELL, "--partition", "2", "--epochs", "2", "--quiet"]
ROOT = "sep_conv(kernel=3, dilation=1, expansions=none)"
PR_DARTS = ["search", "pr-darts", "--operations", "skip_connect", "max_pool_3x3", ROOT, *CELL[4:],
            "--cycle-epochs", "1", "2", "1", "--grace-epochs", "0", "1", "0", "--morphisms", "2", "0", "0",
            "--candidates", "4", "2", "1", "--quiet"]
GROWING = ["--memory-budget", "0.001", "--batch-size", "16", "--batch-multiple", "16", "--largest-batch", "64"]
STRETCHABLE = ["search", "stretchable", *CELL, "--epochs", "2", "--quiet"]
FOLDER = ["--data", "images", "--share", "0.5", "--test-share", "1", "--image-size", "32", "--stem", "imagenet"]
THIRDS = ["--train-share", "0.34", "--topology-share", "0.33", "--batch-size", "4"]
WITH_ONE_EPOCH = ["--epochs", "1", "--batch-size", "4", "--quiet"]

GOOD: dict[str, Any] = {
    "search": [*SEARCH, "--out", "search"],
    "search again": [*SEARCH, "--out", "search again"],
    "search resumed at its end": [*SEARCH, "--out", "search", "--resume"],
    "search with another seed": [*SEARCH, "--out", "seed 1", "--seed", "1" + "0" * 20],
    "random search": [*RANDOM, "--out", "random"],
    "milenas": [*MILENAS, "--out", "milenas"],
    "milenas without the training loss": [*MILENAS, "--train-weight", "0", "--out", "as darts"],
    "stretchable": [*STRETCHABLE, "--out", "stretchable"],
    "stretchable resumed at its end": [*STRETCHABLE, "--out", "stretchable", "--resume"],
    "pairs": [*STRETCHABLE, "--topology", "output-edges", "--no-empty-choice", "--penalty-weight", "1",
              "--topology-learning-rate", "0.1", "--topology-weight-decay", "0", "--out", "pairs"],
    "pc-darts": [*PC_DARTS, "--frozen-share", "0.5", "--out", "pc-darts"],
    "pc-darts resumed at its end": [*PC_DARTS, "--frozen-share", "0.5", "--out", "pc-darts", "--resume"],
    "pr-darts": [*PR_DARTS, "--constraints", "UR", "max-depth=3", "--out", "pr-darts"],
    "pr-darts resumed at its end": [*PR_DARTS, "--constraints", "UR", "max-depth=3", "--out", "pr-darts", "--resume"],
    "pr-darts as it is": ["search", "pr-darts", *CELL[4:], "--cycle-epochs", *"111111111", "--grace-epochs",
                          *"000000000", "--batch-size", "256", "--quiet", "--out", "pr-darts as it is"],
    "pr-darts with a growing batch": [*PR_DARTS, *GROWING, "--cell-output", "mean", "--morphism-choice", "performance",
                                      "--cycle-cells", "3", "3", "4", "--constraints", "DR", "--out", "growing"],
    "train a cell of pr-darts": ["train", "pr-darts/genotype.json", *TRAIN, "--out", "pr-darts train"],
    "train a cell of means": ["train", "growing/genotype.json", *TRAIN, "--cell-output", "mean", "--out", "means"],
    "train it concatenated": ["train", "growing/genotype.json", *TRAIN, "--out", "concatenated"],
    "draw a cell of pr-darts": ["draw", "pr-darts/genotype.json", "--out", "pr-darts.svg"],
    "draw stretchable": ["draw", "stretchable/genotype.json", "--out", "stretchable.svg"],
    "search on a folder": [*STRETCHABLE, *FOLDER, *THIRDS, "--out", "folder search"],
    "train on a folder": ["train", "folder search/genotype.json", *FOLDER, "--cells", "3", *WITH_ONE_EPOCH,
                          "--label-smoothing", "0.1", "--decay", "exponential", "--out", "folder train"],
    "train so many parameters": ["train", "stretchable/genotype.json", "--parameters", "20000", *WITH_ONE_EPOCH,
                                 "--batch-size", "64", "--out", "budget"],
    "train": ["train", "search/genotype.json", *TRAIN, "--out", "train"],
    "train a published cell": ["train", "DARTS_V1", *TRAIN, "--epochs", "1", "--out", "published"],
    "draw": ["draw", "search/genotype.json", "--out", "cell.svg"],
    "reproduce": ["reproduce", "darts-counts", "--out", "records"],
    "records": ["records", "--folder", "records"],
    "committed records": ["records"],
    "list": ["list"],
    "version": ["--version"],
    "bar": [*SEARCH[:-1], "--out", "bar"],
    "help": ["--help"],
    "help of search": ["search", "--help"],
    "help of search darts": ["search", "darts", "--help"],
    "help of search milenas": ["search", "milenas", "--help"],
    "help of search stretchable": ["search", "stretchable", "--help"],
    "help of search pc-darts": ["search", "pc-darts", "--help"],
    "help of search pr-darts": ["search", "pr-darts", "--help"],
    "help of search random-search": ["search", "random-search", "--help"],
    "help of train": ["train", "--help"],
    "help of draw": ["draw", "--help"],
    "help of reproduce": ["reproduce", "--help"],
    "help of reproduce darts-random": ["reproduce", "darts-random", "--help"],
    "help of records": ["records", "--help"],
    "help of list": ["list", "--help"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("command line")


@pytest.fixture(scope="module")
def good(folder):
    random = np.random.default_rng(0)
    for part, label, number in itertools.product(("train", "val"), ("n01", "n02"), range(16)):
        path = folder / "images" / part / label / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(path)
    return run_all(GOOD, folder)


def test_all_of_it_works(good):
    for name, answer in good.items():
        assert answer["code"] == 0, (name, answer["err"])
        assert answer["err"] == "" or name == "bar", name
        assert answer["out"]


def test_search(good, folder):
    assert good["search"]["changed"] == [f"search/{n}" for n in ("checkpoint.pt", "genotype.json", "result.json")]
    genotype = Genotype.load(folder / "search" / "genotype.json")
    assert genotype.kinds == ("normal", "reduction")
    result = json.loads((folder / "search" / "result.json").read_text())
    assert (result["method"], result["seed"], len(result["history"])) == ("darts", 0, 2)
    assert result["config"]["channels"] == 2
    assert result["space"]["nodes"] == 2
    out = good["search"]["out"]
    assert "normal: 0→2 " in out
    assert "nasbook train search/genotype.json --scale quick --data digits" in out
    curves = [without_seconds(json.loads((folder / n / "result.json").read_text())["history"])
              for n in ("search", "search again", "seed 1")]
    assert curves[0] == curves[1] != curves[2]
    assert good["search resumed at its end"]["changed"] == []


def test_milenas(good, folder):
    results = {
        name: json.loads((folder / name / "result.json").read_text()) for name in ("milenas", "search", "as darts")
    }
    assert (results["milenas"]["method"], results["milenas"]["config"]["train_weight"]) == ("milenas", 1.0)
    histories = {name: without_seconds(result["history"]) for name, result in results.items()}
    assert histories["as darts"] == histories["search"] != histories["milenas"]


def test_stretchable(good, folder):
    result = json.loads((folder / "stretchable" / "result.json").read_text())
    assert result["method"] == "stretchable"
    assert result["space"]["operations"] == ["skip_connect", "sep_conv_3x3"]  # without zero, which was given too
    assert result["config"]["topology"] == "any-output-edges"
    assert good["stretchable resumed at its end"]["changed"] == []
    pairs = json.loads((folder / "pairs" / "result.json").read_text())["config"]
    assert (pairs["topology"], pairs["empty_choice"], pairs["penalty_weight"]) == ("output-edges", False, 1.0)
    assert (pairs["topology_learning_rate"], pairs["topology_weight_decay"]) == (0.1, 0.0)
    assert "<svg" in (folder / "stretchable.svg").read_text()


def test_pc_darts(good, folder):
    result = json.loads((folder / "pc-darts" / "result.json").read_text())
    assert result["method"] == "pc-darts"
    assert (result["config"]["partition"], result["config"]["frozen_share"]) == (2, 0.5)
    assert good["pc-darts resumed at its end"]["changed"] == []


def test_pr_darts(good, folder):
    results = {
        name: json.loads((folder / name / "result.json").read_text())
        for name in ("pr-darts", "growing", "pr-darts as it is")
    }
    result = results["pr-darts"]
    assert result["method"] == "pr-darts" and len(result["history"]) == 4
    assert result["space"]["operations"] == ["skip_connect", "max_pool_3x3", ROOT]
    own = result["config"]
    assert (own["cycle_epochs"], own["grace_epochs"], own["candidates"]) == ([1, 2, 1], [0, 1, 0], [4, 2, 1])
    assert own["constraints"] == {
        "min_kernel": 1, "max_kernel": 7, "min_dilation": 1, "max_dilation": 2, "max_depth": 3, "max_width": None,
        "dilated_pointwise": True,
    }  # fmt: skip
    assert own["memory_budget"] is None and "epochs" not in own
    assert good["pr-darts resumed at its end"]["changed"] == []
    own = results["growing"]["config"]
    assert (own["memory_budget"], own["cell_output"], own["morphism_choice"]) == (0.001, "mean", "performance")
    assert (own["cycle_cells"], own["constraints"]["max_width"]) == ([3, 3, 4], 5)
    said = good["pr-darts with a growing batch"]["out"]
    assert "nasbook train growing/genotype.json --scale quick --data digits --cell-output mean\n" in said
    sizes = [
        int(re.match(r"([\d,]+) parameters", good[name]["out"])[1].replace(",", ""))
        for name in ("train a cell of means", "train it concatenated")
    ]
    assert sizes[0] < sizes[1]
    initial = ["max_pool_3x3", "avg_pool_3x3", "skip_connect", ROOT]
    assert results["pr-darts as it is"]["space"]["operations"] == initial
    assert len(results["pr-darts as it is"]["history"]) == 9


def test_a_folder_of_images(good, folder):
    result = json.loads((folder / "folder search" / "result.json").read_text())
    assert (result["config"]["stem"], result["config"]["topology_share"]) == ("imagenet", 0.33)
    trained = json.loads((folder / "folder train" / "result.json").read_text())
    assert trained["data"] == result["data"]  # the same images
    assert (trained["config"]["decay"], trained["config"]["label_smoothing"]) == ("exponential", 0.1)
    out = good["search on a folder"]["out"]
    assert (
        "train it: nasbook train 'folder search/genotype.json' --scale quick "
        "--data images --share 0.5 --image-size 32 --stem imagenet" in out
    )


def test_a_number_of_parameters(good):
    said = re.match(r"(\d+) channels: ([\d,]+) parameters are the nearest to 20,000\n([\d,]+) parameters, ",
                    good["train so many parameters"]["out"])
    assert said
    assert said[2] == said[3]  # at quick there is no auxiliary head
    assert 15_000 < int(said[2].replace(",", "")) < 25_000


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_random_search_has_json_that_everyone_reads(good, folder):
    text = (folder / "random" / "result.json").read_text()
    history = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["history"]
    assert [row["validation_accuracy"] is None for row in history] == [True, False, True, False]


def test_train(good, folder):
    weights = load_file(folder / "train" / "weights.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    result = json.loads((folder / "train" / "result.json").read_text())
    accuracy = result["history"][-1]["validation_accuracy"]
    assert f"test accuracy {accuracy:.2%}" in good["train"]["out"]
    assert re.match(r"[\d,]+ parameters, [\d,]+ multiply-adds an image", good["train"]["out"])
    assert Genotype.load(folder / "published" / "genotype.json") == DARTS_V1


def test_draw(good, folder):
    assert good["draw"]["changed"] == ["cell.svg"]
    assert "<svg" in (folder / "cell.svg").read_text()


def test_reproduce_and_records(good):
    assert good["reproduce"]["changed"] == ["records/darts-counts.quick.json"]
    assert "darts.space: holds. 14 edges, 8 operations, 1,037,664,180 cells" in good["reproduce"]["out"]
    assert "darts.derived: holds" in good["records"]["out"]
    assert "darts-counts at quick: seeds [0]" in good["records"]["out"]


def test_the_bar_shows_loss_accuracy_and_time_left(good):
    bar = good["bar"]["err"]
    assert "search darts" in bar and "20/20" in bar and "epoch=2/2" in bar
    assert "train loss=" in bar and "architecture loss=" in bar and re.search(r"\[\d\d:\d\d<\d\d:\d\d", bar)


def test_list_has_every_name(good):
    from nasbook.data import list_images
    from nasbook.experiments import SCALES, list_experiments
    from nasbook.methods import METHODS
    from nasbook.operations import list_operations

    names = [*METHODS, *list_images(), *list_operations(), *SCALES, *(e.name for e in list_experiments()), "DARTS_V2"]
    for name in names:
        assert re.search(rf"^  {re.escape(name)}\b", good["list"]["out"], re.MULTILINE)


RUN = ("--out", "--data", "--scale", "--seed", "--device", "--resume", "--checkpoint-steps", "--quiet")
OF_A_FOLDER = ("--share", "--test-share", "--image-size", "--limit-gib")
TOPOLOGY = ("--topology {any-output-edges", "--edges-per-node", "--empty-choice", "--penalty-weight",
            "--topology-learning-rate", "--topology-weight-decay", "--topology-share")
SCHEDULE = ("--cycle-epochs", "--grace-epochs", "--morphisms", "--candidates", "--cycle-cells", "--cell-output")
BATCHES = ("--batch-size", "--batch-multiple", "--largest-batch", "--memory-budget", "--morphism-choice")
TRAINING = ("--channels", "--parameters", "--cells", "--auxiliary", "--stem", "--cutout", "--decay {cosine",
            "--label-smoothing", "--cell-output {con")


@pytest.mark.parametrize(
    ("name", "mentioned"),
    [
        ("help", ("search METHOD", "train GENOTYPE", "draw GENOTYPE", "reproduce EXPERIMENT", "records", "list")),
        ("help of search", ("METHOD", "darts, milenas, stretchable, pc-darts, entrannas, entrannas-dst, ")),
        ("help of search darts", (*RUN, "--epochs", "--operations", "--nodes", "--order", "--channels")),
        ("help of search milenas", (*RUN, *OF_A_FOLDER, "--train-weight", "--validation-weight")),
        ("help of search stretchable", (*RUN, *OF_A_FOLDER, "--train-weight", *TOPOLOGY)),
        ("help of search pc-darts", (*RUN, *OF_A_FOLDER, "--partition", "--frozen-share")),
        ("help of search pr-darts", (*RUN, *OF_A_FOLDER, *SCHEDULE, *BATCHES, "--constraints {DL,DR,UR} [COL")),
        ("help of search random-search", (*RUN, "--samples", "--operations")),
        ("help of train", ("GENOTYPE", *RUN, *OF_A_FOLDER, *TRAINING)),
        ("help of draw", ("GENOTYPE", "--out")),
        ("help of reproduce", ("EXPERIMENT", "darts-random, darts-collapse")),
        ("help of reproduce darts-random", ("--scale", "--seed", "--data", "--device", "--out", "--resume")),
        ("help of records", ("--folder",)),
        ("help of list", ("nasbook list",)),
    ],
)
def test_help_mentions_every_argument(good, name, mentioned):
    for word in mentioned:
        assert word in good[name]["out"]
    assert "usage: nasbook" in good[name]["out"]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def broken(**changes: Any) -> str:
    """DARTS_V1 as JSON, with fields of its normal cell replaced; a field of the document by its own name."""
    document = json.loads(DARTS_V1.to_json())
    for name, value in changes.items():
        part = document if name in document else document["cells"]["normal"]
        part[name] = value
    return json.dumps(document)


FILES = {
    "half.json": DARTS_V1.to_json()[:100],
    "field.json": broken(edges=[[0, 2, "sep_conv_3x3"], [1, "2", "sep_conv_3x3"]]),
    "target.json": broken(edges=[[0, 9, "sep_conv_3x3"]]),
    "operation.json": broken(edges=[[0, 2, "sep_conv_3x3"], [1, 2, "sep_conv_3x4"]], output=[2]),
    "node.json": broken(nodes="4"),
    "extra.json": broken(edge=[]),
    "version.json": broken(version=2),
    "format.json": broken(format="other"),
    "bytes.json": b"\xff\xfe\x00",
    "data/cifar-10-binary.tar.gz": b"cut short",
    "bad records/x.json": "{",
    "damaged/checkpoint.pt": b"PK damaged",
    "damaged images/train/n01/0.jpg": "not an image",
    "damaged images/val/n01/0.jpg": "not an image",
    "a file": "",
}

BAD: dict[str, tuple[Any, str]] = {
    # names
    "no command": (["serch"], "Unknown command 'serch'. Did you mean 'search'?"),
    "no method": (["search"], "nasbook search needs a METHOD first. One of: darts, milenas, stretchable, "),
    "no experiment": (["reproduce", "--seed", "1"], "nasbook reproduce needs an EXPERIMENT first. One of: darts-"),
    "no genotype": (["train"], "nasbook train needs a GENOTYPE first. A JSON file, or a name from `nasbook list`."),
    "method": (["search", "dart"], "Unknown method 'dart'. Did you mean 'darts' or 'pr-darts' or 'pc-darts'? Valid: d"),
    "operation": ([*SEARCH, "--operations", "sep_conv_3x4"], "Unknown operation 'sep_conv_3x4'. Did you mean 'sep_c"),
    "data set": ([*SEARCH, "--data", "digit"], "Unknown data set 'digit'. Did you mean 'digits'?"),
    "config key": ([*SEARCH, "--epoch", "3"], "Did you mean --epochs INT? See nasbook search darts --help."),
    "config key of train": (["train", "DARTS_V1", "--cutuot", "3"], "Did you mean --cutout INT?"),
    "scale": ([*SEARCH, "--scale", "quik"], "Unknown scale 'quik'. Did you mean 'quick'?"),
    "scale of the environment": ({"arguments": SEARCH, "environment": {"NASBOOK_SCALE": "papr"}},
                                 "Unknown scale 'papr'. Did you mean 'paper'?"),
    "experiment": (["reproduce", "darts-randm"], "Unknown experiment 'darts-randm'. Did you mean 'darts-random'"),
    "genotype": (["train", "DARTS_V3"], "Unknown genotype 'DARTS_V3'. Did you mean 'DARTS_V2'"),
    "genotype to draw": (["draw", "DART_V1"], "Unknown genotype 'DART_V1'. Did you mean 'DARTS_V1'"),
    "order": ([*SEARCH, "--order", "second"], "Expected one of ('first-order', 'second-order', 'finite-difference')"),
    "stem": (["train", "DARTS_V1", "--stem", "cifar10", "--out", "x"], "Unknown stem 'cifar10'. Did you mean 'cifar'"),
    "extra argument": ([*SEARCH, "more"], "Unrecognized options: more."),
    "argument of list": (["list", "darts"], "nasbook list takes no arguments, got 'darts'."),
    "picture": (["draw", "DARTS_V1", "--out", "x.bmp"], "--out must end in .png, .svg, .pdf; got 'x.bmp'."),
    # numbers
    "no epochs": ([*SEARCH, "--epochs", "0"], "epochs must be above 0, got 0."),
    "negative channels": ([*SEARCH, "--channels", "-2"], "channels must be above 0, got -2."),
    "no cells": (["train", "DARTS_V1", "--cells", "0", "--out", "x"], "cells must be above 0, got 0."),
    "no nodes": ([*SEARCH, "--nodes", "0"], "nodes must be above 0, got 0."),
    "no batch": ([*RANDOM, "--batch-size", "0"], "batch_size must be above 0, got 0."),
    "no samples": ([*RANDOM, "--samples", "0"], "samples must be above 0, got 0."),
    "negative cutout": (["train", "DARTS_V1", "--cutout", "-1"], "cutout must be at least 0, got -1."),
    "negative steps": ([*SEARCH, "--checkpoint-steps", "-1"], "checkpoint_steps must be at least 0, got -1."),
    "batch larger than the data": ([*SEARCH, "--batch-size", "1000"], "A batch of 1000 needs at least as many images"),
    "a word": ([*SEARCH, "--epochs", "three"], "--epochs: invalid literal for int() with base 10: 'three'."),
    "no value": ([*SEARCH, "--out"], "Missing value for argument '--out'."),
    "only the zero operation": ([*SEARCH, "--operations", "none"], "at least one candidate operation besides 'none'."),
    "channels and parameters": (["train", "DARTS_V1", "--channels=4", "--parameters", "9999", "--out", "x"],
                                "Give --channels or --parameters, not both."),
    "too few parameters": (["train", "DARTS_V1", "--parameters", "10", "--out", "x"], "10 is too few."),
    "no parameters": (["train", "DARTS_V1", "--parameters", "0", "--out", "x"], "parameters must be above 0, got 0."),
    "weights of losses": ([*MILENAS, "--train-weight", "0", "--validation-weight", "0"], "the sum of both weights"),
    "negative penalty": ([*STRETCHABLE, "--penalty-weight", "-1"], "penalty_weight must be at least 0, got -1.0."),
    "partition": ([*PC_DARTS, "--partition", "4"], "partition must divide the channels, got partition=4 and channe"),
    "all epochs frozen": ([*PC_DARTS, "--frozen-share", "1"], "frozen_share must be at least 0 and below 1, got 1.0."),
    "unknown constraints": ([*PR_DARTS, "--constraints", "URR"], "Unknown constraints 'URR'. Did you mean 'UR'? Valid"),
    "column of constraints": ([*PR_DARTS, "--constraints", "UR", "depth=3"], "'depth'. Did you mean 'max_depth'"),
    "value of constraints": ([*PR_DARTS, "--constraints", "UR", "max-depth=a"], "max_depth: expected a whole number o"),
    "no constraints": ([*PR_DARTS, "--constraints"], "Unknown constraints ''. Valid: DL, DR, UR."),
    "constraints that allow nothing": ([*PR_DARTS, "--constraints", "DL", "min-kernel=9"], "min_kernel=9 must be at "),
    "a schedule of another length": ([*PR_DARTS, "--morphisms", "2", "0"], "morphisms must have one number a cycle, 3"),
    "epochs of cycles": ([*PR_DARTS, "--epochs", "3"], "Unrecognized options: --epochs, 3. Did you mean --cycle-epoc"),
    "the zero operation": ([*PR_DARTS, "--operations", "none", ROOT], "PR-DARTS has no zero operation (§4.1): leave "),
    "a name that is not canonical": ([*PR_DARTS, "--operations", "skip_connect", ROOT.replace(" ", "")],
                                     "'sep_conv(kernel=3,dilation=1,expansions=none)' is not the name of a morphable "),
    "share of the topology": ([*STRETCHABLE, "--topology-share", "0.5"], "topology_share must be at least 0 and leave"),
    "topology": ([*STRETCHABLE, "--topology", "edges"], "Expected one of ('any-output-edges', 'output-edges', 'input-"),
    "label smoothing": (["train", "DARTS_V1", "--label-smoothing", "1", "--out", "x"],
                        "label_smoothing must be at least 0 and below 1, got 1.0."),
    "decay": (["train", "DARTS_V1", "--decay", "step", "--out", "x"], "Expected one of ('cosine', 'exponential', 'lin"),
    # genotypes
    "no file": (["train", "x.json"], "Can't read the genotype x.json: No such file or directory."),
    "half a file": (["train", "half.json"], "half.json: Not valid JSON (line 5"),
    "an edge's field": (["draw", "field.json"], "field.json: cells.normal.edges[1]: expected [source, target, operat"),
    "an edge's target": (["draw", "target.json"], "cells.normal.edges[0].target: expected an intermediate node (2 to "),
    "an edge's operation": (["train", "operation.json"], "cells.normal.edges[1]: Unknown operation 'sep_conv_3x4'."),
    "nodes": (["train", "node.json"], "node.json: cells.normal.nodes: expected a whole number, got '4'."),
    "a field too many": (["train", "extra.json"], "Unknown field in cells.normal 'edge'. Did you mean 'edges'"),
    "version of a genotype": (["train", "version.json"], "version: this nasbook reads version 1, got 2."),
    "format of a genotype": (["train", "format.json"], "format: expected 'nasbook.genotype', got 'other'."),
    "no text": (["train", "bytes.json"], "bytes.json is not a text file; expected genotype JSON."),
    # checkpoints
    "a run is there": ([*SEARCH, "--out", "search"], "search holds a run already: give --resume to go on with it"),
    "no run is there": ([*SEARCH, "--out", "none", "--resume"], "There is no checkpoint in none to resume; leave"),
    "another method": ([*RANDOM, "--out", "search", "--resume"],
                       "its method is 'darts', this run's is 'random-search'."),
    "a training's": (["train", "DARTS_V1", *TRAIN, "--out", "search", "--resume"], "its method is 'darts', this run's"),
    "another space": ([*SEARCH, "--out", "search", "--resume", "--nodes", "3"], "its space.nodes is 2, this run's is"),
    "another configuration": ([*SEARCH, "--out", "search", "--resume", "--epochs", "3"], "its config.epochs is 2, "),
    "another seed": ([*SEARCH, "--out", "search", "--resume", "--seed", "3"], "its seed is 0, this run's is 3."),
    "other data": ([*SEARCH, "--out", "search", "--resume", "--data", "other.npz"], "is of another run: its data is '"),
    "another genotype": (["train", "DARTS_V2", *TRAIN, "--out", "train", "--resume"], "its genotype is '{"),
    "another version": ([*SEARCH, "--out", "version", "--resume"], "is a checkpoint of version 2, this nasbook reads"),
    "damaged": ([*SEARCH, "--out", "damaged", "--resume"], "damaged/checkpoint.pt is not a readable checkpoint"),
    # data
    "no network": ([*SEARCH, "--data", "svhn"], "Can't download train_32x32.mat to data/SVHN"),
    "truncated": ([*SEARCH, "--data", "cifar10"], "data/cifar-10-binary.tar.gz is damaged or cut short"),
    "no npz": ([*SEARCH, "--data", "none.npz"], "There is no file none.npz."),
    "classes": ([*SEARCH, "--data", "classes.npz"], "classes.npz: test_labels: expected 0 to 2 as in train_labels"),
    "a folder that holds no images": ([*SEARCH, "--data", "data"], "There is no folder data/train. Expected data to "),
    "too small a share": ([*SEARCH, "--data", "images"], "share=0.03 of the 16 images in images/train/n01 is none"),
    "too much memory": ([*SEARCH, *FOLDER, "--limit-gib", "0.0001"], "GiB, more than limit_gib=0.0001. Lower share "),
    "no test images": (["train", "DARTS_V1", *FOLDER, "--test-share", "0", "--out", "x"],
                       "evaluated on test images: give a --test-share"),
    "a damaged image": ([*SEARCH, "--data", "damaged images", "--share", "1", "--test-share", "0"],
                        "0.jpg is not an image, or is damaged."),
    "data of reproduce": (["reproduce", "darts-random", "--data", "digit", "--out", "x"], "Unknown data set 'digit'."),
    # machine
    "no CUDA": ([*SEARCH, "--device", "cuda"], "Device 'cuda' is not here: torch finds 0 CUDA devices."),
    "no CUDA to reproduce": (["reproduce", "darts-toy", "--device", "cuda:1"], "Device 'cuda:1' is not here"),
    "device": ([*SEARCH, "--device", "gpu"], "Unknown device 'gpu'. Valid: auto, cpu, cuda, cuda:0 and so on."),
    "full disk": ({"arguments": [*SEARCH, "--out", "full"], "limit": 8192},
                  "Can't write full/checkpoint.pt: File too large; no file was left there."),
    "full disk for a picture": ({"arguments": ["draw", "DARTS_V1", "--out", "full.png"], "limit": 8192},
                                "Can't write full.png: File too large; no file was left there."),
    "full disk for a picture that is there": ({"arguments": ["draw", "DARTS_V1", "--out", "cell.svg"], "limit": 8192},
                                              "Can't write cell.svg: File too large; the earlier file is unchanged."),
    "a file in the way": ([*SEARCH, "--out", "a file/x"], "Can't write a file/x/checkpoint.pt: Not a directory"),
    "a name that is too long": ([*SEARCH, "--out", "n" * 300], "File name too long"),
    # runs
    "diverged": ([*SEARCH, "--learning-rate", "1e30", "--clip", "1e30", "--out", "nan"],
                 "The train loss became nan at epoch 1, step 2 of 10."),
    "image too small": (["train", "DARTS_V1", *TRAIN, "--auxiliary", "--out", "x"], "use auxiliary=False at this "),
    "no folder of records": (["records", "--folder", "none"], "There is no folder none."),
    "a damaged record": (["records", "--folder", "bad records"], "bad records/x.json is not a record of nasbook"),
}
WRONG_USAGE = {"no command", "no method", "no experiment", "no genotype", "method", "config key", "config key of train",
               "experiment", "order", "extra argument", "argument of list", "picture", "no value", "a word",
               "channels and parameters", "no test images", "topology", "decay", "unknown constraints",
               "no constraints", "column of constraints", "value of constraints", "epochs of cycles"}


@pytest.fixture(scope="module")
def bad(good, folder):
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    random = np.random.default_rng(0)
    for name, labels in (("other", [0, 1, 2]), ("classes", [0, 1, 3])):
        images = random.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", train_images=images, train_labels=np.arange(300) % 3,
                 test_images=images[:3], test_labels=np.array(labels))
    checkpoint = torch.load(folder / "search" / "checkpoint.pt", weights_only=True)
    (folder / "version").mkdir()
    torch.save({**checkpoint, "version": 2}, folder / "version" / "checkpoint.pt")
    return run_all({name: case for name, (case, _) in BAD.items()}, folder)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(bad, name):
    answer, says = bad[name], BAD[name][1]
    lines = answer["err"].splitlines()
    assert len(lines) == 1, answer["err"]
    assert lines[0].startswith("nasbook: ")
    assert says in lines[0]
    if name in WRONG_USAGE:
        assert answer["code"] == 2
    else:
        assert answer["code"] in (1, 2)
    assert answer["changed"] == []  # nothing lost, nothing half written
    assert "validation accuracy" not in answer["out"]


# --- interrupted and killed -------------------------------------------------------------------------------------------


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the file is there; no limit of our own, as the process may be slow."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def start(program: list[str], arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# The same as -m nasbook in a terminal: a test that runs in the background may have inherited that SIGINT is ignored.
IN_A_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from nasbook.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("how", ["search", "train", "reproduce"])
def test_ctrl_c_saves_and_says_how_to_resume(how, tmp_path):
    arguments, checkpoint = {
        "search": ([*SEARCH, "--epochs", "9999", "--out", "out"], "out/checkpoint.pt"),
        "train": (["train", "DARTS_V1", *TRAIN, "--epochs", "9999", "--out", "out"], "out/checkpoint.pt"),
        "reproduce": (["reproduce", "darts-random", "--out", "out", "--quiet"],
                      "out/checkpoints/darts-random.quick.seed0/search.pt"),
    }[how]
    process = start(["-c", IN_A_TERMINAL], arguments, tmp_path)
    wait_for(tmp_path / checkpoint, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    [said] = errors.strip().splitlines()
    prefix = "nasbook: interrupted and saved. To go on: "
    assert said.startswith(prefix)
    assert said[len(prefix):].split()[:2] == ["nasbook", arguments[0]]
    assert said.endswith(" --resume")
    state = torch.load(tmp_path / checkpoint, weights_only=True)["state"]
    assert state["epoch"] >= 1
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("result.json"))


def test_killed_and_resumed_gives_the_same_genotype(good, folder):
    """With the command's own checkpoints; every kill point is in tests/training."""
    process = start(["-m", "nasbook"], [*SEARCH, "--out", "killed", "--checkpoint-steps", "1"], folder)
    wait_for(folder / "killed" / "checkpoint.pt", process)
    process.kill()
    process.communicate()
    resumed = run_all({"again": [*SEARCH, "--out", "killed", "--resume"]}, folder)["again"]
    assert resumed["code"] == 0, resumed["err"]
    for name in ("genotype.json", "result.json"):
        got, expected = ((folder / run / name).read_text() for run in ("killed", "search"))
        assert without_seconds_in(got) == without_seconds_in(expected)


def without_seconds_in(text: str) -> str:
    return re.sub(r'"seconds": [\d.e-]+', "", text)


def test_an_interrupt_before_anything_is_saved_does_not_promise_to_resume(monkeypatch, capsys):
    from nasbook.cli import commands, main

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "search", interrupted)
    assert main(["search", "darts"]) == 130
    assert capsys.readouterr().err == "\nnasbook: interrupted before there was anything to save.\n"


def test_an_entry_point_and_a_module_are_the_same():
    from importlib.metadata import entry_points

    [entry] = [e for e in entry_points(group="console_scripts") if e.name == "nasbook"]
    assert entry.value == "nasbook.cli:main"


def test_help_comes_before_torch_is_loaded():
    code = "import sys; from nasbook.cli import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
