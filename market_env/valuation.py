"""What an account is worth to whoever wants to leave it."""

import math

from market_env import fills, kernel
from market_env.config import MarketConfig
from market_env.instrument import Instrument


def liquidation_value(
    config: MarketConfig,
    instrument: Instrument,
    *,
    equity: float,
    units: float,
    close: float,
    sigma: float,
    median_volume: float,
) -> float:
    """Equity if the open position were closed at the close at expected cost: what the account would pay out.

    equity, close: quote currency; units: signed; sigma: bar volatility; median_volume: units per bar. The cost is the
    fill model's with its noise at the mean, E|z| = √(2/π).
    """
    rules = kernel.rules_for(config, instrument)[0]
    size = abs(units)
    cost = float(rules["taker_fee"])
    if bool(rules["stochastic"]):
        mean_noise = math.sqrt(2.0 / math.pi)
        slippage = fills.spread_slippage(float(rules["half_spread"]), float(rules["kappa"]), sigma, mean_noise)
        impact = fills.square_root_impact(float(rules["impact"]), sigma, size, median_volume)
        cost += min(slippage + impact, float(rules["cost_cap"]))
    return equity - size * close * cost
