"""Recorded episodes: kept whole, read back equal, refused elsewhere, and learnt from to play better than they were."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agent.config import AgentConfig
from agent.demonstrations import (
    DemonstrationError,
    Demonstrations,
    StopRecording,
    as_replay,
    record_episodes,
)
from agent.train import RunSettings, Trainer


class Corridor(gym.Env[Any, Any]):
    """Six cells; right ends at +1 in the last one, left never pays, each step costs 0.1. Shows the cell one-hot."""

    observation_space = gym.spaces.Box(0, 1, (6,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.cell = 0
        return np.eye(6, dtype=np.float32)[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.cell = max(0, self.cell + (1 if action == 1 else -1))
        won = self.cell == 5
        return np.eye(6, dtype=np.float32)[self.cell], (1.0 if won else 0.0) - 0.1, won, False, {}


class Corridors:
    def train(self, num_envs: int, seed: int) -> Any:
        return gym.vector.SyncVectorEnv([lambda: gym.wrappers.TimeLimit(Corridor(), 30)] * num_envs)

    def validation(self, num_envs: int, seed: int) -> Any:
        return self.train(num_envs, seed)


def _record(episodes: int = 6, num_envs: int = 2, seed: int = 0) -> Demonstrations:
    rng = np.random.default_rng(seed)
    return record_episodes(
        Corridors().train(num_envs, seed),
        lambda observations, mask, infos: rng.integers(2, size=num_envs),
        episodes=episodes,
        seed=seed,
        source={"who": "nobody"},
    )


def test_episodes_are_kept_whole_one_after_the_other() -> None:
    recorded = _record()
    assert recorded.episodes >= 6
    cells = recorded.observations["observation"].argmax(axis=1)
    ends = np.flatnonzero(~recorded.has_transition)
    starts = np.concatenate([[0], ends[:-1] + 1])
    assert (cells[starts] == 0).all()
    for start, end in zip(starts, ends, strict=True):
        moved = np.where(recorded.action[start:end] == 1, 1, -1)
        np.testing.assert_array_equal(np.maximum(cells[start:end] + moved, 0), cells[start + 1 : end + 1])
        # Won in the last cell, or cut short by the time limit.
        assert recorded.terminated[end - 1] == (cells[end] == 5)
        assert recorded.steps == recorded.has_transition.sum()
        assert recorded.returns()[start] == pytest.approx(recorded.reward[start:end].sum(), abs=1e-5)


def test_a_player_who_stops_leaves_an_episode_cut_short() -> None:
    left = iter([1, 1, 1])

    def choose(*_: Any) -> Any:
        try:
            return np.array([next(left)])
        except StopIteration as end:
            raise StopRecording from end

    recorded = record_episodes(Corridors().train(1, 0), choose, episodes=1, seed=0)
    np.testing.assert_array_equal(recorded.has_transition, [True, True, True, False])
    assert not recorded.terminated.any()
    with pytest.raises(DemonstrationError, match="no step was made"):
        record_episodes(Corridors().train(1, 0), choose, episodes=1, seed=0)


def test_a_file_is_read_back_equal(tmp_path: Path) -> None:
    recorded = _record()
    recorded.save(tmp_path / "play.safetensors")
    again = Demonstrations.load(tmp_path / "play.safetensors")
    np.testing.assert_array_equal(again.observations["observation"], recorded.observations["observation"])
    for name in ("action", "reward", "terminated", "has_transition", "action_mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(recorded, name))
    assert again.source == {"who": "nobody"}


def test_returns_of_two_players_alternate() -> None:
    """Three moves, the first player wins with the third: +1, −1, +1 for whoever moves."""
    play = Demonstrations(
        observations={},
        action=np.zeros(4, np.int64),
        reward=np.array([0, 0, 1, 0], np.float32),
        terminated=np.array([False, False, True, False]),
        has_transition=np.array([True, True, True, False]),
        action_mask=np.ones((4, 2), bool),
        players=2,
    )
    np.testing.assert_array_equal(play.returns(), [1, -1, 1, 0])
    np.testing.assert_array_equal(play.episode_returns(), [1])


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="expected a file of demonstrations, found none"):
        Demonstrations.load(tmp_path / "nothing.safetensors")
    (tmp_path / "text").write_text("timestamp,target\n")
    with pytest.raises(DemonstrationError, match="expected a file of demonstrations"):
        Demonstrations.load(tmp_path / "text")
    cart_pole = gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")
    with pytest.raises(DemonstrationError, match=r"mine: these episodes are of another environment.*\(4,\).*\(6,\)"):
        _record().require_same_spaces(cart_pole, "mine")


def _config(path: Path, **training: Any) -> AgentConfig:
    return AgentConfig.model_validate(
        {
            "discount": 0.9,
            "network": {"width": 32, "encoder_width": 16, "latent": 16, "hidden": 32, "codes": 2, "support_limit": 3.0},
            "search": {"simulations": 8, "threads": 1},
            "self_play": {"num_envs": 4},
            "replay": {
                "demonstrations": path,
                "n_step": 3,
                "min_steps": 40,
                "capacity_steps": 2_000,
                "reanalyse_ratio": 0.5,
            },
            "learner": {"batch_size": 32, "unroll": 3, "learning_rate": 5e-3, "updates_per_env_step": 0.1},
            "training": {"evaluate_every": 50, "checkpoint_every": 1_000, "evaluation_episodes": 2, **training},
        }
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "play.safetensors"
    _record(episodes=40, num_envs=4).save(path)
    return path


def test_the_memory_believes_what_was_done_first(file: Path) -> None:
    recorded = Demonstrations.load(file)
    replay = as_replay(recorded, _config(file, offline_updates=1))
    batch = replay.sample(64, 3, np.random.default_rng(0))
    steps = batch.step_mask[:, 0]
    assert steps.all()
    np.testing.assert_array_equal(batch.policy[:, 0].argmax(axis=1), batch.action[:, 0])
    # n-step returns over exact later returns are exact returns.
    np.testing.assert_allclose(batch.value[:, 0], recorded.returns(0.9)[batch.column], atol=1e-5)


def test_learning_from_a_random_player_alone_finds_the_way(file: Path, tmp_path: Path) -> None:
    """Offline: no step in the environment, and a return that the recorded player had in its best episode at most."""
    recorded = Demonstrations.load(file)
    config = _config(file, offline_updates=200, env_steps=0)
    trainer = Trainer(config, Corridors(), RunSettings(directory=tmp_path / "run", seed=0, code_version="test"))
    result = trainer.run()
    assert result is not None
    assert trainer.actor.env_steps == 0
    assert result.score == pytest.approx(0.5, abs=1e-6)  # five steps right
    assert result.score > recorded.episode_returns().mean() + 0.5


def test_demonstrations_are_mixed_in_until_their_time_is_over(file: Path, tmp_path: Path) -> None:
    config = _config(file, env_steps=400)
    replay = config.replay.model_copy(update={"demonstration_ratio": 0.25, "demonstration_updates": 10})
    config = config.model_copy(update={"replay": replay})
    trainer = Trainer(config, Corridors(), RunSettings(directory=tmp_path / "run", seed=0, code_version="test"))
    for _ in range(20):
        trainer.replay.add(trainer.actor.step())
    parts = trainer.memory.sample(32, trainer.rng, trainer.learner.updates)
    assert [len(part.row) for _, part in parts] == [8, 24]
    assert parts[0][0] is trainer.demonstrations
    trainer.learner.updates = 10
    parts = trainer.memory.sample(32, trainer.rng, trainer.learner.updates)
    assert [replay for replay, _ in parts] == [trainer.replay]


def test_reanalyse_takes_a_share_of_every_batch_or_a_whole_one_now_and_then(file: Path, tmp_path: Path) -> None:
    config = _config(file, offline_updates=5, env_steps=0)
    counts = {}
    for mode in ("share", "switch"):
        replay = config.replay.model_copy(update={"reanalyse_mode": mode, "reanalyse_ratio": 0.25})
        settings = RunSettings(directory=tmp_path / mode, seed=0, code_version="test")
        trainer = Trainer(config.model_copy(update={"replay": replay}), Corridors(), settings)
        counts[mode] = [trainer._searched_anew() for _ in range(400)]
    assert set(counts["share"]) == {8}
    assert set(counts["switch"]) == {0, 32}
    assert np.mean(counts["switch"]) == pytest.approx(8, abs=4 * 32 * (0.25 * 0.75 / 400) ** 0.5)


def test_an_offline_run_resumes(file: Path, tmp_path: Path) -> None:
    def trainer(name: str, updates: int) -> Trainer:
        config = _config(file, offline_updates=updates, env_steps=0)
        return Trainer(config, Corridors(), RunSettings(directory=tmp_path / name, seed=0, code_version="test"))

    whole = trainer("whole", 20)
    whole.run()
    half = trainer("half", 20)
    for _ in range(8):
        half._learn()
    half.settings.directory.mkdir(parents=True)
    half._save_latest()
    again = trainer("half", 20)
    again.resume()
    again.run()
    for mine, theirs in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        np.testing.assert_array_equal(mine.detach().numpy(), theirs.detach().numpy())


def test_a_configuration_that_learns_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"offline_updates needs replay\.demonstrations"):
        AgentConfig.model_validate({"training": {"offline_updates": 5}})
    with pytest.raises(ValueError, match="expected something to learn from"):
        AgentConfig.model_validate({"training": {"env_steps": 0}})
