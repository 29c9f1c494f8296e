"""The compiled step of the verification markets (`analytic.py` describes and solves them).

A market is a chain of states whose sufficient statistic is known exactly; the action is the position for the next bar.
Draws are addressed by (seed, episode, step), so every policy meets the same path.
"""

import math
from typing import Any

import numpy as np

from market_env import rng
from market_env._compile import compiled, inlined

Rows = np.ndarray[Any, Any]
Record = Any

REGIME, MEAN_REVERSION, MOMENTUM, MARTINGALE, LEAK, KNOWN_MOVES, BARRIER = range(7)

# Parameters of any market, [1] PARAMETERS; each kind reads its own.
PARAMETERS = np.dtype(
    [
        ("kind", np.int64),
        ("horizon", np.int64),
        ("history", np.int64),
        ("cost", np.float64),
        ("drift", np.float64),
        ("switch", np.float64),
        ("persistence", np.float64),
        ("moves", np.int64),
        ("offer", np.float64),
        ("prize", np.float64),
        ("sure", np.float64),
    ],
    align=True,
)

ROW = np.dtype(
    [
        ("seed", np.uint64),
        ("episode", np.uint64),
        ("t", np.int64),
        ("done", np.int64),
        ("position", np.float64),
        ("statistic", np.float64),
        ("hidden", np.float64),
    ],
    align=True,
)

# States of the barrier market.
IDLE, OFFER, UP, DOWN = range(4)

_BLOCK = np.uint64(32)
_TWO_TO_32 = np.uint64(2**32)


@inlined
def _draws(row: Record) -> tuple[float, float]:
    """Two independent uniforms for the step `row.t` of the episode."""
    address = row.episode * _TWO_TO_32 + np.uint64(row.t)
    word_0, word_1, _, _ = rng.words_at(row.seed, np.uint64(0), address, _BLOCK)
    return rng.uniform(word_0), rng.uniform(word_1)


@inlined
def move_value(move: float, moves: int) -> float:
    """Value of move 0 .. moves-1: equally spaced, mean 0, variance 1."""
    return (move - 0.5 * (moves - 1)) / math.sqrt((moves * moves - 1) / 12.0)


@inlined
def predicted_up(log_odds: float, switch: float) -> float:
    """Probability that the next bar's drift is up, from the log odds that the last one's was."""
    probability = 1.0 / (1.0 + math.exp(-log_odds))
    return probability + switch * (1.0 - 2.0 * probability)


@inlined
def _begin(row: Record, p: Record) -> None:
    row.t = 0
    row.done = 0
    row.position = 0.0
    row.statistic = 0.0
    row.hidden = 0.0
    u, _ = _draws(row)
    if p.kind == REGIME:
        row.hidden = 1.0 if u < 0.5 else -1.0
    elif p.kind == MEAN_REVERSION:
        row.statistic = rng.normal(u) / math.sqrt(1.0 - p.persistence * p.persistence)
    elif p.kind == MOMENTUM or p.kind == MARTINGALE or p.kind == LEAK:
        row.statistic = rng.normal(u)
    elif p.kind == KNOWN_MOVES:
        row.statistic = math.floor(u * p.moves)


