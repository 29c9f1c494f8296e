"""`python -m service` as a person meets it: real processes, a real socket, a real curl."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from data.commandline import run
from service.__main__ import app

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
KEY = re.compile(r"smu0_[\w-]{43}")


class Process:
    """A running service and what it printed before its first request."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.log = Path(environment["SMU0_STATE"]).with_suffix(".log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", "0", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.printed = "".join(self.process.stdout.readline() for _ in range(4))
        found = re.search(r"http://127\.0\.0\.1:\d+", self.printed)
        assert found, self.printed + self.log.read_text()
        self.url = found.group()
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            try:
                httpx.get(f"{self.url}/readyz").raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=15)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def environment(runs: Path, tmp_path: Path) -> dict[str, str]:
    """Of a process that knows nothing but the shared run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SMU0_")}
    return {
        **kept,
        "SMU0_RUNS": str(runs),
        "SMU0_MODELS": str(tmp_path / "models"),
        "SMU0_STATE": str(tmp_path / "state"),
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Start a service; it is stopped with the test."""
    started: list[Process] = []

    def start(*arguments: str, **variables: str) -> Process:
        started.append(Process({**environment, **variables}, *arguments))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()
            assert process.process.stdout is not None
            process.process.stdout.close()


def service(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def failing(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
) -> str:
    """The one line a command that cannot work leaves on stderr. Run in this process: it ends before it does much."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["service", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(app, "python -m service")
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    [line] = printed.err.strip().splitlines()
    return line


def test_first_start_shows_a_key_once_and_a_command_that_works(
    start: Callable[..., Process], environment: dict[str, str]
) -> None:
    first = start()
    [key] = set(KEY.findall(first.printed))
    command = first.printed.splitlines()[-1].strip()
    if shutil.which("curl"):
        done = subprocess.run(
            command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout)
        assert answer["model"].startswith("tiny/best-")
        assert answer["stale"] is True  # the sample ends in 2018
    assert key not in first.log.read_text()
    assert key not in (Path(environment["SMU0_STATE"]) / "keys.json").read_text()
    first.stop()

    second = start()
    assert KEY.search(second.printed) is None
    assert httpx.get(f"{second.url}/v1/model", headers={"X-API-Key": key}).status_code == 200


def test_a_running_service_accepts_new_keys_keeps_order_and_stops_in_time(
    start: Callable[..., Process], environment: dict[str, str]
) -> None:
    """One process, everything that needs a real socket."""
    secret = "a-key-from-the-environment"
    running = start(SMU0_API_KEY=secret)
    assert secret not in running.printed
    with httpx.Client(base_url=running.url, headers={"X-API-Key": secret}, timeout=30) as client:
        example = json.loads(service(environment, "example", "--position", "-0.5", "--simulations", "4").stdout)
        answer = client.post("/v1/act", json=example)
        assert answer.status_code == 200, answer.text
        assert answer.json()["search"]["simulations"] == 4
        assert "server" not in answer.headers

        # 16 MB are refused without being read, and the connection and the service survive it.
        headers = {"content-type": "application/json"}
        refused = client.post("/v1/act", content=b" " * 16 * 1024**2, headers=headers)
        assert refused.status_code == 413
        assert refused.json()["error"] == "body_too_large"
        assert client.post("/v1/act", json=example).status_code == 200

        added = json.loads(service(environment, "keys", "add", "bot", "--scope", "read", "--json").stdout)
        assert added["scopes"] == ["read"]
        assert client.get("/v1/model", headers={"X-API-Key": added["key"]}).status_code == 200
        assert "bot" in service(environment, "keys", "list").stdout
        assert service(environment, "keys", "revoke", "bot").returncode == 0
        assert client.get("/v1/model", headers={"X-API-Key": added["key"]}).status_code == 401

        # A request that never ends does not keep the service from stopping.
        with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) as hanging:
            hanging.sendall(b"POST /v1/act HTTP/1.1\r\nHost: x\r\nX-API-Key: " + secret.encode() + b"\r\n"
                            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")  # fmt: skip
            begin = time.monotonic()
            running.stop()
            assert time.monotonic() - begin < 10  # the contract says 8 s; the rest is a busy machine's
    log = running.log.read_text()
    assert secret not in log
    assert added["key"] not in log


def test_sigterm_with_an_open_stream_ends_the_process_at_once(start: Callable[..., Process]) -> None:
    """Without help, uvicorn would wait for the stream until its grace period is over."""
    secret = "a-key-from-the-environment"
    running = start(SMU0_API_KEY=secret)
    with (
        httpx.Client(base_url=running.url, headers={"X-API-Key": secret}, timeout=20) as client,
        client.stream("GET", "/v1/stream") as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()  # kept: one that is thrown away closes the connection
        next(lines)
        begin = time.monotonic()
        assert running.stop() in (0, -signal.SIGTERM)
        assert time.monotonic() - begin < 4.0  # the contract says 8 s; uvicorn alone would take 5
    assert secret not in running.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        (["serve", "--host", "0.0.0.0"], {}, "expected an API key"),
        (["serve", "--checkpoint", "nothing"], {}, "Runs in"),
        (["serve"], {"SMU0_RUNS": "/nonexistent"}, "no checkpoint"),
        (["serve"], {"SMU0_API_KEY": "short-secret"}, "SMU0_API_KEY"),
        (["example"], {"SMU0_RUNS": "/nonexistent"}, "no checkpoint"),
        (["example", "--symbol", "BTC"], {}, "expected one of SP500"),
        (["keys", "revoke", "nobody"], {}, "no key named nobody"),
        (["keys", "add", "no spaces"], {}, "name"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    complaint: str,
) -> None:
    complaint_of = failing(environment | variables, monkeypatch, capsys, *arguments)
    assert complaint in complaint_of
    assert "short-secret" not in complaint_of
    assert not (Path(environment["SMU0_STATE"]) / "keys.json").exists()


def test_a_taken_port_is_an_error_before_a_key_is_made(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "Try another --port" in failing(environment, monkeypatch, capsys, "serve", "--port", port)
    assert not (Path(environment["SMU0_STATE"]) / "keys.json").exists()
