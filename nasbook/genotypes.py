"""Spaces and genotypes: which cells there are to choose from, and which one was chosen.

Chapter 1. A genotype is the frozen answer of a search. It says which operation stands on which edge
of which cell, and nothing about weights, so it is small enough to read, compare and mail.

Nodes are numbered as in DARTS: the cell's inputs come first (0 is the output of the cell before the
previous one, 1 that of the previous one), then the intermediate nodes.

Nothing here imports torch, so that reading and drawing a genotype starts fast.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.files import whole_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "CELL_SECTIONS",
    "DARTS_OPERATIONS",
    "DARTS_SPACE",
    "DARTS_V1",
    "DARTS_V2",
    "PC_DARTS_CIFAR",
    "PR_DARTS_DL1",
    "PR_DARTS_DL2",
    "PR_DARTS_DR",
    "PR_DARTS_UR",
    "PUBLISHED",
    "ZERO",
    "CellGenotype",
    "CellSpace",
    "DartsCells",
    "Edge",
    "Genotype",
    "Space",
    "StackRun",
    "count_cells",
    "parse_darts",
    "random_genotype",
    "random_operations",
    "reduces_resolution",
    "stack_runs",
]

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The eight candidates of DARTS §3.1, in the order of the authors' code (ties go to the lower index)."""

CELL_SECTIONS = ("cell 1", "cell 2", "cell 3", "cell 4", "cell 5")
"""Kinds of a genotype with a cell for every section of the stack (Firefly §3, B.3): before the first reduction, at it,
between the two, at the second one, and after it."""

ZERO = "none"
"""The zero operation's name: "no connection". It can be a candidate, but not part of a genotype."""


@dataclass(frozen=True)
class Edge:
    """One operation from one node to a later one."""

    source: int
    """Node that the operation reads."""
    target: int
    """Intermediate node that the operation's output is added to."""
    operation: str
    """Name of the operation, as in :func:`nasbook.operations.list_operations`."""


@dataclass(frozen=True)
class CellGenotype:
    """A discrete cell: a directed acyclic graph with one operation name on every edge.

    Any number of edges may enter a node (none removes it), and several operations may stand between the
    same two nodes.

    Raises:
        InvalidInput: an edge runs backwards, leaves the cell, carries the zero operation or is there
            twice; or the output names a node that has no incoming edge.
    """

    edges: tuple[Edge, ...]
    """The chosen operations; stored in order of target, source and name."""
    nodes: int = 4
    """Number of intermediate nodes."""
    inputs: int = 2
    """Number of input nodes."""
    output: tuple[int, ...] = ()
    """Nodes that are concatenated into the cell's output; empty means every connected intermediate node."""

    def __post_init__(self) -> None:
        last = self.inputs + self.nodes - 1
        if self.inputs < 1 or self.nodes < 1:
            raise InvalidInput(
                f"inputs={self.inputs}, nodes={self.nodes}: a cell needs at least one input and one intermediate node."
            )
        if not self.edges:
            raise InvalidInput("edges: a cell needs at least one edge, got none.")
        for number, edge in enumerate(self.edges):
            where = f"edges[{number}]"
            if not self.inputs <= edge.target <= last:
                raise InvalidInput(
                    f"{where}.target: expected an intermediate node ({self.inputs} to {last}), got {edge.target}."
                )
            if not 0 <= edge.source < edge.target:
                raise InvalidInput(
                    f"{where}.source: expected a node before the target (0 to {edge.target - 1}), got {edge.source}."
                )
            if edge.operation == ZERO:
                raise InvalidInput(f"{where}.operation: {ZERO!r} means no connection; leave the edge out.")
        if len(set(self.edges)) != len(self.edges):
            raise InvalidInput("edges: the same operation stands twice between the same two nodes.")
        connected = self.connected()
        for number, edge in enumerate(self.edges):
            if edge.source >= self.inputs and edge.source not in connected:
                raise InvalidInput(f"edges[{number}].source: node {edge.source} has no incoming edge in this cell.")
        if not self.output:
            object.__setattr__(self, "output", connected)
        for node in self.output:
            if node not in connected:
                raise InvalidInput(
                    f"output: node {node} has no incoming edge in this cell; "
                    f"nodes that have one: {', '.join(map(str, connected))}."
                )
        if len(set(self.output)) != len(self.output):
            raise InvalidInput(f"output: a node is named twice in {list(self.output)}.")
        # One order for one cell, so that equality means equality.
        order = sorted(self.edges, key=lambda edge: (edge.target, edge.source, edge.operation))
        object.__setattr__(self, "edges", tuple(order))

    def connected(self) -> tuple[int, ...]:
        """Intermediate nodes that have at least one incoming edge, in order."""
        return tuple(sorted({edge.target for edge in self.edges}))

    def into(self, node: int) -> tuple[Edge, ...]:
        """The edges that enter ``node``."""
        return tuple(edge for edge in self.edges if edge.target == node)


