"""What does an operator see? Counters and histograms as Prometheus reads them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one server: a registry of its own."""

    def __init__(self, queue: Callable[[], float], handles: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        named = {"registry": self.registry, "namespace": "mcdi"}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **named)  # type: ignore[arg-type]
        self.seconds = Histogram("request_seconds", "From head to answer.", ["route"], buckets=SECONDS, **named)  # type: ignore[arg-type]
        self.batches = Histogram("batch_size", "Requests that shared a pass.", buckets=SIZES, **named)  # type: ignore[arg-type]
        self.reloads = Counter("reloads", "Models looked at for new files.", ["model", "result"], **named)  # type: ignore[arg-type]
        Gauge("queue_length", "Requests that wait for torch.", **named).set_function(queue)  # type: ignore[arg-type]
        Gauge("handles", "Handles held.", **named).set_function(handles)  # type: ignore[arg-type]

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
