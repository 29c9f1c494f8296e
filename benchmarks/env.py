"""How fast an environment steps, beside gym-anytrading and Gym-Trading-Env on the same bars.

    python -m benchmarks.env [--quick] [--json] [--peers PYTHON]

The job: 10,000 generated hourly bars with 8 features, a window of 64 bars, random actions, resets included. The single
environments take turns, round by round, after a warm-up round each. The vector environment is measured for
B = 1, 16, 256, 1024 with fresh windows, with a reused buffer, and in index mode. Figures are medians over the rounds
with the smallest and the largest.

Peers are taken from this interpreter, or from the one given with --peers: Gym-Trading-Env pins an old ccxt, so a
virtual environment of its own is the usual place. A missing peer is reported as missing.

Where the time goes: `bound_...` splits a step of B = 1024 into the compiled step without windows, the copying of
windows, and the rest (Python: arrays, dictionaries, checks).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]

BARS, WINDOW, FEATURES = 10_000, 64, 8
BATCHES = (1, 16, 256, 1024)
MODES = ("window", "nocopy", "index")
LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
ROOT = Path(__file__).resolve().parents[1]
PEERS = {"gym-anytrading": "gym_anytrading", "gym-trading-env": "gym_trading_env"}

Steps = Callable[[int], None]  # play so many steps


# --- the job, the same for every environment ----------------------------------------------------------------------


def make_columns(seed: int = 1) -> dict[str, np.ndarray]:
    """A random walk of hourly bars with small gaps, volumes that dwarf a small account, and some features."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.005, BARS)))
    open_ = np.concatenate([close[:1], close[:-1]]) * np.exp(rng.normal(0.0, 0.0005, BARS))
    columns = {
        "open": open_,
        "high": np.maximum(open_, close) * np.exp(np.abs(rng.normal(0.0, 0.002, BARS))),
        "low": np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0.0, 0.002, BARS))),
        "close": close,
        "volume": rng.lognormal(12.0, 1.0, BARS),
    }
    table = np.clip(rng.standard_normal((BARS, FEATURES)), -5.0, 5.0).astype(np.float32)
    return columns | {f"feature_{i}": table[:, i] for i in range(FEATURES)}


# --- peers: run in their own process, asked over a pipe -----------------------------------------------------------


def _play(env: Any, actions: list[int]) -> Steps:
    """Step a Gymnasium environment through a cycle of actions, resetting where an episode ends."""
    env.reset(seed=0)
    step, reset, count = env.step, env.reset, len(actions)

    def play(steps: int) -> None:
        for k in range(steps):
            _, _, terminated, truncated, _ = step(actions[k % count])
            if terminated or truncated:
                reset()

    return play


def _random_actions(count: int, choices: int) -> list[int]:
    return [int(action) for action in np.random.default_rng(0).integers(0, choices, count)]


def gym_anytrading_steps() -> Steps:
    import pandas as pd
    from gym_anytrading.envs import StocksEnv

    columns = make_columns()
    frame = pd.DataFrame({name.title(): columns[name] for name in ("open", "high", "low", "close", "volume")})
    env = StocksEnv(df=frame, window_size=WINDOW, frame_bound=(WINDOW, BARS))
    return _play(env, _random_actions(4096, 2))


def gym_trading_env_steps() -> Steps:
    import pandas as pd
    from gym_trading_env.environments import TradingEnv

    frame = pd.DataFrame(make_columns())
    frame.index = pd.date_range("2020-01-01", periods=BARS, freq="h")
    env = TradingEnv(
        df=frame, positions=list(LEVELS), windows=WINDOW, trading_fees=0.0005, borrow_interest_rate=1e-6, verbose=0
    )
    return _play(env, _random_actions(4096, len(LEVELS)))


