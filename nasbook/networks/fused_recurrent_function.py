"""A recurrent cell over a whole sequence, as one differentiable function with its backward pass written out.

Notation: T time steps, B examples, H hidden units, N nodes besides node 0, which is h_{t-1}; the last one is h_t. Maps
from the input and from the state are stacked in blocks of H rows. First come those of the candidates with an
activation, ordered by the node that they leave; of one node, K candidates leave, those with sigmoid or tanh before
those with ReLU. A node's value is

    level + Σ over candidates that enter it  c · φ(A s + B x + b)  +  c' s  +  (O x + o) + (D x + d) * s,

s the value of the node that each of them leaves. As tanh(a) = 2 sigmoid(2a) − 1, one sigmoid computes both kinds;
the caller puts the 2's into the maps and coefficients and the −1 into the level.

All that depends on x only is one product before the loop over time; so are all gradients of maps and coefficients
after the loop of the backward pass. In between, a node and time step has a handful of calls.

When the backward pass is itself to be differentiated (``create_graph``), it runs a plain forward pass under autograd
and differentiates that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
    first: int
    """How far the nearest target is: 1 for the next node."""
    targets: int
    """Number of nodes from the nearest to the farthest target."""
    identity: bool = False
    """Whether a target receives c' s."""
    added: int | None = None
    """The block of O, if the next node receives O x + o."""
    scaled: int | None = None
    """The block of D, if the next node receives (D x + d) * s."""
    passed: bool = False
    """Whether the next node receives d s, without D."""

    @property
    def candidates(self) -> int:
        """K."""
        return self.bounded + self.rectified

    @property
    def direct(self) -> bool:
        """Whether the next node receives d s or (D x + d) * s."""
        return self.passed or self.scaled is not None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many coefficients there are: of the activated candidates, of identities, and d."""
        return self.targets * self.candidates, self.targets * self.identity, int(self.passed)


@dataclass(frozen=True)
class Graph:
    """What :func:`run_sequence` computes, apart from its tensors."""

    hidden: int
    sources: tuple[Source, ...]
    """Of node 0 and all others but the last."""
    fed: int
    """So many blocks, the first ones, have a map from the input."""

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.sources)

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """For every source its first block, then the number of blocks with an activation."""
        counts = [source.candidates for source in self.sources]
        return tuple(sum(counts[:place]) for place in range(len(counts) + 1))

    @functools.cached_property
    def blocks(self) -> int:
        """Number of all blocks."""
        return max(self.fed, self.starts[-1])

    def mixes(self, coefficients: Float[Tensor, "coefficients"]) -> tuple[list[_Mix], Tensor]:
        """The coefficients of every source, and the levels."""
        *parts, levels = coefficients.split([size for source in self.sources for size in source.sizes] + [self.nodes])
        found = []
        for place, source in enumerate(self.sources):
            activated, identity, factor = parts[3 * place : 3 * place + 3]
            found.append(
                _Mix(activated.view(source.targets, source.candidates), identity.view(-1, 1), factor.view(-1, 1))
            )
        return found, levels


class _Mix(NamedTuple):
    """The coefficients of one source."""

    activated: Float[Tensor, "targets candidates"]
    identity: Float[Tensor, "targets 1"]
    factor: Float[Tensor, "#1 1"]
    """d, where there is no D."""


def run_sequence(
    graph: Graph,
    inputs: Float[Tensor, "time batch inputs"],
    state: Float[Tensor, "batch hidden"],
    input_maps: Float[Tensor, "fed inputs"],
    biases: Float[Tensor, "fed"] | None,
    state_maps: Float[Tensor, "rows hidden"],
    coefficients: Float[Tensor, "coefficients"],
) -> Float[Tensor, "time batch hidden"]:
    """The values of the last node after every time step.

    Args:
        graph: what runs.
        inputs: x_t.
        state: h before the first step.
        input_maps: what x is multiplied by, for the first ``graph.fed`` blocks.
        biases: what is added to it.
        state_maps: what s is multiplied by, for every candidate with an activation.
        coefficients: for every source, in the order of :class:`Source`'s ``sizes``; then the levels of all nodes.
    """
    tensors = (inputs, state, input_maps, biases, state_maps, coefficients)
    if torch.is_grad_enabled():
        return _Sequence.apply(graph, *tensors)
    return _forward(graph, *tensors, keep=False)[0]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Graph, *tensors: Any) -> Tensor:
        states, kept = _forward(graph, *tensors, keep=any(ctx.needs_input_grad))
        ctx.graph = graph
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *kept)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        tensors, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        needed = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *_backward(ctx.graph, tensors, kept, gradient, needed)
        # Views, so that an input that comes in twice counts once in each place.
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        states = plain_sequence(ctx.graph, *views)
        wanted = [view for view, need in zip(views, needed, strict=True) if need]
        found = iter(torch.autograd.grad(states, wanted, gradient, create_graph=True, materialize_grads=True))
        return None, *(next(found) if need else None for need in needed)


def plain_sequence(
    graph: Graph,
    inputs: Tensor,
    state: Tensor,
    input_maps: Tensor,
    biases: Tensor | None,
    state_maps: Tensor,
    coefficients: Tensor,
) -> Tensor:
    """:func:`run_sequence` by differentiable calls."""
    hidden, starts = graph.hidden, graph.starts
    mixes, levels = graph.mixes(coefficients)
    states = []
    for fed in F.linear(inputs, input_maps, biases):
        blocks = fed.unflatten(-1, (graph.fed, hidden)).unbind(-2)
        values = [state, *(level.expand_as(state) for level in levels)]
        for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
            s = values[place]
            following = range(place + source.first, place + source.first + source.targets)
            if source.candidates:
                rows = slice(starts[place] * hidden, starts[place + 1] * hidden)
                a = s @ state_maps[rows].T
                if starts[place] < graph.fed:
                    a = a + fed[:, rows]
                parts = a.unflatten(-1, (source.candidates, hidden)).movedim(1, 0)
                activated = torch.cat([parts[: source.bounded].sigmoid(), parts[source.bounded :].relu()])
                received = torch.tensordot(mix.activated, activated, 1)
                for target, part in zip(following, received, strict=True):
                    values[target] = values[target] + part
            if source.identity:
                for target, coefficient in zip(following, mix.identity, strict=True):
                    values[target] = values[target] + coefficient * s
            if source.added is not None:
                values[place + 1] = values[place + 1] + blocks[source.added]
            if source.direct:
                values[place + 1] = values[place + 1] + (mix.factor if source.passed else blocks[source.scaled]) * s
        state = values[-1]
        states.append(state)
    return torch.stack(states)


def _forward(
    graph: Graph,
    inputs: Tensor,
    state: Tensor,
    input_maps: Tensor,
    biases: Tensor | None,
    state_maps: Tensor,
    coefficients: Tensor,
    *,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The states; and what the backward pass needs: all values, what is fed in, and each source's activations.

    Values stand in one row: the first state, then all nodes of the first step, of the second step and so on, so that
    the value after node i's is that of node i + 1, also where i is the last one.
    """
    steps, batch, width = inputs.shape
    hidden, nodes, starts = graph.hidden, graph.nodes, graph.starts
    mixes, levels = graph.mixes(coefficients)
    flat = inputs.reshape(steps * batch, width)
    fed = flat @ input_maps.T if biases is None else torch.addmm(biases, flat, input_maps.T)
    fed = fed.view(steps, batch, -1)
    values = inputs.new_empty(1 + steps * nodes, batch, hidden)
    values[0] = state
    values[1:].view(steps, nodes, batch, hidden).copy_(levels[:, None, None])
    kept = [values, fed]
    lanes = []
    for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
        activated = inputs.new_empty(steps if keep else 1, source.candidates, batch, hidden)
        kept.append(activated)
        rows = slice(starts[place] * hidden, starts[place + 1] * hidden)
        entering = fed[..., rows] if starts[place] < graph.fed else None
        views = _Views.of(graph, place, values, fed, mix)
        lanes.append(_Lane(source, mix, views, state_maps[rows], entering, activated.expand(steps, -1, -1, -1)))
    for step in range(steps):
        for lane in lanes:
            lane.step(step)
    return values[nodes::nodes].contiguous(), kept


