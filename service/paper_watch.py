"""How paper trading stands, asked of the ledger once for everybody who wants to know at the same time.

The status page, the health check, the metrics and every event stream show the same snapshot: however many ask, the
ledger is read a few times a second.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import DeadlineExceeded, Unavailable
from service.ledger.store import Reader
from service.ledger_desk import LedgerDesk, NoLedger
from service.paper_schemas import PaperStatus
from service.paper_views import StatusReader, stream_head, stream_page, without_run
from service.stream import Head, Message, Position

_FRESH_SECONDS: Final = 0.25  # a snapshot this young answers the next question too


@dataclass(frozen=True)
class _Snapshot:
    status: PaperStatus
    position: Position


class PaperWatch:
    """Asks, and remembers for a moment. now: seconds since the epoch."""

    def __init__(self, desk: LedgerDesk, *, now: Callable[[], float]) -> None:
        self._desk = desk
        self._now = now
        self._reader = StatusReader()
        self._asking: asyncio.Task[_Snapshot] | None = None
        self._asked_at = 0.0
        self._head: Head | None = None
        self._told: PaperStatus | None = None

    async def status(self) -> PaperStatus:
        """How things stand. Raises Unavailable or DeadlineExceeded when the ledger cannot be read."""
        return (await self._snapshot()).status

    async def status_if_known(self) -> PaperStatus | None:
        """How things stand; none when the ledger cannot be read now."""
        try:
            return await self.status()
        except (Unavailable, DeadlineExceeded):
            return None

    async def not_ready(self) -> list[str]:
        """Why paper trading cannot be shown; empty when it can, or where nothing was ever traded. Names no place."""
        try:
            await self._snapshot()
        except (Unavailable, DeadlineExceeded):
            return [self._desk.trouble or "the ledger is busy"]
        return []

    async def head(self) -> Head:
        """For the event streams; the same object as long as there is nothing new."""
        snapshot = await self._snapshot()
        lasting = _without_the_hour(snapshot.status)
        if self._head is None or self._head.position != snapshot.position or self._told != lasting:
            status = (
                self._head.status
                if self._head is not None and self._told == lasting
                else Message("status", snapshot.status.model_dump_json().encode())
            )
            self._head, self._told = Head(snapshot.position, status), lasting
        return self._head

    async def after(self, position: Position) -> Sequence[Message]:
        """For the event streams: a page of what follows a position."""
        try:
            return await self._desk.read(lambda read: stream_page(read, position))
        except NoLedger:
            return []

    async def _snapshot(self) -> _Snapshot:
        loop = asyncio.get_running_loop()
        stale = loop.time() - self._asked_at > _FRESH_SECONDS
        if self._asking is None or (self._asking.done() and (stale or self._asking.cancelled())):
            self._asked_at = loop.time()
            self._asking = loop.create_task(self._ask())
            self._asking.add_done_callback(_look_at)
        # shield: whoever gives up must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> _Snapshot:
        now_ms = int(self._now() * 1000)

        def look(read: Reader) -> _Snapshot:
            return _Snapshot(self._reader.read(read, now_ms), stream_head(read))

        try:
            return await self._desk.read(look)
        except NoLedger:
            return _Snapshot(without_run(now_ms), Position(0, 0))


def _look_at(done: "asyncio.Task[_Snapshot]") -> None:
    """A failure that nobody waits for any more is no news."""
    if not done.cancelled():
        done.exception()


def _without_the_hour(status: PaperStatus) -> PaperStatus:
    """What of a status is worth telling: not that time has passed."""
    process = status.process
    if process is not None:
        process = process.model_copy(update={"heartbeat_age_seconds": 0.0})
    return status.model_copy(update={"now_ms": 0, "process": process})
