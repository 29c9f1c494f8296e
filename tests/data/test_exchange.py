"""The exchange path: the real ccxt client against a mock exchange on this machine, with every fault we know of."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.bars import Bars
from data.exchange import (
    BadReply,
    ExchangeClient,
    ExchangeRefused,
    ExchangeUnavailable,
    FetchReport,
    Retrier,
    RetryPolicy,
    fetch_bars,
    parse_page,
)
from data.mock_exchange import FAULTS, Fault, MockExchange
from data.quality import find_gaps
from data.store import BarStore, DatasetKey, DatasetLocked, GapRecord
from data.synthetic import martingale
from data.timeframe import Timeframe

HOUR = Timeframe.parse("1h")
H = HOUR.milliseconds
KEY = DatasetKey("binance", "BTC/USDT", HOUR)

# Faults that pass; the others (an answer that this address may not have) end a fetch when they come three times.
PASSING: list[Fault] = [fault for fault in FAULTS if fault not in ("geo_blocked", "forbidden")]


def with_gaps(bars: Bars, *, seed: int = 3) -> Bars:
    """Bars with single ones, a day and two whole pages missing, as after outages and before a re-listing."""
    random = np.random.default_rng(seed)
    present = random.random(len(bars)) > 0.01
    for start, length in ((len(bars) // 3, 34), (len(bars) // 2, min(2_100, len(bars) // 4))):
        present[start : start + length] = False
    present[[0, -1]] = True
    rows = np.flatnonzero(present)
    columns = {name: getattr(bars, name)[rows] for name in ("open", "high", "low", "close", "volume")}
    return Bars("BTC/USDT", bars.timeframe, "binance", bars.timestamp[rows], **columns)


def replaced(bars: Bars, **columns: NDArray[np.float64]) -> Bars:
    values = {name: columns.get(name, getattr(bars, name)) for name in ("open", "high", "low", "close", "volume")}
    return Bars(bars.symbol, bars.timeframe, bars.venue, bars.timestamp, **values)


@pytest.fixture(scope="module")
def history() -> Bars:
    return with_gaps(martingale(3_000, seed=5, price=30_000.0))


class Laboratory:
    """A mock exchange, its client and a store, with waiting that takes no time."""

    def __init__(self, root: Path, bars: Bars, **options: object) -> None:
        self.bars = bars
        self.now = int(bars.timestamp[-1]) + H // 2  # the last bar is half through
        self.store = BarStore(root)
        self.exchange = MockExchange({"BTC/USDT": bars}, clock=lambda: self.now, **options)  # type: ignore[arg-type]
        self.client = ExchangeClient(
            "binance", url_override=self.exchange.url, timeout_seconds=0.4, clock=lambda: self.now / 1_000.0
        )
        self.waits: list[float] = []
        self.notices: list[str] = []

    def retrier(self, **policy: float) -> Retrier:
        return Retrier(
            RetryPolicy(**policy),  # type: ignore[arg-type]
            sleep=self.waits.append,
            spread=lambda: 0.5,
            notice=self.notices.append,
        )

    def fetch(self, *, since: int | None = None, until: int | None = None, refresh: bool = False) -> FetchReport:
        return fetch_bars(
            self.store,
            self.client,
            "BTC/USDT",
            HOUR,
            since=int(self.bars.timestamp[0]) if since is None else since,
            until=until,
            refresh=refresh,
            retrier=self.retrier(),
            wait_seconds=0.1,
        )

    def stored(self) -> Bars:
        return self.store.load("BTC/USDT", "1h", "binance")

    def truth(self) -> Bars:
        return self.exchange.closed_bars("BTC/USDT")


@pytest.fixture
def laboratory(tmp_path: Path, history: Bars) -> Iterator[Callable[..., Laboratory]]:
    made: list[Laboratory] = []

    def make(bars: Bars = history, **options: object) -> Laboratory:
        lab = Laboratory(tmp_path / f"store{len(made)}", bars, **options)
        made.append(lab)
        lab.exchange.__enter__()
        return lab

    yield make
    for lab in made:
        lab.client.close()
        lab.exchange.__exit__(None, None, None)


Make = Callable[..., Laboratory]


def test_a_fetch_stores_exactly_the_closed_bars(laboratory: Make) -> None:
    lab = laboratory()
    report = lab.fetch()
    assert lab.stored() == lab.truth()
    assert report.new_bars == report.stored_bars == len(lab.bars) - 1
    assert report.retries == 0
    gaps = find_gaps(lab.truth().timestamp, HOUR)
    assert report.gaps == tuple(GapRecord(start=g.start, end=g.end, missing=g.missing) for g in gaps)


@pytest.mark.parametrize(("page_limit", "windowed"), [(300, False), (720, True), (1000, False)])
def test_twenty_thousand_bars_arrive_through_every_fault(laboratory: Make, page_limit: int, windowed: bool) -> None:
    """With gaps, one longer than two pages, whether an exchange answers for a number of bars or for a span of time."""
    lab = laboratory(with_gaps(martingale(20_000, seed=6, price=30_000.0)), page_limit=page_limit, windowed=windowed)
    random = np.random.default_rng(page_limit)
    for fault in random.permutation(len(PASSING)):
        lab.exchange.inject(PASSING[fault], *[None] * int(random.integers(0, 3)))
    report = lab.fetch()
    assert lab.exchange.pending_faults == 0
    assert len(lab.truth()) > 17_000
    assert lab.stored() == lab.truth()
    assert report.retries >= len(PASSING) - 2


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_leaves_no_trace_in_the_store(laboratory: Make, fault: Fault) -> None:
    """Whether it hits the first reply for a page, or the second that should confirm the first."""
    lab = laboratory(page_limit=300)
    lab.exchange.inject(fault, None, fault, None, None, fault)
    report = lab.fetch()
    assert lab.exchange.pending_faults == 0
    assert lab.stored() == lab.truth()
    assert report.revised == ()
    # Rows in another order and rows twice say the same thing and need no second asking.
    assert (report.retries > 0) == (fault not in ("duplicates", "reordered"))


@pytest.mark.parametrize("fault", ["geo_blocked", "forbidden"])
def test_a_block_ends_the_fetch_after_three_times(laboratory: Make, fault: Fault) -> None:
    lab = laboratory()
    lab.exchange.inject(fault, times=3)
    with pytest.raises(ExchangeRefused, match=r"HTTP (403|451).*another exchange"):
        lab.fetch()
    assert lab.exchange.pending_faults == 0
    lab.exchange.inject(fault, times=2)
    lab.fetch()
    assert lab.stored() == lab.truth()


def test_an_exchange_that_stays_away_ends_the_fetch_and_keeps_what_came(laboratory: Make) -> None:
    lab = laboratory(page_limit=300)
    lab.fetch(until=int(lab.bars.timestamp[0]) + 600 * H)
    lab.exchange.inject("unavailable", times=8)
    with pytest.raises(ExchangeUnavailable, match="Gave up after 8 attempts"):
        lab.fetch()
    assert len(lab.stored()) > 500
    lab.fetch()
    assert lab.stored() == lab.truth()


def test_what_came_before_a_final_fault_is_stored(laboratory: Make) -> None:
    """Also the pages since the last commit."""
    lab = laboratory(page_limit=300)
    asked = 0
    original = lab.exchange._klines

    def block_from_the_fifth_request_on(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        if asked == 5:
            lab.exchange.inject("geo_blocked", times=3)
        return original(*arguments)  # type: ignore[arg-type]

    lab.exchange._klines = block_from_the_fifth_request_on  # type: ignore[method-assign, assignment]
    with pytest.raises(ExchangeRefused):
        lab.fetch()
    assert len(lab.stored()) >= 590
    assert lab.stored() == lab.truth().slice(0, len(lab.stored()))


@pytest.mark.parametrize("fault", ["html", "truncated", "object"])
def test_a_lasting_maintenance_page_is_no_gap(laboratory: Make, fault: Fault) -> None:
    """Through ccxt it looks like an exchange without bars; believed, it would be a hole in history for ever."""
    lab = laboratory(page_limit=300)
    lab.exchange.inject(fault, times=8)
    with pytest.raises(ExchangeUnavailable, match=r"expected JSON with bars.*Gave up after 8"):
        lab.fetch()
    assert lab.store.list() == ()
    lab.fetch()
    assert lab.stored() == lab.truth()


def test_waits_double_grow_for_limits_and_honour_retry_after() -> None:
    policy = RetryPolicy(base_seconds=1.0, limit_base_seconds=15.0, longest_seconds=60.0)
    down = ExchangeUnavailable("down", kind="network")
    slow = ExchangeUnavailable("slow down", kind="limit")
    told = ExchangeUnavailable("slow down", kind="limit", retry_after_seconds=90.0)
    assert [policy.delay(n, down, 0.5) for n in (1, 2, 3, 9)] == [1.0, 2.0, 4.0, 60.0]
    assert (policy.delay(1, down, 0.0), policy.delay(1, down, 1.0)) == (0.5, 1.5)
    assert [policy.delay(n, slow, 0.5) for n in (1, 2)] == [15.0, 30.0]
    assert policy.delay(1, told, 0.5) == 90.0


def test_a_limit_makes_the_client_wait_longer_and_says_so(laboratory: Make) -> None:
    lab = laboratory(retry_after_seconds=40)
    lab.exchange.inject("banned", "unavailable")
    lab.fetch()
    assert lab.waits == [40.0, 2.0]
    assert "asks to slow down" in lab.notices[0]
    assert "attempt 2 of 8 in 40.0 s" in lab.notices[0]


def test_the_open_bar_waits_until_it_has_closed(laboratory: Make) -> None:
    lab = laboratory()
    lab.now = int(lab.bars.timestamp[1_000]) + H - 1
    lab.fetch()
    assert lab.stored().timestamp[-1] == lab.bars.timestamp[999]
    lab.now += 1
    lab.client._clock_measured_at = None
    lab.fetch()
    assert lab.stored() == lab.bars.slice(0, 1_001)


@pytest.mark.parametrize("skew_hours", [-30, 30])
def test_the_exchanges_clock_decides_not_ours(tmp_path: Path, history: Bars, skew_hours: int) -> None:
    """Our clock is more than a day off; a bar closes when it closes there."""
    now = int(history.timestamp[-1]) + H // 2
    with (
        MockExchange({"BTC/USDT": history}, clock=lambda: now) as exchange,
        ExchangeClient("binance", url_override=exchange.url, clock=lambda: now / 1000 + skew_hours * 3600) as client,
    ):
        assert client.now_ms() == pytest.approx(now, abs=1)
        fetch_bars(BarStore(tmp_path), client, "BTC/USDT", HOUR, since=int(history.timestamp[0]))
        assert BarStore(tmp_path).load("BTC/USDT", "1h") == exchange.closed_bars("BTC/USDT")


def test_a_second_fetch_asks_only_for_what_is_new(laboratory: Make) -> None:
    lab = laboratory(page_limit=1000)
    lab.now = int(lab.bars.timestamp[2_000])
    lab.fetch()
    before = lab.exchange.requests["/api/v3/klines"]
    lab.now = int(lab.bars.timestamp[2_100])
    lab.client._clock_measured_at = None
    report = lab.fetch()
    assert lab.exchange.requests["/api/v3/klines"] - before == 2
    assert report.new_bars == 100
    assert lab.fetch().new_bars == 0
    assert lab.exchange.requests["/api/v3/klines"] - before == 2


def test_an_earlier_since_fills_in_what_lies_before(laboratory: Make) -> None:
    lab = laboratory(page_limit=300)
    lab.fetch(since=int(lab.bars.timestamp[1_500]))
    assert lab.stored() == lab.truth().slice(1_500, None)
    lab.fetch()
    assert lab.stored() == lab.truth()
    assert len(lab.store.list()[0].fetched) == 1


def test_a_revision_of_the_newest_bar_is_taken_over_and_reported(laboratory: Make, history: Bars) -> None:
    """The exchange corrects its last closed bar after we stored it."""
    lab = laboratory()
    lab.now = int(lab.bars.timestamp[1_000]) + H
    lab.fetch()
    volume = history.volume.copy()
    volume[1_000] += 5.0
    revised = Bars(
        "BTC/USDT", HOUR, "binance", history.timestamp, history.open, history.high, history.low, history.close, volume
    )
    lab.exchange._markets["BTCUSDT"] = ("BTC/USDT", revised)
    lab.now += 50 * H
    lab.client._clock_measured_at = None
    report = lab.fetch()
    assert report.revised == (int(history.timestamp[1_000]),)
    assert lab.stored() == lab.truth()


def test_refresh_finds_revisions_anywhere(laboratory: Make, history: Bars) -> None:
    lab = laboratory()
    lab.fetch()
    close = history.close.copy()
    rows = [10, 1_500]
    close[rows] = history.low[rows]
    revised = Bars(
        "BTC/USDT", HOUR, "binance", history.timestamp, history.open, history.high, history.low, close, history.volume
    )
    lab.exchange._markets["BTCUSDT"] = ("BTC/USDT", revised)
    assert lab.fetch().revised == ()
    assert lab.fetch(refresh=True).revised == tuple(history.timestamp[rows].tolist())
    assert lab.stored() == lab.truth()


def test_only_recent_bars_can_be_had_and_the_gap_before_them_is_no_loss(laboratory: Make) -> None:
    """Kraken gives the latest 720 bars whatever one asks for."""
    lab = laboratory(recent_only=720, page_limit=720)
    lab.fetch()
    assert lab.stored() == lab.truth().slice(-719, None)


def test_a_since_at_the_beginning_of_time_is_no_error(laboratory: Make) -> None:
    lab = laboratory()
    lab.fetch(since=0)
    assert lab.stored() == lab.truth()


def test_a_since_long_before_the_listing_finds_the_first_bar(laboratory: Make) -> None:
    lab = laboratory(windowed=True)
    lab.fetch(since=int(lab.bars.timestamp[0]) - 5_000 * H)
    assert lab.stored() == lab.truth()


@pytest.mark.parametrize(
    ("symbol", "timeframe", "message"),
    [
        ("DOGE/USDT", "1h", r"does not know 'DOGE/USDT': it has no market of DOGE"),
        ("BTC/EUR", "1h", r"does not know 'BTC/EUR': it has BTC/USDT"),
        ("BTC/USDT", "7m", r"has no 7m bars. Expected one of .*1h"),
    ],
)
def test_a_wrong_symbol_or_timeframe_is_refused_at_once(
    laboratory: Make, symbol: str, timeframe: str, message: str
) -> None:
    lab = laboratory()
    with pytest.raises(ExchangeRefused, match=message):
        fetch_bars(lab.store, lab.client, symbol, Timeframe.parse(timeframe), since=0, retrier=lab.retrier())
    assert lab.waits == []
    assert lab.store.list() == ()


def test_an_unknown_exchange_is_refused_with_similar_names() -> None:
    with pytest.raises(ExchangeRefused, match=r"Unknown exchange 'binanze'.*binance"):
        ExchangeClient("binanze")


def test_a_since_in_the_future_is_refused(laboratory: Make) -> None:
    lab = laboratory()
    with pytest.raises(ExchangeRefused, match="no closed bar"):
        lab.fetch(since=lab.now)


def test_a_second_fetch_from_the_same_exchange_ends_cleanly(laboratory: Make) -> None:
    lab = laboratory()
    seen: list[str] = []

    def second_process(fraction: float) -> None:
        with pytest.raises(DatasetLocked, match="Another process has been fetching from binance") as refusal:
            lab.fetch()
        seen.append(str(refusal.value))

    fetch_bars(lab.store, lab.client, "BTC/USDT", HOUR, since=int(lab.bars.timestamp[0]), progress=second_process)
    assert seen
    assert lab.stored() == lab.truth()


def test_progress_ends_at_one(laboratory: Make) -> None:
    lab = laboratory(page_limit=300)
    fractions: list[float] = []
    fetch_bars(lab.store, lab.client, "BTC/USDT", HOUR, since=int(lab.bars.timestamp[0]), progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def row(hours: int, **changes: float | None) -> list[float | None]:
    values = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 1.0, **changes}
    return [hours * H, *values.values()]


def test_a_page_is_its_closed_bars_from_since_on_in_order() -> None:
    rows = [row(3), row(1), row(2), row(2), row(0)]
    page = parse_page(rows, KEY, since=1 * H, now=3 * H + H // 2)
    assert page.timestamp.tolist() == [1 * H, 2 * H]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[None] * 6, [None] * 6], "missing or infinite"),
        ([row(0), row(1, close=None)], "missing or infinite"),
        ([row(0), row(1, volume=float("nan"))], "missing or infinite"),
        ([row(0), row(1)[:4]], "no list of six numbers"),
        ([row(0), ["a"] * 6], "no list of six numbers"),
        ([row(0), None], "no list of six numbers"),
        ([row(0), row(0, close=9.5)], "two different bars"),
        ([[0.5, 10.0, 12.0, 9.0, 11.0, 1.0]], "between two milliseconds"),
        ([[H // 2, 10.0, 12.0, 9.0, 11.0, 1.0]], "grid"),
        ([row(0, high=8.0)], "low ≤ min"),
        ([row(0, volume=-1.0)], "volume is not negative"),
        ([row(0, low=0.0)], "above zero"),
        ([row(0), row(500)], "only 1970-01-05"),
    ],
)
def test_one_bad_row_rejects_the_reply(rows: list[list[float | None]], message: str) -> None:
    with pytest.raises(BadReply, match=message):
        parse_page(rows, KEY, since=0, now=100 * H)


def test_an_empty_reply_is_an_empty_page() -> None:
    assert len(parse_page([], KEY, since=0, now=H)) == 0
