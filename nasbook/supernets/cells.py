"""The search cell: every candidate on every edge, weighted by the relaxation's coefficients (DARTS §2.2).

And its derived sub-graph, shared features and bottleneck (EnTranNAS §2.2, §2.3, §2.5; Chapter 3). This is the readable
form, one module an operation, that faster executions are tested against.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import CellGenotype, Edge, Space
from nasbook.networks import CELL_OUTPUTS, CellPlacement
from nasbook.operations import ReLUConvolution, build_operation, get_operation
from nasbook.operations.pointwise import channels_last

Image = Float[Tensor, "batch channels height width"]


class MixedOperation(nn.Module):
    """All candidates of one edge; the output is their weighted sum, ō of Eq. 2.

    Batch norms are not affine, and pools get one of their own: otherwise a candidate could grow its scale
    and make its coefficient meaningless.
    """

    def __init__(self, operations: tuple[str, ...], channels: int, stride: int) -> None:
        super().__init__()
        # By name, so that a pool of candidates can change without renaming the weights of those that stay.
        self.candidates = nn.ModuleDict({name: _candidate(name, channels, stride) for name in operations})

    def forward(
        self, x: Image, coefficients: Float[Tensor, " operations"]
    ) -> Float[Tensor, "batch channels new_height new_width"]:
        return _sum(c * candidate(x) for c, candidate in zip(coefficients, self.candidates.values(), strict=True))


def _sum(values: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, without the int 0 that Python's ``sum`` starts from."""
    return functools.reduce(torch.add, values)


def _candidate(name: str, channels: int, stride: int) -> nn.Module:
    operation = build_operation(name, channels, stride, affine=False)
    if get_operation(name).kind == "pool":
        return nn.Sequential(operation, nn.BatchNorm2d(channels, affine=False))
    return operation


