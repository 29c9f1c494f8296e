"""python -m service ledger, as an operator uses it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from service.ledger.commands import app
from service.ledger.connection import for_writing
from service.ledger.errors import LedgerError, LedgerHeld, LedgerUnreachable
from service.ledger.lock import paper_lock
from service.ledger.schema import SCHEMA_VERSION
from service.ledger.store import Ledger

Command = Callable[..., str]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of its own."""
    monkeypatch.setenv("SMU0_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SMU0_DATABASE_URL", raising=False)
    return tmp_path / "state"


@pytest.fixture
def traded_state(state: Path, traded_file: Path) -> Path:
    state.mkdir()
    shutil.copy(traded_file, state / "ledger.sqlite3")
    return state


@pytest.fixture
def command(state: Path) -> Command:
    """Runs a command and returns what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.stdout

    return run


def data(output: str) -> Any:
    return json.loads(output)


def test_where_nothing_is_the_commands_say_so_and_make_nothing(command: Command, state: Path) -> None:
    for words in (["show"], ["check"], ["backup"], ["export", "fills"]):
        with pytest.raises(LedgerUnreachable, match="there is no ledger yet"):
            command(*words)
    assert not state.exists()


def test_migrate_makes_a_ledger_and_show_says_that_it_is_empty(command: Command) -> None:
    assert data(command("migrate", "--json"))["schema"] == SCHEMA_VERSION
    assert "no run yet" in command("show")
    assert data(command("show", "--json"))["standing"] is None
    assert data(command("check", "--json")) == []


@pytest.mark.usefixtures("traded_state")
def test_show_tells_where_the_run_stands(command: Command) -> None:
    shown = command("show")
    for words in (
        "run run-1 (active)",
        "BTC/USDT 1h",
        "equity",
        "12 decided",
        "ACTIVE",
        "last bar        2024-01-01 11",
    ):
        assert words in shown
    standing = data(command("show", "--json"))
    assert standing["standing"]["run"]["id"] == "run-1"
    assert standing["decisions"] == {"decided": 12}


def test_check_says_what_is_wrong_and_fails(command: Command, traded_state: Path) -> None:
    assert "run run-1 adds up, to the last bit: 12 bars" in command("check")
    with (
        Ledger.open(f"sqlite:///{traded_state}/ledger.sqlite3", writable=True) as ledger,
        ledger.engine.connect() as connection,
        for_writing(connection).begin(),
    ):
        connection.execute(text("UPDATE account SET cash = cash + 1"))
    found = command("check", code=1)
    assert "does NOT add up" in found
    assert "account, cash" in found
    [report] = data(command("check", "--json", code=1))
    assert report["ok"] is False
    assert report["findings"]


def test_a_backup_can_be_restored(command: Command, traded_state: Path, small: ModuleType) -> None:
    made = Path(data(command("backup", "--json"))["backup"])
    assert made.parent == traded_state / "backups"
    with Ledger.open(f"sqlite:///{traded_state}/ledger.sqlite3", writable=True) as ledger:
        small.trade(ledger, 12)
    with paper_lock(f"sqlite:///{traded_state}/ledger.sqlite3"), pytest.raises(LedgerHeld):
        command("restore", str(made))
    restored = data(command("restore", str(made), "--json"))
    assert restored["runs"] == 1
    assert Path(restored["kept"]).exists()
    assert "12 bars" in command("check")


def test_archive_ends_the_run_and_all_looks_at_it(command: Command, traded_state: Path) -> None:
    with paper_lock(f"sqlite:///{traded_state}/ledger.sqlite3"), pytest.raises(LedgerHeld):
        command("archive")
    assert "run-1 is archived" in command("archive")
    assert "no active run" in command("check")
    assert "run run-1 adds up" in command("check", "--all")
    assert "archived" in command("show")
    with pytest.raises(ValueError, match="nothing to archive"):
        command("archive")


@pytest.mark.usefixtures("traded_state")
@pytest.mark.parametrize(("rows", "number"), [("bars", 12), ("decisions", 12), ("equity", 12), ("events", 12)])
def test_export_writes_every_row(command: Command, tmp_path: Path, rows: str, number: int) -> None:
    lines = [data(line) for line in command("export", rows, "--json").splitlines()]
    assert len(lines) == number
    output = tmp_path / "rows.csv"
    command("export", rows, "--output", str(output))
    with output.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row.keys() for row in table] == [line.keys() for line in lines]
    with pytest.raises(ValueError, match="found an existing one"):
        command("export", rows, "--output", str(output))


@pytest.mark.usefixtures("traded_state")
def test_an_exported_number_is_the_number(command: Command) -> None:
    table = list(csv.DictReader(command("export", "fills").splitlines()))
    lines = [data(line) for line in command("export", "fills", "--format", "jsonl").splitlines()]
    assert [float(row["price"]) for row in table] == [line["price"] for line in lines]
    assert len(lines) > 8


@pytest.mark.usefixtures("traded_state")
def test_a_run_nobody_knows_is_named(command: Command) -> None:
    with pytest.raises(ValueError, match=r"--run other: expected a run of this ledger \(run-1\)"):
        command("show", "--run", "other")


def test_a_server_is_used_where_it_is_named(
    command: Command, server: Any, server_traded: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMU0_DATABASE_URL", server_traded.url.render_as_string(hide_password=False))
    assert "run run-1 adds up, to the last bit" in command("check")
    made = data(command("backup", "--json"))["backup"]
    with server.database() as empty:
        monkeypatch.setenv("SMU0_DATABASE_URL", empty)
        assert data(command("restore", made, "--json"))["kept"] is None
        assert "run run-1 adds up, to the last bit" in command("check")


def test_a_password_is_never_printed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMU0_DATABASE_URL", "postgresql+psycopg://alice:hush@127.0.0.1:1/ledger")
    with pytest.raises(LedgerError) as caught:
        command("show")
    assert "hush" not in str(caught.value)


def test_every_command_shows_an_example(command: Command) -> None:
    for name in ("show", "check", "backup", "restore", "migrate", "archive", "export"):
        assert f"Example: python -m service ledger {name}" in " ".join(command(name, "--help").split())
