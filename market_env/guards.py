"""Guards between a decision and an order: limits on loss, exposure and trading, and when to trust nobody.

A small state machine over explicit state. Every function takes a state and returns the next one; clock, equity and
vital signs come in as arguments. The backtest (`--guards`) and the paper trader walk through the same functions, so
that what a guard would have done can be measured before it is trusted.

    ACTIVE    the agent's target becomes the order
    REDUCING  only what makes the position smaller; ends by itself when its causes are gone
    HALTED    no order but the one that closes the position, where the cause asks for that; ends by `resume` only

Drawdown from the peak and broken model output halt, because neither heals by waiting. A daily loss, too many trades,
old data, exchange errors and a wrong clock reduce: the next day, bar or reply may be sound again.

Days are UTC and begin with the first bar that opens in them. Equity in the quote currency.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from pydantic import Field

from market_env.config import Section

DAY_MS: Final = 86_400_000


class Mode(StrEnum):
    """What may be ordered."""

    ACTIVE = "ACTIVE"
    REDUCING = "REDUCING"
    HALTED = "HALTED"


class Cause(StrEnum):
    """Why a guard holds."""

    DRAWDOWN = "drawdown"
    DAILY_LOSS = "daily_loss"
    TRADES = "trades"
    DATA_AGE = "data_age"
    EXCHANGE_ERRORS = "exchange_errors"
    CLOCK_SKEW = "clock_skew"
    MODEL_OUTPUT = "model_output"
    COMMAND = "command"
    KILL_SWITCH = "kill_switch"


class GuardConfig(Section):
    """Where the guards stand. null switches one off."""

    max_drawdown: float | None = Field(
        default=0.20, gt=0.0, lt=1.0, description="fraction lost from the peak that closes the position and halts"
    )
    max_daily_loss: float | None = Field(
        default=0.05, gt=0.0, lt=1.0, description="fraction lost since the UTC day began that ends buying risk that day"
    )
    max_exposure: float | None = Field(default=1.0, gt=0.0, description="largest |target exposure|, x equity")
    max_trades_per_day: int | None = Field(default=100, ge=1, description="orders in a UTC day, then reducing only")
    max_data_age_bars: float | None = Field(
        default=2.0, gt=0.0, description="bar lengths since the newest bar's close after which data are old"
    )
    max_exchange_errors: int | None = Field(default=10, ge=1, description="failed requests in a row")
    max_clock_skew_seconds: float | None = Field(
        default=5.0, gt=0.0, description="largest |difference| of this machine's clock from the exchange's"
    )


class Vitals(Section):
    """How the outside is doing. A backtest has no outside: its vitals are the defaults."""

    data_age_bars: float = Field(default=0.0, description="bar lengths since the newest bar closed")
    exchange_errors: int = Field(default=0, ge=0, description="failed requests in a row")
    clock_skew_seconds: float = Field(default=0.0, description="exchange's clock minus this machine's")


class GuardState(Section):
    """Everything the guards remember, JSON-able (`model_dump`, `model_validate`).

    causes: why only reducing orders are let through, in the order of `Cause`; mode says what follows from all of it.
    halted: why nothing is. flatten: whether the position is still to be closed. since_ms: when mode last changed.
    equity: at the last mark. day: UTC days since the epoch, of the last bar's open.
    """

    mode: Mode = Mode.ACTIVE
    reason: str = ""
    since_ms: int = 0
    causes: tuple[Cause, ...] = ()
    halted: Cause | None = None
    flatten: bool = False
    equity: float
    peak_equity: float
    day: int | None = None
    day_open_equity: float
    trades_today: int = 0
    vitals: Vitals = Vitals()

    @classmethod
    def opened(cls, equity: float, *, now_ms: int = 0) -> Self:
        """Of an account that begins now."""
        return cls(equity=equity, peak_equity=equity, day_open_equity=equity, since_ms=now_ms)

    @property
    def drawdown(self) -> float:
        """Fraction lost from the peak at the last mark."""
        return 1.0 - self.equity / self.peak_equity if self.peak_equity > 0.0 else 0.0

    @property
    def daily_loss(self) -> float:
        """Fraction lost since the day began, at the last mark; negative in profit."""
        return 1.0 - self.equity / self.day_open_equity if self.day_open_equity > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Permit:
    """What becomes of a wish. target: exposure to order, None: place no order. blocked: whether a guard overruled the
    agent. note: why, for people; empty where the wish is followed."""

    target: float | None
    blocked: bool
    note: str


# --- what happens ----------------------------------------------------------------------------------------------------


def after_bar(
    state: GuardState, config: GuardConfig, *, timestamp: int, now_ms: int, equity: float, flat: bool
) -> GuardState:
    """A bar has been marked. timestamp: its open, now_ms: its close, epoch ms. flat: whether no position is held."""
    causes, day_open, trades = state.causes, state.day_open_equity, state.trades_today
    day = timestamp // DAY_MS
    if day != state.day:
        # What the account was worth when the day began: at the last mark before it.
        causes, day_open, trades = _without(causes, Cause.DAILY_LOSS, Cause.TRADES), state.equity, 0
    marked = state.model_copy(
        update={
            "equity": equity,
            "peak_equity": max(state.peak_equity, equity),
            "day": day,
            "day_open_equity": day_open,
            "trades_today": trades,
        }
    )
    if config.max_daily_loss is not None and marked.daily_loss >= config.max_daily_loss:
        causes = _with(causes, Cause.DAILY_LOSS)
    halted, flatten = state.halted, state.flatten and not flat
    if halted is None and config.max_drawdown is not None and marked.drawdown >= config.max_drawdown:
        halted, flatten = Cause.DRAWDOWN, not flat
    after = marked.model_copy(update={"causes": causes, "halted": halted, "flatten": flatten})
    return _settled(state, after, config, now_ms)


def after_vitals(state: GuardState, config: GuardConfig, vitals: Vitals, *, now_ms: int) -> GuardState:
    """The outside has been looked at."""
    age, errors, skew = config.max_data_age_bars, config.max_exchange_errors, config.max_clock_skew_seconds
    exceeded = {
        Cause.DATA_AGE: age is not None and vitals.data_age_bars > age,
        Cause.EXCHANGE_ERRORS: errors is not None and vitals.exchange_errors >= errors,
        Cause.CLOCK_SKEW: skew is not None and abs(vitals.clock_skew_seconds) > skew,
    }
    causes = _with(_without(state.causes, *exceeded), *(cause for cause, over in exceeded.items() if over))
    return _settled(state, state.model_copy(update={"vitals": vitals, "causes": causes}), config, now_ms)


def after_order(state: GuardState, config: GuardConfig, *, now_ms: int) -> GuardState:
    """An order has been placed."""
    trades = state.trades_today + 1
    enough = config.max_trades_per_day is not None and trades >= config.max_trades_per_day
    causes = _with(state.causes, Cause.TRADES) if enough else state.causes
    return _settled(state, state.model_copy(update={"trades_today": trades, "causes": causes}), config, now_ms)


def after_model_output(state: GuardState, config: GuardConfig, *, finite: bool, now_ms: int) -> GuardState:
    """The model has answered. NaN or infinity halts: weights do not heal."""
    if finite or state.halted is not None:
        return state
    return _settled(state, state.model_copy(update={"halted": Cause.MODEL_OUTPUT}), config, now_ms)


def halt(
    state: GuardState, config: GuardConfig, *, cause: Cause, now_ms: int, flatten: bool = False, note: str = ""
) -> GuardState:
    """Stop by somebody's will. A halted account may still be told to close its position. note: the reason to show."""
    after = state.model_copy(update={"halted": state.halted or cause, "flatten": state.flatten or flatten})
    return _settled(state, after, config, now_ms, note)


