"""Browsers log in once: what the cookie is, what it allows, and what it does not protect from by itself."""

import json
import logging
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.auth import ALL_SCOPES, ApiKey, KeyFile, Scope, digest
from service.runtime import Service
from service.sessions import COOKIE, Sessions

MakeClient = Callable[..., httpx.Client]
ORIGIN = {"origin": "http://service", "sec-fetch-site": "same-origin"}
KEY = ApiKey(name="bot", digest=digest("a key"), scopes=ALL_SCOPES, created=datetime.now(UTC))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(tmp_path: Path, clock: Clock) -> Sessions:
    return Sessions(tmp_path / "sessions.json", limit=3, lifetime_seconds=1000.0, idle_seconds=100.0, now=clock)


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_a_cookie_stands_for_its_key_and_nothing_else_does(sessions: Sessions) -> None:
    cookie = sessions.open(KEY)
    found = sessions.find(cookie, [KEY])
    assert found is not None
    assert found.key is KEY
    for other in (None, "", "x", cookie[:-1], cookie[:-1] + "x", cookie + "x", digest(cookie), found.csrf_token):
        assert sessions.find(other, [KEY]) is None, other


def test_a_session_ends_with_its_key(sessions: Sessions) -> None:
    cookie = sessions.open(KEY)
    other = KEY.model_copy(update={"digest": digest("another key")})
    assert sessions.find(cookie, [other]) is None
    assert sessions.find(cookie, [KEY]) is None  # and does not come back with it


@pytest.mark.parametrize(
    ("pauses", "alive"), [([99.0], True), ([101.0], False), ([90.0] * 11, True), ([90.0] * 12, False)]
)
def test_a_session_ends_after_its_idle_time_and_after_its_lifetime(
    sessions: Sessions, clock: Clock, pauses: list[float], alive: bool
) -> None:
    cookie = sessions.open(KEY)
    for pause in pauses:
        clock.now += pause
        found = sessions.find(cookie, [KEY])
    assert (found is not None) is alive


def test_the_least_used_session_makes_room(sessions: Sessions, clock: Clock) -> None:
    cookies = []
    for _ in range(3):
        cookies.append(sessions.open(KEY))
        clock.now += 1.0
    clock.now += 70.0
    sessions.find(cookies[0], [KEY])
    cookies.append(sessions.open(KEY))
    assert len(sessions) == 3
    assert [sessions.find(cookie, [KEY]) is not None for cookie in cookies] == [True, False, True, True]


def test_a_restart_forgets_nobody_and_the_file_lets_nobody_in(sessions: Sessions, tmp_path: Path, clock: Clock) -> None:
    cookie = sessions.open(KEY)
    file = tmp_path / "sessions.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cookie not in file.read_text()
    again = Sessions(file, now=clock)
    assert again.find(cookie, [KEY]) is not None
    [stored] = json.loads(file.read_text())
    for value in stored.values():
        assert again.find(str(value), [KEY]) is None
    again.close(cookie)
    assert Sessions(file, now=clock).find(cookie, [KEY]) is None


