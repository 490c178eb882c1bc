"""The command line under torchrun: one run, one voice, one set of files."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nasbook import processes
from nasbook.cli import commands, main
from nasbook.errors import DataError, InvalidInput
from nasbook.processes import ProcessFailed

ROOT = Path(__file__).parent.parent
RUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nasbook"]
TORCHRUN = [sys.executable, *RUN]
CELL = ["--operations", "skip_connect", "sep_conv_3x3", "--nodes", "1", "--channels", "2", "--cells", "3",
        "--device", "cpu"]
SEARCH = ["search", "darts", *CELL, "--order", "first-order"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "tools" / "offline"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(arguments: list[str], folder: Path, program: Sequence[str] = TORCHRUN) -> subprocess.Popen[str]:
    return subprocess.Popen([*program, *arguments], cwd=folder, env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ours(errors: str) -> list[str]:
    """The lines of standard error that are not torchrun's."""
    return [line for line in errors.splitlines() if line.startswith("nasbook")]


def test_ctrl_c_saves_once_and_says_how_to_resume(tmp_path):
    process = start([*SEARCH, "--epochs", "9999", "--out", "out"], tmp_path)
    while not (tmp_path / "out" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # torchrun passes it on
    out, errors = process.communicate()
    assert process.returncode != 0 and out == ""
    assert ours(errors) == [
        "nasbook: interrupted and saved. To go on: torchrun --nproc-per-node 2 -m nasbook "
        + " ".join([*SEARCH, "--epochs", "9999", "--out", "out", "--resume"])
    ]
    assert errors.count("| 0/99990 [") == 1  # one bar
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["state"]
    assert state["epoch"] >= 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint.pt"]


GROWTH = ["--stages", "2", "--stage-epochs", "1", "--tune-epochs", "1"]
SEARCHES = {
    "darts": [*SEARCH, "--epochs", "1"],
    "growing": ["search", "growing", *CELL, "--operations", "none", "skip_connect", "sep_conv_3x3", *GROWTH],
    "growing-recurrent": ["search", "growing-recurrent", "--data", "simulated-brics", "--hidden", "2", *GROWTH,
                          "--device", "cpu"],
}


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_in_two_processes_writes_what_one_writes(method, tmp_path):
    outputs = []
    for name, program in (("two", TORCHRUN), ("one", [sys.executable, "-m", "nasbook"])):
        process = start([*SEARCHES[method], "--quiet", "--out", name], tmp_path, program)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        outputs.append(output)
    two, one = outputs
    measured = ("validation", "after epoch")  # single precision, and seconds
    assert [line for line in two.splitlines() if not line.startswith(measured)] == [
        line.replace("one/", "two/") for line in one.splitlines() if not line.startswith(measured)
    ]
    assert sum(line.startswith("validation") for line in two.splitlines()) == 1
    assert two.count("after epoch") == one.count("after epoch")
    written = ["checkpoint.pt", "genotype.json", "result.json"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == written
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")]
    [curves, expected] = [result.pop("history") for result in results]
    [events, expected_events] = [result.pop("events", []) for result in results]
    assert results[0] == results[1]  # the header says nothing of processes: a checkpoint fits any number
    assert curves[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=1e-4)
    assert len(curves) == len(expected)
    for event, other in zip(events, expected_events, strict=True):
        assert (event["what"], event["epoch"]) == (other["what"], other["epoch"])
        assert event["loss_after"] == pytest.approx(other["loss_after"], rel=1e-3)


@pytest.fixture(params=["0", "1"])
def rank(request, monkeypatch):
    """This process as one of two, which do not get so far that they would have to meet."""
    for name, value in {"RANK": request.param, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    return int(request.param)


def test_other_commands_run_in_one_process_and_one_says_so(rank, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = "" if rank else "nasbook: nasbook draw runs in one process; start it without torchrun.\n"
    assert main(["draw", "DARTS_V2", "--out", "cell.png"]) == 2
    assert capsys.readouterr() == ("", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "first", "second"), [
    (DataError("No file."), "nasbook: No file.\n", "nasbook, process 1: No file.\n"),
    (InvalidInput("No epochs."), "nasbook: No epochs.\n", ""),
    (ProcessFailed("Why?"), "nasbook: Why?\n", ""),
    (RuntimeError("CUDA out of memory."), "nasbook: out of memory: lower --batch-size, --channels or --cells.\n",
     "nasbook, process 1: out of memory: lower --batch-size, --channels or --cells.\n"),
    (RuntimeError("[/pytorch/gloo] Connection closed by peer"), "nasbook: lost another process; its error says why.\n",
     "nasbook, process 1: lost another process; its error says why.\n"),
])
def test_what_all_know_is_said_once_and_what_one_may_have_alone_with_its_number(
    error, first, second, rank, monkeypatch, capsys
):
    def fail(_):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "search", fail)
    monkeypatch.setattr(processes, "joined", lambda device: contextlib.nullcontext(device))
    assert main(["search", "darts"]) == 1
    assert capsys.readouterr().err == (second if rank else first)


def test_another_runtime_error_is_not_hidden(rank, monkeypatch):
    def fail(_):
        raise RuntimeError(f"a mistake in process {rank}")

    monkeypatch.setitem(commands.COMMANDS, "search", fail)
    monkeypatch.setattr(processes, "joined", lambda device: contextlib.nullcontext(device))
    with pytest.raises(RuntimeError, match="^a mistake in process"):
        main(["search", "darts"])
