"""A market, a scripted policy, and a headless browser spoken to over its own protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

from agent.policy import Decision, Observations, decision_from_actions
from data.bars import Bars
from data.timeframe import Timeframe
from market_env.config import ActionConfig, CostConfig, FillConfig, MarketConfig, ObservationConfig
from market_env.instrument import Instrument
from market_env.market import Market

DAY_MS = 86_400_000
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)


def make_bars(
    close: NDArray[np.float64], *, symbol: str = "TEST", timeframe: str = "1d", gap: float = 0.0, volume: float = 1e6
) -> Bars:
    """Bars whose opens follow the previous close (times 1 + gap), with a small range around both."""
    frame = Timeframe.parse(timeframe)
    open_ = np.concatenate([close[:1], close[:-1] * (1.0 + gap)])
    high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
    timestamp = (
        1_600_041_600_000 // frame.milliseconds * frame.milliseconds + np.arange(len(close)) * frame.milliseconds
    )
    return Bars(symbol, frame, "test", timestamp, open_, high, low, close, np.full(len(close), volume))


@pytest.fixture
def bars_of() -> Callable[..., Bars]:
    return make_bars


@pytest.fixture
def noise_bars() -> Bars:
    """400 days of a market that knows no tomorrow."""
    rng = np.random.default_rng(7)
    return make_bars(100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, 400))))


@pytest.fixture
def market_of() -> Callable[..., Market]:
    """A market without features beyond one column that holds the bar's own log return."""

    def build(bars: Bars, *, window: int = 4, extra: NDArray[np.float64] | None = None) -> Market:
        plain = Market.prepare(bars, None, Instrument(symbol=bars.symbol, asset_class="crypto"))
        returns = np.concatenate([[0.0], np.diff(np.log(bars.close))])
        columns = [np.clip(100.0 * returns, -5, 5)]
        if extra is not None:
            columns.append(np.clip(extra, -5, 5))
        return Market.from_arrays(
            plain.bars,
            np.stack(columns, axis=1).astype(np.float32),
            instrument=plain.instrument,
            bar_ms=plain.bar_ms,
            window=window,
            first_decision=window - 1,
        )

    return build


@pytest.fixture
def spot_config() -> MarketConfig:
    """Flat, half or all in, stochastic fills, 10 bp fee, a short window."""
    return MarketConfig(
        actions=ActionConfig(levels=(0.0, 0.5, 1.0), spot=True),
        costs=CostConfig(taker_fee_bps=10.0),
        observation=ObservationConfig(window=4),
    ).for_evaluation()


@pytest.fixture
def deterministic_config(spot_config: MarketConfig) -> MarketConfig:
    return spot_config.model_copy(update={"fills": FillConfig(mode="deterministic")})


class ScriptedPolicy:
    """Chooses an action from the last row of the window: a function of features [B, F] to actions [B]."""

    num_actions = 3

    def __init__(self, rule: Callable[[NDArray[np.float32]], NDArray[np.int64]]) -> None:
        self.rule = rule

    def act(
        self,
        observations: Observations,
        *,
        action_mask: NDArray[np.bool_] | None = None,
        simulations: int | None = None,
    ) -> Decision:
        return decision_from_actions(self.rule(observations["window"][:, -1]), self.num_actions)


@pytest.fixture
def follow_last_return() -> ScriptedPolicy:
    """All in after a rise, flat after a fall."""
    return ScriptedPolicy(lambda row: np.where(row[:, 0] > 0, 2, 0).astype(np.int64))


@pytest.fixture
def scripted() -> type[ScriptedPolicy]:
    return ScriptedPolicy


class Page:
    """One tab: what it logged, what it asked the network for, and what can be seen in it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def open(self, url: str, *, width: int, height: int = 900) -> None:
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url=url)

    def wait_for(self, expression: str, seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.1)
        raise TimeoutError(f"not true within {seconds} s: {expression}")

    def errors(self) -> list[str]:
        """Everything the console showed as an error, and uncaught exceptions."""
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"].get("text")))
            elif (method == "Log.entryAdded" and parameters["entry"]["level"] == "error") or (
                method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert")
            ):
                found.append(str(parameters))
        return found

    def requests(self) -> list[str]:
        """Addresses asked for beyond the page itself and data: URLs."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [
            one["request"]["url"]
            for one in sent
            if one.get("type") != "Document" and not one["request"]["url"].startswith(("data:", "blob:"))
        ]

    def screenshot(self, path: Path) -> None:
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture(scope="session")
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of headless Chromium; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    profile = tmp_path_factory.mktemp("chromium")
    process = subprocess.Popen(
        [CHROMIUM, *CHROMIUM_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
            if time.monotonic() > deadline:
                raise TimeoutError("Chromium opened no debugging port within 30 s")
            time.sleep(0.1)
        port, browser_path = port_file.read_text().splitlines()[:2]
        with connect(f"ws://127.0.0.1:{port}{browser_path}", max_size=None) as browser:
            browser.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            target = json.loads(browser.recv(timeout=30))["result"]["targetId"]
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as tab:
                yield Page(tab)
    finally:
        process.terminate()
        process.wait(timeout=20)
