"""The whole search of a group of rows as one compiled function; no Python between simulations.

Rows advance together, one simulation at a time: every row selects a leaf, the leaves are gathered into two
groups (under an action, under a code), each group goes through its half of the network at once, and every
row backs up. A row never looks at another row.

Legend: R rows, A actions, C codes, L latent, P players.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# Kernels carry no annotations: numba infers their types, and their docstrings say what goes in.

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.search import compilation, network_kernel, randomness, tree_kernel
from agent.search.compilation import compiled
from agent.search.network_kernel import (
    EMBEDDING,
    REWARD_ATOMS,
    VALUE_ATOMS,
    NetworkShape,
    aligned,
    embed,
    evaluate,
    expectation,
    padded,
    softmax,
)
from agent.search.tree_kernel import (
    add_node,
    back_up,
    completed_q,
    copy_subtree,
    draw_candidates,
    halving_action,
    improved_policy,
    mover,
    select,
)


class ModelArrays(NamedTuple):
    """The model behind the tree: a packed network, or tables."""

    is_table: bool
    params: NDArray[np.floating]  # packed weights (network_kernel.pack) or packed tables (pack_tables)
    layout: NDArray[np.int64]  # [2, …] where each piece of params starts, by kind of leaf
    links: NDArray[np.int32]  # tables: afterstate_of [S·A], state_of [F·C]; network: [D] where each part's rows begin
    shape: NetworkShape


class RootInputs(NamedTuple):
    """The roots as the caller gave them."""

    latents: NDArray[np.float32]  # [R, L]
    policy_logits: NDArray[np.float32]  # [R, A]
    values: NDArray[np.float32]  # [R]
    noise: NDArray[np.float64]  # [R, A] Gumbel or Dirichlet variates; zeros for none
    resumed: NDArray[np.bool_]  # [R] this row's tree is already there, from an earlier search
    noise_fraction: float  # PUCT: share of the noise in the prior
    choices: NDArray[np.int32]  # [R, K, D] candidates of the root; [R, 1, 1] where an action is one choice

    def rows(self, rows: slice) -> "RootInputs":
        """The same for some of the rows."""
        return RootInputs(
            self.latents[rows],
            self.policy_logits[rows],
            self.values[rows],
            self.noise[rows],
            self.resumed[rows],
            self.noise_fraction,
            self.choices[rows],
        )


class Memory(NamedTuple):
    """Working memory of a group of rows, besides trees and network scratch."""

    group: NDArray[np.int32]  # [2, 3, R] by kind of leaf: rows, parents, edge slots
    waiting: NDArray[np.int64]  # [2] leaves gathered of each kind
    gains: NDArray[np.floating]  # [P]
    completed: NDArray[np.float64]  # [A]


class Outputs(NamedTuple):
    """Where the results go; the fields of SearchResult."""

    visits: NDArray[np.int32]  # [R, A]
    action_weights: NDArray[np.float32]  # [R, A]
    action: NDArray[np.int64]  # [R]
    q_values: NDArray[np.float32]  # [R, A]
    root_value: NDArray[np.float32]  # [R]
    depth: NDArray[np.int32]  # [R]
    chance_probabilities: NDArray[np.float32]  # [R, A, C]

    def rows(self, rows: slice) -> "Outputs":
        """The same for some of the rows."""
        return Outputs(
            self.visits[rows],
            self.action_weights[rows],
            self.action[rows],
            self.q_values[rows],
            self.root_value[rows],
            self.depth[rows],
            self.chance_probabilities[rows],
        )


# In table mode the pieces of `layout`: the leaf's logits, its value, and the reward on the way to it.
TABLE_LOGITS, TABLE_VALUES, TABLE_REWARDS, TABLE_LINKS = range(4)


@compiled()
def start_row(trees, row, roots, inputs, options):
    """Make the root, or refresh the root of a resumed tree, and mix noise into its prior."""
    root = np.int64(0)
    value = inputs.values[row]
    if inputs.resumed[row]:
        # The prediction the root was made of gives way to the evaluation of what really came.
        correction = (value - trees.raw_value[row, 0]) / trees.visits[row, 0]
        owner = mover(trees, row, root, options)
        for player in range(options.players):
            trees.value[row, 0, player] += correction if player == owner else -correction
        trees.raw_value[row, 0] = value
    else:
        trees.size[row] = 0
        trees.edges[row] = 0
        add_node(trees, row, root, root, value, np.float32(0), options)
    for j in range(inputs.latents.shape[1]):
        trees.latent[row, 0, j] = inputs.latents[row, j]
    for part in range(options.parts):
        for action in range(options.actions):
            trees.choices[row, action, part] = inputs.choices[row, action, part]
    highest = -np.inf
    for action in range(options.actions):
        if roots.allowed[row, action]:
            highest = max(highest, inputs.policy_logits[row, action])
    total = 0.0
    for action in range(options.actions):
        weight = 0.0
        if roots.allowed[row, action]:
            weight = np.exp(float(inputs.policy_logits[row, action]) - highest)
            total += weight
            roots.scores[row, action] = inputs.policy_logits[row, action] - highest + inputs.noise[row, action]
        trees.prior[row, action] = weight
    fraction = inputs.noise_fraction
    for action in range(options.actions):
        prior = trees.prior[row, action] / total
        trees.prior[row, action] = (1.0 - fraction) * prior + fraction * inputs.noise[row, action]


@compiled()
def attach(trees, row, parent, slot, raw_value, reward, logits, start, gains, options):
    """Append an evaluated leaf with its edges' probabilities, then back its value up. Returns its number."""
    node = add_node(trees, row, parent, slot, raw_value, reward, options)
    first = trees.first_edge[row, node]
    count = trees.edges[row] - first
    chance = trees.depth[row, node] % 2 == 1
    for edge in range(count):
        probability = logits[start + edge]
        trees.prior[row, first + edge] = probability
        if chance:
            trees.score[row, first + edge] = probability
    back_up(trees, row, node, gains, options)
    return node


