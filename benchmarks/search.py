"""How fast the tree search is, beside mctx and beside what its matrix products alone would cost.

    python -m benchmarks.search [--quick] [--json] [--peer-python PATH] [--threads 2]

Shapes of the design: 50 simulations, 3 actions, 32 codes, latent 128, hidden 256, 51 atoms; the same random weights
and roots for everybody. Rounds of the engine, of mctx and of the bare matrix products (BLAS) alternate; compiling and
warm-up are left out; each figure is the median over the rounds with the smallest and the largest. mctx runs in a
process of its own, under the interpreter --peer-python or $SMU0_PEER_PYTHON names, else under this one; where it is not
installed it is reported as missing (`pip install mctx jax`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from agent.search import CoreWeights, SearchConfig, SearchEngine, TableModel
from agent.search.compilation import compiled
from agent.search.engine import GROUP_ROWS
from agent.search.network_kernel import aligned, allocate_scratch, evaluate, expectation, pack, padded, softmax
from benchmarks.search_worker import DISCOUNT, SIMULATIONS, roots

BATCHES = (1, 8, 64, 256)
GPU_BATCHES = (64, 256, 1024, 4096)
ACTIONS, CODES, LATENT, HIDDEN, ATOMS = 3, 32, 128, 256, 51
Json = dict[str, Any]


class Figures:
    """Metrics by name, each a median with the smallest and largest round."""

    def __init__(self) -> None:
        self.metrics: dict[str, Json] = {}
        self.ratios: dict[str, float] = {}

    def add(self, name: str, values: list[float], unit: str) -> None:
        self.metrics[name] = {
            "value": statistics.median(values),
            "unit": unit,
            "low": min(values),
            "high": max(values),
        }

    def value(self, name: str) -> float:
        return float(self.metrics[name]["value"])


class Worker:
    """A benchmarks/search_worker.py at the other end of a pipe."""

    def __init__(self, python: str, kind: str, weights: Path, threads: int) -> None:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if kind == "blas":  # its threads are ours: one BLAS thread in each
            environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        else:
            environment = {k: v for k, v in environment.items() if k not in {"OMP_NUM_THREADS", "PYTHONPATH"}}
        script = Path(__file__).with_name("search_worker.py")
        self._process = subprocess.Popen(
            [python, str(script), kind, str(weights), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            error = self._process.stderr.read() if self._process.stderr else ""
            raise RuntimeError(error.strip().splitlines()[-1] if error.strip() else "no answer")
        self.versions: dict[str, str] = json.loads(line)["versions"]

    def ask(self, batch: int, repeats: int, *, results: bool = False) -> Json:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"batch": batch, "repeats": repeats, "results": results}) + "\n")
        self._process.stdin.flush()
        answer: Json = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def repeats_for(batch: int, *, quick: bool) -> int:
    """Searches per round: about a tenth of a second of them, half that when quick."""
    return max(2, int((0.05 if quick else 0.1) * 200_000 / (SIMULATIONS * batch)))


def compare(figures: Figures, weights: CoreWeights, arguments: argparse.Namespace) -> Json:
    """Engine, mctx and BLAS in turn, at every batch size."""
    config = SearchConfig(simulations=SIMULATIONS, discount=DISCOUNT, threads=arguments.threads)
    engine = SearchEngine(config, weights)
    rounds = 5 if arguments.quick else 15
    notes: Json = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **asdict(weights))
        blas = Worker(sys.executable, "blas", path, arguments.threads)
        try:
            peer = Worker(arguments.peer_python, "mctx", path, arguments.threads)
            notes |= peer.versions
        except (RuntimeError, OSError) as error:
            peer = None
            notes["mctx"] = f"missing ({error}); pip install mctx jax, or --peer-python PATH"
        for batch in BATCHES:
            inputs = roots(batch, LATENT, ACTIONS)
            repeats = repeats_for(batch, quick=arguments.quick)
            ours: list[float] = []
            theirs: list[float] = []
            limit: list[float] = []
            timed(lambda inputs=inputs: engine.search(*inputs), 3)
            blas.ask(batch, 1)
            if peer:
                peer.ask(batch, 1)
            for _ in range(rounds):
                ours += [statistics.median(timed(lambda inputs=inputs: engine.search(*inputs), repeats))]
                limit += [statistics.median(blas.ask(batch, repeats)["seconds"])]
                if peer:
                    theirs += [statistics.median(peer.ask(batch, max(1, repeats // 4))["seconds"])]
            figures.add(f"sims_per_s_B{batch}", [batch * SIMULATIONS / s for s in ours], "1/s")
            # At batch 1 the worker multiplies for one leaf of each kind, which is two simulations.
            counted = max(batch, 2) * SIMULATIONS
            figures.add(f"blas_limit_sims_per_s_B{batch}", [counted / s for s in limit], "1/s")
            figures.ratios[f"of_blas_limit_B{batch}"] = figures.value(f"sims_per_s_B{batch}") / figures.value(
                f"blas_limit_sims_per_s_B{batch}"
            )
            if peer:
                figures.add(f"mctx_sims_per_s_B{batch}", [batch * SIMULATIONS / s for s in theirs], "1/s")
                figures.ratios[f"vs_mctx_B{batch}"] = figures.value(f"sims_per_s_B{batch}") / figures.value(
                    f"mctx_sims_per_s_B{batch}"
                )
                found = np.array(peer.ask(batch, 0, results=True)["action_weights"])
                same = np.abs(engine.search(*inputs).action_weights - found).max(axis=1) < 1e-6
                figures.add(f"same_visits_as_mctx_B{batch}", [float(same.mean())], "share of roots")
        blas.close()
        if peer:
            peer.close()
    return notes


@compiled()
def evaluate_often(kind, rows, edges, params, layout, shape, scratch, repeats):  # type: ignore[no-untyped-def]
    """The network's part of `repeats` simulations of one group, heads decoded."""
    width = padded(aligned(edges) + shape.atoms)
    for _ in range(repeats):
        evaluate(kind, rows, edges, params, layout, shape, scratch)
        for row in range(rows):
            start = row * width
            softmax(scratch.heads, start, aligned(edges), scratch.bits, scratch.powers)
            at = start + aligned(edges)
            expectation(scratch.heads, at, shape.atoms, params, layout[kind, 13], scratch.bits, scratch.powers)
            if kind == 1:
                at = row * shape.reward_width
                expectation(scratch.reward, at, shape.atoms, params, layout[kind, 14], scratch.bits, scratch.powers)


