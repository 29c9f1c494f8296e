"""The account, bar by bar, against ledgers computed by hand."""

import copy
import json
import math

import numpy as np
import pytest

from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.session import BarInput, TradingSession, run_targets

HOUR_MS = 3_600_000
YEAR_MS = 365.25 * 86_400_000
INSTRUMENT = Instrument(symbol="TEST", half_spread_bps=10.0)


def bar(hour, open_, high, low, close, volume=1e9):
    return BarInput(hour * HOUR_MS, open_, high, low, close, volume, HOUR_MS)


def flat_bar(hour, price, volume=1e9):
    return bar(hour, price, price, price, price, volume)


def play(session, bars, targets, *, sigma=0.01, median_volume=1e9):
    """Records of the bars; targets[i] is decided at the close of bars[i]."""
    records = []
    for i, one in enumerate(bars):
        records.append(session.on_bar(one))
        if i < len(targets) and targets[i] is not None:
            session.submit(targets[i], sigma=sigma, median_volume=median_volume)
    return records


@pytest.fixture
def plain(settings) -> MarketConfig:
    return settings(fills={"mode": "deterministic"}, costs={"taker_fee_bps": 100.0})


class TestDeterministicFills:
    """Half of the equity bought at the next open, 1% fee, as one would write it in a notebook."""

    def test_the_ledger_of_a_round_trip(self, plain):
        session = TradingSession(plain, INSTRUMENT, seed=0, initial_equity=1000.0)
        bars = [flat_bar(0, 100.0), bar(1, 110.0, 125.0, 105.0, 120.0), bar(2, 130.0, 131.0, 129.0, 130.0)]
        decided, bought, sold = play(session, bars, [0.5, 0.0])
        assert (decided.equity, decided.units) == (1000.0, 0.0)
        # 0.5 * 1000 / 100 = 5 units, fixed at the close of 100, bought at 110, fee 1% of 550
        assert bought.qty_ordered == bought.qty_filled == 5.0
        assert bought.fill_price == 110.0
        assert bought.fee == pytest.approx(5.5)
        assert bought.cash == pytest.approx(1000.0 - 550.0 - 5.5)
        assert bought.equity == pytest.approx(444.5 + 5.0 * 120.0)
        assert bought.exposure == pytest.approx(600.0 / 1044.5)
        assert bought.gap_pnl == 0.0  # held nothing over the gap
        assert bought.bar_pnl == pytest.approx(5.0 * 10.0)
        # sold at 130: the gap from 120 is earned by the old position
        assert sold.qty_filled == -5.0
        assert sold.gap_pnl == pytest.approx(50.0)
        assert sold.equity == pytest.approx(444.5 + 650.0 - 6.5)
        assert sold.log_return == pytest.approx(math.log(sold.equity / bought.equity))
        assert sold.units == 0.0

    def test_reversal_is_one_net_order(self, plain):
        session = TradingSession(plain, INSTRUMENT, seed=0, initial_equity=1000.0)
        _, _, reversed_ = play(session, [flat_bar(h, 100.0) for h in range(3)], [0.5, -0.5])
        equity = 1000.0 - 5.0  # after the first fee
        assert reversed_.qty_ordered == pytest.approx(-0.5 * equity / 100.0 - 5.0)
        assert reversed_.units == pytest.approx(-0.5 * equity / 100.0)

    def test_no_order_inside_the_band(self, settings):
        config = settings(fills={"mode": "deterministic"}, actions={"no_trade_band": 0.05})
        session = TradingSession(config, INSTRUMENT, seed=0)
        bars = [flat_bar(0, 100.0), flat_bar(1, 100.0), flat_bar(2, 104.0), flat_bar(3, 104.0), flat_bar(4, 104.0)]
        records = play(session, bars, [0.5, None, 0.5, 0.0])
        assert records[1].qty_filled > 0.0
        assert records[3].qty_ordered == 0.0  # exposure 0.51: inside the band
        assert records[4].units == 0.0  # going flat ignores the band

    def test_orders_round_to_lots_and_respect_the_minimum(self, plain):
        coarse = Instrument(symbol="TEST", lot_size=3.0)
        session = TradingSession(plain, coarse, seed=0, initial_equity=1000.0)
        assert play(session, [flat_bar(0, 100.0), flat_bar(1, 100.0)], [0.5])[1].units == 3.0
        picky = Instrument(symbol="TEST", min_notional=501.0)
        session = TradingSession(plain, picky, seed=0, initial_equity=1000.0)
        assert play(session, [flat_bar(0, 100.0), flat_bar(1, 100.0)], [0.5])[1].qty_ordered == 0.0

    def test_an_unaffordable_order_is_cut_to_the_cash(self, plain):
        session = TradingSession(plain, INSTRUMENT, seed=0, initial_equity=1000.0)
        _, bought = play(session, [flat_bar(0, 100.0), flat_bar(1, 125.0)], [1.0])
        assert bought.qty_ordered == 10.0
        assert bought.qty_filled == pytest.approx(1000.0 / (125.0 * 1.01))
        assert bought.cash == pytest.approx(0.0, abs=1e-9)

    def test_a_later_decision_replaces_the_pending_order(self, plain):
        session = TradingSession(plain, INSTRUMENT, seed=0)
        session.on_bar(flat_bar(0, 100.0))
        session.submit(1.0, sigma=0.01, median_volume=1.0)
        order = session.submit(-0.5, sigma=0.01, median_volume=1.0)
        assert order.quantity == -50.0
        assert session.on_bar(flat_bar(1, 100.0)).units == -50.0

    def test_what_does_not_fill_is_cancelled(self, settings):
        config = settings(fills={"reject_probability": 1.0})
        session = TradingSession(config, INSTRUMENT, seed=0)
        _, rejected, after = play(session, [flat_bar(h, 100.0) for h in range(3)], [1.0])
        assert rejected.rejected
        assert (rejected.fill_price, rejected.units, after.qty_ordered) == (0.0, 0.0, 0.0)


