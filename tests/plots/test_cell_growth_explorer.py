"""The live control of growing cells redraws what it is asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from nasbook.errors import InvalidInput
from nasbook.plots import explore_cell_growth

WEIGHTS = {"sigmoid": 0.5, "tanh": 0.3, "sum": 0.2}


def history(kind, epochs):
    """Reports with what the control reads."""
    return [
        SimpleNamespace(
            epoch=epoch,
            stage=1,
            tuning=False,
            nodes=1,
            parameters=10,
            train_loss=1.0,
            validation_loss=1 / epoch,
            weights={kind: [(0, 1, WEIGHTS)]},
        )
        for epoch in range(1, epochs + 1)
    ]


def test_it_draws_the_search_and_the_epoch_that_are_chosen():
    pytest.importorskip("ipywidgets")
    box = explore_cell_growth({"DARTS": history("darts", 2), "new": history("two-to-one", 4)})
    controls, picture = box.children
    search, epoch = controls.children
    assert (epoch.min, epoch.max, epoch.value) == (1, 4, 4)
    assert "after epoch 2," in picture.value  # the last one of the shorter search
    search.value = "new"
    assert "after epoch 4," in picture.value and "sigmoid" in picture.value
    epoch.value = 3
    assert "after epoch 3," in picture.value


def test_wrong_input():
    pytest.importorskip("ipywidgets")
    with pytest.raises(InvalidInput, match="at least one search"):
        explore_cell_growth({})
    with pytest.raises(InvalidInput, match="history is empty"):
        explore_cell_growth({"DARTS": []})


def test_without_ipywidgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InvalidInput, match="needs ipywidgets"):
        explore_cell_growth({"DARTS": history("darts", 1)})
