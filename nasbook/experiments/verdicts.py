"""Verdicts: from a record's numbers to "holds", "partly" or "does not hold at this scale".

The rules are written down once, before any run, and apply to every claim alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

Status = Literal["holds", "partly", "does not hold at this scale", "not yet run at this scale"]

LEVEL = 0.05
"""A trend holds when a one-sided test over seeds gives p below this."""


@dataclass(frozen=True)
class Verdict:
    """What a record says of a claim."""

    status: Status
    """The verdict."""
    numbers: str
    """The numbers that it rests on, in a line."""


def exact(correct: bool, numbers: str) -> Verdict:
    """The verdict on an exact claim: it holds or it does not."""
    return Verdict("holds" if correct else "does not hold at this scale", numbers)


def trend(right_way: bool, significant: bool, numbers: str) -> Verdict:
    """The verdict on a trend: it holds when the mean effect has the claimed sign and is significant.

    With the right sign alone it holds partly; with the wrong sign it does not hold at this scale.
    """
    if right_way and significant:
        return Verdict("holds", numbers)
    return Verdict("partly" if right_way else "does not hold at this scale", numbers)


def one_sided_p(differences: Float[np.ndarray, " seeds"]) -> float:
    """p of a paired one-sided t test that the mean difference is above zero.

    Where all differences are equal the test is undefined; then it is 0 if they are positive, else 1.
    """
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] > 0 else 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue)


def mean_and_error(values: Float[np.ndarray, " seeds"]) -> str:
    """Mean and standard error over seeds, as percentages."""
    return f"{values.mean():.2%} ± {values.std(ddof=1) / np.sqrt(len(values)):.2%}"
