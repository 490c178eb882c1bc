"""Chapter 5's trained experiments at a scale of a second, and their verdicts on records made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from nasbook.analysis import count_macs, count_parameters
from nasbook.data import load_images
from nasbook.errors import InvalidInput
from nasbook.experiments import (
    CLAIMS,
    POOL_SCALES,
    SCALES,
    Workplace,
    derived_network,
    get_experiment,
    list_experiments,
    pool_scale,
    pr_darts_config,
    pr_darts_space,
    prune_and_replace,
    read_record,
    reproduce,
    scoreboard,
)
from nasbook.genotypes import (
    DARTS_SPACE,
    DARTS_V1,
    DARTS_V2,
    PR_DARTS_DL1,
    PR_DARTS_DL2,
    PR_DARTS_DR,
    PR_DARTS_UR,
    Genotype,
    random_operations,
)
from nasbook.methods import darts, pr_darts
from nasbook.operations import CONSTRAINTS, configuration_of, is_morphable
from nasbook.seeding import generator
from nasbook.training import Fit

NOT = "does not hold at this scale"


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def spaces(nine_cycles, tmp_path_factory):
    """The values of one measurement of prdarts-spaces, as they are read back."""
    folder = tmp_path_factory.mktemp("spaces")
    made = reproduce("prdarts-spaces", nine_cycles, seed=1, folder=folder)
    record = read_record(folder / "prdarts-spaces.tiny.json")
    assert record.measurements == (made,) and record.scale["deep_cells"] == 3
    assert not list(folder.rglob("*.pt"))
    return made.values


def verdict(record_of, experiment, claim, values):
    return get_experiment(experiment).judges[claim](record_of(experiment, *values, of=POOL_SCALES["quick"]))


# --- scales and configurations ----------------------------------------------------------------------------------------


def test_the_numbers_of_every_scale():
    for name, scale in POOL_SCALES.items():
        assert pool_scale(SCALES[name]) is scale and pool_scale(scale) is scale
        assert len(scale.cycle_epochs) == len(scale.grace_epochs) == len(scale.cycle_cells) == 9
        assert scale.deep_cells == math.ceil(2.5 * scale.search_cells)
        assert (scale.cycle_cells[0], scale.cycle_cells[-1]) == (scale.search_cells, scale.deep_cells)
        assert list(scale.cycle_cells) == sorted(scale.cycle_cells)
        assert sum(scale.grace_epochs) / sum(scale.cycle_epochs) == pytest.approx(1 / 3, abs=0.13)
    with pytest.raises(InvalidInput, match="Chapter 5 needs numbers of its own .*cycle_epochs"):
        pool_scale(replace(SCALES["quick"], name="mine"))
    for experiment in ("course", "spaces", "improvements", "morphisms", "schedule", "batch"):
        assert get_experiment(f"prdarts-{experiment}").scaled(SCALES["laptop"]) is POOL_SCALES["laptop"]


def test_the_paper_scale_is_the_papers():
    config = pr_darts_config(SCALES["paper"])
    assert config == pr_darts_config(SCALES["paper"], follow_memory=True) == pr_darts.Config()
    assert (config.memory_budget, config.batch_size, config.largest_batch) == (11.0, 24, 128)
    assert (config.channels, config.cells, config.order) == (16, 8, "first-order")
    paper = POOL_SCALES["paper"]
    assert (paper.deep_cells, paper.channels, paper.epochs, paper.drop_path, paper.cutout) == (20, 36, 600, 0.3, 16)
    assert paper.cycle_epochs == config.cycle_epochs and paper.grace_epochs == config.grace_epochs
    for name, constraints in CONSTRAINTS.items():
        assert pr_darts_config(paper, name) == pr_darts.Config(constraints=constraints)


def test_the_batch_is_fixed_unless_it_is_to_follow_the_memory():
    for name in ("quick", "laptop", "gpu"):
        scale = POOL_SCALES[name]
        fixed, follows = pr_darts_config(scale), pr_darts_config(scale, follow_memory=True)
        assert (fixed.memory_budget, fixed.batch_size) == (None, scale.search_batch)
        assert follows.memory_budget == scale.memory_mib / 1024
        assert (follows.batch_size, follows.largest_batch) == (scale.smallest_batch, scale.largest_batch)
        same = ("batch_size", "largest_batch", "memory_budget")
        assert replace(follows, **{key: getattr(fixed, key) for key in same}) == fixed


@pytest.mark.parametrize("name", POOL_SCALES)
def test_alpha_can_move_as_far_at_every_scale(name, digits):
    """Rate × steps outside of grace epochs is the paper's 16, for one half of the images is the architecture's."""
    assert len(digits.train_images) == 1280
    scale = POOL_SCALES[name]
    images = {"quick": 1280, "laptop": 2000, "gpu": 50_000, "paper": 50_000}[name]
    steps = (sum(scale.cycle_epochs) - sum(scale.grace_epochs)) * (images // 2 // scale.search_batch)
    assert scale.pool_learning_rate * steps == pytest.approx(6e-4 * 69 * 390, rel=0.12)


@pytest.mark.parametrize("name", POOL_SCALES)
def test_pruning_alone_and_cycles_alone(name):
    scale = POOL_SCALES[name]
    pruned, unpruned = prune_and_replace.without_children_config(scale), prune_and_replace.unpruned_config(scale)
    sizes = (7, *pruned.candidates)
    falls = [before - after for before, after in zip(sizes, pruned.candidates, strict=False)]
    assert [cycle for cycle, fall in enumerate(falls, start=1) if fall] == [1, 2, 4, 6, 8, 9]
    assert max(falls) == 1 and sizes[-1] == 1
    assert unpruned.candidates == (7, 7, 7, 7, 7, 7, 7, 7, 1)
    whole = pr_darts_config(scale)
    for config in (pruned, unpruned):
        assert config.morphisms == (0,) * 9
        assert replace(config, morphisms=whole.morphisms, candidates=whole.candidates) == whole


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_the_searches_of_table_3(name, digits):
    """Equal epochs, images and seeds for all; rows differ in what is said of them."""
    scale = replace(POOL_SCALES[name], search_channels=2, search_cells=2, memory_mib=1.0, auxiliary=False)
    searches = prune_and_replace._searches(Workplace(scale, 3, "digits", loaded=digits.take(280)))
    assert tuple(searches) == prune_and_replace.ROWS
    found = {row: build() for row, build in searches.items()}
    for row, search in found.items():
        assert type(search) is (darts.Search if row == "DARTS" else pr_darts.Search)
        assert (search.seed, search.total_epochs) == (3, sum(scale.cycle_epochs))
        assert (search.config.channels, search.config.cells, search.config.order) == (2, 2, "first-order")
        assert search.space.nodes == scale.nodes
    plain = found["DARTS"].config
    rate = plain.architecture_learning_rate
    # What α can move in all is what DARTS' own number of epochs gives it.
    assert rate * plain.epochs == pytest.approx(scale.architecture_learning_rate * scale.search_epochs)
    assert plain.batch_size == scale.search_batch
    assert len(found["DARTS"].space.operations) == 8
    for row in ("cycles only", "prune only"):
        assert found[row].space.operations == found["DARTS"].space.choices
        assert len(found[row].space.operations) == 7 and not any(found[row].config.morphisms)
    assert found["cycles only"].config == prune_and_replace.unpruned_config(scale)
    assert found["prune only"].config == prune_and_replace.without_children_config(scale)
    for row in CONSTRAINTS:
        assert found[row].space == pr_darts_space(scale) and found[row].config == pr_darts_config(scale, row)
        assert found[row].config.constraints == CONSTRAINTS[row]


def test_what_a_search_can_meet():
    met = prune_and_replace._discoverable("DL")
    assert len(set(met)) == len(met) == 15  # Table 3 and §5: K = 15
    assert set(pr_darts.INITIAL_SPACE.operations) <= set(met) and sum(map(is_morphable, met)) == 12
    assert [len(prune_and_replace._discoverable(name)) for name in ("DR", "UR")] == [3 + 36, 3 + 80]


# --- what is read off -------------------------------------------------------------------------------------------------


def test_the_last_epoch_of_every_cycle():
    history = [{"cycle": cycle, "epoch": epoch} for epoch, cycle in enumerate((1, 1, 2, 3, 3, 3), start=1)]
    assert [report["epoch"] for report in prune_and_replace.cycle_ends(history)] == [2, 3, 6]
    assert prune_and_replace.cycle_ends(history[:1]) == history[:1]


@pytest.mark.parametrize(
    ("genotype", "layers"),
    [
        (DARTS_V1, 2.0),  # separable convolutions only, each stacked twice
        (DARTS_V2, 11 / 6),  # five of them, and a dilated one
        (PR_DARTS_DL1, 2.0),
        (PR_DARTS_DL2, 19 / 12),
        (PR_DARTS_DR, 15 / 8),
        (PR_DARTS_UR, 29 / 13),
        (random_operations(DARTS_V1, ("skip_connect",), generator(0)), 0.0),
    ],
)
def test_layers_of_a_convolution(genotype, layers):
    assert prune_and_replace.convolution_layers(genotype) == pytest.approx(layers, abs=1e-12)


@pytest.mark.parametrize("constraints", CONSTRAINTS)
def test_similarity_by_chance(constraints):
    chance = prune_and_replace.chance_similarity
    found = {pairs: chance(constraints, edges=15, pairs=pairs) for pairs in prune_and_replace.PAIRS}
    assert {values.shape for values in found.values()} == {(9,)}
    assert all((values > 0).all() and (values < 1).all() for values in found.values())
    # Three kinds of candidates at first: of six pairs one, max and average pooling, is 2/3 similar.
    assert found["different"][0] == pytest.approx(1 / 9)
    # With each candidate itself, of m. In the DARTS-like space a pool of 6 may find no other child.
    m = np.array((4, 6, 6, 6, 6, 6, 4, 3, 2))
    sizes = m if constraints != "DL" else m[[0, 6, 7, 8]]
    places = np.isin(np.arange(9), (0, 6, 7, 8)) | (constraints != "DL")
    assert found["all"][places] == pytest.approx((1 + (sizes - 1) * found["different"][places]) / sizes)
    assert found["different"] is chance(constraints, edges=15, pairs="different")
    chance.cache_clear()
    assert chance(constraints, edges=15, pairs="different").tolist() == found["different"].tolist()
    with pytest.raises(ValueError, match="read-only"):
        found["different"][0] = 1.0


# --- runs -------------------------------------------------------------------------------------------------------------


def without_times(values):
    """Nested values without seconds."""
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if name != "seconds"}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def test_table_3_runs(spaces, nine_cycles, digits):
    assert list(spaces) == [*prune_and_replace.ROWS, *prune_and_replace.RANDOM_ROWS]
    for row, values in spaces.items():
        genotypes = [Genotype.from_json(text) for text in values["genotypes"]]
        assert len(genotypes) == (3 if row in prune_and_replace.RANDOM_ROWS else 1)
        assert all(cell.nodes == 1 and len(cell.edges) == 2 for genotype in genotypes for _, cell in genotype.cells)
        layers = [prune_and_replace.convolution_layers(genotype) for genotype in genotypes]
        assert values["layers"] == pytest.approx(np.mean(layers))
        for depth, cells in (("shallow", 2), ("deep", 3)):
            assert 0 <= values[depth]["test_accuracy"] <= 1 and 0 <= values[depth]["train_accuracy"] <= 1
            scale = replace(nine_cycles, cells=cells)
            networks = [derived_network(genotype, scale, digits, 0) for genotype in genotypes]
            assert values[depth]["parameters"] == np.mean([count_parameters(network) for network in networks])
        assert values["macs"] == np.mean([count_macs(network, (1, 1, 8, 8)) for network in networks])  # the deep ones
        assert ("search_accuracy" in values) == (row in prune_and_replace.ROWS)
        names = {name for genotype in genotypes for name in genotype.operations()}
        if row in CONSTRAINTS:
            reached = {configuration_of(name) for name in names if is_morphable(name)}
            assert all(CONSTRAINTS[row].allow(configuration) for configuration in reached)
        elif row == "random DL":
            assert names <= set(prune_and_replace._discoverable("DL")) and any(map(is_morphable, names))
        else:
            assert names <= set(DARTS_SPACE.choices)
    # Pools that no one joins show seven operations and no more; fifteen is all that the DARTS-like space has.
    assert "discovered" not in spaces["DARTS"]
    for row in ("cycles only", "prune only"):
        assert spaces[row]["discovered"] == {"normal": 7, "reduction": 7}
    assert all(7 <= count <= 15 for count in spaces["DL"]["discovered"].values())
    assert all(count > 7 for row in ("DR", "UR") for count in spaces[row]["discovered"].values())


class PowerCut(BaseException):
    """Ends a measurement in the middle, as nothing in the package expects."""


def cut_after(monkeypatch, steps):
    """The power fails when so many steps of all runs have been made; those made are noted."""
    made = []
    for kind in (Fit, darts.Search, pr_darts.Search):

        def run_step(self, index, kind=kind, original=kind.run_step):
            if type(self) is kind:
                made.append(index)
                if len(made) > steps:
                    raise PowerCut
            return original(self, index)

        monkeypatch.setattr(kind, "run_step", run_step)
    return made


def cut_and_resumed(monkeypatch, experiment, scale, folder, steps):
    """The values of a measurement that was cut after so many steps, and how many it made after that."""
    with monkeypatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCut):
            reproduce(experiment, scale, seed=1, folder=folder)
    assert not list(folder.glob("*.json"))
    with monkeypatch.context() as patch:
        left = cut_after(patch, 10**6)
        made = reproduce(experiment, scale, seed=1, folder=folder, resume=True)
    assert read_record(folder / f"{experiment}.{scale.name}.json").measurements == (made,)
    return made.values, len(left)


@pytest.mark.parametrize("steps", [5, 19])
def test_table_3_goes_on_after_a_power_cut(nine_cycles, spaces, tmp_path, monkeypatch, steps):
    """In the sixth cycle of a search of nine steps; and in the training of random cells, of one step each.

    What a row is does not depend on the others: here there are fewer of them.
    """
    searches = prune_and_replace._searches
    monkeypatch.setattr(prune_and_replace, "_searches", lambda workplace: {"DL": searches(workplace)["DL"]})
    values, left = cut_and_resumed(monkeypatch, "prdarts-spaces", nine_cycles, tmp_path, steps)
    assert left == 9 + 2 * (1 + 3 + 3) - steps  # every epoch is one step, and no finished one is made again
    rows = ("DL", *prune_and_replace.RANDOM_ROWS)
    assert without_times(values) == without_times({row: spaces[row] for row in rows})


def test_the_improvements_run(nine_cycles, spaces, tmp_path, monkeypatch):
    """Cut in the second search, which deepens. The first is that of Table 3's last row, with the same results."""
    values, left = cut_and_resumed(monkeypatch, "prdarts-improvements", nine_cycles, tmp_path, steps=9 + 2 + 8)
    assert left == 4 * (9 + 2) - (9 + 2 + 8)
    assert tuple(values) == prune_and_replace.IMPROVEMENTS
    shared = {name: value for name, value in spaces["UR"].items() if name not in ("seconds", "discovered")}
    assert {name: values["as published"][name] for name in shared} == shared
    cell_epochs = {name: row["cell_epochs"] for name, row in values.items()}
    assert cell_epochs == dict(zip(prune_and_replace.IMPROVEMENTS, (9 * 2, 8 * 2 + 3, 9 * 3, 9 * 2), strict=True))
    assert all(row["first_weight"] == pytest.approx(1.0, abs=0.5) for row in values.values())
    assert not get_experiment("prdarts-improvements").judges


