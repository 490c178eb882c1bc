"""The fused search cell where every edge has candidates of its own, as in PR-DARTS (§3.2.2; Chapter 5).

:class:`~nasbook.supernets.FusedCell` takes one candidate of all edges that leave a node at once. With pools, what
leaves a node are convolutions of a dozen configurations, most of them on one or two edges. So here

* one ReLU serves all edges of a node, and so does one pooling of a kind;
* convolutions of one configuration run side by side, a group of channels each, while the images are small; where they
  are large, every convolution runs alone, which suits the caches of a CPU;
* a layer is a depthwise convolution and a pointwise map with its batch norm folded in
  (:mod:`nasbook.supernets.folded_norm`); the last map has the coefficients folded in too.

Autograd puts the backward pass together from those of a few steps, which are written out and can be differentiated
any number of times. As in FusedCell, what is kept for it are the images that the convolutions and the maps read.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.operations import FactorizedReduction, MorphableConvolution, Pool, Zero
from nasbook.operations.depthwise import depthwise, strided_depthwise
from nasbook.operations.morphable import LAYER
from nasbook.operations.pointwise import channel_sums, channels_last, grouped_map, grouped_products, in_layout_of
from nasbook.supernets.cells import SearchCell, candidates_of
from nasbook.supernets.folded_norm import FoldedNorm, Statistics, fold, fold_norms, moments, unfold_gradients
from nasbook.supernets.fused import Departure, FusedCell, leave_reduced
from nasbook.supernets.fused_function import NodeCandidates, PoolCandidate, leave_node

SIDE_BY_SIDE = 2**17
"""Convolutions of one configuration run side by side while a node has at most so many numbers."""


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
    """Of its coefficient, all rows one after another."""
    module: Any


class _RaggedDeparture(Departure):
    """All that leaves some nodes, in parts of candidates that run together."""

    def __init__(self, cell: SearchCell, sources: tuple[int, ...]) -> None:
        space = cell.space
        self.sources = sources
        stride = cell.input_stride if sources[0] < space.inputs else 1
        columns = {name: place for place, name in enumerate(space.operations)}
        alike: dict[Any, list[_Candidate]] = {}
        for row, (source, target) in enumerate(space.edges):
            for name, module in candidates_of(cell.edges[row]).items() if source in sources else ():
                convolution = isinstance(module, MorphableConvolution)
                candidate = _Candidate(sources.index(source), target, row * len(columns) + columns[name], module)
                alike.setdefault(module.configuration if convolution else (source, name), []).append(candidate)
        groups = [group for group in alike.values() if not isinstance(group[0].module, Zero)]
        self._places = torch.tensor([one.place for group in groups for one in group], dtype=torch.long)
        self._side_by_side = [_part(group, stride) for group in groups]
        self._one_by_one: list[_Part] = []
        for group, part in zip(groups, self._side_by_side, strict=True):
            alone = isinstance(part, _Convolutions) and len(group) > 1
            self._one_by_one += [_part([one], stride) for one in group] if alone else [part]

    def __call__(
        self,
        states: Sequence[Tensor],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Iterable[tuple[int, Tensor]]:
        if self._places.device != coefficients.device:
            self._places = self._places.to(coefficients.device)
        sources = [_Source(states[source]) for source in self.sources]
        parts = self._side_by_side if states[self.sources[0]].numel() <= SIDE_BY_SIDE else self._one_by_one
        weights = coefficients.flatten().index_select(0, self._places).split([len(part.targets) for part in parts])
        received: list[tuple[int, Tensor]] = []
        for part, own in zip(parts, weights, strict=True):
            images = part.run(sources, own, training, epsilon, statistics)
            received += zip(part.targets, images.chunk(len(part.targets), dim=1), strict=True)
        return received


class _Source:
    """A node's state, and what convolutions read of it, made when asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @functools.cached_property
    def h(self) -> Tensor:
        half = torch.is_autocast_enabled(self.x.device.type)
        return F.relu(self.x.to(torch.get_autocast_dtype(self.x.device.type)) if half else self.x)

    @functools.cached_property
    def every_other(self) -> Tensor:
        """Every other row and column."""
        return in_layout_of(self.h, self.h[:, :, ::2, ::2])


class _Part(ABC):
    """Candidates that run together."""

    def __init__(self, candidates: Sequence[_Candidate], stride: int) -> None:
        self.sources = tuple(one.source for one in candidates)
        self.targets = tuple(one.target for one in candidates)
        self.modules = tuple(one.module for one in candidates)
        self.stride = stride

    @abstractmethod
    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Tensor:
        """The candidates' outputs times their coefficients, side by side: (batch, candidates·C, height, width)."""


