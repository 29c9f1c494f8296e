"""What the features say, by hand and by independent computation. That they are causal, forgetful, scale-free and
always defined is held for every one of them in tests/contracts/test_no_lookahead_features.py."""

import importlib
import inspect

import numpy as np
import pandas as pd
import pytest

from data.bars import Bars
from data.features import (
    COMPILED_FEATURES,
    DEFAULT_FEATURES,
    FEATURE_LIMIT,
    FeatureSet,
    ewma_volatility,
    feature_spec,
    trailing_median_volume,
)
from data.kernels import exponential_weights, lags_until_forgotten, trailing_median, weighted_trailing_mean
from data.synthetic import martingale
from data.ta_catalog import ANCHOR_CELL, REFUSED, SUPPORTED, anchor_rows
from data.timeframe import Timeframe
from data.trailing import TrailingStatistics


@pytest.fixture(scope="module")
def bars() -> Bars:
    return martingale(700, seed=1)


def last_row(bars: Bars) -> dict[str, float]:
    features = FeatureSet.build()
    return dict(zip(features.names, features.compute(bars)[-1].tolist(), strict=True))


def test_the_default_set_is_the_contracts_eight() -> None:
    features = FeatureSet.build()
    assert features.names == DEFAULT_FEATURES == (
        "close_return",
        "open_gap",
        "high_above_close",
        "close_above_low",
        "relative_volume",
        "volatility_ratio",
        "week_sine",
        "week_cosine",
    )  # fmt: skip
    assert features.warmup == 257


def test_the_default_features_by_their_formulas(bars: Bars) -> None:
    """With the volatility recomputed from its definition, in another order of additions."""
    returns = np.diff(np.log(bars.close))[::-1]
    weight = 2.0 ** (-np.arange(256) / 32)
    sigma = np.sqrt((weight * returns[:256] ** 2).sum() / weight.sum())
    weight_fast = 2.0 ** (-np.arange(64) / 8)
    sigma_fast = np.sqrt((weight_fast * returns[:64] ** 2).sum() / weight_fast.sum())
    row = last_row(bars)
    assert row["close_return"] == pytest.approx(returns[0] / sigma, rel=1e-5)
    assert row["open_gap"] == pytest.approx(np.log(bars.open[-1] / bars.close[-2]) / sigma, rel=1e-5)
    assert row["high_above_close"] == pytest.approx(np.log(bars.high[-1] / bars.close[-1]) / sigma, rel=1e-5)
    assert row["close_above_low"] == pytest.approx(np.log(bars.close[-1] / bars.low[-1]) / sigma, rel=1e-5)
    assert row["relative_volume"] == pytest.approx(np.log(bars.volume[-1] / np.median(bars.volume[-20:])), rel=1e-5)
    assert row["volatility_ratio"] == pytest.approx(np.log(sigma_fast / sigma), rel=1e-4)


@pytest.mark.parametrize(
    ("start", "sine", "cosine"),
    [
        ("2024-01-01T00:00", 0.0, 1.0),  # a Monday
        ("2024-01-02T18:00", 1.0, 0.0),  # a quarter of the week later: 42 h
        ("2024-01-04T12:00", 0.0, -1.0),
        ("2024-01-06T06:00", -1.0, 0.0),
    ],
)
def test_the_week_is_a_circle_that_starts_on_monday(start: str, sine: float, cosine: float) -> None:
    row = FeatureSet.build(["week_sine", "week_cosine"]).compute(martingale(1, seed=1, start=start))[0]
    assert row.tolist() == pytest.approx([sine, cosine], abs=1e-7)


@pytest.mark.parametrize("timeframe", ["1d", "1w"])
def test_daily_bars_have_no_time_of_week(timeframe: str) -> None:
    bars = martingale(10, seed=1, timeframe=timeframe, start="2024-01-01")
    assert not FeatureSet.build(["week_sine", "week_cosine"]).compute(bars).any()


