"""The tree as flat arrays, and the four things done to it: start, select, expand, back up.

A row is one tree. Its nodes are numbered in the order of creation, 0 is the root. Nodes at even depth are decision
nodes with A edges, at odd depth chance nodes with C edges. A node's edges lie next to each other in the edge
arrays, from `first_edge`; an edge is named by its place there, its *slot*. Child 0 means "not expanded": the
root is nobody's child.

Equations (mctx's conventions, which the golden trees pin down):
    value of a node      mean of its own evaluation (its first visit) and of all that was backed up through it
    … expected           afterstate: (1 − m⁴)·(own + Σ p·γ·(v − v₀)) + m⁴·Σ p·(r + γ·v)/m over the codes looked at, m
                         their probability, v₀ and v a state's own evaluation and its value; state: the mean of its
                         own evaluation and of its actions' values by visits
    Q(s, a)              value of the afterstate: the edge to a chance node has reward 0 and discount 1
    PUCT                 Qnorm(s, a) + P(a)·√N(s)/(1 + N(s, a))·(c1 + log((N(s) + c2 + 1)/c2))
    Qnorm                (Q − low)/(high − low) over the node's value and its visited actions; unvisited: 0
    chance               argmax_c Pr(c | as)/(N(c) + 1)
    Gumbel, inside       argmax_a π'(a) − N(s, a)/(1 + Σ N), π' = softmax(logits + σ(completed Q))
    Gumbel, root         sequential halving on gumbel + logits + σ(completed Q)

Ties go to the lowest index.

Where an action has D parts, a decision node's edges are K candidate combinations instead (candidates.py); `choices`
says which, and options.actions is K.

Legend: R rows, N nodes, E edge slots, P players, A actions, C codes, D parts of an action, L latent width.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# Kernels carry no annotations: numba infers their types, and their docstrings say what goes in.

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.search.compilation import compiled
from agent.search.randomness import CANDIDATE, CHANCE, uniform

_TINY = 1e-8  # smallest range Q is scaled by, as in mctx
_TINY_PROBABILITY = 1e-38  # keeps a weighted mean defined when every visited action has a vanishing prior


class TreeArrays(NamedTuple):
    """Trees of a group of rows."""

    size: NDArray[np.int32]  # [R] nodes in use
    edges: NDArray[np.int32]  # [R] edge slots in use
    to_play: NDArray[np.int32]  # [R] player to move at the root
    bounds: NDArray[np.floating]  # [R, 2] lowest and highest node value so far
    parent: NDArray[np.int32]  # [R, N]
    slot: NDArray[np.int32]  # [R, N] the parent's edge that leads here
    first_edge: NDArray[np.int32]  # [R, N]
    depth: NDArray[np.int32]  # [R, N] edges from the root
    visits: NDArray[np.int32]  # [R, N]
    value: NDArray[np.floating]  # [R, N, P] mean return from here, as each player sees it
    raw_value: NDArray[np.floating]  # [R, N] the node's own evaluation, for the player to move
    reward: NDArray[np.floating]  # [R, N] reward on the edge leading here, for the player who acted
    latent: NDArray[np.floating]  # [R, N, L]
    child: NDArray[np.int32]  # [R, E] node under the edge, 0 when there is none
    edge_visits: NDArray[np.int32]  # [R, E]
    prior: NDArray[np.floating]  # [R, E] probability of the action or code
    score: NDArray[np.floating]  # [R, E] action: Q for the player who acts; code: Pr(c)/(N(c) + 1)
    choices: NDArray[np.int32]  # [R, E, D] categories of each part of an action; [R, 1, 1] where it has none


class TreeOptions(NamedTuple):
    """SearchConfig in the form the kernels read."""

    actions: int
    codes: int
    players: int
    simulations: int
    max_depth: int
    gumbel: bool
    tree_wide: bool
    sampled: bool
    expected: bool
    discount: float
    min_q_range: float
    value_scale: float
    visit_offset: float
    parts: int  # D; 0 where an action is one choice


class TreeSizes(NamedTuple):
    """The part of TreeOptions a tree's layout depends on."""

    actions: int
    codes: int
    players: int
    parts: int


