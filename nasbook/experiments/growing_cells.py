"""Chapter 6: the trained experiments on growing cells (the trends among claims ``growing.*``).

What is exact stands in :mod:`nasbook.experiments.growing_cells_checks`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from nasbook.analysis import count_parameters
from nasbook.data import SERIES, SequenceData, SeriesData, TextData, load_series, load_text
from nasbook.errors import InvalidInput
from nasbook.experiments.image_cells import growing_config, search_config, train_derived
from nasbook.experiments.records import DataSource, Record
from nasbook.experiments.registry import Experiment, Workplace, register
from nasbook.experiments.scale import GrowingScale, Scale, growing_scale
from nasbook.experiments.verdicts import LEVEL, Verdict, one_sided_p, trend
from nasbook.genotypes import Genotype, random_genotype
from nasbook.methods import GradientSearch, darts, growing, growing_recurrent, growing_search
from nasbook.networks import RECURRENT_BACKBONES, DerivedRecurrentNetwork, TorchRecurrentNetwork
from nasbook.operations import operation_of
from nasbook.seeding import fold_seed, generator
from nasbook.supernets import OperatorRules
from nasbook.training import SequenceFit, SequenceFitConfig

__all__ = [
    "BASELINES",
    "NOISES",
    "OPERATOR_ROWS",
    "PASSING",
    "RANDOM_ROWS",
    "ROWS",
    "UNGROWN_ROWS",
    "best_so_far",
    "curves",
    "escaped",
    "least_loss",
    "operator_rules",
    "random_recurrent_cell",
    "reads_input",
    "series_config",
    "series_data",
    "text_config",
    "text_data",
    "weight_epochs",
]

CHAPTER = "06-growing-recurrent-cells"

ROWS = {
    "DARTS-1": ("darts", "prune-each-stage"),
    "DARTS-2": ("darts", "prune-at-end"),
    "new-1": ("two-to-one", "prune-each-stage"),
    "new-2": ("two-to-one", "prune-at-end"),
}
"""Backbone and mode of the searches, by the names of the paper's figures; "new" is the Two-to-One cell (§4)."""

BASELINES = {"LSTM": "lstm", "GRU": "gru"}
"""torch's cells of the same width."""

RANDOM_ROWS = {"random DARTS": "DARTS-1", "random new": "new-1"}
"""Cells drawn at random, with as many nodes as that search has found: what the space gives without a search."""


UNGROWN_ROWS = {"DARTS, no growth": "DARTS-1", "new, no growth": "new-1"}
"""The cells with which those searches ended their first stage, pruned: what a search without growth gives."""


def _scale(workplace: Workplace) -> GrowingScale:
    """The scale, with Chapter 6's numbers."""
    assert isinstance(workplace.scale, GrowingScale)  # the registry saw to it
    return workplace.scale


def _own_source(workplace: Workplace) -> str | None:
    """The file that the caller gave; None for the scale's own data."""
    return None if workplace.source == workplace.scale.data else workplace.source


# --- data and configurations ------------------------------------------------------------------------------------------


def series_data(scale: GrowingScale, source: str | None = None) -> dict[str, SeriesData]:
    """The sets of returns at a scale, by the names of figures.

    Args:
        scale: says which.
        source: a CSV file of closes with the scale's columns, where they are not embedded.

    Raises:
        InvalidInput: the scale's series are columns of a file, and no file is given; or they are embedded, and one is.
    """
    found = {}
    for name, which in scale.series.items():
        if which in SERIES:
            if source is not None:
                raise InvalidInput(
                    f"The scale {scale.name!r} is measured on {which}, which is embedded: leave out --data, or take "
                    f"another scale for {source}."
                )
            found[name] = load_series(which)
        elif source is None:
            raise InvalidInput(
                f"The scale {scale.name!r} forecasts the columns {which}: give a CSV file of daily closes that has "
                f"them (--data), with days filled in between two closes or not."
            )
        else:
            found[name] = load_series(source, columns=tuple(which.split(",")), drop_interpolated=True)
    return found


