"""The same key gives the same answer, once computed, and never another request's."""

import asyncio

import pytest

from service.errors import Conflict
from service.idempotency import IdempotencyCache


class Compute:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> bytes:
        self.calls += 1
        await asyncio.sleep(0)
        return f"answer {self.calls}".encode()


def test_a_repetition_gets_the_first_answer() -> None:
    async def main() -> None:
        cache, compute = IdempotencyCache(entries=8, seconds=60.0), Compute()
        assert await cache.answer("bot", "k", b"body", compute) == (b"answer 1", False, "memory")
        assert await cache.answer("bot", "k", b"body", compute) == (b"answer 1", True, "memory")

    asyncio.run(main())


def test_repetitions_at_the_same_time_compute_once() -> None:
    async def main() -> None:
        cache, compute = IdempotencyCache(entries=8, seconds=60.0), Compute()
        answers = await asyncio.gather(*(cache.answer("bot", "k", b"body", compute) for _ in range(20)))
        assert {answer.content for answer in answers} == {b"answer 1"}
        assert compute.calls == 1

    asyncio.run(main())


def test_another_body_under_the_same_key_is_a_conflict() -> None:
    async def main() -> None:
        cache, compute = IdempotencyCache(entries=8, seconds=60.0), Compute()
        await cache.answer("bot", "k", b"body", compute)
        with pytest.raises(Conflict, match="another body"):
            await cache.answer("bot", "k", b"other", compute)

    asyncio.run(main())


def test_owners_do_not_see_each_other() -> None:
    async def main() -> None:
        cache, compute = IdempotencyCache(entries=8, seconds=60.0), Compute()
        assert await cache.answer("a", "k", b"body", compute) == (b"answer 1", False, "memory")
        assert await cache.answer("b", "k", b"other", compute) == (b"answer 2", False, "memory")

    asyncio.run(main())


def test_a_failure_is_not_remembered() -> None:
    async def fail() -> bytes:
        raise RuntimeError("queue full")

    async def main() -> None:
        cache, compute = IdempotencyCache(entries=8, seconds=60.0), Compute()
        with pytest.raises(RuntimeError):
            await cache.answer("bot", "k", b"body", fail)
        assert await cache.answer("bot", "k", b"body", compute) == (b"answer 1", False, "memory")

    asyncio.run(main())


def test_memory_is_bounded_in_number_and_age() -> None:
    now = 0.0

    async def main() -> None:
        nonlocal now
        cache, compute = IdempotencyCache(entries=2, seconds=60.0, clock=lambda: now), Compute()
        for key in "abc":
            await cache.answer("bot", key, b"body", compute)
        assert len(cache) == 2
        assert (await cache.answer("bot", "c", b"body", compute)).replayed
        assert not (await cache.answer("bot", "a", b"body", compute)).replayed  # the oldest was forgotten
        now = 61.0
        assert not (await cache.answer("bot", "a", b"other", compute)).replayed  # and this one has expired

    asyncio.run(main())
