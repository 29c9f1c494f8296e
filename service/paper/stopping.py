"""Ending on request: at once while waiting or asking, and only after it where something is being written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was asked to end. Not an Exception: nothing that handles errors may swallow it."""


class Stop:
    """Whether the process was asked to end. `request` may come from a signal, or from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._may_interrupt = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests. In the main thread only."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def request(self) -> None:
        """Ask to end at the next boundary."""
        self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, or less when a request comes."""
        self._event.wait(seconds)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped` wherever the program is: a hanging request need not time out first."""
        self._may_interrupt = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._may_interrupt = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()
        if self._may_interrupt:
            raise Stopped
