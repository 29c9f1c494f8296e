"""What a result stands beside."""

from collections.abc import Callable

import numpy as np
import pytest

from backtest.baselines import (
    buy_and_hold_targets,
    changes_only,
    circular_shifts,
    held_position,
    moving_average,
    shifted_timing,
    sma_cross_targets,
    standard_baselines,
)
from backtest.runner import Stretch, run_policy, run_series
from data.bars import Bars
from market_env.config import MarketConfig
from market_env.market import Market


def test_moving_average_by_hand() -> None:
    assert moving_average(np.array([1.0, 2.0, 6.0, 4.0]), 2)[1:].tolist() == [1.5, 4.0, 5.0]


def test_sma_cross_trades_only_when_the_averages_cross() -> None:
    close = np.array([1.0, 1.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.5])
    targets = sma_cross_targets(close, 0, fast=1, slow=3)
    # above the average of three from row 3 on, below it from row 6 on (1 < 2)
    assert np.flatnonzero(~np.isnan(targets)).tolist() == [3, 5]
    assert targets[[3, 5]].tolist() == [1.0, 0.0]


def test_sma_cross_is_warm_from_the_bars_before_the_run() -> None:
    close = np.linspace(1.0, 2.0, 300)
    assert sma_cross_targets(close, 250)[0] == 1.0
    assert np.isnan(sma_cross_targets(close[250:], 0)).all()


def test_changes_and_positions_are_inverses() -> None:
    position = np.array([0.0, 0.0, 1.0, 1.0, -1.0, 0.0, 0.0])
    changes = changes_only(position)
    assert np.flatnonzero(~np.isnan(changes)).tolist() == [2, 4, 5]
    assert np.array_equal(held_position(changes), position)


def test_shifts_are_distinct_and_never_the_run_itself() -> None:
    shifts = circular_shifts(1000)
    assert len(np.unique(shifts)) == 500
    assert shifts.min() >= 1
    assert shifts.max() <= 999
    assert circular_shifts(10).tolist() == list(range(1, 10))
    assert np.array_equal(shifts, circular_shifts(1000))


@pytest.fixture
def market(noise_bars: Bars, market_of: Callable[..., Market]) -> Market:
    return market_of(noise_bars)


def test_flat_keeps_its_equity_and_buy_and_hold_trades_once(
    market: Market, spot_config: MarketConfig, noise_bars: Bars
) -> None:
    runs = standard_baselines(market, spot_config, seeds=[0, 1], history_close=noise_bars.close)
    assert (runs["flat"].accounts.equity == 10_000.0).all()
    # A rejected or partly filled order is not retried: one order, at most one fill.
    assert (np.count_nonzero(runs["buy_and_hold"].accounts.qty_ordered, axis=1) == 1).all()


def test_random_timing_has_the_strategy_s_own_turnover(
    market: Market, deterministic_config: MarketConfig, follow_last_return: object
) -> None:
    run = run_policy(follow_last_return, market, deterministic_config, seeds=[0])  # type: ignore[arg-type]
    timing = shifted_timing(run, market, deterministic_config, count=200)
    assert timing is not None
    # The same positions: turnover differs only as prices and equity differ at other times.
    assert timing.turnover == pytest.approx(np.full(200, timing.own_turnover), rel=0.05)
    assert np.median(timing.turnover) == pytest.approx(timing.own_turnover, rel=0.01)


def test_circle_keeps_every_change_of_position(market: Market) -> None:
    position = np.random.default_rng(2).choice([0.0, 0.5, 1.0], 100)
    for shift in circular_shifts(100):
        moved = np.roll(position, shift)
        assert np.abs(np.diff(moved, append=moved[0])).sum() == np.abs(np.diff(position, append=position[0])).sum()


def test_holding_all_the_time_cannot_be_told_from_chance(market: Market, spot_config: MarketConfig) -> None:
    rows = len(market) - market.first_decision
    run = run_series(np.ones(rows), market, spot_config, seeds=[0], name="always")
    timing = shifted_timing(run, market, spot_config, count=50)
    assert timing is not None
    assert timing.p_value == 1.0


def test_threads_change_nothing(market: Market, spot_config: MarketConfig, follow_last_return: object) -> None:
    run = run_policy(follow_last_return, market, spot_config, seeds=[0])  # type: ignore[arg-type]
    one, two = (shifted_timing(run, market, spot_config, count=40, threads=threads) for threads in (1, 2))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.log_growth, two.log_growth)


def test_never_trading_has_no_timing(market: Market, spot_config: MarketConfig) -> None:
    rows = len(market) - market.first_decision
    run = run_series(np.full(rows, np.nan), market, spot_config, seeds=[0], name="flat")
    assert shifted_timing(run, market, spot_config, stretch=Stretch.of(market)) is None


def test_buy_and_hold_asks_once() -> None:
    assert np.flatnonzero(~np.isnan(buy_and_hold_targets(5))).tolist() == [0]
