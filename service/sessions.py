"""Browser sessions: a key is shown once, in the login form, and a cookie stands for it from then on.

A cookie holds 256 random bits. The service keeps their SHA-256, the name of the key they stand for and two times:
whoever reads the session file can log in as nobody. A session allows what its key allows *now*: revoke the key and
its sessions end with it.

What a browser does by itself is no proof of what its user wants, so whoever comes with a cookie and wants to change
something also presents a token that only a page of ours could read, and comes from this origin.
"""

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from service.auth import ApiKey
from service.errors import Forbidden

log = logging.getLogger("service.sessions")

COOKIE: Final = "smu0_session"
CSRF_HEADER: Final = "x-csrf-token"
_COOKIE_LENGTH: Final = 43  # 256 bits in base64
_SEEN_RESOLUTION: Final = 60.0  # seconds; how often a session in use is worth remembering again


class _Stored(BaseModel):
    """A session on disk. digest: SHA-256 of the cookie; times: seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    digest: str
    key_digest: str
    created: float
    seen: float


_SessionList = TypeAdapter(list[_Stored])


@dataclass(frozen=True)
class Session:
    """Who is logged in, and the token his control requests carry."""

    key: ApiKey
    csrf_token: str
    expires: float


class Sessions:
    """Logged-in browsers, bounded in number and in time, and remembered across restarts.

    The oldest session makes room for a new one. `path` is where they are remembered; a place that cannot be written
    costs the memory, never the login.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        limit: int = 64,
        lifetime_seconds: float = 7 * 86_400.0,
        idle_seconds: float = 86_400.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """lifetime_seconds: from login to the end. idle_seconds: from the last request to the end."""
        self._path = path
        self._limit = limit
        self._lifetime = lifetime_seconds
        self._idle = idle_seconds
        self._now = now
        self._sessions: dict[str, _Stored] = {stored.digest: stored for stored in _read(path)}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, key: ApiKey) -> str:
        """Log a browser in with a key. Returns the cookie: the only time anybody but the browser sees it."""
        self._forget_expired()
        while len(self._sessions) >= self._limit:
            del self._sessions[min(self._sessions.values(), key=lambda one: one.seen).digest]
        cookie = secrets.token_urlsafe(32)
        now = self._now()
        stored = _Stored(digest=_digest(cookie), key_digest=key.digest, created=now, seen=now)
        self._sessions[stored.digest] = stored
        self._write()
        return cookie

    def find(self, cookie: str | None, keys: Iterable[ApiKey]) -> Session | None:
        """The session a cookie stands for; none when it is unknown or over, or its key is not among `keys`.

        Looked up by hash, so the time it takes tells nothing about the cookies that are valid.
        """
        if cookie is None or len(cookie) != _COOKIE_LENGTH:
            return None
        stored = self._sessions.get(_digest(cookie))
        if stored is None:
            return None
        now = self._now()
        if self._ends(stored) <= now:
            self.close(cookie)
            return None
        key = next((key for key in keys if hmac.compare_digest(key.digest, stored.key_digest)), None)
        if key is None:
            self.close(cookie)
            return None
        if now - stored.seen > _SEEN_RESOLUTION:
            self._sessions[stored.digest] = stored.model_copy(update={"seen": now})
        return Session(key, _csrf_token(cookie), stored.created + self._lifetime)

    def close(self, cookie: str | None) -> None:
        """Log a browser out. Closing what is not open is fine."""
        if cookie is not None and self._sessions.pop(_digest(cookie), None) is not None:
            self._write()

    def save(self) -> None:
        """Remember when sessions were last used; for the end of the process."""
        if self._sessions:
            self._write()

    def _ends(self, stored: _Stored) -> float:
        return min(stored.created + self._lifetime, stored.seen + self._idle)

    def _forget_expired(self) -> None:
        now = self._now()
        self._sessions = {digest: one for digest, one in self._sessions.items() if self._ends(one) > now}

    def _write(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_name(f".{self._path.name}.tmp-{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(_SessionList.dump_json(list(self._sessions.values())))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("sessions: %s; browsers have to log in again after a restart", error)


def _read(path: Path | None) -> list[_Stored]:
    if path is None:
        return []
    try:
        return _SessionList.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        # The worst that follows is that people log in again. Its text may hold what stood in the file: not shown.
        log.warning("sessions: %s cannot be read (%s); browsers have to log in again", path, type(error).__name__)
        return []


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).hexdigest()


def _csrf_token(cookie: str) -> str:
    """Follows from the cookie, so there is nothing to store; the cookie does not follow from it."""
    return hmac.new(cookie.encode("utf-8", "surrogateescape"), b"csrf", hashlib.sha256).hexdigest()


def cookie_header(value: str, *, max_age: int, secure: bool) -> str:
    """The Set-Cookie header of a login, or of a logout with max_age 0."""
    attributes = [f"{COOKIE}={value}", f"Max-Age={max_age}", "Path=/", "HttpOnly", "SameSite=Strict"]
    return "; ".join([*attributes, "Secure"] if secure else attributes)


def came_by_tls(scheme: str, headers: Mapping[str, str]) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy in front of us.

    A browser says in Origin how it sees the page. Nobody but the browser's own user is served by a lie here: it
    decides only whether that browser keeps its cookie to TLS.
    """
    return scheme == "https" or headers.get("origin", "").startswith("https://")


def require_same_origin(headers: Mapping[str, str]) -> None:
    """Raises Forbidden when a browser says that another site made it send this.

    Sec-Fetch-Site is what browsers say over TLS and on the loopback; Origin is what they say elsewhere. A client that
    says neither is no browser, and no page can make it send anything.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site in ("same-origin", "none"):
            return
    else:
        origin = headers.get("origin")
        if origin is None or urlsplit(origin).netloc == headers.get("host"):
            return
    raise Forbidden("expected a request from a page of this service, found one that another site made; open it here")


def require_csrf_token(session: Session, headers: Mapping[str, str]) -> None:
    """Raises Forbidden unless the request carries the session's token."""
    presented = headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(presented.encode(), session.csrf_token.encode()):
        raise Forbidden(
            f"expected the header {CSRF_HEADER} with the token GET /v1/session gives, as a cookie alone changes "
            f"nothing here. Reload the page, or send an API key instead"
        )
