"""POST /v1/act keeps its contract: what it answers, and every way in which it refuses."""

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.auth import Scope
from service.model import ServedModel
from service.openapi import openapi_document
from service.runtime import Service

Json = dict[str, Any]
MakeClient = Callable[..., httpx.Client]


def assert_error(response: Any, status: int, name: str, *parts: str) -> str:
    assert response.status_code == status, response.text
    content = response.json()
    assert set(content) == {"error", "detail", "request_id"}
    assert content["error"] == name
    assert content["request_id"] == response.headers["x-request-id"]
    for part in parts:
        assert part in content["detail"], content["detail"]
    return str(content["detail"])


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_decision_has_everything_the_contract_names(client: httpx.Client, body: Json, served: ServedModel) -> None:
    response = client.post("/v1/act", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {
        "action", "target_position", "policy", "value", "q_values", "outlook", "search", "model", "bar_ts", "stale",
        "latency_ms", "request_id",
    }  # fmt: skip
    actions = len(served.target_positions)
    assert answer["target_position"] == served.target_positions[answer["action"]]
    assert len(answer["policy"]) == len(answer["q_values"]) == len(answer["search"]["visits"]) == actions
    assert sum(answer["policy"]) == pytest.approx(1.0, abs=1e-5)
    assert answer["search"]["simulations"] == 8
    assert sum(answer["search"]["visits"]) == 8
    assert answer["search"]["depth"] >= 1
    assert answer["model"] == served.label
    assert answer["bar_ts"] == body["bars"][-1][0]
    assert answer["stale"] is False
    assert set(answer["latency_ms"]) == {"queue", "inference", "total"}
    assert answer["latency_ms"]["total"] >= answer["latency_ms"]["inference"] > 0
    assert answer["request_id"] == response.headers["x-request-id"]


def test_the_outlook_is_a_distribution_over_codes_with_their_meaning(client: httpx.Client, body: Json) -> None:
    outlook = client.post("/v1/act", json=body).json()["outlook"]
    assert sorted(row["code"] for row in outlook) == [0, 1, 2, 3]
    assert sum(row["probability"] for row in outlook) == pytest.approx(1.0, abs=1e-5)
    assert [row["probability"] for row in outlook] == sorted((row["probability"] for row in outlook), reverse=True)
    meanings = {row["code"]: row["mean_return"] for row in outlook}
    assert meanings == {0: 0.0, 1: 0.001, 2: 0.002, 3: None}


def without_circumstance(answer: Json) -> Json:
    return {name: value for name, value in answer.items() if name not in ("latency_ms", "request_id")}


def test_the_same_request_gives_the_same_answer_to_the_last_bit(client: httpx.Client, body: Json) -> None:
    first = client.post("/v1/act", json=body).json()
    again = client.post("/v1/act", json={**body, "deterministic": True}).json()
    assert without_circumstance(first) == without_circumstance(again)


def test_fewer_simulations_can_be_asked_for_and_none_acts_by_the_prior(client: httpx.Client, body: Json) -> None:
    few = client.post("/v1/act", json={**body, "simulations": 3}).json()
    assert few["search"]["simulations"] == sum(few["search"]["visits"]) == 3
    none = client.post("/v1/act", json={**body, "simulations": 0}).json()
    assert none["search"]["simulations"] == sum(none["search"]["visits"]) == 0
    assert none["action"] == int(np.argmax(none["policy"]))


def test_the_position_is_part_of_what_the_model_sees(client: httpx.Client, body: Json) -> None:
    values = {client.post("/v1/act", json={**body, "position": p}).json()["value"] for p in (-1.0, 0.0, 0.5, 1.0)}
    assert len(values) == 4


def test_a_batch_answers_like_single_requests_in_their_order(
    client: httpx.Client, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    requests = [
        {**body, "bars": window_ending_at(t), "position": p} for t, p in ((900, 0.0), (2000, -1.0), (3000, 1.0))
    ]
    requests[1]["simulations"] = 2
    together = client.post("/v1/act/batch", json={"requests": requests}).json()["results"]
    single = [client.post("/v1/act", json=request).json() for request in requests]
    assert [without_circumstance(a) for a in together] == [without_circumstance(a) for a in single]


def test_old_bars_are_answered_and_called_stale(
    client: httpx.Client, body: Json, window_ending_at: Callable[[int], list[list[float]]]
) -> None:
    answer = client.post("/v1/act", json={**body, "bars": window_ending_at(2000)}).json()
    assert answer["stale"] is True


def test_a_bearer_token_is_as_good_as_the_header(
    service: Service, body: Json, headers: dict[str, str], make_client: MakeClient
) -> None:
    client = make_client(service)
    response = client.post("/v1/act", json=body, headers={"Authorization": f"Bearer {headers['X-API-Key']}"})
    assert response.status_code == 200


def test_the_callers_request_id_is_kept_if_it_is_fit_to_be_repeated(client: httpx.Client, body: Json) -> None:
    kept = client.post("/v1/act", json=body, headers={"X-Request-ID": "order-17"})
    assert kept.json()["request_id"] == kept.headers["x-request-id"] == "order-17"
    replaced = client.get("/healthz", headers={"X-Request-ID": "a b<script>"})
    assert "script" not in replaced.headers["x-request-id"]


# --- idempotency -----------------------------------------------------------------------------------------------------


def test_a_repeated_idempotency_key_gives_the_first_answer_back(client: httpx.Client, body: Json) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = client.post("/v1/act", json=body, headers=key)
    again = client.post("/v1/act", json=body, headers=key)
    assert first.content == again.content
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"


def test_an_idempotency_key_with_another_body_is_409(client: httpx.Client, body: Json) -> None:
    key = {"Idempotency-Key": "k-1"}
    client.post("/v1/act", json=body, headers=key)
    other = client.post("/v1/act", json={**body, "position": 0.25}, headers=key)
    assert_error(other, 409, "conflict", "k-1", "new key")


@pytest.mark.parametrize("key", ["", "two words", "k" * 129])
def test_an_unfit_idempotency_key_is_422(client: httpx.Client, body: Json, key: str) -> None:
    response = client.post("/v1/act", json=body, headers={"Idempotency-Key": key})
    assert_error(response, 422, "invalid_request", "Idempotency-Key")


# --- who may ask -----------------------------------------------------------------------------------------------------

PROTECTED = [
    ("POST", "/v1/act", Scope.ACT),
    ("POST", "/v1/act/batch", Scope.ACT),
    ("GET", "/v1/model", Scope.READ),
    ("POST", "/v1/model/reload", Scope.CONTROL),
    ("GET", "/openapi.json", Scope.READ),
    ("GET", "/v1/signal/{symbol}", Scope.READ),
    *(
        ("GET", f"/v1/paper/{view}", Scope.READ)
        for view in ("status", "positions", "equity", "decisions", "fills", "bars", "events")
    ),
    *(("POST", f"/v1/paper/{command}", Scope.CONTROL) for command in ("halt", "resume", "flatten", "reset")),
]
STREAM = ("GET", "/v1/stream")  # never ends by itself: test_stream.py asks it
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")}
LOGIN = {("POST", "/v1/session"), ("GET", "/v1/session"), ("DELETE", "/v1/session")}  # test_sessions.py


@pytest.mark.parametrize(("method", "path", "scope"), PROTECTED)
def test_nothing_but_health_and_metrics_answers_without_a_key(
    service: Service, method: str, path: str, scope: Scope, make_client: MakeClient
) -> None:
    response = make_client(service).request(method, path)
    assert_error(response, 401, "unauthorized", "X-API-Key")
    assert response.headers["www-authenticate"] == "Bearer"


def test_the_list_of_protected_endpoints_above_is_complete(service: Service) -> None:
    documented = openapi_document(create_app(service))["paths"]
    found = {(method.upper(), path) for path, methods in documented.items() for method in methods}
    protected = {(method, path) for method, path, _ in PROTECTED if path != "/openapi.json"} | {STREAM}
    assert found - protected == OPEN | LOGIN


@pytest.mark.parametrize(("method", "path", "scope"), PROTECTED)
def test_each_endpoint_asks_for_its_own_scope(
    service: Service,
    headers_for: Callable[[Scope], dict[str, str]],
    method: str,
    path: str,
    scope: Scope,
    make_client: MakeClient,
) -> None:
    client = make_client(service)
    for other in set(Scope) - {scope}:
        assert_error(client.request(method, path, headers=headers_for(other)), 403, "forbidden", f"scope {scope}")
    assert client.request(method, path, headers=headers_for(scope)).status_code not in (401, 403)


def test_a_wrong_key_is_401_and_too_many_are_429(service: Service, make_client: MakeClient) -> None:
    client = make_client(service)
    statuses = [client.get("/v1/model", headers={"X-API-Key": "smu0_wrong"}).status_code for _ in range(25)]
    assert statuses[:20] == [401] * 20
    assert set(statuses[20:]) == {429}


def test_too_many_requests_are_429_with_a_time_to_come_back(
    make_service: Callable[..., Service], body: Json, headers: dict[str, str], make_client: MakeClient
) -> None:
    service = make_service(requests_per_second=0.5, request_burst=3)
    client = make_client(service, headers)
    answers = [client.post("/v1/act", json=body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert_error(answers[-1], 429, "too_many_requests", "slow down")
    assert answers[-1].headers["retry-after"] == "2"


def test_a_batch_counts_its_rows_as_requests(
    make_service: Callable[..., Service], body: Json, headers: dict[str, str], make_client: MakeClient
) -> None:
    service = make_service(requests_per_second=0.5, request_burst=4)
    client = make_client(service, headers)
    assert client.post("/v1/act/batch", json={"requests": [body] * 3}).status_code == 200
    assert client.post("/v1/act/batch", json={"requests": [body] * 3}).status_code == 429


# --- wrong requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 1])
def test_a_wrong_window_length_is_422_and_says_expected_and_found(
    client: httpx.Client, body: Json, served: ServedModel, count: int
) -> None:
    bars = body["bars"][1:] if count < 0 else [body["bars"][0], *body["bars"]]
    response = client.post("/v1/act", json={**body, "bars": bars})
    assert_error(
        response, 422, "invalid_request", f"expected exactly {served.required_bars}",
        f"found {served.required_bars + count}",
    )  # fmt: skip


@pytest.mark.parametrize("bars", [[], [[]], [[1, 2, 3]], [[0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], "bars", None, {}])
def test_bars_of_another_shape_are_422(client: httpx.Client, body: Json, bars: Any) -> None:
    assert_error(client.post("/v1/act", json={**body, "bars": bars}), 422, "invalid_request", "bars")


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("place", ["open", "volume", "timestamp", "position", "account"])
def test_numbers_that_are_not_finite_are_422_and_never_500(
    client: httpx.Client, body: Json, token: str, place: str
) -> None:
    row = body["bars"][7]
    if place == "position":
        body["position"] = "@"
    elif place == "account":
        body["account"] = {"equity": "@"}
    else:
        row[{"timestamp": 0, "open": 1, "volume": 5}[place]] = "@"
    content = json.dumps(body).replace('"@"', token)
    response = client.post("/v1/act", content=content, headers={"content-type": "application/json"})
    detail = assert_error(response, 422, "invalid_request")
    assert "nan" not in detail.lower()  # said without being repeated: a NaN cannot be written as JSON
    if place in ("open", "volume", "timestamp"):
        assert "bars.7" in detail


@pytest.mark.parametrize("value", ["0.5", True, None, [0.5], 1.5, -1.01])
def test_a_position_that_is_no_number_from_minus_one_to_one_is_422(
    client: httpx.Client, body: Json, value: Any
) -> None:
    assert_error(client.post("/v1/act", json={**body, "position": value}), 422, "invalid_request", "position")


@pytest.mark.parametrize(
    "unknown", [{"side": "buy"}, {"account": {"cash": 1.0}}, {"account": {"Equity": 1.0}}, {"Position": 0.0}]
)
def test_unknown_fields_are_422_and_named(client: httpx.Client, body: Json, unknown: Json) -> None:
    name = next(iter(unknown)) if "account" not in unknown else f"account.{next(iter(unknown['account']))}"
    detail = assert_error(client.post("/v1/act", json={**body, **unknown}), 422, "invalid_request", name)
    assert "not permitted" in detail


@pytest.mark.parametrize("missing", ["symbol", "timeframe", "bars", "position"])
def test_missing_fields_are_422_and_named(client: httpx.Client, body: Json, missing: str) -> None:
    del body[missing]
    assert_error(client.post("/v1/act", json=body), 422, "invalid_request", missing, "required")


@pytest.mark.parametrize("simulations", [-1, 513, 2.5, "8", True])
def test_simulations_outside_0_to_512_are_422(client: httpx.Client, body: Json, simulations: Any) -> None:
    response = client.post("/v1/act", json={**body, "simulations": simulations})
    assert_error(response, 422, "invalid_request", "simulations")


@pytest.mark.parametrize("symbol", ["", "A" * 33, "BTC USDT", "<script>", "../etc", "\u0000"])
def test_an_unfit_symbol_is_422(client: httpx.Client, body: Json, symbol: str) -> None:
    assert_error(client.post("/v1/act", json={**body, "symbol": symbol}), 422, "invalid_request", "symbol")


def test_another_timeframe_than_the_models_is_422(client: httpx.Client, body: Json) -> None:
    assert_error(
        client.post("/v1/act", json={**body, "timeframe": "1h"}), 422, "invalid_request", "expected 1d", "found 1h"
    )
    assert_error(client.post("/v1/act", json={**body, "timeframe": "1M"}), 422, "invalid_request", "timeframe")


def _swap_high_and_low(row: list[float]) -> None:
    row[2], row[3] = row[3], row[2]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_swap_high_and_low, "low ≤ min(open, close)"),
        (lambda row: row.__setitem__(4, 0.0), "prices are above zero"),
        (lambda row: row.__setitem__(4, -5.0), "prices are above zero"),
        (lambda row: row.__setitem__(5, -1.0), "volume is not negative"),
        (lambda row: row.__setitem__(0, row[0] + 1), "on the timeframe's grid"),
        (lambda row: row.__setitem__(0, row[0] - 40 * 86_400_000), "timestamps increase"),
    ],
)
def test_a_bar_that_breaks_a_rule_is_422_and_the_first_such_row_is_named(
    client: httpx.Client, body: Json, spoil: Callable[[list[float]], None], complaint: str
) -> None:
    spoil(body["bars"][41])
    assert_error(client.post("/v1/act", json=body), 422, "invalid_request", "row 41", complaint)


@pytest.mark.parametrize("value", [5e-324, 1e-16, 1e19, 1.7e308])
def test_amounts_beyond_any_market_are_422_and_never_overflow(client: httpx.Client, body: Json, value: float) -> None:
    for row in body["bars"][3:]:
        row[1:5] = [value] * 4
    assert_error(client.post("/v1/act", json=body), 422, "invalid_request", "only ratios count")
    body["bars"][3][1:6] = [1.0, 1.0, 1.0, 1.0, 1.7e308]
    assert client.post("/v1/act", json=body).status_code == 422


def test_a_bar_that_has_not_closed_is_422(
    client: httpx.Client, body: Json, service: Service, sample_close: Callable[[], float]
) -> None:
    service.now = lambda: sample_close() - 0.001
    assert_error(client.post("/v1/act", json=body), 422, "invalid_request", "closed bars only", "compare the clocks")
    service.now = sample_close
    assert client.post("/v1/act", json=body).status_code == 200


@pytest.fixture
def sample_close(body: Json) -> Callable[[], float]:
    return lambda: float(body["bars"][-1][0] / 1000 + 86_400)


@pytest.mark.parametrize(
    ("position", "account", "complaint"),
    [
        (0.5, {"equity": 90.0, "initial_equity": 100.0, "peak_equity": 95.0}, "peak_equity"),
        (0.0, {"bars_held": 3}, "without a position"),
        (0.0, {"entry_price": 2000.0}, "without a position"),
        (0.5, {"equity": 0.0}, "equity"),
        (0.5, {"equity": -1.0}, "equity"),
        (0.5, {"last_fill_fraction": 1.5}, "last_fill_fraction"),
        (0.5, {"bars_held": 1.5}, "bars_held"),
    ],
)
def test_an_account_that_cannot_be_is_422(
    client: httpx.Client, body: Json, position: float, account: Json, complaint: str
) -> None:
    response = client.post("/v1/act", json={**body, "position": position, "account": account})
    assert_error(response, 422, "invalid_request", complaint)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"bars": [[' + b"1," * 1000]
)
def test_a_body_that_is_no_request_is_422(client: httpx.Client, content: bytes) -> None:
    response = client.post("/v1/act", content=content, headers={"content-type": "application/json"})
    assert_error(response, 422, "invalid_request")


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_body_that_is_not_called_json_is_415_and_curl_users_are_told(
    client: httpx.Client, body: Json, media_type: str
) -> None:
    response = client.post("/v1/act", content=json.dumps(body), headers={"content-type": media_type})
    assert_error(response, 415, "unsupported_media_type", "curl add -H")


def test_a_body_of_16_mb_is_413_declared_or_not(client: httpx.Client) -> None:
    media_type = {"content-type": "application/json"}
    megabyte = b" " * 1024**2
    assert_error(client.post("/v1/act", content=megabyte * 16, headers=media_type), 413, "body_too_large", "1048576")
    streamed = client.post("/v1/act", content=(megabyte for _ in range(16)), headers=media_type)
    assert_error(streamed, 413, "body_too_large")


def test_a_batch_names_the_request_that_is_wrong_and_answers_none(client: httpx.Client, body: Json) -> None:
    short = {**body, "bars": body["bars"][1:]}
    response = client.post("/v1/act/batch", json={"requests": [body, short]})
    assert_error(response, 422, "invalid_request", "requests.1: bars: expected exactly")
    assert client.post("/v1/act/batch", json={"requests": []}).status_code == 422
    assert client.post("/v1/act/batch", json={"requests": [{}] * 65}).status_code == 422


def test_unknown_endpoints_and_methods_have_the_same_form(client: httpx.Client) -> None:
    assert_error(client.get("/v1/nothing"), 404, "not_found", "openapi.json")
    wrong = client.get("/v1/act")
    assert_error(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_what_was_found_is_never_repeated_back(client: httpx.Client, body: Json) -> None:
    """A key pasted into the wrong field must not come back in an answer or stand in a log."""
    response = client.post("/v1/act", json={**body, "position": "smu0_pasted_by_mistake"})
    assert "smu0_pasted" not in response.text


def test_no_key_and_no_body_ever_reaches_the_log(
    client: httpx.Client, body: Json, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    key = headers["X-API-Key"]
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/act", json=body)
        client.post(f"/v1/act?key={key}", json={**body, "symbol": key})
        client.get(f"/{key}")
        client.get("/v1/model", headers={"X-API-Key": f"{key}x"})
        client.get("/v1/model", headers={"Authorization": f"Basic {key}"})
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "401" in ours  # refusals are logged
    assert key not in ours


# --- what surrounds an answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/v1/nothing", "/v1/model"])
def test_every_answer_carries_the_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_an_unforeseen_error_is_a_500_that_tells_nothing_and_a_log_that_tells_all(
    service: Service,
    client: httpx.Client,
    body: Json,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode(*_: object) -> None:
        raise KeyError("an inner secret")

    monkeypatch.setattr(type(service.serving.model), "sent", explode)
    response = client.post("/v1/act", json=body)
    detail = assert_error(response, 500, "internal_error", "request_id")
    assert "inner secret" not in detail
    assert "inner secret" in caplog.text
    assert response.headers["x-request-id"] in caplog.text
    assert response.headers["content-security-policy"]
