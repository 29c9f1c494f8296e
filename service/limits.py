"""Token buckets, one per client, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class TokenBuckets:
    """Lets each client do `burst` things at once and `rate` per second in the long run.

    Only the most recently seen clients are remembered. A forgotten one starts with a full bucket, so an attacker with
    a great many addresses is not held back by this: it bounds what one careless client can do.
    """

    def __init__(
        self, *, rate: float, burst: int, clients: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """rate: tokens per second. clients: most buckets kept. clock: seconds."""
        self.rate = rate
        self.burst = burst
        self._clients = clients
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, client: str, tokens: float = 1.0) -> float:
        """Seconds until `tokens` are there; 0.0 when they are there now. Takes nothing."""
        bucket = self._refilled(client)
        return max(0.0, (min(tokens, self.burst) - bucket.tokens) / self.rate)

    def take(self, client: str, tokens: float = 1.0) -> float:
        """Take `tokens` if they are there. Returns 0.0, or the seconds until they will be."""
        wait = self.wait(client, tokens)
        if wait == 0.0:
            self._buckets[client].tokens -= min(tokens, self.burst)
        return wait

    def _refilled(self, client: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(float(self.burst), now)
            if len(self._buckets) > self._clients:
                self._buckets.popitem(last=False)
        else:
            bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.filled_at) * self.rate)
            bucket.filled_at = now
            self._buckets.move_to_end(client)
        return bucket
