"""Metrics against hand-computed tables, and against figures of an established library where the definitions agree."""

import math
from dataclasses import replace

import numpy as np
import pytest

from backtest.metrics import (
    AccountSeries,
    Costs,
    Metric,
    TradeSummary,
    compute_metrics,
    conditional_value_at_risk,
    daily_series,
    deepest_drawdown,
    drawdown,
    kurtosis,
    longest_underwater,
    rolling_sharpe,
    sharpe_ratio,
    simple_returns,
    skewness,
    sortino_ratio,
    value_at_risk,
)

HOUR, DAY = 3_600_000, 86_400_000
MONDAY = 1_704_067_200_000  # 2024-01-01, a Monday
NO_COSTS = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NO_TRADES = TradeSummary(np.zeros(0), np.zeros(0, dtype=np.int64), 0)


def account(equity: list[float] | np.ndarray, *, step: int = DAY, start: int = MONDAY) -> AccountSeries:
    values = np.asarray(equity, dtype=np.float64)
    zeros = np.zeros(len(values))
    return AccountSeries(
        close_time=start + step * np.arange(len(values), dtype=np.int64),
        equity=values,
        exposure=zeros,
        traded=zeros,
        cost=zeros,
        impact=zeros,
        costs=NO_COSTS,
    )


def metrics_of(series: AccountSeries, days_per_year: int = 365, bar_seconds: float = 86_400.0) -> dict[str, Metric]:
    return compute_metrics(series, NO_TRADES, days_per_year=days_per_year, bar_seconds=bar_seconds)


def test_ratios_of_four_returns_by_hand() -> None:
    returns = np.array([0.10, -0.10, 0.05, -0.05])
    # mean 0; squares 0.01, 0.01, 0.0025, 0.0025: sum 0.025, ddof 1 variance 0.025/3
    assert sharpe_ratio(returns) == pytest.approx(0.0, abs=1e-15)
    shifted = returns + 0.01
    assert sharpe_ratio(shifted) == pytest.approx(0.01 / math.sqrt(0.025 / 3))
    # downside over all four: losses 0.09 and 0.04
    assert sortino_ratio(shifted) == pytest.approx(0.01 / math.sqrt((0.0081 + 0.0016) / 4))
    assert skewness(returns) == pytest.approx(0.0, abs=1e-15)
    # fourth moments: (1e-4 + 1e-4 + 6.25e-6 * 2) / 4 over (0.025/4)^2
    assert kurtosis(returns) == pytest.approx((2e-4 + 1.25e-5) / 4 / (0.025 / 4) ** 2)


def test_tail_of_twenty_one_returns_by_hand() -> None:
    returns = np.arange(-10, 11) / 100.0  # -10% .. +10%: the 5% quantile is the second lowest
    assert value_at_risk(returns) == pytest.approx(-0.09)
    assert conditional_value_at_risk(returns) == pytest.approx(-0.095)


def test_figures_of_an_established_library() -> None:
    """empyrical-reloaded 0.7.1 on the same 300 returns, 252 days a year (run once, values kept here)."""
    t = np.arange(1, 301)
    returns = 0.012 * np.sin(1.3 * t) + 0.008 * np.cos(0.37 * t * t) + 0.0004
    equity = np.concatenate([[1.0], np.cumprod(1.0 + returns)])
    year = math.sqrt(252)
    assert sharpe_ratio(returns) * year == pytest.approx(0.8258248297721528)  # type: ignore[operator]
    assert sortino_ratio(returns) * year == pytest.approx(1.2293702496687362)  # type: ignore[operator]
    assert returns.std(ddof=1) * year == pytest.approx(0.15902132095396865)
    assert drawdown(equity).min() == pytest.approx(-0.07366202573665412)
    assert value_at_risk(returns) == pytest.approx(-0.016490446577930595)
    assert conditional_value_at_risk(returns) == pytest.approx(-0.017832637792172066)
    assert equity[-1] - 1.0 == pytest.approx(0.15178210518483515)


def test_a_first_day_loss_that_never_recovers_is_the_drawdown() -> None:
    found = metrics_of(account([100.0, 80.0, 90.0]))
    assert found["max_drawdown"].value == pytest.approx(-0.2)
    assert found["total_return"].value == pytest.approx(-0.1)
    days, recovered = longest_underwater(np.array([0, DAY, 2 * DAY]), np.array([100.0, 80.0, 90.0]))
    assert (days, recovered) == (2.0, False)


