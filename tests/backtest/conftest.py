"""A market and a scripted policy."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.policy import Decision, Observations, decision_from_actions
from data.bars import Bars
from data.timeframe import Timeframe
from market_env.config import ActionConfig, CostConfig, FillConfig, MarketConfig, ObservationConfig
from market_env.instrument import Instrument
from market_env.market import Market

DAY_MS = 86_400_000


def make_bars(
    close: NDArray[np.float64], *, symbol: str = "TEST", timeframe: str = "1d", gap: float = 0.0, volume: float = 1e6
) -> Bars:
    """Bars whose opens follow the previous close (times 1 + gap), with a small range around both."""
    frame = Timeframe.parse(timeframe)
    open_ = np.concatenate([close[:1], close[:-1] * (1.0 + gap)])
    high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
    timestamp = (
        1_600_041_600_000 // frame.milliseconds * frame.milliseconds + np.arange(len(close)) * frame.milliseconds
    )
    return Bars(symbol, frame, "test", timestamp, open_, high, low, close, np.full(len(close), volume))


@pytest.fixture
def bars_of() -> Callable[..., Bars]:
    return make_bars


@pytest.fixture
def noise_bars() -> Bars:
    """400 days of a market that knows no tomorrow."""
    rng = np.random.default_rng(7)
    return make_bars(100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, 400))))


@pytest.fixture
def market_of() -> Callable[..., Market]:
    """A market without features beyond one column that holds the bar's own log return."""

    def build(bars: Bars, *, window: int = 4, extra: NDArray[np.float64] | None = None) -> Market:
        plain = Market.prepare(bars, None, Instrument(symbol=bars.symbol, asset_class="crypto"))
        returns = np.concatenate([[0.0], np.diff(np.log(bars.close))])
        columns = [np.clip(100.0 * returns, -5, 5)]
        if extra is not None:
            columns.append(np.clip(extra, -5, 5))
        return Market.from_arrays(
            plain.bars,
            np.stack(columns, axis=1).astype(np.float32),
            instrument=plain.instrument,
            bar_ms=plain.bar_ms,
            window=window,
            first_decision=window - 1,
        )

    return build


@pytest.fixture
def spot_config() -> MarketConfig:
    """Flat, half or all in, stochastic fills, 10 bp fee, a short window."""
    return MarketConfig(
        actions=ActionConfig(levels=(0.0, 0.5, 1.0), spot=True),
        costs=CostConfig(taker_fee_bps=10.0),
        observation=ObservationConfig(window=4),
    ).for_evaluation()


@pytest.fixture
def deterministic_config(spot_config: MarketConfig) -> MarketConfig:
    return spot_config.model_copy(update={"fills": FillConfig(mode="deterministic")})


class ScriptedPolicy:
    """Chooses an action from the last row of the window: a function of features [B, F] to actions [B]."""

    num_actions = 3

    def __init__(self, rule: Callable[[NDArray[np.float32]], NDArray[np.int64]]) -> None:
        self.rule = rule

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        return decision_from_actions(self.rule(observations["window"][:, -1]), self.num_actions)


@pytest.fixture
def follow_last_return() -> ScriptedPolicy:
    """All in after a rise, flat after a fall."""
    return ScriptedPolicy(lambda row: np.where(row[:, 0] > 0, 2, 0).astype(np.int64))


@pytest.fixture
def scripted() -> type[ScriptedPolicy]:
    return ScriptedPolicy
