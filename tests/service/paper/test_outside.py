"""A paper trader on an exchange that fails in every way we know of: one decision for every closed bar all the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data.bars import VALUE_COLUMNS, Bars
from data.mock_exchange import FAULTS, Fault
from service.feed.protocol import ClockReading
from service.ledger.integrity import require_sound
from service.model import ServedModel
from service.paper.config import PaperConfig
from service.paper.recovery import RunMismatch

HOUR = 3_600_000
MINUTE = 60_000
ROW = 300  # bars of history before the tests begin


@pytest.fixture
def made(
    make_bench: Callable[..., Any], make_venue: Callable[..., Any], hourly: ServedModel, bars_of: Callable[..., Bars]
) -> Callable[..., tuple[Any, Any]]:
    """A bench and an exchange whose bar `ROW` has just closed."""

    def make(**options: Any) -> tuple[Any, Any]:
        bench = make_bench(hourly)
        venue = make_venue(bench, bars_of(ROW + 60, **options))
        venue.after(ROW)
        return bench, venue

    return make


Made = Callable[..., tuple[Any, Any]]


def expect_decided(bench: Any, bars: Bars, rows: range) -> None:
    """Exactly these bars have a decision, each one, and all bars in the ledger are the exchange's."""
    assert [row.bar_ts for row in bench.decisions()] == [int(bars.timestamp[row]) for row in rows]
    for row in bench.rows()["bars"]:
        place = int(np.searchsorted(bars.timestamp, row["ts"]))
        assert tuple(row[name] for name in VALUE_COLUMNS) == tuple(
            float(getattr(bars, name)[place]) for name in VALUE_COLUMNS
        )
    require_sound(bench.ledger)


def test_each_bar_is_decided_on_once_and_in_time(made: Made) -> None:
    bench, venue = made()
    trader = bench.trader(venue.feed())
    bench.go(trader, 4 * 3600.0)
    expect_decided(bench, venue.bars, range(ROW, ROW + 5))
    assert set(bench.statuses().values()) == {"decided"}
    assert all(2_000 <= row.decided_ms - row.bar_ts - HOUR <= 10_000 for row in bench.decisions())
    assert not bench.events("guards")


def test_the_pace_of_requests_is_that_of_a_polite_client(made: Made) -> None:
    bench, venue = made()
    bench.go(bench.trader(venue.feed(), config=PaperConfig(command_seconds=30.0, heartbeat_seconds=300.0)), 3600.0)
    asked = venue.exchange.requests
    assert asked["/api/v3/exchangeInfo"] == 1
    assert sum(asked.values()) < 3600 / 60 * 6


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_reply_never_reaches_the_ledger(made: Made, fault: Fault) -> None:
    """Once in the middle of a question, and once for longer than any question is asked again."""
    bench, venue = made()
    trader = bench.trader(venue.feed())
    bench.go(trader, 1800.0)
    venue.exchange.inject(None, fault)
    bench.go(trader, 3600.0)
    venue.exchange.inject(fault, times=3)
    bench.go(trader, 3600.0)
    assert venue.exchange.pending_faults == 0
    expect_decided(bench, venue.bars, range(ROW, ROW + 3))
    assert set(bench.statuses().values()) == {"decided"}


@pytest.mark.parametrize("fault", ["unavailable", "geo_blocked", "nan", "too_many_requests"])
def test_ten_errors_in_a_row_reduce_and_one_good_reply_restores(made: Made, fault: Fault) -> None:
    bench, venue = made()
    trader = bench.trader(venue.feed())
    bench.go(trader, 60.0)
    venue.exchange.inject(fault, times=12)
    bench.go(trader, 200.0)
    for _ in range(200):
        if venue.exchange.pending_faults <= 1:
            break
        bench.go(trader, 30.0)
    assert bench.mode() == "REDUCING"
    assert "in a row" in trader.describe().mode_reason
    assert trader.describe().degraded is not None
    bench.go(trader, 900.0)
    assert bench.mode() == "ACTIVE"
    assert trader.describe().degraded is None
    # However many requests failed, there is one event for the beginning and one for the end.
    assert len(bench.events("exchange_unreachable")) == len(bench.events("exchange_reachable")) == 1


def test_an_exchange_that_was_never_reachable_is_asked_again_and_again(made: Made) -> None:
    bench, venue = made()
    venue.exchange.inject("reset", times=10_000)
    trader = bench.trader(venue.feed())
    before = bench.ledger.url
    bench.go(trader, 3600.0)
    state = trader.describe()
    assert (state.feed, state.last_bar_ts, state.degraded is not None) == ("unreachable", None, True)
    assert 55 <= state.errors <= 130  # a wait of at most a minute, spread by a factor of a half to one
    assert bench.mode() == "REDUCING"
    assert len(bench.events()) < 10, "a table that grows with every failure would fill a disk"
    assert before == bench.ledger.url
    venue.exchange.inject()
    venue.exchange._faults.clear()
    bench.go(trader, 3700.0)
    assert len(bench.decisions()) >= 1


