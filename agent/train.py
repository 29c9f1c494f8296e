"""Training in one process: self-play, learning, evaluation, checkpoints.

The schedule counts environment steps and updates, never seconds, so a run is a function of its configuration and
seed: interrupted and resumed it draws the same curve. `minutes` only decides when to pause.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from agent.checkpoint import (
    CheckpointError,
    CheckpointMetadata,
    CodeMeaning,
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
    EnvFactory,
    Gatherer,
    Memory,
    joined,
    load_demonstrations,
    make_model,
    make_replay,
    share_priorities,
)
from agent.fitting import Fitter, under
from agent.networks.model import StochasticMuZero
from agent.planner import Decode, Planner
from agent.reanalyse import Moment, Resumable, SecondLives, reanalyse
from agent.replay import Replay
from agent.spaces import VectorEnv, require_players


@dataclass(frozen=True)
class RunSettings:
    """What a run is, apart from the agent's own configuration.

    directory:    where everything goes; `checkpoints/latest` in it is what a resume starts from.
    seed:         of everything random.
    minutes:      pause after this many minutes of wall-clock; None runs to the end of the step budget.
    code_version: written into checkpoints.
    """

    directory: Path
    seed: int
    code_version: str
    minutes: float | None = None
    experiment: dict[str, Any] = field(default_factory=dict)
    feature_fingerprint: str | None = None
    data_fingerprint: str | None = None
    code_statistics: Callable[[StochasticMuZero], list[CodeMeaning]] | None = None


def decoder(env: VectorEnv) -> Decode | None:
    """How the environment's observations become the real ones; None when they already are."""
    decode = getattr(env, "decode", None) if env_offers_decode(env) else None
    return cast(Decode | None, decode)


def env_offers_decode(env: VectorEnv) -> bool:
    """Whether the environment hands out indices and a `decode` that gathers what they stand for."""
    return callable(getattr(env, "decode", None))


