"""Experience of a vector of environments, bounded in bytes, sampled as short sequences.

Legend: N environments (rows), T records kept per row, S sampled sequences, K unroll, A actions (categories of all parts
together, where an action has D parts).

All rows advance together, so the memory is one ring of T columns. A record is one visited observation (see
agent/targets.py). Observations are stored as the environment hands them out: an environment whose
observations are large offers indices and a `decode` that gathers the real thing, and the replay need not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config import ReplayConfig
from agent.policy import Observations
from agent.targets import corrected_returns, n_step_returns, reachable, td_lambda_returns

_REDRAWS = 32
_PRIORITY_FLOOR = 1e-3  # nothing is ever so well predicted that it is never looked at again


@dataclass(frozen=True)
class Record:
    """One column of the ring: what happened in every row at one step.

    observations:  entries [N, ...], as the environment hands them out.
    action:        [N] the action that left this observation (anything where has_transition is False); [N, D] the
                   categories of its parts, where it has any.
    reward:        [N] the reward for it.
    terminated:    [N] that transition ended the episode for good.
    has_transition: [N] False for the last observation of an episode: the next record starts a new one.
    action_mask:   [N, A] allowed actions.
    policy:        [N, A] search policy.
    root_value:    [N] search value.
    trust:         [N] min(1, π/μ) of the action: how much of what followed counts for the policy that values are of.
    """

    observations: Observations
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    has_transition: NDArray[np.bool_]
    action_mask: NDArray[np.bool_]
    policy: NDArray[np.float32]
    root_value: NDArray[np.float32]
    trust: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """S sequences of K+1 states with their targets (agent.md, "Learning").

    observations: entries [S, K+1, ...] as stored. action: [S, K] or [S, K, D]. reward: [S, K].
    policy: [S, K+1, A]. value: [S, K+1], and q: [S, K] of the action taken there, which differs from it where
    exploration is corrected. state_mask: [S, K+1] the state exists. step_mask: [S, K] the step does.
    weight: [S] importance weights. row, column: [S] where the sequences came from, for priorities.
    age: [S] how many records ago each was made.
    """

    observations: Observations
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    policy: NDArray[np.float32]
    value: NDArray[np.float32]
    q: NDArray[np.float32]
    state_mask: NDArray[np.bool_]
    step_mask: NDArray[np.bool_]
    weight: NDArray[np.float32]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    age: NDArray[np.int64]


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of several. Rows and columns keep pointing into the replay each part came from."""
    parts = {
        field.name: np.concatenate([getattr(batch, field.name) for batch in batches])
        for field in fields(Batch)
        if field.name != "observations"
    }
    names = batches[0].observations
    return Batch(
        observations={name: np.concatenate([batch.observations[name] for batch in batches]) for name in names}, **parts
    )


