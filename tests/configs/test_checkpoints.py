"""A few words on a command line find the checkpoint that is meant."""

import os
from pathlib import Path

import pytest

from configs.checkpoints import CheckpointNotFound, find_checkpoint


def test_nothing_to_evaluate_says_how_to_get_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFound, match="python -m agent train"):
        find_checkpoint(None)
    (tmp_path / "models" / "bundled").mkdir(parents=True)
    (tmp_path / "models" / "bundled" / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointNotFound, match=r"checkpoint nowhere.*Models in models: bundled"):
        find_checkpoint("nowhere")


def test_the_newest_run_is_found_and_a_run_is_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_bars, elsewhere = '{"experiment": {"data": {}}}', '{"experiment": {"env": "CartPole-v1"}}'
    for age, (name, content) in enumerate({"cartpole": elsewhere, "newer": on_bars, "older": on_bars}.items()):
        best = Path("var/runs") / name / "checkpoints" / "best"
        best.mkdir(parents=True)
        (best / "checkpoint.json").write_text(content)
        os.utime(best / "checkpoint.json", (1e9 - age, 1e9 - age))
    assert find_checkpoint(None) == Path("var/runs/newer/checkpoints/best")
    assert find_checkpoint("older") == Path("var/runs/older/checkpoints/best")
    assert find_checkpoint("var/runs/older") == Path("var/runs/older/checkpoints/best")
