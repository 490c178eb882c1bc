"""``nasbook search`` and ``nasbook train`` on images."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nasbook import processes
from nasbook.cli.genotypes import load_image_genotype
from nasbook.cli.options import (
    FolderOptions,
    ImageRunOptions,
    SearchOptions,
    TrainOptions,
    Usage,
    parse,
    scale_in,
    value_of,
)
from nasbook.cli.runs import curves, drive_run, save_weights, write_found_cells, write_json
from nasbook.cli.sequences import sequence_kind
from nasbook.errors import InvalidInput, unknown_name


def search_images(name: str, rest: list[str]) -> None:
    """Searches for cells by a method on images; ``rest`` are the options."""
    from nasbook.experiments import SEARCH_CONFIGS, get_scale, search_space
    from nasbook.methods import get_method

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
    data = load_images_of(options)
    search = method.Search(options.config, data, Space(options.operations, options.nodes), options.seed)
    drive_run(search, options, f"search {name}")
    result = search.result()  # of some methods evaluated by all processes together
    if not processes.is_first():
        return
    write_found_cells(search, result, options.out)
    epochs = len(result.history)
    print(f"validation accuracy {result.validation_accuracy:.2%} after {epochs} epochs, {result.seconds:.0f} s")
    print(f"genotype: {options.out / 'genotype.json'}")
    again = ["nasbook", "train", str(options.out / "genotype.json"), "--scale", options.scale, *same_images(options)]
    if getattr(method.Search, "evaluates_as_deep", False):
        again += ["--cells", str(options.config.cells)]
    elif scale.cells < len(result.genotype.kinds):  # a cell for each section of the stack needs so many
        again += ["--cells", str(len(result.genotype.kinds))]
    if getattr(options.config, "cell_output", "concatenation") != "concatenation":
        again += ["--cell-output", options.config.cell_output]
    print(f"train it: {shlex.join(again)}")


def train_image_network(name: str, rest: list[str]) -> None:
    """Trains the network of a genotype on images; ``rest`` are the options."""
    from nasbook.experiments import fit_config, get_scale
    from nasbook.networks import TORCH_CELLS

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
    if is_folder(options.data) and not options.folder.test_share:
        raise Usage("The network is evaluated on test images: give a --test-share above 0.")
    genotype = load_image_genotype(name, also=TORCH_CELLS)

    import torch

    from nasbook.analysis import count_macs, count_parameters
    from nasbook.networks import DerivedNetwork, channels_for, parameters_of
    from nasbook.seeding import fold_seed
    from nasbook.training import Fit

    data = load_images_of(options)
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
    drive_run(run, options, "train")
    if not processes.is_first():
        return
    save_weights(network, options.out / "weights.safetensors")
    genotype.save(options.out / "genotype.json")
    write_json(options.out / "result.json", {**run.header(), "history": curves(run.history)})
    print(f"test accuracy {run.history[-1].validation_accuracy:.2%}")
    print(f"weights: {options.out / 'weights.safetensors'}")


def load_images_of(options: ImageRunOptions, scale: Any = None) -> Any:
    """The images of ``--data`` on the device, cut to the scale where they are the scale's own.

    Args:
        options: of the command.
        scale: with a chapter's own data set; None for the scale of ``--scale``.

    Raises:
        InvalidInput: there is no such data set, or it is one of series or text.
    """
    from nasbook.data import list_images, load_image_folder, load_images
    from nasbook.environment import resolve_device
    from nasbook.experiments import get_scale
    from nasbook.methods import SEQUENCE_METHODS
    from nasbook.seeding import seed_everything

    device = processes.device_of_run() or resolve_device(options.device)
    seed_everything(options.seed, threads=None)
    scale = scale or get_scale(options.scale)
    if (kind := sequence_kind(options.data)) is not None:
        raise InvalidInput(
            f"{options.data!r} is of {kind}, and this runs on images. To search for a recurrent cell on it: "
            f"{shlex.join(['nasbook', 'search', next(iter(SEQUENCE_METHODS)), '--data', options.data])}"
        )
    if is_folder(options.data):
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


def is_folder(data: str) -> bool:
    """Whether --data is a folder of images and not the name of a set."""
    from nasbook.data import list_images

    return data not in list_images() and Path(data).is_dir()


def same_images(options: SearchOptions[Any]) -> list[str]:
    """The arguments with which a training gets a search's images, and a network for their size."""
    given = ["--data", options.data]
    if is_folder(options.data):
        given += ["--share", str(options.folder.share), "--image-size", str(options.folder.image_size)]
        if options.folder.limit_gib != FolderOptions().limit_gib:
            given += ["--limit-gib", str(options.folder.limit_gib)]
    if options.config.stem != "cifar":
        given += ["--stem", options.config.stem]
    return given
