"""How fast the service decides: latency of one client, throughput of 64.

    python -m benchmarks.service [--quick] [--json] [--checkpoint DIR] [--simulations 50]

A real `python -m service serve` on the loopback, asked over keep-alive connections by a bare HTTP client in this
process, so client and server share the machine. Without --checkpoint the model is the default network with random
weights: the time of a decision does not depend on what was learnt. Rounds of both kinds alternate after a warm-up;
each figure is the median of the rounds with the smallest and the largest.
"""

import argparse
import asyncio
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
CONCURRENCY = 64
SIMULATIONS = 50
ROOT = Path(__file__).resolve().parents[1]


# --- a bare HTTP/1.1 client ------------------------------------------------------------------------------------------


def request_bytes(body: Json, key: str) -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def content_length(head: bytes) -> int:
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"expected 200, found {head[:60]!r}")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise RuntimeError("a response without content-length")


def ask(connection: socket.socket, request: bytes) -> bytes:
    """One request and the body of its response, over an open connection."""
    connection.sendall(request)
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += connection.recv(65536)
    total = end + 4 + content_length(received[:end])
    while len(received) < total:
        received += connection.recv(65536)
    return received[end + 4 :]


async def keep_asking(port: int, requests: Sequence[bytes], first: int, until: float) -> int:
    """Ask one request after the other until a time is reached. Returns how many were answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    while time.perf_counter() < until:
        writer.write(requests[(first + answered) % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(content_length(head))
        answered += 1
    writer.close()
    return answered


# --- rounds ----------------------------------------------------------------------------------------------------------


def latency_round(port: int, requests: Sequence[bytes], count: int) -> tuple[float, float]:
    """p50 and p99 in milliseconds of one client asking `count` times."""
    seconds = np.empty(count)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(count):
            begin = time.perf_counter()
            ask(connection, requests[i % len(requests)])
            seconds[i] = time.perf_counter() - begin
    p50, p99 = np.percentile(seconds * 1e3, [50, 99])
    return float(p50), float(p99)


def throughput_round(port: int, requests: Sequence[bytes], seconds: float) -> float:
    """Decisions per second of 64 clients asking at once."""

    async def main() -> float:
        begin = time.perf_counter()
        clients = (keep_asking(port, requests, i, begin + seconds) for i in range(CONCURRENCY))
        answered = sum(await asyncio.gather(*clients))
        return answered / (time.perf_counter() - begin)

    return asyncio.run(main())


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
            experiment, bars.slice(0, len(bars) - 37 * i), now_ms=now_ms, position=0.0, simulations=simulations
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


def measure(checkpoint: Path, *, simulations: int, rounds: int, count: int, seconds: float) -> Json:
    key = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as state:
        process, port = start_service(checkpoint, key, state)
        try:
            wait_for(port)
            requests = [request_bytes(body, key) for body in bodies(checkpoint, simulations)]
            latency_round(port, requests, max(50, count // 5))  # warm-up
            throughput_round(port, requests, seconds / 4)
            latencies, rates = [], []
            for _ in range(rounds):
                latencies.append(latency_round(port, requests, count))
                rates.append(throughput_round(port, requests, seconds))
        finally:
            process.terminate()
            process.wait(timeout=20)
            if process.stdout is not None:
                process.stdout.close()
    return {
        "act_p50_ms": summary([p50 for p50, _ in latencies], "ms"),
        "act_p99_ms": summary([p99 for _, p99 in latencies], "ms"),
        f"decisions_per_s_c{CONCURRENCY}": summary(rates, "1/s"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of a minute; noisier")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--checkpoint", type=Path, help="default: the default network with random weights")
    parser.add_argument("--simulations", type=int, default=SIMULATIONS, help="search budget of every request")
    options = parser.parse_args()
    rounds, count, seconds = (3, 200, 1.0) if options.quick else (5, 1000, 5.0)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = options.checkpoint or random_checkpoint(Path(directory))
        metrics = measure(checkpoint, simulations=options.simulations, rounds=rounds, count=count, seconds=seconds)
    result = {
        "benchmark": "service",
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "smu0": code_version(),
            **{name: version(name) for name in ("fastapi", "uvicorn", "torch", "numba", "numpy")},
        },
        "settings": {"simulations": options.simulations, "rounds": rounds, "requests": count, "seconds": seconds},
        "metrics": metrics,
        "ratios": {},
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.simulations} simulations, {os.cpu_count()} cores, client on the same machine")
    for name, metric in metrics.items():
        print(f"{name:22} {metric['value']:10} {metric['unit']:4} ({metric['low']} to {metric['high']})")


if __name__ == "__main__":
    main()
