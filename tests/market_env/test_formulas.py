"""Fill, cost and reward formulas against hand-made tables and their defining equations."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numba import njit

from market_env import costs, fills, rewards

quick = hypothesis_settings(deadline=None, derandomize=True)  # the first example of a test may compile


def call(function):
    """A test's handle on a formula that is compiled into its callers."""

    @njit(error_model="numpy")
    def handle(*arguments):
        return function(*arguments)

    return handle


arrival_exponent = call(fills.arrival_exponent)
arrival_price = call(fills.arrival_price)
limit_fill_price = call(fills.limit_fill_price)
volume_cap_fraction = call(fills.volume_cap_fraction)
square_root_impact = call(fills.square_root_impact)
spread_slippage = call(fills.spread_slippage)
round_to_lot = call(fills.round_to_lot)
affordable_quantity = call(costs.affordable_quantity)
liquidation_price = call(costs.liquidation_price)
liquidation_distance = call(costs.liquidation_distance)
settlements_between = call(costs.settlements_between)
simple_interest = call(costs.simple_interest)
differential_sharpe = call(rewards.differential_sharpe)
shape = call(rewards.shape)


def test_arrival_is_a_martingale_step_within_the_bar():
    exponent = arrival_exponent(0.02, 0.25, 1.5)
    assert exponent == pytest.approx(0.02 * 0.5 * 1.5 - 0.5 * 0.02**2 * 0.25, rel=1e-15)
    assert arrival_exponent(0.02, 0.0, 3.0) == 0.0
    assert arrival_price(100.0, 90.0, 110.0, 1.015) == 101.49999999999999
    assert arrival_price(100.0, 99.9, 100.1, 1.5) == 100.1
    assert arrival_price(100.0, 99.9, 100.1, 0.5) == 99.9


@pytest.mark.parametrize(
    ("side", "limit", "bar", "touch_fills", "expected"),
    [
        # bar: open, low, high; tick 0.5
        (1.0, 100.0, (99.0, 98.0, 101.0), False, 99.0),  # open already better: filled there
        (1.0, 100.0, (100.0, 98.0, 101.0), False, 100.0),
        (1.0, 100.0, (102.0, 99.0, 103.0), False, 100.0),  # traded through by more than a tick
        (1.0, 100.0, (102.0, 99.5, 103.0), False, 0.0),  # through by exactly a tick is a touch
        (1.0, 100.0, (102.0, 100.0, 103.0), False, 0.0),
        (1.0, 100.0, (102.0, 100.0, 103.0), True, 100.0),
        (1.0, 100.0, (102.0, 100.1, 103.0), True, 0.0),  # never reached
        (-1.0, 100.0, (101.0, 99.0, 102.0), False, 101.0),
        (-1.0, 100.0, (98.0, 97.0, 101.0), False, 100.0),
        (-1.0, 100.0, (98.0, 97.0, 100.5), False, 0.0),
        (-1.0, 100.0, (98.0, 97.0, 100.0), True, 100.0),
        (-1.0, 100.0, (98.0, 97.0, 99.9), True, 0.0),
    ],
)
def test_limit_orders_fill_by_the_table(side, limit, bar, touch_fills, expected):
    open_, low, high = bar
    assert limit_fill_price(side, limit, open_, low, high, 0.5, touch_fills) == expected


@pytest.mark.parametrize(
    ("quantity", "volume", "median_volume", "expected"),
    [(10.0, 1000.0, 900.0, 1.0), (100.0, 1000.0, 900.0, 0.5), (10.0, 0.0, 900.0, 0.0), (10.0, 0.0, 0.0, 1.0)],
)
def test_a_fill_takes_at_most_a_share_of_the_volume(quantity, volume, median_volume, expected):
    assert volume_cap_fraction(quantity, volume, median_volume, 0.05) == expected


def test_impact_is_two_thirds_of_the_square_root_law():
    assert square_root_impact(0.6, 0.01, 4.0, 100.0) == pytest.approx(2 / 3 * 0.6 * 0.01 * 0.2, rel=1e-15)
    assert square_root_impact(0.6, 0.01, 4.0, 0.0) == 0.0


def test_slippage_is_half_the_spread_plus_noise():
    assert spread_slippage(1e-4, 0.02, 0.01, -2.0) == pytest.approx(1e-4 + 0.02 * 0.01 * 2.0, rel=1e-15)


@pytest.mark.parametrize(
    ("quantity", "lot", "expected"), [(0.3, 0.1, 0.3), (0.35, 0.1, 0.3), (0.0999, 0.1, 0.0), (1.7, 0.0, 1.7)]
)
def test_quantities_round_down_to_whole_lots(quantity, lot, expected):
    assert round_to_lot(quantity, lot) == pytest.approx(expected, abs=1e-15)


