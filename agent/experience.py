"""Where experience comes from and what is learnt from: the parts that training in one process and on many share.

Legend: N environments (rows), T columns of a chunk, S sequences of a batch.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.demonstrations import Demonstrations, as_replay
from agent.networks.model import StochasticMuZero
from agent.planner import Decode, Planner
from agent.policy import Observations
from agent.reanalyse import SecondLives, Sink, offers_counterfactuals
from agent.replay import Batch, Record, Replay, concatenate
from agent.self_play import SelfPlay
from agent.spaces import VectorEnv, action_count, action_factors, as_observations, stored_entries

# One flat dictionary of arrays [T, N, ...]: observations under "observation.NAME", the rest under the record's names.
Chunk = Mapping[str, NDArray[np.generic]]

_OBSERVATION = "observation."
_GROUPS = 8  # parts of a batch, each from one ring: a batch costs the same however many rings there are


class EnvFactory(Protocol):
    """Makes the vector environments of a run. Environments need next-step autoreset (Gymnasium 1.x)."""

    def train(self, num_envs: int, seed: int) -> VectorEnv:
        """Where experience is gathered."""

    def validation(self, num_envs: int, seed: int) -> VectorEnv:
        """Where the best checkpoint is chosen: data the training environments never show."""


def make_model(env: VectorEnv, config: AgentConfig, *, seed: int, decode: Decode | None) -> StochasticMuZero:
    """A new model for what the environment shows and takes. Resets the environment with the seed."""
    first, _ = env.reset(seed=seed)
    real: Observations = as_observations(first)
    if decode is not None:
        real = decode(real)
    shapes = {name: entry.shape[1:] for name, entry in real.items()}
    space = env.single_action_space
    return StochasticMuZero(shapes, action_count(space), config.network, action_factors(space))


def make_replay(env: VectorEnv, config: AgentConfig, *, share: float = 1.0, rings: int = 1) -> Replay:
    """One of `rings` equal memories that together hold `share` times the configured steps, in the configured bytes."""
    sizes = {
        "capacity_bytes": config.replay.capacity_bytes // rings,
        "capacity_steps": round(share * config.replay.capacity_steps) // rings,
        "window_steps": max(1, round(share * config.replay.window_steps) // rings),
    }
    return Replay(
        config.replay.model_copy(update=sizes),
        rows=config.self_play.num_envs,
        actions=action_count(env.single_action_space),
        observations=stored_entries(env.single_observation_space),
        discount=config.discount,
        action_parts=len(action_factors(env.single_action_space)),
        players=config.search.players,
    )


def load_demonstrations(env: VectorEnv, config: AgentConfig, data_fingerprint: str | None) -> Replay | None:
    """The configured demonstrations as a memory; None where there are none. Raises DemonstrationError when they are of
    another environment or of other data."""
    path = config.replay.demonstrations
    if path is None:
        return None
    recorded = Demonstrations.load(path)
    recorded.require_same_spaces(env, str(path))
    recorded.require_same_data(data_fingerprint, str(path))
    return as_replay(recorded, config)


class Gatherer:
    """Self-play over a vector of environments, and beside it second lives in their proportion.

    second_lives: None where the configuration asks for none. owed: second lives due and not yet lived.
    """

    def __init__(
        self,
        envs: EnvFactory,
        env: VectorEnv,
        planner: Planner,
        config: AgentConfig,
        *,
        env_seed: int,
        seeds: list[int],
    ) -> None:
        """env: where first lives are lived; second ones get an environment of their own, made with `env_seed`. seeds:
        of the actions of first and of second lives.

        Raises ValueError when second lives are asked for and the environment cannot be set back.
        """
        self._ratio = config.replay.counterfactual_ratio
        self.actor = SelfPlay(env, planner, config, seed=seeds[0])
        self.second_lives: SecondLives | None = None
        self.owed = 0.0
        if not self._ratio:
            return
        if not offers_counterfactuals(env):
            raise ValueError(
                f"replay.counterfactual_ratio {self._ratio}: expected an environment that can be set back (get_state, "
                f"set_state and counterfactual = True), found {type(env).__name__}. Set it to 0"
            )
        again = envs.train(config.self_play.num_envs, env_seed)
        again.reset(seed=env_seed)
        second = SelfPlay(again, planner, config, seed=seeds[1])
        second.follows = self.actor
        self.second_lives = SecondLives(
            second,
            states=config.replay.counterfactual_states,
            length=config.replay.counterfactual_length,
            hold=config.replay.counterfactual_hold,
        )

    @property
    def acted(self) -> int:
        """Steps searched and taken, in first and second lives."""
        return self.actor.env_steps + (0 if self.second_lives is None else self.second_lives.steps)

    def step(self, first: Sink, second: Sink | None) -> None:
        """One step everywhere, into `first`; then the second lives due, into `second`. A moment is kept as often as
        one is lived again."""
        first.add(self.actor.step())
        lives = self.second_lives
        if lives is None or second is None:
            return
        self.owed += self._ratio / lives.length
        if self.owed >= 1.0 or not lives.moments:
            lives.remember(self.actor)
        while self.owed >= 1.0:
            lives.relive(second)
            self.owed -= 1.0


class RecordList:
    """Records in the order they were made, before they are sent to a replay elsewhere."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        """Append one record per row."""
        self.records.append(record)

    def cut(self) -> None:
        """End every row's episode at its newest record."""
        last = self.records[-1]
        self.records[-1] = replace(last, has_transition=np.zeros_like(last.has_transition))

    def pack(self) -> dict[str, NDArray[np.generic]]:
        """All records as one `Chunk`, empty where there are none."""
        if not self.records:
            return {}
        names = [field.name for field in fields(Record) if field.name != "observations"]
        chunk = {name: np.stack([getattr(record, name) for record in self.records]) for name in names}
        for name in self.records[0].observations:
            chunk[_OBSERVATION + name] = np.stack([np.asarray(r.observations[name]) for r in self.records])
        return chunk


