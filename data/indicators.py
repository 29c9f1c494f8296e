"""Technical indicators as compiled functions of the last few hundred bars, in their textbook units.

`ta` computes the same numbers with pandas in about a millisecond per call, which a live decision feels; here
a call costs microseconds. Recursive averages (Wilder's and exponential ones) are cut where the forgotten
weight is below `FORGOTTEN_WEIGHT`, so that these values agree with `ta`'s on any history long enough to have
forgotten its start. The tests hold them to `ta` at 1e-9. Where an indicator is undefined (no movement, no
volume) it has its neutral value.

Legend: N bars; every array is [N] float64. Each function names the rows that are exact.
Sources: Wilder, New Concepts in Technical Trading Systems (1978) for RSI, ATR and ADX; Appel for MACD;
Bollinger for %B; Lane for the stochastic oscillator; Quong & Soudack for the money flow index.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from data.kernels import Floats, exponential_weights, lags_until_forgotten, weighted_trailing_mean

# Small enough that a forgotten price move of a hundred times the average range shifts an indicator by less
# than 1e-9.
FORGOTTEN_WEIGHT: Final = 1e-13

NEUTRAL_OSCILLATOR: Final = 50.0


def wilder_lags(window: int) -> int:
    """Bars that Wilder's average of this window remembers: weights (1 - 1/window)^k."""
    return lags_until_forgotten(1.0 - 1.0 / window, tail=FORGOTTEN_WEIGHT)


def ema_lags(span: int) -> int:
    """Bars that the exponential average of this span remembers: weights (1 - 2/(span+1))^k."""
    return lags_until_forgotten(1.0 - 2.0 / (span + 1.0), tail=FORGOTTEN_WEIGHT)


def wilder_mean(values: Floats, window: int) -> Floats:
    """Wilder's average: a step of 1/window towards each new value. Exact from row `wilder_lags(window) - 1`
    on."""
    return weighted_trailing_mean(values, exponential_weights(1.0 - 1.0 / window, lags=wilder_lags(window)))


def ema(values: Floats, span: int) -> Floats:
    """Exponential average: a step of 2/(span+1) to each new value. Exact from row `ema_lags(span) - 1` on."""
    return weighted_trailing_mean(values, exponential_weights(1.0 - 2.0 / (span + 1.0), lags=ema_lags(span)))


def rsi(close: Floats, window: int) -> Floats:
    """Relative strength index, 0 to 100: Wilder's average gain over average gain plus average loss.

    50 where nothing moved. Exact from row `wilder_lags(window)` on.
    """
    change = np.diff(close, prepend=close[:1])
    gain = wilder_mean(np.maximum(change, 0.0), window)
    loss = wilder_mean(np.maximum(-change, 0.0), window)
    return _ratio(100.0 * gain, gain + loss, neutral=NEUTRAL_OSCILLATOR)


def true_range(high: Floats, low: Floats, close: Floats) -> Floats:
    """max(high, previous close) - min(low, previous close); high - low in the first row."""
    previous = np.concatenate((close[:1], close[:-1]))
    previous[:1] = low[:1]
    return np.maximum(high, previous) - np.minimum(low, previous)


def average_true_range(high: Floats, low: Floats, close: Floats, window: int) -> Floats:
    """Wilder's average of the true range, in units of price. Exact from row `wilder_lags(window)` on."""
    return wilder_mean(true_range(high, low, close), window)


def macd_histogram(close: Floats, fast: int, slow: int, signal: int) -> Floats:
    """MACD minus its signal line, in units of price; MACD = EMA(fast) - EMA(slow).

    Exact from row `ema_lags(slow) + ema_lags(signal) - 2` on.
    """
    macd = ema(close, fast) - ema(close, slow)
    return macd - ema(macd, signal)


def adx(high: Floats, low: Floats, close: Floats, window: int) -> Floats:
    """Average directional index, 0 to 100: strength of a trend whatever its direction; 0 where nothing moved.

    Exact from row `2 · wilder_lags(window) - 1` on.
    """
    up = np.diff(high, prepend=high[:1])
    down = -np.diff(low, prepend=low[:1])
    plus = wilder_mean(np.where((up > down) & (up > 0), up, 0.0), window)
    minus = wilder_mean(np.where((down > up) & (down > 0), down, 0.0), window)
    return wilder_mean(_ratio(100.0 * np.abs(plus - minus), plus + minus, neutral=0.0), window)


@njit(cache=True, nogil=True)
def bollinger_position(close: Floats, window: int, deviations: float) -> Floats:
    """%B: where the close stands between the bands, 0 on the lower and 1 on the upper one; 0.5 on a constant
    price.

    The bands are mean ± deviations · standard deviation (of the population) of the last `window` closes.
    Exact from row window-1 on; 0.5 before.
    """
    out = np.full(close.shape[0], 0.5)
    for row in range(window - 1, close.shape[0]):
        # Distances from the latest close: on a constant price all are exactly zero, and large prices cost no
        # digits.
        mean = 0.0
        for lag in range(window):
            mean += close[row - lag] - close[row]
        mean /= window
        variance = 0.0
        for lag in range(window):
            variance += (close[row - lag] - close[row] - mean) ** 2
        half_width = deviations * np.sqrt(variance / window)
        if half_width > 0.0:
            out[row] = (half_width - mean) / (2.0 * half_width)
    return out


@njit(cache=True, nogil=True)
def stochastic(high: Floats, low: Floats, close: Floats, window: int) -> Floats:
    """%K, 0 to 100: where the close stands between the lowest low and the highest high of the last `window`
    bars.

    50 where they are equal. Exact from row window-1 on; 50 before.
    """
    out = np.full(close.shape[0], 50.0)
    for row in range(window - 1, close.shape[0]):
        highest, lowest = high[row], low[row]
        for lag in range(1, window):
            highest = max(highest, high[row - lag])
            lowest = min(lowest, low[row - lag])
        if highest > lowest:
            out[row] = 100.0 * (close[row] - lowest) / (highest - lowest)
    return out


@njit(cache=True, nogil=True)
def money_flow_index(high: Floats, low: Floats, close: Floats, volume: Floats, window: int) -> Floats:
    """0 to 100: share of the money (typical price × volume) of the last `window` bars that traded on rising
    bars.

    A bar rises or falls against the bar before it; 50 where no money moved. Exact from row `window` on; 50
    before.
    """
    count = close.shape[0]
    typical = np.empty(count)
    for row in range(count):
        typical[row] = (high[row] + low[row] + close[row]) / 3.0
    out = np.full(count, 50.0)
    for row in range(window, count):
        rising, falling = 0.0, 0.0
        for lag in range(window):
            now, before = typical[row - lag], typical[row - lag - 1]
            if now > before:
                rising += now * volume[row - lag]
            elif now < before:
                falling += now * volume[row - lag]
        if rising + falling > 0.0:
            out[row] = 100.0 * rising / (rising + falling)
    return out


def _ratio(numerator: Floats, denominator: Floats, *, neutral: float) -> Floats:
    """numerator / denominator, and `neutral` where the denominator is 0."""
    out = np.full(len(numerator), neutral)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
