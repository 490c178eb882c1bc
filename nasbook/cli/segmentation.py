"""``nasbook segment``: a genotype's cells under a segmentation head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nasbook.cli.genotypes import load_image_genotype
from nasbook.cli.options import SegmentOptions, Usage, parse, positional, scale_in, value_of
from nasbook.cli.runs import curves, drive_run, finite, save_weights, write_json
from nasbook.errors import InvalidInput, unknown_name


def segment(arguments: list[str]) -> None:
    """Trains a segmentation network with a genotype's cells."""
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
    genotype = load_image_genotype(name)

    import torch

    from nasbook.analysis import count_parameters
    from nasbook.environment import resolve_device
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
    drive_run(run, options, "segment")
    save_weights(network, options.out / "weights.safetensors")
    genotype.save(options.out / "genotype.json")
    last = run.history[-1]
    classes = {n: finite(share) for n, share in zip(data.class_names, last.class_iou, strict=True)}
    write_json(options.out / "result.json", {**run.header(), "history": curves(run.history), "class_iou": classes})
    for label, share in classes.items():
        print(f"  {label}: " + ("in no test image" if share is None else f"{share:.2%}"))
    print(f"mean IoU {last.mean_iou:.2%}, {last.validation_accuracy:.2%} of the pixels right")
    print(f"weights: {options.out / 'weights.safetensors'}")


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
