"""Fill and account arithmetic: the single source of truth, driven by every loop of the system.

The session (backtest, paper trading), the Gymnasium env and the vector env all call `order_exposures`, `draw` and
`advance` below, so the same bars, targets and seed give the same ledger to the last bit of a float64. State lives in
blocks of accounts (`layout.py`); every function here goes over the first `n` accounts ("lanes") of a block, and no lane
looks at another. Each pass is a short loop of plain arithmetic that chooses values instead of branching, because such
loops run on eight lanes at once; what is rare (tails, partial fills, liquidations) is done lane by lane.

The clock: a decision is taken on the close of bar t. `order_exposures` fixes its quantity there. `advance` fills it in
bar t+1 from that bar's open and marks the account at its close.

One bar, in order: carrying costs since the last close - liquidation if the open gaps through - the fill -
liquidation if the wick reaches the liquidation price - carrying costs within the bar - mark at the close.
"""

import math
from typing import Any

import numpy as np

from market_env import costs, fills, rng
from market_env._compile import compiled, inlined, prefer_wide_vectors
from market_env.config import BPS, MarketConfig
from market_env.instrument import Instrument
from market_env.layout import LANES, OUTCOME_AT, RECORD_FIELDS, TERMS_FIELDS, Block, at

Array = np.ndarray[Any, Any]
Record = Any  # a row of a structured array, by reference

# The assumptions of a configuration and an instrument. The instrument's part is copied into the lanes as their terms.
RULES = np.dtype(
    [
        ("stochastic", np.bool_),
        ("limit_orders", np.bool_),
        ("perpetual", np.bool_),
        ("enforce_margin", np.bool_),
        ("reject_probability", np.float64),
        ("partial_probability", np.float64),
        ("touch_probability", np.float64),
        ("volume_cap", np.float64),
        ("impact", np.float64),
        ("cost_cap", np.float64),
        ("short_rate", np.float64),
        ("debt_rate", np.float64),
        ("funding_rate", np.float64),
        ("funding_interval", np.float64),
        ("max_leverage", np.float64),
        ("maintenance", np.float64),
        ("liquidation_fee", np.float64),
        ("no_trade_band", np.float64),
        ("limit_offset", np.float64),
        *((name, np.float64) for name in TERMS_FIELDS),
    ],
    align=True,
)

# One bar of a prepared market: a cache line. sigma, median_volume: known at its close; timestamp: its open, epoch ms.
BAR_FIELDS = ("open", "high", "low", "close", "volume", "sigma", "median_volume", "timestamp")
BAR = np.dtype([(name, np.float64) for name in BAR_FIELDS])

_SMALLEST_EQUITY_FRACTION = 1e-12  # of the initial equity: floor inside the logarithm of a wiped-out account
_MEAN_ABSOLUTE_NORMAL = math.sqrt(2.0 / math.pi)


def rules_for(config: MarketConfig, instrument: Instrument) -> Array:
    """The constants of one instrument under one configuration, as a RULES array of one row.

    Deterministic mode has no cost but the fee: spread, impact, latency, interest and funding are off.
    """
    fill, cost, margin = config.fills, config.costs, config.margin
    stochastic = fill.mode == "stochastic"
    rules = np.zeros(1, dtype=RULES)
    row = rules[0]
    row["instrument"] = rng.instrument_key(instrument.symbol)
    row["stochastic"] = stochastic
    row["limit_orders"] = fill.order_type == "limit"
    row["perpetual"] = cost.perpetual
    row["enforce_margin"] = margin.enforce
    row["touch_probability"] = fill.touch_fill_probability if stochastic else 0.0
    row["cost_cap"] = fill.cost_cap
    row["taker_fee"] = cost.taker_fee_bps * BPS
    row["maker_fee"] = cost.maker_fee_bps * BPS
    row["funding_interval"] = cost.funding_interval_hours * 3_600_000.0
    if stochastic:
        row["reject_probability"] = fill.reject_probability
        row["partial_probability"] = fill.partial_probability
        row["volume_cap"] = fill.volume_cap
        row["latency"] = fill.latency_fraction
        row["half_spread"] = instrument.half_spread_fraction
        row["kappa"] = fill.volatility_slippage
        row["impact"] = fill.impact_coefficient
        row["short_rate"] = cost.short_interest_annual / costs.MILLISECONDS_PER_YEAR
        row["debt_rate"] = cost.margin_interest_annual / costs.MILLISECONDS_PER_YEAR
        row["funding_rate"] = cost.funding_rate
    row["max_leverage"] = config.actions.max_leverage
    row["maintenance"] = margin.maintenance
    row["liquidation_fee"] = margin.liquidation_fee_bps * BPS
    row["no_trade_band"] = config.actions.no_trade_band
    row["limit_offset"] = fill.limit_offset_bps * BPS
    row["lot_size"] = instrument.lot_size
    row["min_notional"] = instrument.min_notional
    row["tick_size"] = instrument.tick_size
    return rules


