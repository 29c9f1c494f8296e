"""The guards as tables: what is seen, what mode follows, what may be ordered."""

import json
from collections.abc import Callable, Sequence

import pytest
from pydantic import ValidationError

from market_env import guards
from market_env.guards import Cause, GuardConfig, GuardState, Mode, Vitals

HOUR = 3_600_000
DAY = 24 * HOUR
CONFIG = GuardConfig()
OFF = GuardConfig.model_validate(dict.fromkeys(GuardConfig.model_fields))


def lived(equities: Sequence[float], *, config: GuardConfig = CONFIG, flat: bool = False, start: int = 0) -> GuardState:
    """The state after hourly marks, of an account that began with 100."""
    state = GuardState.opened(100.0)
    for row, equity in enumerate(equities):
        opened = start + row * HOUR
        state = guards.after_bar(state, config, timestamp=opened, now_ms=opened + HOUR, equity=equity, flat=flat)
    return state


# --- from equity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equities", "mode", "causes", "halted"),
    [
        ([100, 101, 99], Mode.ACTIVE, (), None),
        ([100, 95.01], Mode.ACTIVE, (), None),
        ([100, 95], Mode.REDUCING, (Cause.DAILY_LOSS,), None),
        ([100, 94, 96], Mode.REDUCING, (Cause.DAILY_LOSS,), None),  # a loss once made counts for the rest of the day
        ([110, 104.6], Mode.ACTIVE, (), None),  # down 4.9% from today's high, up since the day began
        ([100, 80.01], Mode.REDUCING, (Cause.DAILY_LOSS,), None),
        ([100, 79.99], Mode.HALTED, (Cause.DAILY_LOSS,), Cause.DRAWDOWN),
        ([200, 161], Mode.ACTIVE, (), None),
        ([200, 159.9], Mode.HALTED, (), Cause.DRAWDOWN),  # 20% under the peak, though far above the start
        ([100, 0], Mode.HALTED, (Cause.DAILY_LOSS,), Cause.DRAWDOWN),
        ([100, 79, 150], Mode.HALTED, (Cause.DAILY_LOSS,), Cause.DRAWDOWN),  # recovery does not resume
    ],
)
def test_losses_reduce_or_halt(
    equities: list[float], mode: Mode, causes: tuple[Cause, ...], halted: Cause | None
) -> None:
    state = lived(equities)
    assert (state.mode, state.causes, state.halted) == (mode, causes, halted)


def test_a_daily_loss_is_forgiven_by_the_next_utc_day() -> None:
    last = [100.0] * 22 + [94.0, 94.0]
    assert lived(last).mode is Mode.REDUCING
    assert lived([*last, 94.0]).mode is Mode.ACTIVE
    # The new day is measured from the last mark before midnight, not from its own first mark.
    assert lived([*last, 94 * 0.949]).mode is Mode.REDUCING


def test_days_are_utc_days_of_the_bars_open() -> None:
    assert lived([100, 94], start=DAY - 2 * HOUR).mode is Mode.REDUCING
    assert lived([100, 100, 94, 94], start=DAY - 3 * HOUR).mode is Mode.ACTIVE


def test_a_drawdown_closes_the_position_once() -> None:
    state = lived([100, 70])
    assert state.flatten
    assert guards.permit(state, CONFIG, target=1.0, exposure=0.5).target == 0.0
    partly = guards.after_bar(state, CONFIG, timestamp=2 * HOUR, now_ms=3 * HOUR, equity=70.0, flat=False)
    assert guards.permit(partly, CONFIG, target=1.0, exposure=0.1).target == 0.0  # the first order filled in part
    closed = guards.after_bar(partly, CONFIG, timestamp=3 * HOUR, now_ms=4 * HOUR, equity=70.0, flat=True)
    assert not closed.flatten
    assert guards.permit(closed, CONFIG, target=1.0, exposure=0.0).target is None
    assert not lived([100, 70], flat=True).flatten


