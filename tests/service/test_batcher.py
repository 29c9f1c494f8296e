"""The queue in front of the worker: batch while busy, bounded, and nobody's failure is another's."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from service.batcher import Batcher
from service.errors import DeadlineExceeded, Unavailable


class Work:
    """Doubles numbers. Waits at the gate, so that a test decides when the worker is busy."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(jobs))
        assert self.gate.wait(timeout=30)
        return [ValueError(f"job {job}") if job < 0 else 2 * job for job in jobs]


def run(
    scenario: Callable[[Batcher[int, int], Work], Coroutine[Any, Any, None]],
    *,
    max_batch: int = 64,
    queue_limit: int = 256,
    deadline: float = 30.0,
) -> Work:
    work = Work()

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, max_batch=max_batch, queue_limit=queue_limit, deadline=deadline)
        try:
            await scenario(batcher, work)
        finally:
            work.gate.set()
            await batcher.close()

    asyncio.run(main())
    return work


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_an_idle_worker_starts_on_the_first_job_at_once() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        assert (await batcher.submit(21)).answer == 42

    assert run(scenario).batches == [[21]]


def test_jobs_that_arrive_during_a_batch_form_the_next_one() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        work.gate.clear()
        first = asyncio.create_task(batcher.submit(1))
        await until(lambda: bool(work.batches))
        later = [asyncio.create_task(batcher.submit(job)) for job in (2, 3, 4)]
        await until(lambda: batcher.depth == 3)
        work.gate.set()
        assert [timed.answer for timed in await asyncio.gather(first, *later)] == [2, 4, 6, 8]

    assert run(scenario).batches == [[1], [2, 3, 4]]


def test_a_batch_is_no_larger_than_it_may_be() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        answers = await batcher.submit_all(range(10))
        assert [timed.answer for timed in answers] == [2 * job for job in range(10)]

    assert [len(batch) for batch in run(scenario, max_batch=4).batches] == [4, 4, 2]


def test_a_job_that_fails_spoils_no_other() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        work.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(job)) for job in (1, -2, 3)]
        await asyncio.sleep(0)
        work.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert str(results[1]) == "job -2"
        assert [results[0].answer, results[2].answer] == [2, 6]  # type: ignore[union-attr]

    run(scenario)


def test_work_that_raises_fails_its_batch_and_the_next_goes_on() -> None:
    async def main() -> None:
        calls = 0

        def work(jobs: Sequence[int]) -> list[int]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("broken")
            return list(jobs)

        batcher: Batcher[int, int] = Batcher(work, max_batch=4, queue_limit=8, deadline=30.0)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.submit(1)
        assert (await batcher.submit(2)).answer == 2
        await batcher.close()

    asyncio.run(main())


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        work.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(0))]
        await until(lambda: bool(work.batches))
        tasks += [asyncio.create_task(batcher.submit(job)) for job in (1, 2)]
        await until(lambda: batcher.depth == 2)
        with pytest.raises(Unavailable, match="queue holds 2") as caught:
            await batcher.submit(3)
        assert int(caught.value.headers["Retry-After"]) >= 1
        work.gate.set()
        assert [timed.answer for timed in await asyncio.gather(*tasks)] == [0, 2, 4]

    run(scenario, queue_limit=2)


def test_jobs_submitted_together_are_queued_all_or_none() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        with pytest.raises(Unavailable):
            await batcher.submit_all(range(5))
        assert batcher.depth == 0
        assert len(await batcher.submit_all(range(4))) == 4

    assert run(scenario, queue_limit=4).batches == [[0, 1, 2, 3]]


def test_a_job_past_its_deadline_is_told_so_and_leaves_the_queue() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        work.gate.clear()
        first = asyncio.create_task(batcher.submit(1))
        await until(lambda: bool(work.batches))
        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            await batcher.submit(2)
        assert batcher.depth == 0
        with pytest.raises(DeadlineExceeded):
            await first
        work.gate.set()
        await until(lambda: batcher.busy_seconds == 0.0)
        assert (await batcher.submit(3)).answer == 6  # and the worker is none the worse for it

    assert run(scenario, deadline=0.05).batches == [[1], [3]]


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        work.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(1))]
        await until(lambda: bool(work.batches))
        tasks.append(asyncio.create_task(batcher.submit(2)))
        await until(lambda: batcher.depth == 1)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="stopping"):
            await batcher.submit(3)
        work.gate.set()
        await closing
        assert [timed.answer for timed in await asyncio.gather(*tasks)] == [2, 4]

    assert run(scenario).batches == [[1], [2]]


def test_busy_time_is_seen_from_outside() -> None:
    async def scenario(batcher: Batcher[int, int], work: Work) -> None:
        assert batcher.busy_seconds == 0.0
        work.gate.clear()
        task = asyncio.create_task(batcher.submit(1))
        await until(lambda: bool(work.batches))
        await until(lambda: batcher.busy_seconds > 0.0)
        work.gate.set()
        await task
        assert batcher.busy_seconds == 0.0

    run(scenario)
