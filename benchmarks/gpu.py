"""What a GPU brings: learner steps per second in single and mixed precision, and the search with its network there.

    python -m benchmarks.gpu [--quick] [--json]          on a machine with a CUDA GPU
    python -m benchmarks.gpu --device cpu --quick        the same code without one: to see that it runs, not to compare

Learner: whole updates (transfer of the batch included) at batch sizes 256 to 4096, float32 against bfloat16 autocast,
interleaved. Search: 50 simulations for B roots, network on the device, each step a captured CUDA graph; beside it the
compiled search on this machine's processors. Warm-up is left out; medians with the lowest and highest.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.config import AgentConfig
from agent.learner import Learner
from agent.networks.model import StochasticMuZero
from agent.replay import Batch
from agent.search import SearchConfig, SearchEngine
from agent.search.torch_engine import TorchSearchEngine
from benchmarks.learner import ACTIONS, SHAPES, filled_replay

Json = dict[str, Any]
BATCHES, QUICK_BATCHES = (256, 512, 1024, 2048, 4096), (256,)
ROOTS, QUICK_ROOTS = (64, 256, 1024, 4096), (64,)
SIMULATIONS = 50
PRECISIONS = ("float32", "bfloat16")
NO_GPU = 3  # exit status


def learner_of(precision: str, batch_size: int, device: torch.device, *, compiled: bool) -> Learner:
    """A learner of the default network on a market's observation."""
    torch.manual_seed(0)
    config = AgentConfig.model_validate(
        {"learner": {"batch_size": batch_size, "precision": precision, "compile": compiled}}
    )
    model = StochasticMuZero(SHAPES, ACTIONS, config.network)
    return Learner(model, config.learner, decode=lambda entries: entries, device=device)


def rates(tasks: dict[str, Callable[[], object]], *, seconds: float, rounds: int, work: float) -> dict[str, Json]:
    """`work` per second of every task, measured in turns of some `seconds`. Each task must leave the device idle."""
    repeats = {}
    for name, task in tasks.items():
        for _ in range(3):
            task()
        started = time.perf_counter()
        task()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - started)))
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                task()
            found[name].append(work * repeats[name] / (time.perf_counter() - started))
    return {
        name: {"value": statistics.median(values), "unit": "1/s", "low": min(values), "high": max(values)}
        for name, values in found.items()
    }


def measure_learner(device: torch.device, batches: tuple[int, ...], *, rounds: int, compiled: bool) -> Json:
    """Updates per second by batch size and precision."""
    rng = np.random.default_rng(0)
    config = AgentConfig.model_validate({"replay": {"capacity_steps": 16_384}})
    replay = filled_replay(config, rng)
    metrics: Json = {}
    for size in batches:
        batch: Batch = replay.sample(size, config.learner.unroll, rng)
        tasks: dict[str, Callable[[], object]] = {}
        for precision in PRECISIONS:
            learner = learner_of(precision, size, device, compiled=compiled)
            tasks[precision] = lambda learner=learner, batch=batch: learner.update(batch)  # waits: it returns numbers
        for precision, metric in rates(tasks, seconds=0.5, rounds=rounds, work=1.0).items():
            metrics[f"updates_per_s_B{size}_{precision}"] = metric
    return metrics


def measure_search(device: torch.device, roots: tuple[int, ...], *, rounds: int) -> Json:
    """Simulations per second by number of roots, network on the device and on the processors."""
    torch.manual_seed(0)
    model = StochasticMuZero(SHAPES, ACTIONS, AgentConfig().network)
    weights = model.core.export()
    config = SearchConfig(simulations=SIMULATIONS)
    engines = {"device": TorchSearchEngine(config, weights, device=device), "compiled": SearchEngine(config, weights)}
    rng = np.random.default_rng(0)
    metrics: Json = {}
    for count in roots:
        latents = rng.random((count, weights.latent_size), dtype=np.float32)
        logits, values = np.zeros((count, ACTIONS), np.float32), np.zeros(count, np.float32)
        tasks: dict[str, Callable[[], object]] = {
            name: lambda engine=engine, args=(latents, logits, values): engine.search(*args)
            for name, engine in engines.items()
        }
        for name, metric in rates(tasks, seconds=0.5, rounds=rounds, work=float(count * SIMULATIONS)).items():
            metrics[f"sims_per_s_{name}_B{count}"] = metric
    return metrics


