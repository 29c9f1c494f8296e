"""Bars from files: CSV or Parquet, whatever its column names and time format, read block by block.

Parsing is strict. A value is either understood without doubt or the file is refused with the row and the
reason: a guessed time zone or a silently dropped row would be found, if ever, as a trading loss. Rows are
counted from 1 below the header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data.bars import COLUMNS, VALUE_COLUMNS, Bars, concatenate
from data.quality import DataQualityError, Floats, QualityReport, QualityScan, Times, raise_violations
from data.store import DatasetKey
from data.timeframe import Timeframe

IMPORT_VENUE: Final = "file"

# Column names seen in the exports of exchanges and data vendors, lower case, without spaces and underscores.
_KNOWN_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "timestamp": frozenset(
        {"timestamp", "time", "date", "datetime", "opentime", "ts", "unix", "unixtime", "unixtimestamp"}
    ),
    "open": frozenset({"open", "o", "openprice"}),
    "high": frozenset({"high", "h", "highprice"}),
    "low": frozenset({"low", "l", "lowprice"}),
    "close": frozenset({"close", "c", "closeprice"}),
    "volume": frozenset({"volume", "v", "vol", "basevolume"}),
}
# Marks a source without volume (FX quotes), which then reads as zero.
NO_VOLUME: Final = "none"

# Arrow reads some twenty blocks ahead, so this also bounds the memory of an import.
_CSV_BLOCK_BYTES: Final = 1 << 20
_PARQUET_BLOCK_ROWS: Final = 65_536
# Blocks handed on are longer than a partition of minute bars, so that the store writes each partition about once.
_BLOCK_BARS: Final = 131_072

# An integer time is read by its size: seconds until the year 5138, then milliseconds, microseconds,
# nanoseconds.
_EPOCH_UNITS: Final = (
    ("seconds", 100_000_000, 100_000_000_000, 1_000.0),
    ("milliseconds", 100_000_000_000, 100_000_000_000_000, 1.0),
    ("microseconds", 100_000_000_000_000, 100_000_000_000_000_000, 1e-3),
    ("nanoseconds", 100_000_000_000_000_000, 2**63 - 1, 1e-6),
)
_ZONE_SUFFIX: Final = r"(Z|[+-]\d\d:?\d\d|UTC|GMT)\s*$"


class ImportRefused(DataQualityError):
    """A file cannot be read as bars without guessing. The message names the row and the reason."""


@dataclass(frozen=True)
class FileFormat:
    """How to read a file, where detection is not enough.

    columns: our column name -> the file's, for those that detection cannot find; volume may be `NO_VOLUME`.
    header: names of the columns in order, for a CSV file without a header line; "-" skips one.
    timezone: of times that carry none, an IANA name.
    sort: sort by time and drop exact repetitions (reads the whole file into memory).
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] | None = None
    timezone: str = "UTC"
    sort: bool = False

    @classmethod
    def parse(cls, columns: str | None, *, timezone: str = "UTC", sort: bool = False) -> FileFormat:
        """From the command line: "timestamp=unix,volume=Volume BTC" or, without a header,
        "timestamp,open,-,…"."""
        if not columns:
            return cls(timezone=timezone, sort=sort)
        parts = [part.strip() for part in columns.split(",")]
        if any("=" in part for part in parts):
            mapping = dict(part.partition("=")[::2] for part in parts)
            unknown = sorted(set(mapping) - set(COLUMNS))
            if unknown or not all(mapping.values()):
                raise ValueError(
                    f"--columns {columns!r}: expected OURS=THEIRS pairs with OURS out of {', '.join(COLUMNS)}, "
                    f"found {', '.join(unknown) or 'an empty name'}. Example: --columns timestamp=unix,volume=none"
                )
            return cls(columns=mapping, timezone=timezone, sort=sort)
        wrong = [name for name in parts if name not in (*COLUMNS, "-")]
        missing = [name for name in COLUMNS if parts.count(name) != 1]
        if wrong or missing:
            raise ValueError(
                f"--columns {columns!r}: for a file without a header list every column in order, each of "
                f"{', '.join(COLUMNS)} once and - for the others; wrong: {', '.join(wrong + missing)}."
            )
        return cls(header=tuple(parts), timezone=timezone, sort=sort)


