"""Chapter 3's experiments at a scale of a second, and its verdicts on records made by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from nasbook.errors import InvalidInput
from nasbook.experiments import (
    ENTRANNAS_SCALES,
    SCALES,
    entrannas,
    entrannas_checks,
    entrannas_config,
    entrannas_costs,
    entrannas_dst_config,
    entrannas_scale,
    get_experiment,
    read_record,
    reproduce,
)
from nasbook.genotypes import Genotype
from nasbook.methods import entrannas as method
from nasbook.methods import entrannas_dst

NOT = "does not hold at this scale"


@pytest.fixture(scope="module")
def tiny():
    return replace(
        ENTRANNAS_SCALES["quick"],
        name="tiny",
        train_images=64,
        test_images=20,
        operations=("none", "skip_connect", "sep_conv_3x3"),
        nodes=2,
        search_epochs=1,
        search_batch=32,
        search_channels=2,
        search_cells=3,
        bottleneck_channels=8,
        epochs=1,
        batch=32,
        channels=2,
        cells=1,
        penalty_weights=(0.05, 0.2),
    )


def verdict(record_of, experiment, claim, values):
    return get_experiment(experiment).judges[claim](record_of(experiment, *values, of=ENTRANNAS_SCALES["quick"]))


# --- scales -----------------------------------------------------------------------------------------------------------


def test_the_numbers_of_every_scale():
    for name, scale in ENTRANNAS_SCALES.items():
        assert entrannas_scale(SCALES[name]) is scale and entrannas_scale(scale) is scale
        config = entrannas_config(scale)
        assert config.temperature * config.temperature_decay**scale.search_epochs == pytest.approx(5 * 0.923**50)
        assert scale.penalty_weights == (0.05, 0.1, 0.2)
    with pytest.raises(InvalidInput, match="Chapter 3 needs numbers of its own"):
        entrannas_scale(replace(SCALES["quick"], name="mine"))


def test_the_paper_scale_is_the_papers():
    assert entrannas_config(SCALES["paper"]) == method.Config()
    assert entrannas_dst_config(SCALES["paper"]) == entrannas_dst.Config()


@pytest.mark.parametrize("name", ["quick", "laptop", "gpu", "paper"])
def test_alpha_can_move_as_far_at_every_scale(name):
    scale = ENTRANNAS_SCALES[name]
    images = {"quick": 1280, "laptop": 2000, "gpu": 50_000, "paper": 50_000}[name]
    steps = scale.search_epochs * (images // 2 // scale.search_batch)
    assert scale.annealed_learning_rate * steps == pytest.approx(1.47, rel=0.1)
    assert scale.architecture_learning_rate * steps == pytest.approx(5.9, rel=0.1)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["placement", "kendall", "lambda", "spaces"])
def test_every_experiment_runs_and_is_read_back(name, tiny, tmp_path):
    measurement = reproduce(f"entrannas-{name}", tiny, seed=1, folder=tmp_path)
    record = read_record(tmp_path / f"entrannas-{name}.tiny.json")
    assert record.measurements[0].values == measurement.values
    assert record.scale["penalty_weights"] == [0.05, 0.2]
    rows = measurement.values
    if name == "placement":
        assert list(rows) == [f"{form}, {place}" for form in ("alone", "whole") for place in entrannas.PLACEMENTS]
    if name == "lambda":
        assert list(rows) == ["0.0", "0.05", "0.2", "1.0"]
        for row in rows.values():
            genotype = Genotype.from_json(row["genotype"])
            assert row["connections"] == {kind: len(cell.edges) for kind, cell in genotype.cells}
            assert len(row["epochs"]) == tiny.search_epochs and row["macs"] > 0
    if name == "spaces":
        assert [row["operations"] for row in rows.values()] == [2, 2, 7]
    for row in rows.values():
        keys = ("supernet", "child", "renormalized") if name == "placement" else ("test_accuracy",)
        assert all(0 <= row[key] <= 1 for key in keys)


def test_all_engine_cells_alone_is_darts(tiny):
    """The row "all" of Table 1 with the placement alone has DARTS' accuracy to the last bit."""
    alone = reproduce("entrannas-placement", tiny, seed=0).values["alone, all"]
    ranked = reproduce("entrannas-kendall", replace(tiny, operations=tiny.operations[1:]), seed=0).values["DARTS"]
    assert alone["supernet"] == ranked["supernet"]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def placements_of(drops):
    return [
        {
            f"alone, {name}": {"supernet": 0.9, "child": 0.9 - drop[place]}
            for place, name in enumerate(entrannas.PLACEMENTS)
        }
        for drop in drops
    ]


