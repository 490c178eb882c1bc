"""The highway cell over a whole sequence, with its backward pass written out.

Notation: T time steps, B examples, H hidden units. Node 0 has s₀ = h + g (u − h), with a gate g = σ(c) and u = tanh(a).
A node with value s gives to each of its targets, with g = σ(c), [c, a] = W s and W the target's,

    w s + g d,   d = Σ_k w_k φ_k(a) − w s,

w_k the coefficient of the candidate φ_k, w a coefficient of its own (the sum of all w_k). The new state is the mean of
the output nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nasbook.networks.fused_recurrent_workspaces import Call, Computation, Kind, Workspace, ordinary_tensors
from nasbook.operations.recurrent import ACTIVATIONS


@dataclass(frozen=True)
class HighwaySource:
    """What leaves one node."""

    first: int
    """The nearest target."""
    targets: int
    """Number of nodes from the nearest to the farthest target."""
    operations: tuple[str, ...]
    """Activations, or identity, that some target has; the others have coefficients of zero."""


class Arguments(NamedTuple):
    """What a pass gets."""

    inputs: Float[Tensor, "time batch inputs"]
    """x_t."""
    state: Float[Tensor, "batch hidden"]
    """h before the first step."""
    input_maps: Float[Tensor, "gates inputs"]
    """What gives [c, a] of node 0: the columns for x."""
    state_maps: Float[Tensor, "gates hidden"]
    """The columns for h."""
    maps: Float[Tensor, "rows hidden"]
    """W of all other nodes, one below the other."""
    coefficients: Float[Tensor, "coefficients"]
    """For every source and target the w_k in the order of ``operations``, then w."""


@dataclass(frozen=True)
class HighwayGraph(Computation):
    """A highway cell without batch norms."""

    hidden: int
    """H."""
    sources: tuple[HighwaySource, ...]
    """All nodes but the last."""
    output: tuple[int, ...]
    """The nodes whose mean is the new state."""

    @functools.cached_property
    def sizes(self) -> list[int]:
        """How many coefficients the sources have."""
        return [source.targets * (len(source.operations) + 1) for source in self.sources]

    def mixes(self, coefficients: Float[Tensor, "coefficients"]) -> list[Tensor]:
        """For every source its coefficients: (targets, operations + 1)."""
        parts = coefficients.split(self.sizes)
        return [part.view(source.targets, -1) for part, source in zip(parts, self.sources, strict=True)]

    def rows(self, source: HighwaySource) -> slice:
        """The rows of W of the targets."""
        start = 2 * self.hidden * (source.first - 1)
        return slice(start, start + 2 * self.hidden * source.targets)

    def workspace(self, kind: Kind) -> Workspace:
        return HighwayWorkspace(self, kind)

    def plain(self, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
        inputs, h, input_maps, state_maps, maps, coefficients = Arguments(*tensors)
        mixes = self.mixes(coefficients)
        states = []
        for fed in F.linear(inputs, input_maps).unbind():
            gate, change = (fed + h @ state_maps.T).chunk(2, dim=-1)
            values = [h + gate.sigmoid() * (change.tanh() - h)]
            values += [torch.zeros_like(h)] * len(self.sources)
            for place, (source, mix) in enumerate(zip(self.sources, mixes, strict=True)):
                s = values[place]
                z = (s @ maps[self.rows(source)].T).view(len(s), source.targets, 2, -1)
                gate, change = z[:, :, 0].sigmoid(), z[:, :, 1]
                unchanged = mix[:, -1:] * s[:, None]
                d = -unchanged
                for name, weight in zip(source.operations, mix[:, :-1].unbind(1), strict=True):
                    d = d + weight[:, None] * (change if name == "identity" else ACTIVATIONS[name](change))
                for target, part in enumerate((unchanged + gate * d).unbind(1), source.first):
                    values[target] = values[target] + part
            h = torch.stack([values[node] for node in self.output]).mean(0)
            states.append(h)
        return torch.stack(states)


class _Lane(NamedTuple):
    """What one source's part of a workspace consists of, for all time steps."""

    mix: Float[Tensor, "targets coefficients"]
    gates: Float[Tensor, "time targets batch hidden"]
    """g."""
    images: Float[Tensor, "time targets operations batch hidden"]
    """φ_k(a)."""
    changes: Float[Tensor, "time targets batch hidden"]
    """d."""


