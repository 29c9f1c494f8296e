"""Deterministic accounting against an independent ledger in 60-digit decimal arithmetic, at every bar.

The reference below knows the rules only: quantity fixed on the close (all-in: whatever the cash buys at the fill),
filled at the next open, a fee on the notional. Prices are multiples of a cent, so the only rounding is the engine's
own.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext

import numpy as np
import pytest

from backtest.baselines import changes_only, moving_average
from backtest.metrics import Floats
from backtest.runner import Sizing, Stretch, run_series
from data.bars import Bars
from market_env.config import ActionConfig, CostConfig, FillConfig, MarginConfig, MarketConfig
from market_env.instrument import Instrument
from market_env.market import Market

FEE = Decimal("0.001")
INITIAL = 100_000
ROWS = 3000

CONFIG = MarketConfig(
    actions=ActionConfig(no_trade_band=0.0),
    fills=FillConfig(mode="deterministic"),
    costs=CostConfig(taker_fee_bps=10.0),
    margin=MarginConfig(enforce=False),
    episode=MarketConfig().episode.model_copy(update={"initial_equity": float(INITIAL)}),
)


def cents(seed: int) -> Floats:
    """A random walk of closes, in whole cents."""
    steps = np.random.default_rng(seed).normal(0.0, 0.004, ROWS)
    return np.round(250.0 * np.exp(np.cumsum(steps)), 2)


def exact_equity(open_: Sequence[Decimal], close: Sequence[Decimal], targets: Floats, sizing: Sizing) -> list[Decimal]:
    """Equity at every close. targets: decided at each close, NaN places no order."""
    cash, units, order, history = Decimal(INITIAL), Decimal(0), None, []
    for row in range(len(close)):
        if order is not None:
            if order == "all in":
                order = cash / (open_[row] * (1 + FEE))
            cash -= order * open_[row] + abs(order) * open_[row] * FEE
            units += order
        equity = cash + units * close[row]
        history.append(equity)
        order = None
        if not np.isnan(targets[row]):
            target = Decimal(float(targets[row]))
            if sizing == "units":
                order = target - units
            elif sizing == "exposure":
                order = target * equity / close[row] - units
            else:
                order = "all in" if target == 1 else -units
    return history


def sma_cross(close: Floats, above: float, below: float) -> Floats:
    fast, slow = moving_average(close, 20), moving_average(close, 80)
    position = np.where(fast > slow, above, below)
    position[:79] = 0.0
    return position


@pytest.mark.parametrize(
    ("above", "below", "sizing", "every_bar"),
    [
        (1.0, 0.0, "units", False),
        (1.0, -1.0, "units", False),
        (1.0, 0.0, "all_in", False),
        (0.5, -0.5, "exposure", False),
        (0.5, -0.5, "exposure", True),
    ],
    ids=["unit long-flat", "unit long-short", "all in", "half of equity on flips", "half of equity every bar"],
)
def test_equity_equals_the_exact_ledger_at_every_bar(
    above: float, below: float, sizing: Sizing, every_bar: bool, bars_of: Callable[..., Bars]
) -> None:
    close = cents(21)
    bars = bars_of(close, timeframe="1m", gap=0.0)
    open_ = np.round(bars.open * (1 + 0.0004 * np.sin(np.arange(ROWS))), 2)
    bars = Bars(
        bars.symbol, bars.timeframe, bars.venue, bars.timestamp, open_,
        np.maximum(open_, close) + 0.01, np.minimum(open_, close) - 0.01, close, bars.volume,
    )  # fmt: skip
    market = Market.prepare(bars, None, Instrument(symbol="TEST", asset_class="crypto"))
    position = sma_cross(close, above, below)
    targets = position if every_bar else changes_only(position)
    run = run_series(targets, market, CONFIG, seeds=[0], name="cross", sizing=sizing, stretch=Stretch(0, len(market)))
    with localcontext() as context:
        context.prec = 60
        exact = exact_equity(
            [Decimal(str(price)) for price in open_], [Decimal(str(price)) for price in close], targets, sizing
        )
        worst = max(
            abs(Decimal(float(found)) / expected - 1)
            for found, expected in zip(run.accounts.equity[0], exact, strict=True)
        )
    assert np.count_nonzero(run.accounts.qty_filled) > 20
    assert worst < Decimal("1e-9")
