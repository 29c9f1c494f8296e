"""The trained agent as a `Policy`: greedy, quiet, and the same in any batch."""

import numpy as np
from numpy.typing import NDArray

from agent.networks.model import StochasticMuZero
from agent.planner import Planner
from agent.policy import Decision, Observations, masked_softmax
from agent.search import SearchConfig


class SearchPolicy:
    """Decides for each observation as if it were alone.

    Matrix products round differently for different batch sizes, and a rounding can turn a close decision. So rows are
    represented as if each were alone (docs/decisions/0005, 0056), and the search never mixes rows: a decision in a
    backtest of 200 fill seeds, in the service and in the paper trader is the same to the last bit.
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
        result, logits = self._planner.plan(
            observations, action_mask=action_mask, simulations=simulations, row_by_row=True
        )
        drawn = result.candidates
        return Decision(
            action=result.action.astype(np.int64),
            policy=result.action_weights,
            prior=masked_softmax(logits, action_mask) if drawn is None else drawn.prior.astype(np.float32),
            value=result.root_value,
            q_values=result.q_values,
            visits=result.visits,
            simulations=self.config.simulations if simulations is None else simulations,
            depth=result.depth,
            chance_probabilities=result.chance_probabilities,
            choices=None if drawn is None else drawn.choices,
        )
