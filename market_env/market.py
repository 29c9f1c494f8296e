"""One instrument's bars prepared for replay: execution columns, features, and where decisions may start."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.bars import Bars, parse_time
from data.features import FEATURE_LIMIT, FeatureSet, ewma_volatility, trailing_median_volume
from market_env import kernel
from market_env.instrument import Instrument

DEFAULT_WINDOW = 64
_COLUMN = {name: column for column, name in enumerate(kernel.BAR_FIELDS)}


@dataclass(frozen=True, eq=False)
class Market:
    """N bars of one instrument, ready to be traded. All arrays are read-only.

    bars: [N, 8] float64, the columns of `kernel.BAR_FIELDS`; timestamp is the bar's open, epoch ms. sigma
        (EWMA volatility of log returns) and median volume (last 20 bars) are causal: row t knows bars <= t.
    features: [N, F] float32 within +-5, no NaN.
    first_decision: first row at which the feature window is full and the features are past their warm-up.
    """

    instrument: Instrument
    bar_ms: int
    window: int
    first_decision: int
    bars: NDArray[np.float64]
    features: NDArray[np.float32]
    feature_names: tuple[str, ...]
    bars_fingerprint: str
    feature_fingerprint: str

    @classmethod
    def prepare(
        cls,
        bars: Bars,
        features: FeatureSet | None = None,
        instrument: Instrument | None = None,
        *,
        start: str | int | None = None,
        stop: str | int | None = None,
        window: int = DEFAULT_WINDOW,
    ) -> "Market":
        """A market whose decisions lie in [start, stop) (ISO dates or epoch ms; by default all that is possible).

        Bars before `start` are used to warm features up and to fill the first window, never traded. Without
        features the observation window has no columns (F = 0), which is enough to run given targets.
        instrument: by default guessed from the symbol (`Instrument.for_symbol`).
        Raises ValueError if no decision with a bar after it is left.
        """
        instrument = Instrument.for_symbol(bars.symbol) if instrument is None else instrument
        where = f"{bars.symbol} {bars.timeframe}"
        begin = 0 if start is None else int(np.searchsorted(bars.timestamp, parse_time(start)))
        end = len(bars) if stop is None else int(np.searchsorted(bars.timestamp, parse_time(stop)))
        warmup = 1 if features is None else features.warmup
        needed = warmup + window - 1 if features is not None else 1
        first = max(begin, needed - 1)
        if end - first < 2:
            raise ValueError(
                f"{where}: no room to trade: rows {begin} to {end} of {len(bars)} bars, but the first decision needs "
                f"{needed} bars (warm-up {warmup}, window {window}) and one bar after it. Give more bars."
            )
        head = bars.slice(0, end)
        if features is None:
            names: tuple[str, ...] = ()
            table = np.zeros((end, 0), dtype=np.float32)
            feature_fingerprint = "none"
        else:
            names = tuple(features.names)
            table = np.asarray(features.compute(head), dtype=np.float32)
            feature_fingerprint = features.fingerprint
        left = first - (window - 1) if features is not None else first
        matrix = np.stack(
            [
                head.open, head.high, head.low, head.close, head.volume, ewma_volatility(head.close),
                trailing_median_volume(head.volume), head.timestamp.astype(np.float64),
            ],
            axis=1,
        )  # fmt: skip
        return cls.from_arrays(
            matrix[left:],
            table[left:],
            instrument=instrument,
            bar_ms=bars.timeframe.milliseconds,
            window=window,
            first_decision=first - left,
            feature_names=names,
            bars_fingerprint=bars.fingerprint,
            feature_fingerprint=feature_fingerprint,
        )

    @classmethod
    def from_arrays(
        cls,
        bars: NDArray[np.float64],
        features: NDArray[np.float32],
        *,
        instrument: Instrument,
        bar_ms: int,
        window: int,
        first_decision: int,
        feature_names: Sequence[str] | None = None,
        bars_fingerprint: str = "unnamed",
        feature_fingerprint: str = "unnamed",
    ) -> "Market":
        """A market from its arrays (copied and checked); for generated markets and tests.

        Raises ValueError naming the first bad row.
        """
        bars = np.array(bars, dtype=np.float64, order="C")
        features = np.array(features, dtype=np.float32, order="C")
        where = instrument.symbol
        if bars.ndim != 2 or bars.shape[1] != 8 or features.ndim != 2 or len(features) != len(bars):
            raise ValueError(
                f"{where}: expected bars [N, 8] and features [N, F], got {bars.shape} and {features.shape}"
            )
        _check_bars(bars, bar_ms, where)
        wrong = ~(np.abs(features) <= FEATURE_LIMIT)
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"{where}: feature column {column} at row {row} must be a number within +-{FEATURE_LIMIT:g}, "
                f"got {features[row, column]}"
            )
        if not 0 <= first_decision < len(bars) - 1:
            raise ValueError(
                f"{where}: first_decision must leave a bar to fill in, 0 <= {first_decision} < {len(bars) - 1}"
            )
        if features.shape[1] and first_decision < window - 1:
            raise ValueError(f"{where}: first_decision {first_decision} leaves the window of {window} bars unfilled")
        names = tuple(feature_names) if feature_names is not None else tuple(f"f{i}" for i in range(features.shape[1]))
        bars.setflags(write=False)
        features.setflags(write=False)
        return cls(
            instrument=instrument,
            bar_ms=int(bar_ms),
            window=window,
            first_decision=first_decision,
            bars=bars,
            features=features,
            feature_names=names,
            bars_fingerprint=bars_fingerprint,
            feature_fingerprint=feature_fingerprint,
        )

    def __len__(self) -> int:
        return len(self.bars)

    @cached_property
    def bar_rows(self) -> np.ndarray[Any, Any]:
        """`bars` as the [N] structured array the compiled loops read; the same memory."""
        return self.bars.view(kernel.BAR)[:, 0]

    @property
    def symbol(self) -> str:
        """The instrument's name."""
        return self.instrument.symbol

    @cached_property
    def timestamp(self) -> NDArray[np.int64]:
        """Bar opens [N], epoch ms."""
        return self.bars[:, _COLUMN["timestamp"]].astype(np.int64)

    @property
    def open(self) -> NDArray[np.float64]:
        """Opens [N]."""
        return self.bars[:, _COLUMN["open"]]

    @property
    def high(self) -> NDArray[np.float64]:
        """Highs [N]."""
        return self.bars[:, _COLUMN["high"]]

    @property
    def low(self) -> NDArray[np.float64]:
        """Lows [N]."""
        return self.bars[:, _COLUMN["low"]]

    @property
    def close(self) -> NDArray[np.float64]:
        """Closes [N]."""
        return self.bars[:, _COLUMN["close"]]

    @property
    def volume(self) -> NDArray[np.float64]:
        """Volumes [N], units; 0 where unknown."""
        return self.bars[:, _COLUMN["volume"]]

    @property
    def sigma(self) -> NDArray[np.float64]:
        """EWMA volatility of log returns per bar [N]."""
        return self.bars[:, _COLUMN["sigma"]]

    @property
    def median_volume(self) -> NDArray[np.float64]:
        """Median volume of the last 20 bars [N]; 0 where there is none."""
        return self.bars[:, _COLUMN["median_volume"]]

    @cached_property
    def has_volume(self) -> bool:
        """False flags a market without volume (FX quotes): volume cap and impact are off there."""
        return bool((self.volume > 0.0).any())

    @cached_property
    def fingerprint(self) -> str:
        """Hash over everything that determines an episode on this market: 16 hex digits."""
        digest = hashlib.sha256(
            f"{self.instrument.model_dump_json()}\n{self.bar_ms}\n{self.window}\n{self.first_decision}\n"
            f"{self.bars_fingerprint}\n{self.feature_fingerprint}\n".encode()
        )
        digest.update(self.bars.data)
        digest.update(self.features.data)
        return digest.hexdigest()[:16]


