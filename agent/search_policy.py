"""The trained agent as a `Policy`: greedy, quiet, and the same in any batch."""

import numpy as np
from numpy.typing import NDArray

from agent.networks.model import StochasticMuZero
from agent.planner import Planner
from agent.policy import Decision, Observations, masked_softmax
from agent.search import SearchConfig, SearchResult


class SearchPolicy:
    """Plans from each observation on its own.

    Matrix products round differently for different batch sizes, and a rounding can turn a close decision. So each
    row is represented and searched as a batch of one: a decision in a backtest of 200 fill seeds, in the service and
    in the paper trader is the same to the last bit. Self-play, where that does not matter, searches in batches.
    """

    def __init__(self, model: StochasticMuZero, config: SearchConfig) -> None:
        self.model = model.eval()
        self.config = config
        self._planner = Planner(model, config)

    @property
    def num_actions(self) -> int:
        return self.model.actions

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        """Decide for a batch; see `Policy.act`. Raises ValueError for non-finite or misshapen observations."""
        rows = len(next(iter(observations.values())))
        results: list[SearchResult] = []
        logits: list[NDArray[np.float32]] = []
        for row in range(rows):
            one = slice(row, row + 1)
            result, prior = self._planner.plan(
                {name: entry[one] for name, entry in observations.items()},
                action_mask=None if action_mask is None else action_mask[one],
                simulations=simulations,
            )
            results.append(result)
            logits.append(prior)

        def gather(field: str) -> NDArray[np.generic]:
            return np.concatenate([getattr(result, field) for result in results])

        return Decision(
            action=gather("action").astype(np.int64),
            policy=gather("action_weights").astype(np.float32),
            prior=masked_softmax(np.concatenate(logits), action_mask),
            value=gather("root_value").astype(np.float32),
            q_values=gather("q_values").astype(np.float32),
            visits=gather("visits").astype(np.int32),
            simulations=self.config.simulations if simulations is None else simulations,
            depth=gather("depth").astype(np.int32),
            chance_probabilities=gather("chance_probabilities").astype(np.float32),
        )
