"""Fill and account arithmetic: the single source of truth, compiled once, driven by every loop of the system.

The session (backtest, paper trading), the Gymnasium env and the vector env all call `place_order` and `advance`
below, so the same bars, targets and seed give the same ledger to the last bit of a float64. State lives in
structured arrays, one row per account; the functions take a row, never a Python object.

The clock: a decision is taken on the close of bar t. `place_order` fixes its quantity there. `advance` fills it in bar
t+1 from that bar's open and marks the account at its close.

One bar, in order: carrying costs since the last close - liquidation if the open gaps through - the fill -
liquidation if the wick reaches the liquidation price - carrying costs within the bar - mark at the close.
"""

import math
from typing import Any

import numpy as np

from market_env import costs, fills, rng
from market_env._compile import compiled, inlined
from market_env.config import BPS, MarketConfig
from market_env.instrument import Instrument

Record = Any  # a row of a structured array, by reference

# --- layouts -------------------------------------------------------------------------------------------------------

ACCOUNT = np.dtype(
    [
        ("seed", np.uint64),  # of the fill draws
        ("cash", np.float64),
        ("units", np.float64),
        ("equity", np.float64),  # at the last mark
        ("previous_equity", np.float64),  # at the mark before it
        ("previous_drawdown", np.float64),
        ("mark_price", np.float64),  # last close
        ("clock", np.float64),  # epoch ms of the last close
        ("initial_equity", np.float64),
        ("peak_equity", np.float64),
        ("exposure", np.float64),  # position value / equity at the last mark
        ("drawdown", np.float64),  # fraction lost from the peak at the last mark
        ("log_growth", np.float64),  # sum of log returns = ln(equity / initial equity)
        ("accrued_interest", np.float64),  # part of negative cash that is interest, which bears no interest
        ("entry_price", np.float64),  # average, costs included
        ("entry_sigma", np.float64),  # bar volatility when the position was opened
        ("bars_held", np.float64),  # since the position was opened or changed side
        ("sigma", np.float64),  # at the last decision
        ("median_volume", np.float64),  # at the last decision
        ("target", np.float64),  # last decision
        ("fill_fraction", np.float64),  # of the last order
        ("order_quantity", np.float64),  # signed, pending for the next bar; 0: none
        ("order_limit", np.float64),  # limit price of the pending order; 0: market order
        ("order_all_in", np.float64),  # 1: the quantity is whatever margin allows at the fill
        ("start_price", np.float64),  # within a bar: from here the position held to the close is measured
        ("exit_price", np.float64),  # within a bar: where the position was liquidated; 0: it was not
        ("funding", np.float64),  # within a bar: charged so far
        ("fee_factor", np.float64),  # domain randomisation; 1 otherwise
        ("spread_factor", np.float64),
        ("slippage_factor", np.float64),
        ("latency_factor", np.float64),
    ],
    align=True,
)

RULES = np.dtype(
    [
        ("instrument", np.uint64),  # address of the instrument's draws
        ("stochastic", np.bool_),
        ("limit_orders", np.bool_),
        ("perpetual", np.bool_),
        ("enforce_margin", np.bool_),
        ("reject_probability", np.float64),
        ("partial_probability", np.float64),
        ("touch_probability", np.float64),
        ("volume_cap", np.float64),
        ("latency", np.float64),
        ("half_spread", np.float64),
        ("kappa", np.float64),
        ("impact", np.float64),
        ("cost_cap", np.float64),
        ("taker_fee", np.float64),
        ("maker_fee", np.float64),
        ("short_rate", np.float64),
        ("debt_rate", np.float64),
        ("funding_rate", np.float64),
        ("funding_interval", np.float64),
        ("max_leverage", np.float64),
        ("maintenance", np.float64),
        ("liquidation_fee", np.float64),
        ("no_trade_band", np.float64),
        ("limit_offset", np.float64),
        ("lot_size", np.float64),
        ("min_notional", np.float64),
        ("tick_size", np.float64),
    ],
    align=True,
)