def resume(state: GuardState, config: GuardConfig, *, now_ms: int) -> GuardState:
    """Trade again by somebody's will. The loss so far is accepted: peak and day begin at the present equity."""
    after = state.model_copy(
        update={
            "halted": None,
            "flatten": False,
            "causes": _without(state.causes, Cause.DAILY_LOSS),
            "peak_equity": state.equity,
            "day_open_equity": state.equity,
        }
    )
    return _settled(state, after, config, now_ms)


# --- what may be ordered ---------------------------------------------------------------------------------------------


def permit(state: GuardState, config: GuardConfig, *, target: float | None, exposure: float) -> Permit:
    """What of a wish may be ordered. target: exposure the agent asks for, None: it gave no usable answer. exposure:
    held now, position value / equity."""
    if state.mode is Mode.HALTED:
        if state.flatten and exposure != 0.0:
            return Permit(0.0, True, f"closing the position: {state.reason}")
        return Permit(None, True, f"no order: {state.reason}")
    if target is None:
        return Permit(None, True, "no order: the agent gave no answer")
    note = ""
    if config.max_exposure is not None and abs(target) > config.max_exposure:
        note = f"target {target:+g} cut to the exposure cap {config.max_exposure:g}"
        target = math.copysign(config.max_exposure, target)
    if state.mode is Mode.ACTIVE:
        return Permit(target, False, note)
    if target * exposure < 0.0:
        return Permit(0.0, True, f"closing instead of turning: {state.reason}")
    if abs(target) > abs(exposure):
        return Permit(None, True, f"no new risk: {state.reason}")
    return Permit(target, False, note)