@dataclass(frozen=True, eq=False)
class Genotype:
    """The cells that a search chose, by the kind of cell.

    DARTS has two kinds, ``normal`` and ``reduction``; Firefly's cell search has the five of :data:`CELL_SECTIONS`; a
    search that gives every cell its own structure has as many as cells. Two genotypes are equal when their cells are.
    """

    cells: tuple[tuple[str, CellGenotype], ...]
    """Pairs of kind and cell. Give a mapping or pairs; it is stored as pairs, so that it can be hashed."""

    def __init__(self, cells: Mapping[str, CellGenotype] | Sequence[tuple[str, CellGenotype]]) -> None:
        pairs = tuple(cells.items()) if isinstance(cells, Mapping) else tuple((k, c) for k, c in cells)
        if not pairs:
            raise InvalidInput("A genotype needs at least one cell, got none.")
        if len({kind for kind, _ in pairs}) != len(pairs):
            raise InvalidInput(f"A kind of cell is given twice: {', '.join(kind for kind, _ in pairs)}.")
        for kind, _ in pairs:
            if not isinstance(kind, str):
                raise InvalidInput(f"The kind of a cell is a name, got {kind!r}.")
        object.__setattr__(self, "cells", pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genotype) and dict(self.cells) == dict(other.cells)

    def __hash__(self) -> int:
        return hash(frozenset(self.cells))

    def __getitem__(self, kind: str) -> CellGenotype:
        for name, cell in self.cells:
            if name == kind:
                return cell
        raise unknown_name("kind of cell", kind, self.kinds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cell in this genotype, in order."""
        return tuple(kind for kind, _ in self.cells)

    @property
    def normal(self) -> CellGenotype:
        """The cell that keeps the resolution."""
        return self["normal"]

    @property
    def reduction(self) -> CellGenotype:
        """The cell that halves the resolution."""
        return self["reduction"]

    def operations(self) -> Iterator[str]:
        """The operation of every edge of every cell."""
        for _, cell in self.cells:
            yield from (edge.operation for edge in cell.edges)

    def to_json(self) -> str:
        """This genotype as JSON text that :meth:`from_json` reads back."""
        cells = {
            kind: {
                "inputs": cell.inputs,
                "nodes": cell.nodes,
                "edges": [[edge.source, edge.target, edge.operation] for edge in cell.edges],
                "output": list(cell.output),
            }
            for kind, cell in self.cells
        }
        body = ",\n".join(f"    {json.dumps(kind)}: {json.dumps(cell)}" for kind, cell in cells.items())
        return f'{{\n  "format": "{_FORMAT}",\n  "version": {_VERSION},\n  "cells": {{\n{body}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InvalidInput: the text is not JSON, or a field is missing, unknown or wrong; the message
                names the field.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"Not valid JSON (line {error.lineno}, column {error.colno}): {error.msg}.") from None
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of open brackets
            raise InvalidInput("Not genotype JSON: a number is too long or the nesting too deep.") from None
        _expect_fields(document, "the genotype", ("format", "version", "cells"))
        if document["format"] != _FORMAT:
            raise InvalidInput(f"format: expected {_FORMAT!r}, got {document['format']!r}.")
        if document["version"] != _VERSION:
            raise InvalidInput(f"version: this nasbook reads version {_VERSION}, got {document['version']!r}.")
        if not isinstance(document["cells"], dict) or not document["cells"]:
            raise InvalidInput("cells: expected an object with at least one cell.")
        return cls({kind: _cell_from_json(cell, f"cells.{kind}") for kind, cell in document["cells"].items()})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes :meth:`to_json` to ``path``, whole or not at all, and returns the path."""
        with whole_file(path) as file:
            file.write(self.to_json().encode())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Genotype:
        """Reads a genotype from a JSON file.

        Raises:
            InvalidInput: the file can't be read, or its content is wrong; the message names file and field.
        """
        path = Path(path)
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"Can't read the genotype {path}: {error.strerror}.") from error
        except UnicodeDecodeError:
            raise InvalidInput(f"{path} is not a text file; expected genotype JSON.") from None
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None


