"""PR-DARTS as a search: Table 1, grace epochs, α's reset, the growing batch, and resuming after every step."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from running import differences, draw, run_to_end, stop_after
from torch import nn

from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.genotypes import Space
from nasbook.growth import morph
from nasbook.methods import METHODS, darts, pr_darts
from nasbook.networks import DerivedNetwork
from nasbook.operations import CONSTRAINTS, Configuration, Constraints, get_operation
from nasbook.supernets import SoftmaxRelaxation
from nasbook.supernets.cells import candidates_of
from nasbook.training import Fit, FitConfig, cosine

ROOT = Configuration(3).name
SPACE = Space(("max_pool_3x3", "skip_connect", ROOT), nodes=1)
SMALL = {
    "cycle_epochs": (2, 2, 1),
    "grace_epochs": (1, 1, 0),
    "morphisms": (2, 0, 0),
    "candidates": (4, 2, 1),
    "batch_size": 6,
    "batch_multiple": 4,
    "largest_batch": 26,
    "memory_budget": 5e-4,
    "channels": 2,
    "cells": 3,
    "architecture_learning_rate": 0.1,
    "constraints": CONSTRAINTS["UR"],
    "engine": "readable",  # what the fused one keeps is less, and changes as it gets better
}
FIXED = {**SMALL, "memory_budget": None, "batch_size": 16, "engine": "fused"}


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)  # 48 images for w, 48 for α


def search_of(data, seed=0, space=SPACE, settings=SMALL, **changes):
    return pr_darts.Search(pr_darts.Config(**{**settings, **changes}), data, space, seed)


def ending(search):
    """What a search has come to; not wall times, and not the global generators, which each epoch begins anew."""
    state = copy.deepcopy(search.state_dict())
    del state["seconds"], state["random"]
    for report in state["history"]:
        del report["seconds"]
    return {**state, "genotype": search.result().genotype.to_json(), "families": families(search)}


def families(search):
    return {kind: [[asdict(life) for life in pool.lives] for pool in own] for kind, own in search.families().items()}


def alphas(search):
    return [parameter.detach().clone() for parameter in search.network.architecture()]


def weights(search):
    return [parameter.detach().clone() for parameter in search.network.weights()]


# ---------------------------------------------------------------------------------------------- settings


def test_the_papers_settings():
    config = pr_darts.Config()
    assert config.cycle_epochs == (15, 15, 10, 10, 10, 10, 10, 10, 10)  # Table 1
    assert config.grace_epochs == (5, 5, 3, 3, 3, 3, 3, 3, 3)
    assert config.morphisms == (3, 3, 3, 3, 3, 0, 0, 0, 0)
    assert config.candidates == (6, 6, 6, 6, 6, 4, 3, 2, 1)
    assert config.epochs == 100
    assert (config.cells, config.channels, config.train_share) == (8, 16, 0.5)  # §4.1
    assert (config.learning_rate, config.final_learning_rate, config.momentum, config.weight_decay) == (
        0.025, 0.01, 0.9, 3e-4,
    )  # fmt: skip
    assert (config.architecture_learning_rate, config.architecture_weight_decay) == (6e-4, 1e-3)
    assert (config.batch_size, config.batch_multiple, config.largest_batch, config.memory_budget) == (24, 8, 128, 11)
    assert config.constraints == CONSTRAINTS["DL"] == Constraints(3, 7, 1, 2, 1, 1)
    assert (config.order, config.cell_output, config.morphism_choice, config.cycle_cells) == (
        "first-order", "concatenation", "uniform", (),
    )  # fmt: skip
    assert pr_darts.INITIAL_SPACE.operations == ("max_pool_3x3", "avg_pool_3x3", "skip_connect", ROOT)
    assert replace(pr_darts.INITIAL_SPACE, operations=("a",)) == Space(("a",))
    assert METHODS["pr-darts"] is pr_darts


def test_epochs_are_those_of_the_cycles_however_a_configuration_comes_about():
    config = pr_darts.Config(**SMALL)
    assert config.epochs == 5
    longer = replace(config, cycle_epochs=(3, 4, 2))
    assert longer.epochs == 9 and replace(longer, batch_size=9).epochs == 9
    assert pr_darts.Config(**{f.name: getattr(longer, f.name) for f in fields(longer)}) == longer
    assert "epochs" not in asdict(config) and asdict(config)["cycle_epochs"] == (2, 2, 1)
    with pytest.raises(TypeError, match="epochs"):
        pr_darts.Config(epochs=3)
    with pytest.raises((TypeError, ValueError), match="epochs"):
        replace(config, epochs=3)
    assert len({config, longer, pr_darts.Config(**SMALL)}) == 2


def test_the_optimisers_are_the_papers(data):
    update = search_of(data, settings={}, memory_budget=None, batch_size=24, cells=3, channels=2).update
    [sgd], [adam] = update.weight_optimizer.param_groups, update.architecture_optimizer.param_groups
    assert type(update.weight_optimizer) is torch.optim.SGD and type(update.architecture_optimizer) is torch.optim.Adam
    assert (sgd["momentum"], sgd["weight_decay"]) == (0.9, 3e-4)
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (6e-4, (0.5, 0.999), 1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cycle_epochs": ()}, r"^cycle_epochs must have one cycle at least\.$"),
        ({"cycle_epochs": (2, 2)}, r"^grace_epochs must have one number a cycle, 2 like cycle_epochs; got \(1, 1, 0\)"),
        ({"morphisms": (2, 0)}, r"^morphisms must have one number a cycle, 3 like cycle_epochs; got \(2, 0\)\.$"),
        ({"candidates": (4, 2, 1, 1)}, r"^candidates must have one number a cycle, 3 like"),
        ({"cycle_cells": (3, 3)}, r"^cycle_cells must have one number a cycle, 3 like cycle_epochs; got \(3, 3\)\.$"),
        ({"grace_epochs": (1, 2, 0)}, r"^Cycle 2 has 2 epochs, 2 of them grace epochs; .* must be from 0 to 1\.$"),
        ({"grace_epochs": (-1, 0, 0)}, r"^Cycle 1 has 2 epochs, -1 of them grace epochs"),
        ({"cycle_epochs": (2, 0, 1)}, r"^Cycle 2 has 0 epochs, 1 of them grace epochs"),
        ({"cycle_epochs": (0, 0, 0)}, r"^epochs must be above 0, got 0\.$"),
        ({"morphisms": (4, 0, 0)}, r"^After cycle 1 there are to be 4 candidates, 4 of them new; one parent at least"),
        ({"morphisms": (-1, 0, 0)}, r"^After cycle 1 there are to be 4 candidates, -1 of them new"),
        ({"candidates": (4, 0, 1)}, r"^After cycle 2 there are to be 0 candidates, 0 of them new"),
        ({"candidates": (4, 2, 2)}, r"^After the last cycle one candidate is left .* got candidates=2, morphisms=0 "),
        ({"candidates": (4, 2, 2), "morphisms": (2, 0, 1)}, r"^After the last cycle .* candidates=2, morphisms=1 "),
        ({"candidates": (4, 5, 1)}, r"^After cycle 2 there are to be 5 candidates, 0 of them new; but it has only 4"),
        ({"batch_multiple": 0}, r"^batch_multiple must be above 0, got 0\.$"),
        ({"cycle_cells": (3, 0, 3)}, r"^cycle_cells must be above 0, got 0\.$"),
        ({"cycle_cells": (5, 3, 5), "recompute_cells": 4}, r"^recompute_cells=4 must be at most the cells of every c"),
        ({"memory_budget": 0.0}, r"^memory_budget must be above 0, got 0\.0\.$"),
        ({"memory_budget": math.nan}, r"^memory_budget must be above 0, got nan\.$"),
        ({"order": "second-order"}, r"^memory_budget: a step of second-order takes more than is measured while α is f"),
        ({"largest_batch": 4}, r"^largest_batch=4 must be at least batch_size=6, the smallest\.$"),
        ({"batch_size": 1}, r"^batch_size must be at least 2"),
        ({"final_learning_rate": -0.1}, r"^final_learning_rate must be at least 0, got -0\.1\.$"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(InvalidInput, match=message):
        pr_darts.Config(**{**SMALL, **changes})
    if changes == {"largest_batch": 4}:
        assert pr_darts.Config(**{**SMALL, **changes, "memory_budget": None}).largest_batch == 4  # it plays no part


@pytest.mark.parametrize(("field", "text"), [("cell_output", "cell output 'uniforn'"), ("order", "order 'uniforn'"),
                                             ("morphism_choice", "choice of morphisms 'uniforn'. Did you mean 'unif"),
                                             ("normalize_by", "normalize_by 'uniforn'")])  # fmt: skip
def test_wrong_names(field, text):
    config = pr_darts.Config(**SMALL)
    object.__setattr__(config, field, "uniforn")  # the type checker of the tests refuses it elsewhere
    with pytest.raises(InvalidInput, match=f"^Unknown {text}"):
        config.__post_init__()


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (("none", ROOT), r"^PR-DARTS has no zero operation \(§4\.1\): leave 'none' out of the candidates\.$"),
        (("max_pool_3x3", "skip_connect"), r"^Every pool keeps a convolution \(§3\.2\.2\): give one among the candida"),
        (("skip_connect", "sep_conv_3x3"), r"^Children are morphed from convolutions like 'sep_conv\(kernel=3, dilati"),
        ((ROOT,), r"^After cycle 1 there are to be 4 candidates, 2 of them new; but it has only 1\. More morphisms"),
        (("sep_conv_3", ROOT), r"^Unknown operation 'sep_conv_3'"),
    ],
)
def test_wrong_spaces(data, operations, message):
    with pytest.raises(InvalidInput, match=message):
        search_of(data, space=Space(operations, nodes=1))


def test_any_convolution_will_do_where_nothing_is_morphed(data):
    space = Space(("skip_connect", "max_pool_3x3", "sep_conv_3x3"), nodes=1)
    settings = {**FIXED, "morphisms": (0, 0, 0), "candidates": (3, 2, 1)}
    search = run_to_end(search_of(data, space=space, settings=settings))
    for pools in search.families().values():
        for pool in pools:
            assert len(pool.lives) == 3 and [life.died for life in pool.lives].count(None) == 1
            assert sorted(len(life.weights) for life in pool.lives) == [2, 3, 3]


# ---------------------------------------------------------------------------------------------- cycles


def test_rates_grace_epochs_and_cycles_of_table_1(data):
    """All 100 epochs, without their steps."""
    search = search_of(data, settings={"cells": 3, "channels": 2, "memory_budget": None, "batch_size": 48})
    config, rates, seen = search.config, [], []
    for epoch in range(100):
        search.epoch = epoch
        search.begin_epoch()
        rates.append(search.update.weight_optimizer.param_groups[0]["lr"])
        seen.append((search.cycle + 1, search.grace))
    expected = []
    for cycle, (epochs, grace) in enumerate(zip(config.cycle_epochs, config.grace_epochs, strict=True), start=1):
        expected += [
            (cycle, place < grace, 0.01 + 0.015 * (1 + math.cos(math.pi * place / epochs)) / 2)
            for place in range(epochs)
        ]
    assert seen == [row[:2] for row in expected]
    assert rates == pytest.approx([row[2] for row in expected], rel=1e-12)
    assert rates[0] == rates[15] == rates[30] == rates[90] == 0.025 and min(rates) > 0.01
    assert sum(grace for _, grace in seen) == 31
    assert search.update.architecture_optimizer.param_groups[0]["lr"] == 6e-4
    assert [search.cycle_of(epoch) for epoch in (0, 14, 15, 29, 30, 99)] == [
        (0, 0), (0, 14), (1, 0), (1, 14), (2, 0), (8, 9),
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match=r"^The search has 100 epochs, there is no epoch 100\.$"):
        search.cycle_of(100)


class Watched(pr_darts.Search):
    """Notes α, w and the batch before and after every step, and what the memory meter said."""

    def __init__(self, *arguments, **options):
        self.rows = []
        super().__init__(*arguments, **options)
        measure = self._meter.measure
        self.measured = {}

        def measured(*arguments):
            self.measured[len(self.rows)] = measure(*arguments)
            return self.measured[len(self.rows)]

        self._meter.measure = measured

    def run_step(self, index):
        row = {
            "epoch": self.epoch, "cycle": self.cycle, "grace": self.grace, "batch": self.batch_size,
            "alpha": alphas(self), "weights": weights(self), "walks": [walk.position for walk in self.walks],
            "adam": len(self.update.architecture_optimizer.state), "sgd": len(self.update.weight_optimizer.state),
        }  # fmt: skip
        values = super().run_step(index)
        self.rows.append({**row, "alpha after": alphas(self), "weights after": weights(self), "values": values})
        return values


@pytest.fixture(scope="module")
def watched(data):
    search = Watched(pr_darts.Config(**SMALL), data, SPACE, 0)
    return run_to_end(search)


def moved(one, other):
    return [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def test_grace_epochs_freeze_alpha_at_zero_and_train_the_weights(watched):
    assert {row["grace"] for row in watched.rows} == {True, False}
    for row in watched.rows:
        assert any(moved(row["weights"], row["weights after"]))
        if row["grace"]:
            assert all(bool((alpha == 0).all()) for alpha in row["alpha after"])
            assert row["adam"] == 0 and bool(row["values"][2].isnan())
        else:
            assert all(moved(row["alpha"], row["alpha after"])) and bool(row["values"][2].isfinite())
    for report in watched.history:
        for kind, coefficients in report.coefficients.items():
            alike = [len(set(own.values())) == 1 for own in report.weights(kind)]
            assert all(alike) if report.grace else not any(alike)
            assert coefficients.sum(1) == pytest.approx(1)


def test_alpha_and_the_optimisers_begin_every_cycle_anew(watched):
    firsts = [row for row, before in zip(watched.rows, [None, *watched.rows], strict=False)
              if before is None or before["cycle"] != row["cycle"]]  # fmt: skip
    assert [row["cycle"] for row in firsts] == [0, 1, 2]
    for row in firsts:
        assert all(bool((alpha == 0).all()) for alpha in row["alpha"])
        assert row["adam"] == row["sgd"] == 0 and row["batch"] == 6
    last = [row for row in watched.rows if row["cycle"] == 2]
    assert last[0]["grace"] is False and all(moved(last[0]["alpha"], last[0]["alpha after"]))


def test_the_validation_images_wait_in_grace_epochs(watched):
    """Each share is walked through by itself, and α's images are not used up while it is frozen."""
    for row, following in zip(watched.rows, watched.rows[1:], strict=False):
        if row["grace"]:
            assert following["walks"][1] == row["walks"][1]
        else:
            assert following["walks"][1] != row["walks"][1]


