"""python -m data: fetch, import, sample, check, list, features."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data.bars import parse_time
from data.commandline import JsonOption, make_app, print_json, run
from data.exchange import ExchangeClient, FetchReport, Retrier, fetch_bars
from data.features import COMPILED_FEATURES, DEFAULT_FEATURES, FeatureSet, FeatureSpec, feature_spec
from data.importer import IMPORT_VENUE, FileFormat, FileReader, dataset_of_file_name
from data.quality import QualityReport, QualityScan, format_time
from data.samples import SAMPLES, load_sample
from data.store import LOCK_WAIT_SECONDS, BarStore, DatasetCorrupt, DatasetKey, Manifest, write_atomically
from data.ta_catalog import REFUSED, SUPPORTED
from data.timeframe import Timeframe

app = make_app("Get bars, look at them, keep them. They are stored under var/bars, or where SMU0_BARS says.")

# What the exchange with the shortest memory still has.
_DEFAULT_FETCH_BARS = 720

SymbolOption = Annotated[str | None, typer.Option(help="such as BTCUSDT or BTC/USDT")]
TimeframeOption = Annotated[str | None, typer.Option(help="bar length, such as 5m, 1h or 1d")]
VenueOption = Annotated[str | None, typer.Option(help="exchange or source the bars are stored under")]


@app.command()
def fetch(
    exchange: Annotated[str, typer.Option(help="ccxt id of the exchange")] = "kraken",
    symbol: Annotated[str, typer.Option(help="ccxt symbol")] = "BTC/USD",
    timeframe: Annotated[str, typer.Option(help="bar length, such as 5m, 1h or 1d")] = "1h",
    since: Annotated[str | None, typer.Option(help="first open, ISO 8601; default: 720 bars ago")] = None,
    until: Annotated[str | None, typer.Option(help="end, exclusive, ISO 8601; default: now")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="ask again for bars that are stored and take over revisions")
    ] = False,
    url: Annotated[str | None, typer.Option(help="base URL to talk to instead of the exchange, such as a mock")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds to wait for a reply")] = 10.0,
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for another fetch to end")] = LOCK_WAIT_SECONDS,
    json_output: JsonOption = False,
) -> None:
    """Fetch closed bars from an exchange (public data, no keys). Interrupted or run again, it continues.

    Example: python -m data fetch --exchange kraken --symbol BTC/USD --timeframe 1h --since 2020-01-01
    """
    frame = Timeframe.parse(timeframe)
    with ExchangeClient(exchange, url_override=url, timeout_seconds=timeout) as client:
        retrier = Retrier(notice=lambda message: print(message, file=sys.stderr))
        if since is None:
            start = retrier.call(client.now_ms) - _DEFAULT_FETCH_BARS * frame.milliseconds
        else:
            start = parse_time(since)
        with _progress(f"{exchange} {symbol} {timeframe}") as advance:
            report = fetch_bars(
                BarStore(),
                client,
                symbol,
                frame,
                since=start,
                until=None if until is None else parse_time(until),
                refresh=refresh,
                retrier=retrier,
                progress=advance,
                wait_seconds=wait,
            )
    if json_output:
        print_json(asdict(report) | {"gaps": [gap.model_dump() for gap in report.gaps]})
        return
    _print_fetched(report)


@app.command()
def sample(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(SAMPLES)}")] = "sp500",
    json_output: JsonOption = False,
) -> None:
    """Store real daily bars that need no exchange: 5,031 days of a stock index, 1999 to 2018.

    Example: python -m data sample nasdaq
    """
    manifest = BarStore().save(load_sample(name), source=f"arch sample {name}")
    _print_stored(manifest, json_output)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet file of bars")],
    symbol: SymbolOption = None,
    timeframe: TimeframeOption = None,
    venue: VenueOption = IMPORT_VENUE,
    columns: Annotated[
        str | None,
        typer.Option(help="OURS=THEIRS,… for columns that are not recognised; without a header: all names in order"),
    ] = None,
    timezone: Annotated[str, typer.Option(help="of times that carry none, an IANA name")] = "UTC",
    sort: Annotated[bool, typer.Option("--sort", help="sort rows by time, drop exact repetitions")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="drop what the dataset held before")] = False,
    json_output: JsonOption = False,
) -> None:
    """Store the bars of a CSV or Parquet file, all of them or none.

    Symbol and timeframe default to the file's name, as in BTCUSDT_1h.parquet. Column names and the time
    format (epoch seconds to nanoseconds, ISO 8601 with or without offset) are recognised. Anything doubtful
    is refused with its row.

    Example: python -m data import prices.csv --symbol EURUSD --timeframe 1h --columns
    timestamp=Gmt,volume=none
    """
    key = _key_of_file(file, symbol, timeframe, venue)
    reader = FileReader(file, key, FileFormat.parse(columns, timezone=timezone, sort=sort))
    with BarStore().writer(key, source=f"file {file.name}") as writer, _progress(f"{key}") as advance:
        if replace:
            writer.clear()
        for block in reader.blocks(progress=advance):
            writer.add(block)
        manifest = writer.commit()
    if reader.repeated_rows and not json_output:
        print(f"dropped {reader.repeated_rows} exact repetitions")
    _print_stored(manifest, json_output)


@app.command("list")
def list_datasets(json_output: JsonOption = False) -> None:
    """Show what is stored.

    Example: python -m data list --json
    """
    store = BarStore()
    manifests = store.list()
    if json_output:
        print_json([_summary(manifest) for manifest in manifests])
        return
    if not manifests:
        print(f'{store.root} holds no bars. Get some: "python -m data sample".')
        return
    table = Table("venue", "symbol", "timeframe", "bars", "first", "last", "missing", "source")
    for m in manifests:
        table.add_row(
            m.venue,
            m.symbol,
            m.timeframe,
            f"{m.bars:,}",
            _time(m.first),
            _time(m.last),
            f"{m.missing_bars:,}",
            m.source,
        )
    _console().print(table)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="check this file instead of the store")] = None,
    symbol: SymbolOption = None,
    timeframe: TimeframeOption = None,
    venue: VenueOption = None,
    columns: Annotated[str | None, typer.Option(help="for a file, as in import")] = None,
    timezone: Annotated[str, typer.Option(help="for a file, as in import")] = "UTC",
    json_output: JsonOption = False,
) -> None:
    """Report the quality of stored datasets (all, or those that match), or of a file before it is imported.

    Ends with exit code 1 if a row breaks the bar contract or a stored file is not what its manifest says.

    Example: python -m data check --symbol BTCUSDT
    """
    damaged: dict[str, str] = {}
    if file is not None:
        key = _key_of_file(file, symbol, timeframe, venue or IMPORT_VENUE)
        reports = {str(file): FileReader(file, key, FileFormat.parse(columns, timezone=timezone)).inspect()}
    else:
        reports, damaged = _check_store(symbol, timeframe, venue)
    if json_output:
        found = [{"dataset": name, "ok": report.ok, **asdict(report)} for name, report in reports.items()]
        print_json(found + [{"dataset": name, "ok": False, "damage": text} for name, text in damaged.items()])
    else:
        _print_reports(reports)
        for text in damaged.values():
            print(text)
    if damaged or not all(report.ok for report in reports.values()):
        raise typer.Exit(1)


@app.command()
def features(
    symbol: SymbolOption = None,
    timeframe: TimeframeOption = None,
    venue: VenueOption = None,
    feature: Annotated[
        list[str] | None, typer.Option("--feature", help="feature name; repeatable; default: the default set")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the feature table of the dataset to this Parquet file")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="show every feature there is, and what is refused")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show features with their warm-ups; with --symbol, --timeframe and --out, export a feature table.

    Example: python -m data features --symbol SP500 --timeframe 1d --out var/features.parquet
    """
    if list_all:
        _print_all_features(json_output)
        return
    chosen = FeatureSet.build(tuple(feature) if feature else DEFAULT_FEATURES)
    described = [{"name": s.name, "warmup": s.warmup, "meaning": s.meaning} for s in chosen.specs]
    result: dict[str, Any] = {"fingerprint": chosen.fingerprint, "warmup": chosen.warmup, "features": described}
    if out is not None:
        if symbol is None or timeframe is None:
            raise ValueError("--out needs --symbol and --timeframe of a stored dataset; see python -m data list.")
        result |= {"out": str(out), "rows": _export_features(chosen, BarStore(), symbol, timeframe, venue, out)}
    if json_output:
        print_json(result)
        return
    _console().print(_feature_table(chosen.specs))
    print(f"set {chosen.fingerprint}: first exact row needs {chosen.warmup} bars")
    if out is not None:
        print(f"wrote {result['rows']:,} rows to {out}")


