"""The registry of methods, their configurations, and what every search does alike."""

from __future__ import annotations

import copy
import math
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import pytest
import torch

from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import CELL_SECTIONS, Space
from nasbook.methods import METHODS, SearchReport, darts, get_method
from nasbook.training import Run, evaluate

SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
SMALL = {"batch_size": 16, "channels": 2, "cells": 3, "epochs": 2}


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def config_of(name, **changes):
    # Two channels can neither be parted in four nor pass a bottleneck of four.
    none = {"bottleneck": 1}
    # PR-DARTS has as many epochs as its cycles; these prune and have no children, which the space could not give.
    cycles = {"cycle_epochs": (1, 1), "grace_epochs": (0, 0), "morphisms": (0, 0), "candidates": (2, 1)}
    more = {
        "random-search": {"samples": 2},
        "regularized-evolution": {"samples": 2, "population": 1, "tournament": 1},
        "local-search": {"samples": 2},
        "pc-darts": {"partition": 2},
        "entrannas": none,
        "entrannas-dst": none,
        "pr-darts": {**cycles, "memory_budget": None},
        # Four epochs in any case: two stages, in each one before pruning and one after.
        "growing": {"stages": 2, "stage_epochs": 1, "tune_epochs": 1},
        # Ten epochs: one before each growth of five cells, and one in it.
        "firefly-cells": {"rounds": 1, "epochs": 1, "direction_epochs": 1, "width": 1, "new_neurons": 1},
    }
    settings = {**SMALL, **more.get(name, {}), **changes}
    if name in ("pr-darts", "growing"):
        del settings["epochs"]
    if name == "firefly-cells":
        del settings["cells"]  # always five
    return METHODS[name].Config(**settings)


def search_of(name, data, seed=0, **changes):
    # PR-DARTS knows no zero operation; in Firefly's cells stands what can grow, and the identity anyway.
    operations = {"pr-darts": SPACE.choices, "firefly-cells": ("sep_conv_3x3",)}.get(name, SPACE.operations)
    return METHODS[name].Search(config_of(name, **changes), data, replace(SPACE, operations=operations), seed)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_every_method_has_a_config_and_a_search():
    assert {name: get_method(name) for name in METHODS} == METHODS
    for name, method in METHODS.items():
        assert method.Search.method == name
        assert method.__doc__.splitlines()[0].endswith(".")
        assert hash(method.Config()) == hash(method.Config())
        with pytest.raises(FrozenInstanceError):
            method.Config().epochs = 1


@pytest.mark.parametrize(("name", "nearest"), [("dart", "'darts'"), ("random_search", "'random-search'")])
def test_an_unknown_method(name, nearest):
    with pytest.raises(InvalidInput) as caught:
        get_method(name)
    assert f"Unknown method '{name}'. Did you mean {nearest}" in str(caught.value)
    assert str(caught.value).endswith(f"Valid: {', '.join(METHODS)}.")


@pytest.mark.parametrize("config", [method.Config for method in METHODS.values()])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_have_to_be_positive(config, value):
    names = {"epochs", "batch_size", "channels", "cells", "learning_rate", "samples", "architecture_learning_rate"}
    for name in names & {f.name for f in fields(config)}:
        with pytest.raises(InvalidInput, match=f"^{name} must be above 0, got {value}"):
            config(**{name: value})
    with pytest.raises(InvalidInput, match="^learning_rate must be above 0, got nan"):
        config(learning_rate=math.nan)


@pytest.mark.parametrize("config", [method.Config for method in METHODS.values()])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5])
def test_shares_lie_between_0_and_1(config, share):
    with pytest.raises(InvalidInput, match=f"train_share must be between 0 and 1, got {share}"):
        config(train_share=share)


def test_decays_are_not_negative():
    for name in ("final_learning_rate", "momentum", "weight_decay", "architecture_weight_decay"):
        with pytest.raises(InvalidInput, match=f"{name} must be at least 0, got -0.1"):
            darts.Config(**{name: -0.1})
        darts.Config(**{name: 0.0})


