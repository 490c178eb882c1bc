"""Recurrent cells: what computes the next state from the input and the last one (growing DARTS §2.1, §3.1; Chapter 6).

A cell has one or more candidates on each of its edges and gets a coefficient for each. With all candidates it is the
cell of a supernet; with one an edge and coefficients of 1 it is a derived cell. Three backbones:

* :class:`DartsCell`: the paper's form of DARTS. Node 1 reads [x; h], every later node all nodes before it except that
  input, and the last node is the new state (Eq. 1, 22).
* :class:`HighwayCell`: the cell of DARTS' own code (Liu et al. 2019, appendix A.1.2). Each edge has a gate,
  and the new state is the mean of all nodes.
* :class:`TwoToOneCell`: each node reads the input x and the node before it (Eq. 12, Table 1).

This is the readable form, one module an operation; :mod:`nasbook.networks.fused_recurrent` computes the same in fewer
steps.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import ZERO, CellGenotype, Space
from nasbook.operations.recurrent import (
    ACTIVATIONS,
    DARTS_RECURRENT_OPERATIONS,
    TWO_TO_ONE_OPERATIONS,
    build_recurrent_operation,
    build_two_to_one_operation,
    operation_of,
    recurrent_weight,
)


class RecurrentCell(nn.Module, ABC):
    """One recurrent layer: candidates on the edges of a space, run over a sequence.

    Args:
        space: a space of :func:`recurrent_space`, with candidates of its own on every edge or not.
        inputs: width of x, n_x.
        hidden: width of the state h and of every node, n_h.
        output: the nodes that make the new state; empty for the backbone's own: the last one, or all of them.

    Raises:
        InvalidInput: sizes below 1, another number of input nodes than 1, an unknown operation, or a graph or an output
            that the backbone does not have.
    """

    backbone: ClassVar[str]

    def __init__(self, space: Space, inputs: int, hidden: int, output: tuple[int, ...] = ()) -> None:
        super().__init__()
        require_positive(inputs=inputs, hidden=hidden)
        if space.inputs != 1:
            raise InvalidInput(f"A recurrent cell has 1 input node, this space has {space.inputs}.")
        self.space = space
        self.inputs = inputs
        self.hidden = hidden
        self.output = output or self.own_output(space)
        self.check_graph()
        self.needed = _needed(space, self.output)
        self.build()

    @staticmethod
    def own_output(space: Space) -> tuple[int, ...]:
        """The nodes that make the new state where nothing else is said: the last one."""
        return (space.nodes,)

    def check_graph(self) -> None:
        """Raises :class:`InvalidInput` where the space or the output is not of the backbone's form."""
        for node in self.output:
            if not 1 <= node <= self.space.nodes:
                raise InvalidInput(f"output: expected intermediate nodes (1 to {self.space.nodes}), got {node}.")

    @abstractmethod
    def build(self) -> None:
        """Builds the parameters."""

    @abstractmethod
    def next_state(
        self,
        x: Float[Tensor, "batch inputs"],
        h: Float[Tensor, "batch hidden"],
        weights: dict[tuple[int, int], dict[str, Tensor]],
    ) -> Float[Tensor, "batch hidden"]:
        """h_t from x_t and h_{t-1}; ``weights`` has the coefficient of every candidate, by edge and name."""

    def forward(
        self,
        inputs: Float[Tensor, "time batch inputs"],
        coefficients: Float[Tensor, "edges operations"],
        state: Float[Tensor, "batch hidden"] | None = None,
    ) -> Float[Tensor, "time batch hidden"]:
        """The states after every time step.

        Args:
            inputs: x_t.
            coefficients: what each candidate is multiplied by, in the order of ``space.edges`` and
                ``space.operations``; 0 where a candidate does not stand on an edge.
            state: h before the first step; None for zeros.
        """
        weights = self.by_candidate(coefficients)
        h = inputs.new_zeros(inputs.shape[1], self.hidden) if state is None else state
        states = []
        for x in inputs:
            h = self.next_state(x, h, weights)
            states.append(h)
        return torch.stack(states)

    def by_candidate(self, coefficients: Tensor) -> dict[tuple[int, int], dict[str, Tensor]]:
        """The coefficients by edge and name of the candidate."""
        columns = {name: place for place, name in enumerate(self.space.operations)}
        rows = zip(self.space.edges, coefficients.unbind(), strict=True)
        return {edge: {name: row[columns[name]] for name in self.space.candidates(*edge)} for edge, row in rows}

    def candidates(self, source: int, target: int) -> nn.ModuleDict:
        """The candidates on an edge, by name.

        Raises:
            InvalidInput: the operations of this cell's edges share their weights, or have none.
        """
        raise InvalidInput(f"In the {self.backbone} backbone no operation has weights of its own.")


