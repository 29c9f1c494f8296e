"""Episodes as rows: the compiled loop that steps any number of environments in one call.

`MarketEnv` is the case of one row, `MarketVectorEnv` the case of B; both call `step_rows`, and a row never looks at
another, so row i of a batch is the single environment to the last bit.

Everything about one environment is one row of a structured array, and everything about one market is another: each
array argument of a compiled function costs a tenth of a microsecond per call, which a single environment feels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_env import kernel, rewards, rng
from market_env._compile import compiled, inlined
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.kernel import Record
from market_env.market import Market

Rows = np.ndarray[Any, Any]  # a structured array

# --- layouts -------------------------------------------------------------------------------------------------------

# One environment: its account, its episode, and room for the draws of one fill.
#
# A field of its own comes first, here and in TABLE: a record that began with an account's fields would be a subtype of
# ACCOUNT to numba, which would then pass it, with a warning, to code compiled for accounts.
ROW = np.dtype(
    [
        ("env_seed", np.uint64),
        *((name, kernel.ACCOUNT[name]) for name in kernel.ACCOUNT.names or ()),
        ("episode", np.uint64),  # episodes since that seed was set
        ("dataset", np.int64),
        ("bar", np.int64),  # where it stands: the current decision bar, in the stacked arrays
        ("start", np.int64),
        ("stop", np.int64),  # bar at which the episode is truncated
        ("done", np.int64),  # 1: the next step begins another episode
        ("sharpe_mean", np.float64),
        ("sharpe_mean_square", np.float64),
        *((name, kernel.DRAWS[name]) for name in kernel.DRAWS.names or ()),
    ],
    align=True,
)

# One market under one configuration: its rules, its place in the stacked arrays, and the settings shared by all.
TABLE = np.dtype(
    [
        ("offset", np.int64),  # of its first bar in the stacked arrays
        *((name, kernel.RULES[name]) for name in kernel.RULES.names or ()),
        ("first", np.int64),  # first decision bar, in the stacked arrays
        ("end", np.int64),  # one past its last bar, in the stacked arrays
        ("duration", np.float64),  # of a bar, ms
        ("cumulative_weight", np.float64),  # of drawing this market or one before it
        ("horizon", np.int64),  # 0: until the data ends
        ("random_start", np.bool_),
        ("initial_equity", np.float64),
        ("ruin_fraction", np.float64),
        ("reward_kind", np.int64),
        ("plain_reward", np.bool_),
        ("reward_scale", np.float64),
        ("reward_clip", np.float64),
        ("ruin_penalty", np.float64),
        ("drawdown_penalty", np.float64),
        ("variance_penalty", np.float64),
        ("sharpe_rate", np.float64),
        ("randomise", np.bool_),
        ("random_exposure", np.bool_),
        ("fee_low", np.float64),
        ("fee_high", np.float64),
        ("spread_low", np.float64),
        ("spread_high", np.float64),
        ("slippage_low", np.float64),
        ("slippage_high", np.float64),
        ("latency_low", np.float64),
        ("latency_high", np.float64),
    ],
    align=True,
)

GRID = np.dtype([("target", np.float64), ("allowed", np.int64)], align=True)

# What a step returns: the record of the bar, then reward and flags. All float64, so a row is also a plain vector.
OUTCOME_FIELDS = (*kernel.RECORD_FIELDS, "reward", "terminated", "truncated")
OUTCOME = np.dtype([(name, np.float64) for name in OUTCOME_FIELDS])


@dataclass(frozen=True, eq=False)
class Stack:
    """Markets stacked into the arrays the compiled loop reads. M markets, N bars in all, F features, A actions."""

    tables: Rows  # [M] TABLE
    bars: Rows  # [N] BAR
    features: NDArray[np.float32]  # [N, F]
    grid: Rows  # [A] GRID

    @classmethod
    def build(cls, markets: Sequence[Market], config: MarketConfig) -> "Stack":
        """Stack the markets of one configuration. A market is drawn in proportion to the root of its length."""
        _check_compatible(markets, config)
        actions = ActionGrid.build(config.actions)
        grid = np.zeros(len(actions), dtype=GRID)
        grid["target"], grid["allowed"] = actions.targets, actions.mask
        tables = np.zeros(len(markets), dtype=TABLE)
        weights = np.sqrt([len(market) - market.first_decision for market in markets])
        offset = 0
        for row, market, weight in zip(tables, markets, np.cumsum(weights) / weights.sum(), strict=True):
            rules = kernel.rules_for(config, market.instrument)[0]
            for name in kernel.RULES.names or ():
                row[name] = rules[name]
            _write_settings(row, config)
            row["offset"] = offset
            row["first"] = offset + market.first_decision
            row["end"] = offset + len(market)
            row["duration"] = float(market.bar_ms)
            row["cumulative_weight"] = weight
            offset += len(market)
        tables["cumulative_weight"][-1] = 1.0
        return cls(
            tables=tables,
            bars=_one_array([market.bar_rows for market in markets]),
            features=_one_array([market.features for market in markets]),
            grid=grid,
        )


def _one_array(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """The parts end to end; a single part is shared, not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_compatible(markets: Sequence[Market], config: MarketConfig) -> None:
    if not markets:
        raise ValueError("an environment needs at least one market, got none")
    for market in markets:
        if market.window != config.observation.window:
            raise ValueError(
                f"{market.symbol}: prepared for a window of {market.window} bars, but observation.window is "
                f"{config.observation.window}. Pass window={config.observation.window} to Market.prepare."
            )
        if market.feature_names != markets[0].feature_names:
            raise ValueError(
                f"{market.symbol}: its features {market.feature_names} differ from those of {markets[0].symbol}, "
                f"{markets[0].feature_names}; all markets of an environment share one feature set."
            )


