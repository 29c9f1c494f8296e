"""TradingSession: one account, bar by bar; and whole series in one compiled loop. Both drive `kernel.py`.

session = TradingSession(config, instrument, seed=7)
record = session.on_bar(BarInput(timestamp, open, high, low, close, volume, duration_ms))
order = session.submit(0.5, sigma=..., median_volume=...)     # fills in the next bar
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data.bars import Bars
from market_env import kernel, layout, rng
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.layout import at
from market_env.market import Market

STATE_SCHEMA = 1
_OUTCOME_PLACES = np.array(layout.OUTCOME_AT)
_INTEGER_COLUMNS = tuple(layout.OUTCOME_FIELDS.index(name) for name in ("t", "timestamp"))
_BOOLEAN_COLUMNS = tuple(
    layout.OUTCOME_FIELDS.index(name) for name in ("rejected", "liquidated", "terminated", "truncated")
)


class BarInput(NamedTuple):
    """One closed bar. timestamp: its open, epoch ms UTC; duration_ms: its length."""

    timestamp: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    duration_ms: int

    @classmethod
    def from_bars(cls, bars: Bars, row: int) -> Self:
        """Row `row` of a bar series."""
        return cls(
            int(bars.timestamp[row]), float(bars.open[row]), float(bars.high[row]), float(bars.low[row]),
            float(bars.close[row]), float(bars.volume[row]), bars.timeframe.milliseconds,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """What a decision asked for. quantity: signed units, 0: no order was placed; limit_price 0: a market order."""

    target: float
    quantity: float
    limit_price: float
    decided_at: int
    mark_price: float


@dataclass(frozen=True, slots=True)
class BarRecord:
    """One bar of an account's life: the columns of `info`.

    Money in the quote currency; costs positive when paid. t: bars seen before this one. timestamp: bar open, epoch
    ms. equity, cash, units, exposure, drawdown: at the close. target: of the decision this bar executed. A price
    of 0 means that nothing arrived or filled. funding: funding or interest. log_return: of the equity over the bar.
    """

    t: int
    timestamp: int
    instrument: str
    equity: float
    cash: float
    units: float
    exposure: float
    target: float
    qty_ordered: float
    qty_filled: float
    fill_price: float
    arrival_price: float
    fill_fraction: float
    rejected: bool
    fee: float
    slippage_cost: float
    impact_cost: float
    latency_pnl: float
    gap_pnl: float
    bar_pnl: float
    funding: float
    liquidation_cost: float
    bad_debt: float
    log_return: float
    drawdown: float
    liquidated: bool
    action_mask: NDArray[np.bool_]

    def as_info(self) -> dict[str, Any]:
        """The record as the `info` dictionary of the environments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def typed_outcome(values: Sequence[float]) -> list[Any]:
    """An outcome of plain numbers (in the order of `OUTCOME_FIELDS`) with integers and booleans where they belong."""
    outcome: list[Any] = list(values)
    for column in _INTEGER_COLUMNS:
        outcome[column] = int(outcome[column])
    for column in _BOOLEAN_COLUMNS:
        outcome[column] = outcome[column] > 0.0
    return outcome


