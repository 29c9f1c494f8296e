"""Server-sent events: nothing is told twice or left out, however slow, late or many the listeners are."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import ClientDisconnect

from service.app import create_app
from service.auth import KeyFile
from service.errors import InvalidRequest, ServiceError, Unavailable
from service.runtime import Service
from service.stream import KEEP_ALIVE, Broadcast, EventStream, Head, Message, Position, Source

Json = dict[str, Any]


class Book:
    """A ledger of one kind of row, as a source."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.trouble: ServiceError | None = None
        self.asked = 0
        self._head: Head | None = None

    async def head(self) -> Head:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        if self._head is None or self._head.position.event != len(self.rows):
            self._head = Head(Position(len(self.rows), 0), Message("status", str(len(self.rows)).encode()))
        return self._head

    async def after(self, position: Position) -> Sequence[Message]:
        if self.trouble is not None:
            raise self.trouble
        page = self.rows[position.event : position.event + 10]
        return [
            Message("event", text.encode(), Position(position.event + number + 1, 0))
            for number, text in enumerate(page)
        ]


class Listener:
    def __init__(self, messages: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        self.messages = messages
        self.leave = leave
        self.text = ""

    async def hear(self, words: str, seconds: float = 5.0) -> str:
        async with asyncio.timeout(seconds):
            while words not in self.text:
                self.text += (await anext(self.messages)).decode()
        return self.text

    @property
    def ids(self) -> list[str]:
        return [line[4:] for line in self.text.splitlines() if line.startswith("id: ")]


def broadcast(book: Book, *, stopping: Callable[[], bool] = lambda: False, **bounds: Any) -> Broadcast:
    bounds = {"limit": 3, "poll_seconds": 0.01, "keepalive_seconds": 5.0, **bounds}
    return Broadcast(Source(book.head, book.after), stopping=stopping, **bounds)


async def join(station: Broadcast, last: str | None = None, **options: Any) -> Listener:
    return Listener(*await station.join(last, **options))


def test_a_listener_hears_how_things_stand_and_then_what_is_new() -> None:
    async def main() -> None:
        book = Book()
        book.rows += ["old"]
        listener = await join(broadcast(book))
        text = await listener.hear("event: status")
        assert text.startswith("retry: ")
        book.rows += ["first", "second"]
        await listener.hear("event: status\ndata: 3")
        assert "data: old" not in listener.text
        assert listener.ids == ["2-0", "3-0"]

    asyncio.run(main())


def test_who_comes_back_goes_on_where_he_was() -> None:
    async def main() -> None:
        book = Book()
        book.rows += [f"row {number}" for number in range(35)]  # several pages
        listener = await join(broadcast(book), "4-0")
        await listener.hear("data: row 34")
        assert listener.ids == [f"{number}-0" for number in range(5, 36)]
        book.rows += ["row 35"]
        await listener.hear("data: row 35")
        assert listener.ids[-1] == "36-0"

    asyncio.run(main())


@pytest.mark.parametrize("last", ["", "x", "1-", "-1", "1-2-3", "9" * 19, "1 ", "١"])
def test_a_strange_last_event_id_is_refused_and_costs_no_place(last: str) -> None:
    async def main() -> None:
        station = broadcast(Book())
        with pytest.raises(InvalidRequest):
            await station.join(last)
        assert station.listeners == 0

    asyncio.run(main())


def test_an_id_from_a_ledger_that_was_replaced_goes_on_with_the_new_one() -> None:
    async def main() -> None:
        book = Book()
        book.rows += ["a"]
        listener = await join(broadcast(book), "500-70")
        await listener.hear("event: status")
        book.rows += ["b"]
        await listener.hear("data: b")
        assert listener.ids == ["2-0"]

    asyncio.run(main())


def test_a_slow_listener_misses_nothing_and_holds_up_nobody() -> None:
    async def main() -> None:
        book = Book()
        station = broadcast(book)
        slow, quick = await join(station), await join(station)
        await slow.hear("event: status")
        for number in range(100):
            book.rows.append(f"row {number}.")
            if number % 10 == 9:
                await quick.hear(f"row {number}.")
        await slow.hear("row 99.")
        assert slow.ids == quick.ids == [f"{number}-0" for number in range(1, 101)]

    asyncio.run(main())


def test_many_listeners_cost_one_question() -> None:
    async def main() -> None:
        book = Book()
        station = broadcast(book, limit=50, poll_seconds=0.05)
        listeners = [await join(station) for _ in range(50)]
        await asyncio.gather(*(listener.hear("event: status") for listener in listeners))
        before = book.asked
        await asyncio.sleep(0.3)
        assert book.asked - before <= 7

    asyncio.run(main())


def test_places_are_bounded_and_given_back() -> None:
    async def main() -> None:
        station = broadcast(Book())
        listeners = [await join(station) for _ in range(3)]
        with pytest.raises(Unavailable) as refused:
            await station.join(None)
        assert refused.value.retry_after is not None
        listeners[0].leave()
        await join(station)

    asyncio.run(main())


def test_nobody_is_asked_when_nobody_listens() -> None:
    async def main() -> None:
        book = Book()
        station = broadcast(book)
        listener = await join(station)
        await listener.hear("event: status")
        listener.leave()
        await asyncio.sleep(0.05)
        before = book.asked
        await asyncio.sleep(0.05)
        assert book.asked == before
        await (await join(station)).hear("event: status")  # and it begins anew

    asyncio.run(main())


def test_trouble_is_told_once_and_its_end_shows() -> None:
    async def main() -> None:
        book = Book()
        listener = await join(broadcast(book))
        await listener.hear("event: status")
        book.trouble = Unavailable("the disk is gone")
        await listener.hear("the disk is gone")
        book.rows.append("news")
        await asyncio.sleep(0.05)
        book.trouble = None
        await listener.hear("data: news")
        assert listener.text.count("event: trouble") == 1

    asyncio.run(main())


def test_silence_is_broken_and_the_permission_is_asked_for_again() -> None:
    async def main() -> None:
        allowed = True
        listener = await join(broadcast(Book(), keepalive_seconds=0.02), allowed=lambda: allowed)
        await listener.hear(KEEP_ALIVE.decode())
        allowed = False
        with pytest.raises(StopAsyncIteration):
            await listener.hear("more")

    asyncio.run(main())


def test_the_end_of_the_service_ends_every_stream_at_once() -> None:
    async def main() -> None:
        stopping = False
        station = broadcast(Book(), stopping=lambda: stopping)
        listener = await join(station)
        await listener.hear("event: status")
        stopping = True
        begin = time.monotonic()
        with pytest.raises(StopAsyncIteration):
            await listener.hear("more")
        assert time.monotonic() - begin < 2.0
        with pytest.raises(Unavailable):
            await station.join(None)

    asyncio.run(main())


def test_a_connection_that_breaks_gives_its_place_back() -> None:
    async def main() -> None:
        station = broadcast(Book())
        response = EventStream(await station.join(None))

        async def gone(_: Any) -> None:
            raise OSError("connection reset")

        async def never() -> Any:
            await asyncio.sleep(60)

        with pytest.raises(ClientDisconnect):
            await response({"type": "http", "asgi": {"spec_version": "2.4"}}, never, gone)
        assert station.listeners == 0

    asyncio.run(main())


# --- over a socket ---------------------------------------------------------------------------------------------------


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The service behind a real socket, in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(service), port=0, log_config=None, timeout_graceful_shutdown=5, lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        service.stop()
        server.should_exit = True
        thread.join(timeout=15)
        assert not thread.is_alive()


def read_events(lines: Iterator[str], kind: str, count: int) -> list[tuple[str | None, Json]]:
    """The next events of a kind: id and data."""
    found: list[tuple[str | None, Json]] = []
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if fields.get("event") == kind:
            found.append((fields.get("id"), json.loads(fields["data"])))
        fields = {}
        if len(found) == count:
            return found
    raise AssertionError(f"the stream ended after {found}")


def test_decisions_and_events_arrive_over_a_socket_and_resume_where_they_stopped(
    make_service: Callable[..., Service], headers: dict[str, str], paper_run: Any
) -> None:
    with (
        serving(make_service(stream_poll_seconds=0.05)) as url,
        httpx.Client(base_url=url, headers=headers, timeout=20) as client,
    ):
        with client.stream("GET", "/v1/stream") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            lines = response.iter_lines()
            read_events(lines, "status", 1)
            paper_run.advance(2)
            heard = read_events(lines, "decision", 2)
        paper_run.advance(3)  # while nobody listens
        with client.stream("GET", "/v1/stream", headers={"Last-Event-ID": str(heard[-1][0])}) as response:
            lines = response.iter_lines()
            heard += read_events(lines, "decision", 3)
            paper_run.advance(1)
            heard += read_events(lines, "decision", 1)
        stored = client.get("/v1/paper/decisions").json()["items"]
    assert [data for _, data in heard] == stored


def test_a_stream_needs_a_key_that_may_read(make_service: Callable[..., Service], key_file: KeyFile) -> None:
    with serving(make_service()) as url:
        assert httpx.get(f"{url}/v1/stream").status_code == 401
        assert httpx.get(f"{url}/v1/stream", headers={"X-API-Key": key_file.add("a", ["act"])}).status_code == 403


def test_a_stream_too_many_is_503(make_service: Callable[..., Service], headers: dict[str, str]) -> None:
    with serving(make_service(stream_clients=1)) as url, httpx.Client(base_url=url, headers=headers) as client:
        with client.stream("GET", "/v1/stream") as first:
            assert first.status_code == 200
            refused = client.get("/v1/stream")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "smu0_stream_listeners 1.0" in client.get("/metrics").text
        deadline = time.monotonic() + 5
        while "smu0_stream_listeners 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
