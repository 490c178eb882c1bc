"""Growing recurrent cells: the paper's numbers, what survives a growth, operations that change, resuming, test data."""

from __future__ import annotations

import copy
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
import torch
from running import differences, draw, run_to_end, stop_after

from nasbook.data import load_series, load_text
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import DARTS_SPACE, Genotype, Space
from nasbook.methods import darts, growing_recurrent, growing_search
from nasbook.networks import RECURRENT_BACKBONES, DerivedRecurrentNetwork
from nasbook.supernets import OperatorRules
from nasbook.training import evaluate_sequences, sequence_loss

EACH, END = growing_search.MODES
BACKBONES = tuple(RECURRENT_BACKBONES)
SMALL = {
    "nodes": 1,
    "hidden": 2,
    "batch_size": 10,
    "learning_rate": 0.02,
    "architecture_learning_rate": 0.05,
    "stages": 2,
    "stage_epochs": 2,
    "tune_epochs": 1,
}


@pytest.fixture(scope="module")
def series():
    return load_series("simulated-brics", window=3).take(20, 12, 5)  # 2 steps an epoch


@pytest.fixture(scope="module")
def text():
    return load_text("grammar", window=4, most_words=12).take(20, 12, 5)


def search_of(data, seed=0, space=None, **changes):
    return growing_recurrent.Search(growing_recurrent.Config(**{**SMALL, **changes}), data, space, seed)


def ending(search):
    """What a search has come to; not wall times, and not the global generators, which each epoch begins anew."""
    state = copy.deepcopy(search.state_dict())
    del state["seconds"], state["random"]
    state["measured"] = state["measured"].nan_to_num(-1)  # tuning has no architecture loss
    for report in state["history"]:
        del report["seconds"]
    return {**state, "genotype": search.result().genotype.to_json()}


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_papers_settings(series):
    config = growing_recurrent.Config()
    assert (config.hidden, config.layers, config.batch_size) == (128, 1, 50)  # §4.1, §4.2
    assert (config.learning_rate, config.architecture_learning_rate) == (1e-3, 3e-4)
    assert (config.weight_decay, config.architecture_weight_decay) == (0, 0)  # "no regularization"
    assert (config.nodes, config.patience, config.stage_epochs, config.kept_operations) == (2, 2, 10, 1)
    assert config.delta == config.sigma  # "simply set δ = σ"
    assert config.operators == OperatorRules() and config.operators.strategy == "none"
    update = growing_recurrent.Search(replace(config, hidden=2), series).update
    for optimizer, rate in ((update.weight_optimizer, 1e-3), (update.architecture_optimizer, 3e-4)):
        assert type(optimizer) is torch.optim.Adam
        [group] = optimizer.param_groups
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (rate, (0.9, 0.999), 1e-8, 0)
    assert update.clip == 5 and update.loss is sequence_loss


def test_configurations_are_plain_values():
    config = growing_recurrent.Config()
    assert hash(config) == hash(replace(config)) and replace(config, nodes=3) != config
    assert growing_recurrent.Config(**{f.name: getattr(config, f.name) for f in fields(config)}) == config
    with pytest.raises(FrozenInstanceError):
        config.nodes = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({name: 0}, rf"^{name} must be above 0, got 0\.$") for name in ("nodes", "hidden", "layers", "batch_size")],
        *[
            ({name: -0.5}, rf"^{name} must be above 0, got -0\.5\.$")
            for name in ("learning_rate", "architecture_learning_rate", "clip")
        ],
        ({"learning_rate": math.nan}, r"^learning_rate must be above 0, got nan\.$"),
        ({"weight_decay": -1.0}, r"^weight_decay must be at least 0, got -1\.0\.$"),
        ({"architecture_weight_decay": math.nan}, r"^architecture_weight_decay must be at least 0, got nan\.$"),
        *[
            ({"backbone": "highway", "operators": OperatorRules(**rules)}, "^operators: in the highway backbone the op")
            for rules in ({"strategy": "small-weight"}, {"strategy": "splitting"}, {"exchange": "resample"})
        ],
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(InvalidInput, match=message):
        growing_recurrent.Config(**changes)