class RootArrays(NamedTuple):
    """What is known about the roots besides their trees."""

    allowed: NDArray[np.bool_]  # [R, A]
    scores: NDArray[np.floating]  # [R, A] gumbel noise + logits
    schedule: NDArray[np.int32]  # [R, simulations] visit counts of sequential halving
    exploration: NDArray[np.float64]  # [visits] PUCT's √N·(c1 + log((N + c2 + 1)/c2))
    seeds: NDArray[np.uint64]  # [R]
    simulations: NDArray[np.int32]  # [R] simulations this row is still owed


def allocate_trees(
    rows: int, nodes: int, edges: int, players: int, latent: int, dtype: type[np.floating], parts: int = 0
) -> TreeArrays:
    """Room for `rows` trees of up to `nodes` nodes with up to `edges` edge slots in total."""
    return TreeArrays(
        size=np.zeros(rows, np.int32),
        edges=np.zeros(rows, np.int32),
        to_play=np.zeros(rows, np.int32),
        bounds=np.zeros((rows, 2), dtype),
        parent=np.zeros((rows, nodes), np.int32),
        slot=np.zeros((rows, nodes), np.int32),
        first_edge=np.zeros((rows, nodes), np.int32),
        depth=np.zeros((rows, nodes), np.int32),
        visits=np.zeros((rows, nodes), np.int32),
        value=np.zeros((rows, nodes, players), dtype),
        raw_value=np.zeros((rows, nodes), dtype),
        reward=np.zeros((rows, nodes), dtype),
        latent=np.zeros((rows, nodes, latent), dtype),
        child=np.zeros((rows, edges), np.int32),
        edge_visits=np.zeros((rows, edges), np.int32),
        prior=np.zeros((rows, edges), dtype),
        score=np.zeros((rows, edges), dtype),
        choices=np.zeros((rows, edges if parts else 1, max(parts, 1)), np.int32),
    )


