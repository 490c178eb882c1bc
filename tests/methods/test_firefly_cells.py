"""Firefly on cells: which cell grows when and by how much, what widths mean, and the same bits after any stop."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from running import differences, draw, run_to_end, stop_after

from nasbook.analysis import count_parameters
from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.experiments import SCALES, SEARCH_CONFIGS, search_space
from nasbook.genotypes import CELL_SECTIONS, CellGenotype, Edge, Genotype, Space
from nasbook.growth import replay_history
from nasbook.methods import METHODS, firefly, firefly_cells
from nasbook.methods.firefly_cells import CellSearchReport, Config, derive_cell, growing_cell
from nasbook.methods.growth import Situation
from nasbook.networks import GROWING_SPACE, DerivedNetwork, GrowableCellNetwork
from nasbook.seeding import fold_seed
from nasbook.training import cosine, evaluate

SPACE = Space(("sep_conv_3x3", "dil_conv_3x3"), nodes=1)
ONE = Space(("dil_conv_3x3",), nodes=1)
TINY = {"rounds": 1, "epochs": 1, "direction_epochs": 1, "channels": 2, "width": 2, "new_neurons": 2, "batch_size": 24}


@pytest.fixture(scope="module")
def data():
    """48 images for the weights, 48 for growth: two steps an epoch."""
    return load_images("digits").take(96, 40)


def search_of(data, seed=0, space=SPACE, **changes):
    return firefly_cells.Search(Config(**{**TINY, **changes}), data, space, seed)


@pytest.fixture(scope="module")
def twice(data):
    """A search of two rounds that nobody disturbed."""
    return run_to_end(search_of(data, rounds=2, epochs=2))


def ending(search):
    """What a search has come to; not wall times, and not the global generators."""
    state = copy.deepcopy(search.state_dict())
    for name in ("seconds", "growth_seconds", "random"):
        del state[name]
    for part in (*state["history"], *state["events"]):
        del part["seconds"]
    return {**state, "genotype": search.result().genotype.to_json(), "neurons": search.network.neurons()}


# --- the timetable ----------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_paper():
    """B.3: 100 epochs, ten growths of five and five epochs; the rest as DARTS."""
    config = Config()
    growth = config.growth()
    assert (growth.growths, growth.epochs, growth.growth_epochs, growth.last_epochs) == (10, 5, 5, 0)
    fit = growth.fit()
    assert (fit.epochs, fit.batch_size, fit.momentum, fit.weight_decay, fit.clip) == (100, 64, 0.9, 3e-4, 5.0)
    assert (config.learning_rate, config.final_learning_rate, config.train_share) == (0.025, 0.001, 0.5)
    assert (config.channels, config.width, config.new_neurons, config.rate) == (16, 4, 4, 0.25)
    assert (config.activation, config.least_growth, config.edges_per_node) == ("identity", 0.2, None)
    assert growth.validation_share == 0.5 and growth.new_layers == 0 and growth.splits
    assert [growing_cell(number) for number in range(1, 11)] == [0, 1, 2, 3, 4] * 2


def test_the_defaults_are_darts_where_the_paper_refers_to_it():
    darts = METHODS["darts"].Config()
    ours = Config()
    shared = {"batch_size", "learning_rate", "final_learning_rate", "momentum", "weight_decay", "train_share", "stem"}
    assert {name: getattr(ours, name) for name in shared} == {name: getattr(darts, name) for name in shared}
    assert ours.growth().fit().clip == darts.clip


def test_training_and_growth_take_turns(twice):
    assert twice.total_epochs == 10 * (2 + 1) and twice.steps_per_epoch == 2
    assert [(r.phase, r.growing) for r in twice.history] == [
        (number + int(growing), growing) for number in range(10) for growing in (False, False, True)
    ]
    assert [event.epoch for event in twice.events] == [3 * number for number in range(1, 11)]
    assert twice.place(29) == (10, 0, True)
    assert all(event.method == "firefly-cells" for event in twice.events)


def test_one_cosine_over_the_whole_search(twice):
    expected = [0.0 if epoch % 3 == 2 else cosine(0.025, 0.001, epoch / 30) for epoch in range(30)]
    assert [report.learning_rate for report in twice.history] == pytest.approx(expected)


def test_the_cell_that_grows_and_by_how_much(twice):
    """1 to 5 and again; a quarter of its neurons; nothing else changes its width."""
    before = GrowableCellNetwork(SPACE, 2, 2, 10, in_channels=1).neurons()
    for number, event in enumerate(twice.events):
        own = {name for edge in twice.network.width_names(number % 5).values() for name in edge.values()}
        assert len(own) == 4
        changed = {name for name in before if event.neurons[name] != before[name]}
        assert changed and changed <= own
        added = sum(event.neurons.values()) - sum(before.values())
        assert added == round(0.25 * sum(before[name] for name in own)) > 0
        for name in changed:  # at most all splits, and m' doubled at each reduction
            starts = (2, 4, 4, 8, 8)[number % 5]
            assert event.neurons[name] <= 2 * before[name] + starts
        before = event.neurons
    assert before == twice.network.neurons()
    assert replay_history(GrowableCellNetwork(SPACE, 2, 2, 10, in_channels=1), twice.events).neurons() == before


def test_the_over_grown_network_has_the_candidates_of_one_cell(data):
    """All its neurons may split, and each operation has 4, 8, 8, 16, 16 new ones at the paper's numbers."""
    network = GrowableCellNetwork(replace(GROWING_SPACE, nodes=1), in_channels=1, classes=10)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for number, (new, width) in enumerate(zip((4, 8, 8, 16, 16), (4, 8, 8, 16, 16), strict=True), start=1):
        situation = Situation(network, optimizer, lambda: iter(()), lambda _: 0.0, 0, 1, number)
        growth = Config().growth().begin(situation)
        own = [name for edge in network.width_names(number - 1).values() for name in edge.values()]
        assert list(growth.overgrown.gates) == own
        kinds = [(candidate.width, candidate.kind) for candidate in growth.overgrown.candidates]
        assert {kind: kinds.count((own[0], kind)) for kind in ("split", "new")} == {"split": width, "new": new}
        assert growth.config.limits(network, own).neurons == 8 * width // 4
    assert Config(splits=False).growth().begin(situation).overgrown.gates[own[0]].splits is False


