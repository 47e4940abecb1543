"""Prometheus metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, queue: Callable[[], float], handles: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        common = {"registry": self.registry, "namespace": "mcdi"}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **common)  # type: ignore[arg-type]
        self.seconds = Histogram("request_seconds", "Duration of a request.", ["route"], buckets=SECONDS, **common)  # type: ignore[arg-type]
        self.batches = Histogram("batch_size", "Requests per batch.", buckets=SIZES, **common)  # type: ignore[arg-type]
        self.reloads = Counter("reloads", "Checks of models for new files.", ["model", "result"], **common)  # type: ignore[arg-type]
        Gauge("queue_length", "Requests that wait for the torch thread.", **common).set_function(queue)  # type: ignore[arg-type]
        Gauge("handles", "Handles in memory.", **common).set_function(handles)  # type: ignore[arg-type]

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