@compiled()
def mover(trees, row, depth, options):
    """The player who acts at a decision node of this depth, or who has just acted at a chance node."""
    if options.players == 1:
        return 0
    return (trees.to_play[row] + depth // 2) % options.players


@compiled()
def add_node(trees, row, parent, slot, raw_value, reward, options):
    """Append a node, evaluated but without its edges' priors, and return its number."""
    node = np.int64(trees.size[row])
    depth = np.int64(0) if node == 0 else np.int64(trees.depth[row, parent]) + 1
    trees.size[row] = node + 1
    trees.parent[row, node] = parent
    trees.slot[row, node] = slot
    trees.depth[row, node] = depth
    trees.visits[row, node] = 1
    trees.raw_value[row, node] = raw_value
    trees.reward[row, node] = reward
    owner = mover(trees, row, depth, options)
    for player in range(options.players):
        trees.value[row, node, player] = raw_value if player == owner else -raw_value
    first = np.int64(trees.edges[row])
    trees.first_edge[row, node] = first
    edges = options.actions if depth % 2 == 0 else options.codes
    trees.edges[row] = first + edges
    for edge in range(first, first + edges):
        trees.child[row, edge] = 0
        trees.edge_visits[row, edge] = 0
        trees.score[row, edge] = 0.0
    if node == 0:
        trees.bounds[row, 0] = raw_value
        trees.bounds[row, 1] = raw_value
    else:
        trees.child[row, slot] = node
    return node


@compiled()
def draw_candidates(trees, row, node, policy, start, starts, actions, seed, options):
    """Give a new decision node its K candidates and their prior, the shares of the draws (candidates.py).

    policy[start : start + actions]: probabilities of all parts' categories. starts: [D] where each part's begin.
    """
    first = np.int64(trees.first_edge[row, node])
    parts, share = options.parts, 1.0 / options.actions
    used = 0
    for draw in range(options.actions):
        slot = first + used
        for part in range(parts):
            begin = start + np.int64(starts[part])
            end = start + (np.int64(starts[part + 1]) if part + 1 < parts else np.int64(actions))
            address = (np.uint64(node) << np.uint64(32)) + np.uint64(draw * parts + part)
            threshold = uniform(seed, CANDIDATE, address)
            cumulative = 0.0
            chosen = begin
            for place in range(begin, end):
                if policy[place] > 0.0:
                    chosen = place
                    cumulative += policy[place]
                    if cumulative > threshold:
                        break
            trees.choices[row, slot, part] = chosen - begin
        for earlier in range(first, slot):
            same = True
            for part in range(parts):
                same &= trees.choices[row, earlier, part] == trees.choices[row, slot, part]
            if same:
                slot = earlier
                break
        if slot == first + used:
            trees.prior[row, slot] = 0.0
            used += 1
        trees.prior[row, slot] += share
    for slot in range(first + used, first + options.actions):
        trees.prior[row, slot] = 0.0
        for part in range(parts):
            trees.choices[row, slot, part] = 0


@compiled()
def choose_code(trees, row, node, simulation, roots, options):
    """The edge slot of the outcome to look at under a chance node."""
    first = np.int64(trees.first_edge[row, node])
    if options.sampled:
        address = (np.uint64(simulation) << np.uint64(32)) + np.uint64(trees.depth[row, node])
        threshold = uniform(roots.seeds[row], CHANCE, address)
        cumulative = 0.0
        chosen = first
        for edge in range(first, first + options.codes):
            if trees.prior[row, edge] > 0.0:
                chosen = edge
                cumulative += trees.prior[row, edge]
                if cumulative > threshold:
                    break
        return chosen
    best = first
    best_score = trees.score[row, first]
    for edge in range(first + 1, first + options.codes):
        if trees.score[row, edge] > best_score:
            best_score = trees.score[row, edge]
            best = edge
    return best


@compiled()
def choose_by_puct(trees, row, node, roots, options):
    """The edge slot of the action PUCT takes; the mask matters at the root only."""
    first = np.int64(trees.first_edge[row, node])
    if options.tree_wide:
        low = trees.bounds[row, 0]
        high = trees.bounds[row, 1]
    else:
        low = trees.value[row, node, mover(trees, row, np.int64(trees.depth[row, node]), options)]
        high = low
        for edge in range(first, first + options.actions):
            if trees.edge_visits[row, edge] > 0:
                low = min(low, trees.score[row, edge])
                high = max(high, trees.score[row, edge])
    spread = max(high - low, max(options.min_q_range, _TINY))
    weight = roots.exploration[trees.visits[row, node]]
    best = -1
    best_score = -np.inf
    for action in range(options.actions):
        if node == 0 and not roots.allowed[row, action]:
            continue
        edge = first + action
        visits = trees.edge_visits[row, edge]
        score = weight * trees.prior[row, edge] / (visits + 1)
        if visits > 0:
            score += (trees.score[row, edge] - low) / spread
        if best < 0 or score > best_score:
            best = edge
            best_score = score
    return best


@compiled()
def completed_q(trees, row, node, options, out):
    """σ(completed Q) of a decision node into out[: A] (Danihelka et al. 2022, eq. 8 and App. D).

    Unvisited actions get the mixed value: the node's own evaluation averaged with the Q of what was visited,
    weighted by prior. Then Q is scaled to [0, 1] and weighed by c_scale·(c_visit + the largest visit count).
    Returns the sum of the actions' visits.
    """
    first = np.int64(trees.first_edge[row, node])
    total_visits = 0
    most_visits = 0
    mass = 0.0
    weighted = 0.0
    for edge in range(first, first + options.actions):
        visits = np.int64(trees.edge_visits[row, edge])
        total_visits += visits
        most_visits = max(most_visits, visits)
        if visits > 0:
            probability = max(trees.prior[row, edge], _TINY_PROBABILITY)
            mass += probability
            weighted += probability * trees.score[row, edge]
    mixed = float(trees.raw_value[row, node])
    if total_visits > 0:
        mixed = (mixed + total_visits * (weighted / mass)) / (total_visits + 1)
    low = np.inf
    high = -np.inf
    for action in range(options.actions):
        edge = first + action
        out[action] = trees.score[row, edge] if trees.edge_visits[row, edge] > 0 else mixed
        low = min(low, out[action])
        high = max(high, out[action])
    spread = max(high - low, max(options.min_q_range, _TINY))
    weight = (options.visit_offset + most_visits) * options.value_scale
    for action in range(options.actions):
        out[action] = weight * (out[action] - low) / spread
    return total_visits


@compiled()
def halving_action(trees, row, wanted_visits, roots, completed, options):
    """The allowed root action with the best gumbel + logits + σ(Q) among those visited `wanted_visits` times."""
    best = -1
    best_score = -np.inf
    for action in range(options.actions):
        if roots.allowed[row, action] and trees.edge_visits[row, action] == wanted_visits:
            score = roots.scores[row, action] + completed[action]
            if best < 0 or score > best_score:
                best = action
                best_score = score
    return best


@compiled()
def improved_policy(trees, row, node, completed, options):
    """Turn σ(completed Q) in completed[: A] into π' = softmax(logits + σ(completed Q)), in place."""
    first = np.int64(trees.first_edge[row, node])
    highest = -np.inf
    for action in range(options.actions):
        if trees.prior[row, first + action] > 0.0:
            highest = max(highest, completed[action])
    total = 0.0
    for action in range(options.actions):
        completed[action] = trees.prior[row, first + action] * np.exp(min(completed[action] - highest, 0.0))
        total += completed[action]
    for action in range(options.actions):
        completed[action] /= total


@compiled()
def choose_by_gumbel(trees, row, node, roots, completed, options):
    """The edge slot of the action Gumbel MuZero takes."""
    first = np.int64(trees.first_edge[row, node])
    total_visits = completed_q(trees, row, node, options, completed)
    if node == 0:
        return first + halving_action(
            trees, row, np.int64(roots.schedule[row, total_visits]), roots, completed, options
        )
    improved_policy(trees, row, node, completed, options)
    best = 0
    best_score = -np.inf
    for action in range(options.actions):
        score = completed[action] - trees.edge_visits[row, first + action] / (1.0 + total_visits)
        if score > best_score:
            best = action
            best_score = score
    return first + best


@compiled()
def select(trees, row, simulation, roots, completed, options):
    """Walk down from the root to an edge that leads nowhere yet, or to the depth limit. Returns (node, slot)."""
    node = np.int64(0)
    depth = np.int64(0)
    while True:
        if depth % 2 == 1:
            slot = choose_code(trees, row, node, simulation, roots, options)
        elif options.gumbel:
            slot = choose_by_gumbel(trees, row, node, roots, completed, options)
        else:
            slot = choose_by_puct(trees, row, node, roots, options)
        depth += 1
        child = np.int64(trees.child[row, slot])
        if child == 0 or depth >= options.max_depth:
            return node, slot
        node = child


@compiled()
def afterstate_value(trees, row, node, player, options):
    """Expected value of a chance node as a player sees it, from the outcomes looked at.

    What an outcome adds to the node's own evaluation is how much looking further has changed that outcome's: so an
    action looked at twice is not worth what its likeliest outcomes are worth, and actions with few and with many visits
    can be compared (docs/decisions/0082). As the outcomes looked at come to cover all, the model's expectation takes
    over.
    """
    depth = np.int64(trees.depth[row, node])
    actor = mover(trees, row, depth, options)
    following = mover(trees, row, depth + 1, options)
    own = float(trees.raw_value[row, node]) if player == actor else -float(trees.raw_value[row, node])
    first = np.int64(trees.first_edge[row, node])
    covered = 0.0
    expected = 0.0
    change = 0.0
    for edge in range(first, first + options.codes):
        child = np.int64(trees.child[row, edge])
        if child == 0:
            continue
        probability = float(trees.prior[row, edge])
        reward = float(trees.reward[row, child]) if player == actor else -float(trees.reward[row, child])
        raw = float(trees.raw_value[row, child]) if player == following else -float(trees.raw_value[row, child])
        value = float(trees.value[row, child, player])
        covered += probability
        expected += probability * (reward + options.discount * value)
        change += probability * options.discount * (value - raw)
    share = min(covered, 1.0) ** 4
    return (1.0 - share) * (own + change) + share * expected / max(covered, _TINY_PROBABILITY)


@compiled()
def state_value(trees, row, node, player, options):
    """Mean of a decision node's own evaluation and of its actions' values, by visits, as a player sees it."""
    own = float(trees.raw_value[row, node])
    total = own if player == mover(trees, row, np.int64(trees.depth[row, node]), options) else -own
    count = 1
    first = np.int64(trees.first_edge[row, node])
    for edge in range(first, first + options.actions):
        visits = np.int64(trees.edge_visits[row, edge])
        if visits > 0:
            count += visits
            total += visits * float(trees.value[row, trees.child[row, edge], player])
    return total / count


@compiled()
def back_up(trees, row, leaf, gains, options):
    """Carry the leaf's own evaluation to the root.

    gains: [P] working memory: the return from the current node on, as each player sees it. What one player
    gains counts against all others. Reward and discount belong to the edge out of a chance node; the edge out
    of a decision node has reward 0 and discount 1, because no time passes between choosing and its outcome.
    """
    node = leaf
    depth = np.int64(trees.depth[row, leaf])
    raw = trees.raw_value[row, leaf]
    owner = mover(trees, row, depth, options)
    for player in range(options.players):
        gains[player] = raw if player == owner else -raw
    while node != 0:
        parent = np.int64(trees.parent[row, node])
        slot = np.int64(trees.slot[row, node])
        actor = mover(trees, row, depth - 1, options)
        if depth % 2 == 0:
            reward = trees.reward[row, node]
            for player in range(options.players):
                own = reward if player == actor else -reward
                gains[player] = own + options.discount * gains[player]
        visits = trees.visits[row, parent]
        taken = trees.edge_visits[row, slot] + 1
        trees.edge_visits[row, slot] = taken
        for player in range(options.players):
            if not options.expected:
                mean = trees.value[row, parent, player]
                trees.value[row, parent, player] = (mean * visits + gains[player]) / (visits + 1)
            elif depth % 2 == 0:
                trees.value[row, parent, player] = afterstate_value(trees, row, parent, player, options)
            else:
                trees.value[row, parent, player] = state_value(trees, row, parent, player, options)
        trees.visits[row, parent] = visits + 1
        if depth % 2 == 0:
            trees.score[row, slot] = trees.prior[row, slot] / (taken + 1)
        else:
            trees.score[row, slot] = trees.value[row, node, actor]
        if options.tree_wide:
            own_value = trees.value[row, node, mover(trees, row, depth, options)]
            trees.bounds[row, 0] = min(trees.bounds[row, 0], own_value)
            trees.bounds[row, 1] = max(trees.bounds[row, 1], own_value)
        node = parent
        depth -= 1
    if options.tree_wide:
        own_value = trees.value[row, 0, mover(trees, row, depth, options)]
        trees.bounds[row, 0] = min(trees.bounds[row, 0], own_value)
        trees.bounds[row, 1] = max(trees.bounds[row, 1], own_value)


@compiled()
def copy_subtree(source, target, row, action, code, number, options):
    """Make the decision node below (action, code) of one row's root the root of the same row of `target`.

    Nodes keep their order, so parents still come before their children. number: [N] working memory, new numbers by
    old ones. The row is left empty (size 0) when that node was never looked at or the code is negative.
    """
    target.size[row] = 0
    target.edges[row] = 0
    target.to_play[row] = (source.to_play[row] + 1) % options.players
    afterstate = np.int64(source.child[row, source.first_edge[row, 0] + action])
    if afterstate == 0 or code < 0:
        return
    root = np.int64(source.child[row, source.first_edge[row, afterstate] + code])
    if root == 0:
        return
    for old in range(source.size[row]):
        number[old] = -1
    for old in range(root, source.size[row]):
        old_parent = source.parent[row, old]
        if old != root and number[old_parent] < 0:
            continue
        node = np.int64(target.size[row])
        number[old] = node
        target.size[row] = node + 1
        target.depth[row, node] = source.depth[row, old] - source.depth[row, root]
        target.visits[row, node] = source.visits[row, old]
        for player in range(options.players):
            target.value[row, node, player] = source.value[row, old, player]
        target.raw_value[row, node] = source.raw_value[row, old]
        target.reward[row, node] = source.reward[row, old]
        for j in range(source.latent.shape[2]):
            target.latent[row, node, j] = source.latent[row, old, j]
        first, old_first = np.int64(target.edges[row]), np.int64(source.first_edge[row, old])
        count = options.actions if source.depth[row, old] % 2 == 0 else options.codes
        target.first_edge[row, node] = first
        target.edges[row] = first + count
        for edge in range(count):
            target.child[row, first + edge] = 0
            target.edge_visits[row, first + edge] = source.edge_visits[row, old_first + edge]
            target.prior[row, first + edge] = source.prior[row, old_first + edge]
            target.score[row, first + edge] = source.score[row, old_first + edge]
            for part in range(options.parts):
                target.choices[row, first + edge, part] = source.choices[row, old_first + edge, part]
        own_value = source.value[row, old, mover(target, row, np.int64(target.depth[row, node]), options)]
        if node == 0:
            target.bounds[row, 0] = target.bounds[row, 1] = own_value
            continue
        target.bounds[row, 0] = min(target.bounds[row, 0], own_value)
        target.bounds[row, 1] = max(target.bounds[row, 1], own_value)
        parent = np.int64(number[old_parent])
        slot = target.first_edge[row, parent] + source.slot[row, old] - source.first_edge[row, old_parent]
        target.parent[row, node] = parent
        target.slot[row, node] = slot
        target.child[row, slot] = node