@pytest.mark.parametrize(
    ("field", "text"),
    [("backbone", "recurrent backbone 'two-to-on'. Did you mean 'two-to-one'"), ("order", "order"), ("engine", "eng")],
)
def test_wrong_names(field, text):
    config = growing_recurrent.Config()
    object.__setattr__(config, field, "two-to-on")  # the type checker of the tests refuses it elsewhere
    with pytest.raises(InvalidInput, match=f"^Unknown {text}"):
        config.__post_init__()


def test_operations_of_the_highway_cell_can_go():
    growing_recurrent.Config(backbone="highway", operators=OperatorRules(prune_below=0.1))


@pytest.mark.parametrize(
    ("backbone", "space", "message"),
    [
        ("darts", DARTS_SPACE, r"^A recurrent cell has 1 input node, this space has 2\.$"),
        ("darts", RECURRENT_BACKBONES["two-to-one"].space(2), "^Unknown operation of the DARTS recurrent cell 'sum'"),
        ("two-to-one", RECURRENT_BACKBONES["darts"].space(2), "^Unknown operation of the Two-to-One cell 'identity'"),
        ("highway", RECURRENT_BACKBONES["two-to-one"].space(2), "^Unknown operation of the highway .* 'sum'"),
        ("two-to-one", Space(("tanh", "sum"), 2, 1, 1), r"reads the node before it \(Eq\. 12\)"),
        ("two-to-one", Space(("tanh", "relu"), 1, 1, 1), "repeats the last one through 'sum': it must be among the c"),
        ("darts", Space(("tanh", "none"), 1, 1, 1), "repeats the last one through 'identity': it must be among the ca"),
    ],
)
def test_spaces_of_another_form(backbone, space, message, series):
    with pytest.raises(InvalidInput, match=message):
        search_of(series, backbone=backbone, space=space)


def test_candidates_of_ones_own(series):
    """A new node gets the candidates that the cell began with."""
    space = Space(("sum", "tanh"), 1, 1, 1)
    search = run_to_end(search_of(series, space=space, mode=END))
    assert search.history[-2].weights.keys() == {"two-to-one"}
    assert all(set(names) == {"sum", "tanh"} for _, _, names in search.history[2].weights["two-to-one"])
    assert search.history[2].nodes == 2


# --- searches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mode", growing_search.MODES)
def test_a_search_from_begin_to_end(backbone, mode, series):
    search = search_of(series, backbone=backbone, mode=mode)
    assert search.steps_per_epoch == 2
    before = evaluate_sequences(search.network, series)[0]
    reports = list(search.epochs())
    assert search.finished and search.history == reports
    assert {report.nodes for report in reports} >= {1, 2}
    assert min(report.validation_loss for report in reports) < before
    for report in reports:
        assert report.learning_rate == 0.02 and report.seconds > 0
        assert report.genotype[backbone].nodes == report.nodes
    result = search.result()
    assert isinstance(result.genotype, Genotype) and result.genotype.kinds == (backbone,)
    final = search.final_network()
    assert result.validation_accuracy == evaluate_sequences(final, series)[1]
    DerivedRecurrentNetwork(result.genotype, series, 2)
    for event in search.events:
        assert math.isfinite(event.loss_before) and math.isfinite(event.loss_after)


def test_the_first_report_is_of_all_validation_examples(series):
    search = search_of(series, mode=END, stages=1)
    networks = []
    original = search.evaluate
    search.evaluate = lambda network: (networks.append(copy.deepcopy(network)), original(network))[1]
    report = next(search.epochs())
    assert (report.validation_loss, report.validation_accuracy) == evaluate_sequences(networks[0], series)
    assert len(series.examples("validation")[0]) == 12  # not a multiple of the batch of 10