def _write_settings(row: Record, config: MarketConfig) -> None:
    episode, reward, randomisation = config.episode, config.reward, config.randomisation
    row["horizon"] = episode.horizon or 0
    row["random_start"] = episode.random_start
    row["initial_equity"] = episode.initial_equity
    row["ruin_fraction"] = episode.ruin_fraction
    row["reward_kind"] = rewards.REWARD_KINDS[reward.kind]
    row["plain_reward"] = reward.kind == "log_return" and reward.variance_penalty == 0.0
    row["reward_scale"] = reward.scale
    row["reward_clip"] = reward.clip
    row["ruin_penalty"] = reward.ruin_penalty
    row["drawdown_penalty"] = reward.drawdown_penalty
    row["variance_penalty"] = reward.variance_penalty
    row["sharpe_rate"] = reward.sharpe_rate
    row["randomise"] = randomisation.enabled
    row["random_exposure"] = randomisation.enabled and randomisation.initial_exposure
    row["fee_low"], row["fee_high"] = randomisation.fee
    row["spread_low"], row["spread_high"] = randomisation.spread
    row["slippage_low"], row["slippage_high"] = randomisation.volatility_slippage
    row["latency_low"], row["latency_high"] = randomisation.latency


# --- the beginning of an episode ------------------------------------------------------------------------------------


@compiled
def reset_rows(
    rows: Rows,
    tables: Rows,
    bars: Rows,
    features: Rows,
    grid: Rows,
    forced_dataset: int,
    forced_bar: int,
    outcomes: Rows,
    account_out: Rows,
    window_out: Rows,
) -> None:
    """Begin the episode that each row's `episode` numbers. Arrays as in `step_rows`.

    forced_dataset, forced_bar: take these instead of drawing them (-1: draw); the bar counts in the stacked arrays.
    """
    for i in range(len(rows)):
        _reset_row(rows, i, tables, bars, grid, forced_dataset, forced_bar, outcomes)
        (
            account_out[i, 0], account_out[i, 1], account_out[i, 2], account_out[i, 3],
            account_out[i, 4], account_out[i, 5], account_out[i, 6], account_out[i, 7],
        ) = kernel.observe_account(rows[i], tables[rows[i].dataset])  # fmt: skip
    if window_out.shape[1] > 0:
        _copy_windows(rows, features, window_out)


