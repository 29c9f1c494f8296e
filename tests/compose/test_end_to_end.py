"""`docker compose up`, for real: the image is built, the containers run, are killed, and the ledger is audited.

Needs a container engine, root for half of the kills, and some minutes: `make test-compose`.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

pytestmark = pytest.mark.compose

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 1_800
COMMAND_SECONDS = 240
HOUR_MS = 3_600_000
KILLS = 20
PROCESSES = ("paper", "api", "mock-exchange")


def run(*command: str, check: bool = True, seconds: float = COMMAND_SECONDS, **environment: str) -> str:
    """Standard output of a command; what it said is in the error when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Deployment:
    """The compose file under a project name of its own. profiles: given to every command."""

    def __init__(self, name: str, *profiles: str, **environment: str) -> None:
        self.name = name
        self.profiles = profiles
        self.port = free_port()
        self.environment = {"SMU0_PORT": str(self.port), **environment}
        self.key = ""

    def compose(self, *arguments: str, check: bool = True) -> str:
        chosen = [part for profile in self.profiles for part in ("--profile", profile)]
        return run(
            "docker", "compose", "--project-name", self.name, *chosen, *arguments, check=check, **self.environment
        )

    def up(self) -> None:
        """Start, and find the key where an operator would. Returns when the containers have been started."""
        self.compose("up", "--detach")
        if not self.key:
            self.key = wait_for(self.find_key, "an API key in the log", seconds=60)

    def find_key(self) -> str | None:
        found = re.findall(r"smu0_[\w-]{20,}", self.compose("logs", "--no-log-prefix", "api"))
        return found[-1] if found else None

    def down(self, *, volumes: bool) -> None:
        self.compose("down", "--timeout", "20", *(["--volumes"] if volumes else []))

    def container(self, service: str) -> str:
        [identifier] = self.compose("ps", "--all", "--quiet", service).split()
        return identifier

    def inspect(self, service: str) -> Mapping[str, Any]:
        [description] = json.loads(run("docker", "inspect", self.container(service)))
        return dict(description)

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        return self.compose("exec", "--no-TTY", service, *command, check=check)

    def get(self, path: str) -> Any:
        """JSON of a view. Raises URLError when nobody answers."""
        request = Request(f"http://127.0.0.1:{self.port}{path}", headers={"X-API-Key": self.key})
        with urlopen(request, timeout=10) as response:
            return json.load(response)

    def try_get(self, path: str) -> Any | None:
        """The same, or None while the service cannot answer."""
        try:
            return self.get(path)
        except (HTTPError, URLError, ConnectionError, TimeoutError):
            return None

    def every(self, view: str) -> list[dict[str, Any]]:
        """All rows of a paged view, oldest first."""
        rows: list[dict[str, Any]] = []
        since: int | None = 0
        while since is not None:
            page = self.get(f"/v1/paper/{view}?since={since}&limit=1000")
            rows += page["items"]
            since = page["next_since"]
        return rows

    def memory_mib(self, service: str) -> float:
        """Resident memory of the container's largest process: its own, and not that of a health check beside it."""
        told = self.execute(service, "sh", "-c", "grep -hs VmRSS /proc/[0-9]*/status")
        return max(int(kib) for kib in re.findall(r"VmRSS:\s+(\d+) kB", told)) / 1024.0


def wait_for(ask: Callable[[], Any], what: str, *, seconds: float) -> Any:
    """The first answer that counts as true. Fails when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {seconds:g} s")


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built from this checkout. Skips where there is no engine to build it."""
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no container engine with docker compose ({error}); DOCKER_HOST and DOCKER_CONFIG may name one")
    run("docker", "compose", "build", seconds=BUILD_SECONDS)
    return "smu0:local"


@pytest.fixture(scope="module")
def demo(image: str) -> Iterator[Deployment]:
    """The demo, where an hour of the exchange takes two seconds."""
    deployment = Deployment("smu0-test-demo", "demo", SMU0_DEMO_SPEED="1800")
    deployment.down(volumes=True)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down(volumes=True)


@pytest.fixture
def alone(image: str) -> Iterator[Deployment]:
    """Without a profile: the real exchange, which must not be reachable from where this test runs."""
    deployment = Deployment("smu0-test-alone")
    deployment.down(volumes=True)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down(volumes=True)