# --- every search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_search_from_begin_to_end(name, data):
    search = search_of(name, data)
    total = search.total_epochs
    assert search.steps_per_epoch == 3
    reports = list(search.epochs())
    assert search.finished
    assert search.history == reports
    assert [report.epoch for report in reports] == list(range(1, total + 1))
    result = search.result()
    assert result.history == tuple(reports)
    assert result.seconds == sum(report.seconds for report in reports) > 0
    kinds = CELL_SECTIONS if name == "firefly-cells" else ("normal", "reduction")
    assert result.genotype.kinds == kinds
    if name == "growing":
        assert all(len(cell.edges) == 2 * cell.nodes in (4, 6) for _, cell in result.genotype.cells)
    elif name == "firefly-cells":  # which keeps all edges
        assert all(len(cell.edges) == 5 for _, cell in result.genotype.cells)
    elif name not in ("stretchable", "entrannas-dst"):  # whose nodes choose any number of edges
        assert all(len(cell.edges) == 4 for _, cell in result.genotype.cells)
    assert set(result.genotype.operations()) <= set(SPACE.choices)
    for report in reports:
        assert report.genotype.kinds == kinds
        assert 0 <= report.train_accuracy <= 1
        assert type(report).from_state(report.to_state()).genotype == report.genotype


@pytest.mark.parametrize("name", METHODS)
def test_test_images_are_not_touched(name, data):
    other = replace(data, test_images=255 - data.test_images, test_labels=data.test_labels.flip(0))
    histories = []
    for images in (data, other):
        search = search_of(name, images)
        histories.append([(r.train_loss, r.validation_loss, r.validation_accuracy) for r in search.epochs()])
    assert histories[0][-1] == histories[1][-1]


@pytest.mark.parametrize("name", METHODS)
def test_a_search_is_a_function_of_its_seed(name, data):
    first, again, other = (search_of(name, data, seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    losses = [[r.train_loss for r in search.epochs()] for search in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", METHODS)
def test_too_few_images_for_a_batch(name, data):
    with pytest.raises(InvalidInput, match=r"A batch of 49 needs at least as many images, got 48. Lower batch_size."):
        search_of(name, data, batch_size=49)


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_operation(name, data):
    method = METHODS[name]
    config = config_of(name, channels=8)
    with pytest.raises(InvalidInput, match=r"Unknown operation 'sep_conv_3x4'. Did you mean 'sep_conv_3x3'"):
        method.Search(config, data, Space(("sep_conv_3x4",), nodes=2))


# --- DARTS ------------------------------------------------------------------------------------------------------------


def test_darts_divides_the_training_images(data):
    search = search_of("darts", data, train_share=0.25)
    train, validation = search.loaders
    assert (len(train.images), len(validation.images)) == (24, 72)
    rows = {bytes(image.numpy().tobytes()) for image in data.train_images}
    parts = [{bytes(image.numpy().tobytes()) for image in loader.images} for loader in search.loaders]
    assert parts[0] | parts[1] == rows
    assert not parts[0] & parts[1]


def test_darts_optimizers_are_the_papers(data):
    search = darts.Search(darts.Config(channels=2, cells=3, batch_size=16), data, SPACE)
    weight, architecture = search.update.weight_optimizer, search.update.architecture_optimizer
    assert isinstance(weight, torch.optim.SGD)
    group = weight.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.025, 0.9, 3e-4)
    assert isinstance(architecture, torch.optim.Adam)
    group = architecture.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.5, 0.999), 1e-3)
    assert {id(p) for g in architecture.param_groups for p in g["params"]} == {
        id(p) for p in search.network.architecture()
    }


def test_a_checkpoint_moves_between_engines(data):
    """Engine and recomputed cells say how a search is computed, not what: a search may go on with others."""
    first = search_of("darts", data)
    next(first.epochs())
    others = {"engine": "readable", "recompute_cells": 3}
    assert search_of("darts", data, **others).header() == first.header()
    second = search_of("darts", data, **others)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert (second.network.engine, second.network.recompute_cells) == ("readable", 3)
    ends = []
    for search in (first, second):
        list(search.epochs())
        assert len(search.history) == 2
        ends.append(torch.cat([p.detach().flatten() for p in search.network.parameters()]))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-6)  # three steps in float32
    assert search_of("darts", data, momentum=0.5).header() != first.header()


