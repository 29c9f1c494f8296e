"""Writes search.json: known answers for the tree search, computed by mctx, an independent implementation.

Run with an interpreter that has mctx (`pip install mctx==0.0.71`); the project itself does not need it:

    python tests/golden/make_search_golden.py tests/golden/search.json

Each case is a small automaton in random tables (agent/search/tables.py, TableModel.from_strides) and what mctx makes
of it. `root: puct` is mctx's stochastic_muzero_policy without noise. mctx has no Gumbel policy with chance nodes;
`root: gumbel` puts one together from mctx's own parts: its Gumbel root and interior selection at decision nodes, its
chance selection at chance nodes, with the Gumbel noise written down in the case.
"""

import json
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from mctx._src import action_selection, policies, search, seq_halving

CASES = [
    {"seed": 11, "A": 2, "C": 1, "sims": 24, "discount": 0.99},
    {"seed": 12, "A": 3, "C": 4, "sims": 1, "discount": 0.9},
    {"seed": 13, "A": 5, "C": 8, "sims": 60, "discount": 0.97, "invalid_actions": [0, 1, 0, 0, 1]},
    {"seed": 14, "A": 9, "C": 32, "sims": 80, "discount": 1.0},
    {"seed": 15, "A": 3, "C": 2, "sims": 40, "discount": 0.95, "max_depth": 4},
    {"seed": 16, "A": 2, "C": 3, "sims": 32, "discount": 0.99, "root": "gumbel"},
    {"seed": 17, "A": 5, "C": 4, "sims": 50, "discount": 0.97, "root": "gumbel", "invalid_actions": [1, 0, 0, 0, 0]},
    {"seed": 18, "A": 9, "C": 8, "sims": 40, "discount": 0.9, "root": "gumbel", "max_considered": 4},
    {"seed": 19, "A": 4, "C": 2, "sims": 40, "discount": 0.95, "root": "gumbel", "max_depth": 3},
]
STATES, AFTERSTATES = 13, 17


def tables(rng, case):
    actions, codes = case["A"], case["C"]
    draw = {
        "PL": rng.standard_normal((STATES, actions)),
        "V": rng.standard_normal(STATES) * 0.5,
        "CL": rng.standard_normal((AFTERSTATES, codes)) * 1.5,
        "AV": rng.standard_normal(AFTERSTATES) * 0.5,
        "R": rng.standard_normal((AFTERSTATES, codes)) * 0.3,
    }
    # Rounded, so that the file is short and says exactly what was computed with.
    return {name: np.round(table, 3).astype(np.float32) for name, table in draw.items()}


def model_functions(case, t):
    actions, codes = case["A"], case["C"]

    def decide(params, key, action, state):
        after = ((state * actions + action) * 7) % AFTERSTATES
        return mctx.DecisionRecurrentFnOutput(chance_logits=t["CL"][after], afterstate_value=t["AV"][after]), after

    def happen(params, key, code, after):
        state = ((after * codes + code) * 11) % STATES
        reward = t["R"][after, code]
        discount = jnp.full_like(reward, case["discount"])
        output = mctx.ChanceRecurrentFnOutput(
            action_logits=t["PL"][state], value=t["V"][state], reward=reward, discount=discount
        )
        return output, state

    return decide, happen


def gumbel_policy(root, decide, happen, case, invalid, gumbel):
    """Gumbel MuZero over a tree with chance nodes."""
    actions, codes = case["A"], case["C"]
    logits = policies._mask_invalid_actions(root.prior_logits, invalid)
    _, after = decide((), None, jnp.zeros([1], jnp.int32), root.embedding)
    wide_root = root.replace(
        prior_logits=jnp.concatenate([logits, jnp.full([1, codes], -jnp.inf)], axis=-1),
        embedding=mctx._src.base.StochasticRecurrentState(
            state_embedding=root.embedding, afterstate_embedding=after, is_decision_node=jnp.ones([1], bool)
        ),
    )
    interior = policies._make_stochastic_action_selection_fn(
        action_selection.gumbel_muzero_interior_action_selection, actions
    )

    def at_root(key, tree, node):
        return action_selection.gumbel_muzero_root_action_selection(
            key,
            policies._mask_tree(tree, actions, "decision"),
            node,
            num_simulations=case["sims"],
            max_num_considered_actions=case["max_considered"],
        )

    tree = search.search(
        params=(),
        rng_key=jax.random.PRNGKey(0),
        root=wide_root,
        recurrent_fn=policies._make_stochastic_recurrent_fn(decide, happen, actions, codes),
        root_action_selection_fn=at_root,
        interior_action_selection_fn=interior,
        num_simulations=case["sims"],
        max_depth=case["max_depth"],
        invalid_actions=invalid,
        extra_data=action_selection.GumbelMuZeroExtraData(root_gumbel=gumbel),
    )
    tree = policies._mask_tree(tree, actions, "decision")
    visits = tree.summary().visit_counts
    completed = jax.vmap(mctx.qtransform_completed_by_mix_value, in_axes=[0, None])(tree, 0)
    scores = seq_halving.score_considered(visits.max(axis=-1, keepdims=True), gumbel, logits, completed, visits)
    action = action_selection.masked_argmax(scores, invalid)
    weights = jax.nn.softmax(policies._mask_invalid_actions(logits + completed, invalid))
    return mctx.PolicyOutput(action=action, action_weights=weights, search_tree=tree)


