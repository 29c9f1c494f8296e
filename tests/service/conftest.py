"""A small real checkpoint, and a service around it: random weights, but everything else as training leaves it."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from agent.checkpoint import METADATA, CheckpointMetadata, CodeMeaning, Counters, save_checkpoint
from agent.networks.model import StochasticMuZero
from agent.policy import Decision
from configs.experiment import Experiment, parse_experiment
from data.bars import VALUE_COLUMNS, Bars
from data.samples import load_sample
from market_env import guards as guarding
from market_env.guards import Cause, GuardConfig, Vitals
from market_env.instrument import Instrument
from service.app import create_app
from service.auth import ALL_SCOPES, Authenticator, KeyFile, Scope
from service.config import ServiceConfig
from service.ledger.schema import HeartbeatRow, RunRow
from service.ledger.store import Ledger
from service.ledger_desk import LedgerDesk
from service.limits import TokenBuckets
from service.model import ServedModel, Serving, load_model
from service.paper.heartbeat import HeartbeatState
from service.paper.recorder import Moment, record_guards, record_step
from service.paper.trader import Setup, Standing, Verdict, take_bar
from service.runtime import Service
from service.sessions import Sessions

WINDOW = 8
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "description": "random weights",
    "data": {"source": "sample", "symbols": ["sp500"], "timeframe": "1d"},
    "splits": {
        "train": ["1999-01-01", "2013-01-01"],
        "validation": ["2013-01-01", "2014-01-01"],
        "test": ["2015-01-01", "2016-01-01"],
    },
    "market": {"observation": {"window": WINDOW}},
    "agent": {
        "network": {
            "width": 16, "encoder_width": 8, "latent": 8, "hidden": 16, "codes": 4, "support_atoms": 11,
        },
        "search": {"simulations": 8},
    },
}  # fmt: skip
CODES = [
    CodeMeaning(code=code, count=10, mean=0.001 * code, quantiles={"0.05": -0.01, "0.5": 0.0, "0.95": 0.01})
    for code in range(3)  # the fourth was never given
]

MakeCheckpoint = Callable[..., Path]


def write_checkpoint(root: Path, *, seed: int = 0, updates: int = 1, **changes: Any) -> Path:
    """Save a checkpoint as training does and return `root/best`. changes: sections of the experiment to replace."""
    experiment: Experiment = parse_experiment({**EXPERIMENT, **changes}, "test")
    features = experiment.feature_set
    shapes = {"window": (experiment.market.observation.window, len(features.names)), "account": (8,)}
    torch.manual_seed(seed)
    actions = len(experiment.market.actions.levels)
    model = StochasticMuZero(shapes, actions, experiment.agent.network)
    with torch.no_grad():  # an untrained model's heads are zero: it would say the same of everything
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    metadata = CheckpointMetadata(
        code_version="test",
        agent=experiment.agent,
        observation_shapes=shapes,
        actions=actions,
        counters=Counters(env_steps=100, updates=updates),
        score=1.5,
        experiment=experiment.dump(),
        feature_fingerprint=features.fingerprint,
        code_statistics=CODES,
    )
    save_checkpoint(root, "best", model, metadata)
    return root / "best"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with one run, `tiny`. Shared: tests that change it copy it first."""
    runs = tmp_path_factory.mktemp("runs")
    write_checkpoint(runs / "tiny" / "checkpoints")
    return runs


@pytest.fixture
def own_runs(runs: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


@pytest.fixture
def make_checkpoint() -> MakeCheckpoint:
    """`write_checkpoint`, for tests that need another one."""
    return write_checkpoint


@pytest.fixture
def edit_metadata() -> Callable[..., None]:
    """Change fields of a checkpoint's JSON."""

    def edit(path: Path, **changes: Any) -> None:
        content = json.loads((path / METADATA).read_text())
        (path / METADATA).write_text(json.dumps({**content, **changes}))

    return edit


@pytest.fixture(scope="session")
def served(runs: Path) -> ServedModel:
    return load_model(runs / "tiny" / "checkpoints" / "best")


@pytest.fixture(scope="session")
def sample() -> Bars:
    return load_sample("sp500")


@pytest.fixture
def now() -> Callable[[], float]:
    """The service's clock: shortly after the sample's last close."""
    return lambda: datetime(2019, 1, 1, 12, tzinfo=UTC).timestamp()


def rows_of(bars: Bars) -> list[list[float]]:
    columns = [bars.timestamp.tolist(), *(getattr(bars, name).tolist() for name in VALUE_COLUMNS)]
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.fixture
def body(served: ServedModel, sample: Bars) -> dict[str, Any]:
    """A valid request for the newest bars of the sample. A test changes what it is about."""
    return {
        "symbol": "SP500",
        "timeframe": "1d",
        "bars": rows_of(sample.slice(-served.required_bars, None)),
        "position": 0.5,
    }


@pytest.fixture
def window_ending_at(served: ServedModel, sample: Bars) -> Callable[[int], list[list[float]]]:
    """Bars of a request whose last bar is the sample's row t."""
    return lambda t: rows_of(sample.slice(t + 1 - served.required_bars, t + 1))


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "state" / "keys.json")


