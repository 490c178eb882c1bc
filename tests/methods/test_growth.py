"""Growth runs: they stop and go on to the same bits, grow by what was asked for, and leave everything else as it is."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from running import differences, draw, run_to_end, stop_after

from nasbook import processes
from nasbook.analysis import count_parameters
from nasbook.data import evaluation_batches
from nasbook.errors import CheckpointError, InvalidInput, TrainingDiverged
from nasbook.growth import (
    GrowthEvent,
    OvergrownNetwork,
    integrated_gradients,
    least_eigenpairs,
    load_history,
    replay_history,
    save_history,
    splitting_matrices,
)
from nasbook.methods import GROWTH_METHODS, GrowthConfig, GrowthReport, GrowthRun, splitting_descent
from nasbook.methods.growth import Growth, Result, Situation, mean_loss
from nasbook.networks import BlockStack, Perceptron
from nasbook.seeding import generator
from nasbook.training import drive, evaluate


def _load(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


tiny = _load("growing_runs")
KINDS = tuple(tiny.KINDS)


@pytest.fixture(scope="module")
def data():
    return tiny.tiny_data()


@pytest.fixture(scope="module")
def finished(data):
    """A run of each kind that nobody disturbed; made once."""
    runs = {}

    def of(kind):
        if kind not in runs:
            runs[kind] = run_to_end(tiny.make_run(kind, data))
        return runs[kind]

    return of


def same(got, expected):
    assert not differences(got, expected)


# --- stopped and killed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_object_takes_over_after_every_step(kind, data, finished, tmp_path):
    """In training, within step one, within a child, in Rayleigh descent, and exactly where a growth ends."""
    path = tmp_path / "checkpoint.pt"
    run = tiny.make_run(kind, data)
    growing = 0
    for made in range(1, run.total_epochs * run.steps_per_epoch + 1):
        stop_after(run, 1)
        assert (run.epoch, run.step) == divmod(made, run.steps_per_epoch)
        growing += not run.finished and run.step > 0 and run.place(run.epoch)[2]
        run.save(path)
        draw()
        run = tiny.make_run(kind, data)
        run.load(path)
        draw()
    assert run.finished
    assert growing == 2 * run.growth_config.growth_epochs * run.growth_config.growths  # of 3 steps, 2 end no epoch
    same(tiny.ending(run), tiny.ending(finished(kind)))


@pytest.mark.parametrize("kind", ["firefly-depth", "rayleigh", "nash-depth", "net2net"])
def test_one_object_stops_after_every_step(kind, data, finished):
    run = tiny.make_run(kind, data)
    while not run.finished:
        stop_after(run, 1)
        draw()
    same(tiny.ending(run), tiny.ending(finished(kind)))


@pytest.mark.parametrize("kind", ["firefly-depth", "nash-depth", "random-vgg"])
def test_images_of_16_pixels_are_kept_in_another_order(kind, data, tmp_path):
    """From 16 pixels on, tensors are in channels-last order, by which kernels choose their arithmetic."""
    larger = {
        name: getattr(data, name).repeat_interleave(2, 2).repeat_interleave(2, 3)
        for name in ("train_images", "test_images")
    }
    data = replace(data, **larger)
    run, expected = (tiny.make_run(kind, data, growths=1) for _ in range(2))
    run_to_end(expected)
    while not run.finished:
        stop_after(run, 2)
        run.save(tmp_path / "checkpoint.pt")
        run = tiny.make_run(kind, data, growths=1)
        run.load(tmp_path / "checkpoint.pt")
    same(tiny.ending(run), tiny.ending(expected))
    for network in (run.network, expected.network):  # grown by now
        kernels = [value for value in network.state_dict().values() if value.dim() == 4 and min(value.shape[1:]) > 1]
        assert kernels
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder with what killed runs ended with, after others went on from their checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, tiny.__file__, folder, *tiny.KILLS]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", tiny.KILLS)
def test_killed_in_the_middle_of_a_growth(kind, killed):
    undisturbed = torch.load(killed / f"{kind}.undisturbed.ending", weights_only=True)
    assert len(undisturbed["events"]) == 2
    for name in tiny.KILLS[kind]:
        same(torch.load(killed / f"{kind}.{name}.ending", weights_only=True), undisturbed)


def test_a_loaded_run_can_go_back(data, finished, tmp_path):
    run = tiny.make_run("nash", data)
    stop_after(run, 5)  # within the second child of the first growth
    run.save(tmp_path / "checkpoint.pt")
    run_to_end(run)
    run.load(tmp_path / "checkpoint.pt")
    assert (run.epoch, run.step, len(run.history), run.events) == (1, 2, 1, [])
    assert run.network.neurons() == {"layers.0.linear": 4, "layers.1.linear": 3}
    same(tiny.ending(run_to_end(run)), tiny.ending(finished("nash")))


@pytest.mark.parametrize("kind", ["firefly", "nash", "splitting", "net2net"])
def test_an_exception_while_it_grows_changes_nothing(kind, data, finished, monkeypatch):
    """Such as Ctrl-C in a notebook: the run goes on as if nothing had been."""
    run = tiny.make_run(kind, data)
    calls = itertools.count(1)

    def interrupted(*arguments):
        if next(calls) == 2:  # the loss after the growth
            raise KeyboardInterrupt
        return mean_loss(*arguments)

    monkeypatch.setattr("nasbook.methods.growth.mean_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(run)
    assert run.events == []
    assert run.network.neurons() == {"layers.0.linear": 4, "layers.1.linear": 3}
    same(tiny.ending(run_to_end(run)), tiny.ending(finished(kind)))


REFUSED = {
    "a method": ("net2net", {}, r"its method is 'grow by firefly', this run's is 'grow by net2net'\."),
    "a network": ("firefly-vgg", {}, r"its network is 'Perceptron', this run's is 'VGG'\."),
    "a configuration": ("firefly", {"radius": 0.2}, r"its growth\.radius is 0\.01, this run's is 0\.2\."),
    "a number of growths": ("firefly", {"growths": 3}, r"its growth\.growths is 2, this run's is 3\."),
    "a rate": ("firefly", {"rate": 0.5}, r"its growth\.rate is 0\.4, this run's is 0\.5\."),
    "a validation set": ("firefly", {"validation_share": 0.2}, r"its growth\.validation_share is 0\.25"),
    "a seed": ("firefly", {"seed": 7}, r"its seed is 0, this run's is 7\."),
}


@pytest.mark.parametrize("other", REFUSED)
def test_a_checkpoint_of_another_run_is_refused(other, data, tmp_path):
    kind, changes, message = REFUSED[other]
    run = tiny.make_run("firefly", data)
    stop_after(run, 4)
    run.save(tmp_path / "checkpoint.pt")
    refuses = tiny.make_run(kind, data, **changes)
    with pytest.raises(CheckpointError, match=rf"is of another run: {message}"):
        refuses.load(tmp_path / "checkpoint.pt")
    assert (refuses.epoch, refuses.step, refuses.events) == (0, 0, [])


def test_a_checkpoint_of_another_size_of_network_is_refused(data, tmp_path):
    config = GROWTH_METHODS["net2net"](**tiny.COMMON)
    run = GrowthRun(Perceptron(64, (4, 3), 10), data, config)
    run.save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"its shapes is \[\[4, 64\].*this run's is \[\[3, 64\]"):
        GrowthRun(Perceptron(64, (3, 4), 10), data, config).load(tmp_path / "checkpoint.pt")


# --- the timetable ----------------------------------------------------------------------------------------------------


def test_the_timetable(data):
    run = tiny.make_run("rayleigh", data, growths=2, epochs=2, direction_epochs=3)
    assert run.total_epochs == 3 * 2 + 2 * 3
    assert [run.place(epoch) for epoch in range(run.total_epochs)] == [
        (0, 0, False), (0, 1, False),
        (1, 0, True), (1, 1, True), (1, 2, True), (1, 0, False), (1, 1, False),
        (2, 0, True), (2, 1, True), (2, 2, True), (2, 0, False), (2, 1, False),
    ]  # fmt: skip


def test_the_timetable_without_epochs_of_growth(data):
    run = tiny.make_run("net2net", data, growths=2, epochs=2)
    assert [run.place(epoch) for epoch in range(run.total_epochs)] == [
        (phase, number, False) for phase in range(3) for number in range(2)
    ]


def test_no_growth_is_a_training(data):
    run = run_to_end(tiny.make_run("firefly", data, growths=0, epochs=3))
    assert (run.total_epochs, run.events, len(run.history)) == (3, [], 3)
    assert run.network.neurons() == {"layers.0.linear": 4, "layers.1.linear": 3}


def test_the_reports_of_a_run(data):
    run = tiny.make_run("rayleigh", data, growths=1, epochs=2, direction_epochs=2)
    reports = list(run.epochs())
    assert reports == run.history
    assert [(r.epoch, r.phase, r.growing) for r in reports] == [
        (1, 0, False), (2, 0, False), (3, 1, True), (4, 1, True), (5, 1, False), (6, 1, False)
    ]  # fmt: skip
    before, after = {"layers.0.linear": 4, "layers.1.linear": 3}, run.network.neurons()
    assert sum(after.values()) == 7 + 3
    assert [r.neurons for r in reports] == [before] * 3 + [after] * 3  # the last epoch of a growth shows what it made
    assert [r.parameters for r in reports] == [64 * 4 + 4 + 4 * 3 + 3 + 3 * 10 + 10] * 3 + [
        count_parameters(run.network)
    ] * 3
    # A cosine within each phase, from its own beginning.
    assert [r.learning_rate for r in reports] == pytest.approx([0.1, 0.05, 0, 0, 0.1, 0.05])
    assert [math.isnan(r.validation_accuracy) for r in reports] == [True, False, True, True, True, False]
    assert [math.isnan(r.validation_loss) for r in reports] == [True, False, True, True, True, False]
    assert (reports[-1].validation_loss, reports[-1].validation_accuracy) == evaluate(
        run.network, data.test_images, data.test_labels, data
    )
    for report in reports:
        assert GrowthReport.from_state(report.to_state()).neurons == report.neurons


@pytest.mark.parametrize("kind", KINDS)
def test_the_events_of_a_run(kind, data, finished):
    run = finished(kind)
    config = run.growth_config
    assert len(run.events) == config.growths
    period = config.epochs + config.growth_epochs
    assert [event.epoch for event in run.events] == [n * period for n in range(1, config.growths + 1)] if (
        config.growth_epochs
    ) else [config.epochs * n for n in range(1, config.growths + 1)]
    last = run.events[-1]
    assert (last.neurons, last.parameters) == (run.network.neurons(), count_parameters(run.network))
    for event in run.events:
        assert event.method == config.method == tiny.KINDS[kind][0]
        assert (event.predicted is None) == (config.method in ("net2net", "nash", "random"))
        assert event.predicted is None or event.predicted < 0
        assert event.seconds > 0
        assert event.loss_before != event.loss_after
        [report] = [r for r in run.history if r.epoch == event.epoch + (not config.growth_epochs)]
        assert (report.neurons, report.parameters) == (event.neurons, event.parameters)
    assert replay_history(tiny.tiny_network(tiny.KINDS[kind][1], data), run.events).neurons() == last.neurons


def test_losses_of_an_event_are_those_of_the_images_that_a_growth_looks_at(data):
    run = tiny.make_run("net2net", data, growths=1)
    for _ in run.epochs():
        break
    before = copy.deepcopy(run.network)
    stop_after(run, 1)
    [event] = run.events
    chosen = torch.randperm(72, generator=generator(run.seed, "scored images"))[:40]
    images, labels = run.loader.images[chosen], run.loader.labels[chosen]
    assert len(run.loader.images) == 72
    assert event.loss_before == pytest.approx(evaluate(before, images, labels, data)[0], rel=1e-6)
    whole = tiny.make_run("net2net", data, growths=1, scored_images=None)
    stop_after(whole, 4)
    assert whole.events[0].loss_before == pytest.approx(
        evaluate(before, run.loader.images, run.loader.labels, data)[0], rel=1e-6
    )


@pytest.mark.parametrize("kind", ["firefly", "splitting", "net2net", "nash", "random"])
def test_test_images_are_not_touched(kind, data, finished):
    other = replace(data, test_images=255 - data.test_images, test_labels=data.test_labels.flip(0))
    run = run_to_end(tiny.make_run(kind, other))
    same(run.network.state_dict(), finished(kind).network.state_dict())
    assert run.history[-1].validation_loss != finished(kind).history[-1].validation_loss


@pytest.mark.parametrize("kind", ["firefly", "net2net", "nash", "random", "rayleigh"])
def test_another_seed_gives_another_growth(kind, data, finished):
    run = run_to_end(tiny.make_run(kind, data, seed=1))
    assert run.events[-1].cuts != finished(kind).events[-1].cuts


def test_held_out_images_take_the_place_of_test_images(data):
    config = GROWTH_METHODS["net2net"](**{**tiny.COMMON, "growths": 0})
    chosen = torch.arange(20)
    run = run_to_end(GrowthRun(tiny.tiny_network("perceptron", data), data, config, held_out=chosen))
    expected = evaluate(run.network, data.train_images[chosen], data.train_labels[chosen], data)
    assert (run.history[-1].validation_loss, run.history[-1].validation_accuracy) == expected


# --- budgets ----------------------------------------------------------------------------------------------------------


def perceptron_parameters(first, second):
    return 64 * first + first + first * second + second + second * 10 + 10


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("net2net", [(6, 5), (9, 7)]),  # each by half of its own: 2 + 2 of (4, 3), 3 + 2 of (6, 5)
        ("nash", [11, 17]),  # by half of all: 3.5, that is 4, of 7, and 5.5, that is 6, of 11
        ("random", [11, 17]),
        ("splitting", [11, 17]),
        ("firefly", [11, 17]),
    ],
)
def test_a_growth_adds_what_the_rate_says(kind, sizes, data):
    """Python rounds halves to even numbers."""
    run = run_to_end(tiny.make_run(kind, data, rate=0.5, **{"new_neurons": 4} if kind == "firefly" else {}))
    for event, size in zip(run.events, sizes, strict=True):
        found = tuple(event.neurons.values())
        assert (found if kind == "net2net" else sum(found)) == size
        assert event.parameters == perceptron_parameters(*found)
        assert event.parameters == sum(p.numel() for p in run.network.parameters()) or event is not run.events[-1]


def test_a_growth_adds_at_least_one(data):
    config = GROWTH_METHODS["firefly"](rate=0.01)
    assert config.budget(Perceptron(2, (4, 3), 2)) == 1
    assert GROWTH_METHODS["firefly"]().budget(Perceptron(2, (6, 4), 2)) == 3
    run = run_to_end(tiny.make_run("net2net", data, rate=0.01, growths=1))
    assert run.network.neurons() == {"layers.0.linear": 5, "layers.1.linear": 4}  # and Net2Net one a width


def test_net2net_inserts_layers_at_every_place(finished):
    run = finished("net2net-depth")
    assert run.network.structure() == (3, 3, 3, 3)  # one each at either of two growths
    inserts = [[cut[1:] for cut in event.cuts if cut[0] == "insert"] for event in run.events]
    places = [f"blocks.{i}.inserted" for i in range(4)]
    assert inserts == [[(place, index, "plain", 0) for place in places] for index in (0, 1)]


def test_firefly_opens_layers_and_takes_empty_ones_out(data):
    run = run_to_end(tiny.make_run("firefly-depth", data, layer_budget=1, least_neurons=2, rate=0.6, growths=2))
    before = (1, 1, 1, 1)
    for event in run.events:
        network = replay_history(tiny.tiny_network("block-stack", data), run.events[: run.events.index(event) + 1])
        assert isinstance(network, BlockStack)
        structure = network.structure()
        assert sum(structure) <= sum(before) + 1  # η₁
        assert all(now >= then for now, then in zip(structure, before, strict=True))
        inserted = [layer for block in network.blocks for layer in block.inserted]
        assert len(inserted) == sum(structure) - 4  # none is empty
        assert all(layer.neurons >= 2 for layer in inserted)
        before = structure
    assert run.network.structure() == before
    assert sum(before) > 4


def test_a_new_layer_with_too_few_neurons_is_not_kept(data):
    run = run_to_end(tiny.make_run("firefly-depth", data, least_neurons=100, growths=1))
    assert run.network.structure() == (1, 1, 1, 1)
    assert 16 < sum(run.network.neurons().values()) <= 16 + round(0.6 * 16)  # neurons get the budget


def test_a_layer_budget_of_none_opens_no_layer(data):
    run = run_to_end(tiny.make_run("firefly-depth", data, layer_budget=0, growths=1))
    assert run.network.structure() == (1, 1, 1, 1)


def test_each_width_may_have_a_rate_of_its_own(data):
    """One width has all the good candidates; the scope decides whether it gets all the neurons."""
    sizes = {}
    for scope in ("network", "width"):
        growth = begin("firefly", data, scope=scope, rate=0.5, new_neurons=8)
        growth.overgrown.scale_directions(
            torch.tensor([1e-3 if c.width == "layers.1.linear" else 1.0 for c in growth.overgrown.candidates])
        )
        growth.situation.steps = 0
        sizes[scope] = finish(growth, data).network.neurons()
    assert sizes == {
        "network": {"layers.0.linear": 8, "layers.1.linear": 3},
        "width": {"layers.0.linear": 6, "layers.1.linear": 5},
    }


@pytest.mark.parametrize("selection", ["greedy", "exact"])
def test_both_selections_agree_under_one_budget(selection, data, finished):
    run = run_to_end(tiny.make_run("firefly", data, selection=selection))
    same(run.network.state_dict(), finished("firefly").network.state_dict())


def test_splits_only_and_new_neurons_only(data):
    for changes, kind in (({"new_neurons": 0}, "split"), ({"splits": False, "new_neurons": 3}, "new")):
        growth = begin("firefly", data, **changes)
        assert {candidate.kind for candidate in growth.overgrown.candidates} == {kind}
        [(name, sources)] = finish(growth, data).cuts
        assert name == "rewire"
        added = [source for width, old in (("layers.0.linear", 4), ("layers.1.linear", 3))
                 for source in sources.get(width, [])[old:]]  # fmt: skip
        assert 0 < len(added) <= 3  # of three splits, not all lower the loss
        assert all((source == -1) == (kind == "new") for source in added)


# --- one growth -------------------------------------------------------------------------------------------------------


def batches_of(data):
    return list(evaluation_batches(data.train_images[:72], data.train_labels[:72], 24, data.mean, data.std))


def begin(kind, data, *, network=None, validate=None, **changes: Any) -> Growth:
    """A growth of a network whose optimiser has made a step."""
    method, name, settings = tiny.KINDS[kind]
    config = GROWTH_METHODS[method](**{**tiny.COMMON, **settings, **changes})
    network = tiny.tiny_network(name, data) if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=0.01)
    inputs, labels = batches_of(data)[0]
    network.train()
    F.cross_entropy(network(inputs), labels).backward()
    optimizer.step()
    situation = Situation(
        network=network,
        optimizer=optimizer,
        batches=lambda: iter(batches_of(data)),
        validate=validate or (lambda network: 0.5),
        seed=3,
        steps=3 * config.growth_epochs,
    )
    return config.begin(situation)


def finish(growth: Growth, data) -> Result:
    for index in range(growth.situation.steps):
        growth.run_step(batches_of(data)[index % 3], index)
    return growth.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_growth_leaves_the_network_and_its_optimiser_as_they_are(kind, data):
    growth = begin(kind, data)
    network, optimizer = growth.situation.network, growth.situation.optimizer

    def contents():
        return network.state_dict(), optimizer.state_dict(), [p.requires_grad for p in network.parameters()]

    before = copy.deepcopy(contents())
    result = finish(growth, data)
    assert result.network is not network
    assert result.optimizer is not optimizer
    assert result.network.neurons() != network.neurons()
    same(contents(), before)
    assert all(p.requires_grad for p in result.network.parameters())
    held = [p for group in result.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in result.network.parameters()}


def moved(momenta, sources):
    """What a perceptron's momenta are after a growth: rows and columns of what survived, zeros for what is new."""
    first, second = (torch.tensor(sources.get(f"layers.{i}.linear", range(n))) for i, n in ((0, 4), (1, 3)))

    def taken(values, dimension, index):
        found = values.index_select(dimension, index.clamp(min=0))
        shape = [-1 if d == dimension else 1 for d in range(values.dim())]
        return torch.where((index == -1).view(shape), 0.0, found)

    return {
        "layers.0.linear.weight": taken(momenta["layers.0.linear.weight"], 0, first),
        "layers.0.linear.bias": taken(momenta["layers.0.linear.bias"], 0, first),
        "layers.1.linear.weight": taken(taken(momenta["layers.1.linear.weight"], 0, second), 1, first),
        "layers.1.linear.bias": taken(momenta["layers.1.linear.bias"], 0, second),
        "classifier.weight": taken(momenta["classifier.weight"], 1, second),
        "classifier.bias": momenta["classifier.bias"],
    }


