"""Train, choose, test, move on: one out-of-sample history made of several, as it would have been lived.

Each fold trains on what lies before it, chooses its checkpoint on a validation part, and is tested on the part after
that, with gaps in between so that no outcome reaches from one part into the next. The decisions of all test parts are
then traded by *one* account, which
carries its position across the seams: the combined curve is one that somebody could have had.

Training comes in as a callable, so this package needs no trainer; finished folds are kept, so an interrupted run
continues.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from agent.policy import Policy
from backtest.metrics import Floats
from backtest.report import encode_json, fingerprint, write_atomic
from backtest.results import DecisionRows, Run
from backtest.runner import Stretch, run_policy, run_series
from backtest.study import ProgressFactory, no_progress
from configs.experiment import Experiment, SplitsConfig
from data.bars import Bars
from data.quality import format_time
from data.splits import walk_forward
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.market import Market

# Trains an experiment in a directory (continuing what lies there) and gives the policy that did best on validation.
TrainFold = Callable[[Experiment, Path], tuple[Policy, str]]

FOLD_RECORD = "fold.json"
FOLD_ARRAYS = "fold.npz"


@dataclass(frozen=True)
class Fold:
    """One fold: its experiment (with its own splits) and the rows of its test part in the whole history."""

    number: int
    experiment: Experiment
    start: int
    stop: int

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.experiment.dump())


def plan_folds(
    experiment: Experiment, bars: Bars, *, folds: int, train_bars: int | None = None, embargo: int | None = None
) -> list[Fold]:
    """Cut the experiment's test split into `folds` test parts, each with training and validation before it.

    The validation part is as long as the experiment's. Purge: window + unroll + n-step bars, so that no training
    target and no observation window touches the next part; embargo: another n-step bars, unless given.
    train_bars: length of a sliding training part; None lets it grow from the beginning.
    """
    splits = experiment.splits
    history = bars.between(None, splits.test[1])
    test_bars = len(history.between(*splits.test)) // folds
    learning = experiment.agent
    purge = experiment.market.observation.window + learning.learner.unroll + learning.replay.n_step
    cut = walk_forward(
        len(history),
        folds=folds,
        test_bars=test_bars,
        validation_bars=len(history.between(*splits.validation)),
        train_bars=train_bars,
        purge=purge,
        embargo=learning.replay.n_step if embargo is None else embargo,
    )
    end = int(history.timestamp[-1]) + history.timeframe.milliseconds

    def moment(row: int) -> str:
        return format_time(int(history.timestamp[row]) if row < len(history) else end)

    planned = []
    for number, split in enumerate(cut):
        parts = {
            name: (moment(part.start), moment(part.stop))
            for name, part in (("train", split.train), ("validation", split.validation), ("test", split.test))
        }
        own = experiment.model_copy(
            update={
                "name": f"{experiment.name}-fold{number + 1}",
                "splits": SplitsConfig.model_validate(parts),
            }
        )
        planned.append(Fold(number, own, split.test.start, split.test.stop))
    return planned


@dataclass(frozen=True)
class FoldResult:
    """What a fold decided on its test part; arrays [S, rows]. checkpoint: fingerprint of the policy that was chosen."""

    fold: Fold
    targets: Floats
    value: Floats
    action: Floats
    total_return: float
    checkpoint: str


def run_fold(
    fold: Fold,
    directory: Path,
    train: TrainFold,
    config: MarketConfig,
    bars: Bars,
    *,
    seeds: Sequence[int],
    progress: ProgressFactory = no_progress,
) -> FoldResult:
    """Train and test a fold, or read the result of an earlier run of the same fold."""
    known = _finished(fold, directory, seeds)
    if known is not None:
        return known
    directory.mkdir(parents=True, exist_ok=True)
    policy, checkpoint = train(fold.experiment, directory / "run")
    market = Market.prepare(
        bars,
        fold.experiment.feature_set,
        Instrument.for_symbol(bars.symbol),
        start=int(bars.timestamp[fold.start]),
        stop=int(bars.timestamp[fold.stop - 1]) + 1,
        window=config.observation.window,
    )
    rows = len(market) - market.first_decision
    with progress(f"testing fold {fold.number + 1}", rows) as shown:
        run = run_policy(policy, market, config, seeds=seeds, progress=shown)
    if rows != fold.stop - fold.start or run.decisions is None:
        raise ValueError(
            f"fold {fold.number + 1}: expected decisions on all {fold.stop - fold.start} test bars, found {rows}; the "
            "history before it is too short for the features' warm-up."
        )
    final = np.median(run.accounts.equity[:, -1] / run.accounts.equity[:, 0])
    result = FoldResult(
        fold=fold,
        targets=np.asarray(run.accounts.target),
        value=run.decisions.value.astype(np.float64),
        action=run.decisions.action.astype(np.float64),
        total_return=float(final) - 1.0,
        checkpoint=checkpoint,
    )
    _save(result, directory, seeds)
    return result


def _save(result: FoldResult, directory: Path, seeds: Sequence[int]) -> None:
    """Arrays first, the record last: where the record lies, the fold is finished."""
    temporary = directory / f".{FOLD_ARRAYS}"
    with temporary.open("wb") as file:
        np.savez(file, targets=result.targets, value=result.value, action=result.action)
    temporary.replace(directory / FOLD_ARRAYS)
    record = {
        "fold": result.fold.number,
        "experiment": result.fold.fingerprint,
        "seeds": list(seeds),
        "total_return": result.total_return,
        "checkpoint": result.checkpoint,
        "splits": result.fold.experiment.splits.model_dump(mode="json"),
    }
    write_atomic(directory / FOLD_RECORD, encode_json(record))


def _finished(fold: Fold, directory: Path, seeds: Sequence[int]) -> FoldResult | None:
    """The fold's earlier result, or None. Raises ValueError if the directory holds another experiment's fold."""
    path = directory / FOLD_RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["experiment"] != fold.fingerprint or record["seeds"] != list(seeds):
        raise ValueError(
            f"{directory}: holds fold {record['fold'] + 1} of another experiment or other fill seeds "
            f"({record['experiment']}, expected {fold.fingerprint}). Choose another --out, or --fresh to begin anew."
        )
    with np.load(directory / FOLD_ARRAYS, allow_pickle=False) as arrays:
        return FoldResult(
            fold=fold,
            targets=arrays["targets"],
            value=arrays["value"],
            action=arrays["action"],
            total_return=float(record["total_return"]),
            checkpoint=str(record["checkpoint"]),
        )


@dataclass(frozen=True)
class Combined:
    """All test parts as one run of one account. bounds: (label, first row, row after the last) of each fold."""

    run: Run
    market: Market
    stretch: Stretch
    bounds: tuple[tuple[str, int, int], ...]


def combine(results: Sequence[FoldResult], bars: Bars, config: MarketConfig, *, seeds: Sequence[int]) -> Combined:
    """Trade the decisions of all folds, in order, with one account per fill seed."""
    start, stop = results[0].fold.start, results[-1].fold.stop
    for before, after in pairwise(results):
        if before.fold.stop != after.fold.start:
            raise ValueError(f"Folds {before.fold.number + 1} and {after.fold.number + 1} do not adjoin.")
    market = Market.prepare(
        bars,
        None,
        Instrument.for_symbol(bars.symbol),
        start=int(bars.timestamp[start]),
        stop=int(bars.timestamp[stop - 1]) + 1,
    )
    stretch = Stretch.of(market)
    targets = np.concatenate([result.targets for result in results], axis=1)
    run = run_series(targets, market, config, seeds=seeds, name="policy", stretch=stretch)
    value = np.concatenate([result.value for result in results], axis=1).astype(np.float32)
    action = np.concatenate([result.action for result in results], axis=1).astype(np.int64)
    nothing = np.zeros((*action.shape, 0), dtype=np.float32)
    decisions = DecisionRows(
        action=action,
        policy=nothing,
        prior=nothing,
        q_values=nothing,
        value=value,
        depth=np.zeros(action.shape, dtype=np.int32),
        chance_probabilities=nothing,
        simulations=0,
    )
    bounds, row = [], 0
    for result in results:
        length = result.targets.shape[1]
        first = str(result.fold.experiment.splits.test[0])[:10]
        bounds.append((f"{result.fold.number + 1}: {first}", row, row + length))
        row += length
    combined = Run(name=run.name, market=run.market, seeds=run.seeds, accounts=run.accounts, decisions=decisions)
    return Combined(combined, market, stretch, tuple(bounds))
