"""The recurrent core as flat arrays: what the compiled search computes with.

The equations, row by row (Linear weights are stored [in, out]; LayerNorm and min-max use ε = 1e-5):

    minmax(x)  = (x − min x) / (max x − min x + ε)
    block(x)   : n = LayerNorm(x)·gain + bias;  hid = relu(n·W₁ + b₁);  out = x + hid·W₂ + b₂
    φ(s, a)    : out, _   = block_phi(s + action_embedding[a]);  afterstate = minmax(out)
                 (an action with parts adds the embedding of each part's category)
    ψ(as)      : hid = relu(as·psi_w1 + psi_b1);  chance_logits = hid·chance_w + chance_b;
                 q = softmax(hid·q_w + q_b)·atoms
    g(as, c)   : out, hid = block_g(as + code_embedding[c]);     state = minmax(out);
                 reward = softmax(hid·reward_w + reward_b)·reward_atoms
    f(s)       : hid = relu(s·f_w1 + f_b1);  policy_logits = hid·policy_w + policy_b;
                 value = softmax(hid·value_w + value_b)·atoms

Atoms stand in units of the environment's reward, so an expectation needs no further transform.

Legend: A actions (categories of all parts together, where an action has parts), C chance codes, L latent, H hidden,
V atoms.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# Shape of every field, in the letters of the legend.
WEIGHT_SHAPES: dict[str, str] = {
    "action_embedding": "AL",
    "phi_gain": "L",
    "phi_bias": "L",
    "phi_w1": "LH",
    "phi_b1": "H",
    "phi_w2": "HL",
    "phi_b2": "L",
    "psi_w1": "LH",
    "psi_b1": "H",
    "chance_w": "HC",
    "chance_b": "C",
    "q_w": "HV",
    "q_b": "V",
    "code_embedding": "CL",
    "g_gain": "L",
    "g_bias": "L",
    "g_w1": "LH",
    "g_b1": "H",
    "g_w2": "HL",
    "g_b2": "L",
    "reward_w": "HV",
    "reward_b": "V",
    "f_w1": "LH",
    "f_b1": "H",
    "policy_w": "HA",
    "policy_b": "A",
    "value_w": "HV",
    "value_b": "V",
    "atoms": "V",
    "reward_atoms": "V",
}


class SearchInputError(ValueError):
    """The search was handed arrays it cannot work with: wrong shape, wrong type or not finite."""


def require_finite(name: str, values: NDArray[np.floating]) -> None:
    """Raise SearchInputError naming the tensor and the first bad position when `values` is not finite."""
    finite = np.isfinite(values)
    if finite.all():
        return
    position = tuple(int(index) for index in np.argwhere(~finite)[0])
    raise SearchInputError(
        f"{name} has {int((~finite).sum())} values that are not finite (the first is "
        f"{values[position]} at {list(position)}); every entry must be a finite number. "
        "Look for a diverged training step or a bad observation before this search."
    )


@dataclass(frozen=True, kw_only=True)
class CoreWeights:
    """Weights of φ, ψ, g and f as C-contiguous float32 arrays; the module docstring says how they are used.

    Raises SearchInputError when an array has the wrong type or shape or holds a NaN or an infinity.
    """

    action_embedding: Float32  # [A, L]
    phi_gain: Float32  # [L]
    phi_bias: Float32  # [L]
    phi_w1: Float32  # [L, H]
    phi_b1: Float32  # [H]
    phi_w2: Float32  # [H, L]
    phi_b2: Float32  # [L]
    psi_w1: Float32  # [L, H]
    psi_b1: Float32  # [H]
    chance_w: Float32  # [H, C]
    chance_b: Float32  # [C]
    q_w: Float32  # [H, V]
    q_b: Float32  # [V]
    code_embedding: Float32  # [C, L]
    g_gain: Float32  # [L]
    g_bias: Float32  # [L]
    g_w1: Float32  # [L, H]
    g_b1: Float32  # [H]
    g_w2: Float32  # [H, L]
    g_b2: Float32  # [L]
    reward_w: Float32  # [H, V]
    reward_b: Float32  # [V]
    f_w1: Float32  # [L, H]
    f_b1: Float32  # [H]
    policy_w: Float32  # [H, A]
    policy_b: Float32  # [A]
    value_w: Float32  # [H, V]
    value_b: Float32  # [V]
    atoms: Float32  # [V] of Q and value, in units of the reward
    reward_atoms: Float32  # [V] of the reward
    action_factors: tuple[int, ...] = ()  # [D] categories of each part of an action; empty: an action is one choice

    def __post_init__(self) -> None:
        sizes = self._sizes()
        if self.action_factors and (sum(self.action_factors) != sizes["A"] or min(self.action_factors) < 1):
            raise SearchInputError(
                f"action_factors must be positive and sum to the {sizes['A']} rows of action_embedding; found "
                f"{self.action_factors}"
            )
        for name, letters in WEIGHT_SHAPES.items():
            array = getattr(self, name)
            expected = tuple(sizes[letter] for letter in letters)
            if array.dtype != np.float32 or array.shape != expected or not array.flags.c_contiguous:
                raise SearchInputError(
                    f"weight {name} must be a C-contiguous float32 array of shape {expected} ({letters}); found "
                    f"{array.dtype} of shape {array.shape}. Export it with RecurrentCore.export()."
                )
        self.require_finite()

    def _sizes(self) -> dict[str, int]:
        """What each letter of the legend stands for, read off three arrays."""
        if self.action_embedding.ndim != 2 or self.code_embedding.ndim != 2 or self.phi_w1.ndim != 2:
            raise SearchInputError("action_embedding [A, L], code_embedding [C, L] and phi_w1 [L, H] must be matrices")
        return {
            "A": self.action_embedding.shape[0],
            "C": self.code_embedding.shape[0],
            "L": self.phi_w1.shape[0],
            "H": self.phi_w1.shape[1],
            "V": self.atoms.shape[0],
        }

    @property
    def num_actions(self) -> int:
        """A, or the categories of all parts together."""
        return int(self.action_embedding.shape[0])

    @property
    def num_codes(self) -> int:
        """C."""
        return int(self.code_embedding.shape[0])

    @property
    def latent_size(self) -> int:
        """L."""
        return int(self.phi_w1.shape[0])

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.phi_w1.shape[1])

    @property
    def num_atoms(self) -> int:
        """V."""
        return int(self.atoms.shape[0])

    def require_finite(self) -> None:
        """Raise SearchInputError naming the first tensor that holds a NaN or an infinity."""
        for name in WEIGHT_SHAPES:
            require_finite(f"weight {name}", getattr(self, name))

    @classmethod
    def random(
        cls,
        seed: int,
        *,
        actions: int,
        codes: int,
        latent: int = 128,
        hidden: int = 256,
        atoms: int = 51,
        limit: float = 5.0,
        action_factors: tuple[int, ...] = (),
    ) -> Self:
        """A network nobody trained, for tests and benchmarks: layers scaled by 1/√inputs, heads lively enough
        that values, priors and outcomes differ from node to node.

        limit: largest magnitude on the support, in units of the reward. action_factors: parts of an action, which
        sum to `actions`.
        """
        rng = np.random.default_rng(seed)
        sizes = {"A": actions, "C": codes, "L": latent, "H": hidden, "V": atoms}
        arrays: dict[str, Float32] = {}
        for name, letters in WEIGHT_SHAPES.items():
            shape = tuple(sizes[letter] for letter in letters)
            if name.endswith("_gain"):
                array = 1.0 + 0.1 * rng.standard_normal(shape)
            elif name.endswith("atoms"):
                array = np.linspace(-limit, limit, atoms)
            elif name.endswith("embedding"):
                array = rng.standard_normal(shape)
            elif len(letters) == 2:
                head = name in {"chance_w", "q_w", "reward_w", "policy_w", "value_w"}
                array = rng.standard_normal(shape) * (3.0 if head else 1.5) / np.sqrt(shape[0])
            else:
                array = 0.1 * rng.standard_normal(shape)
            arrays[name] = np.ascontiguousarray(array, dtype=np.float32)
        return cls(**arrays, action_factors=action_factors)
