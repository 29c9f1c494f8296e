"""Neither acting nor learning runs ahead of the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flow import ReplayRatio


def _flow(**changes: float) -> ReplayRatio:
    settings = {"updates_per_record": 0.5, "min_records": 10, "slack": 4.0, **changes}
    return ReplayRatio(**settings)  # type: ignore[arg-type]


def test_records_up_to_the_minimum_pay_for_nothing() -> None:
    flow = _flow()
    flow.order(8)
    flow.accept(8, held=8)
    assert flow.due == 0
    flow.order(8)
    flow.accept(8, held=16)
    assert flow.due == 3  # six of the sixteen


def test_orders_stop_when_the_learner_lags_and_go_on_when_it_catches_up() -> None:
    flow = _flow()
    flow.order(18)
    flow.accept(18, held=18)
    assert flow.due == 4
    assert not flow.may_order
    flow.spend(1)
    assert flow.may_order
    flow.order(2)
    assert not flow.may_order, "what is under way counts"
    flow.withdraw(2)
    assert flow.may_order, "what will not come does not"


def test_a_lost_replay_is_filled_again_before_anything_is_due() -> None:
    flow = _flow()
    flow.order(18)
    flow.accept(18, held=18)
    flow.lose(held=0)
    assert flow.due == 0
    assert flow.may_order
    flow.order(10)
    flow.accept(10, held=10)
    assert flow.due == 0


@given(st.lists(st.sampled_from(["order", "arrive", "lose", "learn"]), max_size=200), st.floats(0.01, 2.0))
def test_the_ratio_holds_within_the_slack_whatever_the_order_of_events(events: list[str], price: float) -> None:
    chunk, minimum, slack = 8, 20, 30 * price
    flow = ReplayRatio(updates_per_record=price, min_records=minimum, slack=slack)
    under_way = held = updates = 0
    for event in events:
        if event == "order" and flow.may_order:
            flow.order(chunk)
            under_way += 1
        elif event == "arrive" and under_way:
            under_way, held = under_way - 1, held + chunk
            flow.accept(chunk, held)
        elif event == "lose" and under_way:
            under_way -= 1
            flow.withdraw(chunk)
        elif event == "learn" and flow.due:
            updates += 1
            flow.spend(1)
        paid = price * max(0, held - minimum)
        assert updates <= paid + 1e-6
        assert paid - updates < slack + price * (chunk + minimum), "acting never runs ahead by more than the slack"


def test_neither_side_can_wait_for_the_other_for_ever() -> None:
    """Whenever nothing is under way, there is an order to give or an update to make."""
    for price in (0.001, 0.04, 1.0, 7.0):
        flow = ReplayRatio(updates_per_record=price, min_records=10, slack=max(2.0, 16 * price))
        held = 0
        for _ in range(500):
            if flow.due:
                flow.spend(flow.due)
            else:
                assert flow.may_order
                flow.order(8)
                held += 8
                flow.accept(8, held)


def test_a_resumed_run_still_owes_what_it_owed() -> None:
    flow = _flow(owed=3.5)
    flow.lose(held=20)
    flow.owed = 3.5
    assert flow.due == pytest.approx(3)
