"""The fused search cell: the function of :class:`~nasbook.supernets.SearchCell` in far fewer, larger steps.

The readable cell runs one module a candidate and edge. Here everything that leaves one node runs together:

* one ReLU, one max pooling, one average pooling, whatever the number of edges;
* one depthwise convolution for each kernel shape, with a channel group for every edge;
* one pointwise convolution for each, in groups, with its batch norm folded in (:mod:`nasbook.supernets.folded_norm`);
* and the last of these with the coefficients folded in too, so that no weighted copy is ever made. Pools and
  identity are scaled by theirs, all edges at once.

Autograd sees all this as one function a node, whose backward pass is written out
(:mod:`nasbook.supernets.fused_function`). The skip connections of stride 2, and operations that have no rule here, are
left to autograd.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.genotypes import Space
from nasbook.networks import CellPlacement
from nasbook.operations import DilatedConvolution, FactorizedReduction, Pool, SeparableConvolution, Zero
from nasbook.operations.pointwise import grouped_map, in_fast_layout, in_layout_of
from nasbook.supernets.cells import SearchCell, candidates_of
from nasbook.supernets.folded_norm import NormPass, fold_norms, update_running_statistics
from nasbook.supernets.fused_function import NodeCandidates, PoolCandidate, SeparableCandidate, leave_node

if TYPE_CHECKING:
    from typing_extensions import Self

TOGETHER = 2**19
"""The inputs of a cell are taken together while what leaves them has at most so many numbers a candidate. It saves
calls and costs locality: beyond this size the caches of a CPU no longer hold it."""


class FusedCell(SearchCell):
    """A :class:`~nasbook.supernets.SearchCell` with the same parameters, computed node by node, not edge by edge.

    The fused steps read the candidates' parameters and do not call the candidates. So a pass takes the readable way
    when the batch norms of the edges are not all in the same mode, or when a candidate is no longer made of the
    modules it was built from (looked at in the first pass after the construction and after each change of mode).
    Hooks on modules within the edges are not called.
    """

    def __init__(self, space: Space, placement: CellPlacement, bottleneck: int = 1) -> None:
        super().__init__(space, placement, bottleneck)
        self._norms = [module for module in self.edges.modules() if isinstance(module, nn.BatchNorm2d)]
        self._built_from = list(self.edges.modules())
        self._unchanged: bool | None = None  # not known yet
        # Plain objects that hold modules, which are registered by `edges` already.
        alone = [self.departure((source,)) for source in range(space.inputs + space.nodes - 1)]
        self._alone = alone
        alike = len({space.targets(source) for source in range(space.inputs)}) == 1
        self._together = [self.departure(tuple(range(space.inputs))), *alone[space.inputs :]] if alike else alone

    def departure(self, sources: tuple[int, ...]) -> Departure:
        """What computes all that leaves these nodes. Cells with other candidates override it."""
        return _NodeDeparture(self, sources)

    def run_all(self, older: Tensor, newer: Tensor, coefficients: Tensor) -> Tensor:
        modes = {(norm.training, norm.track_running_stats, norm.eps, norm.momentum) for norm in self._norms}
        training, tracking, epsilon, momentum = modes.pop() if modes else (False, False, 0.0, 0.0)
        if self._unchanged is None:
            now = list(self.edges.modules())
            self._unchanged = len(now) == len(self._built_from) and all(map(operator.is_, now, self._built_from))
        if modes or momentum is None or not self._unchanged:
            return super().run_all(older, newer, coefficients)

        inputs = self.space.inputs
        nodes, entering = self.begin(in_fast_layout(older), in_fast_layout(newer))
        entering = [in_fast_layout(state) for state in entering]
        arriving: list[list[Tensor]] = [[] for _ in range(self.space.nodes)]
        norms = NormPass(training, epsilon, [])
        width = inputs * self.space.nodes * entering[0].numel() // self.input_stride**2
        for departure in self._together if width <= TOGETHER else self._alone:
            if departure.sources[0] >= inputs:
                self.form(nodes, entering, arriving[len(nodes) - inputs])
            for target, part in departure(entering, coefficients, norms):
                arriving[target - inputs].append(part)
        self.form(nodes, entering, arriving[-1])
        if training and tracking and norms.statistics:
            update_running_statistics(norms.statistics, momentum)
        return self.join(nodes[inputs:])

    def train(self, mode: bool = True) -> Self:
        self._unchanged = None
        return super().train(mode)

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return in_fast_layout(parts[0])
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total = total.add_(part)
        return total


class Departure(ABC):
    """All that leaves one node or several of a cell."""

    sources: tuple[int, ...]
    """The nodes."""

    @abstractmethod
    def __call__(
        self, states: Sequence[Tensor], coefficients: Tensor, norms: NormPass
    ) -> Iterable[tuple[int, Tensor]]:
        """Targets and what they receive, from the states of all nodes so far; coefficients: (edges, operations)."""


class _NodeDeparture(Departure):
    """All that leaves one node, or both inputs together if they have the same targets; ordered target by target."""

    def __init__(self, cell: FusedCell, sources: tuple[int, ...]) -> None:
        space = cell.space
        self.sources = sources
        self.targets = space.targets(sources[0])
        rows = {edge: row for row, edge in enumerate(space.edges)}
        order = [rows[source, target] for target in self.targets for source in sources]
        self._rows = torch.tensor(order)
        self.stride = cell.input_stride if sources[0] < space.inputs else 1
        self.convolutions: list[SeparableCandidate] = []
        self.pools: list[PoolCandidate] = []
        self.skip: int | None = None
        self.reduction: tuple[int, tuple[Any, ...]] | None = None
        self.others: list[tuple[int, tuple[nn.Module, ...]]] = []
        for column, name in enumerate(space.operations if order else ()):
            self._take(column, tuple(candidates_of(cell.edges[row])[name] for row in order))

    def _index(self, device: torch.device) -> Tensor:
        if self._rows.device != device:
            self._rows = self._rows.to(device)
        return self._rows

    def _take(self, column: int, modules: tuple[Any, ...]) -> None:
        """Sorts a candidate's modules, one for each edge, by how they run."""
        kind = modules[0]
        if isinstance(kind, (SeparableConvolution, DilatedConvolution)):
            halves = 2 if isinstance(kind, SeparableConvolution) else 1
            self.convolutions.append(SeparableCandidate(column, modules, halves))
        elif isinstance(kind, nn.Sequential) and isinstance(kind[0], Pool):
            self.pools.append(PoolCandidate(column, kind[0], tuple(module[1] for module in modules)))
        elif isinstance(kind, nn.Identity):
            self.skip = column
        elif isinstance(kind, FactorizedReduction):
            self.reduction = (column, modules)
        elif not isinstance(kind, Zero):
            self.others.append((column, modules))

    def __call__(
        self, states: Sequence[Tensor], coefficients: Tensor, norms: NormPass
    ) -> Iterable[tuple[int, Tensor]]:
        if not self.targets:
            return ()
        x = states[self.sources[0]]
        if len(self.sources) > 1:
            x = torch.cat([states[source] for source in self.sources], dim=1)
        weights = coefficients.index_select(0, self._index(coefficients.device))
        parts = []
        if self.convolutions or self.pools or self.skip is not None:
            candidates = NodeCandidates(
                targets=len(self.targets),
                sources=len(self.sources),
                stride=self.stride,
                convolutions=self.convolutions,
                pools=self.pools,
                skip=self.skip,
                norms=norms,
            )
            parts.append(leave_node(candidates, x, weights))
        if self.reduction is not None:
            column, modules = self.reduction
            parts.append(leave_reduced(modules, len(self.sources), x, weights[:, column], norms))
        parts += [self._run(modules, x, weights[:, column]) for column, modules in self.others]
        if not parts:  # only zero operations leave
            return ()
        received = functools.reduce(torch.add, parts).chunk(len(self.targets), dim=1)
        return zip(self.targets, received, strict=False)

    def _run(self, modules: tuple[nn.Module, ...], x: Tensor, weights: Tensor) -> Tensor:
        """Operations without a rule of their own, one by one."""
        images = x.chunk(len(self.sources), dim=1)
        weighted = [weights[place] * module(images[place % len(images)]) for place, module in enumerate(modules)]
        targets = [weighted[start : start + len(images)] for start in range(0, len(weighted), len(images))]
        return torch.cat([functools.reduce(torch.add, parts) for parts in targets], dim=1)