class HighwayWorkspace(Workspace):
    """What a pass of a :class:`HighwayGraph` needs."""

    def __init__(self, graph: HighwayGraph, kind: Kind) -> None:
        self.graph, self.kind = graph, kind
        like = torch.empty(0, dtype=kind.dtype, device=kind.device)
        steps, batch, hidden, nodes = kind.steps, kind.batch, graph.hidden, len(graph.sources)
        self.coefficients = like.new_empty(sum(graph.sizes))
        self.state_maps = like.new_empty(2 * hidden, hidden)
        self.maps = like.new_empty(2 * hidden * nodes, hidden)
        self.share = like.new_zeros(nodes + 1)  # of each node in the new state
        self.share[list(graph.output)] = 1 / len(graph.output)
        self.fed = like.new_empty(steps, batch, 2 * hidden)
        self.states = like.new_empty(1 + steps, batch, hidden)
        self.values = like.new_empty(steps, nodes + 1, batch, hidden)
        self.first = like.new_empty(3, steps, batch, hidden)
        """g, u and u − h of node 0."""
        self.lanes = [
            _Lane(
                mix,
                like.new_empty(steps, source.targets, batch, hidden),
                like.new_empty(steps, source.targets, len(source.operations), batch, hidden),
                like.new_empty(steps, source.targets, batch, hidden),
            )
            for source, mix in zip(graph.sources, graph.mixes(self.coefficients), strict=True)
        ]
        self.kept = [self.states, self.values, self.first, *(t for lane in self.lanes for t in lane[1:])]
        self.loop = [call for t in range(steps) for call in self._step(t)]

    def targets(self, place: int, values: Tensor) -> Float[Tensor, "time targets batch hidden"]:
        """The values of all nodes from a source's nearest to its farthest target."""
        source = self.graph.sources[place]
        return values[:, source.first : source.first + source.targets]

    def forward(self, *tensors: Any) -> Float[Tensor, "time batch hidden"]:
        inputs, state, input_maps, state_maps, maps, coefficients = Arguments(*tensors)
        self.coefficients.copy_(coefficients)
        self.state_maps.copy_(state_maps)
        self.maps.copy_(maps)
        torch.mm(inputs.reshape(-1, inputs.shape[2]), input_maps.T, out=self.fed.flatten(0, 1))
        self.states[0] = state
        self.values.zero_()
        for call in self.loop:
            call()
        return self.states[1:].clone()

    def _step(self, t: int) -> list[Call]:
        """One time step."""
        graph, batch, hidden = self.graph, self.kind.batch, self.graph.hidden
        h, values = self.states[t], self.values[t]
        gate, new, change = self.first[:, t]
        z = self.fed[t]
        calls: list[Call] = [
            partial(z.addmm_, h, self.state_maps.T),
            partial(torch.sigmoid, z[:, :hidden], out=gate),
            partial(torch.tanh, z[:, hidden:], out=new),
            partial(torch.sub, new, h, out=change),
            partial(torch.addcmul, h, gate, change, out=values[0]),
        ]
        for place, (source, lane) in enumerate(zip(graph.sources, self.lanes, strict=True)):
            s, received = values[place], self.targets(place, self.values)[t]
            count = source.targets
            z = self.fed.new_empty(batch, 2 * hidden * count)
            c, a = z.view(batch, count, 2, hidden).permute(2, 1, 0, 3)
            d = lane.changes[t]
            calls.append(partial(torch.mm, s, self.maps[graph.rows(source)].T, out=z))
            calls.append(partial(torch.sigmoid, c, out=lane.gates[t]))
            for name, image in zip(source.operations, lane.images[t].unbind(1), strict=True):
                calls.append(_image_call(name, a, image))
            weights, total = lane.mix[:, None, :-1], lane.mix[:, -1:, None]
            calls.append(partial(torch.bmm, weights, lane.images[t].flatten(2), out=d.view(count, 1, -1)))
            calls.append(partial(d.addcmul_, s, total, value=-1))
            calls.append(partial(received.addcmul_, s, total))
            calls.append(partial(received.addcmul_, lane.gates[t], d))
        mean = self.states[t + 1].view(1, -1)
        calls.append(partial(torch.mm, self.share[None], values.flatten(1), out=mean))
        return calls

    @functools.cached_property
    def _back(self) -> _Back:
        with ordinary_tensors():
            return _Back(self)

    def backward(self, tensors: Sequence[Any], gradient: Tensor, needed: Sequence[bool]) -> Sequence[Tensor | None]:
        inputs, _, input_maps, *_ = tensors
        need_inputs, need_state, need_input_maps, need_state_maps, need_maps, need_coefficients = needed
        back, hidden = self._back, self.graph.hidden
        back.for_states[0] = 0
        back.for_states[1:] = gradient
        for call in back.before:
            call()
        for call in back.loop:
            call()

        for_first = back.for_first.flatten(0, 1)
        for_maps: Tensor | None = None
        if need_maps:
            transposed = self.maps.new_zeros(hidden, len(self.maps))
            for place, source in enumerate(self.graph.sources):
                own = self.values[:, place].reshape(-1, hidden)
                transposed[:, self.graph.rows(source)].addmm_(own.T, back.for_lanes[place].flatten(0, 1))
            for_maps = transposed.T.contiguous()
        flat = inputs.reshape(-1, inputs.shape[2])
        return [
            (for_first @ input_maps).view(inputs.shape) if need_inputs else None,
            back.for_states[0].clone() if need_state else None,
            (flat.T @ for_first).T.contiguous() if need_input_maps else None,
            (self.states[:-1].reshape(-1, hidden).T @ for_first).T.contiguous() if need_state_maps else None,
            for_maps,
            self._for_coefficients() if need_coefficients else None,
        ]

    def _for_coefficients(self) -> Float[Tensor, "coefficients"]:
        parts = []
        for place, lane in enumerate(self.lanes):
            sent = self.targets(place, self._back.for_values)
            for_changes = sent * lane.gates
            products = torch.matmul(lane.images.flatten(3), for_changes.flatten(2).unsqueeze(3))
            of_total = ((sent - for_changes) * self.values[:, place, None]).sum((0, 2, 3))
            parts.append(torch.cat([products.squeeze(3).sum(0), of_total[:, None]], dim=1).flatten())
        return torch.cat(parts)


