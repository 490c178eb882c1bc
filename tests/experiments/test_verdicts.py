"""Verdicts follow from numbers by fixed rules, and only from enough seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nasbook.errors import InvalidInput
from nasbook.experiments import (
    CLAIMS,
    SCALES,
    get_claim,
    get_experiment,
    judge,
    list_experiments,
    load_records,
    scoreboard,
    tally,
)
from nasbook.experiments.differentiable_search import PUBLISHED_COUNTS
from nasbook.experiments.verdicts import exact, mean_and_error, one_sided_p, trend

NOT_YET = "not yet run at this scale"


# --- rules ------------------------------------------------------------------------------------------------------------


def test_exact_holds_or_not():
    assert exact(True, "n").status == "holds"
    assert exact(False, "n").status == "does not hold at this scale"
    assert exact(True, "n").numbers == "n"


@pytest.mark.parametrize(
    ("right_way", "significant", "status"),
    [
        (True, True, "holds"),
        (True, False, "partly"),
        (False, False, "does not hold at this scale"),
        (False, True, "does not hold at this scale"),
    ],
)
def test_a_trend_needs_sign_and_significance(right_way, significant, status):
    assert trend(right_way, significant, "").status == status


def test_one_sided_p_by_hand():
    # mean 2, deviation 1, standard error 1/√3: t = 2√3 with 2 degrees of freedom, whose
    # upper tail is (1 − t/√(t² + 2))/2.
    t = 2 * np.sqrt(3)
    assert one_sided_p(np.array([1.0, 2.0, 3.0])) == pytest.approx((1 - t / np.sqrt(t**2 + 2)) / 2, abs=1e-12)
    assert one_sided_p(np.array([-1.0, -2.0, -3.0])) == pytest.approx((1 + t / np.sqrt(t**2 + 2)) / 2, abs=1e-12)
    assert one_sided_p(np.array([-1.0, 0.0, 1.0])) == pytest.approx(0.5)


def test_one_sided_p_without_any_spread():
    assert one_sided_p(np.array([0.5, 0.5, 0.5])) == 0.0
    assert one_sided_p(np.array([0.0, 0.0, 0.0])) == 1.0
    assert one_sided_p(np.array([-0.5, -0.5])) == 1.0


def test_mean_and_error():
    assert mean_and_error(np.array([0.90, 0.92, 0.94])) == "92.00% ± 1.15%"


# --- judging ----------------------------------------------------------------------------------------------------------


def random_values(searched, random):
    return {"searched": {"test_accuracy": searched}, "random": {"test_accuracy": random}}


@pytest.mark.parametrize(
    ("searched", "random", "status", "numbers"),
    [
        ((0.92, 0.93, 0.94), (0.90, 0.91, 0.92), "holds", "difference +2.00%, one-sided p = 0.00 over 3 seeds"),
        ((0.92, 0.90, 0.95), (0.90, 0.91, 0.92), "partly", "difference +1.33%"),
        ((0.90, 0.91, 0.92), (0.92, 0.93, 0.94), "does not hold at this scale", "difference -2.00%"),
    ],
)
def test_the_verdict_on_random_cells(record_of, scale, searched, random, status, numbers):
    pairs = (random_values(*pair) for pair in zip(searched, random, strict=True))
    record = record_of("darts-random", *pairs)
    verdict = get_experiment("darts-random").judges["darts.random"](record)
    assert verdict.status == status
    assert numbers in verdict.numbers


def collapse_values(skips, gap):
    return {"skips": skips, "gap": gap}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([([1, 4], [0.0, 0.1]), ([1, 5], [0.0, 0.12]), ([2, 5], [0.1, 0.19])], "holds"),
        ([([1, 4], [0.1, 0.0]), ([1, 5], [0.1, 0.0]), ([2, 5], [0.1, 0.0])], "partly"),  # skips grow, the gap does not
        ([([4, 1], [0.1, 0.0]), ([5, 1], [0.1, 0.0]), ([5, 2], [0.1, 0.0])], "does not hold at this scale"),
        ([([1, 1], [0.0, 0.0]), ([1, 1], [0.0, 0.0]), ([2, 2], [0.1, 0.1])], "does not hold at this scale"),
    ],
)
def test_the_verdict_on_the_collapse(record_of, values, status):
    record = record_of("darts-collapse", *(collapse_values(*v) for v in values))
    verdict = get_experiment("darts-collapse").judges["darts.collapse"](record)
    assert verdict.status == status
    assert "epochs 1 → 2, 3 seeds" in verdict.numbers


def test_too_few_seeds_are_not_judged(record_of, scale):
    quick = SCALES["quick"]
    pairs = [random_values(0.92 + n / 100, 0.9) for n in range(3)]
    records = [record_of("darts-random", *pairs[:2], of=quick)]
    verdict = judge("darts.random", "quick", records)
    assert (verdict.status, verdict.numbers) == (NOT_YET, "2 of 3 seeds measured")
    records = [record_of("darts-random", *pairs, of=quick)]
    assert judge("darts.random", "quick", records).status == "holds"
    assert judge("darts.random", "laptop", records).status == NOT_YET


def counts_values(cells=1_037_664_180):
    return {
        "edges": 14,
        "operations": 8,
        "cells": cells,
        "supernet_weights": 1_930_618,
        "architecture_among_weights": 0,
        "derived": PUBLISHED_COUNTS,
    }


def test_exact_claims_do_not_depend_on_the_scale(record_of):
    records = [record_of("darts-counts", counts_values(), of=SCALES["laptop"])]
    for scale in SCALES:
        assert judge("darts.space", scale, records).status == "holds"
    wrong = [record_of("darts-counts", counts_values(cells=1), of=SCALES["quick"])]
    assert judge("darts.space", "gpu", wrong).status == "does not hold at this scale"


def test_an_exact_claim_takes_the_record_that_is_complete(record_of):
    errors = {"r": [1.0] * 9}
    for kind in ("smooth", "kinked"):
        errors |= {
            f"{kind}_exact": 1e-12,
            f"{kind}_first_order": 0.3,
            f"{kind}_finite_difference": [0.5, 0.5] + [1e-8] * 7,
        }
    short = record_of("darts-hypergradient", errors, of=SCALES["quick"])
    whole = record_of("darts-hypergradient", errors, errors, errors, of=SCALES["gpu"])
    assert judge("darts.hypergradient", "quick", [short]).numbers == "1 of 3 seeds measured"
    assert judge("darts.hypergradient", "quick", [short, whole]).status == "holds"


def test_a_claim_without_experiment_or_record():
    assert judge("firefly.rbf", "quick", []).status == NOT_YET
    assert judge("darts.random", "quick", []).status == NOT_YET


def test_unknown_names():
    with pytest.raises(InvalidInput, match=r"Unknown claim 'darts.randm'. Did you mean 'darts.random'"):
        get_claim("darts.randm")
    with pytest.raises(InvalidInput, match=r"Unknown scale 'quik'. Did you mean 'quick'"):
        judge("darts.random", "quik", [])
    with pytest.raises(InvalidInput, match=r"Unknown experiment 'darts-rand'. Did you mean 'darts-random'"):
        get_experiment("darts-rand")


# --- claims and scoreboard --------------------------------------------------------------------------------------------


def test_claims_are_told_apart():
    ids = [claim.id for claim in CLAIMS]
    assert len(ids) == len(set(ids))
    for claim in CLAIMS:
        assert get_claim(claim.id) is claim
        assert claim.paper and "." in claim.id
        assert claim.kind in ("exact", "cost", "trend")
        assert claim.statement.endswith(".") and "|" not in claim.statement
        assert claim.where


def test_every_judge_has_a_claim_and_no_claim_has_two():
    judged = [claim for experiment in list_experiments() for claim in experiment.judges]
    assert len(judged) == len(set(judged))
    assert set(judged) <= {claim.id for claim in CLAIMS}
    assert {claim.id for claim in CLAIMS if claim.paper == "darts"} <= set(judged)


def test_the_scoreboard_has_every_claim():
    lines = scoreboard(records=[]).splitlines()
    assert len(lines) == len(CLAIMS) + 2
    for claim, line in zip(CLAIMS, lines[2:], strict=True):
        assert line.startswith(f"| `{claim.id}` | ")
        assert line.endswith("| — | not yet run |  |")
    assert {line.count("|") for line in lines} == {8}


def test_the_scoreboard_shows_each_scale_that_was_run(record_of):
    records = [
        record_of("darts-counts", counts_values(), of=SCALES["quick"]),
        record_of("darts-counts", counts_values(), of=SCALES["gpu"]),
        record_of("darts-random", *(random_values(0.92 + n / 100, 0.9) for n in range(3)), of=SCALES["quick"]),
        record_of("darts-random", random_values(0.9, 0.8), of=SCALES["laptop"]),
    ]
    table = scoreboard("darts", records)
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table.splitlines()[2:]}
    assert {(r[0], r[4], r[5]) for r in rows if r[0] in ("`darts.space`", "`darts.random`")} == {
        ("`darts.space`", "any", "**holds**"),
        ("`darts.random`", "quick", "**holds**"),
        ("`darts.random`", "laptop", f"**{NOT_YET}**"),
    }
    assert all(row[0].startswith("`darts.") for row in rows)


def test_the_committed_scoreboard_can_be_made():
    assert scoreboard().count("\n") >= len(CLAIMS) + 1
    assert load_records() == load_records()


def test_columns_of_the_scoreboard():
    lines = scoreboard("darts", [], columns=("claim", "verdict")).splitlines()
    assert lines[:3] == ["| claim | verdict |", "|---|---|", "| `darts.space` | not yet run |"]
    with pytest.raises(InvalidInput, match=r"Unknown column 'verdic'. Did you mean 'verdict'"):
        scoreboard(columns=("verdic",))
    with pytest.raises(InvalidInput, match=r"Unknown paper 'dart'. Did you mean 'darts'"):
        scoreboard("dart")


def test_the_tally_counts_every_claim_once_at_each_scale():
    counts = tally(())
    assert sum(sum(own["exact"].values()) for own in counts.values()) == sum(c.kind == "exact" for c in CLAIMS)
    for scale in ("quick", "laptop", "gpu", "paper"):
        found = sum((own[scale] for own in counts.values()), Counter())
        assert found == {"not yet run at this scale": sum(c.kind != "exact" for c in CLAIMS)}
    committed = tally()
    for paper, own in committed.items():
        for claim in (c for c in CLAIMS if c.paper == paper and c.kind != "exact"):
            assert own["quick"][judge(claim.id, "quick").status] > 0