def text_data(scale: GrowingScale, source: str | None = None) -> TextData:
    """The text of a scale, or the same from files of the caller.

    Raises:
        InvalidInput: the files hold another text, by their name.
    """
    data = load_text(source or scale.text, window=scale.text_window, lines=scale.text_lines)
    if data.name != scale.text:
        raise InvalidInput(
            f"The scale {scale.name!r} is measured on {scale.text}, and {source} holds {data.name}. Give another copy "
            f"of {scale.text}, in a folder of that name."
        )
    return data


def _used(workplace: Workplace, *sets: SequenceData) -> None:
    """Names the data in the provenance, so that no record mixes several."""
    checksums = [data.checksum for data in sets]
    together = checksums[0] if len(sets) == 1 else hashlib.sha256(" ".join(checksums).encode()).hexdigest()
    names = dict.fromkeys(data.name for data in sets)
    workplace.used = DataSource(" + ".join(names), sets[0].source, together)


def _first_series(workplace: Workplace) -> SeriesData:
    """The first set of series, on the device."""
    data = next(iter(series_data(_scale(workplace), _own_source(workplace)).values()))
    _used(workplace, data)
    return data.to(workplace.device)


def series_config(
    scale: GrowingScale, backbone: growing_recurrent.BackboneName, mode: growing_search.Mode, hidden: int
) -> growing_recurrent.Config:
    """How cells grow on series at a scale."""
    rate, architecture_rate = scale.series_rates
    return growing_recurrent.Config(
        backbone=backbone,
        mode=mode,
        nodes=scale.series_nodes,
        hidden=hidden,
        stages=scale.series_stages,
        stage_epochs=scale.series_epochs,
        tune_epochs=scale.series_epochs,
        patience=scale.series_patience,
        learning_rate=rate,
        architecture_learning_rate=architecture_rate,
    )


def text_config(
    scale: GrowingScale, backbone: growing_recurrent.BackboneName, mode: growing_search.Mode, nodes: int
) -> growing_recurrent.Config:
    """How cells grow on text at a scale, from so many nodes."""
    rate, architecture_rate = scale.text_rates
    return growing_recurrent.Config(
        backbone=backbone,
        mode=mode,
        nodes=nodes,
        hidden=scale.text_hidden,
        stages=scale.text_stages,
        stage_epochs=scale.text_epochs,
        tune_epochs=scale.text_epochs,
        patience=scale.starts[nodes],
        batch_size=scale.text_batch,
        learning_rate=rate,
        architecture_learning_rate=architecture_rate,
    )


def random_recurrent_cell(backbone: str, nodes: int, draws: torch.Generator) -> Genotype:
    """A cell drawn uniformly from a backbone's space."""
    own = RECURRENT_BACKBONES[backbone]
    space = own.space(nodes)
    output = own.cell.own_output(space)
    return Genotype({kind: replace(cell, output=output) for kind, cell in random_genotype(space, draws).cells})


DIGITS = 6
"""Decimals of losses and weights in records."""


def _rounded(weights: dict[str, growing_search.CellWeights]) -> dict[str, growing_search.CellWeights]:
    return {
        kind: [(source, target, {name: round(w, DIGITS) for name, w in own.items()}) for source, target, own in edges]
        for kind, edges in weights.items()
    }


def reads_input(genotype: str) -> bool:
    """Whether the state of a derived cell depends on its input at all.

    In the DARTS cell the identity passes h of [x; h] on, so that a cell that begins with it sees no x. In the
    Two-to-One cell a product with a state of zeros is zero, and so is the next state.

    Args:
        genotype: JSON text of a recurrent genotype of one layer.
    """
    ((kind, cell),) = Genotype.from_json(genotype).cells
    passing = "identity" if kind == "darts" else "product"
    seeing: set[int] = set()
    for edge in sorted(cell.edges, key=lambda edge: edge.target):
        begins = edge.source == 0 or kind == "two-to-one"  # every node of the Two-to-One cell reads x
        if edge.source in seeing or (begins and operation_of(edge.operation) != passing):
            seeing.add(edge.target)
    return bool(seeing & set(cell.output))


# --- one trial --------------------------------------------------------------------------------------------------------