_FORMAT = "nasbook.genotype"
_VERSION = 1


def _expect_fields(value: Any, where: str, fields: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: expected an object with {', '.join(fields)}; got {type(value).__name__}.")
    for field in fields:
        if field not in value:
            raise InvalidInput(f"{where}: the field {field!r} is missing.")
    for field in value:
        if field not in fields:
            raise unknown_name(f"field in {where}", field, fields)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cell_from_json(value: Any, where: str) -> CellGenotype:
    _expect_fields(value, where, ("inputs", "nodes", "edges", "output"))
    for field in ("inputs", "nodes"):
        if not _is_integer(value[field]):
            raise InvalidInput(f"{where}.{field}: expected a whole number, got {value[field]!r}.")
    if not isinstance(value["edges"], list):
        raise InvalidInput(f"{where}.edges: expected a list of [source, target, operation].")
    if not isinstance(value["output"], list) or not all(map(_is_integer, value["output"])):
        raise InvalidInput(f"{where}.output: expected a list of node numbers, got {value['output']!r}.")
    edges = []
    for number, edge in enumerate(value["edges"]):
        match edge:
            case [int(source), int(target), str(operation)] if _is_integer(source) and _is_integer(target):
                edges.append(Edge(source, target, operation))
            case _:
                raise InvalidInput(f"{where}.edges[{number}]: expected [source, target, operation], got {edge!r}.")
    try:
        return CellGenotype(tuple(edges), value["nodes"], value["inputs"], tuple(value["output"]))
    except InvalidInput as error:
        raise InvalidInput(f"{where}.{error}") from None


def parse_darts(text: str) -> Genotype:
    """Reads the text form of DARTS' own code, without evaluating it.

    Takes ``Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=[…],
    reduce_concat=[2, 3, 4, 5])``, with or without an assignment in front. Two edges enter each
    intermediate node, listed node by node, as in ``genotypes.py`` of the authors' repository.

    Raises:
        InvalidInput: the text has another form; the message names the part.
    """
    form = "Genotype(normal=[('operation', source), …], normal_concat=…, reduce=[…], reduce_concat=…)"
    try:
        statement = ast.parse(text.strip()).body[0]
    except (SyntaxError, IndexError, ValueError, RecursionError, MemoryError):  # the last two: absurd nesting
        raise InvalidInput(f"Not a DARTS genotype. Expected {form}.") from None
    call = getattr(statement, "value", None)
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
        raise InvalidInput(f"Not a DARTS genotype. Expected {form}.")
    values = {keyword.arg: keyword.value for keyword in call.keywords}
    fields = ("normal", "normal_concat", "reduce", "reduce_concat")
    if call.args or set(values) != set(fields):
        got = ", ".join(str(name) for name in values) or "none"
        raise InvalidInput(f"Expected the keywords {', '.join(fields)}; got {got}.")
    return Genotype(
        {
            kind: _darts_cell(field, values[field], values[f"{field}_concat"])
            for kind, field in (("normal", "normal"), ("reduction", "reduce"))
        }
    )


def _darts_cell(field: str, pairs: ast.expr, concat: ast.expr) -> CellGenotype:
    try:
        chosen = [(name, source) for name, source in ast.literal_eval(pairs)]
    except (ValueError, TypeError, SyntaxError):
        raise InvalidInput(f"{field}: expected a list of ('operation', source) pairs.") from None
    if not chosen or len(chosen) % 2:
        raise InvalidInput(f"{field}: expected two edges for every node, got {len(chosen)} edges.")
    for number, (name, source) in enumerate(chosen):
        if not isinstance(name, str) or not _is_integer(source):
            raise InvalidInput(f"{field}[{number}]: expected ('operation', source), got {(name, source)!r}.")
    edges = tuple(Edge(source, 2 + number // 2, name) for number, (name, source) in enumerate(chosen))
    try:
        if isinstance(concat, ast.Call) and isinstance(concat.func, ast.Name) and concat.func.id == "range":
            named: Sequence[int] = range(*(ast.literal_eval(argument) for argument in concat.args))
        else:
            named = ast.literal_eval(concat)
        output = tuple(named[: len(edges) + 1])  # a few too many are enough to be refused
    except (ValueError, TypeError, SyntaxError, KeyError):
        raise InvalidInput(f"{field}_concat: expected range(…) or a list of node numbers.") from None
    try:
        return CellGenotype(edges, nodes=len(chosen) // 2, output=output)
    except InvalidInput as error:
        raise InvalidInput(f"{field}: {error}") from None


@dataclass(frozen=True)
class Space:
    """A cell space: the candidates, the graph they stand on, and how many edges a discrete cell keeps.

    The graph is DARTS': every intermediate node sees every earlier node (§2.1), the inputs don't see each
    other. Edges can be left out of it.

    Raises:
        InvalidInput: sizes below 1, an operation named twice, no operation besides zero, an edge left out that
            the graph does not have, or a node without an incoming edge.
    """

    operations: tuple[str, ...] = DARTS_OPERATIONS
    """Candidate names, in the order of the columns of the architecture parameters."""
    nodes: int = 4
    """Number of intermediate nodes (DARTS' N minus the two inputs and the output)."""
    inputs: int = 2
    """Number of input nodes."""
    edges_per_node: int = 2
    """How many edges a node keeps when the cell is derived (DARTS' k)."""
    kinds: tuple[str, ...] = ("normal", "reduction")
    """Kinds of cell that are searched, such as :data:`CELL_SECTIONS`."""
    left_out: tuple[tuple[int, int], ...] = ()
    """(source, target) of edges that the graph does without."""
    pools: tuple[tuple[str, ...], ...] = ()
    """For every edge, in the order of ``edges``, its own candidates (PR-DARTS §3.2.2); empty: all on every edge."""

    def __post_init__(self) -> None:
        require_positive(nodes=self.nodes, inputs=self.inputs, edges_per_node=self.edges_per_node)
        for source, target in self.left_out:
            if not (self.inputs <= target < self.inputs + self.nodes and 0 <= source < target):
                raise InvalidInput(f"left_out: this space has no edge from node {source} to node {target}.")
        for node in range(self.inputs, self.inputs + self.nodes):
            if not self.sources(node):
                raise InvalidInput(f"left_out: node {node} would have no incoming edge.")
        if len(set(self.operations)) != len(self.operations):
            raise InvalidInput(f"A candidate operation is named twice: {', '.join(self.operations)}.")
        if not self.choices:
            raise InvalidInput("A space needs at least one candidate operation besides 'none'.")
        if self.pools:
            self._check_pools()

    def _check_pools(self) -> None:
        if len(self.pools) != len(self.edges):
            raise InvalidInput(f"pools: expected one for each of the {len(self.edges)} edges, got {len(self.pools)}.")
        for edge, pool in zip(self.edges, self.pools, strict=True):
            where = f"pools: the edge from node {edge[0]} to node {edge[1]}"
            if not set(pool) - {ZERO}:
                raise InvalidInput(f"{where} needs at least one candidate besides {ZERO!r}.")
            if len(set(pool)) != len(pool):
                raise InvalidInput(f"{where} has a candidate twice: {', '.join(pool)}.")
            for name in pool:
                if name not in self.operations:
                    raise InvalidInput(f"{where} has {name!r}, which is not among the operations of the space.")

    @property
    def choices(self) -> tuple[str, ...]:
        """The candidates that may stand in a genotype: all but the zero operation."""
        return tuple(name for name in self.operations if name != ZERO)

    def candidates(self, source: int, target: int) -> tuple[str, ...]:
        """The candidates on one edge, in the order in which they stand there."""
        return self.pools[self.edges.index((source, target))] if self.pools else self.operations

    def with_pools(self, pools: Sequence[Sequence[str]]) -> Space:
        """The same graph with candidates of its own on every edge; ``operations`` are then all of them."""
        operations = dict.fromkeys(name for pool in pools for name in pool)  # in order of first appearance
        return replace(self, operations=tuple(operations), pools=tuple(tuple(pool) for pool in pools))

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every edge, grouped by target: the rows of the architecture parameters."""
        intermediate = range(self.inputs, self.inputs + self.nodes)
        return tuple((source, target) for target in intermediate for source in self.sources(target))

    def sources(self, node: int) -> tuple[int, ...]:
        """The nodes that ``node`` has an edge from."""
        return tuple(source for source in range(node) if (source, node) not in self.left_out)

    def targets(self, node: int) -> tuple[int, ...]:
        """The nodes that ``node`` has an edge to."""
        later = range(max(node + 1, self.inputs), self.inputs + self.nodes)
        return tuple(target for target in later if (node, target) not in self.left_out)

    def kept(self, node: int) -> int:
        """How many edges ``node`` keeps; never more than enter it."""
        return min(self.edges_per_node, len(self.sources(node)))


DARTS_SPACE = Space()
"""The convolutional space of DARTS: 14 edges, 8 candidates, 2 edges kept a node."""


def count_cells(space: Space) -> int:
    """Number of discrete cells in a space: Π over nodes of C(n, k)·|choices|^k (DARTS §3.1).

    For DARTS, with n = 2..5 earlier nodes, k = 2 and 7 operations besides zero, that is 1,037,664,180. Where edges have
    pools of their own, C(n, k)·|choices|^k is the sum, over all sets of k edges, of the product of their choices.
    Graph isomorphism is not considered.
    """

    def cells_at(node: int) -> int:
        sizes = [len(set(space.candidates(source, node)) - {ZERO}) for source in space.sources(node)]
        return sum(math.prod(some) for some in itertools.combinations(sizes, space.kept(node)))

    return math.prod(cells_at(node) for node in range(space.inputs, space.inputs + space.nodes))


def random_genotype(space: Space, generator: torch.Generator) -> Genotype:
    """A genotype drawn uniformly from the space: sources without replacement, then an operation each.

    Raises:
        InvalidInput: the space has pools of its own on every edge; then this is not uniform.
    """
    if space.pools:
        raise InvalidInput("random_genotype() needs the same candidates on all edges; this space has pools.")
    import torch

    def cell() -> CellGenotype:
        edges = []
        for node in range(space.inputs, space.inputs + space.nodes):
            sources = space.sources(node)
            kept = torch.randperm(len(sources), generator=generator)[: space.kept(node)].sort().values
            choices = torch.randint(len(space.choices), (len(kept),), generator=generator)
            edges += [
                Edge(sources[place], node, space.choices[choice])
                for place, choice in zip(kept.tolist(), choices.tolist(), strict=True)
            ]
        return CellGenotype(tuple(edges), space.nodes, space.inputs)

    return Genotype({kind: cell() for kind in space.kinds})


def random_operations(topology: Genotype, choices: Sequence[str], generator: torch.Generator) -> Genotype:
    """The same edges with operations drawn uniformly from ``choices``, for each edge anew."""
    import torch

    def cell(old: CellGenotype) -> CellGenotype:
        drawn = torch.randint(len(choices), (len(old.edges),), generator=generator).tolist()
        edges = tuple(Edge(e.source, e.target, choices[place]) for e, place in zip(old.edges, drawn, strict=True))
        return CellGenotype(edges, old.nodes, old.inputs, old.output)

    return Genotype({kind: cell(old) for kind, old in topology.cells})


class CellSpace(ABC):
    """What a search that trains cells one by one has to know of a space: how to draw a cell, and which are beside it.

    Chapter 8. The neighbours are what local search compares, and a mutation is a step to one of them.
    """

    @abstractmethod
    def random(self, draws: torch.Generator) -> Genotype:
        """A genotype drawn uniformly from the space."""

    @abstractmethod
    def neighbours(self, genotype: Genotype) -> tuple[Genotype, ...]:
        """All genotypes of the space that one change leads to, each once, in a fixed order, without the genotype."""

    def mutate(self, genotype: Genotype, draws: torch.Generator) -> Genotype:
        """One neighbour, drawn uniformly from those that change a uniformly drawn kind of cell.

        Raises:
            InvalidInput: the genotype has no neighbours.
        """
        by_kind: dict[str, list[Genotype]] = {}
        for neighbour in self.neighbours(genotype):
            changed = next(kind for kind, cell in neighbour.cells if cell != genotype[kind])
            by_kind.setdefault(changed, []).append(neighbour)
        if not by_kind:
            raise InvalidInput("A genotype without neighbours can't be mutated; the space has only one cell.")
        return _one_of(_one_of(list(by_kind.values()), draws), draws)


@dataclass(frozen=True)
class DartsCells(CellSpace):
    """The discrete cells of a :class:`Space`: each node keeps :meth:`Space.kept` edges, with one operation each.

    Neighbours have another operation on one edge, or one edge from another source (White et al., UAI 2021, take one
    operation or one edge, too). For DARTS' space these are 60 a kind of cell: 8 · 6 operations and 2 · (0 + 1 + 2 + 3)
    sources.
    """

    space: Space = DARTS_SPACE

    def random(self, draws: torch.Generator) -> Genotype:
        """A genotype drawn uniformly; see :func:`random_genotype`.

        Raises:
            InvalidInput: the space has pools of its own on every edge.
        """
        return random_genotype(self.space, draws)

    def neighbours(self, genotype: Genotype) -> tuple[Genotype, ...]:
        """All genotypes at one change: kind by kind and edge by edge, other operations first, then other sources.

        Raises:
            InvalidInput: the genotype is not of this space.
        """
        self.check(genotype)
        return tuple(
            _with_edge(genotype, kind, edge, changed)
            for kind, cell in genotype.cells
            for edge in cell.edges
            for changed in (*self._other_operations(edge), *self._other_sources(edge, cell))
        )

    def mutate(self, genotype: Genotype, draws: torch.Generator) -> Genotype:
        """A mutation of Real et al. (AAAI 2019, Methods): a kind of cell, then an edge of it, then what changes there.

        With equal chance the edge gets another operation (op mutation) or another source (hidden-state mutation). In
        their space both edges of a node may have the same source; here they may not, so that a hidden-state mutation
        draws among the edges that have another source to go to, and turns into an op mutation where none has.

        Raises:
            InvalidInput: the genotype is not of this space, or has no neighbours.
        """
        self.check(genotype)
        possible: dict[str, list[list[tuple[Edge, tuple[Edge, ...]]]]] = {}
        for kind, cell in genotype.cells:
            both = (
                [(edge, self._other_operations(edge)) for edge in cell.edges],
                [(edge, self._other_sources(edge, cell)) for edge in cell.edges],
            )
            mutations = [[(edge, changes) for edge, changes in mutation if changes] for mutation in both]
            if any(mutations):
                possible[kind] = [mutation for mutation in mutations if mutation]
        if not possible:
            raise InvalidInput("A genotype without neighbours can't be mutated; the space has only one cell.")
        kind = _one_of(list(possible), draws)
        edge, changes = _one_of(_one_of(possible[kind], draws), draws)
        return _with_edge(genotype, kind, edge, _one_of(changes, draws))

    def check(self, genotype: Genotype) -> None:
        """Raises :class:`InvalidInput` unless the genotype is of this space; the message names what is not."""
        space = self.space
        if set(genotype.kinds) != set(space.kinds):
            raise InvalidInput(
                f"The genotype has the cells {', '.join(genotype.kinds)}; the space has {', '.join(space.kinds)}."
            )
        for kind, cell in genotype.cells:
            if (cell.nodes, cell.inputs) != (space.nodes, space.inputs):
                raise InvalidInput(
                    f"cells.{kind}: expected {space.inputs} inputs and {space.nodes} nodes, "
                    f"got {cell.inputs} and {cell.nodes}."
                )
            for edge in cell.edges:
                if edge.source not in space.sources(edge.target):
                    raise InvalidInput(f"cells.{kind}: no edge of the space runs from {edge.source} to {edge.target}.")
                if edge.operation not in space.candidates(edge.source, edge.target):
                    raise InvalidInput(
                        f"cells.{kind}: {edge.operation!r} is no candidate from {edge.source} to {edge.target}."
                    )
            for node in range(space.inputs, space.inputs + space.nodes):
                sources = [edge.source for edge in cell.into(node)]
                if len(sources) != space.kept(node) or len(set(sources)) != len(sources):
                    raise InvalidInput(
                        f"cells.{kind}: expected edges from {space.kept(node)} sources into node {node}, got {sources}."
                    )

    def _other_operations(self, edge: Edge) -> tuple[Edge, ...]:
        """The edge with each other operation that may stand there."""
        candidates = self.space.candidates(edge.source, edge.target)
        return tuple(replace(edge, operation=name) for name in candidates if name not in (ZERO, edge.operation))

    def _other_sources(self, edge: Edge, cell: CellGenotype) -> tuple[Edge, ...]:
        """The edge from each source that has none into its node, where its operation may stand."""
        taken = {other.source for other in cell.into(edge.target)}
        return tuple(
            replace(edge, source=source)
            for source in self.space.sources(edge.target)
            if source not in taken and edge.operation in self.space.candidates(source, edge.target)
        )


def _with_edge(genotype: Genotype, kind: str, old: Edge, new: Edge) -> Genotype:
    """The genotype with another edge in place of one."""
    cell = genotype[kind]
    edges = tuple(new if edge == old else edge for edge in cell.edges)
    changed = CellGenotype(edges, cell.nodes, cell.inputs, cell.output)
    return Genotype({name: changed if name == kind else other for name, other in genotype.cells})


_Choice = TypeVar("_Choice")


def _one_of(choices: Sequence[_Choice], draws: torch.Generator) -> _Choice:
    """One of them, drawn uniformly."""
    import torch

    return choices[int(torch.randint(len(choices), (1,), generator=draws))]


_KEEPS_RESOLUTION = ("normal", *CELL_SECTIONS[::2])


def reduces_resolution(kind: str) -> bool:
    """Whether cells of that kind stand at the reductions: all but ``normal`` and the first, third and fifth section."""
    return kind not in _KEEPS_RESOLUTION


@dataclass(frozen=True)
class StackRun:
    """Neighbouring cells of one kind and one number of channels."""

    kind: str
    first: int
    """Position of the first cell, from 0."""
    last: int
    doublings: int
    """How often the channels were doubled: each reduction doubles them."""

    @property
    def places(self) -> str:
        """The numbers of the cells as papers give them, from 1: ``1–6``, or ``7``."""
        return str(self.first + 1) if self.first == self.last else f"{self.first + 1}–{self.last + 1}"


def stack_runs(kinds: Sequence[str]) -> tuple[StackRun, ...]:
    """The runs that the kinds of a stack's cells form, from the first to the last.

    Args:
        kinds: of every cell, as :func:`~nasbook.networks.kinds_of_cells` gives them.

    Raises:
        InvalidInput: there are no cells.
    """
    if not kinds:
        raise InvalidInput("kinds: expected the kind of at least one cell, got none.")
    doublings = list(itertools.accumulate(reduces_resolution(kind) for kind in kinds))
    runs = []
    for (kind, doubled), group in itertools.groupby(range(len(kinds)), lambda cell: (kinds[cell], doublings[cell])):
        places = list(group)
        runs.append(StackRun(kind, places[0], places[-1], doubled))
    return tuple(runs)


DARTS_V1 = parse_darts("""
Genotype(
    normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
            ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)],
    normal_concat=range(2, 6),
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0),
            ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)],
    reduce_concat=range(2, 6))
