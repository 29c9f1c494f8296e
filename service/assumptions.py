"""What a simulated fill assumes, in words a trader can disagree with."""

from market_env.config import MarketConfig
from market_env.instrument import Instrument


def describe_fills(config: MarketConfig, instrument: Instrument) -> list[str]:
    """One sentence per assumption; the formulas stand in `market_env.fills` and `market_env.costs`."""
    fills, costs, actions = config.fills, config.costs, config.actions
    words = [
        "Nothing is sent to an exchange: a decision on the close of a bar fills in the next bar, from its open, never "
        "earlier.",
    ]
    if fills.mode == "deterministic":
        words.append("All of an order fills at the next open; only the fee is charged.")
    else:
        words += [
            f"It reaches the market after {fills.latency_fraction:.0%} of a bar; what the price does until then is the "
            f"account's luck.",
            f"It pays half the spread ({instrument.half_spread_fraction * 1e4:g} bp), slippage that grows with "
            f"volatility, and the square-root impact of its size, together at most {fills.cost_cap:.0%} of the price.",
            f"It fills up to {fills.volume_cap:.0%} of the bar's volume; {fills.partial_probability:.1%} of orders "
            f"fill in part and {fills.reject_probability:.1%} are rejected, drawn from the run's seed.",
        ]
    if fills.order_type == "limit":
        words.append(
            f"Orders are limit orders {fills.limit_offset_bps:g} bp from the close; a bar that only touches the price "
            f"fills {fills.touch_fill_probability:.0%} of them. A maker fee of {costs.maker_fee_bps:g} bp is charged."
        )
    else:
        words.append(f"The fee is {costs.taker_fee_bps:g} bp of what is traded.")
    if costs.perpetual:
        words.append(
            f"It is a perpetual swap: longs pay shorts {costs.funding_rate:.3%} every "
            f"{costs.funding_interval_hours:g} h."
        )
    else:
        words.append(
            f"A short pays {costs.short_interest_annual:.1%} a year, borrowed cash {costs.margin_interest_annual:.1%}."
        )
    if actions.spot:
        words.append("Spot only: no short positions.")
    words.append(
        f"Exposure stays within {actions.max_leverage:g} times the equity; a difference below "
        f"{actions.no_trade_band:.0%} of it is not traded."
    )
    if config.margin.enforce:
        words.append(
            f"Below {config.margin.maintenance:.1%} margin the position is closed within the bar, for a fee of "
            f"{config.margin.liquidation_fee_bps:g} bp."
        )
    return words
