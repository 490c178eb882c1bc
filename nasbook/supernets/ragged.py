"""The fused search cell where every edge has candidates of its own, as in PR-DARTS (§3.2.2; Chapter 5).

:class:`~nasbook.supernets.FusedCell` takes one candidate of all edges that leave a node at once. With pools, what
leaves a node are convolutions of a dozen configurations, most of them on one or two edges only. So here

* one ReLU serves all edges of a node, and so does one pooling of a kind;
* a layer of a convolution is a depthwise convolution and a pointwise map with its batch norm folded in
  (:mod:`nasbook.supernets.folded_norm`); the last map has the coefficients folded in too;
* while the images are small, calls cost more than arithmetic: convolutions of one dilation and of equal widths run
  side by side, a group of channels each, and the batch norms of a layer are folded all at once. Where the images are
  large, every convolution runs alone, which suits the caches of a CPU.

Autograd puts the backward pass together from those of a few steps, which are written out and can be differentiated
any number of times. As in FusedCell, what is kept for it are the images that convolutions and maps read.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.operations import Configuration, FactorizedReduction, MorphableConvolution, Zero
from nasbook.operations.depthwise import depthwise, depthwise_side_by_side
from nasbook.operations.morphable import LAYER
from nasbook.operations.pointwise import in_layout_of, pointwise
from nasbook.operations.registry import get_operation
from nasbook.supernets.cells import SearchCell, candidates_of
from nasbook.supernets.folded_norm import NormPass, folded_norms
from nasbook.supernets.fused import Departure, FusedCell, leave_reduced
from nasbook.supernets.fused_function import NodeCandidates, PoolCandidate, leave_node

SMALL = 2**17
"""Convolutions run side by side while the image of a node has at most so many numbers."""


class FusedRaggedCell(FusedCell):
    """A :class:`~nasbook.supernets.SearchCell` with the same parameters, for edges with candidates of their own.

    It takes the readable way when :class:`~nasbook.supernets.FusedCell` does.
    """

    def departure(self, sources: tuple[int, ...]) -> Departure:
        return _RaggedDeparture(self, sources)


class _Candidate(NamedTuple):
    """One candidate of one edge."""

    source: int
    """Place among the sources of the departure."""
    target: int
    place: int
    """Of its coefficient, in the matrix row by row."""
    module: Any


class _RaggedDeparture(Departure):
    """All that leaves some nodes, in parts of candidates that run together."""

    def __init__(self, cell: SearchCell, sources: tuple[int, ...]) -> None:
        space = cell.space
        self.sources = sources
        stride = cell.input_stride if sources[0] < space.inputs else 1
        column = {name: place for place, name in enumerate(space.operations)}
        shapes: dict[Any, list[_Candidate]] = {}
        poolings: dict[str, list[_Candidate]] = {}
        reductions: dict[int, list[_Candidate]] = {}
        parts: list[_Part] = []
        for row, (source, target) in enumerate(space.edges):
            for name, module in candidates_of(cell.edges[row]).items() if source in sources else ():
                one = _Candidate(sources.index(source), target, row * len(column) + column[name], module)
                if isinstance(module, MorphableConvolution):
                    shapes.setdefault(_shape(module.configuration), []).append(one)
                elif isinstance(module, nn.Identity) or get_operation(name).kind == "pool":
                    poolings.setdefault(name, []).append(one)
                elif isinstance(module, FactorizedReduction):
                    reductions.setdefault(source, []).append(one)
                elif not isinstance(module, Zero):
                    parts.append(_Other([one]))
        parts += [_Reductions(some) for some in reductions.values()]
        if poolings:
            parts.append(_Poolings(poolings, len(sources), stride, nowhere=len(space.edges) * len(column)))
        chains = [_Chain(some, stride) for some in shapes.values()]
        alone = [_Convolutions([_Chain([one], stride)]) for some in shapes.values() for one in some]
        self._side_by_side = _Parts([_Convolutions(chains), *parts] if chains else parts)
        self._one_by_one = _Parts([*alone, *parts])

    def __call__(
        self, states: Sequence[Tensor], coefficients: Tensor, norms: NormPass
    ) -> Iterable[tuple[int, Tensor]]:
        sources = [_Source(states[source]) for source in self.sources]
        parts = self._side_by_side if sources[0].x.numel() <= SMALL else self._one_by_one
        received: list[tuple[int, Tensor]] = []
        for part, own in parts.with_coefficients(coefficients):
            received += zip(part.targets, part.run(sources, own, norms), strict=True)
        return received


class _Source:
    """A node's state, and what convolutions read of it, made when asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        kind = x.device.type
        self.precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

    @functools.cached_property
    def h(self) -> Tensor:
        return F.relu(self.x.to(self.precision))

    @functools.cached_property
    def every_other(self) -> Tensor:
        """Every other row and column."""
        return in_layout_of(self.h, self.h[:, :, ::2, ::2])


