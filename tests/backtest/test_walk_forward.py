"""Walk-forward: folds that share nothing, one account through all of them, and nothing done twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.policy import Policy
from backtest.runner import Stretch, run_series
from backtest.walk_forward import Fold, FoldResult, combine, plan_folds, run_fold
from configs.experiment import Experiment, parse_experiment
from data.bars import Bars, parse_time
from data.samples import load_sample
from market_env.config import MarketConfig

SEEDS = [0, 1]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return parse_experiment(
        {
            "name": "walk",
            "data": {"source": "sample", "symbols": ["sp500"], "timeframe": "1d"},
            "splits": {
                "train": ["1999-01-01", "2013-01-01"],
                "validation": ["2013-01-01", "2015-01-01"],
                "test": ["2015-01-01", "2019-01-01"],
            },
            "features": ["close_return"],
            "market": {
                "actions": {"levels": [0.0, 0.5, 1.0], "spot": True},
                "observation": {"window": 8},
            },
        },
        "test",
    )


@pytest.fixture(scope="module")
def bars() -> Bars:
    return load_sample("sp500")


@pytest.fixture
def config(experiment: Experiment) -> MarketConfig:
    return experiment.market.for_evaluation()


class CountingTrainer:
    """Stands for training: counts its calls and gives a scripted policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.trained: list[str] = []

    def __call__(self, experiment: Experiment, directory: Path) -> tuple[Policy, str]:
        self.trained.append(experiment.name)
        return self.policy, "abc"


def test_folds_tile_the_test_split_and_leave_a_gap_before_each_part(experiment: Experiment, bars: Bars) -> None:
    planned = plan_folds(experiment, bars, folds=3)
    assert [fold.experiment.name for fold in planned] == ["walk-fold1", "walk-fold2", "walk-fold3"]
    assert planned[0].stop == planned[1].start
    assert planned[1].stop == planned[2].start
    purge = 8 + experiment.agent.learner.unroll + experiment.agent.replay.n_step
    for fold in planned:
        rows = [
            int(np.searchsorted(bars.timestamp, parse_time(moment)))
            for part in ("train", "validation", "test")
            for moment in getattr(fold.experiment.splits, part)
        ]
        assert rows == sorted(rows)
        assert rows[2] - rows[1] == rows[4] - rows[3] == purge + experiment.agent.replay.n_step
        assert rows[4] == fold.start


def test_a_sliding_training_part_keeps_its_length(experiment: Experiment, bars: Bars) -> None:
    for fold in plan_folds(experiment, bars, folds=2, train_bars=500):
        start, stop = (
            int(np.searchsorted(bars.timestamp, parse_time(moment))) for moment in fold.experiment.splits.train
        )
        assert stop - start == 500


def run_all(
    folds: list[Fold], root: Path, trainer: CountingTrainer, config: MarketConfig, bars: Bars
) -> list[FoldResult]:
    return [run_fold(fold, root / str(fold.number), trainer, config, bars, seeds=SEEDS) for fold in folds]


def test_an_interrupted_walk_continues_where_it_stopped(
    experiment: Experiment, bars: Bars, config: MarketConfig, follow_last_return: Any, tmp_path: Path
) -> None:
    folds = plan_folds(experiment, bars, folds=2)
    first = CountingTrainer(follow_last_return)
    run_fold(folds[0], tmp_path / "0", first, config, bars, seeds=SEEDS)
    second = CountingTrainer(follow_last_return)
    again = run_all(folds, tmp_path, second, config, bars)
    assert second.trained == ["walk-fold2"]
    fresh = run_all(folds, tmp_path / "other", CountingTrainer(follow_last_return), config, bars)
    for one, other in zip(again, fresh, strict=True):
        assert np.array_equal(one.targets, other.targets)
        assert one.total_return == other.total_return


def test_another_experiment_s_folds_are_not_mixed_in(
    experiment: Experiment, bars: Bars, config: MarketConfig, follow_last_return: Any, tmp_path: Path
) -> None:
    (fold,) = plan_folds(experiment, bars, folds=1)
    run_fold(fold, tmp_path, CountingTrainer(follow_last_return), config, bars, seeds=SEEDS)
    other = replace(fold, experiment=fold.experiment.model_copy(update={"seed": 99}))
    with pytest.raises(ValueError, match="another experiment"):
        run_fold(other, tmp_path, CountingTrainer(follow_last_return), config, bars, seeds=SEEDS)


def test_one_account_trades_the_decisions_of_all_folds_across_the_seams(
    experiment: Experiment, bars: Bars, config: MarketConfig, follow_last_return: Any, tmp_path: Path
) -> None:
    results = run_all(
        plan_folds(experiment, bars, folds=2), tmp_path, CountingTrainer(follow_last_return), config, bars
    )
    combined = combine(results, bars, config, seeds=SEEDS)
    run = combined.run
    assert [bound[1:] for bound in combined.bounds] == [
        (0, results[0].targets.shape[1]),
        (results[0].targets.shape[1], len(run.market)),
    ]
    assert run.market.timestamp[0] == bars.timestamp[results[0].fold.start]
    # Until the seam the account is the first fold's own.
    seam = combined.bounds[0][2]
    alone = run_series(results[0].targets, combined.market, config, seeds=SEEDS, name="alone", stretch=Stretch(0, seam))
    assert np.array_equal(run.accounts.equity[:, :seam], alone.accounts.equity)
    # And the last decision of the first fold fills in the first bar of the second.
    flips = results[0].targets[:, -1] != np.where(run.accounts.units[:, seam - 1] > 0, 1.0, 0.0)
    assert np.array_equal(run.accounts.qty_ordered[:, seam] != 0.0, flips)
