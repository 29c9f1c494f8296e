"""MarketEnv keeps Gymnasium's contract and this project's."""

import json
import math
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import market_env
from market_env.config import MarketConfig
from market_env.env import MarketEnv
from market_env.instrument import Instrument
from market_env.session import BarRecord

INFO_KEYS = {
    "t", "timestamp", "instrument", "equity", "cash", "units", "exposure", "target", "qty_ordered", "qty_filled",
    "fill_price", "arrival_price", "fill_fraction", "rejected", "fee", "slippage_cost", "impact_cost", "latency_pnl",
    "gap_pnl", "bar_pnl", "funding", "liquidation_cost", "bad_debt", "log_return", "drawdown", "liquidated",
    "action_mask",
}  # fmt: skip
IDS = ["smu0/Market-v0", *(f"smu0/{name}-v0" for name in market_env.VERIFICATION_MARKETS)]


@pytest.fixture(scope="module")
def small(settings) -> MarketConfig:
    return settings(observation={"window": 4}, episode={"horizon": 40})


@pytest.fixture
def env(random_market, small) -> MarketEnv:
    return MarketEnv([random_market(0)], small)


def rollout(env, actions, seed=None):
    """Everything an episode returns, as comparable values."""
    observation, info = env.reset(seed=seed)
    seen = [(observation["window"].tobytes(), observation["account"].tobytes(), 0.0, False, False, strip(info))]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(
            (
                observation["window"].tobytes(), observation["account"].tobytes(), reward, terminated, truncated,
                strip(info),
            )
        )  # fmt: skip
        if terminated or truncated:
            break
    return seen


