"""Verification markets: the best possible score is known, so an agent can be measured against it.

Each market is a chain with a known sufficient statistic x. The agent holds a position in {-1, 0, 1} for the next bar
and earns position * return - cost * |change of position| (unit noise per bar), averaged per step:

    Regime        return = drift * s + noise; the hidden sign s flips with probability `switch`. x: log odds that s = 1.
    MeanReversion an AR(1) log price, x' = persistence * x + noise; return = x' - x.
    Momentum      AR(1) returns of unit variance; x is the last return.
    Martingale    returns without memory: the best policy never trades.
    Leak          the next return is shown: an agent that cannot get rich here is broken.
    KnownMoves    exactly m equally likely moves a bar; return = drift * (last move's value) + (next move's value).
    Barrier       now and then an offer: commit now for a small sure payment, or wait for the next bar to reveal a
                  direction that pays a prize to whoever takes that side afterwards. Waiting is worth its adaptivity
                  only: a model without chance outcomes averages the two futures to nothing.

`solve` gives the optimum by dynamic programming on a grid of x; `optimality` scores a policy against it on common
random numbers. The environments are registered as smu0/Regime-v0 and so on, with a native vector version.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtr

from market_env import analytic_kernel as kernel
from market_env.config import Section

Floats = NDArray[np.float64]
POSITIONS = (-1.0, 0.0, 1.0)


class _Market(Section):
    """What every verification market has."""

    horizon: int = Field(default=512, ge=1, description="steps until an episode is truncated")
    history: int = Field(
        default=0,
        ge=0,
        le=256,
        description="show the last returns instead of the sufficient statistic; 0: the statistic",
    )
    cost: float = Field(default=0.5, ge=0.0, description="cost per unit of position change, in return noise units")

    @property
    def kind(self) -> int:
        """Number of the kind in the compiled kernel."""
        return _KINDS[type(self)]

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""
        return (self.history or 1) + 1

    def parameters(self) -> np.ndarray[Any, Any]:
        """The parameters as the kernel reads them, [1] `kernel.PARAMETERS`."""
        parameters = np.zeros(1, dtype=kernel.PARAMETERS)
        parameters["kind"] = self.kind
        for name, value in self.model_dump().items():
            parameters[name] = value
        return parameters

    def statistic(self, observations: NDArray[np.float32]) -> Floats:
        """x [B] from observations [B, 2] of the statistic."""
        if self.history:
            raise ValueError(f"{type(self).__name__}: an observation of past returns does not hold the statistic")
        return self._statistic(np.asarray(observations[:, 0], dtype=np.float64))

    def _statistic(self, entry: Floats) -> Floats:
        return entry

    def chain(self, nodes: int) -> "Chain":
        """The market discretised on about `nodes` values of x."""
        raise NotImplementedError


class Regime(_Market):
    """Hidden two-state drift under noise; the statistic is the filtered probability."""

    drift: float = Field(default=0.3, gt=0.0, lt=3.0, description="|drift| per bar, in noise units")
    switch: float = Field(default=0.02, gt=0.0, lt=0.5, description="probability that the drift flips, per bar")

    def _statistic(self, entry: Floats) -> Floats:
        prior = np.clip(0.5 * (entry + 1.0), self.switch * (1 + 1e-9), 1.0 - self.switch * (1 + 1e-9))
        probability = (prior - self.switch) / (1.0 - 2.0 * self.switch)
        log_odds: Floats = np.log(probability / (1.0 - probability))
        return log_odds

    def chain(self, nodes: int) -> "Chain":
        largest_prior = math.log((1.0 - self.switch) / self.switch)
        grid = _grid(largest_prior + 2.0 * self.drift * (self.drift + 6.0), nodes)
        probability = 1.0 / (1.0 + np.exp(-grid))
        prior = probability + self.switch * (1.0 - 2.0 * probability)
        # The log odds move by 2 * drift * return, and the return is normal around +-drift.
        centre, spread, shift = np.log(prior / (1.0 - prior)), 2.0 * self.drift, 2.0 * self.drift**2
        up, down = (
            gaussian_transitions(grid, centre + shift, spread),
            gaussian_transitions(grid, centre - shift, spread),
        )
        transitions = prior[:, None] * up + (1.0 - prior)[:, None] * down
        return Chain.of_returns(grid, transitions, self.drift * (2.0 * prior - 1.0), self.cost)


class MeanReversion(_Market):
    """Ornstein-Uhlenbeck log price."""

    persistence: float = Field(default=0.9, gt=-1.0, lt=1.0, description="of the log price's deviation, per bar")
    cost: float = Field(default=0.2, ge=0.0, description="cost per unit of position change, in return noise units")

    @property
    def _deviation(self) -> float:
        return 1.0 / math.sqrt(1.0 - self.persistence**2)

    def _statistic(self, entry: Floats) -> Floats:
        return entry * self._deviation

    def chain(self, nodes: int) -> "Chain":
        grid = _grid(6.0 * self._deviation, nodes)
        transitions = gaussian_transitions(grid, self.persistence * grid, 1.0)
        return Chain.of_returns(grid, transitions, (self.persistence - 1.0) * grid, self.cost)


class Momentum(_Market):
    """Returns with memory."""

    persistence: float = Field(default=0.5, gt=-1.0, lt=1.0, description="autocorrelation of returns")
    cost: float = Field(default=0.2, ge=0.0, description="cost per unit of position change, in return noise units")

    def chain(self, nodes: int) -> "Chain":
        grid = _grid(6.0, nodes)
        transitions = gaussian_transitions(grid, self.persistence * grid, math.sqrt(1.0 - self.persistence**2))
        return Chain.of_returns(grid, transitions, self.persistence * grid, self.cost)


class Martingale(_Market):
    """Returns without memory: never trade."""

    def chain(self, nodes: int) -> "Chain":
        grid = _grid(6.0, nodes)
        return Chain.of_returns(grid, gaussian_transitions(grid, 0.0 * grid, 1.0), 0.0 * grid, self.cost)


class Leak(_Market):
    """The next return is a feature."""

    def chain(self, nodes: int) -> "Chain":
        grid = _grid(6.0, nodes)
        return Chain.of_returns(grid, gaussian_transitions(grid, 0.0 * grid, 1.0), grid, self.cost)


class KnownMoves(_Market):
    """Exactly m equally likely moves a bar; the last one tilts the next return."""

    moves: int = Field(default=4, ge=2, le=64, description="m: number of equally likely moves")
    drift: float = Field(default=0.5, gt=-5.0, lt=5.0, description="weight of the last move's value in the next return")
    cost: float = Field(default=0.2, ge=0.0, description="cost per unit of position change, in return noise units")

    def _statistic(self, entry: Floats) -> Floats:
        number: Floats = np.rint(entry * math.sqrt((self.moves**2 - 1) / 12.0) + 0.5 * (self.moves - 1))
        return number

    def chain(self, nodes: int) -> "Chain":
        grid = np.arange(self.moves, dtype=np.float64)
        values = (grid - 0.5 * (self.moves - 1)) / math.sqrt((self.moves**2 - 1) / 12.0)
        transitions = np.full((self.moves, self.moves), 1.0 / self.moves)
        return Chain.of_returns(grid, transitions, self.drift * values, self.cost)


class Barrier(_Market):
    """A plan must react to what chance reveals. The position costs nothing here; the actions are -1, 0, 1."""

    offer: float = Field(default=0.25, gt=0.0, le=1.0, description="probability that an idle bar brings an offer")
    prize: float = Field(default=1.0, gt=0.0, description="earned by taking the revealed side; lost on the other")
    sure: float = Field(default=0.3, ge=0.0, description="earned by committing at the offer instead of waiting")
    cost: float = Field(default=0.0, ge=0.0, le=0.0, description="always 0")
    history: int = Field(default=0, ge=0, le=0, description="always 0: the state itself is shown")

    @property
    def observation_size(self) -> int:
        return 4

    def statistic(self, observations: NDArray[np.float32]) -> Floats:
        """State number [B] from one-of-four observations [B, 4]."""
        state: Floats = np.asarray(observations).argmax(axis=1).astype(np.float64)
        return state

    def chain(self, nodes: int) -> "Chain":
        idle, offer, up, down = range(4)
        transitions = np.zeros((3, 4, 4))
        transitions[:, :, idle] = 1.0
        transitions[:, idle] = (1.0 - self.offer, self.offer, 0.0, 0.0)
        transitions[1, offer] = (0.0, 0.0, 0.5, 0.5)
        rewards = np.zeros((4, 3, 3))
        rewards[offer, :, (0, 2)] = self.sure
        rewards[up] = self.prize * np.array(POSITIONS)
        rewards[down] = -self.prize * np.array(POSITIONS)
        return Chain(np.arange(4.0), transitions, rewards)

    def open_loop_chain(self) -> "Chain":
        """The market as a planner without chance outcomes sees it: the two directions are one averaged state."""
        full = self.chain(0)
        merged = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5]])
        transitions = np.zeros((3, 3, 3))
        transitions[:, :, 0] = 1.0
        transitions[:, 0] = (1.0 - self.offer, self.offer, 0.0)
        transitions[1, 1] = (0.0, 0.0, 1.0)
        return Chain(np.arange(3.0), transitions, np.einsum("ks,spa->kpa", merged, full.rewards))


_KINDS: dict[type[_Market], int] = {
    Regime: kernel.REGIME,
    MeanReversion: kernel.MEAN_REVERSION,
    Momentum: kernel.MOMENTUM,
    Martingale: kernel.MARTINGALE,
    Leak: kernel.LEAK,
    KnownMoves: kernel.KNOWN_MOVES,
    Barrier: kernel.BARRIER,
}
VerificationMarket = Regime | MeanReversion | Momentum | Martingale | Leak | KnownMoves | Barrier

# --- dynamic programming -------------------------------------------------------------------------------------------


def _grid(limit: float, nodes: int) -> Floats:
    """An odd number of evenly spaced values in [-limit, limit]: zero is one of them."""
    return np.linspace(-limit, limit, nodes | 1)


def gaussian_transitions(grid: Floats, means: Floats, deviation: float) -> Floats:
    """Transition matrix [n, n] of x' ~ N(means[i], deviation), for functions that are linear between grid nodes.

    Entry j is the exact expectation of node j's hat function; the end nodes take the tails. With
    C(g) = E max(x' - g, 0) = deviation * phi(d) + (mean - g) * Phi(d), d = (mean - g) / deviation, a hat on an even
    grid is a second difference of C.
    """
    spacing = grid[1] - grid[0]
    d = (means[:, None] - grid[None]) / deviation
    call = deviation * (np.exp(-0.5 * d * d) / math.sqrt(2.0 * math.pi) + d * ndtr(d))
    slopes = np.diff(call, axis=1) / spacing  # -P(x' > g) averaged between nodes
    slopes = np.concatenate((np.full((len(means), 1), -1.0), slopes, np.zeros((len(means), 1))), axis=1)
    return np.diff(slopes, axis=1)


@dataclass(frozen=True)
class Chain:
    """A market on n states of nature. Legend: n states, 3 positions held, 3 actions (next position).

    grid: [n] statistic. transitions: [1 or 3, n, n], by action where it matters. rewards: [n, 3, 3], expected reward by
    state, position held, action.
    """

    grid: Floats
    transitions: Floats
    rewards: Floats

    @classmethod
    def of_returns(cls, grid: Floats, transitions: Floats, expected_return: Floats, cost: float) -> Self:
        """A market whose transitions no action moves."""
        held, action = np.meshgrid(POSITIONS, POSITIONS, indexing="ij")
        rewards = expected_return[:, None, None] * action - cost * np.abs(action - held)
        return cls(grid, transitions[None], rewards)

    def action_values(self, values: Floats) -> Floats:
        """One Bellman backup of values [n, 3]: [n, 3, 3] by state, position held, action."""
        ahead = np.stack([self.transitions[min(a, len(self.transitions) - 1)] @ values[:, a] for a in range(3)], axis=1)
        backup: Floats = self.rewards + ahead[:, None, :]
        return backup


_TOLERANCE = 1e-9
_MOST_ITERATIONS = 200_000


def average_reward(chain: Chain, start: Floats | None = None) -> tuple[float, Floats]:
    """Optimal average reward per step and the action values [n, 3, 3], by relative value iteration.

    start: values [n, 3] to begin from. The smallest and largest change of a backup bracket the optimum (Odoni 1969;
    Puterman, Markov Decision Processes, theorem 8.5.5); iteration stops when they are 1e-9 apart. Each update goes nine
    tenths of the way, which makes every chain aperiodic.
    """
    values = np.zeros(chain.rewards.shape[:2]) if start is None else start
    for _ in range(_MOST_ITERATIONS):
        action_values = chain.action_values(values)
        change = action_values.max(axis=2) - values
        low, high = float(change.min()), float(change.max())
        if high - low < _TOLERANCE:
            return 0.5 * (low + high), action_values
        values = values + 0.9 * change
        values -= values[0, 0]
    raise ArithmeticError(
        f"value iteration: bounds {low:.3g} to {high:.3g} after {_MOST_ITERATIONS} iterations; the chain mixes too "
        "slowly to be solved: choose a larger switching probability or a smaller persistence"
    )


@dataclass(frozen=True)
class Solution:
    """The optimum of a verification market.

    value: optimal average reward per step. grid_error: relative change of the value when the grid is halved.
    open_loop_value: of the best plan that cannot react to chance (barrier market only): the ceiling of a deterministic
    planner. grid: [n]; action_values: [n, 3, 3] relative values by statistic, position held, action.
    """

    market: VerificationMarket  # showing the statistic
    value: float
    grid_error: float
    open_loop_value: float | None
    grid: Floats
    action_values: Floats

    def actions(self, statistic: Floats, held: NDArray[np.int64]) -> NDArray[np.int64]:
        """The best actions [B] for statistics [B] and positions held [B] (0: short, 1: flat, 2: long)."""
        spacing = self.grid[1] - self.grid[0]
        place = np.clip((statistic - self.grid[0]) / spacing, 0.0, len(self.grid) - 1.0)
        below = np.minimum(place.astype(np.int64), len(self.grid) - 2)
        weight = (place - below)[:, None]
        values = self.action_values
        mixed = (1.0 - weight) * values[below, held] + weight * values[below + 1, held]
        # Equal actions: the first in -1, 0, 1 would move for nothing; prefer to stay.
        mixed[np.arange(len(held)), held] += 1e-9
        best: NDArray[np.int64] = mixed.argmax(axis=1)
        return best

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.int64]:
        """The best actions [B] for observations [B, D] of the environment."""
        if isinstance(self.market, Barrier):
            held = np.ones(len(observations), dtype=np.int64)
        else:
            held = np.rint(observations[:, -1]).astype(np.int64) + 1
        return self.actions(self.market.statistic(observations), held)


def solve(market: VerificationMarket, nodes: int = 801) -> Solution:
    """The optimum on a grid of `nodes` values of the statistic, and how much a grid of half as many would differ."""
    half, chain = market.chain(nodes // 2), market.chain(nodes)
    coarse, coarse_action_values = average_reward(half)
    guess = [np.interp(chain.grid, half.grid, held) for held in coarse_action_values.max(axis=2).T]
    value, action_values = average_reward(chain, np.stack(guess, axis=1))
    open_loop = average_reward(market.open_loop_chain())[0] if isinstance(market, Barrier) else None
    return Solution(
        market=market.model_copy(update={"history": 0}),
        value=value,
        grid_error=abs(value - coarse) / max(abs(value), _TOLERANCE),
        open_loop_value=open_loop,
        grid=chain.grid,
        action_values=action_values,
    )


# --- scores --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimalityScore:
    """(agent - flat) / (optimal - flat) on common random numbers; a flat policy earns 0.

    score is None where the optimum is to do nothing. standard_error: of the score, over episodes. agent, optimal: mean
    reward per step; agent_error: standard error of the agent's.
    """

    score: float | None
    standard_error: float | None
    agent: float
    agent_error: float
    optimal: float
    episodes: int
    steps: int


Act = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def optimality(
    market: VerificationMarket,
    act: Act,
    *,
    solution: Solution | None = None,
    episodes: int = 256,
    steps: int = 1_024,
    seed: int = 0,
) -> OptimalityScore:
    """Play `episodes` episodes of `steps` steps with `act` (observations [B, D] -> actions [B]) and with the optimum.

    Both meet the same draws, so their difference is far more precise than either. solution: of `solve(market)`.
    """
    solution = solve(market) if solution is None else solution
    agent = mean_rewards(market, act, episodes=episodes, steps=steps, seed=seed)
    optimal = mean_rewards(solution.market, solution.act, episodes=episodes, steps=steps, seed=seed)
    best = float(optimal.mean())
    score = error = None
    if solution.value > 1e-6 and best > 0.0:
        score = float(agent.mean()) / best
        error = float((agent - score * optimal).std(ddof=1)) / best / math.sqrt(episodes)
    return OptimalityScore(
        score=score,
        standard_error=error,
        agent=float(agent.mean()),
        agent_error=float(agent.std(ddof=1)) / math.sqrt(episodes),
        optimal=best,
        episodes=episodes,
        steps=steps,
    )


def mean_rewards(market: VerificationMarket, act: Act, *, episodes: int, steps: int, seed: int) -> Floats:
    """Mean reward per step [episodes] of a policy, each episode `steps` long."""
    from market_env.analytic_env import AnalyticVectorEnv  # the environments import this module

    envs = AnalyticVectorEnv(market.model_copy(update={"horizon": steps}), num_envs=episodes)
    observations, _ = envs.reset(seed=seed)
    total = np.zeros(episodes)
    for _ in range(steps):
        observations, rewards, _, _, _ = envs.step(act(observations))
        total += rewards
    return total / steps