def test_the_batch_is_what_the_linear_model_gives_every_five_steps_of_a_cycle(watched):
    steps, sizes = 0, []
    limit = int(0.95 * int(5e-4 * 2**30))
    grown = 0
    for number, (row, following) in enumerate(zip(watched.rows, [*watched.rows[1:], None], strict=True)):
        steps = 1 if number == 0 or row["cycle"] != watched.rows[number - 1]["cycle"] else steps + 1
        sizes.append(row["batch"])
        assert (number in watched.measured) == (steps % 5 == 0)
        if following is None or following["cycle"] != row["cycle"]:
            continue
        expected = row["batch"]
        if steps % 5 == 0:
            fixed, used = watched.measured[number]
            assert 0 < fixed < used
            fitting = [b for b in range(6, 27, 4)
                       if fixed * row["batch"] + (used - fixed) * b <= limit * row["batch"]]  # fmt: skip
            expected = max([row["batch"], *fitting])
        assert following["batch"] == expected
        grown += expected > row["batch"]
    assert grown >= 2
    assert {6} < set(sizes) <= set(range(6, 27, 4))
    for row in watched.rows:
        assert float(row["values"][3]) == row["batch"]
    by_epoch = {epoch: [row["batch"] for row in watched.rows if row["epoch"] == epoch] for epoch in range(5)}
    for report in watched.history:
        own = by_epoch[report.epoch - 1]
        assert report.batch_size == pytest.approx(sum(own) / len(own))
        # An epoch takes as many whole batches as its pass has.
        assert sum(own) <= 48 < sum(own) + max(own)
        losses = [row["values"][0].detach() for row in watched.rows if row["epoch"] == report.epoch - 1]
        mean = sum(float(loss) * size for loss, size in zip(losses, own, strict=True)) / sum(own)
        assert report.train_loss == pytest.approx(mean)
    assert [report.memory > 0 for report in watched.history] == [True] * 5