""")
"""The cells of DARTS, first order (Liu et al. 2019)."""

DARTS_V2 = parse_darts("""
Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
    normal_concat=range(2, 6),
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
            ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=range(2, 6))
""")
"""The cells of DARTS, second order (Liu et al. 2019, Fig. 4 and 5)."""

PC_DARTS_CIFAR = parse_darts("""
Genotype(
    normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1),
            ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)],
    normal_concat=range(2, 6),
    reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2),
            ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)],
    reduce_concat=range(2, 6))
""")
"""The CIFAR-10 cells of PC-DARTS (Xu et al. 2020)."""

PR_DARTS_DL1 = parse_darts("""
Genotype(
    normal=[('sep_conv(kernel=5, dilation=1, expansions=1)', 0), ('sep_conv(kernel=3, dilation=1, expansions=1)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 1), ('skip_connect', 2),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 1), ('skip_connect', 2),
            ('skip_connect', 0), ('skip_connect', 2)],
    normal_concat=range(2, 6),
    reduce=[('sep_conv(kernel=3, dilation=1, expansions=1)', 0), ('skip_connect', 1),
            ('max_pool_3x3', 0), ('sep_conv(kernel=5, dilation=1, expansions=1)', 2),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 0), ('sep_conv(kernel=3, dilation=1, expansions=1)', 1),
            ('max_pool_3x3', 1), ('sep_conv(kernel=3, dilation=1, expansions=1)', 4)],
    reduce_concat=range(2, 6))
