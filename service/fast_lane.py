"""A short way to the one endpoint that is asked thousands of times a second.

The framework finds a route, resolves its dependencies and wraps it in exit stacks anew for every request, which takes
longer than reading and writing it. This layer stands in front and hands a request for exactly one method and path to
its handler; everything else, other methods on that path included, goes the usual way. The endpoint stays declared as a
route, so the OpenAPI document knows it.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.wire import write_service_error

Handler = Callable[[Request], Awaitable[Response]]


class FastLane:
    """Calls `handler` for one method and path; it must do itself what a route's dependencies would do."""

    def __init__(self, app: ASGIApp, *, method: str, path: str, handler: Handler) -> None:
        self._app = app
        self._method = method
        self.path = path  # read where metrics and logs name the route of a request
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.path or scope["method"] != self._method:
            await self._app(scope, receive, send)
            return
        scope["route"] = self
        request = Request(scope, receive)
        try:
            response = await self._handler(request)
        except ServiceError as error:
            response = write_service_error(request, error)
        await response(scope, receive, send)