def test_more_memory_means_larger_batches_and_no_more_than_the_largest(data):
    sizes = {}
    for budget in (1e-5, 5e-4, 1.0):
        search = search_of(data, memory_budget=budget, cycle_epochs=(2, 1, 1), grace_epochs=(0, 0, 0))
        run_to_end(search)
        sizes[budget] = [report.batch_size for report in search.history]
    assert set(sizes[1e-5]) == {6}
    assert 6 < sizes[5e-4][1] < sizes[1.0][1]
    assert sizes[1.0][1] == 26 and sizes[1.0][2] < 26  # small again, until the fifth step
    # No batch is larger than a share of the images.
    search = run_to_end(search_of(data, memory_budget=1.0, largest_batch=1000))
    assert max(report.batch_size for report in search.history) == 46  # 6 + 10 · 4; a share has 48


def test_a_fixed_batch(data):
    search = run_to_end(search_of(data, settings=FIXED))
    assert [(report.batch_size, report.memory) for report in search.history] == [(16, 0)] * 5


# ---------------------------------------------------------------------------------------------- pools


def test_the_pools_follow_the_schedule(watched):
    sizes = {1: 3, 2: 4, 3: 2}
    for report in watched.history:
        assert report.cycle == (1, 1, 2, 2, 3)[report.epoch - 1]
        assert report.grace == (True, False, True, False, False)[report.epoch - 1]
        for kind in ("normal", "reduction"):
            assert [len(pool) for pool in report.pools[kind]] == [sizes[report.cycle]] * 2
            assert all(any(get_operation(name).kind == "convolution" for name in pool) for pool in report.pools[kind])
            for pool, own in zip(report.pools[kind], report.weights(kind), strict=True):
                assert tuple(own) == pool and sum(own.values()) == pytest.approx(1)
        for kind, cell in report.genotype.cells:
            for edge in cell.edges:
                row = SPACE.edges.index((edge.source, edge.target))
                assert edge.operation in report.pools[kind][row]
    for pools in watched.families().values():
        for pool in pools:
            assert len(pool.operations) == 1 and len(pool.lives) == 5
            assert [life.born for life in pool.lives] == [1, 1, 1, 2, 2]
            for life in pool.lives:
                assert len(life.weights) == (life.died or 3) - life.born + 1
                assert (life.parent is None) == (life.born == 1)


