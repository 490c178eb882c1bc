"""The command line on series and text: searches whose cells grow, networks that train, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nasbook.data import SERIES, TEXTS, load_series, load_text
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.methods import METHODS, SEQUENCE_METHODS
from nasbook.networks import RECURRENT_BACKBONES, TORCH_CELLS, DerivedRecurrentNetwork
from nasbook.training import evaluate_sequences

PROGRAM = Path(__file__).parents[1] / "command_line.py"
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")

GROW = ["search", "growing-recurrent"]
SHORT = ["--stages", "2", "--stage-epochs", "1", "--tune-epochs", "1", "--quiet"]
CSV = [*GROW, "--data", "prices.csv", *SHORT]
TEXT = [*GROW, "--data", "words.txt", "--window", "4", "--hidden", "5", *SHORT]
TRAIN = ["--epochs", "2", "--quiet"]
IMAGES = ["search", "growing", "--operations", "none", "skip_connect", "sep_conv_3x3", "--channels", "2", *SHORT]

GOOD: dict[str, Any] = {
    "csv": [*CSV, "--out", "csv"],
    "csv again": [*CSV, "--out", "again"],
    "csv resumed at its end": [*CSV, "--out", "csv", "--resume"],
    "csv with another seed": [*CSV, "--out", "seed 1", "--seed", "1"],
    "columns": [*CSV, "--columns", "B", "A", "--window", "3", "--shares", "0.6", "0.2", "0.2", "--drop-interpolated",
                "--hidden", "4", "--backbone", "darts", "--mode", "prune-at-end", "--nodes", "1", "--out", "columns"],
    "returns": [*CSV[:2], "--data", "returns.csv", "--returns", *SHORT, "--out", "returns"],
    "a name": [*GROW, "--batch-size", "500", *SHORT, "--out", "name"],
    "operators": [*CSV, "--operators.strategy", "small-weight", "--operators.grow-above", "0.2", "--kept-operations",
                  "2", "--stage-epochs", "2", "--layers", "2", "--out", "operators"],
    "splitting": [*CSV, "--operators.strategy", "splitting", "--stage-epochs", "3", "--patience", "1",
                  "--learning-rate", "0.3", "--out", "splitting"],
    "text": [*TEXT, "--out", "text"],
    "folder": [*TEXT[:2], "--data", "corpus", *TEXT[4:], "--most-words", "12", "--out", "folder"],
    "grammar": [*GROW, "--data", "grammar", "--lines", "60", "20", "20", "--hidden", "4", *SHORT, "--out", "grammar"],
    "train csv": ["train", "csv/genotype.json", "--scale", "quick", "--data", "prices.csv", *TRAIN, "--out", "t csv"],
    "train csv again": ["train", "csv/genotype.json", "--data", "prices.csv", *TRAIN, "--out", "t again"],
    "train csv resumed at its end": ["train", "csv/genotype.json", "--data", "prices.csv", *TRAIN, "--out", "t csv",
                                     "--resume"],
    "train two layers": ["train", "operators/genotype.json", "--data", "prices.csv", *TRAIN, "--out", "t layers"],
    "train columns": ["train", "columns/genotype.json", "--scale", "quick", "--data", "prices.csv", "--columns", "B",
                      "A", "--drop-interpolated", "--window", "3", "--shares", "0.6", "0.2", "0.2", "--hidden", "4",
                      *TRAIN, "--out", "t columns"],
    "train text": ["train", "text/genotype.json", "--data", "words.txt", "--window", "4", "--hidden", "5", *TRAIN,
                   "--out", "t text"],
    "train too long": ["train", "lstm", "--data", "prices.csv", "--epochs", "30", "--learning-rate", "0.1", "--quiet",
                       "--out", "t long"],
    "train gru": ["train", "gru", "--data", "words.txt", "--window", "4", "--layers", "2", *TRAIN, "--out", "t gru"],
    "growing": [*IMAGES, "--nodes", "1", "--mode", "prune-at-end", "--out", "growing"],
    "growing resumed at its end": [*IMAGES, "--nodes", "1", "--mode", "prune-at-end", "--out", "growing", "--resume"],
    "draw cells": ["draw", "csv/genotype.json", "--out", "cells.svg"],
    "draw two layers": ["draw", "operators/genotype.json", "--out", "layers.svg"],
    "draw the growth": ["draw", "csv/result.json", "--out", "growth.svg"],
    "list": ["list"],
    "bar": [*CSV[:-1], "--batch-size", "15", "--out", "bar"],
    "help": [*GROW, "--help"],
    "help of text": [*GROW, "--data", "grammar", "--help"],
    "help at a scale without series": [*GROW, "--scale", "paper", "--help"],
    "help of train": ["train", "csv/genotype.json", "--help"],
    "help of a baseline": ["train", "lstm", "--data", "ptb", "--scale", "gpu", "--help"],
    "help of growing": ["search", "growing", "--help"],
}  # fmt: skip


def cell(kind: str, *edges: tuple[int, int, str], output: int = 0) -> str:
    last = max(edge[1] for edge in edges)
    found = CellGenotype(tuple(Edge(*edge) for edge in edges), nodes=last, inputs=1, output=(output or last,))
    return Genotype({kind: found}).to_json()


FILES = {
    "chain.json": cell("two-to-one", (0, 1, "tanh"), (1, 2, "sum")),
    "two-to-on.json": cell("two-to-on", (0, 1, "tanh")),
    "sigmod.json": cell("two-to-one", (0, 1, "tanh"), (1, 2, "sigmod")),
    "sum.json": cell("darts", (0, 1, "sum")),
    "no chain.json": cell("two-to-one", (0, 1, "tanh"), (0, 2, "tanh")),
    "half.json": json.dumps({"method": "growing-recurrent", "history": [{"epoch": 1}], "events": []}),
    "missing.csv": "day,A,B\n2024-01-01,1,2\n2024-01-02,,3\n",
    "short.csv": "A,B\n1,2\n2,1\n",
    "few.txt": "a b\n",
}

BAD: dict[str, tuple[Any, str]] = {
    # data of the wrong kind
    "text for images": (["search", "darts", "--data", "grammar", "--out", "no"],
                        "'grammar' is of text, and this runs on images. To search for a recurrent cell on it: nasbook "
                        "search growing-recurrent --data grammar"),
    "series for images": (["search", "growing", "--data", "prices.csv", "--out", "no"],
                          "'prices.csv' is of series, and this runs on images."),
    "text for an image cell": (["train", "DARTS_V2", "--data", "words.txt", "--out", "no"], "'words.txt' is of text, "),
    "series for grow": (["grow", "firefly", "--data", "simulated-g7", "--out", "no"], "'simulated-g7' is of series, "),
    "images": ([*GROW, "--data", "digits"], "'digits' is of images, and recurrent cells run on series and text. To "
               "grow cells for it: nasbook search growing --data digits"),
    "an npz": (["train", "chain.json", "--data", "a.npz"], "'a.npz' is of images, and recurrent cells run on series"),
    "unknown data": ([*GROW, "--data", "gramar"], "Unknown series or text 'gramar'. Did you mean 'grammar'?"),
    "a recurrent cell to segment": (["segment", "chain.json"], "chain.json holds recurrent cells, for series and text"),
    "no series at a scale": ([*GROW, "--scale", "paper"], "The scale 'paper' has no series of its own: give --data a "
                             ".csv file of daily closes, a .txt file, or one of simulated-g7, simulated-brics, "),
    "no series to train on": (["train", "lstm", "--scale", "laptop"], "The scale 'laptop' has no series of its own"),
    "no series to reproduce": (["reproduce", "growing-series", "--scale", "laptop", "--out", "no"],
                               "give a CSV file of daily closes"),
    "other columns to reproduce": (["reproduce", "growing-series", "--scale", "laptop", "--data", "prices.csv",
                                    "--out", "no"], "Unknown column 'GSPC'"),
    "a file for embedded series": (["reproduce", "growing-series", "--data", "prices.csv", "--out", "no"],
                                   "The scale 'quick' is measured on simulated-g7, which is embedded: leave out --"),
    # options of the wrong kind
    "an option of text": ([*CSV, "--lines", "1", "2", "3", "--out", "no"], "Unrecognized options: --lines, 1, 2, 3."),
    "an option of series": ([*TEXT, "--columns", "A", "--out", "no"],
                            "See nasbook search growing-recurrent --data words.txt --help."),
    "returns of a name": ([*GROW, "--returns", *SHORT, "--out", "no"], "--returns is for a .csv file; what simulated-"),
    "layers of a genotype": (["train", "chain.json", "--layers", "2", "--out", "no"], "--layers is for lstm and gru; "),
    "an option with a typo": ([*CSV, "--operators.strateg", "splitting", "--out", "no"], "Did you mean --operators.st"),
    "a method with a typo": (["search", "growing-recurent"], "Unknown method 'growing-recurent'. Did you mean 'growin"),
    # values
    "strategy": ([*CSV, "--operators.strategy", "split", "--out", "no"], "Expected one of ('none', 'small-weight', 's"),
    "mode": ([*CSV, "--mode", "prune", "--out", "no"], "Expected one of ('prune-each-stage', 'prune-at-end')"),
    "backbone": ([*CSV, "--backbone", "lstm", "--out", "no"], "Expected one of ('two-to-one', 'darts', 'highway')"),
    "operators of the highway": ([*CSV, "--backbone", "highway", "--operators.strategy", "small-weight", "--out", "no"],
                                 "in the highway backbone the operations of a node share their weights."),
    "operators of images": ([*IMAGES, "--operators.strategy", "splitting", "--out", "no"],
                            "convolutional operations don't multiply"),
    "stages": ([*CSV, "--stages", "0", "--out", "no"], "stages must be above 0, got 0."),
    "hidden": ([*CSV, "--hidden", "0", "--out", "no"], "hidden must be above 0, got 0."),
    "hidden to train": (["train", "chain.json", "--hidden", "-1", "--out", "no"], "hidden must be above 0, got -1."),
    "no layers": (["train", "gru", "--layers", "0", "--out", "no"], "layers must be above 0, got 0."),
    "window": ([*CSV, "--window", "0", "--out", "no"], "window must be above 0, got 0."),
    "batch": (["train", "gru", "--data", "prices.csv", "--batch-size", "500", "--out", "no"], "A batch of 500 needs"),
    # files
    "no csv": ([*GROW, "--data", "none.csv", "--out", "no"], "There is no file none.csv."),
    "no text": ([*GROW, "--data", "none.txt", "--out", "no"], "There is no file none.txt."),
    "a folder without a text": ([*GROW, "--data", "csv", "--out", "no"], "csv has no training text."),
    "column": ([*CSV, "--columns", "A", "D", "--out", "no"], "Unknown column 'D'."),
    "a value that is missing": ([*GROW, "--data", "missing.csv", "--out", "no"],
                                "missing.csv, line 3, column 'A': a value is missing."),
    "returns read as prices": ([*GROW, "--data", "returns.csv", "--out", "no"], "For returns give --returns."),
    "too few days": ([*GROW, "--data", "short.csv", "--out", "no"], "short.csv: 1 rows of returns are too few"),
    "too few words": ([*GROW, "--data", "few.txt", "--out", "no"], "tokens, too few for a window of 20"),
    "lines": ([*TEXT, "--lines", "4000", "500", "500", "--out", "no"], "needs 5000 lines that are not empty"),
    # genotypes
    "kind": (["train", "two-to-on.json"], "cells.two-to-on.edges[0]: Unknown recurrent backbone 'two-to-on'. Did you "),
    "operation": (["train", "sigmod.json"], "sigmod.json: cells.two-to-one.edges[1]: Unknown operation of the "
                  "two-to-one backbone 'sigmod'. Did you mean 'sigmoid'?"),
    "operation of another backbone": (["train", "sum.json"], "Unknown operation of the darts backbone 'sum'."),
    "no chain": (["train", "no chain.json", "--out", "no"], "an edge from node 0 to node 2"),
    "baseline": (["train", "lstn"], "Unknown genotype 'lstn'. Did you mean 'lstm'"),
    "an operation to draw": (["draw", "sigmod.json", "--out", "no.svg"], "Unknown operation of the two-to-one backbon"),
    "a search to draw": (["draw", "growing/result.json", "--out", "no.svg"],
                         "is of 'growing', with numbers only: to draw cells, give a genotype.json."),
    "half a result to draw": (["draw", "half.json", "--out", "no.svg"], "half.json is not whole: expected events, an"),
    # runs
    "a run is there": ([*CSV, "--out", "csv"], "csv holds a run already: give --resume to go on with it"),
    "no run is there": ([*CSV, "--out", "no", "--resume"], "There is no checkpoint in no to resume"),
    "another backbone's": ([*CSV, "--backbone", "darts", "--out", "csv", "--resume"], "its space.operations is ["),
    "another mode's": ([*CSV, "--mode", "prune-at-end", "--out", "csv", "--resume"],
                       "its config.mode is 'prune-each-stage', this run's is 'prune-at-end'."),
    "another width's": ([*CSV, "--hidden", "9", "--out", "csv", "--resume"], "its config.hidden is 3, this run's is 9"),
    "other data": ([*CSV, "--columns", "C", "B", "A", "--out", "csv", "--resume"], "its data is '"),
    "other rules": ([*CSV, "--operators.share", "0.2", "--out", "csv", "--resume"], "its config.operators"),
    "another genotype": (["train", "chain.json", "--data", "prices.csv", *TRAIN, "--out", "t csv", "--resume"],
                         "its genotype is '{"),
    "another network": (["train", "lstm", "--data", "prices.csv", *TRAIN, "--out", "t csv", "--resume"],
                        "its network is 'DerivedRecurrentNetwork', this run's is 'TorchRecurrentNetwork'."),
    "diverged": ([*CSV, "--learning-rate", "1e30", "--out", "no"], "became nan"),
    "full disk": ({"arguments": [*CSV, "--out", "full"], "limit": 4096}, "Can't write full/checkpoint.pt: "),
    "CUDA": ([*CSV, "--device", "cuda", "--out", "no"], "Device 'cuda' is not here"),
}  # fmt: skip
WRONG_USAGE = {"images", "an npz", "no series at a scale", "no series to train on", "an option of text",
               "an option of series", "returns of a name", "layers of a genotype", "an option with a typo",
               "a method with a typo", "strategy", "mode", "backbone"}  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, **NO_NETWORK, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NASBOOK_DATA": "data",
            "COLUMNS": "120"}  # fmt: skip


def run_all(cases: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    given, program = json.dumps(list(cases.values())), [sys.executable, str(PROGRAM)]
    done = subprocess.run(
        program, input=given, capture_output=True, text=True, check=False, cwd=folder, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def write_data(folder: Path) -> None:
    random = np.random.default_rng(0)
    returns = 0.01 * random.standard_normal((300, 3))
    prices = 100 * np.exp(returns.cumsum(0))
    prices[150] = (prices[149] + prices[151]) / 2  # a holiday that was filled in
    for name, rows in (("prices", prices), ("returns", returns)):
        lines = [f"day {day},{','.join(map(str, row.tolist()))}" for day, row in enumerate(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["day,A,B,C", *lines]) + "\n")
    words = [" ".join(random.choice(list("abcdefghijklmnop"), 6)) for _ in range(300)]
    (folder / "words.txt").write_text("\n".join(words))
    (folder / "corpus").mkdir()
    for name, start, end in (("train", 0, 200), ("valid", 200, 250), ("test", 250, 300)):
        (folder / "corpus" / f"{name}.txt").write_text("\n".join(words[start:end]))
    for name, content in FILES.items():
        (folder / name).write_text(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """The good ones, then the bad ones, in one folder."""
    return run_all({**GOOD, **{f"bad: {name}": case for name, (case, _) in BAD.items()}}, folder)


def result_of(folder: Path, run: str) -> Any:
    return json.loads((folder / run / "result.json").read_text(), parse_constant=pytest.fail)


def without_seconds(text: str) -> str:
    return re.sub(r'"seconds": [\d.e-]+', "", text)


# --- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_all_of_it_works(answers, name):
    assert answers[name]["code"] == 0, answers[name]["err"]
    assert answers[name]["err"] == "" or name == "bar"
    assert answers[name]["out"]


def test_a_search_on_a_csv_file(answers, folder):
    assert answers["csv"]["changed"] == [f"csv/{name}" for name in ("checkpoint.pt", "genotype.json", "result.json")]
    result = result_of(folder, "csv")
    assert (result["method"], result["seed"], result["config"]["hidden"]) == ("growing-recurrent", 0, 3)
    assert result["data"] == load_series(folder / "prices.csv").checksum
    stages = [(row["stage"], row["tuning"], row["nodes"]) for row in result["history"]]
    assert stages == [(1, False, 2), (1, True, 2), (2, False, 3), (2, True, 3)]
    for row in result["history"]:
        assert {"epoch", "parameters", "train_loss", "validation_loss", "seconds"} <= row.keys()
    events = [event["what"] for event in result["events"]]
    assert events[:3] == ["prune", "node", "prune"]
    genotype = Genotype.load(folder / "csv/genotype.json")
    assert genotype.kinds == ("two-to-one",)
    lines = answers["csv"]["out"].splitlines()
    assert lines[0].startswith("SeriesData('prices', 3 series × 299 rows, ")
    assert len([line for line in lines if line.startswith("after epoch")]) == len(events)
    first = result["events"][0]
    assert lines[1] == (
        f"after epoch 1, in stage 1: pruned, validation loss {first['loss_before']:.4f} → {first['loss_after']:.4f}, "
        f"{first['parameters']} parameters"
    )
    assert lines[2].startswith("after epoch 2, in stage 1: one more node, validation loss ")
    edges = ", ".join(f"{e.source}→{e.target} {e.operation}" for e in genotype["two-to-one"].edges)
    assert lines[-5] == f"two-to-one: {edges}"
    said = r"validation loss \d\.\d{4} of the pruned supernet after 4 epochs in 2 stages, \d+ s"
    assert re.fullmatch(said, lines[-4])
    assert lines[-3] == "genotype: csv/genotype.json"
    # with all options at their defaults, the width is that of the series again
    assert lines[-2] == "train it: nasbook train csv/genotype.json --scale quick --data prices.csv"
    assert lines[-1] == "draw it: nasbook draw csv/result.json --out cells.png"


def test_a_seed_decides_everything(answers, folder):
    for name in ("genotype.json", "result.json"):
        texts = [without_seconds((folder / run / name).read_text()) for run in ("csv", "again", "seed 1")]
        assert texts[0] == texts[1]
        assert name == "genotype.json" or texts[0] != texts[2]
    assert answers["csv resumed at its end"]["changed"] == []
    assert answers["csv resumed at its end"]["out"] == answers["csv"]["out"]


def test_what_is_read_of_a_csv_file(answers, folder):
    result = result_of(folder, "columns")
    data = load_series(
        folder / "prices.csv", window=3, columns=("B", "A"), shares=(0.6, 0.2, 0.2), drop_interpolated=True
    )
    assert data.dropped == ("day 150",)
    assert "1 days left out whose price was filled in" in answers["columns"]["out"]
    assert result["data"] == data.checksum
    assert result["config"]["hidden"] == 4
    assert [row["nodes"] for row in result["history"]] == [1, 2, 2] or result["events"][-2]["what"] == "stop"
    assert Genotype.load(folder / "columns/genotype.json").kinds == ("darts",)
    # what the search says and what is done below are the same command
    said = answers["columns"]["out"].splitlines()[-2].removeprefix("train it: nasbook ")
    assert shlex.split(said) == GOOD["train columns"][: -len(TRAIN) - 2]
    assert result_of(folder, "t columns")["data"] == data.checksum
    assert result_of(folder, "returns")["data"] == load_series(folder / "returns.csv", prices=False).checksum
    assert answers["returns"]["out"].splitlines()[-2].endswith("--data returns.csv --returns")


def test_a_search_on_a_text(answers, folder):
    data = load_text(folder / "words.txt", window=4)
    assert result_of(folder, "text")["data"] == data.checksum
    said = answers["text"]["out"].splitlines()
    loss, perplexity = map(float, re.match(r"validation loss ([\d.]+) \(perplexity ([\d.]+)\)", said[-4]).groups())
    assert perplexity == pytest.approx(math.exp(loss), rel=0.01)
    assert said[-2] == (
        "train it: nasbook train text/genotype.json --scale quick --data words.txt --window 4 --hidden 5"
    )
    few = load_text(folder / "corpus", window=4, most_words=12)
    assert result_of(folder, "folder")["data"] == few.checksum
    assert result_of(folder, "grammar")["data"] == load_text("grammar", window=20, lines=(60, 20, 20)).checksum


def test_operations_multiply(answers, folder):
    result = result_of(folder, "operators")
    changes = [event for event in result["events"] if event["what"] == "operations"]
    assert changes
    [first, *_] = changes[0]["operations"]
    assert first["what"] == "grow"
    assert first["candidate"].endswith("-2")
    [said] = [line for line in answers["operators"]["out"].splitlines() if "in stage 1: operations: " in line]
    assert f"grow {first['candidate']}" in said
    assert Genotype.load(folder / "operators/genotype.json").kinds == ("two-to-one 1", "two-to-one 2")
    splits = [event for event in result_of(folder, "splitting")["events"] if event["what"] == "split"]
    assert splits
    assert splits[0]["operations"][0]["what"] == "split"


@pytest.mark.parametrize("run", ["t csv", "t columns", "t layers", "t text"])
def test_the_network_can_be_built_again_from_its_files(answers, folder, run):
    result = result_of(folder, run)
    data = {
        "t csv": lambda: load_series(folder / "prices.csv"),
        "t layers": lambda: load_series(folder / "prices.csv"),
        "t columns": lambda: load_series(
            folder / "prices.csv", window=3, columns=("B", "A"), shares=(0.6, 0.2, 0.2), drop_interpolated=True
        ),
        "t text": lambda: load_text(folder / "words.txt", window=4),
    }[run]()
    assert result["data"] == data.checksum
    genotype = Genotype.load(folder / run / "genotype.json")
    network = DerivedRecurrentNetwork(genotype, data, result["hidden"])
    network.load_state_dict(load_file(folder / run / "weights.safetensors"))
    loss, _ = evaluate_sequences(network, data, "test")
    assert loss == pytest.approx(result["history"][-1]["test_loss"], rel=1e-5)
    said = answers[{"t csv": "train csv", "t columns": "train columns", "t layers": "train two layers",
                    "t text": "train text"}[run]]["out"]  # fmt: skip
    assert f"test loss {loss:.4f}" in said
    assert f"the best forecast without looking has {data.constant_loss('test'):.4f}" in said
    assert ("perplexity" in said) == (run == "t text")


def test_train(answers, folder):
    files = ("checkpoint.pt", "genotype.json", "result.json", "weights.safetensors")
    assert answers["train csv"]["changed"] == [f"t csv/{name}" for name in files]
    histories = [without_seconds((folder / run / "result.json").read_text()) for run in ("t csv", "t again")]
    assert histories[0] == histories[1]
    assert answers["train csv resumed at its end"]["changed"] == []
    assert answers["train csv resumed at its end"]["out"] == answers["train csv"]["out"]
    parameters, hidden = re.search(r"([\d,]+) parameters, (\d+) hidden units", answers["train csv"]["out"]).groups()
    assert (int(hidden), result_of(folder, "t csv")["hidden"]) == (3, 3)
    weights = load_file(folder / "t csv/weights.safetensors")
    assert int(parameters.replace(",", "")) == sum(weight.numel() for weight in weights.values())


def test_baselines(answers, folder):
    assert answers["train gru"]["changed"] == [f"t gru/{n}" for n in ("checkpoint.pt", "result.json",
                                                                     "weights.safetensors")]  # fmt: skip
    names = load_file(folder / "t gru/weights.safetensors").keys()
    assert {"body.weight_hh_l0", "body.weight_hh_l1"} <= names  # two layers
    losses = [row["validation_loss"] for row in result_of(folder, "t long")["history"]]
    best = losses.index(min(losses)) + 1
    assert best < 30
    assert f"the validation loss was least after epoch {best}: --epochs {best} ends there" in (
        answers["train too long"]["out"].splitlines()
    )


def test_a_convolutional_cell_grows(answers, folder):
    result = result_of(folder, "growing")
    assert (result["method"], result["space"]["nodes"]) == ("growing", 1)
    assert [(row["stage"], row["nodes"]) for row in result["history"]][:2] == [(1, 1), (2, 2)]
    assert result["history"][-1]["tuning"]
    assert result["events"][0]["what"] == "node"
    assert Genotype.load(folder / "growing/genotype.json").kinds == ("normal", "reduction")
    said = answers["growing"]["out"]
    assert "after epoch 1, in stage 1: one more node, validation loss " in said
    assert "train it: nasbook train growing/genotype.json --scale quick --data digits" in said
    assert answers["growing resumed at its end"]["changed"] == []
    assert answers["growing resumed at its end"]["out"] == said


def test_draw(answers, folder):
    for name in ("cells", "layers", "growth"):
        assert "<svg" in (folder / f"{name}.svg").read_text()
    assert "two-to-one 2" in (folder / "layers.svg").read_text()
    assert "only weights learn" in (folder / "growth.svg").read_text()
    weights = result_of(folder, "csv")["history"][2]["weights"]["two-to-one"]
    assert [edge[:2] for edge in weights] == [[0, 1], [1, 2], [2, 3]]
    assert [len(edge[2]) for edge in weights] == [1, 1, 5]
    for _, _, names in weights:
        assert sum(names.values()) == pytest.approx(1)


def test_list_has_every_name(answers):
    out = answers["list"]["out"]
    for name in (*METHODS, *SEQUENCE_METHODS, *SERIES, *TEXTS, *RECURRENT_BACKBONES, *TORCH_CELLS):
        assert re.search(rf"^  {re.escape(name)}\b", out, re.MULTILINE), name


def test_the_bar_shows_the_loss(answers):
    assert "search growing-recurrent" in answers["bar"]["err"]
    assert "train loss=" in answers["bar"]["err"]


RUN = ("--out", "--data", "--scale", "--seed", "--device", "--resume", "--checkpoint-steps", "--quiet")
OF_SERIES = ("--columns", "--returns", "--drop-interpolated", "--window", "--shares")
OF_TEXT = ("--lines", "--window", "--most-words")
PLAN = ("--mode {prune", "--stages", "--stage-epochs", "--tune-epochs", "--patience", "--kept-operations", "--delta",
        "--operators.strategy {none,small-weight,splitting}", "--operators.exchange")  # fmt: skip
CELL = ("--backbone {two-to-one", "--nodes", "--hidden", "--layers", "--engine")


@pytest.mark.parametrize(
    ("name", "mentioned"),
    [
        ("help", (*RUN, *PLAN, *CELL, *OF_SERIES, "number of series", "(default: simulated-g7)",
                  "give it before --help")),
        ("help of text", (*RUN, *PLAN, *CELL, *OF_TEXT, "(default: grammar)", "growing-recurrent --data grammar")),
        ("help at a scale without series", ("(default: FILE.csv)", "(default: 0.001)")),
        ("help of train", (*RUN, *OF_SERIES, "--hidden", "--epochs", "--clip")),
        ("help of a baseline", (*RUN, *OF_TEXT, "--layers", "(default: 4000 500 500)", "(default: 128)")),
        ("help of growing", (*RUN, *PLAN, "--nodes", "--operations", "--channels", "--share")),
    ],
)  # fmt: skip
def test_help_mentions_every_argument(answers, name, mentioned):
    out = answers[name]["out"]
    for word in mentioned:
        assert word in out
    assert ("--lines" in out) == ("--lines" in mentioned)  # not the options of other data


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(answers, name):
    answer, says = answers[f"bad: {name}"], BAD[name][1]
    lines = answer["err"].splitlines()
    assert len(lines) == 1, answer["err"]
    assert lines[0].startswith("nasbook: ")
    assert says in lines[0]
    if name in WRONG_USAGE:
        assert answer["code"] == 2
    else:
        assert answer["code"] in (1, 2)
    assert answer["changed"] == []


# --- interrupted and killed -------------------------------------------------------------------------------------------

# A test that runs in the background may have inherited that SIGINT is ignored.
START = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from nasbook.cli import main
{}
sys.exit(main())
"""
HANGS = """
from nasbook.methods.growing_search import GrowingSearch
step = GrowingSearch.run_step
def hanging(search, index):
    if (search.stage, search.step) == (1, 2):
        time.sleep(600)
    return step(search, index)
GrowingSearch.run_step = hanging
"""