# One bar of an account's life. Every field is a float64, so a row is also a plain vector (`RECORD_FIELDS` names its
# columns). Costs are positive when paid. A price of 0 means: nothing arrived, or nothing filled.
RECORD_FIELDS = (
    "t",
    "timestamp",
    "equity",
    "cash",
    "units",
    "exposure",
    "target",
    "qty_ordered",
    "qty_filled",
    "fill_price",
    "arrival_price",
    "fill_fraction",
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
    "drawdown",
    "liquidated",
)
RECORD = np.dtype([(name, np.float64) for name in RECORD_FIELDS])

# One bar of a prepared market: a cache line. sigma, median_volume: known at its close; timestamp: its open, epoch ms.
BAR_FIELDS = ("open", "high", "low", "close", "volume", "sigma", "median_volume", "timestamp")
BAR = np.dtype([(name, np.float64) for name in BAR_FIELDS])

# The random numbers of one fill: uniforms in (0, 1) and standard normals.
DRAWS = np.dtype(
    [
        ("reject_u", np.float64),
        ("partial_u", np.float64),
        ("fraction_u", np.float64),
        ("touch_u", np.float64),
        ("arrival_z", np.float64),
        ("spread_z", np.float64),
    ]
)

_SMALLEST_EQUITY_FRACTION = 1e-12  # of the initial equity: floor inside the logarithm of a wiped-out account


def rules_for(config: MarketConfig, instrument: Instrument) -> np.ndarray[Any, Any]:
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


@compiled
def open_account(account: Record, seed: np.uint64, initial_equity: float) -> None:
    """A fresh account: cash only, nothing pending, nothing remembered."""
    account.seed = seed
    account.cash = initial_equity
    account.units = 0.0
    account.equity = initial_equity
    account.previous_equity = initial_equity
    account.previous_drawdown = 0.0
    account.mark_price = 0.0
    account.clock = 0.0
    account.initial_equity = initial_equity
    account.peak_equity = initial_equity
    account.exposure = 0.0
    account.drawdown = 0.0
    account.log_growth = 0.0
    account.accrued_interest = 0.0
    account.entry_price = 0.0
    account.entry_sigma = 0.0
    account.bars_held = 0.0
    account.sigma = 0.0
    account.median_volume = 0.0
    account.target = 0.0
    account.fill_fraction = 1.0
    account.order_quantity = 0.0
    account.order_limit = 0.0
    account.order_all_in = 0.0
    account.start_price = 0.0
    account.exit_price = 0.0
    account.funding = 0.0
    account.fee_factor = 1.0
    account.spread_factor = 1.0
    account.slippage_factor = 1.0
    account.latency_factor = 1.0


@inlined
def mark(account: Record, close: float, clock: float) -> float:
    """Value the account at `close` (known at `clock`, epoch ms); returns the log return since the last mark.

    An account with nothing left owes no more than it has: it is emptied, see `advance` for the shortfall.
    """
    before = account.equity
    equity = max(account.cash + account.units * close, 0.0)
    if equity == 0.0:
        account.cash = 0.0
        account.units = 0.0
    floor = _SMALLEST_EQUITY_FRACTION * account.initial_equity
    log_return = math.log(max(equity, floor) / max(before, floor))
    account.previous_equity = before
    account.previous_drawdown = account.drawdown
    account.equity = equity
    account.mark_price = close
    account.clock = clock
    account.log_growth += log_return
    account.peak_equity = max(account.peak_equity, equity)
    account.exposure = account.units * close / max(equity, floor)
    account.drawdown = 1.0 - equity / account.peak_equity
    return log_return


# --- the decision, at the close of bar t ---------------------------------------------------------------------------


@inlined
def place_order(
    account: Record, rules: Record, target: float, quantity: float, sigma: float, median_volume: float
) -> None:
    """Make `quantity` (signed units) the pending order, after lot rounding and the smallest-order rule."""
    account.target = target
    account.sigma = sigma
    account.median_volume = median_volume
    account.order_limit = 0.0
    account.order_all_in = 0.0
    size = fills.round_to_lot(abs(quantity), rules.lot_size)
    if size * account.mark_price < rules.min_notional:
        size = 0.0
    account.order_quantity = math.copysign(size, quantity)
    if rules.limit_orders and size > 0.0:
        account.order_limit = _limit_price(account.mark_price, quantity > 0.0, rules.limit_offset, rules.tick_size)


