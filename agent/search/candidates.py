"""Candidate actions where there are too many to weigh them all (Sampled MuZero, Hubert et al. 2021).

An action has D parts, each a choice among nᵈ categories; the policy is a distribution per part and a combination's
probability is their product. A decision node looks at K combinations drawn from a proposal β, duplicates counted once.
Its prior over them is π̂β(a) ∝ (how often a was drawn)·π(a)/β(a) (Hubert et al. 2021, §4), which for β = π are the
shares of the draws. Since log π is a sum over parts, learning from weights on combinations is learning each part from
its marginal: a policy target is F numbers, whatever K was.

Inside the tree `tree_kernel.draw_candidates` does the same with the same random numbers.

Legend: B batch, K candidates, D parts, F categories of all parts together.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.search.randomness import CANDIDATE, uniform

Factors = tuple[int, ...]


class Candidates(NamedTuple):
    """Combinations in the order they were first drawn; places left over by duplicates have prior 0."""

    choices: NDArray[np.int32]  # [B, K, D]
    prior: NDArray[np.float64]  # [B, K] sums to 1


def part_slices(factors: Factors) -> list[slice]:
    """Where each part's categories stand among F numbers."""
    ends = np.cumsum(factors)
    return [slice(int(end - n), int(end)) for end, n in zip(ends, factors, strict=True)]


def part_probabilities(
    logits: NDArray[np.floating], allowed: NDArray[np.bool_], factors: Factors
) -> NDArray[np.float64]:
    """Policy [B, F] of logits [B, F]: every part sums to 1 over its allowed categories."""
    policy = np.where(allowed, logits.astype(np.float64), -np.inf)
    for part in part_slices(factors):
        weights = np.exp(policy[:, part] - policy[:, part].max(axis=1, keepdims=True))
        policy[:, part] = weights / weights.sum(axis=1, keepdims=True)
    return policy


def draw_candidates(
    policy: NDArray[np.float64],
    factors: Factors,
    *,
    count: int,
    seeds: NDArray[np.uint64],
    node: int = 0,
    even_share: float = 0.0,
    with_mode: bool = False,
) -> Candidates:
    """Draw K = `count` combinations for each row.

    policy:     [B, F] probabilities of each part's categories; 0 for what is not allowed.
    seeds:      [B]; a draw depends on its row's seed, the node's number, its place and part, and nothing else.
    even_share: share of even chances over the allowed categories in the proposal of each part.
    with_mode:  the first candidate is the likeliest combination instead of a draw.
    """
    batch, parts = len(policy), len(factors)
    choices = np.empty((batch, count, parts), np.int32)
    ratio = np.ones((batch, count))  # π/β of each draw
    rows = np.arange(batch)[:, None]
    for number, part in enumerate(part_slices(factors)):
        own = policy[:, part]
        even = (own > 0) / (own > 0).sum(axis=1, keepdims=True)
        proposal = own if even_share == 0.0 else (1.0 - even_share) * own + even_share * even
        address = (np.uint64(node) << np.uint64(32)) + np.arange(number, count * parts, parts, dtype=np.uint64)
        threshold = uniform(seeds[:, None], np.asarray([CANDIDATE]), address[None])
        drawn = _first_above(proposal, threshold)
        if with_mode:
            drawn[:, 0] = own.argmax(axis=1)
        choices[:, :, number] = drawn
        ratio *= own[rows, drawn] / proposal[rows, drawn]
    return _merged(choices, ratio)


def _first_above(proposal: NDArray[np.float64], threshold: NDArray[np.float64]) -> NDArray[np.int64]:
    """First category [B, K] at which the cumulative proposal [B, n] exceeds the threshold [B, K]."""
    above = np.cumsum(proposal, axis=1)[:, None, :] > threshold[:, :, None]
    # Rounding may leave the total below a threshold next to 1: then it is the last category that has a chance.
    last = proposal.shape[1] - 1 - (proposal[:, ::-1] > 0).argmax(axis=1)
    drawn: NDArray[np.int64] = np.where(above.any(axis=2), above.argmax(axis=2), last[:, None])
    return drawn


def _merged(choices: NDArray[np.int32], weights: NDArray[np.float64]) -> Candidates:
    """Duplicates counted at the place of the first of them, places closed up, weights normalised."""
    batch, count, _ = choices.shape
    same = (choices[:, :, None] == choices[:, None]).all(axis=3)
    first = same.argmax(axis=2)  # [B, K] place of the first draw like this one
    prior = np.zeros((batch, count))
    np.add.at(prior, (np.arange(batch)[:, None], first), weights)
    leading = first == np.arange(count)
    order = np.argsort(~leading, axis=1, kind="stable")
    prior = np.take_along_axis(np.where(leading, prior, 0.0), order, axis=1)
    closed = np.take_along_axis(choices, order[:, :, None], axis=1)
    closed[prior == 0.0] = 0
    return Candidates(closed, prior / prior.sum(axis=1, keepdims=True))


def marginals(choices: NDArray[np.int32], weights: NDArray[np.floating], factors: Factors) -> NDArray[np.float32]:
    """Weight of each part's categories [B, F] under weights [B, K] of combinations [B, K, D]."""
    batch = len(choices)
    found = np.zeros((batch, sum(factors)), np.float32)
    rows = np.arange(batch)[:, None]
    for number, part in enumerate(part_slices(factors)):
        np.add.at(found, (rows, part.start + choices[:, :, number]), weights.astype(np.float32))
    return found
