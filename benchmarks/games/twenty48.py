"""2048 (Cirulli 2014): slide the tiles of a 4x4 board, equal ones merge, and chance adds a new one.

An action slides everything up, right, down or left; two equal tiles that meet become one of twice the value, each tile
once per move. The reward is the sum of the new tiles' values, the score of the original game. Then a free cell, drawn
uniformly, gets a 2 (probability 0.9) or a 4. A move that changes nothing is illegal; without legal moves the game is
over.

Observations are exponents [16]: 0 an empty cell, k a tile of 2^k, which replay memories like because they are small.
`decode` spreads them for a network.

Legend: N environments.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numba import njit
from numpy.typing import NDArray

from agent.search.randomness import uniform
from benchmarks.games.vector_game import DRAWS, Game, VectorGame

CELLS, LEVELS = 16, 16  # a tile beyond 2^15 cannot be told from it; no player here comes near
FOUR = 0.1  # probability that a new tile is a 4

# For each direction and each of its four lines, the cells from the wall that tiles slide towards.
_LINES = np.array(
    [
        [[line + 4 * k for k in range(4)] for line in range(4)],  # up
        [[4 * line + 3 - k for k in range(4)] for line in range(4)],  # right
        [[line + 4 * (3 - k) for k in range(4)] for line in range(4)],  # down
        [[4 * line + k for k in range(4)] for line in range(4)],  # left
    ],
    np.int64,
)


# Two cells of a line [48, 2], and what stands between them [48, 16].
_PAIRS = [(line, i, j) for line in (*_LINES[0], *_LINES[3]) for i in range(4) for j in range(i + 1, 4)]
_ENDS = np.array([(line[i], line[j]) for line, i, j in _PAIRS])
_BETWEEN = np.array([np.isin(np.arange(CELLS), line[i + 1 : j]) for line, i, j in _PAIRS], np.float32)


def _pairs(exponents: NDArray[Any]) -> NDArray[np.float32]:
    """Exponent / 8 [B, 48] of every two equal tiles with nothing between them, else 0, from boards [B, 16]."""
    first, second = exponents[:, _ENDS[:, 0]], exponents[:, _ENDS[:, 1]]
    nothing_between = (exponents > 0).astype(np.float32) @ _BETWEEN.T == 0
    return np.where((first == second) & nothing_between, first, 0).astype(np.float32) / 8


@njit(cache=True)
def _slide(board: NDArray[np.uint8], direction: int, into: NDArray[np.uint8]) -> float:
    """The board after a slide, into `into`. Returns the value of the merged tiles; −1 where nothing moves."""
    gained, moved = 0.0, False
    for line in range(4):
        cells = _LINES[direction, line]
        filled, last = 0, 0  # cells filled from the wall; exponent at the newest of them that may still merge
        for k in range(4):
            into[cells[k]] = 0
        for k in range(4):
            tile = board[cells[k]]
            if tile == 0:
                continue
            if tile == last:
                into[cells[filled - 1]] = tile + 1
                gained += float(1 << (tile + 1))
                last, moved = 0, True
            else:
                into[cells[filled]] = tile
                moved = moved or filled != k
                last = tile
                filled += 1
    return gained if moved else -1.0


@njit(cache=True)
def _add_tile(board: NDArray[np.uint8], seed: np.uint64, draw: np.uint64) -> None:
    """Chance's move, from two draws."""
    free = 0
    for cell in range(CELLS):
        free += board[cell] == 0
    wanted = int(uniform(seed, DRAWS, draw) * free)
    for cell in range(CELLS):
        if board[cell] == 0:
            if wanted == 0:
                board[cell] = 2 if uniform(seed, DRAWS, draw + np.uint64(1)) < FOUR else 1
                return
            wanted -= 1


