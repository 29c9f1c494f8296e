"""What the ledger knows and what the trader may be asked: the endpoints of paper trading.

Reads happen on the ledger's threads (`service.ledger_desk`). A command is a row in the ledger; the paper process finds
it there, carries it out and says what became of it, which `GET /v1/paper/status` shows.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response

from service.errors import Conflict, InvalidRequest, NotFound
from service.ledger.schema import COMMAND_KINDS, CommandKind, IdempotencyRow
from service.ledger.store import Reader, Writer
from service.ledger_desk import NoLedger
from service.openapi import errors, idempotency_header, request_body
from service.paper_schemas import (
    LARGEST_TIME_MS,
    MAX_ROWS,
    BarRows,
    Command,
    CommandRequest,
    Decisions,
    EquityRows,
    Events,
    Fills,
    PaperStatus,
    Positions,
    Signal,
)
from service.paper_views import (
    NO_RUN,
    describe_command,
    last_signal,
    list_bars,
    list_decisions,
    list_equity,
    list_events,
    list_fills,
    list_positions,
    no_events,
    no_positions,
    no_rows,
)
from service.routes import MayControl, MayRead, idempotency_key_of, service_of
from service.runtime import Service
from service.stream import EventStream
from service.wire import parse, read_body, write_json

router = APIRouter()

_READ: Final = errors(401, 403, 422, 429, 503, 504)
_EVENT_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "events `event`, `decision` (a row each, with an id), `status` (how things stand, when that has "
        "changed), `trouble` (the ledger cannot be read)",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

Since = Annotated[
    int | None,
    Query(ge=0, le=LARGEST_TIME_MS, description="epoch ms, included; without it the newest rows are given"),
]
Limit = Annotated[int, Query(ge=1, le=MAX_ROWS, description="most rows")]


async def _ask(service: Service, question: Callable[[Reader], bytes], absent: bytes) -> Response:
    """The ledger's answer, or what is said where there is no ledger."""
    try:
        return write_json(await service.ledger.read(question))
    except NoLedger:
        return write_json(absent)


# --- reading ---------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/signal/{symbol:path}",
    response_model=Signal,
    responses=errors(401, 403, 404, 422, 429, 503, 504),
    tags=["paper"],
    summary="The last stored decision for a symbol",
)
async def signal(
    request: Request,
    _: MayRead,
    symbol: Annotated[
        str, Path(max_length=32, description="instrument, such as BTC/USDT; its slash may stand as it is")
    ],
) -> Response:
    """Of the current run, whatever became of it: `status` and `reason` say. 404 when nothing was decided for it."""
    service = service_of(request)
    now_ms = int(service.now() * 1000)
    try:
        content = await service.ledger.read(lambda read: last_signal(read, symbol, now_ms))
    except NoLedger:
        raise NotFound(NO_RUN) from None
    if content is None:
        raise NotFound(
            "no decision is stored for this symbol; GET /v1/paper/status names the instrument that is traded"
        )
    return write_json(content)


@router.get(
    "/v1/paper/status",
    response_model=PaperStatus,
    responses=_READ,
    tags=["paper"],
    summary="How paper trading stands",
)
async def status(request: Request, _: MayRead) -> Response:
    """Run, guards, account, position, the paper process, the latest commands, and every problem in words."""
    return write_json((await service_of(request).paper.status()).model_dump_json().encode())


@router.get("/v1/paper/positions", response_model=Positions, responses=_READ, tags=["paper"], summary="What is held")
async def positions(request: Request, _: MayRead) -> Response:
    """At the last mark."""
    return await _ask(service_of(request), list_positions, no_positions())


@router.get(
    "/v1/paper/equity",
    response_model=EquityRows,
    responses=_READ,
    tags=["paper"],
    summary="The account, marked at each close",
)
async def equity(request: Request, _: MayRead, since: Since = None, limit: Limit = 500) -> Response:
    """Beside what buying at the start and holding would be worth."""
    return await _ask(service_of(request), lambda read: list_equity(read, since, limit), no_rows())


@router.get(
    "/v1/paper/decisions",
    response_model=Decisions,
    responses=_READ,
    tags=["paper"],
    summary="What was decided, and why",
)
async def decisions(request: Request, _: MayRead, since: Since = None, limit: Limit = 100) -> Response:
    """One per closed bar, those that were skipped included."""
    return await _ask(service_of(request), lambda read: list_decisions(read, since, limit), no_rows())


@router.get(
    "/v1/paper/fills", response_model=Fills, responses=_READ, tags=["paper"], summary="What was filled, and its cost"
)
async def fills(request: Request, _: MayRead, since: Since = None, limit: Limit = 500) -> Response:
    """With every part of the cost."""
    return await _ask(service_of(request), lambda read: list_fills(read, since, limit), no_rows())


