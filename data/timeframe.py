"""Bar lengths: "1h" to a duration, and the grid on which bars of that length open.

All times in this package are integers: milliseconds since 1970-01-01T00:00Z, and a bar is named by its
*open*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MILLISECONDS_PER_UNIT: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
DAY_MS: Final = MILLISECONDS_PER_UNIT["d"]
WEEK_MS: Final = MILLISECONDS_PER_UNIT["w"]

# 1970-01-01 was a Thursday; exchanges open weekly bars on Monday, so the weekly grid starts on 1970-01-05.
FIRST_MONDAY_MS: Final = 4 * DAY_MS

_PATTERN: Final = re.compile(r"(?P<count>[1-9][0-9]*)(?P<unit>[smhdw])")


@dataclass(frozen=True, order=True)
class Timeframe:
    """The length of a bar, with the grid of its opening times.

    milliseconds: length of one bar; a positive whole number of seconds.
    """

    milliseconds: int

    def __post_init__(self) -> None:
        if self.milliseconds <= 0 or self.milliseconds % 1_000:
            raise ValueError(
                f"A timeframe is a positive whole number of seconds, found {self.milliseconds} ms. "
                'Write it as "1m", "1h" or "1d".'
            )

    @classmethod
    def parse(cls, text: str) -> Timeframe:
        """Read "30s", "5m", "1h", "1d" or "1w". Calendar months ("1M") have no fixed length and are
        refused."""
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"Unknown timeframe {text!r}. Expected a count and a unit out of s, m (minutes), h, d, w, "
                'for example "5m", "1h" or "1d"; calendar months have no fixed length and are not supported.'
            )
        return cls(int(match["count"]) * MILLISECONDS_PER_UNIT[match["unit"]])

    @property
    def seconds(self) -> int:
        return self.milliseconds // 1_000

    @property
    def origin_ms(self) -> int:
        """One point of the grid: the epoch, or the first Monday for frames of whole weeks."""
        return FIRST_MONDAY_MS if self.milliseconds % WEEK_MS == 0 else 0

    def floor(self, timestamp_ms: int) -> int:
        """Open time [ms] of the bar that contains this instant."""
        return timestamp_ms - (timestamp_ms - self.origin_ms) % self.milliseconds

    def ceil(self, timestamp_ms: int) -> int:
        """The first open time [ms] at or after this instant."""
        return timestamp_ms + (self.origin_ms - timestamp_ms) % self.milliseconds

    def is_aligned(self, timestamp_ms: int) -> bool:
        return (timestamp_ms - self.origin_ms) % self.milliseconds == 0

    def close_of(self, timestamp_ms: int) -> int:
        """The instant [ms] at which the bar that opens at `timestamp_ms` closes: its last trade is before
        it."""
        return timestamp_ms + self.milliseconds

    def __str__(self) -> str:
        """The shortest spelling: 60 minutes are "1h". `Timeframe.parse` reads it back."""
        for unit in ("w", "d", "h", "m"):
            count, rest = divmod(self.milliseconds, MILLISECONDS_PER_UNIT[unit])
            if rest == 0:
                return f"{count}{unit}"
        return f"{self.seconds}s"