def unpack(chunk: Chunk) -> Iterator[Record]:
    """The records of a chunk, in the order they were made: the inverse of `RecordList.pack`."""
    for t in range(len(chunk["reward"]) if chunk else 0):
        column = {name: array[t] for name, array in chunk.items()}
        observations = {
            name.removeprefix(_OBSERVATION): column.pop(name) for name in list(column) if name.startswith(_OBSERVATION)
        }
        yield Record(observations=observations, **column)


class Memory:
    """What is learnt from: rings of first lives and, where there are any, rings of second ones and demonstrations.

    Every ring belongs to one vector of environments, whose rows advance together. Batches mix first and second lives
    in the configured proportion; among rings of a kind each has its share of the steps learnt from.
    """

    def __init__(
        self,
        config: AgentConfig,
        first: Sequence[Replay],
        second: Sequence[Replay] = (),
        demonstrations: Replay | None = None,
    ) -> None:
        self._config = config
        self.first, self.second, self.demonstrations = first, second, demonstrations

    @property
    def steps(self) -> int:
        """Records of first lives held."""
        return sum(ring.steps for ring in self.first)

    def recorded(self, count: int, updates: int) -> int:
        """How many of `count` samples come from the demonstrations at this update: all before there is self-play."""
        replay = self._config.replay
        if self.demonstrations is None:
            return 0
        if updates < self._config.training.offline_updates:
            return count
        over = replay.demonstration_updates is not None and updates >= replay.demonstration_updates
        return 0 if over else round(count * replay.demonstration_ratio)

    def sample(self, size: int, rng: np.random.Generator, updates: int) -> list[tuple[Replay, Batch]]:
        """`size` sequences for the update after `updates`, as parts of the rings they are from: demonstrations in
        their share, first lives, and second ones in their proportion once there are any."""
        parts: list[tuple[Replay, Batch]] = []
        recorded = self.recorded(size, updates)
        if self.demonstrations is not None and recorded:
            parts.append((self.demonstrations, self.demonstrations.sample(recorded, self._config.learner.unroll, rng)))
            size -= recorded
        if not size:
            return parts
        ratio = self._config.replay.counterfactual_ratio
        ready = any(ring.window > 1 for ring in self.second)
        second = round(size * ratio / (1.0 + ratio)) if ready else 0
        parts += self._draw(self.first, size - second, rng)
        return parts + self._draw(self.second, second, rng) if second else parts

    def _draw(self, rings: Sequence[Replay], size: int, rng: np.random.Generator) -> list[tuple[Replay, Batch]]:
        unroll = self._config.learner.unroll
        if len(rings) == 1:
            return [(rings[0], rings[0].sample(size, unroll, rng))]
        counts = ring_counts(shares(rings), size, rng)
        return [
            (ring, ring.sample(count, unroll, rng)) for ring, count in zip(rings, counts.tolist(), strict=True) if count
        ]