def dataset_of_file_name(path: Path) -> tuple[str, Timeframe] | None:
    """("BTCUSDT", 1h) from BTCUSDT_1h.parquet or BTC-USDT_1h_2023.csv; None where the name does not say."""
    parts = path.stem.split("_")
    if len(parts) < 2 or not parts[0]:
        return None
    try:
        return parts[0], Timeframe.parse(parts[1])
    except ValueError:
        return None


class FileReader:
    """Reads one file of bars. Make one, then use `blocks`; `report` tells what was seen so far.

    Raises `ImportRefused` for what cannot be understood and `DataQualityError` for bars that break the
    contract.
    """

    def __init__(self, path: Path, key: DatasetKey, file_format: FileFormat | None = None) -> None:
        self.path = path
        self.key = key
        self.format = FileFormat() if file_format is None else file_format
        self.repeated_rows = 0
        self._scan = QualityScan(key.timeframe)
        self._rows = 0
        self._smallest_step: int | None = None
        self._last: int | None = None

    def report(self) -> QualityReport:
        """Quality of the rows read so far."""
        return self._scan.report()

    def blocks(self, *, progress: Callable[[float], None] = lambda fraction: None) -> Iterator[Bars]:
        """The bars in order, a block at a time; `progress` gets the fraction read."""
        if self.format.sort:
            yield from self._validated([self._sorted(list(self._raw_blocks(progress)))])
        else:
            yield from _at_least(_BLOCK_BARS, self._validated(self._raw_blocks(progress)))
        self._check_whole()

    def inspect(self) -> QualityReport:
        """Read everything and report, violations included, instead of refusing them."""
        for block in self._raw_blocks(lambda fraction: None):
            self._take(block)
        return self.report()

    def _take(self, block: dict[str, Any]) -> None:
        self._scan.add(**block)
        timestamp: Times = block["timestamp"]
        known = timestamp if self._last is None else np.concatenate(([self._last], timestamp))
        steps = np.diff(known)
        steps = steps[steps > 0]
        if len(steps):
            smallest = int(steps.min())
            self._smallest_step = smallest if self._smallest_step is None else min(self._smallest_step, smallest)
        if len(timestamp):
            self._last = int(timestamp[-1])

    def _validated(self, blocks: Iterable[dict[str, Any]]) -> Iterator[Bars]:
        for block in blocks:
            self._take(block)
            violations = self.report().violations
            if violations:
                hint = ""
                if {v.rule for v in violations} <= {"unsorted", "duplicate"}:
                    hint = " With --sort, rows are sorted by time and exact repetitions dropped."
                elif any(v.rule == "off_grid" for v in violations):
                    hint = f" Is the file really {self.key.timeframe}?"
                try:
                    raise_violations(violations, subject=str(self.path))
                except DataQualityError as error:
                    raise DataQualityError(f"{error}{hint}") from None
            if len(block["timestamp"]):
                yield Bars(self.key.symbol, self.key.timeframe, self.key.venue, **block)

    def _check_whole(self) -> None:
        report = self.report()
        if report.bars == 0:
            raise ImportRefused(f"{self.path}: no rows. Expected a header and one row per bar.")
        step = self._smallest_step
        if step is not None and step != self.key.timeframe.milliseconds:
            spelled = str(Timeframe(step)) if step % 1_000 == 0 else f"{step} ms"
            raise ImportRefused(
                f"{self.path}: no two bars are {self.key.timeframe} apart, the smallest step is {spelled}. "
                f"Expected bars of --timeframe {self.key.timeframe}; pass --timeframe {spelled}?"
            )

    def _sorted(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        """All rows in order of time, rows equal in every column once. Different rows of one time are left
        for the validation to refuse."""
        whole = {name: np.concatenate([block[name] for block in blocks]) for name in COLUMNS}
        order = np.argsort(whole["timestamp"], kind="stable")
        whole = {name: column[order] for name, column in whole.items()}
        repeated = np.zeros(len(order), dtype=bool)
        if len(order):
            repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in whole.values()])
        self.repeated_rows = int(np.count_nonzero(repeated))
        return {name: column[~repeated] for name, column in whole.items()}

    def _raw_blocks(self, progress: Callable[[float], None]) -> Iterator[dict[str, Any]]:
        """Columns as numbers, not yet checked against the bar contract."""
        if not self.path.is_file():
            raise ImportRefused(f"{self.path}: no such file. Expected a CSV or Parquet file of bars.")
        parquet = self.path.suffix.lower() in (".parquet", ".pq")
        source = self._parquet_tables(progress) if parquet else self._csv_tables(progress)
        clock: _Clock | None = None
        chosen: dict[str, str] | None = None
        for table in source:
            if chosen is None:
                chosen = self._choose_columns(table.column_names)
            times = table.column(chosen["timestamp"])
            if clock is None:
                clock = _Clock.detect(times, self.path, self.format.timezone)
            block: dict[str, Any] = {"timestamp": clock.read(times, self._rows)}
            for name in VALUE_COLUMNS:
                if chosen[name] == NO_VOLUME and name == "volume":
                    block[name] = np.zeros(table.num_rows)
                else:
                    block[name] = self._numbers(table.column(chosen[name]), name)
            self._rows += table.num_rows
            yield block

    def _choose_columns(self, names: list[str]) -> dict[str, str]:
        """Our column name -> the file's. Explicit choices first, then the known names."""
        chosen: dict[str, str] = {}
        for ours in COLUMNS:
            explicit = self.format.columns.get(ours)
            if explicit is not None:
                if explicit not in names and not (ours == "volume" and explicit == NO_VOLUME):
                    raise ImportRefused(
                        f"{self.path}: no column {explicit!r} (asked for as {ours}); found {', '.join(names)}."
                    )
                chosen[ours] = explicit
                continue
            fitting = [name for name in names if re.sub(r"[\s_]", "", name.lower()) in _KNOWN_NAMES[ours]]
            if len(fitting) != 1:
                found = f"several: {', '.join(fitting)}" if fitting else f"none among {', '.join(names)}"
                extra = f", or volume={NO_VOLUME} for quotes without volume" if ours == "volume" else ""
                raise ImportRefused(
                    f"{self.path}: expected one {ours} column, found {found}. "
                    f'Name it: --columns "{ours}=THEIR NAME"{extra}.'
                )
            chosen[ours] = fitting[0]
        return chosen

    def _numbers(self, column: pa.ChunkedArray, name: str) -> Floats:
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        try:
            if text:
                column = pc.utf8_trim_whitespace(column)
            values = pc.cast(column, pa.float64())
        except pa.ArrowException:
            row = _first_failure(column, lambda part: pc.cast(part, pa.float64()))
            raise ImportRefused(
                f"{self.path}: row {self._rows + row + 1}: {name} is {column[row].as_py()!r}, expected a number such "
                "as 1234.5 (no thousands separators, no units)."
            ) from None
        if values.null_count:
            row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            raise ImportRefused(
                f"{self.path}: row {self._rows + row + 1}: {name} is empty, expected a number. Bars that do not "
                "exist are left out, not written with empty values."
            )
        numbers: Floats = values.to_numpy()
        return numbers

    def _parquet_tables(self, progress: Callable[[float], None]) -> Iterator[pa.Table]:
        with self.path.open("rb") as handle:
            try:
                file = pq.ParquetFile(handle, pre_buffer=False)
                total = max(file.metadata.num_rows, 1)
                done = 0
                for batch in file.iter_batches(batch_size=_PARQUET_BLOCK_ROWS):
                    yield pa.Table.from_batches([batch])
                    done += batch.num_rows
                    progress(done / total)
            except (pa.ArrowException, OSError) as error:
                raise ImportRefused(f"{self.path}: not readable as Parquet ({error}).") from error

    def _csv_tables(self, progress: Callable[[float], None]) -> Iterator[pa.Table]:
        """Everything is read as text: only then can a refusal name the row and show what stands there."""
        size = max(self.path.stat().st_size, 1)
        done = 0
        try:
            names = self._csv_header()
            reader = pa_csv.open_csv(
                self.path,
                read_options=pa_csv.ReadOptions(
                    use_threads=False,
                    block_size=_CSV_BLOCK_BYTES,
                    column_names=names,
                    skip_rows=0 if self.format.header else 1,
                ),
                parse_options=pa_csv.ParseOptions(delimiter=self._delimiter()),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
                ),
            )
            for batch in reader:
                yield pa.Table.from_batches([batch])
                done += batch.nbytes
                progress(min(done / size, 1.0))
        except UnicodeDecodeError as error:
            raise ImportRefused(f"{self.path}: not UTF-8 text ({error}). Expected CSV or Parquet.") from error
        except pa.ArrowException as error:
            raise ImportRefused(f"{self.path}: not readable as CSV: {error}") from error

    def _first_line(self) -> str:
        with self.path.open(encoding="utf-8-sig") as file:
            return file.readline().strip("\r\n")

    def _delimiter(self) -> str:
        line = self._first_line()
        return max((",", ";", "\t"), key=line.count)

    def _csv_header(self) -> list[str]:
        if self.format.header:
            # Skipped columns still need names of their own.
            return [name if name != "-" else f"-{i}" for i, name in enumerate(self.format.header)]
        line = self._first_line()
        names = [name.strip().strip('"') for name in line.split(self._delimiter())]
        if not any(names):
            raise ImportRefused(f"{self.path}: empty. Expected a header and one row per bar.")
        if all(re.fullmatch(r"[\d.:TZ \-+eE]+", name) for name in names):
            raise ImportRefused(
                f"{self.path}: the first line holds values ({line[:60]}), expected column names. For a file without "
                "a header list the columns in order: --columns timestamp,open,high,low,close,volume (- skips one)."
            )
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ImportRefused(f"{self.path}: the header repeats {', '.join(repeated)}; names must be unique.")
        return names


