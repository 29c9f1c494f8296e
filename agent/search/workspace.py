"""Working memory of a search and its options in the form the kernels read.

Legend: B batch, A actions, C chance codes, R rows of a group.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agent.search.config import SearchConfig
from agent.search.halving import halving_table
from agent.search.inputs import SearchInputs
from agent.search.kernel import Memory, Outputs
from agent.search.network_kernel import NetworkShape, Scratch, allocate_scratch
from agent.search.result import SearchTrees
from agent.search.tree_kernel import RootArrays, TreeArrays, TreeOptions, allocate_trees

_NO_DEPTH_LIMIT = 2**30


@lru_cache(maxsize=64)
def exploration_table(c1: float, c2: float, visits: int) -> NDArray[np.float64]:
    """PUCT's √N·(c1 + log((N + c2 + 1)/c2)) for N = 0..visits."""
    n = np.arange(visits + 1, dtype=np.float64)
    table: NDArray[np.float64] = np.sqrt(n) * (c1 + np.log((n + c2 + 1.0) / c2))
    return table


def tree_options(config: SearchConfig, inputs: SearchInputs, codes: int) -> TreeOptions:
    """The configuration as the kernel reads it."""
    return TreeOptions(
        actions=inputs.edges,
        codes=codes,
        players=config.players,
        simulations=inputs.simulations,
        max_depth=config.max_depth or _NO_DEPTH_LIMIT,
        gumbel=config.root == "gumbel",
        tree_wide=config.normalisation == "tree",
        sampled=config.chance_selection == "sampled",
        expected=config.chance_values == "expected",
        discount=config.discount,
        min_q_range=config.min_q_range,
        value_scale=config.gumbel_value_scale,
        visit_offset=config.gumbel_visit_offset,
        parts=inputs.parts,
    )


def halving_schedule(config: SearchConfig, allowed: NDArray[np.bool_], simulations: int) -> NDArray[np.int32]:
    """[R, simulations] visit counts sequential halving asks for at each root; [R, 1] zeros without Gumbel."""
    if config.root != "gumbel" or simulations == 0:
        return np.zeros((len(allowed), 1), np.int32)
    most = min(config.max_considered_actions, allowed.shape[1])
    schedule: NDArray[np.int32] = halving_table(most, simulations)[np.minimum(allowed.sum(axis=1), most)]
    return schedule


class Workspace:
    """Preallocated arrays for one group of rows: grown when a search needs more room, reused otherwise."""

    trees: TreeArrays
    scratch: Scratch
    memory: Memory
    scores: NDArray[np.float64]

    def __init__(
        self, shape: NetworkShape, players: int, dtype: type[np.floating], *, actions: int, parts: int = 0
    ) -> None:
        """actions: edges of a decision node. parts: of an action, 0 where it is one choice."""
        self._shape, self._players, self._dtype, self._actions, self._parts = shape, players, dtype, actions, parts
        self._rows, self._nodes = 0, 0

    def fit(self, rows: int, nodes: int) -> None:
        """Make room for `rows` trees of `nodes` nodes."""
        if rows <= self._rows and nodes <= self._nodes:
            return
        self._rows, self._nodes = rows, nodes = max(rows, self._rows), max(nodes, self._nodes)
        shape = self._shape
        edges = nodes * max(self._actions, shape.codes)
        self.trees = allocate_trees(rows, nodes, edges, self._players, shape.latent_width, self._dtype, self._parts)
        self.scratch = allocate_scratch(shape, rows, self._dtype)
        self.scores = np.zeros((rows, self._actions), np.float64)
        self.memory = Memory(
            group=np.zeros((2, 3, rows), np.int32),
            waiting=np.zeros(2, np.int64),
            gains=np.zeros(self._players, self._dtype),
            completed=np.zeros(self._actions, np.float64),
        )

    def begin(self, inputs: SearchInputs, rows: slice) -> None:
        """Take up the trees of an earlier search, where there are any, and whose turn it is."""
        if inputs.resumed is not None:
            for ours, theirs in zip(self.trees, inputs.resumed.arrays, strict=True):
                part = theirs[rows]
                ours[tuple(slice(0, size) for size in part.shape)] = part
        self.trees.to_play[: rows.stop - rows.start] = inputs.to_play[rows]

    def export(self, target: SearchTrees, rows: slice) -> None:
        """Copy the finished trees out."""
        for ours, theirs in zip(self.trees, target.arrays, strict=True):
            part = theirs[rows]
            part[...] = ours[tuple(slice(0, size) for size in part.shape)]

    def roots(self, config: SearchConfig, inputs: SearchInputs, rows: slice) -> RootArrays:
        """What the kernels know about these roots besides their trees."""
        schedule = halving_schedule(config, inputs.allowed[rows], inputs.simulations)
        return RootArrays(
            allowed=inputs.allowed[rows],
            scores=self.scores,
            schedule=schedule,
            exploration=exploration_table(config.c1, config.c2, inputs.visits),
            seeds=inputs.seeds[rows],
            simulations=inputs.owed[rows],
        )


def empty_outputs(batch: int, actions: int, codes: int) -> Outputs:
    """Room for the results of a batch."""
    return Outputs(
        visits=np.empty((batch, actions), np.int32),
        action_weights=np.empty((batch, actions), np.float32),
        action=np.empty(batch, np.int64),
        q_values=np.empty((batch, actions), np.float32),
        root_value=np.empty(batch, np.float32),
        depth=np.empty(batch, np.int32),
        chance_probabilities=np.empty((batch, actions, codes), np.float32),
    )


def empty_trees(inputs: SearchInputs, shape: NetworkShape, players: int, dtype: type[np.floating]) -> SearchTrees:
    """Room for a copy of every tree of a batch."""
    edges = inputs.nodes * max(inputs.edges, shape.codes)
    arrays = allocate_trees(inputs.batch, inputs.nodes, edges, players, shape.latent, dtype, inputs.parts)
    return SearchTrees(arrays, inputs.edges, shape.codes)