MakeService = Callable[..., Service]


@pytest.fixture
def make_service(
    served: ServedModel, key_file: KeyFile, now: Callable[[], float], runs: Path, ledger_file: Path
) -> MakeService:
    """A service around the shared model; fields of its configuration as keywords.

    It looks for a ledger where the fixture `ledger` makes one, and finds none where a test does not ask for that.
    """

    def make(*, roots: tuple[Path, ...] = (runs,), model: ServedModel = served, **limits: Any) -> Service:
        config = ServiceConfig(**limits)
        return Service(
            Serving(model),
            Authenticator(
                key_file,
                requests=TokenBuckets(rate=config.requests_per_second, burst=config.request_burst),
                failures=TokenBuckets(rate=config.failed_logins_per_second, burst=config.failed_login_burst),
            ),
            config=config,
            checkpoint_roots=roots,
            sessions=Sessions(key_file.path.with_name("sessions.json"), now=now),
            ledger=LedgerDesk.from_config(f"sqlite:///{ledger_file}", config),
            now=now,
        )

    return make


@pytest.fixture
def headers(key_file: KeyFile) -> dict[str, str]:
    """Of a client that may do everything."""
    return {"X-API-Key": key_file.add("test", ALL_SCOPES)}


@pytest.fixture
def headers_for(key_file: KeyFile) -> Callable[[Scope], dict[str, str]]:
    """Of a client with one scope."""
    return lambda scope: {"X-API-Key": key_file.add(f"only-{scope}", [scope])}


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


