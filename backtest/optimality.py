"""Scores on markets whose best possible score is known: does the agent plan as well as anyone could?

The markets and their solutions are `market_env.analytic`'s; here they get names for a command line, and a policy is
put to them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from agent.policy import Policy
from market_env.analytic import (
    Barrier,
    KnownMoves,
    Leak,
    Martingale,
    MeanReversion,
    Momentum,
    OptimalityScore,
    Regime,
    Solution,
    VerificationMarket,
    optimality,
    solve,
)

OBSERVATION = "observation"  # the key under which a plain observation travels (agent.policy)
MARKETS: dict[str, type[Any]] = {
    "regime": Regime,
    "mean-reversion": MeanReversion,
    "momentum": Momentum,
    "martingale": Martingale,
    "leak": Leak,
    "known-moves": KnownMoves,
    "barrier": Barrier,
}


class OptimalityError(ValueError):
    """An unknown market or parameter, or a policy made for something else."""


@dataclass(frozen=True)
class Scored:
    """A policy's score on one verification market; `result` is None where only the optimum was asked for."""

    name: str
    solution: Solution
    result: OptimalityScore | None


def market_of(name: str, settings: Iterable[str] = ()) -> VerificationMarket:
    """A verification market by name, with parameters such as "drift=0.3"."""
    if name not in MARKETS:
        raise OptimalityError(f"--market {name}: expected one of {', '.join(MARKETS)}.")
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise OptimalityError(f"--set {setting}: expected KEY=VALUE, such as drift=0.3.")
        values[key] = yaml.safe_load(text)
    try:
        market: VerificationMarket = MARKETS[name](**values)
    except ValidationError as error:
        known = ", ".join(f"{key}={field.default}" for key, field in MARKETS[name].model_fields.items())
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OptimalityError(f"--set {where}: {first['msg']}. {name} has {known}.") from error
    return market


def score(
    policy: Policy,
    name: str,
    market: VerificationMarket,
    *,
    episodes: int,
    steps: int,
    seed: int = 0,
    simulations: int | None = None,
) -> Scored:
    """Play the market greedily and compare with the optimum on the same draws."""

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        return policy.act({OBSERVATION: observations}, simulations=simulations).action

    solution = solve(market)
    return Scored(name, solution, optimality(market, act, solution=solution, episodes=episodes, steps=steps, seed=seed))


def check_fits(shapes: dict[str, tuple[int, ...]], actions: int, market: VerificationMarket) -> None:
    """Raise OptimalityError if a checkpoint was made for other observations or actions than a market's."""
    expected = {OBSERVATION: (market.observation_size,)}
    found = {key: tuple(shape) for key, shape in shapes.items()}
    if found != expected or actions != 3:
        raise OptimalityError(
            f"The checkpoint reads observations {found} with {actions} actions, the market shows {expected} with 3. "
            "Give a checkpoint trained on this verification market."
        )


def score_json(scored: Scored) -> dict[str, Any]:
    """A score as plain JSON types."""
    solution, result = scored.solution, scored.result
    document: dict[str, Any] = {
        "market": scored.name,
        "parameters": solution.market.model_dump(mode="json"),
        "optimal_value": solution.value,
        "grid_error": solution.grid_error,
        "open_loop_value": solution.open_loop_value,
    }
    if result is not None:
        document |= {
            "score": result.score,
            "standard_error": result.standard_error,
            "agent": result.agent,
            "agent_error": result.agent_error,
            "optimal_on_same_draws": result.optimal,
            "episodes": result.episodes,
            "steps": result.steps,
        }
    return document


def all_markets() -> Sequence[Scored]:
    """The optimum of every verification market at its defaults."""
    return [Scored(name, solve(market_of(name)), None) for name in MARKETS]
