"""From an observation to a latent: the representation h, and the chance encoder e that reads two observations.

Legend: B batch, T time steps of a sequence entry, F its features, L latent, C chance codes.

An observation is a mapping of named arrays. Entries of rank 2 ([T, F], a window) are read by the backbone;
everything else is flattened and joined to what the backbone has read.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from agent.networks.core import minmax

Shapes = Mapping[str, tuple[int, ...]]
Backbone = Literal["mlp", "resnet", "lstm", "transformer"]


class _Reader(nn.Module):
    """Reads a window [B, T, F] into [B, outputs]."""

    outputs: int

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__()


class _MlpReader(_Reader):
    """Reads a window as one long vector."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__(steps, features, width, depth)
        self.outputs = width
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(steps * features, width), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, window: Tensor) -> Tensor:
        out: Tensor = self.layers(window)
        return out


class _ConvBlock(nn.Module):
    """x ↦ relu(x + conv(relu(conv(x)))) over time, He et al. 2015 in one dimension."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 3, padding=1)
        self.second = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class _ResnetReader(_Reader):
    """Reads a window with residual convolutions over time; each of `depth` stages halves its length."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__(steps, features, width, depth)
        channels = max(16, width // 8)
        self.stem = nn.Conv1d(features, channels, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(_ConvBlock(channels), nn.MaxPool1d(2, ceil_mode=True)) for _ in range(depth)
        )
        length = steps
        for _ in range(depth):
            length = math.ceil(length / 2)
        self.project = nn.Linear(channels * length, width)
        self.outputs = width

    def forward(self, window: Tensor) -> Tensor:
        x = torch.relu(self.stem(window.transpose(1, 2)))
        for stage in self.stages:
            x = stage(x)
        return torch.relu(self.project(x.flatten(1)))


class _LstmReader(_Reader):
    """Reads a window step by step and keeps the last hidden state (Hochreiter & Schmidhuber 1997)."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__(steps, features, width, depth)
        self.lstm = nn.LSTM(features, width, num_layers=depth, batch_first=True)
        self.outputs = width

    def forward(self, window: Tensor) -> Tensor:
        hidden, _ = self.lstm(window)
        last: Tensor = hidden[:, -1]
        return last


class _TransformerReader(_Reader):
    """Reads a window with self-attention and learned positions; the last step sums it up (Vaswani et al. 2017)."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__(steps, features, width, depth)
        dimension = max(32, width // 4)
        self.embed = nn.Linear(features, dimension)
        self.position = nn.Parameter(torch.randn(steps, dimension) * 0.02)
        # One layer object per level: a list multiplied by N would tie their weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dimension, 4, 2 * dimension, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.outputs = dimension

    def forward(self, window: Tensor) -> Tensor:
        x = self.embed(window) + self.position
        for layer in self.layers:
            x = layer(x)
        last: Tensor = x[:, -1]
        return last


_READERS: dict[Backbone, type[_Reader]] = {
    "mlp": _MlpReader,
    "resnet": _ResnetReader,
    "lstm": _LstmReader,
    "transformer": _TransformerReader,
}


class ObservationReader(nn.Module):
    """Any mapping of arrays to a vector of `outputs` numbers."""

    def __init__(self, shapes: Shapes, *, backbone: Backbone, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.sequences = sorted(name for name, shape in shapes.items() if len(shape) == 2)
        self.vectors = sorted(name for name, shape in shapes.items() if len(shape) != 2)
        readers: dict[str, _Reader] = {}
        for name in self.sequences:
            steps, features = shapes[name]
            readers[name] = _READERS[backbone](steps, features, width, depth)
        self.readers = nn.ModuleDict(readers)
        flat = sum(math.prod(shapes[name]) for name in self.vectors)
        read = sum(reader.outputs for reader in readers.values())
        self.mix = nn.Linear(read + flat, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        parts = [self.readers[name](observations[name]) for name in self.sequences]
        parts += [observations[name].flatten(1) for name in self.vectors]
        out: Tensor = self.out(torch.relu(self.mix(torch.cat(parts, dim=-1))))
        return out


class Representation(nn.Module):
    """h: observations [B, ...] to latents [B, L] in [0, 1]."""

    def __init__(self, shapes: Shapes, *, backbone: Backbone, width: int, depth: int, latent: int) -> None:
        super().__init__()
        self.reader = ObservationReader(shapes, backbone=backbone, width=width, depth=depth, outputs=latent)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        return minmax(self.reader(observations))


class ChanceEncoder(nn.Module):
    """e: what chance did between two observations, as logits over C codes.

    Reads (oₜ, oₜ₊₁) side by side with a backbone of its own, and beside them what is new: the difference of vectors,
    and the last step of a window with its difference to the step before. An untrained reader of the pair alone sees
    mostly what both have in common and gives every pair the same code, and codes that start out equal tend to stay
    so (docs/methods.md). There is no decoder: a code means whatever helps to predict reward, value and policy
    (Antonoglou et al. 2022, §4).
    """

    def __init__(self, shapes: Shapes, *, backbone: Backbone, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.windows = frozenset(name for name, shape in shapes.items() if len(shape) == 2)
        pairs: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            pairs[name] = (*shape[:-1], 2 * shape[-1])
            pairs[_news(name)] = (2 * shape[-1],) if name in self.windows else shape
        self.reader = ObservationReader(pairs, backbone=backbone, width=width, depth=depth, outputs=codes)

    def forward(self, observations: Mapping[str, Tensor], successors: Mapping[str, Tensor]) -> Tensor:
        pairs = {}
        for name, before in observations.items():
            after = successors[name]
            pairs[name] = torch.cat([before, after], dim=-1)
            if name in self.windows:
                last = after[:, -1]
                pairs[_news(name)] = torch.cat([last, last - before[:, -1]], dim=-1)
            else:
                pairs[_news(name)] = after - before
        logits: Tensor = self.reader(pairs)
        return logits


def _news(name: str) -> str:
    """Key of what is new in an entry. Entries of modules may hold no dot, so neither does this."""
    return f"{name}_news"
