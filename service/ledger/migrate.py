"""The schema's versions: what a database holds, and how it becomes what this code writes.

The migrations are Alembic's, shipped with the package and run in this process on the connection that holds the write
lock. Versions are four digits that count up, so that old and new can be told apart without asking Alembic, which is
only imported when something has to change.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, inspect, text

from service.ledger.connection import SQLITE, for_reading, for_writing, place_of, sqlite_file
from service.ledger.copies import keep_beside
from service.ledger.errors import LedgerInconsistent, LedgerTooNew, LedgerTooOld, LedgerUnreachable
from service.ledger.schema import SCHEMA_VERSION, metadata

SCRIPTS: Final = Path(__file__).with_name("migrations")
_VERSION_TABLE: Final = "alembic_version"


def prepare(
    engine: Engine,
    url: URL,
    *,
    may_migrate: bool,
    keep_copy: bool = True,
    scripts: Path = SCRIPTS,
    target: str = SCHEMA_VERSION,
) -> None:
    """Leave a database whose schema is `target`, or raise.

    keep_copy: keep a SQLite ledger beside itself before it is changed. scripts: directory of Alembic migrations.
    Raises LedgerTooNew, LedgerTooOld, LedgerUnreachable (nothing there yet) or LedgerInconsistent (something else is
    there).
    """
    with engine.connect() as connection, for_reading(connection).begin():
        found = version_of(connection, url)
    if found is not None and found > target:
        raise LedgerTooNew(
            f"{place_of(url)}: expected schema {target} or older, found {found}: newer code wrote it. Start that "
            f"version, or restore a backup made by this one"
        )
    if found == target:
        return
    if not may_migrate:
        if found is None:
            raise nothing_there(url)
        raise LedgerTooOld(
            f"{place_of(url)}: expected schema {target}, found {found}. Start the paper process of this version, or "
            f'run "python -m service ledger migrate"'
        )
    file = sqlite_file(url)
    if keep_copy and found is not None and file is not None:
        # SQLite has no other way back. A server is backed up by who runs it, or with "python -m service ledger backup".
        keep_beside(engine, file, f"schema-{found}")
    with _without_foreign_keys(engine) as connection, for_writing(connection).begin():
        # Another process may have done it while this one waited.
        if version_of(connection, url) != target:
            _upgrade(connection, scripts, target)
            _check_foreign_keys(connection, url)


def nothing_there(url: URL) -> LedgerUnreachable:
    """The error for a place where no ledger was ever made."""
    return LedgerUnreachable(
        f'{place_of(url)}: there is no ledger yet. The first start of "python -m service paper" makes it'
    )


def version_of(connection: Connection, url: URL) -> str | None:
    """The schema's version, None for an empty database. Raises LedgerInconsistent if it is no ledger."""
    names = set(inspect(connection).get_table_names())
    if _VERSION_TABLE not in names:
        foreign = sorted(names & set(metadata.tables)) or (sorted(names) if sqlite_file(url) is not None else [])
        if foreign:
            raise LedgerInconsistent(
                f"{place_of(url)}: expected a ledger or an empty database, found tables of something else "
                f"({', '.join(foreign[:5])}). Point SMU0_DATABASE_URL elsewhere"
            )
        return None
    found = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalars().all()
    if not found:
        return None
    if len(found) != 1 or not re.fullmatch(r"\d{4}", found[0]):
        raise LedgerInconsistent(
            f"{place_of(url)}: expected a schema version of four digits, found {', '.join(map(repr, found))}. Point "
            f"SMU0_DATABASE_URL at a ledger"
        )
    return str(found[0])


def _upgrade(connection: Connection, scripts: Path, target: str) -> None:
    """Run the migrations from where the database stands to `target`, in the transaction of the connection."""
    from alembic import command
    from alembic.config import Config

    # Built here, not read from a file: the scripts lie in the package, and `migrations/env.py` takes the connection.
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, target)


@contextmanager
def _without_foreign_keys(engine: Engine) -> Iterator[Connection]:
    """A connection on which SQLite tables may be rebuilt: dropping the old one would count as deleting its rows.

    SQLite knows this switch outside transactions only.
    """
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        switches = connection.dialect.name == SQLITE
        if switches:
            driver.execute("PRAGMA foreign_keys = OFF")
        try:
            yield connection
        finally:
            if switches:
                driver.execute("PRAGMA foreign_keys = ON")


def _check_foreign_keys(connection: Connection, url: URL) -> None:
    """What SQLite did not watch during a migration. Raising here undoes it."""
    if connection.dialect.name == SQLITE:
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise LedgerInconsistent(
                f"{place_of(url)}: {len(broken)} rows would refer to nothing after the migration, the first in table "
                f"{broken[0][0]}. Nothing was changed; report this with a backup"
            )
