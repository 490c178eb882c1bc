"""Chapter 6's trained experiments at a scale of a second, and their verdicts on records made by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from nasbook.errors import InvalidInput
from nasbook.experiments import (
    SCALES,
    Workplace,
    get_experiment,
    growing_cells,
    growing_scale,
    image_cells,
    read_record,
    reproduce,
)
from nasbook.experiments.growing_cells import (
    BASELINES,
    NOISES,
    OPERATOR_ROWS,
    PASSING,
    RANDOM_ROWS,
    ROWS,
    UNGROWN_ROWS,
    best_so_far,
    curves,
    escaped,
    least_loss,
    operator_rules,
    random_recurrent_cell,
    reads_input,
    series_config,
    series_data,
    text_config,
    text_data,
    weight_epochs,
)
from nasbook.experiments.scale import GROWING_SCALES
from nasbook.genotypes import DARTS_V1, CellGenotype, Edge, Genotype
from nasbook.methods import darts, growing, growing_recurrent, growing_search
from nasbook.networks import RECURRENT_BACKBONES, DerivedRecurrentNetwork
from nasbook.seeding import generator
from nasbook.supernets import RecurrentSearchNetwork, change_operators
from nasbook.training import SequenceFit

NOT = "does not hold at this scale"
ALL_ROWS = (*ROWS, *BASELINES, *UNGROWN_ROWS, *RANDOM_ROWS)
QUICK = GROWING_SCALES["quick"]


# --- scales and configurations ----------------------------------------------------------------------------------------


def test_the_numbers_of_every_scale():
    for name, scale in GROWING_SCALES.items():
        assert growing_scale(SCALES[name]) is scale and growing_scale(scale) is scale
        assert scale.starts == {2: 2, 3: 3, 4: 3}  # §4.2: nodes, and the patience with them
        assert scale.grown_nodes > scale.series_nodes == 2
    with pytest.raises(InvalidInput, match="Chapter 6 needs numbers of its own"):
        growing_scale(replace(SCALES["quick"], name="mine"))


def test_the_paper_scale_is_the_papers():
    paper = GROWING_SCALES["paper"]
    assert text_config(paper, "two-to-one", "prune-each-stage", 2) == growing_recurrent.Config()
    language = text_config(paper, "darts", "prune-at-end", 4)
    assert (language.hidden, language.batch_size, language.stage_epochs, language.patience) == (128, 50, 10, 3)
    assert (language.learning_rate, language.architecture_learning_rate) == (1e-3, 3e-4)
    assert paper.text_lines == (4000, 500, 500)
    returns = series_config(paper, "darts", "prune-at-end", 7)
    assert (returns.batch_size, returns.learning_rate, returns.architecture_learning_rate) == (50, 1e-3, 3e-4)
    assert returns.weight_decay == returns.architecture_weight_decay == 0
    assert (returns.backbone, returns.mode, returns.nodes, returns.hidden) == ("darts", "prune-at-end", 2, 7)


@pytest.mark.parametrize(
    ("experiment", "trials"), [("growing-series", (3, 20, 20, 20)), ("growing-language", (3, 3, 5, 5))]
)
def test_the_papers_number_of_trials_where_there_is_time(experiment, trials):
    scaled = get_experiment(experiment).scaled
    for (name, scale), number in zip(GROWING_SCALES.items(), trials, strict=True):
        assert scaled(SCALES[name]) == replace(scale, seeds=number)
    assert scaled(mine := replace(GROWING_SCALES["laptop"], seeds=4)) is mine


def test_the_series_of_quick():
    sets = series_data(QUICK)
    assert {name: (data.name, data.features) for name, data in sets.items()} == {
        "G7": ("simulated-g7", 7),
        "BRICS": ("simulated-brics", 5),
    }
    with pytest.raises(InvalidInput, match="measured on simulated-g7, which is embedded: leave out --data"):
        series_data(QUICK, "mine.csv")


def test_every_number_of_a_text_configuration_is_the_scales():
    scale = replace(QUICK, text_hidden=9, text_stages=5, text_epochs=7, text_batch=11, text_rates=(0.1, 0.2))
    config = text_config(scale, "darts", "prune-at-end", 3)
    assert config == growing_recurrent.Config(
        backbone="darts",
        mode="prune-at-end",
        nodes=3,
        hidden=9,
        stages=5,
        stage_epochs=7,
        tune_epochs=7,
        patience=3,
        batch_size=11,
        learning_rate=0.1,
        architecture_learning_rate=0.2,
    )


# --- random cells, copies, operations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["darts", "two-to-one"])
def test_cells_drawn_at_random(backbone):
    draws = [random_recurrent_cell(backbone, 3, generator(seed)) for seed in range(300)]
    assert draws[0] == random_recurrent_cell(backbone, 3, generator(0))
    chosen = [cell.edges[0].operation for ((_, cell),) in (genotype.cells for genotype in draws)]
    choices = set(RECURRENT_BACKBONES[backbone].operations) - {"none"}
    assert set(chosen) == choices
    assert all(abs(chosen.count(name) / 300 - 1 / len(choices)) < 0.09 for name in choices)  # over 3 deviations
    for genotype in draws:
        ((kind, cell),) = genotype.cells
        assert kind == backbone and cell.output == (cell.nodes,)
        assert backbone == "darts" or [(e.source, e.target) for e in cell.edges] == [(0, 1), (1, 2), (2, 3)]
    DerivedRecurrentNetwork(draws[0], series_data(QUICK)["BRICS"], 2)


def chain(*operations, kind="two-to-one"):
    edges = tuple(Edge(node, node + 1, operation) for node, operation in enumerate(operations))
    return Genotype({kind: CellGenotype(edges, len(operations), 1, (len(operations),))}).to_json()


@pytest.mark.parametrize(
    ("operations", "start", "found"),
    [
        (("tanh", "sum", "sum", "sum"), 2, (0, 2)),
        (("tanh", "sum", "relu", "sum"), 2, (1, 2)),
        (("tanh", "relu", "product", "sigmoid"), 2, (2, 2)),
        (("tanh", "relu"), 2, (0, 0)),
        (("sum", "sum", "tanh"), 3, (0, 0)),
    ],
)
def test_nodes_that_became_more_than_copies(operations, start, found):
    assert escaped(chain(*operations), start) == found
    other = {"sum": "identity", "product": "tanh"}
    assert escaped(chain(*(other.get(name, name) for name in operations), kind="darts"), start) == found
    assert set(PASSING) == {"sum", "identity"}


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        ("darts", ("identity", "tanh", "relu")),
        ("darts", ("tanh", "identity")),
        ("darts", ("sigmoid",)),
        ("two-to-one", ("product", "product-2")),
        ("two-to-one", ("product", "sum", "product")),
        ("two-to-one", ("tanh", "product")),
    ],
)
def test_cells_that_never_read_their_input(kind, operations):
    """Against the derived network itself: two inputs, one output."""
    cell = chain(*operations, kind=kind)
    data = series_data(QUICK)["BRICS"]
    network = DerivedRecurrentNetwork(Genotype.from_json(cell), data, 4)
    inputs = torch.randn(2, 10, 5, generator=generator(0))
    one, other = network(inputs)
    assert reads_input(cell) == (not torch.equal(one, other))


@pytest.mark.parametrize("row", OPERATOR_ROWS)
def test_every_rule_acts_where_a_weight_is_large_or_small(row):
    """Each but splitting, which looks at the loss; and none where all weights are equal."""
    data = series_data(QUICK)["BRICS"]
    backbone = RECURRENT_BACKBONES["two-to-one"]

    def changes(weights):
        network = RecurrentSearchNetwork({"two-to-one": backbone.space(1)}, data, 2)
        with torch.no_grad():
            network.relaxation("two-to-one").alpha.copy_(torch.tensor([weights]).log())
        build = lambda spaces: RecurrentSearchNetwork(spaces, data, 2)  # noqa: E731
        return [change.what for change in change_operators(network, build, operator_rules(row), generator(1))[1]]

    assert backbone.operations == ("sigmoid", "tanh", "relu", "sum", "product")
    assert changes([0.2] * 5) == []
    strong, weak = changes([0.19, 0.4, 0.17, 0.16, 0.08]), changes([0.26, 0.26, 0.24, 0.18, 0.06])
    acts = {
        "no change": ([], []),
        "small weight": (["grow"], []),
        "splitting": ([], []),
        "pruning": ([], ["prune"]),
        "replacing": (["replace", "replace"], []),
    }
    if row == "re-sampling":
        assert set(strong) == {"resample"} and weak == []
    else:
        assert (strong, weak) == acts[row]
    assert (operator_rules(row).strategy == "splitting") == (row == "splitting")


# --- what is read off a search ----------------------------------------------------------------------------------------

COURSE = [
    {"seconds": 2.0, "parameters": 10, "validation": 5.0},
    {"seconds": 1.0, "parameters": 30, "validation": 6.0},
    {"seconds": 1.0, "parameters": 20, "validation": 3.0},
]


def test_the_best_so_far():
    """After an epoch its loss is known; before the first one has ended, that epoch's loss counts."""
    assert best_so_far(COURSE, np.array([0.5, 1.9, 2.0, 3.0, 3.99, 4.0, 9.0])).tolist() == [5, 5, 5, 5, 5, 3, 3]
    assert best_so_far(COURSE, np.array([9.0, 10.0, 40.0, 59.0, 60.0]), "parameters").tolist() == [5, 5, 5, 5, 3]
    assert weight_epochs(COURSE) == 60