def break_down(figures: Figures, weights: CoreWeights, *, quick: bool) -> None:
    """Where the time of a simulation goes, on one thread.

    export: a search of no simulations: arguments checked, roots made, results written. tree: a search in tables of
    the same sizes instead of a network, less export. core: the rest. core_alone: as a check on `core`, the network
    by itself in groups as large as the search's; inside a search its weights stay warmer.
    """
    engine = SearchEngine(SearchConfig(simulations=SIMULATIONS, discount=DISCOUNT, threads=1), weights)
    rng = np.random.default_rng(0)
    tables = TableModel.from_strides(
        policy_logits=rng.standard_normal((101, ACTIONS)),
        values=rng.standard_normal(101),
        chance_logits=rng.standard_normal((103, CODES)),
        afterstate_values=rng.standard_normal(103),
        rewards=rng.standard_normal((103, CODES)),
    )
    table_engine = SearchEngine(engine.config, tables)
    params, layout, shape = pack(weights, np.float32)
    for batch in BATCHES:
        inputs = roots(batch, LATENT, ACTIONS)
        table_inputs = tables.roots(rng.integers(101, size=batch))
        rows = max(1, min(batch, GROUP_ROWS) // 2)
        scratch = allocate_scratch(shape, rows, np.float32)
        repeats = repeats_for(batch, quick=quick)

        def core(rows: int = rows, scratch: Any = scratch) -> None:
            evaluate_often(0, rows, CODES, params, layout, shape, scratch, SIMULATIONS)
            evaluate_often(1, rows, ACTIONS, params, layout, shape, scratch, SIMULATIONS)

        parts: dict[str, tuple[Callable[[], Any], int]] = {
            "total": (lambda inputs=inputs: engine.search(*inputs), batch * SIMULATIONS),
            "core_alone": (core, 2 * rows * SIMULATIONS),
            "export": (lambda inputs=inputs: engine.search(*inputs, simulations=0), batch * SIMULATIONS),
            "tables": (lambda inputs=table_inputs: table_engine.search(*inputs), batch * SIMULATIONS),
        }
        samples: dict[str, list[float]] = {name: [] for name in parts}
        for work, _ in parts.values():
            timed(work, 2)
        for _ in range(5 if quick else 15):
            for name, (work, count) in parts.items():
                samples[name].append(statistics.median(timed(work, max(2, repeats // 2))) / count * 1e6)
        for name, values in samples.items():
            figures.add(f"us_per_sim_{name}_B{batch}", values, "µs")
        measured = {name: figures.value(f"us_per_sim_{name}_B{batch}") for name in ("total", "export", "tables")}
        figures.add(f"us_per_sim_tree_B{batch}", [measured["tables"] - measured["export"]], "µs")
        figures.add(f"us_per_sim_core_B{batch}", [measured["total"] - measured["tables"]], "µs")


_COLD = """
import time
start = time.perf_counter()
from agent.search import CoreWeights, SearchConfig, SearchEngine
engine = SearchEngine(SearchConfig(), CoreWeights.random(0, actions=3, codes=32))
ready = time.perf_counter()
engine.warm_up()
print(ready - start, time.perf_counter() - ready)
"""


def cold_start(figures: Figures, *, quick: bool) -> None:
    """A new process: seconds of the imports, and of the first search with and without compiled code on disk."""

    def first_search(environment: dict[str, str]) -> list[float]:
        run = subprocess.run(
            [sys.executable, "-c", _COLD],
            env={**os.environ, **environment},
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        return [float(number) for number in run.stdout.split()]

    with_cache = [first_search({}) for _ in range(2 if quick else 5)]
    figures.add("import_s", [imports for imports, _ in with_cache], "s")
    figures.add("cold_start_s", [first for _, first in with_cache], "s")
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            figures.add("cold_start_without_cache_s", [first_search({"NUMBA_CACHE_DIR": folder})[1]], "s")


def soak(figures: Figures) -> None:
    """Growth of the resident memory over 100 000 searches."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    engine = SearchEngine(SearchConfig(simulations=4, threads=1), CoreWeights.random(0, actions=3, codes=4, latent=16))
    inputs = roots(2, 16, 3)

    def resident_mib() -> float:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    timed(lambda: engine.search(*inputs), 5_000)
    before = resident_mib()
    timed(lambda: engine.search(*inputs), 100_000)
    figures.add("rss_growth_100k_searches_mib", [resident_mib() - before], "MiB")


def gpu(figures: Figures, weights: CoreWeights, *, quick: bool) -> str:
    """The torch path, where there is a CUDA device. Returns what device that was."""
    import torch

    from agent.search.torch_engine import TorchSearchEngine

    if not torch.cuda.is_available():
        return "none: the torch path was not timed"
    engine = TorchSearchEngine(SearchConfig(simulations=SIMULATIONS, discount=DISCOUNT), weights)
    for batch in GPU_BATCHES:
        inputs = roots(batch, LATENT, ACTIONS)
        timed(lambda inputs=inputs: engine.search(*inputs), 3)
        seconds = timed(lambda inputs=inputs: engine.search(*inputs), 5 if quick else 20)
        figures.add(f"torch_sims_per_s_B{batch}", [batch * SIMULATIONS / s for s in seconds], "1/s")
    return str(torch.cuda.get_device_name())


def machine(threads: int) -> Json:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "cpu": cpu,
        "cores": cores,
        "threads": threads,
        "load_before": round(load, 2),
        "system": platform.platform(),
    }


def print_tables(report: Json) -> None:
    metrics, ratios = report["metrics"], report["ratios"]

    def thousands(name: str) -> str:
        if name not in metrics:
            return "missing"
        m = metrics[name]
        return f"{m['value'] / 1e3:.0f}k ({m['low'] / 1e3:.0f}–{m['high'] / 1e3:.0f})"

    print(f"{report['machine']}\n{report['versions']}\n")
    print(f"{'simulations/s':>6}  {'this engine':>20}  {'mctx':>20}  {'ratio':>6}  {'BLAS limit':>20}  {'of it':>6}")
    for b in BATCHES:
        ratio = ratios.get(f"vs_mctx_B{b}")
        print(
            f"B={b:<11}  {thousands(f'sims_per_s_B{b}'):>20}  {thousands(f'mctx_sims_per_s_B{b}'):>20}  "
            f"{f'{ratio:.1f}×' if ratio else '–':>6}  {thousands(f'blas_limit_sims_per_s_B{b}'):>20}  "
            f"{ratios[f'of_blas_limit_B{b}']:>6.0%}"
        )
    print(f"\n{'µs per simulation, one thread':<32}" + "".join(f"{f'B={b}':>9}" for b in BATCHES))
    for part in ("core", "tree", "export", "total", "core_alone"):
        cells = "".join(f"{metrics[f'us_per_sim_{part}_B{b}']['value']:>9.2f}" for b in BATCHES)
        print(f"{part:<32}{cells}")
    print()
    for name, m in metrics.items():
        if not name.startswith(("sims_", "mctx_", "blas_", "us_per")):
            print(f"{name}: {m['value']:.3g} {m['unit']} ({m['low']:.3g}–{m['high']:.3g})")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; no empty-cache start, no soak")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2, help="threads of the engine (default 2)")
    parser.add_argument(
        "--peer-python",
        default=os.environ.get("SMU0_PEER_PYTHON", sys.executable),
        help="interpreter that has mctx and jax (default $SMU0_PEER_PYTHON, else this one)",
    )
    arguments = parser.parse_args()

    before = machine(arguments.threads)
    weights = CoreWeights.random(0, actions=ACTIONS, codes=CODES, latent=LATENT, hidden=HIDDEN, atoms=ATOMS)
    figures = Figures()
    peer_versions = compare(figures, weights, arguments)
    break_down(figures, weights, quick=arguments.quick)
    cold_start(figures, quick=arguments.quick)
    if not arguments.quick:
        soak(figures)
    device = gpu(figures, weights, quick=arguments.quick)
    report = {
        "benchmark": "search",
        "machine": {**before, "gpu": device},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "numba", "torch")},
            **peer_versions,
        },
        "metrics": figures.metrics,
        "ratios": figures.ratios,
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print_tables(report)


if __name__ == "__main__":
    main()
