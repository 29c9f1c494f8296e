"""Bytes in, bytes out: bodies read within bounds, errors written in the one form they have."""

from collections.abc import Sequence
from typing import TypeVar

from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.errors import BodyTooLarge, InvalidRequest, ServiceError, UnsupportedMediaType
from service.middleware import REQUEST_ID
from service.schemas import ErrorBody

Body = TypeVar("Body", bound=BaseModel)

_JSON = "application/json"
_SHOWN_PROBLEMS = 5


async def read_body(request: Request, limit: int, *, optional: bool = False) -> bytes:
    """The body, never more of it than `limit` bytes. Raises BodyTooLarge or UnsupportedMediaType.

    optional: an empty body is fine whatever it is said to be.
    """
    too_large = BodyTooLarge(f"expected a body of at most {limit} bytes; send fewer bars or rows at a time")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise too_large
    if optional and not content:
        return b""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise UnsupportedMediaType(
            f"expected the header content-type: {_JSON}; with curl add -H 'content-type: {_JSON}'"
        )
    return bytes(content)


def parse(model: type[Body], body: bytes) -> Body:
    """A body as its model, read by pydantic's own JSON parser. Raises InvalidRequest.

    The complaint says where and what is expected, never what was found: a NaN could not even be written as JSON, and
    a key pasted into the wrong field would come back.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        raise InvalidRequest(tell([(problem["loc"], problem["msg"]) for problem in problems])) from None


def tell(problems: Sequence[tuple[tuple[int | str, ...], str]]) -> str:
    """Validation problems, each a place and a message, as one line."""
    lines = [
        f"{'.'.join(str(part) for part in place) or 'body'}: {message}" for place, message in problems[:_SHOWN_PROBLEMS]
    ]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
    return "; ".join(lines)


def write(model: BaseModel) -> Response:
    """A model as a JSON response."""
    return write_json(model.model_dump_json().encode())


def write_json(content: bytes, headers: dict[str, str] | None = None, *, status: int = 200) -> Response:
    """Bytes that are JSON already."""
    return Response(content, status_code=status, media_type=_JSON, headers=headers)


def write_service_error(request: Request, error: ServiceError) -> Response:
    """A service error on the wire."""
    return write_error(request, error.status, error.name, error.detail, error.headers)


def write_error(
    request: Request, status: int, name: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    """{"error", "detail", "request_id"}."""
    body = ErrorBody(error=name, detail=detail, request_id=request_id(request))
    return Response(body.model_dump_json(), status_code=status, headers=headers, media_type=_JSON)


def request_id(request: Request) -> str:
    """The id `Envelope` gave this request."""
    identifier: str = request.scope["state"][REQUEST_ID]
    return identifier
