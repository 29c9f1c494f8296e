"""The endpoints. Handlers read, check, ask and write; what they ask stands elsewhere."""

import asyncio
import re
import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Security
from fastapi.responses import Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

from service.auth import ApiKey, Scope, require
from service.checkpoints import checkpoint_within
from service.decisions import decide, read_request, read_requests
from service.errors import Conflict, InvalidRequest, ReloadRefused, Unavailable
from service.model import ModelError
from service.openapi import errors, idempotency_header, openapi_document, request_body
from service.runtime import Service
from service.schemas import (
    ActRequest,
    ActResponse,
    BatchRequest,
    BatchResponse,
    Health,
    ModelDescription,
    Readiness,
    ReloadRequest,
    ReloadResponse,
)
from service.sessions import COOKIE, Session, require_csrf_token, require_same_origin
from service.wire import parse, read_body, request_id, write, write_json

router = APIRouter()

_SAFE_METHODS: Final = ("GET", "HEAD")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,128}")


# --- who asks --------------------------------------------------------------------------------------------------------

_api_key_header = APIKeyHeader(name="X-API-Key", auto_error=False)
_bearer = HTTPBearer(auto_error=False)


def service_of(request: Request) -> Service:
    """The service this application was made around."""
    service: Service = request.app.state.service
    return service


def client_of(request: Request) -> str:
    """Address of the client. Forwarded headers are not believed: anybody can send them."""
    return request.client.host if request.client else "unknown"


class Allowed:
    """A dependency that lets through whoever presents a key with one scope, or the cookie of a login with one."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(
        self,
        request: Request,
        header: Annotated[str | None, Security(_api_key_header)],
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> ApiKey:
        authenticator = service_of(request).authenticator
        client = client_of(request)
        authenticator.charge(client)
        presented = header or (bearer.credentials if bearer else None)
        session = session_of(request) if presented is None else None
        if session is None:
            key = authenticator.authenticate(client, presented)
        else:
            key = session.key
            if request.method not in _SAFE_METHODS:
                require_same_origin(request.headers)
                require_csrf_token(session, request.headers)
        require(key, self.scope)
        return key


def session_of(request: Request) -> Session | None:
    """The login a browser's cookie stands for."""
    cookie = request.cookies.get(COOKIE)
    if cookie is None:
        return None
    service = service_of(request)
    return service.sessions.find(cookie, service.authenticator.keys())


MayRead = Annotated[ApiKey, Depends(Allowed(Scope.READ))]
_may_act = Allowed(Scope.ACT)
MayAct = Annotated[ApiKey, Depends(_may_act)]
MayControl = Annotated[ApiKey, Depends(Allowed(Scope.CONTROL))]


# --- open to everybody -----------------------------------------------------------------------------------------------


@router.get("/healthz", response_model=Health, tags=["operations"], summary="The process answers")
async def healthz() -> Response:
    """Answers as long as the process runs."""
    return write(Health())


@router.get(
    "/readyz",
    response_model=Readiness,
    responses=errors(503),
    tags=["operations"],
    summary="The service can decide",
)
async def readyz(request: Request) -> Response:
    """503 lists the reasons why not."""
    service = service_of(request)
    reasons = [*service.not_ready(), *await service.paper.not_ready()]
    if reasons:
        raise Unavailable("; ".join(reasons), retry_after=1.0)
    return write(Readiness(model=service.serving.model.label))


