"""The segmentation experiment at a tiny size, and its judge on records of given numbers."""

import json
from dataclasses import replace

import pytest
import torch

from nasbook.data import SHAPE_CLASSES, load_shapes
from nasbook.errors import InvalidInput
from nasbook.experiments import Workplace, get_claim, get_experiment, get_scale
from nasbook.experiments import segmentation as experiment
from nasbook.experiments.scale import entrannas_scale
from nasbook.experiments.segmentation import (
    RESIDUAL,
    SEARCHED,
    SEGMENTATION_SETTINGS,
    found_cells,
    segmentation_settings,
)
from nasbook.genotypes import DARTS_V1, DARTS_V2, Genotype
from nasbook.networks import Backbone
from nasbook.training import SegmentationConfig

TINY = replace(
    SEGMENTATION_SETTINGS["quick"],
    train_images=8,
    test_images=4,
    image_size=16,
    channels=2,
    head_channels=4,
    config=SegmentationConfig(epochs=2, batch_size=4, crop=16, evaluate_every=2),
)


@pytest.fixture
def two_cells(monkeypatch):
    monkeypatch.setattr(experiment, "found_cells", lambda workplace: {"DARTS": DARTS_V2, "EnTranNAS-DST": DARTS_V1})


def workplace(scale, seed: int = 0, **options) -> Workplace:
    return Workplace(scale, seed, "digits", **options)


def without_seconds(values):
    for row in (*values["cells"].values(), values["residual"]):
        assert row.pop("seconds") >= 0
    return values


def test_a_measurement(scale, two_cells):
    values = without_seconds(experiment.run(workplace(scale), TINY))
    json.dumps(values["settings"])
    data = load_shapes(8, 4, 16)
    assert values["data"] == {"name": "shapes", "source": "embedded", "checksum": data.checksum}
    background = float((data.test.labels == 0).double().mean())
    present = len(data.test.labels.unique())
    assert values["constant"] == pytest.approx(background / present, abs=1e-6)  # others that occur count 0
    assert list(values["cells"]) == ["DARTS", "EnTranNAS-DST"]
    for name, genotype in (("DARTS", DARTS_V2), ("EnTranNAS-DST", DARTS_V1)):
        row = values["cells"][name]
        assert Genotype.from_json(row["genotype"]) == genotype
        assert 0 <= row["mean_iou"] <= 1 and len(row["class_iou"]) == len(SHAPE_CLASSES)
        expected = Backbone(genotype, 2, 3, stem="cifar", output_stride=4)
        assert row["parameters"] == sum(parameter.numel() for parameter in expected.parameters())
    sizes = [row["parameters"] for row in values["cells"].values()]
    assert abs(values["residual"]["parameters"] / (sum(sizes) / 2) - 1) < 0.6  # of so few channels, the nearest
    again = without_seconds(experiment.run(workplace(scale), TINY))
    assert repr(again) == repr(values)
    other = without_seconds(experiment.run(workplace(scale, seed=1), TINY))
    assert other["cells"]["DARTS"]["train_loss"] != values["cells"]["DARTS"]["train_loss"]
    assert other["data"] == values["data"]


