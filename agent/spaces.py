"""Gymnasium spaces as the agent sees them.

Inside the agent there are two kinds of actions and one kind of observation:

    Discrete(A)               one choice among A, all of which the search looks at
    MultiDiscrete(n₁ … n_D)   D choices made together, of which the search looks at K combinations (decision 0047)
    Dict of Box               named float arrays: vectors [F], windows [T, F], images [C, H, W]

`adapt` translates every supported environment to these at the edge; what is behind it need not know of others.

Legend: N environments (rows), A actions, D parts of an action, F numbers of all parts' categories together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agent.policy import Observations

PLAIN = "observation"  # the name of the one entry of an observation that is not a Dict

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]
Space = spaces.Space[Any]
Factors = tuple[int, ...]

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and bounded Box"
SUPPORTED_OBSERVATIONS = "Box (up to 4 axes), Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"


class UnsupportedSpace(ValueError):
    """The agent has no way to read or act in this space."""


# --- what the agent works with -------------------------------------------------------------------------------------


def action_count(space: Space) -> int:
    """Numbers that a policy over this native action space consists of: A, or F where an action has parts.

    Raises UnsupportedSpace for a space that `adapt` would have to translate first.
    """
    if isinstance(space, spaces.MultiDiscrete):
        return sum(action_factors(space))
    if not isinstance(space, spaces.Discrete):
        raise UnsupportedSpace(
            f"action space {space}: expected Discrete or MultiDiscrete here; agent.spaces.adapt translates "
            f"{SUPPORTED_ACTIONS}"
        )
    if space.start != 0:
        raise UnsupportedSpace(f"action space {space}: actions must start at 0 here; agent.spaces.adapt shifts others")
    return int(space.n)


def action_factors(space: Space) -> Factors:
    """Categories of each part of an action, [D]; empty where an action is one choice."""
    if not isinstance(space, spaces.MultiDiscrete):
        return ()
    return tuple(int(n) for n in space.nvec.ravel())


def stored_entries(space: Space) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """Shape and dtype of each entry of an observation as the environment hands it out. Raises UnsupportedSpace."""
    entries = space.spaces if isinstance(space, spaces.Dict) else {PLAIN: space}
    found: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
    for name, entry in entries.items():
        if not isinstance(entry, spaces.Box):
            raise UnsupportedSpace(
                f"observation entry {name!r} is {entry}: expected Box or Dict of Box here; agent.spaces.adapt "
                f"translates {SUPPORTED_OBSERVATIONS}"
            )
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


# --- actions of other kinds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActionAdapter:
    """Between the agent's choices and an environment's actions.

    native: Discrete where the agent weighs all actions, MultiDiscrete where it samples combinations of parts.
    grid:   values of each part of an action, D arrays: what its categories stand for.
    shape, dtype: of one action of the environment.
    table:  [A, D] categories of each enumerated action; None where combinations are sampled.
    """

    native: spaces.Discrete | spaces.MultiDiscrete
    grid: tuple[NDArray[Any], ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    table: NDArray[np.int64] | None

    @classmethod
    def build(cls, space: Space, *, bins: int, samples: int) -> "ActionAdapter":
        """bins: categories that stand for one continuous dimension. samples: K, the most actions that are weighed at
        once; a space with more combinations of parts is sampled. Raises UnsupportedSpace."""
        grid = _grid(space, bins)
        factors = tuple(len(values) for values in grid)
        enumerated = isinstance(space, spaces.Discrete) or prod(factors) <= samples
        return cls(
            native=spaces.Discrete(prod(factors)) if enumerated else spaces.MultiDiscrete(list(factors)),
            grid=grid,
            shape=tuple(space.shape or ()),
            dtype=np.dtype(space.dtype),
            table=np.array(list(product(*map(range, factors))), np.int64) if enumerated else None,
        )

    def to_env(self, choice: NDArray[np.int64]) -> NDArray[Any]:
        """Actions [N, *shape] of choices [N], or [N, D] where combinations are sampled."""
        parts = choice if self.table is None else self.table[choice]
        values = np.stack([values[parts[:, part]] for part, values in enumerate(self.grid)], axis=1)
        return values.reshape(len(choice), *self.shape).astype(self.dtype)

    def name(self, choice: int | Sequence[int]) -> str:
        """What a choice does, for people."""
        parts = np.atleast_2d(np.asarray(choice) if self.table is None else self.table[choice])[0]
        values = [values[part] for part, values in zip(parts, self.grid, strict=True)]
        return ", ".join(f"{value:+.3g}" if np.issubdtype(self.dtype, np.floating) else str(value) for value in values)

    def mask(self, given: Any) -> NDArray[np.bool_]:
        """The environment's mask of one row for the native space: [A] or [F].

        given: one flat array, or an array per part (as `MultiDiscrete.sample` takes them). Raises ValueError.
        """
        parts = given if isinstance(given, tuple | list) else (given,)
        flat = np.concatenate([np.asarray(part, dtype=bool).ravel() for part in parts])
        if len(flat) == action_count(self.native):
            return flat
        ends = np.cumsum([len(values) for values in self.grid])
        if len(flat) != ends[-1]:
            raise ValueError(
                f"action_mask: expected {ends[-1]} entries, one for each category of each part of an action, "
                f"found {len(flat)}"
            )
        assert self.table is not None, "a sampled space's mask has one entry for each category"
        starts = np.concatenate([[0], ends[:-1]])
        allowed: NDArray[np.bool_] = np.all(flat[starts + self.table], axis=1)
        return allowed


def _grid(space: Space, bins: int) -> tuple[NDArray[Any], ...]:
    """What the categories of each part of an action stand for."""
    if isinstance(space, spaces.Discrete):
        return (space.start + np.arange(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.broadcast_to(space.start, space.nvec.shape)
        return tuple(start + np.arange(n) for n, start in zip(space.nvec.ravel(), starts.ravel(), strict=True))
    if isinstance(space, spaces.MultiBinary):
        return tuple(np.arange(2) for _ in range(prod(space.shape)))
    if isinstance(space, spaces.Box):
        if not space.is_bounded():
            raise UnsupportedSpace(
                f"action space {space}: expected finite bounds, found none. Bound it, for instance with "
                f"gymnasium.wrappers.RescaleAction or ClipAction"
            )
        bounds = zip(space.low.ravel(), space.high.ravel(), strict=True)
        if not np.issubdtype(space.dtype, np.floating):
            raise UnsupportedSpace(f"action space {space}: expected floats, found {space.dtype}. Use MultiDiscrete")
        return tuple(np.linspace(float(low), float(high), bins) for low, high in bounds)
    raise UnsupportedSpace(f"action space {space}: supported are {SUPPORTED_ACTIONS}")


# --- observations of other kinds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObservationAdapter:
    """Between an environment's observations and named float arrays.

    What is stored is what the environment gives (an image stays uint8, a category stays a number); `decode` makes
    float arrays of it for whoever computes with it.
    """

    space: Space
    leaves: Mapping[str, Space]
    stored: spaces.Dict

    @classmethod
    def build(cls, space: Space) -> "ObservationAdapter":
        """Raises UnsupportedSpace naming the entry."""
        leaves = dict(_leaves(space, ()))
        return cls(space, leaves, spaces.Dict({name: _as_box(leaf) for name, leaf in leaves.items()}))

    def flatten(self, observation: Any) -> dict[str, NDArray[Any]]:
        """A batch as the environment returned it, by name."""
        return dict(_values(self.space, observation, ()))

    def decode(self, stored: Observations) -> Observations:
        """Float entries [B, ...]: images as [C, H, W] in [0, 1], categories as one-hot vectors."""
        return {name: _decode(leaf, np.asarray(stored[name])) for name, leaf in self.leaves.items()}


def _name(path: tuple[str, ...]) -> str:
    # The dot separates parameters in torch, so no entry's name may hold one.
    return "/".join(part.replace(".", "_") for part in path) or PLAIN


def _children(space: Space) -> Iterator[tuple[str, Any, Space]] | None:
    if isinstance(space, spaces.Dict):
        return ((str(key), key, child) for key, child in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return ((str(index), index, child) for index, child in enumerate(space.spaces))
    return None


def _leaves(space: Space, path: tuple[str, ...]) -> Iterator[tuple[str, Space]]:
    children = _children(space)
    if children is not None:
        for name, _, child in children:
            yield from _leaves(child, (*path, name))
        return
    known = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    if not known and not (isinstance(space, spaces.Box) and len(space.shape) <= 4):
        raise UnsupportedSpace(f"observation entry {_name(path)!r} is {space}: supported are {SUPPORTED_OBSERVATIONS}")
    yield _name(path), space


def _values(space: Space, value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, NDArray[Any]]]:
    children = _children(space)
    if children is None:
        yield _name(path), np.asarray(value)
        return
    for name, key, child in children:
        yield from _values(child, value[key], (*path, name))


def _as_box(leaf: Space) -> spaces.Box:
    """The leaf as it is stored."""
    if isinstance(leaf, spaces.Box):
        return leaf
    dtype, shape = np.dtype(leaf.dtype), tuple(leaf.shape or ())
    limits = np.iinfo(dtype)
    return spaces.Box(limits.min, limits.max, shape, dtype.type)


def is_image(leaf: Space) -> bool:
    """Whether an array is a picture: three axes and more, or two of bytes. Two axes of numbers are a window [T, F]."""
    if not isinstance(leaf, spaces.Box):
        return False
    return len(leaf.shape) >= 3 or (len(leaf.shape) == 2 and leaf.dtype == np.uint8)


def _decode(leaf: Space, stored: NDArray[Any]) -> NDArray[np.float32]:
    rows = len(stored)
    if isinstance(leaf, spaces.Discrete):
        return _one_hot(stored.reshape(rows, 1) - leaf.start, (int(leaf.n),))
    if isinstance(leaf, spaces.MultiDiscrete):
        start = np.broadcast_to(leaf.start, leaf.nvec.shape)
        return _one_hot((stored - start).reshape(rows, -1), tuple(int(n) for n in leaf.nvec.ravel()))
    numbers = stored.astype(np.float32)
    if stored.dtype == np.uint8 and isinstance(leaf, spaces.Box):
        numbers /= np.float32(255)
    if is_image(leaf):
        return _channels_first(numbers)
    return numbers.reshape(rows, -1) if numbers.ndim != 3 else numbers


def _one_hot(values: NDArray[Any], sizes: Factors) -> NDArray[np.float32]:
    """Categories [B, D] as [B, F]."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    encoded = np.zeros((len(values), sum(sizes)), np.float32)
    np.put_along_axis(encoded, starts + values.astype(np.int64), 1.0, axis=1)
    return encoded


