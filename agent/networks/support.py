"""Scalars as categorical distributions over a support of atoms.

The atoms stand where the value transform of MuZero (App. F) puts equally spaced points:
h(x) = sign(x)(√(|x|+1) − 1) + 0.001x, so they are dense near zero and reach far out. A scalar is written as
the two neighbouring atoms whose mean it is (two-hot). The interpolation is done in *raw* units and a
distribution is read as Σ pᵢ·atomᵢ. MuZero interpolates and averages in transformed units instead and maps the
mean back; for noisy returns that is biased, because h is concave: h⁻¹(E[h(z)]) ≠ E[z]. A market's return is
noise with a small mean, so here the mean has to be right (docs/decisions/0003).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LINEAR = 0.001  # ε of MuZero's transform: keeps h invertible and its inverse Lipschitz


def transform(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """h(x) = sign(x)(√(|x|+1) − 1) + 0.001x (MuZero App. F)."""
    return np.sign(x) * (np.sqrt(np.abs(x) + 1.0) - 1.0) + _LINEAR * x


def inverse_transform(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """h⁻¹, so that inverse_transform(transform(x)) = x."""
    root = np.sqrt(1.0 + 4.0 * _LINEAR * (np.abs(y) + 1.0 + _LINEAR))
    return np.sign(y) * (((root - 1.0) / (2.0 * _LINEAR)) ** 2 - 1.0)


def support_atoms(limit: float, count: int) -> NDArray[np.float32]:
    """Atoms of a categorical scalar, ascending: h⁻¹ of equally spaced points.

    limit: largest magnitude that can be represented, in raw units; scalars beyond it are clipped.
    count: number of atoms V, odd, so that zero is one of them.
    Returns [V] float32.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"a support needs an odd number of atoms, at least 3; found {count}")
    if not limit > 0:
        raise ValueError(f"a support needs a positive limit; found {limit}")
    edge = float(transform(np.asarray([limit]))[0])
    return inverse_transform(np.linspace(-edge, edge, count)).astype(np.float32)


def two_hot(x: Tensor, atoms: Tensor) -> Tensor:
    """The distribution on two neighbouring atoms whose mean is x.

    x: [...] raw units, clipped to the support. atoms: [V] ascending. Returns [..., V], rows sum to 1.
    """
    x = x.clamp(atoms[0], atoms[-1])
    upper = torch.searchsorted(atoms, x.contiguous()).clamp(1, len(atoms) - 1)
    low, high = atoms[upper - 1], atoms[upper]
    weight = (x - low) / (high - low)
    target = torch.zeros(*x.shape, len(atoms), dtype=x.dtype, device=x.device)
    target.scatter_(-1, (upper - 1).unsqueeze(-1), (1.0 - weight).unsqueeze(-1))
    target.scatter_(-1, upper.unsqueeze(-1), weight.unsqueeze(-1))
    return target


def expectation(logits: Tensor, atoms: Tensor) -> Tensor:
    """Mean of a categorical scalar: softmax(logits)·atoms. logits: [..., V]. Returns [...] in raw units."""
    return logits.float().softmax(-1) @ atoms
