"""Splitting steepest descent for the operations of a recurrent cell (growing DARTS §2.3, §3.2.2, §3.2.5; Chapter 6).

A candidate ω·o(x; θ) becomes ω/2·o(x; θ + εδ) + ω/2·o(x; θ − εδ), all of its hidden units at once (Eq. 11, 21). A unit
is one row: φ(θ·u) with u = (x, h, 1) in the Two-to-One cell and the node's input in DARTS'. It is applied at every time
step, so its splitting matrix sums over them:

    S = E Σ_t ∂L/∂o_t · φ''(θ·u_t) · u_t u_tᵀ                                                                 (Eq. 10)

∂L/∂o_t is the *total* derivative of the loss in what the unit gives at step t, with its coefficient and with all that
follows from it at later steps. Then the loss of the split network is L + ½ ε² Σ δᵀSδ + O(ε⁴), over all units that are
split anywhere at once: with least eigenvectors, L + ½ ε² Σ λ_min.

One backward pass gives ∂L/∂o_t for all candidates, and S is a product of matrices. No Hessian is formed, as
:func:`nasbook.growth.splitting_matrices` needs for networks in general. As there, φ'' of a ReLU is a softplus' bump.

What the paper leaves open, and what we do:

* A unit with λ_min ≥ 0 keeps its parameters in both halves: along any direction its split would raise the loss.
* "Below 0" is below rounding: −(entries · machine epsilon · ‖S‖). A matrix without negative eigenvalues has zeros where
  the inputs don't span the space, and rounding makes them negative.
* ``most-negative``: of all candidates that enter a node, the one with the most units of λ_min < 0; of equals the one
  with the least sum. ``least-sum``: the one with the least sum of those λ_min that are below 0, half of which, times
  ε², is what its split is to bring. ``all-negative``: every candidate of which all units have λ_min < 0. All nodes of
  all layers split at once: what they bring adds up to second order.
* Copies on an edge are split as others are. On a full edge nothing is.

On trained cells all units of all candidates have λ_min < 0 as a rule: φ'' times ∂L/∂o takes both signs. Then the number
of negative eigenvalues decides nothing, and ``most-negative`` is ``least-sum``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.growth import CurvedReLU, least_eigenpairs
from nasbook.networks import backbone_of
from nasbook.operations.recurrent import ACTIVATIONS, Units, units_of
from nasbook.supernets.cell_changes import Build, Supernet, candidate_weights
from nasbook.supernets.operator_changes import (
    EdgeChanges,
    OperatorChange,
    OperatorRules,
    require_copies,
    with_changes,
)
from nasbook.supernets.recurrent import RecurrentSearchNetwork
from nasbook.supernets.search_network import SearchNetwork
from nasbook.training import Batch, evaluating

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets; the mean over a batch."""

Place = tuple[str, tuple[int, int], str]
"""Where a candidate stands: the kind of its cell, its edge and its name."""


class OperatorEigenpairs(NamedTuple):
    """The least eigenvalue of every hidden unit of a candidate, and its direction."""

    values: Float[Tensor, " hidden"]
    """λ_min."""
    vectors: Float[Tensor, "hidden entries"]
    """The unit eigenvectors; entries of the rows of :class:`~nasbook.operations.recurrent.Units`, one after another."""
    negative: Float[Tensor, " hidden"]
    """1 where λ_min is below 0 by more than rounding, else 0."""

    @property
    def gain(self) -> float:
        """The sum of the negative λ_min."""
        return float((self.values * self.negative).sum())


