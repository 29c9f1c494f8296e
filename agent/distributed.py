"""Training on many processes or machines with Ray: the classes of one-process training, each in an actor of its own.

    driver ──orders──▶ self-play actors ──chunks──▶ replay ──batches──▶ learner
      ▲                      ▲                                            │
      └── counters, curve    └──────────── weights, one flat array ───────┘──▶ evaluator

The driver gives orders and reads small replies; chunks, batches and weights go from process to process through the
object store and never through it. Every reply is waited for together with all others, so the loss of a process is one
more reply: a self-play actor, the evaluator and the replay are replaced, and the run goes on. The learner holds what
cannot be made again, so without it the run stops and says how to resume.

This is the only module besides agent.tune that imports Ray, and it imports it when it is used.
"""

import importlib.util
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from agent.checkpoint import (
    CheckpointError,
    CheckpointMetadata,
    Counters,
    TrainingState,
    load_training_arrays,
    read_metadata,
    save_checkpoint,
)
from agent.checkpoint import load_model as load_checkpoint_model
from agent.config import AgentConfig
from agent.curve import Curve, cut_metrics, evaluation_row
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
from agent.flow import Accepted, ReplayRatio
from agent.networks.flat import flat_weights, load_flat
from agent.planner import Planner
from agent.policy import Observations
from agent.replay import Batch, Replay
from agent.self_play import value_of
from agent.spaces import require_players
from agent.train import RunSettings, changed_fields, crossed, decoder

if TYPE_CHECKING:
    from ray import ObjectRef
else:
    ObjectRef = Any

Weights = NDArray[np.float32]

OBJECT_STORE_BYTES = 200 * 1024**2  # of a cluster started here
_LOCAL = "127.0.0.1"
_BATCHES_AHEAD = 3  # asked for before they are needed: a batch's way takes about as long as an update
_MOST_UPDATES = 64  # in one order: weights are published after each
_MOST_DEATHS = 5  # of self-play actors in a row, none of which delivered anything
_PATIENCE_SECONDS = 1.0  # between looks at the clock when nothing happens


class RayMissing(RuntimeError):
    """Ray is not installed."""


class RunStopped(RuntimeError):
    """The run cannot go on; its last checkpoint can."""


@dataclass(frozen=True)
class Cluster:
    """Where a distributed run runs.

    address: `local` starts Ray on this machine, on loopback only; `auto` joins a cluster that runs, else the same;
             anything else is the address of one (HOST:PORT).
    actors:  self-play actors; None: as many as there are processors left beside the learner.
    learners: processes that share each update's batch and average their gradients (DDP).
    chunk:   steps of each environment in one order to an actor; None: about the experience that pays for 16 updates.
    """

    address: str = "local"
    actors: int | None = None
    learners: int = 1
    chunk: int | None = None


# --- what runs in the actors: plain classes ------------------------------------------------------------------------


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
        return _node()

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
        return _node()


class LearnerWorker:
    """The learner, or one of several that share every batch."""

    def __init__(self, envs: EnvFactory, config: AgentConfig, *, seed: int, rank: int = 0, learners: int = 1) -> None:
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        torch.manual_seed(seed)
        self._envs, self._config, self._seed = envs, config, seed
        self._rank, self._learners = rank, learners
        self.address = f"tcp://{_own_address()}:{_free_port()}" if learners > 1 else ""
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
        return _node()


# --- the driver ----------------------------------------------------------------------------------------------------


@dataclass
class _Seat:
    """A self-play actor's place: who sits there, in which incarnation, whether it has come up, what it is at, and when
    it was last given an order, counted in orders."""

    handle: Any
    incarnation: int
    node: str | None = None
    busy: bool = False
    ordered: int = 0


@dataclass(frozen=True)
class _Look:
    """An evaluation under way, with what it is of."""

    weights: Any
    env_steps: int
    updates: int
    seconds: float


