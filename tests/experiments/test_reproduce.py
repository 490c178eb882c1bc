"""Experiments at a scale of a second: what they measure, where they write, how they go on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from nasbook.analysis import skip_count
from nasbook.data import load_images
from nasbook.errors import DataError, InvalidInput
from nasbook.experiments import (
    SCALES,
    Workplace,
    fit_config,
    get_experiment,
    get_scale,
    judge,
    list_experiments,
    load_records,
    read_record,
    reproduce,
    save_measurement,
    search_config,
    toy_trajectory,
)
from nasbook.genotypes import Genotype
from nasbook.methods import darts
from nasbook.training import Fit, Run


class PowerCut(BaseException):
    """Ends a measurement in the middle, as nothing in the package expects."""


def cut_after(monkeypatch, steps: int) -> None:
    """The power fails when that many steps of any run have been made."""
    made = []
    for kind in (Fit, darts.Search):

        def run_step(self, index, original=kind.run_step):
            made.append(index)
            if len(made) > steps:
                raise PowerCut
            return original(self, index)

        monkeypatch.setattr(kind, "run_step", run_step)


# --- scales -----------------------------------------------------------------------------------------------------------


def test_scales(monkeypatch):
    assert list(SCALES) == ["quick", "laptop", "gpu", "paper"]
    for name, scale in SCALES.items():
        assert get_scale(name) is scale
        assert scale.name == name
        assert scale.seeds >= 3
        assert scale.long_search_epochs >= 2 * scale.search_epochs
        assert scale.space.nodes == scale.nodes
    monkeypatch.setenv("NASBOOK_SCALE", "gpu")
    assert get_scale() is SCALES["gpu"]
    monkeypatch.setenv("NASBOOK_SCALE", "")
    assert get_scale() is SCALES["quick"]
    monkeypatch.setenv("NASBOOK_SCALE", "papr")
    with pytest.raises(InvalidInput, match=r"Unknown scale 'papr'. Did you mean 'paper'"):
        get_scale()
    with pytest.raises(InvalidInput, match="at least 3 seeds, got 2"):
        replace(SCALES["quick"], seeds=2)


def test_the_paper_scale_is_the_papers():
    search = search_config(SCALES["paper"])
    assert search == darts.Config()
    assert SCALES["paper"].space.operations == darts.DARTS_SPACE.operations
    fit = fit_config(SCALES["paper"])
    assert (fit.epochs, fit.batch_size, fit.drop_path, fit.cutout) == (600, 96, 0.2, 16)


def test_the_architectures_rate_times_its_steps_is_the_papers():
    steps = {"quick": 640 // 64, "laptop": 1000 // 64, "gpu": 25_000 // 256, "paper": 25_000 // 64}
    for name, scale in SCALES.items():
        product = scale.architecture_learning_rate * scale.search_epochs * steps[name]
        assert product == pytest.approx(5.85, rel=0.03)


# --- measurements -----------------------------------------------------------------------------------------------------


def test_counts_are_exact(tmp_path):
    made = reproduce("darts-counts", "quick", folder=tmp_path)
    assert made.values["cells"] == 1_037_664_180
    assert made.values["supernet_weights"] == 1_930_618
    assert made.values["derived"]["DARTS_V2"] == [3_349_342, 3_825_768, 528_359_040]
    assert made.provenance.data == ""
    records = load_records(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["darts-counts.quick.json"]
    for claim in ("darts.space", "darts.supernet", "darts.derived"):
        assert judge(claim, "paper", records).status == "holds"


@pytest.mark.parametrize("xi", [0.0, 0.5])
def test_the_toy_goes_where_it_should(xi):
    path = toy_trajectory(xi, steps=1500)
    assert path.shape == (1501, 2)
    assert path[0].tolist() == [2.0, -2.0]
    assert np.abs(path[-1] - 2 / (1 + 2 * xi)).max() < 1e-6


def test_searched_against_random(scale, tmp_path):
    made = reproduce("darts-random", scale, seed=5, folder=tmp_path)
    for name in ("searched", "random"):
        assert 0 <= made.values[name]["test_accuracy"] <= 1
        assert made.values[name]["parameters"] > 0
        assert Genotype.from_json(made.values[name]["genotype"]).kinds == ("normal", "reduction")
    assert len(made.values["supernet_accuracy"]) == len(made.values["skips"]) == scale.search_epochs
    assert made.seed == 5
    assert (made.provenance.data, made.provenance.data_source) == ("digits", "scikit-learn")
    record = read_record(tmp_path / "darts-random.tiny.json")
    assert record.measurements == (made,)
    assert record.scale == json.loads(json.dumps(asdict(scale)))
    assert reproduce("darts-random", scale, seed=5).values["searched"] == made.values["searched"]
    assert reproduce("darts-random", scale, seed=6).values["searched"] != made.values["searched"]


def test_the_collapse(scale):
    values = reproduce("darts-collapse", scale).values
    assert values["epochs"] == [1, 2]
    assert len(values["skips"]) == len(values["skip_coefficient"]) == len(values["supernet_accuracy"]) == 2
    for n, derived in enumerate(values["derived"]):
        assert skip_count(Genotype.from_json(derived["genotype"]).normal) == values["skips"][n]
        assert values["gap"][n] == values["supernet_accuracy"][n] - derived["test_accuracy"]
    assert all(0 < c < 1 for c in values["skip_coefficient"])


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_measurement_goes_on_after_a_power_cut(scale, tmp_path, monkeypatch, steps):
    """A search of 3 steps, then two trainings of 6."""
    with monkeypatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCut):
            reproduce("darts-random", scale, folder=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    if steps >= 3:
        with pytest.raises(InvalidInput, match="holds an interrupted measurement"):
            reproduce("darts-random", scale, folder=tmp_path)
    with monkeypatch.context() as patch:
        made_again = []
        original = darts.Search.run_step
        patch.setattr(darts.Search, "run_step", lambda s, i: (made_again.append(i), original(s, i))[1])
        made = reproduce("darts-random", scale, folder=tmp_path, resume=True)
    assert made_again == ([] if steps >= 3 else [0, 1, 2])  # a finished search is not done again
    undisturbed = reproduce("darts-random", scale)
    assert without_times(made.values) == without_times(undisturbed.values)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["darts-random.tiny.json"]
    assert not list(tmp_path.rglob("*.pt"))


def without_times(values):
    return {name: value for name, value in values.items() if name != "search_seconds"}


def test_a_record_that_does_not_fit_is_refused_before_the_run(scale, tmp_path, monkeypatch):
    made = reproduce("darts-random", scale)
    path = save_measurement("darts-random", scale, made, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(Run, "epochs", lambda self: pytest.fail("it was run"))
    with pytest.raises(InvalidInput, match=r"other numbers of the scale \(epochs\)"):
        reproduce("darts-random", replace(scale, epochs=3), folder=tmp_path)
    assert path.read_bytes() == before
    path.write_text("damaged")
    with pytest.raises(InvalidInput, match="is not a record of nasbook"):
        reproduce("darts-random", scale, folder=tmp_path)
    assert path.read_text() == "damaged"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bad_names_and_data(scale, tmp_path):
    with pytest.raises(InvalidInput, match=r"Unknown experiment 'darts-randm'. Did you mean 'darts-random'"):
        reproduce("darts-randm")
    with pytest.raises(InvalidInput, match=r"Unknown scale 'quik'. Did you mean 'quick'"):
        reproduce("darts-random", "quik")
    with pytest.raises(InvalidInput, match=r"Unknown data set 'digit'. Did you mean 'digits'"):
        reproduce("darts-random", scale, data="digit", folder=tmp_path)
    with pytest.raises(DataError, match=r"none\.npz"):
        reproduce("darts-random", scale, data=str(tmp_path / "none.npz"), folder=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_the_workplace_cuts_the_data_to_the_scale(scale):
    workplace = Workplace(scale, 0, "digits")
    assert workplace.loaded is None
    assert (len(workplace.data.train_labels), len(workplace.data.test_labels)) == (96, 40)
    assert workplace.data is workplace.data


def test_the_registry():
    names = [experiment.name for experiment in list_experiments()]
    assert len(names) == len(set(names))
    for experiment in list_experiments():
        assert get_experiment(experiment.name) is experiment
        assert experiment.title and not experiment.title.endswith(".")
        assert experiment.run.__doc__
        assert experiment.seeds(SCALES["quick"]) == (max(3, experiment.least) if experiment.seeded else 1)


def test_other_data_than_the_scale_names_are_refused(tmp_path):
    data = load_images("digits")
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {name: getattr(data, name).numpy() for name in names}
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InvalidInput, match="measured on digits, and .*mine.npz holds mine"):
        reproduce("darts-random", "quick", data=str(tmp_path / "mine.npz"))
