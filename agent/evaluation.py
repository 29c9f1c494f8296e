"""How well a policy does: whole episodes, greedy and quiet."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.planner import Planner
from agent.spaces import action_count, action_masks, as_observations


@dataclass(frozen=True)
class Evaluation:
    """returns: [E] sum of rewards of each episode. lengths: [E] steps. action_share: [A] how often each action."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    action_share: NDArray[np.float64]

    @property
    def score(self) -> float:
        """Mean episode return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean episode return; 0 for a single episode, which says nothing about spread."""
        count = len(self.returns)
        return float(self.returns.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0


def evaluate(
    env: gym.vector.VectorEnv[Any, Any, Any],
    planner: Planner,
    *,
    seed: int,
    simulations: int | None = None,
    max_steps: int = 1_000_000,
) -> Evaluation:
    """Play one whole episode in each environment of the vector. Greedy: most visits, no noise.

    Raises RuntimeError when an episode has not ended after `max_steps`: an evaluation must not hang a training run.
    """
    actions = action_count(env.single_action_space)
    rows = env.num_envs
    observation, infos = env.reset(seed=seed)
    returns = np.zeros(rows)
    lengths = np.zeros(rows, dtype=np.int64)
    counts = np.zeros(actions, dtype=np.int64)
    running = np.ones(rows, dtype=bool)
    for _ in range(max_steps):
        result, _ = planner.plan(
            as_observations(observation),
            action_mask=action_masks(infos, rows, actions),
            simulations=simulations,
        )
        action = result.action.astype(np.int64)
        observation, reward, terminated, truncated, infos = env.step(action)
        returns += np.where(running, np.asarray(reward, np.float64), 0.0)
        lengths += running
        counts += np.bincount(action[running], minlength=actions)
        running &= ~np.asarray(terminated | truncated, bool)
        if not running.any():
            return Evaluation(returns, lengths, counts / counts.sum())
    raise RuntimeError(
        f"evaluation: {int(running.sum())} of {rows} episodes still run after {max_steps} steps. "
        f"Give the environment a time limit"
    )
