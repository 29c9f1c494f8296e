"""Batch while busy: requests that arrive during a search form the next batch, and nobody waits for company.

An idle worker starts on the first request at once. A waiting window would buy larger batches under load, where they
form by themselves, and would cost every request its length where there is none.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

from service.errors import DeadlineExceeded, Unavailable

Job = TypeVar("Job")
Answer = TypeVar("Answer")

# Answers to a batch, in order. A job that failed has its exception in the place of an answer, so that it spoils
# nobody else's.
Work = Callable[[Sequence[Job]], Sequence[Answer | Exception]]


@dataclass(frozen=True)
class Timed(Generic[Answer]):
    """An answer and where its time went, seconds. inference is that of the whole batch it was part of."""

    answer: Answer
    queue: float
    inference: float


@dataclass(eq=False)
class _Ticket(Generic[Job, Answer]):
    job: Job
    future: "asyncio.Future[Timed[Answer]]"
    queued_at: float
    waiting: bool = True


@dataclass(frozen=True, eq=False)
class _Batch(Generic[Job, Answer]):
    tickets: "list[_Ticket[Job, Answer]]"
    loop: asyncio.AbstractEventLoop  # that wants to hear of it


@dataclass(frozen=True, eq=False)
class _Outcome(Generic[Answer]):
    """What the worker made of a batch: answers, or the error that spoilt it whole. begin, end: clock seconds."""

    answers: Sequence[Answer | Exception]
    error: Exception | None
    begin: float
    end: float


class Batcher(Generic[Job, Answer]):
    """One worker thread and a bounded queue in front of it.

    Everything but the work itself happens on the event loop, so there is nothing to lock. The thread takes batches from
    a queue and answers into the loop: one hop each way, where an executor needs three.
    """

    def __init__(
        self,
        work: Work[Job, Answer],
        *,
        max_batch: int,
        queue_limit: int,
        deadline: float,
        clock: Callable[[], float] = time.perf_counter,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """work: called on the worker thread, never twice at once. deadline: seconds from submission to answer.

        on_batch: told size and seconds of every batch.
        """
        self._work = work
        self._max_batch = max_batch
        self._queue_limit = queue_limit
        self._deadline = deadline
        self._clock = clock
        self._on_batch = on_batch
        self._waiting: deque[_Ticket[Job, Answer]] = deque()
        self._inbox: SimpleQueue[_Batch[Job, Answer] | None] = SimpleQueue()
        self._worker: Thread | None = None
        self._busy_since: float | None = None
        self._batch_seconds = 0.0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def depth(self) -> int:
        """Jobs that wait, not counting those being worked on."""
        return len(self._waiting)

    @property
    def busy_seconds(self) -> float:
        """How long the worker has been on its present batch; 0.0 when idle."""
        return 0.0 if self._busy_since is None else self._clock() - self._busy_since

    async def submit(self, job: Job) -> Timed[Answer]:
        """Queue a job and wait for its answer.

        Raises Unavailable when the queue is full or closed, DeadlineExceeded, or what the work raised for this job.
        """
        return (await self.submit_all([job]))[0]

    async def submit_all(self, jobs: Sequence[Job]) -> list[Timed[Answer]]:
        """Queue jobs together, all or none, and wait for all answers; see `submit`. The first failure is raised."""
        self.require_room(len(jobs))
        loop = asyncio.get_running_loop()
        now = self._clock()
        tickets = [_Ticket[Job, Answer](job, loop.create_future(), now) for job in jobs]
        self._waiting.extend(tickets)
        self._start_if_idle()
        patience = loop.call_later(self._deadline, self._expire, tickets)
        try:
            return [await ticket.future for ticket in tickets]
        finally:
            patience.cancel()
            for ticket in tickets:
                self._abandon(ticket)

    def require_room(self, count: int) -> None:
        """Raises Unavailable where `submit_all` of so many would; asking first saves the reading of a request."""
        if self._closed:
            raise Unavailable("the service is stopping; ask another instance or try again", retry_after=1.0)
        if len(self._waiting) + count > self._queue_limit:
            raise Unavailable(
                f"{len(self._waiting)} decisions wait already and the queue holds {self._queue_limit}; try again "
                f"after the time in Retry-After",
                retry_after=self._time_to_drain(),
            )

    async def close(self) -> None:
        """Refuse what comes, finish what waits, stop the worker."""
        self._closed = True
        await self._idle.wait()
        self._inbox.put(None)

    def _time_to_drain(self) -> float:
        """Rough seconds until the queue is empty, from the duration of the last batch."""
        batches = 1 + len(self._waiting) // self._max_batch
        return max(1.0, batches * self._batch_seconds)

    def _expire(self, tickets: Sequence[_Ticket[Job, Answer]]) -> None:
        for ticket in tickets:
            if not ticket.future.done():
                ticket.future.set_exception(
                    DeadlineExceeded(
                        f"no decision within {self._deadline:g} s; ask for fewer simulations or try again when it is "
                        f"quieter"
                    )
                )

    def _abandon(self, ticket: _Ticket[Job, Answer]) -> None:
        """Take a ticket nobody waits for out of the queue; one that is being worked on is left alone."""
        if not ticket.future.cancel() and not ticket.future.cancelled():
            ticket.future.exception()  # looked at, so that asyncio does not complain of a failure nobody saw
        if ticket.waiting:
            self._waiting.remove(ticket)
            ticket.waiting = False

    def _start_if_idle(self) -> None:
        if self._busy_since is not None or not self._waiting:
            return
        tickets = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
        for ticket in tickets:
            ticket.waiting = False
        self._busy_since = self._clock()
        self._idle.clear()
        if self._worker is None:
            # A daemon: a search nobody waits for does not keep the process from ending.
            self._worker = Thread(target=self._serve, name="search", daemon=True)
            self._worker.start()
        self._inbox.put(_Batch(tickets, asyncio.get_running_loop()))

    def _serve(self) -> None:
        """The worker thread."""
        while (batch := self._inbox.get()) is not None:
            begin = self._clock()
            answers: Sequence[Answer | Exception] = ()
            spoilt = None
            try:
                answers = self._work([ticket.job for ticket in batch.tickets])
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to those who wait for this batch
                spoilt = error
            outcome = _Outcome(answers, spoilt, begin, self._clock())
            try:
                batch.loop.call_soon_threadsafe(self._finish, batch.tickets, outcome)
            except RuntimeError:  # the loop has been closed: nobody is left to hear it
                return

    def _finish(self, tickets: list[_Ticket[Job, Answer]], outcome: _Outcome[Answer]) -> None:
        if outcome.error is not None:
            for ticket in tickets:
                if not ticket.future.done():
                    ticket.future.set_exception(outcome.error)
        else:
            inference = outcome.end - outcome.begin
            self._batch_seconds = inference
            self._on_batch(len(tickets), inference)
            for ticket, answer in zip(tickets, outcome.answers, strict=True):
                if ticket.future.done():
                    continue
                if isinstance(answer, Exception):
                    ticket.future.set_exception(answer)
                else:
                    ticket.future.set_result(Timed(answer, outcome.begin - ticket.queued_at, inference))
        self._busy_since = None
        self._start_if_idle()
        if self._busy_since is None:
            self._idle.set()
