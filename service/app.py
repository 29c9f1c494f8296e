"""The ASGI application around a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from configs.version import code_version
from service.dashboard.routes import router as dashboard_router
from service.errors import InvalidRequest, ServiceError
from service.fast_lane import FastLane
from service.middleware import Envelope
from service.paper_routes import router as paper_router
from service.routes import act_directly, router
from service.runtime import Service
from service.wire import tell, write_error, write_service_error

_FRAMEWORK_ERRORS = {
    404: ("not_found", "no such endpoint; GET /openapi.json (scope read) lists them"),
    405: ("method_not_allowed", "this endpoint does not take that method; the header Allow says which it takes"),
}


def create_app(service: Service) -> FastAPI:
    """Routes, error forms and the envelope, around a service that is ready."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="smu0",
        version=code_version(),
        description="Trading decisions of a Stochastic MuZero agent. Paper trading only.",
        lifespan=lifespan,
        # The document is served by a route of its own that wants a key; the usual viewers load scripts from a CDN.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(paper_router)
    app.include_router(dashboard_router)
    app.add_middleware(FastLane, method="POST", path="/v1/act", handler=act_directly)
    app.add_middleware(Envelope, observe=service.metrics.request)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    return app


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return write_service_error(request, error)


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name, detail = _FRAMEWORK_ERRORS.get(error.status_code, ("http_error", str(error.detail)))
    return write_error(request, error.status_code, name, detail, dict(error.headers or {}))


async def _parameter_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = tell([(tuple(problem["loc"]), str(problem["msg"])) for problem in error.errors()])
    return write_error(request, 422, InvalidRequest.name, detail)
