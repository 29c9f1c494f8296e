"""python -m service ledger: look at the ledger, check it, copy it, put a copy back.

What only reads may run beside a paper process; what changes the ledger as a whole takes the trader's lock, and so
refuses while one runs.
"""

import csv
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.commandline import JsonOption, make_app, print_json
from service.settings import read_settings

if TYPE_CHECKING:  # SQLAlchemy takes a third of a second, which --help should not
    from service.ledger.integrity import RunReport
    from service.ledger.store import Reader, Standing

BACKUPS = "backups"

app = make_app("The ledger of paper trading: SQLite in the state directory, or the database of SMU0_DATABASE_URL.")

RunOption = Annotated[str | None, typer.Option("--run", help="id of a run; default: the active one, else the newest")]


class Rows(StrEnum):
    """What can be exported."""

    BARS = "bars"
    DECISIONS = "decisions"
    ORDERS = "orders"
    FILLS = "fills"
    EQUITY = "equity"
    EVENTS = "events"


class Format(StrEnum):
    """How rows are written."""

    CSV = "csv"
    JSONL = "jsonl"


@app.command()
def show(run: RunOption = None, json_output: JsonOption = False) -> None:
    """Where a run stands: account, position, guards, last decision; and which runs there are.

    Example: python -m service ledger show --json
    """
    from service.ledger.store import Ledger

    with Ledger.open(_url(), writable=False) as ledger, ledger.reading() as read:
        runs = read.runs()
        found = None if not runs else read.standing(_run_id(read, run))
        heartbeat = read.heartbeat("paper")
        counts = {} if found is None else read.count_decisions(found.run.id)
        fills = 0 if found is None else read.count_fills(found.run.id)
        events = read.events_before(limit=5)
    if json_output:
        print_json(
            {
                "ledger": ledger.place,
                "standing": None if found is None else asdict(found),
                "decisions": counts,
                "fills": fills,
                "heartbeat": None if heartbeat is None else asdict(heartbeat),
                "runs": [asdict(row) for row in runs],
                "events": [asdict(event) for event in events],
            }
        )
        return
    print(ledger.place)
    if found is None:
        print("no run yet; the first start of the paper process begins one")
        return
    _print_standing(found, counts, fills)
    if heartbeat is not None:
        print(f"  last heartbeat  {_time(heartbeat.ts_ms)}")
    for event in reversed(events):
        print(f"  {_time(event.ts_ms)}  {event.severity:7}  {event.message}")
    others = [row for row in runs if row.id != found.run.id]
    if others:
        print("other runs")
    for row in others:
        ended = "active" if row.archived_ms is None else f"archived {_time(row.archived_ms)}"
        print(f"  {row.id}  {row.instrument} {row.timeframe}, begun {_time(row.created_ms)}, {ended}")


