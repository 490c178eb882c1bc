"""Returns of several series, as windows and the row that follows: simulated ones, and those of your own CSV files.

The task is one-step-ahead forecasting (growing DARTS §4.1): from the rows of a window, the next row of all series.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nasbook.data.sequences import PARTS, SequenceData, check_part, checksum_of
from nasbook.data.simulated_series import MARKET_MODELS
from nasbook.errors import DataError, InvalidInput, require_positive, unknown_name

SHARES = (0.70, 0.15, 0.15)
"""Shares of the rows that train, validate and test get, one after another in time."""


@dataclass(frozen=True, eq=False, repr=False)
class SeriesData(SequenceData):
    """Returns of several series on the same days, standardised by mean and deviation of the training rows."""

    columns: tuple[str, ...]
    """Name of every series."""
    returns: Float64[Tensor, "rows series"]
    """Log returns as they are; a hundredth is one percent."""
    ends: tuple[int, int, int]
    """The row after the last one of train, validation and test. A part begins where the one before it ends in the
    whole set; an example belongs to the part of its target's row."""
    starts: tuple[int, int, int]
    """The first row of every part. Examples begin as soon as a whole window lies before their target, which may reach
    back into the part before."""
    mean: tuple[float, ...]
    """Mean return of every series over the training rows."""
    std: tuple[float, ...]
    """Standard deviation of every series over the training rows."""
    conditional_mean: Float64[Tensor, "rows series"] | None = None
    """The best forecast of every row from all rows before it, in the unit of the returns. Known for simulated series
    only."""

    task: ClassVar[Literal["forecasting"]] = "forecasting"

    @property
    def features(self) -> int:
        return len(self.columns)

    @cached_property
    def checksum(self) -> str:
        bounds = torch.tensor([self.starts, self.ends])
        return checksum_of(self.columns, (self.returns, bounds))

    def __repr__(self) -> str:
        sizes = " + ".join(f"{self.size(part):,} {part}" for part in PARTS)
        return (
            f"SeriesData({self.name!r}, {self.features} series × {len(self.returns):,} rows, {sizes} examples of "
            f"{self.window} rows, {self.source})"
        )

    def target_rows(self, part: str) -> range:
        """The rows that are the targets of a part, in order."""
        place = check_part(part)
        return range(max(self.starts[place], self.window), self.ends[place])

    def size(self, part: str) -> int:
        return len(self.target_rows(part))

    def examples(
        self, part: str
    ) -> tuple[Float[Tensor, "examples window series"], Float[Tensor, "examples series"]]:
        rows = self.target_rows(part)
        values = self._standardised(self.returns).float()
        windows = values.unfold(0, self.window, 1).transpose(1, 2)  # (rows − window + 1, window, series)
        first = rows.start - self.window
        return windows[first : first + len(rows)].contiguous(), values[rows.start : rows.stop]

    def constant_loss(self, part: str) -> float:
        rows = self.target_rows(part)
        return self._standardised(self.returns[rows.start : rows.stop]).square().mean().item()

    def irreducible_loss(self, part: str) -> float | None:
        if self.conditional_mean is None:
            return None
        rows = self.target_rows(part)
        errors = (self.returns - self.conditional_mean)[rows.start : rows.stop]
        return (errors / errors.new_tensor(self.std)).square().mean().item()

    def to(self, device: torch.device | str) -> SeriesData:
        known = self.conditional_mean
        return replace(
            self, returns=self.returns.to(device), conditional_mean=None if known is None else known.to(device)
        )

    def _standardised(self, values: Float64[Tensor, "rows series"]) -> Float64[Tensor, "rows series"]:
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)

    def _first(self, counts: dict[str, int]) -> SeriesData:
        train, validation, test = (
            self.target_rows(part).start + counts[part] if part in counts else end
            for part, end in zip(PARTS, self.ends, strict=True)
        )
        return replace(self, ends=(train, validation, test))


SERIES = (*MARKET_MODELS,)
"""The names that :func:`load_series` knows."""


def load_series(
    name_or_path: str | os.PathLike[str],
    *,
    window: int = 10,
    shares: Sequence[float] = SHARES,
    columns: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> SeriesData:
    """Loads returns of several series."""
    name = str(name_or_path)
    if name not in MARKET_MODELS:
        raise unknown_name("series", name, [*SERIES, "a path that ends in .csv"])
    model = MARKET_MODELS[name]
    returns = model.simulate()
    return _series_data(
        name,
        "embedded",
        model.markets,
        torch.from_numpy(returns),
        window,
        shares,
        conditional_mean=torch.from_numpy(model.conditional_mean(returns)),
    ).to(device)


def _series_data(
    name: str,
    source: str,
    columns: tuple[str, ...],
    returns: Float64[Tensor, "rows series"],
    window: int,
    shares: Sequence[float],
    conditional_mean: Float64[Tensor, "rows series"] | None = None,
) -> SeriesData:
    """Divides the rows and measures what is derived from the training part."""
    require_positive(window=window)
    if len(shares) != 3 or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise InvalidInput(
            f"shares must be three numbers above 0 that sum to at most 1, for {', '.join(PARTS)}; got {list(shares)}."
        )
    first, second, third = (round(float(total) * len(returns)) for total in accumulate(shares))
    starts, ends = (0, first, second), (first, second, third)
    for part, start, end in zip(PARTS, starts, ends, strict=True):
        if end <= max(start, window):
            raise DataError(
                f"{name}: {len(returns)} rows are too few: the {part} part has no example with a window of {window}. "
                f"Give more rows, a smaller window or other shares."
            )
    train = returns[:first]
    mean, std = train.mean(0), train.std(0, correction=0)
    return SeriesData(
        name=name,
        source=source,
        window=window,
        columns=columns,
        returns=returns,
        ends=ends,
        starts=starts,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        conditional_mean=conditional_mean,
    )
