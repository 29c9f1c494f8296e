"""What a caller can do wrong, and what can go wrong for him. Each error knows its status and its stable name.

    ServiceError
    ├── Unauthorized 401 · Forbidden 403 · NotFound 404 · Conflict 409 · ReloadRefused 409
    ├── BodyTooLarge 413 · UnsupportedMediaType 415 · InvalidRequest 422
    ├── TooManyRequests 429          (Retry-After)
    ├── InvalidModelOutput 500
    ├── Unavailable 503              (Retry-After)
    └── DeadlineExceeded 504

On the wire: {"error": name, "detail": text for people, "request_id": id}.
"""

import math
from typing import ClassVar


class ServiceError(Exception):
    """An answer that is not 200. `detail` says what, expected, found and what to do; it never holds a secret."""

    status: ClassVar[int]
    name: ClassVar[str]

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to this error."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}  # the header counts whole seconds


class Unauthorized(ServiceError):
    """No key, or one that is not known."""

    status, name = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """A known key without the scope an endpoint asks for."""

    status, name = 403, "forbidden"


class NotFound(ServiceError):
    """Nothing is stored under that name."""

    status, name = 404, "not_found"


class Conflict(ServiceError):
    """The request contradicts an earlier one or one in progress."""

    status, name = 409, "conflict"


class ReloadRefused(ServiceError):
    """A checkpoint that cannot take the place of the one being served."""

    status, name = 409, "reload_refused"


class BodyTooLarge(ServiceError):
    """More bytes than the service reads."""

    status, name = 413, "body_too_large"


class UnsupportedMediaType(ServiceError):
    """A body that is not said to be JSON."""

    status, name = 415, "unsupported_media_type"


class InvalidRequest(ServiceError):
    """Understood, and wrong."""

    status, name = 422, "invalid_request"


class TooManyRequests(ServiceError):
    """A client above its rate."""

    status, name = 429, "too_many_requests"


class InvalidModelOutput(ServiceError):
    """The model said something that is not a number. Nobody should trade on it."""

    status, name = 500, "invalid_model_output"


class Unavailable(ServiceError):
    """Not now: the queue is full, no model is loaded, or the service is stopping."""

    status, name = 503, "unavailable"


class DeadlineExceeded(ServiceError):
    """The decision was not ready in time."""

    status, name = 504, "deadline_exceeded"
