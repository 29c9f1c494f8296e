"""What is recorded is what happened: episodes, their last observations, and what exploration draws."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agent.config import AgentConfig, NetworkConfig, ReplayConfig, SelfPlayConfig
from agent.evaluation import evaluate
from agent.networks.model import StochasticMuZero
from agent.planner import Planner
from agent.search import SearchConfig, SearchResult
from agent.self_play import SelfPlay, noise_share, sample_by_visits, temperature, value_of
from agent.spaces import UnsupportedSpace, action_count, action_masks, allowed_choices, stored_entries

CONFIG = AgentConfig(
    network=NetworkConfig(width=8, encoder_width=8, latent=8, hidden=8, codes=2, support_atoms=11),
    search=SearchConfig(simulations=4),
    self_play=SelfPlayConfig(num_envs=2),
)


class Counter(gym.Env[Any, Any]):
    """Shows how many steps were taken; the reward is ten times that; ends after `length` steps."""

    observation_space = gym.spaces.Box(-100, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int, *, terminates: bool) -> None:
        self.length = length
        self.terminates = terminates

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {"action_mask": np.array([True, False])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action == 0, "action 1 is masked"
        self.count += 1
        done = self.count == self.length
        info = {"action_mask": np.array([True, False])}
        shown = np.full(1, self.count, np.float32)
        return shown, 10.0 * self.count, done and self.terminates, done and not self.terminates, info


def _vector(lengths: tuple[int, ...], *, terminates: bool) -> gym.vector.SyncVectorEnv:
    return gym.vector.SyncVectorEnv([lambda n=n: Counter(n, terminates=terminates) for n in lengths])


@pytest.fixture
def planner() -> Planner:
    torch.manual_seed(0)
    return Planner(StochasticMuZero({"observation": (1,)}, 2, CONFIG.network), CONFIG.search)


@pytest.mark.parametrize("terminates", [True, False])
def test_episodes_are_recorded_with_their_last_observation(planner: Planner, terminates: bool) -> None:
    play = SelfPlay(_vector((2, 3), terminates=terminates), planner, CONFIG, seed=0)
    records = [play.step() for _ in range(7)]
    seen = np.stack([record.observations["observation"][:, 0] for record in records], axis=1)
    left = np.stack([record.has_transition for record in records], axis=1)
    rewards = np.stack([record.reward for record in records], axis=1)
    ended = np.stack([record.terminated for record in records], axis=1)
    np.testing.assert_array_equal(seen, [[0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1, 2]])
    np.testing.assert_array_equal(left, [[1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1, 1]])
    np.testing.assert_array_equal(rewards[left], [10, 20, 10, 20, 10, 10, 20, 30, 10, 20, 30])
    assert ended.sum() == (2 + 2 if terminates else 0)
    assert play.env_steps == left.sum()
    assert play.take_returns() == [30.0, 60.0, 30.0, 60.0]
    assert play.take_returns() == []


def test_masked_actions_are_never_played(planner: Planner) -> None:
    play = SelfPlay(_vector((5, 5), terminates=True), planner, CONFIG, seed=0)
    for _ in range(20):
        record = play.step()
        assert (record.policy[:, 1] == 0).all()


def test_evaluation_plays_each_episode_once(planner: Planner) -> None:
    result = evaluate(_vector((2, 4), terminates=True), planner, seed=0)
    np.testing.assert_array_equal(result.returns, [30, 100])
    np.testing.assert_array_equal(result.lengths, [2, 4])
    np.testing.assert_array_equal(result.action_share, [1, 0])
    assert result.score == 65.0
    assert result.standard_error == pytest.approx(35.0)


def test_evaluation_does_not_hang_on_an_endless_episode(planner: Planner) -> None:
    with pytest.raises(RuntimeError, match="still run after 10 steps"):
        evaluate(_vector((50,), terminates=True), planner, seed=0, max_steps=10)


def test_actions_are_drawn_in_proportion_to_visits() -> None:
    visits = np.tile(np.array([[10, 30, 60]], np.int32), (20_000, 1))
    share = np.bincount(sample_by_visits(visits, 1.0, np.random.default_rng(0)), minlength=3) / 20_000
    np.testing.assert_allclose(share, [0.1, 0.3, 0.6], atol=0.015)  # four standard errors
    sharper = np.bincount(sample_by_visits(visits, 0.5, np.random.default_rng(0)), minlength=3) / 20_000
    np.testing.assert_allclose(sharper, np.array([1, 9, 36]) / 46, atol=0.015)
    assert (sample_by_visits(visits, 0.0, np.random.default_rng(0)) == 2).all()


def test_an_action_without_visits_is_never_drawn() -> None:
    visits = np.tile(np.array([[0, 5, 0]], np.int32), (5_000, 1))
    assert (sample_by_visits(visits, 1.0, np.random.default_rng(0)) == 1).all()


def test_values_are_of_a_policy_near_the_best_action_and_trust_says_how_near_the_taken_one_was(
    planner: Planner,
) -> None:
    replay = ReplayConfig(correct_exploration=True, target_sharpness=2.0)
    config = CONFIG.model_copy(update={"replay": replay})
    play = SelfPlay(_vector((5, 5), terminates=True), planner, config, seed=0)
    play.mask = np.ones((2, 2), bool)
    visits = np.array([[1, 3], [2, 2]], np.int32)
    q = np.array([[-6.0, 4.0], [1.0, 2.0]], np.float32)
    result = SearchResult(
        visits=visits, action_weights=visits / 4, action=visits.argmax(1), q_values=q,
        root_value=np.zeros(2, np.float32), depth=np.ones(2, np.int32), chance_probabilities=np.zeros((2, 2, 2)),
    )  # fmt: skip
    np.testing.assert_allclose(value_of(result, replay), [0.1 * -6 + 0.9 * 4, 1.5], rtol=1e-6)
    taken = play._trust(result, np.array([0, 0]), forced=False)
    np.testing.assert_allclose(taken, [0.1 / 0.25, 1.0], rtol=1e-6)
    assert play._trust(result, np.array([1, 1]), forced=False).tolist() == [1.0, 1.0]
    np.testing.assert_allclose(play._trust(result, np.array([0, 1]), forced=True), [0.1 / 0.5, 1.0], rtol=1e-6)
    plain = ReplayConfig()
    assert value_of(result, plain) is result.root_value


def test_the_correction_needs_the_probability_of_what_was_done() -> None:
    with pytest.raises(ValueError, match=r"correct_exploration needs search\.root puct"):
        AgentConfig(replay=ReplayConfig(correct_exploration=True), search=SearchConfig(root="gumbel"))


def test_temperature_falls_linearly_and_stays() -> None:
    config = AgentConfig(self_play=SelfPlayConfig(temperature=1.0, temperature_final=0.5, temperature_steps=100))
    assert [temperature(step, config) for step in (0, 50, 100, 500)] == [1.0, 0.75, 0.5, 0.5]


def test_temperature_and_noise_wait_for_their_delay_and_fall_together() -> None:
    play = SelfPlayConfig(temperature_final=0.5, temperature_delay=40, temperature_steps=100, noise_final=0.2)
    config = AgentConfig(self_play=play)
    assert [temperature(step, config) for step in (0, 40, 90, 140, 500)] == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert [noise_share(step, config) for step in (0, 40, 90, 500)] == pytest.approx([1.0, 1.0, 0.6, 0.2])


def test_the_noise_of_self_play_fades(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    plan = planner.plan

    def noted(*arguments: Any, **options: Any) -> Any:
        shares.append(options["explore"])
        return plan(*arguments, **options)

    monkeypatch.setattr(planner, "plan", noted)
    play = SelfPlayConfig(num_envs=2, temperature_steps=8, noise_final=0.0)
    actor = SelfPlay(
        _vector((100, 100), terminates=True), planner, CONFIG.model_copy(update={"self_play": play}), seed=0
    )
    for _ in range(6):
        actor.step()
    assert shares == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_unsupported_spaces_are_named() -> None:
    with pytest.raises(UnsupportedSpace, match=r"Box.*expected Discrete or MultiDiscrete"):
        action_count(gym.spaces.Box(-1, 1, (2,)))
    with pytest.raises(UnsupportedSpace, match="'observation' is Text"):
        stored_entries(gym.spaces.Text(5))


def test_a_mask_that_forbids_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="environment 1 forbids all 2 actions"):
        action_masks({"action_mask": np.array([[True, False], [False, False]])}, 2, 2)


def test_choices_are_checked_against_the_mask_part_by_part() -> None:
    mask = np.array([[True, False, True, True, False], [True, True, False, True, True]])
    assert allowed_choices(np.array([2, 2]), mask, ()).tolist() == [True, False]
    parts = np.array([[0, 1], [1, 0]])  # parts of two and three categories
    assert allowed_choices(parts, mask, (2, 3)).tolist() == [True, False]
    assert allowed_choices(np.array([[1, 1], [1, 2]]), mask, (2, 3)).tolist() == [False, True]
