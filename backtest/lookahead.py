"""Does anything know tomorrow? An audit of features, observations and decisions against changed futures.

At many decision bars t the future is first cut off, then replaced by another market; every feature value and every
decision up to t has to stay the same to the last bit. Values are also recomputed from short histories, because a
feature that remembers more than it declares is another feature live than it was in training.

An audit that never fails proves nothing, so there are two controls: a planted leak that must be found, and an oracle
that must get rich.

Legend: N bars, F features, W = warm-up + window - 1 bars of history that an observation declares to need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.policy import Policy
from backtest.metrics import Floats, sharpe_ratio, simple_returns
from backtest.results import Run
from backtest.runner import Stretch, run_policy, run_series
from data.bars import Bars
from market_env.config import MarketConfig
from market_env.instrument import Instrument
from market_env.market import Market

HISTORIES = (1, 2, 4)  # times W
SEGMENT = 10  # consecutive decisions replayed before each cut
LEDGER = ("equity", "cash", "units", "target", "qty_ordered", "qty_filled", "fill_price", "fee", "funding")
PLANTED = "planted_leak"


class FeatureTable(Protocol):
    """What the audit needs of features: the house's own sets, or a user's."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def warmup(self) -> int: ...

    def compute(self, bars: Bars) -> NDArray[np.floating[Any]]:
        """[N, F]; rows before warmup - 1 may be NaN."""


@dataclass(frozen=True)
class Leak:
    """Something that moved when only the future changed.

    name: feature, or "decision". how: "truncated" or "scrambled". timestamp: bar of the decision, epoch ms. change:
    largest difference.
    decisions: at how many decisions it moved.
    """

    name: str
    how: str
    timestamp: int
    change: float
    decisions: int


@dataclass(frozen=True)
class Drift:
    """Largest difference of a feature between the whole history and the last `bars` bars."""

    name: str
    bars: int
    change: float


@dataclass(frozen=True)
class Audit:
    """What was found. leaks are in the order they were met: the first one is the one to look at."""

    decisions: int
    replayed: int
    leaks: tuple[Leak, ...]
    drifts: tuple[Drift, ...]
    oracle_return: float
    oracle_sharpe: float | None

    @property
    def clean(self) -> bool:
        return not self.leaks


class PlantedLeak:
    """A feature set with one more column that knows the next bar's return: the audit's positive control."""

    def __init__(self, features: FeatureTable) -> None:
        self._features = features

    @property
    def names(self) -> Sequence[str]:
        return (*self._features.names, PLANTED)

    @property
    def warmup(self) -> int:
        return self._features.warmup

    @property
    def fingerprint(self) -> str:
        return "planted"

    def compute(self, bars: Bars) -> NDArray[np.floating[Any]]:
        table = self._features.compute(bars)
        ahead = np.append(np.diff(np.log(bars.close)), 0.0)
        return np.column_stack([table, np.clip(100.0 * ahead, -5, 5)]).astype(np.float32)


def scrambled_after(bars: Bars, last: int, *, seed: int) -> Bars:
    """The same bars up to and including row `last`; then a market of another level, volatility and volume."""
    rng = np.random.default_rng([seed, last])
    count = len(bars) - last - 1
    level = float(bars.close[last]) * float(rng.uniform(0.3, 3.0))
    close = level * np.exp(np.cumsum(rng.normal(0.0, 0.05, count)))
    open_ = close * np.exp(rng.normal(0.0, 0.02, count))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0.0, 0.02, count)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0.0, 0.02, count)))
    volume = rng.lognormal(8.0, 2.0, count)
    fresh = {"open": open_, "high": high, "low": low, "close": close, "volume": volume}
    columns = {name: np.concatenate([getattr(bars, name)[: last + 1], new]) for name, new in fresh.items()}
    return Bars(bars.symbol, bars.timeframe, bars.venue, bars.timestamp, **columns)


def chosen_rows(first: int, stop: int, count: int) -> list[int]:
    """At least `count` rows spread over [first, stop), or all of them."""
    if stop <= first:
        raise ValueError(f"No decision to audit: the first possible one is bar {first}, the last bar is {stop - 1}.")
    return sorted({int(row) for row in np.linspace(first, stop - 1, min(count, stop - first))})


