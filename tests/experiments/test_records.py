"""Records keep every measurement, refuse to mix what does not belong together, and are never half written."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace

import pytest
import torch

import nasbook
from nasbook.errors import InvalidInput
from nasbook.experiments import (
    Measurement,
    find_record,
    get_experiment,
    get_scale,
    load_records,
    read_record,
    records_folder,
    save_measurement,
)
from nasbook.experiments.records import measure


@pytest.fixture
def one(provenance):
    return Measurement(1, {"accuracy": 0.5, "curve": [0.1, 0.2], "name": "α"}, provenance)


def refusal(action, *arguments):
    with pytest.raises(InvalidInput) as caught:
        action(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_round_trip(tmp_path, scale, one):
    path = save_measurement("darts-random", scale, one, tmp_path / "new folder")
    assert path.name == "darts-random.tiny.json"
    record = read_record(path)
    assert record.experiment == "darts-random"
    assert record.measurements == (one,)
    assert record.scale["operations"] == ["none", "skip_connect", "sep_conv_3x3"]
    assert record.values("accuracy") == [0.5]
    assert record.filename == path.name
    assert load_records(path.parent) == (record,)
    assert find_record("darts-random", "tiny", [record]) is record
    assert find_record("darts-random", "quick", [record]) is None
    assert find_record("darts-toy", "tiny", [record]) is None


def test_seeds_are_merged_in_order_and_replaced(tmp_path, scale, one):
    for seed in (2, 0, 1):
        path = save_measurement("darts-random", scale, replace(one, seed=seed, values={"accuracy": seed}), tmp_path)
    assert read_record(path).values("accuracy") == [0, 1, 2]
    save_measurement("darts-random", scale, replace(one, seed=1, values={"accuracy": 7}), tmp_path)
    assert read_record(path).values("accuracy") == [0, 7, 2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_scales_and_experiments_have_files_of_their_own(tmp_path, scale, one):
    save_measurement("darts-random", scale, one, tmp_path)
    save_measurement("darts-random", get_scale("quick"), one, tmp_path)
    save_measurement("darts-collapse", scale, one, tmp_path)
    assert len(load_records(tmp_path)) == 3


def test_other_numbers_of_the_scale_are_refused(tmp_path, scale, one):
    path = save_measurement("darts-random", scale, one, tmp_path)
    before = path.read_bytes()
    other = replace(scale, epochs=3, nodes=3)
    message = refusal(save_measurement, "darts-random", other, one, tmp_path)
    assert message.startswith(f"{path} was made with other numbers of the scale (epochs, nodes)")
    assert path.read_bytes() == before


def test_a_field_that_the_scale_no_longer_has(tmp_path, scale, one):
    path = save_measurement("darts-random", scale, one, tmp_path)
    content = json.loads(path.read_text())
    content["scale"]["old_option"] = 1
    path.write_text(json.dumps(content))
    assert "(old_option)" in refusal(save_measurement, "darts-random", scale, one, tmp_path)


def test_other_data_are_refused(tmp_path, scale, one):
    path = save_measurement("darts-random", scale, one, tmp_path)
    before = path.read_bytes()
    other = replace(one, seed=2, provenance=replace(one.provenance, data_checksum="d1"))
    assert "was made with other data" in refusal(save_measurement, "darts-random", scale, other, tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is not a record of nasbook"),
        (lambda text: "", "is not a record of nasbook"),
        (lambda text: "[]", "is not a record of nasbook"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "is a nasbook.record of version 2"),
        (lambda text: text.replace("nasbook.record", "other"), "is a other of version 1"),
        (lambda text: text.replace('"experiment"', '"experimen"'), "the field 'experiment' is missing"),
        (lambda text: text.replace('"commit"', '"comit"'), "commit"),
        (lambda text: text.replace('"name": "tiny"', '"name": ""'), "its scale has no name"),
    ],
)
def test_a_damaged_record_is_refused_and_left_as_it_is(tmp_path, scale, one, damage, says):
    path = save_measurement("darts-random", scale, one, tmp_path)
    text = damage(path.read_text())
    path.write_text(text)
    for action in (
        (read_record, path),
        (load_records, tmp_path),
        (save_measurement, "darts-random", scale, one, tmp_path),
    ):
        message = refusal(*action)
        assert str(path) in message and says in message
    assert path.read_text() == text


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    assert "x.json is not a record" in refusal(read_record, tmp_path / "x.json")
    assert "Can't read the record" in refusal(read_record, tmp_path / "y.json")


def test_a_full_disk_leaves_the_earlier_record(tmp_path, scale, one, monkeypatch):
    path = save_measurement("darts-random", scale, one, tmp_path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(save_measurement, "darts-random", scale, replace(one, seed=2), tmp_path)
    assert message == f"Can't write {path}: No space left on device; the earlier file is unchanged."
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_json_cannot_hold_becomes_null(tmp_path, scale):
    values = {"a": math.nan, "b": [1.0, -math.inf], "c": {1: (True, "x", None)}}
    made = measure(lambda: values, 3, lambda: None, "cpu")
    assert made.values == {"a": None, "b": [1.0, None], "c": {"1": [True, "x", None]}}
    path = save_measurement("darts-toy", scale, made, tmp_path)
    assert read_record(path).measurements == (made,)
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_provenance(data):
    loaded = []
    made = measure(lambda: loaded.append(data) or {}, 4, lambda: loaded[0], "cpu").provenance
    assert (made.nasbook, made.torch, made.threads) == (nasbook.__version__, torch.__version__, torch.get_num_threads())
    assert (made.data, made.data_source, made.data_checksum) == ("digits", "scikit-learn", data.checksum)
    assert made.python.startswith("3.") and made.hardware
    assert made.seconds >= 0
    assert 1e7 < made.peak_memory < 1e12
    assert made.commit == "" or set(made.commit.rstrip("+")) <= set("0123456789abcdef")
    without = measure(dict, 4, lambda: None, "cpu").provenance
    assert (without.data, without.data_source, without.data_checksum) == ("", "", "")


def test_the_committed_records_can_be_read():
    assert records_folder().is_dir()
    for record in load_records():
        numbers = get_experiment(record.experiment).scaled(get_scale(record.scale["name"]))
        assert record.scale["search_epochs"] == numbers.search_epochs
        assert len({m.provenance.data_checksum for m in record.measurements}) == 1
        assert [m.seed for m in record.measurements] == sorted({m.seed for m in record.measurements})


@pytest.fixture(scope="session")
def data():
    from nasbook.data import load_images

    return load_images("digits")