@compiled()
def attach_with_candidates(trees, row, parent, slot, raw_value, reward, model, scratch, start, seed, gains, options):
    """Append an evaluated decision node whose actions have parts, with K candidates of its own. Returns its number.

    scratch.heads[start :] holds the policy's logits.
    """
    node = add_node(trees, row, parent, slot, raw_value, reward, options)
    for part in range(options.parts):
        begin = np.int64(model.links[part])
        end = np.int64(model.links[part + 1]) if part + 1 < options.parts else np.int64(model.shape.actions)
        softmax(scratch.heads, start + begin, end - begin, scratch.bits, scratch.powers)
    draw_candidates(trees, row, node, scratch.heads, start, model.links, model.shape.actions, seed, options)
    back_up(trees, row, node, gains, options)
    return node


@compiled()
def expand_from_tables(trees, row, parent, slot, model, scratch, memory, options):
    """Look the leaf up."""
    zero = np.int64(0)
    kind = np.int64(trees.depth[row, parent]) % 2
    place = model.layout[kind]
    edges_here = options.codes if kind == 1 else options.actions
    edges_below = options.actions if kind == 1 else options.codes
    entry = np.int64(trees.latent[row, parent, 0]) * edges_here + slot - trees.first_edge[row, parent]
    state = model.links[place[TABLE_LINKS] + entry]
    for edge in range(edges_below):
        scratch.heads[edge] = model.params[place[TABLE_LOGITS] + state * edges_below + edge]
    softmax(scratch.heads, zero, edges_below, scratch.bits, scratch.powers)
    value = model.params[place[TABLE_VALUES] + state]
    reward = model.params[place[TABLE_REWARDS] + entry] if kind == 1 else model.params.dtype.type(0)
    node = attach(trees, row, parent, slot, value, reward, scratch.heads, zero, memory.gains, options)
    trees.latent[row, node, 0] = state


@compiled()
def visit_again(trees, row, leaf, memory, options):
    """Count a leaf once more, with the value it has: the depth limit allows no other."""
    trees.visits[row, leaf] += 1
    back_up(trees, row, leaf, memory.gains, options)


@compiled()
def leaf_of(memory, kind, index):
    """(row, parent, edge slot) of a gathered leaf."""
    return (
        np.int64(memory.group[kind, 0, index]),
        np.int64(memory.group[kind, 1, index]),
        np.int64(memory.group[kind, 2, index]),
    )


