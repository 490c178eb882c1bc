"""What the full tables of the five papers cost, on paper: multiply-adds, and the hours that they take at a rate.

Nothing is trained here. The networks of the papers are built by this package, one pass through each is counted, and the
count is multiplied by the images, epochs and runs that the paper states. A row that the paper took from elsewhere
is not in the tables. Where a paper does not give a number, or where the cost depends on what a search does on its way,
the row's ``note`` says what was taken instead, or that the count is a bound.

Convention: :func:`nasbook.analysis.count_macs`, and a backward pass costs once more for the gradient of each layer's
input, where it is needed, and once more for that of its weights. What is counted is the readable algorithm. An
implementation may do with fewer or need more; so a rate is always the counted multiply-adds over the seconds.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasbook.analysis.recurrent import darts_parameters, two_to_one_parameters
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.experiments.continual_scale import CONTINUAL_SCALES
from nasbook.experiments.scale import GROWING_SCALES, GROWTH_SCALES
from nasbook.experiments.segmentation import SEGMENTATION_SETTINGS
from nasbook.genotypes import (
    DARTS_SPACE,
    DARTS_V2,
    PR_DARTS_DL1,
    PR_DARTS_DL2,
    PR_DARTS_DR,
    PR_DARTS_UR,
    Genotype,
    Space,
)
from nasbook.methods import pr_darts
from nasbook.methods.entrannas import EXTENDED_SPACE, STANDARD_SPACE
from nasbook.methods.stretchable import STRETCHABLE_SPACE
from nasbook.networks import VGG, DerivedNetwork, GrowableCellNetwork, channels_for
from nasbook.networks.vgg import vgg_widths
from nasbook.operations import CONSTRAINTS
from nasbook.operations.morphable import Configuration, Constraints
from nasbook.supernets import SearchNetwork

__all__ = [
    "ASSUMED_GPU_RATES",
    "CIFAR_HALF",
    "CIFAR_IMAGES",
    "IMAGENET_IMAGES",
    "KINDS",
    "STEPS",
    "Cost",
    "Passes",
    "count_passes",
    "find_cost",
    "gpu_rates",
    "hours",
    "paper_costs",
    "paper_rate",
    "seeds_for",
]

CIFAR_IMAGES = 50_000
"""Training images of CIFAR-10, and of CIFAR-100."""

CIFAR_HALF = CIFAR_IMAGES // 2
"""Those for the weights in a search; the other half is for the architecture."""

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet's 1,000 classes."""

KINDS = ("supernet", "cells", "plain", "recurrent")
"""Kinds of network whose rates differ: of mixed edges, of chosen cells, of plain convolutions, recurrent."""


# --- passes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """Multiply-adds of one image in the passes that searches and trainings are made of."""

    forward: int
    """A forward pass in training mode."""
    weights: int
    """A forward and a backward pass for the weights' gradient: three forward passes, less the gradient of the images,
    which nobody needs."""
    architecture: int = 0
    """A forward and a backward pass for the architecture's gradient alone: twice those layers whose input depends on
    the architecture, once the others. 0 where there is none."""

    def step(self, name: str) -> int:
        """A step on both, for each image of the weights' batch; ``name`` is one of :data:`STEPS`.

        Raises:
            InvalidInput: there is no such step.
        """
        if name not in STEPS:
            raise unknown_name("step", name, STEPS)
        weights, architecture = STEPS[name]
        return weights * self.weights + architecture * self.architecture


STEPS: dict[str, tuple[int, int]] = {
    "weights": (1, 0),
    "first-order": (1, 1),
    "mixed-level": (1, 2),
    "mixed-level, three shares": (1, 4),
    "finite-difference": (3, 2),
}
"""Passes of a step, for the weights and for the architecture.

First order has one of each. Mixed level (MiLeNAS) takes the architecture's gradient on training images too; where α and
β learn from shares of their own (Stretchable Cells on ImageNet), twice. DARTS' second order is the finite difference of
its authors: the unrolled step and the gradient there pass over the weights, the two sides of the difference over the
architecture alone (Eq. 7, 8); the weights' own step comes on top. The exact product costs more (Chapter 1).
"""


