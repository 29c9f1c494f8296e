"""MarketEnv: one market account as a Gymnasium environment.

    env = MarketEnv([market], MarketConfig())
    observation, info = env.reset(seed=7)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

An action names a target exposure (`ActionConfig.levels`); the order it implies fills in the next bar. The keys of
`info` are the fields of `session.BarRecord`.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from market_env import rng, rows
from market_env._compile import direct
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.layout import DRAW_FIELDS, FIELDS, OUTCOME_FIELDS, at, new_blocks, read_lane, write_lane
from market_env.market import Market
from market_env.observation import ObservationBuilder
from market_env.render import MarketRenderer, RenderStep
from market_env.session import read_outcome, typed_outcome

Observation = dict[str, NDArray[np.float32]]
STATE_SCHEMA = 1


class MarketEnv(gymnasium.Env[Observation, int]):
    """One account in one of several markets.

    markets: prepared with the same features and window; an episode draws one in proportion to the root of its length.
    seed: of the episodes until `reset` is given another. Without one, the first `reset` takes one from the system.
    """

    metadata = {"render_modes": ["rgb_array", "human", "ansi"], "render_fps": 12}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        markets: Sequence[Market],
        config: MarketConfig | None = None,
        *,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}")
        self.markets = tuple(markets)
        self.config = MarketConfig() if config is None else config
        self.render_mode = render_mode
        self.grid = ActionGrid.build(self.config.actions)
        self._stack = rows.Stack.build(self.markets, self.config)
        builder = ObservationBuilder(self.config.observation.window)
        num_features = self._stack.features.shape[1]
        self._window_shape = (builder.length, num_features)
        self.observation_space = cast(gymnasium.Space[Observation], builder.space(num_features))
        self.action_space = cast(gymnasium.Space[int], spaces.Discrete(len(self.grid)))
        self._targets, self._allowed = self.grid.targets.tolist(), self.grid.mask.tolist()
        self._symbols = [market.symbol for market in self.markets]
        self._blocks = new_blocks(1)
        self._block = self._blocks[0]
        self._outcome = np.zeros((len(OUTCOME_FIELDS), 1))
        self._seed = None if seed is None else rng.seed_key(seed)
        self._step: Callable[..., tuple[Any, ...]] | None = None  # made by the first step
        self._playing = False  # an episode is under way
        self._began = False  # some episode of the current seed began
        self._dataset = 0
        self._renderer = MarketRenderer() if render_mode is not None else None

    # --- Gymnasium -------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: the first one of `seed`, or the next one of the seed in use.

        options: {"dataset": market number, "start": first decision bar (a row of that market)}, each optional.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._began = rng.seed_key(seed), False
        elif self._seed is None:
            self._seed = int(self.np_random.integers(2**63))
        dataset, bar = self._forced(options or {})
        block = self._block
        block[at.episode] = block[at.episode] + 1.0 if self._began else 0.0
        block[at.env_seed_low], block[at.env_seed_high] = self._seed & 0xFFFFFFFF, self._seed >> 32
        self._began = self._playing = True
        account: NDArray[np.float32] = np.empty((1, 8), dtype=np.float32)
        window: NDArray[np.float32] = np.empty((1, *self._window_shape), dtype=np.float32)
        stack = self._stack
        rows.reset_blocks(
            self._blocks, 1, stack.tables, stack.bars, stack.features, stack.grid, dataset, bar, self._outcome,
            account, window,
        )  # fmt: skip
        self._dataset = int(block[at.dataset])
        info = self._info(typed_outcome(self._outcome[:, 0].tolist()))
        if self._renderer is not None:
            self._renderer.begin(self.markets[self._dataset], RenderStep.from_info(info))
            self._show()
        return {"window": window[0], "account": account[0]}, info

    def step(
        self, action: int | np.integer[Any], *, draws: Mapping[str, float] | None = None
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Order the target exposure of `action` and go through the next bar.

        draws: for tests: the random numbers of this step's fill (`layout.DRAW_FIELDS`) in place of the addressed ones.
        Raises ValueError for an action out of range or masked, RuntimeError for a step before or after an episode.
        """
        if not self._playing:
            raise RuntimeError(
                f"{self._symbols[self._dataset]}: step after the end of the episode; call reset first"
                if self._began
                else "step before the first reset; call reset first"
            )
        try:
            number = operator.index(action)
        except TypeError:
            number = -1
        if not 0 <= number < len(self._targets) or not self._allowed[number]:
            raise self._wrong_action(action)
        if draws is not None:
            self._set_draws(draws)
        account: NDArray[np.float32] = np.empty((1, 8), dtype=np.float32)
        window: NDArray[np.float32] = np.empty(self._window_shape, dtype=np.float32)
        if self._step is None:
            self._step = self._compiled_step(account, window)
        values = self._step(number, draws is not None, account, window)
        info, reward, terminated, truncated = self._info(values), values[-3], values[-2], values[-1]
        self._playing = not (terminated or truncated)
        if self._renderer is not None:
            self._renderer.add(RenderStep.from_info(info))
            self._show()
        return {"window": window, "account": account[0]}, reward, terminated, truncated, info

    def render(self) -> Any:
        """The current frame: [H, W, 3] uint8 (`rgb_array`), text (`ansi`), or None (`human`: printed as it plays)."""
        if self._renderer is None:
            gymnasium.logger.warn(
                'render() needs a render mode: make the environment with render_mode="rgb_array" or "ansi".'
            )
            return None
        if self.render_mode == "rgb_array":
            return self._renderer.image()
        if self.render_mode == "ansi":
            return self._renderer.text()
        return None

    # --- state -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything the environment remembers, as plain numbers: JSON and back restores it to the last bit."""
        return {
            "schema": STATE_SCHEMA,
            "markets": [market.fingerprint for market in self.markets],
            "playing": self._playing,
            "began": self._began,
            "seed": self._seed,
            "lane": read_lane(self._block, FIELDS),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state` of an environment on the same markets and configuration."""
        expected: dict[str, Any] = {
            "schema": STATE_SCHEMA,
            "markets": [market.fingerprint for market in self.markets],
        }
        for name, value in expected.items():
            if state.get(name) != value:
                raise ValueError(f"environment state: {name} must be {value!r}, found {state.get(name)!r}")
        if set(state["lane"]) != set(FIELDS):
            raise ValueError(
                f"environment state: fields differ from this version: {sorted(set(FIELDS) ^ set(state['lane']))}"
            )
        write_lane(self._block, state["lane"])
        self._playing, self._began, self._seed = state["playing"], state["began"], state["seed"]
        self._dataset = int(self._block[at.dataset])

    def __getstate__(self) -> dict[str, Any]:
        """For pickling and copying: without the machine code."""
        return self.__dict__ | {"_step": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after pickling or copying, which part a view from the memory it looks at."""
        self.__dict__.update(state)
        self._block = self._blocks[0]

    # --- the rest --------------------------------------------------------------------------------------------------

    def _compiled_step(
        self, account: NDArray[np.float32], window: NDArray[np.float32]
    ) -> Callable[..., tuple[Any, ...]]:
        """`rows.step_one` with this environment's arrays filled in."""
        stack = self._stack
        mine = (self._block, stack.tables, stack.bars, stack.features, stack.grid)
        return partial(direct(rows.step_one, *mine, 0, False, account, window), *mine)

    def _info(self, values: Sequence[Any]) -> dict[str, Any]:
        return read_outcome(values, self._symbols[self._dataset], self.grid.mask.copy())

    def _show(self) -> None:
        if self.render_mode == "human" and self._renderer is not None:
            self._renderer.print()

    def _forced(self, options: Mapping[str, Any]) -> tuple[int, int]:
        """Market number and first bar (in the stacked arrays) that `options` ask for; -1: draw it."""
        unknown = sorted(set(options) - {"dataset", "start"})
        if unknown:
            raise ValueError(f'unknown reset options {unknown}; known are "dataset" and "start"')
        if not options:
            return -1, -1
        dataset = int(options.get("dataset", 0 if len(self.markets) == 1 else -1))
        if not 0 <= dataset < len(self.markets):
            raise ValueError(
                f'reset option "dataset" must be given and within [0, {len(self.markets)}), got '
                f"{options.get('dataset')!r}"
            )
        if "start" not in options:
            return dataset, -1
        market, start = self.markets[dataset], int(options["start"])
        if not market.first_decision <= start < len(market) - 1:
            raise ValueError(
                f'{market.symbol}: reset option "start" must be a decision bar with a bar after it, within '
                f"[{market.first_decision}, {len(market) - 2}], got {start}"
            )
        return dataset, int(self._stack.tables[dataset]["offset"]) + start

    def _set_draws(self, draws: Mapping[str, float]) -> None:
        if set(draws) != set(DRAW_FIELDS) or not all(math.isfinite(value) for value in draws.values()):
            raise ValueError(f"draws must be finite numbers for {', '.join(DRAW_FIELDS)}, got {dict(draws)}")
        write_lane(self._block, dict(draws))

    def _wrong_action(self, action: object) -> ValueError:
        return ValueError(wrong_action_message(action, self.grid, self._symbols[self._dataset]))


def wrong_action_message(action: object, grid: ActionGrid, where: str) -> str:
    """Why `action` cannot be taken."""
    is_index = isinstance(action, (int, np.integer)) and not isinstance(action, bool)
    if is_index and 0 <= int(action) < len(grid):  # type: ignore[call-overload]
        target = grid.targets[int(action)]  # type: ignore[call-overload]
        return (
            f"{where}: action {action} (target exposure {target:g}) is masked: spot accounts cannot go short; "
            f"allowed actions are {np.flatnonzero(grid.mask).tolist()}"
        )
    return f"{where}: action must be an integer in [0, {len(grid)}), got {action!r}"