def test_the_searches_of_the_improvements(nine_cycles, digits, monkeypatch):
    configs = []

    def search(config, data, space, seed):
        configs.append(config)
        result = SimpleNamespace(validation_accuracy=0.5, seconds=1.0, genotype=PR_DARTS_DL1)
        return SimpleNamespace(result=lambda: result)

    monkeypatch.setattr(pr_darts, "Search", search)
    monkeypatch.setattr(Workplace, "drive", lambda *_: None)
    monkeypatch.setattr(prune_and_replace, "_first_weight", lambda _: 1.0)
    monkeypatch.setattr(prune_and_replace, "_retrained", lambda *_: {})
    prune_and_replace.improvements(Workplace(nine_cycles, 1, "digits", loaded=digits))
    plain = pr_darts_config(nine_cycles, "UR")
    assert configs == [
        plain,
        replace(plain, cycle_cells=(2, 2, 2, 2, 2, 2, 2, 2, 3)),
        replace(plain, cells=3),
        replace(plain, morphism_choice="performance"),
    ]


def test_fig_2_runs(nine_cycles, tmp_path, monkeypatch):
    """Seven steps of eight images a cycle, or five and one of sixteen where these fit."""
    scale = replace(nine_cycles, train_images=120)
    whole = reproduce("prdarts-course", scale, seed=1).values
    history = whole["history"]
    assert [report["cycle"] for report in history] == list(range(1, 10))
    assert prune_and_replace.cycle_ends(history) == history
    assert {round(report["batch"], 3) for report in history} == {8.0, 9.333}  # (5·8 + 16)/6
    assert all(0 < report["memory"] <= 0.95 * 0.5 * 2**20 for report in history)
    for report in history:
        for kind in ("normal", "reduction"):
            assert sum(report["mix"][kind].values()) == pytest.approx(1)
            different, alike = (report["similarity"][pairs][kind] for pairs in ("different", "all"))
            assert 0 <= different < alike <= 1
    assert alike == pytest.approx((1 + different) / 2)  # two are left
    assert history[0]["mix"]["normal"] == {"pool": 0.5, "identity": 0.25, "convolution": 0.25}
    assert history[0]["similarity"]["different"] == pytest.approx({"normal": 1 / 9, "reduction": 1 / 9})
    Genotype.from_json(whole["genotype"])

    values, left = cut_and_resumed(monkeypatch, "prdarts-course", scale, tmp_path, steps=24)
    assert without_times(values) == without_times(whole)
    steps = sum({8.0: 7}.get(report["batch"], 6) for report in history)
    assert steps - 24 <= left < steps


