"""A deployment that listens beyond its machine makes its first key by itself, and only its first."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def add_first(state: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service", "keys", "add", "first", "--if-none"],
        cwd=ROOT, env=os.environ | {"SMU0_STATE": str(state)} | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_first_start_makes_a_key_and_the_next_ones_make_none(tmp_path: Path) -> None:
    first = add_first(tmp_path)
    assert first.startswith("smu0_")
    assert add_first(tmp_path) == ""
    assert first.split()[0] not in (tmp_path / "keys.json").read_text()


def test_a_key_from_the_environment_is_enough(tmp_path: Path) -> None:
    assert add_first(tmp_path, SMU0_API_KEY="k" * 40) == ""
    assert not (tmp_path / "keys.json").exists()