def momenta_of(network, optimizer):
    return {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("kind", ["firefly", "splitting", "rayleigh", "net2net"])
def test_momenta_of_what_survives_go_on(kind, data):
    growth = begin(kind, data)
    before = momenta_of(growth.situation.network, growth.situation.optimizer)
    result = finish(growth, data)
    [(name, sources)] = result.cuts
    assert name == "rewire"
    same(momenta_of(result.network, result.optimizer), moved(before, sources))
    assert result.optimizer.param_groups[0]["momentum"] == 0.9


def test_momenta_of_a_run_go_on(data):
    run = tiny.make_run("firefly", data, growths=1, epochs=2)
    momenta = []
    for report in run.epochs():
        if report.growing or report.phase == 0:
            momenta.append(momenta_of(run.network, run.optimizer))
    [(_, sources)] = run.events[0].cuts
    assert len(momenta) == 4
    assert all(float(m.abs().max()) > 0 for m in momenta[1].values())
    same(momenta[2], momenta[1])  # in step one the network itself does not move
    same(momenta[3], moved(momenta[1], sources))


def test_a_child_begins_with_the_momenta_of_its_parent(data):
    growth = begin("nash", data)
    before = momenta_of(growth.situation.network, growth.situation.optimizer)
    child = growth.propose(0)
    [(_, sources)] = child.cuts
    inputs, labels = batches_of(data)[0]
    F.cross_entropy(child.network(inputs), labels).backward()
    weights = {name: p.detach().clone() for name, p in child.network.named_parameters()}
    growth.run_step((inputs, labels), 0)
    state = growth.state_dict()["child"]["optimizer"]
    assert state["param_groups"][0]["lr"] == growth.config.child_learning_rate  # its cosine begins
    for number, (name, start) in enumerate(moved(before, sources).items()):
        gradient = child.network.get_parameter(name).grad + 0.01 * weights[name]
        torch.testing.assert_close(state["state"][number]["momentum_buffer"], 0.9 * start + gradient)


def test_firefly_predicts_the_sum_of_what_it_chooses(data):
    growth = begin("firefly", data, radius=0.02, new_neurons=5)
    for index in range(growth.situation.steps):
        growth.run_step(batches_of(data)[index % 3], index)
    overgrown: OvergrownNetwork = growth.overgrown
    scores = integrated_gradients(overgrown, batches_of(data), F.cross_entropy, growth.config.points)
    changes = scores.changes(0.02)
    result = growth.finish()
    best = changes.sort().values[:3]
    assert (best < 0).all()
    assert result.predicted == pytest.approx(float(best.double().sum()), rel=1e-6)
    names = [overgrown.candidates[i].width for i in changes.argsort()[:3].tolist()]
    grown = {name: count + names.count(name) for name, count in growth.situation.network.neurons().items()}
    assert result.network.neurons() == grown
    found = mean_loss(result.network, iter(batches_of(data))) - growth.situation.loss(growth.situation.network)
    assert found == pytest.approx(result.predicted, rel=0.2)


@pytest.mark.parametrize("kind", ["splitting", "rayleigh"])
def test_splitting_predicts_half_of_eps_squared_times_the_eigenvalues(kind, data):
    growth = begin(kind, data, step=0.05, sharpness=3.0)
    matrices = splitting_matrices(growth.situation.network, batches_of(data), F.cross_entropy, sharpness=3.0)
    values = torch.cat(list(least_eigenpairs(matrices).values.values())).sort().values
    result = finish(growth, data)
    best = float(values[:3].sum()) * 0.05**2 / 2
    if kind == "splitting":
        assert result.predicted == pytest.approx(best, rel=1e-4)
    else:  # Rayleigh descent comes from above
        assert best <= result.predicted < 0


def test_long_rayleigh_descent_finds_the_eigenvalues(data):
    exact = finish(begin("splitting", data), data)
    descent = finish(begin("rayleigh", data, direction_epochs=50, direction_learning_rate=0.03), data)
    assert descent.predicted == pytest.approx(exact.predicted, rel=0.05)
    assert descent.network.neurons() == exact.network.neurons()


def test_nothing_is_split_where_no_eigenvalue_is_negative(data, monkeypatch):
    """And the run goes on with the same network and optimiser."""

    def convex(matrices):
        pairs = least_eigenpairs(matrices)
        return replace(pairs, values={name: value.abs() for name, value in pairs.values.items()})

    monkeypatch.setattr(splitting_descent, "least_eigenpairs", convex)
    growth = begin("splitting", data)
    result = growth.finish()
    assert (result.network, result.optimizer) == (growth.situation.network, growth.situation.optimizer)
    assert (result.cuts, result.predicted) == ((), 0.0)
    run = run_to_end(tiny.make_run("splitting", data))
    assert [event.cuts for event in run.events] == [(), ()]
    assert run.events[0].loss_before == run.events[0].loss_after
    assert run.network.neurons() == {"layers.0.linear": 4, "layers.1.linear": 3}
    assert run.finished


def test_fewer_neurons_split_where_fewer_eigenvalues_are_negative(data):
    growth = begin("splitting", data, rate=1.0)
    values = {"layers.0.linear": torch.tensor([0.1, -1.0, 0.0, -3.0]), "layers.1.linear": torch.tensor([0.1, 0.0, 5.0])}
    vectors = {"layers.0.linear": torch.ones(4, 65), "layers.1.linear": torch.ones(3, 5)}
    result = growth.split_best(values, vectors)
    assert result.cuts == (("rewire", {"layers.0.linear": [0, 1, 2, 3, 1, 3]}),)
    assert result.predicted == pytest.approx(-4 * 0.03**2 / 2)


def test_of_equal_eigenvalues_the_earlier_neurons_split(data):
    growth = begin("splitting", data, rate=0.3)  # 2 of 7
    values = {"layers.0.linear": torch.full((4,), -1.0), "layers.1.linear": torch.full((3,), -1.0)}
    vectors = {"layers.0.linear": torch.ones(4, 65), "layers.1.linear": torch.ones(3, 5)}
    assert growth.split_best(values, vectors).cuts == (("rewire", {"layers.0.linear": [0, 1, 2, 3, 0, 1]}),)


# --- hill climbing ----------------------------------------------------------------------------------------------------


def climb(data, scores, **changes):
    """Hill climbing by given scores of the children; also returns each child's weights as they were compared."""
    compared, left = [], iter(scores)

    def validate(network):
        compared.append((network, copy.deepcopy(network.state_dict())))
        return next(left)

    growth = begin("nash", data, validate=validate, children=len(scores), **changes)
    return finish(growth, data), compared, growth


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.2, 0.9, 0.5), 1),  # not the last, and not the first
        ((0.9, 0.2, 0.5), 0),
        ((0.1, 0.2, 0.3), 2),
        ((0.4, 0.4, 0.4), 0),  # of equal ones the earliest
        ((0.1, 0.4, 0.4), 1),
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_the_best_child_goes_on(scores, best, data):
    result, compared, growth = climb(data, scores)
    assert len(compared) == 3
    same(result.network.state_dict(), compared[best][1])
    assert result.network is compared[best][0]
    assert growth.scores == list(scores)
    for other in {0, 1, 2} - {best}:
        assert differences(result.network.state_dict(), compared[other][1])


