"""The indicators of the `ta` library as features: which are causal, what each remembers, and how it is scaled.

`ta` computes a series from its first bar on, so a recursive indicator depends on where the series starts. Here a row
is computed from a series that starts at an *anchor*: the first bar of a cell of `ANCHOR_CELL` bar lengths on the
time grid. The anchor of a row is the latest one that lies at least the indicator's memory back. It depends on nothing
but the bars themselves, so a row computed live from `warmup` bars and one computed in training from the whole history
run through the same additions in the same order, and are equal to the last bit. The price is one call of `ta` for
each cell; indicators in a default configuration have compiled versions instead (`data.indicators`).

Every function of `ta` is listed: as supported, or as refused with the reason.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from data.bars import Bars
from data.indicators import ema_lags, wilder_lags
from data.kernels import Floats
from data.trailing import FeatureSpec, TrailingStatistics

ANCHOR_CELL: Final = 256

# Longer memories would eat more history than most datasets can spare before the first valid row.
LONGEST_MEMORY: Final = 4096

Parameter = int | float | bool
Parameters = Mapping[str, Parameter]
Scale = Callable[[Floats, Parameters, TrailingStatistics], Floats]

_INPUTS: Final = ("open", "high", "low", "close", "volume")
_REFUSED_PARAMETERS: Final = {
    "fillna": "it invents values, for some indicators from later bars",
    "visual": "it shifts the line against the bars",
    "dropnans": "it drops rows",
}


@dataclass(frozen=True)
class TaIndicator:
    """One supported function of `ta`.

    memory: parameters -> bars (its own included) that decide a row, up to the forgotten weight of recursions.
    scale: brings the textbook value to order one, free of the units of price and volume.
    """

    module: str
    function: str
    memory: Callable[[Parameters], int]
    scale: Scale

    @functools.cached_property
    def signature(self) -> tuple[tuple[str, ...], dict[str, Parameter]]:
        """(names of the input columns, defaults of the parameters), as `ta` declares them."""
        declared = inspect.signature(self._call).parameters
        inputs = tuple(name for name in declared if name in _INPUTS)
        defaults = {
            name: parameter.default
            for name, parameter in declared.items()
            if name not in _INPUTS and name not in _REFUSED_PARAMETERS
        }
        return inputs, defaults

    @functools.cached_property
    def _call(self) -> Callable[..., pd.Series]:
        # ta is imported when an indicator is first used, so that nobody else waits for it.
        function: Callable[..., pd.Series] = getattr(importlib.import_module(f"ta.{self.module}"), self.function)
        return function

    @property
    def meaning(self) -> str:
        """The first line of `ta`'s documentation."""
        return (inspect.getdoc(self._call) or self.function).splitlines()[0]

    def raw(self, bars: Bars, parameters: Parameters) -> Floats:
        """`ta`'s own values [N], recursions started at the first bar, undefined rows as NaN or infinity."""
        columns = {name: pd.Series(getattr(bars, name)) for name in self.signature[0]}
        with np.errstate(all="ignore"):
            values: Floats = self._call(**columns, **parameters).to_numpy(dtype=np.float64)
        return values

    def spec(self, given: Parameters) -> FeatureSpec:
        """The feature with these parameters. Raises `ValueError` for parameters that are unknown or refused."""
        parameters = {**self.signature[1], **self._checked(given)}
        memory = self.memory(parameters)
        if memory > LONGEST_MEMORY:
            raise ValueError(
                f"ta:{self.function}: with {_spell(parameters)} it remembers {memory:,} bars; at most "
                f"{LONGEST_MEMORY:,} are supported. Use shorter windows."
            )
        return FeatureSpec(
            name=f"ta:{self.function}({_spell(parameters)})" if parameters else f"ta:{self.function}",
            # The nearest anchor that is far enough back may be one cell further, and to recognise it as the first
            # bar of its cell takes the bar before it.
            warmup=memory + ANCHOR_CELL,
            compute=functools.partial(self._compute, parameters, memory),
            meaning=self.meaning,
            anchored=True,
        )

    def _checked(self, given: Parameters) -> Parameters:
        defaults = self.signature[1]
        for name, value in given.items():
            if name in _REFUSED_PARAMETERS:
                raise ValueError(f"ta:{self.function}: {name} is refused, because {_REFUSED_PARAMETERS[name]}.")
            if name not in defaults:
                known = ", ".join(defaults) or "none"
                raise ValueError(f"ta:{self.function}: unknown parameter {name!r}; expected {known}.")
            if name == "offset" and value < 0:
                raise ValueError(f"ta:{self.function}: offset {value} shows later bars (look-ahead); expected ≥ 0.")
            whole = isinstance(defaults[name], int) and not isinstance(defaults[name], bool)
            if whole and name != "offset" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"ta:{self.function}: {name} is {value!r}, expected a whole number of bars ≥ 1.")
        return given

    def _compute(self, parameters: Parameters, memory: int, statistics: TrailingStatistics) -> Floats:
        bars = statistics.bars
        raw = np.full(len(bars), np.nan)
        anchors = anchor_rows(bars)
        for position, anchor in enumerate(anchors):
            following = anchors[position + 1] if position + 1 < len(anchors) else len(bars)
            first = anchor + memory - 1
            stop = min(following + memory - 1, len(bars))
            if first < stop:
                raw[first:stop] = self.raw(bars.slice(anchor, stop), parameters)[memory - 1 :]
        with np.errstate(all="ignore"):
            scaled = self.scale(raw, parameters, statistics)
        # Undefined values (0/0 on a constant price or without volume) are neutral.
        scaled[~np.isfinite(scaled)] = 0.0
        return scaled