def _print_all_features(json_output: bool) -> None:
    specs = [feature_spec(name) for name in (*COMPILED_FEATURES, *(f"ta:{name}" for name in SUPPORTED))]
    if json_output:
        described = [{"name": s.name, "warmup": s.warmup, "meaning": s.meaning} for s in specs]
        print_json({"features": described, "refused": {f"ta:{name}": why for name, why in REFUSED.items()}})
        return
    _console().print(_feature_table(specs))
    refused = Table("refused", "because")
    for name, reason in REFUSED.items():
        refused.add_row(f"ta:{name}", reason)
    _console().print(refused)


def _feature_table(specs: Iterable[FeatureSpec]) -> Table:
    table = Table("feature", "warm-up [bars]", "meaning")
    for spec in specs:
        table.add_row(spec.name, str(spec.warmup), spec.meaning)
    return table


def _key_of_file(file: Path, symbol: str | None, timeframe: str | None, venue: str | None) -> DatasetKey:
    named = dataset_of_file_name(file)
    if named is None and (symbol is None or timeframe is None):
        raise ValueError(
            f"{file.name}: which bars are these? Pass --symbol and --timeframe, or name the file like BTCUSDT_1h.csv."
        )
    frame = Timeframe.parse(timeframe) if timeframe is not None else named[1] if named else None
    assert frame is not None
    return DatasetKey(venue or IMPORT_VENUE, symbol or (named[0] if named else ""), frame)


