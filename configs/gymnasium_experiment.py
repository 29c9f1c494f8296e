"""An experiment on a Gymnasium environment instead of bars: which environment, and the agent.

    name: pendulum
    env: {id: Pendulum-v1}
    agent: {search: {simulations: 32}}

It stands beside `Experiment` (bars, splits, features, market): a YAML with a section `env` is one of these, any other
is an experiment on bars. `python -m agent train --env ID` makes one with defaults that look at the environment.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from agent.config import AgentConfig
from agent.environments import EnvConfig, GymnasiumEnvs, make_env
from agent.spaces import ObservationAdapter, is_image
from configs.experiment import Experiment, apply_override, parse_experiment, read_yaml, validated

PROBE_STEPS = 1_000  # of random actions, to see how large rewards are


class GymnasiumExperiment(BaseModel):
    """Everything a run depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="of the experiment; runs are stored under it")
    description: str = Field("", description="one line for people")
    seed: int = Field(1, ge=0, description="of everything random in training")
    env: EnvConfig
    agent: AgentConfig = AgentConfig()

    def dump(self) -> dict[str, Any]:
        """As plain JSON types."""
        return self.model_dump(mode="json")

    def environments(self) -> GymnasiumEnvs:
        """Makes the environments of a run."""
        return GymnasiumEnvs(self.env, bins=self.agent.network.action_bins, samples=self.agent.search.samples)


AnyExperiment = Experiment | GymnasiumExperiment


def parse_any(raw: dict[str, Any], where: str) -> AnyExperiment:
    """An experiment of either kind from plain types. Raises ExperimentError naming every field that is wrong."""
    return validated(GymnasiumExperiment, raw, where) if "env" in raw else parse_experiment(raw, where)


def load_any(path: Path | str, overrides: Iterable[str] = ()) -> AnyExperiment:
    """Read a YAML file of either kind and apply overrides. Raises ExperimentError."""
    return parse_any(read_yaml(path, overrides), str(path))


def experiment_for(env_id: str, overrides: Iterable[str] = ()) -> GymnasiumExperiment:
    """An experiment for an environment about which nothing else was said; overrides have the last word.

    Raises ExperimentError, agent.environments.UnknownEnvironment or agent.spaces.UnsupportedSpace.
    """
    given: dict[str, Any] = {"env": {"id": env_id}}
    for override in overrides:
        apply_override(given, override)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split("[:/]", env_id)[-1])
    env = validated(EnvConfig, given["env"], f"--env {env_id}")
    raw = merged({"name": name, "agent": merged(DEFAULTS, _seen(env))}, given)
    return validated(GymnasiumExperiment, raw, f"--env {env_id}")


# For small environments on one core. Long λ-returns: an end that a mistake brings about fifty steps later is told to
# the mistake at once; with twenty steps at λ = 0.9 some seeds of CartPole never learn of it (docs/methods.md).
DEFAULTS: dict[str, Any] = {
    "discount": 0.99,
    "network": {"width": 128, "encoder_width": 64, "latent": 64, "hidden": 128, "codes": 4},
    "search": {"simulations": 16, "dirichlet_alpha": 0.5},
    "self_play": {"num_envs": 16},
    "replay": {"n_step": 50, "td_lambda": 0.97, "capacity_steps": 50_000},
    "learner": {"batch_size": 128, "decay_updates": 8_000, "updates_per_env_step": 0.1},
    "training": {"env_steps": 80_000, "evaluate_every": 1_000, "checkpoint_every": 1_000, "evaluation_episodes": 16},
}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, section by section."""
    result = dict(base)
    for key, value in change.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _seen(config: EnvConfig) -> dict[str, Any]:
    """What the environment itself says about the agent: how far values reach, and whether it shows pictures."""
    env = make_env(config)
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    largest = 0.0
    for _ in range(PROBE_STEPS):
        mask = info.get("action_mask")
        if mask is not None and isinstance(env.action_space, gym.spaces.Discrete):
            mask = np.asarray(mask, np.int8)
        _, reward, terminated, truncated, info = env.step(env.action_space.sample(mask))
        largest = max(largest, abs(float(reward)))
        if terminated or truncated:
            _, info = env.reset()
    steps = config.max_steps or (env.spec.max_episode_steps if env.spec else None) or np.inf
    env.close()
    # The most that discounted rewards can sum up to, were each as large as the largest seen; some room above.
    reach = largest * min(1.0 / (1.0 - DEFAULTS["discount"]), float(steps))
    seen: dict[str, Any] = {"network": {"support_limit": round(max(1.0, 1.1 * reach), 3)}}
    entries = ObservationAdapter.build(env.observation_space).leaves.values()
    if any(is_image(entry) for entry in entries):
        seen["network"]["backbone"] = "resnet"
    return seen
