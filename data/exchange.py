"""Bars from exchanges, through ccxt. Nothing else in the project imports ccxt.

What ccxt gives cannot be taken as it comes (measured on 4.5.90): a reply of HTML or of cut-off JSON with status 200
raises nothing and arrives as rows of None or as no rows at all; its own pagination loses history without a word; the
last row may be a bar that is still open. So here

- every row of a reply is validated, and one bad row rejects the whole reply;
- pages are walked by the times of the bars received, never by counting rows;
- a bar counts once it has closed by the exchange's clock;
- a page counts when two replies in a row say the same (four, where bars are missing unexpectedly). A hole, an empty
  page or a changed value that was in one reply only never reaches the store; what the exchange repeats is a fact,
  gaps included.

ccxt is imported when a client is made: no other command waits for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import filelock
import numpy as np

from data.bars import VALUE_COLUMNS, Bars
from data.quality import DataQualityError, format_time
from data.store import (
    LOCK_WAIT_SECONDS,
    BarStore,
    Change,
    DatasetKey,
    DatasetLocked,
    DatasetWriter,
    GapRecord,
    Span,
    create_folder,
)
from data.timeframe import Timeframe

Row = Sequence[float | None]

# The smallest page of any exchange measured. Where a page is empty and nothing is known yet about how many bars this
# exchange really gives at a time, no step is longer.
SMALLEST_PAGE: Final = 300
DEFAULT_PAGE: Final = 500
CLOCK_SAMPLES: Final = 3
CLOCK_REFRESH_SECONDS: Final = 600.0

# An exchange behind a geo-block answers every request with one of these.
_BLOCKED_STATUS: Final = frozenset({403, 404, 451})
_LIMIT_STATUS: Final = frozenset({418, 429})
_BLOCKED_LIMIT: Final = 3

# Replies in a row that must be alike before they are believed; more of them where bars are missing unexpectedly,
# because an empty list is what several faults look like through ccxt.
_AGREEING_REPLIES: Final = 2
_DOUBTFUL_REPLIES: Final = 4

_COMMIT_PAGES: Final = 10
_COMMIT_SECONDS: Final = 5.0
_FETCH_LOCK_NAME: Final = ".fetch.lock"


class ExchangeError(RuntimeError):
    """The exchange did not give what was asked for."""


class ExchangeRefused(ExchangeError):
    """Asking again will not help: unknown exchange, symbol or timeframe, or a request the exchange rejects."""


class ExchangeUnavailable(ExchangeError):
    """Asking again later may help.

    kind: "network" (unreachable, overloaded, timed out), "limit" (asked too often), "blocked" (403, 404, 451: most
    often a country block) or "garbage" (a reply that is not what it should be).
    retry_after_seconds: what the exchange asked to wait, if it did.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Literal["network", "limit", "blocked", "garbage"],
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


