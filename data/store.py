"""Where bars live: Parquet partitions under a manifest, written so that no crash and no second writer can
harm them.

    ROOT/venue/symbol/timeframe/manifest.json
                               /2021-5f0c7a1d9b3e.parquet      one partition; the name carries its content
                               hash /.lock

**The manifest is the commit.** A partition file is written under a name that no manifest knows yet, and is
never changed afterwards; the manifest that names it then replaces the old manifest in one rename. A process
killed at any instant leaves either the old dataset or the new one, plus files that nobody refers to, which
the next writer removes. Every file and folder is fsynced before it is referred to.

**One writer.** A writer holds a file lock on the dataset; readers need none: a reader that loses a file to a
newer commit reads the newer manifest.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal
from urllib.parse import quote

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.bars import COLUMNS, VALUE_COLUMNS, Bars, concatenate, parse_time
from data.quality import Gap, find_gaps, format_time
from data.timeframe import DAY_MS, MILLISECONDS_PER_UNIT, Timeframe

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
LOCK_NAME: Final = ".lock"
LOCK_WAIT_SECONDS: Final = 10.0

_PARQUET_SCHEMA: Final = pa.schema(
    [("timestamp", pa.timestamp("ms", tz="UTC")), *((name, pa.float64()) for name in VALUE_COLUMNS)]
)
# A reader can lose a partition to a newer commit between reading the manifest and the file; each retry needs
# yet another commit to fail, and commits are at least one fsync apart.
_READ_ATTEMPTS: Final = 10


class StoreError(RuntimeError):
    """The store cannot do what was asked; what it held before is intact."""


class DatasetNotFound(StoreError):
    """No such dataset, or more than one venue has it."""


class DatasetLocked(StoreError):
    """Another process is writing this dataset."""


class DatasetConflict(StoreError):
    """New bars contradict stored ones."""


class DatasetCorrupt(StoreError):
    """A stored file is not what the manifest says it is."""


def default_root() -> Path:
    """The store's folder: `SMU0_BARS`, else var/bars under the current folder."""
    return Path(os.environ.get("SMU0_BARS") or "var/bars")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(_Record):
    """A half-open interval of time."""

    start: int = Field(description="first instant, epoch ms")
    end: int = Field(description="first instant after the interval, epoch ms")


class Partition(_Record):
    """One Parquet file."""

    key: str = Field(description='calendar period in UTC: "2021", "2021-03", "2021-03-04" or "all"')
    file: str = Field(description="file name inside the dataset's folder")
    bars: int = Field(description="number of bars")
    first: int = Field(description="open of the first bar, epoch ms")
    last: int = Field(description="open of the last bar, epoch ms")
    content_hash: str = Field(description="SHA-256 of the columns' bytes, independent of the Parquet encoding")


class GapRecord(_Record):
    """Missing bars between two present ones."""

    start: int = Field(description="open of the first missing bar, epoch ms")
    end: int = Field(description="open of the next present bar, epoch ms")
    missing: int = Field(description="number of missing bars")


class Manifest(_Record):
    """What a dataset is, where it came from and which files hold it."""

    schema_version: Literal[1] = Field(default=1, description="version of this layout")
    venue: str = Field(description="exchange or source of the prices")
    symbol: str = Field(description="the venue's name of the instrument")
    timeframe: str = Field(description='bar length, such as "1h"')
    source: str = Field(description="how the bars came here")
    fetched: tuple[Span, ...] = Field(description="intervals that were asked for and answered, disjoint, oldest first")
    bars: int = Field(description="number of bars")
    content_hash: str = Field(description="SHA-256 over the partitions' content hashes")
    gaps: tuple[GapRecord, ...] = Field(description="missing bars, oldest first; nothing is ever filled")
    partitions: tuple[Partition, ...] = Field(description="files, oldest first")

    @property
    def first(self) -> int | None:
        return self.partitions[0].first if self.partitions else None

    @property
    def last(self) -> int | None:
        return self.partitions[-1].last if self.partitions else None

    @property
    def missing_bars(self) -> int:
        return sum(gap.missing for gap in self.gaps)


