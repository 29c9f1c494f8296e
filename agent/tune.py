"""A search for better settings with Ray Tune: many short runs, of which the worse half is stopped early, again and
again (ASHA, Li et al. 2020).

Every trial is a one-process training run with a directory and checkpoints of its own, so a tuning run that was killed
goes on where each of its trials stood. The first trial is the configuration as it is, to compare with what is found.
"""

import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console

from agent.distributed import Cluster, connect
from agent.train import Trainer

_LAST = 3  # evaluations averaged for a trial's score: the best of many noisy ones is mostly luck
_STATE = "tune"  # Ray Tune's own files, in the run's directory
REPORT = "report.json"

MakeTrainer = Callable[[Mapping[str, Any], Path], Trainer]


class SpaceError(ValueError):
    """A search space does not say what may be tried."""


class Dimension(BaseModel):
    """What may be tried for one setting: some choices, or a range from low to high."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[Any, ...] | None = Field(None, description="values, each as likely as the others")
    low: float | None = Field(None, description="smallest value of a range")
    high: float | None = Field(None, description="largest value of a range")
    log: bool = Field(False, description="range: every factor as likely, instead of every difference")
    whole: bool = Field(False, description="range: whole numbers")

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        ranged = self.low is not None and self.high is not None
        if ranged == (self.choices is not None) or self.choices == ():
            raise ValueError("expected either choices or both of low and high")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"expected low < high, found {self.low} and {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"log: expected low > 0, found {self.low}")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """A value."""
        if self.choices is not None:
            return self.choices[int(rng.integers(len(self.choices)))]
        assert self.low is not None, "a dimension is choices or a range"
        assert self.high is not None, "a dimension is choices or a range"
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return round(value) if self.whole else float(f"{value:.4g}")


Space = Mapping[str, Dimension]

# What moved results most on the problems of docs/methods.md.
DEFAULT_SPACE: Space = {
    "agent.learner.learning_rate": Dimension(low=1e-4, high=1e-2, log=True),
    "agent.learner.updates_per_env_step": Dimension(low=0.01, high=0.2, log=True),
    "agent.search.simulations": Dimension(choices=(8, 16, 32, 50)),
    "agent.search.dirichlet_alpha": Dimension(low=0.1, high=2.0, log=True),
    "agent.replay.n_step": Dimension(low=1, high=20, whole=True),
}


def parse_space(raw: Any, where: str) -> Space:
    """A search space from plain types: dotted keys, each with a Dimension's fields or a list of choices.

    Raises SpaceError naming the key.
    """
    if not isinstance(raw, dict) or not raw:
        raise SpaceError(
            f"{where}: expected dotted keys, each with choices or a range, such as "
            f'"agent.learner.learning_rate: {{low: 1e-4, high: 1e-2, log: true}}"; found {type(raw).__name__}'
        )
    space = {}
    for key, entry in raw.items():
        try:
            space[str(key)] = Dimension.model_validate({"choices": entry} if isinstance(entry, list) else entry)
        except ValidationError as error:
            raise SpaceError(f"{where}: {key}: {error.errors()[0]['msg']}") from error
    return space


def values_of(experiment: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """What the experiment has for the settings of the space. Raises SpaceError for one that it does not have."""
    values = {}
    for key in space:
        place: Any = experiment
        for part in key.split("."):
            if not isinstance(place, Mapping) or part not in place:
                raise SpaceError(f"space: {key}: the experiment has no such setting (no {part!r})")
            place = place[part]
        values[key] = place
    return values


def drawn_values(space: Space, first: Mapping[str, Any], trials: int, seed: int) -> list[dict[str, Any]]:
    """The values of every trial: `first`, then random ones. The same for the same seed."""
    rng = np.random.default_rng(seed)
    rest = [{key: dimension.draw(rng) for key, dimension in space.items()} for _ in range(trials - 1)]
    return [dict(first), *rest]


@dataclass(frozen=True)
class TuneSettings:
    """directory: of the tuning run. trials: how many, the unchanged configuration included. workers: trials at a time,
    None for one per processor. minutes: no new trial and no more training after this. seed: of the values drawn."""

    directory: Path
    trials: int
    seed: int
    workers: int | None = None
    minutes: float | None = None


def tune(
    experiment: Mapping[str, Any],
    space: Space,
    make_trainer: MakeTrainer,
    settings: TuneSettings,
    cluster: Cluster,
    *,
    env_steps: int,
    resume: bool = False,
) -> dict[str, Any]:
    """Search. Returns the report, which is also written to report.json beside best.yaml and report.md.

    experiment: as plain types. env_steps: of a trial that is not stopped early. resume: go on with the tuning run in
    the directory.
    """
    directory = settings.directory.resolve()
    os.environ.update({"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"})
    workers = settings.workers or os.cpu_count() or 1
    connect(Cluster(address=cluster.address, actors=workers))
    from ray import tune as ray_tune

    # It would warn that its own files of results are missing, which is as it should be: the curves are ours.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    values = drawn_values(space, values_of(experiment, space), settings.trials, settings.seed)
    state = directory / _STATE

    def trial(config: dict[str, Any]) -> None:
        place = directory / f"trial-{config['trial']:03d}"
        run_trial(values[config["trial"]], place, make_trainer, ray_tune.report, env_steps=env_steps)

    trainable = ray_tune.with_resources(trial, {"cpu": 1})
    if resume:
        if not ray_tune.Tuner.can_restore(str(state)):
            raise FileNotFoundError(
                f"{directory}: expected a tuning run to resume, found none. Start one without --resume"
            )
        tuner = ray_tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = ray_tune.Tuner(
            trainable,
            param_space={"trial": ray_tune.grid_search(list(range(settings.trials)))},
            tune_config=ray_tune.TuneConfig(
                metric="score",
                mode="max",
                scheduler=ray_tune.schedulers.ASHAScheduler(
                    time_attr="env_steps",
                    max_t=env_steps,
                    grace_period=max(1, env_steps // 8),
                    reduction_factor=2,
                ),
                max_concurrent_trials=workers,
                time_budget_s=None if settings.minutes is None else 60 * settings.minutes,
            ),
            run_config=ray_tune.RunConfig(
                name=_STATE,
                storage_path=str(directory),
                verbose=0,
                callbacks=[_progress(ray_tune, values, settings.trials)],
                failure_config=ray_tune.FailureConfig(max_failures=2),
            ),
        )
    tuner.fit()
    return write_report(experiment, values, directory)


def run_trial(
    values: Mapping[str, Any],
    directory: Path,
    make_trainer: MakeTrainer,
    report: Callable[[dict[str, Any]], object],
    *,
    env_steps: int,
) -> None:
    """Train one trial of `env_steps`, reporting the mean of its last few scores at every evaluation.

    A trial that was cut off goes on; what it had reported is reported again, for a scheduler that has forgotten it. A
    scheduler kills a trial at its last report, so that one waits until the last weights are saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(values, directory)
    rows: list[dict[str, Any]] = []

    def look(row: Mapping[str, Any]) -> None:
        rows.append(dict(row))
        if row["env_steps"] < env_steps:
            report(standing(rows))

    for row in curve(directory):
        look(row)
    trainer.run(look)
    if rows and rows[-1]["env_steps"] >= env_steps:
        report(standing(rows))