class BadReply(ExchangeUnavailable):
    """A reply that breaks the bar contract or cannot be parsed. None of it may be used."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="garbage")


def parse_page(rows: Sequence[Row], key: DatasetKey, *, since: int, now: int) -> Bars:
    """The closed bars of a reply that open at or after `since` [ms], by the exchange's clock `now` [ms].

    Rows may come in any order, and twice if they say the same. Raises `BadReply` for anything else: values that are
    missing or not finite, a bar off the grid, one that breaks low ≤ open, close ≤ high, two versions of one bar, or a
    bar from the future.
    """
    frame = key.timeframe
    try:
        table = np.array([tuple(row[:6]) for row in rows], dtype=np.float64).reshape(len(rows), 6)
    except (TypeError, ValueError) as error:
        raise BadReply(f"{key}: the reply is no list of six numbers a row ({error})") from error
    if not np.isfinite(table).all():
        row = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise BadReply(f"{key}: row {row} of {len(rows)} has a missing or infinite value: {list(rows[row])}")
    table = np.unique(table, axis=0)
    times = table[:, 0]
    if len(times) and (times != np.rint(times)).any():
        raise BadReply(f"{key}: a bar opens between two milliseconds")
    timestamp = times.astype(np.int64)
    if (np.diff(timestamp) == 0).any():
        twice = int(timestamp[int(np.argmin(np.diff(timestamp)))])
        raise BadReply(f"{key}: two different bars at {format_time(twice)}")
    # One bar length of tolerance: an exchange may open the next bar a little before our estimate of its clock.
    if len(timestamp) and timestamp[-1] > now + frame.milliseconds:
        raise BadReply(f"{key}: a bar at {format_time(int(timestamp[-1]))}, but it is only {format_time(now)} there")
    closed = (timestamp >= since) & (timestamp + frame.milliseconds <= now)
    columns = {name: table[closed, position] for position, name in enumerate(VALUE_COLUMNS, start=1)}
    try:
        return Bars(key.symbol, frame, key.venue, timestamp[closed], **columns)
    except DataQualityError as error:
        raise BadReply(str(error)) from error


class ExchangeClient:
    """Public market data of one exchange: bars and its clock. Needs no keys. Use as a context manager.

    url_override: talk to this base URL instead, keeping the paths: a mock, or a proxy. The exchange's rate limit does
    not apply there.
    clock: this machine's time in seconds since the epoch.

    Methods raise `ExchangeUnavailable` for what may pass and `ExchangeRefused` for what will not.
    """

    def __init__(
        self,
        exchange: str,
        *,
        url_override: str | None = None,
        timeout_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        import ccxt

        if exchange not in ccxt.exchanges:
            close = [name for name in ccxt.exchanges if name.startswith(exchange[:3])] or ["binance", "kraken"]
            raise ExchangeRefused(f"Unknown exchange {exchange!r}. Expected a ccxt id such as {', '.join(close[:8])}.")
        self.name = exchange
        self._ccxt = ccxt
        self._client: Any = getattr(ccxt, exchange)(
            {"enableRateLimit": url_override is None, "timeout": timeout_seconds * 1_000.0}
        )
        if url_override is not None:
            self._client.urls["api"] = _rebased(self._client.urls["api"], url_override)
        self._client.enableLastJsonResponse = True
        self._client.enableLastHttpResponse = True
        self._clock = clock
        self._clock_offset_ms = 0
        self._clock_measured_at: float | None = None
        self._status: int | None = None
        self._remember_status()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def page_limit(self) -> int:
        """Bars asked for at a time: as many as the exchange gives, by ccxt's records."""
        spot = (self._client.features or {}).get("spot") or {}
        limit = (spot.get("fetchOHLCV") or {}).get("limit")
        return int(limit) if limit else DEFAULT_PAGE

    def check_supported(self, symbol: str, timeframe: Timeframe) -> None:
        """Raise `ExchangeRefused` unless the exchange has bars of this symbol and timeframe."""
        known = self._client.timeframes or {}
        if str(timeframe) not in known:
            raise ExchangeRefused(
                f"{self.name} has no {timeframe} bars. Expected one of {', '.join(known) or 'none at all'}."
            )
        self._load_markets(symbol)
        if symbol not in self._client.markets:
            base = symbol.split("/")[0]
            similar = [name for name in self._client.markets if name.split("/")[0] == base][:8]
            hint = f"it has {', '.join(similar)}" if similar else f"it has no market of {base}"
            raise ExchangeRefused(f"{self.name} does not know {symbol!r}: {hint}. Symbols look like BTC/USDT.")

    def now_ms(self) -> int:
        """The exchange's clock: ours plus the offset measured against it, refreshed now and then."""
        now = self._clock()
        if self._clock_measured_at is None or not 0 <= now - self._clock_measured_at < CLOCK_REFRESH_SECONDS:
            self.measure_clock()
        return round(self._clock() * 1_000.0) + self._clock_offset_ms

    @property
    def knows_markets(self) -> bool:
        """Whether the exchange has told which markets it has: from then on an unknown symbol is a fact."""
        return bool(self._client.markets)

    @property
    def tells_time(self) -> bool:
        """Whether the exchange tells its time; else this machine's is taken for it."""
        return bool(self._client.has.get("fetchTime"))

    def measure_clock(self) -> int:
        """Offset of the exchange's clock to ours [ms]: the median of a few samples, each set against the middle of its
        round trip. 0 where the exchange does not tell its time."""
        if not self.tells_time:
            self._clock_measured_at = self._clock()
            return 0
        offsets = []
        for _ in range(CLOCK_SAMPLES):
            before = self._clock()
            theirs = self._call(self._client.fetch_time)
            after = self._clock()
            if not isinstance(theirs, int) or theirs <= 0:
                raise BadReply(f"{self.name}: its clock says {theirs!r}, expected epoch milliseconds")
            offsets.append(theirs - round((before + after) * 500.0))
        self._clock_offset_ms = round(median(offsets))
        self._clock_measured_at = self._clock()
        return self._clock_offset_ms

    def closed_bars(self, symbol: str, timeframe: Timeframe, *, since: int, limit: int, now: int | None = None) -> Bars:
        """One reply's closed bars from `since` [ms] on, at most `limit` or what the exchange allows; may be empty.

        now: exchange time [ms] by which bars count as closed; by default the exchange's present time.
        """
        at = self.now_ms() if now is None else now
        self._load_markets(symbol)
        rows = self._call(self._client.fetch_ohlcv, symbol, str(timeframe), since, limit)
        # A page of HTML, cut-off JSON and an empty object all come out of ccxt as an empty list of bars; a maintenance
        # page would read as a gap. What the server really sent decides.
        sent = self._client.last_json_response
        if not isinstance(rows, list) or sent is None or sent == {}:
            text = " ".join(str(self._client.last_http_response).split())
            raise BadReply(f"{self.name}: expected JSON with bars, found {text[:60]!r}")
        return parse_page(rows, DatasetKey(self.name, symbol, timeframe), since=since, now=at)

    def _load_markets(self, symbol: str) -> None:
        if self._client.markets:
            return
        options = self._client.options.get("fetchMarkets")
        if self.name.startswith("binance") or (isinstance(options, dict) and "types" in options):
            # One request instead of three: the markets of this symbol's kind are enough.
            kinds = ["linear", "inverse"] if ":" in symbol else ["spot"]
            self._client.options["fetchMarkets"] = {**(options or {}), "types": kinds}
        self._call(self._client.load_markets)
        if not self._client.markets:
            # Garbage instead of the list of markets parses to none.
            self._client.markets = None
            raise BadReply(f"{self.name}: its list of markets is empty")

    def _remember_status(self) -> None:
        """Keep the HTTP status of the latest reply, which ccxt's errors only mention in their text."""
        original = self._client.on_rest_response

        def record(code: int, *rest: Any) -> Any:
            self._status = code
            return original(code, *rest)

        self._client.on_rest_response = record

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call ccxt, with its errors told as ours."""
        self._status = None
        self._client.last_response_headers = None
        self._client.last_json_response = None
        try:
            return method(*arguments)
        except (self._ccxt.DDoSProtection, self._ccxt.RateLimitExceeded) as error:
            raise self._unavailable("limit", "asks to slow down", error) from error
        except self._ccxt.ExchangeNotAvailable as error:
            if self._status in _BLOCKED_STATUS:
                raise self._unavailable("blocked", f"refuses this address (HTTP {self._status})", error) from error
            raise self._unavailable("network", "is not available", error) from error
        except self._ccxt.OperationFailed as error:
            raise self._unavailable("network", "cannot be reached", error) from error
        except self._ccxt.BaseError as error:
            raise ExchangeRefused(f"{self.name}: {_first_line(error)}") from error
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            # ccxt parses whatever arrives without checking it first; what it trips over is a bad reply.
            raise BadReply(f"{self.name}: a reply that ccxt cannot parse ({type(error).__name__}: {error})") from error

    def _unavailable(
        self, kind: Literal["network", "limit", "blocked"], what: str, error: Exception
    ) -> ExchangeUnavailable:
        headers = self._client.last_response_headers or {}
        retry_after = headers.get("Retry-After")
        seconds = float(retry_after) if retry_after is not None and str(retry_after).isdigit() else None
        return ExchangeUnavailable(f"{self.name} {what}: {_first_line(error)}", kind=kind, retry_after_seconds=seconds)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to wait for an exchange that does not answer as it should.

    attempts: failures in a row after which to give up.
    base_seconds: the first wait; each further one doubles it, up to `longest_seconds`.
    limit_base_seconds: the first wait after being told to slow down.
    Waits are spread by a random factor between 0.5 and 1.5, so that clients do not return in step.
    """

    attempts: int = 8
    base_seconds: float = 1.0
    limit_base_seconds: float = 15.0
    longest_seconds: float = 300.0

    def delay(self, failures: int, error: ExchangeUnavailable, spread: float) -> float:
        """Seconds to wait after this many failures in a row; spread: uniform in [0, 1)."""
        base = self.limit_base_seconds if error.kind == "limit" else self.base_seconds
        wait = min(base * 2.0 ** (failures - 1) * (0.5 + spread), self.longest_seconds)
        return max(wait, error.retry_after_seconds or 0.0)