def test_the_histories_hold_the_weights_that_the_reports_show(watched):
    ends = {report.cycle: report for report in watched.history}  # the last of each cycle
    for kind, pools in watched.families().items():
        for edge, pool in enumerate(pools):
            for cycle, report in ends.items():
                alive = [
                    life for life in pool.lives if life.born <= cycle and (life.died is None or life.died >= cycle)
                ]
                assert tuple(life.operation for life in alive) == report.pools[kind][edge]
                assert [life.weights[cycle - life.born] for life in alive] == list(report.weights(kind)[edge].values())


def test_who_is_left_stands_in_the_genotype(watched):
    genotype = watched.result().genotype
    for kind, cell in genotype.cells:
        assert len(cell.edges) == 2
        for edge in cell.edges:
            pool = watched.families()[kind][SPACE.edges.index((edge.source, edge.target))]
            assert pool.operations == (edge.operation,)


def test_every_edge_and_kind_draws_for_itself(data):
    space = replace(SPACE, nodes=3)
    settings = {**FIXED, "cycle_epochs": (1, 1, 1), "grace_epochs": (0, 0, 0)}
    drawn = []
    for seed in (0, 1):
        search = search_of(data, seed, space, settings)
        stop_after(search, 4)  # three steps an epoch
        assert search.cycle == 1
        drawn.append({kind: [pool.operations for pool in pools] for kind, pools in search.families().items()})
    assert drawn[0] != drawn[1]
    for own in drawn:
        assert own["normal"] != own["reduction"] and len(set(own["normal"])) > 2