@dataclass(frozen=True)
class _Clock:
    """How the times of one file are written: decided on its first value, held for all others."""

    path: Path
    kind: str
    """"epoch" (numbers), "zoned" (text with offset), "naive" (text without), "datetime" (typed)."""
    timezone: str
    unit: tuple[str, int, int, float] | None = None

    @classmethod
    def detect(cls, times: pa.ChunkedArray, path: Path, timezone: str) -> _Clock:
        if pa.types.is_timestamp(times.type) or pa.types.is_date(times.type):
            return cls(path, "datetime", timezone)
        first = next((value.as_py() for value in times if value.is_valid), None)
        text = "" if first is None else str(first).strip()
        try:
            number = float(text)
        except ValueError:
            return cls(path, "zoned" if re.search(_ZONE_SUFFIX, text) else "naive", timezone)
        for unit in _EPOCH_UNITS:
            if unit[1] <= number < unit[2]:
                return cls(path, "epoch", timezone, unit)
        raise ImportRefused(
            f"{path}: row 1: time {text!r} is no epoch time (seconds are 1e8 to 1e11, milliseconds 1e11 to 1e14) and "
            "no ISO 8601 date. Write dates as 2021-03-04 and times as 2021-03-04T05:00:00Z."
        )

    def read(self, times: pa.ChunkedArray, rows_before: int) -> Times:
        """Epoch ms [N]."""
        if times.null_count:
            row = int(np.argmax(times.is_null().to_numpy(zero_copy_only=False)))
            self._refuse(rows_before + row, "no time", "the open time of the bar")
        if self.kind == "epoch":
            return self._read_epoch(times, rows_before)
        if self.kind == "datetime":
            return self._read_index(pd.DatetimeIndex(times.to_pandas()), rows_before)
        return self._read_text(pc.utf8_trim_whitespace(times), rows_before)

    def _read_epoch(self, times: pa.ChunkedArray, rows_before: int) -> Times:
        assert self.unit is not None
        name, lowest, beyond, factor = self.unit
        try:
            exact = times if pa.types.is_integer(times.type) else pc.cast(times, pa.float64())
        except pa.ArrowException:
            row = _first_failure(times, lambda part: pc.cast(part, pa.float64()))
            self._refuse(rows_before + row, f"time {times[row].as_py()!r}", f"epoch {name}, like the rows before")
        values: np.ndarray[Any, np.dtype[Any]] = exact.to_numpy()
        fitting = (values >= lowest) & (values < beyond)
        if not fitting.all():
            row = int(np.argmin(fitting))
            self._refuse(rows_before + row, f"time {values[row]:.0f}", f"epoch {name}, like the rows before")
        if values.dtype.kind in "iu":
            whole = values.astype(np.int64)
            if factor >= 1.0:
                return whole * int(factor)
            divisor = round(1.0 / factor)
            self._refuse_fractions(whole % divisor != 0, rows_before)
            return whole // divisor
        milliseconds = values * factor
        # A double holds epoch seconds and milliseconds exactly, microseconds to a fraction of one.
        self._refuse_fractions(np.abs(milliseconds - np.rint(milliseconds)) > 1e-3, rows_before)
        return np.rint(milliseconds).astype(np.int64)

    def _read_text(self, times: pa.ChunkedArray, rows_before: int) -> Times:
        zoned = pc.match_substring_regex(times, _ZONE_SUFFIX).to_numpy(zero_copy_only=False)
        odd = zoned if self.kind == "naive" else ~zoned
        if odd.any():
            row = int(np.argmax(odd))
            here, before = ("a", "no") if self.kind == "naive" else ("no", "a")
            self._refuse(
                rows_before + row,
                f"time {times[row].as_py()!r} with {here} time zone after rows with {before} time zone",
                "the same in every row",
            )
        text = times.to_pandas()
        try:
            parsed = pd.to_datetime(text, format="ISO8601", utc=self.kind == "zoned")
        except ValueError:
            # The slow path only finds the row: each value is tried on its own.
            failed = pd.to_datetime(text, format="ISO8601", utc=self.kind == "zoned", errors="coerce").isna()
            row = int(np.argmax(failed.to_numpy()))
            self._refuse(rows_before + row, f"time {text[row]!r}", "ISO 8601 such as 2021-03-04T05:00:00Z")
        return self._read_index(pd.DatetimeIndex(parsed), rows_before)

    def _read_index(self, index: pd.DatetimeIndex, rows_before: int) -> Times:
        if index.tz is None:
            try:
                index = index.tz_localize(self.timezone)
            except (ValueError, KeyError) as error:
                raise ImportRefused(
                    f"{self.path}: rows {rows_before + 1} to {rows_before + len(index)}: local time in {self.timezone} "
                    f"is not one instant ({error}). Give times with their offset, or in UTC."
                ) from error
        milliseconds = index.tz_convert("UTC").as_unit("ms")
        self._refuse_fractions(np.asarray(milliseconds != index), rows_before)
        return milliseconds.asi8.copy()

    def _refuse_fractions(self, broken: np.ndarray[Any, Any], rows_before: int) -> None:
        if broken.any():
            self._refuse(rows_before + int(np.argmax(broken)), "a fraction of a millisecond", "whole milliseconds")

    def _refuse(self, row: int, found: str, expected: str) -> None:
        raise ImportRefused(f"{self.path}: row {row + 1}: {found}, expected {expected}.")


def _at_least(count: int, blocks: Iterable[Bars]) -> Iterator[Bars]:
    """The same bars in blocks of at least `count`, but for the last."""
    waiting: list[Bars] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= count:
            yield concatenate(waiting)
            waiting = []
    if waiting:
        yield concatenate(waiting)


def _first_failure(column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], Any]) -> int:
    """Index of the first value that `convert` refuses, by halving."""
    start, stop = 0, len(column)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            convert(column.slice(start, middle - start))
            start = middle
        except pa.ArrowException:
            stop = middle
    return start
