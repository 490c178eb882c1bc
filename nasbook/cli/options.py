"""The options of every command. tyro makes the parser and the help text from these dataclasses."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from nasbook.data.series import SHARES
from nasbook.errors import InvalidInput, unknown_name
from nasbook.networks import CellOutput
from nasbook.operations import CONSTRAINTS, Constraints
from nasbook.training import FitConfig, SegmentationConfig, SequenceFitConfig

ConfigType = TypeVar("ConfigType")
SourceType = TypeVar("SourceType")

Own = Annotated[ConfigType, tyro.conf.arg(name="")]
"""Options that stand among the others, without a prefix; those of a dataclass in them have one."""


@dataclass(frozen=True)
class FolderOptions:
    """Which images of a folder are used; the same ones in every run."""

    share: float = 0.03
    """Share of the images in train, the same of every class."""
    test_share: float = 0.1
    """Share of the images in val, which are the test images; a search needs none."""
    image_size: int = 224
    """Height and width that the images are resized and cropped to."""
    limit_gib: float = 16.0
    """Most GiB that the decoded images may take."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of everything that runs for a while."""

    out: Path
    """Folder for the results and the checkpoint."""
    data: str
    """Data set: a name from `nasbook list`, or your own."""
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
class ImageRunOptions(RunOptions):
    """Options of what runs on images."""

    data: str
    """Data set: a name from `nasbook list`, an .npz file, or a folder of images, train/CLASS and val/CLASS."""
    folder: tyro.conf.OmitArgPrefixes[FolderOptions] = FolderOptions()
    """Of --data, where that is a folder of images: some of them become the data set."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(ImageRunOptions, Generic[ConfigType]):
    """Options of a search."""

    operations: tuple[str, ...]
    """Candidate operations on every edge."""
    nodes: int
    """Intermediate nodes of a cell; a cell that grows begins with so many."""
    config: Own[ConfigType]
    """The method's own options."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ImageRunOptions):
    """Options of training a derived network."""

    channels: int
    """Channels of the first cell's nodes, C."""
    parameters: int | None = None
    """In place of --channels: take the C that comes nearest to so many parameters, an auxiliary head aside."""
    cells: int
    """Number of cells, L."""
    auxiliary: bool
    """Add an auxiliary head (images of 32 pixels, or of 224 with the imagenet stem)."""
    stem: str = "cifar"
    """cifar keeps the resolution, imagenet divides it by 8."""
    cell_output: CellOutput = "concatenation"
    """How nodes become a cell's output; as the search had it."""
    config: tyro.conf.OmitArgPrefixes[FitConfig]
    """How to train."""


@dataclass(frozen=True)
class SeriesOptions:
    """Which series are read, and how."""

    columns: tuple[str, ...] = ()
    """Series to take, by the names in the first line of the file; all of them where none is named."""
    returns: tyro.conf.FlagCreatePairsOff[bool] = False
    """The file has returns, not prices."""
    drop_interpolated: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave out the days whose price was filled in between two others."""
    window: int = 10
    """Days that a forecast sees."""
    shares: tuple[float, float, float] = SHARES
    """Shares of the days that train, validation and test get, one after another."""


@dataclass(frozen=True)
class TextOptions:
    """Which words are read."""

    lines: tuple[int, int, int] | None
    """Lines of train, validation and test, cut from the beginning of the training part; None keeps the parts."""
    window: int
    """Words of an example."""
    most_words: int | None = None
    """Words in the vocabulary at most; the rarest become <unk>."""


@dataclass(frozen=True, kw_only=True)
class SequenceRunOptions(RunOptions, Generic[SourceType]):
    """Options of what runs on series or text."""

    data: str
    """Series or text: a name from `nasbook list`, a .csv file of closes, a .txt file, or a folder of three texts."""
    source: tyro.conf.OmitArgPrefixes[SourceType]
    """Of --data: what is read, and how."""


@dataclass(frozen=True, kw_only=True)
class SequenceSearchOptions(SequenceRunOptions[SourceType], Generic[SourceType, ConfigType]):
    """Options of a search on series or text."""

    config: Own[ConfigType]
    """The method's own options."""


@dataclass(frozen=True, kw_only=True)
class SequenceTrainOptions(SequenceRunOptions[SourceType]):
    """Options of training a recurrent network."""

    hidden: int
    """Width of the state, n_h."""
    layers: int = 1
    """Of lstm and gru, the number of stacked layers; a genotype has a cell for each."""
    config: Own[SequenceFitConfig]
    """How to train."""


