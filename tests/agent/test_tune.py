"""What may be tried, what is reported, and that a killed search goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agent.tune import (
    DEFAULT_SPACE,
    Dimension,
    SpaceError,
    drawn_values,
    parse_space,
    run_trial,
    values_of,
    write_report,
)
from configs.gymnasium_experiment import experiment_for, parse_any

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = {"agent": {"learner": {"learning_rate": 1e-6}, "search": {"simulations": 8}}}
SPACE = parse_space(
    {
        "agent.learner.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "agent.search.simulations": [4, 8],
    },
    "here",
)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 1.0}, "either choices or both"),
        ({"low": 2.0, "high": 1.0}, "low < high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low > 0"),
        ({"choices": [1], "low": 0.0, "high": 1.0}, "either choices or both"),
        ([], "either choices or both"),
        ({"lo": 1.0}, "Extra inputs"),
    ],
)
def test_a_space_that_says_nothing_is_refused_with_its_key(entry: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=f"space.yaml: agent.x: .*{message}"):
        parse_space({"agent.x": entry}, "space.yaml")
    with pytest.raises(SpaceError, match="dotted keys"):
        parse_space([], "space.yaml")


def test_values_stay_in_their_ranges_and_a_log_range_is_even_in_factors() -> None:
    rng = np.random.default_rng(0)
    drawn = [Dimension(low=1e-4, high=1e-2, log=True).draw(rng) for _ in range(2_000)]
    assert min(drawn) >= 1e-4
    assert max(drawn) <= 1e-2
    assert np.mean(np.array(drawn) < 1e-3) == pytest.approx(0.5, abs=0.04)
    whole = {Dimension(low=1, high=4, whole=True).draw(rng) for _ in range(200)}
    assert whole == {1, 2, 3, 4}


def test_the_first_trial_is_the_experiment_as_it_is() -> None:
    first = values_of(EXPERIMENT, SPACE)
    values = drawn_values(SPACE, first, trials=4, seed=3)
    assert values[0] == {"agent.learner.learning_rate": 1e-6, "agent.search.simulations": 8}
    assert values == drawn_values(SPACE, first, trials=4, seed=3)
    assert values[1:] != drawn_values(SPACE, first, trials=4, seed=4)[1:]


def test_a_setting_that_the_experiment_does_not_have_is_named() -> None:
    with pytest.raises(SpaceError, match=r"agent\.learner\.rate: .*no 'rate'"):
        values_of(EXPERIMENT, parse_space({"agent.learner.rate": [1]}, "here"))


def test_the_default_space_fits_every_experiment() -> None:
    for trial in drawn_values(
        DEFAULT_SPACE, values_of(experiment_for("CartPole-v1").dump(), DEFAULT_SPACE), trials=20, seed=0
    ):
        overrides = [f"{key}={value}" for key, value in trial.items()]
        experiment_for("CartPole-v1", overrides)


class Rising:
    """A trainer whose score is known: it draws the curve that it is told to."""

    def __init__(self, directory: Path, scores: list[float]) -> None:
        self._directory, self._scores = directory, scores

    saved = False

    def run(self, look: Callable[[dict[str, Any]], None]) -> None:
        done = len(self._path.read_text().splitlines()) if self._path.exists() else 0
        for number, score in enumerate(self._scores[done:], start=done + 1):
            row = {"score": score, "env_steps": 100 * number, "seconds": float(number), "updates": number}
            with self._path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            look(row)
        self.saved = True

    @property
    def _path(self) -> Path:
        return self._directory / "metrics.jsonl"


def _trial(directory: Path, number: int, scores: list[float]) -> list[dict[str, Any]]:
    reported: list[dict[str, Any]] = []
    make: Any = lambda values, place: Rising(place, scores)  # noqa: E731
    run_trial({}, directory / f"trial-{number:03d}", make, reported.append, env_steps=1000)
    return reported


def test_a_trials_score_is_the_mean_of_its_last_three_evaluations(tmp_path: Path) -> None:
    reported = _trial(tmp_path, 0, [1.0, 2.0, 6.0, 1.0])
    assert [row["score"] for row in reported] == [1.0, 1.5, 3.0, 3.0]


def test_a_trial_that_was_cut_off_reports_again_what_it_had(tmp_path: Path) -> None:
    _trial(tmp_path, 0, [1.0, 2.0])
    reported = _trial(tmp_path, 0, [1.0, 2.0, 3.0])
    assert [row["env_steps"] for row in reported] == [100, 200, 300]


def test_the_last_report_waits_until_the_last_weights_are_saved(tmp_path: Path) -> None:
    """A scheduler kills a trial at its last report."""
    (tmp_path / "trial").mkdir()
    trainer = Rising(tmp_path / "trial", [1.0, 2.0, 3.0])
    make: Any = lambda values, place: trainer  # noqa: E731
    reported: list[tuple[int, bool]] = []
    for _ in range(2):  # and once more, finished
        run_trial(
            {},
            tmp_path / "trial",
            make,
            lambda row: reported.append((row["env_steps"], trainer.saved)),
            env_steps=300,
        )
    assert reported == [(100, False), (200, False), (300, True), (100, True), (200, True), (300, True)]


def test_the_best_trial_is_one_that_went_all_the_way(tmp_path: Path) -> None:
    _trial(tmp_path, 0, [1.0, 1.0, 1.0])
    _trial(tmp_path, 1, [9.0])  # lucky, and stopped
    _trial(tmp_path, 2, [2.0, 3.0, 4.0])
    values = drawn_values(SPACE, values_of(EXPERIMENT, SPACE), trials=4, seed=0)
    report = write_report(EXPERIMENT, values, tmp_path)
    assert [trial["trial"] for trial in report["trials"]] == [2, 0, 1]
    assert report["gain"] == pytest.approx(2.0)
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert values_of(best, SPACE) == values[2]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert "| 2 | 3 | 300 |" in (tmp_path / "report.md").read_text()


def test_a_search_without_any_evaluation_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="--minutes"):
        write_report(EXPERIMENT, [{}], tmp_path)


def _tune(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with (cwd / "stderr").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "agent", "tune", *arguments],
            cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
        )  # fmt: skip


def _small() -> Mapping[str, Any]:
    network = {"width": 16, "encoder_width": 16, "latent": 8, "hidden": 16, "support_atoms": 11}
    return {
        "agent.network": network,
        "agent.self_play.num_envs": 8,
        "agent.replay.min_steps": 100,
        "agent.replay.n_step": 20,
        "agent.replay.td_lambda": 0.9,
        "agent.learner.batch_size": 32,
        "agent.learner.unroll": 3,
        "agent.learner.learning_rate": 1e-6,
        "agent.learner.learning_rate_final": 1e-7,
        "agent.learner.warmup_updates": 0,
        "agent.search.simulations": 8,
        "agent.learner.updates_per_env_step": 0.5,  # with fewer, which rate is better is luck
        "agent.training.env_steps": 3000,
        "agent.training.evaluate_every": 200,
        "agent.training.checkpoint_every": 200,
        "agent.training.evaluation_episodes": 4,
    }


@pytest.mark.failures
def test_a_search_mends_a_spoilt_experiment_and_goes_on_after_sigkill(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    space = tmp_path / "space.yaml"
    space.write_text("{agent.learner.learning_rate: [0.003, 0.01]}")
    settings = [f"--set={key}={json.dumps(value)}" for key, value in _small().items()]
    run = _tune(
        tmp_path, "--env", "CartPole-v1", *settings, "--space", str(space),
        "--trials", "3", "--workers", "1", "--run", "x", "--json",
    )  # fmt: skip
    directory = tmp_path / "var" / "runs" / "x"
    second = directory / "trial-001" / "metrics.jsonl"
    deadline = time.monotonic() + 1200
    while not (second.exists() and second.read_text().count("\n") >= 1):
        assert run.poll() is None, (tmp_path / "stderr").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    first = (directory / "trial-000" / "metrics.jsonl").read_text()
    resumed = _tune(tmp_path, "--resume", str(directory), "--json")
    out, _ = resumed.communicate(timeout=1800)
    assert resumed.returncode == 0, (tmp_path / "stderr").read_text()[-3000:]
    report = json.loads(out[out.index("{") :])
    assert (directory / "trial-000" / "metrics.jsonl").read_text().startswith(first), "what was done is not done again"
    assert {trial["trial"] for trial in report["trials"]} == {0, 1, 2}
    assert report["best"]["trial"] != 0
    assert report["gain"] > 5.0
    parse_any(yaml.safe_load((directory / "best.yaml").read_text()), "best.yaml")
