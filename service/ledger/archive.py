"""Backup while the ledger is in use, restore, and the reset that ends a run without losing it.

A backup is always one SQLite file with the ledger's own schema, whatever the ledger lies on: the same commands show and
check it, and it can be restored to either database (which is also the way from one to the other). Nothing here deletes
a ledger: what a restore replaces is kept aside.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from sqlalchemy import URL, Connection, delete, func, insert, select, text

from service.ledger.connection import connect, for_reading, for_writing, parse_url, place_of, sqlite_file
from service.ledger.copies import beside, check_pages, copy_database, copy_pages, free_name, keep_beside, new_file
from service.ledger.errors import AlreadyRecorded, LedgerInconsistent, translated
from service.ledger.lock import paper_lock
from service.ledger.migrate import prepare
from service.ledger.schema import metadata
from service.ledger.store import MAX_LIMIT, Ledger, Writer

_ROWS_AT_ONCE: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore did. kept: copy of the ledger that was there before, None if there was none."""

    runs: int
    kept: Path | None


def backup(ledger: Ledger, target: Path) -> Path:
    """Copy the ledger as it is now into a new SQLite file, while others read and write. Returns the file.

    Raises ValueError if the file exists, LedgerFull or LedgerUnreachable if it cannot be written. A file that stands
    there afterwards is complete and on the disk.
    """
    with new_file(target) as part, translated(ledger.place):
        if sqlite_file(ledger.url) is not None:
            copy_pages(ledger.engine, part)
        else:
            _copy_rows_to_file(ledger, part)
    return target


def archive(
    ledger: Ledger, run_id: str, *, directory: Path, now_ms: int, also: Callable[[Writer], None] | None = None
) -> Path:
    """End a run: back the whole ledger up into `directory`, then mark the run as archived. Nothing is deleted.

    also: what else belongs into that transaction, such as finishing the command that asked for it. Returns the backup.
    Raises AlreadyRecorded if the run does not exist or is archived.
    """
    with ledger.reading() as read:
        run = read.run(run_id)
    if run is None or run.archived_ms is not None:
        raise AlreadyRecorded("run", f"{run_id} does not exist" if run is None else f"{run_id} is archived already")
    kept = backup(ledger, free_name(directory / "ledger.sqlite3", run_id))
    with ledger.transaction() as write:
        write.archive_run(run_id, now_ms=now_ms)
        text = f"Run {run_id} is archived. The ledger as it was: {kept}"
        write.append_event("archived", text, ts_ms=now_ms, run_id=run_id)
        if also is not None:
            also(write)
    return kept


def restore(url: str, source: Path, *, directory: Path) -> Restored:
    """Put a backup in the place of the ledger at `url`; what is there now is kept in `directory` or beside the ledger.

    Readers may stay: they see the old ledger until the new one is complete. Raises LedgerHeld while a paper process
    runs, LedgerInconsistent for a backup that does not add up, LedgerTooNew for one by newer code; then nothing has
    changed.
    """
    parsed = parse_url(url)
    file = sqlite_file(parsed)
    if not source.is_file():
        raise ValueError(f"{source}: expected a backup of a ledger, found no file")
    if file is not None and file.exists() and source.samefile(file):
        raise ValueError(f"{source}: expected a backup, found the ledger itself")
    with paper_lock(url):
        (directory if file is None else file.parent).mkdir(parents=True, exist_ok=True)
        staged = free_name(file or directory / "ledger.sqlite3", "restoring")
        try:
            runs = _stage(source, staged)
            kept = _restore_rows(url, staged, directory) if file is None else _restore_file(parsed, file, staged)
        finally:
            for name in (staged, *beside(staged)):
                name.unlink(missing_ok=True)
    return Restored(runs=runs, kept=kept)


