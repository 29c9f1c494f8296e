"""The ledger as the processes use it: open, read a consistent state, write all or nothing.

with Ledger.open("sqlite:///var/service/ledger.sqlite3", writable=True) as ledger:
    with ledger.reading() as read:                 # one state of the whole ledger, waits for nobody
        run = read.active_run()
        rows = read.decisions(run.id, Page(order="newest", limit=50))
    with ledger.transaction() as write:            # the only writer; everything below is committed, or nothing
        write.advance_cursor(run.id, "BTC/USDT", "1h", expected=before, to=ts, now_ms=now)
        decision_id = write.insert_decision(DecisionRow(...))

Any exception inside `transaction()` rolls back and goes on to the caller. Keep reads and transactions short, compute
outside. A Ledger may be shared by threads; a Reader or Writer belongs to its `with` block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self, TypeVar, cast

from sqlalchemy import URL, Column, ColumnElement, Connection, Engine, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from service.ledger import schema
from service.ledger.connection import connect, for_reading, for_writing, parse_url, place_of, sqlite_file
from service.ledger.errors import (
    AlreadyRecorded,
    KeyReused,
    LedgerError,
    LedgerInconsistent,
    TooManyCommands,
    translated,
)
from service.ledger.migrate import nothing_there, prepare
from service.ledger.schema import (
    TABLE_OF,
    UNSTORED,
    AccountRow,
    BarRow,
    CommandKind,
    CommandRow,
    CommandStatus,
    CursorRow,
    DecisionRow,
    EquityRow,
    EventRow,
    FillRow,
    GapRow,
    HeartbeatRow,
    IdempotencyRow,
    OrderRow,
    OrderStatus,
    PositionRow,
    RiskStateRow,
    RunRow,
    Severity,
)

MAX_LIMIT: Final = 5000
_MESSAGE_LENGTH: Final = 4000  # characters of an event's message; an error may quote a whole reply

_COLUMNS: Final = {row: [table.c[field.name] for field in fields(row)] for row, table in TABLE_OF.items()}

Order = Literal["oldest", "newest"]
_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is forgotten. Decisions, orders, fills, bars and the equity curve are kept for ever.

    events: newest rows kept. idempotency: newest rows kept; idempotency_ms: and for how long. pending_commands: how
    many may wait for the trader.
    """

    events: int = 100_000
    idempotency: int = 10_000
    idempotency_ms: int = 24 * 3_600_000
    pending_commands: int = 100


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must lie in 1 to {MAX_LIMIT}, got {limit!r}; read the rest in further pages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which rows of a run. since, until: open times, epoch ms, both included; None: without that end.

    order: "oldest" gives the first rows of that stretch, oldest first; "newest" its last ones, newest first. limit: at
    most 5000, so that no answer grows without bound.
    """

    since: int | None = None
    until: int | None = None
    order: Order = "oldest"
    limit: int = 500

    def __post_init__(self) -> None:
        _check_limit(self.limit)


FIRST_PAGE: Final = Page()
NEWEST: Final = Page(order="newest", limit=1)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands: everything a status page asks for, from one state of the ledger. None: not there yet."""

    run: RunRow
    account: AccountRow | None
    positions: list[PositionRow]
    cursor: CursorRow | None
    risk: RiskStateRow | None
    equity: EquityRow | None
    decision: DecisionRow | None


