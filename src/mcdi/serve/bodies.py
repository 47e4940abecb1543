"""Bodies of requests: received within limits of bytes and time, decompressed, and parsed."""

import asyncio
import zlib
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from mcdi.errors import McdiError
from mcdi.serve.limits import Limits, Refused

B = TypeVar("B", bound=BaseModel)
GZIP = 16 + zlib.MAX_WBITS


@dataclass(eq=False)
class Arriving:
    """A body on its way: whose it is, when it must have arrived, and the bytes so far."""

    tenant: str
    deadline: asyncio.Timeout
    size: int = 0


class Bodies:
    """Receives bodies. Those on their way take no place in the queue; all together they may have as many bytes as the queue's.
    Beyond that the oldest one of the tenant with the most bytes is refused."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._arriving: list[Arriving] = []  # the oldest first

    async def read(self, request: Request, tenant: str) -> tuple[bytes, bool]:
        """The body, and whether it is compressed. Raises Refused for one that is too large, too slow or of another type."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON: send the header 'Content-Type: application/json'")
        coding = ", ".join(request.headers.getlist("content-encoding") or ["identity"]).strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            problem = f"Content-Encoding {coding[:50]!r} is not understood: send the body as it is, or with gzip"
            raise Refused(415, problem, {"Accept-Encoding": "gzip"})
        length, limit = request.headers.get("content-length", ""), self.limits.body
        if length.isdecimal() and int(length[:20]) > limit:
            raise Refused(413, f"the body has {length[:20]} bytes: send at most {limit}")
        try:
            async with asyncio.timeout(self.limits.timeout) as deadline:
                return await self._receive(request, Arriving(tenant, deadline)), coding != "identity"
        except TimeoutError as error:
            late = f"the body did not arrive within {self.limits.timeout:g} seconds, or others needed its room: send it faster"
            raise Refused(408, late) from error
        except ClientDisconnect as error:  # not an error of the server: no traceback in its log
            raise Refused(400, "the connection ended before the body did") from error

    async def _receive(self, request: Request, body: Arriving) -> bytes:
        data, limit = bytearray(), self.limits.body
        self._arriving.append(body)
        try:
            async for chunk in request.stream():
                data += chunk
                body.size = len(data)
                if body.size > limit:
                    raise Refused(413, f"the body has more than {limit} bytes: send less")
                self._make_room()
            return bytes(data)
        finally:
            if body in self._arriving:
                self._arriving.remove(body)

    def _make_room(self) -> None:
        if sum(body.size for body in self._arriving) > self.limits.queue * self.limits.body:
            sizes: dict[str, int] = {}
            for body in self._arriving:
                sizes[body.tenant] = sizes.get(body.tenant, 0) + body.size
            oldest = next(body for body in self._arriving if sizes[body.tenant] == max(sizes.values()))
            self._arriving.remove(oldest)
            oldest.deadline.reschedule(asyncio.get_running_loop().time())


def parse(kind: type[B], data: bytes, limit: int | None) -> B:
    """A body as a model of pydantic. limit: of the bytes of a body that is compressed, once it is not. Raises Refused."""
    try:
        return kind.model_validate_json(data if limit is None else decompressed(data, limit))
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False)[0]
        status = 400 if first["type"] == "json_invalid" else 422
        raise Refused(status, _in_words(first)) from None
    except RecursionError:
        raise McdiError("the body is nested too deeply") from None


def decompressed(data: bytes, limit: int) -> bytes:
    """What a gzip file holds, of which no more than `limit` bytes are ever made. Raises Refused."""
    stream = zlib.decompressobj(GZIP)
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not gzip ({error}): compress it again, or leave out Content-Encoding") from None
    if len(plain) > limit:
        raise Refused(413, f"the body has more than {limit} bytes once it is decompressed: send less")
    if not stream.eof or stream.unused_data:
        raise Refused(400, "the body is not one complete gzip file: compress it again, or leave out Content-Encoding")
    return plain


def _in_words(error: Any) -> str:
    """What is wrong with which field, without the value, which may be long: support.features[0][2] is null: ..."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "finite_number":
        text = "is NaN or infinite: send a finite number"
    elif error["input"] is None and error["type"] != "json_invalid":
        text = f"is null: {error['msg'].removeprefix('Input ')}"
    else:
        text = error["msg"]
    joint = " " if text.startswith("is ") else ": "
    return f"{field or 'the body'}{joint}{text}"[:500]