def serve_peers() -> None:
    """Answer requests on stdin, one JSON a line: {"peer", "steps"} -> {"seconds", "version"} or {"error"}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints must not reach the pipe
    jobs: dict[str, Steps] = {}
    makers = {"gym-anytrading": gym_anytrading_steps, "gym-trading-env": gym_trading_env_steps}
    for line in sys.stdin:
        request = json.loads(line)
        peer = request["peer"]
        try:
            if peer not in jobs:
                jobs[peer] = makers[peer]()
            start = time.perf_counter()
            jobs[peer](request["steps"])
            answer: Json = {"seconds": time.perf_counter() - start, "version": version(peer)}
        except Exception as error:  # noqa: BLE001 - a broken peer is a finding, not an end
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class PeerProcess:
    """The peers' interpreter, asked one job at a time."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(Path(__file__).resolve()), "--serve-peers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, peer: str, steps: int) -> Json:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"peer": peer, "steps": steps}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: Json = json.loads(line) if line else {"error": "the peers' process ended"}
        return answer

    def close(self) -> None:
        self._process.communicate()


# --- this project -----------------------------------------------------------------------------------------------------


def our_market() -> Any:
    """The same bars and features as a prepared market."""
    from data.features import ewma_volatility, trailing_median_volume
    from market_env.instrument import Instrument
    from market_env.market import Market

    columns = make_columns()
    prices = [columns[name] for name in ("open", "high", "low", "close", "volume")]
    statistics_ = [ewma_volatility(columns["close"]), trailing_median_volume(columns["volume"])]
    timestamp = 1_577_836_800_000 + 3_600_000 * np.arange(BARS, dtype=np.float64)
    return Market.from_arrays(
        np.stack([*prices, *statistics_, timestamp], axis=1),
        np.stack([columns[f"feature_{i}"] for i in range(FEATURES)], axis=1),
        instrument=Instrument(symbol="BTC/USDT", asset_class="crypto"),
        bar_ms=3_600_000,
        window=WINDOW,
        first_decision=WINDOW - 1,
    )


def our_steps(market: Any) -> Steps:
    from market_env.env import MarketEnv

    return _play(MarketEnv([market]), _random_actions(4096, len(LEVELS)))


def vector_steps(market: Any, batch: int, mode: str) -> Steps:
    from market_env.vector import MarketVectorEnv

    envs = MarketVectorEnv(
        [market], num_envs=batch, obs_mode="index" if mode == "index" else "window", copy=mode != "nocopy"
    )
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, len(LEVELS), (64, batch))

    def play(steps: int) -> None:
        for k in range(steps):
            envs.step(actions[k % 64])

    return play


def bounds(market: Any, batch: int) -> dict[str, Callable[[], None]]:
    """The parts of a vector step, alone: the compiled step without windows, and the copying of windows."""
    from market_env import kernel, rows
    from market_env.config import MarketConfig
    from market_env.layout import LANES, OUTCOME_FIELDS, at, new_blocks

    stack = rows.Stack.build([market], MarketConfig())
    blocks = new_blocks(batch)
    blocks[:, at.env_seed_low : at.env_seed_low + LANES] = np.arange(len(blocks) * LANES).reshape(-1, LANES)
    outcomes = np.zeros((len(OUTCOME_FIELDS), batch + 8))
    account = np.empty((batch, len(kernel.ACCOUNT_FEATURES)), dtype=np.float32)
    none = np.empty((batch, 0, FEATURES), dtype=np.float32)
    windows = np.empty((batch, WINDOW, FEATURES), dtype=np.float32)
    tables = (stack.tables, stack.bars, stack.features, stack.grid)
    rows.reset_blocks(blocks, batch, *tables, -1, -1, outcomes, account, none)
    actions = np.random.default_rng(0).integers(0, len(LEVELS), (64, batch))
    ends = np.random.default_rng(0).integers(WINDOW, BARS, batch)
    turn = iter(range(10**9))

    def compiled_step() -> None:
        rows.step_blocks(blocks, batch, *tables, actions[next(turn) % 64], outcomes, account, none)

    def gather() -> None:
        rows.gather_windows(stack.features, ends, windows)

    return {"compiled_step": compiled_step, "window_copy": gather}


# --- the run ------------------------------------------------------------------------------------------------------


def timed(play: Steps, steps: int) -> float:
    start = time.perf_counter()
    play(steps)
    return time.perf_counter() - start


