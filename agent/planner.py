"""Model and search together: from observations to a search result.

Legend: B batch, A actions, L latent.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from agent.networks.model import StochasticMuZero
from agent.networks.roots import CompiledRoots, Roots
from agent.policy import Observations
from agent.search import SearchConfig, SearchEngine, SearchResult

Decode = Callable[[Observations], Observations]


class Planner:
    """Represents observations with the backbone and plans from there with the compiled search."""

    def __init__(self, model: StochasticMuZero, config: SearchConfig, *, decode: Decode | None = None) -> None:
        """decode: gathers the real observation from what the environment hands out; None where they are the same."""
        self.model = model
        self._core = model.core.export()
        self.engine = SearchEngine(config, self._core)
        self._decode = decode
        # Made by the first plan that goes row by row: training refreshes often and never does.
        self._roots_row_by_row: Callable[[Observations], Roots] | None = None

    def refresh(self) -> None:
        """Plan with the model's present weights."""
        self._core = self.model.core.export()
        self.engine.load(self._core)
        self._roots_row_by_row = None

    def plan(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None,
        simulations: int | None = None,
        seeds: NDArray[np.uint64] | None = None,
        explore: float = 0.0,
        row_by_row: bool = False,
        with_tree: bool = False,
    ) -> tuple[SearchResult, NDArray[np.float32]]:
        """Search from each observation. Returns the result and the prior's logits [B, A].

        row_by_row: represent each observation as if it were alone, so that a row's result is the same to the last bit
        in any batch (the search's rows always are). Such a result is not bit for bit the one without, where torch
        represents the batch. with_tree: keep the trees too. Raises ValueError naming the entry when an observation is
        not finite.
        """
        if self._decode is not None:
            observations = self._decode(observations)
        observations = self._checked(observations)
        if row_by_row:
            if self._roots_row_by_row is None:
                self._roots_row_by_row = CompiledRoots.export(self.model, self._core) or self._represent_row_by_row
            roots = self._roots_row_by_row(observations)
        else:
            roots = self._represent(observations)
        result = self.engine.search(
            *roots,
            action_mask=action_mask,
            seeds=seeds,
            explore=explore,
            simulations=simulations,
            with_tree=with_tree,
        )
        return result, roots.policy_logits

    def _checked(self, observations: Observations) -> dict[str, NDArray[np.float32]]:
        """The model's entries as float32, of the right shape and finite."""
        checked = {}
        for name, shape in self.model.shapes.items():
            entry = np.asarray(observations[name], np.float32)
            if entry.shape[1:] != shape:
                raise ValueError(f"observation {name!r}: expected shape [B, {shape}], found {entry.shape}")
            if not np.isfinite(entry).all():
                row = int(np.argwhere(~np.isfinite(entry))[0][0])
                raise ValueError(f"observation {name!r}, row {row}: expected finite numbers, found NaN or infinity")
            checked[name] = entry
        return checked

    def _represent(self, observations: Observations) -> Roots:
        """Roots of a batch, by torch."""
        device = self.model.core.atoms.device
        tensors = {name: torch.from_numpy(entry).to(device) for name, entry in observations.items()}
        with torch.inference_mode():
            state = self.model.core.predict(self.model.representation(tensors))
            values = self.model.core.read(state.value_logits)
        parts = (state.latent, state.policy_logits, values)
        return Roots(*(part.float().cpu().numpy() for part in parts))

    def _represent_row_by_row(self, observations: Observations) -> Roots:
        """The same, each row by itself: torch's matrix products round differently for different batch sizes."""
        rows = len(next(iter(observations.values())))
        alone = [
            self._represent({name: entry[row : row + 1] for name, entry in observations.items()}) for row in range(rows)
        ]
        return Roots(*(np.concatenate(column) for column in zip(*alone, strict=True)))