@quick
@given(
    side=st.sampled_from([1.0, -1.0]),
    exposure=st.floats(-3.0, 3.0),
    leverage=st.floats(0.5, 10.0),
    cost=st.floats(0.0, 0.05),
    fee=st.floats(0.0, 0.01),
)
def test_an_affordable_order_meets_initial_margin_exactly(side, exposure, leverage, cost, fee):
    arrival, equity = 50.0, 1000.0
    units = exposure * equity / arrival
    cash = equity - units * arrival
    price = arrival * (1.0 + side * cost)
    quantity = affordable_quantity(side, cash, units, arrival, price, fee, leverage)
    after = units + side * quantity
    equity_after = cash - side * quantity * price - fee * quantity * price + after * arrival
    if quantity > max(-side * units, 0.0):  # limited by margin, not by the right to close
        assert abs(after) * arrival == pytest.approx(leverage * equity_after, rel=1e-9)
    else:
        assert quantity == max(-side * units, 0.0)


@quick
@given(
    units=st.floats(0.1, 100.0),
    leverage=st.floats(1.01, 50.0),
    maintenance=st.floats(0.0, 0.01),
    short=st.booleans(),
)
def test_at_the_liquidation_price_equity_is_the_maintenance_margin(units, leverage, maintenance, short):
    price = 80.0
    position = -units if short else units
    cash = units * price / leverage - position * price
    at = liquidation_price(cash, position, maintenance)
    assert cash + position * at == pytest.approx(maintenance * units * at, rel=1e-9, abs=1e-6)
    safe = cash + position * price > maintenance * units * price
    assert (at > price if short else at < price) == safe
    expected = min(abs(price - at) / price, 1.0)
    assert liquidation_distance(cash, position, price, maintenance) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("cash", "units"), [(1000.0, 0.0), (0.0, 5.0), (1000.0, 5.0)])
def test_what_is_not_borrowed_cannot_be_liquidated(cash, units):
    assert liquidation_distance(cash, units, 50.0, 0.005) == 1.0


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.0, 8.0, 1), (0.0, 7.9, 0), (7.9, 8.0, 1), (8.0, 8.1, 0), (8.0, 16.0, 1), (1.0, 25.0, 3)],
)
def test_settlements_fall_in_half_open_intervals(start, end, expected):
    assert settlements_between(start, end, 8.0) == expected


def test_interest_is_linear_in_time_and_falls_on_shorts_and_debt():
    assert simple_interest(-2.0, 0.0, 50.0, 10.0, 0.001, 0.002) == pytest.approx(1.0)
    assert simple_interest(2.0, 300.0, 50.0, 10.0, 0.001, 0.002) == pytest.approx(6.0)
    assert simple_interest(2.0, 0.0, 50.0, 10.0, 0.001, 0.002) == 0.0


def test_differential_sharpe_is_the_derivative_of_the_sharpe_ratio():
    """Moody and Saffell: D is the slope of S = A / sqrt(B - A^2) in the adaptation rate, at rate 0."""
    mean, mean_square, value, rate = 0.001, 0.0004, 0.02, 1e-7

    def ratio(a, b):
        return a / math.sqrt(b - a * a)

    moved = ratio(mean + rate * (value - mean), mean_square + rate * (value**2 - mean_square))
    slope = (moved - ratio(mean, mean_square)) / rate
    assert differential_sharpe(mean, mean_square, value) == pytest.approx(slope, rel=1e-4)
    assert differential_sharpe(0.0, 0.0, 0.01) == 0.0


@pytest.mark.parametrize(
    ("base", "rise", "ruined", "plain", "expected"),
    [
        (1.5, 0.0, False, True, 1.5),
        (50.0, 0.0, False, True, 20.0),
        (-50.0, 0.0, False, True, -20.0),
        (1.5, 0.02, False, True, 1.5 - 0.5 * 100 * 0.02),
        (-3.0, 0.0, True, True, -8.0),
        (-3.0, 0.0, True, False, -25.0),
    ],
)
def test_rewards_are_shaped_by_the_table(base, rise, ruined, plain, expected):
    assert shape(base, base, rise, ruined, plain, 100.0, 20.0, 5.0, 0.5, 0.0) == pytest.approx(expected)


def test_the_variance_penalty_is_quadratic():
    assert shape(2.0, 2.0, 0.0, False, False, 100.0, 20.0, 5.0, 0.0, 0.1) == pytest.approx(2.0 - 0.1 * 4.0)
