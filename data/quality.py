"""What can be wrong with bars, found and named.

Two levels. A *violation* makes a row unusable (a price that is not a number, a high under the low): `Bars`
refuses to exist with one. A *finding* is legal but worth knowing (gaps, zero volume, a large jump): it goes
into the `QualityReport` that `python -m data check` prints. Nothing is ever repaired or filled here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data.timeframe import Timeframe

Floats = NDArray[np.float64]
Times = NDArray[np.int64]

RULES: Final = {
    "not_finite": "every value is a finite number",
    "not_positive": "prices are above zero",
    "high_low": "low ≤ min(open, close) ≤ max(open, close) ≤ high",
    "negative_volume": "volume is not negative",
    "off_grid": "timestamps lie on the timeframe's grid",
    "duplicate": "each timestamp occurs once",
    "unsorted": "timestamps increase",
}


class DataQualityError(ValueError):
    """Bars that break a rule of the bar contract. The message names the first bad row and the count."""


@dataclass(frozen=True)
class Violation:
    """One broken rule: how many rows break it, and the first of them."""

    rule: str
    count: int
    first_row: int
    detail: str

    def __str__(self) -> str:
        rows = "1 row breaks" if self.count == 1 else f"{self.count} rows break"
        return f'{rows} "{RULES[self.rule]}", the first is row {self.first_row} ({self.detail})'


@dataclass(frozen=True)
class Gap:
    """Missing bars: the grid times in [start, end) [ms] have no bar, `missing` of them."""

    start: int
    end: int
    missing: int


def format_time(timestamp_ms: int) -> str:
    """2021-03-04T05:00Z, with seconds only where they matter."""
    moment = np.datetime64(int(timestamp_ms), "ms")
    if timestamp_ms % 60_000 == 0:
        moment = moment.astype("datetime64[m]")
    return f"{moment}Z"


@njit(cache=True, nogil=True)
def all_good(
    timestamp: Times, open: Floats, high: Floats, low: Floats, close: Floats, volume: Floats, origin: int, step: int
) -> bool:
    """Whether no row breaks a rule: the rules of `find_violations` in one pass, without saying which."""
    for row in range(len(timestamp)):
        # The lowest price is above zero and the highest is finite, so all are; a NaN fails the comparison it is in.
        if not (
            0.0 < low[row] <= open[row] <= high[row] < np.inf
            and low[row] <= close[row] <= high[row]
            and 0.0 <= volume[row] < np.inf
            and (timestamp[row] - origin) % step == 0
            and (row == 0 or timestamp[row] > timestamp[row - 1])
        ):
            return False
    return True


def find_violations(
    timeframe: Timeframe,
    timestamp: Times,
    open: Floats,
    high: Floats,
    low: Floats,
    close: Floats,
    volume: Floats,
) -> list[Violation]:
    """Every broken rule of the bar contract, in the order of `RULES`; an empty list means good bars.

    All columns are [N]; `timestamp` in epoch ms. Rows are numbered from 0.
    """
    if all_good(timestamp, open, high, low, close, volume, timeframe.origin_ms, timeframe.milliseconds):
        return []  # as nearly always, and a tenth of the time of finding out what is wrong
    finite = np.isfinite(open)
    for column in (high, low, close, volume):
        finite &= np.isfinite(column)
    positive = (open > 0) & (high > 0) & (low > 0) & (close > 0)
    with np.errstate(invalid="ignore"):
        ordered = (low <= np.minimum(open, close)) & (np.maximum(open, close) <= high)
    step = np.diff(timestamp, prepend=timestamp[:1] - 1)
    broken = {
        # A row with a NaN is reported once, as not finite, not under every rule that compares it.
        "not_finite": ~finite,
        "not_positive": finite & ~positive,
        "high_low": finite & positive & ~ordered,
        "negative_volume": finite & (volume < 0),
        "off_grid": (timestamp - timeframe.origin_ms) % timeframe.milliseconds != 0,
        "duplicate": step == 0,
        "unsorted": step < 0,
    }
    violations = []
    for rule, rows in broken.items():
        count = int(np.count_nonzero(rows))
        if count:
            row = int(np.argmax(rows))
            detail = (
                f"{format_time(int(timestamp[row]))}: "
                f"open {open[row]:g}, high {high[row]:g}, low {low[row]:g}, close {close[row]:g}, "
                f"volume {volume[row]:g}"
            )
            violations.append(Violation(rule, count, row, detail))
    return violations


def raise_violations(violations: Iterable[Violation], *, subject: str) -> None:
    """Raise one `DataQualityError` that tells all violations, or return when there are none."""
    found = [str(violation) for violation in violations]
    if found:
        raise DataQualityError(
            f"{subject}: {'; '.join(found)}. Bars are never repaired silently: correct or drop these rows "
            "at the source."
        )


def find_gaps(timestamp: Times, timeframe: Timeframe) -> list[Gap]:
    """Holes between the first and the last bar. `timestamp` [N] epoch ms, increasing and on the grid."""
    step = np.diff(timestamp)
    before = np.flatnonzero(step > timeframe.milliseconds)
    return [
        Gap(
            start=int(timestamp[row]) + timeframe.milliseconds,
            end=int(timestamp[row + 1]),
            missing=int(step[row]) // timeframe.milliseconds - 1,
        )
        for row in before
    ]


@dataclass(frozen=True)
class QualityReport:
    """The findings of one dataset, as printed by `python -m data check`.

    first, last: open times [ms] of the first and last bar, None without bars.
    largest_return: the log return of largest size between consecutive closes, and the open time [ms] of its
        bar.
    """

    bars: int
    first: int | None
    last: int | None
    gaps: int
    missing_bars: int
    longest_gap: Gap | None
    duplicates: int
    zero_volume: int
    flat_bars: int
    largest_return: float
    largest_return_at: int | None
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        return self.bars > 0 and not self.violations


class QualityScan:
    """Builds a `QualityReport` block by block, so that a dataset never has to be in memory at once.

    Blocks follow each other in time; what lies between two blocks (a gap, a duplicate, a jump) is seen too.
    """

    def __init__(self, timeframe: Timeframe) -> None:
        self._timeframe = timeframe
        self._bars = 0
        self._first: int | None = None
        self._last: int | None = None
        self._last_close = np.nan
        self._gaps = 0
        self._missing = 0
        self._longest: Gap | None = None
        self._zero_volume = 0
        self._flat = 0
        self._largest = 0.0
        self._largest_at: int | None = None
        self._violations: dict[str, Violation] = {}

    def add(self, timestamp: Times, open: Floats, high: Floats, low: Floats, close: Floats, volume: Floats) -> None:
        """Take in the next block; columns [N], `timestamp` in epoch ms."""
        if len(timestamp) == 0:
            return
        for violation in find_violations(self._timeframe, timestamp, open, high, low, close, volume):
            self._note(violation)
        if self._last is not None and timestamp[0] <= self._last:
            rule = "duplicate" if timestamp[0] == self._last else "unsorted"
            self._note(Violation(rule, 1, 0, f"{format_time(int(timestamp[0]))} again"))
        known = timestamp if self._last is None else np.concatenate(([self._last], timestamp))
        for gap in find_gaps(known, self._timeframe):
            self._gaps += 1
            self._missing += gap.missing
            if self._longest is None or gap.missing > self._longest.missing:
                self._longest = gap
        self._zero_volume += int(np.count_nonzero(volume == 0))
        self._flat += int(np.count_nonzero((high == low) & (open == close)))
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.abs(np.log(close / np.concatenate(([self._last_close], close[:-1]))))
        size[~np.isfinite(size)] = 0.0
        row = int(np.argmax(size))
        if size[row] > abs(self._largest):
            previous = self._last_close if row == 0 else close[row - 1]
            self._largest = float(np.log(close[row] / previous))
            self._largest_at = int(timestamp[row])
        self._bars += len(timestamp)
        self._first = int(timestamp[0]) if self._first is None else self._first
        self._last = int(timestamp[-1])
        self._last_close = float(close[-1])

    def _note(self, found: Violation) -> None:
        known = self._violations.get(found.rule)
        if known is None:
            self._violations[found.rule] = Violation(
                found.rule, found.count, found.first_row + self._bars, found.detail
            )
        else:
            self._violations[found.rule] = Violation(
                known.rule, known.count + found.count, known.first_row, known.detail
            )

    def report(self) -> QualityReport:
        duplicate = self._violations.get("duplicate")
        return QualityReport(
            bars=self._bars,
            first=self._first,
            last=self._last,
            gaps=self._gaps,
            missing_bars=self._missing,
            longest_gap=self._longest,
            duplicates=0 if duplicate is None else duplicate.count,
            zero_volume=self._zero_volume,
            flat_bars=self._flat,
            largest_return=self._largest,
            largest_return_at=self._largest_at,
            violations=tuple(self._violations.values()),
        )
