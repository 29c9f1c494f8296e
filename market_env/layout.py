"""Where the numbers of an account live in memory.

Accounts are stored in blocks of `LANES`, field by field: a block is a float64 vector in which field f of account k
stands at `at.f + k`. Loops over the accounts of a block then run over consecutive numbers, eight of which fit a vector
register; a single account is a block of which only lane 0 is used, and goes through the same code.

Everything is a float64, also times (epoch ms), counters and flags: they are exact below 2**53.
"""

import math
from collections import namedtuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 64
Block = NDArray[np.float64]  # [len(FIELDS) * LANES]

# What an account remembers from bar to bar. Money in the quote currency.
ACCOUNT_FIELDS = (
    "seed_low",  # 32 bits each of the seed of the fill draws
    "seed_high",
    "cash",
    "units",
    "equity",  # at the last mark
    "previous_equity",  # at the mark before it
    "mark_price",  # last close
    "previous_mark_price",
    "clock",  # epoch ms of the last close
    "initial_equity",
    "peak_equity",
    "exposure",  # position value / equity at the last mark
    "drawdown",  # fraction lost from the peak at the last mark
    "previous_drawdown",
    "log_growth",  # sum of log returns = ln(equity / initial equity)
    "accrued_interest",  # part of negative cash that is interest, which bears no interest
    "entry_price",  # average, costs included
    "entry_sigma",  # bar volatility when the position was opened
    "bars_held",  # since the position was opened or changed side
    "sigma",  # bar volatility at the last decision
    "median_volume",  # at the last decision
    "target",  # of the last decision
    "fill_fraction",  # of the last order
    "order_quantity",  # signed, pending for the next bar; 0: none
    "order_limit",  # limit price of the pending order; 0: market order
    "order_all_in",  # 1: the quantity is whatever margin allows at the fill
)

# What an account is charged and how it may trade: facts of its instrument, randomised or not.
TERMS_FIELDS = (
    "instrument",  # address of the instrument's draws
    "half_spread",
    "kappa",
    "latency",
    "taker_fee",
    "maker_fee",
    "lot_size",
    "min_notional",
    "tick_size",
)

# The random numbers of one fill: uniforms in (0, 1) and standard normals.
DRAW_FIELDS = ("reject_u", "partial_u", "fraction_u", "touch_u", "arrival_z", "spread_z")

# The bar an account goes through. timestamp: its open, epoch ms; duration in ms.
BAR_INPUT_FIELDS = ("timestamp", "open", "high", "low", "close", "volume", "duration")

# What happened in that bar, beside the state it left.
EVENT_FIELDS = (
    "qty_ordered",
    "qty_filled",
    "fill_price",
    "arrival_price",
    "filled",  # fraction of this bar's order that filled
    "rejected",
    "fee",
    "slippage_cost",
    "impact_cost",
    "latency_pnl",
    "gap_pnl",
    "bar_pnl",
    "funding",
    "liquidation_cost",
    "bad_debt",
    "log_return",
    "liquidated",
)

# Numbers passed from one pass over the lanes to the next.
WORK_FIELDS = (
    "units_before",
    "start_price",  # from here the position that is held to the close is measured
    "exit_price",  # of a liquidation; 0: none
    "fillable",  # fraction of the order that the bar would fill
    "fee_rate",
    "friction",  # half-spread and slippage, fraction of the price
    "span_start",  # the time and price for which carrying costs are charged
    "span_end",
    "span_price",
    "scratch",
    "scratch_too",  # right behind `scratch`: together they hold two numbers per lane
)

# One environment's episode (`rows.py`).
EPISODE_FIELDS = (
    "env_seed_low",
    "env_seed_high",
    "episode",  # since that seed was set
    "dataset",
    "bar",  # where it stands: the current decision bar, in the stacked arrays
    "offset",  # of its market's first bar there
    "start",
    "stop",  # bar at which the episode is truncated
    "done",  # 1: the next step begins another episode
    "was_done",
    "sharpe_mean",
    "sharpe_mean_square",
    "t",  # bar within its market
    "reward",
    "terminated",
    "truncated",
)

FIELDS = (
    *ACCOUNT_FIELDS, *TERMS_FIELDS, *DRAW_FIELDS, *BAR_INPUT_FIELDS, *EVENT_FIELDS, *WORK_FIELDS, *EPISODE_FIELDS
)  # fmt: skip
BLOCK_SIZE = len(FIELDS) * LANES

# `at.cash` is the place of lane 0's cash in a block: constants for the compiled code.
at: Any = namedtuple("at", FIELDS)(*(number * LANES for number in range(len(FIELDS))))  # type: ignore

# One bar of an account's life as the drivers report it, column by column, and where each column stands in a block.
RECORD_FIELDS = (
    "t", "timestamp", "equity", "cash", "units", "exposure", "target", "qty_ordered", "qty_filled", "fill_price",
    "arrival_price", "fill_fraction", "rejected", "fee", "slippage_cost", "impact_cost", "latency_pnl", "gap_pnl",
    "bar_pnl", "funding", "liquidation_cost", "bad_debt", "log_return", "drawdown", "liquidated",
)  # fmt: skip
OUTCOME_FIELDS = (*RECORD_FIELDS, "reward", "terminated", "truncated")
OUTCOME_AT: tuple[int, ...] = tuple(
    getattr(at, "filled" if name == "fill_fraction" else name) for name in OUTCOME_FIELDS
)


_CACHE_LINE = 64  # bytes, and one vector of eight numbers


def aligned(*shape: int) -> NDArray[np.float64]:
    """Zeros that begin at a cache line, so that no vector of a loop over lanes straddles two."""
    size = math.prod(shape)
    memory = np.zeros(size + _CACHE_LINE // 8)
    skip = -memory.ctypes.data % _CACHE_LINE // 8
    return memory[skip : skip + size].reshape(shape)


def new_blocks(count: int) -> NDArray[np.float64]:
    """Memory for `count` accounts: [ceil(count / LANES), BLOCK_SIZE]."""
    return aligned(-(-count // LANES), BLOCK_SIZE)


def new_block() -> Block:
    """Memory for one block."""
    return aligned(BLOCK_SIZE)


def read_lane(block: Block, names: tuple[str, ...], lane: int = 0) -> dict[str, float]:
    """Fields of one account as plain numbers."""
    return {name: float(block[getattr(at, name) + lane]) for name in names}


def write_lane(block: Block, values: dict[str, float], lane: int = 0) -> None:
    """Set fields of one account."""
    for name, value in values.items():
        block[getattr(at, name) + lane] = value