class Trainer:
    """One training run. `run` returns when the budget is spent or the minutes are over."""

    def __init__(self, config: AgentConfig, envs: EnvFactory, settings: RunSettings) -> None:
        if config.learner.threads:
            torch.set_num_threads(config.learner.threads)
        torch.manual_seed(settings.seed)
        self.config = config
        self.settings = settings
        self.console = Console(stderr=True)
        seeds = np.random.SeedSequence(settings.seed).generate_state(5)
        env = envs.train(config.self_play.num_envs, int(seeds[0]))
        require_players(env, config.search.players)
        self.validation = envs.validation(config.training.evaluation_episodes, int(seeds[1]))
        self.validation_seed = int(seeds[1])
        self.reset_seed = int(seeds[0])
        decode = decoder(env)
        self.model = make_model(env, config, seed=int(seeds[0]), decode=decode)
        self.fitter = Fitter(self.model, config, decode=decode)
        self.learner, self.target = self.fitter.learner, self.fitter.target
        self.planner = Planner(self.learner.acting, config.search, decode=decode)
        self.validation_planner = Planner(self.learner.acting, config.search, decode=decoder(self.validation))
        self.reanalyser = self.planner if self.target is None else Planner(self.target, config.search, decode=decode)
        self.gatherer = Gatherer(
            envs, env, self.planner, config, env_seed=int(seeds[0]), seeds=[int(seeds[2]), int(seeds[4])]
        )
        self.actor, self.second_lives = self.gatherer.actor, self.gatherer.second_lives
        self.replay = make_replay(env, config)
        ratio = config.replay.counterfactual_ratio
        self.second_replay = make_replay(env, config, share=ratio) if self.second_lives else None
        self.rng = np.random.default_rng(int(seeds[3]))
        self.demonstrations = load_demonstrations(env, config, settings.data_fingerprint)
        second = [self.second_replay] if self.second_replay else []
        self.memory = Memory(config, [self.replay], second, self.demonstrations)
        self.owed = 0.0  # updates that the replay ratio allows and that have not been made yet
        self.best_score: float | None = None
        self.seconds = 0.0
        self._clock = _Clock()
        self._counted = 0, 0

    @property
    def checkpoints(self) -> Path:
        return self.settings.directory / "checkpoints"

    def resume(self, path: Path | None = None) -> None:
        """Continue from a resumable checkpoint (default: the run's latest). Raises CheckpointError."""
        path = path or self.checkpoints / "latest"
        metadata = resumable_metadata(path, self.config)
        self.model.load_state_dict(load_checkpoint_model(path, metadata).state_dict())
        arrays = load_training_arrays(path)
        state = metadata.state
        self.fitter.load(arrays, state, updates=metadata.counters.updates)
        self.replay.set_state(under(arrays, "replay."))
        if self.demonstrations is not None:
            self.demonstrations.set_state(under(arrays, "demonstrations."))
        self.rng.bit_generator.state = state["rng"]
        self.actor.rng.bit_generator.state = state["actor_rng"]
        self.actor.env_steps = metadata.counters.env_steps
        self.seconds = metadata.counters.seconds
        self.owed = state["owed"]
        self.best_score = state["best_score"]
        if isinstance(self.actor.env, Resumable):
            self.actor.env.set_state(_state_from_bytes(under(arrays, "env."), self.actor.env.get_state()))
            self.actor.observations = under(arrays, "actor.observation.")
            self.actor.mask = arrays["actor.mask"].astype(bool)
            self.actor.finished = arrays["actor.finished"].astype(bool)
            self.actor.episode_return = arrays["actor.episode_return"].astype(np.float64)
            self.actor.episode_step = arrays["actor.episode_step"].astype(np.int64)
        else:
            self.actor.reset(state["reset_seed"])
        self.actor.returns = [float(value) for value in state["returns"]]
        if self.second_lives is not None and self.second_replay is not None:
            self.second_replay.set_state(under(arrays, "second.replay."))
            self._resume_second_lives(self.second_lives, state["second_lives"], arrays)
        self._counted = self.gatherer.acted, self.learner.updates
        self.planner.refresh()
        self.reanalyser.refresh()
        cut_metrics(self.settings.directory, self.learner.updates)

    def _resume_second_lives(
        self, lives: SecondLives, state: dict[str, Any], arrays: dict[str, NDArray[np.generic]]
    ) -> None:
        lives.actor.rng.bit_generator.state = state["rng"]
        lives.actor.env_steps, lives.steps = state["env_steps"], state["steps"]
        self.gatherer.owed = state["owed"]
        like = lives.actor.env.get_state()  # type: ignore[attr-defined]
        for index in range(state["moments"]):
            saved = under(arrays, f"second.moment.{index}.")
            lives.moments.append(
                Moment(
                    state=_state_from_bytes(under(saved, "state."), like),
                    observations=under(saved, "observation."),
                    mask=saved["mask"].astype(bool),
                    finished=saved["finished"].astype(bool),
                )
            )

    def run(self, look: Callable[[dict[str, Any]], None] | None = None) -> Evaluation | None:
        """Train. look: told every point of the curve. Returns the last evaluation made, None if there was none."""
        training, learning = self.config.training, self.config.learner
        started = time.monotonic()
        before = self.seconds
        last: Evaluation | None = None
        with Curve(
            self.settings.directory, self.console, env_steps=self.actor.env_steps, budget=training.env_steps, look=look
        ) as curve:
            while self.learner.updates < training.offline_updates and not self._time_is_up(started):
                with self._clock.learning():
                    self._learn()
                self.seconds = before + time.monotonic() - started
                if self.learner.updates % training.evaluate_every == 0:
                    last = self._evaluate(curve)
                if self.learner.updates % training.checkpoint_every == 0:
                    self._save_latest()
            self.planner.refresh()
            while self.actor.env_steps < training.env_steps:
                with self._clock.acting():
                    self.gatherer.step(self.replay, self.second_replay)
                curve.advance(self.actor.env_steps)
                if self.replay.steps < self.config.replay.min_steps:
                    continue
                self.owed += self.config.self_play.num_envs * learning.updates_per_env_step
                due = int(self.owed)
                self.owed -= due
                first = self.learner.updates
                with self._clock.learning():
                    for _ in range(due):
                        self._learn()
                if due:
                    self.planner.refresh()
                self.seconds = before + time.monotonic() - started
                if crossed(first, self.learner.updates, training.evaluate_every):
                    last = self._evaluate(curve)
                if crossed(first, self.learner.updates, training.checkpoint_every):
                    self._save_latest()
                if self._time_is_up(started):
                    break
            self.seconds = before + time.monotonic() - started
            if self.fitter.count:  # learnt something since the last look
                last = self._evaluate(curve)
                self._save_latest()
        return last

    def _time_is_up(self, started: float) -> bool:
        minutes = self.settings.minutes
        return minutes is not None and time.monotonic() - started > 60 * minutes

    def _searched_anew(self) -> int:
        """How many stored steps to search anew after this update."""
        replay, size = self.config.replay, self.config.learner.batch_size
        if replay.reanalyse_mode == "share" or not replay.reanalyse_ratio:
            return round(replay.reanalyse_ratio * size)
        return size if self.rng.random() < replay.reanalyse_ratio else 0

    def _learn(self) -> None:
        count = self._searched_anew()
        recorded = self.memory.recorded(count, self.learner.updates)
        parts = self.memory.sample(self.config.learner.batch_size, self.rng, self.learner.updates)
        share_priorities(parts, self.fitter.update(joined(parts)))
        if count:
            if self.target is None or self.fitter.copies_target:
                self.reanalyser.refresh()
            if self.demonstrations is not None and recorded:
                reanalyse(self.demonstrations, self.reanalyser, recorded, self.rng)
            if count > recorded:
                reanalyse(self.replay, self.reanalyser, count - recorded, self.rng)

    def _evaluate(self, curve: Curve) -> Evaluation:
        self.validation_planner.refresh()
        result = evaluate(
            self.validation, self.validation_planner, seed=self.validation_seed, discount=self.config.discount
        )
        # What planning adds: the same network, acting without it.
        prior = evaluate(self.validation, self.validation_planner, seed=self.validation_seed, simulations=0)
        row: dict[str, Any] = {
            "env_steps": self.actor.env_steps,
            "updates": self.learner.updates,
            "seconds": round(self.seconds, 3),
            **evaluation_row(result, prior),
            "replay/ratio": self.learner.updates * self.config.learner.batch_size / max(1, self.actor.env_steps),
            "replay/steps": self.replay.steps,
            "counterfactual_steps": 0 if self.second_lives is None else self.second_lives.steps,
            **self._speeds(),
        }
        returns = self.actor.take_returns()
        row["self_play_return"] = float(np.mean(returns)) if returns else None
        row |= self.fitter.take_diagnostics()
        best = self.best_score is None or result.score >= self.best_score  # of equals, the one that learnt more
        if best:
            self.best_score = result.score
            save_checkpoint(
                self.checkpoints, "best", self.learner.acting, self._metadata(result.score, final=True), keep=2
            )
        curve.add(row, best=best)
        return result

    def _speeds(self) -> dict[str, float | None]:
        """Since the last look; the only entries of the curve, beside the seconds, that two equal runs differ in."""
        clock, self._clock = self._clock, _Clock()
        steps, updates = self.gatherer.acted - self._counted[0], self.learner.updates - self._counted[1]
        self._counted = self.gatherer.acted, self.learner.updates
        per_second = steps / clock.acted if clock.acted > 0 else None
        return {
            "speed/env_steps_per_s": per_second,
            "speed/simulations_per_s": None if per_second is None else per_second * self.config.search.simulations,
            "speed/updates_per_s": updates / clock.learnt if clock.learnt > 0 else None,
        }

    def _save_latest(self) -> None:
        arrays = self.fitter.arrays()
        arrays |= {f"replay.{name}": array for name, array in self.replay.get_state().items()}
        if self.demonstrations is not None:
            arrays |= {f"demonstrations.{name}": array for name, array in self.demonstrations.get_state().items()}
        bookkeeping: dict[str, Any] = {
            "rng": self.rng.bit_generator.state,
            "actor_rng": self.actor.rng.bit_generator.state,
            "owed": self.owed,
            "best_score": self.best_score,
            "returns": list(self.actor.returns),
            **self.fitter.bookkeeping(),
        }
        if self.second_lives is not None and self.second_replay is not None:
            arrays |= _second_life_arrays(self.second_lives, self.second_replay)
            bookkeeping["second_lives"] = {
                "moments": len(self.second_lives.moments),
                "steps": self.second_lives.steps,
                "env_steps": self.second_lives.actor.env_steps,
                "rng": self.second_lives.actor.rng.bit_generator.state,
                "owed": self.gatherer.owed,
            }
        if isinstance(self.actor.env, Resumable):
            arrays |= {f"env.{name}": array for name, array in _state_as_bytes(self.actor.env.get_state()).items()}
            arrays |= {f"actor.observation.{k}": np.asarray(v) for k, v in self.actor.observations.items()}
            arrays |= {
                "actor.mask": self.actor.mask,
                "actor.finished": self.actor.finished,
                "actor.episode_return": self.actor.episode_return,
                "actor.episode_step": self.actor.episode_step,
            }
        else:
            # An environment that cannot say where it stands starts anew here, in this run as in a resumed one.
            self.replay.cut()
            arrays["replay.has_transition"] = self.replay.get_state()["has_transition"]
            bookkeeping["reset_seed"] = self.reset_seed + self.learner.updates
            self.actor.reset(bookkeeping["reset_seed"])
        save_checkpoint(
            self.checkpoints,
            "latest",
            self.model,
            self._metadata(self.best_score, final=False),
            TrainingState(arrays, bookkeeping),
        )

    def _metadata(self, score: float | None, *, final: bool) -> CheckpointMetadata:
        """final: for use, so the meaning of the codes is worked out too."""
        settings = self.settings
        statistics = settings.code_statistics(self.learner.acting) if final and settings.code_statistics else []
        return CheckpointMetadata(
            code_version=settings.code_version,
            agent=self.config,
            observation_shapes=self.model.shapes,
            actions=self.model.actions,
            action_factors=self.model.action_factors,
            counters=Counters(
                env_steps=self.actor.env_steps, updates=self.learner.updates, seconds=round(self.seconds, 3)
            ),
            score=score,
            experiment=settings.experiment,
            feature_fingerprint=settings.feature_fingerprint,
            data_fingerprint=settings.data_fingerprint,
            code_statistics=statistics,
        )