def audit_features(
    features: FeatureTable, bars: Bars, *, window: int, rows: Sequence[int], seed: int = 0
) -> tuple[tuple[Leak, ...], tuple[Drift, ...]]:
    """Leaks and drifts of every feature at the decisions `rows`; an observation holds `window` feature rows."""
    whole = np.asarray(features.compute(bars))
    names = list(features.names)
    met: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for t in rows:
        seen = slice(max(t - window + 1, 0), t + 1)
        for how, changed in (
            ("truncated", bars.slice(0, t + 1)),
            ("scrambled", scrambled_after(bars, t, seed=seed)),
        ):
            difference = _difference(whole[seen], np.asarray(features.compute(changed))[seen])
            for column in np.flatnonzero(difference.max(axis=0)):
                met.setdefault((names[column], how), []).append((t, float(difference[:, column].max())))
    leaks = [
        Leak(
            name=name,
            how=how,
            timestamp=int(bars.timestamp[found[0][0]]),
            change=max(change for _, change in found),
            decisions=len(found),
        )
        for (name, how), found in sorted(met.items(), key=lambda item: (item[1][0][0], names.index(item[0][0])))
    ]
    return tuple(leaks), _drifts(features, bars, whole, window=window, rows=rows)


def _difference(one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """[rows, F] absolute difference; NaN against NaN is none, NaN against a number is infinite."""
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    both = np.isnan(one) & np.isnan(other)
    return np.where(both, 0.0, np.where(np.isnan(difference), np.inf, difference))


def _drifts(
    features: FeatureTable, bars: Bars, whole: NDArray[Any], *, window: int, rows: Sequence[int]
) -> tuple[Drift, ...]:
    """The observation recomputed from its last W, 2W and 4W bars, against the one from the whole history."""
    needed = features.warmup + window - 1
    found: list[Drift] = []
    for times in HISTORIES:
        length = times * needed
        worst = np.zeros(len(features.names))
        for t in rows:
            if t + 1 < length:
                continue
            short = np.asarray(features.compute(bars.slice(t + 1 - length, t + 1)))[-window:]
            worst = np.maximum(worst, _difference(whole[t - window + 1 : t + 1], short).max(axis=0))
        found.extend(
            Drift(name, length, float(change)) for name, change in zip(features.names, worst, strict=True) if change
        )
    return tuple(found)


def audit_decisions(
    policy: Policy,
    features: FeatureTable,
    bars: Bars,
    instrument: Instrument,
    config: MarketConfig,
    *,
    decisions: int,
    seed: int = 0,
) -> tuple[tuple[Leak, ...], int]:
    """Replay stretches of decisions with the true and with a changed future; returns leaks and decisions replayed."""
    window = config.observation.window
    truth = Market.prepare(bars, features, instrument, window=window)  # type: ignore[arg-type]
    offset = len(bars) - len(truth)  # the market leaves out bars it does not need
    cuts = chosen_rows(truth.first_decision + SEGMENT - 1, len(truth) - 1, -(-decisions // SEGMENT))
    leaks: list[Leak] = []
    replayed = 0
    for cut in cuts:
        stretch = Stretch(cut - SEGMENT + 1, cut + 1)
        other = Market.prepare(
            scrambled_after(bars, cut + offset, seed=seed),
            features,  # type: ignore[arg-type]
            instrument,
            window=window,
        )
        mine, theirs = (run_policy(policy, market, config, seeds=[seed], stretch=stretch) for market in (truth, other))
        replayed += SEGMENT
        change = _largest_change(mine, theirs)
        if change > 0.0:
            leaks.append(Leak("decision", "scrambled", int(truth.timestamp[cut]), change, SEGMENT))
    return tuple(leaks), replayed


def _largest_change(mine: Run, theirs: Run) -> float:
    """Largest difference between two runs' ledgers and decisions."""
    pairs = [(getattr(mine.accounts, name), getattr(theirs.accounts, name)) for name in LEDGER]
    if mine.decisions is not None and theirs.decisions is not None:
        said = ("action", "policy", "value", "q_values")
        pairs += [(getattr(mine.decisions, name), getattr(theirs.decisions, name)) for name in said]
    return max(float(_difference(np.asarray(a, float), np.asarray(b, float)).max(initial=0.0)) for a, b in pairs)


def oracle(bars: Bars, instrument: Instrument, config: MarketConfig) -> tuple[float, float | None]:
    """Total return and per-bar Sharpe of knowing the next bar's direction, through the same fills and costs.

    If even this earned nothing, the engine could not show skill and a clean audit would mean little.
    """
    market = Market.prepare(bars, None, instrument)
    known = np.append(np.sign(market.close[1:] - market.open[1:]), 0.0)
    lowest = 0.0 if config.actions.spot else -1.0
    run = run_series(np.maximum(known, lowest), market, config, seeds=[0], name="oracle")
    equity = run.accounts.equity[0]
    return float(equity[-1] / equity[0] - 1.0), sharpe_ratio(simple_returns(equity))


def audit(
    features: FeatureTable,
    bars: Bars,
    instrument: Instrument,
    config: MarketConfig,
    *,
    policy: Policy | None = None,
    decisions: int = 50,
    seed: int = 0,
) -> Audit:
    """The whole audit; without a policy, of the features alone."""
    window = config.observation.window
    rows = chosen_rows(features.warmup + window - 2, len(bars) - 1, decisions)
    leaks, drifts = audit_features(features, bars, window=window, rows=rows, seed=seed)
    replayed = 0
    if policy is not None:
        found, replayed = audit_decisions(policy, features, bars, instrument, config, decisions=decisions, seed=seed)
        leaks = (*leaks, *found)
    earned, sharpe = oracle(bars, instrument, config)
    return Audit(
        decisions=len(rows),
        replayed=replayed,
        leaks=leaks,
        drifts=drifts,
        oracle_return=earned,
        oracle_sharpe=sharpe,
    )


def audit_json(found: Audit, *, subject: str, symbol: str, bars: int) -> dict[str, Any]:
    """The audit as plain JSON types."""
    return {
        "subject": subject,
        "symbol": symbol,
        "bars": bars,
        "clean": found.clean,
        "decisions": found.decisions,
        "replayed_decisions": found.replayed,
        "first_leak": found.leaks[0].name if found.leaks else None,
        "leaks": [
            {
                "name": leak.name,
                "future": leak.how,
                "timestamp": leak.timestamp,
                "change": leak.change if np.isfinite(leak.change) else None,
                "decisions": leak.decisions,
            }
            for leak in found.leaks
        ],
        "drifts": [
            {"name": one.name, "bars": one.bars, "change": one.change if np.isfinite(one.change) else None}
            for one in found.drifts
        ],
        "oracle": {"total_return": found.oracle_return, "sharpe_per_bar": found.oracle_sharpe},
    }


def audit_text(found: Audit, *, subject: str) -> str:
    """The audit in words."""
    lines = []
    if found.clean:
        lines.append(f"No look-ahead: {subject} said the same at {found.decisions} decisions whatever came after them.")
    else:
        first = found.leaks[0]
        moment = np.datetime64(first.timestamp, "ms").astype("datetime64[s]")
        lines.append(
            f"LEAK: {first.name} knows the future. It moved at {moment}Z when only later bars were {first.how}."
        )
        lines += [
            f"  {leak.name}: moved at {leak.decisions} decisions with the future {leak.how}, by up to {leak.change:.3g}"
            for leak in found.leaks
        ]
    if found.replayed:
        lines.append(f"Decisions, orders and ledger replayed with other futures: {found.replayed} decisions.")
    lines += [
        f"drift: {one.name} changes by up to {one.change:.3g} when computed from the last {one.bars} bars only; "
        "its declared warm-up is too short"
        for one in found.drifts
        if one.name not in {leak.name for leak in found.leaks}
    ]
    sharpe = "undefined" if found.oracle_sharpe is None else f"{found.oracle_sharpe:.2f} per bar"
    lines.append(f"Control: an oracle of the next bar would have made {found.oracle_return:+.0%} (Sharpe {sharpe}).")
    return "\n".join(lines)