def test_the_network_of_a_new_cycle_inherits(data):
    search = search_of(data, settings=FIXED)
    iterator = search.epochs()
    next(iterator)
    next(iterator)
    before, old = copy.deepcopy(search.network), search.pools
    search.begin_epoch()
    assert search.cycle == 1
    stayed = born = 0
    for cell, former, kind in zip(search.network.cells, before.cells, search.network.kinds, strict=True):
        for mixed, mixed_before, pool, pool_before in zip(
            cell.edges, former.edges, search.pools[kind], old[kind], strict=True
        ):
            candidates, parents = candidates_of(mixed), candidates_of(mixed_before)
            assert tuple(candidates) == pool.operations
            for life in pool.living:
                if life.weights:
                    assert life.operation in pool_before.operations
                    expected = parents[life.operation]
                    stayed += 1
                elif life.morphism != "wider":
                    expected = morph(parents[life.parent], life.morphism, torch.Generator())
                    born += 1
                else:
                    continue  # draws
                assert not differences(candidates[life.operation].state_dict(), expected.state_dict())
    assert stayed and born
    assert not differences(search.network.stem.state_dict(), before.stem.state_dict())
    assert not differences(search.network.classifier.state_dict(), before.classifier.state_dict())
    # Both optimisers have the new network's parameters, all of them and no others.
    for optimizer, parameters in (
        (search.update.weight_optimizer, search.network.weights()),
        (search.update.architecture_optimizer, search.network.architecture()),
    ):
        [group] = optimizer.param_groups
        assert {id(p) for p in group["params"]} == {id(p) for p in parameters}