@dataclass(frozen=True, kw_only=True)
class GrowOptions(ImageRunOptions, Generic[ConfigType]):
    """Options of growing a network."""

    network: str
    """The network that grows: a name from `nasbook list`."""
    widths: tuple[int, ...]
    """Neurons of its layers at the start: one number for all of them, or one for each."""
    config: tyro.conf.OmitArgPrefixes[ConfigType]
    """The method's own options."""


@dataclass(frozen=True, kw_only=True)
class ContinualOptions(ImageRunOptions, Generic[ConfigType]):
    """Options of learning a sequence of tasks."""

    tasks: int
    """Tasks that the classes are divided into, equally many each."""
    split_seed: int = 0
    """Seed of the division."""
    order: tuple[int, ...] = ()
    """The order in which the tasks come, each number from 1 once; as they were drawn where none is named."""
    seen_tasks: int | None = None
    """How many of them are learned, the first ones; None for all."""
    network: str
    """The network that learns: a growable one from `nasbook list`."""
    widths: tuple[int, ...]
    """Neurons of its layers at the start: one number for all of them, or one for each."""
    config: tyro.conf.OmitArgPrefixes[ConfigType]
    """The method's own options."""


@dataclass(frozen=True, kw_only=True)
class MasterOptions:
    """Options of testing a master network."""

    data: str
    """Data set whose classes the tasks have: a name from `nasbook list`, an .npz file, or a folder of images."""
    task: int | None = None
    """The task whose network is tested, from 1; all of them where none is named."""
    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """No progress bar."""
    folder: tyro.conf.OmitArgPrefixes[FolderOptions] = FolderOptions()
    """Of --data, where that is a folder of images: some of them become the data set."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(RunOptions):
    """Options of training a segmentation network."""

    data: str
    """shapes (embedded), voc (Pascal VOC 2012, downloaded), or a folder that holds VOC."""
    scale: str
    """Size that the other defaults come from: quick, laptop, gpu or paper; with VOC, paper."""
    weights: Path | None = None
    """weights.safetensors of `nasbook train`, with the same channels, cells and stem: where the backbone begins."""
    train_list: str
    """Of VOC: list of the training images, such as train, or trainaug with labels in SegmentationClassAug."""
    test_list: str = "val"
    """Of VOC: list of the images to evaluate on."""
    channels: int
    """Channels of the backbone's first cell, C."""
    cells: int
    """Cells of the backbone, L."""
    stem: str
    """cifar keeps the resolution, imagenet divides it by 8."""
    output_stride: int
    """What the backbone divides the resolution by: 8, 16 or 32 with the imagenet stem, 1, 2 or 4 with cifar."""
    rates: tuple[int, int, int] | None
    """Rates of the head's dilated convolutions; None takes DeepLabV3's for the output stride."""
    head_channels: int
    """Channels inside the head."""
    config: tyro.conf.OmitArgPrefixes[SegmentationConfig]
    """How to train."""


@dataclass(frozen=True)
class CountOptions:
    """Options of counting a network."""

    channels: int = 36
    """Channels of the first cell's nodes, C."""
    cells: int = 20
    """Number of cells, L."""
    classes: int = 10
    """Number of classes."""
    image_size: int = 32
    """Height and width of the images."""
    in_channels: int = 3
    """Channels of the images."""
    stem: str = "cifar"
    """cifar keeps the resolution, imagenet divides it by 8."""
    cell_output: CellOutput = "concatenation"
    """How nodes become a cell's output."""


