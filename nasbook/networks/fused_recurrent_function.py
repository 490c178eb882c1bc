"""A recurrent cell over a whole sequence, as one differentiable function with its backward pass written out.

Notation: T time steps, B examples, H hidden units, N nodes besides node 0, which is h_{t-1}; the last one is h_t. A
node's value is

    level + Σ over what enters it  c φ(A s + B x + b)  +  c s  +  c (S x)  +  c (P x) * s

with s the value of the node that each of them leaves, φ a sigmoid or ReLU, and a coefficient c for each. As
tanh(a) = 2 sigmoid(2a) − 1, one sigmoid computes tanh too; the caller puts the 2's into maps and coefficients and the
−1 into the level. Maps are stacked in blocks of H rows, one for each candidate. Those with an activation are ordered by
the node that they leave, and there those with a sigmoid come before those with a ReLU.

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
    def sizes(self) -> tuple[int, int, int, int]:
        """How many coefficients there are: of the activated candidates, target by target, then of the others."""
        return self.targets * self.candidates, self.targets * self.identity, self.sums, self.products


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

    def rows(self, block: slice) -> slice:
        """The rows of blocks."""
        return slice(block.start * self.hidden, block.stop * self.hidden)

    def mixes(self, coefficients: Float[Tensor, "coefficients"]) -> tuple[list[Mix], Float[Tensor, "nodes"]]:
        """The coefficients of every source, and the levels."""
        *parts, levels = coefficients.split([size for source in self.sources for size in source.sizes] + [self.nodes])
        mixes = []
        for place, source in enumerate(self.sources):
            activated, identity, sums, products = parts[4 * place : 4 * place + 4]
            mixes.append(Mix(activated.view(source.targets, -1), identity.view(-1, 1), sums, products))
        return mixes, levels


class Mix(NamedTuple):
    """The coefficients of one source."""

    activated: Float[Tensor, "targets candidates"]
    identity: Float[Tensor, "targets 1"]
    sums: Float[Tensor, "sums"]
    products: Float[Tensor, "products"]


def run_sequence(
    graph: Graph,
    inputs: Float[Tensor, "time batch inputs"],
    state: Float[Tensor, "batch hidden"],
    input_maps: Float[Tensor, "fed inputs"],
    biases: Float[Tensor, "fed"] | None,
    linear_maps: Float[Tensor, "linear inputs"],
    state_maps: Float[Tensor, "activated hidden"],
    coefficients: Float[Tensor, "coefficients"],
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
        coefficients: for every source, as many as its ``sizes`` say; then the levels of all nodes.
    """
    tensors = (inputs, state, input_maps, biases, linear_maps, state_maps, coefficients)
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


