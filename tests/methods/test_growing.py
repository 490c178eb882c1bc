"""Algorithm 2 with losses from a script, what a growth and a pruning leave alone, and growing convolutional cells."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import FrozenInstanceError, asdict, dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences, draw, run_to_end, stop_after

from nasbook.data import load_images, load_series
from nasbook.errors import CheckpointError, InvalidInput, TrainingDiverged
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.methods import METHODS, SEQUENCE_METHODS, darts, growing, growing_recurrent, growing_search
from nasbook.networks import DerivedNetwork, DerivedRecurrentNetwork
from nasbook.supernets import OperatorRules, SearchNetwork
from nasbook.training import drive, evaluate

EACH, END = growing_search.MODES
SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=1)
SMALL = {"batch_size": 8, "channels": 2, "cells": 3, "architecture_learning_rate": 0.1}
SHORT = {"stages": 2, "stage_epochs": 2, "tune_epochs": 1, "patience": 2}


@pytest.fixture(scope="module")
def images():
    return load_images("digits").take(32, 40)  # 16 images for w, 16 for α: 2 steps an epoch


@pytest.fixture(scope="module")
def series():
    return load_series("simulated-brics", window=3).take(20, 12, 5)  # 2 steps an epoch


def image_search(data, seed=0, space=SPACE, **changes):
    return growing.Search(growing.Config(**{**SMALL, **SHORT, **changes}), data, space, seed)


def series_search(data, seed=0, **changes):
    settings = {"nodes": 1, "hidden": 2, "batch_size": 10, "learning_rate": 0.02, "architecture_learning_rate": 0.05}
    return growing_recurrent.Search(growing_recurrent.Config(**{**settings, **SHORT, **changes}), data, seed=seed)


def ending(search):
    """What a search has come to; not wall times, and not the global generators, which each epoch begins anew."""
    state = copy.deepcopy(search.state_dict())
    del state["seconds"], state["random"]
    state["measured"] = state["measured"].nan_to_num(-1)  # tuning has no architecture loss
    for report in state["history"]:
        del report["seconds"]
    return {**state, "genotype": search.result().genotype.to_json()}


# --- Algorithm 2, by a script -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """What a search does when its validation losses are known."""

    epochs: list[tuple[int, bool, int]]
    """Of every epoch the stage, whether weights are tuned, and the number of nodes."""
    events: list[tuple[int, int, str]]
    """Epoch, stage and kind."""
    answer: int
    """The epoch whose parameters are the answer."""


def algorithm_2(losses, mode, stages, stage_epochs, tune_epochs, patience, nodes=1):
    """The paper's pseudo-code, with two levels of early stopping."""
    epochs, events = [], []

    def train(stage, tuning, most):
        """Until the loss has not fallen for some epochs: the least loss, and its epoch."""
        first = len(epochs)
        while True:
            epochs.append((stage, tuning, nodes))
            so_far = losses[first : len(epochs)]
            best = so_far.index(min(so_far))  # of equals the first
            if len(so_far) == most or len(so_far) - 1 - best == patience:
                return so_far[best], first + best

    best_loss, best_epoch, best_nodes = math.inf, None, None
    for stage in range(1, stages + 1):
        loss, epoch = train(stage, False, stage_epochs)
        if mode == EACH:
            events.append((len(epochs), stage, "prune"))
            loss, epoch = train(stage, True, tune_epochs)
        if loss >= best_loss:
            events.append((len(epochs), stage, "stop"))
            break
        best_loss, best_epoch, best_nodes = loss, epoch, nodes
        if stage < stages:
            events.append((len(epochs), stage, "node"))
            nodes += 1
    nodes = best_nodes
    if mode == END:
        events.append((len(epochs), stage, "prune"))
        best_epoch = train(stage, True, tune_epochs)[1]
    return Course(epochs, events, best_epoch)