@compiled
def _limit_price(close: float, buy: bool, offset: float, tick: float) -> float:
    """Limit price `offset` away from the close on the passive side, rounded to the tick away from the market."""
    price = close * (1.0 - offset) if buy else close * (1.0 + offset)
    if tick > 0.0:
        ticks = price / tick
        price = (math.floor(ticks + 1e-9) if buy else math.ceil(ticks - 1e-9)) * tick
    return price


@inlined
def order_exposure(account: Record, rules: Record, target: float, sigma: float, median_volume: float) -> None:
    """Order the difference to `target` exposure: target * E / C - units, unless it lies inside the no-trade band."""
    quantity = target * account.equity / account.mark_price - account.units
    if target != 0.0 and abs(target - account.exposure) < rules.no_trade_band:
        quantity = 0.0
    place_order(account, rules, target, quantity, sigma, median_volume)


@inlined
def order_units(account: Record, rules: Record, target: float, sigma: float, median_volume: float) -> None:
    """Order the difference to `target` units."""
    place_order(account, rules, target, target - account.units, sigma, median_volume)


@inlined
def order_all_in(account: Record, rules: Record, target: float, sigma: float, median_volume: float) -> None:
    """Order as much as margin allows at the fill (target +1 or -1), or close the position (target 0).

    The one kind of order whose quantity is not fixed at the decision: what it costs is known at the fill only.
    The nominal quantity is what the close would buy.
    """
    if target == 0.0:
        place_order(account, rules, target, -account.units, sigma, median_volume)
        return
    nominal = target * account.equity / account.mark_price - account.units
    if nominal * target <= 0.0:  # already in
        nominal = 0.0
    place_order(account, rules, target, nominal, sigma, median_volume)
    account.order_all_in = 1.0


# --- randomness ------------------------------------------------------------------------------------------------------


@compiled
def draw_fill(account: Record, rules: Record, timestamp: float, draws: Record) -> None:
    """Write the draws of the pending order, addressed by (seed, instrument, timestamp of the bar that fills it)."""
    address = np.uint64(np.int64(timestamp))
    word_0, word_1, word_2, word_3 = rng.words_at(account.seed, rules.instrument, address, rng.FILL_BLOCK)
    draws.reject_u = rng.uniform(word_0)
    draws.partial_u = rng.uniform(word_1)
    draws.arrival_z = rng.normal(rng.uniform(word_2))
    draws.spread_z = rng.normal(rng.uniform(word_3))
    draw_rare(account, rules, timestamp, draws)


@compiled
def draw_rare(account: Record, rules: Record, timestamp: float, draws: Record) -> None:
    """The draws that few fills need: the fraction of a partial fill, the luck of a limit order that is touched."""
    if draws.partial_u < rules.partial_probability or account.order_limit > 0.0:
        address = np.uint64(np.int64(timestamp))
        word_0, word_1, _, _ = rng.words_at(account.seed, rules.instrument, address, rng.RARE_FILL_BLOCK)
        draws.fraction_u = rng.uniform(word_0)
        draws.touch_u = rng.uniform(word_1)


# --- the bar that follows ------------------------------------------------------------------------------------------


@inlined
def advance(
    account: Record,
    rules: Record,
    timestamp: float,
    open_: float,
    high: float,
    low: float,
    close: float,
    volume: float,
    duration: float,
    draws: Record,
    record: Record,
) -> None:
    """Take the account through one bar: fill the pending order from the open, mark at the close, write the record.

    timestamp, duration: bar open (epoch ms) and length (ms). draws: of the pending order (unread if there is none, or
    in deterministic mode). `record.t` is the caller's.
    """
    begin_bar(account, rules, timestamp, open_, high, low, volume, draws, record)
    end_bar(account, rules, timestamp, high, low, close, duration, record)