class DistributedTrainer:
    """One training run on Ray. `run` returns when the budget is spent or the minutes are over."""

    def __init__(self, config: AgentConfig, envs: EnvFactory, settings: RunSettings, cluster: Cluster) -> None:
        """Connects to Ray or starts it. Raises RayMissing; ValueError where the cluster and the config do not fit."""
        self.config, self.settings, self.cluster = config, settings, cluster
        self.console = Console(stderr=True)
        self._started_ray = connect(cluster)
        import ray

        self._ray = ray
        if config.training.offline_updates:
            raise ValueError(
                f"training.offline_updates {config.training.offline_updates}: learning from demonstrations alone needs "
                f"no actors; expected 0 with --ray. Train without --ray, or set it to 0 and mix them into self-play"
            )
        if config.learner.batch_size % cluster.learners:
            raise ValueError(
                f"learner.batch_size {config.learner.batch_size}: expected a multiple of the {cluster.learners} "
                f"learners that share it"
            )
        self.actors = cluster.actors or max(1, int(_resources().get("CPU", 1)) - 1 - cluster.learners)
        rows = config.self_play.num_envs
        price = config.learner.updates_per_env_step
        self.chunk = cluster.chunk or int(np.clip(round(16 / (price * rows)), 1, 32))
        self._envs = ray.put(envs)
        seeds = np.random.SeedSequence(settings.seed).generate_state(4)
        self.evaluation_seed, self._replay_seed, self._learner_seed, self._actor_seed = map(int, seeds)
        self._use_gpu = config.learner.device != "cpu" and _resources().get("GPU", 0) >= cluster.learners
        # One chunk of every actor under way and as much again waiting: nobody idles, nothing piles up.
        self.flow = ReplayRatio(
            updates_per_record=price,
            min_records=config.replay.min_steps,
            slack=max(2.0, (self.actors + 1) * self.chunk * rows * price),
        )
        self.accepted = Accepted()
        self.updates = 0
        self.seconds = 0.0
        self.best_score: float | None = None
        self.second_steps = 0
        self.deaths = {"self-play": 0, "replay": 0, "evaluator": 0}
        self.nodes: set[str] = set()  # that self-play has run on
        self.steps_by_seat = [0] * self.actors  # records accepted of each self-play actor's place
        self._orders = 0  # of experience, given so far
        self._deaths_in_a_row = 0
        self._replay_number = 0
        self._returns: list[float] = []
        self._acted, self._acted_seconds, self._learnt_seconds, self._counted = 0, 0.0, 0.0, 0
        self._pending: dict[Any, Callable[[Any], None]] = {}
        self._resumed: tuple[CheckpointMetadata, dict[str, NDArray[np.generic]], Weights] | None = None
        self._last: Evaluation | None = None
        self._looking: _Look | None = None
        self._owes_look = False
        self._learning = False
        self._stopping = False

    @property
    def env_steps(self) -> int:
        """Environment steps that a replay has accepted."""
        return self.accepted.env_steps

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.settings.directory / "checkpoints"

    def resume(self, path: Path | None = None) -> None:
        """Continue from a checkpoint of a distributed run (default: the run's latest). Raises CheckpointError."""
        path = path or self.checkpoints / "latest"
        metadata = read_metadata(path)
        if metadata.agent != self.config:
            changed = changed_fields(metadata.agent.model_dump(), self.config.model_dump())
            raise CheckpointError(
                f"{path}: was trained with another agent configuration (differs in {', '.join(changed)}). "
                f"Resume with the run's own config.resolved.yaml, or start a new run"
            )
        state = metadata.state.get("distributed")
        if state is None:
            raise CheckpointError(f"{path}: was trained in one process. Resume it without --ray")
        if state["rings"] != self.actors:
            raise CheckpointError(
                f"{path}: its replay has a ring for each of {state['rings']} self-play actors, found {self.actors}. "
                f"Resume with --actors {state['rings']}"
            )
        model = load_checkpoint_model(path, metadata)
        self._resumed = metadata, load_training_arrays(path), flat_weights(model)
        self.updates, self.seconds = metadata.counters.updates, metadata.counters.seconds
        self.best_score = state["best_score"]
        self.second_steps = state["second_steps"]
        self.flow.owed = state["owed"]
        cut_metrics(self.settings.directory, self.updates)

    def stop(self) -> None:
        """Pause the run as soon as its driver looks up: it makes a last evaluation and saves."""
        self._stopping = True

    def close(self) -> None:
        """Stop the actors; and Ray, where this run started it."""
        if self._started_ray:
            self._ray.shutdown()

    def run(self) -> Evaluation | None:
        """Train. Returns the last evaluation made, None if there was none. Raises RunStopped without a learner."""
        training = self.config.training
        self._begin()
        started, before = time.monotonic(), self.seconds
        with Curve(self.settings.directory, self.console, env_steps=self.env_steps, budget=training.env_steps) as curve:
            self._curve = curve
            try:
                while self.env_steps < training.env_steps and not self._stopping:
                    self._give_orders()
                    self._hear()
                    self.seconds = before + time.monotonic() - started
                    curve.advance(self.env_steps)
                    if self.settings.minutes is not None and self.seconds - before > 60 * self.settings.minutes:
                        break
                self._finish(before, started)
            finally:
                self._end()
        return self._last

    # --- beginning and end

    def _begin(self) -> None:
        ray = self._ray
        self._learners = [
            self._remote(LearnerWorker, gpus=1 if self._use_gpu else 0).remote(
                self._envs, self.config, seed=self._learner_seed, rank=rank, learners=self.cluster.learners
            )
            for rank in range(self.cluster.learners)
        ]
        address = ray.get(self._learners[0].where.remote())
        prepared = [learner.prepare.options(num_returns=2).remote(address) for learner in self._learners]
        ray.get(prepared[-1])
        self._weights, self._target = prepared[0]
        self._replay = self._new_replay()
        if self._resumed is not None:
            metadata, arrays, weights = self._resumed
            state = metadata.state["distributed"]
            rings, rest = _split(arrays)
            shared = ray.put(rest)
            restored = [
                learner.set_state.options(num_returns=2).remote(weights, shared, state["learner"], self.updates)
                for learner in self._learners
            ]
            ray.get(restored[-1])
            self._weights, self._target = restored[0]
            self.accepted = ray.get(self._replay.set_state.remote(rings, state["replay"]))
            self.flow.lose(self.accepted.held)
            self.flow.owed = state["owed"]
            self._resumed = None
        self._evaluator = self._new_evaluator()
        # Incarnations go on counting over resumptions by way of the steps: an actor never gets a seed twice.
        self._seats = [_Seat(None, self.env_steps) for _ in range(self.actors)]
        for index in range(self.actors):
            self._fill(index)

    def _end(self) -> None:
        for handle in (*self._learners, self._replay, self._evaluator, *(seat.handle for seat in self._seats)):
            self._ray.kill(handle)
        self._pending.clear()

    def _finish(self, before: float, started: float) -> None:
        """Make the updates still due, look once more, save."""
        while self._learning or (self.flow.due and self.env_steps >= self.config.training.env_steps):
            self._order_updates()
            self._hear()
        while self._looking is not None:
            self._hear()
        self.seconds = before + time.monotonic() - started
        if self._counted != self.updates:  # learnt something since the last look
            self._owes_look = True
            while self._owes_look or self._looking is not None:
                self._order_look()
                self._hear()
        self.seconds = before + time.monotonic() - started
        if self.updates:
            self._save_latest()

    # --- orders

    def _give_orders(self) -> None:
        self._order_updates()
        self._order_look()
        rows = self.config.self_play.num_envs
        # Who has waited longest comes first: where the learner binds, there is not an order for everybody each time.
        for index, seat in sorted(enumerate(self._seats), key=lambda place: place[1].ordered):
            if seat.node is None or seat.busy:
                continue
            if not self.flow.may_order or self.env_steps + self.flow.ordered >= self.config.training.env_steps:
                return
            self.flow.order(self.chunk * rows)
            self._orders += 1
            seat.busy, seat.ordered = True, self._orders
            first, second, reply = seat.handle.gather.options(num_returns=3).remote(
                self._weights, self.chunk, self.env_steps
            )
            self._await(reply, partial(self._gathered, index, seat, first, second))
            ratio = self.config.replay.reanalyse_ratio
            count = round(
                ratio * self.config.learner.batch_size * self.chunk * rows * self.config.learner.updates_per_env_step
            )
            if count and self.flow.due:
                drawn = self._replay.draw.remote(count)
                searched = seat.handle.search.remote(self._weights if self._target_is_none() else self._target, drawn)
                self._await(self._replay.refresh.remote(searched), self._refreshed)

    def _target_is_none(self) -> bool:
        return self.config.learner.target_every == 0

    def _order_updates(self) -> None:
        due = min(self.flow.due, _MOST_UPDATES)
        if self._learning or not due:
            return
        self._learning = True
        orders = [learner.learn.options(num_returns=3).remote(self._replay, due) for learner in self._learners]
        replies = [reply for _, _, reply in orders]
        weights, target, number = orders[0][0], orders[0][1], self._replay_number
        self._await(replies[0], partial(self._learnt, weights, target, number))
        for reply in replies[1:]:
            self._await(reply, self._refreshed_learner)

    def _order_look(self) -> None:
        if not self._owes_look or self._looking is not None:
            return
        self._owes_look = False
        self._looking = _Look(self._weights, self.env_steps, self.updates, self.seconds)
        self._await(self._evaluator.evaluate.remote(self._weights), self._looked)

    def _await(self, ref: Any, then: Callable[[Any], None]) -> None:
        self._pending[ref] = then

    def _hear(self) -> None:
        """Wait for the next reply and act on it."""
        if not self._pending:
            time.sleep(0.01)
            return
        done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_PATIENCE_SECONDS)
        for ref in done:
            self._pending.pop(ref)(ref)

    # --- replies

    def _gathered(self, index: int, seat: _Seat, first: Any, second: Any, ref: Any) -> None:
        rows = self.config.self_play.num_envs
        seat.busy = False
        reply, failure = self._result(ref)
        if failure is not None:
            self.flow.withdraw(self.chunk * rows)
            if isinstance(failure, self._ray.exceptions.RayActorError):
                self._replace(index, seat)
            return
        self._deaths_in_a_row = 0
        self._returns += reply.returns
        self._acted += reply.acted
        self._acted_seconds += reply.seconds
        added = self._replay.add.remote(index, seat.incarnation, first, second)
        number = self._replay_number  # of the replay asked, which may be another than the one there at the reply
        self._await(added, partial(self._added, index, number, reply.second_steps))

    def _added(self, index: int, replay_number: int, second_steps: int, ref: Any) -> None:
        records = self.chunk * self.config.self_play.num_envs
        accepted, failure = self._result(ref)
        if failure is not None:
            self.flow.withdraw(records)
            if isinstance(failure, self._ray.exceptions.RayActorError):
                self._replace_replay(replay_number)
            return
        self.accepted = accepted
        self.second_steps += second_steps
        self.steps_by_seat[index] += records
        self.flow.accept(records, accepted.held)

    def _learnt(self, weights: Any, target: Any, replay_number: int, ref: Any) -> None:
        reply, failure = self._result(ref)
        if failure is not None:
            raise RunStopped(
                f"the learner is gone ({type(failure).__name__}); expected it to live as long as the run. Continue "
                f'with "python -m agent train --resume {self.settings.directory} --ray {self.cluster.address}"'
            ) from failure
        self._learning = False
        self.flow.spend(reply.made)
        before, self.updates = self.updates, reply.updates
        self._learnt_seconds += reply.seconds
        self._weights, self._target = weights, target
        if reply.replay_lost:
            self._replace_replay(replay_number)
            return
        training = self.config.training
        if crossed(before, self.updates, training.evaluate_every):
            self._owes_look = True
        if crossed(before, self.updates, training.checkpoint_every):
            self._save_latest()

    def _refreshed_learner(self, ref: Any) -> None:
        _, failure = self._result(ref)
        if failure is not None:
            raise RunStopped(
                f"one of the {self.cluster.learners} learners is gone ({type(failure).__name__}). Continue with "
                f'"python -m agent train --resume {self.settings.directory} --ray {self.cluster.address}"'
            ) from failure

    def _refreshed(self, ref: Any) -> None:
        self._result(ref)  # what was lost on the way stays as it was

    def _looked(self, ref: Any) -> None:
        results, failure = self._result(ref)
        look, self._looking = self._looking, None
        assert look is not None, "an evaluation was under way"
        if failure is not None:
            if isinstance(failure, self._ray.exceptions.RayActorError):
                self.deaths["evaluator"] += 1
                self._evaluator = self._new_evaluator()
            self._owes_look = True
            return
        result, prior = results
        self._last = result
        best = self.best_score is None or result.score >= self.best_score
        row = {
            "env_steps": look.env_steps,
            "updates": look.updates,
            "seconds": round(look.seconds, 3),
            **evaluation_row(result, prior),
            "replay/ratio": look.updates * self.config.learner.batch_size / max(1, look.env_steps),
            "replay/steps": self.accepted.held,
            "counterfactual_steps": self.second_steps,
            **self._speeds(),
            "self_play_return": float(np.mean(self._returns)) if self._returns else None,
            **self._diagnostics(),
        }
        self._returns = []
        self._curve.add(row, best=best)
        if best:
            self.best_score = result.score
            weights, failure = self._result(look.weights)
            if failure is None:
                self._save_best(look, weights)

    def _speeds(self) -> dict[str, float | None]:
        updates, self._counted = self.updates - self._counted, self.updates
        per_second = self._acted / self._acted_seconds if self._acted_seconds else None
        speeds = {
            "speed/env_steps_per_s": per_second,  # of one actor while it acts
            "speed/simulations_per_s": None if per_second is None else per_second * self.config.search.simulations,
            "speed/updates_per_s": updates / self._learnt_seconds if self._learnt_seconds else None,
        }
        self._acted, self._acted_seconds, self._learnt_seconds = 0, 0.0, 0.0
        return speeds

    def _diagnostics(self) -> dict[str, float]:
        means, failure = self._result(self._learners[0].take_diagnostics.remote())
        return {} if failure is not None else dict(means)

    def _result(self, ref: Any) -> tuple[Any, Exception | None]:
        """What a reply says, or the loss that kept it from coming. Other errors are raised: they are bugs, not
        losses."""
        try:
            return self._ray.get(ref), None
        except self._ray.exceptions.RayError as failure:
            if not is_loss(failure):
                raise
            return None, failure

    # --- those who died

    def _fill(self, index: int) -> None:
        """Seat a new self-play actor. It is waited for only by the others' side: a cluster may have no room yet."""
        seat = self._seats[index]
        incarnation = seat.incarnation + 1
        seed = int(np.random.SeedSequence((self._actor_seed, index, incarnation)).generate_state(1)[0])
        handle = self._remote(SelfPlayWorker).remote(self._envs, self.config, seed=seed)
        seat = self._seats[index] = _Seat(handle, incarnation)
        self._await(handle.ready.remote(), partial(self._came_up, index, seat))

    def _came_up(self, index: int, seat: _Seat, ref: Any) -> None:
        node, failure = self._result(ref)
        if failure is not None:
            self._replace(index, seat)
        else:
            seat.node = node
            self.nodes.add(node)

    def _replace(self, index: int, seat: _Seat) -> None:
        if self._seats[index] is not seat:
            return
        self.deaths["self-play"] += 1
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > _MOST_DEATHS * self.actors:
            raise RunStopped(
                f"{self._deaths_in_a_row} self-play actors died one after another and none delivered anything. Look at "
                f"their messages in Ray's logs (memory?), then continue with --resume {self.settings.directory}"
            )
        self._fill(index)

    def _replace_replay(self, number: int) -> None:
        """Begin again with what the last checkpoint holds; the counters go on from what was accepted."""
        if number != self._replay_number:
            return
        self.deaths["replay"] += 1
        self._replay = self._new_replay()
        latest = self.checkpoints / "latest"
        if (latest / "checkpoint.json").is_file():
            rings, _ = _split(load_training_arrays(latest))
            restored, failure = self._result(self._replay.set_state.remote(rings, None))
            if failure is None:
                self.accepted = restored
        else:
            self.accepted = Accepted(self.accepted.records, self.accepted.env_steps, 0)
        self.flow.lose(self.accepted.held)

    def _new_replay(self) -> Any:
        self._replay_number += 1
        return self._remote(ReplayWorker).remote(
            self._envs,
            self.config,
            rings=self.actors,
            seed=self._replay_seed + self._replay_number,
            before=self.accepted,
            data_fingerprint=self.settings.data_fingerprint,
        )

    def _new_evaluator(self) -> Any:
        return self._remote(EvaluatorWorker).remote(self._envs, self.config, seed=self.evaluation_seed)

    def _remote(self, worker: type, *, gpus: int = 0) -> Any:
        """The class as an actor. The replay and the evaluator mostly wait and share a processor."""
        share = 0.5 if worker in (ReplayWorker, EvaluatorWorker) else 1
        return self._ray.remote(num_cpus=share, num_gpus=gpus, max_restarts=0)(worker)

    # --- checkpoints

    def _save_latest(self) -> None:
        learner = self._learners[0].get_state.options(num_returns=3).remote()
        replay = self._replay.get_state.options(num_returns=2).remote()
        (weights, arrays, learner_state), failure = self._result(list(learner))
        if failure is not None:
            raise RunStopped(f"the learner is gone; continue with --resume {self.settings.directory}") from failure
        state, failure = self._result(list(replay))
        if failure is not None:
            self._replace_replay(self._replay_number)
            return
        rings, replay_state = state
        bookkeeping = {
            "distributed": {
                "rings": self.actors,
                "owed": self.flow.owed,
                "best_score": self.best_score,
                "second_steps": self.second_steps,
                "learner": learner_state,
                "replay": replay_state,
            }
        }
        counters = Counters(env_steps=replay_state["env_steps"], updates=self.updates, seconds=round(self.seconds, 3))
        model = self._model_with(weights)
        save_checkpoint(
            self.checkpoints,
            "latest",
            model,
            self._metadata(model, counters, self.best_score, final=False),
            TrainingState({**arrays, **rings}, bookkeeping),
        )

    def _save_best(self, look: _Look, weights: Weights) -> None:
        model = self._model_with(weights)
        counters = Counters(env_steps=look.env_steps, updates=look.updates, seconds=round(look.seconds, 3))
        save_checkpoint(
            self.checkpoints, "best", model, self._metadata(model, counters, self.best_score, final=True), keep=2
        )

    def _model_with(self, weights: Weights) -> Any:
        if not hasattr(self, "_model"):
            envs = self._ray.get(self._envs)
            env = envs.train(1, 0)
            self._model = make_model(env, self.config, seed=0, decode=decoder(env))
        load_flat(self._model, weights)
        return self._model

    def _metadata(self, model: Any, counters: Counters, score: float | None, *, final: bool) -> CheckpointMetadata:
        settings = self.settings
        statistics = settings.code_statistics(model) if final and settings.code_statistics else []
        return CheckpointMetadata(
            code_version=settings.code_version,
            agent=self.config,
            observation_shapes=model.shapes,
            actions=model.actions,
            action_factors=model.action_factors,
            counters=counters,
            score=score,
            experiment=settings.experiment,
            feature_fingerprint=settings.feature_fingerprint,
            data_fingerprint=settings.data_fingerprint,
            code_statistics=statistics,
        )