class Reader:
    """Typed reads of one state of the ledger.

    A list is one range of an index. None stands for what is not there.
    """

    def __init__(self, connection: Connection, place: str) -> None:
        self._connection = connection
        self._place = place

    # --- runs --------------------------------------------------------------------------------------------------------

    def active_run(self) -> RunRow | None:
        """The run that is not archived."""
        return self._one(RunRow, schema.run.c.archived_ms.is_(None))

    def run(self, run_id: str) -> RunRow | None:
        return self._one(RunRow, schema.run.c.id == run_id)

    def runs(self, *, limit: int = 100) -> list[RunRow]:
        """Newest first, archived ones included."""
        return self._many(RunRow, [], by=[schema.run.c.created_ms, schema.run.c.id], order="newest", limit=limit)

    def standing(self, run_id: str) -> Standing | None:
        """Where a run stands; None if there is no such run."""
        run = self.run(run_id)
        if run is None:
            return None
        return Standing(
            run=run,
            account=self.account(run_id),
            positions=self.positions(run_id),
            cursor=self.cursor(run_id, run.instrument, run.timeframe),
            risk=self.risk_state(run_id),
            equity=next(iter(self.equity(run_id, NEWEST)), None),
            decision=self.latest_decision(run_id, run.instrument),
        )

    # --- rows of a run -----------------------------------------------------------------------------------------------

    def bars(self, run_id: str, page: Page = FIRST_PAGE) -> list[BarRow]:
        return self._span(BarRow, schema.bar.c.ts, run_id, page)

    def gaps(self, run_id: str, page: Page = FIRST_PAGE) -> list[GapRow]:
        """By their first missing bar."""
        return self._span(GapRow, schema.gap.c.first_ts, run_id, page)

    def decisions(self, run_id: str, page: Page = FIRST_PAGE) -> list[DecisionRow]:
        return self._span(DecisionRow, schema.decision.c.bar_ts, run_id, page)

    def orders(self, run_id: str, page: Page = FIRST_PAGE) -> list[OrderRow]:
        """By the close on which they were submitted."""
        return self._span(OrderRow, schema.orders.c.submitted_ts, run_id, page)

    def fills(self, run_id: str, page: Page = FIRST_PAGE) -> list[FillRow]:
        return self._span(FillRow, schema.fill.c.bar_ts, run_id, page)

    def equity(self, run_id: str, page: Page = FIRST_PAGE) -> list[EquityRow]:
        return self._span(EquityRow, schema.equity.c.ts, run_id, page)

    def decision(self, run_id: str, instrument: str, timeframe: str, bar_ts: int) -> DecisionRow | None:
        """The one decision at the close of a bar."""
        c = schema.decision.c
        return self._one(
            DecisionRow,
            c.run_id == run_id,
            c.bar_ts == bar_ts,
            c.instrument == instrument,
            c.timeframe == timeframe,
        )

    def latest_decision(self, run_id: str, instrument: str) -> DecisionRow | None:
        c = schema.decision.c
        return self._one(DecisionRow, c.run_id == run_id, c.instrument == instrument, newest=c.bar_ts)

    def decisions_after(self, decision_id: int, *, limit: int = 500) -> list[DecisionRow]:
        """Of all runs, in the order of their ids, which is that of their commits."""
        c = schema.decision.c
        return self._many(DecisionRow, [c.id > decision_id], by=[c.id], order="oldest", limit=limit)

    def count_decisions(self, run_id: str) -> dict[str, int]:
        """How many there are of each status that occurs."""
        c = schema.decision.c
        counted = select(c.status, func.count()).where(c.run_id == run_id).group_by(c.status)
        return {row.status: int(row[1]) for row in self._connection.execute(counted)}

    def count_fills(self, run_id: str) -> int:
        c = schema.fill.c
        return self._connection.execute(select(func.count()).where(c.run_id == run_id)).scalar_one()

    def last_decision_id(self) -> int:
        """0 when there is none."""
        return self._last_id(schema.decision)

    def bar(self, run_id: str, instrument: str, timeframe: str, ts: int) -> BarRow | None:
        c = schema.bar.c
        return self._one(BarRow, c.run_id == run_id, c.ts == ts, c.instrument == instrument, c.timeframe == timeframe)

    def pending_orders(self, run_id: str) -> list[OrderRow]:
        """Orders of the last close, which the next bar will fill. At most one per instrument."""
        c = schema.orders.c
        last = select(func.max(c.submitted_ts)).where(c.run_id == run_id).scalar_subquery()
        where = [c.run_id == run_id, c.submitted_ts == last, c.status == "pending"]
        return self._many(OrderRow, where, by=[c.id], order="oldest", limit=MAX_LIMIT)

    # --- where a run stands ------------------------------------------------------------------------------------------

    def cursor(self, run_id: str, instrument: str, timeframe: str) -> CursorRow | None:
        c = schema.cursor.c
        return self._one(CursorRow, c.run_id == run_id, c.instrument == instrument, c.timeframe == timeframe)

    def account(self, run_id: str) -> AccountRow | None:
        return self._one(AccountRow, schema.account.c.run_id == run_id)

    def positions(self, run_id: str) -> list[PositionRow]:
        c = schema.position.c
        return self._many(PositionRow, [c.run_id == run_id], by=[c.instrument], order="oldest", limit=MAX_LIMIT)

    def risk_state(self, run_id: str) -> RiskStateRow | None:
        return self._one(RiskStateRow, schema.risk_state.c.run_id == run_id)

    # --- between the processes ---------------------------------------------------------------------------------------

    def command(self, command_id: int) -> CommandRow | None:
        return self._one(CommandRow, schema.command.c.id == command_id)

    def commands(self, *, limit: int = 100) -> list[CommandRow]:
        """Newest first."""
        return self._many(CommandRow, [], by=[schema.command.c.id], order="newest", limit=limit)

    def pending_commands(self, *, limit: int = 100) -> list[CommandRow]:
        """Oldest first: they are to be done in the order in which they were asked."""
        c = schema.command.c
        return self._many(CommandRow, [c.status == "pending"], by=[c.id], order="oldest", limit=limit)

    def idempotency(self, scope: str, key: str, *, body_sha256: str, created_since: int) -> IdempotencyRow | None:
        """The answer that was given to this request, unless it is older than `created_since` (epoch ms).

        Raises KeyReused when the key came with another body.
        """
        c = schema.idempotency.c
        found = self._one(IdempotencyRow, c.scope == scope, c.key == key, c.created_ms >= created_since)
        if found is not None and found.body_sha256 != body_sha256:
            raise KeyReused(
                f"Idempotency-Key {key} was used with another body; use a new key for a new request, or send the same "
                f"body again"
            )
        return found

    def events_after(self, event_id: int, *, limit: int = 500) -> list[EventRow]:
        """In the order of their ids, which is that of their commits. 0 begins with the oldest that is kept."""
        c = schema.event.c
        return self._many(EventRow, [c.id > event_id], by=[c.id], order="oldest", limit=limit)

    def events_before(self, event_id: int | None = None, *, limit: int = 500) -> list[EventRow]:
        """Newest first, from before an id; None: from the newest."""
        c = schema.event.c
        where = [] if event_id is None else [c.id < event_id]
        return self._many(EventRow, where, by=[c.id], order="newest", limit=limit)

    def events_since(self, since: int, *, after: int = UNSTORED, limit: int = 500) -> list[EventRow]:
        """In the order of their ids, which are above `after`: those of a time (epoch ms) or later."""
        c = schema.event.c
        return self._many(EventRow, [c.id > after, c.ts_ms >= since], by=[c.id], order="oldest", limit=limit)

    def last_event_id(self) -> int:
        """0 when there is none."""
        return self._last_id(schema.event)

    def heartbeat(self, process: str) -> HeartbeatRow | None:
        return self._one(HeartbeatRow, schema.heartbeat.c.process == process)

    # --- how ---------------------------------------------------------------------------------------------------------

    def _span(self, row: type[_Row], when: Column[int], run_id: str, page: Page) -> list[_Row]:
        where = [TABLE_OF[row].c.run_id == run_id]
        if page.since is not None:
            where.append(when >= page.since)
        if page.until is not None:
            where.append(when <= page.until)
        return self._many(row, where, by=[when], order=page.order, limit=page.limit)

    def _many(
        self,
        row: type[_Row],
        where: Sequence[ColumnElement[bool]],
        *,
        by: Sequence[Column[Any]],
        order: Order,
        limit: int,
    ) -> list[_Row]:
        _check_limit(limit)
        ordered = [column.desc() if order == "newest" else column.asc() for column in by]
        query = select(*_COLUMNS[row]).where(*where).order_by(*ordered).limit(limit)
        return [row(**values) for values in self._connection.execute(query).mappings()]

    def _one(self, row: type[_Row], *where: ColumnElement[bool], newest: Column[int] | None = None) -> _Row | None:
        query = select(*_COLUMNS[row]).where(*where).limit(1)
        if newest is not None:
            query = query.order_by(newest.desc())
        values = self._connection.execute(query).mappings().one_or_none()
        return None if values is None else row(**values)

    def _last_id(self, table: Table) -> int:
        return self._connection.execute(select(func.max(table.c.id))).scalar() or UNSTORED


