"""The command line's ``segment``: from a trained classifier to a segmentation network, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from nasbook.data import SHAPE_CLASSES, VOC_CLASSES
from nasbook.genotypes import DARTS_V1, Genotype

pytest.importorskip("torchvision", reason="the head is torchvision's")

PROGRAM = Path(__file__).with_name("command_line.py")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")

TRAIN = ["train", "DARTS_V1", "--data", "colours.npz", "--channels", "2", "--cells", "3", "--epochs", "1",
         "--batch-size", "4", "--quiet"]
SHAPES = ["segment", "DARTS_V1", "--channels", "2", "--head-channels", "4", "--epochs", "2", "--batch-size", "100",
          "--quiet"]
VOC = ["segment", "DARTS_V1", "--data", "images", "--channels", "2", "--cells", "3", "--head-channels", "4", "--epochs",
       "1", "--batch-size", "2", "--crop", "33", "--rates", "1", "2", "3", "--train-list", "train", "--workers", "2",
       "--quiet"]

CASES: dict[str, Any] = {
    "help": ["segment", "--help"],
    "help of all": ["--help"],
    "train": [*TRAIN, "--out", "train"],
    "shapes": [*SHAPES, "--out", "shapes"],
    "shapes again": [*SHAPES, "--out", "again"],
    "shapes resumed at its end": [*SHAPES, "--out", "shapes", "--resume"],
    "shapes, another stride": [*SHAPES, "--epochs", "1", "--output-stride", "2", "--seed", "1", "--out", "stride 2"],
    "shapes, trained backbone": [*SHAPES, "--epochs", "1", "--weights", "train/weights.safetensors", "--learning-rate",
                                 "1e-12", "--weight-decay", "0", "--out", "weights"],
    "voc": [*VOC, "--out", "voc"],
    "no genotype": ["segment"],
    "unknown data": [*SHAPES, "--data", "cifar10", "--out", "no"],
    "unknown option": [*SHAPES, "--strid", "2", "--out", "no"],
    "wrong stride": [*SHAPES, "--output-stride", "16", "--out", "no"],
    "wrong rates": [*SHAPES, "--rates", "0", "1", "2", "--out", "no"],
    "no such weights": [*SHAPES, "--weights", "nowhere.safetensors", "--out", "no"],
    "not weights": [*SHAPES, "--weights", "colours.npz", "--out", "no"],
    "other weights": [*SHAPES, "--channels", "4", "--weights", "train/weights.safetensors", "--out", "no"],
    "no voc there": [*VOC, "--data", "empty", "--out", "no"],
    "no such list": [*VOC, "--train-list", "trainaug", "--out", "no"],
    "shapes at the paper's scale": [*SHAPES, "--data", "shapes", "--scale", "paper", "--out", "no"],
    "there already": [*SHAPES, "--out", "shapes"],
    "another run": [*SHAPES, "--seed", "7", "--out", "shapes", "--resume"],
}  # fmt: skip

REFUSED = {
    "no genotype": "nasbook segment needs a GENOTYPE first.",
    "unknown data": "Unknown data set 'cifar10'.",
    "unknown option": "Unrecognized",
    "wrong stride": "output_stride must be one of 1, 2, 4 with the cifar stem and 3 cells, got 16.",
    "wrong rates": "rates must be three whole numbers above 0, got [0, 1, 2].",
    "no such weights": "There is no file nowhere.safetensors.",
    "not weights": "colours.npz is not a readable .safetensors file",
    "other weights": "'stem.layers.0.weight': expected the shape (12, 3, 3, 3), got (6, 3, 3, 3). Give the genotype,",
    "no voc there": "There is no VOC 2012 in empty",
    "no such list": "There is no list images/ImageSets/Segmentation/trainaug.txt; there are: train, val.",
    "shapes at the paper's scale": "The scale paper is for VOC: with shapes, give --scale quick or laptop.",
    "there already": "shapes holds a run already: give --resume to go on with it, or another --out.",
    "another run": "its seed is 0, this run's is 7",
}


def write_inputs(folder: Path) -> None:
    random = np.random.default_rng(0)
    (folder / "empty").mkdir()
    images = random.integers(256, size=(12, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(12) % 5
    np.savez(folder / "colours.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    lists = folder / "images" / "ImageSets" / "Segmentation"
    for path in (lists, folder / "images" / "JPEGImages", folder / "images" / "SegmentationClass"):
        path.mkdir(parents=True)
    for part, count in (("train", 4), ("val", 2)):
        names = [f"{part}_{number}" for number in range(count)]
        (lists / f"{part}.txt").write_text("\n".join(names))
        for name in names:
            pixels = random.integers(256, size=(40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / "JPEGImages" / f"{name}.jpg")
            labels = random.choice([0, 15, 255], size=(40, 50)).astype(np.uint8)
            Image.fromarray(labels).save(folder / "images" / "SegmentationClass" / f"{name}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("segment")


@pytest.fixture(scope="module")
def answers(folder):
    write_inputs(folder)
    environment = {**os.environ, **NO_NETWORK, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], input=json.dumps(list(CASES.values())), capture_output=True, text=True,
        check=False, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def result_of(folder: Path, name: str) -> dict[str, Any]:
    text = (folder / name / "result.json").read_text()
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_what_works_says_nothing_on_standard_error(answers):
    for name, answer in answers.items():
        if name not in REFUSED:
            assert (answer["code"], answer["err"]) == (0, ""), (name, answer["err"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_takes_one_line(answers, name):
    answer = answers[name]
    assert answer["code"] in (1, 2) and answer["err"].startswith("nasbook: ")
    assert answer["err"].count("\n") == 1 and REFUSED[name] in answer["err"], answer["err"]
    assert answer["changed"] == []


def test_help(answers):
    assert "segment GENOTYPE" in answers["help of all"]["out"]
    text = answers["help"]["out"]
    assert "usage: nasbook segment GENOTYPE" in text
    for option in ("--data", "--weights", "--output-stride", "--head-channels", "--power", "--crop", "--train-list"):
        assert option in text
    for option in ("--share", "--limit-gib", "--image-size"):  # of folders of whole-image classes
        assert option not in text


def test_shapes(answers, folder):
    files = ("checkpoint.pt", "genotype.json", "result.json", "weights.safetensors")
    assert answers["shapes"]["changed"] == [f"shapes/{name}" for name in files]
    assert answers["shapes resumed at its end"]["changed"] == []
    assert Genotype.load(folder / "shapes" / "genotype.json") == DARTS_V1
    result = result_of(folder, "shapes")
    assert (result["method"], result["seed"]) == ("segmentation", 0)
    assert (result["output_stride"], result["rates"]) == (4, [1, 2, 3])
    assert list(result["class_iou"]) == list(SHAPE_CLASSES)
    assert len(result["history"]) == 2
    mean = result["history"][-1]["mean_iou"]
    shares = [share for share in result["class_iou"].values() if share is not None]
    assert mean == pytest.approx(sum(shares) / len(shares))
    out = answers["shapes"]["out"]
    assert f"mean IoU {mean:.2%}" in out and f"  background: {result['class_iou']['background']:.2%}" in out
    weights = load_file(folder / "shapes" / "weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"backbone", "head"}
    again = result_of(folder, "again")
    for row in (*result["history"], *again["history"]):
        del row["seconds"]
    assert again == result
    assert result_of(folder, "stride 2")["output_stride"] == 2


def test_a_trained_backbone(answers, folder):
    """With a learning rate of next to nothing, it ends as it began."""
    trained = load_file(folder / "train" / "weights.safetensors")
    ended = load_file(folder / "weights" / "weights.safetensors")
    for name, value in trained.items():
        if not name.startswith("classifier") and "running" not in name and "num_batches" not in name:
            assert (ended[f"backbone.{name}"] - value).abs().max() < 1e-9, name
    other = load_file(folder / "shapes" / "weights.safetensors")["backbone.stem.layers.0.weight"]
    assert (other - trained["stem.layers.0.weight"]).abs().max() > 1e-3


def test_voc(answers, folder):
    result = result_of(folder, "voc")
    assert (result["output_stride"], result["rates"]) == (16, [1, 2, 3])  # the paper's stride comes with VOC
    assert (result["config"]["crop"], result["config"]["learning_rate"]) == (33, 0.007)
    assert list(result["class_iou"]) == list(VOC_CLASSES)
    assert result["class_iou"]["person"] is not None
    for name, share in result["class_iou"].items():
        said = "in no test image" if share is None else f"{share:.2%}"
        assert f"  {name}: {said}\n" in answers["voc"]["out"]
