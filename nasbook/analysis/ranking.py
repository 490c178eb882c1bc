"""Do two measurements put the same architectures in the same order?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau

from nasbook.errors import InvalidInput


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's rank correlation τ_b of two scores of the same things: 1 same order, -1 reversed, 0 unrelated.

    τ_b = (C − D) / √((C + D + A)·(C + D + B)), with C concordant and D discordant pairs, A pairs tied in
    ``a`` only and B pairs tied in ``b`` only. Without ties, it is the share of pairs in the same order minus
    the share of pairs in the other.

    Raises:
        InvalidInput: the lengths differ, a score is not a finite number, or all scores of one list are equal,
            which leaves no order to compare.
    """
    if len(a) != len(b):
        raise InvalidInput(f"Expected two lists of the same length, got {len(a)} and {len(b)} scores.")
    scores = {"a": np.asarray(a, dtype=float), "b": np.asarray(b, dtype=float)}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise InvalidInput(f"{name}: expected finite numbers, got {values[~np.isfinite(values)][0]}.")
        if len(np.unique(values)) < 2:
            raise InvalidInput(f"{name}: expected at least two different scores, got {values.tolist()}.")
    return float(kendalltau(scores["a"], scores["b"], variant="b").statistic)