@pytest.mark.parametrize("layers", [1, 2])
def test_a_language_model(text, layers):
    search = search_of(text, layers=layers, nodes=2, stage_epochs=1)
    run_to_end(search)
    kinds = ("two-to-one",) if layers == 1 else ("two-to-one 1", "two-to-one 2")
    assert search.result().genotype.kinds == kinds
    assert {report.nodes for report in search.history} >= {2, 3}
    DerivedRecurrentNetwork(search.result().genotype, text, 2)


@pytest.mark.parametrize("order", darts.UPDATES)
def test_orders(order, series):
    search = search_of(series, order=order, stage_epochs=1)
    assert type(search.update) is darts.UPDATES[order]
    run_to_end(search)
    assert type(search.update) is darts.UPDATES[order] and search.history[2].nodes == 2


def test_the_orders_and_engines_give_what_they_should(series):
    def alpha(**changes):
        search = search_of(series, stages=1, **changes)
        next(search.epochs())
        return search.network.coefficients()["two-to-one"]

    first, second = alpha(), alpha(order="second-order")
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, alpha(engine="readable"), rtol=1e-4, atol=1e-6)


def test_a_small_part_makes_a_small_batch(series):
    search = search_of(series.take(20, 7), stages=1)
    assert [loader.batch_size for loader in search.loaders] == [10, 7]
    run_to_end(search)


# --- data -------------------------------------------------------------------------------------------------------------


def test_the_test_part_is_never_touched(series, text, monkeypatch):
    """Algorithm 2 evaluates on test data to decide when to stop; its text says validation, and so do we."""
    original = {type(data): type(data).examples for data in (series, text)}
    for kind, examples in original.items():

        def guarded(self, part, examples=examples):
            assert part in ("train", "validation"), part
            return examples(self, part)

        monkeypatch.setattr(kind, "examples", guarded)
    for data in (series, text):
        for mode in growing_search.MODES:
            search = run_to_end(search_of(data, mode=mode, operators=OperatorRules("splitting"), stage_epochs=3))
            search.result()


def test_poison_in_the_test_part_changes_nothing(series):
    returns = series.returns.clone()
    returns[series.ends[1] :] = math.nan
    poisoned = replace(series, returns=returns)
    assert bool(poisoned.examples("test")[1].isnan().all())
    histories = []
    for data in (series, poisoned):
        search = run_to_end(search_of(data))
        histories.append(([r.validation_loss for r in search.history], search.events, search.network.state_dict()))
    assert differences(histories[0], histories[1]) == []


def test_both_parts_that_are_there_for_it_are_used(series):
    """Weights learn from the training part, the architecture and the decisions from the validation part."""
    train, validation = (series.examples(part)[0] for part in ("train", "validation"))
    search = search_of(series, stages=1, stage_epochs=1)
    assert torch.equal(search.loaders[0].inputs, train) and torch.equal(search.loaders[1].inputs, validation)
    seen = []
    original = search.update.step
    search.update.step = lambda train, validation: (seen.append((train, validation)), original(train, validation))[1]
    next(search.epochs())
    for given, own in zip(zip(*seen, strict=True), (train, validation), strict=True):
        rows = {row.numpy().tobytes() for row in own}
        assert all(row.numpy().tobytes() in rows for inputs, _ in given for row in inputs)


# --- what a growth leaves alone ---------------------------------------------------------------------------------------


def moments(search):
    """The state of both optimisers by the names of parameters."""
    names = {parameter: name for name, parameter in search.network.named_parameters()}
    optimizers = search.update.weight_optimizer, search.update.architecture_optimizer
    return {names[p]: state for optimizer in optimizers for p, state in optimizer.state.items()}


