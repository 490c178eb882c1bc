"""Chapter 2's experiments at a scale of a second, and its verdicts on records made by hand."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest

from nasbook.analysis import cell_depth, mean_depth
from nasbook.errors import InvalidInput
from nasbook.experiments import (
    SCALES,
    STRETCHABLE_SCALES,
    get_experiment,
    list_experiments,
    milenas_config,
    pairs_config,
    read_record,
    reproduce,
    search_config,
    search_space,
    stretchable_config,
    stretchable_scale,
    trajectory_reports,
)
from nasbook.genotypes import Genotype, Space
from nasbook.methods import GradientSearch, darts, milenas, stretchable
from nasbook.networks import channels_for, parameters_of
from nasbook.training import Fit

NOT = "does not hold at this scale"
SEEDED = [e.name for e in list_experiments() if e.name.startswith("stretchable") and e.seeded]


@pytest.fixture(scope="module")
def tiny():
    return replace(
        STRETCHABLE_SCALES["quick"],
        name="tiny",
        train_images=64,
        test_images=20,
        operations=("none", "skip_connect", "sep_conv_3x3"),
        nodes=3,
        stretchable_nodes=3,
        search_epochs=2,
        search_batch=32,
        search_channels=2,
        search_cells=1,  # a reduction cell
        layers=(1, 2),
        epochs=1,
        batch=32,
        channels=2,
        cells=1,
        parameters=3000,
    )


def without_times(values):
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if name != "seconds"}
    return [without_times(value) for value in values] if isinstance(values, list) else values


class PowerCut(BaseException):
    """Ends a measurement in the middle, as nothing in the package expects."""


def count_steps(patch, limit=None):
    """Counts the steps of every search and training; the power fails when ``limit`` of them have been made."""
    made = []
    for kind in (Fit, GradientSearch):

        def run_step(self, index, original=kind.run_step):
            if len(made) == limit:
                raise PowerCut
            made.append((type(self), index))
            return original(self, index)

        patch.setattr(kind, "run_step", run_step)
    return made


@pytest.fixture(scope="module")
def measured(tiny):
    """What each experiment gives at this scale, and the steps it made; once."""
    found = {}

    def values(name):
        if name not in found:
            with pytest.MonkeyPatch.context() as patch:
                steps = count_steps(patch)
                found[name] = reproduce(name, tiny).values, steps
        return found[name]

    return values


# --- scales -----------------------------------------------------------------------------------------------------------


def test_scales():
    assert list(STRETCHABLE_SCALES) == list(SCALES)
    for name, scale in STRETCHABLE_SCALES.items():
        assert scale.name == name
        assert scale.search_cells == scale.cells == scale.layers[0]  # search as deep as the found network
        assert len(scale.layers) >= 2 and list(scale.layers) == sorted(scale.layers)
        changed = {key for key, value in asdict(SCALES[name]).items() if getattr(scale, key) != value}
        assert changed <= {"search_cells", "cells"}
        assert stretchable_scale(SCALES[name]) is scale is stretchable_scale(scale)
        assert scale.stretchable_space == Space(scale.space.choices, scale.stretchable_nodes)
        assert search_space("stretchable", SCALES[name]) == scale.stretchable_space
        assert search_space("darts", SCALES[name]) == SCALES[name].space
    paper = STRETCHABLE_SCALES["paper"]
    assert (paper.layers, paper.stretchable_nodes) == ((8, 12, 16, 20), 6)
    assert paper.stretchable_space == stretchable.STRETCHABLE_SPACE


def test_configurations_at_the_papers_scale():
    paper = STRETCHABLE_SCALES["paper"]
    assert search_config(paper) == darts.Config()
    assert milenas_config(paper) == milenas.Config()
    assert stretchable_config(paper) == stretchable.Config()
    assert pairs_config(paper) == stretchable.DARTS_PAIRS


# --- measurements -----------------------------------------------------------------------------------------------------


def test_the_exact_experiment_is_exact(tiny, tmp_path):
    reproduce("stretchable-exact", "quick", folder=tmp_path)
    record = read_record(tmp_path / "stretchable-exact.quick.json")
    values = record.measurements[0].values
    spaces = {"input pairs", "output pairs", "output subsets", "output subsets, empty too"}
    for name in ("merge_error", "gradient_error", "scale_error"):
        assert values[name].keys() == spaces
        assert all(0 <= error < 1e-12 for error in values[name].values())
    # Two and three nodes: 3·6 − … input pairs 3 + 18, output pairs 1 + 9, codes 9 + 147, with the empty one 32 + 512.
    assert values["topologies"] == 3 + 18 + 1 + 9 + 9 + 147 + 32 + 512
    assert values["valid"] == 3 + 18 + 1 + 8 + 8 + 112 + 21 + 315
    assert values["penalty_wrong"] == values["gradient_elsewhere"] == 0
    assert values["edges"]["input pairs"] == values["edges"]["output pairs"] == [8]
    assert all(0.98 < ratio < 1.02 for ratio in values["memory"].values())
    for claim, judge in get_experiment("stretchable-exact").judges.items():
        assert judge(record).status == "holds", claim


@pytest.mark.parametrize("name", SEEDED)
def test_a_measurement_goes_on_after_a_power_cut(tiny, measured, tmp_path, monkeypatch, name):
    """In the middle of its steps; what was finished is not done again, and the values are the undisturbed ones."""
    values, steps = measured(name)
    half = len(steps) // 2
    with monkeypatch.context() as patch:
        count_steps(patch, half)
        with pytest.raises(PowerCut):
            reproduce(name, tiny, folder=tmp_path)
    with pytest.raises(InvalidInput, match="holds an interrupted measurement"):
        reproduce(name, tiny, folder=tmp_path)
    with monkeypatch.context() as patch:
        again = count_steps(patch)
        made = reproduce(name, tiny, folder=tmp_path, resume=True)
    assert half < len(again) + half <= len(steps) + 2  # at most the epoch that was cut is made again
    assert without_times(made.values) == without_times(values)
    assert [path.name for path in tmp_path.glob("*.json")] == [f"{name}.tiny.json"]
    assert not list(tmp_path.rglob("*.pt"))


def test_a_measurement_is_a_function_of_its_seed(tiny, measured):
    values, _ = measured("stretchable-stability")
    other = reproduce("stretchable-stability", tiny, seed=1).values
    assert without_times(other) != without_times(values)


def assert_summary(row):
    cell = Genotype.from_json(row["genotype"]).normal
    assert row["depth"] == cell_depth(cell)
    assert row["mean_depth"] == round(mean_depth(cell), 4)
    assert (row["edges"], row["nodes"]) == (len(cell.edges), len(cell.connected()))


def topology(row):
    cells = Genotype.from_json(row["genotype"]).cells
    return {kind: [(edge.source, edge.target) for edge in cell.edges] for kind, cell in cells}


def test_rows(tiny, measured):
    values, _ = measured("stretchable-rows")
    names = ["DARTS, first order", "DARTS, second order", "DARTS, output pairs", "MiLeNAS", "MiLeNAS-SC"]
    assert list(values) == [*names, "random operations"]
    for row in values.values():
        assert_summary(row)
        genotype = Genotype.from_json(row["genotype"])
        options = {"classes": 10, "in_channels": 1}
        assert row["trained"]["parameters"] == parameters_of(genotype, tiny.channels, tiny.cells, **options)
        nearest = channels_for(tiny.parameters, genotype, tiny.cells, **options)
        assert row["matched"]["parameters"] == parameters_of(genotype, nearest, tiny.cells, **options)
        for size in ("trained", "matched"):
            assert 0 <= row[size]["test_accuracy"] <= 1 and 0 <= row[size]["train_accuracy"] <= 1
        assert row["seconds"] >= 0
    assert topology(values["random operations"]) == topology(values["MiLeNAS-SC"])
    assert values["random operations"]["genotype"] != values["MiLeNAS-SC"]["genotype"]
    assert values["DARTS, first order"]["edges"] == values["MiLeNAS"]["edges"] == 6


def test_layers(tiny, measured):
    values, _ = measured("stretchable-layers")
    assert values["layers"] == [1, 2]
    for name in ("MiLeNAS-SC", "DARTS", "DARTS, more nodes"):
        method = values[name]
        assert set(method["searches"]) == {"1", "2"}
        for summary in method["searches"].values():
            assert_summary(summary)
        assert np.shape(method["matrix"]) == np.shape(method["parameters"]) == (2, 2)
        for row, depth in enumerate(("1", "2")):
            genotype = Genotype.from_json(method["searches"][depth]["genotype"])
            for column, cells in enumerate((1, 2)):
                options = {"classes": 10, "in_channels": 1}
                channels = channels_for(tiny.parameters, genotype, cells, **options)
                assert method["parameters"][row][column] == parameters_of(genotype, channels, cells, **options)
    assert values["trajectory"].keys() == {"1", "2"}
    for depth, steps in values["trajectory"].items():
        reports = trajectory_reports(steps)
        assert [report.epoch for report in reports] == [1, 2]
        last = Genotype.from_json(values["MiLeNAS-SC"]["searches"][depth]["genotype"])
        assert reports[-1].genotype.normal == last.normal
        for report in reports:
            assert report.edge_probabilities["normal"].shape == (9,)  # three nodes
            assert report.coefficients["normal"].shape == (9, 2)
            # With the factor, twice the probability (Eq. 13 with the empty choice), divided among the operations.
            assert np.allclose(
                report.coefficients["normal"].sum(1), 2 * report.edge_probabilities["normal"], atol=3e-3
            )


def test_stability(tiny, measured):
    values, _ = measured("stretchable-stability")
    assert values["epochs"] == [1, 1, 2, 2]
    for name in ("DARTS", "DARTS, output pairs"):
        assert len(values[name]) == 4
        assert values[name][0] == values[name][1] and values[name][2] == values[name][3]  # the same cells and seed
    at_quick = [round(STRETCHABLE_SCALES["paper"].search_epochs * share) for share in (0.4, 0.6, 0.8, 1)]
    assert at_quick == [20, 30, 40, 50]  # Table 4


def test_perspective(measured):
    values, _ = measured("stretchable-perspective")
    assert list(values) == ["DARTS, input edges", "DARTS, output edges", "pairs, input edges", "pairs, output edges"]
    for name, row in values.items():
        assert_summary(row)
        edges = topology(row)["normal"]
        if "input" in name:
            assert sorted(target for _, target in edges) == [2, 2, 3, 3, 4, 4]
        else:
            sources = [source for source, _ in edges]
            assert {sources.count(source) for source in sources} == {2} and 3 not in sources


def test_edge_numbers(tiny, measured):
    values, _ = measured("stretchable-numbers")
    assert list(values) == [*(f"DARTS, {n}" for n in (1, 2, 3)), *(f"learned, {n}" for n in (1, 2, 3, "any"))]
    for number in (1, 2, 3):
        targets = [target for _, target in topology(values[f"DARTS, {number}"])["normal"]]
        assert [targets.count(node) for node in (2, 3, 4)] == [min(number, n) for n in (2, 3, 4)]
        sources = [source for source, _ in topology(values[f"learned, {number}"])["normal"]]
        assert {sources.count(source) for source in sources} == {number}
    for row in values.values():
        assert_summary(row)
        genotype = Genotype.from_json(row["genotype"])
        channels = channels_for(tiny.parameters, genotype, tiny.cells, 10, in_channels=1)
        assert row["parameters"] == parameters_of(genotype, channels, tiny.cells, 10, in_channels=1)


@pytest.mark.parametrize("name", SEEDED)
def test_every_judge_reads_what_its_experiment_wrote(tiny, measured, record_of, name):
    """Three seeds of the same values: no difference has any spread."""
    values, _ = measured(name)
    record = record_of(name, values, values, values, of=tiny)
    for claim, judge in get_experiment(name).judges.items():
        assert judge(record).status in ("holds", NOT), claim


def test_a_scale_without_the_numbers_of_chapter_2_is_refused():
    """Also one that goes by a known name: its changed numbers would be lost without a word."""
    for scale in (replace(SCALES["quick"], name="mine"), replace(SCALES["quick"], epochs=1)):
        message = rf"^Chapter 2 needs numbers of its own .* scale '{scale.name}' lacks: give a StretchableScale"
        with pytest.raises(InvalidInput, match=message):
            reproduce("stretchable-rows", scale)
        with pytest.raises(InvalidInput, match=message):
            stretchable_scale(scale)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdict(record_of, experiment, claim, values):
    record = record_of(experiment, *values, of=STRETCHABLE_SCALES["quick"])
    return get_experiment(experiment).judges[claim](record)


TRENDS = [
    ((0.02, 0.021, 0.022), "holds"),
    ((0.02, 0.02, 0.02), "holds"),
    ((0.05, -0.01, 0.01), "partly"),
    ((0.0, 0.0, 0.0), NOT),
    ((-0.02, -0.021, -0.022), NOT),
    ((-0.05, 0.01, 0.01), NOT),
]
"""An effect for each of three seeds, and the verdict on it."""


@pytest.mark.parametrize(("effects", "status"), TRENDS)
def test_the_verdict_on_random_operations(record_of, effects, status):
    def row(matched, trained, parameters):
        return {
            "matched": {"test_accuracy": matched, "parameters": parameters},
            "trained": {"test_accuracy": trained, "parameters": 1},
        }

    values = [
        {
            "random operations": row(0.9 + effect, 0.0, 5000),
            "DARTS, first order": row(0.9, 1.0, 6000),
            "DARTS, second order": row(1.0, 1.0, 7000),
        }
        for effect in effects
    ]
    found = verdict(record_of, "stretchable-rows", "stretchable.random", values)
    assert found.status == status
    assert f"difference {np.mean(effects):+.2%}" in found.numbers and "3 seeds" in found.numbers
    assert found.numbers.endswith("; 5,000 and 6,000 parameters")


@pytest.mark.parametrize(("effects", "status"), TRENDS)
def test_the_verdict_on_layers(record_of, effects, status):
    """Own number of layers against the mean of the others; DARTS' matrices do not count."""
    values = []
    for effect in effects:
        matrix = np.full((3, 3), 0.8) + np.arange(3) / 100  # deeper networks are better, whatever the cells
        matrix[range(3), range(3)] += effect
        values.append({"MiLeNAS-SC": {"matrix": matrix.tolist()}, "DARTS": {"matrix": np.eye(3).tolist()}})
    found = verdict(record_of, "stretchable-layers", "stretchable.layers", values)
    assert found.status == status
    assert f"{np.mean(effects):+.2%}" in found.numbers and "of 9" in found.numbers