@dataclass
class Retrier:
    """Repeats calls that fail for reasons that may pass, and counts."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    sleep: Callable[[float], None] = time.sleep
    spread: Callable[[], float] = field(default_factory=lambda: random.Random().random)
    notice: Callable[[str], None] = lambda message: None
    retries: int = 0

    def call(self, method: Callable[[], Any]) -> Any:
        """What `method` returns at last. Raises the last `ExchangeUnavailable`, told as final, or `ExchangeRefused`."""
        failures, blocked = 0, 0
        while True:
            try:
                return method()
            except ExchangeUnavailable as error:
                failures += 1
                blocked = blocked + 1 if error.kind == "blocked" else 0
                if blocked >= _BLOCKED_LIMIT:
                    raise ExchangeRefused(
                        f"{error}. Three times in a row means a block, often of a country or a network: use another "
                        "exchange (--exchange kraken) or another network."
                    ) from error
                if failures >= self.policy.attempts:
                    raise ExchangeUnavailable(
                        f"{error}. Gave up after {failures} attempts in a row; what was fetched before is stored. Run "
                        "the same command again later, it continues where it stopped.",
                        kind=error.kind,
                    ) from error
                self.retries += 1
                wait = self.policy.delay(failures, error, self.spread())
                self.notice(f"{error}; attempt {failures + 1} of {self.policy.attempts} in {wait:.1f} s")
                self.sleep(wait)


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did.

    since, until: the interval [ms] that the store now holds everything of that the exchange has.
    first, last: opens [ms] of the dataset's first and last bar, None without bars.
    gaps: missing bars inside the interval, by the exchange's own word.
    revised: opens [ms] of bars that were stored with other values; the store has the new ones.
    retries: replies that were missing, bad or not confirmed by the next one.
    """

    dataset: str
    since: int
    until: int
    new_bars: int
    stored_bars: int
    first: int | None
    last: int | None
    gaps: tuple[GapRecord, ...]
    revised: tuple[int, ...]
    retries: int


