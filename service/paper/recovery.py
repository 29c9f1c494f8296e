"""Start-up is recovery: there is no other way in. What the ledger says is checked, then continued.

A ledger that does not add up is refused (`service.ledger.integrity`): every fill is replayed, and must give the account
that is written. A run goes on under the market, instrument and venue it began with, or not at all; another model may
take it over, which its decisions then say.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from data.bars import Bars
from market_env.config import MarketConfig
from market_env.guards import GuardState
from market_env.instrument import Instrument
from service.ledger.integrity import require_sound
from service.ledger.schema import BarRow, RunRow
from service.ledger.store import MAX_LIMIT, Ledger, Page, Reader, Writer
from service.paper.recorder import bars_of, record_guards
from service.paper.trader import Setup, Standing


class RunMismatch(ValueError):
    """The ledger's run began under other terms than those it is to be continued with."""


@dataclass(frozen=True)
class Terms:
    """What a run is begun with beside its `Setup`. instrument is the setup's symbol; venue: of the feed.

    config: everything else that shaped it, for the record.
    """

    venue: str
    timeframe: str
    code_version: str
    config: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Session:
    """Where a run stands, as the trader carries it from bar to bar.

    history: the newest bars, None before the first. cursor: the bar that is done with. first_close: of the first bar
    traded, None before it.
    """

    run: RunRow
    standing: Standing
    history: Bars | None
    cursor: int | None
    first_close: float | None


def recover(
    ledger: Ledger, setup: Setup, terms: Terms, *, new_run_id: Callable[[], str], local_ms: int
) -> tuple[Session, list[str]]:
    """The session to go on with, and what a person should know about how it was found; nothing for a new run.

    Raises LedgerInconsistent for a ledger that does not add up, RunMismatch for a run of something else.
    """
    reports = require_sound(ledger)
    with ledger.reading() as read:
        run = read.active_run()
    if run is None:
        with ledger.transaction() as write:
            return begin_run(write, setup, terms, run_id=new_run_id(), local_ms=local_ms), []
    check_terms(run, setup, terms)
    session = load(ledger, setup)
    [report] = reports
    replayed = "to the last bit" if report.exact else "within rounding"
    notes = [f"run {run.id} goes on: {report.bars} bars and {report.fills} fills replayed {replayed}"]
    if run.model != setup.model.label:
        notes.append(f"run {run.id} was begun by {run.model} and goes on under {setup.model.label}")
    return session, notes


def load(ledger: Ledger, setup: Setup) -> Session:
    """The active run as the ledger has it."""
    with ledger.reading() as read:
        run = read.active_run()
        if run is None:
            raise RunMismatch(f"{ledger.place}: expected an active run, found none. Start the paper process again")
        cursor = read.cursor(run.id, run.instrument, run.timeframe)
        account, risk = read.account(run.id), read.risk_state(run.id)
        rows = _newest_bars(read, run, setup.history_bars)
        first = None
        if run.first_bar_ts is not None:
            first = read.bar(run.id, run.instrument, run.timeframe, run.first_bar_ts)
    opened = Standing.opened(setup, now_ms=run.created_ms)
    return Session(
        run=run,
        standing=Standing(
            None if account is None else json.loads(account.session_state_json),
            opened.guards if risk is None else GuardState.model_validate_json(risk.state_json),
        ),
        history=bars_of(run, rows) if rows else None,
        cursor=None if cursor is None else cursor.last_bar_ts,
        first_close=None if first is None else first.close,
    )


def begin_run(write: Writer, setup: Setup, terms: Terms, *, run_id: str, local_ms: int) -> Session:
    """A new account, in the caller's transaction."""
    run = RunRow(
        id=run_id,
        created_ms=local_ms,
        model=setup.model.label,
        checkpoint_sha256=setup.model.sha256,
        config_json=json.dumps(terms.config, allow_nan=False),
        market_json=setup.market.model_dump_json(),
        instrument_json=setup.instrument.model_dump_json(),
        seed=setup.seed,
        instrument=setup.instrument.symbol,
        timeframe=terms.timeframe,
        venue=terms.venue,
        initial_equity=setup.initial_equity,
        code_version=terms.code_version,
    )
    write.start_run(run)
    standing = Standing.opened(setup, now_ms=local_ms)
    record_guards(write, run, standing.guards, standing.guards, local_ms=local_ms)
    text = f"Run {run.id} begins: {run.instrument} {run.timeframe} on {run.venue}, {run.initial_equity:g}, {run.model}"
    write.append_event("run", text, ts_ms=local_ms, run_id=run.id)
    return Session(run=run, standing=standing, history=None, cursor=None, first_close=None)


def check_terms(run: RunRow, setup: Setup, terms: Terms) -> None:
    """Raise RunMismatch naming what differs."""
    pairs: list[tuple[str, object, object]] = [
        ("instrument", run.instrument, setup.instrument.symbol),
        ("timeframe", run.timeframe, terms.timeframe),
        ("venue", run.venue, terms.venue),
        ("seed", run.seed, setup.seed),
        ("initial equity", run.initial_equity, setup.initial_equity),
        ("market", MarketConfig.model_validate_json(run.market_json), setup.market),
        ("terms of the instrument", Instrument.model_validate_json(run.instrument_json), setup.instrument),
    ]
    differing = [f"{name} {old}, now {new}" for name, old, new in pairs if old != new]
    if differing:
        raise RunMismatch(
            f"run {run.id} was begun with {'; '.join(differing)}. Continue it on its own terms, give this one another "
            f"state directory (SMU0_STATE), or end it with --new-run: it is kept, and a new account begins"
        )


def advanced(session: Session, *, standing: Standing, history: Bars, cursor: int, traded: bool) -> Session:
    """The session after a bar. traded: whether the account went through it."""
    run, first_close = session.run, session.first_close
    if traded and run.first_bar_ts is None:
        run, first_close = replace(run, first_bar_ts=cursor), float(history.close[-1])
    return Session(run=run, standing=standing, history=history, cursor=cursor, first_close=first_close)


def run_name(local_ms: int, suffix: str) -> str:
    """A run's id: when it began, and what keeps two of one second apart."""
    return f"{datetime.fromtimestamp(local_ms / 1_000.0, UTC):%Y%m%d-%H%M%S}-{suffix}"


def _newest_bars(read: Reader, run: RunRow, count: int) -> list[BarRow]:
    """Oldest first."""
    rows: list[BarRow] = []
    until: int | None = None
    while len(rows) < count:
        limit = min(count - len(rows), MAX_LIMIT)
        page = read.bars(run.id, Page(until=until, order="newest", limit=limit))
        rows += page
        if not page:
            break
        until = page[-1].ts - 1
    return rows[::-1]
