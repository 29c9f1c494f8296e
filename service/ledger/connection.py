"""Connections to the database under a ledger: SQLite for one machine, PostgreSQL for several. The rest of the package
does not know which it is.

Both are made to mean the same. A write transaction is alone: `BEGIN IMMEDIATE` in SQLite, an advisory lock in
PostgreSQL; whoever comes second waits, up to the busy timeout, and then gets LedgerBusy. Writers that come one at a
time commit in the order of their ids, which the event stream relies on. A read transaction sees one state of the whole
ledger and waits for nobody. A commit that returned survives a power cut.
"""

import sqlite3
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError

from service.ledger.errors import LedgerUnreachable

SQLITE: Final = "sqlite"
POSTGRES: Final = "postgresql"

# Advisory locks are numbers that all users of one database share: these spell "smu0" and count from there.
WRITE_LOCK: Final = 0x736D7530_00000001
PAPER_LOCK: Final = 0x736D7530_00000002

_WRITE_OPTION: Final = "smu0_write"
_CONNECT_SECONDS: Final = 5
_STATEMENT_SECONDS: Final = 60  # no statement of the ledger takes a second; a hanging server must not hang the trader
_LOG_BYTES: Final = 64 * 1024 * 1024  # what SQLite leaves of its write-ahead log once a large one has been emptied


def parse_url(text: str) -> URL:
    """The database of a URL. Raises ValueError for what cannot hold a ledger; the message never shows a password."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError(
            'database URL: expected "sqlite:///DIRECTORY/ledger.sqlite3" or '
            '"postgresql+psycopg://USER:PASSWORD@HOST/DATABASE", found something else (not shown: it may hold a '
            "password). Correct SMU0_DATABASE_URL"
        ) from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != SQLITE:
        raise ValueError(f"database URL: expected sqlite or postgresql+psycopg, found {url.drivername!r}")
    if url.database in (None, "", ":memory:"):
        raise ValueError(
            "database URL: expected a file, since the processes meet there, found SQLite in memory. Use "
            '"sqlite:///DIRECTORY/ledger.sqlite3"'
        )
    return url


def sqlite_file(url: URL) -> Path | None:
    """The ledger file of a SQLite URL, None for a server."""
    return Path(url.database) if url.get_backend_name() == SQLITE and url.database else None


def place_of(url: URL) -> str:
    """The ledger as people know it."""
    file = sqlite_file(url)
    return f"ledger {file}" if file is not None else f"ledger {url.render_as_string(hide_password=True)}"


def connect(url: URL, *, writable: bool, busy_seconds: float, create: bool = False) -> Engine:
    """A pool of connections. Nothing is opened yet.

    writable: False makes the database itself refuse to write. create: make a SQLite file, and its directory, where
    there is none; a process that only looks must not leave an empty one where it expected a ledger.
    """
    file = sqlite_file(url)
    if file is not None:
        return _sqlite(url, file, writable=writable, busy_seconds=busy_seconds, create=create)
    return _postgres(url, writable=writable, busy_seconds=busy_seconds)


def for_writing(connection: Connection) -> Connection:
    """The connection, whose next transaction will be the only one that writes."""
    return connection.execution_options(**{_WRITE_OPTION: True})


def for_reading(connection: Connection) -> Connection:
    """The connection, whose next transaction will see one state of the ledger."""
    if connection.dialect.name == POSTGRES:
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return connection  # a read transaction of SQLite in WAL mode is a snapshot


# --- SQLite ----------------------------------------------------------------------------------------------------------


def _sqlite(url: URL, file: Path, *, writable: bool, busy_seconds: float, create: bool) -> Engine:
    if create:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerUnreachable(
                f"{place_of(url)}: its directory cannot be made ({error.strerror}). Set SMU0_STATE to a directory this "
                f"process may write to"
            ) from error
    address = f"file:{quote(str(file))}?mode={'rwc' if create else 'rw'}"

    def open_file() -> sqlite3.Connection:
        # isolation_level None: the driver begins no transactions of its own; we do, below.
        return sqlite3.connect(address, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)

    engine = create_engine(url, creator=open_file, pool_timeout=busy_seconds)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: Any) -> None:
        if writable:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise LedgerUnreachable(
                    f"{place_of(url)}: expected write-ahead logging, found journal mode {mode!r}. Put the ledger on a "
                    f"local disk or a named volume; network file systems cannot do this"
                )
        for pragma in (
            "synchronous = FULL",  # a commit is on the disk when it returns
            "foreign_keys = ON",
            "trusted_schema = OFF",
            f"journal_size_limit = {_LOG_BYTES}",
            f"query_only = {'OFF' if writable else 'ON'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE: whoever will write waits here, not in the middle, where waiting would be a deadlock.
        writes = connection.get_execution_options().get(_WRITE_OPTION, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _postgres(url: URL, *, writable: bool, busy_seconds: float) -> Engine:
    settings = {
        "synchronous_commit": "on",  # a server may have been told that losing the newest commits is fine
        "lock_timeout": f"{max(1, round(busy_seconds * 1000))}ms",
        "statement_timeout": f"{_STATEMENT_SECONDS}s",
        # A process that hangs in a transaction must not keep the others waiting for ever.
        "idle_in_transaction_session_timeout": f"{_STATEMENT_SECONDS}s",
        "default_transaction_read_only": "off" if writable else "on",
        "timezone": "UTC",
    }
    engine = create_engine(
        url,
        # Not snapshots: a writer's statements must see what was committed while it waited for the lock.
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,  # a server that was restarted is noticed before, not within, a transaction
        pool_timeout=busy_seconds,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "smu0",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for name, value in settings.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITE_OPTION, False):
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITE_LOCK})

    return engine
