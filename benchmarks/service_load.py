"""Clients of the service, in a process of their own: reads what to do from stdin as JSON, prints what came of it.

    {"port", "key", "bodies": [...], "connections", "seconds"} → {"answered", "decisions", "seconds", "statuses",
    "without_retry_after", "broken", "latency_ms": {"p50", "p90", "p99", "max"}, "client_cpu_seconds"}

Every connection stays open and asks its next question as soon as it has an answer, whatever the answer is: a client
that is refused comes straight back, which is ruder than any that reads Retry-After. All connect first, then all ask
at once; `decisions` are those that came within `seconds`. One connection is a plain blocking socket; several share an
event loop. `broken` counts connections that ended without an answer.
"""

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

Json = dict[str, Any]
_PATIENCE_SECONDS = 30.0  # for the answers that are under way when the time is over


def request_bytes(body: Json, key: str) -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-API-Key: {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass(frozen=True)
class Head:
    """What the first lines of a response say: its status, how many bytes it has in all, whether to come back later."""

    status: int
    size: int
    retry_after: bool

    @classmethod
    def read(cls, received: bytes | bytearray) -> "Head | None":
        """None while it has not arrived whole."""
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = bytes(received[:end]).lower().split(b"\r\n")
        names = dict(line.split(b": ", 1) for line in lines[1:])
        return cls(int(lines[0][9:12]), end + 4 + int(names[b"content-length"]), b"retry-after" in names)


@dataclass
class Tally:
    """What came back."""

    decisions: int = 0  # in time
    statuses: Counter[int] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    broken: int = 0

    def note(self, head: Head, seconds: float, *, in_time: bool) -> None:
        self.statuses[head.status] += 1
        if head.status == 200:
            self.decisions += in_time
            self.milliseconds.append(seconds * 1e3)
        elif head.status in (429, 503) and not head.retry_after:
            self.without_retry_after += 1

    def report(self, seconds: float) -> Json:
        told = self.milliseconds or [float("nan")]
        p50, p90, p99 = np.percentile(told, [50, 90, 99])
        return {
            "answered": sum(self.statuses.values()),
            "decisions": self.decisions,
            "seconds": seconds,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "without_retry_after": self.without_retry_after,
            "broken": self.broken,
            "latency_ms": {"p50": p50, "p90": p90, "p99": p99, "max": max(told)},
            "client_cpu_seconds": time.process_time(),
        }


class Client(asyncio.Protocol):
    """One connection. `start` makes it ask until a time is reached."""

    transport: asyncio.Transport

    def __init__(self, requests: list[bytes], first: int, tally: Tally) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests, self._next, self._tally = requests, first, tally
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's have the methods without the ancestry

    def start(self, until: float) -> None:
        self._until = until
        self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self.transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = Head.read(self._received)
        if head is None or len(self._received) < head.size:
            return
        now = time.perf_counter()
        self._tally.note(head, now - self._asked_at, in_time=now <= self._until)
        self._received.clear()
        if now < self._until:
            self._ask()
        else:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._tally.broken += 1
            self.done.set_result(None)


async def many(port: int, requests: list[bytes], connections: int, seconds: float, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    clients = []
    for first in range(connections):
        _, client = await loop.create_connection(lambda first=first: Client(requests, first, tally), "127.0.0.1", port)
        clients.append(client)
    until = time.perf_counter() + seconds
    for client in clients:
        client.start(until)
    _, late = await asyncio.wait([client.done for client in clients], timeout=seconds + _PATIENCE_SECONDS)
    tally.broken += len(late)


def one(port: int, requests: list[bytes], seconds: float, tally: Tally) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + seconds
        asked = 0
        while (asked_at := time.perf_counter()) < until:
            connection.sendall(requests[asked % len(requests)])
            received = b""
            while (head := Head.read(received)) is None or len(received) < head.size:
                received += connection.recv(65536)
            now = time.perf_counter()
            tally.note(head, now - asked_at, in_time=now <= until)
            asked += 1


def main() -> None:
    order = json.load(sys.stdin)
    requests = [request_bytes(body, order["key"]) for body in order["bodies"]]
    tally, seconds = Tally(), order["seconds"]
    if order["connections"] == 1:
        one(order["port"], requests, seconds, tally)
    else:
        import uvloop

        uvloop.run(many(order["port"], requests, order["connections"], seconds, tally))
    print(json.dumps(tally.report(seconds)))


if __name__ == "__main__":
    main()
