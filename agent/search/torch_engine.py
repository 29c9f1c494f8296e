"""The same search with the network on a torch device: the tree stays with the compiled kernels on the CPU.

Each simulation asks the device once for the whole batch: a few numbers per row go over (which node, which edge),
and priors, value and reward come back; the latents of all nodes never leave the device. The two kinds of leaves
(under an action, under a code) are both computed for every row and the right one is kept, so that shapes never change
and a CUDA device can replay the step as one captured graph.

Legend: B batch, A actions, C chance codes, N nodes, L latent, H hidden, V atoms.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from agent.search.config import SearchConfig
from agent.search.engine import available_cores
from agent.search.inputs import SearchInputs, check_inputs
from agent.search.kernel import KERNELS, Answers, Leaves, Outputs
from agent.search.network_kernel import NetworkShape
from agent.search.result import SearchResult, SearchTrees
from agent.search.tree_kernel import TreeOptions
from agent.search.weights import WEIGHT_SHAPES, CoreWeights, SearchInputError, require_finite
from agent.search.workspace import Workspace, empty_outputs, empty_trees, tree_options

_EPSILON = 1e-5  # of LayerNorm and of min-max scaling
_MIN_ROWS_PER_THREAD = 64


class TorchCore:
    """φ, ψ, g and f of CoreWeights (the equations are in weights.py) on a device, a batch of leaves at a time."""

    def __init__(self, weights: CoreWeights, device: torch.device, dtype: torch.dtype) -> None:
        self.tensors = {
            name: torch.as_tensor(getattr(weights, name)).to(device=device, dtype=dtype, copy=True)
            for name in WEIGHT_SHAPES
        }
        self.actions, self.codes = weights.num_actions, weights.num_codes

    def load(self, weights: CoreWeights) -> None:
        """Overwrite the numbers in place, so that a captured graph sees the new ones."""
        for name, tensor in self.tensors.items():
            tensor.copy_(torch.as_tensor(getattr(weights, name)))

    def _linear(self, x: Tensor, name: str, layer: str = "") -> Tensor:
        return torch.addmm(self.tensors[f"{name}_b{layer}"], x, self.tensors[f"{name}_w{layer}"])

    def _read(self, hidden: Tensor, head: str, atoms: str = "atoms") -> Tensor:
        return self._linear(hidden, head).softmax(-1) @ self.tensors[atoms]

    def _block(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The residual block and min-max: new latents [B, L] and the hidden layer [B, H]."""
        gain, bias = self.tensors[f"{name}_gain"], self.tensors[f"{name}_bias"]
        normed = functional.layer_norm(x, x.shape[-1:], gain, bias, _EPSILON)
        hidden = torch.relu(self._linear(normed, name, "1"))
        out = x + self._linear(hidden, name, "2")
        low, high = out.amin(-1, keepdim=True), out.amax(-1, keepdim=True)
        return (out - low) / (high - low + _EPSILON), hidden

    def evaluate(self, latents: Tensor, edges: Tensor, under_code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What follows each edge: both kinds are computed and the right one kept, so that shapes never change.

        latents: [B, L] of the parents. edges: [B] action or code taken. under_code: [B] True where it is a code.
        Returns new latents [B, L], value [B], reward [B] and the probabilities of the leaf's edges [B, max(A, C)].
        """
        width = max(self.actions, self.codes)
        embedding = self.tensors["action_embedding"][edges.clamp(max=self.actions - 1)]
        afterstate, _ = self._block(latents + embedding, "phi")
        hidden = torch.relu(self._linear(afterstate, "psi", "1"))
        chances = self._linear(hidden, "chance").softmax(-1)
        q = self._read(hidden, "q")
        embedding = self.tensors["code_embedding"][edges.clamp(max=self.codes - 1)]
        state, block_hidden = self._block(latents + embedding, "g")
        reward = self._read(block_hidden, "reward", "reward_atoms")
        hidden = torch.relu(self._linear(state, "f", "1"))
        policy = self._linear(hidden, "policy").softmax(-1)
        value = self._read(hidden, "value")
        kind = under_code[:, None]
        probabilities = torch.where(
            kind,
            functional.pad(policy, (0, width - self.actions)),
            functional.pad(chances, (0, width - self.codes)),
        )
        return (
            torch.where(kind, state, afterstate),
            torch.where(under_code, value, q),
            torch.where(under_code, reward, torch.zeros_like(reward)),
            probabilities,
        )


class _Exchange:
    """Buffers shared with the device for batches of B rows and trees of N nodes, and the step that works on them."""

    def __init__(self, core: TorchCore, batch: int, nodes: int, latent: int) -> None:
        like = core.tensors["atoms"]
        self._core, self._cuda = core, like.is_cuda
        width = max(core.actions, core.codes)
        # Numbers of a row for the device: parent, edge, kind, node (kernel.Leaves); and back: value, reward,
        # probabilities (kernel.Answers). Each way is one flat transfer.
        self._asked = torch.zeros((4, batch), dtype=torch.int64, pin_memory=self._cuda)
        self._answered = torch.zeros(batch * (2 + width), dtype=like.dtype, pin_memory=self._cuda)
        self._asked_there = self._asked.to(like.device)
        self._answered_there = self._answered.to(like.device)
        # One place more than there are nodes: rows with nothing to evaluate write there.
        self.latents = torch.zeros((batch, nodes + 1, latent), dtype=like.dtype, device=like.device)
        self._rows = torch.arange(batch, device=like.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.leaves = Leaves(*self._asked.numpy())
        answered = self._answered.numpy()
        self.answers = Answers(
            probabilities=answered[2 * batch :].reshape(batch, width),
            value=answered[:batch],
            reward=answered[batch : 2 * batch],
        )
        if self._cuda:
            self._capture()

    def _enqueue(self) -> None:
        batch = len(self._rows)
        self._asked_there.copy_(self._asked, non_blocking=True)
        parent, edge, kind, node = self._asked_there
        latent, value, reward, probabilities = self._core.evaluate(self.latents[self._rows, parent], edge, kind == 1)
        nowhere = self.latents.shape[1] - 1
        self.latents[self._rows, torch.where(kind < 0, nowhere, node)] = latent
        self._answered_there[:batch] = value
        self._answered_there[batch : 2 * batch] = reward
        self._answered_there[2 * batch :].view(batch, -1).copy_(probabilities)
        self._answered.copy_(self._answered_there, non_blocking=True)

    def _capture(self) -> None:
        """Record the step as a CUDA graph, after the warm-up runs that libraries need to allocate their memory."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._enqueue()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._enqueue()

    def step(self) -> None:
        """Evaluate the leaves on the device and wait for the answers."""
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.replay()
        if self._cuda:
            torch.cuda.current_stream().synchronize()


class _Part:
    """The trees of some of the rows; one thread works on a part at a time."""

    def __init__(
        self,
        workspace: Workspace,
        rows: slice,
        config: SearchConfig,
        inputs: SearchInputs,
        options: TreeOptions,
        exchange: _Exchange,
        out: Outputs,
    ) -> None:
        self._count, self.rows, self.workspace, self._options = rows.stop - rows.start, rows, workspace, options
        workspace.fit(self._count, inputs.nodes)
        workspace.begin(inputs, rows)
        self._roots = workspace.roots(config, inputs, rows)
        self._leaves = Leaves(*(line[rows] for line in exchange.leaves))
        self._answers = Answers(*(line[rows] for line in exchange.answers))
        self._out = out.rows(rows)
        KERNELS.start_rows(self._count, workspace.trees, self._roots, inputs.roots.rows(rows), options)

    def select(self, simulation: int) -> None:
        """Walk to a leaf in every row."""
        trees, memory = self.workspace.trees, self.workspace.memory
        KERNELS.select_leaves(self._count, simulation, trees, memory, self._roots, self._options, self._leaves)

    def attach(self) -> None:
        """Take in the device's answers."""
        trees, memory = self.workspace.trees, self.workspace.memory
        KERNELS.attach_leaves(self._count, trees, memory, self._options, self._leaves, self._answers)

    def attach_and_select(self, simulation: int) -> None:
        """Finish the last simulation and begin this one."""
        if simulation > 0:
            self.attach()
        self.select(simulation)

    def report(self) -> None:
        """Write the results."""
        trees, memory = self.workspace.trees, self.workspace.memory
        KERNELS.report_rows(self._count, trees, memory, self._roots, self._options, self._out)


class TorchSearchEngine:
    """SearchEngine's twin with the network on a torch device; the same arguments, results and errors.

    On a CUDA device the step is captured, once per batch size and tree size, as a CUDA graph. On the CPU device it
    runs eagerly: slower than SearchEngine, and there so that this path can be tested without a GPU.
    """

    def __init__(self, config: SearchConfig, weights: CoreWeights, *, device: str | torch.device = "cuda") -> None:
        self.config = config
        self.device = torch.device(device)
        double = config.precision == "float64"
        self._dtype: type[np.floating] = np.float64 if double else np.float32
        weights.require_finite()
        if weights.action_factors:
            raise SearchInputError(
                f"the torch search takes actions that are one choice; found actions of {len(weights.action_factors)} "
                f"parts. Search with SearchEngine"
            )
        self._weights = weights
        self._core = TorchCore(weights, self.device, torch.float64 if double else torch.float32)
        self._shape = NetworkShape(
            actions=weights.num_actions,
            codes=weights.num_codes,
            latent=weights.latent_size,
            atoms=0,
            latent_width=weights.latent_size,
            hidden_width=0,
            reward_width=0,
        )
        self._threads = config.threads or available_cores()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="search")
        self._workspaces = [
            Workspace(self._shape, config.players, self._dtype, actions=weights.num_actions)
            for _ in range(self._threads)
        ]
        self._exchange: _Exchange | None = None
        self._exchange_size = (0, 0)
        self._lock = threading.Lock()

    def load(self, weights: CoreWeights) -> None:
        """Search with these weights from now on; they must have the shapes of the first ones."""
        weights.require_finite()
        with self._lock:
            self._core.load(weights)
            self._weights = weights

    @torch.inference_mode()
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
        """Search from a batch of roots; see SearchEngine.search."""
        with self._lock:
            inputs = check_inputs(
                self.config,
                self._weights,
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
            return self._run(inputs, with_tree)

    def _run(self, inputs: SearchInputs, with_tree: bool) -> SearchResult:
        batch, shape = inputs.batch, self._shape
        exchange = self._exchange_for(batch, inputs.nodes)
        exchange.latents[:, 0] = torch.from_numpy(inputs.roots.latents).to(exchange.latents)
        if inputs.resumed is not None:
            held = torch.from_numpy(inputs.resumed.arrays.latent[:, 1:].copy())
            exchange.latents[:, 1 : 1 + held.shape[1]] = held.to(exchange.latents)
        out = empty_outputs(batch, shape.actions, shape.codes)
        options = tree_options(self.config, inputs, shape.codes)
        threads = max(1, min(self._threads, batch // _MIN_ROWS_PER_THREAD))
        size = max(1, -(-batch // threads))
        starts = range(0, batch, size)
        parts = [
            _Part(workspace, slice(start, min(start + size, batch)), self.config, inputs, options, exchange, out)
            for workspace, start in zip(self._workspaces, starts, strict=False)
        ]
        owed = int(inputs.owed.max(initial=0))
        for simulation in range(owed):
            self._for_each(parts, partial(_Part.attach_and_select, simulation=simulation))
            exchange.step()
        for part in parts:
            if owed > 0:
                part.attach()
            part.report()
        require_finite("the search's root_value", out.root_value)  # finite weights may still overflow inside
        if not with_tree:
            return SearchResult(*out)
        trees = empty_trees(inputs, shape, self.config.players, self._dtype)
        for part in parts:
            part.workspace.export(trees, part.rows)
        trees.arrays.latent[:] = exchange.latents[:, : inputs.nodes].cpu().numpy()
        return SearchResult(*out, trees=trees.trimmed())

    def _for_each(self, parts: list[_Part], work: Callable[[_Part], None]) -> None:
        """Do the work on every part, in parallel when there are several."""
        if len(parts) == 1:
            work(parts[0])
        else:
            list(self._pool.map(work, parts))

    def _exchange_for(self, batch: int, nodes: int) -> _Exchange:
        """Buffers of this batch size with room for `nodes` nodes; those of the last search when they fit."""
        held_batch, held_nodes = self._exchange_size
        if self._exchange is None or held_batch != batch or held_nodes < nodes:
            self._exchange = _Exchange(self._core, batch, nodes, self._shape.latent)
            self._exchange_size = (batch, nodes)
        return self._exchange
