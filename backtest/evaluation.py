"""Everything the report says about one strategy, before it is written down anywhere."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from backtest.metrics import MIN_DAYS_TO_TRUST, Floats, Ints, Metric, daily_series, deepest_drawdown
from backtest.results import Run
from backtest.significance import (
    BootstrapResult,
    SharpeEvidence,
    sharpe_evidence,
    shift_p_value,
    stationary_bootstrap,
    superior_predictive_ability,
)
from backtest.trials import TrialStatistics

SIGNIFICANCE = 0.05
SPA_REPS = 1000
BANDED = ("final_equity", "total_return", "annual_return", "sharpe", "max_drawdown", "turnover_per_year")


@dataclass(frozen=True)
class Band:
    """5th, 50th and 95th percentile of a figure over the fill seeds: execution luck, not market luck."""

    p05: float
    median: float
    p95: float


@dataclass(frozen=True)
class RandomTiming:
    """The strategy's own positions at other times: circular shifts, run through the same fills.

    shifts: [R] bars. log_growth: [R] ln(E_T/E_0) of each. own: the strategy's, same path. p_value: (1 + #>=)/(1 + R).
    turnover: [R] traded notional over mean equity; own_turnover: the strategy's.
    """

    shifts: Ints
    log_growth: Floats
    own: float
    p_value: float
    turnover: Floats
    own_turnover: float


@dataclass(frozen=True)
class Fold:
    """A stretch of the run, compounded: the strategy beside buy-and-hold."""

    label: str
    total_return: float
    buy_and_hold: float


@dataclass(frozen=True)
class Scenario:
    """The same decisions under other terms: where the result comes from."""

    name: str
    total_return: float
    sharpe: float | None


@dataclass(frozen=True)
class Calibration:
    """How well predictions met what happened.

    value_bins: (mean predicted value, mean realised return, count) per predicted decile; correlation over all
    decisions.
    pit: [bins] share of realised returns per bin of the predicted distribution (uniform when calibrated), or None for
    a policy that predicts no distribution. crps: model and its baselines, lower is better.
    """

    value_bins: tuple[tuple[float, float, int], ...]
    value_correlation: float | None
    pit: tuple[float, ...] | None = None
    crps: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Check:
    """One question the verdict rests on. passed is None where it could not be asked; doubt: what a failure means."""

    name: str
    passed: bool | None
    text: str
    doubt: str


@dataclass(frozen=True)
class Verdict:
    """The one sentence, and the checks behind it."""

    skill: bool
    sentence: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Evaluation:
    """One strategy, judged."""

    run: Run
    baselines: Mapping[str, Run]
    metrics: Mapping[str, Metric]
    baseline_metrics: Mapping[str, Mapping[str, Metric]]
    fill_band: Mapping[str, Band]
    bootstrap: BootstrapResult | None
    evidence: SharpeEvidence
    trials: TrialStatistics
    random_timing: RandomTiming | None
    spa: Mapping[str, float | None]
    folds: Sequence[Fold]
    verdict: Verdict
    warnings: Sequence[str]
    scenarios: Sequence[Scenario] = ()
    calibration: Calibration | None = None
    overfitting: float | None = None
    overfitting_reason: str | None = None


def daily_returns(run: Run, path: int | None = None) -> Floats:
    """[D] daily returns of one path (the representative one by default)."""
    row = run.representative if path is None else path
    return daily_series(run.market.close_time, run.accounts.equity[row], days_per_year=run.market.days_per_year).returns


def fill_band(run: Run, per_path: Sequence[Mapping[str, Metric]]) -> dict[str, Band]:
    """Percentiles of the headline figures over the fill seeds."""
    band = {}
    for name in BANDED:
        values = [metrics[name].value for metrics in per_path]
        known = np.array([value for value in values if value is not None])
        if len(known) == len(values):
            low, middle, high = np.percentile(known, [5, 50, 95])
            band[name] = Band(float(low), float(middle), float(high))
    return band


def calendar_bounds(run: Run, *, most: int = 12) -> list[tuple[str, int, int]]:
    """Months, quarters or years as (label, first row, row after the last): the finest with at most `most` of them.

    Row 0 holds the initial capital and belongs to the first one.
    """
    moment = (run.market.close_time - 1).astype("datetime64[ms]")
    year = moment.astype("datetime64[Y]").astype(int) + 1970
    month = moment.astype("datetime64[M]").astype(int) % 12
    options: list[tuple[Ints, Callable[[int], str]]] = [
        (year * 100 + month, lambda key: f"{key // 100}-{key % 100 + 1:02d}"),
        (year * 10 + month // 3, lambda key: f"{key // 10} Q{key % 10 + 1}"),
        (year, str),
    ]
    # Years are the last resort: a history of more than `most` years still gets a bar each.
    keys, name = next((option for option in options if len(np.unique(option[0])) <= most), options[-1])
    starts = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    return [(name(int(keys[first])), first, stop) for first, stop in pairwise(starts)]


def folds(run: Run, buy_and_hold: Run, bounds: Sequence[tuple[str, int, int]]) -> list[Fold]:
    """Growth of the strategy and of buy-and-hold over each stretch of rows, from the mark before it to its last one."""
    own = run.accounts.equity[run.representative]
    held = buy_and_hold.accounts.equity[buy_and_hold.representative]
    result = []
    for label, start, stop in bounds:
        first, last = max(start - 1, 0), stop - 1
        growth = own[last] / own[first] - 1.0 if own[first] > 0 else 0.0
        result.append(Fold(label, float(growth), float(held[last] / held[first] - 1.0)))
    return result


def evaluate(
    run: Run,
    *,
    baselines: Mapping[str, Run],
    random_timing: RandomTiming | None,
    trials: TrialStatistics,
    bootstrap_reps: int = 2000,
    spa_reps: int = SPA_REPS,
    seed: int = 0,
    warnings: Sequence[str] = (),
    bounds: Sequence[tuple[str, int, int]] | None = None,
) -> Evaluation:
    """Judge a run that is complete: metrics with intervals, baselines, evidence, verdict.

    bounds: (label, first row, row after the last) of the folds to show; None takes calendar periods.
    """
    per_path = [run.metrics(path) for path in range(run.paths)]
    metrics = dict(per_path[run.representative])
    returns = daily_returns(run)
    notes = list(warnings)
    annual = math.sqrt(run.market.days_per_year)
    bootstrap = None
    if len(returns) >= 20 and not run.ruined:
        bootstrap = stationary_bootstrap(returns, reps=bootstrap_reps, seed=seed)
        low, high = bootstrap.sharpe_interval()
        metrics["sharpe"] = metrics["sharpe"].with_ci(low * annual, high * annual)
        low, high = bootstrap.total_return_interval()
        metrics["total_return"] = metrics["total_return"].with_ci(low, high)
        if metrics["annual_return"].value is not None:
            years = (run.market.close_time[-1] - run.market.close_time[0]) / 31_557_600_000.0
            metrics["annual_return"] = metrics["annual_return"].with_ci(
                (1.0 + low) ** (1.0 / years) - 1.0, (1.0 + high) ** (1.0 / years) - 1.0
            )
    days = float(run.market.close_time[-1] - run.market.close_time[0]) / 86_400_000.0
    if 30 <= days < 180:
        notes.append(f"Only {days:.0f} days of history: annualised figures are extrapolations (180 days advised).")
    if run.ruined:
        notes.append("At least one path of fills ruined the account.")
    evidence = sharpe_evidence(returns, trials=trials.trials, variance=trials.variance)
    spa: dict[str, float | None] = {}
    for name, baseline in baselines.items():
        other = daily_returns(baseline)
        usable = len(other) == len(returns) and len(returns) >= 20
        spa[name] = superior_predictive_ability(other, returns[:, None], reps=spa_reps, seed=seed) if usable else None
    baseline_metrics = {name: baseline.metrics(baseline.representative) for name, baseline in baselines.items()}
    return Evaluation(
        run=run,
        baselines=baselines,
        metrics=metrics,
        baseline_metrics=baseline_metrics,
        fill_band=fill_band(run, per_path),
        bootstrap=bootstrap,
        evidence=evidence,
        trials=trials,
        random_timing=random_timing,
        spa=spa,
        folds=folds(run, baselines["buy_and_hold"], bounds or calendar_bounds(run))
        if "buy_and_hold" in baselines
        else [],
        verdict=judge(metrics, evidence, random_timing, baseline_metrics.get("buy_and_hold"), days=days),
        warnings=notes,
    )


def judge(
    metrics: Mapping[str, Metric],
    evidence: SharpeEvidence,
    random_timing: RandomTiming | None,
    buy_and_hold: Mapping[str, Metric] | None,
    *,
    days: float,
) -> Verdict:
    """Skill is only claimed when three independent doubts are all answered.

    Could the return be the market's drift? (its own positions at random times do as well). Could the Sharpe ratio be
    this sample's luck? (the bootstrap interval includes zero). Could it be the best of many tries? (Deflated Sharpe).
    Each test alone is wrong one time in twenty; asking all three keeps false claims well under that.
    """
    checks = [
        _timing_check(random_timing),
        _interval_check(metrics["sharpe"]),
        _deflated_check(evidence),
    ]
    skill = all(check.passed for check in checks)
    total = metrics["total_return"].value
    held = None if buy_and_hold is None else buy_and_hold["total_return"].value
    result = "the result is undefined"
    if total is not None:
        result = f"it {'earned' if total >= 0 else 'lost'} {abs(total):.1%}"
    if held is not None:
        result += f" while buy-and-hold {'earned' if held >= 0 else 'lost'} {abs(held):.1%}"
    if skill:
        sentence = f"Evidence of skill: {result}, and no check below could explain that by luck."
        if total is not None and held is not None and total <= held:
            sentence = f"Evidence of skill, but holding the asset paid as much or more: {result}."
    else:
        failed = next(check for check in checks if not check.passed)
        sentence = f"No evidence of skill: {result}, and {failed.doubt}."
        if days < MIN_DAYS_TO_TRUST:
            sentence += f" {days:.0f} days are too few to tell much."
    return Verdict(skill, sentence, tuple(checks))


def _timing_check(timing: RandomTiming | None) -> Check:
    if timing is None:
        doubt = "it hardly traded, so its timing cannot be compared with chance"
        return Check("timing", None, "no positions to move to other times", doubt)
    return Check(
        "timing",
        timing.p_value <= SIGNIFICANCE,
        f"p = {timing.p_value:.3f} against its own positions at random times",
        f"its own positions at random times did at least as well in {timing.p_value:.0%} of cases",
    )


def _interval_check(sharpe: Metric) -> Check:
    if sharpe.ci is None or sharpe.value is None:
        return Check("interval", None, "no interval for the Sharpe ratio", "its Sharpe ratio cannot be estimated")
    low, high = sharpe.ci
    place = "lies below zero" if high < 0.0 else "includes zero"
    return Check(
        "interval",
        low > 0.0,
        f"Sharpe ratio {sharpe.value:.2f}, 95% interval {low:.2f} to {high:.2f}",
        f"the 95% interval of its Sharpe ratio, {low:.2f} to {high:.2f}, {place}",
    )


def _deflated_check(evidence: SharpeEvidence) -> Check:
    if evidence.dsr is None:
        return Check("deflated", None, "Deflated Sharpe undefined", "its returns do not vary")
    return Check(
        "deflated",
        evidence.dsr >= 1.0 - SIGNIFICANCE,
        f"Deflated Sharpe {evidence.dsr:.2f} (0.95 convinces)",
        f"after all the tries on this split its Sharpe ratio is no surprise (Deflated Sharpe {evidence.dsr:.2f})",
    )


def random_timing(
    *,
    shifts: Ints,
    log_growth: Floats,
    turnover: Floats,
    own_log_growth: float,
    own_turnover: float,
) -> RandomTiming:
    """Assemble the comparison with circularly shifted positions."""
    return RandomTiming(
        shifts=shifts,
        log_growth=log_growth,
        own=own_log_growth,
        p_value=shift_p_value(own_log_growth, log_growth),
        turnover=turnover,
        own_turnover=own_turnover,
    )


def drawdown_text(run: Run) -> str:
    """When the deepest drawdown began and whether it ended."""
    equity = run.accounts.equity[run.representative]
    spell = deepest_drawdown(equity)
    if spell.depth == 0.0:
        return "Equity never fell below a former peak."
    times = (run.market.close_time - 1).astype("datetime64[ms]").astype("datetime64[D]")
    end = "not recovered" if spell.end is None else f"recovered on {times[spell.end]}"
    return f"Deepest drawdown {spell.depth:.1%}, from {times[spell.start]} to {times[spell.trough]}, {end}."