def test_limits_of_some_widths():
    network = GrowableCellNetwork(SPACE, 2, 2, 10, in_channels=1)
    config = firefly.Config(rate=0.3)
    names = list(network.neurons())[:4]
    assert config.limits(network, names).neurons == round(0.3 * 8)
    assert config.limits(network).neurons == round(0.3 * sum(network.neurons().values()))
    assert config.limits(network, names[:1]).neurons == 1
    each = replace(config, scope="width").limits(network, names)
    assert each.per_width == dict.fromkeys(names, 1) and each.neurons == 4


# --- what it learns from ----------------------------------------------------------------------------------------------


def test_weights_and_growth_have_halves_of_their_own(data, monkeypatch):
    search = search_of(data)
    loaders = (search.loader, search.growth_loader())
    parts = [{bytes(image.numpy().tobytes()) for image in loader.images} for loader in loaders]
    assert parts[0] | parts[1] == {bytes(image.numpy().tobytes()) for image in data.train_images}
    assert not parts[0] & parts[1]
    assert search.loader.seed != search.growth_loader().seed
    asked = []
    for name, loader in zip(("weights", "growth"), loaders, strict=True):

        def batch(index, name=name, take=loader.batch):
            asked.append((name, index))
            return take(index)

        monkeypatch.setattr(loader, "batch", batch)
    stop_after(search, 8)
    assert asked == [(("weights", "growth")[index // 2 % 2], index) for index in range(8)]


def test_weights_stay_while_a_cell_grows(data):
    search = search_of(data)
    stop_after(search, 2)
    before = copy.deepcopy(search.network.state_dict())
    stop_after(search, 1)
    assert search.place(search.epoch)[2] and search.step == 1
    assert not differences(search.network.state_dict(), before)


def test_step_one_leaves_all_statistics_in_place(data):
    """Those around the growing cell too: with closed gates the over-grown network is the old one, to the bit."""
    search = search_of(data)
    stop_after(search, 3)
    overgrown, images = search._growth.overgrown, search.growth_loader().batch(0)[0]
    reached = overgrown.epsilon()
    assert reached.abs().max() > 0
    overgrown.set_epsilon(0.0)
    with torch.no_grad():
        assert torch.equal(overgrown.eval()(images), search.network.eval()(images))
    overgrown.set_epsilon(reached)


def test_losses_of_an_event_are_those_of_the_validation_share(data):
    search = search_of(data)
    stop_after(search, 2)
    before = copy.deepcopy(search.network)
    stop_after(search, 2)
    [event] = search.events
    loader = search.growth_loader()
    for network, loss in ((before, event.loss_before), (search.network, event.loss_after)):
        assert loss == pytest.approx(evaluate(network, loader.images, loader.labels, data)[0], rel=1e-6)
    assert event.predicted < 0
    few = search_of(data, scored_images=10)
    stop_after(few, 4)
    assert few.events[0].loss_before != event.loss_before


def test_the_prediction_is_right_to_first_order(data):
    """New neurons with small gates: the loss changes by what the scores foresee."""
    search = run_to_end(search_of(data, radius=1e-3))
    for event in search.events:
        assert event.loss_after - event.loss_before == pytest.approx(event.predicted, rel=0.2, abs=2e-6)


def test_reports(twice, data):
    names = [field.name for field in fields(CellSearchReport)]
    assert names[-4:] == ["phase", "growing", "neurons", "parameters"]
    for report, following in zip(twice.history, twice.history[1:], strict=False):
        assert report.coefficients == {}
        assert CellSearchReport.from_state(report.to_state()) == report
        assert math.isfinite(report.train_loss)
        assert math.isfinite(report.validation_loss)
        if not following.growing:
            assert following.neurons == report.neurons and following.parameters == report.parameters
    last, loader = twice.history[-1], twice.growth_loader()
    assert last.neurons == twice.network.neurons()
    assert last.parameters == count_parameters(twice.network)
    assert last.genotype == twice.genotype() == twice.result().genotype
    assert (last.validation_loss, last.validation_accuracy) == evaluate(
        twice.network, loader.images, loader.labels, data
    )
    assert twice.result().validation_accuracy == last.validation_accuracy


def test_within_a_growth_the_validation_loss_is_that_of_the_epoch_before(data):
    search = run_to_end(search_of(data, space=ONE, direction_epochs=2))
    for first in range(0, 15, 3):
        trained, within, grown = search.history[first : first + 3]
        assert (within.growing, within.validation_loss) == (True, trained.validation_loss)
        assert grown.validation_loss != within.validation_loss


def test_before_the_first_growth_all_edges_are_identities(data):
    search = search_of(data)
    assert set(search.result().genotype.operations()) == {"skip_connect"}
    assert math.isnan(search.result().validation_accuracy)
    report = next(search.epochs())
    assert set(report.genotype.operations()) == {"skip_connect"}


def test_with_a_linear_transform_only_new_neurons_are_chosen(twice, data):
    """Splits score nothing (tests/networks/test_growing_cells.py); behind a ReLU they may win."""

    def split(search):
        sources = [
            own for event in search.events for name, *rest in event.cuts if name == "rewire" for own in rest[0].values()
        ]
        return sum(len(own) - len(set(own) - {-1}) - own.count(-1) for own in sources)

    assert split(twice) == 0
    assert split(run_to_end(search_of(data, space=ONE, activation="relu", new_neurons=0))) > 0
    alone = run_to_end(search_of(data, space=ONE, new_neurons=0))  # splits with scores of rounding errors
    assert all(event.predicted > -1e-6 for event in alone.events)


# --- derivation -------------------------------------------------------------------------------------------------------


def widths(**changes):
    """Two nodes, five edges, two operations that began with 5; changes by edge, as ``e02=(6, 5)``."""
    edges = [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    return {
        (s, t): dict(zip(("sep_conv_3x3", "dil_conv_3x3"), changes.get(f"e{s}{t}", (5, 5)), strict=True))
        for s, t in edges
    }


def chosen(cell):
    return {(edge.source, edge.target): edge.operation for edge in cell.edges}


def test_the_widest_operation_wins():
    found = chosen(derive_cell(widths(e02=(9, 7), e12=(7, 9), e03=(7, 7), e23=(5, 12)), 5))
    assert found == {
        (0, 2): "sep_conv_3x3",
        (1, 2): "dil_conv_3x3",
        (0, 3): "sep_conv_3x3",  # of equals the first
        (1, 3): "skip_connect",  # did not grow
        (2, 3): "dil_conv_3x3",
    }


@pytest.mark.parametrize("initial", [5, 10, 15, 35, 40, 105])
def test_20_percent_is_no_identity_and_one_neuron_less_is(initial):
    """"If all operations on the same edge grow less than 20 %" (B.3), without a rounding error."""
    exactly = initial + initial // 5
    edge = {(0, 2): {"sep_conv_3x3": initial, "dil_conv_3x3": exactly}}
    assert chosen(derive_cell(edge, initial)) == {(0, 2): "dil_conv_3x3"}
    edge[0, 2]["dil_conv_3x3"] -= 1
    assert chosen(derive_cell(edge, initial)) == {(0, 2): "skip_connect"}


def test_another_least_growth():
    edge = {(0, 2): {"sep_conv_3x3": 4, "dil_conv_3x3": 6}}
    assert chosen(derive_cell(edge, 4, 0.5)) == {(0, 2): "dil_conv_3x3"}
    assert chosen(derive_cell(edge, 4, 0.51)) == {(0, 2): "skip_connect"}
    assert chosen(derive_cell({(0, 2): {"sep_conv_3x3": 4}}, 4, 0.0)) == {(0, 2): "sep_conv_3x3"}


def test_edges_that_grew_most():
    given = widths(e02=(5, 5), e12=(6, 6), e03=(8, 5), e13=(5, 9), e23=(5, 8))
    assert chosen(derive_cell(given, 5, edges_per_node=1)) == {(1, 2): "sep_conv_3x3", (1, 3): "dil_conv_3x3"}
    two = chosen(derive_cell(given, 5, edges_per_node=2))
    assert two == {
        (0, 2): "skip_connect", (1, 2): "sep_conv_3x3", (0, 3): "sep_conv_3x3", (1, 3): "dil_conv_3x3"
    }  # fmt: skip
    assert derive_cell(given, 5, edges_per_node=7) == derive_cell(given, 5)
    assert chosen(derive_cell(widths(), 5, edges_per_node=1)) == {(0, 2): "skip_connect", (0, 3): "skip_connect"}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 12), st.sampled_from([None, 1, 2, 3]))
def test_derived_cells_follow_the_rule(data, initial, kept):
    names = GROWING_SPACE.operations
    grown = st.dictionaries(st.sampled_from(names), st.integers(initial, 3 * initial), min_size=4)
    given = {edge: data.draw(grown) for edge in GROWING_SPACE.edges}
    cell = derive_cell(given, initial, edges_per_node=kept)
    assert (cell.nodes, cell.output) == (4, (2, 3, 4, 5))
    for edge in cell.edges:
        own = given[edge.source, edge.target]
        if edge.operation == "skip_connect":
            assert all(5 * (count - initial) < initial for count in own.values())
        else:
            assert own[edge.operation] == max(own.values()) and 5 * (own[edge.operation] - initial) >= initial
    for node in range(2, 6):
        left_out = set(range(node)) - {edge.source for edge in cell.into(node)}
        assert len(left_out) == max(0, node - (kept or node))
        widest = {s: max(given[s, node].values()) for s in range(node)}
        assert all(widest[e.source] >= widest[s] for e in cell.into(node) for s in left_out)


def test_the_genotype_of_a_search(data):
    search = search_of(data, space=replace(ONE, nodes=2), edges_per_node=1)
    assert search.space.kinds == CELL_SECTIONS and search.space.kept(3) == 1
    run_to_end(search)
    genotype = search.result().genotype
    assert genotype.kinds == CELL_SECTIONS
    assert all(len(cell.edges) == 2 for _, cell in genotype.cells)
    assert Genotype.from_json(genotype.to_json()) == genotype
    for place, kind in enumerate(CELL_SECTIONS):
        expected = derive_cell(search.network.operation_widths(place), (2, 4, 4, 8, 8)[place], edges_per_node=1)
        assert genotype[kind] == expected
    network = DerivedNetwork(genotype, 2, 6, data.classes, in_channels=1)
    F.cross_entropy(network(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()


# --- stopped and resumed ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(data):
    return run_to_end(search_of(data, space=ONE))


def test_a_fresh_object_takes_over_after_every_step(data, undisturbed, tmp_path):
    """In training, within step one, and where a growth ends; twenty times."""
    path = tmp_path / "checkpoint.pt"
    search = search_of(data, space=ONE)
    for made in range(1, 21):
        stop_after(search, 1)
        assert (search.epoch, search.step) == divmod(made, 2)
        search.save(path)
        draw()
        search = search_of(data, space=ONE)
        search.load(path)
        draw()
    assert search.finished and len(search.events) == 5
    assert not differences(ending(search), ending(undisturbed))


def test_one_object_stops_after_every_step(data, undisturbed):
    search = search_of(data, space=ONE)
    while not search.finished:
        stop_after(search, 1)
        draw()
    assert not differences(ending(search), ending(undisturbed))


def test_images_of_16_pixels_are_kept_in_another_order(data, tmp_path):
    larger = {name: getattr(data, name).repeat_interleave(2, 2).repeat_interleave(2, 3)
              for name in ("train_images", "test_images")}  # fmt: skip
    larger = replace(data, **larger)
    expected = run_to_end(search_of(larger, space=ONE))
    search = search_of(larger, space=ONE)
    while not search.finished:
        stop_after(search, 7)
        search.save(tmp_path / "checkpoint.pt")
        search = search_of(larger, space=ONE)
        search.load(tmp_path / "checkpoint.pt")
    assert not differences(ending(search), ending(expected))


REFUSED = {
    "a seed": ({"seed": 1}, r"its seed is 0, this run's is 1\."),
    "an activation": ({"activation": "relu"}, r"its config\.activation is 'identity', this run's is 'relu'\."),
    "a rule": ({"least_growth": 0.3}, r"its config\.least_growth is 0\.2, this run's is 0\.3\."),
    "edges": ({"edges_per_node": 2}, r"its space\.edges_per_node is 2, this run's is|its config\.edges_per_node"),
    "a space": ({"space": replace(SPACE, nodes=2)}, r"its space\.nodes is 1, this run's is 2\."),
}


@pytest.mark.parametrize("other", REFUSED)
def test_a_checkpoint_of_another_search_is_refused(other, data, tmp_path):
    changes, message = REFUSED[other]
    search = search_of(data)
    stop_after(search, 1)
    search.save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=rf"is of another run: {message}"):
        search_of(data, **changes).load(tmp_path / "checkpoint.pt")


def test_the_initial_network_is_a_function_of_the_seed(data):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, other = (search_of(data, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert not differences(first.network.state_dict(), again.network.state_dict())
    assert differences(first.network.state_dict(), other.network.state_dict())
    assert first.growth_loader().seed == fold_seed(0, "growth images")


# --- wrong input, and the registry ------------------------------------------------------------------------------------

WRONG = {
    "rounds": ({"rounds": 0}, "^rounds must be above 0, got 0"),
    "epochs": ({"epochs": 0}, "^epochs must be above 0, got 0"),
    "direction_epochs": ({"direction_epochs": 0}, "^direction_epochs must be above 0, got 0"),
    "channels": ({"channels": -1}, "^channels must be above 0, got -1"),
    "width": ({"width": 0}, "^width must be above 0, got 0"),
    "rate": ({"rate": 0.0}, "^rate must be above 0, got 0.0"),
    "an endless rate": ({"rate": math.inf}, "^rate must be finite, got inf"),
    "train_share": ({"train_share": 1.0}, "^train_share must be between 0 and 1, got 1.0"),
    "final_learning_rate": ({"final_learning_rate": -0.1}, "^final_learning_rate must be at least 0, got -0.1"),
    "least_growth": ({"least_growth": math.nan}, "^least_growth must be at least 0, got nan"),
    "edges_per_node": ({"edges_per_node": 0}, "^edges_per_node must be above 0, got 0"),
    "new_neurons": ({"new_neurons": -1}, "must be 0 or more"),
    "nothing to choose": ({"new_neurons": 0, "splits": False}, "^There is nothing to choose from"),
    "batch_size": ({"batch_size": 1}, "^batch_size must be at least 2"),
    "radius": ({"radius": 0.0}, "^radius must be above 0, got 0.0"),
    "points": ({"points": 0}, "^points must be above 0, got 0"),
    "scored_images": ({"scored_images": 0}, "^scored_images must be above 0, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers(name):
    changes, message = WRONG[name]
    with pytest.raises(InvalidInput, match=message):
        Config(**changes)


def test_derive_cell_refuses():
    with pytest.raises(InvalidInput, match="^An edge has no operations to choose from"):
        derive_cell({(0, 2): {}}, 4)
    with pytest.raises(InvalidInput, match="^initial must be above 0, got 0"):
        derive_cell({(0, 2): {"sep_conv_3x3": 1}}, 0)
    with pytest.raises(InvalidInput, match="^edges_per_node must be above 0, got 0"):
        derive_cell({(0, 2): {"sep_conv_3x3": 1}}, 1, edges_per_node=0)


def test_a_space_whose_operations_cant_grow(data):
    with pytest.raises(InvalidInput, match="^'max_pool_3x3' has no channels that could grow"):
        search_of(data, space=Space(("max_pool_3x3",), nodes=1))


def test_the_search_at_every_scale():
    for name, scale in SCALES.items():
        config, space = SEARCH_CONFIGS["firefly-cells"](scale), search_space("firefly-cells", scale)
        assert type(config) is Config and config.rounds == 2
        assert set(space.operations) <= set(GROWING_SPACE.operations)
        assert space.kinds == CELL_SECTIONS
        if name == "paper":
            assert (config, space) == (Config(), GROWING_SPACE)
    cell = CellGenotype((Edge(0, 2, firefly_cells.IDENTITY),), nodes=1)
    assert cell.edges[0].operation == "skip_connect"