def _searched(workplace: Workplace, config: growing_recurrent.Config, data: SequenceData, name: str) -> dict[str, Any]:
    """A growing search: its course, its events and what it found. Seed 0 has cells for films, too."""
    search = growing_recurrent.Search(config, data, seed=workplace.seed)
    workplace.drive(search, f"search {name}")
    history = search.history
    phases = [(report.stage, report.tuning) for report in history]
    steps = [i for i in range(len(phases) - 1) if phases[i] != phases[i + 1]]
    ends = {0, len(history) - 1, *steps, *(i + 1 for i in steps)}
    drawn = ends if workplace.seed == 0 else set()
    first = max(place for place, report in enumerate(history) if report.stage == 1)  # UNGROWN_ROWS begin there
    course = [
        {
            "epoch": report.epoch,
            "stage": report.stage,
            "tuning": report.tuning,
            "nodes": report.nodes,
            "parameters": report.parameters,
            "train": round(report.train_loss, DIGITS),
            "validation": round(report.validation_loss, DIGITS),
            "seconds": round(report.seconds, 3),
            **({"weights": _rounded(report.weights)} if place in drawn else {}),
            **({"genotype": report.genotype.to_json()} if place in drawn | {first} else {}),
        }
        for place, report in enumerate(history)
    ]
    events: list[dict[str, Any]] = []
    for event in search.events:
        values = asdict(event)
        changes = [[c["what"], *c["edge"], c["candidate"]] for c in values.pop("operations")]
        events.append({**values, "changes": changes} if changes else values)
    return {"search": course, "events": events, "genotype": search.result().genotype.to_json()}


def _trained(
    workplace: Workplace,
    build: Callable[[], nn.Module],
    data: SequenceData,
    config: SequenceFitConfig,
    name: str,
) -> dict[str, Any]:
    """A network trained from scratch; all of one seed begin with the same random numbers and see the same batches."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(workplace.seed, "derived network"))
        network = build()
    run = SequenceFit(network, data, config, seed=fold_seed(workplace.seed, "fit"))
    workplace.drive(run, f"train {name}")
    best = int(np.argmin([report.validation_loss for report in run.history]))
    return {
        "parameters": count_parameters(network),
        "train": [round(report.train_loss, DIGITS) for report in run.history],
        "validation": [round(report.validation_loss, DIGITS) for report in run.history],
        "seconds": [round(report.seconds, 3) for report in run.history],
        "test": round(run.history[best].test_loss, DIGITS),
    }


def _trial(
    workplace: Workplace,
    configs: Mapping[str, growing_recurrent.Config],
    data: SequenceData,
    fit: SequenceFitConfig,
    name: str,
) -> dict[str, Any]:
    """All searches on some data, each cell trained from scratch, and what they are to be better than."""
    found: dict[str, Any] = {}
    for row, config in configs.items():
        values = _searched(workplace, config, data, f"{name} {row}")
        trained = _from_genotype(workplace, values["genotype"], config.hidden, data, fit, f"{name} {row}")
        found[row] = {**values, **trained}
    for row, like in UNGROWN_ROWS.items():
        genotype = [epoch for epoch in found[like]["search"] if epoch["stage"] == 1][-1]["genotype"]
        trained = _from_genotype(workplace, genotype, configs[like].hidden, data, fit, f"{name} {row}")
        found[row] = {"genotype": genotype, **trained}
    for row, like in RANDOM_ROWS.items():
        nodes = Genotype.from_json(found[like]["genotype"]).cells[0][1].nodes
        draws = generator(fold_seed(workplace.seed, row, name))
        genotype = random_recurrent_cell(configs[like].backbone, nodes, draws).to_json()
        trained = _from_genotype(workplace, genotype, configs[like].hidden, data, fit, f"{name} {row}")
        found[row] = {"genotype": genotype, **trained}
    return found


def _from_genotype(
    workplace: Workplace, genotype: str, hidden: int, data: SequenceData, fit: SequenceFitConfig, name: str
) -> dict[str, Any]:
    cells = Genotype.from_json(genotype)
    return _trained(workplace, lambda: DerivedRecurrentNetwork(cells, data, hidden), data, fit, name)


def _baselines(
    workplace: Workplace, hidden: int, data: SequenceData, fit: SequenceFitConfig, name: str
) -> dict[str, Any]:
    found = {}
    for row, cell in BASELINES.items():
        build = functools.partial(TorchRecurrentNetwork, cell, data, hidden)
        found[row] = _trained(workplace, build, data, fit, f"{name} {row}")
    return found


def _described(data: SequenceData) -> dict[str, Any]:
    """What the data are, and the losses between which a model can be."""
    return {
        "name": data.name,
        "source": data.source,
        "checksum": data.checksum,
        "features": data.features,
        "examples": {part: data.size(part) for part in ("train", "validation", "test")},
        "constant": data.constant_loss("validation"),
        "irreducible": data.irreducible_loss("validation"),
        "test": {"constant": data.constant_loss("test"), "irreducible": data.irreducible_loss("test")},
    }


# --- Fig. 3: index returns --------------------------------------------------------------------------------------------


def series(workplace: Workplace) -> dict[str, Any]:
    """One trial of Fig. 3: both backbones in both modes, LSTM and GRU on two sets of index returns."""
    scale = _scale(workplace)
    values: dict[str, Any] = {}
    sets = series_data(scale, _own_source(workplace))
    _used(workplace, *sets.values())
    for name, data in sets.items():
        data = data.to(workplace.device)
        fit = SequenceFitConfig(epochs=scale.series_retrain, learning_rate=scale.series_rates[0])
        configs = {row: series_config(scale, *form, data.features) for row, form in ROWS.items()}  # type: ignore[arg-type]
        values[name] = {
            "data": _described(data),
            **_trial(workplace, configs, data, fit, name),
            **_baselines(workplace, data.features, data, fit, name),
        }
    return values


def _of(record: Record, place: str, row: str) -> list[dict[str, Any]]:
    return [values[row] for values in record.values(place)]


def curves(record: Record, place: str, row: str, which: str = "validation") -> Float[np.ndarray, "trials epochs"]:
    """Learning curves of a row's networks, trained from scratch: ``validation`` or ``train`` losses.

    Args:
        record: of "growing-series" or "growing-language".
        place: name of a set of series, or the number of nodes that cells began with.
        row: of :data:`ROWS`, :data:`BASELINES`, :data:`UNGROWN_ROWS` or :data:`RANDOM_ROWS`.
        which: ``validation``, ``train`` or ``seconds``.
    """
    return np.array([values[which] for values in _of(record, place, row)])


def least_loss(record: Record, place: str, row: str) -> Float[np.ndarray, " trials"]:
    """The least validation loss of every trial's network."""
    return curves(record, place, row).min(axis=1)


