"""What the ledger knows, as the API tells it; and what may be asked of the trader."""

import asyncio
import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import paper_schemas
from service.app import create_app
from service.auth import Scope
from service.ledger.store import Ledger
from service.openapi import openapi_document
from service.runtime import Service

Json = dict[str, Any]
MakeClient = Callable[..., httpx.Client]
MakeService = Callable[..., Service]

LISTS = ("equity", "decisions", "fills", "bars", "events")
MODELS = {
    "equity": paper_schemas.EquityRows,
    "decisions": paper_schemas.Decisions,
    "fills": paper_schemas.Fills,
    "bars": paper_schemas.BarRows,
    "events": paper_schemas.Events,
    "positions": paper_schemas.Positions,
    "status": paper_schemas.PaperStatus,
}
COMMANDS = ("halt", "resume", "flatten", "reset")
DAY_MS = 86_400_000


def items(client: httpx.Client, view: str, **parameters: Any) -> list[Json]:
    response = client.get(f"/v1/paper/{view}", params=parameters)
    assert response.status_code == 200, response.text
    found: list[Json] = response.json()["items"]
    return found


def order(client: httpx.Client, command: str, reason: str = "a test", **headers: str) -> httpx.Response:
    return client.post(f"/v1/paper/{command}", json={"confirm": command, "reason": reason}, headers=headers)


# --- before there is anything ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [*LISTS, "positions"])
def test_without_a_ledger_a_list_is_empty_and_says_why(client: httpx.Client, view: str) -> None:
    response = client.get(f"/v1/paper/{view}")
    assert response.status_code == 200
    assert response.json()["items"] == []
    assert "no paper run yet" in response.json()["detail"]


def test_without_a_ledger_the_status_says_so_and_the_service_is_ready(client: httpx.Client, ledger_file: Path) -> None:
    status = client.get("/v1/paper/status").json()
    assert status["state"] == "no_run"
    assert "python -m service paper" in status["detail"]
    assert status["run"] is status["account"] is status["process"] is None
    assert client.get("/readyz").status_code == 200
    assert not ledger_file.exists()  # looking leaves no empty file behind


def test_without_a_ledger_there_is_no_signal_and_nothing_to_command(client: httpx.Client) -> None:
    assert client.get("/v1/signal/SP500").status_code == 404
    response = order(client, "halt")
    assert response.status_code == 409
    assert "no paper run yet" in response.json()["detail"]


def test_a_ledger_that_appears_needs_no_restart(
    client: httpx.Client, ledger_file: Path, request: pytest.FixtureRequest
) -> None:
    assert client.get("/v1/paper/status").json()["state"] == "no_run"
    request.getfixturevalue("paper_run").advance(2)
    asyncio.run(asyncio.sleep(0.3))  # longer than a snapshot counts as fresh
    assert client.get("/v1/paper/status").json()["state"] == "running"
    assert len(items(client, "equity")) == 2


def test_an_empty_ledger_is_no_run(client: httpx.Client, ledger: Ledger) -> None:
    assert client.get("/v1/paper/status").json()["state"] == "no_run"
    assert items(client, "decisions") == []


# --- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", list(MODELS))
def test_every_view_says_what_the_document_says(client: httpx.Client, paper_run: Any, view: str) -> None:
    """The lists are written without passing through these models: this holds the two together."""
    paper_run.advance(30)
    content = client.get(f"/v1/paper/{view}").content
    told = MODELS[view].model_validate_json(content)
    assert json.loads(told.model_dump_json()) == json.loads(content)


