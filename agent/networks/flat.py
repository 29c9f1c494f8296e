"""A model's weights as one array: what travels between processes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def flat_weights(model: nn.Module) -> NDArray[np.float32]:
    """Every floating-point entry of the model's state, one after another: a copy [W], on the CPU."""
    parts = [value.detach().reshape(-1).float().cpu() for _, value in _entries(model)]
    array: NDArray[np.float32] = torch.cat(parts).numpy()
    return array


def load_flat(model: nn.Module, weights: NDArray[np.float32]) -> None:
    """Put what `flat_weights` gave into a model of the same shapes. Raises ValueError when the sizes differ."""
    entries = list(_entries(model))
    size = sum(value.numel() for _, value in entries)
    if weights.shape != (size,):
        raise ValueError(f"flat weights: expected shape ({size},), found {weights.shape}: another model's")
    start = 0
    with torch.no_grad():
        for _, value in entries:
            part = weights[start : start + value.numel()]
            value.copy_(torch.from_numpy(part.copy()).reshape(value.shape))
            start += value.numel()


def _entries(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]
