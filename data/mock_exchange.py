"""A small exchange on this machine: enough of Binance's spot REST API for the real ccxt client, faults included.

Two uses. The tests drive every fault of a real exchange through the real client. The compose profile `demo` runs it as
a process that replays bars faster than life, so that paper trading can be watched without the internet. That second
use is why it is part of the package and not of the tests.

    python -m data.mock_exchange --port 8091 --speed 600

Endpoints: /api/v3/ping, /api/v3/time, /api/v3/exchangeInfo, /api/v3/klines, and POST /mock/faults with a JSON list of
fault names, which hit the next requests for bars one each.

The exchange has a clock of its own. It knows all its bars in advance and shows those that have opened; the one that is
still open appears with the values it has so far, as on a real exchange.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
import typer

from data.bars import Bars
from data.commandline import make_app, run
from data.store import write_atomically
from data.synthetic import GENERATORS
from data.timeframe import Timeframe

Fault = Literal[
    "hang",
    "reset",
    "banned",
    "too_many_requests",
    "unavailable",
    "geo_blocked",
    "forbidden",
    "html",
    "truncated",
    "empty",
    "object",
    "duplicates",
    "contradiction",
    "reordered",
    "revised",
    "missing",
    "off_grid",
    "nan",
    "null",
    "negative",
    "inconsistent",
    "future",
    "short_rows",
]

# Faults that arrive with an HTTP status of their own.
_STATUS: Final[Mapping[str, int]] = {
    "banned": 418,
    "too_many_requests": 429,
    "unavailable": 503,
    "geo_blocked": 451,
    "forbidden": 403,
}
FAULTS: Final[tuple[Fault, ...]] = Fault.__args__  # type: ignore[attr-defined]

# How far the remembered time may run ahead of the clock: as often as this it is written, in real seconds.
_KEPT_AHEAD_SECONDS: Final = 1.0

_HTML: Final = "<!DOCTYPE html><html><body><h1>We will be back soon</h1></body></html>"

Kline = list[Any]


class MockExchange:
    """Serves the bars of one or more markets over HTTP on the loopback interface. Use as a context manager.

    markets: ccxt symbol ("BTC/USDT") -> bars. They may end in the future of the exchange's clock.
    clock: the exchange's time [ms].
    page_limit: most bars a reply holds, whatever was asked for.
    windowed: a reply covers only the time of the asked number of bars, and is empty where they hold none (Kraken,
        Coinbase); otherwise it holds the first bars from `startTime` on (Binance).
    recent_only: if given, only the latest bars, this many, can be had at all (Kraken: 720).
    delay_seconds: time a reply takes.
    """

    def __init__(
        self,
        markets: Mapping[str, Bars],
        *,
        clock: Callable[[], int],
        page_limit: int = 1000,
        windowed: bool = False,
        recent_only: int | None = None,
        delay_seconds: float = 0.0,
        hang_seconds: float = 30.0,
        retry_after_seconds: int = 1,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._markets = {symbol.replace("/", ""): (symbol, bars) for symbol, bars in markets.items()}
        self.clock = clock
        self.page_limit = page_limit
        self.windowed = windowed
        self.recent_only = recent_only
        self.delay_seconds = delay_seconds
        self.hang_seconds = hang_seconds
        self.retry_after_seconds = retry_after_seconds
        self.requests: dict[str, int] = {}
        self._faults: deque[Fault | None] = deque()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer((host, port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """Base URL for `ExchangeClient(url_override=...)`."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def inject(self, *faults: Fault | None, times: int = 1) -> None:
        """Let these faults hit the next requests for bars, one each, in this order, `times` times over; None is a good
        reply."""
        with self._lock:
            for _ in range(times):
                self._faults.extend(faults)

    @property
    def pending_faults(self) -> int:
        with self._lock:
            return len(self._faults)

    def closed_bars(self, symbol: str) -> Bars:
        """The truth: every bar of this market that has closed by the exchange's clock."""
        bars = self._markets[symbol.replace("/", "")][1]
        return bars.between(None, self.clock() - bars.timeframe.milliseconds + 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self) -> None:
        """Serve in this thread until interrupted."""
        self._server.serve_forever()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        exchange = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Otherwise the end of a reply waits for an acknowledgement that the kernel delays by 40 ms.
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                exchange._answer(self, url.path, query)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                names = json.loads(body or b"[]")
                unknown = [name for name in names if name not in FAULTS]
                if self.path != "/mock/faults" or unknown:
                    _reply(self, 400, json.dumps({"error": f"unknown {self.path} {unknown}", "faults": FAULTS}))
                    return
                exchange.inject(*names)
                _reply(self, 200, json.dumps({"pending": exchange.pending_faults}))

            def log_message(self, format: str, *args: Any) -> None:
                """Requests are counted, not printed."""

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, path: str, query: Mapping[str, str]) -> None:
        with self._lock:
            self.requests[path] = self.requests.get(path, 0) + 1
            fault = self._faults.popleft() if self._faults and path == "/api/v3/klines" else None
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        if path == "/api/v3/ping":
            _reply(handler, 200, "{}")
        elif path == "/api/v3/time":
            _reply(handler, 200, json.dumps({"serverTime": self.clock()}))
        elif path == "/api/v3/exchangeInfo":
            _reply(handler, 200, json.dumps(self._exchange_info()))
        elif path == "/api/v3/klines":
            self._answer_klines(handler, query, fault)
        else:
            _reply(handler, 404, json.dumps({"code": -1, "msg": f"no endpoint {path}"}))

    def _answer_klines(self, handler: BaseHTTPRequestHandler, query: Mapping[str, str], fault: Fault | None) -> None:
        if query.get("symbol") not in self._markets:
            _reply(handler, 400, json.dumps({"code": -1121, "msg": "Invalid symbol."}))
            return
        bars = self._markets[query["symbol"]][1]
        if query.get("interval") != str(bars.timeframe):
            _reply(handler, 400, json.dumps({"code": -1120, "msg": "Invalid interval."}))
            return
        if fault == "hang":
            # The connection stays open and silent until the client gives up (or the exchange shuts down).
            self._released.wait(self.hang_seconds)
            handler.close_connection = True
            return
        if fault == "reset":
            handler.close_connection = True
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n[[")
            return
        if fault is not None and fault in _STATUS:
            headers = {"Retry-After": str(self.retry_after_seconds)} if _STATUS[fault] in (418, 429) else {}
            body = json.dumps({"code": 0, "msg": f"mock {fault}"})
            _reply(handler, _STATUS[fault], body, headers=headers)
            return
        rows = self._klines(bars, query)
        if fault == "html":
            _reply(handler, 200, _HTML, content_type="text/html")
        elif fault == "truncated":
            text = json.dumps(rows)
            _reply(handler, 200, text[: len(text) * 2 // 3])
        elif fault == "object":
            _reply(handler, 200, "{}")
        else:
            _reply(handler, 200, json.dumps(rows if fault is None else damaged(rows, fault, bars.timeframe)))

    def _klines(self, bars: Bars, query: Mapping[str, str]) -> list[Kline]:
        now = self.clock()
        length = bars.timeframe.milliseconds
        opened = int(np.searchsorted(bars.timestamp, now, side="right"))
        limit = min(int(query.get("limit", 500)), self.page_limit)
        first = 0
        if "startTime" in query:
            first = int(np.searchsorted(bars.timestamp, int(query["startTime"])))
        else:
            first = max(0, opened - limit)
        if self.recent_only is not None:
            first = max(first, opened - self.recent_only)
        stop = min(first + limit, opened)
        if self.windowed and "startTime" in query and self.recent_only is None:
            beyond = int(query["startTime"]) + limit * length
            stop = min(stop, int(np.searchsorted(bars.timestamp, beyond)))
        rows = [_kline(bars, row) for row in range(first, stop)]
        if rows and rows[-1][0] + length > now:
            rows[-1] = _still_open(rows[-1], (now - rows[-1][0]) / length)
        return rows

    def _exchange_info(self) -> dict[str, Any]:
        return {
            "timezone": "UTC",
            "serverTime": self.clock(),
            "rateLimits": [],
            "exchangeFilters": [],
            "symbols": [_market(name, symbol) for name, (symbol, _) in self._markets.items()],
        }


def damaged(rows: list[Kline], fault: Fault, timeframe: Timeframe) -> list[Kline]:
    """The rows of a good reply after a fault. Rows are [open time, o, h, l, c, v as text, …]."""
    rows = [list(row) for row in rows]
    if not rows or fault == "empty":
        return []
    middle = len(rows) // 2
    row = rows[middle]
    if fault == "duplicates":
        rows[middle:middle] = [list(row), list(row)]
    elif fault == "contradiction":
        rows.insert(middle, _revised(row))
    elif fault == "reordered":
        rows.reverse()
    elif fault == "revised":
        rows[middle] = _revised(row)
    elif fault == "missing":
        del rows[middle // 2 : middle]
    elif fault == "off_grid":
        row[0] += timeframe.milliseconds // 3
    elif fault == "nan":
        row[4] = "NaN"
    elif fault == "null":
        row[4] = None
    elif fault == "negative":
        row[5] = "-1.0"
    elif fault == "inconsistent":
        row[2], row[3] = row[3], row[2]
    elif fault == "future":
        rows.append([row[0] + 10_000 * timeframe.milliseconds, *row[1:]])
    elif fault == "short_rows":
        rows = [row[:3] for row in rows]
    return rows


def _revised(row: Kline) -> Kline:
    """The same bar with another, equally plausible close and volume."""
    close = 0.5 * (float(row[2]) + float(row[3]))
    if repr(close) == row[4]:
        close = float(row[3])
    return [*row[:4], repr(close), repr(float(row[5]) * 1.5 + 1.0), *row[6:]]


def _still_open(row: Kline, elapsed: float) -> Kline:
    """What an open bar shows after this fraction of its time: it has not yet been everywhere it will be."""
    open_, high, low, close, volume = (float(value) for value in row[1:6])
    close = open_ + (close - open_) * elapsed
    high, low = max(open_, close, open_ + (high - open_) * elapsed), min(open_, close, open_ + (low - open_) * elapsed)
    return [row[0], repr(open_), repr(high), repr(low), repr(close), repr(volume * elapsed), *row[6:]]


def _kline(bars: Bars, row: int) -> Kline:
    """Binance's twelve fields; numbers as text that reads back as the same double."""
    values = (bars.open, bars.high, bars.low, bars.close, bars.volume)
    opened = int(bars.timestamp[row])
    texts = [repr(float(column[row])) for column in values]
    return [opened, *texts, opened + bars.timeframe.milliseconds - 1, "0", 1, "0", "0", "0"]


def _market(name: str, symbol: str) -> dict[str, Any]:
    base, _, quote = symbol.partition("/")
    return {
        "symbol": name,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "permissions": ["SPOT"],
        "permissionSets": [["SPOT"]],
        "filters": [],
    }


def _reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: str,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    payload = body.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(payload)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(payload)


def replay_clock(start_ms: int, speed: float, clock: Callable[[], float] = time.time) -> Callable[[], int]:
    """A clock [ms] that stands at `start_ms` now and runs `speed` times as fast as `clock` [s]."""
    began = clock()
    return lambda: start_ms + math.floor((clock() - began) * 1_000.0 * speed)


def kept_clock(file: Path, clock: Callable[[], int], *, ahead_ms: int) -> Callable[[], int]:
    """`clock` [ms], remembered in `file`: the time there is later than any this clock has shown, by `ahead_ms` at most.

    An exchange that is killed and goes on from the time in the file has stood still for a moment, and has never gone
    back: a bar that was closed stays closed.
    """
    lock = threading.Lock()
    kept = -math.inf

    def now() -> int:
        nonlocal kept
        with lock:
            at = clock()
            if at >= kept:
                _write_time(file, at + ahead_ms)
                kept = at + ahead_ms
            return at

    return now


def kept_time(file: Path) -> int | None:
    """The time [ms] a `kept_clock` left in the file, or None where there is none yet."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    if not text.isdecimal():
        raise ValueError(
            f"{file}: expected a time in epoch milliseconds, found {text[:40]!r}. Remove it to start over."
        )
    return int(text)


def _write_time(file: Path, at: int) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(str(at).encode())

    write_atomically(file, write)


app = make_app("A mock of Binance's spot API that replays bars, for demonstrations and tests.")


@app.command()
def serve(
    symbol: Annotated[str, typer.Option(help="ccxt symbol it offers")] = "BTC/USDT",
    timeframe: Annotated[str, typer.Option(help="bar length")] = "1h",
    generator: Annotated[str, typer.Option(help=f"one of {', '.join(GENERATORS)}")] = "regime",
    seed: Annotated[int, typer.Option(help="of the synthetic bars")] = 1,
    bars: Annotated[int, typer.Option(min=1, help="length of the whole history")] = 20_000,
    history: Annotated[int, typer.Option(min=1, help="bars that are already closed at the start")] = 2_000,
    speed: Annotated[float, typer.Option(min=0, help="exchange seconds per second")] = 600.0,
    clock_file: Annotated[
        Path | None, typer.Option(help="remembers the exchange's time: a restart goes on where it stopped")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8091,
) -> None:
    """Serve synthetic bars as an exchange whose clock runs faster than life.

    Example: python -m data.mock_exchange --speed 3600 --port 8091
    """
    if generator not in GENERATORS:
        raise ValueError(f"Unknown generator {generator!r}. Expected one of {', '.join(GENERATORS)}.")
    made = GENERATORS[generator](bars, seed=seed, timeframe=timeframe, price=30_000.0)
    start = int(made.timestamp[0]) + history * made.timeframe.milliseconds
    if clock_file is None:
        clock = replay_clock(start, speed)
    else:
        resumed = kept_time(clock_file)
        clock = replay_clock(start if resumed is None else resumed, speed)
        clock = kept_clock(clock_file, clock, ahead_ms=round(_KEPT_AHEAD_SECONDS * 1_000.0 * speed))
    exchange = MockExchange({symbol: made}, clock=clock, host=host, port=port)
    print(f"{symbol} {timeframe} on {exchange.url}, {speed:g} times as fast as life", flush=True)
    exchange.serve()


if __name__ == "__main__":
    run(app, "python -m data.mock_exchange")
