"""Token buckets: what one client may do, in time and in memory."""

from service.limits import TokenBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_the_next_one_is_told_how_long_to_wait() -> None:
    buckets = TokenBuckets(rate=2.0, burst=3, clock=Clock())
    assert [buckets.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.take("a") == 0.5  # one token at two per second


def test_tokens_come_back_at_the_rate_and_never_beyond_the_burst() -> None:
    clock = Clock()
    buckets = TokenBuckets(rate=2.0, burst=3, clock=clock)
    buckets.take("a", 3)
    clock.now = 1.0
    assert buckets.take("a", 2) == 0.0
    assert buckets.take("a", 1) == 0.5
    clock.now = 1000.0
    assert buckets.take("a", 3) == 0.0
    assert buckets.take("a", 1) > 0.0


def test_clients_do_not_share_a_bucket() -> None:
    buckets = TokenBuckets(rate=1.0, burst=1, clock=Clock())
    assert buckets.take("a") == 0.0
    assert buckets.take("b") == 0.0
    assert buckets.take("a") > 0.0


def test_being_refused_costs_nothing() -> None:
    clock = Clock()
    buckets = TokenBuckets(rate=1.0, burst=1, clock=clock)
    buckets.take("a")
    for _ in range(50):
        buckets.take("a")
    clock.now = 1.0
    assert buckets.take("a") == 0.0


def test_more_than_the_burst_at_once_takes_a_full_bucket_instead_of_never_passing() -> None:
    buckets = TokenBuckets(rate=1.0, burst=4, clock=Clock())
    assert buckets.take("a", 64) == 0.0
    assert buckets.take("a", 64) == 4.0


def test_memory_is_bounded_and_the_longest_unseen_client_is_forgotten() -> None:
    buckets = TokenBuckets(rate=1.0, burst=1, clients=3, clock=Clock())
    for client in "abca":  # a is seen last
        buckets.take(client)
    buckets.take("d")
    assert len(buckets) == 3
    assert buckets.wait("a") > 0.0
    assert buckets.wait("b") == 0.0  # forgotten: a full bucket again