# --- account -------------------------------------------------------------------------------------------------------


@inlined
def open_account(s: Block, k: int, seed: rng.Word, initial_equity: float, rules: Record) -> None:
    """Make lane k a fresh account: cash only, nothing pending, nothing remembered, on the terms of `rules`."""
    s[at.seed_low + k] = rng.low_half(seed)
    s[at.seed_high + k] = rng.high_half(seed)
    s[at.cash + k] = initial_equity
    s[at.units + k] = 0.0
    s[at.equity + k] = initial_equity
    s[at.previous_equity + k] = initial_equity
    s[at.mark_price + k] = 0.0
    s[at.previous_mark_price + k] = 0.0
    s[at.clock + k] = 0.0
    s[at.initial_equity + k] = initial_equity
    s[at.peak_equity + k] = initial_equity
    s[at.exposure + k] = 0.0
    s[at.drawdown + k] = 0.0
    s[at.previous_drawdown + k] = 0.0
    s[at.log_growth + k] = 0.0
    s[at.accrued_interest + k] = 0.0
    s[at.entry_price + k] = 0.0
    s[at.entry_sigma + k] = 0.0
    s[at.bars_held + k] = 0.0
    s[at.sigma + k] = 0.0
    s[at.median_volume + k] = 0.0
    s[at.target + k] = 0.0
    s[at.fill_fraction + k] = 1.0
    s[at.order_quantity + k] = 0.0
    s[at.order_limit + k] = 0.0
    s[at.order_all_in + k] = 0.0
    s[at.instrument + k] = rules.instrument
    s[at.half_spread + k] = rules.half_spread
    s[at.kappa + k] = rules.kappa
    s[at.latency + k] = rules.latency
    s[at.taker_fee + k] = rules.taker_fee
    s[at.maker_fee + k] = rules.maker_fee
    s[at.lot_size + k] = rules.lot_size
    s[at.min_notional + k] = rules.min_notional
    s[at.tick_size + k] = rules.tick_size


@inlined
def mark(s: Block, n: int) -> None:
    """Value the accounts at the bar's close.

    An account with nothing left owes no more than it has: it is emptied, and the shortfall is bad debt.
    """
    for k in range(n):
        close, cash, units = s[at.close + k], s[at.cash + k], s[at.units + k]
        before, peak, liquidated = s[at.equity + k], s[at.peak_equity + k], s[at.liquidated + k]
        bars_held = s[at.bars_held + k]
        value = cash + units * close
        equity = max(value, 0.0)
        wiped_out = value <= 0.0
        units = 0.0 if wiped_out else units
        floor = _SMALLEST_EQUITY_FRACTION * s[at.initial_equity + k]
        peak = max(peak, equity)
        s[at.scratch + k] = max(equity, floor) / max(before, floor)
        s[at.bad_debt + k] = max(-value, 0.0)
        s[at.liquidated + k] = 1.0 if wiped_out & (before > 0.0) else liquidated
        s[at.cash + k] = 0.0 if wiped_out else cash
        s[at.units + k] = units
        s[at.previous_equity + k] = before
        s[at.previous_drawdown + k] = s[at.drawdown + k]
        s[at.previous_mark_price + k] = s[at.mark_price + k]
        s[at.equity + k] = equity
        s[at.mark_price + k] = close
        s[at.clock + k] = s[at.timestamp + k] + s[at.duration + k]
        s[at.peak_equity + k] = peak
        s[at.exposure + k] = units * close / max(equity, floor)
        s[at.drawdown + k] = 1.0 - equity / peak
        s[at.bars_held + k] = bars_held + 1.0 if units != 0.0 else 0.0
    for k in range(n):
        log_return = math.log(s[at.scratch + k])
        s[at.log_return + k] = log_return
        s[at.log_growth + k] += log_return


