"""A recurrent cell over a whole sequence, as one differentiable function with its backward pass written out.

Notation: T time steps, B examples, H hidden units, N nodes besides node 0, which is h_{t-1}; the last one is h_t. A
node's value is

    level + Σ over what enters it  c φ(A s + B x + b)  +  c s  +  c (S x)  +  c (P x) * s

with s the value of the node that each of them leaves, φ(a) = sigmoid(f a) or ReLU(a), f a factor that is given, and a
coefficient c for each. As tanh(a) = 2 sigmoid(2a) − 1, one sigmoid computes tanh too: f is 2, and the caller puts 2
into the coefficient and −1 into the level. Maps are stacked in blocks of H rows, one for each candidate. Those with an
activation are ordered by the node that they leave, and there those with a sigmoid come before those with a ReLU.

All that depends on x only is one product before the loop over time, and the gradients of maps and coefficients are
products after the loop of the backward pass. In between, there is a handful of calls for each node and time step.

When the backward pass is itself to be differentiated (``create_graph``), it runs a plain forward pass under autograd
and differentiates that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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
class Graph:
    """What :func:`run_sequence` computes, apart from its tensors."""

    hidden: int
    """H."""
    sources: tuple[Source, ...]
    """Of node 0 and all others but the last."""
    fed: int
    """So many of the candidates with an activation, the first ones, read x."""

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
    def _sizes(self) -> list[int]:
        sizes = [size for source in self.sources for size in source.sizes]
        return [*sizes, self.linear_blocks[-1].stop, self.nodes]

    def mix(self, coefficients: Float[Tensor, "coefficients"]) -> Mix:
        """The coefficients, sorted."""
        *parts, linear, levels = coefficients.split(self._sizes)
        activated = [part.view(source.targets, -1) for part, source in zip(parts[::2], self.sources, strict=True)]
        return Mix(activated, [part.view(-1, 1) for part in parts[1::2]], linear, levels)


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


def run_sequence(
    graph: Graph,
    inputs: Float[Tensor, "time batch inputs"],
    state: Float[Tensor, "batch hidden"],
    input_maps: Float[Tensor, "fed inputs"],
    biases: Float[Tensor, "fed"] | None,
    linear_maps: Float[Tensor, "linear inputs"],
    state_maps: Float[Tensor, "activated hidden"],
    coefficients: Float[Tensor, "coefficients"],
    factors: Float[Tensor, "candidates"],
) -> Float[Tensor, "time batch hidden"]:
    """The values of the last node after every time step.

    Args:
        graph: what runs.
        inputs: x_t.
        state: h before the first step.
        input_maps: B of the first ``graph.fed`` candidates with an activation.
        biases: their b.
        linear_maps: S and P of all sums and products; for every source the sums come first.
        state_maps: A of all candidates with an activation.
        coefficients: for every source, as many as its ``sizes`` say; then those of all sums and products, in the
            order of the maps; then the levels of all nodes.
        factors: f of all candidates with an activation, 1 for ReLU. No gradient is computed for them.
    """
    tensors = (inputs, state, input_maps, biases, linear_maps, state_maps, coefficients, factors)
    if torch.is_grad_enabled():
        return _Sequence.apply(graph, *tensors)
    return _forward(graph, *tensors, keep=False)[0]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Graph, *tensors: Any) -> Tensor:
        states, kept = _forward(graph, *tensors, keep=any(ctx.needs_input_grad))
        ctx.graph = graph
        ctx.inputs = len(tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *kept)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * (1 + ctx.inputs)
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.inputs], saved[ctx.inputs :]
        needed = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *_backward(ctx.graph, tensors, kept, gradient, _Needs(*needed))
        # Views, so that a tensor that comes in twice counts once in each place.
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        states = plain_sequence(ctx.graph, *views)
        wanted = [view for view, need in zip(views, needed, strict=True) if need and view is not None]
        found = iter(torch.autograd.grad(states, wanted, gradient, create_graph=True, materialize_grads=True))
        return None, *(next(found) if need else None for need in needed)


class _Needs(NamedTuple):
    """Which gradients are asked for."""

    inputs: bool
    state: bool
    input_maps: bool
    biases: bool
    linear_maps: bool
    state_maps: bool
    coefficients: bool
    factors: bool


def plain_sequence(graph: Graph, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
    """:func:`run_sequence` by differentiable calls, with the same arguments."""
    inputs, state, input_maps, biases, linear_maps, state_maps, coefficients, factors = tensors
    hidden = graph.hidden
    mix = graph.mix(coefficients)
    fed = F.linear(inputs, input_maps, biases)
    linear = F.linear(inputs, linear_maps).unflatten(-1, (len(mix.linear), hidden)) * mix.linear[:, None]
    states = []
    for step in range(len(inputs)):
        values = [state, *(level.expand_as(state) for level in mix.levels)]
        for place, source in enumerate(graph.sources):
            s = values[place]
            block, rows = graph.blocks[place], graph.rows[place]
            received = [torch.zeros_like(s)] * source.targets
            if source.candidates:
                a = s @ state_maps[rows].T
                if block.stop <= graph.fed:
                    a = a + fed[step][:, rows]
                parts = (a.unflatten(-1, (source.candidates, hidden)) * factors[block, None]).movedim(1, 0)
                activated = torch.cat([parts[: source.bounded].sigmoid(), parts[source.bounded :].relu()])
                received = list(torch.tensordot(mix.activated[place], activated, 1))
            if source.identity:
                received = [part + c * s for part, c in zip(received, mix.identity[place], strict=True)]
            if source.sums + source.products:
                images = linear[step][:, graph.linear_blocks[place]]
                received[0] = received[0] + images[:, : source.sums].sum(1) + images[:, source.sums :].sum(1) * s
            for target, part in enumerate(received, place + source.first):
                values[target] = values[target] + part
        state = values[-1]
        states.append(state)
    return torch.stack(states)


def _forward(graph: Graph, *tensors: Any, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """The states, and what the backward pass needs: values, S x and P x, activations, what s is multiplied by.

    Values stand in one row: the first state, then all nodes of the first step, of the second step and so on. So h_t is
    there once, as the last node of its step and as node 0 of the next.
    """
    inputs, state, input_maps, biases, linear_maps, state_maps, coefficients, factors = tensors
    steps, batch, width = inputs.shape
    hidden, nodes = graph.hidden, graph.nodes
    mix = graph.mix(coefficients)
    flat = inputs.reshape(-1, width)
    of_rows = factors[:, None].expand(-1, hidden).flatten()
    of_fed = of_rows[: len(input_maps)]
    state_maps = state_maps * of_rows[:, None]
    input_maps = (input_maps * of_fed[:, None]).T
    fed = flat @ input_maps if biases is None else torch.addmm(biases * of_fed, flat, input_maps)
    fed = fed.view(steps, batch, -1)
    linear = (flat @ linear_maps.T).view(steps, batch, -1, hidden)
    values = inputs.new_empty(1 + steps * nodes, batch, hidden)
    values[0] = state
    values[1:].view(steps, nodes, batch, hidden).copy_(mix.levels[:, None, None])
    activated = inputs.new_empty(steps if keep else 1, len(factors), batch, hidden)
    all_activated = activated.expand(steps, -1, -1, -1)
    scales: list[Tensor] = []
    lanes = []
    rows = values.unbind()
    for place, source in enumerate(graph.sources):
        block = graph.blocks[place]
        if source.sums + source.products:
            images = linear[:, :, graph.linear_blocks[place]].unbind(2)
            own = mix.linear[graph.linear_blocks[place]].unbind()
            for image, c in zip(images[: source.sums], own, strict=False):
                _of_node(graph, place + 1, values).addcmul_(image, c)
            if source.products:
                scales.append(_scale(mix.identity[place], images[source.sums :], own[source.sums :]))
        lanes.append(
            _leave(
                source,
                mix.activated[place],
                mix.identity[place] if source.identity and not source.products else None,
                state_maps[graph.rows[place]].T,
                rows[place::nodes],
                rows[place + 1 :: nodes],
                _of_targets(graph, place, values),
                fed[..., graph.rows[place]] if block.stop <= graph.fed else None,
                scales[-1] if source.products else None,
                all_activated[:, block],
            )
        )
    for _ in zip(*lanes, strict=True):  # each source in turn, step by step
        pass
    return values[nodes::nodes].contiguous(), [values, linear, activated, *scales]


def _of_node(graph: Graph, node: int, values: Tensor) -> Float[Tensor, "time batch hidden"]:
    """One node's values at all steps; those of node 0 are the last node's, one step late."""
    return values[node :: graph.nodes][: (len(values) - 1) // graph.nodes]


def _of_targets(graph: Graph, place: int, values: Tensor) -> Float[Tensor, "time targets units"]:
    """The values of all nodes from a source's nearest to its farthest target, (batch · hidden) numbers each."""
    source = graph.sources[place]
    nearest = place + source.first - 1
    by_step = values[1:].view(-1, graph.nodes, values[0].numel())
    return by_step[:, nearest : nearest + source.targets]