@router.get(
    "/v1/paper/bars", response_model=BarRows, responses=_READ, tags=["paper"], summary="The bars as they were received"
)
async def bars(request: Request, _: MayRead, since: Since = None, limit: Limit = 500) -> Response:
    """Closed bars only, those of the warm-up included."""
    return await _ask(service_of(request), lambda read: list_bars(read, since, limit), no_rows())


@router.get("/v1/paper/events", response_model=Events, responses=_READ, tags=["paper"], summary="What has happened")
async def events(
    request: Request,
    _: MayRead,
    since: Since = None,
    after: Annotated[int | None, Query(ge=0, le=2**62, description="id of an event, not included")] = None,
    limit: Limit = 100,
) -> Response:
    """Starts, outages, guards, revisions, commands: of every run."""
    return await _ask(service_of(request), lambda read: list_events(read, since, after, limit), no_events())


# --- listening -------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/stream",
    response_class=Response,
    responses={**_EVENT_STREAM, **errors(401, 403, 422, 429, 503, 504)},
    tags=["paper"],
    summary="News as server-sent events",
)
async def stream(
    request: Request,
    key: MayRead,
    last_event_id: Annotated[
        str | None, Header(max_length=40, description="where to go on: the last id that was received")
    ] = None,
) -> Response:
    """Never ends by itself. Comes back by itself in a browser; goes on where it was with `Last-Event-ID`."""
    service = service_of(request)

    def still_allowed() -> bool:
        return key in service.authenticator.keys()  # noqa: SIM118 (API keys, not those of a dict)

    return EventStream(await service.broadcast.join(last_event_id, still_allowed))


# --- asking ----------------------------------------------------------------------------------------------------------

_COMMAND_SUMMARIES: Final = {
    "halt": "Place no further order; what is held stays held",
    "flatten": "Close the position at the next bar, then place no further order",
    "resume": "Trade again; losses so far are accepted",
    "reset": "Archive this run and begin another with a fresh account",
}


def _add_command(kind: CommandKind) -> None:
    async def command(request: Request, key: MayControl) -> Response:
        service = service_of(request)
        body = await read_body(request, service.config.body_limit)
        wanted = parse(CommandRequest, body)
        if wanted.confirm != kind:
            raise InvalidRequest(f'confirm: expected "{kind}", the name of the command, found something else')
        name = idempotency_key_of(request)
        now_ms, kept_ms = int(service.now() * 1000), int(service.config.idempotency_seconds * 1000)

        def place(ledger: Writer) -> tuple[bytes, bool]:
            return _place_command(ledger, kind, wanted.reason, key.name, name, body, now_ms, kept_ms)

        try:
            content, replayed = await service.ledger.write(place)
        except NoLedger:
            raise Conflict(f"there is nothing to {kind}: {NO_RUN}") from None
        headers = {} if name is None else {"Idempotency-Kept": "ledger"}
        if replayed:
            headers["Idempotent-Replay"] = "true"
        return write_json(content, headers, status=202)

    router.add_api_route(
        f"/v1/paper/{kind}",
        command,
        methods=["POST"],
        name=kind,
        status_code=202,
        response_model=Command,
        responses=errors(401, 403, 409, 413, 415, 422, 429, 503, 504),
        openapi_extra={**request_body(CommandRequest), **idempotency_header()},
        tags=["paper"],
        summary=_COMMAND_SUMMARIES[kind],
        description="Accepted, not done: the paper process takes it within a second or so, and GET /v1/paper/status "
        "shows what became of it.",
    )


for _kind in COMMAND_KINDS:
    _add_command(_kind)


def _place_command(
    ledger: Writer, kind: CommandKind, reason: str, who: str, name: str | None, body: bytes, now_ms: int, kept_ms: int
) -> tuple[bytes, bool]:
    """One transaction: the command and, with an Idempotency-Key, its answer. Returns that and whether it is old."""
    scope = f"{who} {kind}"
    digest = hashlib.sha256(body).hexdigest()
    if name is not None:
        earlier = ledger.idempotency(scope, name, body_sha256=digest, created_since=now_ms - kept_ms)
        if earlier is not None:
            return earlier.response.encode(), True
    command_id = ledger.insert_command(kind, reason=reason, confirm=kind, requested_by=who, now_ms=now_ms)
    row = ledger.command(command_id)
    assert row is not None
    content = describe_command(row).model_dump_json()
    if name is not None:
        ledger.remember(
            IdempotencyRow(scope=scope, key=name, body_sha256=digest, status=202, response=content, created_ms=now_ms)
        )
    return content.encode(), False