# --- verdicts ---------------------------------------------------------------------------------------------------------


def courses_of(*seeds, alike=None):
    """Each seed's similarity in the nine cycles, at their ends; in the epochs before them it is another."""

    def report(cycle, different, everything):
        kinds = {"different": different, "all": everything}
        return {
            "cycle": cycle,
            "similarity": {
                pairs: {"normal": value - 0.05, "reduction": value + 0.05} for pairs, value in kinds.items()
            },
        }

    return [
        {
            "history": [
                epoch
                for cycle, value in enumerate(seed, start=1)
                for epoch in (report(cycle, 1 - value, 1 - value), report(cycle, value, (alike or seed)[cycle - 1]))
            ]
        }
        for seed in seeds
    ]


RISES = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
FALLS = tuple(reversed(RISES))
BEND = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.48, 0.46, 0.44)  # rises while there are children, falls in cycles 6 to 9
DIP = (0.1, 0.5, 0.4, 0.3, 0.25, 0.2, 0.3, 0.5, 0.7)  # the other way round
STEP = (0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)  # children are like their parents, and that is all
LOST = (*RISES[:8], float("nan"))


def moved(curve, by):
    return tuple(value + by * place for place, value in enumerate(curve))


@pytest.fixture
def little_chance(monkeypatch):
    monkeypatch.setattr(prune_and_replace, "chance_similarity", lambda: np.linspace(0.11, 0.19, 9))


