"""Markets to test on: hand-made bars, and random ones with everything that hurts (gaps, crashes, zero volume)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from market_env import kernel
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.market import Market

HOUR_MS = 3_600_000
START_MS = 1_577_836_800_000  # 2020-01-01T00:00Z

MarketFactory = Callable[..., Market]


def market_of(
    bars: Sequence[Sequence[float]],
    *,
    volume: float | Sequence[float] = 1e9,
    sigma: float = 0.01,
    median_volume: float | None = None,
    timestamp: Sequence[int] | None = None,
    bar_ms: int = HOUR_MS,
    instrument: Instrument | None = None,
    window: int = 1,
    first_decision: int = 0,
    features: NDArray[np.float32] | None = None,
) -> Market:
    """A market of hand-written rows (open, high, low, close)."""
    count = len(bars)
    matrix = np.zeros((count, len(kernel.BAR_FIELDS)))
    matrix[:, :4] = bars
    matrix[:, 4] = volume
    matrix[:, 5] = sigma
    matrix[:, 6] = np.median(matrix[:, 4]) if median_volume is None else median_volume
    matrix[:, 7] = START_MS + bar_ms * np.arange(count) if timestamp is None else timestamp
    return Market.from_arrays(
        matrix,
        np.zeros((count, 1), dtype=np.float32) if features is None else features,
        instrument=instrument or Instrument(symbol="TEST", half_spread_bps=10.0),
        bar_ms=bar_ms,
        window=window,
        first_decision=first_decision,
    )


def random_market_of(
    seed: int,
    count: int = 200,
    *,
    volatility: float = 0.02,
    gap: float = 0.01,
    zero_volume: float = 0.1,
    window: int = 4,
    scale: float = 1.0,
    symbol: str = "TEST",
    instrument: Instrument | None = None,
) -> Market:
    """Random bars with opening gaps, time gaps, occasional crashes, and volumes from nothing to plenty.

    scale: multiplies prices and divides volumes.
    """
    rng = np.random.default_rng(seed)
    crash = rng.random(count) < 0.02
    moves = volatility * rng.standard_normal(count) * np.where(crash, 12.0, 1.0)
    gaps = gap * rng.standard_normal(count)
    close = 100.0 * np.exp(np.cumsum(moves + gaps))
    open_ = close * np.exp(-moves)
    high = np.maximum(open_, close) * np.exp(np.abs(volatility * rng.standard_normal(count)))
    low = np.minimum(open_, close) * np.exp(-np.abs(volatility * rng.standard_normal(count)))
    volume = rng.lognormal(4.0, 2.0, count) * (rng.random(count) >= zero_volume)
    matrix = np.zeros((count, len(kernel.BAR_FIELDS)))
    matrix[:, :4] = scale * np.stack([open_, high, low, close], axis=1)
    matrix[:, 4] = volume / scale
    matrix[:, 5] = np.exp(rng.uniform(np.log(1e-3), np.log(5e-2), count))
    matrix[:, 6] = np.array([np.median(volume[max(t - 19, 0) : t + 1]) for t in range(count)]) / scale
    skipped = np.cumsum(rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 3, 35], count))
    matrix[:, 7] = START_MS + HOUR_MS * skipped
    return Market.from_arrays(
        matrix,
        np.clip(rng.standard_normal((count, 3)), -5, 5).astype(np.float32),
        instrument=instrument or Instrument(symbol=symbol, half_spread_bps=3.0),
        bar_ms=HOUR_MS,
        window=window,
        first_decision=window - 1,
    )


def with_settings(config: MarketConfig | None = None, **sections: dict[str, Any]) -> MarketConfig:
    """A configuration with some fields of some sections replaced: with_settings(fills={"mode": "deterministic"})."""
    config = MarketConfig() if config is None else config
    merged = config.model_dump()
    for section, fields in sections.items():
        merged[section] |= fields
    return MarketConfig.model_validate(merged)


@pytest.fixture(scope="session")
def make_market() -> MarketFactory:
    return market_of


@pytest.fixture(scope="session")
def random_market() -> MarketFactory:
    return random_market_of


@pytest.fixture(scope="session")
def settings() -> Callable[..., MarketConfig]:
    return with_settings


@pytest.fixture(scope="session")
def frictionless() -> MarketConfig:
    """Fills at the open, no fee, no band, no margin: the arithmetic alone."""
    return with_settings(
        fills={"mode": "deterministic"},
        costs={"taker_fee_bps": 0.0},
        actions={"no_trade_band": 0.0},
    )
