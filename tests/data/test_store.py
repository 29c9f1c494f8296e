"""The store: what is written is read, whatever happens in between."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import data.store
from data.bars import Bars, concatenate
from data.store import (
    BarStore,
    DatasetConflict,
    DatasetCorrupt,
    DatasetKey,
    DatasetLocked,
    DatasetNotFound,
    GapRecord,
    Span,
    StoreError,
    default_root,
)
from data.synthetic import martingale
from data.timeframe import Timeframe

Make = Callable[..., Bars]
H = 3_600_000


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return BarStore(tmp_path / "bars")


@pytest.fixture(scope="module")
def years() -> Bars:
    """Three calendar years of hourly bars, hence several partitions."""
    return martingale(20_000, seed=1)


@pytest.mark.parametrize("timeframe", ["1s", "1m", "5m", "1h", "4h", "1d", "1w"])
def test_bars_come_back_as_they_were_saved(store: BarStore, timeframe: str) -> None:
    bars = martingale(3_000, seed=2, timeframe=timeframe, start="2020-01-06")
    store.save(bars, source="test")
    assert store.load(bars.symbol, timeframe) == bars
    assert store.load(bars.symbol, Timeframe.parse(timeframe), bars.venue) == bars


def test_the_files_are_the_contract(store: BarStore, years: Bars) -> None:
    """Plain Parquet with a UTC millisecond timestamp and float64 columns, compressed with zstd."""
    import pyarrow.parquet as pq

    store.save(years, source="test")
    folder = store.root / "synthetic" / "SYNTHETIC-MARTINGALE" / "1h"
    files = sorted(folder.glob("*.parquet"))
    assert [file.name[:5] for file in files] == ["2020-", "2021-", "2022-"]
    frame = pd.concat([pd.read_parquet(file) for file in files])
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "timestamp": "datetime64[ms, UTC]",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "float64"),
    }
    assert Bars.from_frame(frame, symbol=years.symbol, timeframe="1h", venue=years.venue) == years
    assert pq.ParquetFile(files[0]).metadata.row_group(0).column(1).compression == "ZSTD"


def test_the_manifest_tells_source_range_hash_and_gaps(store: BarStore, bars_at: Make) -> None:
    manifest = store.save(bars_at([0, 1, 4, 5, 9]), source="a test")
    assert json.loads((store.root / "test" / "X" / "1h" / "manifest.json").read_text()) == manifest.model_dump(
        mode="json"
    )
    assert (manifest.source, manifest.bars, manifest.first, manifest.last) == ("a test", 5, 0, 9 * H)
    assert manifest.fetched == (Span(start=0, end=10 * H),)
    assert manifest.gaps == (
        GapRecord(start=2 * H, end=4 * H, missing=2),
        GapRecord(start=6 * H, end=9 * H, missing=3),
    )
    assert manifest.missing_bars == 5
    assert len(manifest.content_hash) == 64


def test_a_gap_over_new_year_is_found_between_partitions(store: BarStore, years: Bars) -> None:
    borders = years.between("2020-12-31", "2021-01-02")
    manifest = store.save(concatenate([borders.slice(0, 20), borders.slice(30, 48)]), source="test")
    assert [(gap.start, gap.missing) for gap in manifest.gaps] == [(int(borders.timestamp[20]), 10)]


def test_pieces_saved_in_any_order_are_the_same_dataset(tmp_path: Path, years: Bars) -> None:
    """Same bars, same gaps, same hash: how they came does not matter."""
    whole = BarStore(tmp_path / "whole").save(years, source="test")
    pieces = BarStore(tmp_path / "pieces")
    cuts = [0, 3, 5_000, 9_000, 9_001, 16_000, len(years)]
    order = np.random.default_rng(0).permutation(len(cuts) - 1)
    for i in order:
        manifest = pieces.save(years.slice(cuts[i], cuts[i + 1]), source="test")
    assert manifest == whole
    assert pieces.load(years.symbol, "1h") == years


def test_windows_read_only_their_partitions(store: BarStore, years: Bars) -> None:
    store.save(years, source="test")
    folder = store.root / "synthetic" / "SYNTHETIC-MARTINGALE" / "1h"
    next(folder.glob("2022-*.parquet")).write_bytes(b"not read, so not noticed")
    window = store.load(years.symbol, "1h", start="2020-12-01", end="2021-02-01T05:00")
    assert window == years.between("2020-12-01", "2021-02-01T05:00")
    assert len(store.load(years.symbol, "1h", start="2019-01-01", end="2019-02-01")) == 0


def test_blocks_are_the_partitions_in_order(store: BarStore, years: Bars) -> None:
    store.save(years, source="test")
    blocks = list(store.read_blocks(years.symbol, "1h"))
    assert len(blocks) == 3
    assert concatenate(blocks) == years


def test_saving_the_same_bars_again_changes_nothing(store: BarStore, years: Bars) -> None:
    first = store.save(years, source="test")
    files = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")}
    assert store.save(years.slice(100, 12_000), source="test") == first
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")} == files


def test_a_contradiction_is_refused_and_changes_nothing(store: BarStore, bars_at: Make) -> None:
    old = bars_at(range(10))
    store.save(old, source="test")
    other = bars_at(range(5, 15), first_price=105.5)
    with pytest.raises(
        DatasetConflict, match=r"5 of the new bars contradict .* 1970-01-01T05:00Z \(open 105 stored, 105.5"
    ):
        store.save(other, source="test")
    assert store.load("X", "1h") == old
    store.save(other, source="test", replace=True)
    assert store.load("X", "1h") == other


def test_symbols_with_slashes_have_their_own_folders(store: BarStore, bars_at: Make) -> None:
    for symbol in ("BTC/USDT", "BTC/USDT:USDT", "../evil", ".", "BTC USDT"):
        store.save(bars_at([0, 1], symbol=symbol), source="test")
        assert store.load(symbol, "1h").symbol == symbol
    assert {path.parent.parent.parent for path in store.root.rglob("manifest.json")} == {store.root / "test"}


def test_the_venue_must_be_named_where_several_have_the_symbol(store: BarStore, bars_at: Make) -> None:
    one = bars_at([0, 1])
    two = Bars("X", one.timeframe, "other", one.timestamp, one.open, one.high, one.low, one.close, one.volume)
    store.save(one, source="test")
    store.save(two, source="test")
    with pytest.raises(DatasetNotFound, match="several venues: other, test"):
        store.load("X", "1h")
    assert store.load("X", "1h", "other") == two
    assert [(m.venue, m.symbol) for m in store.list()] == [("other", "X"), ("test", "X")]


def test_a_missing_dataset_says_what_there_is_and_how_to_get_it(store: BarStore, bars_at: Make) -> None:
    with pytest.raises(DatasetNotFound, match=r"holds nothing.*python -m data"):
        store.load("Y", "1h")
    store.save(bars_at([0]), source="test")
    with pytest.raises(DatasetNotFound, match=r"it holds test X 1h.*--symbol Y --timeframe 1h"):
        store.load("Y", "1h", "test")


def test_the_root_comes_from_the_environment_or_is_var_bars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMU0_BARS", str(tmp_path))
    assert default_root() == BarStore().root == tmp_path
    monkeypatch.delenv("SMU0_BARS")
    assert default_root() == Path("var/bars")


def test_a_changed_byte_is_noticed(store: BarStore, bars_at: Make) -> None:
    """Whether the file no longer parses, or parses to other bars."""
    bars = bars_at(range(100))
    store.save(bars, source="test")
    file = next(store.root.rglob("*.parquet"))
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(DatasetCorrupt, match="cannot be read"):
        store.load("X", "1h")
    frame = bars.to_frame().reset_index()
    frame.loc[50, "close"] += 0.5
    frame.to_parquet(file)
    with pytest.raises(DatasetCorrupt, match="the manifest expects"):
        store.load("X", "1h")
    file.unlink()
    with pytest.raises(DatasetCorrupt, match="missing"):
        store.load("X", "1h")


def test_a_manifest_of_another_version_is_refused(store: BarStore, bars_at: Make) -> None:
    store.save(bars_at([0]), source="test")
    path = next(store.root.rglob("manifest.json"))
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DatasetCorrupt, match="schema version 1"):
        store.load("X", "1h")


class Crash(BaseException):
    """Stands for the process ending at once: nothing in the code catches it."""


@contextmanager
def failing_at(step: int, error: BaseException) -> Iterator[list[int]]:
    """Inside, the n-th step that changes the disk (write, fsync, rename, delete) raises. Gives the count of steps."""
    count = [0]

    def stepping(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                raise error
            return original(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (data.store, "_write_parquet")):
            patch.setattr(owner, name, stepping(getattr(owner, name)))
        yield count


def test_a_crash_at_any_step_leaves_the_old_or_the_new_dataset(tmp_path: Path, years: Bars) -> None:
    """The second save changes one partition and adds another. Every step is tried, and after each crash the next save
    completes the work and leaves no litter."""
    old, new = years.slice(0, 10_000), years
    template = BarStore(tmp_path / "template")
    template.save(old, source="test")
    outcomes = []
    for step in range(1, 100):
        root = tmp_path / f"crash{step}"
        shutil.copytree(template.root, root)
        with failing_at(step, Crash()) as count, suppress(Crash):
            BarStore(root).save(new, source="test")
        survived = BarStore(root).load(years.symbol, "1h")
        assert survived in (old, new)
        outcomes.append(survived == new)
        BarStore(root).save(new, source="test")
        assert BarStore(root).load(years.symbol, "1h") == new
        assert len(list(root.rglob("*.parquet"))) == 3
        assert list(root.rglob("*.tmp")) == []
        if count[0] < step:
            break
    assert 10 < step < 99, "every step was tried"
    assert outcomes == sorted(outcomes), "from one step on the new dataset stands, before it the old one"
    assert outcomes.count(False) > 5


@pytest.mark.parametrize("step", range(1, 9))
def test_a_full_disk_is_told_clearly_and_harms_nothing(store: BarStore, years: Bars, step: int) -> None:
    old = years.slice(0, 10_000)
    store.save(old, source="test")
    with (
        failing_at(step, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        pytest.raises(StoreError, match=r"no space left on the disk\. What was stored before is intact"),
    ):
        store.save(years, source="test")
    assert store.load(years.symbol, "1h") == old
    assert list(store.root.rglob("*.tmp")) == []
    store.save(years, source="test")
    assert store.load(years.symbol, "1h") == years


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small file system here; the injected error covers the code")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(small_disk: Path, years: Bars) -> None:
    store = BarStore(small_disk)
    old = years.slice(0, 4_000)
    store.save(old, source="test")
    with pytest.raises(StoreError, match="no space left on the disk"):
        store.save(years, source="test")
    assert store.load(years.symbol, "1h") == old


def _hold_the_lock(root: Path, key: DatasetKey, held: Any, release: Any) -> None:
    with BarStore(root).writer(key, source="other process"):
        held.set()
        release.wait(30)


def test_a_second_process_waits_then_gives_up_cleanly(store: BarStore, bars_at: Make) -> None:
    bars = bars_at(range(10))
    store.save(bars.slice(0, 5), source="test")
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold_the_lock, args=(store.root, DatasetKey.of(bars), held, release))
    other.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(DatasetLocked, match="another process has been writing"),
            store.writer(DatasetKey.of(bars), source="test", wait_seconds=0.05),
        ):
            pass
        assert store.load("X", "1h") == bars.slice(0, 5), "readers never wait"
        release.set()
        store.save(bars, source="test")
    finally:
        release.set()
        other.join()
    assert store.load("X", "1h") == bars


def test_a_reader_that_loses_a_file_to_a_newer_commit_reads_on(
    store: BarStore, years: Bars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer extends the partition between the reader's look at the manifest and at the file."""
    store.save(years.slice(0, 12_000), source="test")
    original = BarStore._read_manifest
    interfered = []

    def commit_after_reading(self: BarStore, key: DatasetKey) -> Any:
        manifest = original(self, key)
        if not interfered:
            interfered.append(True)
            BarStore(store.root).save(years, source="test")
        return manifest

    monkeypatch.setattr(BarStore, "_read_manifest", commit_after_reading)
    assert store.load(years.symbol, "1h") == years
    assert interfered