# --- verdicts ---------------------------------------------------------------------------------------------------------


def trained(validation, train=1.0, test=0.5):
    return {"validation": [validation + 0.3, validation, validation + 0.1], "train": [9.0, 0.0, train], "test": test}


def places(names, losses, trial, extra=None):
    """A trial's values: each row's least loss, moved a little by the trial, and its last training loss."""
    made = {}
    for place in names:
        made[place] = {}
        for row in ALL_ROWS:
            validation, *train = np.atleast_1d(losses.get((place, row), losses.get(row, 1.0)))
            wiggle = 0.001 * math.sin(7 * trial + 3 * len(row) + len(place) + sum(map(ord, row)))
            made[place][row] = trained(float(validation) + wiggle, *(float(t) + wiggle for t in train))
            made[place][row]["genotype"] = chain("product" if row == "new-1" else "tanh")
            made[place][row] |= (extra or {}).get(row, {})
    return made


DATA = {"constant": 1.0, "irreducible": 0.9, "test": {"constant": 1.1, "irreducible": None}}


def modes(record_of, losses, trials=3):
    values = []
    for trial in range(trials):
        made = places(("G7", "BRICS"), losses, trial)
        values.append({place: {"data": DATA, **rows} for place, rows in made.items()})
    record = record_of("growing-series", *values, of=QUICK)
    return get_experiment("growing-series").judges["growing.modes"](record)


