"""Which checkpoint a caller means who is not trusted."""

from collections.abc import Sequence
from pathlib import Path

from agent.checkpoint import METADATA
from service.errors import InvalidRequest


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