@app.command()
def check(
    all_runs: Annotated[bool, typer.Option("--all", help="archived runs as well")] = False,
    json_output: JsonOption = False,
) -> None:
    """Go through a run bar by bar: do fills, cash, equity and account follow from each other? Exit code 1 if not.

    Example: python -m service ledger check --all
    """
    from service.ledger.integrity import check as go_through
    from service.ledger.store import Ledger

    with Ledger.open(_url(), writable=False) as ledger:
        reports = go_through(ledger, all_runs=all_runs)
    if json_output:
        print_json([{**asdict(report), "ok": report.ok} for report in reports])
    else:
        print(ledger.place)
        for report in reports:
            _print_report(report)
        if not reports:
            print("no active run; --all looks at archived ones")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def backup(
    file: Annotated[
        Path | None, typer.Argument(help="new SQLite file; default: backups/ledger-TIME.sqlite3 in the state directory")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Copy the whole ledger into one file, while trading goes on. PostgreSQL is copied into a SQLite file as well.

    Example: python -m service ledger backup /mnt/elsewhere/ledger.sqlite3
    """
    from service.ledger.archive import backup as copy
    from service.ledger.store import Ledger

    target = file or _backups() / f"ledger-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.sqlite3"
    with Ledger.open(_url(), writable=False) as ledger:
        copy(ledger, target)
    _say({"backup": str(target), "bytes": target.stat().st_size}, f"{target}", json_output)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="a backup, as backup and archive write it")],
    json_output: JsonOption = False,
) -> None:
    """Put a backup in the place of the ledger. Stop the paper process first; what was there is kept aside.

    Example: python -m service ledger restore var/service/backups/ledger-20260101T000000Z.sqlite3
    """
    from service.ledger.archive import restore as put_back

    restored = put_back(_url(), file, directory=_backups())
    kept = "there was none before" if restored.kept is None else f"the one before is kept as {restored.kept}"
    _say(
        {"restored": str(file), "runs": restored.runs, "kept": None if restored.kept is None else str(restored.kept)},
        f"restored {file} ({restored.runs} runs); {kept}",
        json_output,
    )


@app.command()
def migrate(json_output: JsonOption = False) -> None:
    """Make the ledger, or bring an older one to this version's schema. The paper process does so when it starts.

    Example: python -m service ledger migrate
    """
    from service.ledger.lock import paper_lock
    from service.ledger.schema import SCHEMA_VERSION
    from service.ledger.store import Ledger

    with paper_lock(_url()), Ledger.open(_url(), writable=True) as ledger:
        place = ledger.place
    _say({"ledger": place, "schema": SCHEMA_VERSION}, f"{place}: schema {SCHEMA_VERSION}", json_output)


@app.command()
def archive(json_output: JsonOption = False) -> None:
    """End the active run, so that the next start begins a new one. Everything is kept, and backed up first.

    For a trader that is stopped; a running one is reset over the API. Example: python -m service ledger archive
    """
    from service.ledger.archive import archive as end
    from service.ledger.lock import paper_lock
    from service.ledger.store import Ledger

    with paper_lock(_url()), Ledger.open(_url(), writable=True) as ledger:
        with ledger.reading() as read:
            active = read.active_run()
        if active is None:
            raise ValueError(f"{ledger.place}: expected an active run, found none; there is nothing to archive")
        kept = end(ledger, active.id, directory=_backups(), now_ms=int(time.time() * 1000))
    _say({"archived": active.id, "backup": str(kept)}, f"{active.id} is archived; backup: {kept}", json_output)


@app.command()
def export(
    rows: Annotated[Rows, typer.Argument(help="which rows")],
    run: RunOption = None,
    format_: Annotated[Format, typer.Option("--format", help="how")] = Format.CSV,
    output: Annotated[Path | None, typer.Option(help="new file; default: the standard output")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="the same as --format jsonl")] = False,
) -> None:
    """Write every row of a run, oldest first, for a spreadsheet or a notebook.

    Example: python -m service ledger export fills --output fills.csv
    """
    from service.ledger.store import Ledger

    with ExitStack() as opened:
        ledger = opened.enter_context(Ledger.open(_url(), writable=False))
        read = opened.enter_context(ledger.reading())
        kind, found = _exported(read, _run_id(read, run), rows)
        file = sys.stdout
        if output is not None:
            try:
                file = opened.enter_context(output.open("x", newline="", encoding="utf-8"))
            except FileExistsError:
                raise ValueError(f"--output {output}: expected a new file, found an existing one") from None
        names = [field.name for field in fields(kind)]
        if json_output or format_ is Format.JSONL:
            for row in found:
                file.write(json.dumps({name: getattr(row, name) for name in names}, allow_nan=False) + "\n")
        else:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([getattr(row, name) for name in names] for row in found)


# --- how -------------------------------------------------------------------------------------------------------------


def _url() -> str:
    return read_settings().ledger_url


def _backups() -> Path:
    return read_settings().state / BACKUPS


def _run_id(read: "Reader", wanted: str | None) -> str:
    if wanted is not None:
        if read.run(wanted) is None:
            known = ", ".join(row.id for row in read.runs(limit=10)) or "none"
            raise ValueError(f"--run {wanted}: expected a run of this ledger ({known})")
        return wanted
    active = read.active_run()
    if active is not None:
        return active.id
    newest = read.runs(limit=1)
    if not newest:
        raise ValueError("the ledger holds no run yet; the first start of the paper process begins one")
    return newest[0].id


def _exported(read: "Reader", run_id: str, rows: Rows) -> tuple[type, Iterator[Any]]:
    """Type and rows of what is to be written."""
    from service.ledger import schema
    from service.ledger.store import every

    match rows:
        case Rows.BARS:
            return schema.BarRow, every(read.bars, run_id, lambda row: row.ts)
        case Rows.DECISIONS:
            return schema.DecisionRow, every(read.decisions, run_id, lambda row: row.bar_ts)
        case Rows.ORDERS:
            return schema.OrderRow, every(read.orders, run_id, lambda row: row.submitted_ts)
        case Rows.FILLS:
            return schema.FillRow, every(read.fills, run_id, lambda row: row.bar_ts)
        case Rows.EQUITY:
            return schema.EquityRow, every(read.equity, run_id, lambda row: row.ts)
        case Rows.EVENTS:
            return schema.EventRow, _events(read, run_id)


def _events(read: "Reader", run_id: str) -> Iterator[Any]:
    after = 0
    while page := read.events_after(after, limit=5000):
        yield from (event for event in page if event.run_id == run_id)
        after = page[-1].id


def _say(result: dict[str, Any], sentence: str, json_output: bool) -> None:
    if json_output:
        print_json(result)
    else:
        print(sentence)


def _print_standing(standing: "Standing", counts: dict[str, int], fills: int) -> None:
    run = standing.run
    state = "active" if run.archived_ms is None else f"archived {_time(run.archived_ms)}"
    print(f"run {run.id} ({state})")
    print(f"  market          {run.instrument} {run.timeframe} from {run.venue}")
    print(f"  model           {run.model}")
    if standing.account is not None:
        gain = standing.account.equity / run.initial_equity - 1.0
        print(f"  equity          {standing.account.equity:,.2f} ({gain:+.2%} of {run.initial_equity:,.2f})")
    for position in standing.positions:
        print(f"  position        {position.units:g} {position.instrument} ({position.exposure:+.1%} of equity)")
    if standing.risk is not None:
        why = f": {standing.risk.reason}" if standing.risk.reason else ""
        print(f"  guards          {standing.risk.mode}{why}")
    if standing.cursor is not None:
        print(f"  last bar        {_time(standing.cursor.last_bar_ts)}")
    if counts:
        print(f"  decisions       {', '.join(f'{number} {status}' for status, number in sorted(counts.items()))}")
    print(f"  fills           {fills}")
    if standing.decision is not None:
        print(f"  last decision   {standing.decision.status}: {standing.decision.reason}")


def _print_report(report: "RunReport") -> None:
    verdict = ("adds up, to the last bit" if report.exact else "adds up") if report.ok else "does NOT add up"
    print(
        f"run {report.run_id} {verdict}: {report.bars} bars, {report.missing} in recorded gaps, {report.decisions} "
        f"decisions, {report.orders} orders, {report.fills} fills"
    )
    for finding in report.findings:
        print(f"  {finding}")


def _time(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"
