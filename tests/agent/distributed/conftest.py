"""A Ray double, a small problem and a small agent."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from agent.config import AgentConfig
from agent.distributed import Cluster, DistributedTrainer
from agent.train import RunSettings

_spec = importlib.util.spec_from_file_location("ray_double", Path(__file__).with_name("ray_double.py"))
assert _spec is not None
assert _spec.loader is not None
ray_double = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ray_double)

CONFIG = {
    "network": {"width": 16, "encoder_width": 16, "latent": 8, "hidden": 16, "codes": 4, "support_atoms": 11},
    "search": {"simulations": 6},
    "self_play": {"num_envs": 4},
    "replay": {"min_steps": 40, "capacity_steps": 400, "prioritised": True, "reanalyse_ratio": 0.25},
    "learner": {"batch_size": 16, "unroll": 3, "updates_per_env_step": 0.1, "threads": 1},
    "training": {"env_steps": 400, "evaluate_every": 10, "checkpoint_every": 10, "evaluation_episodes": 2},
}


class CartPole:
    """An EnvFactory of a Gymnasium environment."""

    def train(self, num_envs: int, seed: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync")

    def validation(self, num_envs: int, seed: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return self.train(num_envs, seed)


@pytest.fixture(autouse=True)
def _torch_threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, in this process."""
    world = ray_double.World()
    monkeypatch.setitem(sys.modules, "ray", world.module())
    monkeypatch.setattr("agent.distributed.cluster.require_ray", lambda: None)
    return world


@pytest.fixture
def trainer(tmp_path: Path, world: Any) -> Callable[..., DistributedTrainer]:
    """Makes a distributed trainer in a directory of this test."""

    def make(actors: int = 2, *, config: dict[str, Any] | None = None, envs: Any = None) -> DistributedTrainer:
        agent = AgentConfig.model_validate(config or CONFIG)
        settings = RunSettings(directory=tmp_path / "run", seed=3, code_version="test")
        return DistributedTrainer(agent, envs or CartPole(), settings, Cluster(actors=actors, chunk=5))

    return make