""")
"""The first DARTS-like cells of PR-DARTS (Laube & Zell 2019, Fig. 3a); Fig. 3's cells are as in its code."""

PR_DARTS_DL2 = parse_darts("""
Genotype(
    normal=[('sep_conv(kernel=3, dilation=1, expansions=1)', 0),
            ('sep_conv(kernel=3, dilation=1, expansions=none)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=none)', 1),
            ('sep_conv(kernel=7, dilation=1, expansions=1)', 2),
            ('skip_connect', 0), ('sep_conv(kernel=5, dilation=1, expansions=1)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 1), ('sep_conv(kernel=7, dilation=1, expansions=1)', 4)],
    normal_concat=range(2, 6),
    reduce=[('sep_conv(kernel=3, dilation=1, expansions=none)', 0),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 1), ('skip_connect', 2),
            ('max_pool_3x3', 0), ('sep_conv(kernel=3, dilation=1, expansions=none)', 3),
            ('sep_conv(kernel=3, dilation=1, expansions=none)', 0), ('skip_connect', 3)],
    reduce_concat=range(2, 6))
""")
"""The second DARTS-like cells of PR-DARTS (Fig. 3b): 4,017,646 parameters at 36 channels and 20 cells."""

PR_DARTS_DR = parse_darts("""
Genotype(
    normal=[('sep_conv(kernel=3, dilation=1, expansions=none)', 0),
            ('sep_conv(kernel=3, dilation=1, expansions=3)', 1),
            ('sep_conv(kernel=7, dilation=1, expansions=1)', 1), ('sep_conv(kernel=5, dilation=1, expansions=2)', 2),
            ('skip_connect', 1), ('skip_connect', 3),
            ('skip_connect', 0), ('skip_connect', 2)],
    normal_concat=range(2, 6),
    reduce=[('sep_conv(kernel=5, dilation=1, expansions=2)', 0), ('max_pool_3x3', 1),
            ('max_pool_3x3', 1), ('sep_conv(kernel=3, dilation=1, expansions=1)', 2),
            ('max_pool_3x3', 0), ('sep_conv(kernel=3, dilation=1, expansions=3)', 2),
            ('max_pool_3x3', 0), ('sep_conv(kernel=1, dilation=1, expansions=1)', 3)],
    reduce_concat=range(2, 6))
""")
"""The depth-restricted cells of PR-DARTS (Fig. 3c): 4,248,766 parameters."""

