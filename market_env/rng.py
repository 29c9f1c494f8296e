"""Addressed randomness: each draw is a pure function of what it is for.

There is no generator state. A draw is named by (seed, instrument, bar timestamp, stream) and computed by
Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011 (constants and rounds from section 3.3; the authors' known-answer vectors are in the tests). The
64-bit seed is the key; the 128-bit counter is (timestamp low, timestamp high, instrument, block), so results do
not depend on batch size, process, evaluation order or a restart, and two policies meet the same shocks.

One block gives four independent 32-bit words. Numbers from a word carry 32 bits: enough for fill noise, whose
normals then reach 6.2 standard deviations.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from market_env._compile import inlined

Word = np.uint64  # a 32-bit word in a 64-bit register: products need the upper half

# Blocks (the fourth counter word). A block is drawn only when something needs it.
FILL_BLOCK = np.uint64(0)  # words: reject, partial, arrival normal, spread normal
RARE_FILL_BLOCK = np.uint64(1)  # words: partial fraction, limit touch
EPISODE_BLOCK = np.uint64(16)  # words: dataset, start bar, initial exposure, -
RANDOMISATION_BLOCK = np.uint64(17)  # words: fee, spread, kappa, latency multipliers
SEED_BLOCK = np.uint64(18)  # words 0-1: the fill seed of an episode after the first

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)  # golden ratio
_WEYL_1 = np.uint64(0xBB67AE85)  # sqrt(3) - 1
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_TWO_TO_MINUS_32 = 2.0**-32


@inlined
def philox(
    seed: Word, counter_0: Word, counter_1: Word, counter_2: Word, counter_3: Word
) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10: four 32-bit words (as uint64) from a 64-bit seed and four 32-bit counter words (uint64)."""
    key_0 = seed & _LOW_32
    key_1 = seed >> _SHIFT_32
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * counter_0
        product_1 = _MULTIPLIER_1 * counter_2
        counter_0 = (product_1 >> _SHIFT_32) ^ counter_1 ^ key_0
        counter_2 = (product_0 >> _SHIFT_32) ^ counter_3 ^ key_1
        counter_1 = product_1 & _LOW_32
        counter_3 = product_0 & _LOW_32
        key_0 = (key_0 + _WEYL_0) & _LOW_32
        key_1 = (key_1 + _WEYL_1) & _LOW_32
    return counter_0, counter_1, counter_2, counter_3


@inlined
def words_at(seed: Word, instrument: Word, address: Word, block: Word) -> tuple[Word, Word, Word, Word]:
    """The four words of one block at `address` (a bar timestamp in ms, or an episode number)."""
    return philox(seed, address & _LOW_32, address >> _SHIFT_32, instrument & _LOW_32, block & _LOW_32)


@inlined
def uniform(word: Word) -> float:
    """A word as the midpoint of its cell: a uniform in (0, 1), never 0 and never 1."""
    return (float(word) + 0.5) * _TWO_TO_MINUS_32


@inlined
def _is_central(q: float) -> bool:
    return abs(q) <= 0.425