def before_and_after(search, what):
    """Runs until a change, and returns the search as it was before it, and as it is after it."""
    original = {}

    def remembering(network, *arguments, **options):
        original.setdefault(what, copy.deepcopy({"network": network.state_dict(), "moments": moments(search)}))
        return functions[what](network, *arguments, **options)

    functions = {what: getattr(growing_search, what)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_search, what, remembering)
        for _ in search.epochs():
            if original:
                break
    return original[what], {"network": search.network.state_dict(), "moments": moments(search)}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_old_nodes_and_their_moments_survive_a_growth(backbone, series):
    search = search_of(series, backbone=backbone, mode=END, nodes=2, stage_epochs=3, patience=1)
    before, after = before_and_after(search, "add_node")
    alpha = f"relaxations.{backbone}.alpha"
    old = [name for name in before["network"] if name != alpha]
    assert differences({n: after["network"][n] for n in old}, {n: before["network"][n] for n in old}) == []
    assert len(after["network"]) > len(before["network"])
    assert before["moments"].keys() <= after["moments"].keys()
    rows = len(before["network"][alpha])
    for name, state in before["moments"].items():
        new = after["moments"][name]
        assert state["step"] == new["step"] > 0
        for key in ("exp_avg", "exp_avg_sq"):
            kept = new[key][:rows] if name == alpha else new[key]
            assert torch.equal(kept, state[key]) and bool(kept.any()), name
    # The new edges come behind the old ones; what is not new in α stays, and its coefficients with it.
    assert torch.equal(after["network"][alpha][:rows], before["network"][alpha])
    assert len(after["network"][alpha]) == rows + {"two-to-one": 1, "darts": 2, "highway": 3}[backbone]
    fresh = after["moments"][alpha]
    assert not bool(fresh["exp_avg"][rows:].any())  # and at the common count, squares as large as the old ones' mean
    mean = before["moments"][alpha]["exp_avg_sq"].mean()
    torch.testing.assert_close(fresh["exp_avg_sq"][rows:], mean.expand_as(fresh["exp_avg_sq"][rows:]))
    new_parameters = after["network"].keys() - before["network"].keys()
    assert new_parameters and not new_parameters & after["moments"].keys()  # nothing is known of what is new


@pytest.mark.parametrize("backbone", ["two-to-one", "darts"])
def test_what_is_kept_survives_a_pruning(backbone, series):
    search = search_of(series, backbone=backbone, nodes=3, stage_epochs=1)
    before, after = before_and_after(search, "prune")
    alpha = f"relaxations.{backbone}.alpha"
    assert after["network"].keys() < before["network"].keys()
    for name, value in after["network"].items():
        if name != alpha:
            assert torch.equal(value, before["network"][name])
    for name, state in after["moments"].items():
        if name != alpha:
            assert differences(state, before["moments"][name]) == []
    weights = {n for n, _ in search.network.named_parameters()} - {alpha}
    assert weights <= after["moments"].keys()
    [space] = search.network.spaces.values()
    assert len(space.edges) == 3 and all(len(space.candidates(*edge)) == 1 for edge in space.edges)
    report = search.history[0]
    for source, target in space.edges:  # the strongest of every node, zero left out
        into = [edge for edge in report.weights[backbone] if edge[1] == target]
        strongest = max((weight, name) for edge in into for name, weight in edge[2].items() if name != "none")
        assert space.candidates(source, target) == (strongest[1],)
    assert search.network.coefficients()[backbone].detach().amax(1).tolist() == [1, 1, 1]


def test_a_pruned_cell_grows_by_a_node_with_all_candidates(series):
    search = search_of(series, stage_epochs=1)
    reports = search.epochs()
    next(reports), next(reports)
    [space] = search.network.spaces.values()
    assert [len(space.candidates(*edge)) for edge in space.edges] == [1, 5]
    assert set(space.candidates(1, 2)) == set(search.space.operations)
    assert not search.tuning


