"""Ledgers to test with: every test that asks for `ledger` runs once on SQLite and once on a real PostgreSQL server."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from service.ledger.store import Ledger, Retention

TRADER = Path(__file__).with_name("small_trader.py")
_START_SECONDS = 30.0


def _load_trader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("small_trader", TRADER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """`small_trader.py`: a trader that writes what a real one writes."""
    return _load_trader()


@pytest.fixture(scope="session")
def trader_program() -> Path:
    """The same as a program."""
    return TRADER


# --- a PostgreSQL server ---------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A PostgreSQL server of our own, on a socket in a directory of its own: no port, no password, no fsync."""

    binaries: Path
    directory: Path
    process: "subprocess.Popen[bytes] | None" = None
    made: int = 0
    free: list[str] = field(default_factory=list)

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.directory / "data", "-k", self.directory, "-c",
                 "listen_addresses=", "-F", "-c", "max_connections=50"],
                stdout=log, stderr=log, cwd="/", start_new_session=True, **_somebody(),
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self._dsn("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends its sessions and shuts down; SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(_START_SECONDS)
            self.process = None

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """URL of an empty database. It is emptied for the next one who asks: making one writes three hundred files."""
        if not self.free:
            self.made += 1
            self.free.append(f"ledger_{self.made}")
            self._execute("postgres", f"CREATE DATABASE {self.free[-1]}")
        name = self.free.pop()
        yield f"postgresql+psycopg://smu0@/{name}?host={self.directory}"
        self._execute(name, "DROP SCHEMA public CASCADE")
        self._execute(name, "CREATE SCHEMA public")
        self.free.append(name)

    def _execute(self, database: str, statement: str) -> None:
        with psycopg.connect(self._dsn(database), autocommit=True) as connection:
            connection.execute(statement)

    def _dsn(self, database: str) -> str:
        return f"host={self.directory} dbname={database} user=smu0 connect_timeout=5"


def _somebody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: run it as somebody else then."""
    if os.geteuid() != 0:
        return {}
    user = _nobody()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _nobody() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("running as root, and no user postgres or nobody to run PostgreSQL as")


def _find_binaries() -> Path | None:
    beside = shutil.which("postgres")
    if beside is not None:
        return Path(beside).parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))  # Debian keeps them off the path
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    binaries = _find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: neither on the path nor in /usr/lib/postgresql (apt: postgresql)")
    # A short path of its own: socket names are limited to 107 bytes, and pytest's directories are for their owner only.
    directory = Path(tempfile.mkdtemp(prefix="smu0pg"))
    if os.geteuid() == 0:
        user = _nobody()
        os.chown(directory, user.pw_uid, user.pw_gid)
    subprocess.run(
        [binaries / "initdb", "-D", directory / "data", "-A", "trust", "-U", "smu0", "--no-sync", "-E", "UTF8",
         "--locale=C"],
        check=True, capture_output=True, cwd="/", **_somebody(),
    )  # fmt: skip
    own = Server(binaries, directory)
    try:
        own.start()
        yield own
    finally:
        own.stop(signal.SIGQUIT)  # nothing of it is kept
        shutil.rmtree(directory)


# --- ledgers ---------------------------------------------------------------------------------------------------------

TRADED_BARS = 12


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """URL of an empty database of a PostgreSQL server."""
    with server.database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Of a SQLite ledger that is not there yet."""
    return f"sqlite:///{tmp_path}/state/ledger.sqlite3"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Of a ledger that is not there yet, on either database."""
    found: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "database")
    return found


@pytest.fixture(scope="session")
def traded_file(small: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which a run of twelve bars was traded, once for all tests: copy it."""
    file = tmp_path_factory.mktemp("traded") / "ledger.sqlite3"
    with Ledger.open(f"sqlite:///{file}", writable=True) as ledger:
        small.trade_all(ledger, TRADED_BARS)
    return file


@pytest.fixture
def sqlite_traded(traded_file: Path, sqlite_url: str, tmp_path: Path) -> Iterator[Ledger]:
    """A copy of the traded ledger."""
    (tmp_path / "state").mkdir()
    shutil.copy(traded_file, tmp_path / "state" / "ledger.sqlite3")
    with Ledger.open(sqlite_url, writable=True) as ledger:
        yield ledger


@pytest.fixture
def server_traded(database: str, small: ModuleType) -> Iterator[Ledger]:
    """The same on a server."""
    with Ledger.open(database, writable=True) as ledger:
        small.trade_all(ledger, TRADED_BARS)
        yield ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def traded(request: pytest.FixtureRequest) -> Ledger:
    """The same on either database."""
    found: Ledger = request.getfixturevalue("sqlite_traded" if request.param == "sqlite" else "server_traded")
    return found


OpenLedger = Callable[..., Ledger]


@pytest.fixture
def open_ledger(url: str) -> Iterator[OpenLedger]:
    """Opens the ledger once more, as another process would; closed with the test."""
    with contextlib.ExitStack() as opened:

        def open_it(*, writable: bool = True, busy_seconds: float = 5.0, retention: Retention | None = None) -> Ledger:
            ledger = Ledger.open(url, writable=writable, busy_seconds=busy_seconds, retention=retention)
            return opened.enter_context(ledger)

        yield open_it


@pytest.fixture
def ledger(open_ledger: OpenLedger) -> Ledger:
    return open_ledger()
