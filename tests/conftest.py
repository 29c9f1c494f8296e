"""A headless browser, spoken to over its own protocol."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

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


# What the browser answers when the page that was asked goes away while it thinks.
LEAVING = ("Inspected target navigated or closed", "Execution context was destroyed", "Cannot find default execution")


class PageLeft(RuntimeError):
    """The page that was asked is gone: another one is on its way."""


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
                    reason = f"{method}: {message['error']}"
                    raise PageLeft(reason) if any(words in reason for words in LEAVING) else RuntimeError(reason)
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, *, code: int, text: str = "") -> None:
        """A key, as a keyboard sends it. code: Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def type_text(self, text: str) -> None:
        """Text into whatever has the focus."""
        self.send("Input.insertText", text=text)

    def open(self, url: str, *, width: int, height: int = 900) -> None:
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url=url)

    def wait_for(self, expression: str, seconds: float = 60.0) -> Any:
        """The first true value. Between two pages there is no document: what asks for one has to wait too."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(PageLeft):
                value = self.evaluate(f"document.documentElement === null ? null : ({expression})")
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
        path.parent.mkdir(parents=True, exist_ok=True)
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
        # No pings: they draw from the global `random` in a thread, at any time, which hypothesis takes for a strategy
        # that does so.
        quiet: dict[str, Any] = {"max_size": None, "ping_interval": None}
        with connect(f"ws://127.0.0.1:{port}{browser_path}", **quiet) as browser:
            browser.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            target = json.loads(browser.recv(timeout=30))["result"]["targetId"]
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", **quiet) as tab:
                yield Page(tab)
    finally:
        process.terminate()
        process.wait(timeout=20)