PAPER = {"new-1": 0.7, "new-2": 0.7, "LSTM": 0.8, "DARTS-1": 0.9, "DARTS-2": 0.9}


@pytest.mark.parametrize(
    ("losses", "status"),
    [
        (PAPER, "holds"),
        ({**PAPER, ("BRICS", "new-2"): 0.85}, "holds"),  # the paper sees no difference to the LSTM there
        ({**PAPER, ("G7", "new-2"): 0.8}, "partly"),
        ({**PAPER, ("G7", "new-2"): 0.85}, NOT),  # eight of nine, and the ninth is significant the other way round
        ({**PAPER, ("BRICS", "LSTM"): 0.9}, "partly"),
        (dict.fromkeys(PAPER, 0.8), NOT),  # noise
        ({**PAPER, "DARTS-1": 0.6, "DARTS-2": 0.6}, NOT),
    ],
)
def test_the_verdict_on_index_returns(record_of, losses, status):
    assert modes(record_of, losses).status == status


def test_the_numbers_beside_the_verdict_on_index_returns(record_of):
    losses = {**PAPER, "DARTS, no growth": 0.95, "new, no growth": 0.65, "random DARTS": 0.9, "random new": 0.6}
    numbers = modes(record_of, losses, trials=20).numbers
    assert numbers.startswith("9 of 9 have the claimed sign, 9 significantly; 0 have the other sign significantly: G7:")
    assert "; 20 trials. Beside it, G7: DARTS-1 below DARTS, no growth by +0.05" in numbers
    assert "new-1 below new, no growth by -0.0" in numbers
    assert numbers.count("; searched cells that never read their input: new-1 20; ") == 2
    assert numbers.endswith("the constant forecast has 1.0000, on the test part 1.1000")


def test_one_trial_that_explodes_shows_beside_the_mean(record_of):
    values = []
    for trial in range(5):
        losses = {**PAPER, ("BRICS", "new-1"): 100.7 if trial == 3 else 0.7}
        values.append({place: {"data": DATA, **rows} for place, rows in places(("G7", "BRICS"), losses, trial).items()})
    record = record_of("growing-series", *values, of=QUICK)
    numbers = get_experiment("growing-series").judges["growing.modes"](record).numbers
    assert re.search(r"BRICS: new-1 below DARTS-1 by -19\.\d+ \(median \+0\.[12]", numbers)


