"""Bars of a real exchange, through `data.exchange`: public data, no keys.

A live page is trusted as little as a historical one (decision 0011): it counts when replies in a row say the same, and
one that leaves out bars that should be there has to be told more often. One bad row rejects its whole reply.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from data.bars import Bars
from data.exchange import SMALLEST_PAGE, BadReply, ExchangeClient, ExchangeRefused, ExchangeUnavailable
from data.quality import find_gaps
from data.timeframe import Timeframe
from service.feed.protocol import ClockReading, FeedRefused, FeedUnavailable

AGREEING_REPLIES: Final = 2
DOUBTFUL_REPLIES: Final = 4
# Replies to one question before giving it up as garbage; the trader backs off and asks again.
_MOST_REPLIES: Final = 10


class ExchangeFeed:
    """`BarFeed` of one market of one exchange.

    symbol: as ccxt spells it. venue: for the ledger. page: most bars asked for at once. clock: this machine's, seconds
    since the epoch.
    """

    continuous = True

    def __init__(
        self,
        client: ExchangeClient,
        symbol: str,
        timeframe: Timeframe,
        *,
        venue: str,
        page: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._venue = venue
        self._symbol = symbol
        self._timeframe = timeframe
        self._page = page or client.page_limit()
        self._clock = clock
        self._supported = False

    @property
    def venue(self) -> str:
        return self._venue

    def read_clock(self) -> ClockReading:
        """Measured anew each time: the median of a few samples (`ExchangeClient.measure_clock`)."""
        with _translated():
            offset = self._client.measure_clock()
        local = round(self._clock() * 1_000.0)
        return ClockReading(now_ms=local + offset, local_ms=local, measured=self._client.tells_time)

    def closed_bars(self, *, since: int, now: int) -> Bars:
        with _translated():
            self._check_supported()
            step = self._timeframe.milliseconds
            cursor = self._timeframe.ceil(since)
            while True:
                bars = self._agreed(cursor, now)
                # A whole page without a bar is a hole in the listing. Only time that was surely answered for is passed.
                beyond = cursor + min(self._page, SMALLEST_PAGE) * step
                if len(bars) or beyond > now:
                    return bars
                cursor = beyond

    def _check_supported(self) -> None:
        if self._supported:
            return
        try:
            self._client.check_supported(self._symbol, self._timeframe)
        except ExchangeRefused as error:
            if self._client.knows_markets:
                raise FeedRefused(str(error)) from error
            raise
        self._supported = True

    def seconds_until(self, moment: int, *, now: int) -> float:
        return max(moment - now, 0) / 1_000.0

    def finished(self) -> bool:
        return False

    def close(self) -> None:
        self._client.close()

    def _agreed(self, since: int, now: int) -> Bars:
        """The page from `since` on, as several replies in a row tell it."""
        # Just what may be there: exchanges charge more for longer replies.
        due = (now - since) // self._timeframe.milliseconds + 1
        limit = int(min(max(due, 1), self._page))
        page: Bars | None = None
        alike = 0
        for _ in range(_MOST_REPLIES):
            reply = self._client.closed_bars(self._symbol, self._timeframe, since=since, limit=limit, now=now)
            alike = alike + 1 if reply == page else 1
            page = reply
            if alike >= (DOUBTFUL_REPLIES if self._lacks_bars(reply, since, now) else AGREEING_REPLIES):
                return reply
        raise FeedUnavailable(
            f"{self.venue} tells the bars of {self._symbol} differently again and again", kind="garbage"
        )

    def _lacks_bars(self, page: Bars, since: int, now: int) -> bool:
        """Whether bars that should have closed are not in the page. The newest may take its time to appear."""
        step = self._timeframe.milliseconds
        if len(page) == 0:
            return since + 2 * step <= now
        return int(page.timestamp[0]) != since or len(find_gaps(page.timestamp, self._timeframe)) > 0


@contextmanager
def _translated() -> Iterator[None]:
    """The exchange's errors as a feed's.

    A refusal may pass too: a proxy's page, a market under maintenance. Only what `_check_supported` finds is final.
    """
    try:
        yield
    except BadReply as error:
        raise FeedUnavailable(str(error), kind="garbage") from error
    except ExchangeUnavailable as error:
        raise FeedUnavailable(str(error), kind=error.kind, retry_after_seconds=error.retry_after_seconds) from error
    except ExchangeRefused as error:
        raise FeedUnavailable(str(error), kind="refused") from error
