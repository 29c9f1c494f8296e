"""How fast bars are imported, checked, read and turned into features, and in how much memory; plain pandas beside it.

    python -m benchmarks.data [--quick] [--json] [--bars N]

The job: N one-minute bars (5 million; 500,000 with --quick) of a made-up market. Every task runs in a process of its
own, which first does the same on a small dataset (imports, compilation, caches of the file system do not count) and
then reports its seconds and by how much its resident memory grew at the most. Tasks of this project and of pandas take
turns; figures are medians with the smallest and the largest of three rounds.

What pandas does is what one writes without a library for bars: read_csv, to_parquet, vectorised checks, ewm and
rolling for the same eight features. Its features differ where they must: an infinite EWMA, no warm-up rule.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from data.bars import VALUE_COLUMNS, Bars
from data.features import DEFAULT_FEATURES, FeatureSet
from data.importer import FileReader
from data.quality import QualityScan
from data.store import BarStore, DatasetKey
from data.synthetic import martingale
from data.timeframe import Timeframe

ROOT = Path(__file__).resolve().parents[1]
MINUTE = Timeframe.parse("1m")
KEY = DatasetKey("benchmark", "X", MINUTE)
WARM_BARS = 60_000
ROUNDS = 3
LIVE_CALLS = 200
TA_BARS = 50_000

Floats = np.ndarray[Any, np.dtype[np.float64]]
Work = Callable[[Path], Any]


# --- the tasks; each gets the folder that `prepare` filled


def import_csv_smu0(folder: Path) -> int:
    return _import(folder / "bars.csv", folder)


def import_parquet_smu0(folder: Path) -> int:
    return _import(folder / "bars.parquet", folder)


def _import(file: Path, folder: Path) -> int:
    with BarStore(folder / f"imported-{file.suffix[1:]}").writer(KEY, source="benchmark") as writer:
        writer.clear()
        for block in FileReader(file, KEY).blocks():
            writer.add(block)
        return writer.commit().bars


def import_csv_pandas(folder: Path) -> int:
    frame = pd.read_csv(folder / "bars.csv")
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="ms", utc=True)
    frame.to_parquet(folder / "pandas.parquet", compression="zstd", index=False)
    return len(frame)


def import_parquet_pandas(folder: Path) -> int:
    frame = pd.read_parquet(folder / "bars.parquet")
    frame.to_parquet(folder / "pandas.parquet", compression="zstd", index=False)
    return len(frame)


def check_smu0(folder: Path) -> int:
    scan = QualityScan(MINUTE)
    for block in BarStore(folder / "store").read_blocks("X", MINUTE):
        scan.add(block.timestamp, block.open, block.high, block.low, block.close, block.volume)
    return scan.report().bars


def check_pandas(folder: Path) -> int:
    frame = pd.read_parquet(folder / "bars.parquet")
    step = frame["timestamp"].diff().dropna()
    bad = (
        frame[list(VALUE_COLUMNS)].isna().any(axis=None)
        or (frame[["open", "high", "low", "close"]] <= 0).any(axis=None)
        or (frame["high"] < frame[["open", "close"]].max(axis=1)).any()
        or (frame["low"] > frame[["open", "close"]].min(axis=1)).any()
        or (step <= pd.Timedelta(0)).any()
    )
    assert not bad
    _ = (step > pd.Timedelta(minutes=1)).sum(), (frame["volume"] == 0).sum(), np.log(frame["close"]).diff().abs().max()
    return len(frame)


def feature_table_smu0(folder: Path) -> int:
    """From the store, a partition at a time, as `python -m data features --out` does, but without writing."""
    blocks = BarStore(folder / "store").read_blocks("X", MINUTE)
    return sum(len(rows) for _, rows in FeatureSet.build().compute_blocks(blocks))


def feature_table_pandas(folder: Path) -> int:
    return len(_pandas_features(pd.read_parquet(folder / "bars.parquet")))


def load_smu0(folder: Path) -> int:
    return len(BarStore(folder / "store").load("X", MINUTE))


def load_pandas(folder: Path) -> int:
    return len(pd.read_parquet(folder / "bars.parquet"))


def window_smu0(folder: Path) -> int:
    """One week out of the middle."""
    first = martingale(1, seed=1, timeframe="1m").timestamp[0]
    start = int(first) + (_count(folder) // 2) * MINUTE.milliseconds
    return len(BarStore(folder / "store").load("X", MINUTE, start=start, end=start + 10_080 * MINUTE.milliseconds))


def window_pandas(folder: Path) -> int:
    first = martingale(1, seed=1, timeframe="1m").timestamp[0]
    start = pd.Timestamp(int(first) + (_count(folder) // 2) * MINUTE.milliseconds, unit="ms", tz="UTC")
    span = [("timestamp", ">=", start), ("timestamp", "<", start + pd.Timedelta(minutes=10_080))]
    return len(pd.read_parquet(folder / "bars.parquet", filters=span))


TASKS: dict[str, tuple[Work, Work]] = {
    "import_csv": (import_csv_smu0, import_csv_pandas),
    "import_parquet": (import_parquet_smu0, import_parquet_pandas),
    "check": (check_smu0, check_pandas),
    "load": (load_smu0, load_pandas),
    "window_read": (window_smu0, window_pandas),
    "feature_table": (feature_table_smu0, feature_table_pandas),
}


def _pandas_features(frame: pd.DataFrame) -> pd.DataFrame:
    open_, high, low, close, volume = (frame[name] for name in VALUE_COLUMNS)
    change = np.log(close / close.shift(1))
    sigma = np.sqrt((change**2).ewm(halflife=32).mean()).clip(lower=1e-5)
    sigma_fast = np.sqrt((change**2).ewm(halflife=8).mean()).clip(lower=1e-5)
    times = frame["timestamp"].dt
    angle = 2.0 * np.pi * (times.day_of_week * 1440 + times.hour * 60 + times.minute) / 10_080
    columns = {
        "close_return": change / sigma,
        "open_gap": np.log(open_ / close.shift(1)) / sigma,
        "high_above_close": np.log(high / close) / sigma,
        "close_above_low": np.log(close / low) / sigma,
        "relative_volume": np.log(volume / volume.rolling(20).median()),
        "volatility_ratio": np.log(sigma_fast / sigma),
        "week_sine": np.sin(angle),
        "week_cosine": np.cos(angle),
    }
    return pd.DataFrame(columns).clip(-5.0, 5.0).astype("float32")


# --- measuring


def prepare(folder: Path, count: int) -> None:
    """The bars as a CSV file, one Parquet file and a store."""
    folder.mkdir(parents=True)
    made = martingale(count, seed=1, timeframe="1m", price=30_000.0)
    columns = {name: getattr(made, name) for name in VALUE_COLUMNS}
    bars = Bars("X", MINUTE, "benchmark", made.timestamp, **columns)
    BarStore(folder / "store").save(bars, source="benchmark")
    bars.to_frame().reset_index().to_parquet(folder / "bars.parquet", index=False)
    pa_csv.write_csv(pa.table({"timestamp": bars.timestamp, **columns}), folder / "bars.csv")
    (folder / "count").write_text(str(count))


def _count(folder: Path) -> int:
    return int((folder / "count").read_text())


@contextmanager
def growing_memory() -> Iterator[list[float]]:
    """Largest growth of this process's resident memory inside, in MiB, sampled every 2 ms where /proc exists."""
    statm = Path("/proc/self/statm")
    grown = [0.0]
    if not statm.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield grown
        grown[0] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024.0
        return
    page = os.sysconf("SC_PAGE_SIZE") / 2**20

    def resident() -> float:
        return int(statm.read_text().split()[1]) * page

    before, stop = resident(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            grown[0] = max(grown[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        stop.set()
        watcher.join()
        grown[0] = max(grown[0], resident() - before)


def run_task(task: str, side: int, warm: Path, folder: Path) -> dict[str, float]:
    """In a process of its own: warm up, then measure once."""
    work = TASKS[task][side]
    work(warm)
    with growing_memory() as grown:
        began = time.perf_counter()
        work(folder)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "mebibytes": grown[0]}


def in_a_process(task: str, side: int, warm: Path, folder: Path) -> dict[str, float]:
    """The same, called from the parent."""
    command = [sys.executable, "-m", "benchmarks.data", "--task", task, str(side), str(warm), str(folder)]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def seconds_of(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure_features(count: int) -> dict[str, list[float]]:
    """In memory and on one core: bars per second of the default set; milliseconds of one live row; `ta` beside it."""
    bars = martingale(count, seed=2, timeframe="1m")
    frame = bars.to_frame().reset_index()
    default = FeatureSet.build()
    recent = bars.slice(-default.warmup, None)
    ours, theirs = FeatureSet.build(["rsi", "adx"]), FeatureSet.build(["ta:rsi", "ta:adx"])
    few = bars.slice(0, TA_BARS)
    live = bars.slice(-max(ours.warmup, theirs.warmup), None)
    for warm in (default, ours, theirs):
        warm.compute(bars.slice(0, 3_000))
    _pandas_features(frame.head(3_000))
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(ROUNDS):
        note("features_bars_per_s", count / seconds_of(lambda: default.compute(bars)))
        note("features_pandas_bars_per_s", count / seconds_of(lambda: _pandas_features(frame)))
        note("live_row_ms", _live_ms(default, recent))
        note("rsi_adx_bars_per_s", len(few) / seconds_of(lambda: ours.compute(few)))
        note("rsi_adx_ta_bars_per_s", len(few) / seconds_of(lambda: theirs.compute(few)))
        note("live_rsi_adx_ms", _live_ms(ours, live))
        note("live_rsi_adx_ta_ms", _live_ms(theirs, live))
    return found


def _live_ms(features: FeatureSet, recent: Bars) -> float:
    return statistics.median(1_000.0 * seconds_of(lambda: features.compute(recent)) for _ in range(LIVE_CALLS))


UNITS = {"seconds": "s", "bars_per_s": "bars/s", "ms": "ms", "mebibytes": "MiB"}


def unit_of(name: str) -> str:
    return next(unit for ending, unit in UNITS.items() if name.endswith(ending))


def report(values: dict[str, list[float]], count: int) -> dict[str, Any]:
    """The contract's JSON object. A ratio above 1 says this project is faster, or needs less memory."""
    metrics = {
        name: {
            "value": statistics.median(found),
            "unit": unit_of(name),
            "low": min(found),
            "high": max(found),
        }
        for name, found in values.items()
    }

    def value(name: str) -> float:
        return float(metrics[name]["value"])  # type: ignore[arg-type]

    ratios = {}
    for task in TASKS:
        ratios[f"{task}_vs_pandas"] = value(f"{task}_pandas_seconds") / value(f"{task}_seconds")
        ratios[f"{task}_memory_vs_pandas"] = value(f"{task}_pandas_mebibytes") / max(value(f"{task}_mebibytes"), 1.0)
    ratios["features_vs_pandas"] = value("features_bars_per_s") / value("features_pandas_bars_per_s")
    ratios["live_rsi_adx_vs_ta"] = value("live_rsi_adx_ta_ms") / value("live_rsi_adx_ms")
    ratios["rsi_adx_vs_ta"] = value("rsi_adx_bars_per_s") / value("rsi_adx_ta_bars_per_s")
    packages = ("numpy", "pandas", "pyarrow", "numba", "ta")
    return {
        "benchmark": "data",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_1m": os.getloadavg()[0],
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "settings": {"bars": count, "timeframe": "1m", "features": list(DEFAULT_FEATURES), "rounds": ROUNDS},
        "metrics": metrics,
        "ratios": ratios,
    }


def measure(count: int) -> dict[str, Any]:
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        warm, folder = Path(temporary) / "warm", Path(temporary) / "full"
        prepare(warm, WARM_BARS)
        prepare(folder, count)
        for _ in range(ROUNDS):
            for task in TASKS:
                for side, suffix in enumerate(("", "_pandas")):
                    print(f"{task}{suffix}", file=sys.stderr, flush=True)
                    for quantity, value in in_a_process(task, side, warm, folder).items():
                        values.setdefault(f"{task}{suffix}_{quantity}", []).append(value)
    values |= measure_features(min(count, 1_000_000))
    return report(values, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500,000 bars")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--bars", type=int, help="another number of bars")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, side, warm, folder = arguments.task
        print(json.dumps(run_task(task, int(side), Path(warm), Path(folder))))
        return
    result = measure(arguments.bars or (500_000 if arguments.quick else 5_000_000))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, metric in result["metrics"].items():
        print(f"{name:36} {metric['value']:14,.2f} {metric['unit']:7} [{metric['low']:,.2f}, {metric['high']:,.2f}]")
    for name, ratio in result["ratios"].items():
        print(f"{name:36} {ratio:14,.2f}")


if __name__ == "__main__":
    main()