class SearchCell(nn.Module):
    """One cell of the supernet: candidates on every edge of the space, nodes summed, and joined as the placement says.

    It runs in two ways. With coefficients only, all candidates are computed (DARTS' cell, EnTranNAS' Engine-cell).
    With a derived cell, only its operations are, and nothing else is touched: what is left out has no gradient, and
    its batch norms see nothing (EnTranNAS' Transit-cell, §2.2).

    Args:
        space: the cell space.
        placement: where the cell stands.
        bottleneck: the candidates have 1/bottleneck of the node's channels. A 1×1 convolution in front of what
            leaves a node takes it down to them, one behind the sum takes it up (EnTranNAS §2.5); 1 for none.

    Raises:
        InvalidInput: the bottleneck does not divide the channels, or leaves fewer than two.
    """

    def __init__(self, space: Space, placement: CellPlacement, bottleneck: int = 1) -> None:
        super().__init__()
        require_positive(bottleneck=bottleneck)
        if bottleneck > 1 and (placement.channels % bottleneck or placement.channels < 2 * bottleneck):
            raise InvalidInput(
                f"bottleneck={bottleneck} must divide the channels of a cell and leave at least 2 of them; "
                f"a cell here has {placement.channels}."
            )
        self.space = space
        self.join = CELL_OUTPUTS[placement.output]
        self.preprocessing = placement.preprocessing(affine=False)
        self.build_candidates(placement, placement.channels // bottleneck)
        self.narrow = nn.ModuleList(
            _change_width(placement.channels, bottleneck, 1) if space.targets(node) else nn.Identity()
            for node in range(space.inputs + space.nodes - 1)
        )
        self.widen = nn.ModuleList(_change_width(placement.channels, 1, bottleneck) for _ in range(space.nodes))
        self.input_stride = placement.input_stride

    def build_candidates(self, placement: CellPlacement, channels: int) -> None:
        """Builds the candidates; called once, between the preprocessing and the bottleneck."""
        space = self.space
        self.edges = nn.ModuleList(
            self.build_mixed(
                space.candidates(source, target), channels, placement.input_stride if source < space.inputs else 1
            )
            for source, target in space.edges
        )

    def build_mixed(self, operations: tuple[str, ...], channels: int, stride: int) -> MixedOperation:
        """What holds the candidates of one edge. Methods with mixed operations of their own override it."""
        return MixedOperation(operations, channels, stride)

    def owners(self) -> list[nn.ModuleDict]:
        """All candidates, one set of them for each edge of the space."""
        return [candidates_of(mixed) for mixed in self.edges]

    def candidate(self, edge: Edge) -> nn.Module:
        """The module that computes an operation of a derived cell."""
        return candidates_of(self.edges[self.space.edges.index((edge.source, edge.target))])[edge.operation]

    def forward(
        self,
        older: Float[Tensor, "batch older older_height older_width"],
        newer: Float[Tensor, "batch newer newer_height newer_width"],
        coefficients: Float[Tensor, "edges operations"] | None = None,
        derived: CellGenotype | None = None,
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        """The cell's output.

        Args:
            older: output of the cell before the previous one.
            newer: output of the previous cell.
            coefficients: what each candidate is multiplied by. May be missing with a derived cell, whose operations
                then count once each, as in a derived network (EnTranNAS, Eq. 3).
            derived: the operations to run; None runs all candidates (EnTranNAS, Eq. 6, the two cases).
        """
        if derived is not None:
            return self.run_derived(older, newer, derived, coefficients)
        assert coefficients is not None
        return self.run_all(older, newer, coefficients)

    def run_all(self, older: Tensor, newer: Tensor, coefficients: Tensor) -> Tensor:
        """Every candidate, weighted."""
        nodes, entering = self.begin(older, newer)
        edges = zip(self.space.edges, self.edges, self._of_pools(coefficients), strict=True)
        for _ in range(self.space.nodes):
            incoming = [next(edges) for _ in self.space.sources(len(nodes))]  # the edges are grouped by target
            self.form(nodes, entering, [mixed(entering[source], c) for (source, _), mixed, c in incoming])  # Eq. 1
        return self.join(nodes[self.space.inputs :])

    def run_derived(self, older: Tensor, newer: Tensor, derived: CellGenotype, coefficients: Tensor | None) -> Tensor:
        """Only the operations of a derived cell, each module once however many edges share it."""
        read = {edge.source for edge in derived.edges}
        nodes, entering = self.begin(older, newer, read)
        features: dict[nn.Module, Tensor] = {}
        rows = {edge: row for row, edge in enumerate(self.space.edges)}
        columns = {name: column for column, name in enumerate(self.space.operations)}
        for _ in range(self.space.nodes):
            parts = []
            for edge in derived.into(len(nodes)):
                module = self.candidate(edge)
                if module not in features:
                    features[module] = module(entering[edge.source])
                part = features[module]
                if coefficients is not None:
                    part = coefficients[rows[edge.source, edge.target], columns[edge.operation]] * part
                parts.append(part)
            self.form(nodes, entering, parts, read)
        return self.join(nodes[self.space.inputs :])

    def _of_pools(self, coefficients: Tensor) -> Sequence[Tensor]:
        """For every edge the coefficients of its own candidates."""
        rows = coefficients.unbind()
        if not self.space.pools:
            return rows
        column = {name: place for place, name in enumerate(self.space.operations)}
        own = zip(rows, self.space.pools, strict=True)
        return [torch.stack([row[column[name]] for name in pool]) for row, pool in own]

    def begin(
        self, older: Tensor, newer: Tensor, read: Collection[int] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The input nodes, and what their operations read: the same, or fewer channels of it.

        ``read`` has the nodes that operations read, None all; of the others nothing is computed.
        """
        nodes = [self.preprocessing[0](older), self.preprocessing[1](newer)]
        return nodes, [self._narrowed(place, node, read) for place, node in enumerate(nodes)]

    def form(
        self,
        nodes: list[Tensor],
        entering: list[Tensor],
        parts: Sequence[Tensor],
        read: Collection[int] | None = None,
    ) -> None:
        """Adds the next node, the sum of what arrives, to both lists; a node that nothing reaches is zero."""
        place = len(nodes)
        if parts:
            nodes.append(self.widen[place - self.space.inputs](self.add(parts)))
        else:
            nodes.append(torch.zeros_like(nodes[0][:, :, :: self.input_stride, :: self.input_stride]))
        if place < len(self.narrow):
            entering.append(self._narrowed(place, nodes[-1], read))

    def _narrowed(self, place: int, node: Tensor, read: Collection[int] | None) -> Tensor:
        return self.narrow[place](node) if read is None or place in read else node

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of at least one image."""
        return _sum(parts)


def _change_width(channels: int, inputs_over: int, outputs_over: int) -> nn.Module:
    """One end of the bottleneck: from channels/outputs_over to channels/inputs_over."""
    if inputs_over == outputs_over:
        return nn.Identity()
    return ReLUConvolution(channels // outputs_over, channels // inputs_over, affine=False)


def candidates_of(mixed: nn.Module) -> nn.ModuleDict:
    """The candidates of an edge, by name."""
    assert isinstance(mixed, MixedOperation)  # for the type checker: ModuleList forgets
    return mixed.candidates


class SharedCell(SearchCell):
    """A search cell whose operations belong to their source node: feature sharing (EnTranNAS §2.3, Eq. 6).

    Operation k of node i has one set of weights w_k^(i), and its feature is computed once, whatever the number of
    later nodes that use it. So DARTS' cell has 5·K̄ parametric operations instead of 14·K̄.
    """

    def build_candidates(self, placement: CellPlacement, channels: int) -> None:
        space = self.space
        if space.pools:
            raise InvalidInput("A node's operations can't serve all of its edges where every edge has its own pool.")
        self.sources = nn.ModuleDict(
            {
                str(source): self.build_mixed(
                    space.operations, channels, placement.input_stride if source < space.inputs else 1
                )
                for source in range(space.inputs + space.nodes - 1)
                if space.targets(source)
            }
        )

    def owners(self) -> list[nn.ModuleDict]:
        """All candidates, one set of them for each node that has later ones."""
        return [candidates_of(mixed) for mixed in self.sources.values()]

    def candidate(self, edge: Edge) -> nn.Module:
        return candidates_of(self.sources[str(edge.source)])[edge.operation]

    def run_all(self, older: Tensor, newer: Tensor, coefficients: Tensor) -> Tensor:
        columns = range(len(self.space.operations))
        used = {int(source): columns for source in self.sources}
        return self._run_columns(older, newer, coefficients, used)

    def run_derived(self, older: Tensor, newer: Tensor, derived: CellGenotype, coefficients: Tensor | None) -> Tensor:
        if coefficients is None:
            return super().run_derived(older, newer, derived, None)
        # A sparse Engine-cell: what is not derived has coefficient zero on every edge of its node, or on this one.
        column = {name: place for place, name in enumerate(self.space.operations)}
        used: dict[int, set[int]] = {}
        for edge in derived.edges:
            used.setdefault(edge.source, set()).add(column[edge.operation])
        return self._run_columns(older, newer, coefficients, {source: sorted(used[source]) for source in used})

    def _run_columns(
        self, older: Tensor, newer: Tensor, coefficients: Tensor, used: Mapping[int, Sequence[int]]
    ) -> Tensor:
        """Some operations of every source, each computed once and weighted for all later nodes by one product."""
        space = self.space
        # Rows and columns are taken apart and stacked: an index made of Python's numbers would wait for the device.
        rows = dict(zip(space.edges, coefficients.unbind(0), strict=True))
        nodes, entering = self.begin(older, newer, used)
        arriving: list[list[Tensor]] = [[] for _ in range(space.nodes)]
        for source in range(space.inputs + space.nodes - 1):
            if source >= space.inputs:
                self.form(nodes, entering, arriving[source - space.inputs], used)
            if source not in used:
                continue
            modules = list(candidates_of(self.sources[str(source)]).values())
            features = [modules[column](entering[source]) for column in used[source]]
            targets = space.targets(source)
            columns = torch.stack([rows[source, target] for target in targets]).unbind(1)  # one an operation
            weights = torch.stack([columns[column] for column in used[source]], dim=1)  # (targets, features)
            for target, part in zip(targets, weighted_sums(features, weights), strict=True):
                arriving[target - space.inputs].append(part)
        self.form(nodes, entering, arriving[-1])
        return self.join(nodes[space.inputs :])


def weighted_sums(features: Sequence[Tensor], weights: Float[Tensor, "targets features"]) -> Sequence[Tensor]:
    """Σ_k weights[t, k]·features[k] for every target t, by one matrix product, in the features' memory layout."""
    last = channels_last(features[0])
    order = (0, 2, 3, 1) if last else (0, 1, 2, 3)
    shape = [features[0].shape[axis] for axis in order]
    stacked = torch.stack([feature.permute(order).reshape(-1) for feature in features])
    sums = (weights.to(stacked.dtype) @ stacked).view(-1, *shape)
    return (sums.permute(0, 1, 4, 2, 3) if last else sums).unbind(0)