def test_volatility_approaches_the_recursive_one() -> None:
    """The infinite EWMA of pandas puts 2^-8 of its weight on what is cut off here."""
    close = martingale(5_000, seed=3).close
    squared = pd.Series(np.diff(np.log(close)) ** 2)
    recursive = np.sqrt(squared.ewm(halflife=32).mean().to_numpy())
    np.testing.assert_allclose(ewma_volatility(close)[400:], recursive[399:], rtol=0.02)
    np.testing.assert_allclose(ewma_volatility(close)[1:200], recursive[:199], rtol=1e-9)


def test_volatility_has_a_floor_and_a_first_row() -> None:
    assert ewma_volatility(np.full(5, 7.0)).tolist() == [1e-5] * 5
    assert ewma_volatility(np.array([7.0])).tolist() == [1e-5]
    assert len(ewma_volatility(np.empty(0))) == 0


def test_median_volume_by_hand() -> None:
    assert trailing_median_volume(np.array([4.0, 2.0, 9.0])).tolist() == [4.0, 3.0, 4.0]
    assert trailing_median_volume(np.zeros(30)).tolist() == [0.0] * 30


@pytest.mark.parametrize("window", [1, 2, 5, 20])
def test_the_trailing_median_equals_pandas(window: int) -> None:
    """With many ties, which a sorted window must keep apart."""
    values = np.random.default_rng(0).integers(0, 6, 500).astype(float)
    expected = pd.Series(values).rolling(window, min_periods=1).median().to_numpy()
    assert np.array_equal(trailing_median(values, window), expected)


@pytest.mark.parametrize("lags", [1, 3, 4, 5, 64, 257])
def test_the_weighted_mean_is_the_plain_sum_to_the_last_bit(lags: int) -> None:
    """Whatever the tile, the vector register or the group of four lags a bar falls into."""
    values = np.random.default_rng(1).standard_normal(1_100)
    weights = exponential_weights(0.97, lags=lags)
    result = weighted_trailing_mean(values, weights)
    for row in (0, 1, lags - 1, lags, 300, 511, 512, 513, 1_099):
        total, weight_sum = 0.0, 0.0
        for lag in range(min(row + 1, lags)):
            total += weights[lag] * values[row - lag]
            weight_sum += weights[lag]
        assert result[row] == total / weight_sum


def test_forgotten_weight_by_hand() -> None:
    """0.5^10 is just under a thousandth."""
    assert lags_until_forgotten(0.5, tail=1e-3) == 10
    assert lags_until_forgotten(0.0, tail=1e-3) == 1


def test_no_volume_means_neutral_and_one_empty_bar_means_least(bars: Bars) -> None:
    volume = bars.volume.copy()
    volume[-1] = 0.0
    parts = (bars.symbol, bars.timeframe, bars.venue, bars.timestamp, bars.open, bars.high, bars.low, bars.close)
    assert last_row(Bars(*parts, volume))["relative_volume"] == -FEATURE_LIMIT
    assert last_row(Bars(*parts, np.zeros(len(bars))))["relative_volume"] == 0.0


def test_features_are_float32_contiguous_and_clipped(bars: Bars) -> None:
    spike = bars.to_frame()
    spike.iloc[-1, spike.columns.get_loc("high")] *= 2.0
    table = FeatureSet.build().compute(Bars.from_frame(spike, symbol="X", timeframe="1h", venue="test"))
    assert table.dtype == np.float32
    assert table.flags.c_contiguous
    assert table[-1, 2] == FEATURE_LIMIT


