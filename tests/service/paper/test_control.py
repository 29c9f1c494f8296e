"""What people may ask of a paper trader, and what it says of itself."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from agent.policy import Decision
from data.bars import Bars
from market_env.guards import GuardConfig
from service.ledger.errors import LedgerInconsistent, LedgerUnreachable
from service.ledger.integrity import check, require_sound
from service.ledger.store import Ledger, Writer
from service.model import ServedModel
from service.paper.heartbeat import PROCESS, SILENT_SECONDS, HeartbeatState, judge_health

HOUR = 3_600_000
ROW = 300
OPEN = GuardConfig(max_drawdown=None, max_daily_loss=None)


@pytest.fixture
def made(
    make_bench: Callable[..., Any], replay_of: Callable[..., Any], hourly: ServedModel, bars_of: Callable[..., Bars]
) -> Callable[..., tuple[Any, Callable[..., Any]]]:
    """A bench, and a way to live through the next bars of a replay in a process of its own."""
    bars = bars_of(ROW + 200)

    def make(**options: Any) -> tuple[Any, Callable[..., Any]]:
        bench = make_bench(hourly, **({"guards": OPEN} | options))

        def live(count: int) -> Any:
            first = int(bars.timestamp[ROW])
            trader = bench.trader(replay_of(bench, bars, start=first), trade_from=first)
            bench.slept += 1.0  # time for commands
            before = trader.describe().bars
            while trader.describe().bars < before + count:
                bench.pass_time(trader.turn())
            return trader

        return bench, live

    return make


Made = Callable[..., tuple[Any, Callable[..., Any]]]


def test_halt_holds_and_survives_a_restart_until_resume(made: Made) -> None:
    bench, live = made()
    live(10)
    halt = bench.order("halt", reason="lunch")
    live(10)
    assert bench.command(halt) == ("done", "halted")
    assert bench.mode() == "HALTED"
    live(10)  # another process
    rows = bench.decisions()
    assert [row.status for row in rows[:10]] == ["decided"] * 10
    assert {row.status for row in rows[10:]} == {"blocked"}
    assert all("halted by test: lunch" in row.reason and row.action is not None for row in rows[10:])
    assert len(bench.rows()["orders"]) == 10
    resume = bench.order("resume")
    live(5)
    assert bench.command(resume) == ("done", "ACTIVE")
    assert [row.status for row in bench.decisions()[30:]] == ["decided"] * 5
    require_sound(bench.ledger)


def test_halting_twice_is_halting_once(made: Made) -> None:
    bench, live = made()
    live(3)
    first, second = bench.order("halt", reason="one"), bench.order("halt", reason="two")
    live(3)
    assert bench.command(first) == ("done", "halted")
    assert bench.command(second) == ("done", "was halted before")
    assert "one" in bench.decisions()[-1].reason
    assert len(bench.events("guards")) == 1
    live(1)
    assert len(bench.events("command")) == 2, "a command that is done is not done again"


def test_flatten_closes_at_the_next_open_and_halts(made: Made) -> None:
    bench, live = made()
    for _ in range(100):
        live(1)
        if bench.rows()["positions"][0]["units"] != 0.0:
            break
    number = bench.order("flatten")
    live(8)
    status, result = bench.command(number)
    assert (status, result) == ("done", "halted; the position closes at the next bar")
    assert bench.rows()["positions"][0]["units"] == 0.0
    assert bench.mode() == "HALTED"
    assert bench.rows()["orders"][-1]["target_exposure"] == 0.0
    assert not json.loads(bench.read(lambda read: read.risk_state(bench.run_id)).state_json)["flatten"]
    require_sound(bench.ledger)


def test_the_kill_switch_file_halts_and_keeps_resume_out(made: Made) -> None:
    bench, live = made()
    live(3)
    bench.kill_switch.touch()
    live(2)
    assert bench.mode() == "HALTED"
    refused = bench.order("resume")
    live(2)
    status, result = bench.command(refused)
    assert status == "refused"
    assert "remove it first" in result
    bench.kill_switch.unlink()
    live(2)
    assert bench.mode() == "HALTED", "a file that is gone resumes nothing"
    allowed = bench.order("resume")
    live(1)
    assert bench.command(allowed) == ("done", "ACTIVE")


def test_a_command_without_its_confirmation_is_refused(made: Made) -> None:
    bench, live = made()
    live(2)
    number = bench.order("reset", confirm="halt")
    live(2)
    assert bench.command(number) == ("refused", 'expected confirm to be "reset"')
    assert len(bench.read(lambda read: read.runs())) == 1


def test_reset_keeps_the_old_run_and_begins_anew(made: Made) -> None:
    bench, live = made()
    live(12)
    old = bench.run_id
    number = bench.order("reset")
    live(5)
    new = bench.run_id
    assert new != old
    assert bench.command(number)[0] == "done"
    assert new in bench.command(number)[1]
    account = bench.read(lambda read: read.account(new))
    decisions = bench.decisions()
    assert len(decisions) == 5
    assert bench.rows()["equity"][0]["equity"] == bench.setup.initial_equity
    assert account.equity == bench.rows()["equity"][-1]["equity"]
    earlier = bench.read(lambda read: read.decisions(old))
    assert decisions[0].bar_ts == earlier[-1].bar_ts + HOUR, "no bar is lost between the runs"
    [backup] = (bench.root / "backups").iterdir()
    with Ledger.open(f"sqlite:///{backup}", writable=False) as kept:
        [report] = check(kept)
        assert (report.run_id, report.bars, report.ok) == (old, 12, True)
    require_sound(bench.ledger)
    live(3)
    assert len(bench.decisions()) == 8


# --- guards ----------------------------------------------------------------------------------------------------------


def test_a_drawdown_closes_halts_and_stays_halted_across_processes(made: Made) -> None:
    bench, live = made(guards=GuardConfig(max_drawdown=0.004, max_daily_loss=None))
    live(150)
    assert bench.mode() == "HALTED"
    assert bench.rows()["positions"][0]["units"] == 0.0
    [event] = bench.events("guards")
    assert event.severity == "error"
    assert "drawdown" in event.message
    live(10)
    assert bench.mode() == "HALTED"
    assert len(bench.events("guards")) == 1
    require_sound(bench.ledger)


def test_output_that_is_not_finite_halts(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, live = made()
    live(5)
    policy = bench.setup.model.policy
    original = policy.act

    def broken(*arguments: Any, **options: Any) -> Decision:
        decision = original(*arguments, **options)
        decision.q_values[:] = np.inf
        return decision

    with monkeypatch.context() as patched:
        patched.setattr(policy, "act", broken)
        live(2)
    assert bench.mode() == "HALTED"
    first = bench.decisions()[5]
    assert (first.status, first.action, first.value, first.outlook_json) == ("blocked", None, None, None)
    assert "not finite" in first.reason
    live(2)
    assert bench.mode() == "HALTED"
    require_sound(bench.ledger)


# --- the ledger in the way -------------------------------------------------------------------------------------------


def test_a_locked_ledger_delays_and_loses_nothing(made: Made, replay_of: Callable[..., Any]) -> None:
    """Another process writes for longer than the trader waits; what was computed meanwhile is computed again."""
    bench, live = made()
    trader = live(5)
    with Ledger.open(bench.url, writable=True) as other, other.transaction():
        for _ in range(3):
            bench.pass_time(trader.turn())
            bench.slept += 2.0
        assert trader.describe().ledger_error is not None
        assert "ledger" in trader.describe().degraded
    bench.slept += 2.0
    while trader.describe().bars < 15:
        bench.pass_time(trader.turn())
    assert trader.describe().ledger_error is None
    rows = bench.decisions()
    assert [row.bar_ts for row in rows] == list(range(rows[0].bar_ts, rows[0].bar_ts + 15 * HOUR, HOUR))
    [report] = require_sound(bench.ledger)
    assert report.exact


def test_a_commit_whose_answer_was_lost_is_not_done_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection to a server may break after the commit: then only the ledger knows that the bar is done."""
    bench, live = made()
    trader = live(5)
    original, lost = Ledger.transaction, []

    @contextmanager
    def committed_but_mute(self: Ledger) -> Iterator[Writer]:
        with original(self) as write:
            before = write.last_decision_id()
            yield write
            decided = write.last_decision_id() > before
        if decided and not lost:
            lost.append(True)
            raise LedgerUnreachable("the server went away during the commit")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "transaction", committed_but_mute)
        bench.slept += 2.0
        bench.pass_time(trader.turn())
        assert lost
        assert "went away" in trader.describe().degraded
        for _ in range(20):
            bench.pass_time(max(trader.turn(), 0.1))
    assert trader.describe().ledger_error is None
    rows = bench.decisions()
    assert len(rows) > 15
    assert [row.bar_ts for row in rows] == list(range(rows[0].bar_ts, rows[0].bar_ts + len(rows) * HOUR, HOUR))
    [report] = require_sound(bench.ledger)
    assert report.exact


