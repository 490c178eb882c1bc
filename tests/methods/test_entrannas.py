"""EnTranNAS and EnTranNAS-DST as searches: settings, temperature, reports, checkpoints, what stays DARTS."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch

from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import Space
from nasbook.methods import darts, entrannas, entrannas_dst
from nasbook.supernets import AnnealedSoftmax, SharedCell, SparseRelaxation
from nasbook.training import evaluate

SPACE = Space(("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3"), nodes=3)
SMALL = {
    "batch_size": 16,
    "channels": 8,
    "cells": 4,
    "epochs": 2,
    "learning_rate": 0.05,
    "architecture_learning_rate": 0.1,
}
METHODS = {"entrannas": entrannas, "entrannas-dst": entrannas_dst}


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def search_of(data, name="entrannas", seed=0, **changes):
    method = METHODS[name]
    return method.Search(method.Config(**{**SMALL, **changes}), data, SPACE, seed)


# ---------------------------------------------------------------------------------------------- settings


def test_the_papers_settings():
    config = entrannas.Config()
    assert (config.epochs, config.batch_size, config.channels, config.cells) == (50, 512, 16, 8)
    assert (config.learning_rate, config.final_learning_rate, config.momentum, config.weight_decay) == (
        0.2, 0.0, 0.9, 3e-4,
    )  # fmt: skip
    assert (config.architecture_learning_rate, config.architecture_weight_decay) == (6e-4, 1e-3)
    assert (config.temperature, config.temperature_decay, config.bottleneck) == (5.0, 0.923, 4)
    assert (config.engine_cells, config.feature_sharing, config.order) == ("first", True, "first-order")
    imagenet = entrannas.IMAGENET
    assert (imagenet.stem, imagenet.batch_size, imagenet.learning_rate) == ("imagenet", 1024, 0.5)
    assert imagenet.architecture_learning_rate == 6e-3 and imagenet.temperature == 5.0
    evaluation = entrannas.IMAGENET_EVALUATION
    assert (evaluation.epochs, evaluation.batch_size, evaluation.learning_rate) == (250, 1024, 0.5)
    assert (evaluation.decay, evaluation.weight_decay, evaluation.label_smoothing) == ("linear", 3e-5, 0.1)
    sparse = entrannas_dst.IMAGENET
    assert (sparse.temperature, sparse.temperature_decay, sparse.penalty_weight) == (1.0, 0.9, 0.2)
    same = {field.name for field in fields(entrannas.Config)} - {"temperature", "temperature_decay"}
    assert all(getattr(sparse, name) == getattr(imagenet, name) for name in same)


def test_the_two_spaces():
    assert len(entrannas.STANDARD_SPACE.operations) == 7 and len(entrannas.EXTENDED_SPACE.operations) == 12
    more = entrannas.EXTENDED_SPACE.operations[7:]
    assert more == ("conv_1x1", "conv_3x3", "conv_1x3_3x1", "conv_1x5_5x1", "conv_1x7_7x1")
    assert "none" not in entrannas.EXTENDED_SPACE.operations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature_decay": 0.0}, "temperature_decay must be above 0 and at most 1, got 0.0"),
        ({"temperature_decay": 1.1}, "temperature_decay must be above 0 and at most 1, got 1.1"),
        ({"bottleneck": 3}, "bottleneck=3 must divide channels=16"),
        ({"channels": 4}, "bottleneck=4 must divide channels=4 and leave at least 2"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_wrong_configurations(name, changes, message):
    with pytest.raises(InvalidInput, match=message):
        METHODS[name].Config(**changes)


def test_wrong_names():
    for field, text in (("engine_cells", "placement of Engine-cells 'frist'"), ("derivation", "derivation 'frist'")):
        config = entrannas.Config()
        object.__setattr__(config, field, "frist")  # the type checker of the tests refuses it elsewhere
        with pytest.raises(InvalidInput, match=f"Unknown {text}"):
            config.__post_init__()
    with pytest.raises(InvalidInput, match="penalty_weight must be at least 0, got nan"):
        entrannas_dst.Config(penalty_weight=math.nan)
    with pytest.raises(InvalidInput, match="initial_beta must be finite, got nan"):
        entrannas_dst.Config(initial_beta=math.nan)
    with pytest.raises(InvalidInput, match="derivation has no effect here"):
        entrannas_dst.Config(derivation="connections")


def test_the_configuration_reaches_the_network(data):
    search = search_of(data)
    assert search.space.operations == SPACE.choices  # no zero
    network = search.network
    assert network.engine_positions == {0, 1}
    assert all(type(cell) is SharedCell for cell in network.cells)
    assert all(len(list(cell.narrow[0].children())) == 3 for cell in network.cells)
    assert all(type(relaxation) is AnnealedSoftmax for relaxation in network.relaxations.values())
    sparse = search_of(data, "entrannas-dst", penalty_weight=0.3, initial_beta=-1.0).network.relaxations["normal"]
    assert type(sparse) is SparseRelaxation
    assert sparse.penalty_weight == 0.3 and sparse.beta.tolist() == [-1.0] * 3
    names = [name for name, _ in search_of(data, "entrannas-dst").network.named_parameters() if "relaxations" in name]
    assert names == [f"relaxations.{kind}.{symbol}" for kind in ("normal", "reduction") for symbol in ("alpha", "beta")]


@pytest.mark.parametrize("derivation", entrannas.DERIVATIONS)
def test_derivations(data, derivation):
    search = search_of(data, derivation=derivation)
    relaxation = search.network.relaxations["normal"]
    relaxation.alpha.data.zero_()
    relaxation.alpha.data[0] = torch.tensor([0.0, 1.0, 1.1])  # on 0→2, better than all of 1→2
    sources = [edge.source for edge in search.network.genotype().normal.into(2)]
    assert sources == ([0, 1] if derivation == "edges" else [0, 0])


# ---------------------------------------------------------------------------------------------- the search


def test_without_its_components_it_is_darts(data):
    """To the last bit: the method differs from DARTS only where its paper does."""
    plain = {"engine_cells": "all", "feature_sharing": False, "bottleneck": 1}
    search = search_of(data, **plain, temperature=1.0, temperature_decay=1.0, epochs=1)
    own = {field.name: getattr(search.config, field.name) for field in fields(darts.Config)}
    other = darts.Search(darts.Config(**own), data, replace(SPACE, operations=SPACE.choices))
    for found, expected in zip(search.epochs(), other.epochs(), strict=True):
        assert found.train_loss == expected.train_loss and found.genotype == expected.genotype
    states = search.network.state_dict(), other.network.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_dst_with_thresholds_of_zero_is_entrannas(data):
    """Eq. 7 to 9 at t = 0 give Eq. 5 back, and nothing else differs between the two searches."""
    settings = {"engine_cells": "all", "architecture_learning_rate": 1e-9}  # Adam makes whole steps of rounding errors
    plain = search_of(data, **settings)
    sparse = search_of(data, "entrannas-dst", **settings, initial_beta=-1e4, penalty_weight=0.0)
    weights = dict(plain.network.named_parameters())
    for key, weight in sparse.network.named_parameters():
        assert key.endswith("beta") or torch.equal(weight, weights[key]), key
    measured = []
    for search in (plain, sparse):
        search.begin_epoch()
        measured.append(torch.stack([value.detach() for value in search.run_step(0)]))
    torch.testing.assert_close(*measured, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_temperature_falls_and_the_report_tells_it(data, name):
    search = search_of(data, name, temperature=2.0, temperature_decay=0.5, epochs=3)
    reports = []
    for report in search.epochs():
        reports.append(report)
        assert {r.temperature for r in search.network.relaxations.values()} == {report.temperature}
    assert [report.temperature for report in reports] == [2.0, 1.0, 0.5]
    last = reports[-1]
    with search.network.child():
        loss, accuracy = evaluate(search.network, search.loaders[1].images, search.loaders[1].labels, data)
    assert (last.child_loss, last.child_accuracy) == (loss, accuracy)
    with search.network.child(weighted=True):
        _, weighted = evaluate(search.network, search.loaders[1].images, search.loaders[1].labels, data)
    assert last.weighted_child_accuracy == weighted
    if name == "entrannas-dst":
        assert weighted == last.validation_accuracy  # the derived cells with their coefficients are the supernet
        for kind, relaxation in search.network.relaxations.items():
            assert torch.equal(last.thresholds[kind], relaxation.beta.detach().sigmoid())


def test_a_large_penalty_drops_connections(data):
    kept = {}
    for weight in (0.0, 100.0):
        search = search_of(data, "entrannas-dst", penalty_weight=weight, temperature=0.5, epochs=3)
        kept[weight] = [sum(len(cell.edges) for _, cell in report.genotype.cells) for report in search.epochs()]
    assert kept[100.0][-1] < kept[0.0][-1] < 2 * 9 * 3
    assert kept[100.0][-1] >= 2 * 3  # at least one a node


# ---------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [1, 4])
def test_resume_to_the_same_bits(data, name, steps, tmp_path):
    """Within an epoch and in the next one, where the temperature is another."""
    whole = search_of(data, name)
    list(whole.epochs())
    stopped = search_of(data, name)
    seen = []

    def stop(run):
        seen.append(run)
        if len(seen) == steps:
            run.stop()

    stopped.on_step = stop
    list(stopped.epochs())
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = search_of(data, name)
    resumed.load(tmp_path / "checkpoint.pt")
    with torch.no_grad():  # before another step: τ is the stopped epoch's
        a, b = stopped.network.coefficients(), resumed.network.coefficients()
    assert all(torch.equal(a[kind], b[kind]) for kind in a)
    list(resumed.epochs())
    states = whole.state_dict(), resumed.state_dict()
    for part in ("network", "weight_optimizer", "architecture_optimizer"):
        _same(states[0][part], states[1][part])
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert one.genotype == other.genotype and one.child_accuracy == other.child_accuracy
        assert type(other) is type(one)


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_search_keeps_its_cells_when_it_is_loaded(data, name, tmp_path):
    settings = {"epochs": 1, "temperature": 5.0, "temperature_decay": 0.01}
    search = search_of(data, name, **settings)
    list(search.epochs())
    search.save(tmp_path / "checkpoint.pt")
    again = search_of(data, name, **settings)
    again.load(tmp_path / "checkpoint.pt")
    assert again.temperature == search.history[-1].temperature == 5.0
    assert again.result().genotype == search.history[-1].genotype
    with torch.no_grad():
        a, b = search.network.coefficients(), again.network.coefficients()
    assert all(torch.equal(a[kind], b[kind]) for kind in a)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_the_device_once_a_kind_and_pass(data, name, monkeypatch):
    search = search_of(data, name)
    search.begin_epoch()
    fetched = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: fetched.append(tuple(tensor.shape)) or original(tensor))
    search.run_step(0)
    assert fetched == [(len(search.space.edges), 3)] * 4  # α's pass and the weights', both kinds of cell


def _same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            _same(a, b)
    else:
        assert one == other


def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path):
    search = search_of(data, "entrannas-dst")
    search.save(tmp_path / "checkpoint.pt")
    for changes in ({"penalty_weight": 0.2}, {"temperature": 4.0}, {"engine_cells": "last"}):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            search_of(data, "entrannas-dst", **changes).load(tmp_path / "checkpoint.pt")
    search_of(data, "entrannas-dst", engine="readable").load(tmp_path / "checkpoint.pt")  # how, not what


def test_reports_survive_a_checkpoint(data):
    search = search_of(data, "entrannas-dst", epochs=1)
    (report,) = search.epochs()
    again = entrannas_dst.Report.from_state(copy.deepcopy(report.to_state()))
    assert again.thresholds.keys() == report.thresholds.keys() and again.temperature == report.temperature
    assert again.genotype == report.genotype
