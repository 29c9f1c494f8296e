"""Verification markets: known optima, reached by simulation."""

import functools
import math

import gymnasium
import numpy as np
import pytest

from market_env import analytic
from market_env.analytic import Barrier, KnownMoves, Leak, Martingale, MeanReversion, Momentum, Regime
from market_env.analytic_env import AnalyticEnv, AnalyticVectorEnv

solve = functools.cache(analytic.solve)

ALL = [
    Regime(), MeanReversion(), Momentum(), Leak(), KnownMoves(), KnownMoves(moves=7, cost=0.1), Barrier(),
    Regime(drift=0.2, cost=0.5), Momentum(persistence=-0.4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drift", "switch", "cost", "known"),
    [(0.2, 0.02, 0.5, 0.0657), (0.3, 0.02, 0.5, 0.1497), (0.3, 0.02, 1.0, 0.1299), (0.2, 0.01, 1.0, 0.0893)],
)
def test_the_regime_market_has_its_known_values(drift, switch, cost, known):
    """design/market.md, found there by simulation: each within 0.003."""
    solution = solve(Regime(drift=drift, switch=switch, cost=cost))
    assert solution.value == pytest.approx(known, abs=0.003)
    assert solution.grid_error < 0.005


@pytest.mark.parametrize("market", ALL, ids=str)
def test_the_grid_is_fine_enough(market):
    assert solve(market).grid_error < 0.005


@pytest.mark.parametrize("market", ALL, ids=str)
def test_the_optimal_policy_earns_the_solved_value(market):
    """Long episodes, so that the first steps (flat, nothing known) do not count."""
    solution = solve(market)
    rewards = analytic.mean_rewards(market, solution.act, episodes=250, steps=2_000, seed=1)
    error = rewards.std(ddof=1) / math.sqrt(len(rewards))
    assert rewards.mean() == pytest.approx(solution.value, abs=4 * error + 0.005 * solution.value)


def test_closed_forms_where_trading_is_free():
    """Without cost the best position is the sign of the expected return, which earns E|expected return|."""
    normal = math.sqrt(2 / math.pi)
    assert solve(Leak(cost=0.0)).value == pytest.approx(normal, rel=2e-4)
    assert solve(Momentum(cost=0.0, persistence=0.5)).value == pytest.approx(0.5 * normal, rel=2e-4)
    reversion = MeanReversion(cost=0.0, persistence=0.9)
    assert solve(reversion).value == pytest.approx(0.1 * normal / math.sqrt(1 - 0.81), rel=1e-3)
    moves = np.abs(np.arange(4) - 1.5) / math.sqrt(15 / 12)
    assert solve(KnownMoves(cost=0.0, drift=0.5)).value == pytest.approx(0.5 * moves.mean(), rel=1e-6)


def test_barrier_waiting_is_worth_its_adaptivity_only():
    """An idle spell lasts 1/offer bars. Wait: two more bars for the prize. Commit: one more for the sure payment."""
    market = Barrier(offer=0.25, prize=1.0, sure=0.3)
    solution = solve(market)
    assert solution.value == pytest.approx(1.0 / (4 + 2), rel=1e-6)
    assert solution.open_loop_value == pytest.approx(0.3 / (4 + 1), rel=1e-6)
    committed = analytic.mean_rewards(market, lambda o: np.full(len(o), 2), episodes=400, steps=2_000, seed=0)
    assert committed.mean() == pytest.approx(solution.open_loop_value, rel=0.02)


def test_nothing_can_be_earned_on_the_martingale():
    solution = solve(Martingale())
    assert solution.value == pytest.approx(0.0, abs=1e-6)
    rewards = analytic.mean_rewards(Martingale(), solution.act, episodes=50, steps=500, seed=0)
    assert (rewards == 0.0).all()


def test_known_moves_are_exactly_m_equally_likely_values():
    envs = AnalyticVectorEnv(KnownMoves(moves=5), 2_000, seed=3)
    envs.reset()
    values, counts = np.unique(envs.step(np.ones(2_000, dtype=int))[0][:, 0], return_counts=True)
    assert len(values) == 5
    assert values.mean() == pytest.approx(0.0, abs=1e-6)
    assert np.mean(values.astype(float) ** 2) == pytest.approx(1.0, rel=1e-6)
    assert np.abs(counts - 400).max() < 5 * math.sqrt(400)


def test_the_regime_statistic_is_the_filtered_probability():
    """Against a hidden Markov filter written out in probabilities, fed with returns read off a long position."""
    market = Regime(cost=0.0)
    envs = AnalyticVectorEnv(market, 1, seed=5)
    envs.reset()
    belief = 0.5
    for _ in range(200):
        observation, rewards, *_ = envs.step(np.array([2]))
        prior = belief * (1 - market.switch) + (1 - belief) * market.switch
        up, down = (math.exp(-0.5 * (rewards[0] - s * market.drift) ** 2) for s in (1.0, -1.0))
        belief = prior * up / (prior * up + (1 - prior) * down)
        ahead = belief * (1 - market.switch) + (1 - belief) * market.switch
        assert observation[0, 0] == pytest.approx(2 * ahead - 1, abs=1e-6)


def test_reward_is_position_times_return_minus_cost_of_change():
    free, dear = (AnalyticVectorEnv(Leak(cost=cost), 1, seed=1) for cost in (0.0, 0.25))
    shown, _ = free.reset()
    dear.reset()
    held = 0.0
    for action in (2, 0, 0, 1, 2):
        position = action - 1.0
        expected = position * float(shown[0, 0])
        shown, free_reward, *_ = free.step(np.array([action]))
        _, dear_reward, *_ = dear.step(np.array([action]))
        assert free_reward[0] == pytest.approx(expected, abs=1e-6)
        assert dear_reward[0] == pytest.approx(free_reward[0] - 0.25 * abs(position - held), abs=1e-12)
        held = position


class TestOptimality:
    def test_the_optimum_scores_one_and_flat_scores_zero(self):
        market = Regime()
        solution = solve(market)
        best = analytic.optimality(market, solution.act, solution=solution, episodes=64, steps=256)
        assert (best.score, best.standard_error) == (1.0, 0.0)
        flat = analytic.optimality(
            market, lambda o: np.ones(len(o), dtype=int), solution=solution, episodes=64, steps=256
        )
        assert flat.score == 0.0

    def test_a_plain_rule_scores_between_with_an_honest_error(self):
        market = Regime()
        solution = solve(market)

        def follow(observations):
            return np.sign(observations[:, 0]).astype(int) + 1

        scores = [
            analytic.optimality(market, follow, solution=solution, episodes=128, steps=512, seed=seed * 1_000)
            for seed in range(6)
        ]
        spread = np.std([s.score for s in scores], ddof=1)
        claimed = np.mean([s.standard_error for s in scores])
        assert all(0.5 < s.score < 0.95 for s in scores)
        assert 0.3 * claimed < spread < 3.0 * claimed

    def test_an_agent_may_see_returns_instead_of_the_statistic(self):
        market = Momentum(history=4)

        def follow(observations):
            assert observations.shape[1] == 5
            return np.sign(observations[:, 3]).astype(int) + 1

        assert 0.5 < analytic.optimality(market, follow, episodes=64, steps=256).score < 1.0

    def test_where_the_optimum_is_nothing_there_is_no_score(self):
        result = analytic.optimality(Martingale(), lambda o: np.full(len(o), 2), episodes=16, steps=64)
        assert (result.score, result.standard_error) == (None, None)
        assert result.optimal == 0.0


class TestEnvironments:
    @pytest.mark.parametrize("market", ALL[:7], ids=str)
    def test_row_i_is_the_single_environment(self, market):
        market = market.model_copy(update={"horizon": 20})
        envs = AnalyticVectorEnv(market, 5)
        singles = [AnalyticEnv(market) for _ in range(5)]
        observations, _ = envs.reset(seed=9)
        alone = [env.reset(seed=9 + i)[0] for i, env in enumerate(singles)]
        assert np.array_equal(observations, np.array(alone))
        ended = [False] * 5
        rng = np.random.default_rng(0)
        for _ in range(50):
            actions = rng.integers(0, 3, 5)
            observations, rewards, _, truncated, _ = envs.step(actions)
            for i, env in enumerate(singles):
                if ended[i]:
                    expected = (env.reset()[0], 0.0, False)
                else:
                    observation, reward, _, cut, _ = env.step(int(actions[i]))
                    expected = (observation, reward, cut)
                ended[i] = expected[2]
                assert np.array_equal(observations[i], expected[0])
                assert (rewards[i], truncated[i]) == expected[1:]

    def test_parameters_pass_through_the_registered_id(self):
        env = gymnasium.make("smu0/Regime-v0", drift=0.2, history=16)
        assert env.unwrapped.market == Regime(drift=0.2, history=16)
        assert env.reset(seed=0)[0].shape == (17,)

    def test_returns_shown_are_the_last_ones(self):
        envs = AnalyticVectorEnv(Momentum(history=3, cost=0.0), 1, seed=0)
        observation, _ = envs.reset()
        assert observation.tolist() == [[0, 0, 0, 0]]
        earned = []
        for _ in range(5):
            observation, rewards, *_ = envs.step(np.array([2]))
            earned.append(float(np.float32(rewards[0])))
        assert observation[0].tolist() == [*earned[-3:], 1.0]

    def test_wrong_calls_are_named(self):
        env = AnalyticEnv(Regime(horizon=2))
        with pytest.raises(RuntimeError, match="step outside an episode"):
            env.step(1)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"Regime: action of environment 0 must be an integer in \[0, 3\), got 3"):
            env.step(3)
        env.step(1)
        assert env.step(1)[3]
        with pytest.raises(RuntimeError, match="call reset first"):
            env.step(1)
        with pytest.raises(ValueError, match="does not hold the statistic"):
            Regime(history=4).statistic(np.zeros((1, 5), np.float32))
        with pytest.raises(ValueError, match="render_mode must be None"):
            AnalyticEnv(Regime(), render_mode="human")
        envs = AnalyticVectorEnv(Regime(), 2)
        with pytest.raises(RuntimeError, match="call reset first"):
            envs.step(np.array([1, 1]))
        envs.reset(seed=0)
        with pytest.raises(ValueError, match="actions must be 2 integers"):
            envs.step(np.ones(2))
