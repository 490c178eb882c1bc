"""The search cell: every candidate on every edge, weighted by the relaxation's coefficients (DARTS §2.2).

This is the readable form, one module an operation, that faster executions are tested against.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.genotypes import Space
from nasbook.networks import CellPlacement
from nasbook.operations import build_operation, get_operation

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
    """One cell of the supernet: a mixed operation on every edge of the space, nodes summed, concatenated."""

    def __init__(self, space: Space, placement: CellPlacement) -> None:
        super().__init__()
        self.space = space
        self.preprocessing = placement.preprocessing(affine=False)
        self.edges = nn.ModuleList(
            MixedOperation(space.operations, placement.channels, placement.input_stride if source < space.inputs else 1)
            for source, _ in space.edges
        )

    def forward(
        self,
        older: Float[Tensor, "batch older older_height older_width"],
        newer: Float[Tensor, "batch newer newer_height newer_width"],
        coefficients: Float[Tensor, "edges operations"],
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        states = [self.preprocessing[0](older), self.preprocessing[1](newer)]
        edges = zip(self.space.edges, self.edges, coefficients, strict=True)
        for _ in range(self.space.nodes):
            incoming = [next(edges) for _ in self.space.sources(len(states))]  # the edges are grouped by target
            states.append(_sum(mixed(states[source], c) for (source, _), mixed, c in incoming))  # Eq. 1
        return torch.cat(states[self.space.inputs :], dim=1)
