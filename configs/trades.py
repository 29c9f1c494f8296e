"""Somebody's trades from a CSV file, as decisions on the market of an experiment.

Two kinds of files, told apart by their header (further columns are ignored, order does not matter):

    timestamp,target            the position wanted from then on, as a fraction of equity: 1 all in, 0 out, -1 short
    timestamp,side,quantity     what was traded: buy or sell, how much of the instrument

`timestamp` is when the trade was made: ISO 8601 (UTC unless it says otherwise) or epoch milliseconds, increasing. A
trade is made by the decision whose order fills in the bar that holds its timestamp; of several in one bar the last
target counts. Targets become the nearest action of the market's grid. Quantities are added up and valued at the close
of each decision's bar, as fractions of the trader's equity, which starts at `capital` and grows as the account does.
"""

import csv
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from market_env.actions import ActionGrid
from market_env.market import Market


class TradesError(ValueError):
    """A file of trades that cannot be understood, or that is not about these bars."""


@dataclass(frozen=True)
class Trades:
    """Times [M] in epoch ms, increasing, and what is held from each on: a target (fraction of equity) or a quantity."""

    times: tuple[int, ...]
    positions: tuple[float, ...]
    kind: Literal["target", "quantity"]

    def at(self, time: int) -> float:
        """What is held by trades before `time`; 0 before the first."""
        count = bisect_left(self.times, time)
        return self.positions[count - 1] if count else 0.0


def read_trades(path: Path) -> Trades:
    """Read a CSV file of either kind. Raises TradesError naming the line."""
    try:
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            header = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TradesError(f"{path}: expected a CSV file of trades, found none ({error})") from error
    kind: Literal["target", "quantity"]
    if {"timestamp", "target"} <= set(header):
        kind = "target"
    elif {"timestamp", "side", "quantity"} <= set(header):
        kind = "quantity"
    else:
        raise TradesError(
            f"{path}: expected the columns timestamp,target or timestamp,side,quantity; found "
            f"{','.join(header) or 'none'}"
        )
    times: list[int] = []
    positions: list[float] = []
    held = 0.0
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        time = _time(row["timestamp"], where)
        if times and time < times[-1]:
            raise TradesError(f"{where}: expected increasing times, found {row['timestamp']!r} after a later one")
        if kind == "target":
            held = _number(row["target"], "target", where)
        else:
            held += _side(row["side"], where) * _number(row["quantity"], "quantity", where, positive=True)
        times.append(time)
        positions.append(held)
    if not times:
        raise TradesError(f"{path}: expected at least one trade, found none")
    return Trades(tuple(times), tuple(positions), kind)


def _time(text: str | None, where: str) -> int:
    text = (text or "").strip()
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TradesError(
            f"{where}: timestamp: expected ISO 8601 (2024-03-01T10:00:00Z) or epoch milliseconds, found {text!r}"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(moment.timestamp() * 1000)


def _number(text: str | None, column: str, where: str, *, positive: bool = False) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (positive and value <= 0):
        raise TradesError(f"{where}: {column}: expected a{' positive' if positive else ''} number, found {text!r}")
    return value


def _side(text: str | None, where: str) -> float:
    sides = {"buy": 1.0, "sell": -1.0}
    side = sides.get((text or "").strip().lower())
    if side is None:
        raise TradesError(f"{where}: side: expected buy or sell, found {text!r}")
    return side


class TradesPlayer:
    """Makes the decisions of a file of trades on one market, one row of a vector environment.

    largest_difference: between what was wanted and the nearest action, so far: what the grid cannot express.
    """

    def __init__(
        self, trades: Trades, market: Market, grid: ActionGrid, *, capital: float, initial_equity: float
    ) -> None:
        """Raises TradesError when no trade falls into the market's decisions."""
        self._trades, self._grid = trades, grid
        self._capital, self._initial_equity = capital, initial_equity
        self._opens, self._bar_ms, self._close = market.timestamp, market.bar_ms, market.close
        self.largest_difference = 0.0
        first, last = int(self._opens[market.first_decision + 1]), int(self._opens[-1]) + self._bar_ms
        inside = [time for time in trades.times if first <= time < last]
        if not inside:
            bounds = (first, last, trades.times[0], trades.times[-1])
            begin, end, earliest, latest = (f"{datetime.fromtimestamp(time / 1000, UTC):%F %R}" for time in bounds)
            raise TradesError(
                f"no trade falls into these bars: expected times from {begin} to {end} UTC, found {earliest} to "
                f"{latest}. Take bars of that time (data, splits.train)"
            )
        self.used = len(inside)

    def __call__(self, observations: Any, mask: NDArray[np.bool_], infos: dict[str, Any]) -> NDArray[np.int64]:
        t = int(infos["t"][0])
        # The order of this decision fills in bar t + 1: it makes the trades up to the end of that bar.
        fill_ends = int(self._opens[min(t + 1, len(self._opens) - 1)]) + self._bar_ms
        wanted = self._trades.at(fill_ends)
        if self._trades.kind == "quantity":
            equity = self._capital * float(infos["equity"][0]) / self._initial_equity
            wanted *= float(self._close[t]) / max(equity, 1e-9)
        action = self._grid.nearest(wanted)
        self.largest_difference = max(self.largest_difference, abs(float(self._grid.targets[action]) - wanted))
        return np.array([action], np.int64)
