"""What every small game here shares: many boards stepped together, and one of them as a plain environment.

Legend: N environments (rows), A actions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from agent.search.randomness import uniform

DRAWS = np.uint64(17)  # the stream of the generator that games draw from


class VectorGame(gym.vector.VectorEnv[Any, Any, Any], ABC):
    """N copies of a game with masked actions and next-step autoreset.

    Chance is addressed: the n-th draw of row i depends on (seed + i, n) and on nothing else, so a row plays the same
    game alone and in any batch, and `get_state`/`set_state` go back to exactly where it stood.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
    action_names: ClassVar[tuple[str, ...]]
    FIELDS: ClassVar[list[Any]]  # what a row remembers, as fields of a numpy record
    players = 1

    def __init__(self, num_envs: int, observation_space: gym.Space[Any]) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, found {num_envs}")
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = gym.spaces.Discrete(len(self.action_names))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        row = np.dtype([("seed", np.uint64), ("draws", np.uint64), ("over", np.bool_), *self.FIELDS])
        self._rows = np.zeros(num_envs, row)
        self._began = False

    @abstractmethod
    def _begin(self, rows: NDArray[np.intp]) -> None:
        """Set up a new game in these rows."""

    @abstractmethod
    def _play(
        self, rows: NDArray[np.intp], actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Make these rows' moves. Returns their rewards, for whoever moved, and whether their game is over."""

    @abstractmethod
    def _observe(self) -> Any:
        """Observations [N, ...] of the player to move."""

    @abstractmethod
    def _allowed(self) -> NDArray[np.bool_]:
        """[N, A] legal moves; rows whose game is over may have none."""

    def _to_play(self) -> NDArray[np.int64] | None:
        """[N] who moves, where there are several players."""
        return None

    @abstractmethod
    def draw_board(self, row: int = 0) -> str:
        """A row's game for people to look at."""

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """New games everywhere: with a seed the first ones of seed + i (or seed[i]), else the next ones."""
        if seed is None and not self._began:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            first = seed + np.arange(self.num_envs) if isinstance(seed, int) else np.asarray(seed)
            self._rows["seed"] = first.astype(np.uint64)
            self._rows["draws"] = 0
        self._began = True
        self._rows["over"] = False
        self._begin(np.arange(self.num_envs))
        return self._observe(), self._infos()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Make one move in every row; where the game was over, a new one begins instead.

        Raises ValueError for a move that the rules forbid.
        """
        if not self._began:
            raise RuntimeError("step before the first reset; call reset first")
        chosen = np.asarray(actions, np.int64)
        over = self._rows["over"].copy()
        legal = self._allowed()[np.arange(self.num_envs), chosen]
        if (~legal & ~over).any():
            row = int(np.flatnonzero(~legal & ~over)[0])
            raise ValueError(
                f"{type(self).__name__}: move {self.action_names[chosen[row]]!r} is against the rules in row {row}; "
                f'legal moves are where infos["action_mask"] is True\n{self.draw_board(row)}'
            )
        rewards = np.zeros(self.num_envs)
        ended = np.zeros(self.num_envs, np.bool_)
        playing, finished = np.flatnonzero(~over), np.flatnonzero(over)
        rewards[playing], ended[playing] = self._play(playing, chosen[playing])
        self._rows["over"] = ended
        if len(finished):
            self._begin(finished)
        return self._observe(), rewards, ended, np.zeros(self.num_envs, np.bool_), self._infos()

    def get_state(self) -> np.ndarray[Any, Any]:
        """Everything the rows remember (a copy)."""
        return self._rows.copy()

    def set_state(self, state: np.ndarray[Any, Any]) -> None:
        """Continue from `get_state`."""
        self._rows = state.copy()
        self._began = True

    def _draw(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The next uniform number in (0, 1) of each of these rows."""
        numbers: NDArray[np.float64] = uniform(
            self._rows["seed"][rows], np.full(len(rows), DRAWS), self._rows["draws"][rows]
        )
        self._rows["draws"][rows] += np.uint64(1)
        return numbers

    def _infos(self) -> dict[str, Any]:
        # A finished game has no moves, but a mask must allow something: whatever is chosen there is ignored.
        everywhere = np.ones(self.num_envs, np.bool_)
        infos: dict[str, Any] = {
            "action_mask": self._allowed() | self._rows["over"][:, None],
            "_action_mask": everywhere,
        }
        turns = self._to_play()
        if turns is not None:
            infos |= {"to_play": turns, "_to_play": everywhere}
        return infos


class Game(gym.Env[Any, Any]):
    """Row 0 of a vector game, without the autoreset."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"]}

    def __init__(self, games: VectorGame, *, render_mode: str | None = None) -> None:
        self._games = games
        self.observation_space = games.single_observation_space
        self.action_space = games.single_action_space
        self.action_names = games.action_names
        self.players = games.players
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observations, infos = self._games.reset(seed=seed)
        return self._shown(observations[0]), self._info(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._games.get_state()["over"][0]:
            raise RuntimeError(f"{type(self._games).__name__}: the game is over; call reset first")
        observations, rewards, terminated, _, infos = self._games.step(np.asarray(action).reshape(1))
        return self._shown(observations[0]), float(rewards[0]), bool(terminated[0]), False, self._info(infos)

    def _shown(self, observation: Any) -> Any:
        """A row's observation as this environment gives it."""
        return observation

    def render(self) -> str:  # type: ignore[override]
        return self._games.draw_board(0)

    @staticmethod
    def _info(infos: dict[str, Any]) -> dict[str, Any]:
        return {name: entry[0] for name, entry in infos.items() if not name.startswith("_")}
