"""How much of a result could be luck: intervals, corrected Sharpe ratios and tests, as functions on arrays.

Sharpe ratios in this module are *per period* (per day for daily returns) unless a name says `annual`. Kurtosis is raw:
3 for a normal distribution. Randomness comes in as a seed; the same seed gives the same figures.

Legend: D returns, M models, R resamples, S blocks.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from arch.bootstrap import SPA, StationaryBootstrap, StepM, optimal_block_length
from numpy.typing import NDArray
from scipy.stats import norm

from backtest.metrics import NO_VARIATION, Floats, kurtosis, sharpe_ratio, skewness

EULER_GAMMA = 0.5772156649015329
MIN_RETURNS = 20  # below this a resampled interval describes the sample, not the strategy


@dataclass(frozen=True)
class BootstrapResult:
    """Resampled distribution of a run's Sharpe ratio (per period) and total log growth.

    sharpe, growth: [R]. block_length: mean block of the stationary bootstrap, in periods.
    """

    sharpe: Floats
    growth: Floats
    block_length: float

    def sharpe_interval(self, level: float = 0.95) -> tuple[float, float]:
        return interval(self.sharpe, level)

    def total_return_interval(self, level: float = 0.95) -> tuple[float, float]:
        low, high = interval(self.growth, level)
        return math.expm1(low), math.expm1(high)


def interval(samples: Floats, level: float = 0.95) -> tuple[float, float]:
    """Central percentile interval; NaN samples (resamples without variation) are left out."""
    finite = samples[np.isfinite(samples)]
    if len(finite) == 0:
        return math.nan, math.nan
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return float(low), float(high)


def block_length(returns: Floats) -> float:
    """Mean block length of the stationary bootstrap (Politis & White 2004, corrected by Patton et al. 2009).

    The larger of the lengths for the returns (their mean) and for their squares (their spread), because a Sharpe ratio
    depends on both; at least 1, at most the square root of the sample times 3, as the authors bound it.
    """
    if len(returns) < MIN_RETURNS or sharpe_ratio(returns) is None:
        return 1.0
    columns = np.column_stack([returns, (returns - returns.mean()) ** 2])
    lengths = optimal_block_length(columns)["stationary"].to_numpy(dtype=np.float64)
    lengths = lengths[np.isfinite(lengths)]
    longest = float(lengths.max()) if len(lengths) else 1.0
    return float(np.clip(longest, 1.0, min(3.0 * math.sqrt(len(returns)), len(returns) / 3.0)))


def stationary_bootstrap(
    returns: Floats, *, reps: int = 2000, seed: int = 0, length: float | None = None
) -> BootstrapResult:
    """Resample daily returns in blocks of random length (Politis & Romano 1994), keeping their short memory.

    length: mean block; None estimates it with `block_length`. 1 is the i.i.d. bootstrap.
    """
    chosen = block_length(returns) if length is None else length
    rows = np.arange(len(returns))
    # arch annotates whole block lengths but documents and uses the mean of a geometric one.
    resampler = StationaryBootstrap(chosen, rows, seed=np.random.default_rng(seed))  # type: ignore[arg-type]
    sharpe, growth = np.empty(reps), np.empty(reps)
    log_returns = np.log1p(np.maximum(returns, -1.0 + 1e-12))
    for index, ((order,), _) in enumerate(resampler.bootstrap(reps)):
        resample = returns[order]
        spread = resample.std(ddof=1)
        flat = spread <= NO_VARIATION * max(float(np.abs(resample).max()), 1e-300)
        sharpe[index] = np.nan if flat else resample.mean() / spread
        growth[index] = log_returns[order].sum()
    return BootstrapResult(sharpe, growth, chosen)


def sharpe_standard_error(sharpe: float, n: int, skew: float, kurt: float) -> float:
    """Standard error of a Sharpe ratio estimated from n returns that are not normal (Mertens 2002).

    sqrt((1 - skew SR + (kurt - 1)/4 SR^2) / (n - 1)).
    """
    variance = 1.0 - skew * sharpe + (kurt - 1.0) / 4.0 * sharpe**2
    return math.sqrt(max(variance, 0.0) / (n - 1))


def probabilistic_sharpe_ratio(sharpe: float, n: int, skew: float, kurt: float, *, benchmark: float = 0.0) -> float:
    """Probability that the true Sharpe ratio exceeds `benchmark` (Bailey & López de Prado 2012)."""
    error = sharpe_standard_error(sharpe, n, skew, kurt)
    if error == 0.0:
        return 1.0 if sharpe > benchmark else 0.0
    return float(norm.cdf((sharpe - benchmark) / error))


def expected_maximum_sharpe(trials: int, variance: float) -> float:
    """Sharpe ratio the best of `trials` worthless strategies is expected to show (Bailey & López de Prado 2014).

    sqrt(V) ((1 - g) z(1 - 1/N) + g z(1 - 1/(N e))), g Euler's constant, V the variance of Sharpe ratios over the
    trials. One trial was not selected from anything: 0.
    """
    if trials < 2 or variance <= 0.0:
        return 0.0
    first = norm.ppf(1.0 - 1.0 / trials)
    second = norm.ppf(1.0 - 1.0 / (trials * math.e))
    return math.sqrt(variance) * float((1.0 - EULER_GAMMA) * first + EULER_GAMMA * second)


def deflated_sharpe_ratio(sharpe: float, n: int, skew: float, kurt: float, *, trials: int, variance: float) -> float:
    """PSR against the Sharpe ratio that luck alone would give the best of `trials` (Bailey & López de Prado 2014)."""
    return probabilistic_sharpe_ratio(sharpe, n, skew, kurt, benchmark=expected_maximum_sharpe(trials, variance))


def minimum_track_record(
    sharpe: float, skew: float, kurt: float, *, benchmark: float = 0.0, confidence: float = 0.95
) -> float | None:
    """Returns needed before PSR(benchmark) reaches `confidence`; None if the estimate is not above the benchmark."""
    if sharpe <= benchmark:
        return None
    variance = 1.0 - skew * sharpe + (kurt - 1.0) / 4.0 * sharpe**2
    return 1.0 + variance * (float(norm.ppf(confidence)) / (sharpe - benchmark)) ** 2


@dataclass(frozen=True)
class SharpeEvidence:
    """What a series of returns says about its own Sharpe ratio; every field None where it does not vary."""

    psr: float | None
    dsr: float | None
    expected_maximum: float
    minimum_track_record: float | None


def sharpe_evidence(returns: Floats, *, trials: int, variance: float) -> SharpeEvidence:
    """PSR(0), DSR and MinTRL of a series of returns, with its own moments."""
    sharpe, skew, kurt = sharpe_ratio(returns), skewness(returns), kurtosis(returns)
    expected = expected_maximum_sharpe(trials, variance)
    if sharpe is None or skew is None or kurt is None or len(returns) < 3:
        return SharpeEvidence(None, None, expected, None)
    n = len(returns)
    return SharpeEvidence(
        psr=probabilistic_sharpe_ratio(sharpe, n, skew, kurt),
        dsr=probabilistic_sharpe_ratio(sharpe, n, skew, kurt, benchmark=expected),
        expected_maximum=expected,
        minimum_track_record=minimum_track_record(sharpe, skew, kurt),
    )


def superior_predictive_ability(
    benchmark: Floats, models: Floats, *, reps: int = 1000, seed: int = 0, length: float | None = None
) -> float:
    """p-value of "no model beats the benchmark", allowing for having tried M of them (Hansen 2005, consistent form).

    benchmark: [D] returns. models: [D, M] returns.
    """
    losses = -np.atleast_2d(models.T).T
    if np.all(np.ptp(losses + benchmark[:, None], axis=0) <= NO_VARIATION):
        return 1.0  # every model earns exactly what the benchmark earns
    if length is None:
        length = max(block_length(benchmark + column) for column in losses.T)
    spa = SPA(-benchmark, losses, block_size=max(1, round(length)), reps=reps, seed=seed)
    spa.compute()
    return float(spa.pvalues["consistent"])


def stepwise_superior(
    benchmark: Floats,
    models: Floats,
    *,
    size: float = 0.05,
    reps: int = 1000,
    seed: int = 0,
    length: float | None = None,
) -> list[int]:
    """Which of several models beat the benchmark with family-wise error `size` (Romano & Wolf 2005).

    benchmark: [D] returns. models: [D, M] returns. Returns the columns found superior.
    """
    losses = -models
    if length is None:
        length = max(block_length(benchmark + column) for column in losses.T)
    step = StepM(-benchmark, losses, size=size, block_size=max(1, round(length)), reps=reps, seed=seed)
    step.compute()
    return sorted(int(str(column)) for column in step.superior_models)


@dataclass(frozen=True)
class Overfitting:
    """Probability of backtest overfitting and the logits behind it, one per way of splitting the history in two."""

    probability: float
    logits: Floats


def probability_of_overfitting(returns: Floats, *, blocks: int = 16) -> Overfitting:
    """PBO by combinatorially symmetric cross-validation (Bailey, Borwein, López de Prado & Zhu 2017).

    returns: [D, M] returns of M trials on the same days.

    The history is cut into `blocks` pieces; for each way to take half of them as in-sample, the trial that was best
    there is ranked out of sample. PBO is the share of splits where it lands in the lower half. On pure noise the
    expectation is
    one half, but a single panel ranges widely: informative, not a test.
    """
    length, models = returns.shape
    if blocks % 2 or blocks < 2:
        raise ValueError(f"Expected an even number of blocks, found {blocks}.")
    if length < 2 * blocks or models < 2:
        raise ValueError(
            f"Expected at least {2 * blocks} returns of 2 trials for {blocks} blocks, found {length} of {models}."
        )
    rows = (length // blocks) * blocks
    pieces = returns[length - rows :].reshape(blocks, -1, models)
    sums, squares = pieces.sum(axis=1), (pieces**2).sum(axis=1)  # [S, M]
    chosen = np.zeros((math.comb(blocks, blocks // 2), blocks))
    for row, members in enumerate(combinations(range(blocks), blocks // 2)):
        chosen[row, list(members)] = 1.0

    def sharpe(weights: Floats) -> Floats:
        n = rows / 2
        mean = weights @ sums / n
        variance = np.maximum(weights @ squares / n - mean**2, 0.0)
        ratio: Floats = np.divide(mean, np.sqrt(variance), out=np.zeros_like(mean), where=variance > 1e-30)
        return ratio

    inside, outside = sharpe(chosen), sharpe(1.0 - chosen)
    best = inside.argmax(axis=1)
    of_best = outside[np.arange(len(best)), best][:, None]
    # Relative rank in (0, 1), ties shared, as M + 1 in the denominator keeps the logit finite.
    rank = ((outside < of_best).sum(axis=1) + 0.5 * ((outside == of_best).sum(axis=1) - 1) + 1.0) / (models + 1)
    logits = np.log(rank / (1.0 - rank))
    return Overfitting(float((logits <= 0.0).mean()), logits)


def shift_p_value(score: float, shifted_scores: NDArray[np.float64]) -> float:
    """p-value of a score against its own circularly shifted positions: (1 + #{shifted >= score}) / (1 + #shifts).

    The unshifted run counts among the draws, so the smallest p is 1/(1 + #shifts) and the test keeps its size
    (Phipson & Smyth 2010).
    """
    return float(1 + np.count_nonzero(shifted_scores >= score)) / (1 + len(shifted_scores))
