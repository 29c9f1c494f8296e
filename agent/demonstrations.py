"""Recorded episodes: somebody else's play, kept in a file and learnt from.

Legend: N environments (rows), R records of all episodes one after the other, A actions.

A file is one safetensors archive of arrays and a few words about where they come from, never pickle. A record is what
it is in the replay (agent/replay.py): an observation as the training environment hands it out, the action that left it
and what came of it; an episode's last observation is a record without a transition.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agent.config import AgentConfig
from agent.policy import Observations
from agent.replay import Record, Replay
from agent.spaces import (
    VectorEnv,
    action_count,
    action_factors,
    action_masks,
    as_observations,
    player_count,
    stored_entries,
)

_FORMAT = "smu0 demonstrations 1"
_OBSERVATION = "observation."

Choose = Callable[[Observations, NDArray[np.bool_], dict[str, Any]], NDArray[np.int64]]


class DemonstrationError(ValueError):
    """A file of demonstrations cannot be read, or is of another environment."""


class StopRecording(Exception):
    """Raised by a player to end a recording; the episode that is being played is kept as far as it went."""


@dataclass(frozen=True)
class Demonstrations:
    """Episodes one after the other.

    observations:   entries [R, ...].
    action:         [R] (or [R, D] where actions have parts); 0 where there is no transition.
    reward:         [R] float32.
    terminated:     [R] the transition ended the episode for good.
    has_transition: [R] False for each episode's last observation.
    action_mask:    [R, A].
    players:        who take turns, one record each.
    source:         where they come from: the experiment or environment, and who played.
    """

    observations: Observations
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    has_transition: NDArray[np.bool_]
    action_mask: NDArray[np.bool_]
    players: int = 1
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        """How many."""
        return int((~self.has_transition).sum())

    @property
    def steps(self) -> int:
        """Transitions of all episodes together."""
        return int(self.has_transition.sum())

    def returns(self, discount: float = 1.0) -> NDArray[np.float64]:
        """[R] discounted sum of the rewards from each record to the end of its episode, as its mover sees it."""
        seats = [np.float64(0.0)] * self.players
        found = np.zeros(len(self.reward))
        for record in reversed(range(len(found))):
            if not self.has_transition[record]:
                seats = [np.float64(0.0)] * self.players
                continue
            # Seat 0 moves here; it is the last seat of the record after (agent/targets.py).
            seats = [
                (1.0 if seat == 0 else -1.0) * self.reward[record] + discount * seats[seat - 1]
                for seat in range(self.players)
            ]
            found[record] = seats[0]
        return found

    def episode_returns(self) -> NDArray[np.float64]:
        """[episodes] sum of rewards of each, for the player who moves first."""
        last = np.flatnonzero(~self.has_transition)
        first = np.concatenate([[0], last[:-1] + 1]).astype(np.int64)
        found: NDArray[np.float64] = self.returns()[first]
        return found

    def save(self, path: Path) -> None:
        """Write the file; one of the same name is replaced only once the new one is complete."""
        arrays = {f"{_OBSERVATION}{name}": np.ascontiguousarray(entry) for name, entry in self.observations.items()}
        arrays |= {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        about = {"format": _FORMAT, "players": str(self.players), "source": json.dumps(dict(self.source))}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        save_file(arrays, temporary, metadata=about)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Demonstrations":
        """Read a file. Raises DemonstrationError saying what is wrong with it."""
        try:
            with safe_open(path, framework="numpy") as archive:
                about = archive.metadata() or {}
                arrays = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DemonstrationError(f"{path}: expected a file of demonstrations, found none ({error})") from error
        missing = [name for name in _ARRAYS if name not in arrays]
        if about.get("format") != _FORMAT or missing:
            raise DemonstrationError(
                f"{path}: expected {_FORMAT!r}, found {about.get('format', 'no format')!r}"
                f"{', without ' + ', '.join(missing) if missing else ''}. Record it with python -m agent record"
            )
        observations = {
            name.removeprefix(_OBSERVATION): array for name, array in arrays.items() if name.startswith(_OBSERVATION)
        }
        records = len(arrays["reward"])
        uneven = [name for name, array in arrays.items() if len(array) != records]
        if uneven or not records or arrays["has_transition"][-1]:
            raise DemonstrationError(
                f"{path}: expected whole episodes of {records} records in every array; found "
                f"{', '.join(uneven) + ' of another length' if uneven else 'none, or an episode without its end'}"
            )
        return cls(
            observations=observations,
            **{name: arrays[name] for name in _ARRAYS},
            players=int(about["players"]),
            source=json.loads(about["source"]),
        )

    def require_same_spaces(self, env: VectorEnv, where: str) -> None:
        """Raise DemonstrationError when these are not episodes of an environment like `env`."""
        spaces = stored_entries(env.single_observation_space)
        expected: dict[str, Any] = {name: (shape, dtype.name) for name, (shape, dtype) in spaces.items()}
        found: dict[str, Any] = {name: (e.shape[1:], e.dtype.name) for name, e in self.observations.items()}
        expected |= {
            "actions": action_count(env.single_action_space),
            "parts": len(action_factors(env.single_action_space)),
            "players": player_count(env),
        }
        found |= {
            "actions": self.action_mask.shape[1],
            "parts": self.action.shape[1] if self.action.ndim > 1 else 0,
            "players": self.players,
        }
        if found != expected:
            raise DemonstrationError(
                f"{where}: these episodes are of another environment: expected {expected}, found {found}. Record them "
                f"with the environment that is trained on"
            )

    def require_same_data(self, fingerprint: str | None, where: str) -> None:
        """Raise DemonstrationError when these were recorded on other data: observations may point into it."""
        own = self.source.get("data_fingerprint")
        if own is not None and fingerprint is not None and own != fingerprint:
            raise DemonstrationError(
                f"{where}: these episodes were recorded on other data: expected {fingerprint}, found {own}. Record "
                f"them again on the bars that are trained on"
            )


_ARRAYS = tuple(
    entry.name for entry in fields(Demonstrations) if entry.name not in {"observations", "players", "source"}
)


def record_episodes(
    env: VectorEnv,
    choose: Choose,
    *,
    episodes: int,
    seed: int,
    source: Mapping[str, Any] | None = None,
    max_steps: int = 1_000_000,
) -> Demonstrations:
    """Play and keep what happens, whole episodes in the order in which they end.

    choose: observations [N, ...], masks [N, A] and infos to actions [N]; StopRecording ends it. An episode that is cut
    short, by that or by `max_steps` of the vector, counts as truncated.
    Raises DemonstrationError when nothing was played.
    """
    rows, actions = env.num_envs, action_count(env.single_action_space)
    open_: list[list[dict[str, Any]]] = [[] for _ in range(rows)]
    kept: list[dict[str, Any]] = []
    finished = np.zeros(rows, np.bool_)
    count = 0

    def moment(row: int, observations: Observations, mask: NDArray[np.bool_], **what: Any) -> dict[str, Any]:
        seen = {f"{_OBSERVATION}{name}": np.array(entry[row]) for name, entry in observations.items()}
        return {**seen, "action_mask": mask[row], **what}

    raw, infos = env.reset(seed=seed)
    observations, mask = as_observations(raw), action_masks(infos, rows, actions)
    nothing = np.zeros((rows, *env.single_action_space.shape), np.int64)  # type: ignore[misc]
    last = {"action": nothing[0], "reward": np.float32(0.0), "terminated": False, "has_transition": False}
    for _ in range(max_steps):
        try:
            action = nothing if finished.all() else np.asarray(choose(observations, mask, infos), np.int64)
        except StopRecording:
            break
        raw, reward, terminated, truncated, infos = env.step(action)
        for row in range(rows):
            if finished[row]:
                kept += [*open_[row], moment(row, observations, mask, **last)]
                open_[row] = []
                count += 1
                continue
            what = {"action": action[row], "reward": np.float32(reward[row]), "terminated": bool(terminated[row])}
            open_[row].append(moment(row, observations, mask, **what, has_transition=True))
        observations, mask = as_observations(raw), action_masks(infos, rows, actions)
        finished = np.asarray(terminated | truncated, np.bool_)
        if count >= episodes:
            break
    if count < episodes:
        for row in range(rows):
            if open_[row]:
                kept += [*open_[row], moment(row, observations, mask, **last)]
    if not kept:
        raise DemonstrationError("nothing was recorded: no step was made")
    arrays = {name: np.stack([record[name] for record in kept]) for name in kept[0]}
    return Demonstrations(
        observations={
            name.removeprefix(_OBSERVATION): array for name, array in arrays.items() if name.startswith(_OBSERVATION)
        },
        **{name: arrays[name] for name in _ARRAYS},
        players=player_count(env),
        source=source or {},
    )


def as_replay(demonstrations: Demonstrations, config: AgentConfig) -> Replay:
    """A memory that holds exactly these episodes.

    What was done is what is first believed: the policy is the recorded action, a state is worth what followed. Searches
    of reanalyse put better targets in their place.
    """
    records, actions = demonstrations.action_mask.shape
    parts = demonstrations.action.shape[1] if demonstrations.action.ndim > 1 else 0
    entries = {name: (entry.shape[1:], entry.dtype) for name, entry in demonstrations.observations.items()}
    sizes = {"capacity_steps": max(records, config.replay.n_step + 2), "capacity_bytes": 2**62, "window_fraction": 0.0}
    replay = Replay(
        config.replay.model_copy(update=sizes),
        rows=1,
        actions=actions,
        observations=entries,
        discount=config.discount,
        action_parts=parts,
        players=demonstrations.players,
    )
    if parts:
        raise DemonstrationError(
            f"demonstrations of actions with {parts} parts: expected actions that are one choice. Record with "
            f"agent.network.action_bins and agent.search.samples that let all combinations be weighed"
        )
    values = demonstrations.returns(config.discount).astype(np.float32)
    one_hot = np.eye(actions, dtype=np.float32)
    for i in range(records):
        here = slice(i, i + 1)
        replay.add(
            Record(
                observations={name: entry[here] for name, entry in demonstrations.observations.items()},
                action=demonstrations.action[here],
                reward=demonstrations.reward[here],
                terminated=demonstrations.terminated[here],
                has_transition=demonstrations.has_transition[here],
                action_mask=demonstrations.action_mask[here],
                policy=one_hot[demonstrations.action[here]],
                root_value=values[here],
                trust=np.ones(1, np.float32),
            )
        )
    return replay
