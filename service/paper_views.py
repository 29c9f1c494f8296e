"""What the ledger holds, as the API shows it: questions to a `Reader`, answered in the bytes of a response.

Everything here runs on a reading thread. Rows are read and encoded in small portions: that holds the interpreter's
lock, and a decision that is being made on another thread must not wait for five thousand rows of history. Documents
that are stored as JSON text go out as the text they are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from pydantic_core import to_json

from data.timeframe import Timeframe
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from service.assumptions import describe_fills
from service.ledger.schema import (
    DECISION_STATUSES,
    BarRow,
    CommandRow,
    DecisionRow,
    EquityRow,
    EventRow,
    FillRow,
    PositionRow,
    RiskStateRow,
    RunRow,
)
from service.ledger.store import Page, Reader, Standing
from service.paper.heartbeat import PROCESS, SILENT_SECONDS, HeartbeatState
from service.paper_schemas import (
    AccountView,
    Command,
    Counts,
    Guards,
    PaperStatus,
    Position,
    Problem,
    Process,
    RunDescription,
)
from service.stream import Message
from service.stream import Position as StreamPosition

NO_RUN: Final = (
    'no paper run yet: nothing has been traded into this ledger. Start one with "python -m service paper" or '
    '"docker compose up"'
)
STALE_AFTER_BARS: Final = 2
_NOTHING: Final = "nothing in that time"
# Between two portions the interpreter is really let go: without a pause, a thread that gives up its lock mostly takes
# it again before another has woken, and each step of a decision would wait for a time slice (5 ms).
_PORTION: Final = 100  # rows, about a millisecond
_PAUSE_SECONDS: Final = 0.0005
_SHOWN_COMMANDS: Final = 10
_STREAM_PAGE: Final = 200
_SKEW_WARNING_MS: Final = 1000
_SEVERITIES: Final = ("error", "warning", "info")  # as they are shown


# --- rows as JSON ----------------------------------------------------------------------------------------------------


class RowEncoder:
    """Rows of one type as JSON objects. A column `x_json` holds JSON already and becomes `x` as it is."""

    def __init__(self, row: type, *, without: Sequence[str] = ("run_id",)) -> None:
        names = [field.name for field in fields(row) if field.name not in without]
        self._plain = [name for name in names if not name.endswith("_json")]
        self._documents = [name for name in names if name.endswith("_json")]
        self._values = attrgetter(*self._plain)

    def encode(self, row: Any) -> bytes:
        """One row."""
        plain = to_json(dict(zip(self._plain, self._values(row), strict=True)))
        if not self._documents:
            return plain
        documents = (
            f'"{name.removesuffix("_json")}":{"null" if (text := getattr(row, name)) is None else text}'
            for name in self._documents
        )
        return plain[:-1] + f",{','.join(documents)}}}".encode()

    def encode_all(self, rows: Sequence[Any]) -> bytes:
        """Rows with commas between them."""
        return b",".join([self.encode(row) for row in rows])


def _listing(head: dict[str, Any], items: Sequence[bytes]) -> bytes:
    """An object with `head` and portions of encoded rows as items."""
    return b"".join((to_json(head)[:-1], b',"items":[', b",".join(items), b"]}"))


_DECISION: Final = RowEncoder(DecisionRow)
_FILL: Final = RowEncoder(FillRow)
_BAR: Final = RowEncoder(BarRow)
_EQUITY: Final = RowEncoder(EquityRow, without=("run_id", "record_json"))
_EVENT: Final = RowEncoder(EventRow, without=())
_POSITION: Final = RowEncoder(PositionRow)


# --- lists -----------------------------------------------------------------------------------------------------------


def list_decisions(read: Reader, since: int | None, limit: int) -> bytes:
    """Oldest first: from `since` (open of a bar, epoch ms) on, or without it the newest."""
    return _list(read, read.decisions, _DECISION, "bar_ts", since, limit)


def list_fills(read: Reader, since: int | None, limit: int) -> bytes:
    """As `list_decisions`."""
    return _list(read, read.fills, _FILL, "bar_ts", since, limit)


def list_bars(read: Reader, since: int | None, limit: int) -> bytes:
    """As `list_decisions`; warm-up bars included."""
    return _list(read, read.bars, _BAR, "ts", since, limit)


def list_equity(read: Reader, since: int | None, limit: int) -> bytes:
    """As `list_decisions`."""
    return _list(read, read.equity, _EQUITY, "ts", since, limit)


def _list(
    read: Reader,
    ask: Callable[[str, Page], Sequence[Any]],
    encoder: RowEncoder,
    moment: str,
    since: int | None,
    limit: int,
) -> bytes:
    """Rows of the current run in portions, each short enough for a decision to wait for."""
    run = read.active_run()
    if run is None:
        return no_rows()
    backwards = since is None
    place = attrgetter(moment)
    portions: list[bytes] = []
    newest: int | None = None
    bound = since
    while limit > 0:
        count = min(limit, _PORTION)
        page = Page(until=bound, order="newest", limit=count) if backwards else Page(since=bound, limit=count)
        rows = ask(run.id, page)
        if not rows:
            break
        if newest is None or not backwards:
            newest = place(rows[0 if backwards else -1])
        portions.append(encoder.encode_all(rows[::-1] if backwards else rows))
        if len(rows) < count:
            break
        bound = place(rows[-1]) + (-1 if backwards else 1)
        limit -= count
        time.sleep(_PAUSE_SECONDS)
    head = {
        "run_id": run.id,
        "detail": _NOTHING if newest is None else None,
        "next_since": None if newest is None else newest + 1,
    }
    return _listing(head, portions[::-1] if backwards else portions)


def list_events(read: Reader, since: int | None, after: int | None, limit: int) -> bytes:
    """Of every run and of none, oldest first: from a time or after an id on, or without either the newest."""
    if since is None and after is None:
        rows = read.events_before(limit=limit)[::-1]
    elif since is None:
        rows = read.events_after(after or 0, limit=limit)
    else:
        rows = read.events_since(since, after=after or 0, limit=limit)
    run = read.active_run()
    head = {
        "run_id": None if run is None else run.id,
        "detail": None if rows else _NOTHING,
        "next_after": rows[-1].id if rows else None,
    }
    portions = []
    for begin in range(0, len(rows), _PORTION):
        portions.append(_EVENT.encode_all(rows[begin : begin + _PORTION]))
        time.sleep(_PAUSE_SECONDS)
    return _listing(head, portions)


def list_positions(read: Reader) -> bytes:
    """What the current run holds."""
    run = read.active_run()
    if run is None:
        return no_positions()
    rows = read.positions(run.id)
    head = {"run_id": run.id, "detail": None if rows else "flat, and never traded"}
    return _listing(head, [_POSITION.encode_all(rows)] if rows else [])


def no_rows() -> bytes:
    """A list of what there is without a run."""
    return to_json({"run_id": None, "detail": NO_RUN, "next_since": None, "items": []})


def no_positions() -> bytes:
    """The same for positions."""
    return to_json({"run_id": None, "detail": NO_RUN, "items": []})


def no_events() -> bytes:
    """The same for events."""
    return to_json({"run_id": None, "detail": NO_RUN, "next_after": None, "items": []})


# --- one thing -------------------------------------------------------------------------------------------------------


def last_signal(read: Reader, symbol: str, now_ms: int) -> bytes | None:
    """The last decision of the current run for a symbol; none when there is none."""
    run = read.active_run()
    row = None if run is None else read.latest_decision(run.id, symbol)
    if row is None:
        return None
    frame = Timeframe.parse(row.timeframe)
    age = now_ms - frame.close_of(row.bar_ts)
    known = to_json({"stale": age > STALE_AFTER_BARS * frame.milliseconds, "age_seconds": age / 1000.0})
    return _DECISION.encode(row)[:-1] + b"," + known[1:]


def describe_command(row: CommandRow) -> Command:
    """A command as the API shows it."""
    return Command(**{name: getattr(row, name) for name in Command.model_fields})


# --- how things stand ------------------------------------------------------------------------------------------------


class StatusReader:
    """How paper trading stands. Remembers the counts, so that asking again counts only when there is something new."""

    def __init__(self) -> None:
        self._counted: tuple[str, int, dict[str, int], int] | None = None

    def read(self, read: Reader, now_ms: int) -> PaperStatus:
        """From one state of the ledger."""
        process = _process(read, now_ms)
        commands = [describe_command(row) for row in read.commands(limit=_SHOWN_COMMANDS)]
        run = read.active_run()
        standing = None if run is None else read.standing(run.id)
        if standing is None:
            problems = [] if process is None else find_problems(process, None, now_ms)
            return without_run(now_ms, process=process, problems=problems, commands=commands)
        config = MarketConfig.model_validate_json(standing.run.market_json)
        guards = None if standing.risk is None else _guards(standing.risk)
        problems = find_problems(process, guards, now_ms)
        state, detail = _judge(process, problems)
        return PaperStatus(
            state=state, detail=detail, problems=problems, now_ms=now_ms, run=_describe_run(standing.run, config),
            guards=guards, account=_account(standing), positions=[_position(row) for row in standing.positions],
            process=process, counts=self._counts(read, standing.run.id), commands=commands,
            assumptions=describe_fills(config, Instrument.model_validate_json(standing.run.instrument_json)),
        )  # fmt: skip

    def _counts(self, read: Reader, run_id: str) -> Counts:
        decision, event = read.last_decision_id(), read.last_event_id()
        if self._counted is None or self._counted[:2] != (run_id, decision):
            self._counted = (run_id, decision, read.count_decisions(run_id), read.count_fills(run_id))
        _, _, by_status, fills = self._counted
        return Counts(
            decisions=sum(by_status.values()),
            **{status: by_status.get(status, 0) for status in DECISION_STATUSES},
            fills=fills,
            last_decision_id=decision,
            last_event_id=event,
        )


def _process(read: Reader, now_ms: int) -> Process | None:
    row = read.heartbeat(PROCESS)
    if row is None:
        return None
    age = max(0.0, (now_ms - row.ts_ms) / 1000.0)
    try:
        state = HeartbeatState.from_json(row.state_json)
    except ValueError:
        state = None  # of another version; `find_problems` says so
    return Process(alive=age <= SILENT_SECONDS, heartbeat_ms=row.ts_ms, heartbeat_age_seconds=age, state=state)


def without_run(
    now_ms: int,
    *,
    process: Process | None = None,
    problems: Sequence[Problem] = (),
    commands: Sequence[Command] = (),
) -> PaperStatus:
    """How things stand where nothing is being traded."""
    return PaperStatus(
        state="no_run", detail=NO_RUN, problems=list(problems), now_ms=now_ms, run=None, guards=None, account=None,
        positions=[], process=process, counts=None, commands=list(commands), assumptions=[],
    )  # fmt: skip


def find_problems(process: Process | None, guards: Guards | None, now_ms: int) -> list[Problem]:
    """What a person should know about, the worst first."""
    problems = []
    if process is None:
        problems.append(
            Problem(kind="no_process", severity="error", message="No paper process has ever reported here. Start it.")
        )
    elif not process.alive:
        problems.append(
            Problem(
                kind="process_silent",
                severity="error",
                message=f"The paper process has not reported for {_duration(process.heartbeat_age_seconds)}. Nothing "
                f"is decided until it is back; it then marks the bars it missed and decides on the newest.",
            )
        )
    else:
        problems += _of_feed(process.state, now_ms)
        words = None if process.state is None else process.state.degraded
        if words is not None and not problems and (guards is None or guards.mode == "ACTIVE"):
            problems.append(Problem(kind="degraded", severity="warning", message=f"{_sentence(words)}."))
    if guards is not None and guards.mode == "HALTED":
        problems.append(Problem(kind="halted", severity="error", message=f"Halted: {_sentence(guards.reason)}."))
    elif guards is not None and guards.mode == "REDUCING":
        problems.append(
            Problem(kind="reducing", severity="warning", message=f"Only reducing orders: {_sentence(guards.reason)}.")
        )
    return sorted(problems, key=lambda problem: _SEVERITIES.index(problem.severity))


def _of_feed(state: HeartbeatState | None, now_ms: int) -> list[Problem]:
    """What a live process says about the bars it gets, its clock and the ledger."""
    if state is None:
        words = "The paper process speaks of itself in the words of another version. Run both from one image."
        return [Problem(kind="other_version", severity="warning", message=words)]
    problems = []
    if state.ledger_error is not None:
        words = f"The trader cannot write to the ledger: {_sentence(state.ledger_error)}. It stands still until it can."
        problems.append(Problem(kind="ledger_unwritable", severity="error", message=words))
    if state.feed == "unreachable":
        since = "" if state.feed_since_ms is None else f" for {_duration((now_ms - state.feed_since_ms) / 1000.0)}"
        error = "" if state.last_error is None else f" ({_sentence(state.last_error)})"
        words = (
            f"Exchange unreachable{since}: no bars from {state.venue}{error}. It is asked again and again; the "
            f"position is held."
        )
        problems.append(Problem(kind="exchange_unreachable", severity="error", message=words))
    elif state.feed == "finished":
        words = "The replay is at its end: there are no more bars to trade."
        problems.append(Problem(kind="feed_finished", severity="info", message=words))
    if abs(state.clock_skew_ms) > _SKEW_WARNING_MS:
        words = (
            f"This machine's clock differs by {state.clock_skew_ms / 1000.0:+.1f} s from the exchange's. Set it by NTP."
        )
        problems.append(Problem(kind="clock_skew", severity="warning", message=words))
    return problems


def _judge(process: Process | None, problems: Sequence[Problem]) -> tuple[Any, str]:
    """The state and its one line."""
    if process is None or not process.alive:
        return "stopped", problems[0].message
    if any(problem.severity != "info" for problem in problems):
        return "degraded", problems[0].message
    return "running", problems[0].message if problems else "Trading on paper; nothing to report."


def _describe_run(run: RunRow, config: MarketConfig) -> RunDescription:
    return RunDescription(
        **{name: getattr(run, name) for name in RunDescription.model_fields if hasattr(run, name)},
        bar_ms=Timeframe.parse(run.timeframe).milliseconds,
        target_positions=list(config.actions.levels),
        max_leverage=config.actions.max_leverage,
    )


def _guards(row: RiskStateRow) -> Guards:
    return Guards(**{name: getattr(row, name) for name in Guards.model_fields})


def _position(row: PositionRow) -> Position:
    return Position(**{name: getattr(row, name) for name in Position.model_fields})


def _account(standing: Standing) -> AccountView | None:
    row, mark = standing.account, standing.equity
    if row is None:
        return None
    return AccountView(
        equity=row.equity,
        cash=row.cash,
        peak_equity=row.peak_equity,
        updated_ts=row.updated_ts,
        drawdown_fraction=0.0 if mark is None else mark.drawdown_fraction,
        buy_and_hold_equity=None if mark is None else mark.buy_and_hold_equity,
        close=None if mark is None else mark.close,
    )


# --- news ------------------------------------------------------------------------------------------------------------


def stream_head(read: Reader) -> StreamPosition:
    """The newest event and decision there are."""
    return StreamPosition(read.last_event_id(), read.last_decision_id())


def stream_page(read: Reader, position: StreamPosition) -> list[Message]:
    """What follows a position, oldest first within each kind; a page, empty where nothing follows."""
    messages = []
    for event in read.events_after(position.event, limit=_STREAM_PAGE):
        position = position._replace(event=event.id)
        messages.append(Message("event", _EVENT.encode(event), position))
    for decision in read.decisions_after(position.decision, limit=_STREAM_PAGE):
        position = position._replace(decision=decision.id)
        messages.append(Message("decision", _DECISION.encode(decision), position))
    return messages


def _sentence(text: str) -> str:
    return text.rstrip(".")


def _duration(seconds: float) -> str:
    """Coarse, so that a sentence that is read aloud when it changes does not change all the time."""
    if seconds < 120:
        return f"{seconds // 10 * 10:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"