def script(search, losses):
    """Gives the search its validation losses, and keeps what its network and optimisers were after every epoch."""
    seen = {}

    def scripted(network):
        if network is search.network:
            seen.setdefault(search.epoch, everything(search))  # the first call of an epoch is the report's
        return losses[min(search.epoch, len(losses) - 1)], 0.5

    search.evaluate = scripted
    return seen


def everything(search):
    update = search.update
    parts = search.network, update.weight_optimizer, update.architecture_optimizer
    return copy.deepcopy([part.state_dict() for part in parts])


PLANS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(growing_search.MODES),
        "stages": st.integers(1, 3),
        "stage_epochs": st.integers(1, 4),
        "tune_epochs": st.integers(1, 3),
        "patience": st.integers(1, 3),
    }
)


@settings(deadline=None, max_examples=20)
@given(plan=PLANS, losses=st.lists(st.integers(0, 6).map(float), min_size=21, max_size=21))
def test_the_search_is_algorithm_2(series, plan, losses):
    search = series_search(series.take(10, 10), **plan)
    expected = algorithm_2(losses, **plan)
    seen = script(search, losses)
    run_to_end(search)
    assert [(r.stage, r.tuning, r.nodes) for r in search.history] == expected.epochs
    assert [(e.epoch, e.stage, e.what) for e in search.events] == expected.events
    assert [r.validation_loss for r in search.history] == losses[: len(expected.epochs)]
    assert search.finished and len(search.history) <= search.total_epochs == search.config.most_epochs
    assert differences(everything(search), seen[expected.answer]) == []  # parameters, moments, counts
    assert search.result().genotype["two-to-one"].nodes == expected.epochs[expected.answer][2]
    with pytest.raises(StopIteration):
        next(search.epochs())


@pytest.mark.parametrize(
    ("plan", "losses", "epochs"),
    [
        # Patience 2: the loss of the third and of the fourth epoch is no better than that of the second.
        ({"stage_epochs": 9, "patience": 2}, [5, 3, 3, 4, 1, 1], 4),
        ({"stage_epochs": 9, "patience": 1}, [5, 3, 3, 1, 1], 3),
        ({"stage_epochs": 3, "patience": 2}, [5, 4, 3, 2, 1], 3),  # no more than stage_epochs
        ({"stage_epochs": 9, "patience": 2}, [5, 6, 4, 6, 3, 6, 6, 1], 7),  # a fall starts the count anew
    ],
)
def test_the_first_level_of_early_stopping(plan, losses, epochs, series):
    search = series_search(series, mode=END, stages=1, tune_epochs=1, **plan)
    script(search, losses)
    run_to_end(search)
    assert [report.tuning for report in search.history] == [False] * epochs + [True]


def test_the_second_level_of_early_stopping(series):
    """A stage must be better than the best one so far; as good as it is not enough."""
    for third, stages in ((1.9, 4), (2.0, 3), (2.1, 3)):
        search = series_search(series, stage_epochs=1, stages=4, tune_epochs=1, mode=END)
        script(search, [3.0, 2.0, third, 5.0, 0.0])
        run_to_end(search)
        assert [report.stage for report in search.history] == [*range(1, stages + 1), stages]
        assert search.history[-1].nodes == stages - 1
        assert [event.what for event in search.events] == ["node"] * (stages - 1) + ["stop", "prune"]


def test_what_an_event_says(series):
    search = series_search(series, stage_epochs=1, tune_epochs=1, stages=3)
    losses = [4.0, 3.0, 2.0, 3.5]
    script(search, losses)
    run_to_end(search)
    sizes = [report.parameters for report in search.history]
    assert [asdict(event) for event in search.events] == [
        {"epoch": epoch, "stage": stage, "what": what, "loss_before": before, "loss_after": after,
         "parameters": parameters, "operations": ()}
        for epoch, stage, what, before, after, parameters in [
            (1, 1, "prune", 4.0, 4.0, sizes[1]),
            (2, 1, "node", 3.0, 3.0, sizes[2]),
            (3, 2, "prune", 2.0, 2.0, sizes[3]),
            (4, 2, "stop", 3.5, 3.0, sizes[1]),
        ]
    ]  # fmt: skip
    assert sizes[1] < sizes[0] and sizes[3] < sizes[2]


