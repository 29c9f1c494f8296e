"""Catch, seen as a picture: a ball falls through a grid and a paddle on the last row has to be under it.

After the `catch` of bsuite (Osband et al. 2020): 1 for a caught ball, −1 for a missed one, nothing before. What the
agent sees is a picture of bytes, two pixels a cell: something small for an image backbone to read.

    python -m agent train --env benchmarks.catch:smu0/Catch-v0 --set agent.training.env_steps=12000 \\
      --set agent.learner.updates_per_env_step=0.5

A player who moves at random catches one ball in five, a mean return of −0.6.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS, PIXELS = 10, 5, 2


class Catch(gym.Env[NDArray[np.uint8], np.int64]):
    """Actions: left, stay, right. Observation: a picture [20, 10] of bytes; the ball is brighter than the paddle."""

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(3)
        self.observation_space = gym.spaces.Box(0, 255, (ROWS * PIXELS, COLUMNS * PIXELS), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self._row, self._ball, self._paddle = 0, int(self.np_random.integers(COLUMNS)), COLUMNS // 2
        return self._picture(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self._paddle = int(np.clip(self._paddle + int(action) - 1, 0, COLUMNS - 1))
        self._row += 1
        landed = self._row == ROWS - 1
        reward = (1.0 if self._paddle == self._ball else -1.0) if landed else 0.0
        return self._picture(), reward, landed, False, {}

    def _picture(self) -> NDArray[np.uint8]:
        cells = np.zeros((ROWS, COLUMNS), np.uint8)
        cells[-1, self._paddle] = 128
        cells[self._row, self._ball] = 255
        return cells.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)


gym.register("smu0/Catch-v0", entry_point=Catch)