class TestStochasticFills:
    def test_one_fill_by_hand(self, settings, make_market):
        """Every formula of the fill model at once, with explicit draws, against a line of Python each."""
        from market_env.env import MarketEnv

        config = settings(
            costs={"taker_fee_bps": 20.0},
            fills={"latency_fraction": 0.04, "volume_cap": 0.1, "partial_probability": 0.5},
            observation={"window": 1},
            episode={"random_start": False},
        )
        market = make_market(
            [(100, 101, 99, 100), (102, 104, 101, 103)], volume=[2e3, 300.0], sigma=0.02, median_volume=2e3
        )
        env = MarketEnv([market], config)
        env.reset(seed=0)
        draws = {
            "reject_u": 0.5, "partial_u": 0.4, "fraction_u": 0.5, "touch_u": 0.5, "arrival_z": 1.2, "spread_z": -0.7,
        }  # fmt: skip
        _, reward, terminated, truncated, info = env.step(3, draws=draws)
        sigma, equity = 0.02, 10_000.0
        ordered = 0.5 * equity / 100.0
        fraction = (0.1 * 300.0 / ordered) * 0.5  # volume cap, then the median of Beta(2, 2)
        quantity = fraction * ordered
        arrival = 102.0 * math.exp(sigma * 0.2 * 1.2 - 0.5 * sigma**2 * 0.04)
        spread = 10e-4 + 0.02 * sigma * 0.7
        impact = 2 / 3 * 0.6 * sigma * math.sqrt(quantity / 2e3)
        price = arrival * (1.0 + spread + impact)
        fee = 20e-4 * quantity * price
        after = equity - quantity * price - fee + quantity * 103.0
        assert info["qty_ordered"] == pytest.approx(ordered, rel=1e-12)
        assert info["fill_fraction"] == pytest.approx(fraction, rel=1e-12)
        assert info["arrival_price"] == pytest.approx(arrival, rel=1e-12)
        assert info["fill_price"] == pytest.approx(price, rel=1e-12)
        assert info["fee"] == pytest.approx(fee, rel=1e-12)
        assert info["slippage_cost"] == pytest.approx(quantity * arrival * spread, rel=1e-12)
        assert info["impact_cost"] == pytest.approx(quantity * arrival * impact, rel=1e-12)
        assert info["equity"] == pytest.approx(after, rel=1e-12)
        assert reward == pytest.approx(100.0 * math.log(after / equity), rel=1e-9)
        assert (terminated, truncated) == (False, True)  # no bar after it

    def test_cost_per_unit_is_capped(self, settings):
        config = settings(fills={"cost_cap": 0.01, "reject_probability": 0.0})
        dear = Instrument(symbol="TEST", half_spread_bps=400.0)
        _, bought = play(TradingSession(config, dear, seed=0), [flat_bar(0, 100.0), flat_bar(1, 100.0)], [0.5])
        assert bought.fill_price == pytest.approx(bought.arrival_price * 1.01)
        assert bought.impact_cost == 0.0

    def test_without_volume_neither_cap_nor_impact_apply(self, settings):
        config = settings(fills={"reject_probability": 0.0, "partial_probability": 0.0})
        bars = [flat_bar(0, 100.0, volume=0.0), flat_bar(1, 100.0, volume=0.0)]
        _, bought = play(TradingSession(config, INSTRUMENT, seed=0), bars, [0.5], median_volume=0.0)
        assert (bought.fill_fraction, bought.impact_cost) == (1.0, 0.0)

    def test_a_halted_bar_fills_nothing(self, settings):
        config = settings(fills={"reject_probability": 0.0})
        bars = [flat_bar(0, 100.0), flat_bar(1, 100.0, volume=0.0)]
        _, halted = play(TradingSession(config, INSTRUMENT, seed=0), bars, [0.5])
        assert (halted.qty_filled, halted.fill_fraction, halted.fee) == (0.0, 0.0, 0.0)

    def test_zero_noise_equals_deterministic_mode(self, settings, random_market):
        quiet = settings(
            fills={
                "reject_probability": 0.0, "partial_probability": 0.0, "latency_fraction": 0.0,
                "volatility_slippage": 0.0, "impact_coefficient": 0.0, "volume_cap": 1.0,
            },
            costs={"short_interest_annual": 0.0, "margin_interest_annual": 0.0},
        )  # fmt: skip
        market = random_market(1, instrument=Instrument(symbol="TEST", half_spread_bps=0.0))
        rich = market.bars.copy()
        rich[:, 4] = 1e12
        market = type(market).from_arrays(
            rich, market.features, instrument=market.instrument, bar_ms=market.bar_ms, window=market.window,
            first_decision=market.first_decision,
        )  # fmt: skip
        targets = np.random.default_rng(0).choice([-1.0, -0.5, 0.0, 0.5, 1.0], len(market))
        noisy = run_targets(market, targets, quiet)
        exact = run_targets(market, targets, settings(quiet, fills={"mode": "deterministic"}))
        for name in noisy.columns:
            assert np.array_equal(noisy[name], exact[name]), name