@pytest.mark.parametrize(
    ("seeds", "status"),
    [
        ((RISES, moved(RISES, 0.01), moved(RISES, -0.005)), "holds"),
        ((BEND, moved(BEND, 0.001), moved(BEND, -0.001)), "partly"),
        ((RISES, BEND, STEP), "partly"),  # rises in the mean
        ((RISES, moved(RISES, 0.01), moved(RISES, -0.08)), "partly"),
        ((LOST, moved(LOST, 0.01), moved(LOST, -0.005)), "partly"),  # no similarity in the last cycle
        ((FALLS, moved(FALLS, 0.01), moved(FALLS, -0.005)), NOT),
        ((DIP, moved(DIP, 0.001), moved(DIP, -0.001)), NOT),
        ((STEP, STEP, STEP), NOT),
    ],
)
def test_the_verdict_on_similarity(record_of, little_chance, seeds, status):
    found = verdict(record_of, "prdarts-course", "prdarts.similarity", courses_of(*seeds))
    assert found.status == status
    middle = np.mean([seed[5] - seed[1] for seed in seeds])
    assert f"from cycle 2 to 6 {middle:+.2f}" in found.numbers and "3 seeds" in found.numbers
    assert "with random weights 0.12, 0.16, 0.19 in cycles 2, 6, 9" in found.numbers