def test_the_count_of_best_layers(record_of):
    matrix = [[0.9, 0.8, 0.8], [0.8, 0.7, 0.9], [0.7, 0.8, 0.9]]  # best at their own number: the first and the last
    values = [{"MiLeNAS-SC": {"matrix": matrix}}] * 3
    assert "best at its own number 6 times of 9" in verdict(
        record_of, "stretchable-layers", "stretchable.layers", values
    ).numbers


@pytest.mark.parametrize(("effects", "status"), TRENDS)
def test_the_verdict_on_depth(record_of, effects, status):
    """The least against the greatest number of layers."""
    values = [
        {
            "layers": [4, 8, 12],
            "MiLeNAS-SC": {
                "searches": {
                    "4": {"mean_depth": 2 + effect},
                    "8": {"mean_depth": 9.0},
                    "12": {"mean_depth": 2.0},
                }
            },
        }
        for effect in effects
    ]
    found = verdict(record_of, "stretchable-layers", "stretchable.depth", values)
    assert found.status == status
    assert f"{2 + np.mean(effects):.2f} at L=4, 9.00 at L=8, 2.00 at L=12" in found.numbers


@pytest.mark.parametrize(("effects", "status"), TRENDS)
def test_the_verdict_on_stability(record_of, effects, status):
    """DARTS' deviation over the four epochs against that of the pairs, whatever the means."""

    def run(mean, deviation):  # four values of that mean and sample deviation
        step = deviation * np.sqrt(3) / 2
        cells = ("a", "a", "b", "a")
        return [
            {"test_accuracy": mean + sign * step, "genotype": cell}
            for sign, cell in zip((1, -1, 1, -1), cells, strict=True)
        ]

    values = [{"DARTS": run(0.9, 0.1 + effect), "DARTS, output pairs": run(0.5, 0.1)} for effect in effects]
    if effects == (0.0, 0.0, 0.0):  # rounding would leave a spread
        values = [{"DARTS": run(0.5, 0.1), "DARTS, output pairs": run(0.5, 0.1)} for _ in effects]
    found = verdict(record_of, "stretchable-stability", "stretchable.stability", values)
    assert found.status == status
    assert f"DARTS {0.1 + np.mean(effects):.2%}, DARTS, output pairs 10.00%" in found.numbers
    assert found.numbers.endswith("cells equal to those of the epoch before: 3 and 3 of 9")


