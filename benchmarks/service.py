"""How fast the service decides, and what it says when it is asked too much.

    python -m benchmarks.service [--quick] [--json] [--checkpoint DIR] [--simulations 50]

A real `python -m service serve` on the loopback, asked over keep-alive connections by clients in a third process
(`benchmarks.service_load`), so server and clients share the machine's cores. Every request brings its own 320 bars, out
of 16 different windows and three positions; the service remembers none of them. Without --checkpoint the model is the
default network with random weights: the time of a decision does not depend on what was learnt. Rounds of all numbers of
clients alternate after a warm-up; each figure is the median of the rounds with the smallest and the largest. At the end
1,000 clients ask at once, and the answers and the memory of the service are counted.
"""

import argparse
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from configs.version import code_version

Json = dict[str, Any]
CLIENTS = (1, 8, 64, 256)
CROWD = 1000
SIMULATIONS = 50
POSITIONS = (0.0, 0.5, 1.0)
ROOT = Path(__file__).resolve().parents[1]


def load(port: int, key: str, requests: Sequence[Json], *, connections: int, seconds: float) -> Json:
    """What `connections` clients got in `seconds`; see `benchmarks.service_load`."""
    order = {"port": port, "key": key, "bodies": requests, "connections": connections, "seconds": seconds}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.service_load"],
        cwd=ROOT, input=json.dumps(order), capture_output=True, text=True, check=True, timeout=seconds + 120,
    )  # fmt: skip
    result: Json = json.loads(done.stdout)
    return result


def resident_mb(pid: int) -> float:
    """Memory a process holds; Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used; Linux only."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def summary(values: Sequence[float], unit: str) -> Json:
    return {
        "value": round(float(np.median(values)), 3),
        "unit": unit,
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


# --- the service that is measured ------------------------------------------------------------------------------------


def random_checkpoint(root: Path) -> Path:
    """The default network on the default market, never trained."""
    import torch

    from agent.checkpoint import CheckpointMetadata, Counters, save_checkpoint
    from agent.networks.model import StochasticMuZero
    from configs.experiment import parse_experiment

    days = ("2013-01-01", "2014-01-01", "2015-01-01", "2016-01-01")
    experiment = parse_experiment(
        {
            "name": "random-weights",
            "data": {"source": "sample", "symbols": ["sp500"], "timeframe": "1d"},
            "splits": {"train": days[0:2], "validation": days[1:3], "test": days[2:4]},
        },
        "benchmark",
    )
    features = experiment.feature_set
    shapes = {"window": (experiment.market.observation.window, len(features.names)), "account": (8,)}
    actions = len(experiment.market.actions.levels)
    torch.manual_seed(0)
    model = StochasticMuZero(shapes, actions, experiment.agent.network)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    metadata = CheckpointMetadata(
        code_version=code_version(),
        agent=experiment.agent,
        observation_shapes=shapes,
        actions=actions,
        counters=Counters(),
        experiment=experiment.dump(),
        feature_fingerprint=features.fingerprint,
    )
    save_checkpoint(root, "best", model, metadata)
    return root / "best"


def bodies(checkpoint: Path, simulations: int, count: int = 16) -> list[Json]:
    """Requests for windows that end at different bars."""
    from agent.checkpoint import read_metadata
    from configs.experiment import parse_experiment
    from service.example import example_request

    experiment = parse_experiment(read_metadata(checkpoint).experiment, str(checkpoint))
    bars = experiment.load_bars()[0]
    now_ms = int(time.time() * 1000)
    return [
        example_request(
            experiment,
            bars.slice(0, len(bars) - 37 * i),
            now_ms=now_ms,
            position=POSITIONS[i % len(POSITIONS)],
            simulations=simulations,
        )
        for i in range(count)
    ]


def start_service(checkpoint: Path, key: str, state: str) -> tuple["subprocess.Popen[str]", int]:
    """A service on a free port, ready for requests."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--checkpoint", str(checkpoint)],
        cwd=ROOT, env={**os.environ, "SMU0_API_KEY": key, "SMU0_STATE": state},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving "):
            return process, int(line.rstrip().rsplit(":", 1)[1])
    raise RuntimeError("the service did not start; run python -m service serve to see why")


