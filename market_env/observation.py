"""What the agent sees: a window of features and the account. The same builder in every driver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from market_env import kernel, rows
from market_env.market import Market

LIMIT = kernel.OBSERVATION_LIMIT  # every entry lies within +-5


@dataclass(frozen=True)
class ObservationBuilder:
    """Windows of `length` (T) bars out of feature tables [N, F]."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"the window must hold at least one bar, got {self.length}")

    def window(self, features: NDArray[np.float32], t: int) -> NDArray[np.float32]:
        """A fresh copy [T, F] of the rows that end at t, inclusive."""
        if not self.length - 1 <= t < len(features):
            raise ValueError(
                f"a window of {self.length} bars needs {self.length - 1} <= t < {len(features)} (bars), got t = {t}"
            )
        return features[t - self.length + 1 : t + 1].copy()

    def windows(self, features: NDArray[np.float32], ends: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fresh windows [B, T, F] that end at rows ends [B], inclusive."""
        ends = np.ascontiguousarray(ends, dtype=np.int64)
        wrong = (ends < self.length - 1) | (ends >= len(features))
        if wrong.any():
            raise ValueError(
                f"windows of {self.length} bars need {self.length - 1} <= t < {len(features)} (bars), got t = "
                f"{ends[wrong][0]}"
            )
        out = np.empty((len(ends), self.length, features.shape[1]), dtype=np.float32)
        rows.gather_windows(features, ends, out)
        return out

    def space(self, num_features: int) -> spaces.Dict[Any]:
        """Space of {"window": [T, F], "account": [8]}."""
        return spaces.Dict(
            {
                "window": spaces.Box(-LIMIT, LIMIT, (self.length, num_features), np.float32),
                "account": _account_space(),
            }
        )

    def index_space(self, markets: Sequence[Market]) -> spaces.Dict[Any]:
        """Space of {"dataset": [1], "t": [1], "account": [8]}: names the window instead of holding it.

        dataset: number of the market; t: decision bar, a row of that market.
        """
        longest = max(len(market) for market in markets)
        return spaces.Dict(
            {
                "dataset": spaces.Box(0, max(len(markets) - 1, 1), (1,), np.int32),
                "t": spaces.Box(0, longest - 1, (1,), np.int32),
                "account": _account_space(),
            }
        )


def _account_space() -> spaces.Box:
    return spaces.Box(-LIMIT, LIMIT, (len(kernel.ACCOUNT_FEATURES),), np.float32)
