"""Features: what the agent sees of a bar, computed from this bar and earlier ones only.

Four promises, each held by tests for every feature:

- **Causal.** Row t depends on bars ≤ t.
- **Finite memory.** Row t depends on the last `warmup` bars and on nothing before them, to the last bit: the
row
  computed live from `warmup` bars is the row that was trained on.
- **Scale-free.** Prices × x and volume ÷ x change nothing: there is no scaler fitted on a dataset.
- **Finite.** Zero volume, a constant price and gaps give numbers of order one, clipped to ±5, never NaN.

Names are strings, so that an experiment's YAML lists them: `close_return`, or with parameters
`rsi(window=14)`. `python -m data features` prints them all.

Legend: N bars, F features. All arrays are [N] float64 unless stated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from data.bars import FINGERPRINT_DIGITS, Bars, concatenate
from data.kernels import Floats, exponential_weights, trailing_median, weighted_trailing_mean
from data.quality import Times
from data.timeframe import DAY_MS, FIRST_MONDAY_MS, WEEK_MS

# Every feature is clipped here: the observation space is a box of this half-width (design/market.md).
FEATURE_LIMIT: Final = 5.0

# The market's unit of price change: RiskMetrics-style EWMA of squared log returns. A half-life of 32 bars
# and the floor are design/market.md's; the cut at 8 half-lives drops weights that sum to 2^-8 of the whole.
VOLATILITY_HALF_LIFE: Final = 32
FAST_VOLATILITY_HALF_LIFE: Final = 8
HALF_LIVES_KEPT: Final = 8
VOLATILITY_FLOOR: Final = 1e-5
VOLUME_WINDOW: Final = 20

# Rows computed at a time. With finite memory a table computed in pieces equals one computed at once, and
# pieces of this size keep the intermediate columns in the second-level cache.
_CHUNK_ROWS: Final = 16_384


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
    """

    name: str
    warmup: int
    compute: Callable[[TrailingStatistics], Floats]
    meaning: str
    version: int = 1


def _close_return(statistics: TrailingStatistics) -> Floats:
    return log_returns(statistics.bars.close) / statistics.volatility


def _open_gap(statistics: TrailingStatistics) -> Floats:
    bars = statistics.bars
    gap = np.zeros(len(bars))
    np.log(bars.open[1:] / bars.close[:-1], out=gap[1:])
    return gap / statistics.volatility


def _high_above_close(statistics: TrailingStatistics) -> Floats:
    return np.log(statistics.bars.high / statistics.bars.close) / statistics.volatility


def _close_above_low(statistics: TrailingStatistics) -> Floats:
    return np.log(statistics.bars.close / statistics.bars.low) / statistics.volatility


def _relative_volume(statistics: TrailingStatistics) -> Floats:
    """ln(V / V̄): the lower limit for a bar without volume, 0 where the median itself is 0 (no volume to
    speak of)."""
    volume, median = statistics.bars.volume, statistics.median_volume
    known = (volume > 0) & (median > 0)
    ratio = np.divide(volume, median, out=np.ones(len(volume)), where=known)
    out = np.log(ratio)
    out[(volume == 0) & (median > 0)] = -FEATURE_LIMIT
    return out


def _volatility_ratio(statistics: TrailingStatistics) -> Floats:
    fast = ewma_volatility(statistics.bars.close, FAST_VOLATILITY_HALF_LIFE)
    return np.log(fast / statistics.volatility)


def _week_angle(bars: Bars) -> Floats:
    weeks: Floats = ((bars.timestamp - FIRST_MONDAY_MS) % WEEK_MS) / WEEK_MS
    return 2.0 * np.pi * weeks


def _week_sine(statistics: TrailingStatistics) -> Floats:
    bars = statistics.bars
    return np.zeros(len(bars)) if bars.timeframe.milliseconds >= DAY_MS else np.sin(_week_angle(bars))


def _week_cosine(statistics: TrailingStatistics) -> Floats:
    bars = statistics.bars
    return np.zeros(len(bars)) if bars.timeframe.milliseconds >= DAY_MS else np.cos(_week_angle(bars))


# One bar more than the returns of the volatility: the first return needs a previous close.
_VOLATILITY_WARMUP: Final = HALF_LIVES_KEPT * VOLATILITY_HALF_LIFE + 1