def _check_bars(bars: NDArray[np.float64], bar_ms: int, where: str) -> None:
    """Raise ValueError for the first row that breaks the bar contract."""
    open_, high, low, close, volume, sigma, median_volume, timestamp = bars.T
    prices = bars[:, : _COLUMN["volume"]]
    rules = (
        (np.isfinite(prices).all(axis=1) & (prices > 0.0).all(axis=1), "prices must be finite and positive"),
        (
            (low <= np.minimum(open_, close)) & (np.maximum(open_, close) <= high),
            "low <= open, close <= high must hold",
        ),
        (np.isfinite(volume) & (volume >= 0.0), "volume must be finite and >= 0"),
        (np.isfinite(sigma) & (sigma > 0.0), "sigma must be finite and positive"),
        (np.isfinite(median_volume) & (median_volume >= 0.0), "median volume must be finite and >= 0"),
        (
            np.concatenate(([True], np.diff(timestamp) >= bar_ms)) & np.isfinite(timestamp),
            f"timestamps must be sorted, at least {bar_ms} ms apart",
        ),
    )
    if bar_ms <= 0:
        raise ValueError(f"{where}: bar_ms must be positive, got {bar_ms}")
    for good, expectation in rules:
        if not good.all():
            row = int(np.argmin(good))
            found = ", ".join(f"{name} {value:g}" for name, value in zip(kernel.BAR_FIELDS, bars[row], strict=True))
            raise ValueError(f"{where}: {expectation}; row {row} has {found}")
