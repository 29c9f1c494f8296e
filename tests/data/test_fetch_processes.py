"""Fetches as real processes: killed at random points, and two at a time."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.bars import Bars, parse_time
from data.exchange import ExchangeClient, Retrier, fetch_bars
from data.mock_exchange import MockExchange
from data.store import BarStore, Manifest
from data.synthetic import martingale
from data.timeframe import Timeframe

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exchange() -> Iterator[MockExchange]:
    """12,000 hourly bars with holes, over two years' partitions, 300 a page; the last bar is open."""
    bars = martingale(12_000, seed=9, price=30_000.0)
    present = np.random.default_rng(2).random(len(bars)) > 0.01
    present[5_000:5_700] = False
    present[-1] = True
    columns = {name: getattr(bars, name)[present] for name in ("timestamp", "open", "high", "low", "close", "volume")}
    gappy = Bars("BTC/USDT", bars.timeframe, "binance", **columns)
    now = int(bars.timestamp[-1]) + 1_000
    with MockExchange({"BTC/USDT": gappy}, clock=lambda: now, page_limit=300, delay_seconds=0.002) as mock:
        yield mock


def start_fetch(root: Path, exchange: MockExchange) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "data", "fetch", "--exchange", "binance", "--symbol", "BTC/USDT", "--timeframe", "1h",
         "--since", "2020-01-01", "--url", exchange.url, "--wait", "60"],
        cwd=REPOSITORY, env={**os.environ, "SMU0_BARS": str(root)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


def manifest(root: Path) -> Manifest:
    return BarStore(root).manifest("BTC/USDT", "1h", "binance")


def kill_and_run_again(root: Path, exchange: MockExchange, *, kills: int, seed: int) -> int:
    """SIGKILL a fetch `kills` times, each after a random number of replies, then let one finish; counts real kills."""
    random = np.random.default_rng(seed)
    killed = 0
    for _ in range(kills):
        process = start_fetch(root, exchange)
        target = exchange.requests.get("/api/v3/klines", 0) + int(random.integers(1, 45))
        while process.poll() is None and exchange.requests.get("/api/v3/klines", 0) < target:
            time.sleep(0.001)
        time.sleep(float(random.uniform(0.0, 0.03)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if list(root.rglob("manifest.json")):
            survived = BarStore(root).load("BTC/USDT", "1h", "binance")
            assert survived == exchange.closed_bars("BTC/USDT").slice(0, len(survived))
    finished(start_fetch(root, exchange))
    return killed


@pytest.mark.parametrize(
    ("kills", "seed"),
    [pytest.param(3, 1), pytest.param(40, 2, marks=pytest.mark.slow)],
)
def test_killed_fetches_end_in_the_same_store_as_an_undisturbed_one(
    tmp_path: Path, exchange: MockExchange, kills: int, seed: int
) -> None:
    finished(start_fetch(tmp_path / "undisturbed", exchange))
    assert kill_and_run_again(tmp_path / "killed", exchange, kills=kills, seed=seed) > 0
    assert manifest(tmp_path / "killed") == manifest(tmp_path / "undisturbed")
    stored = BarStore(tmp_path / "killed").load("BTC/USDT", "1h")
    assert stored == exchange.closed_bars("BTC/USDT")
    litter = [p.name for p in (tmp_path / "killed").rglob("*") if p.suffix == ".tmp"]
    assert litter == []


def test_the_mock_exchange_runs_as_a_process(tmp_path: Path) -> None:
    """As in the compose profile `demo`: bars keep closing, and faults can be sent from outside."""
    command = [sys.executable, "-m", "data.mock_exchange", "--port", "0", "--speed", "36000", "--history", "50"]
    server = subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().split()[3].rstrip(",")
        with ExchangeClient("binance", url_override=url) as client:
            frame = Timeframe.parse("1h")
            first = fetch_bars(BarStore(tmp_path), client, "BTC/USDT", frame, since=parse_time("2020-01-01"))
            time.sleep(0.5)
            faults = urllib.request.Request(f"{url}/mock/faults", data=b'["html", "null"]')
            with urllib.request.urlopen(faults) as reply:
                assert json.load(reply) == {"pending": 2}
            client.measure_clock()
            retrier = Retrier(sleep=lambda seconds: None)
            second = fetch_bars(
                BarStore(tmp_path), client, "BTC/USDT", frame, since=parse_time("2020-01-01"), retrier=retrier
            )
    finally:
        server.terminate()
        server.communicate()
    assert first.new_bars >= 50
    assert second.new_bars >= 4
    assert second.retries == 2


def test_two_processes_fetching_the_same_bars_take_turns(tmp_path: Path, exchange: MockExchange) -> None:
    processes = [start_fetch(tmp_path, exchange), start_fetch(tmp_path, exchange)]
    printed = sorted(finished(process) for process in processes)
    new = sorted(int(text.split("1h: ")[1].split(" new")[0].replace(",", "")) for text in printed)
    assert new == [0, len(exchange.closed_bars("BTC/USDT"))]
    assert BarStore(tmp_path).load("BTC/USDT", "1h") == exchange.closed_bars("BTC/USDT")
