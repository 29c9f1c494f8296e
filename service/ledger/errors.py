"""What can go wrong with a ledger. Each message says what, expected, found, and the next step; never a password.

    LedgerError
    ├── LedgerBusy            another process writes for longer than we wait; nothing was written, try again
    ├── LedgerFull            no space left; nothing was written
    ├── LedgerUnreachable     no file, no permission, no server, or the connection broke
    ├── LedgerTooNew · LedgerTooOld   the schema is not the one this code writes
    ├── LedgerInconsistent    damaged, not a ledger, or it contradicts itself: restore a backup
    ├── LedgerHeld            another paper process holds it
    ├── AlreadyRecorded       the row is there: somebody (perhaps we, before a crash) did this before
    ├── KeyReused             an idempotency key came with another body
    └── TooManyCommands       the queue of commands is full; is the trader running?

A transaction that raises any of these has written nothing, with one exception that no database can spare us: when the
connection to a server breaks during a commit (LedgerUnreachable), the commit may have happened. Read the cursor again.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc


class LedgerError(RuntimeError):
    """Anything the ledger refuses or cannot do."""


class LedgerBusy(LedgerError):
    """Another process held the ledger for longer than the busy timeout. Nothing was written; try again."""


class LedgerFull(LedgerError):
    """No space left where the ledger lies. Nothing was written."""


class LedgerUnreachable(LedgerError):
    """The file or the server cannot be used now."""


class LedgerTooNew(LedgerError):
    """Written by newer code than this."""


class LedgerTooOld(LedgerError):
    """Written by older code than this, and whoever opened it may not migrate it."""


class LedgerInconsistent(LedgerError):
    """Damaged, something else than a ledger, or at odds with itself."""


class LedgerHeld(LedgerError):
    """A paper process holds the ledger."""


class AlreadyRecorded(LedgerError):
    """The ledger has this row. table: which; what was to be written changes nothing."""

    def __init__(self, table: str, detail: str) -> None:
        super().__init__(f"{table}: {detail}")
        self.table = table


class KeyReused(LedgerError):
    """An idempotency key was used before with another body."""


class TooManyCommands(LedgerError):
    """More commands wait than the ledger keeps."""


_RESTORE: Final = (
    'Stop the paper process, then restore the newest backup with "python -m service ledger restore FILE" (the damaged '
    "ledger is kept aside)"
)

# https://www.sqlite.org/rescode.html; the low byte is the primary code.
_SQLITE_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_SQLITE_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_UNUSABLE: Final = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
}
# The index of the write-ahead log could not grow: what a full disk says when that file meets it first.
_SQLITE_IOERR_SHMSIZE: Final = sqlite3.SQLITE_IOERR | 19 << 8

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRES_BUSY: Final = {"55P03", "40001", "40P01", "57014"}  # lock timeout, serialisation, deadlock, statement timeout
_POSTGRES_FULL: Final = {"53100"}
_POSTGRES_DAMAGED: Final = {"XX001", "XX002", "42P01", "42703"}  # corrupted data or index; a table or column is missing


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Raise what the database says as a LedgerError. place: the ledger as people know it, without a password."""
    try:
        yield
    except exc.DBAPIError as error:
        raise _of_driver(error.orig, place, disconnected=error.connection_invalidated) from error
    except exc.TimeoutError as error:
        raise LedgerBusy(f"{place}: all connections of this process are in use; try again") from error
    except sqlite3.Error as error:  # from the backup interface, which SQLAlchemy does not wrap
        raise _of_driver(error, place) from error


def _of_driver(error: BaseException | None, place: str, *, disconnected: bool = False) -> LedgerError:
    text = " ".join(str(error).split())
    if isinstance(error, sqlite3.Error):
        return _of_sqlite(getattr(error, "sqlite_errorcode", None), text, place)
    state: str | None = getattr(error, "sqlstate", None)
    if state in _POSTGRES_BUSY:
        return LedgerBusy(f"{place}: another process is writing and did not finish in time ({text}); try again")
    if state in _POSTGRES_FULL:
        return LedgerFull(f"{place}: no space left on the server ({text}). Nothing was written; free some space")
    if state in _POSTGRES_DAMAGED:
        return LedgerInconsistent(f"{place}: the ledger is damaged ({text}). {_RESTORE}")
    if disconnected or state is None or state[:2] in {"08", "28", "3D", "53", "57", "58"}:
        return LedgerUnreachable(
            f"{place}: the server cannot be used ({text}). Check that it runs and that SMU0_DATABASE_URL names it"
        )
    return LedgerError(f"{place}: {text}")


def _of_sqlite(code: int | None, text: str, place: str) -> LedgerError:
    primary = None if code is None else code & 0xFF
    if primary in _SQLITE_BUSY:
        return LedgerBusy(f"{place}: another process is writing and did not finish in time ({text}); try again")
    if primary == sqlite3.SQLITE_FULL or code == _SQLITE_IOERR_SHMSIZE:
        return LedgerFull(
            f"{place}: no space left ({text}). Nothing was written; free some space on that disk and trading goes on"
        )
    if primary in _SQLITE_DAMAGED:
        return LedgerInconsistent(f"{place}: expected a SQLite ledger, found a damaged file ({text}). {_RESTORE}")
    if primary in _SQLITE_UNUSABLE:
        return LedgerUnreachable(
            f"{place}: the file cannot be used ({text}). Check that its directory exists and that this process may "
            f"write there (write-ahead logging needs the whole directory)"
        )
    return LedgerError(f"{place}: {text}")
