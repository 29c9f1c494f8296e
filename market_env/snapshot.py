"""An account described from outside, as the agent would see it: what a service knows of somebody else's account.

The environments and the session carry an account from bar to bar. A caller of the service only says what it is now.
The numbers the agent sees still come from the kernel, so that both are the same observation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_env import kernel
from market_env._compile import compiled
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.kernel import Array
from market_env.layout import Block, at, new_block


@dataclass(frozen=True, kw_only=True)
class AccountSnapshot:
    """An account at a close. Money in any one currency: only ratios reach the agent.

    exposure: position value / equity. price: the close.
    equity, initial_equity, peak_equity: now, at the beginning, and the highest at any close.
    entry_price: average price of the position, costs included; None: the close. entry_volatility: per bar, when it was
        opened; a position has one. bars_held: since then.
    last_target, last_fill_fraction: of the last decision; None: the exposure.

    Raises ValueError for an account that cannot be.
    """

    exposure: float
    price: float
    equity: float = 1.0
    initial_equity: float = 1.0
    peak_equity: float = 1.0
    entry_price: float | None = None
    entry_volatility: float | None = None
    bars_held: int = 0
    last_target: float | None = None
    last_fill_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("price", "equity", "initial_equity"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        if not max(self.equity, self.initial_equity) <= self.peak_equity < np.inf:
            raise ValueError(
                f"peak_equity {self.peak_equity:g} must be at least equity {self.equity:g} and initial_equity "
                f"{self.initial_equity:g}"
            )
        if self.exposure == 0.0 and (self.bars_held, self.entry_price, self.entry_volatility) != (0, None, None):
            raise ValueError(
                "without a position there is no entry: leave out entry_price, entry_volatility and bars_held"
            )
        if self.exposure != 0.0 and self.entry_volatility is None:
            raise ValueError("a position was opened at some volatility: give entry_volatility")


class AccountObserver:
    """Turns snapshots into the account part of an observation. Not for two threads at once."""

    size = len(kernel.ACCOUNT_FEATURES)

    def __init__(self, config: MarketConfig, instrument: Instrument) -> None:
        self._rules = kernel.rules_for(config, instrument)
        self._block = new_block()

    def observe(self, snapshot: AccountSnapshot) -> NDArray[np.float32]:
        """[8] float32 within +-5, see `kernel.ACCOUNT_FEATURES`."""
        out: NDArray[np.float32] = np.empty((1, self.size), dtype=np.float32)
        _observe(
            self._block,
            self._rules,
            snapshot.exposure,
            snapshot.price,
            snapshot.equity,
            snapshot.initial_equity,
            snapshot.peak_equity,
            snapshot.price if snapshot.entry_price is None else snapshot.entry_price,
            0.0 if snapshot.entry_volatility is None else snapshot.entry_volatility,
            float(snapshot.bars_held),
            snapshot.exposure if snapshot.last_target is None else snapshot.last_target,
            snapshot.last_fill_fraction,
            out,
        )
        return out.reshape(-1)


@compiled
def _observe(
    s: Block,
    rules: Array,
    exposure: float,
    price: float,
    equity: float,
    initial_equity: float,
    peak_equity: float,
    entry_price: float,
    entry_volatility: float,
    bars_held: float,
    target: float,
    fill_fraction: float,
    out: Array,
) -> None:
    """Mark a cash account, then let it hold the position, as an episode that begins with one does."""
    kernel.open_account(s, 0, np.uint64(0), initial_equity, rules[0])
    s[at.cash] = equity
    s[at.peak_equity] = peak_equity
    s[at.close] = price
    kernel.mark(s, 1)
    s[at.target] = target
    s[at.fill_fraction] = fill_fraction
    if exposure != 0.0:
        s[at.units] = exposure * equity / price
        s[at.cash] = equity - s[at.units] * price
        s[at.exposure] = exposure
        s[at.entry_price] = entry_price
        s[at.entry_sigma] = entry_volatility
        s[at.bars_held] = bars_held
    kernel.observe_accounts(s, 1, rules[0], out, 0)
