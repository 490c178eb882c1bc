"""The recurrent cells in fewer, larger steps; see :mod:`nasbook.networks.recurrent_cells` for what they compute.

The readable cells run one module a candidate, node and time step. Here

* what the candidates of all nodes make of the input is one matrix product for all time steps;
* what the candidates that leave one node make of its value is one matrix product a time step, one activation for
  sigmoid and tanh, one for ReLU, and one product with the coefficients, whatever the number of targets;
* all sums of a Two-to-One node fold into one map of the input, and so do its products;
* the backward pass is written out (:mod:`nasbook.networks.fused_recurrent_function`), and the gradient of a matrix is
  one product after the loop over time.

Parameters and state dict are those of the readable cells. They are read and stacked anew in every pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.genotypes import ZERO, Space
from nasbook.networks.fused_recurrent_function import Graph, Source, run_sequence
from nasbook.networks.recurrent_cells import DartsCell, RecurrentCell, TwoToOneCell
from nasbook.operations.recurrent import ActivatedMap, Gate, Product, StateIdentity, StateZero, Sum, operation_of

BOUNDED = ("sigmoid", "tanh")
"""Activations that one sigmoid computes, as tanh(a) = 2 sigmoid(2a) − 1."""


class Place(NamedTuple):
    """Where a candidate stands."""

    source: int
    """The node that it leaves, counted without those that are not needed."""
    target: int
    edge: str
    """Key of its edge among the modules."""
    name: str
    coefficient: int
    """Where its coefficient stands, row by row."""
    kind: type[nn.Module]
    """What it is built from."""

    @property
    def operation(self) -> str:
        return operation_of(self.name)

    @property
    def factor(self) -> float:
        """What its coefficient and what goes into its activation are multiplied by."""
        return 2.0 if self.operation == "tanh" else 1.0


class Mixing:
    """A linear map from a cell's coefficients to all that the fused pass multiplies with, made entry by entry."""

    def __init__(self, coefficients: int) -> None:
        self.coefficients = coefficients
        self.rows: list[list[float]] = []
        self._matrix: Tensor | None = None

    def add(self, places: Iterable[Place], factor: float | None = None) -> None:
        """One more entry: the sum of the candidates' coefficients, times their factors or another one."""
        row = [0.0] * self.coefficients
        for place in places:
            row[place.coefficient] += place.factor if factor is None else factor
        self.rows.append(row)

    def __call__(self, coefficients: Float[Tensor, "edges operations"]) -> Float[Tensor, "entries"]:
        known = self._matrix
        if known is None or known.dtype != coefficients.dtype or known.device != coefficients.device:
            with torch.inference_mode(False):  # or autograd could not use it later
                known = coefficients.new_tensor(self.rows)
            self._matrix = known
        return known @ coefficients.flatten()


@dataclass(frozen=True)
class Plan:
    """What a fused pass does, apart from its tensors."""

    graph: Graph
    activated: tuple[Place, ...]
    """Candidates with an activation, in the order of their blocks."""
    linear: tuple[Place, ...]
    """The sums and products of a Two-to-One cell."""
    others: tuple[Place, ...]
    """Candidates that are not called: identity and zero."""
    mixing: Mixing
    """Gives the coefficients of :func:`run_sequence`."""

    @functools.cached_property
    def factors(self) -> list[float]:
        """Of the candidates with an activation."""
        return [place.factor for place in self.activated]

    @functools.cached_property
    def places(self) -> tuple[Place, ...]:
        """All candidates."""
        return self.activated + self.linear + self.others


def plan_two_to_one(space: Space, hidden: int) -> Plan:
    """The plan of a Two-to-One cell: a chain, so that every node has one target."""
    activated: list[Place] = []
    linear: list[Place] = []
    mixing = Mixing(len(space.edges) * len(space.operations))
    sources = []
    for step, edge in enumerate(space.edges):
        places = _leaving(space, edge, step, step + 1, Gate)
        blocks = _in_blocks(places)
        sums = [place for place in places if place.operation == "sum"]
        products = [place for place in places if place.operation == "product"]
        sources.append(
            Source(*_counts(blocks), identity=bool(sums), sums=len(sums), products=len(products))
        )
        for place in blocks:
            mixing.add([place])
        if sums:
            mixing.add(sums)
        activated += blocks
        linear += [*sums, *products]
    for place in linear:
        mixing.add([place])
    _add_levels(mixing, activated, len(sources))
    return Plan(Graph(hidden, tuple(sources), len(activated)), tuple(activated), tuple(linear), (), mixing)


