"""MiLeNAS: DARTS, but for the objective."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.genotypes import Space
from nasbook.methods import darts, milenas
from nasbook.training import Objective

SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
SMALL = {"batch_size": 24, "channels": 2, "cells": 3, "epochs": 2, "architecture_learning_rate": 0.1}


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def finished(search):
    reports = [{**report.to_state(), "seconds": 0.0} for report in search.epochs()]
    return search, reports


def same_reports(one, other):
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            if name == "coefficients":
                assert all(torch.equal(value[kind], second[name][kind]) for kind in value)
            else:
                assert value == second[name], name


@pytest.mark.parametrize("order", darts.UPDATES)
def test_without_the_training_loss_it_is_darts(data, order):
    """Bit by bit: every report, every parameter, every buffer, both optimisers."""
    settings = {**SMALL, "order": order, **({} if order == "first-order" else {"epochs": 1, "cells": 1})}
    old, old_reports = finished(darts.Search(darts.Config(**settings), data, SPACE, 3))
    config = milenas.Config(**settings, train_weight=0.0)
    new, new_reports = finished(milenas.Search(config, data, SPACE, 3))
    same_reports(new_reports, old_reports)
    states = old.network.state_dict(), new.network.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for name in ("weight_optimizer", "architecture_optimizer"):
        parts = [getattr(search.update, name).state_dict()["state"] for search in (old, new)]
        assert all(torch.equal(v, parts[1][n][k]) for n, entry in parts[0].items() for k, v in entry.items())


def test_the_training_loss_makes_another_search(data):
    ends = []
    for weights in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.5)):
        config = milenas.Config(**SMALL, train_weight=weights[0], validation_weight=weights[1])
        search = milenas.Search(config, data, SPACE)
        search.run_step(0)
        search.run_step(1)
        ends.append(torch.cat([p.detach().flatten() for p in search.network.architecture()]))
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])


def test_its_first_gradient_is_that_of_both_losses(data):
    """At equal 1 and λ: the gradients of the training and of the validation loss, added, at the same w and α."""
    search = milenas.Search(milenas.Config(**SMALL, validation_weight=0.5), data, SPACE)
    train, validation = (loader.batch(0) for loader in search.loaders)
    result = search.update.architecture_gradient(train, validation)
    alphas = list(search.network.architecture())
    slopes = [
        torch.autograd.grad(F.cross_entropy(search.network(images), labels), alphas)
        for images, labels in (train, validation)
    ]
    for gradient, of_train, of_validation in zip(result.gradients, *slopes, strict=True):
        torch.testing.assert_close(gradient, of_train + 0.5 * of_validation, rtol=1e-4, atol=1e-7)


def test_its_settings_are_those_of_darts_but_for_the_order_and_the_weights():
    old = {field.name: getattr(darts.Config(), field.name) for field in fields(darts.Config)}
    new = {field.name: getattr(milenas.Config(), field.name) for field in fields(milenas.Config)}
    assert {name for name in old if old[name] != new[name]} == {"order"}
    assert new.keys() - old.keys() == {"train_weight", "validation_weight"}
    assert (new["order"], new["train_weight"], new["validation_weight"]) == ("first-order", 1.0, 1.0)
    assert milenas.Config(train_weight=0.3, validation_weight=2).objective() == Objective(0.3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_weight": -1.0}, r"^The weight of the train loss must be at least 0, got -1\.0\.$"),
        ({"validation_weight": -0.1}, r"^The weight of the validation loss must be at least 0, got -0\.1\.$"),
        ({"train_weight": float("nan")}, r"^The weight of the train loss must be at least 0, got nan\.$"),
        ({"train_weight": 0, "validation_weight": 0}, r"^the sum of both weights must be above 0, got 0\.$"),
        ({"epochs": 0}, r"^epochs must be above 0, got 0\.$"),  # DARTS' own checks
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(InvalidInput, match=message):
        milenas.Config(**changes)


def test_a_checkpoint_of_other_weights_is_of_another_search(data):
    config = milenas.Config(**SMALL)
    headers = [
        milenas.Search(changed, data, SPACE).header()
        for changed in (config, replace(config, validation_weight=2.0), config)
    ]
    assert headers[0] == headers[2] != headers[1]
    assert headers[0]["method"] == "milenas"