def shares(rings: Sequence[Replay]) -> list[int]:
    """Records of each ring to learn from; none where there is no transition among them."""
    return [ring.window * ring.rows if ring.window > 1 else 0 for ring in rings]


class Ages:
    """Keeps several rings to what one ring in their place would hold: the newest records of all of them together.

    A ring by itself forgets only what newer records of its own actor displace. Without this, what an actor that is
    slower than the others, or gone, has left behind would be learnt from for ever.
    """

    def __init__(self, rings: Sequence[Replay]) -> None:
        self._rings = rings
        self._room = sum(ring.columns * ring.rows for ring in rings)
        self._made = 0
        # Of every column held, how many records there were of all rings when it came.
        self._numbers: list[deque[int]] = [deque(maxlen=ring.columns) for ring in rings]

    def count(self, index: int) -> None:
        """A column has been added to this ring."""
        self._made += self._rings[index].rows
        self._numbers[index].append(self._made)

    def forget(self) -> None:
        """Limit every ring to its columns that are among the newest."""
        for ring, numbers in zip(self._rings, self._numbers, strict=True):
            while numbers and numbers[0] <= self._made - self._room:
                numbers.popleft()
            ring.horizon = len(numbers)

    def get_state(self, index: int) -> NDArray[np.int64]:
        """The numbers of this ring's columns, oldest first."""
        return np.asarray(self._numbers[index], np.int64)

    def set_state(self, numbers: Sequence[NDArray[np.int64]]) -> None:
        """Take up what `get_state` gave for each ring."""
        for own, saved in zip(self._numbers, numbers, strict=True):
            own.clear()
            own.extend(saved.tolist())
        self._made = max((own[-1] for own in self._numbers if own), default=0)
        self.forget()


def ring_counts(steps: Sequence[int], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How many of `size` sequences each ring gives: in expectation its share of the steps learnt from.

    The batch is cut into a few groups, and each group comes from one ring drawn in proportion to its steps.
    """
    groups = np.diff(np.linspace(0, size, min(_GROUPS, size) + 1).round().astype(np.int64))
    share = np.asarray(steps, np.float64)
    chosen = rng.choice(len(share), size=len(groups), p=share / share.sum())
    return np.bincount(chosen, weights=groups, minlength=len(share)).astype(np.int64)


def joined(parts: Sequence[tuple[Replay, Batch]]) -> Batch:
    """The parts as one batch."""
    return parts[0][1] if len(parts) == 1 else concatenate([part for _, part in parts])


def share_priorities(parts: Sequence[tuple[Replay, Batch]], error: NDArray[np.float32]) -> None:
    """Give each ring the value errors [S] of its part of the batch."""
    start = 0
    for ring, part in parts:
        ring.set_priorities(part, error[start : start + len(part.row)])
        start += len(part.row)