def plan_darts(space: Space, needed: Sequence[int], hidden: int) -> Plan:
    """The plan of a DARTS cell whose last needed node is the output."""
    order = (0, *needed)
    activated: list[Place] = []
    others: list[Place] = []
    mixing = Mixing(len(space.edges) * len(space.operations))
    sources = []
    for source, node in enumerate(order[:-1]):
        targets = [target for target, other in enumerate(order) if (node, other) in space.edges]
        places = [p for target in targets for p in _leaving(space, (node, order[target]), source, target, ActivatedMap)]
        blocks = _in_blocks(places)
        identities = [place for place in places if place.operation == "identity"]
        span = range(targets[0], targets[-1] + 1)
        sources.append(Source(*_counts(blocks), targets[0] - source, len(span), identity=bool(identities)))
        for target in span:
            for place in blocks:
                mixing.add([place] if place.target == target else [])
        for target in span if identities else ():
            mixing.add(place for place in identities if place.target == target)
        activated += blocks
        others += [place for place in places if place not in blocks]
    _add_levels(mixing, activated, len(sources))
    graph = Graph(hidden, tuple(sources), fed=sources[0].candidates)
    return Plan(graph, tuple(activated), (), tuple(others), mixing)


KINDS: dict[str, type[nn.Module]] = {"identity": StateIdentity, ZERO: StateZero, "sum": Sum, "product": Product}


def _leaving(
    space: Space, edge: tuple[int, int], source: int, target: int, activated: type[nn.Module]
) -> list[Place]:
    """The candidates on an edge."""
    row = space.edges.index(edge) * len(space.operations)
    return [
        Place(
            source,
            target,
            f"{edge[0]}-{edge[1]}",
            name,
            row + space.operations.index(name),
            KINDS.get(operation_of(name), activated),
        )
        for name in space.candidates(*edge)
    ]


def _in_blocks(places: Sequence[Place]) -> list[Place]:
    """Those with an activation: first what a sigmoid computes, then ReLU."""
    return [p for p in places if p.operation in BOUNDED] + [p for p in places if p.operation == "relu"]


def _counts(places: Sequence[Place]) -> tuple[int, int]:
    """How many a sigmoid computes, and how many ReLU."""
    bounded = sum(place.operation in BOUNDED for place in places)
    return bounded, len(places) - bounded


def _add_levels(mixing: Mixing, activated: Sequence[Place], nodes: int) -> None:
    """The −1 of every tanh."""
    for target in range(1, nodes + 1):
        mixing.add((place for place in activated if place.target == target and place.operation == "tanh"), -1)