def operator_splitting_matrices(
    network: RecurrentSearchNetwork | SearchNetwork, batches: Iterable[Batch], loss: Loss
) -> dict[Place, Float[Tensor, "hidden entries entries"]]:
    """S of every hidden unit of every candidate with an activation (Eq. 10): exact, by one backward pass a batch.

    Args:
        network: left as it is.
        batches: over which the loss is averaged, weighted by their sizes.
        loss: the mean over a batch.

    Raises:
        InvalidInput: no batch, or operations that can't have copies.
    """
    readable = _readable(network)
    units = dict(_units(readable))
    batches = list(batches)
    if not batches:
        raise InvalidInput("There are no batches to average the loss over; give one or more.")
    examples = sum(len(targets) for _, targets in batches)
    found: dict[Place, Tensor] = {}
    for inputs, targets in batches:
        calls: dict[Place, list[tuple[Tensor, Tensor]]] = {place: [] for place in units}
        hooks = [module.register_forward_hook(_recording(calls[place])) for place, (module, _) in units.items()]
        try:
            with torch.enable_grad(), evaluating(readable):
                value = loss(readable(inputs), targets)
            outputs = [output for place in units for _, output in calls[place]]
            gradients = iter(torch.autograd.grad(value, outputs, allow_unused=True, materialize_grads=True))
        finally:
            for hook in hooks:
                hook.remove()
        for place, (_, rows) in units.items():
            u = torch.cat([u for u, _ in calls[place]]).detach()  # (time · batch, entries)
            g = torch.cat([next(gradients) for _ in calls[place]])  # (time · batch, hidden): ∂L/∂o_t
            theta = _joined(rows.parameters).detach()
            weight = g * curvature(rows.activation, u @ theta.T) * (len(targets) / examples)
            # One product a unit: all at once would need hidden times as much memory as u.
            matrices = torch.stack([(of_unit[:, None] * u).T @ u for of_unit in weight.T])
            found[place] = found[place] + matrices if place in found else matrices
    return found


