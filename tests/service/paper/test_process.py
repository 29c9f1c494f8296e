"""`python -m service paper` as an operator meets it: real processes, really killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.bars import Bars
from data.commandline import run
from data.mock_exchange import MockExchange, replay_clock
from service.__main__ import app
from service.ledger.integrity import require_sound
from service.ledger.store import Ledger, Page, every

ROOT = Path(__file__).resolve().parents[3]
Json = dict[str, Any]


class Shop:
    """A state directory and the processes that work on it."""

    def __init__(self, root: Path, runs: Path) -> None:
        self.state = root / "state"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SMU0_")}
        self.environment = {
            **kept, "SMU0_RUNS": str(runs), "SMU0_MODELS": str(root / "models"), "SMU0_STATE": str(self.state),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.log = root / "paper.log"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "service", *arguments]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command("paper", *arguments), cwd=ROOT, env=self.environment, stdout=log, stderr=log, text=True
            )

    def here(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        """The same command in this process, which starts faster. Returns the exit code."""
        with monkeypatch.context() as patched:
            for name in [name for name in os.environ if name.startswith("SMU0_")]:
                patched.delenv(name)
            for name, value in self.environment.items():
                if name.startswith("SMU0_"):
                    patched.setenv(name, value)
            patched.setattr(sys, "argv", ["service", "paper", *arguments])
            try:
                run(app, "python -m service")
            except SystemExit as ended:
                return int(ended.code or 0)
        return 0

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments), cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def ledger(self) -> Ledger:
        return Ledger.open(f"sqlite:///{self.state / 'ledger.sqlite3'}", writable=False)

    def decisions(self) -> int:
        """How many there are; 0 before there is a ledger."""
        if not (self.state / "ledger.sqlite3").exists():
            return 0
        try:
            with self.ledger() as ledger, ledger.reading() as read:
                return read.last_decision_id()
        except RuntimeError:  # its tables are being made
            return 0

    def wait_for(self, count: int, process: "subprocess.Popen[str]", seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while self.decisions() < count:
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)


@pytest.fixture
def shop(tmp_path: Path, runs: Path) -> Callable[[str], Shop]:
    def make(name: str = "shop") -> Shop:
        (tmp_path / name).mkdir()
        return Shop(tmp_path / name, runs)

    return make


def everything(shop: Shop) -> dict[str, list[Json]]:
    """What the run left, less names and times of the writing."""
    dropped = {"run_id", "decided_ms", "received_ms", "recorded_ms", "updated_ms", "since_ms", "latency_ms"}
    with shop.ledger() as ledger, ledger.reading() as read:
        run = read.active_run()
        assert run is not None
        lists: dict[str, list[Any]] = {
            "decisions": list(every(read.decisions, run.id, lambda row: row.bar_ts)),
            "orders": list(every(read.orders, run.id, lambda row: row.submitted_ts)),
            "fills": list(every(read.fills, run.id, lambda row: row.bar_ts)),
            "equity": list(every(read.equity, run.id, lambda row: row.ts)),
            "bars": list(every(read.bars, run.id, lambda row: row.ts)),
            "gaps": list(every(read.gaps, run.id, lambda row: row.first_ts)),
            "positions": read.positions(run.id),
            "account": [read.account(run.id)],
        }
    return {
        table: [
            {name: getattr(row, name) for name in type(row).__dataclass_fields__ if name not in dropped} for row in rows
        ]
        for table, rows in lists.items()
    }


def compare_after_kills(
    make: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch, *, kills: int, since: str, seed: int
) -> None:
    """Kill a replay again and again at random moments, and compare what it leaves with a run left in peace."""
    whole = make("whole")
    assert whole.here(monkeypatch, "--feed", "replay", "--speed", "0", "--since", since) == 0
    total = whole.decisions()
    killed = make("killed")
    random = np.random.default_rng(seed)
    done = 0
    for wanted in np.linspace(0, total * 0.9, kills).astype(int):
        process = killed.start("--feed", "replay", "--speed", "0", "--since", since)
        if wanted > 0:
            killed.wait_for(int(wanted), process)
            time.sleep(float(random.random()) * 0.04)  # anywhere within the bars that follow
        else:
            time.sleep(float(random.random()) * 2.0)  # while it starts
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the replay ended before it could be killed: make it longer"
        done += 1
    assert done == kills
    assert killed.here(monkeypatch, "--feed", "replay", "--speed", "0", "--since", since) == 0
    mine, theirs = everything(killed), everything(whole)
    for table, rows in theirs.items():
        assert mine[table] == rows, table
    with killed.ledger() as ledger:
        [report] = require_sound(ledger)
    assert report.exact
    assert report.decisions == total


def test_killed_it_leaves_what_an_uninterrupted_run_leaves(
    shop: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_after_kills(shop, monkeypatch, kills=2, since="2018-06-01", seed=1)


@pytest.mark.failures
def test_killed_forty_times_it_leaves_what_an_uninterrupted_run_leaves(
    shop: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_after_kills(shop, monkeypatch, kills=42, since="2012-01-01", seed=2)


def test_the_process_keeps_others_out_says_how_it_is_and_ends_when_told(shop: Callable[[str], Shop]) -> None:
    here = shop("shop")
    assert here.run("paper", "--health").returncode == 1
    process = here.start("--feed", "synthetic", "--speed", "86400")
    try:
        here.wait_for(2, process)
        second = here.run("paper", "--feed", "synthetic")
        assert second.returncode == 2
        assert "a paper process holds it" in second.stderr
        assert second.stderr.count("\n") == 1
        health = here.run("paper", "--health", "--json")
        told = json.loads(health.stdout)
        assert (health.returncode, told["healthy"], told["state"]["feed"]) == (0, True, "ok")
        assert told["state"]["venue"] == "synthetic:regime:0"
    finally:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, here.log.read_text()
    assert time.monotonic() - began < 5
    assert "ends at a bar boundary" in here.log.read_text()
    with here.ledger() as ledger:
        require_sound(ledger)


def test_an_exchange_that_hangs_does_not_keep_it_from_ending(
    shop: Callable[[str], Shop], bars_of: Callable[..., Bars]
) -> None:
    here = shop("shop")
    bars = bars_of(40, timeframe="1d")
    clock = replay_clock(int(bars.timestamp[-1]), 1.0)
    with MockExchange({"BTC/USDT": bars}, clock=clock) as exchange:
        exchange.inject("hang", times=50)
        process = here.start("--symbol", "BTCUSDT", "--exchange-url", exchange.url)
        while exchange.requests.get("/api/v3/klines", 0) == 0:
            assert process.poll() is None, here.log.read_text()
            time.sleep(0.01)
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, here.log.read_text()
        assert time.monotonic() - began < 5


def test_without_an_exchange_it_stays_up_and_says_so(shop: Callable[[str], Shop]) -> None:
    here = shop("shop")
    process = here.start("--symbol", "BTCUSDT", "--exchange-url", "http://127.0.0.1:9")  # nobody listens there
    try:
        deadline = time.monotonic() + 60.0
        while "degraded" not in here.run("paper", "--health").stdout:
            assert process.poll() is None, here.log.read_text()
            assert time.monotonic() < deadline, here.log.read_text()
        health = here.run("paper", "--health")
        assert health.returncode == 0
        assert "exchange unreachable" in health.stdout
        with here.ledger() as ledger, ledger.reading() as read:
            run = read.active_run()
            assert run is not None
            assert run.instrument == "BTCUSDT"
            assert [event.kind for event in read.events_after(0)].count("exchange_unreachable") == 1
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--checkpoint", "nothing"], "Runs in"),
        (["--symbol", "VIX"], "a replay has the experiment's SP500"),
        (["--feed", "ccxt"], "expected a market of an exchange"),
        (["--feed", "ccxt", "--symbol", "BTCUSDT", "--speed", "5"], "--speed: expected with --feed replay"),
        (["--feed", "synthetic", "--generator", "x"], "--generator x: expected one of"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    shop: Callable[[str], Shop],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    assert shop("shop").here(monkeypatch, *arguments) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_other_terms_is_refused_and_new_run_begins_another(
    shop: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = shop("shop")
    replay = ("--feed", "replay", "--speed", "0", "--since", "2018-12-20")
    assert here.here(monkeypatch, *replay) == 0
    assert here.here(monkeypatch, *replay, "--seed", "5") == 2
    assert "seed 0, now 5" in capsys.readouterr().err
    assert here.here(monkeypatch, *replay, "--seed", "5", "--new-run") == 0
    with here.ledger() as ledger, ledger.reading() as read:
        first, second = sorted(read.runs(), key=lambda run: run.archived_ms is None)
        assert (first.seed, second.seed) == (0, 5)
        pages = [read.decisions(run.id, Page(limit=100)) for run in (first, second)]
    assert [row.bar_ts for row in pages[0]] == [row.bar_ts for row in pages[1]]
    assert len(list((here.state / "backups").iterdir())) == 1