def test_the_found_cells_can_be_trained(watched, data):
    network = DerivedNetwork(watched.result().genotype, 4, 3, data.classes, in_channels=1)
    run = Fit(network, data, FitConfig(epochs=1, batch_size=32))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    stop_after(run, 1)
    assert run.step == 1 and any(moved(before, list(network.parameters())))


def test_one_cycle_without_grace_is_darts(data):
    """The same network, steps and cells as DARTS' where nothing is pruned, and α begins at zero."""

    class Zeros(darts.Search):
        def build_relaxation(self, space):
            return SoftmaxRelaxation(space, scale=0.0)

        def begin_epoch(self):
            super().begin_epoch()
            for walk in self.walks:
                walk.begin_pass()

        def run_step(self, index):  # the walk's batches, whose augmentation is another
            train, validation = (walk.take(16) for walk in self.walks)
            result = self.update.step(train, validation)
            accuracy = (result.train_outputs.argmax(1) == train[1]).float().mean()
            return result.train_loss, accuracy, result.validation_loss

    settings = {name: value for name, value in FIXED.items() if name in {f.name for f in fields(darts.Config)}}
    single = {**FIXED, "cycle_epochs": (3,), "grace_epochs": (0,), "morphisms": (0,), "candidates": (1,)}
    search = search_of(data, settings=single)
    settings = {**settings, "epochs": 3, "order": "first-order", "final_learning_rate": 0.01}
    other = Zeros(darts.Config(**settings), data, SPACE, 0)
    other.walks = tuple(type(search.walks[0])(loader) for loader in other.loaders)
    # Ragged cells may round differently from DARTS' fused ones: read both the slow way.
    for found, expected in zip(search.epochs(), other.epochs(), strict=True):
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
        assert found.learning_rate == expected.learning_rate == cosine(0.025, 0.01, (found.epoch - 1) / 3)
        for kind in found.coefficients:
            torch.testing.assert_close(found.coefficients[kind], expected.coefficients[kind], rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------- interruption

VARIANTS = {
    "memory": {},
    "fused": {"engine": "fused"},
    "fixed batch": {"memory_budget": None, "batch_size": 16, "engine": "fused"},
    "performance": {"morphism_choice": "performance", "morphisms": (1, 1, 0), "candidates": (3, 3, 1)},
    "deeper": {"cycle_cells": (3, 4, 6), "engine": "fused"},
    "mean": {"cell_output": "mean", "space": replace(SPACE, nodes=2)},
    "second order": {"order": "second-order", "memory_budget": None, "batch_size": 16},
}


@pytest.fixture(scope="module")
def whole(data):
    """What every variant ends with when nobody disturbs it."""
    return {name: ending(run_to_end(search_of(data, **changes))) for name, changes in VARIANTS.items()}


def test_the_variants_differ(whole, watched):
    assert not differences(ending(watched), whole["memory"])  # who watches changes nothing
    losses = {tuple(report["train_loss"] for report in state["history"]) for state in whole.values()}
    assert len(losses) == len(VARIANTS)


@pytest.mark.parametrize("variant", ["memory", "performance"])
def test_stopped_after_every_step_and_resumed_from_a_file(data, whole, variant, tmp_path):
    """Every step is made by another search, which was built anew and loaded what the one before saved."""
    places = []
    path = tmp_path / "checkpoint.pt"
    search = search_of(data, **VARIANTS[variant])
    while not search.finished:
        draw()
        stop_after(search, 1)
        places.append((search.cycle, search.epoch, search.step))
        search.save(path)
        draw()
        search = search_of(data, **VARIANTS[variant])
        search.load(path)
    assert len(set(places)) == len(places) >= 20 and {cycle for cycle, *_ in places} == {0, 1, 2}
    assert not differences(ending(search), whole[variant])


@pytest.mark.parametrize("variant", sorted({*VARIANTS} - {"memory", "performance"}))
def test_stopped_in_and_between_cycles(data, whole, variant):
    """Through a state alone, at every fourth step and at the end of every cycle."""
    search = search_of(data, **VARIANTS[variant])
    while not search.finished:
        ends = sum(search.config.cycle_epochs[: search.cycle_of(search.epoch)[0] + 1])
        made = 0
        while made < 4 and search.epoch < ends:
            stop_after(search, 1)
            made += 1
        draw()
        state = copy.deepcopy(search.state_dict())
        search = search_of(data, **VARIANTS[variant])
        search.load_state_dict(state)
    assert not differences(ending(search), whole[variant])


def test_a_loaded_search_is_the_saved_one(data, watched, tmp_path):
    """Before another step: pools, weights, α, statistics, places in the data."""
    search = search_of(data)
    while search.epoch < 2 or search.step < 2:
        stop_after(search, 1)
    assert search.cycle == 1 and search.cycle_step == 2
    search.save(tmp_path / "checkpoint.pt")
    again = search_of(data)
    again.load(tmp_path / "checkpoint.pt")
    assert again.pools == search.pools and again.families() == search.families()
    assert [walk.position for walk in again.walks] == [walk.position for walk in search.walks]
    assert (again.cycle, again.cycle_step, again.batch_size, again.memory) == (
        search.cycle, search.cycle_step, search.batch_size, search.memory,
    )  # fmt: skip
    assert again.network.spaces == search.network.spaces
    assert not differences(again.network.state_dict(), search.network.state_dict())
    assert again.result().genotype == search.result().genotype
    assert all(type(report) is pr_darts.Report for report in again.history)
    assert [report.pools for report in again.history] == [report.pools for report in watched.history[: again.epoch]]


def test_a_finished_search_keeps_its_answer_when_it_is_loaded(data, watched, tmp_path):
    watched.save(tmp_path / "checkpoint.pt")
    again = search_of(data)
    again.load(tmp_path / "checkpoint.pt")
    assert again.finished and list(again.epochs()) == []
    assert not differences(ending(again), ending(watched))


def test_a_search_that_is_loaded_over_another_forgets_it(data, whole):
    """Also one that is in a later cycle, with other pools."""
    search = search_of(data)
    stop_after(search, 3)
    state = copy.deepcopy(search.state_dict())
    run_to_end(search)
    search.load_state_dict(state)
    assert search.cycle == 0 and search.pools["normal"][0].operations == SPACE.operations
    assert not differences(ending(run_to_end(search)), whole["memory"])


@pytest.mark.parametrize(
    "changes",
    [
        {"grace_epochs": (0, 1, 0)}, {"cycle_epochs": (2, 2, 2)}, {"morphisms": (1, 0, 0)}, {"candidates": (4, 3, 1)},
        {"constraints": CONSTRAINTS["DR"]}, {"memory_budget": None}, {"memory_budget": 0.5}, {"batch_multiple": 8},
        {"largest_batch": 16}, {"cell_output": "mean"}, {"morphism_choice": "performance"}, {"cycle_cells": (3, 3, 3)},
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_settings_is_refused(data, changes, tmp_path):
    search_of(data).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=rf"its config\.{next(iter(changes))}"):
        search_of(data, **changes).load(tmp_path / "checkpoint.pt")


def test_a_checkpoint_is_resumed_with_another_way_to_compute(data, tmp_path):
    """But where the batch follows the memory, on which that has an effect."""
    changes = {"engine": "fused", "recompute_cells": 2}
    search_of(data, settings=FIXED).save(tmp_path / "checkpoint.pt")
    search_of(data, settings=FIXED, engine="readable", recompute_cells=2).load(tmp_path / "checkpoint.pt")
    search_of(data).save(tmp_path / "checkpoint.pt")
    for name, value in changes.items():
        with pytest.raises(CheckpointError, match=rf"its config\.{name}"):
            search_of(data, **{name: value}).load(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="its seed is 0, this run's is 1"):
        search_of(data, 1).load(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"its space\.operations"):
        search_of(data, space=Space(SPACE.operations[::-1], 1)).load(tmp_path / "checkpoint.pt")


# ---------------------------------------------------------------------------------------------- options


def test_a_search_that_deepens(data):
    search = search_of(data, **VARIANTS["deeper"])
    sizes = []
    for report in search.epochs():
        sizes.append((report.cycle, len(search.network.cells)))
    assert sizes == [(1, 3), (1, 3), (2, 4), (2, 4), (3, 6)]


@pytest.mark.parametrize("cells", [(1, 3, 1), (5, 2, 3)])
def test_any_number_of_cells_after_any_other(data, cells):
    settings = {**FIXED, "cycle_epochs": (1, 1, 1), "grace_epochs": (0, 0, 0)}
    search = run_to_end(search_of(data, settings=settings, cycle_cells=cells))
    assert len(search.network.cells) == cells[-1] and search.finished


def test_means_of_nodes_all_the_way(data):
    search = search_of(data, space=replace(SPACE, nodes=2), settings=FIXED, cell_output="mean")
    assert all(cell.join is not None for cell in search.network.cells)
    assert search.network.classifier.in_features == 8  # 4·C, whatever the number of nodes
    run_to_end(search)
    assert search.network.classifier.in_features == 8 and search.result().validation_accuracy > 0


def test_morphisms_are_weighed_by_the_children_of_the_whole_kind_of_cell(data, monkeypatch):
    given = []
    original = pr_darts.MORPHISM_CHOICES["performance"]
    monkeypatch.setitem(
        pr_darts.MORPHISM_CHOICES, "performance", lambda merits: given.append(list(merits)) or original(merits)
    )
    settings = {**FIXED, "morphisms": (1, 1, 0), "candidates": (3, 3, 1), "morphism_choice": "performance"}
    search = run_to_end(search_of(data, settings=settings))
    given.clear()
    families = search.families()
    for merits, kind in zip(given, ("normal", "reduction"), strict=True):
        expected = [
            (life.morphism, pytest.approx(3 * life.weights[0]))
            for pool in families[kind] for life in pool.lives if life.parent is not None
        ]  # fmt: skip
        assert len(expected) == 4 and sorted(merits) == sorted(expected, key=lambda row: (row[0], row[1].expected))


def test_reports_survive_a_checkpoint(watched):
    for report in watched.history:
        again = pr_darts.Report.from_state(copy.deepcopy(report.to_state()))
        assert not differences(again.to_state(), report.to_state())
        assert again.pools == report.pools and again.weights("normal") == report.weights("normal")
        assert isinstance(again.pools["normal"], tuple) and isinstance(again.pools["normal"][0], tuple)


def test_a_search_leaves_the_callers_generators_and_data_alone(data):
    images = data.train_images.clone()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    search = search_of(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(search.network, nn.Module) and torch.equal(data.train_images, images)