def _check_store(
    symbol: str | None, timeframe: str | None, venue: str | None
) -> tuple[dict[str, QualityReport], dict[str, str]]:
    """(dataset -> its report, dataset -> what is wrong with its files)."""
    store = BarStore()
    frame = None if timeframe is None else str(Timeframe.parse(timeframe))
    chosen = [
        m
        for m in store.list()
        if symbol in (None, m.symbol) and frame in (None, m.timeframe) and venue in (None, m.venue)
    ]
    if not chosen:
        raise ValueError(f'{store.root} holds no such bars; see "python -m data list". Get some: python -m data sample')
    reports, damaged = {}, {}
    for m in chosen:
        name = f"{m.venue} {m.symbol} {m.timeframe}"
        scan = QualityScan(Timeframe.parse(m.timeframe))
        done = 0
        try:
            with _progress(name) as advance:
                for block in store.read_blocks(m.symbol, m.timeframe, m.venue):
                    scan.add(block.timestamp, block.open, block.high, block.low, block.close, block.volume)
                    done += len(block)
                    advance(done / m.bars)
            reports[name] = scan.report()
        except DatasetCorrupt as error:
            damaged[name] = str(error)
    return reports, damaged


def _export_features(
    chosen: FeatureSet, store: BarStore, symbol: str, timeframe: str, venue: str | None, out: Path
) -> int:
    """Write timestamp and features of every bar from the warm-up on, a partition at a time."""
    schema = pa.schema(
        [("timestamp", pa.timestamp("ms", tz="UTC")), *((name, pa.float32()) for name in chosen.names)],
        metadata={"feature_fingerprint": chosen.fingerprint},
    )
    rows = 0
    bars = store.manifest(symbol, timeframe, venue).bars
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(file: Any) -> None:
        nonlocal rows
        with pq.ParquetWriter(file, schema, compression="zstd") as parquet, _progress("features") as advance:
            for timestamp, table in chosen.compute_blocks(store.read_blocks(symbol, timeframe, venue)):
                times = pa.array(timestamp).cast(schema.field("timestamp").type)
                values = [pa.array(table[:, column]) for column in range(table.shape[1])]
                parquet.write_table(pa.Table.from_arrays([times, *values], schema=schema))
                rows += len(timestamp)
                advance(rows / bars)

    write_atomically(out, write)
    return rows


