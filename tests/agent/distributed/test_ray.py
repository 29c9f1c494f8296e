"""The same on real processes: slow, because each of them imports torch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "agent.network.width": 16,
    "agent.network.encoder_width": 16,
    "agent.network.latent": 8,
    "agent.network.hidden": 16,
    "agent.network.support_atoms": 11,
    "agent.search.simulations": 4,
    "agent.self_play.num_envs": 4,
    "agent.replay.min_steps": 64,
    "agent.replay.capacity_steps": 4000,
    "agent.learner.batch_size": 16,
    "agent.learner.unroll": 2,
    "agent.learner.updates_per_env_step": 0.25,
    "agent.learner.threads": 1,
    "agent.training.evaluate_every": 40,
    "agent.training.checkpoint_every": 40,
    "agent.training.evaluation_episodes": 2,
}
PATIENCE = 900  # seconds; a process takes some ten of one processor to come up


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def _train(cwd: Path, *arguments: str, env_steps: int, actors: int = 1) -> subprocess.Popen[str]:
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "agent.training.env_steps": env_steps}.items()]
    command = ["train", "--env", "CartPole-v1", *settings, "--run", "x", "--ray", "local", "--actors", str(actors)]
    return _agent(cwd, *command, "--json", *arguments)


def _agent(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    with (cwd / "stderr").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "agent", *arguments],
            cwd=cwd,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )


def _summary(process: subprocess.Popen[str], cwd: Path) -> dict[str, Any]:
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (cwd / "stderr").read_text()[-4000:]
    summary: dict[str, Any] = json.loads(out[out.index("{") :])
    return summary


def _curve(cwd: Path) -> list[dict[str, Any]]:
    path = cwd / "var" / "runs" / "x" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _latest(cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cwd / "var/runs/x/checkpoints/latest/checkpoint.json").read_text())
    return found


def _records(cwd: Path) -> int:
    """Rows that the replays of the run accepted: steps, and last observations of episodes."""
    return int(_latest(cwd)["state"]["distributed"]["replay"]["records"])


def _until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, "the run ended early"
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def _below(pid: int) -> Iterator[tuple[int, str]]:
    """Every process under `pid`, with its title."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = list(parents.get(pid, []))
    while waiting:
        child = waiting.pop()
        waiting += parents.get(child, [])
        try:
            yield child, (Path("/proc") / str(child) / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue


def _workers(pid: int, kind: str) -> list[int]:
    return [child for child, title in _below(pid) if title.startswith(f"ray::{kind}")]


@pytest.mark.slow
def test_a_run_on_ray_ends_with_a_checkpoint_that_acts(tmp_path: Path) -> None:
    summary = _summary(_train(tmp_path, env_steps=600), tmp_path)
    assert summary["finished"]
    assert summary["lost_processes"] == 0
    paid = 0.25 * (_records(tmp_path) - 64)
    assert paid - 1 < summary["updates"] <= paid
    done = _agent(tmp_path, "evaluate", "x", "--episodes", "2", "--json")
    out, _ = done.communicate(timeout=PATIENCE)
    assert done.returncode == 0
    assert json.loads(out)["episodes"] == 2


@pytest.mark.failures
def test_a_run_survives_sigkill_of_an_actor_of_the_replay_and_of_the_evaluator(tmp_path: Path) -> None:
    run = _train(tmp_path, env_steps=8000, actors=2)
    for points, kind in ((1, "SelfPlayWorker"), (3, "ReplayWorker"), (5, "EvaluatorWorker")):
        _until(lambda points=points: len(_curve(tmp_path)) >= points, run)
        os.kill(_until(lambda kind=kind: _workers(run.pid, kind), run)[0], signal.SIGKILL)
    summary = _summary(run, tmp_path)
    assert summary["finished"]
    assert summary["lost_processes"] == 3
    steps, updates = ([row[name] for row in _curve(tmp_path)] for name in ("env_steps", "updates"))
    assert steps == sorted(steps)
    assert updates == sorted(updates)
    assert summary["env_steps"] < _records(tmp_path)
    assert summary["updates"] <= 0.25 * _records(tmp_path), "no update was made that nothing had paid for"


@pytest.mark.failures
def test_sigterm_pauses_a_run_and_saves(tmp_path: Path) -> None:
    run = _train(tmp_path, env_steps=1_000_000)
    _until(lambda: len(_curve(tmp_path)) >= 1, run)
    run.send_signal(signal.SIGTERM)
    summary = _summary(run, tmp_path)
    assert not summary["finished"]
    assert summary["updates"] == _latest(tmp_path)["counters"]["updates"] == _curve(tmp_path)[-1]["updates"]


@pytest.mark.failures
@pytest.mark.parametrize("victim", ["learner", "driver"])
def test_a_run_resumes_after_sigkill_of_learner_and_driver(tmp_path: Path, victim: str) -> None:
    run = _train(tmp_path, env_steps=4000)
    _until(lambda: len(_curve(tmp_path)) >= 2, run)
    below = [child for child, _ in _below(run.pid)]
    if victim == "learner":
        os.kill(_workers(run.pid, "LearnerWorker")[0], signal.SIGKILL)
        run.communicate(timeout=PATIENCE)
        assert run.returncode == 2
        assert "--resume" in (tmp_path / "stderr").read_text()
    else:
        run.send_signal(signal.SIGKILL)
        run.communicate()
        deadline = time.monotonic() + 120
        while any((Path("/proc") / str(child)).exists() for child in below) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not any((Path("/proc") / str(child)).exists() for child in below), "Ray ended with the driver"
    saved = _latest(tmp_path)["counters"]
    summary = _summary(_agent(tmp_path, "train", "--resume", "x", "--ray", "local", "--json"), tmp_path)
    assert summary["finished"]
    assert summary["updates"] > saved["updates"] > 0
    updates = [row["updates"] for row in _curve(tmp_path)]
    assert updates == sorted(set(updates))


@pytest.mark.failures
def test_a_node_that_joins_is_used_and_one_that_leaves_is_missed_by_nobody(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("two_nodes.py")), str(tmp_path)],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["nodes"] == 2, "self-play ran on both"
    assert seen["steps_of_second"] > 0, "and the replay got experience from the second"
    assert seen["deaths"] >= 1, "whose actor was lost with it"
    assert seen["env_steps"] >= seen["env_steps_when_it_left"] + 2_000, "while the first went on"
