"""The dashboard: its files, its policy, and the page as a browser and its user see it."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.auth import ALL_SCOPES, KeyFile, Scope
from service.dashboard.assets import PLOTLY, STATIC, assets, page, placeholders
from service.runtime import Service

MakeClient = Callable[..., httpx.Client]
# SMU0_SCREENSHOTS=DIRECTORY keeps what the browser saw, for a person to look at.
SCREENSHOTS = os.environ.get("SMU0_SCREENSHOTS")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(service: Service, make_client: MakeClient) -> httpx.Client:
    return make_client(service)


@pytest.mark.parametrize("name", ["index.html", "login.html"])
def test_a_page_asks_only_for_files_that_are_there(browser: httpx.Client, name: str) -> None:
    found = re.findall(r'(?:src|href)="([^"#]+)"', page(name).decode())
    assert len(found) >= 3
    for address in found:
        assert address.startswith("/static/"), address
        response = browser.get(address)
        assert response.status_code == 200, address
        assert "immutable" in response.headers["cache-control"]
        assert "default-src 'self'" in response.headers["content-security-policy"]


def test_pages_hold_no_inline_script_or_style() -> None:
    for path in STATIC.glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", text), path.name


def test_nothing_of_ours_names_another_host() -> None:
    for path in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\s\"'<>]+", path.read_text())
        assert all(address == "http://www.w3.org/2000/svg" for address in addresses), path.name


def test_the_policy_has_no_exception(browser: httpx.Client) -> None:
    policy = browser.get("/login").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    for weak in ("unsafe", "data:", "blob:", "*", "http"):
        assert weak not in policy


def test_plotly_comes_from_the_installed_package_and_compressed(browser: httpx.Client) -> None:
    plain = browser.get(f"/static/{PLOTLY}", headers={"accept-encoding": "identity"})
    packed = browser.get(f"/static/{PLOTLY}", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content == assets()[PLOTLY].content
    assert int(packed.headers["content-length"]) < len(plain.content) / 3
    assert packed.headers["vary"] == "accept-encoding"


def test_a_placeholder_stands_for_every_style_sheet_plotly_would_add() -> None:
    script = b'if(!document.getElementById("' + b"a1" * 32 + b'")){}document.getElementById("short")'
    assert placeholders(script) == f'<template id="{"a1" * 32}"></template>'
    assert "<template" in page("index.html").decode()


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2fapp.py", "%2e%2e%2fassets.py", "index.html", "x" * 500])
def test_only_files_of_the_pages_are_served(browser: httpx.Client, name: str) -> None:
    response = browser.get(f"/static/{name}")
    assert response.status_code in (404, 422)
    assert "import" not in response.text


def test_the_dashboard_wants_a_login_that_may_read(
    browser: httpx.Client, key_file: KeyFile, headers: dict[str, str]
) -> None:
    assert browser.get("/").headers["location"] == "/login"
    assert browser.get("/", headers={"cookie": "smu0_session=" + "x" * 43}).headers["location"] == "/login"


# --- in a browser ----------------------------------------------------------------------------------------------------


class Trader:
    """The paper process, as far as a page can tell: it beats, closes bars when told to, and takes commands."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.heartbeat: dict[str, Any] = {}
        self.wanted = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def __enter__(self) -> "Trader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(0.1):
            if self.wanted:
                self.wanted -= 1
                self.run.advance(1)
            self.run.handle_commands()
            self.run.beat(**self.heartbeat)


@contextmanager
def serving(service: Service) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_config=None, timeout_graceful_shutdown=5))
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


class Visitor:
    """Somebody who looks at the dashboard."""

    def __init__(self, tab: Any, url: str, service: Service) -> None:
        self.tab = tab
        self.url = url
        self.service = service

    def log_in(self, key: str, *, width: int = 1400) -> None:
        """By keyboard alone."""
        self.tab.send("Network.clearBrowserCookies")
        self.tab.open(f"{self.url}/", width=width)
        self.tab.wait_for("location.pathname === '/login' && document.querySelector('button:enabled') !== null")
        self.tab.wait_for("document.activeElement.id === 'key'")
        self.tab.type_text(key)
        self.tab.press("Enter", code=13, text="\r")
        self.drawn()

    def drawn(self) -> None:
        self.tab.wait_for("location.pathname === '/' && document.documentElement.dataset.drawn !== undefined")

    def text(self, name: str) -> str:
        return str(self.tab.evaluate(f"document.getElementById('{name}').textContent"))

    def until(self, name: str, words: str) -> str:
        self.tab.wait_for(f"document.getElementById('{name}').textContent.includes({words!r})", 20)
        return self.text(name)

    def keep(self, name: str) -> None:
        if SCREENSHOTS:
            self.tab.screenshot(Path(SCREENSHOTS) / f"{name}.png")

    def assert_quiet(self) -> None:
        """No error on the console, and nothing asked of anybody else."""
        self.tab.evaluate("new Promise((done) => setTimeout(done, 300))")
        assert self.tab.errors() == []
        assert [address for address in self.tab.requests() if not address.startswith(f"{self.url}/")] == []


