"""What a run earned, risked and paid: every number the report prints, as a formula on arrays.

Formulas and units are tabulated in docs/metrics.md. Three rules hold everywhere:

- the base series is the equity at the end of each UTC day, *with the initial capital as its first point*, so a loss
  on the first day counts in every figure;
- undefined is `None` with a reason, never 0, NaN or an infinity;
- annualised figures need 30 days of history; below that a figure per year is an extrapolation, not a measurement.

Legend: N marks of equity, D daily points. Times are epoch milliseconds, UTC.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SECONDS_PER_YEAR = 31_557_600  # Julian year, 365.25 days
MILLISECONDS_PER_DAY = 86_400_000
MIN_DAYS_TO_ANNUALISE = 30
MIN_DAYS_TO_TRUST = 180
TAIL = 0.05  # VaR and CVaR look at the worst 5% of days
# Spread of a series below this fraction of its level is rounding, not variation.
NO_VARIATION = 1e-12


@dataclass(frozen=True)
class Metric:
    """One reported number. `value` is None exactly when `reason` says why.

    ci: 95% interval, where one was estimated. n: observations the value rests on.
    """

    value: float | None
    n: int
    reason: str | None = None
    ci: tuple[float, float] | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "value": self.value,
            "ci": None if self.ci is None else list(self.ci),
            "n": self.n,
            "reason": self.reason,
        }

    def with_ci(self, low: float, high: float) -> "Metric":
        if self.value is None or not (math.isfinite(low) and math.isfinite(high)):
            return self
        return Metric(self.value, self.n, self.reason, (low, high))


def measured(value: float, n: int) -> Metric:
    """A metric that may have come out undefined: infinities and NaN become None."""
    if not math.isfinite(value):
        return Metric(None, n, "undefined: the formula divides by zero here")
    return Metric(float(value), n)


def undefined(reason: str, n: int = 0) -> Metric:
    """A metric without a value, and why."""
    return Metric(None, n, reason)


@dataclass(frozen=True)
class DailySeries:
    """Equity at the end of each trading day; `equity[0]` is the initial capital at the first decision.

    day: [D] days since 1970-01-01 the mark belongs to. equity: [D].
    """

    day: Ints
    equity: Floats

    @property
    def returns(self) -> Floats:
        """[D-1] simple returns."""
        return simple_returns(self.equity)


def daily_series(close_time: Ints, equity: Floats, *, days_per_year: int) -> DailySeries:
    """Reduce marks of equity to one per UTC day.

    close_time: [N] when each mark was taken: the close of its bar. close_time[0] is the first decision.
    equity:     [N] equity at those times; equity[0] is the initial capital.

    A mark taken at 24:00 belongs to the day that ends, so a daily bar counts for its own date. Markets with a weekday
    calendar (fewer than 300 days a year) that also trade on Sunday evening, as FX does, have that evening
    counted into Monday: otherwise there would be six short days a week, annualised as five.
    """
    if len(close_time) != len(equity) or len(equity) == 0:
        raise ValueError(
            f"Expected as many times as equity marks and at least one, found {len(close_time)} and {len(equity)}."
        )
    day = (np.asarray(close_time, dtype=np.int64) - 1) // MILLISECONDS_PER_DAY
    if days_per_year < 300:
        weekday = (day + 3) % 7  # 1970-01-01 was a Thursday; 0 is Monday
        day = np.where(weekday == 5, day + 2, np.where(weekday == 6, day + 1, day))
    marks_day, marks = day[1:], np.asarray(equity, dtype=np.float64)[1:]
    last_of_day = np.append(marks_day[1:] != marks_day[:-1], True) if len(marks_day) else np.zeros(0, bool)
    return DailySeries(
        day=np.concatenate([day[:1], marks_day[last_of_day]]),
        equity=np.concatenate([np.asarray(equity, dtype=np.float64)[:1], marks[last_of_day]]),
    )


def simple_returns(equity: Floats) -> Floats:
    """[N-1] E[t+1]/E[t] - 1; after ruin (equity 0) there is nothing left to earn on and the return is 0."""
    previous, current = equity[:-1], equity[1:]
    return np.divide(current, previous, out=np.ones_like(current), where=previous > 0.0) - 1.0


def _varies(returns: Floats, ddof: int = 1) -> float | None:
    """Standard deviation, or None where the series does not vary beyond rounding."""
    if len(returns) <= ddof:
        return None
    spread = float(returns.std(ddof=ddof))
    level = float(np.abs(returns).max())
    return spread if spread > NO_VARIATION * max(level, 1e-300) else None


def sharpe_ratio(returns: Floats) -> float | None:
    """Mean over standard deviation (ddof 1) per period, risk-free rate zero. None where nothing varies."""
    spread = _varies(returns)
    return None if spread is None else float(returns.mean()) / spread


def sortino_ratio(returns: Floats) -> float | None:
    """Mean over downside deviation per period; the downside is taken over *all* n (Sortino & Price 1994)."""
    if len(returns) == 0:
        return None
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
    return None if downside == 0.0 else float(returns.mean()) / downside


def skewness(returns: Floats) -> float | None:
    """Third standardised moment, population form."""
    spread = _varies(returns, ddof=0)
    return None if spread is None else float(np.mean(((returns - returns.mean()) / spread) ** 3))


def kurtosis(returns: Floats) -> float | None:
    """Fourth standardised moment, population form, *raw*: 3 for a normal distribution."""
    spread = _varies(returns, ddof=0)
    return None if spread is None else float(np.mean(((returns - returns.mean()) / spread) ** 4))


def value_at_risk(returns: Floats, tail: float = TAIL) -> float:
    """Historical VaR as a return: the `tail` quantile (linear interpolation), negative for a loss."""
    return float(np.quantile(returns, tail))


def conditional_value_at_risk(returns: Floats, tail: float = TAIL) -> float:
    """Historical CVaR (expected shortfall) as a return: the mean of the returns at or below the VaR."""
    return float(returns[returns <= value_at_risk(returns, tail)].mean())


def drawdown(equity: Floats) -> Floats:
    """[N] E/peak - 1, at most 0; the initial capital is the first peak."""
    peak = np.maximum.accumulate(equity)
    return equity / peak - 1.0


@dataclass(frozen=True)
class DrawdownSpell:
    """The deepest drawdown: where it began, was deepest and ended; `end` is None when it is not recovered."""

    depth: float
    start: int
    trough: int
    end: int | None


def deepest_drawdown(equity: Floats) -> DrawdownSpell:
    """Depth and extent of the maximum drawdown, by index into `equity`."""
    depth = drawdown(equity)
    trough = int(np.argmin(depth))
    start = int(np.argmax(equity[: trough + 1]))
    recovered = np.flatnonzero(equity[trough:] >= equity[start]) if depth[trough] < 0.0 else np.zeros(1, int)
    end = trough + int(recovered[0]) if len(recovered) else None
    return DrawdownSpell(float(depth[trough]), start, trough, end)


def longest_underwater(time_ms: Ints, equity: Floats) -> tuple[float, bool]:
    """Longest time below a former peak, in days, and whether that spell was recovered."""
    peak_index = np.arange(len(equity))
    below = drawdown(equity) < 0.0
    peak_index[below] = 0
    peak_index = np.maximum.accumulate(peak_index)
    # A spell runs from its peak to the first mark back at it: that mark sits one after the last one below.
    until = np.where(below, np.minimum(np.arange(len(equity)) + 1, len(equity) - 1), peak_index)
    length = time_ms[until] - time_ms[peak_index]
    longest = int(np.argmax(length)) if len(length) else 0
    recovered = not (below[longest] and until[longest] == len(equity) - 1 and below[-1])
    return float(length[longest]) / MILLISECONDS_PER_DAY, recovered


def years_between(start_ms: int, end_ms: int) -> float:
    """Elapsed Julian years."""
    return (end_ms - start_ms) / 1000.0 / SECONDS_PER_YEAR


@dataclass(frozen=True)
class Costs:
    """What trading cost over a run, in quote currency; positive is paid. Funding received is negative.

    fee: venue fee · spread: half-spread and its noise · impact: own price impact · latency: drift of the price between
    decision bar's open and arrival (signed) · funding: interest and funding · liquidation: forced closing.
    """

    fee: float
    spread: float
    impact: float
    latency: float
    funding: float
    liquidation: float

    @property
    def total(self) -> float:
        return self.fee + self.spread + self.impact + self.latency + self.funding + self.liquidation

    def as_dict(self) -> dict[str, float]:
        return {
            "fee": self.fee,
            "spread": self.spread,
            "impact": self.impact,
            "latency": self.latency,
            "funding": self.funding,
            "liquidation": self.liquidation,
        }


@dataclass(frozen=True)
class AccountSeries:
    """What the metrics need of one run on one path of fills; row 0 is the first decision, before anything filled.

    close_time:  [N] epoch ms at which `equity` was marked.
    equity:      [N] quote currency.
    exposure:    [N] position value over equity, signed.
    traded:      [N] absolute notional filled in the bar, quote currency.
    cost:        [N] everything of `Costs` paid in the bar. impact: [N] the impact part of it.
    """

    close_time: Ints
    equity: Floats
    exposure: Floats
    traded: Floats
    cost: Floats
    impact: Floats
    costs: Costs


@dataclass(frozen=True)
class TradeSummary:
    """Closed round trips: net profit each (quote currency), bars held each; and how many are still open."""

    pnl: Floats
    bars_held: Ints
    open_trades: int


def too_short(days: float, n: int) -> Metric:
    """The answer to any per-year question about less than a month."""
    return undefined(f"{days:.1f} days of history; annualised figures need {MIN_DAYS_TO_ANNUALISE}", n)


def compute_metrics(
    account: AccountSeries, trades: TradeSummary, *, days_per_year: int, bar_seconds: float
) -> dict[str, Metric]:
    """Every metric of one run, by name; docs/metrics.md says what each means.

    days_per_year: the instrument's trading calendar (365 for a market that never closes).
    """
    equity, time = account.equity, account.close_time
    daily = daily_series(time, equity, days_per_year=days_per_year)
    returns, bar_returns = daily.returns, simple_returns(equity)
    days = float(time[-1] - time[0]) / MILLISECONDS_PER_DAY
    years = years_between(int(time[0]), int(time[-1]))
    n, n_bars = len(returns), len(bar_returns)
    long_enough = days >= MIN_DAYS_TO_ANNUALISE

    def per_year(value: float | None, periods: float, count: int, why: str = "returns do not vary") -> Metric:
        if not long_enough:
            return too_short(days, count)
        return undefined(why, count) if value is None else measured(value * math.sqrt(periods), count)

    result: dict[str, Metric] = {}
    growth = float(equity[-1] / equity[0])
    result["final_equity"] = measured(float(equity[-1]), n_bars)
    result["total_return"] = measured(growth - 1.0, n)
    result["annual_return"] = measured(growth ** (1.0 / years) - 1.0, n) if long_enough else too_short(days, n)
    result["annual_volatility"] = per_year(
        float(returns.std(ddof=1)) if n > 1 else None, days_per_year, n, "fewer than two returns"
    )
    result["sharpe"] = per_year(sharpe_ratio(returns), days_per_year, n)
    bars_per_year = n_bars / years if years > 0 else 0.0
    result["sharpe_per_bar"] = per_year(sharpe_ratio(bar_returns), bars_per_year, n_bars)
    result["sortino"] = per_year(sortino_ratio(returns), days_per_year, n, "no day lost money")

    spell = deepest_drawdown(equity)
    result["max_drawdown"] = measured(spell.depth, n_bars)
    annual = result["annual_return"]
    if annual.value is None:
        result["calmar"] = Metric(None, n, annual.reason)
    elif spell.depth == 0.0:
        result["calmar"] = undefined("no drawdown", n)
    else:
        result["calmar"] = measured(annual.value / -spell.depth, n)
    underwater, _ = longest_underwater(time, equity)
    result["max_drawdown_days"] = measured(underwater, n_bars)

    nothing = undefined("no daily return", n)
    result["var_95_daily"] = measured(value_at_risk(returns), n) if n else nothing
    result["cvar_95_daily"] = measured(conditional_value_at_risk(returns), n) if n else nothing
    for name, moment in (("skew", skewness(returns)), ("kurtosis", kurtosis(returns))):
        result[name] = undefined("returns do not vary", n) if moment is None else measured(moment, n)

    held = account.exposure[1:]
    result["exposure"] = measured(float(np.abs(held).mean()), n_bars) if n_bars else undefined("no bar")
    result["time_in_market"] = measured(float((held != 0.0).mean()), n_bars) if n_bars else undefined("no bar")
    mean_equity = float(equity.mean())
    turnover = float(account.traded.sum()) / mean_equity if mean_equity > 0 else math.nan
    result["turnover_per_year"] = measured(turnover / years, n_bars) if long_enough else too_short(days, n_bars)
    result.update(trade_metrics(trades, bar_seconds=bar_seconds))
    result.update(cost_metrics(account, years=years, long_enough=long_enough, days=days))
    return result


def trade_metrics(trades: TradeSummary, *, bar_seconds: float) -> dict[str, Metric]:
    """Metrics of closed round trips."""
    pnl, count = trades.pnl, len(trades.pnl)
    none = undefined("no closed trade")
    gains, losses = float(pnl[pnl > 0].sum()), float(-pnl[pnl < 0].sum())
    profit_factor = none
    if count:
        profit_factor = measured(gains / losses, count) if losses > 0 else undefined("no losing trade", count)
    return {
        "trades": measured(float(count), count),
        "open_trades": measured(float(trades.open_trades), trades.open_trades),
        "hit_rate": measured(float((pnl > 0).mean()), count) if count else none,
        "profit_factor": profit_factor,
        "mean_trade_pnl": measured(float(pnl.mean()), count) if count else none,
        "mean_holding_bars": measured(float(trades.bars_held.mean()), count) if count else none,
        "mean_holding_hours": (
            measured(float(trades.bars_held.mean()) * bar_seconds / 3600.0, count) if count else none
        ),
    }


def cost_metrics(account: AccountSeries, *, years: float, long_enough: bool, days: float) -> dict[str, Metric]:
    """What was paid, what it took from growth, and how much money the edge could carry."""
    n = len(account.equity) - 1
    result = {f"cost_{name}": measured(value, n) for name, value in account.costs.as_dict().items()}
    result["cost_total"] = measured(account.costs.total, n)
    drag = _log_drag(account.equity, account.cost)
    impact_drag = _log_drag(account.equity, account.impact)
    if drag is None or impact_drag is None:
        result["cost_drag"] = result["capacity"] = undefined("the account was ruined", n)
        return result
    result["cost_drag"] = measured(drag / years, n) if long_enough else too_short(days, n)
    edge = math.log(account.equity[-1] / account.equity[0]) + impact_drag
    if impact_drag <= 0.0:
        result["capacity"] = undefined("no impact was charged: nothing to scale", n)
    elif edge <= 0.0:
        result["capacity"] = undefined("no edge to eat: the run loses money before impact", n)
    else:
        # Square-root impact: its share of equity grows as the root of equity (fills.py), so it takes half
        # of the edge where sqrt(E/E0) * impact_drag = edge / 2.
        result["capacity"] = measured(float(account.equity[0]) * (edge / (2.0 * impact_drag)) ** 2, n)
    return result


def _log_drag(equity: Floats, cost: Floats) -> float | None:
    """Sum over bars of ln(1 + cost/equity): the growth that costs took. None after ruin."""
    if float(equity.min()) <= 0.0:
        return None
    gross = np.maximum(equity[1:] + cost[1:], 1e-300)
    return float(np.log(gross / equity[1:]).sum())


def rolling_sharpe(returns: Floats, window: int, days_per_year: int) -> Floats:
    """[D] annualised Sharpe over the last `window` returns; NaN before the window is full or where nothing varies."""
    result = np.full(len(returns), np.nan)
    if len(returns) < window or window < 2:
        return result
    windows = np.lib.stride_tricks.sliding_window_view(returns, window)
    spread = windows.std(axis=1, ddof=1)
    mean = windows.mean(axis=1)
    flat = spread <= NO_VARIATION * np.maximum(np.abs(windows).max(axis=1), 1e-300)
    result[window - 1 :] = np.where(flat, np.nan, mean / np.where(flat, 1.0, spread) * math.sqrt(days_per_year))
    return result


def values(metrics: Mapping[str, Metric]) -> dict[str, float | None]:
    """Just the numbers."""
    return {name: metric.value for name, metric in metrics.items()}
