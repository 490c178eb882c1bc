"""Rates in training: what is measured, and that the committed record has today's counts."""

from __future__ import annotations

from dataclasses import asdict

import _measure as measure
import pytest
import throughput
import torch

from nasbook.experiments.budgets import paper_costs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def record():
    return measure.read_record(measure.RECORDS / "throughput.cpu.json")


def test_a_rate_is_the_counted_work_over_the_median_time(monkeypatch):
    steps = []
    contestant = throughput.Contestant(lambda: steps.append(1), 4, 1000)
    monkeypatch.setattr(throughput, "KINDS", {"plain": lambda batch, device: contestant})
    (row,) = throughput.measure_rates(throughput.Options(rounds=3), CPU)
    assert len(steps) == 4
    assert (row["kind"], row["network"], row["batch"], row["macs"]) == ("rate", "plain", 4, 1000)
    assert row["macs_per_second"] == 1000 / row["seconds"]


def test_a_step_of_the_language_model_reaches_every_parameter(monkeypatch):
    monkeypatch.setattr(throughput, "WORDS", 11)
    monkeypatch.setattr(throughput, "HIDDEN", 4)
    contestant = throughput.recurrent(2, CPU)
    assert contestant.batch == 2 * throughput.STEPS
    matrices = 3 * 8 * 4 + 3 * 6 * 16 + 4 * 11  # [x; h] into the first node, six later edges, the head
    assert contestant.macs == 3 * contestant.batch * matrices
    contestant.step()
    network = throughput.LanguageModel()
    throughput._training(network, torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, dtype=torch.long))()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_record_has_a_rate_of_every_kind(record):
    rates = {row["network"]: row for row in record["rows"] if row["kind"] == "rate"}
    assert set(rates) == set(throughput.KINDS)
    assert rates["supernet"]["macs"] == rates["supernet"]["batch"] * 1_457_336_832  # as counted in test_budgets.py
    plain = throughput.plain(1, CPU)
    assert rates["plain"]["macs"] == rates["plain"]["batch"] * plain.macs


def test_the_record_has_the_rows_of_today(record):
    rows = [row for row in record["rows"] if row["kind"] == "row"]
    costs = [throughput.cost_of(row) for row in rows]
    assert {cost.paper for cost in costs} == {"stretchable", "entrannas", "prdarts", "growing", "firefly"}
    own = [cost for cost in costs if cost.paper == "growing"]
    assert [asdict(cost) for cost in own] == [asdict(cost) for cost in paper_costs("growing")]
