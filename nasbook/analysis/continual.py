"""What a continual learner has kept and lost, from its accuracy matrix.

A matrix is a list of rows. Row t has the test accuracies of tasks 0..t after task t was learned, so that it is a
triangle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nasbook.errors import InvalidInput

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix, after: int | None = None) -> float:
    """Mean accuracy over the tasks that were seen: Fig. 5b of Firefly, and at the end its Table 2.

    Args:
        matrix: of accuracies.
        after: index of the task after which to look; None for the last.

    Raises:
        InvalidInput: the matrix is no triangle, or has no such row.
    """
    rows = _triangle(matrix)
    last = len(rows) - 1 if after is None else after
    if not 0 <= last < len(rows):
        raise InvalidInput(f"The matrix has the rows 0..{len(rows) - 1}; after is {after}.")
    return float(np.mean(rows[last]))


def forgetting(matrix: Matrix) -> Float[ndarray, " earlier"]:
    """How much of each task was lost: its best accuracy before the last task, minus the one at the end.

    Chaudhry et al. (2018), §3; one number for every task but the last. Negative where a task has gained.

    Raises:
        InvalidInput: the matrix is no triangle.
    """
    rows = _triangle(matrix)
    best = [max(row[task] for row in rows[task:-1]) for task in range(len(rows) - 1)]
    return np.array([high - rows[-1][task] for task, high in enumerate(best)], dtype=float)


def backward_transfer(matrix: Matrix) -> float:
    """Mean change of earlier tasks from when they were learned to the end (Lopez-Paz & Ranzato 2017, §2); 0 for one.

    Raises:
        InvalidInput: the matrix is no triangle.
    """
    rows = _triangle(matrix)
    changes = [rows[-1][task] - rows[task][task] for task in range(len(rows) - 1)]
    return float(np.mean(changes)) if changes else 0.0


def _triangle(matrix: Matrix) -> list[list[float]]:
    rows = [list(row) for row in matrix]
    if not rows or any(len(row) != place + 1 for place, row in enumerate(rows)):
        raise InvalidInput(
            f"An accuracy matrix has one entry in its first row, two in the second, and so on; this one has "
            f"{[len(row) for row in rows]}."
        )
    return rows