def test_a_ledger_that_does_not_add_up_is_refused(made: Made) -> None:
    bench, live = made()
    live(60)
    with bench.ledger.engine.begin() as connection:
        connection.execute(text("UPDATE fill SET quantity = quantity * 1.01 WHERE id = 2"))
    with pytest.raises(LedgerInconsistent, match="does not add up"):
        live(1)


# --- heartbeats ------------------------------------------------------------------------------------------------------


def test_a_heartbeat_says_everything_and_reads_back(made: Made) -> None:
    bench, live = made()
    trader = live(4)
    bench.slept += 60.0
    trader.turn()
    beat = bench.read(lambda read: read.heartbeat(PROCESS))
    state = HeartbeatState.from_json(beat.state_json)
    assert (state.run_id, state.instrument, state.feed, state.errors) == (bench.run_id, "BTCUSDT", "ok", 0)
    assert state.last_bar_ts is not None
    assert state.next_bar_due_ms == state.last_bar_ts + 2 * HOUR
    with pytest.raises(ValueError, match=r"missing \['pid'\], unknown \['x'\]"):
        HeartbeatState.from_json(beat.state_json.replace('"pid"', '"x"'))


@pytest.mark.parametrize(
    ("degraded", "silent_seconds", "healthy", "says"),
    [
        (None, 5, True, "well"),
        ("exchange unreachable: no route", 5, True, "degraded"),
        (None, SILENT_SECONDS + 1, False, "silent"),
        ("exchange unreachable: no route", SILENT_SECONDS + 1, False, "silent"),
    ],
)
def test_health_is_a_turning_loop_with_fresh_data_or_an_open_word(
    made: Made, degraded: str | None, silent_seconds: float, healthy: bool, says: str
) -> None:
    _, live = made()
    state = replace(live(1).describe(), degraded=degraded)
    found = judge_health(state, beat_local_ms=1_000, now_local_ms=1_000 + round(silent_seconds * 1_000))
    assert found.healthy is healthy
    assert says in found.text


def test_a_process_that_never_reported_is_not_healthy() -> None:
    assert not judge_health(None, beat_local_ms=None, now_local_ms=5).healthy
