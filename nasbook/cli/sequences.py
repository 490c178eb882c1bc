"""``nasbook search`` and ``nasbook train`` on series and text."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nasbook import processes
from nasbook.cli.genotypes import load_genotype
from nasbook.cli.options import (
    SequenceRunOptions,
    SequenceSearchOptions,
    SequenceTrainOptions,
    SeriesOptions,
    TextOptions,
    Usage,
    parse,
    scale_in,
    value_of,
)
from nasbook.cli.runs import curves, drive_run, save_weights, write_found_cells, write_json
from nasbook.errors import DataError, unknown_name

Kind = Literal["series", "text"]


class NumberOfSeries(int):
    """The width of a state that is as wide as there are series, until they are loaded."""

    def __str__(self) -> str:
        return "number of series"


def sequence_kind(name: str) -> Kind | None:
    """What a name or the path of a file stands for; None for what is neither series nor text."""
    from nasbook.data import SERIES, TEXTS

    ending = Path(name).suffix.lower()
    if name in SERIES or ending == ".csv":
        return "series"
    return "text" if name in TEXTS or ending == ".txt" else None


def search_sequences(name: str, rest: list[str]) -> None:
    """Searches for recurrent cells by a method; ``rest`` are the options."""
    from nasbook.experiments import get_scale, growing_scale
    from nasbook.experiments.growing_cells import series_config, text_config
    from nasbook.methods import SEQUENCE_METHODS

    method = SEQUENCE_METHODS[name]
    scale = growing_scale(get_scale(scale_in(rest)))
    data_name, source = _source(rest, scale)
    own = method.Config()
    if isinstance(source, SeriesOptions):
        config = series_config(scale, own.backbone, own.mode, NumberOfSeries(1))
    else:
        config = text_config(scale, own.backbone, own.mode, next(iter(scale.starts)))
    defaults: SequenceSearchOptions[Any, Any] = SequenceSearchOptions(
        out=Path("runs") / name, data=data_name, scale=scale.name, source=source, config=config
    )
    kind: Any = SequenceSearchOptions  # subscripted with classes that are known only now
    title = f"{(method.__doc__ or '').splitlines()[0]} {_ABOUT_DATA}"
    options = parse(kind[type(source), method.Config], defaults, _program(f"search {name}", rest), title, rest)

    data = _load(options)
    if isinstance(options.config.hidden, NumberOfSeries):
        options = replace(options, config=replace(options.config, hidden=data.features))
    search = method.Search(options.config, data, seed=options.seed)
    print(data)
    drive_run(search, options, f"search {name}")
    result = search.result()
    loss = search.evaluate(search.final_network())[0]
    if not processes.is_first():
        return
    write_found_cells(search, result, options.out)
    last = search.history[-1]
    seconds = sum(report.seconds for report in search.history)
    print(
        f"validation loss {loss:.4f}{_perplexity(data, loss)} of the pruned supernet after {last.epoch} epochs in "
        f"{last.stage} stages, {seconds:.0f} s"
    )
    print(f"genotype: {options.out / 'genotype.json'}")
    again = ["nasbook", "train", str(options.out / "genotype.json"), "--scale", options.scale]
    again += _same_data(options, source)
    if options.config.hidden != (data.features if isinstance(source, SeriesOptions) else scale.text_hidden):
        again += ["--hidden", str(options.config.hidden)]
    print(f"train it: {shlex.join(again)}")
    print(f"draw it: {shlex.join(['nasbook', 'draw', str(options.out / 'result.json'), '--out', 'cells.png'])}")


def train_recurrent_network(name: str, rest: list[str]) -> None:
    """Trains a genotype's network, or torch's LSTM or GRU, on series or text; ``rest`` are the options."""
    from nasbook.experiments import get_scale, growing_scale
    from nasbook.networks import TORCH_CELLS
    from nasbook.training import SequenceFitConfig

    scale = growing_scale(get_scale(scale_in(rest)))
    data_name, source = _source(rest, scale)
    if isinstance(source, SeriesOptions):
        hidden: int = NumberOfSeries(1)
        config = SequenceFitConfig(epochs=scale.series_retrain, learning_rate=scale.series_rates[0])
    else:
        hidden = scale.text_hidden
        config = SequenceFitConfig(scale.text_epochs, scale.text_batch, scale.text_rates[0])
    defaults: SequenceTrainOptions[Any] = SequenceTrainOptions(
        out=Path("runs") / "train", data=data_name, scale=scale.name, source=source, hidden=hidden, config=config
    )
    kind: Any = SequenceTrainOptions
    title = f"Train a recurrent network and evaluate it on the test part. {_ABOUT_DATA}"
    options = parse(kind[type(source)], defaults, _program(f"train {name}", rest), title, rest)
    if name not in TORCH_CELLS and value_of("--layers", rest) is not None:
        raise Usage("--layers is for lstm and gru; a genotype has a cell for each layer.")
    genotype = None if name in TORCH_CELLS else load_genotype(name)

    import torch

    from nasbook.analysis import count_parameters
    from nasbook.networks import DerivedRecurrentNetwork, TorchRecurrentNetwork
    from nasbook.seeding import fold_seed
    from nasbook.training import SequenceFit

    data = _load(options)
    width = data.features if isinstance(options.hidden, NumberOfSeries) else options.hidden
    torch.manual_seed(fold_seed(options.seed, "derived network"))
    network: Any = (
        TorchRecurrentNetwork(name, data, width, options.layers)
        if genotype is None
        else DerivedRecurrentNetwork(genotype, data, width)
    )
    run = SequenceFit(network, data, options.config, seed=options.seed)
    print(data)
    print(f"{count_parameters(network):,} parameters, {width} hidden units")
    drive_run(run, options, "train")
    save_weights(network, options.out / "weights.safetensors")
    if genotype is not None:
        genotype.save(options.out / "genotype.json")
    write_json(options.out / "result.json", {**run.header(), "hidden": width, "history": curves(run.history)})
    last = run.history[-1]
    best = min(run.history, key=lambda report: report.validation_loss)
    print(f"test loss {last.test_loss:.4f}{_perplexity(data, last.test_loss)} after {last.epoch} epochs")
    print(_bounds(data))
    if best.epoch != last.epoch:
        print(f"the validation loss was least after epoch {best.epoch}: --epochs {best.epoch} ends there")
    print(f"weights: {options.out / 'weights.safetensors'}")


_ABOUT_DATA = "Options depend on --data: give it before --help to see those of series, or of a text."


def _program(command: str, rest: list[str]) -> str:
    """The command as its help and its errors show it: with the data that its options depend on."""
    given = value_of("--data", rest)
    return shlex.join(["nasbook", *command.split(" ", 1), *([] if given is None else ["--data", given])])


def _source(rest: list[str], scale: Any) -> tuple[str, SeriesOptions | TextOptions]:
    """The data that are asked for, or else the scale's, and the default options of their kind.

    Raises:
        InvalidInput: the name stands for no series and no text.
        Usage: nothing is asked for, and the scale's series are in a file that is not here.
    """
    from nasbook.data import SERIES, TEXTS, list_images

    name = value_of("--data", rest)
    if name is None:
        name = next(iter(scale.series.values()))
        if name not in SERIES:
            if not {"-h", "--help"} & set(rest):
                known = ", ".join([*SERIES, *TEXTS])
                raise Usage(
                    f"The scale {scale.name!r} has no series of its own: give --data a .csv file of daily closes, a "
                    f".txt file, or one of {known}."
                )
            name = "FILE.csv"
    kind = sequence_kind(name) or ("text" if Path(name).is_dir() else None)
    if kind is None:
        if name in list_images() or name.endswith(".npz"):
            raise Usage(
                f"{name!r} is of images, and recurrent cells run on series and text. To grow cells for it: "
                f"{shlex.join(['nasbook', 'search', 'growing', '--data', name])}"
            )
        paths = ["a path that ends in .csv or .txt", "a folder of texts"]
        raise unknown_name("series or text", name, [*SERIES, *TEXTS, *paths])
    if kind == "series":
        return name, SeriesOptions()
    return name, TextOptions(lines=scale.text_lines if name in TEXTS else None, window=scale.text_window)


def _load(options: SequenceRunOptions[Any]) -> Any:
    """The sequences of ``--data`` on the device."""
    from nasbook.data import SERIES, load_series, load_text
    from nasbook.environment import resolve_device
    from nasbook.seeding import seed_everything

    device = processes.device_of_run() or resolve_device(options.device)
    seed_everything(options.seed, threads=None)
    source = options.source
    if isinstance(source, TextOptions):
        with processes.first_ahead():  # it may have to download
            return load_text(
                options.data, window=source.window, lines=source.lines, most_words=source.most_words, device=device
            )
    if source.returns and options.data in SERIES:
        raise Usage(f"--returns is for a .csv file; what {options.data} has is known.")
    try:
        data = load_series(
            options.data,
            window=source.window,
            shares=source.shares,
            columns=source.columns or None,
            prices=not source.returns,
            drop_interpolated=source.drop_interpolated,
            device=device,
        )
    except DataError as error:
        raise DataError(str(error).replace("say prices=False", "give --returns")) from None
    if source.drop_interpolated:
        print(f"{len(data.dropped)} days left out whose price was filled in")
    return data


def _same_data(options: SequenceRunOptions[Any], defaults: SeriesOptions | TextOptions) -> list[str]:
    """The arguments with which a training gets a search's data."""
    given = ["--data", options.data]
    for name, value in vars(options.source).items():
        if value != getattr(defaults, name):
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            given += [f"--{name.replace('_', '-')}", *map(str, values)]
    return given


def _perplexity(data: Any, loss: float) -> str:
    """Of a language model, what e to the power of the loss is, in brackets."""
    return f" (perplexity {math.exp(loss):.1f})" if data.task == "language" else ""


def _bounds(data: Any) -> str:
    """Between which losses a model of these data can be on the test part."""
    best = data.irreducible_loss("test")
    said = f"the best forecast without looking has {data.constant_loss('test'):.4f}"
    return said if best is None else f"{said}, the best of all {best:.4f}"