def test_signs_alone_are_not_partly(record_of):
    """All nine have the claimed sign and none significantly: nine coins."""
    values = []
    for trial, jump in enumerate((-0.5, 0.1, 0.5)):
        losses = {row: 1 + (loss - 0.8) * jump for row, loss in PAPER.items()}
        values.append({place: {"data": DATA, **rows} for place, rows in places(("G7", "BRICS"), losses, trial).items()})
    record = record_of("growing-series", *values, of=QUICK)
    verdict = get_experiment("growing-series").judges["growing.modes"](record)
    assert verdict.numbers.startswith("9 of 9 have the claimed sign, 0 significantly; 0 have the other")
    assert verdict.status == NOT


def language(record_of, losses, searches=None, trials=3):
    values = []
    for trial in range(trials):
        extra = {row: {"search": searches(row, trial)} for row in ROWS} if searches else None
        values.append({"data": DATA, **places(("2", "3", "4"), losses, trial, extra)})
    return record_of("growing-language", *values, of=QUICK)


TEXT = {"DARTS-1": (5.0, 2.0), "DARTS-2": (5.2, 2.0), "new-1": (4.9, 1.5), "new-2": (5.1, 1.5)}


@pytest.mark.parametrize(
    ("losses", "status"),
    [
        (TEXT, "holds"),
        ({**TEXT, ("4", "new-2"): (4.9, 1.5)}, "partly"),
        ({**TEXT, "new-1": (4.9, 2.1)}, NOT),  # trains to a higher loss than DARTS
        ({**TEXT, "new-1": (5.3, 1.5), "DARTS-1": (5.3, 2.0)}, NOT),
        (dict.fromkeys(TEXT, (5.0, 2.0)), NOT),
    ],
)
def test_the_verdict_on_language(record_of, losses, status):
    verdict = get_experiment("growing-language").judges["growing.language"](language(record_of, losses))
    assert verdict.status == status
    assert verdict.numbers.count("Beside it, from") == 3 and " of 12 have the claimed sign" in verdict.numbers


def falling(speed, seconds=1.0, parameters=100, epochs=10):
    return [
        {"validation": 5 - speed * epoch, "seconds": seconds, "parameters": parameters} for epoch in range(epochs)
    ]


@pytest.mark.parametrize(
    ("faster", "status", "by_weights"),
    [
        (lambda row, trial: falling(0.2 if row.endswith("1") else 0.1 + 0.001 * trial), "holds", "holds"),
        (lambda row, trial: falling(0.2 if row.endswith("2") else 0.1 + 0.001 * trial), NOT, NOT),
        (lambda row, trial: falling(0.1), NOT, NOT),
        # The same course on a machine that is slower by chance in one of both: the clock shows what is not there.
        (lambda row, trial: falling(0.1, seconds=1.0 + 0.01 * trial + row.endswith("2")), "holds", NOT),
        # As fast by the clock, and with half the weights.
        (lambda row, trial: falling(0.1, parameters=50 + trial if row.endswith("1") else 100), NOT, "holds"),
    ],
)
def test_the_verdict_on_time(record_of, faster, status, by_weights):
    record = language(record_of, TEXT, searches=faster)
    verdict = get_experiment("growing-language").judges["growing.time"](record)
    assert verdict.status == status
    assert f"At equal weights × epochs: {by_weights}, " in verdict.numbers


def test_times_are_compared_up_to_the_end_of_the_shorter_search(record_of):
    """What the longer one finds after it does not count."""

    def searches(row, trial):
        course = falling(0.1 + 0.001 * trial if row.endswith("2") else 0.1)
        late = [{"validation": 0.1, "seconds": 100.0, "parameters": 10**6}]
        return course + late if row.endswith("1") else course

    verdict = get_experiment("growing-language").judges["growing.time"](language(record_of, TEXT, searches))
    assert verdict.status == NOT


def cost_record(record_of, grown, fixed, largest=4):
    """Parameters × epochs of the growing cell, and of each size at once, by trial."""

    def found(parameters, validation):
        return {"search": [{"parameters": parameters, "seconds": 2.0}], "validation": [validation]}

    values = [
        {
            backbone: {
                "largest": largest,
                "grown": found(one, 0.9),
                "fixed": {str(nodes): found(of_size[nodes], 0.5 + nodes / 10) for nodes in (2, 3, 4)},
            }
            for backbone, one in (("darts", own[0]), ("two-to-one", own[1]))
        }
        for own, of_size in zip(grown, fixed, strict=True)
    ]
    return record_of("growing-cost", *values, of=QUICK)