Pair = tuple[str, Float[np.ndarray, " trials"], Float[np.ndarray, " trials"]]
"""What is claimed, the values that are to be lower, and those that are to be higher, by trial."""


def _difference(pair: Pair) -> str:
    text, lower, higher = pair
    difference = higher - lower
    # One cell that explodes decides a mean over 20 trials: the median says what is usual.
    median = np.median(difference)
    return f"{text} by {difference.mean():+.4f} (median {median:+.4f}, p = {one_sided_p(difference):.2g})"


def _compared(pairs: list[Pair]) -> Verdict:
    """The verdict on several claims that one loss is below another, trial by trial.

    It holds when all are significant: no test needs a correction for the others then. It holds partly when more than
    half have the claimed sign, one of them significantly, and none has the other sign significantly.
    """
    differences = [higher - lower for _, lower, higher in pairs]
    right = [bool(difference.mean() > 0) for difference in differences]
    significant = [one_sided_p(difference) < LEVEL for difference in differences]
    against = [one_sided_p(-difference) < LEVEL for difference in differences]
    counted = (
        f"{sum(right)} of {len(pairs)} have the claimed sign, {sum(significant)} significantly; {sum(against)} have "
        f"the other sign significantly"
    )
    numbers = f"{counted}: {'; '.join(_difference(pair) for pair in pairs)}; {len(differences[0])} trials"
    partly = sum(right) > len(pairs) / 2 and any(significant) and not any(against)
    return trend(partly, all(significant), numbers)


def _beside(record: Record, place: str) -> str:
    """What the losses at a place are to be seen against: the same without growth, and cells that can't work."""
    pairs = [
        (f"{row} below {control}", least_loss(record, place, row), least_loss(record, place, control))
        for control, row in UNGROWN_ROWS.items()
    ]
    blind = {row: sum(not reads_input(values["genotype"]) for values in _of(record, place, row)) for row in ROWS}
    named = ", ".join(f"{row} {count}" for row, count in blind.items() if count) or "none"
    return f"{'; '.join(map(_difference, pairs))}; searched cells that never read their input: {named}"


