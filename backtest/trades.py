"""From fills to round trips: when a position was opened and closed, what it earned, and how far it went each way.

A round trip lasts while the position keeps its sign; a reversal closes one and opens the next in the same bar. Equity
changes are handed out to round trips without remainder, so that

    sum of closed trades' pnl + open trade's pnl = last equity - initial equity

holds to rounding, whatever fees, funding or liquidation did.

Legend: N bars (row 0 is the first decision: nothing is filled there), T round trips.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backtest.metrics import Floats, Ints, TradeSummary

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PathRows:
    """One account on one path of fills, bar by bar; arrays [N].

    timestamp: bar open, epoch ms. high, low, close: the bar's prices. equity, units: at the bar's close.
    qty_filled: signed units filled in the bar; fill_price: their price (NaN or 0 where nothing filled).
    fee: paid in the bar. slippage: spread + impact + latency paid in the bar. funding: paid in the bar (negative:
    received).
    liquidated: the position was closed by force within the bar.
    """

    timestamp: Ints
    high: Floats
    low: Floats
    close: Floats
    equity: Floats
    units: Floats
    qty_filled: Floats
    fill_price: Floats
    fee: Floats
    slippage: Floats
    funding: Floats
    liquidated: Bools


@dataclass(frozen=True)
class RoundTrips:
    """Round trips in order of entry; arrays [T].

    entry_bar, exit_bar: rows; exit_bar is N for a trade still open. side: +1 long, -1 short. quantity: largest |units|.
    entry_price, exit_price: mean price of the fills that built and reduced the position (exit: NaN while open or
    liquidated).
    pnl: net of everything, quote currency. return_fraction: pnl over quantity x entry price.
    mae, mfe: worst and best price met while held, as a fraction of the entry price in the trade's favour (mae <= 0 <=
    mfe).
    bars_held: bars from entry to exit.
    """

    entry_bar: Ints
    exit_bar: Ints
    entry_time: Ints
    exit_time: Ints
    side: Ints
    quantity: Floats
    entry_price: Floats
    exit_price: Floats
    fee: Floats
    slippage: Floats
    funding: Floats
    pnl: Floats
    return_fraction: Floats
    mae: Floats
    mfe: Floats
    bars_held: Ints
    open: Bools
    liquidated: Bools

    def __len__(self) -> int:
        return len(self.pnl)

    def summary(self) -> TradeSummary:
        closed = ~self.open
        return TradeSummary(self.pnl[closed], self.bars_held[closed], int(self.open.sum()))

    def to_frame(self) -> pd.DataFrame:
        """One row a trade; times in UTC, exit empty while open."""
        exit_time = pd.Series(pd.to_datetime(self.exit_time, unit="ms", utc=True)).where(~self.open)
        return pd.DataFrame(
            {
                "entry_time": pd.to_datetime(self.entry_time, unit="ms", utc=True),
                "exit_time": exit_time,
                "side": np.where(self.side > 0, "long", "short"),
                "quantity": self.quantity,
                "entry_price": self.entry_price,
                "exit_price": self.exit_price,
                "fees": self.fee,
                "slippage": self.slippage,
                "funding": self.funding,
                "pnl": self.pnl,
                "return_fraction": self.return_fraction,
                "mae": self.mae,
                "mfe": self.mfe,
                "bars_held": self.bars_held,
                "open": self.open,
                "liquidated": self.liquidated,
            }
        )


def round_trips(path: PathRows) -> RoundTrips:
    """Group one path's fills into round trips; see the module's text for the identity it keeps."""
    n = len(path.timestamp)
    before = np.concatenate([[0.0], path.units[:-1]])
    after_fill = before + path.qty_filled
    # The kernel's position is the truth (it may round a close to exactly zero); only a liquidation differs from the
    # fill.
    after_fill = np.where(path.liquidated, after_fill, path.units)
    opens = (np.sign(after_fill) != np.sign(before)) & (after_fill != 0.0)
    opened = np.cumsum(opens)
    count = int(opened[-1])
    old = np.where(before != 0.0, np.concatenate([[0], opened[:-1]]) - 1, -1)  # round trip held into the bar
    new = np.where(opens, opened - 1, -1)  # round trip opened in the bar

    change = np.concatenate([[0.0], np.diff(path.equity)])
    close_before = np.concatenate([path.close[:1], path.close[:-1]])
    reversal = opens & (before != 0.0)
    price = np.where(path.qty_filled != 0.0, path.fill_price, 0.0)
    closing_share = np.divide(
        np.abs(before), np.abs(path.qty_filled), out=np.ones(n), where=reversal & (path.qty_filled != 0.0)
    )
    old_fee = np.where(reversal, path.fee * closing_share, path.fee)
    old_slippage = np.where(reversal, path.slippage * closing_share, path.slippage)
    # Funding accrues after the bar's fill, so on a reversal it is the new position's.
    old_change = np.where(reversal, before * (price - close_before) - old_fee, change)

    def per_trip(old_part: Floats, whole: Floats) -> Floats:
        """Sum per round trip of the part that belongs to the position held before, and the rest to the new one."""
        held, fresh = old >= 0, new >= 0
        total = np.bincount(old[held], old_part[held], count)
        rest = np.where(reversal, whole - old_part, whole)
        return np.asarray(total + np.bincount(new[fresh], rest[fresh], count), dtype=np.float64)

    pnl = per_trip(old_change, change)
    fee = per_trip(old_fee, path.fee)
    slippage = per_trip(old_slippage, path.slippage)
    funding = per_trip(np.where(reversal, 0.0, path.funding), path.funding)

    increase = np.where(opens, np.abs(after_fill), np.where(before != 0, np.abs(after_fill) - np.abs(before), 0))
    increase = np.maximum(increase, 0.0)
    builder = np.where(opens, new, old)
    built, built_value = _sums(builder, increase, price, count)
    reduced_by = np.where(reversal, np.abs(before), np.maximum(np.abs(before) - np.abs(after_fill), 0.0))
    reduced, reduced_value = _sums(old, reduced_by, price, count)
    entry_price = built_value / built if count else np.zeros(0)

    entry = np.flatnonzero(opens)
    # A trip ends where its position is gone: filled away at a later bar's open, or liquidated within a bar.
    ends = (before != 0.0) & (np.sign(after_fill) != np.sign(before))
    forced = path.liquidated & (path.units == 0.0) & (after_fill != 0.0)
    exit_bar = np.full(count, n, dtype=np.int64)
    exit_bar[old[ends]] = np.flatnonzero(ends)
    liquidated = np.zeros(count, dtype=bool)
    forced_trip = np.where(opens, new, old)[forced]
    exit_bar[forced_trip] = np.flatnonzero(forced)
    liquidated[forced_trip] = True
    still_open = exit_bar == n
    # Bars whose whole range the trade lived through: up to the exit bar, which counts only if it was closed inside it.
    stop = np.where(liquidated, exit_bar + 1, np.minimum(exit_bar, n))

    side = np.sign(after_fill[entry]).astype(np.int64)
    quantity = _largest(np.maximum(np.abs(path.units), np.abs(after_fill)), entry, stop)
    low, high = -_largest(-path.low, entry, stop), _largest(path.high, entry, stop)
    exit_price = np.divide(
        reduced_value, reduced, out=np.full(count, np.nan), where=(reduced > 0) & ~still_open & ~liquidated
    )
    last = np.where(np.isnan(exit_price), entry_price, exit_price)
    low, high = np.minimum(np.minimum(low, last), entry_price), np.maximum(np.maximum(high, last), entry_price)
    worst = np.where(side > 0, low, high)
    best = np.where(side > 0, high, low)
    end_row = np.minimum(exit_bar, n - 1)
    return RoundTrips(
        entry_bar=entry.astype(np.int64),
        exit_bar=exit_bar,
        entry_time=path.timestamp[entry],
        exit_time=path.timestamp[end_row],
        side=side,
        quantity=quantity,
        entry_price=entry_price,
        exit_price=exit_price,
        fee=fee,
        slippage=slippage,
        funding=funding,
        pnl=pnl,
        return_fraction=pnl / (quantity * entry_price) if count else np.zeros(0),
        mae=side * (worst / entry_price - 1.0) if count else np.zeros(0),
        mfe=side * (best / entry_price - 1.0) if count else np.zeros(0),
        bars_held=(stop - entry).astype(np.int64),
        open=still_open,
        liquidated=liquidated,
    )


def _sums(trip: Ints, quantity: Floats, price: Floats, count: int) -> tuple[Floats, Floats]:
    """Units and value per round trip of the fills that carry a quantity."""
    rows = (trip >= 0) & (quantity > 0.0)
    units = np.bincount(trip[rows], quantity[rows], count)
    value = np.bincount(trip[rows], (quantity * price)[rows], count)
    return units.astype(np.float64), value.astype(np.float64)


def _largest(series: Floats, start: Ints, stop: Ints) -> Floats:
    """[T] maximum of series[start:stop] for each round trip (every one spans at least a bar)."""
    if len(start) == 0:
        return np.zeros(0)
    padded = np.append(series, -np.inf)
    edges = np.column_stack([start, stop]).ravel()
    return np.maximum.reduceat(padded, edges)[::2]