def curvature(activation: str, a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """φ''(a), of a ReLU that of the softplus of :class:`nasbook.growth.CurvedReLU`."""
    phi = CurvedReLU() if activation == "relu" else ACTIVATIONS[activation]
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        (first,) = torch.autograd.grad(phi(a).sum(), a, create_graph=True)
        return torch.autograd.grad(first.sum(), a)[0]


def operator_eigenpairs(
    matrices: Mapping[Place, Float[Tensor, "hidden entries entries"]],
) -> dict[Place, OperatorEigenpairs]:
    """λ_min of every unit and the direction that belongs to it (Eq. 11)."""
    pairs = {}
    for place, matrix in matrices.items():
        found = least_eigenpairs({"units": matrix})
        values = found.values["units"]
        rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * matrix.norm(dim=(1, 2))
        pairs[place] = OperatorEigenpairs(values, found.vectors["units"], (values < -rounding).to(values))
    return pairs


def split_candidates(
    network: Supernet,
    build: Build[Supernet],
    directions: Mapping[Place, Float[Tensor, "hidden entries"]],
    step: float,
    generator: torch.Generator,
) -> tuple[Supernet, tuple[OperatorChange, ...]]:
    """Splits candidates into θ + ``step``·δ and θ − ``step``·δ, with half of the weight each (Eq. 11, 21).

    Args:
        network: left as it is.
        build: builds a supernet like it for other spaces.
        directions: δ of every hidden unit of the candidates to split; 0 for a unit that is to stay.
        step: ε. At 0 the function stays as it is.
        generator: of what ``build`` draws, on the CPU.

    Raises:
        InvalidInput: there is no such candidate, it has no activation, directions of another shape, or operations that
            can't have copies.
    """
    units = dict(_units(network))
    edges: dict[tuple[str, tuple[int, int]], EdgeChanges] = {}
    for (kind, edge, name), direction in directions.items():
        if (kind, edge, name) not in units:
            raise InvalidInput(f"The edge {edge} of {kind!r} has no candidate {name!r} whose units can be split.")
        shape = _joined(units[kind, edge, name][1].parameters).shape
        if direction.shape != shape:
            raise InvalidInput(
                f"{name!r} on the edge {edge} needs a direction for each of {shape[0]} hidden units, with {shape[1]} "
                f"entries; got the shape {tuple(direction.shape)}."
            )
        one = edges.setdefault((kind, edge), EdgeChanges(kind, edge, candidate_weights(network, kind)[edge]))
        one.divide("split", name)
    new = with_changes(network, build, edges.values(), generator)
    changes = tuple(change for one in edges.values() for change in one.steps)
    halves = dict(_units(new))
    with torch.no_grad():
        for change in changes:
            assert change.parent is not None  # a split is a birth
            parent = (change.kind, change.edge, change.parent)
            before = units[parent][1].parameters
            pieces = directions[parent].split([tensor[0].numel() for tensor in before], dim=1)
            for name, sign in ((change.parent, 1), (change.candidate, -1)):
                after = halves[change.kind, change.edge, name][1].parameters
                for new_tensor, tensor, piece in zip(after, before, pieces, strict=True):
                    new_tensor.copy_(tensor + sign * step * piece.reshape(tensor.shape).to(tensor))
    return new, changes


def split_operators(
    network: Supernet,
    build: Build[Supernet],
    rules: OperatorRules,
    batches: Iterable[Batch],
    loss: Loss,
    generator: torch.Generator,
) -> tuple[Supernet, tuple[OperatorChange, ...]]:
    """Splits the operations that the splitting matrices name (§3.2.5); call it when the validation loss stops falling.

    Args:
        network: left as it is.
        build: builds a supernet like it for other spaces.
        rules: which ones, and how far. Nothing is split unless the strategy is ``splitting``.
        batches: over which the loss is averaged, weighted by their sizes.
        loss: the mean over a batch.
        generator: of what ``build`` draws, on the CPU.

    Returns:
        The split supernet and its changes; the same network and nothing, where no unit has λ_min < 0.

    Raises:
        InvalidInput: no batch, or operations that can't have copies.
    """
    if rules.strategy != "splitting":
        return network, ()
    pairs = operator_eigenpairs(operator_splitting_matrices(network, batches, loss))
    room = {
        (kind, edge): rules.most_candidates - len(space.candidates(*edge))
        for kind, space in network.spaces.items()
        for edge in space.edges
    }
    directions = {
        place: pairs[place].vectors * pairs[place].negative[:, None] for place in chosen_splits(pairs, room, rules)
    }
    return split_candidates(network, build, directions, rules.split_step, generator)


def chosen_splits(
    pairs: Mapping[Place, OperatorEigenpairs], room: Mapping[tuple[str, tuple[int, int]], int], rules: OperatorRules
) -> tuple[Place, ...]:
    """The candidates to split, by ``rules.choose`` (§3.2.5).

    Args:
        pairs: of all candidates with an activation.
        room: how many more candidates may stand on each edge.
        rules: which ones.
    """
    useful = {place: pair for place, pair in pairs.items() if pair.negative.any() and room[place[:2]] > 0}
    if rules.choose == "all-negative":
        chosen: list[Place] = []
        for place in sorted(useful, key=lambda place: useful[place].gain):  # where room is short, the best
            taken = sum(other[:2] == place[:2] for other in chosen)
            if useful[place].negative.all() and taken < room[place[:2]]:
                chosen.append(place)
        return tuple(chosen)
    nodes: dict[tuple[str, int], list[Place]] = {}
    for place in useful:
        nodes.setdefault((place[0], place[1][1]), []).append(place)

    def rank(place: Place) -> tuple[float, float]:
        count = float(useful[place].negative.sum())
        return (-count if rules.choose == "most-negative" else 0.0, useful[place].gain)

    return tuple(min(places, key=rank) for places in nodes.values())


def _units(network: RecurrentSearchNetwork | SearchNetwork) -> Iterator[tuple[Place, tuple[nn.Module, Units]]]:
    """Every candidate with an activation that the output depends on, with its hidden units."""
    require_copies(network)
    assert isinstance(network, RecurrentSearchNetwork)  # for the type checker: of no other one are there copies
    for kind, space in network.spaces.items():
        cell = network.cell(kind)
        for edge in space.edges:
            for name, module in cell.candidates(*edge).items() if edge[1] in cell.needed else ():
                units = units_of(module)
                if units is not None:
                    yield (kind, edge, name), (module, units)


def _joined(parameters: Iterable[Tensor]) -> Float[Tensor, "hidden entries"]:
    """θ of every unit: the rows of its tensors, one after another."""
    return torch.cat([rows if rows.dim() > 1 else rows[:, None] for rows in parameters], dim=1)


def _recording(calls: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook that keeps u and o of every call."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        units = units_of(module)
        assert units is not None
        ones = [output.new_ones(len(output), 1) for parameter in units.parameters if parameter.dim() == 1]
        calls.append((torch.cat([*inputs, *ones], dim=1), output))

    return hook


def _readable(network: RecurrentSearchNetwork | SearchNetwork) -> RecurrentSearchNetwork:
    """A copy whose cells call one module an operation."""
    require_copies(network)
    assert isinstance(network, RecurrentSearchNetwork)  # for the type checker
    readable = copy.deepcopy(network)
    for place, kind in enumerate(network.spaces):
        cell = readable.cell(kind)
        with torch.random.fork_rng(devices=[]):
            plain = backbone_of(kind).cell(cell.space, cell.inputs, cell.hidden, cell.output)
        plain.to(next(network.parameters())).load_state_dict(cell.state_dict())
        readable.body.layers[place] = plain
    return readable.requires_grad_()