def _image_call(name: str, a: Tensor, image: Tensor) -> Call:
    """φ(a)."""
    if name == "identity":
        return partial(image.copy_, a)
    if name == "relu":
        return partial(torch.clamp_min, a, 0, out=image)
    return partial(torch.sigmoid if name == "sigmoid" else torch.tanh, a, out=image)


class _Back:
    """What a workspace needs for the backward pass.

    What a target receives from s changes with c by d g (1 − g), with a by g Σ_k w_k φ_k′, with s by w (1 − g). These
    are known for all steps before the loop.
    """

    def __init__(self, workspace: HighwayWorkspace) -> None:
        graph, kind = workspace.graph, workspace.kind
        steps, batch, hidden = kind.steps, kind.batch, graph.hidden
        like = workspace.values
        self.for_states = torch.empty_like(workspace.states)
        self.for_values = torch.empty_like(workspace.values)
        self.for_first = like.new_empty(steps, batch, 2 * hidden)
        """Of [c, a] of node 0."""
        self.for_lanes = [like.new_empty(steps, batch, 2 * hidden * source.targets) for source in graph.sources]
        """Of [c, a] of all targets of each source."""
        gate, new, change = workspace.first
        self.one = torch.ones_like(like[0, 0, 0, 0])
        self.first_slopes = like.new_empty(2, steps, batch, hidden)
        """What node 0 changes with c and a by."""
        self.first_passes = torch.empty_like(gate)
        """What node 0 changes with h by."""
        self.before: list[Call] = [
            *self._gate_calls(gate, change, self.first_passes, self.first_slopes[0]),
            *self._slope_calls("tanh", new, self.first_slopes[1]),
            partial(self.first_slopes[1].mul_, gate),
        ]
        self.slopes: list[Tensor] = []
        """What the targets of each source change with c and a by: (2, time, targets, batch, hidden)."""
        self.passes: list[Tensor] = []
        """What they change with s by."""
        for source, lane in zip(graph.sources, workspace.lanes, strict=True):
            slopes, passes = like.new_empty(2, *lane.gates.shape), torch.empty_like(lane.gates)
            self.before += self._gate_calls(lane.gates, lane.changes, passes, slopes[0])
            self.before.append(partial(passes.mul_, lane.mix[:, -1:, None]))
            self.before.append(partial(slopes[1].zero_))
            part = torch.empty_like(passes)
            for place, name in enumerate(source.operations):
                self.before += self._slope_calls(name, lane.images[:, :, place], part)
                self.before.append(partial(slopes[1].addcmul_, part, lane.mix[:, place, None, None]))
            self.before.append(partial(slopes[1].mul_, lane.gates))
            self.slopes.append(slopes)
            self.passes.append(passes)
        self.loop = [call for t in reversed(range(steps)) for call in self._step(workspace, t)]

    def _gate_calls(self, gate: Tensor, change: Tensor, rest: Tensor, slope: Tensor) -> list[Call]:
        """1 − g, and d g (1 − g)."""
        return [
            partial(torch.sub, self.one, gate, out=rest),
            partial(torch.mul, gate, rest, out=slope),
            partial(slope.mul_, change),
        ]

    def _slope_calls(self, name: str, image: Tensor, slope: Tensor) -> list[Call]:
        """The derivative of an activation, from its value."""
        if name == "identity":
            return [partial(slope.fill_, 1)]
        if name == "relu":
            return [partial(torch.sign, image, out=slope)]
        if name == "sigmoid":
            return [partial(torch.addcmul, image, image, image, value=-1, out=slope)]
        return [partial(torch.mul, image, image, out=slope), partial(torch.sub, self.one, slope, out=slope)]

    def _step(self, workspace: HighwayWorkspace, t: int) -> list[Call]:
        """One time step."""
        values = self.for_values[t]
        graph, batch, hidden = workspace.graph, workspace.kind.batch, workspace.graph.hidden
        calls: list[Call] = [partial(torch.mul, workspace.share[:, None, None], self.for_states[t + 1], out=values)]
        for place, source in reversed(list(enumerate(graph.sources))):
            sent, own = workspace.targets(place, self.for_values)[t], values[place]
            for_z = self.for_lanes[place][t]
            parts = for_z.view(batch, source.targets, 2, hidden).permute(2, 1, 0, 3)
            passed = self.passes[place][t]
            calls.append(partial(torch.mul, sent, self.slopes[place][:, t], out=parts))
            if source.targets == 1:
                calls.append(partial(own.addcmul_, sent[0], passed[0]))
            else:
                product, total = torch.empty_like(passed), torch.empty_like(own)
                calls.append(partial(torch.mul, sent, passed, out=product))
                calls.append(partial(torch.sum, product, 0, out=total))
                calls.append(partial(own.add_, total))
            calls.append(partial(own.addmm_, for_z, workspace.maps[graph.rows(source)]))
        for_z, before = self.for_first[t], self.for_states[t]
        parts = for_z.view(batch, 2, hidden).transpose(0, 1)
        calls.append(partial(torch.mul, values[0], self.first_slopes[:, t], out=parts))
        calls.append(partial(before.addcmul_, values[0], self.first_passes[t]))
        calls.append(partial(before.addmm_, for_z, workspace.state_maps))
        return calls
