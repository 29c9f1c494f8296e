"""The same decisions under other terms: does the result live off its assumptions?

The decided targets are kept and traded again; only the market's terms change. So a difference is the terms' doing and
not a different decision's, and the whole table costs a second.
"""

import numpy as np

from backtest.evaluation import Scenario, daily_returns
from backtest.metrics import Floats, sharpe_ratio
from backtest.results import Run
from backtest.runner import Sizing, Stretch, run_series
from market_env.config import MarketConfig
from market_env.market import Market


def with_fee_factor(config: MarketConfig, factor: float) -> MarketConfig:
    """The configuration with every fee multiplied."""
    costs = config.costs
    changed = costs.model_copy(
        update={
            "taker_fee_bps": costs.taker_fee_bps * factor,
            "maker_fee_bps": costs.maker_fee_bps * factor,
        }
    )
    return config.model_copy(update={"costs": changed})


def with_volume_cap_factor(config: MarketConfig, factor: float) -> MarketConfig:
    """The configuration with the share of a bar's volume that may be taken multiplied (at most all of it)."""
    cap = min(config.fills.volume_cap * factor, 1.0)
    return config.model_copy(update={"fills": config.fills.model_copy(update={"volume_cap": cap})})


def delayed(targets: Floats, bars: int = 1) -> Floats:
    """[..., N] every decision acted on `bars` later."""
    late = np.full_like(targets, np.nan)
    late[..., bars:] = targets[..., :-bars]
    return late


def scenarios(
    run: Run,
    market: Market,
    config: MarketConfig,
    *,
    sizing: Sizing = "exposure",
    stretch: Stretch | None = None,
) -> list[Scenario]:
    """Fees times 0, 1, 2; one bar of delay; half and double the volume cap (which only stochastic fills have)."""
    targets = np.array(run.accounts.target)
    terms: list[tuple[str, Floats, MarketConfig]] = [
        ("as run", targets, config),
        ("no fees", targets, with_fee_factor(config, 0.0)),
        ("double fees", targets, with_fee_factor(config, 2.0)),
        ("one bar later", delayed(targets), config),
    ]
    if config.fills.mode == "stochastic":
        terms.append(("half the volume cap", targets, with_volume_cap_factor(config, 0.5)))
        terms.append(("double the volume cap", targets, with_volume_cap_factor(config, 2.0)))
    found = []
    for name, series, terms_config in terms:
        replay = run_series(series, market, terms_config, seeds=run.seeds, name=name, sizing=sizing, stretch=stretch)
        growth = replay.accounts.equity[:, -1] / replay.accounts.equity[:, 0]
        sharpe = sharpe_ratio(daily_returns(replay))
        found.append(
            Scenario(
                name=name,
                total_return=float(np.median(growth)) - 1.0,
                sharpe=None if sharpe is None else sharpe * float(np.sqrt(market.instrument.trading_days_per_year)),
            )
        )
    return found