def node_list(tree, actions):
    nodes = []
    numbers = {0: 0}  # mctx leaves a gap for a simulation that met the depth limit
    for index in range(tree.node_visits.shape[1]):
        if int(tree.node_visits[0, index]) == 0:
            continue
        numbers.setdefault(index, len(numbers))
        parent = int(tree.parents[0, index])
        edge = int(tree.action_from_parent[0, index])
        decision = bool(tree.embeddings.is_decision_node[0, index])
        nodes.append(
            {
                "i": numbers[index],
                "parent": -1 if index == 0 else numbers[parent],
                "edge": None if index == 0 else (edge - actions if decision else edge),
                "kind": "decision" if decision else "chance",
                "visits": int(tree.node_visits[0, index]),
                "value": number(tree.node_values[0, index]),
                "raw_value": number(tree.raw_values[0, index]),
            }
        )
    return nodes


def number(x):
    return round(float(x), 7)


def solve(case):
    rng = np.random.default_rng(case["seed"])
    case = {"root": "puct", "invalid_actions": None, "max_depth": None, "max_considered": 16, **case}
    t = tables(rng, case)
    s0 = int(rng.integers(STATES))
    decide, happen = model_functions(case, {name: jnp.asarray(table) for name, table in t.items()})
    root = mctx.RootFnOutput(
        prior_logits=jnp.asarray(t["PL"][s0 : s0 + 1]),
        value=jnp.asarray(t["V"][s0 : s0 + 1]),
        embedding=jnp.array([s0]),
    )
    invalid = None if case["invalid_actions"] is None else jnp.array([case["invalid_actions"]])
    gumbel = None
    if case["root"] == "gumbel":
        gumbel = np.round(rng.gumbel(size=case["A"]), 3).astype(np.float32)
        none = jnp.zeros([1, case["A"]])
        output = gumbel_policy(
            root, decide, happen, case, none if invalid is None else invalid, jnp.asarray(gumbel)[None]
        )
    else:
        output = mctx.stochastic_muzero_policy(
            params=(),
            rng_key=jax.random.PRNGKey(0),
            root=root,
            decision_recurrent_fn=decide,
            chance_recurrent_fn=happen,
            num_simulations=case["sims"],
            invalid_actions=invalid,
            max_depth=case["max_depth"],
            dirichlet_fraction=0.0,
            temperature=0.0,
        )
    summary = output.search_tree.summary()
    return {
        **case,
        "S": STATES,
        "F": AFTERSTATES,
        "s0": s0,
        "gumbel": None if gumbel is None else [number(x) for x in gumbel],
        "tables": {
            name: [[number(x) for x in row] if np.ndim(row) else number(row) for row in table]
            for name, table in t.items()
        },
        "expected": {
            "root_visits": [int(x) for x in summary.visit_counts[0]],
            "action_weights": [number(x) for x in output.action_weights[0]],
            "root_value": number(summary.value[0]),
            "root_qvalues": [number(x) for x in summary.qvalues[0]],
            "greedy_action": int(output.action[0]),
            "nodes": node_list(output.search_tree, case["A"]),
        },
    }


def main(path):
    golden = {
        "generator": f"mctx {version('mctx')}, jax {version('jax')}, tests/golden/make_search_golden.py",
        "cases": [solve(case) for case in CASES],
    }
    with open(path, "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
