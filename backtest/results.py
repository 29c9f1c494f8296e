"""What a run leaves behind: one strategy on one market, over S paths of fills.

Legend: S fill seeds (paths), N rows (row 0 is the bar of the first decision: the account holds its initial capital
and nothing can have filled), A actions, C chance codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backtest.metrics import AccountSeries, Costs, Floats, Ints, Metric, compute_metrics
from backtest.trades import Bools, PathRows, RoundTrips, round_trips


@dataclass(frozen=True)
class MarketRows:
    """The stretch of a market a run lived through; arrays [N]."""

    symbol: str
    timeframe: str
    bar_seconds: float
    days_per_year: int
    timestamp: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.timestamp)

    @property
    def close_time(self) -> Ints:
        """[N] epoch ms at which each bar was complete."""
        return self.timestamp + round(self.bar_seconds * 1000)


@dataclass(frozen=True)
class Accounts:
    """The ledger of every path; arrays [S, N], quote currency unless said otherwise.

    equity, cash, units: at the bar's close. target: exposure decided at the bar's close (NaN: no order).
    qty_ordered, qty_filled (units, signed), fill_price: of the order executed in the bar. The costs are paid in the
    bar, positive. latency_cost is the filled quantity times the move from the open to its arrival (signed);
    latency_pnl, gap_pnl and bar_pnl are signed profits of the position held.
    """

    equity: Floats
    cash: Floats
    units: Floats
    target: Floats
    qty_ordered: Floats
    qty_filled: Floats
    fill_price: Floats
    fee: Floats
    slippage_cost: Floats
    impact_cost: Floats
    latency_cost: Floats
    latency_pnl: Floats
    gap_pnl: Floats
    bar_pnl: Floats
    funding: Floats
    liquidation_cost: Floats
    bad_debt: Floats
    rejected: Bools
    liquidated: Bools


@dataclass(frozen=True)
class DecisionRows:
    """What the policy said at the close of every row; the last row's decision never fills.

    action [S, N], policy, prior, q_values [S, N, A], value, depth [S, N]; chance_probabilities of the chosen action
    [S, N, C].
    """

    action: NDArray[np.int64]
    policy: NDArray[np.float32]
    prior: NDArray[np.float32]
    q_values: NDArray[np.float32]
    value: NDArray[np.float32]
    depth: NDArray[np.int32]
    chance_probabilities: NDArray[np.float32]
    simulations: int


@dataclass(frozen=True)
class Run:
    """One strategy, one market, S paths of fills."""

    name: str
    market: MarketRows
    seeds: tuple[int, ...]
    accounts: Accounts
    decisions: DecisionRows | None = None

    @property
    def paths(self) -> int:
        return len(self.seeds)

    @cached_property
    def representative(self) -> int:
        """The path shown where only one can be: the (lower) median by final equity, so never the luckiest."""
        order = np.argsort(self.accounts.equity[:, -1], kind="stable")
        return int(order[(len(order) - 1) // 2])

    @property
    def ruined(self) -> bool:
        return bool((self.accounts.equity[:, -1] <= 0.0).any())

    @property
    def ambiguous_bars(self) -> int:
        """Bars of the representative path with a pending order and a liquidation: which was first is not known."""
        row = self.representative
        return int(np.count_nonzero(self.accounts.liquidated[row] & (self.accounts.qty_ordered[row] != 0.0)))

    def exposure(self, path: int) -> Floats:
        """[N] position value over equity at each close."""
        equity = self.accounts.equity[path]
        value = self.accounts.units[path] * self.market.close
        exposure: Floats = np.divide(value, equity, out=np.zeros_like(value), where=equity > 0)
        return exposure

    def trips(self, path: int) -> RoundTrips:
        account = self.accounts
        return round_trips(
            PathRows(
                timestamp=self.market.timestamp,
                high=self.market.high,
                low=self.market.low,
                close=self.market.close,
                equity=account.equity[path],
                units=account.units[path],
                qty_filled=account.qty_filled[path],
                fill_price=account.fill_price[path],
                fee=account.fee[path],
                slippage=account.slippage_cost[path] + account.impact_cost[path] + account.latency_cost[path],
                funding=account.funding[path],
                liquidated=account.liquidated[path],
            )
        )

    def costs(self, path: int) -> Costs:
        account = self.accounts
        return Costs(
            fee=float(account.fee[path].sum()),
            spread=float(account.slippage_cost[path].sum()),
            impact=float(account.impact_cost[path].sum()),
            latency=float(account.latency_cost[path].sum()),
            funding=float(account.funding[path].sum()),
            liquidation=float(account.liquidation_cost[path].sum()),
        )

    def account_series(self, path: int) -> AccountSeries:
        account = self.accounts
        filled = account.qty_filled[path]
        traded = np.abs(filled) * np.where(filled != 0.0, account.fill_price[path], 0.0)
        cost = (
            account.fee[path]
            + account.slippage_cost[path]
            + account.impact_cost[path]
            + account.latency_cost[path]
            + account.funding[path]
            + account.liquidation_cost[path]
        )
        return AccountSeries(
            close_time=self.market.close_time,
            equity=account.equity[path],
            exposure=self.exposure(path),
            traded=traded,
            cost=cost,
            impact=account.impact_cost[path],
            costs=self.costs(path),
        )

    def metrics(self, path: int) -> dict[str, Metric]:
        return compute_metrics(
            self.account_series(path),
            self.trips(path).summary(),
            days_per_year=self.market.days_per_year,
            bar_seconds=self.market.bar_seconds,
        )


def equity_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Long table of the account of every path of every run: one row per run, fill seed and bar."""
    parts = []
    for run in runs:
        rows = len(run.market)
        account = run.accounts
        parts.append(
            pd.DataFrame(
                {
                    "strategy": np.full(rows * run.paths, run.name),
                    "fill_seed": np.repeat(np.array(run.seeds, dtype=np.int64), rows),
                    "timestamp": pd.to_datetime(np.tile(run.market.timestamp, run.paths), unit="ms", utc=True),
                    "equity": account.equity.ravel(),
                    "cash": account.cash.ravel(),
                    "units": account.units.ravel(),
                    "target": account.target.ravel(),
                    "exposure": np.concatenate([run.exposure(path) for path in range(run.paths)]),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def fills_frame(run: Run) -> pd.DataFrame:
    """Every order that reached the market, filled or not, over all paths."""
    account = run.accounts
    path, row = np.nonzero(account.qty_ordered != 0.0)
    return pd.DataFrame(
        {
            "fill_seed": np.array(run.seeds, dtype=np.int64)[path],
            "timestamp": pd.to_datetime(run.market.timestamp[row], unit="ms", utc=True),
            **{
                name: getattr(account, name)[path, row]
                for name in (
                    "qty_ordered",
                    "qty_filled",
                    "fill_price",
                    "fee",
                    "slippage_cost",
                    "impact_cost",
                    "latency_cost",
                    "rejected",
                )
            },
        }
    )


def trades_frame(run: Run) -> pd.DataFrame:
    """Round trips of every path."""
    frames = []
    for path, seed in enumerate(run.seeds):
        frame = run.trips(path).to_frame()
        frame.insert(0, "fill_seed", seed)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def decisions_frame(run: Run) -> pd.DataFrame:
    """What the policy decided and weighed, one row per fill seed and decision."""
    decisions = run.decisions
    if decisions is None:
        return pd.DataFrame({"fill_seed": pd.Series(dtype=np.int64), "timestamp": pd.Series(dtype="int64")})
    rows, actions = decisions.policy.shape[1:]
    columns: dict[str, object] = {
        "fill_seed": np.repeat(np.array(run.seeds, dtype=np.int64), rows),
        "timestamp": pd.to_datetime(np.tile(run.market.timestamp, run.paths), unit="ms", utc=True),
        "action": decisions.action.ravel(),
        "target": run.accounts.target.ravel(),
        "value": decisions.value.ravel(),
        "depth": decisions.depth.ravel(),
        "simulations": np.full(run.paths * rows, decisions.simulations, dtype=np.int32),
    }
    for name in ("policy", "prior", "q_values"):
        for action in range(actions):
            columns[f"{name}_{action}"] = getattr(decisions, name)[:, :, action].ravel()
    return pd.DataFrame(columns)
