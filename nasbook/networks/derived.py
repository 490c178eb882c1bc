"""The derived network: the discrete cells of a genotype, stacked and trained from scratch (DARTS §3.2).

Differs from the supernet in three places: only the chosen operations exist, batch norms are affine and
pools have none, and paths are dropped while it trains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook import processes
from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import CellGenotype, Genotype
from nasbook.networks.stacking import (
    CELL_OUTPUTS,
    CellOutput,
    CellPlacement,
    StemName,
    build_stem,
    stack_cells,
)
from nasbook.operations import build_operation

Image = Float[Tensor, "batch channels height width"]


class DropPath(nn.Module):
    """Drops an edge's output for whole samples and divides the kept ones by the keep rate (FractalNet).

    The rate changes from epoch to epoch. Compiled code reads it from a tensor, so that it is not compiled anew
    each time; its draws differ from those of the code as it stands.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.ones(()), persistent=False)
        self.rate = rate

    @property
    def rate(self) -> float:
        """Share of samples whose path is dropped."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._rate = rate
        self.keep.fill_(1 - rate)

    def forward(self, x: Image) -> Image:
        if not self.training:
            return x
        if torch.compiler.is_compiling():
            kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < self.keep
            return x * (kept / self.keep).to(x.dtype)
        if self.rate == 0:
            return x
        keep = 1 - self.rate
        # Of several processes each draws for the whole batch, so that their generators stay alike.
        batch = processes.count() * x.shape[0]
        mask = processes.own_part(torch.empty(batch, 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep))
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def set_drop_path(network: nn.Module, rate: float) -> None:
    """Sets the rate of every :class:`DropPath` in a network, wrapped or not.

    Raises:
        InvalidInput: the rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise InvalidInput(f"drop_path must be at least 0 and below 1, got {rate}.")
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = rate


class DerivedCell(nn.Module):
    """One discrete cell: every node is the sum of its edges (Eq. 1), the output what the placement makes of nodes."""

    def __init__(self, genotype: CellGenotype, placement: CellPlacement, drop_path: float = 0.0) -> None:
        super().__init__()
        if genotype.inputs != 2:
            raise InvalidInput(f"A convolutional cell has 2 input nodes, this genotype has {genotype.inputs}.")
        self.genotype = genotype
        self.placement = placement
        self.join = CELL_OUTPUTS[placement.output]
        self.preprocessing = placement.preprocessing(affine=True)
        self.operations = nn.ModuleList()
        self.drops = nn.ModuleList()
        for edge in genotype.edges:
            stride = placement.input_stride if edge.source < genotype.inputs else 1
            operation = build_operation(edge.operation, placement.channels, stride, affine=True)
            self.operations.append(operation)
            # Identity edges are never dropped (DARTS' code), so that a path always remains.
            self.drops.append(nn.Identity() if isinstance(operation, nn.Identity) else DropPath(drop_path))

    def forward(
        self,
        older: Float[Tensor, "batch older older_height older_width"],
        newer: Float[Tensor, "batch newer newer_height newer_width"],
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        states = {0: self.preprocessing[0](older), 1: self.preprocessing[1](newer)}
        for edge, operation, drop in zip(self.genotype.edges, self.operations, self.drops, strict=True):
            value = drop(operation(states[edge.source]))
            states[edge.target] = states[edge.target] + value if edge.target in states else value
        return self.join([states[node] for node in self.genotype.output])


class AuxiliaryHead(nn.Module):
    """A second classifier at two thirds of the depth, used in training only (DARTS' code).

    Pool, 1×1 convolution to 128, 2×2 convolution to 768, linear. It has no batch norm after the second
    convolution on ImageNet-size inputs, as in the authors' code.
    """

    def __init__(self, channels: int, classes: int, stem: StemName | str) -> None:
        super().__init__()
        imagenet = stem == "imagenet"
        self.stride = 2 if imagenet else 3
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=self.stride, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.Identity() if imagenet else nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Image) -> Float[Tensor, "batch classes"]:
        low, high = 5 + self.stride, 5 + 2 * self.stride - 1  # sizes that the pool turns into 2×2
        if not all(low <= side <= high for side in x.shape[2:]):
            raise InvalidInput(
                f"The auxiliary head needs feature maps of {low} to {high} pixels a side after the second "
                f"reduction, got {x.shape[2]}×{x.shape[3]}; use auxiliary=False at this image size."
            )
        return self.classifier(self.features(x).flatten(1))


class AuxiliaryOutput(NamedTuple):
    """What a derived network with an auxiliary head returns while it trains (as torchvision's GoogLeNet)."""

    logits: Float[Tensor, "batch classes"]
    auxiliary: Float[Tensor, "batch classes"]


class DerivedNetwork(nn.Module):
    """A classifier built from a genotype.

    At ``channels=36, cells=20`` with ``DARTS_V2`` it has 3,349,342 parameters and takes 528,359,040
    multiply-adds for a 32×32 image.

    Args:
        genotype: needs the kinds that stand in the stack: ``reduction``, and ``normal`` from three cells on; or the
            five of :data:`~nasbook.genotypes.CELL_SECTIONS`, for five cells and more. See
            :func:`~nasbook.networks.kinds_of_cells`.
        channels: channels of the first cell's nodes, C.
        cells: number of cells, L.
        classes: number of classes.
        auxiliary: adds a head of 476,426 parameters (at the defaults) after the cell at ⌊2L/3⌋; in training mode
            the network then returns an :class:`AuxiliaryOutput`.
        drop_path: rate at which edges are dropped in training; see :meth:`set_drop_path`.
        stem: ``cifar`` or ``imagenet``.
        in_channels: channels of the images.
        cell_output: ``concatenation`` of a cell's nodes, or their ``mean``.

    Raises:
        InvalidInput: sizes below 1, a rate outside [0, 1), unknown operations, stem, cell output or kinds of cell.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 36,
        cells: int = 20,
        classes: int = 10,
        auxiliary: bool = False,
        drop_path: float = 0.0,
        stem: StemName | str = "cifar",
        in_channels: int = 3,
        cell_output: CellOutput | str = "concatenation",
    ) -> None:
        super().__init__()
        require_positive(channels=channels, cells=cells, classes=classes)
        self.genotype = genotype
        self.stem = build_stem(stem, in_channels, channels)
        outputs = {kind: len(cell.output) for kind, cell in genotype.cells}
        placements = stack_cells(cells, channels, self.stem, outputs, cell_output)
        self.cells = nn.ModuleList(DerivedCell(genotype[p.kind], p) for p in placements)
        width = placements[-1].output_channels(outputs[placements[-1].kind])
        self.classifier = nn.Linear(width, classes)
        self.auxiliary_position = 2 * cells // 3
        self.auxiliary_head: AuxiliaryHead | None = None
        if auxiliary:
            place = placements[self.auxiliary_position]
            self.auxiliary_head = AuxiliaryHead(place.output_channels(outputs[place.kind]), classes, stem)
        self.set_drop_path(drop_path)

    def set_drop_path(self, rate: float) -> None:
        """Sets the drop rate of all edges; DARTS raises it linearly over the epochs."""
        set_drop_path(self, rate)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch classes"] | AuxiliaryOutput:
        older, newer = self.stem(images)
        auxiliary = None
        for position, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer)
            if self.training and self.auxiliary_head is not None and position == self.auxiliary_position:
                auxiliary = self.auxiliary_head(newer)
        logits = self.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1))
        return logits if auxiliary is None else AuxiliaryOutput(logits, auxiliary)
