"""What surrounds every request: an id, security headers, a count, and an answer even when something broke.

Plain ASGI, because Starlette's BaseHTTPMiddleware runs every response through an extra task and queue.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.schemas import ErrorBody

log = logging.getLogger("service")

REQUEST_ID = "request_id"
_REQUEST_ID_PATTERN = re.compile(rb"[A-Za-z0-9._-]{1,64}")

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]

Observe = Callable[[str, int, float], None]  # route template, status, seconds


class Envelope:
    """Outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})[REQUEST_ID] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", ())
                chosen = {name for name, _ in headers}  # a route may know better, as for files that never change
                message["headers"] = [
                    *headers,
                    *(header for header in SECURITY_HEADERS if header[0] not in chosen),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            log.info("%s %s: the client left before its request was read", request_id, _route(scope))
        except Exception:
            # Logged with its traceback and told to nobody: it may hold what the caller must not see.
            log.exception("%s %s %s: unforeseen error", request_id, scope["method"], _route(scope))
            if status == 0:
                await _send_internal_error(send_with_headers, request_id)
        finally:
            seconds = time.perf_counter() - begin
            if status:
                self._observe(_route(scope), status, seconds)
            if status >= 400:
                log.info("%s %s %s %d %.1f ms", request_id, scope["method"], _route(scope), status, seconds * 1e3)


def _route(scope: Scope) -> str:
    """The route's template, not the path that was asked for: people put keys in paths and queries."""
    return getattr(scope.get("route"), "path", "unmatched")


def _request_id(scope: Scope) -> str:
    """The caller's own id if it is fit to be repeated, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID_PATTERN.fullmatch(value):
            return str(value.decode())
    return secrets.token_hex(8)


async def _send_internal_error(send: Send, request_id: str) -> None:
    body = ErrorBody(
        error="internal_error",
        detail="the service failed to answer; its log has the cause under this request_id",
        request_id=request_id,
    )
    await send(
        {
            "type": "http.response.start",
            "status": 500,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    await send({"type": "http.response.body", "body": body.model_dump_json().encode()})
