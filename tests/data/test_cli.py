"""The command line, as a user meets it."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import commandline
from data.__main__ import app
from data.bars import Bars
from data.exchange import Retrier
from data.features import DEFAULT_FEATURES, FeatureSet
from data.mock_exchange import MockExchange
from data.samples import load_sample
from data.store import BarStore, DatasetKey
from data.synthetic import martingale

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `python -m data ARGUMENTS` in this process: standard output, or what is printed on a failure."""

    def run_here(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["data", *arguments])
        with pytest.raises(SystemExit) as end:
            commandline.run(app, "python -m data")
        printed = capsys.readouterr()
        assert (end.value.code or 0) == code, printed.err
        if code == 0:
            return printed.out
        return printed.err or printed.out

    return run_here


def test_a_process_of_its_own_runs_clean(store_root: Path) -> None:
    """No warning, no traceback, exit codes as promised."""
    command = [sys.executable, "-W", "error", "-m", "data"]
    done = subprocess.run([*command, "sample"], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "5,031 bars" in done.stdout
    failed = subprocess.run([*command, "import", "x.csv"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)


def test_sample_list_check_and_features_run_bare(run: Run, store_root: Path) -> None:
    assert "5,031 bars, 1999-01-04T00:00Z to 2018-12-31T00:00Z" in run("sample")
    assert BarStore(store_root).load("SP500", "1d") == load_sample()
    assert "SP500" in run("list")
    assert "ok" in run("check")
    listed = run("features")
    assert all(name in listed for name in DEFAULT_FEATURES)


def test_an_empty_store_says_what_to_do(run: Run, store_root: Path) -> None:
    assert 'Get some: "python -m data sample"' in run("list")
    assert "python -m data sample" in run("check", code=2)


def test_json_is_json(run: Run, store_root: Path) -> None:
    assert json.loads(run("sample", "nasdaq", "--json"))["bars"] == 5031
    assert [row["symbol"] for row in json.loads(run("list", "--json"))] == ["NASDAQ"]
    report = json.loads(run("check", "--json"))[0]
    assert (report["ok"], report["bars"], report["zero_volume"], report["gaps"]) == (True, 5031, 2, 1090)
    assert json.loads(run("features", "--json"))["fingerprint"] == FeatureSet.build().fingerprint
    everything = json.loads(run("features", "--list", "--json"))
    assert {"ta:cci(window=20,constant=0.015)"} < {row["name"] for row in everything["features"]}
    assert "unbounded memory" in everything["refused"]["ta:on_balance_volume"]


def test_import_takes_symbol_and_timeframe_from_the_file_name(run: Run, store_root: Path, tmp_path: Path) -> None:
    bars = martingale(500, seed=1)
    file = tmp_path / "BTCUSDT_1h.parquet"
    bars.to_frame().to_parquet(file)
    assert "file BTCUSDT 1h: 500 bars" in run("import", str(file))
    assert BarStore(store_root).load("BTCUSDT", "1h", "file").close.tolist() == bars.close.tolist()
    unnamed = file.rename(tmp_path / "prices.parquet")
    assert "Pass --symbol and --timeframe" in run("import", str(unnamed), code=2)
    run("import", str(unnamed), "--symbol", "ETH/USD", "--timeframe", "1h", "--venue", "mine")
    assert len(BarStore(store_root).load("ETH/USD", "1h", "mine")) == 500


def test_a_refused_import_stores_nothing(run: Run, store_root: Path, tmp_path: Path) -> None:
    """Also when the bad row comes after blocks that were fine."""
    bars = martingale(150_000, seed=1, timeframe="1m")
    file = tmp_path / "X_1m.csv"
    bars.to_frame().to_csv(file)
    text = file.read_text()
    file.write_text(text[: text.rindex(",")] + ",many\n")
    assert "row 150000: volume is 'many'" in run("import", str(file), code=2)
    assert BarStore(store_root).list() == ()


def test_import_again_needs_replace_where_it_contradicts(run: Run, store_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "X_1h.csv"
    martingale(100, seed=1).to_frame().to_csv(file)
    run("import", str(file))
    run("import", str(file))
    martingale(100, seed=2).to_frame().to_csv(file)
    assert "contradict stored ones" in run("import", str(file), code=2)
    run("import", str(file), "--replace")
    assert BarStore(store_root).load("X", "1h").close.tolist() == martingale(100, seed=2).close.tolist()


def test_check_of_a_bad_file_names_every_kind_of_fault_and_fails(run: Run, store_root: Path, tmp_path: Path) -> None:
    frame = martingale(100, seed=1).to_frame()
    frame.iloc[10, frame.columns.get_loc("high")] = 1.0
    frame.iloc[20, frame.columns.get_loc("volume")] = -1.0
    frame = pd.concat([frame, frame.iloc[[50]]])
    file = tmp_path / "X_1h.csv"
    frame.to_csv(file)
    printed = run("check", str(file), code=1)
    for part in ("low ≤ min", "volume is not negative", "timestamps increase", "row 10", "row 20", "row 100", "errors"):
        assert part in printed


def test_check_notices_a_damaged_store(run: Run, store_root: Path) -> None:
    """And still reports on the datasets that are sound."""
    run("sample")
    run("sample", "nasdaq")
    file = next((store_root / "sample" / "SP500").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    printed = run("check", code=1)
    assert "cannot be read" in printed
    assert "sample NASDAQ 1d" in printed
    assert [row["ok"] for row in json.loads(run("check", "--json", code=1))] == [True, False]


def test_the_exported_feature_table_is_the_computed_one(run: Run, store_root: Path, tmp_path: Path) -> None:
    bars = martingale(20_000, seed=1)
    BarStore(store_root).save(bars, source="test")
    out = tmp_path / "deep" / "features.parquet"
    run(
        "features",
        "--symbol",
        bars.symbol,
        "--timeframe",
        "1h",
        "--feature",
        "close_return",
        "--feature",
        "rsi",
        "--out",
        str(out),
    )
    features = FeatureSet.build(["close_return", "rsi"])
    frame = pd.read_parquet(out)
    assert tuple(frame.columns) == ("timestamp", *features.names)
    assert np.array_equal(frame[list(features.names)].to_numpy(), features.compute(bars)[features.warmup - 1 :])
    assert "--out needs --symbol" in run("features", "--out", str(out), code=2)


@pytest.mark.parametrize("command", ["fetch", "import", "sample", "check", "list", "features"])
def test_help_shows_an_example(run: Run, command: str) -> None:
    assert f"Example: python -m data {command}" in run(command, "--help")


def test_debug_shows_where(run: Run, store_root: Path) -> None:
    assert "Traceback" in run("sample", "dax", "--debug", code=2)
    assert run("sample", "dax", code=2).count("\n") == 1


def test_fetch_through_the_command_line(run: Run, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a mock exchange: a good fetch, one that finds nothing new, one that is blocked."""
    monkeypatch.setattr("data.__main__.Retrier", functools.partial(Retrier, sleep=lambda seconds: None))
    bars = martingale(1_500, seed=1)
    now = int(bars.timestamp[-1]) + 1
    with MockExchange({"BTC/USDT": bars}, clock=lambda: now) as exchange:
        options = ("--exchange", "binance", "--symbol", "BTC/USDT", "--url", exchange.url, "--since", "2020-01-01")
        assert "1,499 new bars" in run("fetch", *options)
        report = json.loads(run("fetch", *options, "--json"))
        assert (report["new_bars"], report["stored_bars"], report["gaps"]) == (0, 1499, [])
        stored = BarStore(store_root).load("BTC/USDT", "1h", "binance")
        assert stored.close.tolist() == bars.close[:-1].tolist()
        assert "does not know 'X/Y'" in run("fetch", *options, "--symbol", "X/Y", code=2)
        assert "Choose an earlier --since" in run("fetch", *options, "--since", "2030-01-01", code=2)
        exchange.inject("geo_blocked", times=3)
        printed = run("fetch", *options, "--refresh", code=2)
    assert printed.splitlines()[-1].startswith("error: binance refuses this address (HTTP 451)")
    assert BarStore(store_root).load("BTC/USDT", "1h", "binance") == stored


def test_a_fetch_beside_another_writer_ends_cleanly(run: Run, store_root: Path) -> None:
    bars = martingale(100, seed=1)
    key = DatasetKey("binance", "BTC/USDT", bars.timeframe)
    now = int(bars.timestamp[-1]) + 1
    with (
        MockExchange({"BTC/USDT": bars}, clock=lambda: now) as exchange,
        BarStore(store_root).writer(key, source="this test"),
    ):
        options = ("--exchange", "binance", "--symbol", "BTC/USDT", "--url", exchange.url, "--since", "2020-01-01")
        printed = run("fetch", *options, "--wait", "0.1", code=2)
    assert "another process has been writing this dataset" in printed


# From the table in SOURCES.md of the folder of real bars: bars, gaps, missing bars, bars without volume, |log return|.
KNOWN_FACTS = {
    "BTCUSDT_1h": (55740, 28, 128, 4, 0.201),
    "ETHUSDT_1h": (55740, 28, 128, 6, 0.2341),
    "BTCUSDT_5m_2023": (104816, 1, 16, 14, 0.0907),
    "ETHUSDT_5m_2023": (104816, 1, 16, 14, 0.0899),
    "BNBUSDT_1h": (43085, 26, 121, 3, 0.2501),
    "LTCUSDT_1h": (42197, 26, 121, 2, 0.3004),
    "BTCUSD_1m_2022-01": (45029, 0, 0, 0, 0.0196),
    "EURUSD_1h": (74439, 641, 30730, 74439, 0.0228),
    "XAUUSD_1h": (75628, 1484, 36450, 75628, 0.0548),
    "EURUSD_1h_ask_2017": (6225, 52, 2463, 0, 0.0156),
    "SPY_1d": (3271, 709, 1475, 0, 0.1071),
    "AAPL_1d": (3271, 709, 1475, 0, 0.1975),
    "IBM_1d": (3271, 709, 1475, 0, 0.1106),
    "SPY_1h": (22824, 3270, 91063, 0, 0.0651),
    "VIX_1d": (7304, 1582, 3287, 7304, 0.7682),
}


@pytest.mark.parametrize("stem", KNOWN_FACTS)
def test_real_bars_import_and_show_their_known_facts(shared_data: Path, store_root: Path, stem: str) -> None:
    from data.importer import FileReader, dataset_of_file_name

    path = shared_data / f"{stem}.parquet"
    named = dataset_of_file_name(path)
    assert named is not None
    key = DatasetKey("file", *named)
    reader = FileReader(path, key)
    with BarStore(store_root).writer(key, source="test") as writer:
        for block in reader.blocks():
            writer.add(block)
        manifest = writer.commit()
    report = reader.report()
    bars, gaps, missing, zero_volume, largest = KNOWN_FACTS[stem]
    assert (report.bars, report.gaps, report.missing_bars, report.zero_volume) == (bars, gaps, missing, zero_volume)
    assert (manifest.bars, len(manifest.gaps), manifest.missing_bars) == (bars, gaps, missing)
    assert abs(report.largest_return) == pytest.approx(largest, abs=5e-5)
    assert (report.ok, report.duplicates) == (True, 0)
    stored = BarStore(store_root).load(*named)
    frame = pd.read_parquet(path)
    assert stored == Bars.from_frame(frame, symbol=named[0], timeframe=named[1], venue="file")
    features = FeatureSet.build()
    assert np.isfinite(features.compute(stored)[features.warmup - 1 :]).all()


def test_every_real_file_is_known(shared_data: Path) -> None:
    assert {path.stem for path in shared_data.glob("*.parquet")} == set(KNOWN_FACTS)
