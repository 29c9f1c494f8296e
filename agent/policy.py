"""What an agent offers to whoever acts with it: observations in, decisions out.

Legend: B batch, A actions, C chance codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# A batch of Dict-space observations, each entry [B, ...]. Plain spaces travel under the key "observation".
Observations = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Decision:
    """What a policy decided for a batch of observations, and what it weighed.

    action:               [B] index of the chosen action.
    policy:               [B, A] probabilities after planning; the chosen action is the greedy one.
    prior:                [B, A] probabilities before planning.
    value:                [B] expected discounted return, in units of the environment's reward.
    q_values:             [B, A] expected discounted return of each action.
    visits:               [B, A] simulations that passed through each action.
    simulations:          simulations per root.
    depth:                [B] deepest decision looked at, in environment steps.
    chance_probabilities: [B, A, C] what the model expects chance to do after each action. C may be 0 for a
                          policy without a chance model.
    choices:              [B, A, D] categories of the parts of each action that was weighed, where an action has parts;
                          else None, and actions are the same A in every row.
    """

    action: NDArray[np.int64]
    policy: NDArray[np.float32]
    prior: NDArray[np.float32]
    value: NDArray[np.float32]
    q_values: NDArray[np.float32]
    visits: NDArray[np.int32]
    simulations: int
    depth: NDArray[np.int32]
    chance_probabilities: NDArray[np.float32]
    choices: NDArray[np.int32] | None = None


class Policy(Protocol):
    """Greedy, quiet and deterministic: the same observations give the same decision, in any batch.

    Exploration is deliberately not part of this protocol, so nothing that trades can ask for it.
    """

    @property
    def num_actions(self) -> int:
        """Number of discrete actions A."""

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        """Decide for a batch.

        observations: entries [B, ...] as the observation space says.
        action_mask:  [B, A], True where the action is allowed; None allows all.
        simulations:  search budget per root; None takes the policy's own default, 0 acts by the prior.
        """


def masked_softmax(logits: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Probabilities [B, A] of logits [B, A], zero where the mask forbids."""
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def decision_from_actions(action: NDArray[np.int64], num_actions: int) -> Decision:
    """A decision of a policy that knows only what to do: certain of it, and without a value."""
    batch = len(action)
    one_hot = np.zeros((batch, num_actions), dtype=np.float32)
    one_hot[np.arange(batch), action] = 1.0
    nothing = np.zeros((batch, num_actions), dtype=np.float32)
    return Decision(
        action=np.asarray(action, dtype=np.int64),
        policy=one_hot,
        prior=one_hot,
        value=np.zeros(batch, dtype=np.float32),
        q_values=nothing,
        visits=np.zeros((batch, num_actions), dtype=np.int32),
        simulations=0,
        depth=np.zeros(batch, dtype=np.int32),
        chance_probabilities=np.zeros((batch, num_actions, 0), dtype=np.float32),
    )