def test_only_different_candidates_are_judged(record_of, little_chance):
    """Each candidate is like itself, the more so the fewer there are; that is told and proves nothing."""
    falling = courses_of(FALLS, moved(FALLS, 0.01), moved(FALLS, -0.005), alike=RISES)
    found = verdict(record_of, "prdarts-course", "prdarts.similarity", falling)
    assert found.status == NOT and "as in the code, 0.20, 0.50, 0.70" in found.numbers
    rising = courses_of(RISES, moved(RISES, 0.01), moved(RISES, -0.005), alike=FALLS)
    assert verdict(record_of, "prdarts-course", "prdarts.similarity", rising).status == "holds"


def test_similarities_are_means_over_cells_at_the_ends_of_cycles(record_of):
    record = record_of("prdarts-course", *courses_of(RISES, BEND, alike=FALLS))
    assert prune_and_replace.similarities(record) == pytest.approx(np.array([RISES, BEND]))
    assert prune_and_replace.similarities(record, "all") == pytest.approx(np.array([FALLS, FALLS]))


def spaces_of(**rows):
    """Rows by name with blanks for underscores; each seed's accuracies in the search, deep and shallow."""
    seeds = len(next(iter(rows.values())))
    return [
        {
            name.replace("_", " "): {
                "search_accuracy": row[seed][0],
                "deep": {"test_accuracy": row[seed][1], "parameters": 20_000},
                "shallow": {"test_accuracy": row[seed][2], "parameters": 9_000},
                "layers": 2.0 if name == "DR" else 2.5,
            }
            for name, row in rows.items()
        }
        for seed in range(seeds)
    ]


