"""Learning to play: one configuration and one measure per game, and a run of it.

Legend: N environments.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.curve import Curve
from agent.evaluation import Evaluation, evaluate
from agent.planner import Planner
from agent.train import RunSettings, Trainer, decoder
from benchmarks.games.tictactoe import results_against_everything
from benchmarks.learning import merged

Json = dict[str, Any]


@dataclass(frozen=True)
class GameSetting:
    """How a game is learnt. train, validation: registered ids and their arguments; agent: its configuration."""

    train: str
    agent: Json
    validation: str | None = None
    train_options: Mapping[str, Any] = field(default_factory=dict)
    validation_options: Mapping[str, Any] = field(default_factory=dict)
    final_games: int = 100


SETTINGS = {
    "2048": GameSetting(
        "smu0/2048-v0",
        {
            "discount": 0.999,
            "network": {
                "width": 256,
                "depth": 2,
                "encoder_width": 128,
                "encoder_depth": 2,
                "latent": 128,
                "hidden": 256,
                "support_limit": 20_000.0,
                "support_atoms": 101,
            },
            "search": {"simulations": 50, "threads": 1},
            "self_play": {"num_envs": 64, "temperature_final": 0.25, "temperature_steps": 500_000},
            "replay": {"n_step": 10, "capacity_steps": 200_000, "min_steps": 10_000},
            "learner": {
                "batch_size": 256,
                "learning_rate": 2e-3,
                "decay_updates": 40_000,
                "updates_per_env_step": 0.02,
                "encoder_delay": 150,
            },
            "training": {
                "env_steps": 20_000_000,
                "evaluate_every": 1_000,
                "checkpoint_every": 10_000_000,
                "evaluation_episodes": 16,
            },
        },
    ),
    # Self-play of both players, measured by playing against a perfect opponent, as first and second player in turn.
    "tictactoe": GameSetting(
        "smu0/TicTacToe-v0",
        {
            "discount": 1.0,
            "network": {
                "width": 256,
                "depth": 2,
                "encoder_width": 16,
                "latent": 64,
                "hidden": 128,
                "codes": 1,
                "support_limit": 1.0,
                "support_atoms": 11,
            },
            "search": {"simulations": 50, "threads": 1, "players": 2, "dirichlet_alpha": 0.5, "min_q_range": 2.0},
            "self_play": {"num_envs": 64, "temperature_final": 0.3, "temperature_steps": 40_000},
            "replay": {"n_step": 9, "capacity_steps": 60_000, "min_steps": 2_000},
            "learner": {
                "batch_size": 128,
                "learning_rate": 2e-3,
                "decay_updates": 20_000,
                # With a third of these updates, a fifth of this weight and half the width, winning moves are not learnt
                # (docs/methods.md, "Tic-tac-toe"); which of the three it takes is not known.
                "updates_per_env_step": 0.15,
                "reward_weight": 5.0,
                "average": 0.99,
            },
            "training": {
                "env_steps": 130_000,
                "evaluate_every": 1_000,
                "checkpoint_every": 10_000_000,
                "evaluation_episodes": 200,
            },
        },
        validation_options={"opponent": "perfect"},
        final_games=1_000,
    ),
}


class Games:
    """An `agent.train.EnvFactory` of a game setting."""

    def __init__(self, setting: GameSetting) -> None:
        self.setting = setting

    def train(self, num_envs: int, seed: int) -> Any:
        return _make(self.setting.train, num_envs, self.setting.train_options)

    def validation(self, num_envs: int, seed: int) -> Any:
        return _make(self.setting.validation or self.setting.train, num_envs, self.setting.validation_options)


def _make(name: str, num_envs: int, options: Mapping[str, Any]) -> Any:
    return gym.make_vec(
        f"benchmarks.games:{name}", num_envs=num_envs, vectorization_mode="vector_entry_point", **options
    )


def _every_game(planner: Planner) -> Json:
    """Lines of play won, drawn and lost: against a perfect opponent's every answer, and against any."""

    def choose(observations: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        found, _ = planner.plan({"observation": observations}, action_mask=masks)
        return found.action.astype(np.int64)

    return {
        f"{who}{'' if perfect else ' against anybody'}": results_against_everything(
            choose, first=who == "first", perfect=perfect
        )
        for who in ("first", "second")
        for perfect in (True, False)
    }


class _Timed(Trainer):
    """A trainer that notes the processor seconds of each point of its curve: on a machine that others use too, they
    compare where the clock on the wall does not."""

    def run(self) -> Evaluation | None:
        self.cpu_seconds: list[float] = []
        self._cpu_start = time.process_time()
        return super().run()

    def _evaluate(self, curve: Curve) -> Evaluation:
        self.cpu_seconds.append(time.process_time() - self._cpu_start)
        return super()._evaluate(curve)


def learn(name: str, variant: Json, *, seed: int, minutes: float | None, directory: Path | None = None) -> Json:
    """Train on a game once and play it. Returns the final score with its standard error, and the curve."""
    setting = SETTINGS[name]
    config = AgentConfig.model_validate(merged(SETTINGS[name].agent, variant))
    with tempfile.TemporaryDirectory() as temporary:
        directory = directory or Path(temporary)
        settings = RunSettings(directory=directory, seed=seed, code_version="benchmark", minutes=minutes)
        trainer = _Timed(config, Games(setting), settings)
        load = os.getloadavg()[0]
        trainer.run()
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    env = Games(setting).validation(setting.final_games, 0)
    planner = Planner(trainer.learner.acting, config.search, decode=decoder(env))
    final = evaluate(env, planner, seed=1_000_000 + seed)
    prior = evaluate(env, planner, seed=1_000_000 + seed, simulations=0)
    result: Json = {}
    if name == "tictactoe":
        result["games"] = _every_game(planner)
    return result | {
        "game": name,
        "variant": variant,
        "seed": seed,
        "score": final.score,
        "standard_error": final.standard_error,
        "best": float(final.returns.max()),
        "prior_score": prior.score,
        "env_steps": trainer.actor.env_steps,
        "updates": trainer.learner.updates,
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds[-1],
        "codes": rows[-1]["model/code_perplexity"],
        "outcomes": rows[-1]["model/chance_perplexity"],
        "load": [load, os.getloadavg()[0]],
        "curve": [
            {
                "env_steps": row["env_steps"],
                "seconds": row["seconds"],
                "cpu_seconds": cpu,
                "score": row["score"],
                "standard_error": row["score_standard_error"],
                "prior": row["prior_score"],
                "self_play": row["self_play_return"],
                "codes": row["model/code_perplexity"],
            }
            for row, cpu in zip(rows, trainer.cpu_seconds, strict=True)
        ],
    }