@router.get("/metrics", tags=["operations"], summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counts, latencies, the queue and the paper account, in the Prometheus text format."""
    service = service_of(request)
    service.metrics.queue_depth.set(service.batcher.depth)
    service.metrics.worker_busy_seconds.set(service.batcher.busy_seconds)
    service.metrics.listeners.set(service.broadcast.listeners)
    service.metrics.paper(await service.paper.status_if_known())
    return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})


# --- decisions -------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/act",
    response_model=ActResponse,
    responses=errors(401, 403, 409, 413, 415, 422, 429, 503, 504),
    openapi_extra={**request_body(ActRequest), **idempotency_header()},
    tags=["decisions"],
    summary="What should the position be?",
)
async def act(request: Request, key: MayAct) -> Response:
    """Plan from a window of closed bars and the position held.

    The decision is the one a backtest of the same checkpoint takes on the same bars and account.
    """
    return await _act(request, key)


async def act_directly(request: Request) -> Response:
    """The same without the framework's way here; see `service.fast_lane`."""
    header = request.headers.get("x-api-key")
    return await _act(request, await _may_act(request, header, None if header else await _bearer(request)))


async def _act(request: Request, key: ApiKey) -> Response:
    begin = time.perf_counter()
    service = service_of(request)
    body = await read_body(request, service.config.body_limit)
    idempotency_key = idempotency_key_of(request)

    async def compute() -> bytes:
        service.batcher.require_room(1)  # before the reading: most of what a refusal costs
        [answer] = await decide(service, [read_request(body)], request_id(request), begin)
        return answer

    if idempotency_key is None:
        return write_json(await compute())
    answer = await service.idempotency.answer(f"{key.name} act", idempotency_key, body, compute)
    return write_json(answer.content, answer.headers)


@router.post(
    "/v1/act/batch",
    response_model=BatchResponse,
    responses=errors(401, 403, 413, 415, 422, 429, 503, 504),
    openapi_extra=request_body(BatchRequest),
    tags=["decisions"],
    summary="Several decisions, all or none",
)
async def act_batch(request: Request, _: MayAct) -> Response:
    """Up to 64 independent decisions. The limit on the body's size comes first: about 40 windows of 320 bars."""
    begin = time.perf_counter()
    service = service_of(request)
    requests = read_requests(await read_body(request, service.config.body_limit))
    service.authenticator.charge(client_of(request), len(requests) - 1)
    answers = await decide(service, requests, request_id(request), begin)
    return write_json(b'{"results":[' + b",".join(answers) + b"]}")


# --- the model -------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/model",
    response_model=ModelDescription,
    responses=errors(401, 403, 429),
    tags=["model"],
    summary="What is served, and what it wants to be asked",
)
async def model(request: Request, _: MayRead) -> Response:
    """How many bars a request must hold, what each action means, and what the chance codes have meant."""
    return write(service_of(request).serving.model.describe())


@router.post(
    "/v1/model/reload",
    response_model=ReloadResponse,
    responses=errors(401, 403, 409, 413, 415, 422, 429),
    openapi_extra=request_body(ReloadRequest, required=False),
    tags=["model"],
    summary="Serve another checkpoint, or the same one anew; any failure keeps the present one",
)
async def reload(request: Request, _: MayControl) -> Response:
    """Load, check that clients need not change, decide on a golden input, swap. Decisions go on meanwhile."""
    service = service_of(request)
    body = await read_body(request, service.config.body_limit, optional=True)
    wanted = parse(ReloadRequest, body or b"{}").checkpoint
    source = None if wanted is None else checkpoint_within(wanted, service.checkpoint_roots)
    try:
        # Off the event loop and off the search worker: decisions go on while this takes its seconds.
        new, previous = await asyncio.to_thread(service.serving.replace, source)
    except ModelError as error:
        service.metrics.reload("refused")
        raise ReloadRefused(f"{error}. {service.serving.model.label} goes on serving") from error
    except BlockingIOError:
        raise Conflict("a reload is in progress; wait for it, then try again") from None
    changed = new.label != previous.label
    service.metrics.reload("swapped" if changed else "unchanged")
    service.metrics.model(new.label)
    return write(ReloadResponse(model=new.label, previous=previous.label, changed=changed))


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, _: MayRead) -> dict[str, Any]:
    """This document."""
    return openapi_document(request.app)


def idempotency_key_of(request: Request) -> str | None:
    """The Idempotency-Key of a request, if it has one. Raises InvalidRequest."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key: expected 1 to 128 printable ASCII characters without spaces")
    return key
