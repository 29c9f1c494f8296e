"""uvicorn, told that the end is near as soon as the signal comes.

By itself it waits for open connections first and tells the application after that; an event stream, which never ends by
itself, would take all of the grace period.
"""

from collections.abc import Callable
from types import FrameType

import uvicorn


class Server(uvicorn.Server):
    """A server that calls `on_stop` when it is asked to stop: within a signal handler, so it must only set flags."""

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self._on_stop()
        super().handle_exit(sig, frame)