@compiled
def _reset_row(
    rows: Rows,
    i: int,
    tables: Rows,
    bars: Rows,
    grid: Rows,
    forced_dataset: int,
    forced_bar: int,
    outcomes: Rows,
) -> None:
    """Draw (or take) the market and the first bar of row i, open its account, and say that nothing happened yet."""
    row, zero = rows[i], np.uint64(0)
    word_0, word_1, word_2, _ = rng.words_at(row.env_seed, zero, row.episode, rng.EPISODE_BLOCK)
    dataset = forced_dataset
    if dataset < 0:
        dataset = 0
        while tables[dataset].cumulative_weight <= rng.uniform(word_0):
            dataset += 1
    table = tables[dataset]
    bar, last = table.first, table.end - 1
    if forced_bar >= 0:
        bar = forced_bar
    elif table.random_start:
        # Starts leave room for the horizon where the data allow it, and for one step always.
        latest = max(table.first, last - max(table.horizon, 1))
        bar = table.first + np.int64(rng.uniform(word_1) * (latest - table.first + 1))
    row.dataset = dataset
    row.bar = bar
    row.start = bar
    row.stop = min(last, bar + table.horizon) if table.horizon > 0 else last
    row.done = 0
    row.sharpe_mean = 0.0
    row.sharpe_mean_square = 0.0

    kernel.open_account(row, rng.episode_seed(row.env_seed, row.episode), table.initial_equity)
    now = bars[bar]
    row.mark_price = now.close
    row.clock = now.timestamp + table.duration
    row.sigma = now.sigma
    row.median_volume = now.median_volume
    if table.randomise:
        word_4, word_5, word_6, word_7 = rng.words_at(row.env_seed, zero, row.episode, rng.RANDOMISATION_BLOCK)
        row.fee_factor = _between(table.fee_low, table.fee_high, word_4)
        row.spread_factor = _between(table.spread_low, table.spread_high, word_5)
        row.slippage_factor = _between(table.slippage_low, table.slippage_high, word_6)
        row.latency_factor = _between(table.latency_low, table.latency_high, word_7)
        if table.random_exposure:
            _hold_random_exposure(row, grid, rng.uniform(word_2))
    _write_first_outcome(row, now.timestamp, row.bar - table.offset, outcomes[i])


@inlined
def _between(low: float, high: float, word: rng.Word) -> float:
    return low + (high - low) * rng.uniform(word)


@compiled
def _hold_random_exposure(row: Record, grid: Rows, u: float) -> None:
    """Start with the position of an allowed action, bought at the close without cost."""
    allowed = 0
    for action in range(len(grid)):
        allowed += grid[action].allowed
    chosen = int(u * allowed)
    for action in range(len(grid)):
        if grid[action].allowed:
            if chosen == 0:
                row.target = grid[action].target
            chosen -= 1
    row.units = row.target * row.equity / row.mark_price
    row.cash = row.equity - row.units * row.mark_price
    row.exposure = row.target
    row.entry_price = row.mark_price
    row.entry_sigma = row.sigma


@compiled
def _write_first_outcome(row: Record, timestamp: float, t: int, outcome: Record) -> None:
    outcome.t = t
    outcome.timestamp = timestamp
    outcome.equity = row.equity
    outcome.cash = row.cash
    outcome.units = row.units
    outcome.exposure = row.exposure
    outcome.target = row.target
    outcome.qty_ordered = 0.0
    outcome.qty_filled = 0.0
    outcome.fill_price = 0.0
    outcome.arrival_price = 0.0
    outcome.fill_fraction = 0.0
    outcome.rejected = 0.0
    outcome.fee = 0.0
    outcome.slippage_cost = 0.0
    outcome.impact_cost = 0.0
    outcome.latency_pnl = 0.0
    outcome.gap_pnl = 0.0
    outcome.bar_pnl = 0.0
    outcome.funding = 0.0
    outcome.liquidation_cost = 0.0
    outcome.bad_debt = 0.0
    outcome.log_return = 0.0
    outcome.drawdown = 0.0
    outcome.liquidated = 0.0
    outcome.reward = 0.0
    outcome.terminated = 0.0
    outcome.truncated = 0.0