def test_losses_of_an_event_are_those_of_the_networks(series):
    search = series_search(series, mode=END, stages=2)
    run_to_end(search)
    node, *_, prune = search.events
    assert (node.what, prune.what) == ("node", "prune")
    first = min(report.validation_loss for report in search.history if report.stage == 1)
    assert node.loss_before == first  # the best epoch's, to the bit
    assert node.loss_after == pytest.approx(first, rel=0.05)  # a growth by morphism, with some noise
    assert node.loss_after != first
    assert prune.loss_after != prune.loss_before


def test_tuning_leaves_the_architecture_alone(series):
    search = series_search(series, mode=EACH, stages=1, stage_epochs=1, tune_epochs=3, kept_operations=2)
    reports = search.epochs()
    next(reports)
    assert search.tuning
    before = [alpha.clone() for alpha in search.network.architecture()]
    weights = [weight.clone() for weight in search.network.weights()]
    report = next(reports)
    assert report.tuning and not search.history[0].tuning
    assert all(torch.equal(old, new) for old, new in zip(before, search.network.architecture(), strict=True))
    assert not all(torch.equal(old, new) for old, new in zip(weights, search.network.weights(), strict=True))
    assert all(len(names) == 2 for _, _, names in report.weights["two-to-one"])


def test_a_report_shows_the_cell_before_what_follows_it(series):
    search = series_search(series, mode=END, stage_epochs=1, stages=2)
    reports = search.epochs()
    first = next(reports)
    assert (first.nodes, first.stage) == (1, 1) and search.network.spaces["two-to-one"].nodes == 2
    assert first.coefficients["two-to-one"].shape == (1, 5)
    assert [edge[:2] for edge in first.weights["two-to-one"]] == [(0, 1)]
    second = next(reports)
    assert (second.nodes, second.stage) == (2, 2)
    edges, rows = second.weights["two-to-one"], second.coefficients["two-to-one"]
    assert [edge[:2] for edge in edges] == [(0, 1), (1, 2)]
    for (_, _, names), row in zip(edges, rows, strict=True):
        assert list(names) == list(search.space.operations)
        assert list(names.values()) == pytest.approx(row.tolist(), rel=1e-6)  # a float32 softmax sums to 1 only nearly
        assert sum(names.values()) == pytest.approx(1)
    again = growing_search.Report.from_state(second.to_state())
    assert differences(again.to_state(), second.to_state()) == []


# --- going wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite(loss, series):
    """NaN compares as neither better nor worse: the stage would count as the best one."""
    search = series_search(series, stage_epochs=3)
    script(search, [1.0, loss, 0.5])
    with pytest.raises(TrainingDiverged) as caught:
        run_to_end(search)
    assert str(caught.value) == (
        f"The validation loss became {loss} at epoch 2, step 2 of 2. A lower learning rate or a stronger clip usually "
        "helps."
    )
    assert len(search.history) == 1


def test_a_training_loss_that_is_not_finite(series):
    search = series_search(series, stage_epochs=3)
    next(search.epochs())
    with torch.no_grad():
        next(search.network.weights()).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="^The train loss became nan at epoch 2, step 1 of 2"):
        run_to_end(search)


