"""Prepared markets: what is checked, what is cut, what is known when."""

import numpy as np
import pytest

from data.features import FeatureSet, ewma_volatility, trailing_median_volume
from data.synthetic import regime
from market_env.instrument import Instrument
from market_env.market import Market
from market_env.observation import ObservationBuilder

FEATURES = FeatureSet.build()


@pytest.fixture(scope="module")
def bars():
    return regime(600, seed=0)


def test_the_first_decision_has_a_full_window_of_warm_features(bars):
    market = Market.prepare(bars, FEATURES, window=16)
    first = market.timestamp[market.first_decision]
    assert first == bars.timestamp[FEATURES.warmup - 1 + 15]
    assert market.first_decision == 15
    assert len(market) == 600 - (FEATURES.warmup - 1)
    assert np.isfinite(market.features).all()


def test_columns_are_those_of_the_bars_and_of_the_feature_module(bars):
    market = Market.prepare(bars, FEATURES, window=16)
    cut = 600 - len(market)
    for name in ("open", "high", "low", "close", "volume", "timestamp"):
        assert np.array_equal(getattr(market, name), getattr(bars, name)[cut:]), name
    assert np.array_equal(market.sigma, ewma_volatility(bars.close)[cut:])
    assert np.array_equal(market.median_volume, trailing_median_volume(bars.volume)[cut:])
    assert np.array_equal(market.features, FEATURES.compute(bars)[cut:])
    assert market.has_volume


def test_decisions_stay_between_start_and_stop(bars):
    start, stop = int(bars.timestamp[400]), int(bars.timestamp[500])
    market = Market.prepare(bars, FEATURES, window=16, start=start, stop=stop)
    assert market.timestamp[market.first_decision] == start
    assert market.timestamp[-1] == bars.timestamp[499]
    whole = Market.prepare(bars, FEATURES, window=16)
    offset = len(whole) - 100 - len(market)
    assert np.array_equal(market.features, whole.features[offset : offset + len(market)])


def test_without_features_every_bar_can_be_traded(bars):
    market = Market.prepare(bars)
    assert (len(market), market.first_decision, market.features.shape) == (600, 0, (600, 0))
    assert market.instrument == Instrument.for_symbol(bars.symbol)


def test_too_few_bars_say_how_many_are_needed(bars):
    with pytest.raises(ValueError, match=rf"first decision needs {FEATURES.warmup + 63} bars .* Give more bars"):
        Market.prepare(bars.slice(0, FEATURES.warmup + 60), FEATURES, window=64)


def test_the_fingerprint_follows_everything_that_matters(bars):
    market = Market.prepare(bars, FEATURES, window=16)
    assert market.fingerprint == Market.prepare(bars, FEATURES, window=16).fingerprint
    others = [
        Market.prepare(bars, FEATURES, window=17),
        Market.prepare(bars.slice(0, 599), FEATURES, window=16),
        Market.prepare(bars, FEATURES, Instrument(symbol=bars.symbol, lot_size=1.0), window=16),
        Market.prepare(bars, FeatureSet.build(["close_return"]), window=16),
    ]
    assert len({market.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_arrays_are_read_only(bars):
    market = Market.prepare(bars, FEATURES, window=16)
    for array in (market.bars, market.features):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (3, np.nan, r"TEST: prices must be finite and positive; row 2 has open 100, high 100, low 100, close nan"),
        (0, -1.0, "prices must be finite and positive; row 2 has open -1"),
        (1, 99.0, "low <= open, close <= high must hold; row 2 has"),
        (4, -1.0, "volume must be finite and >= 0; row 2"),
        (5, 0.0, "sigma must be finite and positive; row 2"),
        (6, np.inf, "median volume must be finite and >= 0; row 2"),
        (7, 0.0, "timestamps must be sorted, at least 3600000 ms apart; row 2"),
    ],
)
def test_bad_bars_are_named_by_row_and_rule(make_market, column, value, words):
    market = make_market([(100, 100, 100, 100)] * 5)
    bars = market.bars.copy()
    bars[2, column] = value
    with pytest.raises(ValueError, match=words):
        Market.from_arrays(
            bars, market.features, instrument=market.instrument, bar_ms=market.bar_ms, window=1, first_decision=0
        )


@pytest.mark.parametrize("value", [np.nan, 5.1, -np.inf])
def test_bad_features_are_named(make_market, value):
    features = np.zeros((5, 2), dtype=np.float32)
    features[3, 1] = value
    with pytest.raises(ValueError, match=r"feature column 1 at row 3 must be a number within \+-5"):
        make_market([(100, 100, 100, 100)] * 5, features=features)


def test_windows_end_at_their_bar_and_never_before_they_are_full():
    features = np.arange(24, dtype=np.float32).reshape(8, 3)
    builder = ObservationBuilder(3)
    assert np.array_equal(builder.window(features, 4), features[2:5])
    assert np.array_equal(builder.windows(features, np.array([2, 7])), np.stack([features[0:3], features[5:8]]))
    builder.window(features, 4)[:] = 0.0
    assert features[4, 0] == 12.0
    for t in (1, 8):
        with pytest.raises(ValueError, match=f"got t = {t}"):
            builder.window(features, t)
        with pytest.raises(ValueError, match=f"got t = {t}"):
            builder.windows(features, np.array([3, t]))
    with pytest.raises(ValueError, match="at least one bar"):
        ObservationBuilder(0)
