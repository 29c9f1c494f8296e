"""What Prometheus reads at /metrics. One registry per application, nothing global."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.ledger.schema import RISK_MODES
from service.paper_schemas import PaperStatus

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

        self.listeners = Gauge("smu0_stream_listeners", "open event streams", registry=registry)
        self._paper = PaperCollector()
        registry.register(self._paper)

    def paper(self, status: PaperStatus | None) -> None:
        """How paper trading stands at this scrape; none when the ledger cannot be read."""
        self._paper.status = status

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


class PaperCollector(Collector):
    """The paper account as gauges, read from the ledger. What is not known is left out: a gap says more than a zero."""

    def __init__(self) -> None:
        self.status: PaperStatus | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of the last status that was given."""
        status = self.status
        yield _gauge("smu0_ledger_up", "1: the ledger can be read", float(status is not None))
        if status is None:
            return
        process, run, account, guards, counts = (
            status.process, status.run, status.account, status.guards, status.counts
        )  # fmt: skip
        yield _gauge("smu0_paper_up", "1: the paper process reports", float(process is not None and process.alive))
        if process is not None:
            yield _gauge(
                "smu0_paper_heartbeat_age_seconds", "since the process last reported", process.heartbeat_age_seconds
            )
        if process is not None and process.state is not None:
            state = process.state
            yield _gauge("smu0_paper_feed_up", "1: the source of bars answers", float(state.feed != "unreachable"))
            yield _gauge("smu0_paper_feed_errors", "failed requests for bars in a row", float(state.errors))
            yield _gauge("smu0_paper_clock_skew_seconds", "exchange's clock minus ours", state.clock_skew_ms / 1000.0)
            if state.data_age_seconds is not None:
                age = "since the newest bar closed, when the process last reported"
                yield _gauge("smu0_paper_data_age_seconds", age, state.data_age_seconds)
        if run is None:
            return
        yield _gauge("smu0_paper_run_info", "the run: 1", 1.0, run=run.id, model=run.model, instrument=run.instrument)
        where = {"instrument": run.instrument}
        if guards is not None:
            modes = GaugeMetricFamily("smu0_paper_mode", "1: the mode the guards are in", labels=["instrument", "mode"])
            for mode in RISK_MODES:
                modes.add_metric([run.instrument, mode], float(guards.mode == mode))
            yield modes
        if account is not None:
            yield _gauge("smu0_paper_equity", "equity at the last close, quote currency", account.equity, **where)
            yield _gauge("smu0_paper_drawdown_fraction", "distance from the peak", account.drawdown_fraction, **where)
            if account.buy_and_hold_equity is not None:
                held = "of an account that bought at the start and held"
                yield _gauge("smu0_paper_buy_and_hold_equity", held, account.buy_and_hold_equity, **where)
        exposure = sum(position.exposure for position in status.positions)
        yield _gauge("smu0_paper_position_exposure", "position value / equity", exposure, **where)
        if counts is not None:
            decisions = GaugeMetricFamily(
                "smu0_paper_decisions", "bars by what became of their decision", labels=["instrument", "status"]
            )
            for name in ("decided", "blocked", "skipped_late", "skipped_gap"):
                decisions.add_metric([run.instrument, name], float(getattr(counts, name)))
            yield decisions
            yield _gauge("smu0_paper_fills", "fills of the run", float(counts.fills), **where)


def _gauge(name: str, words: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
