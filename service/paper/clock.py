"""What time it is where the bars are made, and whether this machine's clock can be believed."""

from dataclasses import dataclass

from service.feed.protocol import ClockReading

# A venue's clock is measured to some tens of milliseconds; less than this back is measurement, not a jump.
JUMP_MS = 1_000


@dataclass(frozen=True, slots=True)
class Time:
    """A look at the clock. skew_seconds: the venue's clock minus this machine's, 0 where that is not judged.
    jumped_back_ms: how far the venue's time lies before an earlier look, 0 in the ordinary case."""

    now_ms: int
    skew_seconds: float
    jumped_back_ms: int


class VenueClock:
    """Remembers the offset between looks, and the latest time seen.

    judged: whether the offset is an error of this machine's clock. A mock or a replay lives at another time on purpose.
    """

    def __init__(self, *, judged: bool) -> None:
        self._judged = judged
        self._latest_ms: int | None = None
        self.offset_ms: int | None = None

    def look(self, reading: ClockReading) -> Time:
        """Take a reading in."""
        if reading.measured:
            self.offset_ms = reading.offset_ms
        latest = self._latest_ms
        back = 0 if latest is None else latest - reading.now_ms
        self._latest_ms = reading.now_ms
        return Time(
            now_ms=reading.now_ms,
            skew_seconds=self.skew_seconds,
            jumped_back_ms=back if back >= JUMP_MS else 0,
        )

    @property
    def skew_seconds(self) -> float:
        """As last measured."""
        return (self.offset_ms or 0) / 1_000.0 if self._judged else 0.0

    def estimate(self, local_ms: int) -> int | None:
        """The venue's time without asking: this machine's and the last offset; where the two clocks may run at
        different speeds, the last reading. None before the first one."""
        if self._latest_ms is None:
            return None
        return local_ms + (self.offset_ms or 0) if self._judged else self._latest_ms