def strip(info):
    return {name: value for name, value in info.items() if name != "action_mask"}


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_finds_nothing_wrong(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_every_id_can_be_made_bare_and_vectorised(env_id):
    envs = gymnasium.make_vec(env_id, num_envs=3)
    envs.reset(seed=0)
    observations, *_, infos = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert infos["action_mask"].shape == (3, envs.single_action_space.n)


def test_info_has_the_promised_keys_and_types(env):
    _, first = env.reset(seed=0)
    _, _, _, _, info = env.step(3)
    for each in (first, info):
        assert set(each) == INFO_KEYS == set(BarRecord.__annotations__)
        assert isinstance(each["t"], int)
        assert isinstance(each["timestamp"], int)
        assert isinstance(each["rejected"], bool)
        assert isinstance(each["liquidated"], bool)
        assert all(math.isfinite(value) for value in each.values() if isinstance(value, float))


def test_an_order_fills_in_the_next_bar_from_its_open(make_market, settings):
    """The clock: the decision at the close of bar 0 must not get bar 0's close."""
    market = make_market([(100, 100, 100, 100), (150, 160, 140, 155), (155, 155, 155, 155)])
    config = settings(fills={"mode": "deterministic"}, observation={"window": 1}, episode={"random_start": False})
    env = MarketEnv([market], config)
    _, before = env.reset(seed=0)
    _, _, _, _, info = env.step(3)
    assert (before["t"], info["t"]) == (0, 1)
    assert info["fill_price"] == 150.0
    assert info["qty_filled"] == 50.0  # fixed at the close of 100


def test_a_seed_and_actions_determine_everything_whatever_the_global_generator(random_market, small):
    actions = np.random.default_rng(1).integers(0, 5, 60).tolist()
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    first = rollout(MarketEnv([random_market(0)], small), actions, seed=5)
    np.random.seed(2)  # noqa: NPY002
    np.random.random(17)  # noqa: NPY002
    assert rollout(MarketEnv([random_market(0)], small), actions, seed=5) == first
    assert rollout(MarketEnv([random_market(0)], small), actions, seed=6) != first


def test_another_process_gives_the_same_bits():
    program = (
        "import gymnasium, market_env\n"
        "env = gymnasium.make('smu0/Market-v0').unwrapped\n"
        "env.reset(seed=3)\n"
        "for action in (4, 0, 3, 1, 2): observation, reward, *_ = env.step(action)\n"
        "print(reward.hex(), observation['window'].tobytes().hex()[-64:], observation['account'].tobytes().hex())"
    )
    found = [
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    env = gymnasium.make("smu0/Market-v0").unwrapped
    env.reset(seed=3)
    for action in (4, 0, 3, 1, 2):
        observation, reward, *_ = env.step(action)
    here = f"{reward.hex()} {observation['window'].tobytes().hex()[-64:]} {observation['account'].tobytes().hex()}\n"
    assert found == [here, here]


def test_later_episodes_differ_from_the_first_and_are_determined_too(env):
    actions = [4, 0] * 30
    episodes = [rollout(env, actions, seed=3), rollout(env, actions), rollout(env, actions)]
    assert episodes[0] != episodes[1] != episodes[2]
    again = [rollout(env, actions, seed=3), rollout(env, actions), rollout(env, actions)]
    assert episodes == again


def test_the_same_bar_in_another_episode_has_other_fill_noise(random_market, settings):
    """An agent must not be able to learn the noise of a bar by heart."""
    config = settings(observation={"window": 4}, episode={"random_start": False})
    env = MarketEnv([random_market(0)], config)
    prices = []
    for seed in (8, None):
        env.reset(seed=seed)
        prices.append(env.step(4)[4]["arrival_price"])
    assert prices[0] != prices[1]


def test_nothing_survives_a_reset(env):
    fresh = rollout(env, [2] * 10, seed=4)
    env.reset(seed=99)
    for action in (4, 0, 4, 0, 4, 1):
        env.step(action)
    assert rollout(env, [2] * 10, seed=4) == fresh


def test_a_mutated_observation_or_action_changes_nothing(random_market, small):
    env = MarketEnv([random_market(0)], small)
    expected = rollout(env, [4, 0, 3, 1] * 5, seed=2)
    observation, info = env.reset(seed=2)
    found = [(observation["window"].tobytes(), observation["account"].tobytes(), 0.0, False, False, strip(info))]
    for action in [4, 0, 3, 1] * 5:
        observation["window"][:] = 7.0
        observation["account"][:] = 7.0
        info["action_mask"][:] = False
        info.clear()
        given = np.array(action)
        observation, reward, terminated, truncated, info = env.step(given)
        given[...] = 0
        found.append(
            (
                observation["window"].tobytes(), observation["account"].tobytes(), reward, terminated, truncated,
                strip(info),
            )
        )  # fmt: skip
    assert found == expected


def test_the_window_is_the_feature_rows_up_to_the_decision_bar(random_market, small):
    market = random_market(0)
    env = MarketEnv([market], small)
    observation, info = env.reset(seed=1)
    for action in (2, 4, 0):
        assert np.array_equal(observation["window"], market.features[info["t"] - 3 : info["t"] + 1])
        assert info["timestamp"] == market.timestamp[info["t"]]
        observation, _, _, _, info = env.step(action)


class TestAccountObservation:
    def test_it_reads_as_documented(self, make_market, settings):
        config = settings(
            fills={"mode": "deterministic"}, costs={"taker_fee_bps": 0.0}, actions={"no_trade_band": 0.0},
            observation={"window": 1}, episode={"random_start": False},
        )  # fmt: skip
        rows = [(100, 100, 100, 100), (100, 112, 100, 110), (110, 110, 99, 99), (99, 99, 99, 99)]
        env = MarketEnv([make_market(rows, sigma=0.05)], config)
        observation, _ = env.reset(seed=0)
        assert observation["account"].tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
        account = env.step(0)[0]["account"]  # short 100 units at 100, marked at 110
        equity, cash = 9_000.0, 20_000.0
        assert account == pytest.approx(
            [
                -100 * 110 / equity,
                -1.0,
                1.0,
                -(110 / 100 - 1) / 0.05,
                math.log(0.9),
                0.1,
                1 / 64,
                cash / (100 * 1.005) / 110 - 1,
            ],
            rel=1e-6,
        )

    def test_it_stays_within_its_box_in_the_worst_of_markets(self, random_market, settings):
        config = settings(actions={"max_leverage": 10.0}, observation={"window": 4}, episode={"horizon": None})
        rng = np.random.default_rng(0)
        for seed in range(20):
            env = MarketEnv([random_market(seed, volatility=0.1, gap=0.1)], config)
            observation, _ = env.reset(seed=seed)
            done = False
            while not done:
                assert observation in env.observation_space
                observation, _, terminated, truncated, _ = env.step(int(rng.integers(0, 5)))
                done = terminated or truncated
            assert observation in env.observation_space


class TestEnds:
    def test_the_horizon_truncates(self, env):
        env.reset(seed=0)
        flags = [env.step(2)[2:4] for _ in range(40)]
        assert flags == [(False, False)] * 39 + [(False, True)]

    def test_the_end_of_data_truncates_and_leaves_the_position_open(self, make_market, settings):
        config = settings(observation={"window": 1}, episode={"horizon": None, "random_start": False},
                          fills={"reject_probability": 0.0})  # fmt: skip
        env = MarketEnv([make_market([(100, 100, 100, 100)] * 4)], config)
        env.reset(seed=0)
        outcomes = [env.step(4) for _ in range(3)]
        assert [outcome[2:4] for outcome in outcomes] == [(False, False), (False, False), (False, True)]
        assert outcomes[-1][4]["units"] > 0.0

    def test_a_step_after_the_end_or_before_the_first_reset_raises(self, env):
        with pytest.raises(RuntimeError, match="before the first reset"):
            env.step(2)
        env.reset(seed=0)
        for _ in range(40):
            env.step(2)
        with pytest.raises(RuntimeError, match="after the end of the episode; call reset first"):
            env.step(2)

    def test_ruin_terminates_and_costs_more_than_any_other_outcome(self, make_market, settings):
        config = settings(
            actions={"max_leverage": 4.0}, fills={"mode": "deterministic"}, observation={"window": 1},
            episode={"random_start": False},
        )  # fmt: skip
        crash = [(100, 100, 100, 100), (100, 100, 100, 100), (100, 100, 70, 72), (72, 72, 72, 72)]
        rewards = {}
        for action in range(5):
            env = MarketEnv([make_market(crash)], config)
            env.reset(seed=0)
            env.step(action)
            _, rewards[action], terminated, truncated, info = env.step(action)
            assert terminated == info["liquidated"] == (action == 4)
            assert not truncated
        assert all(rewards[4] < reward for action, reward in rewards.items() if action != 4)
        assert rewards[4] == -25.0  # clipped at -20, and the penalty

    def test_a_small_account_terminates_without_liquidation(self, make_market, settings):
        config = settings(fills={"mode": "deterministic"}, observation={"window": 1}, episode={"random_start": False})
        env = MarketEnv([make_market([(100, 100, 100, 100)] * 2 + [(4, 4, 4, 4)] * 2)], config)
        env.reset(seed=0)
        env.step(4)
        _, reward, terminated, truncated, info = env.step(4)
        assert (terminated, truncated, info["liquidated"]) == (True, False, False)
        assert reward == -25.0


class TestRewards:
    def test_the_default_is_the_log_return_in_percent(self, env):
        env.reset(seed=0)
        for action in (4, 3, 0, 1):
            _, reward, _, _, info = env.step(action)
            assert reward == pytest.approx(100.0 * info["log_return"])

    def test_excess_is_over_holding_the_instrument(self, random_market, settings):
        config = settings(observation={"window": 4}, reward={"kind": "excess_log_return"})
        market = random_market(0)
        env = MarketEnv([market], config)
        _, before = env.reset(seed=0)
        _, reward, _, _, info = env.step(2)
        held = math.log(market.close[info["t"]] / market.close[before["t"]])
        assert reward == pytest.approx(-100.0 * held)

    def test_differential_sharpe_follows_its_moving_averages(self, random_market, settings):
        config = settings(observation={"window": 4}, reward={"kind": "differential_sharpe", "clip": 1e6})
        env = MarketEnv([random_market(0)], config)
        env.reset(seed=0)
        a = b = 0.0
        for action in (4, 4, 0, 3, 1, 4):
            _, reward, _, _, info = env.step(action)
            r = info["log_return"]
            variance = b - a * a
            expected = 0.0 if variance < 1e-12 else (b * (r - a) - 0.5 * a * (r * r - b)) / variance**1.5
            assert reward == pytest.approx(expected, rel=1e-9, abs=1e-12)
            a, b = a + 0.01 * (r - a), b + 0.01 * (r * r - b)

    def test_penalties_fall_on_new_drawdown_and_on_variance(self, random_market, settings):
        config = settings(observation={"window": 4}, reward={"drawdown_penalty": 0.5, "variance_penalty": 0.1})
        env = MarketEnv([random_market(0)], config)
        _, before = env.reset(seed=0)
        for action in (4, 4, 0, 3, 1, 4):
            _, reward, _, _, info = env.step(action)
            rise = max(info["drawdown"] - before["drawdown"], 0.0)
            r = 100.0 * info["log_return"]
            expected = min(max(r - 0.5 * 100.0 * rise - 0.1 * r * r, -20.0), 20.0)
            assert reward == pytest.approx(expected, abs=1e-9)
            before = info


class TestManyMarkets:
    def test_a_market_is_drawn_by_the_root_of_its_length(self, random_market, settings):
        config = settings(observation={"window": 4})
        markets = [random_market(0, 100, symbol="SHORT"), random_market(1, 904, symbol="LONG")]
        env = MarketEnv(markets, config)
        env.reset(seed=0)
        names = [env.reset()[1]["instrument"] for _ in range(2000)]
        expected = math.sqrt(901) / (math.sqrt(901) + math.sqrt(97))
        assert names.count("LONG") / 2000 == pytest.approx(
            expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000)
        )

    def test_each_market_keeps_its_own_rules_and_bars(self, make_market, settings):
        config = settings(observation={"window": 1}, episode={"random_start": False}, fills={"reject_probability": 0.0})
        dear = Instrument(symbol="DEAR", half_spread_bps=100.0)
        cheap = Instrument(symbol="CHEAP", half_spread_bps=0.0)
        markets = [
            make_market([(100, 100, 100, 100)] * 3, instrument=dear),
            make_market([(20, 20, 20, 20)] * 3, instrument=cheap),
        ]
        env = MarketEnv(markets, config)
        prices = {}
        for dataset in (0, 1):
            env.reset(seed=0, options={"dataset": dataset})
            info = env.step(4)[4]
            prices[info["instrument"]] = info["fill_price"]
        assert prices["DEAR"] == pytest.approx(101.0, abs=0.2)
        assert prices["CHEAP"] == pytest.approx(20.0, abs=0.05)

    def test_markets_of_different_features_or_windows_do_not_mix(self, random_market, make_market, settings):
        narrow = make_market([(1, 1, 1, 1)] * 9)
        wide = make_market([(1, 1, 1, 1)] * 9, features=np.zeros((9, 2), np.float32))
        with pytest.raises(ValueError, match="share one feature set"):
            MarketEnv([narrow, wide], settings(observation={"window": 1}))
        with pytest.raises(ValueError, match=r"a window of 4 bars, but observation\.window is 64"):
            MarketEnv([random_market(0)], MarketConfig())
        with pytest.raises(ValueError, match="at least one market"):
            MarketEnv([], MarketConfig())


class TestRandomisation:
    def test_frictions_vary_by_episode_within_their_ranges(self, random_market, settings):
        config = settings(
            observation={"window": 4},
            randomisation={"enabled": True, "fee": (0.5, 2.0), "initial_exposure": False},
        )
        env = MarketEnv([random_market(0)], config)
        env.reset(seed=0)
        rates = []
        for _ in range(60):
            env.reset()
            info = env.step(3)[4]
            if info["qty_filled"]:
                rates.append(info["fee"] / (abs(info["qty_filled"]) * info["fill_price"] * 5e-4))
        assert 0.5 <= min(rates) < 0.8
        assert 1.7 < max(rates) <= 2.0

    def test_an_episode_may_begin_with_a_position_of_the_grid(self, random_market, settings):
        config = settings(observation={"window": 4}, randomisation={"enabled": True})
        env = MarketEnv([random_market(0)], config)
        env.reset(seed=0)
        firsts = [env.reset()[1] for _ in range(60)]
        assert {round(info["exposure"], 9) for info in firsts} == {-1.0, -0.5, 0.0, 0.5, 1.0}
        assert {info["equity"] for info in firsts} == {10_000.0}

    def test_evaluation_has_none_of_it(self, random_market, settings):
        config = settings(observation={"window": 4}, randomisation={"enabled": True}).for_evaluation()
        env = MarketEnv([random_market(0)], config)
        env.reset(seed=0)
        assert {env.reset()[1]["exposure"] for _ in range(20)} == {0.0}


class TestWrongCalls:
    @pytest.mark.parametrize("action", [5, -1, 2**70, 1.0, "2", None, np.float32(1.0), np.array([1, 2])])
    def test_an_action_out_of_range_is_named_and_changes_nothing(self, env, action):
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(ValueError, match=r"TEST: action must be an integer in \[0, 5\), got"):
            env.step(action)
        assert env.get_state() == before

    def test_a_masked_action_is_named(self, random_market, settings):
        env = MarketEnv([random_market(0)], settings(observation={"window": 4}, actions={"spot": True}))
        _, info = env.reset(seed=0)
        assert info["action_mask"].tolist() == [False, False, True, True, True]
        with pytest.raises(
            ValueError, match=r"action 0 \(target exposure -1\) is masked: .* allowed actions are \[2, 3, 4\]"
        ):
            env.step(0)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"begin": 3}, r"unknown reset options \['begin'\]"),
            ({"dataset": 1}, r'"dataset" must be given and within \[0, 1\), got 1'),
            ({"start": 2}, r"within \[3, 198\], got 2"),
            ({"start": 199}, "got 199"),
        ],
    )
    def test_reset_options_are_checked(self, env, options, words):
        with pytest.raises(ValueError, match=words):
            env.reset(seed=0, options=options)

    def test_options_choose_the_first_bar(self, env):
        assert env.reset(seed=0, options={"start": 57})[1]["t"] == 57

    def test_a_negative_seed_and_an_unknown_render_mode_are_refused(self, random_market, small):
        with pytest.raises(ValueError, match="render_mode must be one of"):
            MarketEnv([random_market(0)], small, render_mode="hologram")
        with pytest.raises(ValueError, match="seed must be an integer"):
            MarketEnv([random_market(0)], small, seed=-3)

    def test_explicit_draws_are_complete_and_finite(self, env):
        env.reset(seed=0)
        with pytest.raises(ValueError, match="draws must be finite numbers for reject_u"):
            env.step(4, draws={"reject_u": 0.5})


class TestState:
    def test_json_and_back_continues_to_the_last_bit(self, random_market, small):
        actions = np.random.default_rng(3).integers(0, 5, 39).tolist()
        env = MarketEnv([random_market(0)], small)
        expected = rollout(env, actions, seed=1)[21:]
        rollout(env, actions[:20], seed=1)
        text = json.dumps(env.get_state(), allow_nan=False)
        other = MarketEnv([random_market(0)], small)
        other.set_state(json.loads(text))
        found = []
        for action in actions[20:]:
            o, r, terminated, truncated, info = other.step(action)
            found.append((o["window"].tobytes(), o["account"].tobytes(), r, terminated, truncated, strip(info)))
        assert found == expected

    def test_the_state_of_other_markets_is_refused(self, random_market, small):
        state = MarketEnv([random_market(0)], small).get_state()
        with pytest.raises(ValueError, match="environment state: markets must be"):
            MarketEnv([random_market(1)], small).set_state(state)

    def test_an_environment_can_be_pickled_mid_episode(self, env):
        env.reset(seed=0)
        env.step(4)
        twin = pickle.loads(pickle.dumps(env))
        assert strip(twin.step(1)[4]) == strip(env.step(1)[4])
