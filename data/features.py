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
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from data import indicators
from data.bars import FINGERPRINT_DIGITS, Bars, concatenate, end_to_end
from data.kernels import Floats
from data.quality import Times
from data.ta_catalog import Parameter, ta_spec
from data.timeframe import DAY_MS, FIRST_MONDAY_MS, WEEK_MS
from data.trailing import (
    FAST_VOLATILITY_HALF_LIFE,
    HALF_LIVES_KEPT,
    VOLATILITY_HALF_LIFE,
    VOLUME_WINDOW,
    FeatureSpec,
    TrailingStatistics,
    ewma_volatility,
    log_returns,
    trailing_median_volume,
)

__all__ = [
    "COMPILED_FEATURES",
    "DEFAULT_FEATURES",
    "FEATURE_LIMIT",
    "FeatureSet",
    "FeatureSpec",
    "ewma_volatility",
    "feature_spec",
    "log_returns",
    "trailing_median_volume",
]

# Every feature is clipped here: the observation space is a box of this half-width (design/market.md).
FEATURE_LIMIT: Final = 5.0

# Rows computed at a time. With finite memory a table computed in pieces equals one computed at once, and
# pieces of this size keep the intermediate columns in the second-level cache.
_CHUNK_ROWS: Final = 16_384


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


def _rsi(window: int = 14) -> FeatureSpec:
    return FeatureSpec(
        f"rsi(window={window})",
        indicators.wilder_lags(window) + 1,
        lambda statistics: (indicators.rsi(statistics.bars.close, window) - 50.0) / 50.0,
        "relative strength index, -1 to 1",
    )


def _macd_histogram(fast: int = 12, slow: int = 26, signal: int = 9, atr: int = 14) -> FeatureSpec:
    def compute(statistics: TrailingStatistics) -> Floats:
        bars = statistics.bars
        histogram = indicators.macd_histogram(bars.close, fast, slow, signal)
        mean_range = indicators.average_true_range(bars.high, bars.low, bars.close, atr)
        return np.divide(histogram, mean_range, out=np.zeros(len(bars)), where=mean_range > 0)

    spans = indicators.ema_lags(max(fast, slow)) + indicators.ema_lags(signal) - 1
    return FeatureSpec(
        f"macd_histogram(fast={fast},slow={slow},signal={signal},atr={atr})",
        max(spans, indicators.wilder_lags(atr) + 1),
        compute,
        "MACD histogram / average true range",
    )


def _bollinger_position(window: int = 20, deviations: float = 2.0) -> FeatureSpec:
    return FeatureSpec(
        f"bollinger_position(window={window},deviations={deviations:g})",
        window,
        lambda statistics: 2.0 * indicators.bollinger_position(statistics.bars.close, window, float(deviations)) - 1.0,
        "place of the close between the Bollinger bands, -1 to 1 inside",
    )


def _adx(window: int = 14) -> FeatureSpec:
    def compute(statistics: TrailingStatistics) -> Floats:
        bars = statistics.bars
        return (indicators.adx(bars.high, bars.low, bars.close, window) - 50.0) / 50.0

    warmup = 2 * indicators.wilder_lags(window)
    return FeatureSpec(f"adx(window={window})", warmup, compute, "average directional index, -1 to 1")


def _stochastic(window: int = 14) -> FeatureSpec:
    def compute(statistics: TrailingStatistics) -> Floats:
        bars = statistics.bars
        return (indicators.stochastic(bars.high, bars.low, bars.close, window) - 50.0) / 50.0

    return FeatureSpec(f"stochastic(window={window})", window, compute, "stochastic oscillator %K, -1 to 1")


def _money_flow_index(window: int = 14) -> FeatureSpec:
    def compute(statistics: TrailingStatistics) -> Floats:
        bars = statistics.bars
        index = indicators.money_flow_index(bars.high, bars.low, bars.close, bars.volume, window)
        return (index - 50.0) / 50.0

    return FeatureSpec(f"money_flow_index(window={window})", window + 1, compute, "money flow index, -1 to 1")


_INDICATORS: Final[Mapping[str, Callable[..., FeatureSpec]]] = {
    "rsi": _rsi,
    "macd_histogram": _macd_histogram,
    "bollinger_position": _bollinger_position,
    "adx": _adx,
    "stochastic": _stochastic,
    "money_flow_index": _money_flow_index,
}

# All features that need no parameter spelled out and no `ta`.
COMPILED_FEATURES: Final[tuple[str, ...]] = (*DEFAULT_FEATURES, *_INDICATORS)

_NAME: Final = re.compile(r"(?P<ta>ta:)?(?P<name>[a-z][a-z0-9_]*)(\((?P<parameters>[^()]*)\))?")


