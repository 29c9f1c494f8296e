"""Any registered Gymnasium environment as the agent trains on it: made by id, wrapped, in the agent's spaces."""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from agent.spaces import VectorEnv, adapt


class EnvConfig(BaseModel):
    """Which environment, and how it is shown to the agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, description='a registered id, such as CartPole-v1, or "module:Id" to import first')
    kwargs: dict[str, Any] = Field(default_factory=dict, description="passed to the environment")
    observe: Literal["state", "pixels"] = Field(
        "state", description="state: what the environment returns; pixels: a picture of what it renders"
    )
    pixel_height: int = Field(40, ge=8, description="pixels: rows of the picture")
    pixel_width: int = Field(60, ge=8, description="pixels: columns of the picture")
    grayscale: bool = Field(True, description="pixels: one channel instead of three")
    frames: int = Field(1, ge=1, description="latest observations shown together; a vector becomes a window [T, F]")
    max_steps: int | None = Field(None, ge=1, description="truncate episodes here; none: the environment's own limit")
    illegal: Literal["mask", "penalty"] = Field(
        "mask",
        description='of an environment that sends info["action_mask"], mask: forbidden actions are never considered; '
        "penalty: they cost `illegal_penalty` and change nothing, and the agent learns to leave them",
    )
    illegal_penalty: float = Field(1.0, ge=0, description="penalty: taken from the reward, in its units")


class UnknownEnvironment(ValueError):
    """Gymnasium cannot make this environment."""


class RenderedObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Pictures [H, W] or [H, W, 3] of what the environment renders, each pixel the mean of the area it covers."""

    def __init__(self, env: gym.Env[Any, Any], *, height: int, width: int, grayscale: bool) -> None:
        super().__init__(env)
        self._size, self._mode = (width, height), "L" if grayscale else "RGB"
        shape = (height, width) if grayscale else (height, width, 3)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def observation(self, observation: Any) -> NDArray[np.uint8]:
        """The picture instead of the observation."""
        frame = Image.fromarray(np.asarray(self.env.render(), np.uint8)).convert(self._mode)
        return np.asarray(frame.resize(self._size, Image.Resampling.BOX), np.uint8)


class PenalisedActions(gym.Wrapper[Any, Any, Any, Any]):
    """Forbidden actions change nothing and cost a penalty, instead of being masked."""

    def __init__(self, env: gym.Env[Any, Any], penalty: float) -> None:
        super().__init__(env)
        self._penalty = penalty

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, self._unmasked(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._mask is not None and not self._mask[int(action)]:
            return self._observation, -self._penalty, False, False, {}
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observation, float(reward), terminated, truncated, self._unmasked(info)

    def _unmasked(self, info: dict[str, Any]) -> dict[str, Any]:
        mask = info.get("action_mask")
        self._mask = None if mask is None else np.asarray(mask, bool).ravel()
        return {name: value for name, value in info.items() if name != "action_mask"}


def make_env(config: EnvConfig) -> gym.Env[Any, Any]:
    """One environment, wrapped. Raises UnknownEnvironment."""
    asked: dict[str, Any] = dict(config.kwargs)
    if config.observe == "pixels":
        asked["render_mode"] = "rgb_array"
    if config.max_steps is not None:
        asked["max_episode_steps"] = config.max_steps
    try:
        env: gym.Env[Any, Any] = gym.make(config.id, **asked)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise UnknownEnvironment(
            f"environment {config.id}: Gymnasium cannot make it ({error}). List ids with "
            f'python -c "import gymnasium; gymnasium.pprint_registry()"; name the module of your own as "module:Id"'
        ) from error
    if config.illegal == "penalty":
        if not isinstance(env.action_space, gym.spaces.Discrete):
            raise ValueError(f"env.illegal penalty: expected Discrete actions, found {env.action_space}; use mask")
        env = PenalisedActions(env, config.illegal_penalty)
        limits = config.max_steps or (env.spec.max_episode_steps if env.spec else None) or 10_000
        env = gym.wrappers.TimeLimit(env, limits)  # forbidden actions take time too, or an episode need never end
    if config.observe == "pixels":
        env = RenderedObservation(env, height=config.pixel_height, width=config.pixel_width, grayscale=config.grayscale)
    if config.frames > 1:
        env = gym.wrappers.FrameStackObservation(env, config.frames)
    return env


class GymnasiumEnvs:
    """An `agent.train.EnvFactory` of a Gymnasium id. Training and validation differ in their seeds only."""

    def __init__(self, config: EnvConfig, *, bins: int, samples: int) -> None:
        """bins, samples: how actions that are not one choice are presented (agent.spaces.adapt)."""
        self.config, self._bins, self._samples = config, bins, samples

    def train(self, num_envs: int, seed: int) -> VectorEnv:
        """Environments stepped together."""
        env = gym.vector.SyncVectorEnv([lambda: make_env(self.config)] * num_envs)
        return adapt(env, bins=self._bins, samples=self._samples)

    def validation(self, num_envs: int, seed: int) -> VectorEnv:
        """The same: what keeps validation apart is the seed it is reset with."""
        return self.train(num_envs, seed)