@njit(cache=True)
def _legal(boards: NDArray[np.uint8], allowed: NDArray[np.bool_]) -> None:
    scratch = np.empty(CELLS, np.uint8)
    for row in range(len(boards)):
        for direction in range(4):
            allowed[row, direction] = _slide(boards[row], direction, scratch) >= 0.0


@njit(cache=True)
def _begin_rows(
    rows: NDArray[np.intp], boards: NDArray[np.uint8], seeds: NDArray[np.uint64], draws: NDArray[np.uint64]
) -> None:
    for row in rows:
        boards[row] = 0
        for _ in range(2):
            _add_tile(boards[row], seeds[row], draws[row])
            draws[row] += np.uint64(2)


@njit(cache=True)
def _play_rows(
    rows: NDArray[np.intp],
    actions: NDArray[np.int64],
    boards: NDArray[np.uint8],
    seeds: NDArray[np.uint64],
    draws: NDArray[np.uint64],
    rewards: NDArray[np.float64],
    ended: NDArray[np.bool_],
) -> None:
    after = np.empty(CELLS, np.uint8)
    for i in range(len(rows)):
        row = rows[i]
        rewards[i] = _slide(boards[row], actions[i], after)
        boards[row] = after
        _add_tile(boards[row], seeds[row], draws[row])
        draws[row] += np.uint64(2)
        ended[i] = True
        for direction in range(4):
            if _slide(boards[row], direction, after) >= 0.0:
                ended[i] = False
                break


class Twenty48VectorEnv(VectorGame):
    """N games of 2048."""

    action_names = ("up", "right", "down", "left")
    FIELDS = [("board", np.uint8, (CELLS,))]  # noqa: RUF012 - as the base class has it

    def __init__(self, num_envs: int = 1) -> None:
        super().__init__(num_envs, gym.spaces.Box(0, LEVELS, (CELLS,), np.uint8))

    def _begin(self, rows: NDArray[np.intp]) -> None:
        _begin_rows(rows, self._rows["board"], self._rows["seed"], self._rows["draws"])

    def _play(
        self, rows: NDArray[np.intp], actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        rewards, ended = np.empty(len(rows)), np.empty(len(rows), np.bool_)
        _play_rows(rows, actions, self._rows["board"], self._rows["seed"], self._rows["draws"], rewards, ended)
        return rewards, ended

    def _observe(self) -> NDArray[np.uint8]:
        return self._rows["board"].copy()

    def _allowed(self) -> NDArray[np.bool_]:
        allowed = np.empty((self.num_envs, 4), np.bool_)
        _legal(self._rows["board"], allowed)
        return allowed

    @staticmethod
    def decode(observations: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Boards [B, 16] one-hot: `cells` [B, 16, 16] for a deep reader, and the same flat as `board`, of which the
        chance encoder sees the difference between two moments. `pairs` [B, 48]: which tiles would meet their equal if
        their line were slid, as exponent / 8, which a small network is slow to find out from cells one by one."""
        exponents = observations["observation"]
        cells = np.zeros((*exponents.shape, LEVELS), np.float32)
        np.put_along_axis(cells, np.minimum(exponents, LEVELS - 1).astype(np.intp)[..., None], 1.0, axis=-1)
        return {"cells": cells, "board": cells.reshape(len(cells), -1), "pairs": _pairs(exponents)}

    def draw_board(self, row: int = 0) -> str:
        tiles = ["." if tile == 0 else str(1 << int(tile)) for tile in self._rows["board"][row]]
        return "\n".join("".join(f"{tile:>7}" for tile in tiles[4 * line : 4 * line + 4]) for line in range(4))


class Twenty48Env(Game):
    """One game of 2048. Its cells are categories, which whoever reads any environment spreads by itself."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(Twenty48VectorEnv(1), render_mode=render_mode)
        self.observation_space = gym.spaces.MultiDiscrete([LEVELS] * CELLS)

    def _shown(self, observation: Any) -> Any:
        return np.minimum(observation, LEVELS - 1).astype(np.int64)
