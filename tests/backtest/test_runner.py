"""Running policies and targets through the market's session."""

from collections.abc import Callable

import numpy as np
import pytest

from backtest.results import (
    Run,
    decisions_frame,
    equity_frame,
    fills_frame,
    trades_frame,
)
from backtest.runner import Stretch, final_growth, run_policy, run_series
from data.bars import Bars
from market_env.config import MarketConfig
from market_env.market import Market

LEDGER = ("equity", "cash", "units", "qty_ordered", "qty_filled", "fill_price", "fee", "slippage_cost", "impact_cost")


@pytest.fixture
def market(noise_bars: Bars, market_of: Callable[..., Market]) -> Market:
    return market_of(noise_bars)


@pytest.fixture
def run(market: Market, spot_config: MarketConfig, follow_last_return: object) -> Run:
    return run_policy(follow_last_return, market, spot_config, seeds=[3, 4, 5])  # type: ignore[arg-type]


def test_first_row_is_the_first_decision_with_the_initial_capital(run: Run, market: Market) -> None:
    assert run.market.timestamp[0] == market.timestamp[market.first_decision]
    assert (run.accounts.equity[:, 0] == 10_000.0).all()
    assert (run.accounts.qty_filled[:, 0] == 0.0).all()


def test_a_decision_fills_in_the_next_bar_from_its_open(
    market: Market, deterministic_config: MarketConfig, follow_last_return: object
) -> None:
    run = run_policy(follow_last_return, market, deterministic_config, seeds=[0])  # type: ignore[arg-type]
    filled = np.flatnonzero(run.accounts.qty_filled[0])
    assert len(filled) > 50
    assert np.array_equal(run.accounts.fill_price[0, filled], run.market.open[filled])
    assert (run.accounts.target[0, filled - 1] != np.nan).all()


def test_the_last_decision_never_fills(run: Run) -> None:
    assert np.isfinite(run.accounts.target[:, -1]).all()
    assert run.accounts.equity.shape[1] == len(run.market)


def test_replaying_the_decided_targets_gives_the_same_ledger_to_the_last_bit(
    run: Run, market: Market, spot_config: MarketConfig
) -> None:
    replay = run_series(run.accounts.target, market, spot_config, seeds=run.seeds, name="replay")
    for column in LEDGER:
        assert np.array_equal(getattr(run.accounts, column), getattr(replay.accounts, column)), column


def test_a_seed_s_path_does_not_depend_on_the_other_seeds(
    run: Run, market: Market, spot_config: MarketConfig, follow_last_return: object
) -> None:
    alone = run_policy(follow_last_return, market, spot_config, seeds=[4])  # type: ignore[arg-type]
    assert np.array_equal(alone.accounts.equity[0], run.accounts.equity[1])


def test_stochastic_with_every_friction_at_zero_equals_deterministic(
    market: Market, deterministic_config: MarketConfig, follow_last_return: object
) -> None:
    quiet = deterministic_config.fills.model_copy(
        update={
            "mode": "stochastic",
            "reject_probability": 0.0,
            "partial_probability": 0.0,
            "volume_cap": 1.0,
            "latency_fraction": 0.0,
            "volatility_slippage": 0.0,
            "impact_coefficient": 0.0,
        }
    )
    free = market.instrument.model_copy(update={"half_spread_bps": 0.0})
    without_spread = Market.from_arrays(
        market.bars, market.features, instrument=free, bar_ms=market.bar_ms, window=4, first_decision=3
    )
    config = deterministic_config.model_copy(
        update={
            "fills": quiet,
            "costs": deterministic_config.costs.model_copy(update={"margin_interest_annual": 0.0}),
        }
    )
    stochastic = run_policy(follow_last_return, without_spread, config, seeds=[0])  # type: ignore[arg-type]
    exact = run_policy(follow_last_return, market, deterministic_config, seeds=[0])  # type: ignore[arg-type]
    assert np.array_equal(stochastic.accounts.equity, exact.accounts.equity)


def test_a_policy_for_another_number_of_actions_is_refused(
    market: Market, follow_last_return: object, spot_config: MarketConfig
) -> None:
    other = spot_config.model_copy(update={"actions": spot_config.actions.model_copy(update={"levels": (0.0, 1.0)})})
    with pytest.raises(ValueError, match="3 actions, the market offers 2"):
        run_policy(follow_last_return, market, other, seeds=[0])  # type: ignore[arg-type]


def test_representative_path_is_the_median_by_final_equity(run: Run) -> None:
    final = run.accounts.equity[:, -1]
    assert final[run.representative] == np.sort(final)[1]


def test_trade_pnl_adds_up_to_the_equity_change_on_every_path(run: Run) -> None:
    for path in range(run.paths):
        change = run.accounts.equity[path, -1] - run.accounts.equity[path, 0]
        assert run.trips(path).pnl.sum() == pytest.approx(change, abs=1e-8)


def test_costs_by_kind_explain_the_distance_to_a_frictionless_ledger(run: Run) -> None:
    """Equity change = what the position earned from arrival prices - costs, bar by bar and in sum."""
    account, market = run.accounts, run.market
    for path in range(run.paths):
        costs = run.costs(path)
        units, filled = account.units[path], account.qty_filled[path]
        before = np.concatenate([[0.0], units[:-1]])
        close_before = np.concatenate([market.close[:1], market.close[:-1]])
        gross = before * (market.open - close_before) + units * (market.close - market.open)
        change = account.equity[path, -1] - account.equity[path, 0]
        assert gross.sum() - costs.total == pytest.approx(change, abs=1e-7)
        assert costs.fee > 0
        assert costs.spread > 0
        assert np.count_nonzero(filled) > 20


def test_frames_hold_every_path(run: Run) -> None:
    assert len(equity_frame([run])) == 3 * len(run.market)
    assert set(trades_frame(run)["fill_seed"]) == {3, 4, 5}
    assert len(decisions_frame(run)) == 3 * len(run.market)
    fills = fills_frame(run)
    assert (fills["qty_ordered"] != 0).all()


def test_growth_of_a_single_series_agrees_with_its_full_run(market: Market, spot_config: MarketConfig) -> None:
    stretch = Stretch.of(market)
    targets = np.random.default_rng(1).choice([0.0, 1.0], stretch.stop - stretch.start)
    full = run_series(targets, market, spot_config, seeds=[9], name="full")
    growth, turnover = final_growth(targets, market, spot_config, seed=9, sizing="exposure", stretch=stretch)
    assert growth == pytest.approx(np.log(full.accounts.equity[0, -1] / 10_000.0))
    traded = full.account_series(0).traded.sum()
    assert turnover == pytest.approx(traded / full.accounts.equity[0].mean())
