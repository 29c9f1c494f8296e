"""The generators obey the laws they claim, within what chance allows (bounds of four standard errors or more)."""

from collections.abc import Callable

import numpy as np
import pytest

from data.bars import Bars
from data.synthetic import GENERATORS, martingale, mean_reversion, momentum, regime

COUNT = 60_000


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS.keys())
def test_the_seed_decides_everything_and_longer_begins_with_shorter(generator: Callable[..., Bars]) -> None:
    bars = generator(500, seed=3)
    assert generator(500, seed=3) == bars
    assert generator(900, seed=3).slice(0, 500) == bars
    assert generator(500, seed=4) != bars


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS.keys())
@pytest.mark.parametrize("price", [1e-6, 60_000.0])
def test_bars_are_consistent_at_any_price_and_volatility(generator: Callable[..., Bars], price: float) -> None:
    """`Bars` checks the contract itself; here also that they look like a market."""
    for volatility in (1e-6, 0.005, 0.2):
        bars = generator(2_000, seed=1, price=price, volatility=volatility)
        assert bars.volume.min() > 0
        assert (bars.high > bars.low).mean() > 0.99


def returns(bars: Bars) -> np.ndarray:
    return np.diff(np.log(bars.close))


def test_the_range_is_that_of_a_random_walk() -> None:
    """The mean of max - min of Brownian motion over one bar is √(8/π) σ (Feller 1951); bars add the opening gap."""
    bars = martingale(COUNT, seed=2, volatility=0.01, arch=0.0, garch=0.0)
    observed = np.log(bars.high / bars.low).mean() / 0.01
    assert observed == pytest.approx(np.sqrt(8.0 / np.pi), rel=0.02)


def test_a_regime_drifts_up_and_down_and_switches() -> None:
    """Unconditional variance σ²(1 + drift²); autocovariance of returns at lag k is (drift σ)² (1 - 2q)^k."""
    drift, switch, sigma = 0.5, 0.05, 0.01
    r = returns(regime(COUNT, seed=5, volatility=sigma, drift=drift, switch_probability=switch))
    assert r.std() == pytest.approx(sigma * np.sqrt(1 + drift**2), rel=0.02)
    for lag in (1, 5, 20):
        expected = drift**2 * (1 - 2 * switch) ** lag
        assert (r[lag:] * r[:-lag]).mean() / sigma**2 == pytest.approx(expected, abs=0.02)


def test_mean_reversion_halves_a_deviation_in_its_half_life() -> None:
    bars = mean_reversion(COUNT, seed=6, half_life=10.0, price=50.0)
    x = np.log(bars.close / 50.0)
    assert (x[10:] * x[:-10]).mean() / (x * x).mean() == pytest.approx(0.5, abs=0.05)
    assert abs(x.mean()) < 0.01


def test_momentum_has_its_autocorrelation_and_volatility() -> None:
    r = returns(momentum(COUNT, seed=7, autocorrelation=0.3, volatility=0.01))
    assert np.corrcoef(r[1:], r[:-1])[0, 1] == pytest.approx(0.3, abs=0.02)
    assert r.std() == pytest.approx(0.01, rel=0.02)


def test_a_martingale_expects_nothing_but_its_volatility_clusters() -> None:
    r = returns(martingale(COUNT, seed=8, volatility=0.01))
    growth = np.expm1(r)
    assert abs(growth.mean()) < 4 * growth.std() / np.sqrt(len(growth))
    assert abs(np.corrcoef(r[1:], r[:-1])[0, 1]) < 0.03
    size = np.abs(r)
    assert np.corrcoef(size[1:], size[:-1])[0, 1] > 0.1
    assert r.std() == pytest.approx(0.01, rel=0.1)


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to less than 1"):
        martingale(10, seed=1, arch=0.2, garch=0.8)
    with pytest.raises(ValueError, match="not on the grid"):
        regime(10, seed=1, start="2020-01-01T00:30")
