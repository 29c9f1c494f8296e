"""Where the API asks the ledger: a few threads, a bounded queue, a deadline. The event loop never waits for a disk.

A ledger may not be there (nothing was ever traded), may be out of reach, or may be put back from a backup while we run.
Every question finds out anew, so that a ledger which appears, heals or is replaced needs no restart of the API.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Self, TypeVar

from service.config import ServiceConfig
from service.errors import Conflict, DeadlineExceeded, Unavailable
from service.ledger.connection import parse_url, sqlite_file
from service.ledger.errors import KeyReused, LedgerBusy, LedgerError, TooManyCommands
from service.ledger.store import Ledger, Reader, Writer

log = logging.getLogger("service.ledger")

Answer = TypeVar("Answer")
Question = Callable[[Reader], Answer]
Change = Callable[[Writer], Answer]

_BUSY_SECONDS: Final = 2.0  # what a writer of the API waits for the trader, whose transactions take milliseconds


class NoLedger(Exception):
    """There is no ledger: no paper process has ever run here."""


class LedgerDesk:
    """Reads and writes of the API, off the event loop.

    Reads share `workers` threads; writes have one of their own, so that a command does not wait behind a long list.
    """

    def __init__(self, url: str | None, *, workers: int, queue_limit: int, deadline: float) -> None:
        """url: None where there is no ledger and will be none. queue_limit: questions that may wait or be answered at
        once. deadline: seconds from question to answer."""
        self._url = url
        self._file = None if url is None else sqlite_file(parse_url(url))
        self._queue_limit = queue_limit
        self._deadline = deadline
        self._readers = ThreadPoolExecutor(workers, thread_name_prefix="ledger-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-write")
        self._open = 0
        self._trouble: str | None = None
        self._lock = threading.Lock()
        self._ledgers: dict[bool, tuple[Ledger, tuple[int, int] | None]] = {}  # by whether it may be written

    @classmethod
    def from_config(cls, url: str | None, config: ServiceConfig) -> Self:
        """With the bounds of a configuration."""
        return cls(
            url,
            workers=config.ledger_workers,
            queue_limit=config.ledger_queue_limit,
            deadline=config.ledger_deadline_seconds,
        )

    @property
    def trouble(self) -> str | None:
        """Why the last question got no answer; none while all is well or where there is no ledger. Names no place."""
        return self._trouble

    async def read(self, question: Question[Answer], *, deadline: float | None = None) -> Answer:
        """Ask something of one state of the ledger.

        Raises NoLedger, Unavailable (out of reach, or too many questions), DeadlineExceeded, Conflict.
        """

        def ask() -> Answer:
            with self._ledger(writable=False).reading() as reader:
                return question(reader)

        return await self._run(self._readers, ask, deadline)

    async def write(self, change: Change[Answer], *, deadline: float | None = None) -> Answer:
        """Change something, all or nothing; see `read` for what it raises."""

        def do() -> Answer:
            with self._ledger(writable=True).transaction() as writer:
                return change(writer)

        return await self._run(self._writer, do, deadline)

    def close(self) -> None:
        """Let the threads and connections go. What is being answered is finished, on threads nobody waits for."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for ledger, _ in self._ledgers.values():
                ledger.close()
            self._ledgers.clear()

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], Answer], deadline: float | None) -> Answer:
        if self._open >= self._queue_limit:
            raise Unavailable(
                f"{self._open} questions to the ledger wait already; ask again after the time in Retry-After",
                retry_after=1.0,
            )
        self._open += 1
        job = asyncio.get_running_loop().run_in_executor(pool, work)
        job.add_done_callback(self._finished)
        seconds = self._deadline if deadline is None else deadline
        try:
            # shield: a thread cannot be stopped, and its place in the queue is free only when it has come back.
            answer = await asyncio.wait_for(asyncio.shield(job), seconds)
        except TimeoutError:
            self._trouble = "the ledger does not answer in time"
            raise DeadlineExceeded(f"the ledger did not answer within {seconds:g} s; ask for less, or later") from None
        except NoLedger:
            self._trouble = None
            raise
        except KeyReused as error:
            raise Conflict(str(error)) from None
        except TooManyCommands as error:
            raise Unavailable(str(error), retry_after=5.0) from None
        except LedgerBusy as error:
            raise Unavailable(str(error), retry_after=1.0) from error
        except LedgerError as error:
            if self._trouble is None:
                log.error("%s", error)
            self._trouble = f"the ledger cannot be used ({type(error).__name__})"
            raise Unavailable(str(error), retry_after=5.0) from error
        if self._trouble is not None:
            log.info("the ledger answers again")
            self._trouble = None
        return answer

    def _finished(self, job: "asyncio.Future[Answer]") -> None:
        self._open -= 1
        if not job.cancelled():
            job.exception()  # looked at: whoever asked may have gone

    def _ledger(self, *, writable: bool) -> Ledger:
        """An open ledger. A file that is not there is not made; one that has been replaced is opened anew."""
        if self._url is None:
            raise NoLedger
        identity = None
        if self._file is not None:
            try:
                status = self._file.stat()
            except FileNotFoundError:
                self._forget(writable)
                raise NoLedger from None
            except OSError:
                pass  # opening it will say what is wrong, in the ledger's words
            else:
                if status.st_size == 0:
                    raise NoLedger  # the trader is just about to make it
                identity = (status.st_dev, status.st_ino)
        with self._lock:
            known = self._ledgers.get(writable)
            if known is not None and known[1] == identity:
                return known[0]
            ledger = Ledger.open(self._url, writable=writable, migrate=False, busy_seconds=_BUSY_SECONDS)
            self._ledgers[writable] = (ledger, identity)
        if known is not None:
            known[0].close()
        return ledger

    def _forget(self, writable: bool) -> None:
        with self._lock:
            known = self._ledgers.pop(writable, None)
        if known is not None:
            with suppress(LedgerError):
                known[0].close()