def start(before: str, arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START.format(before), *arguments], cwd=folder, env=environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_until(reached: Any, process: subprocess.Popen[str]) -> None:
    """No limit of our own: the process may be slow."""
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def state_of(checkpoint: Path) -> Any:
    return torch.load(checkpoint, weights_only=True)["state"]


def test_killed_after_a_growth_and_resumed_gives_the_same_cell(answers, folder):
    """Every other place is in tests/methods."""
    process = start(HANGS, [*CSV, "--out", "killed", "--checkpoint-steps", "1"], folder)
    checkpoint = folder / "killed/checkpoint.pt"

    def in_the_second_stage() -> bool:
        return checkpoint.exists() and (state_of(checkpoint)["stage"], state_of(checkpoint)["step"]) == (1, 2)

    wait_until(in_the_second_stage, process)
    process.kill()
    process.communicate()
    assert not (folder / "killed/result.json").exists()
    resumed = run_all({"again": [*CSV, "--out", "killed", "--resume"]}, folder)["again"]
    assert resumed["code"] == 0, resumed["err"]
    for name in ("genotype.json", "result.json"):
        got, expected = ((folder / run / name).read_text() for run in ("killed", "csv"))
        assert without_seconds(got) == without_seconds(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        [*CSV, "--stage-epochs", "9999", "--patience", "9999"],
        ["train", "chain.json", "--data", "prices.csv", "--epochs", "9999", "--quiet"],
    ],
    ids=["search", "train"],
)
def test_ctrl_c_saves_and_says_how_to_resume(folder, arguments):
    out = f"interrupted {arguments[0]}"
    process = start("", [*arguments, "--out", out], folder)
    checkpoint = folder / out / "checkpoint.pt"
    wait_until(checkpoint.exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    [said] = errors.strip().splitlines()
    again = shlex.join(["nasbook", *arguments, "--out", out, "--resume"])
    assert said == f"nasbook: interrupted and saved. To go on: {again}"
    assert state_of(checkpoint)["epoch"] >= 1
    assert not list((folder / out).glob("result.json"))
