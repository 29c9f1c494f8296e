"""What happens to a ledger: other writers, full disks, kills in the middle, servers that die. It writes all or nothing,
says which it was, and goes on afterwards."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import event, text

from service.ledger.errors import LedgerBusy, LedgerError, LedgerFull, LedgerInconsistent, LedgerUnreachable
from service.ledger.integrity import check
from service.ledger.schema import UNSTORED
from service.ledger.store import Ledger

OpenLedger = Callable[..., Ledger]


@contextlib.contextmanager
def held_for(ledger: Ledger, seconds: float) -> Iterator[None]:
    """Somebody writes in the background, for so long."""
    holds, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger.transaction():
            holds.set()
            done.wait(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


# --- another writer --------------------------------------------------------------------------------------------------


@pytest.mark.failures
def test_a_ledger_that_is_locked_for_three_seconds_only_costs_time(
    ledger: Ledger, open_ledger: OpenLedger, small: ModuleType
) -> None:
    small.begin(ledger)
    began = time.monotonic()
    with held_for(open_ledger(), 3.0):
        small.trade(ledger, 0)
    assert time.monotonic() - began >= 2.9
    assert check(ledger)[0].exact


@pytest.mark.failures
def test_a_ledger_that_is_locked_for_ten_seconds_is_busy_and_nothing_is_half_written(
    ledger: Ledger, open_ledger: OpenLedger, small: ModuleType
) -> None:
    small.begin(ledger)
    small.trade(ledger, 0)
    with held_for(open_ledger(), 10.0), pytest.raises(LedgerBusy, match="try again"):
        small.trade(ledger, 1)
    report = check(ledger)[0]
    assert (report.bars, report.exact) == (1, True)
    small.trade(ledger, 1)
    assert check(ledger)[0].exact


def test_waiting_is_bounded_by_the_busy_timeout(ledger: Ledger, open_ledger: OpenLedger, small: ModuleType) -> None:
    small.begin(ledger)
    impatient = open_ledger(busy_seconds=0.3)
    with held_for(ledger, 20.0), pytest.raises(LedgerBusy):
        small.trade(impatient, 0)
    small.trade(impatient, 0)
    assert check(ledger)[0].exact


def test_writers_at_once_lose_nothing_and_ids_follow_the_commits(open_ledger: OpenLedger) -> None:
    def write_many(name: str) -> None:
        ledger = open_ledger(busy_seconds=30.0)
        for number in range(15):
            with ledger.transaction() as write:
                write.append_event(name, str(number), ts_ms=0)

    threads = [threading.Thread(target=write_many, args=(name,)) for name in "abc"]
    seen: list[int] = []
    reader = open_ledger()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with reader.reading() as read:  # what a stream does: whatever is new, after the last it knows
            seen += [row.id for row in read.events_after(seen[-1] if seen else 0)]
    with reader.reading() as read:
        seen += [row.id for row in read.events_after(seen[-1])]
        assert seen == [row.id for row in read.events_after(0)]
        assert len(seen) == 45


# --- no space --------------------------------------------------------------------------------------------------------


def fill_up(ledger: Ledger) -> None:
    """Write until there is no more space; every event that was written stands."""
    for number in range(10_000):
        with ledger.transaction() as write:
            write.append_event("filler", f"{number} " + "x" * 3_000, ts_ms=number)


def test_a_ledger_that_may_not_grow_is_full_and_whole(sqlite_url: str, small: ModuleType) -> None:
    with Ledger.open(sqlite_url, writable=True) as ledger:
        small.trade_all(ledger, 2)
        limit = 80  # pages

        @event.listens_for(ledger.engine, "connect")
        def bound(connection: sqlite3.Connection, _record: Any) -> None:
            connection.execute(f"PRAGMA max_page_count = {limit}")

        ledger.engine.dispose()
        with pytest.raises(LedgerFull, match=r"Nothing was written; free some space"):
            fill_up(ledger)
        with pytest.raises(LedgerFull):
            small.trade_on(ledger, 100)
        [report] = check(ledger)
        assert report.exact
        limit = 100_000  # somebody freed some space
        ledger.engine.dispose()
        small.trade(ledger, small.next_number(ledger))
        assert check(ledger)[0].bars == report.bars + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no small disk may be mounted here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_and_trading_goes_on_after_it(small_disk: Path, small: ModuleType) -> None:
    ballast = small_disk / "ballast"
    with Ledger.open(f"sqlite:///{small_disk}/ledger.sqlite3", writable=True) as ledger:
        small.trade_all(ledger, 3)
        # All but a little of the disk, so that the log of the ledger is what fills it.
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(LedgerFull, match="no space left"):
            fill_up(ledger)
        with ledger.reading() as read:  # looking on is possible
            assert len(read.equity("run-1")) == 3
        ballast.unlink()
        small.trade(ledger, 3)
        [report] = check(ledger)
        assert (report.bars, report.exact) == (4, True)


def test_a_full_server_is_said(database: str, small: ModuleType) -> None:
    with Ledger.open(database, writable=True) as ledger:
        small.begin(ledger)
        with pytest.raises(LedgerFull, match="no space left on the server"), ledger.transaction() as write:
            # What the server says when a table cannot grow.
            write._connection.execute(
                text("DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$")
            )
        small.trade(ledger, 0)
        assert check(ledger)[0].exact


# --- kills -----------------------------------------------------------------------------------------------------------


def kill_while_trading(program: Path, url: str, bars: int, delay: float) -> bool:
    """Start the trader, let it record a bar, and kill it a moment later. Returns whether the kill came in time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, program, url, str(bars)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0  # it trades
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def without_ids(rows: list[Any]) -> list[Any]:
    """A server leaves holes in its numbering where a transaction was lost."""
    known = {"decision_id": 0, "order_id": 0, "id": UNSTORED}
    return [replace(row, **{name: value for name, value in known.items() if hasattr(row, name)}) for row in rows]