@dataclass(frozen=True)
class DrawOptions:
    """Options of drawing."""

    out: Path = Path("genotype.png")
    """Picture to write; .png, .svg or .pdf."""
    task: int | None = None
    """Of a master network: the task whose network is shown, from 1; all neurons alike where none is named."""


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of one measurement."""

    scale: str
    """quick, laptop, gpu or paper."""
    seed: int = 0
    """Seed of everything random; a trend needs at least three."""
    data: str = ""
    """Another source of the scale's data set: an .npz file, or closes in a .csv file where an experiment is on series;
    empty for the scale's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 and so on; auto takes CUDA where there is one."""
    out: Path = Path("runs/records")
    """Folder for the record and the checkpoints."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on from the checkpoints in --out."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """No progress bars."""


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep."""

    methods: tuple[str, ...] = ()
    """Methods that search; their cells are trained and tested. Names from `nasbook list`."""
    experiments: tuple[str, ...] = ()
    """Experiments of the book, beside the methods or in their place. Names from `nasbook list`."""
    scales: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--scale",))] = ("quick",)
    """quick, laptop, gpu or paper; one or more."""
    seeds: tuple[str, ...] = ("0-2",)
    """Seeds: numbers, and ranges such as 0-9."""
    out: Path = Path("runs/sweep")
    """Folder for records, checkpoints and sweep.json. All machines of a cluster must see it."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run what is missing in --out: what was interrupted, what failed, and what is named for the first time."""
    data: str = ""
    """Another source of the scale's data set, as `nasbook reproduce` takes it; empty for the scale's own."""
    device: str = "auto"
    """cpu or cuda; auto takes CUDA where a trial is given a share of a GPU, and without Ray where there is one."""
    engine: Literal["auto", "ray", "in-turn"] = "auto"
    """ray runs trials side by side, in-turn one after another in this process; auto takes Ray where it is installed."""
    address: str = ""
    """Address of a Ray cluster: auto on its head node, or HOST:PORT; empty for one on this machine."""
    cpus: int | None = None
    """CPUs of the cluster on this machine; None for all."""
    cpus_per_trial: float = 1.0
    """CPUs of each trial; it runs in so many threads, at least 1. Results depend on the number of threads."""
    gpus_per_trial: float | None = None
    """GPUs of each trial; at 0.25 four trials share one. None for 1 where this machine has CUDA, else 0."""
    retries: int = 3
    """How often a trial is begun again, from its checkpoint, after its worker died."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """No progress table."""


@dataclass(frozen=True)
class RecordsOptions:
    """Options of the list of records."""

    folder: Path | None = None
    """Folder of records; by default those that came with the package."""


_WORDS: dict[str, dict[str, bool | None]] = {
    "max_depth": {"none": None},
    "max_width": {"none": None},
    "dilated_pointwise": {"true": True, "false": False},
}
"""What a column of the constraints may be besides a number, or in its place."""


def read_constraints(words: Sequence[str]) -> Constraints:
    """Constraints of morphisms from a name, and columns that differ: ``UR``, or ``UR max-depth=3``.

    Raises:
        InvalidInput: there is no such name or column, or a value is not a whole number (or none, where that is allowed;
            or true or false).
    """
    name, changes = words[0] if words else "", words[1:]
    if name not in CONSTRAINTS:
        raise unknown_name("constraints", name, CONSTRAINTS)
    base = CONSTRAINTS[name]
    values: dict[str, Any] = {}
    for change in changes:
        column, _, value = change.partition("=")
        column = column.replace("-", "_")
        if column not in asdict(base):
            raise unknown_name("column of the constraints", column, asdict(base))
        special = _WORDS.get(column, {})
        forms = [*([] if True in special.values() else ["a whole number"]), *special]
        if value.lower() in special:
            values[column] = special[value.lower()]
        elif value.isdecimal() and "a whole number" in forms:
            values[column] = int(value)
        else:
            raise InvalidInput(f"{column}: expected {' or '.join(forms)}, got {value!r}.")
    return replace(base, **values)


def write_constraints(constraints: Constraints) -> list[str]:
    """The fewest words that :func:`read_constraints` reads as these constraints."""
    own = asdict(constraints)
    written = [
        [name, *(f"{column}={own[column]}".lower() for column, value in asdict(base).items() if value != own[column])]
        for name, base in CONSTRAINTS.items()
    ]
    return min(written, key=len)


RULES = tyro.constructors.ConstructorRegistry()
"""How tyro reads types of ours."""


@RULES.primitive_rule
def _constraints_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Constraints] | None:
    if info.type is not Constraints:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{{{','.join(CONSTRAINTS)}}} [COLUMN=VALUE ...]",
        instance_from_str=read_constraints,
        is_instance=lambda value: isinstance(value, Constraints),
        str_from_instance=write_constraints,
    )


class Usage(InvalidInput):
    """Wrong options or arguments."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after which there is something to resume."""


OptionsType = TypeVar("OptionsType")


def parse(kind: type[OptionsType], default: OptionsType, prog: str, title: str, arguments: list[str]) -> OptionsType:
    """tyro's parser, with its errors as one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), RULES:
            return tyro.cli(kind, prog=prog, description=title, args=arguments, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise Usage(_one_line(errors.getvalue(), prog)) from None


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


def positional(
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
        raise Usage(f"nasbook {command} needs {article} {name} first. {expected}")
    if known is not None and arguments[0] not in known:
        raise Usage(str(unknown_name(name.lower(), arguments[0], known)))
    return arguments[0], arguments[1:]


def value_of(option: str, arguments: list[str]) -> str | None:
    """What an option is given on the command line, before it is parsed; None where it is not there."""
    for number, argument in enumerate(arguments):
        if argument == option and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def scale_in(arguments: list[str]) -> str | None:
    """The value of --scale, which decides the other options' defaults."""
    return value_of("--scale", arguments)
