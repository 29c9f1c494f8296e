"""What a search returns: statistics of the roots and, on request, the trees themselves.

Legend: B batch, A actions (candidates, where an action has parts), D parts, C chance codes, N nodes, E edge slots,
P players, L latent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.search.candidates import Candidates, Factors, marginals
from agent.search.kernel import KERNELS
from agent.search.randomness import ACTION, uniforms
from agent.search.tree_kernel import TreeArrays, TreeSizes
from agent.search.weights import SearchInputError


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a tree, for tests and for display."""

    index: int  # in order of creation; the root is 0
    parent: int  # −1 for the root
    edge: int  # the action or code that leads here; −1 for the root
    kind: Literal["decision", "chance"]
    depth: int  # edges from the root
    visits: int
    value: float  # mean return from here, for the player to move (chance: who has just moved)
    raw_value: float  # what the network said
    reward: float  # on the edge leading here
    probability: float  # of the edge leading here, by policy or chance model; 1 for the root
    choice: tuple[int, ...] = ()  # categories of the parts of the action that leads here, where it has parts


@dataclass(frozen=True, slots=True)
class VariationStep:
    """One environment step of a principal variation: an action and, where the tree goes on, its outcome."""

    action: int
    action_probability: float  # by the policy
    q_value: float
    visits: int  # of the action
    code: int | None  # most visited outcome; this and what follows is None where none was looked at
    code_probability: float | None  # by the chance model
    reward: float | None  # on the way to the outcome
    value: float | None  # of the outcome


