"""Gymnasium vector environments as stable-baselines3 wants them: for the peers of the benchmarks.

Only those import it, in an interpreter that has stable-baselines3 (a benchmark extra).
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv


class VectorAdapter(VecEnv):
    """A gymnasium.vector.VectorEnv with next-step autoreset as a stable-baselines3 one.

    stable-baselines3 resets a row at its end, the inner environment at the step after: here the episode that follows
    begins with that one step, whose action is ignored and which pays nothing (one step in 512 on the markets).
    """

    def __init__(self, inner: Any, seed: int) -> None:
        mode = inner.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise ValueError(f"autoreset of {type(inner).__name__}: expected {AutoresetMode.NEXT_STEP}, found {mode}")
        super().__init__(inner.num_envs, inner.single_observation_space, inner.single_action_space)
        self.inner = inner
        self._seed: int | None = seed
        self._actions: NDArray[np.int64] = np.zeros(inner.num_envs, np.int64)

    def reset(self) -> Any:
        """The first observations. The seed counts once."""
        observations, _ = self.inner.reset(seed=self._seed)
        self._seed = None
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions, np.int64)

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, _ = self.inner.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(done):
            infos[row] = {
                "terminal_observation": _row(observations, int(row)),
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self.inner.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.inner, attr_name, None)] * self.num_envs

    # VecEnv declares the next two; these environments have no attributes or methods that PPO and DQN ask for.
    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def _row(observations: Any, row: int) -> Any:
    if isinstance(observations, dict):
        return {name: entry[row] for name, entry in observations.items()}
    return observations[row]
