"""State that all routes share: models, handles, Prometheus metrics, admission, and the threads for decoding and torch."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import prometheus_client as prometheus
from fastapi import Request
from pydantic import BaseModel

from mcdi.errors import McdiError
from mcdi.serve.batching import Batcher, Job
from mcdi.serve.bodies import Bodies, parse
from mcdi.serve.handles import Handles
from mcdi.serve.limits import Keys, Limits, Refused
from mcdi.serve.models import Models

log = logging.getLogger("mcdi.serve")
B = TypeVar("B", bound=BaseModel)
R = TypeVar("R")
DECODERS = 2  # threads that parse bodies and decode images, which bounds the memory for parsed bodies
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, queue: Callable[[], float], handles: Callable[[], float]) -> None:
        self.registry = prometheus.CollectorRegistry()
        common: Any = {"registry": self.registry, "namespace": "mcdi"}
        self.requests = prometheus.Counter("requests", "Requests answered.", ["route", "status"], **common)
        self.seconds = prometheus.Histogram("request_seconds", "Duration of a request.", ["route"], buckets=SECONDS, **common)
        self.batches = prometheus.Histogram("batch_size", "Requests per batch.", buckets=SIZES, **common)
        self.reloads = prometheus.Counter("reloads", "Checks of models for new files.", ["model", "result"], **common)
        prometheus.Gauge("queue_length", "Requests that wait for the torch thread.", **common).set_function(queue)
        prometheus.Gauge("handles", "Handles in memory.", **common).set_function(handles)


class Service:
    """The state of one server; call `close` after the last request."""

    def __init__(self, models: Models, limits: Limits, keys: Keys) -> None:
        self.models, self.limits, self.keys = models, limits, keys
        self.handles = Handles(limits.handles, limits.handle_bytes)
        self.batcher = Batcher(
            limits.batch,
            limits.wait,
            lambda size: self.metrics.batches.observe(size),
            lambda: self.active.total() > len(self.batcher),  # a single request is never delayed by batching
        )
        self.metrics = Metrics(lambda: len(self.batcher), lambda: len(self.handles))
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="mcdi-decode")
        self.turns: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(DECODERS))
        self._writing = asyncio.Semaphore(1)
        self._writers: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(1))
        self.bodies = Bodies(limits)
        self.active: Counter[str] = Counter()  # requests by tenant

    @property
    def full(self) -> bool:
        return self.active.total() >= self.limits.queue

    def refuse_if_full(self, tenant: str) -> None:
        """Raises Refused (429) if the queue is full, or, of several tenants, if this one has as many requests in it as there
        are places left: whoever has none in it finds a place."""
        left = self.limits.queue - self.active.total()
        if left <= 0 or (len(self.keys.tenants) > 1 and self.active[tenant] >= left):
            whose = f"{self.limits.queue} requests are" if left <= 0 else f"{self.active[tenant]} requests of this API key are"
            raise Refused(429, f"{whose} active already: try again in a second")

    @asynccontextmanager
    async def admitted(self, request: Request, tenant: str, kind: type[B]) -> AsyncIterator[B]:
        """The parsed body of a request, which counts as active from the moment when its body has arrived.
        Raises Refused if the body is too large, too slow or not valid, or if there is no room, see `refuse_if_full`."""
        self.refuse_if_full(tenant)  # before it sends a long body
        data, compressed = await self.bodies.read(request, tenant)
        self.refuse_if_full(tenant)
        self.active[tenant] += 1
        try:
            yield await self.in_decoder(tenant, parse, kind, data, self.limits.body if compressed else None)
        finally:
            self.active[tenant] -= 1

    async def in_decoder(self, tenant: str, function: Callable[..., R], *arguments: Any) -> R:
        """Run a function in a decoder thread; those that wait for one are taken by turns of the tenants."""
        async with self.turns[tenant]:
            return await asyncio.get_running_loop().run_in_executor(self.decoders, lambda: function(*arguments))

    async def compute(self, tenant: str, job: Job) -> Any:
        """Run a job in the torch thread. Raises Refused after the timeout: 503 if it still waits, 504 if it runs."""
        job.tenant = tenant
        future = self.batcher.submit(job)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError as error:
            seconds = f"{self.limits.timeout:g} seconds"
            if future.cancelled():
                raise Refused(503, f"the computation did not start within {seconds}: try again later") from error
            raise Refused(504, f"the computation took more than {seconds}: use fewer steps, samples or examples") from error

    @asynccontextmanager
    async def writer(self, tenant: str) -> AsyncIterator[None]:
        """For one export of a classifier at a time, by turns of the tenants. Raises Refused (503) after the timeout."""
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(self.limits.timeout):
                    await turn.enter_async_context(self._writers[tenant])
                    await turn.enter_async_context(self._writing)
            except TimeoutError as error:
                raise Refused(503, "other classifiers are being written: try again later") from error
            yield

    def reload(self) -> None:
        """Read the API keys and replaced models anew. What cannot be read stays as it is, and the log says why."""
        try:
            self.keys.reload()
            self.handles.keep(self.keys.tenants)
        except McdiError as error:
            log.error("the old API keys stay in use: %s", error)
        for name, result in self.models.reload().items():
            self.metrics.reloads.labels(name, result).inc()

    def close(self) -> None:
        self.batcher.close()
        self.decoders.shutdown()
