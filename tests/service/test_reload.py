"""Replacing the model: all checks first, then one assignment; any failure keeps the old one serving."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from agent.checkpoint import WEIGHTS
from data.bars import Bars
from service import model as model_module
from service.app import create_app
from service.model import Sent, ServedModel, Serving, load_model
from service.runtime import Job, Service, decide

Json = dict[str, Any]
MakeClient = Callable[..., httpx.Client]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def service(make_service: Callable[..., Service], own_runs: Path) -> Service:
    """A service of its own run, whose checkpoint a test may replace."""
    return make_service(model=load_model(own_runs / "tiny" / "checkpoints" / "best"), roots=(own_runs,))


def reload(client: httpx.Client, checkpoint: str | None = None) -> httpx.Response:
    return client.post("/v1/model/reload", json={} if checkpoint is None else {"checkpoint": checkpoint})


def test_a_new_best_is_served_after_a_reload(
    client: httpx.Client, body: Json, own_runs: Path, make_checkpoint: MakeCheckpoint
) -> None:
    before = client.post("/v1/act", json=body).json()
    make_checkpoint(own_runs / "tiny" / "checkpoints", seed=1, updates=2)
    response = client.post("/v1/model/reload")  # an empty body will do
    assert response.status_code == 200, response.text
    assert response.json()["previous"] == before["model"]
    assert response.json()["changed"] is True
    after = client.post("/v1/act", json=body).json()
    assert after["model"] == response.json()["model"] != before["model"]
    assert after["value"] != before["value"]
    assert client.get("/v1/model").json()["model"] == after["model"]
    assert f'smu0_model_info{{model="{after["model"]}"}} 1.0' in client.get("/metrics").text
    assert before["model"] not in client.get("/metrics").text


def test_reloading_what_is_served_changes_nothing(client: httpx.Client) -> None:
    answer = reload(client).json()
    assert answer["changed"] is False
    assert answer["model"] == answer["previous"]


def test_another_run_can_be_named(client: httpx.Client, own_runs: Path, make_checkpoint: MakeCheckpoint) -> None:
    make_checkpoint(own_runs / "other" / "checkpoints", seed=5)
    answer = reload(client, "other/checkpoints/best").json()
    assert answer["model"].startswith("other/best-")


def damage(own_runs: Path) -> None:
    weights = own_runs / "tiny" / "checkpoints" / "best" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"market": {"observation": {"window": 16}}}, "observation shapes"),
        ({"features": ["close_return", "open_gap"]}, "features"),
        ({"market": {"observation": {"window": 8}, "actions": {"levels": [-1.0, 0.0, 1.0]}}}, "target positions"),
        ({"market": {"observation": {"window": 8}, "actions": {"spot": True}}}, "allowed actions"),
        ({"market": {"observation": {"window": 8}, "actions": {"max_leverage": 2.0}}}, "largest leverage"),
        ({"data": {"source": "sample", "symbols": ["sp500"], "timeframe": "1w"}}, "timeframe: expected 1d, found 1w"),
    ],
)
def test_a_model_that_clients_would_have_to_change_for_is_refused(
    client: httpx.Client, body: Json, own_runs: Path, make_checkpoint: MakeCheckpoint, changes: Json, complaint: str
) -> None:
    before = client.post("/v1/act", json=body).json()
    make_checkpoint(own_runs / "tiny" / "checkpoints", updates=2, **changes)
    response = reload(client)
    assert response.status_code == 409
    assert response.json()["error"] == "reload_refused"
    assert complaint in response.json()["detail"]
    assert "goes on serving" in response.json()["detail"]
    after = client.post("/v1/act", json=body).json()
    assert (after["model"], after["value"]) == (before["model"], before["value"])
    assert 'smu0_reloads_total{result="refused"} 1.0' in client.get("/metrics").text


def test_a_damaged_checkpoint_is_refused_and_the_old_one_serves_on(
    client: httpx.Client, body: Json, own_runs: Path
) -> None:
    before = client.post("/v1/act", json=body).json()
    damage(own_runs)
    response = reload(client)
    assert response.status_code == 409
    assert "sha256" in response.json()["detail"]
    assert client.post("/v1/act", json=body).json()["value"] == before["value"]


@pytest.mark.parametrize("checkpoint", ["../../etc", "/etc", "nothing/checkpoints/best", ""])
def test_a_path_outside_is_422(client: httpx.Client, checkpoint: str) -> None:
    response = reload(client, checkpoint)
    assert response.status_code == 422
    assert response.json()["error"] == "invalid_request"


def test_a_second_reload_at_the_same_time_is_409_and_decisions_go_on_meanwhile(
    service: Service, body: Json, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slow(source: Path) -> ServedModel:
        loading.set()
        assert go_on.wait(timeout=30)
        return load_model(source)

    monkeypatch.setattr(model_module, "load_model", slow)

    async def main() -> None:
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client:
            first = asyncio.create_task(client.post("/v1/model/reload"))
            await asyncio.to_thread(loading.wait, 30)
            second = await client.post("/v1/model/reload")
            assert second.status_code == 409
            assert second.json()["error"] == "conflict"
            assert (await client.post("/v1/act", json=body)).status_code == 200
            go_on.set()
            assert (await first).status_code == 200
        await service.close()

    asyncio.run(main())


def test_an_answer_comes_from_the_model_the_request_was_read_for(
    own_runs: Path, make_checkpoint: MakeCheckpoint, served: ServedModel, sample: Bars
) -> None:
    """A batch that straddles a replacement holds requests to both."""
    other = load_model(make_checkpoint(own_runs / "other" / "checkpoints", seed=9))
    request = Sent(sample.slice(-served.required_bars, None), np.zeros(8, np.float32), None)
    jobs = [Job(model, request) for model in (served, other, served)]
    answers = decide(jobs)
    [own], [others] = served.answer([request]), other.answer([request])
    assert [answer.value for answer in answers] == [own.value, others.value, own.value]  # type: ignore[union-attr]
    assert own.value != others.value  # type: ignore[union-attr]


def test_a_failed_replacement_leaves_the_way_free_for_the_next(own_runs: Path) -> None:
    serving = Serving(load_model(own_runs / "tiny" / "checkpoints" / "best"))
    with pytest.raises(model_module.ModelError):
        serving.replace(own_runs / "nothing")
    new, previous = serving.replace()
    assert new.label == previous.label
