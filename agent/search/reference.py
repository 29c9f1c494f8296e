"""The search again: plain, slow and obviously right. The compiled engine is tested against it.

One tree at a time, one Python object per node, float64 throughout, every quantity recomputed from its definition
instead of carried along. It shares with the engine the parsing of arguments, the random numbers and nothing else.

Legend: B batch, A actions, C chance codes, P players.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.search.candidates import draw_candidates, part_slices
from agent.search.config import SearchConfig
from agent.search.halving import considered_visits
from agent.search.inputs import check_inputs
from agent.search.randomness import CHANCE, uniform
from agent.search.result import Node, SearchResult
from agent.search.tables import TableModel
from agent.search.weights import WEIGHT_SHAPES, CoreWeights

Float64 = NDArray[np.float64]

_SMALLEST_RANGE = 1e-8  # of Q values, before they are scaled; as in mctx
_SMALLEST_PROBABILITY = 1e-38


class Expansion(NamedTuple):
    """What the model says about a new node."""

    state: Float64  # latent; handed back to the model to go on from here
    logits: Float64  # of the codes [C] after an action, of the actions [A] (categories of all parts [F]) after a code
    value: float
    reward: float  # on the way here; 0 after an action


class Model(Protocol):
    """What the search asks of a model; a network and a set of tables both answer."""

    def after_action(self, state: Float64, action: int | tuple[int, ...]) -> Expansion:
        """The afterstate: φ, then ψ. action: its number, or the categories of its parts."""

    def after_code(self, afterstate: Float64, code: int) -> Expansion:
        """The next state: g, then f."""


def _softmax(logits: Float64) -> Float64:
    weights = np.exp(logits - logits.max())
    probabilities: Float64 = weights / weights.sum()
    return probabilities


def _minmax(x: Float64) -> Float64:
    scaled: Float64 = (x - x.min()) / (x.max() - x.min() + 1e-5)
    return scaled


class ReferenceNetwork:
    """CoreWeights evaluated as weights.py writes the equations down."""

    def __init__(self, weights: CoreWeights) -> None:
        self._arrays = {name: getattr(weights, name).astype(np.float64) for name in WEIGHT_SHAPES}
        self._starts = np.array([part.start for part in part_slices(weights.action_factors)], np.int64)

    def _linear(self, x: Float64, name: str, layer: str = "") -> Float64:
        product: Float64 = x @ self._arrays[f"{name}_w{layer}"] + self._arrays[f"{name}_b{layer}"]
        return product

    def _read(self, hidden: Float64, head: str, atoms: str = "atoms") -> float:
        return float(_softmax(self._linear(hidden, head)) @ self._arrays[atoms])

    def _block(self, x: Float64, name: str) -> tuple[Float64, Float64]:
        normed = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        normed = normed * self._arrays[f"{name}_gain"] + self._arrays[f"{name}_bias"]
        hidden = np.maximum(self._linear(normed, name, "1"), 0.0)
        return x + self._linear(hidden, name, "2"), hidden

    def after_action(self, state: Float64, action: int | tuple[int, ...]) -> Expansion:
        """φ, then ψ."""
        rows = action if isinstance(action, int) else self._starts + np.array(action)
        embedding = self._arrays["action_embedding"][rows].reshape(-1, len(state)).sum(axis=0)
        out, _ = self._block(state + embedding, "phi")
        afterstate = _minmax(out)
        hidden = np.maximum(self._linear(afterstate, "psi", "1"), 0.0)
        return Expansion(afterstate, self._linear(hidden, "chance"), self._read(hidden, "q"), 0.0)

    def after_code(self, afterstate: Float64, code: int) -> Expansion:
        """g, then f."""
        out, block_hidden = self._block(afterstate + self._arrays["code_embedding"][code], "g")
        state = _minmax(out)
        hidden = np.maximum(self._linear(state, "f", "1"), 0.0)
        reward = self._read(block_hidden, "reward", "reward_atoms")
        return Expansion(state, self._linear(hidden, "policy"), self._read(hidden, "value"), reward)


class ReferenceTables:
    """A TableModel, looked up."""

    def __init__(self, tables: TableModel) -> None:
        self._t = tables

    def after_action(self, state: Float64, action: int | tuple[int, ...]) -> Expansion:
        """Look the afterstate up."""
        t = self._t
        assert isinstance(action, int), "actions of a table are one choice"
        afterstate = int(t.afterstate_of[int(state[0]), action])
        logits = t.chance_logits[afterstate].astype(np.float64)
        return Expansion(np.array([float(afterstate)]), logits, float(t.afterstate_values[afterstate]), 0.0)

    def after_code(self, afterstate: Float64, code: int) -> Expansion:
        """Look the next state up."""
        t = self._t
        origin = int(afterstate[0])
        state = int(t.state_of[origin, code])
        logits = t.policy_logits[state].astype(np.float64)
        reward = float(t.rewards[origin, code])
        return Expansion(np.array([float(state)]), logits, float(t.values[state]), reward)


@dataclass
class _Node:
    """A decision node or a chance node."""

    state: Float64
    prior: Float64  # [A] or [C] probability of each edge
    raw_value: float
    reward: float  # on the edge leading here
    player: int  # who moves here, or at a chance node who has just moved
    parent: "_Node | None" = None
    edge: int = -1
    choices: NDArray[np.int32] | None = None  # [K, D] what the edges of a decision node stand for, where not 0..A−1
    children: dict[int, "_Node"] = field(default_factory=dict)
    returns: list[Float64] = field(default_factory=list)  # [P] of every visit, as each player sees it
    expected: Float64 | None = None  # [P] what it is worth where that is not the mean of its visits

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def is_decision(self) -> bool:
        return self.depth % 2 == 0

    @property
    def visits(self) -> int:
        return len(self.returns)

    def value_for(self, player: int) -> float:
        if self.expected is not None:
            return float(self.expected[player])
        return float(np.mean([value[player] for value in self.returns]))

    @property
    def value(self) -> float:
        return self.value_for(self.player)

    def edge_visits(self, edge: int) -> int:
        return self.children[edge].visits if edge in self.children else 0


class _TreeSearch:
    """One row."""

    def __init__(
        self, config: SearchConfig, model: Model, seed: np.uint64, first_player: int, factors: tuple[int, ...]
    ) -> None:
        self.config, self.model, self.seed, self.first_player = config, model, seed, first_player
        self.factors = factors
        self.nodes: list[_Node] = []

    def view(self, value: float, owner: int) -> Float64:
        """[P] a value of one player's: its own to that player, its negative to every other."""
        return np.array([value if player == owner else -value for player in range(self.config.players)])

    def add(self, node: _Node) -> _Node:
        node.player = (self.first_player + node.depth // 2) % self.config.players
        self.nodes.append(node)
        if node.parent is not None:
            node.parent.children[node.edge] = node
        return node

    def expand(self, parent: _Node, edge: int) -> _Node:
        if parent.is_decision:
            choice = edge if parent.choices is None else tuple(int(part) for part in parent.choices[edge])
            found = self.model.after_action(parent.state, choice)
        else:
            found = self.model.after_code(parent.state, edge)
        node = _Node(found.state, np.empty(0), found.value, found.reward, 0, parent, edge)
        if node.is_decision and self.factors:
            parts = [_softmax(found.logits[part]) for part in part_slices(self.factors)]
            drawn = draw_candidates(
                np.concatenate(parts)[None], self.factors, count=self.config.samples, seeds=np.array([self.seed]),
                node=len(self.nodes),
            )  # fmt: skip
            node.choices, node.prior = drawn.choices[0], drawn.prior[0]
        else:
            node.prior = _softmax(found.logits)
        return self.add(node)

    def back_up(self, leaf: _Node) -> None:
        gains = self.view(leaf.raw_value, leaf.player)
        node = leaf
        while True:
            node.returns.append(gains)
            if self.config.chance_values == "expected":
                node.expected = self.state_value(node) if node.is_decision else self.afterstate_value(node)
            self.note_values(node)
            if node.parent is None:
                return
            if node.is_decision:  # leaving a chance node takes an environment step
                gains = self.view(node.reward, node.parent.player) + self.config.discount * gains
            node = node.parent

    def state_value(self, node: _Node) -> Float64:
        """[P] mean of the node's own evaluation and of its actions' values, by visits."""
        values = [self.view(node.raw_value, node.player)] + [self.values(child) for child in node.children.values()]
        mean: Float64 = np.average(values, axis=0, weights=[1] + [child.visits for child in node.children.values()])
        return mean

    def afterstate_value(self, node: _Node) -> Float64:
        """[P] the node's own evaluation, and what is known of its outcomes, each by its probability."""
        own, discount = self.view(node.raw_value, node.player), self.config.discount
        if not node.children:
            return own
        outcomes = [(node.prior[code], child) for code, child in node.children.items()]
        covered = sum(probability for probability, _ in outcomes)
        full: Float64 = sum(
            (p * (self.view(child.reward, node.player) + discount * self.values(child)) for p, child in outcomes),
            start=np.zeros_like(own),
        )
        change: Float64 = sum(
            (p * discount * (self.values(child) - self.view(child.raw_value, child.player)) for p, child in outcomes),
            start=np.zeros_like(own),
        )
        share = covered**4
        value: Float64 = (1.0 - share) * (own + change) + share * full / covered
        return value

    def values(self, node: _Node) -> Float64:
        """[P] what a node is worth to each player."""
        return np.array([node.value_for(player) for player in range(self.config.players)])

    def note_values(self, node: _Node) -> None:
        self.low, self.high = min(self.low, node.value), max(self.high, node.value)

    low, high = math.inf, -math.inf  # of all node values so far, for normalisation over the tree

    def q_value(self, node: _Node, action: int) -> float:
        """The afterstate's value: no reward and no discount between an action and its afterstate."""
        return node.children[action].value_for(node.player)

    def scaled(self, q: float, low: float, high: float) -> float:
        return (q - low) / max(high - low, self.config.min_q_range, _SMALLEST_RANGE)

    def choose_by_puct(self, node: _Node, allowed: NDArray[np.bool_]) -> int:
        visited = {action: self.q_value(node, action) for action in node.children}
        low, high = min([node.value, *visited.values()]), max([node.value, *visited.values()])
        if self.config.normalisation == "tree":
            low, high = self.low, self.high
        c1, c2 = self.config.c1, self.config.c2
        weight = math.sqrt(node.visits) * (c1 + math.log((node.visits + c2 + 1.0) / c2))
        scores = np.full(len(node.prior), -math.inf)
        for action, prior in enumerate(node.prior):
            if node.parent is not None or allowed[action]:
                scores[action] = weight * prior / (node.edge_visits(action) + 1)
                if action in visited:
                    scores[action] += self.scaled(visited[action], low, high)
        return int(scores.argmax())

    def completed_q(self, node: _Node) -> Float64:
        """σ(completed Q): Danihelka et al. 2022, eq. 8, with the mixed value of App. D."""
        actions = range(len(node.prior))
        visits = [node.edge_visits(action) for action in actions]
        mixed = node.raw_value
        if node.children:
            weights = {action: max(node.prior[action], _SMALLEST_PROBABILITY) for action in node.children}
            mean = sum(weights[a] * self.q_value(node, a) for a in weights) / sum(weights.values())
            mixed = (node.raw_value + sum(visits) * mean) / (1 + sum(visits))
        completed = [self.q_value(node, a) if a in node.children else mixed for a in actions]
        low, high = min(completed), max(completed)
        weight = (self.config.gumbel_visit_offset + max(visits)) * self.config.gumbel_value_scale
        return np.array([weight * self.scaled(q, low, high) for q in completed])

    def improved_policy(self, node: _Node) -> Float64:
        with np.errstate(divide="ignore"):
            return _softmax(np.log(node.prior) + self.completed_q(node))

    def choose_by_gumbel(self, node: _Node) -> int:
        visits = np.array([node.edge_visits(action) for action in range(len(node.prior))])
        return int((self.improved_policy(node) - visits / (1.0 + visits.sum())).argmax())

    def best_considered(self, root: _Node, scores: Float64, allowed: NDArray[np.bool_], visits: int) -> int:
        """Sequential halving: the best allowed action among those visited that often."""
        candidates = [a for a in range(len(scores)) if allowed[a] and root.edge_visits(a) == visits]
        completed = self.completed_q(root)
        return max(candidates, key=lambda action: scores[action] + completed[action])

    def choose_code(self, node: _Node, simulation: int) -> int:
        visits = np.array([node.edge_visits(code) for code in range(len(node.prior))])
        if self.config.chance_selection == "proportional":
            return int((node.prior / (visits + 1)).argmax())
        address = np.array([(simulation << 32) + node.depth], np.uint64)
        threshold = uniform(np.array([self.seed]), np.array([CHANCE]), address)[0]
        return int((np.cumsum(node.prior) > threshold).argmax())

    def run(self, root: _Node, owed: int, scores: Float64, allowed: NDArray[np.bool_]) -> None:
        self.add(root)
        self.back_up(root)
        schedule = considered_visits(min(int(allowed.sum()), self.config.max_considered_actions), owed)
        for simulation in range(owed):
            node = root
            while True:
                if not node.is_decision:
                    edge = self.choose_code(node, simulation)
                elif self.config.root == "puct":
                    edge = self.choose_by_puct(node, allowed)
                elif node is root:
                    edge = self.best_considered(root, scores, allowed, schedule[simulation])
                else:
                    edge = self.choose_by_gumbel(node)
                if edge not in node.children:
                    self.back_up(self.expand(node, edge))
                    break
                node = node.children[edge]
                if node.depth == self.config.max_depth:
                    self.back_up(node)
                    break


@dataclass(frozen=True)
class ReferenceResult:
    """SearchResult's statistics, and the nodes of every tree in order of creation."""

    result: SearchResult
    nodes: list[list[Node]]


def search_reference(
    config: SearchConfig,
    model: CoreWeights | TableModel,
    latents: ArrayLike,
    policy_logits: ArrayLike,
    values: ArrayLike,
    *,
    action_mask: ArrayLike | None = None,
    seeds: ArrayLike | None = None,
    explore: float = 0.0,
    simulations: int | None = None,
    to_play: ArrayLike | None = None,
    root_noise: ArrayLike | None = None,
) -> ReferenceResult:
    """What SearchEngine.search does, argument for argument, except that it cannot resume a tree."""
    inputs = check_inputs(
        config,
        model,
        latents,
        policy_logits,
        values,
        action_mask=action_mask,
        seeds=seeds,
        explore=explore,
        simulations=simulations,
        to_play=to_play,
        root_noise=root_noise,
        resume=None,
    )
    asked: Model = ReferenceNetwork(model) if isinstance(model, CoreWeights) else ReferenceTables(model)
    batch, actions, codes = inputs.batch, inputs.edges, model.num_codes
    result = SearchResult(
        visits=np.zeros((batch, actions), np.int32),
        action_weights=np.zeros((batch, actions), np.float32),
        action=np.zeros(batch, np.int64),
        q_values=np.zeros((batch, actions), np.float32),
        root_value=np.zeros(batch, np.float32),
        depth=np.zeros(batch, np.int32),
        chance_probabilities=np.zeros((batch, actions, codes), np.float32),
        candidates=inputs.candidates,
    )
    nodes: list[list[Node]] = []
    for row in range(batch):
        allowed, noise = inputs.allowed[row], inputs.roots.noise[row]
        logits = inputs.roots.policy_logits[row].astype(np.float64)
        prior = _softmax(np.where(allowed, logits, -np.inf))
        fraction = inputs.roots.noise_fraction
        prior = (1.0 - fraction) * prior + fraction * noise
        search = _TreeSearch(config, asked, inputs.seeds[row], int(inputs.to_play[row]), model.action_factors)
        root = _Node(inputs.roots.latents[row].astype(np.float64), prior, float(inputs.roots.values[row]), 0.0, 0)
        if inputs.candidates is not None:
            root.choices = inputs.candidates.choices[row]
        search.run(root, int(inputs.owed[row]), logits + noise, allowed)
        _report(search, root, logits + noise, allowed, row, result)
        numbers = {id(node): index for index, node in enumerate(search.nodes)}
        nodes.append(
            [
                Node(
                    index=index,
                    parent=-1 if node.parent is None else numbers[id(node.parent)],
                    edge=node.edge,
                    kind="decision" if node.is_decision else "chance",
                    depth=node.depth,
                    visits=node.visits,
                    value=node.value,
                    raw_value=node.raw_value,
                    reward=node.reward,
                    probability=1.0 if node.parent is None else float(node.parent.prior[node.edge]),
                    choice=_choice(node),
                )
                for index, node in enumerate(search.nodes)
            ]
        )
    return ReferenceResult(result, nodes)


def _choice(node: _Node) -> tuple[int, ...]:
    """What the parts of the action that leads here are, where it has parts."""
    if node.parent is None or node.parent.choices is None:
        return ()
    return tuple(int(part) for part in node.parent.choices[node.edge])


def _report(
    search: _TreeSearch,
    root: _Node,
    scores: Float64,
    allowed: NDArray[np.bool_],
    row: int,
    result: SearchResult,
) -> None:
    """Write one row of the result."""
    visits = np.array([root.edge_visits(action) for action in range(len(scores))])
    result.visits[row] = visits
    for action, child in root.children.items():
        result.q_values[row, action] = search.q_value(root, action)
        result.chance_probabilities[row, action] = child.prior
    result.root_value[row] = root.value
    result.depth[row] = max(node.depth for node in search.nodes) // 2
    if search.config.root == "gumbel":
        result.action[row] = search.best_considered(root, scores, allowed, int(visits.max()))
        result.action_weights[row] = search.improved_policy(root)
    else:
        candidates = np.flatnonzero(allowed)
        result.action[row] = max(candidates, key=lambda action: (visits[action], root.prior[action]))
        result.action_weights[row] = visits / visits.sum() if visits.sum() else root.prior