def anchor_rows(bars: Bars) -> list[int]:
    """Rows that are the first of their cell of the time grid. Row 0 is none: the bar before it is not known."""
    cell = (bars.timestamp - bars.timeframe.origin_ms) // (ANCHOR_CELL * bars.timeframe.milliseconds)
    return [int(row) + 1 for row in np.flatnonzero(np.diff(cell))]


def _spell(parameters: Parameters) -> str:
    return ",".join(f"{name}={value}" for name, value in parameters.items())


def _centred(centre: float, half_range: float) -> Scale:
    """For bounded oscillators: (x - centre) / half_range."""
    return lambda raw, parameters, statistics: (raw - centre) / half_range


def _level(window: str) -> Scale:
    """For prices: distance from the close in units of the price change expected over the window."""
    return lambda raw, parameters, statistics: (
        (raw / statistics.bars.close - 1.0) / (statistics.volatility * np.sqrt(parameters[window]))
    )


def _difference(window: str) -> Scale:
    """For price differences: in units of the price change expected over the window."""
    return lambda raw, parameters, statistics: (
        raw / (statistics.bars.close * statistics.volatility * np.sqrt(parameters[window]))
    )


def _percent(window: str) -> Scale:
    """For percentages of price: in units of the change expected over the window."""
    return lambda raw, parameters, statistics: raw / (100.0 * statistics.volatility * np.sqrt(parameters[window]))


def _bar_percent(raw: Floats, parameters: Parameters, statistics: TrailingStatistics) -> Floats:
    return raw / (100.0 * statistics.volatility)


def _bar_range(raw: Floats, parameters: Parameters, statistics: TrailingStatistics) -> Floats:
    return raw / (statistics.bars.close * statistics.volatility)


def _money_per_bar(raw: Floats, parameters: Parameters, statistics: TrailingStatistics) -> Floats:
    """For price difference × volume."""
    return raw / (statistics.bars.close * statistics.volatility * statistics.median_volume)