def _scale(identity: Tensor, images: Sequence[Tensor], coefficients: Sequence[Tensor]) -> Tensor:
    """What the next node multiplies s by, at all steps: (time, batch, hidden)."""
    scale = images[0] * coefficients[0]
    for image, c in zip(images[1:], coefficients[1:], strict=True):
        scale.addcmul_(image, c)
    return scale.add_(identity) if len(identity) else scale


def _leave(
    source: Source,
    mix: Float[Tensor, "targets candidates"],
    identity: Float[Tensor, "targets 1"] | None,
    maps: Float[Tensor, "hidden rows"],
    owns: Sequence[Tensor],
    nexts: Sequence[Tensor],
    targets: Float[Tensor, "time targets units"],
    entering: Float[Tensor, "time batch rows"] | None,
    scale: Float[Tensor, "time batch hidden"] | None,
    activated: Float[Tensor, "time candidates batch hidden"],
) -> Iterator[None]:
    """Adds to the targets what leaves a node, one time step at a time."""
    _, count, batch, hidden = activated.shape
    a = activated.new_empty(batch, count * hidden)
    parts = a.view(batch, count, hidden).transpose(0, 1)
    bounded_part, rectified_part = parts[: source.bounded], parts[source.bounded :]
    views = zip(
        owns,
        nexts,
        targets.unbind(),
        _at_each_step(entering),
        _at_each_step(scale),
        _at_each_step(activated[:, : source.bounded] if source.bounded else None),
        _at_each_step(activated[:, source.bounded :] if source.rectified else None),
        _at_each_step(activated.flatten(2) if count else None),
        strict=False,
    )
    for own, following, received, fed, factor, bounded, rectified, images in views:
        if factor is not None:
            following.addcmul_(own, factor)
        if images is not None:
            if fed is None:
                torch.mm(own, maps, out=a)
            else:
                torch.addmm(fed, own, maps, out=a)
            if bounded is not None:
                torch.sigmoid(bounded_part, out=bounded)
            if rectified is not None:
                torch.clamp_min(rectified_part, 0, out=rectified)
            received.addmm_(mix, images)
        if identity is not None:
            received.addmm_(identity, own.view(1, -1))
        yield


