"""The small parts of the paper trader: what it says, how it chooses a feed, how it stops."""

import os
import signal
import threading
import time

import pytest

from data.timeframe import Timeframe
from service.feed.exchange import ExchangeFeed
from service.feed.protocol import ClockReading
from service.feed.replay import ReplayFeed
from service.feed.synthetic import SyntheticFeed
from service.ledger.schema import RunRow
from service.model import ServedModel
from service.paper.assembly import FeedChoice, make_setup, make_source, make_terms
from service.paper.clock import VenueClock
from service.paper.config import FeedKind, PaperConfig
from service.paper.explain import explain
from service.paper.stopping import Stop, Stopped
from service.schemas import Outlook

HOUR = 3_600_000


def futures(*pairs: tuple[float, float | None]) -> list[Outlook]:
    return [
        Outlook(code=code, probability=probability, mean_return=mean, quantiles=None)
        for code, (probability, mean) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("action", "held", "says"),
    [
        (2, 0.0, "open +1 with 60% of the policy; value +0.500; next best flat at 30%, -0.100 in value"),
        (2, 0.98, "stay at +1 with 60% of the policy"),
        (2, -0.5, "from -0.50 to +1 with"),
        (1, 0.0, "stay flat with 30% of the policy"),
        (1, 0.02, "close +0.02 with"),  # closing is never too small to trade
    ],
)
def test_a_reason_says_what_happens_and_what_came_second(action: int, held: float, says: str) -> None:
    text = explain(
        action=action, targets=[-1.0, 0.0, 1.0], policy=[0.1, 0.3, 0.6], q_values=[0.1, 0.3, 0.4], value=0.5, held=held,
        band=0.05, outlook=futures((0.75, 0.01), (0.25, -0.02)),
    )  # fmt: skip
    assert text.startswith(says)
    assert text.endswith("next bar +0.25% on average, up with 75%")


def test_a_reason_leaves_out_what_nobody_knows() -> None:
    text = explain(
        action=0, targets=[0.0, 1.0], policy=[1.0, 0.0], q_values=[0.0, 0.0], value=0.0, held=0.0, band=0.05,
        outlook=futures((1.0, None)),
    )  # fmt: skip
    assert text == "stay flat with 100% of the policy; value +0.000"


# --- keeping time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeframe", "seconds"), [("1m", 20.0), ("30s", 15.0), ("1h", 180.0), ("1d", 4_320.0)]
)  # fmt: skip
def test_how_late_a_decision_may_be_depends_on_the_bar(timeframe: str, seconds: float) -> None:
    assert PaperConfig().late_after_ms(Timeframe.parse(timeframe)) == seconds * 1_000


def test_between_looks_a_judged_clock_runs_on_and_another_stands() -> None:
    reading = ClockReading(now_ms=105_000, local_ms=100_000, measured=True)
    for judged, skew, later in ((True, 5.0, 107_000), (False, 0.0, 105_000)):
        clock = VenueClock(judged=judged)
        assert clock.estimate(1) is None
        assert clock.look(reading).skew_seconds == skew
        assert clock.estimate(102_000) == later


@pytest.mark.parametrize(("second", "back"), [(104_500, 0), (103_000, 2_000), (200_000, 0)])
def test_a_jump_back_is_told_from_a_wobble(second: int, back: int) -> None:
    clock = VenueClock(judged=True)
    clock.look(ClockReading(now_ms=105_000, local_ms=0, measured=True))
    assert clock.look(ClockReading(now_ms=second, local_ms=0, measured=True)).jumped_back_ms == back


# --- choosing --------------------------------------------------------------------------------------------------------


def test_a_crypto_market_is_traded_on_an_exchange_and_anything_else_replayed(
    hourly: ServedModel, served: ServedModel
) -> None:
    btc = make_source(make_setup(hourly, None, active=None, seed=None, equity=None), FeedChoice(), cursor=None)
    assert isinstance(btc.feed, ExchangeFeed)
    assert (btc.feed.venue, btc.config.clock, btc.trade_from) == ("ccxt:binance", "checked", None)
    btc.feed.close()
    stocks = make_source(make_setup(served, None, active=None, seed=None, equity=None), FeedChoice(), cursor=None)
    assert isinstance(stocks.feed, ReplayFeed)
    assert stocks.trade_from == 1_420_070_400_000  # 2015-01-01, the test split
    assert stocks.config.clock == "venue"


def test_a_mock_is_another_venue_than_the_exchange_it_plays(hourly: ServedModel) -> None:
    setup = make_setup(hourly, None, active=None, seed=None, equity=None)
    choice = FeedChoice(url="http://user:secret@mock-exchange:8091/api")
    source = make_source(setup, choice, cursor=None)
    assert source.config.clock == "venue"
    assert source.feed.venue == "ccxt:binance@mock-exchange:8091"
    terms = make_terms(setup, source, choice)
    assert "secret" not in str(terms.config) + source.feed.venue
    source.feed.close()


def test_what_is_left_out_is_the_runs(hourly: ServedModel) -> None:
    run = RunRow(
        id="r", created_ms=0, model="m", checkpoint_sha256="", config_json="{}", market_json="{}",
        instrument_json="{}", seed=11, instrument="ETH/USDT", timeframe="1h", venue="v", initial_equity=77.0,
        code_version="",
    )  # fmt: skip
    setup = make_setup(hourly, None, active=run, seed=None, equity=None)
    assert (setup.seed, setup.instrument.symbol, setup.initial_equity) == (11, "ETH/USDT", 77.0)
    setup = make_setup(hourly, "BTCUSDT", active=run, seed=0, equity=5.0)
    assert (setup.seed, setup.instrument.symbol, setup.initial_equity) == (0, "BTCUSDT", 5.0)


def test_feeds_of_its_own_go_on_from_the_cursor(hourly: ServedModel) -> None:
    setup = make_setup(hourly, None, active=None, seed=4, equity=None)
    choice = FeedChoice(kind=FeedKind.SYNTHETIC, speed=0.0)
    first = make_source(setup, choice, cursor=None).feed
    assert isinstance(first, SyntheticFeed)
    cursor = first.read_clock().now_ms - HOUR
    again = make_source(setup, choice, cursor=cursor).feed
    page = again.closed_bars(since=cursor + HOUR, now=again.read_clock().now_ms)
    assert page.timestamp.tolist() == [cursor + HOUR]


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_signal_interrupts_a_wait_and_a_request_but_not_other_work() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        began = time.monotonic()
        with pytest.raises(Stopped), stop.interruptible():
            time.sleep(20.0)
        assert time.monotonic() - began < 5.0
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # outside of what may be interrupted: only noted
        stop.wait(20.0)
        with pytest.raises(Stopped), stop.interruptible():
            raise AssertionError("not to be begun any more")
    assert time.monotonic() - began < 5.0
    assert signal.getsignal(signal.SIGTERM) is before
