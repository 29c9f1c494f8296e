"""The compiled search: checks its inputs once, divides the batch among threads, and lets the kernel do the rest.

Legend: B batch, A actions, C chance codes, L latent.
"""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from agent.search.config import SearchConfig
from agent.search.inputs import SearchInputs, check_inputs
from agent.search.kernel import KERNELS
from agent.search.packing import pack_model
from agent.search.result import SearchResult, SearchTrees
from agent.search.tables import TableModel
from agent.search.weights import CoreWeights, require_finite
from agent.search.workspace import Workspace, empty_outputs, empty_trees, tree_options

_LOGGER = logging.getLogger(__name__)

# Rows that advance together. More rows fill the matrix products better, fewer keep their trees in the cache.
GROUP_ROWS = 32
# Fewer rows than this are not worth waking another thread for.
MIN_ROWS_PER_THREAD = 4
_NOTICE_AFTER_SECONDS = 1.5


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SearchEngine:
    """Stochastic tree search over a batch of roots, network included, in one compiled call per group of rows.

    The same inputs and seeds give the same bits for a row alone, in any batch and on any number of threads.
    Safe to call from several threads; their calls take turns.
    """

    def __init__(self, config: SearchConfig, model: CoreWeights | TableModel) -> None:
        self.config = config
        self._dtype: type[np.floating] = np.float64 if config.precision == "float64" else np.float32
        self._threads = config.threads or available_cores()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._compiled = False
        model.require_finite()
        self._model, self._arrays = model, pack_model(model, self._dtype)
        self._workspaces = self._new_workspaces()

    def _new_workspaces(self) -> list[Workspace]:
        """Empty memory for every thread."""
        shape, players, parts = self._arrays.shape, self.config.players, len(self._model.action_factors)
        actions = self.config.samples if parts else shape.actions
        return [Workspace(shape, players, self._dtype, actions=actions, parts=parts) for _ in range(self._threads)]

    def load(self, model: CoreWeights | TableModel) -> None:
        """Search with these weights from now on; nothing is recompiled.

        Raises SearchInputError naming the tensor when one is not finite.
        """
        model.require_finite()
        arrays = pack_model(model, self._dtype)
        with self._lock:
            same_shape = arrays.shape == self._arrays.shape and model.action_factors == self._model.action_factors
            self._model, self._arrays = model, arrays
            if not same_shape:
                self._workspaces = self._new_workspaces()

    @property
    def num_actions(self) -> int:
        """A; F where an action has parts."""
        return self._model.num_actions

    @property
    def num_codes(self) -> int:
        """C."""
        return self._model.num_codes

    def warm_up(self) -> None:
        """Compile, or load from the cache, now rather than in the first search."""
        model = self._model
        latents, logits = np.zeros((1, model.latent_size)), np.zeros((1, model.num_actions))
        self.search(latents, logits, np.zeros(1), seeds=np.zeros(1, np.uint64), simulations=1)

    def search(
        self,
        latents: ArrayLike,
        policy_logits: ArrayLike,
        values: ArrayLike,
        *,
        action_mask: ArrayLike | None = None,
        seeds: ArrayLike | None = None,
        explore: float = 0.0,
        simulations: int | None = None,
        to_play: ArrayLike | None = None,
        with_tree: bool = False,
        root_noise: ArrayLike | None = None,
        resume: SearchTrees | None = None,
    ) -> SearchResult:
        """Search from a batch of roots.

        latents:       [B, L] root states, as the representation network gives them.
        policy_logits: [B, A] and values: [B] of the roots; values in units of the reward. Where an action has parts,
                       [B, F] logits of their categories.
        action_mask:   [B, A] True where an action is allowed at the root; None allows all. [B, F] likewise.
        seeds:         [B] uint64, needed when something is random: exploration noise or sampled chance.
        explore:       0 (or False) not at all; 1 (or True): mix Dirichlet noise into the prior (puct) or draw the
                       actions by Gumbel noise (gumbel). Between: that share of `dirichlet_fraction` (puct).
        simulations:   per root; None takes the configured number, 0 acts by the prior.
        to_play:       [B] player to move at the root, where there are several; None means the first.
        with_tree:     return a copy of the trees too.
        root_noise:    [B, A] noise to use instead of drawing it from the seeds.
        resume:        trees to go on from (SearchTrees.subtrees); their visits count towards `simulations`.

        Raises SearchInputError naming the argument when one has the wrong shape or is not finite.
        """
        with self._lock:
            inputs = check_inputs(
                self.config,
                self._model,
                latents,
                policy_logits,
                values,
                action_mask=action_mask,
                seeds=seeds,
                explore=explore,
                simulations=simulations,
                to_play=to_play,
                root_noise=root_noise,
                resume=resume,
            )
            if self._compiled:
                return self._run(inputs, with_tree)
            message = "Compiling the search for this machine; this takes some seconds, once, and is then cached."
            notice = threading.Timer(_NOTICE_AFTER_SECONDS, _LOGGER.warning, [message])
            notice.start()
            try:
                return self._run(inputs, with_tree)
            finally:
                notice.cancel()
                self._compiled = True

    def _run(self, inputs: SearchInputs, with_tree: bool) -> SearchResult:
        batch, shape = inputs.batch, self._arrays.shape
        out = empty_outputs(batch, inputs.edges, shape.codes)
        trees = empty_trees(inputs, shape, self.config.players, self._dtype) if with_tree else None
        options = tree_options(self.config, inputs, shape.codes)
        threads = max(1, min(self._threads, batch // MIN_ROWS_PER_THREAD))
        group = max(1, min(GROUP_ROWS, -(-batch // threads)))

        def search_groups(worker: int) -> None:
            """Every `threads`-th group of rows, in this worker's own memory."""
            workspace = self._workspaces[worker]
            workspace.fit(min(group, batch), inputs.nodes)
            for start in range(worker * group, batch, threads * group):
                rows = slice(start, min(start + group, batch))
                workspace.begin(inputs, rows)
                KERNELS.search_rows(
                    rows.stop - rows.start,
                    self._arrays,
                    workspace.trees,
                    workspace.scratch,
                    workspace.memory,
                    workspace.roots(self.config, inputs, rows),
                    inputs.roots.rows(rows),
                    options,
                    out.rows(rows),
                )
                if trees is not None:
                    workspace.export(trees, rows)

        if threads == 1:
            search_groups(0)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="search")
            others = [self._pool.submit(search_groups, worker) for worker in range(1, threads)]
            search_groups(0)
            for other in others:
                other.result()
        require_finite("the search's root_value", out.root_value)  # finite weights may still overflow inside
        return SearchResult(*out, trees=trees.trimmed() if trees else None, candidates=inputs.candidates)
