"""A model made of tables, to drive the search without a network: for known answers and for small exact problems.

Legend: B batch, A actions, C chance codes, S decision states, F afterstates.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.search.weights import Float32, SearchInputError, require_finite


class Roots(NamedTuple):
    """What a search starts from; `engine.search(*model.roots(states))`."""

    latents: Float32  # [B, L]; a table's latent is the state's number, [B, 1]
    policy_logits: Float32  # [B, A]
    values: Float32  # [B]


@dataclass(frozen=True, kw_only=True)
class TableModel:
    """A finite automaton: an action leads from a state to an afterstate, a code from there to a state."""

    afterstate_of: NDArray[np.int32]  # [S, A] afterstate that follows an action
    state_of: NDArray[np.int32]  # [F, C] state that follows a code
    policy_logits: Float32  # [S, A]
    values: Float32  # [S] in units of the reward
    chance_logits: Float32  # [F, C]; −inf forbids a code
    afterstate_values: Float32  # [F]
    rewards: Float32  # [F, C] on the way to the next state

    def __post_init__(self) -> None:
        states, actions = self.policy_logits.shape
        afterstates, codes = self.chance_logits.shape
        shapes = {
            "afterstate_of": (states, actions),
            "state_of": (afterstates, codes),
            "values": (states,),
            "afterstate_values": (afterstates,),
            "rewards": (afterstates, codes),
        }
        for name, expected in shapes.items():
            found = getattr(self, name).shape
            if found != expected:
                raise SearchInputError(f"table {name} must have shape {expected}; found {found}")
        for name, limit in (("afterstate_of", afterstates), ("state_of", states)):
            table = getattr(self, name)
            if table.min() < 0 or table.max() >= limit:
                raise SearchInputError(f"table {name} must point into [0, {limit}); found {table.min()}..{table.max()}")
        self.require_finite()

    def require_finite(self) -> None:
        """Raise SearchInputError naming the first table that holds a NaN or an infinity."""
        for name in ("policy_logits", "values", "afterstate_values", "rewards"):
            require_finite(f"table {name}", getattr(self, name))
        if np.isnan(self.chance_logits).any() or not (self.chance_logits.max(axis=1) > -np.inf).all():
            raise SearchInputError(
                "table chance_logits must be free of NaN and allow at least one code of every afterstate"
            )

    @classmethod
    def from_strides(
        cls,
        *,
        policy_logits: ArrayLike,
        values: ArrayLike,
        chance_logits: ArrayLike,
        afterstate_values: ArrayLike,
        rewards: ArrayLike,
        action_stride: int = 7,
        code_stride: int = 11,
    ) -> Self:
        """The automaton of the golden trees: f = (s·A + a)·7 mod F and s' = (f·C + c)·11 mod S."""
        policy = np.asarray(policy_logits, np.float32)
        chance = np.asarray(chance_logits, np.float32)
        states, afterstates = len(policy), len(chance)
        return cls(
            afterstate_of=(np.arange(policy.size, dtype=np.int32).reshape(policy.shape) * action_stride) % afterstates,
            state_of=(np.arange(chance.size, dtype=np.int32).reshape(chance.shape) * code_stride) % states,
            policy_logits=policy,
            values=np.asarray(values, np.float32),
            chance_logits=chance,
            afterstate_values=np.asarray(afterstate_values, np.float32),
            rewards=np.asarray(rewards, np.float32),
        )

    @property
    def num_actions(self) -> int:
        """A."""
        return int(self.policy_logits.shape[1])

    @property
    def action_factors(self) -> tuple[int, ...]:
        """None: an action is one choice."""
        return ()

    @property
    def num_codes(self) -> int:
        """C."""
        return int(self.chance_logits.shape[1])

    @property
    def latent_size(self) -> int:
        """1: the number of the state."""
        return 1

    def roots(self, states: ArrayLike) -> Roots:
        """What a search from these states [B] starts from."""
        index = np.asarray(states, np.int64).reshape(-1)
        return Roots(index[:, None].astype(np.float32), self.policy_logits[index], self.values[index])
