"""What holding and borrowing cost, and when the venue steps in: the formulas behind the kernel.

Amounts are in the quote currency, positive when the account pays. Rates are per millisecond. The formulas choose
between values instead of branching, so that a loop over accounts can take eight at a time.
"""

import math

from market_env._compile import inlined

MILLISECONDS_PER_YEAR = 365.25 * 86_400_000.0


@inlined
def settlements_between(start: float, end: float, interval: float) -> float:
    """Number of funding settlements in (start, end], all in epoch milliseconds; settlements at whole intervals."""
    return math.floor(end / interval) - math.floor(start / interval)


@inlined
def simple_interest(
    units: float, debt: float, price: float, elapsed: float, short_rate: float, debt_rate: float
) -> float:
    """Interest on short notional and on borrowed cash over `elapsed` milliseconds; linear in time."""
    return (max(-units, 0.0) * price * short_rate + debt * debt_rate) * elapsed


@inlined
def affordable_quantity(
    side: float, cash: float, units: float, arrival: float, price: float, fee: float, max_leverage: float
) -> float:
    """Largest quantity >= 0 that leaves |position| * P_a <= max_leverage * equity, in closed form.

    Equity after buying (side s = 1) or selling (s = -1) q units at the fill price P, marked at the arrival price
    P_a, is cash - s*q*P - fee*q*P + (units + s*q) * P_a. The margin condition on the order's side, solved for q:
        q = (max_leverage * cash + (max_leverage - s) * units * P_a)
            / (P_a + max_leverage * s * (P * (1 + s * fee) - P_a))
    Reducing a position is always allowed. With max_leverage 1, a buy may spend all cash and not more.
    """
    limit = (max_leverage * cash + (max_leverage - side) * units * arrival) / (
        arrival + max_leverage * side * (price * (1.0 + side * fee) - arrival)
    )
    return max(limit, -side * units, 0.0)


@inlined
def breaches_maintenance(cash: float, units: float, price: float, maintenance: float) -> bool:
    """Whether equity at `price` is below `maintenance` * position value.

    Never true for a flat account or a long that owns its position outright (cash >= 0): shorts and positions above
    leverage 1 are the ones that can breach.
    """
    return cash + units * price < maintenance * abs(units) * price


@inlined
def liquidation_price(cash: float, units: float, maintenance: float) -> float:
    """The price p at which cash + units * p = maintenance * |units| * p, for a position that can breach."""
    denominator = units - maintenance * abs(units)
    return max(-cash / (denominator if units != 0.0 else 1.0), 0.0)


@inlined
def liquidation_distance(cash: float, units: float, price: float, maintenance: float) -> float:
    """Adverse move to the liquidation price as a fraction of the price, in [0, 1].

    1 also stands for positions that cannot be liquidated: a flat one and a long without debt.
    """
    denominator = (units - maintenance * abs(units)) * price
    distance = min(abs(1.0 + cash / (denominator if units != 0.0 else 1.0)), 1.0)
    return distance if units != 0.0 else 1.0
