"""The pages, their files, and how a browser logs in."""

import asyncio
import logging
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from service.auth import Scope, require
from service.dashboard.assets import assets, page
from service.errors import Unauthorized
from service.openapi import errors, request_body
from service.routes import client_of, service_of, session_of
from service.schemas import LoginRequest, SessionDescription
from service.sessions import COOKIE, Session, came_by_tls, cookie_header, require_same_origin
from service.wire import parse, read_body, write

router = APIRouter()
log = logging.getLogger("service.dashboard")

_LOGIN_BODY_LIMIT: Final = 4096  # bytes; a key has 48
_UNCHANGING: Final = "public, max-age=31536000, immutable"
_HTML: Final = "text/html; charset=utf-8"


@router.get("/", include_in_schema=False)
async def dashboard(request: Request) -> Response:
    """The dashboard, or the way to it."""
    service_of(request).authenticator.charge(client_of(request))
    session = session_of(request)
    if session is None or Scope.READ not in session.key.scopes:
        return RedirectResponse("/login", status_code=303)
    return Response(await asyncio.to_thread(page, "index.html"), media_type=_HTML)


@router.get("/login", include_in_schema=False)
async def login_page(request: Request) -> Response:
    """Asks for a key."""
    service_of(request).authenticator.charge(client_of(request))
    return Response(await asyncio.to_thread(page, "login.html"), media_type=_HTML)


@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    """Browsers ask for it whatever the page says."""
    return RedirectResponse("/static/icon.svg", status_code=308, headers={"cache-control": _UNCHANGING})


@router.get("/static/{name}", include_in_schema=False)
async def static(request: Request, name: Annotated[str, Path(max_length=64)]) -> Response:
    """A file of the pages. Only names that are known: no path is built from what was asked."""
    found = (await asyncio.to_thread(assets)).get(name)
    if found is None:
        raise HTTPException(404)
    headers = {"cache-control": _UNCHANGING, "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        compressed = await asyncio.to_thread(lambda: found.compressed)
        if compressed is not None:
            return Response(compressed, media_type=found.media_type, headers={**headers, "content-encoding": "gzip"})
    return Response(found.content, media_type=found.media_type, headers=headers)


# --- sessions --------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/session",
    response_model=SessionDescription,
    responses=errors(401, 403, 413, 415, 422, 429),
    openapi_extra=request_body(LoginRequest),
    tags=["session"],
    summary="Log a browser in with a key",
)
async def login(request: Request) -> Response:
    """Sets an HttpOnly cookie that stands for the key. Wrong keys are counted against the client's address."""
    service = service_of(request)
    client = client_of(request)
    service.authenticator.charge(client)
    require_same_origin(request.headers)
    presented = parse(LoginRequest, await read_body(request, _LOGIN_BODY_LIMIT)).key.get_secret_value()
    key = service.authenticator.authenticate(client, presented)
    require(key, Scope.READ)
    service.sessions.close(request.cookies.get(COOKIE))
    cookie = service.sessions.open(key)
    session = service.sessions.find(cookie, [key])
    assert session is not None
    log.info("%s logged in from %s", key.name, client)
    response = _describe(session)
    secure = came_by_tls(request.url.scheme, request.headers)
    max_age = int(service.config.session_seconds)
    response.headers["set-cookie"] = cookie_header(cookie, max_age=max_age, secure=secure)
    return response


@router.get(
    "/v1/session",
    response_model=SessionDescription,
    responses=errors(401, 429),
    tags=["session"],
    summary="Who is logged in",
)
async def session(request: Request) -> Response:
    """The token that a page sends with whatever changes something. Only for browsers: a key needs no session."""
    service_of(request).authenticator.charge(client_of(request))
    found = session_of(request)
    if found is None:
        raise Unauthorized("expected the cookie of a login, found none that is valid; log in at /login")
    return _describe(found)


@router.delete(
    "/v1/session",
    status_code=204,
    response_class=Response,
    responses=errors(403, 429),
    tags=["session"],
    summary="Log a browser out",
)
async def logout(request: Request) -> Response:
    """Ends the session of the cookie, if there is one."""
    service = service_of(request)
    service.authenticator.charge(client_of(request))
    require_same_origin(request.headers)
    service.sessions.close(request.cookies.get(COOKIE))
    secure = came_by_tls(request.url.scheme, request.headers)
    return Response(status_code=204, headers={"set-cookie": cookie_header("", max_age=0, secure=secure)})


def _describe(session: Session) -> Response:
    description = SessionDescription(
        name=session.key.name,
        scopes=sorted(session.key.scopes),
        csrf_token=session.csrf_token,
        expires_ms=int(session.expires * 1000),
    )
    return write(description)
