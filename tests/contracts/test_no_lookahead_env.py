"""Guard 1, environment: bars after t change nothing an agent sees, may do, orders or is told at or before t."""

from dataclasses import replace

import numpy as np
import pytest

from data.bars import Bars
from data.features import FeatureSet
from data.synthetic import regime
from market_env.config import MarketConfig
from market_env.env import MarketEnv
from market_env.market import Market
from market_env.vector import MarketVectorEnv

COUNT, WINDOW = 480, 16
FEATURES = FeatureSet.build()


def scrambled(bars: Bars, t: int, seed: int) -> Bars:
    """The same bars up to t, and unrelated ones after it."""
    rng = np.random.default_rng(seed)
    rest = len(bars) - t - 1
    close = 70.0 * np.exp(np.cumsum(0.05 * rng.standard_normal(rest)))
    open_ = close * np.exp(0.03 * rng.standard_normal(rest))

    def spliced(column, future):
        return np.concatenate([column[: t + 1], future])

    return replace(
        bars,
        open=spliced(bars.open, open_),
        high=spliced(bars.high, np.maximum(open_, close) * 1.02),
        low=spliced(bars.low, np.minimum(open_, close) * 0.98),
        close=spliced(bars.close, close),
        volume=spliced(bars.volume, rng.lognormal(8.0, 1.0, rest)),
    )


def config() -> MarketConfig:
    return MarketConfig.model_validate(
        {"observation": {"window": WINDOW}, "episode": {"horizon": None, "random_start": False}}
    )


def prepared(bars: Bars) -> Market:
    return Market.prepare(bars, FEATURES, window=WINDOW)


def seen_until(bars: Bars, row: int, market: Market | None = None) -> list[object]:
    """All that an env says while its decision bar is at most `row` of `bars`, and the order it holds at the end."""
    market = prepared(bars) if market is None else market
    offset = len(bars) - len(market)
    env = MarketEnv([market], config())
    actions = np.random.default_rng(0).integers(0, 5, COUNT)
    observation, info = env.reset(seed=5)
    seen: list[object] = []
    reward = 0.0
    while True:
        told = {name: value for name, value in info.items() if name != "action_mask"}
        seen.append((observation["window"].tobytes(), observation["account"].tobytes(), reward, told))
        seen.append(info["action_mask"].tolist())
        if info["t"] + offset == row:
            break
        observation, reward, _, _, info = env.step(actions[info["t"]])
    # The quantity decided at the last bar seen is fixed there; the next record only reports it.
    seen.append(env.step(4)[4]["qty_ordered"])
    return seen


@pytest.fixture(scope="module")
def bars() -> Bars:
    return regime(COUNT, seed=1)


@pytest.mark.parametrize("row", [300, 341, 402, 470])
def test_the_future_changes_nothing_the_env_has_said(bars, row):
    assert seen_until(bars, row) == seen_until(scrambled(bars, row, seed=9), row)


@pytest.mark.parametrize("obs_mode", ["window", "index"])
def test_the_future_changes_nothing_the_vector_env_has_said(bars, obs_mode):
    row = 400

    def told(source: Bars) -> list[bytes]:
        market = prepared(source)
        envs = MarketVectorEnv([market], config(), num_envs=8, obs_mode=obs_mode)
        observations, infos = envs.reset(seed=5)
        actions = np.random.default_rng(1).integers(0, 5, (COUNT, 8))
        seen = []
        for t in range(market.first_decision, row - (COUNT - len(market)) + 1):
            seen += [array.tobytes() for array in envs.decode(observations).values()]
            seen += [infos[name].tobytes() for name in sorted(infos) if name != "instrument"]
            observations, rewards, _, _, infos = envs.step(actions[t])
            if t < row - (COUNT - len(market)):
                seen.append(rewards.tobytes())
        return [*seen, infos["qty_ordered"].tobytes()]

    assert told(bars) == told(scrambled(bars, row, seed=9))


def test_bars_before_the_start_only_warm_features_up(bars):
    """Older history than the warm-up changes nothing either: the market may be cut on both sides."""
    late = Market.prepare(bars, FEATURES, window=WINDOW, start=int(bars.timestamp[400]))
    assert late.timestamp[late.first_decision] == bars.timestamp[400]
    assert len(late) == COUNT - 400 + WINDOW - 1


def test_a_planted_leak_is_caught(bars):
    """The next bar's close as a feature: the very fault this guard is for."""

    def leaky(source: Bars) -> Market:
        market = prepared(source)
        features = market.features.copy()
        features[:-1, 0] = np.clip(100.0 * np.diff(np.log(market.close)), -5, 5)
        return Market.from_arrays(
            market.bars, features, instrument=market.instrument, bar_ms=market.bar_ms, window=market.window,
            first_decision=market.first_decision,
        )  # fmt: skip

    other = scrambled(bars, 402, seed=9)
    assert seen_until(bars, 402) == seen_until(other, 402)
    assert seen_until(bars, 402, leaky(bars)) != seen_until(other, 402, leaky(other))