@pytest.mark.parametrize(
    ("drops", "status"),
    [
        ([(0.3, 0.2, 0.1, 0.01), (0.31, 0.2, 0.1, 0.02), (0.32, 0.2, 0.1, 0.01)], "holds"),
        ([(0.3, 0.2, 0.1, 0.25), (0.3, 0.2, 0.1, 0.0), (0.3, 0.2, 0.1, 0.02)], "partly"),
        ([(0.3, 0.2, 0.0, 0.01), (0.31, 0.2, 0.0, 0.02), (0.32, 0.2, 0.0, 0.01)], NOT),
        ([(0.0, 0.0, 0.0, 0.1)] * 3, NOT),
    ],
)
def test_the_verdict_on_placements(record_of, drops, status):
    found = verdict(record_of, "entrannas-placement", "entrannas.engine", placements_of(drops))
    assert found.status == status
    assert f"first {np.mean([d[3] for d in drops]):.2%}" in found.numbers


def ranking_of(orders):
    """Six seeds; each method's retrained accuracies in an order given as ranks of the supernets'."""
    return [
        {
            name: {"supernet": 0.5 + seed / 100, "test_accuracy": 0.9 + order[seed] / 1000}
            for name, order in orders.items()
        }
        for seed in range(6)
    ]


UP, DOWN, MIXED = (0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (1, 3, 0, 5, 2, 4)


@pytest.mark.parametrize(
    ("orders", "status"),
    [
        ((DOWN, MIXED, MIXED, UP), "holds"),
        ((UP, MIXED, MIXED, DOWN), NOT),
        ((MIXED, MIXED, MIXED, MIXED), NOT),
        ((MIXED, UP, UP, UP), NOT),  # no better than EnTranNAS
        (((2, 1, 0, 4, 3, 5), UP, (1, 0, 3, 2, 5, 4), (1, 0, 3, 2, 4, 5)), "partly"),  # τ 0.47, 0.60, 0.73
    ],
)
def test_the_verdict_on_rankings(record_of, orders, status):
    values = ranking_of(dict(zip(entrannas.METHODS, orders, strict=True)))
    assert verdict(record_of, "entrannas-kendall", "entrannas.kendall", values).status == status


def test_six_searches_are_asked_for():
    assert get_experiment("entrannas-kendall").seeds(SCALES["quick"]) == 6
    assert get_experiment("entrannas-placement").seeds(SCALES["quick"]) == 3


def test_resampled_orders_of_a_perfect_order_are_perfect(record_of):
    values = ranking_of(dict.fromkeys(entrannas.METHODS, UP))
    record = record_of("entrannas-kendall", *values, of=ENTRANNAS_SCALES["quick"])
    found = entrannas.rank_correlations(record)
    assert all(numbers == pytest.approx((1, 1, 1)) for numbers in found.values())


@pytest.mark.parametrize(
    ("kept", "status"),
    [
        ([(20, 12), (21, 13), (22, 14)], "holds"),
        ([(20, 12), (12, 14), (22, 14)], "partly"),
        ([(12, 20), (13, 21), (14, 23)], NOT),
        ([(12, 12), (13, 13), (14, 14)], NOT),
    ],
)
def test_the_verdict_on_lambda(record_of, kept, status):
    """The smallest of the paper's weights against its largest; those beyond are told and not judged."""

    def row(total):
        return {"connections": {"normal": total - 5, "reduction": 5}}

    values = [
        {"0.0": row(10), "0.05": row(few), "0.1": row(15), "0.2": row(many), "1.0": row(30)} for few, many in kept
    ]
    found = verdict(record_of, "entrannas-lambda", "entrannas.lambda", values)
    assert found.status == status and "λ = 1.0: 30.0" in found.numbers


# --- exact checks and costs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    return reproduce("entrannas-exact", "quick").values


def test_the_exact_claims(exact, record_of):
    judges = get_experiment("entrannas-exact").judges
    record = record_of("entrannas-exact", exact)
    assert judges["entrannas.transit"](record).status == "holds"
    assert judges["entrannas.sharing"](record).status == "holds"
    assert judges["entrannas.dst"](record).status == "partly"  # equal with the coefficients only


@pytest.mark.parametrize(
    ("claim", "path", "value"),
    [
        ("entrannas.transit", ("transit_error", "shared weights, normal cell"), 1e-3),
        ("entrannas.sharing", ("sharing", "extended", "shared modules"), 46),
        ("entrannas.sharing", ("sharing", "standard", "shared most runs"), 2),
        ("entrannas.dst", ("sparse", "fewest"), 0),
        ("entrannas.dst", ("sparse", "sum_error"), 1e-3),
        ("entrannas.dst", ("sparse", "finite"), False),
        ("entrannas.dst", ("equivalence", "weighted"), 0.1),
    ],
)
def test_a_wrong_number_is_found(exact, record_of, claim, path, value):
    values = copy.deepcopy(exact)
    place = values
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    assert get_experiment("entrannas-exact").judges[claim](record_of("entrannas-exact", values)).status == NOT


def test_a_wrong_weight_is_a_difference():
    """The check of Transit-cells would see it."""
    torch.manual_seed(0)
    cell = entrannas_checks.SearchCell(
        method.STANDARD_SPACE, place := entrannas_checks.CellPlacement("normal", 4, (4, 4), False, False)
    ).eval()
    x = torch.randn(2, 4, 8, 8)
    genotype = entrannas_checks.strongest_edges(torch.rand(14, 7), method.STANDARD_SPACE)
    derived = entrannas_checks.derived_copy(cell, genotype, place).eval()
    with torch.no_grad():
        assert torch.equal(cell(x, x, derived=genotype), derived(x, x))
        next(derived.operations.parameters()).add_(0.1)
        assert not torch.allclose(cell(x, x, derived=genotype), derived(x, x))


def test_costs_have_the_same_work_in_every_round(monkeypatch):
    monkeypatch.setattr(entrannas_costs, "ROUNDS", 1)
    first, other = (
        entrannas_costs.Contestant(config, method.STANDARD_SPACE, 2, torch.device("cpu"))
        for config in list(entrannas_costs.components().values())[1:3]
    )
    for contestant in (first, other):
        contestant.draw(seed=3)
    assert first.network.genotype() == other.network.genotype()
    other.draw(seed=4)
    assert first.network.genotype() != other.network.genotype()
    before = [parameter.clone() for parameter in first.network.parameters()]
    first.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, first.network.parameters(), strict=True))
    assert first.saved_bytes() > 0


