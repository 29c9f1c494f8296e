"""More clients than the service can serve: every one gets an answer it can use, and the service is none the worse."""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.runtime import Service

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


class Running:
    """A service behind a real socket, in a thread of this process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(service), log_config=None, access_log=False, ws="none", loop="asyncio")
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        self._listener.close()
        assert not self._thread.is_alive()


def http(body: bytes, headers: dict[str, str]) -> bytes:
    lines = ["POST /v1/act HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(port: int, requests: list[bytes]) -> list[tuple[int, dict[str, str], Json]]:
    """Status, headers and body of each request, over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    for request in requests:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        content = await reader.readexactly(int(headers["content-length"]))
        answers.append((int(head[0].split()[1]), headers, json.loads(content)))
    writer.close()
    await writer.wait_closed()
    return answers


def test_a_crowd_beyond_the_queue_gets_decisions_or_a_time_to_come_back(
    make_service: Callable[..., Service], body: Json, headers: dict[str, str]
) -> None:
    """200 connections, a queue of 8, and among the good requests every kind of bad one."""
    good = json.dumps(body).encode()
    bad = {
        http(good.replace(b'"position": 0.5', b'"position": NaN'), headers): 422,
        http(json.dumps({**body, "bars": body["bars"][1:]}).encode(), headers): 422,
        http(b"{", headers): 422,
        http(good, {"X-API-Key": "smu0_wrong"}): 401,
    }
    kinds = [http(good, headers), *bad]

    async def crowd(port: int) -> list[list[tuple[int, dict[str, str], Json]]]:
        async def client(first: int) -> list[tuple[int, dict[str, str], Json]]:
            # Good ones mostly: a bad one takes no room in the queue.
            return await ask(port, [kinds[0], kinds[(first % 10) if first % 10 < len(kinds) else 0], kinds[0]])

        return await asyncio.gather(*(client(first) for first in range(200)))

    with Running(make_service(max_batch=4, queue_limit=8, failed_login_burst=1000)) as running:
        before = asyncio.run(ask(running.port, [kinds[0]]))[0][2]
        answers = [answer for client in asyncio.run(crowd(running.port)) for answer in client]
        after = asyncio.run(ask(running.port, [kinds[0]]))[0][2]
        assert running.service.batcher.depth == 0
    statuses = Counter(status for status, _, _ in answers)
    assert len(answers) == 600
    assert set(statuses) <= {200, 401, 422, 429, 503}, statuses
    assert statuses[200] > 0
    assert statuses[503] > 0, "the queue was never full, so nothing was tested"
    for status, found, content in answers:
        if status in (429, 503):
            assert int(found["retry-after"]) >= 1
        if status == 200:
            assert content["value"] == before["value"]  # in whatever company it was decided
        else:
            assert set(content) == {"error", "detail", "request_id"}
    assert (after["action"], after["value"]) == (before["action"], before["value"])


def test_bodies_of_16_mb_are_refused_unread_and_memory_stays(
    service: Service, body: Json, headers: dict[str, str]
) -> None:
    def client(port: int) -> int:
        declared = http(b"", headers).replace(b"Content-Length: 0", b"Content-Length: 16777216")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(declared + b" " * 100_000)
            return int(connection.recv(4096).split()[1])

    with Running(service) as running:
        assert [client(running.port) for _ in range(20)] == [413] * 20
        assert asyncio.run(ask(running.port, [http(json.dumps(body).encode(), headers)]))[0][0] == 200


def test_a_decision_past_its_deadline_is_504_and_the_next_one_comes(
    make_service: Callable[..., Service], body: Json, headers: dict[str, str]
) -> None:
    service = make_service(deadline_seconds=0.2)
    gate = threading.Event()
    answer = type(service.serving.model).answer

    def slow(model: Any, requests: Any) -> Any:
        gate.wait(timeout=30)
        return answer(model, requests)

    request = http(json.dumps(body).encode(), headers)
    with pytest.MonkeyPatch.context() as patch, Running(service) as running:
        patch.setattr(type(service.serving.model), "answer", slow)
        late = asyncio.run(ask(running.port, [request]))[0]
        assert late[0] == 504
        assert late[2]["error"] == "deadline_exceeded"
        gate.set()
        assert asyncio.run(ask(running.port, [request]))[0][0] == 200


# --- the whole size --------------------------------------------------------------------------------------------------


@pytest.fixture
def served_process(runs: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", int, str]]:
    """`python -m service serve` with its own limits; the process, its port and a key."""
    key = secrets.token_urlsafe(32)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SMU0_")}
    with (tmp_path / "service.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", "0"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**kept, "SMU0_API_KEY": key, "SMU0_RUNS": str(runs), "SMU0_STATE": str(tmp_path / "state")},
        )  # fmt: skip
    assert process.stdout is not None
    first = next(line for line in process.stdout if line.startswith("serving "))
    port = int(first.rstrip().rsplit(":", 1)[1])
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.05)
    yield process, port, key
    process.terminate()
    process.wait(timeout=30)
    process.stdout.close()


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.failures
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from Linux's /proc")
def test_a_thousand_connections_get_200_429_or_503_in_bounded_memory(
    served_process: tuple["subprocess.Popen[str]", int, str], body: Json
) -> None:
    """Three crowds of 1,000 that come straight back when refused. The second and third must not cost more memory."""
    process, port, key = served_process
    order = {"port": port, "key": key, "bodies": [body], "connections": 1000, "seconds": 10}
    resident = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.service_load"],
            cwd=ROOT, input=json.dumps(order), capture_output=True, text=True, check=True, timeout=180,
        )  # fmt: skip
        found = json.loads(done.stdout)
        assert set(found["statuses"]) <= {"200", "429", "503"}, found
        assert (found["without_retry_after"], found["broken"]) == (0, 0), found
        assert found["statuses"]["200"] > 1000, found
        resident.append(resident_mb(process.pid))
    assert resident[2] - resident[0] < 30, resident
    assert max(resident) < 1500, resident
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/act", json=body, headers={"X-API-Key": key}, timeout=30)
    assert answer.status_code == 200
    assert process.poll() is None
