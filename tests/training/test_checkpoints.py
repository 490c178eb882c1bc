"""Checkpoints are written whole or not at all, run no code, and say what is wrong with them."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import nasbook
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.files import whole_file
from nasbook.genotypes import Space
from nasbook.methods import darts
from nasbook.training import (
    Fit,
    load_checkpoint,
    random_state,
    read_checkpoint,
    restore_random_state,
    save_checkpoint,
)

HEADER = {"method": "darts", "space": {"operations": ["none", "skip_connect"], "nodes": 4}, "config": {"epochs": 3},
          "data": "d0", "seed": 1}
STATE = {"weights": torch.arange(6.0).reshape(2, 3), "epoch": 2, "history": [{"loss": float("nan")}], "best": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "run" / "checkpoint.pt", HEADER, STATE)


def refusal(action, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.endswith(".") or "First cause" in message
    return message


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_round_trip(path):
    state = load_checkpoint(path, HEADER)
    assert torch.equal(state["weights"], STATE["weights"])
    assert (state["epoch"], state["best"]) == (2, None)
    assert read_checkpoint(path)["header"] == HEADER
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_others_may_read_what_was_written(path):
    by_open = path.with_name("by open")
    by_open.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(by_open.stat().st_mode)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_failed_write_leaves_the_earlier_checkpoint(path, monkeypatch, name, number):
    before = path.read_bytes()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        message = refusal(save_checkpoint, path, HEADER, {**STATE, "epoch": 3})
    assert message == f"Can't write {path}: {os.strerror(number)}; the earlier file is unchanged."
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
    save_checkpoint(path, HEADER, {**STATE, "epoch": 3})
    assert load_checkpoint(path, HEADER)["epoch"] == 3


def test_a_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "checkpoint.pt"
    assert refusal(save_checkpoint, path, HEADER, STATE) == (
        f"Can't write {path}: No space left on device; no file was left there."
    )
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys, torch
from nasbook.errors import CheckpointError
from nasbook.training import load_checkpoint, save_checkpoint

save_checkpoint(sys.argv[1], {"method": "m"}, {"epoch": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(sys.argv[1], {"method": "m"}, {"epoch": 2, "weights": torch.zeros(100_000)})
except CheckpointError as error:
    print(error)
print(load_checkpoint(sys.argv[1], {"method": "m"}))
"""


