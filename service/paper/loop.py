"""The paper process: asks the feed, lets the core step, writes the ledger, obeys commands, says that it lives.

Everything that waits, sleeps or writes is here; what is decided is in `trader`. The state in memory is only ever a copy
of the ledger: after any doubt about a write it is read again.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from data.bars import VALUE_COLUMNS, Bars, concatenate
from data.quality import format_time
from data.timeframe import Timeframe
from market_env import guards as guarding
from market_env.guards import Cause, GuardState, Mode, Vitals
from service.feed.protocol import BarFeed, FeedUnavailable
from service.ledger.archive import archive
from service.ledger.errors import AlreadyRecorded, LedgerBusy, LedgerFull, LedgerUnreachable
from service.ledger.schema import CommandKind, CommandRow, HeartbeatRow, Severity
from service.ledger.store import Ledger, Writer
from service.paper.clock import VenueClock
from service.paper.config import PaperConfig
from service.paper.heartbeat import PROCESS, HeartbeatState
from service.paper.recorder import Moment, record_guards, record_step, record_warmup
from service.paper.recovery import Session, Terms, advanced, begin_run, load, recover
from service.paper.stopping import Stop, Stopped
from service.paper.trader import Setup, Standing, Step, Verdict, judge, take_bar

log = logging.getLogger("smu0.paper")

# How often the look back for a history is doubled where a market's closed hours leave too few bars in it.
_DOUBLINGS: Final = 6


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the loop needs of its machine. local_ms: this machine's clock, epoch ms. seconds: a monotonic clock.

    spread: uniform in [0, 1), so that clients do not retry in step. new_run_id: a name not used before.
    kill_switch: a file whose presence halts. backups: where a reset keeps the ledger as it was.
    hold: raises LedgerUnreachable when the lock on the ledger may be lost.
    """

    local_ms: Callable[[], int]
    seconds: Callable[[], float]
    spread: Callable[[], float]
    new_run_id: Callable[[], str]
    kill_switch: Path
    backups: Path
    pid: int
    hold: Callable[[], None] = lambda: None


@dataclass
class _FeedHealth:
    """How the feed has been doing."""

    state: str | None = None
    since_local_ms: int | None = None
    errors: int = 0
    error: str | None = None
    retry_seconds: float | None = None
    overdue: int = 0