class InProcess(httpx.BaseTransport):
    """Hands requests to an application on an event loop of its own, without a socket."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Unforeseen errors become 500 answers, as they do for a real client.
        self._transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        self._runner = asyncio.Runner()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self._runner.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._transport.handle_async_request(request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        content = b"".join([chunk async for chunk in answer.stream])  # as it came, compressed if it was
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    def close(self) -> None:
        self._runner.run(self._service.close())
        self._runner.close()


MakeClient = Callable[..., httpx.Client]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """A client of a service, closed with the test."""
    made: list[httpx.Client] = []

    def make(service: Service, headers: dict[str, str] | None = None) -> httpx.Client:
        made.append(httpx.Client(transport=InProcess(service), base_url="http://service", headers=headers))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(service: Service, headers: dict[str, str], make_client: MakeClient) -> httpx.Client:
    """A client with every scope."""
    return make_client(service, headers)


# --- a ledger with a run in it ---------------------------------------------------------------------------------------

PAPER_SEED = 7
PAPER_BARS = 100  # of the end of the sample, which a run can go through
RUN_ID = "run-1"


class Restless:
    """A policy that plans and then does something else each time, so that an account has fills to show."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.num_actions = inner.num_actions
        self.asked = 0

    def act(self, *args: Any, **kwargs: Any) -> Decision:
        decision: Decision = self.inner.act(*args, **kwargs)
        self.asked += 1
        # Among what the search looked at: only that has an outlook to show, whatever this little model's weights are.
        seen = [np.flatnonzero(visits) for visits in decision.visits]
        action = np.array([choice[self.asked // 3 % len(choice)] for choice in seen], decision.action.dtype)
        return replace(decision, action=action)


class PaperRun:
    """A paper run that writes into a ledger as the trader does: the same steps, one bar at a time."""

    def __init__(
        self, ledger: Ledger, model: ServedModel, bars: Bars, *, now: Callable[[], float], run_id: str = RUN_ID
    ) -> None:
        """now: seconds since the epoch, at which the process says that it lives."""
        self.ledger = ledger
        self.bars = bars
        self.now = now
        self.start = self.row = len(bars) - PAPER_BARS
        self.run_id = run_id
        market = model.experiment.market.for_evaluation()
        model = replace(model, policy=Restless(model.policy))
        self.setup = Setup(
            model, market, Instrument.for_symbol(bars.symbol), PAPER_SEED, market.episode.initial_equity, GuardConfig()
        )
        self.standing = Standing.opened(self.setup, now_ms=0)
        self.cursor: int | None = None
        self.first_close: float | None = None
        self.run = RunRow(
            id=run_id, created_ms=self.now_ms, model=model.label, checkpoint_sha256=model.sha256, config_json="{}",
            market_json=market.model_dump_json(), instrument_json=self.setup.instrument.model_dump_json(),
            seed=PAPER_SEED, instrument=bars.symbol, timeframe=str(bars.timeframe), venue="replay",
            initial_equity=self.setup.initial_equity, code_version="test",
        )  # fmt: skip
        with ledger.transaction() as write:
            write.start_run(self.run)
            write.append_event("started", f"a run begins on {bars.symbol}", ts_ms=self.now_ms, run_id=run_id)
        self.beat()

    @property
    def now_ms(self) -> int:
        """The close of the last bar that was taken."""
        return int(self.bars.timestamp[self.row - 1]) + self.bars.timeframe.milliseconds

    def beat(self, *, ts_ms: int | None = None, **changes: Any) -> None:
        """Say that the process lives. changes: fields of the heartbeat."""
        state = {
            "pid": 1, "started_local_ms": 0, "loops": self.row, "bars": self.row - self.start, "run_id": self.run_id,
            "model": self.setup.model.label, "instrument": self.bars.symbol, "timeframe": str(self.bars.timeframe),
            "venue": "replay", "feed": "ok", "feed_since_ms": 0, "last_error": None, "errors": 0, "retry_seconds": None,
            "ledger_error": None, "venue_ms": self.now_ms, "clock_offset_ms": None, "clock_skew_ms": 0,
            "last_bar_ts": int(self.bars.timestamp[self.row - 1]), "data_age_seconds": 0.5,
            "next_bar_due_ms": self.now_ms + self.bars.timeframe.milliseconds, "mode": self.standing.guards.mode.value,
            "mode_reason": self.standing.guards.reason, "degraded": None,
        }  # fmt: skip
        content = HeartbeatState(**{**state, **changes}).to_json()
        with self.ledger.transaction() as write:
            write.beat(
                HeartbeatRow(
                    process="paper", ts_ms=int(self.now() * 1000) if ts_ms is None else ts_ms, state_json=content
                )
            )

    def advance(self, bars: int = 1) -> None:
        """Close some bars."""
        for _ in range(bars):
            self._take_one()
        self.beat()

    def _take_one(self) -> None:
        history = self.bars.slice(self.row + 1 - self.setup.history_bars, self.row + 1)
        before = self.standing.guards
        step = take_bar(
            self.setup, self.standing, history, verdict=Verdict.DECIDE, vitals=Vitals(), stopwatch=time.perf_counter
        )
        self.row += 1
        self.standing = step.standing
        if self.first_close is None:
            self.first_close = step.bar.close
        with self.ledger.transaction() as write:
            record_step(
                write, self.run, step, cursor=self.cursor, before=before, first_close=self.first_close,
                continuous=False, model=self.setup.model, moment=Moment(self.now_ms + 40, int(self.now() * 1000)),
            )  # fmt: skip
        self.cursor = step.bar.timestamp
        self.run = replace(self.run, first_bar_ts=self.run.first_bar_ts or self.cursor)

    def handle_commands(self) -> None:
        """Carry out what was asked, as the trader does."""
        with self.ledger.transaction() as write:
            for command in write.pending_commands():
                guards, config, now_ms = self.standing.guards, self.setup.guards, self.now_ms
                if command.kind == "resume":
                    guards = guarding.resume(guards, config, now_ms=now_ms)
                else:
                    guards = guarding.halt(
                        guards, config, cause=Cause.COMMAND, now_ms=now_ms, flatten=command.kind == "flatten",
                        note=command.reason,
                    )  # fmt: skip
                record_guards(write, self.run, self.standing.guards, guards, local_ms=now_ms)
                self.standing = replace(self.standing, guards=guards)
                write.finish_command(command.id, "done", f"now {guards.mode}", now_ms=now_ms)
                write.append_event(
                    "command", f"{command.kind}: {command.reason}", ts_ms=now_ms, severity="warning", run_id=self.run_id
                )


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
def ledger(ledger_file: Path) -> Iterator[Ledger]:
    """A ledger as the trader opens it; empty."""
    ledger_file.parent.mkdir(parents=True, exist_ok=True)
    with Ledger.open(f"sqlite:///{ledger_file}", writable=True) as opened:
        yield opened


@pytest.fixture
def paper_run(ledger: Ledger, served: ServedModel, sample: Bars, now: Callable[[], float]) -> PaperRun:
    """A run that has just begun."""
    return PaperRun(ledger, served, sample, now=now)
