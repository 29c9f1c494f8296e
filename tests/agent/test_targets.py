"""Targets against tables computed by hand: an episode of seven steps, γ = ½."""

import numpy as np
import pytest

from agent.config import ReplayConfig
from agent.replay import Record, Replay
from agent.targets import corrected_returns, n_step_returns, reachable, sharpened, td_lambda_returns

REWARDS = np.array([1, 2, 3, 4, 5, 6, 7, 0], np.float32)
VALUES = np.array([10, 20, 30, 40, 50, 60, 70, 80], np.float32)
# Three rewards and a bootstrap; the last three sums meet the end of the episode.
TRUNCATED = [7.75, 10.75, 13.75, 16.75, 19.75, 29.5, 47.0, 80.0]
TERMINATED = [7.75, 10.75, 13.75, 16.75, 9.75, 9.5, 7.0, 0.0]


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([array, np.zeros(length - len(array), array.dtype)])[None]


def _episode(*, terminates: bool, length: int = 8 + 3) -> dict[str, np.ndarray]:
    has_transition = np.zeros(length, bool)
    has_transition[:7] = True
    terminated = np.zeros(length, bool)
    terminated[6] = terminates
    return {
        "rewards": _padded(REWARDS, length),
        "root_values": _padded(VALUES, length),
        "has_transition": has_transition[None],
        "terminated": terminated[None],
    }


def test_n_step_return_bootstraps_at_truncation() -> None:
    returns = n_step_returns(**_episode(terminates=False), discount=0.5, n_step=3, count=8)
    np.testing.assert_allclose(returns[0], TRUNCATED, rtol=1e-6)


def test_n_step_return_does_not_bootstrap_at_termination() -> None:
    returns = n_step_returns(**_episode(terminates=True), discount=0.5, n_step=3, count=7)
    np.testing.assert_allclose(returns[0], TERMINATED[:7], rtol=1e-6)


def test_td_lambda_return_by_hand() -> None:
    # 1 + ½(½·20 + ½(2 + ½·30)) = 10.25
    returns = td_lambda_returns(**_episode(terminates=False), discount=0.5, n_step=2, td_lambda=0.5, count=1)
    assert returns[0, 0] == pytest.approx(10.25)


@pytest.mark.parametrize("terminates", [True, False])
def test_td_lambda_one_is_the_n_step_return(terminates: bool) -> None:
    episode = _episode(terminates=terminates)
    whole = td_lambda_returns(**episode, discount=0.5, n_step=3, td_lambda=1.0, count=8)
    np.testing.assert_allclose(whole, n_step_returns(**episode, discount=0.5, n_step=3, count=8), rtol=1e-6)


@pytest.mark.parametrize("terminates", [True, False])
def test_td_lambda_zero_is_the_one_step_return(terminates: bool) -> None:
    episode = _episode(terminates=terminates)
    short = td_lambda_returns(**episode, discount=0.5, n_step=3, td_lambda=0.0, count=8)
    np.testing.assert_allclose(short, n_step_returns(**episode, discount=0.5, n_step=1, count=8), rtol=1e-6)


def test_reachable_stops_after_the_last_observation() -> None:
    flags = np.array([[True, True, False, True]])
    np.testing.assert_array_equal(reachable(flags), [[True, True, True, False]])


def test_targets_name_the_length_they_need() -> None:
    with pytest.raises(ValueError, match="need 12 records per sequence; found 11"):
        n_step_returns(**_episode(terminates=True), discount=0.5, n_step=4, count=8)


