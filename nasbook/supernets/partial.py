"""Partial channel connections and edge normalisation: PC-DARTS' supernet (Xu et al., ICLR 2020; Chapter 3).

A mixed operation sends one part in K of its channels through the candidates and lets the others pass (§3.2). Since the
coefficients of an edge would then say little about the edge itself, every edge gets a variable of its own (§3.3).

Symbols: ``partition`` is K, ``alpha`` is α, ``beta`` is β, C are the channels of a node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import DARTS_SPACE, CellGenotype, Space
from nasbook.networks import CellPlacement, StemName
from nasbook.supernets.cells import MixedOperation, SearchCell
from nasbook.supernets.fused import FusedCell
from nasbook.supernets.relaxations import Relaxation, SoftmaxRelaxation
from nasbook.supernets.search_network import EngineName, SearchNetwork

Image = Float[Tensor, "batch channels height width"]


class PartialMixedOperation(MixedOperation):
    """Candidates on one part in K of the channels; the rest passes, at stride 2 through max pooling (§3.2, Eq. 2).

    The mask S of Eq. 2 is that of the authors' code: always the first C/K channels, with a channel shuffle at the end,
    so that later operations see another mix of what was computed and what has passed.

    The coefficients of the edge are what each candidate is multiplied by. What passes has no candidate and is
    multiplied by their sum: 1 with DARTS' softmax, the edge's own weight with :class:`EdgeNormalizedRelaxation`.

    Args:
        operations: the candidates' names.
        channels: channels of input and output, C.
        stride: 1 or 2.
        partition: K, at least 2.

    Raises:
        InvalidInput: K is below 2 or does not divide C.
    """

    def __init__(self, operations: tuple[str, ...], channels: int, stride: int, partition: int = 4) -> None:
        _require_parts(channels, partition)
        super().__init__(operations, channels // partition, stride)
        self.selected = channels // partition
        self.partition = partition
        self.stride = stride

    def forward(
        self, x: Image, coefficients: Float[Tensor, " operations"]
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        mixed = super().forward(x[:, : self.selected], coefficients)  # (batch, C/K, ...)
        passing = coefficients.sum() * shrunk(x[:, self.selected :], self.stride)  # (batch, C − C/K, ...)
        return shuffled(torch.cat([mixed, passing], dim=1), self.partition)


def shrunk(x: Image, stride: int) -> Float[Tensor, "batch channels new_height new_width"]:
    """What passes an edge, in the size of what the candidates give: max pooling 2×2 at stride 2."""
    # Odd sizes are rounded up, as the candidates' padding does.
    return x if stride == 1 else F.max_pool2d(x, stride, ceil_mode=True)


def shuffled(x: Image, groups: int) -> Image:
    """The channel shuffle of ShuffleNet (Zhang et al. 2018): channel c of group g goes to place c·groups + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def require_partition(channels: int, partition: int) -> None:
    """Raises :class:`~nasbook.errors.InvalidInput` unless K is at least 1 and divides the channels."""
    require_positive(partition=partition)
    if channels % partition:
        raise InvalidInput(f"partition must divide the channels, got partition={partition} and channels={channels}.")


class PartialCell(SearchCell):
    """A search cell with partial channel connections on every edge: the readable form.

    Args:
        space: the cell space.
        placement: where the cell stands.
        partition: K, at least 2.
    """

    def __init__(self, space: Space, placement: CellPlacement, partition: int = 4) -> None:
        self.partition = partition  # before the candidates are built
        super().__init__(space, placement)

    def build_mixed(self, operations: tuple[str, ...], channels: int, stride: int) -> MixedOperation:
        return PartialMixedOperation(operations, channels, stride, self.partition)

    def run_derived(self, older: Tensor, newer: Tensor, derived: CellGenotype, coefficients: Tensor | None) -> Tensor:
        raise _no_derived_form()


