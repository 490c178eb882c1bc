"""Searches that train cells one by one: regularised evolution and local search, on known scores and on images."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

from nasbook.data import load_images
from nasbook.errors import CheckpointError, InvalidInput
from nasbook.experiments import SCALES, SEARCH_CONFIGS
from nasbook.genotypes import CellGenotype, CellSpace, DartsCells, Edge, Genotype, Space
from nasbook.methods import local_search, random_search, regularized_evolution
from nasbook.methods.local_search import LocalSearchProposer, Walk
from nasbook.methods.random_search import RandomProposer
from nasbook.methods.regularized_evolution import EvolutionProposer
from nasbook.methods.sampled_search import best_of, look_up, unseen
from nasbook.seeding import generator

SPACE = Space(("none", "skip_connect", "sep_conv_3x3"), nodes=2)
FEW_CELLS = DartsCells(Space(("skip_connect", "sep_conv_3x3"), nodes=3, kinds=("normal",)))
CELLS = DartsCells(Space(("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=3))


class Line(CellSpace):
    """As many cells as there are numbers: chains whose length is the number. Neighbours are one longer or shorter."""

    def __init__(self, length):
        self.cells = tuple(
            Genotype({"cell": CellGenotype(tuple(Edge(n, n + 1, "skip_connect") for n in range(k)), length, 1)})
            for k in range(1, length + 1)
        )

    def random(self, draws):
        return self.cells[int(torch.randint(len(self.cells), (1,), generator=draws))]

    def neighbours(self, genotype):
        place = self.cells.index(genotype)
        return self.cells[max(place - 1, 0) : place] + self.cells[place + 1 : place + 2]


def separable(genotype):
    """A known function with one optimum: each edge adds its operation's and its source's worth."""
    worth = {"skip_connect": 0.0, "max_pool_3x3": 1.0, "sep_conv_3x3": 2.0}
    return sum(worth[e.operation] + e.source / 10 for _, cell in genotype.cells for e in cell.edges)


OPTIMUM = 2 * (6 * 2.0 + (0 + 1 + 1 + 2 + 2 + 3) / 10)


@functools.cache
def rugged(genotype):
    """A known function with many local optima: noise that is fixed for each genotype."""
    return separable(genotype) + 4 * float(torch.rand((), generator=generator(0, genotype.to_json())))


def genotypes_of(evaluated):
    return [genotype for _, genotype in evaluated]


# --- look-ups ---------------------------------------------------------------------------------------------------------


def test_look_ups_draw_as_a_search_on_images_does(data):
    search = search_of("random-search", data)
    evaluated = look_up(RandomProposer(DartsCells(SPACE)), lambda _: 0.0, 3, seed=0)
    assert genotypes_of(evaluated) == [search.genotype(n) for n in range(3)]
    assert genotypes_of(look_up(RandomProposer(CELLS), lambda _: 0.0, 3, 1)) != genotypes_of(
        look_up(RandomProposer(CELLS), lambda _: 0.0, 3, 2)
    )
    with pytest.raises(InvalidInput, match="^samples must be above 0, got 0"):
        look_up(RandomProposer(CELLS), separable, 0)


def test_the_best_is_the_first_of_equals():
    first, second, third = Line(3).cells
    assert best_of([(0.5, first), (0.7, third), (0.7, second)]) == (0.7, third)


def test_unseen_cells_are_uniform_and_run_out():
    line = Line(4)
    seen = {line.cells[0], line.cells[2]}
    drawn = [line.cells.index(unseen(line, seen, generator(0, n))) for n in range(400)]
    assert set(drawn) == {1, 3}
    assert abs(drawn.count(1) - 200) < 60  # six standard deviations
    assert unseen(line, set(line.cells), generator(0), tries=5) in line.cells


# --- regularised evolution --------------------------------------------------------------------------------------------


def test_evolution_finds_what_random_search_does_not():
    evolution = EvolutionProposer(CELLS, population=20, tournament=5)
    for seed in range(3):
        found = best_of(look_up(evolution, separable, 300, seed))[0]
        drawn = best_of(look_up(RandomProposer(CELLS), separable, 300, seed))[0]
        assert found > OPTIMUM - 2
        assert drawn < found - 2


def test_the_first_population_is_random_and_has_no_cell_twice():
    line = Line(6)
    for seed in range(20):
        first = genotypes_of(look_up(EvolutionProposer(line, 6, 2), lambda _: 0.0, 6, seed))
        assert set(first) == set(line.cells)


def test_the_oldest_dies_and_not_the_worst():
    """The best cell of all is the oldest: once it is dead, its neighbours are no longer proposed."""
    line = Line(12)
    evolution = EvolutionProposer(line, population=3, tournament=3, identity=0.0)
    alive = [(0.2, line.cells[7]), (0.1, line.cells[9]), (0.3, line.cells[11])]

    def children(evaluated):
        return {line.cells.index(evolution.propose(evaluated, generator(n))) for n in range(300)}

    # In tournaments of three draws with replacement, every one of those alive wins sometimes.
    assert children([(9.0, line.cells[1]), *alive]) == {6, 8, 10}
    assert children([*alive[:2], (9.0, line.cells[1])]) >= {0, 2}
    assert children([(9.0, line.cells[1]), *alive[:2]]) == {0, 2, 6, 8, 10}
    everything = [(9.0, line.cells[1])] * 50 + alive
    assert children(everything) == children(alive)


def test_the_best_of_the_tournament_is_the_parent():
    line = Line(12)
    alive = [(0.2, line.cells[7]), (0.3, line.cells[11]), (0.1, line.cells[3])]
    evolution = EvolutionProposer(line, population=3, tournament=3, identity=0.0)
    counts = {6: 0, 8: 0, 10: 0, 2: 0, 4: 0}
    for n in range(2700):
        counts[line.cells.index(evolution.propose(alive, generator(n)))] += 1
    # Of 27 tournaments, 19 have the best in them, 7 of the others the second, 1 only the worst.
    expected = {10: 19 * 100, 6: 350, 8: 350, 2: 50, 4: 50}
    for place, count in counts.items():
        deviation = math.sqrt(expected[place] * (1 - expected[place] / 2700))
        assert abs(count - expected[place]) < 5 * deviation


def test_the_identity_trains_the_parent_again():
    line = Line(3)
    alive = [(0.5, line.cells[1])]
    proposals = [EvolutionProposer(line, 1, 1, 0.25).propose(alive, generator(n)) for n in range(800)]
    assert abs(proposals.count(line.cells[1]) - 200) < 5 * math.sqrt(800 * 3 / 16)
    assert line.cells[1] not in [EvolutionProposer(line, 1, 1, 0.0).propose(alive, generator(n)) for n in range(99)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "^population must be above 0, got 0"),
        ({"tournament": 0}, "^tournament must be above 0, got 0"),
        ({"population": 4, "tournament": 5}, r"^tournament must be at most the population \(4\), got 5"),
        ({"identity": 1.0}, "^identity must be at least 0 and below 1, got 1.0"),
        ({"identity": -0.1}, "^identity must be at least 0 and below 1, got -0.1"),
        ({"identity": math.nan}, "^identity must be at least 0 and below 1, got nan"),
    ],
)
def test_wrong_evolutions_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        EvolutionProposer(CELLS, **options)
    with pytest.raises(InvalidInput, match=message):
        regularized_evolution.Config(**options)


def test_an_evolution_without_a_mutation_is_refused():
    for samples in (10, 4):
        with pytest.raises(InvalidInput, match=rf"^population must be below samples \({samples}\), got 10: all "):
            regularized_evolution.Config(samples=samples, population=10, tournament=2)
    regularized_evolution.Config(samples=11, population=10, tournament=2)


def test_the_defaults_are_the_papers():
    config = regularized_evolution.Config()
    assert (config.population, config.tournament, config.samples, config.epochs) == (100, 25, 20_000, 25)
    assert config.identity == EvolutionProposer(CELLS).identity == 0.05


# --- local search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", local_search.MOVES)
def test_walks_end_in_local_optima_of_a_table(move):
    """Two hills on a line: each walk climbs the one that it begins on, and the next begins elsewhere."""
    line = Line(9)
    heights = [1, 2, 3, 2, 0, 1, 5, 6, 4]
    proposer = LocalSearchProposer(line, move)
    tops = set()
    for seed in range(20):
        evaluated = look_up(proposer, lambda cell: heights[line.cells.index(cell)], 9, seed)
        assert set(genotypes_of(evaluated)) == set(line.cells)  # nothing twice: nine samples are all nine cells
        places = [line.cells.index(genotype) for genotype in genotypes_of(evaluated)]
        walk = proposer.walk(evaluated)
        assert walk.position is None
        # Cells that were passed by begin no walk that counts as an optimum: it follows known scores to a known top.
        assert {line.cells.index(optimum) for optimum in walk.optima} == {2, 7}
        tops.add(line.cells.index(walk.optima[0]))
        first = [line.cells.index(position) for position in walk.path[: walk.path.index(walk.optima[0]) + 1]]
        assert first[0] == places[0]
        assert all(heights[a] < heights[b] for a, b in itertools.pairwise(first))
    assert tops == {2, 7}


@pytest.mark.parametrize("move", local_search.MOVES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_cell_is_trained_twice_and_optima_have_no_better_neighbour(move, seed):
    evaluated = look_up(LocalSearchProposer(FEW_CELLS, move), rugged, 200, seed)
    assert len(set(genotypes_of(evaluated))) == 200
    walk, starts = Walk(FEW_CELLS, move), 0
    for score, genotype in evaluated:
        starts += walk.position is None
        assert walk.position is None or genotype in walk.open
        walk.add(score, genotype)
    assert starts == len(walk.optima) + (walk.position is not None)
    assert len(walk.optima) > 0
    for optimum in walk.optima:
        assert all(rugged(other) <= rugged(optimum) for other in FEW_CELLS.neighbours(optimum))


def test_a_separable_function_has_one_optimum():
    evaluated = look_up(LocalSearchProposer(FEW_CELLS, "first-better"), separable, 100)
    assert math.isclose(best_of(evaluated)[0], OPTIMUM / 2)  # of one kind of cell


def test_best_moves_when_it_knows_all_neighbours_and_to_the_best():
    line = Line(5)
    low, middle, high = line.cells[1], line.cells[2], line.cells[3]
    best, first = LocalSearchProposer(line, "best"), LocalSearchProposer(line, "first-better")
    evaluated = [(0.2, middle), (0.3, low)]
    assert best.walk(evaluated).position == middle
    assert first.walk(evaluated).position == low
    assert best.propose(evaluated, generator(0)) == high
    assert first.propose(evaluated, generator(0)) == line.cells[0]
    assert best.walk([*evaluated, (0.4, high)]).position == high
    assert best.walk([*evaluated, (0.25, high)]).position == low


def test_equal_scores_end_a_walk():
    line = Line(3)
    for move in local_search.MOVES:
        walk = LocalSearchProposer(line, move).walk([(0.5, line.cells[0]), (0.5, line.cells[1])])
        assert walk.position is None
        assert walk.optima == [line.cells[0]]


def test_a_used_up_space_is_sampled_on():
    line = Line(3)
    evaluated = look_up(LocalSearchProposer(line), lambda _: 1.0, 6)
    assert set(genotypes_of(evaluated[:3])) == set(line.cells)


def test_an_unknown_move_is_refused():
    for make in (local_search.Config, lambda move: LocalSearchProposer(CELLS, move)):
        with pytest.raises(Exception, match=r"move") as caught:
            make(move="bests")
        assert isinstance(caught.value, InvalidInput | TypeCheckError)


# --- proposers are functions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: EvolutionProposer(CELLS, 10, 3),
        lambda: LocalSearchProposer(CELLS, "best"),
        lambda: LocalSearchProposer(CELLS, "first-better"),
        lambda: RandomProposer(CELLS),
    ],
)
def test_a_proposal_depends_on_the_scores_and_the_seed_alone(make):
    proposer = make()
    evaluated = look_up(proposer, rugged, 60, seed=3)
    for number in (0, 1, 30, 7, 59, 59):
        draws = generator(3, "sample", number)
        assert make().propose(tuple(evaluated[:number]), draws) == evaluated[number][1]
    assert look_up(make(), rugged, 20, seed=3) == evaluated[:20]
    assert make() == proposer


# --- on images --------------------------------------------------------------------------------------------------------

NAMES = ("random-search", "regularized-evolution", "local-search")


@pytest.fixture(scope="module")
def data():
    return load_images("digits").take(96, 40)


def search_of(name, data, seed=0, **changes):
    size = {"samples": 5, "epochs": 1, "batch_size": 16, "channels": 2, "cells": 3}
    methods = {"random-search": random_search, "regularized-evolution": regularized_evolution}
    own = {"regularized-evolution": {"population": 2, "tournament": 2}, "local-search": {"move": "first-better"}}
    method = methods.get(name, local_search)
    return method.Search(method.Config(**{**size, **own.get(name, {}), **changes}), data, SPACE, seed)


def ending(search):
    state = copy.deepcopy(search.state_dict())
    for part in (state, state["fit"]):
        part.pop("seconds", None)
        part.pop("random", None)
        for report in part["history"]:
            report.pop("seconds")
    return state


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other or (one != one and other != other)


@pytest.mark.parametrize("name", NAMES[1:])
def test_resumed_at_every_sample_to_the_same_bits(name, data, tmp_path):
    undisturbed = search_of(name, data)
    for number, _ in enumerate(undisturbed.epochs(), start=1):
        undisturbed.save(tmp_path / f"{number}.pt")
    for number in range(1, 6):
        search = search_of(name, data)
        search.load(tmp_path / f"{number}.pt")
        assert search.sample == number
        list(search.epochs())
        same(ending(search), ending(undisturbed))
        assert search.result().genotype == undisturbed.result().genotype


@pytest.mark.parametrize("name", NAMES[1:])
def test_stopped_at_every_step_inside_its_samples(name, data):
    undisturbed, search = search_of(name, data, epochs=2, samples=3), search_of(name, data, epochs=2, samples=3)
    list(undisturbed.epochs())
    while not search.finished:
        search.on_step = lambda running: running.stop()
        list(search.epochs())
        other = search_of(name, data, epochs=2, samples=3)
        other.load_state_dict(copy.deepcopy(search.state_dict()))
        search = other
    same(ending(search), ending(undisturbed))


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_what_the_proposer_says(name, data):
    search = search_of(name, data)
    list(search.epochs())
    scores = search.scores
    for number, (score, genotype) in enumerate(scores):
        assert genotype == search.proposer.propose(scores[:number], generator(0, "sample", number))
        assert search.history[number].validation_accuracy == score
        assert search.history[number].genotype == best_of(scores[: number + 1])[1]
        assert search.genotype(number) == genotype
    assert (search.result().validation_accuracy, search.result().genotype) == best_of(scores)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_sample_that_depends_on_unknown_scores_is_refused(name, data):
    search = search_of(name, data)
    search.genotype(0)
    with pytest.raises(InvalidInput, match="^Sample 2 depends on the scores of those before it, and 0 are trained"):
        search.genotype(2)


def test_a_cell_that_is_trained_again_gets_other_initial_weights(data):
    search = search_of("regularized-evolution", data, population=1, tournament=1, identity=0.999, samples=3)
    list(search.epochs())
    (_, first), (_, second), _ = search.scores
    assert first == second
    assert search.history[0].train_loss != search.history[1].train_loss


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("regularized-evolution", {"population": 3}),
        ("regularized-evolution", {"tournament": 1}),
        ("regularized-evolution", {"identity": 0.0}),
        ("local-search", {"move": "best"}),
    ],
)
def test_a_checkpoint_of_another_search_is_refused(name, change, data, tmp_path):
    search_of(name, data).save(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=next(iter(change))):
        search_of(name, data, **change).load(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_random_search_is_as_before(data):
    search = search_of("random-search", data)
    assert list(search.header()) == ["method", "space", "config", "data", "seed", "topology"]
    assert list(search.header()["config"]) == [
        *("samples", "epochs", "batch_size", "channels", "cells", "stem", "learning_rate", "train_share")
    ]
    assert list(search.state_dict()) == ["scores", "history", "fit"]


# --- at a scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_all_train_as_many_epochs_as_darts_searches(scale):
    darts = SEARCH_CONFIGS["darts"](scale)
    for name in NAMES:
        config = SEARCH_CONFIGS[name](scale)
        assert darts.epochs - config.epochs < config.samples * config.epochs <= darts.epochs
        assert (config.batch_size, config.channels, config.cells) == (darts.batch_size, darts.channels, darts.cells)


@pytest.mark.parametrize("epochs", range(1, 40))
def test_every_number_of_epochs_has_a_search(epochs):
    scale = replace(SCALES["quick"], search_epochs=epochs)
    evolution = SEARCH_CONFIGS["regularized-evolution"](scale)
    assert 1 <= evolution.tournament <= evolution.population < evolution.samples
    assert SEARCH_CONFIGS["local-search"](scale).samples == evolution.samples
