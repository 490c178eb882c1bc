"""What each command does, with the package's own functions."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nasbook import processes
from nasbook.cli.options import (
    DrawOptions,
    FolderOptions,
    GrowOptions,
    Interrupted,
    RecordsOptions,
    ReproduceOptions,
    SearchOptions,
    SegmentOptions,
    TrainOptions,
    Usage,
    parse,
    positional,
    scale_in,
    value_of,
)
from nasbook.errors import InvalidInput, unknown_name


def _search(arguments: list[str]) -> None:
    from nasbook.experiments import SEARCH_CONFIGS, get_scale, search_space
    from nasbook.methods import METHODS, get_method

    name, rest = positional(arguments, "search", "METHOD", f"One of: {', '.join(METHODS)}.", METHODS)
    method = get_method(name)
    scale = get_scale(scale_in(rest))
    space = search_space(name, scale)
    defaults: SearchOptions[Any] = SearchOptions(
        out=Path("runs") / name,
        data=scale.data,
        scale=scale.name,
        operations=space.operations,
        nodes=space.nodes,
        config=SEARCH_CONFIGS[name](scale),
    )
    title = (method.__doc__ or "").splitlines()[0]
    kind: Any = SearchOptions  # subscripted with a class that is known only now
    options = parse(kind[method.Config], defaults, f"nasbook search {name}", title, rest)

    from nasbook.genotypes import Space
    from nasbook.operations import get_operation

    for operation in options.operations:
        get_operation(operation)
    data = _load(options)
    search = method.Search(options.config, data, Space(options.operations, options.nodes), options.seed)
    _drive(search, options, f"search {name}")
    if not processes.is_first():
        return
    result = search.result()
    result.genotype.save(options.out / "genotype.json")
    _write_json(options.out / "result.json", {**search.header(), "history": _curves(search.history)})
    for kind, cell in result.genotype.cells:
        print(f"{kind}: " + ", ".join(f"{e.source}→{e.target} {e.operation}" for e in cell.edges))
    epochs = len(result.history)
    print(f"validation accuracy {result.validation_accuracy:.2%} after {epochs} epochs, {result.seconds:.0f} s")
    print(f"genotype: {options.out / 'genotype.json'}")
    again = ["nasbook", "train", str(options.out / "genotype.json"), "--scale", options.scale, *_same_data(options)]
    if getattr(method.Search, "evaluates_as_deep", False):
        again += ["--cells", str(options.config.cells)]
    if getattr(options.config, "cell_output", "concatenation") != "concatenation":
        again += ["--cell-output", options.config.cell_output]
    print(f"train it: {shlex.join(again)}")


def _train(arguments: list[str]) -> None:
    from nasbook.experiments import fit_config, get_scale

    name, rest = positional(arguments, "train", "GENOTYPE", "A JSON file, or a name from `nasbook list`.")
    scale = get_scale(scale_in(rest))
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
    options = parse(TrainOptions, defaults, "nasbook train GENOTYPE", title, rest)
    if options.parameters is not None and value_of("--channels", rest) is not None:
        raise Usage("Give --channels or --parameters, not both.")
    if _is_folder(options.data) and not options.folder.test_share:
        raise Usage("The network is evaluated on test images: give a --test-share above 0.")
    genotype = _genotype(name)

    import torch
    from safetensors.torch import save as to_safetensors

    from nasbook.analysis import count_macs, count_parameters
    from nasbook.files import whole_file
    from nasbook.networks import DerivedNetwork, channels_for, parameters_of
    from nasbook.seeding import fold_seed
    from nasbook.training import Fit

    data = _load(options)
    form = {"stem": options.stem, "in_channels": data.channels, "cell_output": options.cell_output}
    channels = options.channels
    if options.parameters is not None:
        channels = channels_for(options.parameters, genotype, options.cells, data.classes, **form)
        found = parameters_of(genotype, channels, options.cells, data.classes, **form)
        print(f"{channels} channels: {found:,} parameters are the nearest to {options.parameters:,}")
    torch.manual_seed(fold_seed(options.seed, "derived network"))
    network = DerivedNetwork(
        genotype, channels, options.cells, data.classes, auxiliary=options.auxiliary, **form
    )
    run = Fit(network, data, options.config, seed=options.seed)
    macs = count_macs(network, (1, data.channels, data.size, data.size))
    print(f"{count_parameters(network):,} parameters, {macs:,} multiply-adds an image")
    _drive(run, options, "train")
    if not processes.is_first():
        return
    with whole_file(options.out / "weights.safetensors") as file:
        file.write(to_safetensors({k: v.cpu().contiguous() for k, v in network.state_dict().items()}))
    genotype.save(options.out / "genotype.json")
    _write_json(options.out / "result.json", {**run.header(), "history": _curves(run.history)})
    print(f"test accuracy {run.history[-1].validation_accuracy:.2%}")
    print(f"weights: {options.out / 'weights.safetensors'}")


def _grow(arguments: list[str]) -> None:
    from nasbook.experiments import get_scale, growth_config, growth_scale, starting_network
    from nasbook.methods import GROWTH_METHODS
    from nasbook.networks import GROWABLE_NETWORKS

    name, rest = positional(arguments, "grow", "METHOD", f"One of: {', '.join(GROWTH_METHODS)}.", GROWTH_METHODS)
    scale = get_scale(scale_in(rest))
    own = growth_scale(scale)
    defaults: GrowOptions[Any] = GrowOptions(
        out=Path("runs") / name,
        data=scale.data,
        scale=scale.name,
        network=own.vgg,
        widths=(own.vgg_channels,),
        config=growth_config(name, scale),
    )
    title = (GROWTH_METHODS[name].__doc__ or "").splitlines()[0]
    kind: Any = GrowOptions  # subscripted with a class that is known only now
    options = parse(kind[GROWTH_METHODS[name]], defaults, f"nasbook grow {name}", title, rest)
    if options.network not in GROWABLE_NETWORKS:  # before the data, which may have to be downloaded
        raise unknown_name("growable network", options.network, GROWABLE_NETWORKS)
    if not options.widths:
        raise Usage("Give --widths one number, or one for each layer.")
    if _is_folder(options.data) and not options.folder.test_share:
        raise Usage("The network is evaluated on test images: give a --test-share above 0.")

    from safetensors.torch import save as to_safetensors

    from nasbook.files import whole_file
    from nasbook.growth import save_history
    from nasbook.methods import GrowthRun

    data = _load(options)
    widths = options.widths[0] if len(options.widths) == 1 else options.widths
    network = starting_network(scale, data, options.seed, options.network, widths)
    run = GrowthRun(network, data, options.config, seed=options.seed)
    _drive(run, options, f"grow by {name}")
    with whole_file(options.out / "weights.safetensors") as file:
        file.write(to_safetensors({k: v.cpu().contiguous() for k, v in run.network.state_dict().items()}))
    save_history(run.events, options.out / "history.json")
    curves = [
        {**row, **{field: getattr(report, field) for field in ("phase", "growing", "neurons", "parameters")}}
        for row, report in zip(_curves(run.history), run.history, strict=True)
    ]
    start = {"network": options.network, "widths": widths, "classes": data.classes, "in_channels": data.channels,
             "size": data.size}  # fmt: skip
    _write_json(options.out / "result.json", {**run.header(), "start": start, "history": curves})
    for report in run.history:
        if not math.isnan(report.validation_accuracy):  # the last one of a phase
            print(
                f"growths {report.phase}: test accuracy {report.validation_accuracy:.2%}, "
                f"{report.parameters:,} parameters, {sum(report.neurons.values()):,} neurons"
            )
    print(f"weights: {options.out / 'weights.safetensors'}")
    print(f"history: {options.out / 'history.json'}")
    print(f"draw it: {shlex.join(['nasbook', 'draw', str(options.out / 'result.json'), '--out', 'growth.png'])}")


def _segment(arguments: list[str]) -> None:
    from nasbook.experiments import get_scale
    from nasbook.experiments.segmentation import segmentation_settings

    name, rest = positional(arguments, "segment", "GENOTYPE", "A JSON file, or a name from `nasbook list`.")
    given = value_of("--data", rest) or ""
    scale = get_scale(scale_in(rest) or ("paper" if given not in ("", "shapes") else None))
    settings = segmentation_settings(scale)
    defaults = SegmentOptions(
        out=Path("runs") / "segment",
        data=settings.data,
        scale=scale.name,
        train_list=settings.train_list,
        channels=settings.channels,
        cells=settings.cells,
        stem=settings.stem,
        output_stride=settings.output_stride,
        rates=settings.rates,
        head_channels=settings.head_channels,
        config=settings.config,
    )
    title = "Train a segmentation network with a genotype's cells under a DeepLabV3 head."
    options = parse(SegmentOptions, defaults, "nasbook segment GENOTYPE", title, rest)
    genotype = _genotype(name)

    import torch
    from safetensors.torch import save as to_safetensors

    from nasbook.analysis import count_parameters
    from nasbook.environment import resolve_device
    from nasbook.files import whole_file
    from nasbook.networks import Backbone, SegmentationNetwork
    from nasbook.seeding import fold_seed, seed_everything
    from nasbook.training import SegmentationFit

    device = resolve_device(options.device)
    seed_everything(options.seed, threads=None)
    data = _load_segmentation(options, settings)
    torch.manual_seed(fold_seed(options.seed, "segmentation network"))
    backbone = Backbone(
        genotype, options.channels, options.cells, output_stride=options.output_stride, stem=options.stem
    )
    network = SegmentationNetwork(backbone, data.classes, rates=options.rates, head_channels=options.head_channels)
    if options.weights is not None:
        backbone.load_classifier(_read_weights(options.weights))
    run = SegmentationFit(network, data, options.config, seed=options.seed, device=device)
    print(f"{count_parameters(backbone):,} parameters in the backbone, {count_parameters(network.head):,} in the head")
    _drive(run, options, "segment")
    with whole_file(options.out / "weights.safetensors") as file:
        file.write(to_safetensors({k: v.cpu().contiguous() for k, v in network.state_dict().items()}))
    genotype.save(options.out / "genotype.json")
    last = run.history[-1]
    classes = {n: _finite(share) for n, share in zip(data.class_names, last.class_iou, strict=True)}
    curves = [
        {**row, "mean_iou": _finite(report.mean_iou)}
        for row, report in zip(_curves(run.history), run.history, strict=True)
    ]
    _write_json(options.out / "result.json", {**run.header(), "history": curves, "class_iou": classes})
    for label, share in classes.items():
        print(f"  {label}: " + ("in no test image" if share is None else f"{share:.2%}"))
    print(f"mean IoU {last.mean_iou:.2%}, {last.validation_accuracy:.2%} of the pixels right")
    print(f"weights: {options.out / 'weights.safetensors'}")


def _draw(arguments: list[str]) -> None:
    expected = "A JSON file, or a name from `nasbook list`; or the result.json of `nasbook grow`."
    name, rest = positional(arguments, "draw", "GENOTYPE", expected)
    title = "Draw the cells of a genotype, or a network that grew."
    options = parse(DrawOptions, DrawOptions(), "nasbook draw GENOTYPE", title, rest)
    endings = (".png", ".svg", ".pdf")
    if options.out.suffix not in endings:
        raise Usage(f"--out must end in {', '.join(endings)}; got {str(options.out)!r}.")
    reports = _reports_of_growth(name)
    genotype: Any = _genotype(name) if reports is None else None

    from nasbook.files import whole_file
    from nasbook.plots import draw_genotype, draw_growth

    figure = draw_growth(reports) if genotype is None else draw_genotype(genotype)
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
    from nasbook.data import list_images
    from nasbook.experiments import SCALES, list_experiments
    from nasbook.genotypes import PUBLISHED
    from nasbook.methods import GROWTH_METHODS, METHODS
    from nasbook.networks import STANDARD_WIDTHS
    from nasbook.operations import get_operation, list_operations

    _section("methods", {name: (m.__doc__ or "").splitlines()[0] for name, m in METHODS.items()})
    _section("growth methods", {name: (m.__doc__ or "").splitlines()[0] for name, m in GROWTH_METHODS.items()})
    _section("growable networks", {n: f"{len(w)} layers, {_span(w)} wide" for n, w in STANDARD_WIDTHS.items()})
    _section("data sets", {name: "embedded" if name == "digits" else "downloaded" for name in list_images()})
    _section("operations", {name: get_operation(name).summary for name in list_operations()})
    _section("published genotypes", dict.fromkeys(PUBLISHED, ""))
    _section("experiments", {e.name: e.title for e in list_experiments()})
    _section("scales", {name: f"{s.data}, {s.search_epochs} epochs of search" for name, s in SCALES.items()})


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "search": _search,
    "train": _train,
    "grow": _grow,
    "segment": _segment,
    "draw": _draw,
    "reproduce": _reproduce,
    "records": _records,
    "list": _list,
}


# --- what the commands share ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _interrupted_if(saved: Callable[[], bool]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted if saved() else KeyboardInterrupt from None


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


def _load(options: Any) -> Any:
    from nasbook.data import list_images, load_image_folder, load_images
    from nasbook.environment import resolve_device
    from nasbook.experiments import get_scale
    from nasbook.seeding import seed_everything

    device = processes.device_of_run() or resolve_device(options.device)
    seed_everything(options.seed, threads=None)
    scale = get_scale(options.scale)
    if _is_folder(options.data):
        return load_image_folder(
            options.data,
            seed=0,  # a data set, not a part of the run: the same images whatever --seed is
            **asdict(options.folder),
            device=device,
            progress=processes.is_first() and not options.quiet,
        )
    if not options.data.endswith(".npz") and options.data not in list_images():
        raise unknown_name("data set", options.data, [*list_images(), "a path that ends in .npz", "a folder of images"])
    with processes.first_ahead():  # it may have to download
        data = load_images(options.data, device=device)
    return data.take(scale.train_images, scale.test_images) if options.data == scale.data else data


def _load_segmentation(options: SegmentOptions, settings: Any) -> Any:
    from nasbook.data import load_voc

    if options.data == "shapes":
        if settings.data != "shapes":
            raise Usage(f"The scale {options.scale} is for VOC: with shapes, give --scale quick or laptop.")
        return settings.load()
    if options.data != "voc" and not Path(options.data).is_dir():
        raise unknown_name("data set", options.data, ["shapes", "voc", "a folder that holds VOC"])
    folder = None if options.data == "voc" else options.data
    return load_voc(folder, options.train_list, options.test_list, download=folder is None)


def _read_weights(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {path}.") from None
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path} is not a readable .safetensors file ({error}).") from None


def _is_folder(data: str) -> bool:
    """Whether --data is a folder of images and not the name of a set."""
    from nasbook.data import list_images

    return data not in list_images() and Path(data).is_dir()


def _same_data(options: Any) -> list[str]:
    """The arguments with which a training gets a search's images, and a network for their size."""
    given = ["--data", options.data]
    if _is_folder(options.data):
        given += ["--share", str(options.folder.share), "--image-size", str(options.folder.image_size)]
        if options.folder.limit_gib != FolderOptions().limit_gib:
            given += ["--limit-gib", str(options.folder.limit_gib)]
    if options.config.stem != "cifar":
        given += ["--stem", options.config.stem]
    return given


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
    return [{name: _finite(value) for name, value in row.items()} for row in rows]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from nasbook.files import whole_file

    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _section(title: str, entries: dict[str, str]) -> None:
    width = max(map(len, entries))
    print(f"{title}:")
    for name, text in entries.items():
        print(f"  {name:<{width}}  {text}".rstrip())