SIZES = [{2: 50, 3: 100, 4: 400}, {2: 50, 3: 110, 4: 410}, {2: 50, 3: 100, 4: 420}]


@pytest.mark.parametrize(
    ("grown", "largest", "status"),
    [
        ([(100, 100), (101, 99), (102, 103)], 4, "holds"),
        ([(200, 200), (201, 199), (202, 203)], 3, NOT),  # half of every one with four nodes, but it came to three
        ([(100, 10), (101, 1000), (102, 103)], 4, "partly"),
        ([(100, 500), (101, 510), (102, 500)], 4, NOT),
    ],
)
def test_the_verdict_on_complexity(record_of, grown, largest, status):
    record = cost_record(record_of, grown, SIZES, largest)
    verdict = get_experiment("growing-cost").judges["growing.complexity"](record)
    assert verdict.status == status
    assert verdict.numbers.startswith(f"darts to {largest}/{largest}/{largest} nodes: weights × epochs grown over the")


def test_the_numbers_on_complexity(record_of):
    same = [{2: 50, 3: 100, 4: 250}] * 3
    verdict = get_experiment("growing-cost").judges["growing.complexity"](
        cost_record(record_of, [(100, 100)] * 3, same)
    )
    assert "over the largest at once 0.40 (p = 0), over every size up to it 0.25, seconds over" in verdict.numbers
    assert "the largest 1.00; validation loss of the cells, retrained, 0.9000 against 0.9000; two" in verdict.numbers


def test_learning_curves(record_of):
    record = language(record_of, TEXT)
    found = curves(record, "3", "new-1")
    assert found.shape == (3, 3) and least_loss(record, "3", "new-1").tolist() == found[:, 1].tolist()
    assert curves(record, "3", "new-1", "train")[:, 1].tolist() == [0, 0, 0]


# --- real runs at a scale of a second ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prices of six stocks, some of which lean on the first one's last return; and a text of two sentences."""
    folder = tmp_path_factory.mktemp("sequences")
    draws = np.random.default_rng(0).standard_normal((160, 6)) / 100
    draws[1:, 1:] += draws[:-1, :1] / 2
    prices = np.exp(draws.cumsum(0))
    for name, factor in (("prices.csv", 1.0), ("others.csv", np.linspace(1, 2, 160)[:, None])):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([list("abcdef"), *(prices * factor).round(9).tolist()])
    (folder / "words.txt").write_text("the cat sees the dog\na dog runs\nthe dog sees a cat\n" * 60)
    (folder / "verses.txt").write_text("the cat sees the dog\na dog runs\n" * 90)
    return folder


@pytest.fixture(scope="module")
def tiny():
    return replace(
        QUICK,
        name="tiny",
        train_images=64,
        test_images=40,
        operations=("none", "skip_connect", "sep_conv_3x3"),
        search_epochs=1,
        search_batch=16,
        search_channels=2,
        search_cells=2,
        epochs=1,
        batch=32,
        channels=2,
        cells=2,
        series={"G7": "a,b,c", "BRICS": "d,e,f"},
        series_epochs=2,
        series_patience=1,
        series_stages=2,
        series_retrain=3,
        text="words",
        text_hidden=3,
        text_window=6,
        text_batch=30,
        text_epochs=2,
        text_stages=2,
        starts={2: 1, 3: 2},
        grown_nodes=3,
        image_stages=2,
        image_epochs=1,
    )


SEEDS = {"growing-series": 1}
"""0 where nothing is said."""

SOURCES = {"growing-language": "words.txt", "growing-images": None}


def source(files, experiment):
    name = SOURCES.get(experiment, "prices.csv")
    return None if name is None else str(files / name)


@pytest.fixture(scope="module")
def made(tiny, files, tmp_path_factory):
    """The values of one measurement of an experiment, made when first asked for and read back."""
    found = {}

    def make(experiment):
        if experiment not in found:
            folder = tmp_path_factory.mktemp(experiment)
            measurement = reproduce(
                experiment, tiny, seed=SEEDS.get(experiment, 0), data=source(files, experiment), folder=folder
            )
            record = read_record(folder / f"{experiment}.tiny.json")
            assert record.measurements == (measurement,)
            assert record.scale == json.loads(json.dumps(asdict(tiny)))
            assert not list(folder.rglob("*.pt"))
            found[experiment] = record.measurements[0]
        return found[experiment]

    return make


