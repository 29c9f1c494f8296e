"""The migrations make exactly what the code describes; older ledgers follow, newer ones are refused."""

import re
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from service.ledger.connection import connect, for_writing, parse_url
from service.ledger.errors import LedgerError, LedgerInconsistent, LedgerTooNew, LedgerTooOld, LedgerUnreachable
from service.ledger.integrity import check
from service.ledger.migrate import SCRIPTS, prepare
from service.ledger.schema import SCHEMA_VERSION, metadata
from service.ledger.store import Ledger

OpenLedger = Callable[..., Ledger]
NEXT = "0099"


def upgrade_to_next(ledger: Ledger, tmp_path: Path, step: str) -> None:
    """Migrate as the code of a later version would: with one more script. step: the lines of its upgrade()."""
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "v0099_next.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        f"revision = {NEXT!r}\ndown_revision = {SCHEMA_VERSION!r}\n\n\n"
        f"def upgrade():\n{step}\n"
    )
    prepare(ledger.engine, ledger.url, may_migrate=True, scripts=scripts, target=NEXT)


ADD_A_COLUMN = '    op.add_column("fill", sa.Column("venue_id", sa.Text(), nullable=True))'


def test_the_migrations_make_what_the_code_describes(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, metadata)
    assert differences == []


def test_checks_and_strictness_are_the_same_as_well(sqlite_url: str, tmp_path: Path) -> None:
    def statements(file: Path) -> dict[str, list[str]]:
        with sqlite3.connect(file) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL").fetchall()
        connection.close()
        # The order of constraints means nothing.
        return {
            name: sorted(part.strip() for part in re.split(r",\s*\n|\n", sql))
            for name, sql in rows
            if "alembic" not in name
        }

    Ledger.open(sqlite_url, writable=True).close()
    described = create_engine(f"sqlite:///{tmp_path}/described.sqlite3")
    metadata.create_all(described)
    described.dispose()
    assert statements(tmp_path / "state" / "ledger.sqlite3") == statements(tmp_path / "described.sqlite3")


def test_versions_count_up_to_the_one_the_code_knows() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    directory = ScriptDirectory.from_config(config)
    assert directory.get_heads() == [SCHEMA_VERSION]
    versions = [script.revision for script in directory.walk_revisions()]
    assert versions == sorted(versions, reverse=True)
    assert all(re.fullmatch(r"\d{4}", version) for version in versions)


def test_a_newer_ledger_is_refused(url: str, open_ledger: OpenLedger, tmp_path: Path) -> None:
    upgrade_to_next(open_ledger(), tmp_path, ADD_A_COLUMN)
    for writable in (True, False):
        with pytest.raises(LedgerTooNew, match=f"expected schema {SCHEMA_VERSION} or older, found {NEXT}"):
            open_ledger(writable=writable)


def test_an_older_ledger_is_migrated_and_keeps_its_rows(traded: Ledger, tmp_path: Path) -> None:
    with traded.reading() as read:
        before = read.standing("run-1"), read.fills("run-1")
    upgrade_to_next(traded, tmp_path, ADD_A_COLUMN)
    with traded.reading() as read:
        assert (read.standing("run-1"), read.fills("run-1")) == before
    with traded.engine.connect() as connection:
        assert connection.execute(text("SELECT venue_id FROM fill")).scalars().first() is None
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == NEXT


def test_a_table_can_be_rebuilt_under_its_children(sqlite_traded: Ledger, tmp_path: Path) -> None:
    """SQLite changes a column by making the table anew; rows that refer to it must survive the moment without it."""
    step = '    with op.batch_alter_table("decision") as batch:\n        batch.alter_column("reason", nullable=True)'
    upgrade_to_next(sqlite_traded, tmp_path, step)
    with sqlite_traded.reading() as read:
        assert len(read.decisions("run-1")) == len(read.orders("run-1")) == 12
    [report] = check(sqlite_traded)
    assert report.exact
    with pytest.raises(LedgerError), sqlite_traded.transaction() as write:  # and foreign keys are watched again
        write._connection.exec_driver_sql("DELETE FROM decision")


