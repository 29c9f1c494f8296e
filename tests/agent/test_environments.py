"""Environments made by id, wrapped as the configuration says, and trained on whatever their spaces are."""

import json
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agent.checkpoint import load_policy
from agent.config import AgentConfig, LearnerConfig, NetworkConfig, ReplayConfig, SelfPlayConfig, TrainingConfig
from agent.environments import EnvConfig, GymnasiumEnvs, UnknownEnvironment, make_env
from agent.networks.representation import Backbone
from agent.reanalyse import reanalyse
from agent.search import SearchConfig
from agent.train import RunSettings, Trainer


class Target(gym.Env[Any, Any]):
    """Pays for the right combination of parts, which the observation shows in another form."""

    def __init__(self, kind: str = "multidiscrete", mask: bool = False) -> None:
        self._mask = mask
        self.action_space = {
            "multidiscrete": spaces.MultiDiscrete([4, 4, 3]),
            "box": spaces.Box(-1, 1, (3,)),
            "discrete": spaces.Discrete(3),
        }[kind]
        self.observation_space = spaces.Dict(
            {"where": spaces.Discrete(2), "seen": spaces.Tuple((spaces.Box(0, 255, (9, 10, 3), np.uint8),))}
        )

    def _observe(self) -> Any:
        self.side = int(self.np_random.integers(2))
        return {"where": self.side, "seen": (np.full((9, 10, 3), 200 * self.side, np.uint8),)}

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([1, 1, 0], np.int8)} if self._mask else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        first = float(np.ravel(action)[0])
        assert not (self._mask and first == 2.0), "forbidden"
        return self._observe(), first if self.side else -first, False, False, self._info()


for _kind in ("multidiscrete", "box", "discrete"):
    gym.register(f"test/{_kind}-v0", entry_point=lambda kind=_kind, **k: Target(kind, **k), max_episode_steps=12)


def _train(env: EnvConfig, directory: Path, **network: Any) -> Trainer:
    sizes = {"width": 16, "encoder_width": 16, "latent": 8, "hidden": 16, "codes": 2, "support_atoms": 11}
    config = AgentConfig(
        network=NetworkConfig.model_validate({**sizes, **network}),
        search=SearchConfig(simulations=6, samples=4),
        self_play=SelfPlayConfig(num_envs=4),
        replay=ReplayConfig(min_steps=60, capacity_steps=400, reanalyse_ratio=0.5, absorbing=True),
        learner=LearnerConfig(batch_size=8, unroll=2, updates_per_env_step=0.1, threads=1),
        training=TrainingConfig(env_steps=160, evaluate_every=5, checkpoint_every=5, evaluation_episodes=2),
    )
    envs = GymnasiumEnvs(env, bins=config.network.action_bins, samples=config.search.samples)
    trainer = Trainer(config, envs, RunSettings(directory=directory, seed=1, code_version="test"))
    trainer.run()
    return trainer


@pytest.mark.parametrize(
    ("kind", "backbone"), [("box", "mlp"), *(("multidiscrete", backbone) for backbone in get_args(Backbone))]
)
def test_actions_with_parts_and_nested_observations_are_learnt_from(kind: str, backbone: str, tmp_path: Path) -> None:
    trainer = _train(EnvConfig(id=f"test/{kind}-v0"), tmp_path, backbone=backbone)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss/total"]) for row in rows)
    batch = trainer.replay.sample(6, 2, np.random.default_rng(0))
    assert batch.action.shape == (6, 2, 3)
    for part in trainer.model.core.policy_parts(torch.from_numpy(batch.policy)):
        np.testing.assert_allclose(part.sum(-1).numpy()[batch.state_mask], 1.0, atol=1e-5)
    policy = load_policy(tmp_path / "checkpoints" / "best")
    assert policy.metadata.action_factors == trainer.model.action_factors == action_parts(kind)
    shapes = policy.metadata.observation_shapes
    decision = policy.act({name: np.zeros((2, *shape), np.float32) for name, shape in shapes.items()})
    assert decision.choices is not None
    assert decision.policy.shape == decision.choices.shape[:2] == (2, 4)


def action_parts(kind: str) -> tuple[int, ...]:
    return (4, 4, 3) if kind == "multidiscrete" else (11, 11, 11)


def test_what_is_searched_anew_is_searched_among_other_combinations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one seed for all and an even policy, the same four of 48 combinations would be weighed in every state."""
    trainer = _train(EnvConfig(id="test/multidiscrete-v0"), tmp_path)
    with torch.no_grad():
        trainer.model.core.policy_head.weight.zero_()
        trainer.model.core.policy_head.bias.zero_()
    trainer.planner.refresh()
    seen: list[Any] = []
    plan = trainer.planner.plan

    def watched(*arguments: Any, **options: Any) -> Any:
        found = plan(*arguments, **options)
        seen.append(found[0].candidates.choices.reshape(-1, 3))
        return found

    monkeypatch.setattr(trainer.planner, "plan", watched)
    reanalyse(trainer.replay, trainer.planner, 32, np.random.default_rng(0))
    assert len(np.unique(np.concatenate(seen), axis=0)) > 24


def test_a_run_on_actions_with_parts_resumes_on_the_same_curve(tmp_path: Path) -> None:
    whole = _train(EnvConfig(id="test/multidiscrete-v0"), tmp_path / "whole")
    again = _train(EnvConfig(id="test/multidiscrete-v0"), tmp_path / "again")
    again.resume(sorted((tmp_path / "again" / "checkpoints").glob("latest-*"))[0])
    again.run()
    for name, tensor in whole.model.state_dict().items():
        assert bool((tensor == again.model.state_dict()[name]).all()), name


def test_forbidden_actions_are_masked_or_cost_a_penalty() -> None:
    masked = make_env(EnvConfig(id="test/discrete-v0", kwargs={"mask": True}))
    _, info = masked.reset(seed=0)
    np.testing.assert_array_equal(info["action_mask"], [1, 1, 0])
    fined = make_env(EnvConfig(id="test/discrete-v0", kwargs={"mask": True}, illegal="penalty", illegal_penalty=3.0))
    before, info = fined.reset(seed=0)
    assert "action_mask" not in info
    after, reward, terminated, truncated, _ = fined.step(2)
    assert (reward, terminated, truncated) == (-3.0, False, False)
    assert after is before
    ends = [fined.step(2)[3] for _ in range(11)]
    assert ends[-1], "forbidden actions take time too"


def test_frames_are_stacked_and_time_is_limited() -> None:
    env = make_env(EnvConfig(id="CartPole-v1", frames=4, max_steps=7))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4, 4)
    seen = [env.step(step % 2) for step in range(7)]
    np.testing.assert_array_equal(seen[2][0][-2], seen[1][0][-1])
    assert seen[-1][3]


def test_pixels_show_the_state() -> None:
    pytest.importorskip("pygame", reason="rendering classic control needs the extra `envs`")
    env = make_env(EnvConfig(id="CartPole-v1", observe="pixels", pixel_height=20, pixel_width=30))
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    assert first.shape == (20, 30)
    for _ in range(8):
        last = env.step(1)[0]
    assert (first != last).any()
    assert len(np.unique(first)) > 3


def test_an_unknown_id_says_what_to_do() -> None:
    with pytest.raises(UnknownEnvironment, match=r"Nowhere-v0.*pprint_registry"):
        make_env(EnvConfig(id="Nowhere-v0"))
