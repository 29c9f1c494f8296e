"""Made-up bars with known laws, for tests, for verification markets and for paper trading without an
exchange.

A generator draws a path of close prices; the rest of each bar is made consistent with it:

- open: the previous close and a small overnight gap,
- high and low: the extremes of a Brownian bridge from open to close, each with its exact distribution
  (Glasserman, Monte Carlo Methods in Financial Engineering, 2003, sec. 6.4): with log prices o, c and
  variance s², max = (o + c + √((c - o)² - 2 s² ln U)) / 2; the minimum mirrors it,
- volume: log-normal, larger on bars that move more.

The same seed gives the same bars, and a longer series begins with the shorter one: each kind of draw has its
own stream, so the draws of bar t do not depend on how many bars are made.

Legend: N bars; `volatility` is the standard deviation of a bar's log return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numba import njit

from data.bars import Bars, parse_time
from data.kernels import Floats
from data.timeframe import Timeframe

SYNTHETIC_VENUE: Final = "synthetic"

# Streams of random numbers.
_NOISE, _STATE, _GAP, _HIGH, _LOW, _VOLUME = range(6)

_GAP_SHARE: Final = 0.05
"""Standard deviation of the gap between a close and the next open, in units of volatility."""
_MEDIAN_VOLUME: Final = 1_000.0


def regime(
    count: int,
    *,
    seed: int,
    timeframe: str = "1h",
    start: str | int = "2020-01-01",
    price: float = 100.0,
    volatility: float = 0.005,
    drift: float = 0.2,
    switch_probability: float = 0.02,
) -> Bars:
    """Hidden drift of +drift or -drift (in units of volatility per bar) that flips with a fixed
    probability."""
    uniforms = _stream(seed, _STATE).random(count)
    # The first draw decides the first regime, each later one whether to flip.
    flips = np.where(uniforms < switch_probability, -1.0, 1.0)
    flips[:1] = np.where(uniforms[:1] < 0.5, -1.0, 1.0)
    returns = volatility * (drift * np.cumprod(flips) + _noise(seed, count))
    return _bars("REGIME", returns, np.full(count, volatility), seed, timeframe, start, price)


def mean_reversion(
    count: int,
    *,
    seed: int,
    timeframe: str = "1h",
    start: str | int = "2020-01-01",
    price: float = 100.0,
    volatility: float = 0.005,
    half_life: float = 48.0,
) -> Bars:
    """Ornstein-Uhlenbeck log price: deviations from ln(price) halve every `half_life` bars."""
    deviations = _autoregression(volatility * _noise(seed, count), 2.0 ** (-1.0 / half_life))
    returns = np.diff(deviations, prepend=0.0)
    return _bars("MEAN-REVERSION", returns, np.full(count, volatility), seed, timeframe, start, price)


def momentum(
    count: int,
    *,
    seed: int,
    timeframe: str = "1h",
    start: str | int = "2020-01-01",
    price: float = 100.0,
    volatility: float = 0.005,
    autocorrelation: float = 0.1,
) -> Bars:
    """AR(1) log returns: r_t = φ r_{t-1} + ε_t, with the standard deviation of r equal to `volatility`."""
    innovations = volatility * np.sqrt(1.0 - autocorrelation**2) * _noise(seed, count)
    returns = _autoregression(innovations, autocorrelation)
    return _bars("MOMENTUM", returns, np.full(count, volatility), seed, timeframe, start, price)


def martingale(
    count: int,
    *,
    seed: int,
    timeframe: str = "1h",
    start: str | int = "2020-01-01",
    price: float = 100.0,
    volatility: float = 0.005,
    arch: float = 0.08,
    garch: float = 0.90,
) -> Bars:
    """A price whose expected next value is the present one, with GARCH(1,1) volatility: nothing to be earned.

    σ²_t = ω + arch · (σ_{t-1} z_{t-1})² + garch · σ²_{t-1}, with ω such that the mean of σ² is volatility²;
    ln(C_t / C_{t-1}) = σ_t z_t - σ²_t / 2.
    """
    if arch < 0 or garch < 0 or arch + garch >= 1:
        raise ValueError(f"arch {arch}, garch {garch}: expected numbers from 0 on that sum to less than 1.")
    noise = _noise(seed, count)
    deviations = _garch_volatility(noise, volatility, arch, garch)
    return _bars("MARTINGALE", deviations * noise - 0.5 * deviations**2, deviations, seed, timeframe, start, price)


GENERATORS: Final[Mapping[str, Callable[..., Bars]]] = {
    "regime": regime,
    "mean_reversion": mean_reversion,
    "momentum": momentum,
    "martingale": martingale,
}


def _stream(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))


def _noise(seed: int, count: int) -> Floats:
    return _stream(seed, _NOISE).standard_normal(count)


@njit(cache=True, nogil=True)
def _autoregression(innovations: Floats, coefficient: float) -> Floats:
    """x_t = coefficient · x_{t-1} + innovations_t, started from 0."""
    out = np.empty(innovations.shape[0])
    value = 0.0
    for row in range(innovations.shape[0]):
        value = coefficient * value + innovations[row]
        out[row] = value
    return out


@njit(cache=True, nogil=True)
def _garch_volatility(noise: Floats, volatility: float, arch: float, garch: float) -> Floats:
    """σ_t of a GARCH(1,1), started at its mean; `noise` [N] are its standard normal shocks."""
    out = np.empty(noise.shape[0])
    variance = volatility * volatility
    constant = variance * (1.0 - arch - garch)
    for row in range(noise.shape[0]):
        out[row] = np.sqrt(variance)
        variance = constant + (arch * noise[row] * noise[row] + garch) * variance
    return out


def _bars(
    name: str, returns: Floats, deviations: Floats, seed: int, timeframe: str, start: str | int, price: float
) -> Bars:
    """Bars around the path of closes price · exp(Σ returns). returns, deviations: [N]."""
    count = len(returns)
    frame = Timeframe.parse(timeframe)
    first = parse_time(start)
    if not frame.is_aligned(first):
        raise ValueError(f"start {start}: not on the grid of {timeframe} bars.")
    closes = np.log(price) + np.cumsum(returns)
    previous = np.concatenate(([np.log(price)], closes))[:count]
    opens = previous + _GAP_SHARE * deviations * _stream(seed, _GAP).standard_normal(count)
    # 1 - random() lies in (0, 1]: its logarithm is finite.
    spread_up = -2.0 * deviations**2 * np.log(1.0 - _stream(seed, _HIGH).random(count))
    spread_down = -2.0 * deviations**2 * np.log(1.0 - _stream(seed, _LOW).random(count))
    highs = 0.5 * (opens + closes + np.sqrt((closes - opens) ** 2 + spread_up))
    lows = 0.5 * (opens + closes - np.sqrt((closes - opens) ** 2 + spread_down))
    size = np.abs(returns) / deviations
    volumes = _MEDIAN_VOLUME * np.exp(0.5 * (size - 0.8) + 0.5 * _stream(seed, _VOLUME).standard_normal(count))
    open_, close = np.exp(opens), np.exp(closes)
    return Bars(
        symbol=f"SYNTHETIC-{name}",
        timeframe=frame,
        venue=SYNTHETIC_VENUE,
        timestamp=first + frame.milliseconds * np.arange(count, dtype=np.int64),
        open=open_,
        # Rounding of exp may put an extreme a hair inside the bar's own open or close.
        high=np.maximum(np.exp(highs), np.maximum(open_, close)),
        low=np.minimum(np.exp(lows), np.minimum(open_, close)),
        close=close,
        volume=volumes,
    )