class PaperTrader:
    """One run of one instrument, from start-up to the request to stop. Not for two threads.

    trade_from: open time of the first bar a new run may trade; None: the first that is fresh.
    """

    def __init__(
        self,
        setup: Setup,
        feed: BarFeed,
        ledger: Ledger,
        terms: Terms,
        *,
        config: PaperConfig,
        stop: Stop,
        surroundings: Surroundings,
        trade_from: int | None = None,
    ) -> None:
        self._setup = setup
        self._feed = feed
        self._ledger = ledger
        self._terms = terms
        self._config = config
        self._stop = stop
        self._around = surroundings
        self._trade_from = trade_from
        self._timeframe = Timeframe.parse(terms.timeframe)
        self._clock = VenueClock(judged=config.clock == "checked")
        self._health = _FeedHealth()
        self._session: Session | None = None
        self._venue_ms: int | None = None
        self._ledger_error: str | None = None
        self._revisions: dict[int, tuple[float, ...]] = {}
        self._skewed = False
        self._started_local_ms = surroundings.local_ms()
        self._loops = self._bars = 0
        self._next_look = self._next_beat = self._next_command = 0.0
        self.finished = False

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until asked to stop, or until the feed has no more bars."""
        self.start()
        try:
            while not (self._stop.requested or self.finished):
                self._stop.wait(self.turn())
        except Stopped:
            pass
        finally:
            self._guarded(self._beat)
        log.info("ends at a bar boundary; %d bars taken", self._bars)

    def start(self) -> None:
        """Recovery. Raises what makes trading on impossible: LedgerInconsistent, RunMismatch."""
        around = self._around
        self._session, notes = recover(
            self._ledger, self._setup, self._terms, new_run_id=around.new_run_id, local_ms=around.local_ms()
        )
        if not notes:
            log.info("run %s begins with %g", self._current.run.id, self._setup.initial_equity)
        for note in notes:
            log.info("%s", note)
            with self._ledger.transaction() as write:
                self._tell(write, "recovered", note)
        self._beat()

    def turn(self) -> float:
        """One turn of the loop. Returns the seconds until the next one."""
        self._loops += 1
        now = self._around.seconds()
        if now >= self._next_command:
            self._next_command = now + self._config.command_seconds
            self._guarded(self._obey)
        if self._around.seconds() >= self._next_look:
            self._guarded(self._look)
        now = self._around.seconds()
        if now >= self._next_beat:
            self._next_beat = now + self._config.heartbeat_seconds
            self._around.hold()  # without the lock another process may be trading: end rather than go on
            self._guarded(self._beat)
        due = min(self._next_look, self._next_command, self._next_beat)
        return max(due - self._around.seconds(), 0.0)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something that writes. A ledger that cannot be written now is tried again; nothing is lost meanwhile,
        because what was not committed did not happen."""
        try:
            if self._session is None:
                self._session = load(self._ledger, self._setup)
            work()
            self._ledger_error = None
        except (LedgerBusy, LedgerFull, LedgerUnreachable, AlreadyRecorded) as error:
            log.error("%s", error)
            self._ledger_error = str(error)
            self._session = None  # a commit may have happened although its answer was lost
            self._next_look = self._around.seconds() + self._config.retry_base_seconds

    # --- bars --------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Ask the feed for the time and for bars, and take what is new."""
        session = self._current
        length = self._timeframe.milliseconds
        try:
            with self._stop.interruptible():
                time = self._clock.look(self._feed.read_clock())
                closed_by = time.now_ms - round(self._config.grace_seconds * 1_000.0)
                if session.cursor is None:
                    page = self._history(closed_by)
                else:
                    since = session.cursor + length - self._config.overlap_bars * length
                    page = self._named(self._feed.closed_bars(since=since, now=closed_by))
        except FeedUnavailable as error:
            self._failed(error)
            return
        self._succeeded(time.now_ms)
        self._notice_clock(time.skew_seconds, time.jumped_back_ms)
        if session.cursor is None:
            fresh = self._warm_up(page, time.now_ms)
        else:
            self._notice_revisions(page)
            fresh = page.between(session.cursor + 1, None)
        taken = 0
        for row in range(len(fresh)):
            if self._stop.requested:
                return
            self._take(fresh.slice(row, row + 1), time.now_ms, newest=int(fresh.timestamp[-1]))
            taken += 1
        self._watch(time.now_ms)
        self.finished = self._feed.finished()
        self._schedule(time.now_ms, closed_by, taken)

    def _schedule(self, now_ms: int, closed_by: int, taken: int) -> None:
        """When to look again: when the next bar should be there, soon if it is overdue or there is more to fetch."""
        cursor, length = self._current.cursor, self._timeframe.milliseconds
        wait = self._config.poll_seconds
        if cursor is not None:
            due = cursor + 2 * length
            if due > closed_by:
                self._health.overdue = 0
                wait = self._feed.seconds_until(due + now_ms - closed_by, now=now_ms)
            elif taken:
                wait = 0.0
            else:
                # Perhaps this bar never comes; the one after it must not be found late for that.
                following = self._timeframe.floor(closed_by) + length
                wait = min(
                    self._config.overdue_seconds * 2.0**self._health.overdue,
                    self._feed.seconds_until(following + now_ms - closed_by, now=now_ms),
                )
                self._health.overdue = min(self._health.overdue + 1, 20)
        self._next_look = self._around.seconds() + min(wait, self._config.poll_seconds)

    def _history(self, closed_by: int) -> Bars:
        """Closed bars before a first decision: as many as it needs, and more where they come in one page."""
        needed = self._setup.history_bars
        last = closed_by if self._trade_from is None else min(closed_by, self._trade_from)
        back = needed
        for _ in range(_DOUBLINGS):
            since = max(self._timeframe.floor(last) - back * self._timeframe.milliseconds, 0)
            pages = [self._feed.closed_bars(since=since, now=closed_by)]
            while len(pages[-1]) and int(pages[-1].timestamp[-1]) + 2 * self._timeframe.milliseconds <= closed_by:
                page = self._feed.closed_bars(since=int(pages[-1].timestamp[-1]) + 1, now=closed_by)
                if len(page) == 0:
                    break
                pages.append(page)
            found = self._named(concatenate(pages))
            if len(found.between(None, last)) >= needed or since == 0:
                break
            back *= 2
        return found

    def _warm_up(self, bars: Bars, now_ms: int) -> Bars:
        """Record the history of a new run, and return the bars after it, which may be traded."""
        if len(bars) == 0:
            return bars
        late = self._config.late_after_ms(self._timeframe)
        fresh_from = now_ms - late - self._timeframe.milliseconds
        first = fresh_from if self._trade_from is None else self._trade_from
        # A decision needs bars before it: until there are enough, bars are history.
        split = min(max(int(np.searchsorted(bars.timestamp, first)), self._setup.history_bars - 1), len(bars))
        history = bars.slice(max(split - self._setup.history_bars, 0), split)
        if len(history) == 0:
            return bars
        session = self._current
        with self._ledger.transaction() as write:
            record_warmup(
                write, session.run, history, cursor=None, continuous=self._feed.continuous, moment=self._moment(now_ms)
            )
        self._session = advanced(
            session, standing=session.standing, history=history, cursor=int(history.timestamp[-1]), traded=False
        )
        log.info("history: %d bars up to %s", len(history), format_time(int(history.timestamp[-1])))
        return bars.slice(split, None)

    def _take(self, bar: Bars, now_ms: int, *, newest: int) -> None:
        """Take the account through one new bar. The step is computed first; then one transaction.

        newest: open time of the newest bar there is: while missed bars are caught up with, the data are not old.
        """
        session, setup = self._current, self._setup
        known = [] if session.history is None else [session.history]
        history = concatenate([*known, bar]).slice(-setup.history_bars, None)
        ts = int(bar.timestamp[-1])
        verdict, note = judge(
            history,
            now_ms=now_ms,
            late_after_ms=self._config.late_after_ms(self._timeframe),
            continuous=self._feed.continuous,
            hold_after_gap=self._config.hold_after_gap_bars or setup.model.window,
        )
        moment = self._moment(now_ms)
        waiting = session.run.first_bar_ts is None and verdict is Verdict.LATE
        if len(history) < setup.history_bars or waiting:  # a run begins with a decision
            with self._ledger.transaction() as write:
                record_warmup(
                    write, session.run, bar, cursor=session.cursor, continuous=self._feed.continuous, moment=moment
                )
            self._session = advanced(session, standing=session.standing, history=history, cursor=ts, traded=False)
            return
        step = take_bar(
            setup,
            session.standing,
            history,
            verdict=verdict,
            vitals=self._vitals(now_ms, newest),
            note=note,
            stopwatch=self._around.seconds,
        )
        with self._ledger.transaction() as write:
            record_step(
                write,
                session.run,
                step,
                cursor=session.cursor,
                before=session.standing.guards,
                first_close=session.first_close or step.bar.close,
                continuous=self._feed.continuous,
                model=setup.model,
                moment=moment,
            )
        self._session = advanced(session, standing=step.standing, history=history, cursor=ts, traded=True)
        self._bars += 1
        _log_step(step, session.standing.guards)

    def _notice_revisions(self, page: Bars) -> None:
        """A closed bar that is told differently now is worth an event; the decision on it stands."""
        history, cursor = self._current.history, self._current.cursor
        if history is None or cursor is None:
            return
        for row in range(len(page)):
            ts = int(page.timestamp[row])
            place = int(np.searchsorted(history.timestamp, ts))
            if ts > cursor or ts < int(history.timestamp[0]):
                continue
            told = tuple(float(getattr(page, name)[row]) for name in VALUE_COLUMNS)
            recorded = int(history.timestamp[place]) == ts
            ours = tuple(float(getattr(history, name)[place]) for name in VALUE_COLUMNS) if recorded else None
            if told in (ours, self._revisions.get(ts)):
                continue
            what = "revises the bar of" if recorded else "now has the missing bar of"
            text = f"{self._feed.venue} {what} {format_time(ts)}; what was decided stands"
            data = {"bar_ts": ts, "recorded": ours, "told": told, "columns": VALUE_COLUMNS}
            with self._ledger.transaction() as write:
                self._tell(write, "bar_revised" if recorded else "bar_late", text, "warning", data)
            self._revisions[ts] = told
        # What no page will show again need not be remembered.
        oldest = cursor - 2 * self._config.overlap_bars * self._timeframe.milliseconds
        self._revisions = {ts: told for ts, told in self._revisions.items() if ts >= oldest}

    # --- how the outside is doing ------------------------------------------------------------------------------------

    def _failed(self, error: FeedUnavailable) -> None:
        """No good answer: wait longer each time, and let the guards know."""
        health, config = self._health, self._config
        health.errors += 1
        base = config.retry_limit_seconds if error.kind == "limit" else config.retry_base_seconds
        wait = min(base * 2.0 ** min(health.errors - 1, 30), config.retry_longest_seconds)
        wait *= 0.5 + 0.5 * self._around.spread()
        wait = max(wait, min(error.retry_after_seconds or 0.0, config.retry_longest_seconds))
        health.error, health.retry_seconds = str(error), wait
        self._next_look = self._around.seconds() + wait
        log.warning("%s; attempt %d in %.1f s", error, health.errors + 1, wait)
        if health.state != "unreachable":
            health.state, health.since_local_ms = "unreachable", self._around.local_ms()
            self._next_beat = 0.0
            with self._ledger.transaction() as write:
                self._tell(
                    write, "exchange_unreachable", f"Exchange unreachable: {error}", "error", {"kind": error.kind}
                )
        self._watch(self._clock.estimate(self._around.local_ms()))

    def _succeeded(self, venue_ms: int) -> None:
        health = self._health
        self._venue_ms = venue_ms
        if health.state == "unreachable":
            self._next_beat = 0.0
            text = f"Exchange reachable again after {health.errors} failed request{'s' if health.errors > 1 else ''}"
            log.info(text)
            with self._ledger.transaction() as write:
                self._tell(write, "exchange_reachable", text)
        if health.state != "ok":
            health.state, health.since_local_ms = "ok", self._around.local_ms()
        health.errors, health.error, health.retry_seconds = 0, None, None

    def _notice_clock(self, skew_seconds: float, jumped_back_ms: int) -> None:
        if jumped_back_ms:
            back = jumped_back_ms / 1_000.0
            text = f"The venue's clock is {back:.1f} s behind an earlier look; no bar is decided on twice"
            log.warning(text)
            with self._ledger.transaction() as write:
                self._tell(write, "clock_jumped_back", text, "warning", {"jumped_back_ms": jumped_back_ms})
        skewed = abs(skew_seconds) > self._config.skew_warning_seconds
        if skewed != self._skewed:
            self._skewed = skewed
            text = (
                f"This machine's clock differs by {skew_seconds:+.1f} s from the exchange's"
                if skewed
                else "This machine's clock agrees with the exchange's again"
            )
            log.warning(text)
            with self._ledger.transaction() as write:
                self._tell(write, "clock_skew", text, "warning" if skewed else "info", {"skew_seconds": skew_seconds})

    def _vitals(self, now_ms: int | None, newest: int | None) -> Vitals:
        age = 0.0
        # A market that closes has old bars every weekend.
        if now_ms is not None and newest is not None and self._feed.continuous:
            age = max(now_ms - self._timeframe.close_of(newest), 0) / self._timeframe.milliseconds
        return Vitals(
            data_age_bars=age, exchange_errors=self._health.errors, clock_skew_seconds=self._clock.skew_seconds
        )

    def _watch(self, now_ms: int | None) -> None:
        """Let the guards look at the outside between bars."""
        session = self._current
        before = session.standing.guards
        vitals = self._vitals(now_ms, session.cursor)
        after = guarding.after_vitals(before, self._setup.guards, vitals, now_ms=now_ms or self._around.local_ms())
        if (after.mode, after.causes) != (before.mode, before.causes):
            self._change_guards(after)

    # --- commands ----------------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Carry out what was asked, oldest first, and look at the kill switch.

        Commands change what may be ordered at the next close. An order that is pending met the open of the present bar
        already, only nobody knows yet how.
        """
        with self._ledger.reading() as read:
            pending = read.pending_commands()
        for command in pending:
            if command.confirm != command.kind:
                self._refuse(command, f'expected confirm to be "{command.kind}"')
            elif command.kind == "reset":
                self._reset(command)
            elif command.kind == "resume" and self._around.kill_switch.exists():
                self._refuse(command, f"the kill-switch file {self._around.kill_switch} is there; remove it first")
            else:
                self._carry_out(command)
        if self._guards.mode is not Mode.HALTED and self._around.kill_switch.exists():
            note = f"kill-switch file {self._around.kill_switch}"
            after = guarding.halt(
                self._guards, self._setup.guards, cause=Cause.KILL_SWITCH, now_ms=self._now_ms, note=note
            )
            self._change_guards(after)
            log.warning("halted: %s", note)

    def _carry_out(self, command: CommandRow) -> None:
        before, config, now = self._guards, self._setup.guards, self._now_ms
        note = f"{_DONE[command.kind]} by {command.requested_by}: {command.reason}"
        if command.kind == "resume":
            after = guarding.resume(before, config, now_ms=now)
            result = f"{after.mode}" + (f": {after.reason}" if after.reason else "")
        else:
            flatten = command.kind == "flatten" and self._units != 0.0
            after = guarding.halt(before, config, cause=Cause.COMMAND, now_ms=now, flatten=flatten, note=note)
            closes = "; the position closes at the next bar" if flatten else ""
            result = f"halted{closes}" if before.mode is not Mode.HALTED else f"was halted before{closes}"
        session = self._current
        with self._ledger.transaction() as write:
            record_guards(write, session.run, before, after, local_ms=self._around.local_ms())
            write.finish_command(command.id, "done", result, now_ms=self._around.local_ms())
            self._tell(write, "command", f"{note} ({result})", data={"command": command.id, "kind": command.kind})
        self._session = _with_guards(session, after)
        self._next_beat = 0.0
        log.info("%s (%s)", note, result)

    def _refuse(self, command: CommandRow, why: str) -> None:
        with self._ledger.transaction() as write:
            write.finish_command(command.id, "refused", why, now_ms=self._around.local_ms())
            text = f"{command.kind} asked by {command.requested_by} was refused: {why}"
            self._tell(write, "command", text, "warning", {"command": command.id, "kind": command.kind})
        log.warning("%s", text)

    def _reset(self, command: CommandRow) -> None:
        """End this run and begin another, in one transaction; the ledger as it was is kept beside it."""
        old, local_ms = self._current, self._around.local_ms()
        begun: list[Session] = []

        def begin(write: Writer) -> None:
            session = begin_run(
                write, self._setup, self._terms, run_id=self._around.new_run_id(), local_ms=local_ms
            )  # fmt: skip
            if old.history is not None and old.cursor is not None:
                moment = Moment(venue_ms=self._now_ms, local_ms=local_ms)
                record_warmup(
                    write, session.run, old.history, cursor=None, continuous=self._feed.continuous, moment=moment
                )
                session = advanced(
                    session, standing=session.standing, history=old.history, cursor=old.cursor, traded=False
                )
            result = f"run {old.run.id} is archived, run {session.run.id} begins"
            write.finish_command(command.id, "done", result, now_ms=local_ms)
            begun.append(session)

        kept = archive(self._ledger, old.run.id, directory=self._around.backups, now_ms=local_ms, also=begin)
        [self._session] = begun
        self._next_beat = 0.0
        log.info("reset by %s: the ledger as it was is %s", command.requested_by, kept)

    def _change_guards(self, after: GuardState) -> None:
        session = self._current
        with self._ledger.transaction() as write:
            record_guards(write, session.run, session.standing.guards, after, local_ms=self._around.local_ms())
        self._session = _with_guards(session, after)
        self._next_beat = 0.0

    # --- saying so ---------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        state = self.describe()
        with self._ledger.transaction() as write:
            write.beat(HeartbeatRow(process=PROCESS, ts_ms=self._around.local_ms(), state_json=state.to_json()))

    def describe(self) -> HeartbeatState:
        """What the heartbeat says."""
        session, health = self._session, self._health
        run = None if session is None else session.run
        cursor = None if session is None else session.cursor
        guards = None if session is None else session.standing.guards
        now = self._clock.estimate(self._around.local_ms())
        age = None
        if now is not None and cursor is not None:
            age = max(now - self._timeframe.close_of(cursor), 0) / 1_000.0
        return HeartbeatState(
            pid=self._around.pid,
            started_local_ms=self._started_local_ms,
            loops=self._loops,
            bars=self._bars,
            run_id=None if run is None else run.id,
            model=self._setup.model.label,
            instrument=self._setup.instrument.symbol,
            timeframe=self._terms.timeframe,
            venue=self._terms.venue,
            feed="finished" if self.finished else health.state,  # type: ignore[arg-type]
            feed_since_ms=health.since_local_ms,
            last_error=health.error,
            errors=health.errors,
            retry_seconds=health.retry_seconds,
            ledger_error=self._ledger_error,
            venue_ms=self._venue_ms,
            clock_offset_ms=self._clock.offset_ms,
            clock_skew_ms=round(self._clock.skew_seconds * 1_000.0),
            last_bar_ts=cursor,
            data_age_seconds=age,
            next_bar_due_ms=None if cursor is None else cursor + 2 * self._timeframe.milliseconds,
            mode=(guards.mode if guards is not None else Mode.ACTIVE).value,
            mode_reason="" if guards is None else guards.reason,
            degraded=self._degraded(guards, age),
        )

    def _degraded(self, guards: GuardState | None, age_seconds: float | None) -> str | None:
        """Why it does not trade as it should, the worst first."""
        if self._ledger_error is not None:
            return f"the ledger cannot be written: {self._ledger_error}"
        if self._health.state == "unreachable":
            return f"exchange unreachable: {self._health.error}"
        if self.finished:
            return "the replay is at its end"
        if guards is not None and guards.mode is not Mode.ACTIVE:
            return f"{guards.mode}: {guards.reason}"
        if self._feed.continuous and age_seconds is not None and age_seconds > 2 * self._timeframe.seconds:
            return f"the newest bar closed {age_seconds:.0f} s ago"
        return None

    def _tell(
        self,
        write: Writer,
        kind: str,
        message: str,
        severity: Severity = "info",
        data: Mapping[str, object] | None = None,
    ) -> None:
        run_id = None if self._session is None else self._session.run.id
        write.append_event(
            kind,
            message,
            ts_ms=self._around.local_ms(),
            severity=severity,
            run_id=run_id,
            data_json=json.dumps(data or {}, allow_nan=False),
        )

    # --- small things ------------------------------------------------------------------------------------------------

    @property
    def _current(self) -> Session:
        assert self._session is not None, "recovered before anything else"
        return self._session

    @property
    def _guards(self) -> GuardState:
        return self._current.standing.guards

    @property
    def _units(self) -> float:
        session = self._current.standing.session
        return 0.0 if session is None else float(session["account"]["units"])

    @property
    def _now_ms(self) -> int:
        """The venue's time as far as known."""
        local_ms = self._around.local_ms()
        return self._clock.estimate(local_ms) or local_ms

    def _moment(self, venue_ms: int) -> Moment:
        return Moment(venue_ms=venue_ms, local_ms=self._around.local_ms())

    def _named(self, bars: Bars) -> Bars:
        """The feed's bars under the run's names, as the ledger gives them back."""
        return Bars(
            self._setup.instrument.symbol, bars.timeframe, self._terms.venue, bars.timestamp,
            **{name: getattr(bars, name) for name in VALUE_COLUMNS},
        )  # fmt: skip


_DONE: Final[dict[CommandKind, str]] = {"halt": "halted", "resume": "resumed", "flatten": "flattened"}


def _with_guards(session: Session, guards: GuardState) -> Session:
    return Session(
        run=session.run,
        standing=Standing(session.standing.session, guards),
        history=session.history,
        cursor=session.cursor,
        first_close=session.first_close,
    )


def _log_step(step: Step, before: GuardState) -> None:
    record = step.record
    log.info(
        "%s %s %s: equity %.2f, exposure %+.2f. %s",
        format_time(record.timestamp),
        record.instrument,
        step.status.value,
        record.equity,
        record.exposure,
        step.reason,
    )
    after = step.standing.guards
    if after.mode is not before.mode:
        log.warning("guards: %s: %s", after.mode, after.reason)
