"""From an experiment to what a training run needs: its agent, its environments, its settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agent.config import AgentConfig
from agent.experience import EnvFactory
from agent.train import RunSettings, Trainer
from configs.environments import MarketEnvs
from configs.gymnasium_experiment import AnyExperiment, GymnasiumExperiment, parse_any
from configs.version import code_version


class Run(NamedTuple):
    """Arguments of a trainer."""

    agent: AgentConfig
    envs: EnvFactory
    settings: RunSettings


def prepare(experiment: AnyExperiment, directory: Path, *, minutes: float | None = None) -> Run:
    """What the experiment's training in this directory consists of."""
    common: dict[str, Any] = {
        "directory": directory,
        "seed": experiment.seed,
        "code_version": code_version(),
        "minutes": minutes,
        "experiment": experiment.dump(),
    }
    if isinstance(experiment, GymnasiumExperiment):
        return Run(experiment.agent, experiment.environments(), RunSettings(**common))
    envs = MarketEnvs(experiment)
    settings = RunSettings(
        **common,
        feature_fingerprint=experiment.feature_set.fingerprint,
        data_fingerprint=envs.data_fingerprint,
        code_statistics=envs.code_statistics,
    )
    return Run(experiment.agent, envs, settings)


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any], where: str) -> AnyExperiment:
    """The experiment with other values under dotted keys. Raises ExperimentError."""
    return parse_any(replaced(raw, values), where)


def replaced(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested sections with other values under dotted keys."""
    result: dict[str, Any] = {k: replaced(v, {}) if isinstance(v, dict) else v for k, v in raw.items()}
    for key, value in values.items():
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return result


class TrialTrainer:
    """Makes the trainer of one trial of a tuning run: the experiment with other values, in a directory of its own."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = dict(raw)

    def __call__(self, values: Mapping[str, Any], directory: Path) -> Trainer:
        """The trial's trainer, resumed where an earlier attempt at the same trial was cut off."""
        run = prepare(with_values(self._raw, values, str(directory)), directory)
        trainer = Trainer(run.agent, run.envs, run.settings)
        if (directory / "checkpoints" / "latest").exists():
            trainer.resume()
        return trainer
