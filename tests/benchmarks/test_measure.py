"""The benchmarks' harness: in which order it runs, what it computes from times, and records that come back whole."""

from __future__ import annotations

import itertools
import json
import re

import _measure as measure
import pytest
import torch

from nasbook.errors import InvalidInput


def test_every_round_runs_each_contestant_once_in_turn():
    log = []
    ticks = itertools.count()  # one second a look: each contestant takes one
    contestants = {name: lambda name=name: log.append(name) for name in "abc"}
    seconds = measure.interleave(contestants, 2, warm_up=2, clock=lambda: float(next(ticks)))
    assert log == list("abc" * 4)
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]}
    assert next(ticks) == 24  # the warm-up is timed too, and dropped


def test_the_seconds_are_those_of_the_contestant():
    now = 0.0

    def takes(duration):
        def run():
            nonlocal now
            now += duration

        return run

    seconds = measure.interleave({"short": takes(0.25), "long": takes(2.0)}, 3, clock=lambda: now)
    assert seconds == {"short": [0.25] * 3, "long": [2.0] * 3}


def test_median_and_quartiles():
    assert measure.summary([4.0, 1.0, 3.0, 2.0]) == {"seconds": 2.5, "seconds_low": 1.75, "seconds_high": 3.25}
    assert measure.summary([3.0]) == {"seconds": 3.0, "seconds_low": 3.0, "seconds_high": 3.0}
    assert measure.failed("no compiler")["seconds"] is None


def test_a_failure_is_one_line():
    def fail():
        raise RuntimeError("\nno Triton here\nand much more\n")

    assert measure.why_not(fail) == "RuntimeError: no Triton here"
    assert measure.why_not(lambda: None) == ""


def test_the_rates_of_a_machine():
    rates = measure.peak_rates(torch.device("meta"), repeats=1)  # which computes nothing
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("setting", "name"), [("", "parts.cpu.json"), ("quick", "parts.quick.cpu.json")])
def test_a_record_comes_back(tmp_path, setting, name):
    rows = [{"engine": "fused", "seconds": 0.25}, {"engine": "readable", **measure.failed("none")}]
    record = measure.make_record(measure.Options(rounds=3), "parts", setting, rows)
    path = measure.write_record(tmp_path / "records", record)
    assert path.name == name
    assert measure.read_record(path) == record
    assert tuple(record) == measure.FIELDS
    assert (record["device"], record["rounds"], record["torch"]) == ("cpu", 3, torch.__version__)
    assert record["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert re.fullmatch(r"([0-9a-f]{40}\+?)?", record["commit"])
    assert record["hardware"]
    measure.write_record(tmp_path / "records", {**record, "rounds": 4})
    assert measure.read_record(path)["rounds"] == 4


def test_a_record_is_whole_or_not_there(tmp_path):
    record = measure.make_record(measure.Options(), "parts", "", [{"seconds": float("nan")}])
    with pytest.raises(ValueError, match="nan"):
        measure.write_record(tmp_path, record)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_record(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(InvalidInput, match=r"^Can't read the record .*x.json: No such file"):
        measure.read_record(path)
    path.write_text("{")
    with pytest.raises(InvalidInput, match="x.json is not a record"):
        measure.read_record(path)
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(InvalidInput, match="its fields are not benchmark, setting"):
        measure.read_record(path)


def test_a_table_as_text():
    rows = [
        {"engine": "readable", "seconds": 0.0125, "bytes": 2**20, "batch": 64},
        {"engine": "fused", "seconds": None, "batch": 8, "failure": "no compiler"},
    ]
    columns = {"engine": "engine", "batch": "batch", "seconds": "ms", "bytes": "saved MiB", "never": "nothing"}
    assert measure.table(rows, columns) == "\n".join(
        (
            "engine    batch    ms  saved MiB  nothing",
            "readable     64  12.5       1.00",
            "fused         8                            no compiler",
        )
    )


def test_options_are_checked():
    with pytest.raises(InvalidInput, match="rounds must be at least 1, got 1 and 0"):
        measure.Options(rounds=0).prepare()
    with pytest.raises(InvalidInput, match="Unknown device"):
        measure.Options(device="abacus").prepare()
