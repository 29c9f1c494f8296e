"""What holding and borrowing cost, and when the venue steps in: the formulas behind the kernel.

Amounts are in the quote currency, positive when the account pays. Rates are per millisecond.
"""

import math

from market_env._compile import compiled

MILLISECONDS_PER_YEAR = 365.25 * 86_400_000.0


@compiled
def settlements_between(start: float, end: float, interval: float) -> float:
    """Number of funding settlements in (start, end], all in epoch milliseconds; settlements at whole intervals."""
    return math.floor(end / interval) - math.floor(start / interval)


@compiled
def simple_interest(
    units: float, debt: float, price: float, elapsed: float, short_rate: float, debt_rate: float
) -> float:
    """Interest on short notional and on borrowed cash over `elapsed` milliseconds; linear in time."""
    short_notional = -units * price if units < 0.0 else 0.0
    return (short_notional * short_rate + debt * debt_rate) * elapsed


@compiled
def affordable_quantity(
    side: float, cash: float, units: float, arrival: float, price: float, fee: float, max_leverage: float
) -> float:
    """Largest quantity >= 0 that leaves |position| * arrival <= max_leverage * equity, in closed form.

    Equity after the fill is cash - s*q*P - fee*q*P + (units + s*q) * P_a. Solving the margin condition with equality
    for q at the fixed fill price P gives the two expressions below; reducing a position is always allowed.
    With max_leverage 1, a buy may spend all cash and not more.
    """
    if side > 0.0:
        limit = (max_leverage * cash + (max_leverage - 1.0) * units * arrival) / (
            arrival + max_leverage * (price * (1.0 + fee) - arrival)
        )
        return max(limit, -units, 0.0)
    limit = (max_leverage * cash + (max_leverage + 1.0) * units * arrival) / (
        arrival + max_leverage * (arrival - price * (1.0 - fee))
    )
    return max(limit, units, 0.0)


@compiled
def needs_margin(cash: float, units: float) -> bool:
    """Shorts are always checked; longs only when they run on borrowed cash (leverage above 1)."""
    return units < 0.0 or (units > 0.0 and cash < 0.0)


@compiled
def liquidation_price(cash: float, units: float, maintenance: float) -> float:
    """The price p at which cash + units * p = maintenance * |units| * p, for a position that needs margin."""
    if units > 0.0:
        return -cash / (units * (1.0 - maintenance))
    return max(cash, 0.0) / (-units * (1.0 + maintenance))


@compiled
def liquidation_distance(cash: float, units: float, price: float, maintenance: float) -> float:
    """Adverse move to the liquidation price as a fraction of the price, in [0, 1].

    1 also stands for positions that cannot be liquidated: a flat one and an unlevered long.
    """
    if not needs_margin(cash, units):
        return 1.0
    move = abs(price - liquidation_price(cash, units, maintenance)) / price
    return min(move, 1.0)
