"""MarketVectorEnv: many market accounts in one compiled call per step.

    envs = MarketVectorEnv([market], MarketConfig(), num_envs=1024, obs_mode="index")
    observations, infos = envs.reset(seed=7)                       # row i is MarketEnv.reset(seed=7 + i)
    observations, rewards, terminated, truncated, infos = envs.step(actions)
    windows = envs.decode(observations)["window"]                  # [B, T, F]

Next-step autoreset, as Gymnasium 1.x defines it: the step after an episode's end ignores the action, returns the first
observation of the next episode and reward 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from market_env import rng, rows
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.env import wrong_action_message
from market_env.layout import FIELDS, LANES, OUTCOME_FIELDS, RECORD_FIELDS, at, new_blocks
from market_env.market import Market
from market_env.observation import ObservationBuilder

Observations = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_T, _TIMESTAMP, _REJECTED, _LIQUIDATED, _REWARD, _TERMINATED, _TRUNCATED = (
    OUTCOME_FIELDS.index(name)
    for name in ("t", "timestamp", "rejected", "liquidated", "reward", "terminated", "truncated")
)


class MarketVectorEnv(VectorEnv[Observations, NDArray[np.int64], NDArray[Any]]):
    """B accounts, each in its own episode.

    obs_mode: "window" returns {"window": [B, T, F], "account": [B, 8]}; "index" returns {"dataset": [B, 1],
        "t": [B, 1], "account": [B, 8]}, fifty bytes that `decode` turns into the same windows when they are needed.
    copy: False reuses one observation buffer, overwritten by the next step. Everything else is fresh at each step.
    seed: of the first `reset` that is given none; without either, one is taken from the system.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it
    counterfactual = True  # draws are addressed by bar: a state set back meets the same market under other actions

    def __init__(
        self,
        markets: Sequence[Market],
        config: MarketConfig | None = None,
        num_envs: int = 1,
        *,
        seed: int | None = None,
        obs_mode: Literal["window", "index"] = "window",
        copy: bool = True,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if obs_mode not in ("window", "index"):
            raise ValueError(f'obs_mode must be "window" or "index", got {obs_mode!r}')
        self.markets = tuple(markets)
        self.config = MarketConfig() if config is None else config
        self.num_envs = num_envs
        self.obs_mode = obs_mode
        self.copy = copy
        self.grid = ActionGrid.build(self.config.actions)
        self._stack = rows.Stack.build(self.markets, self.config)
        self._builder = ObservationBuilder(self.config.observation.window)
        num_features = self._stack.features.shape[1]
        self.decoded_observation_space = self._builder.space(num_features)
        self.single_observation_space = (
            self.decoded_observation_space if obs_mode == "window" else self._builder.index_space(self.markets)
        )
        self.single_action_space = spaces.Discrete(len(self.grid))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._window_shape = (num_envs, self._builder.length if obs_mode == "window" else 0, num_features)
        self._buffers: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._blocks = new_blocks(num_envs)
        # Columns beyond num_envs stay unused: rows a power of two apart would fall on the same lines of the cache.
        self._outcome_width = num_envs + 8
        self._seed = None if seed is None else rng.seed_key(seed)
        self._began = False
        self._symbols = np.array([market.symbol for market in self.markets])
        self._masks = np.repeat(self.grid.mask[None], num_envs, axis=0)
        # Every environment has every key, which Gymnasium's convention wants said in a mask per key.
        present = np.ones(num_envs, dtype=np.bool_)
        present.setflags(write=False)
        names = (*RECORD_FIELDS, "instrument", "action_mask")
        self._info_masks: dict[str, Any] = {f"_{name}": present for name in names}
        self._only: NDArray[Any] | None = None  # everyone's instrument, where there is one market
        if len(self.markets) == 1:
            self._only = np.repeat(self._symbols, num_envs)
            self._only.setflags(write=False)

    # --- Gymnasium -------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode in every environment: the first ones of the seeds, or the next ones of the seeds in use.

        seed: environment i gets seed + i, or seed[i].
        """
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; a vector environment has none")
        if seed is None and not self._began:
            seed = self._seed if self._seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            seeds = rng.seed_keys(seed, self.num_envs)
            self._set("env_seed_low", seeds & np.uint64(0xFFFFFFFF))
            self._set("env_seed_high", seeds >> np.uint64(32))
            self._set("episode", np.zeros(self.num_envs))
        else:
            self._set("episode", self._get("episode") + 1.0)
        self._began = True
        outcomes = np.empty((len(OUTCOME_FIELDS), self._outcome_width))
        account, window = self._observation_arrays()
        stack = self._stack
        rows.reset_blocks(
            self._blocks, self.num_envs, stack.tables, stack.bars, stack.features, stack.grid, -1, -1, outcomes,
            account, window,
        )  # fmt: skip
        outcomes = outcomes[:, : self.num_envs]
        return self._observations(account, window, outcomes), self._infos(outcomes)

    def step(self, actions: NDArray[Any]) -> tuple[Observations, Floats, Flags, Flags, dict[str, Any]]:
        """Step every environment by its action, or begin its next episode if the last one has ended.

        Raises ValueError naming the first environment whose action is out of range or masked; then nothing changed.
        """
        if not self._began:
            raise RuntimeError("step before the first reset; call reset first")
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} integers, got shape {chosen.shape} of type {chosen.dtype}"
            )
        outcomes = np.empty((len(OUTCOME_FIELDS), self._outcome_width))
        account, window = self._observation_arrays()
        stack = self._stack
        wrong = rows.step_blocks(
            self._blocks, self.num_envs, stack.tables, stack.bars, stack.features, stack.grid,
            np.ascontiguousarray(chosen, dtype=np.int64), outcomes, account, window,
        )  # fmt: skip
        if wrong >= 0:
            where = f"environment {wrong} ({self._symbols[self._datasets()[wrong]]})"
            raise ValueError(wrong_action_message(chosen[wrong].item(), self.grid, where))
        outcomes = outcomes[:, : self.num_envs]
        return (
            self._observations(account, window, outcomes),
            outcomes[_REWARD],
            outcomes[_TERMINATED] > 0.0,
            outcomes[_TRUNCATED] > 0.0,
            self._infos(outcomes),
        )

    # --- more than Gymnasium asks for ------------------------------------------------------------------------------

    def decode(self, observations: Mapping[str, NDArray[Any]]) -> Observations:
        """Observations of index mode as {"window": [..., T, F], "account": [..., 8]}, for any leading shape.

        Observations that hold windows already are returned as they are.
        """
        if "window" in observations:
            return dict(observations)
        account = np.asarray(observations["account"])
        lead = account.shape[:-1]
        dataset = np.asarray(observations["dataset"], dtype=np.int64).reshape(-1)
        t = np.asarray(observations["t"], dtype=np.int64).reshape(-1)
        if len(dataset) and not (dataset.min() >= 0 and dataset.max() < len(self.markets)):
            raise ValueError(
                f"dataset must lie within [0, {len(self.markets)}), got {dataset.min()} to {dataset.max()}"
            )
        offset = self._stack.tables["offset"][dataset]
        # A window must stay inside its own market: the next one begins right behind it.
        wrong = (t < self._builder.length - 1) | (offset + t >= self._stack.tables["end"][dataset])
        if wrong.any():
            where = int(np.argmax(wrong))
            raise ValueError(
                f"{self._symbols[dataset[where]]}: t must lie within [{self._builder.length - 1}, "
                f"{len(self.markets[dataset[where]])}), got {t[where]}"
            )
        windows = self._builder.windows(self._stack.features, offset + t)
        return {"window": windows.reshape(*lead, *windows.shape[1:]), "account": account}

    def get_state(self) -> Floats:
        """Everything the environments remember: [B, len(layout.FIELDS)], one row each (a copy)."""
        return rows.as_rows(self._blocks, self.num_envs)

    def set_state(self, state: Floats) -> None:
        """Continue from `get_state`; rows may be selected, repeated and reordered.

        The next `step` goes on from there. Meant for exact counterfactuals: the same bars under other actions.
        """
        expected = (self.num_envs, len(FIELDS))
        if state.shape != expected:
            raise ValueError(f"state must be of shape {expected}, one row per environment, got {state.shape}")
        self._blocks = rows.from_rows(state)
        self._began = True

    # --- the rest --------------------------------------------------------------------------------------------------

    def _observation_arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Account [B, 8] and window [B, T, F] to write into: fresh, or the reused ones."""
        if self._buffers is not None:
            return self._buffers
        account: NDArray[np.float32] = np.empty((self.num_envs, 8), dtype=np.float32)
        window: NDArray[np.float32] = np.empty(self._window_shape, dtype=np.float32)
        if not self.copy:
            self._buffers = (account, window)
        return account, window

    def _get(self, name: str) -> Floats:
        """A field of all environments [B], a copy."""
        place: int = getattr(at, name)
        return self._blocks[:, place : place + LANES].reshape(-1)[: self.num_envs]

    def _set(self, name: str, values: NDArray[Any]) -> None:
        """Set a field of all environments."""
        place: int = getattr(at, name)
        padded = np.zeros(len(self._blocks) * LANES)
        padded[: self.num_envs] = values
        self._blocks[:, place : place + LANES] = padded.reshape(-1, LANES)

    def _datasets(self) -> NDArray[np.int32]:
        if len(self.markets) == 1:
            return np.zeros(self.num_envs, dtype=np.int32)
        return self._get("dataset").astype(np.int32)

    def _observations(
        self, account: NDArray[np.float32], window: NDArray[np.float32], outcomes: Floats
    ) -> Observations:
        if self.obs_mode == "window":
            return {"window": window, "account": account}
        return {
            "dataset": self._datasets()[:, None],
            "t": outcomes[_T].astype(np.int32)[:, None],
            "account": account,
        }

    def _infos(self, outcomes: Floats) -> dict[str, Any]:
        """One array per key of `BarRecord`, and Gymnasium's mask for each. outcomes: [28, B]."""
        infos: dict[str, Any] = dict(zip(RECORD_FIELDS, outcomes, strict=False))
        infos["t"] = outcomes[_T].astype(np.int64)
        infos["timestamp"] = outcomes[_TIMESTAMP].astype(np.int64)
        infos["rejected"] = outcomes[_REJECTED] > 0.0
        infos["liquidated"] = outcomes[_LIQUIDATED] > 0.0
        infos["instrument"] = self._only if self._only is not None else self._symbols[self._datasets()]
        infos["action_mask"] = self._masks.copy()
        infos.update(self._info_masks)
        return infos
