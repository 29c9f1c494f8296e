"""Contract: what happens after bar t changes nothing a backtest observed, decided, ordered or booked up to t."""

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.policy import Decision, Observations, decision_from_actions
from backtest.baselines import sma_cross_targets
from backtest.results import Run
from backtest.runner import run_policy
from data.bars import Bars
from data.features import DEFAULT_FEATURES, FeatureSet
from data.synthetic import martingale
from market_env.config import ActionConfig, MarketConfig
from market_env.instrument import Instrument
from market_env.market import Market

ROWS, WINDOW = 460, 16
CONFIG = MarketConfig(actions=ActionConfig(levels=(-1.0, 0.0, 1.0)))
CONFIG = CONFIG.model_copy(
    update={"observation": CONFIG.observation.model_copy(update={"window": WINDOW})}
).for_evaluation()
LEDGER = ("equity", "cash", "units", "target", "qty_ordered", "qty_filled", "fill_price", "fee", "funding")


class EverythingMatters:
    """Decides by a hash over every byte it is shown, so the slightest change of an observation changes decisions."""

    num_actions = 3

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        rows = len(observations["window"])
        digests = [
            hashlib.sha256(observations["window"][row].tobytes() + observations["account"][row].tobytes()).digest()
            for row in range(rows)
        ]
        self.seen.append(b"".join(digests))
        return decision_from_actions(np.array([digest[0] % 3 for digest in digests]), 3)


def scrambled_after(bars: Bars, last: int) -> Bars:
    """The same bars up to `last`; beyond it, another market altogether."""
    other = martingale(len(bars), seed=999, price=3.0, volatility=0.05)
    columns = {
        name: np.concatenate([getattr(bars, name)[: last + 1], getattr(other, name)[last + 1 :]])
        for name in ("open", "high", "low", "close", "volume")
    }
    return Bars(bars.symbol, bars.timeframe, bars.venue, bars.timestamp, **columns)


def backtest(bars: Bars) -> tuple[Run, list[bytes]]:
    market = Market.prepare(
        bars, FeatureSet.build(DEFAULT_FEATURES), Instrument(symbol=bars.symbol, asset_class="crypto"), window=WINDOW
    )
    policy = EverythingMatters()
    return run_policy(policy, market, CONFIG, seeds=[1, 2]), policy.seen


@pytest.fixture(scope="module")
def bars() -> Bars:
    return martingale(ROWS, seed=5)


@pytest.fixture(scope="module")
def truth(bars: Bars) -> tuple[Run, list[bytes]]:
    return backtest(bars)


@pytest.mark.parametrize("cut", [5, 63, 130, 180])
def test_a_backtest_up_to_t_does_not_know_what_comes_after(
    cut: int, bars: Bars, truth: tuple[Run, list[bytes]]
) -> None:
    run, seen = truth
    last = ROWS - len(run.market) + cut  # row of the bars at which the future is replaced
    other, other_seen = backtest(scrambled_after(bars, last))
    assert seen[: cut + 1] == other_seen[: cut + 1]
    for column in LEDGER:
        mine, theirs = getattr(run.accounts, column), getattr(other.accounts, column)
        assert np.array_equal(mine[:, : cut + 1], theirs[:, : cut + 1], equal_nan=True), column
    # The order decided at t fills in another world: if nothing differed after t, the test would prove nothing.
    assert not np.array_equal(run.accounts.equity[:, cut + 1 :], other.accounts.equity[:, cut + 1 :])
    assert seen[cut + 1 :] != other_seen[cut + 1 :]


def test_the_sma_baseline_does_not_know_what_comes_after(bars: Bars) -> None:
    cut = 300
    own = sma_cross_targets(np.asarray(bars.close), 0)
    other = sma_cross_targets(np.asarray(scrambled_after(bars, cut).close), 0)
    assert np.array_equal(own[: cut + 1], other[: cut + 1], equal_nan=True)
