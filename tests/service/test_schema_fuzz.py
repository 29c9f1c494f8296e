"""The OpenAPI document as a source of requests nobody thought of: none may end in a server error, and every answer has
a form the document names.

A fast pass goes with every test run; `make test-slow` asks far more.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.generation import GenerationMode

from service.app import create_app
from service.openapi import openapi_document
from service.runtime import Service

MakeClient = Callable[..., httpx.Client]
STREAM = "/v1/stream"  # never ends; test_stream.py listens to it
ALLOWED_SERVER_ERRORS = {503, 504}
# Not the documented operation: another method, or a path that is none once its parameter is empty.
UNDOCUMENTED = {404, 405}


@pytest.fixture
def fuzzed(
    make_service: Callable[..., Service], make_client: MakeClient, headers: dict[str, str], paper_run: Any
) -> tuple[httpx.Client, dict[str, Any]]:
    """A service with a run to show, and its document."""
    paper_run.advance(5)
    service = make_service(request_burst=1_000_000, failed_login_burst=1_000_000)
    return make_client(service, headers), openapi_document(create_app(service))


def check(client: httpx.Client, document: dict[str, Any], examples: int) -> int:
    """Send requests that fit the document and requests that do not. Returns how many."""
    schema = schemathesis.openapi.from_dict(document)
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == STREAM:
            continue
        documented = set(document["paths"][operation.path][operation.method.lower()]["responses"])
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            # An operation without parameters cannot be asked wrongly.
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                sent += ask(client, operation.as_strategy(generation_mode=mode), documented, examples)
    return sent


def ask(client: httpx.Client, cases: Any, documented: set[str], examples: int) -> int:
    """Requests of one operation. Returns how many were sent."""
    sent = 0

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def one(case: schemathesis.Case) -> None:
        nonlocal sent
        response = send(client, case)
        sent += 1
        where = f"{case.method} {response.request.url}: {response.status_code} {response.text[:300]}"
        assert response.status_code < 500 or response.status_code in ALLOWED_SERVER_ERRORS, where
        if response.status_code in UNDOCUMENTED:
            return
        assert str(response.status_code) in documented, where
        if response.status_code >= 400:
            assert set(response.json()) == {"error", "detail", "request_id"}, where

    one()
    return sent


def send(client: httpx.Client, case: schemathesis.Case) -> httpx.Response:
    arguments = case.as_transport_kwargs(base_url="http://service")
    arguments = {
        name: value
        for name, value in arguments.items()
        if name in ("method", "url", "params", "json", "data", "headers", "cookies")
    }
    arguments["headers"] = {
        name: value for name, value in dict(arguments.get("headers") or {}).items() if name.lower() != "x-api-key"
    }
    data = arguments.pop("data", None)
    if data is not None:
        arguments["content"] = data if isinstance(data, (bytes, str)) else json.dumps(data, default=str)
    cookies = arguments.pop("cookies", None) or {}
    if cookies:
        arguments["headers"]["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    try:
        request = client.build_request(**arguments)
    except (TypeError, ValueError, UnicodeError, httpx.InvalidURL):
        hypothesis.assume(False)  # no HTTP client could send that
        raise
    return client.send(request)


def test_no_generated_request_ends_in_an_error_nobody_foresaw(fuzzed: tuple[httpx.Client, dict[str, Any]]) -> None:
    assert check(*fuzzed, examples=6) > 150


@pytest.mark.slow
def test_no_generated_request_among_many_ends_in_an_error_nobody_foresaw(
    fuzzed: tuple[httpx.Client, dict[str, Any]],
) -> None:
    assert check(*fuzzed, examples=200) > 3000