def test_half_an_hour_without_the_exchange(
    make_bench: Callable[..., Any],
    make_venue: Callable[..., Any],
    write_model: Callable[..., Any],
    bars_of: Callable[..., Bars],
    tmp_path: Any,
) -> None:
    """Minute bars: the missed ones are marked and skipped, each with its row, and the newest is decided on."""
    from service.model import load_model

    model = load_model(
        write_model(
            tmp_path / "minutes",
            data={"source": "store", "symbols": ["BTCUSDT"], "timeframe": "1m"},
            splits={
                "train": ["2018-01-01", "2019-01-01"],
                "validation": ["2019-01-01", "2020-01-01"],
                "test": ["2020-01-01", "2021-01-01"],
            },
        )
    )
    bench = make_bench(model)
    bars = bars_of(ROW + 120, timeframe="1m")
    venue = make_venue(bench, bars)
    venue.after(ROW)
    trader = bench.trader(venue.feed())
    bench.go(trader, 5 * 60.0)
    before = len(bench.decisions())
    venue.exchange.inject("unavailable", times=10_000)
    bench.go(trader, 30 * 60.0)
    assert len(bench.decisions()) == before
    assert bench.mode() == "REDUCING"
    venue.exchange._faults.clear()
    bench.go(trader, 5 * 60.0)

    statuses = list(bench.statuses().values())
    assert [row.bar_ts for row in bench.decisions()] == bars.timestamp[ROW : ROW + len(statuses)].tolist()
    skipped = [row for row, status in enumerate(statuses) if status == "skipped_late"]
    assert 28 <= len(skipped) <= 32
    assert skipped == list(range(skipped[0], skipped[-1] + 1))
    assert statuses[-1] == "decided"
    assert bench.mode() == "ACTIVE"
    units = [row["units"] for row in bench.rows()["equity"]]
    assert len({units[row] for row in skipped[1:]}) == 1, "held while nobody decided"
    require_sound(bench.ledger)


def test_bars_missed_while_the_process_was_down_are_marked_and_only_the_newest_is_decided_on(made: Made) -> None:
    bench, venue = made()
    bench.go(bench.trader(venue.feed()), 2 * 3600.0)
    bench.pass_time(7 * 3600.0)
    bench.go(bench.trader(venue.feed()), 3600.0)
    statuses = list(bench.statuses().values())
    assert statuses == ["decided"] * 3 + ["skipped_late"] * 6 + ["decided"] * 2
    expect_decided(bench, venue.bars, range(ROW, ROW + 11))


def test_a_bar_that_is_found_too_late_is_not_decided_on(made: Made) -> None:
    bench, venue = made()
    bench.go(bench.trader(venue.feed()), 1800.0)
    venue.after(ROW + 1, seconds=15 * 60.0)
    bench.go(bench.trader(venue.feed()), 60.0)
    [_, late] = bench.decisions()
    assert late.status == "skipped_late"
    assert "after its close" in late.reason
    assert late.action is None


def test_a_new_run_begins_with_the_first_fresh_bar(made: Made) -> None:
    bench, venue = made()
    venue.after(ROW, seconds=20 * 60.0)  # too late for this one
    bench.go(bench.trader(venue.feed()), 3600.0)
    expect_decided(bench, venue.bars, range(ROW + 1, ROW + 2))
    assert {row["status"] for row in bench.rows()["bars"][:-1]} == {"warmup"}


# --- gaps and revisions ----------------------------------------------------------------------------------------------


def test_a_missing_bar_is_noted_and_the_window_with_it_is_not_decided_on(made: Made) -> None:
    bench, venue = made(without=(ROW + 3, ROW + 4))
    trader = bench.trader(venue.feed())
    bench.go(trader, 15 * 3600.0)
    statuses = list(bench.statuses().values())
    window = bench.setup.model.window
    assert statuses == ["decided"] * 3 + ["skipped_gap"] * (window - 1) + ["decided"] * (len(statuses) - window - 2)
    assert len(statuses) > window + 4
    [gap] = bench.rows()["gaps"]
    first = int(venue.bars.timestamp[ROW + 2]) + HOUR
    assert (gap["first_ts"], gap["last_ts"], gap["reason"]) == (first, first + HOUR, "missing")
    [event] = bench.events("gap")
    assert event.severity == "warning"
    require_sound(bench.ledger)