def without_times(values):
    """All but wall times, and what is made of them."""
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if name != "seconds"}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def check_row(row, epochs):
    assert len(row["train"]) == len(row["validation"]) == len(row["seconds"]) == epochs
    assert row["parameters"] > 0 and math.isfinite(row["test"])
    Genotype.from_json(row["genotype"])
    for value in (*row["train"], *row["validation"], row["test"]):
        assert value == round(value, 6)


def check_search(found, plan_stages, drawn=True):
    """``drawn``: whether the cells are in it, as in the measurement of seed 0."""
    course, events = found["search"], found["events"]
    assert [epoch["epoch"] for epoch in course] == list(range(1, len(course) + 1))
    phases = [(epoch["stage"], epoch["tuning"]) for epoch in course]
    ends = {0, len(course) - 1} | {i + j for i in range(len(course) - 1) if phases[i] != phases[i + 1] for j in (0, 1)}
    first = max(i for i, (stage, _) in enumerate(phases) if stage == 1)
    for place, epoch in enumerate(course):
        assert ("weights" in epoch) == (drawn and place in ends)
        assert ("genotype" in epoch) == ((drawn and place in ends) or place == first)
    assert course[0]["stage"] == 1 and not course[0]["tuning"] and course[-1]["tuning"]
    assert course[-1]["stage"] <= plan_stages
    assert all("operations" not in event for event in events)
    assert [event["what"] for event in events].count("node") == course[-1]["stage"] - 1


@pytest.mark.parametrize("experiment", ["growing-series", "growing-language"])
def test_the_trials_run(made, tiny, experiment):
    measurement = made(experiment)
    values, provenance = dict(measurement.values), measurement.provenance
    if experiment == "growing-series":
        assert tuple(values) == ("G7", "BRICS")
        assert (provenance.data, provenance.data_source) == ("prices", "csv:prices.csv")
        trials, epochs = values, tiny.series_retrain
        assert provenance.data_checksum not in (values["G7"]["data"]["checksum"], values["BRICS"]["data"]["checksum"])
    else:
        data = values.pop("data")
        assert (provenance.data, provenance.data_source) == ("words", "text:words.txt")
        assert provenance.data_checksum == data["checksum"]
        assert tuple(values) == ("2", "3")
        assert all(values["2"][row] == values["3"][row] for row in BASELINES)
        trials, epochs = values, tiny.text_epochs
    for place, trial in trials.items():
        assert {row for row in trial if row != "data"} == set(ALL_ROWS)
        for row in ROWS:
            check_row(trial[row], epochs)
            check_search(trial[row], 2, drawn=experiment == "growing-language")
            ((kind, _),) = Genotype.from_json(trial[row]["genotype"]).cells
            assert kind == ROWS[row][0]
            nodes = tiny.series_nodes if experiment == "growing-series" else int(place)
            assert trial[row]["search"][0]["nodes"] == nodes
        for row in (*UNGROWN_ROWS, *RANDOM_ROWS):
            check_row(trial[row], epochs)
        for row, like in RANDOM_ROWS.items():
            one, other = (Genotype.from_json(trial[name]["genotype"]).cells[0] for name in (row, like))
            assert (one[0], one[1].nodes) == (other[0], other[1].nodes)
        for one, two in (("DARTS-1", "DARTS-2"), ("new-1", "new-2")):  # the same until the first pruning
            first, second = ([epoch for epoch in trial[row]["search"] if epoch["stage"] == 1] for row in (one, two))
            before = [epoch for epoch in first if not epoch["tuning"]]
            alike = ("epoch", "nodes", "parameters", "train", "validation")
            assert before and len(second) >= len(before)
            assert [[e[name] for name in alike] for e in before] == [
                [e[name] for name in alike] for e in second[: len(before)]
            ]


def test_cells_without_growth(made, tiny):
    """They are those with which the first stage ends."""
    values = made("growing-series").values["G7"]
    for row, like in UNGROWN_ROWS.items():
        found = Genotype.from_json(values[row]["genotype"]).cells[0][1]
        assert found.nodes == tiny.series_nodes
        ends = [epoch for epoch in values[like]["search"] if epoch["stage"] == 1]
        assert ends[-1]["tuning"] and ends[-1]["genotype"] == values[row]["genotype"]
        if Genotype.from_json(values[like]["genotype"]).cells[0][1].nodes == tiny.series_nodes:
            assert values[like]["validation"] == values[row]["validation"]


def test_a_search_of_one_stage_finds_the_cell_without_growth(made, tiny, files):
    data = series_data(tiny, str(files / "prices.csv"))["G7"]
    for row, like in UNGROWN_ROWS.items():
        config = replace(series_config(tiny, *ROWS[like], data.features), stages=1)
        search = growing_recurrent.Search(config, data, seed=1)
        list(search.epochs())
        assert search.result().genotype.to_json() == made("growing-series").values["G7"][row]["genotype"]