def _with_numbers(verdict: Verdict, *more: str) -> Verdict:
    return replace(verdict, numbers=". ".join((verdict.numbers, *more)))


def _judge_modes(record: Record) -> Verdict:
    pairs = []
    for place in record.scale["series"]:
        loss = {row: least_loss(record, place, row) for row in (*ROWS, "LSTM")}
        named = [("new-1", "DARTS-1"), ("new-2", "DARTS-2"), ("LSTM", "DARTS-1"), ("LSTM", "DARTS-2")]
        if place == "G7":  # on BRICS the paper sees no significant difference
            named.append(("new-2", "LSTM"))
        pairs += [(f"{place}: {lower} below {higher}", loss[lower], loss[higher]) for lower, higher in named]
    controls = []
    for place in record.scale["series"]:
        data = record.values(place)[0]["data"]
        constant = f"the constant forecast has {data['constant']:.4f}, on the test part {data['test']['constant']:.4f}"
        controls.append(f"Beside it, {place}: {_beside(record, place)}; {constant}")
    return _with_numbers(_compared(pairs), *controls)


def _paper_trials(trials: int, fewer: tuple[str, ...]) -> Callable[[Scale], GrowingScale]:
    """The chapter's scale with the paper's number of trials, but at some scales."""

    def scaled(scale: Scale) -> GrowingScale:
        own = growing_scale(scale)
        return own if own.name in fewer or own is scale else replace(own, seeds=trials)

    return scaled


register(
    Experiment(
        "growing-series",
        "Fig. 3: growing cells in both modes and backbones, LSTM and GRU on index returns",
        CHAPTER,
        series,
        {"growing.modes": _judge_modes},
        scaled=_paper_trials(20, ("quick",)),
    )
)


# --- Fig. 4 to 9: language --------------------------------------------------------------------------------------------


def language(workplace: Workplace) -> dict[str, Any]:
    """One trial of Fig. 4 to 9: both backbones in both modes from 2, 3 and 4 nodes, and the LSTM, on a text."""
    scale = _scale(workplace)
    data = text_data(scale, _own_source(workplace)).to(workplace.device)
    _used(workplace, data)
    fit = SequenceFitConfig(
        epochs=scale.text_epochs, batch_size=scale.text_batch, learning_rate=scale.text_rates[0]
    )
    values: dict[str, Any] = {"data": _described(data)}
    baselines = _baselines(workplace, scale.text_hidden, data, fit, "text")
    for nodes in scale.starts:
        configs = {row: text_config(scale, *form, nodes) for row, form in ROWS.items()}  # type: ignore[arg-type]
        values[str(nodes)] = {**_trial(workplace, configs, data, fit, f"{nodes} nodes"), **baselines}
    return values


def _starts(record: Record) -> list[str]:
    return [str(nodes) for nodes in record.scale["starts"]]


def _judge_language(record: Record) -> Verdict:
    pairs = []
    for start in _starts(record):
        for one, two in (("DARTS-1", "DARTS-2"), ("new-1", "new-2")):
            text = f"from {start} nodes: validation {one} below {two}"
            pairs.append((text, least_loss(record, start, one), least_loss(record, start, two)))
        for new, old in (("new-1", "DARTS-1"), ("new-2", "DARTS-2")):
            lower, higher = (curves(record, start, row, "train")[:, -1] for row in (new, old))
            pairs.append((f"from {start} nodes: training {new} below {old}", lower, higher))
    return _with_numbers(
        _compared(pairs), *(f"Beside it, from {start} nodes: {_beside(record, start)}" for start in _starts(record))
    )


def best_so_far(
    course: list[dict[str, Any]],
    spent: Float[np.ndarray, " times"],
    unit: Literal["seconds", "parameters"] = "seconds",
) -> Float[np.ndarray, " times"]:
    """The least validation loss that a search has reached when so much is spent; that of its first epoch before it.

    Args:
        course: the epochs of a search.
        spent: seconds, or parameters × epochs (Eq. 26, 27).
        unit: which of both. Seconds are the machine's; parameters × epochs are the same on all.
    """
    ends = np.cumsum([epoch[unit] for epoch in course])
    least = np.minimum.accumulate([epoch["validation"] for epoch in course])
    return least[np.maximum(np.searchsorted(ends, spent, side="right") - 1, 0)]