def train(device: str, *, minutes: float) -> Json:
    """One training run with the learner there: the regime market of benchmarks.learning, bfloat16."""
    from agent.train import RunSettings, Trainer
    from benchmarks.learning import CONFIG, SETTINGS, Verification, merged, score

    config = AgentConfig.model_validate(merged(CONFIG, {"learner": {"device": device, "precision": "bfloat16"}}))
    setting = SETTINGS["regime_base"]
    with tempfile.TemporaryDirectory() as directory:
        settings = RunSettings(directory=Path(directory), seed=0, code_version="benchmark", minutes=minutes)
        trainer = Trainer(config, Verification(setting), settings)
        trainer.run()

    def act(observations: Any) -> Any:
        search, _ = trainer.planner.plan({"observation": observations}, action_mask=None)
        return search.action.astype(np.int64)

    final = score(setting, act, 0)
    return {
        "training_score": {"value": final["score"], "unit": "1", "low": None, "high": None},
        "training_env_steps": {"value": trainer.actor.env_steps, "unit": "steps", "low": None, "high": None},
        "training_seconds": {"value": trainer.seconds, "unit": "s", "low": None, "high": None},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="learner.compile too: costs a minute per batch size")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the training run; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, two rounds, no training")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks.gpu: expected a CUDA GPU that torch can use, found none. Run it on a machine with one (and a "
            "torch built for it), or pass --device cpu --quick to see that the code runs",
            file=sys.stderr,
        )
        sys.exit(NO_GPU)
    device = torch.device(options.device)
    rounds = 2 if options.quick else options.rounds
    metrics = measure_learner(
        device, QUICK_BATCHES if options.quick else BATCHES, rounds=rounds, compiled=options.compile
    )
    metrics |= measure_search(device, QUICK_ROOTS if options.quick else ROOTS, rounds=rounds)
    if options.minutes and not options.quick:
        metrics |= train(options.device, minutes=options.minutes)
    name = torch.cuda.get_device_name(device) if options.device == "cuda" else "no GPU"
    output: Json = {
        "benchmark": "gpu",
        "machine": f"{name}; {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {"torch": version("torch"), "cuda": torch.version.cuda or "none", "numba": version("numba")},
        "metrics": metrics,
        "ratios": ratios(metrics),
    }
    if options.json:
        print(json.dumps(output, indent=2))
        return
    print(output["machine"])
    for key, metric in metrics.items():
        spread = "" if metric["low"] is None else f" ({metric['low']:,.4g} to {metric['high']:,.4g})"
        print(f"  {key:36} {metric['value']:12,.4g}{spread} {metric['unit']}")
    for key, value in output["ratios"].items():
        print(f"  {key:36} {value:12.2f}")


def ratios(metrics: Json) -> dict[str, float]:
    """bfloat16 over float32 by batch size, and the device's search over the compiled one by roots."""
    found = {}
    for key, metric in metrics.items():
        if key.endswith("_bfloat16"):
            single = metrics[key.replace("bfloat16", "float32")]
            found[f"bfloat16_vs_float32_{key.split('_')[3]}"] = metric["value"] / single["value"]
        if key.startswith("sims_per_s_device_"):
            found[f"device_vs_compiled_{key.rsplit('_', 1)[1]}"] = (
                metric["value"] / metrics[key.replace("device", "compiled")]["value"]
            )
    return found


if __name__ == "__main__":
    main()