class FusedPartialCell(FusedCell):
    """A :class:`PartialCell` with the same parameters, computed node by node.

    What passes is pooled once for each input and not once for each edge. The shuffle is linear and the same on every
    edge, so that it can wait until the edges of a node are summed.
    """

    def __init__(self, space: Space, placement: CellPlacement, partition: int = 4) -> None:
        _require_parts(placement.channels, partition)
        self.partition = partition  # before the candidates are built
        self.selected = placement.channels // partition
        super().__init__(space, placement)
        rows = {edge: row for row, edge in enumerate(space.edges)}
        nodes = range(space.inputs, space.inputs + space.nodes)
        self._entering = [[(source, rows[source, node]) for source in space.sources(node)] for node in nodes]

    def build_mixed(self, operations: tuple[str, ...], channels: int, stride: int) -> MixedOperation:
        return MixedOperation(operations, channels // self.partition, stride)

    def run_all(self, older: Tensor, newer: Tensor, coefficients: Tensor) -> Tensor:
        self._weights: Sequence[Tensor] = coefficients.sum(1).unbind()  # what passes each edge is multiplied by
        self._held_out: list[Tensor] = []  # of every node so far, the channels that no candidate sees
        try:
            return super().run_all(older, newer, coefficients)
        finally:
            del self._weights, self._held_out  # which hold on to the pass' whole graph

    def begin(
        self, older: Tensor, newer: Tensor, read: Collection[int] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        nodes, _ = super().begin(older, newer, read)
        self._held_out = [shrunk(node[:, self.selected :], self.input_stride) for node in nodes]
        return nodes, [node[:, : self.selected] for node in nodes]

    def form(
        self,
        nodes: list[Tensor],
        entering: list[Tensor],
        parts: Sequence[Tensor],
        read: Collection[int] | None = None,
    ) -> None:
        super().form(nodes, entering, parts, read)  # of the selected channels
        incoming = self._entering[len(nodes) - 1 - self.space.inputs]
        passing = functools.reduce(torch.add, [self._weights[row] * self._held_out[source] for source, row in incoming])
        nodes[-1] = shuffled(torch.cat([nodes[-1], passing], dim=1), self.partition)
        self._held_out.append(nodes[-1][:, self.selected :])
        if len(entering) == len(nodes):  # a later node may read it
            entering[-1] = nodes[-1][:, : self.selected]

    def run_derived(self, older: Tensor, newer: Tensor, derived: CellGenotype, coefficients: Tensor | None) -> Tensor:
        raise _no_derived_form()


def _require_parts(channels: int, partition: int) -> None:
    require_partition(channels, partition)
    if partition < 2:
        raise InvalidInput("partition=1 lets nothing pass: that is the cell without partial channels. Use SearchCell.")


def _no_derived_form() -> InvalidInput:
    return InvalidInput(
        "A cell with partial channels has weights for a part of its channels only, and a derived cell needs all: "
        "train the genotype as a network of its own (nasbook.networks.DerivedNetwork)."
    )


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


PARTIAL_ENGINES: dict[str, type[PartialCell] | type[FusedPartialCell]] = {
    "fused": FusedPartialCell,
    "readable": PartialCell,
}
"""How a cell with partial channels is computed; both forms have the same parameters, state and values."""


class PartialNetwork(SearchNetwork):
    """A supernet with partial channel connections; see :class:`~nasbook.supernets.SearchNetwork` for the arguments.

    With DARTS' space, 16 channels, 8 cells and 10 classes it has 299,578 weights at K = 4, of DARTS' 1,930,618.

    Args:
        partition: K; with 1 all channels go through the candidates, as in DARTS.

    Raises:
        InvalidInput: K is below 1 or does not divide the channels; or what SearchNetwork refuses.
    """

    def __init__(
        self,
        space: Space = DARTS_SPACE,
        channels: int = 16,
        cells: int = 8,
        classes: int = 10,
        *,
        partition: int = 4,
        in_channels: int = 3,
        stem: StemName | str = "cifar",
        relaxation: Callable[[Space], Relaxation] = EdgeNormalizedRelaxation,
        engine: EngineName | str = "fused",
        recompute_cells: int = 0,
    ) -> None:
        require_partition(channels, partition)
        self.partition = partition  # before the cells are built
        super().__init__(
            space,
            channels,
            cells,
            classes,
            in_channels=in_channels,
            stem=stem,
            relaxation=relaxation,
            engine=engine,
            recompute_cells=recompute_cells,
        )

    def build_cell(self, placement: CellPlacement) -> SearchCell:
        if self.partition == 1:
            return super().build_cell(placement)
        return PARTIAL_ENGINES[self.engine](self.space, placement, self.partition)
