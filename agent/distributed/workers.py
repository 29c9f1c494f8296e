"""What runs in the actors of a distributed run: plain classes, which tests call without Ray."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.distributed.cluster import free_port, is_loss, node_id, own_address
from agent.evaluation import Evaluation, evaluate
from agent.experience import (
    Ages,
    Chunk,
    EnvFactory,
    Gatherer,
    Memory,
    RecordList,
    joined,
    load_demonstrations,
    make_model,
    make_replay,
    share_priorities,
    shares,
    unpack,
)
from agent.fitting import Fitter, under
from agent.flow import Accepted
from agent.networks.flat import flat_weights, load_flat
from agent.planner import Planner
from agent.policy import Observations
from agent.replay import Batch, Replay
from agent.self_play import value_of
from agent.spaces import require_players
from agent.train import decoder

if TYPE_CHECKING:
    from ray import ObjectRef
else:
    ObjectRef = Any

Weights = NDArray[np.float32]

_BATCHES_AHEAD = 3  # asked for before they are needed: a batch's way takes about as long as an update


@dataclass(frozen=True)
class Gathered:
    """The small reply to an order of experience; the experience itself stays in the object store.

    returns: of episodes that ended. acted: steps searched, second lives included. seconds: it took. second_steps: lived
    again.
    """

    returns: list[float]
    acted: int
    seconds: float
    second_steps: int


@dataclass(frozen=True)
class Places:
    """Where drawn records lie: [M] ring, row and absolute column each."""

    ring: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Records to search anew: entries [M, ...] and masks [M, A]."""

    places: Places
    observations: Observations
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Searched:
    """What a search with newer weights says of drawn records: [M, A] and [M]."""

    places: Places
    policy: NDArray[np.float32]
    root_value: NDArray[np.float32]


class SelfPlayWorker:
    """A vector of environments with one compiled search."""

    def __init__(self, envs: EnvFactory, config: AgentConfig, *, seed: int) -> None:
        torch.set_num_threads(1)
        self._config = config
        seeds = np.random.SeedSequence(seed).generate_state(3)
        env = envs.train(config.self_play.num_envs, int(seeds[0]))
        require_players(env, config.search.players)
        decode = decoder(env)
        self._model = make_model(env, config, seed=int(seeds[0]), decode=decode)
        # One engine per process: processes are what there are several of.
        search = config.search.model_copy(update={"threads": config.search.threads or 1})
        self._planner = Planner(self._model, search, decode=decode)
        self._gatherer = Gatherer(
            envs, env, self._planner, config, env_seed=int(seeds[0]), seeds=[int(seeds[1]), int(seeds[2])]
        )

    def ready(self) -> str:
        """That it is there. Returns the node it runs on."""
        return node_id()

    def gather(
        self, weights: Weights, steps: int, env_steps: int
    ) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]], Gathered]:
        """Act for some steps with these weights. Returns chunks of first and of second lives, and the small reply.

        env_steps: of the whole run so far, which the temperature follows.
        """
        started = time.monotonic()
        self._load(weights)
        gatherer = self._gatherer
        gatherer.actor.env_steps = env_steps
        if gatherer.second_lives is not None:  # as far as those of one process would be
            gatherer.second_lives.actor.env_steps = round(self._config.replay.counterfactual_ratio * env_steps)
        first, second = RecordList(), RecordList()
        acted, lived = gatherer.acted, 0 if gatherer.second_lives is None else gatherer.second_lives.steps
        for _ in range(steps):
            gatherer.step(first, second)
        lived = 0 if gatherer.second_lives is None else gatherer.second_lives.steps - lived
        reply = Gathered(
            gatherer.actor.take_returns(), gatherer.acted - acted, time.monotonic() - started, second_steps=lived
        )
        return first.pack(), second.pack(), reply

    def search(self, weights: Weights, drawn: Drawn) -> Searched:
        """Search drawn records anew, quietly (agent.reanalyse)."""
        self._load(weights)
        drawn_candidates = bool(self._model.action_factors)
        rng, count = self._gatherer.actor.rng, len(drawn.mask)
        seeds = rng.integers(0, 2**63, size=count, dtype=np.uint64) if drawn_candidates else None
        result, _ = self._planner.plan(drawn.observations, action_mask=drawn.mask, seeds=seeds)
        policy = result.policy_target(self._model.action_factors)
        return Searched(drawn.places, policy, value_of(result, self._config.replay))

    def _load(self, weights: Weights) -> None:
        load_flat(self._model, weights)
        self._planner.refresh()


