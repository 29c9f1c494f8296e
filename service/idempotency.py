"""The same Idempotency-Key gives the same answer: a client that lost the reply may ask again.

In memory for now, so a restart forgets and the answer is computed again (to the same decision, since decisions are
deterministic). The ledger of the paper trader is where these records will live.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.errors import Conflict


@dataclass(eq=False)
class _Entry:
    body_digest: bytes
    answer: "asyncio.Future[bytes]"
    expires_at: float


class IdempotencyCache:
    """Answers by (who asked, key), bounded in number and age. Only successes are remembered."""

    def __init__(self, *, entries: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = entries
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def answer(
        self, owner: str, key: str, body: bytes, compute: Callable[[], Awaitable[bytes]]
    ) -> tuple[bytes, bool]:
        """The answer to `body`, computed once per key. Returns it and whether it was remembered.

        A repetition that arrives while the first is being computed waits for it. Raises Conflict when the key was
        used with another body, and whatever `compute` raises.
        """
        digest = hashlib.sha256(body).digest()
        place = (owner, key)
        entry = self._entries.get(place)
        if entry is not None and entry.expires_at <= self._clock():
            del self._entries[place]
            entry = None
        if entry is not None:
            if entry.body_digest != digest:
                raise Conflict(
                    f"Idempotency-Key {key} was used with another body; use a new key for a new request, or send "
                    f"the same body again"
                )
            # shield: the one who repeats may give up without taking the answer from the others.
            return await asyncio.shield(entry.answer), True
        entry = _Entry(digest, asyncio.get_running_loop().create_future(), self._clock() + self._seconds)
        self._entries[place] = entry
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        try:
            result = await compute()
        except BaseException as error:
            if self._entries.get(place) is entry:
                del self._entries[place]
            if isinstance(error, Exception):
                entry.answer.set_exception(error)
                entry.answer.exception()  # looked at: there may be nobody else who waits for it
            else:
                entry.answer.cancel()
            raise
        entry.answer.set_result(result)
        return result, False