def everything(ledger: Ledger) -> list[Any]:
    with ledger.reading() as read:
        run = "run-1"
        rows = [read.bars(run), read.decisions(run), read.orders(run), read.fills(run), read.equity(run)]
        return [*map(without_ids, rows), without_ids(read.events_after(0)), read.account(run), read.positions(run)]


def killed_again_and_again(
    url: str, program: Path, small: ModuleType, tmp_path: Path, *, kills: int, seed: int
) -> None:
    """Kill a trader at random moments, look at the ledger each time, compare it with an undisturbed one in the end."""
    moments, enough = random.Random(seed), 1_000_000
    for _ in range(kills):
        assert kill_while_trading(program, url, enough, moments.uniform(0.0, 0.08))
        with Ledger.open(url, writable=True) as ledger:
            [report] = check(ledger)
            assert report.exact, report.findings
    with Ledger.open(url, writable=True) as ledger:
        bars = small.next_number(ledger)
        assert bars >= kills
        with Ledger.open(f"sqlite:///{tmp_path}/quiet.sqlite3", writable=True) as quiet:
            small.trade_all(quiet, bars)
            assert everything(ledger) == everything(quiet)


def test_a_trader_killed_in_the_middle_leaves_whole_bars(
    sqlite_url: str, trader_program: Path, small: ModuleType, tmp_path: Path
) -> None:
    killed_again_and_again(sqlite_url, trader_program, small, tmp_path, kills=1, seed=1)


@pytest.mark.failures
def test_a_trader_killed_forty_times_writes_what_an_undisturbed_one_writes(
    url: str, trader_program: Path, small: ModuleType, tmp_path: Path
) -> None:
    killed_again_and_again(url, trader_program, small, tmp_path, kills=40, seed=2)


@pytest.mark.parametrize("point", range(0, 12, 2))
def test_a_transaction_that_fails_after_any_statement_leaves_nothing(
    sqlite_traded: Ledger, small: ModuleType, point: int
) -> None:
    """An error at every place of a bar, from the first statement to the last."""
    statements = 0

    @event.listens_for(sqlite_traded.engine, "after_cursor_execute")
    def fail(connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        nonlocal statements
        statements += statement.startswith(("INSERT", "UPDATE"))
        if statements > point:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        small.trade(sqlite_traded, 12)
    event.remove(sqlite_traded.engine, "after_cursor_execute", fail)
    [report] = check(sqlite_traded)
    assert (report.bars, report.exact) == (12, True)
    small.trade(sqlite_traded, 12)
    assert check(sqlite_traded)[0].bars == 13


# --- servers and files -----------------------------------------------------------------------------------------------


def write_through_a_crash(ledger: Ledger, server: Any) -> None:
    with ledger.transaction() as write:
        write.append_event("lost", "", ts_ms=0)
        server.stop(signal.SIGQUIT)
        write.append_event("lost as well", "", ts_ms=0)


def test_a_server_that_crashes_is_unreachable_until_it_is_back(server: Any, database: str, small: ModuleType) -> None:
    with Ledger.open(database, writable=True) as ledger:
        small.trade_all(ledger, 2)
        with pytest.raises(LedgerUnreachable, match="server cannot be used"):
            write_through_a_crash(ledger, server)
        with pytest.raises(LedgerUnreachable), ledger.reading():
            pass
        server.start()
        small.trade(ledger, 2)  # the same ledger, without opening it anew
        [report] = check(ledger)
        assert (report.bars, report.exact) == (3, True)
        with ledger.reading() as read:
            assert "lost" not in {row.kind for row in read.events_after(0)}


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one " * 100, b"\x00" * 8192])
def test_a_file_that_is_no_database_points_to_restore(sqlite_url: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "state" / "ledger.sqlite3"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(LedgerInconsistent, match="python -m service ledger restore FILE"):
        Ledger.open(sqlite_url, writable=True)
    assert file.read_bytes() == content


def test_a_ledger_cut_short_points_to_restore(sqlite_traded: Ledger, tmp_path: Path) -> None:
    sqlite_traded.close()
    file = tmp_path / "state" / "ledger.sqlite3"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(LedgerInconsistent, match="restore"):
        check(sqlite_traded)


def test_a_directory_nobody_may_write_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnreachable, match="Set SMU0_STATE"):
        Ledger.open(f"sqlite:///{tmp_path}/file/ledger.sqlite3", writable=True)


def test_an_error_nobody_foresaw_is_still_a_ledger_error(ledger: Ledger) -> None:
    with pytest.raises(LedgerError), ledger.reading() as read:
        read._connection.exec_driver_sql("SELECT nonsense FROM nowhere")