class _Views(NamedTuple):
    """One source's views of a row of values (or of their gradients), for every time step."""

    own: Sequence[Tensor]
    """Its value, (batch, hidden)."""
    following: Sequence[Tensor]
    """Those of its targets, (targets, batch · hidden)."""
    after: Sequence[Tensor]
    """That of the next node, (batch, hidden)."""
    factor: Sequence[Tensor]
    """What the next node multiplies its value by, if it does."""
    added: Sequence[Tensor]
    """What the next node adds, if it does."""

    @staticmethod
    def of(graph: Graph, place: int, values: Tensor, fed: Tensor, mix: _Mix) -> _Views:
        source, hidden = graph.sources[place], graph.hidden
        steps, batch, _ = fed.shape
        by_step = values[1:].view(steps, graph.nodes, batch * hidden)
        factor, added = (
            () if block is None else fed[..., block * hidden : (block + 1) * hidden].unbind()
            for block in (source.scaled, source.added)
        )
        nearest = place + source.first - 1
        return _Views(
            own=_own(graph, place, values).unbind(),
            following=by_step[:, nearest : nearest + source.targets].unbind(),
            after=_own(graph, place + 1, values).unbind() if source.direct else (),
            factor=[mix.factor] * steps if source.passed else factor,
            added=added,
        )


