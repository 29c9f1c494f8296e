"""From an observation to a latent: the representation h, and the chance encoder e that reads two observations.

Legend: B batch, T time steps of a window, F its features, K channels, H and W rows and columns of an image, L latent,
C chance codes.

An observation is a mapping of named arrays. The backbone reads windows [T, F] and images [K, H, W]; vectors are joined
to what it has read. Where there are only vectors, it reads those, number by number. The `mlp` backbone differs: it
reads windows, and everything else goes straight to the layer that joins, which is another of the same kind.

| backbone    | window                       | image                           | vector alone          |
|-------------|------------------------------|---------------------------------|-----------------------|
| mlp         | flattened                    | flattened                       | as it is              |
| resnet      | convolutions over time       | convolutions over both axes     | over its numbers      |
| lstm        | step by step                 | row by row                      | number by number      |
| transformer | attention over steps         | attention over patches          | over its numbers      |
| resnet_lstm | resnet, then lstm over steps | resnet, then lstm over columns  | over its numbers      |
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from agent.networks.core import minmax

Shapes = Mapping[str, tuple[int, ...]]
Backbone = Literal["mlp", "resnet", "lstm", "transformer", "resnet_lstm"]

_MAX_PATCHES = 64  # of an image, for attention


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
    """x ↦ relu(x + conv(relu(conv(x)))), He et al. 2015, over time or over the two axes of an image."""

    def __init__(self, channels: int, convolution: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d) -> None:
        super().__init__()
        self.first = convolution(channels, channels, 3, padding=1)
        self.second = convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = math.ceil(size / 2)
    return size


class _ConvTower(nn.Module):
    """Residual convolutions over a window, [B, T, F] to [B, channels, T / 2^depth]: each stage halves its length."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels, self.length = max(16, width // 8), _halved(steps, depth)
        self.stem = nn.Conv1d(features, self.channels, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(_ConvBlock(self.channels), nn.MaxPool1d(2, ceil_mode=True)) for _ in range(depth)
        )

    def forward(self, window: Tensor) -> Tensor:
        x = torch.relu(self.stem(window.transpose(1, 2)))
        for stage in self.stages:
            x = stage(x)
        return x


class _ImageTower(nn.Module):
    """Residual convolutions over an image, [B, K, H, W] to [B, channels, H', W']: the stem and each stage halve both
    axes (the stem by its stride, since most of the time goes into the largest picture)."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()
        channels, height, columns = shape
        self.channels = max(8, width // 8)
        self.height, self.columns = _halved(height, depth + 1), _halved(columns, depth + 1)
        self.stem = nn.Conv2d(channels, self.channels, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(_ConvBlock(self.channels, nn.Conv2d), nn.MaxPool2d(2, ceil_mode=True)) for _ in range(depth)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        for stage in self.stages:
            x = stage(x)
        return x


class _ResnetReader(_Reader):
    """Reads a window with residual convolutions over time."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__(steps, features, width, depth)
        self.tower = _ConvTower(steps, features, width, depth)
        self.project = nn.Linear(self.tower.channels * self.tower.length, width)
        self.outputs = width

    def forward(self, window: Tensor) -> Tensor:
        return torch.relu(self.project(self.tower(window).flatten(1)))


class _ResnetLstmReader(_Reader):
    """Reads a window with residual convolutions, then what they found step by step."""

    def __init__(self, steps: int, features: int, width: int, depth: int) -> None:
        super().__init__(steps, features, width, depth)
        self.tower = _ConvTower(steps, features, width, depth)
        self.lstm = nn.LSTM(self.tower.channels, width, batch_first=True)
        self.outputs = width

    def forward(self, window: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.tower(window).transpose(1, 2))
        last: Tensor = hidden[:, -1]
        return last


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


class _ImageReader(nn.Module):
    """Reads an image [B, K, H, W] into [B, outputs]."""

    outputs: int

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()


class _ResnetImageReader(_ImageReader):
    """Reads an image with residual convolutions over both axes."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__(shape, width, depth)
        self.tower = _ImageTower(shape, width, depth)
        self.project = nn.Linear(self.tower.channels * self.tower.height * self.tower.columns, width)
        self.outputs = width

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.project(self.tower(image).flatten(1)))


class _ResnetLstmImageReader(_ImageReader):
    """Reads an image with residual convolutions, then what they found column by column, from left to right."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__(shape, width, depth)
        self.tower = _ImageTower(shape, width, depth)
        self.lstm = nn.LSTM(self.tower.channels * self.tower.height, width, batch_first=True)
        self.outputs = width

    def forward(self, image: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.tower(image).flatten(1, 2).transpose(1, 2))
        last: Tensor = hidden[:, -1]
        return last


