"""From an observation to the root of a search as one compiled call: the representation h, then the prediction f.

Torch's matrix products round differently for different batch sizes, so a decision that must not depend on its company
had to call them once per row (docs/decisions/0005). The loops of the compiled search do not (docs/decisions/0030):
here the `mlp` backbone runs through the same loops, so a row has the same bits alone and in any batch, and a batch
costs one call (docs/decisions/0056). Other backbones have no compiled form and stay with torch.

The layers form a straight program, one row of a table each:

    matrix product (ReLU or linear) → min-max scaling, where the result is the latent → copy into a wider input

Everything between two layers lives in `cells`, a region per buffer, [GROUP, width] row-major. Widths are padded with
zeros as in `agent.search.network_kernel`, whose loops these are.

Legend: B batch, D numbers of a flattened observation, L latent, A actions, V atoms.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# The kernel carries no annotations: numba infers its types, and its docstring says what goes in.

import hashlib
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agent.networks.model import StochasticMuZero
from agent.policy import Observations
from agent.search import compilation, network_kernel
from agent.search.compilation import compiled
from agent.search.network_kernel import PANEL, aligned, cache_aligned, expectation, matmul, minmax, padded
from agent.search.weights import CoreWeights, Float32, require_finite

# Rows that go through a layer together: enough to fill the matrix products, few enough to stay in the cache.
GROUP = 32

# Columns of the program. MINMAX: how many numbers to scale to [0, 1], 0 for none. MOVE_TO: where in another layer's
# input the result is copied to, -1 for nowhere; MOVE_SIZE: how many numbers of each row; MOVE_WIDTH: of that input.
SOURCE, INPUTS, WEIGHT, BIAS, TARGET, OUTPUTS, RELU, MINMAX, MOVE_TO, MOVE_SIZE, MOVE_WIDTH = range(11)
# Columns of the table of loads: which numbers of an observation begin where in which input.
FIRST, SIZE, PLACE, WIDTH = range(4)


class Program(NamedTuple):
    """What the kernel reads."""

    loads: NDArray[np.int64]  # [pieces, 4]
    layers: NDArray[np.int64]  # [layers, 11]
    params: Float32  # all weights and biases, packed
    latent: int  # L
    latent_at: int  # where the latents stand in the cells,
    latent_width: int  # and how wide
    heads_at: int  # the last layer's output: policy logits, then those of the value's atoms
    heads_width: int
    actions: int  # A
    atoms: int  # V, in whole vectors
    atoms_at: int  # where the atoms stand in params


class Cells(NamedTuple):
    """Working memory."""

    cells: Float32
    tile: Float32  # [4, PANEL] of matmul
    bits: NDArray[np.int32]  # of the softmax: floats written as bits ...
    powers: Float32  # ... and read as floats, the same memory


class Roots(NamedTuple):
    """Roots as a search takes them."""

    latents: Float32  # [B, L]
    policy_logits: Float32  # [B, A]
    values: Float32  # [B] in units of the reward


@compiled()
def copy_columns(source, first, stride, size, target, place, width, count):
    """target[place + row·width :] = source[first + row·stride :], `size` numbers of each of `count` rows."""
    for row in range(count):
        s, t = np.uint64(first + row * stride), np.uint64(place + row * width)
        for j in range(np.uint64(size)):
            target[t + j] = source[s + j]


def _build(sources: str) -> Any:
    """Define the entry kernel. `sources` becomes part of numba's cache key, which otherwise knows this file only."""

    @compiled(entry=True)
    def make_roots(observations, program, memory, out):
        """Fill `out` from flattened observations [B, D]."""
        _ = sources
        cells, params, tile = memory.cells, program.params, memory.tile
        flat, width = observations.reshape(-1), observations.shape[1]
        relu, linear = np.float32(0), np.float32(-1e30)
        for start in range(0, observations.shape[0], GROUP):
            count = min(GROUP, observations.shape[0] - start)
            for piece in range(program.loads.shape[0]):
                load = program.loads[piece]
                first = start * width + load[FIRST]
                copy_columns(flat, first, width, load[SIZE], cells, load[PLACE], load[WIDTH], count)
            for index in range(program.layers.shape[0]):
                layer = program.layers[index]
                x, result = cells[layer[SOURCE] :], cells[layer[TARGET] :]
                lowest = relu if layer[RELU] else linear
                matmul(
                    x, count, layer[INPUTS], params, layer[WEIGHT], layer[BIAS], layer[OUTPUTS], lowest, tile, result
                )
                if layer[MINMAX] > 0:
                    for row in range(count):
                        minmax(result, row * layer[OUTPUTS], layer[MINMAX])
                if layer[MOVE_TO] >= 0:
                    place, across = layer[MOVE_TO], layer[MOVE_WIDTH]
                    copy_columns(cells, layer[TARGET], layer[OUTPUTS], layer[MOVE_SIZE], cells, place, across, count)
            for index in range(count):
                row = start + index
                latent = program.latent_at + index * program.latent_width
                for j in range(program.latent):
                    out.latents[row, j] = cells[latent + j]
                head = program.heads_at + index * program.heads_width
                for action in range(program.actions):
                    out.policy_logits[row, action] = cells[head + action]
                out.values[row] = expectation(
                    cells, head + aligned(program.actions), program.atoms, params, program.atoms_at, memory.bits,
                    memory.powers,
                )  # fmt: skip

    return make_roots


