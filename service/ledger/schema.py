"""What the ledger stores: its tables, and one frozen row type per table.

All times are epoch milliseconds UTC in 64-bit integers; `ts` and `bar_ts` name a bar by its *open*, as everywhere.
Money is float64 in the quote currency, kept to the last bit (but for the sign of a zero, which SQLite drops). `*_json`
columns hold one JSON document as text. A column and the field of its row type have the same name; `id: int = UNSTORED`
is numbered by the database when the row is inserted.

Everything that belongs to a run carries its `run_id`, bars included: two runs may see different bars of one symbol (a
replay after a live run), and a reset begins a new run without touching the old one.

Who writes: the paper process writes everything but `command` (inserted by API and command line, marked by paper) and
`idempotency` (API).
"""

from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

# The newest migration this code knows (service/ledger/migrations/versions). Four digits, counted up by one.
SCHEMA_VERSION: Final = "0001"

# `id` of a row that the database has not numbered yet.
UNSTORED: Final = 0

BarStatus = Literal["used", "skipped_late", "skipped_gap", "warmup"]
GapReason = Literal["missing", "closed"]
DecisionStatus = Literal["decided", "skipped_late", "skipped_gap", "blocked"]
OrderStatus = Literal["pending", "filled", "partial", "cancelled", "empty"]
RiskMode = Literal["ACTIVE", "REDUCING", "HALTED"]
CommandKind = Literal["halt", "resume", "flatten", "reset"]
CommandStatus = Literal["pending", "done", "refused"]
Severity = Literal["info", "warning", "error"]

BAR_STATUSES: Final = ("used", "skipped_late", "skipped_gap", "warmup")
GAP_REASONS: Final = ("missing", "closed")
DECISION_STATUSES: Final = ("decided", "skipped_late", "skipped_gap", "blocked")
ORDER_STATUSES: Final = ("pending", "filled", "partial", "cancelled", "empty")
RISK_MODES: Final = ("ACTIVE", "REDUCING", "HALTED")
COMMAND_KINDS: Final = ("halt", "resume", "flatten", "reset")
COMMAND_STATUSES: Final = ("pending", "done", "refused")
SEVERITIES: Final = ("info", "warning", "error")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite's strict tables (each value has the type of its column, or is refused) know INTEGER, REAL and TEXT; both
# numbers are 64 bits wide there.
_INT: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
_FLOAT: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")


def _number(name: str, *, optional: bool = False) -> Column[float]:
    return Column(name, _FLOAT, nullable=optional)


def _integer(name: str, *, optional: bool = False, key: bool = False) -> Column[int]:
    return Column(name, _INT, nullable=optional, primary_key=key, autoincrement=False)


def _text(name: str, *, optional: bool = False, key: bool = False) -> Column[str]:
    return Column(name, Text, nullable=optional, primary_key=key)


def _id() -> Column[int]:
    return Column("id", _INT, primary_key=True, autoincrement=True)


def _run(*, key: bool = False, optional: bool = False) -> Column[str]:
    return Column("run_id", Text, ForeignKey("run.id"), primary_key=key, nullable=optional)


def _one_of(column: str, choices: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(choice) for choice in choices)})", name=column)


def _table(name: str, *items: SchemaItem) -> Table:
    # Autoincrement: an id that retention has freed is never given to another row.
    numbered = any(isinstance(item, Column) and item.name == "id" and item.autoincrement is True for item in items)
    return Table(name, metadata, *items, sqlite_strict=True, sqlite_autoincrement=numbered)


# --- a run and what it saw -------------------------------------------------------------------------------------------