# --- from outside ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vitals", "causes"),
    [
        (Vitals(), ()),
        (Vitals(data_age_bars=2.0, exchange_errors=9, clock_skew_seconds=-5.0), ()),
        (Vitals(data_age_bars=2.01), (Cause.DATA_AGE,)),
        (Vitals(exchange_errors=10), (Cause.EXCHANGE_ERRORS,)),
        (Vitals(clock_skew_seconds=30.0), (Cause.CLOCK_SKEW,)),
        (Vitals(clock_skew_seconds=-30.0), (Cause.CLOCK_SKEW,)),
        (Vitals(data_age_bars=5.0, exchange_errors=12), (Cause.DATA_AGE, Cause.EXCHANGE_ERRORS)),
    ],
)
def test_a_sick_outside_reduces_until_it_is_well(vitals: Vitals, causes: tuple[Cause, ...]) -> None:
    sick = guards.after_vitals(lived([100]), CONFIG, vitals, now_ms=7)
    assert (sick.causes, sick.mode) == (causes, Mode.REDUCING if causes else Mode.ACTIVE)
    well = guards.after_vitals(sick, CONFIG, Vitals(), now_ms=9)
    assert (well.causes, well.mode, well.reason) == ((), Mode.ACTIVE, "")


def test_vitals_leave_a_daily_loss_alone() -> None:
    state = guards.after_vitals(lived([100, 94]), CONFIG, Vitals(), now_ms=7)
    assert state.causes == (Cause.DAILY_LOSS,)


def test_many_orders_reduce_for_the_rest_of_the_day() -> None:
    config = GuardConfig(max_trades_per_day=2)
    state = lived([100], config=config)
    for _ in range(2):
        assert state.mode is Mode.ACTIVE
        state = guards.after_order(state, config, now_ms=1)
    assert state.causes == (Cause.TRADES,)
    tomorrow = guards.after_bar(state, config, timestamp=DAY, now_ms=DAY + HOUR, equity=100.0, flat=True)
    assert (tomorrow.mode, tomorrow.trades_today) == (Mode.ACTIVE, 0)


def test_broken_model_output_halts_and_keeps_the_position() -> None:
    state = lived([100])
    assert guards.after_model_output(state, CONFIG, finite=True, now_ms=5) == state
    broken = guards.after_model_output(state, CONFIG, finite=False, now_ms=5)
    assert (broken.mode, broken.halted, broken.flatten) == (Mode.HALTED, Cause.MODEL_OUTPUT, False)
    assert guards.permit(broken, CONFIG, target=None, exposure=1.0).target is None


# --- by will ---------------------------------------------------------------------------------------------------------


def test_halted_ends_by_resume_only() -> None:
    state = guards.halt(lived([100]), CONFIG, cause=Cause.COMMAND, now_ms=5, note="lunch")
    assert (state.mode, state.reason, state.since_ms) == (Mode.HALTED, "lunch", 5)
    later = guards.after_vitals(state, CONFIG, Vitals(), now_ms=6)
    later = guards.after_bar(later, CONFIG, timestamp=3 * DAY, now_ms=3 * DAY + HOUR, equity=120.0, flat=True)
    assert (later.mode, later.reason, later.since_ms) == (Mode.HALTED, "lunch", 5)
    assert guards.resume(later, CONFIG, now_ms=9).mode is Mode.ACTIVE


def test_a_halt_repeated_changes_nothing_and_may_add_the_wish_to_close() -> None:
    once = guards.halt(lived([100]), CONFIG, cause=Cause.COMMAND, now_ms=5)
    assert guards.halt(once, CONFIG, cause=Cause.KILL_SWITCH, now_ms=8) == once
    assert guards.halt(once, CONFIG, cause=Cause.COMMAND, now_ms=8, flatten=True).flatten


def test_resuming_accepts_the_loss() -> None:
    """Else the same drawdown would halt again at the next mark."""
    resumed = guards.resume(lived([100, 70]), CONFIG, now_ms=5)
    assert (resumed.mode, resumed.drawdown, resumed.daily_loss, resumed.flatten) == (Mode.ACTIVE, 0.0, 0.0, False)
    after = guards.after_bar(resumed, CONFIG, timestamp=2 * HOUR, now_ms=3 * HOUR, equity=69.0, flat=False)
    assert after.mode is Mode.ACTIVE


