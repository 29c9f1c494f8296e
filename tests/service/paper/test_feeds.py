"""Feeds: only closed bars, each once, on a clock that can be trusted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.bars import Bars
from data.timeframe import Timeframe
from service.feed.protocol import FeedRefused, FeedUnavailable
from service.feed.replay import ReplayFeed
from service.feed.symbols import exchange_symbol
from service.feed.synthetic import SyntheticFeed
from service.model import ServedModel

HOUR = 3_600_000
START = 1_577_836_800_000


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("BTCUSDT", "BTC/USDT"),
        ("btcusdt", "BTC/USDT"),
        ("BTC/USDT", "BTC/USDT"),
        ("BTC-USD", "BTC/USD"),
        ("eth_btc", "ETH/BTC"),
        ("ETHBTC", "ETH/BTC"),
        ("BTCFDUSD", "BTC/FDUSD"),
        ("BTC/USDT:USDT", "BTC/USDT:USDT"),
    ],
)
def test_symbols_are_read_as_people_write_them(written: str, meant: str) -> None:
    assert exchange_symbol(written) == meant


@pytest.mark.parametrize("written", ["sp500", "USDT", "-USD"])
def test_a_name_without_a_quote_currency_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="expected a market"):
        exchange_symbol(written)


class Watch:
    """Real seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_replay_shows_a_bar_when_it_has_closed_and_not_before(bars_of: Callable[..., Bars]) -> None:
    bars, watch = bars_of(50), Watch()
    feed = ReplayFeed(bars, start=int(bars.timestamp[10]), speed=3600.0, real_seconds=watch)
    seen = feed.closed_bars(since=0, now=feed.read_clock().now_ms)
    assert len(seen) == 10
    watch.seconds = 0.999
    assert len(feed.closed_bars(since=0, now=feed.read_clock().now_ms)) == 10
    watch.seconds = 1.0
    assert feed.closed_bars(since=int(bars.timestamp[10]), now=feed.read_clock().now_ms) == bars.slice(10, 11)
    assert feed.seconds_until(feed.read_clock().now_ms + HOUR, now=feed.read_clock().now_ms) == 1.0


@pytest.mark.parametrize("speed", [0.0, 1e9])
def test_a_replay_waits_for_whoever_reads_it(bars_of: Callable[..., Bars], speed: float) -> None:
    """Bars come one by one however long each one takes."""
    bars, watch = bars_of(30), Watch()
    feed = ReplayFeed(bars, start=int(bars.timestamp[5]), speed=speed, real_seconds=watch)
    got = []
    while not feed.finished():
        watch.seconds += 1_000.0
        now = feed.read_clock().now_ms
        page = feed.closed_bars(since=int(bars.timestamp[5 + len(got)]), now=now)
        assert len(page) == 1
        assert now == int(page.timestamp[0]) + HOUR
        got.append(int(page.timestamp[0]))
    assert got == bars.timestamp[5:].tolist()


def test_a_replay_pages_its_history(sample: Bars) -> None:
    feed = ReplayFeed(sample, start=int(sample.timestamp[-1]), speed=0.0)
    now = feed.read_clock().now_ms
    first = feed.closed_bars(since=0, now=now)
    assert len(first) == 1000
    assert feed.closed_bars(since=int(first.timestamp[-1]) + 1, now=now).timestamp[0] == sample.timestamp[1000]


def test_synthetic_bars_go_on_where_a_restart_left_them_and_never_end() -> None:
    hour = Timeframe.parse("1h")

    def make(start: int | None = None) -> SyntheticFeed:
        return SyntheticFeed("regime", hour, seed=3, history=100, speed=0.0, start=start)

    feed = make()
    first = feed.closed_bars(since=0, now=feed.read_clock().now_ms)
    assert len(first) == 101
    far = START + 40_000 * HOUR  # beyond the first stretch it makes
    late = make(far)
    assert not late.finished()
    page = late.closed_bars(since=far, now=late.read_clock().now_ms)
    assert int(page.timestamp[0]) == far
    again = late.closed_bars(since=START, now=START + 101 * HOUR)
    assert np.array_equal(again.close, first.close)


