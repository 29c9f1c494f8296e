"""How an order meets the next bar, from OHLCV alone: the formulas behind the kernel.

Notation: s the sign of the order, sigma the EWMA volatility of log returns at the decision, V the median volume of
the last 20 bars at the decision, O, L, H the open, low and high of the bar that fills.

    reject        with probability p_reject, nothing fills
    volume cap    phi = min(1, rho * volume / |order|)
    partial fill  with probability p_partial, phi is multiplied by a Beta(2, 2) draw
    arrival       P_a = clip(O * exp(sigma * sqrt(lambda) * z1 - sigma^2 * lambda / 2), L, H)
    cost per unit k = min(h + kappa * sigma * |z2| + (2/3) * Y * sigma * sqrt(|quantity| / V), cap)
    fill price    P = P_a * (1 + s * k), not clipped to [L, H]: clipping would delete the cost

Sources. Square-root impact: Almgren and Chriss, "Optimal execution of portfolio transactions" (2001), Toth et al.,
"Anomalous price impact and the critical nature of liquidity in financial markets" (2011), and arXiv:2411.13965;
2/3 is the average of the square root over the order's own execution, so the average fill pays two thirds of the
peak impact. High-low spread estimators (Corwin and Schultz; Abdi and Ranaldo) turned out to be proxies of
volatility on the bars this was designed on, so the half-spread h is a fact of the instrument, not an estimate.
"""

import math

from market_env._compile import inlined


@inlined
def volume_cap_fraction(quantity: float, volume: float, median_volume: float, volume_cap: float) -> float:
    """Largest fillable fraction of `quantity` >= 0 in a bar of `volume`.

    Quotes without volume (volume and its median both zero, as in FX) are not capped.
    """
    available = volume_cap * volume
    enough = (available >= quantity) | ((volume <= 0.0) & (median_volume <= 0.0))
    return 1.0 if enough else available / quantity


@inlined
def arrival_exponent(sigma: float, latency: float, z: float) -> float:
    """ln(P_a / O) before clipping: a martingale step over `latency` (fraction of a bar)."""
    variance = sigma * sigma * latency
    return math.sqrt(variance) * z - 0.5 * variance


@inlined
def arrival_price(open_: float, low: float, high: float, growth: float) -> float:
    """Mid price when the order arrives, within the bar. growth: exp of `arrival_exponent`."""
    return min(max(open_ * growth, low), high)


@inlined
def spread_slippage(half_spread: float, kappa: float, sigma: float, z: float) -> float:
    """Half-spread plus volatility slippage, fraction of the price."""
    return half_spread + kappa * sigma * abs(z)


@inlined
def square_root_impact(coefficient: float, sigma: float, quantity: float, median_volume: float) -> float:
    """Average impact of `quantity` >= 0, fraction of the price; zero where volume is unknown."""
    known = median_volume > 0.0
    share = quantity / (median_volume if known else 1.0)
    return (2.0 / 3.0) * coefficient * sigma * math.sqrt(share) if known else 0.0


@inlined
def limit_fill_price(
    side: float, limit: float, open_: float, low: float, high: float, tick: float, touch_fills: bool
) -> float:
    """Where a limit order fills in a bar, or 0.0 if it does not.

    A buy fills at the open if that is already at or under its price; at its price if the low trades through it by
    more than a tick; on a mere touch only with luck (`touch_fills`: the queue is ahead of us). Sells mirror.
    """
    if side > 0.0:
        if open_ <= limit:
            return open_
        return limit if low < limit - tick or (low <= limit and touch_fills) else 0.0
    if open_ >= limit:
        return open_
    return limit if high > limit + tick or (high >= limit and touch_fills) else 0.0


@inlined
def round_to_lot(quantity: float, lot_size: float) -> float:
    """`quantity` >= 0 rounded down to whole lots (0: no lots); a billionth of a lot forgives division noise."""
    rounds = lot_size > 0.0
    lots = math.floor(quantity / (lot_size if rounds else 1.0) + 1e-9) * lot_size
    return lots if rounds else quantity
