"""MarketVectorEnv: many rows, each of them the single environment."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from market_env.config import MarketConfig
from market_env.env import MarketEnv
from market_env.vector import MarketVectorEnv


@pytest.fixture(scope="module")
def small(settings) -> MarketConfig:
    return settings(observation={"window": 4}, episode={"horizon": 12})


@pytest.fixture(scope="module")
def markets(random_market):
    return [random_market(0, 80, symbol="A"), random_market(1, 150, symbol="B")]


def test_it_agrees_with_gymnasiums_own_vector_of_single_environments(markets, small):
    """Everything SyncVectorEnv makes of three MarketEnvs, over several episodes each."""
    ours = MarketVectorEnv(markets, small, num_envs=3)
    theirs = SyncVectorEnv([lambda: MarketEnv(markets, small)] * 3, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    pairs = [(ours.reset(seed=5), theirs.reset(seed=5))]
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 5, 3)
        pairs.append((ours.step(actions), theirs.step(actions)))
    for mine, other in pairs:
        for name in ("window", "account"):
            assert np.array_equal(mine[0][name], other[0][name])
        for x, y in zip(mine[1:-1], other[1:-1], strict=True):
            assert np.array_equal(x, y)
        assert set(mine[-1]) == set(other[-1])
        for name, value in mine[-1].items():
            assert np.array_equal(value, other[-1][name]), name


def test_autoreset_happens_in_the_next_step(markets, small):
    envs = MarketVectorEnv(markets, small, num_envs=2)
    envs.reset(seed=0)
    for _ in range(11):
        *_, truncated, _ = envs.step(np.array([2, 2]))
        assert not truncated.any()
    _, _, _, truncated, last = envs.step(np.array([2, 2]))
    assert truncated.all()
    _, rewards, terminated, truncated, first = envs.step(np.array([0, 4]))
    assert (rewards == 0.0).all()
    assert not (terminated | truncated).any()
    assert (first["equity"] == 10_000.0).all()
    assert (first["units"] == 0.0).all()  # the action of a resetting step is ignored
    assert not np.array_equal(first["timestamp"], last["timestamp"])


def test_decoded_indices_are_the_windows(markets, small):
    shown = MarketVectorEnv(markets, small, num_envs=9)
    named = MarketVectorEnv(markets, small, num_envs=9, obs_mode="index")
    rng = np.random.default_rng(0)
    a, b = shown.reset(seed=1)[0], named.reset(seed=1)[0]
    for _ in range(30):
        assert b in named.observation_space
        assert {name: (v.dtype, v.shape) for name, v in b.items()} == {
            "dataset": (np.int32, (9, 1)), "t": (np.int32, (9, 1)), "account": (np.float32, (9, 8)),
        }  # fmt: skip
        decoded = named.decode(b)
        assert decoded in shown.observation_space
        for name in a:
            assert np.array_equal(a[name], decoded[name])
        actions = rng.integers(0, 5, 9)
        a, b = shown.step(actions)[0], named.step(actions)[0]


def test_decode_takes_any_leading_shape(markets, small):
    envs = MarketVectorEnv(markets, small, num_envs=6, obs_mode="index")
    observations, _ = envs.reset(seed=1)
    flat = envs.decode(observations)["window"]
    folded = envs.decode({name: value.reshape(2, 3, -1) for name, value in observations.items()})
    assert folded["window"].shape == (2, 3, 4, 3)
    assert np.array_equal(folded["window"].reshape(6, 4, 3), flat)


def test_decode_never_reads_across_markets(markets, small):
    envs = MarketVectorEnv(markets, small, num_envs=1, obs_mode="index")
    account = np.zeros((1, 8), np.float32)
    for dataset, t in ((0, 80), (1, 2), (1, 150)):
        with pytest.raises(ValueError, match=f"got {t}"):
            envs.decode({"dataset": np.array([[dataset]]), "t": np.array([[t]]), "account": account})
    with pytest.raises(ValueError, match=r"dataset must lie within \[0, 2\)"):
        envs.decode({"dataset": np.array([[2]]), "t": np.array([[9]]), "account": account})


def test_a_fresh_copy_is_fresh_and_a_reused_buffer_is_reused(markets, small):
    for copy in (True, False):
        envs = MarketVectorEnv(markets, small, num_envs=2, copy=copy)
        first, _ = envs.reset(seed=0)
        kept = first["window"].copy()
        second = envs.step(np.array([2, 2]))[0]
        assert (first["window"] is second["window"]) == (not copy)
        assert np.array_equal(first["window"], kept) == copy


def test_mutating_what_was_returned_or_given_changes_nothing(markets, small):
    def play(spoil):
        envs = MarketVectorEnv(markets, small, num_envs=4)
        observations, infos = envs.reset(seed=3)
        seen, rng = [], np.random.default_rng(0)
        for _ in range(30):
            actions = rng.integers(0, 5, 4)
            outcome = envs.step(actions)
            seen.append((outcome[0]["window"].tobytes(), outcome[1].tobytes(), outcome[-1]["equity"].tobytes()))
            if spoil:
                actions[:] = 0
                for array in (*observations.values(), *outcome[:4][1:], infos["equity"], infos["action_mask"]):
                    array[...] = 1
            observations, infos = outcome[0], outcome[-1]
        return seen

    assert play(spoil=True) == play(spoil=False)


def test_gymnasium_wrappers_work_on_it(markets, small):
    envs = RecordEpisodeStatistics(DictInfoToList(MarketVectorEnv(markets, small, num_envs=2)).env)
    envs.reset(seed=0)
    for _ in range(13):
        *_, infos = envs.step(np.array([2, 3]))
    assert "episode" in infos or infos["t"].shape == (2,)
    listed = DictInfoToList(MarketVectorEnv(markets, small, num_envs=2))
    _, infos = listed.reset(seed=0)
    assert [info["equity"] for info in infos] == [10_000.0, 10_000.0]


def test_state_can_be_forked_to_see_other_actions_on_the_same_bars(random_market, small):
    """Counterfactuals: one path, five first actions, each exact."""
    markets = [random_market(0, zero_volume=0.0)]
    source = MarketVectorEnv(markets, small, num_envs=5)
    source.reset(seed=0)
    for _ in range(3):
        source.step(np.full(5, 4))
    fork = MarketVectorEnv(markets, small, num_envs=5)
    fork.set_state(np.repeat(source.get_state()[:1], 5, axis=0))
    _, rewards, _, _, infos = fork.step(np.arange(5))
    assert len(set(infos["timestamp"])) == 1
    assert len(set(infos["qty_ordered"])) == 5
    stayed = source.step(np.full(5, 4))
    assert rewards[4] == stayed[1][0]


def test_seeds_may_be_listed(markets, small):
    listed = MarketVectorEnv(markets, small, num_envs=3)
    counted = MarketVectorEnv(markets, small, num_envs=3, seed=7)
    a, b = listed.reset(seed=[7, 8, 9])[0], counted.reset()[0]
    assert np.array_equal(a["window"], b["window"])


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.array([2, 5]), r"environment 1 \([AB]\): action must be an integer in \[0, 5\), got 5"),
        (np.array([-1, 2]), r"environment 0 \([AB]\): action must be"),
        (np.array([2]), r"actions must be 2 integers, got shape \(1,\)"),
        (np.array([2.0, 2.0]), "of type float64"),
    ],
)
def test_wrong_actions_are_named_and_change_nothing(markets, small, actions, words):
    envs = MarketVectorEnv(markets, small, num_envs=2)
    envs.reset(seed=0)
    before = envs.get_state()
    with pytest.raises(ValueError, match=words):
        envs.step(actions)
    assert np.array_equal(envs.get_state(), before)


def test_other_wrong_calls_are_named(markets, small, settings):
    with pytest.raises(RuntimeError, match="call reset first"):
        MarketVectorEnv(markets, small, num_envs=2).step(np.array([2, 2]))
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        MarketVectorEnv(markets, small, num_envs=0)
    with pytest.raises(ValueError, match='obs_mode must be "window" or "index"'):
        MarketVectorEnv(markets, small, obs_mode="pixels")
    with pytest.raises(ValueError, match="one seed per environment, 2, got 3"):
        MarketVectorEnv(markets, small, num_envs=2).reset(seed=[1, 2, 3])
    spot = MarketVectorEnv(markets, settings(small, actions={"spot": True}), num_envs=2)
    _, infos = spot.reset(seed=0)
    assert infos["action_mask"].tolist() == [[False, False, True, True, True]] * 2
    with pytest.raises(ValueError, match=r"environment 1 .* is masked"):
        spot.step(np.array([2, 1]))
