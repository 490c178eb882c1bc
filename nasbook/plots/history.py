"""What a figure needs to know of a search's epochs, and how it reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from nasbook.errors import InvalidInput, unknown_name
from nasbook.genotypes import ZERO, Genotype, Space


@runtime_checkable
class Epoch(Protocol):
    """The part of a search's epoch report that figures read.

    A report may also have ``edge_probabilities``: for every kind of cell one number an edge, how likely the edge is
    chosen. Where it is missing or None, the coefficients say how much an edge weighs.
    And it may have a ``temperature``, which :func:`nasbook.plots.animate_connections` writes above its frames.
    """

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1."""

    @property
    def coefficients(self) -> Mapping[str, Any]:
        """Coefficients of the candidates, edges × operations, by the kind of cell."""

    @property
    def genotype(self) -> Genotype:
        """What the search would answer after this epoch."""


def as_array(values: Any) -> np.ndarray:
    """Numbers as float64, from plain lists, arrays, and tensors on any device, with or without gradients."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().tolist()  # by way of a list, as numpy has no bfloat16
    return np.asarray(values, dtype=float)


def trajectory(history: Sequence[Epoch], kind: str, space: Space) -> Float[np.ndarray, "epochs edges operations"]:
    """The coefficients of one kind of cell over the epochs.

    Raises:
        InvalidInput: the history is empty, has no such kind of cell, or belongs to another space.
    """
    if not history:
        raise InvalidInput("The history is empty; run at least one epoch of a search first.")
    expected = (len(space.edges), len(space.operations))
    matrices = []
    for report in history:
        if kind not in report.coefficients:
            raise unknown_name("kind of cell", kind, report.coefficients)
        matrix = as_array(report.coefficients[kind])
        if matrix.shape != expected:
            raise InvalidInput(
                f"Epoch {report.epoch}: expected coefficients of {expected[0]} edges × {expected[1]} operations, "
                f"got shape {tuple(matrix.shape)}. Give the space that was searched as space=…."
            )
        matrices.append(matrix)
        report.genotype[kind]  # complains
    return np.stack(matrices)


def edge_strengths(history: Sequence[Epoch], kind: str, space: Space) -> Float[np.ndarray, "epochs edges"]:
    """How strongly every edge of one kind of cell is there over the epochs, from 0 to 1.

    How likely it is chosen, where the report says so: with learned topology, coefficients carry a factor and may sum
    to more than 1. Otherwise what its operations weigh together, all but the zero operation.

    Raises:
        InvalidInput: as :func:`trajectory`; or an edge has a probability that is none.
    """
    choices = [number for number, name in enumerate(space.operations) if name != ZERO]
    strengths = np.clip(trajectory(history, kind, space)[:, :, choices].sum(axis=2), 0, 1)
    for place, report in enumerate(history):
        probabilities = getattr(report, "edge_probabilities", None)
        if probabilities is None:
            continue
        if kind not in probabilities:
            raise unknown_name("kind of cell", kind, probabilities)
        values = as_array(probabilities[kind])
        if values.shape != (len(space.edges),):
            raise InvalidInput(
                f"Epoch {report.epoch}: expected probabilities of {len(space.edges)} edges, got shape {values.shape}. "
                "Give the space that was searched as space=…."
            )
        if not ((values > -1e-3) & (values < 1 + 1e-3)).all():  # records are rounded; not a number fails too
            raise InvalidInput(
                f"Epoch {report.epoch}: expected edge probabilities from 0 to 1, got {values.min()} to {values.max()}."
            )
        strengths[place] = np.clip(values, 0, 1)
    return strengths