def test_the_test_loss_is_that_of_the_epoch_chosen_on_validation(tiny, files):
    """Recomputed: the same training, and its test losses."""
    data = text_data(tiny, str(files / "words.txt"))
    config = growing_cells.SequenceFitConfig(epochs=4, batch_size=30, learning_rate=0.05)
    cell = Genotype.from_json(chain("tanh"))
    runs = []

    def drive(run, name):
        list(run.epochs())
        runs.append(run.history)

    workplace = Workplace(tiny, 3, "digits")
    workplace.drive = drive
    one, again = (
        growing_cells._trained(workplace, lambda: DerivedRecurrentNetwork(cell, data, 3), data, config, "it")
        for _ in range(2)
    )
    assert without_times(one) == without_times(again)
    losses = [round(report.validation_loss, 6) for report in runs[0]]
    tests = [round(report.test_loss, 6) for report in runs[0]]
    assert one["validation"] == losses and one["test"] == tests[losses.index(min(losses))]
    assert len(set(tests)) == 4


def test_the_costs_run(made, tiny):
    values = dict(made("growing-cost").values)
    assert values.pop("data")["features"] == 3 and set(values) == {"darts", "two-to-one"}
    for found in values.values():
        assert set(found) == {"largest", "grown", "fixed"} and set(found["fixed"]) == {"2", "3"}
        check_row(found["grown"], 3)
        check_search(found["grown"], 2)
        assert found["largest"] == max(epoch["nodes"] for epoch in found["grown"]["search"])
        for nodes, one in found["fixed"].items():
            check_row(one, 3)
            check_search(one, 1)
            assert {epoch["nodes"] for epoch in one["search"]} == {int(nodes)}
            # As many epochs as growth may take in all its stages, and tuning.
            assert len(one["search"]) <= 2 * tiny.series_epochs + tiny.series_epochs
        # Both begin alike: growth's first stage is the training of the smallest.
        alike = [[epoch["validation"], epoch["parameters"]] for epoch in found["grown"]["search"][:1]]
        assert alike == [[e["validation"], e["parameters"]] for e in found["fixed"]["2"]["search"][:1]]


def test_the_ablation_of_operations_runs(made, tiny):
    values = dict(made("growing-operators").values)
    del values["data"]
    assert tuple(values) == OPERATOR_ROWS
    for row in values.values():
        check_row(row, 3)
        check_search(row, 1)
        assert row["tuned"] == min(e["validation"] for e in row["search"] if e["tuning"])
        assert row["searched"] == min(e["validation"] for e in row["search"] if not e["tuning"])
        assert {epoch["nodes"] for epoch in row["search"]} == {2}
        ((_, cell),) = Genotype.from_json(row["genotype"]).cells
        assert all(len(cell.into(node)) == 2 for node in (1, 2))
    first = {row["search"][0]["validation"] for row in values.values()}
    assert len(first) == 1  # all begin alike


def test_the_noise_runs(made):
    values = dict(made("growing-noise").values)
    del values["data"]
    for rows in values.values():
        assert tuple(rows) == tuple(map(str, NOISES))
        firsts = set()
        for row in rows.values():
            check_row(row, 3)
            check_search(row, 2)
            firsts.add(row["search"][0]["validation"])
            assert escaped(row["genotype"], 2)[1] == Genotype.from_json(row["genotype"]).cells[0][1].nodes - 2
        assert len(firsts) == 1  # only the growth differs


def test_images_run(made):
    measurement = made("growing-images")
    values = measurement.values
    assert measurement.provenance.data == "digits"
    assert tuple(values) == (
        "grown-1", "grown-2", "DARTS, 2 nodes", "random, 2 nodes", "DARTS, 3 nodes", "random, 3 nodes"
    )
    for name, row in values.items():
        genotype = Genotype.from_json(row["genotype"])
        assert genotype.normal.nodes == row["nodes"] and 0 <= row["test_accuracy"] <= 1
        assert name.startswith("grown") or row["nodes"] == int(name.split()[1])