def _ease(raw: Floats, parameters: Parameters, statistics: TrailingStatistics) -> Floats:
    """For squared price difference / volume, which ta multiplies by 1e8."""
    price_change = statistics.bars.close * statistics.volatility
    return raw * 1e-8 * statistics.median_volume / price_change**2


def _mass(raw: Floats, parameters: Parameters, statistics: TrailingStatistics) -> Floats:
    """The mass index sums `window_slow` ratios that lie within a few percent of 1."""
    return 10.0 * (raw / parameters["window_slow"] - 1.0)


def _kst(raw: Floats, parameters: Parameters, statistics: TrailingStatistics) -> Floats:
    """KST adds rates of change with weights 1 + 2 + 3 + 4."""
    expected_change: Floats = statistics.volatility * np.sqrt(parameters["roc4"])
    return raw / (10.0 * 100.0 * expected_change)


_FIFTY: Final = _centred(50.0, 50.0)


def _bars_of(*names: str, extra: int = 0) -> Callable[[Parameters], int]:
    """Memory of indicators that look back on windows one after another."""
    return lambda p: sum(int(p[name]) for name in names) + extra


def _longest(*names: str, extra: int = 0) -> Callable[[Parameters], int]:
    return lambda p: max(int(p[name]) for name in names) + extra


def _wilder(window: str, times: int = 1) -> Callable[[Parameters], int]:
    return lambda p: times * wilder_lags(int(p[window])) + 1


def _emas(*spans: str, extra: int = 0) -> Callable[[Parameters], int]:
    """Memory of exponential averages taken one after another."""
    return lambda p: sum(ema_lags(int(p[span])) for span in spans) + extra


def _true_range_memory(p: Parameters) -> int:
    """Wilder's average that starts from a simple mean."""
    return wilder_lags(int(p["window"])) + int(p["window"])


def _keltner(p: Parameters) -> int:
    if p["original_version"]:
        return int(p["window"])
    return max(ema_lags(int(p["window"])), wilder_lags(int(p["window_atr"])) + int(p["window_atr"]))


def _stochastic_rsi(*smooth: str) -> Callable[[Parameters], int]:
    return lambda p: wilder_lags(int(p["window"])) + int(p["window"]) + sum(int(p[name]) for name in smooth)


def _rates_of_change(p: Parameters) -> int:
    memory = max(int(p[f"roc{i}"]) + int(p[f"window{i}"]) for i in range(1, 5))
    return memory + int(p.get("nsig", 0))


def _schaff(p: Parameters) -> int:
    spans = (int(p[name]) for name in ("window_slow", "smooth1", "smooth2"))
    return sum(map(ema_lags, spans)) + 2 * int(p["cycle"])


