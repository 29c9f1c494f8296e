"""Gymnasium spaces as the agent sees them: named float arrays in, one discrete action out."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from agent.policy import Observations

PLAIN = "observation"  # the name of the one entry of an observation that is not a Dict


class UnsupportedSpace(TypeError):
    """The agent has no way to read or act in this space."""


def action_count(space: gym.Space[Any]) -> int:
    """Number of actions A. Raises UnsupportedSpace."""
    if not isinstance(space, gym.spaces.Discrete):
        raise UnsupportedSpace(f"action space {space}: supported is Discrete")
    if space.start != 0:
        raise UnsupportedSpace(f"action space {space}: actions must start at 0, these start at {space.start}")
    return int(space.n)


def stored_entries(space: gym.Space[Any]) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """Shape and dtype of each entry of an observation as the environment hands it out. Raises UnsupportedSpace."""
    entries = space.spaces if isinstance(space, gym.spaces.Dict) else {PLAIN: space}
    found: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
    for name, entry in entries.items():
        if not isinstance(entry, gym.spaces.Box):
            raise UnsupportedSpace(f"observation entry {name!r} is {entry}: supported are Box, and Dict of Box")
        found[name] = (tuple(entry.shape), np.dtype(entry.dtype))
    return found


def as_observations(observation: Any) -> Observations:
    """What a (vector) environment returned, as a mapping of arrays."""
    if isinstance(observation, dict):
        return {name: np.asarray(entry) for name, entry in observation.items()}
    return {PLAIN: np.asarray(observation)}


def action_masks(infos: dict[str, Any], rows: int, actions: int) -> NDArray[np.bool_]:
    """`infos["action_mask"]` of a vector environment as [N, A]; all True where there is none.

    Raises ValueError when a row forbids every action.
    """
    masks = infos.get("action_mask")
    if masks is None:
        return np.ones((rows, actions), dtype=bool)
    # Gymnasium gathers per-env infos into an object array, with None where an env sent no mask.
    allowed = np.ones((rows, actions), dtype=bool)
    for row, mask in enumerate(masks):
        if mask is not None:
            allowed[row] = np.asarray(mask, dtype=bool)
    if not allowed.any(axis=1).all():
        row = int(np.flatnonzero(~allowed.any(axis=1))[0])
        raise ValueError(f"action_mask of environment {row} forbids all {actions} actions; expected at least one")
    return allowed