def _at_equal_cost(record: Record, unit: Literal["seconds", "parameters"]) -> Verdict:
    """Whether pruning at each stage has the lower loss on average over what both searches of a trial have spent."""
    pairs = []
    for start in _starts(record):
        for one, two in (("DARTS-1", "DARTS-2"), ("new-1", "new-2")):
            means: list[list[float]] = [[], []]
            for first, second in zip(_of(record, start, one), _of(record, start, two), strict=True):
                courses = (first["search"], second["search"])
                end = min(sum(epoch[unit] for epoch in course) for course in courses)
                spent = np.linspace(0, end, 201)[1:]
                for mean, course in zip(means, courses, strict=True):
                    mean.append(float(best_so_far(course, spent, unit).mean()))
            pairs.append((f"from {start} nodes: {one} below {two}", np.array(means[0]), np.array(means[1])))
    return _compared(pairs)


def _judge_time(record: Record) -> Verdict:
    by_clock, by_weights = (_at_equal_cost(record, unit) for unit in ("seconds", "parameters"))
    # Both searches of a trial are the same until the first pruning: there the clock shows the machine's noise alone.
    numbers = f"at equal times {by_clock.numbers}. At equal weights × epochs: {by_weights.status}, {by_weights.numbers}"
    return Verdict(by_clock.status, numbers)


register(
    Experiment(
        "growing-language",
        "Fig. 4 to 9: growing cells from 2, 3 and 4 nodes in both modes and backbones, and the LSTM, on a text",
        CHAPTER,
        language,
        {"growing.language": _judge_language, "growing.time": _judge_time},
        scaled=_paper_trials(5, ("quick", "laptop")),
    )
)


# --- Eq. 26 to 28: growing against the largest cell at once -----------------------------------------------------------


def cost(workplace: Workplace) -> dict[str, Any]:
    """Both backbones grown, and each size on the way trained at once, until early stopping; all cells retrained.

    A cell that is trained at once may have as many epochs as the growing one has in all its stages.
    """
    scale = _scale(workplace)
    data = _first_series(workplace)
    fit = SequenceFitConfig(epochs=scale.series_retrain, learning_rate=scale.series_rates[0])
    values: dict[str, Any] = {"data": _described(data)}
    for backbone in ("darts", "two-to-one"):
        plan = series_config(scale, backbone, "prune-at-end", data.features)
        plan = replace(plan, stages=scale.grown_nodes - scale.series_nodes + 1)
        plans = {"grown": plan}
        for nodes in range(scale.series_nodes, scale.grown_nodes + 1):
            plans[str(nodes)] = replace(plan, nodes=nodes, stages=1, stage_epochs=plan.stages * plan.stage_epochs)
        runs = {}
        for row, own in plans.items():
            name = f"{backbone} {row}"
            found = _searched(workplace, own, data, name)
            runs[row] = {**found, **_from_genotype(workplace, found["genotype"], own.hidden, data, fit, name)}
        grown = runs.pop("grown")
        values[backbone] = {"largest": max(epoch["nodes"] for epoch in grown["search"]), "grown": grown, "fixed": runs}
    return values


def weight_epochs(course: list[dict[str, Any]]) -> int:
    """Σ N_i e_i (Eq. 26, 27): the network's parameters, summed over all epochs."""
    return sum(epoch["parameters"] for epoch in course)


