"""What the registered ids make when nothing is said: seeded synthetic bars, so that no file or network is needed."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from data.features import FeatureSet
from data.synthetic import regime
from market_env.config import MarketConfig
from market_env.env import MarketEnv
from market_env.instrument import Instrument
from market_env.market import Market
from market_env.vector import MarketVectorEnv

_BARS = 4_096
_SEED = 20_240_101


@cache
def default_market(window: int = MarketConfig().observation.window) -> Market:
    """Hourly bars with a hidden drift that switches, and the default features."""
    bars = regime(_BARS, seed=_SEED)
    return Market.prepare(bars, FeatureSet.build(), Instrument(symbol=bars.symbol, asset_class="crypto"), window=window)


def make_env(
    markets: Sequence[Market] | None = None,
    config: MarketConfig | None = None,
    *,
    seed: int | None = None,
    render_mode: str | None = None,
) -> MarketEnv:
    """`smu0/Market-v0`: a `MarketEnv` on the given markets, or on the default one."""
    config = MarketConfig() if config is None else config
    return MarketEnv(_or_default(markets, config), config, seed=seed, render_mode=render_mode)


def make_vector_env(
    num_envs: int = 1,
    markets: Sequence[Market] | None = None,
    config: MarketConfig | None = None,
    *,
    seed: int | None = None,
    obs_mode: Literal["window", "index"] = "window",
    copy: bool = True,
    **unknown: Any,
) -> MarketVectorEnv:
    """`smu0/Market-v0`, vectorised: a `MarketVectorEnv` on the given markets, or on the default one."""
    if unknown.pop("render_mode", None) is not None or unknown:
        raise TypeError(f"a vector market env takes no {', '.join(unknown) or 'render_mode'}")
    config = MarketConfig() if config is None else config
    return MarketVectorEnv(_or_default(markets, config), config, num_envs, seed=seed, obs_mode=obs_mode, copy=copy)


def _or_default(markets: Sequence[Market] | None, config: MarketConfig) -> Sequence[Market]:
    return [default_market(config.observation.window)] if markets is None else markets