def deep(*accuracies):
    return [(0.5, accuracy, 0.5) for accuracy in accuracies]


@pytest.mark.parametrize(
    ("pruned", "plain", "status"),
    [
        ((0.96, 0.97, 0.965), (0.95, 0.955, 0.952), "holds"),
        ((0.96, 0.94, 0.965), (0.95, 0.955, 0.952), "partly"),
        ((0.95, 0.955, 0.952), (0.96, 0.97, 0.965), NOT),
        ((0.95, 0.95, 0.95), (0.95, 0.95, 0.95), NOT),
        ((0.96, float("nan"), 0.965), (0.95, 0.955, 0.952), NOT),
    ],
)
def test_the_verdict_on_pruning(record_of, pruned, plain, status):
    """Whatever the cycles alone and random cells do: they are told, and the claim is about DARTS."""
    for others in (0.1, 0.99):
        values = spaces_of(
            prune_only=deep(*pruned),
            DARTS=deep(*plain),
            cycles_only=deep(others, others + 0.001, others),
            random_DARTS=deep(others, others, others + 0.002),
        )
        found = verdict(record_of, "prdarts-spaces", "prdarts.prune", values)
        assert found.status == status
        assert "retrained, 8 cells" in found.numbers and "3 seeds" in found.numbers
        assert "random DARTS" in found.numbers and "20,000 parameters" in found.numbers