class _Part(ABC):
    """Candidates that run together."""

    def __init__(self, candidates: Sequence[_Candidate]) -> None:
        self.candidates = candidates
        self.targets = [one.target for one in candidates]
        """The nodes that receive the images of :meth:`run`."""
        self.places = [one.place for one in candidates]
        """Of the coefficients, in the matrix row by row."""

    @abstractmethod
    def run(self, sources: Sequence[_Source], coefficients: Tensor, norms: NormPass) -> Sequence[Tensor]:
        """What every target receives."""


class _Parts:
    """Parts, and where their coefficients are."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts
        self._places = torch.tensor([place for part in parts for place in part.places], dtype=torch.long)

    def with_coefficients(self, coefficients: Tensor) -> Iterable[tuple[_Part, Tensor]]:
        if self._places.device != coefficients.device:
            self._places = self._places.to(coefficients.device)
        flat = F.pad(coefficients.flatten(), (0, 1))  # behind the last one a zero
        own = flat.index_select(0, self._places).split([len(part.places) for part in self.parts])
        return zip(self.parts, own, strict=True)


# --- convolutions -----------------------------------------------------------------------------------------------------


def _shape(configuration: Configuration) -> tuple[int, tuple[int, ...]]:
    """What convolutions that run side by side have in common: dilation, if it does anything, and expansions."""
    return configuration.dilation if configuration.kernel > 1 else 1, configuration.expansions


class _Chain:
    """Convolutions of one shape side by side, a group of channels each; smaller kernels have zeros around them."""

    def __init__(self, candidates: Sequence[_Candidate], stride: int) -> None:
        self.candidates = candidates
        self.groups = len(candidates)
        modules = [one.module for one in candidates]
        self.layers = [[[m[at + i] for m in modules] for i in (1, 2, 3)] for at in range(0, len(modules[0]), LAYER)]
        """Of each layer the depthwise convolutions, the pointwise ones and the batch norms."""
        self.reach = max(module.configuration.kernel for module in modules) // 2
        self.dilation, _ = _shape(modules[0].configuration)
        self.stride = stride

    def enter(self, sources: Sequence[_Source]) -> Tensor:
        """What the first depthwise convolutions give."""
        dilation, stride = self.dilation, self.stride
        skips = stride == 2 and (dilation % 2 == 0 or self.reach == 0)
        if skips:  # they read every other row and column only; among these the stride is 1
            dilation, stride = max(dilation // 2, 1), 1
        read = dict.fromkeys(one.source for one in self.candidates)
        images = [sources[source].every_other if skips else sources[source].h for source in read]
        weight = self._kernels(0, images[0], dilation)
        reach = weight.shape[-1] // 2
        order = [list(read).index(one.source) for one in self.candidates]
        if stride == 1 or dilation == 1:
            return depthwise_side_by_side(images, order, weight, dilation if reach else 1, stride)
        wide = torch.cat([images[place] for place in order], dim=1)
        return F.conv2d(wide, weight, None, stride, dilation * reach, dilation, groups=len(weight))

    def go_on(self, layer: int, image: Tensor) -> Tensor:
        """What the depthwise convolutions of a later layer give."""
        weight = self._kernels(layer, image, self.dilation)
        return depthwise(image, weight, self.dilation if weight.shape[-1] > 1 else 1)

    def maps(self, layer: int) -> Tensor:
        """The pointwise convolutions of a layer: (groups, outputs, inputs)."""
        return torch.stack([module.weight for module in self.layers[layer][1]]).flatten(2)

    def _kernels(self, layer: int, image: Tensor, dilation: int) -> Tensor:
        """The depthwise kernels of a layer, all of one size."""
        reach = min(self.reach, (max(image.shape[2:]) - 1) // dilation)  # farther taps see nothing but padding
        modules = self.layers[layer][0]
        borders = [reach - module.kernel_size[0] // 2 for module in modules]  # below zero, they cut the kernel
        weights = [F.pad(m.weight, [b] * 4) if b else m.weight for m, b in zip(modules, borders, strict=True)]
        return (weights[0] if len(weights) == 1 else torch.cat(weights)).to(image.dtype)


class _Convolutions(_Part):
    """Chains of convolutions, layer by layer; the batch norms of maps of one size are folded together."""

    def __init__(self, chains: Sequence[_Chain]) -> None:
        super().__init__([one for chain in chains for one in chain.candidates])
        self.chains = chains
        self.depth = max(len(chain.layers) for chain in chains)

    def run(self, sources: Sequence[_Source], coefficients: Tensor, norms: NormPass) -> Sequence[Tensor]:
        own = dict(zip(self.chains, coefficients.split([chain.groups for chain in self.chains]), strict=True))
        images: dict[_Chain, Tensor] = {}
        with torch.autocast(coefficients.device.type, enabled=False):
            for layer in range(self.depth):
                chains = [chain for chain in self.chains if layer < len(chain.layers)]
                z = {chain: chain.go_on(layer, images[chain]) if layer else chain.enter(sources) for chain in chains}
                for chain, (maps, bias) in self._fold(layer, z, norms).items():
                    last = layer + 1 == len(chain.layers)
                    if last:
                        maps, bias = maps * own[chain][:, None, None], bias * own[chain][:, None]
                    precision = z[chain].dtype
                    image = pointwise(z[chain], maps.to(precision), bias.to(precision).flatten())
                    images[chain] = image if last else F.relu(image)
        return [image for chain in self.chains for image in images[chain].chunk(chain.groups, dim=1)]

    def _fold(self, layer: int, z: Mapping[_Chain, Tensor], norms: NormPass) -> dict[_Chain, tuple[Tensor, Tensor]]:
        """The maps of a layer with their batch norms folded in, and the biases; all of one size in one step."""
        sizes: dict[torch.Size, dict[_Chain, Tensor]] = {}
        for chain in z:
            maps = chain.maps(layer)
            sizes.setdefault(maps.shape[1:], {})[chain] = maps
        found: dict[_Chain, tuple[Tensor, Tensor]] = {}
        for alike in sizes.values():
            own = [norm for chain in alike for norm in chain.layers[layer][2]]
            folded = folded_norms(torch.cat(list(alike.values())), [z[chain] for chain in alike], own, norms)
            parts = zip(*(stack.split([chain.groups for chain in alike]) for stack in folded), strict=True)
            found.update(zip(alike, parts, strict=True))
        return found


# --- everything else --------------------------------------------------------------------------------------------------


class _Poolings(_Part):
    """Poolings and identities of all edges, each once a source; an edge that lacks one has a coefficient of zero.

    Args:
        kinds: the candidates of each kind.
        sources: how many nodes leave.
        stride: of the poolings.
        nowhere: the place of a coefficient that is zero.
    """

    def __init__(self, kinds: Mapping[str, Sequence[_Candidate]], sources: int, stride: int, nowhere: int) -> None:
        super().__init__([one for kind in kinds.values() for one in kind])
        self.targets = sorted(set(self.targets))
        self.stride = stride
        self.kinds = len(kinds)
        self.pools: list[PoolCandidate] = []
        self.skip: int | None = None
        edges = [(source, target) for target in self.targets for source in range(sources)]
        grids = [{(one.source, one.target): one for one in kind} for kind in kinds.values()]
        self.places = [grid[edge].place if edge in grid else nowhere for edge in edges for grid in grids]
        for column, grid in enumerate(grids):
            module = next(iter(grid.values())).module
            if isinstance(module, nn.Identity):
                self.skip = column
            else:
                norms = tuple(grid[edge].module[1] if edge in grid else None for edge in edges)
                self.pools.append(PoolCandidate(column, module[0], norms))

    def run(self, sources: Sequence[_Source], coefficients: Tensor, norms: NormPass) -> Sequence[Tensor]:
        candidates = NodeCandidates(
            targets=len(self.targets),
            sources=len(sources),
            stride=self.stride,
            convolutions=(),
            pools=self.pools,
            skip=self.skip,
            norms=norms,
        )
        x = sources[0].x if len(sources) == 1 else torch.cat([source.x for source in sources], dim=1)
        return leave_node(candidates, x, coefficients.view(-1, self.kinds)).chunk(len(self.targets), dim=1)


class _Reductions(_Part):
    """The skip connections of stride 2 that leave one node."""

    def run(self, sources: Sequence[_Source], coefficients: Tensor, norms: NormPass) -> Sequence[Tensor]:
        modules = [one.module for one in self.candidates]
        x = sources[self.candidates[0].source].x
        return leave_reduced(modules, 1, x, coefficients, norms).chunk(len(modules), dim=1)


class _Other(_Part):
    """An operation without a rule of its own; its batch norms look after themselves."""

    def run(self, sources: Sequence[_Source], coefficients: Tensor, norms: NormPass) -> Sequence[Tensor]:
        (one,) = self.candidates
        return [coefficients[0] * one.module(sources[one.source].x)]