_SUPPORTED: Final = (
    TaIndicator("momentum", "awesome_oscillator", _longest("window1", "window2"), _difference("window2")),
    TaIndicator("momentum", "ppo", _emas("window_slow"), _percent("window_slow")),
    TaIndicator("momentum", "ppo_signal", _emas("window_slow", "window_sign"), _percent("window_slow")),
    TaIndicator("momentum", "ppo_hist", _emas("window_slow", "window_sign"), _percent("window_slow")),
    TaIndicator("momentum", "pvo", _emas("window_slow"), _centred(0.0, 50.0)),
    TaIndicator("momentum", "pvo_signal", _emas("window_slow", "window_sign"), _centred(0.0, 50.0)),
    TaIndicator("momentum", "pvo_hist", _emas("window_slow", "window_sign"), _centred(0.0, 50.0)),
    TaIndicator("momentum", "roc", _bars_of("window", extra=1), _percent("window")),
    TaIndicator("momentum", "rsi", _wilder("window"), _FIFTY),
    TaIndicator("momentum", "stoch", _bars_of("window"), _FIFTY),
    TaIndicator("momentum", "stoch_signal", _bars_of("window", "smooth_window"), _FIFTY),
    TaIndicator("momentum", "stochrsi", _stochastic_rsi(), _centred(0.5, 0.5)),
    TaIndicator("momentum", "stochrsi_k", _stochastic_rsi("smooth1"), _centred(0.5, 0.5)),
    TaIndicator("momentum", "stochrsi_d", _stochastic_rsi("smooth1", "smooth2"), _centred(0.5, 0.5)),
    TaIndicator("momentum", "tsi", _emas("window_slow", "window_fast", extra=1), _centred(0.0, 100.0)),
    TaIndicator("momentum", "ultimate_oscillator", _longest("window1", "window2", "window3", extra=1), _FIFTY),
    TaIndicator("momentum", "williams_r", _bars_of("lbp"), _centred(-50.0, 50.0)),
    TaIndicator("volatility", "average_true_range", _true_range_memory, _bar_range),
    TaIndicator("volatility", "bollinger_hband", _bars_of("window"), _level("window")),
    TaIndicator("volatility", "bollinger_hband_indicator", _bars_of("window"), _centred(0.0, 1.0)),
    TaIndicator("volatility", "bollinger_lband", _bars_of("window"), _level("window")),
    TaIndicator("volatility", "bollinger_lband_indicator", _bars_of("window"), _centred(0.0, 1.0)),
    TaIndicator("volatility", "bollinger_mavg", _bars_of("window"), _level("window")),
    TaIndicator("volatility", "bollinger_pband", _bars_of("window"), _centred(0.5, 0.5)),
    TaIndicator("volatility", "bollinger_wband", _bars_of("window"), _percent("window")),
    TaIndicator("volatility", "donchian_channel_hband", _bars_of("window", "offset"), _level("window")),
    TaIndicator("volatility", "donchian_channel_lband", _bars_of("window", "offset"), _level("window")),
    TaIndicator("volatility", "donchian_channel_mband", _bars_of("window", "offset"), _level("window")),
    TaIndicator("volatility", "donchian_channel_pband", _bars_of("window", "offset"), _centred(0.5, 0.5)),
    TaIndicator("volatility", "donchian_channel_wband", _bars_of("window", "offset"), _percent("window")),
    TaIndicator("volatility", "keltner_channel_hband", _keltner, _level("window")),
    TaIndicator("volatility", "keltner_channel_hband_indicator", _keltner, _centred(0.0, 1.0)),
    TaIndicator("volatility", "keltner_channel_lband", _keltner, _level("window")),
    TaIndicator("volatility", "keltner_channel_lband_indicator", _keltner, _centred(0.0, 1.0)),
    TaIndicator("volatility", "keltner_channel_mband", _keltner, _level("window")),
    TaIndicator("volatility", "keltner_channel_pband", _keltner, _centred(0.5, 0.5)),
    TaIndicator("volatility", "keltner_channel_wband", _keltner, _percent("window")),
    TaIndicator("volatility", "ulcer_index", lambda p: 2 * int(p["window"]), _percent("window")),
    TaIndicator("trend", "adx", _wilder("window", times=2), _FIFTY),
    TaIndicator("trend", "adx_neg", _wilder("window"), _centred(25.0, 25.0)),
    TaIndicator("trend", "adx_pos", _wilder("window"), _centred(25.0, 25.0)),
    TaIndicator("trend", "aroon_down", _bars_of("window", extra=1), _FIFTY),
    TaIndicator("trend", "aroon_up", _bars_of("window", extra=1), _FIFTY),
    TaIndicator("trend", "cci", _bars_of("window"), _centred(0.0, 100.0)),
    TaIndicator("trend", "dpo", lambda p: max(int(p["window"]), int(0.5 * p["window"] + 1) + 1), _difference("window")),
    TaIndicator("trend", "ema_indicator", _emas("window"), _level("window")),
    TaIndicator("trend", "ichimoku_a", _longest("window1", "window2"), _level("window2")),
    TaIndicator("trend", "ichimoku_b", _longest("window2", "window3"), _level("window3")),
    TaIndicator("trend", "ichimoku_base_line", _longest("window1", "window2"), _level("window2")),
    TaIndicator("trend", "ichimoku_conversion_line", _longest("window1", "window2"), _level("window1")),
    TaIndicator("trend", "kst", _rates_of_change, _kst),
    TaIndicator("trend", "kst_sig", _rates_of_change, _kst),
    TaIndicator("trend", "macd", _emas("window_slow"), _difference("window_slow")),
    TaIndicator("trend", "macd_diff", _emas("window_slow", "window_sign"), _difference("window_sign")),
    TaIndicator("trend", "macd_signal", _emas("window_slow", "window_sign"), _difference("window_slow")),
    TaIndicator("trend", "mass_index", lambda p: 2 * ema_lags(int(p["window_fast"])) + int(p["window_slow"]), _mass),
    TaIndicator("trend", "sma_indicator", _bars_of("window"), _level("window")),
    TaIndicator("trend", "stc", _schaff, _FIFTY),
    TaIndicator("trend", "trix", lambda p: 3 * ema_lags(int(p["window"])) + 1, _bar_percent),
    TaIndicator("trend", "vortex_indicator_neg", _bars_of("window", extra=1), _centred(1.0, 0.5)),
    TaIndicator("trend", "vortex_indicator_pos", _bars_of("window", extra=1), _centred(1.0, 0.5)),
    TaIndicator("trend", "wma_indicator", _bars_of("window"), _level("window")),
    TaIndicator("volume", "chaikin_money_flow", _bars_of("window"), _centred(0.0, 1.0)),
    TaIndicator("volume", "ease_of_movement", lambda p: 2, _ease),
    TaIndicator("volume", "force_index", _emas("window", extra=1), _money_per_bar),
    TaIndicator("volume", "money_flow_index", _bars_of("window", extra=1), _FIFTY),
    TaIndicator("volume", "sma_ease_of_movement", _bars_of("window", extra=1), _ease),
    TaIndicator("volume", "volume_weighted_average_price", _bars_of("window"), _level("window")),
    TaIndicator("others", "daily_log_return", lambda p: 2, _bar_percent),
    TaIndicator("others", "daily_return", lambda p: 2, _bar_percent),
)  # fmt: skip

