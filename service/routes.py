"""The endpoints. Handlers read, check, ask and write; what they ask stands elsewhere."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Security
from fastapi.responses import Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

from service.auth import ApiKey, Scope, require
from service.batcher import Timed
from service.checkpoints import checkpoint_within
from service.errors import Conflict, InvalidRequest, ReloadRefused, Unavailable
from service.model import Answer, ModelError, ServedModel
from service.openapi import errors, idempotency_header, openapi_document, request_body
from service.outlook import outlook
from service.runtime import Job, Service
from service.schemas import (
    ActRequest,
    ActResponse,
    BatchRequest,
    BatchResponse,
    Health,
    Latency,
    ModelDescription,
    Readiness,
    ReloadRequest,
    ReloadResponse,
    SearchStatistics,
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
MayAct = Annotated[ApiKey, Depends(Allowed(Scope.ACT))]
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
    begin = time.perf_counter()
    service = service_of(request)
    body = await read_body(request, service.config.body_limit)
    idempotency_key = idempotency_key_of(request)

    async def compute() -> bytes:
        [response] = await _decide(service, [parse(ActRequest, body)], request_id(request), begin)
        return response.model_dump_json().encode()

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
    requests = parse(BatchRequest, await read_body(request, service.config.body_limit)).requests
    service.authenticator.charge(client_of(request), len(requests) - 1)
    results = await _decide(service, requests, request_id(request), begin)
    return write(BatchResponse(results=results))


async def _decide(service: Service, requests: Sequence[ActRequest], request_id: str, begin: float) -> list[ActResponse]:
    """Ask the model of this moment for every request. begin: perf_counter seconds at which the request arrived."""
    model = service.serving.model
    now_ms = int(service.now() * 1000)
    windows = []
    for row, request in enumerate(requests):
        try:
            bars = model.bars(request, now_ms)
            windows.append((bars, Job(model, model.question(request, bars))))
        except InvalidRequest as error:
            raise error if len(requests) == 1 else InvalidRequest(f"requests.{row}: {error.detail}") from None
    answers = await service.batcher.submit_all([job for _, job in windows])
    responses = []
    for (bars, _), timed in zip(windows, answers, strict=True):
        service.metrics.decision(timed.answer.action, timed.queue)
        responses.append(
            _response(
                model, timed, bar_ts=int(bars.timestamp[-1]), stale=model.is_stale(bars, now_ms),
                request_id=request_id, begin=begin,
            )
        )  # fmt: skip
    return responses


def _response(
    model: ServedModel, timed: Timed[Answer], *, bar_ts: int, stale: bool, request_id: str, begin: float
) -> ActResponse:
    answer = timed.answer
    return ActResponse(
        action=answer.action,
        target_position=model.target_positions[answer.action],
        policy=answer.policy,
        value=answer.value,
        q_values=answer.q_values,
        outlook=outlook(answer.chance, model.meanings),
        search=SearchStatistics(simulations=answer.simulations, depth=answer.depth, visits=answer.visits),
        model=model.label,
        bar_ts=bar_ts,
        stale=stale,
        latency_ms=Latency(
            queue=_milliseconds(timed.queue),
            inference=_milliseconds(timed.inference),
            total=_milliseconds(time.perf_counter() - begin),
        ),
        request_id=request_id,
    )


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


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