# --- a step --------------------------------------------------------------------------------------------------------

# Rows are stepped in blocks that stay in the first-level cache, and the draws of a block are made together, in loops
# that vectorise. The loops over rows pass rows, never arrays, to the functions they call: an array argument costs an
# atomic reference count, which per row would be a third of the time. Indices are unsigned, which spares the check for
# negative ones.
BLOCK = 128
_SMALLEST_VECTOR = 8  # fewer draws than this are made one by one


@compiled
def step_rows(
    rows: Rows,
    tables: Rows,
    bars: Rows,
    features: Rows,
    grid: Rows,
    actions: Rows,
    explicit: bool,
    outcomes: Rows,
    account_out: Rows,
    window_out: Rows,
) -> int:
    """Step every row by its action; a row that was done begins its next episode instead (next-step autoreset).

    rows: [B] ROW. actions: [B] int64. explicit: take the draws that stand in the rows instead of the addressed ones.
    Outputs: outcomes [B] OUTCOME, account_out [B, 8] float32, window_out [B, T, F] float32 (T = 0: no windows).
    Returns -1, or the first row whose action is out of range or masked; then nothing was changed.
    """
    batch = len(actions)
    for i in range(batch):
        action = actions[i]
        if action < 0 or action >= len(grid) or not (grid[action].allowed or rows[i].done):
            return i
    order = np.empty(BLOCK, np.uint64)
    vector = BLOCK if batch >= _SMALLEST_VECTOR else 0
    words = np.empty((7, vector), np.uint64)
    normals = np.empty((2, 2 * vector), np.float64)
    tails = np.empty(2 * vector, np.int64)
    for block in range(0, batch, BLOCK):
        first, last = np.uint64(block), np.uint64(min(block + BLOCK, batch))

        # Decide. `order` lists rows with an order from its front and rows without from its back, so that the branches
        # that depend on it are easy to predict.
        with_order, idle = np.uint64(0), last - first
        for i in range(first, last):
            row = rows[i]
            if row.done:
                row.episode += np.uint64(1)
                _reset_row(rows, i, tables, bars, grid, -1, -1, outcomes)
            else:
                now, target = bars[np.uint64(row.bar)], grid[np.uint64(actions[i])].target
                kernel.order_exposure(row, tables[np.uint64(row.dataset)], target, now.sigma, now.median_volume)
                places = np.uint64(row.order_quantity != 0.0)
                idle -= np.uint64(1) - places
                order[with_order if places else idle] = i
                with_order += places

        if not explicit:
            _draw_fills(rows, tables, bars, order, with_order, words, normals, tails)

        # Fill, mark, judge.
        for k in range(last - first):
            if with_order <= k < idle:
                continue
            i = order[k]
            row, outcome = rows[i], outcomes[i]
            table = tables[np.uint64(row.dataset)]
            before, bar = bars[np.uint64(row.bar)], bars[np.uint64(row.bar + 1)]
            kernel.advance(
                row, table, bar.timestamp, bar.open, bar.high, bar.low, bar.close, bar.volume, table.duration, row,
                outcome,
            )  # fmt: skip
            row.bar += 1
            ruined = outcome.liquidated > 0.0 or row.equity <= table.ruin_fraction * row.initial_equity
            at_end = row.bar >= row.stop
            row.done = 1 if ruined or at_end else 0
            outcome.t = row.bar - table.offset
            outcome.reward = _reward(row, table, outcome.log_return, before.close, bar.close, ruined)
            outcome.terminated = 1.0 if ruined else 0.0
            outcome.truncated = 1.0 if at_end and not ruined else 0.0

        for i in range(first, last):
            (
                account_out[i, 0], account_out[i, 1], account_out[i, 2], account_out[i, 3],
                account_out[i, 4], account_out[i, 5], account_out[i, 6], account_out[i, 7],
            ) = kernel.observe_account(rows[i], tables[np.uint64(rows[i].dataset)])  # fmt: skip
    if window_out.shape[1] > 0:
        _copy_windows(rows, features, window_out)
    return -1