def _at_each_step(values: Tensor | None) -> Iterator[Tensor | None]:
    return itertools.repeat(None) if values is None else iter(values.unbind())


def _backward(
    graph: Graph, tensors: Sequence[Any], kept: Sequence[Tensor], gradient: Tensor, needs: _Needs
) -> list[Tensor | None]:
    """Gradients of all tensors, in their order."""
    inputs, _, input_maps, _, linear_maps, state_maps, coefficients, factors = tensors
    values, linear, activated, *scales = kept
    steps, batch, width = inputs.shape
    hidden, nodes = graph.hidden, graph.nodes
    mix = graph.mix(coefficients)

    for_values = torch.zeros_like(values)
    for_values[nodes::nodes] = gradient
    need_rows = needs.inputs or needs.input_maps or needs.biases or needs.state_maps
    # What the maps give, before the activation, for all candidates.
    for_rows = values.new_empty(steps if need_rows else 1, batch, len(state_maps))
    all_for_rows = for_rows.expand(steps, -1, -1)
    slopes = _slopes(graph, activated, factors)
    lanes = []
    rows = for_values.unbind()
    remaining = iter(scales)
    for place, source in enumerate(graph.sources):
        lanes.append(
            _return(
                source,
                mix.activated[place],
                mix.identity[place] if source.identity and not source.products else None,
                state_maps[graph.rows[place]],
                rows[place::nodes][:steps],
                rows[place + source.first :: nodes],
                _of_targets(graph, place, for_values),
                next(remaining) if source.products else None,
                slopes[:, graph.blocks[place]],
                all_for_rows[..., graph.rows[place]],
            )
        )
    for _ in zip(*reversed(lanes), strict=True):
        pass

    found: list[Tensor | None] = [None] * len(tensors)
    flat = inputs.reshape(-1, width)
    for_rows = for_rows.flatten(0, 1)
    of_inputs = for_rows[:, : len(input_maps)]
    for_linear: Tensor | None = None
    for_mixed: Tensor | None = None
    if len(linear_maps) and (needs.inputs or needs.linear_maps or needs.coefficients):
        for_mixed = _for_mixed(graph, values, for_values, linear)
        for_linear = (for_mixed * mix.linear[:, None]).view(len(flat), -1)
    if needs.inputs:
        for_inputs = of_inputs @ input_maps
        if for_linear is not None:
            for_inputs.addmm_(for_linear, linear_maps)
        found[0] = for_inputs.view(inputs.shape)
    if needs.state:
        found[1] = for_values[0]
    if needs.input_maps:
        found[2] = _products(of_inputs, flat)
    if needs.biases:
        found[3] = of_inputs.sum(0)
    if needs.linear_maps:
        found[4] = torch.zeros_like(linear_maps) if for_linear is None else _products(for_linear, flat)
    if needs.state_maps:
        transposed = state_maps.new_empty(hidden, len(state_maps))
        for place, own_rows in enumerate(graph.rows):
            own = _of_node(graph, place, values).reshape(-1, hidden)
            torch.mm(own.T, for_rows[:, own_rows], out=transposed[:, own_rows])
        found[5] = transposed.T.contiguous()
    if needs.coefficients:
        found[6] = _for_coefficients(graph, values, linear, activated, for_values, for_mixed)
    return found