@dataclass(frozen=True)
class SearchTrees:
    """The trees of a batch, copied out of the engine."""

    arrays: TreeArrays
    num_actions: int
    num_codes: int

    def __len__(self) -> int:
        return len(self.arrays.size)

    @property
    def num_players(self) -> int:
        """P."""
        return int(self.arrays.value.shape[2])

    def trimmed(self) -> Self:
        """The same without the unused ends of the arrays."""
        nodes, edges = int(self.arrays.size.max(initial=1)), int(self.arrays.edges.max(initial=1))
        arrays = self.arrays._asdict()
        for name in ("parent", "slot", "first_edge", "depth", "visits", "value", "raw_value", "reward", "latent"):
            arrays[name] = np.ascontiguousarray(arrays[name][:, :nodes])
        for name in ("child", "edge_visits", "prior", "score", "choices"):
            arrays[name] = np.ascontiguousarray(arrays[name][:, :edges])
        return type(self)(TreeArrays(**arrays), self.num_actions, self.num_codes)

    def _player(self, row: int, depth: int) -> int:
        return int((self.arrays.to_play[row] + depth // 2) % self.num_players)

    def node(self, row: int, index: int) -> Node:
        """Node `index` of the tree of one row."""
        a = self.arrays
        if not 0 <= index < a.size[row]:
            raise IndexError(f"tree {row} has nodes 0..{a.size[row] - 1}; found {index}")
        depth, parent, slot = int(a.depth[row, index]), int(a.parent[row, index]), int(a.slot[row, index])
        root = index == 0
        return Node(
            index=index,
            parent=-1 if root else parent,
            edge=-1 if root else slot - int(a.first_edge[row, parent]),
            kind="decision" if depth % 2 == 0 else "chance",
            depth=depth,
            visits=int(a.visits[row, index]),
            value=float(a.value[row, index, self._player(row, depth)]),
            raw_value=float(a.raw_value[row, index]),
            reward=float(a.reward[row, index]),
            probability=1.0 if root else float(a.prior[row, slot]),
            choice=self._choice(row, slot) if depth % 2 == 1 else (),
        )

    def _choice(self, row: int, slot: int) -> tuple[int, ...]:
        choices = self.arrays.choices
        return tuple(int(part) for part in choices[row, slot]) if choices.shape[1] > 1 else ()

    def nodes(self, row: int) -> Iterator[Node]:
        """All nodes of one row in the order they were created."""
        return (self.node(row, index) for index in range(int(self.arrays.size[row])))

    def _most_visited(self, row: int, index: int) -> int:
        """Edge of a node with the most visits, −1 when none was taken; ties go to the larger probability."""
        a = self.arrays
        first = int(a.first_edge[row, index])
        count = self.num_actions if a.depth[row, index] % 2 == 0 else self.num_codes
        visits, prior = a.edge_visits[row, first : first + count], a.prior[row, first : first + count]
        best = max(range(count), key=lambda edge: (visits[edge], prior[edge]))
        return best if visits[best] > 0 else -1

    def principal_variation(self, row: int, action: int | None = None) -> list[VariationStep]:
        """The line the search holds most likely: most visited action, most visited outcome, and so on.

        action: where to start; None takes the most visited one. Empty when that action was never visited.
        """
        a = self.arrays
        index, steps = 0, list[VariationStep]()
        chosen = self._most_visited(row, 0) if action is None else action
        while chosen >= 0:
            slot = int(a.first_edge[row, index]) + chosen
            afterstate = int(a.child[row, slot])
            if afterstate == 0:
                break
            code = self._most_visited(row, afterstate)
            outcome = None
            if code >= 0:
                outcome = self.node(row, int(a.child[row, int(a.first_edge[row, afterstate]) + code]))
            steps.append(
                VariationStep(
                    action=chosen,
                    action_probability=float(a.prior[row, slot]),
                    q_value=float(a.score[row, slot]),
                    visits=int(a.edge_visits[row, slot]),
                    code=code if outcome else None,
                    code_probability=outcome.probability if outcome else None,
                    reward=outcome.reward if outcome else None,
                    value=outcome.value if outcome else None,
                )
            )
            if outcome is None:
                break
            index = outcome.index
            chosen = self._most_visited(row, index)
        return steps

    def principal_variations(self, row: int) -> list[list[VariationStep]]:
        """The line under every visited root action, the most visited action first."""
        visits = self.arrays.edge_visits[row, : self.num_actions]
        order = np.argsort(-visits, kind="stable")
        return [self.principal_variation(row, int(action)) for action in order if visits[action] > 0]

    def subtrees(self, actions: ArrayLike, codes: ArrayLike) -> Self:
        """The trees under what was done and what came of it, to go on searching from there.

        actions: [B] actions taken. codes: [B] codes observed. A row whose outcome was never looked at, or
        whose code is −1, comes back empty and is searched afresh.
        """
        batch = len(self)
        taken, observed = np.array(actions, np.int64), np.array(codes, np.int64)
        for name, values, limit in (("actions", taken, self.num_actions), ("codes", observed, self.num_codes)):
            if values.shape != (batch,) or (batch and (values.min() < -1 or values.max() >= limit)):
                raise SearchInputError(f"{name} must hold one number below {limit} per tree ({batch}); found {values}")
        if (taken < 0).any():
            raise SearchInputError(f"actions must not be negative; found {taken}")
        target = TreeArrays(*(np.zeros_like(array) for array in self.arrays))
        number = np.empty(self.arrays.parent.shape[1], np.int32)
        sizes = TreeSizes(self.num_actions, self.num_codes, self.num_players, parts=0)
        KERNELS.copy_subtrees(self.arrays, target, taken, observed, number, sizes)
        return type(self)(target, self.num_actions, self.num_codes).trimmed()


@dataclass(frozen=True)
class SearchResult:
    """What the search found out about each root.

    visits:               [B, A] simulations that went through each action.
    action_weights:       [B, A] policy target: shares of the visits (puct; the prior with 0 simulations) or the
                          policy improved by completed Q values (gumbel).
    action:               [B] the greedy choice: most visits, ties to the larger prior (puct) or the winner of
                          sequential halving (gumbel).
    q_values:             [B, A] mean return of each action, in units of the reward; 0 where never visited.
    root_value:           [B] mean return over the root's own evaluation and all simulations.
    depth:                [B] deepest decision node reached, in environment steps.
    chance_probabilities: [B, A, C] the chance model's outcomes after each visited action; 0 where not visited.
    trees:                the trees, when asked for.
    candidates:           the K combinations each root looked at, where an action has parts; `action` and all of the
                          above then number candidates.
    """

    visits: NDArray[np.int32]
    action_weights: NDArray[np.float32]
    action: NDArray[np.int64]
    q_values: NDArray[np.float32]
    root_value: NDArray[np.float32]
    depth: NDArray[np.int32]
    chance_probabilities: NDArray[np.float32]
    trees: SearchTrees | None = None
    candidates: Candidates | None = None

    def chosen(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """What to do, as the environment of the agent takes it: the numbers [B] themselves, or the combinations [B, D]
        they stand for."""
        if self.candidates is None:
            return index.astype(np.int64)
        return self.candidates.choices[np.arange(len(index)), index].astype(np.int64)

    def policy_target(self, factors: Factors) -> NDArray[np.float32]:
        """What the policy should have said: `action_weights` [B, A], or the weight of each category [B, F]."""
        if self.candidates is None:
            return self.action_weights
        return marginals(self.candidates.choices, self.action_weights, factors)


def sample_actions(
    action_weights: NDArray[np.float32], *, temperature: float, seeds: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Draw actions with probability ∝ weight^(1/temperature).

    action_weights: [B, A] as of a SearchResult. temperature: 0 takes the largest weight, 1 the weights as they
    are. seeds: [B]; a row's draw depends on its own seed only. Returns [B].
    """
    if temperature < 0.0:
        raise ValueError(f"temperature must not be negative; found {temperature}")
    if temperature == 0.0:
        greedy: NDArray[np.int64] = action_weights.argmax(axis=1)
        return greedy
    with np.errstate(divide="ignore"):
        logits = np.log(action_weights.astype(np.float64)) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    threshold = uniforms(np.asarray(seeds, np.uint64), ACTION, 1) * cumulative[:, -1:]
    drawn: NDArray[np.int64] = (cumulative > threshold).argmax(axis=1)
    return drawn