def test_drawdown_spell_by_hand() -> None:
    equity = np.array([100.0, 120.0, 90.0, 110.0, 120.0, 60.0, 130.0])
    spell = deepest_drawdown(equity)
    # Both peaks are 120; the deepest trough is 60. The first index of that peak is where the money was last seen new.
    assert (spell.depth, spell.trough, spell.end) == (-0.5, 5, 6)
    days, recovered = longest_underwater(np.arange(7) * DAY, equity)
    assert (days, recovered) == (3.0, True)  # peak at 1, back at 4


def test_daily_bar_that_closes_at_midnight_counts_for_its_own_day() -> None:
    close_time = MONDAY + DAY * np.arange(1, 4)
    daily = daily_series(close_time, np.array([1.0, 2.0, 3.0]), days_per_year=365)
    assert (daily.day - MONDAY // DAY).tolist() == [0, 1, 2]
    assert daily.equity.tolist() == [1.0, 2.0, 3.0]


def test_hourly_marks_reduce_to_the_last_of_each_day_after_the_initial_capital() -> None:
    close_time = MONDAY + 14 * HOUR + HOUR * np.arange(40)  # Monday 14:00 to Wednesday 05:00
    equity = 100.0 + np.arange(40)
    daily = daily_series(close_time, equity, days_per_year=365)
    # Monday ends with the mark at 24:00 (10 hours on), Tuesday 24 hours later, Wednesday with the last mark.
    assert daily.equity.tolist() == [100.0, 110.0, 134.0, 139.0]


def test_a_week_of_hourly_crypto_has_seven_days_and_a_week_of_fx_five() -> None:
    hours = MONDAY + HOUR * np.arange(1, 7 * 24 * 8 + 1)  # eight whole weeks
    crypto = daily_series(hours, np.linspace(1.0, 2.0, len(hours)), days_per_year=365)
    assert len(crypto.returns) == 56
    # FX trades from Sunday 22:00 to Friday 22:00 UTC.
    hour_of_week = ((hours - 1 - MONDAY) // HOUR) % 168
    open_hours = hours[(hour_of_week < 4 * 24 + 22) | (hour_of_week >= 6 * 24 + 22)]
    fx = daily_series(open_hours, np.linspace(1.0, 2.0, len(open_hours)), days_per_year=260)
    # 40 weekdays, and the last Sunday evening opens the Monday after.
    assert len(fx.returns) == 41
    assert len(fx.returns) / (len(open_hours) / 120) == pytest.approx(5.0, rel=0.03)


@pytest.mark.parametrize(
    ("per_day", "days_per_year"),
    [(1, 252), (1, 365), (24, 365)],
    ids=["daily equity on weekdays", "daily crypto", "hourly crypto"],
)
def test_annualised_sharpe_is_the_daily_one_times_the_root_of_the_calendar(per_day: int, days_per_year: int) -> None:
    days = 200
    steps = np.where(np.arange(days * per_day) % (2 * per_day) < per_day, 0.012, -0.010) / per_day
    equity = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(steps)]))
    step = DAY // per_day
    series = account(equity, step=step)
    if days_per_year == 252:
        weekdays = np.array([day for day in range(3 * days) if day % 7 < 5])[: days + 1]
        series = replace(series, close_time=MONDAY + DAY + DAY * weekdays)
    found = metrics_of(series, days_per_year, step / 1000)
    daily = np.expm1(np.where(np.arange(days) % 2 == 0, 0.012, -0.010))
    expected = daily.mean() / daily.std(ddof=1) * math.sqrt(days_per_year)
    assert found["sharpe"].value == pytest.approx(expected)
    assert found["sharpe"].n == days


def test_annual_return_compounds_over_julian_years() -> None:
    points = 731  # 730 days
    equity = np.linspace(100.0, 121.0, points)
    years = 730 * 86_400 / 31_557_600
    assert metrics_of(account(equity))["annual_return"].value == pytest.approx(1.21 ** (1 / years) - 1)


def test_under_thirty_days_annualised_figures_are_null_with_a_reason() -> None:
    found = metrics_of(account([100.0, 101.0, 99.0, 102.0]))
    for name in ("annual_return", "annual_volatility", "sharpe", "sharpe_per_bar", "sortino", "calmar"):
        assert found[name].value is None
        assert "30" in (found[name].reason or "")
    assert found["total_return"].value == pytest.approx(0.02)


def test_flat_equity_has_no_ratio_and_says_why() -> None:
    found = metrics_of(account([100.0] * 50))
    for name in ("sharpe", "sortino", "calmar", "skew", "kurtosis"):
        assert found[name].value is None
        assert found[name].reason
    assert found["max_drawdown"].value == 0.0
    assert found["annual_volatility"].value == 0.0