def _products(gradients: Float[Tensor, "examples rows"], x: Float[Tensor, "examples inputs"]) -> Tensor:
    """The gradient of a map: the sum over all examples. This way round it is faster for few inputs."""
    return (x.T @ gradients).T.contiguous()


def _slopes(graph: Graph, activated: Tensor, factors: Tensor) -> Float[Tensor, "time candidates batch hidden"]:
    """The derivatives of all activations by a."""
    slopes = torch.addcmul(activated, activated, activated, value=-1).mul_(factors[:, None, None])
    for source, block in zip(graph.sources, graph.blocks, strict=True):
        if source.rectified:
            rectified = slice(block.start + source.bounded, block.stop)
            slopes[:, rectified] = activated[:, rectified] > 0
    return slopes


def _return(
    source: Source,
    mix: Float[Tensor, "targets candidates"],
    identity: Float[Tensor, "targets 1"] | None,
    maps: Float[Tensor, "rows hidden"],
    owns: Sequence[Tensor],
    fars: Sequence[Tensor],
    targets: Float[Tensor, "time targets units"],
    scale: Float[Tensor, "time batch hidden"] | None,
    slopes: Float[Tensor, "time candidates batch hidden"],
    for_rows: Float[Tensor, "time batch rows"],
) -> Iterator[None]:
    """Adds to a node's gradient what its targets send back, one time step at a time, from the last one."""
    _, count, batch, hidden = slopes.shape
    received = slopes.new_empty(count, batch, hidden)
    received_flat = received.flatten(1)
    alone = source.targets == 1
    if alone:  # then the coefficients come in here, for all steps in one go
        slopes.mul_(mix.view(-1, 1, 1))
    views = zip(
        reversed(owns),
        reversed(fars),
        _backwards(None if alone and identity is None else targets),
        _backwards(scale),
        _backwards(slopes if count else None),
        _backwards(for_rows if count else None),
        _backwards(for_rows.unflatten(-1, (count, hidden)).transpose(1, 2) if count else None),
        strict=False,
    )
    for own, far, sent, factor, slope, for_a, for_parts in views:
        if factor is not None:
            own.addcmul_(far, factor)
        if slope is not None:
            if alone:
                torch.mul(far, slope, out=for_parts)
            else:
                torch.mm(mix.T, sent, out=received_flat)
                torch.mul(received, slope, out=for_parts)
            own.addmm_(for_a, maps)
        if identity is not None:
            own.view(1, -1).addmm_(identity.T, sent)
        yield


def _backwards(values: Tensor | None) -> Iterator[Tensor | None]:
    return itertools.repeat(None) if values is None else reversed(values.unbind())


def _for_mixed(
    graph: Graph, values: Tensor, for_values: Tensor, linear: Tensor
) -> Float[Tensor, "time batch linear hidden"]:
    """Gradients of all c (S x) and c (P x)."""
    for_mixed = torch.empty_like(linear)
    for place, (source, block) in enumerate(zip(graph.sources, graph.linear_blocks, strict=True)):
        following = _of_node(graph, place + 1, for_values).unsqueeze(2)
        products = slice(block.start + source.sums, block.stop)
        if source.sums:
            for_mixed[:, :, block.start : products.start] = following
        if source.products:
            own = _of_node(graph, place, values).unsqueeze(2)
            for_mixed[:, :, products] = following * own
    return for_mixed


def _for_coefficients(
    graph: Graph, values: Tensor, linear: Tensor, activated: Tensor, for_values: Tensor, for_mixed: Tensor | None
) -> Float[Tensor, "coefficients"]:
    parts = []
    for place, source in enumerate(graph.sources):
        sent = _of_targets(graph, place, for_values)
        if source.candidates:
            images = activated[:, graph.blocks[place]].flatten(2)
            parts.append(torch.bmm(sent, images.mT).sum(0).flatten())
        if source.identity:
            own = _of_node(graph, place, values)
            parts.append(torch.bmm(sent, own.flatten(1).unsqueeze(2)).sum(0).flatten())
    if for_mixed is not None:
        parts.append((for_mixed * linear).sum((0, 1, 3)))
    by_step = for_values[1:].view(-1, graph.nodes, values[0].numel())
    return torch.cat([*parts, by_step.sum((0, 2))])


def _one_after_another(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = list(itertools.accumulate(counts))
    return tuple(slice(end - count, end) for end, count in zip(ends, counts, strict=True))