def _summary(m: Manifest) -> dict[str, Any]:
    return {
        "venue": m.venue,
        "symbol": m.symbol,
        "timeframe": m.timeframe,
        "bars": m.bars,
        "first": None if m.first is None else format_time(m.first),
        "last": None if m.last is None else format_time(m.last),
        "gaps": len(m.gaps),
        "missing_bars": m.missing_bars,
        "source": m.source,
        "content_hash": m.content_hash,
    }


def _print_stored(m: Manifest, json_output: bool) -> None:
    if json_output:
        print_json(_summary(m))
        return
    longest = max(m.gaps, key=lambda gap: gap.missing, default=None)
    gaps = "no gaps"
    if longest is not None:
        gaps = (
            f"{len(m.gaps):,} gaps with {m.missing_bars:,} missing bars, the longest {longest.missing:,} "
            f"from {format_time(longest.start)}"
        )
    print(f"{m.venue} {m.symbol} {m.timeframe}: {m.bars:,} bars, {_time(m.first)} to {_time(m.last)}, {gaps}")


def _print_fetched(report: FetchReport) -> None:
    print(
        f"{report.dataset}: {report.new_bars:,} new bars, {report.stored_bars:,} stored, "
        f"{_time(report.first)} to {_time(report.last)}, {report.retries} replies asked for again"
    )
    if report.first is not None and report.first > report.since:
        print(f"asked from {format_time(report.since)} on; the exchange has nothing before {format_time(report.first)}")
    if report.revised:
        print(f"{len(report.revised)} stored bars were revised by the exchange, the first {_time(report.revised[0])}")
    if not report.gaps:
        print("no gaps")
        return
    print(f"{len(report.gaps):,} gaps, {sum(gap.missing for gap in report.gaps):,} missing bars; the longest:")
    table = Table("from", "to", "missing")
    for gap in sorted(report.gaps, key=lambda gap: -gap.missing)[:10]:
        table.add_row(format_time(gap.start), format_time(gap.end), f"{gap.missing:,}")
    _console().print(table)


def _print_reports(reports: dict[str, QualityReport]) -> None:
    headings = ("dataset", "bars", "first", "last", "gaps", "missing", "longest gap", "duplicates", "zero volume")
    table = Table(*headings, "largest |log return|", "verdict")
    for name, r in reports.items():
        longest = "" if r.longest_gap is None else f"{r.longest_gap.missing:,} from {_time(r.longest_gap.start)}"
        largest = f"{abs(r.largest_return):.4f} at {_time(r.largest_return_at)}"
        counts = (f"{r.gaps:,}", f"{r.missing_bars:,}", longest, f"{r.duplicates:,}", f"{r.zero_volume:,}")
        verdict = "ok" if r.ok else "no bars" if r.bars == 0 else "errors"
        table.add_row(name, f"{r.bars:,}", _time(r.first), _time(r.last), *counts, largest, verdict)
    _console().print(table)
    for name, r in reports.items():
        for violation in r.violations:
            print(f"{name}: {violation}")


def _time(timestamp_ms: int | None) -> str:
    return "" if timestamp_ms is None else format_time(timestamp_ms)


def _console() -> Console:
    """Tables keep their columns whole in a pipe, where there is no terminal width to fit."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=220)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, quiet when that is not a terminal; gives a function that takes the fraction
    done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)


if __name__ == "__main__":
    run(app, "python -m data")