def test_sqlite_is_copied_before_it_is_changed(sqlite_traded: Ledger, tmp_path: Path) -> None:
    upgrade_to_next(sqlite_traded, tmp_path, ADD_A_COLUMN)
    copy = tmp_path / "state" / f"ledger.schema-{SCHEMA_VERSION}.sqlite3"
    with Ledger.open(f"sqlite:///{copy}", writable=False) as old:
        [report] = check(old)
    assert report.exact


@pytest.mark.parametrize(
    "step",
    [
        ADD_A_COLUMN + "\n    raise RuntimeError('half way')",
        ADD_A_COLUMN + '\n    op.execute("DELETE FROM run")',
    ],
    ids=["it fails", "rows would refer to nothing"],
)
def test_a_migration_that_fails_changes_nothing(traded: Ledger, tmp_path: Path, step: str) -> None:
    with pytest.raises(Exception, match=r"half way|refer to nothing|violates foreign key"):
        upgrade_to_next(traded, tmp_path, step)
    with traded.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == SCHEMA_VERSION
    [report] = check(traded)
    assert report.exact


def test_only_who_may_migrates(url: str, open_ledger: OpenLedger) -> None:
    ledger = open_ledger()
    with ledger.engine.connect() as connection, for_writing(connection).begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(LedgerTooOld, match=r"found 0000.*ledger migrate"):
        open_ledger(writable=False)
    with pytest.raises(LedgerTooOld):
        Ledger.open(url, writable=True, migrate=False)


def test_an_api_that_comes_first_makes_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerUnreachable, match="there is no ledger yet"):
        Ledger.open(url, writable=True, migrate=False)
    assert not (tmp_path / "state").exists()


def test_processes_that_start_at_once_agree(url: str) -> None:
    def open_and_look(_number: int) -> int:
        with Ledger.open(url, writable=True, busy_seconds=20.0) as ledger, ledger.reading() as read:
            return read.last_event_id()

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(open_and_look, range(6))) == [0] * 6


def test_a_database_of_something_else_is_left_alone(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "ledger.sqlite3") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(LedgerInconsistent, match=r"something else \(recipes\)"):
        Ledger.open(sqlite_url, writable=True)


@pytest.mark.parametrize("version", ["main", "12", "abcd"])
def test_a_version_that_is_no_number_is_no_ledger_of_ours(
    ledger: Ledger, open_ledger: OpenLedger, version: str
) -> None:
    with ledger.engine.connect() as connection, for_writing(connection).begin():
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    with pytest.raises(LedgerInconsistent, match="four digits"):
        open_ledger()


def test_the_migrations_ship_with_the_package(small: ModuleType) -> None:
    assert (SCRIPTS / "env.py").is_file()
    assert list((SCRIPTS / "versions").glob(f"v{SCHEMA_VERSION}_*.py"))


@pytest.mark.parametrize(
    "wrong", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "not a url", "postgresql+asyncpg://u:secret@h/d"]
)
def test_a_url_that_cannot_hold_a_ledger_is_refused_without_its_password(wrong: str) -> None:
    with pytest.raises(ValueError, match="database URL: expected") as caught:
        parse_url(wrong)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(LedgerUnreachable, match="the server cannot be used") as caught:
        Ledger.open("postgresql://alice:secret@127.0.0.1:1/ledger", writable=True)
    assert "secret" not in str(caught.value)
    assert "alice" in str(caught.value)


def test_an_engine_is_not_opened_before_it_is_needed(sqlite_url: str, tmp_path: Path) -> None:
    connect(parse_url(sqlite_url), writable=True, busy_seconds=1.0).dispose()
    assert list(tmp_path.iterdir()) == []