PR_DARTS_UR = parse_darts("""
Genotype(
    normal=[('sep_conv(kernel=3, dilation=1, expansions=2)', 0),
            ('sep_conv(kernel=1, dilation=1, expansions=none)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=1-1-1)', 1),
            ('sep_conv(kernel=5, dilation=1, expansions=none)', 2),
            ('sep_conv(kernel=1, dilation=1, expansions=1)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=1-1)', 2),
            ('sep_conv(kernel=1, dilation=1, expansions=1)', 3),
            ('sep_conv(kernel=5, dilation=1, expansions=1-1)', 4)],
    normal_concat=range(2, 6),
    reduce=[('sep_conv(kernel=7, dilation=1, expansions=1)', 0),
            ('sep_conv(kernel=3, dilation=1, expansions=none)', 1),
            ('sep_conv(kernel=3, dilation=1, expansions=1-1)', 0),
            ('sep_conv(kernel=3, dilation=1, expansions=1)', 2),
            ('skip_connect', 0), ('skip_connect', 2),
            ('sep_conv(kernel=7, dilation=1, expansions=1-1)', 1), ('skip_connect', 2)],
    reduce_concat=range(2, 6))
""")
"""The unrestricted cells of PR-DARTS (Fig. 3d): 5,369,158 parameters, and the worst of the four."""

PUBLISHED = {
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "PC_DARTS_CIFAR": PC_DARTS_CIFAR,
    "PR_DARTS_DL1": PR_DARTS_DL1,
    "PR_DARTS_DL2": PR_DARTS_DL2,
    "PR_DARTS_DR": PR_DARTS_DR,
    "PR_DARTS_UR": PR_DARTS_UR,
}
"""Published genotypes by name, as the command line takes them."""
