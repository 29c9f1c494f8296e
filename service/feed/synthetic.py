"""Made-up bars without end, for trying out the paper trader where there is no exchange."""

import time
from collections.abc import Callable
from typing import Final

from data.bars import Bars
from data.synthetic import GENERATORS
from data.timeframe import Timeframe
from service.feed.protocol import ClockReading
from service.feed.replay import ReplayFeed

# A longer series begins with the shorter one, so a feed that is about to run out is made anew, twice as long. The most
# it ever holds: a century of hours, 50 MB.
_FIRST_LENGTH: Final = 16_384
_LARGEST_LENGTH: Final = 1_048_576


class SyntheticFeed:
    """`BarFeed` over a seeded generator of `data.synthetic`.

    start: where the clock stands at first [ms]; None: after `history` bars.
    """

    continuous = True

    def __init__(
        self,
        generator: str,
        timeframe: Timeframe,
        *,
        seed: int,
        history: int,
        speed: float,
        start: int | None = None,
        real_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        if generator not in GENERATORS:
            raise ValueError(f"--generator {generator}: expected one of {', '.join(GENERATORS)}")
        self._generator, self._timeframe, self._seed = generator, timeframe, seed
        self._speed, self._real_seconds = speed, real_seconds
        self._length = max(_FIRST_LENGTH, 2 * history)
        bars = self._make()
        first = int(bars.timestamp[0])
        start = first + history * timeframe.milliseconds if start is None else start
        while start >= int(bars.timestamp[-1]) and self._length < _LARGEST_LENGTH:
            self._length *= 2
            bars = self._make()
        self._replay = self._replaying(bars, start)

    @property
    def venue(self) -> str:
        return f"synthetic:{self._generator}:{self._seed}"

    def read_clock(self) -> ClockReading:
        if self._replay.finished() and self._length < _LARGEST_LENGTH:
            now = self._replay.read_clock().now_ms
            self._length *= 2
            self._replay = self._replaying(self._make(), now)
        return self._replay.read_clock()

    def closed_bars(self, *, since: int, now: int) -> Bars:
        return self._replay.closed_bars(since=since, now=now)

    def seconds_until(self, moment: int, *, now: int) -> float:
        return self._replay.seconds_until(moment, now=now)

    def finished(self) -> bool:
        return self._replay.finished() and self._length >= _LARGEST_LENGTH

    def close(self) -> None:
        """Nothing is held."""

    def _make(self) -> Bars:
        return GENERATORS[self._generator](
            self._length, seed=self._seed, timeframe=str(self._timeframe), start=self._timeframe.ceil(_EPOCH_2020)
        )

    def _replaying(self, bars: Bars, start: int) -> ReplayFeed:
        return ReplayFeed(bars, start=start, speed=self._speed, venue=self.venue, real_seconds=self._real_seconds)


_EPOCH_2020: Final = 1_577_836_800_000  # 2020-01-01
