"""Guard 3: the same bars and seed through env, vector env of any size, session and series give the same ledger.

To the last bit of a float64. (The backtest and the paper trader drive the session; their own tests go on from here.)
"""

import math

import numpy as np
import pytest

from data.features import FeatureSet
from data.synthetic import regime
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.env import MarketEnv
from market_env.instrument import Instrument
from market_env.layout import RECORD_FIELDS
from market_env.market import Market
from market_env.session import BarInput, TradingSession, run_targets
from market_env.vector import MarketVectorEnv

CONFIGS = {
    "default": {},
    "levered perpetual": {"actions": {"max_leverage": 5.0}, "costs": {"perpetual": True, "taker_fee_bps": 4.0}},
    "limit orders": {"fills": {"order_type": "limit", "limit_offset_bps": 20.0}},
    "frequent accidents": {"fills": {"reject_probability": 0.2, "partial_probability": 0.3}},
    "deterministic": {"fills": {"mode": "deterministic"}},
}
STEPS = 300
COLUMNS = [name for name in RECORD_FIELDS if name != "t"]


@pytest.fixture(scope="module")
def market() -> Market:
    bars = regime(900, seed=4, volatility=0.02)
    return Market.prepare(bars, FeatureSet.build(), Instrument(symbol=bars.symbol, lot_size=1e-4))


def configured(name: str) -> MarketConfig:
    whole = {"episode": {"horizon": None, "random_start": False}}
    return MarketConfig.model_validate(CONFIGS[name] | whole)


def env_ledger(market: Market, config: MarketConfig, actions: np.ndarray, seed: int):
    env = MarketEnv([market], config)
    observation, info = env.reset(seed=seed)
    records, accounts, rewards = [info], [observation["account"]], []
    for action in actions:
        observation, reward, terminated, _, info = env.step(action)
        records.append(info)
        accounts.append(observation["account"])
        rewards.append(reward)
        if terminated:
            break
    return records, accounts, rewards


@pytest.mark.parametrize("name", CONFIGS)
def test_env_session_and_series_keep_the_same_books(market, name):
    config, seed = configured(name), 17
    grid = ActionGrid.build(config.actions)
    actions = np.random.default_rng(1).integers(0, len(grid), STEPS)
    records, accounts, _ = env_ledger(market, config, actions, seed)
    first = market.first_decision
    targets = np.full(len(market), np.nan)
    targets[first : first + STEPS] = grid.targets[actions]
    ledger = run_targets(market, targets, config, [3, seed])

    session = TradingSession(config, market.instrument, seed)
    for step, info in enumerate(records):
        t = first + step
        row = [float(value) for value in market.bars[t, :5]]
        record = session.on_bar(BarInput(int(market.timestamp[t]), *row, market.bar_ms))
        for column in COLUMNS:
            assert getattr(record, column) == info[column], (step, column)
            if column != "timestamp":
                assert ledger[column][1, step] == info[column], (step, column)
        assert session.account_observation().tobytes() == accounts[step].tobytes(), step
        if step < STEPS:
            session.submit(
                float(grid.targets[actions[step]]), sigma=float(market.sigma[t]),
                median_volume=float(market.median_volume[t]),
            )  # fmt: skip
    assert len(records) > 50


@pytest.mark.parametrize("batch", [1, 7, 256])
@pytest.mark.parametrize("noise", [0, 12345])
def test_row_i_of_any_batch_is_the_single_environment(market, batch, noise):
    """Over several episodes with drawn starts and autoreset; whatever the global generator says."""
    np.random.seed(noise)  # noqa: NPY002 - the global generator is what must not matter
    config = MarketConfig.model_validate({"episode": {"horizon": 25}, "randomisation": {"enabled": True}})
    envs = MarketVectorEnv([market], config, num_envs=batch)
    actions = np.random.default_rng(2).integers(0, 5, (80, batch))
    observations, infos = envs.reset(seed=100)
    history = [(observations, np.zeros(batch), None, None, infos)]
    history += [envs.step(row) for row in actions]
    for i in sorted({0, batch // 2, batch - 1}):
        env = MarketEnv([market], config)
        observation, info = env.reset(seed=100 + i)
        reward, terminated, truncated = 0.0, False, False
        for step, (seen, rewards, ended, cut, all_infos) in enumerate(history):
            if step > 0 and (terminated or truncated):
                observation, info = env.reset()
                reward, terminated, truncated = 0.0, False, False
            elif step > 0:
                observation, reward, terminated, truncated, info = env.step(actions[step - 1, i])
            assert seen["window"][i].tobytes() == observation["window"].tobytes()
            assert seen["account"][i].tobytes() == observation["account"].tobytes()
            assert rewards[i] == reward
            if step > 0:
                assert (ended[i], cut[i]) == (terminated, truncated)
            for column in (*RECORD_FIELDS, "instrument"):
                assert all_infos[column][i] == info[column], (step, column)


def test_batches_of_different_sizes_share_their_rows(market):
    """B = 7 and B = 256 side by side: vector draws and single draws must be the same numbers."""
    config = MarketConfig()
    actions = np.random.default_rng(3).integers(0, 5, (120, 256))
    ledgers = []
    for batch in (1, 7, 256):
        envs = MarketVectorEnv([market], config, num_envs=batch, obs_mode="index")
        envs.reset(seed=0)
        ledgers.append(np.array([envs.step(row[:batch])[-1]["equity"][0] for row in actions]))
    assert ledgers[0].tolist() == ledgers[1].tolist() == ledgers[2].tolist()
    assert not math.isclose(ledgers[0][-1], 10_000.0)