@inlined
def begin_bar(
    account: Record,
    rules: Record,
    timestamp: float,
    open_: float,
    high: float,
    low: float,
    volume: float,
    draws: Record,
    record: Record,
) -> None:
    """First half of `advance`: what happened since the last close, and the fill."""
    units_before = account.units
    record.target = account.target
    record.qty_ordered = account.order_quantity
    record.qty_filled = 0.0
    record.fill_price = 0.0
    record.arrival_price = 0.0
    record.fill_fraction = 0.0
    record.rejected = 0.0
    record.fee = 0.0
    record.slippage_cost = 0.0
    record.impact_cost = 0.0
    record.gap_pnl = units_before * (open_ - account.mark_price)

    account.funding = 0.0
    if timestamp > account.clock:
        account.funding = _carry(account, rules, account.clock, timestamp, account.mark_price)
    account.start_price = open_
    account.exit_price = 0.0
    if rules.enforce_margin and costs.breaches_maintenance(account.cash, account.units, open_, rules.maintenance):
        account.exit_price = open_
    elif account.order_quantity != 0.0:
        if account.order_limit > 0.0:
            # A resting order may fill after the wick: test the position that was held first (the stop comes first).
            account.exit_price = _liquidation_in_bar(account, rules, open_, high, low)
        if account.exit_price == 0.0:
            account.start_price = _fill(account, rules, open_, high, low, volume, draws, record)
    record.latency_pnl = units_before * (account.start_price - open_)


@inlined
def end_bar(
    account: Record,
    rules: Record,
    timestamp: float,
    high: float,
    low: float,
    close: float,
    duration: float,
    record: Record,
) -> None:
    """Second half of `advance`: liquidation by the wick, the cost of holding, the mark."""
    start_price, exit_price = account.start_price, account.exit_price
    if exit_price == 0.0:
        exit_price = _liquidation_in_bar(account, rules, start_price, high, low)
    liquidated = exit_price > 0.0
    record.liquidation_cost = 0.0
    if liquidated:
        record.bar_pnl = account.units * (exit_price - start_price)
        record.liquidation_cost = _liquidate(account, rules, exit_price)
    else:
        record.bar_pnl = account.units * (close - start_price)
        account.funding += _carry(account, rules, timestamp, timestamp + duration, close)

    value = account.cash + account.units * close
    wiped_out = value <= 0.0 and account.equity > 0.0
    record.bad_debt = max(-value, 0.0)  # the venue eats the shortfall
    log_return = mark(account, close, timestamp + duration)
    account.bars_held = account.bars_held + 1.0 if account.units != 0.0 else 0.0
    account.order_quantity = 0.0
    account.order_limit = 0.0
    account.order_all_in = 0.0

    record.timestamp = timestamp
    record.equity = account.equity
    record.cash = account.cash
    record.units = account.units
    record.exposure = account.exposure
    record.funding = account.funding
    record.log_return = log_return
    record.drawdown = account.drawdown
    record.liquidated = 1.0 if liquidated or wiped_out else 0.0


@inlined
def _carry(account: Record, rules: Record, start: float, end: float, price: float) -> float:
    """Charge funding or interest for holding the account's position and debt over (start, end]; returns the cost."""
    if rules.perpetual:
        count = costs.settlements_between(start, end, rules.funding_interval)
        cost: float = count * rules.funding_rate * account.units * price
    else:
        # Interest bears no interest: while there is debt, what was charged on it is kept apart.
        accrued = account.accrued_interest if account.cash < 0.0 else 0.0
        debt = max(-(account.cash + accrued), 0.0)
        cost = costs.simple_interest(account.units, debt, price, end - start, rules.short_rate, rules.debt_rate)
        account.accrued_interest = accrued + cost
    account.cash -= cost
    return cost


@inlined
def _liquidation_in_bar(account: Record, rules: Record, start_price: float, high: float, low: float) -> float:
    """Price at which the position is liquidated between `start_price` and the adverse extreme of the bar, or 0."""
    cash, units = account.cash, account.units
    adverse = low if units > 0.0 else high
    if not (rules.enforce_margin and costs.breaches_maintenance(cash, units, adverse, rules.maintenance)):
        return 0.0
    price = costs.liquidation_price(cash, units, rules.maintenance)
    # Already beyond its price when the bar begins (or right after the fill): it goes at once.
    return min(price, start_price) if units > 0.0 else max(price, start_price)


@compiled
def _liquidate(account: Record, rules: Record, price: float) -> float:
    """Close the whole position at `price` plus slippage and fee; returns that cost.

    The slippage is the fill model's at its expected random part (E|z| = sqrt(2/pi)): a forced sale draws nothing.
    """
    size = abs(account.units)
    slippage = fills.spread_slippage(
        rules.half_spread * account.spread_factor,
        rules.kappa * account.slippage_factor,
        account.sigma,
        math.sqrt(2.0 / math.pi),
    ) + fills.square_root_impact(rules.impact, account.sigma, size, account.median_volume)
    cost: float = size * price * (min(slippage, rules.cost_cap) + rules.liquidation_fee)
    account.cash += account.units * price - cost
    account.units = 0.0
    return cost


