"""Did the model know what it was worth, and what might come?

Two questions with different answers: whether the predicted *value* orders the stretches that follow, and whether the
predicted *distribution* of the next bar's return has the right width. The distribution is read from the model's
chance codes: each code stands for the outcomes it was given in training, mixed by the probability the model gives it
now.

Legend: N decisions, C codes, Q quantile levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from backtest.evaluation import Calibration
from backtest.metrics import Floats, Ints
from backtest.results import Run

BINS = 10
MIN_DECISIONS = 50
QUADRATURE: Floats = np.linspace(0.01, 0.99, 99)  # quantile levels at which CRPS is integrated


@dataclass(frozen=True)
class CodeOutcomes:
    """What each chance code stood for in training: quantiles of the next bar's log return.

    levels: [Q] in (0, 1), increasing. quantiles: [C, Q]; NaN rows for codes never used.
    """

    levels: Floats
    quantiles: Floats

    @property
    def used(self) -> NDArray[np.bool_]:
        """[C] codes that training has seen."""
        return np.asarray(np.isfinite(self.quantiles).all(axis=1), dtype=np.bool_)


def discounted_future(rewards: Floats, discount: float) -> Floats:
    """[N] sum over k of discount^k rewards[t+k]: what was earned after each decision."""
    result = np.empty(len(rewards))
    total = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        total = rewards[t] + discount * total
        result[t] = total
    return result


def value_calibration(predicted: Floats, realised: Floats) -> tuple[tuple[tuple[float, float, int], ...], float | None]:
    """Means of predicted and realised value per tenth of the predictions, and their rank-free (Pearson) correlation."""
    if len(predicted) < MIN_DECISIONS or predicted.std() == 0.0 or realised.std() == 0.0:
        return (), None
    order = np.argsort(predicted, kind="stable")
    groups = [group for group in np.array_split(order, BINS) if len(group)]
    bins = tuple((float(predicted[g].mean()), float(realised[g].mean()), len(g)) for g in groups)
    return bins, float(np.corrcoef(predicted, realised)[0, 1])


def mixture_cdf(outcome: Floats, weights: Floats, codes: CodeOutcomes) -> Floats:
    """[N] probability the mixture gives to a return below `outcome`.

    outcome: [N]. weights: [N, C]. Within a code the normal scores of the known levels are joined by straight lines that
    continue beyond the outermost quantiles, so a code whose outcomes are normal is told exactly.
    """
    used = codes.used
    share = _shares(weights, used)
    below = np.column_stack([_code_cdf(outcome, row, codes.levels) for row in codes.quantiles[used]])
    return np.asarray((share * below).sum(axis=1))


def _code_cdf(outcome: Floats, quantiles: Floats, levels: Floats) -> Floats:
    """[N] distribution function of one code at each outcome, linear in normal scores between and beyond its levels."""
    scores = norm.ppf(levels)
    steps = np.maximum(np.diff(quantiles), 1e-12)
    slopes = np.diff(scores) / steps
    place = np.clip(np.searchsorted(quantiles, outcome) - 1, 0, len(steps) - 1)
    found: Floats = norm.cdf(scores[place] + (outcome - quantiles[place]) * slopes[place])
    return found


def crps_of_quantiles(outcome: Floats, quantiles: Floats, levels: Floats = QUADRATURE) -> float:
    """Mean continuous ranked probability score, as twice the mean pinball loss over quantile levels (Gneiting &
    Ranjan 2011).

    outcome: [N]. quantiles: [N, Q] predicted.
    """
    difference = outcome[:, None] - quantiles
    pinball = np.where(difference >= 0, levels * difference, (levels - 1.0) * difference)
    return float(2.0 * pinball.mean())


def mixture_quantiles(
    weights: Floats, codes: CodeOutcomes, levels: Floats = QUADRATURE, *, points: int = 400
) -> Floats:
    """[N, Q] quantiles of each mixture, by inverting its distribution function on a grid."""
    used = codes.used
    known = codes.quantiles[used]
    spread = float(known.max() - known.min()) or 1e-9
    grid = np.linspace(float(known.min()) - 0.5 * spread, float(known.max()) + 0.5 * spread, points)
    cdf = np.stack([_code_cdf(grid, row, codes.levels) for row in known])
    # Row by row: a table [N, points] of all decisions at once would not fit for a long history.
    return np.stack([np.interp(levels, share @ cdf, grid) for share in _shares(weights, used)])


def _shares(weights: Floats, used: NDArray[np.bool_]) -> Floats:
    """[N, used codes] weights over the codes that training has seen, summing to 1."""
    share = weights[:, used]
    total = share.sum(axis=1, keepdims=True)
    even: Floats = np.full_like(share, 1.0 / max(int(used.sum()), 1))
    shares: Floats = np.divide(share, total, out=even, where=total > 0)
    return shares


def normal_quantiles(sigma: Floats, levels: Floats = QUADRATURE) -> Floats:
    """[N, Q] quantiles of normal distributions around zero."""
    return np.asarray(sigma[:, None] * norm.ppf(levels)[None])


def calibrate(
    run: Run,
    *,
    discount: float,
    reward_scale: float,
    sigma: Floats,
    train_returns: Floats | None,
    codes: CodeOutcomes | None,
) -> Calibration:
    """Predictions of the representative path against what happened next.

    sigma: [N] EWMA volatility at each decision: the baseline that knows the current noise. train_returns: log returns
    before the run: the baseline that knows only history.
    """
    decisions = run.decisions
    if decisions is None:
        return Calibration((), None, reason="targets carry no predictions")
    path = run.representative
    growth = np.diff(np.log(np.maximum(run.accounts.equity[path], 1e-300)))
    predicted = decisions.value[path][:-1].astype(np.float64)
    realised = discounted_future(reward_scale * growth, discount)
    # The last decisions' futures are cut off by the end of the data: leave one horizon out where the run is long
    # enough.
    keep = max(len(predicted) - round(1.0 / max(1.0 - discount, 1e-3)), len(predicted) // 2)
    bins, correlation = value_calibration(predicted[:keep], realised[:keep])
    outcome = np.diff(np.log(run.market.close))
    weights = decisions.chance_probabilities[path][:-1].astype(np.float64)
    if codes is None or weights.shape[1] != len(codes.quantiles) or len(outcome) < MIN_DECISIONS:
        reason = "no chance codes with known outcomes" if len(outcome) >= MIN_DECISIONS else "too few decisions"
        return Calibration(bins, correlation, reason=reason)
    pit = mixture_cdf(outcome, weights, codes)
    counts, _ = np.histogram(pit, bins=BINS, range=(0.0, 1.0))
    crps = {"model": crps_of_quantiles(outcome, mixture_quantiles(weights, codes))}
    if train_returns is not None and len(train_returns) >= MIN_DECISIONS:
        past = np.quantile(train_returns, QUADRATURE)
        crps["unconditional"] = crps_of_quantiles(outcome, np.broadcast_to(past, (len(outcome), len(past))))
    crps["ewma_volatility"] = crps_of_quantiles(outcome, normal_quantiles(sigma[:-1]))
    return Calibration(bins, correlation, tuple((counts / counts.sum()).tolist()), crps)


def code_outcomes(codes: Sequence[int], quantiles: Sequence[dict[str, float]], count: int) -> CodeOutcomes:
    """Assemble `CodeOutcomes` from what a checkpoint says of each code it ever used."""
    levels = np.array(sorted(float(level) for level in quantiles[0]))
    table = np.full((count, len(levels)), np.nan)
    rows: Ints = np.array(codes, dtype=np.int64)
    for row, known in zip(rows, quantiles, strict=True):
        table[row] = [known[name] for name in sorted(known, key=float)]
    return CodeOutcomes(levels, np.maximum.accumulate(table, axis=1))
