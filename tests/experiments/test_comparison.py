"""Chapter 8's comparison: the rules hold in a run of seconds; the table on records made of given numbers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from nasbook.analysis import holm, mean_interval, paired_test
from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.experiments import (
    BASELINES,
    COMPARED,
    COMPARISON_SCALES,
    RANDOM_CELL,
    SUPERNETS,
    Measurement,
    Record,
    SearchSize,
    build_search,
    comparison_rows,
    comparison_scale,
    fair_searches,
    get_experiment,
    get_scale,
    reproduce,
    search_macs,
)
from nasbook.experiments import comparison as module
from nasbook.experiments.comparison import samples_within
from nasbook.experiments.fair_searches import STEADY, counted_search, step_macs
from nasbook.genotypes import Genotype
from nasbook.methods import darts
from nasbook.training import Fit, FitConfig


@pytest.fixture(scope="module")
def tiny():
    return replace(
        comparison_scale(get_scale("quick")),
        name="tiny",
        train_images=40,
        test_images=20,
        operations=("none", "skip_connect", "sep_conv_3x3"),
        search_epochs=1,
        search_batch=8,
        search_channels=4,  # PC-DARTS takes a quarter
        search_cells=2,
        epochs=1,
        batch=20,
        channels=2,
        sample_epochs=1,
        most_samples=4,
    )


@pytest.fixture(scope="module")
def images(tiny):
    return load_images("digits").take(tiny.train_images, tiny.test_images)


@pytest.fixture(scope="module")
def size(tiny):
    return SearchSize(tiny.space, tiny.search_epochs, tiny.search_batch, tiny.search_channels, tiny.search_cells)


# --- one set of numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPERNETS)
def test_every_search_has_the_common_numbers(name, size, images):
    size = replace(size, epochs=12)
    search = build_search(name, size, images, 3)
    config = search.plan if name == "Firefly cells" else search.config
    assert (config.batch_size, config.channels, config.learning_rate) == (8, 4, size.learning_rate)
    assert getattr(config, "cells", size.cells) == size.cells
    assert getattr(config, "order", "first-order") == ("second-order" if "second" in name else "first-order")
    assert search.seed == 3
    assert search.data is images
    assert search.total_epochs <= size.epochs
    assert set(search.space.operations) <= set(size.space.operations) or name in ("PR-DARTS", "Firefly cells")


def test_alpha_can_move_as_far_as_in_the_paper(size, images):
    """Rate × steps: 5.9 for DARTS, whatever the number of epochs (3e-4, 50 epochs, 390 steps)."""
    for epochs in (1, 10):
        config = build_search("DARTS, first order", replace(size, epochs=epochs), images, 0).config
        assert config.architecture_learning_rate * epochs * (20 // 8) == pytest.approx(3e-4 * 50 * 390, rel=0.01)
    assert darts.Config().architecture_learning_rate == 3e-4


def test_unknown_methods(size, images):
    with pytest.raises(InvalidInput, match="DARTS, first order"):
        build_search("DARTS, first", size, images, 0)


# --- what a search costs ----------------------------------------------------------------------------------------------


class Depthwise(nn.Module):
    """A stem, a depthwise convolution and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.classifier = nn.Linear(4, 10)

    def forward(self, x):
        return self.classifier(self.depthwise(self.stem(x)).mean((2, 3)))


def test_a_steps_multiply_adds_by_hand(images):
    """Forward, and as much again for each gradient; nobody asks for that of the images."""
    run = Fit(Depthwise(), images, FitConfig(epochs=1, batch_size=8, drop_path=0.0, cutout=0))
    stem, depthwise, classifier = 8 * 64 * 9 * 4, 8 * 64 * 9 * 4, 8 * 4 * 10
    assert step_macs(run) == 2 * stem + 3 * depthwise + 3 * classifier


def test_the_second_order_costs_more(size, images):
    first, second = (search_macs(f"DARTS, {order} order", size, images, 0) for order in ("first", "second"))
    assert 2 * first < second < 5 * first
    assert search_macs("EnTranNAS", size, images, 0) < first


@pytest.mark.parametrize(
    ("budget", "macs", "most", "samples"),
    [(1000.0, 100.0, 30, 10), (1000.0, 100.0, 8, 8), (1099.0, 100.0, 30, 10), (50.0, 100.0, 30, 4)],
)
def test_samples_for_a_budget(budget, macs, most, samples):
    assert samples_within(budget, macs, most) == samples


def _ends(search):
    """What a search has come to: weights, history without times, genotype."""
    state = search.state_dict()
    reports = [{key: value for key, value in one.items() if key != "seconds"} for one in state["history"]]
    return search.network.state_dict(), reports, search.result().genotype


