"""The actor: plays a vector of environments with exploring searches and records what it sees.

Legend: N environments (rows), A actions.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.config import AgentConfig, ReplayConfig
from agent.planner import Planner
from agent.replay import Record
from agent.search import SearchResult
from agent.spaces import (
    action_count,
    action_factors,
    action_masks,
    as_observations,
    as_seen_first,
    player_count,
)
from agent.targets import sharpened


def temperature(env_steps: int, config: AgentConfig) -> float:
    """Linear from `temperature` to `temperature_final`."""
    play = config.self_play
    return play.temperature + (play.temperature_final - play.temperature) * _progress(env_steps, config)


def noise_share(env_steps: int, config: AgentConfig) -> float:
    """Share of the root noise that is still mixed in: linear from 1 to `noise_final`."""
    return 1.0 + (config.self_play.noise_final - 1.0) * _progress(env_steps, config)


def _progress(env_steps: int, config: AgentConfig) -> float:
    play = config.self_play
    return min(1.0, max(0, env_steps - play.temperature_delay) / play.temperature_steps)


def sample_by_visits(
    visits: NDArray[np.int32], exponent_temperature: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """One action per row with probability ∝ visits^(1/temperature) (MuZero App. D). visits: [N, A]. Returns [N]."""
    if exponent_temperature == 0:
        return np.asarray(visits.argmax(axis=1))
    share = visits / visits.max(axis=1, keepdims=True)
    weights = share ** (1.0 / exponent_temperature)
    cumulative = weights.cumsum(axis=1)
    points = rng.random(len(visits)) * cumulative[:, -1]
    return np.asarray((cumulative <= points[:, None]).sum(axis=1))


def value_of(result: SearchResult, config: ReplayConfig) -> NDArray[np.float32]:
    """What a search says its roots are worth [N]: the mean return of its simulations, or (correct_exploration) that of
    a policy near the best action, without what looking at the others has cost."""
    if not config.correct_exploration or not result.visits.any():
        return result.root_value
    shares = sharpened(result.visits, config.target_sharpness)
    value: NDArray[np.float32] = (shares * result.q_values).sum(axis=1).astype(np.float32)
    return value


class SelfPlay:
    """Steps a vector environment with next-step autoreset (Gymnasium 1.x).

    After an episode ends, the environment shows its last observation once more before it resets, and ignores the
    action. That visit is not a wasted step: the search made there is the bootstrap value of a truncated episode.
    """

    def __init__(
        self, env: gym.vector.VectorEnv[Any, Any, Any], planner: Planner, config: AgentConfig, *, seed: int
    ) -> None:
        self.env = env
        self.planner = planner
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.actions = action_count(env.single_action_space)
        self.factors = action_factors(env.single_action_space)
        if self.factors and config.replay.correct_exploration:
            raise ValueError(
                f"replay.correct_exploration needs actions that are one choice; found parts {self.factors}, of which "
                f"only samples are searched. Set it to false"
            )
        self.players = player_count(env)
        self.env_steps = 0
        self.follows: SelfPlay | None = None  # whose steps exploration falls with, where they are not its own
        self.returns: list[float] = []  # of episodes finished since last taken, for the player who moved first
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Start new episodes everywhere."""
        observation, infos = self.env.reset(seed=seed)
        rows = self.env.num_envs
        self.observations = as_observations(observation)
        self.mask = action_masks(infos, rows, self.actions)
        self.finished = np.zeros(rows, dtype=bool)
        self.episode_return = np.zeros(rows, dtype=np.float64)
        self.episode_step = np.zeros(rows, dtype=np.int64)

    def step(self, forced: NDArray[np.int64] | None = None) -> Record:
        """Search, act, and return what happened as one record per row.

        forced: [N] (or [N, D]) actions to take instead of exploring; the search's opinion is recorded all the same.
        """
        rows = self.env.num_envs
        seeds = self.rng.integers(0, 2**63, size=rows, dtype=np.uint64)
        explore = noise_share(self._explored, self.config)
        result, _ = self.planner.plan(self.observations, action_mask=self.mask, seeds=seeds, explore=explore)
        action = self._explore(result) if forced is None else forced
        observation, reward, terminated, truncated, infos = self.env.step(action)
        record = Record(
            observations=self.observations,
            action=action,
            reward=np.asarray(reward, np.float32),
            terminated=np.asarray(terminated, bool),
            has_transition=~self.finished,
            action_mask=self.mask,
            policy=result.policy_target(self.factors),
            root_value=value_of(result, self.config.replay),
            trust=self._trust(result, action, forced=forced is not None),
        )
        self.env_steps += int(record.has_transition.sum())
        gain = as_seen_first(reward, self.episode_step, self.players)
        self.episode_return = np.where(self.finished, 0.0, self.episode_return + gain)
        self.episode_step = np.where(self.finished, 0, self.episode_step + 1)
        self.observations = as_observations(observation)
        self.mask = action_masks(infos, rows, self.actions)
        self.finished = np.asarray(terminated | truncated, bool)
        self.returns += self.episode_return[self.finished].tolist()
        return record

    def _trust(self, result: SearchResult, action: NDArray[np.int64], *, forced: bool) -> NDArray[np.float32]:
        """min(1, π/μ) [N] of the actions taken; 1 where nothing is corrected. Forced actions are drawn uniformly."""
        replay, rows = self.config.replay, np.arange(len(action))
        warmth = temperature(self._explored, self.config)
        if not replay.correct_exploration or not result.visits.any() or (warmth == 0 and not forced):
            return np.ones(len(action), np.float32)
        target = sharpened(result.visits, replay.target_sharpness)[rows, action]
        behaviour = 1.0 / self.mask.sum(axis=1) if forced else sharpened(result.visits, 1.0 / warmth)[rows, action]
        trust: NDArray[np.float32] = np.minimum(1.0, target / behaviour).astype(np.float32)
        return trust

    def take_returns(self) -> list[float]:
        """Returns of the episodes finished since the last call."""
        taken, self.returns = self.returns, []
        return taken

    @property
    def _explored(self) -> int:
        return self.env_steps if self.follows is None else self.follows.env_steps

    def _explore(self, result: SearchResult) -> NDArray[np.int64]:
        if self.config.search.root == "gumbel":
            return result.chosen(result.action)  # the Gumbel noise of the root has explored already
        drawn = sample_by_visits(result.visits, temperature(self._explored, self.config), self.rng)
        return result.chosen(drawn)