def test_a_feature_that_is_not_finite_is_reported_as_a_defect(bars: Bars) -> None:
    from data.trailing import FeatureSpec

    broken = FeatureSpec("broken", 1, lambda statistics: np.full(len(statistics.bars), np.inf), "")
    with pytest.raises(ArithmeticError, match="Feature broken is not finite at row 0"):
        FeatureSet((broken,)).compute(bars)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("close_return", "close_return"),
        ("rsi", "rsi(window=14)"),
        ("rsi( window = 21 )", "rsi(window=21)"),
        ("bollinger_position(deviations=2.5)", "bollinger_position(window=20,deviations=2.5)"),
        ("ta:cci", "ta:cci(window=20,constant=0.015)"),
        (
            "ta:keltner_channel_pband(original_version=false)",
            "ta:keltner_channel_pband(window=20,window_atr=10,original_version=False)",
        ),
        ("ta:daily_return", "ta:daily_return"),
    ],
)
def test_a_name_has_one_canonical_spelling(text: str, canonical: str) -> None:
    spec = feature_spec(text)
    assert spec.name == canonical
    assert feature_spec(spec.name).name == canonical
    assert feature_spec(spec.name).warmup == spec.warmup


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("closereturn", r"Unknown feature 'closereturn'\. Expected one of close_return, .*--list"),
        ("close_return(window=3)", "takes no parameters"),
        ("rsi(windows=3)", "unknown parameter 'windows'; expected window"),
        ("rsi(window=1)", "whole number of bars from 2 on"),
        ("rsi(window=2.5)", "whole number of bars from 2 on"),
        ("rsi(window=abc)", "expected a number, true or false"),
        ("rsi(window)", "expected NAME=VALUE"),
        ("rsi(window=3,window=4)", "expected NAME=VALUE once"),
        ("rsi(window=3", "expected a name such as"),
        ("bollinger_position(deviations=nan)", "a number above 0"),
        ("ta:nothing", "Unknown indicator ta:nothing"),
        ("ta:rsi(fillna=true)", "fillna is refused, because it invents values"),
        ("ta:ichimoku_a(visual=true)", "visual is refused, because it shifts"),
        ("ta:donchian_channel_mband(offset=-5)", r"offset -5 shows later bars \(look-ahead\)"),
        ("ta:rsi(window=0)", "whole number of bars ≥ 1"),
        ("ta:rsi(window=500)", r"it remembers 14,9\d\d bars; at most 4,096"),
        ("ta:rsi(size=5)", "unknown parameter 'size'; expected window"),
        ("ta:on_balance_volume", "refused: it sums from the first bar on.*unbounded memory"),
        ("ta:psar_up", "refused: it forgets only when the trend turns"),
        ("ta:kama", "forgets only after"),
    ],
)
def test_a_wrong_name_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_spec(text)


@pytest.mark.parametrize("names", [[], ["close_return", "close_return"], ["rsi", "rsi(window=14)"]])
def test_a_set_has_each_feature_once(names: list[str]) -> None:
    with pytest.raises(ValueError, match="lists each feature once"):
        FeatureSet.build(names)


def test_the_fingerprint_knows_names_order_and_parameters() -> None:
    sets = [list(DEFAULT_FEATURES), list(DEFAULT_FEATURES[::-1]), ["rsi"], ["rsi(window=15)"], ["ta:rsi"]]
    assert len({FeatureSet.build(names).fingerprint for names in sets}) == len(sets)
    assert FeatureSet.build(["rsi"]).fingerprint == FeatureSet.build(["rsi(window=14)"]).fingerprint
    assert FeatureSet.build().fingerprint == FeatureSet.build(DEFAULT_FEATURES).fingerprint


def test_every_function_of_ta_is_either_supported_or_refused() -> None:
    functions = set()
    for module in ("momentum", "volatility", "trend", "volume", "others"):
        loaded = importlib.import_module(f"ta.{module}")
        functions |= {
            name for name, f in inspect.getmembers(loaded, inspect.isfunction) if f.__module__ == f"ta.{module}"
        }
    helpers = {name for name in functions if name.startswith("_")}
    assert functions - helpers == set(SUPPORTED) | set(REFUSED)
    assert set(SUPPORTED) & set(REFUSED) == set()


def a_fall_then_a_long_calm_then(step: float) -> Bars:
    """900 bars down, 2,000 without any change, 100 bars up or down."""
    close = 2_000.0 + np.cumsum(np.r_[np.full(900, -1.0), np.zeros(2_000), np.full(100, step)])
    open_ = np.r_[2_000.0, close[:-1]]
    times = np.arange(3_000, dtype=np.int64) * 3_600_000
    prices = (open_, np.maximum(open_, close), np.minimum(open_, close), close)
    return Bars("X", Timeframe.parse("1h"), "test", times, *prices, np.full(3_000, 5.0))


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_indicator_really_depends_on_where_the_history_starts(name: str) -> None:
    """Otherwise it should be supported: two histories that share their last 1,000 bars disagree on the last 500."""
    modules = [importlib.import_module(f"ta.{module}") for module in ("momentum", "trend", "volume", "others")]
    function = next(getattr(module, name) for module in modules if hasattr(module, name))
    inputs = [p for p in inspect.signature(function).parameters if p in ("high", "low", "close", "volume")]

    def disagrees(bars: Bars) -> bool:
        whole, recent = (
            function(**{i: pd.Series(getattr(part, i)) for i in inputs}).to_numpy(dtype=float)[-500:]
            for part in (bars, bars.slice(2_000, None))
        )
        return not np.allclose(whole, recent, rtol=1e-9, atol=0.0, equal_nan=True)

    histories = [martingale(3_000, seed=2), a_fall_then_a_long_calm_then(1.0), a_fall_then_a_long_calm_then(-1.0)]
    assert any(disagrees(bars) for bars in histories)


