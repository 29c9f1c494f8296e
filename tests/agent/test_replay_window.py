"""What is drawn from the replay: the newest part of it, every transition in it alike, and nothing else."""

import numpy as np
import pytest

from agent.config import ReplayConfig
from agent.replay import Record, Replay

ROWS = 2


def _replay(columns: int, *, added: int, episode: int = 1_000, **options: float) -> Replay:
    """Rows of `added` records numbered from 0; every `episode`-th is the last of its episode."""
    replay = Replay(
        ReplayConfig(n_step=1, capacity_steps=ROWS * columns, **options),
        rows=ROWS,
        actions=2,
        observations={"observation": ((1,), np.dtype(np.float32))},
        discount=1.0,
    )
    for number in range(added):
        replay.add(
            Record(
                observations={"observation": np.full((ROWS, 1), number, np.float32)},
                action=np.zeros(ROWS, np.int64),
                reward=np.zeros(ROWS, np.float32),
                terminated=np.zeros(ROWS, bool),
                has_transition=np.full(ROWS, number % episode != episode - 1),
                action_mask=np.ones((ROWS, 2), bool),
                policy=np.full((ROWS, 2), 0.5, np.float32),
                root_value=np.zeros(ROWS, np.float32),
                trust=np.ones(ROWS, np.float32),
            )
        )
    return replay


def _drawn(replay: Replay, count: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the records drawn, and how often each came."""
    batch = replay.sample(count, 1, np.random.default_rng(0))
    return np.unique(batch.observations["observation"][:, 0, 0].astype(int), return_counts=True)


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize(
    ("added", "oldest"),
    [
        (8, 0),  # fewer than window_steps: everything
        (24, 14),  # a quarter is less than window_steps: those
        (60, 45),  # a quarter of all that has been seen
        (100, 75),
        (200, 168),  # … as far as the memory of 32 reaches; the ring has wrapped around more than once
    ],
)
def test_the_window_grows_with_experience(added: int, oldest: int, prioritised: bool) -> None:
    replay = _replay(32, added=added, window_fraction=0.25, window_steps=10 * ROWS, prioritised=prioritised)
    numbers, _ = _drawn(replay)
    assert numbers.tolist() == list(range(oldest, added - 1))  # the newest has no known transition


def test_without_a_window_all_that_is_kept_is_learnt_from() -> None:
    numbers, _ = _drawn(_replay(32, added=200))
    assert numbers.tolist() == list(range(168, 199))


def test_every_transition_is_drawn_equally_often_and_last_observations_never() -> None:
    numbers, counts = _drawn(_replay(32, added=30, episode=5), count=23 * 500)
    expected = [number for number in range(29) if number % 5 != 4]
    assert numbers.tolist() == expected
    assert np.abs(counts - 23 * 500 / len(expected)).max() < 5 * np.sqrt(500)


def test_episodes_of_a_single_step_are_found() -> None:
    numbers, _ = _drawn(_replay(400, added=400, episode=2), count=50)
    assert (numbers % 2 == 0).all()


def test_a_memory_without_transitions_says_so() -> None:
    with pytest.raises(ValueError, match="at least one stored transition"):
        _drawn(_replay(32, added=10, episode=1))


def test_reanalysis_stays_within_the_window() -> None:
    replay = _replay(64, added=60, window_fraction=0.25, window_steps=1)
    _, columns = replay.draw_records(1_000, np.random.default_rng(0))
    assert set(columns.tolist()) == set(range(45, 60))
