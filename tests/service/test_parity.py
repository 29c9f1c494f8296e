"""The service decides what the environment's agent would decide: one road from bars to a decision."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from data.bars import Bars
from market_env.env import MarketEnv
from market_env.market import Market
from service.model import ServedModel
from service.schemas import ActRequest

Json = dict[str, Any]


@pytest.fixture
def env(served: ServedModel, sample: Bars) -> MarketEnv:
    market = Market.prepare(sample, served.features, window=served.window)
    return MarketEnv([market], served.experiment.market.for_evaluation(), seed=5)


def test_along_an_episode_the_service_answers_as_the_policy_does_on_the_envs_observation(
    client: httpx.Client,
    served: ServedModel,
    sample: Bars,
    env: MarketEnv,
    body: Json,
    window_ending_at: Callable[[int], list[list[float]]],
) -> None:
    """The account is described by what `info` tells, as an outside trader would describe his own."""
    observation, info = env.reset()
    config = served.experiment.market
    equity0 = peak = info["equity"]
    last_target, fill_fraction = 0.0, 1.0
    asked = 0
    for step in range(60):
        t = int(np.searchsorted(sample.timestamp, info["timestamp"]))
        flat = info["units"] == 0.0
        if flat and last_target == 0.0:  # nothing about an entry to tell: info does not carry it
            account = {
                "equity": info["equity"], "initial_equity": equity0, "peak_equity": peak, "last_target": last_target,
                "last_fill_fraction": fill_fraction,
            }  # fmt: skip
            answer = client.post(
                "/v1/act", json={**body, "bars": window_ending_at(t), "position": 0.0, "account": account}
            )
            assert answer.status_code == 200, answer.text
            alone = served.policy.act({name: entry[None] for name, entry in observation.items()})
            assert answer.json()["action"] == alone.action[0]
            assert answer.json()["value"] == pytest.approx(float(alone.value[0]), rel=1e-6)
            asked += 1
        wanted = (0.0, 1.0, 0.0, 0.0)[step % 4]
        observation, _, terminated, truncated, info = env.step(config.actions.levels.index(wanted))
        assert (terminated, truncated) == (False, False)
        peak = max(peak, info["equity"])
        last_target = wanted
        fill_fraction = info["fill_fraction"] if info["qty_ordered"] else fill_fraction
    assert asked > 10


def test_the_windows_are_the_envs_own_to_the_last_bit(
    served: ServedModel, env: MarketEnv, sample: Bars, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    observation, info = env.reset()
    for _ in range(5):
        t = int(np.searchsorted(sample.timestamp, info["timestamp"]))
        rows = [tuple(row) for row in window_ending_at(t)]
        request = ActRequest.model_construct(**{**body, "bars": rows, "position": 0.0, "account": None})
        question = served.question(request, served.bars(request, 10**13))
        assert np.array_equal(question.window, observation["window"])
        observation, _, _, _, info = env.step(2)  # stays flat
        assert np.array_equal(question.account, observation["account"])
