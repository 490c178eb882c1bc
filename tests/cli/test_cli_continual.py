"""The command line's ``continual`` and ``test``: what they write, how they go on, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasbook.continual import Backbone, MasterNetwork, split_classes, take_classes
from nasbook.data import load_images
from nasbook.methods import LEARNERS
from nasbook.methods.firefly_continual import Config
from nasbook.networks import scaled_widths
from nasbook.training import evaluate

PROGRAM = Path(__file__).parents[1] / "command_line.py"
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")

SHORT = ["--data", "small.npz", "--epochs", "2", "--batch-size", "10", "--learning-rate", "0.2", "--quiet"]
PERCEPTRON = [*SHORT, "--network", "perceptron", "--widths", "6", "5"]
PHASES = ["--mask-epochs", "1", "--direction-epochs", "1", "--neurons", "4", "--new-neurons", "2"]
LEARN = ["continual", "firefly-continual"]
FIREFLY = [*LEARN, *PERCEPTRON, *PHASES]
OWN = {
    "packnet": ["--retraining-epochs", "1"],
    "cpg": ["--goal", "0.6", "--sparsities", "0.5", "--pruning-epochs", "1", "--retraining-epochs", "1",
            "--validation-share", "0.3"],
}  # fmt: skip
"""Options that shorten a learner."""
OTHERS = [name for name in LEARNERS if name != "firefly-continual"]

GOOD: dict[str, Any] = {
    "firefly": [*FIREFLY, "--out", "firefly"],
    "firefly again": [*FIREFLY, "--out", "again"],
    "firefly resumed at its end": [*FIREFLY, "--out", "firefly", "--resume"],
    "another seed": [*FIREFLY, "--seed", "1", "--out", "seed 1"],
    "another division": [*FIREFLY, "--split-seed", "1", "--out", "division"],
    "another order": [*FIREFLY, "--order", "5", "1", "4", "2", "3", "--out", "order"],
    "two tasks": [*FIREFLY, "--tasks", "2", "--out", "two"],
    "one task": [*FIREFLY, "--seen-tasks", "1", "--out", "one"],
    "the scale's widths": [*LEARN, *SHORT, *PHASES, "--network=vgg11", "--seen-tasks", "2", "--out", "vgg"],
    "one width": [*LEARN, *SHORT, *PHASES, "--network", "vgg11", "--widths", "3", "--seen-tasks", "1", "--out", "3"],
    **{name: ["continual", name, *PERCEPTRON, "--tasks", "2", *OWN.get(name, []), "--out", name] for name in OTHERS},
    "bar": ["continual", "fine-tuned", *PERCEPTRON, "--tasks", "2", "--out", "bar"],
    "test": ["test", "firefly/master.safetensors", "--data", "small.npz"],
    "test a task": ["test", "firefly/master.safetensors", "--data", "small.npz", "--task", "2"],
    "test without the other file": ["test", "alone.safetensors", "--data", "small.npz"],
    "draw a master": ["draw", "firefly/master.safetensors", "--out", "master.svg"],
    "draw a result": ["draw", "firefly/result.json", "--out", "result.svg"],
    "draw a task": ["draw", "firefly/result.json", "--task", "2", "--out", "task.svg"],
    "draw accuracies": ["draw", "fine-tuned/result.json", "--out", "accuracies.svg"],
    "list": ["list"],
    "help": ["--help"],
    "help of continual": ["continual", "--help"],
    "help of test": ["test", "--help"],
    "help of draw": ["draw", "--help"],
    "help at paper": [*LEARN, "--scale", "paper", "--help"],
    "help at laptop": ["continual", "individual", "--scale", "laptop", "--help"],
    "help of another network": [*LEARN, "--network", "vgg19", "--help"],
    **{f"help of {name}": ["continual", name, "--help"] for name in LEARNERS},
}  # fmt: skip
GOOD["bar"].remove("--quiet")

TEST = ["test", "firefly/master.safetensors", "--data", "small.npz"]
BAD: dict[str, tuple[Any, str]] = {
    "no method": (["continual"], "nasbook continual needs a METHOD first. One of: firefly-continual, individual, "),
    "method": (["continual", "firefly"], "Unknown method 'firefly'. Did you mean 'firefly-continual'? Valid: "),
    "a growth method": (["continual", "net2net"], "Unknown method 'net2net'."),
    "network": ([*FIREFLY, "--network", "vgg-11", "--out", "no"],
                "Unknown growable network 'vgg-11'. Did you mean 'vgg11'"),
    "data": ([*FIREFLY, "--data", "digit", "--out", "no"], "Unknown data set 'digit'. Did you mean 'digits'?"),
    "series": ([*FIREFLY, "--data", "closes.csv", "--out", "no"], "'closes.csv' is of series, and this runs on images"),
    "scale": ([*FIREFLY, "--scale", "quik", "--out", "no"], "Unknown scale 'quik'. Did you mean 'quick'?"),
    "option": ([*FIREFLY, "--mask-epoch", "3", "--out", "no"], "Did you mean --mask-epochs INT?"),
    "option of another method": (["continual", "lwf", *PERCEPTRON, "--mask-epochs", "3", "--out", "no"],
                                 "Unrecognized options: --mask-epochs, 3."),
    "choice": ([*FIREFLY, "--selection", "best", "--out", "no"], "Expected one of ('firefly', 'random')"),
    "tasks that don't divide": ([*FIREFLY, "--tasks", "3", "--out", "no"],
                                "10 classes can't be divided into 3 tasks of two and more; give one of 1, 2, 5."),
    "tasks of one class": ([*FIREFLY, "--tasks", "10", "--out", "no"], "10 classes can't be divided into 10 tasks"),
    "no tasks": ([*FIREFLY, "--tasks", "0", "--out", "no"], "tasks must be above 0, got 0."),
    "order": ([*FIREFLY, "--order", "0", "1", "2", "3", "4", "--out", "no"],
              "--order must have each of 1 to 5 once, got 0 1 2 3 4."),
    "short order": ([*FIREFLY, "--order", "2", "1", "--out", "no"], "--order must have each of 1 to 5 once, got 2 1."),
    "seen tasks": ([*FIREFLY, "--seen-tasks", "6", "--out", "no"],
                   "--seen-tasks must be 1 to 5, the number of tasks; got 6."),
    "number of widths": ([*FIREFLY, "--network", "vgg11", "--widths", "2", "3", "--out", "no"],
                         "widths has 2 numbers, the network has 8 layers; give one each."),
    "no widths": ([*LEARN, *SHORT, "--widths", "--out", "no"], "Give --widths one number, or one for each layer."),
    "a width of 0": ([*FIREFLY, "--widths", "4", "0", "--out", "no"], "Every width must be 1 or more, got [4, 0]."),
    "neurons": ([*FIREFLY, "--neurons", "0", "--out", "no"], "neurons must be above 0, got 0."),
    "goal": (["continual", "cpg", *PERCEPTRON, "--goal", "60", "--out", "no"], "goal must be an accuracy of 0..1"),
    "no test images": ([*FIREFLY, "--data", "firefly", "--test-share", "0", "--out", "no"],
                       "evaluated on test images: give a --test-share above 0."),
    "a run is there": ([*FIREFLY, "--out", "firefly"], "firefly holds a run already: give --resume to go on with it"),
    "no run is there": ([*FIREFLY, "--out", "no", "--resume"], "There is no checkpoint in no to resume"),
    "another method's": (["continual", "ewc", *PERCEPTRON, "--out", "firefly", "--resume"],
                         "its method is 'firefly-continual', this run's is 'ewc'."),
    "another order's": ([*FIREFLY, "--order", "1", "2", "3", "5", "4", "--out", "firefly", "--resume"],
                        "firefly/checkpoint.pt is of another run: its tasks"),
    "another division's": ([*FIREFLY, "--split-seed", "2", "--out", "firefly", "--resume"],
                           "firefly/checkpoint.pt is of another run: its tasks"),
    "other widths'": ([*FIREFLY, "--widths", "6", "6", "--out", "firefly", "--resume"],
                      "its backbone.widths is [6, 5], this run's is [6, 6]."),
    "CUDA": ([*FIREFLY, "--device", "cuda", "--out", "no"], "Device 'cuda' is not here"),
    "torchrun": ({"arguments": [*FIREFLY, "--out", "no"], "environment": {"RANK": "0", "LOCAL_RANK": "0",
                                                                          "WORLD_SIZE": "2"}},
                 "nasbook continual runs in one process; start it without torchrun."),
    "a file in the way": ([*FIREFLY, "--out", "a file/x"], "Can't write a file/x/checkpoint.pt: Not a directory"),
    "full disk": ({"arguments": [*FIREFLY, "--out", "full"], "limit": 4096}, "Can't write full/checkpoint.pt: "),
    "no master": (["test"], "nasbook test needs a MASTER first. The master.safetensors of "),
    "no file": (["test", "none.safetensors"], "There is no master network at none.safetensors."),
    "a task of 0": ([*TEST, "--task", "0"], "firefly/master.safetensors knows the tasks 1 to 5; --task is 0."),
    "a task too far": ([*TEST, "--task", "6"], "firefly/master.safetensors knows the tasks 1 to 5; --task is 6."),
    "no number": ([*TEST, "--task", "two"], "two"),
    "other images": (["test", "firefly/master.safetensors", "--data", "other.npz"],
                     "is for images of 1 channels and 8 pixels a side; --data other.npz has 3 and 8."),
    "fewer classes": (["test", "firefly/master.safetensors", "--data", "few.npz"],
                      "A task needs two or more different classes of 0..1, got ["),
    "other weights": (["test", "weights.safetensors"], "weights.safetensors is no master network of nasbook"),
    "a result": (["test", "firefly/result.json"], "firefly/result.json is not a readable .safetensors file"),
    "cut short": (["test", "short.safetensors"], "short.safetensors is not a readable .safetensors file"),
    "no tasks in the header": (["test", "taskless.safetensors"], "taskless.safetensors is damaged: it is not what "),
    "another header": (["test", "list.safetensors"], "list.safetensors is no master network of nasbook"),
    "more tasks in the header": (["test", "doubled.safetensors"], "doubled.safetensors is damaged: it is not what "),
    "another network in the header": (["test", "vgg.safetensors"], "vgg.safetensors is damaged: it is not what was "),
    "an empty master": (["test", "empty.safetensors"], "is a master network that has learned no task."),
    "a damaged master to draw": (["draw", "short.safetensors", "--out", "x.svg"], "not a readable .safetensors file"),
    "a task to draw": (["draw", "firefly/result.json", "--task", "6", "--out", "x.svg"],
                       "firefly/result.json: the master network knows the tasks 1 to 5; --task is 6."),
    "a task of no master": (["draw", "lwf/result.json", "--task", "1", "--out", "x.svg"],
                            "--task is for a master network: a master.safetensors, or the result.json beside it."),
    "a task of a cell": (["draw", "DARTS_V2", "--task", "1", "--out", "x.svg"], "--task is for a master network"),
    "a result without its master's widths": (["draw", "widthless.json", "--out", "x.svg"], "'widths' is missing"),
    "a result without chosen neurons": (["draw", "unchosen.json", "--out", "x.svg"], "unchosen.json is not whole"),
    "a result without accuracies": (["draw", "inaccurate.json", "--out", "x.svg"], "inaccurate.json is not whole"),
}  # fmt: skip
WRONG_USAGE = {"no method", "method", "a growth method", "option", "option of another method", "choice", "order",
               "short order", "seen tasks", "no widths", "neurons", "goal", "no test images", "torchrun", "no master",
               "no number", "a task of no master", "a task of a cell"}  # fmt: skip


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


def learned(folder: Path, name: str) -> dict[str, Any]:
    """What a run's result.json has; it is valid JSON, without NaN."""
    return json.loads((folder / name / "result.json").read_text(), parse_constant=pytest.fail)


