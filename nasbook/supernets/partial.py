"""Partial channel connections and edge normalisation: PC-DARTS' supernet (Xu et al., ICLR 2020; Chapter 3).

A mixed operation sends one part in K of its channels through the candidates and lets the others pass (§3.2). Since the
coefficients of an edge would then say little about the edge itself, every edge gets a variable of its own (§3.3).

Symbols: ``partition`` is K, ``alpha`` is α, ``beta`` is β.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import Space
from nasbook.networks import CellPlacement
from nasbook.supernets.cells import MixedOperation, SearchCell
from nasbook.supernets.relaxations import SoftmaxRelaxation
from nasbook.supernets.search_network import SearchNetwork

Image = Float[Tensor, "batch channels height width"]


class PartialMixedOperation(MixedOperation):
    """Candidates on one part in K of the channels; the rest passes, at stride 2 through max pooling (§3.2, Eq. 2).

    The mask S of Eq. 2 is that of the authors' code: always the first C/K channels, with a channel shuffle at the end,
    so that every later operation sees another mix of what was computed and what has passed.

    The coefficients of the edge are what each candidate is multiplied by. What passes has no candidate and is
    multiplied by their sum: 1 with DARTS' softmax, the edge's own weight with :class:`EdgeNormalizedRelaxation`.

    Args:
        operations: the candidates' names.
        channels: channels of input and output, C.
        stride: 1 or 2.
        partition: K; 1 lets nothing pass.

    Raises:
        InvalidInput: K is below 1 or does not divide C.
    """

    def __init__(self, operations: tuple[str, ...], channels: int, stride: int, partition: int = 4) -> None:
        require_partition(channels, partition)
        super().__init__(operations, channels // partition, stride)
        self.selected = channels // partition
        self.partition = partition
        self.stride = stride

    def forward(
        self, x: Image, coefficients: Float[Tensor, " operations"]
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        mixed = super().forward(x[:, : self.selected], coefficients)
        if self.partition == 1:
            return mixed
        passing = coefficients.sum() * shrunk(x[:, self.selected :], self.stride)
        return shuffled(torch.cat([mixed, passing], dim=1), self.partition)


def require_partition(channels: int, partition: int) -> None:
    """Raises :class:`~nasbook.errors.InvalidInput` unless the channels of a node can be parted in so many."""
    require_positive(partition=partition)
    if channels % partition:
        raise InvalidInput(
            f"partition={partition} must divide the channels of a cell, which are {channels} here: "
            f"give channels that are a multiple of it."
        )


def shrunk(x: Image, stride: int) -> Float[Tensor, "batch channels new_height new_width"]:
    """What passes an edge, at the size of what the candidates give: max pooling 2×2 at stride 2."""
    # Odd sizes are rounded up, as the candidates' padding does.
    return x if stride == 1 else F.max_pool2d(x, stride, ceil_mode=True)


def shuffled(x: Image, groups: int) -> Image:
    """The channel shuffle of ShuffleNet (Zhang et al. 2018): channel c of group g goes to place c·groups + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class PartialCell(SearchCell):
    """A search cell with partial channel connections on every edge.

    Args:
        space: the cell space.
        placement: where the cell stands.
        partition: K.
    """

    def __init__(self, space: Space, placement: CellPlacement, partition: int = 4) -> None:
        self.partition = partition  # before the candidates are built
        super().__init__(space, placement)

    def build_mixed(self, channels: int, stride: int) -> MixedOperation:
        return PartialMixedOperation(self.space.operations, channels, stride, self.partition)


class PartialNetwork(SearchNetwork):
    """A supernet of partial cells; see :class:`~nasbook.supernets.SearchNetwork` for the other arguments.

    Args:
        partition: K.
    """

    def __init__(self, *arguments: Any, partition: int = 4, **options: Any) -> None:
        self.partition = partition  # before the cells are built
        super().__init__(*arguments, **options)

    def build_cell(self, placement: CellPlacement) -> SearchCell:
        return PartialCell(self.space, placement, self.partition)


class EdgeNormalizedRelaxation(SoftmaxRelaxation):
    """A softmax over the operations of each edge, times a softmax over the input edges of each node (§3.3, Eq. 3).

    Both are shared by all cells of a kind. The derived cell is that of the products: for every node its strongest
    edges, each as strong as its best operation but zero, as in the authors' code.

    Args:
        space: the cell space.
        scale: standard deviation of the initial α and β (the code: 1e-3).
    """

    def __init__(self, space: Space, scale: float = 1e-3) -> None:
        super().__init__(space, scale)
        self.beta = nn.Parameter(scale * torch.randn(len(space.edges)))

    def edge_weights(self) -> Float[Tensor, " edges"]:
        """For every edge its share among the input edges of its node: exp(β_ij) / Σ_i' exp(β_i'j)."""
        nodes = range(self.space.inputs, self.space.inputs + self.space.nodes)
        entering = [len(self.space.sources(node)) for node in nodes]
        return torch.cat([some.softmax(0) for some in self.beta.split(entering)])  # the edges are grouped by target

    def coefficients(self) -> Float[Tensor, "edges operations"]:
        return self.edge_weights()[:, None] * super().coefficients()