def test_darts_anneals_the_weights_rate_and_not_the_architectures(data):
    search = search_of("darts", data, epochs=4, learning_rate=0.1, final_learning_rate=0.02)
    rates = [report.learning_rate for report in search.epochs()]
    assert rates == pytest.approx([0.1, 0.06 + 0.04 * 2**-0.5, 0.06, 0.06 - 0.04 * 2**-0.5])
    assert search.update.architecture_optimizer.param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize("order", darts.UPDATES)
def test_darts_reports_what_it_has(order, data):
    search = search_of("darts", data, order=order)
    assert type(search.update) is darts.UPDATES[order]
    before = [parameter.clone() for parameter in search.network.architecture()]
    for report in search.epochs():
        assert report.genotype == search.network.genotype()
        for kind, coefficients in report.coefficients.items():
            assert coefficients.shape == (5, 3)
            assert torch.allclose(coefficients.sum(1), torch.ones(5))
            assert torch.equal(coefficients, search.network.coefficients()[kind])
            assert not coefficients.requires_grad
    for old, new in zip(before, search.network.architecture(), strict=True):
        assert not torch.equal(old, new)
    kept = search.history[0].coefficients["normal"]
    assert not torch.equal(kept, search.history[1].coefficients["normal"])  # a report is not overwritten


def test_the_orders_give_different_searches(data):
    alphas = []
    for order in darts.UPDATES:
        search = search_of("darts", data, order=order)
        list(search.epochs())
        alphas.append(torch.cat([p.detach().flatten() for p in search.network.architecture()]))
    assert not torch.equal(alphas[0], alphas[1])
    assert not torch.equal(alphas[1], alphas[2])
    assert issubclass(darts.Search, Run)


# --- random search ----------------------------------------------------------------------------------------------------


def test_random_search_keeps_the_best_sample(data):
    search = search_of("random-search", data, samples=4)
    with pytest.raises(InvalidInput, match="No sample has been trained to its end yet"):
        search.result()
    list(search.epochs())
    finals = search.history[1::2]  # two epochs a sample
    scores = [report.validation_accuracy for report in finals]
    best = scores.index(max(scores))  # the first of equals
    assert search.result().genotype == search.genotype(best)
    for number, report in enumerate(finals):
        assert report.genotype == search.genotype(scores.index(max(scores[: number + 1])))
    assert search.sample == 4


def test_samples_are_fresh_and_reproducible(data):
    search = search_of("random-search", data, samples=3)
    assert len({search.genotype(n) for n in range(3)}) == 3
    assert search_of("random-search", data).genotype(2) == search.genotype(2)
    assert search_of("random-search", data, seed=1).genotype(0) != search.genotype(0)
    fits = [search._start(0), search._start(0), search._start(1)]
    first = [next(iter(fit.network.parameters())) for fit in fits]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_sample_is_evaluated_once_on_the_validation_share(data):
    search = search_of("random-search", data)
    accuracies = [report.validation_accuracy for report in search.epochs()]
    assert [accuracy != accuracy for accuracy in accuracies] == [True, False, True, False]  # NaN before the last


def test_an_interrupt_inside_a_step_leaves_nothing_to_go_on_from(data, monkeypatch):
    """After Ctrl-C in a notebook α may have moved and w not: going on would give other numbers without a word."""
    search = search_of("darts", data)
    monkeypatch.setattr(search.update.weight_optimizer, "step", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        next(search.epochs())
    for go_on in (lambda: next(search.epochs()), search.state_dict):
        with pytest.raises(CheckpointError, match="interrupted inside a step"):
            go_on()


def test_the_validation_accuracy_is_that_of_the_network_in_evaluation_mode(data):
    search = search_of("darts", data, order="second-order")
    report = next(search.epochs())
    loader = search.loaders[1]
    assert (report.validation_loss, report.validation_accuracy) == evaluate(
        search.network, loader.images, loader.labels, data
    )


@dataclass(frozen=True)
class _LongerReport(SearchReport):
    threshold: float = 0.0


def test_a_report_with_more_fields_survives_a_checkpoint(data):
    first = next(search_of("darts", data).epochs())
    longer = _LongerReport(**{f.name: getattr(first, f.name) for f in fields(first)}, threshold=3.0)
    assert _LongerReport.from_state(longer.to_state()).threshold == 3.0
