"""The core network as compiled loops over groups of leaves.

A simulation asks for one of two evaluations, and both have the same anatomy, so one function serves them:

    leaf under an action (φ, ψ): embed action → block → min-max → hidden → [chance logits | Q logits]
    leaf under a code    (g, f): embed code   → block → min-max → hidden → [policy logits | value logits]
                                 and a reward read from the block's hidden layer

Matrix products are written here instead of calling BLAS, for one reason: a row's result must not depend on
how many other leaves happen to be evaluated with it. `matmul` adds up each output in the order of its inputs,
one fused multiply-add after another, for one row as for a thousand, so a tree has the same bits alone, in any
batch and on any number of threads (docs/decisions/0030).

Weights are packed into panels of `PANEL` output columns, [panels, inputs, PANEL], and every width is padded
with zeros to a multiple of PANEL. The indices below are unsigned because numba adds a wrap-around test to
signed ones, and with it LLVM does not vectorise the loops.

Legend: M rows of a group, L latent, H hidden, V atoms.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# Kernels carry no annotations: numba infers their types, and their docstrings say what goes in.

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.search.compilation import ANY_ORDER, FIXED_ORDER, compiled, prefer_wide_vectors
from agent.search.weights import CoreWeights

LANES = 8  # logits of a softmax come in multiples of this
PANEL = 64  # columns computed together: four rows of accumulators fit in the vector registers

_EPSILON = 1e-5  # of LayerNorm and of min-max scaling

# Where each piece of an evaluation starts in the packed parameters: one row of this table per kind of leaf.
EMBEDDING, GAIN, BIAS, W1, B1, W2, B2, HIDDEN_W, HIDDEN_B, HEADS_W, HEADS_B, REWARD_W, REWARD_B = range(13)
VALUE_ATOMS, REWARD_ATOMS = 13, 14
PIECES = 15


class NetworkShape(NamedTuple):
    """Sizes of the core: what is computed (latent, atoms) and what is stored, padded (…_width)."""

    actions: int
    codes: int
    latent: int
    atoms: int  # in whole vectors
    latent_width: int
    hidden_width: int
    reward_width: int


class Scratch(NamedTuple):
    """Working memory of `evaluate` for one group of at most M leaves, flat and row-major."""

    embedded: NDArray[np.floating]  # [M, latent_width]
    normed: NDArray[np.floating]  # [M, latent_width]
    hidden: NDArray[np.floating]  # [M, hidden_width]
    latent: NDArray[np.floating]  # [M, latent_width] the leaves' new latents
    heads: NDArray[np.floating]  # [M, heads_width] logits of the edges, then of the value's atoms
    reward: NDArray[np.floating]  # [M, reward_width] logits of the reward's atoms
    tile: NDArray[np.floating]  # [4, PANEL] accumulators
    bits: NDArray[np.int32]  # [heads_width] floats written as bits ...
    powers: NDArray[np.float32]  # [heads_width] ... and read as floats: the same memory


@compiled()
def padded(size: int) -> int:
    """`size` rounded up to whole panels."""
    return (size + PANEL - 1) // PANEL * PANEL


@compiled()
def aligned(size: int) -> int:
    """`size` rounded up to whole vectors, so that a loop over logits has no remainder."""
    return (size + LANES - 1) // LANES * LANES


def cache_aligned(size: int, dtype: type[np.floating]) -> NDArray[np.floating]:
    """Zeros that begin on a cache line. Wherever else numpy happens to put them, every wide vector is read from two
    lines, and a single root's search takes two fifths longer."""
    line = 64
    room = np.zeros(size * np.dtype(dtype).itemsize + line, np.uint8)
    start = -room.ctypes.data % line
    return room[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def allocate_scratch(shape: NetworkShape, rows: int, dtype: type[np.floating]) -> Scratch:
    """Working memory for groups of up to `rows` leaves."""
    heads = padded(aligned(max(shape.actions, shape.codes)) + shape.atoms)
    bits = np.zeros(heads, np.int32)
    return Scratch(
        embedded=cache_aligned(rows * shape.latent_width, dtype),
        normed=cache_aligned(rows * shape.latent_width, dtype),
        hidden=cache_aligned(rows * shape.hidden_width, dtype),
        latent=cache_aligned(rows * shape.latent_width, dtype),
        heads=cache_aligned(rows * heads, dtype),
        reward=cache_aligned(rows * shape.reward_width, dtype),
        tile=cache_aligned(4 * PANEL, dtype),
        bits=bits,
        powers=bits.view(np.float32),
    )


def pack(
    weights: CoreWeights, dtype: type[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.int64], NetworkShape]:
    """One flat array of parameters, the [2, PIECES] table of where each piece starts, and the sizes."""
    latent_width, hidden_width = padded(weights.latent_size), padded(weights.hidden_size)
    parts: list[NDArray[np.floating]] = []
    layout = np.zeros((2, PIECES), np.int64)
    end = 0

    def put(kind: int, piece: int, flat: NDArray[np.floating]) -> None:
        nonlocal end
        layout[kind, piece] = end
        parts.append(flat.astype(dtype))
        end += flat.size

    def vector(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.pad(values, (0, padded(values.size) - values.size))

    def panels(matrix: NDArray[np.floating], inputs_width: int) -> NDArray[np.floating]:
        inputs, outputs = matrix.shape
        full = np.pad(matrix, ((0, inputs_width - inputs), (0, padded(outputs) - outputs)))
        return full.reshape(inputs_width, -1, PANEL).transpose(1, 0, 2).ravel()

    def rows(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.pad(matrix, ((0, 0), (0, latent_width - matrix.shape[1]))).ravel()

    def to_lanes(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.pad(matrix, ((0, 0), (0, aligned(matrix.shape[1]) - matrix.shape[1])))

    def impossible(bias: NDArray[np.floating]) -> NDArray[np.floating]:
        """Logits that only pad have no probability."""
        return np.pad(bias, (0, aligned(bias.size) - bias.size), constant_values=-1e30)

    w = weights
    under_action = (w.action_embedding, w.phi_gain, w.phi_bias, w.phi_w1, w.phi_b1, w.phi_w2, w.phi_b2)
    under_code = (w.code_embedding, w.g_gain, w.g_bias, w.g_w1, w.g_b1, w.g_w2, w.g_b2)
    hidden_layers = ((w.psi_w1, w.psi_b1), (w.f_w1, w.f_b1))
    heads = (((w.chance_w, w.q_w), (w.chance_b, w.q_b)), ((w.policy_w, w.value_w), (w.policy_b, w.value_b)))
    for kind, (embedding, gain, bias, w1, b1, w2, b2) in enumerate((under_action, under_code)):
        put(kind, EMBEDDING, rows(embedding))
        put(kind, GAIN, vector(gain))
        put(kind, BIAS, vector(bias))
        put(kind, W1, panels(w1, latent_width))
        put(kind, B1, vector(b1))
        put(kind, W2, panels(w2, hidden_width))
        put(kind, B2, vector(b2))
        put(kind, HIDDEN_W, panels(hidden_layers[kind][0], latent_width))
        put(kind, HIDDEN_B, vector(hidden_layers[kind][1]))
        (edges_w, value_w), (edges_b, value_b) = heads[kind]
        put(kind, HEADS_W, panels(np.concatenate((to_lanes(edges_w), to_lanes(value_w)), axis=1), hidden_width))
        put(kind, HEADS_B, vector(np.concatenate((impossible(edges_b), impossible(value_b)))))
        put(kind, REWARD_W, panels(to_lanes(w.reward_w), hidden_width))
        put(kind, REWARD_B, vector(impossible(w.reward_b)))
        put(kind, VALUE_ATOMS, vector(w.atoms))
        put(kind, REWARD_ATOMS, vector(w.reward_atoms))
    shape = NetworkShape(
        actions=w.num_actions,
        codes=w.num_codes,
        latent=w.latent_size,
        atoms=aligned(w.num_atoms),
        latent_width=latent_width,
        hidden_width=hidden_width,
        reward_width=padded(aligned(w.num_atoms)),
    )
    params = cache_aligned(end, dtype)
    np.concatenate(parts, out=params)
    return params, layout, shape


_P = np.uint64(PANEL)
_P2, _P3, _P4, _P5, _P6, _P7 = (np.uint64(i * PANEL) for i in range(2, 8))
_0, _1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(i) for i in range(9))


@compiled(fastmath=FIXED_ORDER)
def matmul(x, rows, inputs, params, weight, bias, outputs, lowest, tile, out):
    """out[m] = max(x[m]·W + b, lowest) for m < rows; lowest is 0 for a ReLU layer and far below for a linear one.

    x: flat [rows, inputs]; out: flat [rows, outputs]. weight, bias: where W (packed in panels) and b start in
    params. Four rows at a time share the loads of W; what is left over goes one by one, eight inputs at a time to spare
    loads of the sums. The order of the additions is the same in both.
    """
    prefer_wide_vectors()
    x_width, out_width = np.uint64(inputs), np.uint64(outputs)
    w, b = np.uint64(weight), np.uint64(bias)
    steps, panels, count = x_width // _4, out_width // _P, np.uint64(rows)
    row = _0
    while row + _3 <= count:
        # Three leftover rows go through the tile as four, the last of them twice: cheaper than one by one.
        m1, m2, m3 = row + _1, row + _2, min(row + _3, count - _1)
        x0, x1, x2, x3 = row * x_width, m1 * x_width, m2 * x_width, m3 * x_width
        o0, o1, o2, o3 = row * out_width, m1 * out_width, m2 * out_width, m3 * out_width
        for panel in range(panels):
            for j in range(_P):
                start = params[b + panel * _P + j]
                tile[j] = start
                tile[_P + j] = start
                tile[_P2 + j] = start
                tile[_P3 + j] = start
            column = w + panel * x_width * _P
            for step in range(steps):
                k = step * _4
                a0, a1, a2, a3 = x[x0 + k], x[x0 + k + _1], x[x0 + k + _2], x[x0 + k + _3]
                b0, b1, b2, b3 = x[x1 + k], x[x1 + k + _1], x[x1 + k + _2], x[x1 + k + _3]
                c0, c1, c2, c3 = x[x2 + k], x[x2 + k + _1], x[x2 + k + _2], x[x2 + k + _3]
                d0, d1, d2, d3 = x[x3 + k], x[x3 + k + _1], x[x3 + k + _2], x[x3 + k + _3]
                line = column + k * _P
                for j in range(_P):
                    w0, w1 = params[line + j], params[line + _P + j]
                    w2, w3 = params[line + _P2 + j], params[line + _P3 + j]
                    tile[j] = tile[j] + a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                    tile[_P + j] = tile[_P + j] + b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                    tile[_P2 + j] = tile[_P2 + j] + c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
                    tile[_P3 + j] = tile[_P3 + j] + d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3
            at = panel * _P
            for j in range(_P):
                out[o0 + at + j] = max(tile[j], lowest)
            for j in range(_P):
                out[o1 + at + j] = max(tile[_P + j], lowest)
            for j in range(_P):
                out[o2 + at + j] = max(tile[_P2 + j], lowest)
            for j in range(_P):
                out[o3 + at + j] = max(tile[_P3 + j], lowest)
        row = min(row + _4, count)
    while row < count:
        x0, o0 = row * x_width, row * out_width
        for j in range(out_width):
            out[o0 + j] = params[b + j]
        for panel in range(panels):
            at = o0 + panel * _P
            column = w + panel * x_width * _P
            for step in range(x_width // _8):
                k = x0 + step * _8
                a0, a1, a2, a3 = x[k], x[k + _1], x[k + _2], x[k + _3]
                a4, a5, a6, a7 = x[k + _4], x[k + _5], x[k + _6], x[k + _7]
                line = column + step * _8 * _P
                for j in range(_P):
                    out[at + j] = (
                        out[at + j]
                        + a0 * params[line + j]
                        + a1 * params[line + _P + j]
                        + a2 * params[line + _P2 + j]
                        + a3 * params[line + _P3 + j]
                        + a4 * params[line + _P4 + j]
                        + a5 * params[line + _P5 + j]
                        + a6 * params[line + _P6 + j]
                        + a7 * params[line + _P7 + j]
                    )
        for j in range(out_width):
            out[o0 + j] = max(out[o0 + j], lowest)
        row += _1


@compiled(fastmath=ANY_ORDER)
def layer_norm(x, start, size, params, gain, bias, out):
    """LayerNorm of x[start : start + size] into the same place of `out`."""
    first, length = np.uint64(start), np.uint64(size)
    g, b = np.uint64(gain), np.uint64(bias)
    real = x.dtype.type
    total = real(0)
    for j in range(length):
        total += x[first + j]
    mean = total / real(size)
    total = real(0)
    for j in range(length):
        centred = x[first + j] - mean
        total += centred * centred
    scale = real(1) / np.sqrt(total / real(size) + real(_EPSILON))
    for j in range(length):
        out[first + j] = (x[first + j] - mean) * scale * params[g + j] + params[b + j]


@compiled(fastmath=ANY_ORDER)
def minmax(x, start, size):
    """Scale x[start : start + size] to [0, 1] in place."""
    first, length = np.uint64(start), np.uint64(size)
    real = x.dtype.type
    low = x[first]
    high = x[first]
    for j in range(length):
        low = min(low, x[first + j])
        high = max(high, x[first + j])
    scale = real(1) / (high - low + real(_EPSILON))
    for j in range(length):
        x[first + j] = (x[first + j] - low) * scale


@compiled(fastmath=ANY_ORDER)
def exponentials(logits, start, size, bits, powers):
    """Replace logits[start : start + size] by exp(logit − largest logit) and return their sum.

    In float32, exp(x) = 2⁻ⁿ·eʳ with n = round(−x / ln 2) and a Taylor polynomial for eʳ, |r| ≤ ln 2 / 2, whose
    remainder r⁸/8! is below the rounding. That vectorises, where a call of the library's exp would not; 2⁻ⁿ is
    made by writing its exponent bits. Differences below −87 count as −87: e⁻⁸⁷ is near the smallest normal
    number.
    """
    first, length = np.uint64(start), np.uint64(size)
    real = logits.dtype.type
    highest = logits[first]
    for j in range(length):
        highest = max(highest, logits[first + j])
    total = real(0)
    if logits.itemsize == 8:
        for j in range(length):
            logits[first + j] = np.exp(logits[first + j] - highest)
            total += logits[first + j]
        return total
    for j in range(length):
        x = max(logits[first + j] - highest, real(-87.0))
        halvings = np.int32(real(0.5) - x * real(1.4426950408889634))
        n = real(halvings)
        # ln 2 in two parts: the first has few enough bits for n·0.693359375 to be exact (Cody and Waite).
        r = (x + n * real(0.693359375)) + n * real(-2.12194440e-4)
        tail = real(1 / 120) + r * (real(1 / 720) + r * real(1 / 5040))
        series = real(1) + r * (real(1) + r * (real(0.5) + r * (real(1 / 6) + r * (real(1 / 24) + r * tail))))
        logits[first + j] = series
        bits[j] = (np.int32(127) - halvings) << np.int32(23)
    for j in range(length):
        logits[first + j] *= powers[j]
        total += logits[first + j]
    return total


@compiled(fastmath=ANY_ORDER)
def expectation(logits, start, size, params, atoms, bits, powers):
    """Σ softmax(logits)·atoms of logits[start : start + size], which are overwritten."""
    total = exponentials(logits, start, size, bits, powers)
    first, length, a = np.uint64(start), np.uint64(size), np.uint64(atoms)
    weighted = logits.dtype.type(0)
    for j in range(length):
        weighted += logits[first + j] * params[a + j]
    return weighted / total


@compiled(fastmath=ANY_ORDER)
def softmax(logits, start, size, bits, powers):
    """Probabilities of logits[start : start + size], in place."""
    total = exponentials(logits, start, size, bits, powers)
    first, length = np.uint64(start), np.uint64(size)
    scale = logits.dtype.type(1) / total
    for j in range(length):
        logits[first + j] *= scale


@compiled(fastmath=ANY_ORDER)
def embed(latents, source, params, embedding, width, out, target):
    """out[target :] = latents[source :] + embedding, `width` numbers of each."""
    s, e, t = np.uint64(source), np.uint64(embedding), np.uint64(target)
    for j in range(np.uint64(width)):
        out[t + j] = latents[s + j] + params[e + j]


@compiled(fastmath=ANY_ORDER)
def add(x, out, size):
    """out[: size] += x[: size]."""
    for j in range(np.uint64(size)):
        out[j] += x[j]


@compiled()
def evaluate(kind, rows, edges, params, layout, shape, scratch):
    """Evaluate a group of leaves of one kind: 0 under an action (φ, ψ), 1 under a code (g, f).

    On entry scratch.embedded holds the parents' latents plus the embeddings of the edges taken. On return
    scratch.latent [rows, latent_width] holds the new latents, scratch.heads the logits of the leaf's `edges`
    and its value's atoms, and scratch.reward those of the reward (kind 1 only).
    """
    piece = layout[kind]
    latent, hidden, tile = shape.latent_width, shape.hidden_width, scratch.tile
    relu, linear = params.dtype.type(0), params.dtype.type(-1e30)
    x, normed, deep, new = scratch.embedded, scratch.normed, scratch.hidden, scratch.latent
    for row in range(rows):
        layer_norm(x, row * latent, shape.latent, params, piece[GAIN], piece[BIAS], normed)
    matmul(normed, rows, latent, params, piece[W1], piece[B1], hidden, relu, tile, deep)
    if kind == 1:
        width = shape.reward_width
        matmul(deep, rows, hidden, params, piece[REWARD_W], piece[REWARD_B], width, linear, tile, scratch.reward)
    matmul(deep, rows, hidden, params, piece[W2], piece[B2], latent, linear, tile, new)
    add(x, new, rows * latent)
    for row in range(rows):
        minmax(new, row * latent, shape.latent)
    matmul(new, rows, latent, params, piece[HIDDEN_W], piece[HIDDEN_B], hidden, relu, tile, deep)
    width = padded(aligned(edges) + shape.atoms)
    matmul(deep, rows, hidden, params, piece[HEADS_W], piece[HEADS_B], width, linear, tile, scratch.heads)