def test_a_dead_node_that_a_new_one_reads_comes_back(series):
    """Pruning leaves out the parameters of nodes that nothing reads. In the DARTS cell a new node reads all of them."""
    search = search_of(series, backbone="darts", nodes=3, stage_epochs=1, architecture_learning_rate=1e-6, delta=1e-6)
    space = search.space
    with torch.no_grad():
        alpha = search.network.relaxation("darts").alpha.zero_()
        for edge, name in (((0, 1), "tanh"), ((1, 2), "relu"), ((1, 3), "sigmoid")):
            alpha[space.edges.index(edge), space.operations.index(name)] = 3.0
    reports = search.epochs()
    next(reports)
    assert search.tuning and search.network.cell("darts").needed == (1, 3)
    assert search.result().genotype["darts"].nodes == 3
    next(reports)
    assert search.network.spaces["darts"].edges == ((0, 1), (1, 2), (1, 3), (1, 4), (2, 4), (3, 4))
    assert search.network.cell("darts").needed == (1, 2, 3, 4)
    [_, node] = search.events
    assert node.loss_after == pytest.approx(node.loss_before, abs=1e-4)
    run_to_end(search)
    DerivedRecurrentNetwork(search.result().genotype, series, 2)


def test_the_new_node_can_learn(series):
    """At δ = σ = 0 it could not; with some noise every parameter of it gets a gradient."""
    for backbone in ("two-to-one", "darts"):
        search = search_of(series, backbone=backbone, mode=END, stage_epochs=1)
        next(search.epochs())
        search.network.train()
        inputs, targets = series.examples("train")
        sequence_loss(search.network(inputs), targets).backward()
        for name, parameter in search.network.named_parameters():
            assert bool(parameter.grad.any()), name


# --- operations that change -------------------------------------------------------------------------------------------