def _judge_complexity(record: Record) -> Verdict:
    """Growing against the largest cell that it came to, and beside it against all sizes on the way (end of §5.2)."""
    pairs, texts = [], []
    for backbone in ("darts", "two-to-one"):
        runs = record.values(backbone)
        grown = [run["grown"] for run in runs]
        largest = [run["fixed"][str(run["largest"])] for run in runs]
        costs = {
            kind: np.array([weight_epochs(found["search"]) for found in many])
            for kind, many in (("grown", grown), ("largest", largest))
        }
        every = np.array([
            sum(weight_epochs(found["search"]) for nodes, found in run["fixed"].items() if int(nodes) <= run["largest"])
            for run in runs
        ])
        times = [
            sum(epoch["seconds"] for epoch in one["search"]) / sum(epoch["seconds"] for epoch in other["search"])
            for one, other in zip(grown, largest, strict=True)
        ]
        ratio, share = np.log(costs["largest"] / costs["grown"]), np.exp(np.log(costs["grown"] / every).mean())
        pairs.append((bool(ratio.mean() > 0), one_sided_p(ratio) < LEVEL))
        losses = [np.mean([min(found["validation"]) for found in many]) for many in (grown, largest)]
        nodes = "/".join(str(run["largest"]) for run in runs)
        texts.append(
            f"{backbone} to {nodes} nodes: weights × epochs grown over the largest at once {np.exp(-ratio.mean()):.2f} "
            f"(p = {one_sided_p(ratio):.2g}), over every size up to it {share:.2f}, seconds over the largest "
            f"{np.mean(times):.2f}; validation loss of the cells, retrained, {losses[0]:.4f} against "
            f"{losses[1]:.4f}"
        )
    right, significant = (all(column) for column in zip(*pairs, strict=True))
    return trend(right, significant, "; ".join(texts) + f"; {len(record.measurements)} seeds")


register(
    Experiment(
        "growing-cost",
        "Eq. 26 to 28 measured: growing a cell against training the largest at once",
        CHAPTER,
        cost,
        {"growing.complexity": _judge_complexity},
        scaled=growing_scale,
    )
)


# --- Algorithm 4: operations that grow, are pruned and replaced -------------------------------------------------------

OPERATOR_ROWS = ("no change", "small weight", "splitting", "pruning", "replacing", "re-sampling")
"""The Two-to-One cell as it is, and with each of §3.2.2–3.2.4."""


GROW_ABOVE = 0.3
"""The weight from which on an operation is copied: one and a half times an equal share of five."""

PRUNE_BELOW = 0.15
"""The weight below which one goes: three quarters of an equal share."""

COPY_SHARE = 0.2
"""The weight of a copy: an equal share. At 0.1 no copy was ever among the two strongest, and pruning undid it all."""


def operator_rules(row: str) -> OperatorRules:
    """What happens to operations in a row of :data:`OPERATOR_ROWS`."""
    rules = {
        "no change": OperatorRules(),
        "small weight": OperatorRules(strategy="small-weight", grow_above=GROW_ABOVE, share=COPY_SHARE),
        "splitting": OperatorRules(strategy="splitting"),
        "pruning": OperatorRules(prune_below=PRUNE_BELOW, grow_above=GROW_ABOVE),
        "replacing": OperatorRules(exchange="replace", grow_above=GROW_ABOVE, share=COPY_SHARE),
        "re-sampling": OperatorRules(exchange="resample", grow_above=GROW_ABOVE),
    }
    return rules[row]


def operators(workplace: Workplace) -> dict[str, Any]:
    """The Two-to-One cell with and without each change of operations, on the first set of series; two kept an edge.

    The number of nodes stays, so that operations are all that changes: one stage of as many epochs as growth has in all
    of its. What a change brings shows in the search itself, before and after pruning to two, and in the retrained cell;
    pruning keeps the two strongest, so that several rows may end with the same cell.
    """
    scale = _scale(workplace)
    data = _first_series(workplace)
    fit = SequenceFitConfig(epochs=scale.series_retrain, learning_rate=scale.series_rates[0])
    values: dict[str, Any] = {"data": _described(data)}
    for row in OPERATOR_ROWS:
        plan = replace(
            series_config(scale, "two-to-one", "prune-at-end", data.features),
            stages=1,
            stage_epochs=scale.series_stages * scale.series_epochs,
            kept_operations=2,
            operators=operator_rules(row),
        )
        found = _searched(workplace, plan, data, row)
        least = {
            name: min(epoch["validation"] for epoch in found["search"] if epoch["tuning"] is tuning)
            for name, tuning in (("searched", False), ("tuned", True))
        }
        values[row] = {**found, **least, **_from_genotype(workplace, found["genotype"], plan.hidden, data, fit, row)}
    return values


register(
    Experiment(
        "growing-operators",
        "Algorithm 4 ablated: operations that multiply, split, are pruned and replaced",
        CHAPTER,
        operators,
        scaled=growing_scale,
    )
)


# --- the noise of a new node ------------------------------------------------------------------------------------------

NOISES = (0.001, 0.01, 0.1, 0.2)
"""δ = σ. With five candidates δ must stay below 1/4."""