@compiled()
def expand_from_network(trees, kind, count, model, scratch, memory, roots, options):
    """Evaluate the gathered leaves of one kind and attach them."""
    params, shape = model.params, model.shape
    width = shape.latent_width
    latents = trees.latent.reshape(-1)
    nodes = trees.latent.shape[1]
    embedding, atoms, reward_atoms = (
        model.layout[kind, EMBEDDING],
        model.layout[kind, VALUE_ATOMS],
        model.layout[kind, REWARD_ATOMS],
    )
    for index in range(count):
        row, parent, slot = leaf_of(memory, kind, index)
        source = (row * nodes + parent) * width
        place = index * width
        if kind == 0 and options.parts > 0:
            for part in range(options.parts):
                category = np.int64(model.links[part]) + np.int64(trees.choices[row, slot, part])
                if part == 0:
                    embed(latents, source, params, embedding + category * width, width, scratch.embedded, place)
                else:
                    here, more = scratch.embedded, embedding + category * width
                    embed(here, place, params, more, width, here, place)
            continue
        taken = slot - trees.first_edge[row, parent]
        embed(latents, source, params, embedding + taken * width, width, scratch.embedded, place)
    edges = shape.actions if kind == 1 else options.codes
    with_parts = kind == 1 and options.parts > 0
    evaluate(kind, count, edges, params, model.layout, shape, scratch)
    heads_width = padded(aligned(edges) + shape.atoms)
    for index in range(count):
        row, parent, slot = leaf_of(memory, kind, index)
        start = index * heads_width
        if not with_parts:
            softmax(scratch.heads, start, aligned(edges), scratch.bits, scratch.powers)
        value = expectation(
            scratch.heads, start + aligned(edges), shape.atoms, params, atoms, scratch.bits, scratch.powers
        )
        reward = params.dtype.type(0)
        if kind == 1:
            reward = expectation(
                scratch.reward,
                index * shape.reward_width,
                shape.atoms,
                params,
                reward_atoms,
                scratch.bits,
                scratch.powers,
            )
        if with_parts:
            seed = roots.seeds[row]
            node = attach_with_candidates(
                trees, row, parent, slot, value, reward, model, scratch, start, seed, memory.gains, options
            )
        else:
            node = attach(trees, row, parent, slot, value, reward, scratch.heads, start, memory.gains, options)
        target = (row * nodes + node) * width
        embed_from, to = np.uint64(index * width), np.uint64(target)
        for j in range(np.uint64(width)):
            latents[to + j] = scratch.latent[embed_from + j]


@compiled()
def report_row(trees, row, roots, memory, options, out):
    """Read the results off a finished tree."""
    root = np.int64(0)
    total = np.int64(0)
    most = np.int64(0)
    for action in range(options.actions):
        visits = trees.edge_visits[row, action]
        total += visits
        most = max(most, visits)
        out.visits[row, action] = visits
        out.q_values[row, action] = trees.score[row, action] if visits > 0 else 0.0
        for code in range(options.codes):
            out.chance_probabilities[row, action, code] = 0.0
        if visits > 0:
            first = np.int64(trees.first_edge[row, trees.child[row, action]])
            for code in range(options.codes):
                out.chance_probabilities[row, action, code] = trees.prior[row, first + code]
    out.root_value[row] = trees.value[row, 0, mover(trees, row, root, options)]
    deepest = 0
    for node in range(trees.size[row]):
        deepest = max(deepest, trees.depth[row, node])
    out.depth[row] = deepest // 2
    if options.gumbel:
        completed_q(trees, row, root, options, memory.completed)
        out.action[row] = halving_action(trees, row, most, roots, memory.completed, options)
        improved_policy(trees, row, root, memory.completed, options)
        for action in range(options.actions):
            out.action_weights[row, action] = memory.completed[action]
        return
    # The most visited action; among equals the one with the larger prior, which with no visits is the prior's.
    best = -1
    for action in range(options.actions):
        visits, prior = trees.edge_visits[row, action], trees.prior[row, action]
        out.action_weights[row, action] = visits / total if total > 0 else prior
        if not roots.allowed[row, action]:
            continue
        if (
            best < 0
            or visits > trees.edge_visits[row, best]
            or (visits == trees.edge_visits[row, best] and prior > trees.prior[row, best])
        ):
            best = action
    out.action[row] = best


# Files with functions that are compiled into the entry kernels below, besides this one.
COMPILED_MODULES = (compilation, network_kernel, randomness, tree_kernel)


def _sources_digest() -> str:
    """A fingerprint of those files."""
    digest = hashlib.sha256()
    for module in COMPILED_MODULES:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