@dataclass(frozen=True)
class DatasetKey:
    """The identity of a dataset, and its folder under the root."""

    venue: str
    symbol: str
    timeframe: Timeframe

    @classmethod
    def of(cls, bars: Bars) -> DatasetKey:
        return cls(bars.venue, bars.symbol, bars.timeframe)

    def folder(self, root: Path) -> Path:
        return root / _path_part(self.venue) / _path_part(self.symbol) / str(self.timeframe)

    def __str__(self) -> str:
        return f"{self.venue} {self.symbol} {self.timeframe}"


class BarStore:
    """The bars under one root folder."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = default_root() if root is None else Path(root)

    def load(
        self,
        symbol: str,
        timeframe: Timeframe | str,
        venue: str | None = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
    ) -> Bars:
        """Bars that open in [start, end) (ISO time or epoch ms; None: no limit), verified against their
        hashes.

        Reads only the partitions it needs. The venue may be left out where only one has this symbol and
        timeframe. Raises `DatasetNotFound` or `DatasetCorrupt`.
        """
        blocks = list(self.read_blocks(symbol, timeframe, venue, start=start, end=end))
        if not blocks:
            manifest = self.manifest(symbol, timeframe, venue)
            empty: dict[str, NDArray[Any]] = {name: np.empty(0) for name in VALUE_COLUMNS}
            frame = Timeframe.parse(manifest.timeframe)
            return Bars(manifest.symbol, frame, manifest.venue, np.empty(0, np.int64), **empty)
        return blocks[0] if len(blocks) == 1 else concatenate(blocks)

    def read_blocks(
        self,
        symbol: str,
        timeframe: Timeframe | str,
        venue: str | None = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
    ) -> Iterator[Bars]:
        """The bars of `load`, one partition at a time and oldest first, for work in bounded memory."""
        key = self._resolve(symbol, timeframe, venue)
        begin = None if start is None else parse_time(start)
        stop = None if end is None else parse_time(end)
        position = begin
        for _ in range(_READ_ATTEMPTS):
            manifest = self._read_manifest(key)
            try:
                for partition in manifest.partitions:
                    if (position is not None and partition.last < position) or (
                        stop is not None and partition.first >= stop
                    ):
                        continue
                    block = self._read_partition(key, partition).between(position, stop)
                    position = partition.last + 1
                    if len(block):
                        yield block
            except FileNotFoundError:
                continue
            return
        raise DatasetCorrupt(
            f"{key}: a file of the manifest in {key.folder(self.root)} is missing. Fetch or import it again."
        )

    def manifest(self, symbol: str, timeframe: Timeframe | str, venue: str | None = None) -> Manifest:
        """What is known about a dataset without reading its bars. Raises `DatasetNotFound`."""
        return self._read_manifest(self._resolve(symbol, timeframe, venue))

    def save(self, bars: Bars, *, source: str, replace: bool = False) -> Manifest:
        """Add bars to their dataset, creating it if needed; with `replace`, make them the whole dataset.

        Bars that are already stored with the same values are nothing new. Raises `DatasetConflict` if a
        stored bar has other values, `DatasetLocked`, or `StoreError` when the disk refuses.
        """
        with self.writer(DatasetKey.of(bars), source=source) as writer:
            if replace:
                writer.clear()
            writer.add(bars)
            return writer.commit()

    @contextmanager
    def writer(
        self, key: DatasetKey, *, source: str, wait_seconds: float = LOCK_WAIT_SECONDS
    ) -> Iterator[DatasetWriter]:
        """The one writer of a dataset. Waits for another one to finish, then raises `DatasetLocked`."""
        folder = key.folder(self.root)
        create_folder(folder)
        lock = filelock.FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(timeout=wait_seconds)
        except filelock.Timeout as error:
            raise DatasetLocked(
                f"{key}: another process has been writing this dataset for {wait_seconds:g} s "
                f"({folder / LOCK_NAME}). Wait until it ends, then run this again."
            ) from error
        try:
            known = self._read_manifest(key) if (folder / MANIFEST_NAME).exists() else None
            yield DatasetWriter(folder, key, source, known, partial(self._read_partition, key))
        finally:
            lock.release()

    def list(self) -> tuple[Manifest, ...]:
        """Every dataset, ordered by venue, symbol and timeframe."""
        found = [_parse_manifest(path.read_bytes(), path) for path in self.root.glob(f"*/*/*/{MANIFEST_NAME}")]
        return tuple(sorted(found, key=lambda m: (m.venue, m.symbol, Timeframe.parse(m.timeframe))))

    def _resolve(self, symbol: str, timeframe: Timeframe | str, venue: str | None) -> DatasetKey:
        frame = Timeframe.parse(timeframe) if isinstance(timeframe, str) else timeframe
        if venue is not None:
            key = DatasetKey(venue, symbol, frame)
            if (key.folder(self.root) / MANIFEST_NAME).exists():
                return key
        known = self.list()
        venues = [m.venue for m in known if m.symbol == symbol and m.timeframe == str(frame)]
        if venue is None and len(venues) == 1:
            return DatasetKey(venues[0], symbol, frame)
        if venue is None and venues:
            raise DatasetNotFound(
                f"{symbol} {frame} is stored for several venues: {', '.join(venues)}. Name one of them."
            )
        stored = ", ".join(f"{m.venue} {m.symbol} {m.timeframe}" for m in known) or "nothing"
        wanted = f"{symbol} {frame}" if venue is None else f"{venue} {symbol} {frame}"
        raise DatasetNotFound(
            f"No bars of {wanted} in {self.root}; it holds {stored}. Get them with "
            f'"python -m data fetch" or "python -m data import FILE --symbol {symbol} --timeframe {frame}".'
        )

    def _read_manifest(self, key: DatasetKey) -> Manifest:
        path = key.folder(self.root) / MANIFEST_NAME
        return _parse_manifest(path.read_bytes(), path)

    def _read_partition(self, key: DatasetKey, partition: Partition) -> Bars:
        path = key.folder(self.root) / partition.file
        try:
            columns = _read_parquet(path)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DatasetCorrupt(
                f"{key}: {path} cannot be read ({error}). Delete the dataset's folder and fetch or import it again."
            ) from error
        found = content_hash(columns)
        if found != partition.content_hash:
            raise DatasetCorrupt(
                f"{key}: {path} has content {found[:12]}, the manifest expects {partition.content_hash[:12]}. "
                "Delete the dataset's folder and fetch or import it again."
            )
        return Bars(key.symbol, key.timeframe, key.venue, **columns)


class DatasetWriter:
    """Adds bars to one dataset. Nothing is visible to readers before `commit`. Made by `BarStore.writer`."""

    def __init__(
        self,
        folder: Path,
        key: DatasetKey,
        source: str,
        known: Manifest | None,
        read_partition: Callable[[Partition], Bars],
    ) -> None:
        self._folder = folder
        self._key = key
        self._load_partition = read_partition
        # The partition written last, which the next page of a fetch extends.
        self._latest: tuple[Partition, Bars] | None = None
        self._partitions = {} if known is None else {p.key: p for p in known.partitions}
        self._fetched = [] if known is None else list(known.fetched)
        self._inner_gaps: dict[str, tuple[GapRecord, ...]] = {}
        if known is not None:
            for partition in known.partitions:
                self._inner_gaps[partition.key] = tuple(
                    gap for gap in known.gaps if partition.first < gap.start < partition.last
                )
        sources = [] if known is None else known.source.split("; ")
        self._sources = [*sources, source] if source not in sources else sources
        self._remove_unreferenced()

    @property
    def fetched(self) -> tuple[Span, ...]:
        """Intervals already asked for and answered."""
        return tuple(self._fetched)

    def read(self, start: int, end: int) -> Bars | None:
        """Bars already added that open in [start, end) ms, or None where there are none."""
        blocks = [
            self._read_partition(partition).between(start, end)
            for partition in self._ordered()
            if partition.last >= start and partition.first < end
        ]
        blocks = [block for block in blocks if len(block)]
        return concatenate(blocks) if blocks else None

    def clear(self) -> None:
        """Drop everything the dataset held, at the next commit."""
        self._partitions.clear()
        self._inner_gaps.clear()
        self._fetched.clear()
        self._sources = self._sources[-1:]

    def add(self, bars: Bars, *, fetched: Span | None = None, overwrite: bool = False) -> Change:
        """Write bars into their partitions; returns what was new and, with `overwrite`, what was revised.

        fetched: the interval these bars answer for; by default from the first bar to the close of the last.
        Raises `DatasetConflict` if a stored bar has other values and `overwrite` is off.
        """
        if DatasetKey.of(bars) != self._key:
            raise ValueError(f"These are bars of {DatasetKey.of(bars)}, this dataset is {self._key}.")
        change = Change()
        for partition, part in _split_by_partition(bars):
            change += self._add_to_partition(partition, part, overwrite)
        if fetched is None and len(bars):
            fetched = Span(start=int(bars.timestamp[0]), end=self._key.timeframe.close_of(int(bars.timestamp[-1])))
        if fetched is not None:
            self._fetched = _join_spans([*self._fetched, fetched])
        return change

    def commit(self) -> Manifest:
        """Make everything added so far the dataset that readers see."""
        partitions = self._ordered()
        digest = hashlib.sha256()
        gaps: list[GapRecord] = []
        previous: Partition | None = None
        for partition in partitions:
            digest.update(f"{partition.key} {partition.content_hash}\n".encode())
            if previous is not None:
                border = np.array([previous.last, partition.first], dtype=np.int64)
                gaps += map(_gap_record, find_gaps(border, self._key.timeframe))
            gaps += self._inner_gaps[partition.key]
            previous = partition
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            venue=self._key.venue,
            symbol=self._key.symbol,
            timeframe=str(self._key.timeframe),
            source="; ".join(self._sources),
            fetched=tuple(self._fetched),
            bars=sum(partition.bars for partition in partitions),
            content_hash=digest.hexdigest(),
            gaps=tuple(gaps),
            partitions=tuple(partitions),
        )
        text = manifest.model_dump_json(indent=1).encode()
        write_atomically(self._folder / MANIFEST_NAME, lambda file: _write_bytes(file, text))
        self._remove_unreferenced()
        return manifest

    def _read_partition(self, partition: Partition) -> Bars:
        if self._latest is not None and self._latest[0] == partition:
            return self._latest[1]
        return self._load_partition(partition)

    def _ordered(self) -> Sequence[Partition]:
        return sorted(self._partitions.values(), key=lambda partition: partition.first)

    def _add_to_partition(self, key: str, new: Bars, overwrite: bool) -> Change:
        known = self._partitions.get(key)
        if known is None:
            merged, change = new, Change(new=len(new))
        else:
            merged, change = merge_bars(self._read_partition(known), new, overwrite=overwrite)
        if change:
            digest = content_hash({name: getattr(merged, name) for name in COLUMNS})
            name = f"{key}-{digest[:12]}.parquet"
            write_atomically(self._folder / name, lambda file: _write_parquet(merged, file))
            self._partitions[key] = Partition(
                key=key,
                file=name,
                bars=len(merged),
                first=int(merged.timestamp[0]),
                last=int(merged.timestamp[-1]),
                content_hash=digest,
            )
            self._inner_gaps[key] = tuple(map(_gap_record, find_gaps(merged.timestamp, self._key.timeframe)))
            self._latest = (self._partitions[key], merged)
        return change

    def _remove_unreferenced(self) -> None:
        """Delete what a killed writer left, or what the last commit replaced. Only the lock's holder does
        this."""
        wanted = {partition.file for partition in self._partitions.values()}
        for path in self._folder.iterdir():
            if path.suffix == ".tmp" or (path.suffix == ".parquet" and path.name not in wanted):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Change:
    """What adding bars did. revised: opens [ms] of bars that were stored with other values."""

    new: int = 0
    revised: tuple[int, ...] = ()

    def __add__(self, other: Change) -> Change:
        return Change(self.new + other.new, self.revised + other.revised)

    def __bool__(self) -> bool:
        return bool(self.new or self.revised)


def merge_bars(old: Bars, new: Bars, *, overwrite: bool) -> tuple[Bars, Change]:
    """Both sets of bars in order of time, and what `new` changed.

    Raises `DatasetConflict` if both have a bar with different values, unless `overwrite` prefers the new one.
    """
    _, row_old, row_new = np.intersect1d(old.timestamp, new.timestamp, assume_unique=True, return_indices=True)
    same = np.ones(len(row_old), dtype=bool)
    for name in VALUE_COLUMNS:
        same &= getattr(old, name)[row_old] == getattr(new, name)[row_new]
    revised = new.timestamp[row_new[~same]]
    if len(revised) and not overwrite:
        first = int(np.argmin(same))
        before, after = row_old[first], row_new[first]
        values = "; ".join(
            f"{name} {getattr(old, name)[before]:g} stored, {getattr(new, name)[after]:g} new"
            for name in VALUE_COLUMNS
            if getattr(old, name)[before] != getattr(new, name)[after]
        )
        raise DatasetConflict(
            f"{DatasetKey.of(new)}: {len(revised)} of the new bars contradict stored ones, the first at "
            f"{format_time(int(revised[0]))} ({values}). Use another venue name to keep both, or replace the stored "
            "dataset (--replace)."
        )
    kept = np.ones(len(old), dtype=bool)
    kept[row_old] = False
    timestamp = np.concatenate((old.timestamp[kept], new.timestamp))
    order = np.argsort(timestamp, kind="stable")
    columns = {name: np.concatenate((getattr(old, name)[kept], getattr(new, name)))[order] for name in VALUE_COLUMNS}
    merged = Bars(new.symbol, new.timeframe, new.venue, timestamp[order], **columns)
    return merged, Change(len(new) - len(row_new), tuple(revised.tolist()))


def content_hash(columns: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of the column bytes: what the bars say, whatever file format holds them."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Create or replace a file so that after a crash it is either absent, the old one or the complete new
    one.

    Raises `StoreError` when the disk refuses; the old file is then untouched and no temporary file remains.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else str(error)
        raise StoreError(
            f"Cannot write {path}: {reason}. What was stored before is intact. Make room or choose another folder "
            "(SMU0_BARS), then run this again; it continues where it stopped."
        ) from error


def create_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises `StoreError` when the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot create {folder}: {error}. Choose another folder (SMU0_BARS).") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the folder's entry table is a file of its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_bytes(file: BinaryIO, text: bytes) -> None:
    file.write(text)


def _write_parquet(bars: Bars, file: BinaryIO) -> None:
    arrays = [pa.array(bars.timestamp).cast(_PARQUET_SCHEMA.field("timestamp").type)]
    arrays += [pa.array(getattr(bars, name)) for name in VALUE_COLUMNS]
    # Prices rarely repeat: a dictionary makes files a third larger and three times slower to write and read.
    table = pa.Table.from_arrays(arrays, schema=_PARQUET_SCHEMA)
    pq.write_table(table, file, compression="zstd", use_dictionary=False)


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    # Read through a Python file: pyarrow reports a missing file and an unreadable one alike.
    with path.open("rb") as file:
        table = pq.ParquetFile(file).read(columns=list(COLUMNS))
    columns = {name: table.column(name).to_numpy() for name in VALUE_COLUMNS}
    columns["timestamp"] = table.column("timestamp").cast(pa.int64()).to_numpy()
    return columns


def _parse_manifest(text: bytes, path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise DatasetCorrupt(
            f"{path}: {field}: {first['msg']}. Expected a manifest of schema version {SCHEMA_VERSION}; delete the "
            "dataset's folder and fetch or import it again."
        ) from error


def _gap_record(gap: Gap) -> GapRecord:
    return GapRecord(start=gap.start, end=gap.end, missing=gap.missing)


def _join_spans(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Span(start=joined[-1].start, end=max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def _split_by_partition(bars: Bars) -> Iterator[tuple[str, Bars]]:
    """(partition key, its bars), oldest first.

    Partitions are calendar periods of at most about 100,000 bars: rewriting the newest one for each page of a fetch
    stays cheap, and a window of a long dataset needs few files.
    """
    length = bars.timeframe.milliseconds
    if len(bars) == 0:
        return
    if length >= DAY_MS:
        yield "all", bars
        return
    if length >= 5 * MILLISECONDS_PER_UNIT["m"]:
        unit = "Y"
    elif length >= MILLISECONDS_PER_UNIT["m"]:
        unit = "M"
    else:
        unit = "D"
    periods = bars.timestamp.astype("datetime64[ms]").astype(f"datetime64[{unit}]")
    starts = [0, *(np.flatnonzero(np.diff(periods.astype(np.int64))) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(bars)], strict=True):
        yield str(periods[start]), bars.slice(start, stop)


def _path_part(text: str) -> str:
    """One folder name for any venue or symbol: "BTC/USD" is BTC%2FUSD, and no name can climb out of the
    root."""
    encoded = quote(text, safe="")
    return f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded
