"""From a strategy to a judged evaluation: the run, its baselines, what luck could do, other terms, calibration.

Each step is a function of arrays elsewhere; here they are put in order, with progress shown for the long ones.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from backtest.baselines import SHIFTS, shifted_timing, standard_baselines
from backtest.calibration import CodeOutcomes, calibrate
from backtest.evaluation import Evaluation, daily_returns, evaluate
from backtest.metrics import Floats, Metric, sharpe_ratio
from backtest.results import Run
from backtest.runner import Progress, Sizing, Stretch, quiet
from backtest.sensitivity import scenarios
from backtest.significance import probability_of_overfitting
from backtest.trials import Trial, TrialsLedger, on_split, return_panel, statistics
from market_env.config import MarketConfig
from market_env.market import Market
from market_env.valuation import liquidation_value

PBO_MIN_TRIALS = 10
PBO_BLOCKS = 16

ProgressFactory = Callable[[str, int], AbstractContextManager[Progress]]


def no_progress(title: str, total: int) -> AbstractContextManager[Progress]:
    """Show nothing."""
    return nullcontext(quiet)


@dataclass(frozen=True)
class Identity:
    """What decides the outcome of an evaluation, as hashes and names, for the trials ledger.

    subject: checkpoint or targets with their configuration. key: subject plus data, split and seeds.
    """

    key: str
    subject: str
    dataset: str
    split: str


@dataclass(frozen=True)
class Terms:
    """How a run trades and how it is judged."""

    market: Market
    config: MarketConfig
    history_close: Floats  # closes of all bars up to the end of the market
    stretch: Stretch
    sizing: Sizing = "exposure"
    flips_only: bool = False
    shifts: int = SHIFTS
    bootstrap_reps: int = 2000
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Model:
    """What calibration needs to know of the policy's model."""

    discount: float
    reward_scale: float
    codes: CodeOutcomes | None


def _payout(run: Run, market: Market, config: MarketConfig, path: int) -> float:
    """What the account of one path would pay out after the last bar."""
    last = int(np.searchsorted(market.timestamp, run.market.timestamp[-1]))
    return liquidation_value(
        config,
        market.instrument,
        equity=float(run.accounts.equity[path, -1]),
        units=float(run.accounts.units[path, -1]),
        close=float(run.market.close[-1]),
        sigma=float(market.sigma[last]),
        median_volume=float(market.median_volume[last]),
    )


def record_trial(run: Run, identity: Identity, ledger: TrialsLedger, *, created: str) -> None:
    """Write a look at a split into the ledger."""
    returns = daily_returns(run)
    ledger.append(
        Trial(
            key=identity.key,
            subject=identity.subject,
            dataset=identity.dataset,
            split=identity.split,
            sharpe=sharpe_ratio(returns),
            first_day=int(run.market.close_time[0] // 86_400_000),
            returns=tuple(float(f"{value:.9g}") for value in returns),
            created=created,
        )
    )


def examine(
    run: Run,
    terms: Terms,
    *,
    identity: Identity,
    ledger: TrialsLedger,
    created: str,
    prior: Run | None = None,
    model: Model | None = None,
    warnings: Sequence[str] = (),
    bounds: Sequence[tuple[str, int, int]] | None = None,
    progress: ProgressFactory = no_progress,
) -> Evaluation:
    """Judge a finished run beside its baselines, and write the look at the split into the ledger."""
    market, config, where = terms.market, terms.config, terms.stretch
    record_trial(run, identity, ledger, created=created)
    trials = ledger.read()
    counts = statistics(trials, dataset=identity.dataset, split=identity.split)

    baselines = standard_baselines(market, config, seeds=run.seeds, history_close=terms.history_close, stretch=where)
    if prior is not None:
        baselines = {"buy_and_hold": baselines.pop("buy_and_hold"), "prior": prior, **baselines}
    with progress("random timing", terms.shifts) as shown:
        timing = shifted_timing(
            run,
            market,
            config,
            sizing=terms.sizing,
            flips_only=terms.flips_only,
            stretch=where,
            count=terms.shifts,
            seed=terms.seed,
            threads=terms.threads,
            progress=shown,
        )
    evaluation = evaluate(
        run,
        baselines=baselines,
        random_timing=timing,
        trials=counts,
        bootstrap_reps=terms.bootstrap_reps,
        seed=terms.seed,
        warnings=warnings,
        bounds=bounds,
    )
    path = run.representative
    metrics = dict(evaluation.metrics)
    metrics["liquidation_value"] = Metric(_payout(run, market, config, path), 1)
    panel = return_panel(
        on_split(trials, dataset=identity.dataset, split=identity.split),
        dataset=identity.dataset,
        split=identity.split,
    )
    pbo: float | None = None
    reason: str | None = f"fewer than {PBO_MIN_TRIALS} trials of the same days in the ledger"
    if panel is not None and panel.shape[1] >= PBO_MIN_TRIALS and len(panel) >= 2 * PBO_BLOCKS:
        pbo, reason = probability_of_overfitting(panel, blocks=PBO_BLOCKS).probability, None
    calibration = None
    if model is not None:
        before = terms.history_close[: len(terms.history_close) - (len(market) - where.start)]
        calibration = calibrate(
            run,
            discount=model.discount,
            reward_scale=model.reward_scale,
            sigma=market.sigma[where.start : where.stop],
            train_returns=np.diff(np.log(before)) if len(before) > 1 else None,
            codes=model.codes,
        )
    return replace(
        evaluation,
        metrics=metrics,
        scenarios=scenarios(run, market, config, sizing=terms.sizing, stretch=where),
        calibration=calibration,
        overfitting=pbo,
        overfitting_reason=reason,
    )