class Leaves(NamedTuple):
    """Leaves waiting for an evaluation elsewhere, one per row."""

    parent: NDArray[np.int64]  # [R]
    edge: NDArray[np.int64]  # [R] action or code taken from the parent
    kind: NDArray[np.int64]  # [R] 0 under an action, 1 under a code, −1 nothing to evaluate
    node: NDArray[np.int64]  # [R] number the leaf will have


class Answers(NamedTuple):
    """What the model says about the leaves."""

    probabilities: NDArray[np.floating]  # [R, max(A, C)] of the leaf's edges
    value: NDArray[np.floating]  # [R]
    reward: NDArray[np.floating]  # [R]


class Kernels(NamedTuple):
    """The functions called from Python."""

    search_rows: Any  # a whole search
    start_rows: Any  # the same in steps, for a model that is evaluated elsewhere: make the roots,
    select_leaves: Any  # walk to a leaf in every row,
    attach_leaves: Any  # take in what the model says about them and back it up,
    report_rows: Any  # and read off the results
    copy_subtrees: Any  # the part of each tree below an outcome, as a tree of its own


def _build(sources: str) -> Kernels:
    """Define the entry kernels. `sources` becomes part of numba's cache key: by itself the cache notices changes in
    this file only, and would go on running yesterday's tree_kernel.py."""

    @compiled(entry=True)
    def search_rows(count, model, trees, scratch, memory, roots, inputs, options, out):
        _ = sources
        owed = 0
        for row in range(count):
            start_row(trees, row, roots, inputs, options)
            owed = max(owed, roots.simulations[row])
        waiting = memory.waiting
        for simulation in range(owed):
            waiting[0] = waiting[1] = 0
            for row in range(count):
                if simulation >= roots.simulations[row]:
                    continue
                parent, slot = select(trees, row, simulation, roots, memory.completed, options)
                child = np.int64(trees.child[row, slot])
                if child != 0:
                    visit_again(trees, row, child, memory, options)
                elif model.is_table:
                    expand_from_tables(trees, row, parent, slot, model, scratch, memory, options)
                else:
                    kind = np.int64(trees.depth[row, parent]) % 2
                    memory.group[kind, 0, waiting[kind]] = row
                    memory.group[kind, 1, waiting[kind]] = parent
                    memory.group[kind, 2, waiting[kind]] = slot
                    waiting[kind] += 1
            for kind in range(2):
                if waiting[kind] > 0:
                    expand_from_network(trees, kind, waiting[kind], model, scratch, memory, roots, options)
        for row in range(count):
            report_row(trees, row, roots, memory, options, out)

    @compiled(entry=True)
    def start_rows(count, trees, roots, inputs, options):
        _ = sources
        for row in range(count):
            start_row(trees, row, roots, inputs, options)

    @compiled(entry=True)
    def select_leaves(count, simulation, trees, memory, roots, options, leaves):
        _ = sources
        for row in range(count):
            leaves.kind[row] = -1
            if simulation >= roots.simulations[row]:
                continue
            parent, slot = select(trees, row, simulation, roots, memory.completed, options)
            child = np.int64(trees.child[row, slot])
            if child != 0:
                visit_again(trees, row, child, memory, options)
                continue
            leaves.parent[row] = parent
            leaves.edge[row] = slot - trees.first_edge[row, parent]
            leaves.kind[row] = trees.depth[row, parent] % 2
            leaves.node[row] = trees.size[row]

    @compiled(entry=True)
    def attach_leaves(count, trees, memory, options, leaves, answers):
        _ = sources
        for row in range(count):
            if leaves.kind[row] < 0:
                continue
            parent = leaves.parent[row]
            slot = trees.first_edge[row, parent] + leaves.edge[row]
            start = row * answers.probabilities.shape[1]
            logits = answers.probabilities.reshape(-1)
            value, reward = answers.value[row], answers.reward[row]
            attach(trees, row, parent, slot, value, reward, logits, start, memory.gains, options)

    @compiled(entry=True)
    def report_rows(count, trees, memory, roots, options, out):
        _ = sources
        for row in range(count):
            report_row(trees, row, roots, memory, options, out)

    @compiled(entry=True)
    def copy_subtrees(source, target, actions, codes, number, options):
        _ = sources
        for row in range(len(actions)):
            copy_subtree(source, target, row, actions[row], codes[row], number, options)

    return Kernels(search_rows, start_rows, select_leaves, attach_leaves, report_rows, copy_subtrees)


KERNELS = _build(_sources_digest())