def fetch_bars(
    store: BarStore,
    client: ExchangeClient,
    symbol: str,
    timeframe: Timeframe,
    *,
    since: int,
    until: int | None = None,
    refresh: bool = False,
    retrier: Retrier | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    wait_seconds: float = LOCK_WAIT_SECONDS,
) -> FetchReport:
    """Bring the closed bars of [since, until) (ms; until: now) into the store.

    Only what the store was not told before is asked for, unless `refresh`: an interrupted fetch continues, a finished
    one is extended. Stored bars that are told differently this time are replaced and reported.

    Raises `ExchangeRefused` or `ExchangeUnavailable` (what came before is stored), `DatasetLocked` if another process
    fetches from this exchange, `StoreError` if the disk refuses.
    """
    retrier = Retrier() if retrier is None else retrier
    key = DatasetKey(client.name, symbol, timeframe)
    with _one_fetch_per_exchange(store, client.name, wait_seconds):
        retrier.call(lambda: client.check_supported(symbol, timeframe))
        span = _closed_span(key, since, until, retrier.call(client.now_ms))
        with store.writer(key, source=f"{client.name} via ccxt", wait_seconds=wait_seconds) as writer:
            walk = _Walk(client, key, writer, retrier, progress)
            try:
                for part in [span] if refresh else _not_yet_fetched(span, writer.fetched):
                    walk.cover(part, within=span)
            finally:
                # Whatever ends the walk early, the pages before it are good.
                if writer.fetched:
                    manifest = writer.commit()
    return FetchReport(
        dataset=str(key),
        since=span.start,
        until=span.end,
        new_bars=walk.change.new,
        stored_bars=manifest.bars,
        first=manifest.first,
        last=manifest.last,
        gaps=tuple(gap for gap in manifest.gaps if gap.end > span.start and gap.start < span.end),
        revised=walk.change.revised,
        retries=retrier.retries + walk.disagreements,
    )


