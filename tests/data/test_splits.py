import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.features import FeatureSet
from data.splits import Rows, chronological_split, required_purge, walk_forward
from data.synthetic import martingale


def test_a_split_by_hand() -> None:
    """110 bars, two gaps of 5: 100 usable bars in shares of 70, 15 and 15."""
    split = chronological_split(110, purge=3, embargo=2)
    assert (split.train, split.validation, split.test) == (Rows(0, 70), Rows(75, 90), Rows(95, 110))


def test_folds_by_hand() -> None:
    """100 bars, two folds of 20 test bars, 10 validation bars, gaps of 5."""
    first, second = walk_forward(100, folds=2, test_bars=20, validation_bars=10, purge=4, embargo=1)
    assert (first.train, first.validation, first.test) == (Rows(0, 40), Rows(45, 55), Rows(60, 80))
    assert (second.train, second.validation, second.test) == (Rows(0, 60), Rows(65, 75), Rows(80, 100))


def test_a_rolling_window_keeps_its_length() -> None:
    folds = walk_forward(1_000, folds=4, test_bars=100, validation_bars=50, train_bars=300, purge=20, embargo=5)
    assert {len(fold.train) for fold in folds} == {300}
    assert [fold.test.start for fold in folds] == [600, 700, 800, 900]


@given(bar_count=st.integers(50, 5_000), purge=st.integers(0, 300), embargo=st.integers(0, 50), folds=st.integers(1, 6))
def test_no_part_sees_or_decides_what_another_does(bar_count: int, purge: int, embargo: int, folds: int) -> None:
    """The last outcome of a part lies before the first bar that the next part looks at."""
    gap = purge + embargo
    assume(bar_count >= max(folds * 20 + 10 + 2 * gap + 1, 20 + 2 * gap))
    splits = [
        chronological_split(bar_count, purge=purge, embargo=embargo),
        *walk_forward(bar_count, folds=folds, test_bars=20, validation_bars=10, purge=purge, embargo=embargo),
    ]
    for split in splits:
        for earlier, later in ((split.train, split.validation), (split.validation, split.test)):
            last_outcome, first_seen = earlier.stop - 1 + embargo, later.start - purge
            assert last_outcome < first_seen
        assert split.train.start >= 0
        assert split.test.stop <= bar_count
        assert min(len(split.train), len(split.validation), len(split.test)) >= 1


def test_the_purge_covers_window_and_warmup() -> None:
    """Whatever stands before the purged bars, the first observation of the test part is the same."""
    features = FeatureSet.build()
    window = 16
    bars = martingale(2_000, seed=1)
    split = chronological_split(len(bars), purge=required_purge(features, window), embargo=0)
    whole = features.compute(bars)[split.test.start - window + 1 : split.test.start + 1]
    first_seen = split.test.start - required_purge(features, window) + 1
    alone = features.compute(bars.slice(first_seen, split.test.start + 1))[-window:]
    assert np.array_equal(whole, alone)
    assert np.isfinite(alone).all()


def test_rows_give_their_bars() -> None:
    bars = martingale(100, seed=1)
    assert Rows(10, 20).of(bars) == bars.slice(10, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"purge": -1, "embargo": 0}, "not negative"),
        ({"purge": 60, "embargo": 0}, "too few"),
        ({"purge": 0, "embargo": 0, "fractions": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"purge": 0, "embargo": 0, "fractions": (1.0, 0.0, 0.0)}, "three positive shares"),
    ],
)
def test_an_impossible_split_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chronological_split(100, **arguments)  # type: ignore[arg-type]


def test_too_many_folds_are_refused_with_the_bars_they_need() -> None:
    with pytest.raises(ValueError, match="at least 221 are needed"):
        walk_forward(200, folds=2, test_bars=50, validation_bars=50, purge=30, embargo=5)
    assert walk_forward(221, folds=2, test_bars=50, validation_bars=50, purge=30, embargo=5)[0].train == Rows(0, 1)
    with pytest.raises(ValueError, match="at least 1 of each"):
        walk_forward(200, folds=0, test_bars=50, validation_bars=50, purge=30, embargo=5)