@pytest.mark.parametrize(("effects", "status"), TRENDS)
def test_the_verdict_on_the_perspective(record_of, effects, status):
    """Of the learned pairs; DARTS' own two rows are told, and not judged."""
    values = [
        {
            "pairs, output edges": {"test_accuracy": 0.9 + effect, "parameters": 5000},
            "pairs, input edges": {"test_accuracy": 0.9, "parameters": 6000},
            "DARTS, output edges": {"test_accuracy": 0.1, "parameters": 1},
            "DARTS, input edges": {"test_accuracy": 1.0, "parameters": 1},
        }
        for effect in effects
    ]
    found = verdict(record_of, "stretchable-perspective", "stretchable.perspective", values)
    assert found.status == status
    assert "DARTS, output edges 10.00% ± 0.00%" in found.numbers
    assert found.numbers.endswith("; 5,000 and 6,000 parameters")


EXACT = {
    "merge_error": {"pairs": 1e-15, "subsets": 2e-15},
    "gradient_error": {"pairs": 1e-15, "subsets": 2e-15},
    "scale_error": {"pairs": 0.0, "subsets": 3e-16},
    "memory": {"pairs, N=6": 1.0001, "subsets, N=9": 1.0},
    "topologies": 700,
    "valid": 400,
    "penalty_wrong": 0,
    "gradient_elsewhere": 0,
    "edges": {
        "input pairs": [8],
        "output pairs": [8],
        "output subsets": [5, 6],
        "output subsets, empty too": [4, 5, 6, 7, 8, 9],
    },
}