class _CellOfModules(RecurrentCell):
    """A cell whose candidates are modules of their own, and whose state is one node."""

    def check_graph(self) -> None:
        super().check_graph()
        if len(self.output) != 1:
            raise InvalidInput(
                f"output: the state of a {self.backbone} cell is one node, got {list(self.output)}. "
                f"A genotype without an output means all of its nodes; give it output={self.own_output(self.space)}."
            )

    def build(self) -> None:
        self.edges = nn.ModuleDict(
            {
                f"{source}-{target}": nn.ModuleDict(
                    {name: self.build_candidate(name, source) for name in self.space.candidates(source, target)}
                )
                for source, target in self.space.edges
                if target in self.needed
            }
        )

    @abstractmethod
    def build_candidate(self, name: str, source: int) -> nn.Module:
        """A candidate on an edge that leaves ``source``."""

    def candidates(self, source: int, target: int) -> nn.ModuleDict:
        found = self.edges[f"{source}-{target}"]
        assert isinstance(found, nn.ModuleDict)  # for the type checker: ModuleDict forgets
        return found


class TwoToOneCell(_CellOfModules):
    """The Two-to-One backbone: a chain of nodes that all read x (Eq. 12). Node 0 is h_{t-1}, the last one is h_t."""

    backbone: ClassVar[str] = "two-to-one"

    def check_graph(self) -> None:
        super().check_graph()
        for source, target in self.space.edges:
            if source != target - 1:
                raise InvalidInput(
                    f"A node of the Two-to-One cell reads the node before it (Eq. 12); "
                    f"this space has an edge from node {source} to node {target}."
                )

    def build_candidate(self, name: str, source: int) -> nn.Module:
        return build_two_to_one_operation(name, self.inputs, self.hidden)

    def next_state(self, x: Tensor, h: Tensor, weights: dict[tuple[int, int], dict[str, Tensor]]) -> Tensor:
        for node in self.needed:
            operations, own = self.candidates(node - 1, node), weights[node - 1, node]
            h = _total(weight * operations[name](x, h) for name, weight in own.items())  # Eq. 12
        return h


class DartsCell(_CellOfModules):
    """DARTS' backbone as the paper has it (Eq. 1): node 0 is [x; h_{t-1}], the last node is h_t."""

    backbone: ClassVar[str] = "darts"

    def build_candidate(self, name: str, source: int) -> nn.Module:
        return build_recurrent_operation(name, self.hidden + (self.inputs if source == 0 else 0), self.hidden)

    def next_state(self, x: Tensor, h: Tensor, weights: dict[tuple[int, int], dict[str, Tensor]]) -> Tensor:
        nodes = {0: torch.cat([x, h], dim=-1)}
        for target in self.needed:
            nodes[target] = _total(
                weight * self.candidates(source, target)[name](nodes[source])
                for source in self.space.sources(target)
                for name, weight in weights[source, target].items()
            )  # Eq. 1
        return nodes[self.output[0]]


class HighwayCell(RecurrentCell):
    """The recurrent cell of DARTS' own code: gated edges, one matrix a node, and the mean of the nodes.

    [c, a] = W₀ [x; h] and s₀ = h + σ(c)·(tanh(a) − h). Every edge then gives s_i + σ(c)·(φ(a) − s_i) with
    [c, a] = W_j s_i, where φ is one of tanh, ReLU, sigmoid and identity; the zero operation gives nothing.

    ``normalize`` has batch norms without affine parameters behind every node, as DARTS' search has; a derived cell has
    none. Their moments are those of the batch at one time step; evaluation takes the running ones.
    """

    backbone: ClassVar[str] = "highway"
    spread: ClassVar[float] = 0.04
    """Half the width of the uniform distribution of fresh weights."""

    def __init__(
        self, space: Space, inputs: int, hidden: int, output: tuple[int, ...] = (), normalize: bool = False
    ) -> None:
        self.normalize = normalize
        super().__init__(space, inputs, hidden, output)

    @staticmethod
    def own_output(space: Space) -> tuple[int, ...]:
        return tuple(range(1, space.nodes + 1))

    def check_graph(self) -> None:
        super().check_graph()
        for name in self.space.operations:
            if operation_of(name) not in DARTS_RECURRENT_OPERATIONS:
                raise unknown_name("operation of the highway recurrent cell", name, DARTS_RECURRENT_OPERATIONS)

    def build(self) -> None:
        fan = round(self.spread**-2)
        self.initial = recurrent_weight(2 * self.hidden, self.inputs + self.hidden, fan)
        self.nodes = nn.ParameterDict(
            {str(node): recurrent_weight(2 * self.hidden, self.hidden, fan) for node in self.needed}
        )
        # One module for all nodes and steps, as in DARTS' code.
        self.norm = nn.BatchNorm1d(self.hidden, affine=False) if self.normalize else nn.Identity()

    def next_state(self, x: Tensor, h: Tensor, weights: dict[tuple[int, int], dict[str, Tensor]]) -> Tensor:
        gate, change = (torch.cat([x, h], dim=-1) @ self.initial.T).chunk(2, dim=-1)
        nodes = {0: self.norm(h + gate.sigmoid() * (change.tanh() - h))}
        for target in self.needed:
            parts = []
            for source in self.space.sources(target):
                before = nodes[source]
                gate, change = (before @ self.nodes[str(target)].T).chunk(2, dim=-1)
                gate = gate.sigmoid()
                for name, weight in weights[source, target].items():
                    operation = operation_of(name)
                    if operation != ZERO:
                        changed = change if operation == "identity" else ACTIVATIONS[operation](change)
                        parts.append(weight * (before + gate * (changed - before)))
            nodes[target] = self.norm(_total(parts) if parts else torch.zeros_like(h))
        return torch.stack([nodes[node] for node in self.output]).mean(0)