@pytest.mark.parametrize("content", [b"", b"{", b'[{"digest": 1}]', b"\xff"])
def test_a_damaged_session_file_costs_a_login_and_shows_nothing(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sessions.json").write_bytes(content)
    assert len(Sessions(tmp_path / "sessions.json")) == 0
    assert "log in again" in caplog.text


def test_a_place_that_cannot_be_written_costs_the_memory_not_the_login(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    sessions = Sessions(tmp_path / "file" / "sessions.json")
    assert sessions.find(sessions.open(KEY), [KEY]) is not None
    assert "after a restart" in caplog.text


# --- logging in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(key_file: KeyFile) -> str:
    return key_file.add("operator", ALL_SCOPES)


@pytest.fixture
def browser(service: Service, make_client: MakeClient) -> httpx.Client:
    return make_client(service)


def log_in(browser: httpx.Client, key: str, **headers: str) -> httpx.Response:
    return browser.post("/v1/session", json={"key": key}, headers={**ORIGIN, **headers})


def test_a_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(browser: httpx.Client, key: str) -> None:
    response = log_in(browser, key)
    assert response.status_code == 200
    assert response.json()["name"] == "operator"
    header = response.headers["set-cookie"]
    assert header.startswith(f"{COOKIE}=")
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="):
        assert attribute in header
    assert "Secure" not in header  # a browser would not send it back over the plain HTTP it came by
    assert key not in header
    assert key not in response.text


def test_behind_tls_the_cookie_stays_with_tls(browser: httpx.Client, key: str) -> None:
    response = log_in(browser, key, origin="https://paper.example", **{"sec-fetch-site": "same-origin"})
    assert response.headers["set-cookie"].endswith("; Secure")


def test_the_first_page_leads_to_the_login_and_then_to_the_dashboard(browser: httpx.Client, key: str) -> None:
    response = browser.get("/")
    assert (response.status_code, response.headers["location"]) == (303, "/login")
    page = browser.get("/login")
    assert page.status_code == 200
    assert "API key" in page.text
    log_in(browser, key)
    assert "Latest decision" in browser.get("/").text


def test_a_cookie_reads_like_its_key(browser: httpx.Client, key: str) -> None:
    assert browser.get("/v1/model").status_code == 401
    log_in(browser, key)
    assert browser.get("/v1/model").status_code == 200
    assert browser.get("/v1/session").json()["scopes"] == ["act", "control", "read"]


def test_a_cookie_of_a_reader_controls_nothing(browser: httpx.Client, key_file: KeyFile, paper_run: Any) -> None:
    log_in(browser, key_file.add("reader", [Scope.READ]))
    token = browser.get("/v1/session").json()["csrf_token"]
    response = browser.post(
        "/v1/paper/halt", json={"confirm": "halt", "reason": "x"}, headers={**ORIGIN, "x-csrf-token": token}
    )
    assert response.status_code == 403
    assert "scope control" in response.json()["detail"]


def test_a_key_that_may_not_read_cannot_log_in(browser: httpx.Client, key_file: KeyFile) -> None:
    response = log_in(browser, key_file.add("bot", [Scope.ACT]))
    assert response.status_code == 403
    assert "set-cookie" not in response.headers


def test_a_logout_ends_the_session_for_whoever_kept_the_cookie(browser: httpx.Client, key: str) -> None:
    log_in(browser, key)
    kept = browser.cookies[COOKIE]
    response = browser.delete("/v1/session", headers=ORIGIN)
    assert response.status_code == 204
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert browser.get("/v1/model", headers={"cookie": f"{COOKIE}={kept}"}).status_code == 401


def test_a_revoked_key_ends_its_sessions(browser: httpx.Client, key: str, key_file: KeyFile) -> None:
    log_in(browser, key)
    key_file.revoke("operator")
    assert browser.get("/v1/model").status_code == 401
    assert browser.get("/").status_code == 303


def test_guessing_is_slowed_down_and_then_even_the_right_key_waits(
    make_service: Callable[..., Service], make_client: MakeClient, key: str
) -> None:
    browser = make_client(make_service(failed_login_burst=3, failed_logins_per_second=0.01))
    assert [log_in(browser, f"wrong-{number}").status_code for number in range(4)] == [401, 401, 401, 429]
    response = log_in(browser, key)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


# --- what another site can make a browser do -------------------------------------------------------------------------

HALT = {"confirm": "halt", "reason": "a test"}


@pytest.fixture
def logged_in(browser: httpx.Client, key: str, paper_run: Any) -> httpx.Client:
    log_in(browser, key)
    return browser


@pytest.fixture
def token(logged_in: httpx.Client) -> str:
    return str(logged_in.get("/v1/session").json()["csrf_token"])


def test_with_its_token_a_page_of_ours_may_control(logged_in: httpx.Client, token: str) -> None:
    headers = {**ORIGIN, "x-csrf-token": token}
    assert logged_in.post("/v1/paper/halt", json=HALT, headers=headers).status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {},
        ORIGIN,
        {**ORIGIN, "x-csrf-token": ""},
        {**ORIGIN, "x-csrf-token": "0" * 64},
        {**ORIGIN, "x-csrf-token": "\xe9" * 64},
    ],
)
def test_a_cookie_alone_changes_nothing(logged_in: httpx.Client, headers: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    response = logged_in.post("/v1/paper/halt", json=HALT, headers=encoded)
    assert response.status_code == 403
    assert "x-csrf-token" in response.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://service.evil.example"},
        {"sec-fetch-site": "cross-site", "origin": "http://service"},
    ],
)
def test_another_site_changes_nothing_even_with_the_token(
    logged_in: httpx.Client, token: str, headers: dict[str, str]
) -> None:
    response = logged_in.post("/v1/paper/halt", json=HALT, headers={**headers, "x-csrf-token": token})
    assert response.status_code == 403
    assert logged_in.delete("/v1/session", headers=headers).status_code == 403
    assert logged_in.post("/v1/session", json={"key": "x"}, headers=headers).status_code == 403


def test_a_key_needs_no_token(logged_in: httpx.Client, key: str) -> None:
    assert logged_in.post("/v1/paper/halt", json=HALT, headers={"X-API-Key": key}).status_code == 202


def test_a_token_of_another_session_does_not_fit(logged_in: httpx.Client, key: str, token: str) -> None:
    log_in(logged_in, key)  # a new cookie
    response = logged_in.post("/v1/paper/halt", json=HALT, headers={**ORIGIN, "x-csrf-token": token})
    assert response.status_code == 403


def test_neither_key_nor_cookie_nor_token_is_ever_logged(
    browser: httpx.Client, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        log_in(browser, key)
        log_in(browser, "smu0_a-wrong-key-that-somebody-typed")
        cookie, token = browser.cookies[COOKIE], browser.get("/v1/session").json()["csrf_token"]
        browser.get(f"/static/{key}")
        browser.get(f"/v1/signal/{key[:32]}")
        browser.post("/v1/paper/halt", json={**HALT, "reason": key}, headers={**ORIGIN, "x-csrf-token": token})
        browser.post("/v1/session", content=key, headers={**ORIGIN, "content-type": "application/json"})
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("service"))
    assert "logged in" in ours
    for secret in (key, key[:32], cookie, token, "smu0_a-wrong-key"):
        assert secret not in ours
