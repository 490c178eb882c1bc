"""The benchmark of recurrent cells runs at a tiny size; what it compares computes the same."""

from __future__ import annotations

import dataclasses

import _measure as measure
import pytest
import recurrent
import torch

from nasbook.networks import RECURRENT_BACKBONES

CPU = torch.device("cpu")
TINY = recurrent.Setting(inputs=2, hidden=3, batch=2, steps=2, nodes=(1, 2), repeats=1)


def test_rows():
    rows = recurrent.measure_passes(TINY, ("darts", "highway"), ("all", "derived"), 2, CPU)
    assert (rows[0]["backbone"], rows[0]["engine"], rows[0]["of_lstm"]) == ("lstm", "torch", 1)
    assert rows[0]["parameters"] == 4 * (2 * 3 + 3 * 3 + 2 * 3)
    expected = [
        (backbone, gradients, nodes, engine)
        for backbone in ("darts", "highway")
        for gradients in ("all", "derived")
        for nodes in (1, 2)
        for engine in ("readable", "fused")
    ]
    assert [(r["backbone"], r["gradients"], r["nodes"], r["engine"]) for r in rows[1:]] == expected
    for readable, fused in zip(rows[1::2], rows[2::2], strict=True):
        assert "ratio" not in readable and fused["ratio_low"] <= fused["ratio"] <= fused["ratio_high"]
        assert readable["parameters"] == fused["parameters"]
        assert fused["saved_ratio"] == fused["saved_bytes"] / readable["saved_bytes"]


@pytest.mark.parametrize("backbone", RECURRENT_BACKBONES)
@pytest.mark.parametrize("gradients", recurrent.GRADIENTS)
def test_both_engines_compute_the_same(backbone, gradients):
    readable, fused = (
        recurrent.Pass(backbone, 3, gradients, engine, TINY, CPU) for engine in ("readable", "fused")
    )
    assert type(readable.cell) is not type(fused.cell)
    torch.testing.assert_close(fused.states(), readable.states())
    wanted, found = readable.gradients_at(), fused.gradients_at()
    assert len(found) == {"all": 1, "coefficients": 1, "derived": 0}[gradients] + (
        0 if gradients == "coefficients" else len(list(fused.cell.parameters()))
    )
    torch.testing.assert_close(found, wanted)


def test_a_derived_cell_is_a_chain_of_all_operations():
    cell = recurrent.derived_cell("two-to-one", 5)
    assert {edge.operation for edge in cell.edges} == set(RECURRENT_BACKBONES["two-to-one"].operations)
    assert [(edge.source, edge.target) for edge in cell.edges] == [(node - 1, node) for node in range(1, 6)]
    assert cell.output == (5,)
    assert recurrent.derived_cell("highway", 2).output == (1, 2)


def test_from_options_to_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recurrent.SETTINGS, "series", dataclasses.replace(TINY, nodes=(7,)))
    options = recurrent.Options(
        rounds=1, nodes=(1,), backbones=("two-to-one",), gradients=("coefficients",), record=True, records_dir=tmp_path
    )
    recurrent.main(options)
    (path,) = tmp_path.iterdir()
    assert path.name == "recurrent.series-nodes1.cpu.json"
    assert [row["engine"] for row in measure.read_record(path)["rows"]] == ["torch", "readable", "fused"]
    assert "2 inputs, 3 units, batch 2, 2 steps" in capsys.readouterr().out