class Writer(Reader):
    """Typed writes of one transaction; what it reads is what it has written.

    Every insert raises AlreadyRecorded if the row is there. After any error the transaction is lost: leave the block.
    """

    def __init__(self, connection: Connection, place: str, retention: Retention) -> None:
        super().__init__(connection, place)
        self._retention = retention

    # --- runs --------------------------------------------------------------------------------------------------------

    def start_run(self, row: RunRow) -> None:
        """Begin a run. Raises AlreadyRecorded while another one is active: archive it first."""
        active = self.active_run()
        if active is not None:
            raise AlreadyRecorded("run", f"{active.id} is active; archive it before {row.id} begins")
        self._insert(row, f"{row.id} exists")

    def begin_trading(self, run_id: str, first_bar_ts: int) -> None:
        """Note the first bar the account goes through."""
        c = schema.run.c
        self._change(
            schema.run,
            [c.id == run_id, c.first_bar_ts.is_(None)],
            {"first_bar_ts": first_bar_ts},
            f"{run_id} has its first bar already, or does not exist",
        )

    def archive_run(self, run_id: str, *, now_ms: int) -> None:
        """End a run. Its rows stay; the ledger is free for the next one."""
        c = schema.run.c
        self._change(
            schema.run,
            [c.id == run_id, c.archived_ms.is_(None)],
            {"archived_ms": now_ms},
            f"{run_id} is archived already, or does not exist",
        )

    # --- one closed bar ----------------------------------------------------------------------------------------------

    def advance_cursor(
        self, run_id: str, instrument: str, timeframe: str, *, expected: int | None, to: int, now_ms: int
    ) -> None:
        """Claim the bars after `expected` up to `to`: the first thing a transaction does.

        expected: the cursor the caller computed from; None: there was none. Raises AlreadyRecorded when the cursor has
        reached `to` (the work is done), LedgerInconsistent when it stands anywhere else.
        """
        if expected is not None and to <= expected:
            raise ValueError(f"{run_id} {instrument} {timeframe}: the cursor moves forward only, {expected} to {to}")
        found = self.cursor(run_id, instrument, timeframe)
        at = None if found is None else found.last_bar_ts
        if at != expected:
            if at is not None and at >= to:
                raise AlreadyRecorded(
                    "cursor", f"{run_id} {instrument} {timeframe}: done up to bar {at}, asked for {to}"
                )
            raise LedgerInconsistent(
                f"{self._place}: {run_id} {instrument} {timeframe}: expected the cursor at {expected}, found {at}. "
                f"Somebody else moved it: see that only one paper process runs, then start it again"
            )
        self._put(
            CursorRow(run_id=run_id, instrument=instrument, timeframe=timeframe, last_bar_ts=to, updated_ms=now_ms)
        )

    def insert_bars(self, rows: Sequence[BarRow]) -> None:
        self._insert_all(rows, "one of these bars is recorded")

    def insert_gap(self, row: GapRow) -> None:
        self._insert(row, f"{row.run_id}: the gap at {row.first_ts} is recorded")

    def insert_decision(self, row: DecisionRow) -> int:
        """Returns its id."""
        return self._insert_numbered(
            row, f"{row.run_id} {row.instrument} {row.timeframe}: bar {row.bar_ts} has its decision"
        )

    def insert_order(self, row: OrderRow) -> int:
        """Returns its id."""
        return self._insert_numbered(row, f"{row.run_id}: decision {row.decision_id} has its order")

    def settle_order(self, order_id: int, status: OrderStatus, *, filled_in_ts: int) -> None:
        """Say what the bar `filled_in_ts` made of a pending order."""
        c = schema.orders.c
        self._change(
            schema.orders,
            [c.id == order_id, c.status == "pending"],
            {"status": status, "filled_in_ts": filled_in_ts},
            f"order {order_id} is not pending",
        )

    def insert_fill(self, row: FillRow) -> int:
        """Returns its id."""
        return self._insert_numbered(row, f"{row.run_id}: order {row.order_id} or bar {row.bar_ts} has its fill")

    def insert_equity(self, row: EquityRow) -> None:
        self._insert(row, f"{row.run_id}: bar {row.ts} is marked")

    def put_position(self, row: PositionRow) -> None:
        self._put(row)

    def put_account(self, row: AccountRow) -> None:
        self._put(row)

    def put_risk_state(self, row: RiskStateRow) -> None:
        self._put(row)

    # --- between the processes ---------------------------------------------------------------------------------------

    def append_event(
        self,
        kind: str,
        message: str,
        *,
        ts_ms: int,
        severity: Severity = "info",
        run_id: str | None = None,
        data_json: str = "{}",
    ) -> int:
        """Tell people something. Returns its id. The oldest events beyond the retention go."""
        shown = message if len(message) <= _MESSAGE_LENGTH else f"{message[: _MESSAGE_LENGTH - 1]}…"
        row = EventRow(ts_ms=ts_ms, kind=kind, severity=severity, message=shown, run_id=run_id, data_json=data_json)
        event_id = self._insert_numbered(row, "an id was given twice")
        self._connection.execute(delete(schema.event).where(schema.event.c.id <= event_id - self._retention.events))
        return event_id

    def beat(self, row: HeartbeatRow) -> None:
        self._put(row)

    def insert_command(self, kind: CommandKind, *, reason: str, confirm: str, requested_by: str, now_ms: int) -> int:
        """Ask something of the trader. Returns its id. Raises TooManyCommands when nobody takes them."""
        c = schema.command.c
        waiting = self._connection.execute(select(func.count()).where(c.status == "pending")).scalar_one()
        if waiting >= self._retention.pending_commands:
            raise TooManyCommands(
                f"{waiting} commands wait for the trader, which takes one in a second; see that the paper process runs"
            )
        row = CommandRow(kind=kind, reason=reason, confirm=confirm, requested_by=requested_by, requested_ms=now_ms)
        return self._insert_numbered(row, "an id was given twice")

    def finish_command(self, command_id: int, status: CommandStatus, result: str, *, now_ms: int) -> None:
        """Say what became of a pending command, in the transaction that carries it out."""
        c = schema.command.c
        self._change(
            schema.command,
            [c.id == command_id, c.status == "pending"],
            {"status": status, "result": result, "handled_ms": now_ms},
            f"command {command_id} is not pending",
        )

    def remember(self, row: IdempotencyRow) -> IdempotencyRow | None:
        """Keep an answer for whoever asks again. Returns the earlier answer if there is one, which counts; else None.

        Raises KeyReused when the key came with another body. Answers that are too old or too many go.
        """
        c, keep = schema.idempotency.c, self._retention
        oldest = row.created_ms - keep.idempotency_ms
        self._connection.execute(delete(schema.idempotency).where(c.created_ms < oldest))
        earlier = self.idempotency(row.scope, row.key, body_sha256=row.body_sha256, created_since=oldest)
        if earlier is not None:
            return earlier
        row_id = self._insert_numbered(row, f"{row.scope} {row.key} is kept")
        self._connection.execute(delete(schema.idempotency).where(c.id <= row_id - keep.idempotency))
        return None

    # --- how ---------------------------------------------------------------------------------------------------------

    def _insert(self, row: Any, conflict: str) -> None:
        self._insert_all([row], conflict)

    def _insert_all(self, rows: Sequence[Any], conflict: str) -> None:
        if rows:
            table = TABLE_OF[type(rows[0])]
            with _conflicts(table, conflict):
                self._connection.execute(insert(table), [_values(row) for row in rows])

    def _insert_numbered(self, row: Any, conflict: str) -> int:
        table = TABLE_OF[type(row)]
        if row.id != UNSTORED:
            raise ValueError(f"{table.name}: the ledger numbers its rows; leave id out, found {row.id}")
        values = _values(row)
        del values["id"]
        with _conflicts(table, conflict):
            return cast(int, self._connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one())

    def _put(self, row: Any) -> None:
        """Insert the row, or replace the one with its key."""
        table, values = TABLE_OF[type(row)], _values(row)
        keys = [column.name for column in table.primary_key]
        changed = {name: value for name, value in values.items() if name not in keys}
        if self._connection.dialect.name == "postgresql":
            query: Any = postgresql.insert(table).values(values)
        else:
            query = sqlite.insert(table).values(values)
        self._connection.execute(query.on_conflict_do_update(index_elements=keys, set_=changed))

    def _change(
        self, table: Table, where: Sequence[ColumnElement[bool]], values: Mapping[str, Any], otherwise: str
    ) -> None:
        """Update exactly one row; none means that this was done before."""
        if self._connection.execute(update(table).where(*where).values(**values)).rowcount != 1:
            raise AlreadyRecorded(table.name, otherwise)


