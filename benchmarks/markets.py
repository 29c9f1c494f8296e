"""What the agent is worth on real bars, beside what one would use instead.

    python -m benchmarks.markets                                  every data set, 3 seeds, all agents
    python -m benchmarks.markets btc eth --agents smu0 ppo --peer-python ~/.venv-peers/bin/python --out var/markets

The bars must be in the store (`python -m data fetch` or `import`); a data set that is not there is reported as missing.
One configuration, configs/btc_1h.yaml, serves every data set; what differs is said in DATASETS. smu0 and its variants
are trained by `python -m agent train` and judged by `python -m backtest run` on the test split, which nothing before
has looked at; the checkpoint is chosen on the validation split. PPO and DQN of stable-baselines3 learn in the same
market on the same observations for as many seconds as smu0 took with that seed, are chosen on the same validation
split, and are judged by the same backtest. Each process has one thread.

Results are kept as JSON under --out; an interrupted benchmark goes on where it stopped, and
`python -m benchmarks.markets_page` writes tables and figures of what is there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

CONFIG = Path(__file__).parent.parent / "configs" / "btc_1h.yaml"
FILL_SEEDS = 20


@dataclass(frozen=True)
class Dataset:
    """A symbol with its splits; overrides: of configs/btc_1h.yaml. symbol, timeframe: in the store."""

    title: str
    symbol: str
    timeframe: str
    overrides: tuple[str, ...] = ()


DATASETS = {
    "btc": Dataset("BTCUSDT 1h, 2023", "BTCUSDT", "1h"),
    "eth": Dataset("ETHUSDT 1h, 2023", "ETHUSDT", "1h", ("name=eth_1h", "data.symbols=[ETHUSDT]")),
    "eurusd": Dataset(
        "EURUSD 1h, 2017–2018",
        "EURUSD",
        "1h",
        (
            "name=eurusd_1h",
            "data.symbols=[EURUSD]",
            'splits.train=["2007-01-01", "2015-01-01"]',
            'splits.validation=["2015-01-01", "2017-01-01"]',
            'splits.test=["2017-01-01", "2019-01-01"]',
            # A currency can be sold as well as bought; the fee is a retail spread of about a pip.
            "market.actions={levels: [-1.0, 0.0, 1.0]}",
            "market.costs.taker_fee_bps=0.5",
        ),
    ),
    "spy": Dataset(
        "SPY 1d, 2016–2018",
        "SPY",
        "1d",
        (
            "name=spy_1d",
            "data.symbols=[SPY]",
            "data.timeframe=1d",
            'splits.train=["2006-01-01", "2014-01-01"]',
            'splits.validation=["2014-01-01", "2016-01-01"]',
            'splits.test=["2016-01-01", "2019-01-01"]',
            "market.costs.taker_fee_bps=1.0",
            "market.episode.horizon=256",
        ),
    ),
}

VARIANTS: dict[str, tuple[str, ...]] = {"smu0": (), "codes1": ("agent.network.codes=1",)}
PEERS = ("ppo", "dqn")
MISSING = 77  # exit status of a peer that is not installed


@dataclass(frozen=True)
class Job:
    """One agent on one data set with one seed. seconds: of training, for peers. overrides: of the experiment."""

    agent: str
    dataset: str
    seed: int
    overrides: tuple[str, ...]
    seconds: float | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset}.{self.agent}.{self.seed}"


def make_job(agent: str, dataset: str, seed: int, extra: Sequence[str]) -> Job:
    own = VARIANTS.get(agent, ())
    return Job(agent, dataset, seed, (*DATASETS[dataset].overrides, *own, *extra, f"seed={seed}"))


def run_job(job: Job, out: Path, peer_python: str) -> Json | None:
    """The result of a job, from its file or by running it. None: the peer is not installed."""
    file = out / f"{job.name}.json"
    if file.is_file():
        kept: Json = json.loads(file.read_text())
        return kept
    with (out / f"{job.name}.log").open("w") as log:
        result = _peer(job, out, peer_python, log) if job.agent in PEERS else _agent(job, out, log)
    if result is None:
        return None
    result |= {"job": asdict(job), "load": os.getloadavg()[0]}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result))
    temporary.replace(file)
    return result


def _agent(job: Job, out: Path, log: Any) -> Json:
    run = out / "runs" / job.name
    train = [sys.executable, "-m", "agent", "train"]
    if (run / "checkpoints" / "latest").exists():
        train += ["--resume", str(run)]
    else:
        train += [str(CONFIG), "--run", str(run.resolve()), "--fresh"]
        for override in job.overrides:
            train += ["--set", override]
    trained = _call([*train, "--json"], log)

    def judged(split: str) -> Json:
        command = [
            sys.executable, "-m", "backtest", "run", "--checkpoint", str(run / "checkpoints" / "best"), "--json",
            "--split", split, "--fill-seeds", str(FILL_SEEDS), "--trials", str(out / "trials.jsonl"),
            "--out", str(out / "reports" / f"{job.name}-{split}"),
        ]  # fmt: skip
        return _call(command, log)

    report, validation = judged("test"), judged("validation")
    return {"training": trained, "report": report, "validation": validation["metrics"]}


def _peer(job: Job, out: Path, python: str, log: Any) -> Json | None:
    reference = out / f"{job.dataset}.smu0.{job.seed}.json"
    if not reference.is_file():
        raise SystemExit(f"{job.name}: a peer learns as long as smu0 did; expected {reference.name} first")
    timed = Job(**{**asdict(job), "seconds": json.loads(reference.read_text())["training"]["seconds"]})
    command = [python, "-m", "benchmarks.markets_peers", "--job", json.dumps(asdict(timed))]
    command += ["--trials", str(out / "trials.jsonl")]
    try:
        return _call(command, log)
    except subprocess.CalledProcessError as error:
        if error.returncode == MISSING:
            return None
        raise


def _call(command: Sequence[str], log: Any) -> Json:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
    answer: Json = json.loads(done.stdout[done.stdout.index("{") :])
    return answer


def in_store(dataset: Dataset) -> bool:
    """Whether the bars are there."""
    from data.store import BarStore, StoreError, default_root

    try:
        BarStore(default_root()).load(dataset.symbol, dataset.timeframe, None)
    except StoreError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=[], metavar="DATASET", help=f"some of {', '.join(DATASETS)}")
    parser.add_argument("--agents", nargs="+", default=[*VARIANTS, *PEERS], choices=[*VARIANTS, *PEERS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="override, for all agents")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has stable-baselines3")
    parser.add_argument("--out", type=Path, default=None, help="keep runs here and go on from them")
    parser.add_argument("--quick", action="store_true", help="a minute each of one data set: to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = [name for name in options.datasets if name not in DATASETS]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; expected some of {', '.join(DATASETS)}")
    wanted = options.datasets or (["spy"] if options.quick else list(DATASETS))
    chosen = [name for name in wanted if in_store(DATASETS[name])]
    overrides = [*options.overrides, *(["agent.training.env_steps=20000"] if options.quick else [])]
    seeds = 1 if options.quick else options.seeds
    with tempfile.TemporaryDirectory() as temporary:
        out: Path = (options.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        results: dict[str, Json | None] = {}
        for group in (list(VARIANTS), list(PEERS)):  # peers need smu0's seconds
            jobs = [
                make_job(agent, name, seed, overrides)
                for seed in range(1, seeds + 1)
                for name in chosen
                for agent in options.agents
                if agent in group
            ]
            with ThreadPoolExecutor(options.workers) as pool:
                pending = {pool.submit(run_job, job, out, options.peer_python): job for job in jobs}
                for future in as_completed(pending):
                    name = pending[future].name
                    try:
                        results[name] = future.result()
                    except Exception:
                        pool.shutdown(cancel_futures=True)  # what fails once fails for the others too
                        raise
                    print(f"{name}: {summary(results[name])}", file=sys.stderr, flush=True)
    if options.json:
        metrics = {
            f"{name}.{metric}": {"value": run["report"]["metrics"][metric]["value"], "unit": "1"}
            for name, run in results.items()
            if run is not None
            for metric in ("total_return", "sharpe", "max_drawdown", "turnover_per_year")
        }
        missing = sorted({name.split(".")[1] for name, run in results.items() if run is None})
        print(json.dumps({"benchmark": "markets", "metrics": metrics, "missing": missing}, indent=2))
    for name in wanted:
        if name not in chosen:
            print(
                f"missing: {name} ({DATASETS[name].symbol} {DATASETS[name].timeframe} is not in the store)",
                file=sys.stderr,
            )


def summary(run: Json | None) -> str:
    """One line of a result."""
    if run is None:
        return "missing (install the benchmarks extra, or pass --peer-python)"
    metrics = run["report"]["metrics"]
    held = run["report"]["baselines"]["buy_and_hold"]["metrics"]
    return (
        f"return {metrics['total_return']['value']:+.1%} (buy and hold {held['total_return']['value']:+.1%}), "
        f"Sharpe {metrics['sharpe']['value'] or float('nan'):.2f}, drawdown {metrics['max_drawdown']['value']:.1%}"
    )


if __name__ == "__main__":
    main()