def measure(*, quick: bool, peers: PeerProcess) -> tuple[dict[str, list[float]], dict[str, str], dict[str, str]]:
    """Steps per second of everything, round by round; versions of the peers; and why one is missing."""
    rounds, single_steps, env_steps = (3, 10_000, 100_000) if quick else (9, 50_000, 1_000_000)
    market = our_market()
    single = our_steps(market)
    vectors = {(batch, mode): vector_steps(market, batch, mode) for batch in BATCHES for mode in MODES}
    parts = bounds(market, BATCHES[-1])
    rates: dict[str, list[float]] = {}
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for turn in range(rounds + 1):
        sample: dict[str, float] = {"single_steps_per_s": single_steps / timed(single, single_steps)}
        for peer, name in PEERS.items():
            if peer in missing:
                continue
            answer = peers.ask(peer, single_steps)
            if "error" in answer:
                missing[peer] = answer["error"]
                continue
            found[peer] = answer["version"]
            sample[f"{name}_steps_per_s"] = single_steps / answer["seconds"]
        for (batch, mode), play in vectors.items():
            # Small batches are slow per environment step: they need fewer of them for the same time.
            calls = max(8, min(env_steps // batch, env_steps // 100))
            sample[f"vector_steps_per_s_B{batch}_{mode}"] = calls * batch / timed(play, calls)
        for name, part in parts.items():
            calls = env_steps // 4 // BATCHES[-1] + 1
            seconds = timed(lambda count, part=part: [part() for _ in range(count)] and None, calls)
            sample[f"bound_{name}_ns"] = seconds / calls / BATCHES[-1] * 1e9
        if turn:
            for name, value in sample.items():
                rates.setdefault(name, []).append(value)
    whole = f"vector_steps_per_s_B{BATCHES[-1]}_index"
    rates["bound_python_ns"] = [
        1e9 / rate - part for rate, part in zip(rates[whole], rates["bound_compiled_step_ns"], strict=True)
    ]
    return rates, found, missing


def entry(samples: list[float], unit: str) -> Json:
    return {"value": statistics.median(samples), "unit": unit, "low": min(samples), "high": max(samples)}


def own_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def benchmark(*, quick: bool, python: str) -> Json:
    peers = PeerProcess(python)
    try:
        rates, found, missing = measure(quick=quick, peers=peers)
    finally:
        peers.close()
    metrics = {
        name: entry(samples, "ns/env step" if name.endswith("_ns") else "steps/s") for name, samples in rates.items()
    }
    ours = metrics["single_steps_per_s"]["value"]
    ratios = {
        f"vs_{name}": ours / metrics[f"{name}_steps_per_s"]["value"]
        for name in PEERS.values()
        if f"{name}_steps_per_s" in metrics
    }
    packages = ("smu0", "numba", "numpy", "gymnasium")
    return {
        "benchmark": "env",
        "machine": {"platform": platform.platform(), "processor": processor(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: own_version(name) for name in packages} | found,
        "job": {"bars": BARS, "window": WINDOW, "features": FEATURES, "actions": len(LEVELS)},
        "metrics": metrics,
        "ratios": ratios,
        "missing": {PEERS[peer]: reason for peer, reason in missing.items()},
    }


def print_table(result: Json) -> None:
    machine, job = result["machine"], result["job"]
    print(f"{job['bars']:,} bars, window {job['window']}; {machine['processor']}, {machine['cpus']} cpus")
    print("  ".join(f"{name} {number}" for name, number in result["versions"].items()))
    for name, one in result["metrics"].items():
        print(f"{name:36} {one['value']:>14,.5g} {one['unit']:12} [{one['low']:,.5g} .. {one['high']:,.5g}]")
    for name, ratio in result["ratios"].items():
        print(f"{name:36} {ratio:>14,.2f} x")
    for name, reason in result["missing"].items():
        print(f"{name:36} missing: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds: about half a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--serve-peers", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_peers:
        serve_peers()
        return
    result = benchmark(quick=arguments.quick, python=arguments.peers)
    if arguments.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