class _Walk:
    """One pass over the missing parts of a dataset, page by page."""

    def __init__(
        self,
        client: ExchangeClient,
        key: DatasetKey,
        writer: DatasetWriter,
        retrier: Retrier,
        progress: Callable[[float], None],
    ) -> None:
        self._client = client
        self._key = key
        self._writer = writer
        self._retrier = retrier
        self._progress = progress
        self._limit = client.page_limit()
        self._largest_page = 0
        self._in_void = False
        self._uncommitted_pages = 0
        self._committed_at = time.monotonic()
        self.change = Change()
        self.disagreements = 0

    def cover(self, part: Span, *, within: Span) -> None:
        """Fetch [part.start, part.end); `within` is the whole request, for the progress."""
        step = self._key.timeframe.milliseconds
        cursor = part.start
        while cursor < part.end:
            # The bar before the cursor comes along: an exchange may revise its newest bar after closing it.
            first = max(cursor - step, 0)
            page = self._agreed_page(first)
            new = page.between(cursor, part.end)
            if len(new):
                following = min(int(page.timestamp[-1]) + step, part.end)
            else:
                # Nothing on a whole page: a hole in the listing. Only time that was really answered for is skipped.
                answered = min(self._limit, self._largest_page or SMALLEST_PAGE)
                following = min(first + answered * step, part.end)
            self._revise(page.between(None, cursor))
            self.change += self._writer.add(new, fetched=Span(start=cursor, end=following), overwrite=True)
            self._commit_now_and_then()
            cursor = following
            self._progress((cursor - within.start) / (within.end - within.start))

    def _agreed_page(self, since: int) -> Bars:
        """Closed bars from `since` on, as several replies in a row tell them."""
        now = self._retrier.call(self._client.now_ms)
        known = self._writer.read(since, since + 1)
        alike = 0
        page: Bars | None = None
        for _ in range(_DOUBTFUL_REPLIES + self._retrier.policy.attempts):
            reply: Bars = self._retrier.call(
                lambda: self._client.closed_bars(
                    self._key.symbol, self._key.timeframe, since=since, limit=self._limit, now=now
                )
            )
            if page is not None and reply != page:
                self.disagreements += 1
                alike = 0
            page, alike = reply, alike + 1
            # An unexpected emptiness is doubtful: no bars at all after a page with bars, or not even the bar that the
            # store has from before.
            lost = known is not None and (len(page) == 0 or page.timestamp[0] != since)
            doubtful = lost or (len(page) == 0 and not self._in_void)
            if alike >= (_DOUBTFUL_REPLIES if doubtful else _AGREEING_REPLIES):
                self._largest_page = max(self._largest_page, len(page))
                self._in_void = len(page) == 0
                return page
        raise BadReply(
            f"{self._key}: the exchange told the bars from {format_time(since)} on differently again and again. "
            "What was fetched before is stored; try again later."
        )

    def _revise(self, told: Bars) -> None:
        """Take over what the exchange now says about bars that are already stored."""
        if len(told):
            stored = self._writer.read(int(told.timestamp[0]), int(told.timestamp[-1]) + 1)
            if stored is not None:
                known = told.between(int(stored.timestamp[0]), int(stored.timestamp[-1]) + 1)
                self.change += self._writer.add(known, overwrite=True)

    def _commit_now_and_then(self) -> None:
        self._uncommitted_pages += 1
        if self._uncommitted_pages >= _COMMIT_PAGES or time.monotonic() - self._committed_at > _COMMIT_SECONDS:
            self._writer.commit()
            self._uncommitted_pages = 0
            self._committed_at = time.monotonic()


def _closed_span(key: DatasetKey, since: int, until: int | None, now: int) -> Span:
    """The requested interval on the grid, cut where the exchange's present bar is still open."""
    frame = key.timeframe
    start = frame.ceil(since)
    end = frame.floor(now) if until is None else min(frame.ceil(until), frame.floor(now))
    if start >= end:
        raise ExchangeRefused(
            f"{key}: no closed bar from {format_time(start)} to {format_time(end)}; by the clock of {key.venue} it is "
            f"{format_time(now)}. Choose an earlier --since."
        )
    return Span(start=start, end=end)


def _not_yet_fetched(span: Span, fetched: Sequence[Span]) -> list[Span]:
    """The parts of `span` outside `fetched`, which is disjoint and in order."""
    parts, cursor = [], span.start
    for done in fetched:
        if done.end <= cursor or done.start >= span.end:
            continue
        if done.start > cursor:
            parts.append(Span(start=cursor, end=done.start))
        cursor = max(cursor, done.end)
    if cursor < span.end:
        parts.append(Span(start=cursor, end=span.end))
    return parts


@contextmanager
def _one_fetch_per_exchange(store: BarStore, exchange: str, wait_seconds: float) -> Iterator[None]:
    """An exchange limits requests by address, not by process: two fetches at once would only slow each other down."""
    folder = store.root / exchange
    create_folder(folder)
    lock = filelock.FileLock(folder / _FETCH_LOCK_NAME)
    try:
        lock.acquire(timeout=wait_seconds)
    except filelock.Timeout as error:
        raise DatasetLocked(
            f"Another process has been fetching from {exchange} for {wait_seconds:g} s ({folder / _FETCH_LOCK_NAME}). "
            "Wait until it ends, then run this again."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _rebased(urls: Any, base: str) -> Any:
    """Every URL of ccxt's (nested) table with another scheme and host, the paths kept."""
    if isinstance(urls, dict):
        return {name: _rebased(url, base) for name, url in urls.items()}
    if not isinstance(urls, str):
        return urls
    target, url = urlsplit(base), urlsplit(urls)
    path = target.path.rstrip("/") + url.path
    return urlunsplit((target.scheme, target.netloc, path, url.query, url.fragment))


def _first_line(error: Exception) -> str:
    """An error's text without the page of HTML that some exchanges attach."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else f"{text[:200]}…"