# --- the decision, at the close of bar t ---------------------------------------------------------------------------


@inlined
def order_exposures(s: Block, n: int, rules: Record) -> None:
    """Order the difference to each lane's `target` exposure: target * E / C - units, unless inside the no-trade band.

    The lanes' target, sigma and median_volume are those of the decision.
    """
    band = rules.no_trade_band
    for k in range(n):
        target = s[at.target + k]
        quantity = target * s[at.equity + k] / s[at.mark_price + k] - s[at.units + k]
        wanted = (target == 0.0) | (abs(target - s[at.exposure + k]) >= band)
        s[at.order_quantity + k] = quantity if wanted else 0.0
        s[at.order_all_in + k] = 0.0
    _place(s, n, rules)


@inlined
def order_units(s: Block, n: int, rules: Record) -> None:
    """Order the difference to each lane's `target` in units."""
    for k in range(n):
        s[at.order_quantity + k] = s[at.target + k] - s[at.units + k]
        s[at.order_all_in + k] = 0.0
    _place(s, n, rules)


@inlined
def order_all_in(s: Block, n: int, rules: Record) -> None:
    """Order as much as margin allows at the fill (target +1 or -1), or close the position (target 0).

    The one kind of order whose quantity is not fixed at the decision: what it costs is known at the fill only.
    The nominal quantity is what the close would buy.
    """
    for k in range(n):
        target, units = s[at.target + k], s[at.units + k]
        nominal = target * s[at.equity + k] / s[at.mark_price + k] - units
        adds = nominal * target > 0.0  # not yet in
        s[at.order_quantity + k] = (nominal if adds else 0.0) if target != 0.0 else -units
        s[at.order_all_in + k] = 1.0 if target != 0.0 else 0.0
    _place(s, n, rules)


@inlined
def _place(s: Block, n: int, rules: Record) -> None:
    """Round the pending orders to lots, drop those under the smallest order, and price limit orders."""
    for k in range(n):
        quantity = s[at.order_quantity + k]
        size = fills.round_to_lot(abs(quantity), s[at.lot_size + k])
        size = 0.0 if size * s[at.mark_price + k] < s[at.min_notional + k] else size
        s[at.order_quantity + k] = size if quantity >= 0.0 else -size
        s[at.order_limit + k] = 0.0
    if rules.limit_orders:
        for k in range(n):
            if s[at.order_quantity + k] != 0.0:
                s[at.order_limit + k] = _limit_price(
                    s[at.mark_price + k], s[at.order_quantity + k] > 0.0, rules.limit_offset, s[at.tick_size + k]
                )


@inlined
def _limit_price(close: float, buy: bool, offset: float, tick: float) -> float:
    """Limit price `offset` away from the close on the passive side, rounded to the tick away from the market."""
    price = close * (1.0 - offset) if buy else close * (1.0 + offset)
    if tick > 0.0:
        ticks = price / tick
        price = (math.floor(ticks + 1e-9) if buy else math.ceil(ticks - 1e-9)) * tick
    return price


# --- randomness ----------------------------------------------------------------------------------------------------


