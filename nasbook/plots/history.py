"""What a figure needs to know of a search's epochs, and how it reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from nasbook.errors import InvalidInput, unknown_name
from nasbook.genotypes import Genotype, Space


@runtime_checkable
class Epoch(Protocol):
    """The part of a search's epoch report that figures read."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1."""

    @property
    def coefficients(self) -> Mapping[str, Any]:
        """Coefficients of the candidates, edges × operations, by the kind of cell."""

    @property
    def genotype(self) -> Genotype:
        """What the search would answer after this epoch."""


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
        matrix = np.asarray(report.coefficients[kind], dtype=float)
        if matrix.shape != expected:
            raise InvalidInput(
                f"Epoch {report.epoch}: expected coefficients of {expected[0]} edges × {expected[1]} operations, "
                f"got shape {tuple(matrix.shape)}. Give the space that was searched as space=…."
            )
        matrices.append(matrix)
    return np.stack(matrices)
