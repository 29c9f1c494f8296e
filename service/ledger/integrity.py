"""Does the ledger tell one story? Every bar of a run is gone through again, from the first, and compared with what is
written.

Two independent questions, bar by bar:

- **Sums** (plain arithmetic on the written numbers): what was held before, plus the fill, is what is held after; cash
  pays for it; equity is cash plus position at the close. True whatever model of fills the code has.
- **Replay** (`market_env.session`, as trading did it): the written bars and orders through a fresh account of the run's
  market, instrument and seed give the written fills, marks and account. To the last bit on the machine that traded; on
  another one, libraries may round a logarithm differently, so what agrees to `TOLERANCE` is no finding, only not
  `exact`.

Beside them: every bar from the first to the cursor is there or in a recorded gap, and has exactly one decision.
"""

import heapq
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from data.quality import format_time
from data.timeframe import Timeframe
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.session import BarInput, BarRecord, TradingSession
from service.ledger.connection import SQLITE
from service.ledger.errors import LedgerInconsistent, translated
from service.ledger.schema import BarRow, DecisionRow, EquityRow, FillRow, OrderRow, RunRow
from service.ledger.store import MAX_LIMIT, Ledger, Reader, every

TOLERANCE: Final = 1e-9  # relative to the larger of the two numbers, or to the run's initial equity for money
_SHOWN: Final = 5  # findings that fit into one line
_KEPT: Final = 100  # after a first mistake usually everything differs

