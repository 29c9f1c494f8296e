"""Counterfactual reanalyse: a stored moment lived again meets the same market, with exact rewards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.checkpoint import load_policy
from agent.config import AgentConfig, LearnerConfig, NetworkConfig, ReplayConfig, SelfPlayConfig, TrainingConfig
from agent.experience import Gatherer
from agent.networks.model import StochasticMuZero
from agent.planner import Planner
from agent.reanalyse import SecondLives
from agent.replay import Record
from agent.search import SearchConfig
from agent.self_play import SelfPlay
from agent.train import RunSettings, Trainer
from market_env.analytic_env import AnalyticVectorEnv, make_vector_env

CONFIG = AgentConfig(
    network=NetworkConfig(width=16, encoder_width=16, latent=8, hidden=16, codes=4, support_atoms=11),
    search=SearchConfig(simulations=4),
    self_play=SelfPlayConfig(num_envs=4, temperature_final=0.5, noise_final=0.2, temperature_steps=300),
    replay=ReplayConfig(
        min_steps=40, capacity_steps=400, counterfactual_ratio=0.5, counterfactual_length=6, counterfactual_states=3,
        reanalyse_ratio=0.25, correct_exploration=True, window_fraction=0.5, window_steps=100, counterfactual_hold=3,
    ),
    learner=LearnerConfig(
        batch_size=16, unroll=3, updates_per_env_step=0.1, threads=1, target_every=7, consistency_weight=0.5,
        average=0.9,
    ),
    training=TrainingConfig(env_steps=400, evaluate_every=10, checkpoint_every=10, evaluation_episodes=2),
)  # fmt: skip


class Recorder:
    """Stands in for the replay: keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.cuts = 0

    def add(self, record: Record) -> None:
        self.records.append(record)

    def cut(self) -> None:
        self.cuts += 1


class Regimes:
    """A verification market for training and validation."""

    def train(self, num_envs: int, seed: int) -> AnalyticVectorEnv:
        return make_vector_env("Regime", num_envs, seed=seed, horizon=64)

    def validation(self, num_envs: int, seed: int) -> AnalyticVectorEnv:
        return make_vector_env("Regime", num_envs, seed=seed, horizon=32)


def _actor(env: AnalyticVectorEnv, seed: int) -> SelfPlay:
    model = StochasticMuZero({"observation": (2,)}, 3, CONFIG.network)
    return SelfPlay(env, Planner(model, CONFIG.search), CONFIG, seed=seed)


def test_a_second_life_meets_the_same_market_and_earns_what_its_own_actions_earn() -> None:
    first = _actor(make_vector_env("Leak", 4, seed=5, cost=0.25), seed=1)
    lives = SecondLives(_actor(make_vector_env("Leak", 4, seed=99, cost=0.25), seed=2), states=1, length=6)
    for _ in range(9):
        first.step()
    lives.remember(first)
    real = [first.step() for _ in range(6)]
    again = Recorder()
    lives.relive(again)  # type: ignore[arg-type]
    assert again.cuts == 1
    assert lives.steps == 24
    taken = np.array([record.action for record in again.records])
    assert not np.array_equal(taken, [record.action for record in real])
    for mine, theirs in zip(again.records, real, strict=True):
        # The leak market shows the next return: the same in both lives. The position (last entry) is each life's own.
        observed, shown = mine.observations["observation"], theirs.observations["observation"]
        np.testing.assert_array_equal(observed[:, 0], shown[:, 0])
        held, position = observed[:, -1], mine.action - 1.0
        np.testing.assert_allclose(mine.reward, position * shown[:, 0] - 0.25 * np.abs(position - held), atol=1e-6)


def test_the_real_environments_do_not_notice() -> None:
    with_lives, without = (_actor(make_vector_env("Regime", 4, seed=5), seed=1) for _ in range(2))
    without.planner.model.load_state_dict(with_lives.planner.model.state_dict())
    without.planner.refresh()
    lives = SecondLives(_actor(make_vector_env("Regime", 4, seed=99), seed=2), states=2, length=3)
    for _ in range(4):
        lives.remember(with_lives)
        lives.relive(Recorder())  # type: ignore[arg-type]
        np.testing.assert_array_equal(with_lives.step().reward, without.step().reward)


def test_the_first_action_is_kept_for_a_while_and_no_longer() -> None:
    first = _actor(make_vector_env("Regime", 4, seed=5), seed=1)
    lives = SecondLives(_actor(make_vector_env("Regime", 4, seed=99), seed=2), states=1, length=12, hold=5)
    lives.remember(first)
    unchanged = []
    for _ in range(40):
        again = Recorder()
        lives.relive(again)  # type: ignore[arg-type]
        actions = np.array([record.action for record in again.records])
        same = (actions == actions[0]).all(axis=1)
        unchanged.append(int(same.argmin()))
    # Four rows that choose by themselves hardly ever all repeat the first action.
    assert set(range(1, 6)) <= set(unchanged)
    assert np.mean(np.array(unchanged) > 5) < 0.1