# Firefly's cells take a minute here; their counts are in the run of all methods below.
@pytest.mark.parametrize("name", ["DARTS, first order", *sorted(set(SUPERNETS) - {*STEADY, "Firefly cells"})])
def test_counting_leaves_a_search_as_it_is_and_goes_on_after_a_stop(name, size, images):
    size = replace(size, epochs=4)
    plain, counted, stopped = (
        build_search(name, size, images, 0),
        counted_search(name, size, images, 0),
        counted_search(name, size, images, 0),
    )
    list(plain.epochs())
    list(counted.epochs())
    next(stopped.epochs())
    other = counted_search(name, size, images, 0)
    other.load_state_dict(deepcopy(stopped.state_dict()))
    list(other.epochs())
    (weights, reports, genotype), (whole, measured, found) = _ends(plain), _ends(counted)
    torch.testing.assert_close(weights, whole, rtol=0, atol=0)
    assert genotype == found
    assert [one["measured"] for one in reports] == [{}] * len(reports)
    again, also, last = _ends(other)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert last == found
    macs = [one["measured"]["macs"] for one in measured]
    assert macs == [one["measured"]["macs"] for one in also]
    # EnTranNAS' Transit-cells follow α, which has moved since the first step.
    assert macs[0] == pytest.approx(search_macs(name, size, images, 0) * counted.steps_per_epoch, rel=0.02)


@pytest.mark.parametrize("name", STEADY)
def test_steady_methods_cost_the_same_in_every_epoch(name, size, images, monkeypatch):
    monkeypatch.setattr(fair_searches, "STEADY", ())
    search = counted_search(name, replace(size, epochs=3), images, 0)
    assert len({report.measured["macs"] for report in search.epochs()}) == 1


def test_a_resting_alpha_and_a_grown_cell_are_counted(size, images):
    resting = counted_search("PC-DARTS", replace(size, epochs=4), images, 0)  # α rests in 30 % of the epochs
    first, *others = (report.measured["macs"] for report in resting.epochs())
    assert len(set(others)) == 1 and 1.3 * first < others[0] < 2 * first
    growing = counted_search("Growing DARTS", replace(size, epochs=4), images, 0)
    by_stage = {(report.stage, report.tuning): report.measured["macs"] for report in growing.epochs()}
    assert by_stage[1, True] < by_stage[1, False] < by_stage[2, False]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_all_methods_in_one_run(tiny):
    measurement = reproduce("comparison", tiny, seed=1)
    values = measurement.values
    assert tuple(values) == COMPARED
    assert not [name for name in COMPARED if "failed" in values[name]]
    for name, row in values.items():
        assert 0 <= row["test_accuracy"] <= 1
        assert row["parameters"] > 0 and row["macs"] > 0
        Genotype.from_json(row["genotype"])
        if name in SUPERNETS:
            assert row["search_macs"] > 0 and row["samples"] == 0 and row["passes"] >= 1
    budget = values["DARTS, first order"]["search_macs"]
    spent = {name: values[name]["search_macs"] for name in BASELINES}
    assert len(set(spent.values())) == 1  # equal budgets
    assert all(values[name]["samples"] == 4 for name in BASELINES)  # the least, though the budget is one epoch's
    assert spent["random search"] == pytest.approx(budget, rel=3)
    nothing = values[RANDOM_CELL]
    assert (nothing["search_macs"], nothing["search_seconds"], nothing["passes"]) == (0, 0, 0)


def test_a_search_that_diverges_is_told_and_not_dropped(tiny, monkeypatch):
    from nasbook.errors import TrainingDiverged

    def diverges(*_):
        raise TrainingDiverged("the loss became nan")

    monkeypatch.setattr(module, "COMPARED", ("DARTS, first order", RANDOM_CELL))
    monkeypatch.setattr(module, "counted_search", diverges)
    values = reproduce("comparison", tiny, seed=0).values
    assert values["DARTS, first order"]["failed"] == "the loss became nan"
    assert "test_accuracy" in values[RANDOM_CELL]


def test_the_same_seed_gives_the_same_cells(tiny, monkeypatch):
    monkeypatch.setattr(module, "COMPARED", ("PC-DARTS", "local search", RANDOM_CELL))
    first, again = (reproduce("comparison", tiny, seed=2).values for _ in range(2))
    for name in first:
        for key in ("genotype", "test_accuracy", "search_macs", "samples"):
            assert first[name][key] == again[name][key]
    other = reproduce("comparison", tiny, seed=3).values
    assert other[RANDOM_CELL]["genotype"] != first[RANDOM_CELL]["genotype"]


