"""Server-sent events: what the ledger learns reaches every listener, each at his own speed.

One task asks the ledger where it stands while anybody listens. A listener keeps nothing but a position: when the ledger
has moved on, he reads from there, one page at a time, and the next page waits until his connection has taken the last.
So a slow listener costs a position, not a queue, and one who comes back with `Last-Event-ID` is served like one who was
slow.

An id is `EVENT-DECISION`: the last row of each table that was told. `EVENT` alone is understood as well.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import InvalidRequest, ServiceError, Unavailable

_POSITION: Final = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_RETRY_MILLISECONDS: Final = 2000  # after which a browser comes back
KEEP_ALIVE: Final = b": keep-alive\n\n"


class Position(NamedTuple):
    """Ids of the last event and the last decision that were told; rows after them are news."""

    event: int
    decision: int

    @classmethod
    def parse(cls, text: str, head: Self) -> Self:
        """A `Last-Event-ID`. head: where the ledger stands, for what the text leaves out. Raises InvalidRequest."""
        found = _POSITION.fullmatch(text)
        if found is None:
            raise InvalidRequest(
                "Last-Event-ID: expected EVENT-DECISION as this stream sends it, such as 118-52, or the id of an event"
            )
        return cls(int(found[1]), head.decision if found[2] is None else int(found[2]))

    def __str__(self) -> str:
        return f"{self.event}-{self.decision}"


class Message(NamedTuple):
    """One server-sent event. data: JSON in one line. position: where a listener stands who has been told this."""

    kind: str
    data: bytes
    position: Position | None = None

    def encode(self) -> bytes:
        """On the wire."""
        identifier = b"" if self.position is None else f"id: {self.position}\n".encode()
        return b"event: %b\n%bdata: %b\n\n" % (self.kind.encode(), identifier, self.data)


@dataclass(frozen=True)
class Head:
    """Where the ledger stands. status: how things stand, the same object as long as nothing changes."""

    position: Position
    status: Message


class Source:
    """What a stream tells of: two questions to the ledger."""

    def __init__(
        self,
        head: Callable[[], Awaitable[Head]],
        after: Callable[[Position], Awaitable[Sequence[Message]]],
    ) -> None:
        """head: where the ledger stands. after: a page of what follows a position, in order; empty at the head.

        Both may raise ServiceError when the ledger cannot be read; the stream says so and goes on trying.
        """
        self.head = head
        self.after = after


class Broadcast:
    """The listeners of a service."""

    def __init__(
        self,
        source: Source,
        *,
        limit: int,
        poll_seconds: float,
        keepalive_seconds: float,
        stopping: Callable[[], bool],
    ) -> None:
        """limit: most listeners. stopping: whether the service is about to end; listeners are let go within a poll."""
        self._source = source
        self._limit = limit
        self._poll_seconds = poll_seconds
        self._keepalive_seconds = keepalive_seconds
        self._stopping = stopping
        self._listeners = 0
        self._head: Head | None = None
        self._trouble: Message | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return self._listeners

    async def join(self, last_event_id: str | None, allowed: Callable[[], bool] = lambda: True) -> "Subscription":
        """Take a place. Raises Unavailable when all are taken, InvalidRequest for a strange id.

        Without `last_event_id` the listener hears only what is new. allowed: asked at every keep-alive; the stream
        ends when it says no, as after a logout.
        """
        if self._stopping():
            raise Unavailable("the service is stopping; come back", retry_after=1.0)
        if self._listeners >= self._limit:
            raise Unavailable(
                f"{self._listeners} event streams are open and the service keeps {self._limit}; close one, or ask "
                f"GET /v1/paper/events with after",
                retry_after=5.0,
            )
        self._listeners += 1
        try:
            head = await self._source.head()
            position = head.position if last_event_id is None else Position.parse(last_event_id, head.position)
        except BaseException:
            self._listeners -= 1
            raise
        if self._task is None or self._task.done():
            self._head, self._trouble = head, None
            self._task = asyncio.create_task(self._watch())
        return Subscription(self._tell(position, allowed), self._leave)

    def _leave(self) -> None:
        self._listeners -= 1

    async def _watch(self) -> None:
        """Follow the ledger as long as anybody listens."""
        while self._listeners and not self._stopping():
            await asyncio.sleep(self._poll_seconds)
            try:
                head: Head | None = await self._source.head()
                trouble = None
            except ServiceError as error:
                head, trouble = self._head, Message("trouble", json.dumps({"detail": error.detail}).encode())
            if (head, trouble) != (self._head, self._trouble):
                self._head, self._trouble = head, trouble
                self._wake()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _tell(self, position: Position, allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """One listener's stream. Ends with the service or with his permission."""
        told_status: Message | None = None
        told_trouble: Message | None = None
        yield b"retry: %d\n\n" % _RETRY_MILLISECONDS
        while not self._stopping():
            news, head = self._news, self._head
            while head is not None and position != head.position and not self._stopping():
                try:
                    page = await self._source.after(position)
                except ServiceError:
                    break  # the watching task meets the same trouble and tells of it
                if not page:
                    position = head.position  # the ledger was replaced: what he was told is not in this one
                    break
                position = page[-1].position or position
                yield b"".join(message.encode() for message in page)
            if head is not None and head.status is not told_status:
                told_status = head.status
                yield told_status.encode()
            if self._trouble != told_trouble:
                told_trouble = self._trouble
                if told_trouble is not None:
                    yield told_trouble.encode()
            if news is self._news:
                try:
                    await asyncio.wait_for(news.wait(), self._keepalive_seconds)
                except TimeoutError:
                    if not allowed():
                        return
                    yield KEEP_ALIVE


class Subscription(NamedTuple):
    """A listener's place: his stream, and how to give the place back."""

    messages: AsyncIterator[bytes]
    leave: Callable[[], None]


class EventStream(StreamingResponse):
    """A subscription as a response; the place is given back however the connection ends."""

    media_type = "text/event-stream"

    def __init__(self, subscription: Subscription) -> None:
        # A proxy that collects a response before it passes it on would turn news into history.
        super().__init__(subscription.messages, headers={"x-accel-buffering": "no"})
        self._leave = subscription.leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