class _LstmImageReader(_ImageReader):
    """Reads an image row by row."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__(shape, width, depth)
        channels, height, columns = shape
        self.rows = _LstmReader(height, channels * columns, width, depth)
        self.outputs = self.rows.outputs

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.rows(image.transpose(1, 2).flatten(2))
        return out


class _TransformerImageReader(_ImageReader):
    """Reads an image as square patches (Dosovitskiy et al. 2021), at most 64 of them; a rim of zeros fills the last."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__(shape, width, depth)
        channels, height, columns = shape
        side = 1
        while math.ceil(height / side) * math.ceil(columns / side) > _MAX_PATCHES:
            side += 1
        down, across = math.ceil(height / side), math.ceil(columns / side)
        self.side, self.rim = side, (0, across * side - columns, 0, down * side - height)
        self.patches = _TransformerReader(down * across, channels * side * side, width, depth)
        self.outputs = self.patches.outputs

    def forward(self, image: Tensor) -> Tensor:
        padded = nn.functional.pad(image, self.rim)
        out: Tensor = self.patches(nn.functional.unfold(padded, self.side, stride=self.side).transpose(1, 2))
        return out


_READERS: dict[Backbone, type[_Reader]] = {
    "mlp": _MlpReader,
    "resnet": _ResnetReader,
    "lstm": _LstmReader,
    "transformer": _TransformerReader,
    "resnet_lstm": _ResnetLstmReader,
}
_IMAGE_READERS: dict[Backbone, type[_ImageReader]] = {
    "resnet": _ResnetImageReader,
    "lstm": _LstmImageReader,
    "transformer": _TransformerImageReader,
    "resnet_lstm": _ResnetLstmImageReader,
}


def _reader(backbone: Backbone, shape: tuple[int, ...], width: int, depth: int) -> _Reader | _ImageReader:
    """Reads an image [K, H, W], a window [T, F], or a vector [F] as a window [F, 1]."""
    if len(shape) == 3:
        return _IMAGE_READERS[backbone](shape, width, depth)
    steps, features = shape if len(shape) == 2 else (math.prod(shape), 1)
    return _READERS[backbone](steps, features, width, depth)


class ObservationReader(nn.Module):
    """Any mapping of arrays to a vector of `outputs` numbers."""

    def __init__(self, shapes: Shapes, *, backbone: Backbone, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        # What the backbone reads, and what is joined to it as it is.
        ranks = (2,) if backbone == "mlp" else (2, 3)
        read_by_backbone = {name for name, shape in shapes.items() if len(shape) in ranks}
        if not read_by_backbone and backbone != "mlp":
            read_by_backbone = set(shapes)
        self.sequences = sorted(read_by_backbone)
        self.vectors = sorted(set(shapes) - read_by_backbone)
        readers = {name: _reader(backbone, shapes[name], width, depth) for name in self.sequences}
        self.readers = nn.ModuleDict(readers)
        flat = sum(math.prod(shapes[name]) for name in self.vectors)
        read = sum(reader.outputs for reader in readers.values())
        self.mix = nn.Linear(read + flat, width)
        self.out = nn.Linear(width, outputs)
        if any(len(shape) == 3 for shape in shapes.values()):
            # Most of a picture is background: with torch's biases the latents of different pictures differ by a
            # fortieth of their range at first, without them by an eighth, and what two small things in it have to do
            # with each other is learnt in half the updates (docs/methods.md, "Pictures").
            for layer in self.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        parts = [self.readers[name](_as_sequence(observations[name])) for name in self.sequences]
        parts += [observations[name].flatten(1) for name in self.vectors]
        out: Tensor = self.out(torch.relu(self.mix(torch.cat(parts, dim=-1))))
        return out


def _as_sequence(entry: Tensor) -> Tensor:
    """A vector [B, F] as a window [B, F, 1]; anything else as it is."""
    return entry.unsqueeze(-1) if entry.ndim == 2 else entry


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
    the difference of images as channels of their own, and the last step of a window with its difference to the step
    before. An untrained reader of the pair alone sees mostly what both have in common and gives every pair the same
    code, and codes that start out equal tend to stay so (docs/methods.md). There is no decoder: a code means whatever
    helps to predict reward, value and policy (Antonoglou et al. 2022, §4).
    """

    def __init__(self, shapes: Shapes, *, backbone: Backbone, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.windows = frozenset(name for name, shape in shapes.items() if len(shape) == 2)
        self.images = frozenset(name for name, shape in shapes.items() if len(shape) == 3)
        pairs: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            if name in self.images:
                pairs[name] = (3 * shape[0], *shape[1:])
                continue
            pairs[name] = (*shape[:-1], 2 * shape[-1])
            pairs[_news(name)] = (2 * shape[-1],) if name in self.windows else shape
        self.reader = ObservationReader(pairs, backbone=backbone, width=width, depth=depth, outputs=codes)

    def forward(self, observations: Mapping[str, Tensor], successors: Mapping[str, Tensor]) -> Tensor:
        pairs = {}
        for name, before in observations.items():
            after = successors[name]
            if name in self.images:
                pairs[name] = torch.cat([before, after, after - before], dim=1)
                continue
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