def test_children_differ_and_each_has_the_whole_budget(data):
    _, compared, _ = climb(data, (0.1, 0.2, 0.3))
    assert [sum(network.neurons().values()) for network, _ in compared] == [10, 10, 10]
    firsts = [state["layers.0.linear.weight"] for _, state in compared]
    assert len({tuple(weight.flatten().tolist()) for weight in firsts}) == 3


def test_a_childs_learning_rate_falls_within_its_own_training(data, monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def noted(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    climb(data, (0.1, 0.2), child_epochs=2)
    fall = [0.05 * (1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)]
    assert rates[1:] == pytest.approx([*fall, *fall])  # the first step is the parent's


def test_half_a_growth_says_what_it_has(data):
    growth = begin("nash", data)
    for index in range(4):
        growth.run_step(batches_of(data)[index % 3], index)
    state = growth.state_dict()
    assert state["scores"] == [0.5]
    assert state["child"] is not None
    other = begin("nash", data)
    other.load_state_dict(copy.deepcopy(state))
    same(other.state_dict(), state)


def test_children_are_compared_on_validation_images(data):
    """The accuracy is that on the images which nobody trains on."""
    run = tiny.make_run("nash", data, growths=1)
    stop_after(run, 3 + 3)
    [score] = run.state_dict()["growth"]["scores"]
    trained = {bytes(image.numpy().tobytes()) for image in run.loader.images}
    left = [i for i, image in enumerate(data.train_images) if bytes(image.numpy().tobytes()) not in trained]
    assert len(left) == 24
    best = run._growth._best.network
    assert score == evaluate(best, data.train_images[left], data.train_labels[left], data)[1]


def test_random_search_may_choose_new_neurons(data):
    growth = begin("random", data, new_neurons=50, children=1)
    [(_, sources)] = finish(growth, data).cuts
    added = [s for name, old in (("layers.0.linear", 4), ("layers.1.linear", 3)) for s in sources.get(name, [])[old:]]
    assert len(added) == 3
    assert -1 in added


# --- what is wrong ----------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("net2net", {"growths": -1}, r"^growths must be 0 or more, got -1\.$"),
    ("net2net", {"epochs": 0}, "^epochs must be above 0, got 0"),
    ("net2net", {"rate": 0.0}, "^rate must be above 0, got 0"),
    ("net2net", {"rate": math.nan}, "^rate must be above 0, got nan"),
    ("net2net", {"batch_size": 1}, "^batch_size must be at least 2"),
    ("net2net", {"learning_rate": -0.1}, "^learning_rate must be above 0, got -0.1"),
    ("net2net", {"cutout": -1}, "^cutout must be at least 0, got -1"),
    ("net2net", {"validation_share": 1.0}, "^validation_share must be at least 0 and below 1, got 1.0"),
    ("net2net", {"validation_share": -0.1}, "^validation_share must be at least 0 and below 1, got -0.1"),
    ("net2net", {"scored_images": 0}, "^scored_images must be above 0, got 0"),
    ("net2net", {"noise": -0.1}, "^noise and new_layers must be 0 or more"),
    ("net2net", {"new_layers": -1}, "^noise and new_layers must be 0 or more"),
    ("firefly", {"radius": 0.0}, "^radius must be above 0, got 0"),
    ("firefly", {"direction_epochs": 0}, "^direction_epochs must be above 0, got 0"),
    ("firefly", {"direction_rate": 0.0}, "^direction_rate must be above 0, got 0"),
    ("firefly", {"points": 0}, "^points must be above 0, got 0"),
    ("firefly", {"least_neurons": 0}, "^least_neurons must be above 0, got 0"),
    ("firefly", {"new_neurons": -1}, "^new_neurons, new_layers and layer_neurons must be 0 or more"),
    ("firefly", {"layer_budget": -1}, "^layer_budget must be 0 or more, got -1"),
    ("firefly", {"splits": False, "new_neurons": 0}, "^There is nothing to choose from: allow splits, new_neurons or"),
    ("firefly", {"splits": False, "new_neurons": 0, "new_layers": 3, "layer_neurons": 0}, "^There is nothing to"),
    ("splitting", {"step": 0.0}, "^step must be above 0, got 0"),
    ("splitting", {"sharpness": 0.0}, "^sharpness must be above 0, got 0"),
    ("splitting", {"direction_epochs": -1}, "^direction_epochs must be 0 or more, got -1"),
    ("nash", {"children": 0}, "^children must be above 0, got 0"),
    ("nash", {"child_epochs": 0}, "^child_epochs must be above 0, got 0"),
    ("nash", {"child_learning_rate": 0.0}, "^child_learning_rate must be above 0, got 0"),
    ("nash", {"radius": 0.0}, "^radius must be above 0, got 0"),
    ("random", {"new_neurons": -1}, "^new_neurons and new_layers must be 0 or more"),
    ("random", {"validation_share": 0.0}, "^Children are compared on validation images; give a validation_share above"),
]


@pytest.mark.parametrize(("method", "changes", "message"), WRONG)
def test_wrong_configurations(method, changes, message):
    with pytest.raises(InvalidInput, match=message):
        GROWTH_METHODS[method](**changes)


def test_names_in_a_configuration():
    """The tests check types too, and would refuse them in their own way."""
    config = GROWTH_METHODS["firefly"]()
    for name, wrong, message in (
        ("scope", "layer", "^Unknown scope 'layer'.*Valid: network, width"),
        ("selection", "greed", "^Unknown selection 'greed'. Did you mean 'greedy'"),
    ):
        object.__setattr__(config, name, wrong)
        with pytest.raises(InvalidInput, match=message):
            config.__post_init__()
        object.__setattr__(config, name, {"scope": "network", "selection": "greedy"}[name])


def test_every_method_has_a_configuration():
    for name, config in GROWTH_METHODS.items():
        assert config.method == name
        assert issubclass(config, GrowthConfig)
        assert (config.__doc__ or "").splitlines()[0].strip()
        assert hash(config()) == hash(config())
        with pytest.raises(FrozenInstanceError):
            config().rate = 1.0
        assert {f.name for f in fields(GrowthConfig)} < {f.name for f in fields(config)}


def test_the_papers_numbers():
    """B.2 and §3, where they are given."""
    firefly, nash, random_config = (GROWTH_METHODS[name]() for name in ("firefly", "nash", "random"))
    assert (firefly.rate, firefly.epochs, firefly.new_neurons, firefly.points) == (0.3, 160, 50, 3)
    assert firefly.least_neurons == 2
    assert (nash.children, nash.child_epochs, random_config.children) == (8, 17, 3)
    assert (firefly.growth_epochs, nash.growth_epochs, random_config.growth_epochs) == (1, 8 * 17, 3)
    assert GROWTH_METHODS["splitting"]().growth_epochs == GROWTH_METHODS["net2net"]().growth_epochs == 0


def test_a_run_is_for_one_process(data, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InvalidInput, match="grows in one process; start it without torchrun"):
        tiny.make_run("net2net", data)


def test_a_network_of_other_classes(data):
    with pytest.raises(InvalidInput, match="The network has 3 classes, digits has 10"):
        GrowthRun(Perceptron(64, (4,), 3), data, GROWTH_METHODS["net2net"](**tiny.COMMON))


def test_no_validation_images_without_a_share(data):
    run = tiny.make_run("net2net", data, validation_share=0.0)
    assert len(run.loader.images) == 96
    with pytest.raises(InvalidInput, match="chooses by validation images; give a validation_share above 0"):
        run._situation(1).validate(run.network)


def test_a_child_that_diverges_in_its_last_step_is_not_saved(data, tmp_path):
    """Its loss was fine, the weights after it are not; the checkpoint stays the last good one."""
    run = tiny.make_run("nash", data, batch_size=72, children=1, child_learning_rate=1e38, growths=1, cutout=0)
    with pytest.raises(TrainingDiverged, match=r"The loss of the grown network became nan at epoch 2, step 1 of 1\."):
        drive(run, checkpoint=tmp_path / "checkpoint.pt", progress=False)
    other = tiny.make_run("nash", data, batch_size=72, children=1, child_learning_rate=1e38, growths=1, cutout=0)
    other.load(tmp_path / "checkpoint.pt")
    assert (other.epoch, other.step, other.events) == (1, 0, [])


# --- histories --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_survives_its_file(kind, data, finished, tmp_path):
    run = finished(kind)
    save_history(run.events, tmp_path / "history.json")
    events = load_history(tmp_path / "history.json")
    assert events == run.events
    network = replay_history(tiny.tiny_network(tiny.KINDS[kind][1], data), events)
    network.load_state_dict(run.network.state_dict())
    same(network.state_dict(), run.network.state_dict())
    assert network.neurons() == run.network.neurons()


def test_replaying_no_event_gives_a_copy(data):
    network = tiny.tiny_network("perceptron", data)
    copied = replay_history(network, [])
    assert copied is not network
    same(copied.state_dict(), network.state_dict())


def test_replaying_draws_nothing_and_changes_nothing(data, finished):
    network = tiny.tiny_network("block-stack", data)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    replay_history(network, finished("firefly-depth").events)
    same(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_history_of_another_network(data, finished):
    with pytest.raises(InvalidInput, match=r"Unknown width '?layers\.0\.linear"):
        replay_history(tiny.tiny_network("block-stack", data), finished("net2net").events)
    with pytest.raises(InvalidInput, match=r"has 2 neurons; a source must be 0\.\.1"):
        replay_history(Perceptron(64, (2, 3), 10), finished("net2net").events)
    unknown = replace(finished("net2net").events[0], cuts=(("prune", "layers.0.linear"),))
    with pytest.raises(InvalidInput, match="Unknown cut 'prune'; expected one of rewire, insert, remove, kernel"):
        replay_history(tiny.tiny_network("perceptron", data), [unknown])


DAMAGED = {
    "half a file": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no text": lambda text: b"\xff\xfe\x00",
    "a list": lambda text: "[]",
    "a number": lambda text: "3",
    "without format": lambda text: "{}",
    "without events": lambda text: json.dumps({"format": "nasbook.growth", "version": 1}),
    "events that are none": lambda text: json.dumps({"format": "nasbook.growth", "version": 1, "events": [3]}),
    "a field too few": lambda text: text.replace('"parameters"', '"parameter"'),
    "cuts that are none": lambda text: json.dumps(
        {**json.loads(text), "events": [{**json.loads(text)["events"][0], "cuts": 3}]}
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_histories(name, finished, tmp_path):
    path = tmp_path / "history.json"
    save_history(finished("firefly").events, path)
    content = DAMAGED[name](path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=r"history\.json is no growth history of nasbook"):
        load_history(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"version": 2}, "nasbook.growth of version 2"), ({"format": "nasbook.other"}, "nasbook.other of version 1")],
)
def test_histories_of_another_format(change, said, finished, tmp_path):
    path = tmp_path / "history.json"
    save_history(finished("firefly").events, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidInput, match=f"is a {said}; expected nasbook.growth of version 1"):
        load_history(path)


def test_no_history(tmp_path):
    with pytest.raises(InvalidInput, match=r"Can't read the growth history .*none\.json: No such file or directory\."):
        load_history(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="Can't read the growth history"):
        load_history(tmp_path)
    (tmp_path / "a file").touch()
    with pytest.raises(InvalidInput, match="Can't write"):
        save_history([], tmp_path / "a file" / "history.json")


def test_an_event_survives_its_state(finished):
    for event in finished("firefly-depth").events:
        assert GrowthEvent.from_state(event.to_state()) == event
        assert GrowthEvent.from_state(json.loads(json.dumps(event.to_state()))) == event
