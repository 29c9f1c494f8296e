"""A step as rows of the ledger. Everything one closed bar led to is written in one transaction, or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from data.bars import VALUE_COLUMNS, Bars
from data.quality import format_time
from data.timeframe import Timeframe
from market_env.guards import GuardState, Mode
from market_env.session import BarRecord
from service.ledger.schema import (
    AccountRow,
    BarRow,
    BarStatus,
    DecisionRow,
    EquityRow,
    FillRow,
    GapRow,
    OrderRow,
    OrderStatus,
    PositionRow,
    RiskStateRow,
    RunRow,
    Severity,
)
from service.ledger.store import Writer
from service.model import ServedModel
from service.paper.trader import Status, Step, Submission

_BAR_STATUS: Final[Mapping[Status, BarStatus]] = {
    Status.DECIDED: "used",
    Status.BLOCKED: "used",
    Status.SKIPPED_LATE: "skipped_late",
    Status.SKIPPED_GAP: "skipped_gap",
}
_MODE_SEVERITY: Final[Mapping[Mode, Severity]] = {Mode.ACTIVE: "info", Mode.REDUCING: "warning", Mode.HALTED: "error"}


@dataclass(frozen=True)
class Moment:
    """When something is written. venue_ms: by the venue's clock, local_ms: by this machine's."""

    venue_ms: int
    local_ms: int


def record_step(
    write: Writer,
    run: RunRow,
    step: Step,
    *,
    cursor: int | None,
    before: GuardState,
    first_close: float,
    continuous: bool,
    model: ServedModel,
    moment: Moment,
) -> None:
    """Write everything about a bar that the account went through.

    cursor: the bar the step was computed after; the ledger must stand there. before: the guards then. first_close: of
    the first bar traded. continuous: see `BarFeed`. model: who was asked.
    """
    ts = step.bar.timestamp
    claim(write, run, ts, cursor=cursor, continuous=continuous, moment=moment)
    write.insert_bars([_bar_row(run, step, moment)])
    if run.first_bar_ts is None:
        write.begin_trading(run.id, ts)
    _settle(write, run, step.record)
    decision_id = write.insert_decision(_decision_row(run, step, model.label, moment, model.target_positions))
    if step.submission is not None:
        write.insert_order(_order_row(run, step.submission, decision_id, model.max_leverage))
    account = step.standing.session
    assert account is not None, "a step leaves a session behind"
    state, record = account["account"], step.record
    write.insert_equity(
        EquityRow(
            run_id=run.id,
            ts=ts,
            equity=record.equity,
            cash=record.cash,
            units=record.units,
            exposure=record.exposure,
            close=step.bar.close,
            drawdown_fraction=record.drawdown,
            buy_and_hold_equity=run.initial_equity * step.bar.close / first_close,
            record_json=_record_json(record),
        )
    )
    write.put_position(
        PositionRow(
            run_id=run.id,
            instrument=run.instrument,
            units=record.units,
            average_price=state["entry_price"] if record.units != 0.0 else 0.0,
            exposure=record.exposure,
            updated_ts=ts,
        )
    )
    write.put_account(
        AccountRow(
            run_id=run.id,
            cash=record.cash,
            equity=record.equity,
            peak_equity=state["peak_equity"],
            session_state_json=_json(account),
            updated_ts=ts,
        )
    )
    record_guards(write, run, before, step.standing.guards, local_ms=moment.local_ms)
    if record.liquidated:
        write.append_event(
            "liquidated",
            f"The position was liquidated; equity {record.equity:.2f}",
            ts_ms=moment.local_ms,
            severity="error",
            run_id=run.id,
            data_json=_json({"bar_ts": ts}),
        )


def claim(write: Writer, run: RunRow, ts: int, *, cursor: int | None, continuous: bool, moment: Moment) -> None:
    """Claim the bar `ts`, and note the bars between it and the cursor, which never came."""
    write.advance_cursor(run.id, run.instrument, run.timeframe, expected=cursor, to=ts, now_ms=moment.local_ms)
    length = Timeframe.parse(run.timeframe).milliseconds
    if cursor is not None and ts - cursor > length:
        write.insert_gap(
            GapRow(
                run_id=run.id,
                first_ts=cursor + length,
                instrument=run.instrument,
                timeframe=run.timeframe,
                last_ts=ts - length,
                reason="missing" if continuous else "closed",
                recorded_ms=moment.local_ms,
            )
        )
        if continuous:
            missing = (ts - cursor) // length - 1
            write.append_event(
                "gap",
                f"{missing} bar{'s' if missing > 1 else ''} from {format_time(cursor + length)} on never came",
                ts_ms=moment.local_ms,
                severity="warning",
                run_id=run.id,
                data_json=_json({"first_ts": cursor + length, "last_ts": ts - length}),
            )


def record_warmup(
    write: Writer, run: RunRow, bars: Bars, *, cursor: int | None, continuous: bool, moment: Moment
) -> None:
    """Bars that only feed the features: the whole history at once (cursor None), or the one after the cursor."""
    claim(write, run, int(bars.timestamp[-1]), cursor=cursor, continuous=continuous, moment=moment)
    write.insert_bars(
        [
            BarRow(
                run_id=run.id,
                ts=int(bars.timestamp[row]),
                instrument=run.instrument,
                timeframe=run.timeframe,
                received_ms=moment.venue_ms,
                status="warmup",
                **{name: float(getattr(bars, name)[row]) for name in VALUE_COLUMNS},
            )
            for row in range(len(bars))
        ]
    )


def record_guards(write: Writer, run: RunRow, before: GuardState, after: GuardState, *, local_ms: int) -> None:
    """The guards' state, and an event when what may be ordered, or why, has changed."""
    write.put_risk_state(
        RiskStateRow(
            run_id=run.id,
            mode=after.mode.value,
            reason=after.reason,
            since_ms=after.since_ms,
            peak_equity=after.peak_equity,
            day=after.day,
            day_open_equity=after.day_open_equity,
            trades_today=after.trades_today,
            exchange_errors=after.vitals.exchange_errors,
            state_json=after.model_dump_json(),
        )
    )
    if (before.mode, before.reason) != (after.mode, after.reason):
        write.append_event(
            "guards",
            f"{after.mode}: {after.reason}" if after.reason else f"{after.mode}: trading as decided",
            ts_ms=local_ms,
            severity=_MODE_SEVERITY[after.mode],
            run_id=run.id,
            data_json=_json({"from": before.mode.value, "to": after.mode.value}),
        )


