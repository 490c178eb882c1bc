"""Stretchable Cells as a search: spaces, shares, optimisers, checkpoints, engines."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.methods import milenas, random_search, stretchable
from nasbook.seeding import seed_everything
from nasbook.supernets import AnyOutputEdges, InputEdges, OutputEdges, SearchNetwork
from nasbook.training import Batch, FiniteDifference, Objective, SecondOrder, drive

SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=3)
SMALL = {"batch_size": 16, "channels": 2, "cells": 3, "epochs": 2, "architecture_learning_rate": 0.1}
KINDS = {"any-output-edges": AnyOutputEdges, "output-edges": OutputEdges, "input-edges": InputEdges}
THREE = {"train_share": 1 / 3, "topology_share": 1 / 3}


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def search_of(data, seed=0, space=SPACE, **changes):
    return stretchable.Search(stretchable.Config(**{**SMALL, **changes}), data, space, seed)


# --- spaces and topologies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", stretchable.TOPOLOGIES)
def test_the_space_of_every_topology(data, topology):
    """No zero operation; and without the edges that no node can choose."""
    search = search_of(data, topology=topology)
    assert search.space.operations == ("skip_connect", "sep_conv_3x3")
    assert search.space.left_out == (((3, 4),) if topology == "output-edges" else ())
    assert search.network.space == search.space
    assert set(search.topologies()) == {"normal", "reduction"}
    for relaxation in search.topologies().values():
        assert type(relaxation) is KINDS[topology]
        assert relaxation.penalty_weight == 10
        assert relaxation.scaled == (topology != "input-edges")
        assert len(relaxation.alpha) == len(search.space.edges) == (8 if topology == "output-edges" else 9)
    assert all(len(cell.edges) == len(search.space.edges) for cell in search.network.cells)


def test_the_configuration_reaches_the_relaxations(data):
    search = search_of(data, penalty_weight=3.0, empty_choice=False)
    assert {relaxation.penalty_weight for relaxation in search.topologies().values()} == {3.0}
    assert [len(sets) for sets in search.topologies()["normal"].choices] == [7, 7, 3, 1]
    assert [len(sets) for sets in search_of(data).topologies()["normal"].choices] == [8, 8, 4, 2]
    search = search_of(data, topology="output-edges", edges_per_node=3)
    assert search.space.left_out == ((2, 3), (2, 4), (3, 4))
    assert [len(sets) for sets in search.topologies()["normal"].choices] == [1, 1]
    assert search.space.edges_per_node == 3
    search = search_of(data, topology="input-edges", edges_per_node=1)
    assert [len(sets) for sets in search.topologies()["normal"].choices] == [2, 3, 4]


def test_too_many_edges_a_node_are_refused(data):
    with pytest.raises(InvalidInput, match=r"^left_out: node 2 would have no incoming edge\.$|^No node has 4 later"):
        search_of(data, topology="output-edges", edges_per_node=4)


def test_the_papers_settings():
    config = stretchable.Config()
    assert (config.topology, config.train_weight, config.validation_weight) == ("any-output-edges", 1.0, 1.0)
    assert (config.penalty_weight, config.cells, config.epochs, config.batch_size) == (10.0, 8, 50, 64)
    assert (config.order, config.topology_share, config.empty_choice) == ("first-order", 0.0, True)
    assert replace(stretchable.DARTS_PAIRS, train_weight=1.0, topology="any-output-edges") == config
    assert (stretchable.DARTS_PAIRS.train_weight, stretchable.DARTS_PAIRS.edges_per_node) == (0.0, 2)
    assert stretchable.IMAGENET.stem == "imagenet"
    assert stretchable.IMAGENET.train_share == stretchable.IMAGENET.topology_share == 1 / 3
    space = stretchable.STRETCHABLE_SPACE
    assert (space.nodes, space.inputs) == (6, 2)
    assert space.operations == DARTS_SPACE.choices
    old = {field.name: getattr(milenas.Config(), field.name) for field in fields(milenas.Config)}
    assert all(getattr(config, name) == value for name, value in old.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges_per_node": 0}, r"^edges_per_node must be above 0, got 0\.$"),
        ({"penalty_weight": -1.0}, r"^penalty_weight must be at least 0, got -1\.0\.$"),
        ({"penalty_weight": math.nan}, r"^penalty_weight must be at least 0, got nan\.$"),
        ({"topology_weight_decay": -0.1}, r"^topology_weight_decay must be at least 0, got -0\.1\.$"),
        ({"topology_learning_rate": 0.0}, r"^topology_learning_rate must be above 0, got 0\.0\.$"),
        ({"topology_share": 0.5}, r"^topology_share must be at least 0 .* operations, below 0\.5; got 0\.5\.$"),
        ({"topology_share": -0.1}, r"^topology_share must be at least 0 and leave images .*; got -0\.1\.$"),
        ({"topology_share": math.nan}, r"^topology_share must be at least 0 and leave images .*; got nan\.$"),
        ({"train_weight": 0.0, "validation_weight": 0.0}, r"^the sum of both weights must be above 0"),
        ({"train_share": 1.0}, r"^train_share must be between 0 and 1, got 1\.0\.$"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(InvalidInput, match=message):
        stretchable.Config(**changes)


def test_an_unknown_topology():
    config = stretchable.Config()
    object.__setattr__(config, "topology", "output-edge")  # the type checker of the tests refuses it elsewhere
    with pytest.raises(InvalidInput, match=r"^Unknown topology 'output-edge'\. Did you mean 'output-edges'"):
        config.__post_init__()


def test_zero_is_a_fine_penalty_and_decay():
    config = stretchable.Config(penalty_weight=0.0, topology_weight_decay=0.0)
    assert (config.penalty_weight, config.topology_weight_decay) == (0.0, 0.0)


# --- shares -----------------------------------------------------------------------------------------------------------


def images_of(loader) -> set[bytes]:
    return {image.numpy().tobytes() for image in loader.images}


@pytest.mark.parametrize(
    ("changes", "names", "sizes"),
    [
        ({}, ["train", "validation"], [48, 48]),
        ({"train_share": 0.25}, ["train", "validation"], [24, 72]),
        (THREE, ["train", "validation", "topology"], [32, 32, 32]),
        ({"train_share": 0.5, "topology_share": 0.25}, ["train", "validation", "topology"], [48, 24, 24]),
    ],
)
def test_shares_are_disjoint_and_cover_the_training_images(data, changes, names, sizes):
    search = search_of(data, **changes)
    assert list(search.shares()) == names
    assert sum(search.shares().values()) == pytest.approx(1)
    parts = [images_of(loader) for loader in search.loaders]
    whole = {image.numpy().tobytes() for image in data.train_images}
    assert len(whole) == 96
    assert [len(part) for part in parts] == [len(loader.labels) for loader in search.loaders] == sizes
    assert set().union(*parts) == whole and sum(map(len, parts)) == len(whole)


def test_two_shares_are_those_of_milenas(data):
    """So that both methods see the same images in the same order."""
    other = milenas.Search(milenas.Config(**SMALL), data, SPACE, 5)
    for one, two in zip(search_of(data, 5).loaders, other.loaders, strict=True):
        assert torch.equal(one.images, two.images)
        assert all(torch.equal(a, b) for a, b in zip(one.batch(4), two.batch(4), strict=True))


def test_three_shares_feed_the_three_kinds_of_parameters(data, monkeypatch):
    search = search_of(data, **THREE)
    given = []
    step = search.update.step
    monkeypatch.setattr(search.update, "step", lambda *batches: (given.append(batches), step(*batches))[1])
    next(search.epochs())
    assert len(given) == search.steps_per_epoch == 2
    for index, batches in enumerate(given):
        assert len(batches) == 3
        for batch, loader in zip(batches, search.loaders, strict=True):
            assert torch.equal(batch[0], loader.batch(index)[0])


def test_three_shares_give_alpha_and_beta_gradients_of_their_own(data):
    search = search_of(data, **THREE)
    train, first, second = (loader.batch(0) for loader in search.loaders)
    whole = [search.update.architecture_gradient(train, batch).gradients for batch in (first, second)]
    seen = {}

    def look(*_):
        seen.update({id(parameter): parameter.grad.clone() for parameter in search.network.architecture()})

    search.update.architecture_optimizer.register_step_pre_hook(look)
    search.update.step(train, first, second)
    for place, (name, parameter) in enumerate(search.network.relaxations.named_parameters()):
        own, other = (0, 1) if name.endswith("alpha") else (1, 0)
        torch.testing.assert_close(seen[id(parameter)], whole[own][place], rtol=1e-4, atol=1e-7)
        assert not torch.allclose(seen[id(parameter)], whole[other][place], rtol=1e-2, atol=1e-7)


# --- optimisers -------------------------------------------------------------------------------------------------------


def test_alpha_and_beta_have_groups_of_their_own(data):
    search = search_of(data, topology_learning_rate=0.03, topology_weight_decay=0.02)
    alpha, beta = search.update.architecture_optimizer.param_groups
    assert isinstance(search.update.architecture_optimizer, torch.optim.Adam)
    named = dict(search.network.relaxations.named_parameters())
    assert {id(p) for p in alpha["params"]} == {id(p) for name, p in named.items() if name.endswith("alpha")}
    assert {id(p) for p in beta["params"]} == {id(p) for name, p in named.items() if name.endswith("beta")}
    assert (alpha["lr"], alpha["weight_decay"], alpha["betas"]) == (0.1, 1e-3, (0.5, 0.999))
    assert (beta["lr"], beta["weight_decay"], beta["betas"]) == (0.03, 0.02, (0.5, 0.999))
    assert [g["lr"] for g in search_of(data).update.architecture_optimizer.param_groups] == [0.1, 0.1]
    zero = search_of(data).update.architecture_optimizer.param_groups
    assert [group["weight_decay"] for group in zero] == [1e-3, 0.0]


def test_the_objective_is_the_configurations(data):
    assert search_of(data).update.objective == Objective(1.0, 1.0)
    assert search_of(data, train_weight=0.0).update.objective == Objective(0.0, 1.0)
    for order, update in {"second-order": SecondOrder, "finite-difference": FiniteDifference}.items():
        assert type(search_of(data, order=order).update) is update


def test_the_penalty_reaches_the_search(data):
    """λ·∇r(β) is in β's gradient, and in nothing else's."""
    results = []
    for weight in (0.0, 1000.0):
        search = search_of(data, penalty_weight=weight)
        relaxations = search.topologies().values()
        for relaxation in relaxations:
            for start in (0, 8):  # both inputs choose nothing, by far
                nn.init.constant_(relaxation.beta[start : start + 1], 0.5)
            assert float(relaxation.invalidity().detach()) > 0
        gradients = search.update.architecture_gradient(*(loader.batch(0) for loader in search.loaders)).gradients
        names = [name for name, _ in search.network.relaxations.named_parameters()]
        results.append(dict(zip(names, gradients, strict=True)))
    slopes = torch.autograd.grad(sum(r.invalidity() for r in relaxations), [r.beta for r in relaxations])
    for kind, slope in zip(search.topologies(), slopes, strict=True):
        difference = results[1][f"{kind}.beta"] - results[0][f"{kind}.beta"]
        torch.testing.assert_close(difference, 1000 * slope, rtol=1e-4, atol=1e-3)
        assert torch.equal(results[0][f"{kind}.alpha"], results[1][f"{kind}.alpha"])
        assert float(slope.abs().max()) > 0.1


# --- reports and checkpoints ------------------------------------------------------------------------------------------


def state_of(search):
    """All that counts of a finished search; without wall times, and without the generators that epochs begin anew."""
    state = copy.deepcopy(search.state_dict())
    for part in (state, *state["history"]):
        part.pop("seconds")
    state.pop("random")
    return state


def assert_same(one, other, where="state"):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
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


@pytest.mark.parametrize("topology", stretchable.TOPOLOGIES)
def test_a_report_says_how_likely_edges_are(data, topology):
    search = search_of(data, topology=topology, cells=1)
    for report in search.epochs():
        assert type(report) is stretchable.Report
        for kind, relaxation in search.topologies().items():
            p = report.edge_probabilities[kind]
            assert torch.equal(p, relaxation.edge_probabilities().detach()) and not p.requires_grad
            assert p.shape == (len(search.space.edges),) and bool((p > 0).all()) and bool((p <= 1 + 1e-6).all())
        assert report.penalty == sum(float(r.invalidity().detach()) for r in search.topologies().values())
        assert report.genotype == search.network.genotype()
    assert not torch.equal(*(r.edge_probabilities["reduction"] for r in search.history))  # the one cell's kind


def test_reports_survive_a_checkpoint(data, tmp_path):
    search = search_of(data)
    next(search.epochs())
    search.save(tmp_path / "checkpoint.pt")
    other = search_of(data)
    other.load(tmp_path / "checkpoint.pt")
    (old,), (new,) = search.history, other.history
    assert type(new) is stretchable.Report
    assert_same(old.to_state(), new.to_state())
    assert new.penalty == old.penalty
    for kind in ("normal", "reduction"):
        assert torch.equal(new.edge_probabilities[kind], old.edge_probabilities[kind])


class PowerCut(BaseException):
    """Ends a search in the middle, as nothing in the package expects."""


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 24}, {**THREE}, {"topology": "input-edges", "order": "second-order", **THREE}],
    ids=["any number", "three shares", "input edges, second order, three shares"],
)
def test_killed_after_any_step_it_resumes_to_the_same_bits(data, tmp_path, changes):
    """What is left of a search that is killed in step k is the checkpoint of step k − 1: each of them is kept here."""
    changes = {"space": Space(SPACE.operations, 2), "cells": 1, **changes}
    victim, path = search_of(data, **changes), tmp_path / "checkpoint.pt"
    step, kept = victim.update.weight_optimizer.step, []

    def cut():
        kept.append(path.read_bytes() if path.exists() else None)
        if len(kept) == 4:
            raise PowerCut  # α and β have moved, w has not
        return step()

    victim.update.weight_optimizer.step = cut
    with pytest.raises(PowerCut):
        drive(victim, checkpoint=path, checkpoint_steps=1, progress=False)
    kept[3] = path.read_bytes()
    assert kept[0] is None and None not in kept[1:]

    ends = []
    for number, content in enumerate(kept):  # the first has nothing to go on from: it is the undisturbed one
        seed_everything(number)
        survivor, path = search_of(data, **changes), tmp_path / f"{number}.pt"
        if content is not None:
            path.write_bytes(content)
        drive(survivor, checkpoint=path, checkpoint_steps=0, resume=True, progress=False)
        assert survivor.total_epochs * survivor.steps_per_epoch == 4
        ends.append((state_of(survivor), survivor.result().genotype.to_json()))
    for end in ends[1:]:
        assert_same(end, ends[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"topology": "input-edges"},
        {"edges_per_node": 3},
        {"penalty_weight": 1.0},
        {"empty_choice": False},
        {"topology_learning_rate": 0.2},
        {"topology_share": 0.2},
        {"train_weight": 0.0},
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(data, tmp_path, changes):
    search_of(data).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        search_of(data, **changes).load(tmp_path / "checkpoint.pt")


# --- engines ----------------------------------------------------------------------------------------------------------

BOUND = 1e-9


def both_engines(data, **changes):
    """A fused and a readable search in float64 with the same parameters, all far from equal."""
    space = Space(("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"), 4)
    searches = [search_of(data, engine=engine, space=space, **changes) for engine in ("fused", "readable")]
    torch.manual_seed(4)
    for parameter in searches[0].network.architecture():
        nn.init.normal_(parameter)
    searches[1].network.load_state_dict(searches[0].network.state_dict())
    for search in searches:
        search.network.double()
        assert search.network.engine == search.config.engine
    return searches


def double_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (6,), generator=generator)


def assert_near(fused: dict[str, torch.Tensor], readable: dict[str, torch.Tensor], bound: float = BOUND) -> None:
    assert fused.keys() == readable.keys()
    for name, value in fused.items():
        difference = (value - readable[name]).abs().max() / readable[name].abs().max().clamp_min(1e-3)
        assert float(difference) < bound, name


CASES = [
    {"topology": "any-output-edges"},
    {"topology": "any-output-edges", "empty_choice": False},
    {"topology": "output-edges"},  # without the last edge
    {"topology": "output-edges", "edges_per_node": 3},  # without three edges
    {"topology": "input-edges"},
    {"topology": "input-edges", "edges_per_node": 1},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_fused_engine_is_the_readable_one(data, changes):
    """Outputs, every gradient of loss and penalty, and every buffer."""
    results = []
    for search in both_engines(data, **changes):
        network: SearchNetwork = search.network
        images, labels = double_batch(0)
        outputs = network(images)
        names, parameters = zip(*network.named_parameters(), strict=True)
        slopes = torch.autograd.grad(F.cross_entropy(outputs, labels) + network.penalty(), parameters)
        buffers = {name: value.double() for name, value in network.named_buffers()}
        results.append({"outputs": outputs.detach(), **dict(zip(names, slopes, strict=True)), **buffers})
        assert all(bool((results[-1][f"relaxations.{kind}.beta"] != 0).any()) for kind in ("normal", "reduction"))
    assert_near(*results)
    results[0]["outputs"] = results[0]["outputs"] * (1 + 1e-8)
    with pytest.raises(AssertionError):
        assert_near(*results)


@pytest.mark.parametrize("changes", CASES[::2], ids=str)
def test_second_order_gradients_of_the_engines_are_the_same(data, changes):
    """Of the mixed objective, through the unrolled step."""
    results = []
    for search in both_engines(data, order="second-order", cells=1, **changes):
        assert search.update.objective == Objective(1.0, 1.0)
        gradients = search.update.architecture_gradient(double_batch(1), double_batch(2)).gradients
        names = [name for name, _ in search.network.relaxations.named_parameters()]
        results.append(dict(zip(names, gradients, strict=True)))
    assert_near(*results)


@pytest.mark.parametrize(
    ("topology", "source", "target"),
    [("any-output-edges", "fused", "readable"), ("output-edges", "readable", "fused")],
)
def test_a_checkpoint_moves_between_engines(data, tmp_path, topology, source, target):
    options = {"topology": topology, "architecture_learning_rate": 3e-4, "batch_size": 32}
    first = search_of(data, engine=source, **options)
    next(first.epochs())
    first.save(tmp_path / "checkpoint.pt")
    ends = []
    for engine in (source, target):
        search = search_of(data, engine=engine, **options)
        search.load(tmp_path / "checkpoint.pt")
        list(search.epochs())
        assert search.network.engine == engine and len(search.history) == 2
        ends.append(torch.cat([p.detach().flatten() for p in search.network.parameters()]))
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-5)  # a step in float32


# --- random operations on a topology ----------------------------------------------------------------------------------


def learned(data):
    search = search_of(data, seed=1)
    for relaxation in search.topologies().values():
        nn.init.normal_(relaxation.beta)
    return search.network.genotype()


def random_search_of(data, topology, **changes):
    settings = {"samples": 3, "epochs": 1, "batch_size": 16, "channels": 2, "cells": 3, **changes}
    return random_search.Search(random_search.Config(**settings), data, SPACE, 0, topology)


def pairs(genotype):
    return {kind: [(edge.source, edge.target) for edge in cell.edges] for kind, cell in genotype.cells}


def test_random_search_keeps_the_edges_of_a_topology(data):
    topology = learned(data)
    search = random_search_of(data, topology)
    list(search.epochs())
    samples = [search.genotype(number) for number in range(3)]
    assert len(set(samples)) == 3
    for sample in [*samples, search.result().genotype, *(report.genotype for report in search.history)]:
        assert pairs(sample) == pairs(topology)
        assert [cell.output for _, cell in sample.cells] == [cell.output for _, cell in topology.cells]
        assert set(sample.operations()) <= set(SPACE.choices)
    assert search.result().genotype in samples
    assert random_search_of(data, topology).genotype(2) == samples[2]


def test_a_random_search_on_another_topology_is_refused(data, tmp_path):
    topology = learned(data)
    search = random_search_of(data, topology)
    next(search.epochs())
    search.save(tmp_path / "checkpoint.pt")
    again = random_search_of(data, topology)
    again.load(tmp_path / "checkpoint.pt")
    for run in (search, again):
        list(run.epochs())
    assert [r.validation_accuracy for r in search.history] == [r.validation_accuracy for r in again.history]
    other = random_search_of(data, topology).genotype(0)  # the same edges with other operations is another one too
    for another in (None, other):
        with pytest.raises(CheckpointError):
            random_search_of(data, another).load(tmp_path / "checkpoint.pt")
    random_search_of(data, None).save(tmp_path / "free.pt")
    with pytest.raises(CheckpointError):
        random_search_of(data, topology).load(tmp_path / "free.pt")