def read_outcome(outcome: Sequence[Any], instrument: str, action_mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The record in a typed outcome (in the order of `OUTCOME_FIELDS`) as an `info` dictionary.

    Written out because it is a third of the time of a single environment's step: a display is built in one go.
    """
    (
        t, timestamp, equity, cash, units, exposure, target, qty_ordered, qty_filled, fill_price, arrival_price,
        fill_fraction, rejected, fee, slippage_cost, impact_cost, latency_pnl, gap_pnl, bar_pnl, funding,
        liquidation_cost, bad_debt, log_return, drawdown, liquidated, _reward, _terminated, _truncated,
    ) = outcome  # fmt: skip
    return {
        "t": t,
        "timestamp": timestamp,
        "instrument": instrument,
        "equity": equity,
        "cash": cash,
        "units": units,
        "exposure": exposure,
        "target": target,
        "qty_ordered": qty_ordered,
        "qty_filled": qty_filled,
        "fill_price": fill_price,
        "arrival_price": arrival_price,
        "fill_fraction": fill_fraction,
        "rejected": rejected,
        "fee": fee,
        "slippage_cost": slippage_cost,
        "impact_cost": impact_cost,
        "latency_pnl": latency_pnl,
        "gap_pnl": gap_pnl,
        "bar_pnl": bar_pnl,
        "funding": funding,
        "liquidation_cost": liquidation_cost,
        "bad_debt": bad_debt,
        "log_return": log_return,
        "drawdown": drawdown,
        "liquidated": liquidated,
        "action_mask": action_mask,
    }


class TradingSession:
    """The scalar driver: an account of one instrument under one configuration.

    The order submitted on a close fills in the next bar given to `on_bar`. Nothing here is random: the fill draws
    are addressed by (seed, instrument, bar timestamp).
    """

    def __init__(
        self, config: MarketConfig, instrument: Instrument, seed: int, initial_equity: float = 10_000.0
    ) -> None:
        if not (math.isfinite(initial_equity) and initial_equity > 0.0):
            raise ValueError(f"initial_equity must be a positive amount, got {initial_equity!r}")
        self.config = config
        self.instrument = instrument
        self.seed = rng.seed_key(seed)
        self._grid = ActionGrid.build(config.actions)
        self._rules = kernel.rules_for(config, instrument)
        self._block = layout.new_block()
        self._bars_seen = 0
        kernel.open_lane(self._block, 0, np.uint64(self.seed), initial_equity, self._rules)

    # --- the two verbs ---------------------------------------------------------------------------------------------

    def on_bar(self, bar: BarInput) -> BarRecord:
        """Fill the pending order in this bar from its open, charge what holding costs, mark at its close.

        Raises ValueError for a bar that is not finite, positive and ordered, or not after the last one.
        """
        self._check_bar(bar)
        self._block[at.t] = self._bars_seen
        kernel.advance_one(
            self._block, float(bar.timestamp), bar.open, bar.high, bar.low, bar.close, bar.volume,
            float(bar.duration_ms), self._rules,
        )  # fmt: skip
        self._bars_seen += 1
        outcome = typed_outcome(self._block[_OUTCOME_PLACES].tolist())
        return BarRecord(**read_outcome(outcome, self.instrument.symbol, self._grid.mask))

    def submit(self, target: float, *, sigma: float, median_volume: float) -> Order:
        """Decide on the last close: make `target` exposure (position value / equity) the pending order.

        sigma: volatility per bar, and median_volume: of the last 20 bars (0: no volume), both known at that close.
        The quantity is fixed now. A second call before the next bar replaces the order.
        """
        if self._bars_seen == 0:
            raise ValueError(f"{self.instrument.symbol}: submit before the first bar; call on_bar first")
        limit = self.config.actions.max_leverage
        low = 0.0 if self.config.actions.spot else -limit
        if not low <= target <= limit:
            raise ValueError(
                f"{self.instrument.symbol}: target exposure must lie in [{low:g}, {limit:g}]"
                f"{' (spot)' if self.config.actions.spot else ''}, got {target!r}"
            )
        if not (math.isfinite(sigma) and sigma > 0.0):
            raise ValueError(f"{self.instrument.symbol}: sigma must be a positive number, got {sigma!r}")
        if not (math.isfinite(median_volume) and median_volume >= 0.0):
            raise ValueError(f"{self.instrument.symbol}: median_volume must be >= 0, got {median_volume!r}")
        kernel.order_one(self._block, float(target), float(sigma), float(median_volume), self._rules)
        return Order(
            target=float(target),
            quantity=float(self._block[at.order_quantity]),
            limit_price=float(self._block[at.order_limit]),
            decided_at=int(self._block[at.clock]),
            mark_price=float(self._block[at.mark_price]),
        )

    # --- what it knows ---------------------------------------------------------------------------------------------

    def account_observation(self) -> NDArray[np.float32]:
        """The account as the agent sees it: [8] float32 within +-5 (`kernel.ACCOUNT_FEATURES`)."""
        out: NDArray[np.float32] = np.empty((1, len(kernel.ACCOUNT_FEATURES)), dtype=np.float32)
        kernel.observe_one(self._block, self._rules, out)
        return out.reshape(-1)

    @property
    def equity(self) -> float:
        """Equity at the last mark, quote currency."""
        return float(self._block[at.equity])

    @property
    def cash(self) -> float:
        """Cash, quote currency."""
        return float(self._block[at.cash])

    @property
    def units(self) -> float:
        """Position, signed units."""
        return float(self._block[at.units])

    @property
    def exposure(self) -> float:
        """Position value / equity at the last mark."""
        return float(self._block[at.exposure])

    @property
    def ruined(self) -> bool:
        """Whether nothing is left to trade with."""
        return self.equity <= 0.0

    # --- persistence -----------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything the session remembers, as plain numbers: JSON and back restores it to the last bit."""
        return {
            "schema": STATE_SCHEMA,
            "symbol": self.instrument.symbol,
            "bars_seen": self._bars_seen,
            "account": layout.read_lane(self._block, layout.ACCOUNT_FIELDS),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state` of a session of the same instrument and configuration."""
        for name, expected in (("schema", STATE_SCHEMA), ("symbol", self.instrument.symbol)):
            if state.get(name) != expected:
                raise ValueError(f"session state: {name} must be {expected!r}, found {state.get(name)!r}")
        account = state["account"]
        names = set(layout.ACCOUNT_FIELDS)
        if set(account) != names:
            raise ValueError(
                f"session state: account fields differ from this version: missing {sorted(names - set(account))}, "
                f"unknown {sorted(set(account) - names)}"
            )
        for name, value in account.items():
            if not math.isfinite(value):
                raise ValueError(f"session state: account.{name} must be finite, found {value!r}")
        layout.write_lane(self._block, account)
        self._bars_seen = int(state["bars_seen"])

    def _check_bar(self, bar: BarInput) -> None:
        symbol = self.instrument.symbol
        where = f"{symbol} bar {bar.timestamp}"
        for name in ("open", "high", "low", "close"):
            value = getattr(bar, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{where}: {name} must be a positive price, got {value!r}")
        if not bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high:
            raise ValueError(
                f"{where}: expected low <= open, close <= high, got open {bar.open}, high {bar.high}, "
                f"low {bar.low}, close {bar.close}"
            )
        if not (math.isfinite(bar.volume) and bar.volume >= 0.0):
            raise ValueError(f"{where}: volume must be >= 0, got {bar.volume!r}")
        if bar.duration_ms <= 0:
            raise ValueError(f"{where}: duration_ms must be positive, got {bar.duration_ms!r}")
        clock = int(self._block[at.clock])
        if self._bars_seen and bar.timestamp < clock:
            raise ValueError(f"{where}: bars must follow each other; the last one closed at {clock}")


@dataclass(frozen=True, eq=False)
class Ledger:
    """Whole-series runs: one array [S, N] per column of `BarRecord`, for S seeds and N bars from `first_row` on.

    Columns that were not asked for are absent. `timestamp` is [N], the same for every seed.
    """

    seeds: NDArray[np.uint64]
    timestamp: NDArray[np.int64]
    first_row: int
    columns: Mapping[str, NDArray[np.float64]]

    def __getattr__(self, name: str) -> NDArray[np.float64]:
        columns: Mapping[str, NDArray[np.float64]] = object.__getattribute__(self, "columns")
        if name in columns:
            return columns[name]
        raise AttributeError(f"Ledger has no column {name!r}; it holds {', '.join(columns)}")

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return getattr(self, name)  # type: ignore[no-any-return]


LEDGER_COLUMNS = tuple(name for name in layout.RECORD_FIELDS if name not in ("t", "timestamp"))


def run_targets(
    market: Market,
    targets: NDArray[np.float64],
    config: MarketConfig,
    seeds: Sequence[int] = (0,),
    *,
    start: int | None = None,
    stop: int | None = None,
    sizing: str = "exposure",
    columns: Sequence[str] = LEDGER_COLUMNS,
    initial_equity: float | None = None,
) -> Ledger:
    """Trade a series of targets on a whole market, once per seed, in one compiled loop on the same kernel.

    targets: [len(market)], the decision at each bar's close; NaN places no order.
    start, stop: rows to run, by default from the first decision bar to the end.
    sizing: "exposure" (target x equity / close), "units" (target position in units) or "all_in" (+1/-1: as much as
        margin allows at the fill; 0: close).
    columns: what to keep of each bar; fewer is faster.
    """
    start = market.first_decision if start is None else start
    stop = len(market) if stop is None else stop
    targets = np.ascontiguousarray(targets, dtype=np.float64)
    if targets.shape != (len(market),):
        raise ValueError(f"targets must be one number per bar, shape ({len(market)},), got {targets.shape}")
    if not 0 <= start < stop <= len(market):
        raise ValueError(f"need 0 <= start < stop <= {len(market)} (bars), got start {start}, stop {stop}")
    if sizing not in kernel.SIZINGS:
        raise ValueError(f"sizing must be one of {', '.join(kernel.SIZINGS)}, got {sizing!r}")
    unknown = [name for name in columns if name not in LEDGER_COLUMNS]
    if unknown:
        raise ValueError(f"unknown ledger columns {unknown}; choose from {', '.join(LEDGER_COLUMNS)}")
    _check_targets(targets[start:stop], config, sizing, start)

    equity = config.episode.initial_equity if initial_equity is None else initial_equity
    keys = np.array([rng.seed_key(seed) for seed in seeds], dtype=np.uint64)
    rules = kernel.rules_for(config, market.instrument)
    blocks = layout.new_blocks(len(keys))
    for i, key in enumerate(keys):
        block, lane = divmod(i, layout.LANES)
        kernel.open_lane(blocks[block], lane, key, equity, rules)
    ledger = np.empty((len(columns), len(keys), stop - start))
    kernel.run_series(
        blocks,
        len(keys),
        rules,
        market.bar_rows,
        float(market.bar_ms),
        targets,
        kernel.SIZINGS[sizing],
        start,
        stop,
        kernel.record_places(tuple(columns)),
        ledger,
    )
    return Ledger(
        seeds=keys,
        timestamp=market.timestamp[start:stop],
        first_row=start,
        columns=dict(zip(columns, ledger, strict=True)),
    )


def _check_targets(targets: NDArray[np.float64], config: MarketConfig, sizing: str, start: int) -> None:
    """Targets are NaN (no order) or within what the account may hold."""
    limit = {"exposure": config.actions.max_leverage, "units": math.inf, "all_in": 1.0}[sizing]
    low = 0.0 if config.actions.spot else -limit
    wrong = ~np.isnan(targets) & ~((targets >= low) & (targets <= limit) & np.isfinite(targets))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"target at bar {start + row} must be NaN or within [{low:g}, {limit:g}] ({sizing}), got {targets[row]}"
        )