def _replay_with_episode(*, terminates: bool) -> Replay:
    replay = Replay(
        ReplayConfig(n_step=3, capacity_steps=64, min_steps=1),
        rows=1,
        actions=2,
        observations={"observation": ((1,), np.dtype(np.float32))},
        discount=0.5,
    )
    for t in range(9):  # the episode of eight records, then the first of the next
        replay.add(
            Record(
                observations={"observation": np.array([[t]], np.float32)},
                action=np.array([t % 2]),
                reward=np.array([REWARDS[t]] if t < 8 else [99.0], np.float32),
                terminated=np.array([terminates and t == 6]),
                has_transition=np.array([t != 7]),
                action_mask=np.ones((1, 2), bool),
                policy=np.array([[0.25, 0.75]], np.float32),
                root_value=np.array([VALUES[t]] if t < 8 else [999.0], np.float32),
                trust=np.ones(1, np.float32),
            )
        )
    return replay


@pytest.mark.parametrize(("terminates", "table"), [(False, TRUNCATED), (True, TERMINATED)])
def test_replay_gives_the_same_tables(terminates: bool, table: list[float]) -> None:
    batch = _replay_with_episode(terminates=terminates).sample(64, 5, np.random.default_rng(0))
    assert set(batch.column.tolist()) == set(range(7))  # every step that was taken, and no last observation
    for row, column in enumerate(batch.column):
        steps = min(5, 7 - column)
        np.testing.assert_array_equal(batch.state_mask[row], np.arange(6) <= steps)
        np.testing.assert_array_equal(batch.step_mask[row], np.arange(5) < steps)
        np.testing.assert_allclose(batch.value[row, : steps + 1], table[column : column + steps + 1], rtol=1e-6)
        np.testing.assert_array_equal(batch.reward[row, :steps], REWARDS[column : column + steps])
        seen = batch.observations["observation"][row, : steps + 1, 0]
        np.testing.assert_array_equal(seen, np.arange(column, column + steps + 1))


def test_a_terminal_state_has_no_policy_to_learn() -> None:
    batch = _replay_with_episode(terminates=True).sample(64, 5, np.random.default_rng(0))
    last = batch.column == 6
    assert (batch.policy[last, 1] == 0).all()
    assert (batch.policy[last, 0] > 0).all()


def test_nothing_is_read_past_the_newest_record() -> None:
    replay = Replay(
        ReplayConfig(n_step=3, capacity_steps=16, min_steps=1),
        rows=1,
        actions=1,
        observations={"observation": ((1,), np.dtype(np.float32))},
        discount=1.0,
    )
    for t in range(40):  # wraps around twice
        replay.add(
            Record(
                observations={"observation": np.array([[t]], np.float32)},
                action=np.array([0]),
                reward=np.array([1.0], np.float32),
                terminated=np.array([False]),
                has_transition=np.array([True]),
                action_mask=np.ones((1, 1), bool),
                policy=np.ones((1, 1), np.float32),
                root_value=np.array([100.0 + t], np.float32),
                trust=np.ones(1, np.float32),
            )
        )
    batch = replay.sample(200, 2, np.random.default_rng(1))
    start = batch.observations["observation"][:, 0, 0]
    assert start.min() == 24
    assert start.max() == 38  # the newest record's transition is not known yet
    ahead = np.minimum(3, 39 - start)
    np.testing.assert_allclose(batch.value[:, 0], ahead + 100 + start + ahead)
    np.testing.assert_array_equal(batch.age, 39 - start)


# --- corrected for exploration ---------------------------------------------------------------------------------------

TRUST = [1.0, 0.5, 0.0, 1.0, 0.25, 1.0, 1.0, 1.0]


def _by_hand(*, terminates: bool) -> tuple[list[float], list[float]]:
    """V-trace and Retrace of the seven steps, from the last one back, with λ = 1 and a horizon beyond the end."""
    value, q = [0.0] * 8, [0.0] * 8
    value[7] = VALUES[7]
    for k in reversed(range(7)):
        after = 0.0 if terminates and k == 6 else value[k + 1]
        q[k] = REWARDS[k] + 0.5 * after
        value[k] = VALUES[k] + TRUST[k] * (q[k] - VALUES[k])
    return value[:7], q[:7]