@inlined
def _fill(
    account: Record,
    rules: Record,
    open_: float,
    high: float,
    low: float,
    volume: float,
    draws: Record,
    record: Record,
) -> float:
    """Fill the pending order as far as the bar allows; returns the arrival price (the open if nothing arrived)."""
    ordered = abs(account.order_quantity)
    side = math.copysign(1.0, account.order_quantity)
    account.fill_fraction = 0.0
    fraction = 1.0
    if rules.stochastic:
        if draws.reject_u < rules.reject_probability:
            record.rejected = 1.0
            return open_
        fraction = fills.volume_cap_fraction(ordered, volume, account.median_volume, rules.volume_cap)
        if draws.partial_u < rules.partial_probability:
            fraction *= rng.beta_2_2(draws.fraction_u)

    arrival = open_
    fee_rate = rules.taker_fee * account.fee_factor
    if account.order_limit > 0.0:
        touched = rules.stochastic and draws.touch_u < rules.touch_probability
        arrival = fills.limit_fill_price(side, account.order_limit, open_, low, high, rules.tick_size, touched)
        if arrival == 0.0:
            return open_
        if arrival != open_:
            fee_rate = rules.maker_fee * account.fee_factor
    elif rules.stochastic:
        arrival = fills.arrival_price(
            open_, low, high, account.sigma, rules.latency * account.latency_factor, draws.arrival_z
        )

    quantity = fills.round_to_lot(fraction * ordered, rules.lot_size)
    spread, cost = 0.0, 0.0
    if rules.stochastic and account.order_limit == 0.0:
        spread = fills.spread_slippage(
            rules.half_spread * account.spread_factor,
            rules.kappa * account.slippage_factor,
            account.sigma,
            draws.spread_z,
        )
        impact = fills.square_root_impact(rules.impact, account.sigma, quantity, account.median_volume)
        cost = min(spread + impact, rules.cost_cap)
        spread = min(spread, cost)
    price = arrival * (1.0 + side * cost)
    if rules.enforce_margin or account.order_all_in > 0.0:
        # The cost per unit stays that of the order before this cut: an upper bound that keeps the form closed.
        affordable = costs.affordable_quantity(
            side, account.cash, account.units, arrival, price, fee_rate, rules.max_leverage
        )
        if account.order_all_in > 0.0:
            quantity = fraction * affordable
        quantity = fills.round_to_lot(min(quantity, affordable), rules.lot_size)

    fee = fee_rate * quantity * price
    record.arrival_price = arrival
    record.qty_filled = side * quantity
    record.fill_price = price if quantity > 0.0 else 0.0
    record.fee = fee
    record.slippage_cost = quantity * arrival * spread
    record.impact_cost = quantity * arrival * (cost - spread)
    record.fill_fraction = quantity / ordered
    account.fill_fraction = record.fill_fraction
    _exchange(account, side * quantity, price, fee)
    return arrival


@inlined
def _exchange(account: Record, quantity: float, price: float, fee: float) -> None:
    """Swap cash for units and keep the average entry price."""
    before = account.units
    units = before + quantity
    account.cash -= quantity * price + fee
    account.units = units
    if before * units <= 0.0:  # opened, closed or turned over
        account.entry_price = price
        account.entry_sigma = account.sigma
        account.bars_held = 0.0
    elif before * quantity > 0.0:  # increased
        account.entry_price += (price - account.entry_price) * (quantity / units)


# --- whole series --------------------------------------------------------------------------------------------------

SIZINGS = {"exposure": 0, "units": 1, "all_in": 2}


