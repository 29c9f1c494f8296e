"""The rules of 2048, its chance, and what playing at random scores."""

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.games.twenty48 import Twenty48VectorEnv
from benchmarks.games.twenty48 import _slide as slide_board


def _slide(line: list[int], direction: int = 3) -> tuple[list[int], float]:
    """What becomes of a top row [4] of tile values (0 empty) after a slide, before the new tile; and the reward."""
    env = Twenty48VectorEnv(1)
    env.reset(seed=0)
    state = env.get_state()
    state["board"][0] = 0
    state["board"][0, :4] = [int(np.log2(tile)) if tile else 0 for tile in line]
    env.set_state(state)
    observation, reward, _, _, _ = env.step(np.array([direction]))
    row = [0 if tile == 0 else 2 ** int(tile) for tile in observation[0, :4]]
    return row, float(reward[0])


@pytest.mark.parametrize(
    ("line", "slid", "reward"),
    [
        ([2, 2, 2, 2], [4, 4], 8),  # each tile merges once
        ([4, 2, 2, 0], [4, 4], 4),  # and a merged one not again
        ([2, 2, 4, 8], [4, 4, 8], 4),
        ([0, 0, 2, 0], [2], 0),
        ([2, 0, 0, 2], [4], 4),
        ([2, 2, 2, 0], [4, 2], 4),  # the pair at the wall merges
    ],
)
def test_tiles_slide_and_merge(line: list[int], slid: list[int], reward: float) -> None:
    row, gained = _slide(line)
    assert row[: len(slid)] == slid
    assert gained == reward


def test_sliding_the_other_way_merges_at_the_other_wall() -> None:
    row, gained = _slide([2, 2, 2, 0], direction=1)
    assert row[2:] == [2, 4]
    assert gained == 4


def test_a_slide_that_changes_nothing_is_illegal() -> None:
    env = Twenty48VectorEnv(1)
    env.reset(seed=0)
    state = env.get_state()
    state["board"][0] = 0
    state["board"][0, 0] = 1
    env.set_state(state)
    assert (env.get_state()["board"] == state["board"]).all()
    with pytest.raises(ValueError, match="move 'left' is against the rules"):
        env.step(np.array([3]))


def test_one_new_tile_a_move_one_in_ten_a_four_anywhere_free() -> None:
    env = Twenty48VectorEnv(4_000)
    board, _ = env.reset(seed=1)
    assert (board > 0).sum() == 2 * 4_000
    fours = (board == 2).sum() / (board > 0).sum()
    assert fours == pytest.approx(0.1, abs=4 * (0.09 / 8_000) ** 0.5)
    where = (board > 0).sum(axis=0) / (board > 0).sum()
    np.testing.assert_allclose(where, 1 / 16, atol=4 * (1 / 16 / 8_000) ** 0.5)


def _random_game(env: Twenty48VectorEnv, games: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    _, infos = env.reset(seed=seed)
    score, scores = np.zeros(env.num_envs), []
    while len(scores) < games:
        actions = (rng.random((env.num_envs, 4)) * infos["action_mask"]).argmax(axis=1)
        over = env.get_state()["over"]
        _, rewards, ended, _, infos = env.step(actions)
        score = np.where(over, 0.0, score + rewards)
        scores += score[ended].tolist()
    return scores


def test_playing_at_random_scores_about_a_thousand() -> None:
    scores = _random_game(Twenty48VectorEnv(128), 1_000, 0)
    assert np.mean(scores) == pytest.approx(1_080, abs=4 * 500 / 1_000**0.5)


def test_a_row_plays_the_same_game_in_any_batch_and_after_going_back() -> None:
    batch, alone = Twenty48VectorEnv(4), Twenty48VectorEnv(1)
    boards, infos = batch.reset(seed=5)
    board, _ = alone.reset(seed=7)
    kept = batch.get_state()
    for _ in range(20):
        np.testing.assert_array_equal(boards[2], board[0])
        actions = infos["action_mask"].argmax(axis=1)
        boards, _, _, _, infos = batch.step(actions)
        board, _, _, _, _ = alone.step(actions[2:3])
    last = boards
    batch.set_state(kept)
    infos = batch._infos()
    for _ in range(20):
        boards, _, _, _, infos = batch.step(infos["action_mask"].argmax(axis=1))
    np.testing.assert_array_equal(boards, last)


def test_decoding_spreads_exponents() -> None:
    board = np.array([[0, 1, 11] + [0] * 13], np.uint8)
    decoded = Twenty48VectorEnv.decode({"observation": board})
    assert decoded["cells"].shape == (1, 16, 16)
    np.testing.assert_array_equal(decoded["cells"][0].argmax(axis=1), board[0])
    np.testing.assert_array_equal(decoded["board"][0].reshape(16, 16), decoded["cells"][0])


def test_tiles_that_meet_are_those_that_a_slide_would_merge() -> None:
    boards = np.random.default_rng(0).integers(0, 4, (500, 16)).astype(np.uint8) * (np.arange(500) % 3 > 0)[:, None]
    boards[1::3] *= np.random.default_rng(1).random((len(boards[1::3]), 16)) < 0.3  # sparse: much stands between
    pairs = Twenty48VectorEnv.decode({"observation": boards})["pairs"]
    into = np.empty(16, np.uint8)
    for board, met in zip(boards, pairs, strict=True):
        # Rows are slid by left and right, columns by up and down; the first 24 pairs are the columns'.
        for which, directions in ((met[:24], (0, 2)), (met[24:], (1, 3))):
            assert {slide_board(board, d, into) > 0 for d in directions} == {bool(which.any())}
    assert pairs.max() == 3 / 8


def test_it_is_registered_and_draws_itself() -> None:
    env = gym.make("benchmarks.games:smu0/2048-v0", render_mode="ansi")
    board, info = env.reset(seed=0)
    assert env.observation_space.contains(board)
    env.step(int(info["action_mask"].argmax()))
    assert len(env.render().splitlines()) == 4
