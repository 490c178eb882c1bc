"""The fused search cell where every edge has candidates of its own, as in PR-DARTS (§3.2.2; Chapter 5).

:class:`~nasbook.supernets.FusedCell` takes one candidate of all edges that leave a node at once. With pools, what
leaves a node are convolutions of a dozen configurations, most of them on one or two edges only. So here

* one ReLU serves all edges of a node, and so does one pooling of a kind;
* a layer of a convolution is a depthwise convolution and a pointwise map with its batch norm folded in
  (:mod:`nasbook.supernets.folded_norm`); the last map has the coefficients folded in too;
* while the images are small, calls cost more than arithmetic: convolutions of one dilation and of equal widths run
  side by side, a group of channels each, the smaller kernels with zeros around them, and all batch norms of a layer
  are folded at once. Where the images are large, every convolution runs alone, which suits the caches of a CPU.

Autograd puts the backward pass together from those of a few steps, which are written out and can be differentiated
any number of times. As in FusedCell, what is kept for it are the images that the convolutions and the maps read.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.operations import Configuration, FactorizedReduction, MorphableConvolution, Pool, Zero
from nasbook.operations.depthwise import depthwise, strided_depthwise
from nasbook.operations.morphable import LAYER
from nasbook.operations.pointwise import channel_sums, channels_last, grouped_map, grouped_products, in_layout_of
from nasbook.supernets.cells import SearchCell, candidates_of
from nasbook.supernets.folded_norm import (
    FoldedNorm,
    Moments,
    Statistics,
    fold,
    fold_norms,
    moments,
    unfold_gradients,
)
from nasbook.supernets.fused import Departure, FusedCell, leave_reduced
from nasbook.supernets.fused_function import NodeCandidates, PoolCandidate, leave_node

SMALL = 2**15
"""Convolutions run side by side while the images of a node have at most so many numbers."""


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
        columns = {name: place for place, name in enumerate(space.operations)}
        convolutions: dict[Any, list[_Candidate]] = {}
        poolings: dict[str, list[_Candidate]] = {}
        reductions: dict[int, list[_Candidate]] = {}
        parts: list[_Part] = []
        for row, (source, target) in enumerate(space.edges):
            for name, module in candidates_of(cell.edges[row]).items() if source in sources else ():
                one = _Candidate(sources.index(source), target, row * len(columns) + columns[name], module)
                if isinstance(module, MorphableConvolution):
                    convolutions.setdefault(_shape(module.configuration), []).append(one)
                elif isinstance(module, nn.Identity) or (isinstance(module, nn.Sequential) and isinstance(module[0], Pool)):
                    poolings.setdefault(name, []).append(one)
                elif isinstance(module, FactorizedReduction):
                    reductions.setdefault(source, []).append(one)
                elif not isinstance(module, Zero):
                    parts.append(_Other([one]))
        parts += [_Reductions(group) for group in reductions.values()]
        if poolings:
            parts.append(_Poolings(poolings, len(sources), stride, nothing=len(space.edges) * len(columns)))
        chains = [_Chain(group, stride) for group in convolutions.values()]
        alone = [_Convolutions([_Chain([one], stride)]) for group in convolutions.values() for one in group]
        self._one_by_one = _Parts([*alone, *parts])
        self._side_by_side = _Parts([_Convolutions(chains), *parts] if chains else parts)

    def __call__(
        self,
        states: Sequence[Tensor],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Iterable[tuple[int, Tensor]]:
        small = states[self.sources[0]].numel() <= SMALL
        parts, weights = (self._side_by_side if small else self._one_by_one).with_weights(coefficients)
        sources = [_Source(states[source]) for source in self.sources]
        received: list[tuple[int, Tensor]] = []
        for part, own in zip(parts, weights, strict=True):
            received += zip(part.targets, part.run(sources, own, training, epsilon, statistics), strict=True)
        return received


class _Source:
    """A node's state, and what convolutions read of it, made when asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @functools.cached_property
    def h(self) -> Tensor:
        kind = self.x.device.type
        return F.relu(self.x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else self.x)

    @functools.cached_property
    def every_other(self) -> Tensor:
        """Every other row and column."""
        return in_layout_of(self.h, self.h[:, :, ::2, ::2])