@compiled
def run_series(
    accounts: np.ndarray[Any, Any],
    rules: np.ndarray[Any, Any],
    bars: np.ndarray[Any, Any],
    duration: float,
    targets: np.ndarray[Any, Any],
    sizing: int,
    start: int,
    stop: int,
    draws: np.ndarray[Any, Any],
    record: np.ndarray[Any, Any],
    record_values: np.ndarray[Any, Any],
    columns: np.ndarray[Any, Any],
    ledger: np.ndarray[Any, Any],
) -> None:
    """Follow a series of targets on bars [start, stop) for each account.

    accounts: [S] ACCOUNT. rules: [1] RULES. bars: [N] BAR. targets: [N], decided at each close; NaN places no order.
    draws: one DRAWS row to work in.
    record, record_values: one RECORD row and the same memory as [25] float64. columns: [J] field numbers to keep.
    ledger: [J, S, stop - start] output. The decision on the last bar is not taken: nothing could fill it.
    """
    rule = rules[0]
    for s in range(len(accounts)):
        account = accounts[s]
        for t in range(start, stop):
            bar = bars[t]
            if rule.stochastic and account.order_quantity != 0.0:
                draw_fill(account, rule, bar.timestamp, draws[0])
            advance(
                account, rule, bar.timestamp, bar.open, bar.high, bar.low, bar.close, bar.volume, duration, draws[0],
                record[0],
            )  # fmt: skip
            record[0].t = t
            for j in range(len(columns)):
                ledger[j, s, t - start] = record_values[columns[j]]
            target = targets[t]
            if t < stop - 1 and not math.isnan(target):
                if sizing == 0:
                    order_exposure(account, rule, target, bar.sigma, bar.median_volume)
                elif sizing == 1:
                    order_units(account, rule, target, bar.sigma, bar.median_volume)
                else:
                    order_all_in(account, rule, target, bar.sigma, bar.median_volume)


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
def observe_account(account: Record, rules: Record) -> tuple[float, float, float, float, float, float, float, float]:
    """The account as the agent sees it: eight numbers within +-5, in the order of `ACCOUNT_FEATURES`.

    unrealised_pnl is the position's return since its average entry (costs included), per standard deviation of a
    random walk over the bars it was held at the volatility when it was opened.
    """
    unrealised, distance = 0.0, 1.0
    if account.units != 0.0:
        gain = (account.mark_price / account.entry_price - 1.0) * math.copysign(1.0, account.units)
        unrealised = gain / (account.entry_sigma * math.sqrt(max(account.bars_held, 1.0)))
        if rules.enforce_margin:
            distance = costs.liquidation_distance(account.cash, account.units, account.mark_price, rules.maintenance)
    return (
        _bounded(account.exposure),
        _bounded(account.target),
        _bounded(account.fill_fraction),
        _bounded(unrealised),
        _bounded(account.log_growth),
        _bounded(account.drawdown),
        _bounded(account.bars_held / _HOLDING_TIME_UNIT),
        distance,
    )


@inlined
def _bounded(value: float) -> float:
    return min(max(value, -OBSERVATION_LIMIT), OBSERVATION_LIMIT)


# --- entry points for the scalar driver (arrays of one row in place of rows) ----------------------------------------


@compiled
def open_accounts(accounts: np.ndarray[Any, Any], seed: np.uint64, initial_equity: float) -> None:
    """`open_account` for accounts[0]."""
    open_account(accounts[0], seed, initial_equity)


@compiled
def order_exposure_one(
    accounts: np.ndarray[Any, Any], rules: np.ndarray[Any, Any], target: float, sigma: float, median_volume: float
) -> None:
    """`order_exposure` for accounts[0]."""
    order_exposure(accounts[0], rules[0], target, sigma, median_volume)


@compiled
def advance_one(
    accounts: np.ndarray[Any, Any],
    rules: np.ndarray[Any, Any],
    timestamp: float,
    open_: float,
    high: float,
    low: float,
    close: float,
    volume: float,
    duration: float,
    draws: np.ndarray[Any, Any],
    records: np.ndarray[Any, Any],
) -> None:
    """`advance` for accounts[0], writing records[0]."""
    if rules[0].stochastic and accounts[0].order_quantity != 0.0:
        draw_fill(accounts[0], rules[0], timestamp, draws[0])
    advance(accounts[0], rules[0], timestamp, open_, high, low, close, volume, duration, draws[0], records[0])


@compiled
def observe_one(accounts: np.ndarray[Any, Any], rules: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """`observe_account` for accounts[0], writing out[0]."""
    out[0, 0], out[0, 1], out[0, 2], out[0, 3], out[0, 4], out[0, 5], out[0, 6], out[0, 7] = observe_account(
        accounts[0], rules[0]
    )