# Files with functions that are compiled into the kernel, besides this one.
COMPILED_MODULES = (compilation, network_kernel)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for module in COMPILED_MODULES:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


_make_roots = _build(_sources_digest())


class _Assembler:
    """Collects layers, their weights and the buffers between them."""

    def __init__(self) -> None:
        self.loads: list[list[int]] = []
        self.layers: list[list[int]] = []
        self._parts: list[Float32] = []
        self.size = 0  # of the parameters so far
        self.cells = 0  # numbers of working memory so far

    def buffer(self, width: int) -> int:
        """Room for [GROUP, width] numbers; returns where it begins."""
        place = self.cells
        self.cells += GROUP * width
        return place

    def put(self, values: Float32) -> int:
        """Append parameters in whole panels; returns where they begin."""
        place, flat = self.size, values.ravel()
        flat = np.pad(flat, (0, padded(flat.size) - flat.size))
        self._parts.append(flat)
        self.size += flat.size
        return place

    def linear(
        self, source: int, inputs: int, weight: Float32, bias: Float32, *, relu: bool = False, minmax: int = 0
    ) -> tuple[int, int]:
        """Add a layer that reads the buffer at `source`, [GROUP, inputs]. weight: [in, out] with in ≤ inputs.

        Returns where its output stands and how wide it is.
        """
        width = padded(weight.shape[1])
        full = np.pad(weight, ((0, inputs - weight.shape[0]), (0, width - weight.shape[1])))
        panels = full.reshape(inputs, -1, PANEL).transpose(1, 0, 2)
        target = self.buffer(width)
        self.layers.append(
            [source, inputs, self.put(panels), self.put(bias), target, width, int(relu), minmax, -1, 0, 0]
        )
        return target, width

    def move_last(self, place: int, size: int, width: int) -> None:
        """Copy `size` numbers of each row of the last layer's output to `place` in a buffer [GROUP, width]."""
        self.layers[-1][MOVE_TO:] = [place, size, width]

    def params(self) -> Float32:
        flat: Float32 = cache_aligned(self.size, np.float32)
        np.concatenate(self._parts, out=flat)
        return flat


def _linear_layers(reader: nn.Module) -> list[nn.Linear] | None:
    """The layers of a reader that is nothing but Linear and ReLU in turn on a flattened window; None for any other."""
    layers = getattr(reader, "layers", None)
    if not isinstance(layers, nn.Sequential):
        return None
    first, *rest = layers.children()
    linear = [layer for layer in rest[::2] if isinstance(layer, nn.Linear)]
    activations = [layer for layer in rest[1::2] if isinstance(layer, nn.ReLU)]
    known = isinstance(first, nn.Flatten) and len(linear) == len(activations) == len(rest) / 2
    return linear if known else None


def _weights(layer: nn.Linear, name: str) -> tuple[Float32, Float32]:
    """Weight [in, out] and bias [out] of a layer. Raises SearchInputError naming it when they are not finite."""
    weight, bias = (tensor.detach().float().cpu().numpy() for tensor in (layer.weight, layer.bias))
    require_finite(f"weight {name}", weight)
    require_finite(f"bias {name}", bias)
    return weight.T, bias


