"""Bars: OHLCV columns of one symbol, immutable and valid by construction.

The clock of the whole house is stated here once: `timestamp` is the bar's *open* in epoch milliseconds UTC;
its close price is known at `timestamp + timeframe`, not before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.quality import DataQualityError, Floats, Times, find_violations, format_time, raise_violations
from data.timeframe import Timeframe

PRICE_COLUMNS: Final = ("open", "high", "low", "close")
VALUE_COLUMNS: Final = (*PRICE_COLUMNS, "volume")
COLUMNS: Final = ("timestamp", *VALUE_COLUMNS)

# Sixteen hex digits (64 bits) keep an accidental collision among a million datasets under one in ten million.
FINGERPRINT_DIGITS: Final = 16


@dataclass(frozen=True, eq=False, repr=False)
class Bars:
    """N bars of one symbol. Every column is [N], C-contiguous and read-only.

    timestamp: int64, epoch ms UTC of each bar's open; strictly increasing, on the timeframe's grid, gaps
        allowed.
    open, high, low, close: float64, quote currency per unit, positive.
    volume: float64, units of the base asset, zero where the venue reports none (FX quotes).

    Raises `DataQualityError` when a rule of the bar contract is broken (see `data.quality`).
    """

    symbol: str
    timeframe: Timeframe
    venue: str
    timestamp: Times
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __post_init__(self) -> None:
        if not self.symbol or not self.venue:
            raise ValueError(
                f"Bars need a symbol and a venue, found symbol {self.symbol!r} and venue {self.venue!r}. "
                'Where the venue is unknown, say so: venue="file".'
            )
        object.__setattr__(self, "timestamp", _frozen_column(self.timestamp, np.int64, "timestamp"))
        for name in VALUE_COLUMNS:
            object.__setattr__(self, name, _frozen_column(getattr(self, name), np.float64, name))
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) != 1:
            raise DataQualityError(f"{self.symbol}: columns of different lengths {lengths}; one row is one bar.")
        raise_violations(
            find_violations(self.timeframe, self.timestamp, self.open, self.high, self.low, self.close, self.volume),
            subject=f"{self.symbol} {self.timeframe}",
        )

    def __len__(self) -> int:
        return len(self.timestamp)

    def __repr__(self) -> str:
        span = f"{format_time(self.timestamp[0])} .. {format_time(self.timestamp[-1])}" if len(self) else "empty"
        return f"Bars({self.symbol} {self.timeframe} {self.venue}, {len(self)} bars, {span})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bars):
            return NotImplemented
        return (self.symbol, self.timeframe, self.venue) == (
            other.symbol,
            other.timeframe,
            other.venue,
        ) and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in COLUMNS)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of symbol, timeframe, venue and every value: 16 hex digits. The same bars, the same
        fingerprint."""
        digest = hashlib.sha256(f"{self.venue}\n{self.symbol}\n{self.timeframe}\n".encode())
        for name in COLUMNS:
            digest.update(getattr(self, name).data)
        return digest.hexdigest()[:FINGERPRINT_DIGITS]

    def slice(self, start: int | None, stop: int | None) -> Bars:
        """Rows [start, stop), with Python's meaning of None and negative numbers. Shares memory."""
        rows = slice(start, stop)
        return _trusted(self.symbol, self.timeframe, self.venue, {name: getattr(self, name)[rows] for name in COLUMNS})

    def between(self, start: str | int | None = None, end: str | int | None = None) -> Bars:
        """Bars that open in [start, end). Each end is an ISO 8601 date or date-time (UTC unless it carries an
        offset), epoch ms, or None for "no limit". Shares memory."""
        first = None if start is None else int(np.searchsorted(self.timestamp, parse_time(start)))
        stop = None if end is None else int(np.searchsorted(self.timestamp, parse_time(end)))
        return self.slice(first, stop)

    def to_frame(self) -> pd.DataFrame:
        """The bars as pandas: a UTC index called `timestamp` and the five value columns (copies)."""
        index = pd.DatetimeIndex(self.timestamp.astype("datetime64[ms]"), name="timestamp").tz_localize("UTC")
        return pd.DataFrame({name: getattr(self, name).copy() for name in VALUE_COLUMNS}, index=index)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, symbol: str, timeframe: Timeframe | str, venue: str) -> Bars:
        """Bars from a frame with the five value columns and a `timestamp` column or a date-time index.

        Times without a zone are UTC; other zones are converted. Nothing is sorted, dropped or filled: a
        frame that breaks the bar contract raises `DataQualityError`.
        """
        missing = [name for name in VALUE_COLUMNS if name not in frame.columns]
        if missing:
            raise DataQualityError(
                f"{symbol}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}, "
                f"found {', '.join(map(str, frame.columns))}. Rename the columns first."
            )
        times = frame["timestamp"] if "timestamp" in frame.columns else frame.index
        if isinstance(timeframe, str):
            timeframe = Timeframe.parse(timeframe)
        columns = {name: frame[name].to_numpy(dtype=np.float64) for name in VALUE_COLUMNS}
        return cls(symbol, timeframe, venue, epoch_milliseconds(times), **columns)


