"""The command line: search, train, draw, reproduce, and lists of what there is.

Options come from the same dataclasses that the package takes, by tyro; their docstrings are the help.
Every expected error ends in one line on standard error and a non-zero exit.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from nasbook import __version__
from nasbook.errors import InvalidInput, NasbookError, unknown_name
from nasbook.training import FitConfig

USAGE = """\
usage: nasbook COMMAND [OPTIONS]

Differentiable and growing neural architecture search.

  search METHOD          search for a cell: nasbook search darts --data digits --out runs/darts
  train GENOTYPE         train the network of a cell: nasbook train runs/darts/genotype.json
  draw GENOTYPE          draw a cell: nasbook draw DARTS_V2 --out darts-v2.png
  reproduce EXPERIMENT   measure a table or figure of the book: nasbook reproduce darts-random --seed 1
  records                show what was measured and what it says of the papers' claims
  list                   list methods, data sets, operations, published cells, experiments and scales

nasbook COMMAND --help shows a command's options. A GENOTYPE is a JSON file or a published name.
"""


ConfigType = TypeVar("ConfigType")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of everything that runs for a while."""

    out: Path
    """Folder for the results and the checkpoint."""
    data: str
    """Data set: a name from `nasbook list`, or the path of an .npz file."""
    scale: str
    """Size that the other defaults come from: quick, laptop, gpu or paper."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on from the checkpoint in --out."""
    checkpoint_steps: int = 0
    """Also save every so many steps, not only after each epoch; 0 for epochs only."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RunOptions, Generic[ConfigType]):
    """Options of a search."""

    operations: tuple[str, ...]
    """Candidate operations on every edge."""
    nodes: int
    """Intermediate nodes of a cell."""
    config: tyro.conf.OmitArgPrefixes[ConfigType]
    """The method's own options."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """Options of training a derived network."""

    channels: int
    """Channels of the first cell's nodes, C."""
    cells: int
    """Number of cells, L."""
    auxiliary: bool
    """Add an auxiliary head (images of 32 pixels)."""
    stem: str = "cifar"
    """cifar keeps the resolution, imagenet divides it by 8."""
    config: tyro.conf.OmitArgPrefixes[FitConfig]
    """How to train."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 1 on an error, 2 on wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"nasbook {__version__}")
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise _Usage(str(unknown_name("command", arguments[0], COMMANDS)))
        COMMANDS[arguments[0]](arguments[1:])
    except SystemExit as stop:  # tyro has printed a help text
        return int(stop.code or 0)
    except _Usage as error:
        print(f"nasbook: {error}", file=sys.stderr)
        return 2
    except NasbookError as error:
        print(f"nasbook: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "memory" not in str(error).lower():  # CUDA's and the CPU's allocators both say it in words only
            raise
        print("nasbook: out of memory: lower --batch-size, --channels or --cells.", file=sys.stderr)
        return 1
    except OSError as error:  # what no part of the package has given words to
        if isinstance(error, BrokenPipeError):  # `nasbook list | head`
            sys.stderr.close()
            return 0
        print(f"nasbook: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1
    except _Interrupted:
        again = shlex.join(["nasbook", *arguments, *([] if "--resume" in arguments else ["--resume"])])
        print(f"\nnasbook: interrupted and saved. To go on: {again}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nnasbook: interrupted before there was anything to save.", file=sys.stderr)
        return 130
    return 0


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C after which there is something to resume."""