@pytest.fixture
def visit(
    make_service: Callable[..., Service], browser_page: Any, now: Callable[[], float]
) -> Iterator[Callable[..., Visitor]]:
    """Open the service to a browser."""
    service = make_service(stream_poll_seconds=0.1)
    with serving(service) as url:
        yield lambda: Visitor(browser_page, url, service)
        browser_page.send("Network.clearBrowserCookies")
        browser_page.open("about:blank", width=1400)


@pytest.fixture
def key(key_file: KeyFile) -> str:
    return key_file.add("operator", ALL_SCOPES)


CHARTS = ("chart-price", "chart-equity", "chart-outlook", "chart-latency")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")])
def test_the_page_draws_everything_without_errors_or_outside_requests(
    visit: Callable[..., Visitor], key: str, paper_run: Any, width: int, scheme: str
) -> None:
    paper_run.advance(60)
    visitor = visit()
    visitor.tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    visitor.log_in(key, width=width)
    for chart in CHARTS:
        visitor.tab.wait_for(f"document.querySelector('#{chart} .main-svg') !== null", 20)
    assert visitor.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert visitor.text("market") == "SP500 · 1d"
    assert visitor.text("mode") == "ACTIVE"
    assert visitor.tab.evaluate("getComputedStyle(document.querySelector('.paper')).textTransform") == "uppercase"
    assert visitor.tab.evaluate("document.querySelectorAll('#policy li').length") == 5
    assert visitor.tab.evaluate("document.querySelectorAll('#decisions tr').length") == 60
    assert visitor.tab.evaluate("document.querySelectorAll('#fills tr').length") > 5
    assert visitor.tab.evaluate("document.querySelectorAll('#assumptions li').length") > 5
    assert visitor.text("line-text").startswith("All is well.")
    assert "outcomes" in visitor.text("t-outlook")
    background = visitor.tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(26, 30, 34)")
    visitor.keep(f"dashboard-{width}-{scheme}")
    visitor.assert_quiet()


# The marks of the account come last, and what the page shows just before they do is noted.
LATE_MARKS = """
const ask = window.fetch;
window.fetch = async (path, options) => {
  const answer = await ask(path, options);
  if (String(path).startsWith('/v1/paper/equity')) {
    await new Promise((done) => setTimeout(done, 1500));
    window.drawnBefore ??= document.querySelector('#chart-price .main-svg') !== null;
  }
  return answer;
};
"""


@pytest.mark.browser
def test_what_is_asked_for_together_is_drawn_together(visit: Callable[..., Visitor], key: str, paper_run: Any) -> None:
    paper_run.advance(20)
    visitor = visit()
    script = visitor.tab.send("Page.addScriptToEvaluateOnNewDocument", source=LATE_MARKS)["identifier"]
    try:
        visitor.log_in(key, width=390)
        visitor.tab.wait_for("document.querySelector('#chart-price .main-svg') !== null", 20)
        assert visitor.tab.evaluate("window.drawnBefore") is False
        assert visitor.tab.evaluate("document.documentElement.dataset.drawn") == "20"
        visitor.assert_quiet()
    finally:
        visitor.tab.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


@pytest.mark.browser
def test_candles_without_an_account_have_no_lane_of_exposure_until_there_is_one(
    visit: Callable[..., Visitor], key: str, paper_run: Any
) -> None:
    paper_run.advance(20)
    visitor = visit()
    visitor.log_in(key, width=390)
    visitor.tab.wait_for("document.querySelector('#chart-price .main-svg') !== null", 20)

    def lanes(marks: str) -> Any:
        return visitor.tab.evaluate(
            "(async () => {"
            "const read = async (name) => (await (await fetch(`/v1/paper/${name}?limit=99`)).json()).items;"
            f"const figure = Charts.priceChart(await read('bars'), [], {marks}, [-1, 1]);"
            "await Charts.draw('chart-price', figure, '');"
            "return document.querySelectorAll('#chart-price .subplot').length; })()"
        )

    visitor.tab.evaluate("Plotly.purge('chart-price')")
    assert lanes("[]") == 1
    assert lanes("await read('equity')") == 2
    assert lanes("[]") == 1
    visitor.assert_quiet()


@pytest.mark.browser
def test_news_arrives_by_itself(visit: Callable[..., Visitor], key: str, paper_run: Any) -> None:
    paper_run.advance(20)
    with Trader(paper_run) as trader:
        visitor = visit()
        visitor.log_in(key)
        visitor.until("link-word", "live")
        before = visitor.text("equity")
        trader.wanted = 7
        visitor.until("decided", "27")
        visitor.tab.wait_for("document.documentElement.dataset.drawn === '27'", 20)
        visitor.tab.wait_for("document.querySelectorAll('#decisions tr').length === 27", 20)
        assert visitor.text("equity") != before
        visitor.assert_quiet()


