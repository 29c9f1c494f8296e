"""Episodes as rows: the compiled loop that steps any number of environments in one call.

`MarketEnv` is the case of one row, `MarketVectorEnv` the case of B; both call `step_rows`, and a row never looks at
another, so row i of a batch is the single environment to the last bit.
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

EPISODE = np.dtype(
    [
        ("seed", np.uint64),  # of the environment
        ("episode", np.uint64),  # episodes since that seed was set
        ("dataset", np.int64),
        ("row", np.int64),  # current decision bar, in the stacked arrays
        ("start", np.int64),
        ("stop", np.int64),  # row at which the episode is truncated
        ("done", np.bool_),
        ("sharpe_mean", np.float64),
        ("sharpe_mean_square", np.float64),
    ],
    align=True,
)

DATASET = np.dtype(
    [
        ("offset", np.int64),  # of its first bar in the stacked arrays
        ("first", np.int64),  # first decision bar, in the stacked arrays
        ("end", np.int64),  # one past its last bar, in the stacked arrays
        ("duration", np.float64),  # of a bar, ms
        ("cumulative_weight", np.float64),  # of drawing this dataset or one before it
    ],
    align=True,
)

SETTINGS = np.dtype(
    [
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


@dataclass(frozen=True, eq=False)
class Stack:
    """Markets stacked into the arrays the compiled loop reads. M datasets, N bars in all, F features, A actions."""

    datasets: Rows  # [M] DATASET
    rules: Rows  # [M] RULES
    settings: Rows  # [1] SETTINGS
    bars: Rows  # [N] BAR
    features: NDArray[np.float32]  # [N, F]
    targets: NDArray[np.float64]  # [A]
    mask: NDArray[np.bool_]  # [A]

    @classmethod
    def build(cls, markets: Sequence[Market], config: MarketConfig) -> "Stack":
        """Stack the markets of one configuration. A dataset is drawn in proportion to the root of its length."""
        _check_compatible(markets, config)
        grid = ActionGrid.build(config.actions)
        datasets = np.zeros(len(markets), dtype=DATASET)
        lengths = np.array([len(market) - market.first_decision for market in markets], dtype=np.float64)
        datasets["cumulative_weight"] = np.cumsum(np.sqrt(lengths)) / np.sqrt(lengths).sum()
        datasets["cumulative_weight"][-1] = 1.0
        offset = 0
        for row, market in zip(datasets, markets, strict=True):
            row["offset"] = offset
            row["first"] = offset + market.first_decision
            row["end"] = offset + len(market)
            row["duration"] = float(market.bar_ms)
            offset += len(market)
        return cls(
            datasets=datasets,
            rules=np.concatenate([kernel.rules_for(config, market.instrument) for market in markets]),
            settings=_settings(config),
            bars=_one_array([market.bars for market in markets]).view(kernel.BAR)[:, 0],
            features=_one_array([market.features for market in markets]),
            targets=grid.targets,
            mask=grid.mask,
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


def _settings(config: MarketConfig) -> Rows:
    episode, reward, randomisation = config.episode, config.reward, config.randomisation
    settings = np.zeros(1, dtype=SETTINGS)
    row = settings[0]
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
    for field, name in (
        ("fee", "fee"),
        ("spread", "spread"),
        ("slippage", "volatility_slippage"),
        ("latency", "latency"),
    ):
        row[f"{field}_low"], row[f"{field}_high"] = getattr(randomisation, name)
    return settings


# --- compiled --------------------------------------------------------------------------------------------------------


@compiled
def reset_row(
    account: Record,
    episode: Record,
    settings: Record,
    datasets: Rows,
    bars: Rows,
    targets: Rows,
    mask: Rows,
    forced_dataset: int,
    forced_row: int,
) -> None:
    """Begin the episode numbered `episode.episode`: draw (or take) its dataset and first bar, open the account."""
    zero = np.uint64(0)
    word_0, word_1, word_2, _ = rng.words_at(episode.seed, zero, episode.episode, rng.EPISODE_BLOCK)
    dataset = forced_dataset
    if dataset < 0:
        dataset = 0
        while datasets[dataset].cumulative_weight <= rng.uniform(word_0):
            dataset += 1
    first, last = datasets[dataset].first, datasets[dataset].end - 1
    row = first
    if forced_row >= 0:
        row = forced_row
    elif settings.random_start:
        # Starts leave room for the horizon where the data allow it, and for one step always.
        latest = max(first, last - max(settings.horizon, 1))
        row = first + np.int64(rng.uniform(word_1) * (latest - first + 1))
    episode.dataset = dataset
    episode.row = row
    episode.start = row
    episode.stop = min(last, row + settings.horizon) if settings.horizon > 0 else last
    episode.done = False
    episode.sharpe_mean = 0.0
    episode.sharpe_mean_square = 0.0

    kernel.open_account(account, rng.episode_seed(episode.seed, episode.episode), settings.initial_equity)
    bar = bars[row]
    account.mark_price = bar.close
    account.clock = bar.timestamp + datasets[dataset].duration
    account.sigma = bar.sigma
    account.median_volume = bar.median_volume
    if settings.randomise:
        word_4, word_5, word_6, word_7 = rng.words_at(episode.seed, zero, episode.episode, rng.RANDOMISATION_BLOCK)
        account.fee_factor = _between(settings.fee_low, settings.fee_high, word_4)
        account.spread_factor = _between(settings.spread_low, settings.spread_high, word_5)
        account.slippage_factor = _between(settings.slippage_low, settings.slippage_high, word_6)
        account.latency_factor = _between(settings.latency_low, settings.latency_high, word_7)
        if settings.random_exposure:
            _hold_random_exposure(account, targets, mask, rng.uniform(word_2))


@inlined
def _between(low: float, high: float, word: rng.Word) -> float:
    return low + (high - low) * rng.uniform(word)


@compiled
def _hold_random_exposure(account: Record, targets: Rows, mask: Rows, u: float) -> None:
    """Start with the position of an allowed action, bought at the close without cost."""
    allowed = 0
    for action in range(len(targets)):
        allowed += mask[action]
    chosen = int(u * allowed)
    for action in range(len(targets)):
        if mask[action]:
            if chosen == 0:
                account.target = targets[action]
            chosen -= 1
    account.units = account.target * account.equity / account.mark_price
    account.cash = account.equity - account.units * account.mark_price
    account.exposure = account.target
    account.entry_price = account.mark_price
    account.entry_sigma = account.sigma


@compiled
def write_reset_record(
    account: Record, episode: Record, datasets: Rows, bars: Rows, values: Rows, i: int, record: Record
) -> None:
    """The record of a first observation: nothing happened yet. values: [B, 25], whose row i is `record`."""
    for column in range(values.shape[1]):
        values[i, column] = 0.0
    record.t = episode.row - datasets[episode.dataset].offset
    record.timestamp = bars[episode.row].timestamp
    record.equity = account.equity
    record.cash = account.cash
    record.units = account.units
    record.exposure = account.exposure
    record.target = account.target


# Rows are stepped in blocks that stay in the first-level cache, and the draws of a block are made together, in loops
# that vectorise. The loops over rows below pass rows, never arrays, to the functions they call: an array argument
# costs an atomic reference count, which per row would be a third of the time. Indices are unsigned, which spares the
# check for negative ones.
BLOCK = 128
_SMALLEST_VECTOR = 8  # fewer draws than this are made one by one


@compiled
def step_rows(
    accounts: Rows,
    episodes: Rows,
    settings: Rows,
    datasets: Rows,
    rules: Rows,
    bars: Rows,
    features: Rows,
    targets: Rows,
    mask: Rows,
    actions: Rows,
    explicit: bool,
    draws: Rows,
    records: Rows,
    values: Rows,
    account_out: Rows,
    window_out: Rows,
    rewards_out: Rows,
    terminated: Rows,
    truncated: Rows,
) -> int:
    """Step every row by its action; a row that was done begins its next episode instead (next-step autoreset).

    accounts, episodes, actions: [B]. draws: [B] DRAWS to work in; `explicit`: take them as given. Outputs: records [B]
    (and values [B, 25], the same memory), account_out [B, 8] float32, window_out [B, T, F] float32 (T = 0: no
    windows), rewards_out [B] float64, terminated, truncated [B] bool.
    Returns -1, or the first row whose action is out of range or masked; then nothing was changed.
    """
    batch = len(actions)
    for i in range(batch):
        action = actions[i]
        if action < 0 or action >= len(targets) or not (mask[action] or episodes[i].done):
            return i
    order = np.empty(BLOCK, np.uint64)
    vector = BLOCK if batch >= _SMALLEST_VECTOR else 0
    words = np.empty((7, vector), np.uint64)
    normals = np.empty((2, 2 * vector), np.float64)
    tails = np.empty(2 * vector, np.int64)
    setting = settings[0]
    for block in range(0, batch, BLOCK):
        first, last = np.uint64(block), np.uint64(min(block + BLOCK, batch))

        # Decide. `order` lists rows with an order from its front and rows without from its back, so that the branches
        # that depend on it are easy to predict.
        with_order, idle = np.uint64(0), last - first
        for i in range(first, last):
            episode = episodes[i]
            if episode.done:
                _restart(
                    accounts, episodes, settings, datasets, bars, targets, mask, i, records, values, rewards_out,
                    terminated, truncated,
                )  # fmt: skip
            else:
                account, now = accounts[i], bars[np.uint64(episode.row)]
                kernel.order_exposure(
                    account,
                    rules[np.uint64(episode.dataset)],
                    targets[np.uint64(actions[i])],
                    now.sigma,
                    now.median_volume,
                )
                places = np.uint64(account.order_quantity != 0.0)
                idle -= np.uint64(1) - places
                order[with_order if places else idle] = i
                with_order += places

        if not explicit:
            _draw(accounts, episodes, rules, bars, order, with_order, draws, words, normals, tails)

        # Fill, mark, judge.
        for k in range(last - first):
            if with_order <= k < idle:
                continue
            i = order[k]
            account, episode, record = accounts[i], episodes[i], records[i]
            rule, dataset = rules[np.uint64(episode.dataset)], datasets[np.uint64(episode.dataset)]
            before, bar = bars[np.uint64(episode.row)], bars[np.uint64(episode.row + 1)]
            kernel.advance(
                account, rule, bar.timestamp, bar.open, bar.high, bar.low, bar.close, bar.volume, dataset.duration,
                draws[i], record,
            )  # fmt: skip
            episode.row += 1
            record.t = episode.row - dataset.offset
            ruined = record.liquidated > 0.0 or account.equity <= setting.ruin_fraction * account.initial_equity
            rewards_out[i] = step_reward(account, episode, setting, record.log_return, before.close, bar.close, ruined)
            at_end = episode.row >= episode.stop
            terminated[i] = ruined
            truncated[i] = at_end and not ruined
            episode.done = ruined or at_end

        for i in range(first, last):
            (
                account_out[i, 0], account_out[i, 1], account_out[i, 2], account_out[i, 3],
                account_out[i, 4], account_out[i, 5], account_out[i, 6], account_out[i, 7],
            ) = kernel.observe_account(accounts[i], rules[np.uint64(episodes[i].dataset)])  # fmt: skip
    if window_out.shape[1] > 0:
        _copy_windows(episodes, features, window_out)
    return -1


@compiled
def _restart(
    accounts: Rows, episodes: Rows, settings: Rows, datasets: Rows, bars: Rows, targets: Rows, mask: Rows,
    i: int, records: Rows, values: Rows, rewards_out: Rows, terminated: Rows, truncated: Rows,
) -> None:  # fmt: skip
    """Begin the next episode of row i."""
    account, episode = accounts[i], episodes[i]
    episode.episode += np.uint64(1)
    reset_row(account, episode, settings[0], datasets, bars, targets, mask, -1, -1)
    write_reset_record(account, episode, datasets, bars, values, i, records[i])
    rewards_out[i] = 0.0
    terminated[i] = False
    truncated[i] = False


@compiled
def _draw(
    accounts: Rows, episodes: Rows, rules: Rows, bars: Rows, order: Rows, count: np.uint64, draws: Rows,
    words: Rows, normals: Rows, tails: Rows,
) -> None:  # fmt: skip
    """`kernel.draw_fill` for the rows order[:count], many at a time."""
    if count < _SMALLEST_VECTOR:
        for k in range(count):
            i = order[k]
            episode = episodes[i]
            kernel.draw_fill(
                accounts[i], rules[np.uint64(episode.dataset)], bars[np.uint64(episode.row + 1)].timestamp, draws[i]
            )
        return
    seeds, instruments, addresses = words[0], words[1], words[2]
    for k in range(count):
        i = order[k]
        episode = episodes[i]
        seeds[k] = accounts[i].seed
        instruments[k] = rules[np.uint64(episode.dataset)].instrument
        addresses[k] = np.uint64(np.int64(bars[np.uint64(episode.row + 1)].timestamp))
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
        i = order[k]
        draw = draws[i]
        draw.reject_u = rng.uniform(reject[k])
        draw.partial_u = rng.uniform(partial[k])
        draw.arrival_z = quantiles[k]
        draw.spread_z = quantiles[count + k]
        episode = episodes[i]
        kernel.draw_rare(
            accounts[i], rules[np.uint64(episode.dataset)], bars[np.uint64(episode.row + 1)].timestamp, draw
        )


@inlined
def step_reward(
    account: Record,
    episode: Record,
    settings: Record,
    log_return: float,
    close_before: float,
    close: float,
    ruined: bool,
) -> float:
    """Reward of the bar that led to the last mark. log_return: of the account; the closes are the instrument's."""
    floor = settings.ruin_fraction * account.initial_equity
    if account.equity < floor:
        log_return = rewards.floored_log_return(account.equity, account.previous_equity, floor)
    scaled = settings.reward_scale * log_return
    base = scaled
    if settings.reward_kind == rewards.EXCESS_LOG_RETURN:
        base = scaled - settings.reward_scale * math.log(close / close_before)
    elif settings.reward_kind == rewards.DIFFERENTIAL_SHARPE:
        mean, mean_square = episode.sharpe_mean, episode.sharpe_mean_square
        base = rewards.differential_sharpe(mean, mean_square, log_return)
        episode.sharpe_mean = mean + settings.sharpe_rate * (log_return - mean)
        episode.sharpe_mean_square = mean_square + settings.sharpe_rate * (log_return * log_return - mean_square)
    return rewards.shape(
        base, scaled, max(account.drawdown - account.previous_drawdown, 0.0), ruined, settings.plain_reward,
        settings.reward_scale, settings.reward_clip, settings.ruin_penalty, settings.drawdown_penalty,
        settings.variance_penalty,
    )  # fmt: skip


