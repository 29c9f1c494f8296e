"""What the routes work with: the model, the queue in front of it, and who may ask."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.auth import Authenticator
from service.batcher import Batcher
from service.config import ServiceConfig
from service.idempotency import IdempotencyCache
from service.metrics import Metrics
from service.model import Answer, Question, ServedModel, Serving


@dataclass(frozen=True, eq=False)
class Job:
    """A question and the model it was made for."""

    model: ServedModel
    question: Question


def decide(jobs: Sequence[Job]) -> list[Answer | Exception]:
    """The worker's work. During a replacement a batch may hold jobs of two models."""
    answers: dict[int, Answer | Exception] = {}
    for model in dict.fromkeys(job.model for job in jobs):
        rows = [row for row, job in enumerate(jobs) if job.model is model]
        answers.update(zip(rows, model.decide([jobs[row].question for row in rows]), strict=True))
    return [answers[row] for row in range(len(jobs))]


class Service:
    """What the routes work with.

    now: seconds since the epoch. checkpoint_roots: where a reload may load from.
    """

    def __init__(
        self,
        serving: Serving,
        authenticator: Authenticator,
        *,
        config: ServiceConfig | None = None,
        checkpoint_roots: Sequence[Path] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or ServiceConfig()
        self.serving = serving
        self.authenticator = authenticator
        self.checkpoint_roots = tuple(checkpoint_roots)
        self.now = now
        self.metrics = Metrics()
        self.metrics.model(serving.model.label)
        self.idempotency = IdempotencyCache(
            entries=self.config.idempotency_entries, seconds=self.config.idempotency_seconds
        )
        self.batcher: Batcher[Job, Answer] = Batcher(
            decide,
            max_batch=self.config.max_batch,
            queue_limit=self.config.queue_limit,
            deadline=self.config.deadline_seconds,
            on_batch=self.metrics.batch,
        )
        self.stopping = False

    def not_ready(self) -> list[str]:
        """Why the service cannot decide now; empty when it can. A model is loaded and warm since construction."""
        reasons = []
        if self.stopping:
            reasons.append("the service is stopping")
        if self.batcher.busy_seconds > self.config.stuck_seconds:
            reasons.append(f"the worker has been on one batch for {self.batcher.busy_seconds:.0f} s")
        return reasons

    async def close(self) -> None:
        """Answer what waits and stop."""
        self.stopping = True
        await self.batcher.close()
