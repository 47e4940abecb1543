"""State that all routes share: models, handles, Prometheus metrics, admission, and the threads for decoding and torch."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from mcdi.errors import McdiError
from mcdi.serve.batching import Batcher, Job
from mcdi.serve.handles import Handles
from mcdi.serve.limits import Keys, Limits, Refused
from mcdi.serve.models import Models

B = TypeVar("B", bound=BaseModel)
R = TypeVar("R")
DECODERS = 2  # threads that parse bodies and decode images, which bounds the memory for parsed bodies
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, queue: Callable[[], float], handles: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        common: Any = {"registry": self.registry, "namespace": "mcdi"}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **common)
        self.seconds = Histogram("request_seconds", "Duration of a request.", ["route"], buckets=SECONDS, **common)
        self.batches = Histogram("batch_size", "Requests per batch.", buckets=SIZES, **common)
        self.reloads = Counter("reloads", "Checks of models for new files.", ["model", "result"], **common)
        Gauge("queue_length", "Requests that wait for the torch thread.", **common).set_function(queue)
        Gauge("handles", "Handles in memory.", **common).set_function(handles)


class Service:
    """The state of one server; call `close` after the last request."""

    def __init__(self, models: Models, limits: Limits, keys: Keys) -> None:
        self.models, self.limits, self.keys = models, limits, keys
        self.handles = Handles(limits.handles, limits.handle_bytes)
        self.batcher = Batcher(
            limits.batch,
            limits.wait,
            lambda size: self.metrics.batches.observe(size),
            lambda: self.active > len(self.batcher),  # a single request is never delayed by batching
        )
        self.metrics = Metrics(lambda: len(self.batcher), lambda: len(self.handles))
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="mcdi-decode")
        self.writing = asyncio.Semaphore(1)  # one export of a classifier at a time
        self.active = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as active, before its body is read. Raises Refused (429) if the queue is full."""
        if self.active >= self.limits.queue:
            raise Refused(429, f"{self.limits.queue} requests are active already: try again in a second")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def body(self, request: Request, kind: type[B]) -> B:
        """The parsed body of a request. Raises Refused if it is too large, too slow or not valid."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        try:
            data = await asyncio.wait_for(self._data(request), self.limits.timeout)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self.limits.timeout:g} seconds: send it faster") from error
        return await self.in_decoder(_parse, kind, data)

    async def _data(self, request: Request) -> bytes:
        data, limit = bytearray(), self.limits.body
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise Refused(413, f"the body has {length[:20]} bytes: send at most {limit}")
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise Refused(413, f"the body has more than {limit} bytes: send less")
        except ClientDisconnect as error:  # not an error of the server: no traceback in its log
            raise Refused(400, "the connection ended before the body did") from error
        return bytes(data)

    async def in_decoder(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run a function in a decoder thread."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, lambda: function(*arguments))

    async def compute(self, job: Job) -> Any:
        """Run a job in the torch thread. Raises Refused after the timeout: 503 if it still waits, 504 if it runs."""
        future = self.batcher.submit(job)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError as error:
            seconds = f"{self.limits.timeout:g} seconds"
            if future.cancelled():
                raise Refused(503, f"the computation did not start within {seconds}: try again later") from error
            raise Refused(504, f"the computation took more than {seconds}: use fewer steps, samples or examples") from error

    def reload(self) -> None:
        for name, result in self.models.reload().items():
            self.metrics.reloads.labels(name, result).inc()

    def close(self) -> None:
        self.batcher.close()
        self.decoders.shutdown()


def _parse(kind: type[B], data: bytes) -> B:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        status = 400 if first["type"] == "json_invalid" else 422
        raise Refused(status, f"{field or 'the body'}: {first['msg']}"[:500]) from None
    except RecursionError:
        raise McdiError("the body is nested too deeply") from None
