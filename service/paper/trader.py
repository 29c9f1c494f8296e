"""The paper trader's core: a closed bar and what is remembered in, what is to be recorded out.

Pure: no clock, disk or network, and nothing kept between calls. The same bar, history and standing give the same step,
so a crash before a step is written repeats it, and a backtest of the same bars takes the same steps.

One bar, in order: the pending order fills in it and the account is marked (`market_env.session`), the guards look, the
model is asked, the guards permit, the order is fixed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from data.bars import Bars
from data.features import ewma_volatility, trailing_median_volume
from data.trailing import HALF_LIVES_KEPT, VOLATILITY_HALF_LIFE, VOLUME_WINDOW
from market_env import guards as guarding
from market_env.config import MarketConfig
from market_env.guards import Cause, GuardConfig, GuardState, Mode, Permit, Vitals
from market_env.instrument import Instrument
from market_env.session import BarInput, BarRecord, Order, TradingSession
from service.errors import InvalidModelOutput
from service.model import Answer, Sent, ServedModel
from service.outlook import outlook
from service.paper.explain import explain
from service.schemas import Outlook

# The volatility of the fill model is exact with this many bars (`data.trailing`), its median volume with fewer.
STATISTICS_BARS = max(HALF_LIVES_KEPT * VOLATILITY_HALF_LIFE + 1, VOLUME_WINDOW)


class Verdict(StrEnum):
    """Whether a closed bar may be decided on."""

    DECIDE = "decide"
    LATE = "late"
    GAP = "gap"


class Status(StrEnum):
    """What became of the decision of a bar, as the ledger calls it."""

    DECIDED = "decided"
    BLOCKED = "blocked"
    SKIPPED_LATE = "skipped_late"
    SKIPPED_GAP = "skipped_gap"


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays the same for a whole run. seed: of the fill draws. initial_equity: quote currency."""

    model: ServedModel
    market: MarketConfig
    instrument: Instrument
    seed: int
    initial_equity: float
    guards: GuardConfig

    @cached_property
    def history_bars(self) -> int:
        """Bars up to and including the one decided on that a decision and its order need."""
        return max(self.model.required_bars, STATISTICS_BARS)


@dataclass(frozen=True, eq=False)
class Standing:
    """What is remembered from bar to bar; JSON-able. session: `TradingSession.get_state`, None before the first bar."""

    session: Mapping[str, Any] | None
    guards: GuardState

    @classmethod
    def opened(cls, setup: Setup, *, now_ms: int) -> "Standing":
        """An account that begins now."""
        return cls(None, GuardState.opened(setup.initial_equity, now_ms=now_ms))


@dataclass(frozen=True, eq=False)
class Thought:
    """The model's answer and what it weighed. latency_ms: of features and search."""

    answer: Answer
    outlook: list[Outlook]
    latency_ms: float


@dataclass(frozen=True, eq=False)
class Submission:
    """An order with everything it was computed from."""

    order: Order
    sigma: float
    median_volume: float


@dataclass(frozen=True, eq=False)
class Step:
    """Everything that one closed bar led to. reason: for people. mode: of the guards when they permitted."""

    bar: BarInput
    record: BarRecord
    status: Status
    reason: str
    mode: Mode
    thought: Thought | None
    submission: Submission | None
    standing: Standing


def take_bar(
    setup: Setup,
    standing: Standing,
    history: Bars,
    *,
    verdict: Verdict,
    vitals: Vitals,
    note: str = "",
    stopwatch: Callable[[], float],
) -> Step:
    """Take the account through the last bar of `history`, and decide at its close where the verdict says so.

    history: at least `setup.history_bars` bars if it is to be decided on; more change nothing. vitals: of the outside,
    at this moment. note: why it is not decided on. stopwatch: seconds, to measure the latency.
    """
    bar = BarInput.from_bars(history, len(history) - 1)
    close_ms = bar.timestamp + bar.duration_ms
    session = TradingSession(setup.market, setup.instrument, setup.seed, setup.initial_equity)
    if standing.session is not None:
        session.set_state(standing.session)
    record = session.on_bar(bar)
    state = guarding.after_bar(
        standing.guards,
        setup.guards,
        timestamp=bar.timestamp,
        now_ms=close_ms,
        equity=record.equity,
        flat=record.units == 0.0,
    )
    state = guarding.after_vitals(state, setup.guards, vitals, now_ms=close_ms)

    thought: Thought | None = None
    failure: Exception | None = None
    if verdict is Verdict.DECIDE and not session.ruined:
        began = stopwatch()
        found = _ask(setup.model, history, session)
        if isinstance(found, Answer):
            meant = outlook(found.chance, setup.model.meanings)
            thought = Thought(found, meant, (stopwatch() - began) * 1_000.0)
        else:
            failure = found
            state = _after_failure(state, setup.guards, found, close_ms)

    if session.ruined:
        given = Permit(None, True, "nothing is left to trade with")
    elif verdict is Verdict.LATE:
        given = Permit(None, False, note)  # whatever was ordered now would be filled at a price of the past
    else:
        wish = None if thought is None else float(setup.model.grid.targets[thought.answer.action])
        given = guarding.permit(state, setup.guards, target=wish, exposure=record.exposure)
    mode = state.mode

    submission: Submission | None = None
    if given.target is not None:
        sigma = float(ewma_volatility(history.close[-STATISTICS_BARS:])[-1])
        median_volume = float(trailing_median_volume(history.volume[-STATISTICS_BARS:])[-1])
        order = session.submit(given.target, sigma=sigma, median_volume=median_volume)
        submission = Submission(order, sigma, median_volume)
        if order.quantity != 0.0:
            state = guarding.after_order(state, setup.guards, now_ms=close_ms)

    return Step(
        bar=bar,
        record=record,
        status=_status(verdict, given, thought),
        reason=_reason(setup, record, thought, failure, given, verdict, note),
        mode=mode,
        thought=thought,
        submission=submission,
        standing=Standing(session.get_state(), state),
    )