def _channels_first(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pictures [B, H, W], [B, H, W, C], [B, C, H, W] or stacks of them [B, T, H, W, C] as [B, C, H, W].

    The smaller of the first and the last axis holds the channels."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[-1] <= images.shape[1]:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.ndim == 5:
        rows, time, height, width, channels = images.shape
        return np.ascontiguousarray(images.transpose(0, 1, 4, 2, 3)).reshape(rows, time * channels, height, width)
    return images


# --- both at once --------------------------------------------------------------------------------------------------


class AdaptedVectorEnv(gym.vector.VectorWrapper):
    """A vector environment in the agent's own spaces. Its `decode` makes float arrays of what it hands out."""

    def __init__(self, env: VectorEnv, actions: ActionAdapter, observations: ObservationAdapter) -> None:
        super().__init__(env)
        self.actions, self.observations = actions, observations
        self.single_action_space = actions.native
        self.single_observation_space = observations.stored
        self.action_space = gym.vector.utils.batch_space(actions.native, env.num_envs)
        self.observation_space = gym.vector.utils.batch_space(observations.stored, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, infos = self.env.reset(seed=seed, options=options)
        return self.observations.flatten(observation), self._with_masks(infos)

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.env.step(self.actions.to_env(np.asarray(actions)))
        return self.observations.flatten(observation), reward, terminated, truncated, self._with_masks(infos)

    def decode(self, stored: Observations) -> Observations:
        """What was handed out, as float arrays."""
        return self.observations.decode(stored)

    def _with_masks(self, infos: dict[str, Any]) -> dict[str, Any]:
        masks = infos.get("action_mask")
        if masks is None:
            return infos
        if isinstance(masks, tuple):  # Gymnasium gathers tuples of masks part by part
            masks = [tuple(part[row] for part in masks) for row in range(self.num_envs)]
        native = np.empty(self.num_envs, dtype=object)
        for row, mask in enumerate(masks):
            native[row] = None if mask is None else self.actions.mask(mask)
        return {**infos, "action_mask": native}


def adapt(env: VectorEnv, *, bins: int, samples: int) -> VectorEnv:
    """The environment in the agent's own spaces; itself where it speaks them already.

    bins: categories that stand for one continuous dimension of an action. samples: K, most actions weighed at once.
    Raises UnsupportedSpace naming the space and what is supported.
    """
    actions = ActionAdapter.build(env.single_action_space, bins=bins, samples=samples)
    observations = ObservationAdapter.build(env.single_observation_space)
    space = env.single_observation_space
    entries = space.spaces if isinstance(space, spaces.Dict) else {PLAIN: space}
    one_choice = isinstance(env.single_action_space, spaces.Discrete) and env.single_action_space.start == 0
    spoken = one_choice and all(_is_native(entry) for entry in entries.values())
    return env if spoken else AdaptedVectorEnv(env, actions, observations)


def _is_native(entry: Space) -> bool:
    floats = isinstance(entry, spaces.Box) and np.issubdtype(entry.dtype, np.floating)
    return floats and len(entry.shape or ()) in (1, 2)


def allowed_choices(choice: NDArray[np.int64], mask: NDArray[np.bool_], factors: Factors) -> NDArray[np.bool_]:
    """Whether the mask [N, A] (or [N, F] of parts) allows each choice [N] (or [N, D]). Returns [N]."""
    starts = np.cumsum((0, *factors))[:-1] if factors else np.zeros(1, np.int64)
    places = choice.reshape(len(choice), -1) + starts
    return np.asarray(np.take_along_axis(mask, places, axis=1).all(axis=1))


def random_choices(mask: NDArray[np.bool_], factors: Factors, rng: np.random.Generator) -> NDArray[np.int64]:
    """One allowed choice per row, uniformly: [N] of mask [N, A], or [N, D] of mask [N, F] where there are parts."""
    scores = rng.random(mask.shape) * mask
    if not factors:
        choice: NDArray[np.int64] = scores.argmax(axis=1)
        return choice
    ends = np.cumsum(factors)
    parts = [scores[:, end - n : end].argmax(axis=1) for end, n in zip(ends, factors, strict=True)]
    return np.stack(parts, axis=1)


# --- players ----------------------------------------------------------------------------------------------------


def player_count(env: gym.vector.VectorEnv[Any, Any, Any]) -> int:
    """How many players take turns in an environment, one step each: its attribute `players`, 1 where it has none."""
    inner = env.unwrapped
    own = getattr(inner, "players", None)
    if own is None and isinstance(inner, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
        try:
            own = inner.get_attr("players")[0]
        except AttributeError:
            own = None
    return 1 if own is None else int(own)


def require_players(env: gym.vector.VectorEnv[Any, Any, Any], expected: int) -> None:
    """Raise ValueError when an environment has another number of players than the search reckons with."""
    found = player_count(env)
    if found != expected:
        raise ValueError(
            f"search.players {expected}: this environment is played by {found}, taking turns. Set search.players to "
            f"{found}; an environment says how many it has by an attribute `players`"
        )


def as_seen_first(rewards: NDArray[Any], step: NDArray[np.int64], players: int) -> NDArray[np.float64]:
    """Rewards [N] for whoever acted, as the player who moved first sees them. step: [N] steps since the start."""
    seen = np.asarray(rewards, np.float64)
    return seen if players == 1 else np.where(step % players == 0, seen, -seen)
