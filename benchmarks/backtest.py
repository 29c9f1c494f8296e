"""How fast a backtest is, and whether independent engines keep the same books.

    python -m benchmarks.backtest [--quick] [--json] [--peers PYTHON]

The job: a 50/200 moving-average cross on generated minute bars, fills at the next open, 0.1% fees. Signals are
computed once beforehand; what is timed is the trading, up to an array with the equity at every bar. Engines take
turns, after a warm-up round each; figures are medians with the smallest and the largest.

Peers (vectorbt, backtesting.py) are taken from this interpreter, or from the one given with --peers: they pin other
versions of common packages, so a virtual environment of their own is the usual place. A missing peer is reported as
missing.

Agreement: equity at every bar of 100k bars against vectorbt (five ways of sizing) and backtesting.py (whole units),
as largest relative difference.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Json = dict[str, Any]

FEE = 0.001
CASH = 10_000.0
ROOT = Path(__file__).resolve().parents[1]
PEERS = ("vectorbt", "backtesting")
NAMES = {"vectorbt": "vectorbt", "backtesting": "backtesting_py"}

# name -> (position while fast > slow, position otherwise, sizing, re-target every bar)
CASES: dict[str, tuple[float, float, str, bool]] = {
    "unit_long_flat": (1.0, 0.0, "units", False),
    "unit_long_short": (1.0, -1.0, "units", False),
    "all_in": (1.0, 0.0, "all_in", False),
    "half_on_flips": (0.5, -0.5, "exposure", False),
    "half_every_bar": (0.5, -0.5, "exposure", True),
}
TIMED_CASE = "unit_long_flat"
# Seconds of a peer's last run before equity was derived from its orders, where that is a step of its own.
CORE_SECONDS: dict[str, float] = {}


# --- the job, the same for every engine
# ---------------------------------------------------------------------------------


def make_prices(rows: int, seed: int = 1) -> dict[str, Floats]:
    """A random walk of minute bars with small overnight gaps."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.0005, rows)))
    open_ = np.concatenate([close[:1], close[:-1]]) * np.exp(rng.normal(0.0, 0.0001, rows))
    return {
        "open": open_,
        "high": np.maximum(open_, close) * 1.0002,
        "low": np.minimum(open_, close) * 0.9998,
        "close": close,
        "volume": rng.lognormal(8.0, 1.0, rows),
    }


def positions(close: Floats, above: float, below: float) -> Floats:
    """[N] position decided at each close; flat until the slow average exists."""

    def average(window: int) -> Floats:
        total = np.cumsum(np.insert(close, 0, 0.0))
        result = np.full(len(close), np.nan)
        result[window - 1 :] = (total[window:] - total[:-window]) / window
        return result

    with np.errstate(invalid="ignore"):
        position = np.where(average(50) > average(200), above, below)
    position[:199] = 0.0
    return position


def flips(position: Floats) -> Floats:
    """[N] the position where it changes, NaN elsewhere."""
    return np.where(position != np.concatenate([[0.0], position[:-1]]), position, np.nan)


def later(values: Floats) -> Floats:
    """[N] decided at t, executed at t + 1."""
    return np.concatenate([[np.nan], values[:-1]])


# --- peers: run in their own process, asked over a pipe
# -----------------------------------------------------------------


def vectorbt_equity(prices: dict[str, Floats], case: str) -> Callable[[], Floats]:
    import vectorbt as vbt

    above, below, sizing, every_bar = CASES[case]
    position = positions(prices["close"], above, below)
    wanted = later(position if every_bar else flips(position))
    common = {"price": prices["open"], "fees": FEE, "init_cash": CASH}
    if sizing == "units":
        extra = {"size": wanted, "size_type": "targetamount", "direction": "both"}
    elif sizing == "all_in":
        size = np.where(wanted == 1.0, np.inf, np.where(wanted == 0.0, -np.inf, np.nan))
        extra = {"size": size, "size_type": "amount", "direction": "longonly"}
    else:
        # The quantity is fixed on the close that decided it: value the account there.
        valued = np.concatenate([prices["close"][:1], prices["close"][:-1]])
        extra = {"size": wanted, "size_type": "targetpercent", "direction": "both", "val_price": valued}

    def run() -> Floats:
        start = time.perf_counter()
        portfolio = vbt.Portfolio.from_orders(prices["close"], **common, **extra)
        CORE_SECONDS["vectorbt"] = time.perf_counter() - start
        return np.asarray(portfolio.value(), dtype=np.float64).ravel()

    return run