def test_darts_on_images_has_the_budget_of_growth(tiny, monkeypatch):
    """As many epochs, and α's rate so that rate × steps is the scale's."""
    configs, epochs = [], {"prune-each-stage": 11, "prune-at-end": 7}

    def grown(config, data, space, seed):
        history = tuple(range(epochs[config.mode]))
        outcome = type("Outcome", (), {"history": history, "genotype": DARTS_V1})
        return type("Search", (), {"result": lambda self: outcome, "history": (), "events": ()})()

    def plain(config, data, space, seed):
        configs.append((config, space.nodes))
        outcome = type("Outcome", (), {"seconds": 1.0, "genotype": DARTS_V1})
        return type("Search", (), {"result": lambda self: outcome})()

    monkeypatch.setattr(growing, "Search", grown)
    monkeypatch.setattr(darts, "Search", plain)
    monkeypatch.setattr(Workplace, "drive", lambda *_: None)
    monkeypatch.setattr(growing_cells, "train_derived", lambda *_: {})
    scale = replace(tiny, search_epochs=15, image_stages=3)
    growing_cells.images(Workplace(scale, 1, "digits"))
    assert [nodes for _, nodes in configs] == [2, 4]
    for config, _ in configs:
        assert config.epochs == 7 and config.order == "first-order"
        rate = scale.architecture_learning_rate
        assert config.architecture_learning_rate * 7 == pytest.approx(rate * 15, rel=1e-12)
        own = image_cells.search_config(scale)
        assert replace(config, epochs=own.epochs, architecture_learning_rate=rate) == own


# --- interruptions and wrong data -------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Ends a measurement in the middle, as nothing in the package expects."""


def counted(monkeypatch, most):
    """Notes the steps of all runs; the power fails after so many."""
    steps = []
    for kind in (growing_search.GrowingSearch, SequenceFit):

        def run_step(self, index, original=kind.run_step):
            steps.append(index)
            if len(steps) > most:
                raise PowerCut
            return original(self, index)

        monkeypatch.setattr(kind, "run_step", run_step)
    return steps


@pytest.mark.parametrize(
    ("experiment", "cut"), [("growing-series", 9), ("growing-cost", 22), ("growing-operators", 3)]
)
def test_a_measurement_goes_on_after_a_power_cut(made, tiny, files, tmp_path, monkeypatch, experiment, cut):
    data, seed = source(files, experiment), SEEDS.get(experiment, 0)
    with monkeypatch.context() as patch:
        counted(patch, cut)
        with pytest.raises(PowerCut):
            reproduce(experiment, tiny, seed=seed, data=data, folder=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    with pytest.raises(InvalidInput, match="holds an interrupted measurement"):
        reproduce(experiment, tiny, seed=seed, data=data, folder=tmp_path)
    resumed = reproduce(experiment, tiny, seed=seed, data=data, folder=tmp_path, resume=True)
    assert without_times(resumed.values) == without_times(made(experiment).values)


def test_no_record_mixes_two_files(tiny, files, tmp_path, monkeypatch):
    """Two files of prices with the same columns, two texts of the same name."""
    monkeypatch.setattr(growing_cells, "_trial", lambda *_: {})
    monkeypatch.setattr(growing_cells, "_baselines", lambda *_: {})
    reproduce("growing-series", tiny, seed=0, data=str(files / "prices.csv"), folder=tmp_path)
    with pytest.raises(InvalidInput, match="was made with other data"):
        reproduce("growing-series", tiny, seed=1, data=str(files / "others.csv"), folder=tmp_path)
    reproduce("growing-language", tiny, seed=0, data=str(files / "words.txt"), folder=tmp_path)
    (tmp_path / "words.txt").write_text((files / "verses.txt").read_text())
    with pytest.raises(InvalidInput, match="was made with other data"):
        reproduce("growing-language", tiny, seed=1, data=str(tmp_path / "words.txt"), folder=tmp_path)
    for name in ("growing-series", "growing-language"):
        assert len(read_record(tmp_path / f"{name}.tiny.json").measurements) == 1


def test_what_is_not_the_scales_is_refused(tiny, files):
    with pytest.raises(InvalidInput, match="forecasts the columns a,b,c: give a CSV file"):
        reproduce("growing-series", tiny)
    with pytest.raises(InvalidInput, match="measured on words, and .*verses.txt holds verses. Give another copy"):
        reproduce("growing-language", tiny, data=str(files / "verses.txt"))
    with pytest.raises(InvalidInput, match="leave out --data"):
        reproduce("growing-cost", "quick", data=str(files / "prices.csv"))
    wrong = replace(tiny, series={"G7": "a,b,z"})
    with pytest.raises(InvalidInput, match="Unknown column 'z'"):
        reproduce("growing-noise", wrong, data=str(files / "prices.csv"))