def test_a_revised_bar_is_an_event_and_not_another_decision(made: Made) -> None:
    bench, venue = made()
    trader = bench.trader(venue.feed())
    bench.go(trader, 1800.0)
    before = bench.rows()
    truth = venue.bars
    close = truth.close.copy()
    close[ROW] = 0.5 * (truth.high[ROW] + truth.low[ROW])
    columns = {name: getattr(truth, name) for name in VALUE_COLUMNS} | {"close": close}
    revised = Bars(truth.symbol, truth.timeframe, truth.venue, truth.timestamp, **columns)
    venue.exchange._markets["BTCUSDT"] = ("BTC/USDT", revised)
    bench.go(trader, 300.0)
    assert bench.rows() == before
    bench.go(trader, 2 * 3600.0)
    [event] = bench.events("bar_revised")
    assert str(int(truth.timestamp[ROW])) in event.data_json
    assert len(bench.decisions()) == 3
    recorded = {row["ts"]: row["close"] for row in bench.rows()["bars"]}
    assert recorded[int(truth.timestamp[ROW])] == truth.close[ROW], "what was decided on stays what was decided on"
    require_sound(bench.ledger)


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_seconds", [30, -30])
def test_a_wrong_clock_neither_shifts_bars_nor_opens_risk(made: Made, skew_seconds: int) -> None:
    bench, venue = made()
    bench.skew_ms = skew_seconds * 1_000
    trader = bench.trader(venue.feed())
    bench.go(trader, 3 * 3600.0)
    # The exchange's clock decides what is closed, so nothing is early or late.
    expect_decided(bench, venue.bars, range(ROW, ROW + 4))
    assert all(2_000 <= row.decided_ms - row.bar_ts - HOUR <= 10_000 for row in bench.decisions())
    assert bench.mode() == "REDUCING"
    assert all(row["units"] == 0.0 for row in bench.rows()["equity"])
    [event] = bench.events("clock_skew")
    assert f"{skew_seconds:+.1f} s" in event.message
    assert trader.describe().clock_skew_ms == pytest.approx(skew_seconds * 1_000, abs=100)
    bench.skew_ms = 0
    bench.go(trader, 600.0)
    assert bench.mode() == "ACTIVE"
    assert len(bench.events("clock_skew")) == 2


def test_a_small_difference_is_worth_a_warning_and_no_more(made: Made) -> None:
    bench, venue = made()
    bench.skew_ms = 2_000
    bench.go(bench.trader(venue.feed()), 3700.0)
    assert bench.mode() == "ACTIVE"
    assert [event.severity for event in bench.events("clock_skew")] == ["warning"]


def test_clocks_that_jump_back_decide_nothing_twice(made: Made) -> None:
    bench, venue = made()
    trader = bench.trader(venue.feed())
    bench.go(trader, 2 * 3600.0)
    before = bench.rows()
    bench.venue_ms -= 90 * MINUTE
    bench.go(trader, 600.0)
    bench.go(bench.trader(venue.feed()), 120.0)  # nor after a restart
    assert bench.rows()["decisions"] == before["decisions"]
    assert bench.rows()["fills"] == before["fills"]
    assert len(bench.events("clock_jumped_back")) == 1
    bench.venue_ms += 90 * MINUTE
    bench.go(trader, 3600.0)
    expect_decided(bench, venue.bars, range(ROW, ROW + 4))


def test_a_clock_that_runs_ahead_does_not_close_a_bar_early(made: Made) -> None:
    bench, venue = made()
    bench.skew_ms = -30 * MINUTE  # this machine thinks that the next bar is nearly done
    trader = bench.trader(venue.feed())
    bench.go(trader, 40 * 60.0)
    expect_decided(bench, venue.bars, range(ROW, ROW + 1))


def test_a_fast_clock_of_a_mock_is_followed_and_not_judged(made: Made) -> None:
    """An hour in six seconds, at another time of history: what the demonstration runs on."""
    bench, venue = made()
    real = [0.0]
    began = bench.venue_ms
    venue.exchange.clock = lambda: began + int(real[0] * 600_000.0)
    trader = bench.trader(venue.feed(), config=PaperConfig.for_venue_time())
    while real[0] < 40.0:
        wait = max(trader.turn(), 0.01)
        real[0] += wait
        bench.slept += wait
    expect_decided(bench, venue.bars, range(ROW, ROW + 7))
    assert set(bench.statuses().values()) == {"decided"}
    assert bench.mode() == "ACTIVE"
    assert trader.describe().clock_skew_ms == 0


# --- what a run must not be mixed with -------------------------------------------------------------------------------


def test_a_run_is_not_continued_on_another_venue(
    made: Made, replay_of: Callable[..., Any], bars_of: Callable[..., Bars]
) -> None:
    bench, venue = made()
    bench.go(bench.trader(venue.feed()), 60.0)
    bars = bars_of(ROW)
    with pytest.raises(RunMismatch, match=r"venue ccxt:binance, now replay:binance.*--new-run"):
        bench.trader(replay_of(bench, bars, start=int(bars.timestamp[-1])))
    bench.setup = bench.with_setup(initial_equity=5.0, seed=99)
    with pytest.raises(RunMismatch, match=r"seed 7, now 99; initial equity 10000.0, now 5.0"):
        bench.trader(venue.feed())


def test_a_reading_without_a_measurement_says_nothing_about_the_clock() -> None:
    assert ClockReading(now_ms=5, local_ms=5, measured=False).offset_ms == 0