# --- what follows ----------------------------------------------------------------------------------------------------


def _settled(before: GuardState, after: GuardState, config: GuardConfig, now_ms: int, note: str = "") -> GuardState:
    """`after` with the mode and the reason that its causes amount to. note: a reason given by whoever halts.

    A cause that goes on is told as it was when it began: figures that move would make every bar a piece of news.
    """
    if after.halted is not None:
        mode = Mode.HALTED
        reason = before.reason if before.halted is not None else note or _told(after.halted, after, config)
    elif after.causes:
        mode = Mode.REDUCING
        known = before.mode is Mode.REDUCING and after.causes == before.causes
        reason = before.reason if known else "; ".join(_told(cause, after, config) for cause in after.causes)
    else:
        mode, reason = Mode.ACTIVE, ""
    since = before.since_ms if mode is before.mode else now_ms
    return after.model_copy(update={"mode": mode, "reason": reason, "since_ms": since})


def _with(causes: tuple[Cause, ...], *added: Cause) -> tuple[Cause, ...]:
    return tuple(cause for cause in Cause if cause in causes or cause in added)


def _without(causes: tuple[Cause, ...], *removed: Cause) -> tuple[Cause, ...]:
    return tuple(cause for cause in causes if cause not in removed)


def _told(cause: Cause, state: GuardState, config: GuardConfig) -> str:
    """A cause in words: what was found, and the limit."""
    vitals = state.vitals
    match cause:
        case Cause.DRAWDOWN:
            return f"drawdown of {state.drawdown:.1%} from the peak (limit {config.max_drawdown:.0%})"
        case Cause.DAILY_LOSS:
            return f"loss of {state.daily_loss:.1%} since the day began (limit {config.max_daily_loss:.0%})"
        case Cause.TRADES:
            return f"{state.trades_today} orders today (limit {config.max_trades_per_day})"
        case Cause.DATA_AGE:
            return f"newest bar closed {vitals.data_age_bars:.1f} bars ago (limit {config.max_data_age_bars:g})"
        case Cause.EXCHANGE_ERRORS:
            return f"{vitals.exchange_errors} failed requests in a row (limit {config.max_exchange_errors})"
        case Cause.CLOCK_SKEW:
            return (
                f"clock differs by {vitals.clock_skew_seconds:+.1f} s from the exchange's "
                f"(limit {config.max_clock_skew_seconds:g} s)"
            )
        case Cause.MODEL_OUTPUT:
            return "the model's output is not finite"
        case Cause.COMMAND:
            return "stopped by command"
        case Cause.KILL_SWITCH:
            return "stopped by the kill-switch file"