def feature_spec(text: str) -> FeatureSpec:
    """The feature written as "close_return", "rsi(window=14)" or, computed by the `ta` library,
    "ta:cci(window=20)".

    Parameters left out have their defaults. Raises `ValueError` saying what was expected.
    """
    match = _NAME.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError(f'Feature {text!r}: expected a name such as close_return, rsi(window=14) or "ta:cci".')
    name, parameters = match["name"], _parse_parameters(text, match["parameters"])
    if match["ta"]:
        return ta_spec(name, parameters)
    if name in _OWN_FEATURES and not parameters:
        return _OWN_FEATURES[name]
    if name in _OWN_FEATURES:
        raise ValueError(f"Feature {text!r}: {name} takes no parameters.")
    if name not in _INDICATORS:
        raise ValueError(
            f"Unknown feature {text!r}. Expected one of {', '.join(COMPILED_FEATURES)}, or ta:NAME for an indicator of "
            'the ta library. "python -m data features --list" shows them all.'
        )
    build = _INDICATORS[name]
    defaults = {p.name: p.default for p in inspect.signature(build).parameters.values()}
    for key, value in parameters.items():
        if key not in defaults:
            raise ValueError(f"Feature {text!r}: unknown parameter {key!r}; expected {', '.join(defaults)}.")
        whole = isinstance(defaults[key], int)
        if isinstance(value, bool) or not 0 < value < math.inf or (whole and (not isinstance(value, int) or value < 2)):
            expected = "a whole number of bars from 2 on" if whole else "a number above 0"
            raise ValueError(f"Feature {text!r}: {key} is {value!r}, expected {expected}.")
    return build(**parameters)


def _parse_parameters(feature: str, text: str | None) -> dict[str, Parameter]:
    """{"window": 14} from "window=14"; values are whole numbers, decimals, true or false."""
    parameters: dict[str, Parameter] = {}
    for part in text.split(",") if text else ():
        key, _, value = part.partition("=")
        if not key or not value or key in parameters:
            raise ValueError(f"Feature {feature!r}: expected NAME=VALUE once for each parameter, found {part!r}.")
        try:
            parameters[key] = value.lower() == "true" if value.lower() in ("true", "false") else _number(value)
        except ValueError:
            raise ValueError(f"Feature {feature!r}: {key} is {value!r}, expected a number, true or false.") from None
    return parameters


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclass(frozen=True)
class FeatureSet:
    """The columns of an observation, in order."""

    specs: tuple[FeatureSpec, ...]

    @classmethod
    def build(cls, names: Sequence[str] = DEFAULT_FEATURES) -> FeatureSet:
        """The features of these names. Raises `ValueError` on an unknown or repeated name and on an empty
        list."""
        specs = tuple(feature_spec(name) for name in names)
        canonical = [spec.name for spec in specs]
        repeated = {name for name in canonical if canonical.count(name) > 1}
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

    def last_rows(self, series: Sequence[Bars], count: int) -> NDArray[np.float32]:
        """The last `count` rows of the feature tables of several series of one timeframe: [len(series), count, F].

        Equal to `compute(bars)[-count:]` of each to the last bit, at the price of one table: with finite memory it
        does not matter what stands before the bars a row depends on, so the series are computed as if they were
        one. Raises `ValueError` for a series of fewer than count + warmup - 1 bars.
        """
        needed = count + self.warmup - 1
        for bars in series:
            if len(bars) < needed:
                raise ValueError(f"{bars!r}: {count} rows need {needed} bars, found {len(bars)}.")
        tails = [bars.slice(len(bars) - needed, None) for bars in series]
        if any(spec.anchored for spec in self.specs):
            return np.stack([self.compute(bars)[-count:] for bars in tails])
        together = max(1, _CHUNK_ROWS // needed)
        table = np.empty((len(series), count, len(self.specs)), dtype=np.float32)
        for first in range(0, len(tails), together):
            part = tails[first : first + together]
            statistics = TrailingStatistics(part[0] if len(part) == 1 else end_to_end(part))
            for column, spec in enumerate(self.specs):
                values = spec.compute(statistics).reshape(len(part), needed)[:, -count:]
                if not np.isfinite(values).all():
                    row = int(np.argmin(np.isfinite(values).all(axis=1)))
                    raise _not_finite(spec, part[row])
                np.clip(values, -FEATURE_LIMIT, FEATURE_LIMIT, out=values)
                table[first : first + len(part), :, column] = values
        return table

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
                    raise _not_finite(spec, bars, start + int(np.argmin(np.isfinite(values))))
                table[start:stop, column] = np.clip(values, -FEATURE_LIMIT, FEATURE_LIMIT)
        return table


def _not_finite(spec: FeatureSpec, bars: Bars, row: int | None = None) -> ArithmeticError:
    place = "in" if row is None else f"at row {row} of"
    return ArithmeticError(
        f"Feature {spec.name} is not finite {place} {bars!r}: a defect of the feature, since every feature must be "
        "defined on every valid bar. Please report it with these bars."
    )
