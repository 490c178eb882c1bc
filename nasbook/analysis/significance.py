"""Is one method better than another? Intervals, paired tests, corrections, and what an experiment could have seen.

Chapter 8. All of it is scipy's; here stand the choices that a comparison of searches needs, and their degenerate cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

from nasbook.errors import InvalidInput

__all__ = ["Interval", "PairedTest", "holm", "mean_interval", "paired_test", "pareto_front", "smallest_detectable"]

Values = Float[np.ndarray, " seeds"]


@dataclass(frozen=True)
class Interval:
    """A mean and where the true one lies, at some confidence."""

    mean: float
    """Of the values."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    @property
    def half(self) -> float:
        """Half of the width: the number behind ±."""
        return (self.high - self.low) / 2


def mean_interval(values: Values, level: float = 0.95) -> Interval:
    """The mean of independent values and its confidence interval by Student's t.

    With three values the interval is 4.3 standard errors to each side, not 2.

    Raises:
        InvalidInput: fewer than two values, one that is not finite, or a level outside (0, 1).
    """
    values = _checked(values)
    if not 0 < level < 1:
        raise InvalidInput(f"level must be between 0 and 1, got {level}.")
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class PairedTest:
    """How two methods differ over the same seeds."""

    difference: Interval
    """Of the mean of a − b, at 95 %."""
    p: float
    """Of a two-sided paired t test."""
    signed_rank_p: float
    """Of Wilcoxon's signed-rank test, which asks for no normal distribution. It has no p below 2^(1−n): with fewer than
    six seeds it can't reach 0.05."""


def paired_test(a: Values, b: Float[np.ndarray, " as_many"]) -> PairedTest:
    """Compares two methods that were run with the same seeds: the same images, divisions and initial weights.

    Where all differences are equal, the t test is undefined. Then p is 1 if they are zero, and else 2^(1−n), the least
    that a test by signs alone can give: the limit of t, 0, would call any two equal differences proof.

    Raises:
        InvalidInput: different numbers of seeds, fewer than two, or a value that is not finite.
    """
    a, b = _checked(a), _checked(b)
    if len(a) != len(b):
        raise InvalidInput(f"A paired test needs both methods' values for the same seeds; got {len(a)} and {len(b)}.")
    differences = a - b
    if not differences.any():
        return PairedTest(mean_interval(differences), 1.0, 1.0)
    # Differences that are equal but for rounding have no spread to test against.
    alike = float(np.ptp(differences)) <= 1e-12 * float(np.abs(differences).max())
    p = 2.0 ** (1 - len(differences)) if alike else float(stats.ttest_1samp(differences, 0.0).pvalue)
    # Zeros take part in the ranking (Pratt), so that the test does not gain from ties.
    few = len(differences) <= 12
    ranks = stats.wilcoxon(
        differences,
        zero_method="pratt",
        method=stats.PermutationMethod(n_resamples=2**len(differences)) if few else "approx",
    )
    return PairedTest(mean_interval(differences), p, float(ranks.pvalue))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values (1979): below α where the rejection holds for the whole family of tests at level α.

    The smallest is multiplied by the number of tests, the next by one less, and so on; none is below the one before.

    Raises:
        InvalidInput: a value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise InvalidInput(f"p-values are from 0 to 1, got {list(p_values)}.")
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, least = [0.0] * len(p_values), 0.0
    for tests, place in zip(range(len(p_values), 0, -1), order, strict=True):
        least = max(least, min(1.0, tests * p_values[place]))
        adjusted[place] = least
    return tuple(adjusted)


def smallest_detectable(deviation: float, seeds: int, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true mean difference that a two-sided paired t test finds with this power.

    Args:
        deviation: standard deviation of the differences over seeds.
        seeds: how many pairs.
        level: of the test.
        power: probability that the test finds the difference.

    Raises:
        InvalidInput: fewer than two seeds, a negative deviation, or a probability outside (0, 1).
    """
    if seeds < 2:
        raise InvalidInput(f"seeds must be at least 2, got {seeds}.")
    if not deviation >= 0:
        raise InvalidInput(f"deviation must be at least 0, got {deviation}.")
    for name, value in (("level", level), ("power", power)):
        if not 0 < value < 1:
            raise InvalidInput(f"{name} must be between 0 and 1, got {value}.")
    if power <= level:
        return 0.0  # a test finds what is not there as often as this
    critical = stats.t.ppf(1 - level / 2, seeds - 1)

    def lacking(effect: float) -> float:
        # The lower tail is written as its mirror image: far out, scipy's nct.cdf is NaN.
        return float(stats.nct.sf(critical, seeds - 1, effect) + stats.nct.sf(critical, seeds - 1, -effect)) - power

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0.0, high)) * deviation / math.sqrt(seeds)


def pareto_front(costs: Float[np.ndarray, " rows"], scores: Float[np.ndarray, " as_many"]) -> Bool[np.ndarray, " rows"]:
    """Which rows no other one beats: none is as cheap and better, or cheaper and as good.

    Raises:
        InvalidInput: not one cost and one score a row.
    """
    if costs.shape != scores.shape or costs.ndim != 1:
        raise InvalidInput(f"Expected one cost and one score a row, got the shapes {costs.shape} and {scores.shape}.")
    no_dearer = costs[None] <= costs[:, None]
    no_worse = scores[None] >= scores[:, None]
    better = (costs[None] < costs[:, None]) | (scores[None] > scores[:, None])
    return np.asarray(~(no_dearer & no_worse & better).any(1))


def _checked(values: Values) -> Values:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise InvalidInput(f"An interval needs the values of at least two seeds, got {values.tolist()}.")
    if not np.isfinite(values).all():
        raise InvalidInput(f"A value is not finite: {values.tolist()}.")
    return values
