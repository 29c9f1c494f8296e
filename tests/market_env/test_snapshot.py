"""An account told from outside is seen as the same account carried from bar to bar."""

import numpy as np
import pytest

from market_env.config import MarketConfig
from market_env.env import MarketEnv
from market_env.layout import at
from market_env.snapshot import AccountObserver, AccountSnapshot


def test_a_snapshot_of_an_env_is_what_the_env_shows(random_market, settings):
    config: MarketConfig = settings(observation={"window": 4}, actions={"max_leverage": 2.0})
    env = MarketEnv([random_market(0)], config)
    observer = AccountObserver(config, env.markets[0].instrument)
    observation, _ = env.reset(seed=3)
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(100):
        s = env._block
        held = s[at.units] != 0.0
        entry = (
            {"entry_price": s[at.entry_price], "entry_volatility": s[at.entry_sigma], "bars_held": int(s[at.bars_held])}
            if held
            else {}
        )
        snapshot = AccountSnapshot(
            exposure=s[at.exposure], price=s[at.mark_price], equity=s[at.equity],
            initial_equity=s[at.initial_equity], peak_equity=s[at.peak_equity], last_target=s[at.target],
            last_fill_fraction=s[at.fill_fraction], **entry,
        )  # fmt: skip
        assert observer.observe(snapshot) == pytest.approx(observation["account"], abs=1e-6)
        compared += held
        observation, _, terminated, truncated, _ = env.step(int(rng.integers(0, 5)))
        if terminated or truncated:
            observation, _ = env.reset()
    assert compared > 30