RULES = {
    "small-weight": OperatorRules("small-weight", grow_above=0.2, share=0.15, most_candidates=6, prune_below=0.1),
    "splitting": OperatorRules("splitting", most_candidates=7),
    "replace": OperatorRules(exchange="replace", grow_above=0.2, share=0.3),
    "resample": OperatorRules(exchange="resample", grow_above=0.2),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("backbone", ["two-to-one", "darts"])
def test_operations_change_within_a_stage(rules, backbone, series):
    search = search_of(
        series, backbone=backbone, operators=RULES[rules], mode=END, nodes=2, stage_epochs=4, patience=1,
        kept_operations=3,
    )  # fmt: skip
    run_to_end(search)
    what = "split" if rules == "splitting" else "operations"
    changes = [event for event in search.events if event.what == what]
    assert changes and all(event.operations for event in changes)
    assert [event for event in search.events if event.operations] == changes
    assert [event.epoch for event in search.events] == sorted(event.epoch for event in search.events)
    for event in changes:
        report = search.history[event.epoch - 1]
        assert not report.tuning and report.stage == event.stage
        for change in event.operations:
            assert change["kind"] == backbone
            assert sum(change["weights_after"].values()) == pytest.approx(1)
            shown = {(s, t): names for s, t, names in report.weights[backbone]}
            if report.epoch == event.epoch and what == "operations":
                assert change["edge"] in shown
    final = search.final_network()
    genotype = search.result().genotype
    assert DerivedRecurrentNetwork(genotype, series, 2)
    for edge in final.spaces[backbone].edges:
        kept = [e.operation for e in genotype[backbone].edges if (e.source, e.target) == edge]
        assert sorted(kept) == sorted(final.spaces[backbone].candidates(*edge)) and 1 <= len(kept) <= 3


def parts(search):
    """What a step changes, as it is now."""
    update = search.update
    return [part.state_dict() for part in (search.network, update.weight_optimizer, update.architecture_optimizer)]


def script(search, losses):
    """Gives the search the validation loss of every epoch."""
    search.evaluate = lambda network: (losses[min(search.epoch, len(losses) - 1)], 0.5)


def test_a_change_of_operations_that_does_not_help_is_undone(series):
    rules = OperatorRules("small-weight", grow_above=0.05, share=0.1, most_candidates=9)
    plan = {"mode": END, "stages": 1, "patience": 2, "operators": rules, "kept_operations": 9}
    search = search_of(series, stage_epochs=9, **plan)
    script(search, [3.0, 2.0, 2.5, 2.5, 1.0])
    for report in search.epochs():
        if report.epoch == 4:
            break
    assert [(event.epoch, event.what) for event in search.events] == [
        (1, "operations"), (2, "operations"), (3, "operations"), (4, "prune")
    ]  # fmt: skip
    counts = [len(report.weights["two-to-one"][0][2]) for report in search.history]
    assert counts == [5, 6, 7, 8]
    assert search.tuning and len(search.network.spaces["two-to-one"].candidates(0, 1)) == 6  # the second epoch's
    undisturbed = search_of(series, stage_epochs=2, **plan)
    script(undisturbed, [3.0, 2.0])
    reports = undisturbed.epochs()
    next(reports), next(reports)
    assert undisturbed.tuning
    for got, expected in zip(parts(search), parts(undisturbed), strict=True):
        assert differences(got, expected) == []


def test_splits_end_where_they_bring_nothing(series, monkeypatch):
    calls = []
    original = growing_search.split_operators
    monkeypatch.setattr(growing_search, "split_operators", lambda *a: (calls.append(1), original(*a))[1])
    rules = replace(RULES["splitting"], most_candidates=20)
    for losses, expected in (
        ([3.0, 3.0, 3.0, 1.0], [2, 3]),  # no fall after the split: the stage ends
        ([3.0, 3.0, 2.0, 2.0, 2.0, 1.0], [2, 4, 5]),  # a fall, so one more split, which brings nothing
        ([3.0, 2.0, 1.0, 0.5, 0.4], [5]),  # stage_epochs: no time is left to train what is new
    ):
        calls.clear()
        search = search_of(series, mode=END, stages=1, stage_epochs=5, patience=1, operators=rules)
        script(search, losses)
        run_to_end(search)
        assert [e.epoch for e in search.events] == expected
        assert [e.what for e in search.events] == ["split"] * (len(expected) - 1) + ["prune"]
        assert len(calls) == len(expected) - 1


# --- to the same bits -------------------------------------------------------------------------------------------------

CASES = {
    "two-to-one, at each stage": {"backbone": "two-to-one", "mode": EACH, "stages": 3},
    "two-to-one, at the end": {"backbone": "two-to-one", "mode": END, "order": "second-order"},
    "darts, at each stage": {"backbone": "darts", "mode": EACH, "nodes": 2, "layers": 2},
    "darts, at the end": {"backbone": "darts", "mode": END, "stages": 3},
    "highway": {"backbone": "highway", "mode": EACH},
    "small weights": {"operators": RULES["small-weight"], "mode": EACH, "stage_epochs": 3, "kept_operations": 2},
    "splitting": {"operators": RULES["splitting"], "mode": END, "stage_epochs": 4, "patience": 1, "learning_rate": 0.1},
    "resample": {"operators": RULES["resample"], "mode": END, "stage_epochs": 3, "backbone": "darts"},
}


CHANGES = {"small weights": {"operations"}, "splitting": {"split"}, "resample": {"operations"}}


@pytest.mark.parametrize("case", CASES)
def test_a_search_that_stops_after_every_step(case, series, tmp_path):
    """Each step is made by another object, which has nothing but the file of the one before."""
    expected = run_to_end(search_of(series, **CASES[case]))
    assert {event.what for event in expected.events} >= {"prune", "node"} | CHANGES.get(case, set())
    path, steps = tmp_path / "checkpoint.pt", 0
    search = search_of(series, **CASES[case])
    while not search.finished:
        draw()
        stop_after(search, 1)
        search.save(path)
        search = search_of(series, **CASES[case])
        search.load(path)
        steps += 1
    assert steps == 2 * len(expected.history)
    assert differences(ending(search), ending(expected)) == []


@pytest.mark.parametrize("mode", growing_search.MODES)
def test_every_checkpoint_of_a_search_leads_to_the_same_end(mode, series, tmp_path):
    """Also with a part of an epoch, or with a stage's best parameters, in the object that loads it."""
    expected = run_to_end(search_of(series, mode=mode))
    search, total = search_of(series, mode=mode), 2 * len(expected.history)
    for step in range(1, total):
        stop_after(search, 1)
        search.save(tmp_path / f"{step}.pt")
    used = search_of(series, mode=mode)
    for step in (total - 1, 1, total // 2, 3, total // 2 + 1):  # back and forth between structures
        used.load(tmp_path / f"{step}.pt")
        run_to_end(used)
        assert differences(ending(used), ending(expected)) == [], step


def test_a_search_is_a_function_of_its_seed(series):
    ends = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        search = search_of(series, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append(ending(run_to_end(search)))
        state = torch.get_rng_state()
        search.result()
        search.load_state_dict(search.state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert differences(ends[0], ends[1]) == []
    assert differences(ends[0]["now"]["network"], ends[2]["now"]["network"])
    assert [r["train_loss"] for r in ends[0]["history"]] != [r["train_loss"] for r in ends[2]["history"]]


def test_a_state_shares_nothing_with_the_search(series):
    search = search_of(series)
    next(search.epochs())
    state = search.state_dict()
    kept = copy.deepcopy(state)
    run_to_end(search)
    assert differences(state, kept) == []
    other = search_of(series)
    other.load_state_dict({**state, "measured": state["measured"].clone()})  # a run goes on in this tensor
    run_to_end(other)
    assert differences(state, kept) == []
    assert differences(ending(other), ending(search)) == []


def test_how_optimisers_run_is_not_taken_from_a_checkpoint(series):
    """One that was written on CUDA has them update in one kernel; on a CPU that rounds otherwise."""
    search = search_of(series, mode=END, stage_epochs=1)
    next(search.epochs())
    expected = ending(run_to_end(search_of(series, mode=END, stage_epochs=1)))
    state = search.state_dict()
    for snapshot in (state["now"], state["best"]):
        for name in ("weight_optimizer", "architecture_optimizer"):
            for group in snapshot[name]["param_groups"]:
                group.update(fused=True, foreach=False)
    other = search_of(series, mode=END, stage_epochs=1)
    other.load_state_dict(state)
    for optimizer in (other.update.weight_optimizer, other.update.architecture_optimizer):
        assert [(group["fused"], group["foreach"]) for group in optimizer.param_groups] == [(False, True)]
    run_to_end(other)
    for got in (found := ending(other), expected):
        got["best"] = {k: v for k, v in got["best"].items() if not k.endswith("optimizer")}  # as it was written
    assert differences(found, expected) == []


def test_a_checkpoint_of_another_search_is_refused(series, text, tmp_path):
    path = tmp_path / "checkpoint.pt"
    search = search_of(series, operators=RULES["small-weight"])
    next(search.epochs())
    search.save(path)
    search_of(series, operators=RULES["small-weight"], engine="readable").load(path)  # how, not what
    for data, changes, message in (
        (series, {}, r"its config\.operators\.strategy is 'small-weight', this run's is 'none'"),
        (series, {"operators": RULES["small-weight"], "hidden": 3}, r"its config\.hidden is 2, this run's is 3"),
        (series, {"operators": RULES["small-weight"], "backbone": "darts"}, r"its space\.operations is "),
        (series.take(19), {"operators": RULES["small-weight"]}, r"its data is "),
        (series, {"operators": RULES["small-weight"], "seed": 3}, r"its seed is 0, this run's is 3"),
    ):
        with pytest.raises(CheckpointError, match=message):
            search_of(data, **changes).load(path)


def test_events_survive_a_checkpoint(series, tmp_path):
    search = run_to_end(search_of(series, operators=RULES["small-weight"], mode=END))
    assert any(event.operations for event in search.events)
    search.save(tmp_path / "checkpoint.pt")
    other = search_of(series, operators=RULES["small-weight"], mode=END)
    other.load(tmp_path / "checkpoint.pt")
    assert other.events == search.events
    assert all(isinstance(event, growing_search.CellEvent) for event in other.events)
    assert differences([asdict(e) for e in other.events], [asdict(e) for e in search.events]) == []
    assert other.finished and list(other.epochs()) == []
    assert differences([r.to_state() for r in other.history], [r.to_state() for r in search.history]) == []