def plain_sequence(graph: Graph, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
    """:func:`run_sequence` by differentiable calls, with the same arguments."""
    inputs, state, input_maps, biases, linear_maps, state_maps, coefficients = tensors
    hidden = graph.hidden
    mixes, levels = graph.mixes(coefficients)
    fed = F.linear(inputs, input_maps, biases)
    linear = F.linear(inputs, linear_maps).unflatten(-1, (-1, hidden)) if len(linear_maps) else inputs.new_empty(0)
    states = []
    for step in range(len(inputs)):
        values = [state, *(level.expand_as(state) for level in levels)]
        for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
            s = values[place]
            targets = range(place + source.first, place + source.first + source.targets)
            block, linear_block = graph.blocks[place], graph.linear_blocks[place]
            received = [torch.zeros_like(s)] * source.targets
            if source.candidates:
                a = s @ state_maps[graph.rows(block)].T
                if block.stop <= graph.fed:
                    a = a + fed[step][:, graph.rows(block)]
                parts = a.unflatten(-1, (source.candidates, hidden)).movedim(1, 0)
                activated = torch.cat([parts[: source.bounded].sigmoid(), parts[source.bounded :].relu()])
                received = list(torch.tensordot(mix.activated, activated, 1))
            if source.identity:
                received = [part + c * s for part, c in zip(received, mix.identity, strict=True)]
            if source.sums + source.products:
                images = linear[step][:, linear_block].movedim(1, 0)
                received[0] = received[0] + torch.tensordot(mix.sums, images[: source.sums], 1)
                received[0] = received[0] + torch.tensordot(mix.products, images[source.sums :], 1) * s
            for target, part in zip(targets, received, strict=True):
                values[target] = values[target] + part
        state = values[-1]
        states.append(state)
    return torch.stack(states)


def _forward(graph: Graph, *tensors: Any, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """The states, and what the backward pass needs: see :class:`_Kept`.

    Values stand in one row: the first state, then all nodes of the first step, of the second step and so on. So h_t is
    there once, as the last node of its step and as node 0 of the next.
    """
    inputs, state, input_maps, biases, linear_maps, state_maps, coefficients = tensors
    steps, batch, width = inputs.shape
    hidden, nodes = graph.hidden, graph.nodes
    mixes, levels = graph.mixes(coefficients)
    flat = inputs.reshape(-1, width)
    fed = (flat @ input_maps.T if biases is None else torch.addmm(biases, flat, input_maps.T)).view(steps, batch, -1)
    linear = (flat @ linear_maps.T).view(steps, batch, -1, hidden) if len(linear_maps) else inputs.new_empty(0)
    values = inputs.new_empty(1 + steps * nodes, batch, hidden)
    values[0] = state
    values[1:].view(steps, nodes, batch, hidden).copy_(levels[:, None, None])
    activated = inputs.new_empty(steps if keep else 1, graph.blocks[-1].stop, batch, hidden)
    all_activated = activated.expand(steps, -1, -1, -1)
    scales: list[Tensor] = []
    lanes = []
    rows = values.unbind()
    for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
        block, linear_block = graph.blocks[place], graph.linear_blocks[place]
        if source.sums + source.products:
            images = linear[:, :, linear_block].unbind(2)
            for image, c in zip(images, mix.sums, strict=False):
                _of_node(graph, place + 1, values).addcmul_(image, c)
            if source.products:
                scales.append(_scale(mix, images[source.sums :]))
        entering = fed[..., graph.rows(block)] if source.candidates and block.stop <= graph.fed else None
        lanes.append(
            _leave(
                source,
                mix,
                state_maps[graph.rows(block)].T,
                rows[place::nodes],
                rows[place + 1 :: nodes],
                _of_targets(graph, place, values),
                entering,
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


def _scale(mix: Mix, images: Sequence[Tensor]) -> Float[Tensor, "time batch hidden"]:
    """What the next node multiplies s by, at all steps."""
    scale = images[0] * mix.products[0]
    for image, c in zip(images[1:], mix.products[1:], strict=True):
        scale.addcmul_(image, c)
    return scale.add_(mix.identity) if len(mix.identity) else scale


def _leave(
    source: Source,
    mix: Mix,
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
    identity = mix.identity if source.identity and scale is None else None
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
            received.addmm_(mix.activated, images)
        if identity is not None:
            received.addmm_(identity, own.view(1, -1))
        yield


def _at_each_step(values: Tensor | None) -> Iterator[Tensor | None]:
    return itertools.repeat(None) if values is None else iter(values.unbind())


def _backward(
    graph: Graph, tensors: Sequence[Any], kept: Sequence[Tensor], gradient: Tensor, needs: _Needs
) -> list[Tensor | None]:
    """Gradients of all tensors, in their order."""
    inputs, _, input_maps, _, linear_maps, state_maps, coefficients = tensors
    values, linear, activated, *scales = kept
    steps, batch, width = inputs.shape
    hidden, nodes = graph.hidden, graph.nodes
    mixes, _ = graph.mixes(coefficients)

    for_values = torch.zeros_like(values)
    for_values[nodes::nodes] = gradient
    need_rows = needs.inputs or needs.input_maps or needs.biases or needs.state_maps
    for_rows = values.new_empty(steps if need_rows else 1, batch, activated.shape[1] * hidden)
    all_for_rows = for_rows.expand(steps, -1, -1)
    slopes = _slopes(graph, activated)
    lanes = []
    rows = for_values.unbind()
    remaining = iter(scales)
    for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
        block = graph.blocks[place]
        far = place + source.first
        lanes.append(
            _return(
                source,
                mix,
                state_maps[graph.rows(block)],
                rows[place::nodes][:steps],
                rows[far::nodes],
                _of_targets(graph, place, for_values),
                next(remaining) if source.products else None,
                slopes[:, block],
                all_for_rows[..., graph.rows(block)],
            )
        )
    for _ in zip(*reversed(lanes), strict=True):
        pass

    for_linear = _for_linear(graph, mixes, values, for_values) if needs.inputs or needs.linear_maps else None
    flat = inputs.reshape(-1, width)
    of_inputs = for_rows.flatten(0, 1)[:, : graph.fed * hidden]
    for_inputs: Tensor | None = None
    if needs.inputs:
        for_inputs = of_inputs @ input_maps
        if for_linear is not None:
            for_inputs.addmm_(for_linear, linear_maps)
        for_inputs = for_inputs.view(inputs.shape)
    for_state_maps: Tensor | None = None
    if needs.state_maps:
        transposed = state_maps.new_empty(hidden, len(state_maps))
        for place, block in enumerate(graph.blocks):
            own = _of_node(graph, place, values).reshape(-1, hidden)
            torch.mm(own.T, for_rows.flatten(0, 1)[:, graph.rows(block)], out=transposed[:, graph.rows(block)])
        for_state_maps = transposed.T.contiguous()
    return [
        for_inputs,
        for_values[0] if needs.state else None,
        # This way round it is faster where the inputs are few.
        (flat.T @ of_inputs).T.contiguous() if needs.input_maps else None,
        of_inputs.sum(0) if needs.biases else None,
        None if for_linear is None or not needs.linear_maps else (flat.T @ for_linear).T.contiguous(),
        for_state_maps,
        _for_coefficients(graph, values, linear, activated, for_values) if needs.coefficients else None,
    ]


def _slopes(graph: Graph, activated: Tensor) -> Float[Tensor, "time candidates batch hidden"]:
    """The derivatives of all activations."""
    slopes = torch.addcmul(activated, activated, activated, value=-1)
    for source, block in zip(graph.sources, graph.blocks, strict=True):
        if source.rectified:
            rectified = slice(block.start + source.bounded, block.stop)
            slopes[:, rectified] = activated[:, rectified] > 0
    return slopes


def _return(
    source: Source,
    mix: Mix,
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
    activated_mix, alone = mix.activated.T, source.targets == 1
    identity = mix.identity.T if source.identity and scale is None else None
    if alone:  # then the coefficients may come in here, for all steps in one go
        slopes.mul_(mix.activated.view(-1, 1, 1))
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
                torch.mm(activated_mix, sent, out=received_flat)
                torch.mul(received, slope, out=for_parts)
            own.addmm_(for_a, maps)
        if identity is not None:
            own.view(1, -1).addmm_(identity, sent)
        yield


def _backwards(values: Tensor | None) -> Iterator[Tensor | None]:
    return itertools.repeat(None) if values is None else reversed(values.unbind())


def _for_linear(
    graph: Graph, mixes: Sequence[Mix], values: Tensor, for_values: Tensor
) -> Float[Tensor, "examples linear"] | None:
    """Gradients of S x and P x, those of all steps below each other."""
    parts = []
    for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
        following = _of_node(graph, place + 1, for_values)
        parts += [following * c for c in mix.sums]
        if source.products:
            following = following * _of_node(graph, place, values)
            parts += [following * c for c in mix.products]
    return torch.cat(parts, dim=-1).flatten(0, 1) if parts else None


def _for_coefficients(graph: Graph, values: Tensor, linear: Tensor, activated: Tensor, for_values: Tensor) -> Tensor:
    parts = []
    for place, source in enumerate(graph.sources):
        sent = _of_targets(graph, place, for_values)
        own = _of_node(graph, place, values)
        if source.candidates:
            images = activated[:, graph.blocks[place]].flatten(2)
            parts.append(torch.bmm(sent, images.mT).sum(0).flatten())
        if source.identity:
            parts.append(torch.bmm(sent, own.flatten(1).unsqueeze(2)).sum(0).flatten())
        if source.sums + source.products:
            following = _of_node(graph, place + 1, for_values)
            images = linear[:, :, graph.linear_blocks[place]].unbind(2)
            parts += [(following * image).sum().view(1) for image in images[: source.sums]]
            if source.products:
                following = following * own
                parts += [(following * image).sum().view(1) for image in images[source.sums :]]
    by_step = for_values[1:].view(-1, graph.nodes, values[0].numel())
    return torch.cat([*parts, by_step.sum((0, 2))])


def _one_after_another(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = list(itertools.accumulate(counts))
    return tuple(slice(end - count, end) for end, count in zip(ends, counts, strict=True))
