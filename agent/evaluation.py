"""How well a policy does: whole episodes, greedy and quiet."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.planner import Planner
from agent.spaces import (
    action_count,
    action_factors,
    action_masks,
    as_observations,
    as_seen_first,
    player_count,
)


@dataclass(frozen=True)
class Evaluation:
    """returns: [E] sum of rewards of each episode, for the player who moved first where players take turns. lengths:
    [E] steps. action_share: [A] how often each action (each category of each part, where an action has parts).
    action_changes: share of steps whose action is not the one before (in a market: trades). calibration: of the root
    values, None where no step has enough future to tell."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    action_share: NDArray[np.float64]
    action_changes: float
    calibration: "Calibration | None"

    @property
    def score(self) -> float:
        """Mean episode return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean episode return; 0 for a single episode, which says nothing about spread."""
        count = len(self.returns)
        return float(self.returns.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0


@dataclass(frozen=True)
class Calibration:
    """Root values against the discounted rewards that followed.

    bias: mean of value − return. slope: of the regression of return on value; 1 is calibrated, 0 knows nothing.
    """

    bias: float
    slope: float | None
    steps: int


_NEGLIGIBLE = 0.05  # weight γ^h below which a return that stops after h steps counts as complete


def calibrate(
    values: NDArray[np.float64],
    rewards: NDArray[np.float64],
    lengths: NDArray[np.int64],
    terminated: NDArray[np.bool_],
    discount: float,
    players: int = 1,
) -> Calibration | None:
    """Compare values [T, E] with the discounted sums of the rewards [T, E] that followed.

    lengths: [E] steps of each episode. terminated: [E] it ended for good; where the end is only the end of the data,
    steps count whose missing rest weighs less than 5%. players: who take turns; a value and a reward are of the one who
    moves and count against the others.
    """
    returns = np.zeros_like(values)
    for seat in range(players):
        mine = np.arange(len(values)) % players == seat
        future = np.zeros(values.shape[1])
        for t in reversed(range(len(values))):
            reward = rewards[t] if mine[t] else -rewards[t]
            future = np.where(t < lengths, reward + discount * future, 0.0)
            if mine[t]:
                returns[t] = future
    left = lengths[None] - np.arange(len(values))[:, None]
    complete = (left > 0) & (terminated[None] | (discount**left < _NEGLIGIBLE))
    if not complete.any():
        return None
    value, real = values[complete], returns[complete]
    spread = float(value.var())
    covariance = float(((value - value.mean()) * (real - real.mean())).mean())
    return Calibration(
        bias=float((value - real).mean()), slope=covariance / spread if spread > 1e-12 else None, steps=len(value)
    )


def evaluate(
    env: gym.vector.VectorEnv[Any, Any, Any],
    planner: Planner,
    *,
    seed: int,
    discount: float | None = None,
    simulations: int | None = None,
    max_steps: int = 1_000_000,
) -> Evaluation:
    """Play one whole episode in each environment of the vector. Greedy: most visits, no noise.

    discount: of the returns that values are compared with; None leaves the calibration out.

    Raises RuntimeError when an episode has not ended after `max_steps`: an evaluation must not hang a training run.
    """
    actions, factors = action_count(env.single_action_space), action_factors(env.single_action_space)
    starts = np.cumsum([0, *factors[:-1]])
    rows = env.num_envs
    observation, infos = env.reset(seed=seed)
    returns = np.zeros(rows)
    lengths = np.zeros(rows, dtype=np.int64)
    counts = np.zeros(actions, dtype=np.int64)
    players = player_count(env)
    running = np.ones(rows, dtype=bool)
    ended = np.zeros(rows, dtype=bool)
    changes, before = 0, np.full((rows, max(1, len(factors))), -1)
    values, rewards = [], []
    for _ in range(max_steps):
        result, _ = planner.plan(
            as_observations(observation),
            action_mask=action_masks(infos, rows, actions),
            simulations=simulations,
        )
        action = result.chosen(result.action)
        observation, reward, terminated, truncated, infos = env.step(action)
        action = action.reshape(rows, -1)
        returns += np.where(running, as_seen_first(reward, lengths, players), 0.0)
        lengths += running
        counts += np.bincount((starts + action)[running].ravel(), minlength=actions)
        changes += int((running & (before[:, 0] >= 0) & (action != before).any(axis=1)).sum())
        before = action
        if discount is not None:
            values.append(result.root_value.astype(np.float64))
            rewards.append(np.where(running, np.asarray(reward, np.float64), 0.0))
        ended |= running & np.asarray(terminated, bool)
        running &= ~np.asarray(terminated | truncated, bool)
        if not running.any():
            return Evaluation(
                returns,
                lengths,
                counts / counts.sum(),
                action_changes=changes / max(1, int(lengths.sum()) - rows),
                calibration=None
                if discount is None
                else calibrate(np.array(values), np.array(rewards), lengths, ended, discount, players),
            )
    raise RuntimeError(
        f"evaluation: {int(running.sum())} of {rows} episodes still run after {max_steps} steps. "
        f"Give the environment a time limit"
    )