def _ask(model: ServedModel, history: Bars, session: TradingSession) -> Answer | Exception:
    """The road of a request to /v1/act, from the bars it would send on."""
    bars = history.slice(-model.required_bars, None)
    [answer] = model.answer([Sent(bars, session.account_observation(), simulations=None)])
    return answer


def _after_failure(state: GuardState, config: GuardConfig, failure: Exception, now_ms: int) -> GuardState:
    """No usable answer halts. Output that is not finite is the guard's own case; anything else says what it was."""
    if isinstance(failure, InvalidModelOutput):
        return guarding.after_model_output(state, config, finite=False, now_ms=now_ms)
    note = f"the model failed: {type(failure).__name__}: {failure}"
    return guarding.halt(state, config, cause=Cause.MODEL_OUTPUT, now_ms=now_ms, note=note)


def _status(verdict: Verdict, given: Permit, thought: Thought | None) -> Status:
    if verdict is Verdict.LATE:
        return Status.SKIPPED_LATE
    if verdict is Verdict.GAP:
        return Status.SKIPPED_GAP
    return Status.BLOCKED if given.blocked or thought is None else Status.DECIDED


def _reason(
    setup: Setup,
    record: BarRecord,
    thought: Thought | None,
    failure: Exception | None,
    given: Permit,
    verdict: Verdict,
    note: str,
) -> str:
    parts = []
    if verdict is not Verdict.DECIDE:
        parts.append(note)
        if verdict is Verdict.GAP and given.target is not None:
            parts.append(given.note)
        return ". ".join(parts)
    if thought is not None:
        answer = thought.answer
        parts.append(
            explain(
                action=answer.action,
                targets=setup.model.target_positions,
                policy=answer.policy,
                q_values=answer.q_values,
                value=answer.value,
                held=record.exposure / setup.model.max_leverage,
                band=setup.market.actions.no_trade_band / setup.model.max_leverage,
                outlook=thought.outlook,
            )
        )
    if failure is not None:
        parts.append(f"no usable answer ({failure})")
    if given.note:
        parts.append(given.note)
    return ". ".join(parts)


# --- whether to decide -----------------------------------------------------------------------------------------------


def judge(
    history: Bars, *, now_ms: int, late_after_ms: int, continuous: bool, hold_after_gap: int
) -> tuple[Verdict, str]:
    """Whether the last bar of `history` may be decided on at `now_ms`, and why not.

    continuous: whether every bar of the grid should be there. hold_after_gap: bars that must follow each other.
    """
    step = history.timeframe.milliseconds
    late_ms = now_ms - history.timeframe.close_of(int(history.timestamp[-1]))
    if late_ms > late_after_ms:
        return Verdict.LATE, (
            f"seen {late_ms / 1_000:.0f} s after its close; an order decided now would get a price that is gone"
        )
    if continuous:
        recent = history.timestamp[-hold_after_gap:]
        missing = int(recent[-1] - recent[0]) // step - (len(recent) - 1)
        if missing:
            last = recent[int(np.flatnonzero(np.diff(recent) > step)[-1])]
            after = int(np.count_nonzero(recent > last))
            return Verdict.GAP, (
                f"{missing} bar{'s' if missing > 1 else ''} missing among the last {hold_after_gap}; holding, bar "
                f"{after} since the gap"
            )
    return Verdict.DECIDE, ""
