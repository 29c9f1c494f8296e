"""The driver of a distributed run: it gives orders, hears replies, replaces what is lost and keeps checkpoints."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
from agent.distributed.cluster import Cluster, connect, is_loss, resources
from agent.distributed.workers import EvaluatorWorker, LearnerWorker, ReplayWorker, SelfPlayWorker, Weights
from agent.evaluation import Evaluation
from agent.experience import EnvFactory, make_model
from agent.flow import Accepted, ReplayRatio
from agent.networks.flat import flat_weights, load_flat
from agent.train import RunSettings, crossed, decoder, resumable_metadata

if TYPE_CHECKING:
    from ray import ObjectRef
else:
    ObjectRef = Any

_MOST_UPDATES = 64  # in one order: weights are published after each
_MOST_DEATHS = 5  # of self-play actors in a row, none of which delivered anything
_PATIENCE_SECONDS = 1.0  # between looks at the clock when nothing happens


class RunStopped(RuntimeError):
    """The run cannot go on; its last checkpoint can."""


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
        self.actors = cluster.actors or max(1, int(resources().get("CPU", 1)) - 1 - cluster.learners)
        rows = config.self_play.num_envs
        price = config.learner.updates_per_env_step
        self.chunk = cluster.chunk or int(np.clip(round(16 / (price * rows)), 1, 32))
        self._envs = ray.put(envs)
        seeds = np.random.SeedSequence(settings.seed).generate_state(4)
        self.evaluation_seed, self._replay_seed, self._learner_seed, self._actor_seed = map(int, seeds)
        self._use_gpu = config.learner.device != "cpu" and resources().get("GPU", 0) >= cluster.learners
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
        metadata = resumable_metadata(path, self.config)
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
            time.sleep(0.01)  # ray.wait refuses to wait for nothing; the next look at the clock gives new orders
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
            raise self._without_learner("the learner", failure) from failure
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
            raise self._without_learner(f"one of the {self.cluster.learners} learners", failure) from failure

    def _without_learner(self, who: str, failure: Exception) -> RunStopped:
        return RunStopped(
            f"{who} is gone ({type(failure).__name__}); expected it to live as long as the run. Continue "
            f'with "python -m agent train --resume {self.settings.directory} --ray {self.cluster.address}"'
        )

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
