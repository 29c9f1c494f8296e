"""Episodes: the compiled loops that step any number of environments in one call.

`MarketVectorEnv` steps blocks of environments (`layout.py`), `MarketEnv` a block of one; both go through `_step_block`,
and no lane looks at another, so row i of a batch is the single environment to the last bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_env import kernel, rewards, rng
from market_env._compile import compiled, inlined, prefer_wide_vectors
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.kernel import Array, Record
from market_env.layout import FIELDS, LANES, OUTCOME_AT, Block, at, new_blocks
from market_env.market import Market

# --- layouts -------------------------------------------------------------------------------------------------------

# One market under one configuration: its place in the stacked arrays, the settings shared by all, and its rules.
TABLE = np.dtype(
    [
        ("offset", np.int64),  # of its first bar in the stacked arrays
        ("first", np.int64),  # first decision bar, in the stacked arrays
        ("end", np.int64),  # one past its last bar, in the stacked arrays
        ("bar_ms", np.float64),
        ("cumulative_weight", np.float64),  # of drawing this market or one before it
        ("horizon", np.int64),  # 0: until the data ends
        ("random_start", np.bool_),
        ("start_equity", np.float64),
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
        # Behind the rest: numba would take a record that begins like another one for it, with a warning.
        *((name, kernel.RULES[name]) for name in kernel.RULES.names or ()),
    ],
    align=True,
)

GRID = np.dtype([("target", np.float64), ("allowed", np.int64)], align=True)


@dataclass(frozen=True, eq=False)
class Stack:
    """Markets stacked into the arrays the compiled loops read. M markets, N bars in all, F features, A actions."""

    tables: Array  # [M] TABLE
    bars: Array  # [N] BAR
    features: NDArray[np.float32]  # [N, F]
    grid: Array  # [A] GRID

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
            row["bar_ms"] = float(market.bar_ms)
            row["cumulative_weight"] = weight
            offset += len(market)
        tables["cumulative_weight"][-1] = 1.0
        return cls(
            tables=tables,
            bars=_one_array([market.bar_rows for market in markets]),
            features=_one_array([market.features for market in markets]),
            grid=grid,
        )


def as_rows(blocks: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The first `count` environments of blocks, one row each: [count, len(FIELDS)], a copy."""
    by_lane = blocks.reshape(len(blocks), len(FIELDS), LANES).swapaxes(1, 2)
    return by_lane.reshape(-1, len(FIELDS))[:count].copy()


