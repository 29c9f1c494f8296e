"""How fast the learner is, and what its bound is.

    python -m benchmarks.learner [--batch 256] [--rounds 5] [--quick] [--json]

Three figures from one process with one thread, interleaved: a whole update (targets, losses, gradients, AdamW); the
matrix products of that update alone, in plain PyTorch, forward and backward, with the shapes a hook saw (the bound of
this network on this machine); and drawing the batch with its targets from a full replay.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from agent.config import AgentConfig
from agent.learner import Learner
from agent.networks.model import StochasticMuZero
from agent.replay import Record, Replay

Json = dict[str, Any]
SHAPES = {"window": (64, 8), "account": (8,)}  # a market's observation
ACTIONS, ROWS = 3, 64


def filled_replay(config: AgentConfig, rng: np.random.Generator) -> Replay:
    """A replay of random experience, full."""
    replay = Replay(
        config.replay,
        rows=ROWS,
        actions=ACTIONS,
        observations={name: (shape, np.dtype(np.float32)) for name, shape in SHAPES.items()},
        discount=config.discount,
    )
    for column in range(replay.columns + 1):
        replay.add(
            Record(
                observations={name: rng.normal(size=(ROWS, *s)).astype(np.float32) for name, s in SHAPES.items()},
                action=rng.integers(ACTIONS, size=ROWS),
                reward=rng.normal(size=ROWS).astype(np.float32),
                terminated=np.zeros(ROWS, bool),
                has_transition=np.full(ROWS, column % 256 != 255),
                action_mask=np.ones((ROWS, ACTIONS), bool),
                policy=np.full((ROWS, ACTIONS), 1.0 / ACTIONS, np.float32),
                root_value=rng.normal(size=ROWS).astype(np.float32),
                trust=np.ones(ROWS, np.float32),
            )
        )
    return replay


def products_of(model: StochasticMuZero, update: Callable[[], object]) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of every linear layer's call during one update."""
    seen: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        seen.append((inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    update()
    for hook in hooks:
        hook.remove()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds: to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = AgentConfig.model_validate(
        {"learner": {"batch_size": options.batch}, "replay": {"capacity_steps": 8_192, "n_step": 20, "td_lambda": 0.9}}
    )
    replay = filled_replay(config, rng)
    model = StochasticMuZero(SHAPES, ACTIONS, config.network)
    learner = Learner(model, config.learner, decode=lambda entries: entries, device=torch.device("cpu"))
    batch = replay.sample(options.batch, config.learner.unroll, rng)
    shapes = products_of(model, lambda: learner.update(batch))
    operands = [(torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)) for m, k, n in shapes]

    def products() -> None:
        for x, w, gradient in operands:
            _ = x @ w
            _ = gradient @ w.T
            _ = x.T @ gradient

    tasks: dict[str, Callable[[], object]] = {
        "update": lambda: learner.update(batch),
        "products": products,
        "sample": lambda: replay.sample(options.batch, config.learner.unroll, rng),
    }
    repeats, rounds = (5, 2) if options.quick else (30, options.rounds)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            for _ in range(repeats):
                task()
            times[name].append((time.perf_counter() - started) / repeats)
    update, bound, sample = (statistics.median(times[name]) for name in ("update", "products", "sample"))
    flops = sum(6 * m * k * n for m, k, n in shapes)
    output: Json = {
        "benchmark": "learner",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": version("torch")},
        "metrics": {
            "updates_per_s": _rates(times["update"]),
            "updates_per_s_bound": _rates(times["products"]),
            "gflops_per_update": {"value": flops / 1e9, "unit": "GFLOP", "low": None, "high": None},
        },
        "ratios": {"of_bound": bound / update, "sampling_share": sample / (sample + update)},
    }
    if options.json:
        print(json.dumps(output, indent=2))
        return
    print(f"{output['machine']}; batch {options.batch}, unroll {config.learner.unroll}, {len(shapes)} linear layers")
    for name in ("updates_per_s", "updates_per_s_bound"):
        metric = output["metrics"][name]
        print(f"  {name:22} {metric['value']:7.1f} ({metric['low']:.1f} to {metric['high']:.1f})")
    print(f"  of the bound           {output['ratios']['of_bound']:.0%}, {flops / 1e9:.2f} GFLOP an update")
    print(f"  sampling with targets  {output['ratios']['sampling_share']:.1%} of a step")


def _rates(seconds: list[float]) -> Json:
    return {
        "value": 1.0 / statistics.median(seconds),
        "unit": "1/s",
        "low": 1.0 / max(seconds),
        "high": 1.0 / min(seconds),
    }


if __name__ == "__main__":
    main()
