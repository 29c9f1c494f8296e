"""Tic-tac-toe: two players take turns, three in a row win, and perfect play draws.

By itself the environment is for self-play: each step is one player's move, observations are those of the player to move
(own stones and the other's, [2, 9]), and the mover who completes a row gets 1. With `opponent` the other player is a
part of the environment, which then has one player: a step is a move and the answer to it, and losing costs 1.

Legend: N environments.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from benchmarks.games.vector_game import Game, VectorGame

Board = tuple[int, ...]  # nine cells in reading order: 1 the first player's, −1 the second's, 0 empty
Opponent = Literal["perfect", "random"]
_ROWS = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
_LINES = np.array(_ROWS)


def mover(board: Board) -> int:
    """Whose move it is: 1 or −1."""
    return 1 if sum(board) == 0 else -1


def winner(board: Board) -> int:
    """1 or −1 for three in a row, else 0."""
    for a, b, c in _ROWS:
        if board[a] and board[a] == board[b] == board[c]:
            return board[a]
    return 0


def moves(board: Board) -> list[int]:
    """Empty cells; none when the game is over."""
    return [] if winner(board) else [cell for cell in range(9) if not board[cell]]


def after(board: Board, move: int) -> Board:
    """The board with the mover's stone on that cell."""
    return (*board[:move], mover(board), *board[move + 1 :])


@cache
def outcome(board: Board) -> int:
    """Result of perfect play for the player to move: 1 won, 0 drawn, −1 lost (minimax over the whole game)."""
    if winner(board):
        return -1  # the other one has just completed a row
    return max((-outcome(after(board, move)) for move in moves(board)), default=0)


def perfect_moves(board: Board) -> list[int]:
    """Moves that keep the outcome of perfect play."""
    return [move for move in moves(board) if -outcome(after(board, move)) == outcome(board)]


def encode(boards: NDArray[np.int8]) -> NDArray[np.float32]:
    """Boards [N, 9] as the player to move sees them: [N, 2, 9], own stones and the other's."""
    turn = np.where(boards.sum(axis=1) == 0, 1, -1)[:, None]
    return np.stack([boards == turn, boards == -turn], axis=1).astype(np.float32)


class TicTacToeVectorEnv(VectorGame):
    """N games. opponent: None for self-play. agent_moves: with an opponent, which player the agent is."""

    action_names = tuple(str(cell + 1) for cell in range(9))
    FIELDS = [("board", np.int8, (9,))]  # noqa: RUF012 - as the base class has it

    def __init__(
        self,
        num_envs: int = 1,
        *,
        opponent: Opponent | None = None,
        agent_moves: Literal["first", "second", "in turn"] = "in turn",
    ) -> None:
        super().__init__(num_envs, gym.spaces.Box(0.0, 1.0, (2, 9), np.float32))
        self.opponent = opponent
        self.players = 2 if opponent is None else 1
        alternating = np.arange(num_envs) % 2 == 1
        self._second = alternating if agent_moves == "in turn" else np.full(num_envs, agent_moves == "second")

    def _begin(self, rows: NDArray[np.intp]) -> None:
        self._rows["board"][rows] = 0
        if self.opponent is not None:
            self._answer(rows[self._second[rows]])

    def _play(
        self, rows: NDArray[np.intp], actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        won, over = self._put(rows, actions)
        rewards = won.astype(np.float64)
        if self.opponent is not None:
            open_ = np.flatnonzero(~over)
            lost, ended = self._answer(rows[open_])
            rewards[open_] -= lost
            over[open_] = ended
        return rewards, over

    def _put(self, rows: NDArray[np.intp], cells: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The movers' stones. Returns who has won and whose game is over."""
        boards = self._rows["board"]
        boards[rows, cells] = np.where(boards[rows].sum(axis=1) == 0, 1, -1)
        won = (np.abs(boards[rows][:, _LINES].sum(axis=2)) == 3).any(axis=1)
        return won, won | (boards[rows] != 0).all(axis=1)

    def _answer(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The opponent's moves, uniformly among those it considers."""
        considered = perfect_moves if self.opponent == "perfect" else moves
        choices = [considered(self.board(row)) for row in rows]
        cells = [options[int(draw * len(options))] for options, draw in zip(choices, self._draw(rows), strict=True)]
        return self._put(rows, np.array(cells, np.int64))

    def board(self, row: int = 0) -> Board:
        """A row's board."""
        return tuple(int(cell) for cell in self._rows["board"][row])

    def _observe(self) -> NDArray[np.float32]:
        return encode(self._rows["board"])

    def _allowed(self) -> NDArray[np.bool_]:
        empty: NDArray[np.bool_] = self._rows["board"] == 0
        return empty & ~self._rows["over"][:, None]

    def _to_play(self) -> NDArray[np.int64] | None:
        return None if self.opponent is not None else np.abs(self._rows["board"]).sum(axis=1, dtype=np.int64) % 2

    def draw_board(self, row: int = 0) -> str:
        marks = {1: "X", -1: "O"}
        cells = [marks.get(mark, str(cell + 1)) for cell, mark in enumerate(self.board(row))]
        return "\n".join(" ".join(cells[3 * line : 3 * line + 3]) for line in range(3))


class TicTacToeEnv(Game):
    """One game."""

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(TicTacToeVectorEnv(1, **options), render_mode=render_mode)


Choose = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.int64]]


def results_against_everything(choose: Choose, *, first: bool, perfect: bool = False) -> dict[str, int]:
    """Every game that a player who never varies can come into: how many lines of play it wins, draws and loses.

    choose: observations [N, 2, 9] and masks [N, 9] to moves [N]. perfect: the other one tries perfect moves only, else
    every legal one. No sampling: what is not lost here is not lost to anybody.
    """
    mine = 1 if first else -1
    found = {"won": 0, "drawn": 0, "lost": 0}
    boards: list[Board] = [(0,) * 9]
    while boards:
        open_ = []
        for board in boards:
            if moves(board):
                open_.append(board)
            else:
                found[{mine: "won", 0: "drawn", -mine: "lost"}[winner(board)]] += 1
        own = [board for board in open_ if mover(board) == mine]
        other = [board for board in open_ if mover(board) != mine]
        boards = [after(board, move) for board in other for move in (perfect_moves if perfect else moves)(board)]
        if own:
            array = np.array(own, np.int8)
            boards += [after(b, int(move)) for b, move in zip(own, choose(encode(array), array == 0), strict=True)]
    return found