PASSING = ("sum", "identity")
"""The operations by which a new node repeats the last one."""


def escaped(genotype: str, start: int) -> tuple[int, int]:
    """Of the nodes that were grown, how many ended with another operation than the morphism gave them; and how many
    there are.

    Args:
        genotype: JSON text of a recurrent genotype.
        start: number of nodes that the cell began with.
    """
    ((_, cell),) = Genotype.from_json(genotype).cells
    grown = [edge.operation for edge in cell.edges if edge.target > start]
    return sum(operation not in PASSING for operation in grown), len(grown)


def noise(workplace: Workplace) -> dict[str, Any]:
    """Cells grown with several δ = σ, pruned at the end: does a new node ever become something else than a copy?"""
    scale = _scale(workplace)
    data = _first_series(workplace)
    fit = SequenceFitConfig(epochs=scale.series_retrain, learning_rate=scale.series_rates[0])
    values: dict[str, Any] = {"data": _described(data)}
    for backbone in ("darts", "two-to-one"):
        values[backbone] = {}
        for delta in NOISES:
            plan = series_config(scale, backbone, "prune-at-end", data.features)
            name = f"{backbone} {delta}"
            found = _searched(workplace, replace(plan, delta=delta, sigma=delta), data, name)
            trained = _from_genotype(workplace, found["genotype"], plan.hidden, data, fit, name)
            values[backbone][str(delta)] = {**found, **trained}
    return values


register(
    Experiment(
        "growing-noise",
        "Growth with several δ = σ: whether a new node becomes more than a copy of the last",
        CHAPTER,
        noise,
        scaled=growing_scale,
    )
)


# --- images -----------------------------------------------------------------------------------------------------------


def images(workplace: Workplace) -> dict[str, Any]:
    """A convolutional cell that grows from two nodes in both modes, DARTS with two nodes and with the most, and cells
    drawn at random with as many.

    DARTS searches as many epochs as growth with pruning at the end took, and what α can move in all is what the scale's
    own number of epochs gives it. All cells are retrained alike.
    """
    scale = _scale(workplace)
    values: dict[str, Any] = {}
    begun = replace(scale.space, nodes=2)
    epochs = 1
    for row, mode in (("grown-1", "prune-each-stage"), ("grown-2", "prune-at-end")):
        config = growing_config(scale, mode)  # type: ignore[arg-type]
        search = growing.Search(config, workplace.data, begun, workplace.seed)
        workplace.drive(search, f"search {row}")
        result = search.result()
        epochs = len(result.history)
        values[row] = {
            "search": [
                {"epoch": r.epoch, "stage": r.stage, "tuning": r.tuning, "nodes": r.nodes,
                 "train": round(r.train_loss, DIGITS), "validation": round(r.validation_loss, DIGITS),
                 "accuracy": r.validation_accuracy, "seconds": round(r.seconds, 3)}
                for r in search.history
            ],
            "events": [{k: v for k, v in asdict(event).items() if k != "operations"} for event in search.events],
            "nodes": result.genotype.normal.nodes,
            **train_derived(workplace, result.genotype, f"train {row}"),
        }
    for nodes in (2, 1 + scale.image_stages):
        space = replace(scale.space, nodes=nodes)
        equal = replace(
            search_config(scale, epochs),
            order="first-order",
            architecture_learning_rate=scale.architecture_learning_rate * scale.search_epochs / epochs,
        )
        plain: GradientSearch = darts.Search(equal, workplace.data, space, workplace.seed)
        workplace.drive(plain, f"search DARTS {nodes}")
        values[f"DARTS, {nodes} nodes"] = {
            "seconds": round(plain.result().seconds, 1),
            "nodes": nodes,
            **train_derived(workplace, plain.result().genotype, f"train DARTS {nodes}"),
        }
        drawn = random_genotype(space, generator(fold_seed(workplace.seed, "random cell", str(nodes))))
        values[f"random, {nodes} nodes"] = {
            "nodes": nodes,
            **train_derived(workplace, drawn, f"train random {nodes}"),
        }
    return values


register(
    Experiment(
        "growing-images",
        "A convolutional cell that grows nodes, against DARTS with as few and as many",
        CHAPTER,
        images,
        scaled=growing_scale,
    )
)