class Ledger:
    """A ledger that is open. Close it, or use it as a context."""

    def __init__(self, url: URL, engine: Engine, *, writable: bool, retention: Retention) -> None:
        """Use `Ledger.open`, which looks at the schema first."""
        self.url = url
        self.place = place_of(url)
        self.writable = writable
        self._engine = engine
        self._retention = retention

    @classmethod
    def open(
        cls,
        url: str,
        *,
        writable: bool,
        migrate: bool | None = None,
        busy_seconds: float = 5.0,
        retention: Retention | None = None,
    ) -> Self:
        """Open the ledger at a URL ("sqlite:///DIRECTORY/ledger.sqlite3", "postgresql+psycopg://...").

        writable: False makes the database refuse every write. migrate: create a missing ledger and bring an older one
        up to date (SQLite after a backup beside it); by default if writable. A process beside the trader, such as the
        API, says False, so that no running trader finds its tables changed. busy_seconds: how long to wait for another
        writer.

        Raises LedgerTooNew, LedgerTooOld, LedgerUnreachable, LedgerInconsistent or LedgerBusy.
        """
        parsed = parse_url(url)
        may_migrate = writable if migrate is None else migrate
        if may_migrate and not writable:
            raise ValueError("migrate=True needs writable=True: a ledger that is only read cannot be changed")
        file = sqlite_file(parsed)
        if file is not None and not may_migrate and not file.exists():
            raise nothing_there(parsed)
        engine = connect(parsed, writable=writable, busy_seconds=busy_seconds, create=may_migrate)
        try:
            with translated(place_of(parsed)):
                prepare(engine, parsed, may_migrate=may_migrate)
        except BaseException:
            engine.dispose()
            raise
        return cls(parsed, engine, writable=writable, retention=retention or Retention())

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """One state of the whole ledger, whatever is committed meanwhile."""
        with translated(self.place), self._engine.connect() as connection, for_reading(connection).begin():
            yield Reader(connection, self.place)

    @contextmanager
    def transaction(self) -> Iterator[Writer]:
        """Write alone, all or nothing. Raises LedgerBusy when another process writes for too long."""
        if not self.writable:
            raise LedgerError(f"{self.place}: opened for reading; open it with writable=True to write")
        with translated(self.place), self._engine.connect() as connection, for_writing(connection).begin():
            yield Writer(connection, self.place, self._retention)

    @property
    def engine(self) -> Engine:
        """For the modules of this package (backup, checks)."""
        return self._engine


def every(rows_of: Callable[[str, Page], list[_Row]], run_id: str, when: Callable[[_Row], int]) -> Iterator[_Row]:
    """All rows of a run, oldest first, a page at a time: every(read.fills, run_id, lambda fill: fill.bar_ts)."""
    since: int | None = None
    while True:
        page = rows_of(run_id, Page(since=since, limit=MAX_LIMIT))
        yield from page
        if len(page) < MAX_LIMIT:
            return
        since = when(page[-1]) + 1


def _values(row: Any) -> dict[str, Any]:
    """Column values of a row. Raises ValueError for a number that is not finite: the ledger holds none."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    for name, value in values.items():
        if isinstance(value, float) and not value - value == 0.0:  # inf - inf and nan - nan are nan
            raise ValueError(f"{TABLE_OF[type(row)].name}.{name} must be a finite number, got {value!r}")
    return values


@contextmanager
def _conflicts(table: Table, detail: str) -> Iterator[None]:
    """Raise a key conflict as AlreadyRecorded; other broken constraints are faults of the caller and stay so."""
    try:
        yield
    except IntegrityError as error:
        code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", "")
        if code in ("23505", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
            raise AlreadyRecorded(table.name, detail) from error
        raise