def decided(deployment: Deployment) -> list[dict[str, Any]]:
    """Decisions that the model took, as the API tells them; none while it does not answer."""
    page = deployment.try_get("/v1/paper/decisions?limit=5000")
    return [] if page is None else [row for row in page["items"] if row["status"] == "decided"]


def last_decided(deployment: Deployment) -> int:
    rows = decided(deployment)
    return rows[-1]["bar_ts"] if rows else 0


def audit(deployment: Deployment) -> int:
    """Every bar has one row and one decision, and the fills add up to the account. Returns the number of bars."""
    decisions = [row["bar_ts"] for row in deployment.every("decisions")]
    assert decisions == list(range(decisions[0], decisions[-1] + HOUR_MS, HOUR_MS)), "a bar is missing or there twice"
    bars = [row["ts"] for row in deployment.every("bars") if row["status"] != "warmup"]
    assert bars[: len(decisions)] == decisions
    assert len(bars) == len(set(bars))
    [told] = json.loads(deployment.execute("paper", "python", "-m", "service", "ledger", "check", "--json"))
    assert told["ok"] is True, told
    assert told["missing"] == 0, told
    return len(decisions)


# --- the demo --------------------------------------------------------------------------------------------------------


def test_decisions_appear_within_a_minute_of_the_containers_starting(demo: Deployment) -> None:
    started = datetime.fromisoformat(demo.inspect("paper")["State"]["StartedAt"][:26] + "+00:00")
    wait_for(lambda: decided(demo), "decision", seconds=60)
    seconds = (datetime.now(UTC) - started).total_seconds()
    assert seconds < 60
    print(f"first decision {seconds:.1f} s after the paper container started")


def test_every_container_becomes_healthy(demo: Deployment) -> None:
    for service in PROCESSES:
        wait_for(lambda service=service: demo.health(service) == "healthy", f"health of {service}", seconds=90)


def test_the_demo_trades_at_the_mock_exchange_and_says_so(demo: Deployment) -> None:
    status = demo.get("/v1/paper/status")
    assert status["state"] == "running", status["detail"]
    assert "the mock exchange" in demo.compose("logs", "settings")
    assert demo.get(f"/v1/signal/{status['run']['instrument']}")["status"]


@pytest.mark.parametrize("service", PROCESSES)
def test_a_container_runs_as_nobody_on_a_root_it_cannot_write(demo: Deployment, service: str) -> None:
    uid = int(demo.execute(service, "id", "-u"))
    assert uid >= 10_000
    written = "touch /probe 2>/dev/null || touch /opt/probe 2>/dev/null || touch /etc/probe 2>/dev/null || echo refused"
    assert demo.execute(service, "sh", "-c", written).strip() == "refused"
    assert "CapEff:\t0000000000000000" in demo.execute(service, "cat", "/proc/1/status")
    host = demo.inspect(service)["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert 0 < host["Memory"] <= 1024**3


def test_the_api_is_published_to_this_machine_alone(demo: Deployment) -> None:
    bindings = demo.inspect("api")["NetworkSettings"]["Ports"]["8000/tcp"]
    assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}
    for service in ("paper", "mock-exchange"):
        assert not any(demo.inspect(service)["NetworkSettings"]["Ports"].values())


