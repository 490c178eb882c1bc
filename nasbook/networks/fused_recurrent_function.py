"""The Two-to-One and the DARTS cell over a whole sequence, with their backward pass written out.

Notation: T time steps, B examples, H hidden units, N nodes besides node 0, which is h_{t-1}; the last one is h_t. A
node's value is

    level + Σ over what enters it  c φ(A s + B x + b)  +  c s  +  c (S x)  +  c (P x) * s

with s the value of the node that each of them leaves, φ(a) = sigmoid(f a) or ReLU(a), f a factor that is given, and a
coefficient c for each. As tanh(a) = 2 sigmoid(2a) − 1, one sigmoid computes tanh too: f is 2, and the caller puts 2
into the coefficient and −1 into the level. Maps are stacked in blocks of H rows, one for each candidate. Those with an
activation are ordered by the node that they leave, and there those with a sigmoid come before those with a ReLU.

All that depends on x only is one product before the loop over time, and the gradients of maps and coefficients are
products after the loop of the backward pass. In between, there is a handful of calls for each node and time step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nasbook.networks.fused_recurrent_workspaces import Call, Computation, Kind, Workspace, ordinary_tensors


@dataclass(frozen=True)
class Source:
    """What leaves one node."""

    bounded: int
    """Candidates with a sigmoid or tanh, of all targets."""
    rectified: int
    """Candidates with a ReLU."""
    first: int = 1
    """How far the nearest target is: 1 for the next node."""
    targets: int = 1
    """Number of nodes from the nearest to the farthest target."""
    identity: bool = False
    """Whether the value itself enters a target: c s."""
    sums: int = 0
    """How many c (S x) the next node receives."""
    products: int = 0
    """How many c (P x) * s the next node receives."""

    @property
    def candidates(self) -> int:
        """Those with an activation."""
        return self.bounded + self.rectified

    @property
    def sizes(self) -> tuple[int, int]:
        """How many coefficients candidates with an activation have, target by target, and how many identity has."""
        return self.targets * self.candidates, self.targets * self.identity


@dataclass(frozen=True)
class Graph(Computation):
    """A cell whose nodes sum up what enters them."""

    hidden: int
    """H."""
    sources: tuple[Source, ...]
    """Of node 0 and all others but the last."""
    fed: int
    """So many of the candidates with an activation, the first ones, read x."""
    factors: tuple[float, ...]
    """f of all candidates with an activation; 1 for ReLU."""

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.sources)

    @functools.cached_property
    def blocks(self) -> tuple[slice, ...]:
        """For every source its candidates with an activation."""
        return _one_after_another([source.candidates for source in self.sources])

    @functools.cached_property
    def linear_blocks(self) -> tuple[slice, ...]:
        """For every source its sums, then its products, among all of them."""
        return _one_after_another([source.sums + source.products for source in self.sources])

    @functools.cached_property
    def rows(self) -> tuple[slice, ...]:
        """For every source the rows of its candidates with an activation."""
        return tuple(slice(block.start * self.hidden, block.stop * self.hidden) for block in self.blocks)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """How many coefficients there are: of the sources, of all sums and products, and levels."""
        sizes = [size for source in self.sources for size in source.sizes]
        return [*sizes, self.linear_blocks[-1].stop, self.nodes]

    def mix(self, coefficients: Float[Tensor, "coefficients"]) -> Mix:
        """The coefficients, sorted."""
        *parts, linear, levels = coefficients.split(self.sizes)
        activated = [part.view(source.targets, -1) for part, source in zip(parts[::2], self.sources, strict=True)]
        return Mix(activated, [part.view(-1, 1) for part in parts[1::2]], linear, levels)

    def workspace(self, kind: Kind) -> Workspace:
        return NodeWorkspace(self, kind)

    def plain(self, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
        inputs, state, input_maps, biases, linear_maps, state_maps, coefficients = Arguments(*tensors)
        hidden = self.hidden
        mix, factors = self.mix(coefficients), coefficients.new_tensor(self.factors)
        fed = F.linear(inputs, input_maps, biases)
        linear = F.linear(inputs, linear_maps).unflatten(-1, (len(mix.linear), hidden)) * mix.linear[:, None]
        states = []
        for step in range(len(inputs)):
            values = [state, *(level.expand_as(state) for level in mix.levels)]
            for place, source in enumerate(self.sources):
                s = values[place]
                block, rows = self.blocks[place], self.rows[place]
                received = [torch.zeros_like(s)] * source.targets
                if source.candidates:
                    a = s @ state_maps[rows].T
                    if block.stop <= self.fed:
                        a = a + fed[step][:, rows]
                    parts = (a.unflatten(-1, (source.candidates, hidden)) * factors[block, None]).movedim(1, 0)
                    activated = torch.cat([parts[: source.bounded].sigmoid(), parts[source.bounded :].relu()])
                    received = list(torch.tensordot(mix.activated[place], activated, 1))
                if source.identity:
                    received = [part + c * s for part, c in zip(received, mix.identity[place], strict=True)]
                if source.sums + source.products:
                    images = linear[step][:, self.linear_blocks[place]]
                    received[0] = received[0] + images[:, : source.sums].sum(1) + images[:, source.sums :].sum(1) * s
                for target, part in enumerate(received, place + source.first):
                    values[target] = values[target] + part
            state = values[-1]
            states.append(state)
        return torch.stack(states)


class Mix(NamedTuple):
    """All coefficients."""

    activated: Sequence[Float[Tensor, "targets candidates"]]
    """Of every source."""
    identity: Sequence[Float[Tensor, "targets 1"]]
    """Of every source; empty where it has none."""
    linear: Float[Tensor, "linear"]
    """Of all sums and products."""
    levels: Float[Tensor, "nodes"]
    """Of all nodes but node 0."""


class Arguments(NamedTuple):
    """What a pass gets."""

    inputs: Float[Tensor, "time batch inputs"]
    """x_t."""
    state: Float[Tensor, "batch hidden"]
    """h before the first step."""
    input_maps: Float[Tensor, "fed inputs"]
    """B of the first ``fed`` candidates with an activation."""
    biases: Float[Tensor, "fed"] | None
    """Their b."""
    linear_maps: Float[Tensor, "linear inputs"]
    """S and P of all sums and products; for every source the sums come first."""
    state_maps: Float[Tensor, "activated hidden"]
    """A of all candidates with an activation."""
    coefficients: Float[Tensor, "coefficients"]
    """For every source, as many as its ``sizes`` say; then those of all sums and products, in the order of the maps;
    then the levels of all nodes."""


class _Needs(NamedTuple):
    """Which gradients are asked for."""

    inputs: bool
    state: bool
    input_maps: bool
    biases: bool
    linear_maps: bool
    state_maps: bool
    coefficients: bool


class NodeWorkspace(Workspace):
    """What a pass of a :class:`Graph` needs.

    Values stand in one row: the first state, then all nodes of the first step, of the second step and so on. So h_t is
    there once, as the last node of its step and as node 0 of the next. Gradients of values stand likewise.

    Args:
        graph: what runs.
        kind: T and B, precision and device.
    """

    def __init__(self, graph: Graph, kind: Kind) -> None:
        self.graph, self.kind = graph, kind
        steps, batch = self.steps, self.batch = kind.steps, kind.batch
        like = torch.empty(0, dtype=kind.dtype, device=kind.device)
        hidden, nodes, count = graph.hidden, graph.nodes, len(graph.factors)
        linear = graph.linear_blocks[-1].stop
        self.coefficients = like.new_empty(sum(graph.sizes))
        self.mix = graph.mix(self.coefficients)
        self.factors = like.new_tensor(graph.factors)
        self.row_factors = self.factors.repeat_interleave(hidden)
        self.state_maps = like.new_empty(count * hidden, hidden)
        self.fed = like.new_empty(steps, batch, graph.fed * hidden)
        self.linear = like.new_empty(steps, batch, linear, hidden)
        self.values = like.new_empty(1 + steps * nodes, batch, hidden)
        self.activated = like.new_empty(steps, count, batch, hidden)
        self.scales = [like.new_empty(steps, batch, hidden) for source in graph.sources if source.products]
        self.kept = [self.values, self.linear, self.activated, *self.scales]
        self.before, self.loop = self._forward_calls()

    def forward(self, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
        inputs, state, input_maps, biases, linear_maps, state_maps, coefficients = Arguments(*tensors)
        nodes = self.graph.nodes
        flat = inputs.reshape(-1, inputs.shape[2])
        self.coefficients.copy_(coefficients)
        torch.mul(state_maps, self.row_factors[:, None], out=self.state_maps)
        if len(input_maps):
            factors = self.row_factors[: len(input_maps)]
            maps = (input_maps * factors[:, None]).T
            if biases is None:
                torch.mm(flat, maps, out=self.fed.flatten(0, 1))
            else:
                torch.addmm(biases * factors, flat, maps, out=self.fed.flatten(0, 1))
        if len(linear_maps):
            torch.mm(flat, linear_maps.T, out=self.linear.view(len(flat), -1))
        self.values[0] = state
        self.by_step(self.values).copy_(self.mix.levels[:, None])
        for call in self.before:
            call()
        for call in self.loop:
            call()
        return self.values[nodes::nodes].clone(memory_format=torch.contiguous_format)

    def by_step(self, values: Tensor) -> Float[Tensor, "time nodes units"]:
        """The values of all nodes but node 0, (batch · hidden) numbers each."""
        return values[1:].view(self.steps, self.graph.nodes, -1)

    def of_node(self, node: int, values: Tensor) -> Float[Tensor, "time batch hidden"]:
        """One node's values at all steps; those of node 0 are the last node's, one step late."""
        return values[node :: self.graph.nodes][: self.steps]

    def of_targets(self, place: int, values: Tensor) -> Float[Tensor, "time targets units"]:
        """The values of all nodes from a source's nearest to its farthest target."""
        source = self.graph.sources[place]
        nearest = place + source.first - 1
        return self.by_step(values)[:, nearest : nearest + source.targets]

    def _forward_calls(self) -> tuple[list[Call], list[Call]]:
        """What runs before the loop over time, and the loop."""
        before: list[Call] = []
        lanes: list[list[list[Call]]] = []
        scales = iter(self.scales)
        for place, source in enumerate(self.graph.sources):
            block = self.graph.linear_blocks[place]
            images, own = self.linear[:, :, block].unbind(2), self.mix.linear[block].unbind()
            following = self.of_node(place + 1, self.values)
            before += [partial(following.addcmul_, images[i], own[i]) for i in range(source.sums)]
            scale = None
            if source.products:
                scale = next(scales)
                before.append(partial(torch.mul, images[source.sums], own[source.sums], out=scale))
                before += [partial(scale.addcmul_, images[i], own[i]) for i in range(source.sums + 1, len(own))]
                if source.identity:
                    before.append(partial(scale.add_, self.mix.identity[place][0]))
            lanes.append(self._leave(place, source, scale))
        return before, [call for step in zip(*lanes, strict=True) for calls in step for call in calls]

    def _leave(self, place: int, source: Source, scale: Tensor | None) -> list[list[Call]]:
        """What adds to the targets all that leaves a node: calls for every time step."""
        graph, count = self.graph, source.candidates
        rows = graph.rows[place]
        maps = self.state_maps[rows].T
        entering = self.fed[..., rows] if graph.blocks[place].stop <= graph.fed else None
        activated = self.activated[:, graph.blocks[place]]
        a = activated.new_empty(self.batch, count * graph.hidden)
        parts = a.view(self.batch, count, graph.hidden).transpose(0, 1)
        own, following = self.of_node(place, self.values), self.of_node(place + 1, self.values)
        targets = self.of_targets(place, self.values)
        steps = []
        for t in range(self.steps):
            calls: list[Call] = []
            if scale is not None:
                calls.append(partial(following[t].addcmul_, own[t], scale[t]))
            if count:
                if entering is None:
                    calls.append(partial(torch.mm, own[t], maps, out=a))
                else:
                    calls.append(partial(torch.addmm, entering[t], own[t], maps, out=a))
                if source.bounded:
                    bounded = activated[t, : source.bounded]
                    calls.append(partial(torch.sigmoid, parts[: source.bounded], out=bounded))
                if source.rectified:
                    rectified = activated[t, source.bounded :]
                    calls.append(partial(torch.clamp_min, parts[source.bounded :], 0, out=rectified))
                calls.append(partial(targets[t].addmm_, self.mix.activated[place], activated[t].flatten(1)))
            if source.identity and scale is None:
                calls.append(partial(targets[t].addmm_, self.mix.identity[place], own[t].view(1, -1)))
            steps.append(calls)
        return steps

    @functools.cached_property
    def _back(self) -> _Back:
        with ordinary_tensors():
            return _Back(self)

    def backward(self, tensors: Sequence[Any], gradient: Tensor, needed: Sequence[bool]) -> Sequence[Tensor | None]:
        inputs, _, input_maps, _, linear_maps, state_maps, _ = tensors
        needs = _Needs(*needed)
        nodes, hidden = self.graph.nodes, self.graph.hidden
        back = self._back
        back.state_maps.copy_(state_maps)
        back.for_values.zero_()
        back.for_values[nodes::nodes] = gradient
        for call in back.before:
            call()
        for call in back.loop:
            call()

        found: list[Tensor | None] = [None] * len(tensors)
        flat = inputs.reshape(-1, inputs.shape[2])
        for_rows = back.for_rows.flatten(0, 1)
        of_inputs = for_rows[:, : len(input_maps)]
        for_linear: Tensor | None = None
        if len(linear_maps) and (needs.inputs or needs.linear_maps or needs.coefficients):
            for call in back.mixed:
                call()
            for_linear = (back.for_mixed * self.mix.linear[:, None]).view(len(flat), -1)
        if needs.inputs:
            for_inputs = of_inputs @ input_maps
            if for_linear is not None:
                for_inputs.addmm_(for_linear, linear_maps)
            found[0] = for_inputs.view(inputs.shape)
        if needs.state:
            found[1] = back.for_values[0].clone()
        if needs.input_maps:
            found[2] = _products(of_inputs, flat)
        if needs.biases:
            found[3] = of_inputs.sum(0)
        if needs.linear_maps:
            found[4] = torch.zeros_like(linear_maps) if for_linear is None else _products(for_linear, flat)
        if needs.state_maps:
            transposed = state_maps.new_empty(hidden, len(state_maps))
            for place, rows in enumerate(self.graph.rows):
                own = self.of_node(place, self.values).reshape(-1, hidden)
                torch.mm(own.T, for_rows[:, rows], out=transposed[:, rows])
            found[5] = transposed.T.contiguous()
        if needs.coefficients:
            found[6] = self._for_coefficients()
        return found

    def _for_coefficients(self) -> Float[Tensor, "coefficients"]:
        back = self._back
        parts = []
        for place, source in enumerate(self.graph.sources):
            sent = self.of_targets(place, back.for_values)
            if source.candidates:
                images = self.activated[:, self.graph.blocks[place]].flatten(2)
                parts.append(torch.bmm(sent, images.mT).sum(0).flatten())
            if source.identity:
                own = self.of_node(place, self.values).flatten(1)
                parts.append(torch.bmm(sent, own.unsqueeze(2)).sum(0).flatten())
        if len(self.mix.linear):
            parts.append((back.for_mixed * self.linear).sum((0, 1, 3)))
        return torch.cat([*parts, self.by_step(back.for_values).sum((0, 2))])


