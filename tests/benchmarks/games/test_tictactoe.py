"""The rules, the perfect opponent, and what it means never to lose."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.games import tictactoe
from benchmarks.games.tictactoe import (
    TicTacToeVectorEnv,
    after,
    moves,
    outcome,
    perfect_moves,
    results_against_everything,
)


def _play(env: TicTacToeVectorEnv, *cells: int) -> Any:
    for cell in cells:
        last = env.step(np.array([cell]))
    return last


def test_three_in_a_row_win_for_whoever_completes_them() -> None:
    env = TicTacToeVectorEnv(1)
    env.reset(seed=0)
    _, rewards, over, _, infos = _play(env, 0, 3, 1, 4, 2)
    assert (rewards[0], over[0]) == (1.0, True)
    assert infos["action_mask"].all(), "whatever is chosen after the end is ignored"
    observation, rewards, over, _, infos = _play(env, 8)
    assert observation.sum() == 0
    assert (rewards[0], over[0]) == (0.0, False)


def test_a_full_board_is_a_draw() -> None:
    env = TicTacToeVectorEnv(1)
    env.reset(seed=0)
    _, rewards, over, _, _ = _play(env, 0, 1, 2, 4, 3, 5, 7, 6, 8)
    assert (rewards[0], over[0]) == (0.0, True)


def test_the_mover_sees_own_stones_first_and_may_take_empty_cells_only() -> None:
    env = TicTacToeVectorEnv(1)
    env.reset(seed=0)
    observation, _, _, _, infos = _play(env, 4)
    np.testing.assert_array_equal(observation[0], [[0] * 9, [0, 0, 0, 0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(infos["action_mask"][0], [cell != 4 for cell in range(9)])
    with pytest.raises(ValueError, match="move '5' is against the rules in row 0"):
        _play(env, 4)


def test_perfect_play_draws() -> None:
    # Known facts: the game is a draw; 5478 positions can be reached; every first move but none loses.
    seen = set()
    queue = [(0,) * 9]
    while queue:
        board = queue.pop()
        if board not in seen:
            seen.add(board)
            queue += [after(board, move) for move in moves(board)]
    assert len(seen) == 5478
    assert outcome((0,) * 9) == 0
    assert perfect_moves((0,) * 9) == list(range(9))
    # After a corner only the centre holds.
    assert perfect_moves((1, 0, 0, 0, 0, 0, 0, 0, 0)) == [4]


@pytest.mark.parametrize("agent_moves", ["first", "second"])
def test_the_perfect_opponent_never_loses_to_random_play(agent_moves: Any) -> None:
    env = TicTacToeVectorEnv(50, opponent="perfect", agent_moves=agent_moves)
    rng = np.random.default_rng(0)
    _, infos = env.reset(seed=0)
    assert env.players == 1
    lowest, highest = 0.0, 0.0
    for _ in range(40):
        actions = (rng.random((50, 9)) * infos["action_mask"]).argmax(axis=1)
        _, rewards, _, _, infos = env.step(actions)
        lowest, highest = min(lowest, rewards.min()), max(highest, rewards.max())
    assert (lowest, highest) == (-1.0, 0.0)


def _perfectly(observations: Any, masks: Any) -> Any:
    chosen = []
    for own, other in observations:
        board = tuple((own - other).astype(int) * (1 if own.sum() == other.sum() else -1))
        chosen.append(perfect_moves(board)[0])
    return np.array(chosen)


def test_a_perfect_player_loses_no_line_of_play() -> None:
    for first in (True, False):
        found = results_against_everything(_perfectly, first=first)
        assert found["lost"] == 0
        assert found["won"] > 0
        assert results_against_everything(_perfectly, first=first, perfect=True)["won"] == 0


def test_taking_the_first_free_cell_loses_somewhere() -> None:
    found = results_against_everything(lambda _, masks: masks.argmax(axis=1), first=True)
    assert found["lost"] > 0


def test_it_is_registered_and_single() -> None:
    env = gym.make("benchmarks.games:smu0/TicTacToe-v0", render_mode="ansi")
    _, info = env.reset(seed=0)
    assert info["action_mask"].all()
    env.step(4)
    assert env.render() == "1 2 3\n4 X 6\n7 8 9"
    assert env.unwrapped.players == 2
    vector = gym.make_vec("benchmarks.games:smu0/TicTacToe-v0", num_envs=3, vectorization_mode="vector_entry_point")
    assert isinstance(vector, TicTacToeVectorEnv)
    assert tictactoe.winner((1, 1, 1, -1, -1, 0, 0, 0, 0)) == 1