@compiled
def _draw_fills(
    rows: Rows, tables: Rows, bars: Rows, order: Rows, count: np.uint64, words: Rows, normals: Rows, tails: Rows
) -> None:
    """`kernel.draw_fill` for the rows order[:count], many at a time. words, normals, tails: memory to work in."""
    if count < _SMALLEST_VECTOR:
        for k in range(count):
            row = rows[order[k]]
            kernel.draw_fill(row, tables[np.uint64(row.dataset)], bars[np.uint64(row.bar + 1)].timestamp, row)
        return
    seeds, instruments, addresses = words[0], words[1], words[2]
    for k in range(count):
        row = rows[order[k]]
        seeds[k] = row.seed
        instruments[k] = tables[np.uint64(row.dataset)].instrument
        addresses[k] = np.uint64(np.int64(bars[np.uint64(row.bar + 1)].timestamp))
    reject, partial, arrival, spread = words[3], words[4], words[5], words[6]
    for k in range(count):
        reject[k], partial[k], arrival[k], spread[k] = rng.words_at(
            seeds[k], instruments[k], addresses[k], rng.FILL_BLOCK
        )
    uniforms, quantiles = normals[0], normals[1]
    for k in range(count):
        uniforms[k] = rng.uniform(arrival[k])
    for k in range(count):
        uniforms[count + k] = rng.uniform(spread[k])
    rng.normals(uniforms, int(count + count), tails, quantiles)
    for k in range(count):
        row = rows[order[k]]
        row.reject_u = rng.uniform(reject[k])
        row.partial_u = rng.uniform(partial[k])
        row.arrival_z = quantiles[k]
        row.spread_z = quantiles[count + k]
        kernel.draw_rare(row, tables[np.uint64(row.dataset)], bars[np.uint64(row.bar + 1)].timestamp, row)


@inlined
def _reward(row: Record, table: Record, log_return: float, close_before: float, close: float, ruined: bool) -> float:
    """Reward of the bar that led to the last mark. log_return: of the account; the closes are the instrument's."""
    floor = table.ruin_fraction * row.initial_equity
    if row.equity < floor:
        log_return = rewards.floored_log_return(row.equity, row.previous_equity, floor)
    scaled = table.reward_scale * log_return
    base = scaled
    if table.reward_kind == rewards.EXCESS_LOG_RETURN:
        base = scaled - table.reward_scale * math.log(close / close_before)
    elif table.reward_kind == rewards.DIFFERENTIAL_SHARPE:
        mean, mean_square = row.sharpe_mean, row.sharpe_mean_square
        base = rewards.differential_sharpe(mean, mean_square, log_return)
        row.sharpe_mean = mean + table.sharpe_rate * (log_return - mean)
        row.sharpe_mean_square = mean_square + table.sharpe_rate * (log_return * log_return - mean_square)
    return rewards.shape(
        base, scaled, max(row.drawdown - row.previous_drawdown, 0.0), ruined, table.plain_reward,
        table.reward_scale, table.reward_clip, table.ruin_penalty, table.drawdown_penalty, table.variance_penalty,
    )  # fmt: skip


# --- observations --------------------------------------------------------------------------------------------------


@compiled
def _copy_windows(rows: Rows, features: Rows, window_out: Rows) -> None:
    """window_out[i] [T, F] = the window that ends at the bar where row i stands."""
    length, width = window_out.shape[1], window_out.shape[2]
    for i in range(len(rows)):
        first = rows[i].bar - length + 1
        for k in range(length):
            for f in range(width):
                window_out[i, k, f] = features[first + k, f]


@compiled
def gather_windows(features: Rows, ends: Rows, out: Rows) -> None:
    """out[i] = the window of `features` that ends at ends[i], inclusive. ends: [B], out: [B, T, F]."""
    length, width = out.shape[1], out.shape[2]
    for i in range(len(ends)):
        first = ends[i] - length + 1
        for k in range(length):
            for f in range(width):
                out[i, k, f] = features[first + k, f]