def leave_reduced(
    modules: Sequence[Any],
    sources: int,
    x: Tensor,
    weights: Tensor,
    norms: NormPass,
) -> Tensor:
    """The skip connections of stride 2: one map of all pixels that either of their convolutions reads.

    Args:
        modules: factorised reductions, ordered target by target, within them source by source.
        sources: how many nodes leave.
        x: (batch, sources·C, height, width), their states side by side.
        weights: a coefficient for every module.
        norms: how the batch norms run.

    Returns:
        (batch, targets·C, half height, half width).
    """
    with torch.autocast(x.device.type, enabled=False):
        h = F.relu(x.to(weights.dtype))
        shifted = F.pad(h[:, :, 1:, 1:], (0, h.shape[3] % 2, 0, h.shape[2] % 2))
        both = zip(h[:, :, ::2, ::2].chunk(sources, 1), shifted[:, :, ::2, ::2].chunk(sources, 1), strict=True)
        pixels = in_layout_of(x, torch.cat([part for pair in both for part in pair], dim=1))

        ordered = [module for source in range(sources) for module in modules[source::sources]]
        plain = torch.stack([module.convolution.weight for module in ordered]).flatten(2)
        moved = torch.stack([module.shifted_convolution.weight for module in ordered]).flatten(2)
        channels = plain.shape[2]
        maps = torch.cat([F.pad(plain, (0, channels)), F.pad(moved, (channels, 0))], dim=1)
        maps = maps.view(sources, -1, 2 * channels)  # each source to all targets
        own = [module.norm for module in ordered]
        norm = fold_norms(maps, [pixels], sources, own, norms)
        scale = weights.view(-1, sources).t().repeat_interleave(channels, dim=1)
        maps = (norm.maps * scale[:, :, None]).transpose(0, 1).reshape(1, -1, 2 * channels * sources)
        return grouped_map(pixels, maps, (norm.bias * scale).sum(0))
