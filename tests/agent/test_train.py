"""Guard 7: the same configuration and seed give the same curve, interrupted or not."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agent.checkpoint import CheckpointError
from agent.config import (
    AgentConfig,
    LearnerConfig,
    NetworkConfig,
    ReplayConfig,
    SelfPlayConfig,
    TrainingConfig,
)
from agent.search import SearchConfig
from agent.train import RunSettings, Trainer

CONFIG = AgentConfig(
    network=NetworkConfig(width=16, encoder_width=16, latent=8, hidden=16, codes=4, support_atoms=11),
    search=SearchConfig(simulations=6),
    self_play=SelfPlayConfig(num_envs=4),
    replay=ReplayConfig(min_steps=40, capacity_steps=400, prioritised=True, reanalyse_ratio=0.25),
    learner=LearnerConfig(batch_size=16, unroll=3, updates_per_env_step=0.1, threads=1),
    training=TrainingConfig(env_steps=400, evaluate_every=10, checkpoint_every=10, evaluation_episodes=2),
)


class CartPole:
    """Plain Gymnasium environments: they cannot be saved mid-episode, so checkpoints cut their episodes."""

    def train(self, num_envs: int, seed: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="sync")

    def validation(self, num_envs: int, seed: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return self.train(num_envs, seed)


@pytest.fixture(autouse=True)
def _torch_threads_as_before() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _trainer(directory: Path, config: AgentConfig = CONFIG, seed: int = 3) -> Trainer:
    return Trainer(config, CartPole(), RunSettings(directory=directory, seed=seed, code_version="test"))


def _curve(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timings = ("seconds", "speed/")
    return [{name: value for name, value in row.items() if not name.startswith(timings)} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    _trainer(directory).run()
    return directory


def test_the_same_seed_gives_the_same_curve_and_another_does_not(finished: Path, tmp_path: Path) -> None:
    _trainer(tmp_path / "again").run()
    _trainer(tmp_path / "other", seed=4).run()
    assert _curve(tmp_path / "again") == _curve(finished)
    assert _curve(tmp_path / "other") != _curve(finished)
    assert len(_curve(finished)) >= 3


def test_a_run_killed_between_checkpoints_resumes_on_the_same_curve(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped dead 7 updates after a checkpoint, with a curve point of the lost part half written."""

    class Killed(BaseException):
        pass

    victim = _trainer(tmp_path)
    learn = Trainer._learn

    def learn_until_killed(self: Trainer) -> None:
        if self.learner.updates == 27:
            raise Killed
        learn(self)

    monkeypatch.setattr(Trainer, "_learn", learn_until_killed)
    with pytest.raises(Killed):
        victim.run()
    monkeypatch.undo()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"env_steps": 300, "upda')
    resumed = _trainer(tmp_path)
    resumed.resume()
    assert resumed.learner.updates == 20
    resumed.run()
    assert _curve(tmp_path) == _curve(finished)


def test_weights_after_resume_are_the_uninterrupted_ones(finished: Path, tmp_path: Path) -> None:
    checkpoints = sorted((finished / "checkpoints").glob("latest-*"))
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    resumed = _trainer(tmp_path / "copy")
    resumed.resume(tmp_path / "copy" / "checkpoints" / checkpoints[0].name)
    resumed.run()
    whole = _trainer(tmp_path / "whole")
    whole.resume(finished / "checkpoints" / "latest")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_resuming_with_another_configuration_names_the_difference(finished: Path) -> None:
    other = CONFIG.model_copy(update={"discount": 0.5})
    trainer = _trainer(finished, other)
    with pytest.raises(CheckpointError, match="differs in discount"):
        trainer.resume()


def test_every_reported_number_is_finite(finished: Path) -> None:
    for row in _curve(finished):
        for name, value in row.items():
            assert value is None or np.isfinite(np.asarray(value, float)).all(), name


def test_tensorboard_is_always_written(finished: Path) -> None:
    assert list((finished / "tensorboard").glob("events.*"))
