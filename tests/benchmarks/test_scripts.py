"""Each benchmark runs at a tiny size and gives the rows that it promises; what it compares computes the same."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys

import _measure as measure
import derived_training
import memory
import numpy as np
import parts
import pools
import pytest
import scaling
import search_step
import start_up
import topology
import torch
import tyro
from scipy import stats

import growth
import tabular
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space

CPU = torch.device("cpu")
SCRIPTS = sorted(path.stem for path in measure.ROOT.glob("benchmarks/[!_]*.py"))
TINY = search_step.Setting(Space(("none", "skip_connect", "sep_conv_3x3"), 2), 2, 2, 2, (1, 8))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name, capsys):
    script = importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        tyro.cli(script.Options, description=script.__doc__, args=["--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--device", "--rounds", "--record", "--records-dir"))
    assert f"benchmarks/{name}.py" in printed


def test_search_step(monkeypatch):
    monkeypatch.setattr(measure, "peak_rates", lambda device, dtype: (1e9, 1e9))
    rows, floors = search_step.measure_steps(TINY, 2, ["second-order"], 1, CPU)
    works = ["first-order", "second-order", "forward", "backward"]
    assert [(row["engine"], row["work"]) for row in rows] == [(e, w) for e in ("readable", "fused") for w in works]
    first = rows[0]
    assert (first["ratio"], first["of_readable_step"], first["of_own_step"]) == (1.0, 1.0, 1.0)
    assert rows[5]["of_own_step"] == pytest.approx(rows[5]["seconds"] / rows[4]["seconds"])
    assert rows[4]["ratio"] == pytest.approx(1 / rows[4]["of_readable_step"])
    assert [row["work"] for row in floors] == ["floor", "floor"]
    for row in floors:
        assert row["seconds"] == max(row["macs_seconds"], row["traffic_seconds"])
        assert row["traffic_bytes"] > 2 * row["saved_bytes"] * 0.9
        assert row["distance_to_lowest"] >= row["distance"] * 0.999
    assert floors[1]["saved_bytes"] < floors[0]["saved_bytes"]


def test_engines_start_from_the_same_weights():
    readable, fused = search_step.contestants(TINY, 2, ["first-order"], CPU)
    assert (readable.network.engine, fused.network.engine) == ("readable", "fused")
    for one, other in zip(readable.network.parameters(), fused.network.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(readable.loss(readable.train[0]), fused.loss(fused.train[0]))


def test_memory():
    rows = memory.measure_memory("tiny", TINY, (2, 4), 100_000, CPU)
    readable, fused = (row for row in rows if row["batch"] == 4 and row["kind"] == "batch")
    assert fused["saved_ratio"] == fused["saved_bytes"] / readable["saved_bytes"] < 1
    assert readable["peak_bytes"] is None
    for engine, largest in zip(("readable", "fused"), rows[4:], strict=True):
        assert (largest["engine"], largest["kind"]) == (engine, "largest")
        assert memory.saved_bytes(TINY, engine, largest["batch"], CPU) <= 100_000
        assert memory.saved_bytes(TINY, engine, largest["batch"] + 1, CPU) > 100_000


def test_tabular():
    options = tabular.Options(rounds=1, networks=(2,))
    asked = tabular.measure_look_ups(options)
    assert [row["work"] for row in asked] == ["load", "look-up", "look-up again", "neighbours"]
    assert all(row["seconds"] > 0 for row in asked)
    alone, two = tabular.measure_training(options, CPU)
    assert (alone["networks"], alone["speed_up"], two["networks"]) == (1, 1.0, 2)
    assert two["speed_up"] == pytest.approx(alone["seconds"] / two["seconds"])


def test_the_exponents_of_power_laws():
    values = (3, 6, 9, 12)
    exponent, error = scaling.fit_exponent(values, [7 * value**1.5 for value in values])
    assert exponent == pytest.approx(1.5)
    assert error == pytest.approx(0, abs=1e-7)
    measured = [2.0, 3.5, 7.0, 6.0]
    expected = stats.linregress(np.log(values), np.log(measured))
    assert scaling.fit_exponent(values, measured) == pytest.approx((expected.slope, expected.stderr))
    with pytest.raises(InvalidInput, match="at least 3 points, got 2"):
        scaling.fit_exponent((1, 2), (1.0, 2.0))


def test_scaling():
    base = scaling.Point(cells=1, channels=2, nodes=1, operations=2, batch=2, side=4)
    points, exponents = scaling.measure_scaling(base, {"batch": (2, 4, 8), "nodes": (1, 2, 3)}, 1, CPU)
    assert [row["value"] for row in points] == [2, 4, 8] * 2 + [1, 2, 3] * 2
    assert {row["kind"] for row in points} == {"point"}
    by_name = {(row["sweep"], row["engine"], row["quantity"]): row["exponent"] for row in exponents}
    assert len(by_name) == len(exponents) == 8
    assert 0.5 < by_name["batch", "readable", "saved_bytes"] < 1  # what batch norms keep does not grow
    assert by_name["nodes", "readable", "saved_bytes"] > by_name["nodes", "fused", "saved_bytes"] > 0
    assert points[0]["seconds"] == points[6]["seconds"]  # the base point, measured once


def test_the_base_points_are_on_the_sweeps():
    for base, sweeps in ((scaling.BASE, scaling.SWEEPS), (scaling.CUDA_BASE, scaling.CUDA_SWEEPS)):
        assert all(getattr(base, sweep) in values for sweep, values in sweeps.items())
    assert scaling.BASE.network("fused").space == DARTS_SPACE


def test_derived_training():
    options = derived_training.Options(rounds=2, batch=2, channels=4, cells=3)
    rows = derived_training.measure_training(options, CPU)
    assert [row["way"] for row in rows] == ["readable", "channels-last"]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])


def test_compiling_that_fails_says_why(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", refuse)
    options = derived_training.Options(rounds=1, batch=2, channels=4, cells=3, compile=True)
    *_, last = derived_training.measure_training(options, CPU)
    assert last["way"] == "channels-last, compiled"
    assert last["seconds"] is None
    assert "no compiler here" in last["failure"]


def test_processes_that_fail_are_noticed():
    start_up.process(start_up.WORK["python"], CPU, 1)()
    with pytest.raises(subprocess.CalledProcessError):
        start_up.process(["-c", "raise SystemExit(3)"], CPU, 1)()


def test_the_first_step_runs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c", "cpu", str(torch.get_num_threads())])
    exec(start_up.FIRST_STEP, {})


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _joined(tensors):
    return torch.cat([tensor.flatten(2) if tensor.dim() == 4 else tensor for tensor in tensors], dim=1)


@pytest.mark.usefixtures("double")
def test_the_parts_compute_the_same():
    by_part = {}
    for contestant in parts.contestants(parts.Node(4, 6, 3, CPU)):
        by_part.setdefault(contestant.part, {})[contestant.way] = contestant
    assert len(by_part) == 4 + 2 + 4
    for part, by_way in by_part.items():
        readable = by_way.pop("readable")
        assert "fused" in by_way
        expected = _joined(readable.outputs())
        gradient = torch.randn_like(expected)
        inputs = (*readable.images, *readable.parameters)
        wanted = torch.autograd.grad(expected, inputs, gradient)
        for way, other in by_way.items():
            outputs = _joined(other.outputs())
            if part == "ReLU":  # one result for all that read it
                shared = expected.shape[1] - 4
                assert torch.equal(outputs[:, 4:], expected[:, -8 * 4 :])
                assert outputs.shape[1] < shared
                continue
            torch.testing.assert_close(outputs, expected, msg=f"{part}, {way}")
            inputs = (*other.images, *other.parameters)
            found = torch.autograd.grad(outputs, inputs, gradient)
            # The same numbers in other pieces: compare what no cut changes.
            for measure_of in (lambda g: g.sum(), lambda g: g.square().sum()):
                sums = [sum(measure_of(g) for g in gradients) for gradients in (found, wanted)]
                torch.testing.assert_close(*sums, msg=f"gradients of {part}, {way}")


def test_pools():
    rows = pools.measure_pools(TINY, 3, ["DL", "UR"], 3, 2, CPU)
    assert [(row["space"], row["engine"]) for row in rows] == [
        ("DARTS", "fused"), ("DL", "readable"), ("DL", "fused"), ("UR", "readable"), ("UR", "fused")
    ]  # fmt: skip
    darts, readable, fused = rows[:3]
    assert (darts["ratio"], darts["saved_ratio"], darts["configurations"]) == (1.0, 1.0, None)
    assert readable["macs"] == fused["macs"] != darts["macs"]
    assert fused["saved_bytes"] < readable["saved_bytes"]
    assert fused["saved_ratio"] == pytest.approx(
        fused["saved_bytes"] / darts["saved_bytes"] * darts["macs"] / fused["macs"]
    )
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_drawn_pools_are_different_on_every_edge_and_as_large_as_the_paper_s():
    space = Space(nodes=3)
    spaces = pools.draw_pools(space, "DR", random.Random(0))
    assert set(spaces) == {"normal", "reduction"}
    drawn = [pool for own in spaces.values() for pool in own.pools]
    assert len(set(drawn)) == len(drawn) == 2 * len(space.edges)
    assert {len(pool) for pool in drawn} == {6}


def test_the_nearest_of_more_draws_is_no_farther():
    setting = pools.SETTINGS["quick"]
    wanted = pools.multiply_adds(setting, dict.fromkeys(setting.space.kinds, setting.space))
    near = [
        abs(pools.multiply_adds(setting, pools.nearest_pools(setting, "DL", draws)) - wanted) for draws in (1, 4)
    ]
    assert near[1] <= near[0]


def test_parts():
    rows, totals = parts.measure_node(2, 4, 2, 3, CPU)
    fused = [row for row in rows if row["way"] == "fused"]
    assert sum(row["share"] for row in fused) == pytest.approx(1)
    assert {row["trick"] for row in rows} == {"depthwise", "pointwise + batch norm", "pools", "ReLU", "zero and sums"}
    assert [(row["part"], row["way"]) for row in totals] == [
        (part, way) for part in ("all parts", "whole node") for way in ("readable", "fused")
    ]
    assert totals[1]["seconds"] == pytest.approx(sum(row["seconds"] for row in fused))
    assert totals[3]["saved_bytes"] < totals[2]["saved_bytes"]


STRETCHABLE = search_step.Setting(Space(("skip_connect", "sep_conv_3x3"), 3), 2, 3, 2, (1, 8))


def test_topology_steps():
    rows = topology.measure_steps(STRETCHABLE, 2, 3, 2, CPU)
    assert [(row["kind"], row["update"], row["relaxation"], row["edges"]) for row in rows] == [
        ("step", "darts", "softmax", 9),
        ("step", "darts", "any-output-edges", 9),
        ("step", "milenas", "softmax", 9),
        ("pass", "darts", "softmax", 9),
        ("step", "darts", "softmax", 8),  # without the edge of the last node but one, which has no pair
        ("step", "darts", "output-edges", 8),
    ]
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert rows[0]["ratio"] == rows[4]["ratio"] == 1
    assert "extra" in rows[2]
    for softmax, topologies in ((rows[0], rows[1]), (rows[4], rows[5])):
        assert topologies["saved_ratio"] == topologies["saved_bytes"] / softmax["saved_bytes"]
        assert 1 < topologies["saved_ratio"] < 1.02


def test_topology_compares_supernets_with_the_same_weights():
    batch = STRETCHABLE.data(2, CPU)
    softmax, topologies = (
        topology.Step(STRETCHABLE, name, "darts", batch, batch) for name in ("softmax", "any-output-edges")
    )
    for one, other in zip(softmax.network.weights(), topologies.network.weights(), strict=True):
        assert torch.equal(one, other)
    # At uniform variables, the coefficients are the softmax's too.
    torch.testing.assert_close(softmax.network(batch[0]), topologies.network(batch[0]), rtol=0.02, atol=0.02)
    assert topology.Step(STRETCHABLE, "softmax", "milenas", batch, batch).update.objective.train == 1


def test_topology_alone():
    steps = {(9, "any-output-edges"): 10.0}
    rows = topology.measure_alone(STRETCHABLE, (3, 7), steps, 2, CPU)
    names = [(row["nodes"], row["relaxation"]) for row in rows]
    assert names == [(n, name) for n in (3, 7) for name in ("softmax", "any-output-edges", "output-edges")]
    assert rows[1]["of_step"] == rows[1]["seconds"] / 10
    assert [number for number, row in enumerate(rows) if "of_step" in row] == [1]
    assert rows[4]["codes"] == 2**7  # the first node's, with the paper's N = 9
    assert rows[0]["over_softmax"] == rows[3]["over_softmax"] == 1


GROWING = growth.Setting("vgg11", 2, 2, (1, 8))


def test_growth_steps():
    rows = growth.measure_steps(GROWING, 2, (0, 3), 2, CPU)
    assert [row["way"] for row in rows] == ["training", "over-grown, m' = 0", "over-grown, m' = 3"]
    assert [row.get("candidates") for row in rows] == [None, 8 * 2, 8 * (2 + 3)]
    assert rows[0]["ratio"] == rows[0]["saved_ratio"] == 1
    saved = [row["saved_ratio"] for row in rows]
    assert saved == sorted(saved) and saved[1] > 1.5  # both halves of every neuron
    assert saved[2] == rows[2]["saved_bytes"] / rows[0]["saved_bytes"]
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_a_growth_step_moves_candidates_only():
    data = GROWING.data(2, CPU)
    training, over = growth.Step(GROWING.network(CPU), data), growth.StepOne(GROWING.network(CPU), data, 3)
    before = [parameter.clone() for parameter in training.network.parameters()]
    for one, other in zip(before, over.overgrown.before[0].parameters(), strict=True):
        assert torch.equal(one, other)  # both begin with the same network
    moved = over.overgrown.epsilon()
    training.run(), over.run()
    assert not torch.equal(over.overgrown.epsilon(), moved)
    for one, now, other in zip(
        before, training.network.parameters(), over.overgrown.before[0].parameters(), strict=True
    ):
        assert torch.equal(one, other) and not torch.equal(one, now)


def test_scores_and_splitting():
    common, alone = growth.measure_scores(GROWING, 2, 1, CPU)
    assert (common["way"], alone["way"]) == ("common path", "by coordinate")
    assert common["candidates"] == alone["candidates"] == 8 * 3
    assert alone["ratio"] > 2  # 24 times the passes
    training, product, matrices = growth.measure_splitting(GROWING, 2, 1, CPU)
    assert [row.get("products") for row in (training, product, matrices)] == [None, 1, 9 * 2]
    assert product["of_product"] == 1 and matrices["of_product"] > 1
    assert training["of_product"] == pytest.approx(1 / product["ratio"])


def test_radial_gradients():
    rows = growth.measure_radial((1, 2), 1, CPU, networks=3)
    ways = ["written out", "one backward pass", "vmap of grad"]
    assert [(row["neurons"], row["way"]) for row in rows] == [(count, way) for count in (1, 2) for way in ways]
    assert rows[3]["networks"] == 3 and rows[3]["ratio"] == 1
    x = torch.randn(3, 7, dtype=torch.float64)
    neurons = torch.randn(3, 2, 3, dtype=torch.float64)
    found = [way() for way in growth.radial_ways(neurons, growth.RadialData(x, x + 1)).values()]
    assert found[0].abs().max() > 0.1
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0])


def test_surgery():
    rows = growth.measure_surgery(GROWING, 2, 1, CPU)
    assert [row["way"] for row in rows] == ["training", "widen", "widen, momenta", "insert", "insert, momenta"]
    network = growth.Setting("vgg11", 10, 2, (1, 8)).network(CPU)
    wider, deeper = growth.widened(network), growth.deepened(network)
    assert set(wider.network.neurons().values()) == {13}
    assert wider.cuts[0][1]["layers.0.convolution"] == [*range(10), 0, -1, -1]
    assert len(deeper.network.neurons()) == 9 and set(deeper.network.neurons().values()) == {10}


def test_growth_from_options_to_record(tmp_path, capsys):
    options = growth.Options(
        rounds=1, batch=2, channels=2, new=(1,), neurons=(1,), repeats=1, record=True, records_dir=tmp_path
    )
    growth.main(options)
    (path,) = tmp_path.iterdir()
    assert path.name == "growth.quick-channels2-batch2.cpu.json"
    parts = [row["part"] for row in measure.read_record(path)["rows"]]
    assert parts == ["step"] * 2 + ["scores"] * 2 + ["splitting"] * 3 + ["radial"] * 3 + ["surgery"] * 5
    printed = capsys.readouterr().out
    assert "vgg11, 2 channels a layer, batch 2, 1×8×8" in printed and "insert, momenta" in printed


def test_the_settings_are_the_scales():
    assert growth.SETTINGS["quick"] == growth.Setting("vgg11", 4, 64, (1, 8))
    assert growth.SETTINGS["paper"] == growth.Setting("vgg19", 16, 128, (3, 32))


def test_the_ratio_of_rounds():
    assert topology.ratios([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.5, 2.5)


def test_a_script_from_options_to_record(tmp_path, capsys):
    options = memory.Options(settings=("quick",), batches=(2,), budget_gib=0, record=True, records_dir=tmp_path)
    memory.main(options)
    (path,) = tmp_path.iterdir()
    assert path.name == "memory.cpu.json"
    assert len(measure.read_record(path)["rows"]) == 2
    assert str(path) in capsys.readouterr().out