# Columns of a fill beside those of a record, by the record's names.
_FILL_COLUMNS: Final = {
    "quantity": "qty_filled",
    "price": "fill_price",
    "arrival_price": "arrival_price",
    "fraction": "fill_fraction",
    **{
        name: name
        for name in (
            "fee", "slippage_cost", "impact_cost", "latency_pnl", "gap_pnl", "bar_pnl", "funding", "liquidation_cost",
            "bad_debt",
        )
    },
}  # fmt: skip
_EQUITY_COLUMNS: Final = {
    "equity": "equity",
    "cash": "cash",
    "units": "units",
    "exposure": "exposure",
    "drawdown_fraction": "drawdown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that cannot be. bar_ts: where it was noticed, None: in the run as a whole."""

    bar_ts: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.bar_ts is None else f"bar {format_time(self.bar_ts)}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run gone through. exact: everything replayed equals what is written to the last bit.

    bars: the account went through. missing: bars in recorded gaps. findings: the first hundred.
    """

    run_id: str
    bars: int
    missing: int
    decisions: int
    orders: int
    fills: int
    exact: bool
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings


def check(ledger: Ledger, *, all_runs: bool = False) -> list[RunReport]:
    """Go through the active run, or through every run. One state of the ledger; nothing is changed.

    Raises LedgerInconsistent if the database file itself is damaged. See `require_sound`.
    """
    _check_database(ledger)
    with ledger.reading() as read:
        if all_runs:
            runs = read.runs(limit=MAX_LIMIT)
        else:
            active = read.active_run()
            runs = [] if active is None else [active]
        return [check_run(read, run) for run in runs]


def require_sound(ledger: Ledger) -> list[RunReport]:
    """What a trader asks before it starts. Raises LedgerInconsistent unless the active run adds up."""
    reports = check(ledger)
    for report in reports:
        if not report.ok:
            shown = "; ".join(str(finding) for finding in report.findings[:_SHOWN])
            more = len(report.findings) - _SHOWN
            raise LedgerInconsistent(
                f"{ledger.place}: run {report.run_id} does not add up: {shown}"
                f'{f"; and {more} more" if more > 0 else ""}. Look with "python -m service ledger check", then '
                f'restore a backup ("python -m service ledger restore FILE")'
            )
    return reports


def check_run(read: Reader, run: RunRow) -> RunReport:
    """Go through one run."""
    return _Audit(read, run).report()


class _Rows(NamedTuple):
    """What is written about one bar. order: submitted at its close."""

    equity: EquityRow | None = None
    bar: BarRow | None = None
    decision: DecisionRow | None = None
    order: OrderRow | None = None
    fill: FillRow | None = None


def _rows_of(read: Reader, run: RunRow, step: int) -> Iterator[tuple[int, _Rows]]:
    """Everything written about each bar, oldest first: five ordered lists read side by side, a page at a time.

    Warm-up bars are left out: the account did not go through them.
    """
    streams: list[Iterator[tuple[int, str, Any]]] = [
        ((row.ts, "equity", row) for row in every(read.equity, run.id, lambda row: row.ts)),
        ((row.ts, "bar", row) for row in every(read.bars, run.id, lambda row: row.ts) if row.status != "warmup"),
        ((row.bar_ts, "decision", row) for row in every(read.decisions, run.id, lambda row: row.bar_ts)),
        ((row.submitted_ts - step, "order", row) for row in every(read.orders, run.id, lambda row: row.submitted_ts)),
        ((row.bar_ts, "fill", row) for row in every(read.fills, run.id, lambda row: row.bar_ts)),
    ]
    merged = heapq.merge(*streams, key=lambda item: item[0])
    for ts, rows in itertools.groupby(merged, key=lambda item: item[0]):
        yield ts, _Rows(**{kind: row for _, kind, row in rows})


class _Audit:
    """One walk through one run."""

    def __init__(self, read: Reader, run: RunRow) -> None:
        self._read = read
        self._run = run
        self._step = Timeframe.parse(run.timeframe).milliseconds
        self._gaps = {row.first_ts: row for row in every(read.gaps, run.id, lambda row: row.first_ts)}
        self._findings: list[Finding] = []
        self._counts: Counter[str] = Counter()
        self._missing = 0
        self._exact = True
        self._session = self._fresh_session()

    def report(self) -> RunReport:
        """Walk, and say what was found."""
        last, pending = self._walk()
        if len(self._findings) < _KEPT:
            self._ends(last, pending)
        return RunReport(
            run_id=self._run.id,
            bars=self._counts["equity"],
            missing=self._missing,
            decisions=self._counts["decision"],
            orders=self._counts["order"],
            fills=self._counts["fill"],
            exact=self._exact and not self._findings,
            findings=tuple(self._findings[:_KEPT]),
        )

    def _walk(self) -> tuple[EquityRow | None, OrderRow | None]:
        """Returns the last mark and the order submitted at its close."""
        last: EquityRow | None = None
        pending: OrderRow | None = None
        for ts, rows in _rows_of(self._read, self._run, self._step):
            self._counts.update(name for name, row in zip(_Rows._fields, rows, strict=True) if row is not None)
            self._complete(ts, rows)
            if rows.equity is None:
                continue
            self._follows(last, ts)
            self._settled(pending, rows)
            self._sums(last, rows.equity, rows.fill)
            if rows.bar is not None:
                self._replay(rows.bar, rows.equity, rows.fill, rows.order)
            last, pending = rows.equity, rows.order
            if len(self._findings) >= _KEPT:
                break
        return last, pending

    # --- what has to be there ----------------------------------------------------------------------------------------

    def _complete(self, ts: int, rows: _Rows) -> None:
        """Each bar the account went through has its bar, its mark and its one decision."""
        for name in ("equity", "bar", "decision"):
            if getattr(rows, name) is None:
                present = " and ".join(kind for kind, row in zip(_Rows._fields, rows, strict=True) if row is not None)
                self._found(ts, f"expected a row in {name}, found none, only in {present}")
        if rows.bar is not None and rows.decision is not None:
            skipped = rows.decision.status.startswith("skipped")
            expected = rows.decision.status if skipped else "used"
            if rows.bar.status != expected:
                self._found(ts, f'expected the bar to be "{expected}" like its decision, found "{rows.bar.status}"')
        if rows.order is not None and rows.decision is not None and rows.order.decision_id != rows.decision.id:
            self._found(ts, f"the order belongs to decision {rows.order.decision_id}, not to {rows.decision.id}")

    def _follows(self, last: EquityRow | None, ts: int) -> None:
        """The bars between two marks are in recorded gaps."""
        if last is None:
            if self._run.first_bar_ts != ts:
                self._found(ts, f"the run says that its first bar is {self._run.first_bar_ts}, found this one, {ts}")
            return
        expected = last.ts + self._step
        while expected < ts:
            gap = self._gaps.get(expected)
            if gap is None:
                until = f" to {format_time(ts - self._step)}" if ts - self._step > expected else ""
                self._found(expected, f"no bar and no recorded gap{until}")
                return
            self._missing += (gap.last_ts - gap.first_ts) // self._step + 1
            expected = gap.last_ts + self._step
        if expected != ts:
            self._found(ts, f"expected the next bar at {format_time(expected)}")

    def _settled(self, pending: OrderRow | None, rows: _Rows) -> None:
        """The order of the close before was settled by this bar, and says how."""
        if rows.fill is not None and (pending is None or rows.fill.order_id != pending.id):
            asked = "no order was" if pending is None else f"order {pending.id} was"
            self._found(rows.fill.bar_ts, f"a fill of order {rows.fill.order_id}, but {asked} pending")
        if pending is None or rows.equity is None:
            return
        ts = rows.equity.ts
        if pending.quantity == 0.0:
            expected: tuple[str, ...] = ("empty",)
        else:
            expected = ("cancelled",) if rows.fill is None else ("filled", "partial")
        if pending.status not in expected:
            self._found(ts, f'order {pending.id}: expected status {" or ".join(expected)}, found "{pending.status}"')
        if pending.quantity != 0.0 and pending.filled_in_ts != ts:
            self._found(ts, f"order {pending.id}: expected to be settled in this bar, found {pending.filled_in_ts}")

    # --- sums --------------------------------------------------------------------------------------------------------

    def _sums(self, last: EquityRow | None, now: EquityRow, fill: FillRow | None) -> None:
        """The written numbers alone: units, cash and equity follow from the mark before and the fill."""
        record = _record(now)
        if record is None:
            self._found(now.ts, "record_json is not the record of a bar")
            return
        cash, units = (self._run.initial_equity, 0.0) if last is None else (last.cash, last.units)
        quantity, price, fee = (0.0, 0.0, 0.0) if fill is None else (fill.quantity, fill.price, fill.fee)
        if record["liquidated"]:
            # The price of a forced exit is not written; the replay knows it.
            self._agree(now.ts, "units after a liquidation", 0.0, now.units, exactly=True)
        else:
            self._agree(now.ts, "units", units + quantity, now.units, exactly=True)
            # In the kernel's order; what holding cost before the open and within the bar is one number here.
            carried = cash - record["funding"] - (quantity * price + fee)
            self._agree(now.ts, "cash", carried, now.cash, exactly=False)
        self._agree(now.ts, "equity", max(now.cash + now.units * now.close, 0.0), now.equity, exactly=True)

    def _agree(self, ts: int, name: str, expected: float, found: float, *, exactly: bool) -> None:
        tolerance = 0.0 if exactly else TOLERANCE * max(abs(expected), self._run.initial_equity)
        if not abs(expected - found) <= tolerance:
            self._found(ts, f"{name}: what came before gives {expected!r}, found {found!r}")

    # --- replay ------------------------------------------------------------------------------------------------------

    def _fresh_session(self) -> TradingSession | None:
        run = self._run
        try:
            market = MarketConfig.model_validate_json(run.market_json)
            instrument = Instrument.model_validate_json(run.instrument_json)
            return TradingSession(market, instrument, run.seed, run.initial_equity)
        except ValueError as error:
            self._found(None, f"cannot be replayed by this version: {_line(error)}")
            return None

    def _replay(self, bar: BarRow, mark: EquityRow, fill: FillRow | None, order: OrderRow | None) -> None:
        """Take the account through the bar and the order again; stop replaying at the first thing that fails."""
        if self._session is None:
            return
        try:
            self._compare(bar.ts, mark, fill, self._session.on_bar(_bar_input(bar, self._step)), bar.close)
            if order is not None:
                again = self._session.submit(
                    order.target_exposure, sigma=order.sigma, median_volume=order.median_volume
                )
                for name in ("quantity", "limit_price", "mark_price"):
                    self._same(bar.ts, f"order {order.id}, {name}", getattr(again, name), getattr(order, name))
        except ValueError as error:
            self._found(bar.ts, f"cannot be replayed from here: {_line(error)}")
            self._session = None

    def _compare(self, ts: int, mark: EquityRow, fill: FillRow | None, record: BarRecord, close: float) -> None:
        self._same(ts, "close", close, mark.close)
        for column, name in _EQUITY_COLUMNS.items():
            self._same(ts, column, getattr(record, name), getattr(mark, column))
        written = _record(mark) or {}
        for name, value in record.as_info().items():
            if name in ("instrument", "action_mask"):
                continue
            if name not in written:
                self._found(ts, f"record_json lacks {name}")
            else:
                self._same(ts, f"record, {name}", float(value), float(written[name]))
        if (fill is None) != (record.qty_filled == 0.0):
            self._found(ts, f"the replay fills {record.qty_filled!r} units, found {'no' if fill is None else 'a'} fill")
        elif fill is not None:
            for column, name in _FILL_COLUMNS.items():
                self._same(ts, f"fill, {column}", getattr(record, name), getattr(fill, column))

    def _same(self, ts: int | None, name: str, replayed: float, found: float) -> None:
        """Equal as numbers (SQLite knows no negative zero), or nearly so and then not exact."""
        if replayed == found:
            return
        self._exact = False
        if not math.isclose(replayed, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            self._found(ts, f"{name}: the replay gives {replayed!r}, found {found!r}")

    # --- where the run stands ----------------------------------------------------------------------------------------

    def _ends(self, last: EquityRow | None, pending: OrderRow | None) -> None:
        """Cursor, account and position say what the last bar left."""
        run, read = self._run, self._read
        cursor = read.cursor(run.id, run.instrument, run.timeframe)
        account = read.account(run.id)
        if last is None:
            if run.first_bar_ts is not None:
                self._found(None, f"the run says that it began with bar {run.first_bar_ts}, found no bar")
            return
        at = None if cursor is None else cursor.last_bar_ts
        if at != last.ts and not (at is not None and self._covered(last.ts, at)):
            self._found(last.ts, f"expected the cursor at this last bar, {last.ts}, found {at}")
        positions = {row.instrument: row for row in read.positions(run.id)}
        position = positions.pop(run.instrument, None)
        if positions:
            self._found(None, f"expected a position in {run.instrument} only, found {', '.join(sorted(positions))}")
        if account is None or position is None:
            self._found(last.ts, f"expected a row in {'account' if account is None else 'position'}, found none")
            return
        for name, expected, found in (
            ("account, cash", last.cash, account.cash),
            ("account, equity", last.equity, account.equity),
            ("position, units", last.units, position.units),
            ("position, exposure", last.exposure, position.exposure),
        ):
            self._agree(last.ts, name, expected, found, exactly=True)
        for name, ts in (("account", account.updated_ts), ("position", position.updated_ts)):
            if ts != last.ts:
                self._found(last.ts, f"{name}: expected the state of this last bar, found that of {ts}")
        if self._session is not None:
            self._compare_state(last.ts, account.session_state_json, account.peak_equity)

    def _covered(self, after: int, to: int) -> bool:
        """Whether recorded gaps reach from the bar `after` to `to`: the cursor may stand at the end of a gap."""
        expected = after + self._step
        while expected <= to:
            gap = self._gaps.get(expected)
            if gap is None:
                return False
            expected = gap.last_ts + self._step
        return expected == to + self._step

    def _compare_state(self, ts: int, text: str, peak_equity: float) -> None:
        """What the session remembers, field by field."""
        assert self._session is not None
        again = self._session.get_state()
        try:
            found = json.loads(text)
            account = {str(name): float(value) for name, value in found["account"].items()}
            bars_seen = int(found["bars_seen"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._found(ts, f"session_state_json is not the state of a session ({_line(error)})")
            return
        self._same(ts, "session, bars_seen", again["bars_seen"], bars_seen)
        if set(account) != set(again["account"]):
            differing = ", ".join(sorted(set(account) ^ set(again["account"])))
            self._found(ts, f"session: this version knows other fields ({differing})")
            return
        for name, value in again["account"].items():
            self._same(ts, f"session, {name}", value, account[name])
        self._same(ts, "account, peak_equity", again["account"]["peak_equity"], peak_equity)

    def _found(self, ts: int | None, what: str) -> None:
        self._findings.append(Finding(bar_ts=ts, what=what))


def _bar_input(bar: BarRow, step: int) -> BarInput:
    return BarInput(bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume, step)


def _record(mark: EquityRow) -> dict[str, Any] | None:
    """The columns of a `BarRecord`, None for text that is something else."""
    try:
        record = json.loads(mark.record_json)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"funding", "liquidated"} <= record.keys() else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _check_database(ledger: Ledger) -> None:
    """Ask SQLite whether its pages are sound. A server looks after its own."""
    if ledger.engine.dialect.name != SQLITE:
        return
    with translated(ledger.place), ledger.engine.connect() as connection:
        found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise LedgerInconsistent(
            f"{ledger.place}: expected a sound file, found: {'; '.join(found)}. Stop the paper process, then restore "
            f'the newest backup with "python -m service ledger restore FILE" (the damaged ledger is kept aside)'
        )
