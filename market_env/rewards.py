"""What a step is worth. Pure functions; `kernel.py` and the vector env call the same compiled code.

    log_return            r = scale * ln(max(E', f * E_0) / E), f the ruin fraction
    excess_log_return     r minus scale * ln(C' / C): against holding the instrument
    differential_sharpe   Moody and Saffell, "Learning to trade via direct reinforcement", IEEE TNN 2001, eq. (14):
                          D = (B * dA - A * dB / 2) / (B - A^2)^(3/2), A and B moving averages of R and R^2

Then r - lambda * scale * (increase of the drawdown) - eta * (scaled log return)^2, clipped to [-clip, clip]. Ruin
costs `ruin_penalty` on top, so it is below every other outcome of the same step. For every reward but the plain
log return, ruin is worth -clip - ruin_penalty: those rewards are not monotone in equity, and a clever shape must not
make ruin attractive.
"""

import math

from market_env._compile import inlined

LOG_RETURN, EXCESS_LOG_RETURN, DIFFERENTIAL_SHARPE = 0, 1, 2
REWARD_KINDS = {
    "log_return": LOG_RETURN,
    "excess_log_return": EXCESS_LOG_RETURN,
    "differential_sharpe": DIFFERENTIAL_SHARPE,
}
_SMALLEST_VARIANCE = 1e-12  # of the moving averages; below it the ratio means nothing and the reward is 0


@inlined
def differential_sharpe(mean: float, mean_square: float, log_return: float) -> float:
    """Marginal value of one more return to the Sharpe ratio of the moving averages so far."""
    variance = mean_square - mean * mean
    known = variance >= _SMALLEST_VARIANCE
    safe = variance if known else 1.0
    d_mean = log_return - mean
    d_square = log_return * log_return - mean_square
    return (mean_square * d_mean - 0.5 * mean * d_square) / (safe * math.sqrt(safe)) if known else 0.0


@inlined
def shape(
    base: float,
    scaled_return: float,
    drawdown_increase: float,
    ruined: bool,
    plain: bool,
    scale: float,
    clip: float,
    ruin_penalty: float,
    drawdown_penalty: float,
    variance_penalty: float,
) -> float:
    """Penalties, clip and ruin applied to a base reward."""
    reward = base - drawdown_penalty * scale * drawdown_increase - variance_penalty * scaled_return * scaled_return
    reward = min(max(reward, -clip), clip)
    worst = (reward if plain else -clip) - ruin_penalty
    return worst if ruined else reward