@contextlib.contextmanager
def _interrupted_if(saved: Callable[[], bool]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise _Interrupted if saved() else KeyboardInterrupt from None


class _Usage(InvalidInput):
    """Wrong options or arguments."""


# --- commands ---------------------------------------------------------------------------------------------------------


def _search(arguments: list[str]) -> None:
    from nasbook.experiments import SEARCH_CONFIGS, get_scale
    from nasbook.methods import METHODS, get_method

    name, rest = _positional(arguments, "search", "METHOD", f"One of: {', '.join(METHODS)}.", METHODS)
    method = get_method(name)
    scale = get_scale(_scale_in(rest))
    defaults: SearchOptions[Any] = SearchOptions(
        out=Path("runs") / name,
        data=scale.data,
        scale=scale.name,
        operations=scale.operations,
        nodes=scale.nodes,
        config=SEARCH_CONFIGS[name](scale),
    )
    title = (method.__doc__ or "").splitlines()[0]
    kind: Any = SearchOptions  # subscripted with a class that is known only now
    options = _parse(kind[method.Config], defaults, f"nasbook search {name}", title, rest)

    from nasbook.genotypes import Space
    from nasbook.operations import get_operation

    for operation in options.operations:
        get_operation(operation)
    data = _load(options)
    search = method.Search(options.config, data, Space(options.operations, options.nodes), options.seed)
    _drive(search, options, f"search {name}")
    result = search.result()
    result.genotype.save(options.out / "genotype.json")
    _write_json(options.out / "result.json", {**search.header(), "history": _curves(search.history)})
    for kind, cell in result.genotype.cells:
        print(f"{kind}: " + ", ".join(f"{e.source}→{e.target} {e.operation}" for e in cell.edges))
    epochs = len(result.history)
    print(f"validation accuracy {result.validation_accuracy:.2%} after {epochs} epochs, {result.seconds:.0f} s")
    print(f"genotype: {options.out / 'genotype.json'}")
    print(f"train it: nasbook train {options.out / 'genotype.json'} --scale {options.scale} --data {options.data}")


def _train(arguments: list[str]) -> None:
    from nasbook.experiments import fit_config, get_scale

    name, rest = _positional(arguments, "train", "GENOTYPE", "A JSON file, or a name from `nasbook list`.")
    scale = get_scale(_scale_in(rest))
    defaults = TrainOptions(
        out=Path("runs") / "train",
        data=scale.data,
        scale=scale.name,
        channels=scale.channels,
        cells=scale.cells,
        auxiliary=scale.auxiliary,
        config=fit_config(scale),
    )
    title = "Train the network of a genotype and evaluate it on the test images."
    options = _parse(TrainOptions, defaults, "nasbook train GENOTYPE", title, rest)
    genotype = _genotype(name)

    import torch
    from safetensors.torch import save as to_safetensors

    from nasbook.analysis import count_macs, count_parameters
    from nasbook.files import whole_file
    from nasbook.networks import DerivedNetwork
    from nasbook.seeding import fold_seed
    from nasbook.training import Fit

    data = _load(options)
    torch.manual_seed(fold_seed(options.seed, "derived network"))
    network = DerivedNetwork(
        genotype,
        options.channels,
        options.cells,
        data.classes,
        auxiliary=options.auxiliary,
        stem=options.stem,
        in_channels=data.channels,
    )
    run = Fit(network, data, options.config, seed=options.seed)
    macs = count_macs(network, (1, data.channels, data.size, data.size))
    print(f"{count_parameters(network):,} parameters, {macs:,} multiply-adds an image")
    _drive(run, options, "train")
    with whole_file(options.out / "weights.safetensors") as file:
        file.write(to_safetensors({k: v.cpu().contiguous() for k, v in network.state_dict().items()}))
    genotype.save(options.out / "genotype.json")
    _write_json(options.out / "result.json", {**run.header(), "history": _curves(run.history)})
    print(f"test accuracy {run.history[-1].validation_accuracy:.2%}")
    print(f"weights: {options.out / 'weights.safetensors'}")


@dataclass(frozen=True)
class DrawOptions:
    """Options of drawing."""

    out: Path = Path("genotype.png")
    """Picture to write; .png, .svg or .pdf."""


def _draw(arguments: list[str]) -> None:
    name, rest = _positional(arguments, "draw", "GENOTYPE", "A JSON file, or a name from `nasbook list`.")
    options = _parse(DrawOptions, DrawOptions(), "nasbook draw GENOTYPE", "Draw the cells of a genotype.", rest)
    endings = (".png", ".svg", ".pdf")
    if options.out.suffix not in endings:
        raise _Usage(f"--out must end in {', '.join(endings)}; got {str(options.out)!r}.")
    genotype = _genotype(name)

    from nasbook.files import whole_file
    from nasbook.plots import draw_genotype

    figure = draw_genotype(genotype)
    with whole_file(options.out) as file:
        figure.savefig(file, format=options.out.suffix[1:], dpi=200, bbox_inches="tight")
    print(options.out)


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of one measurement."""

    scale: str
    """quick, laptop, gpu or paper."""
    seed: int = 0
    """Seed of everything random; a trend needs at least three."""
    data: str = ""
    """Another source of the scale's data set, such as an .npz file; empty for the scale's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one."""
    out: Path = Path("runs/records")
    """Folder for the record and the checkpoints."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on from the checkpoints in --out."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """No progress bars."""


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
    name, rest = _positional(arguments, "reproduce", "EXPERIMENT", f"One of: {', '.join(names)}.", names)
    experiment = get_experiment(name)
    options = _parse(
        ReproduceOptions,
        ReproduceOptions(get_scale(_scale_in(rest)).name),
        f"nasbook reproduce {name}",
        experiment.title + ".",
        rest,
    )

    from nasbook.environment import resolve_device

    with _interrupted_if(lambda: any(options.out.glob(f"checkpoints/{name}.*.seed{options.seed}/*.pt"))):
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


@dataclass(frozen=True)
class RecordsOptions:
    """Options of the list of records."""

    folder: Path | None = None
    """Folder of records; by default those that came with the package."""


def _records(arguments: list[str]) -> None:
    from nasbook.experiments import CLAIMS, SCALES, judge, load_records

    options = _parse(
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
        raise _Usage(f"nasbook list takes no arguments, got {' '.join(arguments)!r}.")
    from nasbook.data import list_images
    from nasbook.experiments import SCALES, list_experiments
    from nasbook.genotypes import PUBLISHED
    from nasbook.methods import METHODS
    from nasbook.operations import get_operation, list_operations

    _section("methods", {name: (m.__doc__ or "").splitlines()[0] for name, m in METHODS.items()})
    _section("data sets", {name: "embedded" if name == "digits" else "downloaded" for name in list_images()})
    _section("operations", {name: get_operation(name).summary for name in list_operations()})
    _section("published genotypes", dict.fromkeys(PUBLISHED, ""))
    _section("experiments", {e.name: e.title for e in list_experiments()})
    _section("scales", {name: f"{s.data}, {s.search_epochs} epochs of search" for name, s in SCALES.items()})


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "search": _search,
    "train": _train,
    "draw": _draw,
    "reproduce": _reproduce,
    "records": _records,
    "list": _list,
}


# --- options ----------------------------------------------------------------------------------------------------------


OptionsType = TypeVar("OptionsType")


def _parse(kind: type[OptionsType], default: OptionsType, prog: str, title: str, arguments: list[str]) -> OptionsType:
    """tyro's parser, with its errors as one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, prog=prog, description=title, args=arguments, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _Usage(_one_line(errors.getvalue(), prog)) from None


def _one_line(text: str, prog: str) -> str:
    """The first part of tyro's box, and the option that it suggests, in one line."""
    lines = [re.sub(r"\s+", " ", re.sub(r"[╭╮╰╯│]", "", line)).strip() for line in text.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines[1:]:
        if line and not set(line) - {"─"}:
            parts.append([])
        elif line:
            parts[-1].append(line)
    said = " ".join(parts[0])
    said = re.sub(r"^Error parsing [\w.-]+: ", "", said) if "must be" in said else said
    meant = next((part[1] for part in parts if part and part[0].startswith("Perhaps")), "")
    return f"{said.rstrip('.')}. " + (f"Did you mean {meant}? " if meant else "") + f"See {prog} --help."


def _positional(
    arguments: list[str], command: str, name: str, expected: str, known: Sequence[str] | dict[str, Any] | None = None
) -> tuple[str, list[str]]:
    """The first argument, which every command but two needs, and the rest."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: nasbook {command} {name} [OPTIONS]\n\n{name}: {expected}\n")
        if known is None:  # the options do not depend on it
            return "", arguments
        print(f"The options depend on it: nasbook {command} {next(iter(known))} --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        article = "an" if name[0] in "AEIOU" else "a"
        raise _Usage(f"nasbook {command} needs {article} {name} first. {expected}")
    if known is not None and arguments[0] not in known:
        raise _Usage(str(unknown_name(name.lower(), arguments[0], known)))
    return arguments[0], arguments[1:]


def _scale_in(arguments: list[str]) -> str | None:
    """The value of --scale, which decides the other options' defaults."""
    for number, argument in enumerate(arguments):
        if argument == "--scale" and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith("--scale="):
            return argument.partition("=")[2]
    return None


# --- what the commands share ------------------------------------------------------------------------------------------


def _genotype(name: str) -> Any:
    from nasbook.genotypes import PUBLISHED, Genotype
    from nasbook.operations import get_operation

    if name in PUBLISHED:
        return PUBLISHED[name]
    if not name.endswith(".json") and not Path(name).exists():
        raise unknown_name("genotype", name, [*PUBLISHED, "a path that ends in .json"])
    genotype = Genotype.load(name)
    for kind, cell in genotype.cells:
        for number, edge in enumerate(cell.edges):
            try:
                get_operation(edge.operation)
            except InvalidInput as error:
                raise InvalidInput(f"{name}: cells.{kind}.edges[{number}]: {error}") from None
    return genotype


def _load(options: Any) -> Any:
    from nasbook.data import load_images
    from nasbook.environment import resolve_device
    from nasbook.experiments import get_scale
    from nasbook.seeding import seed_everything

    device = resolve_device(options.device)
    seed_everything(options.seed, threads=None)
    scale = get_scale(options.scale)
    data = load_images(options.data, device=device)
    return data.take(scale.train_images, scale.test_images) if options.data == scale.data else data


def _drive(run: Any, options: Any, label: str) -> None:
    from nasbook.training import drive

    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise InvalidInput(f"{options.out} holds a run already: give --resume to go on with it, or another --out.")
    if options.resume and not checkpoint.exists():
        raise InvalidInput(f"There is no checkpoint in {options.out} to resume; leave --resume out to begin.")
    with _interrupted_if(checkpoint.exists):
        drive(
            run,
            checkpoint=checkpoint,
            resume=options.resume,
            checkpoint_steps=options.checkpoint_steps,
            label=label,
            progress=not options.quiet,
        )


def _curves(history: Sequence[Any]) -> list[dict[str, float | None]]:
    """What every epoch measured; null where it did not (an epoch without evaluation has NaN)."""
    from nasbook.training import EpochReport

    rows = ({f.name: getattr(report, f.name) for f in fields(EpochReport)} for report in history)
    return [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from nasbook.files import whole_file

    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _section(title: str, entries: dict[str, str]) -> None:
    width = max(map(len, entries))
    print(f"{title}:")
    for name, text in entries.items():
        print(f"  {name:<{width}}  {text}".rstrip())
