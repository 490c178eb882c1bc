"""Firefly for cells: the operation that grows most is the one to keep (Wu, Liu, Stone & Liu, NeurIPS 2020; §3, B.3).

Chapter 7. Firefly descent (:mod:`nasbook.methods.firefly`) on a network of five cells in which all operations stand on
all edges (:class:`~nasbook.networks.GrowableCellNetwork`). Differs from growing a network in four places:

1. One cell grows at a time, from the first to the fifth and again (B.3). Before each growth the network trains for five
   epochs, and the over-grown one for five: 100 epochs, which end with the tenth growth.
2. Half of the training images train the weights. Growth has the other half: step one moves gates and directions on it,
   and step two scores on it, as DARTS' α learns from it.
3. The rest is as in DARTS: one cosine over the whole search, batches of 64, weight decay, clipping.
4. Afterwards widths become operations: on every edge the widest one, or the identity where none grew by 20 %.

What the paper leaves open, and what we do:

* "Train the expanded network for 5 epochs": gates and directions move, weights don't, as in the rest of the paper.
* "Select 25% neurons to grow": a quarter as many neurons as the operations of that cell have. Read as a quarter of the
  candidates, which are twice as many at first, it would be ``rate=0.5``.
* Of equally wide operations the first one of the space wins. Of the paper's four that is ``sep_conv_3x3``.
* "All grow less than 20%": of 4 channels that is less than one neuron, of 8 less than two, of 16 less than four. So an
  edge of the first cell is the identity only where no operation got anything.
* All 14 edges stay, as the paper says nothing of leaving some out. ``edges_per_node`` keeps those that grew most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from nasbook.data import ImageData, Loader
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import CellGenotype, Edge, Genotype, Space
from nasbook.growth.firefly import MIDPOINTS
from nasbook.methods import firefly
from nasbook.methods.growth import GrowthRun, Situation
from nasbook.methods.search import SearchReport, SearchResult, search_header
from nasbook.networks import (
    CELL_SECTIONS,
    GROWING_SPACE,
    TRANSFORM_ACTIVATIONS,
    GrowableCellNetwork,
    StemName,
    TransformActivation,
)
from nasbook.seeding import fold_seed
from nasbook.training import EpochReport, cosine, evaluate

__all__ = ["CellGrowth", "CellSearchReport", "Config", "Search", "derive_cell", "growing_cell"]

IDENTITY = "skip_connect"
"""What an edge gets whose operations hardly grew."""


@dataclass(frozen=True)
class Config:
    """How Firefly searches cells. Defaults are the paper's for CIFAR-10 (B.3) or, where it refers to it, DARTS'."""

    rounds: int = 2
    """How many times the five cells grow, one after another."""
    epochs: int = 5
    """Passes over the training share before each growth."""
    direction_epochs: int = 5
    """Passes over the validation share in each growth, as many steps as over the training share."""
    rate: float = 0.25
    """Neurons that a growth adds, as a share of those that the operations of the growing cell have."""
    splits: bool = True
    """Whether existing neurons may split. With the paper's linear transform none is chosen: see ``activation``."""
    new_neurons: int = 4
    """m': new neurons that each operation of the first cell may choose from; doubled at each reduction."""
    channels: int = 16
    """Channels of the first cell's nodes, C; doubled at each reduction."""
    width: int = 4
    """Channels that the operations of the first cell begin with; doubled at each reduction."""
    activation: TransformActivation = "identity"
    """Between an operation's last batch norm and its linear transform: identity, as in the paper, or relu. With the
    identity, a split changes nothing in evaluation mode, where scores are taken."""
    stem: StemName = "cifar"
    """cifar keeps the resolution, imagenet divides it by 8."""
    batch_size: int = 64
    """Images a step, of each share."""
    learning_rate: float = 0.025
    """Of the weights' SGD at the start."""
    final_learning_rate: float = 0.001
    """Of the weights' SGD at the end of the cosine, which goes on while cells grow."""
    momentum: float = 0.9
    """Of the weights' SGD."""
    weight_decay: float = 3e-4
    """Of the weights' SGD, as L2."""
    train_share: float = 0.5
    """Share of the training images for the weights; the rest is for growth."""
    scored_images: int | None = None
    """Validation images over which a growth measures losses and scores, chosen at random once; None for all."""
    radius: float = 0.01
    """ϵ, the largest gate. Not in the paper."""
    direction_rate: float = 0.1
    """Length of a direction's first step in step one; see :class:`~nasbook.growth.CandidateDescent`."""
    points: int = MIDPOINTS
    """n: points of the integrated gradient."""
    least_growth: float = 0.2
    """An edge becomes the identity if each of its operations grew by less than this share of its initial width."""
    edges_per_node: int | None = None
    """How many edges a node keeps in the found cells: those whose widest operation grew most, of equals the first;
    None for all, as in the paper. Not in the paper."""

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, channels=self.channels, width=self.width)
        for name in ("final_learning_rate", "least_growth"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 < self.train_share < 1:
            raise InvalidInput(f"train_share must be between 0 and 1, got {self.train_share}.")
        if self.activation not in TRANSFORM_ACTIVATIONS:
            raise unknown_name("activation", self.activation, TRANSFORM_ACTIVATIONS)
        if self.edges_per_node is not None:
            require_positive(edges_per_node=self.edges_per_node)
        self.growth()  # refuses what the growth and the training would

    def growth(self) -> CellGrowth:
        """How the network grows and trains."""
        return CellGrowth(
            growths=self.rounds * len(CELL_SECTIONS),
            epochs=self.epochs,
            rate=self.rate,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            validation_share=1 - self.train_share,
            scored_images=self.scored_images,
            splits=self.splits,
            new_neurons=self.new_neurons,
            radius=self.radius,
            direction_epochs=self.direction_epochs,
            direction_rate=self.direction_rate,
            points=self.points,
        )


@dataclass(frozen=True)
class CellGrowth(firefly.Config):
    """Firefly descent that grows one cell at a time; ``new_neurons`` are those of the first cell's operations."""

    method: ClassVar[str] = "firefly-cells"

    @property
    def last_epochs(self) -> int:
        return 0  # widths are the answer, and no weights

    def begin(self, situation: Situation) -> firefly.FireflyGrowth:
        network = situation.network
        assert isinstance(network, GrowableCellNetwork)
        cell = growing_cell(situation.number)
        first, own = (network.placements[place].channels for place in (0, cell))
        settings = replace(self, new_neurons=self.new_neurons * own // first)
        widths = [name for operations in network.width_names(cell).values() for name in operations.values()]
        return firefly.FireflyGrowth(settings, situation, widths)


def growing_cell(number: int) -> int:
    """Place in the stack, from 0, of the cell that grows in growth ``number``, from 1: 0 to 4, and again (B.3)."""
    return (number - 1) % len(CELL_SECTIONS)


def derive_cell(
    widths: Mapping[tuple[int, int], Mapping[str, int]],
    initial: int,
    least_growth: float = 0.2,
    edges_per_node: int | None = None,
) -> CellGenotype:
    """The discrete cell that widths mean (B.3): the widest operation of each edge, or the identity.

    Args:
        widths: (source, target) of an edge → operation → its channels now; of equally wide ones the first is taken.
        initial: channels that all operations began with.
        least_growth: an edge becomes the identity if each operation grew by less than this share of ``initial``.
        edges_per_node: how many edges a node keeps, those with the widest operations, of equals the first; None for
            all.

    Raises:
        InvalidInput: sizes below 1, or an edge without operations.
    """
    require_positive(initial=initial)
    if edges_per_node is not None:
        require_positive(edges_per_node=edges_per_node)
    if not all(widths.values()):
        raise InvalidInput("An edge has no operations to choose from; give each edge one or more.")
    widest = {edge: max(own.values()) for edge, own in widths.items()}
    kept: list[Edge] = []
    for node in sorted({target for _, target in widths}):
        entering = [edge for edge in widths if edge[1] == node]
        strongest = sorted(entering, key=lambda edge: (-widest[edge], edge))  # the number of the source parts equals
        for edge in strongest[:edges_per_node]:
            grown = (widest[edge] - initial) / initial >= least_growth
            kept.append(Edge(*edge, max(widths[edge], key=widths[edge].__getitem__) if grown else IDENTITY))
    return CellGenotype(tuple(kept), nodes=max(target for _, target in widths) - 1)


@dataclass(frozen=True)
class CellSearchReport(SearchReport):
    """What one epoch measured, and how wide the operations are after it.

    In the epochs of a growth the training loss is that of the over-grown network on the validation share.
    """

    phase: int
    """How many growths the network has behind it, the running one included."""
    growing: bool
    """Whether this epoch was part of a growth."""
    neurons: dict[str, int]
    """Channels of each operation, by the name of its width, in the order of the data."""
    parameters: int
    """Parameters of the network."""


class Search(GrowthRun):
    """Firefly on cells.

    Args:
        config: see :class:`Config`.
        data: images on the device to search on. Test images are not touched.
        space: edges and operations of the cells. Its kinds are the five sections and its nodes keep all edges, or
            ``config.edges_per_node``, whatever it says of them.
        seed: of initial weights, data order, augmentation and directions.

    Raises:
        InvalidInput: several processes share the run, an operation that can't grow, or images that can't be divided as
            asked.
    """

    method: ClassVar[str] = "firefly-cells"
    report_type: ClassVar[type[EpochReport]] = CellSearchReport
    network: GrowableCellNetwork

    def __init__(self, config: Config, data: ImageData, space: Space = GROWING_SPACE, seed: int = 0) -> None:
        self.plan = config
        """How this searches; ``config`` says how the network trains."""
        most = space.inputs + space.nodes - 1
        self.space = replace(space, kinds=CELL_SECTIONS, edges_per_node=config.edges_per_node or most)
        with torch.random.fork_rng(devices=[]):  # the caller's generator is left where it was
            torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
            network = GrowableCellNetwork(
                self.space,
                config.channels,
                config.width,
                data.classes,
                in_channels=data.channels,
                stem=config.stem,
                activation=config.activation,
            )
        super().__init__(network, data, config.growth(), seed=seed)
        assert self._validation is not None
        self._growth_loader = Loader(
            data.train_images[self._validation],
            data.train_labels[self._validation],
            config.batch_size,
            mean=data.mean,
            std=data.std,
            augmentation=self.loader.augmentation,
            seed=fold_seed(seed, "growth images"),
        )

    def growth_loader(self) -> Loader:
        """The validation share."""
        return self._growth_loader

    def learning_rate(self, number: int) -> float:
        """DARTS' cosine, over the whole search."""
        return cosine(self.plan.learning_rate, self.plan.final_learning_rate, self.epoch / self.total_epochs)

    def validation(self, ends_phase: bool) -> tuple[float, float]:
        """Loss and accuracy on the validation share; within a growth the network is still that of the epoch before."""
        if self._growth is not None:
            return self.history[-1].validation_loss, self.history[-1].validation_accuracy
        images, labels = self._growth_loader.images, self._growth_loader.labels
        return evaluate(self.network, images, labels, self.data, channels_last=self._channels_last)

    def report(self, means: dict[str, float]) -> CellSearchReport:  # type: ignore[override]
        return CellSearchReport(**vars(super().report(means)), genotype=self.genotype(), coefficients={})

    def genotype(self) -> Genotype:
        """The five cells that the widths mean now."""
        initial = self.network.starting_widths()
        return Genotype({
            kind: derive_cell(
                self.network.operation_widths(place), initial[kind], self.plan.least_growth, self.plan.edges_per_node
            )
            for place, kind in enumerate(CELL_SECTIONS)
        })

    def result(self) -> SearchResult:
        """The five cells that the widths mean now, and the history."""
        accuracy = self.history[-1].validation_accuracy if self.history else float("nan")
        return SearchResult(self.genotype(), tuple(self.history), accuracy)

    def header(self) -> dict[str, Any]:
        return search_header(self.method, self.space, self.plan, self.data, self.seed)