class TestLimitOrders:
    @pytest.fixture
    def resting(self, settings):
        return settings(
            fills={
                "order_type": "limit", "limit_offset_bps": 100.0, "reject_probability": 0.0,
                "partial_probability": 0.0, "touch_fill_probability": 0.0,
            },
            costs={"taker_fee_bps": 10.0, "maker_fee_bps": 2.0},
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("second", "price", "fee_bps"),
        [
            (bar(1, 100.0, 101.0, 98.0, 99.5), 99.0, 2.0),  # traded through: filled at the limit, maker
            (bar(1, 98.5, 99.0, 98.0, 98.5), 98.5, 10.0),  # opens below it: filled at once, taker
            (bar(1, 100.0, 101.0, 99.5, 100.0), 0.0, 0.0),  # never reached
            (bar(1, 100.0, 101.0, 99.0, 100.0), 0.0, 0.0),  # touched without luck
        ],
    )
    def test_a_buy_one_percent_below_the_close(self, resting, second, price, fee_bps):
        session = TradingSession(resting, INSTRUMENT, seed=0)
        _, record = play(session, [flat_bar(0, 100.0), second], [0.5])
        assert record.fill_price == price
        assert record.qty_filled == (50.0 if price else 0.0)
        assert record.fee == pytest.approx(50.0 * price * fee_bps * 1e-4)
        assert (record.slippage_cost, record.impact_cost) == (0.0, 0.0)

    def test_the_limit_price_rounds_away_from_the_market(self, resting):
        ticks = Instrument(symbol="TEST", tick_size=0.4)
        session = TradingSession(resting, ticks, seed=0)
        session.on_bar(flat_bar(0, 100.0))
        assert session.submit(0.5, sigma=0.01, median_volume=1.0).limit_price == pytest.approx(98.8)
        assert session.submit(-0.5, sigma=0.01, median_volume=1.0).limit_price == pytest.approx(101.2)

    def test_luck_fills_a_touched_order(self, settings, resting):
        lucky = settings(resting, fills={"touch_fill_probability": 1.0})
        session = TradingSession(lucky, INSTRUMENT, seed=0)
        _, record = play(session, [flat_bar(0, 100.0), bar(1, 100.0, 101.0, 99.0, 100.0)], [0.5])
        assert record.fill_price == 99.0