class _Counter(TorchFunctionMode):
    """Notes each convolution and linear layer: its multiply-adds, and whether its input needs a gradient."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.forward = self.onward = self.entering = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.conv2d:
            self._note(args[0], args[1].numel() * len(output) * math.prod(output.shape[2:]))
        elif func is torch.nn.functional.linear:
            self._note(args[0], output.numel() * args[1].shape[1])
        return output

    def _note(self, entering: Tensor, macs: int) -> None:
        self.forward += macs
        if entering.requires_grad:
            self.onward += macs
        if entering is self.images:
            self.entering += macs


def count_passes(network: nn.Module, image_shape: Sequence[int]) -> Passes:
    """Counts the passes of one image through a network, in training mode, by one forward pass of two images.

    Convolutions in two dimensions and linear layers count. A supernet must have the readable engine: the fused one does
    the same with other multiplications. Which operations a Transit-cell runs depends on α, as it is. The network's
    running statistics move, its parameters don't.

    Args:
        network: with ``weights()`` and ``architecture()`` if it is a supernet.
        image_shape: of one image, (channels, height, width).

    Raises:
        InvalidInput: a supernet with another engine.
    """
    if getattr(network, "engine", "readable") != "readable":
        raise InvalidInput("Count a supernet with engine='readable'; the fused engine multiplies in another way.")
    images = torch.zeros(2, *image_shape)
    architecture = list(network.architecture()) if isinstance(network, SearchNetwork) else []
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in architecture:
        parameter.requires_grad_(True)  # so that a layer's input needs a gradient where it depends on them
    network.train()
    with torch.set_grad_enabled(bool(architecture)), _Counter(images) as counter:
        network(images)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    forward, weights = counter.forward // 2, (3 * counter.forward - counter.entering) // 2
    return Passes(forward, weights, (counter.forward + counter.onward) // 2 if architecture else 0)


CIFAR_SHAPE, IMAGENET_SHAPE, DIGITS_SHAPE = (3, 32, 32), (3, 224, 224), (1, 28, 28)


@functools.cache
def _supernet(
    space: Space = DARTS_SPACE, cells: int = 8, stem: str = "cifar", dearest: str = "", **options: Any
) -> Passes:
    """A supernet of 16 channels, as in all papers. With ``dearest``, the operation that all Transit-cells run."""
    classes, shape = (1000, IMAGENET_SHAPE) if stem == "imagenet" else (10, CIFAR_SHAPE)
    with torch.random.fork_rng(devices=[]):
        network = SearchNetwork(space, 16, cells, classes, stem=stem, engine="readable", **options)
    if dearest:
        with torch.no_grad():
            for parameter in network.architecture():
                parameter[:, space.operations.index(dearest)] = 1.0
    return count_passes(network, shape)


@functools.cache
def _derived(genotype: Genotype, channels: int, cells: int, classes: int = 10, stem: str = "cifar") -> Passes:
    """A derived network with its auxiliary head."""
    with torch.random.fork_rng(devices=[]):
        network = DerivedNetwork(genotype, channels, cells, classes, auxiliary=True, stem=stem)
    return count_passes(network, IMAGENET_SHAPE if stem == "imagenet" else CIFAR_SHAPE)


@functools.cache
def _sized(parameters: float, cells: int, stem: str = "cifar") -> Passes:
    """A network of DARTS_V2's cells of about so many parameters, in place of cells that a paper does not print."""
    classes = 1000 if stem == "imagenet" else 10
    channels = channels_for(round(parameters), DARTS_V2, cells, classes, stem=stem)
    return _derived(DARTS_V2, channels, cells, classes, stem)


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """One kind of work behind one row, or a group of rows, of a paper's table."""

    paper: str
    """Short name of the paper, as in the ids of claims."""
    table: str
    """Table or figure."""
    row: str
    """What the paper calls it."""
    work: Literal["search", "training"]
    """Whether a supernet or a growing network is searched, or what was found is trained."""
    kind: str
    """Kind of network, one of :data:`KINDS`."""
    multiply_adds: int
    """Of one run."""
    runs: int | None
    """How many runs the paper says it made; None where it does not say."""
    days: float | None = None
    """GPU-days of one run, as the paper gives them."""
    note: str = ""
    """What was assumed; a bound is named as one."""

    @property
    def is_bound(self) -> bool:
        """Whether the true number may be smaller."""
        return "at most" in self.note

    def total(self, runs: int | None = None) -> int:
        """Multiply-adds of so many runs; None for the paper's own number, or one where it gives none.

        Raises:
            InvalidInput: less than one run.
        """
        runs = (self.runs or 1) if runs is None else runs
        require_positive(runs=runs)
        return runs * self.multiply_adds


