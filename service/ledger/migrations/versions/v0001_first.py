"""The first schema.

Written out, not taken from `schema.py`: this is what version 0001 was, whatever the tables become later.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table of an empty database."""
    _create(
        "run",
        _text("id"),
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
        sa.PrimaryKeyConstraint("id", name="pk_run"),
    )
    op.create_index("ix_run_created_ms", "run", ["created_ms"])
    _create(
        "bar",
        _text("run_id"),
        _integer("ts"),
        _text("instrument"),
        _text("timeframe"),
        _number("open"),
        _number("high"),
        _number("low"),
        _number("close"),
        _number("volume"),
        _integer("received_ms"),
        _text("status"),
        sa.PrimaryKeyConstraint("run_id", "ts", "instrument", "timeframe", name="pk_bar"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_bar_run_id"),
        sa.CheckConstraint("status IN ('used', 'skipped_late', 'skipped_gap', 'warmup')", name=op.f("ck_bar_status")),
    )
    _create(
        "gap",
        _text("run_id"),
        _integer("first_ts"),
        _text("instrument"),
        _text("timeframe"),
        _integer("last_ts"),
        _text("reason"),
        _integer("recorded_ms"),
        sa.PrimaryKeyConstraint("run_id", "first_ts", "instrument", "timeframe", name="pk_gap"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_gap_run_id"),
        sa.CheckConstraint("last_ts >= first_ts", name=op.f("ck_gap_order")),
        sa.CheckConstraint("reason IN ('missing', 'closed')", name=op.f("ck_gap_reason")),
    )
    _create(
        "decision",
        _id(),
        _text("run_id"),
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
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_decision_run_id"),
        sa.UniqueConstraint("run_id", "bar_ts", "instrument", "timeframe", name="uq_decision_run_id"),
        sa.CheckConstraint("mode IN ('ACTIVE', 'REDUCING', 'HALTED')", name=op.f("ck_decision_mode")),
        sa.CheckConstraint(
            "status IN ('decided', 'skipped_late', 'skipped_gap', 'blocked')", name=op.f("ck_decision_status")
        ),
    )
    op.create_index("ix_decision_run_id_status", "decision", ["run_id", "status"])
    _create(
        "orders",
        _id(),
        _text("run_id"),
        _integer("decision_id"),
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
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_orders_decision_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_orders_run_id"),
        sa.UniqueConstraint("decision_id", name="uq_orders_decision_id"),
        sa.CheckConstraint(
            "status IN ('pending', 'filled', 'partial', 'cancelled', 'empty')", name=op.f("ck_orders_status")
        ),
    )
    op.create_index("ix_orders_run_id_submitted_ts", "orders", ["run_id", "submitted_ts"])
    _create(
        "fill",
        _id(),
        _text("run_id"),
        _integer("order_id"),
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
        sa.PrimaryKeyConstraint("id", name="pk_fill"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_fill_order_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_fill_run_id"),
        sa.UniqueConstraint("order_id", name="uq_fill_order_id"),
        sa.UniqueConstraint("run_id", "bar_ts", "instrument", name="uq_fill_run_id"),
    )
    _create(
        "position",
        _text("run_id"),
        _text("instrument"),
        _number("units"),
        _number("average_price"),
        _number("exposure"),
        _integer("updated_ts"),
        sa.PrimaryKeyConstraint("run_id", "instrument", name="pk_position"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_position_run_id"),
    )
    _create(
        "account",
        _text("run_id"),
        _number("cash"),
        _number("equity"),
        _number("peak_equity"),
        _text("session_state_json"),
        _integer("updated_ts"),
        sa.PrimaryKeyConstraint("run_id", name="pk_account"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_account_run_id"),
    )
    _create(
        "cursor",
        _text("run_id"),
        _text("instrument"),
        _text("timeframe"),
        _integer("last_bar_ts"),
        _integer("updated_ms"),
        sa.PrimaryKeyConstraint("run_id", "instrument", "timeframe", name="pk_cursor"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_cursor_run_id"),
    )
    _create(
        "equity",
        _text("run_id"),
        _integer("ts"),
        _number("equity"),
        _number("cash"),
        _number("units"),
        _number("exposure"),
        _number("close"),
        _number("drawdown_fraction"),
        _number("buy_and_hold_equity"),
        _text("record_json"),
        sa.PrimaryKeyConstraint("run_id", "ts", name="pk_equity"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_equity_run_id"),
    )
    _create(
        "risk_state",
        _text("run_id"),
        _text("mode"),
        _text("reason"),
        _integer("since_ms"),
        _number("peak_equity"),
        _integer("day", optional=True),
        _number("day_open_equity"),
        _integer("trades_today"),
        _integer("exchange_errors"),
        _text("state_json"),
        sa.PrimaryKeyConstraint("run_id", name="pk_risk_state"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_risk_state_run_id"),
        sa.CheckConstraint("mode IN ('ACTIVE', 'REDUCING', 'HALTED')", name=op.f("ck_risk_state_mode")),
    )
    _create(
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
        sa.PrimaryKeyConstraint("id", name="pk_command"),
        sa.CheckConstraint("kind IN ('halt', 'resume', 'flatten', 'reset')", name=op.f("ck_command_kind")),
        sa.CheckConstraint("status IN ('pending', 'done', 'refused')", name=op.f("ck_command_status")),
    )
    op.create_index("ix_command_status_id", "command", ["status", "id"])
    _create(
        "idempotency",
        _id(),
        _text("scope"),
        _text("key"),
        _text("body_sha256"),
        _integer("status"),
        _text("response"),
        _integer("created_ms"),
        sa.PrimaryKeyConstraint("id", name="pk_idempotency"),
        sa.UniqueConstraint("scope", "key", name="uq_idempotency_scope"),
    )
    op.create_index("ix_idempotency_created_ms", "idempotency", ["created_ms"])
    _create(
        "event",
        _id(),
        _text("run_id", optional=True),
        _integer("ts_ms"),
        _text("kind"),
        _text("severity"),
        _text("message"),
        _text("data_json"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_event_run_id"),
        sa.CheckConstraint("severity IN ('info', 'warning', 'error')", name=op.f("ck_event_severity")),
    )
    _create(
        "heartbeat",
        _text("process"),
        _integer("ts_ms"),
        _text("state_json"),
        sa.PrimaryKeyConstraint("process", name="pk_heartbeat"),
    )


def _create(name: str, *items: Any) -> None:
    numbered = any(isinstance(item, sa.Column) and item.autoincrement is True for item in items)
    op.create_table(name, *items, sqlite_strict=True, sqlite_autoincrement=numbered)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False)


def _integer(name: str, *, optional: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, autoincrement=False, nullable=optional)


def _number(name: str, *, optional: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double().with_variant(sa.REAL(), "sqlite"), nullable=optional)


def _text(name: str, *, optional: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=optional)