def test_the_image_says_what_it_is(image: str) -> None:
    [description] = json.loads(run("docker", "image", "inspect", image))
    labels = description["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "smu0"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert description["Config"]["User"] == "10001:10001"
    assert description["Size"] < 2_000_000_000


@pytest.mark.parametrize("service", ["paper", "api"])
def test_no_kernel_is_compiled_in_a_container(demo: Deployment, service: str) -> None:
    """Those of the image are enough for a process that has decided, traded and audited."""
    listing = "cd {} && find . -type f | sort"
    baked = demo.execute(service, "sh", "-c", listing.format("/opt/smu0/kernels")).split()
    used = demo.execute(service, "sh", "-c", listing.format("/tmp/kernels")).split()
    assert used == baked


def test_an_operator_makes_and_revokes_keys(demo: Deployment) -> None:
    first = demo.key
    demo.key = json.loads(demo.execute("api", "python", "-m", "service", "keys", "add", "me", "--json"))["key"]
    assert demo.get("/v1/paper/status")
    demo.execute("api", "python", "-m", "service", "keys", "revoke", "me")
    assert demo.try_get("/v1/paper/status") is None
    demo.key = first


def test_twenty_kills_leave_no_bar_out_and_none_twice(demo: Deployment) -> None:
    """SIGKILL at random moments: from outside, where the engine leaves the container dead until somebody starts it, and
    of the process, where the restart policy does."""
    chance = random.Random(8)
    before = audit(demo)
    for kill in range(KILLS):
        time.sleep(chance.uniform(0.0, 6.0))
        service = PROCESSES[kill % len(PROCESSES)]
        if kill % 2 and os.geteuid() == 0:
            pid = demo.inspect(service)["State"]["Pid"]
            if pid:  # it may be down still, and then there is nothing to kill
                os.kill(pid, signal.SIGKILL)
        else:
            run("docker", "kill", "--signal", "KILL", demo.container(service), check=False)
            time.sleep(chance.uniform(0.0, 2.0))
            demo.compose("up", "--detach")
    demo.compose("up", "--detach")
    reached = wait_for(lambda: last_decided(demo), "decision after the kills", seconds=120)
    wait_for(lambda: last_decided(demo) >= reached + 5 * HOUR_MS, "five more decisions", seconds=120)
    assert audit(demo) > before
    for service in PROCESSES:
        wait_for(lambda service=service: demo.health(service) == "healthy", f"health of {service}", seconds=90)


def test_down_and_up_goes_on_with_the_same_account(demo: Deployment) -> None:
    run_before = demo.get("/v1/paper/status")["run"]["id"]
    last = last_decided(demo)
    demo.down(volumes=False)
    demo.up()
    wait_for(lambda: last_decided(demo) > last, "decision after down and up", seconds=120)
    assert demo.get("/v1/paper/status")["run"]["id"] == run_before
    audit(demo)


def test_memory_stays_where_it_is(demo: Deployment) -> None:
    def sample() -> dict[str, float]:
        return {service: demo.memory_mib(service) for service in PROCESSES}

    time.sleep(10)
    before, bars = sample(), last_decided(demo)
    time.sleep(45)
    after, more = sample(), last_decided(demo)
    assert more >= bars + 10 * HOUR_MS
    print({service: f"{before[service]:.0f} -> {after[service]:.0f} MiB" for service in PROCESSES})
    for service in PROCESSES:
        assert after[service] < before[service] + 24, f"{service}: {before[service]} -> {after[service]} MiB"


# --- without a profile -----------------------------------------------------------------------------------------------


def test_without_an_exchange_it_stays_up_and_says_so(alone: Deployment) -> None:
    def unreachable() -> Any:
        status = alone.try_get("/v1/paper/status")
        state = None if status is None or status["process"] is None else status["process"]["state"]
        if state is not None and state["feed"] == "ok":
            pytest.skip("the exchange can be reached from here")
        return status if state is not None and state["feed"] == "unreachable" else None

    status = wait_for(unreachable, "word of the exchange in the status", seconds=90)
    assert status["state"] == "degraded"
    assert "exchange_unreachable" in [problem["kind"] for problem in status["problems"]]
    assert "Exchange unreachable" in status["detail"]
    assert "smu0_paper_feed_up 0.0" in _metrics(alone)
    for service in ("paper", "api"):
        wait_for(lambda service=service: alone.health(service) == "healthy", f"health of {service}", seconds=90)
    health = alone.inspect("paper")["State"]["Health"]["Log"][-1]["Output"]
    assert "degraded" in health
    before = {service: alone.memory_mib(service) for service in ("paper", "api")}
    time.sleep(60)
    for service, mib in before.items():
        assert alone.inspect(service)["RestartCount"] == 0
        assert alone.memory_mib(service) < mib + 24
    assert alone.get("/v1/paper/status")["state"] == "degraded"


def _metrics(deployment: Deployment) -> str:
    with urlopen(f"http://127.0.0.1:{deployment.port}/metrics", timeout=10) as response:
        return str(response.read().decode())
