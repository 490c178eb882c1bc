"""Simulated returns of stock indices: days that are hard to predict, as real ones are, with a floor that is known.

The model is a textbook's. Its mean is a vector autoregression with a spill-over through time zones: the markets that
close last on a day are followed by the others on the next day. Its variances are GARCH(1,1) with a constant
conditional correlation (Bollerslev 1990), so that quiet and wild days come in runs. For market i on day t:

* r[t] = m[t] + ε[t], m[t] = c + Φ (r[t−1] − c): what can be predicted;
* ε[i, t] = √h[i, t] · η[i, t], h[i, t] = ω[i] + a ε[i, t−1]² + b h[i, t−1]: what can't;
* η[t] is Student's t with ν degrees of freedom and the correlations R, scaled to variance 1.

All numbers are invented, of the size that such indices have. They are no estimates, and nothing here is data of a
market.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

ROWS = 2_610
"""Days of a simulated set: ten years of 261 working days."""

WARM_UP = 500
"""Days before the first one, in which the variances forget where they began."""

DIGITS = 8
"""Decimals of a return. Machines differ in the last bits of a logarithm or a cosine, and rounding hides that."""


@dataclass(frozen=True)
class MarketModel:
    """A VAR(1) mean with CCC-GARCH(1,1) errors; symbols as in the module's text."""

    markets: tuple[str, ...]
    """Name of every market."""
    volatility: tuple[float, ...]
    """Standard deviation of ε for every market, √(ω / (1 − a − b)), in percent a day."""
    correlation: tuple[tuple[float, ...], ...]
    """R below its diagonal: row i has the correlations of market i + 1 with the markets before it."""
    spillover: Mapping[tuple[str, str], float]
    """The entries of Φ that are not 0: (follower, leader) to the share of the leader's return a day before."""
    seed: int
    """Of all draws. Each set has the first seed, from 1, whose three parts differ by less
    than a tenth in their variance, so that the losses of the parts can be compared."""
    drift: float = 0.03
    """c for every market, the mean return in percent a day."""
    reaction: float = 0.09
    """a of the GARCH: how much a shock raises the variance of the next day."""
    persistence: float = 0.87
    """b of the GARCH: how much of today's variance stays tomorrow."""
    freedom: int = 8
    """ν, even: degrees of freedom of the shocks. One scale for all markets of a day, so that crashes are common."""

    def correlations(self) -> Float64[ndarray, "series series"]:
        """R, whole."""
        below = np.zeros((len(self.markets),) * 2)
        for row, values in enumerate(self.correlation, 1):
            below[row, :row] = values
        return below + below.T + np.eye(len(self.markets))

    def coefficients(self) -> Float64[ndarray, "series series"]:
        """Φ: row i says what market i takes over from the day before."""
        matrix = np.zeros((len(self.markets),) * 2)
        for (follower, leader), share in self.spillover.items():
            matrix[self.markets.index(follower), self.markets.index(leader)] = share
        return matrix

    def simulate(self, rows: int = ROWS) -> Float64[ndarray, "rows series"]:
        """Log returns, rounded to :data:`DIGITS`; fewer rows are the first of more."""
        series = len(self.markets)
        lower = np.linalg.cholesky(self.correlations())
        coefficients = self.coefficients()
        variance = (np.array(self.volatility) / 100) ** 2
        constant = variance * (1 - self.reaction - self.persistence)  # ω
        mean = np.full(series, self.drift / 100)  # c
        uniform = _Uniform(self.seed)
        returns, h = mean, variance
        result = np.empty((rows, series))
        for row in range(-WARM_UP, rows):
            shocks = math.sqrt(_t_scale(uniform, self.freedom)) * (lower @ uniform.normal(series))
            errors = np.sqrt(h) * shocks
            returns = np.round(mean + coefficients @ (returns - mean) + errors, DIGITS)
            h = constant + self.reaction * errors**2 + self.persistence * h
            if row >= 0:
                result[row] = returns
        return result

    def conditional_mean(self, returns: Float64[ndarray, "rows series"]) -> Float64[ndarray, "rows series"]:
        """m of every row: the best forecast from all rows before it. The first row has the mean, c."""
        mean = self.drift / 100
        before = np.concatenate([np.full_like(returns[:1], mean), returns[:-1]])
        return mean + (before - mean) @ self.coefficients().T


class _Uniform:
    """Draws that are the same on every machine and with every NumPy: from the bits of PCG64, which are fixed."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def __call__(self, count: int) -> Float64[ndarray, " count"]:
        """Numbers strictly between 0 and 1: the middles of 2⁵³ equal intervals."""
        return (np.right_shift(self.bits.random_raw(count), np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, count: int) -> Float64[ndarray, " count"]:
        """Standard normal numbers (Box and Muller 1958)."""
        return np.sqrt(-2 * np.log(self(count))) * np.cos(2 * math.pi * self(count))


def _t_scale(uniform: _Uniform, freedom: int) -> float:
    """What turns the variance of a normal into that of a Student's t of variance 1: (ν − 2) / χ²(ν)."""
    return (freedom - 2) / float(-2 * np.log(uniform(freedom // 2)).sum())  # χ² of an even ν is a sum of ν/2 of these


_G7 = MarketModel(
    # In the order of the alphabet. Japan closes first on a day, then Europe, then North America.
    markets=("Canada", "France", "Germany", "Italy", "Japan", "United Kingdom", "United States"),
    volatility=(0.95, 1.15, 1.20, 1.35, 1.20, 1.00, 1.10),
    correlation=(
        (0.55,),
        (0.53, 0.88),
        (0.50, 0.85, 0.80),
        (0.18, 0.28, 0.28, 0.25),
        (0.55, 0.80, 0.76, 0.70, 0.27),
        (0.75, 0.55, 0.56, 0.48, 0.15, 0.52),
    ),
    spillover=MappingProxyType({
        ("Japan", "United States"): 0.45,
        ("Japan", "Germany"): 0.15,
        ("France", "United States"): 0.28,
        ("Germany", "United States"): 0.28,
        ("Italy", "United States"): 0.28,
        ("United Kingdom", "United States"): 0.25,
        ("United States", "United States"): -0.08,
        ("Canada", "United States"): 0.08,
        ("Canada", "Canada"): -0.05,
    }),
    seed=8,
)

_BRICS = MarketModel(
    # China closes first on a day, then India, then Russia and South Africa, then Brazil.
    markets=("Brazil", "Russia", "India", "China", "South Africa"),
    volatility=(1.55, 1.35, 1.05, 1.25, 1.15),
    correlation=(
        (0.30,),
        (0.25, 0.25),
        (0.15, 0.15, 0.25),
        (0.40, 0.38, 0.35, 0.25),
    ),
    spillover=MappingProxyType({
        ("China", "Brazil"): 0.15,
        ("China", "South Africa"): 0.15,
        ("India", "Brazil"): 0.22,
        ("India", "South Africa"): 0.12,
        ("Russia", "Brazil"): 0.25,
        ("South Africa", "Brazil"): 0.22,
        ("Brazil", "Brazil"): -0.06,
    }),
    seed=7,
)

MARKET_MODELS: Mapping[str, MarketModel] = MappingProxyType({"simulated-g7": _G7, "simulated-brics": _BRICS})
"""The simulated sets by name: as many series as the paper's G7 and BRICS."""