SUPPORTED: Final[Mapping[str, TaIndicator]] = {indicator.function: indicator for indicator in _SUPPORTED}

_SUM: Final = "it sums from the first bar on, so its value depends on where the history starts (unbounded memory)"
_PARABOLIC: Final = (
    "it forgets only when the trend turns, which no number of bars guarantees (unbounded memory), and it is undefined "
    "on one side of every trend"
)
REFUSED: Final[Mapping[str, str]] = {
    "kama": "where the price goes nowhere it smooths by (2/31)² per bar and forgets only after about 7,200 bars",
    "psar_up": _PARABOLIC,
    "psar_down": _PARABOLIC,
    "psar_up_indicator": _PARABOLIC,
    "psar_down_indicator": _PARABOLIC,
    "acc_dist_index": _SUM,
    "on_balance_volume": _SUM,
    "volume_price_trend": _SUM,
    "negative_volume_index": "it multiplies from the first bar on, so its value depends on where the history starts",
    "cumulative_return": "it compares with the first bar, so its value depends on where the history starts",
}


def ta_spec(name: str, parameters: Parameters) -> FeatureSpec:
    """The feature "ta:name". Raises `ValueError` for refused and unknown names, with the reason."""
    if name in REFUSED:
        raise ValueError(f"ta:{name} is refused: {REFUSED[name]}.")
    if name not in SUPPORTED:
        raise ValueError(
            f"Unknown indicator ta:{name}. Expected a function of the ta library that "
            '"python -m data features --list" shows as supported.'
        )
    return SUPPORTED[name].spec(parameters)