class _Back:
    """What a workspace needs for the backward pass."""

    def __init__(self, workspace: NodeWorkspace) -> None:
        graph, steps, batch = workspace.graph, workspace.steps, workspace.batch
        self.state_maps = torch.empty_like(workspace.state_maps)
        """Without the factors, which are in the slopes."""
        self.for_values = torch.empty_like(workspace.values)
        self.for_rows = workspace.values.new_empty(steps, batch, len(workspace.row_factors))
        """Of what the maps give, before the activation."""
        self.for_mixed = torch.empty_like(workspace.linear)
        """Of all c (S x) and c (P x)."""
        self.slopes = torch.empty_like(workspace.activated)
        """The derivatives of all activations."""
        activated = workspace.activated
        self.before: list[Call] = [
            partial(torch.addcmul, activated, activated, activated, value=-1, out=self.slopes),
            partial(self.slopes.mul_, workspace.factors[:, None, None]),
        ]
        self.mixed: list[Call] = []
        lanes: list[list[list[Call]]] = []
        scales = iter(workspace.scales)
        for place, source in enumerate(graph.sources):
            block = graph.blocks[place]
            if source.rectified:
                rectified = slice(block.start + source.bounded, block.stop)
                self.before.append(partial(torch.sign, activated[:, rectified], out=self.slopes[:, rectified]))
            if source.targets == 1:  # then the coefficients may come in here, for all steps in one go
                coefficients = workspace.mix.activated[place].view(-1, 1, 1)
                self.before.append(partial(self.slopes[:, block].mul_, coefficients))
            linear = graph.linear_blocks[place]
            products = slice(linear.start + source.sums, linear.stop)
            following = workspace.of_node(place + 1, self.for_values).unsqueeze(2)
            own = workspace.of_node(place, workspace.values).unsqueeze(2)
            if source.sums:
                self.mixed.append(partial(self.for_mixed[:, :, linear.start : products.start].copy_, following))
            for product in range(products.start, products.stop):
                part = self.for_mixed[:, :, product : product + 1]
                self.mixed.append(partial(torch.mul, following, own, out=part))
            lanes.append(self._return(workspace, place, next(scales) if source.products else None))
        lanes.reverse()
        self.loop = [call for step in zip(*lanes, strict=True) for calls in step for call in calls]

    def _return(self, workspace: NodeWorkspace, place: int, scale: Tensor | None) -> list[list[Call]]:
        """What adds to a node's gradient all that its targets send back: calls for every time step, from the last."""
        graph, mix = workspace.graph, workspace.mix
        source = graph.sources[place]
        count = source.candidates
        rows = graph.rows[place]
        slopes = self.slopes[:, graph.blocks[place]]
        for_parts = self.for_rows[..., rows].unflatten(-1, (count, graph.hidden)).transpose(1, 2)
        received = slopes.new_empty(slopes.shape[1:])
        own = workspace.of_node(place, self.for_values)
        far = workspace.of_node(place + source.first, self.for_values)
        sent = workspace.of_targets(place, self.for_values)
        steps = []
        for t in reversed(range(workspace.steps)):
            calls: list[Call] = []
            if scale is not None:
                calls.append(partial(own[t].addcmul_, far[t], scale[t]))
            if count:
                if source.targets == 1:
                    calls.append(partial(torch.mul, far[t], slopes[t], out=for_parts[t]))
                else:
                    calls.append(partial(torch.mm, mix.activated[place].T, sent[t], out=received.flatten(1)))
                    calls.append(partial(torch.mul, received, slopes[t], out=for_parts[t]))
                calls.append(partial(own[t].addmm_, self.for_rows[t, :, rows], self.state_maps[rows]))
            if source.identity and scale is None:
                calls.append(partial(own[t].view(1, -1).addmm_, mix.identity[place].T, sent[t]))
            steps.append(calls)
        return steps


def _products(gradients: Float[Tensor, "examples rows"], x: Float[Tensor, "examples inputs"]) -> Tensor:
    """The gradient of a map: the sum over all examples. This way round it is faster for few inputs."""
    return (x.T @ gradients).T.contiguous()


def _one_after_another(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = list(itertools.accumulate(counts))
    return tuple(slice(end - count, end) for end, count in zip(ends, counts, strict=True))