def wait_for(port: int, patience: float = 60.0) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def measure(checkpoint: Path, *, simulations: int, rounds: int, seconds: float) -> Json:
    key = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as state:
        process, port = start_service(checkpoint, key, state)
        try:
            wait_for(port)
            requests = bodies(checkpoint, simulations)
            for clients in CLIENTS:  # warm-up
                load(port, key, requests, connections=clients, seconds=seconds / 4)
            found: dict[int, list[Json]] = {clients: [] for clients in CLIENTS}
            spent = dict.fromkeys(CLIENTS, 0.0)
            for _ in range(rounds):
                for clients in CLIENTS:
                    before = cpu_seconds(process.pid)
                    found[clients].append(load(port, key, requests, connections=clients, seconds=seconds))
                    spent[clients] += cpu_seconds(process.pid) - before
            before_mb = resident_mb(process.pid)
            crowd = load(port, key, requests, connections=CROWD, seconds=2 * seconds)
            after_mb = resident_mb(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=20)
            if process.stdout is not None:
                process.stdout.close()
    metrics: Json = {
        "act_p50_ms": summary([result["latency_ms"]["p50"] for result in found[1]], "ms"),
        "act_p99_ms": summary([result["latency_ms"]["p99"] for result in found[1]], "ms"),
    }
    for clients, results in found.items():
        decisions = sum(result["decisions"] for result in results)
        metrics |= {
            f"decisions_per_s_c{clients}": summary([r["decisions"] / r["seconds"] for r in results], "1/s"),
            f"p50_ms_c{clients}": summary([r["latency_ms"]["p50"] for r in results], "ms"),
            f"p99_ms_c{clients}": summary([r["latency_ms"]["p99"] for r in results], "ms"),
            f"server_cpu_us_c{clients}": summary([spent[clients] / decisions * 1e6], "us"),
            f"refused_c{clients}": summary([float(r["answered"] - r["statuses"].get("200", 0)) for r in results], "1"),
        }
    for status in ("200", "429", "503"):
        metrics[f"crowd_{status}"] = summary([float(crowd["statuses"].pop(status, 0))], "1")
    broken = crowd["broken"] + crowd["without_retry_after"]
    metrics |= {
        "crowd_anything_else": summary([float(sum(crowd["statuses"].values()) + broken)], "1"),
        "crowd_decisions_per_s": summary([crowd["decisions"] / crowd["seconds"]], "1/s"),
        "crowd_p99_ms": summary([crowd["latency_ms"]["p99"]], "ms"),
        "rss_before_crowd_mb": summary([before_mb], "MB"),
        "rss_after_crowd_mb": summary([after_mb], "MB"),
    }
    return metrics


def print_table(metrics: Json) -> None:
    def cell(name: str) -> str:
        metric = metrics[name]
        return f"{metric['value']:.6g} ({metric['low']:.4g} to {metric['high']:.4g})"

    print(f"{'clients':>7}  {'decisions/s':26}  {'p50 ms':26}  {'p99 ms':26}  {'server CPU us':>13}  refused")
    for c in CLIENTS:
        columns = (cell(f"{name}_c{c}") for name in ("decisions_per_s", "p50_ms", "p99_ms"))
        print(
            f"{c:>7}  " + "  ".join(f"{column:26}" for column in columns)
            + f"  {metrics[f'server_cpu_us_c{c}']['value']:13.0f}  {metrics[f'refused_c{c}']['value']:.0f}"
        )  # fmt: skip
    codes = ", ".join(f"{metrics[f'crowd_{code}']['value']:.0f} × {code}" for code in ("200", "429", "503"))
    crowd = {name: metrics[name]["value"] for name in metrics if "crowd" in name}
    print(
        f"{CROWD} clients at once: {codes}, {crowd['crowd_anything_else']:.0f} of anything else; "
        f"{crowd['crowd_decisions_per_s']:.0f} decisions/s, p99 {crowd['crowd_p99_ms']:.0f} ms; memory "
        f"{crowd['rss_before_crowd_mb']:.0f} MB before, {crowd['rss_after_crowd_mb']:.0f} MB after"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of a minute; noisier")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--checkpoint", type=Path, help="default: the default network with random weights")
    parser.add_argument("--simulations", type=int, default=SIMULATIONS, help="search budget of every request")
    options = parser.parse_args()
    rounds, seconds = (3, 1.0) if options.quick else (5, 5.0)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = options.checkpoint or random_checkpoint(Path(directory))
        metrics = measure(checkpoint, simulations=options.simulations, rounds=rounds, seconds=seconds)
    result = {
        "benchmark": "service",
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "smu0": code_version(),
            **{name: version(name) for name in ("fastapi", "uvicorn", "torch", "numba", "numpy")},
        },
        "settings": {"simulations": options.simulations, "rounds": rounds, "seconds": seconds},
        "metrics": metrics,
        "ratios": {},
    }
    if options.json:
        print(json.dumps(result))
        return
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, clients on the same cores"
    print(f"{options.simulations} simulations, {machine}")
    print_table(metrics)


if __name__ == "__main__":
    main()