@pytest.mark.parametrize(
    ("claim", "path", "wrong"),
    [
        ("merge", ("merge_error", "subsets"), 1e-9),
        ("merge", ("gradient_error", "pairs"), 1e-9),
        ("merge", ("memory", "subsets, N=9"), 1.03),
        ("scale", ("scale_error", "subsets"), 0.03),
        ("scale", ("scale_error", "pairs"), float("inf")),
        ("penalty", ("penalty_wrong",), 1),
        ("penalty", ("gradient_elsewhere",), 3),
        ("edges", ("edges", "output pairs"), [7, 8]),
        ("edges", ("edges", "input pairs"), [9]),
        ("edges", ("edges", "output subsets, empty too"), [8]),
    ],
)
def test_the_exact_verdicts(record_of, claim, path, wrong):
    """They hold on right values, and one wrong value makes only its own claim fail."""
    judges = get_experiment("stretchable-exact").judges
    assert set(judges) == {f"stretchable.{name}" for name in ("merge", "scale", "penalty", "edges")}
    assert all(judge(record_of("stretchable-exact", EXACT)).status == "holds" for judge in judges.values())
    planted = copy.deepcopy(EXACT)
    place = planted
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    for name, judge in judges.items():
        expected = NOT if name == f"stretchable.{claim}" else "holds"
        assert judge(record_of("stretchable-exact", planted)).status == expected, name