@pytest.mark.parametrize("terminates", [True, False])
def test_corrected_returns_by_hand(terminates: bool) -> None:
    trust = np.zeros((1, 20), np.float32)
    trust[0, :8] = TRUST
    value, q = corrected_returns(
        **_episode(terminates=terminates, length=20), trust=trust, discount=0.5, n_step=8, td_lambda=1.0, count=8
    )
    expected_value, expected_q = _by_hand(terminates=terminates)
    np.testing.assert_allclose(value[0, :7], expected_value, rtol=1e-6)
    np.testing.assert_allclose(q[0, :7], expected_q, rtol=1e-6)


@pytest.mark.parametrize("td_lambda", [0.0, 0.6, 1.0])
def test_with_full_trust_nothing_is_corrected(td_lambda: float) -> None:
    episode = _episode(terminates=False, length=20)
    value, q = corrected_returns(
        **episode, trust=np.ones((1, 20), np.float32), discount=0.5, n_step=3, td_lambda=td_lambda, count=8
    )
    expected = td_lambda_returns(**episode, discount=0.5, n_step=3, td_lambda=td_lambda, count=8)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(q[:, :7], expected[:, :7], rtol=1e-6)


def test_an_exploratory_action_hides_what_came_of_it_from_the_steps_before() -> None:
    """Rewards after a distrusted action change its own Q, and the value of nothing before it."""
    episode = _episode(terminates=False, length=20)
    trust = np.ones((1, 20), np.float32)
    trust[0, 3] = 0.0
    options = {"discount": 0.5, "n_step": 8, "td_lambda": 1.0, "count": 8}
    value, q = corrected_returns(**episode, trust=trust, **options)
    episode["rewards"] = episode["rewards"].copy()
    episode["rewards"][0, 3:] += 5.0
    richer_value, richer_q = corrected_returns(**episode, trust=trust, **options)
    np.testing.assert_array_equal(value[0, :4], richer_value[0, :4])
    np.testing.assert_array_equal(q[0, :3], richer_q[0, :3])
    assert richer_q[0, 3] > q[0, 3] + 5.0


def test_sharpened_visits() -> None:
    np.testing.assert_allclose(sharpened(np.array([[1, 2, 0]], np.int32), 2.0), [[0.2, 0.8, 0.0]])
    np.testing.assert_allclose(sharpened(np.array([[3, 1, 4]], np.int32), 1.0), [[3 / 8, 1 / 8, 4 / 8]])


# --- past the end ---------------------------------------------------------------------------------------------------


def test_past_a_terminal_state_time_stands_still_where_that_is_asked_for() -> None:
    replay = _replay_with_episode(terminates=True)
    replay.config = replay.config.model_copy(update={"absorbing": True})
    # Sequences of five steps from every stored start; those that pass the end at record 7 stay there.
    batch = replay.sample(64, 5, np.random.default_rng(0))
    start = batch.observations["observation"][:, 0, 0]
    passing = (start >= 2) & (start <= 6)
    assert passing.any()
    steps_left = 7 - start[passing].astype(int)
    for row, left in zip(np.flatnonzero(passing), steps_left, strict=True):
        assert batch.state_mask[row].all()
        assert batch.step_mask[row].all()
        assert (batch.observations["observation"][row, left:, 0] == 7).all()
        assert (batch.value[row, left:] == 0).all()
        assert (batch.reward[row, left:] == 0).all()
        assert (batch.policy[row, left:] == 0).all()
        np.testing.assert_array_equal(batch.reward[row, :left], REWARDS[7 - left : 7])


def test_a_truncated_episode_is_not_absorbed() -> None:
    replay = _replay_with_episode(terminates=False)
    replay.config = replay.config.model_copy(update={"absorbing": True})
    batch = replay.sample(64, 5, np.random.default_rng(0))
    start = batch.observations["observation"][:, 0, 0]
    late = (start >= 3) & (start <= 6)
    assert late.any()
    assert not batch.step_mask[late].all(axis=1).any()