def test_resuming_does_not_heal_the_outside() -> None:
    state = guards.after_vitals(lived([100]), CONFIG, Vitals(data_age_bars=9.0), now_ms=1)
    state = guards.halt(state, CONFIG, cause=Cause.COMMAND, now_ms=2)
    assert guards.resume(state, CONFIG, now_ms=3).mode is Mode.REDUCING


# --- what may be ordered ---------------------------------------------------------------------------------------------

REDUCING = guards.after_vitals(lived([100]), CONFIG, Vitals(data_age_bars=9.0), now_ms=1)


@pytest.mark.parametrize(
    ("target", "exposure", "allowed"),
    [
        (1.0, 0.0, None),  # no new risk
        (-1.0, 0.0, None),
        (0.0, 0.0, 0.0),
        (1.0, 0.5, None),  # no more of it
        (0.5, 0.5, 0.5),
        (0.25, 0.5, 0.25),  # less is fine
        (0.0, 0.5, 0.0),
        (-0.5, 0.5, 0.0),  # turning: only the closing half
        (0.5, -0.25, 0.0),
        (-0.25, -0.5, -0.25),
        (-1.0, -0.5, None),
    ],
)
def test_reducing_lets_through_what_makes_the_position_smaller(
    target: float, exposure: float, allowed: float | None
) -> None:
    assert guards.permit(REDUCING, CONFIG, target=target, exposure=exposure).target == allowed
    assert guards.permit(lived([100]), CONFIG, target=target, exposure=exposure).target == target


@pytest.mark.parametrize(("target", "allowed"), [(2.0, 1.0), (-2.0, -1.0), (1.0, 1.0), (0.5, 0.5)])
def test_targets_are_cut_to_the_exposure_cap(target: float, allowed: float) -> None:
    given = guards.permit(lived([100]), CONFIG, target=target, exposure=0.0)
    assert (given.target, given.blocked, bool(given.note)) == (allowed, False, target != allowed)


@pytest.mark.parametrize(
    "happens",
    [
        lambda state: guards.after_bar(state, OFF, timestamp=HOUR, now_ms=2 * HOUR, equity=1e-9, flat=False),
        lambda state: guards.after_vitals(
            state, OFF, Vitals(data_age_bars=1e6, exchange_errors=999, clock_skew_seconds=1e6), now_ms=1
        ),
        lambda state: guards.after_order(state, OFF, now_ms=1),
    ],
)
def test_a_guard_that_is_off_never_holds(happens: Callable[[GuardState], GuardState]) -> None:
    assert happens(lived([100], config=OFF)).mode is Mode.ACTIVE
    assert guards.permit(lived([100], config=OFF), OFF, target=3.0, exposure=0.0).target == 3.0


# --- state -----------------------------------------------------------------------------------------------------------


def test_the_state_survives_json_to_the_last_bit() -> None:
    state = guards.after_vitals(lived([100, 100 / 3, 7 / 11]), CONFIG, Vitals(data_age_bars=1 / 3), now_ms=5)
    assert GuardState.model_validate(json.loads(json.dumps(state.model_dump(mode="json")))) == state


@pytest.mark.parametrize("field", ["mode", "equity", "causes"])
def test_a_damaged_state_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        GuardState.model_validate({**lived([100]).model_dump(mode="json"), field: "?"})


def test_a_reason_tells_what_was_found_when_it_began() -> None:
    first = guards.after_vitals(lived([100]), CONFIG, Vitals(data_age_bars=2.5), now_ms=1)
    assert first.reason == "newest bar closed 2.5 bars ago (limit 2)"
    assert guards.after_vitals(first, CONFIG, Vitals(data_age_bars=3.5), now_ms=2).reason == first.reason
    both = guards.after_vitals(first, CONFIG, Vitals(data_age_bars=3.5, exchange_errors=11), now_ms=3)
    assert both.reason == "newest bar closed 3.5 bars ago (limit 2); 11 failed requests in a row (limit 10)"
    assert both.since_ms == 1