def test_steady_growth_has_no_sharpe_rather_than_a_huge_one() -> None:
    equity = 100.0 * 1.001 ** np.arange(60)
    assert metrics_of(account(equity))["sharpe"].value is None


def test_no_metric_is_ever_infinite_or_nan() -> None:
    for equity in ([100.0] * 40, [100.0, *[0.0] * 40], list(100.0 + np.arange(40.0)), [100.0, 50.0]):
        for name, metric in metrics_of(account(equity)).items():
            assert metric.value is None or math.isfinite(metric.value), name
            assert (metric.value is None) == (metric.reason is not None), name


def test_ruin_is_minus_one_hundred_percent_and_then_nothing() -> None:
    assert simple_returns(np.array([100.0, 50.0, 0.0, 0.0])).tolist() == [-0.5, -1.0, 0.0]


def test_trade_metrics_by_hand() -> None:
    trades = TradeSummary(np.array([30.0, -10.0, 10.0, -10.0]), np.array([2, 4, 6, 8]), open_trades=1)
    found = compute_metrics(account([100.0] * 3), trades, days_per_year=365, bar_seconds=1800.0)
    assert found["trades"].value == 4
    assert found["open_trades"].value == 1
    assert found["hit_rate"].value == 0.5
    assert found["profit_factor"].value == pytest.approx(2.0)
    assert found["mean_trade_pnl"].value == pytest.approx(5.0)
    assert found["mean_holding_bars"].value == 5.0
    assert found["mean_holding_hours"].value == 2.5


def test_profit_factor_without_losers_is_undefined() -> None:
    trades = TradeSummary(np.array([30.0]), np.array([2]), open_trades=0)
    found = compute_metrics(account([100.0] * 3), trades, days_per_year=365, bar_seconds=60.0)["profit_factor"]
    assert found.value is None
    assert found.reason == "no losing trade"


def test_cost_drag_and_capacity_by_hand() -> None:
    days = 366  # 365 days: just under one Julian year
    equity = np.full(days, 100.0)
    equity[-1] = 103.0
    cost, impact = np.zeros(days), np.zeros(days)
    cost[-1], impact[-1] = 2.0, 1.0
    zeros = np.zeros(days)
    series = AccountSeries(
        close_time=MONDAY + DAY * np.arange(days, dtype=np.int64),
        equity=equity,
        exposure=zeros,
        traded=zeros,
        cost=cost,
        impact=impact,
        costs=Costs(1.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    )
    found = metrics_of(series)
    years = 365 * 86_400 / 31_557_600
    assert found["cost_drag"].value == pytest.approx(math.log(105 / 103) / years)
    # Impact took ln(104/103); the edge before it was ln(103/100) + that. Impact grows as the root of equity.
    impact_drag = math.log(104 / 103)
    edge = math.log(1.03) + impact_drag
    capacity = 100.0 * (edge / (2 * impact_drag)) ** 2
    assert found["capacity"].value == pytest.approx(capacity)
    assert impact_drag * math.sqrt(capacity / 100.0) == pytest.approx(edge / 2)


def test_turnover_and_exposure_by_hand() -> None:
    days = 32
    traded, exposure = np.zeros(days), np.zeros(days)
    traded[1], traded[5] = 50.0, 50.0
    exposure[1:5] = 0.5
    base = account([100.0] * days)
    series = AccountSeries(base.close_time, base.equity, exposure, traded, base.cost, base.impact, NO_COSTS)
    found = metrics_of(series)
    years = 31 * 86_400 / 31_557_600
    assert found["turnover_per_year"].value == pytest.approx(1.0 / years)
    assert found["exposure"].value == pytest.approx(4 * 0.5 / 31)
    assert found["time_in_market"].value == pytest.approx(4 / 31)


def test_rolling_sharpe_equals_the_sharpe_of_each_window() -> None:
    returns = np.random.default_rng(3).normal(0.001, 0.01, 60)
    rolled = rolling_sharpe(returns, 20, 365)
    assert np.isnan(rolled[:19]).all()
    for end in (19, 40, 59):
        expected = sharpe_ratio(returns[end - 19 : end + 1])
        assert expected is not None
        assert rolled[end] == pytest.approx(expected * math.sqrt(365))


def test_json_of_a_metric_has_the_four_fields_of_the_contract() -> None:
    assert Metric(1.5, 10).with_ci(1.0, 2.0).as_json() == {"value": 1.5, "ci": [1.0, 2.0], "n": 10, "reason": None}
    assert Metric(None, 0, "why").with_ci(1.0, 2.0).as_json() == {"value": None, "ci": None, "n": 0, "reason": "why"}