@inlined
def draw(s: Block, n: int, rules: Record) -> None:
    """The draws of the pending orders, addressed by (seed, instrument, timestamp of the bar that fills them)."""
    if not rules.stochastic:
        return
    for k in range(n):
        word_0, word_1, word_2, word_3 = rng.words_at(
            rng.join(s[at.seed_low + k], s[at.seed_high + k]),
            np.uint64(np.int64(s[at.instrument + k])),
            np.uint64(np.int64(s[at.timestamp + k])),
            rng.FILL_BLOCK,
        )
        s[at.reject_u + k] = rng.uniform(word_0)
        s[at.partial_u + k] = rng.uniform(word_1)
        s[at.arrival_z + k] = rng.uniform(word_2)
        s[at.spread_z + k] = rng.uniform(word_3)
    rng.normals(s, at.arrival_z, n, at.scratch)
    rng.normals(s, at.spread_z, n, at.scratch)
    for k in range(n):
        # Few fills need these: the fraction of a partial fill, the luck of a limit order that is touched.
        if s[at.partial_u + k] < rules.partial_probability or rules.limit_orders:
            word_0, word_1, _, _ = rng.words_at(
                rng.join(s[at.seed_low + k], s[at.seed_high + k]),
                np.uint64(np.int64(s[at.instrument + k])),
                np.uint64(np.int64(s[at.timestamp + k])),
                rng.RARE_FILL_BLOCK,
            )
            s[at.fraction_u + k] = rng.uniform(word_0)
            s[at.touch_u + k] = rng.uniform(word_1)


# --- the bar that follows ------------------------------------------------------------------------------------------


@inlined
def advance(s: Block, n: int, rules: Record) -> None:
    """Take the accounts through the bars in their lanes: fill the pending orders from the open, mark at the close.

    The draws of the pending orders stand in the lanes already (unread in deterministic mode).
    """
    _enter_bar(s, n, rules)
    if any_orders(s, n):
        if rules.limit_orders:
            _rest(s, n, rules)
        else:
            _arrive(s, n, rules)
        _execute(s, n, rules)
    else:
        _pass(s, n)
    _liquidate(s, n, rules)
    _hold(s, n, rules)
    mark(s, n)


@inlined
def any_orders(s: Block, n: int) -> bool:
    """Whether any of the accounts has an order pending."""
    orders = 0
    for k in range(n):
        orders += s[at.order_quantity + k] != 0.0
    return orders > 0


@inlined
def _pass(s: Block, n: int) -> None:
    """The events of a bar without orders: none."""
    for k in range(n):
        s[at.rejected + k] = 0.0
        s[at.fill_price + k] = 0.0
        s[at.qty_filled + k] = 0.0
        s[at.fee + k] = 0.0
        s[at.slippage_cost + k] = 0.0
        s[at.impact_cost + k] = 0.0
        s[at.filled + k] = 0.0
        s[at.arrival_price + k] = 0.0
        s[at.latency_pnl + k] = 0.0


@inlined
def _enter_bar(s: Block, n: int, rules: Record) -> None:
    """From the last close to the open: what the gap earned and cost, and liquidation if it went too far."""
    for k in range(n):
        units, open_, price = s[at.units + k], s[at.open + k], s[at.mark_price + k]
        s[at.units_before + k] = units
        s[at.gap_pnl + k] = units * (open_ - price)
        s[at.start_price + k] = open_
        s[at.exit_price + k] = 0.0
        s[at.funding + k] = 0.0
        s[at.qty_ordered + k] = s[at.order_quantity + k]
        s[at.span_start + k] = s[at.clock + k]
        s[at.span_end + k] = s[at.timestamp + k]
        s[at.span_price + k] = price
    _carry(s, n, rules)
    if rules.enforce_margin:
        maintenance = rules.maintenance
        for k in range(n):
            open_ = s[at.open + k]
            breach = costs.breaches_maintenance(s[at.cash + k], s[at.units + k], open_, maintenance)
            s[at.exit_price + k] = open_ if breach else 0.0


@inlined
def _carry(s: Block, n: int, rules: Record) -> None:
    """Charge funding or interest for holding position and debt over (span_start, span_end] at span_price.

    Positions that were liquidated in this bar are not charged.
    """
    if rules.perpetual:
        rate, interval = rules.funding_rate, rules.funding_interval
        for k in range(n):
            count = costs.settlements_between(s[at.span_start + k], s[at.span_end + k], interval)
            cost = count * rate * s[at.units + k] * s[at.span_price + k]
            cost = cost if s[at.exit_price + k] == 0.0 else 0.0
            s[at.cash + k] -= cost
            s[at.funding + k] += cost
    else:
        short_rate, debt_rate = rules.short_rate, rules.debt_rate
        for k in range(n):
            # Interest bears no interest: while there is debt, what was charged on it is kept apart.
            cash, accrued = s[at.cash + k], s[at.accrued_interest + k]
            accrued = accrued if cash < 0.0 else 0.0
            debt = max(-(cash + accrued), 0.0)
            elapsed = s[at.span_end + k] - s[at.span_start + k]
            cost = costs.simple_interest(s[at.units + k], debt, s[at.span_price + k], elapsed, short_rate, debt_rate)
            cost = cost if s[at.exit_price + k] == 0.0 else 0.0
            s[at.accrued_interest + k] = accrued + cost
            s[at.cash + k] = cash - cost
            s[at.funding + k] += cost