def _own(graph: Graph, place: int, values: Tensor) -> Float[Tensor, "time batch hidden"]:
    """One node's values at all steps; those of node 0 are the last node's, one step late."""
    return values[place :: graph.nodes][: len(values) // graph.nodes]


class _Lane:
    """One source's part of the forward pass."""

    def __init__(
        self, source: Source, mix: _Mix, views: _Views, maps: Tensor, entering: Tensor | None, activated: Tensor
    ) -> None:
        self.source = source
        self.mix = mix
        self.views = views
        self.maps = maps.T
        self.entering = None if entering is None else entering.unbind()
        _, count, batch, hidden = activated.shape
        self.a = activated.new_empty(batch, count * hidden)
        parts = self.a.view(batch, count, hidden).transpose(0, 1)
        self.parts = parts[: source.bounded], parts[source.bounded :]
        self.bounded = activated[:, : source.bounded].unbind()
        self.rectified = activated[:, source.bounded :].unbind()
        self.activated = activated.flatten(2).unbind()

    def step(self, t: int) -> None:
        """Adds to the targets what leaves the node at a time step."""
        source, views = self.source, self.views
        own = views.own[t]
        if source.direct:  # first, as it overwrites where something is added
            after = views.after[t]
            torch.addcmul(views.added[t] if views.added else after, own, views.factor[t], out=after)
        if source.candidates:
            if self.entering is None:
                torch.mm(own, self.maps, out=self.a)
            else:
                torch.addmm(self.entering[t], own, self.maps, out=self.a)
            if source.bounded:
                torch.sigmoid(self.parts[0], out=self.bounded[t])
            if source.rectified:
                torch.clamp_min(self.parts[1], 0, out=self.rectified[t])
            views.following[t].addmm_(self.mix.activated, self.activated[t])
        if source.identity:
            views.following[t].addmm_(self.mix.identity, own.view(1, -1))


def _backward(
    graph: Graph, tensors: Sequence[Any], kept: Sequence[Tensor], gradient: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of all tensors, in their order."""
    inputs, _, input_maps, _, state_maps, coefficients = tensors
    need_inputs, _, need_input_maps, need_biases, need_state_maps, need_coefficients = needed
    values, fed, *activated = kept
    steps, batch, width = inputs.shape
    hidden, nodes, starts = graph.hidden, graph.nodes, graph.starts
    mixes, _ = graph.mixes(coefficients)
    need_rows = need_inputs or need_input_maps or need_biases or need_state_maps

    for_values = torch.zeros_like(values)
    for_values[nodes::nodes] = gradient
    # Gradients of all that the blocks give, before the activation.
    for_rows = values.new_empty(steps if need_rows else 1, batch, graph.blocks * hidden)
    spread = for_rows.expand(steps, -1, -1)
    lanes = []
    for place, (source, mix) in enumerate(zip(graph.sources, mixes, strict=True)):
        rows = slice(starts[place] * hidden, starts[place + 1] * hidden)
        views = _Views.of(graph, place, for_values, fed, mix)
        lanes.append(_LaneBack(source, mix, views, state_maps[rows], activated[place], spread[..., rows]))
    for step in reversed(range(steps)):
        for lane in reversed(lanes):
            lane.step(step)

    found: list[Tensor | None] = [None] * len(tensors)
    found[1] = for_values[0]
    if need_rows:
        for place, source in enumerate(graph.sources):
            after = _own(graph, place + 1, for_values)
            if source.added is not None:
                for_rows[..., source.added * hidden : (source.added + 1) * hidden] = after
            if source.scaled is not None:
                part = for_rows[..., source.scaled * hidden : (source.scaled + 1) * hidden]
                torch.mul(after, _own(graph, place, values), out=part)
        rows_of_all = for_rows.view(steps * batch, -1)
        of_inputs = rows_of_all[:, : graph.fed * hidden]
        if need_inputs:
            found[0] = (of_inputs @ input_maps).view(inputs.shape)
        if need_input_maps:
            found[2] = of_inputs.T @ inputs.reshape(-1, width)
        if need_biases:
            found[3] = of_inputs.sum(0)
        if need_state_maps:
            found[4] = for_maps = torch.empty_like(state_maps)
            for place in range(nodes):
                rows = slice(starts[place] * hidden, starts[place + 1] * hidden)
                own = _own(graph, place, values).reshape(-1, hidden)
                torch.mm(rows_of_all[:, rows].T, own, out=for_maps[rows])
    if need_coefficients:
        found[5] = _for_coefficients(graph, values, for_values, activated)
    return found


class _LaneBack:
    """One source's part of the backward pass."""

    def __init__(
        self, source: Source, mix: _Mix, views: _Views, maps: Tensor, activated: Tensor, for_rows: Tensor
    ) -> None:
        self.source = source
        self.mix = mix
        self.views = views
        self.maps = maps
        _, count, batch, hidden = activated.shape
        slopes = torch.empty_like(activated)  # at every step, in one go
        bounded, rectified = activated[:, : source.bounded], activated[:, source.bounded :]
        torch.mul(bounded, 1 - bounded, out=slopes[:, : source.bounded])
        slopes[:, source.bounded :] = rectified > 0
        self.slopes = slopes.unbind()
        self.received = activated.new_empty(count, batch, hidden)
        self.received_flat = self.received.flatten(1)
        self.for_a = for_rows.unbind()
        self.for_parts = for_rows.unflatten(-1, (count, hidden)).transpose(1, 2).unbind()

    def step(self, t: int) -> None:
        """Adds to the node's gradient what its targets send back at a time step."""
        source, views = self.source, self.views
        own, following = views.own[t], views.following[t]
        if source.direct:
            own.addcmul_(views.after[t], views.factor[t])
        if source.candidates:
            torch.mm(self.mix.activated.T, following, out=self.received_flat)
            torch.mul(self.received, self.slopes[t], out=self.for_parts[t])
            own.addmm_(self.for_a[t], self.maps)
        if source.identity:
            own.view(1, -1).addmm_(self.mix.identity.T, following)


def _for_coefficients(graph: Graph, values: Tensor, for_values: Tensor, activated: Sequence[Tensor]) -> Tensor:
    steps = len(values) // graph.nodes
    by_step = for_values[1:].view(steps, graph.nodes, -1)
    parts = []
    for place, source in enumerate(graph.sources):
        nearest = place + source.first - 1
        following = by_step[:, nearest : nearest + source.targets]
        own = _own(graph, place, values).flatten(1).unsqueeze(1)
        for present, images in (
            (source.candidates, activated[place].flatten(2)),
            (source.identity, own),
            (source.passed, own),
        ):
            if present:
                parts.append(torch.bmm(following, images.mT).sum(0).flatten())
    return torch.cat([*parts, by_step.sum((0, 2))])