def curve(directory: Path) -> list[dict[str, Any]]:
    """The points of a run's curve that were written whole."""
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def standing(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a trial stands after these evaluations."""
    return {
        "score": statistics.mean(row["score"] for row in rows[-_LAST:]),
        "env_steps": rows[-1]["env_steps"],
        "seconds": rows[-1]["seconds"],
        "evaluations": len(rows),
    }


def write_report(experiment: Mapping[str, Any], values: Sequence[Mapping[str, Any]], directory: Path) -> dict[str, Any]:
    """Rank the trials by what their curves say, those that went further first among equals, and write it down.

    Only trials that went as far as any are candidates for the best: the others were stopped, or cut off by the clock.
    """
    trials = []
    for number, own in enumerate(values):
        rows = curve(directory / f"trial-{number:03d}")
        if rows:
            trials.append({"trial": number, "values": dict(own), **standing(rows)})
    if not trials:
        raise RuntimeError(
            f"{directory}: no trial has been evaluated yet. Give the run more --minutes, or lower "
            f"agent.training.evaluate_every"
        )
    furthest = max(trial["env_steps"] for trial in trials)
    trials.sort(key=lambda trial: (-(trial["env_steps"] >= 0.95 * furthest), -trial["score"]))
    best = trials[0]
    unchanged = next((trial for trial in trials if trial["trial"] == 0), None)
    report = {
        "run": str(directory),
        "best": best,
        "unchanged": unchanged,
        "gain": None if unchanged is None else best["score"] - unchanged["score"],
        "trials": trials,
        "config": str(directory / "best.yaml"),
    }
    _replace(directory / REPORT, json.dumps(report, indent=2))
    _replace(directory / "best.yaml", yaml.safe_dump(_changed(experiment, best["values"]), sort_keys=False))
    _replace(directory / "report.md", _page(trials))
    return report


def _page(trials: Sequence[Mapping[str, Any]]) -> str:
    keys = list(trials[0]["values"])
    lines = [
        "# Tuning",
        "",
        f"Score: mean validation return of the last {_LAST} evaluations. Trial 0 is the configuration as it was.",
        "",
        "| trial | score | env steps | " + " | ".join(key.removeprefix("agent.") for key in keys) + " |",
        "|---|---|---|" + "---|" * len(keys),
    ]
    for trial in trials:
        cells = " | ".join(f"{trial['values'][key]}" for key in keys)
        lines.append(f"| {trial['trial']} | {trial['score']:.4g} | {trial['env_steps']:,} | {cells} |")
    return "\n".join(lines) + "\n"


def _changed(experiment: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(experiment))
    for key, value in values.items():
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place[section]
        place[last] = value
    return result


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _progress(ray_tune: Any, values: Sequence[Mapping[str, Any]], trials: int) -> Any:
    """A line for every evaluation of every trial."""

    class Progress(ray_tune.Callback):  # type: ignore[misc]
        """Ray Tune's callback; it is pickled with the run, so it makes its console when it speaks."""

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            """A trial has reported."""
            number = result["config"]["trial"]
            done = sum(other.status == "TERMINATED" for other in trials)
            Console(stderr=True).print(
                f"trial {number:>3} of {len(values)}  steps {result['env_steps']:>8,}  score {result['score']:+.4f}  "
                f"({done} done)  {shown(values[number])}",
                highlight=False,
                soft_wrap=True,
            )

    return Progress()


def shown(values: Mapping[str, Any]) -> str:
    """Values on one line."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in values.items())
