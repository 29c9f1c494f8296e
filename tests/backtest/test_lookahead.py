"""The look-ahead audit: clean where nothing leaks, and able to find what does."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backtest.lookahead import (
    PLANTED,
    Audit,
    PlantedLeak,
    audit,
    audit_features,
    chosen_rows,
    oracle,
    scrambled_after,
)
from data.bars import Bars
from data.features import DEFAULT_FEATURES, FeatureSet
from data.synthetic import martingale
from market_env.config import ActionConfig, MarketConfig
from market_env.instrument import Instrument

WINDOW = 8
CONFIG = MarketConfig(actions=ActionConfig(levels=(-1.0, 0.0, 1.0)))
CONFIG = CONFIG.model_copy(
    update={"observation": CONFIG.observation.model_copy(update={"window": WINDOW})}
).for_evaluation()
INSTRUMENT = Instrument(symbol="MARTINGALE", asset_class="crypto")


@pytest.fixture(scope="module")
def bars() -> Bars:
    return martingale(700, seed=1)


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    return FeatureSet.build(DEFAULT_FEATURES)


class Columns:
    """A user's own features: one column from a function of the closes."""

    warmup = 2

    def __init__(self, name: str, column: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        self.names: Sequence[str] = (name,)
        self._column = column

    def compute(self, bars: Bars) -> NDArray[np.float64]:
        return self._column(np.asarray(bars.close))[:, None]


def test_the_default_features_are_clean_and_have_no_drift(bars: Bars, features: FeatureSet, scripted: Any) -> None:
    policy = scripted(lambda row: (np.abs(row[:, 0]) * 1000).astype(np.int64) % 3)
    found = audit(features, bars, INSTRUMENT, CONFIG, policy=policy)
    assert found.clean
    assert found.drifts == ()
    assert found.decisions >= 50
    assert found.replayed >= 50


def test_a_planted_leak_is_caught_and_named(bars: Bars, features: FeatureSet) -> None:
    found: Audit = audit(PlantedLeak(features), bars, INSTRUMENT, CONFIG)
    assert not found.clean
    assert {leak.name for leak in found.leaks} == {PLANTED}
    assert found.leaks[0].decisions >= 45


@pytest.mark.parametrize(
    "column",
    [
        lambda close: (close - close.mean()) / close.std(),
        lambda close: close / close.max(),
        lambda close: np.append(close[1:], close[-1]) / close,
        lambda close: np.convolve(close, np.ones(3) / 3, "same") / close,
    ],
    ids=["whole-series normalisation", "share of the maximum ever", "next close", "centred average"],
)
def test_every_usual_way_to_leak_is_found(bars: Bars, column: Callable[..., NDArray[np.float64]]) -> None:
    leaks, _ = audit_features(Columns("mine", column), bars, window=WINDOW, rows=chosen_rows(50, 650, 50))
    assert leaks[0].name == "mine"


def test_memory_beyond_the_declared_warmup_is_drift_and_no_leak(bars: Bars) -> None:
    since_ever = Columns("since_ever", lambda close: np.cumsum(close) / np.arange(1, len(close) + 1))
    leaks, drifts = audit_features(since_ever, bars, window=WINDOW, rows=chosen_rows(100, 650, 20))
    assert leaks == ()
    assert [drift.bars for drift in drifts] == [9, 18, 36]


def test_a_decision_that_depends_on_the_future_is_caught(bars: Bars, scripted: Any) -> None:
    """A policy fed by a leaking observation decides otherwise when the future changes."""
    leaking = PlantedLeak(FeatureSet.build(("close_return",)))
    policy = scripted(lambda row: np.where(row[:, -1] > 0, 2, 0).astype(np.int64))
    found = audit(leaking, bars, INSTRUMENT, CONFIG, policy=policy)
    assert any(leak.name == "decision" for leak in found.leaks)


def test_an_oracle_earns_hugely(bars: Bars) -> None:
    small = CONFIG.episode.model_copy(update={"initial_equity": 100.0})  # too small for the volume cap to bind
    earned, sharpe = oracle(bars, INSTRUMENT, CONFIG.model_copy(update={"episode": small}))
    assert earned > 1.0
    assert sharpe is not None
    assert sharpe > 0.3  # per bar


def test_scrambling_keeps_the_past_and_makes_valid_bars(bars: Bars) -> None:
    other = scrambled_after(bars, 300, seed=4)
    for name in ("open", "high", "low", "close", "volume"):
        assert np.array_equal(getattr(bars, name)[:301], getattr(other, name)[:301])
        assert (getattr(bars, name)[301:] != getattr(other, name)[301:]).all()


def test_rows_are_spread_and_at_least_as_many_as_asked() -> None:
    rows = chosen_rows(10, 1000, 50)
    assert len(rows) == 50
    assert (rows[0], rows[-1]) == (10, 999)
    with pytest.raises(ValueError, match="No decision"):
        chosen_rows(5, 5, 50)
