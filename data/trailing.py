"""The trailing statistics that features and the fill model share, and what a feature is.

Legend: N bars. All arrays are [N] float64 unless stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from data.bars import Bars
from data.kernels import Floats, exponential_weights, trailing_median, weighted_trailing_mean

# The market's unit of price change: RiskMetrics-style EWMA of squared log returns. A half-life of 32 bars
# and the floor are design/market.md's; the cut at 8 half-lives drops weights that sum to 2^-8 of the whole.
VOLATILITY_HALF_LIFE: Final = 32
FAST_VOLATILITY_HALF_LIFE: Final = 8
HALF_LIVES_KEPT: Final = 8
VOLATILITY_FLOOR: Final = 1e-5
VOLUME_WINDOW: Final = 20


def log_returns(close: Floats) -> Floats:
    """ln(C_t / C_{t-1}), and 0 for the first bar, which has no predecessor."""
    out = np.zeros(len(close))
    np.log(close[1:] / close[:-1], out=out[1:])
    return out


def ewma_volatility(close: Floats, half_life: int = VOLATILITY_HALF_LIFE) -> Floats:
    """Volatility per bar: root of the exponentially weighted mean of squared log returns.

        σ_t² = Σ_k w_k r²_{t-k} / Σ_k w_k,   w_k = 2^(-k / half_life),   k < 8 · half_life

    At least 1e-5. Exact from row 8 · half_life on; before, the mean runs over the returns there are, and the
    first bar (no return yet) has the floor.
    """
    volatility = np.full(len(close), VOLATILITY_FLOOR)
    if len(close) > 1:
        squared = log_returns(close)[1:] ** 2
        weights = exponential_weights(2.0 ** (-1.0 / half_life), lags=HALF_LIVES_KEPT * half_life)
        np.maximum(np.sqrt(weighted_trailing_mean(squared, weights)), VOLATILITY_FLOOR, out=volatility[1:])
    return volatility


def trailing_median_volume(volume: Floats, window: int = VOLUME_WINDOW) -> Floats:
    """Median volume of the last 20 bars (of the bars there are, at the start); 0 where there is no volume."""
    return trailing_median(np.ascontiguousarray(volume), window)


class TrailingStatistics:
    """Bars together with the trailing statistics that several features share, each computed once on
    demand."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars

    @cached_property
    def volatility(self) -> Floats:
        """σ_t, see `ewma_volatility`."""
        return ewma_volatility(self.bars.close)

    @cached_property
    def median_volume(self) -> Floats:
        """V̄_t, see `trailing_median_volume`."""
        return trailing_median_volume(self.bars.volume)


@dataclass(frozen=True)
class FeatureSpec:
    """One column of the feature table.

    name: canonical spelling, parameters included.
    warmup: bars needed for an exact row: row warmup-1 of any series is the first valid one.
    compute: statistics of N bars -> [N]; rows before warmup-1 hold no meaning.
    meaning: one line for people.
    version: raised when the definition changes, so that a checkpoint trained on the old one refuses to load.
    anchored: a row also depends on the times of its bars, as points of one series.
    """

    name: str
    warmup: int
    compute: Callable[[TrailingStatistics], Floats]
    meaning: str
    version: int = 1
    anchored: bool = False
