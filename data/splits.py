"""Parts of a history for training, choosing and judging, that share no information.

A decision at bar t has seen the bars t - purge + 1 .. t (its observation window and the warm-up of its
features), and what it is trained or judged on reaches to t + embargo (the horizon of its targets). Two parts
are separate when the last outcome of the earlier one lies before the first bar that the later one has seen.
So `purge + embargo` bars between two parts belong to neither (López de Prado, Advances in Financial Machine
Learning, 2018, ch. 7; there the training set also lies after the test set, here time only runs forward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from data.bars import Bars
from data.features import FeatureSet


@dataclass(frozen=True)
class Rows:
    """Bars [start, stop) of a history: the bars at which decisions are taken."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def of(self, bars: Bars) -> Bars:
        """These bars; shares memory."""
        return bars.slice(self.start, self.stop)


@dataclass(frozen=True)
class Split:
    """Train, then validation, then test; `purge + embargo` bars between them belong to no part."""

    train: Rows
    validation: Rows
    test: Rows


def required_purge(features: FeatureSet, window: int) -> int:
    """Bars that an observation of `window` feature rows looks back on, its own bar included."""
    return window + features.warmup - 1


def chronological_split(
    bar_count: int, *, fractions: tuple[float, float, float] = (0.7, 0.15, 0.15), purge: int, embargo: int
) -> Split:
    """Cut a history into three consecutive parts.

    fractions: shares of train, validation and test in the bars that belong to a part; they sum to 1.
    purge: bars a decision looks back on, see `required_purge`. embargo: bars its outcome looks ahead.
    Raises `ValueError` when a part would be empty.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1.0) > 1e-9:
        raise ValueError(f"fractions {fractions}: expected three positive shares that sum to 1.")
    train, validation, test = _consecutive(bar_count, fractions, _gap(purge, embargo))
    return Split(train, validation, test)


def walk_forward(
    bar_count: int,
    *,
    folds: int,
    test_bars: int,
    validation_bars: int,
    train_bars: int | None = None,
    purge: int,
    embargo: int,
) -> tuple[Split, ...]:
    """Folds whose test parts tile the end of the history, oldest first.

    Each fold is trained on what came before it: the `train_bars` latest ones, or with None everything since
    the beginning (expanding window). The last test part ends with the history.
    Raises `ValueError` when the history is too short for the first fold.
    """
    if folds < 1 or test_bars < 1 or validation_bars < 1 or (train_bars is not None and train_bars < 1):
        raise ValueError(
            f"folds {folds}, test_bars {test_bars}, validation_bars {validation_bars}, train_bars {train_bars}: "
            "expected at least 1 of each."
        )
    gap = _gap(purge, embargo)
    splits = []
    for fold in range(folds):
        test = Rows(bar_count - (folds - fold) * test_bars, bar_count - (folds - fold - 1) * test_bars)
        validation = Rows(test.start - gap - validation_bars, test.start - gap)
        train_stop = validation.start - gap
        train = Rows(0 if train_bars is None else train_stop - train_bars, train_stop)
        if train.start < 0 or train.stop <= train.start:
            needed = folds * test_bars + validation_bars + 2 * gap + (train_bars or 1)
            raise ValueError(
                f"{bar_count} bars are too few for {folds} folds of {test_bars} test and {validation_bars} validation "
                f"bars with {gap} bars between parts: at least {needed} are needed. Use fewer or shorter folds."
            )
        splits.append(Split(train, validation, test))
    return tuple(splits)


def _gap(purge: int, embargo: int) -> int:
    if purge < 0 or embargo < 0:
        raise ValueError(f"purge {purge}, embargo {embargo}: expected numbers of bars, not negative.")
    return purge + embargo


def _consecutive(bar_count: int, fractions: Sequence[float], gap: int) -> list[Rows]:
    usable = bar_count - gap * (len(fractions) - 1)
    # Cumulative rounding: the parts add up to the usable bars exactly.
    cuts = [round(usable * sum(fractions[:i])) for i in range(len(fractions) + 1)]
    parts = [Rows(start + i * gap, stop + i * gap) for i, (start, stop) in enumerate(pairwise(cuts))]
    if any(part.stop <= part.start for part in parts):
        raise ValueError(
            f"{bar_count} bars are too few for {len(fractions)} parts with {gap} bars between them. "
            "Use a longer history, a shorter window or features with a shorter warm-up."
        )
    return parts
