"""Chapter 8's experiments on the table: rows of cells, rankings by supernets, and what records say."""

import numpy as np
import pytest
import torch

from nasbook.errors import InvalidInput
from nasbook.experiments import LOOK_UPS, SEARCHES, Record, find_record, ranked_cells, truth_rows
from nasbook.experiments.fair_searches import SUPERNETS, SearchSize, build_search, distance, search_macs
from nasbook.experiments.ground_truth import (
    SIZE,
    child_accuracy,
    doubled,
    final_regrets,
    incumbent_regrets,
    queries_of,
    row_of,
    truth_look_ups,
)
from nasbook.experiments.records import Measurement
from nasbook.experiments.registry import Workplace
from nasbook.experiments.scale import SCALES
from nasbook.genotypes import CellGenotype, Edge, Genotype
from nasbook.methods import darts, pc_darts
from nasbook.tabular import TABULAR_SPACE, genotype_of, load_table
from nasbook.tabular.recipe import benchmark_images


@pytest.fixture(scope="module")
def images():
    return benchmark_images()


def cell(*edges, nodes=2):
    return Genotype({"reduction": CellGenotype(tuple(Edge(*edge) for edge in edges), nodes)})


def test_a_cell_that_has_not_grown_is_the_one_with_an_empty_node():
    small = cell((0, 2, "skip_connect"), (1, 2, "sep_conv_3x3"), nodes=1)
    assert row_of(small) == load_table().row(genotype_of((1, 2, 0, 0, 0)))


def test_of_two_operations_on_an_edge_the_stronger_one_counts():
    both = cell((0, 2, "skip_connect"), (0, 2, "avg_pool_3x3"), (1, 3, "sep_conv_3x3"))
    assert doubled(both) == 1
    weights = torch.zeros(5, 3)
    for columns, code in ((((0, 0.2), (2, 0.7)), (3, 0, 0, 2, 0)), (((0, 0.7), (2, 0.2)), (1, 0, 0, 2, 0))):
        for column, value in columns:
            weights[0, column] = value
        assert row_of(both, {"reduction": weights}) == load_table().row(genotype_of(code))
    with pytest.raises(InvalidInput, match="Two operations"):
        row_of(both)


def test_ranked_cells_are_different_ones_that_a_search_can_find():
    cells = ranked_cells()
    assert len({row_of(genotype) for genotype in cells}) == 30
    assert cells == ranked_cells()
    for genotype in cells:
        assert [len(genotype["reduction"].into(node)) for node in (2, 3)] == [2, 2]


def test_a_supernet_sees_a_cell_without_being_changed(images):
    search = build_search("DARTS, first order", SIZE, images, 0)
    before = {name: value.clone() for name, value in search.network.state_dict().items()}
    one, other = (child_accuracy(search, genotype) for genotype in ranked_cells(2))
    assert 0 <= one <= 1 and 0 <= other <= 1
    assert all(torch.equal(value, before[name]) for name, value in search.network.state_dict().items())
    assert search.network.training
    with pytest.raises(InvalidInput, match="partial channels"):
        child_accuracy(build_search("PC-DARTS", SIZE, images, 0), ranked_cells(1)[0])


def test_alpha_can_move_as_far_as_in_the_papers(images):
    assert distance(darts.Config()) == pytest.approx(5.85)
    for name, paper in (("DARTS, first order", darts.Config()), ("PC-DARTS", pc_darts.Config())):
        config = build_search(name, SIZE, images, 0).config
        assert config.architecture_learning_rate * 240 == pytest.approx(distance(paper))


def test_multiply_adds_of_a_step(images):
    first, second = (search_macs(name, SIZE, images, 0) for name in ("DARTS, first order", "DARTS, second order"))
    assert first == 9730048
    assert 2.5 * first < second < 3.5 * first
    wider = SearchSize(TABULAR_SPACE, 24, 64, 4, 2)
    assert search_macs("DARTS, first order", wider, images, 0) == pytest.approx(2 * first, rel=0.01)


def test_there_is_no_other_method(images):
    assert set(SEARCHES) <= set(SUPERNETS)
    with pytest.raises(InvalidInput, match="DARTS, first order"):
        build_search("DARTS first order", SIZE, images, 0)


def test_look_ups_are_a_function_of_the_seed(monkeypatch):
    monkeypatch.setattr("nasbook.experiments.ground_truth.QUERIES", 25)
    one, again, other = (truth_look_ups(Workplace(SCALES["quick"], seed, "digits")) for seed in (0, 0, 1))
    assert one == again != other
    for name in LOOK_UPS:
        rows, incumbents = one[name]["rows"], one[name]["incumbents"]
        assert len(rows) == 25 and set(incumbents) <= set(rows) and incumbents[0] == rows[0]
    assert len(set(one["random search"]["rows"])) == 25


def test_what_records_say():
    table = load_table()
    searched, looked_up = (find_record(name, "quick") for name in ("truth-searches", "truth-look-ups"))
    rows = {row.name: row for row in truth_rows(searched, looked_up)}
    assert list(rows) == [*SEARCHES, *LOOK_UPS]
    darts_row = rows["DARTS, first order"]
    found = [value["row"] for value in searched.values("DARTS, first order")]
    assert darts_row.regrets.tolist() == [table.regret(row) for row in found]
    assert darts_row.ranks.tolist() == [table[row].rank for row in found]
    assert darts_row.queries == pytest.approx(2.667, abs=1e-3) == queries_of(searched, "DARTS, first order")
    third = [table.regret(value["incumbents"][2]) for value in looked_up.values("random search")]
    assert darts_row.against_random.tolist() == third
    curve = incumbent_regrets(looked_up, "local search")
    assert curve.shape == (10, 200)
    assert np.array_equal(curve[:, 29], final_regrets(looked_up, "local search", 30))
    assert np.array_equal(incumbent_regrets(searched, "EnTranNAS")[:, -1], final_regrets(searched, "EnTranNAS"))
    fewer = Record("truth-look-ups", looked_up.scale, looked_up.measurements[:3])
    with pytest.raises(InvalidInput, match="same seeds"):
        truth_rows(searched, fewer)
    for budget in (0, 201):
        with pytest.raises(InvalidInput, match=f"1 to 200 queries.*got {budget}"):
            truth_rows(searched, looked_up, budget)
    assert isinstance(looked_up.measurements[0], Measurement)
