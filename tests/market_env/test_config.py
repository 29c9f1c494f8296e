"""Configurations are complete, closed and checked; instruments and action grids follow from them."""

import numpy as np
import pytest
from pydantic import ValidationError

from market_env.actions import ActionGrid
from market_env.config import ActionConfig, MarketConfig, RandomisationConfig
from market_env.instrument import Instrument


def test_everything_has_a_default():
    assert MarketConfig().actions.levels == (-1.0, -0.5, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fills": {"rejekt_probability": 0.1}},
        {"costs": {"taker_fee_bps": -1.0}},
        {"fills": {"mode": "optimistic"}},
        {"actions": {"levels": (0.0,)}},
        {"actions": {"levels": (0.0, 0.0)}},
        {"actions": {"levels": (-2.0, 0.0)}},
        {"actions": {"levels": (-1.0, -0.5), "spot": True}},
        {"costs": {"taker_fee_bps": float("nan")}},
        {"observation": {"window": 0}},
    ],
)
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(ValidationError):
        MarketConfig.model_validate(wrong)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        MarketConfig().fills.mode = "deterministic"


def test_randomisation_ranges_are_ordered():
    with pytest.raises(ValidationError, match="low <= high"):
        RandomisationConfig(fee=(2.0, 1.0))


def test_every_field_says_what_it_means():
    for section in MarketConfig.model_fields.values():
        for name, field in section.annotation.model_fields.items():
            assert field.description, name


def test_evaluation_is_the_whole_data_without_randomisation():
    config = MarketConfig.model_validate({"randomisation": {"enabled": True}, "costs": {"taker_fee_bps": 7.0}})
    evaluation = config.for_evaluation()
    assert (evaluation.episode.horizon, evaluation.episode.random_start) == (None, False)
    assert not evaluation.randomisation.enabled
    assert evaluation.costs == config.costs


@pytest.mark.parametrize(
    ("symbol", "asset_class", "half_spread_bps", "days"),
    [
        ("BTC/USDT", "crypto", 1.0, 365),
        ("BTCUSDT", "crypto", 1.0, 365),
        ("BTC/USDT:USDT", "crypto", 1.0, 365),
        ("XBT/USD", "crypto", 1.0, 365),
        ("ETH-USD", "crypto", 1.0, 365),
        ("PEPE/USDT", "crypto", 5.0, 365),
        ("ALGO/BTC", "crypto", 5.0, 365),
        ("EURUSD", "fx", 0.3, 260),
        ("EUR/USD", "fx", 0.3, 260),
        ("AAPL", "equity", 2.0, 252),
        ("SPY", "equity", 2.0, 252),
        ("sp500", "equity", 2.0, 252),
        ("NASDAQ", "equity", 2.0, 252),
        ("XAUUSD", "other", 5.0, 252),
        ("VIX", "other", 5.0, 252),
        ("SYNTHETIC-REGIME", "other", 5.0, 252),
    ],
)
def test_an_instrument_is_guessed_from_its_symbol(symbol, asset_class, half_spread_bps, days):
    instrument = Instrument.for_symbol(symbol)
    assert instrument.symbol == symbol
    assert instrument.asset_class == asset_class
    assert instrument.half_spread_fraction == pytest.approx(half_spread_bps * 1e-4)
    assert instrument.trading_days_per_year == days


def test_what_is_stated_wins_over_the_class():
    instrument = Instrument(symbol="X", asset_class="fx", half_spread_bps=4.0, days_per_year=100)
    assert (instrument.half_spread_fraction, instrument.trading_days_per_year) == (4.0e-4, 100)


def test_the_grid_scales_with_leverage_and_masks_shorts_of_spot_accounts():
    grid = ActionGrid.build(ActionConfig(max_leverage=3.0, spot=True))
    assert grid.targets.tolist() == [-3.0, -1.5, 0.0, 1.5, 3.0]
    assert grid.mask.tolist() == [False, False, True, True, True]
    assert grid.flat == 2
    assert grid.nearest(-3.0) == 2
    assert grid.nearest(2.5) == 4
    with pytest.raises(ValueError, match="read-only"):
        grid.targets[0] = 0.0


def test_a_grid_without_flat_falls_back_to_the_closest_action():
    grid = ActionGrid.build(ActionConfig(levels=(-1.0, 0.4, 1.0)))
    assert grid.targets[grid.flat] == np.float64(0.4)