def _modules(edges: nn.ModuleDict, plan: Plan) -> list[Any] | None:
    """The candidates of ``plan.places``, if calling them would do what their classes say, and nothing else."""
    found = []
    for place in plan.places:
        module: Any = edges[place.edge][place.name]  # type: ignore[index]
        if (
            type(module) is not place.kind
            or (place.kind in (Gate, ActivatedMap) and module.activation != place.operation)
            or "forward" in vars(module)
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return None
        found.append(module)
    return found


def _fits(
    cell: RecurrentCell, inputs: Tensor, coefficients: Tensor, state: Tensor | None, weights: Iterable[Tensor]
) -> bool:
    """Whether all tensors are of the shapes and of the one type that the fused pass takes.

    What does not fit is left to the readable cell, which computes it or says what is wrong.
    """
    dtype, device = inputs.dtype, inputs.device
    space = cell.space
    return (
        inputs.dim() == 3
        and inputs.shape[2] == cell.inputs
        and inputs.numel() > 0
        and dtype.is_floating_point
        and coefficients.shape == (len(space.edges), len(space.operations))
        and (state is None or state.shape == (inputs.shape[1], cell.hidden))
        and all(
            tensor.dtype == dtype and tensor.device == device
            for tensor in (coefficients, *(() if state is None else (state,)), *weights)
        )
        and not torch.is_autocast_enabled(device.type)
        and not torch._C._are_functorch_transforms_active()
    )


class FusedTwoToOneCell(TwoToOneCell):
    """A :class:`~nasbook.networks.TwoToOneCell` with the same parameters, computed node by node.

    The fused pass reads the candidates' parameters and does not call the candidates. Where one is not what the cell was
    built from, or has hooks, a pass takes the readable way; and so under autocast and torch.func's transforms.
    """

    def build(self) -> None:
        super().build()
        self._plan = plan_two_to_one(self.space, self.hidden)

    def forward(
        self,
        inputs: Float[Tensor, "time batch inputs"],
        coefficients: Float[Tensor, "edges operations"],
        state: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "time batch hidden"]:
        plan = self._plan
        modules = _modules(self.edges, plan) if len(self.edges) == len(self.space.edges) else None
        if modules is None:
            return super().forward(inputs, coefficients, state)
        gates = modules[: len(plan.activated)]
        linear = [module.input_weight for module in modules[len(gates) :]]
        of_inputs = [gate.input_weight for gate in gates]
        of_state = [gate.state_weight for gate in gates]
        biases = [gate.bias for gate in gates]
        if not _fits(self, inputs, coefficients, state, (*linear, *of_inputs, *of_state, *biases)):
            return super().forward(inputs, coefficients, state)
        return run_sequence(
            plan.graph,
            inputs,
            inputs.new_zeros(inputs.shape[1], self.hidden) if state is None else state,
            _below_each_other(of_inputs, inputs, self.inputs),
            torch.cat(biases) if biases else None,
            _below_each_other(linear, inputs, self.inputs),
            _below_each_other(of_state, inputs, self.hidden),
            plan.mixing(coefficients),
            inputs.new_tensor(plan.factors),
        )


class FusedDartsCell(DartsCell):
    """A :class:`~nasbook.networks.DartsCell` with the same parameters, computed node by node.

    It takes the readable way where :class:`FusedTwoToOneCell` does.
    """

    def build(self) -> None:
        super().build()
        self._plan = plan_darts(self.space, self.needed, self.hidden)

    def forward(
        self,
        inputs: Float[Tensor, "time batch inputs"],
        coefficients: Float[Tensor, "edges operations"],
        state: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "time batch hidden"]:
        plan = self._plan
        modules = _modules(self.edges, plan) if len(self.output) == 1 else None
        if modules is None:
            return super().forward(inputs, coefficients, state)
        weights = [module.weight for module in modules[: len(plan.activated)]]
        if not _fits(self, inputs, coefficients, state, weights):
            return super().forward(inputs, coefficients, state)
        first, others = weights[: plan.graph.fed], weights[plan.graph.fed :]
        # Node 0 is [x; h]: its maps have columns for x, then for h.
        of_both = _below_each_other(first, inputs, self.inputs + self.hidden)
        of_inputs, of_state = of_both.split([self.inputs, self.hidden], dim=1)
        return run_sequence(
            plan.graph,
            inputs,
            inputs.new_zeros(inputs.shape[1], self.hidden) if state is None else state,
            of_inputs,
            None,
            inputs.new_empty(0, self.inputs),
            _below_each_other([of_state, *others], inputs, self.hidden),
            plan.mixing(coefficients),
            inputs.new_tensor(plan.factors),
        )


def _below_each_other(maps: Sequence[Tensor], like: Tensor, width: int) -> Float[Tensor, "rows width"]:
    return torch.cat(list(maps)) if maps else like.new_empty(0, width)


FUSED_CELLS: dict[str, type[RecurrentCell]] = {"two-to-one": FusedTwoToOneCell, "darts": FusedDartsCell}
"""The fused form of each backbone that has one, by name; parameters, state and values are those of the readable one."""
