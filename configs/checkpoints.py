"""Which checkpoint is meant: found from the few words of a command line."""

import json
from pathlib import Path

from agent.checkpoint import METADATA

RUNS = Path("var/runs")
MODELS = Path("models")
BEST = Path("checkpoints") / "best"


class CheckpointNotFound(ValueError):
    """There is no checkpoint where it was looked for."""


def find_checkpoint(given: str | None, *, runs: Path = RUNS, models: Path = MODELS) -> Path:
    """A checkpoint directory: the one named (or its run, or a run's or a model's name), else the best of the newest
    run trained on bars, else a bundled market model. Raises CheckpointNotFound.
    """
    if given is not None:
        for candidate in (Path(given), Path(given) / BEST, runs / given / BEST, models / given):
            if (candidate / METADATA).is_file():
                return candidate
        known = ", ".join(sorted(path.parent.parent.name for path in runs.glob(f"*/{BEST}"))) or "none"
        bundled = ", ".join(sorted(file.parent.name for file in models.glob(f"*/{METADATA}"))) or "none"
        raise CheckpointNotFound(
            f"checkpoint {given}: expected a directory with {METADATA}, a run, or the name of a run or of a bundled "
            f"model, found none of them. Runs in {runs}: {known}. Models in {models}: {bundled}"
        )
    best = [path for path in runs.glob(f"*/{BEST}") if _is_market_model(path)]
    if best:
        return max(best, key=lambda path: (path / METADATA).stat().st_mtime)
    for path in market_models(models):
        return path
    raise CheckpointNotFound(
        f"no checkpoint: expected {runs}/RUN/{BEST} or {models}/NAME with {METADATA} of a model trained on bars, found "
        f'neither. Train one with "make demo" or "python -m agent train configs/sp500_1d.yaml", or name one with '
        f"--checkpoint DIR"
    )


def market_models(models: Path = MODELS) -> list[Path]:
    """The bundled checkpoints that were trained on bars, by name."""
    return [path for path in sorted(file.parent for file in models.glob(f"*/{METADATA}")) if _is_market_model(path)]


def _is_market_model(path: Path) -> bool:
    """Whether a checkpoint was trained on bars: then it carries its experiment. Unreadable ones do not count."""
    try:
        content = json.loads((path / METADATA).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "data" in (content.get("experiment") or {})
