"""``nasbook grow``: a small network that grows while it is trained."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from nasbook.cli.images import is_folder, load_images_of
from nasbook.cli.options import GrowOptions, Usage, parse, positional, scale_in
from nasbook.cli.runs import curves, drive_run, save_weights, write_json
from nasbook.errors import unknown_name


def grow(arguments: list[str]) -> None:
    """Trains a network and grows it by a method."""
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
    if is_folder(options.data) and not options.folder.test_share:
        raise Usage("The network is evaluated on test images: give a --test-share above 0.")

    from nasbook.growth import save_history
    from nasbook.methods import GrowthRun

    data = load_images_of(options)
    widths = options.widths[0] if len(options.widths) == 1 else options.widths
    network = starting_network(scale, data, options.seed, options.network, widths)
    run = GrowthRun(network, data, options.config, seed=options.seed)
    drive_run(run, options, f"grow by {name}")
    save_weights(run.network, options.out / "weights.safetensors")
    save_history(run.events, options.out / "history.json")
    history = [
        {**row, "neurons": report.neurons} for row, report in zip(curves(run.history), run.history, strict=True)
    ]
    start = {"network": options.network, "widths": widths, "classes": data.classes, "in_channels": data.channels,
             "size": data.size}  # fmt: skip
    write_json(options.out / "result.json", {**run.header(), "start": start, "history": history})
    for report in run.history:
        if not math.isnan(report.validation_accuracy):  # the last one of a phase
            print(
                f"growths {report.phase}: test accuracy {report.validation_accuracy:.2%}, "
                f"{report.parameters:,} parameters, {sum(report.neurons.values()):,} neurons"
            )
    print(f"weights: {options.out / 'weights.safetensors'}")
    print(f"history: {options.out / 'history.json'}")
    print(f"draw it: {shlex.join(['nasbook', 'draw', str(options.out / 'result.json'), '--out', 'growth.png'])}")