def test_second_lives_explore_as_much_as_the_first_ones_of_that_time() -> None:
    """The schedule counts the run's steps; second lives may be fewer or more."""
    play = SelfPlayConfig(num_envs=4, temperature_steps=16, temperature_final=0.5, noise_final=0.0)
    config = CONFIG.model_copy(update={"self_play": play, "replay": ReplayConfig(counterfactual_ratio=0.25)})
    env = Regimes().train(4, 0)
    shares = []

    class Noted(Planner):
        def plan(self, *arguments: Any, explore: float = 0.0, **options: Any) -> Any:
            shares.append(explore)
            return super().plan(*arguments, explore=explore, **options)

    planner = Noted(StochasticMuZero({"observation": (2,)}, 3, CONFIG.network), CONFIG.search)
    gatherer = Gatherer(Regimes(), env, planner, config, env_seed=0, seeds=[1, 2])
    first, second = Recorder(), Recorder()
    for _ in range(70):
        gatherer.step(first, second)  # type: ignore[arg-type]
    assert second.records, "no second life was lived"
    assert shares[-1] == 0.0
    assert shares[:5] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert set(shares[5:]) == {0.0}, "a second life explored as if the run had just begun"


def test_an_environment_that_cannot_be_set_back_is_refused(tmp_path: Path) -> None:
    class Forgetful(Regimes):
        def train(self, num_envs: int, seed: int) -> AnalyticVectorEnv:
            env = super().train(num_envs, seed)
            env.counterfactual = False
            return env

    with pytest.raises(ValueError, match="counterfactual_ratio"):
        Trainer(CONFIG, Forgetful(), RunSettings(directory=tmp_path, seed=0, code_version="test"))


def _run(directory: Path, stop_at: int | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    trainer = Trainer(CONFIG, Regimes(), RunSettings(directory=directory, seed=3, code_version="test"))
    if (directory / "checkpoints").exists():
        trainer.resume()
    if stop_at is None or monkeypatch is None:
        trainer.run()
        return

    class Killed(BaseException):
        pass

    learn = Trainer._learn

    def until_killed(self: Trainer) -> None:
        if self.learner.updates == stop_at:
            raise Killed
        learn(self)

    monkeypatch.setattr(Trainer, "_learn", until_killed)
    with pytest.raises(Killed):
        trainer.run()
    monkeypatch.setattr(Trainer, "_learn", learn)


def _curve(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "speed/"))} for row in rows]


def test_the_mean_of_the_weights_acts(tmp_path: Path) -> None:
    """While few updates are made it is the plain mean of the iterates; and it is what the best checkpoint holds."""
    replay = CONFIG.replay.model_copy(update={"counterfactual_ratio": 0.0})
    learner = CONFIG.learner.model_copy(update={"average": 0.999})
    training = CONFIG.training.model_copy(update={"env_steps": 160, "evaluate_every": 1})
    config = CONFIG.model_copy(update={"replay": replay, "learner": learner, "training": training})
    trainer = Trainer(config, Regimes(), RunSettings(directory=tmp_path, seed=3, code_version="test"))
    iterates: list[np.ndarray] = []
    update = trainer.learner.update

    def kept(*arguments: Any) -> Any:
        result = update(*arguments)
        iterates.append(trainer.model.core.code_embedding.detach().numpy().copy())
        return result

    trainer.learner.update = kept  # type: ignore[method-assign]
    trainer.run()
    assert len(iterates) > 5
    acting = trainer.learner.acting
    assert acting is not trainer.model
    np.testing.assert_allclose(acting.core.code_embedding.numpy(), np.mean(iterates, axis=0), atol=1e-6)
    assert trainer.planner.model is acting
    saved = load_policy(tmp_path / "checkpoints" / "best").model.core.code_embedding.detach().numpy()
    means = np.cumsum(iterates, axis=0) / np.arange(1, len(iterates) + 1)[:, None, None]
    assert np.abs(means - saved).max(axis=(1, 2)).min() < 1e-6
    assert np.abs(np.array(iterates)[1:] - saved).max(axis=(1, 2)).min() > 1e-5


def test_target_network_second_lives_and_consistency_resume_on_the_same_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice, at updates that fall between copies of the target network and within a second life's rhythm."""
    _run(tmp_path / "whole")
    _run(tmp_path / "killed", 17, monkeypatch)
    _run(tmp_path / "killed", 26, monkeypatch)
    _run(tmp_path / "killed")
    assert _curve(tmp_path / "killed") == _curve(tmp_path / "whole")
    assert _curve(tmp_path / "whole")[-1]["counterfactual_steps"] > 100
