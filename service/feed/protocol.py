"""What the paper trader asks of a source of bars.

All times are epoch ms on the venue's clock unless a name says otherwise.
"""

from dataclasses import dataclass
from typing import Protocol

from data.bars import Bars


class FeedUnavailable(RuntimeError):
    """No answer now; asking again later may help.

    kind: "network", "limit", "blocked", "garbage" as `data.exchange` tells them apart, or "refused".
    retry_after_seconds: what the venue asked to wait, if it did.
    """

    def __init__(self, message: str, *, kind: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


class FeedRefused(RuntimeError):
    """Asking again will not help: no such venue, market or bar length."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The venue's time and this machine's, read together.

    now_ms: by the venue. local_ms: by this machine, in the middle of the reading. measured: whether the venue told its
    time; else now_ms is this machine's.
    """

    now_ms: int
    local_ms: int
    measured: bool

    @property
    def offset_ms(self) -> int:
        """The venue's clock minus this machine's."""
        return self.now_ms - self.local_ms


class BarFeed(Protocol):
    """A source of closed bars of one instrument and timeframe.

    Asking it is not free: methods may wait for the network, and raise `FeedUnavailable` or `FeedRefused`.
    """

    @property
    def venue(self) -> str:
        """Whose bars these are, for the ledger: a run never mixes two venues."""

    @property
    def continuous(self) -> bool:
        """Whether this market never closes, so that a bar that is missing is a fault and not a weekend."""

    def read_clock(self) -> ClockReading:
        """The time by which bars count as closed."""

    def closed_bars(self, *, since: int, now: int) -> Bars:
        """Bars that open at or after `since` and have closed by `now`, oldest first, contiguous as far as the venue has
        them. At most one page: call again from its end for more. Empty: there are none."""

    def seconds_until(self, moment: int, *, now: int) -> float:
        """Real seconds from venue time `now` to `moment`; 0 where it is past."""

    def finished(self) -> bool:
        """Whether there will never be another bar."""

    def close(self) -> None:
        """Let go of connections."""
