"""Training in one process: self-play, learning, evaluation, checkpoints.

The schedule counts environment steps and updates, never seconds, so a run is a function of its configuration and
seed: interrupted and resumed it draws the same curve. `minutes` only decides when to pause.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

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
from agent.demonstrations import Demonstrations, as_replay
from agent.evaluation import Evaluation, evaluate
from agent.learner import Learner
from agent.networks.model import StochasticMuZero
from agent.planner import Decode, Planner
from agent.policy import Observations
from agent.reanalyse import Moment, Resumable, SecondLives, offers_counterfactuals, reanalyse
from agent.replay import Batch, Replay, concatenate
from agent.self_play import SelfPlay
from agent.spaces import action_count, action_factors, as_observations, require_players, stored_entries

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]


class EnvFactory(Protocol):
    """Makes the vector environments of a run. Environments need next-step autoreset (Gymnasium 1.x)."""

    def train(self, num_envs: int, seed: int) -> VectorEnv:
        """Where experience is gathered."""

    def validation(self, num_envs: int, seed: int) -> VectorEnv:
        """Where the best checkpoint is chosen: data the training environments never show."""


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
        self._envs = envs
        self.console = Console(stderr=True)
        seeds = np.random.SeedSequence(settings.seed).generate_state(5)
        env = envs.train(config.self_play.num_envs, int(seeds[0]))
        require_players(env, config.search.players)
        self.validation = envs.validation(config.training.evaluation_episodes, int(seeds[1]))
        self.validation_seed = int(seeds[1])
        self.reset_seed = int(seeds[0])
        decode = decoder(env)
        first, _ = env.reset(seed=int(seeds[0]))
        real: Observations = as_observations(first)
        if decode is not None:
            real = decode(real)
        shapes = {name: entry.shape[1:] for name, entry in real.items()}
        actions, factors = action_count(env.single_action_space), action_factors(env.single_action_space)
        self.model = StochasticMuZero(shapes, actions, config.network, factors)
        self.learner = Learner(
            self.model,
            config.learner,
            decode=decode or (lambda entries: entries),
            device=learning_device(config.learner.device),
        )
        self.target = copy.deepcopy(self.model).requires_grad_(False) if config.learner.target_every else None
        self.planner = Planner(self.learner.acting, config.search, decode=decode)
        self.validation_planner = Planner(self.learner.acting, config.search, decode=decoder(self.validation))
        self.reanalyser = self.planner if self.target is None else Planner(self.target, config.search, decode=decode)
        self.actor = SelfPlay(env, self.planner, config, seed=int(seeds[2]))
        self.replay = self._make_replay(1.0)
        self.rng = np.random.default_rng(int(seeds[3]))
        self.second_lives: SecondLives | None = None
        if config.replay.counterfactual_ratio:
            self._prepare_second_lives(int(seeds[0]), int(seeds[4]))
        self.demonstrations: Replay | None = None
        if config.replay.demonstrations is not None:
            recorded = Demonstrations.load(config.replay.demonstrations)
            recorded.require_same_spaces(env, str(config.replay.demonstrations))
            recorded.require_same_data(settings.data_fingerprint, str(config.replay.demonstrations))
            self.demonstrations = as_replay(recorded, config)
        self.owed = 0.0  # updates that the replay ratio allows and that have not been made yet
        self.best_score: float | None = None
        self.seconds = 0.0
        self._clock = _Clock()
        self._counted = 0, 0
        self._sums: dict[str, float] = {}
        self._count = 0

    def _make_replay(self, share: float) -> Replay:
        """A memory of `share` times the configured steps."""
        env, replay = self.actor.env, self.config.replay
        sizes = {
            "capacity_steps": round(share * replay.capacity_steps),
            "window_steps": round(share * replay.window_steps),
        }
        return Replay(
            replay.model_copy(update=sizes),
            rows=self.config.self_play.num_envs,
            actions=action_count(env.single_action_space),
            observations=stored_entries(env.single_observation_space),
            discount=self.config.discount,
            action_parts=len(self.actor.factors),
            players=self.config.search.players,
        )

    def _prepare_second_lives(self, env_seed: int, seed: int) -> None:
        replay, env = self.config.replay, self.actor.env
        if not offers_counterfactuals(env):
            raise ValueError(
                f"replay.counterfactual_ratio {replay.counterfactual_ratio}: expected an environment that can be set "
                f"back (get_state, set_state and counterfactual = True), found {type(env).__name__}. Set it to 0"
            )
        again = self._envs.train(self.config.self_play.num_envs, env_seed)
        again.reset(seed=env_seed)
        self.second_lives = SecondLives(
            SelfPlay(again, self.planner, self.config, seed=seed),
            states=replay.counterfactual_states,
            length=replay.counterfactual_length,
            hold=replay.counterfactual_hold,
        )
        self.second_replay = self._make_replay(replay.counterfactual_ratio)
        self._lives_owed = 0.0

    @property
    def checkpoints(self) -> Path:
        return self.settings.directory / "checkpoints"

    def resume(self, path: Path | None = None) -> None:
        """Continue from a resumable checkpoint (default: the run's latest). Raises CheckpointError."""
        path = path or self.checkpoints / "latest"
        metadata = read_metadata(path)
        if metadata.agent != self.config:
            changed = _changed_fields(metadata.agent.model_dump(), self.config.model_dump())
            raise CheckpointError(
                f"{path}: was trained with another agent configuration (differs in {', '.join(changed)}). "
                f"Resume with the run's own config.resolved.yaml, or start a new run"
            )
        self.model.load_state_dict(load_checkpoint_model(path, metadata).state_dict())
        arrays = load_training_arrays(path)
        state = metadata.state
        self._load_optimiser(arrays)
        self.learner.load_scaler_state(state["scaler"])
        if self.learner.averaged is not None:
            saved = _under(arrays, "averaged.")
            self.learner.averaged.load_state_dict({k: torch.from_numpy(array.copy()) for k, array in saved.items()})
        if self.target is not None:
            saved = _under(arrays, "target.")
            self.target.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in saved.items()})
        self.replay.set_state(_under(arrays, "replay."))
        if self.demonstrations is not None:
            self.demonstrations.set_state(_under(arrays, "demonstrations."))
        torch.set_rng_state(torch.from_numpy(arrays["torch_rng"].copy()))
        self.rng.bit_generator.state = state["rng"]
        self.actor.rng.bit_generator.state = state["actor_rng"]
        self.actor.env_steps = metadata.counters.env_steps
        self.learner.updates = metadata.counters.updates
        self.seconds = metadata.counters.seconds
        self.owed = state["owed"]
        self.best_score = state["best_score"]
        if isinstance(self.actor.env, Resumable):
            self.actor.env.set_state(_state_from_bytes(_under(arrays, "env."), self.actor.env.get_state()))
            self.actor.observations = _under(arrays, "actor.observation.")
            self.actor.mask = arrays["actor.mask"].astype(bool)
            self.actor.finished = arrays["actor.finished"].astype(bool)
            self.actor.episode_return = arrays["actor.episode_return"].astype(np.float64)
            self.actor.episode_step = arrays["actor.episode_step"].astype(np.int64)
        else:
            self.actor.reset(state["reset_seed"])
        self.actor.returns = [float(value) for value in state["returns"]]
        if self.second_lives is not None:
            self._resume_second_lives(self.second_lives, state["second_lives"], arrays)
        self._counted = (
            self.actor.env_steps + (self.second_lives.steps if self.second_lives else 0),
            self.learner.updates,
        )
        self._sums, self._count = dict(state["diagnostic_sums"]), state["diagnostic_count"]
        self.planner.refresh()
        self.reanalyser.refresh()
        self._cut_metrics()

    def _resume_second_lives(
        self, lives: SecondLives, state: dict[str, Any], arrays: dict[str, NDArray[np.generic]]
    ) -> None:
        self.second_replay.set_state(_under(arrays, "second.replay."))
        lives.actor.rng.bit_generator.state = state["rng"]
        lives.actor.env_steps, lives.steps = state["env_steps"], state["steps"]
        self._lives_owed = state["owed"]
        like = lives.actor.env.get_state()  # type: ignore[attr-defined]
        for index in range(state["moments"]):
            saved = _under(arrays, f"second.moment.{index}.")
            lives.moments.append(
                Moment(
                    state=_state_from_bytes(_under(saved, "state."), like),
                    observations=_under(saved, "observation."),
                    mask=saved["mask"].astype(bool),
                    finished=saved["finished"].astype(bool),
                )
            )

    def run(self) -> Evaluation | None:
        """Train. Returns the last evaluation made, None if there was none."""
        training, learning = self.config.training, self.config.learner
        started = time.monotonic()
        before = self.seconds
        last: Evaluation | None = None
        self.settings.directory.mkdir(parents=True, exist_ok=True)
        with (
            SummaryWriter(str(self.settings.directory / "tensorboard"), purge_step=self.actor.env_steps) as board,
            self._progress() as progress,
        ):
            while self.learner.updates < training.offline_updates and not self._time_is_up(started):
                with self._clock.learning():
                    self._learn()
                self.seconds = before + time.monotonic() - started
                if self.learner.updates % training.evaluate_every == 0:
                    last = self._evaluate(board)
                if self.learner.updates % training.checkpoint_every == 0:
                    self._save_latest()
            self.planner.refresh()
            bar = progress.add_task("training", total=training.env_steps, completed=self.actor.env_steps)
            while self.actor.env_steps < training.env_steps:
                with self._clock.acting():
                    self.replay.add(self.actor.step())
                    self._relive()
                progress.update(bar, completed=self.actor.env_steps)
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
                if _crossed(first, self.learner.updates, training.evaluate_every):
                    last = self._evaluate(board)
                if _crossed(first, self.learner.updates, training.checkpoint_every):
                    self._save_latest()
                if self._time_is_up(started):
                    break
            self.seconds = before + time.monotonic() - started
            if self._count:  # learnt something since the last look
                last = self._evaluate(board)
                self._save_latest()
        return last

    def _time_is_up(self, started: float) -> bool:
        minutes = self.settings.minutes
        return minutes is not None and time.monotonic() - started > 60 * minutes

    def _relive(self) -> None:
        """Second lives in their proportion to the first ones; a moment is kept as often as one is lived again."""
        lives = self.second_lives
        if lives is None:
            return
        self._lives_owed += self.config.replay.counterfactual_ratio / lives.length
        if self._lives_owed >= 1.0 or not lives.moments:
            lives.remember(self.actor)
        while self._lives_owed >= 1.0:
            lives.relive(self.second_replay)
            self._lives_owed -= 1.0

    def _sample(self) -> list[tuple[Replay, Batch]]:
        """What to learn from: demonstrations in their share, first lives, and second ones in their proportion once
        there are any."""
        size, unroll = self.config.learner.batch_size, self.config.learner.unroll
        recorded = self._demonstrated(size)
        parts: list[tuple[Replay, Batch]] = []
        if self.demonstrations is not None and recorded:
            parts.append((self.demonstrations, self.demonstrations.sample(recorded, unroll, self.rng)))
            size -= recorded
        if not size:
            return parts
        ratio = self.config.replay.counterfactual_ratio
        second = round(size * ratio / (1.0 + ratio)) if self.second_lives and self.second_replay.size > 1 else 0
        parts.append((self.replay, self.replay.sample(size - second, unroll, self.rng)))
        if second:
            parts.append((self.second_replay, self.second_replay.sample(second, unroll, self.rng)))
        return parts

    def _demonstrated(self, count: int) -> int:
        """How many of `count` samples come from the demonstrations at this update: all before there is self-play."""
        replay, updates = self.config.replay, self.learner.updates
        if self.demonstrations is None:
            return 0
        if updates < self.config.training.offline_updates:
            return count
        over = replay.demonstration_updates is not None and updates >= replay.demonstration_updates
        return 0 if over else round(count * replay.demonstration_ratio)

    def _searched_anew(self) -> int:
        """How many stored steps to search anew after this update."""
        replay, size = self.config.replay, self.config.learner.batch_size
        if replay.reanalyse_mode == "share" or not replay.reanalyse_ratio:
            return round(replay.reanalyse_ratio * size)
        return size if self.rng.random() < replay.reanalyse_ratio else 0

    def _learn(self) -> None:
        count = self._searched_anew()
        recorded = self._demonstrated(count)
        parts = self._sample()
        batch = parts[0][1] if len(parts) == 1 else concatenate([part for _, part in parts])
        diagnostics, error = self.learner.update(batch, self.target)
        start = 0
        for replay, part in parts:
            replay.set_priorities(part, error[start : start + len(part.row)])
            start += len(part.row)
        every = self.config.learner.target_every
        if self.target is not None and self.learner.updates % every == 0:
            self.target.load_state_dict(self.learner.acting.state_dict())
        if count:
            if self.target is None or self.learner.updates % every == 0:
                self.reanalyser.refresh()
            if self.demonstrations is not None and recorded:
                reanalyse(self.demonstrations, self.reanalyser, recorded, self.rng)
            if count > recorded:
                reanalyse(self.replay, self.reanalyser, count - recorded, self.rng)
        for name, value in diagnostics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def _evaluate(self, board: SummaryWriter) -> Evaluation:
        self.validation_planner.refresh()
        result = evaluate(
            self.validation, self.validation_planner, seed=self.validation_seed, discount=self.config.discount
        )
        # What planning adds: the same network, acting without it.
        prior = evaluate(self.validation, self.validation_planner, seed=self.validation_seed, simulations=0)
        calibration = result.calibration
        row: dict[str, Any] = {
            "env_steps": self.actor.env_steps,
            "updates": self.learner.updates,
            "seconds": round(self.seconds, 3),
            "score": result.score,
            "score_standard_error": result.standard_error,
            "prior_score": prior.score,
            "action_share": [round(float(share), 4) for share in result.action_share],
            "action_changes": result.action_changes,
            "value/bias": None if calibration is None else calibration.bias,
            "value/slope": None if calibration is None else calibration.slope,
            "replay/ratio": self.learner.updates * self.config.learner.batch_size / max(1, self.actor.env_steps),
            "replay/steps": self.replay.steps,
            "counterfactual_steps": 0 if self.second_lives is None else self.second_lives.steps,
            **self._speeds(),
        }
        returns = self.actor.take_returns()
        row["self_play_return"] = float(np.mean(returns)) if returns else None
        row |= {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        with (self.settings.directory / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                board.add_scalar(name, value, self.actor.env_steps or self.learner.updates)
        best = self.best_score is None or result.score >= self.best_score  # of equals, the one that learnt more
        if best:
            self.best_score = result.score
            save_checkpoint(
                self.checkpoints, "best", self.learner.acting, self._metadata(result.score, final=True), keep=2
            )
        self.console.print(
            f"[dim]{self.seconds:7.1f}s[/] steps {self.actor.env_steps:>8,}  updates {self.learner.updates:>6,}  "
            f"score {result.score:+.4f} ± {result.standard_error:.4f}  loss {row.get('loss/total', float('nan')):.3f}"
            f"  codes {row.get('model/code_perplexity', float('nan')):.1f}{'  [green]best[/]' if best else ''}",
            highlight=False,
            soft_wrap=True,
        )
        return result

    def _acted(self) -> int:
        """Steps searched and taken, in first and second lives."""
        return self.actor.env_steps + (0 if self.second_lives is None else self.second_lives.steps)

    def _speeds(self) -> dict[str, float | None]:
        """Since the last look; the only entries of the curve, beside the seconds, that two equal runs differ in."""
        clock, self._clock = self._clock, _Clock()
        steps, updates = self._acted() - self._counted[0], self.learner.updates - self._counted[1]
        self._counted = self._acted(), self.learner.updates
        per_second = steps / clock.acted if clock.acted > 0 else None
        return {
            "speed/env_steps_per_s": per_second,
            "speed/simulations_per_s": None if per_second is None else per_second * self.config.search.simulations,
            "speed/updates_per_s": updates / clock.learnt if clock.learnt > 0 else None,
        }

    def _save_latest(self) -> None:
        arrays: dict[str, NDArray[np.generic]] = {"torch_rng": torch.get_rng_state().numpy()}
        arrays |= {f"replay.{name}": array for name, array in self.replay.get_state().items()}
        if self.demonstrations is not None:
            arrays |= {f"demonstrations.{name}": array for name, array in self.demonstrations.get_state().items()}
        arrays |= self._optimiser_arrays()
        if self.learner.averaged is not None:
            averaged = self.learner.averaged.state_dict()
            arrays |= {f"averaged.{name}": value.cpu().numpy() for name, value in averaged.items()}
        if self.target is not None:
            arrays |= {f"target.{name}": value.cpu().numpy() for name, value in self.target.state_dict().items()}
        bookkeeping: dict[str, Any] = {
            "rng": self.rng.bit_generator.state,
            "actor_rng": self.actor.rng.bit_generator.state,
            "owed": self.owed,
            "best_score": self.best_score,
            "returns": list(self.actor.returns),
            "diagnostic_sums": self._sums,
            "diagnostic_count": self._count,
            "scaler": self.learner.scaler_state(),
        }
        if self.second_lives is not None:
            arrays |= _second_life_arrays(self.second_lives, self.second_replay)
            bookkeeping["second_lives"] = {
                "moments": len(self.second_lives.moments),
                "steps": self.second_lives.steps,
                "env_steps": self.second_lives.actor.env_steps,
                "rng": self.second_lives.actor.rng.bit_generator.state,
                "owed": self._lives_owed,
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

    def _optimiser_arrays(self) -> dict[str, NDArray[np.generic]]:
        state = self.learner.optimiser.state_dict()["state"]
        return {
            f"optimiser.{index}.{name}": value.detach().cpu().numpy()
            for index, entry in state.items()
            for name, value in entry.items()
        }

    def _load_optimiser(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, array in _under(arrays, "optimiser.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy())
        groups = self.learner.optimiser.state_dict()["param_groups"]
        self.learner.optimiser.load_state_dict({"state": state, "param_groups": groups})

    def _cut_metrics(self) -> None:
        """Drop curve points from after the checkpoint: the resumed run draws them again."""
        path = self.settings.directory / "metrics.jsonl"
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in rows if json.loads(line)["updates"] <= self.learner.updates]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(path)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} env steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
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


def learning_device(name: str) -> torch.device:
    """The device to learn on. Raises ValueError when a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "learner.device cuda: expected a CUDA GPU that torch can use, found none. Set learner.device to auto or cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _second_life_arrays(lives: SecondLives, replay: Replay) -> dict[str, NDArray[np.generic]]:
    arrays = {f"second.replay.{name}": array for name, array in replay.get_state().items()}
    for index, moment in enumerate(lives.moments):
        prefix = f"second.moment.{index}"
        arrays |= {f"{prefix}.state.{name}": array for name, array in _state_as_bytes(moment.state).items()}
        arrays |= {f"{prefix}.observation.{name}": np.asarray(entry) for name, entry in moment.observations.items()}
        arrays |= {f"{prefix}.mask": moment.mask, f"{prefix}.finished": moment.finished}
    return arrays


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


def _under(arrays: dict[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


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


def _changed_fields(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for name, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            changed += _changed_fields(before[name], value, f"{prefix}{name}.")
        elif before.get(name) != value:
            changed.append(f"{prefix}{name}")
    return changed
