"""PC-DARTS: DARTS, but for partial channels, edge normalisation and an architecture that waits."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.experiments import SCALES, SEARCH_CONFIGS
from nasbook.genotypes import Space
from nasbook.methods import darts, pc_darts
from nasbook.seeding import seed_everything
from nasbook.supernets import EdgeNormalizedRelaxation, FusedPartialCell, PartialCell, SoftmaxRelaxation
from nasbook.training import drive

SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
SMALL = {"batch_size": 16, "channels": 4, "cells": 3, "epochs": 4, "architecture_learning_rate": 0.1}


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def search_of(data, seed=0, **changes):
    return pc_darts.Search(pc_darts.Config(**{**SMALL, **changes}), data, SPACE, seed)


def architecture_of(search):
    return {name: p.detach().clone() for name, p in search.network.relaxations.named_parameters()}


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_papers_settings():
    config = pc_darts.Config()
    assert (config.partition, config.batch_size, config.channels, config.cells, config.epochs) == (4, 256, 16, 8, 50)
    assert (config.learning_rate, config.final_learning_rate, config.clip) == (0.1, 0.0, 5.0)
    assert (config.momentum, config.weight_decay) == (0.9, 3e-4)
    assert (config.architecture_learning_rate, config.architecture_weight_decay) == (6e-4, 1e-3)
    assert (config.order, config.train_share, config.frozen_epochs) == ("first-order", 0.5, 15)


def test_the_papers_settings_on_imagenet():
    config = pc_darts.IMAGENET
    assert (config.partition, config.batch_size, config.learning_rate) == (2, 1024, 0.5)
    assert (config.architecture_learning_rate, config.epochs, config.frozen_epochs) == (6e-3, 50, 35)
    assert 0.125 * config.train_share == pytest.approx(0.1)  # 10 % of the images, and 2.5 % of 12.5 % in all
    assert config.stem == "imagenet"


def test_what_it_changes_in_darts_configuration():
    old = {field.name: getattr(darts.Config(), field.name) for field in fields(darts.Config)}
    new = {field.name: getattr(pc_darts.Config(), field.name) for field in fields(pc_darts.Config)}
    assert new.keys() - old.keys() == {"partition", "frozen_share"}
    changed = {"batch_size", "order", "learning_rate", "final_learning_rate", "architecture_learning_rate"}
    assert {name for name in old if old[name] != new[name]} == changed


@pytest.mark.parametrize(
    ("epochs", "share", "frozen"), [(50, 0.3, 15), (50, 0.7, 35), (15, 0.3, 4), (1, 0.99, 0), (2, 0.5, 1), (9, 0.0, 0)]
)
def test_frozen_epochs_are_rounded_down(epochs, share, frozen):
    assert pc_darts.Config(epochs=epochs, frozen_share=share).frozen_epochs == frozen


@pytest.mark.parametrize("name", SCALES)
def test_at_every_scale_the_architecture_can_move_as_far_as_in_the_paper(name):
    """Rate × steps: 6e-4 × 35 epochs × 97 steps is 2.04; and the candidates have at least four channels."""
    scale = SCALES[name]
    config = SEARCH_CONFIGS["pc-darts"](scale)
    images = {"quick": 1437, "laptop": 2000, "gpu": 50_000, "paper": 50_000}[name]
    steps = int(images * config.train_share) // config.batch_size
    moving = config.epochs - config.frozen_epochs
    assert 0.8 < config.architecture_learning_rate * moving * steps / (6e-4 * 35 * 97) < 1.25
    assert config.channels / config.partition >= 4
    assert config.learning_rate / config.batch_size == pytest.approx(0.1 / 256)
    assert (config.epochs, config.cells) == (scale.search_epochs, scale.search_cells)
    if name == "paper":
        assert config == pc_darts.Config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": 3}, r"^partition must divide the channels, got partition=3 and channels=16\.$"),
        ({"partition": 0}, r"^partition must be above 0, got 0\.$"),
        ({"frozen_share": 1.0}, r"^frozen_share must be at least 0 and below 1, got 1\.0\.$"),
        ({"frozen_share": -0.1}, r"^frozen_share must be at least 0 and below 1, got -0\.1\.$"),
        ({"frozen_share": math.nan}, r"^frozen_share must be at least 0 and below 1, got nan\.$"),
        ({"channels": 0}, r"^channels must be above 0, got 0\.$"),  # DARTS' own checks come first
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(InvalidInput, match=message):
        pc_darts.Config(**changes)


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "cell"), [("fused", FusedPartialCell), ("readable", PartialCell)])
def test_the_configuration_reaches_the_network(data, engine, cell):
    search = search_of(data, partition=2, engine=engine, recompute_cells=1)
    assert [type(one) for one in search.network.cells] == [cell] * 3
    assert {one.partition for one in search.network.cells} == {2}
    assert search.network.recompute_cells == 1
    assert {type(relaxation) for relaxation in search.network.relaxations.values()} == {EdgeNormalizedRelaxation}
    (group,) = search.update.architecture_optimizer.param_groups
    assert len(group["params"]) == 4  # α and β of both kinds of cell, with one rate and one decay
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.5, 0.999), 1e-3)


class Plain(pc_darts.Search):
    """PC-DARTS with DARTS' softmax."""

    def build_relaxation(self, space):
        return SoftmaxRelaxation(space)