def _total(values: object) -> Tensor:
    """The sum of at least one tensor, without the int 0 that Python's ``sum`` starts from."""
    return functools.reduce(torch.add, values)  # type: ignore[call-overload]


def _needed(space: Space, output: Sequence[int]) -> tuple[int, ...]:
    """The intermediate nodes that the output depends on, in order."""
    found = set(output)
    for node in range(space.nodes, 0, -1):
        if node in found:
            found.update(space.sources(node))
    return tuple(sorted(found - {0}))


@dataclass(frozen=True)
class RecurrentBackbone:
    """A recurrent cell space without its size: the candidates, and which nodes a new node reads."""

    name: str
    """As in the kind of a genotype's cell."""
    cell: type[RecurrentCell]
    """What computes it."""
    operations: tuple[str, ...]
    """The candidates of a new edge, in order."""
    chain: bool = False
    """Whether a node reads the one before only."""
    input_once: bool = False
    """Whether only the first node reads node 0."""

    def sources(self, node: int) -> tuple[int, ...]:
        """The nodes that a new node reads."""
        if self.chain or node == 1:
            return (node - 1,)
        return tuple(range(1 if self.input_once else 0, node))

    def space(self, nodes: int, layers: int = 1) -> Space:
        """The space with so many intermediate nodes: a node keeps one edge and on it one operation (§3.2.3, k = 1).

        Args:
            nodes: number of intermediate nodes.
            layers: number of stacked cells; each is a kind of cell of its own (Eq. 23, 25).
        """
        require_positive(nodes=nodes, layers=layers)
        left_out = [(source, node) for node in range(1, nodes + 1) for source in range(node)
                    if source not in self.sources(node)]
        return Space(self.operations, nodes, 1, 1, self.kinds(layers), tuple(left_out))

    def kinds(self, layers: int) -> tuple[str, ...]:
        """The kinds of cell of a stack: the backbone's name, with the layer's number where there are several."""
        return (self.name,) if layers == 1 else tuple(f"{self.name} {layer}" for layer in range(1, layers + 1))


RECURRENT_BACKBONES = {
    backbone.name: backbone
    for backbone in (
        RecurrentBackbone("two-to-one", TwoToOneCell, TWO_TO_ONE_OPERATIONS, chain=True),
        RecurrentBackbone("darts", DartsCell, DARTS_RECURRENT_OPERATIONS, input_once=True),
        RecurrentBackbone("highway", HighwayCell, (ZERO, "tanh", "relu", "sigmoid", "identity")),
    )
}
"""The backbones by name. DARTS' own code has 8 nodes in the highway form, and its order of candidates."""


def backbone_of(kind: str) -> RecurrentBackbone:
    """The backbone of a kind of recurrent cell: ``darts`` for ``darts`` and for ``darts 2``.

    Raises:
        InvalidInput: there is no such backbone.
    """
    name = kind.split(" ")[0]
    if name not in RECURRENT_BACKBONES:
        raise unknown_name("recurrent backbone", name, RECURRENT_BACKBONES)
    return RECURRENT_BACKBONES[name]


def derived_space(genotype: CellGenotype) -> tuple[Space, Float[Tensor, "edges operations"]]:
    """A discrete cell as a space whose edges have what was chosen, and its coefficients.

    Several operations on one edge share it equally, so that an edge's coefficients sum to 1 as in the supernet.

    Raises:
        InvalidInput: the cell has another number of input nodes than 1.
    """
    if genotype.inputs != 1:
        raise InvalidInput(f"A recurrent cell has 1 input node, this genotype has {genotype.inputs}.")
    chosen: dict[tuple[int, int], list[str]] = {}
    for edge in genotype.edges:
        chosen.setdefault((edge.source, edge.target), []).append(edge.operation)
    last = max(genotype.connected())
    if len(genotype.connected()) != last:
        raise InvalidInput("A recurrent genotype's nodes need an incoming edge each; renumber those that have one.")
    graph = Space(
        tuple(dict.fromkeys(edge.operation for edge in genotype.edges)),
        nodes=last,
        inputs=1,
        edges_per_node=max(len(genotype.into(node)) for node in range(1, last + 1)),
        left_out=tuple((s, t) for t in range(1, last + 1) for s in range(t) if (s, t) not in chosen),
    )
    space = replace(graph, pools=tuple(tuple(chosen[edge]) for edge in graph.edges))
    rows = [[float(name in chosen[edge]) / len(chosen[edge]) for name in space.operations] for edge in space.edges]
    return space, torch.tensor(rows)