@compiled
def _copy_windows(episodes: Rows, features: Rows, window_out: Rows) -> None:
    """window_out[i] [T, F] = the window that ends at the row where episode i stands."""
    length, width = window_out.shape[1], window_out.shape[2]
    for i in range(len(episodes)):
        first = episodes[i].row - length + 1
        for k in range(length):
            for f in range(width):
                window_out[i, k, f] = features[first + k, f]


@compiled
def reset_rows(
    accounts: Rows,
    episodes: Rows,
    settings: Rows,
    datasets: Rows,
    rules: Rows,
    bars: Rows,
    features: Rows,
    targets: Rows,
    mask: Rows,
    forced_dataset: int,
    forced_row: int,
    records: Rows,
    values: Rows,
    account_out: Rows,
    window_out: Rows,
) -> None:
    """Begin the episode each row's number names; arguments as in `step_rows` and `reset_row`."""
    for i in range(len(accounts)):
        reset_row(accounts[i], episodes[i], settings[0], datasets, bars, targets, mask, forced_dataset, forced_row)
        write_reset_record(accounts[i], episodes[i], datasets, bars, values, i, records[i])
        (
            account_out[i, 0], account_out[i, 1], account_out[i, 2], account_out[i, 3],
            account_out[i, 4], account_out[i, 5], account_out[i, 6], account_out[i, 7],
        ) = kernel.observe_account(accounts[i], rules[episodes[i].dataset])  # fmt: skip
    if window_out.shape[1] > 0:
        _copy_windows(episodes, features, window_out)


@compiled
def gather_windows(features: Rows, rows: Rows, out: Rows) -> None:
    """out[i] = the window of `features` that ends at rows[i], inclusive. rows: [B], out: [B, T, F]."""
    length, width = out.shape[1], out.shape[2]
    for i in range(len(rows)):
        first = rows[i] - length + 1
        for k in range(length):
            for f in range(width):
                out[i, k, f] = features[first + k, f]
