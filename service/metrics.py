"""What Prometheus reads at /metrics. One registry per application, nothing global."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The service's instruments."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("smu0_requests_total", "requests answered", ["route", "status"], registry=registry)
        self._request_seconds = Histogram(
            "smu0_request_seconds", "time to answer a request", ["route"], buckets=_SECONDS, registry=registry
        )
        self._queue_seconds = Histogram(
            "smu0_queue_seconds", "time a decision waited for the worker", buckets=_SECONDS, registry=registry
        )
        self._inference_seconds = Histogram(
            "smu0_inference_seconds", "time of a batch on the worker", buckets=_SECONDS, registry=registry
        )
        self._batch_rows = Histogram("smu0_batch_rows", "decisions per batch", buckets=_ROWS, registry=registry)
        self._decisions = Counter("smu0_decisions_total", "decisions given", ["action"], registry=registry)
        self._reloads = Counter("smu0_reloads_total", "model reloads", ["result"], registry=registry)
        self._model = Gauge("smu0_model_info", "the model that is served: 1", ["model"], registry=registry)
        self.queue_depth = Gauge("smu0_queue_depth", "decisions that wait now", registry=registry)
        self.worker_busy_seconds = Gauge(
            "smu0_worker_busy_seconds", "time the worker has spent on its present batch", registry=registry
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. route: its template, so that the number of series is bounded."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """The worker finished a batch."""
        self._batch_rows.observe(rows)
        self._inference_seconds.observe(seconds)

    def decision(self, action: int, queue_seconds: float) -> None:
        """A decision was given, after it had waited."""
        self._decisions.labels(str(action)).inc()
        self._queue_seconds.observe(queue_seconds)

    def reload(self, result: str) -> None:
        """A reload ended: swapped, unchanged or refused."""
        self._reloads.labels(result).inc()

    def model(self, name: str) -> None:
        """A model is served from now on."""
        self._model.clear()
        self._model.labels(name).set(1)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)
