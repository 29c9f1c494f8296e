"""The ledger tells one story: a sound one passes to the last bit, and every planted fault is found and named."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import text

from service.ledger.connection import for_writing
from service.ledger.errors import LedgerInconsistent
from service.ledger.integrity import RunReport, check, require_sound
from service.ledger.schema import BarRow, GapRow
from service.ledger.store import Ledger

HOUR = 3_600_000
BARS = 12

Corrupt = Callable[..., None]


@pytest.fixture
def corrupt(sqlite_traded: Ledger) -> Corrupt:
    """Changes rows behind the ledger's back. What is compared is the same on either database."""

    def execute(statement: str, **values: Any) -> None:
        with sqlite_traded.engine.connect() as connection, for_writing(connection).begin():
            assert connection.execute(text(statement), values).rowcount == 1

    return execute


def only(reports: list[RunReport]) -> RunReport:
    [report] = reports
    return report


def found(ledger: Ledger) -> str:
    """Every finding of the only run."""
    return "\n".join(str(finding) for finding in only(check(ledger)).findings)


def test_what_was_traded_replays_to_the_last_bit(traded: Ledger) -> None:
    report = only(check(traded))
    assert report.findings == ()
    assert report.exact
    assert (report.bars, report.decisions, report.orders) == (BARS, BARS, BARS)
    assert 8 <= report.fills <= BARS - 1
    assert require_sound(traded) == [report]


def test_a_ledger_without_a_run_is_sound(ledger: Ledger, small: ModuleType) -> None:
    assert check(ledger) == []
    small.begin(ledger)
    assert only(check(ledger)).ok


def test_warm_up_bars_are_none_of_the_accounts(traded: Ledger, small: ModuleType) -> None:
    with traded.transaction() as write:
        write.insert_bars([
            BarRow(
                run_id="run-1", instrument=small.SYMBOL, timeframe="1h", ts=small.FIRST - HOUR, open=1.0, high=1.0,
                low=1.0, close=1.0, volume=0.0, received_ms=0, status="warmup",
            )
        ])  # fmt: skip
    assert only(check(traded)).exact


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE fill SET quantity = quantity * 2 WHERE bar_ts = :ts", "units: what came before gives"),
        ("UPDATE fill SET fee = fee + 1 WHERE bar_ts = :ts", "cash: what came before gives"),
        ("UPDATE fill SET slippage_cost = 0 WHERE bar_ts = :ts", "fill, slippage_cost: the replay gives"),
        ("DELETE FROM fill WHERE bar_ts = :ts", "found no fill"),
        ("UPDATE equity SET cash = cash + 1 WHERE ts = :ts", "cash: what came before gives"),
        ("UPDATE equity SET equity = equity + 1e-6 WHERE ts = :ts", "equity: what came before gives"),
        ("UPDATE equity SET close = close + 1 WHERE ts = :ts", "close: the replay gives"),
        ("UPDATE equity SET record_json = '{}' WHERE ts = :ts", "record_json is not the record of a bar"),
        ("UPDATE equity SET record_json = 'x' WHERE ts = :ts", "record_json is not the record of a bar"),
        ("DELETE FROM equity WHERE ts = :ts", "expected a row in equity, found none, only in bar and decision"),
        ("DELETE FROM bar WHERE ts = :ts", "expected a row in bar, found none"),
        ("UPDATE bar SET high = high + 500, close = high + 500 WHERE ts = :ts", "close: the replay gives"),
        ("UPDATE bar SET high = 1 WHERE ts = :ts", "cannot be replayed from here"),
        ("UPDATE bar SET status = 'skipped_gap' WHERE ts = :ts", 'expected the bar to be "used"'),
        ("UPDATE orders SET quantity = quantity + 1 WHERE filled_in_ts = :ts", "quantity: the replay gives"),
        ("UPDATE orders SET target_exposure = 0.123 WHERE filled_in_ts = :ts", "quantity: the replay gives"),
        ("UPDATE orders SET status = 'cancelled' WHERE filled_in_ts = :ts", 'filled or partial, found "cancelled"'),
        ("UPDATE orders SET filled_in_ts = 5 WHERE filled_in_ts = :ts", "settled in this bar, found 5"),
    ],
)  # fmt: skip
def test_a_changed_row_is_found(
    sqlite_traded: Ledger, corrupt: Corrupt, small: ModuleType, statement: str, complaint: str
) -> None:
    ts = small.FIRST + 5 * HOUR
    corrupt(statement, ts=ts)
    assert complaint in found(sqlite_traded)
    with pytest.raises(LedgerInconsistent, match=r"run-1 does not add up: .* ledger restore FILE"):
        require_sound(sqlite_traded)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE account SET cash = cash + 0.01", "account, cash"),
        ("UPDATE account SET equity = equity + 0.01", "account, equity"),
        ("UPDATE account SET peak_equity = peak_equity + 0.01", "account, peak_equity"),
        ("UPDATE account SET session_state_json = '[]'", "session_state_json is not the state of a session"),
        ("UPDATE account SET updated_ts = 5", "account: expected the state of this last bar, found that of 5"),
        ("DELETE FROM account", "expected a row in account"),
        ("UPDATE position SET units = units + 1", "position, units"),
        ("DELETE FROM position", "expected a row in position"),
        ("UPDATE cursor SET last_bar_ts = last_bar_ts + 3600000", "expected the cursor at this last bar"),
        ("DELETE FROM cursor", "expected the cursor at this last bar"),
        ("UPDATE run SET first_bar_ts = 5", "the run says that its first bar is 5"),
        ("UPDATE run SET seed = seed + 1", "the replay gives"),
        ("UPDATE run SET market_json = '{\"nonsense\": 1}'", "cannot be replayed by this version"),
    ],
)  # fmt: skip
def test_a_changed_state_is_found(sqlite_traded: Ledger, corrupt: Corrupt, statement: str, complaint: str) -> None:
    corrupt(statement)
    assert complaint in found(sqlite_traded)