class CompiledRoots:
    """The `mlp` backbone and the prediction f with fixed weights. A row's result does not depend on its batch.

    Safe to call from several threads; their calls take turns.
    """

    def __init__(self, program: Program, entries: Sequence[str], cells: int) -> None:
        self._program = program
        self._entries = tuple(entries)
        bits = np.zeros(max(program.heads_width, PANEL), np.int32)
        self._memory = Cells(
            cells=cache_aligned(cells, np.float32),
            tile=cache_aligned(4 * PANEL, np.float32),
            bits=bits,
            powers=bits.view(np.float32),
        )
        self._lock = threading.Lock()

    @classmethod
    def export(cls, model: StochasticMuZero, core: CoreWeights) -> Self | None:
        """The present weights of a model, or None where its backbone has no compiled form.

        core: what `model.core.export()` gave. Raises SearchInputError naming a weight that is not finite.
        """
        reader = model.representation.reader
        readers = {}
        for name, part in reader.readers.items():
            layers = _linear_layers(part)
            if layers is None:
                return None
            readers[name] = layers
        assembler, column, mixed = _Assembler(), 0, 0
        flat = sum(math.prod(model.shapes[name]) for name in reader.vectors)
        mix_width = aligned(reader.mix.in_features)
        mix = assembler.buffer(mix_width)
        for name in reader.sequences:
            size = math.prod(model.shapes[name])
            place, width = assembler.buffer(aligned(size)), aligned(size)
            assembler.loads.append([column, size, place, width])
            for index, layer in enumerate(readers[name]):
                place, width = assembler.linear(place, width, *_weights(layer, f"{name}.{index}"), relu=True)
            assembler.move_last(mix + mixed, readers[name][-1].out_features, mix_width)
            mixed += readers[name][-1].out_features
            column += size
        if flat:
            assembler.loads.append([column, flat, mix + mixed, mix_width])
        place, width = assembler.linear(mix, mix_width, *_weights(reader.mix, "mix"), relu=True)
        latent_at, latent_width = assembler.linear(place, width, *_weights(reader.out, "out"), minmax=core.latent_size)
        place, width = assembler.linear(latent_at, latent_width, core.f_w1, core.f_b1, relu=True)
        heads_at, heads_width = assembler.linear(place, width, *_heads(core))
        atoms_at = assembler.put(core.atoms)
        program = Program(
            loads=np.array(assembler.loads, np.int64).reshape(-1, 4),
            layers=np.array(assembler.layers, np.int64),
            params=assembler.params(),
            latent=core.latent_size,
            latent_at=latent_at,
            latent_width=latent_width,
            heads_at=heads_at,
            heads_width=heads_width,
            actions=core.num_actions,
            atoms=aligned(core.num_atoms),
            atoms_at=atoms_at,
        )
        return cls(program, (*reader.sequences, *reader.vectors), assembler.cells)

    def __call__(self, observations: Observations) -> Roots:
        """Roots of a batch. observations: finite float32 entries [B, ...] of the model's shapes."""
        rows = len(observations[self._entries[0]])
        flat = np.concatenate([observations[name].reshape(rows, -1) for name in self._entries], axis=1)
        roots = Roots(
            np.empty((rows, self._program.latent), np.float32),
            np.empty((rows, self._program.actions), np.float32),
            np.empty(rows, np.float32),
        )
        with self._lock:
            _make_roots(flat.astype(np.float32, copy=False), self._program, self._memory, roots)
        return roots


def _heads(core: CoreWeights) -> tuple[Float32, Float32]:
    """Policy and value head side by side, each in whole vectors. A logit that only pads has no probability."""
    weights, biases = [], []
    for weight, bias in ((core.policy_w, core.policy_b), (core.value_w, core.value_b)):
        extra = aligned(bias.size) - bias.size
        weights.append(np.pad(weight, ((0, 0), (0, extra))))
        biases.append(np.pad(bias, (0, extra), constant_values=-1e30))
    return np.concatenate(weights, axis=1), np.concatenate(biases)
