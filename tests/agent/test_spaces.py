"""Every supported space comes out as the agent's own, and every action goes back as the environment takes it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from agent.spaces import (
    ActionAdapter,
    AdaptedVectorEnv,
    ObservationAdapter,
    UnsupportedSpace,
    action_count,
    action_factors,
    action_masks,
    adapt,
    random_choices,
)

EVERYTHING = spaces.Dict(
    {
        "a.b": spaces.Discrete(3, start=1),
        "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3]))),
        "colour": spaces.Box(0, 255, (6, 8, 3), np.uint8),
        "grey": spaces.Box(0, 255, (6, 8), np.uint8),
        "stack": spaces.Box(0, 255, (4, 6, 8), np.uint8),
        "clips": spaces.Box(0, 255, (2, 6, 8, 3), np.uint8),
        "window": spaces.Box(-1, 1, (5, 2)),
        "number": spaces.Box(-1, 1, ()),
    }
)


class Echo(gym.Env[Any, Any]):
    """Observations at random; insists on actions of its space and remembers them."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], mask: Any = None) -> None:
        self.observation_space, self.action_space, self.taken = observation_space, action_space, []
        self._info = {} if mask is None else {"action_mask": mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), dict(self._info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return self.observation_space.sample(), 0.0, False, False, dict(self._info)


def _vector(action_space: Any, *, mask: Any = None, bins: int = 5, samples: int = 16) -> Any:
    plain = spaces.Box(-1, 1, (3,))
    env = gym.vector.SyncVectorEnv([lambda: Echo(plain, action_space, mask)] * 2)
    return adapt(env, bins=bins, samples=samples)


def test_observations_become_named_float_arrays() -> None:
    adapter = ObservationAdapter.build(EVERYTHING)
    rows = [EVERYTHING.sample() for _ in range(4)]
    batch = {
        name: tuple(np.stack([row[name][i] for row in rows]) for i in range(2))
        if name == "tuple"
        else np.stack([row[name] for row in rows])
        for name in EVERYTHING.spaces
    }
    stored = adapter.flatten(batch)
    assert {name: entry.dtype for name, entry in stored.items() if name in ("grey", "a_b")} == {
        "grey": np.uint8,
        "a_b": np.int64,
    }
    decoded = adapter.decode(stored)
    assert all(entry.dtype == np.float32 for entry in decoded.values())
    assert {name: entry.shape[1:] for name, entry in decoded.items()} == {
        "a_b": (3,),
        "tuple/0": (2,),
        "tuple/1": (5,),
        "colour": (3, 6, 8),
        "grey": (1, 6, 8),
        "stack": (4, 6, 8),
        "clips": (6, 6, 8),
        "window": (5, 2),
        "number": (1,),
    }
    for row in range(4):
        assert decoded["a_b"][row].argmax() == rows[row]["a.b"] - 1
        first, second = rows[row]["tuple"][1]
        np.testing.assert_array_equal(np.flatnonzero(decoded["tuple/1"][row]), [first, 2 + second])
        np.testing.assert_allclose(decoded["colour"][row, 2] * 255, rows[row]["colour"][:, :, 2], rtol=1e-6)
        np.testing.assert_allclose(decoded["clips"][row, 4] * 255, rows[row]["clips"][1, :, :, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "native"),
    [
        (spaces.Discrete(3, start=5), spaces.Discrete(3)),
        (spaces.Discrete(100), spaces.Discrete(100)),
        (spaces.MultiDiscrete([2, 3]), spaces.Discrete(6)),
        (spaces.MultiDiscrete([9, 9]), spaces.MultiDiscrete([9, 9])),
        (spaces.MultiDiscrete([[2, 2], [2, 9]]), spaces.MultiDiscrete([2, 2, 2, 9])),
        (spaces.MultiBinary(3), spaces.Discrete(8)),
        (spaces.MultiBinary(6), spaces.MultiDiscrete([2] * 6)),
        (spaces.Box(-2, 2, (1,)), spaces.Discrete(5)),
        (spaces.Box(-2, np.array([1, 2, 3], np.float32)), spaces.MultiDiscrete([5] * 3)),
    ],
    ids=str,
)
def test_the_environment_gets_actions_of_its_own_space(space: Any, native: Any) -> None:
    env = _vector(space)
    assert env.single_action_space == native
    env.reset(seed=0)
    size, factors = action_count(native), action_factors(native)
    rng = np.random.default_rng(0)
    for _ in range(20):
        env.step(random_choices(np.ones((2, size), bool), factors, rng))  # Echo asserts


def test_categories_of_a_continuous_action_span_its_bounds() -> None:
    adapter = ActionAdapter.build(spaces.Box(-2, np.array([1, 2], np.float32)), bins=3, samples=4)
    np.testing.assert_allclose(adapter.to_env(np.array([[0, 0], [1, 1], [2, 2]])), [[-2, -2], [-0.5, 0], [1, 2]])
    assert adapter.name([0, 2]) == "-2, +2"
    enumerated = ActionAdapter.build(spaces.Box(-1, 1, (2,)), bins=2, samples=4)
    assert [enumerated.name(action) for action in range(4)] == ["-1, -1", "-1, +1", "+1, -1", "+1, +1"]


def test_masks_of_parts_arrive_where_parts_are_sampled_and_where_they_are_enumerated() -> None:
    mask = (np.array([1, 0], np.int8), np.array([1, 1, 0], np.int8))
    enumerated = _vector(spaces.MultiDiscrete([2, 3]), mask=mask)
    _, infos = enumerated.reset(seed=0)
    np.testing.assert_array_equal(action_masks(infos, 2, 6)[1], [1, 1, 0, 0, 0, 0])
    sampled = _vector(spaces.MultiDiscrete([2, 3]), mask=mask, samples=2)
    _, infos = sampled.reset(seed=0)
    np.testing.assert_array_equal(action_masks(infos, 2, 5)[1], [1, 0, 1, 1, 0])
    wrong = _vector(spaces.MultiDiscrete([2, 3]), mask=np.ones(4, np.int8))
    with pytest.raises(ValueError, match="expected 5 entries"):
        wrong.reset(seed=0)


def test_an_environment_that_speaks_the_agents_language_is_left_alone() -> None:
    env = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    assert adapt(env, bins=5, samples=16) is env
    assert isinstance(_vector(spaces.MultiBinary(2)), AdaptedVectorEnv)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "expected finite bounds"),
        (spaces.Box(0, 9, (2,), np.int64), "expected floats, found int64"),
        (spaces.Tuple((spaces.Discrete(2),)), r"Tuple.*supported are Discrete, MultiDiscrete, MultiBinary and bounded"),
        (spaces.Text(4), "Text.*supported are Discrete"),
    ],
    ids=str,
)
def test_an_action_space_that_is_not_supported_is_named_with_those_that_are(space: Any, says: str) -> None:
    with pytest.raises(UnsupportedSpace, match=says):
        ActionAdapter.build(space, bins=5, samples=4)


def test_an_observation_entry_that_is_not_supported_is_named_with_those_that_are() -> None:
    nested = spaces.Dict({"inner": spaces.Dict({"words": spaces.Text(4)})})
    with pytest.raises(UnsupportedSpace, match=r"'inner/words' is Text.*supported are Box .up to 4 axes., Discrete"):
        ObservationAdapter.build(nested)
    with pytest.raises(UnsupportedSpace, match="'observation' is Box"):
        ObservationAdapter.build(spaces.Box(0, 1, (2, 2, 2, 2, 2)))