STAND_IN = "cells stand in: DARTS_V2 at the row's parameters"
EPOCHS = 600
"""Of the last training on CIFAR, in every paper here that has one."""


def _trained(passes: Passes, epochs: int = EPOCHS, images: int = CIFAR_IMAGES) -> int:
    return epochs * images * passes.weights


def _searched(passes: Passes, step: str = "first-order", epochs: int = 50, images: int = CIFAR_HALF) -> int:
    return epochs * images * passes.step(step)


def _stretchable() -> Iterable[Cost]:
    row = functools.partial(Cost, "stretchable")
    pairs = _searched(_supernet())
    yield row("Table 1", "DARTS w/o SC", "search", "supernet", pairs, None, 0.6)
    small = STAND_IN + ", 8 cells"
    yield row("Table 1", "DARTS w/o SC", "training", "cells", _trained(_sized(1.8e6, 8)), None, None, small)
    yield row("Table 1", "DARTS w/o SC (C=48)", "training", "cells", _trained(_sized(3.2e6, 8)), None, None, small)
    for cells, days in ((8, 1.1), (12, 1.5), (16, 2.2)):
        name, found = f"MiLeNAS-SC-L{cells}", _supernet(STRETCHABLE_SPACE, cells)
        yield row("Table 1", name, "search", "supernet", _searched(found, "mixed-level"), None, days)
        yield row("Table 1", name, "training", "cells", _trained(_sized(3.5e6, cells)), None, None, STAND_IN)
    samples = 24 * _trained(_sized(3.3e6, 8), epochs=100)
    note = "24 networks for 100 epochs, as DARTS did; " + STAND_IN
    yield row("Table 1", "random operations", "search", "cells", samples, None, 4.0, note)
    yield row("Table 1", "random operations", "training", "cells", _trained(_sized(3.3e6, 8)), None, None, STAND_IN)

    imagenet = _searched(_supernet(stem="imagenet"), "mixed-level, three shares", images=IMAGENET_IMAGES // 100)
    yield row("Table 2", "MiLeNAS-SC-L8 (ImageNet)", "search", "supernet", imagenet, None, 6.2)
    for name, parameters, cells in (("MiLeNAS-SC-L12 (CIFAR-10)", 5.3e6, 14), ("MiLeNAS-SC-L8 (ImageNet)", 5.6e6, 14)):
        training = _trained(_sized(parameters, cells, "imagenet"), 250, IMAGENET_IMAGES)
        yield row("Table 2", name, "training", "cells", training, None, None, STAND_IN + "; DARTS' 250 epochs")

    layers = (8, 12, 16, 20)
    nine = Space(DARTS_SPACE.operations, nodes=6)
    for name, space in (("DARTS, 7 nodes", DARTS_SPACE), ("DARTS, 9 nodes", nine)):
        searches = sum(_searched(_supernet(space, cells), "finite-difference") for cells in layers)
        trainings = sum(_trained(_sized(3.4e6, cells)) for cells in layers)
        yield row("Table 3", f"{name}, L=8 to 20", "search", "supernet", searches, None)
        yield row("Table 3", f"{name}, L=8 to 20", "training", "cells", trainings, None, None, STAND_IN)
    deepest = _searched(_supernet(STRETCHABLE_SPACE, 20), "mixed-level")
    yield row("Table 3", "MiLeNAS-SC, L=20", "search", "supernet", deepest, None)
    yield row("Table 3", "MiLeNAS-SC, L=20", "training", "cells", _trained(_sized(3.5e6, 20)), None, None, STAND_IN)

    second = _searched(_supernet(), "finite-difference")
    four = "the cells of four epochs; " + STAND_IN
    yield row("Table 4", "DARTS (2nd order)", "search", "supernet", second, 3)
    yield row("Table 4", "DARTS (2nd order)", "training", "cells", 4 * _trained(_sized(2.8e6, 20)), 3, None, four)
    yield row("Table 4", "DARTS w/o SC", "search", "supernet", pairs, 3)
    yield row("Table 4", "DARTS w/o SC", "training", "cells", 4 * _trained(_sized(1.9e6, 8)), 3, None, four)
    yield row("Table 5", "DARTS, output edges", "search", "supernet", second, None)
    deep, shallow = _trained(_sized(3.3e6, 20)), _trained(_sized(1.8e6, 8))
    yield row("Table 5", "DARTS, output edges", "training", "cells", deep, None, None, STAND_IN)
    yield row("Table 5", "DARTS w/o SC, input edges", "search", "supernet", pairs, None)
    yield row("Table 5", "DARTS w/o SC, input edges", "training", "cells", shallow, None, None, small)


def _entrannas() -> Iterable[Cost]:
    row = functools.partial(Cost, "entrannas")
    dearest = "sep_conv_5x5"
    bound = f"at most: Transit-cells all of {dearest}"
    everywhere = "at most: no connection is dropped"

    def supernet(space: Space = STANDARD_SPACE, **options: Any) -> Passes:
        options = {"engine_cells": "first", "feature_sharing": True, "bottleneck": 4, **options}
        return _supernet(space, dearest="" if options["engine_cells"] == "all" else dearest, **options)

    plain: dict[str, Any] = {"feature_sharing": False, "bottleneck": 1}
    for name, where in (("all (DARTS)", "all"), ("one half", "half"), ("last", "last"), ("first", "first")):
        passes = supernet(engine_cells=where, **plain)
        yield row("Table 1", name, "search", "supernet", _searched(passes), None, None, "" if where == "all" else bound)
    dst = supernet(engine_cells="all")
    kendall = (
        ("DARTS", supernet(engine_cells="all", **plain), ""),
        ("EnTranNAS", supernet(), bound),
        ("EnTranNAS-DST", dst, everywhere),
    )
    for name, passes, note in kendall:
        yield row("Table 2", name, "search", "supernet", _searched(passes), 6, None, note)
        yield row("Table 2", name, "training", "cells", _trained(_sized(3.4e6, 20)), 6, None, STAND_IN)
    components: tuple[tuple[str, dict[str, Any], float], ...] = (
        ("DARTS (1st order)", {**plain, "engine_cells": "all"}, 0.73),
        ("+ Engine- and Transit-cell", plain, 0.22),
        ("+ feature sharing", {"bottleneck": 1}, 0.09),
        ("+ bottleneck", {}, 0.06),
    )
    for name, options, days in components:
        note = bound if days < 0.73 else ""
        yield row("Table 3", name, "search", "supernet", _searched(supernet(**options)), None, days, note)
    for name, passes, parameters, days, note in (
        ("EnTranNAS", supernet(), 3.45e6, 0.06, bound),
        ("EnTranNAS-DST", dst, 3.2e6, 0.1, everywhere),
        ("EnTranNAS (12 operations)", supernet(EXTENDED_SPACE), 7.68e6, 0.07, bound),
    ):
        yield row("Table 6", name, "search", "supernet", _searched(passes), 5, days, note)
        yield row("Table 6", name, "training", "cells", _trained(_sized(parameters, 20)), 5, None, STAND_IN)

    tenth = "PC-DARTS' 10 % of the images, the paper does not say; "
    transit = _searched(supernet(stem="imagenet"), images=IMAGENET_IMAGES // 10)
    sparse = _searched(supernet(stem="imagenet", engine_cells="all"), images=IMAGENET_IMAGES // 10)

    def training(parameters: float) -> int:
        return _trained(_sized(parameters, 14, "imagenet"), 250, IMAGENET_IMAGES)

    yield row("Table 7", "EnTranNAS (CIFAR-10)", "training", "cells", training(4.9e6), None, None, STAND_IN)
    yield row("Table 7", "EnTranNAS (ImageNet)", "search", "supernet", transit, None, 1.9, tenth + bound)
    yield row("Table 7", "EnTranNAS (ImageNet)", "training", "cells", training(5.5e6), None, None, STAND_IN)
    yield row("Table 7", "EnTranNAS-DST (ImageNet)", "search", "supernet", sparse, 5, 2.1, tenth + everywhere)
    yield row("Table 7", "EnTranNAS-DST (ImageNet)", "training", "cells", training(5.2e6), 5, None, STAND_IN)
    for weight, parameters in ((0.2, 5.07e6), (0.1, 5.88e6), (0.05, 6.99e6)):
        name = f"λ = {weight}"
        yield row("Table 4", name, "search", "supernet", sparse, None, None, tenth + everywhere)
        yield row("Table 4", name, "training", "cells", training(parameters), None, None, STAND_IN)
    settings = SEGMENTATION_SETTINGS["paper"]
    with torch.random.fork_rng(devices=[]):
        network = settings.build(DARTS_V2, 21, 0)
    crop = settings.config.crop
    epochs = settings.config.epochs
    passes = count_passes(network, (3, crop, crop))
    note = f"{epochs} epochs on 10,582 images, the paper does not say; stand-in DARTS_V2 at C = 48"
    segmenting = _trained(passes, epochs, 10_582)
    yield row("Table 5", "EnTranNAS-DST, three λ", "training", "cells", 3 * segmenting, None, None, note)


def _dearest_pools(constraints: Constraints, most: int) -> tuple[str, ...]:
    """The so many different convolutions of a space of Table 2 that cost most."""
    widths = [()] + [(width,) for width in range(1, (constraints.max_width or 1) + 1)]
    found = [
        Configuration(kernel, dilation, expansions)
        for kernel in range(constraints.min_kernel, constraints.max_kernel + 1, 2)
        for dilation in range(constraints.min_dilation, constraints.max_dilation + 1)
        for expansions in widths
    ]
    found.sort(key=lambda each: (sum(each.expansions, 1), each.kernel, -each.dilation), reverse=True)
    return tuple(each.name for each in found[:most])


def _pr_darts() -> Iterable[Cost]:
    row = functools.partial(Cost, "prdarts")
    config = pr_darts.Config()
    first = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", Configuration(3).name)
    before = (len(first), *config.candidates[:-1])
    for name, space, days in (("DL", "DL", 0.82), ("DR", "DR", 0.88)):
        total = 0
        for cycle, count in enumerate(before):
            pool = first if cycle == 0 else _dearest_pools(CONSTRAINTS[space], count)
            passes = _supernet(Space(pool))
            grace = config.grace_epochs[cycle]
            total += _searched(passes, "weights", grace) + _searched(passes, epochs=config.cycle_epochs[cycle] - grace)
        note = "at most: from the second cycle on, all pools of the dearest convolutions"
        yield row("Table 3", f"PR-DARTS {name}", "search", "supernet", total, 3, days, note)
    published = {"DL1": PR_DARTS_DL1, "DL2": PR_DARTS_DL2, "DR": PR_DARTS_DR, "UR": PR_DARTS_UR}
    for name, genotype in published.items():
        for classes in (10, 100)[: 1 if name == "UR" else 2]:
            training = _trained(_derived(genotype, 36, 20, classes))
            yield row("Table 3", f"PR-DARTS {name}, CIFAR-{classes}", "training", "cells", training, 3)


WORDS = {"WikiText-2": 227_000, "PTB": 88_000}
"""Words in 4,000 lines, about: WikiText-2 has 56.9 a line and Penn Treebank 22.1, each line's end counted."""


def _growing() -> Iterable[Cost]:
    row = functools.partial(Cost, "growing")
    scale = GROWING_SCALES["paper"]
    hidden, vocabulary = scale.text_hidden, 10_000
    parameters: dict[str, Callable[[int], int]] = {
        "DARTS": lambda nodes: darts_parameters([hidden, hidden], nodes) - 5 * nodes,
        "Two-to-One": lambda nodes: two_to_one_parameters([hidden, hidden], nodes, biases=0) - 5 * nodes,
    }
    for text, words in WORDS.items():
        for start in scale.starts:
            for name, matrices in parameters.items():
                stages = range(start, start + scale.text_stages)
                # A matrix is used once a word; five forward passes: three for the weights, two for the architecture.
                macs = 5 * words * scale.text_epochs * sum(matrices(nodes) + hidden * vocabulary for nodes in stages)
                note = f"at most: {scale.text_stages} stages of {scale.text_epochs} epochs; both ways to prune"
                where = f"{text}, {name} from {start} nodes"
                yield row("Figures 4 to 6", where, "search", "recurrent", 2 * macs, 5, None, note)


def _firefly() -> Iterable[Cost]:
    row = functools.partial(Cost, "firefly")
    scale, tasks = GROWTH_SCALES["paper"], CONTINUAL_SCALES["paper"]
    widths = [round(scale.vgg_channels * 1.3**growth) for growth in range(scale.growths + 1)]
    note = f"all layers alike, {widths[0]} to {widths[-1]} channels; the growths themselves are in Chapter 4"
    vgg = sum(_trained(_plain("vgg19", width), scale.growth_epochs) for width in widths)
    grown = sum(_trained(_plain("vgg19", 2 * width + scale.new_neurons), 1) for width in widths[:-1])
    yield row("Figure 4", "Firefly, VGG-19", "search", "plain", vgg + grown, None, None, note)
    for name in ("splitting", "Net2Net"):
        yield row("Figure 4", f"{name}, VGG-19", "search", "plain", vgg, None, None, note)
    children = sum(8 * _trained(_plain("vgg19", width), 17) for width in widths[1:])
    yield row("Figure 4", "NASH, VGG-19", "search", "plain", vgg + children, None, None, note)

    expanded, settled = (_growing_cells(width) for width in (16, 6))
    search = _trained(expanded, 50, CIFAR_HALF) + _trained(settled, 50, CIFAR_HALF)
    bound = "at most: all five cells as wide as after both growths, over-grown half of the time"
    yield row("Table 1", "Firefly", "search", "plain", search, None, 1.5, bound)
    yield row("Table 1", "Firefly", "training", "cells", _trained(_sized(3.3e6, 20)), 5, None, STAND_IN)

    deep = _block_stack()
    for data, images in (("MNIST", 60_000), ("FashionMNIST", 60_000), ("SVHN", 73_257)):
        epochs = scale.depth_epochs * (scale.depth_growths + 1) + scale.retrain_epochs
        most = "at most: the final 12-12-12-12 from the start"
        yield row("Table 3", f"Firefly, {data}", "search", "plain", _trained(deep, epochs, images), None, None, most)
        nash = epochs + 8 * 17 * scale.depth_growths
        yield row("Table 3", f"NASH, {data}", "search", "plain", _trained(deep, nash, images), None, None, most)
    full = _plain("vgg16", None)
    passes = tasks.task_epochs + tasks.direction_epochs + tasks.mask_epochs
    continual = _trained(full, passes, CIFAR_IMAGES)
    most = f"at most: the whole VGG-16; {tasks.mask_epochs} epochs for a mask are ours"
    yield row("Table 2", "Firefly, 20 tasks", "search", "plain", continual, 3, None, most)
    individual = _trained(full, tasks.task_epochs)
    same = "as many epochs as Firefly's last phase"
    yield row("Table 2", "Individual, 20 tasks", "training", "plain", individual, 3, None, same)
    sizes = len(tasks.chosen_numbers)
    yield row("Figure 5", f"Firefly, 10 tasks, {sizes} sizes", "search", "plain", sizes * continual, 3, None, most)


@functools.cache
def _plain(name: str, width: int | None) -> Passes:
    """A VGG with all layers of one width; None for the standard widths."""
    with torch.random.fork_rng(devices=[]):
        return count_passes(VGG(name, None if width is None else [width] * len(vgg_widths(name))), CIFAR_SHAPE)


@functools.cache
def _growing_cells(width: int) -> Passes:
    with torch.random.fork_rng(devices=[]):
        return count_passes(GrowableCellNetwork(width=width), CIFAR_SHAPE)


@functools.cache
def _block_stack() -> Passes:
    """Four blocks of twelve layers with about the two million parameters of Table 3, by arithmetic.

    All layers have the same width w, so that 47 of 9w² weights and one of 27w give w. The image has 32×32 pixels; each
    block begins with a stride of 2.
    """
    width = round(math.sqrt(2e6 / (47 * 9)))
    layer = 9 * width**2
    sides = (16, 8, 4, 2)
    entering = 27 * width * sides[0] ** 2
    forward = entering + sum(layer * (12 - (block == 0)) * side**2 for block, side in enumerate(sides)) + 10 * width
    return Passes(forward, 3 * forward - entering)


PAPERS: Mapping[str, Callable[[], Iterable[Cost]]] = {
    "stretchable": _stretchable,
    "entrannas": _entrannas,
    "prdarts": _pr_darts,
    "growing": _growing,
    "firefly": _firefly,
}
"""The papers in the order of the chapters."""


@functools.cache
def paper_costs(paper: str | None = None) -> tuple[Cost, ...]:
    """All rows of a paper, or of all papers (None). Builds the networks; takes some seconds the first time.

    Raises:
        InvalidInput: there is no such paper.
    """
    if paper is None:
        return tuple(cost for name in PAPERS for cost in paper_costs(name))
    if paper not in PAPERS:
        raise unknown_name("paper", paper, PAPERS)
    return tuple(PAPERS[paper]())


def find_cost(paper: str, table: str, row: str, work: str) -> Cost:
    """The row of that name.

    Raises:
        InvalidInput: there is none.
    """
    for cost in paper_costs(paper):
        if (cost.table, cost.row, cost.work) == (table, row, work):
            return cost
    raise unknown_name("row", f"{table}, {row}, {work}", [f"{c.table}, {c.row}, {c.work}" for c in paper_costs(paper)])


# --- rates and seeds --------------------------------------------------------------------------------------------------


def hours(multiply_adds: float, rate: float) -> float:
    """Hours of so many multiply-adds at ``rate`` multiply-adds a second.

    Raises:
        InvalidInput: a rate that is not above 0, or fewer than no multiply-adds.
    """
    require_positive(rate=rate)
    if not multiply_adds >= 0:
        raise InvalidInput(f"multiply_adds must be at least 0, got {multiply_adds}.")
    return multiply_adds / rate / 3600


def paper_rate(cost: Cost) -> float | None:
    """Counted multiply-adds a second that a paper's own GPU-days mean; None where it gives none.

    Where the count is a bound, so is the rate.
    """
    return None if cost.days is None else cost.multiply_adds / (cost.days * 24 * 3600)


ASSUMED_GPU_RATES = {"plain": 6e11, "recurrent": 1e11}
"""Multiply-adds a second on a GPU of the papers' time, where none of their rows tells: a guess. Measure your own."""


def gpu_rates(costs: Iterable[Cost], assumed: Mapping[str, float] = ASSUMED_GPU_RATES) -> dict[str, float]:
    """Multiply-adds a second for each kind of network: what the papers' own GPU-days mean, the median of their rows.

    Rows whose count is only a bound say nothing about the rate and are left out.

    Args:
        costs: the rows.
        assumed: rates of kinds without any such row.

    Raises:
        InvalidInput: a kind has neither.
    """
    costs = tuple(costs)
    rates = {}
    for kind in dict.fromkeys(cost.kind for cost in costs):
        found = [paper_rate(cost) for cost in costs if cost.kind == kind and not cost.is_bound]
        known = [rate for rate in found if rate is not None]
        if not known and kind not in assumed:
            raise InvalidInput(f"No row of kind {kind!r} has GPU-days; give its rate in assumed.")
        rates[kind] = statistics.median(known) if known else assumed[kind]
    return rates


def seeds_for(effect: float, power: float = 0.8, level: float = 0.05) -> int:
    """Seeds that each of two methods needs, so that a two-sided t test of their means finds a difference.

    Args:
        effect: the difference over the standard deviation between seeds.
        power: how likely a difference of this size is to be found.
        level: how likely a difference is found where there is none.

    Raises:
        InvalidInput: an effect that is not above 0, a power or a level outside of 0..1, or a million seeds are too few.
    """
    from scipy import stats

    require_positive(effect=effect)
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise InvalidInput(f"{name} must lie between 0 and 1, got {value}.")

    def found(seeds: int) -> float:
        freedom, shift = 2 * seeds - 2, effect * math.sqrt(seeds / 2)
        critical = stats.t.ppf(1 - level / 2, freedom)
        return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))

    low, high = 1, 2  # one seed has no spread
    while found(high) < power:
        low, high = high, 2 * high
        if high > 1_000_000:
            raise InvalidInput(f"An effect of {effect} takes more than a million seeds.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high