def test_scales():
    assert set(COMPARISON_SCALES) == {"quick", "laptop", "gpu", "paper"}
    for name, scale in COMPARISON_SCALES.items():
        assert comparison_scale(get_scale(name)) is scale
        assert scale.seeds >= 3
        assert scale.cells >= 5  # one of each of Firefly's kinds
        assert scale.sample_epochs < scale.epochs
    with pytest.raises(InvalidInput, match="sample_epochs"):
        comparison_scale(replace(get_scale("quick"), name="mine"))


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tiny, provenance):
    """Accuracies around 0.9 by seed; DARTS better than random search by one point in every seed."""
    draws = np.random.default_rng(0)
    base = draws.normal(0.9, 0.02, 4)
    measurements = []
    for seed in range(4):
        values = {}
        for place, name in enumerate(COMPARED):
            own = 0.01 + 0.001 * seed if name == "DARTS, first order" else 0.0
            noise = 0.0 if name in ("random search", "DARTS, first order") else float(draws.normal(0, 0.01))
            values[name] = {
                "search_macs": 0.0 if name == RANDOM_CELL else 1e9 * (1 + place),
                "search_seconds": 1.0 * place,
                "passes": 10,
                "samples": 0,
                "macs": 1000 + place,
                "parameters": 100 + place,
                "test_accuracy": float(base[seed]) + own + noise,
                "train_accuracy": 1.0,
                "genotype": "",
            }
        measurements.append(Measurement(seed, values, provenance))
    return Record("comparison", asdict(tiny), tuple(measurements))


def test_the_table_of_a_record(record):
    rows = {row.name: row for row in comparison_rows(record)}
    assert tuple(rows) == COMPARED
    base = np.array([m.values["random search"]["test_accuracy"] for m in record.measurements])
    found = {name: np.array([m.values[name]["test_accuracy"] for m in record.measurements]) for name in COMPARED}
    others = [name for name in COMPARED if name != "random search"]
    p = [paired_test(found[name], base).p for name in others]
    for name, corrected in zip(others, holm(p), strict=True):
        assert rows[name].p == corrected
        assert rows[name].accuracy == mean_interval(found[name])
        assert rows[name].test is not None and rows[name].test.p <= corrected
        assert rows[name].detectable is not None and rows[name].detectable > 0
    one = rows["DARTS, first order"]
    assert one.test is not None and one.test.difference.mean == pytest.approx(0.0115)
    assert one.p is not None and one.p < 0.05 < 0.2 < min(rows[name].p or 1 for name in others[2:])
    own = rows["random search"]
    assert (own.test, own.p, own.detectable) == (None, None, None)
    assert one.passes > 0
    assert (one.search_macs, one.parameters, one.macs, one.failed) == (1e9, 100, 1000, 0)
    assert rows[RANDOM_CELL].on_front  # nothing is cheaper


def test_a_record_without_a_row_is_refused(record):
    first, *others = record.measurements
    less = replace(first, values={name: first.values[name] for name in COMPARED[1:]})
    with pytest.raises(InvalidInput, match="DARTS, first order"):
        comparison_rows(replace(record, measurements=(less, *others)))


def test_the_front_is_that_of_costs_and_means(record):
    rows = comparison_rows(record)
    for row in rows:
        beaten = any(
            other.search_macs <= row.search_macs
            and other.accuracy.mean >= row.accuracy.mean
            and (other.search_macs, other.accuracy.mean) != (row.search_macs, row.accuracy.mean)
            for other in rows
        )
        assert row.on_front == (not beaten)


def test_a_failed_seed_is_left_out_of_all_rows_and_counted(record):
    *kept, last = record.measurements
    broken = {**last.values, "PR-DARTS": {"search_macs": 0.0, "failed": "the loss became nan"}}
    found = comparison_rows(replace(record, measurements=(*kept, replace(last, values=broken))))
    rows = {row.name: row for row in found}
    assert {len(row.accuracies) for row in rows.values()} == {3}
    assert rows["PR-DARTS"].failed == 1
    assert rows["random search"].failed == 0
    with pytest.raises(InvalidInput, match="two seeds in which no row failed; this record has 1"):
        comparison_rows(replace(record, measurements=(kept[0], replace(last, values=broken))))


def test_the_experiment():
    experiment = get_experiment("comparison")
    assert experiment.chapter == "08-ground-truth-and-fair-comparison"
    assert experiment.seeds(comparison_scale(get_scale("quick"))) >= 3