@inlined
def _arrive(s: Block, n: int, rules: Record) -> None:
    """Market orders: how much of each the bar fills, at which arrival price, fee and friction."""
    if not rules.stochastic:
        for k in range(n):
            s[at.rejected + k] = 0.0
            s[at.fillable + k] = 1.0
            s[at.arrival_price + k] = s[at.open + k]
            s[at.fee_rate + k] = s[at.taker_fee + k]
            s[at.friction + k] = 0.0
        return
    _limit_fillable(s, n, rules)
    for k in range(n):
        s[at.scratch + k] = fills.arrival_exponent(s[at.sigma + k], s[at.latency + k], s[at.arrival_z + k])
    for k in range(n):
        s[at.scratch + k] = math.exp(s[at.scratch + k])
    for k in range(n):
        s[at.arrival_price + k] = fills.arrival_price(s[at.open + k], s[at.low + k], s[at.high + k], s[at.scratch + k])
        s[at.fee_rate + k] = s[at.taker_fee + k]
        s[at.friction + k] = fills.spread_slippage(
            s[at.half_spread + k], s[at.kappa + k], s[at.sigma + k], s[at.spread_z + k]
        )


@inlined
def _limit_fillable(s: Block, n: int, rules: Record) -> None:
    """Rejection, volume cap and partial fills: the fraction of each order that can fill."""
    reject_probability, volume_cap = rules.reject_probability, rules.volume_cap
    for k in range(n):
        rejected = (s[at.reject_u + k] < reject_probability) & (s[at.order_quantity + k] != 0.0)
        fraction = fills.volume_cap_fraction(
            abs(s[at.order_quantity + k]), s[at.volume + k], s[at.median_volume + k], volume_cap
        )
        s[at.rejected + k] = 1.0 if rejected & (s[at.exit_price + k] == 0.0) else 0.0
        s[at.fillable + k] = 0.0 if rejected else fraction
    for k in range(n):
        if s[at.partial_u + k] < rules.partial_probability:
            s[at.fillable + k] *= rng.beta_2_2(s[at.fraction_u + k])


@inlined
def _rest(s: Block, n: int, rules: Record) -> None:
    """Limit orders: where each fills, if it does; lane by lane.

    A resting order may fill after the wick: the position held before is tested against it first (the stop comes first).
    """
    if rules.stochastic:
        _limit_fillable(s, n, rules)
    else:
        for k in range(n):
            s[at.rejected + k] = 0.0
            s[at.fillable + k] = 1.0
    _test_wick(s, n, rules)
    for k in range(n):
        order = s[at.order_quantity + k]
        arrival = s[at.open + k]
        s[at.fee_rate + k] = s[at.taker_fee + k]
        s[at.friction + k] = 0.0
        if order != 0.0:
            touched = rules.stochastic and s[at.touch_u + k] < rules.touch_probability
            arrival = fills.limit_fill_price(
                1.0 if order > 0.0 else -1.0, s[at.order_limit + k], s[at.open + k], s[at.low + k], s[at.high + k],
                s[at.tick_size + k], touched,
            )  # fmt: skip
            if arrival == 0.0:
                arrival = s[at.open + k]
                s[at.fillable + k] = 0.0
            elif arrival != s[at.open + k]:
                s[at.fee_rate + k] = s[at.maker_fee + k]
        s[at.arrival_price + k] = arrival