def test_it_goes_on_from_its_checkpoints(scale, two_cells, tmp_path, monkeypatch):
    whole = without_seconds(experiment.run(workplace(scale), TINY))
    place = workplace(scale, folder=tmp_path)
    drive, driven = Workplace.drive, []

    def interrupted(self, run, name):
        driven.append(name)
        if len(driven) == 2:
            raise KeyboardInterrupt
        drive(self, run, name)

    monkeypatch.setattr(Workplace, "drive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(place, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["segment DARTS.pt"]
    monkeypatch.setattr(Workplace, "drive", drive)
    assert repr(without_seconds(experiment.run(place, TINY))) == repr(whole)


def test_networks_of_a_seed_are_equal_and_draw_nothing_global(scale):
    before = torch.get_rng_state()
    first, second = (TINY.build(DARTS_V2, 5, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.rates == (1, 2, 3) and first.backbone.output_stride == 4


def test_the_papers_settings():
    for name in ("gpu", "paper"):
        settings = SEGMENTATION_SETTINGS[name]
        assert (settings.data, settings.stem, settings.output_stride) == ("voc", "imagenet", 16)
        assert (settings.channels, settings.cells, settings.head_channels, settings.rates) == (48, 14, 256, None)
        assert settings.config.crop == 513
    assert SEGMENTATION_SETTINGS["paper"].train_list == "trainaug"
    assert segmentation_settings(get_scale("quick")) is SEGMENTATION_SETTINGS["quick"]
    with pytest.raises(InvalidInput, match="^Segmentation has settings for quick, laptop, gpu, paper, not for 'own'"):
        segmentation_settings(replace(get_scale("quick"), name="own"))


def test_cells_by_default():
    """Those of the papers, one at random, and those that a search finds for every weight of Table 5."""
    quick = entrannas_scale(get_scale("quick"))
    short = replace(quick, train_images=32, test_images=20, search_epochs=1, search_batch=16, search_channels=8,
                    bottleneck_channels=8, search_cells=3, penalty_weights=(0.05, 0.2), nodes=1)  # fmt: skip
    cells, other = (found_cells(workplace(short, seed)) for seed in (0, 1))
    published = ["DARTS, second order", "PC-DARTS"]
    assert list(cells) == [*published, "random", *(f"{SEARCHED}, λ = {weight}" for weight in (0.05, 0.2))]
    assert all(cells[name] == other[name] for name in published) and cells["random"] != other["random"]
    assert all(TINY.build(genotype, 5, seed=0).backbone.features > 0 for genotype in cells.values())


def test_the_residual_cell_is_a_residual_block():
    """In a network's cell: x + conv(conv(x)) of what its newer input is, and the older one is left alone."""
    torch.manual_seed(0)
    network = Backbone(RESIDUAL, 3, 3, stem="cifar", output_stride=4).double().eval()
    cell = network.cells[0]
    older, newer = torch.randn(2, 2, 9, 6, 6, dtype=torch.float64)
    x = cell.preprocessing[1](newer)
    by_edge = {(e.source, e.target): o for e, o in zip(cell.genotype.edges, cell.operations, strict=True)}
    torch.testing.assert_close(cell(older, newer), by_edge[2, 3](by_edge[1, 2](x)) + x)


# ---------------------------------------------------------------------------------------------- the judge


def seed_values(cells: dict[str, float], residual: float, constant: float = 0.15) -> dict:
    rows = {name: {"mean_iou": score} for name, score in cells.items()}
    return {"cells": rows, "residual": {"mean_iou": residual}, "constant": constant}


def verdict(record_of, *seeds):
    registered = get_experiment("entrannas-segmentation")
    ((claim, judge),) = registered.judges.items()
    assert get_claim(claim).id == "entrannas.segmentation"
    return judge(record_of(registered.name, *seeds))


def test_holds_when_searched_cells_beat_the_residual_one(record_of):
    answer = verdict(record_of, *(
        seed_values({"DARTS": 0.20, "EnTranNAS-DST 0.05": 0.40 + 0.01 * n, "EnTranNAS-DST 0.2": 0.36}, 0.30)
        for n in range(3)
    ))  # fmt: skip
    assert answer.status == "holds"
    assert answer.numbers.startswith("mean IoU: EnTranNAS-DST 0.05 41.00% ± 0.58%, EnTranNAS-DST 0.2 36.00% ± 0.00%, ")
    assert "residual cell 30.00% ± 0.00%, background everywhere 15.00%" in answer.numbers
    assert "searched against residual +8.50%" in answer.numbers and "3 seeds" in answer.numbers


def test_partly_when_they_work_but_do_no_better(record_of):
    worse = [seed_values({"EnTranNAS-DST": 0.28 + 0.01 * n}, 0.30 + 0.01 * n) for n in range(3)]
    assert verdict(record_of, *worse).status == "partly"
    uncertain = [seed_values({"EnTranNAS-DST": score}, 0.30) for score in (0.2, 0.5, 0.29)]
    assert verdict(record_of, *uncertain).status == "partly"


def test_does_not_hold_when_a_searched_cell_says_background_everywhere(record_of):
    seeds = [seed_values({"EnTranNAS-DST 0.05": 0.9, "EnTranNAS-DST 0.2": score}, 0.30) for score in (0.4, 0.15, 0.4)]
    assert verdict(record_of, *seeds).status == "does not hold at this scale"
    other = [seed_values({"EnTranNAS-DST": 0.9, "DARTS": 0.1}, 0.30)] * 3  # the claim is not about DARTS
    assert verdict(record_of, *other).status == "holds"


def test_without_searched_cells_it_is_about_all_of_them(record_of):
    seeds = [seed_values({"DARTS": 0.9, "random": 0.1}, 0.30)] * 3
    assert verdict(record_of, *seeds).status == "does not hold at this scale"
