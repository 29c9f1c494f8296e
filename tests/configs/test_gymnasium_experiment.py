"""`python -m agent` on a Gymnasium environment: from an id or a YAML to a checkpoint, a report and a resumed run."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.__main__ import app
from configs.experiment import Experiment, ExperimentError, load_experiment
from configs.gymnasium_experiment import GymnasiumExperiment, experiment_for, load_any

TINY = {
    "agent.network.width": 16,
    "agent.network.encoder_width": 16,
    "agent.network.latent": 8,
    "agent.network.hidden": 16,
    "agent.network.support_atoms": 11,
    "agent.search.simulations": 4,
    "agent.self_play.num_envs": 4,
    "agent.replay.min_steps": 100,
    "agent.learner.batch_size": 16,
    "agent.training.env_steps": 240,
    "agent.training.evaluate_every": 5,
    "agent.training.checkpoint_every": 5,
    "agent.training.evaluation_episodes": 2,
}
SETS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def _run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        _run("train", "--env", "Pendulum-v1", "--run", "swing", "--set", "env.max_steps=20", *SETS)
    return home / "var" / "runs" / "swing"


def test_a_run_says_completely_what_it_is(trained: Path) -> None:
    experiment = load_any(trained / "config.resolved.yaml")
    assert isinstance(experiment, GymnasiumExperiment)
    assert (experiment.name, experiment.env.id, experiment.env.max_steps) == ("Pendulum-v1", "Pendulum-v1", 20)
    assert experiment.agent.network.latent == 8


def test_evaluate_reports_returns_and_how_training_went(trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.md"
    row = json.loads(_run("evaluate", "swing", "--episodes", "3", "--report", str(page), "--json").stdout)
    assert row["environment"] == "Pendulum-v1"
    assert row["lowest"] <= row["median"] <= row["highest"] < 0
    assert row["mean_length"] == 20
    points = (trained / "metrics.jsonl").read_text().splitlines()
    text = page.read_text()
    assert f"{row['score']}" in text
    assert text.count("\n| ") >= 8 + len(points)


def test_inspect_names_actions_as_the_environment_takes_them(trained: Path) -> None:
    drawn = _run("inspect", "swing", "--tree", "--step", "3").output
    assert "Pendulum-v1, step 3: action" in drawn
    assert "Q -" in drawn
    assert "next-bar" not in _run("inspect", "swing").output


def test_a_resumed_run_keeps_its_environment(trained: Path) -> None:
    again = json.loads(_run("train", "--resume", "swing", "--json").stdout)
    assert again["finished"]
    assert again["env_steps"] >= 240
    with pytest.raises(ExperimentError, match="keeps its environment"):
        CliRunner().invoke(app, ["train", "--resume", "swing", "--env", "CartPole-v1"], catch_exceptions=False)


def test_rewards_decide_how_far_values_reach() -> None:
    """At most 16.27 a step (Gymnasium's documentation of Pendulum), 100 steps of it at a discount of 0.99."""
    limit = experiment_for("Pendulum-v1").agent.network.support_limit
    assert 1_000 < limit < 1.1 * 1_627.4
    assert experiment_for("CartPole-v1").agent.network.support_limit == pytest.approx(110.0)
    chosen = experiment_for("CartPole-v1", ["agent.network.support_limit=7", "seed=5", "name=mine"])
    assert (chosen.agent.network.support_limit, chosen.seed, chosen.name) == (7.0, 5, "mine")


def test_pictures_are_read_by_a_resnet_unless_another_is_asked_for() -> None:
    catch = "benchmarks.catch:smu0/Catch-v0"
    assert experiment_for(catch).agent.network.backbone == "resnet"
    assert experiment_for(catch, ["agent.network.backbone=transformer"]).agent.network.backbone == "transformer"
    assert experiment_for("CartPole-v1").agent.network.backbone == "mlp"
    assert experiment_for(catch).name == "Catch-v0"


def test_a_yaml_is_about_bars_or_about_an_environment(tmp_path: Path) -> None:
    file = tmp_path / "swing.yaml"
    file.write_text("name: swing\nenv: {id: Pendulum-v1}\n")
    assert isinstance(load_any(file), GymnasiumExperiment)
    with pytest.raises(ExperimentError, match="needs an experiment on bars"):
        load_experiment(file)
    with pytest.raises(ExperimentError, match=r"env\.idd: Extra inputs"):
        load_any(file, ["env.idd=x"])
    assert isinstance(load_any(Path(__file__).parents[2] / "configs" / "smoke.yaml"), Experiment)


def test_train_wants_exactly_one_of_its_three_sources() -> None:
    for arguments in (["train"], ["train", "configs/smoke.yaml", "--env", "CartPole-v1"]):
        with pytest.raises(ExperimentError, match="expected one of an experiment YAML, --env ID and --resume RUN"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