class TestHolding:
    def test_n_bars_of_interest_are_n_times_one(self, settings):
        """Simple interest on a short and on debt, at a flat price: no interest on interest."""
        config = settings(
            actions={"max_leverage": 3.0},
            costs={"taker_fee_bps": 0.0, "short_interest_annual": 0.05, "margin_interest_annual": 0.10},
            fills={"volatility_slippage": 0.0, "impact_coefficient": 0.0, "reject_probability": 0.0,
                   "partial_probability": 0.0, "latency_fraction": 0.0},
        )  # fmt: skip
        free = Instrument(symbol="TEST", half_spread_bps=0.0)
        for target, annual, base in ((-1.0, 0.05, 10_000.0), (2.0, 0.10, 10_000.0)):
            session = TradingSession(config, free, seed=0)
            records = play(session, [flat_bar(h, 100.0) for h in range(500)], [target])
            one = base * annual * HOUR_MS / YEAR_MS
            charges = np.array([record.funding for record in records[1:]])
            assert charges == pytest.approx(np.full(499, one), rel=1e-9)
            assert records[-1].equity == pytest.approx(10_000.0 - 499 * one, rel=1e-12)

    def test_interest_runs_over_a_gap(self, settings):
        config = settings(costs={"short_interest_annual": 0.05, "taker_fee_bps": 0.0})
        session = TradingSession(config, INSTRUMENT, seed=1)
        _, opened, later = play(session, [flat_bar(0, 100.0), flat_bar(1, 100.0), flat_bar(36, 100.0)], [-1.0])
        hours = 36 - 2 + 1  # 34 hours without bars, then the bar itself
        assert later.funding == pytest.approx(-opened.units * 100.0 * 0.05 * hours * HOUR_MS / YEAR_MS)

    def test_funding_is_paid_by_longs_to_shorts_at_settlements(self, settings):
        config = settings(
            costs={"perpetual": True, "funding_rate": 0.001, "funding_interval_hours": 8.0, "taker_fee_bps": 0.0}
        )
        for target, sign in ((0.5, 1.0), (-0.5, -1.0)):
            session = TradingSession(config, INSTRUMENT, seed=1)
            records = play(session, [flat_bar(h, 100.0) for h in range(18)], [target])
            paid = {h: record.funding for h, record in enumerate(records) if record.funding != 0.0}
            # Bars 7 and 15 close at 08:00 and 16:00.
            assert sorted(paid) == [7, 15]
            assert paid[7] == pytest.approx(sign * abs(records[6].units) * 100.0 * 0.001)

    def test_funding_of_a_gap_falls_on_the_old_position(self, settings):
        config = settings(costs={"perpetual": True, "funding_rate": 0.001, "taker_fee_bps": 0.0})
        session = TradingSession(config, INSTRUMENT, seed=1)
        records = play(session, [flat_bar(0, 100.0), flat_bar(1, 100.0), flat_bar(20, 100.0)], [0.5, 0.0])
        assert records[2].units == 0.0
        assert records[2].funding == pytest.approx(2 * records[1].units * 100.0 * 0.001)


