"""Compiled indicators against `ta`, against hand-computed tables, and where they are undefined."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from data import indicators
from data.bars import Bars
from data.features import feature_spec
from data.synthetic import martingale, regime
from data.trailing import TrailingStatistics

ta = pytest.importorskip("ta")
Floats = NDArray[np.float64]

# name -> (compiled, the same by ta, bars until both have forgotten the start)
PAIRS: dict[str, tuple[Callable[[Bars], Floats], Callable[[dict[str, pd.Series]], pd.Series], int]] = {
    "rsi": (
        lambda b: indicators.rsi(b.close, 14),
        lambda s: ta.momentum.rsi(s["close"], window=14),
        indicators.wilder_lags(14) + 1,
    ),
    "average_true_range": (
        lambda b: indicators.average_true_range(b.high, b.low, b.close, 14) / b.close,
        lambda s: ta.volatility.average_true_range(s["high"], s["low"], s["close"], window=14) / s["close"],
        indicators.wilder_lags(14) + 14,
    ),
    "macd_histogram": (
        lambda b: (
            indicators.macd_histogram(b.close, 12, 26, 9) / indicators.average_true_range(b.high, b.low, b.close, 14)
        ),
        lambda s: (
            ta.trend.macd_diff(s["close"], window_slow=26, window_fast=12, window_sign=9)
            / ta.volatility.average_true_range(s["high"], s["low"], s["close"], window=14)
        ),
        indicators.ema_lags(26) + indicators.ema_lags(9),
    ),
    "bollinger_position": (
        lambda b: indicators.bollinger_position(b.close, 20, 2.0),
        lambda s: ta.volatility.bollinger_pband(s["close"], window=20, window_dev=2),
        20,
    ),
    "adx": (
        lambda b: indicators.adx(b.high, b.low, b.close, 14),
        lambda s: ta.trend.adx(s["high"], s["low"], s["close"], window=14),
        2 * indicators.wilder_lags(14) + 28,
    ),
    "stochastic": (
        lambda b: indicators.stochastic(b.high, b.low, b.close, 14),
        lambda s: ta.momentum.stoch(s["high"], s["low"], s["close"], window=14),
        14,
    ),
    "money_flow_index": (
        lambda b: indicators.money_flow_index(b.high, b.low, b.close, b.volume, 14),
        lambda s: ta.volume.money_flow_index(s["high"], s["low"], s["close"], s["volume"], window=14),
        15,
    ),
}


@pytest.mark.parametrize("price", [1e-4, 1.0, 30_000.0])
@pytest.mark.parametrize("name", PAIRS)
def test_a_compiled_indicator_equals_ta(name: str, price: float) -> None:
    compiled, reference, forgotten = PAIRS[name]
    for bars in (martingale(2500, seed=7, price=price), regime(2500, seed=8, price=price)):
        series = {column: pd.Series(getattr(bars, column)) for column in ("high", "low", "close", "volume")}
        expected = reference(series).to_numpy()[forgotten:]
        np.testing.assert_allclose(compiled(bars)[forgotten:], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["rsi", "bollinger_position", "adx", "stochastic", "money_flow_index"],
)
def test_the_compiled_feature_equals_the_ta_feature(name: str) -> None:
    """Scaled alike, and equal from the later of the two warm-ups on."""
    ta_names = {"bollinger_position": "bollinger_pband", "stochastic": "stoch"}
    bars = martingale(2500, seed=9)
    ours, theirs = feature_spec(name), feature_spec(f"ta:{ta_names.get(name, name)}")
    first = max(ours.warmup, theirs.warmup) - 1
    statistics = TrailingStatistics(bars)
    np.testing.assert_allclose(
        ours.compute(statistics)[first:], theirs.compute(statistics)[first:], rtol=1e-9, atol=1e-9
    )


def test_rsi_of_a_rising_price_is_100_and_of_a_falling_one_0() -> None:
    rising = np.linspace(100.0, 200.0, 600)
    assert indicators.rsi(rising, 14)[-1] == pytest.approx(100.0)
    assert indicators.rsi(rising[::-1].copy(), 14)[-1] == pytest.approx(0.0)


def test_rsi_of_gains_twice_the_losses() -> None:
    """+2, -1, +2, -1, ...: with equal weights the average gain is twice the loss, 100 · 2/3; a long window is close."""
    close = 1_000.0 + np.cumsum(np.tile([2.0, -1.0], 20_000))
    assert indicators.rsi(close, 1_000)[-1] == pytest.approx(200.0 / 3.0, abs=0.1)


def test_bollinger_position_by_hand() -> None:
    """Closes 1, 2, 3: mean 2, deviation √(2/3); (3 - (2 - 2 s)) / (4 s)."""
    s = np.sqrt(2.0 / 3.0)
    assert indicators.bollinger_position(np.array([1.0, 2.0, 3.0]), 3, 2.0)[-1] == pytest.approx((1 + 2 * s) / (4 * s))


def test_bollinger_position_keeps_its_digits_where_pandas_loses_them() -> None:
    """Where the price falls by orders of magnitude, the running variance of pandas, and so of `ta`, is off by 1e-7: it
    subtracts large squares of long ago. Computed window by window it is not."""
    close = regime(2500, seed=8, volatility=0.03).close
    windows = np.lib.stride_tricks.sliding_window_view(close, 20)
    half_width = 2.0 * windows.std(axis=1)
    exact = (windows[:, -1] - windows.mean(axis=1) + half_width) / (2.0 * half_width)
    np.testing.assert_allclose(indicators.bollinger_position(close, 20, 2.0)[19:], exact, rtol=1e-9, atol=1e-9)
    by_ta = ta.volatility.bollinger_pband(pd.Series(close), window=20, window_dev=2).to_numpy()[19:]
    assert np.abs(by_ta - exact).max() > 1e-8


def test_stochastic_by_hand() -> None:
    """Lowest low 8, highest high 14, close 11: halfway."""
    high, low, close = np.array([14.0, 12.0]), np.array([9.0, 8.0]), np.array([10.0, 11.0])
    assert indicators.stochastic(high, low, close, 2)[-1] == 50.0


def test_money_flow_by_hand() -> None:
    """Typical prices 10, 20, 10: money 20 · 3 rising, 10 · 2 falling; 100 · 60 / 80."""
    price, volume = np.array([10.0, 20.0, 10.0]), np.array([1.0, 3.0, 2.0])
    assert indicators.money_flow_index(price, price, price, volume, 2)[-1] == pytest.approx(75.0)


def test_true_range_reaches_from_the_previous_close() -> None:
    high, low, close = np.array([11.0, 15.0, 12.0]), np.array([9.0, 14.0, 10.0]), np.array([10.0, 14.5, 11.0])
    assert indicators.true_range(high, low, close).tolist() == [2.0, 5.0, 4.5]


def test_undefined_values_are_neutral() -> None:
    """On a price that never moves, exactly; rounding of a mean would otherwise be divided by rounding."""
    flat, nothing = np.full(900, 0.1), np.zeros(900)
    assert np.unique(indicators.rsi(flat, 14)) == 50.0
    assert np.unique(indicators.bollinger_position(flat, 20, 2.0)) == 0.5
    assert np.unique(indicators.stochastic(flat, flat, flat, 14)) == 50.0
    assert np.unique(indicators.adx(flat, flat, flat, 14)) == 0.0
    assert np.unique(indicators.money_flow_index(flat, flat, flat, nothing, 14)) == 50.0
