"""Health, readiness, metrics, the OpenAPI document, and load."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from agent.policy import Decision
from service.app import create_app
from service.openapi import openapi_document
from service.runtime import Service

Json = dict[str, Any]
MakeClient = Callable[..., httpx.Client]


def test_health_and_readiness_are_open_and_say_what_is_served(service: Service, make_client: MakeClient) -> None:
    client = make_client(service)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "model": service.serving.model.label}


def test_a_service_that_is_stopping_is_not_ready(service: Service, make_client: MakeClient) -> None:
    service.stopping = True
    response = make_client(service).get("/readyz")
    assert response.status_code == 503
    assert response.json()["error"] == "unavailable"
    assert "stopping" in response.json()["detail"]
    assert int(response.headers["retry-after"]) >= 1


class Gate:
    """A policy that waits, so that the worker is busy for as long as a test wants."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.num_actions = inner.num_actions
        self.open = threading.Event()
        self.entered = threading.Event()

    def act(self, *args: Any, **kwargs: Any) -> Decision:
        self.entered.set()
        assert self.open.wait(timeout=60)
        decision: Decision = self.inner.act(*args, **kwargs)
        return decision


@pytest.fixture
def gate(service: Service) -> Gate:
    return Gate(service.serving.model.policy)


def with_policy(service: Service, policy: Any) -> Service:
    service.serving.model = replace(service.serving.model, policy=policy)
    return service


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def open_client(service: Service, headers: dict[str, str]) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers, timeout=60)


def test_a_stuck_worker_makes_the_service_not_ready_while_health_answers(
    make_service: Callable[..., Service], gate: Gate, body: Json, headers: dict[str, str]
) -> None:
    service = with_policy(make_service(stuck_seconds=0.01), gate)

    async def main() -> None:
        async with open_client(service, headers) as client:
            task = asyncio.create_task(client.post("/v1/act", json=body))
            await asyncio.to_thread(gate.entered.wait, 30)
            await asyncio.sleep(0.02)
            response = await client.get("/readyz")
            assert response.status_code == 503
            assert "the worker has been on one batch" in response.json()["detail"]
            assert (await client.get("/healthz")).status_code == 200
            gate.open.set()
            assert (await task).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
        await service.close()

    asyncio.run(main())


def test_a_full_queue_is_503_with_a_time_to_come_back(
    make_service: Callable[..., Service], gate: Gate, body: Json, headers: dict[str, str]
) -> None:
    service = with_policy(make_service(queue_limit=2), gate)

    async def main() -> None:
        async with open_client(service, headers) as client:
            tasks = [asyncio.create_task(client.post("/v1/act", json=body))]
            await asyncio.to_thread(gate.entered.wait, 30)
            tasks += [asyncio.create_task(client.post("/v1/act", json=body)) for _ in range(2)]
            await until(lambda: service.batcher.depth == 2)
            refused = await client.post("/v1/act", json=body)
            assert refused.status_code == 503
            assert refused.json()["error"] == "unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            assert "smu0_queue_depth 2.0" in (await client.get("/metrics")).text
            gate.open.set()
            assert [(await task).status_code for task in tasks] == [200, 200, 200]
        await service.close()

    asyncio.run(main())


def test_a_decision_that_takes_too_long_is_504(
    make_service: Callable[..., Service], gate: Gate, body: Json, headers: dict[str, str]
) -> None:
    service = with_policy(make_service(deadline_seconds=0.05), gate)

    async def main() -> None:
        async with open_client(service, headers) as client:
            response = await client.post("/v1/act", json=body)
            assert response.status_code == 504
            assert response.json()["error"] == "deadline_exceeded"
            gate.open.set()
        await service.close()

    asyncio.run(main())


@pytest.mark.parametrize(("queue_limit", "expected"), [(256, {200}), (16, {200, 503})])
def test_200_concurrent_requests_get_200_or_503_and_never_500(
    make_service: Callable[..., Service], body: Json, headers: dict[str, str], queue_limit: int, expected: set[int]
) -> None:
    service = make_service(queue_limit=queue_limit)
    content = json.dumps(body)

    async def main() -> Counter[int]:
        async with open_client(service, {**headers, "content-type": "application/json"}) as client:
            responses = await asyncio.gather(*(client.post("/v1/act", content=content) for _ in range(200)))
        await service.close()
        decided = {(r.json()["action"], r.json()["value"]) for r in responses if r.status_code == 200}
        assert len(decided) == 1  # one question, one answer, in whatever batch it was
        assert all("retry-after" in r.headers for r in responses if r.status_code == 503)
        return Counter(response.status_code for response in responses)

    assert set(asyncio.run(main())) == expected


def test_metrics_are_open_and_count_requests_decisions_and_batches(
    service: Service, make_client: MakeClient, body: Json, headers: dict[str, str]
) -> None:
    client = make_client(service)
    client.post("/v1/act", json=body, headers=headers)
    client.post("/v1/act", json=body)
    client.get("/v1/nothing")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'smu0_requests_total{route="/v1/act",status="200"} 1.0',
        'smu0_requests_total{route="/v1/act",status="401"} 1.0',
        'smu0_requests_total{route="unmatched",status="404"} 1.0',
        "smu0_batch_rows_count 1.0",
        "smu0_queue_seconds_count 1.0",
        "smu0_queue_depth 0.0",
    ):
        assert line in response.text, line
    assert "smu0_decisions_total{action=" in response.text


def test_two_services_share_no_metrics(make_service: Callable[..., Service], make_client: MakeClient) -> None:
    make_client(make_service()).get("/healthz")
    assert "/healthz" not in make_client(make_service()).get("/metrics").text


def test_the_model_tells_what_it_wants_to_be_asked(client: httpx.Client, service: Service) -> None:
    model = service.serving.model
    told = client.get("/v1/model").json()
    assert told["model"] == model.label
    assert told["required_bars"] == told["window"] + told["feature_warmup"] - 1
    assert told["timeframe"] == "1d"
    assert told["target_positions"] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert told["allowed"] == [True] * 5
    assert told["features"] == list(model.features.names)
    assert told["symbols"] == ["sp500"]
    assert [code["code"] for code in told["codes"]] == [0, 1, 2]
    assert told["golden_action"] in range(5)


# --- the OpenAPI document --------------------------------------------------------------------------------------------


@pytest.fixture
def document(service: Service) -> Json:
    return openapi_document(create_app(service))


def test_the_document_is_served_with_a_key_and_names_no_other_host(client: httpx.Client, document: Json) -> None:
    response = client.get("/openapi.json")
    assert response.json() == document
    assert "cdn" not in response.text


def test_every_reference_in_the_document_resolves(document: Json) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for item in node for found in references(item)] if isinstance(node, list) else []

    found = references(document)
    assert "#/components/schemas/ActRequest" in found
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/v1/act", {"200", "401", "403", "409", "413", "415", "422", "429", "503", "504"}),
        ("/v1/act/batch", {"200", "401", "403", "413", "415", "422", "429", "503", "504"}),
        ("/v1/model/reload", {"200", "401", "403", "409", "413", "415", "422", "429"}),
    ],
)
def test_the_document_names_every_answer_and_its_form(document: Json, path: str, statuses: set[str]) -> None:
    operation = document["paths"][path]["post"]
    assert set(operation["responses"]) == statuses
    for status in statuses - {"200"}:
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert operation["security"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]


def test_the_document_forbids_unknown_fields_as_the_service_does(document: Json) -> None:
    for name in ("ActRequest", "AccountState", "BatchRequest", "ReloadRequest"):
        assert document["components"]["schemas"][name]["additionalProperties"] is False
