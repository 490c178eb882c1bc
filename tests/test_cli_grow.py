"""The command line's ``grow``: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nasbook.data import load_images
from nasbook.growth import load_history, replay_history
from nasbook.methods import GROWTH_METHODS
from nasbook.networks import GROWABLE_NETWORKS, build_growable
from nasbook.training import evaluate

PROGRAM = Path(__file__).with_name("command_line.py")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")

SHORT = ["--data", "small.npz", "--growths", "2", "--epochs", "1", "--batch-size", "32", "--quiet"]
PERCEPTRON = [*SHORT, "--network", "perceptron", "--widths", "4", "3"]
FIREFLY = ["grow", "firefly", *PERCEPTRON, "--new-neurons", "2"]

GOOD: dict[str, Any] = {
    "firefly": [*FIREFLY, "--out", "firefly"],
    "firefly again": [*FIREFLY, "--out", "again"],
    "firefly resumed at its end": [*FIREFLY, "--out", "firefly", "--resume"],
    "firefly with another seed": [*FIREFLY, "--seed", "1", "--out", "seed 1"],
    "splitting": ["grow", "splitting", *PERCEPTRON, "--direction-epochs", "1", "--out", "splitting"],
    "net2net": ["grow", "net2net", *SHORT, "--network", "block-stack", "--widths", "3", "--new-layers", "1", "--out",
                "net2net"],
    "nash": ["grow", "nash", *PERCEPTRON, "--children", "2", "--child-epochs", "1", "--out", "nash"],
    "random": ["grow", "random", *PERCEPTRON, "--children", "2", "--new-neurons", "1", "--out", "random"],
    "the scale's network": ["grow", "net2net", *SHORT, "--growths", "0", "--out", "vgg"],
    "bar": ["grow", "net2net", *PERCEPTRON[:-4], *PERCEPTRON[-4:], "--out", "bar"],
    "draw": ["draw", "firefly/result.json", "--out", "growth.svg"],
    "list": ["list"],
    "help": ["--help"],
    "help of grow": ["grow", "--help"],
    "help of draw": ["draw", "--help"],
    **{f"help of {name}": ["grow", name, "--help"] for name in GROWTH_METHODS},
}  # fmt: skip
GOOD["bar"].remove("--quiet")

BAD: dict[str, tuple[Any, str]] = {
    "no method": (["grow"], "nasbook grow needs a METHOD first. One of: firefly, splitting, net2net, nash, random."),
    "method": (["grow", "firfly"], "Unknown method 'firfly'. Did you mean 'firefly'? Valid: firefly, splitting, "),
    "a search method": (["grow", "darts"], "Unknown method 'darts'."),
    "network": ([*FIREFLY, "--network", "vgg-11", "--out", "no"],
                "Unknown growable network 'vgg-11'. Did you mean 'vgg11'"),
    "network and data": ([*FIREFLY, "--network", "resnet", "--data", "cifar10", "--out", "no"],
                         "Unknown growable network 'resnet'."),
    "data": ([*FIREFLY, "--data", "digit", "--out", "no"], "Unknown data set 'digit'. Did you mean 'digits'?"),
    "scale": ([*FIREFLY, "--scale", "quik", "--out", "no"], "Unknown scale 'quik'. Did you mean 'quick'?"),
    "option": ([*FIREFLY, "--new-neuron", "3", "--out", "no"], "Did you mean --new-neurons INT?"),
    "option of another method": (["grow", "net2net", *PERCEPTRON, "--children", "3", "--out", "no"],
                                 "Unrecognized options: --children, 3."),
    "choice": ([*FIREFLY, "--scope", "layer", "--out", "no"], "Expected one of ('network', 'width')"),
    "number of widths": ([*FIREFLY, "--network", "vgg11", "--widths", "2", "3", "--out", "no"],
                         "widths has 2 numbers, the network has 8 layers; give one each."),
    "no widths": (["grow", "net2net", *SHORT, "--widths", "--out", "no"], "Give --widths one number, or one for each"),
    "a width of 0": ([*FIREFLY, "--widths", "4", "0", "--out", "no"], "Every width must be 1 or more, got [4, 0]."),
    "rate": ([*FIREFLY, "--rate", "0", "--out", "no"], "rate must be above 0, got 0.0."),
    "growths": ([*FIREFLY, "--growths", "-1", "--out", "no"], "growths must be 0 or more, got -1."),
    "nothing to choose": ([*FIREFLY, "--no-splits", "--new-neurons", "0", "--out", "no"], "There is nothing to choose"),
    "no validation": (["grow", "nash", *PERCEPTRON, "--validation-share", "0", "--out", "no"],
                      "Children are compared on validation images; give a validation_share above 0."),
    "batch": ([*FIREFLY, "--batch-size", "500", "--out", "no"], "A batch of 500 needs at least as many images"),
    "no test images": ([*FIREFLY, "--data", "firefly", "--test-share", "0", "--out", "no"],
                       "The network is evaluated on test images: give a --test-share above 0."),
    "a run is there": ([*FIREFLY, "--out", "firefly"], "firefly holds a run already: give --resume to go on with it"),
    "no run is there": ([*FIREFLY, "--out", "no", "--resume"], "There is no checkpoint in no to resume"),
    "another method's": (["grow", "net2net", *PERCEPTRON, "--out", "firefly", "--resume"],
                         "its method is 'grow by firefly', this run's is 'grow by net2net'."),
    "another network's": ([*FIREFLY, "--network", "block-stack", "--widths", "3", "--out", "firefly", "--resume"],
                          "its network is 'Perceptron', this run's is 'BlockStack'."),
    "another rate's": ([*FIREFLY, "--rate", "0.5", "--out", "firefly", "--resume"],
                       "its growth.rate is 0.3, this run's is 0.5."),
    "another seed's": ([*FIREFLY, "--seed", "3", "--out", "firefly", "--resume"], "its seed is 0, this run's is 3."),
    "a search's": (["search", "darts", "--channels", "2", "--out", "firefly", "--resume"],
                   "its method is 'grow by firefly', this run's is 'darts'."),
    "CUDA": ([*FIREFLY, "--device", "cuda", "--out", "no"], "Device 'cuda' is not here"),
    "torchrun": ({"arguments": [*FIREFLY, "--out", "no"], "environment": {"RANK": "0", "LOCAL_RANK": "0",
                                                                          "WORLD_SIZE": "2"}},
                 "nasbook grow runs in one process; start it without torchrun."),
    "full disk": ({"arguments": [*FIREFLY, "--out", "full"], "limit": 4096}, "Can't write full/checkpoint.pt: "),
    "history to draw": (["draw", "firefly/history.json", "--out", "x.svg"],
                        "firefly/history.json has the growths only; to draw the epochs too, give the result.json"),
}  # fmt: skip
WRONG_USAGE = {"no method", "method", "a search method", "option", "option of another method", "choice", "no widths",
               "no test images", "torchrun", "rate", "growths", "nothing to choose", "no validation"}  # fmt: skip


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grow")
    digits = load_images("digits").take(100, 40)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(folder / "small.npz", **{name: getattr(digits, name).numpy() for name in names})
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


def test_grow(answers, folder):
    files = ("checkpoint.pt", "history.json", "result.json", "weights.safetensors")
    assert answers["firefly"]["changed"] == [f"firefly/{name}" for name in files]
    result = json.loads((folder / "firefly/result.json").read_text(), parse_constant=pytest.fail)
    assert (result["method"], result["seed"], result["growth"]["new_neurons"]) == ("grow by firefly", 0, 2)
    phases = [(row["phase"], row["growing"]) for row in result["history"]]
    assert phases == [(0, False), (1, True), (1, False), (2, True), (2, False)]
    last = result["history"][-1]
    assert sum(last["neurons"].values()) > 7
    assert answers["firefly"]["out"].splitlines()[-4:] == [
        f"growths 2: test accuracy {last['validation_accuracy']:.2%}, {last['parameters']:,} parameters, "
        f"{sum(last['neurons'].values())} neurons",
        "weights: firefly/weights.safetensors",
        "history: firefly/history.json",
        "draw it: nasbook draw firefly/result.json --out growth.png",
    ]
    assert len(re.findall("^growths", answers["firefly"]["out"], re.MULTILINE)) == 3


@pytest.mark.parametrize("name", ["firefly", "splitting", "net2net", "nash", "random"])
def test_the_network_can_be_built_again_from_its_files(answers, folder, name):
    """From the start in result.json, the cuts in history.json and the weights."""
    result = json.loads((folder / name / "result.json").read_text())
    start = result["start"]
    network = build_growable(start.pop("network"), **start)
    events = load_history(folder / name / "history.json")
    assert [event.method for event in events] == [name, name]
    grown = replay_history(network, events)
    grown.load_state_dict(load_file(folder / name / "weights.safetensors"))
    last = result["history"][-1]
    assert grown.neurons() == last["neurons"] == events[-1].neurons
    data = load_images(str(folder / "small.npz"))
    loss, accuracy = evaluate(grown, data.test_images, data.test_labels, data)
    assert accuracy == last["validation_accuracy"]
    assert loss == pytest.approx(last["validation_loss"], rel=1e-5)


def test_one_number_is_for_all_layers_and_several_are_one_each(answers, folder):
    starts = {name: json.loads((folder / name / "result.json").read_text()) for name in ("net2net", "firefly", "vgg")}
    assert [starts[name]["start"]["widths"] for name in starts] == [3, [4, 3], 4]
    assert list(starts["net2net"]["history"][0]["neurons"].values()) == [3] * 4
    assert list(starts["firefly"]["history"][0]["neurons"].values()) == [4, 3]
    assert starts["vgg"]["network"] == "VGG"  # of the scale
    assert list(starts["vgg"]["history"][-1]["neurons"].values()) == [4] * 8


def without_seconds(text: str) -> str:
    return re.sub(r'"seconds": [\d.e-]+', "", text)


def test_a_seed_decides_everything(answers, folder):
    for name in ("history.json", "result.json"):
        texts = [without_seconds((folder / run / name).read_text()) for run in ("firefly", "again", "seed 1")]
        assert texts[0] == texts[1] != texts[2]
    assert answers["firefly resumed at its end"]["changed"] == []
    assert answers["firefly resumed at its end"]["out"] == answers["firefly"]["out"]


def test_the_bar_shows_loss_and_epochs(answers):
    bar = answers["bar"]["err"]
    assert "grow by net2net" in bar
    assert "6/6" in bar  # 3 epochs of 2 steps


def test_draw(answers, folder):
    assert answers["draw"]["changed"] == ["growth.svg"]
    picture = (folder / "growth.svg").read_text()
    assert "<svg" in picture
    assert "train loss" in picture


def test_list_has_every_name(answers):
    out = answers["list"]["out"]
    methods, networks = (
        out.partition(f"\n{title}:\n")[2].split(":\n")[0] for title in ("growth methods", "growable networks")
    )
    for section, names in ((methods, GROWTH_METHODS), (networks, GROWABLE_NETWORKS)):
        for name in names:
            assert re.search(rf"^  {re.escape(name)}\b", section, re.MULTILINE), name
    assert re.search(r"^  vgg11 +8 layers, 64 to 512 wide$", networks, re.MULTILINE)
    assert re.search(r"^  block-stack +4 layers, 16 wide$", networks, re.MULTILINE)


RUN = ("--out", "--data", "--scale", "--seed", "--device", "--resume", "--checkpoint-steps", "--quiet", "--network",
       "--widths", "--growths", "--epochs", "--rate", "--batch-size", "--learning-rate")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mentioned"),
    [
        ("help", ("grow METHOD", "nasbook grow firefly --network vgg11 --widths 16")),
        ("help of grow", ("METHOD", "One of: firefly, splitting, net2net, nash, random.")),
        ("help of draw", ("result.json",)),
        ("help of firefly", (*RUN, "--radius", "--new-layers", "--layer-budget", "--scope {network,width}")),
        ("help of splitting", (*RUN, "--step", "--sharpness", "--direction-epochs")),
        ("help of net2net", (*RUN, "--noise", "--new-layers")),
        ("help of nash", (*RUN, "--children", "--child-epochs")),
        ("help of random", (*RUN, "--children", "--new-neurons")),
    ],
)
def test_help_mentions_every_argument(answers, name, mentioned):
    for word in mentioned:
        assert word in answers[name]["out"]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(answers, name):
    answer, says = answers[f"bad: {name}"], BAD[name][1]
    lines = answer["err"].splitlines()
    assert len(lines) == 1, answer["err"]
    assert lines[0].startswith("nasbook: ")
    assert says in lines[0]
    assert answer["code"] == (2 if name in WRONG_USAGE else 1)
    assert answer["changed"] == []


def test_killed_and_resumed_gives_the_same_network(answers, folder):
    """Within the first growth; every other place is in tests/methods/test_growth.py."""
    arguments = [*FIREFLY, "--out", "killed", "--checkpoint-steps", "1"]
    slow = "import time, nasbook.growth.overgrown as o; f = o.OvergrownNetwork.grow\n"
    slow += "o.OvergrownNetwork.grow = lambda *a: (time.sleep(600), f(*a))[1]\n"
    slow += "import sys; from nasbook.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments], cwd=folder, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    checkpoint = folder / "killed/checkpoint.pt"
    while not (checkpoint.exists() and _place(checkpoint) == (1, 2)):  # no limit of our own: it may be slow
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    resumed = run_all({"again": [*FIREFLY, "--out", "killed", "--resume"]}, folder)["again"]
    assert resumed["code"] == 0, resumed["err"]
    for name in ("history.json", "result.json"):
        got, expected = ((folder / run / name).read_text() for run in ("killed", "firefly"))
        assert without_seconds(got) == without_seconds(expected)
    weights, expected = (load_file(folder / run / "weights.safetensors") for run in ("killed", "firefly"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def _place(checkpoint: Path) -> tuple[int, int]:
    state = torch.load(checkpoint, weights_only=True)["state"]
    return state["epoch"], state["step"]