class TestLiquidation:
    @pytest.fixture
    def levered(self, settings):
        return settings(
            actions={"max_leverage": 4.0},
            fills={"mode": "deterministic"},
            costs={"taker_fee_bps": 0.0},
            margin={"maintenance": 0.005, "liquidation_fee_bps": 50.0},
        )

    def test_a_wick_liquidates_though_the_close_recovers(self, levered):
        session = TradingSession(levered, INSTRUMENT, seed=0, initial_equity=1000.0)
        bars = [flat_bar(0, 100.0), flat_bar(1, 100.0), bar(2, 100.0, 110.0, 70.0, 109.0)]
        record = play(session, bars, [4.0])[2]
        # 40 units, 3000 borrowed: p = 3000 / (40 * 0.995)
        price = 3000.0 / (40.0 * 0.995)
        assert record.liquidated
        assert record.units == 0.0
        assert record.bar_pnl == pytest.approx(40.0 * (price - 100.0))
        assert record.liquidation_cost == pytest.approx(40.0 * price * 50e-4)
        assert record.equity == pytest.approx(1000.0 + 40.0 * (price - 100.0) - 40.0 * price * 50e-4)
        assert record.bad_debt == 0.0

    def test_a_gap_liquidates_at_the_open_and_the_shortfall_is_bad_debt(self, levered):
        session = TradingSession(levered, INSTRUMENT, seed=0, initial_equity=1000.0)
        records = play(session, [flat_bar(0, 100.0), flat_bar(1, 100.0), bar(2, 60.0, 90.0, 60.0, 90.0)], [4.0, 0.5])
        gap = records[2]
        assert gap.liquidated
        assert gap.gap_pnl == pytest.approx(40.0 * -40.0)
        assert (gap.bar_pnl, gap.qty_filled) == (0.0, 0.0)  # the pending order died with the position
        cost = 40.0 * 60.0 * 50e-4
        assert gap.bad_debt == pytest.approx(1600.0 + cost - 1000.0)
        assert (gap.equity, gap.cash, gap.units) == (0.0, 0.0, 0.0)
        assert session.ruined

    def test_a_short_is_liquidated_at_leverage_one(self, levered):
        session = TradingSession(levered, INSTRUMENT, seed=0, initial_equity=1000.0)
        bars = [flat_bar(0, 100.0), flat_bar(1, 100.0), bar(2, 150.0, 250.0, 150.0, 160.0)]
        record = play(session, bars, [-1.0])[2]
        price = 2000.0 / (10.0 * 1.005)
        assert record.liquidated
        assert record.equity == pytest.approx(2000.0 - 10.0 * price * (1.0 + 50e-4))

    def test_an_unlevered_long_survives_anything(self, levered):
        session = TradingSession(levered, INSTRUMENT, seed=0, initial_equity=1000.0)
        bars = [flat_bar(0, 100.0), flat_bar(1, 100.0), bar(2, 1.0, 1.0, 0.5, 1.0)]
        record = play(session, bars, [1.0])[2]
        assert not record.liquidated
        assert record.equity == pytest.approx(10.0)

    def test_a_wiped_out_account_stays_quiet(self, levered):
        session = TradingSession(levered, INSTRUMENT, seed=0, initial_equity=1000.0)
        bars = [flat_bar(0, 100.0), flat_bar(1, 100.0), flat_bar(2, 10.0), flat_bar(3, 10.0)]
        after = play(session, bars, [4.0, None, 1.0])[3]
        assert (after.equity, after.qty_ordered, after.log_return, after.liquidated) == (0.0, 0.0, 0.0, False)

    def test_without_margin_nothing_is_cut_or_closed(self, settings, levered):
        free = settings(levered, margin={"enforce": False})
        session = TradingSession(free, INSTRUMENT, seed=0, initial_equity=1000.0)
        bars = [flat_bar(0, 100.0), flat_bar(1, 125.0), bar(2, 125.0, 130.0, 95.0, 126.0)]
        records = play(session, bars, [4.0])
        assert records[1].qty_filled == 40.0
        assert not records[2].liquidated


