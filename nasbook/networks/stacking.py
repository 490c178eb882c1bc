"""How cells are stacked into a network (DARTS §3.1, §3.2): the same for supernets and derived networks.

A stem feeds a chain of cells; each cell reads the outputs of the two before it. The cells at one third
and two thirds of the depth are reduction cells: they halve the resolution and double the channels.

Which cell stands where depends on the kinds that there are. DARTS has two, ``normal`` and ``reduction``. Firefly's cell
search (§3, B.3) has five, one for every section that the two reductions divide the stack into.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import CELL_SECTIONS
from nasbook.operations import FactorizedReduction, ReLUConvolution

StemName = Literal["cifar", "imagenet"]

CellOutput = Literal["concatenation", "mean"]


def _concatenated(nodes: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(nodes), dim=1)


def _averaged(nodes: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, nodes) / len(nodes)


CELL_OUTPUTS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"concatenation": _concatenated, "mean": _averaged}
"""What becomes of a cell's nodes: DARTS concatenates them; PR-DARTS' text takes their mean (§2.2, §3.1)."""


@dataclass(frozen=True)
class CellPlacement:
    """One place in the stack: what a cell that stands there receives and must give."""

    kind: str
    """Kind of cell: ``normal`` or ``reduction``, or one of :data:`~nasbook.genotypes.CELL_SECTIONS`."""
    channels: int
    """Channels of every node inside the cell."""
    input_channels: tuple[int, int]
    """Channels of the older and of the newer input, before the preprocessing."""
    reduces: bool
    """Whether the cell halves the resolution."""
    halve_older: bool
    """Whether the older input still has twice the resolution, because a reduction stands between."""
    output: CellOutput = "concatenation"
    """How nodes become the cell's output."""

    @property
    def input_stride(self) -> int:
        """Stride of the edges that leave the cell's inputs."""
        return 2 if self.reduces else 1

    def output_channels(self, nodes: int) -> int:
        """Channels of the output of so many nodes."""
        return self.channels * (nodes if self.output == "concatenation" else 1)

    def preprocessing(self, affine: bool) -> nn.ModuleList:
        """The two modules that bring both inputs to ``channels`` and to one resolution."""
        older, newer = self.input_channels
        first: nn.Module
        if self.halve_older:
            first = FactorizedReduction(older, self.channels, affine)
        else:
            first = ReLUConvolution(older, self.channels, affine=affine)
        return nn.ModuleList([first, ReLUConvolution(newer, self.channels, affine=affine)])


def reduction_positions(cells: int) -> tuple[int, ...]:
    """Indices of the reduction cells: ⌊L/3⌋ and ⌊2L/3⌋ (one cell only, when they coincide)."""
    return tuple(sorted({cells // 3, 2 * cells // 3}))


def kinds_of_cells(cells: int, kinds: Collection[str]) -> tuple[str, ...]:
    """The kind of every cell of a stack, from the first to the last.

    Where ``kinds`` are :data:`~nasbook.genotypes.CELL_SECTIONS`, a cell's kind is its section: of 20 cells the paper's
    1-6, 7, 8-13, 14 and 15-20 (Firefly B.3), of 5 cells one each, as in the network that is searched. Else the cells
    at :func:`reduction_positions` are ``reduction`` and all others ``normal`` (DARTS).

    Args:
        cells: number of cells, L.
        kinds: the kinds of cell that there are. In DARTS' stack others may be among them; they stand nowhere.

    Raises:
        InvalidInput: ``cells`` is below 1, a kind that the stack needs is not among ``kinds``, another one is among the
            sections', or the stack is too short to have all five sections.
    """
    require_positive(cells=cells)
    reductions = reduction_positions(cells)
    by_section = not set(CELL_SECTIONS).isdisjoint(kinds)
    if by_section:
        # A reduction is one section further than what stands before it, and so is what stands behind it.
        found = tuple(CELL_SECTIONS[sum((at < cell) + (at <= cell) for at in reductions)] for cell in range(cells))
        fitting = set(kinds) == set(CELL_SECTIONS)
    else:
        found = tuple("reduction" if cell in reductions else "normal" for cell in range(cells))
        fitting = set(found) <= set(kinds)
    if not fitting:
        needed = CELL_SECTIONS if by_section else sorted(set(found))
        raise InvalidInput(
            f"Wrong kinds of cell for a stack of {cells}: needed {', '.join(needed)}; got {', '.join(kinds) or 'none'}."
        )
    if by_section and set(found) != set(CELL_SECTIONS):
        raise InvalidInput(
            f"A stack of {cells} is too short for five kinds of cell, which stand before, at, between and after the "
            f"two reductions: use 5 cells or more."
        )
    return found


def stack_cells(
    cells: int,
    channels: int,
    stem: CifarStem | ImageNetStem,
    outputs: Mapping[str, int],
    cell_output: CellOutput | str = "concatenation",
) -> list[CellPlacement]:
    """The placement of every cell.

    Args:
        cells: number of cells, L.
        channels: channels of the first cell's nodes, C; doubled at every reduction cell.
        stem: what feeds the first cell.
        outputs: for each kind of cell, how many nodes belong to its output; the kinds say which cell stands where, see
            :func:`kinds_of_cells`.
        cell_output: what the output makes of them, a name from :data:`CELL_OUTPUTS`.

    Raises:
        InvalidInput: sizes below 1, no such output, or kinds that this stack does not have.
    """
    require_positive(cells=cells, channels=channels)
    if cell_output not in CELL_OUTPUTS:
        raise unknown_name("cell output", cell_output, CELL_OUTPUTS)
    placements = []
    older, newer = stem.output_channels
    halve_older = stem.halve_older
    for position, kind in enumerate(kinds_of_cells(cells, outputs)):
        reduces = position in reduction_positions(cells)
        if reduces:
            channels *= 2
        form: CellOutput = "concatenation" if cell_output == "concatenation" else "mean"
        placements.append(CellPlacement(kind, channels, (older, newer), reduces, halve_older, form))
        halve_older = reduces
        older, newer = newer, placements[-1].output_channels(outputs[kind])
    return placements


class CifarStem(nn.Module):
    """One 3×3 convolution to 3·C channels and a batch norm; both cell inputs are its output."""

    halve_older = False

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels)
        )
        self.output_channels = (3 * channels, 3 * channels)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[Float[Tensor, "batch stem height width"], Float[Tensor, "batch stem height width"]]:
        state = self.layers(images)
        return state, state


class ImageNetStem(nn.Module):
    """Three 3×3 convolutions of stride 2, as in DARTS' code: the older input at 1/4, the newer at 1/8 of the size."""

    halve_older = True

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.quarter = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.eighth = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.output_channels = (channels, channels)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[
        Float[Tensor, "batch channels quarter_height quarter_width"],
        Float[Tensor, "batch channels eighth_height eighth_width"],
    ]:
        older = self.quarter(images)
        return older, self.eighth(older)


def build_stem(name: StemName | str, in_channels: int, channels: int) -> CifarStem | ImageNetStem:
    """The stem of that name: ``cifar`` keeps the resolution, ``imagenet`` divides it by 8."""
    stems: dict[str, type[CifarStem] | type[ImageNetStem]] = {"cifar": CifarStem, "imagenet": ImageNetStem}
    if name not in stems:
        raise unknown_name("stem", name, stems)
    require_positive(in_channels=in_channels, channels=channels)
    if name == "imagenet" and channels < 2:
        raise InvalidInput(f"The imagenet stem needs channels of at least 2, got {channels}.")
    return stems[name](in_channels, channels)