@inlined
def _execute(s: Block, n: int, rules: Record) -> None:
    """Fill the orders: impact, price, initial margin, the exchange of cash for units, the average entry price."""
    impact = 0.0 if rules.limit_orders else rules.impact
    cost_cap, max_leverage, enforce = rules.cost_cap, rules.max_leverage, rules.enforce_margin
    for k in range(n):
        order, fillable, exit_price = s[at.order_quantity + k], s[at.fillable + k], s[at.exit_price + k]
        cash, units, arrival, open_ = s[at.cash + k], s[at.units + k], s[at.arrival_price + k], s[at.open + k]
        fee_rate, friction, lot = s[at.fee_rate + k], s[at.friction + k], s[at.lot_size + k]
        fill_fraction = s[at.fill_fraction + k]
        ordered = abs(order)
        side = 1.0 if order >= 0.0 else -1.0
        fraction = fillable if exit_price == 0.0 else 0.0
        quantity = fills.round_to_lot(fraction * ordered, lot)
        pressure = fills.square_root_impact(impact, s[at.sigma + k], quantity, s[at.median_volume + k])
        cost = min(friction + pressure, cost_cap)
        spread = min(friction, cost)
        price = arrival * (1.0 + side * cost)
        # The cost per unit stays that of the order before this cut: an upper bound that keeps the form closed.
        affordable = costs.affordable_quantity(side, cash, units, arrival, price, fee_rate, max_leverage)
        all_in = (s[at.order_all_in + k] > 0.0) & (ordered > 0.0)
        wanted = fraction * affordable if all_in else quantity
        cut = min(wanted, affordable)
        quantity = fills.round_to_lot(cut if enforce | all_in else wanted, lot)

        fills_something = quantity > 0.0
        arrived = (ordered > 0.0) & (fraction > 0.0)
        filled = quantity / (ordered if ordered > 0.0 else 1.0)
        s[at.fill_price + k] = price if fills_something else 0.0
        s[at.qty_filled + k] = side * quantity if fills_something else 0.0
        s[at.fee + k] = fee_rate * quantity * price
        s[at.slippage_cost + k] = quantity * arrival * spread
        s[at.impact_cost + k] = quantity * arrival * (cost - spread)
        s[at.filled + k] = filled
        s[at.fill_fraction + k] = filled if ordered > 0.0 else fill_fraction
        s[at.start_price + k] = arrival if arrived else open_
        s[at.arrival_price + k] = arrival if arrived else 0.0
    for k in range(n):
        quantity, price, before = s[at.qty_filled + k], s[at.fill_price + k], s[at.units + k]
        entry, entry_sigma, bars_held = s[at.entry_price + k], s[at.entry_sigma + k], s[at.bars_held + k]
        sigma = s[at.sigma + k]
        units = before + quantity
        s[at.latency_pnl + k] = s[at.units_before + k] * (s[at.start_price + k] - s[at.open + k])
        s[at.cash + k] -= quantity * price + s[at.fee + k]
        s[at.units + k] = units
        traded = quantity != 0.0
        turned = traded & (before * units <= 0.0)  # opened, closed or turned over
        added = traded & (before * quantity > 0.0)
        grown = entry + (price - entry) * (quantity / (units if units != 0.0 else 1.0))
        entry = grown if added else entry
        s[at.entry_price + k] = price if turned else entry
        s[at.entry_sigma + k] = sigma if turned else entry_sigma
        s[at.bars_held + k] = 0.0 if turned else bars_held


@inlined
def _test_wick(s: Block, n: int, rules: Record) -> None:
    """Set exit_price where a position is liquidated between its start price and the adverse extreme of the bar."""
    if not rules.enforce_margin:
        return
    maintenance = rules.maintenance
    for k in range(n):
        cash, units, start, exit_price = s[at.cash + k], s[at.units + k], s[at.start_price + k], s[at.exit_price + k]
        low, high = s[at.low + k], s[at.high + k]
        breach = costs.breaches_maintenance(cash, units, low if units > 0.0 else high, maintenance)
        price = costs.liquidation_price(cash, units, maintenance)
        # Already beyond its price when the bar begins (or right after the fill): it goes at once.
        below, above = min(price, start), max(price, start)
        price = below if units > 0.0 else above
        s[at.exit_price + k] = price if breach & (exit_price == 0.0) else exit_price


