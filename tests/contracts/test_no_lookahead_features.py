"""Guards 1, 2 and the scale promise for every feature: causal, finite memory, scale-free, never undefined.

The checks are functions of a feature set, so that they can be turned on features with a planted fault: a check that
has never failed proves nothing.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from data.bars import Bars
from data.features import COMPILED_FEATURES, FEATURE_LIMIT, FeatureSet, FeatureSpec
from data.synthetic import martingale, regime
from data.ta_catalog import SUPPORTED
from data.timeframe import Timeframe
from data.trailing import TrailingStatistics, log_returns

TA_FEATURES = tuple(f"ta:{name}" for name in SUPPORTED)
ALL_FEATURES = (*COMPILED_FEATURES, *TA_FEATURES)
Table = NDArray[np.float32]


def with_columns(bars: Bars, rows: NDArray[np.int64] | slice, **columns: NDArray[np.float64]) -> Bars:
    """The chosen rows of bars with some columns replaced."""
    values = {name: columns.get(name, getattr(bars, name))[rows] for name in ("open", "high", "low", "close", "volume")}
    return Bars(bars.symbol, bars.timeframe, bars.venue, bars.timestamp[rows], **values)


def with_gaps(bars: Bars) -> Bars:
    """Bars with one missing now and then, and 33 missing in a row (the longest outage of the real BTCUSDT bars)."""
    present = np.random.default_rng(5).random(len(bars)) > 0.05
    middle = len(bars) // 2
    present[middle : middle + 33] = False
    return with_columns(bars, np.flatnonzero(present))


@pytest.fixture(scope="module")
def bars() -> Bars:
    return with_gaps(martingale(3000, seed=11))


@pytest.fixture(scope="module")
def table(bars: Bars) -> Table:
    return FeatureSet.build(ALL_FEATURES).compute(bars)


def replaced_future(bars: Bars, row: int) -> Bars:
    """The same bars up to `row`; every later one is another market at another price."""
    other = with_gaps(regime(3000, seed=99, price=3.0, volatility=0.05))
    keep = np.arange(len(bars)) <= row
    columns = {
        name: np.where(keep, getattr(bars, name), np.resize(getattr(other, name), len(bars)))
        for name in ("open", "high", "low", "close", "volume")
    }
    return with_columns(bars, slice(None), **columns)


def columns_that_peek(features: FeatureSet, bars: Bars, row: int) -> list[str]:
    """Features whose rows up to `row` change when all later bars are replaced."""
    before = features.compute(bars)[: row + 1]
    after = features.compute(replaced_future(bars, row))[: row + 1]
    return [name for i, name in enumerate(features.names) if not np.array_equal(before[:, i], after[:, i], True)]


def rows_that_remember_more(spec: FeatureSpec, bars: Bars, expected: Table) -> list[int]:
    """Rows at which a feature computed from its last `warmup` bars differs from `expected` (whole history) [N]."""
    features = FeatureSet((spec,))
    rows = np.random.default_rng(3).integers(max(spec.warmup, 1200), len(bars), size=6)
    different = []
    for row in (*rows, len(bars) - 1):
        recent = features.compute(bars.slice(int(row) - spec.warmup + 1, int(row) + 1))
        assert np.isnan(recent[:-1]).all(), "a row before the warm-up must not look valid"
        if recent[-1, 0] != expected[row]:
            different.append(int(row))
    return different


@pytest.mark.parametrize("row", [1300, 1999])
def test_no_feature_sees_a_later_bar(bars: Bars, row: int) -> None:
    assert columns_that_peek(FeatureSet.build(ALL_FEATURES), bars, row) == []


@pytest.mark.parametrize("name", ALL_FEATURES)
def test_the_last_warmup_bars_decide_a_row_to_the_last_bit(name: str, bars: Bars, table: Table) -> None:
    spec = FeatureSet.build([name]).specs[0]
    assert rows_that_remember_more(spec, bars, table[:, ALL_FEATURES.index(name)]) == []


def test_a_row_needs_every_bar_of_its_warmup(bars: Bars) -> None:
    """One bar fewer gives no row at all, rather than an almost right one."""
    features = FeatureSet.build(ALL_FEATURES)
    assert np.isnan(features.compute(bars.slice(0, features.warmup - 1))).all()
    assert np.isfinite(features.compute(bars.slice(0, features.warmup))[-1]).all()


def test_a_table_computed_block_by_block_is_the_same_table(bars: Bars, table: Table) -> None:
    features = FeatureSet.build(ALL_FEATURES)
    blocks = [bars.slice(start, start + 700) for start in range(0, len(bars), 700)]
    parts = list(features.compute_blocks(blocks))
    assert np.array_equal(np.concatenate([rows for _, rows in parts]), table[features.warmup - 1 :])
    assert np.array_equal(np.concatenate([times for times, _ in parts]), bars.timestamp[features.warmup - 1 :])


def scaled(bars: Bars, factor: float) -> Bars:
    prices = {name: getattr(bars, name) * factor for name in ("open", "high", "low", "close")}
    return with_columns(bars, slice(None), **prices, volume=bars.volume / factor)


def test_prices_times_x_and_volume_over_x_change_nothing(bars: Bars, table: Table) -> None:
    """Exactly for a power of two, which no rounding touches; for any other factor up to rounding."""
    features = FeatureSet.build(ALL_FEATURES)
    assert np.array_equal(features.compute(scaled(bars, 1024.0)), table, equal_nan=True)
    np.testing.assert_allclose(features.compute(scaled(bars, 3.7)), table, rtol=1e-5, atol=1e-5)


def constant_price(bars: Bars) -> Bars:
    same = np.full(len(bars), 123.45)
    return with_columns(bars, slice(None), open=same, high=same, low=same, close=same)


def constant_price_after_a_crash(bars: Bars) -> Bars:
    falls = np.arange(len(bars)) >= 1500
    prices = {name: np.where(falls, 17.3, getattr(bars, name)) for name in ("open", "high", "low", "close")}
    return with_columns(bars, slice(None), **prices)


def jump_out_of_a_constant_price(bars: Bars) -> Bars:
    same = np.where(np.arange(len(bars)) < len(bars) - 20, 5.0, 50.0)
    return with_columns(bars, slice(None), open=same, high=same, low=same, close=same)


def no_volume(bars: Bars) -> Bars:
    return with_columns(bars, slice(None), volume=np.zeros(len(bars)))


def rare_volume(bars: Bars) -> Bars:
    return with_columns(bars, slice(None), volume=np.where(np.arange(len(bars)) % 37 == 0, bars.volume, 0.0))


def nothing_at_all(bars: Bars) -> Bars:
    return no_volume(constant_price(bars))


def tiny_prices_and_huge_volume(bars: Bars) -> Bars:
    return scaled(bars, 1e-12)


def daily_bars(bars: Bars) -> Bars:
    times = Timeframe.parse("1d").milliseconds * np.arange(len(bars), dtype=np.int64)
    columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    return Bars(bars.symbol, Timeframe.parse("1d"), bars.venue, times, **columns)


@pytest.mark.parametrize(
    "degenerate",
    [
        constant_price,
        constant_price_after_a_crash,
        jump_out_of_a_constant_price,
        no_volume,
        rare_volume,
        nothing_at_all,
        tiny_prices_and_huge_volume,
        daily_bars,
    ],
)
def test_every_feature_is_a_number_on_degenerate_bars(degenerate: Callable[[Bars], Bars], bars: Bars) -> None:
    features = FeatureSet.build(ALL_FEATURES)
    rows = features.compute(degenerate(bars))[features.warmup - 1 :]
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= FEATURE_LIMIT


def planted(compute: Callable[[TrailingStatistics], NDArray[np.float64]], warmup: int = 32) -> FeatureSpec:
    return FeatureSpec("planted", warmup, compute, "a feature with a fault")


def test_the_look_ahead_check_catches_tomorrows_return(bars: Bars) -> None:
    peeks = planted(lambda statistics: np.roll(log_returns(statistics.bars.close), -1))
    assert columns_that_peek(FeatureSet((peeks,)), bars, 1999) == ["planted"]


def test_the_look_ahead_check_catches_a_scaler_fitted_on_everything(bars: Bars) -> None:
    def whole_series_z_score(statistics: TrailingStatistics) -> NDArray[np.float64]:
        returns = log_returns(statistics.bars.close)
        return (returns - returns.mean()) / returns.std()

    assert columns_that_peek(FeatureSet((planted(whole_series_z_score),)), bars, 1999) == ["planted"]


def test_the_warmup_check_catches_a_recursion_that_never_forgets(bars: Bars) -> None:
    def recursive_mean(statistics: TrailingStatistics) -> NDArray[np.float64]:
        returns = log_returns(statistics.bars.close)
        for row in range(1, len(returns)):
            returns[row] = 0.97 * returns[row - 1] + 0.03 * returns[row]
        return returns

    spec = planted(recursive_mean, warmup=257)
    whole = FeatureSet((spec,)).compute(bars)[:, 0]
    assert len(rows_that_remember_more(spec, bars, whole)) > 3


def test_the_warmup_check_catches_a_warmup_declared_too_short(bars: Bars) -> None:
    honest = FeatureSet.build(["close_return"]).specs[0]
    spec = planted(honest.compute, warmup=honest.warmup - 1)
    whole = FeatureSet((honest,)).compute(bars)[:, 0]
    assert len(rows_that_remember_more(spec, bars, whole)) > 3