_OWN_FEATURES: Final = {
    spec.name: spec
    for spec in (
        FeatureSpec("close_return", _VOLATILITY_WARMUP, _close_return, "ln(C / previous C) / σ"),
        FeatureSpec("open_gap", _VOLATILITY_WARMUP, _open_gap, "ln(O / previous C) / σ"),
        FeatureSpec("high_above_close", _VOLATILITY_WARMUP, _high_above_close, "ln(H / C) / σ"),
        FeatureSpec("close_above_low", _VOLATILITY_WARMUP, _close_above_low, "ln(C / L) / σ"),
        FeatureSpec("relative_volume", VOLUME_WINDOW, _relative_volume, "ln(V / median V of 20 bars)"),
        FeatureSpec("volatility_ratio", _VOLATILITY_WARMUP, _volatility_ratio, "ln(σ half-life 8 / σ)"),
        FeatureSpec("week_sine", 1, _week_sine, "sine of the time of week; 0 for daily bars and longer"),
        FeatureSpec("week_cosine", 1, _week_cosine, "cosine of the time of week; 0 for daily bars and longer"),
    )
}

DEFAULT_FEATURES: Final[tuple[str, ...]] = tuple(_OWN_FEATURES)


def feature_spec(name: str) -> FeatureSpec:
    """The feature of this name. Raises `ValueError` with the names there are."""
    if name not in _OWN_FEATURES:
        raise ValueError(
            f"Unknown feature {name!r}. Expected one of {', '.join(_OWN_FEATURES)}. "
            '"python -m data features" lists them with their meaning.'
        )
    return _OWN_FEATURES[name]


@dataclass(frozen=True)
class FeatureSet:
    """The columns of an observation, in order."""

    specs: tuple[FeatureSpec, ...]

    @classmethod
    def build(cls, names: Sequence[str] = DEFAULT_FEATURES) -> FeatureSet:
        """The features of these names. Raises `ValueError` on an unknown or repeated name and on an empty
        list."""
        specs = tuple(feature_spec(name) for name in names)
        repeated = {spec.name for spec in specs if specs.count(spec) > 1}
        if repeated or not specs:
            raise ValueError(
                f"A feature set lists each feature once and at least one, found {list(names)}. "
                f"{'Repeated: ' + ', '.join(sorted(repeated)) if repeated else 'The list is empty'}."
            )
        return cls(specs)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def warmup(self) -> int:
        """Bars needed for an exact row; row warmup-1 is the first valid one."""
        return max(spec.warmup for spec in self.specs)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a name, the order or a definition changes; 16 hex digits."""
        definition = json.dumps([[spec.name, spec.warmup, spec.version] for spec in self.specs])
        return hashlib.sha256(definition.encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def compute_blocks(self, blocks: Iterable[Bars]) -> Iterator[tuple[Times, NDArray[np.float32]]]:
        """The feature table of consecutive blocks of one dataset, in the memory of one block and a warm-up.

        Yields (timestamp [n] epoch ms, rows [n, F]) from the first exact row on; the rows equal those of
        `compute` on the whole dataset, to the last bit.
        """
        tail: Bars | None = None
        for block in blocks:
            known = block if tail is None else concatenate([tail, block])
            if len(known) >= self.warmup:
                yield known.timestamp[self.warmup - 1 :], self.compute(known)[self.warmup - 1 :]
            tail = known.slice(max(0, len(known) - (self.warmup - 1)), None)

    def compute(self, bars: Bars) -> NDArray[np.float32]:
        """The feature table [N, F] float32, C-contiguous, within ±5.

        Rows before warmup-1 are NaN (all columns, so that nobody uses half a row); every later value is
        finite.
        """
        warmup = self.warmup
        table = np.full((len(bars), len(self.specs)), np.nan, dtype=np.float32)
        for start in range(warmup - 1, len(bars), _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, len(bars))
            first = start - (warmup - 1)
            statistics = TrailingStatistics(bars.slice(first, stop))
            for column, spec in enumerate(self.specs):
                values = spec.compute(statistics)[warmup - 1 :]
                if not np.isfinite(values).all():
                    row = start + int(np.argmin(np.isfinite(values)))
                    raise ArithmeticError(
                        f"Feature {spec.name} is not finite at row {row} of {bars!r}: a defect of the feature, since "
                        "every feature must be defined on every valid bar. Please report it with these bars."
                    )
                table[start:stop, column] = np.clip(values, -FEATURE_LIMIT, FEATURE_LIMIT)
        return table