def concatenate(parts: list[Bars]) -> Bars:
    """Join consecutive bars of one dataset, oldest first, at least one part.

    Raises `DataQualityError` where a part does not begin after the one before it.
    """
    head = parts[0]
    filled = [part for part in parts if len(part)]
    for before, after in pairwise(filled):
        if after.timestamp[0] <= before.timestamp[-1]:
            raise DataQualityError(
                f"{head.symbol}: bars from {format_time(int(after.timestamp[0]))} on follow bars up to "
                f"{format_time(int(before.timestamp[-1]))}; parts must not overlap and come oldest first."
            )
    if len({(part.symbol, part.timeframe, part.venue) for part in parts}) != 1:
        raise ValueError(f"Parts of different datasets: {', '.join(map(repr, parts))}.")
    columns: dict[str, NDArray[Any]] = {}
    for name in COLUMNS:
        column = np.concatenate([getattr(part, name) for part in parts])
        column.flags.writeable = False
        columns[name] = column
    return _trusted(head.symbol, head.timeframe, head.venue, columns)


def end_to_end(parts: list[Bars]) -> Bars:
    """Series of one timeframe glued together whatever their times: for computing on many of them at once, where no row
    looks across a seam. Not a dataset: its timestamps do not increase."""
    if len({part.timeframe for part in parts}) != 1:
        raise ValueError(f"Parts of different timeframes: {', '.join(map(repr, parts))}.")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return _trusted("several", parts[0].timeframe, "several", columns)


def epoch_milliseconds(times: pd.Series | pd.Index) -> Times:
    """Date-times or integers [N] as int64 epoch ms. Integers are taken to *be* epoch ms."""
    if pd.api.types.is_integer_dtype(times.dtype):
        return times.to_numpy(dtype=np.int64)
    if not pd.api.types.is_datetime64_any_dtype(times.dtype):
        raise DataQualityError(
            f"timestamps have type {times.dtype}; expected date-times or integer epoch milliseconds. "
            "Convert them with pandas.to_datetime(..., utc=True)."
        )
    index = pd.DatetimeIndex(times)
    index = index.tz_localize("UTC") if index.tz is None else index.tz_convert("UTC")
    if index.hasnans:
        raise DataQualityError(f"row {int(np.argmax(index.isna()))} has no timestamp; every bar needs its open time.")
    milliseconds = index.as_unit("ms")
    if not (milliseconds == index).all():
        row = int(np.argmin(milliseconds == index))
        raise DataQualityError(f"row {row} opens at {index[row]}, between two milliseconds; bars open on a grid.")
    return milliseconds.asi8.copy()


def parse_time(value: str | int) -> int:
    """An ISO 8601 date or date-time (UTC unless it carries an offset) or epoch ms, as epoch ms."""
    if not isinstance(value, str):
        return int(value)
    try:
        moment = pd.Timestamp(value)
    except ValueError as error:
        raise ValueError(
            f"{value!r} is not a time. Expected ISO 8601 such as 2020-01-31 or 2020-01-31T12:00, or epoch ms."
        ) from error
    moment = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
    return int(moment.as_unit("ms").asm8.astype(np.int64))  # .value would be nanoseconds whatever the unit


def _frozen_column(values: NDArray[Any], dtype: type[np.generic], name: str) -> NDArray[Any]:
    """`values` as a read-only contiguous array; copied unless nobody else can write to it."""
    column = np.ascontiguousarray(values, dtype=dtype)
    if column.ndim != 1:
        raise DataQualityError(f"column {name} has shape {column.shape}; expected one value per bar.")
    if column.flags.writeable and np.shares_memory(column, values):
        column = column.copy()
    column.flags.writeable = False
    return column


def _trusted(symbol: str, timeframe: Timeframe, venue: str, columns: dict[str, NDArray[Any]]) -> Bars:
    """Bars whose columns come from valid bars: any run of rows of valid bars is valid, so no check is
    repeated."""
    bars = object.__new__(Bars)
    for name, value in {"symbol": symbol, "timeframe": timeframe, "venue": venue, **columns}.items():
        object.__setattr__(bars, name, value)
    return bars
