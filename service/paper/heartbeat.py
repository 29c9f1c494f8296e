"""What the paper process says about itself while it runs, and what a health check makes of it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, Self

PROCESS: Final = "paper"

# A loop that has not said a word for this long hangs: it beats every few seconds, and no request takes this long.
SILENT_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class HeartbeatState:
    """The keys of `heartbeat.state_json` of the process "paper".

    Fields that end in _local_ms and feed_since_ms are by this machine's clock, the other times by the venue's.

    feed: None until it was asked; "ok": its last answer was good; "unreachable": there was none, or a bad one;
        "finished": a replay is at its end. feed_since_ms: since when.
    last_error: of the feed, None while it is well. errors: failed requests in a row. retry_seconds: until the next try.
    ledger_error: why the last write failed, None when it did not.
    venue_ms: the venue's time at the last look. clock_offset_ms: venue's clock minus this machine's, None if the venue
        does not tell its time. clock_skew_ms: the same where it should be zero; 0 for a mock or a replay.
    last_bar_ts: open of the newest bar that is done with. data_age_seconds: since it closed. next_bar_due_ms: when the
        next one closes.
    mode, mode_reason: of the guards. degraded: why it does not trade as it should, in words; None when it does.
    loops: turns of the loop. bars: closed bars taken since the start. started_local_ms: start of the process.
    """

    pid: int
    started_local_ms: int
    loops: int
    bars: int
    run_id: str | None
    model: str
    instrument: str
    timeframe: str
    venue: str
    feed: Literal["ok", "unreachable", "finished"] | None
    feed_since_ms: int | None
    last_error: str | None
    errors: int
    retry_seconds: float | None
    ledger_error: str | None
    venue_ms: int | None
    clock_offset_ms: int | None
    clock_skew_ms: int
    last_bar_ts: int | None
    data_age_seconds: float | None
    next_bar_due_ms: int | None
    mode: str
    mode_reason: str
    degraded: str | None

    def to_json(self) -> str:
        """As the ledger keeps it."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Back again. Raises ValueError for what another version wrote."""
        content: Mapping[str, Any] = json.loads(text)
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            raise ValueError(
                f"heartbeat: expected the fields of this version, missing {sorted(names - set(content))}, unknown "
                f"{sorted(set(content) - names)}. API and paper process should be of one version"
            )
        return cls(**content)


@dataclass(frozen=True)
class Health:
    """The verdict of a health check, and its one line."""

    healthy: bool
    text: str


def judge_health(state: HeartbeatState | None, *, beat_local_ms: int | None, now_local_ms: int) -> Health:
    """Healthy: the loop turns, and either its data are fresh or it says openly why they are not.

    state, beat_local_ms: of the last heartbeat, None if there never was one.
    """
    if state is None or beat_local_ms is None:
        return Health(False, "the paper process has not reported yet")
    silent = (now_local_ms - beat_local_ms) / 1_000.0
    if silent > SILENT_SECONDS:
        return Health(False, f"the paper process has been silent for {silent:.0f} s")
    where = f"{state.instrument} {state.timeframe} on {state.venue}"
    if state.degraded is not None:
        return Health(True, f"degraded, {where}: {state.degraded}")
    age = "no bar yet" if state.data_age_seconds is None else f"newest bar closed {state.data_age_seconds:.0f} s ago"
    return Health(True, f"well, {where}: {state.mode}, {age}")
