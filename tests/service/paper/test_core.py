"""The paper trader's core takes the steps a backtest of the same bars takes, and knows nothing of what comes after."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from agent.policy import Decision
from backtest.results import Run
from backtest.runner import run_policy
from data.bars import Bars
from data.synthetic import martingale
from market_env.guards import Cause, GuardConfig, GuardState, Mode, Vitals
from market_env.instrument import Instrument
from market_env.market import Market
from service.model import ServedModel
from service.outlook import outlook
from service.paper.trader import Setup, Standing, Status, Step, Verdict, judge, take_bar

SEED = 7
START = 2000
ROWS = 120
LEDGER = ("equity", "cash", "units", "qty_ordered", "qty_filled", "fill_price", "fee", "slippage_cost", "funding")
HELD = {"max_drawdown": 0.002, "max_daily_loss": 0.001}  # so tight that they hold within the bars of these tests

OFF = GuardConfig.model_validate(dict.fromkeys(GuardConfig.model_fields))


@pytest.fixture(scope="module", params=["guarded", "tight"])
def limits(request: pytest.FixtureRequest) -> GuardConfig:
    return GuardConfig(**(HELD if request.param == "tight" else {}))


@pytest.fixture(scope="module")
def setup(served: ServedModel, limits: GuardConfig) -> Setup:
    market = served.experiment.market.for_evaluation()
    return Setup(served, market, Instrument.for_symbol("sp500"), SEED, market.episode.initial_equity, limits)


def counting() -> Callable[[], float]:
    ticks: Iterator[int] = iter(range(10**9))
    return lambda: float(next(ticks))


def walk(
    setup: Setup, bars: Bars, rows: range, *, verdicts: Callable[[int], Verdict] = lambda row: Verdict.DECIDE
) -> list[Step]:
    """Bar by bar, with everything that is remembered put through JSON as a restart would."""
    steps: list[Step] = []
    standing = Standing.opened(setup, now_ms=0)
    for row in rows:
        step = take_bar(
            setup,
            standing,
            bars.slice(row + 1 - setup.history_bars, row + 1),
            verdict=verdicts(row),
            vitals=Vitals(),
            note="because",
            stopwatch=counting(),
        )
        steps.append(step)
        remembered = json.loads(json.dumps(step.standing.session))
        guards = GuardState.model_validate(json.loads(json.dumps(step.standing.guards.model_dump(mode="json"))))
        standing = Standing(remembered, guards)
    return steps


@pytest.fixture(scope="module")
def steps(setup: Setup, sample: Bars) -> list[Step]:
    return walk(setup, sample, range(START, START + ROWS))


@pytest.fixture(scope="module")
def backtested(setup: Setup, sample: Bars) -> Run:
    market = Market.prepare(
        sample.slice(0, START + ROWS),
        setup.model.features,
        setup.instrument,
        start=int(sample.timestamp[START]),
        window=setup.model.window,
    )
    return run_policy(setup.model.policy, market, setup.market, seeds=[SEED], guards=setup.guards)


def test_every_column_of_the_account_is_the_backtests_to_the_last_bit(steps: list[Step], backtested: Run) -> None:
    assert [step.record.timestamp for step in steps] == backtested.market.timestamp.tolist()
    for name in LEDGER:
        mine = np.array([getattr(step.record, name) for step in steps], dtype=np.float64)
        theirs = np.asarray(getattr(backtested.accounts, name)[0], dtype=np.float64)
        assert np.array_equal(mine, theirs), name
    orders = np.array([np.nan if step.submission is None else step.submission.order.target for step in steps])
    assert np.array_equal(orders, backtested.accounts.target[0], equal_nan=True)
    assert np.count_nonzero(backtested.accounts.qty_filled) > 0, "nothing traded: the comparison would prove nothing"


def test_every_decision_is_the_backtests_to_the_last_bit(steps: list[Step], backtested: Run) -> None:
    decisions = backtested.decisions
    assert decisions is not None
    for row, step in enumerate(steps):
        assert step.thought is not None
        answer = step.thought.answer
        assert answer.action == decisions.action[0, row]
        assert answer.value == float(decisions.value[0, row])
        assert answer.policy == decisions.policy[0, row].tolist()
        assert answer.prior == decisions.prior[0, row].tolist()
        assert answer.q_values == decisions.q_values[0, row].tolist()
        assert np.array_equal(answer.chance, decisions.chance_probabilities[0, row])


def test_tight_guards_held_something_back(steps: list[Step], limits: GuardConfig) -> None:
    held = {step.mode for step in steps}
    assert (Mode.HALTED in held) == (limits.max_drawdown == HELD["max_drawdown"])


def test_the_outlook_is_the_one_of_the_service(steps: list[Step], setup: Setup) -> None:
    thought = steps[3].thought
    assert thought is not None
    assert thought.outlook == outlook(thought.answer.chance, setup.model.meanings)
    assert sum(one.probability for one in thought.outlook) == pytest.approx(1.0, abs=1e-5)


def scrambled_after(bars: Bars, last: int) -> Bars:
    other = martingale(len(bars), seed=999, price=3.0, volatility=0.05)
    columns = {
        name: np.concatenate([getattr(bars, name)[: last + 1], getattr(other, name)[last + 1 :]])
        for name in ("open", "high", "low", "close", "volume")
    }
    return Bars(bars.symbol, bars.timeframe, bars.venue, bars.timestamp, **columns)


@pytest.mark.parametrize("cut", [0, 17, 80])
def test_more_history_changes_nothing(setup: Setup, sample: Bars, steps: list[Step], cut: int) -> None:
    row = START + cut
    standing = Standing.opened(setup, now_ms=0) if cut == 0 else steps[cut - 1].standing
    again = take_bar(
        setup, standing, sample.slice(0, row + 1), verdict=Verdict.DECIDE, vitals=Vitals(), stopwatch=counting()
    )
    assert again.reason == steps[cut].reason
    assert again.standing.session == steps[cut].standing.session
    assert again.submission is None or steps[cut].submission is not None


def test_a_late_bar_is_marked_and_orders_nothing(setup: Setup, sample: Bars) -> None:
    late = range(START + 5, START + 9)
    verdicts = lambda row: Verdict.LATE if row in late else Verdict.DECIDE  # noqa: E731
    steps = walk(setup, sample, range(START, START + 20), verdicts=verdicts)
    for row in late:
        step = steps[row - START]
        assert (step.status, step.reason, step.thought, step.submission) == (
            Status.SKIPPED_LATE, "because", None, None,
        )  # fmt: skip
    # What was pending when it fell silent filled in the first bar it missed; then the position was held.
    first = steps[5].record
    assert first.qty_ordered == (0.0 if steps[4].submission is None else steps[4].submission.order.quantity)
    assert all(step.record.qty_ordered == 0.0 for step in steps[6:9])


def test_a_gap_holds_but_a_halted_account_still_closes(setup: Setup, sample: Bars) -> None:
    free = Setup(setup.model, setup.market, setup.instrument, SEED, setup.initial_equity, OFF)
    steps = walk(free, sample, range(START, START + ROWS))
    place = next(row for row in range(ROWS) if all(step.record.units != 0.0 for step in steps[row : row + 2]))
    holding, row = steps[place], START + place + 1
    halted = holding.standing.guards.model_copy(
        update={"mode": Mode.HALTED, "halted": Cause.DRAWDOWN, "flatten": True, "reason": "drawdown"}
    )
    calm = holding.standing.guards.model_copy(update={"mode": Mode.ACTIVE, "halted": None, "flatten": False})
    for guards, ordered in ((calm, False), (halted, True)):
        step = take_bar(
            free,
            Standing(holding.standing.session, guards),
            sample.slice(0, row + 1),
            verdict=Verdict.GAP,
            vitals=Vitals(),
            note="a bar is missing",
            stopwatch=counting(),
        )
        assert step.status is Status.SKIPPED_GAP
        assert step.thought is None
        assert (step.submission is not None) == ordered
        assert step.reason.startswith("a bar is missing")


@pytest.mark.parametrize("broken", ["nan", "raises"])
def test_a_model_without_an_answer_halts(
    setup: Setup, sample: Bars, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = setup.model.policy.act

    def act(*arguments: object, **options: object) -> Decision:
        if broken == "raises":
            raise FloatingPointError("a tensor exploded")
        decision = original(*arguments, **options)  # type: ignore[arg-type]
        decision.value[:] = np.nan
        return decision

    monkeypatch.setattr(setup.model.policy, "act", act)
    steps = walk(setup, sample, range(START, START + 3))
    assert [step.status for step in steps] == [Status.BLOCKED] * 3
    assert all(step.thought is None and step.submission is None for step in steps)
    assert all(step.mode is Mode.HALTED for step in steps)
    assert "exploded" in steps[0].reason if broken == "raises" else "not finite" in steps[0].reason
    monkeypatch.undo()
    again = take_bar(
        setup, steps[-1].standing, sample.slice(0, START + 4), verdict=Verdict.DECIDE, vitals=Vitals(),
        stopwatch=counting(),
    )  # fmt: skip
    assert again.status is Status.BLOCKED, "a model that is well again does not resume by itself"
    assert again.thought is not None


# --- when to decide --------------------------------------------------------------------------------------------------

HOUR = 3_600_000


@pytest.mark.parametrize(
    ("keep", "late_by", "verdict"),
    [
        (lambda row: True, 0, Verdict.DECIDE),
        (lambda row: True, 180_000, Verdict.DECIDE),
        (lambda row: True, 180_001, Verdict.LATE),
        (lambda row: True, 9 * HOUR, Verdict.LATE),
        (lambda row: row != 38, 0, Verdict.GAP),
        (lambda row: row not in (32, 33), 0, Verdict.GAP),
        (lambda row: row != 30, 0, Verdict.DECIDE),  # outside the last eight
        (lambda row: row != 38, HOUR, Verdict.LATE),
    ],
)
def test_only_fresh_bars_without_a_gap_are_decided_on(
    keep: Callable[[int], bool], late_by: int, verdict: Verdict
) -> None:
    made = martingale(40, seed=1)
    rows = [row for row in range(40) if keep(row)]
    columns = {name: getattr(made, name)[rows] for name in ("timestamp", "open", "high", "low", "close", "volume")}
    bars = Bars(made.symbol, made.timeframe, made.venue, **columns)
    now = int(bars.timestamp[-1]) + HOUR + late_by
    found, why = judge(bars, now_ms=now, late_after_ms=180_000, continuous=True, hold_after_gap=8)
    assert found is verdict
    assert bool(why) == (verdict is not Verdict.DECIDE)
    if verdict is Verdict.GAP:  # a market that closes has gaps that mean nothing
        assert judge(bars, now_ms=now, late_after_ms=180_000, continuous=False, hold_after_gap=8)[0] is Verdict.DECIDE