def test_the_views_tell_what_the_trader_wrote(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(40)
    bars, equity, decisions = (items(client, view) for view in ("bars", "equity", "decisions"))
    assert [bar["ts"] for bar in bars] == [point["ts"] for point in equity] == [one["bar_ts"] for one in decisions]
    assert len(bars) == 40
    with paper_run.ledger.reading() as read:
        assert [row.equity for row in read.equity(paper_run.run_id)] == [point["equity"] for point in equity]
        fills = read.fills(paper_run.run_id)
        stored = read.latest_decision(paper_run.run_id, "SP500")
    assert [fill["quantity"] for fill in items(client, "fills")] == [row.quantity for row in fills]
    assert len(fills) > 0
    last = decisions[-1]
    assert last["policy"] == json.loads(stored.policy_json)
    assert last["outlook"] == json.loads(stored.outlook_json)
    assert sum(last["policy"]) == pytest.approx(1.0)
    assert items(client, "events")[0]["kind"] == "started"
    assert items(client, "positions")[0]["units"] == equity[-1]["units"]


def test_a_status_of_a_running_account(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(10)
    status = client.get("/v1/paper/status").json()
    assert status["state"] == "running"
    assert status["problems"] == []
    assert status["run"]["instrument"] == "SP500"
    assert status["run"]["bar_ms"] == DAY_MS
    assert status["guards"]["mode"] == "ACTIVE"
    assert status["counts"]["decisions"] == 10
    assert status["account"]["equity"] == items(client, "equity")[-1]["equity"]
    assert status["process"]["alive"] is True
    assert any("next bar" in sentence for sentence in status["assumptions"])


@pytest.mark.parametrize("view", ["equity", "decisions", "bars"])
def test_pages_follow_each_other_without_gap_or_overlap(client: httpx.Client, paper_run: Any, view: str) -> None:
    paper_run.advance(23)
    time_of = "bar_ts" if view == "decisions" else "ts"
    seen: list[int] = []
    since: int | None = 0
    while since is not None:
        page = client.get(f"/v1/paper/{view}", params={"since": since, "limit": 10}).json()
        seen += [row[time_of] for row in page["items"]]
        since = page["next_since"]
    assert seen == [row[time_of] for row in items(client, view)]
    assert len(seen) == 23


def test_events_are_paged_by_id_and_found_by_time(client: httpx.Client, paper_run: Any) -> None:
    with paper_run.ledger.transaction() as write:
        for number in range(10):  # all at one moment: a time alone could not page through them
            write.append_event("note", f"note {number}", ts_ms=5_000 if number < 8 else 6_000)
    first = client.get("/v1/paper/events", params={"after": 0, "limit": 6}).json()
    rest = client.get("/v1/paper/events", params={"after": first["next_after"], "limit": 100}).json()["items"]
    assert [one["message"] for one in first["items"] + rest][1:] == [f"note {number}" for number in range(10)]
    late = items(client, "events", since=6_000)
    assert [one["message"] for one in late if one["kind"] == "note"] == ["note 8", "note 9"]


def test_without_since_the_newest_rows_come_oldest_first(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(12)
    every = [row["ts"] for row in items(client, "bars")]
    assert [row["ts"] for row in items(client, "bars", limit=5)] == every[-5:]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=5001", "limit=x", "since=-1", "since=1e3", "since=999999999999999", "after=-1"]
)
def test_a_strange_range_is_422(client: httpx.Client, paper_run: Any, query: str) -> None:
    response = client.get(f"/v1/paper/events?{query}")
    assert response.status_code == 422
    assert response.json()["error"] == "invalid_request"


def test_a_signal_is_the_last_decision_and_its_age(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(3)
    signal = client.get("/v1/signal/SP500").json()
    last = items(client, "decisions")[-1]
    assert {name: signal[name] for name in last} == last
    paper_schemas.Signal.model_validate(signal)
    assert signal["stale"] is True  # 97 bars before the clock of the service
    assert client.get("/v1/signal/BTC/USDT").status_code == 404
    paper_run.advance(97)
    assert client.get("/v1/signal/SP500").json()["stale"] is False


def test_an_archived_run_is_no_longer_shown(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(3)
    with paper_run.ledger.transaction() as write:
        write.archive_run(paper_run.run_id, now_ms=1)
    assert items(client, "equity") == []
    assert client.get("/v1/paper/status").json()["state"] == "no_run"


# --- what is wrong is said -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"feed": "unreachable", "last_error": "connection refused", "errors": 4}, "exchange_unreachable", "refused"),
        ({"clock_skew_ms": -2500}, "clock_skew", "-2.5 s"),
        ({"ledger_error": "no space left"}, "ledger_unwritable", "no space"),
        ({"degraded": "bars were missing"}, "degraded", "missing"),
    ],
)
def test_a_degraded_trader_is_said_to_be_so(
    client: httpx.Client, paper_run: Any, changes: Json, kind: str, words: str
) -> None:
    paper_run.advance(2)
    paper_run.beat(**changes)
    status = client.get("/v1/paper/status").json()
    assert status["state"] == "degraded"
    assert [problem["kind"] for problem in status["problems"]] == [kind]
    assert words in status["problems"][0]["message"]


def test_what_the_guards_say_is_said_once(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(2)
    with paper_run.ledger.transaction() as write:
        write.insert_command("halt", reason="a test", confirm="halt", requested_by="cli", now_ms=1)
    paper_run.handle_commands()
    paper_run.beat(degraded="HALTED: a test")
    [problem] = client.get("/v1/paper/status").json()["problems"]
    assert (problem["kind"], problem["message"]) == ("halted", "Halted: a test.")


def test_a_silent_trader_is_stopped(client: httpx.Client, paper_run: Any, now: Callable[[], float]) -> None:
    paper_run.advance(2)
    paper_run.beat(ts_ms=int(now() * 1000) - 61_000)
    status = client.get("/v1/paper/status").json()
    assert status["state"] == "stopped"
    assert status["process"]["alive"] is False
    assert "60 s" in status["detail"]


def test_the_end_of_a_replay_is_told_and_is_no_fault(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(2)
    paper_run.beat(feed="finished")
    status = client.get("/v1/paper/status").json()
    assert status["state"] == "running"
    assert "no more bars" in status["detail"]


def test_a_damaged_ledger_is_503_everywhere_and_heals_without_a_restart(
    client: httpx.Client, paper_run: Any, ledger_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paper_run.advance(2)
    assert len(items(client, "bars")) == 2
    with sqlite3.connect(ledger_file) as connection:  # everything into the file itself
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    kept = ledger_file.with_suffix(".kept")
    ledger_file.rename(kept)
    for beside in ("-wal", "-shm"):
        ledger_file.with_name(ledger_file.name + beside).unlink(missing_ok=True)
    ledger_file.write_bytes(b"this is not a ledger" * 500)
    for path in ("/v1/paper/status", "/v1/paper/bars", "/v1/signal/SP500", "/readyz"):
        response = client.get(path)
        assert response.status_code == 503, path
        assert int(response.headers["retry-after"]) >= 1
    assert str(ledger_file) not in client.get("/readyz").text  # open to everybody, so it names no place
    assert "smu0_ledger_up 0.0" in client.get("/metrics").text
    assert client.get("/healthz").status_code == 200
    ledger_file.unlink()
    kept.rename(ledger_file)
    asyncio.run(asyncio.sleep(0.3))
    assert len(items(client, "bars")) == 2
    assert client.get("/readyz").status_code == 200


def test_decisions_go_on_while_the_ledger_is_down(client: httpx.Client, body: Json, ledger_file: Path) -> None:
    ledger_file.parent.mkdir(parents=True, exist_ok=True)
    ledger_file.write_bytes(b"this is not a ledger" * 500)
    response = client.post("/v1/act", json=body, headers={"Idempotency-Key": "k"})
    assert response.status_code == 200
    assert response.headers["idempotency-kept"] == "memory"


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted_and_its_outcome_is_shown(client: httpx.Client, paper_run: Any, command: str) -> None:
    paper_run.advance(2)
    response = order(client, command, "because I say so")
    assert response.status_code == 202
    accepted = response.json()
    assert accepted["status"] == "pending"
    assert accepted["requested_by"] == "test"
    with paper_run.ledger.transaction() as write:
        [pending] = write.pending_commands()
        assert (pending.kind, pending.reason) == (command, "because I say so")
        write.finish_command(pending.id, "done", "it is so", now_ms=5)
    asyncio.run(asyncio.sleep(0.3))
    shown = client.get("/v1/paper/status").json()["commands"][0]
    assert (shown["id"], shown["status"], shown["result"]) == (accepted["id"], "done", "it is so")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"confirm": "resume", "reason": "x"}, 422),
        ({"confirm": True, "reason": "x"}, 422),
        ({"confirm": "halt"}, 422),
        ({"confirm": "halt", "reason": ""}, 422),
        ({"confirm": "halt", "reason": "  "}, 422),
        ({"confirm": "halt", "reason": "two\nlines"}, 422),
        ({"confirm": "halt", "reason": "x" * 201}, 422),
        ({"confirm": "halt", "reason": "x", "now": True}, 422),
        ([], 422),
    ],
)
def test_a_command_that_is_not_meant_exactly_so_is_refused(
    client: httpx.Client, paper_run: Any, content: Any, status: int
) -> None:
    response = client.post("/v1/paper/halt", json=content)
    assert response.status_code == status, response.text
    with paper_run.ledger.reading() as read:
        assert read.commands() == []


def test_nan_and_sixteen_megabytes_are_answered_without_a_500(client: httpx.Client, paper_run: Any) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/paper/halt", "/v1/session"):
        assert client.post(path, content=b'{"confirm": NaN, "reason": Infinity}', headers=headers).status_code == 422
        assert client.post(path, content=b" " * 16 * 1024**2, headers=headers).status_code == 413


def test_only_control_may_command_and_only_read_may_read(
    paper_run: Any, service: Service, make_client: MakeClient, headers_for: Callable[[Scope], dict[str, str]]
) -> None:
    reader = make_client(service, headers_for(Scope.READ))
    assert order(reader, "halt").status_code == 403
    assert reader.get("/v1/paper/status").status_code == 200


def test_a_repeated_command_is_one_command(client: httpx.Client, paper_run: Any) -> None:
    first = order(client, "flatten", **{"Idempotency-Key": "k"})
    again = order(client, "flatten", **{"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.content == again.content
    assert again.headers["idempotent-replay"] == "true"
    assert again.headers["idempotency-kept"] == "ledger"
    other = order(client, "flatten", "for another reason", **{"Idempotency-Key": "k"})
    assert other.status_code == 409
    with paper_run.ledger.reading() as read:
        assert len(read.commands()) == 1


def test_a_flood_of_commands_is_bounded(client: httpx.Client, paper_run: Any) -> None:
    answers = [order(client, "halt").status_code for _ in range(120)]
    assert set(answers) == {202, 503}
    with paper_run.ledger.reading() as read:
        assert len(read.pending_commands(limit=1000)) == answers.count(202) == 100


# --- idempotency survives --------------------------------------------------------------------------------------------


def test_an_answer_is_remembered_across_a_restart(
    make_service: MakeService, make_client: MakeClient, headers: dict[str, str], body: Json, ledger: Ledger
) -> None:
    key = {**headers, "Idempotency-Key": "order-17"}
    first = make_client(make_service()).post("/v1/act", json=body, headers=key)
    assert first.headers["idempotency-kept"] == "ledger"
    restarted = make_client(make_service())
    again = restarted.post("/v1/act", json=body, headers=key)
    assert again.content == first.content  # to the latency and the request id: it was not computed again
    assert again.headers["idempotent-replay"] == "true"
    other = restarted.post("/v1/act", json={**body, "position": 0.25}, headers=key)
    assert other.status_code == 409


def test_a_ledger_that_is_held_by_another_costs_the_memory_not_the_decision(
    client: httpx.Client, body: Json, ledger: Ledger, ledger_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = sqlite3.connect(ledger_file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with caplog.at_level(logging.WARNING):
            response = client.post("/v1/act", json=body, headers={"Idempotency-Key": "k"})
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert response.status_code == 200
    assert response.headers["idempotency-kept"] == "memory"
    assert "kept in memory only" in caplog.text


# --- side by side ----------------------------------------------------------------------------------------------------


def test_a_slow_ledger_does_not_hold_up_a_decision_and_is_bounded(
    make_service: MakeService, headers: dict[str, str], body: Json, paper_run: Any
) -> None:
    service = make_service(ledger_queue_limit=4, ledger_deadline_seconds=0.3)
    gate = threading.Event()

    async def main() -> None:
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client:
            slow = [asyncio.create_task(service.ledger.read(lambda _: gate.wait(30))) for _ in range(4)]
            await asyncio.sleep(0.01)
            refused = await client.get("/v1/paper/bars")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.post("/v1/act", json=body)).status_code == 200
            found = await asyncio.gather(*slow, return_exceptions=True)
            assert {type(one).__name__ for one in found} == {"DeadlineExceeded"}
            # Their threads are still busy, so their places are still taken.
            assert (await client.get("/v1/paper/bars")).status_code == 503
            gate.set()
            await asyncio.sleep(0.1)
            assert (await client.get("/v1/paper/bars")).status_code == 200
        await service.close()

    asyncio.run(main())


def test_metrics_tell_of_the_paper_account(client: httpx.Client, paper_run: Any) -> None:
    paper_run.advance(5)
    paper_run.beat(clock_skew_ms=250)
    text = client.get("/metrics").text
    equity = items(client, "equity")[-1]["equity"]
    for line in (
        f'smu0_paper_equity{{instrument="SP500"}} {equity}',
        'smu0_paper_mode{instrument="SP500",mode="ACTIVE"} 1.0',
        'smu0_paper_mode{instrument="SP500",mode="HALTED"} 0.0',
        'smu0_paper_decisions{instrument="SP500",status="decided"} 5.0',
        'smu0_paper_decisions{instrument="SP500",status="skipped_late"} 0.0',
        "smu0_paper_clock_skew_seconds 0.25",
        "smu0_paper_data_age_seconds 0.5",
        "smu0_paper_up 1.0",
        "smu0_ledger_up 1.0",
    ):
        assert line in text, line
    assert "smu0_paper_drawdown_fraction" in text
    assert "smu0_paper_position_exposure" in text


def test_metrics_leave_out_what_is_not_known(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    assert "smu0_paper_equity" not in text
    assert "smu0_paper_up 0.0" in text


# --- the document ----------------------------------------------------------------------------------------------------


def test_the_document_names_every_answer_of_the_paper_endpoints(service: Service) -> None:
    paths = openapi_document(create_app(service))["paths"]
    for view in (*LISTS, "positions", "status"):
        assert set(paths[f"/v1/paper/{view}"]["get"]["responses"]) == {
            "200", "401", "403", "422", "429", "503", "504",
        }  # fmt: skip
    assert "404" in paths["/v1/signal/{symbol}"]["get"]["responses"]
    for command in COMMANDS:
        operation = paths[f"/v1/paper/{command}"]["post"]
        assert set(operation["responses"]) == {
            "202", "401", "403", "409", "413", "415", "422", "429", "503", "504",
        }  # fmt: skip
        assert operation["summary"]
    assert "text/event-stream" in paths["/v1/stream"]["get"]["responses"]["200"]["content"]