def _stage(source: Path, staged: Path) -> int:
    """A copy of the backup, brought to this schema and gone through. Returns how many runs it holds."""
    from service.ledger.integrity import require_sound

    place, url = f"backup {source}", _url_of(staged)
    with translated(place):
        check_pages(source)
        with new_file(staged) as part:
            with closing(_open_read_only(source)) as original, closing(sqlite3.connect(part)) as copy:
                copy_database(original, copy, place)
            check_pages(part)
        engine = connect(parse_url(url), writable=True, busy_seconds=1.0)
        try:
            prepare(engine, parse_url(url), may_migrate=True, keep_copy=False)
        finally:
            engine.dispose()
    with Ledger.open(url, writable=True) as ledger:
        require_sound(ledger)
        with ledger.reading() as read:
            return len(read.runs(limit=MAX_LIMIT))


def _restore_file(url: URL, file: Path, staged: Path) -> Path | None:
    """Over a sound file the new pages go in as one transaction, so that whoever has it open follows. A damaged one is
    moved aside. Whatever schema it had does not matter: a restore is also the way back from newer code."""
    if not file.exists():
        os.replace(staged, file)
        return None
    place = place_of(url)
    try:
        check_pages(file)
    except (LedgerInconsistent, sqlite3.DatabaseError):
        kept = free_name(file, "damaged")
        for name, aside in zip((file, *beside(file)), (kept, *beside(kept)), strict=True):
            if name.exists():
                os.replace(name, aside)
        os.replace(staged, file)
        return kept
    engine = connect(url, writable=True, busy_seconds=5.0)
    try:
        with translated(place):
            kept = keep_beside(engine, file, "before-restore")
            with closing(_open_read_only(staged)) as new, engine.connect() as connection:
                copy_database(new, cast(sqlite3.Connection, connection.connection.driver_connection), place)
    finally:
        engine.dispose()
    return kept


def _open_read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)


def _url_of(file: Path) -> str:
    return URL.create("sqlite", database=str(file)).render_as_string()


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _copy_rows_to_file(ledger: Ledger, target: Path) -> None:
    """Every row of a server's ledger, as one state of it, into a new SQLite ledger."""
    with (
        Ledger.open(_url_of(target), writable=True) as copy,
        ledger.engine.connect() as source,
        for_reading(source).begin(),
        copy.engine.connect() as destination,
        for_writing(destination).begin(),
    ):
        _copy_rows(source, destination)
    with closing(sqlite3.connect(target)) as database:
        database.execute("PRAGMA journal_mode = DELETE")  # one file, without companions
    check_pages(target)


def _restore_rows(url: str, staged: Path, directory: Path) -> Path | None:
    """Replace every row of a server's ledger in one transaction. Its readers see the old rows until then."""
    with Ledger.open(url, writable=True) as ledger, Ledger.open(_url_of(staged), writable=False) as new:
        with ledger.reading() as read:
            empty = not read.runs(limit=1)
        kept = None if empty else backup(ledger, free_name(directory / "ledger.sqlite3", "before-restore"))
        with (
            translated(ledger.place),
            new.engine.connect() as source,
            for_reading(source).begin(),
            ledger.engine.connect() as destination,
            for_writing(destination).begin(),
        ):
            for table in reversed(metadata.sorted_tables):
                destination.execute(delete(table))
            _copy_rows(source, destination)
            _continue_numbers(destination)
    return kept


def _copy_rows(source: Connection, destination: Connection) -> None:
    """Both databases have this schema, the destination no rows. Parents come before their children."""
    for table in metadata.sorted_tables:
        found = source.execution_options(yield_per=_ROWS_AT_ONCE).execute(select(table))
        for rows in found.mappings().partitions():
            destination.execute(insert(table), [dict(row) for row in rows])


def _continue_numbers(connection: Connection) -> None:
    """Make a server's own counters go on after the ids that were copied; SQLite sees them by itself."""
    for table in metadata.sorted_tables:
        if "id" in table.c and table.c.id.autoincrement is True:
            last = connection.execute(select(func.max(table.c.id))).scalar()
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :last, :used)"),
                {"table": table.name, "last": last or 1, "used": last is not None},
            )
