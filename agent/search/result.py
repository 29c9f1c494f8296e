"""What a search returns: statistics of the roots and, on request, the trees themselves.

Legend: B batch, A actions, C chance codes, N nodes, E edge slots, P players, L latent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.search.randomness import ACTION, uniforms
from agent.search.tree_kernel import TreeArrays
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


@dataclass(frozen=True, slots=True)
class VariationStep:
    """One environment step of a principal variation: an action and, where the tree goes on, its outcome."""

    action: int
    action_probability: float  # by the policy
    q_value: float
    visits: int  # of the action
    code: int | None  # most visited outcome; None where none was looked at
    code_probability: float  # by the chance model; NaN with no code
    reward: float  # on the way to the outcome; NaN with no code
    value: float  # of the outcome; NaN with no code


@dataclass(frozen=True)
class SearchTrees:
    """The trees of a batch, copied out of the engine."""

    arrays: TreeArrays
    num_actions: int
    num_codes: int

    def __len__(self) -> int:
        return len(self.arrays.size)

    def trimmed(self) -> Self:
        """The same without the unused ends of the arrays."""
        nodes, edges = int(self.arrays.size.max(initial=1)), int(self.arrays.edges.max(initial=1))
        arrays = self.arrays._asdict()
        for name in ("parent", "slot", "first_edge", "depth", "visits", "value", "raw_value", "reward", "latent"):
            arrays[name] = arrays[name][:, :nodes]
        for name in ("child", "edge_visits", "prior", "score"):
            arrays[name] = arrays[name][:, :edges]
        return type(self)(TreeArrays(**arrays), self.num_actions, self.num_codes)

    def _player(self, row: int, depth: int) -> int:
        players = self.arrays.value.shape[2]
        return int((self.arrays.to_play[row] + depth // 2) % players)

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
        )

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
                    code_probability=outcome.probability if outcome else float("nan"),
                    reward=outcome.reward if outcome else float("nan"),
                    value=outcome.value if outcome else float("nan"),
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
        taken, observed = np.asarray(actions, np.int64), np.asarray(codes, np.int64)
        if taken.shape != (len(self),) or observed.shape != (len(self),):
            raise SearchInputError(
                f"subtrees needs one action and one code per tree ({len(self)}); found {taken.shape}, {observed.shape}"
            )
        source = self.arrays
        target = TreeArrays(*(np.zeros_like(array) for array in source))
        players = source.value.shape[2]
        for row in range(len(self)):
            afterstate = int(source.child[row, source.first_edge[row, 0] + taken[row]])
            root = 0
            if afterstate and observed[row] >= 0:
                root = int(source.child[row, source.first_edge[row, afterstate] + observed[row]])
            target.to_play[row] = (source.to_play[row] + 1) % players
            if root:
                self._copy_subtree(row, root, target)
        return type(self)(target, self.num_actions, self.num_codes)

    def _copy_subtree(self, row: int, root: int, target: TreeArrays) -> None:
        """Copy the nodes below `root` of one row, renumbered in their old order."""
        source = self.arrays
        number = {root: 0}
        edges = 0
        for old in range(root, int(source.size[row])):
            if old != root and int(source.parent[row, old]) not in number:
                continue
            new = number.setdefault(old, len(number))
            old_first = int(source.first_edge[row, old])
            count = self.num_actions if source.depth[row, old] % 2 == 0 else self.num_codes
            here, there = slice(old_first, old_first + count), slice(edges, edges + count)
            for name in ("visits", "value", "raw_value", "latent", "reward"):
                getattr(target, name)[row, new] = getattr(source, name)[row, old]
            for name in ("edge_visits", "prior", "score"):
                getattr(target, name)[row, there] = getattr(source, name)[row, here]
            target.depth[row, new] = source.depth[row, old] - source.depth[row, root]
            target.first_edge[row, new] = edges
            if new:
                old_parent = int(source.parent[row, old])
                parent = number[old_parent]
                edge = int(source.slot[row, old]) - int(source.first_edge[row, old_parent])
                target.parent[row, new] = parent
                target.slot[row, new] = target.first_edge[row, parent] + edge
                target.child[row, target.slot[row, new]] = new
            edges += count
        target.size[row] = len(number)
        target.edges[row] = edges
        values = [self.node(row, old).value for old in number]
        target.bounds[row] = min(values), max(values)


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
    """

    visits: NDArray[np.int32]
    action_weights: NDArray[np.float32]
    action: NDArray[np.int64]
    q_values: NDArray[np.float32]
    root_value: NDArray[np.float32]
    depth: NDArray[np.int32]
    chance_probabilities: NDArray[np.float32]
    trees: SearchTrees | None = None


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