@inlined
def _liquidate(s: Block, n: int, rules: Record) -> None:
    """Close the positions that the open or the wick liquidates, at that price plus slippage and fee.

    The slippage is the fill model's at its expected random part (E|z| = sqrt(2/pi)): a forced sale draws nothing.
    """
    _test_wick(s, n, rules)
    liquidations = 0
    for k in range(n):
        exit_price, close = s[at.exit_price + k], s[at.close + k]
        exits = exit_price > 0.0
        s[at.bar_pnl + k] = s[at.units + k] * ((exit_price if exits else close) - s[at.start_price + k])
        s[at.liquidation_cost + k] = 0.0
        s[at.liquidated + k] = 1.0 if exits else 0.0
        liquidations += exits
    if liquidations == 0:
        return
    for k in range(n):
        price = s[at.exit_price + k]
        if price > 0.0:
            size = abs(s[at.units + k])
            slippage = fills.spread_slippage(
                s[at.half_spread + k], s[at.kappa + k], s[at.sigma + k], _MEAN_ABSOLUTE_NORMAL
            ) + fills.square_root_impact(rules.impact, s[at.sigma + k], size, s[at.median_volume + k])
            cost = size * price * (min(slippage, rules.cost_cap) + rules.liquidation_fee)
            s[at.liquidation_cost + k] = cost
            s[at.cash + k] += s[at.units + k] * price - cost
            s[at.units + k] = 0.0


@inlined
def _hold(s: Block, n: int, rules: Record) -> None:
    """Carrying costs within the bar, and the end of the pending order: what did not fill is cancelled."""
    for k in range(n):
        timestamp = s[at.timestamp + k]
        s[at.span_start + k] = timestamp
        s[at.span_end + k] = timestamp + s[at.duration + k]
        s[at.span_price + k] = s[at.close + k]
        s[at.order_quantity + k] = 0.0
        s[at.order_limit + k] = 0.0
        s[at.order_all_in + k] = 0.0
    _carry(s, n, rules)


# --- what the agent sees of the account ----------------------------------------------------------------------------

ACCOUNT_FEATURES = (
    "exposure",
    "last_target",
    "last_fill_fraction",
    "unrealised_pnl",
    "log_growth",
    "drawdown",
    "holding_time",
    "liquidation_distance",
)
OBSERVATION_LIMIT = 5.0
_HOLDING_TIME_UNIT = 64.0  # bars


@inlined
def observe_accounts(s: Block, n: int, rules: Record, out: Array, first: int) -> None:
    """Write the accounts as the agent sees them to out[first + k]: eight numbers within +-5, as `ACCOUNT_FEATURES`.

    unrealised_pnl is the position's return since its average entry (costs included), per standard deviation of a
    random walk over the bars it was held at the volatility when it was opened.
    """
    enforce, maintenance = rules.enforce_margin, rules.maintenance
    for k in range(n):
        units, price = s[at.units + k], s[at.mark_price + k]
        entry, entry_sigma = s[at.entry_price + k], s[at.entry_sigma + k]
        holds = units != 0.0
        gain = price / (entry if holds else 1.0) - 1.0
        deviation = (entry_sigma if holds else 1.0) * math.sqrt(max(s[at.bars_held + k], 1.0))
        unrealised = gain / deviation * (1.0 if units > 0.0 else -1.0)
        distance = costs.liquidation_distance(s[at.cash + k], units, price, maintenance)
        s[at.scratch + k] = _bounded(unrealised) if holds else 0.0
        s[at.scratch_too + k] = distance if enforce else 1.0
    for k in range(n):
        i = np.uint64(first + k)
        out[i, 0] = _bounded(s[at.exposure + k])
        out[i, 1] = _bounded(s[at.target + k])
        out[i, 2] = s[at.fill_fraction + k]
        out[i, 3] = s[at.scratch + k]
        out[i, 4] = _bounded(s[at.log_growth + k])
        out[i, 5] = s[at.drawdown + k]
        out[i, 6] = min(s[at.bars_held + k] / _HOLDING_TIME_UNIT, OBSERVATION_LIMIT)
        out[i, 7] = s[at.scratch_too + k]


@inlined
def _bounded(value: float) -> float:
    return min(max(value, -OBSERVATION_LIMIT), OBSERVATION_LIMIT)


