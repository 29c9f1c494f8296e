"""Backups are complete, restores lose nothing, a reset keeps the past."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import text

from service.ledger.archive import archive, backup, restore
from service.ledger.connection import for_writing
from service.ledger.errors import (
    AlreadyRecorded,
    LedgerHeld,
    LedgerInconsistent,
    LedgerTooNew,
    LedgerUnreachable,
)
from service.ledger.integrity import check
from service.ledger.lock import paper_lock
from service.ledger.schema import IdempotencyRow
from service.ledger.store import Ledger, Page


def content(ledger: Ledger) -> dict[str, Any]:
    """Every row of the ledger."""
    with ledger.reading() as read:
        runs = read.runs()
        return {
            "events": read.events_after(0),
            "commands": read.commands(),
            "heartbeat": read.heartbeat("paper"),
            **{
                run.id: [
                    run, read.standing(run.id), read.bars(run.id), read.decisions(run.id), read.orders(run.id),
                    read.fills(run.id), read.equity(run.id), read.gaps(run.id),
                ]
                for run in runs
            },
        }  # fmt: skip


def sqlite_ledger(file: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{file}", writable=False)


def address(ledger: Ledger) -> str:
    return ledger.url.render_as_string(hide_password=False)


# --- backup ----------------------------------------------------------------------------------------------------------


def test_a_backup_holds_every_row_in_one_private_file(traded: Ledger, tmp_path: Path) -> None:
    with traded.transaction() as write:
        write.insert_command("halt", reason="r", confirm="c", requested_by="k", now_ms=1)
        write.remember(IdempotencyRow(scope="s", key="k", body_sha256="b", status=200, response="{}", created_ms=1))
    file = backup(traded, tmp_path / "copies" / "ledger.sqlite3")
    assert [path.name for path in file.parent.iterdir()] == ["ledger.sqlite3"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with sqlite_ledger(file) as copy:
        assert content(copy) == content(traded)
        with copy.reading() as read:
            assert read.idempotency("s", "k", body_sha256="b", created_since=0) is not None
        [report] = check(copy)
    assert report.exact


def test_a_backup_is_one_state_while_trading_goes_on(traded: Ledger, small: ModuleType, tmp_path: Path) -> None:
    with traded.transaction() as write:
        write.append_event("half", "not committed", ts_ms=0)
        file = backup(traded, tmp_path / "backup.sqlite3")
    small.trade(traded, 12)
    with sqlite_ledger(file) as copy:
        [report] = check(copy)
        with copy.reading() as read:
            assert "half" not in {event.kind for event in read.events_after(0)}
    assert (report.bars, report.exact) == (12, True)


def test_a_backup_overwrites_nothing(traded: Ledger, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    with pytest.raises(ValueError, match="expected a free name"):
        backup(traded, target)
    assert target.read_text() == "kept"


def test_a_backup_that_fails_leaves_no_file(sqlite_traded: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnreachable, match="cannot be written"):
        backup(sqlite_traded, tmp_path / "file" / "backup.sqlite3")
    damaged = tmp_path / "state" / "ledger.sqlite3"
    sqlite_traded.close()
    damaged.write_bytes(b"x" * 40_960)
    with pytest.raises(LedgerInconsistent):
        backup(sqlite_traded, tmp_path / "backup.sqlite3")
    assert not list(tmp_path.glob("*backup*"))


# --- restore ---------------------------------------------------------------------------------------------------------


def test_a_restore_brings_the_rows_back_and_keeps_what_was_there(
    traded: Ledger, small: ModuleType, tmp_path: Path
) -> None:
    then = content(traded)
    file = backup(traded, tmp_path / "backup.sqlite3")
    small.trade(traded, 12)
    now = content(traded)
    restored = restore(address(traded), file, directory=tmp_path / "backups")
    assert content(traded) == then  # an open ledger follows
    assert restored.runs == 1
    assert restored.kept is not None
    with sqlite_ledger(restored.kept) as kept:
        assert content(kept) == now
    small.trade(traded, 12)  # ids go on where they were
    assert content(traded) == now


def test_a_restore_into_nothing_makes_the_ledger(traded_file: Path, url: str, tmp_path: Path) -> None:
    assert restore(url, traded_file, directory=tmp_path / "backups").kept is None
    with Ledger.open(url, writable=True) as ledger, sqlite_ledger(traded_file) as original:
        assert content(ledger) == content(original)
        assert check(ledger)[0].exact


def test_a_reader_in_the_middle_sees_the_old_ledger_until_it_is_done(
    sqlite_traded: Ledger, small: ModuleType, tmp_path: Path
) -> None:
    file = backup(sqlite_traded, tmp_path / "backup.sqlite3")
    small.trade(sqlite_traded, 12)
    with sqlite_traded.reading() as read:
        assert len(read.equity("run-1")) == 13
        restore(address(sqlite_traded), file, directory=tmp_path)
        assert len(read.equity("run-1")) == 13
    with sqlite_traded.reading() as read:
        assert len(read.equity("run-1")) == 12


def test_a_restore_waits_for_no_trader(traded: Ledger, tmp_path: Path) -> None:
    file = backup(traded, tmp_path / "backup.sqlite3")
    before = content(traded)
    with paper_lock(address(traded)), pytest.raises(LedgerHeld, match="Stop that one first"):
        restore(address(traded), file, directory=tmp_path)
    assert content(traded) == before
    restore(address(traded), file, directory=tmp_path)


def test_a_backup_that_does_not_add_up_is_refused(traded: Ledger, traded_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite3"
    shutil.copy(traded_file, file)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE account SET cash = cash + 1")
    connection.close()
    before = content(traded)
    with pytest.raises(LedgerInconsistent, match="does not add up"):
        restore(address(traded), file, directory=tmp_path / "backups")
    assert content(traded) == before
    assert not list(tmp_path.glob("**/*restoring*"))


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda file: file.write_bytes(b"no database" * 1000), LedgerInconsistent, "damaged file"),
        (lambda file: None, ValueError, "found no file"),
        (lambda file: file.mkdir(), ValueError, "found no file"),
    ],
    ids=["not SQLite", "nothing", "a directory"],
)
def test_what_is_no_backup_is_refused(
    sqlite_traded: Ledger, tmp_path: Path, make: Any, error: type[Exception], complaint: str
) -> None:
    file = tmp_path / "backup.sqlite3"
    make(file)
    with pytest.raises(error, match=complaint):
        restore(address(sqlite_traded), file, directory=tmp_path)
    assert check(sqlite_traded)[0].exact


def test_a_backup_by_newer_code_is_refused(sqlite_traded: Ledger, traded_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite3"
    shutil.copy(traded_file, file)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(LedgerTooNew):
        restore(address(sqlite_traded), file, directory=tmp_path)
    assert check(sqlite_traded)[0].exact


def test_a_ledger_cannot_be_restored_from_itself(sqlite_traded: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found the ledger itself"):
        restore(address(sqlite_traded), tmp_path / "state" / "ledger.sqlite3", directory=tmp_path)


def test_a_damaged_ledger_is_kept_aside(sqlite_url: str, traded_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "state" / "ledger.sqlite3"
    file.parent.mkdir()
    file.write_bytes(b"x" * 40_960)
    with pytest.raises(LedgerInconsistent, match=r"ledger restore FILE"):
        Ledger.open(sqlite_url, writable=True)
    kept = restore(sqlite_url, traded_file, directory=tmp_path).kept
    assert kept is not None
    assert kept.read_bytes() == b"x" * 40_960
    with Ledger.open(sqlite_url, writable=True) as ledger:
        assert check(ledger)[0].exact


def test_a_restore_is_the_way_back_from_newer_code(sqlite_traded: Ledger, traded_file: Path, tmp_path: Path) -> None:
    with sqlite_traded.engine.connect() as connection, for_writing(connection).begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    restore(address(sqlite_traded), traded_file, directory=tmp_path)
    with Ledger.open(address(sqlite_traded), writable=True) as ledger:
        assert check(ledger)[0].exact


# --- reset and lock --------------------------------------------------------------------------------------------------


def test_an_archived_run_stays_readable_and_the_next_one_begins(
    traded: Ledger, small: ModuleType, tmp_path: Path
) -> None:
    with traded.transaction() as write:
        command = write.insert_command("reset", reason="r", confirm="c", requested_by="k", now_ms=1)
    kept = archive(
        traded,
        "run-1",
        directory=tmp_path / "backups",
        now_ms=5,
        also=lambda write: write.finish_command(command, "done", "archived", now_ms=5),
    )
    small.begin(traded, "run-2")
    small.trade(traded, 0)
    with traded.reading() as read:
        assert [run.id for run in read.runs()] == ["run-2", "run-1"]
        active = read.active_run()
        assert active is not None
        assert active.id == "run-2"
        assert len(read.fills("run-1", Page(limit=5000))) > 0
        assert read.pending_commands() == []
    assert [report.ok for report in check(traded, all_runs=True)] == [True, True]
    with sqlite_ledger(kept) as copy, copy.reading() as read:
        before = read.active_run()
        assert before is not None
        assert before.id == "run-1"
    with pytest.raises(AlreadyRecorded, match="archived already"):
        archive(traded, "run-1", directory=tmp_path / "backups", now_ms=6)
    assert len(list((tmp_path / "backups").iterdir())) == 1


def test_one_trader_holds_a_ledger(url: str) -> None:
    with paper_lock(url) as lock:
        lock.check()
        with pytest.raises(LedgerHeld), paper_lock(url):
            pass
    with paper_lock(url):
        pass


def test_a_lock_where_nothing_may_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnreachable, match="Set SMU0_STATE"), paper_lock(f"sqlite:///{tmp_path}/file/l.sqlite3"):
        pass


def test_a_lock_on_a_server_that_broke_is_noticed(database: str) -> None:
    with paper_lock(database) as lock:
        with Ledger.open(database, writable=True) as ledger, ledger.engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
                    "(SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()"
                )
            )
        with pytest.raises(LedgerUnreachable):
            lock.check()


def test_the_lock_goes_with_the_process(url: str, tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom service.ledger.lock import paper_lock\n"
        "with paper_lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LedgerHeld), paper_lock(url):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with paper_lock(url):
        pass