def test_with_all_channels_no_edge_weights_and_nothing_frozen_it_is_darts(data):
    """Bit by bit: every report, every parameter, every buffer, both optimisers."""
    settings = {field.name: getattr(darts.Config(**SMALL), field.name) for field in fields(darts.Config)}
    settings["order"] = "first-order"
    old = darts.Search(darts.Config(**settings), data, SPACE, 3)
    new = Plain(pc_darts.Config(**settings, partition=1, frozen_share=0.0), data, SPACE, 3)
    assert_same(state_of(new), state_of(old), "before")
    list(old.epochs())
    list(new.epochs())
    assert_same(state_of(new), state_of(old))


def test_the_architecture_waits(data):
    """Until its first epoch neither α nor β moves and Adam has not begun; then both move, in every step."""
    search = search_of(data, frozen_share=0.5)
    start, losses = architecture_of(search), []
    search.on_step = lambda run: losses.append(run.means()["architecture_loss"])
    for report in search.epochs():
        moved = {name for name, value in architecture_of(search).items() if not torch.equal(value, start[name])}
        if report.epoch <= 2:
            assert moved == set() and not search.update.architecture_optimizer.state
        else:
            assert moved == set(start) == {f"{k}.{p}" for k in ("normal", "reduction") for p in ("alpha", "beta")}
            states = search.update.architecture_optimizer.state.values()
            assert {int(state["step"]) for state in states} == {3 * (report.epoch - 2)}
    assert [math.isnan(loss) for loss in losses] == 6 * [True] + 6 * [False]
    assert [not math.isnan(report.validation_loss) for report in search.history] == 4 * [True]


def test_the_weights_learn_while_the_architecture_waits(data):
    """As DARTS' weights do at an architecture with the rate zero, bit by bit."""
    search = search_of(data, frozen_share=0.99, epochs=2)  # one epoch
    still = search_of(data, frozen_share=0.0, epochs=2)
    optimizer = still.update.architecture_optimizer
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    next(search.epochs())
    next(still.epochs())
    state, other = search.network.state_dict(), still.network.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    fresh = search_of(data).network.state_dict()
    assert not torch.equal(state["classifier.weight"], fresh["classifier.weight"])


def test_reports_hold_the_products_of_both_softmaxes(data):
    for report in search_of(data, epochs=2, frozen_share=0.0).epochs():
        for coefficients in report.coefficients.values():
            assert coefficients.shape == (5, 3)
            torch.testing.assert_close(coefficients[:2].sum(), torch.tensor(1.0))
            torch.testing.assert_close(coefficients[2:].sum(), torch.tensor(1.0))
            assert not torch.allclose(coefficients.sum(1), torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]), atol=1e-3)


def test_the_weights_rate_falls_to_zero(data):
    search = search_of(data, learning_rate=0.1)
    rates = [report.learning_rate for report in search.epochs()]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_it_learns_the_digits():
    """Of ten digits more than every second, after two epochs that move the architecture and two that do not."""
    search = pc_darts.Search(
        pc_darts.Config(batch_size=32, channels=8, cells=3, epochs=4, frozen_share=0.5, learning_rate=0.05),
        load_images("digits").take(640, 40),
        SPACE,
    )
    assert list(search.epochs())[-1].validation_accuracy > 0.5


# --- checkpoints ------------------------------------------------------------------------------------------------------


def state_of(search):
    """All that counts of a search; without wall times, and without the generators that epochs begin anew."""
    state = copy.deepcopy(search.state_dict())
    for part in (state, *state["history"]):
        part.pop("seconds")
    state.pop("random")
    return state


def assert_same(one, other, where="state"):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("engine", ["fused", "readable"])
def test_stopped_after_any_step_it_resumes_to_the_same_bits(data, tmp_path, engine):
    """In a frozen epoch, at the end of the last one, and after it."""
    changes = {"batch_size": 24, "epochs": 3, "cells": 1, "frozen_share": 0.4, "engine": engine}  # two steps an epoch
    whole = search_of(data, **changes)
    assert (whole.config.frozen_epochs, whole.steps_per_epoch) == (1, 2)
    list(whole.epochs())
    for count in range(1, 6):
        first, path = search_of(data, **changes), tmp_path / f"{count}.pt"
        steps = []

        def stop(run, steps=steps, count=count):
            steps.append(run)
            if len(steps) == count:
                run.stop()

        first.on_step = stop
        list(first.epochs())
        assert first.epoch * 2 + first.step == count
        first.save(path)
        seed_everything(count)
        second = search_of(data, seed=0, **changes)
        drive(second, checkpoint=path, checkpoint_steps=0, resume=True, progress=False)
        assert_same(state_of(second), state_of(whole), f"after {count} steps")


def test_a_checkpoint_of_other_settings_is_of_another_search(data):
    config = pc_darts.Config(**SMALL)
    header = pc_darts.Search(config, data, SPACE).header()
    assert header["method"] == "pc-darts"
    assert (header["config"]["partition"], header["config"]["frozen_share"]) == (4, 0.3)
    for changes in ({"partition": 2}, {"frozen_share": 0.0}):
        assert pc_darts.Search(replace(config, **changes), data, SPACE).header() != header
    assert pc_darts.Search(replace(config, engine="readable"), data, SPACE).header() == header


def test_a_search_goes_on_with_the_other_engine(data):
    first = search_of(data, epochs=2, frozen_share=0.5)
    next(first.epochs())
    second = search_of(data, epochs=2, frozen_share=0.5, engine="readable")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    ends = []
    for search in (first, second):
        list(search.epochs())
        ends.append(torch.cat([p.detach().flatten() for p in search.network.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)  # three steps in float32


def test_norms_in_cells_see_a_part_of_the_channels(data):
    search = search_of(data, channels=8)
    widths = {
        module.num_features
        for cell in search.network.cells
        for module in cell.edges.modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert widths == {2, 4, 8}  # cells of 8, 16 and 32 channels