# --- the scalar driver ---------------------------------------------------------------------------------------------


@compiled
def open_lane(s: Block, k: int, seed: rng.Word, initial_equity: float, rules: Array) -> None:
    """A fresh account in lane k. rules: [1] RULES."""
    open_account(s, k, seed, initial_equity, rules[0])


@compiled
def order_one(s: Block, target: float, sigma: float, median_volume: float, rules: Array) -> None:
    """A decision for lane 0: target exposure, volatility per bar, median volume."""
    s[at.target] = target
    s[at.sigma] = sigma
    s[at.median_volume] = median_volume
    order_exposures(s, 1, rules[0])


@compiled
def advance_one(
    s: Block, timestamp: float, open_: float, high: float, low: float, close: float, volume: float, duration: float,
    rules: Array,
) -> None:  # fmt: skip
    """One bar for lane 0. timestamp, duration: bar open (epoch ms) and length (ms)."""
    s[at.timestamp] = timestamp
    s[at.open] = open_
    s[at.high] = high
    s[at.low] = low
    s[at.close] = close
    s[at.volume] = volume
    s[at.duration] = duration
    if any_orders(s, 1):
        draw(s, 1, rules[0])
    advance(s, 1, rules[0])


@compiled
def observe_one(s: Block, rules: Array, out: Array) -> None:
    """Lane 0 as the agent sees it. out: [1, 8] float32."""
    observe_accounts(s, 1, rules[0], out, 0)


# --- whole series --------------------------------------------------------------------------------------------------

SIZINGS = {"exposure": 0, "units": 1, "all_in": 2}


@compiled
def run_series(
    blocks: Array,
    count: int,
    rules: Array,
    bars: Array,
    duration: float,
    targets: Array,
    sizing: int,
    start: int,
    stop: int,
    columns: Array,
    ledger: Array,
) -> None:
    """Follow a series of targets on bars [start, stop) with each of the first `count` accounts of the blocks.

    blocks: [ceil(count / LANES), BLOCK_SIZE]. rules: [1] RULES. bars: [N] BAR. targets: [N], decided at each close; NaN
    places no order. columns: [J] places in a block of the fields to keep. ledger: [J, count, stop - start] output. The
    decision on the last bar is not taken: nothing could fill it.
    """
    prefer_wide_vectors()
    if count == 1:
        # A constant number of lanes lets the compiler drop the loops over them.
        _run_block(blocks[0], 1, rules[0], bars, duration, targets, sizing, start, stop, columns, ledger, 0)
        return
    for block in range(len(blocks)):
        first = block * LANES
        n = min(LANES, count - first)
        _run_block(blocks[block], n, rules[0], bars, duration, targets, sizing, start, stop, columns, ledger, first)


@inlined
def _run_block(
    s: Block, n: int, rules: Record, bars: Array, duration: float, targets: Array, sizing: int, start: int, stop: int,
    columns: Array, ledger: Array, first: int,
) -> None:  # fmt: skip
    for t in range(start, stop):
        bar = bars[t]
        for k in range(n):
            s[at.timestamp + k] = bar.timestamp
            s[at.open + k] = bar.open
            s[at.high + k] = bar.high
            s[at.low + k] = bar.low
            s[at.close + k] = bar.close
            s[at.volume + k] = bar.volume
            s[at.duration + k] = duration
        if any_orders(s, n):
            draw(s, n, rules)
        advance(s, n, rules)
        for j in range(len(columns)):
            for k in range(n):
                ledger[j, first + k, t - start] = s[columns[j] + k]
        target = targets[t]
        if t < stop - 1 and not math.isnan(target):
            for k in range(n):
                s[at.target + k] = target
                s[at.sigma + k] = bar.sigma
                s[at.median_volume + k] = bar.median_volume
            if sizing == 0:
                order_exposures(s, n, rules)
            elif sizing == 1:
                order_units(s, n, rules)
            else:
                order_all_in(s, n, rules)


def record_places(names: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where columns of a record stand in a block."""
    return np.array([OUTCOME_AT[RECORD_FIELDS.index(name)] for name in names], dtype=np.int64)
