"""Whole SQLite ledgers as files: complete or not there at all, and never over another file."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from service.ledger.errors import LedgerBusy, LedgerFull, LedgerInconsistent, LedgerUnreachable

_PAUSE_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 5.0


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file to fill, which becomes `target` at the end of the block, on the disk; nothing stays after an error.

    Raises ValueError if the target exists, LedgerFull or LedgerUnreachable if it cannot be written.
    """
    if target.exists():
        raise ValueError(f"{target}: expected a free name for a copy of the ledger, found a file. Choose another name")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.chmod(0o600)
            _sync(part)
            os.replace(part, target)
            _sync(target.parent)
        finally:
            for name in (part, *beside(part)):
                name.unlink(missing_ok=True)
    except OSError as error:
        kind = LedgerFull if error.errno == errno.ENOSPC else LedgerUnreachable
        raise kind(f"{target}: the copy cannot be written ({error.strerror}). Choose another directory") from error


def copy_pages(engine: Engine, target: Path) -> None:
    """Copy the SQLite database of an engine to a file, in one step, while others read and write.

    The copy needs no companions: its journal is of the kind that leaves none. sqlite3 errors go to the caller.
    """
    with engine.connect() as connection, closing(sqlite3.connect(target)) as copy:
        driver: Any = connection.connection.driver_connection
        copy_database(driver, copy, str(target))
        copy.execute("PRAGMA journal_mode = DELETE")
    check_pages(target)


def copy_database(source: sqlite3.Connection, target: sqlite3.Connection, place: str) -> None:
    """Replace everything in `target` by `source`, as one transaction of each.

    Raises LedgerBusy when another process keeps writing to either; by itself the driver would wait for ever.
    """
    waited = 0.0

    def watch(status: int, _remaining: int, _total: int) -> None:
        nonlocal waited
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            waited += _PAUSE_SECONDS
            if waited > _PATIENCE_SECONDS:
                raise LedgerBusy(f"{place}: another process is writing and did not finish in time; try again")

    source.backup(target, progress=watch, sleep=_PAUSE_SECONDS)


def check_pages(file: Path) -> None:
    """Raise LedgerInconsistent if a SQLite file is damaged; sqlite3.DatabaseError if it is none."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        found = [row[0] for row in database.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise LedgerInconsistent(f"{file}: expected a sound SQLite file, found: {'; '.join(found)}. Use another backup")


def keep_beside(engine: Engine, file: Path, label: str) -> Path:
    """Copy a ledger to a free name beside itself, such as ledger.LABEL.sqlite3. Returns the name."""
    target = free_name(file, label)
    with new_file(target) as part:
        copy_pages(engine, part)
    return target


def free_name(file: Path, label: str) -> Path:
    """The first of ledger.LABEL.sqlite3, ledger.LABEL-2.sqlite3, … that is not there."""
    number, name = 1, file.with_name(f"{file.stem}.{label}{file.suffix}")
    while name.exists():
        number += 1
        name = file.with_name(f"{file.stem}.{label}-{number}{file.suffix}")
    return name


def beside(file: Path) -> tuple[Path, ...]:
    """The companions SQLite may leave: write-ahead log, its index, rollback journal."""
    return tuple(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm", "-journal"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