class Replay:
    """A ring of records for N rows."""

    def __init__(
        self,
        config: ReplayConfig,
        *,
        rows: int,
        actions: int,
        observations: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]],
        discount: float,
        action_parts: int = 0,
        players: int = 1,
    ) -> None:
        """observations: shape and dtype of each entry of one stored observation. action_parts: D, 0 where an action is
        one choice. players: who take turns, one record each.

        Raises ValueError when the byte bound leaves no room for a usable ring.
        """
        per_step = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in observations.values())
        per_step += 8 * max(action_parts, 1) + 4 + 1 + 1 + actions + 4 * actions + 4 + 4
        columns = min(config.capacity_steps, config.capacity_bytes // per_step) // rows
        if columns < config.n_step + 2:
            raise ValueError(
                f"replay of {config.capacity_bytes} bytes and {config.capacity_steps} steps holds {columns} "
                f"records for each of {rows} environments ({per_step} bytes a step); n_step {config.n_step} "
                f"needs at least {config.n_step + 2}. Raise replay.capacity_bytes or lower self_play.num_envs"
            )
        self.config = config
        self.rows = rows
        self.columns = columns
        self.discount = discount
        self.players = players
        self.added = 0  # columns ever written
        self.horizon = columns  # newest columns that may be learnt from; fewer where other rings hold newer records
        shape = (rows, columns)
        self._store: dict[str, NDArray[Any]] = {
            "action": np.zeros((*shape, action_parts) if action_parts else shape, np.int64),
            "reward": np.zeros(shape, np.float32),
            "terminated": np.zeros(shape, bool),
            "has_transition": np.zeros(shape, bool),
            "action_mask": np.ones((*shape, actions), bool),
            "policy": np.zeros((*shape, actions), np.float32),
            "root_value": np.zeros(shape, np.float32),
            "trust": np.zeros(shape, np.float32),
            "priority": np.zeros(shape, np.float32),
        }
        self._names = sorted(observations)
        for name, (entry, dtype) in observations.items():
            self._store[f"observation.{name}"] = np.zeros((*shape, *entry), dtype)

    @property
    def size(self) -> int:
        """Columns held."""
        return min(self.added, self.columns)

    @property
    def window(self) -> int:
        """Columns learnt from: the newest ones."""
        config, held = self.config, min(self.size, self.horizon)
        if config.window_fraction == 0.0:
            return held
        wanted = max(config.window_steps // self.rows, int(config.window_fraction * self.added), 2)
        return min(wanted, held)

    @property
    def steps(self) -> int:
        """Records held, all rows together."""
        return self.size * self.rows

    @property
    def nbytes(self) -> int:
        """Memory of the stored arrays."""
        return sum(array.nbytes for array in self._store.values())

    def add(self, record: Record) -> None:
        """Append one record per row; the oldest makes room."""
        column = self.added % self.columns
        for name in self._names:
            self._store[f"observation.{name}"][:, column] = record.observations[name]
        for name in (
            "action", "reward", "terminated", "has_transition", "action_mask", "policy", "root_value", "trust",
        ):  # fmt: skip
            self._store[name][:, column] = getattr(record, name)
        # A new record is as urgent as the most urgent known one, so everything is learnt from at least once.
        priority = self._store["priority"]
        urgent = float(priority.max()) if self.added else 1.0
        priority[:, column] = np.where(record.has_transition, max(urgent, _PRIORITY_FLOOR), 0.0)
        self.added += 1

    def cut(self) -> None:
        """End every row's episode at its newest record: what is added next starts new ones."""
        newest = (self.added - 1) % self.columns
        self._store["has_transition"][:, newest] = False
        self._store["priority"][:, newest] = 0.0

    def sample(self, count: int, unroll: int, rng: np.random.Generator) -> Batch:
        """Draw sequences and compute their targets; no loop over sequences or unroll steps.

        Raises ValueError while there are fewer than two columns to learn from.
        """
        if self.window < 2:
            raise ValueError(f"sampling needs at least 2 records per environment; found {self.window}")
        row, column, weight = self._draw(count, rng)
        length = unroll + 1 + self.config.n_step
        newest = (self.added - 1) % self.columns
        ahead = np.minimum(np.arange(length), (newest - column) % self.columns)
        # Columns past the newest record repeat it; it has no transition, so nothing is read beyond it.
        where = (column + ahead) % self.columns
        at_end = where == newest
        has_transition = self._read("has_transition", row, where) & ~at_end
        rewards = self._read("reward", row, where)
        values = self._read("root_value", row, where)
        terminated = self._read("terminated", row, where)
        states = unroll + 1
        if self.config.correct_exploration:
            targets, q_targets = corrected_returns(
                rewards, values, self._read("trust", row, where), has_transition, terminated,
                discount=self.discount, n_step=self.config.n_step,
                td_lambda=1.0 if self.config.td_lambda is None else self.config.td_lambda, count=states,
                players=self.players,
            )  # fmt: skip
        elif self.config.td_lambda is None:
            targets = n_step_returns(
                rewards, values, has_transition, terminated,
                discount=self.discount, n_step=self.config.n_step, count=states, players=self.players,
            )  # fmt: skip
        else:
            targets = td_lambda_returns(
                rewards, values, has_transition, terminated,
                discount=self.discount, n_step=self.config.n_step,
                td_lambda=self.config.td_lambda, count=states, players=self.players,
            )  # fmt: skip
        if not self.config.correct_exploration:
            q_targets = targets
        reach = reachable(has_transition[:, :states])
        step_mask = reach[:, :unroll] & has_transition[:, :unroll]
        # The last observation of an episode that terminated is worth nothing and has no policy to learn.
        ended = np.zeros_like(reach)
        ended[:, 1:] = step_mask & terminated[:, :unroll]
        targets[ended] = 0.0
        read = where[:, :states]
        action, reward = self._read("action", row, read[:, :unroll]), rewards[:, :unroll]
        if self.config.absorbing:
            # From the terminal state on, time stands still: it is worth nothing whatever is done there, and what is
            # done there are the actions of other sequences.
            over = np.logical_or.accumulate(ended, axis=1)
            there = np.maximum(over.argmax(axis=1), 1)[:, None]  # index of the terminal state, where there is one
            read = np.where(over, np.take_along_axis(read, there, axis=1), read)
            past = over[:, :unroll]
            ended, reach, step_mask = over, reach | over, step_mask | past
            targets, q_targets = (np.where(over, np.float32(0.0), target) for target in (targets, q_targets))
            reward = np.where(past, np.float32(0.0), reward)
            still = past.reshape(*past.shape, *[1] * (action.ndim - 2))
            action = np.where(still, action[rng.permutation(len(action))], action)
        return Batch(
            observations={name: self._store[f"observation.{name}"][row[:, None], read] for name in self._names},
            action=action,
            reward=reward,
            policy=np.where(ended[..., None], 0.0, self._read("policy", row, read)).astype(np.float32),
            value=targets,
            q=q_targets[:, :unroll],
            state_mask=reach,
            step_mask=step_mask,
            weight=weight,
            row=row,
            column=column[:, 0],
            age=((newest - column) % self.columns)[:, 0],
        )

    def set_priorities(self, batch: Batch, error: NDArray[np.float32]) -> None:
        """Priorities |root value − target| of the sequences just learnt from (Schaul et al. 2016). error: [S]."""
        self._store["priority"][batch.row, batch.column] = np.maximum(np.abs(error), _PRIORITY_FLOOR)

    def draw_records(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Records to search anew: uniform over what is learnt from. Returns rows and columns, [count] each."""
        rows = rng.integers(self.rows, size=count)
        ages = rng.integers(self.window, size=count)
        return rows, (self.added - 1 - ages) % self.columns

    def read(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[Observations, NDArray[np.bool_]]:
        """Stored observations [count, ...] and action masks [count, A] at given places."""
        observations = {name: self._store[f"observation.{name}"][rows, columns] for name in self._names}
        return observations, self._store["action_mask"][rows, columns].astype(bool)

    def refresh(
        self,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        policy: NDArray[np.float32],
        root_value: NDArray[np.float32],
    ) -> None:
        """Replace what an older search thought by what a newer one does (reanalyse)."""
        self._store["policy"][rows, columns] = policy
        self._store["root_value"][rows, columns] = root_value

    def get_state(self) -> dict[str, NDArray[np.generic]]:
        """Everything stored, as arrays. Columns never written are left out."""
        state = {name: array[:, : self.size] for name, array in self._store.items()}
        return {**state, "added": np.asarray(self.added, np.int64)}

    def set_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Restore what `get_state` gave. Raises ValueError when the shapes are of another replay."""
        size = min(int(state["added"]), self.columns)
        for name, array in self._store.items():
            expected = (self.rows, size, *array.shape[2:])
            if state[name].shape != expected:
                raise ValueError(f"replay field {name!r}: expected shape {expected}, found {state[name].shape}")
            array[:, :size] = state[name]
        self.added = int(state["added"])

    def _read(self, name: str, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[Any]:
        return self._store[name][row[:, None], column]

    def _draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Rows [S], columns [S, 1] and importance weights [S]. The newest column has no known transition yet."""
        window = self.window
        oldest = (self.added - window) % self.columns
        drawn = self._draw_prioritised if self.config.prioritised else self._draw_uniform
        row, ahead, weight = drawn(count, rng, oldest, window - 1)
        return row, ((oldest + ahead) % self.columns)[:, None], weight

    def _draw_uniform(
        self, count: int, rng: np.random.Generator, oldest: int, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Rows, columns counted from `oldest`, weights; time does not grow with the memory."""
        weight = np.ones(count, np.float32)
        # One draw in each of `count` equal strata: same distribution, less variance.
        places = self.rows * length
        flat = ((np.arange(count) + rng.random(count)) * (places / count)).astype(np.int64)
        row, ahead = np.divmod(np.minimum(flat, places - 1), length)
        for _ in range(_REDRAWS):
            last = self._store["priority"][row, (oldest + ahead) % self.columns] == 0.0
            if not last.any():
                return row, ahead, weight
            row[last] = rng.integers(self.rows, size=int(last.sum()))
            ahead[last] = rng.integers(length, size=int(last.sum()))
        # Hardly anything was left by a transition (episodes of a step or two): list what was.
        columns = (oldest + np.arange(length)) % self.columns
        rows, places_ahead = np.nonzero(self._store["priority"][:, columns])
        if not len(rows):
            raise ValueError("sampling needs at least one stored transition; found none")
        pick = rng.integers(len(rows), size=count)
        return rows[pick], places_ahead[pick], weight

    def _draw_prioritised(
        self, count: int, rng: np.random.Generator, oldest: int, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The same, in proportion to priority^alpha."""
        columns = (oldest + np.arange(length)) % self.columns
        priority = self._store["priority"][:, columns].astype(np.float64)
        mass = np.where(priority > 0.0, priority**self.config.priority_alpha, 0.0)
        cumulative = np.cumsum(mass.ravel())
        total = cumulative[-1]
        if not total > 0:
            raise ValueError("sampling needs at least one stored transition; found none")
        points = (np.arange(count) + rng.random(count)) * (total / count)
        points = np.minimum(points, np.nextafter(total, 0.0))  # the product can round up to the total itself
        flat = np.searchsorted(cumulative, points, side="right")
        row, ahead = np.divmod(flat, length)
        probability = mass.ravel()[flat] / total
        raw = (1.0 / (probability * (mass > 0).sum())) ** self.config.importance_beta
        return row, ahead, (raw / raw.max()).astype(np.float32)