@pytest.mark.parametrize(
    ("searched", "retrained", "status"),
    [
        ((0.0, 0.001, -0.001), (0.02, 0.025, 0.018), "holds"),
        ((-0.05, -0.04, -0.06), (0.02, 0.025, 0.018), "holds"),  # UR is better in the search, as in the paper
        ((0.0, 0.001, -0.001), (0.05, -0.02, 0.018), "partly"),
        ((0.03, 0.02, 0.04), (0.02, 0.025, 0.018), NOT),  # already worse in the search: no gap
        ((0.011, 0.012, 0.01), (0.02, 0.025, 0.018), NOT),  # by more than 1 %
        ((0.009, 0.008, 0.01), (0.02, 0.025, 0.018), "holds"),  # by less
        ((0.0, 0.001, -0.001), (-0.02, -0.025, -0.018), NOT),  # UR is better
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), NOT),  # all alike
        ((float("nan"), 0.0, 0.0), (0.02, 0.025, 0.018), NOT),
    ],
)
def test_the_verdict_on_the_depth_gap(record_of, searched, retrained, status):
    """How far the depth-restricted space is above the unrestricted one. Shallow networks are told and not judged."""
    for shallow in (-0.3, 0.3):
        values = spaces_of(
            DR=[(0.8 + above, 0.9 + gap, 0.6 + shallow) for above, gap in zip(searched, retrained, strict=True)],
            UR=[(0.8, 0.9, 0.6)] * 3,
        )
        found = verdict(record_of, "prdarts-spaces", "prdarts.depth-gap", values)
        assert found.status == status
        for text in (f"{shallow:+.2%} retrained with 3 cells", "with 8 (", "DR 2.00, UR 2.50", "8 epochs of"):
            assert text in found.numbers


def test_every_claim_of_the_chapter_has_one_judge():
    judges = [claim for experiment in list_experiments() for claim in experiment.judges if "prdarts." in claim]
    assert sorted(judges) == sorted(claim.id for claim in CLAIMS if claim.paper == "prdarts") and len(judges) == 8
    for experiment in list_experiments():
        if experiment.name.startswith("prdarts-"):
            assert experiment.chapter == "05-prune-and-replace"
            assert experiment.seeds(SCALES["quick"]) == (3 if experiment.seeded else 1)


def test_the_scoreboard_shows_the_trends(record_of, little_chance):
    quick = POOL_SCALES["quick"]
    curves = courses_of(RISES, moved(RISES, 0.01), moved(RISES, -0.005))
    course = record_of("prdarts-course", *curves, of=quick)
    lines = scoreboard("prdarts", [course], ("claim", "scale", "verdict")).splitlines()
    assert "| `prdarts.similarity` | quick | **holds** |" in lines
    assert "| `prdarts.prune` | — | not yet run |" in lines
    few = scoreboard("prdarts", [record_of("prdarts-course", *curves[:2], of=quick)], ("claim", "verdict", "numbers"))
    assert "| `prdarts.similarity` | **not yet run at this scale** | 2 of 3 seeds measured |" in few.splitlines()
