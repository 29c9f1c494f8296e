"""From a request for a decision to the bytes of its answer.

The road every decision takes, so each step is the cheapest that keeps the contract: bars are read from bytes into
columns (`service.bar_table`), features and search wait for the worker, where they are done for many requests at once,
and the answer is written from plain rows whose numbers the model's side has found finite. `ActResponse` describes it
and tests hold it to that.
"""

import time
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import to_json

from service.bar_table import BarTable, cut_table
from service.batcher import Timed
from service.errors import InvalidRequest
from service.model import Answer, ServedModel
from service.outlook import outlook_rows
from service.runtime import Job, Service
from service.schemas import ActHead, ActRequest, BatchRequest
from service.wire import parse

# A request, and its bars where they have been read already.
ReadRequest = tuple[ActRequest, BarTable | None]


def read_request(body: bytes) -> ReadRequest:
    """The body of /v1/act. Raises InvalidRequest."""
    found = cut_table(body)
    if found is not None:
        head, table = found
        try:
            return ActHead.model_validate_json(head), table
        except ValidationError:
            pass  # read again as it was sent, so that the complaint is about that
    return parse(ActRequest, body), None


def read_requests(body: bytes) -> list[ReadRequest]:
    """The body of /v1/act/batch. Raises InvalidRequest."""
    return [(request, None) for request in parse(BatchRequest, body).requests]


async def decide(service: Service, requests: Sequence[ReadRequest], request_id: str, begin: float) -> list[bytes]:
    """Ask the model of this moment for every request and write its answers as JSON.

    begin: perf_counter seconds at which the request arrived. Raises InvalidRequest and what the batcher raises.
    """
    model = service.serving.model
    now_ms = int(service.now() * 1000)
    jobs = []
    for row, (request, table) in enumerate(requests):
        try:
            jobs.append(Job(model, model.sent(request, model.bars(request, now_ms, table))))
        except InvalidRequest as error:
            raise error if len(requests) == 1 else InvalidRequest(f"requests.{row}: {error.detail}") from None
    answers = await service.batcher.submit_all(jobs)
    written = []
    for job, timed in zip(jobs, answers, strict=True):
        service.metrics.decision(timed.answer.action, timed.queue)
        bars = job.request.bars
        written.append(
            _write(
                model, timed, bar_ts=int(bars.timestamp[-1]), stale=model.is_stale(bars, now_ms),
                request_id=request_id, begin=begin,
            )
        )  # fmt: skip
    return written


def _write(
    model: ServedModel, timed: Timed[Answer], *, bar_ts: int, stale: bool, request_id: str, begin: float
) -> bytes:
    """An `ActResponse` as JSON."""
    answer = timed.answer
    return to_json(
        {
            "action": answer.action,
            "target_position": model.target_positions[answer.action],
            "policy": answer.policy,
            "value": answer.value,
            "q_values": answer.q_values,
            "outlook": outlook_rows(answer.chance, model.meanings),
            "search": {"simulations": answer.simulations, "depth": answer.depth, "visits": answer.visits},
            "model": model.label,
            "bar_ts": bar_ts,
            "stale": stale,
            "latency_ms": {
                "queue": _milliseconds(timed.queue),
                "inference": _milliseconds(timed.inference),
                "total": _milliseconds(time.perf_counter() - begin),
            },
            "request_id": request_id,
        }
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
