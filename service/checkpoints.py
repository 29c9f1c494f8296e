"""Which checkpoint to serve: found from the few words of a command line, or named by a caller who is not trusted."""

import json
from collections.abc import Sequence
from pathlib import Path

from agent.checkpoint import METADATA
from service.errors import InvalidRequest

BEST = Path("checkpoints") / "best"


class CheckpointNotFound(ValueError):
    """There is nothing to serve where it was looked for."""


def find_checkpoint(given: str | None, *, runs: Path, models: Path) -> Path:
    """A checkpoint directory: the one named (or its run, or a run's name), else the best of the newest run, else a
    bundled market model. Raises CheckpointNotFound.
    """
    if given is not None:
        for candidate in (Path(given), Path(given) / BEST, runs / given / BEST, models / given):
            if (candidate / METADATA).is_file():
                return candidate
        known = ", ".join(sorted(path.parent.parent.name for path in runs.glob(f"*/{BEST}"))) or "none"
        raise CheckpointNotFound(
            f"--checkpoint {given}: expected a directory with {METADATA}, a run, or a run's name, found none of them. "
            f"Runs in {runs}: {known}"
        )
    best = [path for path in runs.glob(f"*/{BEST}") if _is_market_model(path)]
    if best:
        return max(best, key=lambda path: (path / METADATA).stat().st_mtime)
    for path in sorted(file.parent for file in models.glob(f"*/{METADATA}")):
        if _is_market_model(path):
            return path
    raise CheckpointNotFound(
        f"nothing to serve: expected {runs}/RUN/{BEST} or {models}/NAME with {METADATA} of a market model, found "
        f'neither. Train one with "make demo" or "python -m agent train configs/sp500_1d.yaml", or name one with '
        f"--checkpoint DIR"
    )


def checkpoint_within(text: str, roots: Sequence[Path]) -> Path:
    """The directory a reload names, which must lie in one of the roots, symlinks followed. Raises InvalidRequest."""
    for root in roots:
        candidate = root / text
        try:
            if candidate.resolve().is_relative_to(root.resolve()) and (candidate / METADATA).is_file():
                return candidate
        except (OSError, ValueError, RuntimeError):  # a loop of symlinks, a NUL byte, a name too long
            continue
    raise InvalidRequest(
        "checkpoint: expected a checkpoint directory under the service's runs or models directory, such as "
        "demo/checkpoints/best, found none by that name"
    )


def _is_market_model(path: Path) -> bool:
    """Whether a checkpoint was trained on bars: then it carries its experiment. Unreadable ones do not count."""
    try:
        content = json.loads((path / METADATA).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("experiment"))