def bars_of(run: RunRow, rows: Sequence[BarRow]) -> Bars:
    """Rows of the ledger, oldest first, as bars."""
    columns: dict[str, Any] = {name: np.array([getattr(row, name) for row in rows]) for name in VALUE_COLUMNS}
    times = np.array([row.ts for row in rows], dtype=np.int64)
    return Bars(run.instrument, Timeframe.parse(run.timeframe), run.venue, times, **columns)


# --- rows ------------------------------------------------------------------------------------------------------------


def _settle(write: Writer, run: RunRow, record: BarRecord) -> None:
    """What the bar made of the order that was pending."""
    for order in write.pending_orders(run.id):
        status: OrderStatus = "cancelled"
        if record.qty_filled != 0.0:
            status = "filled" if record.qty_filled == record.qty_ordered else "partial"
            write.insert_fill(
                FillRow(
                    run_id=run.id,
                    order_id=order.id,
                    instrument=run.instrument,
                    bar_ts=record.timestamp,
                    quantity=record.qty_filled,
                    price=record.fill_price,
                    reference_price=order.mark_price,
                    arrival_price=record.arrival_price,
                    fraction=record.fill_fraction,
                    fee=record.fee,
                    slippage_cost=record.slippage_cost,
                    impact_cost=record.impact_cost,
                    latency_pnl=record.latency_pnl,
                    gap_pnl=record.gap_pnl,
                    bar_pnl=record.bar_pnl,
                    funding=record.funding,
                    liquidation_cost=record.liquidation_cost,
                    bad_debt=record.bad_debt,
                )
            )
        write.settle_order(order.id, status, filled_in_ts=record.timestamp)


def _bar_row(run: RunRow, step: Step, moment: Moment) -> BarRow:
    bar = step.bar
    return BarRow(
        run_id=run.id,
        ts=bar.timestamp,
        instrument=run.instrument,
        timeframe=run.timeframe,
        open=bar.open,
        high=bar.high,
        low=bar.low,
        close=bar.close,
        volume=bar.volume,
        received_ms=moment.venue_ms,
        status=_BAR_STATUS[step.status],
    )


def _decision_row(run: RunRow, step: Step, model: str, moment: Moment, targets: Sequence[float]) -> DecisionRow:
    row = DecisionRow(
        run_id=run.id,
        instrument=run.instrument,
        timeframe=run.timeframe,
        bar_ts=step.bar.timestamp,
        decided_ms=moment.venue_ms,
        status=step.status.value,
        reason=step.reason,
        mode=step.mode.value,
    )
    if step.thought is None:
        return row
    answer = step.thought.answer
    return replace(
        row,
        action=answer.action,
        target_position=targets[answer.action],
        policy_json=_json(answer.policy),
        prior_json=_json(answer.prior),
        value=answer.value,
        q_values_json=_json(answer.q_values),
        visits_json=_json(answer.visits),
        outlook_json=_json([one.model_dump(mode="json") for one in step.thought.outlook]),
        simulations=answer.simulations,
        depth=answer.depth,
        model=model,
        latency_ms=step.thought.latency_ms,
    )


def _order_row(run: RunRow, submission: Submission, decision_id: int, max_leverage: float) -> OrderRow:
    order = submission.order
    return OrderRow(
        run_id=run.id,
        decision_id=decision_id,
        instrument=run.instrument,
        submitted_ts=order.decided_at,
        target_position=order.target / max_leverage,
        target_exposure=order.target,
        quantity=order.quantity,
        limit_price=order.limit_price,
        mark_price=order.mark_price,
        sigma=submission.sigma,
        median_volume=submission.median_volume,
        status="pending" if order.quantity != 0.0 else "empty",
    )


def _record_json(record: BarRecord) -> str:
    return _json({name: value for name, value in record.as_info().items() if name != "action_mask"})


def _json(content: Any) -> str:
    return json.dumps(content, allow_nan=False)