class TestWrongCalls:
    @pytest.fixture
    def session(self):
        return TradingSession(MarketConfig(), INSTRUMENT, seed=0)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (bar(1, math.nan, 101.0, 99.0, 100.0), "open must be a positive price, got nan"),
            (bar(1, 100.0, 101.0, -1.0, 100.0), "low must be a positive price"),
            (bar(1, 100.0, math.inf, 99.0, 100.0), "high must be a positive price"),
            (bar(1, 100.0, 99.5, 99.0, 100.0), "low <= open, close <= high"),
            (bar(1, 100.0, 101.0, 99.0, 100.0, -1.0), "volume must be >= 0"),
            (bar(1, 100.0, 101.0, 99.0, 100.0)._replace(duration_ms=0), "duration_ms"),
            (flat_bar(0, 100.0), "bars must follow each other"),
        ],
    )
    def test_a_bad_bar_is_named_and_changes_nothing(self, session, wrong, words):
        session.on_bar(flat_bar(0, 100.0))
        before = session.get_state()
        with pytest.raises(ValueError, match=words):
            session.on_bar(wrong)
        assert session.get_state() == before

    @pytest.mark.parametrize("target", [1.5, -1.01, math.nan])
    def test_a_target_out_of_range_is_named(self, session, target):
        session.on_bar(flat_bar(0, 100.0))
        with pytest.raises(ValueError, match=r"target exposure must lie in \[-1, 1\]"):
            session.submit(target, sigma=0.01, median_volume=1.0)

    def test_spot_accounts_do_not_go_short(self, settings):
        session = TradingSession(settings(actions={"spot": True}), INSTRUMENT, seed=0)
        session.on_bar(flat_bar(0, 100.0))
        with pytest.raises(ValueError, match=r"\[0, 1\] \(spot\)"):
            session.submit(-0.5, sigma=0.01, median_volume=1.0)

    def test_submit_needs_a_bar_and_sane_statistics(self, session):
        with pytest.raises(ValueError, match="before the first bar"):
            session.submit(0.5, sigma=0.01, median_volume=1.0)
        session.on_bar(flat_bar(0, 100.0))
        with pytest.raises(ValueError, match="sigma must be a positive number"):
            session.submit(0.5, sigma=0.0, median_volume=1.0)
        with pytest.raises(ValueError, match="median_volume must be >= 0"):
            session.submit(0.5, sigma=0.01, median_volume=-1.0)

    def test_equity_must_be_positive(self):
        with pytest.raises(ValueError, match="initial_equity must be a positive amount"):
            TradingSession(MarketConfig(), INSTRUMENT, seed=0, initial_equity=0.0)


class TestState:
    def test_json_and_back_continues_to_the_last_bit(self, random_market):
        market = random_market(3, 120)
        targets = np.random.default_rng(5).choice([-1.0, 0.0, 0.5, 1.0], len(market))

        def step(session, t):
            row = [float(value) for value in market.bars[t, :5]]
            record = session.on_bar(BarInput(int(market.timestamp[t]), *row, market.bar_ms))
            session.submit(
                float(targets[t]), sigma=float(market.sigma[t]), median_volume=float(market.median_volume[t])
            )
            return record.as_info() | {"observation": session.account_observation().tobytes()}

        whole = TradingSession(MarketConfig(), INSTRUMENT, seed=9)
        expected = [step(whole, t) for t in range(120)]
        resumed = TradingSession(MarketConfig(), INSTRUMENT, seed=9)
        for t in range(120):
            found = step(resumed, t)
            assert {k: v for k, v in found.items() if k != "action_mask"} == {
                k: v for k, v in expected[t].items() if k != "action_mask"
            }
            text = json.dumps(resumed.get_state(), allow_nan=False)
            resumed = TradingSession(MarketConfig(), INSTRUMENT, seed=1)
            resumed.set_state(json.loads(text))

    def test_a_copy_goes_its_own_way(self):
        session = TradingSession(MarketConfig(), INSTRUMENT, seed=0)
        session.on_bar(flat_bar(0, 100.0))
        session.submit(1.0, sigma=0.01, median_volume=1e9)
        twin = copy.deepcopy(session)
        assert twin.on_bar(flat_bar(1, 100.0)).equity == session.on_bar(flat_bar(1, 100.0)).equity
        assert twin.on_bar(flat_bar(2, 50.0)).equity < session.on_bar(flat_bar(2, 100.0)).equity

    def test_a_foreign_state_is_refused(self):
        session = TradingSession(MarketConfig(), INSTRUMENT, seed=0)
        state = session.get_state()
        with pytest.raises(ValueError, match="symbol must be 'TEST', found 'OTHER'"):
            session.set_state(state | {"symbol": "OTHER"})
        with pytest.raises(ValueError, match=r"missing \['cash'\]"):
            session.set_state(state | {"account": {k: v for k, v in state["account"].items() if k != "cash"}})
        with pytest.raises(ValueError, match=r"account.cash must be finite"):
            session.set_state(state | {"account": state["account"] | {"cash": math.nan}})