run = _table(
    "run",
    _text("id", key=True),
    _integer("created_ms"),
    _text("model"),
    _text("checkpoint_sha256"),
    _text("config_json"),
    _text("market_json"),
    _text("instrument_json"),
    _integer("seed"),
    _text("instrument"),
    _text("timeframe"),
    _text("venue"),
    _number("initial_equity"),
    _text("code_version"),
    _integer("first_bar_ts", optional=True),
    _integer("archived_ms", optional=True),
    Index(None, "created_ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One account's life under one model, from its first bar to a reset. At most one run is not archived.

    config_json: everything that shaped the run, resolved. market_json, instrument_json: `MarketConfig` and `Instrument`
    (`model_dump_json`), from which a replay rebuilds the account. seed: of the fill draws. venue: where the bars come
    from, such as "ccxt:binance", "replay:FILE" or "synthetic". first_bar_ts: the first bar that was traded through
    (`on_bar`), None before it.
    """

    id: str
    created_ms: int
    model: str
    checkpoint_sha256: str
    config_json: str
    market_json: str
    instrument_json: str
    seed: int
    instrument: str
    timeframe: str
    venue: str
    initial_equity: float
    code_version: str
    first_bar_ts: int | None = None
    archived_ms: int | None = None


bar = _table(
    "bar",
    _run(key=True),
    _integer("ts", key=True),
    _text("instrument", key=True),
    _text("timeframe", key=True),
    _number("open"),
    _number("high"),
    _number("low"),
    _number("close"),
    _number("volume"),
    _integer("received_ms"),
    _text("status"),
    _one_of("status", BAR_STATUSES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BarRow:
    """A closed bar as the run received it.

    status: "warmup" bars only fed the features; the account went through all others ("used": with a decision at its
    close; "skipped_*": marked only, no decision).
    """

    run_id: str
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


gap = _table(
    "gap",
    _run(key=True),
    _integer("first_ts", key=True),
    _text("instrument", key=True),
    _text("timeframe", key=True),
    _integer("last_ts"),
    _text("reason"),
    _integer("recorded_ms"),
    _one_of("reason", GAP_REASONS),
    CheckConstraint("last_ts >= first_ts", name="order"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRow:
    """Bars that never came: opens first_ts to last_ts, both included. Nothing stands in for them.

    reason: "missing" (the venue has no such bar) or "closed" (the market was not open).
    """

    run_id: str
    first_ts: int
    instrument: str
    timeframe: str
    last_ts: int
    reason: GapReason
    recorded_ms: int


# --- decisions, orders, fills ----------------------------------------------------------------------------------------

decision = _table(
    "decision",
    _id(),
    _run(),
    _text("instrument"),
    _text("timeframe"),
    _integer("bar_ts"),
    _integer("decided_ms"),
    _text("status"),
    _text("reason"),
    _text("mode"),
    _integer("action", optional=True),
    _number("target_position", optional=True),
    _text("policy_json", optional=True),
    _text("prior_json", optional=True),
    _number("value", optional=True),
    _text("q_values_json", optional=True),
    _text("visits_json", optional=True),
    _text("outlook_json", optional=True),
    _integer("simulations", optional=True),
    _integer("depth", optional=True),
    _text("model", optional=True),
    _number("latency_ms", optional=True),
    # One decision per closed bar. The time stands second so that the same index serves the pages of the API.
    UniqueConstraint("run_id", "bar_ts", "instrument", "timeframe"),
    # Rows are wide: counting by status must not read them.
    Index(None, "run_id", "status"),
    _one_of("status", DECISION_STATUSES),
    _one_of("mode", RISK_MODES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """What was decided at the close of a bar, and what the search saw. Never deleted.

    status: "decided"; "blocked" (a guard overruled the agent's answer); "skipped_*" (nobody was asked: the fields from
    action on are None). reason: for people. mode: of the guards at that time. target_position: what the agent asked
    for, -1 to 1 of the largest leverage (what was ordered stands in the order). value: of the root. latency_ms: of
    the search.
    """

    run_id: str
    instrument: str
    timeframe: str
    bar_ts: int
    decided_ms: int
    status: DecisionStatus
    reason: str
    mode: RiskMode
    action: int | None = None
    target_position: float | None = None
    policy_json: str | None = None
    prior_json: str | None = None
    value: float | None = None
    q_values_json: str | None = None
    visits_json: str | None = None
    outlook_json: str | None = None
    simulations: int | None = None
    depth: int | None = None
    model: str | None = None
    latency_ms: float | None = None
    id: int = UNSTORED


orders = _table(
    "orders",
    _id(),
    _run(),
    Column("decision_id", _INT, ForeignKey("decision.id"), nullable=False, unique=True),
    _text("instrument"),
    _integer("submitted_ts"),
    _number("target_position"),
    _number("target_exposure"),
    _number("quantity"),
    _number("limit_price"),
    _number("mark_price"),
    _number("sigma"),
    _number("median_volume"),
    _text("status"),
    _integer("filled_in_ts", optional=True),
    Index(None, "run_id", "submitted_ts"),
    _one_of("status", ORDER_STATUSES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRow:
    """One `TradingSession.submit`: every call has its row, also where the quantity came out as 0 ("empty").

    submitted_ts: the close on which it was decided (`Order.decided_at`). target_exposure: exactly as submitted;
    target_position: the same, -1 to 1 of the largest leverage. quantity: signed units. limit_price: 0 for a market
    order. mark_price: last close. sigma, median_volume: as submitted; with them a replay is exact. status: "pending"
    until the next bar, which fills it, fills a part, or cancels it; filled_in_ts: that bar, None while pending.
    """

    run_id: str
    decision_id: int
    instrument: str
    submitted_ts: int
    target_position: float
    target_exposure: float
    quantity: float
    limit_price: float
    mark_price: float
    sigma: float
    median_volume: float
    status: OrderStatus
    filled_in_ts: int | None = None
    id: int = UNSTORED


fill = _table(
    "fill",
    _id(),
    _run(),
    Column("order_id", _INT, ForeignKey("orders.id"), nullable=False, unique=True),
    _text("instrument"),
    _integer("bar_ts"),
    _number("quantity"),
    _number("price"),
    _number("reference_price"),
    _number("arrival_price"),
    _number("fraction"),
    _number("fee"),
    _number("slippage_cost"),
    _number("impact_cost"),
    _number("latency_pnl"),
    _number("gap_pnl"),
    _number("bar_pnl"),
    _number("funding"),
    _number("liquidation_cost"),
    _number("bad_debt"),
    UniqueConstraint("run_id", "bar_ts", "instrument"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FillRow:
    """What an order became in bar `bar_ts`; only where something filled. Never deleted.

    quantity: signed units (`qty_filled`). price: paid or received (`fill_price`). reference_price: the close on which
    it was decided. arrival_price: where it met the market. fraction: of the order that filled. The rest as in
    `BarRecord`: costs positive when paid, money in the quote currency.
    """

    run_id: str
    order_id: int
    instrument: str
    bar_ts: int
    quantity: float
    price: float
    reference_price: float
    arrival_price: float
    fraction: float
    fee: float
    slippage_cost: float
    impact_cost: float
    latency_pnl: float
    gap_pnl: float
    bar_pnl: float
    funding: float
    liquidation_cost: float
    bad_debt: float
    id: int = UNSTORED


# --- where the run stands --------------------------------------------------------------------------------------------

position = _table(
    "position",
    _run(key=True),
    _text("instrument", key=True),
    _number("units"),
    _number("average_price"),
    _number("exposure"),
    _integer("updated_ts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRow:
    """What is held. average_price: of entry, costs included; 0 when flat. updated_ts: the last marked bar."""

    run_id: str
    instrument: str
    units: float
    average_price: float
    exposure: float
    updated_ts: int


account = _table(
    "account",
    _run(key=True),
    _number("cash"),
    _number("equity"),
    _number("peak_equity"),
    _text("session_state_json"),
    _integer("updated_ts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRow:
    """The account at the last mark. session_state_json: `TradingSession.get_state` after the last `submit`."""

    run_id: str
    cash: float
    equity: float
    peak_equity: float
    session_state_json: str
    updated_ts: int


cursor = _table(
    "cursor",
    _run(key=True),
    _text("instrument", key=True),
    _text("timeframe", key=True),
    _integer("last_bar_ts"),
    _integer("updated_ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorRow:
    """The last bar that is done with: everything up to it stands in the ledger, nothing after it does."""

    run_id: str
    instrument: str
    timeframe: str
    last_bar_ts: int
    updated_ms: int


equity = _table(
    "equity",
    _run(key=True),
    _integer("ts", key=True),
    _number("equity"),
    _number("cash"),
    _number("units"),
    _number("exposure"),
    _number("close"),
    _number("drawdown_fraction"),
    _number("buy_and_hold_equity"),
    _text("record_json"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EquityRow:
    """The account marked at the close of bar `ts`. record_json: every column of `BarRecord` but the action mask."""

    run_id: str
    ts: int
    equity: float
    cash: float
    units: float
    exposure: float
    close: float
    drawdown_fraction: float
    buy_and_hold_equity: float
    record_json: str


risk_state = _table(
    "risk_state",
    _run(key=True),
    _text("mode"),
    _text("reason"),
    _integer("since_ms"),
    _number("peak_equity"),
    _integer("day", optional=True),
    _number("day_open_equity"),
    _integer("trades_today"),
    _integer("exchange_errors"),
    _text("state_json"),
    _one_of("mode", RISK_MODES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskStateRow:
    """What the guards remember. state_json: `GuardState`, complete; the other columns are for reading.

    day: UTC days since the epoch, None before the first bar.
    """

    run_id: str
    mode: RiskMode
    reason: str
    since_ms: int
    peak_equity: float
    day: int | None
    day_open_equity: float
    trades_today: int
    exchange_errors: int
    state_json: str


# --- between the processes -------------------------------------------------------------------------------------------

command = _table(
    "command",
    _id(),
    _text("kind"),
    _text("reason"),
    _text("confirm"),
    _text("requested_by"),
    _integer("requested_ms"),
    _text("status"),
    _text("result", optional=True),
    _integer("handled_ms", optional=True),
    Index(None, "status", "id"),
    _one_of("kind", COMMAND_KINDS),
    _one_of("status", COMMAND_STATUSES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """Something a person asked of the trader. requested_by: the name of the key, or "cli". result: for people."""

    kind: CommandKind
    reason: str
    confirm: str
    requested_by: str
    requested_ms: int
    status: CommandStatus = "pending"
    result: str | None = None
    handled_ms: int | None = None
    id: int = UNSTORED


idempotency = _table(
    "idempotency",
    _id(),
    _text("scope"),
    _text("key"),
    _text("body_sha256"),
    _integer("status"),
    _text("response"),
    _integer("created_ms"),
    UniqueConstraint("scope", "key"),
    Index(None, "created_ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRow:
    """An answer that was given to (scope, key). scope: who asked for what, so that two clients may choose one key.

    status: of the HTTP answer. response: its body.
    """

    scope: str
    key: str
    body_sha256: str
    status: int
    response: str
    created_ms: int
    id: int = UNSTORED


event = _table(
    "event",
    _id(),
    _run(optional=True),
    _integer("ts_ms"),
    _text("kind"),
    _text("severity"),
    _text("message"),
    _text("data_json"),
    _one_of("severity", SEVERITIES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something worth telling a person. Ids only grow, in the order of commits, and are never given twice."""

    ts_ms: int
    kind: str
    severity: Severity
    message: str
    run_id: str | None = None
    data_json: str = "{}"
    id: int = UNSTORED


heartbeat = _table(
    "heartbeat",
    _text("process", key=True),
    _integer("ts_ms"),
    _text("state_json"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRow:
    """A process saying that its loop turns. state_json: feed state, last error, clock offset, data age, next bar."""

    process: str
    ts_ms: int
    state_json: str


TABLE_OF: Final[dict[type, Table]] = {
    RunRow: run,
    BarRow: bar,
    GapRow: gap,
    DecisionRow: decision,
    OrderRow: orders,
    FillRow: fill,
    PositionRow: position,
    AccountRow: account,
    CursorRow: cursor,
    EquityRow: equity,
    RiskStateRow: risk_state,
    CommandRow: command,
    IdempotencyRow: idempotency,
    EventRow: event,
    HeartbeatRow: heartbeat,
}
