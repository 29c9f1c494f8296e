"""One paper process per ledger: the lock that keeps a second trader, a migration and a restore out.

Held from start to end by the paper process. For SQLite it is a lock on a file beside the ledger, for PostgreSQL an
advisory lock of a connection of its own; both are released by the operating system or the server when the process dies,
however it dies. Should they ever fail, the unique keys and the cursor of the ledger still let only one trader's work
in.
"""

from types import TracebackType
from typing import Final, Self

import filelock
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from service.ledger.connection import PAPER_LOCK, connect, parse_url, place_of, sqlite_file
from service.ledger.errors import LedgerHeld, LedgerUnreachable, translated

_HELD: Final = "a paper process holds it. Stop that one first, or look whether it is meant to run"


class PaperLock:
    """with paper_lock(url): ... Raises LedgerHeld at once if somebody else has it; not to be entered twice."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._file: filelock.BaseFileLock | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        file = sqlite_file(self._url)
        if file is None:
            self._lock_server()
            return self
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = filelock.FileLock(f"{file}.lock", timeout=0)
            self._file.acquire()
        except filelock.Timeout:
            raise LedgerHeld(f"{place_of(self._url)}: {_HELD}") from None
        except OSError as error:
            raise LedgerUnreachable(
                f"{place_of(self._url)}: {file}.lock cannot be made ({error.strerror}). Set SMU0_STATE to a directory "
                f"this process may write to"
            ) from error
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.release()
        if self._connection is not None:
            self._connection.close()
        if self._engine is not None:
            self._engine.dispose()  # closing the connection is what frees the lock

    def check(self) -> None:
        """Raise LedgerUnreachable if the lock may be lost: its connection to the server broke."""
        if self._connection is None:
            return
        with translated(place_of(self._url)):
            try:
                self._connection.execute(text("SELECT 1"))
                self._connection.rollback()
            except DBAPIError:
                self._connection.invalidate()
                raise

    def _lock_server(self) -> None:
        with translated(place_of(self._url)):
            self._engine = connect(self._url, writable=True, busy_seconds=1.0)
            self._connection = self._engine.connect()
            got = self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": PAPER_LOCK}).scalar_one()
            self._connection.commit()
        if not got:
            self.__exit__(None, None, None)
            raise LedgerHeld(f"{place_of(self._url)}: {_HELD}")


def paper_lock(url: str) -> PaperLock:
    """The lock of the ledger at a URL."""
    return PaperLock(parse_url(url))