def from_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blocks of the environments that `as_rows` wrote."""
    blocks = new_blocks(len(rows))
    by_lane = np.zeros((len(blocks) * LANES, len(FIELDS)))
    by_lane[: len(rows)] = rows
    blocks[:] = by_lane.reshape(len(blocks), LANES, len(FIELDS)).swapaxes(1, 2).reshape(len(blocks), -1)
    return blocks


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
    row["start_equity"] = episode.initial_equity
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


# --- the beginning of an episode -----------------------------------------------------------------------------------


@compiled
def reset_blocks(
    blocks: Array,
    count: int,
    tables: Array,
    bars: Array,
    features: Array,
    grid: Array,
    forced_dataset: int,
    forced_bar: int,
    outcomes: Array,
    account_out: Array,
    window_out: Array,
) -> None:
    """Begin the episode that each environment's `episode` numbers. Arrays as in `step_blocks`.

    forced_dataset, forced_bar: take these instead of drawing them (-1: draw); the bar counts in the stacked arrays.
    """
    for block in range(len(blocks)):
        s = blocks[block]
        first = block * LANES
        n = min(LANES, count - first)
        for k in range(n):
            _reset_lane(s, k, tables, bars, grid, forced_dataset, forced_bar)
        kernel.observe_accounts(s, n, tables[0], account_out, first)
        _report(s, n, outcomes, first)
        _copy_windows(s, n, features, window_out, first)


@inlined
def _reset_lane(
    s: Block, k: int, tables: Array, bars: Array, grid: Array, forced_dataset: int, forced_bar: int
) -> None:
    """Draw (or take) the market and the first bar of lane k, open its account, and say that nothing happened yet."""
    zero = np.uint64(0)
    seed = rng.join(s[at.env_seed_low + k], s[at.env_seed_high + k])
    episode = np.uint64(np.int64(s[at.episode + k]))
    word_0, word_1, word_2, _ = rng.words_at(seed, zero, episode, rng.EPISODE_BLOCK)
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
    now = bars[bar]
    kernel.open_account(s, k, rng.episode_seed(seed, episode), table.start_equity, table)
    s[at.mark_price + k] = now.close
    s[at.clock + k] = now.timestamp + table.bar_ms
    s[at.sigma + k] = now.sigma
    s[at.median_volume + k] = now.median_volume
    if table.randomise:
        word_4, word_5, word_6, word_7 = rng.words_at(seed, zero, episode, rng.RANDOMISATION_BLOCK)
        fee_factor = _between(table.fee_low, table.fee_high, word_4)
        s[at.taker_fee + k] *= fee_factor
        s[at.maker_fee + k] *= fee_factor
        s[at.half_spread + k] *= _between(table.spread_low, table.spread_high, word_5)
        s[at.kappa + k] *= _between(table.slippage_low, table.slippage_high, word_6)
        s[at.latency + k] *= _between(table.latency_low, table.latency_high, word_7)
        if table.random_exposure:
            _hold_random_exposure(s, k, grid, rng.uniform(word_2))

    s[at.dataset + k] = dataset
    s[at.bar + k] = bar
    s[at.offset + k] = table.offset
    s[at.start + k] = bar
    s[at.stop + k] = min(last, bar + table.horizon) if table.horizon > 0 else last
    s[at.done + k] = 0.0
    s[at.was_done + k] = 0.0
    s[at.sharpe_mean + k] = 0.0
    s[at.sharpe_mean_square + k] = 0.0
    s[at.t + k] = bar - table.offset
    s[at.timestamp + k] = now.timestamp
    s[at.duration + k] = table.bar_ms
    s[at.qty_ordered + k] = 0.0
    s[at.qty_filled + k] = 0.0
    s[at.fill_price + k] = 0.0
    s[at.arrival_price + k] = 0.0
    s[at.filled + k] = 0.0
    s[at.rejected + k] = 0.0
    s[at.fee + k] = 0.0
    s[at.slippage_cost + k] = 0.0
    s[at.impact_cost + k] = 0.0
    s[at.latency_pnl + k] = 0.0
    s[at.gap_pnl + k] = 0.0
    s[at.bar_pnl + k] = 0.0
    s[at.funding + k] = 0.0
    s[at.liquidation_cost + k] = 0.0
    s[at.bad_debt + k] = 0.0
    s[at.log_return + k] = 0.0
    s[at.liquidated + k] = 0.0
    s[at.reward + k] = 0.0
    s[at.terminated + k] = 0.0
    s[at.truncated + k] = 0.0


@inlined
def _between(low: float, high: float, word: rng.Word) -> float:
    return low + (high - low) * rng.uniform(word)


@inlined
def _hold_random_exposure(s: Block, k: int, grid: Array, u: float) -> None:
    """Start with the position of an allowed action, bought at the close without cost."""
    allowed = 0
    for action in range(len(grid)):
        allowed += grid[action].allowed
    chosen = int(u * allowed)
    for action in range(len(grid)):
        if grid[action].allowed:
            if chosen == 0:
                s[at.target + k] = grid[action].target
            chosen -= 1
    target, price = s[at.target + k], s[at.mark_price + k]
    s[at.units + k] = target * s[at.equity + k] / price
    s[at.cash + k] = s[at.equity + k] - s[at.units + k] * price
    s[at.exposure + k] = target
    s[at.entry_price + k] = price
    s[at.entry_sigma + k] = s[at.sigma + k]


# --- a step --------------------------------------------------------------------------------------------------------


@compiled
def step_blocks(
    blocks: Array,
    count: int,
    tables: Array,
    bars: Array,
    features: Array,
    grid: Array,
    actions: Array,
    outcomes: Array,
    account_out: Array,
    window_out: Array,
) -> int:
    """Step every environment by its action; one that was done begins its next episode instead (next-step autoreset).

    blocks: of the first `count` environments. actions: [count] int64. Outputs: outcomes [28, count] float64 in the
    order of `OUTCOME_FIELDS`, account_out [count, 8] float32, window_out [count, T, F] float32 (T = 0: no windows).
    Returns -1, or the first environment whose action is out of range or masked; then nothing was changed.
    """
    prefer_wide_vectors()
    for i in range(count):
        action = actions[i]
        if action < 0 or action >= len(grid):
            return i
        if not grid[action].allowed and blocks[i // LANES, at.done + i % LANES] == 0.0:
            return i
    for block in range(len(blocks)):
        s = blocks[block]
        first = block * LANES
        n = min(LANES, count - first)
        for k in range(n):
            s[at.target + k] = grid[actions[first + k]].target
        _step_block(s, n, tables, bars, grid, False)
        kernel.observe_accounts(s, n, tables[0], account_out, first)
        _report(s, n, outcomes, first)
        _copy_windows(s, n, features, window_out, first)
    return -1


@compiled
def step_one(
    s: Block, tables: Array, bars: Array, features: Array, grid: Array, action: int, explicit: bool,
    account_out: Array, window_out: Array,
) -> tuple[Any, ...]:  # fmt: skip
    """Step the environment in lane 0 by an allowed action; returns its outcome in the order of `OUTCOME_FIELDS`.

    Numbers, except t and timestamp (integers), rejected, liquidated, terminated and truncated (booleans).
    explicit: take the draws that stand in the lane. account_out: [1, 8], window_out: [T, F]; both float32.
    """
    s[at.target] = grid[action].target
    _step_block(s, 1, tables, bars, grid, explicit)
    kernel.observe_accounts(s, 1, tables[0], account_out, 0)
    _copy_window(features, s[at.bar], window_out)
    return (
        np.int64(s[at.t]), np.int64(s[at.timestamp]), s[at.equity], s[at.cash], s[at.units], s[at.exposure],
        s[at.target], s[at.qty_ordered], s[at.qty_filled], s[at.fill_price], s[at.arrival_price], s[at.filled],
        s[at.rejected] > 0.0, s[at.fee], s[at.slippage_cost], s[at.impact_cost], s[at.latency_pnl], s[at.gap_pnl],
        s[at.bar_pnl], s[at.funding], s[at.liquidation_cost], s[at.bad_debt], s[at.log_return], s[at.drawdown],
        s[at.liquidated] > 0.0, s[at.reward], s[at.terminated] > 0.0, s[at.truncated] > 0.0,
    )  # fmt: skip


@inlined
def _step_block(s: Block, n: int, tables: Array, bars: Array, grid: Array, explicit: bool) -> None:
    """One step of n environments whose `target` is decided. explicit: take the draws in the lanes as they are."""
    rules = tables[0]  # what differs between markets stands in the lanes
    resets = 0
    for k in range(n):
        here, done = s[at.bar + k], s[at.done + k]
        # An environment that was done stands on its last bar: it goes through that bar again, and is then reset.
        s[at.was_done + k] = done
        resets += done > 0.0
        now, bar = bars[np.uint64(np.int64(here))], bars[np.uint64(np.int64(here + 1.0 - done))]
        s[at.sigma + k] = now.sigma
        s[at.median_volume + k] = now.median_volume
        s[at.timestamp + k] = bar.timestamp
        s[at.open + k] = bar.open
        s[at.high + k] = bar.high
        s[at.low + k] = bar.low
        s[at.close + k] = bar.close
        s[at.volume + k] = bar.volume
    kernel.order_exposures(s, n, rules)
    if not explicit and kernel.any_orders(s, n):
        kernel.draw(s, n, rules)
    kernel.advance(s, n, rules)
    _judge(s, n, rules)
    if resets > 0:
        for k in range(n):
            if s[at.was_done + k] > 0.0:
                s[at.episode + k] += 1.0
                _reset_lane(s, k, tables, bars, grid, -1, -1)


@inlined
def _judge(s: Block, n: int, settings: Record) -> None:
    """Reward, termination and truncation of the bar that the environments have just been through."""
    ruin_fraction, kind, plain = settings.ruin_fraction, settings.reward_kind, settings.plain_reward
    scale, clip, ruin_penalty = settings.reward_scale, settings.reward_clip, settings.ruin_penalty
    drawdown_penalty, variance_penalty = settings.drawdown_penalty, settings.variance_penalty
    for k in range(n):
        floor = ruin_fraction * s[at.initial_equity + k]
        ruined = (s[at.liquidated + k] > 0.0) | (s[at.equity + k] <= floor)
        s[at.bar + k] += 1.0
        s[at.t + k] = s[at.bar + k] - s[at.offset + k]
        at_end = s[at.bar + k] >= s[at.stop + k]
        s[at.terminated + k] = 1.0 if ruined else 0.0
        s[at.truncated + k] = 1.0 if at_end & (not ruined) else 0.0
        s[at.done + k] = 1.0 if ruined | at_end else 0.0
        s[at.scratch + k] = s[at.log_return + k]
    for k in range(n):
        floor = ruin_fraction * s[at.initial_equity + k]
        if s[at.equity + k] < floor:  # rare: the reward's logarithm has its own floor
            s[at.scratch + k] = math.log(max(s[at.equity + k], floor) / max(s[at.previous_equity + k], floor))
    if kind == rewards.EXCESS_LOG_RETURN:
        for k in range(n):
            held = math.log(s[at.mark_price + k] / s[at.previous_mark_price + k])
            s[at.scratch_too + k] = scale * s[at.scratch + k] - scale * held
    elif kind == rewards.DIFFERENTIAL_SHARPE:
        rate = settings.sharpe_rate
        for k in range(n):
            mean, mean_square, log_return = s[at.sharpe_mean + k], s[at.sharpe_mean_square + k], s[at.scratch + k]
            s[at.scratch_too + k] = rewards.differential_sharpe(mean, mean_square, log_return)
            s[at.sharpe_mean + k] = mean + rate * (log_return - mean)
            s[at.sharpe_mean_square + k] = mean_square + rate * (log_return * log_return - mean_square)
    else:
        for k in range(n):
            s[at.scratch_too + k] = scale * s[at.scratch + k]
    for k in range(n):
        rise = max(s[at.drawdown + k] - s[at.previous_drawdown + k], 0.0)
        s[at.reward + k] = rewards.shape(
            s[at.scratch_too + k], scale * s[at.scratch + k], rise, s[at.terminated + k] > 0.0, plain, scale, clip,
            ruin_penalty, drawdown_penalty, variance_penalty,
        )  # fmt: skip


@inlined
def _report(s: Block, n: int, outcomes: Array, first: int) -> None:
    """outcomes[:, first : first + n] = what happened, in the order of `OUTCOME_FIELDS`."""
    begin = np.uint64(first)  # unsigned indices spare a check for negative ones, and with it the loop stays a copy
    for j in range(len(OUTCOME_AT)):
        place = np.uint64(OUTCOME_AT[j])
        for k in range(n):
            outcomes[j, begin + np.uint64(k)] = s[place + np.uint64(k)]


# --- observations --------------------------------------------------------------------------------------------------


@inlined
def _copy_windows(s: Block, n: int, features: Array, out: Array, first: int) -> None:
    """out[first + k] [T, F] = the window that ends at the bar where environment k stands. T = 0: nothing."""
    for k in range(n):
        _copy_window(features, s[at.bar + k], out[np.uint64(first + k)])


@inlined
def _copy_window(features: Array, bar: float, out: Array) -> None:
    """out [T, F] = the rows of `features` that end at `bar`, inclusive."""
    begin = np.uint64(np.int64(bar) - out.shape[0] + 1)
    for row in range(out.shape[0]):
        for f in range(out.shape[1]):
            out[row, f] = features[begin + np.uint64(row), f]


@compiled
def gather_windows(features: Array, ends: Array, out: Array) -> None:
    """out[i] = the window of `features` that ends at ends[i], inclusive. ends: [B], out: [B, T, F]."""
    for i in range(len(ends)):
        _copy_window(features, ends[i], out[i])