def costs_of(memory, bottleneck, extended):
    names = list(entrannas_costs.PAPER_MEMORY)[1:]
    rows = {f"{name}, readable": {"saved_ratio": ratio} for name, ratio in zip(names, memory, strict=True)}
    for engine, ratio, seconds in zip(("readable", "fused"), bottleneck, extended, strict=True):
        for name in names:
            rows.setdefault(f"{name}, {engine}", {}).update(ratio=2.0, seconds=1.0)
        rows[f"bottleneck, {engine}, enlarged"] = {"ratio": ratio, "seconds": 1.0}
        rows[f"12 operations, {engine}"] = {"seconds": 9.0}
        rows[f"12 operations, {engine}, enlarged"] = {"seconds": seconds}
        rows[f"7 operations in all cells, {engine}"] = {"seconds": 1.0}
        rows[f"12 operations in all cells, {engine}"] = {"seconds": 2.0}
    return [rows]


@pytest.mark.parametrize(
    ("memory", "bottleneck", "extended", "expected"),
    [
        ((2.1, 3.6, 6.1), (13, 14), (1.1, 1.2), ("holds", "holds", "holds")),
        ((2.1, 3.0, 6.1), (9, 14), (1.1, 1.3), ("partly", "partly", "partly")),
        ((1.0, 1.0, 1.0), (9, 9), (1.26, 1.3), (NOT, NOT, NOT)),
    ],
)
def test_the_verdicts_on_costs(record_of, memory, bottleneck, extended, expected):
    values = costs_of(memory, bottleneck, extended)
    claims = ("entrannas.memory", "entrannas.cost", "entrannas.extended")
    assert tuple(verdict(record_of, "entrannas-costs", claim, values).status for claim in claims) == expected
