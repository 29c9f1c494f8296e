"""Model and search together: from observations to a search result.

Legend: B batch, A actions, L latent.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from agent.networks.model import StochasticMuZero
from agent.policy import Observations
from agent.search import SearchConfig, SearchEngine, SearchResult

Decode = Callable[[Observations], Observations]


class Planner:
    """Represents observations with the backbone and plans from there with the compiled search."""

    def __init__(self, model: StochasticMuZero, config: SearchConfig, *, decode: Decode | None = None) -> None:
        """decode: gathers the real observation from what the environment hands out; None where they are the same."""
        self.model = model
        self.engine = SearchEngine(config, model.core.export())
        self._decode = decode

    def refresh(self) -> None:
        """Plan with the model's present weights."""
        self.engine.load(self.model.core.export())

    def plan(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None,
        simulations: int | None = None,
        seeds: NDArray[np.uint64] | None = None,
        explore: bool = False,
        row_by_row: bool = False,
    ) -> tuple[SearchResult, NDArray[np.float32]]:
        """Search from each observation. Returns the result and the prior's logits [B, A].

        row_by_row: represent each observation on its own, so that a row's result is the same to the last bit in any
        batch (the search's rows always are). Raises ValueError naming the entry when an observation is not finite.
        """
        if self._decode is not None:
            observations = self._decode(observations)
        rows = len(next(iter(observations.values())))
        if row_by_row:
            roots = [
                self._represent({name: entry[row : row + 1] for name, entry in observations.items()}, first_row=row)
                for row in range(rows)
            ]
            latents, logits, values = (np.concatenate(column) for column in zip(*roots, strict=True))
        else:
            latents, logits, values = self._represent(observations, first_row=0)
        result = self.engine.search(
            latents,
            logits,
            values,
            action_mask=action_mask,
            seeds=seeds,
            explore=explore,
            simulations=simulations,
        )
        return result, logits

    def _represent(
        self, observations: Observations, *, first_row: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Latents [B, L], prior logits [B, A] and values [B] of the roots."""
        device = self.model.core.atoms.device
        tensors = {}
        for name, shape in self.model.shapes.items():
            entry = np.asarray(observations[name], np.float32)
            if entry.shape[1:] != shape:
                raise ValueError(f"observation {name!r}: expected shape [B, {shape}], found {entry.shape}")
            if not np.isfinite(entry).all():
                row = first_row + int(np.argwhere(~np.isfinite(entry))[0][0])
                raise ValueError(f"observation {name!r}, row {row}: expected finite numbers, found NaN or infinity")
            tensors[name] = torch.from_numpy(entry).to(device)
        with torch.inference_mode():
            state = self.model.core.predict(self.model.representation(tensors))
            values = self.model.core.read(state.value_logits)
        return state.latent.float().cpu().numpy(), state.policy_logits.float().cpu().numpy(), values.cpu().numpy()