@inlined
def _step(row: Record, p: Record, action: int) -> tuple[float, float]:
    """Hold the position action - 1 through the next bar; returns the reward and the bar's return."""
    position = action - 1.0
    before = row.position
    row.t += 1
    u, v = _draws(row)
    if p.kind == BARRIER:
        return _barrier_step(row, p, position, u, v), 0.0
    x = row.statistic
    move = 0.0
    if p.kind == REGIME:
        if v < p.switch:
            row.hidden = -row.hidden
        move = p.drift * row.hidden + rng.normal(u)
        prior = predicted_up(x, p.switch)
        row.statistic = math.log(prior / (1.0 - prior)) + 2.0 * p.drift * move
    elif p.kind == MEAN_REVERSION:
        row.statistic = p.persistence * x + rng.normal(u)
        move = row.statistic - x
    elif p.kind == MOMENTUM:
        move = p.persistence * x + math.sqrt(1.0 - p.persistence * p.persistence) * rng.normal(u)
        row.statistic = move
    elif p.kind == MARTINGALE:
        move = rng.normal(u)
        row.statistic = move
    elif p.kind == LEAK:
        move = x
        row.statistic = rng.normal(u)
    else:  # KNOWN_MOVES
        row.statistic = math.floor(u * p.moves)
        move = p.drift * move_value(x, p.moves) + move_value(row.statistic, p.moves)
    row.position = position
    return position * move - p.cost * abs(position - before), move


@inlined
def _barrier_step(row: Record, p: Record, position: float, u: float, v: float) -> float:
    state, reward, following = row.statistic, 0.0, float(IDLE)
    if state == IDLE:
        following = float(OFFER) if u < p.offer else float(IDLE)
    elif state == OFFER:
        if position == 0.0:
            following = float(UP) if v < 0.5 else float(DOWN)
        else:
            reward = p.sure
    elif state == UP:
        reward = p.prize * position
    else:
        reward = -p.prize * position
    row.statistic = following
    row.position = position
    return reward


@inlined
def _first_entry(row: Record, p: Record) -> float:
    """The sufficient statistic as the agent sees it, of order one."""
    x: float = row.statistic
    if p.kind == REGIME:
        return 2.0 * predicted_up(x, p.switch) - 1.0
    if p.kind == MEAN_REVERSION:
        return x * math.sqrt(1.0 - p.persistence * p.persistence)
    if p.kind == KNOWN_MOVES:
        return move_value(x, p.moves)
    return x


@inlined
def _bounded(value: float) -> float:
    return min(max(value, -5.0), 5.0)


@compiled
def _observe(rows: Rows, p: Record, past: Rows, out: Rows) -> None:
    """[statistic or the last returns, position], or the barrier market's state as one of four."""
    width = out.shape[1]
    for i in range(len(rows)):
        row = rows[i]
        if p.kind == BARRIER:
            for state in range(4):
                out[i, state] = 1.0 if row.statistic == state else 0.0
            continue
        if p.history > 0:
            for k in range(width - 1):
                out[i, k] = past[i, k]
        else:
            out[i, 0] = _bounded(_first_entry(row, p))
        out[i, width - 1] = row.position


@compiled
def reset_rows(rows: Rows, parameters: Rows, past: Rows, observations: Rows) -> None:
    """Begin the episode each row's number names. past: [B, history] float32."""
    for i in range(len(rows)):
        _begin(rows[i], parameters[0])
    past[:] = 0.0
    _observe(rows, parameters[0], past, observations)


@compiled
def step_rows(
    rows: Rows, parameters: Rows, actions: Rows, past: Rows, observations: Rows, rewards: Rows, truncated: Rows
) -> int:
    """Step every row, or begin its next episode if it is done. Returns -1, or the first row with a wrong action."""
    for i in range(len(actions)):
        if actions[i] < 0 or actions[i] > 2:
            return i
    p = parameters[0]
    for i in range(len(actions)):
        row = rows[i]
        if row.done:
            row.episode += np.uint64(1)
            _begin(row, p)
            rewards[i] = 0.0
            truncated[i] = False
            for k in range(past.shape[1]):
                past[i, k] = 0.0
        else:
            reward, move = _step(row, p, actions[i])
            rewards[i] = reward
            row.done = 1 if row.t >= p.horizon else 0
            truncated[i] = row.done > 0
            if past.shape[1] > 0:
                for k in range(past.shape[1] - 1):
                    past[i, k] = past[i, k + 1]
                past[i, past.shape[1] - 1] = _bounded(move)
    _observe(rows, p, past, observations)
    return -1
