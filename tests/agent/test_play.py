"""People and checkpoints as players of recorded episodes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from agent.__main__ import app
from agent.config import AgentConfig
from agent.demonstrations import Demonstrations, record_episodes
from agent.networks.model import StochasticMuZero
from agent.planner import Planner
from agent.play import action_names, from_keyboard, from_planner, in_turns
from benchmarks.games.tictactoe import TicTacToeVectorEnv


def _keys(*typed: str) -> Any:
    keys: Iterator[str] = iter(typed)

    def read(prompt: str) -> str:
        try:
            return next(keys)
        except StopIteration as end:
            raise EOFError from end

    return read


def test_typed_moves_are_played_and_forbidden_ones_asked_again() -> None:
    env = TicTacToeVectorEnv(1)
    shown: list[str] = []
    choose = from_keyboard(env, read=_keys("1", "1", "ten", "4", "2", "5", "3"), write=shown.append)
    recorded = record_episodes(env, choose, episodes=1, seed=0)
    np.testing.assert_array_equal(recorded.action, [0, 3, 1, 4, 2, 0])
    np.testing.assert_array_equal(recorded.episode_returns(), [1.0])
    assert sum("expected one of those in brackets" in line for line in shown) == 2
    assert "X 2 3\n4 5 6\n7 8 9" in shown


def test_stopping_keeps_what_was_played() -> None:
    env = TicTacToeVectorEnv(1)
    recorded = record_episodes(env, from_keyboard(env, read=_keys("5", "q"), write=lambda _: None), episodes=3, seed=0)
    assert (recorded.steps, recorded.episodes) == (1, 1)
    assert not recorded.terminated.any()


def test_a_person_and_a_checkpoint_take_turns() -> None:
    torch.manual_seed(0)
    config = AgentConfig.model_validate(
        {"search": {"simulations": 4, "players": 2, "threads": 1}, "network": {"width": 8, "latent": 8, "hidden": 8}}
    )
    env = TicTacToeVectorEnv(1)
    planner = Planner(StochasticMuZero({"observation": (2, 9)}, 9, config.network), config.search)
    asked: list[str] = []

    def read(prompt: str) -> str:
        asked.append(prompt)
        return prompt.strip("[").split()[0]  # the first legal move

    said: list[str] = []
    person = from_keyboard(env, read=read, write=lambda _: None)
    recorded = record_episodes(
        env, in_turns([person, from_planner(env, planner, write=said.append)]), episodes=1, seed=0
    )
    moves = recorded.steps
    assert len(asked) == (moves + 1) // 2
    assert sum(line.startswith("plays ") for line in said) == moves // 2


def test_turns_need_an_environment_that_says_whose_it_is() -> None:
    with pytest.raises(ValueError, match=r'expected infos\["to_play"\], found \[\'action_mask\'\]'):
        in_turns([])({}, np.ones((1, 2), bool), {"action_mask": None})


def test_actions_have_the_environments_names() -> None:
    assert action_names(TicTacToeVectorEnv(1)) == tuple("123456789")


def test_recording_at_the_keyboard_of_any_environment(tmp_path: Path) -> None:
    out = tmp_path / "play.safetensors"
    line = [
        "record",
        "--env",
        "benchmarks.games:smu0/2048-v0",
        "--out",
        str(out),
        "--set",
        "agent.training.env_steps=1",
    ]
    result = CliRunner().invoke(app, line, input="left\nup\nleft\nup\nq\n")
    assert result.exit_code == 0, result.output
    assert "right" in result.output
    recorded = Demonstrations.load(out)
    assert recorded.source["experiment"] == "2048-v0"
    assert 1 <= recorded.steps <= 4