def _split(
    arrays: Mapping[str, NDArray[np.generic]],
) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
    """The arrays of the replay and the others."""
    rings = {name: array for name, array in arrays.items() if name.startswith(("replay.", "ages."))}
    return rings, {name: array for name, array in arrays.items() if name not in rings}


def actors_of(run: Path) -> int | None:
    """How many self-play actors the run's latest checkpoint was made with; None where there is no such checkpoint."""
    file = run / "checkpoints" / "latest"
    if not file.exists():
        return None
    state = read_metadata(file).state.get("distributed")
    return None if state is None else int(state["rings"])


# --- Ray -----------------------------------------------------------------------------------------------------------


def require_ray() -> None:
    """Raises RayMissing where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise RayMissing(
            "training on several processes and tuning need Ray, found none. Install it with "
            'pip install "smu0[ray]" (in a checkout: pip install -e ".[ray]"), or train without --ray'
        )


def connect(cluster: Cluster) -> bool:
    """Join the cluster or start one on this machine. Returns whether it was started here. Raises RayMissing, and
    ConnectionError when there is none at the address."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    if cluster.address != "local":
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            return False
        except ConnectionError as error:
            if cluster.address != "auto":
                raise ConnectionError(
                    f"--ray {cluster.address}: expected a Ray cluster there, found none ({error}). Start one with "
                    f'"ray start --head", or use --ray local'
                ) from error
    actors = cluster.actors or max(1, (os.cpu_count() or 1) - cluster.learners)
    ray.init(
        address="local",
        # Processes wait more than they work on a small machine: there is room for as many as the run needs.
        num_cpus=actors + cluster.learners + 1,
        include_dashboard=False,
        _node_ip_address=_LOCAL,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        # Ray's control process would keep a record of the last 100,000 calls, which nobody reads here.
        _system_config={"task_events_max_num_task_in_gcs": 1_000},
    )
    return True


def is_loss(failure: BaseException) -> bool:
    """Whether a Ray error says that a process, a node or an object is gone, rather than that code has raised."""
    import ray

    if isinstance(failure, ray.exceptions.RayTaskError):
        cause = getattr(failure, "cause", None)
        return isinstance(cause, ray.exceptions.RayError) and is_loss(cause)
    return isinstance(failure, ray.exceptions.RayError)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _resources() -> dict[str, float]:
    import ray

    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
