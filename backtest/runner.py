"""Runs strategies through the market's own session, so a backtest trades exactly as training and paper trading do.

A policy is asked once per bar for all fill seeds together; a series of targets runs in one compiled loop. Both return
a `Run`.

No look-ahead by construction: at bar t the policy is handed feature rows up to t and nothing else, its order's
quantity is fixed there, and the session meets bar t+1 only afterwards. That features themselves look only backwards
is what `python -m backtest lookahead` proves.

Legend: S fill seeds, N rows of the run, T window, F features, A actions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.policy import Decision, Policy
from backtest.metrics import Floats
from backtest.results import Accounts, DecisionRows, MarketRows, Run
from data.timeframe import Timeframe
from market_env import guards as guarding
from market_env.actions import ActionGrid
from market_env.config import MarketConfig
from market_env.guards import GuardConfig, GuardState
from market_env.market import Market
from market_env.observation import ObservationBuilder
from market_env.session import BarInput, BarRecord, Ledger, Order, TradingSession, run_targets

Progress = Callable[[Iterable[int]], Iterable[int]]
Sizing = Literal["exposure", "units", "all_in"]

COLUMNS = (
    "equity",
    "cash",
    "units",
    "qty_ordered",
    "qty_filled",
    "fill_price",
    "arrival_price",
    "fee",
    "slippage_cost",
    "impact_cost",
    "latency_pnl",
    "gap_pnl",
    "bar_pnl",
    "funding",
    "liquidation_cost",
    "bad_debt",
    "rejected",
    "liquidated",
)


@dataclass(frozen=True)
class Stretch:
    """The rows of a market a run covers: [start, stop)."""

    start: int
    stop: int

    @classmethod
    def of(cls, market: Market) -> "Stretch":
        """From the first bar with a full window to the end."""
        return cls(market.first_decision, len(market))


def quiet(rows: Iterable[int]) -> Iterable[int]:
    """No progress display."""
    return rows


def market_rows(market: Market, stretch: Stretch) -> MarketRows:
    """The stretch as plain columns."""
    rows = slice(stretch.start, stretch.stop)
    return MarketRows(
        symbol=market.symbol,
        timeframe=str(Timeframe(market.bar_ms)),
        bar_seconds=market.bar_ms / 1000.0,
        days_per_year=market.instrument.trading_days_per_year,
        timestamp=market.timestamp[rows],
        open=market.open[rows],
        high=market.high[rows],
        low=market.low[rows],
        close=market.close[rows],
        volume=market.volume[rows],
    )


def run_policy(
    policy: Policy,
    market: Market,
    config: MarketConfig,
    *,
    seeds: Sequence[int],
    name: str = "policy",
    simulations: int | None = None,
    guards: GuardConfig | None = None,
    stretch: Stretch | None = None,
    progress: Progress = quiet,
) -> Run:
    """Let a policy trade a market once per fill seed; all paths are decided in one batch per bar.

    simulations: search budget; None takes the policy's own, 0 acts by its prior.
    guards: limits between decision and order, as the paper trader keeps them; None trades every decision.
    """
    where = stretch or Stretch.of(market)
    grid = ActionGrid.build(config.actions)
    if policy.num_actions != len(grid):
        raise ValueError(
            f"The policy knows {policy.num_actions} actions, the market offers {len(grid)} target exposures "
            f"{grid.targets.tolist()}. Backtest it with the configuration it was trained on."
        )
    builder = ObservationBuilder(config.observation.window)
    equity = config.episode.initial_equity
    sessions = [TradingSession(config, market.instrument, seed, equity) for seed in seeds]
    watches = [_Watch(guards, equity) for _ in seeds]
    mask = np.repeat(grid.mask[None], len(seeds), axis=0)
    rows = where.stop - where.start
    values = np.zeros((len(COLUMNS), len(seeds), rows))
    targets = np.full((len(seeds), rows), np.nan)
    decided: list[Decision] = []
    for row in progress(range(rows)):
        t = where.start + row
        bar = bar_input(market, t)
        for path, session in enumerate(sessions):
            record = session.on_bar(bar)
            watches[path].marked(record, bar)
            values[:, path, row] = _columns(record)
        # Paths whose accounts look alike (before the first fill, say) share one decision.
        accounts = np.stack([session.account_observation() for session in sessions])
        distinct, path_of = np.unique(accounts, axis=0, return_inverse=True)
        window = np.repeat(builder.window(market.features[: t + 1], t)[None], len(distinct), axis=0)
        observations = {"window": window, "account": distinct}
        decision = policy.act(observations, action_mask=mask[: len(distinct)], simulations=simulations)
        decision = _expand(decision, path_of.ravel())
        decided.append(decision)
        for path, session in enumerate(sessions):
            if session.ruined:
                continue
            target = watches[path].permitted(float(grid.targets[decision.action[path]]), decision, path)
            if target is None:
                continue
            targets[path, row] = target
            order = session.submit(target, sigma=float(market.sigma[t]), median_volume=float(market.median_volume[t]))
            watches[path].ordered(order)
    prices = market.open[where.start : where.stop]
    columns = dict(zip(COLUMNS, values, strict=True))
    return Run(
        name=name,
        market=market_rows(market, where),
        seeds=tuple(int(seed) for seed in seeds),
        accounts=_accounts(columns, targets, prices),
        decisions=_decision_rows(decided),
    )


class _Watch:
    """The guards of one path, bar by bar; without a configuration everything passes."""

    def __init__(self, config: GuardConfig | None, equity: float) -> None:
        self._config = config
        self._state = GuardState.opened(equity)
        self._now_ms = 0
        self._exposure = 0.0

    def marked(self, record: BarRecord, bar: BarInput) -> None:
        if self._config is None:
            return
        self._now_ms, self._exposure = bar.timestamp + bar.duration_ms, record.exposure
        self._state = guarding.after_bar(
            self._state,
            self._config,
            timestamp=bar.timestamp,
            now_ms=self._now_ms,
            equity=record.equity,
            flat=record.units == 0.0,
        )

    def permitted(self, target: float, decision: Decision, path: int) -> float | None:
        """What of the decision is to be ordered; None: nothing."""
        if self._config is None:
            return target
        said = (decision.policy[path], decision.value[path], decision.q_values[path])
        self._state = guarding.after_model_output(
            self._state, self._config, finite=all(bool(np.isfinite(part).all()) for part in said), now_ms=self._now_ms
        )
        return guarding.permit(self._state, self._config, target=target, exposure=self._exposure).target

    def ordered(self, order: Order) -> None:
        if self._config is not None and order.quantity != 0.0:
            self._state = guarding.after_order(self._state, self._config, now_ms=self._now_ms)


def run_series(
    targets: Floats,
    market: Market,
    config: MarketConfig,
    *,
    seeds: Sequence[int],
    name: str,
    sizing: Sizing = "exposure",
    stretch: Stretch | None = None,
) -> Run:
    """Trade given targets in one compiled loop.

    targets: [N] one per row of the stretch (or [S, N], one series per seed); NaN places no order.
    """
    where = stretch or Stretch.of(market)
    rows = where.stop - where.start
    series = np.atleast_2d(np.asarray(targets, dtype=np.float64))
    if series.shape[1] != rows or series.shape[0] not in (1, len(seeds)):
        raise ValueError(f"Expected targets [{rows}] or [{len(seeds)}, {rows}], found {np.shape(targets)}.")
    if len(series) == 1:
        columns = _ledger_columns(_run_ledger(series[0], market, config, seeds, where, sizing, COLUMNS))
    else:
        ledgers = [
            _ledger_columns(_run_ledger(one, market, config, [seed], where, sizing, COLUMNS))
            for one, seed in zip(series, seeds, strict=True)
        ]
        columns = {column: np.concatenate([ledger[column] for ledger in ledgers]) for column in COLUMNS}
    return Run(
        name=name,
        market=market_rows(market, where),
        seeds=tuple(int(seed) for seed in seeds),
        accounts=_accounts(
            columns,
            np.broadcast_to(series, (len(seeds), rows)),
            market.open[where.start : where.stop],
        ),
    )


def final_growth(
    targets: Floats, market: Market, config: MarketConfig, *, seed: int, sizing: Sizing, stretch: Stretch
) -> tuple[float, float]:
    """Log growth and turnover (traded notional over mean equity) of one series on one path: nothing else is kept."""
    wanted = ("equity", "qty_filled", "fill_price")
    ledger = _run_ledger(targets, market, config, [seed], stretch, sizing, wanted)
    equity = ledger["equity"][0]
    traded = float(np.abs(ledger["qty_filled"][0] * ledger["fill_price"][0]).sum())
    growth = float(np.log(max(equity[-1], 1e-12 * equity[0]) / equity[0]))
    return growth, traded / float(equity.mean())


def bar_input(market: Market, t: int) -> BarInput:
    """Bar t as the session takes it."""
    return BarInput(
        int(market.timestamp[t]),
        float(market.open[t]),
        float(market.high[t]),
        float(market.low[t]),
        float(market.close[t]),
        float(market.volume[t]),
        int(market.bar_ms),
    )


def _run_ledger(
    targets: Floats,
    market: Market,
    config: MarketConfig,
    seeds: Sequence[int],
    where: Stretch,
    sizing: Sizing,
    columns: Sequence[str],
) -> Ledger:
    whole = np.full(len(market), np.nan)
    whole[where.start : where.stop] = targets
    return run_targets(market, whole, config, seeds, start=where.start, stop=where.stop, sizing=sizing, columns=columns)


def _ledger_columns(ledger: Ledger) -> dict[str, Floats]:
    return {name: ledger[name] for name in COLUMNS}


def _columns(record: BarRecord) -> list[float]:
    return [float(getattr(record, name)) for name in COLUMNS]


def _accounts(columns: dict[str, Floats], targets: Floats, open_: Floats) -> Accounts:
    """The ledger's columns, with what latency cost: filled quantity times the move from the open to arrival."""
    filled = columns["qty_filled"]
    latency_cost = np.where(filled != 0.0, filled * (columns["arrival_price"] - open_), 0.0)
    return Accounts(
        equity=columns["equity"],
        cash=columns["cash"],
        units=columns["units"],
        target=np.asarray(targets, dtype=np.float64),
        qty_ordered=columns["qty_ordered"],
        qty_filled=filled,
        fill_price=columns["fill_price"],
        fee=columns["fee"],
        slippage_cost=columns["slippage_cost"],
        impact_cost=columns["impact_cost"],
        latency_cost=latency_cost,
        latency_pnl=columns["latency_pnl"],
        gap_pnl=columns["gap_pnl"],
        bar_pnl=columns["bar_pnl"],
        funding=columns["funding"],
        liquidation_cost=columns["liquidation_cost"],
        bad_debt=columns["bad_debt"],
        rejected=columns["rejected"] > 0.0,
        liquidated=columns["liquidated"] > 0.0,
    )


def _expand(decision: Decision, rows: NDArray[np.intp]) -> Decision:
    """The decisions of distinct observations, one row per path again."""
    names = ("action", "policy", "prior", "value", "q_values", "visits", "depth", "chance_probabilities")
    return replace(decision, **{name: getattr(decision, name)[rows] for name in names})


def _decision_rows(decided: list[Decision]) -> DecisionRows:
    """Stack the decisions of all bars: [S, N, ...]."""

    def stack(field: str) -> NDArray[np.generic]:
        return np.stack([getattr(decision, field) for decision in decided], axis=1)

    action = stack("action").astype(np.int64)
    paths = len(action)
    codes = np.stack([decision.chance_probabilities[np.arange(paths), decision.action] for decision in decided], axis=1)
    return DecisionRows(
        action=action,
        policy=stack("policy").astype(np.float32),
        prior=stack("prior").astype(np.float32),
        q_values=stack("q_values").astype(np.float32),
        value=stack("value").astype(np.float32),
        depth=stack("depth").astype(np.int32),
        chance_probabilities=codes.astype(np.float32),
        simulations=decided[0].simulations,
    )
