"""What do all routes share? Admission, bodies, limits of time, the thread of torch, and what is kept between requests."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from mcdi.errors import McdiError
from mcdi.serve.batching import Batcher
from mcdi.serve.handles import Handles
from mcdi.serve.limits import Keys, Limits
from mcdi.serve.metrics import Metrics
from mcdi.serve.models import Models
from mcdi.serve.refusals import Refused, busy
from mcdi.serve.work import Call

B = TypeVar("B", bound=BaseModel)
R = TypeVar("R")
DECODERS = 2  # threads that parse bodies and decode images: so many bodies are Python objects at once


class Service:
    """Close it when the last request is answered."""

    def __init__(self, models: Models, limits: Limits, keys: Keys) -> None:
        self.models, self.limits, self.keys = models, limits, keys
        self.handles = Handles(limits.handles, limits.handle_bytes)
        self.batcher = Batcher(
            limits.batch,
            limits.wait,
            lambda size: self.metrics.batches.observe(size),
            lambda: self.under_way > len(self.batcher),  # whoever is alone waits for nobody
        )
        self.metrics = Metrics(lambda: len(self.batcher), lambda: len(self.handles))
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="mcdi-decode")
        self.under_way = 0

    @property
    def room(self) -> bool:
        return self.under_way < self.limits.queue

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Before anything of a request is read. Raises Refused (429) where too many are under way."""
        if not self.room:
            raise busy(429, f"{self.limits.queue} requests are waiting already: try again in a second")
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def body(self, request: Request, kind: type[B]) -> B:
        """The request's JSON. Raises Refused for what is too large, too slow or no such JSON."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        try:
            data = await asyncio.wait_for(self._data(request), self.limits.timeout)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self.limits.timeout:g} seconds: send it faster") from error
        return await self.aside(_parsed, kind, data)

    async def _data(self, request: Request) -> bytes:
        data, most = bytearray(), self.limits.body
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told[:20]) > most:
            raise Refused(413, f"the body has {told[:20]} bytes: send at most {most}")
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise Refused(413, f"the body has more than {most} bytes: send less")
        except ClientDisconnect as error:  # nobody hears it; no fault of ours to be logged
            raise Refused(400, "the connection ended before the body did") from error
        return bytes(data)

    async def aside(self, work: Callable[..., R], *arguments: Any) -> R:
        """`work` on a thread for decoding."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, lambda: work(*arguments))

    async def torch(self, call: Call) -> Any:
        """The call's result, from the thread of torch. Raises Refused (503 still waiting, 504 under way) after the timeout."""
        future = self.batcher.submit(*call)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError as error:
            seconds = f"{self.limits.timeout:g} seconds"
            if future.cancelled():
                raise busy(503, f"no turn came within {seconds}: try again later") from error
            raise Refused(504, f"no answer was ready within {seconds}: ask for fewer steps, samples or examples") from error

    def reload(self) -> None:
        for name, result in self.models.reload().items():
            self.metrics.reloads.labels(name, result).inc()

    def close(self) -> None:
        self.batcher.close()
        self.decoders.shutdown()


def _parsed(kind: type[B], data: bytes) -> B:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        status = 400 if first["type"] == "json_invalid" else 422
        raise Refused(status, f"{place or 'the body'}: {first['msg']}"[:500]) from None
    except RecursionError:
        raise McdiError("the body is nested too deeply") from None