@pytest.mark.browser
def test_halt_flatten_and_resume_ask_for_a_reason_and_are_carried_out(
    visit: Callable[..., Visitor], key: str, paper_run: Any
) -> None:
    """By keyboard: a button, a reason, Enter; Escape changes nothing."""
    paper_run.advance(10)
    with Trader(paper_run):
        visitor = visit()
        visitor.log_in(key)
        visitor.until("link-word", "live")

        def focus(command: str) -> None:
            visitor.tab.wait_for(f"document.querySelector('[data-command={command}]:enabled') !== null", 20)
            visitor.tab.evaluate(f"document.querySelector('[data-command={command}]').focus()")
            visitor.tab.press("Enter", code=13, text="\r")
            visitor.tab.wait_for("document.getElementById('dialog').open")

        focus("halt")
        visitor.tab.press("Enter", code=13, text="\r")  # no reason yet: the dialog stays
        assert visitor.tab.evaluate("document.getElementById('dialog').open")
        visitor.tab.press("Escape", code=27)
        visitor.tab.wait_for("!document.getElementById('dialog').open")
        assert visitor.text("mode") == "ACTIVE"
        for command, mode in (("halt", "HALTED"), ("flatten", "HALTED"), ("resume", "ACTIVE")):
            focus(command)
            visitor.tab.type_text(f"to test {command}")
            if command == "flatten":
                visitor.keep("dialog")
            visitor.tab.press("Enter", code=13, text="\r")
            visitor.tab.wait_for("!document.getElementById('dialog').open", 20)
            visitor.until("command-outcome", f"{command} by operator")
            visitor.until("command-outcome", "done")
            visitor.until("mode", mode)
            visitor.until("events", f"{command}: to test {command}")
        with paper_run.ledger.reading() as read:
            assert [row.kind for row in reversed(read.commands())] == ["halt", "flatten", "resume"]
        visitor.assert_quiet()


@pytest.mark.browser
def test_trouble_is_loud_and_goes_away_by_itself(visit: Callable[..., Visitor], key: str, paper_run: Any) -> None:
    paper_run.advance(10)
    with Trader(paper_run) as trader:
        visitor = visit()
        visitor.log_in(key)
        visitor.until("link-word", "live")
        trader.heartbeat = {"feed": "unreachable", "last_error": "connection refused", "errors": 3}
        assert "connection refused" in visitor.until("line-text", "Exchange unreachable")
        assert visitor.tab.evaluate("document.getElementById('line').dataset.severity") == "error"
        visitor.keep("trouble")
        trader.heartbeat = {}
        visitor.until("line-text", "All is well")
        visitor.assert_quiet()


@pytest.mark.browser
def test_before_the_first_run_the_page_says_what_to_do(visit: Callable[..., Visitor], key: str, ledger: Any) -> None:
    visitor = visit()
    visitor.log_in(key)
    visitor.until("line-text", "No paper run yet")
    for chart in CHARTS:
        assert len(visitor.text(chart)) > 20  # a sentence instead of an empty box
    assert visitor.tab.evaluate("document.querySelectorAll('#controls button:enabled').length") == 0
    visitor.keep("empty")
    visitor.assert_quiet()


@pytest.mark.browser
def test_a_reader_sees_everything_and_controls_nothing(
    visit: Callable[..., Visitor], key_file: KeyFile, paper_run: Any
) -> None:
    paper_run.advance(5)
    visitor = visit()
    visitor.log_in(key_file.add("reader", [Scope.READ]))
    visitor.until("decided", "5")
    assert visitor.tab.evaluate("document.querySelectorAll('#controls button:enabled').length") == 0


@pytest.mark.browser
def test_a_lost_connection_is_said_and_healed_and_a_revoked_key_leads_to_the_login(
    visit: Callable[..., Visitor], key: str, key_file: KeyFile, paper_run: Any
) -> None:
    paper_run.advance(5)
    visitor = visit()
    visitor.log_in(key)
    visitor.until("link-word", "live")
    visitor.service.stopping = True  # ends every stream and refuses new ones
    visitor.until("line-text", "No connection to the service")
    assert visitor.tab.evaluate("document.getElementById('line').dataset.severity") == "error"
    visitor.service.stopping = False
    visitor.until("line-text", "All is well")
    visitor.until("link-word", "live")
    key_file.revoke("operator")
    visitor.service.stopping = True
    visitor.tab.wait_for("location.pathname === '/login'", 30)
    visitor.service.stopping = False


@pytest.mark.browser
def test_a_wrong_key_is_said_and_logging_out_ends_it(visit: Callable[..., Visitor], key: str, paper_run: Any) -> None:
    visitor = visit()
    visitor.tab.send("Network.clearBrowserCookies")
    visitor.tab.open(f"{visitor.url}/login", width=390)
    visitor.tab.wait_for("document.querySelector('button:enabled') !== null")
    visitor.keep("login")
    visitor.tab.wait_for("document.activeElement.id === 'key'")
    visitor.tab.type_text("smu0_wrong")
    visitor.tab.press("Enter", code=13, text="\r")
    visitor.until("problem", "not known")
    visitor.log_in(key)
    visitor.tab.evaluate("document.getElementById('logout').click()")
    visitor.tab.wait_for("location.pathname === '/login'", 20)
    visitor.tab.open(f"{visitor.url}/", width=390)
    visitor.tab.wait_for("location.pathname === '/login'", 20)
