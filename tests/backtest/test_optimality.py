"""Scores against known optima."""

from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.policy import Decision, Observations, decision_from_actions
from backtest.optimality import MARKETS, OptimalityError, check_fits, market_of, score, score_json
from market_env.analytic import VerificationMarket, solve


class Acts:
    """A policy from a function of plain observations."""

    num_actions = 3

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        return decision_from_actions(self.rule(observations["observation"]), 3)


def test_every_verification_market_has_a_name() -> None:
    assert set(MARKETS.values()) == set(get_args(VerificationMarket))


def test_the_optimal_policy_scores_one_and_the_flat_one_zero() -> None:
    market = market_of("regime", ["drift=0.3", "switch=0.02", "cost=0.5"])
    best = score(Acts(solve(market).act), "regime", market, episodes=16, steps=128).result
    flat = score(Acts(lambda seen: np.ones(len(seen), dtype=np.int64)), "regime", market, episodes=16, steps=128).result
    assert best is not None
    assert flat is not None
    assert (best.score, flat.score) == (1.0, 0.0)


def test_a_market_where_nothing_is_to_be_earned_has_no_score() -> None:
    market = market_of("martingale")
    flat = score(Acts(lambda seen: np.ones(len(seen), dtype=np.int64)), "martingale", market, episodes=4, steps=16)
    document = score_json(flat)
    assert document["score"] is None
    assert document["agent"] == 0.0


def test_the_known_optimum_is_reported() -> None:
    market = market_of("regime", ["drift=0.3", "switch=0.02", "cost=0.5"])
    assert solve(market).value == pytest.approx(0.1497, abs=0.003)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("casino", [], "expected one of regime"),
        ("regime", ["drift"], "KEY=VALUE"),
        ("regime", ["drfit=1"], "drfit: Extra inputs"),
    ],
)
def test_an_unknown_market_or_parameter_names_what_there_is(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(OptimalityError, match=message):
        market_of(name, settings)


def test_a_checkpoint_for_bars_is_refused() -> None:
    with pytest.raises(OptimalityError, match="trained on this verification market"):
        check_fits({"window": (64, 8), "account": (8,)}, 3, market_of("regime"))
    check_fits({"observation": (2,)}, 3, market_of("regime"))