def test_a_session_that_remembers_something_else_is_found(sqlite_traded: Ledger, corrupt: Corrupt) -> None:
    with sqlite_traded.reading() as read:
        account = read.account("run-1")
    assert account is not None
    state = json.loads(account.session_state_json)
    state["account"]["order_quantity"] += 0.5
    corrupt("UPDATE account SET session_state_json = :state", state=json.dumps(state))
    assert "session, order_quantity: the replay gives" in found(sqlite_traded)


def test_another_machines_last_bit_is_no_fault_but_not_exact(sqlite_traded: Ledger, corrupt: Corrupt) -> None:
    with sqlite_traded.reading() as read:
        mark = read.equity("run-1")[5]
    record = json.loads(mark.record_json)
    record["log_return"] *= 1.0 + 4e-16
    corrupt("UPDATE equity SET record_json = :record WHERE ts = :ts", record=json.dumps(record), ts=mark.ts)
    report = only(check(sqlite_traded))
    assert report.ok
    assert not report.exact


def test_a_missing_bar_is_found_unless_a_gap_was_recorded(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger)
    for number in (0, 1, 4, 5):
        small.trade(ledger, number)
    assert "no bar and no recorded gap to 2024-01-01" in found(ledger)

    def record_gap(first: int, last: int) -> None:
        with ledger.transaction() as write:
            write.insert_gap(
                GapRow(
                    run_id="run-1", first_ts=small.FIRST + first * HOUR, last_ts=small.FIRST + last * HOUR,
                    instrument=small.SYMBOL, timeframe="1h", reason="missing", recorded_ms=0,
                )
            )  # fmt: skip

    record_gap(2, 2)
    assert "no bar and no recorded gap" in found(ledger)
    record_gap(3, 3)
    report = only(check(ledger))
    assert report.findings == ()
    assert report.exact
    assert report.missing == 2


def test_a_bar_without_its_decision_is_found(sqlite_traded: Ledger, corrupt: Corrupt, small: ModuleType) -> None:
    last = small.FIRST + (BARS - 1) * HOUR
    with sqlite_traded.engine.connect() as connection, for_writing(connection).begin():
        connection.execute(text("DELETE FROM orders WHERE status = 'pending'"))
    corrupt("DELETE FROM decision WHERE bar_ts = :ts", ts=last)
    assert "expected a row in decision, found none, only in equity and bar" in found(sqlite_traded)


def test_archived_runs_are_looked_at_when_asked(sqlite_traded: Ledger, corrupt: Corrupt, small: ModuleType) -> None:
    corrupt("UPDATE account SET cash = cash + 1")
    with sqlite_traded.transaction() as write:
        write.archive_run("run-1", now_ms=0)
    small.begin(sqlite_traded, "run-2")
    assert [report.run_id for report in check(sqlite_traded)] == ["run-2"]
    assert {report.run_id: report.ok for report in check(sqlite_traded, all_runs=True)} == {
        "run-1": False,
        "run-2": True,
    }


def test_a_long_run_is_read_in_pages(traded: Ledger, small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.ledger.store.MAX_LIMIT", 5)
    report = only(check(traded))
    assert (report.bars, report.exact) == (BARS, True)


def test_a_damaged_page_is_noticed(sqlite_traded: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "state" / "ledger.sqlite3"
    with sqlite_traded.engine.connect() as connection:
        page = connection.exec_driver_sql("SELECT rootpage FROM sqlite_master WHERE name = 'equity'").scalar_one()
    sqlite_traded.close()
    content = bytearray(file.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    file.write_bytes(content)
    with pytest.raises(LedgerInconsistent, match="ledger restore"):
        check(sqlite_traded)
