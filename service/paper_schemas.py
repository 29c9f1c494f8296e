"""What the ledger's views say over the wire. Times are epoch milliseconds UTC; `bar_ts` and `ts` name a bar by its
open.

Money is in the quote currency. The lists are written from the ledger's rows without passing through these models, a
thousand rows being a thousand checks; a test holds the two together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.ledger.schema import BarStatus, CommandKind, CommandStatus, DecisionStatus, RiskMode, Severity
from service.paper.heartbeat import HeartbeatState

MAX_ROWS = 5000
LARGEST_TIME_MS = 253_402_300_799_999  # the end of the year 9999


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CommandRequest(BaseModel):
    """Something the trader is asked to do."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    confirm: str = Field(
        max_length=16, description="the name of the command, such as halt, so that none is sent by mistake"
    )
    reason: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")] = (
        Field(description="why, in one line; it is kept for the record")
    )


class Command(_Response):
    """A command and what became of it. The trader looks for commands every second or so."""

    id: int
    kind: CommandKind
    reason: str
    requested_by: str = Field(description="name of the key, or cli")
    requested_ms: int
    status: CommandStatus = Field(description="pending until the paper process has seen it")
    result: str | None
    handled_ms: int | None


class Problem(_Response):
    """Something that is not as it should be, in words."""

    kind: str = Field(description="stable name")
    severity: Severity
    message: str


class RunDescription(_Response):
    """One account's life under one model."""

    id: str
    created_ms: int
    model: str
    checkpoint_sha256: str
    instrument: str
    timeframe: str
    bar_ms: int = Field(description="length of a bar, ms")
    venue: str = Field(description="where its bars come from")
    seed: int
    initial_equity: float
    code_version: str
    first_bar_ts: int | None
    target_positions: list[float] = Field(description="position each action asks for, -1 to 1 of the largest leverage")
    max_leverage: float


class Guards(_Response):
    """What may be ordered, and why no more than that."""

    mode: RiskMode
    reason: str
    since_ms: int
    peak_equity: float
    day_open_equity: float
    trades_today: int
    exchange_errors: int


class Position(_Response):
    """What is held of one instrument."""

    instrument: str
    units: float
    average_price: float = Field(description="of entry, costs included; 0 when flat")
    exposure: float = Field(description="position value / equity")
    updated_ts: int


class AccountView(_Response):
    """The account at the last mark."""

    equity: float
    cash: float
    peak_equity: float
    drawdown_fraction: float
    buy_and_hold_equity: float | None = Field(description="of an account that bought at the start and held")
    close: float | None = Field(description="last close")
    updated_ts: int


class Process(_Response):
    """The paper process, as it last described itself."""

    alive: bool = Field(description="whether its heartbeat is recent")
    heartbeat_ms: int
    heartbeat_age_seconds: float
    state: HeartbeatState | None = Field(
        description="feed, clock, data age and next bar as the process wrote them; null if it is of another version"
    )


class Counts(_Response):
    """How much there is."""

    decisions: int
    decided: int
    blocked: int
    skipped_late: int
    skipped_gap: int
    fills: int
    last_decision_id: int
    last_event_id: int


class PaperStatus(_Response):
    """How paper trading stands. Without a run, everything about one is null."""

    state: Literal["no_run", "running", "degraded", "stopped"] = Field(
        description="no_run: nothing was ever traded here. degraded: it runs, and a problem keeps it from trading as "
        "it should. stopped: the paper process does not answer"
    )
    detail: str = Field(description="the same in words")
    problems: list[Problem]
    now_ms: int
    run: RunDescription | None
    guards: Guards | None
    account: AccountView | None
    positions: list[Position]
    process: Process | None
    counts: Counts | None
    commands: list[Command] = Field(description="the latest, newest first")
    assumptions: list[str] = Field(description="what a simulated fill assumes, in words")


class DecisionView(_Response):
    """What was decided at the close of a bar, and what the search saw; null where nobody was asked."""

    id: int
    instrument: str
    timeframe: str
    bar_ts: int
    decided_ms: int
    status: DecisionStatus
    reason: str
    mode: RiskMode
    action: int | None
    target_position: float | None = Field(description="what the agent asked for, -1 to 1 of the largest leverage")
    policy: list[float] | None
    prior: list[float] | None
    value: float | None
    q_values: list[float] | None
    visits: list[int] | None
    outlook: list[dict[str, Any]] | None = Field(description="as in the answer of /v1/act")
    simulations: int | None
    depth: int | None
    model: str | None
    latency_ms: float | None


class Signal(DecisionView):
    """The last stored decision for a symbol."""

    stale: bool = Field(description="whether its bar closed more than two bars ago")
    age_seconds: float = Field(description="since its bar closed")


class FillView(_Response):
    """What an order became, and what it cost. Costs are positive when paid; profits and losses have their sign."""

    id: int
    order_id: int
    instrument: str
    bar_ts: int
    quantity: float
    price: float
    reference_price: float = Field(description="close on which it was decided")
    arrival_price: float = Field(description="where the order met the market")
    fraction: float = Field(description="of the order that filled")
    fee: float
    slippage_cost: float
    impact_cost: float
    latency_pnl: float
    gap_pnl: float
    bar_pnl: float
    funding: float
    liquidation_cost: float
    bad_debt: float


class BarView(_Response):
    """A closed bar as the trader received it."""

    ts: int
    instrument: str
    timeframe: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    received_ms: int
    status: BarStatus


class EquityView(_Response):
    """The account marked at the close of a bar."""

    ts: int
    equity: float
    cash: float
    units: float
    exposure: float
    close: float
    drawdown_fraction: float
    buy_and_hold_equity: float


class EventView(_Response):
    """Something worth telling a person."""

    id: int
    run_id: str | None
    ts_ms: int
    kind: str
    severity: Severity
    message: str
    data: dict[str, Any]


class _Rows(_Response):
    run_id: str | None = Field(description="the run that is shown; null when there is none")
    detail: str | None = Field(description="why there is nothing, when there is nothing")


class _TimedRows(_Rows):
    next_since: int | None = Field(description="what to ask for next as `since`; null when nothing was found")


class Positions(_Rows):
    """What is held."""

    items: list[Position]


class Decisions(_TimedRows):
    """Oldest first."""

    items: list[DecisionView]


class Fills(_TimedRows):
    """Oldest first."""

    items: list[FillView]


class BarRows(_TimedRows):
    """Oldest first."""

    items: list[BarView]


class EquityRows(_TimedRows):
    """Oldest first."""

    items: list[EquityView]


class Events(_Rows):
    """Oldest first."""

    items: list[EventView]
    next_after: int | None = Field(description="what to ask for next as `after`; null when nothing was found")