class _Convolutions(_Part):
    """Convolutions of one configuration, each a group of channels; on any edges."""

    def __init__(self, candidates: Sequence[_Candidate], stride: int) -> None:
        super().__init__(candidates, stride)
        configuration = self.modules[0].configuration
        self.dilation = configuration.dilation if configuration.kernel > 1 else 1
        places = range(0, len(self.modules[0]), LAYER)
        self.layers = [[[module[at + i] for module in self.modules] for i in (1, 2, 3)] for at in places]

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Tensor:
        groups, last = len(self.modules), len(self.layers) - 1
        dilation, stride = self.dilation, self.stride
        if stride == 2 and (dilation % 2 == 0 or self.layers[0][0][0].kernel_size == (1, 1)):
            # Of the image it reads every other row and column only; on these it has stride 1.
            dilation, stride = max(dilation // 2, 1), 1
            image = _side_by_side([sources[source].every_other for source in self.sources])
        else:
            image = _side_by_side([sources[source].h for source in self.sources])
        with torch.autocast(image.device.type, enabled=False):
            for place, (kernels, weights, norms) in enumerate(self.layers):
                kernel = _stacked(kernels).to(image.dtype)
                z = _depthwise(image, kernel, dilation, stride if place == 0 else 1)
                maps = _stacked(weights).flatten(1).view(groups, -1, z.shape[1] // groups)
                maps, bias = _folded(maps, z, norms, epsilon, training, statistics)
                if place == last:
                    maps, bias = maps * coefficients[:, None, None], bias * coefficients[:, None]
                image = pointwise(z, maps.to(z.dtype), bias.to(z.dtype).flatten())
                if place != last:
                    image = F.relu(image)
                dilation = self.dilation
        return image


class _Pools(_Part):
    """One pooling, or none, of one node for several targets."""

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Tensor:
        pools = []
        if isinstance(self.modules[0], nn.Sequential):
            pools.append(PoolCandidate(0, self.modules[0][0], tuple(module[1] for module in self.modules)))
        candidates = NodeCandidates(
            targets=len(self.targets),
            sources=1,
            stride=self.stride,
            convolutions=(),
            pools=pools,
            skip=None if pools else 0,
            epsilon=epsilon,
            training=training,
            statistics=statistics,
        )
        return leave_node(candidates, sources[self.sources[0]].x, coefficients[:, None])


class _Reductions(_Part):
    """The skip connections of stride 2 of one node."""

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Tensor:
        x = sources[self.sources[0]].x
        return leave_reduced(self.modules, 1, x, coefficients, training, epsilon, statistics)


class _Others(_Part):
    """Operations without a rule of their own, module by module; their batch norms look after themselves."""

    def run(
        self,
        sources: Sequence[_Source],
        coefficients: Tensor,
        training: bool,
        epsilon: float,
        statistics: list[Statistics],
    ) -> Tensor:
        x = sources[self.sources[0]].x
        return torch.cat([c * module(x) for c, module in zip(coefficients, self.modules, strict=True)], dim=1)


def _part(candidates: Sequence[_Candidate], stride: int) -> _Part:
    """How such candidates run."""
    module = candidates[0].module
    kind: type[_Part] = _Others
    if isinstance(module, MorphableConvolution):
        kind = _Convolutions
    elif isinstance(module, nn.Identity) or (isinstance(module, nn.Sequential) and isinstance(module[0], Pool)):
        kind = _Pools
    elif isinstance(module, FactorizedReduction):
        kind = _Reductions
    return kind(candidates, stride)


def _side_by_side(images: Sequence[Tensor]) -> Tensor:
    return images[0] if len(images) == 1 else torch.cat(list(images), dim=1)


def _stacked(modules: Sequence[nn.Conv2d]) -> Tensor:
    return modules[0].weight if len(modules) == 1 else torch.cat([module.weight for module in modules])


def _depthwise(x: Tensor, kernel: Tensor, dilation: int, stride: int) -> Tensor:
    if stride == 1:
        return depthwise(x, kernel, dilation)
    if dilation == 1:
        return strided_depthwise(x, kernel)
    padding = dilation * (kernel.shape[-1] // 2)
    return F.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation, groups=x.shape[1])


# --- steps with a backward pass of their own --------------------------------------------------------------------------


def pointwise(x: Tensor, maps: Tensor, bias: Tensor) -> Tensor:
    """:func:`~nasbook.operations.pointwise.grouped_map` whose gradients are as fast as it is itself."""
    return _Pointwise.apply(x, maps, bias) if torch.is_grad_enabled() else _map(x, maps, bias)


def _map(x: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    if len(maps) == 1 and channels_last(x):  # faster than the product that grouped_map would take
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


def _folded(
    weight: Tensor,
    z: Tensor,
    norms: Sequence[nn.BatchNorm2d],
    epsilon: float,
    training: bool,
    statistics: list[Statistics],
) -> tuple[Tensor, Tensor]:
    """Maps and biases of pointwise maps of ``z`` with the batch norms behind them, in either mode."""
    if not training:
        norm = fold_norms(weight, [z], len(weight), norms, epsilon, training, statistics)
        return norm.maps, norm.bias
    maps, bias, mean, variance = _Fold.apply(weight, z, epsilon)
    statistics.append(Statistics.of(norms, mean, variance, z.numel() // z.shape[1]))
    return maps, bias


class _Fold(torch.autograd.Function):
    """Batch norms folded into the maps in front of them, by the moments of what the maps read."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, z: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm, mean, variance = fold(weight, moments([z], len(weight)), epsilon)
        ctx.save_for_backward(weight, z, *norm)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, variance)
        return norm.maps, norm.bias, mean, variance

    @staticmethod
    def backward(
        ctx: Any, for_maps: Tensor, for_bias: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, None]:
        weight, z, *norm = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            folded = FoldedNorm(*norm)
            if torch.is_grad_enabled():  # to be differentiated again, it must be a function of weight and z
                folded, _, _ = fold(weight, moments([z], len(weight)), ctx.epsilon)
            count = z.numel() // z.shape[1]
            for_weight, quadratic, linear = unfold_gradients(weight, folded, for_maps, for_bias, count)
            assert quadratic is not None and linear is not None
            return for_weight, _map(z, quadratic.to(z.dtype), linear.to(z.dtype).flatten()), None