@inlined
def _central_normal(q: float) -> float:
    """`normal` at u = 0.5 + q for |q| <= 0.425."""
    r = 0.180625 - q * q
    numerator = (
        ((((((2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4) * r
        + 4.5921953931549871457e4) * r + 1.3731693765509461125e4) * r + 1.9715909503065514427e3) * r
        + 1.3314166789178437745e2) * r + 3.3871328727963666080e0
    )  # fmt: skip
    denominator = (
        ((((((5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4) * r
        + 2.1213794301586595867e4) * r + 5.3941960214247511077e3) * r + 6.8718700749205790830e2) * r
        + 4.2313330701600911252e1) * r + 1.0
    )  # fmt: skip
    return q * numerator / denominator


@inlined
def _tail_normal(r: float) -> float:
    """-`normal` at u = exp(-r^2), for sqrt(-ln 0.075) < r <= 5."""
    r -= 1.6
    numerator = (
        ((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r
        + 1.27045825245236838258e0) * r + 3.64784832476320460504e0) * r + 5.76949722146069140550e0) * r
        + 4.63033784615654529590e0) * r + 1.42343711074968357734e0
    )  # fmt: skip
    denominator = (
        ((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r
        + 1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r
        + 2.05319162663775882187e0) * r + 1.0
    )  # fmt: skip
    return numerator / denominator


@inlined
def _far_tail_normal(r: float) -> float:
    """-`normal` at u = exp(-r^2), for r > 5: u below 1.4e-11."""
    r -= 5.0
    numerator = (
        ((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 1.24266094738807843860e-3) * r
        + 2.65321895265761230930e-2) * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580e0) * r
        + 5.46378491116411436990e0) * r + 6.65790464350110377720e0
    )  # fmt: skip
    denominator = (
        ((((((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r + 1.84631831751005468180e-5) * r
        + 7.86869131145613259100e-4) * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
        + 5.99832206555887937690e-1) * r + 1.0
    )  # fmt: skip
    return numerator / denominator


@inlined
def normal(u: float) -> float:
    """Standard normal quantile of u in (0, 1): Wichura, algorithm AS 241 (PPND16), Applied Statistics 37 (1988).

    Inversion keeps one word per normal, so streams stay separate, and is monotone in u. About 1e-16 accurate.
    """
    q = u - 0.5
    if _is_central(q):
        return _central_normal(q)
    r = math.sqrt(-math.log(min(u, 1.0 - u)))
    tail = _tail_normal(r) if r <= 5.0 else _far_tail_normal(r)
    return -tail if q < 0.0 else tail


@inlined
def normals(values: NDArray[np.float64], first: int, count: int, memory: int) -> None:
    """Turn the uniforms values[first : first + count] into standard normals; the same numbers as `normal`.

    The uniforms come from 32-bit words, so they stay clear of the far tail. values[memory : memory + 2 * count]: to
    work in. All of them are first taken for central, which loops without a branch; the one in seven that is not is then
    gathered and done again.
    """
    # Unsigned indices spare a check for negative ones, and with it the loops vectorise.
    for k in range(count):
        u = values[np.uint64(first + k)]
        values[np.uint64(memory + k)] = u
        values[np.uint64(first + k)] = _central_normal(u - 0.5)
    places, tails = memory + count, 0
    for k in range(count):
        values[np.uint64(places + tails)] = k
        tails += not _is_central(values[np.uint64(memory + k)] - 0.5)
    for j in range(tails):
        place = np.int64(values[np.uint64(places + j)])  # never before its rank j
        values[np.uint64(memory + j)] = values[np.uint64(memory + place)]
    for j in range(tails):
        u = values[np.uint64(memory + j)]
        logarithm = math.log(min(u, 1.0 - u))
        values[np.uint64(memory + j)] = logarithm if u < 0.5 else -logarithm
    for j in range(tails):
        signed = values[np.uint64(memory + j)]
        tail = _tail_normal(math.sqrt(abs(signed)))
        values[np.uint64(memory + j)] = tail if signed > 0.0 else -tail
    for j in range(tails):
        place = np.int64(values[np.uint64(places + j)])
        values[np.uint64(first + place)] = values[np.uint64(memory + j)]


@inlined
def beta_2_2(u: float) -> float:
    """Quantile of Beta(2, 2): the root in [0, 1] of 3x^2 - 2x^3 = u, in closed form."""
    return 0.5 - math.sin(math.asin(1.0 - 2.0 * u) / 3.0)


@inlined
def join(low: float, high: float) -> Word:
    """A 64-bit word from its halves, which live as float64 in the blocks."""
    return (np.uint64(np.int64(high)) << _SHIFT_32) | np.uint64(np.int64(low))


@inlined
def low_half(word: Word) -> float:
    """The lower 32 bits as a float64."""
    return float(word & _LOW_32)


@inlined
def high_half(word: Word) -> float:
    """The upper 32 bits as a float64."""
    return float(word >> _SHIFT_32)


@inlined
def episode_seed(seed: Word, episode: Word) -> Word:
    """The fill seed of an episode: the seed itself for the first, a derived one after.

    Without this an env that meets the same bars again in a later episode would meet the same fill noise too,
    and an agent could learn the noise by heart.
    """
    if episode == np.uint64(0):
        return seed
    word_0, word_1, _, _ = words_at(seed, np.uint64(0), episode, SEED_BLOCK)
    return (word_1 << _SHIFT_32) | word_0


def instrument_key(symbol: str) -> int:
    """32-bit address of an instrument: the first four bytes of BLAKE2b of its symbol, little endian."""
    return int.from_bytes(hashlib.blake2b(symbol.encode(), digest_size=4).digest(), "little")


def seed_key(seed: int) -> int:
    """Check that a seed is an integer in [0, 2**64) and return it."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    return int(seed)


def seed_keys(seed: int | Sequence[int], count: int) -> NDArray[np.uint64]:
    """The seeds of `count` environments: seed + i, or seed[i]."""
    seeds = [int(seed) + i for i in range(count)] if isinstance(seed, (int, np.integer)) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"need one seed per environment, {count}, got {len(seeds)}")
    return np.array([seed_key(value) for value in seeds], dtype=np.uint64)
