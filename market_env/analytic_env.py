"""The verification markets as Gymnasium environments, scalar and vectorised."""

from collections.abc import Sequence
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from market_env import analytic_kernel as kernel
from market_env import rng
from market_env.analytic import POSITIONS, VerificationMarket

Observation = NDArray[np.float32]
_ACTIONS = len(POSITIONS)


def _observation_space(market: VerificationMarket) -> spaces.Box:
    return spaces.Box(-5.0, 5.0, (market.observation_size,), np.float32)


class AnalyticVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """B independent copies of a verification market; actions 0, 1, 2 hold -1, 0, 1 for the next bar.

    Observations [B, D]: the sufficient statistic (or the last returns) and the position held. Next-step autoreset.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it
    counterfactual = True  # draws are addressed by bar: a state set back meets the same market under other actions

    def __init__(self, market: VerificationMarket, num_envs: int = 1, *, seed: int | None = None) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.market = market
        self.num_envs = num_envs
        self.single_observation_space = _observation_space(market)
        self.single_action_space = spaces.Discrete(_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._shape = (num_envs, market.observation_size)
        self._parameters = market.parameters()
        self._rows: np.ndarray[Any, Any] = np.zeros(num_envs, dtype=kernel.ROW)
        self._past: NDArray[np.float32] = np.zeros((num_envs, market.history), dtype=np.float32)
        self._seed = None if seed is None else rng.seed_key(seed)
        self._began = False

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode everywhere: the first ones of the seeds (seed + i, or seed[i]), or the next ones."""
        if seed is None and not self._began:
            seed = self._seed if self._seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            self._rows["seed"] = rng.seed_keys(seed, self.num_envs)
            self._rows["episode"] = 0
        else:
            self._rows["episode"] += np.uint64(1)
        self._began = True
        observations: Observation = np.empty(self._shape, dtype=np.float32)
        kernel.reset_rows(self._rows, self._parameters, self._past, observations)
        return observations, self._infos()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Hold the chosen positions through the next bar. Raises ValueError for an action out of range."""
        if not self._began:
            raise RuntimeError("step before the first reset; call reset first")
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} integers, got shape {chosen.shape} of type {chosen.dtype}"
            )
        observations: Observation = np.empty(self._shape, dtype=np.float32)
        rewards = np.empty(self.num_envs)
        truncated = np.empty(self.num_envs, dtype=np.bool_)
        wrong = kernel.step_rows(
            self._rows, self._parameters, np.ascontiguousarray(chosen, dtype=np.int64), self._past, observations,
            rewards, truncated,
        )  # fmt: skip
        if wrong >= 0:
            raise ValueError(
                f"{type(self.market).__name__}: action of environment {wrong} must be an integer in [0, {_ACTIONS}), "
                f"got {chosen[wrong]}"
            )
        return observations, rewards, np.zeros(self.num_envs, dtype=np.bool_), truncated, self._infos()

    def get_state(self) -> tuple[np.ndarray[Any, Any], NDArray[np.float32]]:
        """Everything the environments remember (copies)."""
        return self._rows.copy(), self._past.copy()

    def set_state(self, state: tuple[np.ndarray[Any, Any], NDArray[np.float32]]) -> None:
        """Continue from `get_state`."""
        self._rows, self._past = state[0].copy(), state[1].copy()
        self._began = True

    def _infos(self) -> dict[str, Any]:
        return {
            "action_mask": np.ones((self.num_envs, _ACTIONS), dtype=np.bool_),
            "_action_mask": np.ones(self.num_envs, dtype=np.bool_),
        }


class AnalyticEnv(gymnasium.Env[Observation, int]):
    """One copy of a verification market: row 0 of `AnalyticVectorEnv`, without the autoreset."""

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, market: VerificationMarket, *, seed: int | None = None, render_mode: str | None = None) -> None:
        if render_mode is not None:
            raise ValueError(f"verification markets are not rendered; render_mode must be None, got {render_mode!r}")
        self.market = market
        self.observation_space = cast(gymnasium.Space[Observation], _observation_space(market))
        self.action_space = cast(gymnasium.Space[int], spaces.Discrete(_ACTIONS))
        self._envs = AnalyticVectorEnv(market, seed=seed)
        self._playing = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: the first one of `seed`, or the next one of the seed in use."""
        super().reset(seed=seed)
        observations, infos = self._envs.reset(seed=seed, options=options)
        self._playing = True
        return observations[0], {"action_mask": infos["action_mask"][0]}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold the position of `action` through the next bar. Raises RuntimeError for a step after the end."""
        if not self._playing:
            raise RuntimeError(f"{type(self.market).__name__}: step outside an episode; call reset first")
        observations, rewards, _, truncated, infos = self._envs.step(np.asarray(action).reshape(1))
        self._playing = not truncated[0]
        return observations[0], float(rewards[0]), False, bool(truncated[0]), {"action_mask": infos["action_mask"][0]}


def make_env(market: str, *, seed: int | None = None, render_mode: str | None = None, **parameters: Any) -> AnalyticEnv:
    """The registered ids: `market` names the class, parameters are its fields."""
    return AnalyticEnv(_market(market, parameters), seed=seed, render_mode=render_mode)


def make_vector_env(
    market: str, num_envs: int = 1, *, seed: int | None = None, render_mode: str | None = None, **parameters: Any
) -> AnalyticVectorEnv:
    """The registered ids, vectorised."""
    return AnalyticVectorEnv(_market(market, parameters), num_envs, seed=seed)


def _market(name: str, parameters: dict[str, Any]) -> VerificationMarket:
    from market_env import analytic

    market: VerificationMarket = getattr(analytic, name)(**parameters)
    return market
