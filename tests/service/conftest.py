"""A small real checkpoint, and a service around it: random weights, but everything else as training leaves it."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from agent.checkpoint import METADATA, CheckpointMetadata, CodeMeaning, Counters, save_checkpoint
from agent.networks.model import StochasticMuZero
from configs.experiment import Experiment, parse_experiment
from data.bars import VALUE_COLUMNS, Bars
from data.samples import load_sample
from service.app import create_app
from service.auth import ALL_SCOPES, Authenticator, KeyFile, Scope
from service.config import ServiceConfig
from service.limits import TokenBuckets
from service.model import ServedModel, Serving, load_model
from service.runtime import Service

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
def make_service(served: ServedModel, key_file: KeyFile, now: Callable[[], float], runs: Path) -> MakeService:
    """A service around the shared model; fields of its configuration as keywords."""

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
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

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
