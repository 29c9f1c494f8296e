"""Rows go in and come out as they were; what is written twice is refused; what is read is bounded and ordered."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from service.ledger.errors import (
    AlreadyRecorded,
    KeyReused,
    LedgerBusy,
    LedgerError,
    LedgerInconsistent,
    LedgerUnreachable,
    TooManyCommands,
)
from service.ledger.schema import BarRow, DecisionRow, HeartbeatRow, IdempotencyRow
from service.ledger.store import MAX_LIMIT, Ledger, Page, Retention

HOUR = 3_600_000
OpenLedger = Callable[..., Ledger]


def bar(ts: int, **changes: object) -> BarRow:
    values = {"open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 3.0, "received_ms": 0, "status": "warmup"}
    key = {"run_id": "run-1", "instrument": "BTC/USDT", "timeframe": "1h", "ts": ts}
    return BarRow(**{**key, **values, **changes})


def decision(ts: int) -> DecisionRow:
    return DecisionRow(
        run_id="run-1", instrument="BTC/USDT", timeframe="1h", bar_ts=ts, decided_ms=0, status="decided", reason="",
        mode="ACTIVE",
    )  # fmt: skip


# --- what goes in comes out ------------------------------------------------------------------------------------------


def test_a_float_comes_back_to_the_last_bit(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger)
    strange = [0.1 + 0.2, 1e-308, 5e-324, 1.7976931348623157e308, 2.0**53 + 2.0, math.pi, -1 / 3, 3.0]
    with ledger.transaction() as write:
        write.insert_bars([bar(number, open=value) for number, value in enumerate(strange)])
    with ledger.reading() as read:
        assert [row.open for row in read.bars("run-1")] == strange


def test_a_row_comes_back_as_it_was_written(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger)
    row = DecisionRow(
        run_id="run-1", instrument="BTC/USDT", timeframe="1h", bar_ts=HOUR, decided_ms=2 * HOUR, status="blocked",
        reason="Grüße, \"quotes\" and\nlines", mode="REDUCING", action=3, target_position=-0.5, policy_json="[0.25]",
        prior_json="[0.5]", value=-0.125, q_values_json="[1e-3]", visits_json="[7]", outlook_json="[]",
        simulations=50, depth=9, model="m", latency_ms=1.25,
    )  # fmt: skip
    with ledger.transaction() as write:
        decision_id = write.insert_decision(row)
    with ledger.reading() as read:
        found = read.decision("run-1", "BTC/USDT", "1h", HOUR)
    assert found is not None
    assert found.id == decision_id > 0
    assert {name: getattr(found, name) for name in row.__slots__ if name != "id"} == {
        name: getattr(row, name) for name in row.__slots__ if name != "id"
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_never_gets_in(ledger: Ledger, small: ModuleType, value: float) -> None:
    small.begin(ledger)
    with pytest.raises(ValueError, match=r"bar\.close must be a finite number"), ledger.transaction() as write:
        write.insert_bars([bar(0), bar(1, close=value)])
    with ledger.reading() as read:
        assert read.bars("run-1") == []


def test_a_status_nobody_knows_is_refused(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger)
    with pytest.raises(LedgerError), ledger.transaction() as write:
        write.insert_bars([bar(0, status="perhaps")])


def test_a_row_of_no_run_is_refused(open_ledger: OpenLedger) -> None:
    open_ledger()  # the connection that makes the tables is another one
    ledger = open_ledger()
    with pytest.raises(LedgerError), ledger.transaction() as write:
        write.insert_bars([bar(0)])


# --- once only -------------------------------------------------------------------------------------------------------


def test_a_bar_has_one_decision(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger)
    with ledger.transaction() as write:
        write.insert_decision(decision(HOUR))

    def again() -> None:
        with ledger.transaction() as write:
            write.append_event("lost", "rolled back with the rest", ts_ms=0)
            write.insert_decision(decision(HOUR))

    with pytest.raises(AlreadyRecorded, match=r"decision: run-1 .* bar 3600000 has its decision") as caught:
        again()
    assert caught.value.table == "decision"
    with ledger.reading() as read:
        assert len(read.decisions("run-1")) == 1
        assert read.events_after(0) == []


def test_a_bar_traded_twice_changes_nothing(traded: Ledger, small: ModuleType) -> None:
    run, cursor = "run-1", small.FIRST + 11 * HOUR
    with traded.reading() as read:
        before = read.standing(run)
    with pytest.raises(AlreadyRecorded, match="done up to bar"), traded.transaction() as write:
        write.advance_cursor(run, small.SYMBOL, "1h", expected=cursor - HOUR, to=cursor, now_ms=0)
    with traded.reading() as read:
        assert read.standing(run) == before


def test_a_cursor_that_somebody_moved_stops_the_trader(traded: Ledger, small: ModuleType) -> None:
    behind, ahead = small.FIRST + 5 * HOUR, small.FIRST + 20 * HOUR
    with pytest.raises(LedgerInconsistent, match="Somebody else moved it"), traded.transaction() as write:
        write.advance_cursor("run-1", small.SYMBOL, "1h", expected=behind, to=ahead, now_ms=0)


def test_a_cursor_never_goes_back(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger)
    with pytest.raises(ValueError, match="forward only"), ledger.transaction() as write:
        write.advance_cursor("run-1", small.SYMBOL, "1h", expected=HOUR, to=HOUR, now_ms=0)


def test_one_run_is_active_until_it_is_archived(ledger: Ledger, small: ModuleType) -> None:
    small.begin(ledger, "run-1")
    with pytest.raises(AlreadyRecorded, match="run-1 is active"):
        small.begin(ledger, "run-2")
    with ledger.transaction() as write:
        write.archive_run("run-1", now_ms=1)
        write.start_run(small.new_run("run-2"))
    with ledger.reading() as read:
        active = read.active_run()
        archived = read.run("run-1")
        assert active is not None
        assert active.id == "run-2"
        assert archived is not None
        assert archived.archived_ms == 1
    with pytest.raises(AlreadyRecorded, match="archived already"), ledger.transaction() as write:
        write.archive_run("run-1", now_ms=2)


def test_an_order_is_settled_once(traded: Ledger) -> None:
    with traded.reading() as read:
        empty, settled = read.orders("run-1", Page(limit=2))
        [pending] = read.pending_orders("run-1")
    assert (empty.status, settled.status, pending.status) == ("empty", "filled", "pending")
    with pytest.raises(AlreadyRecorded, match="is not pending"), traded.transaction() as write:
        write.settle_order(settled.id, "cancelled", filled_in_ts=0)


# --- all or nothing, and one at a time -------------------------------------------------------------------------------


def test_an_error_in_a_transaction_leaves_nothing(ledger: Ledger, small: ModuleType) -> None:

    def fail() -> None:
        with ledger.transaction() as write:
            write.start_run(small.new_run())
            write.append_event("kind", "message", ts_ms=0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with ledger.reading() as read:
        assert read.active_run() is None
        assert read.last_event_id() == 0


def test_a_reader_sees_one_state_while_another_process_writes(
    ledger: Ledger, open_ledger: OpenLedger, small: ModuleType
) -> None:
    small.begin(ledger)
    small.trade(ledger, 0)
    api = open_ledger(writable=False)
    with api.reading() as read:
        before = read.standing("run-1")
        small.trade(ledger, 1)  # does not wait for the reader
        assert read.standing("run-1") == before
        assert len(read.equity("run-1")) == 1
    with api.reading() as read:
        assert len(read.equity("run-1")) == 2


def test_a_reader_waits_for_no_writer(ledger: Ledger, open_ledger: OpenLedger, small: ModuleType) -> None:
    small.begin(ledger)
    api = open_ledger(writable=False, busy_seconds=0.1)
    with ledger.transaction() as write:
        write.append_event("kind", "not yet", ts_ms=0)
        with api.reading() as read:
            assert read.last_event_id() == 0


def test_a_second_writer_waits_and_then_gives_up(ledger: Ledger, open_ledger: OpenLedger) -> None:
    other = open_ledger(busy_seconds=0.2)
    with ledger.transaction() as write:
        write.append_event("first", "", ts_ms=0)
        with pytest.raises(LedgerBusy, match="did not finish in time"), other.transaction() as second:
            second.append_event("second", "", ts_ms=0)
    with other.transaction() as write:
        write.append_event("third", "", ts_ms=0)
    with ledger.reading() as read:
        assert [event.kind for event in read.events_after(0)] == ["first", "third"]


def test_a_ledger_opened_for_reading_cannot_write(ledger: Ledger, open_ledger: OpenLedger) -> None:
    api = open_ledger(writable=False)
    with pytest.raises(LedgerError, match="writable=True"), api.transaction():
        pass
    with pytest.raises(LedgerError), api.reading() as read:  # the database itself refuses
        read._connection.exec_driver_sql("DELETE FROM event")


def test_where_nothing_is_a_reader_says_so_and_leaves_nothing(open_ledger: OpenLedger, tmp_path: Path) -> None:
    with pytest.raises(LedgerUnreachable):
        open_ledger(writable=False)
    assert list(tmp_path.iterdir()) == []


# --- lists -----------------------------------------------------------------------------------------------------------


def test_pages_go_from_either_end(traded: Ledger, small: ModuleType) -> None:
    def numbers(page: Page) -> list[int]:
        with traded.reading() as read:
            return [(row.ts - small.FIRST) // HOUR for row in read.equity("run-1", page)]

    at = small.FIRST + 4 * HOUR
    assert numbers(Page(limit=3)) == [0, 1, 2]
    assert numbers(Page(order="newest", limit=3)) == [11, 10, 9]
    assert numbers(Page(since=at, limit=3)) == [4, 5, 6]
    assert numbers(Page(until=at, order="newest", limit=3)) == [4, 3, 2]
    assert numbers(Page(since=at, until=at)) == [4]


def test_every_list_of_a_run_has_its_rows(traded: Ledger) -> None:
    with traded.reading() as read:
        assert len(read.bars("run-1")) == len(read.decisions("run-1")) == len(read.equity("run-1")) == 12
        assert len(read.orders("run-1")) == 12
        assert 8 <= len(read.fills("run-1")) == read.count_fills("run-1") <= 11
        assert read.count_decisions("run-1") == {"decided": 12}
        assert read.decisions("run-2") == read.fills("run-2") == []
        newest = read.latest_decision("run-1", "BTC/USDT")
        assert newest is not None
        assert newest.id == read.last_decision_id()
        assert [row.id for row in read.decisions_after(newest.id - 2)] == [newest.id - 1, newest.id]


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1])
def test_no_list_is_longer_than_allowed(ledger: Ledger, limit: int) -> None:
    with pytest.raises(ValueError, match="limit must lie in 1 to 5000"):
        Page(limit=limit)
    with ledger.reading() as read, pytest.raises(ValueError, match="limit must lie in 1 to 5000"):
        read.events_after(0, limit=limit)


def test_lists_are_read_by_index(sqlite_traded: Ledger) -> None:
    # On SQLite only: a server plans by what its tables hold, and these are too small for an index.
    queries = {
        "decision": "SELECT reason FROM decision WHERE run_id = 'a' AND bar_ts >= 5 ORDER BY bar_ts DESC LIMIT 9",
        "fill": "SELECT price FROM fill WHERE run_id = 'a' AND bar_ts >= 5 ORDER BY bar_ts LIMIT 9",
        "orders": "SELECT quantity FROM orders WHERE run_id = 'a' ORDER BY submitted_ts DESC LIMIT 9",
        "equity": "SELECT cash FROM equity WHERE run_id = 'a' ORDER BY ts DESC LIMIT 9",
        "bar": "SELECT close FROM bar WHERE run_id = 'a' ORDER BY ts DESC LIMIT 9",
        "counts": "SELECT status, count(*) FROM decision WHERE run_id = 'a' GROUP BY status",
        "command": "SELECT kind FROM command WHERE status = 'pending' ORDER BY id LIMIT 9",
    }
    with sqlite_traded.reading() as read:
        for name, query in queries.items():
            plan = " ".join(row[3] for row in read._connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
            assert "USING" in plan, (name, plan)
            assert "SCAN" not in plan, (name, plan)
            assert "TEMP B-TREE" not in plan, (name, plan)


# --- events, commands, heartbeat, idempotency ------------------------------------------------------------------------


def test_events_are_kept_up_to_a_number_and_ids_are_never_given_twice(ledger: Ledger, open_ledger: OpenLedger) -> None:
    small = open_ledger(retention=Retention(events=3))
    for number in range(5):
        with small.transaction() as write:
            last = write.append_event("kind", f"event {number}", ts_ms=number)
    with ledger.reading() as read:
        assert [event.message for event in read.events_after(0)] == ["event 2", "event 3", "event 4"]
        assert [event.message for event in read.events_before(limit=2)] == ["event 4", "event 3"]
        assert [event.message for event in read.events_before(last)] == ["event 3", "event 2"]
        assert read.events_after(last) == []
    with open_ledger(retention=Retention(events=0)).transaction() as write:
        assert write.append_event("kind", "gone at once", ts_ms=9) == last + 1
    with ledger.transaction() as write:
        assert write.append_event("kind", "after all were gone", ts_ms=10) == last + 2


def test_a_long_message_is_cut(ledger: Ledger) -> None:
    with ledger.transaction() as write:
        write.append_event("kind", "x" * 100_000, ts_ms=0)
    with ledger.reading() as read:
        [event] = read.events_after(0)
    assert len(event.message) == 4000
    assert event.message.endswith("…")


def test_commands_are_taken_in_order_and_answered_once(ledger: Ledger) -> None:
    with ledger.transaction() as write:
        ids = [
            write.insert_command(kind, reason="why", confirm="yes", requested_by="key", now_ms=5)
            for kind in ("halt", "flatten", "resume")
        ]
    with ledger.transaction() as write:
        assert [command.id for command in write.pending_commands()] == ids
        write.finish_command(ids[0], "done", "halted", now_ms=6)
    with ledger.reading() as read:
        assert [command.kind for command in read.pending_commands()] == ["flatten", "resume"]
        done = read.command(ids[0])
        assert done is not None
        assert (done.status, done.result, done.handled_ms) == ("done", "halted", 6)
        assert [command.id for command in read.commands()] == ids[::-1]
    with pytest.raises(AlreadyRecorded), ledger.transaction() as write:
        write.finish_command(ids[0], "refused", "again", now_ms=7)


def test_commands_nobody_takes_do_not_pile_up(open_ledger: OpenLedger) -> None:
    ledger = open_ledger(retention=Retention(pending_commands=2))

    def ask() -> int:
        with ledger.transaction() as write:
            asked: int = write.insert_command("halt", reason="", confirm="yes", requested_by="key", now_ms=0)
            return asked

    first = ask()
    ask()
    with pytest.raises(TooManyCommands, match="2 commands wait"):
        ask()
    with ledger.transaction() as write:
        write.finish_command(first, "done", "", now_ms=1)
    ask()


def test_a_heartbeat_replaces_the_last(ledger: Ledger) -> None:
    for ts in (1, 2):
        with ledger.transaction() as write:
            write.beat(HeartbeatRow(process="paper", ts_ms=ts, state_json="{}"))
    with ledger.reading() as read:
        assert read.heartbeat("paper") == HeartbeatRow(process="paper", ts_ms=2, state_json="{}")
        assert read.heartbeat("api") is None


def answer(key: str = "k", *, body: str = "b", created_ms: int = 0, response: str = "first") -> IdempotencyRow:
    return IdempotencyRow(
        scope="act:alice", key=key, body_sha256=body, status=200, response=response, created_ms=created_ms
    )


def test_the_first_answer_to_a_key_counts(ledger: Ledger) -> None:
    with ledger.transaction() as write:
        assert write.remember(answer()) is None
    with ledger.transaction() as write:
        kept = write.remember(answer(response="second"))
    assert kept is not None
    assert kept.response == "first"
    with ledger.reading() as read:
        assert read.idempotency("act:alice", "k", body_sha256="b", created_since=0) == kept
        assert read.idempotency("act:bob", "k", body_sha256="other", created_since=0) is None


def test_a_key_with_another_body_is_refused(ledger: Ledger) -> None:
    with ledger.transaction() as write:
        write.remember(answer())
    with pytest.raises(KeyReused, match="another body"), ledger.transaction() as write:
        write.remember(answer(body="other"))
    with pytest.raises(KeyReused), ledger.reading() as read:
        read.idempotency("act:alice", "k", body_sha256="other", created_since=0)


def test_answers_are_forgotten_by_age_and_number(open_ledger: OpenLedger) -> None:
    ledger = open_ledger(retention=Retention(idempotency=2, idempotency_ms=1000))
    with ledger.transaction() as write:
        write.remember(answer(created_ms=0))
        assert write.remember(answer(created_ms=1001, body="other")) is None  # the old one has expired
        write.remember(answer("k2", created_ms=1002))
        write.remember(answer("k3", created_ms=1003))
    with ledger.reading() as read:
        kept = [read.idempotency("act:alice", key, body_sha256="b", created_since=0) for key in ("k", "k2", "k3")]
    assert [row is not None for row in kept] == [False, True, True]
