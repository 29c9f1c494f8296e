"""What each backbone weighs and costs.

    python -m benchmarks.backbones [--rounds 7] [--quick] [--json]

For three kinds of observation (a vector, a window, an image) and every backbone, with the default network sizes and
random weights: parameters; the time to represent one observation alone, and a row of a batch of 64; the time of a whole
decision alone, search included. One thread and its CPU time (what others do on the machine counts less than on the wall
clock), all combinations interleaved, medians with the range. Whatever the backbone, it runs once per decision and the
search behind it is the same, so its share of a decision is what differs.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, get_args

import numpy as np
import torch

from agent.config import NetworkConfig
from agent.networks.model import StochasticMuZero
from agent.networks.representation import Backbone
from agent.planner import Planner
from agent.search import SearchConfig

Json = dict[str, Any]
KINDS: dict[str, tuple[int, ...]] = {"vector": (4,), "window": (64, 8), "image": (3, 40, 60)}
ACTIONS, SIMULATIONS, BATCH = 3, 50, 64


class Measured:
    """One backbone on one kind of observation."""

    def __init__(self, backbone: Backbone, kind: str) -> None:
        torch.manual_seed(0)
        shape = KINDS[kind]
        self.model = StochasticMuZero({"observation": shape}, ACTIONS, NetworkConfig(backbone=backbone)).eval()
        self.planner = Planner(self.model, SearchConfig(simulations=SIMULATIONS, threads=1))
        self.observations = np.random.default_rng(0).random((BATCH, *shape), dtype=np.float32)
        self.name = f"{backbone}_{kind}"
        self.seconds: dict[str, list[float]] = {"decision": [], "representation": [], "representation_row_of_64": []}

    def parameters(self, part: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    def measure(self, repeats: int) -> None:
        """One round: mean times of `repeats` calls."""
        alone, batch = ({"observation": self.observations[:rows]} for rows in (1, BATCH))

        def plan(rows: dict[str, Any], simulations: int | None, row_by_row: bool) -> Callable[[], object]:
            return lambda: self.planner.plan(rows, action_mask=None, simulations=simulations, row_by_row=row_by_row)

        # With no simulations a plan is the representation, the prediction and what every call costs.
        self.seconds["decision"].append(_mean_time(plan(alone, None, True), repeats))
        self.seconds["representation"].append(_mean_time(plan(alone, 0, True), repeats))
        self.seconds["representation_row_of_64"].append(_mean_time(plan(batch, 0, False), repeats // 4 + 1) / BATCH)


def _mean_time(call: Callable[[], object], repeats: int) -> float:
    call()
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two short rounds: to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    combinations = [Measured(backbone, kind) for kind in KINDS for backbone in get_args(Backbone)]
    for _ in range(2 if options.quick else options.rounds):
        for one in combinations:
            one.measure(2 if options.quick else 20)
    metrics: Json = {}
    for one in combinations:
        whole, reader = one.parameters(one.model), one.parameters(one.model.representation)
        metrics[f"parameters_{one.name}"] = {"value": whole, "unit": "1", "low": whole, "high": whole}
        metrics[f"representation_parameters_{one.name}"] = {"value": reader, "unit": "1", "low": reader, "high": reader}
        for name, seconds in one.seconds.items():
            ms = [1e3 * value for value in seconds]
            spread = {"low": min(ms), "high": max(ms)}
            metrics[f"{name}_ms_{one.name}"] = {"value": statistics.median(ms), "unit": "ms", **spread}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    versions = {name: version(name) for name in ("torch", "numba", "numpy")}
    if options.json:
        result = {"benchmark": "backbones", "machine": machine, "versions": versions, "metrics": metrics, "ratios": {}}
        print(json.dumps(result, indent=2))
        return
    print(f"{machine}; " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"{SIMULATIONS} simulations, {ACTIONS} actions, one thread; ms of CPU time as median (lowest to highest)\n")
    print("| observation | backbone | parameters | of these h | h alone, ms | h, row of 64, ms | decision alone, ms |")
    print("|---|---|---|---|---|---|---|")
    for one in combinations:
        backbone, kind = one.name.rsplit("_", 1)
        times = [metrics[f"{n}_ms_{one.name}"] for n in ("representation", "representation_row_of_64", "decision")]
        cells = [f"{m['value']:.3f} ({m['low']:.3f} to {m['high']:.3f})" for m in times]
        counts = [f"{metrics[f'{n}_{one.name}']['value']:,}" for n in ("parameters", "representation_parameters")]
        print(f"| {kind} {list(KINDS[kind])} | {backbone} | " + " | ".join([*counts, *cells]) + " |")


if __name__ == "__main__":
    main()
