"""A small trader: real bars, fills and rows, and targets out of a formula. It remembers nothing itself.

As a program (python small_trader.py URL BARS) it trades until BARS bars are recorded, and may be killed at any moment.
"""

import contextlib
import json
import math
import sys

from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.session import BarInput, TradingSession
from service.ledger.errors import AlreadyRecorded
from service.ledger.schema import (
    AccountRow,
    BarRow,
    DecisionRow,
    EquityRow,
    FillRow,
    OrderRow,
    PositionRow,
    RiskStateRow,
    RunRow,
)
from service.ledger.store import Ledger

HOUR = 3_600_000
FIRST = 1_704_067_200_000  # 2024-01-01T00:00Z
SYMBOL, TIMEFRAME = "BTC/USDT", "1h"
MARKET = MarketConfig()
INSTRUMENT = Instrument.for_symbol(SYMBOL)
EQUITY = 10_000.0


def bar_at(number: int) -> BarInput:
    """A price that swings, with a wick at both ends."""
    open_, close = (40_000.0 * math.exp(0.02 * math.sin(0.7 * n) + 0.001 * n) for n in (number, number + 1))
    low, high = 0.999 * min(open_, close), 1.001 * max(open_, close)
    return BarInput(FIRST + number * HOUR, open_, high, low, close, 1_000.0 + number, HOUR)


def target_at(number: int) -> float:
    return round(math.sin(1.3 * number), 3)


def new_run(run_id: str = "run-1") -> RunRow:
    return RunRow(
        id=run_id, created_ms=FIRST, model="test", checkpoint_sha256="0" * 64, config_json="{}",
        market_json=MARKET.model_dump_json(), instrument_json=INSTRUMENT.model_dump_json(), seed=7, instrument=SYMBOL,
        timeframe=TIMEFRAME, venue="test", initial_equity=EQUITY, code_version="test",
    )  # fmt: skip


def begin(ledger: Ledger, run_id: str = "run-1") -> None:
    with ledger.transaction() as write:
        write.start_run(new_run(run_id))


def next_number(ledger: Ledger) -> int:
    """Which bar comes next."""
    with ledger.reading() as read:
        run = read.active_run()
        cursor = None if run is None else read.cursor(run.id, SYMBOL, TIMEFRAME)
    return 0 if cursor is None else (cursor.last_bar_ts - FIRST) // HOUR + 1


def trade(ledger: Ledger, number: int) -> None:
    """Record bar `number`: compute outside, then write all of it, or nothing."""
    bar = bar_at(number)
    ts, close_ms = bar.timestamp, bar.timestamp + HOUR
    with ledger.reading() as read:
        run = read.active_run()
        assert run is not None
        cursor = read.cursor(run.id, SYMBOL, TIMEFRAME)
        account = read.account(run.id)
        pending = read.pending_orders(run.id)
    session = TradingSession(MARKET, INSTRUMENT, run.seed, run.initial_equity)
    if account is not None:
        session.set_state(json.loads(account.session_state_json))
    record = session.on_bar(bar)
    target = target_at(number)
    order = session.submit(target, sigma=0.01, median_volume=900.0)
    state = session.get_state()
    info = {name: value for name, value in record.as_info().items() if name != "action_mask"}
    key = {"run_id": run.id, "instrument": SYMBOL}

    with ledger.transaction() as write:
        write.advance_cursor(
            run.id, SYMBOL, TIMEFRAME, expected=None if cursor is None else cursor.last_bar_ts, to=ts, now_ms=close_ms
        )
        if run.first_bar_ts is None:
            write.begin_trading(run.id, ts)
        write.insert_bars([BarRow(
            **key, timeframe=TIMEFRAME, ts=ts, open=bar.open, high=bar.high, low=bar.low, close=bar.close,
            volume=bar.volume, received_ms=close_ms, status="used",
        )])  # fmt: skip
        for old in pending:
            filled = record.fill_fraction
            status = "filled" if filled == 1.0 else "partial" if filled > 0.0 else "cancelled"
            write.settle_order(old.id, status, filled_in_ts=ts)
            if record.qty_filled != 0.0:
                write.insert_fill(FillRow(
                    **key, order_id=old.id, bar_ts=ts, quantity=record.qty_filled, price=record.fill_price,
                    reference_price=old.mark_price, arrival_price=record.arrival_price, fraction=filled,
                    fee=record.fee, slippage_cost=record.slippage_cost, impact_cost=record.impact_cost,
                    latency_pnl=record.latency_pnl, gap_pnl=record.gap_pnl, bar_pnl=record.bar_pnl,
                    funding=record.funding, liquidation_cost=record.liquidation_cost, bad_debt=record.bad_debt,
                ))  # fmt: skip
        decision_id = write.insert_decision(DecisionRow(
            **key, timeframe=TIMEFRAME, bar_ts=ts, decided_ms=close_ms, status="decided", reason="by formula",
            mode="ACTIVE", action=0, target_position=target, policy_json="[1.0]", value=0.5,
        ))  # fmt: skip
        write.insert_order(OrderRow(
            **key, decision_id=decision_id, submitted_ts=order.decided_at, target_position=target,
            target_exposure=order.target, quantity=order.quantity, limit_price=order.limit_price,
            mark_price=order.mark_price, sigma=0.01, median_volume=900.0,
            status="pending" if order.quantity else "empty",
        ))  # fmt: skip
        write.put_position(PositionRow(
            **key, units=record.units, average_price=state["account"]["entry_price"], exposure=record.exposure,
            updated_ts=ts,
        ))  # fmt: skip
        write.put_account(AccountRow(
            run_id=run.id, cash=record.cash, equity=record.equity, peak_equity=state["account"]["peak_equity"],
            session_state_json=json.dumps(state), updated_ts=ts,
        ))  # fmt: skip
        write.insert_equity(EquityRow(
            run_id=run.id, ts=ts, equity=record.equity, cash=record.cash, units=record.units,
            exposure=record.exposure, close=bar.close, drawdown_fraction=record.drawdown,
            buy_and_hold_equity=EQUITY * bar.close / bar_at(0).open, record_json=json.dumps(info),
        ))  # fmt: skip
        write.put_risk_state(RiskStateRow(
            run_id=run.id, mode="ACTIVE", reason="", since_ms=FIRST, peak_equity=EQUITY, day=None,
            day_open_equity=EQUITY, trades_today=number, exchange_errors=0, state_json="{}",
        ))  # fmt: skip
        write.append_event("decision", f"bar {number}", ts_ms=close_ms, run_id=run.id)


def trade_all(ledger: Ledger, bars: int) -> None:
    """A new run of so many bars."""
    begin(ledger)
    trade_on(ledger, bars)


def trade_on(ledger: Ledger, bars: int) -> None:
    """Go on until so many bars are recorded."""
    for number in range(next_number(ledger), bars):
        trade(ledger, number)


def main(url: str, bars: int) -> None:
    with Ledger.open(url, writable=True) as ledger:
        with ledger.reading() as read:
            started = read.active_run() is not None
        if not started:
            begin(ledger)
        number = next_number(ledger)
        while number < bars:
            with contextlib.suppress(AlreadyRecorded):
                trade(ledger, number)
            number = next_number(ledger)
            print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
