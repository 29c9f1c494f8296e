"""Random numbers by address: each draw depends on a row's seed and on what it is for, and on nothing else.

So a row of a batch gets the same noise alone, in any batch, on any number of threads. The generator is the
finaliser of SplitMix64 (Steele, Lea and Flood 2014) applied to the address.

Legend: B batch, A actions.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray
from scipy.special import gammaincinv

# What a draw is for.
ROOT_NOISE = np.uint64(1)
CHANCE = np.uint64(2)
ACTION = np.uint64(3)
CANDIDATE = np.uint64(4)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53


@register_jitable
def _mixed(bits: Any) -> Any:
    bits = (bits ^ (bits >> _30)) * _MIX_1
    bits = (bits ^ (bits >> _27)) * _MIX_2
    return bits ^ (bits >> _31)


@register_jitable
def uniform(seed: Any, stream: Any, index: Any) -> Any:
    """A number in (0, 1) for the address (seed, stream, index), all uint64: scalars when compiled, else arrays."""
    bits = _mixed(_mixed(_mixed(seed + _GOLDEN) ^ (stream * _GOLDEN)) + (index * _GOLDEN))
    return ((bits >> _11) + 0.5) * _UNIT


def uniforms(seeds: NDArray[np.uint64], stream: np.uint64, count: int) -> NDArray[np.float64]:
    """[B, count] numbers in (0, 1), one row per seed."""
    index = np.arange(count, dtype=np.uint64)
    numbers: NDArray[np.float64] = uniform(seeds[:, None], np.asarray([stream]), index[None, :])
    return numbers


def gumbel_noise(seeds: NDArray[np.uint64], actions: int) -> NDArray[np.float64]:
    """[B, A] standard Gumbel variates."""
    return -np.log(-np.log(uniforms(seeds, ROOT_NOISE, actions)))


def dirichlet_noise(seeds: NDArray[np.uint64], action_mask: NDArray[np.bool_], alpha: float) -> NDArray[np.float64]:
    """[B, A] rows from a symmetric Dirichlet distribution over the allowed actions, 0 elsewhere.

    Gamma variates come from inverting their distribution function, one uniform each.
    """
    uniform_numbers = uniforms(seeds, ROOT_NOISE, action_mask.shape[1])
    gammas = np.where(action_mask, gammaincinv(alpha, uniform_numbers), 0.0)
    # With a tiny alpha all gammas of a row may underflow; the largest uniform then takes all, as in the limit.
    largest = np.where(action_mask, uniform_numbers, -1.0)
    limit = (largest == largest.max(axis=1, keepdims=True)).astype(np.float64)
    total = gammas.sum(axis=1, keepdims=True)
    noise: NDArray[np.float64] = np.where(total > 0.0, gammas / np.where(total > 0.0, total, 1.0), limit)
    return noise