def test_synthetic_bars_are_made_as_they_are_needed() -> None:
    feed = SyntheticFeed("regime", Timeframe.parse("1h"), seed=3, history=100, speed=0.0, start=START + 16_380 * HOUR)
    cursor = START + 16_380 * HOUR
    for _ in range(10):
        page = feed.closed_bars(since=cursor, now=feed.read_clock().now_ms)
        assert page.timestamp.tolist() == [cursor]
        cursor += HOUR


def test_an_unknown_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="regime"):
        SyntheticFeed("nothing", Timeframe.parse("1h"), seed=1, history=10, speed=0.0)


# --- the exchange ----------------------------------------------------------------------------------------------------


@pytest.fixture
def exchange(
    make_bench: Callable[..., Any], make_venue: Callable[..., Any], hourly: ServedModel, bars_of: Callable[..., Bars]
) -> Any:
    venue = make_venue(make_bench(hourly), bars_of(2_500))
    venue.after(2_400)
    return venue


def now_of(venue: Any) -> int:
    return int(venue.bench.venue_ms)


def test_a_long_history_is_walked_page_by_page(exchange: Any) -> None:
    feed, cursor, got = exchange.feed(), int(exchange.bars.timestamp[0]), []
    while len(page := feed.closed_bars(since=cursor, now=now_of(exchange))):
        got += page.timestamp.tolist()
        cursor = got[-1] + 1
    assert got == exchange.bars.timestamp[:2_401].tolist()


def test_a_hole_longer_than_a_page_is_crossed(
    make_bench: Callable[..., Any], make_venue: Callable[..., Any], hourly: ServedModel, bars_of: Callable[..., Bars]
) -> None:
    venue = make_venue(make_bench(hourly), bars_of(2_500, without=tuple(range(10, 1_500))))
    venue.exchange.windowed = True
    venue.bench.venue_ms = int(venue.bars.timestamp[-1]) + HOUR
    page = venue.feed().closed_bars(since=int(venue.bars.timestamp[10]) - 1_400 * HOUR, now=now_of(venue))
    assert page.timestamp[0] == venue.bars.timestamp[10]


def test_the_open_bar_is_never_among_them(exchange: Any) -> None:
    feed = exchange.feed()
    since = int(exchange.bars.timestamp[2_395])
    for minutes in (0, 1, 59):
        exchange.after(2_400, seconds=minutes * 60.0)
        assert feed.closed_bars(since=since, now=now_of(exchange)).timestamp[-1] == exchange.bars.timestamp[2_400]


def test_what_only_one_reply_says_is_not_believed(exchange: Any) -> None:
    feed = exchange.feed()
    since = int(exchange.bars.timestamp[2_390])
    truth = exchange.bars.slice(2_390, 2_401)
    for fault in ("revised", "missing", "empty"):
        for place in range(2):
            exchange.exchange.inject(*[None] * place, fault)
            page = feed.closed_bars(since=since, now=now_of(exchange))
            assert np.array_equal(page.close, truth.close), (fault, place)


def test_an_exchange_that_never_says_the_same_twice_is_unavailable(exchange: Any) -> None:
    exchange.exchange.inject("revised", None, times=20)
    with pytest.raises(FeedUnavailable, match="again and again"):
        exchange.feed().closed_bars(since=int(exchange.bars.timestamp[2_390]), now=now_of(exchange))


def test_an_unknown_market_is_final_and_a_mute_exchange_is_not(exchange: Any) -> None:
    feed = exchange.feed()
    feed._symbol = "NO/USDT"
    with pytest.raises(FeedRefused, match="does not know 'NO/USDT'"):
        feed.closed_bars(since=0, now=now_of(exchange))
    exchange.exchange.inject("reset", times=3)
    with pytest.raises(FeedUnavailable):
        exchange.feed().closed_bars(since=int(exchange.bars.timestamp[2_390]), now=now_of(exchange))


def test_the_clock_is_read_anew_each_time(exchange: Any) -> None:
    feed = exchange.feed()
    exchange.bench.skew_ms = 12_345
    assert feed.read_clock().offset_ms == pytest.approx(12_345, abs=2)
    exchange.bench.skew_ms = -500
    assert feed.read_clock().offset_ms == pytest.approx(-500, abs=2)
