"""Round trips from fills: hand tables, and the identity that no cent gets lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backtest.trades import PathRows, RoundTrips, round_trips


def ledger(
    close: list[float],
    fills: dict[int, tuple[float, float]],
    *,
    fee_rate: float = 0.0,
    funding: dict[int, float] | None = None,
    liquidate: dict[int, float] | None = None,
    initial: float = 1000.0,
) -> PathRows:
    """A plain account. fills[row]: (signed quantity, price); funding[row] is paid; liquidate[row]: the price of it."""
    n = len(close)
    cash, units = initial, 0.0
    rows: dict[str, list[float]] = {name: [] for name in ("equity", "units", "qty", "price", "fee", "funding")}
    for row in range(n):
        quantity, price = fills.get(row, (0.0, 0.0))
        fee = abs(quantity) * price * fee_rate
        paid = (funding or {}).get(row, 0.0)
        cash -= quantity * price + fee + paid
        units += quantity
        if row in (liquidate or {}):
            cash += units * (liquidate or {})[row]
            units = 0.0
        for name, value in zip(rows, (cash + units * close[row], units, quantity, price, fee, paid), strict=True):
            rows[name].append(value)
    prices = np.array(close)
    return PathRows(
        timestamp=1000 * np.arange(n, dtype=np.int64),
        high=prices + 1.0,
        low=prices - 1.0,
        close=prices,
        equity=np.array(rows["equity"]),
        units=np.array(rows["units"]),
        qty_filled=np.array(rows["qty"]),
        fill_price=np.array(rows["price"]),
        fee=np.array(rows["fee"]),
        slippage=np.zeros(n),
        funding=np.array(rows["funding"]),
        liquidated=np.isin(np.arange(n), list(liquidate or {})),
    )


def total(trips: RoundTrips) -> float:
    return float(trips.pnl.sum())


def test_a_long_round_trip_by_hand() -> None:
    trips = round_trips(ledger([100, 102, 110, 108, 107], {1: (2.0, 101.0), 3: (-2.0, 109.0)}, fee_rate=0.001))
    assert len(trips) == 1
    assert (trips.entry_bar[0], trips.exit_bar[0], trips.bars_held[0], trips.side[0]) == (1, 3, 2, 1)
    assert trips.pnl[0] == pytest.approx(2 * (109 - 101) - 0.001 * 2 * (101 + 109))
    assert trips.fee[0] == pytest.approx(0.42)
    assert (trips.entry_price[0], trips.exit_price[0]) == (101.0, 109.0)
    # While held the bars ranged over 101..103 and 109..111; the exit bar's range came after the exit.
    assert trips.mae[0] == pytest.approx(101 / 101 - 1)
    assert trips.mfe[0] == pytest.approx(111 / 101 - 1)
    assert not trips.open[0]


def test_a_short_gains_when_the_price_falls() -> None:
    trips = round_trips(ledger([100, 95, 90, 92], {1: (-1.0, 99.0), 3: (1.0, 91.0)}))
    assert trips.side[0] == -1
    assert trips.pnl[0] == pytest.approx(8.0)
    assert trips.mfe[0] == pytest.approx(-(89 / 99 - 1))
    assert trips.mae[0] == 0.0


def test_a_reversal_closes_one_trip_and_opens_the_next_at_one_price() -> None:
    trips = round_trips(ledger([100, 100, 110, 105], {1: (1.0, 100.0), 2: (-3.0, 108.0)}, fee_rate=0.01))
    assert trips.side.tolist() == [1, -1]
    assert trips.exit_bar.tolist() == [2, 4]
    assert trips.pnl[0] == pytest.approx(8.0 - 1.0 - 1.08)
    assert trips.pnl[1] == pytest.approx(2 * (108 - 105) - 2.16)
    assert trips.open.tolist() == [False, True]
    assert np.isnan(trips.exit_price[1])


def test_adding_and_reducing_stay_one_trip_at_mean_prices() -> None:
    trips = round_trips(
        ledger([100, 100, 104, 106, 108], {1: (1.0, 100.0), 2: (1.0, 104.0), 3: (-0.5, 106.0), 4: (-1.5, 110.0)})
    )
    assert len(trips) == 1
    assert trips.quantity[0] == 2.0
    assert trips.entry_price[0] == pytest.approx(102.0)
    assert trips.exit_price[0] == pytest.approx((0.5 * 106 + 1.5 * 110) / 2)


def test_an_open_trade_is_marked_and_flagged() -> None:
    trips = round_trips(ledger([100, 101, 120], {1: (1.0, 100.0)}))
    assert trips.open.tolist() == [True]
    assert trips.pnl[0] == pytest.approx(20.0)
    assert trips.bars_held[0] == 2
    assert trips.summary().open_trades == 1
    assert len(trips.summary().pnl) == 0


def test_funding_is_the_trade_s_that_was_held() -> None:
    trips = round_trips(ledger([100, 100, 100, 100], {1: (1.0, 100.0), 3: (-1.0, 100.0)}, funding={2: 0.5}))
    assert trips.funding[0] == 0.5
    assert trips.pnl[0] == pytest.approx(-0.5)


def test_a_liquidation_ends_the_trip_within_its_bar() -> None:
    trips = round_trips(ledger([100, 100, 60, 70], {1: (1.0, 100.0)}, liquidate={2: 55.0}))
    assert trips.liquidated.tolist() == [True]
    assert (trips.exit_bar[0], trips.bars_held[0]) == (2, 2)
    assert trips.pnl[0] == pytest.approx(-45.0)
    assert not trips.open[0]


def test_no_fill_is_no_trade() -> None:
    trips = round_trips(ledger([100, 90, 80], {}))
    assert len(trips) == 0
    assert trips.to_frame().empty


def test_a_position_opened_in_the_last_bar_is_open_after_one_bar() -> None:
    trips = round_trips(ledger([100, 100], {1: (1.0, 99.0)}))
    assert trips.bars_held.tolist() == [1]
    assert trips.open.tolist() == [True]


@given(
    st.lists(
        st.tuples(st.floats(-3, 3).filter(lambda q: q == 0 or abs(q) > 0.01), st.floats(50, 150), st.floats(50, 150)),
        min_size=2,
        max_size=40,
    ),
    st.floats(0, 0.01),
)
def test_sum_of_trade_pnl_is_the_change_of_equity(rows: list[tuple[float, float, float]], fee_rate: float) -> None:
    close = [close for _, _, close in rows]
    fills = {row: (quantity, price) for row, (quantity, price, _) in enumerate(rows) if row and quantity}
    path = ledger(close, fills, fee_rate=fee_rate)
    trips = round_trips(path)
    assert total(trips) == pytest.approx(path.equity[-1] - path.equity[0], abs=1e-8)
    assert trips.fee.sum() == pytest.approx(path.fee.sum(), abs=1e-9)
    assert (trips.mae <= 0).all()
    assert (trips.mfe >= 0).all()
    assert (trips.bars_held >= 1).all()