@pytest.mark.parametrize("where", ["add_node", "prune", "carry_states"])
def test_an_interrupt_inside_a_change_leaves_nothing_to_go_on_from(where, series, monkeypatch):
    """Going on would count the epoch twice, or with a network that is neither the old one nor the new one."""
    search = series_search(series, stage_epochs=1, tune_epochs=1)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(growing_search, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(search)
    for go_on in (lambda: next(search.epochs()), search.state_dict):
        with pytest.raises(CheckpointError, match="interrupted inside a step"):
            go_on()


PLAN_MISTAKES = [
    ({"stages": 0}, r"^stages must be above 0, got 0\.$"),
    ({"stage_epochs": 0}, r"^stage_epochs must be above 0, got 0\.$"),
    ({"tune_epochs": -1}, r"^tune_epochs must be above 0, got -1\.$"),
    ({"patience": 0}, r"^patience must be above 0, got 0\.$"),
    ({"kept_operations": 0}, r"^kept_operations must be above 0, got 0\.$"),
    ({"delta": 0.0}, r"^delta must be above 0, got 0\.0: at 0 the new node's zeros get no gradient\.$"),
    ({"delta": math.nan}, r"^delta must be above 0, got nan"),
    ({"sigma": -0.1}, r"^sigma must be above 0, got -0\.1"),
]


@pytest.mark.parametrize(("changes", "message"), PLAN_MISTAKES)
@pytest.mark.parametrize("config", [growing.Config, growing_recurrent.Config])
def test_a_plan_that_makes_no_sense(config, changes, message):
    with pytest.raises(InvalidInput, match=message):
        config(**changes)


@pytest.mark.parametrize("config", [growing.Config(), growing_recurrent.Config()])
def test_an_unknown_mode(config):
    object.__setattr__(config, "mode", "prune-at-each-stage")  # the type checker of the tests refuses it elsewhere
    with pytest.raises(InvalidInput, match=r"^Unknown mode 'prune-at-each-stage'\. Did you mean 'prune-each-stage'"):
        config.__post_init__()


def test_what_can_not_grow_is_refused_at_once(series, images):
    """Not after a whole stage."""
    with pytest.raises(InvalidInput, match=r"^delta must be at least 0 and below 1/4, or weights could be negative"):
        series_search(series, delta=0.25)
    with pytest.raises(InvalidInput, match=r"^delta must be at least 0 and below 1/2"):
        image_search(images, delta=0.5)
    for operations, missing in ((("none", "sep_conv_3x3"), "skip_connect"), (("skip_connect", "sep_conv_3x3"), "none")):
        with pytest.raises(InvalidInput, match=f"'{missing}'.* it must be among the candidates"):
            image_search(images, space=replace(SPACE, operations=operations))
        image_search(images, space=replace(SPACE, operations=operations), stages=1)  # one stage grows nothing


# --- the configuration of images --------------------------------------------------------------------------------------


def test_the_registry():
    assert METHODS["growing"] is growing and growing.Search.method == "growing"
    assert SEQUENCE_METHODS["growing-recurrent"] is growing_recurrent
    assert growing_recurrent.Search.method == "growing-recurrent"


def test_epochs_and_rates_follow_from_the_plan():
    config = growing.Config(stages=3, stage_epochs=4, tune_epochs=2, mode=EACH)
    assert config.epochs == config.most_epochs == 18
    assert replace(config, mode=END).epochs == 14
    assert replace(config, learning_rate=0.5).final_learning_rate == 0.5
    assert growing.Config(**{f.name: getattr(config, f.name) for f in fields(config)}) == config
    assert hash(config) == hash(replace(config))
    for name in ("epochs", "final_learning_rate"):
        assert name not in asdict(config)
        with pytest.raises(TypeError, match=name):
            growing.Config(**{name: 3})
    with pytest.raises(FrozenInstanceError):
        config.stages = 2
    assert replace(growing.FIRST_SPACE, nodes=4) == DARTS_SPACE != growing.FIRST_SPACE


def test_all_other_numbers_are_darts():
    ours, theirs = growing.Config(), darts.Config()
    common = {f.name for f in fields(ours)} & {f.name for f in fields(theirs)}
    assert {f.name for f in fields(theirs)} - common == {"epochs", "final_learning_rate"}
    assert {name for name in common if getattr(ours, name) != getattr(theirs, name)} == {"order"}


@pytest.mark.parametrize("rules", [{"strategy": "small-weight"}, {"strategy": "splitting"}, {"exchange": "replace"}])
def test_convolutional_operations_have_no_copies(rules):
    with pytest.raises(InvalidInput, match=r"^operators: convolutional operations don't multiply"):
        growing.Config(operators=OperatorRules(**rules))
    growing.Config(operators=OperatorRules(prune_below=0.1))  # but they can go


# --- growing convolutional cells --------------------------------------------------------------------------------------


def edges_of(network):
    """The state of every candidate, by cell, edge, operation and name."""
    found = {}
    for place, (cell, kind) in enumerate(zip(network.cells, network.kinds, strict=True)):
        state = cell.state_dict(keep_vars=True)
        for row, edge in enumerate(network.spaces[kind].edges):
            prefix = f"edges.{row}."
            found.update({(place, edge, k.removeprefix(prefix)): v for k, v in state.items() if k.startswith(prefix)})
    return found


@pytest.mark.parametrize("mode", growing_search.MODES)
def test_a_convolutional_cell_grows(mode, images):
    search = image_search(images, mode=mode)
    reports = run_to_end(search).history
    assert {report.nodes for report in reports} >= {1, 2}
    assert [event.what for event in search.events][: 1 + (mode == EACH)] == ["prune", "node"][mode == END :]
    result = search.result()
    assert result.genotype.kinds == ("normal", "reduction")
    assert result.validation_accuracy == search.evaluate(search.final_network())[1]
    DerivedNetwork(result.genotype, 2, 3, images.classes, in_channels=1)
    for report in reports:
        assert all(len(report.weights[kind]) == len(rows) for kind, rows in report.coefficients.items())
        assert report.learning_rate == search.config.learning_rate
    assert [math.isnan(report.train_loss) for report in reports] == [False] * len(reports)


def test_what_a_growth_leaves_alone(images):
    """Weights, statistics and momenta of the old operations stay to the bit, and α of the old edges."""
    search = image_search(images, mode=END, stage_epochs=1)
    seen = script(search, [1.0, 0.5])
    next(search.epochs())
    before = image_search(images, mode=END, stage_epochs=1)
    before.network.load_state_dict(seen[0][0])
    before.update.weight_optimizer.load_state_dict(seen[0][1])
    before.update.architecture_optimizer.load_state_dict(seen[0][2])
    old, new = edges_of(before.network), edges_of(search.network)
    assert old.keys() < new.keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    momenta = 0
    for name, value in old.items():
        if value in before.update.weight_optimizer.state:
            momenta += 1
            expected = before.update.weight_optimizer.state[value]["momentum_buffer"]
            assert torch.equal(search.update.weight_optimizer.state[new[name]]["momentum_buffer"], expected)
            assert bool(expected.any())
    assert momenta > 10
    for kind in ("normal", "reduction"):
        a, b = (s.network.relaxations[kind].alpha for s in (before, search))
        assert a.shape == (2, 3) and b.shape == (5, 3)
        assert torch.equal(a, b[:2])
        a, b = (s.update.architecture_optimizer.state[alpha] for s, alpha in ((before, a), (search, b)))
        assert torch.equal(a["exp_avg"], b["exp_avg"][:2]) and not bool(b["exp_avg"][2:].any())
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"][:2]) and bool(a["exp_avg_sq"].all())
        assert torch.equal(b["exp_avg_sq"][2:], a["exp_avg_sq"].mean().expand(3, 3))
        assert a["step"] == b["step"] == 2


def test_a_growth_with_little_noise_keeps_the_function(images):
    search = image_search(images, mode=END, stage_epochs=1, delta=1e-6, sigma=1e-7)
    first = next(search.epochs())
    [event] = search.events
    assert event.loss_before == first.validation_loss
    assert event.loss_after == pytest.approx(first.validation_loss, abs=1e-5)
    assert event.parameters > first.parameters


def test_the_answer_is_evaluated_on_the_share_that_architectures_learn_from(images):
    search = image_search(images, stages=1)
    report = next(search.epochs())
    loader = search.loaders[1]
    network = SearchNetwork(dict.fromkeys(SPACE.kinds, SPACE), 2, 3, images.classes, in_channels=1)
    other = image_search(images, stages=1)
    seen = script(other, [1.0])
    next(other.epochs())
    network.load_state_dict(seen[0][0])
    assert (report.validation_loss, report.validation_accuracy) == evaluate(
        network, loader.images, loader.labels, images
    )
    rows = [{image.numpy().tobytes() for image in part.images} for part in search.loaders]
    assert len(rows[0]) == len(rows[1]) == 16 and not rows[0] & rows[1]


@pytest.mark.parametrize("order", darts.UPDATES)
def test_every_order_of_the_architecture_gradient(order, images):
    search = image_search(images, order=order, stage_epochs=1, mode=END)
    search.steps_per_epoch = 1
    run_to_end(search)
    assert type(search.update) is darts.UPDATES[order]
    assert search.history[-1].nodes == 2


# --- to the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", growing_search.MODES)
def test_a_search_that_stops_after_every_step(mode, images, tmp_path):
    """Each step is made by another object, which has nothing but the file of the one before."""
    plan = {"mode": mode, "stage_epochs": 1}
    expected = run_to_end(image_search(images, **plan))
    assert expected.history[-1].nodes == 2
    path, steps = tmp_path / "checkpoint.pt", 0
    search = image_search(images, **plan)
    while not search.finished:
        draw()
        stop_after(search, 1)
        search.save(path)
        search = image_search(images, **plan)
        search.load(path)
        steps += 1
    assert steps == 2 * len(expected.history)
    assert differences(ending(search), ending(expected)) == []


def test_a_search_is_a_function_of_its_seed_and_leaves_the_callers_generators_alone(images):
    ends = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        search = image_search(images, mode=END, stage_epochs=1)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append(ending(run_to_end(search)))
        state = torch.get_rng_state()
        search.result()
        search.state_dict()
        assert torch.equal(torch.get_rng_state(), state)
    assert differences(ends[0], ends[1]) == []
    other = next(image_search(images, seed=1, mode=END, stage_epochs=1).epochs())
    assert other.train_loss != ends[0]["history"][0]["train_loss"]


@pytest.mark.parametrize("mode", growing_search.MODES)
def test_patience_and_the_best_epochs_survive_a_checkpoint(mode, series, tmp_path):
    """Every epoch is made by another object; both levels of early stopping count across them."""
    plan = {"mode": mode, "stages": 3, "stage_epochs": 5, "tune_epochs": 5, "patience": 2}
    losses = [5.0, 4.0, 4.5, 4.5, 4.0, 3.5, 3.8, 3.6, 6.0, 6.2, 6.4, 9.0, 8.0, 8.5, 9.0, 9.0]
    expected = algorithm_2(losses, **plan)
    undisturbed = series_search(series, **plan)
    script(undisturbed, losses)
    run_to_end(undisturbed)
    search, path = series_search(series, **plan), tmp_path / "checkpoint.pt"
    script(search, losses)
    while not search.finished:
        next(search.epochs())
        search.save(path)
        search = series_search(series, **plan)
        script(search, losses)
        search.load(path)
    assert [(r.stage, r.tuning, r.nodes) for r in search.history] == expected.epochs
    assert {event.what for event in search.events} == {"prune", "node", "stop"}
    assert differences(ending(search), ending(undisturbed)) == []


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


KILLS = {
    "inside the first step": ("nasbook.training.bilevel.BilevelUpdate.weight_step", 1),
    "inside an epoch": ("nasbook.training.bilevel.BilevelUpdate.weight_step", 4),
    "inside the growth": ("nasbook.methods.growing_search.add_node", 1),
    "just after the growth": ("nasbook.methods.growing_search.count_parameters", 4),
    "inside the pruning": ("nasbook.methods.growing_search.prune", 1),
    "while a checkpoint is written": ("os.fsync", 2),
    "before a checkpoint is in its place": ("os.replace", 3),
}


@pytest.mark.parametrize(("mode", "steps"), [(EACH, 0), (EACH, 1), (END, 1)])
def test_a_search_that_is_killed_goes_on_from_its_checkpoint(mode, steps, series, tmp_path):
    plan = {"mode": mode, "stage_epochs": 1}
    expected = ending(run_to_end(series_search(series, **plan)))
    for place, (target, number) in KILLS.items():
        path, calls = tmp_path / place / "checkpoint.pt", itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            module, _, name = target.rpartition(".")
            owner = _found(module)
            original = getattr(owner, name)

            def replacement(*arguments, original=original, calls=calls, number=number, **options):
                if next(calls) == number:
                    raise Killed
                return original(*arguments, **options)

            patch.setattr(owner, name, replacement)
            with pytest.raises(Killed):
                drive(series_search(series, **plan), checkpoint=path, checkpoint_steps=steps, progress=False)
        draw()
        search = series_search(series, **plan)
        drive(search, checkpoint=path, checkpoint_steps=steps, resume=True, progress=False)
        assert differences(ending(search), expected) == [], place


def _found(path):
    """A module or a class by its dotted name."""
    import importlib

    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_a_checkpoint_of_another_search_is_refused(images, series, tmp_path):
    path = tmp_path / "checkpoint.pt"
    search = image_search(images)
    stop_after(search, 1)
    search.save(path)
    image_search(images, engine="readable", recompute_cells=1).load(path)  # how, not what
    for changes, message in (
        ({"patience": 1}, r"its config\.patience is 2, this run's is 1\."),
        ({"mode": END}, r"its config\.mode is 'prune-each-stage', this run's is 'prune-at-end'\."),
        ({"operators": OperatorRules(prune_below=0.1)}, r"its config\.operators\.prune_below is 0\.0, this run's is 0"),
        ({"seed": 1}, r"its seed is 0, this run's is 1"),
        ({"space": replace(SPACE, nodes=2)}, r"its space\.nodes is 1, this run's is 2"),
    ):
        with pytest.raises(CheckpointError, match=message):
            image_search(images, **changes).load(path)
    with pytest.raises(CheckpointError, match=r"its method is 'growing', this run's is 'growing-recurrent'"):
        series_search(series).load(path)


def test_a_derived_network_of_every_answer(images, series):
    for mode in growing_search.MODES:
        search = series_search(series, mode=mode, stages=2)
        for _ in search.epochs():
            result = search.result()  # in the middle too
            assert result.history == tuple(search.history)
            final = search.final_network()
            assert final is not search.network
            assert all(len(final.spaces[kind].candidates(*edge)) == 1 for kind in final.spaces
                       for edge in final.spaces[kind].edges)  # fmt: skip
            derived = DerivedRecurrentNetwork(result.genotype, series, 2)
            own = final.state_dict()
            derived.load_state_dict({key: own[key] for key in derived.state_dict()})
            inputs, _ = series.examples("validation")
            torch.testing.assert_close(derived(inputs), final.eval()(inputs))


def test_seeds_of_changes_are_apart(series):
    """What a growth draws depends on the run's seed and the epoch, not on what was drawn before."""
    search = series_search(series)
    first = torch.rand(3, generator=search._draws("node"))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3, generator=search._draws("node")), first)
    assert not torch.equal(torch.rand(3, generator=search._draws("prune")), first)
    assert not torch.equal(torch.rand(3, generator=series_search(series, seed=1)._draws("node")), first)
    search.epoch = 1
    assert not torch.equal(torch.rand(3, generator=search._draws("node")), first)
