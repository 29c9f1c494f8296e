"""A training process killed with SIGKILL continues as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _run(cwd: Path, *arguments: str) -> None:
    done = subprocess.run(
        _command(*arguments), cwd=cwd, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _curve(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(("seconds", "speed/"))} for row in rows]


@pytest.mark.parametrize("curve_points", [2])
def test_sigkill_and_resume_give_the_uninterrupted_curve(tmp_path: Path, curve_points: int) -> None:
    config = str(ROOT / "configs" / "smoke.yaml")
    _run(tmp_path, "train", config, "--run", "whole")

    victim = subprocess.Popen(
        _command("train", config, "--run", "killed"),
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    killed = tmp_path / "var" / "runs" / "killed"
    deadline = time.monotonic() + 120
    while victim.poll() is None and time.monotonic() < deadline:
        metrics = killed / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= curve_points:
            break
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "the run ended before it could be killed: make it longer"

    _run(tmp_path, "train", "--resume", "killed")
    assert _curve(killed) == _curve(tmp_path / "var" / "runs" / "whole")