def without_seconds(text: str) -> str:
    return re.sub(r'"seconds": [\d.e-]+', "", text)


def with_header(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """A .safetensors file with another header of ours and the same tensors."""
    [size] = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["nasbook"] = json.dumps(change(json.loads(header["__metadata__"]["nasbook"])))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a small set of images, a master network that was saved from Python, and files that are none."""
    folder = tmp_path_factory.mktemp("continual")
    digits = load_images("digits").take(200, 80)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {name: getattr(digits, name).numpy() for name in names}
    np.savez(folder / "small.npz", **arrays)
    colours = {name: value.repeat(3, axis=1) if "images" in name else value for name, value in arrays.items()}
    np.savez(folder / "other.npz", **colours)
    few = {name: value[arrays[f"{name.split('_')[0]}_labels"] < 2] for name, value in arrays.items()}
    np.savez(folder / "few.npz", **few)
    (folder / "a file").write_text("")
    (folder / "closes.csv").write_text("date,A\n")

    data = load_images(str(folder / "small.npz"))
    backbone = Backbone("perceptron", (4, 3), 1, 8)
    config = Config(epochs=1, mask_epochs=1, direction_epochs=1, neurons=2, new_neurons=1, batch_size=10)
    run = config.begin(split_classes(data, 5, seed=3)[:2], backbone, seed=0)
    for _ in run.epochs():
        pass
    path = run.master.save(folder / "alone.safetensors")
    content = path.read_bytes()
    headers = {
        "taskless": lambda header: {name: value for name, value in header.items() if name != "tasks"},
        "list": lambda header: [1],
        "doubled": lambda header: {**header, "tasks": header["tasks"] * 2},
        "vgg": lambda header: {**header, "backbone": {**header["backbone"], "name": "vgg11"}},
    }
    for name, change in headers.items():
        (folder / f"{name}.safetensors").write_bytes(with_header(content, change))
    (folder / "short.safetensors").write_bytes(content[:-20])
    MasterNetwork(backbone).save(folder / "empty.safetensors")
    from safetensors.torch import save_file

    save_file(run.master.network(0).state_dict(), folder / "weights.safetensors")
    described = run.master.describe()
    results = {
        "widthless": {"master": {name: value for name, value in described.items() if name != "widths"}},
        "unchosen": {"master": {name: value for name, value in described.items() if name != "chosen"}},
        "inaccurate": {},
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps({"method": "firefly-continual", **result}))
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """The good ones, then the bad ones, in one folder."""
    bad = {f"bad: {name}": case for name, (case, _) in BAD.items()}
    return run_all({**GOOD, **bad}, folder)


@pytest.mark.parametrize("name", GOOD)
def test_all_of_it_works(answers, name):
    assert answers[name]["code"] == 0, answers[name]["err"]
    assert answers[name]["err"] == "" or name == "bar"
    assert answers[name]["out"]


# --- what is learned --------------------------------------------------------------------------------------------------


def test_firefly_writes_and_says_what_it_has_learned(answers, folder):
    files = ("checkpoint.pt", "master.safetensors", "result.json")
    assert answers["firefly"]["changed"] == [f"firefly/{name}" for name in files]
    result = learned(folder, "firefly")
    assert (result["method"], result["seed"], result["split_seed"], result["data"]) == (
        "firefly-continual", 0, 0, "small.npz",
    )  # fmt: skip
    assert result["config"]["neurons"] == 4
    assert result["backbone"] == {"name": "perceptron", "widths": [6, 5], "in_channels": 1, "size": 8}
    assert sorted(label for task in result["tasks"] for label in task["classes"]) == list(range(10))
    assert {(task["train_images"], task["test_images"]) for task in result["tasks"]} == {(40, 16)}
    assert [growth["task"] for growth in result["growths"]] == [1, 2, 3, 4]
    phases = [(row["task"], row["phase"]) for row in result["history"]]
    later = [(task, name) for task in range(1, 5) for name in ("mask", "directions", "training", "training")]
    assert phases == [(0, "training"), (0, "training"), *later]
    assert (result["epochs"], result["extra_epochs"]) == (18, 18 / 5 - 2)
    assert result["seconds"] == sum(row["seconds"] for row in result["history"])

    matrix, memory = result["accuracies"], result["memory"]
    assert [len(row) for row in matrix] == [1, 2, 3, 4, 5]
    assert all(row == matrix[-1][: len(row)] for row in matrix)  # nothing changes what was learned
    assert len(set(matrix[-1])) > 2  # or the next lines would say little
    assert result["forgetting"] == [0, 0, 0, 0]
    assert result["backward_transfer"] == 0
    assert result["average_accuracy"] == pytest.approx(sum(matrix[-1]) / 5)
    assert memory == sorted(memory)
    lines = answers["firefly"]["out"].splitlines()
    for number, task in enumerate(result["tasks"]):
        a, b = task["classes"]
        now = f", {matrix[-1][number]:.2%} at the end" if number < 4 else ""
        accuracy = f"{matrix[number][number]:.2%}{now}"
        assert lines[number] == f"task {number + 1} (classes {a}, {b}): test accuracy {accuracy}; {memory[number]:,} " \
                                "parameters"  # fmt: skip
    assert lines[5:] == [
        f"average accuracy {sum(matrix[-1]) / 5:.2%}, forgetting 0.00%, {memory[-1]:,} parameters, "
        "1.6 extra epochs a task",
        "master network: firefly/master.safetensors",
        "test it: nasbook test firefly/master.safetensors --data small.npz",
        "draw it: nasbook draw firefly/master.safetensors --out master.png",
    ]


def test_the_master_network_is_that_of_the_package(answers, folder):
    """The command and Python give the same bits; the file serves every task."""
    result = learned(folder, "firefly")
    master = MasterNetwork.load(folder / "firefly/master.safetensors")
    assert master.describe() == result["master"]
    data = load_images(str(folder / "small.npz"))
    config = Config(**result["config"])
    run = config.begin(split_classes(data, 5, seed=0), Backbone("perceptron", (6, 5), 1, 8), seed=0)
    for _ in run.epochs():
        pass
    assert run.accuracies == result["accuracies"]
    images = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    for number in range(5):
        assert torch.equal(master.network(number)(images), run.master.network(number)(images))


def test_test_measures_what_was_measured(answers, folder):
    result = learned(folder, "firefly")
    master = MasterNetwork.load(folder / "firefly/master.safetensors")
    *lines, last = answers["test"]["out"].splitlines()
    for number, (line, accuracy) in enumerate(zip(lines, result["accuracies"][-1], strict=True)):
        a, b = result["tasks"][number]["classes"]
        neurons = sum(master.network(number).neurons().values())
        assert line == (
            f"task {number + 1} (small, classes {a}, {b}): test accuracy {accuracy:.2%} on 16 images, {neurons} neurons"
        )
    assert last == f"average accuracy {result['average_accuracy']:.2%}, {result['memory'][-1]:,} parameters"
    assert answers["test a task"]["out"] == f"{lines[1]}\n"
    assert all(answers[name]["changed"] == [] for name in ("test", "test a task", "test without the other file"))


def test_a_master_network_needs_no_other_file(answers, folder):
    """Which classes a task has stands in it."""
    master = MasterNetwork.load(folder / "alone.safetensors")
    data = load_images(str(folder / "small.npz"))
    lines = answers["test without the other file"]["out"].splitlines()
    assert len(lines) == 3
    for number in range(2):
        task = take_classes(data, master.tasks[number].classes).data
        accuracy = evaluate(master.network(number), task.test_images, task.test_labels, task)[1]
        assert f"): test accuracy {accuracy:.2%} on 16 images" in lines[number]


def test_order_division_and_number_of_tasks(answers, folder):
    names = ("firefly", "order", "division", "two", "one", "vgg")
    classes = {name: [task["classes"] for task in learned(folder, name)["tasks"]] for name in names}
    first = classes["firefly"]
    assert classes["order"] == [first[number] for number in (4, 0, 3, 1, 2)]
    assert sorted(map(sorted, classes["division"])) != sorted(map(sorted, first))
    assert list(map(len, classes["two"])) == [5, 5]
    assert (classes["one"], classes["vgg"]) == (first[:1], first[:2])


def test_one_task_has_nothing_to_forget(answers, folder):
    result = learned(folder, "one")
    assert (result["forgetting"], result["growths"], result["extra_epochs"]) == ([], [], 0)
    accuracy = f"{result['average_accuracy']:.2%}"
    assert answers["one task"]["out"].splitlines()[1] == (
        f"average accuracy {accuracy}, {result['memory'][0]:,} parameters, 0.0 extra epochs a task"
    )


def test_widths(answers, folder):
    assert tuple(learned(folder, "vgg")["backbone"]["widths"]) == scaled_widths("vgg11", 1 / 16)  # thin, at quick
    assert learned(folder, "3")["backbone"]["widths"] == [3] * 8


@pytest.mark.parametrize("name", OTHERS)
def test_other_learners_write_the_same_numbers(answers, folder, name):
    assert answers[name]["changed"] == [f"{name}/checkpoint.pt", f"{name}/result.json"]
    result = learned(folder, name)
    assert result["method"] == name
    assert not {"master", "growths"} & result.keys()
    (first,), (again, second) = result["accuracies"]
    assert result["forgetting"] == [pytest.approx(first - again)]
    assert result["backward_transfer"] == pytest.approx(again - first)
    assert result["average_accuracy"] == pytest.approx((again + second) / 2)
    lines = answers[name]["out"].splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(f"test accuracy {first:.2%}, {again:.2%} at the end; {result['memory'][0]:,} parameters")
    assert f"forgetting {first - again:.2%}, {result['memory'][1]:,} parameters" in lines[2]


def test_a_seed_decides_everything(answers, folder):
    texts = [without_seconds((folder / run / "result.json").read_text()) for run in ("firefly", "again", "seed 1")]
    assert texts[0] == texts[1] != texts[2]
    masters = [(folder / run / "master.safetensors").read_bytes() for run in ("firefly", "again", "seed 1")]
    assert masters[0] == masters[1] != masters[2]
    assert answers["firefly resumed at its end"]["changed"] == []
    assert answers["firefly resumed at its end"]["out"] == answers["firefly"]["out"]


def test_killed_within_a_task_and_resumed_gives_the_same_files(answers, folder):
    """After a step of the over-grown network of the second task; every other place is in tests/continual."""
    arguments = [*FIREFLY, "--out", "killed", "--checkpoint-steps", "1"]
    slow = "import time; from nasbook.methods.firefly_continual import FireflyContinual as F; step = F.train_step\n"
    slow += "there = lambda run: (run.task, run.phase, run.step) == (1, 1, 2)\n"
    slow += "F.train_step = lambda run, *a: (there(run) and time.sleep(600), step(run, *a))[1]\n"
    slow += "import sys; from nasbook.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments], cwd=folder, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    checkpoint = folder / "killed/checkpoint.pt"
    while not (checkpoint.exists() and _place(checkpoint) == (1, 1, 2)):  # no limit of our own: it may be slow
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (folder / "killed/result.json").exists()
    resumed = run_all({"again": [*FIREFLY, "--out", "killed", "--resume"]}, folder)["again"]
    assert resumed["code"] == 0, resumed["err"]
    got, expected = (without_seconds((folder / run / "result.json").read_text()) for run in ("killed", "firefly"))
    assert got == expected
    got, expected = ((folder / run / "master.safetensors").read_bytes() for run in ("killed", "firefly"))
    assert got == expected


def _place(checkpoint: Path) -> tuple[int, int, int]:
    state = torch.load(checkpoint, weights_only=True)["state"]
    return state["task"], state["phase"], state["step"]


def test_the_bar_shows_loss_and_steps(answers):
    bar = answers["bar"]["err"]
    assert "continual fine-tuned" in bar
    assert "40/40" in bar  # 2 tasks of 2 epochs of 10 steps


# --- pictures, lists and help -----------------------------------------------------------------------------------------


def test_draw(answers, folder):
    for name in ("master", "result", "task", "accuracies"):
        answer = answers[f"draw {'accuracies' if name == 'accuracies' else f'a {name}'}"]
        assert answer["changed"] == [f"{name}.svg"]
    pictures = {name: (folder / f"{name}.svg").read_text() for name in ("master", "result", "task", "accuracies")}
    assert re.search("all 5 tasks: ", pictures["master"])
    assert re.search("all 5 tasks: ", pictures["result"])
    assert re.search("task 2 .classes ", pictures["task"])
    assert "fine-tuned" in pictures["accuracies"]


def test_folders_of_images_are_named_again(answers, folder, monkeypatch):
    """All their options that differ, as mean and deviation depend on them."""
    from nasbook.cli.continual import _same_images
    from nasbook.cli.options import ContinualOptions, FolderOptions

    monkeypatch.chdir(folder)
    given = {"out": Path("x"), "scale": "quick", "tasks": 2, "network": "vgg11", "widths": (2,), "config": None}
    options = ContinualOptions(data="my images", folder=FolderOptions(share=0.5, image_size=32), **given)
    assert _same_images(options) == ["--data", "my images"]  # no such folder: a set
    (folder / "my images").mkdir()
    assert shlex.join(_same_images(options)) == "--data 'my images' --share 0.5 --image-size 32"


def test_list_has_every_name(answers):
    section = answers["list"]["out"].partition("\nlearners of task sequences:\n")[2].split(":\n")[0]
    for name in LEARNERS:
        assert re.search(rf"^  {re.escape(name)}\b", section, re.MULTILINE), name


RUN = ("--out", "--data", "--scale", "--seed", "--device", "--resume", "--checkpoint-steps", "--quiet", "--network",
       "--widths", "--tasks", "--split-seed", "--order", "--seen-tasks", "--epochs", "--batch-size",
       "--learning-rate")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mentioned"),
    [
        ("help", ("continual METHOD", "test MASTER")),
        ("help of continual", ("METHOD", f"One of: {', '.join(LEARNERS)}.")),
        ("help of test", ("MASTER", "master.safetensors", "--data", "--task", "--device", "--share")),
        ("help of draw", ("result.json", "master.safetensors", "--task")),
        ("help of firefly-continual", (*RUN, "--mask-epochs", "--growths", "--selection {firefly,random}",
                                       "4 8 16 16 32 32 32 32")),
        ("help of individual", (*RUN, "8 16 32 32 64 64 64 64")),
        ("help of fine-tuned", RUN),
        ("help of ewc", (*RUN, "--images")),
        ("help of lwf", (*RUN, "--warm-up-epochs")),
        ("help of packnet", (*RUN, "--retraining-epochs")),
        ("help of cpg", (*RUN, "--sparsities", "--goal")),
        ("help at paper", ("(default: cifar100)", "(default: vgg16)", "(default: 256)", "(default: 20)")),
        ("help at laptop", ("(default: cifar100)", "(default: 10)")),
        ("help of another network", ("(default: vgg19)", "4 4 8 8 16 16 16 16 32 32 32 32 32 32 32 32")),
    ],
)  # fmt: skip
def test_help_mentions_every_argument(answers, name, mentioned):
    said = re.sub(r"[\s│]+", " ", answers[name]["out"])
    for word in mentioned:
        assert word in said


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(answers, name):
    answer, says = answers[f"bad: {name}"], BAD[name][1]
    lines = answer["err"].splitlines()
    assert len(lines) == 1, answer["err"]
    assert lines[0].startswith("nasbook: ")
    assert says in lines[0]
    assert answer["code"] == (2 if name in WRONG_USAGE else 1)
    assert answer["changed"] == []