def test_a_real_limit_of_the_file_system(tmp_path):
    """A process that may write 20 kB to a file, as near to a full disk as an ordinary user comes."""
    path = tmp_path / "checkpoint.pt"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"Can't write {path}: File too large; the earlier file is unchanged.",
        "{'epoch': 1}",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_place_to_write(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    message = refusal(save_checkpoint, tmp_path / "file" / "checkpoint.pt", HEADER, STATE)
    assert message.endswith("no file was left there.")
    assert "Is a directory" in refusal(save_checkpoint, tmp_path / "folder", HEADER, STATE)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_an_error_inside_the_block_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder_and_a_name_that_is_too_long(tmp_path):
    with whole_file(tmp_path / "a" / "b" / "file") as file:
        file.write(b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"
    with pytest.raises(InvalidInput, match="no file was left there"), whole_file(tmp_path / ("n" * 300)):
        pass


# --- no code is run ---------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch, legacy", "inside a checkpoint"])
def test_a_malicious_file_is_refused_and_not_executed(form, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "checkpoint.pt"
    thing = Malicious(trace)
    if form == "pickle":
        path.write_bytes(pickle.dumps(thing))
    elif form == "inside a checkpoint":
        save_checkpoint(path, HEADER, {**STATE, "extra": thing})
    else:
        torch.save(thing, path, _use_new_zipfile_serialization=form == "torch")
    message = refusal(load_checkpoint, path, HEADER)
    assert message.startswith(f"{path} is not a readable checkpoint")
    assert not trace.exists()
    pickle.loads(pickle.dumps(thing))  # the trap does work
    assert trace.exists()


def test_the_package_never_unpickles():
    """Every torch.load has weights_only=True, and nothing else that unpickles is named at all."""
    sources = {path: path.read_text(encoding="utf-8") for path in Path(nasbook.__file__).parent.rglob("*.py")}
    assert len(sources) > 30
    forbidden = r"^\s*(import|from)\s+(pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b|\bpickle\.|"
    forbidden += r"\bUnpickler\(|allow_pickle\s*=\s*True|weights_only\s*=\s*False|read_pickle|(?<![\w.])(eval|exec)\("
    loads = 0
    for path, text in sources.items():
        assert not re.search(forbidden, text, re.MULTILINE), path
        for call in re.finditer(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text):
            loads += 1
            assert "weights_only=True" in call.group(), path
        for call in re.finditer(r"\bnp\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "allow_pickle=False" in call.group(), path
    assert loads == sum(text.count("torch.load(") for text in sources.values()) == 1


# --- what is wrong with it --------------------------------------------------------------------------------------------


def test_missing(tmp_path):
    assert refusal(read_checkpoint, tmp_path / "none.pt") == f"There is no checkpoint at {tmp_path / 'none.pt'}."
    assert refusal(read_checkpoint, tmp_path) == f"There is no checkpoint at {tmp_path}."


def test_truncated_anywhere(path):
    content = path.read_bytes()
    for length in sorted({0, 1, 4, 100, len(content) // 2, len(content) - 100, len(content) - 1}):
        path.write_bytes(content[:length])
        assert "damaged or not written by nasbook" in refusal(load_checkpoint, path, HEADER)


def test_overwritten_in_the_middle(path):
    content = path.read_bytes()
    where = content.index(STATE["weights"].numpy().tobytes())
    path.write_bytes(content[:where] + b"\xff" * 8 + content[where + 8 :])
    assert "damaged" in refusal(load_checkpoint, path, HEADER)


@pytest.mark.parametrize("content", [b"hello\n", b"{}", b"\x80", b"PK\x03\x04", bytes(1000)])
def test_something_else(path, content):
    path.write_bytes(content)
    assert "is not a readable checkpoint" in refusal(load_checkpoint, path, HEADER)


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, [1, 2], torch.zeros(3), {"format": "other"}])
def test_a_file_of_torch_that_is_no_checkpoint(path, content):
    torch.save(content, path)
    assert "is not a checkpoint of nasbook" in refusal(load_checkpoint, path, HEADER)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(path, version):
    torch.save({"format": "nasbook.checkpoint", "version": version, "header": HEADER, "state": {}}, path)
    assert f"of version {version}, this nasbook reads version 1" in refusal(load_checkpoint, path, HEADER)


@pytest.mark.parametrize("missing", ["header", "state"])
def test_incomplete(path, missing):
    content = {"format": "nasbook.checkpoint", "version": 1, "header": HEADER, "state": {}}
    del content[missing]
    torch.save(content, path)
    assert "is incomplete" in refusal(load_checkpoint, path, HEADER)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "random-search"}, "its method is 'darts', this run's is 'random-search'"),
        ({"space": {**HEADER["space"], "nodes": 3}}, "its space.nodes is 4, this run's is 3"),
        ({"space": {**HEADER["space"], "operations": ["none"]}}, "its space.operations is ['none', 'skip_connect']"),
        ({"config": {"epochs": 4}}, "its config.epochs is 3, this run's is 4"),
        ({"config": {"epochs": 3, "clip": 5.0}}, "its config.clip is None, this run's is 5.0"),
        ({"config": {}}, "its config.epochs is 3, this run's is None"),
        ({"data": "d1"}, "its data is 'd0', this run's is 'd1'"),
        ({"seed": 2}, "its seed is 1, this run's is 2"),
        ({"genotype": "g" * 100}, "its genotype is None, this run's is 'ggg"),
    ],
)
def test_of_another_run(path, change, says):
    message = refusal(load_checkpoint, path, {**HEADER, **change})
    assert message.startswith(f"{path} is of another run: {says}")
    assert message.endswith("Give the same options as then, or another --out.")


def test_runs_refuse_each_others_checkpoints(tiny, data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run = tiny.make_run("first-order", data)
    run.save(path)
    other_data = replace(data, checksum="0" * 64)
    wider = Space(tiny.SPACE.operations, nodes=3)
    others = {
        "method": tiny.make_run("random-search", data),
        "space.nodes": darts.Search(run.config, data, wider),
        "config.order": tiny.make_run("second-order", data),
        "config.channels": tiny.make_run("first-order", data, channels=3),
        "data": tiny.make_run("first-order", other_data),
        "seed": tiny.make_run("first-order", data, seed=1),
    }
    for name, other in others.items():
        before = tiny.ending(other) if name != "method" else None
        assert f"its {name} is " in refusal(other.load, path)
        if before is not None:
            assert (other.epoch, other.step) == (0, 0)
    tiny.make_run("first-order", data).load(path)


def test_fits_refuse_each_others_checkpoints(tiny, data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run = tiny.make_run("fit", data)
    run.save(path)
    network, config = run.network, run.config
    first, second = torch.arange(48), torch.arange(48, 96)
    assert "its trained is 'all', this run's is '48 training images" in refusal(
        Fit(network, data, config, train_indices=first).load, path
    )
    Fit(network, data, config, train_indices=first, held_out=second).save(path)
    assert "its trained is " in refusal(Fit(network, data, config, train_indices=second, held_out=second).load, path)
    assert "its evaluated is " in refusal(Fit(network, data, config, train_indices=first, held_out=first).load, path)


# --- generators -------------------------------------------------------------------------------------------------------


def test_the_generators_come_back(tmp_path):
    random.gauss(0, 1)
    np.random.standard_normal()  # both keep a second value for later
    path = save_checkpoint(tmp_path / "checkpoint.pt", {}, {"random": random_state()})
    drawn = [(random.gauss(0, 1), np.random.standard_normal(), torch.randn(()).item()) for _ in range(3)]
    restore_random_state(load_checkpoint(path, {})["random"])
    assert [(random.gauss(0, 1), np.random.standard_normal(), torch.randn(()).item()) for _ in range(3)] == drawn