class _Part(ABC):
    """Candidates that run together."""

    targets: Sequence[int]
    """The nodes that receive the images of :meth:`run`."""
    places: Sequence[int]
    """Of their coefficients, in the matrix row by row; one past its end where there is none."""

    @abstractmethod
    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Sequence[Tensor]:
        """What every target receives; notes what the batch norms saw."""


class _Parts:
    """Parts, and where their coefficients are."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts
        self._places = torch.tensor([place for part in parts for place in part.places], dtype=torch.long)

    def with_weights(self, coefficients: Tensor) -> tuple[Sequence[_Part], Sequence[Tensor]]:
        """The parts, and the coefficients of each."""
        if self._places.device != coefficients.device:
            self._places = self._places.to(coefficients.device)
        flat = F.pad(coefficients.flatten(), (0, 1))
        return self.parts, flat.index_select(0, self._places).split([len(part.places) for part in self.parts])


# --- convolutions -----------------------------------------------------------------------------------------------------


def _shape(configuration: Configuration) -> tuple[int, tuple[int, ...]]:
    """What convolutions that run side by side have in common."""
    return (configuration.dilation if configuration.kernel > 1 else 1), configuration.expansions


class _Chain:
    """Convolutions of one shape on any edges, side by side: a group of channels each."""

    def __init__(self, candidates: Sequence[_Candidate], stride: int) -> None:
        self.candidates = candidates
        self.groups = len(candidates)
        modules = [one.module for one in candidates]
        self.layers = [[[m[at + i] for m in modules] for i in (1, 2, 3)] for at in range(0, len(modules[0]), LAYER)]
        """Depthwise convolutions, pointwise convolutions, batch norms of each layer."""
        self.kernel = max(module.configuration.kernel for module in modules)
        self.dilation, _ = _shape(modules[0].configuration)
        self.stride = stride

    def enter(self, sources: Sequence[_Source]) -> Tensor:
        """What the first depthwise convolutions give."""
        dilation, stride = self.dilation, self.stride
        skips = stride == 2 and (dilation % 2 == 0 or self.kernel == 1)
        if skips:  # all that they read is every other row and column, and on these the stride is 1
            dilation, stride = max(dilation // 2, 1), 1
        images = [sources[one.source].every_other if skips else sources[one.source].h for one in self.candidates]
        return self._depthwise(0, images[0] if self.groups == 1 else torch.cat(images, dim=1), dilation, stride)

    def go_on(self, layer: int, image: Tensor) -> Tensor:
        """What the depthwise convolutions of a later layer give."""
        return self._depthwise(layer, image, self.dilation, 1)

    def maps(self, layer: int) -> Tensor:
        """The pointwise convolutions' matrices: (groups, outputs, inputs)."""
        weight = torch.stack([module.weight for module in self.layers[layer][1]])
        return weight.flatten(2)

    def _depthwise(self, layer: int, image: Tensor, dilation: int, stride: int) -> Tensor:
        modules = self.layers[layer][0]
        reach = min(self.kernel // 2, (max(image.shape[2:]) - 1) // dilation)  # farther taps see nothing but padding
        size = 2 * reach + 1
        # A border below zero cuts a part of the kernel off.
        borders = [(size - module.kernel_size[0]) // 2 for module in modules]
        weights = [F.pad(m.weight, [b] * 4) if b else m.weight for m, b in zip(modules, borders, strict=True)]
        weight = (weights[0] if len(weights) == 1 else torch.cat(weights)).to(image.dtype)
        if stride == 1:
            return depthwise(image, weight, dilation if reach else 1)
        if dilation == 1:
            return strided_depthwise(image, weight)
        return F.conv2d(image, weight, None, stride, dilation * reach, dilation, groups=len(weight))


class _Convolutions(_Part):
    """Chains of convolutions, layer by layer; the batch norms of a layer are folded together."""

    def __init__(self, chains: Sequence[_Chain]) -> None:
        self.chains = chains
        self.targets = [one.target for chain in chains for one in chain.candidates]
        self.places = [one.place for chain in chains for one in chain.candidates]
        self.depth = max(len(chain.layers) for chain in chains)

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Sequence[Tensor]:
        own = dict(zip(self.chains, coefficients.split([chain.groups for chain in self.chains]), strict=True))
        images: dict[_Chain, Tensor] = {}
        for layer in range(self.depth):
            alike: dict[tuple[int, ...], dict[_Chain, tuple[Tensor, Tensor]]] = {}
            for chain in self.chains:
                if layer < len(chain.layers):
                    z = chain.go_on(layer, images[chain]) if layer else chain.enter(sources)
                    maps = chain.maps(layer)
                    alike.setdefault(tuple(maps.shape[1:]), {})[chain] = (z, maps)
            for some in alike.values():
                with torch.autocast(coefficients.device.type, enabled=False):
                    norms = [norm for chain in some for norm in chain.layers[layer][2]]
                    zs = [z for z, _ in some.values()]
                    folded = folded_norms(torch.cat([maps for _, maps in some.values()]), zs, norms, epsilon, training, statistics)
                    sizes = [chain.groups for chain in some]
                    for chain, z, maps, bias in zip(some, zs, *(part.split(sizes) for part in folded), strict=True):
                        if layer + 1 == len(chain.layers):
                            c = own[chain][:, None]
                            images[chain] = pointwise(z, maps * c[:, :, None], bias * c)
                        else:
                            images[chain] = F.relu(pointwise(z, maps, bias))
        return [part for chain in self.chains for part in images[chain].chunk(chain.groups, dim=1)]


# --- everything else --------------------------------------------------------------------------------------------------


class _Poolings(_Part):
    """Poolings and identities of all edges: by every target's coefficients, with zeros where an edge lacks one.

    Args:
        kinds: the candidates of each kind.
        sources: how many nodes leave.
        stride: of the poolings.
        nothing: the place of a coefficient that is zero.
    """

    def __init__(self, kinds: Mapping[str, Sequence[_Candidate]], sources: int, stride: int, nothing: int) -> None:
        self.targets = sorted({one.target for kind in kinds.values() for one in kind})
        self.stride = stride
        edges = [(source, target) for target in self.targets for source in range(sources)]
        grids = [{(one.source, one.target): one for one in kind} for kind in kinds.values()]
        self.places = [grid[edge].place if edge in grid else nothing for edge in edges for grid in grids]
        self.columns = len(grids)
        self.pools: list[PoolCandidate] = []
        self.skip: int | None = None
        for column, grid in enumerate(grids):
            module = next(iter(grid.values())).module
            if isinstance(module, nn.Identity):
                self.skip = column
            else:
                norms = tuple(grid[edge].module[1] if edge in grid else None for edge in edges)
                self.pools.append(PoolCandidate(column, module[0], norms))

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Sequence[Tensor]:
        candidates = NodeCandidates(
            targets=len(self.targets),
            sources=len(sources),
            stride=self.stride,
            convolutions=(),
            pools=self.pools,
            skip=self.skip,
            epsilon=epsilon,
            training=training,
            statistics=statistics,
        )
        x = sources[0].x if len(sources) == 1 else torch.cat([source.x for source in sources], dim=1)
        return leave_node(candidates, x, coefficients.view(-1, self.columns)).chunk(len(self.targets), dim=1)


class _Reductions(_Part):
    """The skip connections of stride 2 that leave one node."""

    def __init__(self, candidates: Sequence[_Candidate]) -> None:
        self.source = candidates[0].source
        self.targets = [one.target for one in candidates]
        self.places = [one.place for one in candidates]
        self.modules = [one.module for one in candidates]

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Sequence[Tensor]:
        x = sources[self.source].x
        images = leave_reduced(self.modules, 1, x, coefficients, training, epsilon, statistics)
        return images.chunk(len(self.targets), dim=1)


class _Other(_Part):
    """An operation without a rule of its own; its batch norms look after themselves."""

    def __init__(self, candidates: Sequence[_Candidate]) -> None:
        (self.candidate,) = candidates
        self.targets = [self.candidate.target]
        self.places = [self.candidate.place]

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Sequence[Tensor]:
        return [coefficients[0] * self.candidate.module(sources[self.candidate.source].x)]


# --- steps with a backward pass of their own --------------------------------------------------------------------------


def pointwise(x: Tensor, maps: Tensor, bias: Tensor) -> Tensor:
    """:func:`~nasbook.operations.pointwise.grouped_map` in the precision of ``x``, with gradients as fast as it is."""
    return _Pointwise.apply(x, maps.to(x.dtype), bias.to(x.dtype).flatten())


def _map(x: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    if len(maps) == 1 and channels_last(x) and x.numel() > SMALL:  # faster there than the product of grouped_map
        return F.conv2d(x, maps[0][:, :, None, None], bias)
    return grouped_map(x, maps, bias)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, maps)
        return _map(x, maps, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, maps = ctx.saved_tensors
        gradient = in_layout_of(x, gradient)
        for_x = _map(gradient, maps.mT) if ctx.needs_input_grad[0] else None
        return for_x, grouped_products(x, gradient, len(maps)), channel_sums(gradient)


def folded_norms(
    weight: Tensor,
    images: Sequence[Tensor],
    norms: Sequence[nn.BatchNorm2d],
    epsilon: float,
    training: bool,
    statistics: list[Statistics],
) -> tuple[Tensor, Tensor]:
    """:func:`~nasbook.supernets.folded_norm.fold_norms` of images with any numbers of groups: maps and biases."""
    if not training:
        norm = fold_norms(weight, images, 0, norms, epsilon, False, statistics)
        return norm.maps, norm.bias
    maps, bias, mean, variance = _Fold.apply(epsilon, weight, *images)
    statistics.append(Statistics.of(norms, mean, variance, images[0].numel() // images[0].shape[1]))
    return maps, bias


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, epsilon: float, weight: Tensor, *images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm, mean, variance = _fold(epsilon, weight, images)
        ctx.save_for_backward(weight, *norm, *images)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, variance)
        return norm.maps, norm.bias, mean, variance

    @staticmethod
    def backward(ctx: Any, for_maps: Tensor, for_bias: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        folded, images = FoldedNorm(*saved[: len(FoldedNorm._fields)]), saved[len(FoldedNorm._fields) :]
        count = images[0].numel() // images[0].shape[1]
        with torch.autocast(weight.device.type, enabled=False):
            if torch.is_grad_enabled():  # to be differentiated again, it must be a function of weight and images
                folded, _, _ = _fold(ctx.epsilon, weight, images)
            for_weight, quadratic, linear = unfold_gradients(weight, folded, for_maps, for_bias, count)
            assert quadratic is not None and linear is not None
            sizes = [image.shape[1] // weight.shape[2] for image in images]
            parts = zip(images, quadratic.split(sizes), linear.split(sizes), strict=True)
            for_images = [_map(z, q.to(z.dtype), v.to(z.dtype).flatten()) for z, q, v in parts]
        return None, for_weight, *for_images


def _fold(epsilon: float, weight: Tensor, images: Sequence[Tensor]) -> tuple[FoldedNorm, Tensor, Tensor]:
    some = [moments([image], image.shape[1] // weight.shape[2]) for image in images]
    return fold(weight, Moments(*(torch.cat(values) for values in zip(*some, strict=True))), epsilon)
