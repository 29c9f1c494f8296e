"""Value targets from stored experience, as pure functions on arrays.

Legend: S sampled sequences, M stored records read from each start, K unroll.

A record is one visited observation: its search value, and the reward and flags of the transition that *left* it.
An episode's last observation is a record without a transition. So is the newest record of an episode that is still
being played: what comes after it is not known yet, and it serves as the bootstrap.

Where several players take turns, one record each, a reward belongs to the player who acted and a root value to the
player to move, and both count against every other player, as in the search. A target is what the player to move at its
record sees: the record i steps on is that player's own where i is a multiple of `players`.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


def reachable(has_transition: Flags) -> Flags:
    """Which records belong to the same episode as the first one.

    has_transition: [S, M] the record was left by a stored transition. Returns [S, M].
    """
    reach = np.ones_like(has_transition)
    np.logical_and.accumulate(has_transition[:, :-1], axis=1, out=reach[:, 1:])
    return reach


def n_step_returns(
    rewards: Floats,
    root_values: Floats,
    has_transition: Flags,
    terminated: Flags,
    *,
    discount: float,
    n_step: int,
    count: int,
    players: int = 1,
) -> Floats:
    """Bootstrapped n-step returns of the first `count` records, MuZero eq. (5).

    z_k = Σ_{i<n} γ^i ±r_{k+i} ± γ^n ν_{k+n}, minus where record k+i is another player's. A sum
    that meets the end of its episode stops there: it bootstraps from the last observation's value if the episode was
    truncated (the end of the data is not bankruptcy), and from nothing if it terminated.

    rewards:        [S, M] reward received on *leaving* the record.
    root_values:    [S, M] search value at the record.
    has_transition: [S, M] the record was left by a stored transition.
    terminated:     [S, M] that transition ended the episode for good.
    M must be at least count + n_step. Returns [S, count].
    """
    _require_length(rewards, count + n_step)
    target = np.zeros((len(rewards), count), dtype=np.float64)
    weight = np.ones_like(target)
    running = np.ones_like(target, dtype=bool)
    for i in range(n_step):
        here = slice(i, i + count)
        seen = weight if i % players == 0 else -weight
        stopped = running & ~has_transition[:, here]
        target += np.where(stopped, seen * root_values[:, here], 0.0)
        running &= has_transition[:, here]
        target += np.where(running, seen * rewards[:, here], 0.0)
        weight *= discount
        running &= ~terminated[:, here]
    seen = weight if n_step % players == 0 else -weight
    target += np.where(running, seen * root_values[:, n_step : n_step + count], 0.0)
    return target.astype(np.float32)


def td_lambda_returns(
    rewards: Floats,
    root_values: Floats,
    has_transition: Flags,
    terminated: Flags,
    *,
    discount: float,
    n_step: int,
    td_lambda: float,
    count: int,
    players: int = 1,
) -> Floats:
    """λ-returns over a horizon of n steps (Sutton & Barto 2018, eq. 12.18), with the same ends as `n_step_returns`.

    G_k = r_k + γ((1−λ) ν_{k+1} + λ G_{k+1}), and G = ν at the horizon. λ = 1 is the n-step return.
    Shapes as in `n_step_returns`.
    """
    _require_length(rewards, count + n_step)
    # One return per seat: seat 0 moves at the record, seat j moves j records later. Seat j here is seat j − 1 there.
    signs = [1.0] + [-1.0] * (players - 1)
    target = [sign * root_values[:, n_step : n_step + count].astype(np.float64) for sign in signs]
    for i in reversed(range(n_step)):
        here, after = slice(i, i + count), slice(i + 1, i + 1 + count)
        sooner = []
        for seat, sign in enumerate(signs):
            # At the horizon (i = n−1) `target` is ν of the next record, so the mixture is that value itself.
            future = (1.0 - td_lambda) * signs[seat - 1] * root_values[:, after] + td_lambda * target[seat - 1]
            future = np.where(terminated[:, here], 0.0, future)
            own = sign * rewards[:, here] + discount * future
            sooner.append(np.where(has_transition[:, here], own, sign * root_values[:, here]))
        target = sooner
    return target[0].astype(np.float32)


def corrected_returns(
    rewards: Floats,
    root_values: Floats,
    trust: Floats,
    has_transition: Flags,
    terminated: Flags,
    *,
    discount: float,
    n_step: int,
    td_lambda: float,
    count: int,
    players: int = 1,
) -> tuple[Floats, Floats]:
    """λ-returns of a policy π that does not explore, from the actions of a policy μ that does.

    With ν the search's value under π and ρ = min(1, π/μ) the trust in the action that was taken,

        Q_k = r_k + γ((1−λ) ν_{k+1} + λ G_{k+1})          G_k = ν_k + ρ_k (Q_k − ν_k):

    an exploratory action (ρ near 0) teaches what it is worth itself, and ends the returns of the steps before it.
    G is V-trace (Espeholt et al. 2018, eq. 1, both truncations at 1), Q is Retrace (Munos et al. 2016). Ends of
    episodes are as in `n_step_returns`, and with ρ = 1 everywhere G is `td_lambda_returns`.

    trust: [S, M] ρ of the action that left the record. Returns G and Q, [S, count] each.
    """
    _require_length(rewards, count + n_step)
    # One return per seat, as in `td_lambda_returns`.
    signs = [1.0] + [-1.0] * (players - 1)
    value: list[NDArray[np.floating]] = [
        sign * root_values[:, n_step : n_step + count].astype(np.float64) for sign in signs
    ]
    q = value
    for i in reversed(range(n_step)):
        here, after = slice(i, i + count), slice(i + 1, i + 1 + count)
        sooner, q = [], []
        for seat, sign in enumerate(signs):
            own = sign * root_values[:, here]
            future = (1.0 - td_lambda) * signs[seat - 1] * root_values[:, after] + td_lambda * value[seat - 1]
            q.append(sign * rewards[:, here] + discount * np.where(terminated[:, here], 0.0, future))
            sooner.append(own + np.where(has_transition[:, here], trust[:, here] * (q[seat] - own), 0.0))
        value = sooner
    return value[0].astype(np.float32), q[0].astype(np.float32)


def sharpened(visits: NDArray[np.int32], exponent: float) -> NDArray[np.float64]:
    """Probabilities in proportion to visits^exponent. visits: [N, A], at least one in every row. Returns [N, A]."""
    weights = (visits / visits.max(axis=1, keepdims=True)) ** exponent
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _require_length(rewards: Floats, needed: int) -> None:
    if rewards.shape[1] < needed:
        raise ValueError(f"targets need {needed} records per sequence; found {rewards.shape[1]}")