class ReplayWorker:
    """All experience: one ring of first lives per self-play actor, one of second lives where there are any, and
    demonstrations where they are configured."""

    def __init__(
        self,
        envs: EnvFactory,
        config: AgentConfig,
        *,
        rings: int,
        seed: int,
        before: Accepted,
        data_fingerprint: str | None = None,
    ) -> None:
        """before: what replays of this run before this one have accepted."""
        env = envs.train(config.self_play.num_envs, 0)
        ratio = config.replay.counterfactual_ratio
        first = [make_replay(env, config, rings=rings) for _ in range(rings)]
        second = [make_replay(env, config, share=ratio, rings=rings) for _ in range(rings)] if ratio else []
        self._memory = Memory(config, first, second, load_demonstrations(env, config, data_fingerprint))
        self._ages = {"first": Ages(first), "second": Ages(second)}
        self._rng = np.random.default_rng(seed)
        self._records, self._env_steps = before.records, before.env_steps
        self._writers: dict[int, int] = {}
        self._sampled: dict[int, list[tuple[Replay, Batch, int]]] = {}
        self._samples = 0
        self._size = config.learner.batch_size

    def add(self, ring: int, writer: int, first: Chunk, second: Chunk) -> Accepted:
        """Append chunks. writer: another one than before means that the actor was replaced: no episode goes on."""
        replay = self._memory.first[ring]
        if self._writers.get(ring, writer) != writer and replay.added:
            replay.cut()
        self._writers[ring] = writer
        for record in unpack(first):
            replay.add(record)
            self._ages["first"].count(ring)
            self._records += replay.rows
            self._env_steps += int(record.has_transition.sum())
        for record in unpack(second):
            self._memory.second[ring].add(record)
            self._ages["second"].count(ring)
        for ages in self._ages.values():
            ages.forget()
        return self.accepted()

    def accepted(self) -> Accepted:
        """Counters so far."""
        return Accepted(self._records, self._env_steps, self._memory.steps)

    def sample(self, updates: int, share: int = 1) -> tuple[int, Batch]:
        """A batch, or a 1/share of one, for the update after `updates`, and the number to give its priorities back
        under."""
        parts = self._memory.sample(self._size // share, self._rng, updates)
        self._samples += 1
        self._sampled[self._samples] = [(ring, part, ring.added) for ring, part in parts]
        while len(self._sampled) > 4 * _BATCHES_AHEAD * share:  # of a learner that is gone
            del self._sampled[next(iter(self._sampled))]
        return self._samples, joined(parts)

    def set_priorities(self, number: int, error: NDArray[np.float32]) -> None:
        """Value errors [S] of a sampled batch. Places overwritten since then keep the priority of what is new there."""
        parts = self._sampled.pop(number, None)
        if parts is None or any(
            ring.added - added + int(part.age.max()) >= ring.columns for ring, part, added in parts
        ):
            return
        share_priorities([(ring, part) for ring, part, _ in parts], error)

    def draw(self, count: int) -> Drawn:
        """Records of first lives to search anew, all of one ring drawn in proportion to what is learnt from it."""
        rings = self._memory.first
        share = np.array(shares(rings), np.float64)
        chosen = int(self._rng.choice(len(rings), p=share / share.sum()))
        ring = rings[chosen]
        row, column = ring.draw_records(count, self._rng)
        observations, mask = ring.read(row, column)
        age = (ring.added - 1 - column) % ring.columns
        return Drawn(Places(np.full(count, chosen), row, ring.added - 1 - age), observations, mask)

    def refresh(self, searched: Searched) -> None:
        """Take in what was searched anew, where it has not been overwritten since."""
        ring = self._memory.first[int(searched.places.ring[0])]
        kept = searched.places.column >= ring.added - ring.columns
        row, column = searched.places.row[kept], searched.places.column[kept] % ring.columns
        ring.refresh(row, column, searched.policy[kept], searched.root_value[kept])

    def get_state(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Everything, as arrays and bookkeeping."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for kind, rings in (("first", self._memory.first), ("second", self._memory.second)):
            for index, ring in enumerate(rings):
                arrays |= {f"replay.{kind}.{index}.{name}": array for name, array in ring.get_state().items()}
                arrays[f"ages.{kind}.{index}"] = self._ages[kind].get_state(index)
        accepted = self.accepted()
        return arrays, {
            "records": accepted.records,
            "env_steps": accepted.env_steps,
            "rng": self._rng.bit_generator.state,
        }

    def set_state(self, arrays: Mapping[str, NDArray[np.generic]], bookkeeping: Mapping[str, Any] | None) -> Accepted:
        """Restore the rings. bookkeeping: the counters too; None keeps those given at the start."""
        for kind, rings in (("first", self._memory.first), ("second", self._memory.second)):
            for index, ring in enumerate(rings):
                saved = under(arrays, f"replay.{kind}.{index}.")
                if int(saved["added"]):
                    ring.set_state(saved)
                    ring.cut()
            ages = under(arrays, f"ages.{kind}.")
            self._ages[kind].set_state([ages[str(index)].astype(np.int64) for index in range(len(rings))])
        if bookkeeping is not None:
            self._records, self._env_steps = bookkeeping["records"], bookkeeping["env_steps"]
            self._rng.bit_generator.state = bookkeeping["rng"]
        return self.accepted()

    def ready(self) -> str:
        """That it is there. Returns the node it runs on."""
        return node_id()


class LearnerWorker:
    """The learner, or one of several that share every batch."""

    def __init__(self, envs: EnvFactory, config: AgentConfig, *, seed: int, rank: int = 0, learners: int = 1) -> None:
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        torch.manual_seed(seed)
        self._envs, self._config, self._seed = envs, config, seed
        self._rank, self._learners = rank, learners
        self.address = f"tcp://{own_address()}:{free_port()}" if learners > 1 else ""
        self.fitter: Fitter

    def where(self) -> str:
        """The address at which the other learners find this one."""
        return self.address

    def prepare(self, address: str) -> tuple[Weights, Weights | None]:
        """Make the model, together with the other learners where there are any. Returns its weights."""
        if self._learners > 1:
            backend = "nccl" if torch.cuda.is_available() and self._config.learner.device != "cpu" else "gloo"
            torch.distributed.init_process_group(
                backend, init_method=address, rank=self._rank, world_size=self._learners
            )
        env_seed = int(np.random.SeedSequence(self._seed).generate_state(1)[0])
        env = self._envs.train(1, env_seed)
        decode = decoder(env)
        model = make_model(env, self._config, seed=env_seed, decode=decode)
        self.fitter = Fitter(model, self._config, decode=decode, parallel=self._learners > 1)
        return self._weights()

    def learn(self, replay: Any, updates: int) -> tuple[Weights, Weights | None, "Learnt"]:
        """Make updates. Returns the weights, those of the target network, and the small reply.

        A replay that dies meanwhile ends the order early: the updates made count.
        """
        import ray

        started, made, waited = time.monotonic(), 0, 0.0
        before = self.fitter.learner.updates
        asked = [replay.sample.remote(before + i, self._learners) for i in range(min(_BATCHES_AHEAD, updates))]
        lost = False
        for number in range(updates):
            wait = time.monotonic()
            try:
                place, batch = ray.get(asked.pop(0))
            except ray.exceptions.RayError as failure:
                if not is_loss(failure):
                    raise
                lost = True
                break
            waited += time.monotonic() - wait
            if number + _BATCHES_AHEAD < updates:
                asked.append(replay.sample.remote(before + number + _BATCHES_AHEAD, self._learners))
            error = self.fitter.update(batch)
            if self._config.replay.prioritised:
                replay.set_priorities.remote(place, error)
            made += 1
        report = Learnt(
            updates=self.fitter.learner.updates,
            made=made,
            seconds=time.monotonic() - started,
            waited=waited,
            replay_lost=lost,
        )
        return (*self._weights(), report)

    def take_diagnostics(self) -> dict[str, float]:
        """Means over the updates since the last call; empty where there were none."""
        return self.fitter.take_diagnostics()

    def get_state(self) -> tuple[Weights, dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Weights, arrays and bookkeeping of a resumable checkpoint."""
        return flat_weights(self.fitter.model), self.fitter.arrays(), self.fitter.bookkeeping()

    def set_state(
        self,
        weights: Weights,
        arrays: Mapping[str, NDArray[np.generic]],
        bookkeeping: Mapping[str, Any],
        updates: int,
    ) -> tuple[Weights, Weights | None]:
        """Restore what `get_state` gave."""
        load_flat(self.fitter.model, weights)
        self.fitter.load(arrays, bookkeeping, updates=updates)
        return self._weights()

    def _weights(self) -> tuple[Weights, Weights | None]:
        target = self.fitter.target
        return flat_weights(self.fitter.learner.acting), None if target is None else flat_weights(target)


@dataclass(frozen=True)
class Learnt:
    """The small reply to an order of updates. updates: in all. made: now. waited: seconds of `seconds` for batches."""

    updates: int
    made: int
    seconds: float
    waited: float
    replay_lost: bool


class EvaluatorWorker:
    """Plays the validation episodes, beside everything else."""

    def __init__(self, envs: EnvFactory, config: AgentConfig, *, seed: int) -> None:
        torch.set_num_threads(1)
        self._config, self._seed = config, seed
        self._env = envs.validation(config.training.evaluation_episodes, seed)
        decode = decoder(self._env)
        self._model = make_model(self._env, config, seed=seed, decode=decode)
        search = config.search.model_copy(update={"threads": config.search.threads or 1})
        self._planner = Planner(self._model, search, decode=decode)

    def evaluate(self, weights: Weights) -> tuple[Evaluation, Evaluation]:
        """With search, and by the prior alone."""
        load_flat(self._model, weights)
        self._planner.refresh()
        result = evaluate(self._env, self._planner, seed=self._seed, discount=self._config.discount)
        return result, evaluate(self._env, self._planner, seed=self._seed, simulations=0)

    def ready(self) -> str:
        """That it is there. Returns the node it runs on."""
        return node_id()
