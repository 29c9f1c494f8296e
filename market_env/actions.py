"""The action grid: which target exposure each discrete action asks for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_env.config import ActionConfig


@dataclass(frozen=True)
class ActionGrid:
    """Target exposures [A] and their mask [A] (true: allowed), both read-only."""

    targets: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @classmethod
    def build(cls, config: ActionConfig) -> "ActionGrid":
        """The grid of a configuration: levels x max_leverage; spot mode masks the negative ones."""
        targets = np.asarray(config.levels, dtype=np.float64) * config.max_leverage
        mask = targets >= 0.0 if config.spot else np.ones(len(targets), dtype=np.bool_)
        targets.setflags(write=False)
        mask.setflags(write=False)
        return cls(targets, mask)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def flat(self) -> int:
        """The allowed action closest to no position."""
        return int(np.argmin(np.where(self.mask, np.abs(self.targets), np.inf)))

    def nearest(self, exposure: float) -> int:
        """The allowed action whose target is closest to `exposure`."""
        return int(np.argmin(np.where(self.mask, np.abs(self.targets - exposure), np.inf)))