class TestRunTargets:
    def test_it_equals_the_session_on_the_same_bars(self, random_market):
        market = random_market(11)
        targets = np.random.default_rng(2).choice([-1.0, -0.5, 0.0, 0.5, 1.0, np.nan], len(market))
        ledger = run_targets(market, targets, MarketConfig(), [4, 5], start=3)
        for row, seed in enumerate((4, 5)):
            session = TradingSession(MarketConfig(), market.instrument, seed)
            for t in range(3, len(market)):
                bar_row = [float(value) for value in market.bars[t, :5]]
                record = session.on_bar(BarInput(int(market.timestamp[t]), *bar_row, market.bar_ms))
                for name in ledger.columns:
                    assert ledger[name][row, t - 3] == getattr(record, name), (t, name)
                if not math.isnan(targets[t]):
                    session.submit(targets[t], sigma=market.sigma[t], median_volume=market.median_volume[t])

    def test_units_sizing_targets_a_position(self, plain, make_market):
        market = make_market([(100, 100, 100, 100)] * 4)
        ledger = run_targets(market, np.array([3.0, -2.0, 0.0, 1.0]), plain, sizing="units")
        assert ledger.units[0].tolist() == [0.0, 3.0, -2.0, 0.0]

    def test_all_in_spends_exactly_the_cash_at_the_fill(self, plain, make_market):
        market = make_market([(100, 100, 100, 100), (80, 90, 80, 90), (120, 120, 120, 120), (120, 120, 120, 120)])
        ledger = run_targets(market, np.array([1.0, 1.0, 0.0, 0.0]), plain, sizing="all_in", initial_equity=1000.0)
        units = 1000.0 / (80.0 * 1.01)
        assert ledger.units[0] == pytest.approx([0.0, units, units, 0.0])
        assert ledger.cash[0] == pytest.approx([1000.0, 0.0, 0.0, units * 120.0 * 0.99], abs=1e-9)

    def test_only_the_columns_asked_for_are_kept(self, random_market):
        market = random_market(1)
        ledger = run_targets(market, np.zeros(len(market)), MarketConfig(), columns=("equity",))
        assert list(ledger.columns) == ["equity"]
        with pytest.raises(AttributeError, match="Ledger has no column 'cash'"):
            _ = ledger.cash

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"targets": np.zeros(3)}, "one number per bar"),
            ({"targets": np.full(200, 1.5)}, r"target at bar 3 must be NaN or within \[-1, 1\] \(exposure\), got 1.5"),
            ({"start": 10, "stop": 5}, "0 <= start < stop"),
            ({"sizing": "lots"}, "sizing must be one of"),
            ({"columns": ("equity", "karma")}, r"unknown ledger columns \['karma'\]"),
            ({"seeds": [-1]}, "seed must be an integer"),
        ],
    )
    def test_wrong_arguments_are_named(self, random_market, change, words):
        arguments = {"targets": np.zeros(200), "config": MarketConfig()} | change
        with pytest.raises(ValueError, match=words):
            run_targets(random_market(1), **arguments)
