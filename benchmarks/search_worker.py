"""A process of its own for what the search is compared with, so that neither disturbs the other's threads.

Started by benchmarks/search.py, which talks to it in JSON lines: {"batch": B, "repeats": n} is answered by
{"seconds": [n timings of one search (mctx) or of one simulation's matrix products (blas)], ...}.

    python benchmarks/search_worker.py mctx WEIGHTS.npz     needs an interpreter with mctx and jax
    python benchmarks/search_worker.py blas WEIGHTS.npz     needs numpy only

It imports nothing of the project, because the interpreter that has mctx need not have the project.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SIMULATIONS = 50
DISCOUNT = 0.997


def roots(batch: int, latent: int, actions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same roots for everybody: latents [B, L], policy logits [B, A], values [B]."""
    rng = np.random.default_rng(batch)
    return (
        rng.random((batch, latent), dtype=np.float32),
        rng.standard_normal((batch, actions)).astype(np.float32),
        np.zeros(batch, np.float32),
    )


def mctx_searcher(w: dict[str, np.ndarray]) -> Callable[[int], list[Callable[[], Any]]]:
    """mctx.stochastic_muzero_policy with the network the project searches with (agent/search/weights.py)."""
    import jax
    import jax.numpy as jnp
    import mctx

    params = {name: jnp.asarray(array) for name, array in w.items()}

    def read(hidden, p, head, atoms):
        return jax.nn.softmax(hidden @ p[f"{head}_w"] + p[f"{head}_b"]) @ p[atoms]

    def block(x, p, name):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        normed = (x - mean) / jnp.sqrt(variance + 1e-5) * p[f"{name}_gain"] + p[f"{name}_bias"]
        hidden = jax.nn.relu(normed @ p[f"{name}_w1"] + p[f"{name}_b1"])
        out = x + hidden @ p[f"{name}_w2"] + p[f"{name}_b2"]
        low, high = out.min(-1, keepdims=True), out.max(-1, keepdims=True)
        return (out - low) / (high - low + 1e-5), hidden

    def decide(p, key, action, latent):
        after, _ = block(latent + p["action_embedding"][action], p, "phi")
        hidden = jax.nn.relu(after @ p["psi_w1"] + p["psi_b1"])
        logits = hidden @ p["chance_w"] + p["chance_b"]
        return mctx.DecisionRecurrentFnOutput(
            chance_logits=logits, afterstate_value=read(hidden, p, "q", "atoms")
        ), after

    def happen(p, key, code, after):
        state, block_hidden = block(after + p["code_embedding"][code], p, "g")
        hidden = jax.nn.relu(state @ p["f_w1"] + p["f_b1"])
        reward = read(block_hidden, p, "reward", "reward_atoms")
        output = mctx.ChanceRecurrentFnOutput(
            action_logits=hidden @ p["policy_w"] + p["policy_b"],
            value=read(hidden, p, "value", "atoms"),
            reward=reward,
            discount=jnp.full_like(reward, DISCOUNT),
        )
        return output, state

    @jax.jit
    def run(p, latents, logits, values):
        root = mctx.RootFnOutput(prior_logits=logits, value=values, embedding=latents)
        output = mctx.stochastic_muzero_policy(
            params=p,
            rng_key=jax.random.PRNGKey(0),
            root=root,
            decision_recurrent_fn=decide,
            chance_recurrent_fn=happen,
            num_simulations=SIMULATIONS,
            dirichlet_fraction=0.0,
        )
        # What a user needs; returning the tree as well would cost mctx a copy of it.
        return output.action, output.action_weights, output.search_tree.summary().value

    def prepare(batch: int) -> list[Callable[[], Any]]:
        latents, logits, values = roots(batch, w["phi_w1"].shape[0], w["policy_b"].shape[0])

        def search() -> Any:
            return [np.asarray(x) for x in jax.block_until_ready(run(params, latents, logits, values))]

        return [search]

    return prepare


def blas_multiplier(w: dict[str, np.ndarray], threads: int) -> Callable[[int], list[Callable[[], Any]]]:
    """Nothing but the matrix products one simulation of the whole batch needs, with half of the leaves under an
    action and half under a code (batch 1: one of each, which is two simulations)."""
    chance_heads = np.concatenate((w["chance_w"], w["q_w"]), axis=1)
    decision_heads = np.concatenate((w["policy_w"], w["value_w"]), axis=1)
    layers = [
        (w["phi_w1"], w["phi_w2"], w["psi_w1"], [chance_heads]),
        (w["g_w1"], w["g_w2"], w["f_w1"], [decision_heads, w["reward_w"]]),
    ]
    pool = ThreadPoolExecutor(threads)

    def prepare_parts(batch: int, parts: int) -> Callable[[], Any]:
        rows = max(1, batch // parts // 2)
        buffers = []
        for _ in range(parts):
            x = np.random.default_rng(0).random((rows, w["phi_w1"].shape[0]), dtype=np.float32)
            hidden, out = np.empty((rows, w["phi_w1"].shape[1]), np.float32), np.empty_like(x)
            heads = {m.shape[1]: np.empty((rows, m.shape[1]), np.float32) for *_, ms in layers for m in ms}
            buffers.append((x, hidden, out, heads))

        def repeated(part: int) -> None:
            x, hidden, out, heads = buffers[part]
            for _ in range(SIMULATIONS):
                for w1, w2, w3, head_matrices in layers:
                    np.matmul(x, w1, out=hidden)
                    np.matmul(hidden, w2, out=out)
                    np.matmul(out, w3, out=hidden)
                    for matrix in head_matrices:
                        np.matmul(hidden, matrix, out=heads[matrix.shape[1]])

        if parts == 1:
            return lambda: repeated(0)
        return lambda: list(pool.map(repeated, range(parts)))

    def prepare(batch: int) -> list[Callable[[], Any]]:
        """On one thread and on all of them; the faster of the two is the limit."""
        return [prepare_parts(batch, parts) for parts in sorted({1, max(1, min(threads, batch // 2))})]

    return prepare


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    kind, path = sys.argv[1], sys.argv[2]
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    weights = dict(np.load(path))
    prepare = mctx_searcher(weights) if kind == "mctx" else blas_multiplier(weights, threads)
    versions = {}
    if kind == "mctx":
        from importlib.metadata import version

        versions = {"mctx": version("mctx"), "jax": version("jax")}
    print(json.dumps({"ready": True, "versions": versions}), flush=True)
    ready: dict[int, list[Callable[[], Any]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        batch = request["batch"]
        if batch not in ready:
            ready[batch] = prepare(batch)
            for work in ready[batch] * 3:
                work()
        answer: dict[str, Any] = {"seconds": [min(map(seconds, ready[batch])) for _ in range(request["repeats"])]}
        if request.get("results"):
            _, action_weights, _ = ready[batch][0]()
            answer["action_weights"] = action_weights.tolist()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
