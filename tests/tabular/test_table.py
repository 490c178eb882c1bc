"""Look-ups: any labelling, every number, and clear words for wrong keys."""

import json

import numpy as np
import pytest
import torch

from nasbook.analysis import count_macs, count_parameters
from nasbook.errors import InvalidInput
from nasbook.experiments import find_record, retrained
from nasbook.tabular import canonical, code_of, genotype_of, load_table
from nasbook.tabular.recipe import CELLS, CHANNELS, RECIPE, SEEDS, benchmark_images, build_trainee, train_entry
from nasbook.tabular.space import all_codes
from nasbook.tabular.table import FILE


@pytest.fixture(scope="module")
def table():
    return load_table()


def test_every_cell_has_a_row_in_any_labelling(table):
    assert len(table) == 855 == len(list(table))
    labellings = np.zeros(855, int)
    for code in all_codes():
        entry = table[genotype_of(code)]
        assert code_of(entry.genotype) == canonical(code)
        assert table[entry.index] is entry is table[genotype_of(code)["reduction"]]
        assert genotype_of(code) in table
        labellings[entry.index] += 1
    assert [entry.labellings for entry in table] == labellings.tolist()


def test_numbers_are_what_they_say(table):
    assert sorted(entry.rank for entry in table) == list(range(1, 856))
    best = table.best
    assert best.rank == 1 and table.regret(best.index) == 0
    assert best.test_accuracy == max(entry.test_accuracy for entry in table)
    for row in (0, 17, 854):
        entry = table[row]
        assert entry.train_loss.shape == entry.validation_accuracies.shape == (len(SEEDS), RECIPE.epochs)
        assert entry.test_accuracies.shape == entry.seconds.shape == (len(SEEDS),)
        assert entry.test_accuracy == pytest.approx(table.test_accuracies[row].mean())
        assert entry.spread == pytest.approx(table.test_accuracies[row].std(ddof=1))
        assert table.regret(row) == pytest.approx(best.test_accuracy - entry.test_accuracy)
        assert [table.validate(row, seed) for seed in SEEDS] == entry.validation_accuracies[:, -1].tolist()
        assert entry.validation_accuracy == pytest.approx(entry.validation_accuracies[:, -1].mean())
        for neighbour in table.neighbours(row):
            assert entry.index in [back.index for back in table.neighbours(neighbour.index)]
    assert all(np.isfinite(entry.train_loss).all() and np.isfinite(entry.test_loss).all() for entry in table)
    # 1,157 test images and 320 to choose by: accuracies are whole numbers of them.
    counts = table.test_accuracies * 1157
    assert np.allclose(counts, counts.round()) and np.allclose(table.validation_accuracies * 320 % 1, 0)


def test_sizes_are_those_of_the_networks(table):
    data = benchmark_images()
    for row in (0, 11, 400, 579):
        network = build_trainee(table[row].genotype, 0, data).network
        assert table[row].parameters == count_parameters(network) == table.parameters[row]
        assert table[row].macs == count_macs(network.eval(), (1, 1, 8, 8)) == table.macs[row]


def test_the_file_says_how_it_was_made(table):
    assert FILE.stat().st_size < 1_000_000
    said = table.provenance
    data = benchmark_images()
    assert said["data_checksum"] == data.checksum
    assert (said["test_images"], said["held_out_images"]) == (len(data.test_labels), len(data.train_labels) // 2)
    assert tuple(said["seeds"]) == SEEDS and (said["channels"], said["cells"]) == (CHANNELS, CELLS)
    assert said["recipe"] == {name: getattr(RECIPE, name) for name in RECIPE.__dataclass_fields__}
    assert said["script"] == "tools/tabular.py" and len(said["commit"]) == 40


def test_the_images(table):
    data = benchmark_images()
    assert len(data.train_labels) == 640 and len(data.test_labels) == 1157
    seen = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in seen for image in data.test_images)
    first, again = (build_trainee(table[0].genotype, 3, data) for _ in range(2))
    assert torch.equal(first.train_indices, again.train_indices)
    assert len(first.train_indices) == len(first.held_out) == 320
    assert not set(first.train_indices.tolist()) & set(first.held_out.tolist())
    weights = zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_an_entry_trained_again(table):
    entry = table[415]
    reports, accuracy = train_entry(entry.genotype, SEEDS[4])
    assert len(reports) == RECIPE.epochs
    assert abs(accuracy - entry.test_accuracies[4]) <= max(entry.spread, 0.005)
    assert reports[0].train_loss == pytest.approx(entry.train_loss[4, 0], abs=2e-3)  # half precision in the file


def test_twenty_entries_trained_again():
    said = retrained(find_record("truth-retraining", "quick"))
    assert said["within"] == 1
    assert said["expected"] >= 0.8


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (855, "rows 0 to 854, there is no row 855"),
        (-1, "there is no row -1"),
        (True, "a Genotype, a CellGenotype or a row, not a bool"),
    ],
)
def test_wrong_keys(table, key, message):
    with pytest.raises(InvalidInput, match=message):
        table[key]
    assert key not in table


def test_there_are_no_other_seeds(table):
    with pytest.raises(InvalidInput, match="seeds 0, 1, 2, 3, 4; got 5"):
        table.validate(0, 5)


def test_a_file_that_is_no_table(tmp_path):
    with pytest.raises(InvalidInput, match="There is no table at"):
        load_table(tmp_path / "none.npz")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(FILE.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="not a table of nasbook"):
        load_table(broken)
    with np.load(FILE) as file:
        arrays = dict(file)
    short = tmp_path / "short.npz"
    np.savez(short, **{**arrays, "macs": arrays["macs"][:-1]})
    with pytest.raises(InvalidInput, match="don't have one row a cell"):
        load_table(short)
    (tmp_path / "empty.npz").touch()
    with pytest.raises(InvalidInput, match="not a table of nasbook"):
        load_table(tmp_path / "empty.npz")
    twice = tmp_path / "twice.npz"
    np.savez(twice, **{**arrays, "codes": arrays["codes"][[0, *range(len(arrays["codes"]) - 1)]]})
    with pytest.raises(InvalidInput, match="codes are not those"):
        load_table(twice)
    lacking = tmp_path / "lacking.npz"
    np.savez(lacking, **{name: value for name, value in arrays.items() if name != "codes"}, other=json.dumps({}))
    with pytest.raises(InvalidInput, match="not a table of nasbook"):
        load_table(lacking)