def backtesting_equity(prices: dict[str, Floats], case: str) -> Callable[[], Floats]:
    import pandas as pd
    from backtesting import Backtest, Strategy

    above, below, sizing, _ = CASES[case]
    if sizing != "units":
        raise ValueError("backtesting.py trades whole units here")
    position = positions(prices["close"], above, below)
    frame = pd.DataFrame({name.title(): values for name, values in prices.items()})
    frame.index = pd.date_range("2020-01-01", periods=len(frame), freq="min")

    class Follow(Strategy):
        def init(self) -> None:
            self.held = 0.0

        def next(self) -> None:
            wanted = position[len(self.data) - 1]
            if wanted != self.held:
                if self.held:
                    self.position.close()
                if wanted > 0:
                    self.buy(size=1)
                elif wanted < 0:
                    self.sell(size=1)
                self.held = wanted

    def run() -> Floats:
        engine = Backtest(frame, Follow, cash=CASH, commission=FEE, exclusive_orders=False)
        return np.asarray(engine.run()["_equity_curve"]["Equity"], dtype=np.float64)

    return run


def serve_peer() -> None:
    """Answer requests on stdin, one JSON a line: {"peer", "rows", "case", "out"} -> {"seconds"} or {"error"}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints must not reach the pipe
    jobs: dict[tuple[str, int, str], Callable[[], Floats]] = {}
    makers = {"vectorbt": vectorbt_equity, "backtesting": backtesting_equity}
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["peer"], request["rows"], request["case"])
        try:
            if key not in jobs:
                jobs[key] = makers[request["peer"]](make_prices(request["rows"]), request["case"])
            start = time.perf_counter()
            equity = jobs[key]()
            answer: Json = {"seconds": time.perf_counter() - start, "version": version(request["peer"])}
            answer["core_seconds"] = CORE_SECONDS.get(request["peer"])
            if request.get("out"):
                np.save(request["out"], equity)
        except Exception as error:  # noqa: BLE001  a broken peer is a finding, not an end
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class PeerProcess:
    """The peers' interpreter, asked one job at a time."""

    def __init__(self, python: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(Path(__file__).resolve()), "--serve-peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, peer: str, rows: int, case: str, out: Path | None = None) -> Json:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"peer": peer, "rows": rows, "case": case, "out": str(out) if out else None}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: Json = json.loads(line) if line else {"error": "the peers' process ended"}
        return answer

    def close(self) -> None:
        self._process.communicate()


# --- this project -----------------------------------------------------------------------------------------------------


class Ours:
    """The same job through this project's kernel."""

    def __init__(self, rows: int) -> None:
        from data.bars import Bars
        from data.timeframe import Timeframe
        from market_env.instrument import Instrument
        from market_env.market import Market

        self.prices = make_prices(rows)
        bars = Bars(
            "BTCUSDT", Timeframe.parse("1m"), "generated", 1_577_836_800_000 + 60_000 * np.arange(rows), **self.prices
        )
        self.market = Market.prepare(bars, None, Instrument.for_symbol("BTCUSDT"))

    def run(self, case: str, *, deterministic: bool) -> Floats:
        from market_env.config import ActionConfig, CostConfig, FillConfig, MarginConfig, MarketConfig
        from market_env.session import run_targets

        config = MarketConfig(
            actions=ActionConfig(no_trade_band=0.0),
            fills=FillConfig(mode="deterministic" if deterministic else "stochastic"),
            costs=CostConfig(taker_fee_bps=1e4 * FEE),
            margin=MarginConfig(enforce=not deterministic),
        )
        above, below, sizing, every_bar = CASES[case]
        position = positions(self.prices["close"], above, below)
        targets = position if every_bar else flips(position)
        start = time.perf_counter()
        ledger = run_targets(
            self.market, targets, config, [0], start=0, sizing=sizing, columns=("equity",), initial_equity=CASH
        )
        self.seconds = time.perf_counter() - start
        return ledger["equity"][0]


def decisions_per_second(bars: int, seeds: int) -> Json:
    """A whole policy run with an untrained default network: decisions/s, and the share of time inside the policy."""
    from agent.config import AgentConfig
    from agent.networks.model import StochasticMuZero
    from agent.policy import Decision
    from agent.search_policy import SearchPolicy
    from backtest.runner import Stretch, run_policy
    from data.features import DEFAULT_FEATURES, FeatureSet
    from data.synthetic import martingale
    from market_env.config import MarketConfig
    from market_env.market import Market

    agent, config = AgentConfig(), MarketConfig().for_evaluation()
    features = FeatureSet.build(DEFAULT_FEATURES)
    market = Market.prepare(martingale(features.warmup + 64 + bars, seed=1), features)
    shapes = {"window": (64, len(features.names)), "account": (8,)}

    class Timed(SearchPolicy):
        seconds = 0.0

        def act(self, *args: Any, **kwargs: Any) -> Decision:
            start = time.perf_counter()
            decision = super().act(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return decision

    policy = Timed(StochasticMuZero(shapes, len(config.actions.levels), agent.network), agent.search)
    first = market.first_decision
    run_policy(policy, market, config, seeds=[0], stretch=Stretch(first, first + 4))
    policy.seconds = 0.0
    start = time.perf_counter()
    # No two paths alike: the first decisions, which all paths share, are left out by starting them apart.
    run_policy(policy, market, config, seeds=list(range(seeds)), stretch=Stretch(first, first + bars))
    seconds = time.perf_counter() - start
    return {
        "rate": bars * seeds / seconds,
        "policy_share": policy.seconds / seconds,
        "simulations": agent.search.simulations,
    }


def first_call_seconds() -> float:
    """The first whole-series run of a fresh process with the compiled cache, imports excluded."""
    code = (
        "from benchmarks.backtest import Ours; job = Ours(1000); job.run('unit_long_flat', deterministic=True); "
        "print(job.seconds)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(answer.stdout)


# --- the run
# ------------------------------------------------------------------------------------------------------------


def measure(
    rows: int, rounds: int, peers: PeerProcess
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, str]]:
    """Seconds per engine, taking turns; versions of the peers; and why one is missing."""
    ours = Ours(rows)
    seconds: dict[str, list[float]] = {"deterministic": [], "stochastic": []}
    missing: dict[str, str] = {}
    found: dict[str, str] = {}
    for turn in range(rounds + 1):
        for mode in ("deterministic", "stochastic"):
            ours.run(TIMED_CASE, deterministic=mode == "deterministic")
            if turn:
                seconds[mode].append(ours.seconds)
        for peer in PEERS:
            if peer in missing:
                continue
            answer = peers.ask(peer, rows, TIMED_CASE)
            if "error" in answer:
                missing[peer] = answer["error"]
                continue
            found[peer] = answer["version"]
            if turn:
                seconds.setdefault(peer, []).append(answer["seconds"])
                if answer["core_seconds"] is not None:
                    seconds.setdefault(f"{peer}_without_equity", []).append(answer["core_seconds"])
    return seconds, found, missing


def agreement(rows: int, peers: PeerProcess, missing: dict[str, str]) -> dict[str, float]:
    """Largest relative difference of equity over all bars, per peer and case."""
    ours = Ours(rows)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "equity.npy"
        for case, (_, _, sizing, _) in CASES.items():
            mine = ours.run(case, deterministic=True)
            for peer in PEERS:
                if peer in missing or (peer == "backtesting" and sizing != "units"):
                    continue
                answer = peers.ask(peer, rows, case, out)
                if "error" not in answer:
                    theirs = np.load(out)
                    result[f"disagreement_{NAMES[peer]}_{case}"] = float(np.max(np.abs(theirs / mine - 1.0)))
    return result


def entry(samples: list[float], unit: str) -> Json:
    return {"value": statistics.median(samples), "unit": unit, "low": min(samples), "high": max(samples)}


def own_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def benchmark(*, quick: bool, python: str) -> Json:
    rows, rounds = (100_000, 3) if quick else (1_000_000, 5)
    peers = PeerProcess(python)
    try:
        seconds, found, missing = measure(rows, rounds, peers)
        differences = agreement(100_000, peers, missing)
    finally:
        peers.close()
    rates = {name: [rows / value for value in samples] for name, samples in seconds.items()}
    metrics = {f"bars_per_s_{NAMES.get(name, name)}": entry(samples, "bars/s") for name, samples in rates.items()}
    first = [first_call_seconds() for _ in range(2 if quick else 3)]
    metrics["first_call_s"] = entry(first, "s")
    policy = [decisions_per_second(20 if quick else 60, 8) for _ in range(2 if quick else 3)]
    metrics["decisions_per_s"] = entry([one["rate"] for one in policy], "decisions/s")
    metrics["decisions_policy_share"] = entry([one["policy_share"] for one in policy], "fraction")
    metrics |= {
        name: {"value": value, "unit": "relative", "low": value, "high": value} for name, value in differences.items()
    }
    ours = metrics["bars_per_s_deterministic"]["value"]
    ratios = {
        f"vs_{NAMES[peer]}": ours / metrics[f"bars_per_s_{NAMES[peer]}"]["value"] for peer in PEERS if peer in seconds
    }
    return {
        "benchmark": "backtest",
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), "smu0": own_version("smu0"), "numba": own_version("numba")}
        | found,
        "job": {"bars": rows, "rounds": rounds, "case": TIMED_CASE, "search_simulations": policy[0]["simulations"]},
        "metrics": metrics,
        "ratios": ratios,
        "missing": {NAMES[peer]: reason for peer, reason in missing.items()},
    }


def print_table(result: Json) -> None:
    print(f"{result['job']['bars']:,} bars, {result['job']['rounds']} rounds, {result['machine']['cpus']} cpus")
    for name, one in result["metrics"].items():
        print(f"{name:44} {one['value']:>14,.6g} {one['unit']:12} [{one['low']:,.6g} .. {one['high']:,.6g}]")
    for name, ratio in result["ratios"].items():
        print(f"{name:44} {ratio:>14,.2f} x")
    for name, reason in result["missing"].items():
        print(f"{name:44} missing: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100k bars, 3 rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_peer:
        serve_peer()
        return
    result = benchmark(quick=arguments.quick, python=arguments.peers)
    if arguments.json:
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
