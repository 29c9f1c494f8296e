"""What the routes work with: the model, the queue in front of it, and who may ask."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.auth import Authenticator
from service.batcher import Batcher
from service.config import ServiceConfig
from service.idempotency import IdempotencyCache
from service.ledger_desk import LedgerDesk
from service.metrics import Metrics
from service.model import Answer, Sent, ServedModel, Serving
from service.paper_watch import PaperWatch
from service.sessions import Sessions
from service.stream import Broadcast, Source


@dataclass(frozen=True, eq=False)
class Job:
    """A request and the model that answers it."""

    model: ServedModel
    request: Sent


def decide(jobs: Sequence[Job]) -> list[Answer | Exception]:
    """The worker's work. During a replacement a batch may hold jobs of two models."""
    answers: dict[int, Answer | Exception] = {}
    for model in dict.fromkeys(job.model for job in jobs):
        rows = [row for row, job in enumerate(jobs) if job.model is model]
        answers.update(zip(rows, model.answer([jobs[row].request for row in rows]), strict=True))
    return [answers[row] for row in range(len(jobs))]


class Service:
    """What the routes work with.

    now: seconds since the epoch. checkpoint_roots: where a reload may load from. sessions: logged-in browsers; by
    default none yet, and forgotten with the process. ledger: where paper trading is looked up; by default nowhere.
    """

    def __init__(
        self,
        serving: Serving,
        authenticator: Authenticator,
        *,
        config: ServiceConfig | None = None,
        checkpoint_roots: Sequence[Path] = (),
        sessions: Sessions | None = None,
        ledger: LedgerDesk | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or ServiceConfig()
        self.serving = serving
        self.authenticator = authenticator
        self.checkpoint_roots = tuple(checkpoint_roots)
        self.sessions = Sessions(None) if sessions is None else sessions
        self.now = now
        self.metrics = Metrics()
        self.metrics.model(serving.model.label)
        self.ledger = LedgerDesk.from_config(None, self.config) if ledger is None else ledger
        self.idempotency = IdempotencyCache(
            entries=self.config.idempotency_entries,
            seconds=self.config.idempotency_seconds,
            ledger=self.ledger,
            now=now,
        )
        self.paper = PaperWatch(self.ledger, now=now)
        self.broadcast = Broadcast(
            Source(self.paper.head, self.paper.after),
            limit=self.config.stream_clients,
            poll_seconds=self.config.stream_poll_seconds,
            keepalive_seconds=self.config.stream_keepalive_seconds,
            stopping=lambda: self.stopping,
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

    def stop(self) -> None:
        """Say that the end is near: no longer ready, and event streams end. Safe to call from a signal handler."""
        self.stopping = True

    async def close(self) -> None:
        """Answer what waits and stop."""
        self.stopping = True
        await self.batcher.close()
        self.sessions.save()
        self.ledger.close()
