"""What any result has to stand beside: doing nothing, holding, a textbook rule, and the strategy's own positions at
other times.

Every baseline trades through the same fills, fees and draws as the strategy it is compared with.

Legend: N rows of the run.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from backtest.evaluation import RandomTiming, random_timing
from backtest.metrics import Floats, Ints
from backtest.results import Run
from backtest.runner import Progress, Sizing, Stretch, final_growth, quiet, run_series
from market_env.config import MarketConfig
from market_env.market import Market

SMA_FAST, SMA_SLOW = 50, 200  # bars; the textbook "golden cross"
SHIFTS = 500


def flat_targets(rows: int) -> Floats:
    """[N] never an order."""
    return np.full(rows, np.nan)


def buy_and_hold_targets(rows: int, *, exposure: float = 1.0) -> Floats:
    """[N] all in at the first decision, then nothing."""
    targets = np.full(rows, np.nan)
    targets[0] = exposure
    return targets


def moving_average(values: Floats, window: int) -> Floats:
    """Mean of the last `window` values; NaN before there are as many."""
    result = np.full(len(values), np.nan)
    if len(values) >= window:
        result[window - 1 :] = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)
    return result


def sma_cross_targets(close: Floats, first_row: int, *, fast: int = SMA_FAST, slow: int = SMA_SLOW) -> Floats:
    """Long while the fast average is above the slow one, else flat; orders only when that changes.

    close: closes up to the end of the run, with whatever history there is before it. first_row: where the run starts
    in it.
    """
    quick, slower = moving_average(close, fast), moving_average(close, slow)
    with np.errstate(invalid="ignore"):
        long = quick > slower  # NaN compares false: flat until both averages exist
    return changes_only(long[first_row:].astype(np.float64))


def changes_only(position: Floats) -> Floats:
    """[N] the position where it differs from the one before (at first: from flat), NaN elsewhere."""
    before = np.concatenate([[0.0], position[:-1]])
    return np.where(position != before, position, np.nan)


def held_position(targets: Floats) -> Floats:
    """[N] the last target asked for, 0 before the first: NaN targets carry on."""
    rows = np.where(np.isnan(targets), -1, np.arange(len(targets)))
    last = np.maximum.accumulate(rows)
    return np.where(last >= 0, targets[np.maximum(last, 0)], 0.0)


def circular_shifts(rows: int, *, count: int = SHIFTS, seed: int = 0) -> Ints:
    """Distinct shifts in 1..rows-1, at most `count`, in increasing order."""
    available = rows - 1
    if available <= count:
        return np.arange(1, rows, dtype=np.int64)
    draws = np.random.default_rng(seed).choice(available, size=count, replace=False)
    return np.sort(draws.astype(np.int64)) + 1


def standard_baselines(
    market: Market,
    config: MarketConfig,
    *,
    seeds: Sequence[int],
    history_close: Floats,
    stretch: Stretch | None = None,
) -> dict[str, Run]:
    """Buy-and-hold, SMA cross and flat on the same stretch and seeds.

    history_close: closes of all bars up to the end of the market, so the slow average is warm when the run starts.
    """
    where = stretch or Stretch.of(market)
    rows = where.stop - where.start
    first_row = len(history_close) - (len(market) - where.start)
    series = {
        "buy_and_hold": buy_and_hold_targets(rows, exposure=min(1.0, config.actions.max_leverage)),
        "sma_cross": sma_cross_targets(history_close, first_row)[:rows],
        "flat": flat_targets(rows),
    }
    return {
        name: run_series(targets, market, config, seeds=seeds, name=name, stretch=where)
        for name, targets in series.items()
    }


def shifted_timing(
    run: Run,
    market: Market,
    config: MarketConfig,
    *,
    sizing: Sizing = "exposure",
    flips_only: bool = False,
    stretch: Stretch | None = None,
    count: int = SHIFTS,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = quiet,
) -> RandomTiming | None:
    """The strategy's own positions, circularly shifted: same exposure, same turnover, other times.

    The series of positions is the representative path's; the last decision never fills, so it is left out of the
    circle. None where nothing was ever asked for, or the run is too short to shift.

    flips_only: orders are placed only where the position changes (as the strategy did); else every bar re-targets.
    """
    where = stretch or Stretch.of(market)
    path = run.representative
    held = held_position(run.accounts.target[path])[:-1]
    if len(held) < 3 or not held.any():
        return None
    seed_of_path = run.seeds[path]
    shifts = circular_shifts(len(held), count=count, seed=seed)

    def outcome(shift: int) -> tuple[float, float]:
        position = np.append(np.roll(held, shift), np.nan)
        targets = np.append(changes_only(position[:-1]), np.nan) if flips_only else position
        return final_growth(targets, market, config, seed=seed_of_path, sizing=sizing, stretch=where)

    own_growth, own_turnover = outcome(0)
    shown = progress(shifts.tolist())
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(outcome, shown))
    else:
        results = [outcome(shift) for shift in shown]
    found = np.array(results)
    return random_timing(
        shifts=shifts,
        log_growth=found[:, 0],
        turnover=found[:, 1],
        own_log_growth=own_growth,
        own_turnover=own_turnover,
    )