class _Clock:
    """Seconds spent acting and learning."""

    def __init__(self) -> None:
        self.acted = self.learnt = 0.0

    @contextmanager
    def acting(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.acted += time.monotonic() - started

    @contextmanager
    def learning(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.learnt += time.monotonic() - started


def _second_life_arrays(lives: SecondLives, replay: Replay) -> dict[str, NDArray[np.generic]]:
    arrays = {f"second.replay.{name}": array for name, array in replay.get_state().items()}
    for index, moment in enumerate(lives.moments):
        prefix = f"second.moment.{index}"
        arrays |= {f"{prefix}.state.{name}": array for name, array in _state_as_bytes(moment.state).items()}
        arrays |= {f"{prefix}.observation.{name}": np.asarray(entry) for name, entry in moment.observations.items()}
        arrays |= {f"{prefix}.mask": moment.mask, f"{prefix}.finished": moment.finished}
    return arrays


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


def _state_as_bytes(state: Any) -> dict[str, NDArray[np.generic]]:
    """An environment's state as plain bytes: it may hold structured arrays, which safetensors does not know."""
    parts = state if isinstance(state, tuple) else (state,)
    return {str(i): np.frombuffer(part.tobytes(), np.uint8) for i, part in enumerate(parts)}


def _state_from_bytes(saved: dict[str, NDArray[np.generic]], like: Any) -> Any:
    """The state again, in the types and shapes of one that the same environment just gave."""
    parts = like if isinstance(like, tuple) else (like,)
    restored = tuple(
        np.frombuffer(saved[str(i)].tobytes(), part.dtype).reshape(part.shape) for i, part in enumerate(parts)
    )
    return restored if isinstance(like, tuple) else restored[0]


def resumable_metadata(path: Path, config: AgentConfig) -> CheckpointMetadata:
    """Of a checkpoint that a run of `config` may continue. Raises CheckpointError naming the settings that differ."""
    metadata = read_metadata(path)
    if metadata.agent != config:
        changed = changed_fields(metadata.agent.model_dump(), config.model_dump())
        raise CheckpointError(
            f"{path}: was trained with another agent configuration (differs in {', '.join(changed)}). "
            f"Resume with the run's own config.resolved.yaml, or start a new run"
        )
    return metadata


def changed_fields(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields that differ."""
    changed = []
    for name, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            changed += changed_fields(before[name], value, f"{prefix}{name}.")
        elif before.get(name) != value:
            changed.append(f"{prefix}{name}")
    return changed
