"""The same Idempotency-Key gives the same answer: a client that lost the reply may ask again.

Answers are kept in the ledger, so a restart forgets nothing. Where there is no ledger, or it cannot be used at the
moment, they are kept in memory and the answer says so: a restart then computes anew, to the same decision, since
decisions are deterministic. What is being computed is always known in memory, so that two requests at the same time
are one.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from service.errors import Conflict, ServiceError
from service.ledger.schema import IdempotencyRow
from service.ledger_desk import LedgerDesk, NoLedger

log = logging.getLogger("service.idempotency")

Kept = Literal["ledger", "memory"]

# A decision takes milliseconds; waiting longer than this for a ledger in trouble would cost more than it saves.
_LEDGER_SECONDS: Final = 0.5


class Remembered(NamedTuple):
    """An answer. replayed: whether it was given before. kept: where it is remembered."""

    content: bytes
    replayed: bool
    kept: Kept

    @property
    def headers(self) -> dict[str, str]:
        """What the response says about it."""
        kept: dict[str, str] = {"Idempotency-Kept": self.kept}
        return {**kept, "Idempotent-Replay": "true"} if self.replayed else kept


@dataclass(eq=False)
class _Entry:
    body_digest: str
    answer: "asyncio.Future[Remembered]"
    expires_at: float


class IdempotencyCache:
    """Answers by (who asked, key), bounded in number and age. Only successes are remembered."""

    def __init__(
        self,
        *,
        entries: int,
        seconds: float,
        ledger: LedgerDesk | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """entries: most answers in memory. ledger: where they last; None: nowhere. now: seconds since the epoch."""
        self._limit = entries
        self._seconds = seconds
        self._ledger = ledger
        self._clock = clock
        self._now = now
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def answer(self, owner: str, key: str, body: bytes, compute: Callable[[], Awaitable[bytes]]) -> Remembered:
        """The answer to `body`, computed once per key.

        A repetition that arrives while the first is being computed waits for it. Raises Conflict when the key was
        used with another body, and whatever `compute` raises.
        """
        digest = hashlib.sha256(body).hexdigest()
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
            return (await asyncio.shield(entry.answer))._replace(replayed=True)
        entry = _Entry(digest, asyncio.get_running_loop().create_future(), self._clock() + self._seconds)
        self._entries[place] = entry
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        try:
            result = await self._find(owner, key, digest)
            if result is None:
                result = await self._keep(owner, key, digest, await compute())
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
        return result

    async def _find(self, owner: str, key: str, digest: str) -> Remembered | None:
        """The answer the ledger remembers. Raises Conflict."""
        if self._ledger is None:
            return None
        since = int((self._now() - self._seconds) * 1000)
        try:
            row = await self._ledger.read(
                lambda read: read.idempotency(owner, key, body_sha256=digest, created_since=since),
                deadline=_LEDGER_SECONDS,
            )
        except Conflict:
            raise
        except (NoLedger, ServiceError):
            return None  # `_keep` says where the answer is kept instead
        return None if row is None else Remembered(row.response.encode(), True, "ledger")

    async def _keep(self, owner: str, key: str, digest: str, content: bytes) -> Remembered:
        """Remember an answer. One that another process gave meanwhile counts instead. Raises Conflict."""
        if self._ledger is None:
            return Remembered(content, False, "memory")
        row = IdempotencyRow(
            scope=owner,
            key=key,
            body_sha256=digest,
            status=200,
            response=content.decode(),
            created_ms=int(self._now() * 1000),
        )
        try:
            earlier = await self._ledger.write(lambda write: write.remember(row), deadline=_LEDGER_SECONDS)
        except Conflict:
            raise
        except NoLedger:
            return Remembered(content, False, "memory")
        except ServiceError as error:
            log.warning("an answer is kept in memory only: %s", error.detail)
            return Remembered(content, False, "memory")
        return (
            Remembered(content, False, "ledger")
            if earlier is None
            else Remembered(earlier.response.encode(), True, "ledger")
        )
