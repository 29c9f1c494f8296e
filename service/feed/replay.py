"""Stored bars as if they were happening: a feed with a clock of its own.

The clock never runs past the close of the bar that the trader is waiting for. So nothing is ever late: at any speed,
on any machine, and across any interruption, a replay gives the same decisions as a backtest of the same bars.
"""

import math
import time
from collections.abc import Callable

import numpy as np

from data.bars import Bars
from service.feed.protocol import ClockReading

PAGE = 1_000


class ReplayFeed:
    """`BarFeed` over bars that are known in full.

    start: where the clock stands at first [ms]: bars that have closed by then are history.
    speed: seconds of the replay per real second; 0: as fast as it is asked.
    real_seconds: a monotonic clock.
    """

    continuous = False  # gaps in stored bars are what the venue had: weekends, or holes it confirmed

    def __init__(
        self,
        bars: Bars,
        *,
        start: int,
        speed: float,
        venue: str | None = None,
        real_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        if speed < 0.0 or not math.isfinite(speed):
            raise ValueError(f"--speed {speed:g}: expected seconds of replay per real second, 0 for as fast as it goes")
        self._bars = bars
        self._closes = bars.timestamp + bars.timeframe.milliseconds
        self._speed = speed
        self._venue = venue or f"replay:{bars.venue}"
        self._real_seconds = real_seconds
        self._began = real_seconds()
        self._origin = start
        self._awaited = int(np.searchsorted(self._closes, start, side="right"))

    @property
    def venue(self) -> str:
        return self._venue

    def read_clock(self) -> ClockReading:
        """The replay's time. It is nobody's real time, so it says nothing about this machine's clock."""
        now = self._now()
        return ClockReading(now_ms=now, local_ms=now, measured=False)

    def closed_bars(self, *, since: int, now: int) -> Bars:
        first = int(np.searchsorted(self._bars.timestamp, since))
        stop = min(int(np.searchsorted(self._closes, now, side="right")), first + PAGE)
        if stop > self._awaited:
            self._deliver(stop)
        return self._bars.slice(first, max(first, stop))

    def seconds_until(self, moment: int, *, now: int) -> float:
        return 0.0 if self._speed == 0.0 else max(moment - now, 0) / 1_000.0 / self._speed

    def finished(self) -> bool:
        return self._awaited >= len(self._bars)

    def close(self) -> None:
        """Nothing is held."""

    def _now(self) -> int:
        if self.finished():
            return max(self._origin, int(self._closes[-1])) if len(self._closes) else self._origin
        awaited = int(self._closes[self._awaited])
        if self._speed == 0.0:
            return max(self._origin, awaited)
        elapsed = math.floor((self._real_seconds() - self._began) * 1_000.0 * self._speed)
        return min(self._origin + elapsed, max(self._origin, awaited))

    def _deliver(self, stop: int) -> None:
        """From now on wait for the bar after these: the clock goes on from their close, however late that was."""
        self._origin = max(self._origin, int(self._closes[stop - 1]))
        self._began = self._real_seconds()
        self._awaited = stop