def test_the_supported_value_is_ta_s_own(bars: Bars) -> None:
    """Anchored at a late bar, an indicator still says what `ta` says of the whole history."""
    long = martingale(3_000, seed=2)
    for name in ("rsi", "adx", "macd_diff", "stc", "trix", "force_index", "mass_index", "average_true_range"):
        indicator = SUPPORTED[name]
        spec = indicator.spec({})
        statistics = TrailingStatistics(long)
        with np.errstate(all="ignore"):
            expected = indicator.scale(indicator.raw(long, indicator.signature[1]), indicator.signature[1], statistics)
        np.testing.assert_allclose(spec.compute(statistics)[-500:], expected[-500:], rtol=1e-8, atol=1e-8)


def test_anchors_are_the_first_bars_of_their_cells() -> None:
    """Also where a gap swallows the first bars of a cell; and they do not move when the history is cut."""
    bars = martingale(1_000, seed=1)
    cell = ANCHOR_CELL * Timeframe.parse("1h").milliseconds
    rows = np.r_[0:500, 620:1_000]
    columns = {name: getattr(bars, name)[rows] for name in ("open", "high", "low", "close", "volume")}
    gappy = Bars("X", bars.timeframe, "test", bars.timestamp[rows], **columns)
    anchors = anchor_rows(gappy)
    cells = gappy.timestamp // cell
    assert anchors == [row for row in range(1, len(gappy)) if cells[row] != cells[row - 1]]
    assert anchor_rows(gappy.slice(333, None)) == [row - 333 for row in anchors if row > 333]


def test_every_listed_feature_can_be_built() -> None:
    assert len(FeatureSet.build([*COMPILED_FEATURES, *(f"ta:{name}" for name in SUPPORTED)]).names) == 14 + len(
        SUPPORTED
    )


@pytest.mark.parametrize("names", [DEFAULT_FEATURES, COMPILED_FEATURES, ("close_return", "ta:cci(window=20)")])
def test_the_last_rows_of_several_series_are_each_ones_own_to_the_last_bit(names: tuple[str, ...]) -> None:
    """Whatever stands beside a series, of whatever size and time: finite memory, used."""
    features = FeatureSet.build(names)
    longest = martingale(features.warmup + 400, seed=2)
    series = [
        longest.slice(start, start + features.warmup + 4 + more) for start, more in ((0, 0), (300, 9), (7, 1), (300, 0))
    ]
    together = features.last_rows(series, 5)
    assert together.shape == (len(series), 5, len(names))
    for rows, own in zip(together, series, strict=True):
        np.testing.assert_array_equal(rows, features.compute(own)[-5:])


def test_more_series_than_fit_one_table_are_computed_in_parts(bars: Bars) -> None:
    features = FeatureSet.build(("close_return", "relative_volume"))
    series = [bars.slice(start, start + features.warmup + 9) for start in range(200)]
    together = features.last_rows(series, 10)
    for rows, own in zip(together, series, strict=True):
        np.testing.assert_array_equal(rows, features.compute(own)[-10:])


def test_too_short_a_series_is_refused_with_what_it_takes(bars: Bars) -> None:
    features = FeatureSet.build(("close_return",))
    with pytest.raises(ValueError, match=f"3 rows need {features.warmup + 2} bars, found {features.warmup}"):
        features.last_rows([bars.slice(0, features.warmup)], 3)
